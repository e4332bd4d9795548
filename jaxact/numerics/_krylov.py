"""Leading singular triplets of a linear map known only by its products."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_NUM_BLOCKS = 4  # blocks in the Krylov space between restarts; below 3 restarts dominate, above 6 memory does
_MAX_RESTARTS = 100


class SingularTriplets(NamedTuple):
    """The leading singular triplets, largest first.

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
    restarts: Array


def leading_singular_triplets(
    matvec: Callable[[Array], Array],
    rmatvec: Callable[[Array], Array],
    *,
    shape: tuple[int, int],
    num: int = 1,
    dtype: jnp.dtype | type = jnp.float32,
) -> SingularTriplets:
    """Compute the `num` largest singular values and vectors of A from v -> A v and u -> A^T u.

    Restarted block Krylov iteration with full reorthogonalisation and Rayleigh-Ritz on A itself, so nothing
    is squared (Golub & Kahan 1965; Musco & Musco 2015, algorithm 2, for why a block of `num` and a few more
    does not miss repeated values). An estimate: it stops once the residual ||A^T u - s v|| of every value is
    below 0.3 sqrt(eps) s (1e-4 in float32) or at rounding level, or after 100 restarts; the error of an
    isolated value is of the residual's square. Ritz values never exceed the true ones by more than rounding.
    If A has few rows or columns it is formed and the result is exact. The starting block is pseudo-random and
    the same in every call.

    Args:
        matvec: A v for one vector [n] -> [m]; linear, traced under vmap.
        rmatvec: A^T u for one vector [m] -> [n].
        shape: (m, n), static.
        num: how many, 1 <= num <= min(m, n), static.
        dtype: float32 or float64: what the vectors are held in.

    Returns:
        `SingularTriplets`. A = 0 gives zeros with arbitrary unit vectors; NaN in A gives NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> A = jnp.diag(jnp.arange(1.0, 101.0))
        >>> triplets = leading_singular_triplets(lambda v: A @ v, lambda u: A.T @ u, shape=A.shape, num=2)
        >>> triplets.values.round(2)
        Array([100.,  99.], dtype=float32)
    """
    m, n = shape
    block = num + min(num + 1, 6)
    if min(m, n) <= _NUM_BLOCKS * block:
        return _dense(matvec, rmatvec, m, n, num, dtype)
    eps = jnp.finfo(dtype).eps
    key_start, key_noise = jax.random.split(jax.random.key(0))
    start = jnp.linalg.qr(jax.random.normal(key_start, (n, block), dtype))[0].T
    noise = jax.random.normal(key_noise, (block, n), dtype) / n**0.5
    # Every product is divided by the size of the first, so that squares stay within the range of the dtype.
    first = jax.vmap(matvec)(start)
    scale = _or_one(jnp.abs(first).max())
    push = jax.vmap(lambda v: matvec(v) / scale)
    pull = jax.vmap(lambda u: rmatvec(u) / scale)

    def ritz(basis: Array, image: Array, restarts: Array) -> _Space:
        mix, values, left = jnp.linalg.svd(image, full_matrices=False)
        mix, values, left = mix[:, :block].T, values[:block], left[:block]
        right, pulled = mix @ basis, pull(left)
        residual = jnp.linalg.norm(pulled - values[:, None] * right, axis=1)
        return _Space(values, left, right, mix @ image, pulled, residual, restarts)

    def unfinished(space: _Space) -> Array:
        values, residual = space.values[:num], space.residual[:num]
        wrong = (residual > 0.3 * eps**0.5 * values) & (residual > 30 * eps * space.values[0])
        return wrong.any() & (space.restarts < _MAX_RESTARTS)

    def restart(space: _Space) -> _Space:
        basis = jnp.zeros((_NUM_BLOCKS * block, n), dtype).at[:block].set(space.right)
        image = jnp.zeros((_NUM_BLOCKS * block, m), dtype).at[:block].set(space.image)

        def extend(j: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            basis, image, pulled = carry
            new = _orthonormal(pulled, basis, noise)
            pushed = push(new)
            basis = lax.dynamic_update_slice(basis, new, (j * block, 0))
            image = lax.dynamic_update_slice(image, pushed, (j * block, 0))
            return basis, image, pull(pushed / _or_one(jnp.abs(pushed).max()))

        basis, image, _ = lax.fori_loop(1, _NUM_BLOCKS, extend, (basis, image, space.pulled))
        return ritz(basis, image, space.restarts + 1)

    space = lax.while_loop(unfinished, restart, ritz(start, first / scale, jnp.zeros((), jnp.int32)))
    return SingularTriplets(space.values[:num] * scale, space.left[:num], space.right[:num])


def _orthonormal(rows: Array, basis: Array, noise: Array) -> Array:
    """Orthonormalise rows against an orthonormal basis (zero rows allowed) and among themselves.

    Noise at rounding level fills the directions in which the rows are deficient, as they are for a matrix of
    low rank: what is left of them after projection would otherwise be zero, and its normalisation NaN.
    """
    rows = rows / _or_one(jnp.abs(rows).max())
    rows = rows + jnp.finfo(rows.dtype).eps * noise
    for _ in range(3):  # twice is enough for full-rank rows; noise needs one more
        rows = rows - (rows @ basis.T) @ basis
        rows = jnp.linalg.qr(rows.T)[0].T
    return rows


def _or_one(scale: Array) -> Array:
    return jnp.where(scale > 0, scale, 1)


def _dense(matvec, rmatvec, m: int, n: int, num: int, dtype) -> SingularTriplets:
    if n <= m:
        matrix = jax.vmap(matvec, out_axes=1)(jnp.eye(n, dtype=dtype))
    else:
        matrix = jax.vmap(rmatvec)(jnp.eye(m, dtype=dtype))
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return SingularTriplets(values[:num], left[:, :num].T, right[:num])
