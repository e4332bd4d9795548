"""Many runs as one program: members are vmapped and, on several devices, sharded."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, PyTree

from jaxact.fit._loop import traced
from jaxact.numerics import check_count


class Member(NamedTuple):
    """One run's traced inputs; a population is a `Member` whose leaves carry a leading axis.

    Attributes:
        key: PRNG key.
        hparams: traced hyperparameters, by name.
    """

    key: jax.Array
    hparams: Mapping[str, Array]


def grid(*, seeds: Sequence[int | np.integer] | np.ndarray, **hparams: Sequence[float]) -> Member:
    """All combinations of seeds and hyperparameters, as a population.

    Two members with the same seed have the same key. Seeds vary fastest; the hyperparameters in the order given.

    Args:
        seeds: integers from -2^31 to 2^32 - 1, of which `jax.random.key` makes different keys, or from -2^63 to
            2^63 - 1 in JAX's 64-bit mode; becomes `key` and the hyperparameter "seed".
        **hparams: values of each hyperparameter.

    Returns:
        A `Member` with a leading axis of length len(seeds) times the number of values of each hyperparameter.

    Raises:
        ValueError: if a sequence is empty, or holds what no array of JAX does.

    >>> members = grid(seeds=[0, 1], learning_rate=[0.1, 0.2, 0.3])
    >>> [round(float(rate), 1) for rate in members.hparams["learning_rate"]]
    [0.1, 0.1, 0.2, 0.2, 0.3, 0.3]
    """
    for name, each in {**hparams, "seeds": seeds}.items():
        if not len(each):
            raise ValueError(f"`{name}` must hold at least one value, got {each!r}.")
    rows = list(itertools.product(*hparams.values(), seeds))
    *values, numbers = zip(*rows, strict=True)
    named = {name: traced(name, column) for name, column in zip(hparams, values, strict=True)}
    named["seed"] = _seeds(numbers)
    return Member(jax.vmap(jax.random.key)(named["seed"]), named)


def _seeds(numbers: Sequence[Any]) -> Array:
    """Seeds as one array that holds them all; seeds whose keys `jax.random.key` would make the same are refused."""
    if not all(isinstance(each, int | np.integer) and not isinstance(each, bool) for each in numbers):
        raise ValueError(f"`seeds` must be integers, got {_listed(numbers)}. Use seeds=range(4).")
    least, most = min(map(int, numbers)), max(map(int, numbers))
    kinds = (np.int64,) if jnp.asarray(0).dtype == np.int64 else (np.int32, np.uint32)
    for kind in kinds:
        if np.iinfo(kind).min <= least and most <= np.iinfo(kind).max:
            return jnp.asarray(np.array(numbers, kind))
    raise ValueError(
        f"`seeds` must fit {' or '.join(np.dtype(kind).name for kind in kinds)}, got {_listed(numbers)}: of others "
        "`jax.random.key` makes the same keys, or none. Take seeds from 0 to 2^32 - 1."
    )


def _listed(numbers: Sequence[Any]) -> str:
    """The first few of them."""
    return ", ".join(reprlib.repr(each) for each in numbers[:4]) + (", ..." if len(numbers) > 4 else "")


def pad(members: PyTree, multiple: int | np.integer) -> PyTree:
    """Copies of the last member appended until their number is a multiple of `multiple`, a positive integer.

    `population` does so by itself for the devices of a mesh; done beforehand, states can stay on their devices from
    call to call. The caller drops the copies.

    Args:
        members: a pytree with a leading axis of one length on every leaf.
        multiple: a positive integer.

    Returns:
        The same pytree, with a longer leading axis where the number was no multiple.

    Raises:
        ValueError: `multiple` is no positive integer.

    >>> pad(grid(seeds=[1, 2, 3]), 2).hparams["seed"].tolist()
    [1, 2, 3, 3]
    """
    multiple = check_count("multiple", multiple, remedy="Give the number of devices.")

    def padded(leaf: Array) -> Array:
        size = leaf.shape[0]
        return leaf[jnp.minimum(jnp.arange(size + -size % multiple), size - 1)] if size % multiple else leaf

    return jax.tree.map(padded, members)


def population(
    run: Callable[..., Any],
    members: PyTree,
    *shared: PyTree,
    mesh: Mesh | None = None,
    at_once: int | np.integer | None = None,
) -> Any:
    """`run` on every member at once: [run(member, *shared) for member in members], stacked.

    On a mesh no member ever waits for another: each device runs its share by itself. That holds for the cores of a CPU
    too, where it is about twice as fast as one device of as many threads (`scripts/bench_training.py`); jax makes each
    core a device where the environment says JAX_NUM_CPU_DEVICES.

    Args:
        run: a pure function of one member (a `Member`, a `State`, any pytree) and of what they share.
        members: the same with a leading axis on every leaf.
        *shared: further arguments of `run`, the same for all members, such as the data. On a mesh, give arrays that
            are spread or copied over devices here rather than close over them.
        mesh: spread the members over its first axis; a number that does not divide is padded with copies of the last
            member, and the copies are dropped.
        at_once: at most so many members of a device side by side, the others after them in the same program: what `run`
            holds in between, such as hidden states, is then held for so many. Static. Stretches are as even as can be,
            so that few copies of the last member fill up the last one; callbacks of `run` are called once a stretch.
            All of them if None.

    Returns:
        The results with a leading axis of members.

    Raises:
        ValueError: if the leaves' leading axes differ or are empty, or `at_once` is not a positive integer.

    >>> population(lambda member: member.hparams["seed"] * 10, grid(seeds=[1, 2])).tolist()
    [10, 20]
    """
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(members)}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        raise ValueError(
            f"`members` must have one leading axis of at least one member on every leaf, got lengths {sorted(sizes)}."
        )
    if at_once is not None:
        at_once = check_count("at_once", at_once, remedy="Use at_once=None for all members at once.")
    many = partial(_in_stretches, run, at_once)
    if mesh is None:
        return many(members, *shared)
    ((size,),) = sizes
    members = pad(members, mesh.shape[mesh.axis_names[0]])
    rows = PartitionSpec(mesh.axis_names[0])
    # shard_map, not a sharding constraint: the partitioner would be free to move members between devices.
    # check_vma=False: `run` may hold loops whose carry starts as a constant, which the check refuses (jax 0.10.2).
    specs = (rows, *[PartitionSpec()] * len(shared))
    spread = jax.shard_map(many, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    results = spread(members, *shared)
    return results if size % mesh.size == 0 else jax.tree.map(lambda leaf: leaf[:size], results)


def _in_stretches(run: Callable[..., Any], at_once: int | None, members: PyTree, *shared: PyTree) -> Any:
    """`run` on the members of one device, at most `at_once` of them side by side."""
    many = jax.vmap(run, in_axes=(0, *[None] * len(shared)))
    size = len(jax.tree.leaves(members)[0])
    if at_once is None or at_once >= size:
        return many(members, *shared)
    num_stretches = -(-size // at_once)
    # One body for all: a last stretch of its own length would be compiled a second time.
    split = lambda leaf: pad(leaf, num_stretches).reshape(num_stretches, -1, *leaf.shape[1:])  # noqa: E731
    results = jax.lax.map(lambda stretch: many(stretch, *shared), jax.tree.map(split, members))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], results)
