"""Every product measured and rescaled on the way, in one compiled pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxact.diagnosis._axes import BATCH, POSITION, Axes, has
from jaxact.diagnosis._measure import product_statistics
from jaxact.diagnosis._reading import Reading, Site
from jaxact.diagnosis._taps import Path, Plan, Tap, evaluate


class Slot(NamedTuple):
    """What a product z is rescaled by: E (factor z + b)^2 becomes `target` + E b^2.

    Attributes:
        target: the second moment; NaN leaves the product as it is.
        bias: what is added to it, of one length along the inputs and positions.
    """

    target: Any  # Array, or NumPy's before it is traced
    bias: Any


class Rescale:
    """(parameters, inputs, targets) -> numbers by name, one a product, as each is before it is rescaled to its target.

    Rescaling a product is rescaling its weight: so what comes after sees the weights as they will be, in loops the
    turn's own. LSUV (Mishkin & Matas 2016, arXiv:1511.06422) needs a run of the network for every layer.
    """

    def __init__(self, closed: Any, reading: Reading):
        self.closed, self.sites = closed, reading.sites
        count = reading.graph.batch.num_inputs
        taps = {
            site.key[0]: Tap(partial(_statistics, axes=site.axes, num_inputs=count), True, scaled)
            for site in reading.sites
        }
        self.plan = Plan(taps, reading.loops)
        self._run = jax.jit(self._evaluated)

    def __call__(
        self, leaves: list[Any], batch: Any, targets: Float[np.ndarray, " row"], biases: Mapping[int, Any]
    ) -> dict[str, np.ndarray]:
        """Measure; a target of NaN leaves a product as it is. `biases` are numbers of `along_features`, by site."""
        slots = {site.key[0]: self._slot(site) for site in self.sites}
        for number, (site, target) in enumerate(zip(self.sites, targets, strict=True)):
            path, turns = site.key
            slots[path].target[turns] = target
            slots[path].bias[turns] = biases.get(number, 0.0)
        found = jax.device_get(self._run([*leaves, *jax.tree.leaves(batch)], slots))
        return {
            name: np.array([_at(found, site, name) for site in self.sites], float)
            for name in ("mean", "second_moment", "cosine", "factor")
        }

    def _slot(self, site: Site) -> Any:
        turns, shape = self.plan.turns(site.key[0]), _lengths(site.shape, site.axes)
        return Slot(np.full(turns, np.nan, np.float32), np.zeros((*turns, *shape), np.float32))

    def _evaluated(self, args: list[Any], slots: dict[Path, Slot]) -> dict[Path, dict[str, Array]]:
        return evaluate(self.plan, self.closed.jaxpr, self.closed.consts, args, slots)[1]


def along_features(values: np.ndarray, site: Site) -> np.ndarray | None:
    """What is added to a product, of one length along inputs and positions; None where it has another shape."""
    lengths = _lengths(site.shape, site.axes)
    try:
        values = np.broadcast_to(values, site.shape)
    except ValueError:
        return None
    return values[tuple(slice(0, length) for length in lengths)]


def _lengths(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    return tuple(
        1 if has(one, BATCH) or has(one, POSITION) else length
        for one, length in zip(axes, shape, strict=True)
    )


def _statistics(z: Float[Array, "*shape"], slot: Slot, axes: Axes, num_inputs: int) -> dict[str, Array]:
    found = product_statistics(z, axes, num_inputs)
    return {name: found[name] for name in ("mean", "second_moment", "cosine")} | {
        "factor": factor_of(z, slot)
    }


def factor_of(z: Float[Array, "*shape"], slot: Slot) -> Float[Array, ""]:
    """The root of factor^2 E z^2 + 2 factor E z b = target; 1 where there is none."""
    z = z.astype(jnp.float32)
    second, cross = jnp.mean(jnp.square(z)), jnp.mean(z * slot.bias)
    is_wanted = (second > 0) & ~jnp.isnan(slot.target)
    root = jnp.sqrt(jnp.square(cross) + second * jnp.where(is_wanted, slot.target, 0))
    factor = (root - cross) / jnp.where(second > 0, second, 1)
    return jnp.where(is_wanted & (factor > 0) & jnp.isfinite(factor), factor, 1)


def scaled(z: Float[Array, "*shape"], slot: Slot) -> Float[Array, "*shape"]:
    """The product rescaled."""
    return (z * factor_of(z, slot)).astype(z.dtype)


def _at(found: Mapping[Path, Mapping[str, Any]], site: Site, name: str) -> float:
    path, turns = site.key
    return float(found[path][name][turns]) if path in found else np.nan
