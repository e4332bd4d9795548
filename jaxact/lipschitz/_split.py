"""Bounds over a region that is cut into parts, each bounded alone, until what is proved meets what is seen.

A region is convex, so that along the line between two of its points, which crosses the parts one after the other, a
continuous f changes by no more than the largest constant of a part times the distance: that of the whole is the
largest of the parts'. Each box is bounded by its enclosure M of all difference quotients (`_enclosure`). M is affine
in every slope, a norm of it convex: with up to 8 slopes that are not one number its largest value is at one of the
2^8 choices of their ends. A box of a piecewise-linear network that is crossed by kinks through one point is therefore
bounded by the largest Jacobian of the pieces that meet there, which is attained, and the search ends.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxact.lipschitz._enclosure import Enclosed, Engine
from jaxact.lipschitz._interval import centered, ends
from jaxact.lipschitz._mixed import Order, largest, least
from jaxact.lipschitz._norms import one_thread
from jaxact.lipschitz._pieces import ONE_NUMBER
from jaxact.lipschitz._program import Ball, Region
from jaxact.trace import Affine, Contraction, Elementwise, Program

MOST_INPUTS = 8  # beyond, boxes are too many
MOST_OPEN, EXTRA = 8, 2  # slopes whose ends are all tried: of so many, and so many more than inputs
_MOST_PARTS = 2**20
_WIDTH = 64  # of the matrices that are multiplied, many at a time
EXACT = 1e-9  # relative to the constant: what counts as no gap at all


class Split(NamedTuple):
    """What a search has proved and seen.

    Attributes:
        upper: the constant is not above it.
        lower: the norm of a Jacobian of the region is not below it.
        parts: so many boxes cover the region.
        seconds: wall clock.
    """

    upper: float
    lower: float
    parts: int
    seconds: float

    @property
    def is_exact(self) -> bool:
        """Whether both are one number up to rounding."""
        return self.upper <= self.lower * (1 + EXACT)


@dataclass
class _Boxes:
    """Boxes with a bound on each, what it can gain by the side to be cut, and whether that is anything."""

    lower: Float[np.ndarray, "box in"]
    upper: Float[np.ndarray, "box in"]
    bound: Float[np.ndarray, " box"]
    side: Float[np.ndarray, " box"]

    def __getitem__(self, rows: np.ndarray) -> _Boxes:
        return _Boxes(self.lower[rows], self.upper[rows], self.bound[rows], self.side[rows])

    def __len__(self) -> int:
        return len(self.bound)

    def joined(self, other: _Boxes) -> _Boxes:
        return _Boxes(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in _FIELDS))

    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """The ends of both halves of each."""
        rows, side = np.arange(len(self)), self.side.astype(int)
        cut = self.lower[rows, side] / 2 + self.upper[rows, side] / 2
        left, right = self.upper.copy(), self.lower.copy()
        left[rows, side], right[rows, side] = cut, cut
        return np.concatenate([self.lower, right]), np.concatenate([left, self.upper])


_FIELDS = ("lower", "upper", "bound", "side")


def split(
    program: Program,
    region: Region,
    *,
    seconds: float,
    gap: float = EXACT,
    p: Order = 2,
    q: Order = 2,
    start: float = math.inf,
) -> Split:
    """Bound the constant of a program in a region, ||f(x') - f(x)||_q <= upper ||x' - x||_p, by cutting it into boxes.

    Best first: those with the largest bounds are halved, across the side by which their quotients vary most.

    Args:
        program: of at most 8 inputs.
        region: a ball is covered by the boxes that meet it.
        seconds: stop after so long.
        gap: stop where upper <= lower (1 + gap).
        p: norm of inputs: 1, 2 or inf.
        q: norm of outputs.
        start: an upper bound that is known already.

    Returns:
        `Split`.

    Raises:
        ValueError: the program has a step that cannot be enclosed.
    """
    with one_thread(_WIDTH):
        return _searched(_Search(Engine(program), region, p, q), seconds, gap, start)


def _searched(search: _Search, seconds: float, gap: float, start: float) -> Split:
    started = time.perf_counter()
    size, last = 32, 0.0
    while True:
        upper = min(search.upper(), start)
        left = seconds - (time.perf_counter() - started)
        if upper <= search.seen * (1 + gap) or left <= last or not len(search.open) or search.is_full:
            return Split(upper, search.seen, search.num_parts, time.perf_counter() - started)
        before = time.perf_counter()
        search.advance(size)
        last = time.perf_counter() - before
        size = int(np.clip(size * (2 if last < 0.15 else 0.5 if last > 0.6 else 1), 8, search.most))


class _Search:
    def __init__(self, engine: Engine, region: Region, p: Order, q: Order):
        self.engine, self.p, self.q = engine, p, q
        self.region = region
        self.most = min(engine.most_boxes, 2048)
        self.seen = 0.0
        self.done = 0.0  # the largest bound of the boxes that are cut no further
        self.num_done = 0
        lower, upper = ends(region)
        engine.settle(region)
        self.open = self._bounded(lower[None], upper[None])
        self._look(self._samples(32))

    @property
    def is_full(self) -> bool:
        return len(self.open) > _MOST_PARTS

    @property
    def num_parts(self) -> int:
        return len(self.open) + self.num_done

    def upper(self) -> float:
        return float(max(self.done, np.max(self.open.bound, initial=0.0)))

    def advance(self, size: int) -> None:
        """Cut the boxes with the largest bounds, and look at their middles."""
        size = min(size, len(self.open))
        order = np.argpartition(-self.open.bound, size - 1)
        worst, rest = self.open[order[:size]], self.open[order[size:]]
        self._look(worst.lower / 2 + worst.upper / 2)
        lower, upper = worst.halves()
        kept = self._meets(lower, upper)
        made = self._bounded(lower[kept], upper[kept])
        self.open = rest.joined(made)
        self._settle()

    def _settle(self) -> None:
        """Put aside what cannot be above what is seen, and what cutting does not change."""
        final = (self.open.bound <= self.seen * (1 + EXACT / 2)) | (self.open.side < 0)
        self.done = float(max(self.done, np.max(self.open.bound[final], initial=0.0)))
        self.num_done += int(final.sum())
        self.open = self.open[~final]

    def _bounded(self, lower: np.ndarray, upper: np.ndarray) -> _Boxes:
        found = self.engine.enclose(lower, upper)
        J = found.quotients[self.engine.program.output]
        bound = largest(J, self.p, self.q)
        inside = self._meets(lower, upper, 1 - 1e-9)
        self.seen = max(self.seen, float(np.max(least(J, self.p, self.q)[inside], initial=0.0)))
        bound = np.minimum(bound, self._at_ends(found, bound))
        return _Boxes(lower, upper, bound, _sides(self.engine.program, found, lower, upper))

    def _at_ends(self, found: Enclosed, bound: np.ndarray) -> np.ndarray:
        """The largest norm over the ends of up to 8 slopes that are no single number, where there are no more."""
        program = self.engine.program
        better = bound.copy()
        if any(isinstance(step, Contraction) for step in program.steps):
            return better
        spans = {index: beta - alpha for index, (alpha, beta) in found.slopes.items()}
        count = sum(((span > ONE_NUMBER).sum(0) for span in spans.values()), np.zeros(len(bound), int))
        for k in range(1, min(program.input_size + EXTRA, MOST_OPEN) + 1):
            rows = np.flatnonzero((count == k) & (bound > self.seen))
            for part in np.array_split(rows, -(-len(rows) * 2**k // self.most) or 1):
                if len(part):
                    better[part] = largest_at_ends(self.engine, found, part, k, self.p, self.q)
        return better

    def _look(self, points: np.ndarray) -> None:
        """Norms of Jacobians near points."""
        lower, upper = ends(self.region)
        if isinstance(self.region, Ball):
            points = drawn_inside(self.region, points)
        tiny = 1e-9 * np.maximum(upper - lower, 1e-300)
        J = self.engine.enclose(np.maximum(points - tiny, lower), np.minimum(points + tiny, upper)).quotients[
            self.engine.program.output
        ]
        self.seen = max(self.seen, float(np.max(least(J, self.p, self.q), initial=0.0)))

    def _samples(self, num: int) -> np.ndarray:
        lower, upper = ends(self.region)
        spread = np.random.default_rng(0).uniform(-1, 1, (min(num, self.most), lower.size))
        return lower / 2 + upper / 2 + spread * (upper / 2 - lower / 2)

    def _meets(self, lower: np.ndarray, upper: np.ndarray, share: float = 1 + 1e-12) -> np.ndarray:
        if not isinstance(self.region, Ball):
            return np.ones(len(lower), bool)
        center = self.region.center.reshape(-1)
        nearest = np.clip(center, lower, upper)
        return np.linalg.norm(nearest - center, axis=1) <= self.region.radius * share


def drawn_inside(ball: Ball, points: Float[np.ndarray, "point in"]) -> Float[np.ndarray, "point in"]:
    """Points moved towards the centre of a ball until they lie well within."""
    center = ball.center.reshape(-1)
    ways = points - center
    far = np.linalg.norm(ways, axis=1, keepdims=True) / max(ball.radius * (1 - 1e-6), 1e-300)
    return center + ways / np.maximum(far, 1.0)


def largest_at_ends(
    engine: Engine, found: Enclosed, boxes: np.ndarray, k: int, p: Order, q: Order
) -> Float[np.ndarray, " box"]:
    """The largest bound over the 2^k ends of those k slopes of each box that are no single number."""
    choices = 2**k
    columns = np.repeat(boxes, choices)
    choice = np.tile(np.arange(choices), len(boxes))
    slopes, before = {}, np.zeros(len(columns), int)
    for index, (alpha, beta) in found.slopes.items():
        low, high = alpha[:, columns], beta[:, columns]
        is_open = high - low > ONE_NUMBER
        place = before + np.cumsum(is_open, 0) - 1
        takes_high = (choice >> np.maximum(place, 0)) & 1 == 1
        slopes[index] = np.where(is_open & takes_high, high, low), np.where(is_open & ~takes_high, low, high)
        before = before + is_open.sum(0)
    return largest(engine.output(slopes, found), p, q).reshape(len(boxes), choices).max(1)


def _sides(program: Program, found: Enclosed, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The side of each box whose halving narrows the undecided slopes most; -1 where all are decided."""
    width = (upper - lower).T  # [in, box]
    effect, longest = np.zeros_like(width), np.argmax(width, 0)
    is_open = np.zeros(width.shape[1], bool)
    for index, step in enumerate(program.steps):
        if isinstance(step, Elementwise):
            _, spread = centered(*found.slopes[index])
            weight = weights(program, step.out)
            most = found.quotients[step.source].most()
            effect += np.einsum("sb,sbn->nb", spread * weight[:, None], most) * width
            is_open |= (spread > ONE_NUMBER / 2).any(0)
        elif isinstance(step, Contraction):
            is_open[:] = True
    side = np.where(effect.max(0) > 0, np.argmax(effect, 0), longest)
    cut = np.take_along_axis(width, side[None], 0)[0]
    halved = np.take_along_axis(lower.T / 2 + upper.T / 2, side[None], 0)[0]
    ends = (np.take_along_axis(end.T, side[None], 0)[0] for end in (lower, upper))
    thin = np.logical_or(*(halved == end for end in ends)) | (cut <= 0)
    return np.where(is_open & ~thin, side, -1).astype(np.float64)


def weights(program: Program, variable: int) -> np.ndarray:
    """How much the entries of a variable count in the affine steps that read it."""
    total = np.zeros(program.sizes[variable])
    for step in program.steps:
        if isinstance(step, Affine):
            for source, operator in step.terms:
                if source == variable:
                    total += np.linalg.norm(np.asarray(operator.dense()), axis=0)
    return np.where(total > 0, total, 1.0)
