"""Lipschitz against trainability: whether a small slope bound still helps once the weights have fitted the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxact import activations, lipschitz
from jaxact.activations import Activation, select
from train import blocks, chains, probing
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.optimizers import Adam, Optimizer
from train.study import Coordinate, Variable
from train.tasks import Data
from train.trial import TrainingStudy, Trial, parts

_NAMES = ("sigmoid", "relu", "tanh", "silu", "gelu")
_SHARES = {"certified": "certified accuracy", "l2": "accuracy under attack (l2)", "linf": "the same (linf)"}
_NUMBERS = ("product", "certified_bound", "attained", "clean", *_SHARES)
_MEMBER = ("activation", "seed")


@dataclass(frozen=True, kw_only=True)
class Lipschitz(Claim, TrainingStudy):
    """Train networks to one accuracy with each activation, then bound, certify and attack them.

    Attributes:
        activations: the first has the small slope bound, the second is what it is compared with.
        depth: hidden layers behind the first.
        accuracy: on the training set, at which a network is taken: the first measurement that reaches it.
        radii: of the attacks in the Euclidean norm and in the largest entry, in units of standardised inputs.
        certified_radius: within which certificates are counted.
        num_attacked: held-out inputs, at most.
    """

    optimizer: Optimizer = Adam()
    activations: tuple[Activation, ...] = tuple(map(activations.parse, _NAMES))
    depth: int = 2
    learning_rate: float = 0.01
    num_steps: int = 600
    measure_every: int = 10
    accuracy: float = 0.97
    radii: tuple[float, ...] = (1.0, 0.2)
    certified_radius: float = 0.02
    num_attacked: int = 200

    number = 12
    title = "A small slope bound makes a network smoother"
    says = (
        "A network's Lipschitz constant is at most the product of its weights' norms and its activations' slopes. "
        "With sup |f'| = 1/4 a sigmoid network is therefore smoother and more robust than one of relu."
    )
    formula = "Lip ≤ (sup |f'|)^L ∏ ‖W_l‖₂;  sup sigmoid' = 1/4, sup relu' = 1"
    practice = (
        "The slope bound is not what makes the difference: training grows the weights until the network fits, and they "
        "give most of it back. To have a small constant, constrain or penalise the bound of the whole network."
    )
    source = "Szegedy et al. (2014), section 4.3; Tsuzuku et al. (2018), section 4; Madry et al. (2018)"
    coordinates = {
        "bound": Coordinate("number", labels=("product bound", "certified bound", "attained")),
        "test": Coordinate("test", labels=("clean", "certified", "attacked (l2)", "attacked (linf)")),
    }
    variables = {
        "constant": Variable("Lipschitz constant of trained networks", ("bound", *_MEMBER), "log10"),
        "share": Variable("share of held-out digits right", ("test", *_MEMBER)),
    }

    def numbers(self) -> dict[str, Number]:
        less, factor = "{} less {}".format(*self.activations[:2]), (self.depth + 1) * math.log10(1 / 4)
        at_least: dict[str, Any] = {"chapter": 0.0, "relation": "at_least", "tolerance": 0.03}
        kept: dict[str, Any] = {"chapter": factor, "tolerance": 0.2, "core": False}
        return {
            "attained": Number(f"attained local constant, log10: {less}", 0.0, None, "at_most"),
            "initial": Number(
                f"product bound at equal weights, log10: {less}", factor, factor, tolerance=0.01
            ),
            "product": Number(f"the same after training: {less}", **kept),
            "certified_bound": Number(f"certified bound after training, log10: {less}", **kept),
            "clean": Number(f"held-out accuracy: {less}", 0.0, tolerance=0.03),
            **{name: Number(f"{said}: {less}", **at_least) for name, said in _SHARES.items()},
        }

    def measure(self, cell, progress) -> dict[str, Any]:
        data = self.task.load().flat()
        network = blocks.network(data, width=self.width, max_depth=self.depth, activation=self.activations[0])
        trial = self.trial(network, parts(data), evaluate={"train": "train_part"})
        logs = trial.program(partial(_logs, trial))
        rows, initial = [], []
        for place, f in enumerate(self.activations):
            progress(place / len(self.activations), f.name)
            setting = jnp.asarray(self.depth, jnp.int32), select(self.activations, place)
            start = partial(trial.start, *setting)
            initial.append(trial.host(logs(start(sigma_w=jnp.float32(1)), trial.data, setting)[0]))
            fresh = start(sigma_w=jnp.float32(blocks.preserving_sigma(f)))
            states, is_there = trial.taken_at(fresh, *setting, measured="train_accuracy", least=self.accuracy)
            product, attained = trial.host(logs(states, trial.data, setting))
            certified, *shares = self._tested(f, chains.of_members(trial, states), data)
            rows.append(np.where(is_there, [product, certified, attained, *shares], np.nan))
        found = np.stack(rows, axis=1)  # [number, activation, seed]
        first_two = dict(zip(_NUMBERS, found[:, 0] - found[:, 1], strict=True))
        labels = {"activation": [f.name for f in self.activations], "constant": found[:3], "share": found[3:]}
        return {**first_two, **labels, "initial": initial[0] - initial[1]}

    def _tested(self, f: Activation, members: Any, data: Data) -> np.ndarray:
        """log10 of the certified bound, and the shares that are right: clean, certified, attacked twice; [5, seed]."""
        test: Any = [each[: self.num_attacked] for each in (data.test_inputs, data.test_labels)]
        attacks, found = tuple(zip(self.radii, ("l2", "linf"), strict=True)), []
        for chain in members:
            bound = float(lipschitz.upper_bound(chain[0], f, method="ellipsoid", num_steps=0))
            told: dict[str, Any] = {"certified": (bound, self.certified_radius), "attacks": attacks}
            shares = chains.robust_shares(f, chain, *test, **told, num_steps=20)
            found.append([math.log10(bound), *shares])
        return np.array(found).T

    def smoke(self) -> Lipschitz:
        small = replace(super().smoke(), activations=self.activations[:2], num_steps=20, measure_every=10)
        return replace(small, accuracy=0.2, num_attacked=20)

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        common: dict[str, Any] = {"x": "activation", "column": None, "choices": {}}
        title = "Who is robust at equal training accuracy?"
        return {
            "constant": cls.figure(result, "constant", **common, series="bound"),
            "share": cls.figure(result, "share", **common, series="test", title=title, format=".0%"),
        }

    exercise = Exercise(
        task="Write `bound(norms, slope)`: the product bound of layers with these norms, activations between them.",
        function="bound",
        answer=lambda norms, slope: math.prod(norms) * slope ** (len(norms) - 1),
        inputs=(([2.0, 3.0], 0.25), ([1.0, 4.0, 2.0], 0.25), ([5.0], 0.25)),
        mistakes={"None is behind the last.": lambda norms, slope: math.prod(norms) * slope ** len(norms)},
        solution="import math\n\ndef bound(norms, k):\n    return math.prod(norms) * k ** (len(norms) - 1)\n",
    )


def _logs(trial: Trial, state: Any, data: Any, setting: tuple) -> tuple[jax.Array, jax.Array]:
    """log10 of the product bound and of the attained constant."""
    starts = data["test"][0][:8]
    ascent = probing.log10_ascent(trial, state, starts, setting, num_steps=20, takes_one=True)
    return probing.log10_bound(trial, state, setting), ascent
