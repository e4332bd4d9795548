"""Nonlinearities made of straight lines and parabolas, with the facts about them."""

from __future__ import annotations

from functools import partial
from math import inf

import jax.numpy as jnp

from jaxact.activations import _moments
from jaxact.activations._activation import Activation
from jaxact.activations._registry import REAL, define, family, member, number

__all__ = [
    "abs",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "identity",
    "leaky_relu",
    "relu",
    "relu6",
    "relu_squared",
    "sparse_plus",
]


@member(
    formula="x",
    range=(-inf, inf),
    slope_range=(1, 1),
    monotone=True,
    odd=True,
    homogeneous=True,
    moments=_moments.identity,
    reference="the linear network: Saxe, McClelland & Ganguli, arXiv:1312.6120",
)
def identity(x):
    """The identity, f(x) = x."""
    return x, jnp.ones_like(x), jnp.zeros_like(x)


@member(
    formula="max(x, 0)",
    range=(0, inf),
    slope_range=(0, 1),
    kinks=(0,),
    monotone=True,
    homogeneous=True,
    moments=partial(_moments.leaky_relu, 0.0),
    reference="Nair & Hinton, ICML 2010, sec. 2",
)
def relu(x):
    """The rectifier, f(x) = max(x, 0); f'(0) = 0 as in jax.nn."""
    return jnp.maximum(x, 0), _step(x > 0, x), jnp.zeros_like(x)


@family(a=REAL)
def leaky_relu(a: float = 0.01) -> Activation:
    """The rectifier with slope `a` below 0: f(x) = x for x >= 0, a x for x < 0; f'(0) = 1 as in jax.nn.

    Args:
        a: slope below 0, in [-1000, 1000].
    """

    @define(
        formula=f"x if x >= 0 else {number(a)} * x",
        range=(-inf if a > 0 else 0, inf),
        slope_range=(min(a, 1), max(a, 1)),
        kinks=() if a == 1 else (0,),
        monotone=a >= 0,
        odd=a == 1,
        homogeneous=True,
        argmin=0 if a < 0 else None,
        moments=partial(_moments.leaky_relu, a),
        reference="Maas, Hannun & Ng, ICML workshop 2013, sec. 2",
    )
    def jet(x):
        slope = jnp.where(x >= 0, 1, jnp.full_like(x, a))
        # 0 * -inf is not the limit.
        return slope * x if a else jnp.maximum(x, 0), slope, jnp.zeros_like(x)

    return jet


@member(
    formula="abs(x)",
    range=(0, inf),
    slope_range=(-1, 1),
    kinks=(0,),
    homogeneous=True,
    argmin=0,
    moments=partial(_moments.leaky_relu, -1.0),
    reference="Jarrett et al., ICCV 2009, sec. 2.1",
)
def abs(x):
    """The absolute value, f(x) = |x|; f'(0) = 0 as in PyTorch (`jnp.abs` has 1)."""
    return jnp.abs(x), jnp.sign(x), jnp.zeros_like(x)


@member(
    formula="max(x, 0) ** 2",
    range=(0, inf),
    slope_range=(0, inf),
    breakpoints=(0,),
    monotone=True,
    moments=_moments.relu_squared,
    reference="So et al., Primer, arXiv:2109.08668, sec. 4.2",
)
def relu_squared(x):
    """The squared rectifier, f(x) = max(x, 0)^2; f''(0) = 0. Overflows to inf where x^2 does."""
    positive = jnp.maximum(x, 0)
    return positive * positive, 2 * positive, 2 * _step(x > 0, x)


@member(
    formula="min(max(x, 0), 6)",
    range=(0, 6),
    slope_range=(0, 1),
    kinks=(0, 6),
    monotone=True,
    reference="Krizhevsky, Convolutional deep belief networks on CIFAR-10, 2010",
)
def relu6(x):
    """The rectifier capped at 6, f(x) = min(max(x, 0), 6); f'(0) = f'(6) = 0 as in jax.nn."""
    return jnp.clip(x, 0, 6), _step((x > 0) & (x < 6), x), jnp.zeros_like(x)


@member(
    formula="min(max(x, -1), 1)",
    range=(-1, 1),
    slope_range=(0, 1),
    kinks=(-1, 1),
    monotone=True,
    odd=True,
    reference="Collobert, Large scale machine learning, thesis, 2004",
)
def hard_tanh(x):
    """The clipped identity, f(x) = min(max(x, -1), 1); f'(-1) = f'(1) = 1 as in jax.nn."""
    return jnp.clip(x, -1, 1), _step(jnp.abs(x) <= 1, x), jnp.zeros_like(x)


@member(
    formula="min(max(x + 3, 0), 6) / 6",
    range=(0, 1),
    slope_range=(0, 1 / 6),
    kinks=(-3, 3),
    monotone=True,
    reference="Howard et al., MobileNetV3, arXiv:1905.02244, sec. 5.2",
)
def hard_sigmoid(x):
    """The clipped line, f(x) = relu6(x + 3) / 6; f'(-3) = f'(3) = 0 as in jax.nn."""
    return jnp.clip(x + 3, 0, 6) / 6, _step(jnp.abs(x) < 3, x) / 6, jnp.zeros_like(x)


@member(
    formula="x * (min(max(x + 3, 0), 6) / 6)",
    range=(-0.375, inf),  # at the vertex of x (x + 3) / 6
    slope_range=(-0.5, 1.5),  # (2 x + 3) / 6 next to -3 and 3
    kinks=(-3, 3),
    argmin=-1.5,
    reference="Howard et al., MobileNetV3, arXiv:1905.02244, sec. 5.2",
)
def hard_silu(x):
    """The hard swish, f(x) = x relu6(x + 3) / 6; f'(-3) = 0 and f'(3) = 1 as in jax.nn."""
    near = jnp.clip(x, -3, 3)
    inside = jnp.abs(x) < 3
    outside = _step(x > 0, x)
    value = jnp.maximum(x, -3) * (jnp.clip(x + 3, 0, 6) / 6)  # neither -inf * 0 nor an early overflow
    return value, jnp.where(inside, (2 * near + 3) / 6, outside), _step(inside, x) / 3


@member(
    formula="x if x >= 1 else max(x + 1, 0) ** 2 / 4",
    range=(0, inf),
    slope_range=(0, 1),
    breakpoints=(-1, 1),
    monotone=True,
    reference="jax.nn.sparse_plus; its derivative: Blondel, Martins & Niculae, arXiv:1901.02324, sec. 6.2",
)
def sparse_plus(x):
    """The sparse softplus: 0 up to -1, (x + 1)^2 / 4 between, x from 1 on; f''(-1) = f''(1) = 0."""
    rise = jnp.clip(x, -1, 1) + 1
    return jnp.where(x >= 1, x, rise * rise / 4), rise / 2, _step(jnp.abs(x) < 1, x) / 2


def _step(condition, x):
    return jnp.where(condition, jnp.ones_like(x), jnp.zeros_like(x))
