"""Input-output Jacobians of any JAX function, whole or by their singular values."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from jaxact.numerics import (
    Inputs,
    full_precision,
    leading_singular_triplets,
    read_inputs,
    real_floating,
    trailing_singular_triplets,
)

# What the tangents of one chunk may occupy. Larger chunks gain nothing measurable on CPU; the largest array
# alive inside `fn` may be a few times this.
_TANGENT_BYTES = 256 * 2**20


@full_precision
def jacobian(
    fn: Callable[[Array], Array], x: Float[ArrayLike, "*batch_and_input"]
) -> Float[Array, "*batch m n"]:
    """Compute the dense Jacobian of `fn` at one input or at every input of a batch.

        J[b, i, j] = d fn(x[b])_i / d x[b]_j        (outputs and inputs flattened)

    Exact up to rounding, by forward mode only: one batched `jax.jvp` over the identity's columns, so `fn` may
    hold what reverse mode refuses, such as a loop with a traced trip count. At a kink the slope is the one
    `fn` reports. Matrix products for which `fn` asks no precision run in full float32 on a GPU or TPU too.

    Args:
        fn: maps ONE input, of shape `input`, to one floating-point array of any shape; traced, static. Wrap
            the call in `jax.jit` to compile once for many batches.
        x: real floating-point inputs [batch, *input] or one input [*input], told apart as
            `jaxact.numerics.Inputs` says: [n] is one input, an array of more axes a batch unless `fn` takes it
            only as a whole. Inputs are processed together as long as their tangents fit in 256 MB, and one
            after another beyond.

    Returns:
        [batch, m, n], or [m, n] for one input, in the dtype of fn's output.

    Raises:
        TypeError: `x` is not real floating-point; `fn` does not return one real floating-point array, or cannot
            be traced: see `jaxact.numerics.FunctionError`.
        ValueError: `x` is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> jacobian(lambda x: jnp.array([x[0] * x[1], 3 * x[1]]), jnp.array([2.0, 5.0]))
        Array([[5., 2.],
               [0., 3.]], dtype=float32)
    """
    inputs = read_inputs(fn, x)
    return inputs.unbatched(_jacobians(fn, inputs))


def _jacobians(fn: Callable[[Array], Array], inputs: Inputs) -> Array:
    """[batch, m, n]."""
    x, output = inputs.batch, inputs.output
    shape, dtype = x.shape[1:], x.dtype
    n, m = prod(shape), prod(output.shape)
    column_bytes = max(n, m) * max(dtype.itemsize, output.dtype.itemsize)
    # Both chunk sizes are at least one; an example is split only where it alone is too large.
    num_columns = max(1, min(n, _TANGENT_BYTES // column_bytes))
    num_examples = max(1, min(x.shape[0], _TANGENT_BYTES // (n * column_bytes)))

    def at(example: Array) -> Array:
        def column(index: Array) -> Array:
            basis = (jnp.arange(n) == index).astype(dtype).reshape(shape)
            return jax.jvp(fn, (example,), (basis,))[1].reshape(-1)

        return _map(column, jnp.arange(n), num_columns).T

    return _map(at, x, num_examples)


@full_precision
def singular_values(
    fn: Callable[[Array], Array],
    x: Float[ArrayLike, "*batch_and_input"],
    num: int | None = None,
    *,
    which: Literal["largest", "smallest"] = "largest",
) -> Float[Array, "*batch k"]:
    """Compute the singular values of the Jacobian of `fn`, descending, at one input or at each of a batch.

    With `num=None`, all min(m, n) of them from the dense Jacobian by LAPACK (cuSOLVER on a GPU): each is
    within a few units of rounding of the LARGEST, so values below about eps * largest are noise. With
    `num=k`, the k largest without forming the Jacobian, by a restarted block Krylov method on products J v
    and u J (Golub & Kahan 1965; Musco & Musco 2015, "Randomized block Krylov methods for stronger and faster
    approximate singular value decomposition"): an estimate, within 1e-4 relative in float32 and 1e-8 in
    float64 where the iteration converged (at most 100 restarts), and never above the truth by more than
    rounding (the values are Ritz values). The starting block is pseudo-random and the same in every call. A
    Jacobian with few rows or columns is formed instead, and exact.

    `which="smallest"` gives the k smallest of the min(m, n), likewise without the Jacobian: an estimate, never
    BELOW the truth by more than rounding, which again is relative to the largest of all. Without an inverse
    this end converges slowly where values crowd near zero; a value that has not converged is NaN, and then
    num=None, or `spectral_density` for a look at the crowd, is the way.

    Args:
        fn: maps ONE input to one floating-point array; static. `num=k` needs both `jax.linearize` and its
            transpose.
        x: real inputs [batch, *input] or one input, told apart as in `jacobian`.
        num: how many, static; None for all.
        which: end of the spectrum that `num` counts from; static, without effect if num is None.

    Returns:
        [batch, k], or [k] for one input, k = num or min(m, n), in at least float32. A Jacobian with NaN or inf
        gives NaN.

    Raises:
        TypeError: as `jacobian`, or `num` is not an integer.
        ValueError: as `jacobian`, `num` lies outside 1..min(m, n), or `which` is neither of its two values.

    Example:
        >>> import jax.numpy as jnp
        >>> singular_values(lambda x: jnp.array([3 * x[0], 4 * x[0], x[1]]), jnp.ones(2))
        Array([5., 1.], dtype=float32)
    """
    if which not in ("largest", "smallest"):
        raise ValueError(
            f'`which` must be "largest" or "smallest", got {which!r}. Use num=None for both ends.'
        )
    inputs = read_inputs(fn, x)
    if num is None:
        return inputs.unbatched(_all_singular_values(_jacobians(fn, inputs)))
    batch, output = inputs.batch, inputs.output
    n, m = prod(batch.shape[1:]), prod(output.shape)
    if isinstance(num, bool) or not isinstance(num, int):
        raise TypeError(
            f"`num` must be an integer or None, got {num!r}. Use num=None for all singular values."
        )
    if not 1 <= num <= min(m, n):
        raise ValueError(
            f"`num` must lie between 1 and min(outputs, inputs) = {min(m, n)}, got {num}. "
            "Use num=None for all singular values."
        )
    largest = partial(leading_singular_triplets, values_only=True)
    triplets = largest if which == "largest" else trailing_singular_triplets

    def at(example: Array) -> Array:
        matvec, rmatvec, dtype = products(fn, example, output)
        return triplets(matvec, rmatvec, shape=(m, n), num=num, dtype=dtype).values

    return inputs.unbatched(_map(at, batch, batch.shape[0]))


class SpectrumSummary(NamedTuple):
    """What a set of singular values says at a glance; every field has the leading axes of the values.

    Attributes:
        largest: the spectral norm.
        smallest: the smallest value given.
        mean_square: mean of s_i^2, which is ||J||_F^2 / min(m, n): 1 at dynamical isometry.
        condition_number: largest / smallest; inf where smallest is 0, a zero matrix included.
        effective_rank: exp of the entropy of s_i / sum s_i, between 1 and n (Roy & Vetterli 2007, "The
            effective rank", definition 1); 0 for a zero matrix.
    """

    largest: Float[Array, "*batch"]
    smallest: Float[Array, "*batch"]
    mean_square: Float[Array, "*batch"]
    condition_number: Float[Array, "*batch"]
    effective_rank: Float[Array, "*batch"]


def spectrum_summary(values: Float[ArrayLike, "*batch n"]) -> SpectrumSummary:
    """Summarise singular values along the last axis.

        mean_square = mean_i s_i^2,   condition_number = s_max / s_min,
        effective_rank = exp(-sum_i p_i log p_i) with p_i = s_i / sum_j s_j

    Exact up to rounding, free of overflow where the result is. No NaN arises: a zero matrix has condition
    number inf and effective rank 0. A NaN among the values makes every field NaN.

    Args:
        values: nonnegative floating-point [..., n], n >= 1, in any order.

    Returns:
        A `SpectrumSummary` of arrays [...].

    Raises:
        TypeError: `values` is not real floating-point.
        ValueError: `values` is a scalar or its last axis is empty.

    Example:
        >>> import jax.numpy as jnp
        >>> summary = spectrum_summary(jnp.array([2.0, 2.0, 0.0]))
        >>> float(summary.largest), float(summary.condition_number), round(float(summary.effective_rank), 5)
        (2.0, inf, 2.0)
    """
    s = real_floating("values", values)
    if s.ndim == 0 or s.shape[-1] == 0:
        raise ValueError(
            f"`values` must hold at least one singular value along its last axis, got shape {s.shape}. "
            "Pass the result of singular_values(fn, x)."
        )
    s = s.astype(jnp.promote_types(s.dtype, jnp.float32))
    largest, smallest = s.max(-1), s.min(-1)
    is_zero = largest == 0
    scaled = s / jnp.where(is_zero, 1, largest)[..., None]
    share = scaled / jnp.where(is_zero, 1, scaled.sum(-1))[..., None]
    entropy = jax.scipy.special.entr(share).sum(-1)
    return SpectrumSummary(
        largest=largest,
        smallest=smallest,
        mean_square=largest * (largest * jnp.mean(scaled**2, -1)),
        condition_number=jnp.where(smallest == 0, jnp.inf, largest / jnp.where(smallest == 0, 1, smallest)),
        effective_rank=jnp.where(is_zero, 0, jnp.exp(entropy)),
    )


def products(
    fn: Callable[[Array], Array], x: Array, output: jax.ShapeDtypeStruct
) -> tuple[Callable[[Array], Array], Callable[[Array], Array], jnp.dtype]:
    """Products J(x) v and J(x)^T u on flat vectors of the dtype returned with them; fn is linearised once."""
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, output.dtype), jnp.float32)
    _, push = jax.linearize(fn, x)
    pull = jax.linear_transpose(push, x)

    def matvec(v: Array) -> Array:
        return push(v.astype(x.dtype).reshape(x.shape)).reshape(-1).astype(dtype)

    def rmatvec(u: Array) -> Array:
        return pull(u.astype(output.dtype).reshape(output.shape))[0].reshape(-1).astype(dtype)

    return matvec, rmatvec, dtype


def _all_singular_values(matrices: Array) -> Array:
    matrices = matrices.astype(jnp.promote_types(matrices.dtype, jnp.float32))  # LAPACK knows no bfloat16
    finite = jnp.isfinite(matrices).all((-2, -1), keepdims=True)
    values = jnp.linalg.svd(jnp.where(finite, matrices, 0), compute_uv=False)
    return jnp.where(finite[..., 0], values, jnp.nan)


def _map(fn: Callable[[Array], Array], xs: Array, batch_size: int) -> Array:
    """`jax.vmap` in chunks; one chunk is a plain vmap, which XLA fuses better than a loop of one step.

    One example is not batched at all: under `vmap` a `lax.cond` takes both branches.
    """
    if xs.shape[0] == 1:
        return fn(xs[0])[None]
    if batch_size >= xs.shape[0]:
        return jax.vmap(fn)(xs)
    return lax.map(fn, xs, batch_size=batch_size)
