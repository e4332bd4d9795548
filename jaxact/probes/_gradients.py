"""How large the gradient is, at each layer or of each array."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxact.numerics import real_floating, traced


def gradient_norms(loss: Callable[..., Array], *params: Any) -> tuple[Any, ...]:
    """Compute the Euclidean norms of a loss's gradient, for each of its arguments.

        an array [layer, ...]    norms[a][l] = || d loss / d params[a][l] ||_2    stacked layers, a norm for each
        any other pytree         norms[a][leaf] = || d loss / d params[a][leaf] ||_2    a norm for each of its arrays

    An argument that is an array is stacked layers, a pytree of arrays is one norm an array, whatever its shapes. Exact
    up to rounding. Scaled by the largest entry, so gradients of 1e30 or 1e-30 neither overflow nor vanish in float32.
    Pass stacked weights for ||dL/dW_l||; for ||dL/dh_l|| pass zeros of the shape of the hidden states that the loss
    adds to them ("taps"); for a model's parameters as they are, their pytree, as `nnx.state(model, nnx.Param)`.

    Args:
        loss: maps `*params` to a scalar; reverse-differentiable.
        params: real floating-point arrays [layer, ...], or pytrees of real floating-point arrays of any shapes.

    Returns:
        For each argument an array [layer], or the pytree with a scalar in place of each array; in at least float32.

    Raises:
        TypeError: a leaf is not real floating-point, or `loss` cannot be traced: see `jaxact.numerics.FunctionError`.
        ValueError: no argument, an argument without arrays, an array without a layer axis, or a loss that is not a
            scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> (norms,) = gradient_norms(lambda w: jnp.sum(w**2) / 2, jnp.array([[3.0, 4.0], [0.0, 1.0]]))
        >>> norms
        Array([5., 1.], dtype=float32)
        >>> params = {"kernel": jnp.array([[3.0], [4.0]]), "bias": jnp.ones(1)}
        >>> (norms,) = gradient_norms(lambda p: jnp.sum(p["kernel"] ** 2) / 2 + 7 * p["bias"][0], params)
        >>> float(norms["kernel"]), float(norms["bias"])
        (5.0, 7.0)
    """
    if not params:
        raise ValueError(
            "gradient_norms needs at least one argument after `loss`, got none. Pass the parameters."
        )
    checked = tuple(_checked(position, argument) for position, argument in enumerate(params))
    _, output = traced(loss, *checked, name="`loss`")
    if getattr(output, "shape", None) != ():
        raise ValueError(
            f"`loss` must return a scalar array, got {output}. Reduce it, for instance with jnp.mean."
        )
    gradients = jax.grad(loss, argnums=tuple(range(len(checked))))(*checked)
    return tuple(
        _norms(gradient)
        if _is_array(gradient)
        else jax.tree.map(lambda leaf: _norms(leaf[None])[0], gradient)
        for gradient in gradients
    )


def _is_array(argument: Any) -> bool:
    return jax.tree_util.treedef_is_leaf(jax.tree.structure(argument))


def _norms(stacked: Array) -> Float[Array, " layer"]:
    flat = stacked.reshape(stacked.shape[0], -1)
    flat = flat.astype(jnp.promote_types(flat.dtype, jnp.float32))
    largest = jnp.abs(flat).max(1, initial=0)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    return scale * jnp.sqrt(jnp.sum((flat / scale[:, None]) ** 2, 1))


def _checked(position: int, argument: Any) -> Any:
    """An argument as arrays of JAX."""
    name = f"params[{position}]"
    argument = jax.tree.map(lambda leaf: real_floating(name, leaf), argument)
    leaves = jax.tree.leaves(argument)
    if not leaves:
        raise ValueError(
            f"`{name}` must hold arrays, got {argument!r}. Pass the parameters to differentiate by."
        )
    if _is_array(argument) and leaves[0].ndim == 0:
        raise ValueError(
            f"`{name}` must be stacked layers [layer, ...], got a scalar. Put a single number into a list."
        )
    return argument
