"""Elementwise functions of one variable, with what intervals need to know of them and of their derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.special


class Curve(NamedTuple):
    """f, f', f'' with the points between which each is monotone."""

    fn: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    bend: Callable[[np.ndarray], np.ndarray]
    turns: tuple[float, ...] = ()
    slope_turns: tuple[float, ...] = ()
    bend_turns: tuple[float, ...] = ()
    least: float = -math.inf  # of the domain


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


UNARY: dict[str, Curve] = {
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
