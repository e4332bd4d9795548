"""Intervals of many boxes at once and products with operators, with the rounding of float64."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from jaxact.lipschitz._program import Ball, Region
from jaxact.lipschitz._rounding import UNIT
from jaxact.trace import Diagonal, Identity

Rows: TypeAlias = Float[np.ndarray, "_size _box"]
Pair: TypeAlias = tuple[Rows, Rows]


def ends(region: Region) -> tuple[Float[np.ndarray, " in"], Float[np.ndarray, " in"]]:
    """The box around a region."""
    if isinstance(region, Ball):
        center, reach = region.center.reshape(-1), region.radius * (1 + 4 * UNIT)
        return outward(center - reach, center + reach)
    return region.lower.reshape(-1), region.upper.reshape(-1)


def rounding(n: int) -> float:
    """gamma_{n+4}: the relative rounding of a sum of n products in any order (Higham 2002, section 3.1)."""
    return (n + 4) * UNIT / (1 - (n + 4) * UNIT)


def centered(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, r) with [m - r, m + r] containing [lower, upper] whatever the rounding; r = 0 where they are one number."""
    m = lower / 2 + upper / 2
    return m, np.maximum(upper - m, m - lower) * (1 + 4 * UNIT)


def outward(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounded outward; unbounded where infinities made them NaN."""
    lower, upper = np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf)
    return np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper)


def product_with(A: Any, X: np.ndarray) -> np.ndarray:
    """A X along the first axis; A is a matrix, the diagonal of one, or None for the identity."""
    if A is None:
        return X
    if A.ndim == 1:
        return A.reshape(-1, *[1] * (X.ndim - 1)) * X
    return (A @ X.reshape(len(X), -1)).reshape(len(A), *X.shape[1:])


def absolute(A: Any) -> Any:
    """|A| entrywise, in the form of `product_with`."""
    return None if A is None else np.abs(A)


def written(operator: Any) -> Any:
    match operator:
        case Identity():
            return None
        case Diagonal(d):
            return np.asarray(d, np.float64)
    return np.asarray(operator.dense(), np.float64)


def miss(first: Pair, second: Pair) -> bool:
    """Whether two intervals of one box share nothing, by more than their rounding."""
    lower, upper = np.maximum(first[0], second[0]), np.minimum(first[1], second[1])
    slack = 1e-12 * (np.abs(lower) + np.abs(upper))
    return lower.shape[1] == 1 and bool((lower > upper + slack).any())


def meet(first: Pair, second: Pair) -> Pair:
    lower, upper = np.maximum(first[0], second[0]), np.minimum(first[1], second[1])
    # Two sound enclosures may miss each other by rounding; each holds alone.
    return np.minimum(lower, upper), np.maximum(lower, upper)
