"""Certified accuracy: what a guaranteed radius costs, by a penalty, a constraint and a parametrisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from jaxact import activations
from jaxact.activations import Activation
from train import results
from train.experiment import Cell, Progress
from train.experiments import _certified_accuracy_views as views
from train.experiments import _fields as fields
from train.tasks import Digits, FromText

if TYPE_CHECKING:
    import xarray as xr

APPROACHES = ("unconstrained", "penalty", "spectral", "orthogonal")


@dataclass(frozen=True, kw_only=True)
class CertifiedAccuracy:
    """Train dense networks with a small Lipschitz constant in three ways and certify a radius about every test input.

    With a certified constant K of the logits z, no input within

        r = (z_y - max_{j != y} z_j) / (sqrt(2) K)

    of x has another class than y, since |z_y - z_j| changes by at most sqrt(2) K |dx| (Tsuzuku et al. 2018, section 4).

    Attributes:
        task: the classification problem.
        approaches: any of "unconstrained", "penalty", "spectral" and "orthogonal".
        activation: between any two layers.
        penalty_weights: of log K (the closed form of the certificate) beside the cross-entropy, from the loosest.
        spectral_constants: K of networks whose layers have spectral norms of at most 1, times K, from the loosest.
        orthogonal_scales: K of networks of orthogonal layers, times K, from the loosest.
        seeds: of initialisation and data order, vmapped.
        width: units of every hidden layer.
        num_hidden: hidden layers, at least 2.
        batch_size: examples a step, drawn with replacement.
        num_steps: optimiser steps.
        learning_rate: of Adam at the start; it falls to 0 by half a cosine.
        max_radius: where the curves of certified accuracy end, in units of the standardised inputs.
        num_radii: points of these curves.
        attack_radii: of the balls that projected gradient ascent searches for another class.
        attack_steps: of each search.
        num_attacked: held-out inputs, at most, that are attacked.
        refine_steps: of the certificate.
    """

    task: FromText = Digits()
    approaches: tuple[str, ...] = APPROACHES
    activation: Activation = activations.relu
    penalty_weights: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    spectral_constants: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0)
    orthogonal_scales: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0)
    seeds: tuple[int, ...] = (0, 1)
    width: int = 64
    num_hidden: int = 3
    batch_size: int = 128
    num_steps: int = 500
    learning_rate: float = 3e-3
    max_radius: float = 3.0
    num_radii: int = 61
    attack_radii: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    attack_steps: int = 30
    num_attacked: int = 200
    refine_steps: int = 100

    def __post_init__(self) -> None:
        fields.check_distinct(
            self, "approaches", "penalty_weights", "spectral_constants", "orthogonal_scales", "attack_radii"
        )
        for approach in self.approaches:
            if approach not in APPROACHES:
                raise ValueError(f"`approaches` must be among {', '.join(APPROACHES)}, got {approach!r}.")
        fields.check_positive(
            self,
            "penalty_weights",
            "spectral_constants",
            "orthogonal_scales",
            "attack_radii",
            "learning_rate",
            "max_radius",
        )
        fields.check_counts(self, "width", "batch_size", "num_steps", "attack_steps", "num_attacked")
        for name in ("num_hidden", "num_radii"):
            if getattr(self, name) < 2:
                raise ValueError(f"`{name}` must be at least 2, got {getattr(self, name)}.")
        fields.check_not_negative(self, "refine_steps")
        fields.check_seeds(self)

    def smoke(self) -> Self:
        """The loosest penalty and orthogonal layers, one seed, ten steps, nothing refined."""
        return replace(
            self,
            approaches=tuple(name for name in self.approaches if name in ("penalty", "orthogonal"))
            or self.approaches[:1],
            penalty_weights=self.penalty_weights[:1],
            spectral_constants=self.spectral_constants[:1],
            orthogonal_scales=self.orthogonal_scales[:1],
            seeds=self.seeds[:1],
            width=min(self.width, 8),
            num_hidden=2,
            num_steps=10,
            num_radii=5,
            attack_radii=self.attack_radii[:1],
            attack_steps=3,
            num_attacked=min(self.num_attacked, 20),
            refine_steps=0,
        )

    def cells(self) -> Sequence[Cell]:
        """One cell for every approach: its strengths and seeds are trained side by side."""
        return [Cell(approach, {"approach": approach}) for approach in self.approaches]

    def strengths(self, approach: str) -> tuple[float, ...]:
        """The settings of an approach, from the loosest."""
        return {
            "unconstrained": (0.0,),
            "penalty": self.penalty_weights,
            "spectral": self.spectral_constants,
            "orthogonal": self.orthogonal_scales,
        }[approach]

    def radii(self) -> np.ndarray:
        """The radii of the curves of certified accuracy."""
        return np.linspace(0.0, self.max_radius, self.num_radii)

    def run(self, cell: Cell, *, progress: Progress) -> xr.Dataset:
        """Train, certify and attack the networks of one approach."""
        from train.experiments import _certified_accuracy_programs as programs

        approach = cell.coords["approach"]
        measured = programs.run(self, approach, progress)
        coords: dict[str, Any] = {
            "approach": [approach],
            "setting": np.arange(1, len(self.strengths(approach)) + 1),
            "seed": list(self.seeds),
            "radius": self.radii(),
            "attack_radius": list(self.attack_radii),
        }
        variables = {
            name: (
                ("approach", *dims),
                np.asarray(measured[name])[None],
                {"units": units, "long_name": long_name},
            )
            for name, (dims, units, long_name) in RESULT_VARIABLES.items()
        }
        return results.labelled(variables, coords, COORDINATES)

    figures = staticmethod(views.figures)
    findings = staticmethod(views.findings)
    tables = staticmethod(views.tables)


COORDINATES = {
    "approach": ("1", "how the Lipschitz constant is kept small"),
    "setting": ("1", "strength, from the loosest"),
    "seed": ("1", "seed"),
    "radius": ("1", "radius about an input"),
    "attack_radius": ("1", "radius of the attack"),
}

_MEMBER = ("setting", "seed")
RESULT_VARIABLES = {
    "strength": (("setting",), "1", "weight of the penalty, or constant of the logits"),
    "train_accuracy": (_MEMBER, "1", "train accuracy"),
    "test_accuracy": (_MEMBER, "1", "test accuracy"),
    "lipschitz": (_MEMBER, "1", "certified Lipschitz constant of the logits"),
    "median_radius": (_MEMBER, "1", "median certified radius, 0 where the class is wrong"),
    "certified_accuracy": ((*_MEMBER, "radius"), "1", "certified accuracy"),
    "attacked_accuracy": ((*_MEMBER, "attack_radius"), "1", "accuracy under attack"),
    "certified_among_attacked": (
        (*_MEMBER, "attack_radius"),
        "1",
        "certified accuracy on the attacked inputs",
    ),
    "broken_certificates": (
        (*_MEMBER, "attack_radius"),
        "inputs",
        "inputs that changed their class within the certified radius",
    ),
}
