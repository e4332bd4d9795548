"""The spectral density of a Jacobian too large to be formed."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from jaxact.numerics import full_precision, golub_kahan, native, read_inputs
from jaxact.probes._jacobian import products

_KRYLOV_BYTES = 256 * 2**20  # what the bases of the probes that run together may occupy
_NUM_GRID = 256


class SpectralDensity(NamedTuple):
    """An estimate of the density of the eigenvalues of J^T J, with its standard error.

    Of one input the fields have no batch axis.

    Attributes:
        grid: eigenvalues s^2 at which the density is given [batch, grid].
        density: the share of eigenvalues per unit of s^2, smoothed [batch, grid].
        standard_error: of the density, from the spread over probes [batch, grid].
        width: standard deviation of the Gaussian that smooths [batch].
        nodes: of every probe's quadrature [batch, probe, step], nonnegative.
        weights: of the nodes [batch, probe, step]; nonnegative, of sum one for every probe.
    """

    grid: Float[Array, "*batch grid"]
    density: Float[Array, "*batch grid"]
    standard_error: Float[Array, "*batch grid"]
    width: Float[Array, "*batch"]
    nodes: Float[Array, "*batch probe step"]
    weights: Float[Array, "*batch probe step"]


@full_precision
def spectral_density(
    fn: Callable[[Array], Array],
    x: Float[ArrayLike, "*batch_and_input"],
    *,
    key: PRNGKeyArray,
    num_probes: int = 16,
    num_steps: int = 64,
    grid: Float[ArrayLike, " grid"] | None = None,
    width: ArrayLike | None = None,
) -> SpectralDensity:
    """Estimate the density of the squared singular values of the Jacobian of `fn`, without forming it.

        density(t) = 1/n sum_i N(t; s_i^2, width^2) = E_z z^T N(t; J^T J, width^2) z,    z uniform on the sphere

    over all n eigenvalues of J^T J: where J has fewer rows than columns, the n - m zeros are among them.
    Stochastic Lanczos quadrature (Golub & Welsch 1969; Ubaru, Chen & Saad 2017; Lin, Saad & Yang 2016, section
    3.2, for the smoothing): Golub-Kahan steps from each probe z give the nodes theta_k, the squared singular
    values of the bidiagonal B, and weights w_k whose sum_k w_k g(theta_k) is z^T g(J^T J) z exactly for
    polynomials g of degree below 2 num_steps. An estimate: unbiased but for the quadrature's error, which
    fades once num_steps exceeds some (largest s^2) / width; the standard error covers the probes alone. Other
    means over the spectrum follow from nodes and weights, as mean_i s_i^2 = sum_k w_k theta_k. The cost is
    2 num_probes num_steps products an input.

    Args:
        fn: maps ONE input to one floating-point array; static. Needs `jax.linearize` and its transpose.
        x: real inputs [batch, *input] or one input, told apart as in `jacobian`: for one the fields have no batch
            axis.
        key: for the probes, which are the same at every input. Traced.
        num_probes: random vectors z, at least 2; the standard error falls with the root of it. Static.
        num_steps: products J v a probe, cut to n; memory is num_steps (m + n) a probe. Static.
        grid: where to evaluate, in units of s^2; by default 256 points from zero to beyond the largest node.
        width: standard deviation of the smoothing Gaussian, in units of s^2; by default 1/40 of the largest
            node. Traced.

    Returns:
        A `SpectralDensity`, in at least float32. J = 0 has no scale of its own: give it a `width`. NaN in J
        gives NaN.

    Raises:
        TypeError: as `jacobian`.
        ValueError: as `jacobian`, `num_probes` is less than 2, `num_steps` less than 1, `grid` is not 1-D or
            `width` is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> found = spectral_density(lambda x: 2 * x, jnp.ones(5), key=jax.random.key(0), width=0.1)
        >>> print(found.nodes[0].max().round(4), (found.weights * found.nodes).sum(-1)[0].round(4))
        4.0 4.0
    """
    _check(num_probes, num_steps, grid, width)
    inputs = read_inputs(fn, x)
    batch, output = inputs.batch, inputs.output
    n, m = prod(batch.shape[1:]), prod(output.shape)
    num_steps = min(num_steps, n)

    def at(example: Array) -> SpectralDensity:
        matvec, rmatvec, dtype = products(fn, example, output)

        def quadrature(key: Array) -> tuple[Array, Array]:
            start = jax.random.normal(key, (n,), dtype)
            found = golub_kahan(matvec, rmatvec, start, num_steps=num_steps, num_rows=m)
            B = jnp.diag(found.diagonal) + jnp.diag(found.above, 1)
            _, values, right = jnp.linalg.svd(B)
            return values**2, right[:, 0] ** 2

        probe_bytes = num_steps * (m + n) * jnp.dtype(dtype).itemsize
        together = max(1, min(num_probes, _KRYLOV_BYTES // probe_bytes))
        nodes, weights = lax.map(quadrature, jax.random.split(key, num_probes), batch_size=together)
        largest = nodes.max()
        spread = largest / 40 if width is None else jnp.asarray(native(width), dtype)
        default = jnp.linspace(0, 1, _NUM_GRID, dtype=dtype) * (largest + 4 * spread)
        points = default if grid is None else jnp.asarray(native(grid), dtype)
        each = jax.vmap(partial(_smooth, points, spread))(nodes, weights)
        error = each.std(0, ddof=1) / num_probes**0.5
        return SpectralDensity(points, each.mean(0), error, spread, nodes, weights)

    return inputs.unbatched(lax.map(at, batch))


def _smooth(grid: Array, width: Array, nodes: Array, weights: Array) -> Array:
    return jax.scipy.stats.norm.pdf(grid[:, None], nodes, width) @ weights


def _check(num_probes: int, num_steps: int, grid: ArrayLike | None, width: ArrayLike | None) -> None:
    for name, value, low, usual in (("num_probes", num_probes, 2, 16), ("num_steps", num_steps, 1, 64)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(
                f"`{name}` must be an integer >= {low}, got {value!r}. Use {usual} to begin with."
            )
    if grid is not None and jnp.ndim(grid) != 1:
        raise ValueError(f"`grid` must be one axis of values of s^2, got shape {jnp.shape(grid)}. Ravel it.")
    if width is not None and not isinstance(width, jax.core.Tracer) and not np.all(np.asarray(width) > 0):
        raise ValueError(f"`width` must be positive, got {width}. Omit it for 1/40 of the largest s^2.")
