"""Every nonlinearity: its formula, first and second derivative, with the facts about it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxact.activations._activation import Activation
from jaxact.activations._registry import POSITIVE, REAL, ZOO, define, family, member

_INF = math.inf


@member(
    range=(-_INF, _INF), slope_range=(1, 1), monotone=True, odd=True, homogeneous=True,
    formula="x", reference="the linear network",
)
def identity(x):
    """f(x) = x."""
    return x, jnp.ones_like(x), jnp.zeros_like(x)


@member(
    range=(0, _INF), slope_range=(0, 1), kinks=(0,), monotone=True, homogeneous=True,
    formula="max(x, 0)", reference="Nair & Hinton, ICML 2010",
)
def relu(x):
    """f(x) = max(x, 0), with f'(0) = 0 as in jax.nn."""
    return jnp.maximum(x, 0), jnp.where(x > 0, 1.0, jnp.zeros_like(x)), jnp.zeros_like(x)


@family(a=REAL)
def leaky_relu(a: float = 0.01) -> Activation:
    """f(x) = x for x >= 0, a x below, with f'(0) = 1 as in jax.nn."""

    @define(
        range=(-_INF if a > 0 else 0, _INF), slope_range=(min(a, 1), max(a, 1)), kinks=() if a == 1 else (0,),
        monotone=a >= 0, homogeneous=True, odd=a == 1, argmin=0.0 if a < 0 else None,
        formula=f"x if x >= 0 else {a!r} * x", reference="Maas, Hannun & Ng, ICML workshop 2013",
    )
    def jet(x):
        slope = jnp.where(x >= 0, 1.0, jnp.full_like(x, a))
        return slope * x, slope, jnp.zeros_like(x)

    return jet


@member(
    range=(-1, 1), slope_range=(0, 1), monotone=True, odd=True,
    formula="tanh(x)", reference="LeCun et al., Efficient BackProp, 1998",
)
def tanh(x):
    """f(x) = tanh(x)."""
    value = jnp.tanh(x)
    e = jnp.exp(-2 * jnp.abs(x))
    slope = 4 * e / jnp.square(1 + e)  # 1 - tanh^2 would cancel in the tails
    return value, slope, -2 * value * slope


@member(
    range=(0, 1), slope_range=(0, 0.25), monotone=True,
    formula="1 / (1 + exp(-x))", reference="Rumelhart, Hinton & Williams, Nature 1986",
)
def sigmoid(x):
    """f(x) = 1 / (1 + exp(-x))."""
    e = jnp.exp(-jnp.abs(x))
    r = 1 / (1 + e)
    slope = e * r * r
    return jnp.where(x >= 0, r, e * r), slope, -slope * jnp.tanh(x / 2)


@member(
    range=(-0.2784645427610738, _INF), slope_range=(-0.0998393201288867, 1.0998393201288867),
    argmin=-1.2784645427610738,
    formula="x / (1 + exp(-x))", reference="Elfwing, Uchibe & Doya, arXiv:1702.03118",
)
def silu(x):
    """f(x) = x sigmoid(x)."""
    e = jnp.exp(-jnp.abs(x))
    r = 1 / (1 + e)
    s, below = jnp.where(x >= 0, r, e * r), jnp.where(x >= 0, e * r, r)
    bounded = jnp.clip(x, -1e3, 1e3)
    slope = s * (1 + bounded * below)
    return jnp.maximum(x, -1e3) * s, slope, e * r * r * (2 - jnp.abs(bounded) * (1 - e) * r)


_SELU_ALPHA, _SELU_LAMBDA = 1.6732632423543772, 1.0507009873554805


@member(
    range=(-_SELU_ALPHA * _SELU_LAMBDA, _INF), slope_range=(0, _SELU_ALPHA * _SELU_LAMBDA), kinks=(0,), monotone=True,
    formula="x", reference="Klambauer et al., arXiv:1706.02515, eq. 2",
)
def selu(x):
    """f(x) = lambda x for x > 0, lambda alpha (exp(x) - 1) below."""
    c = _SELU_ALPHA * _SELU_LAMBDA
    low = jnp.minimum(x, 0)
    e = c * jnp.exp(low)
    return (
        jnp.where(x > 0, _SELU_LAMBDA * x, c * jnp.expm1(low)),
        jnp.where(x > 0, _SELU_LAMBDA, e),
        jnp.where(x > 0, 0.0, e),
    )


@member(
    range=(-0.16997120747990369, _INF), slope_range=(-0.12890414522023478, 1.1289041452202348), argmin=-0.7517915246935645,
    formula="x * erfc(-x / sqrt(2)) / 2", reference="Hendrycks & Gimpel, arXiv:1606.08415, sec. 2",
)
def gelu(x):
    """f(x) = x Phi(x) with the Gaussian distribution function Phi; the exact one."""
    bounded = jnp.clip(x, -1e3, 1e3)
    cdf = jax.lax.erfc(-bounded * math.sqrt(0.5)) / 2
    pdf = jnp.exp(-bounded * bounded / 2) / math.sqrt(2 * math.pi)
    return jnp.maximum(x, -1e3) * cdf, cdf + bounded * pdf, pdf * (2 - bounded * bounded)


__all__ = list(ZOO)
