"""The phase diagram's compiled programs: two for the whole study, with depth, activation and sigma_w at run time."""

from __future__ import annotations

import functools
import itertools
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxact import fit, nn, theory
from jaxact.activations import Activation, select
from train import devices
from train.experiment import Progress
from train.experiments._phase_diagram_limits import crossing, edges
from train.experiments.phase_diagram import THEORY

if TYPE_CHECKING:
    from train.experiments.phase_diagram import PhaseDiagram


@functools.lru_cache(maxsize=4)
def get(study: PhaseDiagram) -> Programs:
    """The programs of a study; made once a process, whichever cells ask for them."""
    return Programs(study)


class Programs:
    """init and train for all members (learning rates x seeds) of a cell, each compiled once.

    The data travel as arguments: as constants they would be copied into every program.
    """

    def __init__(self, study: PhaseDiagram):
        self.study = study
        data = study.task.load().flat()
        members = fit.grid(seeds=study.seeds, learning_rate=study.learning_rates)
        self.num_members = len(members.hparams["seed"])
        self.mesh = devices.mesh(self.num_members)
        # Padded here, once: `population` would otherwise gather the members from all devices after every call.
        self.members = fit.pad(members, 1 if self.mesh is None else self.mesh.size)
        count = study.num_evaluate
        self.data = jax.device_put(
            {
                "train": (data.train_inputs, data.train_labels),
                "part": (data.train_inputs[:count], data.train_labels[:count]),
            },
            None
            if self.mesh is None
            else jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec()),
        )
        # What guessing the commonest class scores on the rows that accuracy is measured on.
        self.chance = np.bincount(data.train_labels[:count]).max() / len(data.train_labels[:count])
        self.network = nn.functional(
            partial(
                nn.MLP,
                data.train_inputs.shape[1],
                study.width,
                data.num_classes,
                max_depth=study.max_depth or max(study.depths),
                activation=study.activations[0],
                sigma_b=study.sigma_b_squared**0.5,
            )
        )
        self.init = self._compiled(self._init)
        self.train = self._compiled(self._train, donate_argnums=0)

    def run(self, index: int, depth: int, sigma_w_squared: float, progress: Progress) -> dict[str, Any]:
        """Train one cell's members until it is settled; arrays by name, with a leading axis of members.

        Settled is when most of the seeds (more than half) are past the threshold at one learning rate: no other can
        then be faster; or when all members have diverged. Accuracies past that step are NaN.
        """
        study = self.study
        total, needed = study.num_steps // study.measure_every, len(study.seeds) // 2 + 1
        choice, traced_depth = select(study.activations, index), jnp.asarray(depth, jnp.int32)
        sigma_w = jnp.float32(sigma_w_squared**0.5)
        steps = np.arange(1, total + 1) * study.measure_every
        accuracy = np.full((self.num_members, total), np.nan)
        compile_seconds = 0.0
        first = self.train._cache_size() == 0
        started = time.perf_counter()
        progress(0.0, "initialise")
        states = self.init(self.members, self.data, traced_depth, choice, sigma_w)
        for chunk in range(total):
            progress((chunk + 1) / (total + 1), f"step {chunk * study.measure_every}")
            states, history = self.train(states, self.data, traced_depth, choice)
            accuracy[:, chunk] = np.asarray(history.measurements)[: self.num_members, 0]
            if first:  # tracing, compiling and one run each
                compile_seconds, first = time.perf_counter() - started, False
            reached = (accuracy >= study.threshold).any(axis=1).reshape(-1, len(study.seeds))
            is_settled = (reached.sum(axis=1) >= needed).any()
            if is_settled or np.isnan(accuracy[:, chunk]).all():
                break
        diverged = np.asarray(states.diverged_step)[: self.num_members].astype(float)
        return {
            "train_accuracy": accuracy,
            "steps_to_threshold": crossing(accuracy, steps, study.threshold),
            "diverged_step": np.where(diverged < 0, np.nan, diverged),
            "steps_trained": (chunk + 1) * study.measure_every,
            "compile_seconds": compile_seconds,
        }

    def _compiled(self, one, **options):
        """A function of one member, made a program of all of them; a second trace is an error."""

        def every(*args):
            return fit.population(one, *args, mesh=self.mesh)

        every.__name__ = f"phase_diagram{one.__name__}_{next(_SERIAL)}"  # chex counts by name and place
        program = chex.assert_max_traces(every, n=1)
        return jax.jit(program, compiler_options=devices.compiler_options(), **options)

    def _init(self, member, data, depth, activation, sigma_w):
        key_init, key_data = jax.random.split(member.key)
        params, variables = self.network.init(key_init, sigma_w=sigma_w)
        return fit.start(
            _optimizer(self.study.momentum),
            key=key_data,
            params=params,
            variables=variables,
            hparams=member.hparams,
        )

    def _train(self, state, data, depth, activation):
        inputs, labels = data["train"]
        network = self.network.apply

        def sample(key):
            rows = jax.random.randint(key, (self.study.batch_size,), 0, len(inputs))
            return inputs[rows], labels[rows]

        def loss(params, variables, batch, hparams):
            logits, variables = network(params, variables, batch[0], depth, activation, training=True)
            value = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()
            return value, (variables, ())

        def measure(state):
            logits, _ = network(state.params, state.variables, data["part"][0], depth, activation)
            accuracy = jnp.mean(jnp.argmax(logits, -1) == data["part"][1])
            return jnp.where(state.diverged_step < 0, accuracy, jnp.nan)

        every = self.study.measure_every
        run = fit.fit(
            loss,
            sample,
            _optimizer(self.study.momentum),
            num_steps=every,
            measure=measure,
            measure_every=every,
        )
        return run(state)


_SERIAL = itertools.count()
_CHUNK = 64  # of `theory.mean_field`, which compiles a second program for what does not fill one


@functools.lru_cache(maxsize=32)
def predict(
    activation: Activation, sigma_w_squared: tuple[float, ...], sigma_b_squared: float
) -> dict[str, Any]:
    """Mean-field theory at every sigma_w^2 of a study and, for its curves, evenly across the heat map.

    Returns:
        `q_star`, `chi`, `c_star`, `xi_c`, `xi_gradient`, one number a sigma_w^2; `curve_sigma_w_squared`,
        `curve_xi_c` and `curve_xi_gradient`, so many that all are multiples of 64; `critical_sigma_w_squared`, NaN
        where the activation has no critical point at this bias. In float64.
    """
    low, *_, high = edges(np.array(sigma_w_squared))
    low = max(
        low, min(sigma_w_squared) / 2
    )  # the border of a first column much nearer to 0 than to the second
    curve = np.linspace(
        low, high, -(-len(sigma_w_squared) // _CHUNK) * _CHUNK + _CHUNK - len(sigma_w_squared)
    )
    sigma_b = sigma_b_squared**0.5
    with jax.enable_x64(True):
        scales = np.sqrt(np.concatenate([sigma_w_squared, curve]))
        found = theory.mean_field(activation, sigma_w=scales, sigma_b=sigma_b)
        values = {name: np.asarray(getattr(found, name)) for name in THEORY}
    try:
        critical = float(theory.critical_point(activation, sigma_b=sigma_b).sigma_w) ** 2
    except ValueError:
        critical = np.nan
    count = len(sigma_w_squared)
    return {
        **{name: each[:count] for name, each in values.items()},
        "curve_sigma_w_squared": curve,
        "curve_xi_c": values["xi_c"][count:],
        "curve_xi_gradient": values["xi_gradient"][count:],
        "critical_sigma_w_squared": critical,
    }


def _optimizer(momentum: float):
    return lambda hparams: optax.sgd(hparams["learning_rate"], momentum=momentum or None)
