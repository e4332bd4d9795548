"""Bounds on the Lipschitz constant of a straight-line program by an ellipsoid carried through its steps."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from jaxact.lipschitz._layout import (
    FLOOR,
    VALUE_ERROR,
    Intervals,
    Layout,
    Local,
    Multipliers,
    Prepared,
    absolute_product,
    center_errors,
    label,
    operator_norm,
    outward,
    prepare,
    slopes_of,
    stretch_of,
)
from jaxact.lipschitz._norms import UNIT, certified_largest, is_positive, largest_eigenvalue, one_thread
from jaxact.lipschitz._program import Ball, Box, Certificate, Region
from jaxact.lipschitz._search import refine
from jaxact.trace import (
    Affine,
    Bounds,
    Contraction,
    Dense,
    Elementwise,
    Identity,
    Linear,
    Operator,
    Program,
    centered,
    evaluate,
)

_LITTLE = 0.1  # of log K
# Of a diagonal of mean 1: what is smaller may be the remains of an underflow, and is taken for as much as this.
_FAINT = 1e-280
_LOOKAHEAD = 24  # steps over which the closed form looks for the place where paths meet again
_KNOWN = 1e-6  # of the widest range of slopes
_NOTHING = 1e-6  # of the noise of an elementwise step: what is carried past it counts as none


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
    through which the other variables and y reach the place where paths meet again, in a chain the next affine step:
    sqrt lambda_max(Q') <= ||A Q^1/2|| + r s^1/2 ||W|| there, never above the product of the norms. With t = |m| it
    would be ECLipsE-Fast (Xu & Sivaranjani 2024, theorem 4), which lies above it by a factor 1.6 over 8 layers and 5
    over 30 of He-scaled weights; t = |m| where a region leaves some slopes all but known. `num_steps` of Adam on log V
    then lower log K; 1/V = sigmoid(v) w / lambda_max(w^1/2 Q w^1/2) is feasible whatever v and w are, and at the
    optimum the bound of a chain is that of LipSDP-Neuron (Fazlyab et al. 2019). Runs on the host, in float64.

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
        seconds: stop refining after so long, over the region and all inputs together; the steps under way and the final
            check still follow.
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
        >>>         >>> relu = Elementwise(out=2, source=1, slopes=lambda intervals: (0.0, 1.0), size=2)
        >>> layers = [Affine(1, ((0, Dense(np.diag([3.0, 1.0]))),), 2), relu]
        >>> layers.append(Affine(3, ((2, Dense(np.array([[0.0, 1.0]]))),), 1))
        >>> certificate = bound(Program(2, tuple(layers), 3), num_steps=100)
        >>> 1 <= certificate.value < 1.01  # the product of norms is 3
        True
    """
    started = time.perf_counter()
    _check_options(num_steps, seconds, tolerance, memory_limit, learning_rate)
    prepared = prepare(program, memory_limit)
    with one_thread(max((sum(layout.sizes) for layout in prepared.layouts), default=0)):
        return _bound(prepared, region, num_steps, seconds, tolerance, memory_limit, learning_rate, started)


def _bound(
    prepared, region, num_steps, seconds, tolerance, memory_limit, learning_rate, started
) -> Certificate:
    deadline = math.inf if seconds is None else started + seconds
    search = functools.partial(
        _searched,
        prepared,
        num_steps=num_steps,
        deadline=deadline,
        tolerance=tolerance,
        learning_rate=learning_rate,
    )
    local = None if region is None else _locate(prepared, region)
    is_global = region is None
    checked, history, method = search(local, _verify(prepared, local, None))
    assumptions = ["the slope ranges of the elementwise steps hold"]
    if region is not None:
        if any(isinstance(step, Elementwise) and step.range is None for step in prepared.program.steps):
            assumptions.append(f"the values of elementwise steps are right to {VALUE_ERROR:g} of the largest")
        # What holds everywhere holds there as well, and intervals of a large region may be worth nothing. With the
        # best multipliers the region's bound is never the larger one: its slopes lie within those over all inputs, so
        # that q' = (y - a'z)(b'z - y) >= 0 implies q >= 0, hence q - t q' >= 0 for some t >= 0 (S-lemma), and t T
        # proves there what T proves everywhere. So all inputs are searched only where the region's bound fell short, or
        # may have: where intervals told so little that the closed form is all but that of all inputs.
        limit = checked.log
        if num_steps > 0 and time.perf_counter() < deadline:
            limit = max(limit, history[0] + _LITTLE)
        everywhere = _global(prepared, limit)
        if everywhere is not None:
            other, its_history, its_method = search(None, everywhere)
            if other.log < checked.log:
                checked, history, method = other, its_history, f"{its_method}, over all inputs"
                is_global = True
    if prepared.by_norms:
        assumptions.append("norms of operators are the bounds that they state")
        method += f", by norms where more than {memory_limit} entries are in use"
    return Certificate(
        value=checked.value,
        log=checked.log,
        method=method,
        region=region,
        certified=True,
        assumptions=tuple(assumptions),
        factors=checked.factors,
        sizes=checked.sizes,
        by_norms_beyond=memory_limit if prepared.by_norms else None,
        is_global=is_global,
        seconds=time.perf_counter() - started,
        history=tuple(history),
    )


def _searched(
    prepared: Prepared,
    local: Local | None,
    checked: _Checked,
    num_steps: int,
    deadline: float,
    tolerance: float | None,
    learning_rate: float,
) -> tuple[_Checked, list[float], str]:
    """The closed form, or what the search makes of it where that is proved to be lower."""
    if num_steps == 0 or not checked.searchable or checked.log == -math.inf:
        return checked, [checked.log], "closed form"
    multipliers, history = refine(
        prepared, local, checked.multipliers, num_steps, deadline, tolerance, learning_rate
    )
    if multipliers is not None:
        try:
            refined = _verify(prepared, local, multipliers)
        except ArithmeticError:  # what the search found cannot be proved: the closed form stands
            return checked, history, "closed form"
        if refined.log < checked.log:
            checked = refined
    return checked, history, f"ellipsoid, {len(history) - 1} steps"


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


def _locate(prepared: Prepared, region: Region) -> Local:
    program = prepared.program
    if isinstance(region, Ball):
        center, radius = region.center.reshape(-1), region.radius * (1 + 4 * UNIT)
        lower, upper = center - region.radius, center + region.radius
    elif isinstance(region, Box):
        lower, upper = region.lower.reshape(-1), region.upper.reshape(-1)
        center, halfwidths, radius = region.around()
    else:
        raise ValueError(f"`region` must be a Ball, a Box or None, got {region!r}.")
    if center.size != program.input_size:
        raise ValueError(
            f"`region` must have the input's {program.input_size} entries, got {center.size}. "
            "Give its arrays the shape of one input."
        )
    values = evaluate(program, center, output_only=False)
    local = Local(radius, values, center_errors(program, values), outward(lower, upper), {})
    if isinstance(region, Box) and prepared.starts_dense and np.ptp(halfwidths) > 0:
        found = _verify(prepared, local._replace(radius=1.0), None, np.diag(region.ellipsoid()))
        local = local._replace(known=found.intervals)
    return local


class _Checked(NamedTuple):
    value: float
    log: float
    factors: tuple[tuple[str, float], ...]
    sizes: tuple[tuple[int, int], ...]
    intervals: Mapping[int, Bounds]
    multipliers: Mapping[int, Multipliers]
    searchable: bool  # whether any multiplier is free


def _global(prepared: Prepared, log: float) -> _Checked | None:
    """The closed form over all inputs where it is below `log`, which is found before anything is proved."""
    try:
        if _verify(prepared, None, None, proved=False).log >= log:
            return None
        found = _verify(prepared, None, None)
    except ValueError:
        return None  # bounded in the region only
    return found if found.log < log else None


def _verify(
    prepared: Prepared,
    local: Local | None,
    multipliers: Mapping[int, Multipliers] | None,
    start: np.ndarray | None = None,
    proved: bool = True,
) -> _Checked:
    """One pass with every inequality established; multipliers in closed form where none are given.

    Without `proved` a quick estimate of what the pass would find, without `factors`.
    """
    program = prepared.program
    intervals = Intervals(prepared, local)
    nominal = None if local is None or not _parts(prepared) else _nominal_slopes(prepared, local)
    state: _Matrix | _Norms
    if prepared.starts_dense:
        state = _Matrix(np.eye(program.input_size) if start is None else start, 0).normalized()
    else:
        state = _Norms((1.0,), 0)
    factors, sizes, used = [], [], {}
    level = state.log()
    largest: float | None = None  # eigenvalue of Q, where a step has just found it
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
        elif isinstance(step, Contraction):
            constant = stretch_of(program, index, intervals.found)
            if isinstance(state, _Matrix):
                state = _contracted(state, layout, constant, step.size)
            else:
                state = _contracted_norms(state, layout, constant)
        else:
            m, r = centered(*slopes_of(program, index, intervals.found))
            if isinstance(state, _Norms):
                state = _elementwise_norms(state, layout, m, r)
            else:
                T = np.zeros_like(r)
                if multipliers is not None and index in multipliers:
                    given = multipliers[index]
                    T = np.where(r > 0, given.T * math.exp(state.exponent * math.log(2) - given.log), 0.0)
                if ((r > 0) & (T <= 0)).any():
                    closed = _closed_form(prepared, index, state.X, m, r, nominal, largest)
                    T = np.where((r > 0) & (T <= 0), closed, T)
                exponent = state.exponent
                state, T = _elementwise(state, layout, m, r, T, proved)
                used[index] = Multipliers(T, exponent * math.log(2))
        if local is not None:
            intervals.add(index, local.radius * state.radii(step.size))
        else:
            intervals.add(index, None)
        largest = None
        if not proved:
            continue
        if isinstance(state, _Matrix):
            largest = largest_eigenvalue(state.X)
        reached = state.log(largest)
        if math.isfinite(reached) and math.isfinite(level):
            factors.append((label(program, index), reached - level))
            sizes.append((sum(program.sizes[v] for v in step.sources), step.size))
        level = reached
    if not proved:
        return _Checked(math.nan, state.log(), (), (), {}, {}, False)
    value, log = state.norm()
    if factors and math.isfinite(log):
        factors[-1] = (factors[-1][0], factors[-1][1] + log - level)
    free = any((each.T > 0).any() for each in used.values())
    return _Checked(value, log, tuple(factors), tuple(sizes), intervals.found, used, free)


class _Matrix(NamedTuple):
    """Q = 2^exponent X, exponent even."""

    X: np.ndarray
    exponent: int

    def normalized(self, moves: np.ndarray | None = None) -> _Matrix:
        """With a mean diagonal of about 1; what `moves` stays above `_FAINT`, where squares may have underflown."""
        if self.X.size == 0:
            return self
        diagonal = np.diag(self.X)
        mean = np.mean(diagonal)
        if not np.isfinite(mean):
            raise ValueError(
                "The bound must be finite, got NaN or inf. Look for weights near the largest float."
            )
        if mean == 0:
            return self if moves is None else _Matrix(np.diag(np.where(moves, _FAINT, 0.0)), self.exponent)
        shift = 2 * round(math.log2(mean) / 2)
        X = np.ldexp(self.X, -shift)  # a power of 2: exact but where it underflows
        faint = ((diagonal > 0) if moves is None else moves) & (np.diag(X) < _FAINT)
        X[np.diag_indices(X.shape[0])] += np.where(faint, _FAINT, 0.0)
        return _Matrix(X, self.exponent + shift)

    def log(self, largest: float | None = None) -> float:
        """Log K, not proved: for reports; of the largest eigenvalue of X if that is known."""
        largest = largest_eigenvalue(self.X) if largest is None else largest
        return 0.5 * (math.log(largest) + self.exponent * math.log(2)) if largest > 0 else -math.inf

    def radii(self, size: int) -> np.ndarray:
        """Sqrt of the last variable's diagonal, rounded up."""
        root = np.sqrt(np.maximum(np.diag(self.X)[len(self.X) - size :], 0)) * (1 + 8 * UNIT)
        with np.errstate(over="ignore"):
            return np.ldexp(root, self.exponent // 2)

    def norm(self) -> tuple[float, float]:
        return _scaled(math.sqrt(certified_largest(self.X)) * (1 + 4 * UNIT), self.exponent // 2)

    def to_norms(self, layout: Layout) -> _Norms:
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
        k = (math.ldexp(k, -shift) for k in self.k)
        return _Norms(
            tuple(max(new, _FAINT if old > 0 else 0.0) for new, old in zip(k, self.k, strict=True)),
            self.exponent + shift,
        )

    def log(self, _: float | None = None) -> float:
        total = math.hypot(*self.k)
        return math.log(total) + self.exponent * math.log(2) if total > 0 else -math.inf

    def radii(self, size: int) -> np.ndarray:
        return np.full(size, _scaled(self.k[-1], self.exponent)[0])

    def norm(self) -> tuple[float, float]:
        return _scaled(self.k[-1], self.exponent)

    def to_matrix(self, layout: Layout) -> _Matrix:
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
    return value if k == 0 or value > 1e-300 else math.nextafter(value, math.inf), log


def _enlarged(X: np.ndarray, by: np.ndarray) -> np.ndarray:
    X = X / 2 + X.T / 2
    X[np.diag_indices(X.shape[0])] += by
    return X


def _affine(state: _Matrix, step: Affine, layout: Layout) -> _Matrix:
    X = state.X
    kept = layout.kept_rows()
    position = dict(zip(step.sources, layout.sources, strict=True))
    places = [layout.rows(position[source]) for source, _ in step.terms]
    operators = [operator for _, operator in step.terms]
    rows = _total(_product(op, X[place]) for op, place in zip(operators, places, strict=True))
    shift = 0
    if kept.size == 0 and 0 < (largest := float(np.max(np.abs(rows), initial=0.0))) < math.inf:
        shift = 2 * round(math.log2(largest) / 2)  # squares of what is very small or large are out of range
        rows = np.ldexp(rows, -shift)
    corner = _total(_product(op, rows[:, place].T) for op, place in zip(operators, places, strict=True))
    roots = np.sqrt(np.maximum(np.diag(X), 0))
    g = _total(_root_growth(op, roots[place]) for op, place in zip(operators, places, strict=True))
    g = np.ldexp(g, -shift // 2)
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
        return _Matrix(Y, state.exponent + shift).normalized()
    gamma = 2 * (width + 4) * UNIT * (1 + 1e-6)
    growth = np.concatenate([roots[kept], g])
    slack = gamma * Y.shape[0] * growth**2
    Y = _enlarged(Y, slack)
    moves = np.diag(Y) > 0
    if (g < _FAINT**0.5).any():
        moved = (roots > 0).astype(np.float64)
        grown = _total(_root_growth(op, moved[place]) for op, place in zip(operators, places, strict=True))
        moves[kept.size :] |= grown > 0
    return _Matrix(Y, state.exponent + shift).normalized(moves)


def _total(parts: Iterable[np.ndarray]) -> np.ndarray:
    return functools.reduce(np.add, parts)


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
    product = absolute_product(operator, roots[:, None])
    if product is None:
        return np.full(operator.shape[0], operator_norm(operator) * np.linalg.norm(roots) * (1 + 1e-10))
    return product[:, 0] * (1 + 1e-10)


def _affine_norms(state: _Norms, step: Affine, layout: Layout, prepared: Prepared, index: int) -> _Norms:
    position = dict(zip(step.sources, layout.sources, strict=True))
    total = 0.0
    for term, (source, _) in enumerate(step.terms):
        total += prepared.norm(index, term) * state.k[position[source]]
    total *= 1 + 4 * len(step.terms) * UNIT
    return _Norms((*(state.k[p] for p in layout.kept), total), state.exponent).normalized()


def _elementwise_norms(state: _Norms, layout: Layout, m: np.ndarray, r: np.ndarray) -> _Norms:
    largest = float(np.max(np.abs(m) + r, initial=0.0)) * (1 + 4 * UNIT)
    k = largest * state.k[layout.sources[0]] * (1 + 2 * UNIT)
    return _Norms((*(state.k[p] for p in layout.kept), k), state.exponent).normalized()


def _contracted_norms(state: _Norms, layout: Layout, constant: float) -> _Norms:
    k = constant * state.k[layout.sources[0]] * (1 + 4 * UNIT)
    return _Norms((*(state.k[p] for p in layout.kept), k), state.exponent).normalized()


def _contracted(state: _Matrix, layout: Layout, constant: float, size: int) -> _Matrix:
    """What is kept by itself, and |dv|^2 <= constant^2 lambda_max(Q_source) for the new variable.

    How both go together is not known: with shares p and q, p + q = 1, dk dk^T <= K |dx|^2 and dv dv^T <= b^2 I |dx|^2
    give diag(K / p, b^2 I / q) for both.
    """
    z, kept = layout.rows(layout.sources[0]), layout.kept_rows()
    b = constant * math.sqrt(certified_largest(state.X[z, z])) * (1 + 8 * UNIT)
    K = state.X[np.ix_(kept, kept)]
    a = math.sqrt(certified_largest(K)) if kept.size else 0.0
    p, q = _shares(a, b)
    Y = np.zeros((kept.size + size,) * 2)
    Y[: kept.size, : kept.size] = K / p
    places = np.arange(kept.size, len(Y))
    Y[places, places] = b**2 / q
    moves = np.diag(Y) > 0
    return _Matrix(_enlarged(Y, 8 * UNIT * np.diag(Y)), state.exponent).normalized(moves)


def _shares(a: float, b: float) -> tuple[float, float]:
    """Shares p and q that make a^2 / p and b^2 / q equal, adding up to a little less than 1."""
    if min(a, b) <= 1e-12 * max(a, b):  # nothing of one of them to speak of
        return (1.0, 1.0) if min(a, b) == 0 else (1 - 1e-9, 1e-9) if a > b else (1e-9, 1 - 1e-9)
    return a / (a + b) * (1 - 4 * UNIT), b / (a + b) * (1 - 4 * UNIT)


def _elementwise(
    state: _Matrix, layout: Layout, m: np.ndarray, r: np.ndarray, T: np.ndarray, proved: bool
) -> tuple[_Matrix, np.ndarray]:
    X, z = state.X, layout.rows(layout.sources[0])
    kept = layout.kept_rows()
    steepest, shift = float(np.max(np.abs(m) + r, initial=0.0)), 0
    if kept.size == 0 and 0 < steepest < math.inf:
        shift = math.frexp(steepest)[1]
        m, r = np.ldexp(m, -shift), np.ldexp(r, -shift)
    if not X.any():
        return _Matrix(np.zeros((kept.size + m.size,) * 2), state.exponent), T
    # Rows that matter: those kept, and those of the source that m does not silence.
    n, k = m.size, kept.size
    at, heard = np.arange(z.start, z.stop), np.flatnonzero(m)
    rows = np.concatenate([kept, at[heard]])
    XP = X[np.ix_(rows, rows)]
    if (T > 0).any():
        XP, T = _inflated(X, XP, rows, at, T, proved)
    scale = np.concatenate([np.ones(k), m[heard]])
    places = np.concatenate([np.arange(k), k + heard])
    Y = np.zeros((k + n,) * 2)
    Y[np.ix_(places, places)] = scale[:, None] * XP * scale
    active = T > 0
    noise = np.zeros(n)
    noise[active] = r[active] ** 2 / T[active]
    slack = 8 * (k + n) * UNIT * np.abs(np.diag(Y))
    slack[k:] += noise * (1 + 8 * UNIT)
    Y = _enlarged(Y, slack)
    moves = np.diag(Y) > 0
    moves[k:] |= (np.abs(m) + r > 0) & (np.diag(X)[z] > 0)
    return _Matrix(Y, state.exponent + 2 * shift).normalized(moves), T


def _inflated(
    X: np.ndarray, XP: np.ndarray, rows: np.ndarray, at: np.ndarray, T: np.ndarray, proved: bool
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
        if not proved:
            return XP + added, T
        added[np.diag_indices(N)] += slack * (np.diag(added) + np.diag(XP)) + FLOOR
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


def _parts(prepared: Prepared) -> bool:
    """Whether any nonlinearity leaves other variables in use: in a chain the closed form passes no other one."""
    steps = zip(prepared.program.steps, prepared.layouts, strict=True)
    return any(isinstance(step, Elementwise) and layout.used and layout.kept for step, layout in steps)


def _nominal_slopes(prepared: Prepared, local: Local) -> dict[int, np.ndarray]:
    """Middles of the slopes by intervals alone: what the closed form expects of steps not yet reached."""
    intervals = Intervals(prepared, local)
    middles = {}
    for index, step in enumerate(prepared.program.steps):
        if isinstance(step, Elementwise):
            try:
                alpha, beta = slopes_of(prepared.program, index, intervals.found)
                middles[index] = alpha / 2 + beta / 2
            except ValueError:
                middles[index] = np.ones(step.size)
        intervals.add(index, None)
    return middles


def _closed_form(
    prepared: Prepared,
    index: int,
    X: np.ndarray,
    m: np.ndarray,
    r: np.ndarray,
    nominal: Mapping[int, np.ndarray] | None,
    largest: float | None,
) -> np.ndarray:
    """1/V = 1 / (s (1 + t / r)); 0 where r = 0. `largest` is the largest eigenvalue of X if that is known."""
    layout = prepared.layouts[index]
    z = layout.rows(layout.sources[0])
    active = r > 0
    T = np.zeros_like(r)
    if not active.any():
        return T
    if largest is None or not active.all() or active.size < X.shape[0]:
        largest = largest_eigenvalue(X[z, z][np.ix_(active, active)])
    s = max(largest, FLOOR)
    # Of a chain only where no slope is all but known: where some are, their own |m| is the better choice.
    looks_ahead = layout.kept or r.min() > _KNOWN * r.max()
    t = np.full(r.shape, _meeting_ratio(prepared, index, X, m, r, s, nominal)) if looks_ahead else np.abs(m)
    t = np.maximum(t, 1e-10 * r)
    T[active] = r[active] / (r[active] + t[active]) / s
    return T


def _meeting_ratio(
    prepared: Prepared,
    index: int,
    X: np.ndarray,
    m: np.ndarray,
    r: np.ndarray,
    s: float,
    nominal: Mapping[int, np.ndarray] | None,
) -> float:
    """||A Q^1/2|| / (s^1/2 ||W||) where paths meet again, nonlinear steps on the way replaced by their middles.

    In a chain, after the next affine step.
    """
    program, layout = prepared.program, prepared.layouts[index]
    step = program.steps[index]
    assert isinstance(step, Elementwise)
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
        following = program.steps[ahead]
        if len(prepared.after[last]) == 1 and not (last == index and isinstance(following, Affine)):
            break
        if isinstance(following, Contraction):
            break
        last = ahead
        if not prepared.layouts[ahead].used:
            continue
        if isinstance(following, Affine):
            maps[following.out] = _total(_product(op, maps[source]) for source, op in following.terms)
        else:
            middle = nominal[ahead] if nominal is not None else None
            if middle is None:
                infinite = {v: (np.full(k, -np.inf), np.full(k, np.inf)) for v, k in program.sizes.items()}
                alpha, beta = slopes_of(program, ahead, infinite)
                middle = alpha / 2 + beta / 2
            maps[following.out] = middle[:, None] * maps[following.source]
    joined = np.concatenate([maps[v] for v in prepared.after[last]])
    top = float(np.max(np.abs(joined), initial=0.0))
    if not 0 < top < math.inf:
        return 1.0
    joined = np.ldexp(joined, -math.frexp(top)[1])
    A, W = joined[:, :N], joined[:, N:]
    carried = math.sqrt(max(largest_eigenvalue(A @ X @ A.T), 0.0))
    noise = math.sqrt(max(largest_eigenvalue(W.T @ W if W.shape[0] > W.shape[1] else W @ W.T), 0.0))
    # What is carried may be the rounding of a middle that is 0, as that of |x|. For so little V would all but touch Q,
    # and what goes to another place would be inflated by the inverse of what is left.
    if noise == 0 or (layout.kept and carried <= _NOTHING * math.sqrt(s) * noise):
        return 1.0
    return min(carried / (math.sqrt(s) * noise), 1e12)
