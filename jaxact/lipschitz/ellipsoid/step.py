"""One step of the ellipsoid, affine, elementwise or contracting, each with its adjoint beside it.

With dv dv^T <= Q |dx|^2 for the difference dv of the variables in use, m, r the centre and half the width of the slopes
of y = f(z), E the rows of z, and any V > E Q E^T:

    affine        Q' = A Q A^T
    elementwise   Q' = M (Q + Q E^T (V - E Q E^T)^{-1} E Q) M^T + diag(0, r^2 V)    over (v, y), M = (1, m E)
    contraction   Q' = diag(Q / p, c^2 lambda_max(E Q E^T) / q I),  p + q = 1

What is about arrays alone takes `xp`, numpy or jax.numpy. Nothing here accounts for rounding: `proof` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxact.lipschitz._rounding import FLOOR, up
from jaxact.lipschitz.ellipsoid.layout import Layout
from jaxact.lipschitz.ellipsoid.maps import times, total, transposed_times
from jaxact.trace import Operator

# --- What is carried --------------------------------------------------------------------------------------------------


class Matrix(NamedTuple):
    """Q = 2^exponent X, exponent even."""

    X: np.ndarray
    exponent: int = 0

    def rescaled(self) -> Matrix:
        """With a mean diagonal of about 1; by a power of 2, exact but where it underflows."""
        mean = float(np.mean(np.diag(self.X))) if self.X.size else 0.0
        if not 0 < mean < math.inf:
            return self
        shift = 2 * round(math.log2(mean) / 2)
        return Matrix(np.ldexp(self.X, -shift), self.exponent + shift)

    def log(self, largest: float) -> float:
        """Log K, given the largest eigenvalue of X."""
        return 0.5 * (math.log(largest) + self.exponent * math.log(2)) if largest > 0 else -math.inf

    def radii(self, size: int) -> np.ndarray:
        """Sqrt of the last variable's diagonal, rounded up."""
        root = np.sqrt(np.maximum(np.diag(self.X)[len(self.X) - size :], 0)) * up(8)
        with np.errstate(over="ignore"):
            return np.ldexp(root, self.exponent // 2)


class Norms(NamedTuple):
    """||dv|| <= exp(log) |dx| for each variable in use."""

    logs: np.ndarray

    def radii(self, size: int) -> np.ndarray:
        """||dv|| of the last variable, rounded up."""
        with np.errstate(over="ignore"):
            return np.full(size, np.exp(self.logs[-1])) * (1 + 1e-13)


def leading(M: np.ndarray) -> tuple[float, np.ndarray]:
    """The largest eigenvalue and its vector, which may be held fixed: its change has no effect to first order."""
    n = M.shape[0]
    if not np.isfinite(M).all():
        return math.nan, np.full(n, math.nan)
    values, vectors = scipy.linalg.eigh(M, subset_by_index=[n - 1, n - 1], check_finite=False)
    return max(float(values[-1]), FLOOR), vectors[:, -1]


def joined(first: np.ndarray, below: np.ndarray | None, second: np.ndarray) -> np.ndarray:
    """[[first, below^T], [below, second]]; None for zeros."""
    k = first.shape[0]
    if k == 0:
        return second
    Y = np.zeros((k + second.shape[0],) * 2)
    Y[:k, :k], Y[k:, k:] = first, second
    if below is not None:
        Y[k:, :k], Y[:k, k:] = below, below.T
    return Y


# --- Affine -----------------------------------------------------------------------------------------------------------


def affine(state: Matrix, layout: Layout, operators: Sequence[Operator]) -> Matrix:
    """A Q A^T over what is kept and the new variable."""
    X, kept = state.X, layout.kept_rows()
    terms = [(operator, layout.rows(p)) for operator, p in zip(operators, layout.sources, strict=True)]
    rows = total(times(operator, X[place]) for operator, place in terms)
    shift = 0
    if kept.size == 0 and 0 < (largest := float(np.max(np.abs(rows), initial=0.0))) < math.inf:
        shift = 2 * round(math.log2(largest) / 2)  # squares of what is very small or large are out of range
        rows = np.ldexp(rows, -shift)
    corner = total(times(operator, rows[:, place].T) for operator, place in terms)
    return Matrix(joined(X[np.ix_(kept, kept)], rows[:, kept], corner), state.exponent + shift)


def affine_adjoint(g: np.ndarray, size: int, layout: Layout, operators: Sequence[Operator]) -> np.ndarray:
    """From the gradient by A X A^T to that by X [size, size]."""
    kept = layout.kept_rows()
    k = kept.size
    terms = [(operator, layout.rows(p)) for operator, p in zip(operators, layout.sources, strict=True)]
    g_rows, g_X = np.zeros((g.shape[0] - k, size)), np.zeros((size, size))
    for operator, place in terms:
        g_rows[:, place] += transposed_times(operator, g[k:, k:]).T
    g_rows[:, kept] += 2 * g[k:, :k]
    for operator, place in terms:
        g_X[place] += transposed_times(operator, g_rows)
    g_X = (g_X + g_X.T) / 2
    g_X[np.ix_(kept, kept)] += g[:k, :k]
    return g_X


# --- Elementwise ------------------------------------------------------------------------------------------------------


class Inflation(NamedTuple):
    """What an activation adds to Q before its slopes: C^T (V - Z)^{-1} C = half^T half.

    Attributes:
        root: T^1/2 [z], T = 1/V.
        matrix: I - T^1/2 Z T^1/2 [z, z].
        factor: L, its Cholesky factor.
        half: L^{-1} T^1/2 C [z, rows].
    """

    root: Any
    matrix: Any
    factor: Any
    half: Any

    def added(self) -> Any:
        """What is added."""
        return self.half.T @ self.half


def inflation(Z: Any, C: Any, T: Any, xp: Any = np) -> Inflation:
    """Of Z = E Q E^T [z, z] and the rows C = E Q [z, rows] of what it is added to, for 1/V = T [z].

    Raises:
        ArithmeticError: V - Z is not positive; of jax.numpy the result is NaN.
    """
    root = np.sqrt(T) if xp is np else _differentiable_root(T)
    matrix = xp.eye(Z.shape[0], dtype=Z.dtype) - root[:, None] * Z * root
    factor = _cholesky(matrix, xp)
    return Inflation(root, matrix, factor, _solved(factor, root[:, None] * C, xp))


def half_inflation(Z: np.ndarray, C: np.ndarray, V: float) -> np.ndarray:
    """`Inflation.half` of one V for all, which then needs no products with T.

    Raises:
        ArithmeticError: V - Z is not positive.
    """
    matrix = np.negative(Z)
    np.einsum("ii->i", matrix)[:] += V
    return _solved(_cholesky(matrix, np), C, np)


def _differentiable_root(T: Any) -> Any:
    """Whose gradient where T = 0 is 0, not NaN."""
    return jnp.where(T > 0, jnp.sqrt(jnp.where(T > 0, T, 1)), 0)


def _cholesky(M: Any, xp: Any) -> Any:
    if xp is not np:
        return xp.linalg.cholesky(M)
    # Symmetric: transposed it is in Fortran's order.
    factor, failed = scipy.linalg.lapack.dpotrf(M.T, lower=1, clean=0)
    if failed:
        raise ArithmeticError("The inequality of an activation could not be established in float64.")
    return factor


def _solved(factor: Any, B: Any, xp: Any) -> Any:
    if xp is not np:
        return jax.lax.linalg.triangular_solve(factor, B, left_side=True, lower=True)
    return scipy.linalg.blas.dtrsm(1.0, factor, B, lower=1) if B.size else B


def _solved_transposed(factor: np.ndarray, B: np.ndarray) -> np.ndarray:
    return scipy.linalg.blas.dtrsm(1.0, factor, B, lower=1, trans_a=1) if B.size else B


def sloped(P: Any, m: Any, noise: Any, xp: Any = np) -> Any:
    """diag(m) P diag(m) + diag(noise), the m of what is kept being 1."""
    return m[:, None] * P * m + xp.diag(noise)


def noise_of(r: Any, T: Any, xp: Any = np) -> Any:
    """r^2 V, 0 where r is."""
    return xp.where(T > 0, r**2 / xp.where(T > 0, T, 1), 0)


class Elementwise(NamedTuple):
    """An elementwise step over all rows in use, and what its adjoint needs of it."""

    made: Matrix
    layout: Layout
    m: np.ndarray
    r: np.ndarray
    T: np.ndarray
    PS: np.ndarray  # P M^T
    K: np.ndarray  # (V - Z)^{-1} C

    def adjoint(self, g: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
        """From the gradient by the result to those by X [size, size], by log T, by m and by r."""
        layout, m, r, T = self.layout, self.m, self.r, self.T
        z, kept = layout.read, layout.kept_rows()
        k = kept.size
        scale = np.concatenate([np.ones(k), m])
        along = np.diag(g)[k:]
        g_P = scale[:, None] * g * scale
        KG = self.K @ g_P
        # One after the other: the source may be among the kept.
        side = np.zeros((z.stop - z.start, size))
        side[:, kept] += g_P[k:, :k] + KG[:, :k]
        side[:, z] += g_P[k:, k:] / 2 + KG[:, k:]
        g_X = np.zeros((size, size))
        g_X[np.ix_(kept, kept)] += g_P[:k, :k]
        g_X[z] += side
        g_X[:, z] += side.T
        inner = KG @ self.K.T
        g_X[z, z] += inner
        V = np.where(T > 0, 1 / np.where(T > 0, T, 1.0), 0.0)
        # Of log T: through V in the inverse, and in what is added to the diagonal.
        g_T = V * (np.diag(inner) - along * r**2)
        return g_X, g_T, 2 * np.einsum("ij,ij->i", g[k:], self.PS[k:]), 2 * along * r * V


def elementwise(state: Matrix, layout: Layout, m: np.ndarray, r: np.ndarray, T: np.ndarray) -> Elementwise:
    """The step for slopes m +- r [z] and 1/V = T [z], 0 where r is; see `inflation` for what it raises."""
    X, z, kept = state.X, layout.read, layout.kept_rows()
    rows = np.concatenate([kept, np.arange(z.start, z.stop)])
    C = X[z][:, rows]
    inflated = inflation(X[z, z], C, T)
    K = inflated.root[:, None] * _solved_transposed(inflated.factor, inflated.half)
    P = X[np.ix_(rows, rows)] + inflated.added()
    scale = np.concatenate([np.ones(kept.size), m])
    noise = np.concatenate([np.zeros(kept.size), noise_of(r, T)])
    return Elementwise(Matrix(sloped(P, scale, noise), state.exponent), layout, m, r, T, P * scale, K)


# --- Contraction ------------------------------------------------------------------------------------------------------


def contraction(K: np.ndarray, size: int, a: float, b: float) -> np.ndarray:
    """diag(K / p, b^2 / q I) of what is kept, K with lambda_max(K) <= a^2, and |dv| <= b |dx| of `size` new entries.

    How both go together is not known: with shares p and q, p + q = 1, both hold at once.
    """
    p, q = shares(a, b)
    return joined(K / p, None, b**2 / q * np.eye(size))


def contraction_adjoint(
    g: np.ndarray, size: int, layout: Layout, constant: float, a: float, b: float, vector: np.ndarray
) -> np.ndarray:
    """The shares held fixed; `vector` is that of the largest eigenvalue of what is read."""
    p, q = shares(a, b)
    z, kept = layout.read, layout.kept_rows()
    k, g_X = kept.size, np.zeros((size, size))
    g_X[np.ix_(kept, kept)] = g[:k, :k] / p
    g_X[z, z] += constant**2 / q * np.trace(g[k:, k:]) * np.outer(vector, vector)
    return g_X


def shares(a: float, b: float) -> tuple[float, float]:
    """Shares p and q that make a^2 / p and b^2 / q equal, adding up to a little less than 1."""
    if min(a, b) <= 1e-12 * max(a, b):  # nothing of one of them to speak of
        return (1.0, 1.0) if min(a, b) == 0 else (1 - 1e-9, 1e-9) if a > b else (1e-9, 1 - 1e-9)
    return a / (a + b) / up(4), b / (a + b) / up(4)


# --- By norms ---------------------------------------------------------------------------------------------------------


def by_norms(state: Norms, layout: Layout, log_factors: np.ndarray) -> Norms:
    """Of a new variable of terms k_i v_i: log sum_i exp(log k_i + log |v_i|)."""
    terms = log_factors + state.logs[list(layout.sources)]
    return Norms(np.append(state.logs[list(layout.kept)], scipy.special.logsumexp(terms)))


def by_norms_adjoint(g: np.ndarray, state: Norms, layout: Layout, log_factors: np.ndarray) -> np.ndarray:
    """From the gradient by the new logarithms to that by the old ones."""
    g_logs, sources = np.zeros(state.logs.size), list(layout.sources)
    g_logs[list(layout.kept)] += g[:-1]
    np.add.at(g_logs, sources, g[-1] * scipy.special.softmax(log_factors + state.logs[sources]))
    return g_logs


def to_norms(state: Matrix, largest: Sequence[float]) -> Norms:
    """Of each variable, given the largest eigenvalue of its block."""
    return Norms(np.array([state.log(value) for value in largest]))


def to_norms_adjoint(
    g: np.ndarray, size: int, layout: Layout, found: Sequence[tuple[float, np.ndarray]]
) -> np.ndarray:
    """From the gradient by the logarithms to that by X [size, size]; `found`: eigenvalues and vectors."""
    g_X = np.zeros((size, size))
    for position, ((value, vector), own) in enumerate(zip(found, g, strict=True)):
        place = layout.rows(position)
        g_X[place, place] = 0.5 * own / value * np.outer(vector, vector)
    return g_X


def to_matrix(state: Norms, layout: Layout) -> Matrix:
    """With shares k_i / sum k that add up to 1: |dv_i|^2 <= k_i sum(k) |dx|^2 all at once."""
    squares = state.logs + scipy.special.logsumexp(state.logs)
    largest = float(np.max(squares))
    exponent = 2 * round(largest / math.log(4)) if largest > -math.inf else 0
    diagonal = np.repeat(np.exp(squares - exponent * math.log(2)), layout.sizes)
    return Matrix(np.diag(diagonal), exponent)


def to_matrix_adjoint(g: np.ndarray, state: Norms, layout: Layout) -> np.ndarray:
    """From the gradient by X to that by the logarithms."""
    made = to_matrix(state, layout)
    owner = np.repeat(np.arange(state.logs.size), layout.sizes)
    g_squares = np.bincount(owner, np.diag(g) * np.diag(made.X), state.logs.size)
    return g_squares + scipy.special.softmax(state.logs) * float(np.sum(g_squares))
