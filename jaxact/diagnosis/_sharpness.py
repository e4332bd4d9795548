"""The largest eigenvalue of a loss's Hessian, by Lanczos' method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

_STEPS = (
    12  # each costs two or three gradient steps; the largest eigenvalue is known to a few per cent after ten
)


class Sharpness(NamedTuple):
    """What a step of gradient descent meets.

    Attributes:
        largest: eigenvalue of the Hessian; an estimate from below.
        error: a true eigenvalue lies within this of it.
        shares: of the square of its eigenvector, for each leaf of the parameters.
        updates: root mean square of the gradient over that of the parameters, for each leaf.
    """

    largest: float
    error: float
    shares: tuple[float, ...]
    updates: tuple[float, ...]


def sharpness(loss: Callable[[Any], Any], params: Any, num_steps: int = _STEPS) -> Sharpness:
    """Estimate the largest eigenvalue of the Hessian of a loss.

    Lanczos' method with full reorthogonalisation from a random direction: H Q = Q T + beta q e^T, and the largest
    eigenvalue of T with its vector s is at most that of H, and within beta |s_last| of some eigenvalue.

    Args:
        loss: params -> scalar.
        params: pytree of floating-point arrays; others are held fixed.
        num_steps: products with the Hessian, at most.

    Example:
        >>> found = sharpness(lambda w: 2 * w[0] ** 2 + w[1] ** 2, jnp.ones(2))
        >>> round(found.largest, 4)
        4.0
    """
    leaves, tree = jax.tree.flatten(params)
    moved = [k for k, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    flat, unravel = ravel_pytree([leaves[k].astype(jnp.float32) for k in moved])

    def objective(flat: Any) -> Any:
        given = list(leaves)
        for k, leaf in zip(moved, unravel(flat), strict=True):
            given[k] = leaf.astype(leaves[k].dtype)
        return loss(jax.tree.unflatten(tree, given)).astype(jnp.float32)

    gradient = jax.jit(jax.grad(objective))(flat)
    product = jax.jit(lambda v: jax.jvp(jax.grad(objective), (flat,), (v,))[1])
    largest, error, vector = _lanczos(product, flat.size, min(num_steps, flat.size))
    return Sharpness(
        largest,
        error,
        _by_leaf(unravel, moved, len(leaves), vector, lambda v, _: float(np.sum(v**2))),
        _by_leaf(unravel, moved, len(leaves), np.asarray(gradient), _relative, np.asarray(flat)),
    )


def _lanczos(product: Callable[[Any], Any], size: int, num_steps: int) -> tuple[float, float, np.ndarray]:
    """(the largest eigenvalue of T, its residual, its vector); the loop is Python's, one product a turn."""
    q = np.random.default_rng(0).standard_normal(size)
    basis, diagonal, off = [q / np.linalg.norm(q)], [], []
    for _ in range(num_steps):
        w = np.asarray(product(jnp.asarray(basis[-1], jnp.float32)), np.float64)
        diagonal.append(float(w @ basis[-1]))
        for _ in range(2):  # once more, for what rounding left
            w = w - np.stack(basis).T @ (np.stack(basis) @ w)
        off.append(float(np.linalg.norm(w)))
        if not off[-1] > 1e-6 * max(map(abs, diagonal)):
            break
        basis.append(w / off[-1])
    if not np.isfinite(diagonal).all():
        return float("nan"), float("nan"), basis[0]
    T = np.diag(diagonal) + np.diag(off[: len(diagonal) - 1], 1) + np.diag(off[: len(diagonal) - 1], -1)
    values, vectors = np.linalg.eigh(T)
    vector = vectors[:, -1] @ np.stack(basis[: len(diagonal)])
    return float(values[-1]), float(off[-1] * abs(vectors[-1, -1])), vector


def _relative(gradient: np.ndarray, leaf: np.ndarray) -> float:
    size = float(np.sqrt(np.mean(leaf**2)))
    return float(np.sqrt(np.mean(gradient**2))) / size if size > 0 else float("inf")


def _by_leaf(
    unravel: Any, moved: list[int], count: int, flat: np.ndarray, measure: Any, beside: Any = None
) -> tuple[float, ...]:
    found = [float("nan")] * count
    parts = unravel(jnp.asarray(flat, jnp.float32))
    others = parts if beside is None else unravel(jnp.asarray(beside, jnp.float32))
    for k, part, other in zip(moved, parts, others, strict=True):
        found[k] = measure(np.asarray(part, np.float64), np.asarray(other, np.float64))
    return tuple(found)
