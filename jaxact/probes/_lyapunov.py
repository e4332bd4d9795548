"""How fast the small differences between two trajectories of one system grow or vanish."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from jaxact.numerics import check_count, full_precision, read_inputs


class LyapunovExponents(NamedTuple):
    """Lyapunov exponents with what a finite run leaves uncertain; of one initial state without a batch axis.

    Attributes:
        exponents: the leading ones, from the largest, in nats a unit of time; -inf where a direction is lost,
            NaN where the trajectory has left the finite numbers.
        standard_error: of each, from the spread over blocks of the run; NaN where the exponent is infinite.
    """

    exponents: Float[Array, "*batch k"]
    standard_error: Float[Array, "*batch k"]


@full_precision
def lyapunov_exponents(
    step: Callable[..., Array],
    x: Float[ArrayLike, "*batch_and_input"],
    num: int | np.integer | None = None,
    *,
    num_steps: int | np.integer,
    num_transient: int | np.integer = 0,
    inputs: Any = None,
    time_step: Float[ArrayLike, ""] = 1.0,
    num_blocks: int | np.integer = 20,
) -> LyapunovExponents:
    """Estimate the Lyapunov exponents of x_t = step(x_{t-1}), along the trajectory from each initial state.

        Q_t R_t = D step(x_{t-1}) Q_{t-1},   lambda_i = 1 / (num_steps time_step) sum_t log |R_t|_ii

    Benettin, Galgani, Giorgilli & Strelcyn 1980, "Lyapunov characteristic exponents for smooth dynamical systems", and
    Shimada & Nagashima 1979: k tangents travel along by `jax.jvp` and are made orthonormal again after each step, so
    that neither overflows nor all turn into the fastest. exp(lambda_1) is the factor by which a backpropagated gradient
    of a long sequence grows a step. The first frame is pseudo-random and the same in every call.

    An estimate: its standard error is that of the mean of `num_blocks` blocks, right if a block is long beside the
    time after which the system forgets; the error that a finite transient leaves, about 1 / num_steps, is not in it,
    and neither is that of an integrator's step.

    Args:
        step: maps ONE state of any shape, and where there are inputs one of them, to the next state; static.
        x: initial states [batch, *state] or one [*state], told apart as `jaxact.numerics.Inputs` says; real floating.
        num: how many exponents, static; None for all of them.
        num_steps: steps that are averaged; a multiple of `num_blocks`.
        num_transient: steps before them, which bring the state to its attractor and the frame into place.
        inputs: of a driven system x_t = step(x_{t-1}, u_t): a pytree of arrays [num_transient + num_steps, ...], the
            same for all initial states.
        time_step: duration of a step, positive, by which logarithms are divided: an integrator's; may be traced.
        num_blocks: at least 2.

    Returns:
        `LyapunovExponents`, in at least float32.

    Raises:
        TypeError: as `jaxact.probes.jacobian`.
        ValueError: a count or a concrete `time_step` is out of its range, `step` changes the state's shape or dtype, or
            there is not an input a step.

    Example:
        >>> stretch = lambda x: jnp.array([2.0, 0.5]) * x
        >>> found = lyapunov_exponents(stretch, jnp.zeros(2), num_steps=200, num_transient=20)
        >>> jnp.exp(found.exponents).round(4).tolist()
        [2.0, 0.5]
    """
    num_steps = check_count("num_steps", num_steps, remedy="Count steps.")
    num_transient = check_count("num_transient", num_transient, 0, remedy="Count steps.")
    num_blocks = check_count("num_blocks", num_blocks, 2, remedy="Count blocks.")
    if num_steps % num_blocks:
        raise ValueError(
            f"`num_steps` must be a multiple of num_blocks = {num_blocks}, got {num_steps}. "
            f"Use num_steps={num_steps - num_steps % num_blocks or num_blocks}."
        )
    _check_lengths(inputs, num_transient + num_steps)
    _check_time_step(time_step)
    states = read_inputs(lambda x: step(x, *_at(inputs, 0)), x)
    shape, size = states.batch.shape[1:], states.batch[0].size
    if (states.output.shape, states.output.dtype) != (shape, states.batch.dtype):
        raise ValueError(
            f"`step` must return a state of the shape and dtype of its argument, {shape} and {states.batch.dtype}, "
            f"got {states.output.shape} and {states.output.dtype}. Keep what else it returns out, and cast the state: "
            "step(x).astype(x.dtype)."
        )
    num = size if num is None else check_count("num", num, most=size, remedy="Use num=None for all.")
    frame = _orthonormal(jax.random.normal(jax.random.key(0), (size, num), states.batch.dtype))[0]

    def one(x: Array) -> LyapunovExponents:
        def follow(carry: tuple[Array, Array], u: Any) -> tuple[tuple[Array, Array], Array]:
            x, Q = carry

            def push(q: Array) -> tuple[Array, Array]:
                return jax.jvp(lambda x: step(x, *u), (x,), (q.reshape(shape),))

            x, columns = jax.vmap(push, in_axes=1, out_axes=(None, -1))(Q)
            Q, stretch = _orthonormal(columns.reshape(size, num))
            return (x, Q.astype(x.dtype)), jnp.log(stretch)

        def block(carry: tuple[Array, Array], u: Any) -> tuple[tuple[Array, Array], Array]:
            carry, logs = lax.scan(follow, carry, u, length=num_steps // num_blocks)
            return carry, logs.mean(0) / time_step

        before = jax.tree.map(lambda leaf: leaf[:num_transient], _given(inputs))
        after = jax.tree.map(
            lambda leaf: leaf[num_transient:].reshape(num_blocks, -1, *leaf.shape[1:]), _given(inputs)
        )
        carry, _ = lax.scan(follow, (x, frame), before, length=num_transient)
        (x, _), means = lax.scan(block, carry, after, length=num_blocks)
        means = jnp.where(jnp.isfinite(x).all(), means, jnp.nan)  # slopes at inf are some number or other
        return LyapunovExponents(means.mean(0), means.std(0, ddof=1) / num_blocks**0.5)

    return states.unbatched(jax.vmap(one)(states.batch))


def _orthonormal(vectors: Float[Array, "n k"]) -> tuple[Float[Array, "n k"], Float[Array, " k"]]:
    """Q, and |R|'s diagonal in at least float32, of a frame's QR decomposition."""
    if vectors.shape[1] > 1:
        Q, R = jnp.linalg.qr(vectors.astype(_wide(vectors)))
        return Q.astype(vectors.dtype), jnp.abs(jnp.diagonal(R))
    # A single vector needs no LAPACK, whose calls are not batched; by its largest entry, lest a square underflow.
    largest = jnp.max(jnp.abs(vectors))
    scaled = vectors.astype(_wide(vectors)) / jnp.where(largest > 0, largest, 1)
    norm = jnp.sqrt(jnp.sum(scaled**2))
    return (scaled / jnp.where(norm > 0, norm, 1)).astype(vectors.dtype), (largest * norm)[None]


def _wide(vectors: Array) -> Any:
    return jnp.promote_types(vectors.dtype, jnp.float32)


def _given(inputs: Any) -> tuple[Any, ...]:
    """The inputs as the arguments of `step` after the state: none where there are none."""
    return () if inputs is None else (inputs,)


def _at(inputs: Any, place: int) -> tuple[Any, ...]:
    return jax.tree.map(lambda leaf: leaf[place], _given(inputs))


def _check_time_step(time_step: Any) -> None:
    if isinstance(time_step, jax.core.Tracer):
        return
    number = np.asarray(time_step)
    if number.ndim or number.dtype.kind not in "iuf" or not 0 < number < math.inf:
        raise ValueError(
            f"`time_step` must be one positive, finite number, got {time_step!r}. Use 1.0 for exponents a step."
        )


def _check_lengths(inputs: Any, total: int) -> None:
    for leaf in jax.tree.leaves(inputs):
        if jnp.shape(leaf)[:1] != (total,):
            raise ValueError(
                f"`inputs` must hold an input for each of the num_transient + num_steps = {total} steps along its "
                f"first axis, got shape {jnp.shape(leaf)}. Draw {total} of them."
            )
