"""The running ellipsoid through one layer or residual block, traced: what a bound of every depth is made of."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxact.lipschitz.ellipsoid.multipliers import inverse, meeting
from jaxact.lipschitz.ellipsoid.step import inflation

_LEAST = 1e-4  # of t / r in V = s (1 + t / r): keeps V - D Q D^T positive beyond the rounding of float32


def ellipsoid_block(
    Q: Float[Array, "n n"],
    log_square: Float[Array, ""],
    *,
    skip: float,
    outer: Float[Array, "out hidden"],
    inner: Float[Array, "hidden n"],
    slope_range: tuple[ArrayLike, ArrayLike],
) -> tuple[Float[Array, "out out"], Float[Array, ""]]:
    """Carry a bound dh dh^T <= exp(log_square) Q |dx|^2 through h' = skip h + W f(D h).

        Q' = A (Q + Q D^T (V I - D Q D^T)^{-1} D Q) A^T + r^2 V W W^T,   A = skip I + m W D,
        V = s (1 + t / r),  s = lambda_max(D Q D^T),  t = ||A Q^1/2|| / (s^1/2 ||W||)

    with m, r the centre and half the width of the range of f's slopes: the S-procedure on df = m dz + e, |e| <= r |dz|
    (Fazlyab et al. 2019, for one multiplier a layer), with the V that makes sqrt lambda_max(Q') <= ||A Q^1/2|| +
    r s^1/2 ||W||, and so never more than the textbook's factor. An upper bound up to rounding, which is not added.

    Args:
        Q: symmetric positive semidefinite; what it is multiplied by stands in `log_square`.
        log_square: natural logarithm.
        skip: 1 with a skip path, 0 without. Static.
        outer: W, after the activation.
        inner: D, before it.
        slope_range: (alpha, beta) of f, finite; may be traced.

    Returns:
        (Q', its log_square), Q' of mean diagonal 1, or 0.
    """
    alpha, beta = (jnp.asarray(end, Q.dtype) for end in slope_range)
    m, r = alpha / 2 + beta / 2, beta / 2 - alpha / 2
    DQ = inner @ Q
    A = m * outer @ inner
    if skip:
        A = A + skip * jnp.eye(A.shape[0], dtype=Q.dtype)
    # Each divided by the one before, and so found one after the other: jaxlib (0.10.2) works through a vmapped
    # decomposition on the threads that wait for others, and side by side they would wait for ever.
    s = largest_eigenvalue(DQ @ inner.T)
    carried = largest_eigenvalue(A @ (Q / _or_one(s)) @ A.T)  # ||A Q^1/2||^2 / s
    noise = largest_eigenvalue(outer @ (outer.T / _or_one(carried)))
    moves = (s > 0) & (noise > 0) & (r > 0)
    t = jnp.where(carried > 0, meeting(1, _or_one(noise), 1, jnp), 0)
    t = jnp.maximum(t, _LEAST * jnp.where(r > 0, r, 1))
    T = jnp.where(moves, inverse(_or_one(s), t, jnp.where(r > 0, r, 1)), 0)
    # Without a skip and with m = 0 nothing but the noise is left, whose V may be s itself.
    is_noise = (m == 0) & (not skip)
    shares = jnp.full(len(DQ), jnp.where(is_noise, 0, T), Q.dtype)
    inflated = Q + inflation(DQ @ inner.T, DQ, shares, jnp).added()
    V = jnp.where(is_noise, s, jnp.where(moves, 1 / jnp.where(moves, T, 1), 0))
    after = A @ inflated @ A.T + r**2 * V * (outer @ outer.T)
    return normalized((after + after.T) / 2, log_square)


def normalized(
    Q: Float[Array, "n n"], log_square: Float[Array, ""]
) -> tuple[Float[Array, "n n"], Float[Array, ""]]:
    """Move the mean of Q's diagonal into the logarithm; a Q of 0 makes it -inf."""
    mean = jnp.trace(Q) / Q.shape[0]
    # Not NaN > 0: what is no number is to be seen.
    return Q / jnp.where(mean == 0, 1, mean), log_square + jnp.log(mean)


def largest_eigenvalue(M: Float[Array, "n n"]) -> Float[Array, ""]:
    """Of a symmetric matrix, at least 0."""
    return jnp.maximum(jnp.linalg.eigvalsh((M + M.T) / 2)[-1], 0)


def log_bound(Q: Float[Array, "n n"], log_square: Float[Array, ""]) -> Float[Array, ""]:
    """The logarithm of K = sqrt lambda_max."""
    return 0.5 * (jnp.log(largest_eigenvalue(Q)) + log_square)


def _or_one(value: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(value > 0, value, 1)
