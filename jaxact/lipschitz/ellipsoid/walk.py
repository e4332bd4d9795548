"""One pass over a program: which step comes, whether by matrix or by norms, and the intervals on the way."""

from __future__ import annotations

from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from jaxact.lipschitz.ellipsoid.intervals import Enclosures, Local
from jaxact.lipschitz.ellipsoid.layout import Prepared, slopes_of, stretch_of
from jaxact.lipschitz.ellipsoid.step import Matrix, Norms
from jaxact.trace import Affine, Contraction, centered

State: TypeAlias = Matrix | Norms


@runtime_checkable
class Rules(Protocol):
    """What a pass does at each step: the proof adds slack, the search keeps a tape."""

    def affine(self, index: int, state: Matrix) -> Matrix:
        """Through an affine step."""

    def elementwise(self, index: int, state: Matrix, intervals: Enclosures) -> Matrix:
        """Through an elementwise one, whose slopes are those in `intervals`."""

    def contraction(self, index: int, state: Matrix, intervals: Enclosures) -> Matrix:
        """Through a contraction."""

    def by_norms(self, index: int, state: Norms, intervals: Enclosures) -> Norms:
        """Through a step of any kind."""

    def to_norms(self, index: int, state: Matrix) -> Norms:
        """Before a step from which on norms are carried."""

    def to_matrix(self, index: int, state: Norms) -> Matrix:
        """Before a step from which on Q is."""

    def made(self, index: int, state: State, intervals: Enclosures) -> None:
        """After a step."""


def carry(rules: Rules, prepared: Prepared, local: Local | None, state: State) -> State:
    """From the state at the input to that at the output."""
    intervals = Enclosures(prepared, local)
    for index, step in enumerate(prepared.program.steps):
        if not prepared.layouts[index].used:
            continue
        if isinstance(state, Matrix) and not prepared.dense[index]:
            state = rules.to_norms(index, state)
        elif isinstance(state, Norms) and prepared.dense[index]:
            state = rules.to_matrix(index, state)
        if isinstance(state, Norms):
            state = rules.by_norms(index, state, intervals)
        elif isinstance(step, Affine):
            state = rules.affine(index, state)
        elif isinstance(step, Contraction):
            state = rules.contraction(index, state, intervals)
        else:
            state = rules.elementwise(index, state, intervals)
        rules.made(index, state, intervals)
    return state


def log_factors(prepared: Prepared, index: int, intervals: Enclosures) -> np.ndarray:
    """The logarithms of the norms of a step's terms; one, of the largest slope, where it is not affine."""
    step, program = prepared.program.steps[index], prepared.program
    if isinstance(step, Affine):
        return prepared.log_norms(index)
    if isinstance(step, Contraction):
        largest = stretch_of(program, index, intervals.found)
    else:
        m, r = centered(*slopes_of(program, index, intervals.found))
        largest = float(np.max(np.abs(m) + r, initial=0.0))
    with np.errstate(divide="ignore"):
        return np.log([largest])
