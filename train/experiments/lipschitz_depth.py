"""Lipschitz bounds by depth: how far each certificate is from what an ascent finds, before and after training."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import fit, theory
from jaxact.activations import Activation, select
from jaxact.lipschitz import Ball, certify
from train import fields, probing
from train.blocks import network, split_block
from train.experiment import Cell, Progress
from train.experiments import _lipschitz_depth_views as views
from train.study import Coordinate, Variable
from train.trial import TrainingStudy, accuracy, parts

_BOUND = ("seed", "phase", "bound")


@dataclass(frozen=True, kw_only=True)
class LipschitzDepth(TrainingStudy):
    """Bound the Lipschitz constant of dense networks from both sides for every block, activation and depth.

    From below by gradient ascent; from above, for all inputs, by the textbook's product, by the closed form of the
    running ellipsoid (at or below ECLipsE-Fast for chains) and by its refinement; and within balls about the first
    held-out input.

    Attributes:
        activations: the activations to compare.
        depths: numbers of stages between the first and the last affine map.
        blocks: "plain", "pre_activation" or "post_activation", with "-bn" appended for batch norm.
        learning_rate: of the optimiser.
        radii: of the balls of the local certificates, in units of the standardised inputs.
        refine_steps: of the refined ellipsoid for all inputs.
        local_steps: of refinement within a ball, and of the bound for all inputs that it is compared with.
        num_starts: held-out inputs that the ascent starts from.
        ascent_steps: of the ascent.
    """

    activations: tuple[Activation, ...]
    depths: tuple[int, ...] = (4, 8, 16, 32)
    blocks: tuple[str, ...] = ("plain", "pre_activation-bn", "post_activation-bn")
    learning_rate: float = 0.01
    radii: tuple[float, ...] = (0.01, 0.1, 1.0)
    refine_steps: int = 50
    local_steps: int = 0
    num_starts: int = 16
    ascent_steps: int = 50

    swept = {"block": "blocks", "activation": "activations", "depth": "depths"}
    coordinates = {"bound": Coordinate("bound on the Lipschitz constant")}
    variables = {
        "lipschitz_log10": Variable("bound on the Lipschitz constant", _BOUND, "log10"),
        "bound_time": Variable("time to find the bound; of certificates, compilation included", _BOUND, "s"),
        "test_accuracy": Variable("test accuracy", ("seed", "phase")),
    }

    def __post_init__(self) -> None:
        fields.check(
            self,
            blocks=fields.distinct,
            radii=fields.positive,
            num_starts=fields.count,
            refine_steps=fields.not_negative,
            local_steps=fields.not_negative,
        )
        for block in self.blocks:
            if split_block(block)[1] not in ("", "bn"):
                raise ValueError(
                    f"`blocks` must have no norm or batch norm, got {block!r}. Others have no bound for all inputs."
                )

    def smoke(self) -> Self:
        """One depth, one activation, one block, five optimiser steps, nothing refined."""
        return replace(
            self,
            activations=self.activations[:1],
            depths=(min(*self.depths, 2),),
            blocks=self.blocks[:1],
            seeds=self.seeds[:1],
            width=min(self.width, 6),
            num_steps=5,
            radii=self.radii[:1],
            refine_steps=0,
            local_steps=0,
            num_starts=2,
            ascent_steps=2,
        )

    def bounds(self) -> dict[str, dict[str, Any]]:
        """The bounds from the tightest to the loosest, each with the arguments of `certify`, where it is one."""
        local = {"num_steps": self.local_steps}
        return {
            "lower": {},
            **{f"local, R = {radius:g}": {**local, "radius": radius} for radius in self.radii},
            "ellipsoid": {"num_steps": self.refine_steps},
            "closed form": {"num_steps": 0},
            "product": {},
        }

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """Train the members of one cell and bound them before and after."""
        bounded = _bounded(self, cell.coords["block"])
        trial, found = bounded.trial, []
        activation, depth = cell.coords["activation"], cell.coords["depth"]
        setting = jnp.asarray(depth, jnp.int32), select(self.activations, self.activations.index(activation))
        before = trial.compile_seconds
        sigma_w = float(theory.moments(activation).slope_second_moment) ** -0.5  # gradients keep their size
        progress(0.0, "initialise")
        states = trial.start(*setting, sigma_w=sigma_w)
        for phase in range(2):

            def report(part: float, note: str, phase: int = phase) -> None:
                progress((phase + part) / 2, note)

            if phase:
                states, _ = trial.train(states, *setting, progress=lambda part, note: report(0.0, "train"))
            found.append(bounded(states, setting, cell, report))
        measured = {name: np.stack([each[name] for each in found], axis=1) for name in found[0]}
        return {**measured, "bound": list(self.bounds()), "compile_seconds": trial.compile_seconds - before}

    figures = staticmethod(views.figures)
    findings = staticmethod(views.findings)
    tables = staticmethod(views.tables)


class _Bounded:
    """The trial of one block, and every bound of its networks."""

    def __init__(self, study: LipschitzDepth, block: str):
        self.study = study
        data = study.task.load().flat()
        self.point = data.test_inputs[0]
        self.trial = study.trial(
            network(
                data,
                block,
                width=study.width,
                max_depth=max(study.depths),
                activation=study.activations[0],
            ),
            parts(data),
            calibrate=split_block(block)[1] == "bn",
        )
        self._accuracy, self._lower, self._product = map(
            self.trial.program, (self._accuracy_of, self._lower_bound, self._product_bound)
        )

    def __call__(self, states: fit.State, setting: tuple, cell: Cell, report: Any) -> dict[str, np.ndarray]:
        """Accuracy and every bound of all members; NaN for a network that diverged."""
        timed = {}
        for name, program in (("lower", self._lower), ("product", self._product)):
            report(0.0, name)
            timed[name] = self._timed(program, states, setting)
        accuracies = self.trial.host(self._accuracy(states, self.trial.data, setting)).astype(float)
        lost = ~np.isnan(self.trial.diverged_step(states))
        rows = []
        for member in range(self.trial.num_members):
            state = jax.tree.map(lambda leaf, member=member: leaf[member], states)
            found = {name: (float(values[member]), seconds) for name, (values, seconds) in timed.items()}
            if not lost[member]:
                found |= self._certified(state, cell, report)
            nothing = (math.nan, math.nan)
            rows.append([nothing if lost[member] else found[name] for name in self.study.bounds()])
        logs, seconds = np.moveaxis(np.asarray(rows), -1, 0)
        return {
            "lipschitz_log10": logs,
            "bound_time": seconds,
            "test_accuracy": np.where(lost, math.nan, accuracies),
        }

    def _timed(self, program: Any, *args: Any) -> tuple[np.ndarray, float]:
        """What a program gives, and the seconds a member that it takes once it is compiled."""
        before = self.trial.compile_seconds
        states, setting = args
        for _ in range(2):
            started = time.perf_counter()
            values = self.trial.host(program(states, self.trial.data, setting))
            seconds = (time.perf_counter() - started) / len(values)
            if self.trial.compile_seconds == before:
                break
            before = self.trial.compile_seconds
        return values, seconds

    def _certified(self, state: fit.State, cell: Cell, report: Any) -> dict[str, tuple[float, float]]:
        """log10 and seconds of every certificate of one network."""

        def function(x):
            setting = cell.coords["depth"], cell.coords["activation"]
            return self.trial.output(state, x[None], *setting)[0]

        wanted = {name: given for name, given in self.study.bounds().items() if given}
        found = {}
        for index, (name, given) in enumerate(sorted(wanted.items(), key=lambda item: "radius" in item[1])):
            report((index + 1) / (len(wanted) + 1), name)
            region = Ball(self.point, given["radius"]) if "radius" in given else None
            certificate = certify(function, self.point, num_steps=given["num_steps"], region=region)
            found[name] = float(certificate.log10), certificate.seconds
        everywhere = found["ellipsoid"][0]  # what holds everywhere holds in a ball
        return {
            name: (min(log10, everywhere) if "radius" in wanted[name] else log10, seconds)
            for name, (log10, seconds) in found.items()
        }

    def _accuracy_of(self, state, data, setting):
        inputs, labels = data["test"]
        return accuracy(self.trial.output(state, inputs, *setting), labels)

    def _lower_bound(self, state, data, setting):
        starts = data["test"][0][: self.study.num_starts]
        return probing.log10_ascent(self.trial, state, starts, setting, num_steps=self.study.ascent_steps)

    def _product_bound(self, state, data, setting):
        return probing.log10_bound(self.trial, state, setting)


@functools.lru_cache(maxsize=4)
def _bounded(study: LipschitzDepth, block: str) -> _Bounded:
    """The programs of one block; made once a process, whichever cells ask for them."""
    return _Bounded(study, block)
