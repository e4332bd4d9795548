"""The phase diagram: how deep a plain network trains at which weight variance, beside what mean-field theory says."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, Self

import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxact.activations import Activation
from train import fields
from train.blocks import MEAN_FIELD, depth_scales, network
from train.experiment import Cell, Progress
from train.experiments.phase_diagram import figures as drawn
from train.experiments.phase_diagram import findings as words
from train.figures import borders
from train.study import Coordinate, Variable
from train.trial import TrainingStudy, Trial, first_crossing, parts

_MEMBER, _CURVE = ("learning_rate", "seed"), ("activation", "curve_sigma_w_squared")


@dataclass(frozen=True, kw_only=True)
class PhaseDiagram(TrainingStudy):
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
        depths: numbers of hidden layers; a run-time argument too.
        sigma_w_squared: variances of the weights times the width; a run-time argument too.
        sigma_b_squared: variance of the biases.
        learning_rates: of the optimiser; vmapped, and tuned over for every square.
        seeds: of initialisation and data order; vmapped. What counts is reached by most of them (more than half).
        measure_every: steps between two measurements of accuracy, the resolution of the time to train.
        threshold: train accuracy whose first crossing is the time to train.
        num_evaluate: training examples, at most, that accuracy is measured on.
        max_depth: length of the compiled stack; None for max(depths). Depths up to it need no new program.
    """

    activations: tuple[Activation, ...]
    depths: tuple[int, ...] = (8, 11, 15, 20, 27, 36, 48, 64)
    sigma_w_squared: tuple[float, ...] = (0.8, 1.0, 1.2, 1.5, 1.76, 2.1, 2.5, 3.0, 3.5, 4.0)
    sigma_b_squared: float = 0.05
    learning_rates: tuple[float, ...] = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    seeds: tuple[int, ...] = (0, 1)
    width: int = 64
    num_steps: int = 300
    measure_every: int = 10
    threshold: float = 0.9
    num_evaluate: int = 256
    max_depth: int | None = None

    # A cell ends early once it is settled: `train_accuracy` is NaN past `steps_trained`. Every number of theory has one
    # cell that it comes from, for several processes may round it differently: hence more coordinates than it depends
    # on. The curves come from the first cell of each activation.
    swept = {"activation": "activations", "depth": "depths", "sigma_w_squared": "sigma_w_squared"}
    coordinates = {
        "sigma_w_squared": Coordinate("weight variance times width, sigma_w^2"),
        "curve_sigma_w_squared": Coordinate("weight variance times width, along the theory's curves"),
    }
    variables = {
        "train_accuracy": Variable("train accuracy", (*_MEMBER, "step")),
        "steps_to_threshold": Variable("steps to {threshold:.0%} train accuracy", _MEMBER, "steps"),
        "diverged_step": Variable("step at which loss or gradient stopped being finite", _MEMBER, "steps"),
        "steps_trained": Variable("steps until the cell was settled or the budget spent", units="steps"),
        "q_star": Variable("fixed second moment of the preactivations, by mean-field theory"),
        "chi": Variable("growth of squared gradients a layer, by mean-field theory"),
        "c_star": Variable("fixed correlation of two inputs, by mean-field theory"),
        "xi_c": Variable("depth scale of correlations, by mean-field theory", units="layers"),
        "xi_gradient": Variable("depth scale of gradients, by mean-field theory", units="layers"),
        "curve_xi_c": Variable("xi_c along a curve", _CURVE, "layers", of_cell=False),
        "curve_xi_gradient": Variable("xi_gradient along a curve", _CURVE, "layers", of_cell=False),
        "critical_sigma_w_squared": Variable("critical weight variance, by mean-field theory"),
        "threshold": Variable("train accuracy that counts as trained", of_cell=False),
        "chance_accuracy": Variable("share of the commonest class", of_cell=False),
        "width": Variable("units of a hidden layer", units="units", of_cell=False),
    }

    def __post_init__(self) -> None:
        fields.check(self, sigma_w_squared=fields.positive, sigma_b_squared=fields.not_negative)

    def smoke(self) -> Self:
        """One activation, two depths, two weight variances, two learning rates, twenty steps."""
        return replace(
            super().smoke(),
            activations=self.activations[:1],
            depths=tuple(sorted({min(depth, 6 * i) for i, depth in enumerate(self.depths[:2], start=1)})),
            sigma_w_squared=self.sigma_w_squared[:: max(1, len(self.sigma_w_squared) // 2)][:2],
            learning_rates=self.learning_rates[-2:],
            threshold=min(self.threshold, 0.3),
            num_evaluate=min(self.num_evaluate, 64),
            max_depth=None,
        )

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """Train the members of one cell until it is settled, beside what theory predicts of it.

        Settled is when most of the seeds (more than half) are past the threshold at one learning rate, for no other
        can then be faster, or when all members have diverged.
        """
        activation, depth, scale = cell.coords.values()
        trial, chance = _trial(self)
        before, total = trial.compile_seconds, self.num_steps // self.measure_every
        setting, steps = self.setting(cell), self.steps()
        accuracy = np.full((trial.num_members, total), np.nan)
        progress(0.0, "initialise")
        states = trial.start(*setting, sigma_w=jnp.float32(scale**0.5))
        training = trial.chunks(states, *setting)
        for index, chunk in enumerate(training):
            accuracy[:, index] = chunk.measured["train_accuracy"]
            progress((index + 1) / total, f"step {steps[index]}")
            if self._is_settled(accuracy) or np.isnan(accuracy[:, index]).all():
                break
        predicted = depth_scales(activation, self.sigma_w_squared, self.sigma_b_squared, self._across())
        column = self.sigma_w_squared.index(scale)
        is_first = (depth, scale) == (self.depths[0], self.sigma_w_squared[0])
        return {
            "train_accuracy": accuracy,
            "step": steps,
            "steps_to_threshold": first_crossing(accuracy, steps, self.threshold),
            "diverged_step": trial.diverged_step(training.states),
            "steps_trained": steps[index],
            **predicted,
            **{name: predicted[name][column] for name in MEAN_FIELD},
            "curve_sigma_w_squared": predicted["curve_sigma_w_squared"] if is_first else None,
            "threshold": self.threshold,
            "chance_accuracy": chance,
            "width": self.width,
            "compile_seconds": trial.compile_seconds - before,
        }

    def _across(self) -> tuple[float, float]:
        """The ends of the heat map; a first column may be much nearer to 0 than to the second."""
        low, *_, high = borders(np.sort(self.sigma_w_squared))
        return max(low, min(self.sigma_w_squared) / 2), high

    def _is_settled(self, accuracy: np.ndarray) -> bool:
        reached = (accuracy >= self.threshold).any(axis=1).reshape(-1, len(self.seeds))
        return bool((reached.sum(axis=1) > len(self.seeds) // 2).any())

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        """The figures of the study, by name."""
        return cls.drawn(result, drawn.figures(result))

    findings = staticmethod(words.findings)
    tables = staticmethod(words.tables)


@functools.lru_cache(maxsize=4)
def _trial(study: PhaseDiagram) -> tuple[Trial, float]:
    """The programs of a study, and what guessing the commonest class scores where accuracy is measured."""
    data = study.task.load().flat()
    sizes: dict[str, Any] = {"width": study.width, "max_depth": study.max_depth or max(study.depths)}
    f, sigma_b = study.activations[0], study.sigma_b_squared**0.5
    trial = study.trial(
        network(data, **sizes, activation=f, sigma_b=sigma_b),
        parts(data, num_evaluate=study.num_evaluate),
        evaluate={"train": "train_part"},
    )
    labels = data.train_labels[: study.num_evaluate]
    return trial, np.bincount(labels).max() / len(labels)
