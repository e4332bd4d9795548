"""Formulas as people write them, the region each is meant in, and its exact constant where that is known.

The constants come from mpmath, NumPy and SciPy: a peak of |f'| by mpmath's root of f'', a matrix's largest singular
value by NumPy, or a line of algebra that stands beside the entry.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import mpmath as mp
import numpy as np
import scipy.fft
from jax import lax

from jaxact.lipschitz import Ball, Box

SIZE = 6
ROOT_N = SIZE**0.5


class Case(NamedTuple):
    """One function to certify."""

    name: str
    make: Callable[
        [], Callable[[Any], Any]
    ]  # called once: what holds parameters is built only when it is asked for
    shape: tuple[int, ...]
    region: Ball | Box | None
    constant: float | None  # exact within the region; None where it is not known


def case(
    name: str,
    fn: Callable[[Any], Any],
    constant: float | None = None,
    region: Ball | Box | None = None,
    size: int = SIZE,
) -> Case:
    """A formula of a vector."""
    return Case(name, lambda: fn, (size,), region, None if constant is None else float(constant))


def box(lower: float, upper: float, size: int = SIZE) -> Box:
    """The same interval for every entry."""
    return Box(np.full(size, lower), np.full(size, upper))


def ball(radius: float, middle: float = 0.0, size: int = SIZE) -> Ball:
    """Around a point of equal entries."""
    return Ball(np.full(size, middle), radius)


def peak(f: Callable[[Any], Any], near: float) -> float:
    """|f'| where f'' = 0 near a place."""
    return float(abs(mp.diff(f, mp.findroot(lambda x: mp.diff(f, x, 2), near))))


def norm(matrix: Any) -> float:
    """The largest singular value of what a linear map does to the unit vectors, by columns."""
    return float(np.linalg.norm(np.asarray(matrix, np.float64), 2))


def columns(f: Callable[[np.ndarray], Any], size: int = SIZE) -> np.ndarray:
    """The matrix of a linear map of NumPy's or SciPy's."""
    return np.stack([np.asarray(f(e)).ravel() for e in np.eye(size)], axis=1)


mp.mp.dps = 30
SILU = peak(lambda x: x / (1 + mp.exp(-x)), 2.4)
GELU = peak(lambda x: x * mp.ncdf(x), 1.4)
GELU_TANH = peak(lambda x: x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + 0.044715 * x**3))), 1.4)
MISH = peak(lambda x: x * mp.tanh(mp.log(1 + mp.exp(x))), 1.5)
GAUSS = float(mp.sqrt(2) * mp.exp(-0.5))  # of exp(-x^2), at x = 1/sqrt 2
SELU = 1.0507009873554805 * 1.6732632423543772
SINC = peak(lambda x: mp.sin(mp.pi * x) / (mp.pi * x), 0.66)
ERF = 2 / np.pi**0.5
SIMPLE_GELU = peak(lambda x: x * (1 + mp.erf(x / mp.sqrt(2))) / 2, 1.4)
TANHSHRINK = 1.0  # x - tanh x has slope tanh^2

RNG = np.random.default_rng(0)
A = RNG.normal(size=(SIZE, SIZE)).astype(np.float32)
B = RNG.normal(size=(4, SIZE)).astype(np.float32)
SHIFT = RNG.normal(size=SIZE).astype(np.float32)
GAINS = RNG.uniform(0.5, 2, SIZE).astype(np.float32)
SPD = (A @ A.T + np.eye(SIZE)).astype(np.float32)
LOWER = np.tril(A) + 3 * np.eye(SIZE, dtype=np.float32)
UNIT = (SHIFT / np.linalg.norm(SHIFT)).astype(np.float32)
CENTERING = np.eye(SIZE) - 1 / SIZE
EPS = 1e-5
KNOTS, HEIGHTS = np.array([-2.0, -0.5, 0.0, 1.0, 3.0]), np.array([1.0, 0.0, 0.5, -1.0, 0.0])
STEEPEST = float(np.abs(np.diff(HEIGHTS) / np.diff(KNOTS)).max())
GROUPS = np.array([0, 0, 1, 1, 2, 2])


@jax.custom_jvp
def relu_by_hand(x: Any) -> Any:
    """A relu with a slope of its own at 0."""
    return jnp.maximum(x, 0)


@relu_by_hand.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return relu_by_hand(*primals), (primals[0] > 0) * tangents[0]


def stable_sigmoid(x: Any) -> Any:
    """The logistic with an exp that never overflows."""
    z = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, 1 / (1 + z), z / (1 + z))


LOGISTIC = [
    case("jax.nn.sigmoid", jax.nn.sigmoid, 0.25),
    case("lax.logistic", lax.logistic, 0.25),
    case("1/(1+exp(-x))", lambda x: 1 / (1 + jnp.exp(-x)), 0.25),
    case("exp(x)/(1+exp(x))", lambda x: jnp.exp(x) / (1 + jnp.exp(x)), 0.25),
    case("0.5*(tanh(x/2)+1)", lambda x: 0.5 * (jnp.tanh(x / 2) + 1), 0.25),
    case("reciprocal(1+exp(-x))", lambda x: jnp.reciprocal(1 + jnp.exp(-x)), 0.25),
    case("(1+exp(-x))**-1", lambda x: (1 + jnp.exp(-x)) ** -1, 0.25),
    case("power(1+exp(-x), -1)", lambda x: jnp.power(1 + jnp.exp(-x), -1.0), 0.25),
    case("expit", jsp.special.expit, 0.25),
    case("exp(-softplus(-x))", lambda x: jnp.exp(-jax.nn.softplus(-x)), 0.25),
    case("exp(-logaddexp(0,-x))", lambda x: jnp.exp(-jnp.logaddexp(0, -x)), 0.25),
    case("exp(log_sigmoid)", lambda x: jnp.exp(jax.nn.log_sigmoid(x)), 0.25),
    case("stable sigmoid by where", stable_sigmoid, 0.25),
    case("1-1/(1+exp(x))", lambda x: 1 - 1 / (1 + jnp.exp(x)), 0.25),
    case("clipped 1/(1+exp(-x))", lambda x: 1 / (1 + jnp.exp(-jnp.clip(x, -30, 30))), 0.25),
    case("hard_sigmoid", jax.nn.hard_sigmoid, 1 / 6),
    case("clip(x/6+1/2, 0, 1)", lambda x: jnp.clip(x / 6 + 0.5, 0, 1), 1 / 6),
    case("relu6(x+3)/6", lambda x: jax.nn.relu6(x + 3) / 6, 1 / 6),
    case("sparse_sigmoid", jax.nn.sparse_sigmoid, 0.5),
    case("norm cdf", jsp.stats.norm.cdf, 1 / (2 * np.pi) ** 0.5),
    case("arctan(x)/pi+1/2", lambda x: jnp.arctan(x) / jnp.pi + 0.5, 1 / np.pi),
]
TANH = [
    case("jnp.tanh", jnp.tanh, 1),
    case("(e^x-e^-x)/(e^x+e^-x)", lambda x: (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x)), 1),
    case("1-2/(exp(2x)+1)", lambda x: 1 - 2 / (jnp.exp(2 * x) + 1), 1),
    case("2 sigmoid(2x)-1", lambda x: 2 * jax.nn.sigmoid(2 * x) - 1, 1),
    case("sinh/cosh", lambda x: jnp.sinh(x) / jnp.cosh(x), 1),
    case("(exp(2x)-1)/(exp(2x)+1)", lambda x: (jnp.exp(2 * x) - 1) / (jnp.exp(2 * x) + 1), 1),
    case("expm1(2x)/(expm1(2x)+2)", lambda x: jnp.expm1(2 * x) / (jnp.expm1(2 * x) + 2), 1),
    case("1.7159 tanh(2x/3)", lambda x: 1.7159 * jnp.tanh(2 / 3 * x), 1.7159 * 2 / 3),
    case("hard_tanh", jax.nn.hard_tanh, 1),
    case("clip -1 1", lambda x: jnp.clip(x, -1, 1), 1),
    case("where clip", lambda x: jnp.where(x > 1, 1.0, jnp.where(x < -1, -1.0, x)), 1),
    case("maximum(minimum)", lambda x: jnp.maximum(-1.0, jnp.minimum(1.0, x)), 1),
    case("lax.clamp", lambda x: lax.clamp(-1.0, x, 1.0), 1),
    case("x-tanh(x)", lambda x: x - jnp.tanh(x), TANHSHRINK),
    case("erf", lax.erf, ERF),
    case("arctan", jnp.arctan, 1),
    case("arctan2(x, 1)", lambda x: jnp.arctan2(x, 1.0), 1),
    case("arctan2(x, ones)", lambda x: jnp.arctan2(x, jnp.ones_like(x)), 1),
    case("soft_sign", jax.nn.soft_sign, 1),
    case("x/(1+|x|)", lambda x: x / (1 + jnp.abs(x)), 1),
    case("x/sqrt(1+x^2)", lambda x: x / jnp.sqrt(1 + x**2), 1),
    case("x*rsqrt(1+x^2)", lambda x: x * lax.rsqrt(1 + x * x), 1),
    case("x*(1+x^2)**-0.5", lambda x: x * (1 + x**2) ** -0.5, 1),
    case("gudermannian", lambda x: 2 * jnp.arctan(jnp.tanh(x / 2)), 1),
    case("where(x>0, 1-exp(-x), exp(x)-1)", lambda x: jnp.where(x > 0, 1 - jnp.exp(-x), jnp.exp(x) - 1), 1),
    case("sign(x)*(1-exp(-|x|))", lambda x: jnp.sign(x) * (1 - jnp.exp(-jnp.abs(x))), 1),
    case("sign(x)*log1p(|x|)", lambda x: jnp.sign(x) * jnp.log1p(jnp.abs(x)), 1),
    case("arcsinh", jnp.arcsinh, 1),
    case("log(x+sqrt(x^2+1))", lambda x: jnp.log(x + jnp.sqrt(x**2 + 1)), 1),
]
RELU = [
    case("relu", jax.nn.relu, 1),
    case("maximum(x, 0)", lambda x: jnp.maximum(x, 0), 1),
    case("where(x>0, x, 0)", lambda x: jnp.where(x > 0, x, 0), 1),
    case("x*(x>0)", lambda x: x * (x > 0), 1),
    case("(x+|x|)/2", lambda x: (x + jnp.abs(x)) / 2, 1),
    case("clip(x, 0)", lambda x: jnp.clip(x, 0), 1),
    case("clip(x, min=0)", lambda x: jnp.clip(x, min=0), 1),
    case("lax.max", lambda x: lax.max(x, jnp.zeros_like(x)), 1),
    case("lax.select", lambda x: lax.select(x > 0, x, jnp.zeros_like(x)), 1),
    case("jnp.select", lambda x: jnp.select([x > 0, x <= 0], [x, jnp.zeros_like(x)]), 1),
    case(
        "piecewise relu",
        lambda x: jnp.piecewise(x, [x < 0, x >= 0], [lambda x: jnp.zeros_like(x), lambda x: x]),
        1,
    ),
    case("x*heaviside(x, 0)", lambda x: x * jnp.heaviside(x, 0.0), 1),
    case("x*(sign(x)+1)/2", lambda x: x * (jnp.sign(x) + 1) / 2, 1),
    case("x*(x>0).astype(x.dtype)", lambda x: x * (x > 0).astype(x.dtype), 1),
    case("max(stack([x, 0]))", lambda x: jnp.max(jnp.stack([x, jnp.zeros_like(x)]), axis=0), 1),
    case("custom_jvp relu", relu_by_hand, 1),
    case("relu6", jax.nn.relu6, 1),
    case("minimum(relu, 6)", lambda x: jnp.minimum(jax.nn.relu(x), 6), 1),
    case("leaky_relu", jax.nn.leaky_relu, 1),
    case("where leaky 0.2", lambda x: jnp.where(x >= 0, x, 0.2 * x), 1),
    case("maximum(x, 0.2x)", lambda x: jnp.maximum(x, 0.2 * x), 1),
    case("prelu by parts", lambda x: jax.nn.relu(x) - 1.5 * jax.nn.relu(-x), 1.5),
    case("prelu per entry", lambda x: jnp.where(x > 0, x, GAINS * x), max(1, GAINS.max())),
    case("abs", jnp.abs, 1),
    case("sqrt(square)", lambda x: jnp.sqrt(jnp.square(x)), 1),
    case("soft threshold", lambda x: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 0.5, 0), 1),
    case("x-clip(x)", lambda x: x - jnp.clip(x, -0.5, 0.5), 1),
    case("soft threshold by relus", lambda x: jax.nn.relu(x - 0.5) - jax.nn.relu(-x - 0.5), 1),
    case("hat", lambda x: jax.nn.relu(1 - jnp.abs(x)), 1),
    case("absolute triangle", lambda x: jnp.abs(x % 2 - 1), 1),
    case("triangle by mod", lambda x: 2 * jnp.abs(jnp.mod(x, 1.0) - 0.5), 2),
    case("triangle by arcsin", lambda x: jnp.abs(x - 2 * jnp.round(x / 2)), 1),
    case("sin(2 pi (x%1))", lambda x: jnp.sin(2 * jnp.pi * (x % 1)), 2 * np.pi),
    case("x%1 within a period", lambda x: x % 1, 1, box(0.1, 0.9)),
    case("x-floor(x) within a period", lambda x: x - jnp.floor(x), 1, box(0.1, 0.9)),
    case("interp", lambda x: jnp.interp(x, KNOTS, HEIGHTS), STEEPEST),
    case("threshold shrink in a box", lambda x: jnp.where(jnp.abs(x) > 0.5, x, 0), 1, box(1, 2)),
    case("sparse_plus", jax.nn.sparse_plus, 1),
    case("relu^2 in a box", lambda x: jax.nn.relu(x) ** 2, 4, box(-2, 2)),
    case("relu(x)**3 in a box", lambda x: jnp.power(jax.nn.relu(x), 3), 12, box(-2, 2)),
]
SMOOTH = [
    case("softplus", jax.nn.softplus, 1),
    case("log(1+exp(x))", lambda x: jnp.log(1 + jnp.exp(x)), 1),
    case("log1p(exp(x))", lambda x: jnp.log1p(jnp.exp(x)), 1),
    case("logaddexp(x, 0)", lambda x: jnp.logaddexp(x, 0.0), 1),
    case("max(x,0)+log1p(exp(-|x|))", lambda x: jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x))), 1),
    case("softplus(beta 5)/5", lambda x: jax.nn.softplus(5 * x) / 5, 1),
    case("-log(sigmoid(-x))", lambda x: -jnp.log(jax.nn.sigmoid(-x)), 1),
    case("log_sigmoid", jax.nn.log_sigmoid, 1),
    case("where(x>20, x, log1p(exp(x)))", lambda x: jnp.where(x > 20, x, jnp.log1p(jnp.exp(x))), 1),
    case("squareplus", jax.nn.squareplus, 1),
    case("(x+sqrt(x^2+4))/2", lambda x: (x + jnp.sqrt(x**2 + 4)) / 2, 1),
    case("silu", jax.nn.silu, SILU),
    case("swish", jax.nn.swish, SILU),
    case("x*sigmoid(x)", lambda x: x * jax.nn.sigmoid(x), SILU),
    case("x/(1+exp(-x))", lambda x: x / (1 + jnp.exp(-x)), SILU),
    case("x*exp(x)/(1+exp(x))", lambda x: x * jnp.exp(x) / (1 + jnp.exp(x)), SILU),
    case("x/2*(1+tanh(x/2))", lambda x: x / 2 * (1 + jnp.tanh(x / 2)), SILU),
    case("swish beta 1.5", lambda x: x * jax.nn.sigmoid(1.5 * x), SILU),
    case("quick gelu", lambda x: x * jax.nn.sigmoid(1.702 * x), SILU),
    case("hard_swish", jax.nn.hard_swish, 1.5),
    case("x*clip(x/6+1/2, 0, 1)", lambda x: x * jnp.clip(x / 6 + 0.5, 0, 1), 1.5),
    case("x*relu6(x+3)/6", lambda x: x * jax.nn.relu6(x + 3) / 6, 1.5),
    case("gelu (tanh)", jax.nn.gelu, GELU_TANH),
    case("gelu (exact)", partial(jax.nn.gelu, approximate=False), GELU),
    case("x/2*(1+erf(x/sqrt 2))", lambda x: 0.5 * x * (1 + lax.erf(x / jnp.sqrt(2.0))), SIMPLE_GELU),
    case("x*norm.cdf(x)", lambda x: x * jsp.stats.norm.cdf(x), GELU),
    case("x/2*erfc(-x/sqrt 2)", lambda x: 0.5 * x * lax.erfc(-x / np.sqrt(2)), GELU),
    case(
        "gelu (tanh) by hand",
        lambda x: 0.5 * x * (1 + jnp.tanh(jnp.sqrt(2 / jnp.pi) * (x + 0.044715 * jnp.power(x, 3)))),
        GELU_TANH,
    ),
    case("mish", jax.nn.mish, MISH),
    case("x*tanh(softplus(x))", lambda x: x * jnp.tanh(jax.nn.softplus(x)), MISH),
    case("x*tanh(log(1+exp(x)))", lambda x: x * jnp.tanh(jnp.log(1 + jnp.exp(x))), MISH),
    case("mish rational", lambda x: x * (1 - 2 / (jnp.square(1 + jnp.exp(x)) + 1)), MISH),
    case("elu", jax.nn.elu, 1),
    case("where(x>0, x, exp(x)-1)", lambda x: jnp.where(x > 0, x, jnp.exp(x) - 1), 1),
    case("where elu, guarded", lambda x: jnp.where(x > 0, x, jnp.expm1(jnp.where(x > 0, 0, x))), 1),
    case("max(x,0)+min(0,exp(x)-1)", lambda x: jnp.maximum(x, 0) + jnp.minimum(0, jnp.exp(x) - 1), 1),
    case("relu+expm1(min)", lambda x: jax.nn.relu(x) + jnp.expm1(jnp.minimum(x, 0)), 1),
    case("celu", jax.nn.celu, 1),
    case("celu 2 by hand", lambda x: jnp.maximum(x, 0) + jnp.minimum(0, 2 * (jnp.exp(x / 2) - 1)), 1),
    case("selu", jax.nn.selu, SELU),
    case(
        "selu by where",
        lambda x: 1.0507009873554805 * jnp.where(x > 0, x, 1.6732632423543772 * jnp.expm1(x)),
        SELU,
    ),
    case("log cosh", lambda x: jnp.log(jnp.cosh(x)), 1),
    case("log cosh, stable", lambda x: jnp.abs(x) + jnp.log1p(jnp.exp(-2 * jnp.abs(x))) - jnp.log(2.0), 1),
    case("logaddexp(x,-x)", lambda x: jnp.logaddexp(x, -x), 1),
    case("sqrt(1+x^2)", lambda x: jnp.sqrt(1 + x**2), 1),
    case("(1+x**2)**0.5", lambda x: (1 + x**2) ** 0.5, 1),
    case("hypot(x, 1)", lambda x: jnp.hypot(x, 1.0), 1),
    case("Charbonnier", lambda x: jnp.sqrt(x * x + 1e-6), 1),
    case("Huber", lambda x: jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.abs(x) - 0.5), 1),
    case("Cauchy log1p(x^2)", lambda x: jnp.log1p(x**2), 1),
    case("1/(1+x^2)", lambda x: 1 / (1 + x**2), 3**1.5 / 8),
    case("x/(1+x^2)", lambda x: x / (1 + x**2), 1),
    case("exp(-x^2)", lambda x: jnp.exp(-(x**2)), GAUSS),
    case("exp(-x^2/2)", lambda x: jnp.exp(-0.5 * jnp.square(x)), np.exp(-0.5)),
    case("x exp(-x^2)", lambda x: x * jnp.exp(-(x**2)), 1),
    case("norm.pdf", jsp.stats.norm.pdf, np.exp(-0.5) / (2 * np.pi) ** 0.5),
    case("exp(-|x|)", lambda x: jnp.exp(-jnp.abs(x)), 1),
    case("exp(-relu(x))", lambda x: jnp.exp(-jax.nn.relu(x)), 1),
    case("exp(-exp(-x))", lambda x: jnp.exp(-jnp.exp(-x)), np.exp(-1)),
    case("1-exp(-exp(x))", lambda x: 1 - jnp.exp(-jnp.exp(x)), np.exp(-1)),
    case("sech", lambda x: 1 / jnp.cosh(x), 0.5),
    case("1-tanh^2", lambda x: 1 - jnp.tanh(x) ** 2, 4 / 3**1.5),
    case("tanh^2", lambda x: jnp.square(jnp.tanh(x)), 4 / 3**1.5),
    case("sigmoid(x)*(1-sigmoid(x))", lambda x: jax.nn.sigmoid(x) * (1 - jax.nn.sigmoid(x)), 3**-1.5 / 2),
    case("sinc", jnp.sinc, SINC),
    case("sin(x)/x by where", lambda x: jnp.where(x == 0, 1.0, jnp.sin(x) / jnp.where(x == 0, 1.0, x))),
    case("sin", jnp.sin, 1),
    case("sin(30x)", lambda x: jnp.sin(30 * x), 30),
    case("x+sin^2(x)", lambda x: x + jnp.sin(x) ** 2, 2),
    case("(1-cos(2x))/2+x", lambda x: x + (1 - jnp.cos(2 * x)) / 2, 2),
    case("sin(x)+cos(x)", lambda x: jnp.sin(x) + jnp.cos(x), 2**0.5),
    case("sin(x)*cos(x)", lambda x: jnp.sin(x) * jnp.cos(x), 1),
    case("real exp(ix)", lambda x: jnp.real(jnp.exp(1j * x)), 1),
    case("gelu(gelu(x))", lambda x: jax.nn.gelu(jax.nn.gelu(x)), None),
    case("tanh(tanh(x))", lambda x: jnp.tanh(jnp.tanh(x)), 1),
    case("x+tanh(x)", lambda x: x + jnp.tanh(x), 2),
    case("cbrt(1+x^2)", lambda x: jnp.cbrt(1 + x**2), None),
    case("nan_to_num(tanh)", lambda x: jnp.nan_to_num(jnp.tanh(x)), 1),
    case("where(isfinite(x), x, 0)", lambda x: jnp.where(jnp.isfinite(x), x, 0.0), 1),
    case("polyval in a box", lambda x: jnp.polyval(jnp.array([1.0, 0, -3, 1]), x), 9, box(-2, 2)),
    case("exp in a box", jnp.exp, np.exp(2), box(-2, 2)),
    case("log in a box", jnp.log, 2, box(0.5, 3)),
    case("sqrt in a box", jnp.sqrt, 1, box(0.25, 3)),
    case("1/x in a box", lambda x: 1 / x, 4, box(0.5, 3)),
    case("x**1.5 in a box", lambda x: x**1.5, 3, box(0.5, 4)),
    case("2**x in a box", lambda x: 2**x, 4 * np.log(2), box(-2, 2)),
    case("x*log(x) in a box", lambda x: x * jnp.log(x), 1 + np.log(3), box(0.5, 3)),
    case("xlogy in a box", lambda x: jsp.special.xlogy(x, x), 1 + np.log(3), box(0.5, 3)),
    case("x**3 in a ball", lambda x: x**3, 3 * 2.5**2, ball(2, 0.5)),
    case("lax.integer_pow in a ball", lambda x: lax.integer_pow(x, 4), 4 * 2.5**3, ball(2, 0.5)),
    case("tan in a box", jnp.tan, 1 / np.cos(1) ** 2, box(-1, 1)),
    case("arcsin in a box", jnp.arcsin, 1 / 0.6, box(-0.8, 0.8)),
    case("arctanh in a box", jnp.arctanh, 1 / 0.36, box(-0.8, 0.8)),
    case("log1mexp in a box", jax.nn.log1mexp, 1 / np.expm1(0.5), box(0.5, 3)),
    case("log(clip(x, 0.1))", lambda x: jnp.log(jnp.clip(x, 0.1)), 10),
    case("log(maximum(x, 0.1))", lambda x: jnp.log(jnp.maximum(x, 0.1)), 10),
    case("log(x^2+1/4)", lambda x: jnp.log(x**2 + 0.25), 2),
    case("sqrt(relu(x)+1/4)", lambda x: jnp.sqrt(jax.nn.relu(x) + 0.25), 1),
    case("logit(clip)", lambda x: jsp.special.logit(jnp.clip(x, 0.1, 0.9)), 1 / 0.09),
    case("exp(clip(x, -1, 1))", lambda x: jnp.exp(jnp.clip(x, -1, 1)), np.e),
    case("lgamma in a box", lax.lgamma, float(abs(mp.digamma(0.5))), box(0.5, 3)),
    case("digamma in a box", lax.digamma, float(mp.psi(1, 0.5)), box(0.5, 3)),
    case("erfinv in a box", lax.erf_inv, None, box(-0.8, 0.8)),
    case("bessel i0e", jsp.special.i0e, None),
]
LINEAR = [
    case("A @ x", lambda x: A @ x, norm(A)),
    case("x @ A + b", lambda x: x @ A + SHIFT, norm(A)),
    case("einsum", lambda x: jnp.einsum("ij,j->i", A, x), norm(A)),
    case("tensordot", lambda x: jnp.tensordot(A, x, 1), norm(A)),
    case("sum of a product", lambda x: (A * x).sum(1), norm(A)),
    case("vmap of a dot", lambda x: jax.vmap(lambda row: jnp.dot(row, x))(A), norm(A)),
    case("outer", lambda x: jnp.outer(x, SHIFT), np.linalg.norm(SHIFT)),
    case("kron", lambda x: jnp.kron(x, SHIFT), np.linalg.norm(SHIFT)),
    case("sum", jnp.sum, ROOT_N),
    case("mean", jnp.mean, 1 / ROOT_N),
    case("average", lambda x: jnp.average(x, weights=GAINS), np.linalg.norm(GAINS) / GAINS.sum()),
    case("x-mean", lambda x: x - x.mean(), 1),
    case("cumsum", jnp.cumsum, norm(np.tril(np.ones((SIZE, SIZE))))),
    case("diff", jnp.diff, norm(columns(np.diff))),
    case("gradient", jnp.gradient, norm(columns(np.gradient))),
    case(
        "convolve",
        lambda x: jnp.convolve(x, GAINS[:3], mode="same"),
        norm(columns(lambda e: np.convolve(e, GAINS[:3], mode="same"))),
    ),
    case("trapezoid", jnp.trapezoid, norm(columns(lambda e: np.trapezoid(e)[None]))),
    case("roll + flip", lambda x: jnp.roll(x, 1) + jnp.flip(x), 2),
    case("pad reflect", lambda x: jnp.pad(x, 2, "reflect"), 2**0.5),
    case("pad edge", lambda x: jnp.pad(x, 2, "edge"), 3**0.5),
    case("repeat", lambda x: jnp.repeat(x, 3), 3**0.5),
    case("tile", lambda x: jnp.tile(x, 4), 2),
    case("concatenate x, -x", lambda x: jnp.concatenate([x, -x]), 2**0.5),
    case("x[index]", lambda x: x[jnp.array([0, 0, 3])], 2**0.5),
    case("take", lambda x: jnp.take(x, jnp.array([1, 1, 1])), 3**0.5),
    case("x[::-2]", lambda x: x[::-2], 1),
    case("split and add", lambda x: sum(jnp.split(x, 3)), 3**0.5),
    case("dynamic_slice", lambda x: lax.dynamic_slice(x, (2,), (3,)), 1),
    case("dynamic_update_slice", lambda x: lax.dynamic_update_slice(x, jnp.zeros(2), (1,)), 1),
    case("at set constant", lambda x: x.at[2].set(0.0), 1),
    case("at set own entry", lambda x: x.at[2].set(x[0]), 2**0.5),
    case("at add", lambda x: x.at[2].add(x[0]), norm(np.eye(SIZE) + np.eye(SIZE)[[2]].T @ np.eye(SIZE)[[0]])),
    case("at multiply", lambda x: x.at[jnp.array([0, 2])].multiply(-3.0), 3),
    case("at divide", lambda x: x.at[1].divide(0.25), 4),
    case("at max constant", lambda x: x.at[1].max(0.5), 1),
    case("at set tanh", lambda x: x.at[1].set(jnp.tanh(x[1])), 1),
    case("at mul from the end", lambda x: x.at[-1].mul(2.0), 2),
    case("zeros at add", lambda x: jnp.zeros(3).at[jnp.array([0, 1, 1, 2, 2, 2])].add(x), 3**0.5),
    case("segment_sum", lambda x: jax.ops.segment_sum(x, GROUPS, 3), 2**0.5),
    case("where by constant mask", lambda x: jnp.where(jnp.array(GAINS > 1), x, 0.0), 1),
    case("x*mask", lambda x: x * np.array([1, 0, 1, 1, 0, 2.0], np.float32), 2),
    case("triu of an outer sum", lambda x: jnp.triu(x[:, None] + x[None]), None),
    case("diag", lambda x: jnp.diag(x) @ B.T, None),
    case("linalg.solve", lambda x: jnp.linalg.solve(SPD, x), norm(np.linalg.inv(SPD.astype(float)))),
    case("inv @ x", lambda x: jnp.linalg.inv(SPD) @ x, norm(np.linalg.inv(SPD.astype(float)))),
    case("pinv @ x", lambda x: jnp.linalg.pinv(B).T @ x, norm(np.linalg.pinv(B.astype(float)))),
    case(
        "cho_solve",
        lambda x: jsp.linalg.cho_solve(jsp.linalg.cho_factor(SPD), x),
        norm(np.linalg.inv(SPD.astype(float))),
    ),
    case(
        "solve_triangular",
        lambda x: jsp.linalg.solve_triangular(LOWER, x, lower=True),
        norm(np.linalg.inv(LOWER.astype(float))),
    ),
    case("fft real part", lambda x: jnp.fft.fft(x).real, norm(columns(lambda e: np.fft.fft(e).real))),
    case("fft both parts", lambda x: jnp.stack([jnp.fft.fft(x).real, jnp.fft.fft(x).imag]), ROOT_N),
    case(
        "spectral filter",
        lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * GAINS[:4], n=SIZE),
        # eigenvalues are the filter's gains
        float(GAINS[:4].max()),
    ),
    # |F x| is homogeneous and |F x|_2 = sqrt n |x|_2: attained along x.
    case("abs fft", lambda x: jnp.abs(jnp.fft.fft(x)), ROOT_N),
    case("fft2 real", lambda x: jnp.fft.fft2(x.reshape(2, 3)).real, None),
    case("dct", lambda x: jsp.fft.dct(x), norm(columns(scipy.fft.dct))),
    case("dct ortho", lambda x: jsp.fft.dct(x, norm="ortho"), 1),
    case("complex product", lambda x: jnp.real((1 + 2j) * lax.complex(x[:3], x[3:])), 5**0.5),
    case("stack of shifts", lambda x: jnp.stack([x, jnp.roll(x, 1), jnp.roll(x, 2)]), 3**0.5),
    case("identity", jax.nn.identity, 1),
    case("astype bfloat16-free", lambda x: x.astype(jnp.float32) * 2, 2),
    case("stop_gradient of a constant", lambda x: x + lax.stop_gradient(jnp.ones(SIZE)), 1),
]
CHOOSING = [
    case("sort", jnp.sort, 1),
    case("lax.sort", lax.sort, 1),
    case("sort descending", lambda x: -jnp.sort(-x), 1),
    case("x[argsort(x)]", lambda x: x[jnp.argsort(x)], 1),
    case("take_along_axis of argsort", lambda x: jnp.take_along_axis(x, jnp.argsort(x), 0), 1),
    case("top_k", lambda x: lax.top_k(x, 3)[0], 1),
    case("median, even", jnp.median, 2**-0.5),
    case("median, odd", jnp.median, 1, size=5),
    case("quantile", lambda x: jnp.quantile(x, 0.2), 1),
    case("max", jnp.max, 1),
    case("amin", jnp.amin, 1),
    case("ptp", jnp.ptp, 2**0.5),
    case("max by argmax", lambda x: x[jnp.argmax(x)], 1),
    case("range by max-min", lambda x: x.max() - x.min(), 2**0.5),
    case("trimmed mean", lambda x: jnp.sort(x)[1:-1].mean(), 0.5),
    case("where(a>b, a, b)", lambda x: jnp.where(x[:3] > x[3:], x[:3], x[3:]), 1),
    case(
        "MaxMin",
        lambda x: jnp.concatenate([jnp.maximum(x[:3], x[3:]), jnp.minimum(x[:3], x[3:])]),
        1,
    ),
    case(
        "MaxMin of neighbours",
        lambda x: jnp.stack([jnp.max(x.reshape(3, 2), 1), jnp.min(x.reshape(3, 2), 1)], 1).reshape(-1),
        1,
    ),
    case(
        "MaxMin by where",
        lambda x: jnp.where(x[:3] > x[3:], x.reshape(2, 3), x.reshape(2, 3)[::-1]),
        1,
    ),
    case("GroupSort", lambda x: jnp.sort(x.reshape(2, 3), 1).reshape(-1), 1),
    case("CReLU", lambda x: jnp.concatenate([jax.nn.relu(x), jax.nn.relu(-x)]), 1),
    case("CReLU by stack", lambda x: jax.nn.relu(jnp.stack([x, -x])), 1),
    case(
        "Householder of a vector",
        lambda x: jnp.where(UNIT @ x > 0, x, x - 2 * (UNIT @ x) * UNIT / np.float32(UNIT @ UNIT)),
        1,
    ),
    case(
        "Householder of pairs",
        lambda x: jnp.where(
            0.6 * x[:3] + 0.8 * x[3:] > 0,
            x.reshape(2, 3),
            jnp.stack([0.28 * x[:3] - 0.96 * x[3:], -0.96 * x[:3] - 0.28 * x[3:]]),
        ),
        1,
    ),
    # Where the first entry is the largest, all outputs are it.
    case("cummax", lax.cummax, ROOT_N),
    case("maximum.accumulate", lambda x: jnp.maximum.accumulate(x), ROOT_N),
    case("associative_scan(maximum)", lambda x: lax.associative_scan(jnp.maximum, x), ROOT_N),
    case("segment_max", lambda x: jax.ops.segment_max(x, GROUPS, 3), 1),
    case("max pool 2/2", lambda x: jnp.max(x.reshape(3, 2), 1), 1),
    case(
        "reduce_window 2/2",
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID"),
        1,
    ),
    # Neighbouring windows share every entry with two others: an entry above all is the maximum of three.
    case("reduce_window 3/1", lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (3,), (1,), "VALID"), 3**0.5),
    case("maxout", lambda x: jnp.max((B.reshape(2, 2, SIZE) @ x), 0), None),
    case("maximum(x, roll)", lambda x: jnp.maximum(x, jnp.roll(x, 1)), 2**0.5),
    case("minimum of halves", lambda x: jnp.minimum(x[:3], x[3:]), 1),
    case("max of abs", lambda x: jnp.max(jnp.abs(x)), 1),
    case("clip to own mean", lambda x: jnp.minimum(x, x.mean()), None),
    case("ball projection", lambda x: x / jnp.maximum(1, jnp.linalg.norm(x)), 1),
    case("clip by norm", lambda x: x * jnp.minimum(1, 1 / jnp.maximum(jnp.linalg.norm(x), 1e-12)), 1),
]
ONES = np.ones(SIZE)
LOG_SOFTMAX = norm(np.eye(SIZE) - np.outer(ONES, np.eye(SIZE)[0]))  # convex in p: largest at a vertex
NORMS = [
    case("linalg.norm", jnp.linalg.norm, 1),
    case("sqrt(sum(x**2))", lambda x: jnp.sqrt(jnp.sum(x**2)), 1),
    case("sqrt(x @ x)", lambda x: jnp.sqrt(x @ x), 1),
    case("sqrt(vdot+eps)", lambda x: jnp.sqrt(jnp.vdot(x, x) + EPS), 1),
    case("sum(x**2)**0.5", lambda x: jnp.sum(jnp.square(x)) ** 0.5, 1),
    case("norm of differences", lambda x: jnp.linalg.norm(x - SHIFT), 1),
    case("norms of rows", lambda x: jnp.linalg.norm(x.reshape(3, 2), axis=1), 1),
    case("linalg.norm ord=1", lambda x: jnp.linalg.norm(x, 1), ROOT_N),
    case("linalg.norm ord=inf", lambda x: jnp.linalg.norm(x, jnp.inf), 1),
    case("linalg.norm ord=3", lambda x: jnp.linalg.norm(x, 3), None, ball(1, 2)),
    case("rms", lambda x: jnp.sqrt(jnp.mean(x**2)), 1 / ROOT_N),
    case("std", jnp.std, 1 / ROOT_N),
    case("hypot of halves", lambda x: jnp.hypot(x[:3], x[3:]), 1),
    case("abs of complex", lambda x: jnp.abs(lax.complex(x[:3], x[3:])), 1),
    case("distances to points", lambda x: jnp.linalg.norm(x - B, axis=1), None),
    case("|x|/(1+|x|)", lambda x: x / (1 + jnp.linalg.norm(x)), 1),
    case("x/|x| in a ball", lambda x: x / jnp.linalg.norm(x), 1 / (3 * ROOT_N - 1), ball(1, 3)),
    case(
        "x/max(|x|, eps) in a ball",
        lambda x: x / jnp.maximum(jnp.linalg.norm(x), 1e-6),
        1 / (3 * ROOT_N - 1),
        ball(1, 3),
    ),
    case(
        "x*rsqrt(sum x^2 + eps) in a ball",
        lambda x: x * lax.rsqrt(jnp.sum(x * x) + EPS),
        1 / np.sqrt((3 * ROOT_N - 1) ** 2 + EPS),
        ball(1, 3),
    ),
    case("x/sqrt(1+|x|^2)", lambda x: x / jnp.sqrt(1 + jnp.sum(x**2)), 1),
    case("capsule squash", lambda x: x * jnp.linalg.norm(x) / (1 + jnp.sum(x**2)), None, ball(1, 1)),
    case("cosine with a vector", lambda x: UNIT @ x / jnp.linalg.norm(x), None, ball(1, 3)),
    case("softmax", jax.nn.softmax, 0.5),
    case("softmax by hand", lambda x: jnp.exp(x) / jnp.sum(jnp.exp(x)), 0.5),
    case(
        "softmax by hand, shifted",
        lambda x: (e := jnp.exp(x - jnp.max(x))) / e.sum(),
        0.5,
    ),
    case("softmax(x/T)", lambda x: jax.nn.softmax(x / 0.1), 5),
    case("softmin", lambda x: jax.nn.softmax(-x), 0.5),
    case("softmax of rows", lambda x: jax.nn.softmax(x.reshape(2, 3), axis=-1), 0.5),
    case("exp(log_softmax)", lambda x: jnp.exp(jax.nn.log_softmax(x)), 0.5),
    case("exp(x-logsumexp)", lambda x: jnp.exp(x - jax.nn.logsumexp(x)), 0.5),
    case(
        "masked softmax",
        lambda x: jax.nn.softmax(jnp.where(jnp.arange(SIZE) < 4, x, -1e9)),
        0.5,
    ),
    case("softmax where=", lambda x: jax.nn.softmax(x, where=jnp.arange(SIZE) < 4), 0.5),
    case("log_softmax", jax.nn.log_softmax, LOG_SOFTMAX),
    case("x-logsumexp", lambda x: x - jsp.special.logsumexp(x), LOG_SOFTMAX),
    case("logsumexp", jax.nn.logsumexp, 1),
    case("log(sum(exp))", lambda x: jnp.log(jnp.sum(jnp.exp(x))), 1),
    case("logsumexp, shifted", lambda x: x.max() + jnp.log(jnp.exp(x - x.max()).sum()), 1),
    case("smooth maximum", lambda x: jax.nn.logsumexp(10 * x) / 10, 1),
    case("logsumexp with weights", lambda x: jax.nn.logsumexp(x, b=GAINS), 1),
    case("logaddexp of halves", lambda x: jnp.logaddexp(x[:3], x[3:]), 1),
    case("cross entropy", lambda x: -jax.nn.log_softmax(x)[2], 2**0.5),
    case("cross entropy by sum", lambda x: -jnp.sum(jax.nn.one_hot(2, SIZE) * jax.nn.log_softmax(x)), 2**0.5),
    case("soft argmax", lambda x: jax.nn.softmax(x) @ jnp.arange(6.0), None),
    case("entropy of softmax", lambda x: -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x)), None),
    case("margin", lambda x: x[0] - jnp.max(x[1:]), 2**0.5),
    case(
        "LayerNorm, two-pass",
        lambda x: (x - x.mean()) / jnp.sqrt(jnp.mean((x - x.mean()) ** 2) + EPS),
        EPS**-0.5,
    ),
    case("LayerNorm by var", lambda x: (x - jnp.mean(x)) / jnp.sqrt(jnp.var(x) + EPS), EPS**-0.5),
    case("LayerNorm by rsqrt", lambda x: (x - x.mean()) * lax.rsqrt(x.var() + EPS), EPS**-0.5),
    case(
        "LayerNorm, fast variance",
        lambda x: (x - x.mean()) * lax.rsqrt(jnp.mean(x**2) - x.mean() ** 2 + EPS),
        EPS**-0.5,
    ),
    case(
        "LayerNorm, fast variance, clipped",
        lambda x: (x - x.mean()) * lax.rsqrt(jnp.maximum(0, jnp.mean(x**2) - x.mean() ** 2) + EPS),
        EPS**-0.5,
    ),
    case(
        "LayerNorm, gains before the root",
        lambda x: (x - x.mean()) * (GAINS * lax.rsqrt(x.var() + EPS)) + SHIFT,
        norm(GAINS[:, None] * CENTERING) * EPS**-0.5,
    ),
    case(
        "LayerNorm with gains",
        lambda x: GAINS * (x - x.mean()) / jnp.sqrt(x.var() + EPS) + SHIFT,
        norm(GAINS[:, None] * CENTERING) * EPS**-0.5,
    ),
    case("standardize", jax.nn.standardize, EPS**-0.5),
    case(
        "LayerNorm by std + eps, in a ball",
        lambda x: (x - x.mean()) / (x.std() + 1e-3),
        None,
        Ball(np.arange(6.0), 1),
    ),
    # J = (I - 11^T/n - d d^T/(n s^2)) / s: 1/s_min, with |d| >= |d_0| - R.
    case(
        "LayerNorm in a ball",
        lambda x: (x - x.mean()) / jnp.sqrt(x.var() + EPS),
        1 / np.sqrt((np.linalg.norm(np.arange(6.0) - 2.5) - 1) ** 2 / SIZE + EPS),
        Ball(np.arange(6.0), 1),
    ),
    case(
        "LayerNorm, fast variance, in a ball",
        lambda x: (x - x.mean()) * lax.rsqrt(jnp.mean(x * x) - x.mean() ** 2 + EPS),
        1 / np.sqrt((np.linalg.norm(np.arange(6.0) - 2.5) - 1) ** 2 / SIZE + EPS),
        Ball(np.arange(6.0), 1),
    ),
    case("RMSNorm", lambda x: x / jnp.sqrt(jnp.mean(x**2) + EPS), EPS**-0.5),
    case("RMSNorm by rsqrt", lambda x: x * lax.rsqrt(jnp.mean(jnp.square(x)) + EPS), EPS**-0.5),
    case(
        "RMSNorm with gains",
        lambda x: x * lax.rsqrt(jnp.mean(x * x) + EPS) * GAINS,
        float(GAINS.max()) * EPS**-0.5,
    ),
    case(
        "GroupNorm",
        lambda x: (
            ((g := x.reshape(2, 3)) - g.mean(1, keepdims=True)) / jnp.sqrt(g.var(1, keepdims=True) + EPS)
        ),
        EPS**-0.5,
    ),
    case("squared norm in a ball", lambda x: jnp.sum(x**2), 2 * (2 * ROOT_N + 1), ball(1, 2)),
    case("quadratic form in a ball", lambda x: x @ A @ x, norm(A + A.T) * 2, ball(2)),
    case("prod in a box", jnp.prod, ROOT_N, box(0.5, 1)),
    case("cumprod in a box", jnp.cumprod, None, box(0.5, 1)),
    case("x*roll(x) in a ball", lambda x: x * jnp.roll(x, 1), None, ball(1, 1)),
    case("GLU in a box", jax.nn.glu, None, box(-1, 1)),
    case(
        "softmax times values in a ball", lambda x: jax.nn.softmax(x[:3]) @ (x[3:] * GAINS[3:]), None, ball(1)
    ),
    case("variance in a ball", jnp.var, 2 / SIZE * (norm(CENTERING) * 2), ball(2)),
    case("outer with itself in a ball", lambda x: jnp.outer(x, x), 4, ball(2)),
    case("ratio in a box", lambda x: x[:3] / x[3:], None, box(1, 2)),
    case("log of ratio in a box", lambda x: jnp.log(x[:3] / x[3:]), 2**0.5, box(1, 2)),
    case(
        "MSE in a ball", lambda x: jnp.mean((x - SHIFT) ** 2), 2 / SIZE * (np.linalg.norm(SHIFT) + 2), ball(2)
    ),
]


def scan_of(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Three times a step, by lax.scan."""
    return lambda x: lax.scan(lambda c, _: (step(c), None), x, None, 3)[0]


CONTROL = [
    case("scan tanh", scan_of(jnp.tanh), 1),
    case("scan 0.5c+|x|", lambda x: lax.scan(lambda c, _: (0.5 * c + jnp.abs(x), None), x, None, 4)[0], None),
    case("fori_loop", lambda x: lax.fori_loop(0, 3, lambda _, c: jnp.tanh(c), x), 1),
    case("python loop", lambda x: sum(jnp.sin(x / 2**k) / 2**k for k in range(3)), 1 + 1 / 4 + 1 / 16),
    case("cond on a constant", lambda x: lax.cond(True, jnp.tanh, jnp.sin, x), 1),
    case("lax.map", lambda x: lax.map(jnp.tanh, x), 1),
    case("vmap", jax.vmap(jax.nn.silu), SILU),
    case("jit", jax.jit(jax.nn.silu), SILU),
    case("checkpoint", jax.checkpoint(lambda x: jnp.sin(jnp.tanh(x))), 1),
    case("vectorize", jnp.vectorize(lambda x: jnp.maximum(x, 0)), 1),
    case("dict output", lambda x: {"a": jnp.tanh(x), "b": jax.nn.relu(x)}, 2**0.5),
    case("grad of log cosh", jax.grad(lambda x: jnp.log(jnp.cosh(x)).sum()), 1),
    case("grad of softplus", jax.vmap(jax.grad(jax.nn.softplus)), 0.25),
    case("tree sum", lambda x: jax.tree.reduce(jnp.add, [x, jnp.tanh(x)]), 2),
    case("iterated shrinkage", lambda x: scan_of(lambda c: c - 0.5 * jnp.tanh(c))(x), 1),
]
FORMULAS = [*LOGISTIC, *TANH, *RELU, *SMOOTH, *LINEAR, *CHOOSING, *NORMS, *CONTROL]
