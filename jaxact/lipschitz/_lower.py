"""Lower bounds on a Lipschitz constant: inputs at which the Jacobian's norm is large."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from jaxact.numerics import leading_singular_triplets

_LARGEST_STEP = 1e3  # relative to the first
_SMALLEST_STEP = 2.0**-12  # relative to the first: below, the search starts afresh in a random direction


class LowerBound(NamedTuple):
    """A lower bound and its witness.

    Attributes:
        value: ||J(input) w|| / ||w||, scalar: no Lipschitz constant of the function is smaller, up to
            rounding.
        input: where it is attained, of the shape of one input.
        history: [num_steps + 1] the best value over all starts before each step and after the last.
    """

    value: Float[Array, ""]
    input: Float[Array, " *input"]
    history: Float[Array, " step"]


class _Search(NamedTuple):
    x: Array
    w: Array  # unit input direction
    ascent: Array  # d (u^T J(x) w) / dx
    value: Array  # ||J(x)^T u|| for a unit u: itself a lower bound
    length: Array  # of the next step, relative to step_size


def lower_bound(
    fn: Callable[[Array], Array],
    inputs: Float[ArrayLike, " starts *input"],
    *,
    key: PRNGKeyArray,
    num_steps: int = 100,
    step_size: ArrayLike = 0.5,
    tangent: Callable[[Array, Array], Array] | None = None,
) -> LowerBound:
    """Bound the Lipschitz constant of `fn` from below by gradient ascent on the norm of its Jacobian.

        K = sup_x ||J(x)||_2  >=  max over the points visited of ||J(x)^T u||,  ||u|| = 1

    From every start the singular pair (u, w) is carried along by power iteration and x moves along
    d/dx u^T J(x) w, forward over reverse; the step grows when it is accepted and shrinks when not, so the
    bound never falls. Where that gradient is zero, as everywhere in a piecewise-linear network, and after a
    series of failures, x moves in random directions instead, at scales from `step_size` down. Both ends use a
    converged singular value: the result is at least the largest ||J||_2 over `inputs`. A lower bound up to
    rounding; how far below K it lies is not known. If fn is not differentiable at the witness, its slope
    there is the one fn reports.

    Args:
        fn: maps ONE input to one real array; reverse-differentiable, and the reverse pass
            forward-differentiable. Static.
        inputs: starting points [starts, *input]; searched independently, more of them find more.
        key: for random directions. Traced.
        num_steps: steps from each start; static. 0 gives the largest ||J||_2 over `inputs`.
        step_size: length of the first step, as a share of the root mean square of ||inputs||_2 (of 1 if they
            are all zero); positive, may be traced.
        tangent: (x, v) -> J(x) v if not by `jax.jvp(fn, ...)`, for an fn with a custom_vjp, which refuses it.
            Static.

    Returns:
        A `LowerBound`. A network without slope gives 0; NaN only if the Jacobian is NaN or infinite at every
        start.

    Raises:
        TypeError: `inputs` is not real floating-point.
        ValueError: `inputs` has no starts axis or is empty, `num_steps` is negative or `step_size` is not
            positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> found = lower_bound(lambda x: jnp.tanh(3 * x), jnp.array([[1.0]]), key=jax.random.key(0))
        >>> round(float(found.value), 4)  # attained at 0
        3.0
    """
    inputs = _check(inputs, num_steps, step_size)
    push = partial(_push, fn) if tangent is None else tangent
    norm = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(inputs.reshape(inputs.shape[0], -1)), 1)))
    unit_length = jnp.asarray(step_size, inputs.dtype) * jnp.where(norm > 0, norm, 1)
    singular = jax.vmap(partial(_singular, fn, push))

    def start(x: Array) -> _Search:
        pair = _singular(fn, push, x)
        pulled, ascent = _pulled_and_ascent(fn, x, pair.output, pair.direction)
        return _Search(x, pair.direction, ascent, _norm(pulled), jnp.ones((), inputs.dtype))

    def step(search: _Search, key: PRNGKeyArray) -> _Search:
        fresh = search.length <= _SMALLEST_STEP
        steep = jnp.isfinite(search.ascent).all() & (search.ascent != 0).any() & ~fresh
        noise = jax.random.normal(key, search.x.shape, search.x.dtype)
        direction = _unit(jnp.where(steep, search.ascent, noise))
        length = jnp.where(fresh, 1, search.length)
        x = search.x + length * unit_length * direction
        w = _unit(_pull(fn, x, _unit(push(x, search.w))))
        u = _unit(push(x, w))
        pulled, ascent = _pulled_and_ascent(fn, x, u, w)
        value = _norm(pulled)
        better = (value > search.value) & jnp.isfinite(value) | ~jnp.isfinite(search.value)
        # A random step mostly fails: shrink by little (the 1/5 rule of evolution strategies), and not at all
        # where the value has not changed, for then x has not left its linear piece.
        worse = ~(value >= search.value * (1 - 1e-5))
        factor = jnp.where(better, 1.5, jnp.where(steep, 0.5, jnp.where(worse, 0.9, 1.5)))
        length = jnp.minimum(factor * length, _LARGEST_STEP)
        found = _Search(x, _unit(pulled), ascent, value, length)
        return jax.tree.map(partial(jnp.where, better), found, search._replace(length=length))

    def every(searches: _Search, key: PRNGKeyArray) -> tuple[_Search, Array]:
        moved = jax.vmap(step)(searches, jax.random.split(key, inputs.shape[0]))
        return moved, _largest(moved.value)

    searches = jax.vmap(start)(inputs)
    first = _largest(searches.value)
    searches, history = lax.scan(every, searches, jax.random.split(key, num_steps))
    pairs = singular(searches.x)
    best = jnp.argmax(jnp.where(jnp.isfinite(pairs.value), pairs.value, -1))
    value = jnp.where(jnp.isfinite(pairs.value[best]), pairs.value[best], jnp.nan)
    return LowerBound(value, searches.x[best], jnp.concatenate([first[None], history]))


class _Pair(NamedTuple):
    value: Array
    output: Array  # u
    direction: Array  # w


def _singular(fn: Callable, push: Callable, x: Array) -> _Pair:
    """The largest singular value at one input, as ||J w|| for the unit w that the iteration found."""
    output, pull = jax.vjp(fn, x)
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, output.dtype), jnp.float32)

    def matvec(v: Array) -> Array:
        return push(x, v.astype(x.dtype).reshape(x.shape)).reshape(-1).astype(dtype)

    def rmatvec(u: Array) -> Array:
        return pull(u.astype(output.dtype).reshape(output.shape))[0].reshape(-1).astype(dtype)

    found = leading_singular_triplets(matvec, rmatvec, shape=(output.size, x.size), num=1, dtype=dtype)
    w = _unit(found.right[0].astype(x.dtype).reshape(x.shape))
    image = push(x, w)
    return _Pair(_norm(image), _unit(image), w)


def _push(fn: Callable, x: Array, v: Array) -> Array:
    return jax.jvp(fn, (x,), (v,))[1]


def _pull(fn: Callable, x: Array, u: Array) -> Array:
    return jax.vjp(fn, x)[1](u)[0]


def _pulled_and_ascent(fn: Callable, x: Array, u: Array, w: Array) -> tuple[Array, Array]:
    # u^T J(x) w has the gradient (sum_i u_i Hessian f_i) w: the derivative of x -> J(x)^T u along w.
    return jax.jvp(lambda x: _pull(fn, x, u), (x,), (w,))


def _norm(v: Array) -> Array:
    largest = jnp.abs(v).max()
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)  # entries of 1e20 have squares too
    return scale * jnp.sqrt(jnp.sum((v / scale) ** 2))


def _unit(v: Array) -> Array:
    norm = _norm(v)
    return v / jnp.where(norm > 0, norm, 1)


def _largest(values: Array) -> Array:
    return jnp.where(jnp.isnan(values).all(), jnp.nan, jnp.nanmax(values))


def _check(inputs: ArrayLike, num_steps: int, step_size: ArrayLike) -> Array:
    inputs = jnp.asarray(inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise TypeError(
            f"`inputs` must be real floating-point, got dtype {inputs.dtype}. Use .astype(jnp.float32)."
        )
    if inputs.ndim < 1 or inputs.size == 0:
        raise ValueError(
            f"`inputs` must be [starts, *input] and not empty, got shape {inputs.shape}. Pass x[None]."
        )
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"`num_steps` must be an integer >= 0, got {num_steps!r}. Use 100 to begin with.")
    if not isinstance(step_size, jax.core.Tracer) and not np.all(np.asarray(step_size) > 0):
        raise ValueError(f"`step_size` must be positive, got {step_size}. Use 0.5 to begin with.")
    return inputs
