"""The training loop: many optimiser steps in one compiled scan, resumable at any step."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

from jaxact.fit._persist import watched
from jaxact.numerics import check_count

Loss: TypeAlias = Callable[
    [PyTree, PyTree, PyTree, Mapping[str, Array]], tuple[Float[Array, ""], tuple[PyTree, PyTree]]
]
Optimizer: TypeAlias = (
    optax.GradientTransformation | Callable[[Mapping[str, Array]], optax.GradientTransformation]
)


class State(NamedTuple):
    """All that a run carries from step to step; a pytree of arrays.

    Attributes:
        step: int32, how many steps were taken.
        key: the PRNG key that the data order derives from; it never changes.
        hparams: traced hyperparameters, by name.
        params: what the optimiser moves.
        variables: what the loss itself updates, such as batch statistics.
        opt_state: the optimiser's state.
        diverged_step: int32, the first step whose loss, gradient or result was not finite; -1 as long as none was.
    """

    step: Int[Array, ""]
    key: jax.Array
    hparams: Mapping[str, Array]
    params: PyTree
    variables: PyTree
    opt_state: PyTree
    diverged_step: Int[Array, ""]


class History(NamedTuple):
    """What a run recorded.

    Attributes:
        loss: before each step, on its batch; NaN from the step at which the run diverged.
        metrics: the loss function's own, a leading axis of steps.
        measurements: of `measure`, a leading axis of num_steps / measure_every; None without one.
    """

    loss: Float[Array, " step"]
    metrics: PyTree
    measurements: PyTree


def start(
    optimizer: Optimizer,
    *,
    key: jax.Array,
    params: PyTree,
    variables: PyTree = None,
    hparams: Mapping[str, ArrayLike] | None = None,
) -> State:
    """The `State` before the first step.

    Args:
        optimizer: the one that `fit` is given.
        key: drives the order of the data.
        params: starting point, float arrays.
        variables: starting values of what the loss updates.
        hparams: traced hyperparameters that the optimiser and the loss are called with; numbers become arrays.

    Raises:
        TypeError: `key` is not a PRNG key.
        ValueError: a hyperparameter is no number that an array of JAX holds.
    """
    if not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
        raise TypeError(f"`key` must be a typed PRNG key, got {key!r}. Use jax.random.key(0).")
    arrays = {name: traced(name, value) for name, value in (hparams or {}).items()}
    return State(
        step=jnp.zeros((), jnp.int32),
        key=key,
        hparams=arrays,
        params=params,
        variables=variables,
        opt_state=_resolve(optimizer, arrays).init(params),
        diverged_step=jnp.full((), -1, jnp.int32),
    )


def fit(
    loss: Loss,
    sample: Callable[[jax.Array], PyTree],
    optimizer: Optimizer,
    *,
    num_steps: int | np.integer,
    measure: Callable[[State], PyTree] | None = None,
    measure_every: int | np.integer = 1,
    report: Callable[[Int[np.ndarray, "*member"], History], object] | None = None,
) -> Callable[[State], tuple[State, History]]:
    """A pure function that trains for `num_steps`.

    Batch t is sample(fold_in(key, t)): the data depend on the step alone, so that two runs of n steps, one after
    the other, equal one of 2n bit for bit. A step is taken if its loss, every entry of its gradient and what it
    makes of params, variables and the optimiser's state are finite (entries that were not before, such as a best
    loss that starts at infinity, may stay so). A run is frozen before its first step that is not, the step is recorded,
    and nothing else vmapped beside it is touched. What stays infinite or NaN once it is so, as in SGD and Adam, is
    looked for at the end alone and costs no step anything; the run is then made again up to the step before.

    Args:
        loss: `loss(params, variables, batch, hparams) -> (value, (variables, metrics))`; value a real scalar.
        sample: `sample(key) -> batch`, pure.
        optimizer: an optax transformation, or a function of hparams that makes one, e.g.
            `lambda h: optax.sgd(h["learning_rate"], momentum=0.9)`. Those that ask for more than gradients, such as
            `polyak_sgd`, `lbfgs` or `contrib.sophia`, get `value`, `grad`, and the loss on this batch as a function
            of params, `value_fn` and `obj_fn`.
        num_steps: steps of one call, static.
        measure: called on the state after every `measure_every` steps.
        measure_every: must divide `num_steps`.
        report: `report(step, history)`, called on the host after every `measure_every` steps while the run goes on,
            e.g. `lambda step, history: log(step, history.loss[-1])`: how many steps were taken, and the `History` of
            the last `measure_every`, as numpy arrays, with a leading axis of members where the run is vmapped. On a
            mesh each device calls it for its own members, perhaps two at once. The device waits for it: let what is
            slow only put into a queue. `jax.effects_barrier()` waits for the last call, and raises what it raised.
            Each step is told once, before it is known whether what comes of it stays finite.

    Returns:
        `run(state) -> (state, history)`, to be jitted, vmapped (see `population`) and composed by the caller.

    Raises:
        ValueError: if `num_steps` or `measure_every` is not a positive integer, or does not divide.

    >>> run = fit(lambda p, v, batch, h: (p**2, (v, ())), lambda key: (), optax.sgd(0.25), num_steps=2)
    >>> state, history = run(start(optax.sgd(0.25), key=jax.random.key(0), params=jnp.float32(1.0)))
    >>> float(state.params), history.loss.tolist()
    (0.25, [1.0, 0.25])
    """
    num_steps = check_count("num_steps", num_steps, remedy="Count steps.")
    measure_every = check_count("measure_every", measure_every, remedy="Count steps.")
    if num_steps % measure_every:
        raise ValueError(
            f"`measure_every` must divide `num_steps`, got {measure_every} and {num_steps}. "
            f"Use num_steps={num_steps - num_steps % measure_every or measure_every}."
        )
    tell = None if report is None else _on_host(report)

    def step(carry: tuple[State, Array], _: None) -> tuple[tuple, tuple]:
        state, stop = carry
        batch = sample(jax.random.fold_in(state.key, state.step))
        (value, (variables, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.variables, batch, state.hparams
        )

        def updated(gradient: PyTree, params: PyTree, opt_state: PyTree) -> tuple[PyTree, PyTree]:
            def value_fn(params: PyTree, obj_fn: object = None) -> Array:
                # Line searches refuse an argument that this does not take, and `obj_fn` is what sophia calls it by.
                return loss(params, state.variables, batch, state.hparams)[0]

            update = optax.with_extra_args_support(_resolve(optimizer, state.hparams)).update
            extra = {"value": value, "grad": gradient, "value_fn": value_fn, "obj_fn": value_fn}
            updates, opt_state = update(gradient, opt_state, params, **_taken(update, extra))
            return optax.apply_updates(params, updates), opt_state

        before = state.params, state.opt_state
        results = updated(gradient, *before)
        hidden = watched(updated, gradient, *before)
        finite = (state.step < stop) & jnp.isfinite(value) & _stay_finite(variables, state.variables)
        finite &= _are_finite(_leaves(gradient, hidden.gradients))
        finite &= _stay_finite(_leaves(results, hidden.results), _leaves(before, hidden.results))
        alive = (state.diverged_step < 0) & finite
        new, old = (*results, variables), (*before, state.variables)
        params, opt_state, variables = jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, old)
        after = State(
            step=state.step + 1,
            key=state.key,
            hparams=state.hparams,
            params=params,
            variables=variables,
            opt_state=opt_state,
            diverged_step=_first(state.diverged_step, state.step, finite),
        )
        return (after, stop), (jnp.where(alive, value, jnp.nan), metrics)

    def attempt(state: State, stop: Array, is_first: Array) -> tuple[State, History]:
        def block(carry: tuple[State, Array], _: None) -> tuple[tuple, History]:
            (state, stop), (loss_, metrics) = jax.lax.scan(step, carry, None, length=measure_every)
            recorded = History(loss_, metrics, None if measure is None else measure(state))
            if tell is not None:
                jax.lax.cond(is_first, tell, lambda *_: None, state.step, recorded)
            return (state, stop), recorded

        carry, recorded = jax.lax.scan(block, (state, stop), None, length=num_steps // measure_every)
        flat = lambda tree: jax.tree.map(lambda a: a.reshape(num_steps, *a.shape[2:]), tree)  # noqa: E731
        return carry[0], History(flat(recorded.loss), flat(recorded.metrics), recorded.measurements)

    return lambda state: _last_finite(attempt, state, num_steps)


class _Search(NamedTuple):
    """How far a run gets.

    Attributes:
        good: after so many steps the state is finite.
        bad: after so many it is not; one more than there are where none is known.
        is_done: whether that one was the farthest.
        num_tried: attempts so far.
        last: what the one before gave.
    """

    good: Int[Array, ""]
    bad: Int[Array, ""]
    is_done: Bool[Array, ""]
    num_tried: Int[Array, ""]
    last: tuple[State, History]


def _last_finite(attempt: Callable[..., tuple[State, History]], state: State, num_steps: int) -> Any:
    """What `attempt(state, stop, is_first)` gives with the farthest stop after which state is finite.

    One attempt is all that a run takes whose state is finite at its end, for what is infinite or NaN in between stays
    so, or is watched at every step. Where it is not, the step that made it so is halved in on, by the same program.
    """
    pure, closed_over = jax.closure_convert(attempt, state, jnp.int32(0), jnp.asarray(True))

    @jax.custom_jvp
    def run(state: State, *closed_over: Array) -> tuple[State, History, Array]:
        shapes = jax.eval_shape(pure, state, jnp.int32(0), jnp.asarray(True), *closed_over)
        zero = jnp.int32(0)

        def once(search: _Search) -> _Search:
            halfway = (search.good + search.bad) // 2
            # What is not finite has most often just become so.
            stop = jnp.where(search.num_tried == 1, search.bad - 1, halfway)
            stop = jnp.where(search.num_tried == 0, num_steps, jnp.where(search.is_done, search.good, stop))
            after, history = pure(state, state.step + stop, search.num_tried == 0, *closed_over)
            num_taken = jnp.maximum(after.diverged_step - state.step, 0)
            num_taken = jnp.where(after.diverged_step < 0, num_steps, num_taken)
            is_good = _stay_finite((after.params, after.opt_state), (state.params, state.opt_state))
            good = jnp.where(is_good, num_taken, search.good)
            bad = jnp.where(is_good, search.bad, num_taken)
            is_done = search.is_done | (is_good & ((num_taken < stop) | (stop >= bad - 1)))
            return _Search(good, bad, is_done, search.num_tried + 1, (after, history))

        nothing = jax.tree.map(lambda leaf: jax.lax.full(leaf.shape, 0, leaf.dtype), shapes)
        begun = _Search(zero, zero + num_steps + 1, jnp.asarray(False), zero, nothing)
        found = jax.lax.while_loop(lambda search: _any_member(~search.is_done), once, begun)
        return *found.last, found.good

    @run.defjvp
    def along(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
        after, history, good = run(*primals)
        stop = primals[0].step + good

        def again(state: State, *closed_over: Array) -> tuple[State, History]:
            return pure(state, stop, jnp.asarray(False), *closed_over)

        _, moved = jax.jvp(again, primals, tangents)
        return (after, history, good), (*moved, np.zeros(good.shape, jax.dtypes.float0))

    return run(state, *closed_over)[:2]


def _leaves(tree: PyTree, which: frozenset[int]) -> list[Array]:
    return [leaf for number, leaf in enumerate(jax.tree.leaves(tree)) if number in which]


def traced(name: str, value: ArrayLike | Sequence[ArrayLike]) -> Array:
    """A hyperparameter as an array, which a program takes at run time."""
    try:
        return jnp.asarray(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"The hyperparameter `{name}` must be numbers that an array of JAX holds, got {reprlib.repr(value)}: "
            f"{error}. Give numbers, integers beyond 2^31 as floats."
        ) from error


def _resolve(optimizer: Optimizer, hparams: Mapping[str, Array]) -> optax.GradientTransformation:
    # A GradientTransformation is a pair of functions and not itself callable.
    return optimizer(hparams) if callable(optimizer) else optimizer


def _taken(update: Callable[..., Any], extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments that a function takes: `contrib.sam` says that it takes any, and does not (optax 0.2.8)."""
    parameters = inspect.signature(update).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return {name: value for name, value in extra.items() if takes_any or name in parameters}


def _first(diverged_step: Int[Array, ""], step: Int[Array, ""], finite: Bool[Array, ""]) -> Int[Array, ""]:
    return jnp.where((diverged_step < 0) & ~finite, step, diverged_step)


def _are_finite(tree: PyTree) -> Bool[Array, ""]:
    """Whether every entry is: by entry, as a norm overflows in its own dtype (eight float16 numbers of 500 do).

    0 x is NaN where x is not finite: a product with zeros, the fastest reduction that XLA has on a CPU, finds its row.
    """
    floats = [
        leaf for leaf in map(jnp.asarray, jax.tree.leaves(tree)) if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    # In full precision: a product in bfloat16 would round the largest float32 numbers to infinity.
    rows = [
        jnp.matmul(leaf, jnp.zeros(leaf.shape[-1:], leaf.dtype), precision="highest")
        if leaf.size > _SMALL
        else leaf
        for leaf in floats
    ]
    return _all([jnp.isfinite(row) for row in rows])


def _stay_finite(new: PyTree, old: PyTree) -> Bool[Array, ""]:
    """Whether every entry is that was: a best loss that starts at infinity may stay there."""
    return _all(
        [
            jnp.isfinite(after) | ~jnp.isfinite(before)
            for after, before in zip(jax.tree.leaves(new), jax.tree.leaves(old), strict=True)
            if jnp.issubdtype(jnp.result_type(after), jnp.inexact)
        ]
    )


_SMALL = 2**14  # entries of a leaf that is read as it is: a product for each would take longer to compile


def _all(claims: list[Array]) -> Bool[Array, ""]:
    """Whether all hold, by one reduction: one for each of a network's leaves would take longer to compile."""
    return jnp.all(jnp.concatenate([jnp.ravel(claim) for claim in claims])) if claims else jnp.asarray(True)


@jax.custom_batching.custom_vmap
def _any_member(claim: Bool[Array, ""]) -> Bool[Array, ""]:
    """Whether it is true of any of those vmapped: one answer for all, so that a branch on it stays a branch."""
    return claim


@_any_member.def_vmap
def _any_of_a_population(size: int, is_batched: list[bool], claims: Array) -> tuple[Array, bool]:
    return _any_member(jnp.any(claims)), False


def _on_host(report: Callable[..., object]) -> Callable[[Array, History], None]:
    """`report` as a step of a program, one call for all that is vmapped: by itself a callback is called for each."""

    def call(step: Array, history: History) -> None:
        report(*jax.tree.map(np.asarray, (step, history)))

    @jax.custom_batching.custom_vmap
    def tell(step: Array, history: History) -> None:
        jax.debug.callback(call, step, history)

    @tell.def_vmap
    def of_a_population(size: int, is_batched: list, step: Array, history: History) -> tuple[None, None]:
        spread = lambda leaf, batched: leaf if batched else jnp.broadcast_to(leaf, (size, *leaf.shape))  # noqa: E731
        return tell(*jax.tree.map(spread, (step, history), tuple(is_batched))), None

    return tell
