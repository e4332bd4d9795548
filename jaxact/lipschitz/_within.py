"""A convex region as the image of all inputs, so that a search without constraints stays inside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxact.lipschitz._program import Ball, Box, Region

_NUM_STARTS = 8


class Inside(NamedTuple):
    """The map y -> x = center + scale * project(y), whose image is the region.

    A projection onto a convex set stretches nothing, so that no slope of fn(x(y)) / scale is above one of fn in the
    region, and the largest are the same.

    Attributes:
        place: y -> x.
        scale: dx / dy where y is inside.
    """

    place: Callable[[Any], Any]
    scale: float


def inside(region: Region | None, dtype: Any) -> Inside:
    """The map onto a region, |y| <= 1 (a ball) or -1 <= y <= 1 (a box) being all of it; the identity for None."""
    if region is None:
        return Inside(lambda y: y, 1.0)
    center, half = middle(region)
    at = jnp.asarray(center, dtype)
    project = _onto_box if isinstance(region, Box) else _onto_ball
    return Inside(lambda y: at + half * project(y), half)


def _onto_box(y: Array) -> Array:
    return jnp.clip(y, -1, 1)


def _onto_ball(y: Array) -> Array:
    square = jnp.sum(y * y)
    # The root of a safe number: at y = 0 that of 0 has no slope.
    return y * jnp.where(square > 1, jax.lax.rsqrt(jnp.maximum(square, 1)), 1)


def middle(region: Region) -> tuple[Float[np.ndarray, " *input"], float]:
    """A region's centre, and its radius or half its longest side."""
    if isinstance(region, Ball):
        return region.center, region.radius
    return region.lower / 2 + region.upper / 2, float(np.max(region.upper - region.lower)) / 2


def starts_inside(region: Region, inputs: Array, dtype: Any, seed: int) -> Float[Array, " start *input"]:
    """The y of the middle, of those of `inputs` that lie inside, and of points spread over the region."""
    center, half = middle(region)
    y = (np.asarray(inputs, np.float64) - center) / half
    axes = tuple(range(1, y.ndim))
    size = np.sqrt((y**2).sum(axes)) if isinstance(region, Ball) else np.abs(y).max(axes)
    spread = _spread(region, np.random.default_rng(seed))
    return jnp.asarray(np.concatenate([np.zeros_like(center)[None], y[size <= 1], spread]), dtype)


def _spread(region: Region, rng: np.random.Generator) -> Float[np.ndarray, " start *input"]:
    center, _ = middle(region)
    spread = rng.uniform(-1, 1, (_NUM_STARTS, *center.shape))
    if isinstance(region, Ball):
        axes = tuple(range(1, spread.ndim))
        spread /= np.sqrt((spread**2).sum(axes, keepdims=True))
        spread *= rng.uniform(0, 1, (_NUM_STARTS, *[1] * center.ndim)) ** (1 / center.size)
    return spread
