"""Expectations of a function of one Gaussian variable, to rounding, kinks and jumps included."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxact.numerics._inputs import native

# In units of the standard deviation: the mass beyond 10 is 1.5e-23. Wide: where the density is about to underflow.
_REACH = 10.0  # a Python float: a numpy one would promote float32
_WIDE = {4: 13.0, 8: 37.0}  # by the bytes of the dtype
# In the function's own argument: panels that shrink geometrically towards 0 resolve features of any width
# there down to 1/64, however wide the Gaussian. With 20 nodes a panel [a, 4a] sees a pole at distance a to
# 1e-18.
_GRADED = 4.0 ** np.arange(-3, 10)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


def gaussian_expectation(
    fn: Callable[[Array], Array],
    *,
    kinks: Sequence[ArrayLike] | Array = (),
    mean: Float[ArrayLike, "*#shape"] = 0.0,
    variance: Float[ArrayLike, "*#shape"] = 1.0,
    is_wide: bool = False,
) -> Float[Array, "*shape"]:
    """Compute the expectation of a function of a Gaussian variable.

        E fn(x),   x ~ N(mean, variance)

    Gauss-Legendre quadrature with 20 nodes on panels that end at every kink and narrow towards x = 0; see
    `gaussian_nodes`. In float64 the error is about 1e-14 of E|fn| for an fn that between its kinks is smooth on
    the scale of 1/100 near 0 and on the scale max(|x|, sd) / 10 elsewhere: every activation of the zoo with
    parameters near 1, at any mean and variance; sin and cos up to a standard deviation of 10. In float32 it
    is about 1e-6. Differentiable in mean and variance as often as fn is between its kinks; a jump of fn
    contributes rightly, for the panels move with it. At variance 0 the value is fn(mean) and the derivative by
    the variance is reported as 0.

    Args:
        fn: elementwise; called on one array [*shape, nodes]. Static.
        kinks: where fn or a derivative of fn jumps, in fn's argument; static floats, or a traced 1-D array.
        mean: real, broadcast against `variance`; may be traced. A traced value that is not finite gives NaN.
        variance: nonnegative; may be traced. A traced value that is negative or not finite gives NaN.
        is_wide: integrate over +-37 standard deviations (13 in float32) instead of 10, for an fn that grows faster than
            a power; NaN where fn times the density is not below rounding there, as for exp(x^2). Static.

    Returns:
        The expectations, in the common dtype of mean and variance, at least float32.

    Raises:
        ValueError: a concrete mean or variance is not finite, a concrete variance is negative, or fn is not
            elementwise.

    Example:
        >>> import jax.numpy as jnp
        >>> float(gaussian_expectation(lambda x: jnp.maximum(x, 0) ** 2, kinks=(0.0,)).round(5))
        0.5
    """
    x, weights = gaussian_nodes(kinks, mean, variance, is_wide=is_wide)
    values = jnp.asarray(fn(x))
    if values.shape not in ((), x.shape):
        raise ValueError(
            f"`fn` must be elementwise, got shape {values.shape} for an argument of shape {x.shape}. "
            "Integrate one function at a time."
        )
    total = expectation_with_tails(values, weights) if is_wide else jnp.sum(values * weights, -1)
    return total * nan_unless_gaussian(mean, variance)


def nan_unless_gaussian(
    mean: Float[ArrayLike, "*#shape"], variance: Float[ArrayLike, "*#shape"]
) -> Float[Array, "*shape"]:
    """A factor for expectations: 1, or NaN where a traced mean or variance is none of a Gaussian.

    The weights of `gaussian_nodes` are NaN there, but compiled an indicator times its weights is a choice between
    them and 0: where none is chosen no NaN is left.

    Args:
        mean: of the Gaussian; may be traced.
        variance: of the Gaussian; may be traced.

    Example:
        >>> jax.jit(nan_unless_gaussian)(0.0, jnp.array([1.0, -1.0])).tolist()
        [1.0, nan]
    """
    mean, variance = _broadcast(mean, variance)
    dtype = mean.dtype
    return jnp.where(_is_gaussian(mean, variance), 1, jnp.nan).astype(dtype)


def _broadcast(mean: ArrayLike, variance: ArrayLike) -> tuple[Array, Array]:
    """Both in their common dtype, at least float32."""
    mean, variance = native(mean), native(variance)
    dtype = jnp.promote_types(jnp.result_type(mean, variance, float), jnp.float32)
    mean, variance = jnp.broadcast_arrays(jnp.asarray(mean, dtype), jnp.asarray(variance, dtype))
    return mean, variance


def _is_gaussian(mean: Array, variance: Array) -> Array:
    return jnp.isfinite(mean) & jnp.isfinite(variance) & (variance >= 0)


def expectation_with_tails(
    values: Float[Array, "*shape nodes"], weights: Float[Array, "*shape nodes"]
) -> Float[Array, "*shape"]:
    """Sum values of a function times weights of wide `gaussian_nodes`; NaN where the ends hold more than rounding.

    Args:
        values: of the function at the nodes, [*shape, nodes].
        weights: of the nodes, [*shape, nodes].

    Returns:
        The expectation, [*shape].

    Example:
        >>> x, weights = gaussian_nodes((), 0.0, 1.0, is_wide=True)
        >>> [round(float(expectation_with_tails(g, weights)), 4) for g in (jnp.exp(x), jnp.exp(x**2))]
        [1.6487, nan]
    """
    parts = values * weights
    density = math.exp(
        -(_WIDE[max(4, parts.dtype.itemsize)] ** 2) / 2
    )  # the end's own panel may have no width
    at_ends = jnp.maximum(jnp.abs(values[..., 0]), jnp.abs(values[..., -1])) * density
    largest = jnp.max(jnp.abs(parts), -1)
    return jnp.where(at_ends <= jnp.finfo(parts.dtype).eps * largest, jnp.sum(parts, -1), jnp.nan)


def hermite_coefficients(
    z: Float[Array, "*shape nodes"],
    weights: Float[Array, "*shape nodes"],
    value: Float[Array, "*shape nodes"],
    num_degrees: int,
) -> Float[Array, " degree *shape"]:
    """Compute the coefficients of a function's expansion in Hermite's polynomials.

        E f(z) he_n(z) / sqrt(n!),   z ~ N(0, 1),   n = 0, 1, ..., num_degrees - 1

    Exact up to the quadrature's error; the squares of all of them sum to E f(z)^2.

    Args:
        z: nodes.
        weights: theirs, as of `gaussian_nodes`.
        value: f(z).
        num_degrees: number of coefficients. Static.

    Returns:
        The coefficients.

    Example:
        >>> z, weights = gaussian_nodes((), 0.0, 1.0)
        >>> [round(abs(float(each)), 4) for each in hermite_coefficients(z, weights, z**2, 4)]
        [1.0, 0.0, 1.4142, 0.0]
    """

    def following(pair: tuple[Array, Array], n: Array) -> tuple[tuple[Array, Array], Array]:
        before, now = pair  # each times the weights and the values: less to multiply
        after = (z * now - jnp.sqrt(n) * before) / jnp.sqrt(n + 1)
        return (now, after), jnp.sum(now, -1)

    degrees = jnp.arange(num_degrees, dtype=z.dtype)
    weighted = weights * value
    return jax.lax.scan(following, (jnp.zeros_like(z), weighted), degrees)[1]


def gaussian_nodes(
    kinks: Sequence[ArrayLike] | Array,
    mean: Float[ArrayLike, "*#shape"],
    variance: Float[ArrayLike, "*#shape"],
    *,
    is_wide: bool = False,
) -> tuple[Float[Array, "*shape nodes"], Float[Array, "*shape nodes"]]:
    """Place the nodes and weights with which sum_k weights_k fn(x_k) = E fn(x) for x ~ N(mean, variance).

    For several functions of the same variable. Arguments, accuracy and errors as in `gaussian_expectation`.

    Args:
        kinks: where the functions are not smooth; panels end there.
        mean: of x.
        variance: of x, nonnegative; broadcast against `mean`.
        is_wide: whether the nodes reach further out, for what grows fast; see `expectation_with_tails`.

    Returns:
        (x, weights), both [*shape, nodes]; the weights sum to 1, and are NaN where a traced number is none of a
        Gaussian.

    Raises:
        ValueError: a concrete mean or variance is not finite, or the variance negative.

    Example:
        >>> x, weights = gaussian_nodes((), 1.0, 4.0)
        >>> float((weights * x).sum().round(4)), float((weights * (x - 1) ** 2).sum().round(4))
        (1.0, 4.0)
    """
    _check_finite("mean", mean)
    _check_finite("variance", variance)
    if not isinstance(variance, jax.core.Tracer) and (np.asarray(variance) < 0).any():
        raise ValueError(
            f"`variance` must be nonnegative, got {np.asarray(variance).min()}. Pass sigma**2, not a log."
        )
    mean, variance = _broadcast(mean, variance)
    dtype = mean.dtype
    is_gaussian = _is_gaussian(mean, variance)
    mean, variance = jnp.where(is_gaussian, mean, 0), jnp.where(is_gaussian, variance, 1)
    spread = variance > 0
    deviation = jnp.sqrt(jnp.where(spread, variance, 1))
    parts = (-_GRADED, [0.0], _GRADED, jnp.atleast_1d(jnp.asarray(kinks, dtype)))
    splits = jnp.concatenate([jnp.asarray(part, dtype) for part in parts])
    reach = _WIDE[max(4, dtype.itemsize)] if is_wide else _REACH
    ends = jnp.clip((splits - mean[..., None]) / deviation[..., None], -reach, reach)
    panel_ends = np.linspace(-reach, reach, int(2 * reach) + 1)
    fixed = jnp.broadcast_to(jnp.asarray(panel_ends, dtype), (*mean.shape, panel_ends.size))
    ends = jnp.sort(jnp.concatenate([fixed, ends], -1), -1)
    centre, half = (ends[..., 1:] + ends[..., :-1]) / 2, (ends[..., 1:] - ends[..., :-1]) / 2
    z = centre[..., None] + half[..., None] * jnp.asarray(_NODES, dtype)
    weights = half[..., None] * jnp.asarray(_WEIGHTS, dtype) * jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    # By its size: -1 stands for nothing in an empty array.
    z, weights = (a.reshape(*mean.shape, a.shape[-2] * a.shape[-1]) for a in (z, weights))
    x = mean[..., None] + jnp.where(spread, deviation, 0)[..., None] * z
    # In the weights, not in x alone: an indicator, or a constant, makes a number of NaN.
    return x, weights * jnp.where(is_gaussian, 1, jnp.nan)[..., None]


def gaussian_nodes_on_host(
    kinks: Sequence[float], mean: float, deviation: float, *, is_halved: bool = False
) -> tuple[Float[np.ndarray, " nodes"], Float[np.ndarray, " nodes"]]:
    """Place the nodes of `gaussian_nodes` for one Gaussian by numpy, panels without width left out.

    With `is_halved` every panel is two: how far the sums of both differ is the error of the first.

    Args:
        kinks: where the functions are not smooth.
        mean: of x.
        deviation: standard deviation of x.
        is_halved: whether every panel is two.

    Returns:
        (x, weights), both [nodes], float64.

    Example:
        >>> (x, weights), (y, halved) = (gaussian_nodes_on_host((), 0, 1, is_halved=each) for each in (False, True))
        >>> bool(abs(weights @ x**2 - halved @ y**2) < 1e-14), bool(abs(weights @ np.sin(40 * x) ** 2 - 0.5) > 1e-3)
        (True, True)
    """
    splits = np.concatenate([-_GRADED, [0.0], _GRADED, np.asarray(kinks, float)])
    inside = np.clip((splits - mean) / deviation, -_REACH, _REACH)
    ends = np.unique(np.concatenate([np.linspace(-_REACH, _REACH, int(2 * _REACH) + 1), inside]))
    if is_halved:
        ends = np.sort(np.concatenate([ends, (ends[1:] + ends[:-1]) / 2]))
    half = np.diff(ends)[:, None] / 2
    z = (ends[1:] + ends[:-1])[:, None] / 2 + half * _NODES
    weights = half * _WEIGHTS * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return mean + deviation * z.reshape(-1), weights.reshape(-1)


def _check_finite(name: str, value: ArrayLike) -> None:
    # By numpy: under jit even an operation on constants is traced.
    if not isinstance(value, jax.core.Tracer) and not np.isfinite(np.asarray(value)).all():
        raise ValueError(f"`{name}` must be finite, got {value}. Leave out what has diverged.")
