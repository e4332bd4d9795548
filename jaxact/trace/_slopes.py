"""Sound ranges of the slope and value of a formula, over an interval or the whole line.

The line is cut into panels over which slopes are enclosed (`_jets`); those that decide the bound are split until outer
bound and attained slopes agree.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxact.trace._expr import Expr, evaluate, evaluate_node, nodes, num_entries
from jaxact.trace._formula import outer, reindex
from jaxact.trace._intervals import EPS, Interval, outward
from jaxact.trace._jets import Compiled, Jet, Key, compile_formula, compiled_key, cut_panels, key_of

#: Slopes over the whole line are proved for inputs up to here, the largest that float32 (and bfloat16) can hold.
LARGEST = 2.0**128
_TAIL = 2.0**64  # slopes that still grow from here on are taken for unbounded
_HIDDEN = 1e-10  # a jump below it is not looked for, relative to values, or to slopes times inputs
_STEEP = 1e30  # and so are slopes beyond this
_OCTAVES = np.outer([-1.0, 1.0], 2.0 ** np.concatenate([np.arange(-4.0, 8), np.arange(8.0, 129, 8)])).ravel()


class SlopeRange(NamedTuple):
    """Bounds on (f(x') - f(x)) / (x' - x).

    Attributes:
        lower: at most the infimum, [] or [size]; -inf where none was found.
        upper: at least the supremum, likewise.
    """

    lower: Float[np.ndarray, "*size"] | np.float64
    upper: Float[np.ndarray, "*size"] | np.float64


def slope_range(
    expr: Expr, lower: Any = None, upper: Any = None, *, tolerance: float | None = None
) -> SlopeRange:
    """Bound every difference quotient of a formula, soundly, from the formula alone.

        lower <= (f(x') - f(x)) / (x' - x) <= upper    for all x != x' of the interval

    Outer bounds, widened for rounding; tight to `tolerance` relative to the largest |slope| unless the work
    runs out first. A jump gives (-inf, inf): branches of a `where` count as continuous if they agree at the switch to
    the bound on their rounding there, which may be 1e-10 of their size or of slope times input. Over the whole line,
    panels reach out to +-2^128; a slope that still grows beyond 2^64 counts as unbounded, over intervals that reach
    farther too.

    Args:
        expr: the formula; constants may differ between the [size] entries of the variable.
        lower: [size] ends of intervals; None, or infinite, for the whole line.
        upper: likewise.
        tolerance: 1e-8 for the whole line and 1e-3 for intervals if None.

    Returns:
        `SlopeRange` of scalars for the whole line and equal entries, else of [size].

    >>> import jax
    >>> from jaxact.trace import from_function
    >>> found = slope_range(from_function(lambda x: x * jax.nn.sigmoid(x)))
    >>> print(f"{found.lower:.6f} {found.upper:.6f}")
    -0.099839 1.099839
    """
    if (period := _period(key_of(expr))) is not None:
        return _periodic_slopes(period, lower, upper, tolerance)
    if lower is None or upper is None:
        return _whole_line(key_of(expr), 1e-8 if tolerance is None else tolerance)
    lower, upper = np.broadcast_arrays(np.asarray(lower, np.float64), np.asarray(upper, np.float64))
    if not (np.isfinite(lower) & np.isfinite(upper)).any():
        whole = _whole_line(key_of(expr), 1e-8)
        return SlopeRange(
            np.broadcast_to(whole.lower, lower.shape), np.broadcast_to(whole.upper, lower.shape)
        )
    compiled = compile_formula(expr)
    shape = lower.shape
    beyond = ~((lower >= -LARGEST) & (upper <= LARGEST)).reshape(-1)
    low, high = (np.clip(end.reshape(-1), -LARGEST, LARGEST) for end in (lower, upper))
    with np.errstate(all="ignore"):
        found = _search(compiled, low, high, 1e-3 if tolerance is None else tolerance, rounds=8)
        if beyond.any():  # there slopes must have settled before
            far = beyond if num_entries(expr) is None else np.ones_like(beyond)
            tails = _search(
                compiled,
                low[far],
                high[far],
                tolerance or 1e-3,
                rounds=60 if tolerance else 20,
                edges=_OCTAVES,
                tails=True,
            )
            low_ends, high_ends = np.array(found.lower), np.array(found.upper)
            low_ends[beyond] = np.asarray(tails.lower)[beyond[far]]
            high_ends[beyond] = np.asarray(tails.upper)[beyond[far]]
            found = SlopeRange(low_ends, high_ends)
    return SlopeRange(found.lower.reshape(shape), found.upper.reshape(shape))


def value_range(expr: Expr, lower: Any, upper: Any) -> Interval:
    """Bound f over intervals [size] from outside; ends may be infinite.

    Args:
        expr: f, of one variable.
        lower: ends, [size].
        upper: ends, [size].

    Returns:
        An interval with ends [size] that contains every value.
    """
    lower, upper = np.broadcast_arrays(np.asarray(lower, np.float64), np.asarray(upper, np.float64))
    if (period := _period(key_of(expr))) is not None:
        return value_range(period.formula, *_in_period(period, lower, upper))
    shape = lower.shape
    low, high = lower.reshape(-1), upper.reshape(-1)
    compiled = compile_formula(expr)
    with np.errstate(all="ignore"):
        near_low, near_high = np.clip(low, -LARGEST, LARGEST), np.clip(high, -LARGEST, LARGEST)
        a, b, index = compiled.panels(near_low, near_high, pieces=4)
        V = compiled.run(a, b, index).value
        least, most = np.full(low.size, np.inf), np.full(low.size, -np.inf)
        np.minimum.at(least, index, V[0][0])
        np.maximum.at(most, index, V[1][0])
        beyond = ~((low >= -LARGEST) & (high <= LARGEST))
        least[beyond], most[beyond] = -np.inf, np.inf
    return least.reshape(shape), most.reshape(shape)


# --- Periodic formulas ------------------------------------------------------------------------------------------------


class _Period(NamedTuple):
    """F(fraction(scale x + shift)): F on [0, 1], and whether it ends where it starts."""

    formula: Expr
    scale: float
    shift: float
    is_closed: bool


@lru_cache(maxsize=512)
def _period(key: Key) -> _Period | None:
    """A formula that reads x by its fractional part alone, or None."""
    found = [node for node in nodes(key.expr) if node.op == "fraction"]
    rest = outer(key.expr, found[0]) if found else None
    scale, shift = (found[0].args[0].affine if found else None) or (None, None)
    if rest is None or not (isinstance(scale, float) and isinstance(shift, float)):
        return None
    first, last = evaluate(rest, np.array([0.0, 1.0]))
    steepest = np.abs(slope_range(rest, np.zeros(1), np.ones(1))).max()
    return _Period(
        rest, scale, shift, bool(abs(last - first) <= 64 * EPS * (abs(first) + abs(last) + steepest))
    )


def _in_period(period: _Period, lower: np.ndarray, upper: np.ndarray) -> Interval:
    """The fractional parts of an interval: [0, 1] if it holds more than a part of one period."""
    ends = period.scale * lower + period.shift, period.scale * upper + period.shift
    low, high = np.minimum(*ends), np.maximum(*ends)
    slack = 8 * EPS * (np.abs(low) + np.abs(high) + 1)
    with np.errstate(invalid="ignore"):
        start = np.floor(low - slack)
        inside = high + slack <= start + 1
        low, high = np.where(inside, low - slack - start, 0.0), np.where(inside, high + slack - start, 1.0)
    return np.asarray(np.clip(low, 0, 1)), np.asarray(np.clip(high, 0, 1))


def _periodic_slopes(period: _Period, lower: Any, upper: Any, tolerance: float | None) -> SlopeRange:
    is_line = lower is None or upper is None
    ends = (-np.inf, np.inf) if is_line else (lower, upper)
    low, high = _in_period(period, *np.broadcast_arrays(*(np.asarray(end, np.float64) for end in ends)))
    found = slope_range(period.formula, low, high, tolerance=1e-8 if is_line else tolerance)
    is_open = (low == 0) & (high == 1) & (not period.is_closed)
    least, most = np.where(is_open, -np.inf, found.lower), np.where(is_open, np.inf, found.upper)
    scaled = period.scale * least, period.scale * most
    return SlopeRange(*outward(np.minimum(*scaled), np.maximum(*scaled), 4))


# --- Branch and bound -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _whole_line(key: Key, tolerance: float) -> SlopeRange:
    compiled = compiled_key(key)
    if compiled.size is not None:
        return _whole_line_distinct(key.expr, tolerance)
    edge = np.full(1, LARGEST)
    octaves = 2.0 ** np.concatenate([np.arange(-12, 12), np.arange(12, 129, 2)])
    with np.errstate(all="ignore"):
        found = _search(
            compiled, -edge, edge, tolerance, rounds=60, edges=np.concatenate([-octaves, octaves]), tails=True
        )
    found = SlopeRange(np.float64(found.lower.item()), np.float64(found.upper.item()))
    return found if np.isfinite(found).all() else _by_cutting(key.expr, tolerance) or found


def _by_cutting(expr: Expr, tolerance: float) -> SlopeRange | None:
    """Products of the slopes of F and of g where f = F(g(x)): of gelu(gelu(x)), whose tails intervals cannot follow."""
    size = len(nodes(expr))
    cuts = [(node, outer(expr, node)) for node in nodes(expr)[:-1] if node.args and not node.is_bool]
    pairs = [(rest, inner) for inner, rest in cuts if rest is not None and rest.affine is None]
    for pair in sorted(pairs, key=lambda pair: abs(2 * len(nodes(pair[1])) - size)):  # the middle first
        ranges = [_whole_line(key_of(each), tolerance) for each in pair]
        if np.isfinite(ranges).all():
            ends = [s * t for s in ranges[0] for t in ranges[1]]
            return SlopeRange(*outward(np.min(ends), np.max(ends)))
    return None


def _whole_line_distinct(expr: Expr, tolerance: float) -> SlopeRange:
    """Entries with equal constants share their range."""
    tables: list[np.ndarray] = []

    def note(values: np.ndarray) -> np.ndarray:
        tables.append(values.astype(np.float64))
        return values

    reindex(expr, note)
    _, first, inverse = np.unique(np.stack(tables, 1), axis=0, return_index=True, return_inverse=True)
    inverse = inverse.reshape(-1)
    small = reindex(expr, lambda values: values[first])  # sorted, also where all entries differ
    edge = np.full(first.size, LARGEST)
    with np.errstate(all="ignore"):
        found = _search(
            compile_formula(small),
            -edge,
            edge,
            max(tolerance, 1e-7),
            rounds=60,
            edges=_OCTAVES,
            tails=True,
        )
    return SlopeRange(np.asarray(found.lower)[inverse], np.asarray(found.upper)[inverse])


def _search(
    compiled: Compiled,
    low: np.ndarray,
    high: np.ndarray,
    tolerance: float,
    *,
    rounds: int,
    edges: np.ndarray | None = None,
    tails: bool = False,
) -> SlopeRange:
    size = low.size
    broken = find_jumps(compiled, low, high)
    if broken.all():
        return SlopeRange(np.full(size, -np.inf), np.full(size, np.inf))
    a, b, index = compiled.panels(low, high, edges=edges)
    store: list[tuple[np.ndarray, ...]] = []
    inner_low, inner_high = np.full(size, np.inf), np.full(size, -np.inf)
    outer_low, outer_high = np.full(size, np.inf), np.full(size, -np.inf)
    settled_low, settled_high = np.full(size, np.inf), np.full(size, -np.inf)
    limit = max(64, 4 * size)
    tail_low, tail_high = np.full(size, np.inf), np.full(size, -np.inf)
    for step in range(rounds + 1):
        jet = compiled.run(a, b, index)
        narrow = b - a <= 16 * EPS * np.maximum(np.abs(a), np.abs(b)) + 1e-45
        D_low, D_high = jet.slope[0][0].copy(), jet.slope[1][0].copy()
        rough = jet.rough
        if rough.any():
            unproved = rough & ~(narrow & _agrees(jet, a, b))
            D_low[unproved], D_high[unproved] = -np.inf, np.inf
        known = ~rough
        np.maximum.at(inner_high, index[known], jet.slope[0][1:, known].max(0))
        np.minimum.at(inner_low, index[known], jet.slope[1][1:, known].min(0))
        store.append((a, b, index, D_low, D_high, narrow))
        a, b, index, D_low, D_high, narrow = (np.concatenate(part) for part in zip(*store, strict=True))
        scale = np.maximum(np.abs(inner_low), np.abs(inner_high))
        scale = np.where(np.isfinite(scale), scale, 1.0)
        excess = np.maximum(D_high - inner_high[index], inner_low[index] - D_low)
        steep = ~((inner_high <= _STEEP) & (inner_low >= -_STEEP)) & np.isfinite(inner_low + inner_high)
        open_ = ~(excess <= tolerance * scale[index]) & ~steep[index]
        done = narrow | ~open_
        if (~done).sum() == 0 or step == rounds:
            np.minimum.at(outer_low, index, D_low)
            np.maximum.at(outer_high, index, D_high)
            if tails:
                far = (np.minimum(np.abs(a), np.abs(b)) >= _TAIL) & (np.maximum(np.abs(a), np.abs(b)) > _TAIL)
                np.minimum.at(tail_low, index[far], D_low[far])
                np.maximum.at(tail_high, index[far], D_high[far])
                np.minimum.at(settled_low, index[~far], D_low[~far])
                np.maximum.at(settled_high, index[~far], D_high[~far])
            break
        rest = np.flatnonzero(~done)
        if rest.size > limit:
            badness = np.round(np.minimum(excess[rest], 1e300) / (1e-6 * scale[index[rest]] + 1e-300))
            rest = rest[np.lexsort((np.abs(b[rest] - a[rest]), -badness))[:limit]]
        split = np.zeros(a.size, bool)
        split[rest] = True
        kept = ~split
        store = [(a[kept], b[kept], index[kept], D_low[kept], D_high[kept], narrow[kept])]
        pieces = 16 if rest.size <= 64 else 4 if rest.size <= 4096 else 2
        a, b, index = cut_panels(a[split], b[split], index[split], pieces)
    if tails:
        allowed = 1e-6 * np.maximum(np.abs(settled_low), np.abs(settled_high))
        outer_high = np.where(tail_high > settled_high + allowed, np.inf, outer_high)
        outer_low = np.where(tail_low < settled_low - allowed, -np.inf, outer_low)
    outer_high = np.where(outer_high > _STEEP, np.inf, outer_high)
    outer_low = np.where(outer_low < -_STEEP, -np.inf, outer_low)
    # Slopes may vanish beyond the outermost panel.
    size_of = 1e-15 * np.maximum(np.abs(outer_low), np.abs(outer_high))
    outer_low = np.where((outer_low > 0) & (outer_low < size_of), 0.0, outer_low)
    outer_high = np.where((outer_high < 0) & (outer_high > -size_of), 0.0, outer_high)
    outer_low, outer_high = np.where(broken, -np.inf, outer_low), np.where(broken, np.inf, outer_high)
    return SlopeRange(*outward(outer_low, outer_high, 8))


def _agrees(jet: Jet, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether a panel a few ulp wide, inside which a `where` switches, leaves no room for a jump."""
    low, high = jet.value[0][0], jet.value[1][0]
    size = np.maximum(np.abs(low), np.abs(high))
    steepest = np.maximum(np.abs(jet.slope[0][0]), np.abs(jet.slope[1][0]))
    length = b - a + 8 * EPS * np.maximum(np.abs(a), np.abs(b))
    return high - low <= 256 * EPS * size + 4 * steepest * length


def find_jumps(compiled: Compiled, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether the value jumps at a solved switch: limits from both sides against the value itself.

    Args:
        compiled: the formula.
        low: lower ends of where the switch lies.
        high: upper ends.
    """
    broken = np.zeros(low.size, bool)
    every = np.arange(low.size)
    for cut in compiled.jumps:
        t = np.broadcast_to(cut, low.shape)
        here = (low <= t) & (t <= high)
        if not here.any():
            continue
        t, index = t[here], every[here]
        step = 64 * EPS * np.abs(t) + 1e-290
        left = compiled.run(t - step, t, index)
        right = compiled.run(t, t + step, index)
        at = _value_at(compiled, t, index)
        # At the middles, which are points: width is what rounding leaves there, and nothing that dependency adds.
        l_low, l_high = left.value[0][3], left.value[1][3]
        r_low, r_high = right.value[0][3], right.value[1][3]
        l_mid, r_mid = l_low / 2 + l_high / 2, r_low / 2 + r_high / 2
        least, most = np.minimum(np.minimum(l_mid, r_mid), at), np.maximum(np.maximum(l_mid, r_mid), at)
        for equal, point in compiled.points:  # the rounded solution may not satisfy the equation
            same = np.broadcast_to(point, low.shape)[here] == t
            if same.any():
                at = np.where(same, _value_at(compiled, t, index, equal), at)
                least, most = np.minimum(least, at), np.maximum(most, at)
        # Where another `where` is open the width is that between its branches.
        rounding = np.where(left.rough | right.rough, 0.0, (l_high - l_low) + (r_high - r_low))
        ends = np.abs([*(end[0] for end in left.slope), *(end[0] for end in right.slope)])
        travel, size = ends.max(0), np.maximum(np.abs(least), np.abs(most))
        broken[index] |= ~(most - least <= 2 * rounding + 2 * step * travel + 256 * EPS * size)
        # What rounding hides must be nothing beside the function itself: else nobody knows.
        broken[index] |= ~(rounding <= _HIDDEN * (size + travel * np.maximum(np.abs(t), 1.0)))
    return broken


def _value_at(compiled: Compiled, x: np.ndarray, index: np.ndarray, equal: int | None = None) -> np.ndarray:
    done: dict[int, Any] = {}
    for node in compiled.nodes:
        done[id(node)] = _evaluate_at(node, x, index, [done[id(arg)] for arg in node.args])
        if id(node) == equal:
            done[id(node)] = np.full(x.shape, node.op == "eq")
    return np.broadcast_to(np.asarray(done[id(compiled.nodes[-1])], np.float64), x.shape)


def _evaluate_at(node: Expr, x: np.ndarray, index: np.ndarray, args: list[Any]) -> Any:
    def of(values: Any) -> Any:
        return values[index] if isinstance(values, np.ndarray) and values.ndim else values

    if node.op == "const":
        return of(node.value)
    if node.op == "affine":
        return of(node.affine[0]) * x + of(node.affine[1])
    return evaluate_node(node, x, args)
