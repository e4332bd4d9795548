"""Initialisation: the variance of preactivations through fifty layers, under five rules for the weights' scale."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from jaxact import activations, theory
from jaxact.activations import Activation
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.study import Coordinate, Variable

_NAMES = RELU, LEAKY, TANH, GELU = ("relu", "leaky_relu(0.2)", "tanh", "gelu")
_RULES = LECUN, GLOROT, HE, OWN, CRITICAL = ("LeCun", "Glorot", "He", "own gain", "critical")
_FACTORS = {(RELU, HE): 1.0, (LEAKY, OWN): 1.0, (RELU, GLOROT): 0.5, (LEAKY, HE): 1.04}  # a layer
_ENDS = ((RELU, GLOROT), (TANH, GLOROT), (GELU, HE), (GELU, OWN))  # after all layers
_GAINS = {RELU: 2.0, LEAKY: 2 / 1.04}
_DIMS = ("activation", "rule", "layer")


@dataclass(frozen=True, kw_only=True)
class Initialisation(Claim):
    """Follow the second moment of z' = W f(z) in square networks of every activation under every rule.

    Attributes:
        width: units of every layer.
        depth: layers after the first.
        num_networks: networks a seed, of four inputs each, whose mean is one draw.
    """

    width: int = 256
    depth: int = 50
    num_networks: int = 8

    number = 7
    title = "Initialisation keeps the variance"
    says = (
        "Weights of variance g / fan-in keep the variance of the signal from layer to layer if g is the activation's "
        "gain: 2 for relu (He), 2 / (1 + a²) for leaky relu; Glorot's rule (g = 1 in square layers) is for tanh. At a "
        "wrong gain the signal fades or explodes exponentially."
    )
    formula = "q′ = σ_w² E f(√q z)²,  z ~ N(0, 1);  relu: q′ / q = σ_w² / 2"
    practice = (
        "Take He's rule for relu and correct it for a leak. Tanh keeps no variance but the one where it settles; "
        "at Glorot's it fades as 1 / depth. For gelu neither He's rule nor its own gain lasts fifty layers: its fixed "
        "point repels what fluctuates at finite width. Deep networks of it need a norm or a skip."
    )
    source = (
        "He et al. (2015), Delving deep into rectifiers, eq. (10), (15); Glorot and Bengio (2010), eq. (12)"
    )
    coordinates = {"rule": Coordinate("rule of initialisation", labels=_RULES)}
    variables = {
        "variance": Variable("variance, geometric mean over networks", _DIMS, theory="at_infinite_width"),
        "at_infinite_width": Variable("variance at infinite width", _DIMS),
    }

    def numbers(self) -> dict[str, Number]:
        found, many = {}, self.depth * math.log10(2)
        for (f, rule), factor in _FACTORS.items():
            says = f"{f}, {rule}: factor of the variance a layer"
            found[f"{f}, {rule}"] = Number(says, factor, factor, tolerance=0.02)
        for f, gain in _GAINS.items():
            found[f"gain of {f}"] = Number(f"gain of {f}", gain, gain, tolerance=1e-9)
        says = f"decades that the variance is off after {self.depth} layers, width {self.width}"
        for f, rule in _ENDS:  # the chapter knows that relu's is lost
            chapter = many if f == RELU else 0.0
            ends = self._infinite(activations.parse(f))[_RULES.index(rule), [0, -1]]
            exact, said = abs(math.log10(ends[1] / ends[0])), f"{f}, {rule}: {says}"
            found[f"{f}, {rule}, end"] = Number(said, chapter, exact, tolerance=0.5, core=f == RELU)
        return found

    def measure(self, cell, progress) -> dict[str, Any]:
        fs = [activations.parse(name) for name in _NAMES]
        keys = jax.vmap(jax.random.key)(np.array(self.seeds))
        sampled = jax.jit(lambda keys: jax.lax.map(functools.partial(self._sampled, fs), keys))(keys)
        moments = np.asarray(sampled, float)
        factors = (moments[..., 1:, :, :] / moments[..., :-1, :, :]).mean((-3, -2, -1))
        off = np.abs(np.log10(moments[..., -1, :, :] / moments[..., 0, :, :])).mean((-2, -1))
        found = {f"{f}, {rule}": factors[:, _NAMES.index(f), _RULES.index(rule)] for f, rule in _FACTORS}
        found |= {f"{f}, {rule}, end": off[:, _NAMES.index(f), _RULES.index(rule)] for f, rule in _ENDS}
        found |= {f"gain of {f}": theory.gain(activations.parse(f)) ** 2 for f in _GAINS}
        return found | {
            "activation": list(_NAMES),
            "layer": np.arange(self.depth + 1),
            "variance": np.exp(np.log(moments).mean((0, -2, -1))),
            "at_infinite_width": [self._infinite(f) for f in fs],
        }

    def _sampled(self, fs: list[Activation], key: jax.Array) -> jax.Array:
        """Mean squares over units, [activation, rule, layer, network, input]; all see the same weights."""
        key_input, key_weights = jax.random.split(key)
        size = self.num_networks, self.width, 4
        scales = jnp.array([_scales(f) for f in fs], jnp.float32)[..., None, None, None]
        z = jax.random.normal(key_input, size)
        first = scales * z / jnp.sqrt(jnp.mean(z**2, -2, keepdims=True))

        def layer(z: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            weights = jax.random.normal(key, (*size[:2], self.width)) * self.width**-0.5
            hidden = jnp.stack([f(each) for f, each in zip(fs, z, strict=True)])
            z = scales * jnp.einsum("kij,arkjb->arkib", weights, hidden)
            return z, jnp.mean(z**2, -2)

        _, rest = jax.lax.scan(layer, first, jax.random.split(key_weights, self.depth))
        return jnp.moveaxis(jnp.concatenate([jnp.mean(first**2, -2)[None], rest]), 0, 2)

    def _infinite(self, f: Activation) -> np.ndarray:
        """[rule, layer], by Gauss-Hermite quadrature; its nodes are symmetric: exact for a kink at 0 too."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(100)
        moments = [squares := np.square(_scales(f))]
        for _ in range(self.depth):
            with jax.enable_x64(True):
                values = np.asarray(f(np.sqrt(moments[-1])[:, None] * nodes))
            moments.append(squares * (values**2 @ weights) / weights.sum())
        return np.stack(moments, -1)

    def smoke(self) -> Initialisation:
        return replace(super().smoke(), width=32, depth=8, num_networks=2)

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        said: dict[str, Any] = {"series": "rule", "column": "activation", "scale": "decades", "choices": {}}
        return {"variance": cls.figure(result, "variance", title="What is left of the variance?", **said)}

    exercise = Exercise(
        task="Write `factor(a, fan_in, fan_out)`: by what a layer of leaky relu, slope `a` below 0, multiplies the "
        "variance of the preactivations under Glorot's rule, weights of variance 2 / (fan_in + fan_out).",
        function="factor",
        answer=lambda a, n, m: n * (1 + a**2) / (n + m),
        inputs=((0.0, 100, 100), (0.2, 100, 100), (0.2, 100, 300)),
        mistakes={
            "That is He's rule: Glorot's weights know both fans.": lambda a, n, m: 1 + a**2,
            "Below 0 the square of the slope counts.": lambda a, n, m: n * (1 + a) / (n + m),
        },
        solution="def factor(a, fan_in, fan_out):\n    return fan_in * 2 / (fan_in + fan_out) * (1 + a**2) / 2\n",
    )


@functools.cache
def _scales(f: Activation) -> tuple[float, ...]:
    """sigma_w by each rule in square layers; NaN where an activation has no gain."""
    own = math.nan if f.name == TANH else theory.gain(f)
    return 1.0, 1.0, math.sqrt(2), own, float(theory.critical_point(f).sigma_w)
