"""Separable least squares: parameters that enter linearly are solved for, the others descended on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Separable(NamedTuple):
    """A fit Phi(p) c of data.

    Attributes:
        params: p.
        coefficients: c, the least-squares solution at p.
        fitted: Phi(p) c.
        error: mean squared residual.
    """

    params: Float[Array, " param"]
    coefficients: Float[Array, " column"]
    fitted: Float[Array, " point"]
    error: Float[Array, ""]


def separable_least_squares(
    basis: Callable[[Array], Array],
    y: Float[Array, " point"],
    start: Float[Array, " param"],
    *,
    num_steps: int,
) -> Separable:
    """Minimise mean (Phi(p) c - y)^2 over p and c, from one start: a local minimum.

    Variable projection: c = Phi(p)^+ y at every p, and Levenberg and Marquardt's descent on p with the Jacobian
    (1 - Phi Phi^+) (dPhi/dp) c (Kaufman 1975, which leaves out a term that vanishes with the residual). A step that
    does not lower the error, or makes it NaN, is not taken. To be vmapped over starts; float64 where the error matters
    below 1e-10 of the data's variance.

    Args:
        basis: p -> Phi, [point, column]; few columns, of full rank. Differentiated forward.
        y: data.
        start: p of the first step.
        num_steps: of the descent, static.

    Returns:
        The `Separable` fit after the last step.

    References:
        Golub & Pereyra, SIAM J. Numer. Anal. 10, 1973, eq. (4.9); Kaufman, BIT 15, 1975.

    >>> x = jnp.arange(4.0)
    >>> fit = separable_least_squares(lambda p: jnp.exp(p * x[:, None]), 3 * 2**x, jnp.array([0.5]), num_steps=20)
    >>> round(float(jnp.exp(fit.params[0])), 3), round(float(fit.coefficients[0]), 3)
    (2.0, 3.0)
    """

    def step(carry: tuple[Array, Separable, Array], _: None) -> tuple[tuple, None]:
        Q, fit, damping = carry
        J = jax.jacfwd(basis)(fit.params).swapaxes(1, 2) @ fit.coefficients
        J = J - Q @ (Q.T @ J)
        normal = J.T @ J
        scale = (
            jnp.diag(normal) + jnp.finfo(y.dtype).tiny ** 0.5
        )  # a parameter that does nothing stays where it is
        change = jnp.linalg.solve(normal + damping * jnp.diag(scale), J.T @ (fit.fitted - y))
        new = _projected(basis, y, fit.params - change)
        is_better = new[1].error < fit.error
        kept = jax.tree.map(lambda a, b: jnp.where(is_better, a, b), new, (Q, fit))
        return (*kept, jnp.clip(damping * jnp.where(is_better, 0.25, 4.0), 1e-12, 1e8)), None

    first = *_projected(basis, y, start), jnp.asarray(1e-2, y.dtype)
    (_, fit, _), _ = jax.lax.scan(step, first, None, length=num_steps)
    return fit


def _projected(basis: Callable[[Array], Array], y: Array, params: Array) -> tuple[Array, Separable]:
    """An orthonormal basis of Phi's columns, [point, column], and the least-squares fit."""
    Q, R = _orthonormal(basis(params))
    inner = Q.T @ y
    fitted = Q @ inner
    coefficients = jax.scipy.linalg.solve_triangular(R, inner)
    return Q, Separable(params, coefficients, fitted, jnp.mean((fitted - y) ** 2))


def _orthonormal(columns: Array) -> tuple[Array, Array]:
    """Q and R by modified Gram and Schmidt: vmapped, much faster than a call of LAPACK for every small matrix."""
    found, rows = [], []
    rest, num = columns, columns.shape[1]
    for place in range(num):
        length = jnp.linalg.norm(rest[:, place])
        unit = rest[:, place] / length
        row = (unit @ rest).at[:place].set(0).at[place].set(length)
        rest = rest - jnp.outer(unit, row)
        found.append(unit)
        rows.append(row)
    return jnp.stack(found, 1), jnp.stack(rows)
