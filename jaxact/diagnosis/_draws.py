"""Fresh numbers for the weights of products, written to the entries of the parameters that they are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.diagnosis._entries import Weight
from jaxact.theory import initializers


class Entries:
    """All floating-point parameters as one vector, with the leaves that its entries lie in.

    `law` is the same with drawn entries of either sign and one size: a weight has the moments there of the law that it
    was drawn by, which is what theory reads. In a draw a preactivation's mean over n units is of order n^-1/2.
    """

    def __init__(self, leaves: Sequence[Any]):
        self.leaves = list(leaves)
        self.is_real = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
        sizes = [leaf.size if real else 0 for leaf, real in zip(leaves, self.is_real, strict=True)]
        self.ends = np.cumsum([0, *sizes])
        real = [
            np.asarray(leaf, np.float64).reshape(-1)
            for leaf, r in zip(leaves, self.is_real, strict=True)
            if r
        ]
        self.values = np.concatenate([*real, np.zeros(0)])
        self.law = self.values.copy()
        self.is_changed = np.zeros(self.values.size, bool)

    def numbers(self) -> list[Any]:
        """The number of every entry, in the shape of its leaf; None for leaves of another kind."""
        kind = np.int32 if self.values.size < 2**31 else np.int64
        return [
            np.arange(start, start + leaf.size, dtype=kind).reshape(leaf.shape) if real else None
            for leaf, real, start in zip(self.leaves, self.is_real, self.ends, strict=False)
        ]

    def current(self, *, is_law: bool = False) -> list[Any]:
        """The leaves, those that were changed in the dtype that they had."""
        values = self.law if is_law else self.values
        result = []
        for k, leaf in enumerate(self.leaves):
            place = slice(self.ends[k], self.ends[k + 1])
            if not self.is_changed[place].any():
                result.append(leaf)
                continue
            new = values[place].reshape(leaf.shape).astype(leaf.dtype)
            kept = self.is_changed[place].reshape(leaf.shape)
            result.append(jnp.asarray(np.where(kept, new, np.asarray(leaf))))
        return result

    def write(self, entries: np.ndarray, values: Any) -> None:
        """Write numbers to entries; those numbered -1 are none."""
        own = entries >= 0
        drawn = np.broadcast_to(values, entries.shape)[own]
        self.values[entries[own]] = drawn
        self.law[entries[own]] = np.sqrt(np.mean(drawn**2)) * (1 - 2 * (np.arange(drawn.size) % 2))
        self.is_changed[entries[own]] = True

    def scale(self, entries: np.ndarray, factor: float) -> None:
        """Multiply entries, each once."""
        own = np.unique(entries[entries >= 0])
        self.values[own] *= factor
        self.law[own] *= factor
        self.is_changed[own] = True


def drawn(key: Any, weight: Weight, kind: str) -> np.ndarray:
    """Random numbers in the shape of a weight, each matrix of mean square 1 / fan-in, exactly."""
    num_matrices, fan_in, out = weight.entries.shape
    shape = (*weight.receptive, fan_in // max(math.prod(weight.receptive), 1), out)
    init = _initializer(kind, shape)
    keys = jax.random.split(key, num_matrices)
    matrices = np.stack([np.asarray(init(each, shape, jnp.float32), np.float64) for each in keys])
    matrices = matrices.reshape(weight.entries.shape)
    return matrices / np.sqrt(fan_in * np.mean(matrices**2, (1, 2), keepdims=True))


def _initializer(kind: str, shape: tuple[int, ...]) -> Any:
    if kind == "gaussian":
        return initializers.gaussian(1.0)
    if kind == "delta_orthogonal" and len(shape) > 2 and shape[-1] >= shape[-2]:
        return initializers.delta_orthogonal(1.0)
    return initializers.orthogonal(1.0)
