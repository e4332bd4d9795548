"""Expectations of a product of functions of two correlated Gaussian variables, to rounding, kinks included."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxact.numerics._inputs import native
from jaxact.numerics._quadrature import expectation_with_tails, gaussian_nodes, nan_unless_gaussian

# A kink of fn_v seen through the conditional spread s of v given u is an error function of u of width s: 20 nodes a
# panel resolve it between these ends, and beyond 8.5 widths it is as sharp as fn_v itself.
KINK_ENDS = np.array([-8.5, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.5])


def bivariate_expectation(
    fn_u: Callable[[Array], Array],
    fn_v: Callable[[Array], Array],
    *,
    correlation: Float[ArrayLike, "*#shape"],
    mean: Float[ArrayLike, "*#shape"] | tuple[Float[ArrayLike, "*#shape"], Float[ArrayLike, "*#shape"]] = 0.0,
    variance: Float[ArrayLike, "*#shape"]
    | tuple[Float[ArrayLike, "*#shape"], Float[ArrayLike, "*#shape"]] = 1.0,
    kinks: tuple[Sequence[float], Sequence[float]] = ((), ()),
    is_wide: bool = False,
) -> Float[Array, "*shape"]:
    """Compute the expectation of a product of functions of two Gaussian variables.

        E fn_u(u) fn_v(v),   u ~ N(mean_u, variance_u),  v ~ N(mean_v, variance_v),   corr(u, v) = c

    As E fn_u(u) H(u) with H(u) = E[fn_v(v) | u], v | u Gaussian of variance (1 - c^2) variance_v: two nested
    quadratures of `gaussian_nodes`. The inner panels end at the kinks of fn_v, wherever u has moved them; the outer
    ones at the kinks of fn_u and around those of H, which is smooth on the scale of the conditional spread. In float64
    the error is about 1e-14 of E|fn_u fn_v| for functions as in `gaussian_expectation`, at every correlation, +-1
    included. About a million evaluations of fn_v a value; several values are computed one after the other.

    Differentiable in c, means and variances as often as both are between their kinks, except at |c| = 1.

    Args:
        fn_u: elementwise. Static.
        fn_v: elementwise. Static.
        correlation: in [-1, 1]; may be traced. A traced value outside gives NaN, as does a mean or a variance that is
            none.
        mean: of both variables, or a pair (mean_u, mean_v); broadcast against `correlation`; may be traced.
        variance: nonnegative, of both variables or a pair; may be traced. A variable without variance is independent.
        kinks: where fn_u, and where fn_v, or a derivative of it jumps; static floats.
        is_wide: for functions that grow faster than a power, as in `gaussian_expectation`. Static.

    Returns:
        The expectations, in the common dtype of the numbers, at least float32.

    Raises:
        ValueError: a concrete correlation lies outside [-1, 1], a mean is not finite, or a variance is negative or
            not finite.

    Example:
        >>> value = bivariate_expectation(lambda u: u, lambda v: v, correlation=0.5, variance=4.0)
        >>> round(float(value), 4)
        2.0
    """
    means = mean if isinstance(mean, tuple) else (mean, mean)
    variances = variance if isinstance(variance, tuple) else (variance, variance)
    rules: list[tuple[str, ArrayLike, float, float, str]]
    rules = [("correlation", correlation, -1, 1, "lie in [-1, 1]")]
    rules += [("mean", each, -math.inf, math.inf, "be finite") for each in means]
    rules += [("variance", each, 0, math.inf, "be finite and nonnegative") for each in variances]
    for name, number, low, high, rule in rules:
        if not isinstance(number, jax.core.Tracer):
            values = np.asarray(number)
            if not ((values >= low) & (values <= high) & np.isfinite(values)).all():
                raise ValueError(f"`{name}` must {rule}, got {number}.")
    given = tuple(native(each) for each in (correlation, *means, *variances))
    dtype = jnp.promote_types(jnp.result_type(*given, float), jnp.float32)
    numbers = jnp.broadcast_arrays(*(jnp.asarray(each, dtype) for each in given))
    kinks_u, kinks_v = (jnp.asarray(points, dtype).reshape(-1) for points in kinks)
    # H has the fine structure of fn_v around v = 0 too: around u = 0 unless the variables differ.
    if isinstance(mean, tuple) or isinstance(variance, tuple):
        kinks_v = jnp.concatenate([kinks_v, jnp.zeros(1, dtype)])

    def one(numbers: tuple[Array, ...]) -> Array:
        c, mean_u, mean_v, variance_u, variance_v = numbers
        c = jnp.where(jnp.abs(c) <= 1, c, jnp.nan)
        left = (1 - c) * (1 + c)
        # A root of 0 has no derivative; one that is not taken must have one all the same.
        spread = jnp.where(left > 0, jnp.sqrt(jnp.where(left > 0, left, 1) * variance_v), 0)
        varies = variance_u > 0
        ratio = jnp.where(varies, variance_v / jnp.where(varies, variance_u, 1), 0)
        slope = c * jnp.where(ratio > 0, jnp.sqrt(jnp.where(ratio > 0, ratio, 1)), 0)  # dv/du
        steep = jnp.where(jnp.abs(slope) > 1e-3, slope, 1)  # below, H varies slowly whatever fn_v does
        ends = mean_u + (kinks_v[:, None] - mean_v + spread * jnp.asarray(KINK_ENDS, dtype)) / steep
        u, weights_u = gaussian_nodes(
            jnp.concatenate([kinks_u, ends.reshape(-1)]), mean_u, variance_u, is_wide=is_wide
        )
        v, weights_v = gaussian_nodes(
            kinks_v,
            mean_v + slope * (u - mean_u),
            jnp.where(varies, left, 1) * variance_v,
            is_wide=is_wide,
        )
        total = expectation_with_tails if is_wide else lambda values, weights: jnp.sum(values * weights, -1)
        value = total(fn_u(u) * total(fn_v(v), weights_v), weights_u)
        # What is no Gaussian could be lost: a v where it hangs on u alone, both where a function is an indicator.
        known = nan_unless_gaussian(mean_u, variance_u) * nan_unless_gaussian(mean_v, variance_v)
        return value * known * jnp.where(jnp.isnan(c), jnp.nan, 1)

    if not numbers[0].size:
        return jnp.zeros(numbers[0].shape, dtype)
    flat = jax.lax.map(one, tuple(each.reshape(-1) for each in numbers))
    return flat.reshape(numbers[0].shape)
