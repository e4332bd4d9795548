"""Interval arithmetic in which every result encloses, after widening by a few ulp."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

EPS = 2.0**-52
TINY, _MOST = 5e-324, np.finfo(np.float64).max
HALF_PI = math.pi / 2

Interval: TypeAlias = tuple[np.ndarray, np.ndarray]


def centered(
    lower: Float[np.ndarray, "*shape"], upper: Float[np.ndarray, "*shape"]
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """(m, r) with [m - r, m + r] containing [lower, upper] whatever the rounding; r = 0 where they are one number.

    Args:
        lower: ends.
        upper: ends, none below `lower`.

    Returns:
        The centre and half the width, rounded up.
    """
    m = lower / 2 + upper / 2
    r = np.maximum(upper - m, m - lower)  # each rounded relative to itself
    r *= 1 + 2 * EPS
    return m, r


def outward(low: Any, high: Any, ulps: float = 2) -> Interval:
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    low, high = np.minimum(low, _MOST), np.maximum(high, -_MOST)  # what overflows is at least so large
    low = low - np.abs(low) * (ulps * EPS)
    high = high + np.abs(high) * (ulps * EPS)
    # NaN: nothing is known
    return np.where(low == low, low, -np.inf), np.where(high == high, high, np.inf)


def plus(a: Interval, b: Interval) -> Interval:
    return outward(a[0] + b[0], a[1] + b[1], 1)


def scaled(c: Any, a: Interval) -> Interval:
    """The interval A times numbers c."""
    low, high = c * a[0], c * a[1]
    low, high = np.where(c == 0, 0.0, low), np.where(c == 0, 0.0, high)
    return outward(np.minimum(low, high), np.maximum(low, high), 1)


def times(a: Interval, b: Interval) -> Interval:
    """Products of real numbers: infinite ends only say that no bound is known, so 0 times them is 0."""
    low = high = None
    for s in a:
        for t in b:
            p = s * t
            bad = p != p
            if bad.any():
                p = np.where(bad, 0.0, p)
            low = p if low is None else np.minimum(low, p)
            high = p if high is None else np.maximum(high, p)
    assert low is not None
    assert high is not None
    low, high = outward(low, high, 1)
    zero = (low == 0) | (high == 0)
    if zero.any():  # a product may have underflowed
        exact = ((a[0] == 0) & (a[1] == 0)) | ((b[0] == 0) & (b[1] == 0))
        positive = ((a[0] >= 0) & (b[0] >= 0)) | ((a[1] <= 0) & (b[1] <= 0))
        negative = ((a[0] >= 0) & (b[1] <= 0)) | ((a[1] <= 0) & (b[0] >= 0))
        low = np.where((low == 0) & ~positive & ~exact, -TINY, low)
        high = np.where((high == 0) & ~negative & ~exact, TINY, high)
    return low, high


def meet(a: Interval, b: Interval, where: np.ndarray) -> Interval:
    return np.where(where, np.maximum(a[0], b[0]), a[0]), np.where(where, np.minimum(a[1], b[1]), a[1])


def curve_range(
    fn: Callable, turns: tuple[float, ...], a: Interval, ulps: float = 8, reach: float = math.inf
) -> Interval:
    """Range of a function that is monotone between its turns; beyond +-reach it is at most 1.05 / |x|."""
    if math.isfinite(reach):
        beyond = np.maximum(np.maximum(np.abs(a[0]), np.abs(a[1])) > reach, a[0] != a[0])
        nearest = np.maximum(np.maximum(a[0], -a[1]), reach)
        a = np.clip(a[0], -reach, reach), np.clip(a[1], -reach, reach)
    first, last = fn(a[0]), fn(a[1])
    low, high = np.minimum(first, last), np.maximum(first, last)
    for turn in turns:
        inside = (a[0] < turn) & (turn < a[1])
        if inside.any():
            at = fn(np.float64(turn))
            low = np.where(inside, np.minimum(low, at), low)
            high = np.where(inside, np.maximum(high, at), high)
    if math.isfinite(reach):
        low = np.where(beyond, np.minimum(low, -1.05 / nearest), low)
        high = np.where(beyond, np.maximum(high, 1.05 / nearest), high)
    low, high = outward(low, high, ulps)
    low = np.where(low == 0, -TINY, low)
    return low, np.where(high == 0, TINY, high)


def power_range(a: Interval, n: int) -> Interval:
    if n == 0:
        return np.ones_like(a[0]), np.ones_like(a[1])
    if n == 1:
        return a
    if n < 0:
        low, high = power_range(a, -n)
        below, above = 1 / high, 1 / low
        touches = (low <= 0) & (high >= 0)
        below = np.where(touches & (low < 0), -np.inf, below)
        above = np.where(touches & (high > 0), np.inf, above)
        below = np.where(touches & (low == 0) & (high == 0), -np.inf, below)
        above = np.where(touches & (low < 0) & (high == 0), 1 / low, above)
        below = np.where(touches & (low < 0) & (high == 0), -np.inf, below)
        return outward(below, above, 2)
    first, last = a[0] ** n, a[1] ** n
    low, high = np.minimum(first, last), np.maximum(first, last)
    if n % 2 == 0:
        low = np.where((a[0] <= 0) & (a[1] >= 0), 0.0, low)
    low, high = outward(low, high, 4)
    return low, np.where((high == 0) & ((a[0] != 0) | (a[1] != 0)), TINY, high)


def wave_range(a: Interval, phase: float) -> Interval:
    """Range of sin(x + phase); phase a multiple of pi / 2."""
    values = [np.sin(a[0]), np.sin(a[1])] if phase == 0 else [np.cos(a[0]), np.cos(a[1])]
    low, high = outward(np.minimum(*values), np.maximum(*values), 8)
    slack = 1e-12 * (1 + np.abs(a[0]) + np.abs(a[1]))  # the positions of the crests are rounded
    for level, crest in ((1.0, HALF_PI - phase), (-1.0, -HALF_PI - phase)):
        next_crest = crest + 2 * math.pi * np.ceil((a[0] - slack - crest) / (2 * math.pi))
        inside = ~(next_crest > a[1] + slack) | (slack > 0.1)
        low, high = (
            np.where(inside, np.minimum(low, level), low),
            np.where(inside, np.maximum(high, level), high),
        )
    return np.maximum(low, -1.0), np.minimum(high, 1.0)
