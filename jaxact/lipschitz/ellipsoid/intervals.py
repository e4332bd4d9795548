"""The interval that each variable stays in within a region, by arithmetic and by the ellipsoid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxact.lipschitz._rounding import UNIT, VALUE_ERROR, sum_slack, up
from jaxact.lipschitz.ellipsoid.layout import Prepared, slopes_of
from jaxact.lipschitz.ellipsoid.maps import fan_in, magnitude_of
from jaxact.trace import Affine, Bounds, Elementwise, Program, applied


class Local(NamedTuple):
    """A region, as the engine uses it.

    Attributes:
        radius: of a ball that holds it.
        values: of every variable at the centre.
        errors: how far at most these are from those of exact arithmetic.
        input: the interval of the input.
        known: intervals found beforehand.
    """

    radius: float
    values: Mapping[int, np.ndarray]
    errors: Mapping[int, np.ndarray]
    input: Bounds
    known: Mapping[int, Bounds]


class Enclosures:
    """The intervals of the variables during one pass over the program."""

    def __init__(self, prepared: Prepared, local: Local | None):
        self.program = prepared.program
        self.local = local
        self.found = {0: _everything(self.program.input_size) if local is None else local.input}

    def add(self, index: int, radii: np.ndarray | None) -> None:
        """The interval of what step `index` defines; |v - v(x0)| <= radii by the ellipsoid."""
        step = self.program.steps[index]
        if self.local is None:
            self.found[step.out] = _everything(step.size)
            return
        bounds = self._by_arithmetic(index)
        if radii is not None and (isinstance(step, Affine) or step.is_function):
            bounds = _intersected(bounds, self.around(step.out, radii))
        if step.out in self.local.known:
            bounds = _intersected(bounds, self.local.known[step.out])
        # Two sound enclosures may miss each other by rounding.
        self.found[step.out] = np.minimum(*bounds), np.maximum(*bounds)

    def around(self, variable: int, radii: np.ndarray) -> Bounds:
        """The values at the centre, give or take `radii`."""
        assert self.local is not None
        return _spread(self.local.values[variable], radii + self.local.errors[variable])

    def _by_arithmetic(self, index: int) -> Bounds:
        step = self.program.steps[index]
        if isinstance(step, Affine):
            return self._of_sum(step)
        if step.range is not None:
            lower, upper = (np.asarray(end, np.float64) for end in step.range(self.found))
            return np.broadcast_to(lower, (step.size,)), np.broadcast_to(upper, (step.size,))
        return self._by_slopes(index, step) if step.is_function else _everything(step.size)

    def _of_sum(self, step: Affine) -> Bounds:
        ends = {source: self.found[source] for source in step.sources}
        if not all(np.isfinite(end).all() for pair in ends.values() for end in pair):
            return _everything(step.size)
        middles = {v: lower / 2 + upper / 2 for v, (lower, upper) in ends.items()}
        both = {v: _half_and_size(*ends[v], middles[v]) for v in ends}
        width, magnitude = magnitude_of(step, both).T
        magnitude = magnitude + (0 if step.offset is None else np.abs(step.offset).reshape(-1))
        return _spread(applied(step, middles), width + sum_slack(fan_in(step)) * magnitude)

    def _by_slopes(self, index: int, step: Elementwise) -> Bounds:
        assert self.local is not None
        value, center = self.local.values[step.out], self.local.values[step.source]
        alpha, beta = slopes_of(self.program, index, self.found)
        lower, upper = self.found[step.source]
        with np.errstate(invalid="ignore"):
            above, below = np.maximum(upper - center, 0), np.maximum(center - lower, 0)
            rise = np.maximum(np.maximum(beta * above, -alpha * below), 0)
            fall = np.maximum(np.maximum(-alpha * above, beta * below), 0)
        rise, fall = (np.where(np.isnan(w), np.inf, w * (1 + 1e-14)) for w in (rise, fall))
        error = self.local.errors[step.out]
        return outward(value - fall - error, value + rise + error)


def outward(lower: np.ndarray, upper: np.ndarray) -> Bounds:
    """Rounded outward; unbounded where an infinity that a mask adds made them NaN."""
    lower, upper = np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf)
    return np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper)


def center_errors(program: Program, values: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
    """How far values found in float64 may be from those of exact arithmetic, for each variable of a program.

    What cancels, as E x^2 - (E x)^2 does, keeps the rounding of what it cancels from: |error| <= |A| |error of v| +
    gamma |A| |v| through an affine step, and the enclosure of the step over [v - error, v + error] through another.
    """
    errors = {0: np.zeros(program.input_size)}
    thin: dict[int, Bounds] = {0: (values[0], values[0])}
    for index, step in enumerate(program.steps):
        value = values[step.out]
        if isinstance(step, Affine):
            error = _error_of_sum(step, values, errors)
        elif step.range is not None:
            lower, upper = step.range(thin)
            error = np.maximum(upper - value, value - lower)
        else:
            alpha, beta = slopes_of(program, index, thin)
            largest = np.max(np.abs(value), initial=0.0, where=np.isfinite(value))
            error = np.maximum(np.abs(alpha), np.abs(beta)) * errors[step.source] + VALUE_ERROR * largest
        error = np.where(np.isnan(error), np.inf, error * up(8))
        if isinstance(step, Elementwise):  # of a mask's infinity, which is itself, it has the value
            error = np.where(np.isfinite(values[step.source]), error, 16 * UNIT * np.abs(value))
        known = ~np.isfinite(value)
        errors[step.out] = np.where(known, 0.0, error)
        with np.errstate(invalid="ignore"):
            ends = outward(value - error, value + error)
        lower, upper = (np.where(known, value, end) for end in ends)
        thin[step.out] = lower, upper
    return errors


def _error_of_sum(
    step: Affine, values: Mapping[int, np.ndarray], errors: Mapping[int, np.ndarray]
) -> np.ndarray:
    both = {v: np.stack([errors[v], _finite_size(values[v])], 1) for v in step.sources}
    error, size = magnitude_of(step, both).T
    size = size + (0 if step.offset is None else _finite_size(step.offset).reshape(-1))
    return error + sum_slack(fan_in(step)) * size


def _finite_size(v: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(v), np.abs(v), 0.0)


def _half_and_size(lower: np.ndarray, upper: np.ndarray, middle: np.ndarray) -> np.ndarray:
    half = upper / 2 - lower / 2
    return np.stack([half, np.abs(middle) + half], 1)


def _everything(size: int) -> Bounds:
    infinite = np.full(size, np.inf)
    return -infinite, infinite


def _spread(center: np.ndarray, radii: np.ndarray) -> Bounds:
    if center.size == 0:
        return center, center
    radii = radii * up(4)
    with np.errstate(invalid="ignore"):
        return outward(center - radii, center + radii)


def _intersected(first: Bounds, second: Bounds) -> Bounds:
    return np.maximum(first[0], second[0]), np.minimum(first[1], second[1])
