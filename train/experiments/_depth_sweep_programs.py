"""The depth sweep's compiled programs: one set a block, with depth and activation as run-time arguments."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxact import fit, lipschitz, nn, probes, theory
from jaxact.activations import Activation, select
from train import devices
from train.experiment import Progress
from train.experiments._blocks import CALIBRATION, NORMS, STAGES, split_block

if TYPE_CHECKING:
    from train.experiments.depth_sweep import DepthSweep


@functools.lru_cache(maxsize=4)
def get(sweep: DepthSweep, block: str) -> Programs:
    """The programs of one block; made once, whichever cells ask for them."""
    return Programs(sweep, block)


class Programs:
    """init, train and probe for all members of a cell, each compiled once.

    The data travel as arguments: as constants they would be copied into every program.
    """

    def __init__(self, sweep: DepthSweep, block: str):
        self.sweep, self.block = sweep, block
        data = sweep.task.load().flat()
        stage, norm = split_block(block)
        self.has_batch_norm = norm == "bn"
        self.has_ellipsoid = norm in ("", "bn")  # layer and RMS norms are not linear at inference
        self.stage = stage
        self.max_depth = sweep.max_depth or max(sweep.depths)
        count = sweep.num_evaluate
        members = fit.grid(seeds=sweep.seeds, learning_rate=sweep.learning_rates)
        self.num_members = len(members.hparams["seed"])
        self.mesh = devices.mesh(self.num_members)
        # Padded here, once: `population` would otherwise gather the members from all devices after every call.
        self.members = fit.pad(members, 1 if self.mesh is None else self.mesh.size)
        self.data = jax.device_put(
            {
                "train": (data.train_inputs, data.train_labels),
                "train_part": (data.train_inputs[:count], data.train_labels[:count]),
                "test": (data.test_inputs[:count], data.test_labels[:count]),
                "probes": data.test_inputs[: sweep.num_probes],
                "calibration": data.train_inputs[:CALIBRATION],
                "gradient": (data.train_inputs[: sweep.batch_size], data.train_labels[: sweep.batch_size]),
            },
            None
            if self.mesh is None
            else jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec()),
        )
        self.network = nn.functional(
            partial(
                nn.MLP,
                data.train_inputs.shape[1],
                sweep.width,
                data.num_classes,
                max_depth=self.max_depth,
                activation=sweep.activations[0],
                stage=STAGES[stage],
                norm=NORMS[norm],
                sigma_b=sweep.sigma_b,
            )
        )
        self.init = self._compiled(self._init)
        self.train = self._compiled(self._train, donate_argnums=0)
        # Several programs rather than one: XLA would start its parts side by side and hold their memory together.
        parts = (
            self._spectrum,
            self._upper_bound,
            self._ellipsoid,
            self._lower_bound,
            self._layers,
            self._gradient_norms,
        )
        # Accelerators may round the operands of float32 products; a spectrum would show it.
        self.probes = [self._compiled(part, precision="float32") for part in parts]

    def run(self, index: int, depth: int, progress: Progress) -> dict[str, Any]:
        """Train and measure one cell; arrays by name, with a leading axis of members."""
        sweep = self.sweep
        activation = sweep.activations[index]
        sigma_w = gradient_preserving_sigma(activation) if sweep.sigma_w is None else sweep.sigma_w
        choice = select(sweep.activations, index)
        compile_seconds = _Stopwatch()
        traced_depth = jnp.asarray(depth, jnp.int32)
        progress(0.0, "initialise")
        states = compile_seconds(
            self.init, self.members, self.data, traced_depth, choice, jnp.float32(sigma_w)
        )
        initial = self._probe(compile_seconds, states, traced_depth, choice)
        chunks = []
        total = sweep.num_steps // sweep.measure_every
        for chunk in range(total):
            progress((chunk + 1) / (total + 2), f"step {chunk * sweep.measure_every}")
            states, history = compile_seconds(self.train, states, self.data, traced_depth, choice)
            chunks.append(jax.device_get(history.measurements))
        progress((total + 1) / (total + 2), "probe")
        trained = self._probe(compile_seconds, states, traced_depth, choice)
        phases = jax.tree.map(lambda a, b: np.stack([a, b], axis=1), initial, trained)
        measured: dict[str, Any] = {
            name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in chunks[0]
        }
        measured |= phases
        measured = {name: values[: self.num_members] for name, values in measured.items()}
        for name in LAYER_VARIABLES:
            measured[name] = measured[name][..., :depth]
        measured["second_moment_theory"] = self._theory(activation, sigma_w, measured.pop("embedded"), depth)
        measured |= _crossing(measured["train_accuracy"], sweep)
        diverged = np.asarray(states.diverged_step[: self.num_members], float)
        measured["diverged_step"] = np.where(diverged < 0, np.nan, diverged)
        measured["compile_seconds"] = compile_seconds.first_calls
        return measured

    def _compiled(self, one, *, precision=None, **options):
        """A function of one member, made a program of all of them; a second trace is an error."""

        def every(*args):
            with jax.default_matmul_precision(precision):
                return fit.population(one, *args, mesh=self.mesh)

        program = _traced_once(every, one.__name__)
        return jax.jit(program, compiler_options=devices.compiler_options(), **options)

    def _init(self, member, data, depth, activation, sigma_w):
        key_init, key_data = jax.random.split(member.key)
        params, variables = self.network.init(key_init, sigma_w=sigma_w)
        if self.has_batch_norm:
            _, variables = self.network.apply(
                params, variables, data["calibration"], depth, activation, method=nn.calibrate
            )
        return fit.start(
            _optimizer(self.sweep.momentum),
            key=key_data,
            params=params,
            variables=variables,
            hparams=member.hparams,
        )

    def _train(self, state, data, depth, activation):
        inputs, labels = data["train"]

        def sample(key):
            rows = jax.random.randint(key, (self.sweep.batch_size,), 0, len(inputs))
            return inputs[rows], labels[rows]

        def loss(params, variables, batch, hparams):
            logits, variables = self.network.apply(
                params, variables, batch[0], depth, activation, training=True
            )
            return _cross_entropy(logits, batch[1]), (variables, ())

        def measure(state):
            measured = {}
            for part, name in (("train_part", "train"), ("test", "test")):
                logits, _ = self.network.apply(
                    state.params, state.variables, data[part][0], depth, activation
                )
                measured[f"{name}_loss"] = _cross_entropy(logits, data[part][1])
                measured[f"{name}_accuracy"] = jnp.mean(jnp.argmax(logits, -1) == data[part][1])
            alive = state.diverged_step < 0
            return jax.tree.map(lambda value: jnp.where(alive, value, jnp.nan), measured)

        every = self.sweep.measure_every
        run = fit.fit(
            loss,
            sample,
            _optimizer(self.sweep.momentum),
            num_steps=every,
            measure=measure,
            measure_every=every,
        )
        return run(state)

    def _probe(self, run, states, depth, activation):
        """All measurements of one phase, arrays by name with a leading axis of members."""
        measured: dict[str, Any] = {}
        for program in self.probes:
            measured |= jax.device_get(run(program, states, self.data, depth, activation))
        return measured

    def _call(self, state, x, depth, activation, method="__call__", mode="reverse"):
        output, _ = self.network.apply(
            state.params, state.variables, x, depth, activation, method=method, mode=mode
        )
        return output

    def _spectrum(self, state, data, depth, activation):
        values = probes.singular_values(
            lambda x: self._call(state, x, depth, activation, "features", "forward"), data["probes"]
        )
        summary = probes.spectrum_summary(values)._asdict()
        embedded, _ = self.network.apply(state.params, state.variables, data["probes"], method="embed")
        return {
            "jacobian_singular_values": values,
            **{f"jacobian_{name}": value for name, value in summary.items()},
            "embedded": jnp.mean(embedded**2, -1),
        }

    def _upper_bound(self, state, data, depth, activation):
        return {"lipschitz_upper_log10": self._log_bound("product", state, depth, activation)}

    def _ellipsoid(self, state, data, depth, activation):
        # Member after member: jaxlib (0.10.2) works through a batch of decompositions on the threads that wait for one,
        # and with a batch on each device of a mesh none is left to do the work.
        bound = jax.custom_batching.sequential_vmap(partial(self._log_bound, "ellipsoid"))
        log10 = bound(state, depth, activation) if self.has_ellipsoid else jnp.float32(jnp.nan)
        return {"lipschitz_ellipsoid_log10": log10}

    def _log_bound(self, method, state, depth, activation):
        bound, _ = self.network.apply(
            state.params,
            state.variables,
            depth,
            activation,
            method=lambda network, *args: network.log_lipschitz(*args, method=method),
        )
        return bound / np.log(10.0)

    def _lower_bound(self, state, data, depth, activation):
        # jit, so that the many places where the ascent calls the network share one trace
        network = jax.jit(lambda x: self._call(state, x, depth, activation))
        forward = jax.jit(lambda x: self._call(state, x, depth, activation, mode="forward"))
        lower = lipschitz.lower_bound(
            network,
            data["probes"],
            key=jax.random.fold_in(state.key, self.sweep.num_steps),  # batches take the steps before
            num_steps=self.sweep.ascent_steps,
            tangent=lambda x, v: jax.jvp(forward, (x,), (v,))[1],
        )
        return {"lipschitz_lower_log10": jnp.log10(lower.value)}

    def _layers(self, state, data, depth, activation):
        trace, _ = self.network.apply(
            state.params, state.variables, data["test"][0], depth, activation, method="trace"
        )
        return probes.layer_statistics(trace.preactivation, activation, hidden=trace.hidden)._asdict()

    def _gradient_norms(self, state, data, depth, activation):
        """||dL/dW_l|| and ||dL/dh_l|| on one batch, norms in training mode as the optimiser sees them."""
        inputs, labels = data["gradient"]
        taps = jnp.zeros((self.max_depth, len(inputs), self.sweep.width))

        def loss(kernels, taps):
            params = jax.tree_util.tree_map_with_path(
                lambda path, leaf: kernels if _is_stage_kernel(path) else leaf, state.params
            )
            logits, _ = self.network.apply(
                params, state.variables, inputs, depth, activation, taps=taps, training=True
            )
            return _cross_entropy(logits, labels)

        leaves = jax.tree_util.tree_leaves_with_path(state.params)
        (kernels,) = [leaf for path, leaf in leaves if _is_stage_kernel(path)]
        weights, hidden = probes.gradient_norms(loss, kernels, taps)
        return {"weight_gradient_norm": weights, "hidden_gradient_norm": hidden}

    def _theory(self, activation: Activation, sigma_w: float, embedded: np.ndarray, depth: int) -> np.ndarray:
        """Mean-field second moment a layer, [member, depth], from each probe's own first-layer moment.

        Plain: q' = sigma_w^2 E f(sqrt(v) z)^2 + sigma_b^2; pre-activation: q' = q + that, since branch and skip are
        uncorrelated. v = q, or 1 behind a norm. Post-activation sums leave the Gaussian family: NaN.
        """
        q = jnp.asarray(embedded[:, 0])  # [member, phase, example] at initialisation
        if self.stage == "post_activation":
            return np.full((len(q), depth), np.nan)
        behind_norm = split_block(self.block)[1] != ""
        moments = []
        for _ in range(depth):
            grown = _variance_map(
                activation, jnp.ones_like(q) if behind_norm else q, sigma_w, self.sweep.sigma_b
            )
            q = grown if self.stage == "plain" else q + grown
            moments.append(np.mean(q, axis=-1))
        return np.stack(moments, axis=-1)


_SERIAL = itertools.count()
LAYER_VARIABLES = (
    *("second_moment", "mean", "zero_fraction", "dead_fraction", "saturated_fraction"),
    *("weight_gradient_norm", "hidden_gradient_norm"),
)


@functools.cache
def gradient_preserving_sigma(activation: Activation) -> float:
    """sigma_w with sigma_w^2 E f'(z)^2 = 1, z ~ N(0, 1)."""
    return float(theory.moments(activation).slope_second_moment) ** -0.5


@partial(jax.jit, static_argnums=0)
def _variance_map(activation, q, sigma_w, sigma_b):
    return theory.variance_map(activation, q, sigma_w=sigma_w, sigma_b=sigma_b)


def _crossing(train_accuracy: np.ndarray, sweep: DepthSweep) -> Mapping[str, Any]:
    """First measured step at or above the threshold, or the budget and a mark where there is none."""
    reached = train_accuracy >= sweep.threshold
    first = (np.argmax(reached, axis=1) + 1) * sweep.measure_every
    censored = ~reached.any(axis=1)
    return {
        "steps_to_threshold": np.where(censored, sweep.num_steps, first).astype(float),
        "censored": censored,
    }


def _traced_once(function, name):
    """Make a second trace, which would be a compile a cell, an error instead of a slow sweep."""

    def program(*args):
        return function(*args)

    # chex counts by name and place: another block's programs are others.
    program.__name__ = f"{name}_{next(_SERIAL)}"
    return chex.assert_max_traces(program, n=1)


def _optimizer(momentum: float):
    return lambda hparams: optax.sgd(hparams["learning_rate"], momentum=momentum)


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _is_stage_kernel(path: tuple) -> bool:
    return jax.tree_util.keystr(path, simple=True, separator="/").startswith("stack/stages/affine/kernel")


class _Stopwatch:
    """Time of the first call of each program: tracing, compiling and one run."""

    def __init__(self) -> None:
        self.first_calls = 0.0

    def __call__(self, program, *args):
        compiled = program._cache_size() > 0
        started = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        if not compiled:
            self.first_calls += time.perf_counter() - started
        return result
