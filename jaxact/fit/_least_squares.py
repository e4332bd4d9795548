"""Nonlinear least squares for small problems: Levenberg and Marquardt's descent as a loop in the program."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxact.numerics import check_count, real_floating


class LeastSquares(NamedTuple):
    """Where a descent on mean r(p)^2 ended.

    Attributes:
        params: p.
        residual: r(p), not finite where it was not at the start and no step made it so.
        errors: mean r^2 at the start and after each step; never rises. Infinite where a square overflows.
    """

    params: Float[Array, " param"]
    residual: Float[Array, " row"]
    errors: Float[Array, " num_steps_and_one"]


def least_squares(
    linearized: Callable[[Array], tuple[Array, Array]],
    start: Float[Array, " param"],
    *,
    num_steps: int | np.integer,
) -> LeastSquares:
    """Minimise mean r(p)^2 from one start: a local minimum.

    A step solves (J^T J + mu D) change = J^T r, in the smaller of its two forms, rows or parameters. D is the largest
    diag(J^T J) so far: with that of the moment a parameter that hardly counts there is sent far off, and the descent
    stalls (More 1978). A step that does not lower the error, or makes it NaN, is not taken, and mu grows fourfold; else
    it shrinks. To be vmapped over starts. Memory is that of J.

    J is given, not taken by autodiff of r as a whole: where a row depends on one point alone that is a pass over all
    points for every row, six times slower for a physics-informed network of 361 parameters (optimistix 0.1.0 found the
    same errors in 148 s where this takes 24).

    Args:
        linearized: p -> (r, J), the residual [row] and its Jacobian [row, param].
        start: p before the first step; real floating.
        num_steps: static; 0 only looks at the start.

    Returns:
        The `LeastSquares` after the last step.

    Raises:
        TypeError: `start` is not real floating-point.
        ValueError: `num_steps` is no integer of at least 0.

    References:
        Levenberg, Q. Appl. Math. 2, 1944; Marquardt, J. SIAM 11, 1963, eqs. (12) and (27); More, Lecture Notes in
        Mathematics 630, 1978, sec. 6.

    >>> linearized = lambda p: (jnp.array([p[0] - 2, 10 * (p[1] - p[0] ** 2)]), jnp.array([[1, 0], [-20 * p[0], 10]]))
    >>> [round(float(p), 3) for p in least_squares(linearized, jnp.array([-1.0, 0.0]), num_steps=40).params]
    [2.0, 4.0]
    """
    num_steps = check_count("num_steps", num_steps, 0)
    start = real_floating("start", start)
    least = jnp.finfo(start.dtype).eps  # below, rounding decides

    def step(carry: tuple, is_start: Array) -> tuple[tuple, Array]:
        params, residual, jacobian, error, damping, scale = carry
        scale = jnp.maximum(scale, jnp.linalg.norm(jacobian, axis=0))
        moved = params - _change(residual, jacobian, damping, scale)
        residual_there, jacobian_there = linearized(moved)
        new = moved, residual_there, jacobian_there, jnp.mean(residual_there**2)
        is_better = new[-1] < error
        is_taken = is_better | is_start  # the start stays what it is, though its error be NaN or infinite
        kept = jax.tree.map(lambda a, b: jnp.where(is_taken, a, b), new, (params, residual, jacobian, error))
        damping = jnp.clip(damping * jnp.where(is_better, 0.25, 4.0), least, 1 / least)
        return (*kept, damping, scale), kept[-1]

    # From zeros the first step does not move: so what is linearized is compiled once, within the loop.
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(linearized, start))
    infinite, damping = jnp.asarray(jnp.inf, start.dtype), jnp.asarray(1e-2, start.dtype)
    # A parameter without effect keeps this scale, its column of zeros, and its place.
    scale = jnp.full_like(start, jnp.finfo(start.dtype).tiny ** 0.25)
    first = start, *zeros, infinite, damping, scale
    (params, residual, *_), errors = jax.lax.scan(step, first, jnp.arange(num_steps + 1) == 0)
    return LeastSquares(params, residual, errors)


def _change(residual: Array, jacobian: Array, damping: Array, scale: Array) -> Array:
    J = jacobian / scale
    num_rows, num_params = J.shape
    if num_params <= num_rows:
        return _solved(J.T @ J, damping, J.T @ residual) / scale
    return J.T @ _solved(J @ J.T, damping, residual) / scale


def _solved(matrix: Array, damping: Array, right: Array) -> Array:
    """(M + mu 1)^-1 r for M not negative; NaN where rounding makes M + mu 1 so."""
    damped = matrix + damping * jnp.eye(len(matrix), dtype=matrix.dtype)
    return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(damped), right)
