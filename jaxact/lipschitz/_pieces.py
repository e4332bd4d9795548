"""Elementwise steps that are piecewise linear, as tables of their kinks: a hundred times faster than their formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxact.lipschitz._rounding import UNIT
from jaxact.trace import Elementwise

ONE_NUMBER = 1e-12  # a slope's range that is no more than the rounding of one
_MOST_KINKS = 8

Ends = tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]


@dataclass(frozen=True)
class Pieces:
    """f on [ends[0], ends[-1]], linear between neighbours of `ends`.

    Attributes:
        ends: the least argument, the kinks, the largest.
        slopes: (lower, upper) of each piece, one number up to rounding.
        values: (lower, upper) of f at each of `ends`.
    """

    ends: Float[np.ndarray, " end"]
    slopes: Float[np.ndarray, "piece 2"]
    values: Float[np.ndarray, "end 2"]

    def slope_range(self, lower: Float[np.ndarray, "*shape"], upper: Float[np.ndarray, "*shape"]) -> Ends:
        """The slopes of the pieces that [lower, upper] shares more than an end with."""
        alpha, beta = np.full(lower.shape, np.inf), np.full(lower.shape, -np.inf)
        point = lower >= upper
        last = len(self.slopes) - 1
        for i, (low, high) in enumerate(self.slopes):
            begins, stops = self.ends[i], self.ends[i + 1]
            meets = (lower < stops) & (upper > begins) | point & (lower <= stops) & (upper >= begins)
            if i == 0:  # rounding may put an argument beyond the ends
                meets |= lower <= begins
            if i == last:
                meets |= upper >= stops
            alpha, beta = (
                np.where(meets, np.minimum(alpha, low), alpha),
                np.where(meets, np.maximum(beta, high), beta),
            )
        return alpha, beta

    def value_range(self, lower: Float[np.ndarray, "*shape"], upper: Float[np.ndarray, "*shape"]) -> Ends:
        """The least and the largest value: at the ends of [lower, upper] or at a kink between them."""
        at_lower, at_upper = self._at(lower), self._at(upper)
        least, most = np.minimum(at_lower[0], at_upper[0]), np.maximum(at_lower[1], at_upper[1])
        for kink, (low, high) in zip(self.ends[1:-1], self.values[1:-1], strict=True):
            inside = (lower <= kink) & (kink <= upper)
            least, most = (
                np.where(inside, np.minimum(least, low), least),
                np.where(inside, np.maximum(most, high), most),
            )
        return least, most

    def _at(self, x: np.ndarray) -> Ends:
        piece = np.clip(np.searchsorted(self.ends, x, side="right") - 1, 0, len(self.slopes) - 1)
        # From the nearer to 0 of the piece's ends: relu of what is small is small.
        anchor = piece + (np.abs(self.ends[piece + 1]) < np.abs(self.ends[piece]))
        way = x - self.ends[anchor]
        ways = way[..., None] * self.slopes[piece]
        slack = 4 * UNIT * (np.abs(ways).max(-1) + np.abs(self.values[anchor]).max(-1))
        rise = np.sort(ways, -1)
        return self.values[anchor, 0] + rise[..., 0] - slack, self.values[anchor, 1] + rise[..., 1] + slack


def pieces_of(step: Elementwise, lower: float, upper: float) -> Pieces | None:
    """An elementwise step as pieces on [lower, upper], proved by its own slopes; None where it is not, or not found.

    Only of steps that are one function of one variable in all entries.
    """
    if not step.is_function or step.reads or step.range is None or not np.isfinite([lower, upper]).all():
        return None
    slopes, value = _alone(step.slopes, step), _alone(step.range, step)
    if lower >= upper or slopes(lower, upper) is None:
        return None
    kinks = _kinks(slopes, value, lower, upper, depth=12)
    if kinks is None or len(kinks) > _MOST_KINKS:
        return None
    ends = np.array([lower, *kinks, upper])
    found = [slopes(*pair) for pair in pairwise(ends)]
    return Pieces(ends, np.array(found), np.array([value(end, end) for end in ends]))


def _alone(of: Callable[[Any], Any], step: Elementwise) -> Callable[[float, float], Any]:
    """Of one interval; None where the step's entries are not alike."""

    def asked(lower: float, upper: float) -> tuple[float, float] | None:
        # One entry more than there are: constants of each entry would not fit.
        given = tuple(np.full(step.size + 1, end) for end in (lower, upper))
        try:
            low, high = of({step.source: given})
            low, high = (
                np.broadcast_to(np.asarray(end, np.float64), (step.size + 1,)) for end in (low, high)
            )
        except (IndexError, TypeError, ValueError):
            return None
        alike = (low == low[0]).all() and (high == high[0]).all()
        return (float(low[0]), float(high[0])) if alike else None

    return asked


def _is_one(found: tuple[float, float] | None) -> bool:
    return found is not None and found[1] - found[0] <= ONE_NUMBER


def _kinks(slopes: Any, value: Any, lower: float, upper: float, depth: int) -> list[float] | None:
    if _is_one(slopes(lower, upper)):
        return []
    if depth == 0 or not lower < upper:
        return None
    for kink in _guesses(slopes, value, lower, upper):
        if lower < kink < upper and _is_one(slopes(lower, kink)) and _is_one(slopes(kink, upper)):
            return [kink]
    middle = 0.0 if lower < 0 < upper else lower / 2 + upper / 2
    left = _kinks(slopes, value, lower, middle, depth - 1)
    right = None if left is None else _kinks(slopes, value, middle, upper, depth - 1)
    if left is None or right is None or len(left) + len(right) > _MOST_KINKS:
        return None
    return [*left, middle, *right]


def _guesses(slopes: Any, value: Any, lower: float, upper: float) -> list[float]:
    """Where the lines at both ends meet."""
    step = (upper - lower) * 2.0**-20
    first, last = slopes(lower, lower + step), slopes(upper - step, upper)
    if not (_is_one(first) and _is_one(last)) or abs(first[0] - last[0]) <= ONE_NUMBER:
        return []
    rise = value(upper, upper)[0] - value(lower, lower)[0]
    meeting = lower + (last[0] * (upper - lower) - rise) / (last[0] - first[0])
    rounded = [round(meeting, 9), float(np.float32(meeting)), meeting]
    return [*rounded, *(float(np.nextafter(meeting, end)) for end in (-np.inf, np.inf))]
