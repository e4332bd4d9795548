"""Slopes and values of a formula read off a table: quick and unproved, for the search alone."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from jaxact.lipschitz._formula import Expr, evaluate, num_entries
from jaxact.lipschitz._program import Bounds
from jaxact.lipschitz._slopes import _compiled, _Key, _key, slope_range

_FINE = np.linspace(0, 16, 4097)[1:]
_COARSE = 16 * np.exp(np.linspace(0, math.log(2.0**40), 2001))[1:]
_SMALL = 2.0 ** np.arange(-60, -8)


class Table:
    """The slope and value of one function on a grid, with their extremes over any stretch of it."""

    def __init__(self, expr: Expr):
        compiled = _compiled(_key(expr))
        grid = [-_COARSE, -_FINE, -_SMALL, np.zeros(1), _SMALL, _FINE, _COARSE]
        kinks = np.array([float(t) for t in compiled.switches if np.isfinite(t)])
        for kink in kinks:
            near = 1e-13 * abs(kink) + 1e-300
            grid.append(np.array([kink - near, kink + near]))
        x = np.unique(np.concatenate(grid))
        x = x[~np.isin(x, kinks)]  # slopes have no value at a kink, but one on either side
        with np.errstate(all="ignore"):
            slopes = compiled.run(x, x, np.zeros(x.size, int)).slope
            slope = slopes[0][3] / 2 + slopes[1][3] / 2
            value = evaluate(expr, x)
        known = np.isfinite(slope) & np.isfinite(value)
        self.x, self.slope, self.value = x[known], slope[known], value[known]
        self.whole = slope_range(expr)
        self._slopes, self._values = _Extremes(self.slope), _Extremes(self.value)

    def slopes(self, lower: np.ndarray, upper: np.ndarray) -> Bounds:
        """The range of the slope over intervals [size]."""
        least, most = self._range(self.slope, self._slopes, lower, upper)
        return np.maximum(least, self.whole.lower), np.minimum(most, self.whole.upper)

    def values(self, lower: np.ndarray, upper: np.ndarray) -> Bounds:
        """The range of the value."""
        least, most = self._range(self.value, self._values, lower, upper)
        beyond = ~(np.isfinite(lower) & np.isfinite(upper))
        return np.where(beyond, -np.inf, least), np.where(beyond, np.inf, most)

    def _range(self, of: np.ndarray, extremes: _Extremes, lower: np.ndarray, upper: np.ndarray) -> Bounds:
        size = lower.size
        ends = np.interp(np.concatenate([lower, upper]), self.x, of)
        least, most = np.minimum(ends[:size], ends[size:]), np.maximum(ends[:size], ends[size:])
        return extremes.over(
            np.searchsorted(self.x, lower), np.searchsorted(self.x, upper, side="right"), least, most
        )


class _Extremes:
    """Least and largest over stretches of a list, by those of all stretches of 2^k."""

    def __init__(self, values: np.ndarray):
        least, most = [values], [values]
        for k in range(values.size.bit_length() - 1):
            half = 2**k
            least.append(np.minimum(least[-1][:-half], least[-1][half:]))
            most.append(np.maximum(most[-1][:-half], most[-1][half:]))
        # Of one length, so that one look-up serves every stretch.
        self.least, self.most = (
            np.stack([np.pad(row, (0, values.size - row.size), mode="edge") for row in rows])
            for rows in (least, most)
        )

    def over(self, start: np.ndarray, stop: np.ndarray, least: np.ndarray, most: np.ndarray) -> Bounds:
        """Together with `least` and `most`; a stretch may be empty."""
        length = stop - start
        inside = length > 0
        k = np.frexp(np.maximum(length, 1))[1] - 1
        first = np.minimum(start, self.least.shape[1] - 1)
        second = np.maximum(stop - (1 << k), 0)
        low = np.minimum(self.least[k, first], self.least[k, second])
        high = np.maximum(self.most[k, first], self.most[k, second])
        return np.where(inside, np.minimum(least, low), least), np.where(inside, np.maximum(most, high), most)


def table(expr: Expr | None) -> Table | None:
    """The table of a formula, if it has one: where constants differ between entries there is none."""
    if expr is None or num_entries(expr) is not None:
        return None
    return _tabulated(_key(expr))


@lru_cache(maxsize=32)
def _tabulated(key: _Key) -> Table:
    return Table(key.expr)
