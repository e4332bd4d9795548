"""Compiled training: one loop, a population of members, checkpoints; least squares."""

from jaxact.fit._checkpoint import Contents, Leaf, contents, restore, save
from jaxact.fit._least_squares import LeastSquares, least_squares
from jaxact.fit._loop import History, State, fit, start
from jaxact.fit._population import Member, grid, pad, population
from jaxact.fit._separable import Separable, separable_least_squares

__all__ = [
    "Contents",
    "History",
    "Leaf",
    "LeastSquares",
    "Member",
    "Separable",
    "State",
    "contents",
    "fit",
    "grid",
    "least_squares",
    "pad",
    "population",
    "restore",
    "save",
    "separable_least_squares",
    "start",
]
