"""Sound ranges of the slope and value of a formula, over an interval or the whole line.

Over a panel [a, b] every node of the formula carries intervals for its value V, its slope D and its second derivative
C, from the exact ranges of each primitive and of its derivatives; where C (or D) keeps its sign, D (or V) is monotone
and lies between its values at a and b, else the mean-value form D(mid) + C [-h, h] cuts down what interval arithmetic
overestimates. Panels that decide the bound are split until outer bound and attained slopes agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int8

from jaxact.lipschitz._curves import COMPARE, LOGIC, SPECIAL, UNARY
from jaxact.lipschitz._formula import (
    Expr,
    evaluate_node,
    nodes,
    num_entries,
    outer,
    reindex,
)

#: Slopes over the whole line are proved for inputs up to here, the largest that float32 (and bfloat16) can hold.
LARGEST = 2.0**128
_TAIL = 2.0**64  # slopes that still grow from here on are taken for unbounded
_HIDDEN = 1e-10  # a jump below it is not looked for, relative to values, or to slopes times inputs
_STEEP = 1e30  # and so are slopes beyond this
_EPS = 2.0**-52
_TINY, _MOST = 5e-324, np.finfo(np.float64).max
_HALF_PI = math.pi / 2
_OCTAVES = np.outer([-1.0, 1.0], 2.0 ** np.concatenate([np.arange(-4.0, 8), np.arange(8.0, 129, 8)])).ravel()

Interval: TypeAlias = tuple[np.ndarray, np.ndarray]


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
    >>> from jaxact.lipschitz._formula import from_function
    >>> found = slope_range(from_function(lambda x: x * jax.nn.sigmoid(x)))
    >>> print(f"{found.lower:.6f} {found.upper:.6f}")
    -0.099839 1.099839
    """
    if lower is None or upper is None:
        return _whole_line(_key(expr), 1e-8 if tolerance is None else tolerance)
    lower, upper = np.broadcast_arrays(np.asarray(lower, np.float64), np.asarray(upper, np.float64))
    if not (np.isfinite(lower) & np.isfinite(upper)).any():
        whole = _whole_line(_key(expr), 1e-8)
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
            tails = _search(compiled, low, high, 1e-3, rounds=20, edges=_OCTAVES, tails=True)
            found = SlopeRange(
                np.where(beyond, tails.lower, found.lower), np.where(beyond, tails.upper, found.upper)
            )
    return SlopeRange(found.lower.reshape(shape), found.upper.reshape(shape))


def value_range(expr: Expr, lower: Any, upper: Any) -> Interval:
    """Bound f over intervals [size] from outside; ends may be infinite."""
    lower, upper = np.broadcast_arrays(np.asarray(lower, np.float64), np.asarray(upper, np.float64))
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


def compile_formula(expr: Expr) -> _Compiled:
    """A formula ready to be enclosed on panels, remembered by its structure."""
    return _compiled(_key(expr))


def centered(
    lower: Float[np.ndarray, "*shape"], upper: Float[np.ndarray, "*shape"]
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """(m, r) with [m - r, m + r] containing [lower, upper] whatever the rounding; r = 0 where they are one number."""
    m = lower / 2 + upper / 2
    r = np.maximum(upper - m, m - lower)  # each rounded relative to itself
    r *= 1 + 2 * _EPS
    return m, r


# --- Interval arithmetic: every result encloses, after widening by a few ulp ------------------------------------------


def _outward(low: Any, high: Any, ulps: float = 2) -> Interval:
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    low, high = np.minimum(low, _MOST), np.maximum(high, -_MOST)  # what overflows is at least so large
    low = low - np.abs(low) * (ulps * _EPS)
    high = high + np.abs(high) * (ulps * _EPS)
    # NaN: nothing is known
    return np.where(low == low, low, -np.inf), np.where(high == high, high, np.inf)


def _plus(a: Interval, b: Interval) -> Interval:
    return _outward(a[0] + b[0], a[1] + b[1], 1)


def _scaled(c: Any, a: Interval) -> Interval:
    """The interval A times numbers c."""
    low, high = c * a[0], c * a[1]
    low, high = np.where(c == 0, 0.0, low), np.where(c == 0, 0.0, high)
    return _outward(np.minimum(low, high), np.maximum(low, high), 1)


def _times(a: Interval, b: Interval) -> Interval:
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
    low, high = _outward(low, high, 1)
    zero = (low == 0) | (high == 0)
    if zero.any():  # a product may have underflowed
        exact = ((a[0] == 0) & (a[1] == 0)) | ((b[0] == 0) & (b[1] == 0))
        positive = ((a[0] >= 0) & (b[0] >= 0)) | ((a[1] <= 0) & (b[1] <= 0))
        negative = ((a[0] >= 0) & (b[1] <= 0)) | ((a[1] <= 0) & (b[0] >= 0))
        low = np.where((low == 0) & ~positive & ~exact, -_TINY, low)
        high = np.where((high == 0) & ~negative & ~exact, _TINY, high)
    return low, high


def _meet(a: Interval, b: Interval, where: np.ndarray) -> Interval:
    return np.where(where, np.maximum(a[0], b[0]), a[0]), np.where(where, np.minimum(a[1], b[1]), a[1])


def _curve_range(fn: Callable, turns: tuple[float, ...], a: Interval, ulps: float = 8) -> Interval:
    """Range of a function that is monotone between its turns."""
    first, last = fn(a[0]), fn(a[1])
    low, high = np.minimum(first, last), np.maximum(first, last)
    for turn in turns:
        inside = (a[0] < turn) & (turn < a[1])
        if inside.any():
            at = fn(np.float64(turn))
            low, high = (
                np.where(inside, np.minimum(low, at), low),
                np.where(inside, np.maximum(high, at), high),
            )
    low, high = _outward(low, high, ulps)
    low = np.where(low == 0, -_TINY, low)
    return low, np.where(high == 0, _TINY, high)


def _power_range(a: Interval, n: int) -> Interval:
    if n == 0:
        return np.ones_like(a[0]), np.ones_like(a[1])
    if n == 1:
        return a
    if n < 0:
        low, high = _power_range(a, -n)
        below, above = 1 / high, 1 / low
        touches = (low <= 0) & (high >= 0)
        below = np.where(touches & (low < 0), -np.inf, below)
        above = np.where(touches & (high > 0), np.inf, above)
        below = np.where(touches & (low == 0) & (high == 0), -np.inf, below)
        above = np.where(touches & (low < 0) & (high == 0), 1 / low, above)
        below = np.where(touches & (low < 0) & (high == 0), -np.inf, below)
        return _outward(below, above, 2)
    first, last = a[0] ** n, a[1] ** n
    low, high = np.minimum(first, last), np.maximum(first, last)
    if n % 2 == 0:
        low = np.where((a[0] <= 0) & (a[1] >= 0), 0.0, low)
    low, high = _outward(low, high, 4)
    return low, np.where((high == 0) & ((a[0] != 0) | (a[1] != 0)), _TINY, high)


def _wave_range(a: Interval, phase: float) -> Interval:
    """Range of sin(x + phase); phase a multiple of pi / 2."""
    values = [np.sin(a[0]), np.sin(a[1])] if phase == 0 else [np.cos(a[0]), np.cos(a[1])]
    low, high = _outward(np.minimum(*values), np.maximum(*values), 8)
    slack = 1e-12 * (1 + np.abs(a[0]) + np.abs(a[1]))  # the positions of the crests are rounded
    for level, crest in ((1.0, _HALF_PI - phase), (-1.0, -_HALF_PI - phase)):
        next_crest = crest + 2 * math.pi * np.ceil((a[0] - slack - crest) / (2 * math.pi))
        inside = ~(next_crest > a[1] + slack) | (slack > 0.1)
        low, high = (
            np.where(inside, np.minimum(low, level), low),
            np.where(inside, np.maximum(high, level), high),
        )
    return np.maximum(low, -1.0), np.minimum(high, 1.0)


# --- Jets over panels -------------------------------------------------------------------------------------------------


class _Jet(NamedTuple):
    """Enclosures of value, slope, second derivative: rows are the panel, its left end, its right end, its middle.

    Attributes:
        value: each end [4, panels].
        slope: likewise; at the panel's ends the one-sided slope.
        bend: likewise.
        rough: [panels] a `where` may switch inside, so that a jump is possible.
    """

    value: Interval
    slope: Interval
    bend: Interval
    rough: np.ndarray


class _Truth(NamedTuple):
    """A predicate: 1 true, 0 false, -1 not decided; [4, panels]."""

    state: np.ndarray
    rough: np.ndarray


class _Key:
    """Hashes a formula by its structure, for caches that outlive its nodes."""

    def __init__(self, expr: Expr):
        self.expr = expr
        place: dict[int, int] = {}
        parts = []
        for index, node in enumerate(nodes(expr)):
            place[id(node)] = index
            parts.append((node.op, node.param, node.is_bool, tuple(place[id(arg)] for arg in node.args)))
        self.parts = tuple(parts)
        self._hash = hash(self.parts)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.parts == other.parts


def _key(expr: Expr) -> _Key:
    if expr.key is None:
        expr.key = _Key(expr)
    return expr.key


@dataclass(frozen=True, eq=False)
class _Compiled:
    nodes: list[Expr]
    size: int | None
    cuts: dict[int, list[Any] | None]  # node -> where its kink or predicate switches; None: not solved
    switches: list[Any]  # all of them
    jumps: list[Any]  # those of predicates and signs
    points: list[tuple[int, Any]]  # of eq and ne: the node and where it holds

    def panels(
        self, low: np.ndarray, high: np.ndarray, pieces: int = 1, edges: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cut each interval at the switches (and at `edges`, or into pieces): ends, and whose panel it is."""
        size = low.size
        columns = [low[:, None], high[:, None]]
        columns += [
            np.broadcast_to(np.asarray(t, np.float64).reshape(-1, 1), (size, 1)) for t in self.switches
        ]
        columns.append(np.zeros((size, 1)))
        if edges is not None:
            columns.append(np.broadcast_to(edges, (size, edges.size)))
        grid = np.concatenate(columns, 1)
        grid = np.where(grid == grid, grid, low[:, None])
        grid = np.sort(np.clip(grid, low[:, None], high[:, None]), 1)
        a, b = grid[:, :-1], grid[:, 1:]
        index = np.broadcast_to(np.arange(size)[:, None], a.shape)
        keep = a < b
        single = ~keep.any(1)
        keep = keep.copy()
        keep[single, 0] = True
        a, b, index = a[keep], b[keep], index[keep]
        return _split(a, b, index, pieces) if pieces > 1 else (a, b, index)

    def run(self, a: np.ndarray, b: np.ndarray, index: np.ndarray) -> _Jet:
        """Enclose the formula on panels [a, b] of the entries `index`."""
        middle = a + (b - a) / 2
        # Ends are widened: switches a x + b = c are known to rounding only.
        slack_a, slack_b = 4 * _EPS * np.abs(a), 4 * _EPS * np.abs(b)
        low = np.stack([a - slack_a, a - slack_a, b - slack_b, middle])
        high = np.stack([b + slack_b, a + slack_a, b + slack_b, middle])
        half = np.maximum(middle - low[0], high[0] - middle) * (1 + 4 * _EPS)
        here = _Panels(a, b, index, (low, high), half)
        done: dict[int, Any] = {}
        for node in self.nodes:
            done[id(node)] = self._step(node, [done[id(arg)] for arg in node.args], here)
        return done[id(self.nodes[-1])]

    def _step(self, node: Expr, args: list[Any], here: _Panels) -> Any:
        op, shape = node.op, here.x[0].shape
        zero = np.zeros(shape)
        smooth = np.zeros(shape[1], bool)
        if op == "var":
            one = np.ones(shape)
            return _Jet(here.x, (one, one), (zero, zero), smooth)
        if op == "const":
            c = np.broadcast_to(here.of(node.value), shape)
            if node.is_bool:
                return _Truth(c.astype(np.int8), smooth)
            return _Jet((c, c), (zero, zero), (zero, zero), smooth)
        if op == "affine":
            a, b = (here.of(c) for c in node.affine)
            slope = np.broadcast_to(a, shape)
            value = _plus(_scaled(a, here.x), (np.asarray(b), np.asarray(b)))
            return _Jet(value, (slope, slope), (zero, zero), smooth)
        if op in COMPARE:
            state = here.decided(self.cuts[id(node)], lambda rows: _compared(op, args, rows))
            return _Truth(state, args[0].rough | args[1].rough)
        if op in LOGIC:
            rough = smooth
            for arg in args:
                rough = rough | arg.rough
            return _Truth(_combined(op, [arg.state for arg in args]), rough)
        if op in ("maximum", "minimum"):
            greater = here.decided(self.cuts[id(node)], lambda rows: _compared("ge", args, rows))
            first = greater if op == "maximum" else np.where(greater < 0, greater, 1 - greater)
            return self._chosen(op, first, args[0], args[1], here)
        if op == "abs":
            (u,) = args
            nothing = _Jet((zero, zero), (zero, zero), (zero, zero), smooth)
            positive = here.decided(self.cuts[id(node)], lambda rows: _compared("ge", [u, nothing], rows))
            flipped = _Jet(_scaled(-1.0, u.value), _scaled(-1.0, u.slope), _scaled(-1.0, u.bend), u.rough)
            return self._chosen("maximum", positive, u, flipped, here)
        if op == "select_n":
            which, no, yes = args
            return self._chosen("select_n", which.state, yes, no, here, which.rough)
        if op in ("sign", "floor", "ceil", "round"):
            return self._stairs(node, args[0], here)
        return here.refined(self._smooth(node, args))

    def _smooth(self, node: Expr, args: list[_Jet]) -> _Jet:
        op = node.op
        if op == "add":
            u, v = args
            return _Jet(
                _plus(u.value, v.value), _plus(u.slope, v.slope), _plus(u.bend, v.bend), u.rough | v.rough
            )
        if op == "mul":
            u, v = args
            if node.args[0].is_constant:
                c = u.value[0]
                return _Jet(_scaled(c, v.value), _scaled(c, v.slope), _scaled(c, v.bend), v.rough)
            cross = _scaled(2.0, _times(u.slope, v.slope))
            return _Jet(
                _times(u.value, v.value),
                _plus(_times(u.slope, v.value), _times(u.value, v.slope)),
                _plus(_plus(_times(u.bend, v.value), _times(u.value, v.bend)), cross),
                u.rough | v.rough,
            )
        (u,) = args
        if op == "integer_pow":
            n = node.param
            value = _power_range(u.value, n)
            slope = _scaled(float(n), _power_range(u.value, n - 1))
            bend = _scaled(float(n * (n - 1)), _power_range(u.value, n - 2))
        elif op == "pow":
            y = node.param
            base = (np.maximum(u.value[0], 0.0), u.value[1])
            value = _curve_range(lambda t: np.power(t, y), (), base, 16)
            slope = _curve_range(lambda t: y * np.power(t, y - 1), (), base, 16)
            bend = _curve_range(lambda t: y * (y - 1) * np.power(t, y - 2), (), base, 16)
        elif op in ("sin", "cos"):
            phase = 0.0 if op == "sin" else _HALF_PI
            value = _wave_range(u.value, phase)
            slope = _wave_range(u.value, _HALF_PI)
            bend = _scaled(-1.0, value)
            if op == "cos":
                slope = _scaled(-1.0, _wave_range(u.value, 0.0))
        else:
            curve = UNARY[op]
            at = (np.maximum(u.value[0], curve.least), u.value[1])
            at = (at[0], np.where(at[1] < at[0], np.nan, at[1]))  # outside the domain
            value = _curve_range(curve.fn, curve.turns, at)
            slope = _curve_range(curve.slope, curve.slope_turns, at)
            bend = _curve_range(curve.bend, curve.bend_turns, at)
            if op == "cbrt":
                across = (at[0] <= 0) & (at[1] >= 0)
                bend = (np.where(across, -np.inf, bend[0]), np.where(across, np.inf, bend[1]))
        square = _power_range(u.slope, 2)
        return _Jet(
            value, _times(slope, u.slope), _plus(_times(bend, square), _times(slope, u.bend)), u.rough
        )

    def _chosen(
        self, op: str, state: np.ndarray, yes: _Jet, no: _Jet, here: _Panels, rough: Any = False
    ) -> _Jet:
        """`yes` where the state is 1, `no` where it is 0, both where it is open."""
        first, second = state == 1, state == 0

        def pick(s: Interval, t: Interval) -> Interval:
            low = np.where(first, s[0], np.where(second, t[0], np.minimum(s[0], t[0])))
            return low, np.where(first, s[1], np.where(second, t[1], np.maximum(s[1], t[1])))

        value, slope, bend = (pick(s, t) for s, t in zip(yes[:3], no[:3], strict=True))
        open_ = state < 0
        bend = np.where(open_, -np.inf, bend[0]), np.where(open_, np.inf, bend[1])
        from_args = np.where(first[0], yes.rough, np.where(second[0], no.rough, yes.rough | no.rough))
        if op == "maximum":  # continuous whichever is the larger
            value = np.where(open_, np.maximum(yes.value[0], no.value[0]), value[0]), value[1]
        elif op == "minimum":
            value = value[0], np.where(open_, np.minimum(yes.value[1], no.value[1]), value[1])
        else:
            from_args = from_args | open_[0] | np.where(open_[0], rough, False)
        return here.refined(_Jet(value, slope, bend, from_args))

    def _stairs(self, node: Expr, u: _Jet, here: _Panels) -> _Jet:
        fn = SPECIAL[node.op]
        low, high = fn(u.value[0]), fn(u.value[1])
        if node.op == "sign" and self.cuts[id(node)] is not None:
            nothing = _Jet((low * 0, low * 0), u.slope, u.bend, u.rough)
            state = here.decided(self.cuts[id(node)], lambda rows: _compared("ge", [u, nothing], rows))
            low = np.where(state == 1, 1.0, np.where(state == 0, -1.0, low))
            high = np.where(state == 1, 1.0, np.where(state == 0, -1.0, high))
        zero = np.zeros_like(low)
        return _Jet((low, high), (zero, zero), (zero, zero), u.rough | (low[0] != high[0]))


@dataclass(frozen=True, eq=False)
class _Panels:
    a: np.ndarray
    b: np.ndarray
    index: np.ndarray
    x: Interval
    half: np.ndarray

    def of(self, values: Any) -> Any:
        """The constant of each panel's entry."""
        return values[self.index] if isinstance(values, np.ndarray) and values.ndim else values

    def decided(
        self, cuts: list[Any] | None, compare: Callable[[Any], np.ndarray]
    ) -> Int8[np.ndarray, "4 panels"]:
        """Truth on the panel, given to its ends as well: there, slopes are one-sided limits from inside."""
        state = compare(slice(None))
        if cuts is not None:
            # The truth changes at the cuts alone: without one inside, the middle speaks for the panel.
            inside = np.zeros(self.a.shape, bool)
            for cut in cuts:
                t = self.of(cut)
                inside = inside | ((self.a < t) & (t < self.b))
            panel = np.where(inside | (self.a == self.b), state[0], state[3])
        else:
            panel = state[0]
        return np.where(panel >= 0, panel, state).astype(np.int8)

    def refined(self, jet: _Jet) -> _Jet:
        """Narrow the panel's value by its slope, and its slope by its second derivative."""
        trusted = ~jet.rough
        slope = self._narrow(jet.slope, jet.bend, trusted)
        return jet._replace(value=self._narrow(jet.value, slope, trusted), slope=slope)

    def _narrow(self, of: Interval, rate: Interval, trusted: np.ndarray) -> Interval:
        low, high = of
        monotone = trusted & ((rate[0][0] >= 0) | (rate[1][0] <= 0))
        ends = np.minimum(low[1], low[2]), np.maximum(high[1], high[2])
        panel = _meet((low[0], high[0]), ends, monotone)
        spread = np.maximum(np.abs(rate[0][0]), np.abs(rate[1][0])) * self.half
        form = _outward(low[3] - spread, high[3] + spread, 2)
        panel = _meet(panel, form, trusted & ~monotone)
        return np.concatenate([panel[0][None], low[1:]]), np.concatenate([panel[1][None], high[1:]])


def _compared(op: str, args: Sequence[_Jet], rows: Any) -> np.ndarray:
    (u_low, u_high), (v_low, v_high) = args[0].value, args[1].value
    if op in ("eq", "ne"):
        same = (u_low == u_high) & (v_low == v_high) & (u_low == v_low)
        apart = (u_high < v_low) | (v_high < u_low)
        yes, no = (same, apart) if op == "eq" else (apart, same)
    elif op in ("gt", "le"):
        yes, no = u_low > v_high, u_high <= v_low
        yes, no = (yes, no) if op == "gt" else (no, yes)
    else:
        yes, no = u_low >= v_high, u_high < v_low
        yes, no = (yes, no) if op == "ge" else (no, yes)
    return np.where(yes, 1, np.where(no, 0, -1)).astype(np.int8)


def _combined(op: str, states: list[np.ndarray]) -> np.ndarray:
    if op == "not":
        return np.where(states[0] < 0, -1, 1 - states[0]).astype(np.int8)
    s, t = states
    if op == "and":
        result = np.where((s == 0) | (t == 0), 0, np.where((s == 1) & (t == 1), 1, -1))
    elif op == "or":
        result = np.where((s == 1) | (t == 1), 1, np.where((s == 0) & (t == 0), 0, -1))
    else:
        result = np.where((s < 0) | (t < 0), -1, s ^ t)
    return result.astype(np.int8)


@lru_cache(maxsize=512)
def _compiled(key: _Key) -> _Compiled:
    order = nodes(key.expr)
    cuts: dict[int, list[Any] | None] = {}
    switches: list[Any] = []
    jumps: list[Any] = []
    points: list[tuple[int, Any]] = []
    for node in order:
        if node.op in ("abs", "sign"):
            found = _solve(node.args[0], 0.0)
        elif node.op in ("maximum", "minimum") or node.op in COMPARE:
            found = _solve_equal(*node.args)
        else:
            continue
        cuts[id(node)] = found
        switches += found or []
        if node.op == "sign" or node.op in COMPARE:
            jumps += found or []
        if node.op in ("eq", "ne"):
            points += [(id(node), np.asarray(cut, np.float64)) for cut in found or []]
    return _Compiled(order, num_entries(key.expr), cuts, _distinct(switches), _distinct(jumps), points)


def _distinct(points: list[Any]) -> list[Any]:
    kept: dict[Any, Any] = {}
    for point in points:
        point = np.asarray(point, np.float64)
        kept[point.tobytes()] = point
    return list(kept.values())


def _solve_equal(u: Expr, v: Expr) -> list[Any] | None:
    if v.is_constant:
        return _solve(u, v.value)
    if u.is_constant:
        return _solve(v, u.value)
    if u.affine is not None and v.affine is not None:
        return _root(u.affine[0] - v.affine[0], u.affine[1] - v.affine[1], 0.0)
    return None


def _root(a: Any, b: Any, value: Any) -> list[Any]:
    with np.errstate(all="ignore"):
        t = (np.asarray(value) - b) / np.asarray(a, np.float64)
    return [np.where(np.isfinite(t), t, np.nan)]


def _solve(node: Expr, value: Any) -> list[Any] | None:
    """Every x where node(x) crosses `value`, NaN for none; None if that is not known."""
    value = np.asarray(value, np.float64)
    if node.affine is not None:
        return _root(node.affine[0], node.affine[1], value)
    if node.op == "abs":
        positive = np.where(value >= 0, value, np.nan)
        return _both(_solve(node.args[0], positive), _solve(node.args[0], -positive))
    if node.op in ("maximum", "minimum") and node.args[1].is_constant:
        bound = np.asarray(node.args[1].value)
        beyond = value >= bound if node.op == "maximum" else value <= bound
        return _solve(node.args[0], np.where(beyond, value, np.nan))
    if node.op == "mul" and node.args[0].is_constant:
        with np.errstate(all="ignore"):
            return _solve(node.args[1], value / np.asarray(node.args[0].value))
    if node.op == "add" and node.args[1].is_constant:
        return _solve(node.args[0], value - node.args[1].value)
    if node.op == "add" and node.args[0].is_constant:
        return _solve(node.args[1], value - node.args[0].value)
    if node.op == "mul" and (value == 0).all():
        return _both(*(_solve(arg, 0.0) for arg in node.args))
    if node.op == "integer_pow" and node.param == 2:
        with np.errstate(invalid="ignore"):
            root = np.sqrt(value)  # NaN where there is none
        return _both(_solve(node.args[0], root), _solve(node.args[0], -root))
    if node.op == "integer_pow" and node.param == 3:
        return _solve(node.args[0], np.cbrt(value))
    if node.op in _EXACT and (value == _EXACT[node.op][1]).all():
        return _solve(node.args[0], _EXACT[node.op][0])
    return None  # an inverse such as atanh would lose digits


#: of monotone functions: (x, f(x)), both exact
_EXACT = {
    **dict.fromkeys(("expm1", "log1p", "tanh", "sinh", "erf", "atan", "asinh", "cbrt"), (0.0, 0.0)),
    "exp": (0.0, 1.0),
    "log": (1.0, 0.0),
    "sqrt": (0.0, 0.0),
    "logistic": (0.0, 0.5),
}


def _both(s: list[Any] | None, t: list[Any] | None) -> list[Any] | None:
    return None if s is None or t is None else s + t


# --- Branch and bound -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _whole_line(key: _Key, tolerance: float) -> SlopeRange:
    compiled = _compiled(key)
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
        ranges = [_whole_line(_key(each), tolerance) for each in pair]
        if np.isfinite(ranges).all():
            ends = [s * t for s in ranges[0] for t in ranges[1]]
            return SlopeRange(*_outward(np.min(ends), np.max(ends)))
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


def _split(a: np.ndarray, b: np.ndarray, index: np.ndarray, pieces: int):
    share = np.arange(pieces + 1) / pieces
    grid = a[:, None] + (b - a)[:, None] * share
    # Panels that span many octaves are split geometrically.
    wide = (a > 0) & (b > 4 * a) | (b < 0) & (a < 4 * b)
    if wide.any():
        ratio = np.where(wide, b / np.where(wide, a, 1.0), 1.0)
        grid = np.where(wide[:, None], a[:, None] * ratio[:, None] ** share, grid)
    grid[:, 0], grid[:, -1] = a, b
    grid = np.maximum.accumulate(np.clip(grid, a[:, None], b[:, None]), 1)
    left, right = grid[:, :-1], grid[:, 1:]
    owner = np.broadcast_to(index[:, None], left.shape)
    keep = left < right
    keep[:, 0] |= a == b
    return left[keep], right[keep], owner[keep]


def _search(
    compiled: _Compiled,
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
        narrow = b - a <= 16 * _EPS * np.maximum(np.abs(a), np.abs(b)) + 1e-45
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
        a, b, index = _split(a[split], b[split], index[split], pieces)
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
    return SlopeRange(*_outward(outer_low, outer_high, 8))


def _agrees(jet: _Jet, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether a panel a few ulp wide, inside which a `where` switches, leaves no room for a jump."""
    low, high = jet.value[0][0], jet.value[1][0]
    size = np.maximum(np.abs(low), np.abs(high))
    steepest = np.maximum(np.abs(jet.slope[0][0]), np.abs(jet.slope[1][0]))
    length = b - a + 8 * _EPS * np.maximum(np.abs(a), np.abs(b))
    return high - low <= 256 * _EPS * size + 4 * steepest * length


def find_jumps(compiled: _Compiled, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether the value jumps at a solved switch: limits from both sides against the value itself."""
    broken = np.zeros(low.size, bool)
    every = np.arange(low.size)
    for cut in compiled.jumps:
        t = np.broadcast_to(cut, low.shape)
        here = (low <= t) & (t <= high)
        if not here.any():
            continue
        t, index = t[here], every[here]
        step = 64 * _EPS * np.abs(t) + 1e-290
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
        broken[index] |= ~(most - least <= 2 * rounding + 2 * step * travel + 256 * _EPS * size)
        # What rounding hides must be nothing beside the function itself: else nobody knows.
        broken[index] |= ~(rounding <= _HIDDEN * (size + travel * np.maximum(np.abs(t), 1.0)))
    return broken


def _value_at(compiled: _Compiled, x: np.ndarray, index: np.ndarray, equal: int | None = None) -> np.ndarray:
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
