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
        num_samples, depth, wide: of N(0, 1), a seed; layers; units of the fresh networks.
    """

    num_samples: int = 200_000
    depth: int = 6
    wide: int = 1000
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
        "function or subtract E f; batch norm keeps it from growing with depth."
    )
    source = "LeCun et al. (1998), Efficient BackProp; Clevert et al. (2016); Ioffe and Szegedy (2015)"
    variables = {
        "mean": Variable("mean of f(z), z ~ N(0, 1)", ("activation", "seed"), theory="mean_theory"),
        "mean_theory": Variable("mean by quadrature", ("activation",)),
        "moved": Variable("how far means of layer inputs move, in s.d.", ("block", "seed", "layer")),
    }

    def numbers(self) -> dict[str, Number]:
        half, error = 1 / math.sqrt(2 * math.pi), 5 / math.sqrt(self.num_samples)
        share, deep, bias = 1 / math.pi, 1 / math.pi, "share of E f^2 that is one bias"
        for _ in range(self.depth - 1):  # correlation of unlike inputs: Cho and Saul (2009), eq. (6)
            deep = (math.sqrt(1 - deep**2) + deep * (math.pi - math.acos(deep))) / math.pi
        return {
            "relu": Number("E relu(z)", half, half, tolerance=error),
            "odd": Number("largest |E f(z)| of the odd functions", 0.0, 0.0, tolerance=3 * error),
            "zoo": Number("largest error of a mean of the zoo, in standard errors", 5.0, None, "at_most"),
            "bias": Number(f"{bias}: relu", share, share, tolerance=0.02),
            "bias_tanh": Number(f"{bias}: tanh", 0.0, 0.0, tolerance=0.02),
            "deep": Number(f"{bias}: relu, last layer", deep, deep, tolerance=0.05),
            "deep_bn": Number(f"{bias}: relu behind BN", share, share, tolerance=0.02),
            "leaky": Number("E leaky_relu(0.01) over E relu", 0.99, 0.99, tolerance=1e-3),
            "leaky_zero": Number("E leaky_relu(0.01)(z)", 0.0, 0.99 * half, tolerance=error, core=False),
            "shift": Number("moves of input means (s.d.): with BN less without", 0.0, None, "at_most"),
        }

    def measure(self, cell, progress) -> dict[str, Any]:
        named = {(f := activations.parse(name)).name: f for name in activations.names()}  # aliases once
        zoo, members = [*named.values()], fit.grid(seeds=self.seeds)
        sampled = jax.jit(lambda members: fit.population(partial(self._means, zoo), members))(members)
        means, errors, shares = (np.asarray(each, float) for each in sampled)
        exact, at = np.array([*map(_exact, zoo)]), dict(zip(named, means.T, strict=True))
        moved = np.stack([self._moved(block) for block in _BLOCKS])
        drawn = {"activation": [f.name for f in zoo], "block": list(_BLOCKS.values()), "moved": moved}
        shift = dict(zip(("bias", "deep", "bias_tanh", "deep_bn"), shares.T, strict=True))
        shift["shift"] = np.mean(moved[1] - moved[0], -1)
        odd = np.max([np.abs(at[f.name]) for f in zoo if f.odd], axis=0)
        known = {"relu": at["relu"], "leaky": at["leaky_relu"] / at["relu"], "leaky_zero": at["leaky_relu"]}
        zoo_error = np.max(np.abs(means - exact) / errors, axis=1)
        return drawn | shift | known | {"mean": means.T, "mean_theory": exact, "odd": odd, "zoo": zoo_error}

    def _means(self, zoo: list[Activation], member: fit.Member) -> tuple[jax.Array, ...]:
        """Mean and standard error of every activation, and the shares that all inputs have alike."""
        key_z, key = jax.random.split(member.key)
        z = jax.random.normal(key_z, (self.num_samples,))
        every = jnp.stack([f(z) for f in zoo])
        of = partial(_shares, n=self.wide)
        relu, normed = (of(activations.relu, key, self.depth, has_norm=each) for each in (False, True))
        shares = jnp.stack([relu[0], relu[-1], of(activations.tanh, key, 1)[0], normed[-1]])
        return jnp.mean(every, 1), jnp.std(every, 1) / math.sqrt(self.num_samples), shares

    def _moved(self, block: str) -> np.ndarray:
        """How far the mean of each unit's input moves in training, in its first s.d., [seed, layer]."""
        data, f = self.task.load().flat(), activations.relu
        network = blocks.network(data, block, width=self.width, max_depth=self.depth, activation=f)
        trial = self.trial(network, parts(data), calibrate=block.endswith("bn"))
        z = trial.program(lambda s, data: trial.output(s, data["test"][0], method="trace").preactivation)
        states = trial.start(sigma_w=jnp.float32(math.sqrt(2)))
        before = trial.host(z(states, trial.data))
        states, _ = trial.train(states)
        moved = trial.host(z(states, trial.data)).mean(axis=2) - before.mean(axis=2)
        return np.mean(np.abs(moved) / np.maximum(before.std(axis=2), 1e-6), axis=-1)

    def smoke(self) -> ZeroMean:
        return replace(super().smoke(), num_samples=2000, depth=2, wide=200)

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        axes = {"mean": ("activation", None), "moved": ("layer", "block")}
        draw = partial(cls.figure, result, column=None, choices={})
        return {name: draw(name=name, x=x, series=by) for name, (x, by) in axes.items()}

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
    pieces = itertools.pairwise(sorted({-12.0, 0.0, 12.0, *(kink for kink in f.kinks if abs(kink) < 12)}))
    return sum(integrate.fixed_quad(lambda x: f(x) * stats.norm.pdf(x), *each, n=200)[0] for each in pieces)


def _shares(f: Activation, key: jax.Array, depth: int, *, n: int = 1000, has_norm: bool = False) -> jax.Array:
    """Share of E f^2 that all inputs have alike, in every layer of a fresh network of n units."""
    key_w, key_x = jax.random.split(key)

    def layer(h: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = h @ jax.random.normal(key, (n, n)) / math.sqrt(n)
        h = f((z - z.mean(0)) / z.std(0) if has_norm else z)
        return h, jnp.mean(jnp.mean(h, 0) ** 2) / jnp.mean(h**2)

    inputs = jax.random.normal(key_x, (400, n))
    return jax.lax.scan(layer, inputs, jax.random.split(key_w, depth))[1]
