"""How a batch looks to each layer: moments, zeros, dead and saturated units."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxact.numerics import real_floating

_SATURATED = 0.01


class LayerStatistics(NamedTuple):
    """One number a layer, over inputs and units.

    Attributes:
        mean: mean of the hidden state.
        second_moment: mean of its square (not centred).
        zero_fraction: share of (input, unit) pairs with f(z) == 0.
        dead_fraction: share of units whose slope f'(z) is exactly 0 on every input: they pass no gradient.
        saturated_fraction: share of (input, unit) pairs with |f'(z)| < 0.01 sup|f'|.
    """

    mean: Float[Array, " layer"]
    second_moment: Float[Array, " layer"]
    zero_fraction: Float[Array, " layer"]
    dead_fraction: Float[Array, " layer"]
    saturated_fraction: Float[Array, " layer"]


def layer_statistics(
    preactivation: Float[ArrayLike, "layer batch *features"],
    activation: Callable[[Array], Array],
    *,
    hidden: Float[ArrayLike, "layer batch *state"] | None = None,
) -> LayerStatistics:
    """Describe what an elementwise activation does to a batch at every layer.

    Exact counts and means over the batch given; as statements about the data they are estimates from that
    sample. Slopes come from `jax.jvp`, so at a kink they are what training sees (relu'(0) = 0). A layer of which a
    preactivation, value or slope is NaN has the fractions NaN: a network that diverged is not dead. Infinities count by
    their value and slope, but a layer whose largest slope is infinite has no saturated ones: NaN.

    Args:
        preactivation: z [layer, batch, *features], the activation's argument.
        activation: elementwise f, any JAX callable. If it has an attribute `lipschitz` (sup|f'|, a float or a
            traced array) saturation is measured against that; where that is missing or infinite, against the
            largest |f'(z)| seen in the same layer.
        hidden: the state [layer, batch, ...] whose `mean` and `second_moment` to report; the preactivation if
            None.

    Returns:
        `LayerStatistics`, each field [layer], in at least float32.

    Raises:
        TypeError: an array is not real floating-point.
        ValueError: an array is empty or lacks the layer and batch axes, or the two disagree on the number of
            layers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> z = jnp.array([[[-1.0, 2.0], [-3.0, -4.0]]])
        >>> stats = layer_statistics(z, jax.nn.relu)
        >>> stats.zero_fraction.tolist(), stats.dead_fraction.tolist(), stats.second_moment.tolist()
        ([0.75], [0.5], [7.5])
    """
    z = _check("preactivation", preactivation)
    state = z if hidden is None else _check("hidden", hidden)
    if state.shape[0] != z.shape[0]:
        raise ValueError(
            f"`hidden` must have as many layers as `preactivation`, got {state.shape[0]} and {z.shape[0]}. "
            "Slice both to the same layers."
        )
    value, slope = jax.jvp(activation, (z,), (jnp.ones_like(z),))
    unknown = jnp.isnan(z) | jnp.isnan(value) | jnp.isnan(slope)
    magnitude = jnp.abs(slope)
    inner = tuple(range(1, z.ndim))
    seen = magnitude.max(inner, keepdims=True)
    supremum = jnp.asarray(getattr(activation, "lipschitz", jnp.inf), z.dtype)
    scale = jnp.where(jnp.isfinite(supremum), supremum, seen)
    return LayerStatistics(
        mean=_mean(state),
        second_moment=_mean(_accurate(state) ** 2),
        zero_fraction=_share(value == 0, unknown),
        dead_fraction=_share((slope == 0).all(1), unknown.any(1)),
        saturated_fraction=_share(magnitude < _SATURATED * scale, unknown | ~jnp.isfinite(scale)),
    )


def _accurate(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _mean(array: Array) -> Array:
    return jnp.mean(_accurate(array), tuple(range(1, array.ndim)))


def _share(claim: Array, unknown: Array) -> Array:
    """Of each layer the mean of what is claimed; NaN where it is unknown of one entry."""
    return _mean(jnp.where(unknown, jnp.nan, claim.astype(jnp.float32)))


def _check(name: str, array: ArrayLike) -> Array:
    array = real_floating(name, array, "an array [layer, batch, *features]")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(
            f"`{name}` must be [layer, batch, *features] and not empty, got shape {array.shape}. "
            f"For one layer pass {name}[None]."
        )
    return array
