"""How large the gradient is at each layer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gradient_norms(loss: Callable[..., Array], *stacked: Any) -> tuple[Float[Array, " layer"], ...]:
    """Compute the gradient's norm at every layer, for each argument of a loss.

        norms[a][l] = || d loss / d stacked[a] at layer l ||_2     (Euclidean, over all leaves together)

    Exact up to rounding. Scaled by the largest entry, so gradients of 1e30 or 1e-30 neither overflow nor
    vanish in float32. Pass stacked weights for ||dL/dW_l||; for ||dL/dh_l|| pass zeros of the shape of the
    hidden states that the loss adds to them ("taps").

    Args:
        loss: maps `*stacked` to a scalar; reverse-differentiable.
        stacked: pytrees of real floating-point arrays [layer, ...]; the leaves of one argument share `layer`.

    Returns:
        One array [layer] for each argument, in at least float32.

    Raises:
        TypeError: a leaf is not real floating-point.
        ValueError: no argument, an argument without leaves, leaves that disagree on the number of layers, or
            a loss that is not a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> (norms,) = gradient_norms(lambda w: jnp.sum(w**2) / 2, jnp.array([[3.0, 4.0], [0.0, 1.0]]))
        >>> norms
        Array([5., 1.], dtype=float32)
    """
    if not stacked:
        raise ValueError("gradient_norms needs at least one stacked argument after `loss`, got none.")
    stacked = tuple(jax.tree.map(jnp.asarray, argument) for argument in stacked)
    for position, argument in enumerate(stacked):
        _check(position, argument)
    shape = jax.eval_shape(loss, *stacked)
    if getattr(shape, "shape", None) != ():
        raise ValueError(
            f"`loss` must return a scalar array, got {shape}. Reduce it, for instance with jnp.mean."
        )
    gradients = jax.grad(loss, argnums=tuple(range(len(stacked))))(*stacked)
    return tuple(_norms(gradient) for gradient in gradients)


def _norms(gradient: Any) -> Array:
    rows = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(gradient)]
    flat = jnp.concatenate([row.astype(jnp.promote_types(row.dtype, jnp.float32)) for row in rows], 1)
    largest = jnp.abs(flat).max(1, initial=0)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.sqrt(jnp.sum((flat / scale[:, None]) ** 2, 1))


def _check(position: int, argument: Any) -> None:
    leaves = jax.tree.leaves(argument)
    for leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"stacked argument {position} must hold real floating-point arrays, got dtype {leaf.dtype}. "
                "Close over what is not differentiated."
            )
    layers = {leaf.shape[:1] for leaf in leaves}
    if len(layers) != 1 or layers == {()}:
        raise ValueError(
            f"every leaf of stacked argument {position} must have the same leading layer axis, got shapes "
            f"{[leaf.shape for leaf in leaves]}. Stack the layers with jnp.stack."
        )
