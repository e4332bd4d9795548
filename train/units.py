"""Single units, c f(a x + b) + d of one activation each, fitted to data: the best of many starts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import fit
from jaxact.activations import Activation, select


def best_units(
    activations: Sequence[Activation],
    x: Any,
    y: Any,
    *,
    seeds: Sequence[int],
    num_starts: int,
    num_steps: int,
) -> np.ndarray:
    """What the best unit of every activation gives, for every row of data; float64, one program for all.

    Each start descends by `jaxact.fit.separable_least_squares`: the result is a local minimum, from many starts most
    likely the least. A unit may come near a limit that it never reaches, such as relu from softplus as a grows.

    Args:
        activations: of the units.
        x: inputs, [row, point], ascending.
        y: data, [row, point].
        seeds: of the starts.
        num_starts: a seed.
        num_steps: of the descent.

    Returns:
        Fitted values, [row, activation, point].
    """

    def best(index: jax.Array, row: tuple[jax.Array, ...]) -> jax.Array:
        x, y, starts = row

        def basis(p: jax.Array) -> jax.Array:
            return jnp.stack([jnp.ones_like(x), select(activations, index)(p[0] * x + p[1])], 1)

        found = jax.vmap(partial(fit.separable_least_squares, basis, y, num_steps=num_steps))(starts)
        return found.fitted[jnp.nanargmin(found.error)]

    def every(row: tuple[jax.Array, ...]) -> jax.Array:
        return jax.lax.map(lambda index: best(index, row), jnp.arange(len(activations)))

    starts = [np.concatenate([_starts(seed, num_starts, row[0], row[-1]) for seed in seeds]) for row in x]
    with jax.enable_x64(True):
        return np.asarray(jax.jit(partial(jax.lax.map, every))((x, y, np.stack(starts))))


def _starts(seed: int, num_starts: int, low: float, high: float) -> np.ndarray:
    """(a, b), [start, 2]: a of either sign over 2.6 decades, b such that a x + b = 0 on the interval or near it."""
    rng = np.random.default_rng(seed)
    a = np.exp(rng.uniform(np.log(0.05), np.log(20), num_starts)) * rng.choice([-1, 1], num_starts)
    return np.stack([a, -a * rng.uniform(low - 2, high + 2, num_starts)], 1)
