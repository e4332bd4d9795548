"""The search for multipliers that lower the bound of a program: gradient descent over a tape of its steps."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
import scipy.linalg
import scipy.special

from jaxact.lipschitz._layout import (
    FLOOR,
    Intervals,
    Layout,
    Local,
    Multipliers,
    Prepared,
    slopes_of,
    stretch_of,
)
from jaxact.trace import Affine, Contraction, Diagonal, Elementwise, Identity, Linear, Operator, centered

#: Q = exp(log) X, X of mean diagonal 1; by norms the logarithms of the norms, and 0
_State: TypeAlias = tuple[np.ndarray, float]
_Pull: TypeAlias = Callable[[_State], _State]  # from the gradient of what a step made to that of what it read
# Gradients shrink by orders of magnitude within the first steps, where 0.9 and 0.999 overshoot for a long time.
_MOMENTUM, _MEMORY = 0.6, 0.95
_EARLY, _EVERY = (
    6,
    5,
)  # within a region slopes are found anew in each of the first passes, then in every fifth


def refine(
    prepared: Prepared,
    local: Local | None,
    start: Mapping[int, Multipliers],
    num_steps: int,
    deadline: float,
    tolerance: float | None,
    learning_rate: float,
) -> tuple[dict[int, Multipliers] | None, list[float]]:
    """Adam on log-multipliers; what counts is what is proved later.

    Within a region slopes change with the multipliers and take most of the time. Between two passes that find them anew
    they are extrapolated, and what is found there is no candidate.
    """
    with np.errstate(all="ignore"):
        search = _Search(prepared, local)
        parameters = search.parameters(start)
        first, second = np.zeros_like(parameters), np.zeros_like(parameters)
        history, best, found = [], math.inf, None
        for number in range(1, num_steps + 2):
            # A smooth mean of the eigenvalues first, the largest in the end: at the optimum many are equal.
            power = 2 * 250 ** (number / (num_steps + 1))
            last = number > num_steps or time.perf_counter() > deadline
            trace = search.forward(parameters, power, last or number <= _EARLY or number % _EVERY == 0)
            if not math.isfinite(trace.log):
                break
            history.append(trace.log)
            if trace.anew and trace.log < best:
                best, found = trace.log, trace.multipliers
            stalled = tolerance is not None and number > 20 and history[-21] - min(history[-20:]) < tolerance
            if last or stalled:
                break
            gradient = search.backward(trace)
            first = _MOMENTUM * first + (1 - _MOMENTUM) * gradient
            second = _MEMORY * second + (1 - _MEMORY) * gradient**2
            scale = np.sqrt(second / (1 - _MEMORY**number)) + 1e-12
            step = first / (1 - _MOMENTUM**number) / scale
            rate = learning_rate * 0.5 * (1 + math.cos(math.pi * (number - 1) / num_steps))
            parameters = parameters - rate * step
    return found, history


class _Trace(NamedTuple):
    """What one forward pass of the search keeps for the way back."""

    pulls: list[_Pull]
    log: float
    pull: _State
    multipliers: dict[int, Multipliers]
    anew: bool  # whether slopes were found for this very pass


class _Changing(NamedTuple):
    """Slopes m +- r of a step, and how they change with the radius of its source's interval."""

    m: np.ndarray
    r: np.ndarray
    dm: np.ndarray
    dr: np.ndarray
    radii: np.ndarray


class _Search:
    """The program as a tape: forward keeps every Q, backward pulls the gradient through one step at a time."""

    def __init__(self, prepared: Prepared, local: Local | None):
        self.prepared, self.local = prepared, local
        self.steps = prepared.program.steps
        self.operators: dict[int, tuple[Operator, ...]] = {}
        self.log_norms: dict[int, np.ndarray] = {}
        # For each term the position of its source among the variables in use.
        self.terms: dict[int, tuple[int, ...]] = {}
        for index, step in enumerate(self.steps):
            if not isinstance(step, Affine) or not prepared.layouts[index].used:
                continue
            self.terms[index] = tuple(prepared.before[index].index(source) for source, _ in step.terms)
            if prepared.dense[index]:
                self.operators[index] = tuple(operator for _, operator in step.terms)
            else:
                norms = [prepared.norm(index, term) for term in range(len(step.terms))]
                self.log_norms[index] = np.log(norms)
        self.slices: dict[int, slice] = {}
        self.gradient = np.zeros(0)
        self.constants: dict[int, float] = {}
        self.fixed: dict[int, _Changing] = {}  # slopes: of all inputs, or of the last pass that found them
        if local is not None:
            return
        infinite = Intervals(prepared, None)
        for index in range(len(self.steps)):
            infinite.add(index, None)
        for index, step in enumerate(self.steps):
            if isinstance(step, Elementwise) and prepared.layouts[index].used:
                zero = np.zeros(step.size)
                m, r = centered(*slopes_of(prepared.program, index, infinite.found))
                self.fixed[index] = _Changing(m, r, zero, zero, zero)

    def parameters(self, multipliers: Mapping[int, Multipliers]) -> np.ndarray:
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

    def forward(self, parameters: np.ndarray, power: float, anew: bool = True) -> _Trace:
        prepared, local = self.prepared, self.local
        anew = anew or local is None
        intervals = Intervals(prepared, local)
        dense = prepared.starts_dense
        state: _State = (np.eye(prepared.program.input_size) if dense else np.zeros(1), 0.0)
        pulls: list[_Pull] = []
        used: dict[int, Multipliers] = {}
        for index, step in enumerate(self.steps):
            layout = prepared.layouts[index]
            if not layout.used:
                continue
            if dense != prepared.dense[index]:
                state, pull = (_to_norms if dense else _to_matrix)(layout, state)
                pulls.append(pull)
                dense = prepared.dense[index]
            if isinstance(step, Affine):
                terms = layout._replace(sources=self.terms[index])
                if dense:
                    state, pull = _affine_step(terms, state, self.operators[index])
                else:
                    state, pull = _affine_norms_step(terms, state, self.log_norms[index])
            elif isinstance(step, Contraction):
                if anew:
                    self.constants[index] = stretch_of(prepared.program, index, intervals.found)
                if dense:
                    state, pull = _contraction_step(layout, state, self.constants[index], step.size)
                else:
                    log_slope = math.log(self.constants[index] + 1e-300)
                    state, pull = _elementwise_norms_step(layout, state, log_slope)
            elif not dense:
                if local is not None and anew:
                    self.fixed[index] = self._unchanging(index, intervals)
                m, r = self.fixed[index][:2]
                log_slope = math.log(np.max(np.abs(m) + r) + 1e-300)
                state, pull = _elementwise_norms_step(layout, state, log_slope)
            else:
                where = self.slices.get(index)
                own = np.zeros(step.size + 1) if where is None else parameters[where]
                if np.isnan(own[-1]):  # from the scale of Q there to the one here
                    own[:-1] += state[1] - self.start[index].log
                if local is not None and anew:
                    self.fixed[index] = self._changing(index, intervals, state, layout)
                found = self._elementwise(layout, state, own, self.fixed[index], where)
                if found is None:
                    return _Trace([], math.nan, state, {}, anew)
                used[index] = Multipliers(found[0], state[1])
                state, pull = found[1:]
            pulls.append(pull)
            if local is not None and anew:
                intervals.add(index, local.radius * _radii(state, step.size, dense))
        log, last = _last(dense, state, power)
        return _Trace(pulls, log, last, used, anew)

    def backward(self, trace: _Trace) -> np.ndarray:
        self.gradient = np.zeros(max(where.stop for where in self.slices.values()))
        pulled = trace.pull
        for pull in reversed(trace.pulls):
            pulled = pull(pulled)
        return np.where(np.isfinite(self.gradient), self.gradient, 0.0)

    def _elementwise(
        self, layout: Layout, state: _State, own: np.ndarray, slopes: _Changing, where: slice | None
    ) -> tuple[np.ndarray, _State, _Pull] | None:
        """1/V, the step and its pull; None where the inequality cannot be factored. Writes to `own`."""
        X, log = state
        m, r, dm, dr, radii = slopes
        z = layout.rows(layout.sources[0])
        kept = layout.kept_rows()
        rows = np.concatenate([kept, np.arange(z.start, z.stop)])
        block, N, k = X[z, z], X.shape[0], kept.size
        diagonal = np.diag(block)
        moves = (radii > 0) & (diagonal > 0)
        R = 0.0 if self.local is None else self.local.radius
        now = R * _size(log) * np.sqrt(np.where(moves, diagonal, 0.0))
        # No extrapolating far off: differences of steep slopes would run away.
        moves &= np.maximum(np.abs(dm), np.abs(dr)) * np.abs(now - radii) <= 0.2 * r
        change = np.where(moves, now - radii, 0.0)
        active = r > 0
        m, r = m + dm * change, np.where(active, np.maximum(r + dr * change, 1e-3 * r), 0.0)
        # 1/V = sigmoid(v) w / lambda_max(w^1/2 Q_z w^1/2)
        np.clip(own[:-1], -300, 300, out=own[:-1])
        root = np.where(active, np.exp(0.5 * own[:-1]), 0.0)
        B = root[:, None] * block * root
        largest, vector = _leading(B)
        if np.isnan(own[-1]):
            own[-1] = scipy.special.logit(min(max(largest, 1e-12), 1 - 1e-9))
        sigma = scipy.special.expit(own[-1])
        share = sigma / largest
        T = share * root**2
        scaled = math.sqrt(share) * root
        matrix = -share * B
        matrix[np.diag_indices_from(matrix)] += 1
        factor, failed = scipy.linalg.lapack.dpotrf(matrix, lower=1)
        if failed:
            return None
        C = X[z][:, rows]
        K = scaled[:, None] * scipy.linalg.lapack.dpotrs(factor, scaled[:, None] * C, lower=1)[0]
        P = X[np.ix_(rows, rows)] + C.T @ K
        scale = np.concatenate([np.ones(k), m])
        V = np.where(active, 1 / np.where(active, T, 1.0), 0.0)
        PS = P * scale
        Y = scale[:, None] * PS
        places = np.arange(k, rows.size)
        Y[places, places] += r**2 * V
        made, unscaled = _normalized(Y, log)

        def pull(pulled: _State) -> _State:
            g, g_log = unscaled(pulled)
            along = np.diag(g)[k:]
            g_P = scale[:, None] * g * scale
            g_m = 2 * np.einsum("ij,ij->i", g[k:], PS[k:])
            KG = K @ g_P
            # One after the other: the source may be among the kept.
            side = np.zeros((z.stop - z.start, N))
            side[:, kept] += g_P[k:, :k] + KG[:, :k]
            side[:, z] += g_P[k:, k:] / 2 + KG[:, k:]
            g_X = np.zeros((N, N))
            g_X[np.ix_(kept, kept)] += g_P[:k, :k]
            g_X[z] += side
            g_X[:, z] += side.T
            inner = KG @ K.T
            g_X[z, z] += inner
            # Of log T: through V in the inverse, and in what is added to the diagonal.
            t = V * (np.diag(inner) - along * r**2)
            total = float(np.sum(t))
            w = root * vector
            g_X[z, z] -= (total / largest) * np.outer(w, w)
            if where is not None:
                self.gradient[where] = np.append(t - total * vector**2, total * (1 - sigma))
            if moves.any():
                g_now = np.where(moves, g_m * dm + 2 * along * r * V * dr, 0.0) * now
                index = np.arange(z.start, z.stop)
                g_X[index, index] += np.where(moves, g_now / (2 * np.where(moves, diagonal, 1.0)), 0.0)
                g_log += 0.5 * float(np.sum(g_now))
            return g_X, g_log

        return T, made, pull

    # --- Slopes within a region ---------------------------------------------------------------------------------------

    def _unchanging(self, index: int, intervals: Intervals) -> _Changing:
        m, r = centered(*slopes_of(self.prepared.program, index, intervals.found))
        zero = np.zeros_like(m)
        return _Changing(m, r, zero, zero, zero)

    def _changing(self, index: int, intervals: Intervals, state: _State, layout: Layout) -> _Changing:
        assert self.local is not None
        program, step = self.prepared.program, self.steps[index]
        assert isinstance(step, Elementwise)
        definition = program.order[step.source]
        defined = self.steps[definition] if definition >= 0 else None
        found = self._unchanging(index, intervals)
        if isinstance(defined, Elementwise) and not defined.is_function:
            return found
        # How slopes change with the radius: by a difference, where the radius is what bounds the interval.
        z = layout.rows(layout.sources[0])
        radii = self.local.radius * _size(state[1]) * np.sqrt(np.maximum(np.diag(state[0])[z], 0))
        change = 1e-4 * radii + 1e-300
        lower, upper = intervals.found[step.source]
        narrow = intervals.around(step.source, radii)
        at_lower, at_upper = narrow[0] <= lower + 1e-2 * change, narrow[1] >= upper - 1e-2 * change
        # Where slopes are one number, or as wide as can be, nothing is lost by taking them as they are.
        if not ((found.r > 0) & (radii > 0) & (at_lower | at_upper)).any():
            return found
        moved = np.where(at_lower, lower - change, lower), np.where(at_upper, upper + change, upper)
        m, r = found[:2]
        wider = centered(*slopes_of(program, index, {**intervals.found, step.source: moved}))
        dm, dr = (np.where(radii > 0, (w - v) / change, 0.0) for w, v in zip(wider, (m, r), strict=True))
        # A jump of the slope is no derivative.
        steep = np.abs(dm) + np.abs(dr) > 1e2 * (np.abs(m) + r) / np.maximum(radii, 1e-300)
        dm, dr = np.where(steep, 0.0, dm), np.where(steep | (r == 0), 0.0, dr)
        return _Changing(m, r, dm, dr, radii)


# --- Steps and their pulls --------------------------------------------------------------------------------------------


def _normalized(Y: np.ndarray, log: float) -> tuple[_State, _Pull]:
    n, mean = Y.shape[0], float(np.mean(np.diag(Y)))
    mean = mean if mean > 0 else 1.0
    X = Y / mean
    X = (X + X.T) / 2

    def pull(pulled: _State) -> _State:
        g, g_log = pulled
        g = g / mean
        g[np.diag_indices(n)] += (g_log - float(np.vdot(pulled[0], X))) / (n * mean)
        return g, g_log

    return (X, log + math.log(mean)), pull


def _affine_step(layout: Layout, state: _State, operators: tuple[Operator, ...]) -> tuple[_State, _Pull]:
    X, log = state
    kept = layout.kept_rows()
    places = [layout.rows(position) for position in layout.sources]
    pairs = list(zip(operators, places, strict=True))
    rows = functools.reduce(np.add, [_times(op, X[place]) for op, place in pairs])
    corner = functools.reduce(np.add, [_times(op, rows[:, place].T) for op, place in pairs])
    k, n = kept.size, corner.shape[0]
    Y = corner
    if k:
        Y = np.empty((k + n, k + n))
        Y[:k, :k], Y[k:, k:] = X[np.ix_(kept, kept)], corner
        Y[k:, :k] = rows[:, kept]
        Y[:k, k:] = Y[k:, :k].T
    made, unscaled = _normalized(Y, log)

    def pull(pulled: _State) -> _State:
        g, g_log = unscaled(pulled)
        g_rows = np.zeros((n, X.shape[0]))
        for op, place in pairs:
            g_rows[:, place] += _transposed_times(op, g[k:, k:]).T
        g_rows[:, kept] += 2 * g[k:, :k]
        g_X = np.zeros_like(X)
        for op, place in pairs:
            g_X[place] += _transposed_times(op, g_rows)
        g_X = (g_X + g_X.T) / 2
        if k:
            g_X[np.ix_(kept, kept)] += g[:k, :k]
        return g_X, g_log

    return made, pull


def _times(operator: Operator, X: np.ndarray) -> np.ndarray:
    if isinstance(operator, Linear):
        with jax.enable_x64(True):
            return np.asarray(_product(operator, X))
    return operator.matmul(X)


def _transposed_times(operator: Operator, X: np.ndarray) -> np.ndarray:
    match operator:
        case Identity() | Diagonal():
            return operator.matmul(X)
        case Linear():
            with jax.enable_x64(True):
                return np.asarray(_transposed_product(operator, X))
    return operator.matrix.T @ X


@jax.jit
def _product(operator: Linear, X: Any) -> Any:
    return operator.matmul(X)


@jax.jit
def _transposed_product(operator: Linear, X: Any) -> Any:
    return jax.vmap(operator.transpose, in_axes=1, out_axes=1)(X)


def _contraction_step(layout: Layout, state: _State, constant: float, size: int) -> tuple[_State, _Pull]:
    """As in the proof, the shares held fixed."""
    X, log = state
    z, kept = layout.rows(layout.sources[0]), layout.kept_rows()
    s, vector = _leading(X[z, z])
    a = math.sqrt(_leading(X[np.ix_(kept, kept)])[0]) if kept.size else 0.0
    b = constant * math.sqrt(s)
    p, q = (a / (a + b), b / (a + b)) if min(a, b) > 1e-9 * max(a, b) else (1.0, 1.0)
    Y = np.zeros((kept.size + size,) * 2)
    Y[: kept.size, : kept.size] = X[np.ix_(kept, kept)] / p
    places = np.arange(kept.size, len(Y))
    Y[places, places] = b**2 / q
    made, unscaled = _normalized(Y, log)

    def pull(pulled: _State) -> _State:
        g, g_log = unscaled(pulled)
        g_X = np.zeros_like(X)
        g_X[np.ix_(kept, kept)] = g[: kept.size, : kept.size] / p
        g_X[z, z] += constant**2 / q * np.trace(g[kept.size :, kept.size :]) * np.outer(vector, vector)
        return g_X, g_log

    return made, pull


def _leading(B: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest eigenvalue and its vector, which may be held fixed: its change has no effect to first order."""
    n = B.shape[0]
    if not np.isfinite(B).all():
        return math.nan, np.full(n, math.nan)
    values, vectors = scipy.linalg.eigh(B, subset_by_index=[n - 1, n - 1], check_finite=False)
    return max(float(values[-1]), FLOOR), vectors[:, -1]


def _last(dense: bool, state: _State, power: float) -> tuple[float, _State]:
    """Log K, and the gradient of the smoother log (sum_i lambda_i^p)^(1/2p), with respect to the last state."""
    first, log = state
    if not dense:
        return float(first[-1]), (np.eye(first.size)[-1], 0.0)
    if not np.isfinite(first).all():
        return math.nan, state
    values, vectors = np.linalg.eigh(first)
    shares = np.maximum(values, 0.0) / max(values[-1], FLOOR)
    weights = shares**power / np.sum(shares**power)
    pull = 0.5 * (vectors * (weights / np.maximum(values, FLOOR))) @ vectors.T
    return 0.5 * (math.log(max(values[-1], FLOOR)) + log), (pull, 0.5)


def _to_norms(layout: Layout, state: _State) -> tuple[_State, _Pull]:
    X, log = state
    places = [layout.rows(position) for position in range(len(layout.sizes))]
    found = [_leading(X[place, place]) for place in places]
    norms = np.array([0.5 * (math.log(value) + log) for value, _ in found])

    def pull(pulled: _State) -> _State:
        g_X = np.zeros_like(X)
        for place, (value, vector), g in zip(places, found, pulled[0], strict=True):
            g_X[place, place] = 0.5 * g / value * np.outer(vector, vector)
        return g_X, 0.5 * float(np.sum(pulled[0]))

    return (norms, 0.0), pull


def _to_matrix(layout: Layout, state: _State) -> tuple[_State, _Pull]:
    norms = state[0]
    squares = norms + scipy.special.logsumexp(norms)
    owner = np.repeat(np.arange(norms.size), layout.sizes)
    mean = float(scipy.special.logsumexp(squares[owner])) - math.log(owner.size)
    diagonal = np.exp(squares[owner] - mean)
    shares = np.bincount(owner, diagonal, norms.size) / owner.size

    def pull(pulled: _State) -> _State:
        own = np.bincount(owner, np.diag(pulled[0]) * diagonal, norms.size)
        g_squares = own + shares * (pulled[1] - float(np.sum(own)))
        return g_squares + scipy.special.softmax(norms) * float(np.sum(g_squares)), 0.0

    return (np.diag(diagonal), mean), pull


def _affine_norms_step(layout: Layout, state: _State, log_norms: np.ndarray) -> tuple[_State, _Pull]:
    norms = state[0]
    kept, sources = np.array(layout.kept, int), np.array(layout.sources)
    terms = log_norms + norms[sources]
    made = np.append(norms[kept], scipy.special.logsumexp(terms))

    def pull(pulled: _State) -> _State:
        g = np.zeros_like(norms)
        g[kept] += pulled[0][:-1]
        np.add.at(g, sources, pulled[0][-1] * scipy.special.softmax(terms))
        return g, 0.0

    return (made, 0.0), pull


def _elementwise_norms_step(layout: Layout, state: _State, log_slope: float) -> tuple[_State, _Pull]:
    return _affine_norms_step(layout, state, np.array([log_slope]))


def _radii(state: _State, size: int, dense: bool) -> np.ndarray:
    first, log = state
    if not dense:
        return np.full(size, np.exp(first[-1]))
    return _size(log) * np.sqrt(np.maximum(np.diag(first)[-size:], 0.0))


def _size(log: float) -> float:
    return math.exp(min(0.5 * log, 700.0))
