"""Slope ranges of an activation over many intervals at once, from a table that is made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from jaxact.lipschitz._rounding import UNIT
from jaxact.trace import (
    LARGEST,
    Expr,
    UnsupportedError,
    centered,
    compile_formula,
    evaluate_node,
    find_jumps,
    from_function,
    nodes,
    slope_range,
)

_NEAR = 12.0  # panels of equal width up to here, growing ones beyond
_START = 2.0**-4  # their width at the start
_FINE = (
    1e-6  # of a panel: what the range of f'' leaves open of f' inside, relative to the largest slope near 1
)
_MOST = 2**15
_ROUNDING = 2.0**-50
SAME = 16 * UNIT
_FAR = 2 * LARGEST


@dataclass(frozen=True, eq=False)
class SlopeTable:
    """What is known of the slopes of one elementwise function.

    Attributes:
        whole: bounds on the slopes everywhere; infinite where there are none.
        value: f on float64 arrays, on the host.
        tops: ([size] lower ends, [size] upper ends), finite -> [2, size] bounds from above on -q and on q for every
            difference quotient q inside.
        steps: for slopes that are constant between a few kinks, the same ends -> [size] m, r with all quotients within
            m +- r; None for others.
    """

    whole: tuple[float, float]
    value: Callable[[np.ndarray], np.ndarray]
    tops: Callable[[np.ndarray, np.ndarray], np.ndarray]
    steps: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None

    @cached_property
    def unit(self) -> float:
        """Of the size of what it computes with beside its input: 0 for homogeneous functions as relu, else 1."""
        points = np.array([-3.0, -1.0, 1.0, 3.0])
        near = self.value(np.ldexp(points, -600))
        return 0.0 if np.array_equal(near, np.ldexp(self.value(points), -600)) else 1.0

    def range(self, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds from below and from above on every difference quotient in intervals [size], which may be infinite."""
        below, above = self.tops(np.clip(lower, -_FAR, _FAR), np.clip(upper, -_FAR, _FAR))
        return -below, above

    def middles(self, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(m, r) with every difference quotient in finite intervals [size] within m +- r whatever the rounding.

        Where r = 0 it is one number for all, m to a relative `SAME`.
        """
        if self.steps is not None:
            return self.steps(lower, upper)
        below, above = self.tops(lower, upper)
        return centered(-below, above)


def slope_table(activation: Any) -> SlopeTable:
    """The table of an activation, remembered if it is hashable.

    The line is cut at the kinks and into panels, up to 2^15, finer where f' is curved. On each, f' and f'' are enclosed
    from the formula of the activation alone (`_slopes`). A panel inside the interval counts as a whole; on the panels
    that hold an end of it, with f' in D at an end e of the panel and f'' in C,

        f'(x) in D + (x - e) C

    which leaves 1e-6 on most panels. Slopes that are constant between a few kinks are exact. What is no formula of
    known primitives has its stated `slope_range` for every interval, if it states one.

    Raises:
        ValueError: neither a formula nor a `slope_range`.
    """
    found = _LATEST.get(id(activation))
    if (
        found is not None and found[0] is activation
    ):  # the hash of an activation takes as long as a small layer
        return found[1]
    try:
        table = _remembered(activation)
    except TypeError:  # unhashable: it may change
        return _made(activation)
    if len(_LATEST) >= 256:
        _LATEST.clear()
    _LATEST[id(activation)] = activation, table
    return table


_LATEST: dict[int, tuple[Any, SlopeTable]] = {}


@lru_cache(maxsize=256)
def _remembered(activation: Any) -> SlopeTable:
    return _made(activation)


def _made(activation: Any) -> SlopeTable:
    stated = getattr(activation, "slope_range", None)
    try:
        expr = from_function(activation)
    except (UnsupportedError, TypeError) as error:
        if stated is None or not callable(activation):
            raise ValueError(
                f"`activation` must be an elementwise function of known primitives, got {activation!r}: {error}. "
                "Give it an attribute `slope_range`, or leave out `region`."
            ) from error
        return _constant(activation, (float(stated[0]), float(stated[1])))
    found = slope_range(expr)
    whole = (float(found.lower), float(found.upper))
    if stated is not None and getattr(activation, "exact", False):  # known facts, a few ulp sharper
        whole = max(whole[0], stated[0]), min(whole[1], stated[1])
    compiled, edge = compile_formula(expr), np.full(1, LARGEST)
    with np.errstate(all="ignore"):
        if find_jumps(compiled, -edge, edge).any():
            return SlopeTable((-np.inf, np.inf), _evaluator(expr), _everywhere(-np.inf, np.inf))
        panels = _panels(compiled, whole)
        steps = _steps(panels)
        return SlopeTable(whole, _evaluator(expr), _lookup(panels, whole), steps)


def _constant(activation: Any, whole: tuple[float, float]) -> SlopeTable:
    import jax

    def value(x: np.ndarray) -> np.ndarray:
        with jax.enable_x64(True):
            return np.asarray(activation(jax.numpy.asarray(x)), np.float64)

    return SlopeTable(whole, value, _everywhere(*whole))


def _everywhere(lower: float, upper: float) -> Callable:
    return lambda a, b: np.repeat([[-lower], [upper]], a.size, 1)


def _evaluator(expr: Expr) -> Callable[[np.ndarray], np.ndarray]:
    order = nodes(expr)
    place = {id(node): index for index, node in enumerate(order)}
    plan = [(node, [place[id(arg)] for arg in node.args]) for node in order]
    simple = {node.op for node in order} <= {
        "var",
        "const",
        "maximum",
        "minimum",
        "abs",
        "tanh",
        "erf",
        "atan",
    }

    def value(x: np.ndarray) -> np.ndarray:
        done: list[Any] = []
        if simple:
            for node, args in plan:
                done.append(evaluate_node(node, x, [done[i] for i in args]))
        else:
            with np.errstate(all="ignore"):
                for node, args in plan:
                    done.append(evaluate_node(node, x, [done[i] for i in args]))
        result = done[-1]
        return result if np.shape(result) == x.shape else np.full(x.shape, result)

    return value


# --- Making -----------------------------------------------------------------------------------------------------------


@dataclass
class _Panels:
    """Ends, and bounds from above on -f' and f' [2, panels] at the left end and inside, and on -f'' and f''."""

    a: np.ndarray
    b: np.ndarray
    left: np.ndarray
    bend: np.ndarray
    inside: np.ndarray

    def take(self, index: Any) -> _Panels:
        return _Panels(*(part[..., index] for part in vars(self).values()))


def _panels(compiled: Any, whole: tuple[float, float]) -> _Panels:
    equal = np.arange(-_NEAR, _NEAR + _START / 2, _START)
    growing = _NEAR * 1.125 ** np.arange(1, 40)
    growing = np.concatenate([growing, growing[-1] * 2.0 ** np.arange(1, 140)])
    growing = np.append(growing[growing < LARGEST], LARGEST)
    switches = [np.ravel(t) for t in compiled.switches]
    edges = np.concatenate([-growing, equal, growing, *switches])
    edges = np.unique(edges[np.abs(edges) <= LARGEST])  # NaN is none
    found = _enclosed(compiled, edges[:-1], edges[1:], whole)
    for _ in range(8):
        open_ = (found.bend[1] + found.bend[0]) * (found.b - found.a)
        width = found.inside[1] + found.inside[0]
        largest = np.maximum(1.0, np.abs(found.inside).max(0))
        coarse = (np.minimum(open_, width) > _FINE * largest) & np.isfinite(open_)
        coarse &= found.b - found.a > 1e-9 * np.maximum(np.abs(found.a), 1e-3)
        pieces = 4
        room = (_MOST - found.a.size) // (pieces - 1)
        if coarse.sum() > room:  # those near 0 first
            distance = np.where(coarse, np.abs(found.a), np.inf)
            coarse[np.argsort(distance)[max(room, 0) :]] = False
        if not coarse.any():
            break
        a, b = found.a[coarse], found.b[coarse]
        grid = a[:, None] + (b - a)[:, None] * (np.arange(pieces + 1) / pieces)
        grid[:, -1] = b
        finer = _enclosed(compiled, grid[:, :-1].ravel(), grid[:, 1:].ravel(), whole)
        kept = found.take(~coarse)
        parts = zip(vars(kept).values(), vars(finer).values(), strict=True)
        found = _Panels(*(np.concatenate(pair, -1) for pair in parts))
        found = found.take(np.argsort(found.a, kind="stable"))
    return found


def _enclosed(compiled: Any, a: np.ndarray, b: np.ndarray, whole: tuple[float, float]) -> _Panels:
    jet = compiled.run(a, b, np.zeros(a.size, int))
    (low, high), (bend_low, bend_high) = jet.slope, jet.bend
    everywhere = np.array([[-whole[0]], [whole[1]]])
    bend = np.stack([-bend_low[0], bend_high[0]])
    rough = jet.rough | ~np.isfinite(bend).all(0)
    inside = np.minimum(np.stack([-low[0], high[0]]), everywhere)
    inside = np.where(jet.rough, everywhere, inside)
    bend = np.where(rough, 0.0, bend)
    # The rounding of what is computed from them later is added beforehand.
    slack = _ROUNDING * (np.abs(inside).max(0) + np.abs(bend).max(0) * (b - a))
    slack = np.where(np.isfinite(slack), slack, 0.0)
    left = np.stack([-low[1], high[1]]) + slack
    left = np.where(rough, inside, np.minimum(left, inside + slack))
    return _Panels(a, b, left, bend, inside)


def _steps(panels: _Panels) -> Callable | None:
    """Slopes that are constant between few kinks: nothing but two searches."""
    if np.any(panels.bend) or not (panels.inside[1] + panels.inside[0] <= 1e-12).all():
        return None
    levels = panels.inside
    new = np.concatenate([[True], np.abs(np.diff(levels, axis=1)).max(0) > 1e-12])
    pieces = np.cumsum(new) - 1
    count = pieces[-1] + 1
    if count > 64:
        return None
    kinks = panels.a[new][1:]
    tops = np.full((2, count), -np.inf)
    for side in range(2):
        np.maximum.at(tops[side], pieces, levels[side])
    table = np.full((2, count, count), -np.inf)
    for i in range(count):
        for j in range(count):
            table[:, i, j] = tops[:, min(i, j) : max(i, j) + 1].max(1)
    m, r = centered(-table[0], table[1])
    # On one piece every difference quotient is one number, known to a few ulp: `SAME` leaves these to whoever asks.
    r[np.diag_indices(count)] *= np.diag(r) > SAME * np.abs(np.diag(m))

    def between(lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place = kinks.searchsorted(lower, "right"), kinks.searchsorted(upper, "left")
        return m[place], r[place]

    return between


def _lookup(panels: _Panels, whole: tuple[float, float]) -> Callable:
    beyond = np.array([[-whole[0]], [whole[1]]])
    a = np.concatenate([[-_FAR], panels.a, [LARGEST]])
    b = np.concatenate([[-LARGEST], panels.b, [_FAR]])
    inside, left = (np.concatenate([beyond, part, beyond], 1) for part in (panels.inside, panels.left))
    bend = np.concatenate([np.zeros((2, 1)), panels.bend, np.zeros((2, 1))], 1)
    # Contiguous, so that a look-up copies nothing else.
    rows = np.ascontiguousarray(np.concatenate([left, bend, inside, a[None], b[None]]))
    size = a.size
    levels = [inside]
    while 2 ** len(levels) <= size:
        last, half = levels[-1], 2 ** (len(levels) - 1)
        shifted = np.concatenate([last[:, half:], np.full((2, half), -np.inf)], 1)
        levels.append(np.maximum(last, shifted))
    levels.append(np.full((2, size + 2), -np.inf))  # of no panel
    spans = np.ascontiguousarray(
        np.concatenate(levels, 1)
    )  # over the 2^level panels from here on, level by level
    # By the distance of the panels that hold the ends, from -1 on: which level, and how far before the last one.
    level = np.full(size + 1, len(levels) - 1)
    level[2:-1] = np.frexp(np.arange(1, size - 1))[1] - 1
    reach = np.where(level < len(levels) - 1, 1 << level, 0)
    ahead, behind = level * size + 1, level * size - reach
    cuts = a[1:].copy()

    def between(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        n = lower.size
        first, last = cuts.searchsorted(lower, "right"), cuts.searchsorted(upper, "left")
        G = rows.take(np.concatenate([first, last]), 1)
        start = G[6]
        x1 = np.concatenate([lower, np.maximum(lower, start[n:])])
        x2 = np.concatenate([np.minimum(upper, G[7, :n]), upper])
        x1 -= start
        x2 -= start
        tops = np.maximum(G[2:4] * x1, G[2:4] * x2)
        tops += G[0:2]
        np.minimum(tops, G[4:6], out=tops)
        top = np.maximum(tops[:, :n], tops[:, n:])
        apart = last - first
        np.maximum(top, spans.take(ahead.take(apart) + first, 1), out=top)
        return np.maximum(top, spans.take(behind.take(apart) + last, 1), out=top)

    return between
