"""Entrywise enclosures of the values and difference quotients of a program, over many boxes at once.

For any two inputs of a box the outputs differ by f(x') - f(x) = M (x' - x), where M is a product of the program's
matrices and of diagonal matrices of slopes. M is carried as |M - middle| <= radius, entry by entry (Rump 1999, Fast
and parallel interval arithmetic, BIT 39), and as the boxes shrink it tends to the Jacobian. With it values are
enclosed by the mean value form f(c) + M [x - c] besides interval arithmetic. All radii include the rounding of
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxact.errors import ArgumentError
from jaxact.lipschitz._interval import (
    Pair,
    absolute,
    centered,
    ends,
    meet,
    miss,
    outward,
    product_with,
    rounding,
    written,
)
from jaxact.lipschitz._pieces import Pieces, pieces_of
from jaxact.lipschitz._program import Ball, Region
from jaxact.lipschitz._rounding import UNIT
from jaxact.trace import Affine, Contraction, Elementwise, Program

MOST_ENTRIES = 2**25  # of all enclosures of M together, 512 MiB


class Quotients(NamedTuple):
    """All M with |M - middle| <= radius, both [size, box, in]."""

    middle: Float[np.ndarray, "size box in"]
    radius: Float[np.ndarray, "size box in"]

    def most(self) -> Float[np.ndarray, "size box in"]:
        """The largest |M| entry by entry."""
        return (np.abs(self.middle) + self.radius) * (1 + 2 * UNIT)


@dataclass
class Enclosed:
    """What holds for all inputs of each box.

    Attributes:
        intervals: variable -> (lower, upper), each [size, box].
        quotients: variable -> how much it can move with the input.
        slopes: step -> (alpha, beta), each [size, box], of elementwise steps.
        centers: variable -> (lower, upper), likewise, of its value at the centre of each box.
        is_empty: whether no input is left of a box, for one box.
    """

    intervals: dict[int, Pair] = field(default_factory=dict)
    quotients: dict[int, Quotients] = field(default_factory=dict)
    slopes: dict[int, Pair] = field(default_factory=dict)
    centers: dict[int, Pair] = field(default_factory=dict)
    is_empty: bool = False


class Engine:
    """A program whose operators are written out, to be enclosed over boxes.

    Raises:
        ValueError: an operator has too many entries, or a step that is no function of its source has no range.
    """

    def __init__(self, program: Program):
        entries = sum(program.sizes.values()) * program.input_size
        if entries > MOST_ENTRIES:
            raise ArgumentError(
                f"has {sum(program.sizes.values())} hidden values of {program.input_size} inputs, more than can be "
                f"enclosed entry by entry ({MOST_ENTRIES} products).",
                argument="fn",
            )
        self.program = program
        self._matrices = {
            (index, term): written(operator)
            for index, step in enumerate(program.steps)
            if isinstance(step, Affine)
            for term, (_, operator) in enumerate(step.terms)
        }
        self._asked: dict[tuple[int, str], bool] = {}
        self._pieces: dict[int, Pieces] = {}
        self._known: dict[int, Pair] = {}

    def settle(self, region: Region) -> Enclosed:
        """Prepare for parts of a region, whose intervals hold in all; what is piecewise linear becomes a table."""
        whole = self.within(region)
        intervals = whole.intervals
        for index, step in enumerate(self.program.steps):
            if isinstance(step, Elementwise) and step.size:
                low, high = intervals[step.source]
                pieces = pieces_of(step, float(low.min()), float(high.max()))
                if pieces is not None:
                    self._pieces[index] = pieces
        self._known = {v: pair for v, pair in intervals.items() if v != 0}
        return whole

    def kinks(self, index: int) -> Float[np.ndarray, " kink"]:
        """Those of an elementwise step that is known to be piecewise linear; else none."""
        return self._pieces[index].ends[1:-1] if index in self._pieces else np.zeros(0)

    @property
    def most_boxes(self) -> int:
        """So many at once."""
        return max(MOST_ENTRIES // (4 * sum(self.program.sizes.values()) * self.program.input_size), 1)

    def within(self, region: Region | None) -> Enclosed:
        """Enclose every variable over a region as one box, or over all inputs."""
        if region is None:
            infinite = np.full((1, self.program.input_size), np.inf)
            return self.enclose(-infinite, infinite)
        lower, upper = ends(region)
        return self.enclose(
            lower[None], upper[None], radius=region.radius if isinstance(region, Ball) else None
        )

    def enclose(
        self,
        lower: Float[np.ndarray, "box in"],
        upper: Float[np.ndarray, "box in"],
        *,
        radius: float | None = None,
        clipped: Mapping[int, Pair] | None = None,
    ) -> Enclosed:
        """Enclose every variable over boxes; infinite ones for all inputs.

        Args:
            lower: ends of the boxes.
            upper: likewise.
            radius: the inputs lie within this Euclidean distance of the boxes' centres besides, if given.
            clipped: variable -> (lower, upper): only inputs where it lies between count. The boxes' centres may be
                none of these, so that no mean value form is used.
        """
        found = Enclosed()
        lower, upper = lower.T, upper.T
        finite = bool(np.isfinite(lower).all() and np.isfinite(upper).all())
        center = lower / 2 + upper / 2 if finite else np.zeros_like(lower)
        half = np.maximum(upper - center, center - lower) * (1 + 4 * UNIT)
        found.intervals[0], found.centers[0] = (lower, upper), (center, center)
        n, boxes = lower.shape
        eye = np.broadcast_to(np.eye(n)[:, None, :], (n, boxes, n))
        found.quotients[0] = Quotients(eye, np.zeros_like(eye))
        with jax.enable_x64(True), np.errstate(invalid="ignore", over="ignore"):
            for index, step in enumerate(self.program.steps):
                if isinstance(step, Elementwise):
                    found.slopes[index] = self.slopes(index, found.intervals)
                found.quotients[step.out] = self.quotients(index, found)
                if not finite:
                    infinite = np.full((step.size, boxes), np.inf)
                    found.intervals[step.out] = -infinite, infinite
                    continue
                bounds = self._range(index, found.intervals)
                if clipped is None:
                    found.centers[step.out] = self._range(index, found.centers)
                if clipped is None and (isinstance(step, Affine) or step.is_function):
                    moved = _moved(found.quotients[step.out], half, radius)
                    around = found.centers[step.out]
                    bounds = meet(bounds, outward(around[0] - moved, around[1] + moved))
                for known in (self._known, clipped or {}):
                    if step.out in known:
                        found.is_empty |= miss(bounds, known[step.out])
                        bounds = meet(bounds, known[step.out])
                found.intervals[step.out] = bounds
        return found

    def narrowed(
        self, lower: Float[np.ndarray, "1 in"], upper: Float[np.ndarray, "1 in"], clipped: Mapping[int, Pair]
    ) -> tuple[Float[np.ndarray, "1 in"], Float[np.ndarray, "1 in"]]:
        """The part of a box that linear functions of the input which are clipped leave of it.

        a x + c <= t says a_j x_j <= t - c - sum_{k != j} min a_k x_k of every entry. Empty where lower > upper.
        """
        for step in self.program.steps:
            if not isinstance(step, Affine) or step.sources != (0,) or step.out not in clipped:
                continue
            A = np.zeros((step.size, self.program.input_size))
            for _, operator in step.terms:
                A = A + np.asarray(operator.dense(), np.float64)
            c = (
                np.zeros(step.size)
                if step.offset is None
                else np.asarray(step.offset, np.float64).reshape(-1)
            )
            low, high = (end[:, 0] - c for end in clipped[step.out])
            ends_of = np.stack([A * lower, A * upper])
            least, most = ends_of.min(0), ends_of.max(0)
            slack = (
                8
                * rounding(A.shape[1])
                * (np.abs(ends_of).max(0).sum(1) + np.abs(c) + np.abs(low) + np.abs(high))
            )
            top = (high - least.sum(1) + slack)[:, None] + least
            bottom = (low - most.sum(1) - slack)[:, None] + most
            with np.errstate(divide="ignore", invalid="ignore"):
                first, second = bottom / A, top / A
            first, second = np.where(A > 0, first, second), np.where(A > 0, second, first)
            known = A != 0
            lower = np.maximum(lower, np.where(known, first, -np.inf).max(0))
            upper = np.minimum(upper, np.where(known, second, np.inf).min(0))
        return lower, upper

    def output(self, slopes: Mapping[int, Pair], stretch: Enclosed) -> Quotients:
        """The quotients of the output for other slopes: of columns that may be more than the boxes.

        Args:
            slopes: step -> (alpha, beta), each [size, column].
            stretch: unused intervals of contractions are taken from it; only for programs without them.
        """
        n = self.program.input_size
        columns = next(iter(slopes.values()))[0].shape[1] if slopes else 1
        eye = np.broadcast_to(np.eye(n)[:, None, :], (n, columns, n))
        found = Enclosed(slopes=dict(slopes), intervals=stretch.intervals)
        found.quotients[0] = Quotients(eye, np.zeros_like(eye))
        with np.errstate(invalid="ignore", over="ignore"):
            for index, step in enumerate(self.program.steps):
                found.quotients[step.out] = self.quotients(index, found)
        return found.quotients[self.program.output]

    def quotients(self, index: int, found: Enclosed) -> Quotients:
        """Those of what a step defines, from those of its sources."""
        step = self.program.steps[index]
        if isinstance(step, Elementwise):
            middle, half = centered(*found.slopes[index])
            m, r = middle[:, :, None], half[:, :, None]
            J = found.quotients[step.source]
            product = m * J.middle
            size = np.abs(J.middle)
            spread = np.abs(m) * J.radius + r * (size + J.radius) + 2 * UNIT * np.abs(product)
            return Quotients(product, spread * (1 + 8 * UNIT))
        if isinstance(step, Contraction):
            most = found.quotients[step.source].most()
            constant = _by_box(
                lambda intervals: step.constant(intervals, None), found.intervals, most.shape[1]
            )
            columns = np.sqrt(np.square(most).sum(0)) * (constant[:, None] * (1 + (len(most) + 8) * UNIT))
            zero = np.zeros((step.size, *columns.shape))
            return Quotients(zero, np.broadcast_to(columns, zero.shape))
        assert isinstance(step, Affine)
        center: Any = 0.0
        radius: Any = 0.0
        for term, (source, _) in enumerate(step.terms):
            J = found.quotients[source]
            A = self._matrices[index, term]
            g = rounding(J.middle.shape[0] + len(step.terms))
            center = center + product_with(A, J.middle)
            radius = radius + product_with(absolute(A), J.radius * (1 + 2 * g) + g * np.abs(J.middle))
        return Quotients(
            np.asarray(center), np.asarray(radius) * (1 + 2 * rounding(_inner(self.program, step)))
        )

    def slopes(self, index: int, intervals: Mapping[int, Pair]) -> Pair:
        """(alpha, beta) of an elementwise step, each [size, box].

        Raises:
            ValueError: they are infinite.
        """
        step = self.program.steps[index]
        assert isinstance(step, Elementwise)
        if index in self._pieces:
            return self._pieces[index].slope_range(*intervals[step.source])
        alpha, beta = self._asked_of(index, "slopes", step.slopes, intervals)
        return _finite(alpha, beta, self.program.record(index))

    def _range(self, index: int, intervals: Mapping[int, Pair]) -> Pair:
        step = self.program.steps[index]
        if index in self._pieces:
            assert isinstance(step, Elementwise)
            return self._pieces[index].value_range(*intervals[step.source])
        if not isinstance(step, Affine):
            if step.range is None:
                raise ValueError(f"Step {self.program.record(index)} must have a `range` to be enclosed.")
            return self._asked_of(index, "range", step.range, intervals)
        matrices = [self._matrices[index, term] for term in range(len(step.terms))]
        return _range_of_sum(self.program, step, matrices, intervals)

    def _asked_of(
        self, index: int, what: str, of: Callable[[Any], Any], intervals: Mapping[int, Pair]
    ) -> Pair:
        """Ask a step of all boxes at once where it answers as it does of each alone, else of one after the other."""
        step = self.program.steps[index]
        assert not isinstance(step, Affine)
        reads = (*step.sources, *getattr(step, "reads", ()))
        boxes = intervals[step.sources[0]][0].shape[1]
        given = {v: (intervals[v][0].T, intervals[v][1].T) for v in reads}

        each = partial(_one_by_one, of, given, step.size)
        if boxes == 1:
            answer = each([0])
        elif self._asked.get((index, what), True):
            answer = _at_once(of, given, (boxes, step.size))
            if (index, what) not in self._asked:
                sample = [0, boxes // 2, boxes - 1]
                self._asked[index, what] = answer is not None and all(
                    np.array_equal(ours[sample], theirs)
                    for ours, theirs in zip(answer, each(sample), strict=True)
                )
            if not self._asked[index, what]:
                answer = each(range(boxes))
        else:
            answer = each(range(boxes))
        assert answer is not None
        return answer[0].T, answer[1].T


def _range_of_sum(
    program: Program, step: Affine, matrices: Sequence[Any], intervals: Mapping[int, Pair]
) -> Pair:
    """The interval of an affine step, in each box."""
    offset = np.zeros(step.size) if step.offset is None else np.asarray(step.offset, np.float64).reshape(-1)
    center, width = offset[:, None], np.abs(offset)[:, None] * (4 * UNIT)
    for A, (source, _) in zip(matrices, step.terms, strict=True):
        lower, upper = intervals[source]
        middle, half = centered(lower, upper)
        g = rounding(len(lower) + len(step.terms) + 1)
        center = center + product_with(A, middle)
        width = width + product_with(absolute(A), half * (1 + 2 * g) + g * np.abs(middle))
    width = width * (1 + 2 * rounding(_inner(program, step))) + 4 * len(step.terms) * UNIT * np.abs(center)
    return outward(center - width, center + width)


def _finite(alpha: np.ndarray, beta: np.ndarray, record: Any) -> Pair:
    if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
        raise ArgumentError(
            f"Step {record} must have bounded slopes, got [{alpha.min()}, {beta.max()}].",
            "No bound holds for all these inputs: pass `region=`, or a smaller one.",
            give="region",
        )
    return alpha, beta


def _inner(program: Program, step: Affine) -> int:
    """The terms of the longest sum in an affine step."""
    return sum(program.sizes[source] for source, _ in step.terms) + 2 * len(step.terms)


def _one_by_one(of: Callable[[Any], Any], given: Any, size: int, rows: Sequence[int]) -> Any:
    """The answers [row, size] of a step to boxes that it is asked of one after the other."""
    answers = [of({v: (low[row], high[row]) for v, (low, high) in given.items()}) for row in rows]
    ends = (
        [np.broadcast_to(np.asarray(answer[k], np.float64), (size,)) for answer in answers] for k in (0, 1)
    )
    return tuple(map(np.stack, ends))


def _at_once(of: Callable[[Any], Any], given: Any, shape: tuple[int, int]) -> Any:
    try:
        return tuple(np.broadcast_to(np.asarray(end, np.float64), shape) for end in of(given))
    except (IndexError, TypeError, ValueError):  # of constants for each entry, or of positions
        return None


def _by_box(of: Callable[[Any], float], intervals: Mapping[int, Pair], boxes: int) -> np.ndarray:
    rows = [
        of({v: (low[:, box], high[:, box]) for v, (low, high) in intervals.items()}) for box in range(boxes)
    ]
    return np.asarray(rows, np.float64)


def _moved(J: Quotients, half: np.ndarray, radius: float | None) -> np.ndarray:
    """|M (x - c)| for all x of a box, and of a ball where that is less."""
    most = J.most()
    moved = np.einsum("sbn,nb->sb", most, half)
    if radius is not None:
        moved = np.minimum(moved, np.sqrt(np.square(most).sum(2)) * radius)
    return moved * (1 + 2 * rounding(len(half) + 4))
