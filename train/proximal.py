"""Activations that are proximal maps: the convex function that belongs to each, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize, special

_REALS = (-math.inf, math.inf)
_FAR = 20.0  # ends of the search where the domain has none; minima lie between 0 and x, up to 1 or so


class Penalty(NamedTuple):
    """A convex function phi of one number.

    Attributes:
        text: as a reader sees it.
        phi: of a number inside the domain.
        domain: the ends of where phi is finite.
    """

    text: str
    phi: Callable[[float], float]
    domain: tuple[float, float] = _REALS


def minimum(penalty: Penalty, x: float) -> float:
    """Compute prox phi (x) = argmin over y of phi(y) + (y - x)^2 / 2, to some 1e-8 (|x| <= 10).

    >>> round(minimum(PENALTIES["softplus"], 0.0), 6)  # ln 2
    0.693147
    """
    low, high = penalty.domain
    bounds = max(low, -_FAR), min(high, _FAR)
    found = optimize.minimize_scalar(
        lambda y: penalty.phi(y) + (y - x) ** 2 / 2,
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-12},
    )
    return float(found.x)


def _zero(y: float) -> float:
    return 0.0


def _elu(y: float) -> float:
    m = min(y, 0.0)
    return float(special.xlogy(1 + m, 1 + m)) - m - m**2 / 2


def _sigmoid(y: float) -> float:
    return -float(np.sum(special.entr([y, 1 - y]))) - y**2 / 2


def _tanh(y: float) -> float:
    return -float(np.sum(special.entr([1 + y, 1 - y]))) / 2 - y**2 / 2


def _sparse_plus(y: float) -> float:
    m = min(y, 1.0)
    return 4 / 3 * m**1.5 - m - m**2 / 2


_ELU = Penalty("(1+m) ln(1+m) - m - m²/2 with m = min(y, 0)", _elu, (-1, math.inf))
# f with slopes in [0, 1] is prox phi with phi' = f^-1 - id (Moreau 1965; Combettes and Pesquet 2020, section 2).
PENALTIES = {
    "relu": Penalty("0 on y ≥ 0", _zero, (0, math.inf)),
    "relu6": Penalty("0 on [0, 6]", _zero, (0, 6)),
    "hard_tanh": Penalty("0 on [-1, 1]", _zero, (-1, 1)),
    "identity": Penalty("0", _zero),
    "leaky_relu": Penalty("49.5 min(y, 0)²", lambda y: 49.5 * min(y, 0) ** 2),
    "hard_sigmoid": Penalty("5y²/2 - 3y on [0, 1]", lambda y: 2.5 * y**2 - 3 * y, (0, 1)),
    "sigmoid": Penalty("y ln y + (1-y) ln(1-y) - y²/2", _sigmoid, (0, 1)),
    "tanh": Penalty("((1+y) ln(1+y) + (1-y) ln(1-y) - y²)/2", _tanh, (-1, 1)),
    "arctan": Penalty(
        "-ln cos y - y²/2", lambda y: -math.log(math.cos(y)) - y**2 / 2, (-math.pi / 2, math.pi / 2)
    ),
    "asinh": Penalty("cosh y - y²/2", lambda y: math.cosh(y) - y**2 / 2),
    "soft_sign": Penalty(
        "-|y| - ln(1-|y|) - y²/2", lambda y: -abs(y) - math.log1p(-abs(y)) - y**2 / 2, (-1, 1)
    ),
    "softplus": Penalty(
        "Li₂(exp(-y)) on y ≥ 0", lambda y: float(special.spence(-math.expm1(-y))), (0, math.inf)
    ),
    "log_sigmoid": Penalty(
        "Li₂(exp y) on y ≤ 0", lambda y: float(special.spence(-math.expm1(y))), (-math.inf, 0)
    ),
    "squareplus": Penalty("-ln y", lambda y: -math.log(y), (0, math.inf)),
    "sparse_plus": Penalty("4/3 m^1.5 - m - m²/2 with m = min(y, 1) on y ≥ 0", _sparse_plus, (0, math.inf)),
    "elu": _ELU,
    "celu": _ELU,
}
