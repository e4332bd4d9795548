"""What one cell of the study of Lipschitz bounds computes: networks, trained, and every bound of each."""

from __future__ import annotations

import functools
import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxact import fit, lipschitz, nn, theory
from jaxact.activations import Activation, select
from jaxact.lipschitz import Ball, certify
from train.experiment import Cell, Progress
from train.experiments._blocks import CALIBRATION, NORMS, STAGES, split_block

if TYPE_CHECKING:
    from train.experiments.lipschitz_depth import LipschitzDepth


def run(study: LipschitzDepth, cell: Cell, progress: Progress) -> dict[str, np.ndarray]:
    """Train and bound one cell; arrays by name, [seed, ...]."""
    programs = _programs(study, cell.coords["block"])
    activation = next(each for each in study.activations if each.name == cell.coords["activation"])
    depth = cell.coords["depth"]
    found: list[dict[str, Any]] = []
    for index, seed in enumerate(study.seeds):

        def report(part: float, note: str, index: int = index) -> None:
            progress((index + part) / len(study.seeds), note)

        report(0.0, "initialise")
        state = programs.init(seed, depth, activation)
        initial = programs.measure(state, depth, activation, lambda part, note: report(0.5 * part, note))
        report(0.5, "train")
        state = programs.train(state, depth, activation)
        trained = programs.measure(
            state, depth, activation, lambda part, note: report(0.5 + 0.5 * part, note)
        )
        found.append({name: [initial[name], trained[name]] for name in initial})
    return {name: np.asarray([each[name] for each in found], float) for name in found[0]}


@functools.lru_cache(maxsize=4)
def _programs(study: LipschitzDepth, block: str) -> _Programs:
    return _Programs(study, block)


class _Programs:
    """init, train, accuracy and the bounds of one block, with depth and activation as run-time arguments."""

    def __init__(self, study: LipschitzDepth, block: str):
        self.study = study
        stage, norm = split_block(block)
        self.has_norm = norm == "bn"
        data = study.task.load().flat()
        self.data = jax.device_put(data)
        self.network = nn.functional(
            partial(
                nn.MLP,
                data.train_inputs.shape[1],
                study.width,
                data.num_classes,
                max_depth=max(study.depths),
                activation=study.activations[0],
                stage=STAGES[stage],
                norm=NORMS[norm],
            )
        )
        self.optimizer = optax.sgd(study.learning_rate, momentum=study.momentum)
        self._warm: set[str] = set()
        self._start, self._steps = jax.jit(self._initial), jax.jit(self._trained)
        self._accuracy, self._lower, self._product = map(
            jax.jit, (self._accuracy_of, self._lower_bound, self._product_bound)
        )

    def init(self, seed: int, depth: int, activation: Activation) -> fit.State:
        """The state before the first step."""
        sigma_w = float(theory.moments(activation).slope_second_moment) ** -0.5  # gradients keep their size
        return self._start(jax.random.key(seed), self.data, *self._traced(depth, activation), sigma_w)

    def train(self, state: fit.State, depth: int, activation: Activation) -> fit.State:
        """The state after the last step."""
        return self._steps(state, self.data, *self._traced(depth, activation))

    def measure(self, state: fit.State, depth: int, activation: Activation, report: Any) -> dict[str, Any]:
        """Accuracy and every bound of one state; NaN for a network that diverged."""
        study, names = self.study, self.study.bounds()
        traced = self._traced(depth, activation)
        accuracy = float(self._accuracy(state, self.data, *traced))
        if int(state.diverged_step) >= 0:
            nothing = [math.nan] * len(names)
            return {"lipschitz_log10": nothing, "bound_time": nothing, "test_accuracy": math.nan}
        bounds, seconds = {}, {}
        for name, program in (("lower", self._lower), ("product", self._product)):
            report(0.0, name)
            if name not in self._warm:  # the first call compiles, for all cells of the block
                program(state, self.data, *traced).block_until_ready()
                self._warm.add(name)
            started = time.perf_counter()
            bounds[name] = float(program(state, self.data, *traced))
            seconds[name] = time.perf_counter() - started
        point = np.asarray(self.data.test_inputs[0])

        def network(x):
            return self.network.apply(state.params, state.variables, x[None], depth, activation)[0][0]

        options: dict[str, dict[str, Any]] = {
            "closed form": {},
            "ellipsoid": {"num_steps": study.refine_steps},
        }
        for name, radius in zip(names[1:], study.radii, strict=False):
            options[name] = {"num_steps": study.local_steps, "region": Ball(point, radius)}
        for index, (name, given) in enumerate(options.items()):
            report((index + 1) / (len(options) + 1), name)
            certificate = certify(network, point, **given)
            bounds[name], seconds[name] = float(certificate.log10), certificate.seconds
        for name in names[1:-3]:  # what holds everywhere holds in a ball
            bounds[name] = min(bounds[name], bounds["ellipsoid"])
        return {
            "lipschitz_log10": [bounds[name] for name in names],
            "bound_time": [seconds[name] for name in names],
            "test_accuracy": accuracy,
        }

    def _traced(self, depth: int, activation: Activation) -> tuple[Any, Any]:
        index = self.study.activations.index(activation)
        return jnp.asarray(depth, jnp.int32), select(self.study.activations, index)

    def _initial(self, key, data, depth, activation, sigma_w):
        key_init, key_data = jax.random.split(key)
        params, variables = self.network.init(key_init, sigma_w=sigma_w)
        if self.has_norm:
            inputs = data.train_inputs[:CALIBRATION]
            _, variables = self.network.apply(
                params, variables, inputs, depth, activation, method=nn.calibrate
            )
        return fit.start(self.optimizer, key=key_data, params=params, variables=variables)

    def _trained(self, state, data, depth, activation):
        def sample(key):
            rows = jax.random.randint(key, (self.study.batch_size,), 0, len(data.train_inputs))
            return data.train_inputs[rows], data.train_labels[rows]

        def loss(params, variables, batch, hparams):
            logits, variables = self.network.apply(
                params, variables, batch[0], depth, activation, training=True
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
            return losses.mean(), (variables, ())

        state, _ = fit.fit(loss, sample, self.optimizer, num_steps=self.study.num_steps)(state)
        return state

    def _call(self, state, x, depth, activation, mode="reverse"):
        return self.network.apply(state.params, state.variables, x, depth, activation, mode=mode)[0]

    def _accuracy_of(self, state, data, depth, activation):
        logits = self._call(state, data.test_inputs, depth, activation)
        return jnp.mean(jnp.argmax(logits, -1) == data.test_labels)

    def _lower_bound(self, state, data, depth, activation):
        # jit, so that the many places where the ascent calls the network share one trace
        network = jax.jit(lambda x: self._call(state, x[None], depth, activation)[0])
        forward = jax.jit(lambda x: self._call(state, x[None], depth, activation, "forward")[0])
        lower = lipschitz.lower_bound(
            network,
            data.test_inputs[: self.study.num_starts],
            key=jax.random.fold_in(state.key, self.study.num_steps),  # batches take the steps before
            num_steps=self.study.ascent_steps,
            tangent=lambda x, v: jax.jvp(forward, (x,), (v,))[1],
        )
        return jnp.log10(lower.value)

    def _product_bound(self, state, data, depth, activation):
        del data
        log, _ = self.network.apply(state.params, state.variables, depth, activation, method="log_lipschitz")
        return log / math.log(10)
