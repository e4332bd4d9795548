"""Separable least squares: parameters that enter linearly are solved for, the others descended on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxact.fit._least_squares import least_squares


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

    Variable projection: c = Phi(p)^+ y at every p, and a descent on p by `least_squares` with the Jacobian
    (1 - Phi Phi^+) (dPhi/dp) c (Kaufman 1975, which leaves out a term that vanishes with the residual). To be vmapped
    over starts; float64 where the error matters below 1e-10 of the data's variance.

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

    def linearized(params: Array) -> tuple[Array, Array]:
        Q, fit = _projected(basis, y, params)
        J = jax.jacfwd(basis)(params).swapaxes(1, 2) @ fit.coefficients
        return fit.fitted - y, J - Q @ (Q.T @ J)

    return _projected(basis, y, least_squares(linearized, start, num_steps=num_steps).params)[1]


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
