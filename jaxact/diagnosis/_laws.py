"""How the entries of an array are distributed, and how its gradient goes with their values."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import ndtri

from jaxact.diagnosis._formula import Formula, slopes_of, values_of
from jaxact.diagnosis._gradients import Gradient

_NUM_ATOMS = 32
_NUM_POINTS = 256  # that stand for a law, equally likely


def law(node: Any) -> tuple[Any, Any]:
    """(atoms, variance) of a node's entries: as far as is known, else a normal law of its mean and second moment."""
    if node.law is not None:
        return node.law()
    mean, second, _ = node.stats
    return mean[:, None], (0 * mean if node.is_constant else second - mean**2)[:, None]


def transformed(made: Any, node: Any, formula: Formula) -> tuple[Any, Any]:
    """Atoms of a formula's values: means between quantiles, spread so that mean and second moment are right."""
    atoms, variance = law(node)
    t = _quantiles(_NUM_ATOMS)
    x = (atoms[:, :, None] + np.sqrt(np.maximum(variance, 0))[:, :, None] * t).reshape(len(atoms), -1)
    values = np.sort(values_of(formula, x), -1)
    return fitted(values.reshape(len(values), _NUM_ATOMS, -1).mean(-1), made.stats)


def fitted(atoms: np.ndarray, stats: Any) -> tuple[Any, Any]:
    """Atoms [input, atom] moved and spread so that mean and second moment are right."""
    mean, second, _ = stats
    centred = atoms - atoms.mean(-1, keepdims=True)
    spread = np.sqrt(np.maximum(second - mean**2, 0) / np.maximum(np.mean(centred**2, -1), 1e-300))
    return mean[:, None] + centred * spread[:, None], 0 * mean[:, None]


def points(node: Any, count: int = _NUM_POINTS) -> np.ndarray:
    """[count] equally likely values of a node's entries, in order, of all inputs together."""
    atoms, variance = (each.mean(0) for each in law(node))
    t = _quantiles(max(count // atoms.size, 1))
    return np.sort((atoms[:, None] + np.sqrt(np.maximum(variance, 0))[:, None] * t).reshape(-1))


def _quantiles(count: int) -> np.ndarray:
    return ndtri((np.arange(count) + 0.5) / count)


def before_formula(gradient: Gradient, node: Any, formula: Formula) -> tuple[float, Any]:
    """(what the gain changes by, the law of the gradient before): E f'(u)^2 w(f(u)) over E f'(u)^2.

    w is how the gradient after goes with the value there: of a unit that is above 0 in a sum with a shortcut, say, more
    comes back.
    """
    if gradient.law is None and node.is_product:
        return 1.0, None
    u = points(node)
    squares = np.square(slopes_of(formula, u))
    weight = 1.0 if gradient.law is None else np.interp(values_of(formula, u), *gradient.law)
    found, even = float(np.mean(squares * weight)), float(np.mean(squares))
    if not (even > 0 and found > 0):
        return 1.0, None
    return found / even, (u, squares * weight / found)


def before_sum(gradient: Gradient, x: Any, y: Any, sign: float = 1.0) -> Any:
    """The law of the gradient of x in x + sign y: at each value of x, the mean over y."""
    if gradient.law is None or x.is_product:
        return None
    own, other = points(x), points(y, 64)
    found = np.interp(own[:, None] + sign * other, *gradient.law).mean(-1)
    return (own, found / found.mean()) if found.mean() > 0 else None
