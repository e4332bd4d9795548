"""Extreme depth: plain networks at the edge of chaos, orthogonal beside Gaussian weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from jaxact import activations, nn, probes, theory
from jaxact.activations import Activation
from train import fields, probing, runs, words
from train.blocks import network
from train.experiment import Cell, Finding, Progress
from train.optimizers import Optimizer, Sgd
from train.study import Coordinate, Variable
from train.trial import TrainingStudy, cross_entropy, first_crossing, parts

WEIGHTS = ("orthogonal", "gaussian")
POSITIONS = np.linspace(0.0, 1.0, 101)
_MAP_DEGREE = 48  # of the polynomial that stands for the map of angles over thousands of layers
_POSITION, _MODE = ("seed", "position"), ("seed", "example", "mode")
_FLOOR = -40.0  # log10: float32 ends near 1e-45
_RESOLUTION = -5.0  # log10: a singular value so far below the largest is float32's rounding


@dataclass(frozen=True, kw_only=True)
class ExtremeDepth(TrainingStudy):
    """Train plain networks at a critical point, as deep as memory allows, and set them beside what theory says.

    Inputs are scaled to the fixed point's second moment, so that every layer sees the same length from the start.

    Attributes:
        activation: between any two layers.
        depths: numbers of layers; each is a program of its own.
        weights: "orthogonal" or "gaussian", at the same scale.
        q_star: second moment of the preactivations at the fixed point, from which the scales of weights and biases
            follow (`jaxact.theory.critical_point`). The smaller, the more linear: 0.025 makes sigma_w^2 = 1.05.
        measure_every: steps between two measurements.
        threshold: test accuracy whose first crossing is the time to train.
        num_probes: held-out examples whose Jacobians, lengths and correlations are measured before training.
    """

    activation: Activation = activations.tanh
    depths: tuple[int, ...] = (100, 1000, 10000)
    weights: tuple[str, ...] = WEIGHTS
    q_star: float = 0.025
    optimizer: Optimizer = Sgd(schedule="cosine", clip_norm=1.0)
    width: int = 64
    num_steps: int = 500
    measure_every: int = 20
    learning_rate: float = 1e-3
    threshold: float = 0.95
    num_probes: int = 8

    swept = {"weights": "weights", "depth": "depths"}
    coordinates = {
        "weights": Coordinate("law of the weights"),
        "position": Coordinate("layer as a share of the depth"),
    }
    variables = {
        "train_loss": Variable("train cross-entropy, mean of the steps before", ("seed", "step"), "nat"),
        "test_loss": Variable("test cross-entropy", ("seed", "step"), "nat"),
        "test_accuracy": Variable("test accuracy", ("seed", "step")),
        "steps_to_threshold": Variable(
            "steps to {threshold:.0%} test accuracy", ("seed",), "steps", fields=("threshold",)
        ),
        "diverged_step": Variable("step at which loss or gradient stopped being finite", ("seed",), "steps"),
        "log10_singular_value": Variable(
            "singular value of the initial Jacobian", _MODE, "log10", theory="log10_singular_value_theory"
        ),
        "log10_singular_value_theory": Variable("singular value by the limiting law", ("mode",), "log10"),
        "second_moment": Variable("second moment of the preactivation at initialisation", _POSITION),
        "correlation": Variable("mean correlation of two inputs", _POSITION, theory="correlation_theory"),
        "correlation_theory": Variable("mean correlation by the mean-field correlation map", _POSITION),
        "log10_gradient_norm": Variable("norm of dL/dh over that at the last layer", _POSITION, "log10"),
        "sigma_w": Variable("weight scale"),
        "sigma_b": Variable("bias scale"),
        "q_star": Variable("second moment at the fixed point"),
        "step_seconds": Variable("time of an optimiser step of all seeds, without compiling", units="s"),
    }

    def __post_init__(self) -> None:
        pairs = fields.at_least(2, "A correlation takes two.")
        fields.check(self, weights=fields.among(WEIGHTS), q_star=fields.positive, num_probes=pairs)

    def smoke(self) -> Self:
        """One depth of at most 200 layers, both kinds of weights, twenty steps."""
        small = super().smoke()
        return replace(
            small, depths=(min(*self.depths, 200),), measure_every=10, num_probes=min(self.num_probes, 3)
        )

    def cells(self) -> Sequence[Cell]:
        """One cell for every kind of weights and depth, the deepest of each first: they take the longest."""
        deepest_first = replace(self, depths=tuple(sorted(self.depths, reverse=True)))
        return super(ExtremeDepth, deepest_first).cells()

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """Measure at initialisation, train, and set theory beside it."""
        progress(0.0, "theory")
        point = theory.critical_point(self.activation, q_star=self.q_star)
        scales = {"sigma_w": float(point.sigma_w), "sigma_b": float(point.sigma_b)}
        probed = _Probed(self, cell, **scales)
        trial = probed.trial
        progress(0.02, "initialise")
        states = trial.start()
        measured = jax.tree.map(lambda each: each.astype(float), trial.probed(probed.programs, states))
        progress(0.05, "theory")
        measured |= self._theory(cell, measured.pop("pair_correlation"), **scales)
        states, curves = trial.train(states, progress=lambda part, note: progress(0.05 + 0.95 * part, note))
        curves["train_loss"] = curves.pop("batch_loss")
        return {
            **measured,
            **curves,
            "step": self.steps(),
            "position": POSITIONS,
            "steps_to_threshold": first_crossing(curves["test_accuracy"], self.steps(), self.threshold),
            "diverged_step": trial.diverged_step(states),
            **scales,
            "q_star": self.q_star,
            "step_seconds": min(trial.chunk_seconds) / self.measure_every,
            "compile_seconds": trial.compile_seconds,
        }

    def _theory(self, cell: Cell, correlation: np.ndarray, sigma_w: float, sigma_b: float) -> dict[str, Any]:
        """The limiting law of singular values, and correlations by the map from those at the first layer."""
        weights, depth = cell.coords.values()
        scales = {"sigma_w": sigma_w, "q": self.q_star}
        spectrum = theory.jacobian_spectrum(self.activation, depth, **scales, weights=weights, num_points=400)
        num_modes = min(self.width, self.task.load().flat().train_inputs.shape[1])
        levels = 1 - (np.arange(num_modes) + 0.5) / num_modes
        log_eigenvalues = np.interp(levels, spectrum.cdf, spectrum.log_eigenvalues, left=-np.inf)
        map_ = angle_map(self.activation, **scales, sigma_b=sigma_b)
        angle, means = np.arccos(np.clip(correlation, -1, 1)), []
        for _ in range(depth + 1):
            means.append(np.cos(angle).mean(-1))
            angle = np.clip(map_(angle), 0, np.pi)
        return {
            "log10_singular_value_theory": log_eigenvalues / (2 * np.log(10)),
            "correlation_theory": np.stack([means[row] for row in _rows(depth)], -1),
        }

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        """The figures of the study, by name."""
        told: dict[str, Any] = {"x": "position", "x_format": ".0%", "column": "weights", "over": "seed"}
        told |= {"most": len(POSITIONS), "point_field": None}
        told["words"] = {
            "depth": "{:,} layers".format,
            "weights": lambda law: words.capital(f"{law} weights"),
        }
        drawn = _prepared(result)
        return cls.drawn(drawn, _figures(drawn), **told)

    @classmethod
    def findings(cls, result: xr.Dataset) -> list[Finding]:
        """Say in sentences what the study found, the verdict first."""
        table = _summary(result)
        if table.empty:
            return [Finding("Nothing to conclude: no network of this study has a test accuracy.")]
        rows = table.to_dict("records")
        said = {
            "": [_verdict(table)],
            "Time to train": [_time(result, row) for row in rows],
            "The critical point": [_point(result)],
            "Directions and gradients before training": map(_signals, rows),
            "Failures": [_diverged(result, len(rows))],
        }
        return Finding.by_topic(said)

    @classmethod
    def tables(cls, result: xr.Dataset) -> dict[str, pd.DataFrame]:
        """The table of all networks, by title."""
        table, reached = _summary(result).round(3), runs.threshold(result)
        failed = f"accuracy 0 for a run that diverged, infinitely many steps below {reached} test accuracy"
        caption = f"Medians over {runs.seeds(result)}, shares over inputs too: {failed}."
        return {} if table.empty else {"All networks": runs.table(table, caption)}


class _Probed:
    """The trial of one cell, and the programs that look at its networks before training."""

    def __init__(self, study: ExtremeDepth, cell: Cell, **scales: float):
        self.study, self.depth = study, cell.coords["depth"]
        # Inputs are of mean square 1 by the task's own scaling: now of the length at which the network is critical.
        self.scale, data = study.q_star**0.5, study.task.load().flat()
        sizes: dict[str, Any] = {"width": study.width, "max_depth": self.depth}
        law = {"activation": study.activation, "weights": cell.coords["weights"], **scales}
        plain = network(data, **sizes, **law)
        divided = plain._replace(apply=self._divided(plain))
        self.trial = study.trial(divided, parts(data, scale=self.scale), evaluate={"test": "test"})
        kinds = (self._spectrum, self._signals, self._gradients)
        self.programs = [self.trial.program(kind, precision="float32") for kind in kinds]

    def _divided(self, plain: nn.Functional):
        """Logits over the scale of the inputs: what the read-out sees is as small as they are."""

        def apply(*args, method="__call__", **options):
            output, variables = plain.apply(*args, method=method, **options)
            return (output / self.scale if method == "__call__" else output), variables

        return apply

    def _spectrum(self, state, data):
        values = probing.singular_values(self.trial, state, data["test"][0][: self.study.num_probes], ())
        return {"log10_singular_value": jnp.log10(values)}

    def _signals(self, state, data):
        inputs = data["test"][0][: self.study.num_probes]
        embedded = self.trial.output(state, inputs, method="embed")
        trace = self.trial.output(state, inputs, method="trace")
        rows = _rows(self.depth)
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
        (norms,) = probes.gradient_norms(
            lambda taps: cross_entropy(self.trial.output(state, inputs, taps=taps), labels), taps
        )
        rows = np.maximum(_rows(self.depth) - 1, 0)
        return {"log10_gradient_norm": (jnp.log10(norms) - jnp.log10(norms[-1]))[rows]}


def _rows(depth: int) -> np.ndarray:
    """The layer at each of `POSITIONS`."""
    return np.round(POSITIONS * depth).astype(int)


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


def _prepared(result: xr.Dataset) -> xr.Dataset:
    """Depths in order, with what figures draw besides the stored variables."""
    share = (result["mode"] - 0.5) / result.sizes["mode"]
    result = result.assign_coords(share=share.assign_attrs(long_name="share of directions", units="1"))
    resolved = _resolved(result).assign_attrs(long_name="singular value", units="log10")
    return result.assign(resolved_singular_value=resolved).sortby("depth")


def _resolved(result: xr.Dataset) -> xr.DataArray:
    """The measured singular values that are not rounding, as log10."""
    values = result["log10_singular_value"].astype(float)
    return values.where((values > values.max("mode") + _RESOLUTION) & (values > _FLOOR + 5))


def _figures(result: xr.Dataset) -> dict[str, dict[str, Any]]:
    seeds, measured, theory = runs.seeds(result), "measured", "theory, infinite width"
    by_source = {"series": "quantity", "row": "depth", "size": (255, 130)}
    decades = {"floor": _FLOOR, "ceiling": np.inf}
    return {
        "test_accuracy": {
            "values": "test_accuracy",
            "x": "step",
            "x_format": None,
            "series": "depth",
            "format": ".0%",
            "title": "Can thousands of layers without skips be trained?",
            "subtitle": f"Test accuracy while training: median over {seeds}, band from lowest to highest",
            "caption": "Only the law of the weights differs. A line that rises trains. A line that ends has diverged.",
        },
        "jacobian_spectrum": {
            "values": {"resolved_singular_value": measured, "log10_singular_value_theory": theory},
            **by_source,
            **decades,
            "x": "share",
            "over": ("seed", "example"),
            "most": result.sizes["mode"],
            "tooltip": ("mode",),
            "labels": {"value": "Singular value", "quantity": "Source"},
            "title": "What becomes of a direction of the input?",
            "subtitle": f"Input-to-last-hidden Jacobian at first: median over inputs and {seeds}, band all of them",
            "caption": "Flat at 1 is an isometry: every direction arrives. Where the curve falls by decades only a few "
            "arrive. Measured values end at 1e-5 of the largest and at 1e-35: below is rounding.",
        },
        "gradient_norms": {
            "values": "log10_gradient_norm",
            "series": "depth",
            **decades,
            "level": (1.0, "theory: the same in every layer"),
            "title": "Do gradients reach the first layer?",
            "subtitle": f"Before training: median over {seeds}, band from lowest to highest",
            "caption": "Mean-field theory gives every layer the same expected squared gradient. A Gaussian network "
            "strays from it, the more the deeper it is beside its width; an orthogonal one hardly does.",
        },
        "correlation": {
            "values": {"correlation": measured, "correlation_theory": theory},
            **by_source,
            "labels": {"value": "Correlation of two inputs", "quantity": "Source"},
            "title": "How long do two inputs stay apart?",
            "subtitle": f"Mean over pairs of held-out inputs before training: median over {seeds}",
            "caption": "At the edge of chaos correlations approach 1 like a power of the depth, not exponentially. "
            "What is at 1 to within rounding cannot be told apart by the layers after.",
        },
    }


def _summary(result: xr.Dataset) -> pd.DataFrame:
    """A row for each network that was measured, medians over seeds; the depths of each kind of weights in order."""
    result = result.sortby("depth")
    accuracy, gradient = result["test_accuracy"], result["log10_gradient_norm"].astype(float)
    arriving, predicted = _resolved(result).notnull(), result["log10_singular_value_theory"]
    first = gradient.isel(position=0, drop=True).median("seed")
    columns = {
        "final test accuracy": accuracy.isel(step=-1, drop=True).fillna(0).median("seed"),  # diverged: none
        "steps to threshold": result["steps_to_threshold"].fillna(np.inf).median("seed"),  # inf: never
        "share of directions within 1e-5 of the largest": arriving.mean(["seed", "example", "mode"]),
        "the same by theory": (predicted > predicted.max("mode") + _RESOLUTION).mean("mode"),
        "log10 gradient, first over last layer": first.clip(_FLOOR),
        "seconds a step": result["step_seconds"],
    }
    is_measured = accuracy.notnull().any(["seed", "step"]) | gradient.notnull().any(["seed", "position"])
    return runs.rows(xr.Dataset(columns).where(is_measured), by=["weights", "depth"])


def _verdict(table: pd.DataFrame) -> str:
    """The answer in one sentence: how accurate each depth became with each law of the weights."""
    parts = []
    for law, rows in table.groupby("weights", sort=False):
        pairs = zip(rows["final test accuracy"], rows["depth"], strict=True)
        said = [f"{words.percent(accuracy)} at {depth:,} layers" for accuracy, depth in pairs]
        parts.append(f"with {law} weights {', '.join(said)}")
    return f"Final test accuracy: {'; '.join(parts)}."


def _time(result: xr.Dataset, row: dict[str, Any]) -> str:
    who, steps = f"{row['depth']:,} layers with {row['weights']} weights", row["steps to threshold"]
    goal = f"{runs.threshold(result)} test accuracy"
    if np.isinf(steps):
        return f"{who} did not reach {goal} within {runs.budget(result):,} steps."
    return f"{who} reach {goal} after {steps:,.0f} steps ({row['seconds a step']:.2g} s each)."


def _point(result: xr.Dataset) -> str:
    weight, bias = (float(result[name].max()) ** 2 for name in ("sigma_w", "sigma_b"))
    return (
        f"All networks stand at the same critical point, sigma_w^2 = {weight:.4f}, sigma_b^2 = {bias:.2e}: by "
        "mean-field theory lengths, correlations and mean squared gradients are alike; the Jacobian's spectrum differs."
    )


def _signals(row: dict[str, Any]) -> str:
    gap = row["log10 gradient, first over last layer"]
    ratio = f"{10**gap:.2g}" if abs(gap) < 3 else f"1e{gap:.0f}"
    arriving = words.percent(row["share of directions within 1e-5 of the largest"])
    return (
        f"{row['depth']:,} layers, {row['weights']}: {arriving} of the input's directions arrive within 1e-5 of the "
        f"largest (theory, infinite width: {words.percent(row['the same by theory'])}); the first layer's gradient is "
        f"{ratio} times the last one's (theory: 1)."
    )


def _diverged(result: xr.Dataset, num_networks: int) -> str:
    count, total = int(result["diverged_step"].notnull().sum()), num_networks * result.sizes["seed"]
    return f"{count} of {words.count(total, 'run')} diverged; their accuracy counts as 0." if count else ""
