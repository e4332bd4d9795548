"""What a study's programs run on: the devices of all its processes, and how XLA compiles for them."""

from __future__ import annotations

import collections
import functools
import itertools
import os
import platform
from typing import Any

import numpy as np

from jaxact import xla
from train.config import ConfigError


def mesh(num_members: int) -> Any:
    """Choose the devices to spread members over: the fewest that leave none with more members than need be.

    Args:
        num_members: how many runs a program holds side by side.

    Returns:
        A `jax.sharding.Mesh` with the one axis "members"; None where one device is all there is, or all it needs. Of
        several processes each has a device in it.

    Raises:
        ConfigError: if there are more processes than members.
    """
    import jax

    if (num_processes := jax.process_count()) > num_members:
        raise ConfigError(
            f"{num_processes} processes are more than the {num_members} runs (seeds x hyperparameters) of a cell, "
            f"which are spread over them. Use --num-processes {num_members}, or more seeds."
        )
    # The first of each process, then the second of each, ...
    counts: dict[int, Any] = collections.defaultdict(itertools.count)
    devices = sorted(jax.devices(), key=lambda each: next(counts[each.process_index]))
    a_device = -(-num_members // len(devices))
    used = devices[: max(-(-num_members // a_device), num_processes)]
    return jax.sharding.Mesh(np.array(used), ("members",)) if len(used) > 1 else None


def on_host(tree: Any) -> Any:
    """A tree of arrays on this host, those that are spread over several hosts too; all processes must ask for it."""
    import jax

    spread = [each for each in jax.tree.leaves(tree) if not _is_here(each)]
    if not spread:
        return jax.device_get(tree)
    copied = iter(_copied(spread[0].sharding.mesh)(spread))
    return jax.device_get(jax.tree.map(lambda each: each if _is_here(each) else next(copied), tree))


def _is_here(leaf: Any) -> bool:
    import jax

    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated


@functools.cache
def _copied(mesh: Any) -> Any:
    """The program that copies arrays to all devices of a mesh."""
    import jax

    return jax.jit(
        lambda arrays: arrays, out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )


def compiler_options(*, is_long: bool = False) -> dict[str, Any]:
    """Options of XLA for a study's programs, for `jax.jit(..., compiler_options=...)`.

    On a CPU LLVM's level 2, which compiles up to twice as fast as 3 to programs of the same speed, and vectors of 512
    bits where the CPU has them (XLA takes 256): elementwise work, which is half of a training step of narrow networks,
    takes a quarter to a third less. Unless XLA_FLAGS names a level.

    Args:
        is_long: whether it runs so long that what it takes to compile it does not matter.
    """
    import jax

    if xla.is_level_given() or jax.default_backend() != "cpu":
        return {}
    return {**xla.options(2, is_fused_anew=is_long), "xla_cpu_prefer_vector_width": 512}


def described() -> str:
    """Say how many devices of what kind this process has."""
    import jax

    devices = jax.devices()
    is_cpu = devices[0].platform == "cpu"
    kind = f"{os.cpu_count()} cores, {platform.machine()}" if is_cpu else devices[0].device_kind
    return f"{len(devices)} x {devices[0].platform} ({kind})"
