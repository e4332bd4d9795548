"""The pass that proves a bound: every step enlarged by what may be rounded off, every inequality established."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxact.lipschitz._norms import certified_largest, is_positive, largest_eigenvalue
from jaxact.lipschitz._rounding import FAINT, FLOOR, PRODUCT, UNIT, affine_slack, scaled_up, up
from jaxact.lipschitz.ellipsoid import multipliers, step
from jaxact.lipschitz.ellipsoid.intervals import Enclosures, Local
from jaxact.lipschitz.ellipsoid.layout import Prepared, slopes_of, stretch_of
from jaxact.lipschitz.ellipsoid.maps import magnitude, total
from jaxact.lipschitz.ellipsoid.multipliers import Multipliers
from jaxact.lipschitz.ellipsoid.step import Matrix, Norms
from jaxact.lipschitz.ellipsoid.walk import State, carry, log_factors
from jaxact.trace import Bounds, Dense, Identity, Linear, Operator, StepRecord, centered


class Proved(NamedTuple):
    """What a pass found.

    Attributes:
        value, log: of the bound.
        factors: (step, growth of log K), as in `Certificate`.
        intervals: of every variable.
        multipliers: of every elementwise step.
        searchable: whether any multiplier is free.
    """

    value: float
    log: float
    factors: tuple[tuple[StepRecord, float], ...]
    intervals: Mapping[int, Bounds]
    multipliers: Mapping[int, Multipliers]
    searchable: bool


def prove(
    prepared: Prepared,
    local: Local | None,
    given: Mapping[int, Multipliers] | None = None,
    start: np.ndarray | None = None,
) -> Proved:
    """One pass with every inequality established; multipliers in closed form where none are given."""
    proof = _Proof(prepared, local, given or {})
    state = proof.run(start)
    if isinstance(state, Matrix):
        root = math.sqrt(certified_largest(state.X)) * up(4)
        value = scaled_up(root, state.exponent // 2)
        log = state.log(root**2)
    else:
        log = float(state.logs[-1])
        value = _exponential(log)
    factors = proof.factors
    if factors and math.isfinite(log):  # what the last certificate adds belongs to the last step
        factors[-1] = (factors[-1][0], factors[-1][1] + log - proof.level)
    free = any((each.T > 0).any() for each in proof.used.values())
    return Proved(value, log, tuple(factors), proof.intervals, proof.used, free)


def estimate(prepared: Prepared, local: Local | None) -> float:
    """Log K of the closed form, quickly and not proved."""
    proof = _Proof(prepared, local, {}, proved=False)
    state = proof.run(None)
    return proof.log(state, None)


class _Proof:
    """The rules of a pass that proves; without `proved` no inequality is established."""

    def __init__(
        self,
        prepared: Prepared,
        local: Local | None,
        given: Mapping[int, Multipliers],
        proved: bool = True,
    ):
        self.prepared, self.local, self.given, self.proved = prepared, local, given, proved
        looks = local is not None and multipliers.parts(prepared)
        self.nominal = multipliers.nominal_slopes(prepared, local) if looks and local is not None else None
        self.factors: list[tuple[StepRecord, float]] = []
        self.used: dict[int, Multipliers] = {}
        self.intervals: Mapping[int, Bounds] = {}
        self.largest: float | None = None  # eigenvalue of Q, where a step has just found it
        self.level = 0.0

    def run(self, start: np.ndarray | None) -> State:
        size = self.prepared.program.input_size
        state: State = Norms(np.zeros(1))
        if self.prepared.starts_dense:
            state = _normalized(Matrix(np.eye(size) if start is None else start))
        self.level = self.log(state, None)
        return carry(self, self.prepared, self.local, state)

    @staticmethod
    def log(state: State, largest: float | None) -> float:
        """Log K, not proved: for reports."""
        if isinstance(state, Matrix):
            return state.log(largest_eigenvalue(state.X) if largest is None else largest)
        return float(np.logaddexp.reduce(2 * state.logs)) / 2

    def made(self, index: int, state: State, intervals: Enclosures) -> None:
        program, made = self.prepared.program, self.prepared.program.steps[index]
        intervals.add(index, None if self.local is None else self.local.radius * state.radii(made.size))
        self.intervals, self.largest = intervals.found, None
        if not self.proved:
            return
        if isinstance(state, Matrix):
            self.largest = largest_eigenvalue(state.X)
        reached = self.log(state, self.largest)
        if math.isfinite(reached) and math.isfinite(self.level):
            self.factors.append((program.record(index), reached - self.level))
        self.level = reached

    # --- Steps --------------------------------------------------------------------------------------------------------

    def affine(self, index: int, state: Matrix) -> Matrix:
        layout = self.prepared.layouts[index]
        operators = self.prepared.operators(index)
        made = step.affine(state, layout, operators)
        if len(operators) == 1 and isinstance(operators[0], Identity):
            return _normalized(made)  # entries are only moved about
        kept, roots = layout.kept_rows(), np.sqrt(np.maximum(np.diag(state.X), 0))
        terms = [(operator, layout.rows(p)) for operator, p in zip(operators, layout.sources, strict=True)]
        g = total(_root_growth(operator, roots[place]) for operator, place in terms)
        g = np.ldexp(g, (state.exponent - made.exponent) // 2)
        num_products = sum(op.shape[1] if isinstance(op, Dense | Linear) else 1 for op in operators)
        slack = affine_slack(num_products + len(terms), np.concatenate([roots[kept], g]))
        Y = _enlarged(made.X, slack)
        moves = np.diag(Y) > 0
        if (g < FAINT**0.5).any():
            moved = (roots > 0).astype(np.float64)
            moves[kept.size :] |= total(_root_growth(op, moved[place]) for op, place in terms) > 0
        return _normalized(Matrix(Y, made.exponent), moves)

    def contraction(self, index: int, state: Matrix, intervals: Enclosures) -> Matrix:
        layout, size = self.prepared.layouts[index], self.prepared.program.steps[index].size
        z, kept = layout.read, layout.kept_rows()
        growth = math.sqrt(certified_largest(state.X[z, z])) * up(8)
        (source,) = self.prepared.program.steps[index].sources
        reach = intervals.reach(source, math.ldexp(growth, state.exponent // 2))
        constant = stretch_of(self.prepared.program, index, intervals.found, reach)
        K = state.X[np.ix_(kept, kept)]
        a = math.sqrt(certified_largest(K)) if kept.size else 0.0
        b, shift = constant * growth * up(8), 0
        if kept.size == 0 and 0 < b < math.inf:
            shift = math.frexp(b)[1]  # squares of what is very small or large are out of range
        Y = step.contraction(K, size, a, math.ldexp(b, -shift))
        moves = np.diag(Y) > 0
        moves[kept.size :] |= constant > 0 and growth > 0
        return _normalized(Matrix(_enlarged(Y, 8 * UNIT * np.diag(Y)), state.exponent + 2 * shift), moves)

    def elementwise(self, index: int, state: Matrix, intervals: Enclosures) -> Matrix:
        m, r = centered(*slopes_of(self.prepared.program, index, intervals.found))
        T = self._multipliers(index, state, m, r)
        made, T = self._through(index, state, m, r, T)
        self.used[index] = Multipliers(T, state.exponent)
        return made

    def _multipliers(self, index: int, state: Matrix, m: np.ndarray, r: np.ndarray) -> np.ndarray:
        T = np.zeros_like(r)
        if index in self.given:
            given = self.given[index]
            T = np.where(r > 0, np.ldexp(given.T, state.exponent - given.exponent), 0.0)
        missing = (r > 0) & (T <= 0)
        if not missing.any():
            return T
        closed = multipliers.closed_form(self.prepared, index, state.X, m, r, self.nominal, self.largest)
        return np.where(missing, closed, T)

    def _through(
        self, index: int, state: Matrix, m: np.ndarray, r: np.ndarray, T: np.ndarray
    ) -> tuple[Matrix, np.ndarray]:
        X, layout = state.X, self.prepared.layouts[index]
        z, kept = layout.read, layout.kept_rows()
        steepest, shift = float(np.max(np.abs(m) + r, initial=0.0)), 0
        if kept.size == 0 and 0 < steepest < math.inf:
            shift = math.frexp(steepest)[1]
            m, r = np.ldexp(m, -shift), np.ldexp(r, -shift)
        n, k = m.size, kept.size
        if not X.any():
            return Matrix(np.zeros((k + n,) * 2), state.exponent), T
        # Rows that matter: those kept, and those of the source that m does not silence.
        at, heard = np.arange(z.start, z.stop), np.flatnonzero(m)
        rows = np.concatenate([kept, at[heard]])
        P = X[np.ix_(rows, rows)]
        if (T > 0).any():
            P, T = _inflated(X, P, rows, at, T, self.proved)
        places = np.concatenate([np.arange(k), k + heard])
        noise = np.concatenate([np.zeros(k), step.noise_of(r, T)])
        Y = np.zeros((k + n,) * 2)
        Y[np.ix_(places, places)] = step.sloped(
            P, np.concatenate([np.ones(k), m[heard]]), np.zeros(rows.size)
        )
        Y = _enlarged(Y, 8 * (k + n) * UNIT * np.abs(np.diag(Y)) + noise * up(8))
        moves = np.diag(Y) > 0
        moves[k:] |= (np.abs(m) + r > 0) & (np.diag(X)[z] > 0)
        return _normalized(Matrix(Y, state.exponent + 2 * shift), moves), T

    # --- By norms -----------------------------------------------------------------------------------------------------

    def by_norms(self, index: int, state: Norms, intervals: Enclosures) -> Norms:
        layout = self.prepared.layouts[index]
        factors = _raised(
            log_factors(self.prepared, index, intervals), 1
        )  # which may cancel with large logarithms
        made = step.by_norms(state, layout, factors).logs
        if np.isnan(made).any() or made[-1] == math.inf:
            raise _not_finite()
        return Norms(np.append(made[:-1], _raised(made[-1:], len(layout.sources))))

    def to_norms(self, index: int, state: Matrix) -> Norms:
        layout = self.prepared.layouts[index]
        places = [layout.rows(position) for position in range(len(layout.sizes))]
        logs = step.to_norms(state, [certified_largest(state.X[place, place]) for place in places]).logs
        return Norms(_raised(logs, 1 + abs(state.exponent)))

    def to_matrix(self, index: int, state: Norms) -> Matrix:
        made = step.to_matrix(state, self.prepared.layouts[index])
        raised = 1 + 8 * UNIT * (16 + np.max(np.abs(state.logs), where=np.isfinite(state.logs), initial=0.0))
        return _normalized(Matrix(made.X * raised, made.exponent))


def _raised(logs: np.ndarray, size: int) -> np.ndarray:
    """Logarithms made larger by what may have been lost in them, and in sums of so many terms or of that size."""
    return logs + 4 * UNIT * (size + 2 + np.where(np.isfinite(logs), np.abs(logs), 0.0))


def _exponential(log: float) -> float:
    """Rounded up; inf where it is out of range."""
    if log == -math.inf:
        return 0.0
    return math.inf if log > 709 else scaled_up(math.exp(log) * up(4 * (2 + abs(log))), 0)


def _not_finite() -> ValueError:
    return ValueError("The bound must be finite, got NaN or inf. Look for weights near the largest float.")


def _normalized(state: Matrix, moves: np.ndarray | None = None) -> Matrix:
    """With a mean diagonal of about 1; what `moves` stays above `FAINT`, where squares may have underflown."""
    if state.X.size == 0:
        return state
    diagonal = np.diag(state.X)
    if not np.isfinite(np.mean(diagonal)):
        raise _not_finite()
    if not diagonal.any():
        return state if moves is None else Matrix(np.diag(np.where(moves, FAINT, 0.0)), state.exponent)
    X, exponent = state.rescaled()
    faint = ((diagonal > 0) if moves is None else moves) & (np.diag(X) < FAINT)
    if faint.any():
        X = X + np.diag(np.where(faint, FAINT, 0.0))
    return Matrix(X, exponent)


def _enlarged(X: np.ndarray, by: np.ndarray) -> np.ndarray:
    X = X / 2 + X.T / 2
    X[np.diag_indices(X.shape[0])] += by
    return X


def _root_growth(operator: Operator, roots: np.ndarray) -> np.ndarray:
    """|A| sqrt(diag Q), or an upper bound on it."""
    return magnitude(operator, roots[:, None])[:, 0] * (1 + PRODUCT)


def _inflated(
    X: np.ndarray, P: np.ndarray, rows: np.ndarray, at: np.ndarray, T: np.ndarray, proved: bool
) -> tuple[np.ndarray, np.ndarray]:
    """X + X E^T (V - E X E^T)^{-1} E X on `rows`, enlarged until proved; and 1/V, reduced where V was infeasible."""
    N = rows.size
    back_off, slack = 0.0, 4 * (N + at.size) ** 2 * UNIT
    for attempt in range(60):
        active = np.flatnonzero(T > 0)
        source = at[active]
        C = X[np.ix_(source, rows)]
        try:
            found = step.inflation(X[np.ix_(source, source)], C, T[active])
        except ArithmeticError:
            back_off = max(4 * back_off, 1e-12)
            T = T * (1 - min(back_off, 0.5))
            continue
        added = found.added()
        added = added / 2 + added.T / 2
        if not proved:
            return P + added, T
        added[np.diag_indices(N)] += slack * (np.diag(added) + np.diag(P)) + FLOOR
        if _is_above(added, P, C, found, np.diag(X)[source]):
            total = P + added
            return _enlarged(total, 4 * N * UNIT * np.diag(total)), T
        slack *= 4
        if attempt % 8 == 7:
            back_off = max(8 * back_off, 1e-10)
            T = T * (1 - min(back_off, 0.5))
            slack /= 4**6
    raise ArithmeticError("The inequality of an elementwise step could not be established in float64.")


def _is_above(
    added: np.ndarray, P: np.ndarray, C: np.ndarray, found: step.Inflation, diagonal: np.ndarray
) -> bool:
    """Prove added >= C^T (V - Z)^{-1} C, the sum with P included.

    In units of V: [[added, C^T root], [root C, 1 - root Z root]] >= 0 has the same Schur complement.
    """
    unsure = 8 * (diagonal.size + P.shape[0]) * UNIT
    # The scaling by root rounds, by at most 4 u sqrt(X_ii X_jj) a entry: taken off the diagonal of the lower block.
    first = added - np.diag(unsure * np.diag(P))
    second = found.matrix - np.diag(unsure * found.root**2 * diagonal)
    M = step.joined(first, found.root[:, None] * C, second)
    return bool((np.diag(M) > 0).all()) and is_positive(M)
