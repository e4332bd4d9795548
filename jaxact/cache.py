"""Where programs of this project keep what they compile."""

import contextlib
import os
from pathlib import Path


def use_compilation_cache() -> None:
    """Let JAX keep what it compiles between processes; jax reads the variable when it is first imported.

    For programs alone: importing the library changes no setting.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home, or a read-only one: compile each time
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxact" / "xla"
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
            # Dozens of small programs stay below the default of one second each.
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
