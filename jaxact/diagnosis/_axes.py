"""What the axes of an array stand for: the inputs of a batch, positions, or features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

BATCH, POSITION, FEATURE = "batch", "position", "feature"
#: an axis as what was merged into it, outermost first: (kind, length)
Axis: TypeAlias = tuple[tuple[str, int], ...]
Axes: TypeAlias = tuple[Axis, ...]


def axis(kind: str, length: int) -> Axis:
    """An axis of one kind."""
    return ((kind, length),)


def of_input(shape: Sequence[int]) -> Axes:
    """[inputs, *positions, features]: the axes of a batch.

    >>> [each[0][0] for each in of_input((8, 28, 28, 3))]
    ['batch', 'position', 'position', 'feature']
    """
    kinds = [BATCH, *[POSITION] * (len(shape) - 2), FEATURE][: len(shape)]
    return tuple(map(axis, kinds, shape))


def has(one: Axis, kind: str) -> bool:
    """Whether an axis, or a part of it, is of a kind."""
    return any(each == kind for each, _ in one)


def batch_axis(axes: Axes, num_inputs: int) -> int | None:
    """Which axis starts with the inputs of the batch, or None."""
    return next(
        (k for k, one in enumerate(axes) if one and one[0][0] == BATCH and one[0][1] == num_inputs), None
    )


def reshaped(axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes after a reshape: merged axes remember their parts, so that they can be split again.

    >>> merged = reshaped((axis(BATCH, 8), axis(POSITION, 5), axis(FEATURE, 6)), (40, 2, 3))
    >>> [[kind for kind, _ in each] for each in merged]
    [['batch', 'position'], ['feature'], ['feature']]
    """
    parts = [part for one in axes for part in one if part[1] != 1]
    result: list[Axis] = []
    for length in shape:
        taken, parts = _taken(parts, length)
        result.append(taken)
    return tuple(result)


def _taken(parts: list[tuple[str, int]], length: int) -> tuple[Axis, list[tuple[str, int]]]:
    taken: list[tuple[str, int]] = []
    while parts and length > 1:
        kind, size = parts[0]
        common = math.gcd(size, length)
        if common == 1:  # cut across the parts: what it is then is not told
            return axis(FEATURE, length), parts[1:]
        taken.append((kind, common))
        length //= common
        parts = [(kind, size // common), *parts[1:]] if size > common else parts[1:]
    return (tuple(taken) or axis(POSITION, length)), parts


def product_axes(dimension_numbers: Any, x: Axes, y: Axes) -> Axes:
    """The axes of a `dot_general`."""
    (x_sum, y_sum), (x_batch, y_batch) = dimension_numbers
    shared = [x[i] if has(x[i], BATCH) else y[j] for i, j in zip(x_batch, y_batch, strict=True)]
    x_free = [each for i, each in enumerate(x) if i not in (*x_sum, *x_batch)]
    y_free = [each for j, each in enumerate(y) if j not in (*y_sum, *y_batch)]
    return (*shared, *x_free, *y_free)
