"""The depth sweep: which activation trains at which depth, in which block, and what its Jacobian says of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from jaxact.activations import Activation
from train import results
from train.experiment import Cell, Progress
from train.experiments import _depth_sweep_views as views
from train.experiments import _fields as fields
from train.experiments._blocks import split_block
from train.tasks import Digits, FromText

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, kw_only=True)
class DepthSweep:
    """Train dense networks of one width for every block, activation and depth; probe them before and after.

    Attributes:
        task: the classification problem.
        activations: the activations to compare; a run-time argument of the compiled program.
        depths: numbers of stages between the first and the last affine map; a run-time argument too.
        blocks: "plain", "pre_activation" or "post_activation", with "-bn", "-ln" or "-rms" appended for a
            norm; one compiled program each.
        learning_rates: of SGD; vmapped.
        seeds: of initialisation and data order; vmapped.
        width: units of every hidden layer.
        batch_size: examples a step, drawn with replacement.
        num_steps: the budget of optimiser steps.
        measure_every: steps between two measurements of loss and accuracy.
        momentum: of SGD.
        sigma_w: the weights' standard deviation times sqrt(width); None gives each activation its own, with
            sigma_w^2 E f'(z)^2 = 1 for z ~ N(0, 1): gradients keep their size at unit variance (He et al.
            2015 for relu).
        sigma_b: standard deviation of the biases at initialisation.
        threshold: train accuracy whose first crossing is the time to train.
        num_evaluate: examples, at most, of each set that accuracy is measured on.
        num_probes: held-out examples, at most, whose Jacobians are decomposed.
        ascent_steps: gradient-ascent steps of the Lipschitz lower bound, from every probe example.
        max_depth: length of the compiled stack; None for max(depths). Depths up to it need no new program.
    """

    task: FromText = Digits()
    activations: tuple[Activation, ...]
    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    blocks: tuple[str, ...] = ("plain", "pre_activation-bn", "post_activation-bn")
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 32
    batch_size: int = 64
    num_steps: int = 200
    measure_every: int = 10
    momentum: float = 0.9
    sigma_w: float | None = None
    sigma_b: float = 0.0
    threshold: float = 0.9
    num_evaluate: int = 500
    num_probes: int = 8
    ascent_steps: int = 20
    max_depth: int | None = None

    def __post_init__(self) -> None:
        fields.check_distinct(self, "activations", "depths", "blocks", "learning_rates")
        fields.check_seeds(self)
        fields.check_counts(self, "width", "batch_size", "num_steps", "measure_every")
        fields.check_counts(self, "num_evaluate", "num_probes", "ascent_steps")
        fields.check_depths(self)
        fields.check_positive(self, "learning_rates")
        for block in self.blocks:
            split_block(block)
        fields.check_momentum(self)
        if self.sigma_w is not None and not (math.isfinite(self.sigma_w) and self.sigma_w > 0):
            raise ValueError(f"`sigma_w` must be positive and finite, or None, got {self.sigma_w}.")
        fields.check_not_negative(self, "sigma_b")
        fields.check_threshold(self)
        fields.check_measure_every(self)

    def smoke(self) -> Self:
        """Two activations, two depths, all blocks, one learning rate, twenty steps."""
        return replace(
            self,
            activations=self.activations[:2],
            depths=tuple(sorted({min(depth, 8) for depth in self.depths}))[:2],
            learning_rates=self.learning_rates[:1],
            seeds=self.seeds[:2],
            width=min(self.width, 16),
            num_steps=20,
            measure_every=5,
            ascent_steps=3,
            num_probes=min(self.num_probes, 4),
            max_depth=None,
        )

    def cells(self) -> Sequence[Cell]:
        """One cell for every block, activation and depth, in this order: a block's cells share a compile."""
        return [
            Cell(
                f"{block}/{activation.name}/depth={depth}",
                {"block": block, "activation": activation.name, "depth": depth},
            )
            for block in self.blocks
            for activation in self.activations
            for depth in self.depths
        ]

    def run(self, cell: Cell, *, progress: Progress) -> xr.Dataset:
        """Train all members of one cell and measure them; see `result_variables` for what comes back."""
        from train.experiments import _depth_sweep_programs as programs

        index = [activation.name for activation in self.activations].index(cell.coords["activation"])
        program = programs.get(self, cell.coords["block"])
        started = time.perf_counter()  # what a process does once, imports and data, is not this cell's
        measured = program.run(index, cell.coords["depth"], progress)
        dataset = self._dataset(cell, measured)
        seconds = time.perf_counter() - started
        for name, value, long_name in (
            ("compile_seconds", measured["compile_seconds"], "time to trace and compile in this cell"),
            ("run_seconds", seconds - measured["compile_seconds"], "time to train and measure, all members"),
        ):
            dataset[name] = (("block", "activation", "depth"), np.full((1, 1, 1), value))
            dataset[name].attrs = {"units": "s", "long_name": long_name}
        return dataset

    def _dataset(self, cell: Cell, measured: Mapping[str, Any]) -> xr.Dataset:
        """Label arrays [member, ...] by the sweep's coordinates."""
        steps = np.arange(1, self.num_steps // self.measure_every + 1) * self.measure_every
        coords: dict[str, Any] = {
            "block": [cell.coords["block"]],
            "activation": [cell.coords["activation"]],
            "depth": [cell.coords["depth"]],
            "learning_rate": list(self.learning_rates),
            "seed": list(self.seeds),
            "phase": ["initial", "trained"],
            "step": steps,
            "layer": np.arange(1, cell.coords["depth"] + 1),
            "example": np.arange(measured["jacobian_singular_values"].shape[-2]),
            "mode": np.arange(1, measured["jacobian_singular_values"].shape[-1] + 1),
        }
        shared = ("block", "activation", "depth", "learning_rate", "seed")
        members = (1, 1, 1, len(self.learning_rates), len(self.seeds))
        variables = {}
        for name, (dims, units, long_name) in result_variables(self.threshold).items():
            values = np.asarray(measured[name])
            values = values.reshape(*members, *values.shape[1:])
            variables[name] = ((*shared, *dims), values, {"units": units, "long_name": long_name})
        return results.labelled(variables, coords, COORDINATES)

    figures = staticmethod(views.figures)
    findings = staticmethod(views.findings)
    tables = staticmethod(views.tables)


COORDINATES = {
    "block": ("1", "block"),
    "activation": ("1", "activation"),
    "depth": ("layers", "depth"),
    "learning_rate": ("1", "learning rate"),
    "seed": ("1", "seed"),
    "phase": ("1", "phase of training"),
    "step": ("steps", "optimiser step"),
    "layer": ("layers", "layer"),
    "example": ("1", "held-out example"),
    "mode": ("1", "singular value, from the largest"),
}


def result_variables(threshold: float) -> dict[str, tuple[tuple[str, ...], str, str]]:
    """Name each measured variable with its own dimensions, units and long name.

    Args:
        threshold: the train accuracy that counts as trained.
    """
    by_layer, by_example = ("phase", "layer"), ("phase", "example")
    return {
        "train_loss": (("step",), "nat", "train cross-entropy"),
        "train_accuracy": (("step",), "1", "train accuracy"),
        "test_loss": (("step",), "nat", "test cross-entropy"),
        "test_accuracy": (("step",), "1", "test accuracy"),
        "steps_to_threshold": ((), "steps", f"steps to {threshold:.0%} train accuracy"),
        "censored": ((), "1", f"{threshold:.0%} train accuracy not reached within the budget"),
        "diverged_step": ((), "steps", "step at which loss or gradient stopped being finite"),
        "jacobian_singular_values": (
            (*by_example, "mode"),
            "1",
            "singular value of the input-to-last-hidden Jacobian",
        ),
        "jacobian_largest": (by_example, "1", "largest Jacobian singular value"),
        "jacobian_smallest": (by_example, "1", "smallest Jacobian singular value"),
        "jacobian_mean_square": (by_example, "1", "mean squared Jacobian singular value"),
        "jacobian_condition_number": (by_example, "1", "Jacobian condition number"),
        "jacobian_effective_rank": (by_example, "1", "effective rank of the Jacobian"),
        "lipschitz_upper_log10": (
            ("phase",),
            "log10",
            "upper bound on the Lipschitz constant (textbook product)",
        ),
        "lipschitz_ellipsoid_log10": (
            ("phase",),
            "log10",
            "upper bound on the Lipschitz constant (running ellipsoid, closed form)",
        ),
        "lipschitz_lower_log10": (
            ("phase",),
            "log10",
            "lower bound on the Lipschitz constant (gradient ascent)",
        ),
        "second_moment": (by_layer, "1", "second moment of the hidden state"),
        "second_moment_theory": (
            ("layer",),
            "1",
            "second moment by the mean-field variance map, at initialisation",
        ),
        "mean": (by_layer, "1", "mean of the hidden state"),
        "zero_fraction": (by_layer, "1", "share of activations equal to zero"),
        "dead_fraction": (by_layer, "1", "share of units with zero slope on every input"),
        "saturated_fraction": (by_layer, "1", "share of slopes below 1 % of the largest"),
        "weight_gradient_norm": (by_layer, "1", "norm of dL/dW of the layer"),
        "hidden_gradient_norm": (by_layer, "1", "norm of dL/dh of the layer"),
    }


def _shown(value: Any) -> str:
    return value.name if isinstance(value, Activation) else str(value)
