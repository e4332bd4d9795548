"""What one cell of the extreme-depth study computes: networks at a critical point, trained, and theory for each."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxact import fit, nn, probes, theory
from train import devices
from train.experiment import Progress

if TYPE_CHECKING:
    from train.experiments.extreme_depth import ExtremeDepth

POSITIONS = np.linspace(0.0, 1.0, 101)
_MAP_DEGREE = 48  # of the polynomial that stands for the map of angles over thousands of layers


def run(
    study: ExtremeDepth, kind: Literal["orthogonal", "gaussian"], depth: int, progress: Progress
) -> dict[str, Any]:
    """Train and measure one cell; arrays by name."""
    progress(0.0, "theory")
    point = theory.critical_point(study.activation, q_star=study.q_star)
    progress(0.02, "initialise")
    cell = _Cell(study, kind, depth, float(point.sigma_w), float(point.sigma_b))
    states = cell.init(cell.members, cell.data)
    measured: dict[str, Any] = {}
    for name, program in cell.probes.items():
        progress(0.03, name)
        measured |= jax.device_get(program(states, cell.data))
    measured = {name: np.asarray(value, float)[: len(study.seeds)] for name, value in measured.items()}
    progress(0.05, "theory")
    measured |= _theory(study, kind, depth, point, measured.pop("pair_correlation"))
    chunks, seconds = [], []
    total = study.num_steps // study.measure_every
    for chunk in range(total):
        progress(0.05 + 0.95 * chunk / total, f"step {chunk * study.measure_every}")
        started = time.perf_counter()
        states, history = cell.train(states, cell.data)
        chunks.append(jax.device_get((history.loss, history.measurements)))
        seconds.append(time.perf_counter() - started)
    losses, found = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *chunks)
    measured["train_loss"] = losses.reshape(len(losses), total, -1).mean(-1)
    measured |= found
    reached = found["test_accuracy"] >= study.threshold
    first = (reached.argmax(1) + 1) * study.measure_every
    measured["steps_to_threshold"] = np.where(reached.any(1), first, np.nan)
    diverged = np.asarray(states.diverged_step, float)
    measured["diverged_step"] = np.where(diverged < 0, np.nan, diverged)
    for name in ("train_loss", "test_loss", "test_accuracy", "steps_to_threshold", "diverged_step"):
        measured[name] = measured[name][: len(study.seeds)]
    measured |= {"sigma_w": float(point.sigma_w), "sigma_b": float(point.sigma_b), "q_star": study.q_star}
    measured["step_seconds"] = min(seconds) / study.measure_every
    return measured


class _Cell:
    """init, probes and train for all seeds of one depth and kind of weights."""

    def __init__(
        self,
        study: ExtremeDepth,
        kind: Literal["orthogonal", "gaussian"],
        depth: int,
        sigma_w: float,
        sigma_b: float,
    ):
        self.study, self.depth, self.sigma_w = study, depth, sigma_w
        data = study.task.load().flat()
        # Of mean square 1 by the task's own scaling: now of the length at which the network is critical.
        self.scale = study.q_star**0.5
        members = fit.grid(seeds=study.seeds)
        self.mesh = devices.mesh(len(study.seeds))
        self.members = fit.pad(members, 1 if self.mesh is None else self.mesh.size)
        self.data = {
            "train": (self.scale * jnp.asarray(data.train_inputs), jnp.asarray(data.train_labels)),
            "test": (self.scale * jnp.asarray(data.test_inputs), jnp.asarray(data.test_labels)),
        }
        self.network = nn.functional(
            partial(
                nn.MLP,
                data.train_inputs.shape[1],
                study.width,
                data.num_classes,
                max_depth=depth,
                activation=study.activation,
                weights=kind,
                sigma_b=sigma_b,
            )
        )
        decay = optax.cosine_decay_schedule(study.learning_rate, study.num_steps)
        self.optimizer = optax.chain(
            optax.clip_by_global_norm(study.clip_norm), optax.sgd(decay, momentum=study.momentum)
        )
        self.init = self._compiled(self._init)
        parts = {"Jacobian": self._spectrum, "signals": self._signals, "gradients": self._gradients}
        self.probes = {name: self._compiled(part, precision="float32") for name, part in parts.items()}
        self.train = self._compiled(self._train, donate_argnums=0)

    def _compiled(self, one: Callable, *, precision: str | None = None, **options: Any) -> Callable:
        def every(*args):
            with jax.default_matmul_precision(precision):
                return fit.population(one, *args, mesh=self.mesh)

        return jax.jit(every, compiler_options=devices.compiler_options(), **options)

    def _init(self, member, data):
        del data
        key_init, key_data = jax.random.split(member.key)
        params, variables = self.network.init(key_init, sigma_w=self.sigma_w)
        return fit.start(self.optimizer, key=key_data, params=params, variables=variables)

    def _logits(self, params, variables, inputs, **options):
        # Divided by the scale of the inputs: what the read-out sees is as small as they are.
        logits, variables = self.network.apply(params, variables, inputs, **options)
        return logits / self.scale, variables

    def _train(self, state, data):
        study = self.study
        inputs, labels = data["train"]

        def sample(key):
            rows = jax.random.randint(key, (study.batch_size,), 0, len(inputs))
            return inputs[rows], labels[rows]

        def loss(params, variables, batch, hparams):
            logits, variables = self._logits(params, variables, batch[0], training=True)
            return _cross_entropy(logits, batch[1]), (variables, ())

        def measure(state):
            logits, _ = self._logits(state.params, state.variables, data["test"][0])
            correct = jnp.mean(jnp.argmax(logits, -1) == data["test"][1])
            found = {"test_loss": _cross_entropy(logits, data["test"][1]), "test_accuracy": correct}
            return jax.tree.map(lambda value: jnp.where(state.diverged_step < 0, value, jnp.nan), found)

        every = study.measure_every
        run = fit.fit(loss, sample, self.optimizer, num_steps=every, measure=measure, measure_every=every)
        return run(state)

    def _spectrum(self, state, data):
        def features(x):
            hidden, _ = self.network.apply(
                state.params, state.variables, x, method="features", mode="forward"
            )
            return hidden

        values = probes.singular_values(features, data["test"][0][: self.study.num_probes])
        return {"log10_singular_value": jnp.log10(values)}

    def _signals(self, state, data):
        inputs = data["test"][0][: self.study.num_probes]
        embedded, _ = self.network.apply(state.params, state.variables, inputs, method="embed")
        trace, _ = self.network.apply(state.params, state.variables, inputs, method="trace")
        rows = jnp.asarray(np.round(POSITIONS * self.depth).astype(int))
        hidden = jnp.concatenate([embedded[None], trace.hidden])[rows]  # [position, example, unit]
        gram = jnp.einsum("pan,pbn->pab", hidden, hidden)
        length = jnp.sqrt(jnp.einsum("paa->pa", gram))
        first, second = np.triu_indices(self.study.num_probes, 1)
        correlation = (gram / (length[:, :, None] * length[:, None, :]))[:, first, second]
        return {
            "second_moment": jnp.mean(hidden**2, (1, 2)),
            "correlation": correlation.mean(-1),
            "pair_correlation": correlation[0],
        }

    def _gradients(self, state, data):
        inputs, labels = (each[: self.study.num_probes] for each in data["test"])
        taps = jnp.zeros((self.depth, len(inputs), self.study.width))

        def loss(taps):
            logits, _ = self._logits(state.params, state.variables, inputs, taps=taps)
            return _cross_entropy(logits, labels)

        (norms,) = probes.gradient_norms(loss, taps)
        rows = np.maximum(np.round(POSITIONS * self.depth).astype(int) - 1, 0)
        return {"log10_gradient_norm": (jnp.log10(norms) - jnp.log10(norms[-1]))[jnp.asarray(rows)]}


def _theory(study, kind, depth, point, pair_correlation: np.ndarray) -> dict[str, Any]:
    """The limiting law of singular values, and the correlations that the map predicts from those at the first layer."""
    spectrum = theory.jacobian_spectrum(
        study.activation, depth, sigma_w=float(point.sigma_w), q=study.q_star, weights=kind, num_points=400
    )
    num_modes = min(study.width, study.task.load().flat().train_inputs.shape[1])
    levels = 1 - (np.arange(num_modes) + 0.5) / num_modes
    log_eigenvalues = np.interp(levels, spectrum.cdf, spectrum.log_eigenvalues, left=-np.inf)
    scales = {"q": study.q_star, "sigma_w": float(point.sigma_w), "sigma_b": float(point.sigma_b)}
    map_ = angle_map(study.activation, **scales)
    rows = np.round(POSITIONS * depth).astype(int)
    angle, means = np.arccos(np.clip(np.asarray(pair_correlation, float), -1, 1)), {}
    for layer in range(depth + 1):
        means[layer] = np.cos(angle).mean(-1)
        angle = np.clip(map_(angle), 0, np.pi)
    return {
        "log10_singular_value_theory": log_eigenvalues / (2 * np.log(10)),
        "correlation_theory": np.stack([means[row] for row in rows], -1),
    }


def angle_map(activation: Any, **scales: float) -> np.polynomial.Chebyshev:
    """The correlation map as one of angles, arccos c to arccos C(c), a polynomial on [0, pi].

    In c itself the map of a kinked activation has a term (1 - c)^(3/2), which no polynomial follows close to 1, where
    inputs spend most of thousands of layers; in the angle it is smooth.
    """
    nodes = np.pi / 2 * (1 + np.cos(np.pi * (np.arange(_MAP_DEGREE + 1) + 0.5) / (_MAP_DEGREE + 1)))
    with jax.enable_x64(True):
        images = np.asarray(theory.correlation_map(activation, jnp.cos(jnp.asarray(nodes)), **scales))
    angles = np.arccos(np.clip(images, -1, 1))
    return np.polynomial.Chebyshev.fit(nodes, angles, _MAP_DEGREE, domain=[0, np.pi])


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
