"""A user's own model for the command line: found by its name, made a function of one example."""

import difflib
import functools
import importlib
import inspect
import math
import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxact._cli._output import InputError
from jaxact.numerics import untraceable

_SAME_OUTPUT = 1e-4


class Model(NamedTuple):
    """What was found under a name.

    Attributes:
        name: MODULE:NAME, as it was written.
        kind: in words, with the mode that it was put into.
        call: array -> array or pytree of arrays.
        takes_batch: whether its framework's layers are called on [batch, ...].
        forward: the same function in a form that forward mode accepts, where `call` is not.
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
        flat: [*shape] -> [outputs].
        forward: the same as `flat` in a form that forward mode accepts, or None.
    """

    model: Model
    shape: tuple[int, ...]
    called_on: tuple[int, ...]
    output_shapes: tuple[tuple[int, ...], ...]
    dtype: Any
    call: Callable[[Any], Any]
    flat: Callable[[Any], Any]
    forward: Callable[[Any], Any] | None


def load(name: str) -> Model:
    """Import a model, looking in the current directory first.

    Args:
        name: MODULE:NAME, both may be dotted: a function of one array, an NNX or Equinox module, a pair (Linen module,
            variables), or a function without arguments that returns one of these.

    Raises:
        InputError: there is no such module or attribute, its own code fails, or it is not a model.
    """
    module_name, _, path = name.partition(":")
    is_file = module_name.endswith(".py")
    if is_file or not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        stem = Path(module_name).stem
        meant = f"{stem if stem.isidentifier() else 'mymodule'}:{path or 'model'}"
        raise InputError(
            f"the model must be MODULE:NAME, as Python imports it, got {name!r}. Write {meant}, in the module's folder."
        )
    value = _imported(module_name)
    where = module_name
    for part in path.split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise InputError(f"{where} has no {part!r}, in {name!r}. {_instead(part, value)}") from None
        where += f".{part}" if ":" in where else f":{part}"
    return _as_model(name, value)


def _imported(name: str) -> Any:
    here = str(Path.cwd())
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
        jax.clear_caches()  # its NumPy constants as float32, in what it ran already
        return module
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InputError(
                f"importing {name} raised {told(error)}. Install what is missing, or mend the import."
            ) from error
        parent, _, last = error.name.rpartition(".")
        folders = getattr(sys.modules.get(parent), "__path__", []) if parent else [here]
        beside = [found.name for found in pkgutil.iter_modules(folders)]
        place = f"in {parent}" if parent else f"in {here}, nor on Python's path"
        raise InputError(
            f"there is no module {error.name!r} {place}. {_closest(last, beside, 'modules there')}"
        ) from error
    except (Exception, SystemExit) as error:
        raise InputError(
            f"importing {name} raised {told(error)}. `python -c 'import {name}'` must work."
        ) from error


def _instead(part: str, value: Any) -> str:
    public = [each for each in vars(value) if not each.startswith("_")] if hasattr(value, "__dict__") else []
    mine = [each for each in public if not inspect.ismodule(vars(value)[each])]
    return _closest(part, mine, "names in it")


def _closest(word: str, words: Sequence[str], what: str) -> str:
    close = difflib.get_close_matches(word, words, 1)
    if close:
        return f"Did you mean {close[0]!r}?"
    return (
        f"The {what} are {', '.join(words[:8])}{', ...' if len(words) > 8 else ''}."
        if words
        else f"No {what}."
    )


def told(error: BaseException) -> str:
    """An exception in one line: its type, what it says, and the last line of the user's own code on the way."""
    words = " ".join(str(error).split())
    words = words if len(words) <= 300 else f"{words[:297]}..."
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename
        and not frame.filename.startswith("<")
        and Path(__file__).parents[1] not in Path(frame.filename).parents
        and "importlib" not in frame.filename
    ]
    if isinstance(error, SyntaxError) and error.filename:
        frames, words = [(error.filename, error.lineno)], error.msg
    place = f" ({Path(frames[-1][0]).name}:{frames[-1][1]})" if frames else ""
    return f"{type(error).__name__}: {words.rstrip('. ')}".rstrip(": ") + place


def _as_model(name: str, value: Any, *, made: bool = False) -> Model:
    if isinstance(value, tuple | list):
        if len(value) == 2 and _is_a(value[0], "flax.linen", "Module"):
            module, variables = value
            return Model(
                name, "Linen module with its variables", functools.partial(module.apply, variables), True
            )
        raise InputError(
            f"{name} must be a model, got a {type(value).__name__} of {len(value)}. "
            "A pair must be (Linen module, variables)."
        )
    if _is_a(value, "flax.linen", "Module") and value.scope is None:
        raise InputError(
            f"{name} is a Linen module without its variables, {type(value).__name__}. "
            "Give the pair (module, variables)."
        )
    if not made and _needs_nothing(value):
        try:
            value = value()
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{name} takes no arguments, so it was called to make the model, and raised {told(error)}. "
                "A model itself must take one array."
            ) from error
        return _as_model(name, value, made=True)
    if not callable(value):
        what = "returns" if made else "is"
        raise InputError(
            f"{name} must be a function of one array, a module, or a function that returns one; it {what} "
            f"{_article(type(value).__name__)}. Write `def model(x): ...` there, for instance."
        )
    if inspect.isclass(value):
        raise InputError(
            f"{name} is a class that needs arguments, {value.__name__}. "
            "Write a function without arguments that returns the module, and name that."
        )
    if _is_a(value, "flax.nnx", "Module"):
        return _nnx_model(name, value)
    if _is_a(value, "equinox", "Module"):
        value = sys.modules["equinox"].nn.inference_mode(value)
        return Model(name, "Equinox module in inference mode", value, False)
    return Model(name, "function", value, False)


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
    try:
        parameters = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return False
    optional = (inspect.Parameter.VAR_KEYWORD,)
    return all(each.default is not each.empty or each.kind in optional for each in parameters)


def _nnx_model(name: str, module: Any) -> Model:
    nnx = sys.modules["flax.nnx"]
    module.eval()
    graph, state = nnx.split(module)

    def call(x: Any, **options: Any) -> Any:
        # A fresh copy inside every trace: a module that keeps intermediates may not be changed from there.
        return nnx.merge(graph, state)(x, **options)

    kind = "NNX module in eval mode"
    ours = sys.modules.get("jaxact.nn")
    if ours is not None and isinstance(module, ours.MLP | ours.ResNet | ours.Stack):
        return Model(name, kind, call, True, functools.partial(call, mode="forward"))
    return Model(name, kind, call, True)


def on_one_example(model: Model, shape: tuple[int, ...], *, batch: bool | None = None) -> OneExample:
    """Make a function of one example of a model, which may insist on a batch axis.

    Args:
        model: as loaded.
        shape: of one example.
        batch: whether to call it on [1, *shape]; None tries what its framework does first, then the other. A module
            that takes both and gives different outputs is refused: only its author can tell which is meant.

    Raises:
        InputError: the model does not take such an input, or does not return real floating-point arrays.
    """
    layouts = [model.takes_batch, not model.takes_batch] if batch is None else [batch]
    taken: list[OneExample] = []
    refusals: list[str] = []
    errors: list[Exception] = []
    for with_batch in layouts:
        try:
            taken.append(_in_layout(model, shape, with_batch))
        except InputError:
            raise
        except Exception as error:
            refusals.append(f"on {shape_text((1, *shape) if with_batch else shape)} {told(error)}")
            errors.append(error)
        if taken and not model.takes_batch:
            break  # a function is one of an array of this shape by its word
    if not taken and (reason := _own_reason(errors)):
        raise InputError(f"{model.name} {reason}")
    if not taken:
        raise InputError(
            f"`--input-shape` must be that of one example of {model.name}, got {shape_text(shape)}: the model raises "
            f"{'; '.join(refusals)}. Give the shape without the batch axis, as 784 or 28,28,1; "
            "if that is right, wrap the model: def model(x): ..."
        )
    if len(taken) == 2 and not _agree(*taken):
        raise InputError(
            f"{model.name} takes {shape_text(shape)} and {shape_text((1, *shape))} and gives different outputs. "
            "Say which it is: --batch if its first axis is a batch, --no-batch if it takes one example."
        )
    return taken[0]


def _own_reason(errors: Sequence[Exception]) -> str | None:
    """What is wrong with a model whatever the shape, with the remedy; None if that may be the shape."""
    if isinstance(errors[0], TypeError) and "positional argument" in str(errors[0]):
        return "must be a function of one array. Write def model(x): ... that gives the other arguments."
    return untraceable(errors[0])


def _in_layout(model: Model, shape: tuple[int, ...], with_batch: bool) -> OneExample:
    def on_example(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return (lambda x: call(x[None])) if with_batch else call

    def flat(call: Callable[[Any], Any]) -> Callable[[Any], Any]:
        # jit: the many places where the search calls it share one trace.
        return jax.jit(lambda x: jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(call(x))]))

    call = on_example(model.call)
    with jax.enable_x64(True):
        try:
            dtype: Any = jnp.float64
            outputs = jax.eval_shape(call, jax.ShapeDtypeStruct(shape, dtype))
        except Exception as error:
            dtype = jnp.float32  # loops that insist on float32 carries, for one
            try:
                outputs = jax.eval_shape(call, jax.ShapeDtypeStruct(shape, dtype))
            except Exception:
                raise error from None
    leaves = jax.tree.leaves(outputs)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise InputError(
                f"{model.name} must return real floating-point arrays, got {leaf.dtype}. "
                "Return scores instead of classes, real and imaginary parts instead of complex numbers."
            )
    if sum(leaf.size for leaf in leaves) == 0:
        raise InputError(f"{model.name} must return an array, got {outputs!r}. Return its outputs.")
    return OneExample(
        model,
        shape,
        (1, *shape) if with_batch else shape,
        tuple(tuple(leaf.shape) for leaf in leaves),
        dtype,
        call,
        flat(call),
        None if model.forward is None else flat(on_example(model.forward)),
    )


def _agree(one: OneExample, other: OneExample) -> bool:
    if sum(map(math.prod, one.output_shapes)) != sum(map(math.prod, other.output_shapes)):
        return False
    with jax.enable_x64(True):
        x = jnp.asarray(np.cos(np.arange(math.prod(one.shape), dtype=np.float64)).reshape(one.shape))
        first, second = (np.asarray(each.flat(x.astype(each.dtype)), np.float64) for each in (one, other))
    scale = np.max(np.abs(first))
    return bool(np.max(np.abs(first - second)) <= _SAME_OUTPUT * scale or not np.isfinite(scale))


def shape_text(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
