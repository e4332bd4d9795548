"""The mean shift: how far from zero the activations of a layer are centred, beside theory, before any training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import fit, nn, theory
from jaxact.activations import Activation
from train.blocks import network, preserving_sigma, second_moments
from train.experiment import Cell, Progress
from train.study import Study, Variable
from train.tasks import Digits, FromText

_LAYER = ("seed", "layer")


@dataclass(frozen=True, kw_only=True)
class MeanShift(Study):
    """Measure the mean of f(z) over units and inputs in every layer of plain networks at initialisation.

    What the next layer receives from a unit is E f(z) = mu on average, and mu sum_j W_ij is the same for all inputs:
    networks whose activations are not centred begin with a bias that the data did not ask for.

    Attributes:
        task: the classification problem, whose held-out inputs are used.
        activations: the activations to compare.
        seeds: of initialisation; vmapped.
        width: units of every hidden layer.
        depth: hidden layers.
    """

    task: FromText = Digits()
    activations: tuple[Activation, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 256
    depth: int = 16

    swept = {"activation": "activations"}
    variables = {
        "mean": Variable("mean of the hidden units", _LAYER, theory="mean_theory"),
        "mean_theory": Variable("mean by Gaussian moments, at infinite width", ("layer",)),
        "second_moment": Variable(
            "second moment of the preactivations", _LAYER, theory="second_moment_theory"
        ),
        "second_moment_theory": Variable("second moment by the mean-field variance map", ("layer",)),
    }

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """Run a population of fresh networks, and the variance map, once."""
        f, data = cell.coords["activation"], self.task.load().flat()
        sigma_w = preserving_sigma(f)
        plain = network(data, width=self.width, max_depth=self.depth, activation=f, sigma_w=sigma_w)

        def one(member: fit.Member) -> dict[str, jax.Array]:
            params, variables = plain.init(member.key)
            trace: nn.Trace = plain.apply(params, variables, data.test_inputs, method="trace")[0]
            z = trace.preactivation
            return {"mean": jnp.mean(f(z), (1, 2)), "second_moment": jnp.mean(z**2, (1, 2))}

        measured = jax.jit(lambda members: fit.population(one, members))(fit.grid(seeds=self.seeds))
        first = np.mean(data.test_inputs**2)
        q = np.append(first, second_moments("plain", f, first, self.depth - 1, sigma_w=sigma_w))
        progress(1.0)
        return {**measured, "mean_theory": theory.moments(f, variance=q).mean, "second_moment_theory": q}
