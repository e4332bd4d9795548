"""The training loop: many optimiser steps in one compiled scan, resumable at any step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PyTree

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
        diverged_step: int32, the first step whose loss or gradient was not finite; -1 as long as none was.
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
    """
    if not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
        raise TypeError(f"`key` must be a typed PRNG key, got {key!r}. Use jax.random.key(0).")
    traced = {name: jnp.asarray(value) for name, value in (hparams or {}).items()}
    return State(
        step=jnp.zeros((), jnp.int32),
        key=key,
        hparams=traced,
        params=params,
        variables=variables,
        opt_state=_resolve(optimizer, traced).init(params),
        diverged_step=jnp.full((), -1, jnp.int32),
    )


def fit(
    loss: Loss,
    sample: Callable[[jax.Array], PyTree],
    optimizer: Optimizer,
    *,
    num_steps: int,
    measure: Callable[[State], PyTree] | None = None,
    measure_every: int = 1,
) -> Callable[[State], tuple[State, History]]:
    """A pure function that trains for `num_steps`.

    Batch t is sample(fold_in(key, t)): the data depend on the step alone, so that two runs of n steps, one after
    the other, equal one of 2n bit for bit. A run whose loss or gradient stops being finite is frozen as it was
    before that step, the step is recorded, and nothing else vmapped beside it is touched.

    Args:
        loss: `loss(params, variables, batch, hparams) -> (value, (variables, metrics))`; value a real scalar.
        sample: `sample(key) -> batch`, pure.
        optimizer: an optax transformation, or a function of hparams that makes one, e.g.
            `lambda h: optax.sgd(h["learning_rate"], momentum=0.9)`.
        num_steps: steps of one call, static.
        measure: called on the state after every `measure_every` steps.
        measure_every: must divide `num_steps`.

    Returns:
        `run(state) -> (state, history)`, to be jitted, vmapped (see `population`) and composed by the caller.

    Raises:
        ValueError: if `num_steps` or `measure_every` is not a positive integer, or does not divide.

    >>> run = fit(lambda p, v, batch, h: (p**2, (v, ())), lambda key: (), optax.sgd(0.25), num_steps=2)
    >>> state, history = run(start(optax.sgd(0.25), key=jax.random.key(0), params=jnp.float32(1.0)))
    >>> float(state.params), history.loss.tolist()
    (0.25, [1.0, 0.25])
    """
    for name, value in (("num_steps", num_steps), ("measure_every", measure_every)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
    if num_steps % measure_every:
        raise ValueError(
            f"`measure_every` must divide `num_steps`, got {measure_every} and {num_steps}. "
            f"Use num_steps={num_steps - num_steps % measure_every or measure_every}."
        )

    def step(state: State, _: None) -> tuple[State, tuple]:
        batch = sample(jax.random.fold_in(state.key, state.step))
        (value, (variables, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.variables, batch, state.hparams
        )
        transform = _resolve(optimizer, state.hparams)
        updates, opt_state = transform.update(gradient, state.opt_state, state.params)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradient))
        alive = (state.diverged_step < 0) & finite
        keep = lambda new, old: jax.tree.map(lambda a, b: jnp.where(alive, a, b), new, old)  # noqa: E731
        after = State(
            step=state.step + 1,
            key=state.key,
            hparams=state.hparams,
            params=keep(optax.apply_updates(state.params, updates), state.params),
            variables=keep(variables, state.variables),
            opt_state=keep(opt_state, state.opt_state),
            diverged_step=_first(state.diverged_step, state.step, finite),
        )
        return after, (jnp.where(alive, value, jnp.nan), metrics)

    def block(state: State, _: None) -> tuple[State, tuple]:
        state, recorded = jax.lax.scan(step, state, None, length=measure_every)
        return state, (recorded, None if measure is None else measure(state))

    def run(state: State) -> tuple[State, History]:
        state, (recorded, measurements) = jax.lax.scan(block, state, None, length=num_steps // measure_every)
        loss_, metrics = jax.tree.map(lambda a: a.reshape(num_steps, *a.shape[2:]), recorded)
        return state, History(loss_, metrics, measurements)

    return run


def _resolve(optimizer: Optimizer, hparams: Mapping[str, Array]) -> optax.GradientTransformation:
    # A GradientTransformation is a pair of functions and not itself callable.
    return optimizer(hparams) if callable(optimizer) else optimizer


def _first(diverged_step: Int[Array, ""], step: Int[Array, ""], finite: Bool[Array, ""]) -> Int[Array, ""]:
    return jnp.where((diverged_step < 0) & ~finite, step, diverged_step)
