"""An activation chosen at run time: one compiled program serves every choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxact.activations._activation import Activation


@partial(jax.tree_util.register_dataclass, data_fields=["index"], meta_fields=["choices"])
@dataclass(frozen=True)
class Selected:
    """The activation `choices[index]`, with a traced index; made by `select`.

    Attributes:
        choices: the candidates; static, so that a change of them is a new program.
        index: int32 scalar in [0, len(choices)); traced, so that a change of it is not.
    """

    choices: tuple[Activation, ...]
    index: Any  # a leaf, where JAX puts placeholders too

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Apply the chosen activation elementwise; its derivative is the choice's own."""
        return _apply(self.choices, self.index, jnp.asarray(x))

    @property
    def lipschitz(self) -> jax.Array:
        """The choice's sup |f'|, a float32 scalar; exact up to its rounding."""
        return jnp.asarray([a.lipschitz for a in self.choices], jnp.float32)[self.index]

    @property
    def slope_range(self) -> tuple[jax.Array, jax.Array]:
        """The choice's (inf f', sup f'), float32 scalars; exact up to their rounding."""
        low, high = jnp.asarray([a.slope_range for a in self.choices], jnp.float32)[self.index]
        return low, high


def select(choices: Sequence[Activation], index: ArrayLike) -> Selected:
    """Choose one of several activations at run time.

    f(x) = choices[index](x), by `lax.switch`, which evaluates the chosen branch alone as long as `index`
    is not vmapped.

    Args:
        choices: at least one `Activation`; static.
        index: integer scalar in [0, len(choices)); may be traced. An index outside is clamped when traced.

    Returns:
        A callable pytree: pass it through `jit`, or to a module wherever an activation goes.

    Raises:
        ValueError: if `choices` is empty, or a concrete `index` lies outside.
        TypeError: if a choice is not an `Activation`, or `index` is not an integer scalar.

    >>> from jaxact import activations
    >>> f = select([activations.relu, activations.tanh], 0)
    >>> float(f(-1.0)), float(f(2.0))
    (0.0, 2.0)
    """
    choices = tuple(choices)
    if not choices:
        raise ValueError("`choices` must hold at least one activation, got none.")
    for choice in choices:
        if not isinstance(choice, Activation):
            raise TypeError(
                f"`choices` must be Activations, got {choice!r}. "
                "Use activations.parse for a name, activations.from_callable for a function."
            )
    if not isinstance(index, jax.core.Tracer):
        if np.shape(index) != () or not np.issubdtype(np.asarray(index).dtype, np.integer):
            raise TypeError(f"`index` must be an integer scalar, got {index!r}.")
        if not 0 <= int(np.asarray(index)) < len(choices):
            raise ValueError(f"`index` must lie in [0, {len(choices)}), got {int(np.asarray(index))}.")
    return Selected(choices, jnp.asarray(index, jnp.int32))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(choices: tuple[Activation, ...], index: jax.Array, x: jax.Array) -> jax.Array:
    return jax.lax.switch(index, [_value(choice) for choice in choices], x)


@_apply.defjvp
def _apply_jvp(choices, primals, tangents):
    index, x = primals
    value, slope = jax.lax.switch(index, [_value_and_slope(choice) for choice in choices], x)
    return value, slope * tangents[1]


# Compiled functions, made once: transformations of a switch then find the branches' already made.
@lru_cache(maxsize=256)
def _value(choice: Activation) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(choice.__call__)


@lru_cache(maxsize=256)
def _value_and_slope(choice: Activation) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Both from one branch, so that what they share is computed once."""
    return jax.jit(lambda x: (choice(x), choice.derivative(x)))
