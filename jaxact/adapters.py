"""A model of any framework as a plain function of an array: NNX, Linen, Equinox, Haiku, a factory, a name to import."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxact._haiku import applied, is_transformed
from jaxact._required import required, told_what_is_missing, written
from jaxact.errors import ArgumentError, one_line
from jaxact.numerics import untraceable, widest_input

__all__ = [
    "Model",
    "OneExample",
    "Parametric",
    "as_function",
    "as_parametric",
    "import_model",
    "import_object",
    "made",
    "on_one_example",
]

_SAME_OUTPUT = 1e-4  # relative
_FEW = 8  # names shown where none is close


class Model(NamedTuple):
    """A model as a function.

    Attributes:
        name: what errors call it.
        kind: in words, with the mode that it was put into.
        call: array -> array or pytree of arrays, without side effects; safe to trace.
        takes_batch: whether its framework's layers are called on [batch, ...].
        forward: the same function in a form that forward mode accepts, where `call` is not (a custom_vjp); or None.
    """

    name: str
    kind: str
    call: Callable[[Any], Any]
    takes_batch: bool
    forward: Callable[[Any], Any] | None = None


class OneExample(NamedTuple):
    """A model as a function of one example.

    Attributes:
        model: where it comes from.
        shape: of the example.
        called_on: the shape that the model itself is given, perhaps with a batch axis of 1.
        output_shapes: of every array that it returns.
        dtype: in which it can be called: float64, or float32 where it insists.
        call: [*shape] -> array or pytree of arrays.
        tangent: (x, v) -> J(x) v where `jax.jvp` refuses `call`, else None; in the shapes of `call`'s outputs.
    """

    model: Model
    shape: tuple[int, ...]
    called_on: tuple[int, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    dtype: Any
    call: Callable[[Any], Any]
    tangent: Callable[[Any, Any], Any] | None


class Parametric(NamedTuple):
    """A model as a function of its parameters too.

    Attributes:
        kind: in words.
        call: (params, batch) -> array or pytree of arrays; takes a batch, whatever its framework's layers take.
        params: pytree of arrays.
        names: of the leaves of `params`, as their user would write them.
        rebuild: params -> the same kind of object with these in it; a new one.
    """

    kind: str
    call: Callable[[Any, Any], Any]
    params: Any
    names: tuple[str, ...]
    rebuild: Callable[[Any], Any]


# --- By name --------------------------------------------------------------------------------------------------


def import_model(name: str) -> Model:
    """Import a model as a function of one array.

    Args:
        name: as in `import_object`; what it names is as in `as_function`.

    Returns:
        A `Model`.

    Raises:
        ValueError: as in `import_object`, or it is no model.
    """
    return as_function(import_object(name), name=name)


def import_object(name: str) -> Any:
    """Import whatever has a name, looking in the current directory first.

    The current directory becomes the first place that Python imports from, as for a script that lies there, and JAX's
    caches are cleared: they hold NumPy constants in float32 of what the module ran already.

    Args:
        name: MODULE:NAME, both may be dotted.

    Returns:
        The object, as it is.

    Raises:
        ValueError: there is no such module or attribute, with the closest that there is; or its own code fails.
    """
    module_name, _, path = name.partition(":")
    _check_name(name, module_name, path)
    value, where = _imported(module_name), module_name
    for part in path.split("."):
        if not hasattr(value, part):
            raise ArgumentError(f"{where} has no {part!r}, in {name!r}.", _instead(part, value))
        value = getattr(value, part)
        where += f".{part}" if ":" in where else f":{part}"
    return value


def _check_name(name: str, module_name: str, path: str) -> None:
    is_file = module_name.endswith(".py")
    if not is_file and all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        return
    stem = Path(module_name).stem
    meant = f"{stem if stem.isidentifier() else 'mymodule'}:{path or 'model'}"
    raise ArgumentError(
        f"must be MODULE:NAME, as Python imports it, got {name!r}.",
        f"Write {meant}, in the module's folder.",
        argument="name",
    )


def _imported(name: str) -> Any:
    here = str(Path.cwd())
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise ArgumentError(
                f"importing {name} raised {one_line(error)}.", "Install what is missing, or mend the import."
            ) from error
        raise _no_module(error.name, here) from error
    except (Exception, SystemExit) as error:
        raise ArgumentError(
            f"importing {name} raised {one_line(error)}.", f"`python -c 'import {name}'` must work."
        ) from error
    jax.clear_caches()
    return module


def _no_module(name: str, here: str) -> ArgumentError:
    parent, _, last = name.rpartition(".")
    folders = getattr(sys.modules.get(parent), "__path__", []) if parent else [here]
    beside = [found.name for found in pkgutil.iter_modules(folders)]
    place = f"in {parent}" if parent else f"in {here}, nor on Python's path"
    return ArgumentError(f"there is no module {name!r} {place}.", _closest(last, beside, "modules there"))


def _instead(part: str, value: Any) -> str:
    public = [each for each in vars(value) if not each.startswith("_")] if hasattr(value, "__dict__") else []
    mine = [each for each in public if not inspect.ismodule(vars(value)[each])]
    return _closest(part, mine, "names in it")


def _closest(word: str, words: Sequence[str], what: str) -> str:
    close = difflib.get_close_matches(word, words, 1)
    if close:
        return f"Did you mean {close[0]!r}?"
    if not words:
        return f"No {what}."
    return f"The {what} are {', '.join(words[:_FEW])}{', ...' if len(words) > _FEW else ''}."


# --- As a function --------------------------------------------------------------------------------------------


def as_function(value: Any, *, name: str = "`value`") -> Model:
    """Make a plain function of one array from a model of any framework, in inference mode.

    No framework is imported: a module can only be one of Flax or Equinox if its author imported that.

    Args:
        value: a function of one array; an NNX module, which is put into eval mode; an Equinox module, a copy of which
            is put into inference mode; a pair (Linen module, variables), (hk.Transformed, params) or
            (hk.TransformedWithState, (params, state)), the key of which is None; or a function or class without
            arguments that returns one of these, and is called once.
        name: what errors call it.

    Returns:
        A `Model`.

    Raises:
        ValueError: it is none of these, needs more than one array, or fails when called to make the model.

    Example:
        >>> model = as_function(lambda x: 2 * x)
        >>> model.call(3.0), model.kind, model.takes_batch
        (6.0, 'function', False)
    """
    if _needs_nothing(value):
        value = _called(value, name)
        return _adapted(value, name, f"returns {_article(type(value).__name__)}")
    return _adapted(value, name, f"is {_article(type(value).__name__)}")


def _adapted(value: Any, name: str, what: str) -> Model:
    if is_transformed(value):
        raise ArgumentError(
            f"{name} is a Haiku function without its parameters.", "Give the pair (transformed, params)."
        )
    if isinstance(value, tuple | list) and len(value) == 2 and is_transformed(value[0]):
        model = _haiku_parametric(*value)
        return Model(name, model.kind, functools.partial(model.call, model.params), True)
    if isinstance(value, tuple | list):
        return _linen_model(value, name)
    if _is_a(value, "flax.linen", "Module") and value.scope is None:
        raise ArgumentError(
            f"{name} is a Linen module without its variables, {type(value).__name__}.",
            "Give the pair (module, variables).",
        )
    _check_callable(value, name, what)
    if _is_a(value, "flax.nnx", "Module"):
        return _nnx_model(value, name)
    if _is_a(value, "equinox", "Module"):
        value = sys.modules["equinox"].nn.inference_mode(value)
        return Model(name, "Equinox module in inference mode", value, False)
    return Model(name, "function", value, False)


def _check_callable(value: Any, name: str, what: str) -> None:
    if not callable(value):
        raise ArgumentError(
            f"{name} must be a function of one array, a module, or a function that returns one; it {what}.",
            "Write `def model(x): ...` there, for instance.",
        )
    _check_no_class(value, name)
    _check_one_array(value, name)


def _check_no_class(value: Any, name: str) -> None:
    if inspect.isclass(value):
        raise ArgumentError(
            f"{name} is a class that needs arguments, {value.__name__}.",
            "Write a function without arguments that returns the module, and name that.",
        )


def _check_one_array(function: Callable[..., Any], name: str, *before: Any, remedy: str = "") -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of builtins, which say nothing
        return
    try:
        signature.bind(*before, None)
    except TypeError:
        raise ArgumentError(
            f"{name} must be a function of one array.",
            remedy or "Write def model(x): ... that gives the other arguments.",
        ) from None


def _linen_model(value: Sequence[Any], name: str) -> Model:
    if len(value) != 2 or not _is_a(value[0], "flax.linen", "Module"):
        raise ArgumentError(
            f"{name} must be a model, got a {type(value).__name__} of {len(value)}.",
            "A pair must be (Linen module, variables) or (hk.Transformed, params).",
        )
    module, variables = value
    names = required(type(module).__call__, 2)
    instead = f"Write lambda x: net.apply(variables, x, {written(names)})." if names else ""
    _check_one_array(module.__call__, name, remedy=instead)
    call = functools.partial(module.apply, variables)
    return Model(name, "Linen module with its variables", call, True)


def _nnx_model(module: Any, name: str) -> Model:
    nnx = sys.modules["flax.nnx"]
    module.eval()
    graph, state = nnx.split(module)

    def call(x: Any, **options: Any) -> Any:
        # A fresh copy inside every trace: a module that keeps intermediates may not be changed from there.
        return nnx.merge(graph, state)(x, **options)

    is_ours = any(_is_a(module, "jaxact.nn", each) for each in ("MLP", "ResNet", "Stack"))
    forward = functools.partial(call, mode="forward") if is_ours else None
    return Model(name, "NNX module in eval mode", call, True, forward)


# --- With its parameters --------------------------------------------------------------------------------------


def as_parametric(value: Any, *, name: str = "`fn`") -> Parametric:
    """Make a function of (params, batch) from a module, in the mode that it is in.

    Args:
        value: an NNX module, a pair (Linen module, variables), an Equinox module, which is mapped over the batch, a
            pair (hk.Transformed, params) or (hk.TransformedWithState, (params, state)), a pair (function of (params,
            inputs), params), or a function or class without arguments that returns one of these, and is called once.
            A `Parametric` is given back.
        name: what errors call it.

    Returns:
        A `Parametric`. Its `call` raises ValueError where the module is in training mode: what it changes as it runs
        would be lost.

    Raises:
        ValueError: it is none of these.

    Example:
        >>> from flax import nnx
        >>> as_parametric(nnx.Linear(3, 2, rngs=nnx.Rngs(0))).names
        ('bias', 'kernel')
    """
    value = made(value, name=name)
    if isinstance(value, Parametric):
        return value
    if isinstance(value, tuple | list) and len(value) == 2 and is_transformed(value[0]):
        return _haiku_parametric(*value)
    if isinstance(value, tuple | list) and len(value) == 2 and callable(value[0]):
        is_linen = _is_a(value[0], "flax.linen", "Module")
        return _linen_parametric(*value) if is_linen else _function_parametric(*value)
    if _is_a(value, "flax.nnx", "Module"):
        return _nnx_parametric(value)
    if _is_a(value, "equinox", "Module"):
        return _equinox_parametric(value)
    _check_no_class(value, name)
    raise ArgumentError(
        f"{name} must be an NNX or Equinox module, or a pair (Linen module, variables) or (hk.Transformed, params), "
        f"where no `params` are given, got {_article(type(value).__name__)}.",
        "Give a function its parameters: (fn, params, batch).",
        give="params",
    )


def _function_parametric(function: Callable[[Any, Any], Any], params: Any) -> Parametric:
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    names = tuple(jax.tree_util.keystr(path).lstrip(".") or "params" for path, _ in paths)

    def call(params: Any, batch: Any) -> Any:
        with told_what_is_missing(function, 2, "lambda params, x: fn(params, x, {})"):
            return function(params, batch)

    return Parametric("function of (params, inputs)", call, params, names, lambda params: params)


def _nnx_parametric(module: Any) -> Parametric:
    nnx = sys.modules["flax.nnx"]
    graph, state = nnx.split(module)
    pure = nnx.to_pure_dict(state)

    def rebuild(params: Any) -> Any:
        given = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(given, params)
        return nnx.merge(graph, given)

    def call(params: Any, batch: Any) -> Any:
        copy = rebuild(params)
        form = "lambda params, x: nnx.merge(graph, params)(x, {}), where graph, params = nnx.split(model)"
        with told_what_is_missing(type(copy).__call__, 2, form):
            output = copy(batch)
        after = nnx.to_pure_dict(nnx.state(copy))
        _check_unchanged(params, after, "module.eval()")
        return output

    return Parametric("NNX module", call, pure, _dotted(pure), rebuild)


def _linen_parametric(module: Any, variables: Any) -> Parametric:
    errors = sys.modules["flax.errors"]

    def call(params: Any, batch: Any) -> Any:
        try:
            with told_what_is_missing(
                type(module).__call__, 2, "lambda variables, x: net.apply(variables, x, {})"
            ):
                return module.apply(params, batch)
        except (errors.ModifyScopeVariableError, errors.InvalidRngError) as error:
            raise _in_training(one_line(error), "deterministic=True, use_running_average=True") from error

    paths = jax.tree_util.tree_flatten_with_path(variables)[0]
    names = tuple(jax.tree_util.keystr(path).removeprefix("['params']") for path, _ in paths)
    return Parametric(
        "Linen module with its variables", call, variables, names, lambda variables: (module, variables)
    )


def _equinox_parametric(module: Any) -> Parametric:
    equinox = sys.modules["equinox"]
    params, static = equinox.partition(module, equinox.is_inexact_array)
    form = (
        "lambda params, x: jax.vmap(lambda x: eqx.combine(params, static)(x, {}))(x), "
        "where params, static = eqx.partition(model, eqx.is_inexact_array)"
    )

    def call(params: Any, batch: Any) -> Any:
        try:
            with told_what_is_missing(type(module).__call__, 2, form):
                return jax.vmap(equinox.combine(params, static))(batch)
        except RuntimeError as error:
            raise _in_training(one_line(error), "eqx.nn.inference_mode(model)") from error

    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    names = tuple(jax.tree_util.keystr(path).lstrip(".") for path, _ in paths)
    return Parametric("Equinox module", call, params, names, lambda params: equinox.combine(params, static))


def _haiku_parametric(transformed: Any, variables: Any) -> Parametric:
    """Parameters are module/name; a state stays as it is."""
    try:
        apply, params, state = applied(transformed, variables)
    except TypeError as error:
        raise ArgumentError(
            str(error), "Write ((transformed, (params, state)), batch).", argument="fn"
        ) from error

    def call(params: Any, batch: Any) -> Any:
        try:
            output, after = apply(params, batch)
        except ValueError as error:
            if type(error).__name__ != "MissingRNGError":
                raise
            raise _in_training(
                one_line(error), "is_training=False in the function that is transformed"
            ) from error
        _check_unchanged(state, after, "is_training=False in the function that is transformed")
        return output

    def rebuild(params: Any) -> Any:
        return transformed, (params if state is None else (params, state))

    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = tuple("/".join(str(getattr(key, "key", key)) for key in path) for path in paths)
    return Parametric("Haiku function with its parameters", call, params, names, rebuild)


def _check_unchanged(before: Any, after: Any, remedy: str) -> None:
    changed = [
        path
        for (path, one), other in zip(
            jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=False
        )
        if one is not other
    ]
    same_tree = jax.tree.structure(before) == jax.tree.structure(after)  # type: ignore[operator]
    if changed or not same_tree:
        told = ", ".join(map(jax.tree_util.keystr, changed[:_FEW])) or "its state"
        raise _in_training(f"running it changes {told}", remedy)


def _in_training(what: str, remedy: str) -> ArgumentError:
    return ArgumentError(
        f"must not be in training mode: {what}.", f"Put it into inference mode: {remedy}.", argument="fn"
    )


def _dotted(tree: Any) -> tuple[str, ...]:
    """Paths as their user would write them: layers[3].kernel."""
    names = []
    for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [getattr(entry, "key", getattr(entry, "idx", None)) for entry in path]
        names.append("".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip("."))
    return tuple(names)


def _is_a(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class of a framework that is only loaded if the user's module did."""
    found = sys.modules.get(module)
    return found is not None and isinstance(value, getattr(found, name))


def _article(word: str) -> str:
    return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def _needs_nothing(value: Any) -> bool:
    """Whether a function or class can be called without arguments; a function of *args is a model."""
    makes = (
        inspect.isclass(value)
        or inspect.isfunction(value)
        or isinstance(value, functools.partial)
        or hasattr(value, "__wrapped__")
    )
    if not makes:
        return False
    # Flax's and Equinox's metaclasses take (*args, **kwargs), whatever a module's own __init__ needs
    hides_own = inspect.isclass(value) and type(value).__call__ is not type.__call__
    try:
        signature = inspect.signature(functools.partial(value.__init__, None) if hides_own else value)
        parameters = signature.parameters.values()
    except (TypeError, ValueError):
        return False
    return all(
        each.default is not each.empty or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters
    )


def made(value: Any, *, name: str = "`value`") -> Any:
    """Call a function or class without arguments for what it returns; any other value is given back.

    Args:
        value: anything.
        name: what errors call it.

    Returns:
        What it returned, or `value`.

    Raises:
        ValueError: it fails.
    """
    return _called(value, name) if _needs_nothing(value) else value


def _called(value: Any, name: str) -> Any:
    try:
        return value()
    except (Exception, SystemExit) as error:
        raise ArgumentError(
            f"{name} takes no arguments, so it was called to make the model, and raised {one_line(error)}.",
            "A model itself must take one array.",
        ) from error


# --- Of one example -------------------------------------------------------------------------------------------


def on_one_example(model: Any, shape: tuple[int, ...], *, batch: bool | None = None) -> OneExample:
    """Make a function of one example of a model, which may insist on a batch axis.

    Args:
        model: of `as_function` or `import_model`, or what `as_function` takes.
        shape: of one example.
        batch: whether to call it on [1, *shape]; None tries what its framework does first, then the other. A module
            that takes both and gives different outputs is refused: only its author can tell which is meant.

    Returns:
        A `OneExample`; `call` is to be differentiated, certified or measured.

    Raises:
        ValueError: the model does not take such an input, cannot be traced, or does not return real floating-point
            arrays.

    Example:
        >>> fn = on_one_example(as_function(lambda x: x @ jnp.ones((3, 2))), (3,))
        >>> fn.called_on, fn.output_shapes
        ((3,), ((2,),))
    """
    model = model if isinstance(model, Model) else as_function(model)
    layouts = [model.takes_batch, not model.takes_batch] if batch is None else [batch]
    taken: list[OneExample] = []
    refusals: list[tuple[tuple[int, ...], Exception]] = []
    for with_batch in layouts:
        try:
            taken.append(_in_layout(model, shape, with_batch))
        except ArgumentError:
            raise
        except Exception as error:
            refusals.append(((1, *shape) if with_batch else shape, error))
        if taken and not model.takes_batch:
            break  # a function is one of an array of this shape by its word
    if not taken:
        raise _no_layout(model, shape, refusals)
    if len(taken) == 2 and not _agree(*taken):
        raise ArgumentError(
            f"{model.name} takes {shape_text(shape)} and {shape_text((1, *shape))} and gives different outputs.",
            "Say which it is: batch=True if its first axis is a batch, batch=False if it takes one example.",
            give="batch",
        )
    return taken[0]


def _no_layout(
    model: Model, shape: tuple[int, ...], refusals: Sequence[tuple[tuple[int, ...], Exception]]
) -> ArgumentError:
    if reason := untraceable(refusals[0][1]):
        return ArgumentError(f"{model.name} {reason}")
    told = "; ".join(f"on {shape_text(given)} {one_line(error)}" for given, error in refusals)
    return ArgumentError(
        f"must be that of one example of {model.name}, got {shape_text(shape)}: the model raises {told}.",
        "Give the shape without the batch axis, as 784 or 28,28,1; if that is right, wrap the model: "
        "def model(x): ...",
        argument="shape",
    )


def _in_layout(model: Model, shape: tuple[int, ...], with_batch: bool) -> OneExample:
    def on_example(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return (lambda x: call(x[None])) if with_batch else call

    call = on_example(model.call)
    dtype, outputs = widest_input(call, shape)
    forward = None if model.forward is None else on_example(model.forward)
    return OneExample(
        model,
        shape,
        (1, *shape) if with_batch else shape,
        _output_shapes(model, outputs),
        dtype,
        call,
        None if forward is None else (lambda x, v: jax.jvp(forward, (x,), (v,))[1]),
    )


def _output_shapes(model: Model, outputs: Any) -> tuple[tuple[int, ...], ...]:
    leaves = jax.tree.leaves(outputs)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ArgumentError(
                f"{model.name} must return real floating-point arrays, got {leaf.dtype}.",
                "Return scores instead of classes, real and imaginary parts instead of complex numbers.",
            )
    if sum(leaf.size for leaf in leaves) == 0:
        raise ArgumentError(f"{model.name} must return an array, got {outputs!r}.", "Return its outputs.")
    return tuple(tuple(leaf.shape) for leaf in leaves)


def _agree(one: OneExample, other: OneExample) -> bool:
    if sum(map(math.prod, one.output_shapes)) != sum(map(math.prod, other.output_shapes)):
        return False
    first, second = _outputs(one), _outputs(other)
    scale = np.max(np.abs(first))
    return bool(np.max(np.abs(first - second)) <= _SAME_OUTPUT * scale or not np.isfinite(scale))


def _outputs(fn: OneExample) -> Any:
    with jax.enable_x64(True):
        x = jnp.asarray(np.cos(np.arange(math.prod(fn.shape), dtype=np.float64)).reshape(fn.shape), fn.dtype)
        return np.asarray(jax.jit(lambda x: _flat(fn.call(x)))(x), np.float64)


def _flat(outputs: Any) -> Array:
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(outputs)])


def shape_text(shape: Sequence[Any]) -> str:
    """A shape as errors and tables write it.

    >>> shape_text((28, 28, 1))
    '[28, 28, 1]'
    """
    return f"[{', '.join(map(str, shape))}]"
