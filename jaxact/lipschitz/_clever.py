"""The extreme-value estimate of a local Lipschitz constant."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from jaxact.lipschitz._derivatives import Derivatives, derivatives, runner
from jaxact.lipschitz._lower import singular_pair
from jaxact.numerics import full_precision, read_one


class Clever(NamedTuple):
    """An estimate of a local Lipschitz constant: NOT a bound, neither upper nor lower.

    Attributes:
        estimate: location of the fitted reverse Weibull distribution, or the largest sample where the fit
            is refused.
        sampled: largest ||J||_2 seen: this one is a lower bound, up to rounding.
        shape: of the fitted distribution; NaN if the fit was refused.
        scale: of the fitted distribution; NaN if the fit was refused.
        p_value: of the Kolmogorov-Smirnov test of the fit; NaN if the fit was refused. The parameters come from
            the same samples, so it flatters the fit.
        maxima: of every group of samples [num_groups].
    """

    estimate: float
    sampled: float
    shape: float
    scale: float
    p_value: float
    maxima: Float[np.ndarray, " group"]


@full_precision
def clever(
    fn: Callable[[Array], Array],
    center: Float[ArrayLike, " *input"],
    radius: float,
    *,
    key: PRNGKeyArray,
    num_groups: int = 50,
    group_size: int = 100,
) -> Clever:
    """ESTIMATE the Lipschitz constant of `fn` in a Euclidean ball from the extremes of sampled Jacobians.

        M_i = max_j ||J(x_ij)||_2,   x_ij uniform in the ball,   i = 1..num_groups
        P(M <= y) ~ exp(-((a - y) / scale)^shape),  y < a        (reverse Weibull)

    The maximum-likelihood location a is the estimate (CLEVER: Weng et al. 2018, section 4.2, algorithm 1, with
    the norm of a scalar's gradient generalised to ||J||_2). It is not a bound and not certified: it may lie on
    either side of the constant, above all where the largest slope sits on a set too small to be sampled
    (Goodfellow 2018). Where all maxima agree to rounding, as in a linear map, no distribution is fitted, and
    where the likelihood has its maximum at infinity, as when the extremes are not of this type, the largest
    sample is returned instead and `shape` is NaN.

    Args:
        fn: maps ONE input to one real array; differentiable in both modes. Static.
        center: of the ball, one input of any shape, floating-point.
        radius: of the ball, positive.
        key: for the samples.
        num_groups: maxima to fit to, at least 10.
        group_size: samples a group; the limit law is reached as it grows.

    Returns:
        A `Clever`, on the host: not for use under jit. A Jacobian with NaN gives NaN.

    Raises:
        TypeError: `center` is not real floating-point, or `fn` cannot be traced or measured: see
            `jaxact.numerics.FunctionError`.
        ValueError: `center` is empty, `radius` is not positive and finite, `num_groups` is below 10 or
            `group_size` below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> found = clever(lambda x: 3 * x, jnp.zeros(2), 0.5, key=jax.random.key(0), num_groups=10)
        >>> round(found.estimate, 4)  # linear: nothing to extrapolate
        3.0
    """
    _check(center, radius, num_groups, group_size)
    center, output = read_one(fn, center, name="center")
    one = jax.ShapeDtypeStruct(center.shape, center.dtype)
    size = jnp.asarray(radius, center.dtype)
    run = runner(derivatives(fn, output), one, center, size, key)
    maxima = np.asarray(
        run(_maxima, (num_groups, group_size), center, size, key, repeats=num_groups), np.float64
    )
    return _fit(maxima, float(jnp.finfo(center.dtype).eps))


def _maxima(
    of: Derivatives, num_groups: int, group_size: int, center: Array, radius: Array, key: Array
) -> Float[Array, " group"]:
    norm = jax.vmap(lambda x: singular_pair(of, x).value)
    keys = jax.random.split(key, num_groups)
    return lax.map(lambda key: norm(_ball(center, radius, group_size, key)).max(), keys)


def _ball(center: Array, radius: Array, num: int, key: Array) -> Array:
    """Points uniform in a ball: a direction, and a distance whose n-th power is uniform."""
    key_direction, key_distance = jax.random.split(key)
    directions = jax.random.normal(key_direction, (num, center.size), center.dtype)
    directions /= jnp.linalg.norm(directions, axis=1, keepdims=True)
    distances = radius * jax.random.uniform(key_distance, (num, 1), center.dtype) ** (1 / center.size)
    return center + (distances * directions).reshape(num, *center.shape)


def _fit(maxima: np.ndarray, eps: float) -> Clever:
    from scipy import stats  # slow to import

    top = float(maxima.max())
    refused = Clever(top, top, np.nan, np.nan, np.nan, maxima)
    spread = top - float(maxima.min())
    if not np.isfinite(top) or spread <= 100 * eps * top:
        return refused
    scaled = (maxima - top) / spread  # in [-1, 0]: the fit is the same for every unit of fn
    fits = [stats.weibull_max.fit(scaled, shape, loc=0.1, scale=0.5) for shape in (1.0, 2.0, 5.0)]
    fits = [fit for fit in fits if np.isfinite(fit).all() and fit[1] >= 0 and fit[2] > 0]
    if not fits:
        return refused
    shape, location, scale = max(fits, key=partial(_log_likelihood, scaled))
    if location > 100:  # the likelihood still rises: a Gumbel law, which has no end
        return refused
    p_value = float(stats.kstest(scaled, "weibull_max", args=(shape, location, scale)).pvalue)
    return Clever(top + spread * float(location), top, float(shape), spread * float(scale), p_value, maxima)


def _log_likelihood(samples: np.ndarray, fit: tuple[float, float, float]) -> float:
    from scipy import stats

    shape, location, scale = fit
    return float(stats.weibull_max.logpdf(samples, shape, location, scale).sum())


def _check(center: ArrayLike, radius: float, num_groups: int, group_size: int) -> None:
    if isinstance(center, jax.core.Tracer):
        raise TypeError(f"`center` must be concrete, got {center}. Call clever outside jit, vmap and grad.")
    if not 0 < radius < np.inf:
        raise ValueError(f"`radius` must be positive and finite, got {radius}. Use 0.1 to begin with.")
    for name, value, low, usual in (("num_groups", num_groups, 10, 50), ("group_size", group_size, 1, 100)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(
                f"`{name}` must be an integer >= {low}, got {value!r}. Use {usual} to begin with."
            )
