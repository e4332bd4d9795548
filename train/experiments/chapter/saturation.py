"""Saturation: largest slopes, saturated units by depth and initialisation, and what products of slopes leave."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy import stats

from jaxact import activations, fit, theory
from jaxact.activations import Activation
from train import blocks
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.study import Coordinate, Variable

_DIMS = ("activation", "scale", "seed", "layer")
_LIMIT = 0.01  # of the largest slope: below, a unit counts as saturated
_AT = {"sigmoid": 2 * math.acosh(10), "tanh": math.acosh(10)}  # |z| from which it is: f' = sup / cosh^2
_BOTH = activations.sigmoid, activations.tanh
_SUP = "sup_sigmoid", "sup_tanh"


@dataclass(frozen=True, kw_only=True)
class Saturation(Claim):
    """Run fresh networks of sigmoid and tanh layers, count saturated units, and send a gradient back.

    Attributes:
        width: units of a layer.
        depth: layers.
        batch_size: inputs, of independent N(0, 1) entries.
        sigma_w: standard deviations of the weights times sqrt(width): the usual and a large one.
    """

    width: int = 400
    depth: int = 12
    batch_size: int = 32
    sigma_w: tuple[float, ...] = (1.0, 4.0)

    number = 2
    title = "Saturating units make gradients vanish"
    says = (
        "Slopes of the sigmoid are at most 1/4, those of tanh at most 1, and far from 0 both are flat. A gradient is a "
        "product of slopes, so that L sigmoid layers shrink it to (1/4)^L or less."
    )
    formula = "sup sigmoid' = 1/4, sup tanh' = 1;  ‖∂z_L/∂z_0‖ ~ (σ_w² E f'(z)²)^(L/2)"
    practice = (
        "The bound holds for weights of gain 1 only. What counts is σ_w² E f'² where the signal settles: "
        "at sigmoid's own gain 12 layers lose 1.8 decades instead of 7.6. Weights that are too large saturate units."
    )
    source = "Glorot and Bengio (2010); Poole et al. (2016), eq. (3); Schoenholz et al. (2017), eq. (13)"
    coordinates = {"scale": Coordinate("weight scale"), "layer": Coordinate("layer", "layers")}
    called = {"scale": "σ_w = {:g}".format}
    variables = {
        "saturated": Variable("share of saturated units", _DIMS, theory="saturated_theory"),
        "saturated_theory": Variable("share by Gaussian tails", ("activation", "scale", "layer")),
    }

    def numbers(self) -> dict[str, Number]:
        bound, large, tanh, sigmoid = -self.depth * math.log10(4), self.sigma_w[-1], *_BOTH[::-1]
        own = self._exact(sigmoid, blocks.preserving_sigma(sigmoid))
        flat = _predicted(tanh, large, self.depth)[0][-1]
        return {
            "vanish": Number(
                f"decades {self._over(sigmoid)}, gain 1", bound, self._exact(sigmoid, 1.0), "at_most"
            ),
            "sup_sigmoid": Number("largest slope of sigmoid", 0.25, 0.25, tolerance=1e-6),
            "sup_tanh": Number("largest slope of tanh", 1.0, 1.0, tolerance=1e-6),
            "flat": Number(
                f"saturated tanh units, last layer, sigma_w = {large:g}", flat, flat, tolerance=0.03
            ),
            "tanh": Number(f"decades {self._over(tanh)}, gain 1", 0.0, self._exact(tanh, 1.0), "at_most"),
            "own": Number(f"decades {self._over(sigmoid)}, own gain", bound, own, "at_most", core=False),
        }

    def _over(self, f: Activation) -> str:
        return f"that a gradient gains over {self.depth} {f.name} layers"

    def _exact(self, f: Activation, sigma_w: float) -> float:
        return float(_predicted(f, sigma_w, self.depth)[1])

    def measure(self, cell, progress) -> dict[str, Any]:
        members, own = fit.grid(seeds=self.seeds), blocks.preserving_sigma(activations.sigmoid)
        found, predicted = [], []
        for f in _BOTH:
            run = jax.jit(
                lambda members, sigma_w, f=f: fit.population(partial(self._run, f), members, sigma_w)
            )
            found.append([run(members, sigma_w) for sigma_w in (*self.sigma_w, 1.0, own)])
            predicted.append([_predicted(f, sigma_w, self.depth)[0] for sigma_w in self.sigma_w])
        flat = np.array([[shares for shares, _ in row[:-2]] for row in found])
        slopes = [float(jnp.max(jax.vmap(jax.grad(f.fn))(jnp.linspace(-9.0, 9.0, 9001)))) for f in _BOTH]
        rows = {"vanish": found[0][-2][1], "own": found[0][-1][1], "tanh": found[1][-2][1]}
        labels = {"activation": [f.name for f in _BOTH], "scale": self.sigma_w}
        drawn = {"saturated": flat, "saturated_theory": np.array(predicted)}
        return {**rows, **labels, **drawn, "flat": flat[1, -1, :, -1], **dict(zip(_SUP, slopes, strict=True))}

    def _run(self, f: Activation, member: fit.Member, sigma_w: float) -> tuple[jax.Array, jax.Array]:
        """Saturated share by layer, and decades that a random gradient gains on its way back to the first layer."""
        keys = jax.random.split(member.key, 3)
        shape = (self.depth, self.width, self.width)
        weights = sigma_w * jax.random.normal(keys[0], shape) / math.sqrt(self.width)
        z = jax.random.normal(keys[1], (self.batch_size, self.width))
        _, slopes = jax.lax.scan(lambda z, w: (f(z) @ w, f.derivative(z)), z, weights)
        back = jax.random.normal(keys[2], z.shape)
        steps = weights, slopes
        start, _ = jax.lax.scan(lambda g, step: ((g @ step[0].T) * step[1], None), back, steps, reverse=True)
        gained = jnp.log10(jnp.linalg.norm(start) / jnp.linalg.norm(back))
        return jnp.mean(slopes < _LIMIT * f.lipschitz, (1, 2)), gained

    def smoke(self) -> Saturation:
        return replace(super().smoke(), width=64, batch_size=8)

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        said = {"x": "layer", "series": "activation", "column": "scale", "choices": {}, "format": ".0%"}
        return {"saturated": cls.figure(result, "saturated", **said, title="How many units are saturated?")}

    exercise = Exercise(
        task="Write `share(q)`: the share of saturated tanh units (slope below 1 %) whose preactivations are N(0, q).",
        function="share",
        answer=lambda q: 2 * stats.norm.sf(math.acosh(10) / math.sqrt(q)),
        inputs=((1.0,), (4.0,), (16.0,)),
        mistakes={
            "Both tails count.": lambda q: stats.norm.sf(math.acosh(10) / math.sqrt(q)),
            "q is a variance.": lambda q: 2 * stats.norm.sf(math.acosh(10) / q),
        },
        solution="from math import acosh, erfc, sqrt\n\ndef share(q):\n    return erfc(acosh(10) / sqrt(2 * q))\n",
    )


@functools.cache
def _predicted(f: Activation, sigma_w: float, depth: int) -> tuple[np.ndarray, float]:
    """Saturated share by layer, and decades gained, of infinitely wide layers whose inputs have variance 1."""
    q = np.append(1.0, blocks.second_moments("plain", f, 1.0, depth - 1, sigma_w=sigma_w))
    slopes = np.asarray(theory.moments(f, variance=q).slope_second_moment)
    return 2 * stats.norm.sf(_AT[f.name] / np.sqrt(q)), float(np.sum(np.log10(sigma_w**2 * slopes)) / 2)
