"""Inputs as theory pictures a batch: normal numbers of its mean, second moment and correlations alone."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


def probes(batch: Any, key: Any) -> Any:
    """Normal inputs of the shapes of a batch.

    With x_bpf of input b, position p and feature f

        m + a u_pf + b v_bf + c w_bpf

    whose mean, second moment, mean product of one entry of two inputs, and of one feature at two positions are those of
    the batch. What is no floating-point number, a token for one, stays as it is.
    """
    leaves, tree = jax.tree.flatten(batch)
    numbers = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    return jax.tree.unflatten(tree, [_like(leaf, numbers) for leaf in leaves])


def _like(leaf: Any, numbers: np.random.Generator) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    num_features = leaf.shape[-1] if leaf.ndim > 1 else 1
    positions = max(math.prod(leaf.shape[1:-1]), 1)
    x = np.asarray(leaf, np.float64).reshape(leaf.shape[0], positions, num_features)
    of_inputs, of_positions = (_covariance(x, axis) for axis in (0, 1))
    common = max(of_inputs + of_positions, 1e-30)
    variance = float(np.var(x))
    fits = min(1.0, variance / common)
    parts = {
        (0,): fits * of_inputs,
        (1,): fits * of_positions,
        (): variance - fits * (of_inputs + of_positions),
    }
    new = np.full(x.shape, x.mean())
    for axes, square in parts.items():
        shape = tuple(1 if axis in axes else length for axis, length in enumerate(x.shape))
        new = new + math.sqrt(max(square, 0.0)) * numbers.standard_normal(shape)
    second = np.mean(new**2)
    new = new * np.sqrt(np.mean(x**2) / second) if second > 0 else new
    return jnp.asarray(new.reshape(leaf.shape), leaf.dtype)


def _covariance(x: Float[np.ndarray, "input position feature"], axis: int) -> float:
    """Of two different places along an axis, at the same place of the others; at least 0."""
    count = x.shape[axis]
    if count == 1:
        return 0.0
    products = (x.sum(axis) ** 2 - (x**2).sum(axis)) / (count * (count - 1))
    return max(float(products.mean() - x.mean() ** 2), 0.0)
