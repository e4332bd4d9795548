"""Enclosures of a formula's value, slope and second derivative over panels.

Over a panel [a, b] every node of the formula carries intervals for its value V, its slope D and its second derivative
C, from the exact ranges of each primitive and of its derivatives; where C (or D) keeps its sign, D (or V) is monotone
and lies between its values at a and b, else the mean-value form D(mid) + C [-h, h] cuts down what interval arithmetic
overestimates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int8

from jaxact.trace._curves import COMPARE, LOGIC, SPECIAL, UNARY
from jaxact.trace._expr import Expr, nodes, num_entries
from jaxact.trace._intervals import (
    EPS,
    HALF_PI,
    Interval,
    curve_range,
    meet,
    outward,
    plus,
    power_range,
    scaled,
    times,
    wave_range,
)

_MOST_BRANCHES = 5  # kinks within kinks that are solved for: each doubles their number


class Jet(NamedTuple):
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


class Key:
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
        return isinstance(other, Key) and self.parts == other.parts


def key_of(expr: Expr) -> Key:
    if expr.key is None:
        expr.key = Key(expr)
    return expr.key


@dataclass(frozen=True, eq=False)
class Compiled:
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
        return cut_panels(a, b, index, pieces) if pieces > 1 else (a, b, index)

    def run(self, a: np.ndarray, b: np.ndarray, index: np.ndarray) -> Jet:
        """Enclose the formula on panels [a, b] of the entries `index`."""
        middle = a + (b - a) / 2
        # Ends are widened: switches a x + b = c are known to rounding only.
        slack_a, slack_b = 4 * EPS * np.abs(a), 4 * EPS * np.abs(b)
        low = np.stack([a - slack_a, a - slack_a, b - slack_b, middle])
        high = np.stack([b + slack_b, a + slack_a, b + slack_b, middle])
        half = np.maximum(middle - low[0], high[0] - middle) * (1 + 4 * EPS)
        here = _Panels(a, b, index, (low, high), half)
        done: dict[int, Any] = {}
        undefined: dict[int, Any] = {}
        for node in self.nodes:
            args = [done[id(arg)] for arg in node.args]
            made = self._step(node, args, here)
            undefined[id(node)] = _leaves_domain(node, args) | sum(undefined[id(arg)] for arg in node.args)
            if node.op in COMPARE and np.any(
                undefined[id(node)]
            ):  # NaN, whatever its bounds say, is not larger
                made = _Truth(np.where(undefined[id(node)], np.int8(-1), made.state), made.rough)
            done[id(node)] = made
        return done[id(self.nodes[-1])]

    def _step(self, node: Expr, args: list[Any], here: _Panels) -> Any:
        op, shape = node.op, here.x[0].shape
        zero = np.zeros(shape)
        smooth = np.zeros(shape[1], bool)
        if op == "var":
            one = np.ones(shape)
            return Jet(here.x, (one, one), (zero, zero), smooth)
        if op == "const":
            c = np.broadcast_to(here.of(node.value), shape)
            if node.is_bool:
                return _Truth(c.astype(np.int8), smooth)
            return Jet((c, c), (zero, zero), (zero, zero), smooth)
        if op == "affine":
            a, b = (here.of(c) for c in node.affine)
            slope = np.broadcast_to(a, shape)
            value = plus(scaled(a, here.x), (np.asarray(b), np.asarray(b)))
            return Jet(value, (slope, slope), (zero, zero), smooth)
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
            nothing = Jet((zero, zero), (zero, zero), (zero, zero), smooth)
            positive = here.decided(self.cuts[id(node)], lambda rows: _compared("ge", [u, nothing], rows))
            flipped = Jet(scaled(-1.0, u.value), scaled(-1.0, u.slope), scaled(-1.0, u.bend), u.rough)
            return self._chosen("maximum", positive, u, flipped, here)
        if op == "select_n":
            which, no, yes = args
            return self._chosen("select_n", which.state, yes, no, here, which.rough)
        if op in ("sign", "floor", "ceil", "round", "fraction"):
            return self._stairs(node, args[0], here)
        return here.refined(self._smooth(node, args))

    def _smooth(self, node: Expr, args: list[Jet]) -> Jet:
        op = node.op
        if op == "add":
            u, v = args
            return Jet(
                plus(u.value, v.value), plus(u.slope, v.slope), plus(u.bend, v.bend), u.rough | v.rough
            )
        if op == "mul":
            u, v = args
            if node.args[0].is_constant:
                c = u.value[0]
                return Jet(scaled(c, v.value), scaled(c, v.slope), scaled(c, v.bend), v.rough)
            cross = scaled(2.0, times(u.slope, v.slope))
            return Jet(
                times(u.value, v.value),
                plus(times(u.slope, v.value), times(u.value, v.slope)),
                plus(plus(times(u.bend, v.value), times(u.value, v.bend)), cross),
                u.rough | v.rough,
            )
        (u,) = args
        if op == "integer_pow":
            n = node.param
            value = power_range(u.value, n)
            slope = scaled(float(n), power_range(u.value, n - 1))
            bend = scaled(float(n * (n - 1)), power_range(u.value, n - 2))
        elif op == "pow":
            y = node.param
            base = (np.maximum(u.value[0], 0.0), u.value[1])
            value = curve_range(lambda t: np.power(t, y), (), base, 16)
            slope = curve_range(lambda t: y * np.power(t, y - 1), (), base, 16)
            bend = curve_range(lambda t: y * (y - 1) * np.power(t, y - 2), (), base, 16)
        elif op in ("sin", "cos"):
            phase = 0.0 if op == "sin" else HALF_PI
            value = wave_range(u.value, phase)
            slope = wave_range(u.value, HALF_PI)
            bend = scaled(-1.0, value)
            if op == "cos":
                slope = scaled(-1.0, wave_range(u.value, 0.0))
        else:
            curve = UNARY[op]
            at = (np.clip(u.value[0], curve.least, curve.most), np.clip(u.value[1], curve.least, curve.most))
            outside = (u.value[1] < curve.least) | (u.value[0] > curve.most)
            at = (at[0], np.where(outside, np.nan, at[1]))
            value = curve_range(curve.fn, curve.turns, at, reach=curve.reach)
            slope = curve_range(curve.slope, curve.slope_turns, at, reach=curve.reach)
            bend = curve_range(curve.bend, curve.bend_turns, at, reach=curve.reach)
            if op == "cbrt":
                across = (at[0] <= 0) & (at[1] >= 0)
                bend = (np.where(across, -np.inf, bend[0]), np.where(across, np.inf, bend[1]))
        square = power_range(u.slope, 2)
        return Jet(value, times(slope, u.slope), plus(times(bend, square), times(slope, u.bend)), u.rough)

    def _chosen(
        self, op: str, state: np.ndarray, yes: Jet, no: Jet, here: _Panels, rough: Any = False
    ) -> Jet:
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
        return here.refined(Jet(value, slope, bend, from_args))

    def _stairs(self, node: Expr, u: Jet, here: _Panels) -> Jet:
        fn = SPECIAL[node.op]
        low, high = fn(u.value[0]), fn(u.value[1])
        if node.op == "sign" and self.cuts[id(node)] is not None:
            nothing = Jet((low * 0, low * 0), u.slope, u.bend, u.rough)
            state = here.decided(self.cuts[id(node)], lambda rows: _compared("ge", [u, nothing], rows))
            low = np.where(state == 1, 1.0, np.where(state == 0, -1.0, low))
            high = np.where(state == 1, 1.0, np.where(state == 0, -1.0, high))
        zero = np.zeros_like(low)
        if node.op == "fraction":  # of one period
            first, last = np.floor(u.value[0]), np.floor(u.value[1])
            same = first == last
            ends = np.where(same, low, 0.0), np.where(same, high, 1.0)
            return Jet(outward(*ends, 2), u.slope, u.bend, u.rough | ~same[0])
        return Jet((low, high), (zero, zero), (zero, zero), u.rough | (low[0] != high[0]))


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

    def refined(self, jet: Jet) -> Jet:
        """Narrow the panel's value by its slope, and its slope by its second derivative."""
        trusted = ~jet.rough
        slope = self._narrow(jet.slope, jet.bend, trusted)
        return jet._replace(value=self._narrow(jet.value, slope, trusted), slope=slope)

    def _narrow(self, of: Interval, rate: Interval, trusted: np.ndarray) -> Interval:
        low, high = of
        monotone = trusted & ((rate[0][0] >= 0) | (rate[1][0] <= 0))
        ends = np.minimum(low[1], low[2]), np.maximum(high[1], high[2])
        panel = meet((low[0], high[0]), ends, monotone)
        spread = np.maximum(np.abs(rate[0][0]), np.abs(rate[1][0])) * self.half
        form = outward(low[3] - spread, high[3] + spread, 2)
        panel = meet(panel, form, trusted & ~monotone)
        return np.concatenate([panel[0][None], low[1:]]), np.concatenate([panel[1][None], high[1:]])


def _leaves_domain(node: Expr, args: Sequence[Any]) -> Any:
    """Whether the argument of a function may be where that is NaN, on each panel."""
    if node.op == "pow":
        return args[0].value[0][0] < 0
    curve = UNARY.get(node.op)
    if curve is None or not (np.isfinite(curve.least) or np.isfinite(curve.most)):
        return False
    return (args[0].value[0][0] < curve.least) | (args[0].value[1][0] > curve.most)


def _compared(op: str, args: Sequence[Jet], rows: Any) -> np.ndarray:
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


def compile_formula(expr: Expr) -> Compiled:
    """A formula ready to be enclosed on panels, remembered by its structure.

    Args:
        expr: of one variable.
    """
    return compiled_key(key_of(expr))


@lru_cache(maxsize=512)
def compiled_key(key: Key) -> Compiled:
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
    return Compiled(order, num_entries(key.expr), cuts, _distinct(switches), _distinct(jumps), points)


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


def _solve(node: Expr, value: Any, branches: int = _MOST_BRANCHES) -> list[Any] | None:
    """Every x where node(x) crosses `value`, NaN for none; None if that is not known."""
    value = np.asarray(value, np.float64)
    if node.affine is not None:
        return _root(node.affine[0], node.affine[1], value)
    if node.op == "abs":
        positive = np.where(value >= 0, value, np.nan)
        return _both(branches, (node.args[0], positive), (node.args[0], -positive))
    if node.op in ("maximum", "minimum") and node.args[1].is_constant:
        bound = np.asarray(node.args[1].value)
        beyond = value >= bound if node.op == "maximum" else value <= bound
        return _solve(node.args[0], np.where(beyond, value, np.nan), branches)
    if node.op == "mul" and node.args[0].is_constant:
        with np.errstate(all="ignore"):
            return _solve(node.args[1], value / np.asarray(node.args[0].value), branches)
    if node.op == "add" and node.args[1].is_constant:
        return _solve(node.args[0], value - node.args[1].value, branches)
    if node.op == "add" and node.args[0].is_constant:
        return _solve(node.args[1], value - node.args[0].value, branches)
    if node.op == "mul" and (value == 0).all():
        return _both(branches, *((arg, 0.0) for arg in node.args))
    if node.op == "integer_pow" and node.param == 2:
        with np.errstate(invalid="ignore"):
            root = np.sqrt(value)  # NaN where there is none
        return _both(branches, (node.args[0], root), (node.args[0], -root))
    if node.op == "integer_pow" and node.param == 3:
        return _solve(node.args[0], np.cbrt(value), branches)
    if node.op in _EXACT and (value == _EXACT[node.op][1]).all():
        return _solve(node.args[0], _EXACT[node.op][0], branches)
    return None  # an inverse such as atanh would lose digits


#: of monotone functions: (x, f(x)), both exact
_EXACT = {
    **dict.fromkeys(("expm1", "log1p", "tanh", "sinh", "erf", "atan", "asinh", "cbrt"), (0.0, 0.0)),
    "exp": (0.0, 1.0),
    "log": (1.0, 0.0),
    "sqrt": (0.0, 0.0),
    "logistic": (0.0, 0.5),
}


def _both(branches: int, *parts: tuple[Expr, Any]) -> list[Any] | None:
    """Of two equations all solutions; None if one is not solved, or kinks lie too deep within kinks."""
    found = [_solve(node, value, branches - 1) for node, value in parts] if branches else [None]
    return None if None in found else [point for part in found for point in part or ()]


def cut_panels(a: np.ndarray, b: np.ndarray, index: np.ndarray, pieces: int):
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
