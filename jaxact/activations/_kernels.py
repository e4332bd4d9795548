"""Pieces that several activations share, each accurate to a few ulp in the tails."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: exp(-FAR) is 0 in float32 and float64: a factor x beside it is clipped there, so that inf * 0 never arises.
FAR = 1e3

#: where sqrt(x^2 + b) equals |x| in float64 for b <= 1e3, while x^2 is still far from overflow in float32.
HUGE = 1e10


def bounded(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Clip x to [-FAR, FAR], for products with a factor that is 0 beyond."""
    return jnp.clip(x, -FAR, FAR)


def bounded_below(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Clip x to [-FAR, inf), for products with a factor that is 0 below."""
    return jnp.maximum(x, -FAR)


def logistic(z: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return s(z) = 1 / (1 + exp(-z)) and s'(z) = s(z) s(-z) by one exponential, accurate in both tails."""
    e = jnp.exp(-jnp.abs(z))  # never overflows, and 1 - s(z) = s(-z) never cancels
    r = 1 / (1 + e)
    return jnp.where(z >= 0, r, e * r), e * r * r


def exp_square(x: Float[Array, "*shape"], c: float) -> Float[Array, "*shape"]:
    """Return exp(-c x^2) for |x| <= FAR; c must be a power of 2.

    The rounding error of x^2, magnified by the exponential to hundreds of ulp in the tail, is computed by
    splitting x into two halves (Dekker, Numer. Math. 18, 1971) and taken back to first order.
    """
    exponent_bits, mantissa_bits = (11, 25) if x.dtype == jnp.float64 else (8, 11)
    high = jax.lax.reduce_precision(x, exponent_bits, mantissa_bits)
    square = x * x
    error = (high * high - square) + (x - high) * (x + high)
    return jnp.exp(-c * square) * (1 - c * error)


# Numerator and denominator, highest power first: the minimax rational functions for relative error on
# [0, 14] (5.6e-9) and [0, 39] (5.2e-17), from a Lawson-weighted linearised fit in 50 digits. Every
# coefficient is positive, so nothing cancels. Beyond 14 and 39 the density they multiply underflows.
_TAIL_FLOAT32 = (
    (4.0773778049860878e-3, 4.0371050457891970e-2, 1.8245746849998068e-1, 4.3724518051457742e-1,
     5.0000000275598666e-1),
    (1.0220341709141978e-2, 1.0120202787768958e-1, 4.6741755886829771e-1, 1.1992728654579720,
     1.6723753160795333, 1.0),
)  # fmt: skip
_TAIL_FLOAT64 = (
    (1.3856739855655806593e-6, 3.7253546573710977437e-5, 4.9041054124510720856e-4, 4.08926523068036902e-3,
     2.3622190245502623441e-2, 9.769854949952202001e-2, 2.8933077234956914751e-1, 5.9404354440066361028e-1,
     7.7487196163344724605e-1, 4.9999999999999997441e-1),
    (3.4733695916496260412e-6, 9.3380793169811526508e-5, 1.2327502986530485165e-3, 1.0343648631671445723e-2,
     6.0434380593270667399e-2, 2.5495744111073528673e-1, 7.8203316861583544704e-1, 1.7143695987026250848,
     2.5612236107419385443, 2.3476284840697497508, 1.0),
)  # fmt: skip


def gaussian_distribution(
    x: Float[Array, "*shape"],
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return Phi(x) and phi(x), the standard Gaussian distribution function and density, for |x| <= FAR.

    Phi(-|x|) = exp(-x^2 / 2) M(|x|) with a rational M: one exponential and one division for both, and a
    relatively accurate tail, where `erfc` of the rounded x / sqrt(2) loses a factor of x^2.
    """
    numerator, denominator = _TAIL_FLOAT64 if x.dtype == jnp.float64 else _TAIL_FLOAT32
    gauss = exp_square(x, 0.5)
    size = jnp.abs(x)
    tail = gauss * (_polynomial(numerator, size) / _polynomial(denominator, size))
    return jnp.where(x >= 0, 1 - tail, tail), gauss * (1 / math.sqrt(2 * math.pi))


def root(x: Float[Array, "*shape"], b: float) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Return S = sqrt(x^2 + b) and x / S for every x, +-inf included; 0 < b <= 1e3."""
    near = jnp.clip(x, -HUGE, HUGE)
    near_root = jnp.sqrt(near * near + b)
    far = jnp.abs(x) > HUGE
    return jnp.where(far, jnp.abs(x), near_root), jnp.where(far, jnp.sign(x), near / near_root)


def _polynomial(coefficients: tuple[float, ...], x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    value = jnp.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value
