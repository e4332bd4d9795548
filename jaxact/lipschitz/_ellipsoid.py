"""Bounds on the Lipschitz constant of a straight-line program by an ellipsoid carried through its steps."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax import lax

from jaxact.lipschitz._norms import UNIT, certified_largest, is_positive, largest_eigenvalue
from jaxact.lipschitz._program import (
    Affine,
    Ball,
    Bounds,
    Box,
    Certificate,
    Dense,
    Diagonal,
    Elementwise,
    Identity,
    Linear,
    Operator,
    Program,
    Region,
    evaluate,
)

try:
    import threadpoolctl
except ImportError:  # comes with scikit-learn
    threadpoolctl = None

_FLOOR = 1e-30  # added to a diagonal of mean 1: a coordinate that nothing moves would make a matrix singular
_LOOKAHEAD = 24  # steps over which the closed form looks for the place where paths meet again
_MATERIALIZE = 2**22  # entries up to which a map known by its products is written out as a matrix
_CENTER_ERROR = 1e-11  # of the values at the centre of a region, relative to the largest of a variable


def bound(
    program: Program,
    *,
    region: Region | None = None,
    num_steps: int = 0,
    seconds: float | None = None,
    tolerance: float | None = None,
    memory_limit: int = 2048,
    learning_rate: float = 0.15,
) -> Certificate:
    """Bound the Lipschitz constant of a program from above, in the Euclidean norm.

    A matrix Q with dv dv^T <= Q |dx|^2 for the difference dv of all variables in use is carried from Q = I on. With
    m, r the centre and half the width of the slopes [alpha, beta] of y = f(z), E the rows of z, and any V > E Q E^T:

        affine        Q' = A Q A^T
        elementwise   X = Q + Q E^T (V - E Q E^T)^{-1} E Q,   Q' = M X M^T + diag(0, r^2 V)   over (v, y), M = (1, m E)
        at the end    K^2 = lambda_max(Q)

    (S-procedure on dy = m dz + e with |e| <= r |dz| and multipliers 1/V.) V is first chosen in closed form: with s =
    lambda_max(E Q E^T), V = s (1 + t / r), where t = ||A Q^1/2|| / (s^1/2 ||W||), A = S + W m E and W the linear parts
    through which the other variables and y reach the place where paths meet again, and t = |m| where they do not part.
    That is never above the product of the norms of a chain, and equals ECLipsE-Fast there (Xu & Sivaranjani 2024,
    theorem 4) for slopes in [0, beta]. `num_steps` of Adam on log V then lower log K; 1/V = sigmoid(v) w /
    lambda_max(w^1/2 Q w^1/2) is feasible whatever v and w are, and at the optimum the bound of a chain is that of
    LipSDP-Neuron (Fazlyab et al. 2019). Runs on the host, in float64.

    Within a region every variable stays within its interval, from interval arithmetic and from |v_i - v_i(x0)| <= R
    sqrt(Q_ii), and slopes are taken over these. As R -> 0 the bound tends to ||J(x0)||_2. A box is first enclosed in
    the ellipsoid sum_i (x_i - x0_i)^2 / (n h_i^2) <= 1 to find intervals.

    An upper bound, proved in floating point: whatever the search found is checked by one pass in which each Q' is
    enlarged until the matrix inequality between it and Q is established. It is, for symmetric M of n rows with
    diagonal D, once the Cholesky factorisation of M - delta D runs to the end for delta >= n gamma / (1 - gamma), gamma
    = (n + 1) u / (1 - (n + 1) u), u = 2^-53 (Demmel 1989; Higham 2002, theorem 10.7). Products of matrices are enlarged
    by n gamma_k diag(g^2), g = |A| diag(Q)^1/2, which holds for any order of summation (Higham, section 3.5). The slack
    comes to 1e-12 a step at width 64. Underflow is not accounted for.

    Where more than `memory_limit` entries are in use at once, each variable goes on with a norm alone: K multiplies in
    a chain and adds where paths meet.

    Args:
        program: from the input, variable 0, to its output.
        region: a `Ball` or `Box` of the shape of the input, flattened or not; None for all inputs.
        num_steps: of refinement; 0 leaves the closed form.
        seconds: stop refining after so long; the steps under way and the final check still follow.
        tolerance: stop refining once 20 steps have lowered log K by less.
        memory_limit: the largest number of rows of Q.
        learning_rate: of Adam at the first step; falls to 0 along a cosine.

    Returns:
        A `Certificate`; `factors` name every step.

    Raises:
        ValueError: a step has no finite slope bounds, a number is not finite, the region's shape is not the input's, or
            an option is out of its range.

    Example:
        >>> import numpy as np
        >>> from jaxact.lipschitz._program import Affine, Dense, Elementwise, Program
        >>> relu = Elementwise(out=2, source=1, slopes=lambda intervals: (0.0, 1.0), size=2)
        >>> layers = [Affine(1, ((0, Dense(np.diag([3.0, 1.0]))),), 2), relu]
        >>> layers.append(Affine(3, ((2, Dense(np.array([[0.0, 1.0]]))),), 1))
        >>> certificate = bound(Program(2, tuple(layers), 3), num_steps=100)
        >>> 1 <= certificate.value < 1.01  # the product of norms is 3
        True
    """
    started = time.perf_counter()
    _check_options(num_steps, seconds, tolerance, memory_limit, learning_rate)
    prepared = _prepare(program, memory_limit)
    with _one_thread(prepared):
        return _bound(prepared, region, num_steps, seconds, tolerance, memory_limit, learning_rate, started)


def _bound(
    prepared, region, num_steps, seconds, tolerance, memory_limit, learning_rate, started
) -> Certificate:
    local = None if region is None else _locate(prepared, region)
    checked = _verify(prepared, local, None)
    history = [checked.log]
    method = "closed form"
    if num_steps > 0 and checked.searchable and checked.log > -math.inf:
        deadline = math.inf if seconds is None else started + seconds
        multipliers, history = _refine(
            prepared, local, checked, num_steps, deadline, tolerance, learning_rate
        )
        method = f"ellipsoid, {len(history) - 1} steps"
        if multipliers is not None:
            refined = _verify(prepared, local, multipliers)
            if refined.log < checked.log:
                checked = refined
    assumptions = ["the slope ranges of the elementwise steps hold"]
    if region is not None:
        assumptions.append(
            f"values at the centre are right to {_CENTER_ERROR:g} of the largest entry of their variable"
        )
        everywhere = _global(prepared)
        if everywhere is not None and everywhere.log < checked.log:
            checked, method = everywhere, "closed form, over all inputs"
    if prepared.by_norms:
        assumptions.append("norms of operators are the bounds that they state")
        method += f", by norms where more than {memory_limit} entries are in use"
    return Certificate(
        value=checked.value,
        log10=checked.log / math.log(10),
        method=method,
        region=region,
        certified=True,
        assumptions=tuple(assumptions),
        factors=checked.factors,
        seconds=time.perf_counter() - started,
        history=tuple(history),
    )


def _one_thread(prepared: _Prepared) -> contextlib.AbstractContextManager:
    """Small factorisations in one thread: on busy cores OpenBLAS waits for its threads, a hundred times as long."""
    rows = max((sum(layout.sizes) for layout in prepared.layouts), default=0)
    if rows > 256 or threadpoolctl is None:
        return contextlib.nullcontext()
    return threadpoolctl.threadpool_limits(limits=1, user_api="blas")


class _Layout(NamedTuple):
    """Where a step finds its variables in Q; hashable: programs are compiled once for each."""

    sizes: tuple[int, ...]  # of the variables in use before, in their order
    sources: tuple[int, ...]  # the positions read
    kept: tuple[int, ...]  # the positions still in use afterwards
    used: bool  # whether the new variable is ever used

    def rows(self, position: int) -> slice:
        start = sum(self.sizes[:position])
        return slice(start, start + self.sizes[position])

    def kept_rows(self) -> np.ndarray:
        ranges = [np.arange(self.rows(p).start, self.rows(p).stop) for p in self.kept]
        return np.concatenate([np.zeros(0, int), *ranges])


@dataclass(frozen=True)
class _Prepared:
    program: Program
    before: tuple[tuple[int, ...], ...]  # the variables in use before each step
    after: tuple[tuple[int, ...], ...]
    layouts: tuple[_Layout, ...]
    dense: tuple[bool, ...]  # whether Q is held as a matrix after each step
    starts_dense: bool
    by_norms: bool
    norms: dict[tuple[int, int], float]  # (step, term) -> norm, found when asked for

    def norm(self, index: int, term: int) -> float:
        if (index, term) not in self.norms:
            value = self.program.steps[index].terms[term][1].norm()
            if not math.isfinite(value):
                raise ValueError(f"Step {_label(self.program, index)} must have a finite norm, got {value}.")
            self.norms[index, term] = value
        return self.norms[index, term]


def _prepare(program: Program, memory_limit: int) -> _Prepared:
    steps = []
    for index, step in enumerate(program.steps):
        if isinstance(step, Affine):
            terms = tuple((source, _host(operator)) for source, operator in step.terms)
            for _, operator in terms:
                entries = getattr(operator, "matrix", getattr(operator, "d", None))
                if entries is not None and not np.isfinite(entries).all():
                    raise ValueError(
                        f"Step {_label(program, index)} must have finite weights, got NaN or inf. "
                        "A diverged network has no Lipschitz bound."
                    )
            step = replace(step, terms=terms)
        steps.append(step)
    program = Program(program.input_size, tuple(steps), program.output)
    after = program.live()
    before = ((0,), *after)[: len(after)]
    layouts, dense = [], []
    for step, ins, outs in zip(program.steps, before, after, strict=True):
        used = step.out in outs
        sources = tuple(ins.index(v) for v in step.sources) if used else ()
        kept = tuple(ins.index(v) for v in outs if v != step.out)
        layouts.append(_Layout(tuple(program.sizes[v] for v in ins), sources, kept, used))
        rows = sum(program.sizes[v] for v in ins) + (step.size if isinstance(step, Elementwise) else 0)
        dense.append(max(rows, sum(program.sizes[v] for v in outs)) <= memory_limit)
    starts_dense = program.input_size <= memory_limit
    by_norms = not (all(dense) and starts_dense)
    return _Prepared(program, before, after, tuple(layouts), tuple(dense), starts_dense, by_norms, {})


def _host(operator: Operator) -> Operator:
    match operator:
        case Dense(matrix):
            return Dense(np.asarray(matrix, np.float64))
        case Diagonal(d):
            return Diagonal(np.asarray(d, np.float64))
        case Linear() if operator.shape[0] * operator.shape[1] <= _MATERIALIZE:
            return _Written(operator.dense(), operator)
    return operator


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class _Written(Dense):
    """A map known by its products, written out, that keeps its own bound on the norm."""

    origin: Linear | None = None

    def norm(self) -> float:
        return super().norm() if self.origin is None else min(super().norm(), self.origin.norm())

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


def _label(program: Program, index: int) -> str:
    step = program.steps[index]
    return step.label or f"{type(step).__name__.lower()} {step.out}"


class _Local(NamedTuple):
    """A region, as the engine uses it."""

    radius: float
    values: Mapping[int, np.ndarray]  # at the centre
    input: Bounds
    known: Mapping[int, Bounds]  # intervals found beforehand


def _locate(prepared: _Prepared, region: Region) -> _Local:
    program = prepared.program
    if isinstance(region, Ball):
        center = region.center.reshape(-1)
        lower, upper = center - region.radius, center + region.radius
        radius = region.radius
    elif isinstance(region, Box):
        lower, upper = region.lower.reshape(-1), region.upper.reshape(-1)
        center = lower / 2 + upper / 2
        radius = float(np.linalg.norm(np.maximum(upper - center, center - lower)))
    else:
        raise ValueError(f"`region` must be a Ball, a Box or None, got {region!r}.")
    if center.size != program.input_size:
        raise ValueError(
            f"`region` must have the input's {program.input_size} entries, got {center.size}. "
            "Give its arrays the shape of one input."
        )
    radius *= 1 + 1e-15 * math.sqrt(program.input_size)
    local = _Local(radius, evaluate(program, center, output_only=False), _outward((lower, upper)), {})
    halfwidths = np.maximum(upper - center, center - lower)
    if isinstance(region, Box) and prepared.starts_dense and np.ptp(halfwidths) > 0:
        scales = halfwidths**2 * (np.count_nonzero(halfwidths) * (1 + 1e-14))
        found = _verify(prepared, local._replace(radius=1.0), None, np.diag(scales))
        local = local._replace(known=found.intervals)
    return local


def _outward(bounds: Bounds) -> Bounds:
    return np.nextafter(bounds[0], -np.inf), np.nextafter(bounds[1], np.inf)


def _intersected(first: Bounds, second: Bounds) -> Bounds:
    return np.maximum(first[0], second[0]), np.minimum(first[1], second[1])


class _Intervals:
    """The intervals of the variables during one pass over the program."""

    def __init__(self, prepared: _Prepared, local: _Local | None):
        self.program = prepared.program
        self.local = local
        infinite = np.full(prepared.program.input_size, np.inf)
        self.found: dict[int, Bounds] = {0: (-infinite, infinite) if local is None else local.input}

    def add(self, index: int, radii: np.ndarray | float | None) -> None:
        """The interval of what step `index` defines; |v - v(x0)| <= radii by the ellipsoid."""
        step = self.program.steps[index]
        if self.local is None:
            infinite = np.full(step.size, np.inf)
            self.found[step.out] = -infinite, infinite
            return
        bounds = self._by_arithmetic(index)
        if (isinstance(step, Affine) or step.is_function) and radii is not None:
            bounds = _intersected(bounds, self.around(step.out, radii))
        if step.out in self.local.known:
            bounds = _intersected(bounds, self.local.known[step.out])
        # Two sound enclosures may miss each other by rounding.
        self.found[step.out] = np.minimum(bounds[0], bounds[1]), np.maximum(bounds[0], bounds[1])

    def around(self, variable: int, radii: np.ndarray | float) -> Bounds:
        center = self.local.values[variable]
        slack = _CENTER_ERROR * np.max(np.abs(center), initial=0.0)
        return _outward((center - radii - slack, center + radii + slack))

    def _by_arithmetic(self, index: int) -> Bounds:
        step = self.program.steps[index]
        infinite = np.full(step.size, np.inf)
        if isinstance(step, Affine):
            center = (
                np.zeros(step.size) if step.offset is None else np.array(step.offset, np.float64).reshape(-1)
            )
            width = np.zeros(step.size)
            magnitude = np.abs(center)
            for source, operator in step.terms:
                lower, upper = self.found[source]
                if not (np.isfinite(lower).all() and np.isfinite(upper).all()):
                    return -infinite, infinite
                middle, half = lower / 2 + upper / 2, upper / 2 - lower / 2
                spread = _absolute_product(operator, np.stack([half, np.abs(middle) + half], 1))
                if spread is None:
                    return -infinite, infinite
                center = center + np.asarray(operator.matmul(middle[:, None]))[:, 0]
                width += spread[:, 0]
                magnitude += spread[:, 1]
            slack = 4 * (sum(self.program.sizes[s] for s, _ in step.terms) + 8) * UNIT * magnitude
            return _outward((center - width - slack, center + width + slack))
        if step.range is not None:
            lower, upper = (
                np.broadcast_to(np.asarray(end, np.float64), (step.size,)) for end in step.range(self.found)
            )
            return lower, upper
        if not step.is_function:
            return -infinite, infinite
        value, center = self.local.values[step.out], self.local.values[step.source]
        alpha, beta = _slopes(self.program, index, self.found)
        lower, upper = self.found[step.source]
        with np.errstate(invalid="ignore"):
            up, down = np.maximum(upper - center, 0), np.maximum(center - lower, 0)
            rise = np.maximum(np.maximum(beta * up, -alpha * down), 0)
            fall = np.maximum(np.maximum(-alpha * up, beta * down), 0)
        rise, fall = (np.where(np.isnan(w), np.inf, w * (1 + 1e-14)) for w in (rise, fall))
        slack = _CENTER_ERROR * np.max(np.abs(value), initial=0.0)
        return _outward((value - fall - slack, value + rise + slack))


def _absolute_product(operator: Operator, X: np.ndarray) -> np.ndarray | None:
    match operator:
        case Identity():
            return X
        case Diagonal(d):
            return np.abs(d)[:, None] * X
        case Dense(matrix):
            return np.abs(matrix) @ X
        case Linear(absolute_fn=fn) if fn is not None:
            with jax.enable_x64(True):
                return np.asarray(jax.vmap(fn, in_axes=1, out_axes=1)(jnp.asarray(X)))
    return None


def _slopes(program: Program, index: int, intervals: Mapping[int, Bounds]) -> Bounds:
    step = program.steps[index]
    with jax.enable_x64(True):
        alpha, beta = (np.asarray(end, np.float64) for end in step.slopes(intervals))
    alpha, beta = (np.broadcast_to(end, (step.size,)) for end in (alpha, beta))
    if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
        raise ValueError(
            f"Step {_label(program, index)} must have bounded slopes, got [{alpha.min()}, {beta.max()}]. "
            "No bound holds for all inputs: pass `region=`."
        )
    if (alpha > beta).any():
        raise ValueError(f"Step {_label(program, index)} must have slopes with lower <= upper.")
    return alpha, beta


def _centered(bounds: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """(m, r) with [m - r, m + r] containing the slopes whatever the rounding; r = 0 where they are one number."""
    alpha, beta = bounds
    m = alpha / 2 + beta / 2
    r = (beta / 2 - alpha / 2) * (1 + 4 * UNIT) + 2 * UNIT * np.maximum(np.abs(alpha), np.abs(beta))
    return m, np.where(alpha == beta, 0.0, r)


class _Multipliers(NamedTuple):
    """1/V = exp(-log) T: of the scale of Q, whose logarithm may be out of range."""

    T: np.ndarray
    log: float


class _Checked(NamedTuple):
    value: float
    log: float
    factors: tuple[tuple[str, float], ...]
    intervals: Mapping[int, Bounds]
    multipliers: Mapping[int, _Multipliers]
    searchable: bool  # whether any multiplier is free


def _global(prepared: _Prepared) -> _Checked | None:
    try:
        return _verify(prepared, None, None)
    except ValueError:
        return None  # bounded in the region only


def _verify(
    prepared: _Prepared,
    local: _Local | None,
    multipliers: Mapping[int, _Multipliers] | None,
    start: np.ndarray | None = None,
) -> _Checked:
    """One pass with every inequality established; multipliers in closed form where none are given."""
    program = prepared.program
    intervals = _Intervals(prepared, local)
    nominal = None if local is None else _nominal_slopes(prepared, local)
    state: _Matrix | _Norms
    if prepared.starts_dense:
        state = _Matrix(np.eye(program.input_size) if start is None else start, 0).normalized()
    else:
        state = _Norms((1.0,), 0)
    factors, used = [], {}
    level = state.log()
    for index, step in enumerate(program.steps):
        layout = prepared.layouts[index]
        if not layout.used:
            continue
        if not prepared.dense[index] and isinstance(state, _Matrix):
            state = state.to_norms(layout)
        elif prepared.dense[index] and isinstance(state, _Norms):
            state = state.to_matrix(layout)
        if isinstance(step, Affine):
            if isinstance(state, _Matrix):
                state = _affine(state, step, layout)
            else:
                state = _affine_norms(state, step, layout, prepared, index)
        else:
            m, r = _centered(_slopes(program, index, intervals.found))
            if isinstance(state, _Norms):
                state = _elementwise_norms(state, layout, m, r)
            else:
                T = np.zeros_like(r)
                if multipliers is not None and index in multipliers:
                    given = multipliers[index]
                    T = np.where(r > 0, given.T * math.exp(state.exponent * math.log(2) - given.log), 0.0)
                if ((r > 0) & (T <= 0)).any():
                    T = np.where((r > 0) & (T <= 0), _closed_form(prepared, index, state.X, m, r, nominal), T)
                exponent = state.exponent
                state, T = _elementwise(state, layout, m, r, T)
                used[index] = _Multipliers(T, exponent * math.log(2))
        if local is not None:
            intervals.add(index, local.radius * state.radii(step.size))
        else:
            intervals.add(index, None)
        reached = state.log()
        if math.isfinite(reached) and math.isfinite(level):
            factors.append((_label(program, index), reached - level))
        level = reached
    value, log = state.norm()
    if factors and math.isfinite(log):
        factors[-1] = (factors[-1][0], factors[-1][1] + log - level)
    free = any((each.T > 0).any() for each in used.values())
    return _Checked(value, log, tuple(factors), intervals.found, used, free)


class _Matrix(NamedTuple):
    """Q = 2^exponent X, exponent even."""

    X: np.ndarray
    exponent: int

    def normalized(self) -> _Matrix:
        mean = np.mean(np.diag(self.X))
        if not np.isfinite(mean):
            raise ValueError(
                "The bound must be finite, got NaN or inf. Look for weights near the largest float."
            )
        if mean == 0:
            return self
        shift = 2 * round(math.log2(mean) / 2)
        return _Matrix(np.ldexp(self.X, -shift), self.exponent + shift)  # a power of 2: exact

    def log(self) -> float:
        """Log K, not proved: for reports."""
        largest = largest_eigenvalue(self.X)
        return 0.5 * (math.log(largest) + self.exponent * math.log(2)) if largest > 0 else -math.inf

    def radii(self, size: int) -> np.ndarray:
        """Sqrt of the last variable's diagonal, rounded up."""
        root = np.sqrt(np.maximum(np.diag(self.X)[-size:], 0)) * (1 + 8 * UNIT)
        with np.errstate(over="ignore"):
            return np.ldexp(root, self.exponent // 2)

    def norm(self) -> tuple[float, float]:
        return _scaled(math.sqrt(certified_largest(self.X)) * (1 + 4 * UNIT), self.exponent // 2)

    def to_norms(self, layout: _Layout) -> _Norms:
        blocks = [self.X[layout.rows(p), layout.rows(p)] for p in range(len(layout.sizes))]
        norms = tuple(math.sqrt(certified_largest(block)) * (1 + 4 * UNIT) for block in blocks)
        return _Norms(norms, self.exponent // 2).normalized()


class _Norms(NamedTuple):
    """||dv|| <= 2^exponent k |dx| for each variable in use."""

    k: tuple[float, ...]
    exponent: int

    def normalized(self) -> _Norms:
        largest = max(self.k)
        if not math.isfinite(largest):
            raise ValueError(
                "The bound must be finite, got NaN or inf. Look for weights near the largest float."
            )
        shift = math.frexp(largest)[1] if largest > 0 else 0
        return _Norms(tuple(math.ldexp(k, -shift) for k in self.k), self.exponent + shift)

    def log(self) -> float:
        total = math.hypot(*self.k)
        return math.log(total) + self.exponent * math.log(2) if total > 0 else -math.inf

    def radii(self, size: int) -> np.ndarray:
        return np.full(size, _scaled(self.k[-1], self.exponent)[0])

    def norm(self) -> tuple[float, float]:
        return _scaled(self.k[-1], self.exponent)

    def to_matrix(self, layout: _Layout) -> _Matrix:
        # With shares p that add up to 1: sum_i |dv_i|^2 p_i / k_i^2 <= 1.
        total = math.fsum(self.k) * (1 + 16 * UNIT)
        squares = [k * total * (1 + 16 * UNIT) for k in self.k]
        diagonal = np.concatenate([np.full(n, s) for n, s in zip(layout.sizes, squares, strict=True)])
        return _Matrix(np.diag(diagonal), 2 * self.exponent).normalized()


def _scaled(k: float, exponent: int) -> tuple[float, float]:
    log = math.log(k) + exponent * math.log(2) if k > 0 else -math.inf
    try:
        value = math.ldexp(k, exponent)
    except OverflowError:
        value = math.inf
    return value, log


def _enlarged(X: np.ndarray, by: np.ndarray) -> np.ndarray:
    X = X / 2 + X.T / 2
    X[np.diag_indices(X.shape[0])] += by
    return X


def _affine(state: _Matrix, step: Affine, layout: _Layout) -> _Matrix:
    X = state.X
    kept = layout.kept_rows()
    position = dict(zip(step.sources, layout.sources, strict=True))
    places = [layout.rows(position[source]) for source, _ in step.terms]
    rows = sum(_product(op, X[place]) for (_, op), place in zip(step.terms, places, strict=True))
    corner = sum(_product(op, rows[:, place].T) for (_, op), place in zip(step.terms, places, strict=True))
    roots = np.sqrt(np.maximum(np.diag(X), 0))
    g = sum(_root_growth(op, roots[place]) for (_, op), place in zip(step.terms, places, strict=True))
    Y = np.empty((kept.size + step.size,) * 2)
    Y[: kept.size, : kept.size] = X[np.ix_(kept, kept)]
    Y[kept.size :, : kept.size] = rows[:, kept]
    Y[: kept.size, kept.size :] = rows[:, kept].T
    Y[kept.size :, kept.size :] = corner
    # |error_ij| <= gamma_2k g_i g_j, hence error <= gamma_2k N diag(g^2); none where an entry is only moved about.
    width = sum(op.shape[1] if isinstance(op, Dense | Linear) else 1 for _, op in step.terms) + len(
        step.terms
    )
    if len(step.terms) == 1 and isinstance(step.terms[0][1], Identity):
        return _Matrix(Y, state.exponent).normalized()
    gamma = 2 * (width + 4) * UNIT * (1 + 1e-6)
    growth = np.concatenate([roots[kept], g])
    slack = gamma * Y.shape[0] * growth**2
    return _Matrix(_enlarged(Y, slack), state.exponent).normalized()


def _product(operator: Operator, X: np.ndarray) -> np.ndarray:
    if isinstance(operator, Linear):
        with jax.enable_x64(True):
            return np.asarray(_apply(operator, jnp.asarray(X)))
    return operator.matmul(X)


@jax.jit
def _apply(operator: Operator, X: Any) -> Any:
    return operator.matmul(X)


def _root_growth(operator: Operator, roots: np.ndarray) -> np.ndarray:
    """|A| sqrt(diag Q), or an upper bound on it."""
    product = _absolute_product(operator, roots[:, None])
    if product is None:
        return np.full(operator.shape[0], operator.norm() * np.linalg.norm(roots) * (1 + 1e-10))
    return product[:, 0] * (1 + 1e-10)


def _affine_norms(state: _Norms, step: Affine, layout: _Layout, prepared: _Prepared, index: int) -> _Norms:
    position = dict(zip(step.sources, layout.sources, strict=True))
    total = 0.0
    for term, (source, _) in enumerate(step.terms):
        total += prepared.norm(index, term) * state.k[position[source]]
    total *= 1 + 4 * len(step.terms) * UNIT
    return _Norms((*(state.k[p] for p in layout.kept), total), state.exponent).normalized()


def _elementwise_norms(state: _Norms, layout: _Layout, m: np.ndarray, r: np.ndarray) -> _Norms:
    largest = float(np.max(np.abs(m) + r)) * (1 + 4 * UNIT)
    k = largest * state.k[layout.sources[0]] * (1 + 2 * UNIT)
    return _Norms((*(state.k[p] for p in layout.kept), k), state.exponent).normalized()


def _elementwise(
    state: _Matrix, layout: _Layout, m: np.ndarray, r: np.ndarray, T: np.ndarray
) -> tuple[_Matrix, np.ndarray]:
    X, z = state.X, layout.rows(layout.sources[0])
    kept = layout.kept_rows()
    if not X.any():
        return _Matrix(np.zeros((kept.size + m.size,) * 2), state.exponent), T
    # Rows that matter: those kept, and those of the source that m does not silence.
    n, k = m.size, kept.size
    at, heard = np.arange(z.start, z.stop), np.flatnonzero(m)
    rows = np.concatenate([kept, at[heard]])
    XP = X[np.ix_(rows, rows)]
    if (T > 0).any():
        XP, T = _inflated(X, XP, rows, at, T)
    scale = np.concatenate([np.ones(k), m[heard]])
    places = np.concatenate([np.arange(k), k + heard])
    Y = np.zeros((k + n,) * 2)
    Y[np.ix_(places, places)] = scale[:, None] * XP * scale
    active = T > 0
    noise = np.zeros(n)
    noise[active] = r[active] ** 2 / T[active]
    slack = 8 * (k + n) * UNIT * np.abs(np.diag(Y))
    slack[k:] += noise * (1 + 8 * UNIT)
    return _Matrix(_enlarged(Y, slack), state.exponent).normalized(), T


def _inflated(
    X: np.ndarray, XP: np.ndarray, rows: np.ndarray, at: np.ndarray, T: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """X + X E^T (V - E X E^T)^{-1} E X on `rows`, enlarged until proved; and 1/V, reduced where V was infeasible."""
    N = rows.size
    back_off, slack = 0.0, 4 * (N + at.size) ** 2 * UNIT
    for attempt in range(60):
        active = np.flatnonzero(T > 0)
        root = np.sqrt(T[active])
        source = at[active]
        B = -root[:, None] * X[np.ix_(source, source)] * root
        B[np.diag_indices(active.size)] += 1
        C = X[np.ix_(source, rows)]
        try:
            factor = np.linalg.cholesky(B)
        except np.linalg.LinAlgError:
            back_off = max(4 * back_off, 1e-12)
            T = T * (1 - min(back_off, 0.5))
            continue
        half = scipy.linalg.solve_triangular(factor, root[:, None] * C, lower=True, check_finite=False)
        added = half.T @ half
        added = added / 2 + added.T / 2
        added[np.diag_indices(N)] += slack * (np.diag(added) + np.diag(XP)) + _FLOOR
        # In units of V: [[D, C^T root], [root C, 1 - root X root]] >= 0 has the same Schur complement.
        M = np.empty((N + active.size,) * 2)
        M[:N, :N] = added
        M[N:, :N] = root[:, None] * C
        M[:N, N:] = M[N:, :N].T
        M[N:, N:] = B
        # The scaling by root rounds, by at most 4 u sqrt(X_ii X_jj) a entry: taken off the diagonal of the lower block.
        size = (root**2 * np.diag(X)[source]) * (8 * (active.size + N) * UNIT)
        M[N + np.arange(active.size), N + np.arange(active.size)] -= size
        M[np.arange(N), np.arange(N)] -= 8 * (active.size + N) * UNIT * np.diag(XP)
        if (np.diag(M) > 0).all() and is_positive(M):
            total = XP + added
            return _enlarged(total, 4 * N * UNIT * np.diag(total)), T
        slack *= 4
        if attempt % 8 == 7:
            back_off = max(8 * back_off, 1e-10)
            T = T * (1 - min(back_off, 0.5))
            slack /= 4**6
    raise ArithmeticError("The inequality of an elementwise step could not be established in float64.")


def _nominal_slopes(prepared: _Prepared, local: _Local) -> dict[int, np.ndarray]:
    """Middles of the slopes by intervals alone: what the closed form expects of steps not yet reached."""
    intervals = _Intervals(prepared, local)
    middles = {}
    for index, step in enumerate(prepared.program.steps):
        if isinstance(step, Elementwise):
            try:
                alpha, beta = _slopes(prepared.program, index, intervals.found)
                middles[index] = alpha / 2 + beta / 2
            except ValueError:
                middles[index] = np.ones(step.size)
        intervals.add(index, None)
    return middles


def _closed_form(
    prepared: _Prepared,
    index: int,
    X: np.ndarray,
    m: np.ndarray,
    r: np.ndarray,
    nominal: Mapping[int, np.ndarray] | None,
) -> np.ndarray:
    """1/V = 1 / (s (1 + t / r)); 0 where r = 0."""
    layout = prepared.layouts[index]
    z = layout.rows(layout.sources[0])
    active = r > 0
    T = np.zeros_like(r)
    if not active.any():
        return T
    s = max(largest_eigenvalue(X[z, z][np.ix_(active, active)]), _FLOOR)
    if layout.kept:
        t = np.full(r.shape, _meeting_ratio(prepared, index, X, m, r, s, nominal))
    else:
        t = np.abs(m)
    t = np.maximum(t, 1e-10 * r)
    T[active] = r[active] / (s * (r[active] + t[active]))
    return T


def _meeting_ratio(
    prepared: _Prepared,
    index: int,
    X: np.ndarray,
    m: np.ndarray,
    r: np.ndarray,
    s: float,
    nominal: Mapping[int, np.ndarray] | None,
) -> float:
    """||A Q^1/2|| / (s^1/2 ||W||) at the place where paths meet again, steps on the way replaced by their middles."""
    program, layout = prepared.program, prepared.layouts[index]
    step = program.steps[index]
    N, active = X.shape[0], np.flatnonzero(r > 0)
    maps = {}
    for position, variable in enumerate(prepared.before[index]):
        block = np.zeros((program.sizes[variable], N + active.size))
        block[:, layout.rows(position)] = np.eye(program.sizes[variable])
        maps[variable] = block
    z = maps[step.source]
    y = m[:, None] * z
    y[active, N + np.arange(active.size)] = 1
    maps[step.out] = y
    last = index
    for ahead in range(index + 1, min(index + 1 + _LOOKAHEAD, len(program.steps))):
        if len(prepared.after[last]) == 1:
            break
        following = program.steps[ahead]
        last = ahead
        if not prepared.layouts[ahead].used:
            continue
        if isinstance(following, Affine):
            maps[following.out] = sum(_product(op, maps[source]) for source, op in following.terms)
        else:
            middle = nominal[ahead] if nominal is not None else None
            if middle is None:
                infinite = {v: (np.full(k, -np.inf), np.full(k, np.inf)) for v, k in program.sizes.items()}
                alpha, beta = _slopes(program, ahead, infinite)
                middle = alpha / 2 + beta / 2
            maps[following.out] = middle[:, None] * maps[following.source]
    joined = np.concatenate([maps[v] for v in prepared.after[last]])
    A, W = joined[:, :N], joined[:, N:]
    carried = math.sqrt(max(largest_eigenvalue(A @ X @ A.T), 0.0))
    noise = math.sqrt(max(largest_eigenvalue(W.T @ W if W.shape[0] > W.shape[1] else W @ W.T), 0.0))
    if noise == 0 or carried == 0:
        return 1.0
    return min(carried / (math.sqrt(s) * noise), 1e12)


class _Trace(NamedTuple):
    """What one forward pass of the search keeps for the way back."""

    inputs: list[Any]
    extras: list[Any]
    log: float
    pull: Any
    multipliers: dict[int, _Multipliers]


def _refine(
    prepared: _Prepared,
    local: _Local | None,
    checked: _Checked,
    num_steps: int,
    deadline: float,
    tolerance: float | None,
    learning_rate: float,
) -> tuple[dict[int, _Multipliers] | None, list[float]]:
    """Adam on log-multipliers over a tape of compiled steps: what is compiled does not grow with depth."""
    with jax.enable_x64(True):
        search = _Search(prepared, local)
        parameters = search.parameters(checked.multipliers)
        first, second = np.zeros_like(parameters), np.zeros_like(parameters)
        history, best, found = [], math.inf, None
        for number in range(1, num_steps + 2):
            # A smooth mean of the eigenvalues first, the largest in the end: at the optimum many are equal.
            power = 2 * 250 ** (number / (num_steps + 1))
            trace = search.forward(parameters, power)
            if not math.isfinite(trace.log):
                break
            history.append(trace.log)
            if trace.log < best:
                best, found = trace.log, trace.multipliers
            stalled = tolerance is not None and number > 20 and history[-21] - min(history[-20:]) < tolerance
            if number > num_steps or stalled or time.perf_counter() > deadline:
                break
            gradient = search.backward(trace)
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            step = first / (1 - 0.9**number) / (np.sqrt(second / (1 - 0.999**number)) + 1e-12)
            rate = learning_rate * 0.5 * (1 + math.cos(math.pi * (number - 1) / num_steps))
            parameters = parameters - rate * step
    return found, history or [checked.log]


class _Search:
    """The program as a tape: forward keeps every Q, backward pulls the gradient through one step at a time."""

    def __init__(self, prepared: _Prepared, local: _Local | None):
        self.prepared, self.local = prepared, local
        self.steps = prepared.program.steps
        self.operators: dict[int, Any] = {}
        for index, step in enumerate(self.steps):
            if not isinstance(step, Affine) or not prepared.layouts[index].used:
                continue
            if prepared.dense[index]:
                self.operators[index] = jax.tree.map(jnp.asarray, tuple(op for _, op in step.terms))
            else:
                norms = [prepared.norm(index, term) for term in range(len(step.terms))]
                self.operators[index] = jnp.log(jnp.asarray(norms))
        # For each term the position of its source among the variables in use.
        self.terms = {
            index: tuple(prepared.before[index].index(source) for source, _ in step.terms)
            for index, step in enumerate(self.steps)
            if index in self.operators and isinstance(step, Affine)
        }
        self.slices: dict[int, slice] = {}
        if local is None:
            infinite = _Intervals(prepared, None)
            for index in range(len(self.steps)):
                infinite.add(index, None)
            self.fixed = {
                index: _centered(_slopes(prepared.program, index, infinite.found))
                for index, step in enumerate(self.steps)
                if isinstance(step, Elementwise) and prepared.layouts[index].used
            }

    def parameters(self, multipliers: Mapping[int, _Multipliers]) -> np.ndarray:
        """Where the search starts: log w for every neuron of a step, and the logit v."""
        parts, start = [], 0
        self.start = multipliers
        for index, (T, _) in multipliers.items():
            if not (T > 0).any() and self.local is None:
                continue
            typical = np.exp(np.mean(np.log(T[T > 0]))) if (T > 0).any() else 1.0
            parts.append(np.concatenate([np.log(np.where(T > 0, T, typical)), [np.nan]]))
            self.slices[index] = slice(start, start + parts[-1].size)
            start += parts[-1].size
        return np.concatenate(parts)

    def forward(self, parameters: np.ndarray, power: float) -> _Trace:
        prepared, local = self.prepared, self.local
        program = prepared.program
        intervals = _Intervals(prepared, local)
        if prepared.starts_dense:
            state = (jnp.eye(program.input_size), jnp.zeros(()))
        else:
            state = (jnp.zeros(1), jnp.zeros(()))
        dense = prepared.starts_dense
        inputs, extras, used = [], [], {}
        for index, step in enumerate(self.steps):
            layout = prepared.layouts[index]
            if not layout.used:
                continue
            if dense != prepared.dense[index]:
                function = _to_norms if dense else _to_matrix
                inputs.append((function, layout, state, ()))
                extras.append(None)
                state = _forward(function, layout, state, ())
                dense = prepared.dense[index]
            if isinstance(step, Affine):
                terms = layout._replace(sources=self.terms[index])
                function = _affine_step if dense else _affine_norms_step
                arguments = (self.operators[index],)
                inputs.append((function, terms, state, arguments))
                extras.append(None)
                state = _forward(function, terms, state, arguments)
            elif not dense:
                m, r = (
                    self.fixed[index]
                    if local is None
                    else _centered(_slopes(program, index, intervals.found))
                )
                inputs.append(
                    (_elementwise_norms_step, layout, state, (np.log(np.max(np.abs(m) + r) + 1e-300),))
                )
                extras.append(None)
                state = _forward(*inputs[-1])
            else:
                slopes = self._slopes(index, intervals, state, layout)
                where = self.slices.get(index)
                own = np.zeros(step.size + 1) if where is None else parameters[where]
                if np.isnan(own[-1]):
                    own[:-1] += (
                        float(state[1]) - self.start[index].log
                    )  # from the scale of Q there to the one here
                arguments, T = self._arguments(own, slopes, state, layout)
                if where is not None:
                    parameters[where] = np.asarray(arguments[0])
                used[index] = _Multipliers(np.asarray(T), float(state[1]))
                inputs.append((_elementwise_step, layout, state, arguments))
                extras.append(where)
                state = _forward(*inputs[-1])
            if local is None:
                continue
            intervals.add(index, local.radius * np.asarray(_radii(state, step.size, dense)))
        log, pull = _last(dense, state, power)
        return _Trace(inputs, extras, float(log), pull, used)

    def _arguments(self, own: np.ndarray, slopes: tuple, state: Any, layout: _Layout) -> tuple[tuple, Any]:
        own, vector, T = _scaled_multipliers(layout, state[0], own, slopes[1] > 0)
        return (own, *slopes, vector), T

    def _slopes(self, index: int, intervals: _Intervals, state: Any, layout: _Layout) -> tuple:
        """(m, r, dm, dr, radii, R): slopes and, by a difference, how they change with the radius of the interval."""
        step = self.steps[index]
        if self.local is None:
            m, r = self.fixed[index]
            zero = np.zeros(step.size)
            return m, r, zero, zero, zero, 0.0
        program, R = self.prepared.program, self.local.radius
        m, r = _centered(_slopes(program, index, intervals.found))
        z = layout.rows(layout.sources[0])
        radii = R * np.exp(0.5 * float(state[1])) * np.sqrt(np.maximum(np.diag(np.asarray(state[0]))[z], 0))
        dm, dr = np.zeros(step.size), np.zeros(step.size)
        definition = program.order[step.source]
        function = (
            definition < 0 or isinstance(self.steps[definition], Affine) or self.steps[definition].is_function
        )
        if function:
            change = 1e-4 * radii + 1e-300
            lower, upper = intervals.found[step.source]
            narrow = intervals.around(step.source, radii)
            moved = (
                np.where(narrow[0] <= lower + 1e-2 * change, lower - change, lower),
                np.where(narrow[1] >= upper - 1e-2 * change, upper + change, upper),
            )
            wider = _centered(_slopes(program, index, {**intervals.found, step.source: moved}))
            dm, dr = (np.where(radii > 0, (w - v) / change, 0.0) for w, v in zip(wider, (m, r), strict=True))
            # A jump of the slope is no derivative.
            steep = np.abs(dm) + np.abs(dr) > 1e2 * (np.abs(m) + r) / np.maximum(radii, 1e-300)
            dm, dr = np.where(steep, 0.0, dm), np.where(steep | (r == 0), 0.0, dr)
        return m, r, dm, dr, radii, R

    def backward(self, trace: _Trace) -> np.ndarray:
        size = max(where.stop for where in self.slices.values())
        gradient = np.zeros(size)
        pulled = trace.pull
        for (function, layout, state, arguments), where in zip(
            reversed(trace.inputs), reversed(trace.extras), strict=True
        ):
            if where is None:
                pulled = _backward(function, layout, state, arguments, pulled)
            else:
                pulled, own = _backward_own(function, layout, state, arguments, pulled)
                gradient[where] = np.asarray(own)
        return np.where(np.isfinite(gradient), gradient, 0.0)


@partial(jax.jit, static_argnums=(0, 1))
def _forward(function, layout, state, arguments):
    return function(layout, state, *arguments)


@partial(jax.jit, static_argnums=(0, 1))
def _backward(function, layout, state, arguments, cotangent):
    return jax.vjp(lambda state: function(layout, state, *arguments), state)[1](cotangent)[0]


@partial(jax.jit, static_argnums=(0, 1))
def _backward_own(function, layout, state, arguments, cotangent):
    def with_own(state, own):
        return function(layout, state, own, *arguments[1:])

    return jax.vjp(with_own, state, arguments[0])[1](cotangent)


def _normalized(Y: Any, log: Any) -> tuple[Any, Any]:
    mean = jnp.trace(Y) / Y.shape[0]
    mean = jnp.where(mean > 0, mean, 1.0)
    return Y / mean, log + jnp.log(mean)


def _affine_step(layout: _Layout, state: Any, operators: tuple) -> Any:
    X, log = state
    kept = layout.kept_rows()
    places = [layout.rows(position) for position in layout.sources]
    rows = sum(op.matmul(X[place]) for op, place in zip(operators, places, strict=True))
    corner = sum(op.matmul(rows[:, place].T) for op, place in zip(operators, places, strict=True))
    if kept.size:
        side = rows[:, kept]
        corner = jnp.block([[X[np.ix_(kept, kept)], side.T], [side, corner]])
    return _normalized((corner + corner.T) / 2, log)


def _source_block(layout: _Layout, X: Any, own: Any, mask: Any) -> tuple[Any, Any]:
    """w^1/2 and w^1/2 Q_z w^1/2."""
    root = jnp.where(mask, jnp.exp(0.5 * own[:-1]), 0.0)
    z = layout.rows(layout.sources[0])
    return root, root[:, None] * X[z, z] * root


@partial(jax.jit, static_argnums=0)
def _scaled_multipliers(layout: _Layout, X: Any, own: Any, mask: Any) -> tuple[Any, Any, Any]:
    """The leading eigenvector of w^1/2 Q_z w^1/2, and 1/V; a logit of NaN becomes the one that leaves 1/V = w."""
    root, B = _source_block(layout, X, own, mask)
    values, vectors = jnp.linalg.eigh(B)
    largest = jnp.maximum(values[-1], _FLOOR)
    share = jnp.clip(largest, 1e-12, 1 - 1e-9)
    logit = jnp.where(jnp.isnan(own[-1]), jnp.log(share) - jnp.log1p(-share), own[-1])
    own = jnp.concatenate([jnp.clip(own[:-1], -300, 300), logit[None]])
    return own, vectors[:, -1], jax.nn.sigmoid(logit) * root**2 / largest


def _elementwise_step(
    layout: _Layout, state: Any, own: Any, m: Any, r: Any, dm: Any, dr: Any, radii: Any, R: Any, vector: Any
) -> Any:
    X, log = state
    z = layout.rows(layout.sources[0])
    diagonal = jnp.diagonal(X)[z]
    now = R * jnp.exp(0.5 * log) * jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    change = jnp.where(diagonal > 0, now - radii, 0.0)
    active = r > 0
    m = m + dm * change
    r = jnp.where(active, r + dr * change, 0.0)
    root, B = _source_block(layout, X, own, active)
    # The eigenvector may be held fixed: its change has no effect to first order.
    largest = jnp.maximum(vector @ B @ vector, _FLOOR)
    share = jax.nn.sigmoid(own[-1]) / largest
    kept = layout.kept_rows()
    rows = np.concatenate([kept, np.arange(z.start, z.stop)])
    factor = jnp.linalg.cholesky(jnp.eye(B.shape[0]) - share * B)
    C = jnp.sqrt(share) * root[:, None] * X[z][:, rows]
    half = lax.linalg.triangular_solve(factor, C, left_side=True, lower=True)
    inflated = X[np.ix_(rows, rows)] + half.T @ half
    scale = jnp.concatenate([jnp.ones(kept.size), m])
    noise = jnp.where(active, jnp.square(r) / jnp.where(active, share * jnp.square(root), 1.0), 0.0)
    Y = scale[:, None] * inflated * scale
    Y = Y + jnp.diag(jnp.concatenate([jnp.zeros(kept.size), noise]))
    return _normalized((Y + Y.T) / 2, log)


@partial(jax.jit, static_argnums=0)
def _last(dense: bool, state: Any, power: Any) -> tuple[Any, Any]:
    """log K, and the gradient of the smoother log (sum_i lambda_i^p)^(1/2p), with respect to the last state."""
    first, log = state
    if not dense:
        return first[-1], (jnp.zeros_like(first).at[-1].set(1.0), jnp.zeros(()))
    values, vectors = jnp.linalg.eigh(first)
    shares = jnp.maximum(values, 0.0) / jnp.maximum(values[-1], _FLOOR)
    weights = shares**power / jnp.sum(shares**power)
    pull = 0.5 * (vectors * (weights / jnp.maximum(values, _FLOOR))) @ vectors.T
    return 0.5 * (jnp.log(values[-1]) + log), (pull, jnp.full((), 0.5))


def _to_norms(layout: _Layout, state: Any) -> Any:
    X, log = state
    norms = []
    for position in range(len(layout.sizes)):
        block = X[layout.rows(position), layout.rows(position)]
        leading = jnp.linalg.eigh(lax.stop_gradient(block))[1][:, -1]
        norms.append(0.5 * (jnp.log(jnp.maximum(leading @ block @ leading, _FLOOR)) + log))
    return jnp.stack(norms), jnp.zeros(())


def _to_matrix(layout: _Layout, state: Any) -> Any:
    norms, _ = state
    total = jax.nn.logsumexp(norms)
    squares = norms + total
    top = jnp.max(squares)
    diagonal = jnp.concatenate([jnp.full(n, jnp.exp(squares[i] - top)) for i, n in enumerate(layout.sizes)])
    return _normalized(jnp.diag(diagonal), top)


def _affine_norms_step(layout: _Layout, state: Any, log_norms: Any) -> Any:
    norms, zero = state
    total = jax.nn.logsumexp(log_norms + norms[np.array(layout.sources)])
    return jnp.concatenate([norms[np.array(layout.kept, int)], total[None]]), zero


def _elementwise_norms_step(layout: _Layout, state: Any, log_slope: Any) -> Any:
    norms, zero = state
    return jnp.concatenate(
        [norms[np.array(layout.kept, int)], norms[layout.sources[0]][None] + log_slope]
    ), zero


@partial(jax.jit, static_argnums=(1, 2))
def _radii(state: Any, size: int, dense: bool) -> Any:
    first, log = state
    if not dense:
        return jnp.full(size, jnp.exp(first[-1]))
    return jnp.exp(0.5 * log) * jnp.sqrt(jnp.maximum(jnp.diagonal(first)[-size:], 0.0))


def _check_options(num_steps, seconds, tolerance, memory_limit, learning_rate) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"`num_steps` must be an integer >= 0, got {num_steps!r}. Use 100 to begin with.")
    if seconds is not None and not seconds >= 0:
        raise ValueError(f"`seconds` must be >= 0 or None, got {seconds}. Leave it out for no limit.")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"`tolerance` must be >= 0 or None, got {tolerance}. Use 1e-3 to begin with.")
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, int) or memory_limit < 1:
        raise ValueError(
            f"`memory_limit` must be an integer >= 1, got {memory_limit!r}. It counts rows of Q."
        )
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"`learning_rate` must be positive, got {learning_rate}. Use 0.15 to begin with.")
