"""What an activation makes of Gaussian preactivations."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxact.numerics import expectation_with_tails, gaussian_nodes, nan_unless_gaussian
from jaxact.theory._checks import check_concrete
from jaxact.theory._integrable import breakpoints, grows_fast, nan_unless_resolved, refuse_nan


class Moments(NamedTuple):
    """Gaussian moments of an activation f and of its slope; z ~ N(mean, variance).

    Attributes:
        mean: E f(z).
        second_moment: E f(z)^2.
        variance: E (f(z) - E f)^2.
        slope: E f'(z).
        slope_second_moment: E f'(z)^2; times sigma_w^2 it is chi, the growth of squared gradients a layer.
        slope_fourth_moment: E f'(z)^4.
        zero_probability: P(f(z) = 0).
        dead_probability: P(f'(z) = 0).
    """

    mean: Float[Array, "*shape"]
    second_moment: Float[Array, "*shape"]
    variance: Float[Array, "*shape"]
    slope: Float[Array, "*shape"]
    slope_second_moment: Float[Array, "*shape"]
    slope_fourth_moment: Float[Array, "*shape"]
    zero_probability: Float[Array, "*shape"]
    dead_probability: Float[Array, "*shape"]


def moments(
    activation: Any, mean: Float[ArrayLike, "*#shape"] = 0.0, variance: Float[ArrayLike, "*#shape"] = 1.0
) -> Moments:
    """Compute the Gaussian moments of an activation and of its slope.

        E f(z), E f(z)^2, Var f(z), E f'(z), E f'(z)^2, E f'(z)^4, P(f(z) = 0), P(f'(z) = 0),   z ~ N(mean,
        variance)

    By the quadrature of `jaxact.numerics.gaussian_expectation`, split where f is not smooth: to about 1e-14
    in float64 and 1e-6 in float32, relative to the expected absolute value. What oscillates is not resolved by
    wide Gaussians, sin from a standard deviation between 16 and 32 on (its fourth moment from 8): up to where, is
    measured once for an activation, and beyond there are no numbers. Differentiable in mean and
    variance (except by the variance at 0). The two probabilities count what is exactly zero in the dtype: a
    tanh so saturated that its slope underflows is dead in training too.

    Args:
        activation: an `Activation` (anything elementwise with attributes `breakpoints` or `kinks`, and
            `derivative`). Static.
        mean: of the preactivation; broadcast against `variance`; may be traced.
        variance: of the preactivation, nonnegative; may be traced. 0 gives the values at the mean.

    Returns:
        `Moments`, each field of the broadcast shape.

    Raises:
        TypeError: `activation` has no `derivative`, or neither `breakpoints` nor `kinks`.
        ValueError: a concrete mean or variance is not finite, or a concrete variance is negative; f changes the shape
            or is NaN somewhere; f outgrows the Gaussian, or is not resolved (where traced: NaN).

    Example:
        >>> from jaxact import activations
        >>> relu = moments(activations.relu)
        >>> [round(float(value), 4) for value in relu]
        [0.3989, 0.5, 0.3408, 0.5, 0.5, 0.5, 0.5, 0.5]
    """
    breakpoints(activation)
    check_concrete(mean=mean, variance=variance)
    dtype = jnp.promote_types(jnp.result_type(mean, variance, float), jnp.float32)
    found = _moments(activation, jnp.asarray(mean, dtype), jnp.asarray(variance, dtype))
    refuse_nan(activation, *found)
    return found


@functools.partial(
    jax.jit, static_argnums=0
)  # so that a call outside any trace compiles once for an activation
def _moments(activation: Any, mean: Array, variance: Array) -> Moments:
    points, is_wide = breakpoints(activation), grows_fast(activation)
    x, weights = gaussian_nodes(points, mean, variance, is_wide=is_wide)
    value, slope = activation(x), activation.derivative(x)

    def expect(values: Array) -> Array:
        return expectation_with_tails(values, weights) if is_wide else jnp.sum(values * weights, -1)

    is_gaussian = nan_unless_gaussian(mean, variance)
    known = nan_unless_resolved(activation, variance, mean) * is_gaussian
    known_fourth = nan_unless_resolved(activation, variance, mean, power=4) * is_gaussian
    centre = expect(value) * known
    return Moments(
        mean=centre,
        second_moment=expect(value**2) * known,
        variance=expect((value - centre[..., None]) ** 2) * known,
        slope=expect(slope) * known,
        slope_second_moment=expect(slope**2) * known,
        slope_fourth_moment=expect(slope**4) * known_fourth,
        zero_probability=expect((value == 0).astype(x.dtype)) * known,
        dead_probability=expect((slope == 0).astype(x.dtype)) * known,
    )
