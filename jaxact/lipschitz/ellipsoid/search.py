"""The search for multipliers that lower the bound of a program: gradient descent over a tape of its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from jaxact.lipschitz._rounding import FLOOR
from jaxact.lipschitz.ellipsoid import step
from jaxact.lipschitz.ellipsoid.intervals import Enclosures, Local
from jaxact.lipschitz.ellipsoid.layout import Prepared, slopes_of, stretch_of
from jaxact.lipschitz.ellipsoid.multipliers import Multipliers, searched
from jaxact.lipschitz.ellipsoid.step import Matrix, Norms, leading
from jaxact.lipschitz.ellipsoid.walk import State, carry, log_factors
from jaxact.trace import Elementwise, centered

#: From the gradient by what a step made, X or logarithms of norms, to that by what it read.
_Pull: TypeAlias = Callable[[np.ndarray], np.ndarray]
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
        search = Search(prepared, local, start)
        parameters = search.parameters
        first, second = np.zeros_like(parameters), np.zeros_like(parameters)
        history, best, found = [], math.inf, None
        for number in range(1, num_steps + 2):
            # A smooth mean of the eigenvalues first, the largest in the end: at the optimum many are equal.
            power = 2 * 250 ** (number / (num_steps + 1))
            last = number > num_steps or time.perf_counter() > deadline
            anew = last or number <= _EARLY or number % _EVERY == 0
            log, pulled = search.forward(parameters, power, anew)
            if not math.isfinite(log):
                break
            history.append(log)
            if search.anew and log < best:
                best, found = log, search.used
            stalled = tolerance is not None and number > 20 and history[-21] - min(history[-20:]) < tolerance
            if last or stalled:
                break
            gradient = search.backward(pulled)
            first = _MOMENTUM * first + (1 - _MOMENTUM) * gradient
            second = _MEMORY * second + (1 - _MEMORY) * gradient**2
            scale = np.sqrt(second / (1 - _MEMORY**number)) + 1e-12
            rate = learning_rate * 0.5 * (1 + math.cos(math.pi * (number - 1) / num_steps))
            parameters = parameters - rate * first / (1 - _MOMENTUM**number) / scale
    return found, history


class _Slopes(NamedTuple):
    """Slopes m +- r of a step, and how they change with the radius of its source's interval."""

    m: np.ndarray
    r: np.ndarray
    dm: np.ndarray
    dr: np.ndarray
    radii: np.ndarray


class Search:
    """The rules of a pass that keeps a tape: `forward` carries Q, `backward` pulls a gradient through every step.

    Attributes:
        parameters: log w of every neuron and a logit v for each elementwise step, where the search starts.
        used: the multipliers of the last pass.
        anew: whether that found its slopes itself.
    """

    def __init__(self, prepared: Prepared, local: Local | None, start: Mapping[int, Multipliers]):
        self.prepared, self.local, self.start = prepared, local, start
        self.steps = prepared.program.steps
        self.used: dict[int, Multipliers] = {}
        self.anew = True
        self._pulls: list[_Pull] = []
        self._slopes: dict[int, _Slopes] = {}  # and constants and norms, of the last pass that found them
        self._constants: dict[int, float] = {}
        self._factors: dict[int, np.ndarray] = {}
        self._places: dict[int, slice] = {}
        parts = [np.zeros(0)]
        for index, (T, _) in start.items():
            if local is None and not (T > 0).any():
                continue
            typical = np.exp(np.mean(np.log(T[T > 0]))) if (T > 0).any() else 1.0
            at = sum(part.size for part in parts)
            self._places[index] = slice(at, at + T.size + 1)
            parts.append(np.append(np.log(np.where(T > 0, T, typical)), np.nan))
        self.parameters = np.concatenate(parts)

    def forward(self, parameters: np.ndarray, power: float, anew: bool = True) -> tuple[float, np.ndarray]:
        """Log K, NaN where an inequality fails, and the gradient of a smoother one by the last state."""
        self.anew, self._again = anew or self.local is None, anew and self.local is not None
        self._given, self._pulls, self.used = parameters, [], {}
        size = self.prepared.program.input_size
        state: State = Matrix(np.eye(size)) if self.prepared.starts_dense else Norms(np.zeros(1))
        try:
            state = carry(self, self.prepared, self.local, state)
        except ArithmeticError:
            return math.nan, np.zeros(0)
        if isinstance(state, Norms):
            return float(state.logs[-1]), np.eye(state.logs.size)[-1]
        return _smoothed(state, power)

    def backward(self, pulled: np.ndarray) -> np.ndarray:
        """The gradient by the parameters, from that by the last state."""
        self._gradient = np.zeros(self.parameters.size)
        for pull in reversed(self._pulls):
            pulled = pull(pulled)
        return np.where(np.isfinite(self._gradient), self._gradient, 0.0)

    # --- Steps --------------------------------------------------------------------------------------------------------

    def made(self, index: int, state: State, intervals: Enclosures) -> None:
        """The intervals, in a pass that finds its slopes."""
        if self.anew:
            radii = None if self.local is None else self.local.radius * state.radii(self.steps[index].size)
            intervals.add(index, radii)

    def _kept(self, made: Matrix, before: int, pull: _Pull) -> Matrix:
        """On the tape; powers of 2 by which the result is scaled are constants."""
        scaled = made.rescaled()
        scaled = Matrix((scaled.X + scaled.X.T) / 2, scaled.exponent)
        self._pulls.append(lambda g: pull(np.ldexp(g, before - scaled.exponent)))
        return scaled

    def affine(self, index: int, state: Matrix) -> Matrix:
        """On the tape, as every step."""
        layout, size = self.prepared.layouts[index], len(state.X)
        operators = [operator for _, operator in self.steps[index].terms]
        made = step.affine(state, layout, operators)
        pull = partial(step.affine_adjoint, size=size, layout=layout, operators=operators)
        return self._kept(made, state.exponent, pull)

    def contraction(self, index: int, state: Matrix, intervals: Enclosures) -> Matrix:
        """With the shares that are best at this point."""
        layout = self.prepared.layouts[index]
        z, kept = layout.read, layout.kept_rows()
        if self._again or index not in self._constants:
            self._constants[index] = stretch_of(self.prepared.program, index, intervals.found)
        constant = self._constants[index]
        K = state.X[np.ix_(kept, kept)]
        s, vector = leading(state.X[z, z])
        a, b = math.sqrt(leading(K)[0]) if kept.size else 0.0, constant * math.sqrt(s)
        made = Matrix(step.contraction(K, self.steps[index].size, a, b), state.exponent)
        known = {"layout": layout, "constant": constant, "a": a, "b": b, "vector": vector}
        return self._kept(made, state.exponent, partial(step.contraction_adjoint, size=len(state.X), **known))

    def elementwise(self, index: int, state: Matrix, intervals: Enclosures) -> Matrix:
        """With the multipliers that the parameters are, and slopes of this pass or moved from an earlier one."""
        layout, place = self.prepared.layouts[index], self._places.get(index)
        z, size = layout.read, len(state.X)
        if self._again or index not in self._slopes:
            self._slopes[index] = self._found(index, state, intervals)
        m, r, dm, dr, now = self._moved(index, state)
        own = np.zeros(m.size + 1) if place is None else self._given[place]
        if place is not None and np.isnan(own[-1]):  # from the scale of Q there to the one here
            own[:-1] += (state.exponent - self.start[index].exponent) * math.log(2)
        chosen = searched(state.X[z, z], own, r > 0)
        found = step.elementwise(state, layout, m, r, chosen.T)
        self.used[index] = Multipliers(chosen.T, state.exponent)

        def pull(g: np.ndarray) -> np.ndarray:
            g_X, g_T, g_m, g_r = found.adjoint(g, size)
            g_Z, g_own = chosen.adjoint(g_T)
            # Radii are roots of the diagonal, and move the slopes.
            g_diagonal = (g_m * dm + g_r * dr) * now / (2 * np.where(now > 0, np.diag(state.X)[z], 1.0))
            g_X[z, z] += g_Z + np.diag(g_diagonal)
            if place is not None:
                self._gradient[place] = g_own
            return g_X

        return self._kept(found.made, state.exponent, pull)

    def by_norms(self, index: int, state: Norms, intervals: Enclosures) -> Norms:
        """With factors of this pass or an earlier one."""
        layout = self.prepared.layouts[index]
        if self._again or index not in self._factors:
            self._factors[index] = log_factors(self.prepared, index, intervals)
        given = {"state": state, "layout": layout, "log_factors": self._factors[index]}
        self._pulls.append(partial(step.by_norms_adjoint, **given))
        return step.by_norms(**given)

    def to_norms(self, index: int, state: Matrix) -> Norms:
        """By the largest eigenvalues."""
        layout = self.prepared.layouts[index]
        places = [layout.rows(position) for position in range(len(layout.sizes))]
        found = [leading(state.X[place, place]) for place in places]
        self._pulls.append(partial(step.to_norms_adjoint, size=len(state.X), layout=layout, found=found))
        return step.to_norms(state, [value for value, _ in found])

    def to_matrix(self, index: int, state: Norms) -> Matrix:
        """Of shares that the norms choose."""
        layout = self.prepared.layouts[index]
        self._pulls.append(partial(step.to_matrix_adjoint, state=state, layout=layout))
        return step.to_matrix(state, layout)

    # --- Slopes within a region ---------------------------------------------------------------------------------------

    def _moved(self, index: int, state: Matrix) -> tuple[np.ndarray, ...]:
        """(m, r) with the radii of now, their derivatives by these, and the radii: 0 where none is taken."""
        m, r, dm, dr, radii = self._slopes[index]
        if self.local is None or not radii.any():
            return m, r, dm, dr, radii
        diagonal = np.diag(state.X)[self.prepared.layouts[index].read]
        now = np.where((radii > 0) & (diagonal > 0), self._radii(index, state), 0.0)
        # No extrapolating far off: differences of steep slopes would run away.
        near = (now > 0) & (np.maximum(np.abs(dm), np.abs(dr)) * np.abs(now - radii) <= 0.2 * r)
        change = np.where(near, now - radii, 0.0)
        m, r = m + dm * change, np.where(r > 0, np.maximum(r + dr * change, 1e-3 * r), 0.0)
        return m, r, dm, dr, np.where(near, now, 0.0)

    def _radii(self, index: int, state: Matrix) -> np.ndarray:
        assert self.local is not None
        diagonal = np.diag(state.X)[self.prepared.layouts[index].read]
        size = math.exp(min(0.5 * state.exponent * math.log(2), 700.0))
        return self.local.radius * size * np.sqrt(np.maximum(diagonal, 0))

    def _found(self, index: int, state: Matrix, intervals: Enclosures) -> _Slopes:
        program, own = self.prepared.program, self.steps[index]
        assert isinstance(own, Elementwise)
        m, r = centered(*slopes_of(program, index, intervals.found))
        zero = np.zeros_like(m)
        fixed = _Slopes(m, r, zero, zero, zero)
        definition = program.order[own.source]
        defined = self.steps[definition] if definition >= 0 else None
        if self.local is None or (isinstance(defined, Elementwise) and not defined.is_function):
            return fixed
        # How slopes change with the radius: by a difference, where the radius is what bounds the interval.
        radii = self._radii(index, state)
        change = 1e-4 * radii + 1e-300
        lower, upper = intervals.found[own.source]
        narrow = intervals.around(own.source, radii)
        at_lower, at_upper = narrow[0] <= lower + 1e-2 * change, narrow[1] >= upper - 1e-2 * change
        # Where slopes are one number, or as wide as can be, nothing is lost by taking them as they are.
        if not ((r > 0) & (radii > 0) & (at_lower | at_upper)).any():
            return fixed
        wider = np.where(at_lower, lower - change, lower), np.where(at_upper, upper + change, upper)
        there = centered(*slopes_of(program, index, {**intervals.found, own.source: wider}))
        dm, dr = (np.where(radii > 0, (w - v) / change, 0.0) for w, v in zip(there, (m, r), strict=True))
        # A jump of the slope is no derivative.
        steep = np.abs(dm) + np.abs(dr) > 1e2 * (np.abs(m) + r) / np.maximum(radii, 1e-300)
        return _Slopes(m, r, np.where(steep, 0.0, dm), np.where(steep | (r == 0), 0.0, dr), radii)


def _smoothed(state: Matrix, power: float) -> tuple[float, np.ndarray]:
    """Log K, and the gradient by X of the smoother log (sum_i lambda_i^p)^(1/2p)."""
    if not np.isfinite(state.X).all():
        return math.nan, state.X
    values, vectors = np.linalg.eigh(state.X)
    largest = max(values[-1], FLOOR)
    shares = np.maximum(values, 0.0) / largest
    weights = shares**power / np.sum(shares**power)
    return state.log(largest), 0.5 * (vectors * (weights / np.maximum(values, FLOOR))) @ vectors.T
