"""Where the variables of a program lie in Q, step by step, and whether Q is held there at all."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from jaxact.errors import ArgumentError
from jaxact.lipschitz.ellipsoid.maps import norm, written
from jaxact.trace import Affine, Bounds, Contraction, Elementwise, Identity, Intervals, Operator, Program


class Layout(NamedTuple):
    """Where a step finds its variables in Q.

    Attributes:
        sizes: of the variables in use before, in their order.
        sources: the positions read, one for each term.
        kept: the positions still in use afterwards.
        used: whether the new variable is ever used.
    """

    sizes: tuple[int, ...]
    sources: tuple[int, ...]
    kept: tuple[int, ...]
    used: bool

    def rows(self, position: int) -> slice:
        """Those of the variable at a position."""
        start = sum(self.sizes[:position])
        return slice(start, start + self.sizes[position])

    @property
    def read(self) -> slice:
        """The rows of the one source of a step that is not affine."""
        return self.rows(self.sources[0])

    def kept_rows(self) -> np.ndarray:
        """Those of all that stays in use, one after the other."""
        ranges = [np.arange(self.rows(p).start, self.rows(p).stop) for p in self.kept]
        return np.concatenate([np.zeros(0, int), *ranges])


@dataclass(frozen=True)
class Prepared:
    """A program with its weights on the host and its layout.

    Attributes:
        before, after: the variables in use before and after each step.
        dense: whether Q is held as a matrix after each step; `starts_dense`: before the first.
        norms: (step, term) -> norm, found when asked for.
    """

    program: Program
    before: tuple[tuple[int, ...], ...]
    after: tuple[tuple[int, ...], ...]
    layouts: tuple[Layout, ...]
    dense: tuple[bool, ...]
    starts_dense: bool
    norms: dict[tuple[int, int], float]

    @property
    def by_norms(self) -> bool:
        """Whether norms alone are carried anywhere."""
        return not (all(self.dense) and self.starts_dense)

    def log_norms(self, index: int) -> np.ndarray:
        """Of each operator of an affine step the logarithm of its norm."""
        terms = self.program.steps[index].terms
        return np.array([self._log_norm(index, term, operator) for term, (_, operator) in enumerate(terms)])

    def _log_norm(self, index: int, term: int, operator: Operator) -> float:
        if (index, term) not in self.norms:
            value = norm(operator)
            if not math.isfinite(value):
                raise ValueError(f"Step {self.program.record(index)} must have a finite norm, got {value}.")
            self.norms[index, term] = math.log(value) if value > 0 else -math.inf
        return self.norms[index, term]


def prepare(program: Program, memory_limit: int) -> Prepared:
    """A program for passes with at most `memory_limit` rows of Q."""
    steps = tuple(_on_host(program, index) for index in range(len(program.steps)))
    program = Program(program.input_size, steps, program.output)
    after = program.live()
    before = ((0,), *after)[: len(after)]
    layouts, dense = [], []
    for step, ins, outs in zip(program.steps, before, after, strict=True):
        read = [source for source, _ in step.terms] if isinstance(step, Affine) else step.sources
        used = step.out in outs
        sources = tuple(ins.index(v) for v in read) if used else ()
        kept = tuple(ins.index(v) for v in outs if v != step.out)
        layouts.append(Layout(tuple(program.sizes[v] for v in ins), sources, kept, used))
        rows = sum(program.sizes[v] for v in ins) + (0 if isinstance(step, Affine) else step.size)
        dense.append(max(rows, sum(program.sizes[v] for v in outs)) <= memory_limit)
    starts_dense = program.input_size <= memory_limit
    return Prepared(program, before, after, tuple(layouts), tuple(dense), starts_dense, {})


def _on_host(program: Program, index: int):
    step = program.steps[index]
    if isinstance(step, Elementwise) and step.size == 0:  # no entries to take an eigenvalue of
        return Affine(step.out, ((step.source, Identity(0)),), 0, kind=step.kind, place=step.place)
    if not isinstance(step, Affine):
        return step
    terms = tuple((source, written(operator)) for source, operator in step.terms)
    for _, operator in terms:
        entries = getattr(operator, "matrix", getattr(operator, "d", None))
        if entries is not None and not np.isfinite(entries).all():
            raise ValueError(
                f"Step {program.record(index)} must have finite weights, got NaN or inf. "
                "A diverged network has no Lipschitz bound."
            )
    return replace(step, terms=terms)


def slopes_of(program: Program, index: int, intervals: Intervals) -> Bounds:
    """Alpha and beta [size] of an elementwise step."""
    step = program.steps[index]
    assert isinstance(step, Elementwise)
    with jax.enable_x64(True):
        alpha, beta = (np.asarray(end, np.float64) for end in step.slopes(intervals))
    alpha, beta = (np.broadcast_to(end, (step.size,)) for end in (alpha, beta))
    if not (np.isfinite(alpha).all() and np.isfinite(beta).all()):
        raise _unbounded(program, index, "bounded slopes", f"[{alpha.min()}, {beta.max()}]")
    if (alpha > beta).any():
        raise ValueError(f"Step {program.record(index)} must have slopes with lower <= upper.")
    return alpha, beta


def stretch_of(program: Program, index: int, intervals: Intervals) -> float:
    """The constant of a contraction."""
    step = program.steps[index]
    assert isinstance(step, Contraction)
    constant = float(step.constant(intervals))
    if not math.isfinite(constant):
        raise _unbounded(program, index, "a bounded slope", f"{constant}")
    return constant


def _unbounded(program: Program, index: int, rule: str, received: str) -> ArgumentError:
    return ArgumentError(
        f"Step {program.record(index)} must have {rule}, got {received}.",
        "No bound holds for all these inputs: pass `region=`, or a smaller one.",
        give="region",
    )
