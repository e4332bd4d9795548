"""Steps that are known by the most that they stretch anything: with that number, their value and their range."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.special

from jaxact.lipschitz._lazy import softmax_range

_UP = 1 + 1e-15


class Stretched(NamedTuple):
    """What a contraction is: its name, its constant, the value [out] of [in], the range of (lower, upper).

    Of a norm sqrt(a |x|^2 + b) also `squares`: x, a, b and the positions [norm, entry].
    """

    name: str
    constant: float
    value: Callable[[Any], Any]
    range: Callable[[Any, Any], tuple[Any, Any]]
    squares: Any = None


def ordered(name: str, constant: float, shape: tuple[int, ...], fn: Callable[[Any], Any]) -> Stretched:
    """A function of an array that rises in every entry: its range is that of the ends."""

    def flat(v: Any) -> Any:
        return fn(np.asarray(v).reshape(shape)).reshape(-1)

    return Stretched(name, constant, flat, lambda lower, upper: (flat(lower), flat(upper)))


def norm(x: Any, a: float, b: float, positions: np.ndarray) -> Stretched:
    """sqrt(a |x|^2 + b), whose gradient a x / sqrt(a |x|^2 + b) is no longer than sqrt(a)."""

    def root(v: Any) -> Any:
        return np.sqrt(a * np.square(v[positions]).sum(1) + b)

    def ends(lower: Any, upper: Any) -> tuple[Any, Any]:
        near = np.where((lower > 0) | (upper < 0), np.minimum(np.abs(lower), np.abs(upper)), 0.0)
        slack = 1e-15 * (positions.shape[1] + 8)
        return root(near) * (1 - slack), root(np.maximum(np.abs(lower), np.abs(upper))) * (1 + slack)

    return Stretched("norm", math.sqrt(a) * _UP, root, ends, (x, a, b, positions))


def normalisation(size: int, a: float, b: float, positions: np.ndarray) -> Stretched:
    """Of x / r, r = sqrt(a |x|^2 + b), b > 0, the Jacobian (I - a x x^T / r^2) / r is no longer than 1 / sqrt(b)."""

    def normal(v: Any) -> Any:
        result, rows = np.zeros(size), v[positions]
        result[positions] = rows / np.sqrt(a * np.square(rows).sum(1, keepdims=True) + b)
        return result

    most = np.full(size, 1 / math.sqrt(a) * (1 + 1e-12))
    return Stretched("normalisation", _UP / math.sqrt(b), normal, lambda *_: (-most, most))


def softmax(positions: np.ndarray) -> Stretched:
    """Its Jacobian diag(p) - p p^T is no longer than 1/2: where two entries share everything."""

    def shares(v: Any) -> Any:
        result = np.zeros(v.size)
        result[positions] = scipy.special.softmax(v[positions], axis=1)
        return result

    return Stretched("softmax", 0.5, shares, partial(softmax_range, positions))
