"""What a bound asks of the linear maps of a program: products, with A^T and with |A| too, and norms."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.lipschitz._norms import dense_norm
from jaxact.trace import Affine, Dense, Diagonal, Identity, Linear, Operator

_MATERIALIZE = 2**22  # entries up to which a map known by its products is written out as a matrix


def written(operator: Operator) -> Operator:
    """On the host in float64, and as a matrix unless that would be too large."""
    match operator:
        case Dense(matrix):
            return Dense(np.asarray(matrix, np.float64))
        case Diagonal(d):
            return Diagonal(np.asarray(d, np.float64))
        case Linear() if operator.shape[0] * operator.shape[1] <= _MATERIALIZE:
            return _Written(operator.dense(), operator)
    return operator


@dataclass(frozen=True, eq=False)
class _Written(Dense):
    """A map known by its products, written out, that keeps its own bound on the norm."""

    origin: Linear | None = None


def norm(operator: Operator) -> float:
    """An upper bound on ||A||_2."""
    match operator:
        case Identity():
            return 1.0
        case Diagonal(d):
            return float(np.max(np.abs(d), initial=0.0))
        case Linear():
            return operator.norm
        case _Written(origin=origin) if origin is not None:
            return min(dense_norm(operator.matrix), origin.norm)
    return dense_norm(operator.dense())


def magnitude(operator: Operator, X: np.ndarray) -> np.ndarray:
    """At least |A| X for X [in, k] >= 0: by the norm where |A| is not known."""
    match operator:
        case Identity():
            return X
        case Diagonal(d):
            return np.abs(d)[:, None] * X
        case Dense(matrix):
            return np.abs(matrix) @ X
        case Linear(absolute_fn=fn) if fn is not None:
            with jax.enable_x64(True):
                return np.asarray(jax.vmap(fn, in_axes=1, out_axes=1)(jnp.asarray(X)))
    return np.broadcast_to(norm(operator) * np.linalg.norm(X, axis=0), (operator.shape[0], X.shape[1]))


def magnitude_of(step: Affine, columns: Mapping[int, np.ndarray]) -> np.ndarray:
    """At least sum_k |A_k| X_k for X [size, k] >= 0 of each variable."""
    return total(magnitude(operator, columns[source]) for source, operator in step.terms)


def fan_in(step: Affine) -> int:
    """How many products make up an entry at most."""
    return sum(operator.shape[1] for _, operator in step.terms)


def total(parts: Iterable[np.ndarray]) -> np.ndarray:
    """The sum of one or more arrays."""
    return functools.reduce(np.add, parts)


def times(operator: Operator, X: np.ndarray) -> np.ndarray:
    """A X, in float64 whatever jax is set to."""
    if isinstance(operator, Linear):
        with jax.enable_x64(True):
            return np.asarray(_product(operator, X))
    return operator.matmul(X)


def transposed_times(operator: Operator, X: np.ndarray) -> np.ndarray:
    """A^T X, likewise."""
    match operator:
        case Identity() | Diagonal():
            return operator.matmul(X)
        case Linear():
            with jax.enable_x64(True):
                return np.asarray(_transposed_product(operator, X))
    return operator.matrix.T @ X


@jax.jit
def _product(operator: Linear, X: Any) -> Any:
    return operator.matmul(X)


@jax.jit
def _transposed_product(operator: Linear, X: Any) -> Any:
    return jax.vmap(operator.transpose, in_axes=1, out_axes=1)(X)
