"""The phase diagram: how deep a plain network trains at which weight variance, beside what mean-field theory says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from jaxact.activations import Activation
from train import results
from train.experiment import Cell, Progress
from train.experiments import _fields as fields
from train.experiments import _phase_diagram_findings as words
from train.experiments import _phase_diagram_views as views
from train.tasks import Digits, FromText

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, kw_only=True)
class PhaseDiagram:
    """Train plain dense networks over depth and weight variance, each at its best learning rate.

    The heat map of Schoenholz et al. 2017, "Deep information propagation" (figure 5), with the number of steps to a
    training accuracy in place of the accuracy after a fixed number of steps, and the learning rate tuned for every
    square. Theory says that signals pass about 6 xi_c layers and gradients about 6 xi_gradient. In the ordered phase
    the two are one number (c_star = 1, so C'(c_star) = chi); only the chaotic phase tells them apart.

    Theory is about infinite width; the paper's networks had 300 units, these have 64, and near criticality width and
    budget may end training before the depth scales do. The first layer has weights of variance 1 / inputs and no
    bias, so that preactivations begin at the inputs' mean square, which a task makes 1 on average, and reach q_star
    within a few xi_q; the read-out has weights of variance 1 / width. xi_c describes two inputs that differ in any
    way, not the data: it is the scale on which the correlation of a pair nears c_star from wherever it began.

    Attributes:
        task: the classification problem.
        activations: the activations to compare; a run-time argument of the compiled program.
        depths: numbers of hidden layers; a run-time argument too.
        sigma_w_squared: variances of the weights times the width; a run-time argument too.
        sigma_b_squared: variance of the biases.
        learning_rates: of SGD; vmapped, and tuned over for every square.
        seeds: of initialisation and data order; vmapped. What counts is reached by most of them (more than half).
        width: units of every hidden layer.
        batch_size: examples a step, drawn with replacement.
        num_steps: the budget of optimiser steps.
        measure_every: steps between two measurements of accuracy, the resolution of the time to train.
        momentum: of SGD.
        threshold: train accuracy whose first crossing is the time to train.
        num_evaluate: training examples, at most, that accuracy is measured on.
        max_depth: length of the compiled stack; None for max(depths). Depths up to it need no new program.
    """

    task: FromText = Digits()
    activations: tuple[Activation, ...]
    depths: tuple[int, ...] = (8, 11, 15, 20, 27, 36, 48, 64)
    sigma_w_squared: tuple[float, ...] = (0.8, 1.0, 1.2, 1.5, 1.76, 2.1, 2.5, 3.0, 3.5, 4.0)
    sigma_b_squared: float = 0.05
    learning_rates: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    seeds: tuple[int, ...] = (0, 1)
    width: int = 64
    batch_size: int = 64
    num_steps: int = 300
    measure_every: int = 10
    momentum: float = 0.9
    threshold: float = 0.9
    num_evaluate: int = 256
    max_depth: int | None = None

    def __post_init__(self) -> None:
        fields.check_distinct(self, "activations", "depths", "sigma_w_squared", "learning_rates")
        fields.check_seeds(self)
        fields.check_counts(self, "width", "batch_size", "num_steps", "measure_every", "num_evaluate")
        fields.check_depths(self)
        fields.check_positive(self, "sigma_w_squared", "learning_rates")
        fields.check_not_negative(self, "sigma_b_squared")
        fields.check_momentum(self)
        fields.check_threshold(self)
        fields.check_measure_every(self)

    def smoke(self) -> Self:
        """One activation, two depths, two weight variances, two learning rates, twenty steps."""
        return replace(
            self,
            activations=self.activations[:1],
            depths=tuple(sorted({min(depth, 6 * i) for i, depth in enumerate(self.depths[:2], start=1)})),
            sigma_w_squared=self.sigma_w_squared[:: max(1, len(self.sigma_w_squared) // 2)][:2],
            learning_rates=self.learning_rates[-2:],
            seeds=self.seeds[:1],
            width=min(self.width, 16),
            num_steps=20,
            measure_every=5,
            threshold=min(self.threshold, 0.3),
            num_evaluate=min(self.num_evaluate, 64),
            max_depth=None,
        )

    def cells(self) -> Sequence[Cell]:
        """One cell for every activation, depth and weight variance, in this order; all share one program."""
        return [
            Cell(
                f"{activation.name}/depth={depth}/sigma_w_squared={scale:g}",
                {"activation": activation.name, "depth": depth, "sigma_w_squared": scale},
            )
            for activation in self.activations
            for depth in self.depths
            for scale in self.sigma_w_squared
        ]

    def run(self, cell: Cell, *, progress: Progress) -> xr.Dataset:
        """Train the members of one cell; see `result_variables` for what comes back."""
        from train.experiments import _phase_diagram_programs as programs

        index = [activation.name for activation in self.activations].index(cell.coords["activation"])
        depth, scale = cell.coords["depth"], cell.coords["sigma_w_squared"]
        program = programs.get(self)
        # What a process does once for all cells, data and theory, is not this cell's.
        predicted = programs.predict(self.activations[index], self.sigma_w_squared, self.sigma_b_squared)
        started = time.perf_counter()
        measured = program.run(index, depth, scale, progress)
        seconds = time.perf_counter() - started
        column = self.sigma_w_squared.index(scale)
        measured |= {name: predicted[name][column] for name in THEORY}
        measured |= {name: values for name, values in predicted.items() if name not in THEORY}
        measured |= {
            "run_seconds": seconds - measured["compile_seconds"],
            "threshold": self.threshold,
            "chance_accuracy": program.chance,
            "width": self.width,
        }
        coords: dict[str, Any] = {
            "activation": [cell.coords["activation"]],
            "depth": [depth],
            "sigma_w_squared": [scale],
            "learning_rate": list(self.learning_rates),
            "seed": list(self.seeds),
            "step": np.arange(1, self.num_steps // self.measure_every + 1) * self.measure_every,
            "curve_sigma_w_squared": predicted["curve_sigma_w_squared"],
        }
        if (depth, scale) != (self.depths[0], self.sigma_w_squared[0]):
            del coords["curve_sigma_w_squared"]
        sizes = {name: len(values) for name, values in coords.items()}
        variables = {}
        for name, (dims, units, long_name) in result_variables(self.threshold).items():
            if not set(dims) <= set(coords):
                continue
            values = np.asarray(measured[name]).reshape([sizes[dim] for dim in dims])
            variables[name] = (dims, values, {"units": units, "long_name": long_name})
        return results.labelled(variables, coords, COORDINATES)

    figures = staticmethod(views.figures)
    findings = staticmethod(words.findings)
    tables = staticmethod(words.tables)


THEORY = ("q_star", "chi", "c_star", "xi_c", "xi_gradient")

COORDINATES = {
    "activation": ("1", "activation"),
    "depth": ("layers", "depth"),
    "sigma_w_squared": ("1", "weight variance times width"),
    "learning_rate": ("1", "learning rate"),
    "seed": ("1", "seed"),
    "step": ("steps", "optimiser step"),
    "curve_sigma_w_squared": ("1", "weight variance times width, along the theory's curves"),
}


def result_variables(threshold: float) -> dict[str, tuple[tuple[str, ...], str, str]]:
    """Name each variable with its dimensions, units and long name.

    `steps_to_threshold` is NaN where the threshold was not reached, and `train_accuracy` past `steps_trained`: a cell
    ends early once most seeds are past the threshold at one learning rate, for no other can then be faster.

    Theory depends on fewer coordinates than it is stored by, because every number has one cell that it comes from:
    cells are measured by several processes, which may round it differently. The curves come from the first cell of
    each activation.

    Args:
        threshold: the train accuracy that counts as trained.
    """
    square = ("activation", "depth", "sigma_w_squared")
    member = (*square, "learning_rate", "seed")
    curve = ("activation", "curve_sigma_w_squared")
    return {
        "train_accuracy": ((*member, "step"), "1", "train accuracy"),
        "steps_to_threshold": (member, "steps", f"steps to {threshold:.0%} train accuracy"),
        "diverged_step": (member, "steps", "step at which loss or gradient stopped being finite"),
        "steps_trained": (square, "steps", "steps until the cell was settled or the budget spent"),
        "compile_seconds": (square, "s", "time to trace and compile in this cell"),
        "run_seconds": (square, "s", "time to train, all members"),
        "q_star": (square, "1", "fixed second moment of the preactivations, by mean-field theory"),
        "chi": (square, "1", "growth of squared gradients a layer, by mean-field theory"),
        "c_star": (square, "1", "fixed correlation of two inputs, by mean-field theory"),
        "xi_c": (square, "layers", "depth scale of correlations, by mean-field theory"),
        "xi_gradient": (square, "layers", "depth scale of gradients, by mean-field theory"),
        "curve_xi_c": (curve, "layers", "depth scale of correlations, along a curve"),
        "curve_xi_gradient": (curve, "layers", "depth scale of gradients, along a curve"),
        "critical_sigma_w_squared": (square, "1", "critical weight variance, by mean-field theory"),
        "threshold": ((), "1", "train accuracy that counts as trained"),
        "chance_accuracy": ((), "1", "share of the commonest class"),
        "width": ((), "units", "units of a hidden layer"),
    }
