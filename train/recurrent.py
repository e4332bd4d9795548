"""Recurrent networks: trained on problems of memory, every law of weights side by side; gradients back in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import fit, nn, theory
from jaxact.activations import Activation, select
from train.optimizers import Adam
from train.partial import chunked
from train.tasks import SequenceTask

LAWS = ("gaussian", "orthogonal", "identity")


@dataclass(frozen=True, kw_only=True)
class MemoryTrial:
    """How recurrent networks are trained on a sequence problem; hashable, for it is static in the compiled programs.

    Attributes:
        task: the problem; every batch is drawn anew.
        activations: the choices, of which one program serves all.
        hidden: units.
        batch_size: sequences a step.
        num_steps: of Adam, gradients clipped at norm 1.
        learning_rate: of Adam.
    """

    task: SequenceTask
    activations: tuple[Activation, ...]
    hidden: int
    batch_size: int
    num_steps: int
    learning_rate: float

    def final_loss(self, index: int, seeds: tuple[int, ...]) -> np.ndarray:
        """The mean loss over the last tenth of the steps; NaN where a network diverged.

        Gaussian and orthogonal weights have the gain at which small states neither grow nor shrink in a wide network,
        g^2 E f'^2 = 1; identity weights are the identity.

        Args:
            index: of the activation.
            seeds: of weights and batches.

        Returns:
            [law, seed], laws in the order of `LAWS`.
        """
        keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
        gain = jnp.float32(small_signal_gain(self.activations[index]))
        # Weights do not depend on the length: one program for all of them.
        start = _started(replace(self, task=replace(self.task, length=2)), keys, gain)

        def advance(_: tuple) -> tuple[tuple, dict[str, np.ndarray]]:
            return (), {"loss": np.asarray(_final_loss(self, start, keys, jnp.asarray(index, jnp.int32)))}

        ((_, record),) = chunked(advance, (), num_chunks=1)
        return record["loss"]


def longest_trained(
    trials: Sequence[MemoryTrial], seeds: tuple[int, ...], progress: Callable[[float, str], None]
) -> np.ndarray:
    """The longest length of a problem at which networks train.

    A network counts as trained at a length if its final loss is below half of what is lost without any memory. A length
    is tried only with activations that some network trained with at the one before.

    Args:
        trials: of the same activations, by ascending length.
        seeds: of weights and batches.
        progress: called after each.

    Returns:
        [activation, law, seed]; 0 for networks that trained at none.
    """
    choices = trials[0].activations
    longest, tried = np.zeros((len(choices), len(LAWS), len(seeds))), [*range(len(choices))]
    for place, trial in enumerate(trials):
        for index in tried:
            longest[index][trial.final_loss(index, seeds) < 0.5 * trial.task.baseline] = trial.task.length
        tried = [index for index in tried if (longest[index] == trial.task.length).any()]
        progress((place + 1) / len(trials), f"{trial.task.name}, length {trial.task.length}")
    return longest


def backpropagated(step: Callable, state: jax.Array, inputs: Any, gradient: jax.Array) -> jax.Array:
    """By how much each step multiplies the norm of a gradient that is passed back through all of them.

        g_{t-1} = J_t^T g_t,   |g_{t-1}| / |g_t|

    Scaled to norm 1 on the way, so that nothing under- or overflows.

    Args:
        step: maps a state and an input to the next state.
        state: before the first step.
        inputs: a pytree with an axis of time.
        gradient: with respect to the last state.

    Returns:
        [time].
    """

    def back(g: jax.Array, place: tuple) -> tuple:
        h, u = place
        (g,) = jax.vjp(lambda h: step(h, u), h)[1](g)
        size = jnp.linalg.norm(g)
        return g / size, size

    _, states = jax.lax.scan(lambda h, u: (step(h, u), h), state, inputs)
    return jax.lax.scan(back, gradient / jnp.linalg.norm(gradient), (states, inputs), reverse=True)[1]


def small_signal_gain(f: Activation) -> float:
    """The gain g with g^2 E f'^2 = 1 for signals about 0 that vanish: 1 / f'(0), or `theory.gain` where 0 is a kink.

    >>> from jaxact import activations
    >>> small_signal_gain(activations.sigmoid), round(small_signal_gain(activations.relu), 4)
    (4.0, 1.4142)
    """
    return float(theory.gain(f)) if 0.0 in f.kinks else 1 / float(f.derivative(jnp.zeros(())))


def _network(trial: MemoryTrial, law: Any) -> nn.Functional:
    sizes = trial.task.in_features, trial.hidden, trial.task.out_features
    return nn.functional(partial(nn.RNN, *sizes, activation=trial.activations[0], weights=law))


@partial(jax.jit, static_argnums=0)
def _started(trial: MemoryTrial, keys: jax.Array, gain: jax.Array) -> Any:
    """Parameters and variables before training, [law and seed]."""
    each = [
        jax.vmap(
            lambda key, law=law: _network(trial, law).init(key, gain=1.0 if law == "identity" else gain)
        )(keys)
        for law in LAWS
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *each)


@partial(jax.jit, static_argnums=0)
def _final_loss(trial: MemoryTrial, start: Any, keys: jax.Array, index: jax.Array) -> jax.Array:
    task, network = trial.task, _network(trial, LAWS[0])
    f, optimizer = select(trial.activations, index), Adam(clip_norm=1.0).bound(trial.num_steps)

    def loss(params: Any, variables: Any, batch: tuple, hparams: Any) -> tuple:
        outputs, variables = network.apply(params, variables, batch[0], f, last=task.num_outputs)
        return task.loss(outputs, batch[1]), (variables, ())

    def one(start: tuple, key: jax.Array) -> jax.Array:
        state = fit.start(
            optimizer,
            key=jax.random.fold_in(key, 1),
            params=start[0],
            variables=start[1],
            hparams={"learning_rate": trial.learning_rate},
        )
        run = fit.fit(
            loss, lambda key: task.sample(key, trial.batch_size), optimizer, num_steps=trial.num_steps
        )
        return run(state)[1].loss[-max(trial.num_steps // 10, 1) :].mean()

    return jax.vmap(one)(start, jnp.tile(keys, len(LAWS))).reshape(len(LAWS), -1)
