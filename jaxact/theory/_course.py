"""What unit preactivations become on their way through a plain network, for many weight scales at once."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxact import xla
from jaxact.activations import Activation
from jaxact.numerics import gaussian_nodes, hermite_coefficients
from jaxact.theory._maps import variance_map
from jaxact.theory._phase import MeanField, mean_field

SIMILAR = 0.9  # correlation of the similar pair; the unrelated one has 0
_NUM_HERMITE = 512
_LAYERS = 64  # expanded at once
_NOISE = 1e-13  # of E f^2, what the expansion leaves by rounding


class Course(NamedTuple):
    """What unit preactivations become, layer by layer.

    Attributes:
        q: second moment, [depth + 1, start].
        c: correlations of the unrelated and of the similar pair, [depth + 1, start, 2].
        chi: growth of squared gradients through each layer, [depth, start].
    """

    q: Float[np.ndarray, "layers start"]
    c: Float[np.ndarray, "layers start 2"]
    chi: Float[np.ndarray, "layer start"]


def follow(
    activation: Activation,
    depth: int,
    sigma_w: Float[np.ndarray, " start"],
    sigma_b: Float[np.ndarray, " start"],
) -> tuple[MeanField, Course]:
    """Find the limit of large depth and the way there.

    The correlations are those of `theory.trajectory`, by Hermite's expansion instead of its quadrature in the plane,
    which takes twenty times as long: C(c) = sum_n s_n c^n. What is beyond degree 511 stands as one power with
    the right value and slope at c = 1. To rounding for smooth activations; for relu after 64 layers, where correlations
    are 0.99, to 1e-4 of 1 - c.
    """
    with jax.enable_x64(True):
        scales = jnp.asarray(sigma_w), jnp.asarray(sigma_b)
        limit = jax.tree.map(np.asarray, _limit(activation, *scales))
        found = _Moments(*(np.asarray(each) for each in _moments(activation, depth, *scales)))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        return limit, Course(found.q, _correlations(found, sigma_w, sigma_b), found.chi)


class _Moments(NamedTuple):
    """Per layer q and chi, and of f there: squared Hermite coefficients, E f^2, q E f'^2."""

    q: Any
    chi: Any
    series: Any
    value: Any
    slope: Any


def _correlations(found: _Moments, sigma_w: np.ndarray, sigma_b: np.ndarray) -> np.ndarray:
    degrees = np.arange(_NUM_HERMITE)
    rest = np.maximum(found.value - found.series.sum(-1), 0)
    degree = np.maximum((found.slope - found.series @ degrees) / rest, _NUM_HERMITE)
    rest = np.where(rest > _NOISE * found.value, rest, 0)
    degree = np.where(rest > 0, degree, _NUM_HERMITE)
    c = [np.broadcast_to([0.0, SIMILAR], (len(sigma_w), 2))]
    for layer in range(len(found.chi)):
        powers = c[-1][..., None] ** degrees
        image = np.einsum("spn,sn->sp", powers, found.series[layer])
        image += rest[layer][:, None] * np.abs(c[-1]) ** degree[layer][:, None]
        image = sigma_w[:, None] ** 2 * image + sigma_b[:, None] ** 2
        c.append(np.clip(image / found.q[layer + 1][:, None], -1, 1))
    return np.stack(c)


# Compiled once, run once: optimising would take longer than it saves.
@partial(jax.jit, static_argnums=0, compiler_options=xla.options(0))
def _limit(activation: Activation, sigma_w: jax.Array, sigma_b: jax.Array) -> MeanField:
    return mean_field(activation, sigma_w=sigma_w, sigma_b=sigma_b)


@partial(jax.jit, static_argnums=(0, 1))
def _moments(activation: Activation, depth: int, sigma_w: jax.Array, sigma_b: jax.Array) -> _Moments:
    def layer(q: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        image = variance_map(activation, q, sigma_w=sigma_w, sigma_b=sigma_b)
        return jnp.where(jnp.isinf(q), q, image), q  # has overflowed

    last, before = jax.lax.scan(layer, jnp.ones_like(sigma_w), None, length=depth)
    # Some layers at a time: their nodes would not fit into memory together.
    series, value, squares = jax.lax.map(partial(_expansion, activation), before, batch_size=_LAYERS)
    q = jnp.concatenate([before, last[None]])
    return _Moments(q, sigma_w**2 * squares, series, value, before * squares)


def _expansion(activation: Activation, q: jax.Array) -> tuple[jax.Array, ...]:
    """Squared Hermite coefficients of f at each q, E f^2 and E f'^2."""
    x, weights = gaussian_nodes(activation.breakpoints, jnp.zeros_like(q), q)
    value, slope = activation.value_and_slope(x)
    series = hermite_coefficients(x / jnp.sqrt(q)[..., None], weights, value, _NUM_HERMITE) ** 2
    return jnp.moveaxis(series, 0, -1), jnp.sum(value**2 * weights, -1), jnp.sum(slope**2 * weights, -1)
