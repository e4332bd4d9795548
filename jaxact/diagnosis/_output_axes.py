"""What the axes of an equation's output stand for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from jaxact.diagnosis._axes import BATCH, FEATURE, POSITION, Axes, axis, has, of_input, product_axes, reshaped
from jaxact.diagnosis._graph import Value


def output_axes(eqn: Any, operands: Sequence[Any]) -> Axes:
    """What the axes of an equation's first output stand for, as far as that of its operands tells."""
    shape = tuple(eqn.outvars[0].aval.shape)
    given = [(each.axes, each.shape) for each in operands if each.axes is not None]
    rule = _AXES.get(eqn.primitive.name)
    if eqn.primitive.name == "gather" and operands[0].axes is None and len(operands) > 1:
        return _looked_up(eqn, operands[1], shape)
    if rule is not None:
        is_product = eqn.primitive.name in ("dot_general", "conv_general_dilated")
        return rule(
            eqn, operands if is_product else [each for each in operands if each.axes is not None], shape
        )
    same = [axes for axes, own in given if own == shape]
    varied = [axes for axes in same if any(has(one, BATCH) for one in axes)]
    if same:
        return (varied or same)[0]
    ranked = [axes for axes, own in given if len(own) == len(shape)]
    if ranked:
        return tuple(
            one
            if one and math.prod(n for _, n in one) == length
            else axis(one[0][0] if one else POSITION, length)
            for one, length in zip(ranked[0], shape, strict=True)
        )
    return of_input(shape)


def _broadcast_axes(eqn: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> Axes:
    (x, *_) = operands
    constant = isinstance(x, Value) and x.node.is_constant
    result = [axis(FEATURE if constant else POSITION, length) for length in shape]
    for old, new in enumerate(eqn.params["broadcast_dimensions"]):
        if x.shape[old] == shape[new]:
            result[new] = x.axes[old]
    return tuple(result)


def _looked_up(eqn: Any, indices: Any, shape: tuple[int, ...]) -> Axes:
    """Rows of a table: where they are looked up, and features."""
    offset = eqn.params["dimension_numbers"].offset_dims
    places = iter(indices.axes)  # the last one, of the index itself, is left over
    return tuple(axis(FEATURE, n) if k in offset else next(places) for k, n in enumerate(shape))


def _remaining(eqn: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> Axes:
    gone = eqn.params.get("axes", eqn.params.get("dimensions", ()))
    return tuple(one for k, one in enumerate(operands[0].axes) if k not in gone)


def _conv_axes(eqn: Any, operands: Sequence[Any], shape: tuple[int, ...]) -> Axes:
    x, numbers = operands[0], eqn.params["dimension_numbers"]
    result = [axis(POSITION, length) for length in shape]
    result[numbers.out_spec[0]] = x.axes[numbers.lhs_spec[0]]
    result[numbers.out_spec[1]] = axis(FEATURE, shape[numbers.out_spec[1]])
    return tuple(result)


def _or_features(x: Any) -> Axes:
    return tuple(axis(FEATURE, n) for n in x.shape) if x.axes is None else x.axes


_AXES: dict[str, Callable[..., Axes]] = {
    "broadcast_in_dim": _broadcast_axes,
    "reshape": lambda eqn, xs, shape: reshaped(xs[0].axes, shape),
    "transpose": lambda eqn, xs, shape: tuple(xs[0].axes[k] for k in eqn.params["permutation"]),
    "squeeze": _remaining,
    **dict.fromkeys(
        ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "argmax"), _remaining
    ),
    "dot_general": lambda eqn, xs, shape: product_axes(
        eqn.params["dimension_numbers"], _or_features(xs[0]), _or_features(xs[1])
    ),
    "conv_general_dilated": _conv_axes,
}
