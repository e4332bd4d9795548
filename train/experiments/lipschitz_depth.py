"""Lipschitz bounds by depth: how far each certificate is from what an ascent finds, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from jaxact.activations import Activation
from train import results
from train.experiment import Cell, Progress
from train.experiments import _fields as fields
from train.experiments import _lipschitz_depth_views as views
from train.experiments._blocks import split_block
from train.tasks import Digits, FromText

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True, kw_only=True)
class LipschitzDepth:
    """Bound the Lipschitz constant of dense networks from both sides for every block, activation and depth.

    From below by gradient ascent; from above, for all inputs, by the textbook's product, by the closed form of the
    running ellipsoid (at or below ECLipsE-Fast for chains) and by its refinement; and within balls about the first
    held-out input.

    Attributes:
        task: the classification problem.
        activations: the activations to compare.
        depths: numbers of stages between the first and the last affine map.
        blocks: "plain", "pre_activation" or "post_activation", with "-bn" appended for batch norm.
        seeds: of initialisation and data order.
        width: units of every hidden layer.
        batch_size: examples a step, drawn with replacement.
        num_steps: optimiser steps.
        learning_rate: of SGD.
        momentum: of SGD.
        radii: of the balls of the local certificates, in units of the standardised inputs.
        refine_steps: of the refined ellipsoid for all inputs.
        local_steps: of refinement within a ball, and of the bound for all inputs that it is compared with.
        num_starts: held-out inputs that the ascent starts from.
        ascent_steps: of the ascent.
    """

    task: FromText = Digits()
    activations: tuple[Activation, ...]
    depths: tuple[int, ...] = (4, 8, 16, 32)
    blocks: tuple[str, ...] = ("plain", "pre_activation-bn", "post_activation-bn")
    seeds: tuple[int, ...] = (0,)
    width: int = 32
    batch_size: int = 64
    num_steps: int = 200
    learning_rate: float = 0.01
    momentum: float = 0.9
    radii: tuple[float, ...] = (0.01, 0.1, 1.0)
    refine_steps: int = 50
    local_steps: int = 0
    num_starts: int = 16
    ascent_steps: int = 50

    def __post_init__(self) -> None:
        fields.check_distinct(self, "activations", "depths", "blocks", "radii")
        fields.check_seeds(self)
        fields.check_counts(self, "width", "batch_size", "num_steps", "num_starts", "ascent_steps")
        fields.check_not_negative(self, "refine_steps", "local_steps")
        fields.check_depths(self)
        fields.check_positive(self, "learning_rate", "radii")
        for block in self.blocks:
            if split_block(block)[1] not in ("", "bn"):
                raise ValueError(
                    f"`blocks` must have no norm or batch norm, got {block!r}. Others have no bound for all inputs."
                )
        fields.check_momentum(self)

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

    def cells(self) -> Sequence[Cell]:
        """One cell for every block, activation and depth, in this order: a block's cells share programs."""
        return [
            Cell(
                f"{block}/{activation.name}/depth={depth}",
                {"block": block, "activation": activation.name, "depth": depth},
            )
            for block in self.blocks
            for activation in self.activations
            for depth in self.depths
        ]

    def bounds(self) -> list[str]:
        """The names of the bounds, from the tightest to the loosest."""
        return [
            "lower",
            *(f"local, R = {radius:g}" for radius in self.radii),
            "ellipsoid",
            "closed form",
            "product",
        ]

    def run(self, cell: Cell, *, progress: Progress) -> xr.Dataset:
        """Train the members of one cell and bound them before and after."""
        from train.experiments import _lipschitz_depth_programs as programs

        measured = programs.run(self, cell, progress)
        coords: dict[str, Any] = {
            **{name: [value] for name, value in cell.coords.items()},
            "seed": list(self.seeds),
            "phase": ["initial", "trained"],
            "bound": self.bounds(),
        }
        variables = {
            name: (
                ("block", "activation", "depth", *dims),
                np.asarray(measured[name])[None, None, None],
                {"units": units, "long_name": long_name},
            )
            for name, (dims, units, long_name) in RESULT_VARIABLES.items()
        }
        return results.labelled(variables, coords, COORDINATES)

    figures = staticmethod(views.figures)
    findings = staticmethod(views.findings)
    tables = staticmethod(views.tables)


COORDINATES = {
    "block": ("1", "block"),
    "activation": ("1", "activation"),
    "depth": ("layers", "depth"),
    "seed": ("1", "seed"),
    "phase": ("1", "phase of training"),
    "bound": ("1", "bound on the Lipschitz constant"),
}

RESULT_VARIABLES = {
    "lipschitz_log10": (("seed", "phase", "bound"), "log10", "bound on the Lipschitz constant"),
    "bound_time": (
        ("seed", "phase", "bound"),
        "s",
        "time to find the bound; of certificates, compilation included",
    ),
    "test_accuracy": (("seed", "phase"), "1", "test accuracy"),
}
