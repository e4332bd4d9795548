"""Where programs of this project keep what they make once for all processes."""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def use_compilation_cache() -> None:
    """Let JAX keep what it compiles between processes; jax reads the variable when it is first imported.

    For programs alone: importing the library changes no setting.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home, or a read-only one: compile each time
        cache = _folder() / "xla"
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
            # Dozens of small programs stay below the default of one second each.
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def kept(name: str, make: Callable[[], str]) -> str:
    """The text that `make` gives, from a file of the user's cache if it is there and whole; else it is put there.

    `name` tells it from every other text, and from what other versions make.

    Args:
        name: of the file; tells the text from every other, and from what other versions make.
        make: makes the text.

    Returns:
        The text.
    """
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        digest, _, text = (_folder() / name).read_text(encoding="utf-8").partition("\n")
        if digest == _digest(text):
            return text
    text = make()
    with contextlib.suppress(OSError, RuntimeError):
        _folder().mkdir(parents=True, exist_ok=True)
        draft = _folder() / f".{name}.{os.getpid()}"
        draft.write_text(f"{_digest(text)}\n{text}", encoding="utf-8")
        draft.replace(_folder() / name)
    return text


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxact"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
