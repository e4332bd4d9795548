"""Singular values of a linear map known only by its products."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxact.numerics._precision import full_precision

# Blocks in the Krylov space between restarts. At the large end the space stops growing once it is good enough.
_NUM_BLOCKS = 14
_NUM_BLOCKS_TRAILING = 32  # the small end is crowded: too few blocks and the iteration stands still
_MAX_RESTARTS = 100


class SingularTriplets(NamedTuple):
    """Some singular triplets, largest first.

    Attributes:
        values: singular values [num].
        left: unit left singular vectors, as rows [num, m].
        right: unit right singular vectors, as rows [num, n].
    """

    values: Float[Array, " num"]
    left: Float[Array, "num m"]
    right: Float[Array, "num n"]


class _Space(NamedTuple):
    values: Array  # [b] Ritz values
    left: Array  # [b, m] unit
    right: Array  # [b, n] unit: the Ritz vectors V
    image: Array  # [b, m] A V
    pulled: Array  # [b, n] A^T left
    residual: Array  # [b]
    largest: Array  # Ritz value of all, the measure of rounding
    restarts: Array


@full_precision
def leading_singular_triplets(
    matvec: Callable[[Array], Array],
    rmatvec: Callable[[Array], Array],
    *,
    shape: tuple[int, int],
    num: int = 1,
    dtype: jnp.dtype | type = jnp.float32,
    values_only: bool = False,
) -> SingularTriplets:
    """Compute the `num` largest singular values and vectors of A from v -> A v and u -> A^T u.

    Restarted block Krylov iteration with full reorthogonalisation and Rayleigh-Ritz on A itself, so nothing
    is squared (Golub & Kahan 1965; Musco & Musco 2015, algorithm 2, for why a block of `num` and a few more
    does not miss repeated values). An estimate: it stops once the residual ||A^T u - s v|| of every value is
    below 0.3 sqrt(eps) s (1e-4 in float32) or at rounding level, or after 100 restarts of up to 14 blocks; the
    error of a value is of the residual's square over its gap, and `values_only` stops once that is below 1e-5 s in
    float32. Ritz values never exceed the true ones by more than rounding.
    If A has few rows or columns it is formed and the result is exact. The starting block is pseudo-random and
    the same in every call.

    Args:
        matvec: A v for one vector [n] -> [m]; linear, traced under vmap.
        rmatvec: A^T u for one vector [m] -> [n].
        shape: (m, n), static.
        num: how many, 1 <= num <= min(m, n), static.
        dtype: float32 or float64: what the vectors are held in.
        values_only: stop when the values are good, the vectors perhaps not yet. Static.

    Returns:
        `SingularTriplets`. A = 0 gives zeros with arbitrary unit vectors; NaN in A gives NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.diag(jnp.arange(1.0, 101.0))
        >>> triplets = leading_singular_triplets(lambda v: A @ v, lambda u: A.T @ u, shape=A.shape, num=2)
        >>> triplets.values.round(2)
        Array([100.,  99.], dtype=float32)
    """
    block = num + min(num + 1, 4)
    if min(shape) <= _NUM_BLOCKS * block:
        left, values, right = _dense(matvec, rmatvec, shape, dtype)
        return SingularTriplets(values[:num], left[:num], right[:num])
    space, scale = _block_krylov(
        matvec, rmatvec, shape, num, block, _NUM_BLOCKS, dtype, leading=True, values_only=values_only
    )
    return SingularTriplets(space.values[:num] * scale, space.left[:num], space.right[:num])


@full_precision
def trailing_singular_triplets(
    matvec: Callable[[Array], Array],
    rmatvec: Callable[[Array], Array],
    *,
    shape: tuple[int, int],
    num: int = 1,
    dtype: jnp.dtype | type = jnp.float32,
) -> SingularTriplets:
    """Compute the `num` smallest of the min(m, n) singular values of A, and their vectors.

    The iteration of `leading_singular_triplets` from the other end, on the shorter side of A, with products
    alone and no inverse: it takes the more of them the closer the small values lie together beside the
    largest, up to 100 restarts of 32 blocks. An estimate from above: Ritz values are never below the true
    ones by more than rounding, which is a few eps of the LARGEST value; below that they count as zero. It is
    exact if A has so few rows or columns that it is formed.

    Args:
        matvec: A v for one vector [n] -> [m]; linear, traced under vmap.
        rmatvec: A^T u for one vector [m] -> [n].
        shape: (m, n), static.
        num: how many, 1 <= num <= min(m, n), static.
        dtype: float32 or float64: what the vectors are held in.

    Returns:
        `SingularTriplets`, largest first; a value whose residual is not small after the last restart is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.diag(jnp.arange(1.0, 201.0))
        >>> triplets = trailing_singular_triplets(lambda v: A @ v, lambda u: A.T @ u, shape=A.shape, num=2)
        >>> triplets.values.round(2)
        Array([2., 1.], dtype=float32)
    """
    m, n = shape
    if m < n:  # from the right the null space of A would come first
        found = trailing_singular_triplets(rmatvec, matvec, shape=(n, m), num=num, dtype=dtype)
        return SingularTriplets(found.values, found.right, found.left)
    block = num + min(num + 1, 6)
    if n <= _NUM_BLOCKS_TRAILING * block:
        left, values, right = _dense(matvec, rmatvec, shape, dtype)
        return SingularTriplets(values[-num:], left[-num:], right[-num:])
    space, scale = _block_krylov(
        matvec, rmatvec, shape, num, block, _NUM_BLOCKS_TRAILING, dtype, leading=False
    )
    values = jnp.where(_wrong(space, num, by_gap=True), jnp.nan, space.values[:num] * scale)
    return SingularTriplets(values[::-1], space.left[:num][::-1], space.right[:num][::-1])


class Bidiagonal(NamedTuple):
    """A V^T = U^T B with B upper bidiagonal: what `golub_kahan` finds.

    Attributes:
        diagonal: of B [num_steps], nonnegative.
        above: the diagonal above it [num_steps - 1], nonnegative.
        left: orthonormal (or zero, after a breakdown) rows [num_steps, m]: U.
        right: orthonormal (or zero) rows [num_steps, n]: V, the first of them the normalised start.
    """

    diagonal: Float[Array, " step"]
    above: Float[Array, " step-1"]
    left: Float[Array, "step m"]
    right: Float[Array, "step n"]


@full_precision
def golub_kahan(
    matvec: Callable[[Array], Array],
    rmatvec: Callable[[Array], Array],
    start: Float[Array, " n"],
    *,
    num_steps: int,
    num_rows: int,
) -> Bidiagonal:
    """Reduce A to bidiagonal form on the Krylov space of A^T A from a start vector.

        A V^T = U^T B,    (A^T A restricted to the space) = B^T B

    Golub & Kahan (1965), every new vector orthogonalised three times against all before it. Exact up to rounding.
    Where the space is exhausted (a new vector vanishes at rounding level) the remaining rows of U, V and B
    are zero and the identities stand: nothing is divided by zero.

    Args:
        matvec: A v for one vector [n] -> [m]; linear.
        rmatvec: A^T u for one vector [m] -> [n].
        start: [n], of the dtype of all vectors; not zero.
        num_steps: dimension of the space, 1 <= num_steps <= n, static.
        num_rows: m, static.

    Returns:
        A `Bidiagonal`.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.diag(jnp.array([3.0, 4.0]))
        >>> B = golub_kahan(lambda v: A @ v, lambda u: A.T @ u, jnp.ones(2), num_steps=2, num_rows=2)
        >>> round(float(B.diagonal[0] ** 2), 4)  # v^T A^T A v = (9 + 16) / 2
        12.5
    """
    dtype, n = start.dtype, start.shape[0]
    tiny = 10 * jnp.finfo(dtype).eps

    def new(vector: Array, basis: Array, largest: Array) -> tuple[Array, Array]:
        for _ in range(2):
            vector = vector - basis.T @ (basis @ vector)
        length = jnp.linalg.norm(vector)
        length = jnp.where(length <= tiny * largest, 0, length)
        unit = jnp.where(length == 0, 0, vector / _or_one(length))
        # Once more at its full length: of a vector that is little more than rounding XLA on a GPU took the length from
        # one computation and the entries from another, which differed by 6e-4.
        unit = unit - basis.T @ (basis @ unit)
        return unit / _or_one(jnp.linalg.norm(unit)), length

    def step(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        left, right, diagonal, above, v, largest = carry
        right = right.at[i].set(v)
        image = matvec(v)
        largest = jnp.maximum(largest, jnp.linalg.norm(image))
        u, alpha = new(image, left, largest)
        left = left.at[i].set(u)
        v, beta = new(rmatvec(u), right, largest)
        return left, right, diagonal.at[i].set(alpha), above.at[i].set(beta), v, largest

    zeros = jnp.zeros(num_steps, dtype)
    carry = (
        jnp.zeros((num_steps, num_rows), dtype),
        jnp.zeros((num_steps, n), dtype),
        zeros,
        zeros,
        start / _or_one(jnp.linalg.norm(start)),
        jnp.zeros((), dtype),
    )
    left, right, diagonal, above, _, _ = lax.fori_loop(0, num_steps, step, carry)
    return Bidiagonal(diagonal, above[:-1], left, right)


def _block_krylov(
    matvec: Callable,
    rmatvec: Callable,
    shape: tuple[int, int],
    num: int,
    block: int,
    num_blocks: int,
    dtype: jnp.dtype | type,
    *,
    leading: bool,
    values_only: bool = True,
) -> tuple[_Space, Array]:
    """The Ritz triplets at one end, the outermost first, of A over the scale returned with them."""
    m, n = shape
    key_start, key_noise = jax.random.split(jax.random.key(0))
    start = jnp.linalg.qr(jax.random.normal(key_start, (n, block), dtype))[0].T
    noise = jax.random.normal(key_noise, (block, n), dtype) / n**0.5
    # Every product is divided by the size of the first, so that squares stay within the range of the dtype.
    first = jax.vmap(matvec)(start)
    scale = _or_one(jnp.abs(first).max())
    push = jax.vmap(lambda v: matvec(v) / scale)
    pull = jax.vmap(lambda u: rmatvec(u) / scale)

    # Whether the values are good costs an eigendecomposition of LAPACK's, whose threads slow the next products (see
    # `_orthonormal`): of a large space each second block is looked at.
    check_every = 1 if num_blocks * block < 64 else 2

    def ritz(basis: Array, image: Array, restarts: Array) -> _Space:
        mix, values, left = jnp.linalg.svd(image, full_matrices=False)
        largest = values[0]
        if not leading:
            mix, values, left = mix[:, ::-1], values[::-1], left[::-1]
        mix, values, left = mix[:, :block].T, values[:block], left[:block]
        right, pulled = mix @ basis, pull(left)
        residual = jnp.linalg.norm(pulled - values[:, None] * right, axis=1)
        return _Space(values, left, right, mix @ image, pulled, residual, largest, restarts)

    def unfinished(space: _Space) -> Array:
        return _wrong(space, num, by_gap=values_only).any() & (space.restarts < _MAX_RESTARTS)

    def restart(space: _Space) -> _Space:
        def unfinished(carry: tuple[Array, ...]) -> Array:
            *_, count, is_good = carry
            return ~is_good & (count < num_blocks)

        def extend(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            basis, image, pulled, count, _ = carry
            new = _orthonormal(pulled, basis, noise)
            pushed = push(new)
            size = _or_one(jnp.abs(pushed).max())
            basis = lax.dynamic_update_slice_in_dim(basis, new, count * block, 0)
            image = lax.dynamic_update_slice_in_dim(image, pushed, count * block, 0)
            pulled = pull(pushed / size)
            is_good = jnp.zeros((), bool)
            if leading:
                looks = partial(looks_good, basis, image, pulled, size, count)
                is_good = lax.cond(count % check_every == 0, looks, lambda: is_good)
            return basis, image, pulled, count + 1, is_good

        def looks_good(basis: Array, image: Array, pulled: Array, size: Array, count: Array) -> Array:
            # A^T times the images of all blocks but the last lies in the space: residuals are what leaves it. From
            # the Gram matrix, whose rounding does not matter to a test that the Ritz triplets themselves repeat.
            squares, mix = jnp.linalg.eigh(image @ image.T)
            values = jnp.sqrt(jnp.maximum(squares[: -block - 1 : -1], 0))
            last = lax.dynamic_slice_in_dim(mix[:, : -block - 1 : -1], count * block, block)
            leaving = size * (last.T @ (pulled - (pulled @ basis.T) @ basis))
            residual = jnp.linalg.norm(leaving, axis=1) / _or_one(values)
            found = space._replace(values=values, residual=residual, largest=values[0])
            return ~_wrong(found, num, by_gap=values_only).any()

        basis = jnp.zeros((num_blocks * block, n), dtype).at[:block].set(space.right)
        image = jnp.zeros((num_blocks * block, m), dtype).at[:block].set(space.image)
        start: tuple[Array, ...] = (basis, image, space.pulled, jnp.ones((), jnp.int32), jnp.zeros((), bool))
        basis, image, *_ = lax.while_loop(unfinished, extend, start)
        return ritz(basis, image, space.restarts + 1)

    space = lax.while_loop(unfinished, restart, ritz(start, first / scale, jnp.zeros((), jnp.int32)))
    return space, scale


def _wrong(space: _Space, num: int, *, by_gap: bool) -> Array:
    """Which of the values are not yet good; those at rounding level are, and their residual says nothing."""
    eps = jnp.finfo(space.values.dtype).eps
    values, residual, rounding = space.values[:num], space.residual[:num], 30 * eps * space.largest
    wrong = (residual > 0.3 * eps**0.5 * values) & (residual > rounding) & (values > rounding)
    if not by_gap:
        return wrong
    # The relative error of s is of the residual's square over the gap: (residual s)^2 / (gap of s^2) bounds the error
    # of s^2 (Parlett 1998, theorem 11.7.1). And the residual of a small s cannot fall below some eps largest^2 / s.
    gap = jnp.abs(space.values[-1] ** 2 - values**2)
    return wrong & ~(residual**2 <= 0.06 * eps**0.5 * gap)


def _orthonormal(rows: Array, basis: Array, noise: Array) -> Array:
    """Orthonormalise rows against an orthonormal basis (zero rows allowed) and among themselves.

    Noise at rounding level fills the directions in which the rows are deficient, as they are for a matrix of
    low rank: what is left of them after projection would otherwise be zero, and its normalisation NaN.
    """
    rows = rows / _or_one(jnp.abs(rows).max())
    rows = rows + jnp.finfo(rows.dtype).eps * noise
    for _ in range(3):  # twice is enough for full-rank rows; noise needs one more
        rows = rows - (rows @ basis.T) @ basis
        # By the Gram matrix rather than QR: LAPACK on a tall matrix wakes threads of its own, which then wait in a
        # busy loop beside XLA's and halve the speed of the next products. Of rows of one length it resolves all
        # directions but those below sqrt(eps), which grow by 1 / sqrt(eps) a round.
        rows = rows / _or_one(jnp.linalg.norm(rows, axis=1, keepdims=True))
        squares, mix = jnp.linalg.eigh(rows @ rows.T)
        squares = jnp.maximum(squares, jnp.finfo(rows.dtype).eps * squares[-1])
        rows = (mix / jnp.sqrt(squares)).T @ rows
    return 1.5 * rows - 0.5 * (rows @ rows.T) @ rows  # Newton and Schulz: what rounding left is squared


def _or_one(scale: Array) -> Array:
    return jnp.where(scale > 0, scale, 1)


def _dense(matvec, rmatvec, shape: tuple[int, int], dtype) -> tuple[Array, Array, Array]:
    m, n = shape
    if n <= m:
        matrix = jax.vmap(matvec, out_axes=1)(jnp.eye(n, dtype=dtype))
    else:
        matrix = jax.vmap(rmatvec)(jnp.eye(m, dtype=dtype))
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left.T, values, right
