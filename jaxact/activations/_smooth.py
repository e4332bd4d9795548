"""Sigmoids, smooth rectifiers, exponential units and waves, with the facts about them."""

from __future__ import annotations

from math import exp, inf, pi, sqrt

import jax
import jax.numpy as jnp

from jaxact.activations import _moments
from jaxact.activations._activation import Activation
from jaxact.activations._kernels import HUGE, bounded, exp_square, logistic, root
from jaxact.activations._registry import POSITIVE, define, family, member, number

__all__ = [
    "arctan",
    "asinh",
    "bent_identity",
    "celu",
    "cos",
    "elu",
    "erf",
    "gaussian",
    "log_sigmoid",
    "selu",
    "sigmoid",
    "sin",
    "soft_sign",
    "softplus",
    "squareplus",
    "tanh",
]


@member(
    formula="tanh(x)",
    range=(-1, 1),
    slope_range=(0, 1),
    monotone=True,
    odd=True,
    reference="LeCun et al., Efficient BackProp, 1998, sec. 4.4",
)
def tanh(x):
    """The hyperbolic tangent: f = tanh."""
    value = jnp.tanh(x)
    e = jnp.exp(-2 * jnp.abs(x))
    slope = 4 * e / jnp.square(1 + e)  # 1 - tanh(x)^2 cancels in the tails
    return value, slope, -2 * value * slope


@member(
    formula="1 / (1 + exp(-x))",
    range=(0, 1),
    slope_range=(0, 0.25),
    monotone=True,
    reference="Rumelhart, Hinton & Williams, Nature 323, 1986, eq. 2",
)
def sigmoid(x):
    """The logistic function, f(x) = 1 / (1 + exp(-x))."""
    value, slope = logistic(x)
    return value, slope, -slope * jnp.tanh(x / 2)


@member(
    formula="-log1p(exp(-x))",
    range=(-inf, 0),
    slope_range=(0, 1),
    monotone=True,
    reference="jax.nn.log_sigmoid: the log-likelihood of logistic regression",
)
def log_sigmoid(x):
    """The logarithm of the logistic function, f(x) = -log(1 + exp(-x))."""
    slope, curvature = logistic(-x)
    return jnp.minimum(x, 0) - jnp.log1p(jnp.exp(-jnp.abs(x))), slope, -curvature


@family(beta=POSITIVE)
def softplus(beta: float = 1.0) -> Activation:
    """The smooth rectifier, f(x) = log(1 + exp(beta x)) / beta.

    Args:
        beta: sharpness, in [0.001, 1000]; relu in the limit.
    """

    @define(
        formula="log1p(exp(x))" if beta == 1 else f"log1p(exp({number(beta)} * x)) / {number(beta)}",
        range=(0, inf),
        slope_range=(0, 1),
        monotone=True,
        reference="Dugas et al., NIPS 2000, sec. 3",
    )
    def jet(x):
        slope, curvature = logistic(beta * x)
        value = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(beta * x))) / beta
        return value, slope, beta * curvature

    return jet


@family(alpha=POSITIVE)
def elu(alpha: float = 1.0) -> Activation:
    """The exponential linear unit: f(x) = x for x > 0, alpha (exp(x) - 1) below; f'(0) = f''(0) = alpha.

    Args:
        alpha: minus the limit at -inf, in [0.001, 1000].
    """

    @define(
        formula=f"x if x > 0 else {number(alpha)} * expm1(x)",
        range=(-alpha, inf),
        slope_range=(0, max(alpha, 1)),
        kinks=() if alpha == 1 else (0,),
        breakpoints=(0,),
        monotone=True,
        reference="Clevert, Unterthiner & Hochreiter, arXiv:1511.07289, sec. 3",
    )
    def jet(x):
        low = jnp.minimum(x, 0)
        slope = alpha * jnp.exp(low)
        value = jnp.where(x > 0, x, alpha * jnp.expm1(low))
        return value, jnp.where(x > 0, 1, slope), jnp.where(x > 0, 0, slope)

    return jet


@family(alpha=POSITIVE)
def celu(alpha: float = 1.0) -> Activation:
    """The exponential linear unit with f'(0) = 1: x for x > 0, alpha (exp(x / alpha) - 1) below.

    f''(0) = 1 / alpha, the limit from the left.

    Args:
        alpha: minus the limit at -inf, in [0.001, 1000].
    """

    @define(
        formula=f"x if x > 0 else {number(alpha)} * expm1(x / {number(alpha)})",
        range=(-alpha, inf),
        slope_range=(0, 1),
        breakpoints=(0,),
        monotone=True,
        reference="Barron, arXiv:1704.07483, eq. 2",
    )
    def jet(x):
        low = jnp.minimum(x, 0) / alpha
        slope = jnp.exp(low)  # 1 from 0 on
        value = jnp.where(x > 0, x, alpha * jnp.expm1(low))
        return value, slope, jnp.where(x > 0, 0, slope / alpha)

    return jet


# lambda and lambda alpha, the product rounded once; the digits of both factors are in selu's formula.
_SELU_SCALE, _SELU_LIMIT = 1.0507009873554805, 1.7580993408473769


@member(
    formula=(
        "1.0507009873554804934193349852946 * (x if x > 0 else 1.6732632423543772848170429916717 * expm1(x))"
    ),
    range=(-_SELU_LIMIT, inf),
    slope_range=(0, _SELU_LIMIT),
    kinks=(0,),
    monotone=True,
    reference="Klambauer et al., arXiv:1706.02515, eq. 2 and 14",
)
def selu(x):
    """The self-normalising unit: lambda x for x > 0, lambda alpha (exp(x) - 1) below.

    f'(0) = f''(0) = lambda alpha, the limits from the left.
    """
    low = jnp.minimum(x, 0)
    slope = _SELU_LIMIT * jnp.exp(low)
    value = jnp.where(x > 0, _SELU_SCALE * x, _SELU_LIMIT * jnp.expm1(low))
    return value, jnp.where(x > 0, _SELU_SCALE, slope), jnp.where(x > 0, 0, slope)


@member(
    formula="erf(x)",
    range=(-1, 1),
    slope_range=(0, 2 / sqrt(pi)),
    monotone=True,
    odd=True,
    reference="Williams, Computing with infinite networks, NIPS 1996, sec. 3.1",
)
def erf(x):
    """The error function, f(x) = 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to x."""
    near = bounded(x)
    slope = 2 / sqrt(pi) * exp_square(near, 1.0)
    return jax.lax.erf(x), slope, -2 * near * slope


@member(
    formula="x / (1 + abs(x))",
    range=(-1, 1),
    slope_range=(0, 1),
    breakpoints=(0,),
    monotone=True,
    odd=True,
    reference="Bergstra et al., Quadratic polynomials learn better image features, 2009",
)
def soft_sign(x):
    """The soft sign, f(x) = x / (1 + |x|); f''(0) = 0, the mean of its limits 2 and -2."""
    r = 1 / (1 + jnp.abs(x))
    value = jnp.where(jnp.abs(x) > 1e16, jnp.sign(x), jnp.clip(x, -1e16, 1e16) * r)
    return value, r * r, -2 * jnp.sign(x) * r * r * r


@member(
    formula="atan(x)",
    range=(-pi / 2, pi / 2),
    slope_range=(0, 1),
    monotone=True,
    odd=True,
    reference="Kamruzzaman & Aziz, Arctangent activation function, ICEIS 2002",
)
def arctan(x):
    """The inverse tangent: f = arctan."""
    near, far = jnp.clip(x, -HUGE, HUGE), jnp.abs(x) > HUGE
    slope = 1 / (1 + x * x)
    # x / (1 + x^2) apart: slope^2 underflows long before f'' does.
    ratio = jnp.where(far, 1 / jnp.where(far, x, 1), near / (1 + near * near))
    return jnp.arctan(x), slope, -2 * ratio * slope


@member(
    formula="asinh(x)",
    range=(-inf, inf),
    slope_range=(0, 1),
    monotone=True,
    odd=True,
    reference="the signed logarithm: Burbidge, Magee & Robb, JASA 83, 1988",
)
def asinh(x):
    """The inverse hyperbolic sine, f(x) = log(x + sqrt(x^2 + 1)): linear near 0, logarithmic far away."""
    size, direction = root(x, 1.0)
    slope = 1 / size
    return jnp.arcsinh(x), slope, -direction * slope * slope


@family(b=POSITIVE)
def squareplus(b: float = 4.0) -> Activation:
    """The algebraic smooth rectifier, f(x) = (x + sqrt(x^2 + b)) / 2.

    Args:
        b: width of the bend, in [0.001, 1000]; relu in the limit 0, f(0) = sqrt(b) / 2.
    """

    @define(
        formula=f"(x + sqrt(x ** 2 + {number(b)})) / 2",
        range=(0, inf),
        slope_range=(0, 1),
        monotone=True,
        reference="Barron, arXiv:2112.11687, eq. 1",
    )
    def jet(x):
        size, direction = root(x, b)
        # For x < 0 the sum cancels: multiply by its conjugate. Halves first, or the sum overflows.
        half = jnp.abs(x) / 2 + size / 2
        value = jnp.where(x > 0, half, b / 4 / half)
        slope = jnp.where(x > 0, (1 + direction) / 2, jnp.where(x > 0, 0, value) / size)
        return value, slope, b / 2 / size / size / size

    return jet


@member(
    formula="x + (sqrt(x ** 2 + 1) - 1) / 2",
    range=(-inf, inf),
    slope_range=(0.5, 1.5),
    monotone=True,
    reference="folklore",
)
def bent_identity(x):
    """The bent identity, f(x) = x + (sqrt(x^2 + 1) - 1) / 2, slope 1/2 far below 0 and 3/2 far above."""
    size, direction = root(x, 1.0)
    # sqrt(x^2 + 1) - 1 = x * x / (sqrt(x^2 + 1) + 1), where the difference would cancel near 0.
    far = jnp.abs(x) > HUGE
    # Beyond, where x^2 may overflow, it is |x| - 1 to rounding.
    bend = jnp.where(far, jnp.sign(x) - 1 / jnp.where(far, x, 1), jnp.clip(x, -HUGE, HUGE) / (size + 1))
    return x * (1 + bend / 2), 1 + direction / 2, 0.5 / size / size / size


@member(
    formula="sin(x)",
    range=(-1, 1),
    slope_range=(-1, 1),
    odd=True,
    argmin=-pi / 2,
    moments=_moments.sin,
    reference="Sitzmann et al., arXiv:2006.09661, eq. 1",
)
def sin(x):
    """The sine: f = sin. NaN at +-inf, where it has no limit."""
    value = jnp.sin(x)
    return value, jnp.cos(x), -value


@member(
    formula="cos(x)",
    range=(-1, 1),
    slope_range=(-1, 1),
    argmin=pi,
    moments=_moments.cos,
    reference="Rahimi & Recht, Random features for large-scale kernel machines, NIPS 2007, sec. 3",
)
def cos(x):
    """The cosine: f = cos. NaN at +-inf, where it has no limit."""
    value = jnp.cos(x)
    return value, -jnp.sin(x), -value


@member(
    formula="exp(-x ** 2)",
    range=(0, 1),
    slope_range=(-sqrt(2) * exp(-0.5), sqrt(2) * exp(-0.5)),  # at -+1 / sqrt(2)
    moments=_moments.gaussian,
    reference="Broomhead & Lowe, Complex Systems 2, 1988; Ramasinghe & Lucey, arXiv:2111.15135",
)
def gaussian(x):
    """The Gaussian bump, f(x) = exp(-x^2). Its infimum 0 is not attained, hence no argmin."""
    near = bounded(x)
    value = exp_square(near, 1.0)
    return value, -2 * near * value, (4 * near * near - 2) * value
