"""How the networks of a trial are computed in training: in which type, and what the way back keeps."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxact import nn

ComputeDtype = Literal["float32", "bfloat16"]
Remat = Literal["none", "layers"]


def computed(network: nn.Functional, *, dtype: ComputeDtype, remat: Remat) -> nn.Functional:
    """The same functions of the same parameters, computed in another way.

    Args:
        network: its parameters are float32, and stay so: gradients arrive in float32, at what the optimiser moves.
        dtype: of products and hidden states; bfloat16 has the range of float32 and 8 bits. Norms take their statistics,
            and `variables` are kept, in float32 either way; outputs are float32.
        remat: "layers" for `apply(..., remat=True)`, which recomputes layers on the way back.

    Raises:
        ValueError: layers are to be recomputed of a network whose `apply` does not know how.
    """
    apply = network.apply if remat == "none" else partial(_remat(network.apply), remat=True)
    return network._replace(apply=apply if dtype == "float32" else _narrowed(apply, dtype))


def _remat(apply: Any) -> Any:
    parameters = inspect.signature(apply).parameters
    if "remat" not in parameters and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        raise ValueError(
            "`remat` must be none for a network whose `apply` takes no `remat`, got layers. Let `apply` take it, as "
            "`jaxact.nn.functional` makes it."
        )
    return apply


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
