"""The widest floating-point input that a function takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Widest(NamedTuple):
    """What a function can be called on.

    Attributes:
        dtype: float64, or float32 where the function insists.
        outputs: of the function there, as `jax.eval_shape` has them.
    """

    dtype: Any
    outputs: Any


def widest_input(fn: Callable[[Any], Any], shape: tuple[int, ...]) -> Widest:
    """Find out whether a function of one array takes float64, whatever JAX's default precision.

    Loops that insist on float32 carries, for one, do not. Nothing is computed: the function is traced.

    Args:
        fn: JAX function of one array.
        shape: of that array.

    Returns:
        A `Widest`.

    Raises:
        Exception: what the function raises in float64, where it takes float32 neither.

    Example:
        >>> widest_input(lambda x: 2 * x, (3,)).outputs.shape
        (3,)
    """
    with jax.enable_x64(True):
        try:
            return Widest(jnp.float64, jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, jnp.float64)))
        except Exception as error:
            try:
                return Widest(jnp.float32, jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, jnp.float32)))
            except Exception:
                raise error from None
