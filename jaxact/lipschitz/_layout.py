"""What the engine knows of a program: where variables lie in Q, the intervals they stay in, and their slopes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.errors import ArgumentError
from jaxact.lipschitz._norms import UNIT, dense_norm
from jaxact.trace import (
    Affine,
    Bounds,
    Contraction,
    Dense,
    Diagonal,
    Elementwise,
    Identity,
    Linear,
    Operator,
    Program,
    matvec,
)

FLOOR = 1e-30  # beside a diagonal of mean 1: a coordinate that nothing moves would make a matrix singular
VALUE_ERROR = 1e-11  # of the values of an elementwise step without a `range`, relative to the largest
_MATERIALIZE = 2**22  # entries up to which a map known by its products is written out as a matrix


class Layout(NamedTuple):
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
class Prepared:
    program: Program
    before: tuple[tuple[int, ...], ...]  # the variables in use before each step
    after: tuple[tuple[int, ...], ...]
    layouts: tuple[Layout, ...]
    dense: tuple[bool, ...]  # whether Q is held as a matrix after each step
    starts_dense: bool
    by_norms: bool
    norms: dict[tuple[int, int], float]  # (step, term) -> norm, found when asked for

    def norm(self, index: int, term: int) -> float:
        if (index, term) not in self.norms:
            step = self.program.steps[index]
            assert isinstance(step, Affine)
            value = operator_norm(step.terms[term][1])
            if not math.isfinite(value):
                raise ValueError(f"Step {label(self.program, index)} must have a finite norm, got {value}.")
            self.norms[index, term] = value
        return self.norms[index, term]


def prepare(program: Program, memory_limit: int) -> Prepared:
    steps = []
    for index, step in enumerate(program.steps):
        if isinstance(step, Affine):
            terms = tuple((source, _host(operator)) for source, operator in step.terms)
            for _, operator in terms:
                entries = getattr(operator, "matrix", getattr(operator, "d", None))
                if entries is not None and not np.isfinite(entries).all():
                    raise ValueError(
                        f"Step {label(program, index)} must have finite weights, got NaN or inf. "
                        "A diverged network has no Lipschitz bound."
                    )
            step = replace(step, terms=terms)
        elif isinstance(step, Elementwise) and step.size == 0:  # no entries to take an eigenvalue of
            step = Affine(step.out, ((step.source, Identity(0)),), 0, label=step.label)
        steps.append(step)
    program = Program(program.input_size, tuple(steps), program.output)
    after = program.live()
    before = ((0,), *after)[: len(after)]
    layouts, dense = [], []
    for step, ins, outs in zip(program.steps, before, after, strict=True):
        used = step.out in outs
        sources = tuple(ins.index(v) for v in step.sources) if used else ()
        kept = tuple(ins.index(v) for v in outs if v != step.out)
        layouts.append(Layout(tuple(program.sizes[v] for v in ins), sources, kept, used))
        rows = sum(program.sizes[v] for v in ins) + (0 if isinstance(step, Affine) else step.size)
        dense.append(max(rows, sum(program.sizes[v] for v in outs)) <= memory_limit)
    starts_dense = program.input_size <= memory_limit
    by_norms = not (all(dense) and starts_dense)
    return Prepared(program, before, after, tuple(layouts), tuple(dense), starts_dense, by_norms, {})


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

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


def operator_norm(operator: Operator) -> float:
    """An upper bound on ||A||_2."""
    match operator:
        case Identity():
            return 1.0
        case Diagonal(d):
            return float(np.max(np.abs(d), initial=0.0))
        case Linear():
            return operator.norm
        case _Written(origin=origin) if origin is not None:
            return min(dense_norm(operator.dense()), origin.norm)
    return dense_norm(operator.dense())


def label(program: Program, index: int) -> str:
    step = program.steps[index]
    if step.label:
        return step.label
    if isinstance(step, Affine):
        return f"affine {step.out}: {sum(program.sizes[v] for v in step.sources)} -> {step.size}"
    return f"elementwise {step.out}: {step.size}"


class Local(NamedTuple):
    """A region, as the engine uses it."""

    radius: float
    values: Mapping[int, np.ndarray]  # at the centre
    errors: Mapping[int, np.ndarray]  # how far at most these are from those of exact arithmetic
    input: Bounds
    known: Mapping[int, Bounds]  # intervals found beforehand


class Multipliers(NamedTuple):
    """1/V = exp(-log) T: of the scale of Q, whose logarithm may be out of range."""

    T: np.ndarray
    log: float


def outward(lower: np.ndarray, upper: np.ndarray) -> Bounds:
    """Rounded outward; unbounded where an infinity that a mask adds made them NaN."""
    lower, upper = np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf)
    return np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper)


def _spread(center: np.ndarray, radii: np.ndarray | float) -> Bounds:
    if center.size == 0:
        return center, center
    radii = radii * (1 + 4 * UNIT)
    with np.errstate(invalid="ignore"):
        return outward(center - radii, center + radii)


def _intersected(first: Bounds, second: Bounds) -> Bounds:
    return np.maximum(first[0], second[0]), np.minimum(first[1], second[1])


class Intervals:
    """The intervals of the variables during one pass over the program."""

    def __init__(self, prepared: Prepared, local: Local | None):
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
        assert self.local is not None
        return _spread(self.local.values[variable], radii + self.local.errors[variable])

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
                spread = absolute_product(operator, np.stack([half, np.abs(middle) + half], 1))
                if spread is None:
                    return -infinite, infinite
                center = center + matvec(operator, middle)
                width += spread[:, 0]
                magnitude += spread[:, 1]
            slack = 4 * (sum(self.program.sizes[s] for s, _ in step.terms) + 8) * UNIT * magnitude
            return _spread(center, width + slack)
        if step.range is not None:
            lower, upper = (
                np.broadcast_to(np.asarray(end, np.float64), (step.size,)) for end in step.range(self.found)
            )
            return lower, upper
        if not step.is_function:
            return -infinite, infinite
        assert self.local is not None
        value, center = self.local.values[step.out], self.local.values[step.source]
        alpha, beta = slopes_of(self.program, index, self.found)
        lower, upper = self.found[step.source]
        with np.errstate(invalid="ignore"):
            up, down = np.maximum(upper - center, 0), np.maximum(center - lower, 0)
            rise = np.maximum(np.maximum(beta * up, -alpha * down), 0)
            fall = np.maximum(np.maximum(-alpha * up, beta * down), 0)
        rise, fall = (np.where(np.isnan(w), np.inf, w * (1 + 1e-14)) for w in (rise, fall))
        error = self.local.errors[step.out]
        return outward(value - fall - error, value + rise + error)


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
            error = _affine_error(program, step, values, errors)
        elif step.range is not None:
            lower, upper = step.range(thin)
            error = np.maximum(upper - value, value - lower)
        else:
            alpha, beta = slopes_of(program, index, thin)
            largest = np.max(np.abs(value), initial=0.0, where=np.isfinite(value))
            error = np.maximum(np.abs(alpha), np.abs(beta)) * errors[step.source] + VALUE_ERROR * largest
        error = np.where(np.isnan(error), np.inf, error * (1 + 8 * UNIT))
        if isinstance(step, Elementwise):  # of a mask's infinity, which is itself, it has the value
            error = np.where(np.isfinite(values[step.source]), error, 16 * UNIT * np.abs(value))
        known = ~np.isfinite(value)
        errors[step.out] = np.where(known, 0.0, error)
        with np.errstate(invalid="ignore"):
            ends = outward(value - error, value + error)
        lower, upper = (np.where(known, value, end) for end in ends)
        thin[step.out] = lower, upper
    return errors


def _affine_error(
    program: Program, step: Affine, values: Mapping[int, np.ndarray], errors: Mapping[int, np.ndarray]
) -> np.ndarray:
    size = np.zeros(step.size) if step.offset is None else np.abs(np.asarray(step.offset, np.float64))
    size, error = np.where(np.isfinite(size), size, 0.0).reshape(-1), np.zeros(step.size)
    for source, operator in step.terms:
        both = np.stack(
            [errors[source], np.where(np.isfinite(values[source]), np.abs(values[source]), 0.0)], 1
        )
        carried = absolute_product(operator, both)
        if carried is None:
            carried = np.broadcast_to(operator_norm(operator) * np.linalg.norm(both, axis=0), (step.size, 2))
        error, size = error + carried[:, 0], size + carried[:, 1]
    return error + 4 * (sum(program.sizes[source] for source, _ in step.terms) + 8) * UNIT * size


def absolute_product(operator: Operator, X: np.ndarray) -> np.ndarray | None:
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


def slopes_of(program: Program, index: int, intervals: Mapping[int, Bounds]) -> Bounds:
    step = program.steps[index]
    assert isinstance(step, Elementwise)
    with jax.enable_x64(True):
        alpha, beta = (np.asarray(end, np.float64) for end in step.slopes(intervals))
    alpha, beta = (np.broadcast_to(end, (step.size,)) for end in (alpha, beta))
    if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
        raise ArgumentError(
            f"Step {label(program, index)} must have bounded slopes, got [{alpha.min()}, {beta.max()}].",
            "No bound holds for all these inputs: pass `region=`, or a smaller one.",
            give="region",
        )
    if (alpha > beta).any():
        raise ValueError(f"Step {label(program, index)} must have slopes with lower <= upper.")
    return alpha, beta


def stretch_of(program: Program, index: int, intervals: Mapping[int, Bounds]) -> float:
    step = program.steps[index]
    assert isinstance(step, Contraction)
    constant = float(step.constant(intervals))
    if not math.isfinite(constant):
        raise ArgumentError(
            f"Step {label(program, index)} must have a bounded slope, got {constant}.",
            "No bound holds for all these inputs: pass `region=`, or a smaller one.",
            give="region",
        )
    return constant
