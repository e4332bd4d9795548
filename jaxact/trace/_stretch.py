"""Steps that are known by the most that they stretch anything: with that number, their value and their range."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy

from jaxact.trace._expr import evaluate, variable
from jaxact.trace._program import Reach
from jaxact.trace._slopes import slope_range, value_range

_UP = 1 + 1e-15
_PIECES = 64  # that an interval of lengths is cut into


class Stretched(NamedTuple):
    """What a contraction is.

    Attributes:
        name: what to call it.
        constant: the most that it stretches anything; infinite if that has no bound over all inputs.
        value: [in] -> [out].
        range: (lower, upper) -> (lower, upper), intervals of the entries.
        within: (lower, upper, reach) -> the most that it stretches anything there; None if that is no less.
        radial: of f(|x|), what it is.
        along: of x g(|x|), the same with g for f.
        mean_of: where each output's gradient is a mean of unit vectors, as those of maxima are, the entries of each
            [out, entry]; else None.
    """

    name: str
    constant: float
    value: Callable[[Any], Any]
    range: Callable[[Any, Any], tuple[Any, Any]]
    within: Callable[[Any, Any, Reach | None], float] | None = None
    radial: Any = None
    along: Any = None
    mean_of: np.ndarray | None = None

    def bound(self, lower: Any, upper: Any, reach: Reach | None) -> float:
        """The most that it stretches anything while its entries stay within intervals, and all of them within reach."""
        if self.within is None or not np.isfinite(lower).any():
            return self.constant
        return min(self.constant, self.within(lower, upper, reach))


def ordered(
    name: str,
    constant: float,
    shape: tuple[int, ...],
    fn: Callable[[Any], Any],
    mean_of: np.ndarray | None = None,
) -> Stretched:
    """A function of an array that rises in every entry: its range is that of the ends."""

    def flat(v: Any) -> Any:
        return fn(np.asarray(v).reshape(shape)).reshape(-1)

    return Stretched(name, constant, flat, lambda lower, upper: (flat(lower), flat(upper)), mean_of=mean_of)


def lengths(positions: np.ndarray, lower: Any, upper: Any, reach: Reach | None = None) -> tuple[Any, Any]:
    """The least and the largest length of each group [group, entry] of entries."""
    near = np.where((lower > 0) | (upper < 0), np.minimum(np.abs(lower), np.abs(upper)), 0.0)
    far = np.maximum(np.abs(lower), np.abs(upper))
    slack = 1e-15 * (positions.shape[1] + 8)
    with np.errstate(over="ignore"):
        least, most = (np.sqrt(np.square(end[positions]).sum(1)) for end in (near, far))
    if reach is not None:
        middle = np.sqrt(np.square(reach.center[positions]).sum(1))
        least, most = np.maximum(least, middle - reach.radius), np.minimum(most, middle + reach.radius)
    return np.maximum(least * (1 - slack), 0.0), np.maximum(most, least) * (1 + slack)


def of_length(radial: Any) -> Stretched:
    """f(|x|) of each group: stretched by sup |f'(t)| over the lengths t at most."""
    expr, positions = radial.expr, radial.positions

    def value(v: Any) -> Any:
        return evaluate(expr, np.sqrt(np.square(v[positions]).sum(1)))

    def steepest(lower: Any, upper: Any, reach: Reach | None) -> float:
        return _largest(slope_range(expr, *lengths(positions, lower, upper, reach)))

    def ends(lower: Any, upper: Any) -> tuple[Any, Any]:
        return value_range(expr, *lengths(positions, lower, upper))

    return Stretched("norm", _everywhere(expr), value, ends, steepest, radial)


def along(radial: Any) -> Stretched:
    """The product x g(|x|) of each group: stretched by max(|g|, |h'|), h(t) = t g(t), over the lengths t at most."""
    factor, positions = radial.expr, radial.positions
    whole = variable() * factor
    with np.errstate(all="ignore"):
        starts_at_0 = bool(np.isfinite(evaluate(factor, np.zeros(1))).all())

    def value(v: Any) -> Any:
        result, rows = np.zeros(v.size), v[positions]
        result[positions] = rows * evaluate(factor, np.sqrt(np.square(rows).sum(1)))[:, None]
        return result

    def steepest(lower: Any, upper: Any, reach: Reach | None) -> float:
        least, most = lengths(positions, lower, upper, reach)
        share = np.linspace(0, 1, _PIECES + 1)[:, None]
        cuts = np.minimum(least + (most - least) * share, most)
        cuts[-1] = most
        sizes = value_range(factor, cuts[:-1].reshape(-1), cuts[1:].reshape(-1))
        return max(_largest(sizes), _largest(slope_range(whole, least, most)))

    def ends(lower: Any, upper: Any) -> tuple[Any, Any]:
        found = value_range(whole, *lengths(positions, lower, upper))
        most = np.empty(positions.size)
        most[positions] = np.maximum(np.abs(found[0]), np.abs(found[1]))[:, None]
        return -most, most

    # g(t) is the mean of h' up to t where h(0) = 0.
    return Stretched(
        "normalisation", _everywhere(whole) if starts_at_0 else math.inf, value, ends, steepest, None, radial
    )


def _everywhere(expr: Any) -> float:
    """Sup |f'(t)| over the lengths t >= 0."""
    return _largest(slope_range(expr, np.zeros(1), np.full(1, np.inf), tolerance=1e-8)) * _UP


def _largest(found: Any) -> float:
    return float(np.max(np.maximum(np.abs(found[0]), np.abs(found[1])), initial=0.0))


def softmax(positions: np.ndarray) -> Stretched:
    """Its Jacobian diag(p) - p p^T is no longer than 1/2, where two entries share all, nor than 2 max p (1 - p)."""

    def shares(v: Any) -> Any:
        result = np.zeros(v.size)
        result[positions] = scipy.special.softmax(v[positions], axis=1)
        return result

    def steepest(lower: Any, upper: Any, reach: Reach | None) -> float:
        least, most = softmax_range(positions, lower, upper)
        nearest = np.clip(0.5, least, most)
        # Gershgorin: a row of diag(p) - p p^T adds up to 2 p_i (1 - p_i)
        return float(np.max(2 * nearest * (1 - nearest), initial=0.0)) * (1 + 1e-14)

    return Stretched("softmax", 0.5, shares, partial(softmax_range, positions), steepest)


def softmax_range(
    positions: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """1 / (1 + sum_{j != i} exp(x_j - x_i)) is largest where x_i is and the others are least."""
    low, high = lower[positions], upper[positions]
    least, most = np.zeros(lower.size), np.ones(lower.size)
    slack = 1e-15 * (positions.shape[1] + 16)
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(positions.shape[1]):
            others = np.arange(positions.shape[1]) != i
            above = np.exp(high[:, others] - low[:, i : i + 1]).sum(1)
            least_others = np.exp(low[:, others] - high[:, i : i + 1]).sum(1)
            # exp rounds its argument as well: relatively by the argument's size
            size = 1e-15 * np.abs(np.where(np.isfinite(high - low), high, 0)).max(1, initial=0.0)
            is_masked = np.isneginf(high[:, i]) & np.isfinite(low[:, others]).any(1)
            least[positions[:, i]] = (1 - slack - size) / (1 + above)
            most[positions[:, i]] = np.where(is_masked, 0.0, (1 + slack + size) / (1 + least_others))
    least = np.where(np.isnan(least), 0.0, np.clip(least, 0, 1))
    return least, np.where(np.isnan(most), 1.0, np.clip(most, least, 1))


def times_interval(A: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval of A v."""
    positive, negative = np.maximum(A, 0), np.minimum(A, 0)
    with np.errstate(invalid="ignore"):
        low, high = positive @ lower + negative @ upper, positive @ upper + negative @ lower
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
