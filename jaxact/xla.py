"""How XLA compiles for a CPU: fast where little is run, well where much is."""

import os
from typing import Any

_LEVEL, _EMITTERS = "xla_backend_optimization_level", "xla_cpu_use_fusion_emitters"
_PARTS = "xla_cpu_parallel_codegen_split_count"


def options(level: int, *, is_fused_anew: bool = False) -> dict[str, Any]:
    """Options for `jax.jit(..., compiler_options=...)`: LLVM's level, and which of XLA's two ways to emit a fusion.

    At level 0 a third of the processor time is gone; programs run a few times slower. The older emitters take another
    third, and what they emit runs as fast, but for long loops with batch norms (8 to 14 % slower, jaxlib 0.10.2): ask
    for the new ones there, by `is_fused_anew`. Other backends take no notice.

    Args:
        level: of LLVM's optimisation, 0 to 3.
        is_fused_anew: whether fusions are emitted in the newer way.

    Returns:
        A dictionary of the options that this jaxlib has.
    """
    return {_LEVEL: level, **({_EMITTERS: is_fused_anew} if _has_emitters() else {})}


def compile_fast(level: int | None = None) -> None:
    """Let this process and those it starts use the older emitters, and a level of LLVM; before jax first compiles.

    For programs alone, which compile much: importing the library changes no setting. What XLA_FLAGS says stands.

    Args:
        level: 0 where little is computed; None for XLA's own, 3.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    fast = options(level or 0)
    if level is None:
        del fast[_LEVEL]
    elif _has_emitters():
        fast[_PARTS] = 1  # small programs: to cut them for several threads takes more than it saves
    added = [f"--{name}={str(value).lower()}" for name, value in fast.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *added]).strip()


def is_level_given() -> bool:
    """Whether XLA_FLAGS names LLVM's level, for every program of this process."""
    return _LEVEL in os.environ.get("XLA_FLAGS", "")


def _has_emitters() -> bool:
    import importlib.metadata  # takes a while

    # A flag that XLA does not know ends the process, so only releases that were tried are asked.
    return importlib.metadata.version("jaxlib").startswith("0.10.")
