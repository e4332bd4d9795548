"""ReLU is a projection: against a solver that does not know it, and what every other activation is instead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy import optimize

from jaxact import activations
from jaxact.activations import Activation
from train import words
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.proximal import PENALTIES, minimum
from train.study import Coordinate, Variable

_ROUNDING = 1e-9  # of slopes between neighbours on the grid, in float64
_GRID, _POINTS = np.linspace(-30.0, 30.0, 60001), np.linspace(-4.0, 4.0, 17)
_STEEP = ("bent_identity", "erf", "relu_squared", "selu")  # monotone, with slopes above 1
_FOLDING = ("abs", "cos", "gaussian", "sin")  # slopes within [-1, 1], of both signs
_OTHERS = ("gelu", "gelu_tanh", "hard_silu", "mish", "quick_gelu", "silu", "swish", "tanh_exp")
ZOO = (*PENALTIES, *_STEEP, *_FOLDING, *_OTHERS)
_COUNTS = {  # in theory; idempotent are the four projections, relu, relu6, hard_tanh and identity, and abs
    "non-expansive": len(PENALTIES) + len(_FOLDING),
    "non-decreasing": len(PENALTIES) + len(_STEEP),
    "proximal map": len(PENALTIES),
    "idempotent": 5,
    "projection": 4,
}


@dataclass(frozen=True, kw_only=True)
class ReluProjection(Claim):
    """Project points by an activation and by bounded least squares; judge every activation as a proximal map.

    Attributes:
        activation: the one that is said to be the projection.
        width: units: the dimension of the orthant.
        num_points: that are projected, a seed.
        num_solved: of these, by bounded least squares.
    """

    activation: Activation = activations.relu
    width: int = 4
    num_points: int = 20000
    num_solved: int = 100

    number = 6
    title = "ReLU is a projection"
    says = (
        "ReLU is the Euclidean projection on the non-negative orthant: non-expansive and idempotent, with the orthant "
        "for its fixed points. It is no exception: activations in use are 1-Lipschitz, many of them proximal maps."
    )
    formula = "relu(x) = argmin over y ≥ 0 of ‖y - x‖²; f = prox φ of a convex φ if and only if 0 ≤ f' ≤ 1"
    practice = (
        "A layer with a proximal map never stretches more than its weights do. Not so with gelu, silu and mish: each "
        "such layer may add a factor of 1.13, 1.10 or 1.09 to a Lipschitz bound."
    )
    source = (
        "Moreau (1965), Proximité et dualité, proposition 9.b; Combettes and Pesquet (2020), Deep neural network "
        "structures solving variational inequalities, section 2; Gribonval and Nikolova (2020), theorem 1"
    )
    coordinates = {"property": Coordinate("property", labels=tuple(_COUNTS))}
    variables = {"has_property": Variable("1 if the activation has the property", ("activation", "property"))}

    def numbers(self) -> dict[str, Number]:
        share = 2.0**-self.width
        error = 5 * math.sqrt(share * (1 - share) / self.num_points / len(self.seeds))
        steepest = math.erfc(-1) / 2 + math.exp(-1) / math.sqrt(math.pi)  # gelu' at sqrt 2
        counts = {name: Number(f"of {len(ZOO)} activations: {name}", of, of) for name, of in _COUNTS.items()}
        return {
            "solver": Number("largest distance from bounded least squares", 0.0, 0.0, tolerance=1e-6),
            "expansion": Number("distance of images over that of points", 1.0, 1.0, "at_most", _ROUNDING),
            "again": Number("largest change by a second application", 0.0, 0.0),
            "fixed": Number("share of Gaussian points that stay", share, share, tolerance=error),
            "minimum": Number("largest distance of proximal maps from the minimum", 0.0, 0.0, tolerance=1e-6),
            **counts,
            "gelu": Number("steepest slope of gelu", 1.0, steepest, "at_most", 1e-6, core=False),
        }

    def measure(self, cell, progress) -> dict[str, Any]:
        rows = [self._projected(seed) for seed in self.seeds]
        progress(0.3, "judge every activation")
        kinds = [activations.parse(name) for name in ZOO]
        with jax.enable_x64(True):
            every = jax.jit(lambda rows: jnp.stack([f(x) for f, x in zip(kinds, rows, strict=True)]))
            once = np.asarray(every(np.tile(_GRID, (len(ZOO), 1))))
            slopes, moved = np.diff(once) / np.diff(_GRID), np.asarray(every(once)) - once
        is_flat, is_rising = abs(slopes).max(1) <= 1 + _ROUNDING, slopes.min(1) >= -_ROUNDING
        stays, is_proximal = abs(moved).max(1) <= _ROUNDING, is_flat & is_rising
        has = np.stack([is_flat, is_rising, is_proximal, stays, is_proximal & stays], axis=1)
        values = dict(zip(ZOO, once[:, np.searchsorted(_GRID, _POINTS - _ROUNDING)], strict=True))
        minima = {name: [minimum(each, x) for x in _POINTS] for name, each in PENALTIES.items()}
        found: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
        found["expansion"] = found["expansion"].max()  # a bound: no pair of points may exceed it
        found |= {"minimum": max(abs(values[name] - minima[name]).max() for name in minima)}
        found |= dict(zip(_COUNTS, has.sum(0), strict=True)) | {"gelu": slopes[ZOO.index("gelu")].max()}
        return found | {"has_property": has.astype(float), "activation": list(ZOO)}

    def _projected(self, seed: int) -> dict[str, float]:
        x, y = np.random.default_rng(seed).normal(size=(2, self.num_points, self.width))
        with jax.enable_x64(True):
            f_x, f_y, f_f_x = map(np.asarray, map(self.activation, (x, y, self.activation(x))))
        unit, few = np.eye(self.width), slice(self.num_solved)
        solved = [optimize.lsq_linear(unit, row, (0, np.inf), method="bvls").x for row in x[few]]
        return {
            "solver": abs(f_x[few] - solved).max(),
            "expansion": (np.linalg.norm(f_x - f_y, axis=1) / np.linalg.norm(x - y, axis=1)).max(),
            "again": abs(f_f_x - f_x).max(),
            "fixed": (f_x == x).all(1).mean(),
        }

    def smoke(self) -> ReluProjection:
        return super().smoke().shrunk(num_points=500, num_solved=5)

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        common: dict[str, Any] = {"mark": "heat_map", "x": "property", "y": "activation", "series": None}
        axes: dict[str, Any] = common | {"choices": {}}
        said = {"title": "What is each activation?", "caption": "Bright: it has it.", "ticks": (0, 1)}
        sizes = {"size": (520, 600), "text_field": None, "format": ".0f"}
        return {"properties": cls.figure(result, "has_property", **axes, **said, **sizes)}

    @classmethod
    def findings(cls, result: xr.Dataset) -> list[str]:
        pairs = [f"{name} of {each.text}" for name, each in PENALTIES.items()]
        rest = f"proximal maps of functions that are not convex: {words.listed(_STEEP)}; of none: those that fall"
        return [f"Proximal maps: {'; '.join(pairs)}.", f"{words.capital(rest)} anywhere."]

    exercise = Exercise(
        task="Write `prox(x)`: the y > 0 that minimises -ln y + (y - x)²/2. Which activation is it?",
        function="prox",
        answer=lambda x: (x + math.hypot(x, 2)) / 2,
        inputs=((0.0,), (3.0,), (-2.0,)),
        mistakes={
            "Of the two roots of y² - x y = 1 the other one is positive.": lambda x: (
                (x - math.hypot(x, 2)) / 2
            ),
            "In -1/y + y - x = 0 the y under 1 is unknown too.": lambda x: x + 1 / x if x else 0.0,
        },
        solution="import math\n\ndef prox(x):  # squareplus\n    return (x + math.sqrt(x**2 + 4)) / 2\n",
    )
