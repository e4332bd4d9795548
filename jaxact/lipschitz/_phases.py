"""Bounds over a region of many inputs, cut by the signs of neurons.

Where z_i <= t and where z_i >= t for a neuron whose slope is not one number, its slope has a smaller range, and so may
those behind it: each part is bounded by the ellipsoid (`ellipsoid`) and by an enclosure of its difference quotients
(`_enclosure`), for slopes that hold there. The parts cover the region. Almost every point has a neighbourhood in which
its Jacobian is the limit of difference quotients of one part, so that the largest of the bounds holds for the
Jacobians, and along straight lines for the function (Bunel et al. 2020, Branch and bound for piecewise linear neural
network verification, splits so as well).
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jaxact.lipschitz._enclosure import Enclosed, Engine
from jaxact.lipschitz._interval import Pair, centered, ends
from jaxact.lipschitz._mixed import Order, equivalence, largest, least
from jaxact.lipschitz._pieces import ONE_NUMBER
from jaxact.lipschitz._program import Ball, Region
from jaxact.lipschitz._split import EXACT, Split, drawn_inside, largest_at_ends, weights
from jaxact.lipschitz.ellipsoid import bound
from jaxact.trace import Contraction, Elementwise, Program

_NUM_SAMPLES = 64
_MOST_OPEN = 8  # slopes whose ends are all tried


@dataclass
class _Part:
    """The inputs for which some variables lie within `clipped`, what is enclosed there, and a bound."""

    clipped: dict[int, Pair]
    found: Enclosed
    bound: float


def split_by_phases(
    program: Program,
    region: Region,
    *,
    seconds: float,
    gap: float = EXACT,
    p: Order = 2,
    q: Order = 2,
    start: float = math.inf,
) -> Split:
    """Bound the constant of a program in a region by cutting it along neurons; arguments as of `split`."""
    started = time.perf_counter()
    engine = Engine(program)
    whole = engine.settle(region)
    seen = max(_seen(engine, region, p, q), float(least(whole.quotients[program.output], p, q)[0]))
    search = _Search(engine, region, p, q, start)
    open_parts = [(-start, 0, _Part({}, whole, start))]
    done, count, last = 0.0, 1, 0.0
    while open_parts:
        worst = -open_parts[0][0]
        left = seconds - (time.perf_counter() - started)
        if worst <= max(seen * (1 + gap), done) or left <= last:
            break
        before = time.perf_counter()
        part = heapq.heappop(open_parts)[2]
        children = search.cut(part)
        if children is None:
            done = max(done, part.bound)
        for child in children or ():
            count += 1
            heapq.heappush(open_parts, (-child.bound, count, child))
        last = time.perf_counter() - before
    upper = max([done, *(-bound for bound, _, _ in open_parts)])
    return Split(min(upper, start), seen, max(len(open_parts), 1), time.perf_counter() - started)


class _Search:
    def __init__(self, engine: Engine, region: Region, p: Order, q: Order, start: float):
        self.engine, self.p, self.q, self.start = engine, p, q, start
        self.program = engine.program
        self.box = ends(region)
        self.weights = {
            index: weights(self.program, step.out)
            for index, step in enumerate(self.program.steps)
            if isinstance(step, Elementwise)
        }

    def cut(self, part: _Part) -> list[_Part] | None:
        """The two sides of the neuron that matters most; None where no slope is open."""
        chosen = self._neuron(part.found)
        if chosen is None:
            return None
        index, entry, at = chosen
        step = self.program.steps[index]
        assert isinstance(step, Elementwise)
        lower, upper = part.clipped.get(step.source, part.found.intervals[step.source])
        below, above = upper.copy(), lower.copy()
        below[entry], above[entry] = at, at
        sides = ((lower, below), (above, upper))
        made = [self._bounded(part, {**part.clipped, step.source: side}) for side in sides]
        return [child for child in made if child is not None]

    def _bounded(self, parent: _Part, clipped: dict[int, Pair]) -> _Part | None:
        lower, upper = self.engine.narrowed(self.box[0][None], self.box[1][None], clipped)
        if (lower > upper).any():
            return None
        found = self.engine.enclose(lower, upper, clipped=clipped)
        if found.is_empty:
            return None
        value = min(parent.bound, float(largest(found.quotients[self.program.output], self.p, self.q)[0]))
        num_open = sum(int((beta - alpha > ONE_NUMBER).sum()) for alpha, beta in found.slopes.values())
        few = num_open <= _MOST_OPEN and 2**num_open <= self.engine.most_boxes
        if few and not any(isinstance(step, Contraction) for step in self.program.steps):
            at_ends = largest_at_ends(self.engine, found, np.zeros(1, int), num_open, self.p, self.q)
            return _Part(clipped, found, min(value, float(at_ends[0])))
        return _Part(clipped, found, min(value, self._by_ellipsoid(found.slopes)))

    def _by_ellipsoid(self, slopes: Mapping[int, Pair]) -> float:
        steps = tuple(
            replace(step, slopes=_constant(slopes[index])) if isinstance(step, Elementwise) else step
            for index, step in enumerate(self.program.steps)
        )
        program = Program(self.program.input_size, steps, self.program.output)
        try:
            with jax.enable_x64(True), np.errstate(over="ignore", invalid="ignore"):
                found = bound(program, num_steps=0)
        except (ArithmeticError, ValueError):
            return math.inf
        return float(found.value) * equivalence(
            program.input_size, program.sizes[program.output], self.p, self.q
        )

    def _neuron(self, found: Enclosed) -> tuple[int, int, float] | None:
        """The step, the entry and the value to cut at where an open slope is felt most."""
        best: tuple[int, int, float] | None = None
        most = 0.0
        for index, (alpha, beta) in found.slopes.items():
            step = self.program.steps[index]
            assert isinstance(step, Elementwise)
            low, high = (end[:, 0] for end in found.intervals[step.source])
            spread = np.where(beta - alpha > ONE_NUMBER, centered(alpha, beta)[1], 0.0)[:, 0]
            lengths = np.sqrt(np.square(found.quotients[step.source].most()[:, 0]).sum(1))
            felt = np.where(high > low, spread * lengths * self.weights[index], 0.0)
            entry = int(np.argmax(felt)) if felt.size else 0
            if felt.size and felt[entry] > most:
                at = self._where(index, low[entry], high[entry])
                if low[entry] < at < high[entry]:
                    best, most = (index, entry, at), float(felt[entry])
        return best

    def _where(self, index: int, low: float, high: float) -> float:
        kinks = self.engine.kinks(index)
        inside = kinks[(kinks > low) & (kinks < high)]
        return float(inside[len(inside) // 2]) if inside.size else float(low / 2 + high / 2)


def _constant(slopes: Pair) -> Any:
    alpha, beta = (end[:, 0] for end in slopes)
    return lambda intervals: (alpha, beta)


def _seen(engine: Engine, region: Region, p: Order, q: Order) -> float:
    """The largest norm of a Jacobian near points of the region."""
    lower, upper = ends(region)
    spread = np.random.default_rng(0).uniform(0, 1, (min(_NUM_SAMPLES, engine.most_boxes), lower.size))
    points = lower + spread * (upper - lower)
    if isinstance(region, Ball):
        points = drawn_inside(region, points)
    tiny = 1e-9 * (upper - lower)
    J = engine.enclose(np.maximum(points - tiny, lower), np.minimum(points + tiny, upper)).quotients
    return float(np.max(least(J[engine.program.output], p, q), initial=0.0))
