"""Nonlinearities x g(x) with a smooth gate g rising from 0 to 1, with the facts about them.

Ranges, slopes and minimisers are roots of f' and f'', computed with 40 digits (mpmath.findroot) and rounded.
"""

from __future__ import annotations

from math import inf, pi, sqrt

import jax.numpy as jnp

from jaxact.activations._activation import Activation
from jaxact.activations._kernels import bounded, bounded_below, gaussian_distribution, logistic
from jaxact.activations._registry import POSITIVE, define, family, member, number

__all__ = [
    "gelu",
    "gelu_tanh",
    "mish",
    "quick_gelu",
    "silu",
    "swish",
    "tanh_exp",
]

# Of silu; those of x s(beta x) = silu(beta x) / beta follow by scaling, and its slopes are the same.
_SILU_ARGMIN, _SILU_MIN = -1.2784645427610738, -0.2784645427610738
_SILU_SLOPES = (-0.09983932012886692, 1.099839320128867)  # at -+2.39935728051546767


def _sigmoid_gated(x, beta):
    """Return the jet of x s(beta x)."""
    gate, slope = logistic(beta * x)
    z = bounded(beta * x)
    value = jnp.maximum(x, -1e3 / beta) * gate
    return value, gate + z * slope, beta * slope * (2 - z * jnp.tanh(z / 2))


@member(
    formula="x / (1 + exp(-x))",
    range=(_SILU_MIN, inf),
    slope_range=_SILU_SLOPES,
    argmin=_SILU_ARGMIN,
    reference="Elfwing, Uchibe & Doya, arXiv:1702.03118, sec. 2",
)
def silu(x):
    """The sigmoid-weighted linear unit, f(x) = x / (1 + exp(-x)); the same as swish."""
    return _sigmoid_gated(x, 1.0)


@family(beta=POSITIVE)
def swish(beta: float = 1.0) -> Activation:
    """The sigmoid-gated line, f(x) = x / (1 + exp(-beta x)); `swish()` is silu itself.

    Args:
        beta: sharpness of the gate, in [0.001, 1000]; relu in the limit.
    """
    if beta == 1:
        return silu

    @define(
        formula=f"x / (1 + exp(-{number(beta)} * x))",
        range=(_SILU_MIN / beta, inf),
        slope_range=_SILU_SLOPES,
        argmin=_SILU_ARGMIN / beta,
        reference="Ramachandran, Zoph & Le, arXiv:1710.05941, sec. 3",
    )
    def jet(x):
        return _sigmoid_gated(x, beta)

    return jet


@member(
    formula="x / (1 + exp(-1.702 * x))",
    range=(_SILU_MIN / 1.702, inf),
    slope_range=_SILU_SLOPES,
    argmin=_SILU_ARGMIN / 1.702,
    reference="Hendrycks & Gimpel, arXiv:1606.08415, sec. 2",
)
def quick_gelu(x):
    """The sigmoid approximation of gelu, f(x) = x / (1 + exp(-1.702 x))."""
    return _sigmoid_gated(x, 1.702)


@member(
    formula="x * erfc(-x / sqrt(2)) / 2",
    range=(-0.16997120747990366, inf),
    slope_range=(-0.12890414518515478, 1.1289041451851547),  # at -+sqrt(2)
    argmin=-0.7517915246935645,
    reference="Hendrycks & Gimpel, arXiv:1606.08415, sec. 2",
)
def gelu(x):
    """The Gaussian error linear unit, exact: f(x) = x Phi(x), with the Gaussian distribution function Phi.

    `jax.nn.gelu` is `gelu_tanh` unless called with `approximate=False`; PyTorch's is this one.
    """
    near = bounded(x)
    gate, density = gaussian_distribution(near)
    return bounded_below(x) * gate, gate + near * density, density * (2 - near * near)


@member(
    formula="x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3))) / 2",
    range=(-0.17004075057125406, inf),
    slope_range=(-0.12899306865877178, 1.1289930686587717),  # at -+1.41850400879082836
    argmin=-0.7524614220710163,
    reference="Hendrycks & Gimpel, arXiv:1606.08415, sec. 2",
)
def gelu_tanh(x):
    """The usual approximation of gelu, f(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2."""
    # (1 + tanh(u)) / 2 = s(2 u), which does not cancel for u < 0. At |x| = 100 it is 0 or 1 already.
    near = jnp.clip(x, -100, 100)
    c, k = 2 * sqrt(2 / pi), 0.044715
    square = near * near
    u = c * near * (1 + k * square)
    du, d2u = c * (1 + 3 * k * square), 6 * c * k * near
    gate, slope = logistic(u)
    curvature = slope * (2 * du + near * (d2u - jnp.tanh(u / 2) * du * du))
    return jnp.maximum(x, -100) * gate, gate + near * slope * du, curvature


@member(
    formula="x * tanh(log1p(exp(x)))",
    range=(-0.30884341301725043, inf),
    slope_range=(-0.11252612238946255, 1.088498161251728),  # at -2.25637639636079312 and 1.49057117948542846
    argmin=-1.1924312145154952,
    reference="Misra, arXiv:1908.08681, sec. 3",
)
def mish(x):
    """The softplus-tanh-gated line, f(x) = x tanh(log(1 + exp(x)))."""
    # With w = exp(x): tanh(log(1 + w)) = w (w + 2) / (w (w + 2) + 2), and for x > 0 the same in e = 1 / w.
    near, above = bounded(x), x >= 0
    e = jnp.exp(-jnp.abs(x))
    r = 1 / jnp.where(above, 1 + 2 * e * (1 + e), 2 + e * (2 + e))
    gate = jnp.where(above, 1 + 2 * e, e * (2 + e)) * r
    rise = 4 * e * (1 + e) * jnp.where(above, e, 1) * r * r
    bend = jnp.where(
        above,
        4 * e * e * (2 * e * e * (1 + e) - 3 * e - 2),
        4 * e * (2 * (1 + e) - e * e * (3 + 2 * e)),
    )
    return bounded_below(x) * gate, gate + near * rise, 2 * rise + near * (bend * r * r * r)


@member(
    formula="x * tanh(exp(x))",
    range=(-0.35328577784821125, inf),
    slope_range=(-0.13157003618971583, 1.061975308717916),  # at -2.06597189615674984 and 0.696563960395172384
    argmin=-1.078860058464624,
    reference="Liu & Di, TanhExp, arXiv:2003.09855, sec. 3",
)
def tanh_exp(x):
    """The tanh-exp-gated line, f(x) = x tanh(exp(x))."""
    near = bounded(x)
    w = jnp.exp(jnp.minimum(x, 10))  # tanh(exp(10)) is 1
    gate = jnp.tanh(w)
    e = jnp.exp(-2 * w)
    rise = w * (4 * e / jnp.square(1 + e))
    return bounded_below(x) * gate, gate + near * rise, rise * (2 + near * (1 - 2 * w * gate))
