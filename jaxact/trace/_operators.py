"""The linear operators that a program's affine steps are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@dataclass(frozen=True, eq=False)
class Dense:
    """The matrix [out, in], float64."""

    matrix: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    def matmul(self, X: Any) -> Any:
        """A X for X [in, k]."""
        return self.matrix @ X

    def dense(self) -> Float[np.ndarray, "out in"]:
        """The matrix itself, on the host."""
        return np.asarray(self.matrix)


@dataclass(frozen=True)
class Identity:
    """The identity on `size` entries."""

    size: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    def matmul(self, X: Any) -> Any:
        """X, [size, k]."""
        return X

    def dense(self) -> Float[np.ndarray, "size size"]:
        """The matrix itself."""
        return np.eye(self.size)


@dataclass(frozen=True, eq=False)
class Diagonal:
    """The square matrix with diagonal `d` [size], float64."""

    d: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.d.shape[0], self.d.shape[0]

    def matmul(self, X: Any) -> Any:
        """diag(d) X for X [size, k]."""
        return self.d[:, None] * X

    def dense(self) -> Float[np.ndarray, "size size"]:
        """The matrix itself."""
        return np.diag(np.asarray(self.d))


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Linear:
    """A linear map known by its products.

    Attributes:
        fn: v [in] -> A v [out]; JAX code that is traced under vmap, in float64.
        transpose: u [out] -> A^T u [in], likewise.
        shape: (out, in).
        norm_bound: an upper bound on ||A||_2, or a function of no arguments that finds one when it is asked for.
        absolute_fn: v [in] -> |A| v [out] for v >= 0 (|A| entrywise), if known: a convolution with |kernel|. Without
            it intervals go through the norm, where the matrix is too large to be written out.
    """

    fn: Callable[[Array], Array]
    transpose: Callable[[Array], Array]
    shape: tuple[int, int]
    norm_bound: float | Callable[[], float]
    absolute_fn: Callable[[Array], Array] | None = None

    def matmul(self, X: Any) -> Any:
        """A X for X [in, k]."""
        return jax.vmap(self.fn, in_axes=1, out_axes=1)(X)

    def dense(self) -> Float[np.ndarray, "out in"]:
        """The matrix, by one product for each column."""
        with jax.enable_x64(True):
            return np.asarray(jax.jit(self.matmul)(jnp.eye(self.shape[1], dtype=jnp.float64)))

    @cached_property
    def norm(self) -> float:
        """The upper bound on ||A||_2."""
        return float(self.norm_bound() if callable(self.norm_bound) else self.norm_bound)


Operator: TypeAlias = Dense | Identity | Diagonal | Linear


def matvec(operator: Operator, v: np.ndarray) -> np.ndarray:
    """A v for v [in], in float64 whatever jax is set to.

    Args:
        operator: A.
        v: [in].
    """
    if isinstance(operator, Linear):
        with jax.enable_x64(True):
            return np.asarray(operator.fn(jnp.asarray(v)), np.float64)
    return np.asarray(operator.matmul(v[:, None]))[:, 0]
