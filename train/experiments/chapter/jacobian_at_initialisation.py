"""The Jacobian at initialisation: relu beside leaky relu, at the same weights and each at its own gain."""

from __future__ import annotations

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

_FS: tuple[Activation, ...] = tuple(map(activations.parse, ("relu", "leaky_relu(0.2)")))
_SLOPES = np.array([0.0, 0.2])
_GAINS = 2 / (1 + _SLOPES**2)  # sigma_w^2
_RULES = ("He", "own gain")
_SQUARES = np.array([[2.0, gain] for gain in _GAINS])  # sigma_w^2 of [activation, rule]
_AT_ZERO = (1 - _SLOPES) ** 2 / (math.pi * (1 + _SLOPES**2))  # 0.3183 and 0.1959
_DIMS = ("activation", "rule", "depth")


@dataclass(frozen=True, kw_only=True)
class JacobianAtInitialisation(Claim):
    """Measure ||J||_F^2 / n of random networks at every depth, and what a layer makes of uncorrelated inputs.

    E ||J||^2 grows by the same factor from any layer to the next, at any width: f(-z) has the other slopes of f(z).

    Attributes:
        width: n, units of every layer.
        depth: layers of the deepest network.
        num_networks: networks a seed, whose mean is one draw.
        num_pairs: of Gaussian preactivations a seed.
    """

    width: int = 64
    depth: int = 32
    num_networks: int = 128
    num_pairs: int = 2_000_000

    number = 8
    title = "A leak makes stronger initial gradients"
    says = (
        "Every layer multiplies the squared gradient by σ_w² E f′². Leaky relu lets some of it through where relu lets "
        "none, a factor 1 + a² more a layer: its initial gradients are stronger."
    )
    formula = "E ‖J‖_F² / n = (σ_w² E f′(z)²)^L,  E f′² = (1 + a²) / 2;  C(0) = (1 − a)² / (π (1 + a²))"
    practice = (
        "Do not choose a leak for the size of the first gradients: with each activation at its own gain they are the "
        "same. What a leak changes is how fast inputs grow alike: after one layer of relu two uncorrelated inputs are "
        "correlated by 0.32, after one of leaky relu at a = 0.2 by 0.20."
    )
    source = "Schoenholz et al. (2017), Deep information propagation, eq. (16); Cho and Saul (2009), eq. (6)"
    coordinates = {"rule": Coordinate("rule of initialisation", labels=_RULES)}
    variables = {
        "jacobian": Variable("squared norm of the Jacobian per unit", _DIMS, theory="jacobian_theory"),
        "jacobian_theory": Variable("squared norm of the Jacobian per unit, expected", _DIMS),
    }

    def numbers(self) -> dict[str, Number]:
        factors, leak = _SQUARES * (1 + _SLOPES[:, None] ** 2) / 2, 1 + _SLOPES[1] ** 2
        more, found = "leaky relu over relu, factor of the squared gradient a layer, ", {}
        for place, f in enumerate(_FS):
            for rule, factor in zip(_RULES, factors[place], strict=True):
                says = f"{f.name}, {rule}: factor of ‖J‖² a layer"
                found[f"{f.name}, {rule}"] = Number(says, factor, factor, tolerance=0.01)
        found["same"] = Number(f"{more}at the same weights", leak, leak, tolerance=0.01)
        found["own"] = Number(f"{more}each at its gain", leak, 1.0, tolerance=0.01)
        for f, exact in zip(_FS, _AT_ZERO, strict=True):
            said = f"{f.name}: correlation after a layer of uncorrelated inputs"
            found[f"C of {f.name}"] = Number(f"{said}, by theory", round(exact, 4), exact, tolerance=5e-5)
            found[f"sampled C of {f.name}"] = Number(f"{said}, sampled", exact, exact, tolerance=1.5e-3)
        return found

    def measure(self, cell, progress) -> dict[str, Any]:
        keys = jax.vmap(jax.random.key)(np.array(self.seeds))
        run = jax.jit(
            lambda keys: jax.lax.map(lambda key: (self._jacobians(key), self._correlations(key)), keys)
        )
        jacobians, correlations = (np.asarray(each, float) for each in run(keys))
        progress(0.9, "theory")
        factors = (jacobians[..., 1:, :] / jacobians[..., :-1, :]).mean((-2, -1))
        found: dict[str, Any] = {}
        found["same"], found["own"] = (factors[:, 1] / factors[:, 0]).T
        for place, f in enumerate(_FS):
            found |= {f"{f.name}, {rule}": factors[:, place, _RULES.index(rule)] for rule in _RULES}
            found[f"sampled C of {f.name}"] = correlations[:, place]
            found[f"C of {f.name}"] = float(theory.correlation_map(f, 0.0, sigma_w=_GAINS[place] ** 0.5))
        depths = np.arange(self.depth + 1)
        expected = (_SQUARES * (1 + _SLOPES[:, None] ** 2) / 2)[..., None] ** depths
        places = {"activation": [f.name for f in _FS], "depth": depths}
        return found | places | {"jacobian": jacobians.mean((0, -1)), "jacobian_theory": expected}

    def _jacobians(self, key: jax.Array) -> jax.Array:
        """||J||_F^2 / n by products of the layers' Jacobians, [activation, rule, depth, network]."""
        n, shape = self.width, (*_SQUARES.shape, self.num_networks, self.width)
        scales = jnp.sqrt(jnp.asarray(_SQUARES, jnp.float32) / n)[..., None, None]
        key_input, key_weights = jax.random.split(key)
        h = jnp.broadcast_to(jax.random.normal(key_input, shape[2:]), shape)
        eye = jnp.broadcast_to(jnp.eye(n), (*shape, n))

        def layer(state: tuple, key: jax.Array) -> tuple[tuple, jax.Array]:
            h, J = state
            weights = jax.random.normal(key, (self.num_networks, n, n))
            z = scales * jnp.einsum("kij,arkj->arki", weights, h)
            slopes = jnp.stack([f.derivative(each) for f, each in zip(_FS, z, strict=True)])
            J = slopes[..., None] * scales[..., None] * jnp.einsum("kij,arkjm->arkim", weights, J)
            h = jnp.stack([f(each) for f, each in zip(_FS, z, strict=True)])
            return (h, J), jnp.sum(J**2, (-2, -1)) / n

        _, norms = jax.lax.scan(layer, (h, eye), jax.random.split(key_weights, self.depth))
        return jnp.moveaxis(jnp.concatenate([jnp.ones_like(norms[:1]), norms]), 0, 2)

    def _correlations(self, key: jax.Array) -> jax.Array:
        """E f(u) f(v) / E f(u)^2 of independent u and v, sampled, [activation]."""
        u, v = jax.random.normal(jax.random.fold_in(key, 1), (2, self.num_pairs))
        products = jnp.stack([jnp.mean(f(u) * f(v)) for f in _FS])
        return products * 2 / jnp.asarray(1 + _SLOPES**2, jnp.float32)

    def smoke(self) -> JacobianAtInitialisation:
        return replace(super().smoke(), width=32, depth=6, num_networks=4, num_pairs=20_000)

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        said: dict[str, Any] = {"x": "depth", "series": "activation", "column": "rule", "scale": "decades"}
        return {
            "jacobian": cls.figure(
                result, "jacobian", title="Is a leak's gradient stronger?", choices={}, **said
            )
        }

    exercise = Exercise(
        task="Write `growth(a, sigma_w, depth)`: E ||J||_F^2 / n of a wide network of leaky relu, slope `a` below 0.",
        function="growth",
        answer=lambda a, sigma_w, depth: (sigma_w**2 * (1 + a**2) / 2) ** depth,
        inputs=((0.0, 2**0.5, 10), (0.2, 2**0.5, 10), (0.2, 1.0, 3)),
        mistakes={
            "That is the mean slope squared; the mean of the squared slope is wanted.": (
                lambda a, sigma_w, depth: (sigma_w**2 * ((1 + a) / 2) ** 2) ** depth
            ),
            "That is one layer.": lambda a, sigma_w, depth: sigma_w**2 * (1 + a**2) / 2,
        },
        solution="def growth(a, sigma_w, depth):\n    return (sigma_w**2 * (1 + a**2) / 2) ** depth\n",
    )
