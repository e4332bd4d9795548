"""How the statistics of the preactivations go from one layer to the next in a wide random network."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxact.numerics import bivariate_expectation, check_count, check_nonnegative, gaussian_expectation
from jaxact.theory._checks import nan_unless_scale, without_slope
from jaxact.theory._integrable import (
    breakpoints,
    grows_fast,
    nan_unless_resolved,
    refuse_many_kinks,
    refuse_nan,
)

# Of a slope near q = 0: a limit moves by less between q and 4 q, what has none by a third and more.
_SAME = 0.05


def variance_map(
    activation: Any,
    q: Float[ArrayLike, "*#shape"],
    *,
    sigma_w: Float[ArrayLike, "*#shape"],
    sigma_b: Float[ArrayLike, "*#shape"] = 0.0,
) -> Float[Array, "*shape"]:
    """Compute the next layer's preactivation variance.

        V(q) = sigma_w^2 E f(sqrt(q) z)^2 + sigma_b^2,   z ~ N(0, 1)

    Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos", equation 3:
    exact at infinite width, for h' = W f(h) + b with W_ij ~ N(0, sigma_w^2 / width) and b_i ~ N(0,
    sigma_b^2). The integral's error is that of `jaxact.numerics.gaussian_expectation`. Differentiable in all
    three numbers. At q = 0 the derivative by q is the one from above, f'(0)^2 + f(0) f''(0) for a smooth f, to about
    1e-9 (1e-3 in float32); NaN where it is infinite, as every higher derivative is there.

    Args:
        activation: an `Activation`. Static.
        q: second moment of the preactivation, nonnegative; may be traced.
        sigma_w: weight scale, nonnegative; broadcast against q; may be traced.
        sigma_b: bias scale, nonnegative; broadcast against q; may be traced.

    Returns:
        V(q), of the broadcast shape.

    Raises:
        TypeError: `activation` does not know its kinks and derivative.
        ValueError: a concrete number is negative or not finite, or f oscillates too fast for this q, as sin from q =
            1024 on at the latest (see `moments`; where traced: NaN).

    Example:
        >>> from jaxact import activations
        >>> float(variance_map(activations.relu, 3.0, sigma_w=2.0**0.5, sigma_b=1.0).round(4))
        4.0
    """
    check_nonnegative(q=q, sigma_w=sigma_w, sigma_b=sigma_b)
    sigma_w, sigma_b = nan_unless_scale(sigma_w), nan_unless_scale(sigma_b)
    breakpoints(activation)
    found = second_moment(
        activation, jnp.asarray(q, jnp.promote_types(jnp.result_type(q, float), jnp.float32))
    )
    refuse_nan(activation, found)
    return jnp.square(sigma_w) * found + jnp.square(sigma_b)


def correlation_map(
    activation: Any,
    c: Float[ArrayLike, "*#shape"],
    *,
    q: Float[ArrayLike, "*#shape"] = 1.0,
    sigma_w: Float[ArrayLike, "*#shape"],
    sigma_b: Float[ArrayLike, "*#shape"] = 0.0,
) -> Float[Array, "*shape"]:
    """Compute the correlation of two inputs' preactivations in the next layer from that in this one.

        C(c) = (sigma_w^2 E f(u) f(v) + sigma_b^2) / V(q),   (u, v) ~ N(0, q [[1, c], [c, 1]])

    Poole et al. 2016, equation 5, both inputs of length q; V is `variance_map`, so that C(1) = 1, and V(q) = q at the
    fixed point where the paper looks. The integral's error is that of `jaxact.numerics.bivariate_expectation`. The
    derivatives by c are exact everywhere, |c| = 1 included, by Price's theorem (Price 1958):

        dC/dc = sigma_w^2 q E f'(u) f'(v) / V(q),   which at c = 1 and q = V(q) is chi = sigma_w^2 E f'(u)^2
        d^2C/dc^2 = sigma_w^2 q^2 E f''(u) f''(v) / V(q)

    At |c| = 1 that is all: the second derivative is NaN there where f has kinks (of relu it is infinite), the third and
    higher ones always. By q as `variance_map`, q = 0 included.

    Args:
        activation: an `Activation`. Static.
        c: correlation in [-1, 1]; may be traced. A traced value outside gives NaN.
        q: second moment of the preactivations, positive; may be traced.
        sigma_w: weight scale, nonnegative; may be traced.
        sigma_b: bias scale, nonnegative; may be traced.

    Returns:
        C(c), of the broadcast shape; NaN where V(q) = 0.

    Raises:
        TypeError: `activation` does not know its kinks and derivative.
        ValueError: a concrete number is negative, not finite, or no correlation, or as `variance_map`.

    Example:
        >>> from jaxact import activations
        >>> round(float(correlation_map(activations.relu, 0.0, sigma_w=2.0**0.5)), 4)  # 1 / pi
        0.3183
    """
    check_nonnegative(q=q, sigma_w=sigma_w, sigma_b=sigma_b)
    _check_correlation(c)
    breakpoints(activation)
    dtype = jnp.promote_types(jnp.result_type(c, q, sigma_w, sigma_b, float), jnp.float32)
    c, q, sigma_w, sigma_b = jnp.broadcast_arrays(
        *(jnp.asarray(each, dtype) for each in (c, q, sigma_w, sigma_b))
    )
    total = variance_map(activation, q, sigma_w=sigma_w, sigma_b=sigma_b)
    return (sigma_w**2 * product_moment(activation, c, q) + sigma_b**2) / total  # NaN where `total` is


class Trajectory(NamedTuple):
    """Lengths and correlation of two inputs, layer by layer, the first preactivation first.

    Attributes:
        q: second moment of the preactivations, [depth + 1, *shape].
        c: correlation of the two inputs' preactivations, [depth + 1, *shape].
    """

    q: Float[Array, " layer *shape"]
    c: Float[Array, " layer *shape"]


def trajectory(
    activation: Any,
    depth: int,
    *,
    q: Float[ArrayLike, "*#shape"] = 1.0,
    c: Float[ArrayLike, "*#shape"] = 0.0,
    sigma_w: Float[ArrayLike, "*#shape"],
    sigma_b: Float[ArrayLike, "*#shape"] = 0.0,
) -> Trajectory:
    """Follow the length and the correlation of two inputs of equal length through `depth` layers.

        q_{l+1} = V(q_l),   c_{l+1} = C(c_l; q_l)

    Exact at infinite width (Poole et al. 2016, equations 3 and 5), to the quadrature of `variance_map` and
    `correlation_map`.
    In float32 correlations stall near 1 - c = 6e-5 on their way to 1: what the inner integrals round off, some 1e-6 of
    1, is then as much as a layer moves them. Ask for float64 where that matters.

    Args:
        activation: an `Activation`. Static.
        depth: number of layers, at least 1. Static.
        q: second moment at the first layer; may be traced.
        c: correlation at the first layer; may be traced.
        sigma_w: weight scale; may be traced.
        sigma_b: bias scale; may be traced.

    Returns:
        A `Trajectory`.

    Raises:
        TypeError: as `correlation_map`.
        ValueError: as `correlation_map`, or `depth` is not a positive integer below 2^31.

    Example:
        >>> from jaxact import activations
        >>> trajectory(activations.relu, 2, sigma_w=2.0**0.5).q.round(4).tolist()
        [1.0, 1.0, 1.0]
    """
    depth = check_count("depth", depth)
    check_nonnegative(q=q, sigma_w=sigma_w, sigma_b=sigma_b)
    _check_correlation(c)
    dtype = jnp.promote_types(jnp.result_type(c, q, sigma_w, sigma_b, float), jnp.float32)
    start = list(jnp.broadcast_arrays(*(jnp.asarray(each, dtype) for each in (q, c, sigma_w, sigma_b))))
    start[0], start[1] = nan_unless_scale(start[0]), start[1] * jnp.where(jnp.abs(start[1]) <= 1, 1, jnp.nan)

    def layer(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        q, c = state
        scales = {"sigma_w": start[2], "sigma_b": start[3]}
        length, c = variance_map(activation, q, **scales), correlation_map(activation, c, q=q, **scales)
        length = jnp.where(jnp.isinf(q), q, length)  # has overflowed
        c = jnp.where(
            jnp.abs(c) > 1, jnp.sign(c), c
        )  # against rounding; `clip` would halve the derivative at 1
        return (length, c), (length, c)

    _, rows = jax.lax.scan(layer, (start[0], start[1]), None, length=depth)
    refuse_nan(activation, rows[0])  # q alone: correlations of signals that vanish are NaN
    return Trajectory(
        *(jnp.concatenate([first[None], rest]) for first, rest in zip(start, rows, strict=False))
    )


def _check_correlation(c: Any) -> None:
    if not isinstance(c, jax.core.Tracer) and not (np.abs(np.asarray(c)) <= 1).all():
        raise ValueError(
            f"`c` must be a correlation in [-1, 1], got {c}. Divide the covariance by the variance."
        )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def second_moment(activation: Any, q: Array) -> Array:
    """E f(u)^2 for u ~ N(0, q), with a derivative that holds at q = 0 too."""
    return _second_moment(activation, q)


def _second_moment(activation: Any, q: Array) -> Array:
    return gaussian_expectation(
        lambda x: activation(x) ** 2,
        kinks=breakpoints(activation),
        variance=q,
        is_wide=grows_fast(activation),
    ) * nan_unless_resolved(activation, q)


@second_moment.defjvp
def _second_moment_jvp(activation, primals, tangents):
    (q,), (dq,) = primals, tangents
    slope = jax.jvp(partial(_second_moment, activation), (_positive(q),), (jnp.ones_like(q),))[1]
    return second_moment(activation, q), _or_limit(q, slope, _slope_at_zero(activation, q.dtype)) * dq


def _positive(q: Array) -> Array:
    return jnp.where(q == 0, _small(q.dtype), q)


def _or_limit(q: Array, slope: Array, limit: Array) -> Array:
    """The slope by q; at q = 0 the limit, whose own derivative is NaN."""
    is_zero = q == 0
    return jnp.where(is_zero, without_slope(is_zero, limit + 0 * q), slope)


def _small(dtype: Any) -> float:
    """A length that stands for 0: rounding and what the limit lacks are equally small."""
    return float(jnp.finfo(dtype).eps) ** (2 / 3)


def _slope_at_zero(activation: Any, dtype: Any) -> Array:
    """The limit of d/dq E f(u)^2 for q to 0; NaN where it is infinite."""
    lengths = _small(dtype) * jnp.array([1.0, 4.0], dtype)
    near, far = jax.jvp(partial(_second_moment, activation), (lengths,), (jnp.ones_like(lengths),))[1]
    # A kink of higher order at 0 leaves a term in sqrt(q), which this combination has not.
    return jnp.where(jnp.abs(near - far) <= _SAME * (1 + jnp.abs(near)), 2 * near - far, jnp.nan)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def product_moment(activation: Any, c: Array, q: Array) -> Array:
    """E f(u) f(v) for (u, v) ~ N(0, q [[1, c], [c, 1]]), with derivatives that hold at c = 1 and q = 0 too."""
    return _expect_product(activation, "f f", c, q)


@product_moment.defjvp
def _product_moment_jvp(activation, primals, tangents):
    c, q = primals
    dc, dq = tangents
    # By the scale sqrt(q) of both variables: d/dq = E u f'(u) f(v) / q, without a second derivative.
    positive = _positive(q)
    by_q = _expect_product(activation, "u f' f", c, positive) / positive
    has_limit = jnp.where(jnp.isnan(_slope_at_zero(activation, q.dtype)), jnp.nan, 1)
    by_q = _or_limit(q, by_q, by_q * has_limit)
    tangent = q * slope_product_moment(activation, c, q) * dc + by_q * dq
    return product_moment(activation, c, q), tangent


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def slope_product_moment(activation: Any, c: Array, q: Array) -> Array:
    """E f'(u) f'(v) for (u, v) ~ N(0, q [[1, c], [c, 1]]), with a derivative by c that is right or NaN at |c| = 1."""
    return _expect_product(activation, "f' f'", c, q)


@slope_product_moment.defjvp
def _slope_product_moment_jvp(activation, primals, tangents):
    c, q = primals
    dc, dq = tangents
    is_end = jnp.abs(c) >= 1
    is_zero = q == 0
    _, by_q = jax.jvp(
        lambda q: _expect_product(activation, "f' f'", c, q), (jnp.where(is_zero, 1, q),), (dq,)
    )
    by_q = jnp.where(is_zero, jnp.nan, by_q)
    if getattr(activation, "kinks", breakpoints(activation)):
        inside = jnp.where(is_end, 0, c)
        slopes = partial(_expect_product, activation, "f' f'", q=q)
        by_c = jax.jvp(slopes, (inside,), (jnp.ones_like(c),))[1]
        by_c = jnp.where(is_end, jnp.nan, by_c)
    else:
        by_c = q * _expect_product(activation, "f'' f''", without_slope(is_end, c), q)
    return slope_product_moment(activation, c, q), by_c * dc + by_q


@partial(jax.jit, static_argnums=(0, 1))  # so that a call outside any trace compiles once for an activation
def _expect_product(activation: Any, which: str, c: Array, q: Array) -> Array:
    refuse_many_kinks(activation)
    points, slope = breakpoints(activation), activation.derivative

    def curvature(u: Array) -> Array:
        return jax.jvp(slope, (u,), (jnp.ones_like(u),))[1]

    g, h = {
        "f f": (activation, activation),
        "f' f'": (slope, slope),
        "f'' f''": (curvature, curvature),
        "u f' f": (lambda u: u * slope(u), activation),
    }[which]
    return bivariate_expectation(
        g, h, correlation=c, variance=q, kinks=(points, points), is_wide=grows_fast(activation)
    )
