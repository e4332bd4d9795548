"""What numpy computes of jax's primitives: jax would first compile an operation for each shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def computed(eqn: Any, operands: list[Any]) -> Sequence[Any]:
    """Evaluate an equation of constants."""
    on_host = _ON_HOST.get(eqn.primitive.name)
    kinds = [np.dtype(getattr(x, "dtype", np.float64)).kind if is_plain(x) else "" for x in operands]
    if on_host is not None and all(kind in "fiub" and kind for kind in kinds):
        with np.errstate(all="ignore"):
            result = np.asarray(on_host(eqn.params, *map(np.asarray, operands)))
        return [result.astype(eqn.outvars[0].aval.dtype, copy=False)]
    made = eqn.primitive.get_bind_params(eqn.params)
    functions, params = made if isinstance(made, tuple) else ((), made)  # jax < 0.10 gave pairs
    results = eqn.primitive.bind(*functions, *operands, **params)
    return results if eqn.primitive.multiple_results else [results]


def is_plain(c: Any) -> bool:
    return not jnp.issubdtype(getattr(c, "dtype", np.float64), jax.dtypes.extended)


def in_float64(params: dict[str, Any]) -> dict[str, Any]:
    changed = dict(params)
    for name in ("preferred_element_type", "new_dtype", "out_dtype"):
        if changed.get(name) is not None and jnp.issubdtype(changed[name], jnp.floating):
            changed[name] = np.dtype(np.float64)
    return changed


def _sliced(params: dict[str, Any], x: Any, *starts: Any) -> Any:
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


#: Constants that numpy computes at once, where jax would first compile an operation for each shape.
_ON_HOST: dict[str, Callable[..., Any]] = {
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
    "dynamic_slice": _sliced,
}


def _batched(of: Callable[..., Any]) -> Callable[..., Any]:
    """With the dependent operands on a leading axis k; `of` gets all operands on it."""

    def host(params: dict[str, Any], dependent: list[int], *operands: Any) -> Any:
        k = len(operands[dependent[0]])
        given = [
            x if i in dependent else np.broadcast_to(np.asarray(x), (k, *np.shape(x)))
            for i, x in enumerate(operands)
        ]
        return of(params, *given)

    return host


def _batched_slice(params: dict[str, Any], x: Any) -> Any:
    strides = params["strides"] or (1,) * (x.ndim - 1)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[(slice(None), *(slice(*each) for each in bounds))]


def _batched_broadcast(params: dict[str, Any], x: Any) -> Any:
    spread = [1] * len(params["shape"])
    for axis, size in zip(params["broadcast_dimensions"], x.shape[1:], strict=True):
        spread[axis] = size
    return np.broadcast_to(x.reshape(-1, *spread), (len(x), *params["shape"]))


def _batched_pad(params: dict[str, Any], x: Any, value: Any) -> Any:
    widths = [(0, 0), *((low, high) for low, high, _ in params["padding_config"])]
    if len(widths) == 1:  # of a number nothing is padded
        return x
    inside = np.pad(np.ones(x.shape[1:], bool), widths[1:])
    return np.where(inside, np.pad(x, widths), np.asarray(value).reshape(-1, *[1] * (x.ndim - 1)))


def _batched_dot(params: dict[str, Any], dependent: list[int], x: Any, y: Any) -> Any:
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


#: primitive -> (params, positions of the dependent operands, *operands) with the dependent ones on a leading axis
BATCHED: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _batched(_batched_broadcast),
    "concatenate": _batched(lambda params, *x: np.concatenate(x, params["dimension"] + 1)),
    "dot_general": _batched_dot,
    "pad": _batched(_batched_pad),
    "reduce_sum": _batched(lambda params, x: x.sum(tuple(axis + 1 for axis in params["axes"]))),
    "rev": _batched(lambda params, x: np.flip(x, tuple(axis + 1 for axis in params["dimensions"]))),
    "slice": _batched(_batched_slice),
    "transpose": _batched(lambda params, x: x.transpose(0, *(axis + 1 for axis in params["permutation"]))),
}
