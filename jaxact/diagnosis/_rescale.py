"""Every product measured and rescaled on the way, in one compiled pass."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxact.diagnosis._measure import product_statistics
from jaxact.diagnosis._reading import Reading, Site
from jaxact.diagnosis._taps import Path, Plan, Tap, evaluate


class Rescale:
    """(parameters, targets) -> numbers by name, one a product, as each is before it is rescaled to its target.

    Rescaling a product is rescaling its weight: so what comes after sees the weights as they will be, in loops the
    turn's own. LSUV (Mishkin & Matas 2016, arXiv:1511.06422) needs a run of the network for every layer.
    """

    def __init__(self, closed: Any, reading: Reading, batch: Any):
        self.closed, self.sites, self.batch = closed, reading.sites, jax.tree.leaves(batch)
        count = reading.graph.batch.num_inputs
        taps = {
            site.key[0]: Tap(partial(product_statistics, axes=site.axes, num_inputs=count), True, scaled_to)
            for site in reading.sites
        }
        self.plan = Plan(taps, reading.loops)
        self._run = jax.jit(self._evaluated)

    def __call__(self, leaves: list[Any], targets: Float[np.ndarray, " row"]) -> dict[str, np.ndarray]:
        """Measure; a target of NaN leaves a product as it is."""
        slots = {path: np.full(self.plan.turns(path), np.nan, np.float32) for path in self.plan.taps}
        for site, target in zip(self.sites, targets, strict=True):
            slots[site.key[0]][site.key[1]] = target
        found = jax.device_get(self._run(leaves, slots))
        return {
            name: np.array([_at(found, site, name) for site in self.sites], float)
            for name in ("mean", "second_moment", "cosine")
        }

    def _evaluated(self, leaves: list[Any], slots: dict[Path, Array]) -> dict[Path, dict[str, Array]]:
        args = [*leaves, *self.batch]
        return evaluate(self.plan, self.closed.jaxpr, self.closed.consts, args, slots)[1]


def scaled_to(z: Float[Array, "*shape"], target: Float[Array, ""]) -> Float[Array, "*shape"]:
    """The product with the second moment that is wanted."""
    second = jnp.mean(jnp.square(z.astype(jnp.float32)))
    is_wanted = (second > 0) & ~jnp.isnan(target)
    factor = jnp.where(is_wanted, jnp.sqrt(target / jnp.where(second > 0, second, 1)), 1)
    return (z * factor).astype(z.dtype)


def _at(found: Mapping[Path, Mapping[str, Any]], site: Site, name: str) -> float:
    path, turns = site.key
    return float(found[path][name][turns]) if path in found else np.nan
