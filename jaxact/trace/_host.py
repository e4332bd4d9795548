"""What numpy computes of jax's primitives: jax would first compile an operation for each shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def computed(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Evaluate an equation of constants.

    Args:
        eqn: of a jaxpr.
        operands: one for each of its inputs.

    Returns:
        Its results, on the host.
    """
    on_host = ON_HOST.get(eqn.primitive.name)
    kinds = [np.dtype(getattr(x, "dtype", np.float64)).kind if is_plain(x) else "" for x in operands]
    if on_host is not None and all(kind in "fiub" and kind for kind in kinds):
        with np.errstate(all="ignore"):
            result = np.asarray(on_host(eqn.params, *map(np.asarray, operands)))
        return [result.astype(eqn.outvars[0].aval.dtype, copy=False)]
    return bound(eqn, operands, eqn.params)


def bound(eqn: Any, operands: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
    """The results of an equation's primitive.

    Args:
        eqn: of a jaxpr.
        operands: one for each of its inputs.
        params: of the primitive.
    """
    made = eqn.primitive.get_bind_params(params)
    functions, given = made if isinstance(made, tuple) else ((), made)  # jax < 0.10 gave pairs
    results = eqn.primitive.bind(*functions, *operands, **given)
    return results if eqn.primitive.multiple_results else [results]


def moved(eqn: Any, operands: Sequence[np.ndarray], fill: float) -> list[np.ndarray]:
    """What an equation that moves entries makes of arrays; `fill` where it has none to give.

    Args:
        eqn: of a jaxpr.
        operands: one for each of its inputs.
        fill: the entry where there is none.
    """
    on_host = ON_HOST.get(eqn.primitive.name)
    if on_host is not None:
        return [np.asarray(on_host(eqn.params, *operands))]
    params = eqn.params | ({"fill_value": fill} if "fill_value" in eqn.params else {})
    return [np.asarray(result) for result in bound(eqn, operands, params)]


def is_plain(c: Any) -> bool:
    """Whether it is an array of numbers, not of random keys."""
    return not jnp.issubdtype(getattr(c, "dtype", np.float64), jax.dtypes.extended)


def in_float64(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a primitive whose operands are float64 now."""
    changed = dict(params)
    for name in ("preferred_element_type", "new_dtype", "out_dtype"):
        if changed.get(name) is not None and jnp.issubdtype(changed[name], jnp.floating):
            changed[name] = np.dtype(np.float64)
    return changed


def batched_dot(params: dict[str, Any], dependent: Sequence[int], x: Any, y: Any) -> Any:
    """The primitive dot_general, its dependent operands with a leading axis k."""
    (x_sum, y_sum), (x_batch, y_batch) = params["dimension_numbers"]
    shift = [1 if 0 in dependent else 0, 1 if 1 in dependent else 0]
    letters = iter("abcdefghijlmnopqrstuvwxyz")
    x_names = [next(letters) for _ in range(np.ndim(x) - shift[0])]
    y_names = [next(letters) for _ in range(np.ndim(y) - shift[1])]
    for i, j in zip((*x_sum, *x_batch), (*y_sum, *y_batch), strict=True):
        y_names[j] = x_names[i]
    result = [x_names[i] for i in x_batch]
    result += [name for i, name in enumerate(x_names) if i not in (*x_sum, *x_batch)]
    result += [name for j, name in enumerate(y_names) if j not in (*y_sum, *y_batch)]
    left, right = "k" * shift[0] + "".join(x_names), "k" * shift[1] + "".join(y_names)
    return np.einsum(f"{left},{right}->k{''.join(result)}", np.asarray(x), np.asarray(y), optimize=True)


def _slice(params: dict[str, Any], x: Any) -> Any:
    strides = params["strides"] or (1,) * x.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[tuple(slice(*each) for each in bounds)]


def _dynamic_slice(params: dict[str, Any], x: Any, *starts: Any) -> Any:
    sizes = params["slice_sizes"]
    first = [
        int(np.clip(start, 0, whole - size))
        for start, size, whole in zip(starts, sizes, x.shape, strict=True)
    ]
    return x[tuple(slice(start, start + size) for start, size in zip(first, sizes, strict=True))]


def _broadcast(params: dict[str, Any], x: Any) -> Any:
    spread = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], x.shape, strict=True):
        spread[axis] = size
    return np.broadcast_to(x.reshape(spread), params["shape"])


def _select(params: dict[str, Any], which: Any, *cases: Any) -> Any:
    number = np.asarray(which).astype(int)
    return np.select([number == k for k in range(len(cases))], cases)


#: primitive -> (params, *operands) -> its value, exactly that of jax
ON_HOST: dict[str, Callable[..., Any]] = {
    "add": lambda _, x, y: x + y,
    "sub": lambda _, x, y: x - y,
    "mul": lambda _, x, y: x * y,
    "neg": lambda _, x: -x,
    "max": lambda _, x, y: np.maximum(x, y),
    "min": lambda _, x, y: np.minimum(x, y),
    "lt": lambda _, x, y: x < y,
    "le": lambda _, x, y: x <= y,
    "gt": lambda _, x, y: x > y,
    "ge": lambda _, x, y: x >= y,
    "eq": lambda _, x, y: x == y,
    "ne": lambda _, x, y: x != y,
    "square": lambda _, x: x * x,
    "sqrt": lambda _, x: np.sqrt(x),
    "rsqrt": lambda _, x: 1 / np.sqrt(x),
    "convert_element_type": lambda params, x: x.astype(params["new_dtype"]),
    "reshape": lambda params, x: x.reshape(params["new_sizes"]),
    "squeeze": lambda params, x: np.squeeze(x, tuple(params["dimensions"])),
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda params, *x: np.concatenate(x, params["dimension"]),
    "dynamic_slice": _dynamic_slice,
    "rev": lambda params, x: np.flip(x, tuple(params["dimensions"])),
    "select_n": _select,
    "slice": _slice,
    "transpose": lambda params, x: x.transpose(params["permutation"]),
}
