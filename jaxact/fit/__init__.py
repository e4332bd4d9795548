"""Compiled training: one loop, a population of members, checkpoints; separable least squares."""

from jaxact.fit._checkpoint import restore, save
from jaxact.fit._loop import History, State, fit, start
from jaxact.fit._population import Member, grid, pad, population
from jaxact.fit._separable import Separable, separable_least_squares

__all__ = [
    "History",
    "Member",
    "Separable",
    "State",
    "fit",
    "grid",
    "pad",
    "population",
    "restore",
    "save",
    "separable_least_squares",
    "start",
]
