"""Recurrent gradients: what they are multiplied by in a step, and over what lengths recurrent networks train."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy.special import ndtri

from jaxact import activations, probes, theory
from jaxact.numerics import gaussian_expectation
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.recurrent import LAWS, MemoryTrial, backpropagated, longest_trained
from train.study import Coordinate, Variable
from train.tasks import Adding, CopyMemory

_RADIUS, _ACTIVE, _VARIANCE = 1.1, 0.75, 9.382  # of the chapter's two examples
_GAINS = (1.1, 1.5, 3.0)  # of networks without input
_HEURISTIC = (0.981, 0.966, 0.897)  # g E|f'| that one such network of 800 units has
_CASES = ("mask", "driven", *(f"g={gain:g}" for gain in _GAINS))
_CHOICES = tuple(map(activations.parse, ("relu", "tanh", "sigmoid", "leaky_relu")))
_TASKS = ("adding", "copy memory")
_BEGIN = 50  # steps of a driven network that are not counted


@dataclass(frozen=True, kw_only=True)
class RecurrentGradients(Claim):
    """Follow gradients back through random recurrent networks; train small ones on two problems of memory.

    A network counts as trained at a length as `train.recurrent.longest_trained` says: at half of the memoryless loss.

    Attributes:
        width: units of the random networks without input; those with input have half as many.
        num_steps: steps of time that are averaged.
        lengths: of the problems, ascending; without any nothing is trained.
        hidden: units of the networks that are trained.
        batch_size: sequences an optimiser step.
        num_updates: optimiser steps.
        learning_rate: Adam's for the adding problem; copy memory takes 0.3 of it.
    """

    width: int = 800
    num_steps: int = 1000
    lengths: tuple[int, ...] = (50, 100)
    hidden: int = 16
    batch_size: int = 16
    num_updates: int = 400
    learning_rate: float = 0.01

    number = 3
    title = "Recurrent gradients shrink by ρ(W) E|f'| a step"
    says = (
        "Backpropagation through time multiplies the gradient by about ρ(W) E|f'| in every step: it vanishes where "
        "this is below 1 and explodes above. ReLU, whose slope is 1, keeps gradients over lengths where tanh and "
        "sigmoid lose them."
    )
    formula = "δ_{t-1} = Wᵀ (f'(z_t) ∘ δ_t);  typical factor exp(λ₁) ≈ g √(E f'²), not ρ(W) E|f'|"
    practice = (
        "Judge a recurrent initialisation by χ = g² E f'² or by its Lyapunov exponent: the mean slope predicts "
        "vanishing where gradients explode. Over 100 steps, adding or holding one symbol, the law of the weights "
        "decides as much as the activation, and problems differ in which they want: try both."
    )
    source = (
        "Pascanu, Mikolov and Bengio (2013), On the difficulty of training recurrent neural networks; Molgedey, "
        "Schuchhardt and Schuster (1992), eq. (9); Le, Jaitly and Hinton (2015); Arjovsky, Shah and Bengio (2016)"
    )
    coordinates = {
        "case": Coordinate("network", labels=_CASES),
        "problem": Coordinate("problem", labels=_TASKS),
        "weights": Coordinate("recurrent weights", labels=LAWS),
        "trained": Coordinate("activation", labels=tuple(f.name for f in _CHOICES)),
    }
    variables = {
        "factor": Variable("growth of the gradient a step", ("case", "seed")),
        "heuristic": Variable("the heuristic, radius times mean slope", ("case",)),
        "mean_field": Variable("mean-field theory, root of chi", ("case",)),
        "longest": Variable("longest length trained", ("problem", "trained", "weights", "seed"), "steps"),
    }

    def numbers(self) -> dict[str, Number]:
        finer, steps = partial(Number, core=False), partial(Number, core=False, units="steps")
        (slopes, exact), mean = _predicted(), _mean_exponent(1.5)
        found = {
            "mask": Number("factor (r.m.s.), 75 % mask at ρ = 1.1", 0.825, exact[0], tolerance=0.005),
            "driven": Number("factor (r.m.s.), tanh with E f' = 0.25", 0.275, exact[1], tolerance=0.01),
        }
        for place, tolerance in enumerate((0.008, 0.02, 0.03)):
            said, chapter, case = f"tanh, g = {_GAINS[place]:g}", _HEURISTIC[place], 2 + place
            found[f"factor_{place}"] = Number(f"factor, {said}", chapter, exact[case], tolerance=tolerance)
            found[f"slope_{place}"] = finer(f"g E|f'| of {said}", chapter, slopes[case], tolerance=0.015)
        return found | {
            "agree": finer("typical factor backwards less exp(λ₁), driven", 0.0, 0.0, tolerance=0.01),
            "spectrum": finer("mean of the Lyapunov spectrum, g = 1.5", mean, mean, tolerance=0.1),
            "relu_adding": steps("adding: relu less tanh, longest length", 0.0, None, "at_least"),
            "relu_copy": steps("copy memory: relu less tanh, longest length", 0.0, None, "at_least"),
            "sigmoid": steps("sigmoid less tanh, longest length", 0.0, None, "at_most"),
            "orthogonal": steps("orthogonal less Gaussian, longest length", 0.0, None, "at_least"),
            "identity": steps("relu: identity less Gaussian, longest length", 0.0, None, "at_least"),
        }

    def measure(self, cell, progress) -> dict[str, Any]:
        driven = _driven(self.width // 2, self.num_steps, self.seeds)
        progress(0.05, "without input")
        slope, alone = _autonomous(self.width, self.num_steps, self.seeds)
        spectrum = _spectrum(max(self.width // 10, 20), self.seeds)
        progress(0.2, "training")
        longest = self._longest(lambda fraction, said: progress(0.2 + 0.4 * fraction, said))
        adding, copy = longest.mean(2)  # over laws of weights: [activation, seed]
        return {
            "mask": driven[0][0],
            "driven": driven[1][0],
            **{f"factor_{place}": each for place, each in enumerate(alone)},
            **{f"slope_{place}": each for place, each in enumerate(slope)},
            "agree": driven[1][1] - driven[1][2],
            "spectrum": spectrum,
            "relu_adding": adding[0] - adding[1],
            "relu_copy": copy[0] - copy[1],
            "sigmoid": (adding + copy)[2] / 2 - (adding + copy)[1] / 2,
            "orthogonal": (longest[:, :, 1] - longest[:, :, 0]).mean((0, 1)),
            "identity": (longest[:, 0, 2] - longest[:, 0, 0]).mean(0),
            "factor": np.stack([driven[0][0], driven[1][0], *alone]),
            "heuristic": _predicted()[0],
            "mean_field": _predicted()[1],
            "longest": longest,
        }

    def _longest(self, progress: Callable[[float, str], None]) -> np.ndarray:
        """The longest length at which networks trained, [problem, activation, law, seed]; NaN without any length."""
        if not self.lengths:
            return np.full((len(_TASKS), len(_CHOICES), len(LAWS), len(self.seeds)), np.nan)
        kinds = ((Adding, self.learning_rate), (partial(CopyMemory, num_symbols=1), 0.3 * self.learning_rate))
        counts = {"hidden": self.hidden, "batch_size": self.batch_size, "num_steps": self.num_updates}
        shared: dict[str, Any] = {"activations": _CHOICES, **counts}
        found = []
        for kind, rate in kinds:
            tasks = [kind(length=length) for length in self.lengths]
            trials = [MemoryTrial(task=task, learning_rate=rate, **shared) for task in tasks]
            found.append(longest_trained(trials, self.seeds, progress))
        return np.stack(found)

    def smoke(self) -> RecurrentGradients:
        return replace(super().smoke(), width=40, num_steps=40, lengths=())

    def full(self) -> RecurrentGradients:
        return replace(self, lengths=(50, 100, 200, 400), hidden=32, num_updates=2000)

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        three = {"factor": "measured", "heuristic": "ρ E|f'|", "mean_field": "ρ √(E f'²) = √χ"}
        by_case = {
            "title": "By how much does a step back in time multiply the gradient?",
            "subtitle": "Mean over seeds; 1 divides vanishing from exploding",
            "caption": "Squared slopes count: the mean slope is always too small. With a mask, driven, without input.",
        }
        by_law = {
            "title": "Over what length does a recurrent network train?",
            "subtitle": "Mean over seeds of the longest length at which it loses less than half of a memoryless guess",
            "caption": "0: at no length that was tried.",
        }
        charts: dict[str, Any] = {
            "factor": {"values": three, "x": "case", "series": "quantity", **by_case},
            "longest": {
                "values": "longest",
                "x": "trained",
                "series": "weights",
                "column": "problem",
                **by_law,
            },
        }
        return cls.drawn(result, charts, mark="bars", over="seed", centre="mean")

    @classmethod
    def findings(cls, result: xr.Dataset) -> list[str]:
        means = result["longest"].mean("seed")
        best, law = means.max("weights"), means.idxmax("weights")
        found = []
        for problem in _TASKS:
            most, by = best.sel(problem=problem).to_series(), law.sel(problem=problem).to_series()
            said = ", ".join(f"{name} {length:.0f} ({by[name]})" for name, length in most[most > 0].items())
            found.append(f"{problem.capitalize()}: longest length trained, best weights: {said or 'none'}.")
        return found

    exercise = Exercise(
        task=(
            "Write `factor(radius, slopes)`: what a step back in time multiplies the norm of the gradient by, "
            "typically, if W is `radius` times a rotation and the units have the given list of slopes."
        ),
        function="factor",
        answer=lambda radius, slopes: radius * np.sqrt(np.mean(np.square(slopes))),
        inputs=((1.1, [1, 1, 1, 0]), (0.5, [1.0, 0.5]), (2.0, [0.25, 0.0, 0.75])),
        mistakes={
            "Norms add squares: take the mean square of the slopes.": lambda r, s: r * np.mean(s),
            "That is the squared norm's: take its root.": lambda r, s: r**2 * np.mean(np.square(s)),
        },
        solution="def factor(radius, slopes):\n    return radius * (sum(s * s for s in slopes) / len(slopes)) ** 0.5\n",
    )


def _expected(fn: Callable, variance: float) -> float:
    """E fn(z), z ~ N(0, variance)."""
    return float(gaussian_expectation(fn, variance=variance))


@functools.cache
def _stationary() -> Mapping[float, float]:
    """The variance of an autonomous tanh network, that of a deep one, by gain."""
    found = theory.mean_field(activations.tanh, sigma_w=np.array(_GAINS), sigma_b=0.0)
    return dict(zip(_GAINS, np.asarray(found.q_star).tolist(), strict=True))


@functools.cache
def _predicted() -> tuple[np.ndarray, np.ndarray]:
    """The heuristic and mean-field theory of every case."""
    gains, variances = np.array([_RADIUS, *_GAINS]), np.append(_VARIANCE, [*_stationary().values()])
    found = theory.recurrent_factors(activations.tanh, gain=gains, variance=variances)
    slope, root = np.asarray(found.mean_slope), np.asarray(found.root_mean_square)
    return np.append(_RADIUS * _ACTIVE, slope), np.append(_RADIUS * _ACTIVE**0.5, root)


def _mean_exponent(gain: float) -> float:
    """E log |det J| / N = log g - 1/2 + E log f'(z) of an autonomous tanh network: log|det| of Gaussian matrices."""
    return math.log(gain) - 0.5 - 2 * _expected(lambda z: jnp.log(jnp.cosh(z)), _stationary()[gain])


def _drawn(width: int, seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian matrices of spectral radius 1 at large width, and vectors, [seed, ...]; on the host."""
    made = [np.random.default_rng(seed).normal(size=(width + 1, width)).astype(np.float32) for seed in seeds]
    return np.stack(made)[:, 1:] / width**0.5, np.stack(made)[:, 0]


def _driven(width: int, num_steps: int, seeds: tuple[int, ...]) -> np.ndarray:
    """Of the masked and of the driven network: both factors by backpropagation, exp(lambda_1); [case, 3, seed]."""
    noise = _VARIANCE - _RADIUS**2 * _expected(lambda z: jnp.tanh(z) ** 2, _VARIANCE)
    J, end = _drawn(width, seeds)
    weights = _RADIUS * np.concatenate([np.linalg.qr(J)[0], J])  # of the masked network the radius is exact

    def one(each: tuple) -> jax.Array:
        W, end, seed, is_tanh = each
        drawn = jax.random.normal(jax.random.key(seed), (num_steps + _BEGIN, width))
        mask = (drawn < ndtri(_ACTIVE)).astype(float)

        def step(h: jax.Array, given: tuple) -> jax.Array:
            u, m = given
            return jnp.where(is_tanh, jnp.tanh(W @ h + noise**0.5 * u), m * (W @ h))

        return _both_ways(step, (drawn, mask), end, num_steps)

    cases = weights, np.tile(end, (2, 1)), np.tile(seeds, 2), np.repeat([False, True], len(seeds))
    found = jax.jit(partial(jax.lax.map, one))(cases)
    return np.asarray(found).reshape(2, len(seeds), 3).swapaxes(1, 2)


def _both_ways(step: Callable, inputs: Any, end: jax.Array, num_steps: int) -> jax.Array:
    """Growth a step of a gradient passed back from `end`, root mean square and typical, exp E log; exp(lambda_1)."""
    growth = backpropagated(step, jnp.zeros_like(end), inputs, end)[_BEGIN:]
    options = {"num_steps": num_steps, "num_transient": _BEGIN, "inputs": inputs}
    largest = probes.lyapunov_exponents(step, 0 * end, 1, **options, num_blocks=2).exponents[0]
    return jnp.stack([jnp.sqrt(jnp.mean(growth**2)), jnp.exp(jnp.mean(jnp.log(growth))), jnp.exp(largest)])


def _autonomous(width: int, num_steps: int, seeds: tuple[int, ...]) -> np.ndarray:
    """Of h' = tanh(g J h): g times the mean slope, and exp(lambda_1); [2, gain, seed]."""

    def network(each: tuple) -> jax.Array:
        J, h = each

        def one(gain: jax.Array) -> jax.Array:
            def step(h: jax.Array) -> jax.Array:
                return jnp.tanh(gain * (J @ h))

            counts = {"num_steps": num_steps, "num_transient": num_steps // 2}
            largest = probes.lyapunov_exponents(step, h, 1, **counts).exponents[0]
            slopes = jax.lax.scan(lambda h, _: (step(h), jnp.mean(1 - h**2)), h, length=num_steps)[1]
            return jnp.stack([gain * slopes[num_steps // 2 :].mean(), jnp.exp(largest)])

        return jax.vmap(one)(jnp.asarray(_GAINS))

    return np.asarray(jax.jit(partial(jax.lax.map, network))(_drawn(width, seeds))).transpose(2, 1, 0)


def _spectrum(width: int, seeds: tuple[int, ...]) -> np.ndarray:
    """The mean of all Lyapunov exponents at g = 1.5, [seed]; at g = 3 slopes round to 0."""

    def one(each: tuple) -> jax.Array:
        J, h = each
        counts = {"num_steps": 200, "num_transient": 40}
        return probes.lyapunov_exponents(lambda h: jnp.tanh(1.5 * (J @ h)), h, **counts).exponents.mean()

    return np.asarray(jax.jit(partial(jax.lax.map, one))(_drawn(width, seeds)))
