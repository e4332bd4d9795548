"""Work on the first stages of a stack alone, for runs that are much shallower than their stack is long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jaxact.numerics import check_count


def shortened(run: Callable[..., tuple[PyTree, Any]], length: int | np.integer) -> Callable[..., tuple]:
    """`run` with every stack of its state cut to its first `length` stages, the others put back as they were.

    A run of depth d reads d stages of its stack, but optimiser, guard and gradients go over all of them at every step:
    4 stages of 64 train 4 times as long as 4 of 4. Shortened they train as long as 4 of `length`. The price is a
    program a `length`, which is static; within it depth stays a run-time argument, and one beyond gives NaN.

    What is trained is the same as long as the optimiser treats the stages alike and by themselves, or by norms of the
    gradient, in which the idle ones are 0: SGD, Adam, clipping. The idle ones are then not decayed by weight decay.

    Args:
        run: `run(state, *shared) -> (state, found)`, such as `fit.fit` makes; state a pytree that holds variables of
            a `Stack` as `nn.functional` gives them, e.g. a `fit.State`, its optimiser's moments included.
        length: stages kept, at least the depth that is run; a stack with fewer keeps all.

    Returns:
        A function like `run`, for states of the full stack.

    Raises:
        ValueError: if `length` is not a positive integer.

    >>> import jax.numpy as jnp
    >>> def halved(state): return jax.tree.map(lambda leaf: leaf / 2, state), len(state["stages"])
    >>> state, found = shortened(halved, 2)({"head": jnp.ones(1), "stages": jnp.ones(3)})
    >>> state["head"].tolist(), state["stages"].tolist(), found
    ([0.5], [0.5, 0.5, 1.0], 2)
    """
    length = check_count("length", length)

    def short(state: PyTree, *shared: PyTree) -> tuple:
        first = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf[:length] if _is_of_stages(path) else leaf, state
        )
        first, found = run(first, *shared)
        return jax.tree_util.tree_map_with_path(_put_back, state, first), found

    return short


def _put_back(path: tuple, old: jax.Array, new: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(old, new, 0, axis=0) if _is_of_stages(path) else new


def _is_of_stages(path: tuple) -> bool:
    """Whether a leaf stands below `Stack.stages`, in the parameters or in what an optimiser keeps for them."""
    return any(getattr(key, "key", None) == "stages" for key in path)
