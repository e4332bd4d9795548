"""The search for multipliers that lower the bound of a program: gradient descent over a tape of compiled steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxact.lipschitz._layout import (
    FLOOR,
    Intervals,
    Layout,
    Local,
    Multipliers,
    Prepared,
    centered,
    slopes_of,
)
from jaxact.lipschitz._program import Affine, Elementwise


def refine(
    prepared: Prepared,
    local: Local | None,
    start: Mapping[int, Multipliers],
    num_steps: int,
    deadline: float,
    tolerance: float | None,
    learning_rate: float,
) -> tuple[dict[int, Multipliers] | None, list[float]]:
    """Adam on log-multipliers over a tape of compiled steps: what is compiled does not grow with depth."""
    with jax.enable_x64(True):
        search = _Search(prepared, local)
        parameters = search.parameters(start)
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
    return found, history


class _Trace(NamedTuple):
    """What one forward pass of the search keeps for the way back."""

    inputs: list[Any]
    extras: list[Any]
    log: float
    pull: Any
    multipliers: dict[int, Multipliers]


class _Search:
    """The program as a tape: forward keeps every Q, backward pulls the gradient through one step at a time."""

    def __init__(self, prepared: Prepared, local: Local | None):
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
            infinite = Intervals(prepared, None)
            for index in range(len(self.steps)):
                infinite.add(index, None)
            self.fixed = {
                index: centered(slopes_of(prepared.program, index, infinite.found))
                for index, step in enumerate(self.steps)
                if isinstance(step, Elementwise) and prepared.layouts[index].used
            }

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

    def forward(self, parameters: np.ndarray, power: float) -> _Trace:
        prepared, local = self.prepared, self.local
        program = prepared.program
        intervals = Intervals(prepared, local)
        state = (
            (jnp.eye(program.input_size), jnp.zeros(()))
            if prepared.starts_dense
            else (jnp.zeros(1), jnp.zeros(()))
        )
        dense = prepared.starts_dense
        inputs: list[Any] = []
        extras: list[Any] = []
        used: dict[int, Multipliers] = {}
        function: Any
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
                    else centered(slopes_of(program, index, intervals.found))
                )
                inputs.append(
                    (_elementwise_norms_step, layout, state, (np.log(np.max(np.abs(m) + r) + 1e-300),))
                )
                extras.append(None)
                state = _forward(*inputs[-1])
            else:
                slopes = self._changing_slopes(index, intervals, state, layout)
                where = self.slices.get(index)
                own = np.zeros(step.size + 1) if where is None else parameters[where]
                if np.isnan(own[-1]):
                    own[:-1] += (
                        float(state[1]) - self.start[index].log
                    )  # from the scale of Q there to the one here
                arguments, T = self._arguments(own, slopes, state, layout)
                if where is not None:
                    parameters[where] = np.asarray(arguments[0])
                used[index] = Multipliers(np.asarray(T), float(state[1]))
                inputs.append((_elementwise_step, layout, state, arguments))
                extras.append(where)
                state = _forward(*inputs[-1])
            if local is None:
                continue
            intervals.add(index, local.radius * np.asarray(_radii(state, step.size, dense)))
        log, pull = _last(dense, state, power)
        return _Trace(inputs, extras, float(log), pull, used)

    def _arguments(self, own: np.ndarray, slopes: tuple, state: Any, layout: Layout) -> tuple[tuple, Any]:
        own, vector, T = _scaled_multipliers(layout, state[0], own, slopes[1] > 0)
        return (own, *slopes, vector), T

    def _changing_slopes(self, index: int, intervals: Intervals, state: Any, layout: Layout) -> tuple:
        """(m, r, dm, dr, radii, R): slopes and, by a difference, how they change with the radius of the interval."""
        step = self.steps[index]
        assert isinstance(step, Elementwise)
        if self.local is None:
            m, r = self.fixed[index]
            zero = np.zeros(step.size)
            return m, r, zero, zero, zero, 0.0
        program, R = self.prepared.program, self.local.radius
        m, r = centered(slopes_of(program, index, intervals.found))
        z = layout.rows(layout.sources[0])
        radii = R * np.exp(0.5 * float(state[1])) * np.sqrt(np.maximum(np.diag(np.asarray(state[0]))[z], 0))
        dm, dr = np.zeros(step.size), np.zeros(step.size)
        definition = program.order[step.source]
        defined = self.steps[definition] if definition >= 0 else None
        if not isinstance(defined, Elementwise) or defined.is_function:
            change = 1e-4 * radii + 1e-300
            lower, upper = intervals.found[step.source]
            narrow = intervals.around(step.source, radii)
            moved = (
                np.where(narrow[0] <= lower + 1e-2 * change, lower - change, lower),
                np.where(narrow[1] >= upper - 1e-2 * change, upper + change, upper),
            )
            wider = centered(slopes_of(program, index, {**intervals.found, step.source: moved}))
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


def _affine_step(layout: Layout, state: Any, operators: tuple) -> Any:
    X, log = state
    kept = layout.kept_rows()
    places = [layout.rows(position) for position in layout.sources]
    rows = sum(op.matmul(X[place]) for op, place in zip(operators, places, strict=True))
    corner = sum(op.matmul(rows[:, place].T) for op, place in zip(operators, places, strict=True))
    if kept.size:
        side = rows[:, kept]
        corner = jnp.block([[X[np.ix_(kept, kept)], side.T], [side, corner]])
    return _normalized((corner + corner.T) / 2, log)


def _source_block(layout: Layout, X: Any, own: Any, mask: Any) -> tuple[Any, Any]:
    """w^1/2 and w^1/2 Q_z w^1/2."""
    root = jnp.where(mask, jnp.exp(0.5 * own[:-1]), 0.0)
    z = layout.rows(layout.sources[0])
    return root, root[:, None] * X[z, z] * root


@partial(jax.jit, static_argnums=0)
def _scaled_multipliers(layout: Layout, X: Any, own: Any, mask: Any) -> tuple[Any, Any, Any]:
    """The leading eigenvector of w^1/2 Q_z w^1/2, and 1/V; a logit of NaN becomes the one that leaves 1/V = w."""
    root, B = _source_block(layout, X, own, mask)
    values, vectors = jnp.linalg.eigh(B)
    largest = jnp.maximum(values[-1], FLOOR)
    share = jnp.clip(largest, 1e-12, 1 - 1e-9)
    logit = jnp.where(jnp.isnan(own[-1]), jnp.log(share) - jnp.log1p(-share), own[-1])
    own = jnp.concatenate([jnp.clip(own[:-1], -300, 300), logit[None]])
    return own, vectors[:, -1], jax.nn.sigmoid(logit) * root**2 / largest


def _elementwise_step(
    layout: Layout, state: Any, own: Any, m: Any, r: Any, dm: Any, dr: Any, radii: Any, R: Any, vector: Any
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
    largest = jnp.maximum(vector @ B @ vector, FLOOR)
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
    """Log K, and the gradient of the smoother log (sum_i lambda_i^p)^(1/2p), with respect to the last state."""
    first, log = state
    if not dense:
        return first[-1], (jnp.zeros_like(first).at[-1].set(1.0), jnp.zeros(()))
    values, vectors = jnp.linalg.eigh(first)
    shares = jnp.maximum(values, 0.0) / jnp.maximum(values[-1], FLOOR)
    weights = shares**power / jnp.sum(shares**power)
    pull = 0.5 * (vectors * (weights / jnp.maximum(values, FLOOR))) @ vectors.T
    return 0.5 * (jnp.log(values[-1]) + log), (pull, jnp.full((), 0.5))


def _to_norms(layout: Layout, state: Any) -> Any:
    X, log = state
    norms = []
    for position in range(len(layout.sizes)):
        block = X[layout.rows(position), layout.rows(position)]
        leading = jnp.linalg.eigh(lax.stop_gradient(block))[1][:, -1]
        norms.append(0.5 * (jnp.log(jnp.maximum(leading @ block @ leading, FLOOR)) + log))
    return jnp.stack(norms), jnp.zeros(())


def _to_matrix(layout: Layout, state: Any) -> Any:
    norms, _ = state
    total = jax.nn.logsumexp(norms)
    squares = norms + total
    top = jnp.max(squares)
    diagonal = jnp.concatenate([jnp.full(n, jnp.exp(squares[i] - top)) for i, n in enumerate(layout.sizes)])
    return _normalized(jnp.diag(diagonal), top)


def _affine_norms_step(layout: Layout, state: Any, log_norms: Any) -> Any:
    norms, zero = state
    total = jax.nn.logsumexp(log_norms + norms[np.array(layout.sources)])
    return jnp.concatenate([norms[np.array(layout.kept, int)], total[None]]), zero


def _elementwise_norms_step(layout: Layout, state: Any, log_slope: Any) -> Any:
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
