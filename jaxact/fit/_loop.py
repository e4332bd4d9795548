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
    loss that starts at infinity, may stay so). A run is frozen before its first step that is not, the step is
    recorded, and nothing else vmapped beside it is touched.

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
            Steps are told a second time if their results turn out not to be finite and are made again.

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
        state, is_strict = carry
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
        finite = jnp.isfinite(value) & _are_finite(gradient) & _stay_finite(variables, state.variables)
        # The branch makes the result itself: an operand would be written to memory at every step.
        finite &= jax.lax.cond(
            is_strict, lambda: _stay_finite(updated(gradient, *before), before), lambda: jnp.asarray(True)
        )
        alive = (state.diverged_step < 0) & finite
        new, old = (*updated(gradient, *before), variables), (*before, state.variables)
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
        return (after, is_strict), (jnp.where(alive, value, jnp.nan), metrics)

    def block(carry: tuple[State, Array], _: None) -> tuple[tuple, History]:
        (state, is_strict), (loss_, metrics) = jax.lax.scan(step, carry, None, length=measure_every)
        recorded = History(loss_, metrics, None if measure is None else measure(state))
        if tell is not None:
            tell(state.step, recorded)
        return (state, is_strict), recorded

    def attempt(state: State, is_strict: Array) -> tuple[State, History]:
        carry, recorded = jax.lax.scan(block, (state, is_strict), None, length=num_steps // measure_every)
        flat = lambda tree: jax.tree.map(lambda a: a.reshape(num_steps, *a.shape[2:]), tree)  # noqa: E731
        return carry[0], History(flat(recorded.loss), flat(recorded.metrics), recorded.measurements)

    return lambda state: _strict_if_need_be(
        jax.jit(attempt), state
    )  # jit: traced once for all that is made of it


def _strict_if_need_be(attempt: Callable[[State, Array], tuple[State, History]], state: State) -> Any:
    """What `attempt` makes of a state, made again with every step's result checked if what came out is not finite.

    So the checks, which take a pass over params and the optimiser's state, cost nothing in a run that needs none. What
    is infinite or NaN there stays so to the end; what a loss makes of its variables need not, and is always checked.
    """

    def one(carry: tuple[State, History, Array], is_strict: Array) -> tuple[tuple, None]:
        *last, is_needed = carry
        # A scan of a branch, since two attempts one after the other would be compiled twice.
        after, history = jax.lax.cond(is_needed, attempt, lambda *_: tuple(last), state, is_strict)
        before = state.params, state.opt_state
        return (after, history, _any_member(~_stay_finite((after.params, after.opt_state), before))), None

    shapes = jax.eval_shape(attempt, state, jnp.asarray(False))
    nothing = jax.tree.map(lambda leaf: jax.lax.full(leaf.shape, 0, leaf.dtype), shapes[1])
    (after, history, _), _ = jax.lax.scan(
        one, (state, nothing, jnp.asarray(True)), jnp.asarray([False, True])
    )
    return after, history


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
