"""Mean shift: how far from zero activations are centred, what bias that passes on, and what moves in training."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy import integrate, stats

from jaxact import activations, fit
from jaxact.activations import Activation
from train import blocks
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.study import Variable
from train.trial import TrainingStudy, parts

_BLOCKS = {"plain": "without batch norm", "plain-bn": "with batch norm"}


@dataclass(frozen=True, kw_only=True)
class ZeroMean(Claim, TrainingStudy):
    """Average every activation over N(0, 1), follow the bias into a layer, and train with and without batch norm.

    Attributes:
        num_samples: of N(0, 1), a seed.
        depth: layers.
    """

    num_samples: int = 200_000
    depth: int = 6
    learning_rate: float = 0.05
    num_steps: int = 150

    number = 4
    title = "Activations that are not centred shift what the next layer sees"
    says = (
        "The mean of relu is positive, so that units pass a bias on; odd functions pass none, and leaky relu, which is "
        "negative on one side, brings the mean to zero. Batch norm keeps the inputs of layers still."
    )
    formula = "E relu(z) = 1/√(2π);  E leaky_a(z) = (1 − a)/√(2π);  bias² / E f² = (E f)² / E f²"
    practice = (
        "The shift of leaky relu is smaller by the factor 1 - a alone: 1 % at a = 0.01. To be rid of it take an odd "
        "function, subtract E f, or normalise."
    )
    source = (
        "LeCun et al. (1998), Efficient BackProp; Clevert et al. (2016), section 3; Ioffe and Szegedy (2015)"
    )
    variables = {
        "mean": Variable("mean of f(z), z ~ N(0, 1)", ("activation", "seed"), theory="mean_theory"),
        "mean_theory": Variable("mean by quadrature", ("activation",)),
        "moved": Variable(
            "how far means of layer inputs move in training, in s.d.", ("block", "seed", "layer")
        ),
    }

    def numbers(self) -> dict[str, Number]:
        half, error = 1 / math.sqrt(2 * math.pi), 5 / math.sqrt(self.num_samples)
        moved, share = "moves of layers' input means in training (s.d.): with BN less without", 1 / math.pi
        return {
            "relu": Number("E relu(z)", half, half, tolerance=error),
            "odd": Number("largest |E f(z)| of the odd functions", 0.0, 0.0, tolerance=3 * error),
            "zoo": Number("largest error of a mean of the zoo, in standard errors", 5.0, None, "at_most"),
            "bias": Number(
                "share of E f^2 that is one bias for all inputs: relu", share, share, tolerance=0.02
            ),
            "bias_tanh": Number("the same: tanh", 0.0, 0.0, tolerance=0.02),
            "leaky": Number("E leaky_relu(0.01) over E relu", 1.0, 0.99, "at_most", tolerance=1e-3),
            "leaky_zero": Number("E leaky_relu(0.01)(z)", 0.0, 0.99 * half, tolerance=error, core=False),
            "shift": Number(moved, 0.0, None, "at_most"),
        }

    def measure(self, cell, progress) -> dict[str, Any]:
        named = {(f := activations.parse(name)).name: f for name in activations.names()}  # aliases once
        zoo, members = [*named.values()], fit.grid(seeds=self.seeds)
        sampled = jax.jit(lambda members: fit.population(partial(self._means, zoo), members))(members)
        means, errors, shares = (np.asarray(each, float) for each in sampled)
        exact = np.array([_exact(f) for f in zoo])
        at = {f.name: means[:, place] for place, f in enumerate(zoo)}
        moved = np.stack([self._moved(block) for block in _BLOCKS])
        labels = {"activation": [f.name for f in zoo], "block": list(_BLOCKS.values())}
        drawn = {"mean": means.T, "mean_theory": exact, "moved": moved}
        shift = dict(zip(("bias", "bias_tanh"), shares.T, strict=True)) | {
            "shift": np.mean(moved[1] - moved[0], -1)
        }
        odd = np.max([np.abs(at[f.name]) for f in zoo if f.odd], axis=0)
        leaky = {"leaky": at["leaky_relu"] / at["relu"], "leaky_zero": at["leaky_relu"]}
        zoo_error = np.max(np.abs(means - exact) / errors, axis=1)
        return {**labels, **drawn, **shift, **leaky, "relu": at["relu"], "odd": odd, "zoo": zoo_error}

    def _means(self, zoo: list[Activation], member: fit.Member) -> tuple[jax.Array, ...]:
        """Mean and standard error of every activation, and the share of a second moment that all inputs have alike."""
        keys = jax.random.split(member.key, 3)
        z = jax.random.normal(keys[0], (self.num_samples,))
        every = jnp.stack([f(z) for f in zoo])
        deep = (
            jax.random.normal(keys[1], (1000, 200)) @ jax.random.normal(keys[2], (200, 200)) / math.sqrt(200)
        )
        hidden = jnp.stack([activations.relu(deep), activations.tanh(deep)])
        shares = jnp.mean(jnp.mean(hidden, 1) ** 2, -1) / jnp.mean(hidden**2, (1, 2))
        return jnp.mean(every, 1), jnp.std(every, 1) / math.sqrt(self.num_samples), shares

    def _moved(self, block: str) -> np.ndarray:
        """How far the mean of each unit's input moves, in its standard deviations at the start, [seed, layer]."""
        data, f = self.task.load().flat(), activations.relu
        network = blocks.network(data, block, width=self.width, max_depth=self.depth, activation=f)
        trial = self.trial(network, parts(data), calibrate=block.endswith("bn"))
        read = trial.program(
            lambda state, data: trial.output(state, data["test"][0], method="trace").preactivation
        )
        states = trial.start(sigma_w=jnp.float32(math.sqrt(2)))
        before = trial.host(read(states, trial.data))
        states, _ = trial.train(states, progress=lambda *_: None)
        after = trial.host(read(states, trial.data))
        scale = np.maximum(before.std(axis=2), 1e-6)
        return np.mean(np.abs(after.mean(axis=2) - before.mean(axis=2)) / scale, axis=-1)

    def smoke(self) -> ZeroMean:
        return replace(super().smoke(), num_samples=2000, depth=2)

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        said: dict[str, Any] = {"column": None, "choices": {}}
        return {
            "mean": cls.figure(result, "mean", x="activation", series=None, **said),
            "moved": cls.figure(result, "moved", x="layer", series="block", **said),
        }

    exercise = Exercise(
        task="Write `mean(a)`: the mean of leaky relu of slope a below 0, over N(0, 1).",
        function="mean",
        answer=lambda a: (1 - a) * stats.norm.pdf(0),
        inputs=((0.0,), (0.01,), (0.5,), (1.0,)),
        mistakes={"The negative half subtracts a part.": lambda a: stats.norm.pdf(0)},
        solution="from math import pi, sqrt\n\ndef mean(a):\n    return (1 - a) / sqrt(2 * pi)\n",
    )


def _exact(f: Activation) -> float:
    """E f(z), z ~ N(0, 1), by scipy's Gauss-Legendre rule between the kinks of f."""
    ends = sorted({-12.0, 0.0, 12.0, *(kink for kink in f.kinks if abs(kink) < 12)})
    pieces = itertools.pairwise(ends)
    return sum(integrate.fixed_quad(lambda x: f(x) * stats.norm.pdf(x), *each, n=200)[0] for each in pieces)
