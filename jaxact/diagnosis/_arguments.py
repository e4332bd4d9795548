"""The arguments of a diagnosis: a model of any framework traced, and what is refused about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import adapters
from jaxact.diagnosis._axes import Axes, of_input
from jaxact.diagnosis._graph import Known
from jaxact.diagnosis._measure import call_loss
from jaxact.diagnosis._reading import Reading, read
from jaxact.errors import ArgumentError, ArgumentTypeError, one_line
from jaxact.numerics import inner_jaxprs


class Traced(NamedTuple):
    """A model as a jaxpr of (params, batch), and what was read of it."""

    closed: Any
    out_tree: Any
    params: Any
    batch: Any
    reading: Reading
    loss: Callable[..., Any] | None
    call: Callable[[Any, Any], Any]
    names: tuple[str, ...]
    kind: str
    rebuild: Callable[[Any], Any] = lambda params: params


def traced(fn: Any, params: Any, batch: Any, loss: Callable[..., Any] | None) -> Traced:
    """Trace and read a model.

    Raises:
        ValueError: as in `diagnose`.
        TypeError: as in `diagnose`.
    """
    if batch is None:
        batch, model = params, adapters.as_parametric(fn)
    else:
        model = adapters.as_parametric((_function(fn), params))
    kind, call, params, names, rebuild = model
    params, batch = _as_arrays(params, "params"), _as_arrays(batch, "batch")
    _check_finite(params, names)
    _check_batch(batch)
    closed, shapes = _jaxpr(call, params, batch)
    _check_randomness(closed)
    _check_loss(loss, shapes, batch)
    reading = _read(closed, params, batch, names)
    if not reading.sites:
        raise ArgumentError(
            "must compute a product of a parameter and its input, found none.",
            "Pass weights through `params`: what a function closes over is a constant.",
            argument="fn",
        )
    tree = jax.tree.structure(shapes)
    return Traced(closed, tree, params, batch, reading, loss, call, names, kind, rebuild)


def read_again(model: Traced, leaves: Sequence[Any], entries: Sequence[Any]) -> Reading:
    """Read a model with other parameters, following which entries of them each array is made of."""
    params = jax.tree.unflatten(jax.tree.structure(model.params), list(leaves))
    return _read(model.closed, params, model.batch, model.names, entries)


def of_one(model: Traced) -> tuple[Any, Reading, Any] | None:
    """A model's jaxpr for the first input alone, its reading and that input; None where it insists on its batch."""
    example = jax.tree.map(lambda leaf: leaf[:1], model.batch)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(example)):
        return None
    try:
        closed = jax.make_jaxpr(lambda params, batch: model.call(params, batch))(model.params, example)
        reading = _read(closed, model.params, example, model.names)
    except (TypeError, ValueError):  # a batch's length that is written into it
        return None
    same = [site.name for site in reading.sites] == [site.name for site in model.reading.sites]
    return (closed, reading, example) if same else None


def _read(
    closed: Any, params: Any, batch: Any, names: Sequence[str], entries: Sequence[Any] | None = None
) -> Reading:
    leaves = jax.tree.leaves(params)
    known = [
        Known(_on_host(leaf), None, frozenset({name}), name, entries=own)
        for leaf, name, own in zip(leaves, names, entries or [None] * len(leaves), strict=True)
    ]
    inputs = [
        Known(_on_host(leaf), _axes_of(leaf), name=name)
        for leaf, name in zip(jax.tree.leaves(batch), _names(batch, "inputs"), strict=True)
    ]
    return read(closed, [*known, *inputs], jax.tree.leaves(batch)[0].shape[0])


def _axes_of(leaf: Any) -> Axes:
    """Of whole numbers [input, position], which are tokens, and of all else [input, *positions, feature]."""
    is_tokens = leaf.ndim == 2 and jnp.issubdtype(leaf.dtype, jnp.integer)
    return of_input((*leaf.shape, 1))[:2] if is_tokens else of_input(leaf.shape)


def _on_host(leaf: Any) -> Any:
    """In NumPy, so that no operation is compiled for each shape; random keys stay."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else np.asarray(leaf)


def _names(tree: Any, alone: str) -> list[str]:
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    return [jax.tree_util.keystr(path).lstrip(".") or alone for path in paths]


def _function(fn: Any) -> Callable[[Any, Any], Any]:
    if not callable(fn):
        raise ArgumentTypeError(
            f"must be a function of (params, inputs), got {type(fn).__name__}.",
            "A module goes without `params`: diagnose(module, batch).",
            argument="fn",
        )
    return fn


def _as_arrays(tree: Any, argument: str) -> Any:
    def one(path: Any, leaf: Any) -> Any:
        try:
            return jnp.asarray(leaf)
        except (TypeError, ValueError) as error:
            where = f" at {jax.tree_util.keystr(path)}" if path else ""
            raise ArgumentError(
                f"must be a pytree of arrays of numbers, got {type(leaf).__name__}{where}: {one_line(error)}.",
                "Leave what is no number out, or close over it.",
                argument=argument,
            ) from error

    return jax.tree_util.tree_map_with_path(one, tree)


def _check_finite(params: Any, names: Sequence[str]) -> None:
    for leaf, name in zip(jax.tree.leaves(params), names, strict=True):
        _check_leaf(leaf, "params", name, "Diagnose the parameters of an earlier step.")


def _check_leaf(leaf: Any, argument: str, name: str, remedy: str) -> None:
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or np.isfinite(np.asarray(leaf)).all():
        return  # on the host: on the device every shape would be compiled for
    count = int(np.sum(~np.isfinite(np.asarray(leaf))))
    subject = "" if name == argument else name  # of a bare array its argument is its name
    rule = f"{subject} must be finite, got {count} NaN or inf of {leaf.size} entries.".lstrip()
    raise ArgumentError(rule, remedy, argument=argument)


def _check_batch(batch: Any) -> None:
    leaves = jax.tree.leaves(batch)
    shapes = [tuple(leaf.shape) for leaf in leaves]
    lengths = {shape[:1] for shape in shapes}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        raise ArgumentError(
            f"must be arrays with the inputs on a first axis of one length, got shapes {shapes}.",
            "Stack several inputs: jnp.stack([x, y]).",
            argument="batch",
        )
    for leaf, name in zip(leaves, _names(batch, ""), strict=True):
        _check_leaf(leaf, "batch", name, "Clean the data first: jnp.isnan(batch).any() must be False.")


def _jaxpr(call: Callable[[Any, Any], Any], params: Any, batch: Any) -> tuple[Any, Any]:
    def once(params: Any, batch: Any) -> Any:  # JAX keeps the jaxpr for as long as the function lives
        return call(params, batch)

    try:
        return jax.make_jaxpr(once, return_shape=True)(params, batch)
    except (ArgumentError, ArgumentTypeError):
        raise
    except Exception as error:
        shapes = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(batch)]
        raise ArgumentError(
            f"must take (params, inputs) with inputs {', '.join(shapes)}; it raised {one_line(error)}.",
            "Check that `fn(params, batch)` runs: the batch's shape and dtype are what the model was built for.",
            argument="fn",
            give="inputs",
        ) from error


def _check_randomness(closed: Any) -> None:
    def random(jaxpr: Any) -> bool:
        return any(
            eqn.primitive.name in ("random_bits", "threefry2x32", "random_gamma", "rng_bit_generator")
            or any(random(getattr(inner, "jaxpr", inner)) for inner in inner_jaxprs(eqn))
            for eqn in jaxpr.eqns
        )

    if random(closed.jaxpr):
        raise ArgumentError(
            "must be deterministic, but it draws random numbers, as dropout does in training mode.",
            "Put the model into eval mode: module.eval(), deterministic=True, or eqx.nn.inference_mode(model).",
            argument="fn",
        )


def _check_loss(loss: Callable[..., Any] | None, shapes: Any, batch: Any) -> None:
    if loss is None:
        returned = [str(each.dtype) for each in jax.tree.leaves(shapes)]
        if not any(jnp.issubdtype(dtype, jnp.floating) for dtype in returned):
            raise ArgumentError(
                f"must return real floating-point arrays, got {', '.join(returned) or 'none'}.",
                "Return scores, not classes; of complex numbers the real part or the modulus.",
                argument="fn",
            )
        return
    if not callable(loss):
        raise ArgumentTypeError(
            f"must be a function of outputs, or of (outputs, batch), got {type(loss).__name__}.",
            "Give for instance lambda y: jnp.mean(y**2).",
            argument="loss",
        )
    try:
        value = jax.eval_shape(lambda y, x: call_loss(loss, y, x), shapes, batch)
    except Exception as error:
        raise ArgumentError(
            f"must take the model's outputs, or (outputs, batch); it raised {one_line(error)}.",
            "Check loss(fn(params, batch)).",
            argument="loss",
        ) from error
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ArgumentTypeError(
            f"must return a real scalar, got {value}.", "Take the mean: jnp.mean(...).", argument="loss"
        )
