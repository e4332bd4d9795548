"""Compiled training: one loop, a population of members, checkpoints."""

from jaxact.fit._checkpoint import restore, save
from jaxact.fit._loop import History, State, fit, start
from jaxact.fit._population import Member, grid, pad, population

__all__ = ["History", "Member", "State", "fit", "grid", "pad", "population", "restore", "save", "start"]
