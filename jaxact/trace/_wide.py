"""NumPy arrays of 64 bits that a function closes over, which JAX remembers in the width that it met them in first.

JAX keeps what it makes of a NumPy array, float32 or float64, for as long as a compiled function or a jaxpr holds it,
and does not look whether float64 is still enabled. A certificate enables it for a while: what ran in float32 before
would fail then, and fail afterwards.
"""

from __future__ import annotations

import gc
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np

from jaxact.numerics import inner_jaxprs

_MISMATCHES = ("RuntimeProgramInputMismatch", "verifier errors", "to have the same dtypes")
T = TypeVar("T")


@contextmanager
def _unasked() -> Iterator[None]:
    """Without the warning that float64 is stored in float32: nobody but a certificate asked for float64."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "scatter inputs have incompatible types", FutureWarning)
        yield


def run_again(call: Callable[[], T]) -> T:
    """Call a function, once more without JAX's caches where they hold an array in the other width.

    For what runs within `jax.enable_x64` and has run outside of it, or the other way round.

    Args:
        call: without arguments.

    Returns:
        Its result.

    Example:
        >>> run_again(lambda: 3)
        3
    """
    try:
        with _unasked():
            return call()
    except (jax.errors.JaxRuntimeError, TypeError, ValueError) as error:
        if not any(sign in str(error) for sign in _MISMATCHES):
            raise
    jax.clear_caches()
    with _unasked():
        return call()


def wide_constants(closed: Any) -> list[weakref.ref]:
    """What JAX made of 64-bit NumPy arrays in a closed jaxpr, calls and loops included."""
    return [
        weakref.ref(c) for c in _constants(closed) if type(c).__name__ == "TypedNdArray" and c.itemsize == 8
    ]


def forget(constants: Sequence[weakref.ref]) -> None:
    """Have JAX forget them if it still holds one of an array that others may use: an array made on the way has gone.

    Args:
        constants: weak references to the arrays.
    """
    if any(map(_is_in_use, constants)):
        gc.collect()
        if any(map(_is_in_use, constants)):
            jax.clear_caches()


def _is_in_use(constant: weakref.ref) -> bool:
    array = constant()
    return array is not None and array.base is not None and sys.getrefcount(array.base) > 2


def _constants(closed: Any) -> Iterator[Any]:
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        yield from (
            atom.val for atom in eqn.invars if hasattr(atom, "val") and isinstance(atom.val, np.ndarray)
        )
        for inner in inner_jaxprs(eqn):
            if hasattr(inner, "consts") and hasattr(inner, "jaxpr"):
                yield from _constants(inner)
