"""What an activation makes of Gaussian preactivations."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxact.numerics import expectation_with_tails, gaussian_nodes

# Where an activation is looked at: not at 0, where a user's derivative may have no value.
_SAMPLES = np.linspace(-10.0, 10.0, 2000)


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
    activation: Any, mean: Float[ArrayLike, "*shape"] = 0.0, variance: Float[ArrayLike, "*shape"] = 1.0
) -> Moments:
    """Compute the Gaussian moments of an activation and of its slope.

        E f(z), E f(z)^2, Var f(z), E f'(z), E f'(z)^2, E f'(z)^4, P(f(z) = 0), P(f'(z) = 0),   z ~ N(mean,
        variance)

    By the quadrature of `jaxact.numerics.gaussian_expectation`, split where f is not smooth: to about 1e-14
    in float64 and 1e-6 in float32, relative to the expected absolute value. Differentiable in mean and
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
        ValueError: a concrete mean or variance is not finite, or a concrete variance is negative; f changes the shape,
            is NaN where it is integrated or outgrows the Gaussian (where traced: NaN).

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

    centre = expect(value)
    return Moments(
        mean=centre,
        second_moment=expect(value**2),
        variance=expect((value - centre[..., None]) ** 2),
        slope=expect(slope),
        slope_second_moment=expect(slope**2),
        slope_fourth_moment=expect(slope**4),
        zero_probability=expect((value == 0).astype(x.dtype)),
        dead_probability=expect((slope == 0).astype(x.dtype)),
    )


def breakpoints(activation: Any) -> tuple[float, ...]:
    """Return where integrals over the activation are to be split, having looked whether it is one."""
    points = getattr(activation, "breakpoints", getattr(activation, "kinks", None))
    if points is None or not callable(getattr(activation, "derivative", None)):
        raise TypeError(
            f"`activation` must know its kinks and its derivative, got {activation!r}. "
            "Use one of jaxact.activations, or wrap yours with activations.from_callable(fn, name=...)."
        )
    _check_elementwise(activation)
    return tuple(points)


@functools.lru_cache
def _check_elementwise(activation: Any) -> None:
    for name, fn in (("activation", activation), ("derivative", activation.derivative)):
        shape = jax.eval_shape(fn, jax.ShapeDtypeStruct((2, 3), jnp.float32)).shape
        if shape != (2, 3):
            raise ValueError(
                f"`activation` must be elementwise, got {getattr(activation, 'name', activation)}, whose {name} "
                f"makes shape {shape} of (2, 3). Return an array of the argument's shape."
            )
    for name, values in zip(("activation", "derivative"), value_and_slope(activation, _SAMPLES), strict=True):
        bad = _SAMPLES[np.isnan(values)]
        if bad.size:
            raise ValueError(
                f"`activation` must be a number everywhere, got {getattr(activation, 'name', activation)}, whose "
                f"{name} is NaN at x = {bad[0]:.4g}. Choose a branch with jnp.where, guarding the unsafe one."
            )


@functools.lru_cache
def grows_fast(activation: Any) -> bool:
    """Whether f or f' grows faster than a cube: its integrals then reach further out."""
    near, far = 1e2, 1e3
    for y in map(np.abs, value_and_slope(activation, np.array([-near, -far, near, far]))):
        for side in (y[:2], y[2:]):
            if not np.isfinite(side).all() or side[1] > max(side[0], 1) * (far / near) ** 3:
                return True
    return False


def value_and_slope(activation: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute f and f' in float64 on the host, under any trace.

    Compiled, once for an activation and a shape: vmap lets no custom rule be evaluated.
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        value, slope = _value_and_slope(activation, jnp.asarray(x, jnp.float64))
        return np.asarray(value), np.asarray(slope)


@functools.partial(jax.jit, static_argnums=0)
def _value_and_slope(activation: Any, x: Array) -> tuple[Array, Array]:
    return activation(x), activation.derivative(x)


def refuse_fast_growth(activation: Any) -> None:
    """Refuse an activation whose tails count beyond ten standard deviations, where integrals do not reach further."""
    if grows_fast(activation):
        raise ValueError(
            f"`activation` must not grow faster than a cube here, got {getattr(activation, 'name', activation)}. "
            "Clip it; moments, variance_map, correlation_map, gain and mean_field do take it as it is."
        )


def check_concrete(**numbers: Any) -> None:
    """Refuse means and variances that are concrete and cannot be."""
    for name, value in numbers.items():
        if not isinstance(value, jax.core.Tracer):
            if not np.isfinite(np.asarray(value)).all():
                raise ValueError(f"`{name}` must be finite, got {value}. Leave out what has diverged.")
            if name == "variance" and (np.asarray(value) < 0).any():
                raise ValueError(
                    f"`variance` must be nonnegative, got {np.asarray(value).min()}. Pass sigma**2, not a log."
                )


def refuse_nan(activation: Any, *results: Any) -> None:
    """Refuse an activation that has no Gaussian moments, where the results are concrete."""
    for result in results:
        if not isinstance(result, jax.core.Tracer) and np.isnan(np.asarray(result)).any():
            raise ValueError(
                f"`activation` must have finite Gaussian moments, got {getattr(activation, 'name', activation)}: "
                "at this mean and variance its tail outgrows the Gaussian. Use a smaller variance, float64, or clip "
                "it."
            )
