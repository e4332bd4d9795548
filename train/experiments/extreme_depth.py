"""Extreme depth: plain networks at the edge of chaos, orthogonal beside Gaussian weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from jaxact import activations
from jaxact.activations import Activation
from train import results
from train.experiment import Cell, Progress
from train.experiments import _extreme_depth_views as views
from train.experiments import _fields as fields
from train.tasks import Digits, FromText

if TYPE_CHECKING:
    import xarray as xr

WEIGHTS = ("orthogonal", "gaussian")


@dataclass(frozen=True, kw_only=True)
class ExtremeDepth:
    """Train plain networks at a critical point, as deep as memory allows, and set them beside what theory says.

    Inputs are scaled to the fixed point's second moment, so that every layer sees the same length from the start.

    Attributes:
        task: the classification problem.
        activation: between any two layers.
        depths: numbers of layers; each is a program of its own.
        weights: "orthogonal" or "gaussian", at the same scale.
        q_star: second moment of the preactivations at the fixed point; the weights' and the biases' scale follow from
            it (`jaxact.theory.critical_point`). The smaller, the closer to a linear network: 0.025 makes
            sigma_w^2 = 1.05 for tanh.
        seeds: of initialisation and data order, vmapped.
        width: units of every layer.
        batch_size: examples a step, drawn with replacement.
        num_steps: the budget of optimiser steps.
        measure_every: steps between two measurements.
        learning_rate: of SGD at the start; it falls to 0 by half a cosine.
        momentum: of SGD.
        clip_norm: largest norm of the whole gradient.
        threshold: test accuracy whose first crossing is the time to train.
        num_probes: held-out examples whose Jacobians, lengths and correlations are measured before training.
    """

    task: FromText = Digits()
    activation: Activation = activations.tanh
    depths: tuple[int, ...] = (100, 1000, 10000)
    weights: tuple[str, ...] = WEIGHTS
    q_star: float = 0.025
    seeds: tuple[int, ...] = (0,)
    width: int = 64
    batch_size: int = 64
    num_steps: int = 500
    measure_every: int = 20
    learning_rate: float = 1e-3
    momentum: float = 0.9
    clip_norm: float = 1.0
    threshold: float = 0.95
    num_probes: int = 8

    def __post_init__(self) -> None:
        fields.check_distinct(self, "depths", "weights")
        fields.check_seeds(self)
        fields.check_counts(self, "width", "batch_size", "num_steps", "measure_every", "num_probes")
        fields.check_depths(self)
        for kind in self.weights:
            if kind not in WEIGHTS:
                raise ValueError(f"`weights` must be among {', '.join(WEIGHTS)}, got {kind!r}.")
        fields.check_positive(self, "q_star", "learning_rate", "clip_norm")
        fields.check_momentum(self)
        fields.check_threshold(self)
        if self.num_probes < 2:
            raise ValueError(
                f"`num_probes` must be at least 2, for a correlation takes two, got {self.num_probes}."
            )
        fields.check_measure_every(self)

    def smoke(self) -> Self:
        """One depth of at most 200 layers, both kinds of weights, twenty steps."""
        return replace(
            self,
            depths=(min(*self.depths, 200),),
            width=min(self.width, 16),
            num_steps=20,
            measure_every=10,
            num_probes=min(self.num_probes, 3),
        )

    def cells(self) -> Sequence[Cell]:
        """One cell for every kind of weights and depth, the deepest of each first: they take the longest."""
        return [
            Cell(f"{kind}/depth={depth}", {"weights": kind, "depth": depth})
            for kind in self.weights
            for depth in sorted(self.depths, reverse=True)
        ]

    def run(self, cell: Cell, *, progress: Progress) -> xr.Dataset:
        """Measure at initialisation, train, and set theory beside it."""
        from train.experiments import _extreme_depth_programs as programs

        depth = cell.coords["depth"]
        measured = programs.run(self, cell.coords["weights"], depth, progress)
        coords: dict[str, Any] = {
            "weights": [cell.coords["weights"]],
            "depth": [depth],
            "seed": list(self.seeds),
            "step": np.arange(1, self.num_steps // self.measure_every + 1) * self.measure_every,
            "position": programs.POSITIONS,
            "example": np.arange(self.num_probes),
            "mode": np.arange(1, measured["log10_singular_value"].shape[-1] + 1),
        }
        variables = {}
        for name, (dims, units, long_name) in result_variables(self.threshold).items():
            variables[name] = (
                ("weights", "depth", *dims),
                np.asarray(measured[name])[None, None],
                {"units": units, "long_name": long_name},
            )
        return results.labelled(variables, coords, COORDINATES)

    figures = staticmethod(views.figures)
    findings = staticmethod(views.findings)
    tables = staticmethod(views.tables)


COORDINATES = {
    "weights": ("1", "law of the weights"),
    "depth": ("layers", "depth"),
    "seed": ("1", "seed"),
    "step": ("steps", "optimiser step"),
    "position": ("1", "layer as a share of the depth"),
    "example": ("1", "held-out example"),
    "mode": ("1", "singular value, from the largest"),
}


def result_variables(threshold: float) -> dict[str, tuple[tuple[str, ...], str, str]]:
    """Name each measured variable with its own dimensions, units and long name.

    Args:
        threshold: the test accuracy that counts as trained.
    """
    return {
        "train_loss": (("seed", "step"), "nat", "train cross-entropy, mean of the steps before"),
        "test_loss": (("seed", "step"), "nat", "test cross-entropy"),
        "test_accuracy": (("seed", "step"), "1", "test accuracy"),
        "steps_to_threshold": (("seed",), "steps", f"steps to {threshold:.0%} test accuracy"),
        "diverged_step": (("seed",), "steps", "step at which loss or gradient stopped being finite"),
        "log10_singular_value": (
            ("seed", "example", "mode"), "log10", "singular value of the input-to-last-hidden Jacobian before training",
        ),
        "log10_singular_value_theory": (
            ("mode",), "log10", "quantile of the limiting law of singular values (infinite width)",
        ),
        "second_moment": (("seed", "position"), "1", "second moment of the preactivation at initialisation"),
        "correlation": (("seed", "position"), "1", "mean correlation of two inputs at initialisation"),
        "correlation_theory": (("seed", "position"), "1", "mean correlation by the mean-field correlation map"),
        "log10_gradient_norm": (
            ("seed", "position"), "log10", "norm of dL/dh over that at the last layer, at initialisation",
        ),
        "sigma_w": ((), "1", "weight scale"),
        "sigma_b": ((), "1", "bias scale"),
        "q_star": ((), "1", "second moment at the fixed point"),
        "step_seconds": ((), "s", "time of an optimiser step of all seeds, without compiling"),
    }  # fmt: skip
