"""How the networks of a trial are computed in training: in which type."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxact import nn

ComputeDtype = Literal["float32", "bfloat16"]


def computed(network: nn.Functional, *, dtype: ComputeDtype) -> nn.Functional:
    """The same functions of the same parameters, computed in another way.

    Args:
        network: its parameters are float32, and stay so: gradients arrive in float32, at what the optimiser moves.
        dtype: of products and hidden states; bfloat16 has the range of float32 and 8 bits. Norms take their statistics,
            and `variables` are kept, in float32 either way; outputs are float32.
    """
    return network if dtype == "float32" else network._replace(apply=_narrowed(network.apply, dtype))


def _narrowed(apply: Any, dtype: str) -> Any:
    def narrow(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_float32(leaf) else leaf, tree)

    def narrowed(params: Any, variables: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
        output, updated = apply(narrow(params), variables, *narrow(args), **options)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == dtype else leaf, output)
        return wide, jax.tree.map(lambda new, old: new.astype(old.dtype), updated, variables)

    return narrowed


def _is_float32(leaf: Any) -> bool:
    return getattr(leaf, "dtype", None) == jnp.float32
