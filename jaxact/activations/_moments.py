"""Closed-form Gaussian moments: (mean, variance) -> (E f(z), E f(z)^2) for z ~ N(mean, variance).

Each is exact up to rounding relative to the size of E z^2, not relative to itself: E relu(z) with its
mean ten standard deviations below 0 is a difference of equal numbers. A variance of 0 gives f(mean) and
f(mean)^2.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.special import ndtr
from jax.typing import ArrayLike
from jaxtyping import Array

Pair = tuple[Array, Array]


def _floating(mean: ArrayLike, variance: ArrayLike) -> Pair:
    dtype = jnp.result_type(mean, variance, float)
    return jnp.asarray(mean, dtype), jnp.asarray(variance, dtype)


def _positive_part(mean: Array, variance: Array) -> tuple[Array, Array, Array, Array]:
    """Return mean, sigma, P(z > 0) and the density of (z - mean) / sigma at its zero crossing."""
    spread = variance > 0
    sigma = jnp.where(spread, jnp.sqrt(jnp.where(spread, variance, 1)), 0)
    ratio = jnp.where(spread, mean / jnp.where(spread, sigma, 1), jnp.sign(mean) * jnp.inf)
    ratio = jnp.where(jnp.isnan(ratio), 0, ratio)
    density = jnp.where(spread, jnp.exp(-(jnp.clip(ratio, -1e3, 1e3) ** 2) / 2) / jnp.sqrt(2 * jnp.pi), 0)
    return mean, sigma, ndtr(ratio), density


def identity(mean: ArrayLike, variance: ArrayLike) -> Pair:
    """E z = m, E z^2 = m^2 + v."""
    m, v = _floating(mean, variance)
    return m, m * m + v


def leaky_relu(a: float, mean: ArrayLike, variance: ArrayLike) -> Pair:
    """With P = Phi(m/s): E relu = m P + s phi(m/s), E relu^2 = (m^2 + v) P + m s phi(m/s).

    f = a z + (1 - a) relu(z) and f^2 = a^2 z^2 + (1 - a^2) relu(z)^2.
    """
    m, v = _floating(mean, variance)
    m, s, p, density = _positive_part(m, v)
    first, second = m * p + s * density, (m * m + v) * p + m * s * density
    return a * m + (1 - a) * first, a * a * (m * m + v) + (1 - a * a) * second


def relu_squared(mean: ArrayLike, variance: ArrayLike) -> Pair:
    """E relu^2 as above; E relu^4 = (m^4 + 6 m^2 v + 3 v^2) P + (m^3 s + 5 m s^3) phi(m/s)."""
    m, v = _floating(mean, variance)
    m, s, p, density = _positive_part(m, v)
    fourth = (m**4 + 6 * m * m * v + 3 * v * v) * p + (m**3 * s + 5 * m * s**3) * density
    return (m * m + v) * p + m * s * density, fourth


def sin(mean: ArrayLike, variance: ArrayLike) -> Pair:
    """E sin z = exp(-v/2) sin m, E sin^2 z = (1 - exp(-2 v) cos 2 m) / 2."""
    m, v = _floating(mean, variance)
    # sin^2 m + (1 - exp(-2 v)) cos(2 m) / 2: the same, without cancellation for small v.
    return jnp.exp(-v / 2) * jnp.sin(m), jnp.sin(m) ** 2 - jnp.expm1(-2 * v) * jnp.cos(2 * m) / 2


def cos(mean: ArrayLike, variance: ArrayLike) -> Pair:
    """E cos z = exp(-v/2) cos m, E cos^2 z = (1 + exp(-2 v) cos 2 m) / 2."""
    m, v = _floating(mean, variance)
    return jnp.exp(-v / 2) * jnp.cos(m), (1 + jnp.exp(-2 * v) * jnp.cos(2 * m)) / 2


def gaussian(mean: ArrayLike, variance: ArrayLike) -> Pair:
    """E exp(-k z^2) = exp(-k m^2 / (1 + 2 k v)) / sqrt(1 + 2 k v), for k = 1 and 2."""
    m, v = _floating(mean, variance)
    first, second = (jnp.exp(-k * m * m / (1 + 2 * k * v)) / jnp.sqrt(1 + 2 * k * v) for k in (1, 2))
    return first, second
