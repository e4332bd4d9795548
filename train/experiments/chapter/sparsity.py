"""Sparsity: how many units are zero, active or dead, and whether forcing them to zero helps on held-out data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxact import activations
from jaxact.activations import Activation, select
from train import blocks, probing
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.study import Variable
from train.tasks import Digits, FromText
from train.trial import TrainingStudy, Trial, cross_entropy, parts

_DEPTH, _FEW = 2, (0.1, 0.3)
_DIMS = ("activation", "learning_rate", "seed")
_WAYS = {"threshold": "thresholded", "l1": "l1 penalty"}  # how units are forced to zero


@dataclass(frozen=True, kw_only=True)
class Sparsity(Claim, TrainingStudy):
    """Count zeros of activations in samples and in networks before and after training, and force them.

    Attributes:
        activations: whose dead units are counted; learning_rates: ascending.
        num_samples: of N(mu, 1), a seed and mu.
        threshold, penalty: below which a unit is zero; of the mean of hidden units.
    """

    task: FromText = Digits(num_train=200)
    activations: tuple[Activation, ...] = tuple(map(activations.parse, ("relu", "leaky_relu", "elu", "gelu")))
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    num_samples: int = 100_000
    threshold: float = 0.5
    penalty: float = 0.1
    num_steps: int = 200

    number = 5
    title = "ReLU makes representations sparse"
    says = (
        "Half of the units of relu are zero at the start, which acts like an l0 penalty and generalises better. A unit "
        "that is zero for every input is dead; leaky relu has neither."
    )
    formula = "P(relu(z) = 0) = Φ(−μ/σ) = 1/2 at μ = 0"
    practice = (
        "Sparsity comes from the units' means and is no regulariser one can count on: no way of forcing it gained a "
        "point on held-out digits at both rates. Too large a rate kills relu units; a slope below 0 keeps them alive."
    )
    source = "Glorot, Bordes and Bengio (2011), sections 3 and 4; Maas et al. (2013); Lu et al. (2019), on dying relu"
    within = {"seed": "seeds"}
    variables = {"dead_units": Variable("share of dead units after training", _DIMS)}

    def numbers(self) -> dict[str, Number]:
        error, wide = 2.5 / math.sqrt(self.num_samples), 1.5 / math.sqrt(self.width * len(self.seeds))
        forced: dict[str, Number] = {}
        for way, said in _WAYS.items():
            forced[f"{way}_zeros"] = Number(f"share of zeros: {said} less plain relu", 0.0, None, "at_least")
            for rate in self.learning_rates[:2]:  # one point: less would not be noticed
                what = f"held-out accuracy: {said} less plain relu, rate {rate:g}"
                forced[f"{way}_{rate:g}"] = Number(what, 0.01, None, "at_least", core=False)
        return {
            "half": Number("P(relu(z) = 0), z ~ N(0, 1)", 0.5, 0.5, tolerance=error),
            "grid": Number("largest distance of an active share from Φ(μ/σ)", 0.0, 0.0, tolerance=error),
            "leaky": Number("P(leaky_relu(z) = 0)", 0.0, 0.0, tolerance=1e-6),
            "network": Number("zeros in the first layer of fresh networks", 0.5, 0.5, tolerance=wide),
            "dead": Number("dead relu units: largest learning rate less smallest", 0.0, None, "at_least"),
            "leaky_dead": Number("dead leaky relu units, any finite training", 0.0, 0.0, tolerance=0.001),
            **forced,
        }

    def measure(self, cell, progress) -> dict[str, Any]:
        samples = dict(zip(("half", "grid", "leaky"), self._sampled(), strict=True))
        network, dead = self._dead()
        progress(0.6, "force")
        plain, *forced = self._forced()
        gains: dict[str, Any] = {}
        for way, (accuracy, zeros) in zip(_WAYS, forced - plain, strict=True):
            named = zip(self.learning_rates, accuracy, strict=False)
            gains |= {f"{way}_{rate:g}": each for rate, each in named} | {f"{way}_zeros": zeros[0]}
        died = {"dead": dead[0, -1] - dead[0, 0], "leaky_dead": np.fmax.reduce(dead[1]), "dead_units": dead}
        labels = {"activation": [f.name for f in self.activations], "learning_rate": self.learning_rates}
        return samples | gains | died | labels | {"network": network}

    def _sampled(self) -> tuple[np.ndarray, ...]:
        """Zeros of relu at mu = 0, largest gap of an active share over a grid, zeros of leaky relu; [seed] each."""
        mu, found = np.linspace(-2, 2, 9), []
        for seed in self.seeds:
            rng, shape = np.random.default_rng(seed), (self.num_samples, len(mu))
            z = rng.normal(mu, 1, shape).T.astype(np.float32)
            active, zeros = np.mean(activations.relu(z) != 0, axis=1), activations.leaky_relu()(z) == 0
            found.append((1 - active[4], np.abs(active - stats.norm.cdf(mu)).max(), np.mean(zeros)))
        return tuple(np.array(found).T)

    def _dead(self) -> tuple[np.ndarray, np.ndarray]:
        """Zeros in the first layer of fresh relu networks, [seed]; dead units in the end, [activation, rate, seed]."""
        trial, shape = self._trial(self.activations[0]), (len(self.learning_rates), len(self.seeds))
        lives, fresh, trained = probing.unit_lives(trial), [], []
        for place, f in enumerate(self.activations):
            setting = jnp.asarray(_DEPTH, jnp.int32), select(self.activations, place)
            start, end, _ = lives(blocks.preserving_sigma(f), *setting)
            fresh.append(start["zero_fraction"][:, 0])
            trained.append(end["dead_fraction"].mean(-1))
        return fresh[0].reshape(shape)[0], np.array(trained).reshape(-1, *shape)

    def _forced(self) -> np.ndarray:
        """Of plain, thresholded, penalised networks: held-out accuracy, zeros; [way, 2, the smallest rates, draw]."""
        inputs = self.task.load().flat().train_inputs

        def loss(logits, labels, *, hparams, call):
            hidden = call(lambda network: activations.relu(network.trace(inputs).preactivation))
            return cross_entropy(logits, labels) + hparams["penalty"] * jnp.mean(hidden)

        draws = tuple(6 * seed + draw for seed in self.seeds for draw in range(6))
        few = replace(self, learning_rates=self.learning_rates[:2], seeds=draws)
        trial = few._trial(activations.relu, loss=loss, penalty=(0.0, self.penalty))
        lives, found = probing.unit_lives(trial), []
        for shift in map(jnp.float32, (0.0, self.threshold)):  # one program trains all
            _, end, accuracy = lives(2**0.5, jnp.int32(_DEPTH), jax.tree_util.Partial(_shifted, shift))
            both = np.stack([accuracy, end["zero_fraction"].mean(-1)]).reshape(2, 2, 2, -1)
            found += [*both.swapaxes(0, 1)]
        return np.array(found)[[0, 2, 1]]  # not those with both threshold and penalty

    def _trial(self, f: Any, **options: Any) -> Trial:
        data = self.task.load().flat()
        network = blocks.network(data, width=self.width, max_depth=_DEPTH, activation=f)
        return self.trial(network, parts(data), evaluate={"test": "test"}, **options)

    def smoke(self) -> Sparsity:
        return replace(super().smoke(), activations=self.activations[:2], learning_rates=_FEW)

    exercise = Exercise(
        task="Write `active(mu, sigma)`: the share of relu units that are not 0, preactivations N(mu, sigma^2).",
        function="active",
        answer=lambda mu, sigma: stats.norm.cdf(mu / sigma),
        inputs=((0.0, 1.0), (1.0, 2.0), (-3.0, 1.5)),
        mistakes={"That is the share that is 0.": lambda mu, sigma: stats.norm.cdf(-mu / sigma)},
        solution="from math import erfc\n\ndef active(mu, sigma):\n    return erfc(-mu / sigma / 2**0.5) / 2\n",
    )


def _shifted(shift: jax.Array, x: jax.Array) -> jax.Array:
    return activations.relu(x - shift)
