"""A population of networks trained on a task: started, trained in chunks, probed, each program compiled once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from jaxact import fit, nn
from jaxact.activations import select
from train import computing, devices, memory, partial
from train.computing import ComputeDtype, Remat
from train.config import ConfigError
from train.experiment import Cell, Progress
from train.optimizers import Optimizer, Sgd
from train.programs import AtOnce, Program
from train.study import Study
from train.tasks import Data, Digits, FromText

before_start: ContextVar[Callable[[Any, tuple, Mapping], None] | None]
"""Called with a trial, its setting and its scales before it starts, by who plans a run; it may raise to end there."""
before_start = ContextVar("before_start", default=None)
_COMPUTED = (
    "members_at_once",
    "compute_dtype",
    "remat",
)  # fields of a study that say how its networks are computed
_NO_INTERVAL = (
    "there is no field `measure_every`, the steps between two measurements. Add `measure_every: int = 10`, "
    "which must divide num_steps."
)
CALIBRATION = 256  # training examples that set the batch norms' statistics before the first step


@dataclass(frozen=True, kw_only=True)
class TrainingStudy(Study):
    """A study whose cells train networks on a task.

    Attributes:
        task: the classification problem.
        optimizer: how networks are trained.
        activations: those that are compared, a field of most studies; a run-time argument of the compiled program.
        learning_rate: of the optimiser; its schedule may lower it. A field of the studies that do not vary it.
        seeds: of initialisation and data order; vmapped.
        width: units, or channels, of every hidden layer.
        batch_size: examples a step, drawn with replacement.
        num_steps: the budget of optimiser steps.
        members_at_once: how many networks of a device may be side by side, the others after them; "auto" for as many as
            the device has memory for.
        compute_dtype: of products and hidden states in training and in losses and accuracies. "bfloat16" is for
            accelerators: on a CPU XLA (jaxlib 0.10.2) widens what it computes, which saves no memory and takes 2 to 16
            times as long. Parameters, optimiser, the sums of a loss and statistics of norms stay in float32; what
            else is measured of a network, spectra and bounds, is that of its float32 parameters.
        remat: "layers" keeps some 2 sqrt(depth) hidden states for the way back in place of all, and recomputes the
            others: less memory for more time, the same numbers; see `jaxact.nn.Stack`.
    """

    task: FromText = Digits()
    optimizer: Optimizer = Sgd()
    seeds: tuple[int, ...] = (0,)
    width: int = 32
    batch_size: int = 64
    num_steps: int = 200
    members_at_once: AtOnce = "auto"
    compute_dtype: ComputeDtype = "float32"
    remat: Remat = "none"

    def missing(self) -> Sequence[str]:
        """Of a study that measures while it trains: the field by which its steps are labelled."""
        own = [name for name, each in self.variables.items() if "step" in each.dims]
        if not own or hasattr(self, "measure_every") or type(self).steps is not TrainingStudy.steps:
            return ()
        return (f"`{own[0]}` has the dimension `step`, and {_NO_INTERVAL}",)

    def steps(self) -> np.ndarray:
        """The steps at which loss and accuracy are measured.

        Raises:
            ConfigError: for a study without the field `measure_every`.
        """
        if (every := getattr(self, "measure_every", None)) is None:
            raise ConfigError(f"{type(self).__name__}.steps() is called, and {_NO_INTERVAL}")
        return np.arange(1, self.num_steps // every + 1) * every

    def setting(self, cell: Cell) -> tuple[jax.Array, Any]:
        """Depth and activation of a cell as the traced arguments that one program takes for all of them."""
        index = self.activations.index(cell.coords["activation"])  # type: ignore[attr-defined]
        return jnp.asarray(cell.coords["depth"], jnp.int32), select(self.activations, index)  # type: ignore[attr-defined]

    def trial(self, network: nn.Functional, data: Mapping[str, Any], **options: Any) -> Trial:
        """A population of this study: every seed at every learning rate.

        Args:
            network: as `Trial` takes it.
            data: as `Trial` takes it; see `parts`.
            **options: further arguments of `Trial`; `strength` and the like, tuples of numbers, are hyperparameters
                that vary more slowly than learning rates and seeds.
        """
        swept = {name: options.pop(name) for name, each in [*options.items()] if isinstance(each, tuple)}
        rates: Any = getattr(self, "learning_rates", None) or (getattr(self, "learning_rate", None),)
        if None in rates:
            raise ConfigError(
                f"{type(self).__name__} trains, and has neither a field `learning_rates` nor `learning_rate`. Add "
                "`learning_rates: tuple[float, ...] = (0.01, 0.1)`, or `learning_rate: float = 0.1`."
            )
        return Trial(
            network,
            data,
            members=fit.grid(seeds=self.seeds, **swept, learning_rate=rates),
            optimizer=self.optimizer,
            num_steps=self.num_steps,
            batch_size=self.batch_size,
            measure_every=getattr(self, "measure_every", None),
            **{name: getattr(self, name) for name in _COMPUTED},
            **options,
        )

    def run(self, cell: Cell, *, progress: Progress) -> xr.Dataset:
        """Measure one cell and label what comes back; its attributes say how its networks were computed."""
        dataset = super().run(cell, progress=progress)
        said = {name: getattr(self, name) for name in _COMPUTED}
        return dataset.assign_attrs(said | {"members_at_once": memory.budget().taken()})


Look: TypeAlias = Callable[[fit.State, Any, Mapping[str, np.ndarray]], tuple[Any, Mapping[str, np.ndarray]]]


class Chunk(NamedTuple):
    """What a population recorded between two measurements, on the host, a leading axis of members.

    Attributes:
        loss: of every step, on its batch; [member, step].
        measured: losses and accuracies at the end, by name; [member]; and what a `look` gave.
        seconds: how long it took, the first of a process with its compile.
    """

    loss: np.ndarray
    measured: Mapping[str, np.ndarray]
    seconds: float


class Training:
    """Training as it goes on: the `Chunk`s one after the other, then the states.

    Chunks that an earlier process trained are told again, without their states.
    """

    def __init__(self, loop: Iterator[tuple[Any, partial.Record]], start: tuple[fit.State, Any]):
        self._loop, self._now, self._is_over = loop, start, False

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        if self._is_over:
            raise RuntimeError("`states` are for the end of training. Look at those in between with `look`.")
        self._now, record = next(self._loop)
        named = dict(record)
        return Chunk(named.pop("batch_loss"), seconds=float(named.pop("seconds")), measured=named)

    @property
    def states(self) -> fit.State:
        """Those after the last chunk, once no more is asked for."""
        return self._last()[0]

    @property
    def carry(self) -> Any:
        """What `look` returned last, once no more is asked for."""
        return self._last()[1]

    def _last(self) -> tuple[fit.State, Any]:
        if self._now is None:
            raise RuntimeError(
                "Training ended sooner than in an earlier process. Let its end follow from what is measured."
            )
        self._is_over = True
        return self._now


class Trial:
    """The programs of one network, optimiser and task, for all members (learning rates x seeds) side by side.

    What differs from cell to cell of a study, such as depth and activation, is the `setting`: traced arguments that
    follow the inputs in every call of the network. The data travel as arguments too: as constants they would be copied
    into every program.

    Attributes:
        num_members: how many networks there are.
        data: named parts of the task on the devices, each replicated: what probes read.
        compile_seconds: time spent so far in first calls: tracing, compiling and one run each.
        chunk_seconds: how long each chunk of the last `train` took, the first of a process with its compile.
    """

    def __init__(
        self,
        network: nn.Functional,
        data: Mapping[str, Any],
        *,
        members: fit.Member,
        optimizer: Optimizer,
        num_steps: int,
        batch_size: int,
        measure_every: int | None = None,
        evaluate: Mapping[str, str] | None = None,
        loss: Callable[..., jax.Array] | None = None,
        calibrate: bool = False,
        members_at_once: AtOnce = "auto",
        compute_dtype: ComputeDtype = "float32",
        remat: Remat = "none",
    ):
        """Lay out members and data.

        Args:
            network: `init` and `apply`, as `jaxact.nn.functional` gives them.
            data: parts by name, pytrees of arrays; "train", (inputs, labels), is what batches are drawn from, with
                replacement.
            members: their hyperparameters hold "learning_rate".
            optimizer: of all members.
            num_steps: the budget, over which schedules run.
            batch_size: examples a step.
            measure_every: steps of a chunk; all of them if None.
            evaluate: part of the data by the name that its loss and accuracy are measured under.
            loss: `loss(logits, labels, hparams=..., call=...)`, where call(method) is another method of the network at
                the same parameters; cross-entropy if None.
            calibrate: whether batch norms start with the statistics of the part "calibration".
            members_at_once: how many members of a device a program may hold side by side; "auto" for as many as fit.
            compute_dtype: of products and hidden states where networks are trained and evaluated. `network`, `output`
                and the loss's `call`, by which they are measured and bounded, are in float32 whatever it is.
            remat: "layers" recomputes layers in training, see `jaxact.nn.Stack`.
        """
        self.network, self.calibrate, self.members_at_once = network, calibrate, members_at_once
        self._computed = computing.computed(network, dtype=compute_dtype, remat=remat)
        self.num_members = len(members.hparams["seed"])
        mesh = self.mesh = devices.mesh(self.num_members)
        # Padded here, once: `population` would otherwise gather the members from all devices after every call.
        self.members = fit.pad(members, 1 if mesh is None else mesh.size)
        replicated = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.data = jax.device_put(dict(data), replicated)
        self.batch_size, self.num_steps = batch_size, num_steps
        self.measure_every = measure_every or num_steps
        self.evaluate = dict(evaluate or {})
        self.loss = loss or (lambda logits, labels, **_: cross_entropy(logits, labels))
        self.optimizer = optimizer.bound(num_steps)
        self.compile_seconds = 0.0
        self.chunk_seconds: list[float] = []
        self._start = self.program(self._started)
        self._step = self.program(self._trained, is_long=True, donate_argnums=0)

    def program(
        self, one: Callable, *, precision: str | None = None, is_long: bool = False, **options: Any
    ) -> Program:
        """Make a function of one member and of what all share a compiled program of all members; see `Program`.

        Args:
            one: `one(member or state, *shared)`.
            precision: of matrix products; "float32" forbids accelerators to round the operands of float32 products.
            is_long: whether it runs so long that what it takes to compile does not matter.
            **options: of `jax.jit`.
        """
        options |= {"compiler_options": devices.compiler_options(is_long=is_long)}
        return Program(
            one, self.mesh, self.members_at_once, precision=precision, options=options, spend=self._spend
        )

    def _spend(self, seconds: float) -> None:
        self.compile_seconds += seconds

    def start(self, *setting: Any, **scales: Any) -> fit.State:
        """The states before the first step.

        Args:
            *setting: what every call of the network takes after its inputs.
            **scales: traced arguments of the network's `init`, such as sigma_w.
        """
        if (stop := before_start.get()) is not None:
            stop(self, setting, scales)
        return self._start(self.members, self.data, setting, scales)

    def chunks(self, states: fit.State, *setting: Any, look: Look | None = None, carry: Any = ()) -> Training:
        """Train, `measure_every` steps at a time, as long as the caller asks for more.

        Args:
            states: before the first step; they are donated.
            *setting: what every call of the network takes after its inputs.
            look: `look(states, carry, measured) -> (carry, found)`, called after every chunk: `found`, arrays by name
                of the same shapes every time, goes into `Chunk.measured`. The states are gone after the next chunk.
            carry: what the first `look` is given; a pytree of arrays, a leading axis of members.
        """

        def advance(state: tuple[fit.State, Any]) -> tuple[tuple[fit.State, Any], dict[str, np.ndarray]]:
            started = time.perf_counter()
            states, history = self._step(state[0], self.data, setting)
            measured, carry = self.host(history.measurements), state[1]
            if look is not None:
                carry, found = look(states, carry, measured)
                measured = {**measured, **found}
            seconds = np.float64(time.perf_counter() - started)
            return (states, carry), {"batch_loss": self.host(history.loss), "seconds": seconds, **measured}

        start, total = (states, carry), self.num_steps // self.measure_every
        return Training(
            partial.chunked(advance, start, num_chunks=total, num_members=self.num_members), start
        )

    def train(
        self, states: fit.State, *setting: Any, progress: Callable[[float, str], None] = lambda *_: None
    ) -> tuple[fit.State, dict[str, np.ndarray]]:
        """Train to the end of the budget; what was measured by name, [member, chunk].

        How long the chunks took is then in `chunk_seconds`.
        """
        total, found = self.num_steps // self.measure_every, []
        progress(0.0, "step 0")
        training = self.chunks(states, *setting)
        for chunk in training:
            found.append(chunk)
            progress(len(found) / total, f"step {len(found) * self.measure_every}")
        self.chunk_seconds = [chunk.seconds for chunk in found]
        curves = [{"batch_loss": chunk.loss.mean(-1), **chunk.measured} for chunk in found]
        return training.states, {
            name: np.stack([each[name] for each in curves], axis=1) for name in curves[0]
        }

    def taken_at(
        self, states: fit.State, *setting: Any, measured: str, least: float
    ) -> tuple[fit.State, np.ndarray]:
        """Train each member until what is measured of it is at least so much: networks at equal accuracy.

        Returns:
            The states at each member's first such measurement, those before the first step where there is none; and
            its step, NaN where there is none, [member].
        """
        steps = np.full(self.num_members, np.nan)

        def look(states: fit.State, carry: tuple, found: Mapping[str, np.ndarray]) -> tuple[tuple, dict]:
            kept, is_taken = carry
            is_new = (found[measured] >= least) & ~is_taken
            for member in np.flatnonzero(is_new):
                kept = _replaced(kept, states, member)
            return (kept, is_taken | is_new), {"is_new": is_new}

        carry = jax.tree.map(jnp.copy, states), np.isfinite(steps)
        training = self.chunks(states, *setting, look=look, carry=carry)
        for number, chunk in enumerate(training, start=1):
            steps[chunk.measured["is_new"]] = number * self.measure_every
            if not np.isnan(steps).any():
                break
        return training.carry[0], steps

    def probed(self, programs: Iterable[Callable], states: fit.State, *shared: Any) -> dict[str, np.ndarray]:
        """What several programs of (state, data, *shared) measure, by name, on the host; [member, ...]."""
        found = [program(states, self.data, *shared) for program in programs]
        return self.host({name: value for each in found for name, value in each.items()})

    def looking(self, programs: Sequence[Callable], *shared: Any) -> Look:
        """A `look` that records, by name, what programs of (state, data, *shared) measure."""
        return lambda states, carry, _: (carry, self.probed(programs, states, *shared))

    def host(self, tree: Any) -> Any:
        """A tree of arrays with a leading axis of members, on the host, without the copies that fill up the devices."""
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: self.num_members], devices.on_host(tree))

    def diverged_step(self, states: fit.State) -> np.ndarray:
        """The step at which loss or gradient stopped being finite, NaN where they did not; [member]."""
        steps = self.host(states.diverged_step).astype(float)
        return np.where(steps < 0, np.nan, steps)

    def output(self, state: fit.State, inputs: jax.Array, *setting: Any, **options: Any) -> Any:
        """What the network of one member gives at inference; `options` as `jaxact.nn.Functional.apply` takes them."""
        return self.network.apply(state.params, state.variables, inputs, *setting, **options)[0]

    def _started(
        self, member: fit.Member, data: Mapping[str, Any], setting: tuple, scales: Mapping
    ) -> fit.State:
        key_init, key_data = jax.random.split(member.key)
        params, variables = self.network.init(key_init, **scales)
        if self.calibrate:
            inputs = data["calibration"]
            _, variables = self.network.apply(params, variables, inputs, *setting, method=nn.calibrate)
        return fit.start(
            self.optimizer, key=key_data, params=params, variables=variables, hparams=member.hparams
        )

    def _trained(self, state: fit.State, data: Mapping[str, Any], setting: tuple) -> Any:
        inputs, labels = data["train"]

        def sample(key: jax.Array) -> tuple:
            rows = jax.random.randint(key, (self.batch_size,), 0, len(inputs))
            return inputs[rows], labels[rows]

        def loss(params: Any, variables: Any, batch: tuple, hparams: Mapping) -> tuple:
            logits, updated = self._computed.apply(params, variables, batch[0], *setting, training=True)

            def call(method: Any) -> Any:
                return self.network.apply(params, variables, method=method)[0]

            return self.loss(logits, batch[1], hparams=hparams, call=call), (updated, ())

        every = self.measure_every
        run = fit.fit(
            loss,
            sample,
            self.optimizer,
            num_steps=every,
            measure=lambda state: self._evaluated(state, data, setting),
            measure_every=every,
        )
        state, history = run(state)
        return state, history._replace(measurements=jax.tree.map(lambda rows: rows[0], history.measurements))

    def _evaluated(self, state: fit.State, data: Mapping[str, Any], setting: tuple) -> dict[str, jax.Array]:
        """Loss and accuracy on each part, NaN for a member that has diverged."""
        found = {}
        for name, part in self.evaluate.items():
            inputs, labels = data[part]
            logits = self._computed.apply(state.params, state.variables, inputs, *setting)[0]
            found[f"{name}_loss"] = cross_entropy(logits, labels)
            found[f"{name}_accuracy"] = accuracy(logits, labels)
        return jax.tree.map(lambda value: jnp.where(state.diverged_step < 0, value, jnp.nan), found)


@jax.jit
def _replaced(old: fit.State, new: fit.State, member: jax.Array) -> fit.State:
    """The old states with one member's new."""
    return jax.tree.map(lambda old, new: old.at[member].set(new[member]), old, new)


def parts(data: Data, *, num_evaluate: int | None = None, scale: float = 1.0) -> dict[str, Any]:
    """The parts of a task that trials read, each a prefix of its set.

    Args:
        data: of the shape that the network takes.
        num_evaluate: examples, at most, of "train_part" and "test"; all if None.
        scale: of the inputs.

    Returns:
        "train", "train_part" and "test" as (inputs, labels); "calibration", inputs alone.
    """
    train, test = ((scale * each if scale != 1 else each) for each in (data.train_inputs, data.test_inputs))
    return {
        "train": (train, data.train_labels),
        "train_part": (train[:num_evaluate], data.train_labels[:num_evaluate]),
        "test": (test[:num_evaluate], data.test_labels[:num_evaluate]),
        "calibration": train[:CALIBRATION],
    }


def first_crossing(values: np.ndarray, steps: Sequence[int] | np.ndarray, threshold: float) -> np.ndarray:
    """The first of `steps` at which values along the last axis are at or above a threshold; NaN where none is.

    >>> first_crossing(np.array([[0.1, 0.9, 0.8], [0.1, 0.2, 0.3]]), [10, 20, 30], 0.8).tolist()
    [20.0, nan]
    """
    reached = np.asarray(values) >= threshold
    return np.where(reached.any(axis=-1), np.asarray(steps)[np.argmax(reached, axis=-1)], np.nan)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy of softmax(logits) with integer labels, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of inputs whose largest logit is the label's."""
    return jnp.mean(jnp.argmax(logits, -1) == labels)
