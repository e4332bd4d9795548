"""What a study's programs run on: all devices of this process, and how XLA compiles for them."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

_LEVEL = "xla_backend_optimization_level"


def mesh(num_members: int) -> Any:
    """Choose the devices to spread members over: the fewest that leave none with more members than need be.

    Args:
        num_members: how many runs a program holds side by side.

    Returns:
        A `jax.sharding.Mesh` with the one axis "members"; None where one device is all there is, or all it needs.
    """
    import jax

    devices = jax.local_devices()
    a_device = -(-num_members // len(devices))
    used = devices[: -(-num_members // a_device)]
    return jax.sharding.Mesh(np.array(used), ("members",)) if len(used) > 1 else None


def compile_fast() -> None:
    """Let this process and those it starts compile fast rather than well; before jax first compiles, or too late.

    For a smoke run, which compiles much and computes little: LLVM's level 0 takes a third off its time.
    """
    if _LEVEL not in (flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{flags} --{_LEVEL}=0".strip()


def compiler_options() -> dict[str, Any]:
    """Options of XLA for a study's programs, for `jax.jit(..., compiler_options=...)`.

    On a CPU LLVM's level 2, which compiles up to twice as fast as 3 to programs of the same speed, unless XLA_FLAGS
    names a level.
    """
    import jax

    is_free = _LEVEL not in os.environ.get("XLA_FLAGS", "")
    return {_LEVEL: 2} if is_free and jax.default_backend() == "cpu" else {}


def described() -> str:
    """Say how many devices of what kind this process has."""
    import jax

    devices = jax.devices()
    is_cpu = devices[0].platform == "cpu"
    kind = f"{os.cpu_count()} cores, {platform.machine()}" if is_cpu else devices[0].device_kind
    return f"{len(devices)} x {devices[0].platform} ({kind})"
