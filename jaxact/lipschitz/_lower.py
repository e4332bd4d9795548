"""Lower bounds on a Lipschitz constant: inputs at which the Jacobian's norm is large."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from jaxact.lipschitz._derivatives import Derivatives, derivatives, runner
from jaxact.numerics import full_precision, leading_singular_triplets, native, read_inputs

_LARGEST_STEP = 1e3  # relative to the first
_SMALLEST_STEP = 2.0**-12  # relative to the first: below, the search starts afresh in a random direction

_REACH = 64.0  # how far a ray looks for a kink, relative to the typical start
_CHANGE = 1e-3  # of the slope along a ray that makes a kink
_NUM_BISECTIONS = 10
_NUM_POWERS = 2


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


class Pair(NamedTuple):
    """A singular triplet of a Jacobian: the unit direction w, ||J w||, and the unit output J w / ||J w||."""

    value: Array
    output: Array
    direction: Array


class _Search(NamedTuple):
    x: Array
    w: Array  # unit input direction
    ascent: Array  # d (u^T J(x) w) / dx
    value: Array  # ||J(x)^T u|| for a unit u: itself a lower bound
    length: Array  # of the next step, relative to step_size


@full_precision
def lower_bound(
    fn: Callable[[Array], Array],
    inputs: Float[ArrayLike, "*starts_and_input"],
    *,
    key: PRNGKeyArray,
    num_steps: int = 100,
    step_size: ArrayLike = 0.5,
    tangent: Callable[[Array, Array], Array] | None = None,
    scales: tuple[float, ...] = (1.0,),
    num_starts: int = 0,
    num_crossings: int = 0,
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

    A piecewise-linear network may have its maximum on a piece that one random point in a million hits. More
    `scales` and `num_starts` help, and `num_crossings` more: before the ascent every start walks from piece to
    piece across the kinks of fn, found by bisection, and along them to where they meet. On 200 networks
    2-12-8-8-2 of relu, leaky relu and |x| that made the bound exact far more often than as many evaluations
    spent on steps; for a smooth fn it is of no use.

    Compiled once for all functions of one form, whatever arrays they close over, and for these shapes and static
    arguments; within `jax.jit` or `jax.vmap` as part of that.

    Args:
        fn: maps ONE input to one real array; reverse-differentiable, and the reverse pass
            forward-differentiable. Static.
        inputs: starting points [starts, *input], searched independently, more of them find more; or one input, told
            apart as `jaxact.numerics.Inputs` says.
        key: for random directions. Traced.
        num_steps: steps from each start; static. 0 gives the largest ||J||_2 over `inputs`.
        step_size: length of the first step, as a share of the root mean square of ||inputs||_2 (of 1 if they
            are all zero); positive, may be traced.
        tangent: (x, v) -> J(x) v if not by `jax.jvp(fn, ...)`, for an fn with a custom_vjp, which refuses it.
            Static.
        scales: the search also starts at every one of these multiples of `inputs`; positive, static.
        num_starts: random starts beside them, of the size of `inputs` times anything between the smallest
            and the largest of `scales`; static.
        num_crossings: kinks that every start crosses before the ascent, each at the cost of about 25 products
            in float32 and 40 in float64; static.

    Returns:
        A `LowerBound`. A network without slope gives 0; NaN only if the Jacobian is NaN or infinite at every
        start.

    Raises:
        TypeError: `inputs` is not real floating-point, or `fn` cannot be traced or measured: see
            `jaxact.numerics.FunctionError`.
        ValueError: `inputs` is empty, `num_steps`, `num_starts` or `num_crossings` is
            negative, or `step_size` or one of `scales` is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> found = lower_bound(lambda x: jnp.tanh(3 * x), jnp.array([[1.0]]), key=jax.random.key(0))
        >>> round(float(found.value), 4)  # attained at 0
        3.0
    """
    _check(num_steps, step_size, scales, num_starts, num_crossings)
    given = read_inputs(fn, inputs, name="inputs")
    starts = given.batch
    step_size = jnp.asarray(native(step_size), starts.dtype)
    one = jax.ShapeDtypeStruct(starts.shape[1:], starts.dtype)
    run = runner(derivatives(fn, given.output, tangent), one, starts, key, step_size)
    starts, unit_length = run(
        _begin, (tuple(scales), num_starts, num_crossings), starts, key, step_size, repeats=25 * num_crossings
    )
    return run(_search, (num_steps,), starts, unit_length, key, repeats=num_steps)


def _begin(
    of: Derivatives,
    scales: tuple[float, ...],
    num_starts: int,
    num_crossings: int,
    inputs: Array,
    key: Array,
    step_size: Array,
) -> tuple[Array, Array]:
    """All starts and the length of the first step."""
    norm = jnp.sqrt(jnp.mean(jnp.sum(jnp.square(inputs.reshape(inputs.shape[0], -1)), 1)))
    norm = jnp.where(norm > 0, norm, 1)
    key_starts, key_walk = jax.random.split(jax.random.fold_in(key, 1))
    starts = _starts(inputs, norm, scales, num_starts, key_starts)
    if num_crossings:
        walk = partial(_walk, of, norm, num_crossings)
        starts = jax.vmap(walk)(starts, jax.random.split(key_walk, starts.shape[0]))
    return starts, step_size * norm


def _search(of: Derivatives, num_steps: int, starts: Array, unit_length: Array, key: Array) -> LowerBound:
    """The ascent between two rounds of singular pairs: of the starts, and of where they end.

    As a loop of two rounds, the second without steps, so that XLA compiles what both need once.
    """
    keys = jax.random.split(key, max(num_steps, 1))

    def round_(number: Array, carry: tuple[Array, Pair, Array]) -> tuple[Array, Pair, Array]:
        xs, _, history = carry
        pairs = jax.vmap(partial(singular_pair, of))(xs)
        none = jnp.full(xs.shape[:1], jnp.nan, xs.dtype)
        searches = _Search(xs, pairs.direction, jnp.zeros_like(xs), none, none)

        def every(step: Array, carry: tuple[_Search, Array]) -> tuple[_Search, Array]:
            searches, history = carry
            noise = jax.random.split(keys[jnp.maximum(step - 1, 0)], len(xs))
            searches = jax.vmap(partial(_step, of, unit_length))(searches, noise)
            return searches, history.at[step].set(_largest(searches.value))

        searches, history = lax.fori_loop(
            0, jnp.where(number == 0, num_steps + 1, 0), every, (searches, history)
        )
        return searches.x, pairs, history

    history = jnp.zeros(num_steps + 1, starts.dtype)
    pairs = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
        jax.eval_shape(jax.vmap(partial(singular_pair, of)), starts),
    )
    return _best(*lax.fori_loop(0, 2, round_, (starts, pairs, history)))


def _step(of: Derivatives, unit_length: Array, search: _Search, key: PRNGKeyArray) -> _Search:
    """One step of one search; the first, before which there is no value, looks at the start itself."""
    is_first = jnp.isnan(search.length)
    fresh = search.length <= _SMALLEST_STEP
    steep = jnp.isfinite(search.ascent).all() & (search.ascent != 0).any() & ~fresh
    noise = jax.random.normal(key, search.x.shape, search.x.dtype)
    direction = _unit(jnp.where(steep, search.ascent, noise))
    length = jnp.where(fresh, 1, search.length)
    x = jnp.where(is_first, search.x, search.x + length * unit_length * direction)
    w = _unit(of.pulling(x)(_unit(of.push(x, search.w))))
    u = _unit(of.push(x, w))
    pulled, ascent = of.ascent(x, u, w)
    value = _norm(pulled)
    better = (value > search.value) & jnp.isfinite(value) | ~jnp.isfinite(search.value)
    # A random step mostly fails: shrink by little (the 1/5 rule of evolution strategies), and not at all
    # where the value has not changed, for then x has not left its linear piece.
    worse = ~(value >= search.value * (1 - 1e-5))
    factor = jnp.where(better, 1.5, jnp.where(steep, 0.5, jnp.where(worse, 0.9, 1.5)))
    length = jnp.where(is_first, 1, jnp.minimum(factor * length, _LARGEST_STEP))
    found = _Search(x, _unit(pulled), ascent, value, length)
    return jax.tree.map(partial(jnp.where, better), found, search._replace(length=length))


def _best(xs: Array, pairs: Pair, history: Array) -> LowerBound:
    best = jnp.argmax(jnp.where(jnp.isfinite(pairs.value), pairs.value, -1))
    value = jnp.where(jnp.isfinite(pairs.value[best]), pairs.value[best], jnp.nan)
    return LowerBound(value, xs[best], history)


def _starts(inputs: Array, norm: Array, scales: tuple[float, ...], num_starts: int, key: Array) -> Array:
    """The inputs at every scale, then random points whose size is spread evenly over the scales' logarithms."""
    if tuple(scales) != (1.0,):
        inputs = jnp.concatenate([scale * inputs for scale in scales])
    if not num_starts:
        return inputs
    key_direction, key_size = jax.random.split(key)
    shape = inputs.shape[1:]
    directions = jax.vmap(_unit)(jax.random.normal(key_direction, (num_starts, *shape), inputs.dtype))
    low, high = np.log(min(scales)), np.log(max(scales))
    sizes = jnp.exp(jax.random.uniform(key_size, (num_starts,), inputs.dtype, low, high)) * norm
    return jnp.concatenate([inputs, sizes.reshape(-1, *[1] * len(shape)) * directions])


class _Walk(NamedTuple):
    x: Array
    w: Array  # unit input direction
    normal: Array  # unit, of the kink crossed last; zero if there was none
    best: Array
    value: Array  # at best


def _walk(of: Derivatives, reach: Array, num_crossings: int, x: Array, key: Array) -> Array:
    """Walk from linear piece to linear piece and return the best point visited.

    Along a random ray the next kink of fn is where J(x + t d) d changes: bracketed by powers of four, then
    bisected. Half of the rays slide along the kink crossed last, which leads to where kinks meet, and there
    are the pieces too small for a random point. A kink of a network changes J by u n^T, so that its normal n
    is the direction in which J^T u changes. The point beyond is left as far from the kink as bisection stops,
    so that rounding does not decide on which side it lies.
    """
    num_lengths = (jnp.finfo(x.dtype).nmant - 8) // 2
    lengths = _REACH * reach * 4.0 ** -jnp.arange(num_lengths, dtype=x.dtype)[::-1]
    lengths = jnp.concatenate([jnp.zeros(1, x.dtype), lengths])

    def slope(x: Array, d: Array, t: Array) -> Array:
        return of.push(x + t * d, d)

    def differs(slope: Array, base: Array) -> Array:
        return _norm(slope - base) > _CHANGE * _norm(base)

    def cross(walk: _Walk, noise: tuple[Array, Array, Array, Array]) -> tuple[_Walk, None]:
        d, tilt, u, is_sliding = noise
        d = _unit(d - jnp.where(is_sliding, jnp.sum(d * walk.normal), 0) * walk.normal)
        slopes = jax.vmap(partial(slope, walk.x, d))(lengths)
        base = slopes[0]
        beyond = jax.vmap(lambda slope: differs(slope, base))(slopes)
        has_kink, first = beyond.any(), jnp.argmax(beyond)

        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = (low + high) / 2
            is_beyond = differs(slope(walk.x, d, middle), base)
            return jnp.where(is_beyond, low, middle), jnp.where(is_beyond, middle, high)

        ends = lax.fori_loop(0, _NUM_BISECTIONS, halve, (lengths[jnp.maximum(first - 1, 0)], lengths[first]))
        sides = walk.x + jnp.stack(ends).reshape(2, *[1] * x.ndim) * d
        pulls = jax.vmap(lambda x: of.pulling(x)(u))(sides)
        normal = jnp.where(has_kink, _unit(pulls[1] - pulls[0]), 0)
        there = jnp.where(has_kink, sides[1], walk.x)

        def power(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            pulled = of.pulling(there)(_unit(of.push(there, carry[0])))
            return _unit(pulled), _norm(pulled)

        start = (
            _unit(walk.w + 0.3 * _unit(tilt)),
            jnp.zeros((), x.dtype),
        )  # w may be orthogonal to the new one
        w, value = lax.fori_loop(0, _NUM_POWERS, power, start)
        better = (value > walk.value) & jnp.isfinite(value)
        best, value = jnp.where(better, there, walk.best), jnp.where(better, value, walk.value)
        return _Walk(jnp.where(has_kink, there, best), w, normal, best, value), None

    key_d, key_tilt, key_u, key_slide = jax.random.split(key, 4)
    noise = (
        jax.random.normal(key_d, (num_crossings, *x.shape), x.dtype),
        jax.random.normal(key_tilt, (num_crossings, *x.shape), x.dtype),
        jax.random.normal(key_u, (num_crossings, *of.output.shape), of.output.dtype),
        jax.random.bernoulli(key_slide, 0.5, (num_crossings,)),
    )
    zero = jnp.zeros_like(x)
    first = _Walk(x, zero, zero, x, jnp.full((), -1, x.dtype))
    return lax.scan(cross, first, noise)[0].best


def singular_pair(of: Derivatives, x: Array) -> Pair:
    """The largest singular value at one input, as ||J w|| for the unit w that the iteration found."""
    output, pull = of.output, of.pulling(x)
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, output.dtype), jnp.float32)

    def matvec(v: Array) -> Array:
        return of.push(x, v.astype(x.dtype).reshape(x.shape)).reshape(-1).astype(dtype)

    def rmatvec(u: Array) -> Array:
        return pull(u.astype(output.dtype).reshape(output.shape)).reshape(-1).astype(dtype)

    found = leading_singular_triplets(
        matvec, rmatvec, shape=(math.prod(output.shape), x.size), num=1, dtype=dtype
    )
    w = _unit(found.right[0].astype(x.dtype).reshape(x.shape))
    image = of.push(x, w)
    return Pair(_norm(image), _unit(image), w)


def _norm(v: Array) -> Array:
    largest = jnp.abs(v).max()
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)  # entries of 1e20 have squares too
    return scale * jnp.sqrt(jnp.sum((v / scale) ** 2))


def _unit(v: Array) -> Array:
    norm = _norm(v)
    return v / jnp.where(norm > 0, norm, 1)


def _largest(values: Array) -> Array:
    return jnp.where(jnp.isnan(values).all(), jnp.nan, jnp.nanmax(values))


def _check(
    num_steps: int,
    step_size: ArrayLike,
    scales: tuple[float, ...],
    num_starts: int,
    num_crossings: int,
) -> None:
    usual = {"num_steps": 100, "num_starts": 0, "num_crossings": 0}
    for name, value in zip(usual, (num_steps, num_starts, num_crossings), strict=True):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(
                f"`{name}` must be an integer >= 0, got {value!r}. Use {usual[name]} to begin with."
            )
    numbers = tuple(scales) if isinstance(scales, Sequence | np.ndarray) else ()
    if not numbers or not all(isinstance(scale, Real) and 0 < scale < np.inf for scale in numbers):
        raise ValueError(
            f"`scales` must be positive numbers in a tuple, got {scales!r}. Use (0.25, 1.0, 4.0), for instance."
        )
    if not isinstance(step_size, jax.core.Tracer) and not np.all(np.asarray(step_size) > 0):
        raise ValueError(f"`step_size` must be positive, got {step_size}. Use 0.5 to begin with.")
