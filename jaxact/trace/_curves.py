"""Elementwise functions of one variable, with what intervals need to know of them and of their derivatives.

To add one is an entry of `UNARY`: f, f', f'' and the points between which each is monotone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy


class Curve(NamedTuple):
    """f, f', f'' with the points between which each is monotone."""

    fn: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    bend: Callable[[np.ndarray], np.ndarray]
    turns: tuple[float, ...] = ()
    slope_turns: tuple[float, ...] = ()
    bend_turns: tuple[float, ...] = ()
    least: float = -math.inf  # of the domain
    most: float = math.inf  # likewise
    reach: float = math.inf  # from where on |f|, |f'| and |f''| are at most 1.05 / |x|


def _logistic_slope(x):
    e = np.exp(-np.abs(x))
    return e / np.square(1 + e)


def _tanh_slope(x):
    return 4 * _logistic_slope(2 * np.asarray(x))


def _erf_slope(x):
    return 2 / math.sqrt(math.pi) * np.exp(-np.square(x))


def _hypot1(x):
    return np.hypot(1.0, x)


def _gumbel_slope(x):
    return np.exp(-x - np.exp(-x))


def _gumbel_bend(x):
    return np.where(x < -700, 0.0, _gumbel_slope(x) * np.expm1(-np.maximum(x, -700.0)))


def _i1e_by(x):
    return scipy.special.i1e(x) / np.where(x == 0, 1.0, x)


def _sech(x):
    e = np.exp(-np.abs(x))
    return 2 * e / (1 + e * e)


def _sinc(x, order=0):
    """The derivative of sin(x) / x of an order up to 3: int_0^1 cos(x s) ds differentiated."""
    x = np.asarray(x, np.float64)
    safe = np.where(np.abs(x) < 0.3, 1.0, x)
    found = [np.sin(safe) / safe]
    for n in range(1, order + 1):  # x f^(n) + n f^(n - 1) = sin^(n)(x)
        found.append((np.sin(safe + n * math.pi / 2) - n * found[-1]) / safe)
    terms = np.arange(12)
    powers = 2 * terms - order
    factors = np.array(
        [
            0.0 if p < 0 else (-1.0) ** k / math.factorial(2 * k + 1) * math.perm(2 * k, order)
            for k, p in zip(terms, powers, strict=True)
        ]
    )
    near = np.where(np.abs(x) < 0.3, x, 0.0)
    series = (factors * near[..., None] ** np.maximum(powers, 0)).sum(-1)
    return np.where(np.abs(x) < 0.3, series, found[order])


def _zeros_of_sinc(order):
    """Where a derivative of sin(x) / x vanishes within +-64, by bisection."""
    grid = np.linspace(0.31, 64.0, 4096)
    values = _sinc(grid, order)
    (at,) = np.nonzero(values[:-1] * values[1:] < 0)
    low, high = grid[at], grid[at + 1]
    for _ in range(60):
        middle = (low + high) / 2
        left = _sinc(low, order) * _sinc(middle, order) <= 0
        low, high = np.where(left, low, middle), np.where(left, middle, high)
    return (*(-high[::-1]), *((0.0,) if order % 2 else ()), *high)


UNARY: dict[str, Curve] = {
    "acosh": Curve(
        np.arccosh,
        lambda x: 1 / np.sqrt((x - 1) * (x + 1)),
        lambda x: -x / ((x - 1) * (x + 1)) ** 1.5,
        least=1.0,
    ),
    "asin": Curve(
        np.arcsin,
        lambda x: 1 / np.sqrt((1 - x) * (1 + x)),
        lambda x: x / ((1 - x) * (1 + x)) ** 1.5,
        slope_turns=(0.0,),
        least=-1.0,
        most=1.0,
    ),
    "atanh": Curve(
        np.arctanh,
        lambda x: 1 / ((1 - x) * (1 + x)),
        lambda x: 2 * x / ((1 - x) * (1 + x)) ** 2,
        slope_turns=(0.0,),
        least=-1.0,
        most=1.0,
    ),
    "bessel_i0e": Curve(  # of |x|, all of whose derivatives are monotone
        scipy.special.i0e,
        lambda x: scipy.special.i1e(x) - scipy.special.i0e(x),
        lambda x: 2 * (scipy.special.i0e(x) - scipy.special.i1e(x)) - np.where(x == 0, 0.5, _i1e_by(x)),
        least=0.0,
    ),
    "digamma": Curve(
        scipy.special.digamma,
        lambda x: scipy.special.polygamma(1, x),
        lambda x: scipy.special.polygamma(2, x),
        least=0.0,
    ),
    "erf_inv": Curve(
        scipy.special.erfinv,
        lambda x: math.sqrt(math.pi) / 2 * np.exp(np.square(scipy.special.erfinv(x))),
        lambda x: math.pi / 2 * scipy.special.erfinv(x) * np.exp(2 * np.square(scipy.special.erfinv(x))),
        slope_turns=(0.0,),
        least=-1.0,
        most=1.0,
    ),
    "lgamma": Curve(
        scipy.special.gammaln,
        scipy.special.digamma,
        lambda x: scipy.special.polygamma(1, x),
        turns=(1.4616321449683623,),
        least=0.0,
    ),
    "sech": Curve(
        _sech,
        lambda x: -_sech(x) * np.tanh(x),
        lambda x: _sech(x) * (1 - 2 * _sech(x) ** 2),
        turns=(0.0,),
        slope_turns=(-math.asinh(1.0), math.asinh(1.0)),
        bend_turns=(-math.atanh(math.sqrt(5 / 6)), 0.0, math.atanh(math.sqrt(5 / 6))),
    ),
    "sinc": Curve(  # sin(x) / x
        _sinc,
        lambda x: _sinc(x, 1),
        lambda x: _sinc(x, 2),
        turns=_zeros_of_sinc(1),
        slope_turns=_zeros_of_sinc(2),
        bend_turns=_zeros_of_sinc(3),
        reach=64.0,
    ),
    "exp": Curve(np.exp, np.exp, np.exp),
    "log": Curve(np.log, lambda x: 1 / x, lambda x: -1 / x / x, least=0.0),
    "log1p": Curve(np.log1p, lambda x: 1 / (1 + x), lambda x: -1 / (1 + x) / (1 + x), least=-1.0),
    "expm1": Curve(np.expm1, np.exp, np.exp),
    "logistic": Curve(
        scipy.special.expit,
        _logistic_slope,
        lambda x: -_logistic_slope(x) * np.tanh(x / 2),
        slope_turns=(0.0,),
        bend_turns=(-math.log(2 + math.sqrt(3)), math.log(2 + math.sqrt(3))),
    ),
    "tanh": Curve(
        np.tanh,
        _tanh_slope,
        lambda x: -2 * np.tanh(x) * _tanh_slope(x),
        slope_turns=(0.0,),
        bend_turns=(-math.atanh(1 / math.sqrt(3)), math.atanh(1 / math.sqrt(3))),
    ),
    "erf": Curve(
        scipy.special.erf,
        _erf_slope,
        lambda x: -2 * x * _erf_slope(x),
        slope_turns=(0.0,),
        bend_turns=(-math.sqrt(0.5), math.sqrt(0.5)),
    ),
    "erfc": Curve(
        scipy.special.erfc,
        lambda x: -_erf_slope(x),
        lambda x: 2 * x * _erf_slope(x),
        slope_turns=(0.0,),
        bend_turns=(-math.sqrt(0.5), math.sqrt(0.5)),
    ),
    "atan": Curve(
        np.arctan,
        lambda x: (1 / _hypot1(x)) ** 2,
        lambda x: -2 * (x / _hypot1(x)) * (1 / _hypot1(x)) ** 3,
        slope_turns=(0.0,),
        bend_turns=(-1 / math.sqrt(3), 1 / math.sqrt(3)),
    ),
    "asinh": Curve(
        np.arcsinh,
        lambda x: 1 / _hypot1(x),
        lambda x: -(x / _hypot1(x)) * (1 / _hypot1(x)) ** 2,
        slope_turns=(0.0,),
        bend_turns=(-math.sqrt(0.5), math.sqrt(0.5)),
    ),
    "hypot1": Curve(
        _hypot1,
        lambda x: x / _hypot1(x),
        lambda x: (1 / _hypot1(x)) ** 3,
        turns=(0.0,),
        bend_turns=(0.0,),
    ),
    "softplus": Curve(
        lambda x: np.logaddexp(0.0, x),
        scipy.special.expit,
        _logistic_slope,
        bend_turns=(0.0,),
    ),
    "gumbel": Curve(  # exp(-exp(-x))
        lambda x: np.exp(-np.exp(-x)),
        _gumbel_slope,
        _gumbel_bend,
        slope_turns=(0.0,),
        bend_turns=(-math.log((3 + math.sqrt(5)) / 2), -math.log((3 - math.sqrt(5)) / 2)),
    ),
    "sinh": Curve(np.sinh, np.cosh, np.sinh, slope_turns=(0.0,)),
    "cosh": Curve(np.cosh, np.sinh, np.cosh, turns=(0.0,), bend_turns=(0.0,)),
    "sqrt": Curve(np.sqrt, lambda x: 0.5 / np.sqrt(x), lambda x: -0.25 / (np.sqrt(x) * x), least=0.0),
    "rsqrt": Curve(
        lambda x: 1 / np.sqrt(x),
        lambda x: -0.5 / (np.sqrt(x) * x),
        lambda x: 0.75 / (np.sqrt(x) * x * x),
        least=0.0,
    ),
    "cbrt": Curve(
        np.cbrt,
        lambda x: np.where(x == 0, np.inf, 1 / (3 * np.square(np.cbrt(x)))),
        lambda x: -2 / (9 * np.square(np.cbrt(x)) * x),
        slope_turns=(0.0,),
    ),
}

SPECIAL: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs,
    "sign": np.sign,
    "sin": np.sin,
    "cos": np.cos,
    "floor": np.floor,
    "fraction": lambda x: x - np.floor(x),
    "ceil": np.ceil,
    "round": np.rint,
}
COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
}
LOGIC: dict[str, Callable[..., Any]] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "not": np.logical_not,
}
#: of `UNARY`, what formulas are rewritten to
NOT_OF_JAX = ("hypot1", "softplus", "gumbel", "sech", "sinc", "fraction", "bessel_i0e")
