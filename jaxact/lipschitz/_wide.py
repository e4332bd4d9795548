"""NumPy arrays of 64 bits that a function closes over, which JAX remembers in the width that it met them in first.

JAX keeps what it makes of a NumPy array, float32 or float64, for as long as a compiled function or a jaxpr holds it,
and does not look whether float64 is still enabled. A certificate enables it for a while: what ran in float32 before
would fail then, and fail afterwards.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

_MISMATCHES = ("RuntimeProgramInputMismatch", "verifier errors", "to have the same dtypes")
T = TypeVar("T")


def run_again(call: Callable[[], T]) -> T:
    """The result of a call, once more without JAX's caches where they hold an array in the other width."""
    try:
        return call()
    except (jax.errors.JaxRuntimeError, TypeError, ValueError) as error:
        if not any(sign in str(error) for sign in _MISMATCHES):
            raise
    jax.clear_caches()
    return call()


def wide_constants(closed: Any) -> list[weakref.ref]:
    """What JAX made of 64-bit NumPy arrays in a closed jaxpr, calls and loops included."""
    return [
        weakref.ref(c) for c in _constants(closed) if type(c).__name__ == "TypedNdArray" and c.itemsize == 8
    ]


def forget(constants: Sequence[weakref.ref]) -> None:
    """Have JAX forget them if it still holds one of an array that others may use: an array made on the way has gone."""
    if any(map(_is_in_use, constants)):
        gc.collect()
        if any(map(_is_in_use, constants)):
            jax.clear_caches()


def _is_in_use(constant: weakref.ref) -> bool:
    array = constant()
    return array is not None and array.base is not None and sys.getrefcount(array.base) > 2


def inner_jaxprs(eqn: Any) -> list[Any]:
    """Those of an equation's calls, loops and branches, closed or not."""
    found = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    return [each for each in found if hasattr(each, "eqns")]


def _constants(closed: Any) -> Iterator[Any]:
    yield from closed.consts
    for eqn in closed.jaxpr.eqns:
        yield from (
            atom.val for atom in eqn.invars if hasattr(atom, "val") and isinstance(atom.val, np.ndarray)
        )
        for inner in inner_jaxprs(eqn):
            if hasattr(inner, "consts") and hasattr(inner, "jaxpr"):
                yield from _constants(inner)
