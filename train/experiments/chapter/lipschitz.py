"""Lipschitz against trainability: whether a small slope bound still helps once the weights have fitted the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxact import activations
from jaxact.activations import Activation, select, sigmoid, tanh
from train import blocks, chains
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.optimizers import Adam, Optimizer
from train.study import Coordinate, Variable
from train.trial import TrainingStudy, parts

_NAMES = ("sigmoid", "relu", "tanh", "silu", "gelu")
_STARTS = {"equal": "from equal weights", "own": "each from its own gain"}
_NUMBERS = ("product", "certified_bound", "attained", "clean", "certified", "l2", "linf")
_JUDGED: dict[str, tuple[str, Any, float]] = {  # 0.01: four of the held-out digits
    "l2": ("accuracy under attack (l2)", "at_least", 0.01),
    "linf": ("accuracy under attack (linf)", "at_least", 0.01),
    "certified": ("accuracy, certified", "at_least", 0.01),
    "attained": ("largest slope at a held-out digit, log10", "at_most", 0.0),
    "clean": ("clean accuracy", "equal", 0.03),
}
_MEMBER = ("start", "activation", "seed")


@dataclass(frozen=True, kw_only=True)
class Lipschitz(Claim, TrainingStudy):
    """Train networks to one accuracy with each activation, then bound, certify and attack them.

    Attributes:
        activations: the first has the small slope bound, the second is what it is compared with; tanh is among them.
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
    num_attacked: int = 360

    number = 12
    title = "A small slope bound makes a network smoother"
    says = (
        "A network's Lipschitz constant is at most the product of its weights' norms and its activations' slopes. "
        "With sup |f'| = 1/4 a sigmoid network is therefore smoother and more robust than one of relu."
    )
    formula = "Lip ≤ (sup |f'|)^L ∏ ‖W_l‖₂;  sup sigmoid' = 1/4, sup relu' = 1;  tanh z = 2 sigmoid(2z) - 1"
    practice = (
        "The small slope is no promise: training grows the weights until the network fits. Where they start matters "
        "more. To have a small constant, constrain or penalise the bound of the whole network."
    )
    source = "Szegedy et al. (2014), section 4.3; Tsuzuku et al. (2018), section 4; Madry et al. (2018)"
    coordinates = {
        "bound": Coordinate("number", labels=("product bound", "certified bound", "attained")),
        "test": Coordinate("test", labels=("clean", "certified", "attacked (l2)", "attacked (linf)")),
        "start": Coordinate("initial weights", labels=tuple(_STARTS.values())),
    }
    variables = {
        "constant": Variable("Lipschitz constant of trained networks", ("bound", *_MEMBER), "log10"),
        "share": Variable("share of held-out digits right", ("test", *_MEMBER)),
    }

    def numbers(self) -> dict[str, Number]:
        less, factor = "{} less {}".format(*self.activations[:2]), (self.depth + 1) * math.log10(1 / 4)
        found = {
            f"{name}_{start}": Number(f"{said}, {where}: {less}", 0.0, None, relation, tolerance)
            for start, where in _STARTS.items()
            for name, (said, relation, tolerance) in _JUDGED.items()
        }
        kept: dict[str, Any] = {"chapter": factor, "tolerance": 0.2, "core": False}
        said = f"steps to the accuracy, log10, from equal weights: {less}"
        return found | {
            "initial": Number(f"initial product bound, log10: {less}", factor, factor, tolerance=0.01),
            "product": Number("product bound after training from equal weights, log10", **kept),
            "certified_bound": Number("certified bound after training from equal weights, log10", **kept),
            "rewritten": Number("product bound, log10: tanh written with sigmoid", exact=0.0, **kept),
            "steps": Number(said, 0.0, None, "at_least", core=False),
        }

    def measure(self, cell, progress) -> dict[str, Any]:
        data, shape = self.task.load().flat(), (len(_STARTS), len(self.activations))
        network = blocks.network(data, width=self.width, max_depth=self.depth, activation=self.activations[0])
        trial = self.trial(network, parts(data), evaluate={"train": "train_part"})
        taken = partial(trial.taken_at, measured="train_accuracy", least=self.accuracy)
        test: Any = [each[: self.num_attacked] for each in (data.test_inputs, data.test_labels)]
        radii: Any = self.certified_radius, tuple(zip(self.radii, ("l2", "linf"), strict=True))
        read, initial, rewritten = chains.reader(trial), [], []
        steps = np.empty((*shape, len(self.seeds)))
        found = np.empty((len(_NUMBERS), *steps.shape))
        for where, place in np.ndindex(shape):
            f, setting = self.activations[place], (jnp.int32(self.depth), select(self.activations, place))
            progress((where + place / shape[1]) / 2, f.name)
            fresh = trial.start(*setting, sigma_w=jnp.float32(blocks.preserving_sigma(f) if where else 1))
            initial.append([chains.log10_product(f, chain) for chain in read(fresh)])
            states, steps[where, place] = taken(fresh, *setting)
            members = read(states)
            rows = [chains.robustness(f, setting[1], chain, *test, *radii) for chain in members]
            found[:, where, place] = np.transpose(rows)
            if f == tanh:
                written = [chains.log10_product(sigmoid, each) for each in map(chains.as_sigmoid, members)]
                rewritten.append(np.subtract(written, found[0, where, place]))
        found = np.where(np.isnan(steps), np.nan, found)
        less = dict(zip(_NUMBERS, found[:, :, 0] - found[:, :, 1], strict=True))  # each [start, seed]
        judged = {f"{name}_{start}": less[name][i] for name in _JUDGED for i, start in enumerate(_STARTS)}
        judged |= {"initial": np.subtract(initial[0], initial[1]), "rewritten": rewritten[0]}
        judged |= {name: less[name][0] for name in _NUMBERS[:2]}
        judged |= {"steps": np.log10(steps[0, 0] / steps[0, 1])}
        judged |= {"activation": [f.name for f in self.activations]}
        return judged | {"constant": found[:3], "share": found[3:]}

    def smoke(self) -> Lipschitz:
        small = replace(super().smoke(), activations=self.activations[:3], num_steps=20, measure_every=10)
        return replace(small, accuracy=0.2, num_attacked=20)

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        common: dict[str, Any] = {"x": "activation", "column": "start", "choices": {}}
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
