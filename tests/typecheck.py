"""Whether annotations are true: what each function of a test session took and returned, held against its signature.

`install` has every function of a package that declares something call `held`. What it took is checked after the call,
with what it returned. So what a function refuses needs no annotation, and its ValueError or TypeError reaches the test
that asks for it; what it takes or returns and does not declare is a false annotation.

jaxtyping has a hook of its own for this, by which tests of much Python took twice as long: it makes two twins of a
function, to check with, whenever that is defined, and one within another is defined at every call. Here hints are read
once, when a function is first called, and beartype compiles a check for each hint, not for each function.
"""

import ast
import sys
from contextlib import nullcontext
from dataclasses import is_dataclass
from functools import cache, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from inspect import Parameter, signature
from itertools import chain
from types import UnionType
from typing import Any, ParamSpecArgs, ParamSpecKwargs, Union, get_args, get_origin, get_type_hints

from beartype import BeartypeConf
from beartype.door import die_if_unbearable
from beartype.roar import BeartypeDoorHintViolation
from jax.extend import source_info_util
from jaxtyping import AbstractArray, jaxtyped

_AS_IN_PEP_484 = BeartypeConf(is_pep484_tower=True)  # an int is a float
_POSITIONAL = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_declared = {}


class FalseAnnotation(BaseException):
    """Not an Exception, that neither an `except` in the code nor `pytest.raises(TypeError)` may swallow it."""


def install(package):
    """Hold what is imported of a package from now on; where JAX looks for the caller's line, it looks past this."""
    source_info_util.register_exclusion(__file__)
    sys.meta_path.insert(0, _Finder(package))


def held(definition):
    """The function that holds its calls, or the dataclass that holds its fields, against what is declared."""
    if isinstance(definition, type):
        if is_dataclass(definition) and "__init__" in vars(definition):
            definition.__init__ = held(definition.__init__)
        return definition
    code = definition.__code__

    @wraps(definition)
    def call(*args, **kwargs):
        result = definition(*args, **kwargs)
        # By identity: equal code, such as that of dataclasses, may declare different things.
        declared = _declared.get(id(code)) or _declared.setdefault(id(code), _Signature(definition))
        declared.hold(args, kwargs, result)
        return result

    return call


class _Hint:
    """What is declared of a value; where types alone tell, its own or those of its parts, of each kind once."""

    def __init__(self, hint):
        self.hint, self.has_axes = hint, _has_axes(hint)
        self.is_plain = _is_plain(hint)
        self.has_plain_parts = get_origin(hint) is tuple and all(map(_is_plain, get_args(hint)))
        self.passed = set()

    def hold(self, value, where):
        kind = tuple(map(type, value)) if self.has_plain_parts and type(value) is tuple else type(value)
        if kind in self.passed or self.hint is Any:
            return
        try:
            die_if_unbearable(value, self.hint, conf=_AS_IN_PEP_484)
        except BeartypeDoorHintViolation as violation:
            raise FalseAnnotation(f"{where}={value!r}: {violation}") from None
        if self.is_plain or (self.has_plain_parts and type(value) is tuple):
            self.passed.add(kind)


class _Signature:
    """What is declared of each argument and of the result."""

    def __init__(self, function):
        self.code = function.__code__  # which keeps its identity
        self.name, self.package = f"{function.__module__}.{function.__qualname__}()", _package(function)
        parameters = signature(function).parameters.values()
        self.names = {p.name for p in parameters}
        self.positional = [p.name for p in parameters if p.kind in _POSITIONAL]
        hints = {name: _Hint(_resolved(hint, function)) for name, hint in function.__annotations__.items()}
        self.has_axes = any(each.has_axes for each in hints.values())
        self.result = hints.pop("return", _Hint(Any))
        self.variadic = {p.kind: hints.pop(p.name, _Hint(Any)) for p in parameters if p.kind in _VARIADIC}
        # In their order: one may name axes that the next counts from.
        self.hints = {p.name: hints[p.name] for p in parameters if p.name in hints}

    def hold(self, args, kwargs, result):
        with jaxtyped("context") if self.has_axes else nullcontext():  # the axes of this call
            given = dict(zip(self.positional, args, strict=False)) | kwargs
            for name, hint in self.hints.items():
                if name in given and type(given[name]) not in hint.passed:
                    hint.hold(given[name], f"{self.name} parameter {name}")
            if self.variadic:
                self._hold_variadic(args, kwargs)
            self.result.hold(result, f"{self.name} return")
            if (
                isinstance(result, tuple)
                and self.result.hint is not Any
                and _package(type(result)) == self.package
            ):
                self._hold_fields(result)

    def _hold_variadic(self, args, kwargs):
        for value in args[len(self.positional) :]:
            self.variadic[Parameter.VAR_POSITIONAL].hold(value, f"{self.name} parameter *")
        for name in kwargs.keys() - self.names:
            self.variadic[Parameter.VAR_KEYWORD].hold(kwargs[name], f"{self.name} parameter {name}")

    def _hold_fields(self, record):
        """Hold a NamedTuple's fields against their hints; their axes are named apart from those of the function."""
        with jaxtyped("context"):
            for name, hint in _fields(type(record)).items():
                hint.hold(getattr(record, name), f"{self.name} return .{name}")


@cache
def _fields(record):
    return {name: _Hint(hint) for name, hint in get_type_hints(record).items()}


def _is_plain(hint):
    if get_origin(hint) in (Union, UnionType):
        return all(map(_is_plain, get_args(hint)))
    return type(hint) is type


def _has_axes(hint):
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_axes, get_args(hint)))


def _resolved(hint, function):
    """The hint that a string stands for; anything where it names what is imported for type checkers alone.

    So too what is handed on to another function, `*args: P.args`.
    """
    holder = type("_Holder", (), {"__annotations__": {"it": hint}})
    try:
        hint = get_type_hints(holder, vars(sys.modules[function.__module__]), include_extras=True)["it"]
    except NameError:
        return Any
    return Any if isinstance(hint, ParamSpecArgs | ParamSpecKwargs) else hint


def _package(definition):
    return definition.__module__.partition(".")[0]


class _Finder(MetaPathFinder):
    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def get_code(self, fullname):
        """Compile anew: what __pycache__ holds of a module calls nothing, and it shall stay so."""
        path = self.get_filename(fullname)
        tree = _Decorating().visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def exec_module(self, module):
        vars(module)["__held__"] = held
        super().exec_module(module)


class _Decorating(ast.NodeTransformer):
    """Has `held` decorate functions first, before what hides their annotations, and classes last."""

    def visit_FunctionDef(self, node):
        every = node.args
        arguments = chain(every.posonlyargs, every.args, every.kwonlyargs, (every.vararg, every.kwarg))
        if node.returns or any(each is not None and each.annotation for each in arguments):
            node.decorator_list.append(ast.copy_location(ast.Name("__held__", ast.Load()), node))
        return self.generic_visit(node)

    def visit_ClassDef(self, node):
        node.decorator_list.insert(0, ast.copy_location(ast.Name("__held__", ast.Load()), node))
        return self.generic_visit(node)
