"""Many runs as one program: members are vmapped and, on several devices, sharded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


class Member(NamedTuple):
    """One run's traced inputs; a population is a `Member` whose leaves carry a leading axis.

    Attributes:
        key: PRNG key.
        hparams: traced hyperparameters, by name.
    """

    key: jax.Array
    hparams: Mapping[str, Array]


def grid(*, seeds: Sequence[int], **hparams: Sequence[float]) -> Member:
    """All combinations of seeds and hyperparameters, as a population.

    Two members with the same seed have the same key. Seeds vary fastest; the hyperparameters in the order given.

    Args:
        seeds: integers; becomes `key` and the hyperparameter "seed".
        **hparams: values of each hyperparameter.

    Returns:
        A `Member` with a leading axis of length len(seeds) times the number of values of each hyperparameter.

    Raises:
        ValueError: if a sequence is empty.

    >>> members = grid(seeds=[0, 1], learning_rate=[0.1, 0.2, 0.3])
    >>> [round(float(rate), 1) for rate in members.hparams["learning_rate"]]
    [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]
    """
    for name, values in {**hparams, "seeds": seeds}.items():
        if not len(values):
            raise ValueError(f"`{name}` must hold at least one value, got {values!r}.")
    rows = list(itertools.product(*hparams.values(), seeds))
    columns = [jnp.asarray(column) for column in zip(*rows, strict=True)]
    named = dict(zip([*hparams, "seed"], columns, strict=True))
    return Member(jax.vmap(jax.random.key)(named["seed"]), named)


def population(run: Callable[..., Any], members: PyTree, *, mesh: Mesh | None = None) -> Any:
    """`run` on every member at once: [run(member) for member in members], stacked.

    Args:
        run: a pure function of one member (a `Member`, a `State`, any pytree).
        members: the same with a leading axis on every leaf.
        mesh: spread the members over its first axis; a number that does not divide is padded with copies of the last
            member, and the copies are dropped.

    Returns:
        The results with a leading axis of members.

    Raises:
        ValueError: if the leaves' leading axes differ or are empty.

    >>> population(lambda member: member.hparams["seed"] * 10, grid(seeds=[1, 2])).tolist()
    [10, 20]
    """
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(members)}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        raise ValueError(
            f"`members` must have one leading axis of at least one member on every leaf, got lengths {sorted(sizes)}."
        )
    if mesh is None:
        return jax.vmap(run)(members)
    ((size,),) = sizes
    padded = -size % mesh.shape[mesh.axis_names[0]]
    members = jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], padded, 0)]), members)
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    members = jax.lax.with_sharding_constraint(members, sharding)
    return jax.tree.map(lambda leaf: leaf[:size], jax.vmap(run)(members))
