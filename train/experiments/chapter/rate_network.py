"""The random rate network: where chaos begins, how chaotic it is, and which activations look like a neuron's curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from scipy import integrate, optimize, special

from jaxact import activations, probes, theory
from jaxact.activations import Activation
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.study import Coordinate, Variable

_EXPONENT = 0.75  # of the power law
_TIME_STEP = 0.25  # of Runge and Kutta's fourth order, in time constants
_NEEDED = (0.5, 1.5, 2.0, 3.0)  # gains with a prediction
_CURVES = ("tanh", "threshold-linear", "softplus", "power law")
_IMITATIONS = tuple(map(activations.parse, ("relu", "softplus", "sigmoid", "tanh")))
# The neuron, in seconds and in units of its threshold: membrane, refractory time, noise, step.
_TAU, _REFRACTORY, _NOISE, _STEP = 0.02, 0.002, 0.4, 1e-4
_BARRIER = 1 - 0.5826 * _NOISE * math.sqrt(_STEP / _TAU)  # seen at steps only: Broadie, Glasserman & Kou 1997
_CURRENTS = np.linspace(0, 2.5, 26)
_exact = cache(lambda gain: theory.rate_network(activations.tanh, gain=gain).lyapunov)


@dataclass(frozen=True, kw_only=True)
class RateNetwork(Claim):
    """Integrate random rate networks of several f-I curves; fit activations to the curve of a spiking neuron.

    Attributes:
        width: neurons of a network.
        gains: g, at which exponents are measured; ascending.
        duration: time constants that are averaged, after 0.6 times as many that are not; activity that grows, by up
            to e^(0.6 t), must stay within float32.
        num_neurons: neurons an input current whose spikes are counted.
        seconds: for which they are.
    """

    width: int = 800
    gains: tuple[float, ...] = (0.5, 0.9, 1.2, 1.35, 1.5, 1.65, 2.0, 3.0)
    duration: int = 75
    num_neurons: int = 40
    seconds: float = 1.0

    number = 14
    title = "Random rate networks turn chaotic at g = 1"
    says = (
        "Units are neurons and activations their f-I curves. In a large random network, dx/dt = -x + J f(x) with gain "
        "g, activity dies out below g f'(0) = 1 and is chaotic above it."
    )
    formula = "dx/dt = -x + J f(x), J ~ N(0, g²/N);  λ₁ = g f'(0) - 1 below, √(1 - E₀) - 1 above"
    practice = (
        "Start a recurrent network of tanh units near g = 1, and near √2 where units rectify: what counts is "
        "g² E f'², the squared slope where the network lives, and not the slope at 0. A rectifier without a bound "
        "has no chaos to be on the edge of: beyond √2 its activity grows without end."
    )
    source = (
        "Sompolinsky, Crisanti and Sommers (1988), Chaos in random neural networks, eqs. (8)-(14); Kadmon and "
        "Sompolinsky (2015), Transition to chaos in random neuronal networks; Siegert (1951)"
    )
    coordinates = {
        "curve": Coordinate("f-I curve", labels=_CURVES),
        "gain": Coordinate("gain g"),
        "current": Coordinate("input, thresholds"),
        "imitation": Coordinate("activation", labels=tuple(f.name for f in _IMITATIONS)),
    }
    variables = {
        "exponent": Variable(
            "largest Lyapunov exponent", ("curve", "gain", "seed"), "1/tau", theory="mean_field"
        ),
        "mean_field": Variable("largest Lyapunov exponent by mean-field theory", ("curve", "gain"), "1/tau"),
        "rate": Variable("firing rate of the neuron", ("current", "seed"), "Hz", theory="siegert"),
        "siegert": Variable("firing rate by Siegert's formula", ("current",), "Hz"),
        "misfit": Variable("misfit of the activation, of the highest rate", ("imitation", "seed")),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if missing := set(_NEEDED) - set(self.gains):
            raise ValueError(f"`gains` must hold all of {_NEEDED}, got {self.gains}. Add {sorted(missing)}.")

    def numbers(self) -> dict[str, Number]:
        exact = {gain: _exact(gain) for gain in (1.5, 2.0, 3.0)}
        edge = 2**0.5  # g^2 E f'^2 = g^2 / 2 = 1, whatever the activity
        rate, finer = partial(Number, units="1/τ"), partial(Number, core=False)
        says = {
            "linear": "gain at which the exponent is 0, threshold-linear",
            "softplus": "gain at which the exponent is 0, softplus (f'(0) = 1/2)",
            "power": "power law, f'(0) infinite: exponent at g = 2 less that at 0.5",
            "neuron": "spiking neuron: largest distance of its rate from Siegert's formula",
        }
        return {
            "onset": Number("gain at which rest loses its stability, tanh", 1.0, 1.0, tolerance=0.08),
            "rest": rate("largest exponent at g = 0.5, tanh", -0.5, -0.5, tolerance=0.05),
            "chaos": rate("largest exponent at g = 1.5, tanh", 0.0, exact[1.5], "at_least"),
            "lyapunov_2": rate("largest exponent at g = 2, tanh", exact[2.0], exact[2.0], tolerance=0.06),
            "lyapunov_3": rate("largest exponent at g = 3, tanh", exact[3.0], exact[3.0], tolerance=0.04),
            "onset_linear": finer(says["linear"], 1.0, edge, tolerance=0.1),
            "onset_softplus": finer(says["softplus"], 2.0, edge, tolerance=0.1),
            "power_law": finer(says["power"], 0.0, 0.0, tolerance=0.08, units="1/τ"),
            "neuron": finer(says["neuron"], 0.0, 0.0, tolerance=4.0, units="Hz"),
            "softplus_imitates": finer("misfit to that neuron: softplus less relu", 0.0, None, "at_most"),
        }

    def measure(self, cell, progress) -> dict[str, Any]:
        gains = np.array(self.gains)
        seeds, num_steps = jnp.asarray(self.seeds), max(round(self.duration / _TIME_STEP / 20) * 20, 20)
        exponent = np.zeros((len(_CURVES), len(gains), len(seeds)))
        for curve in range(len(_CURVES)):
            exponent[curve] = _exponents(curve, self.width, num_steps, seeds, jnp.asarray(gains)).T
            progress((curve + 1) / 5, _CURVES[curve])
        exponent[1:3, gains > 2] = np.nan  # activity that grows leaves float32 there
        tanh, linear, softplus, power = exponent
        rate, siegert = self._rates(), np.array([_siegert(current) for current in _CURRENTS])
        misfit = np.array([[_misfit(f, each) for each in rate.T] for f in _IMITATIONS])
        mean_field = np.array([[*map(_exact, self.gains)], *np.full((len(_CURVES) - 1, len(gains)), np.nan)])
        half, chaos, two, three = (self.gains.index(gain) for gain in _NEEDED)
        return {
            "onset": 0.5 / (1 + tanh[half]),  # at rest the exponent is g a - 1, a the abscissa of J / g
            "rest": tanh[half],
            "chaos": tanh[chaos],
            "lyapunov_2": tanh[two],
            "lyapunov_3": tanh[three],
            "onset_linear": _crossing(gains, linear),
            "onset_softplus": _crossing(gains, softplus),
            "power_law": power[two] - power[half],
            "neuron": np.abs(rate - siegert[:, None]).max(0),
            "softplus_imitates": misfit[1] - misfit[0],
            "exponent": exponent,
            "mean_field": mean_field,
            "rate": rate,
            "siegert": siegert,
            "misfit": misfit,
            "gain": gains,
            "current": _CURRENTS,
        }

    def _rates(self) -> np.ndarray:
        """Spikes a second of leaky integrate-and-fire neurons with white noise, [current, seed]."""
        num_steps = int(self.seconds / _STEP)
        return np.asarray(_rates(jnp.asarray(self.seeds), self.num_neurons, num_steps)).T / self.seconds

    def smoke(self) -> RateNetwork:
        return replace(super().smoke(), gains=_NEEDED, width=40, duration=30, num_neurons=4, seconds=0.2)

    def full(self) -> RateNetwork:
        gains = (0.5, 0.7, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0)
        return replace(self, width=2000, gains=gains, num_neurons=200)

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        shared: dict[str, Any] = {"choices": {}, "column": None, "scale": "linear"}
        chaos = "At rest the exponent is g f'(0) - 1. Of tanh alone it is positive where activity is bounded."
        foot = "Noise makes of the threshold a soft foot; the refractory time bends the curve."
        said = {"title": "Where does activity grow, and where is it chaotic?", "caption": chaos}
        rate = {"title": "How does a neuron's rate depend on its input?", "caption": foot}
        return {
            "exponent": cls.figure(result, "exponent", x="gain", series="curve", **shared, **said),
            "rate": cls.figure(result, "rate", x="current", **shared, **rate),
        }

    @classmethod
    def findings(cls, result: xr.Dataset) -> list[str]:
        misfit = result["misfit"].mean("seed")
        pairs = zip(misfit["imitation"].to_numpy(), misfit.to_numpy(), strict=True)
        said = ", ".join(f"{name} {value:.1%}" for name, value in pairs)
        largest = result["exponent"].sel(curve="power law").mean("seed")
        return [
            f"The rate of a leaky integrate-and-fire neuron with noise is imitated by c f(a I + b) + d to {said} of "
            "the highest rate.",
            f"A power law of exponent {_EXPONENT} never rests: its exponent is between {float(largest.min()):.3f} and "
            f"{float(largest.max()):.3f} at every gain, for the gain only rescales activity; at infinite width "
            f"g² E f'² = {_EXPONENT**2 / (2 * _EXPONENT - 1):.3f}.",
        ]

    exercise = Exercise(
        task=(
            "Write `onset(share)`: the gain g at which a random network of threshold-linear units turns unstable, by "
            "g^2 E f'^2 = 1, when a `share` of the units is active."
        ),
        function="onset",
        answer=lambda share: share**-0.5,
        inputs=((0.5,), (1.0,), (0.25,)),
        mistakes={
            "Squared slopes count, not slopes: g^2 times the share is 1.": lambda share: 1 / share,
            "That is the gain for units that are all active.": lambda share: 1.0,
        },
        solution="def onset(share):\n    return share ** -0.5\n",
    )


def _power_law(x: jax.Array) -> jax.Array:
    """[x]_+^0.75; its slope is counted as 0 where it is infinite, at 0."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** _EXPONENT, 0)


def _runge_kutta(f: Callable, J: jax.Array, gain: jax.Array, x: jax.Array) -> jax.Array:
    def slope(x: jax.Array) -> jax.Array:
        return gain * (J @ f(x)) - x

    a = slope(x)
    b = slope(x + _TIME_STEP / 2 * a)
    c = slope(x + _TIME_STEP / 2 * b)
    return x + _TIME_STEP / 6 * (a + 2 * b + 2 * c + slope(x + _TIME_STEP * c))


@partial(jax.jit, static_argnums=(1, 2))
def _exponents(curve: Any, width: int, num_steps: int, seeds: jax.Array, gains: jax.Array) -> jax.Array:
    """The largest exponents of a curve, by its traced place in `_CURVES`, [seed, gain]; one J / g for all gains."""

    def f(x: jax.Array) -> jax.Array:
        return jax.lax.switch(
            curve, [activations.tanh, activations.relu, activations.softplus(), _power_law], x
        )

    def network(seed: jax.Array) -> jax.Array:
        key_weights, key_state = jax.random.split(jax.random.key(seed))
        J = jax.random.normal(key_weights, (width, width)) / width**0.5
        x = jnp.abs(jax.random.normal(key_state, (width,)))

        def largest(gain: jax.Array) -> jax.Array:
            counts = {"num_steps": num_steps, "num_transient": num_steps * 3 // 5}
            step = partial(_runge_kutta, f, J, gain)
            return probes.lyapunov_exponents(step, x, 1, **counts, time_step=_TIME_STEP).exponents[0]

        return jax.vmap(largest)(gains)

    return jax.lax.map(network, seeds)


@partial(jax.jit, static_argnums=(1, 2))
def _rates(seeds: jax.Array, num_neurons: int, num_steps: int) -> jax.Array:
    """Spikes of a neuron, [seed, current], by Euler and Maruyama; the first fifth of the time is not counted."""
    currents = jnp.asarray(_CURRENTS, jnp.float32)[:, None]
    wait = round(_REFRACTORY / _STEP)
    skipped = num_steps // 5

    def one(seed: jax.Array) -> jax.Array:
        def step(state: tuple, t: jax.Array) -> tuple:
            v, resting, count = state
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), t), v.shape)
            moved = v + _STEP / _TAU * (currents - v) + _NOISE * (_STEP / _TAU) ** 0.5 * noise
            v = jnp.where(resting > 0, 0, moved)
            fires = v >= _BARRIER
            state = (
                jnp.where(fires, 0, v),
                jnp.where(fires, wait, resting - 1),
                count + (fires & (t >= skipped)),
            )
            return state, None

        shape = (len(_CURRENTS), num_neurons)
        start = jnp.zeros(shape), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32)
        (_, _, count), _ = jax.lax.scan(step, start, jnp.arange(num_steps + skipped))
        return count.mean(1)

    return jax.vmap(one)(seeds)


def _siegert(current: float) -> float:
    """1 / (refractory + tau sqrt(pi) int_{-I/s}^{(1-I)/s} exp(u^2) (1 + erf u) du): Siegert 1951, Brunel 2000."""
    ends = -current / _NOISE, (1 - current) / _NOISE
    integral, _ = integrate.quad(lambda u: special.erfcx(-u), *ends)
    return 1 / (_REFRACTORY + _TAU * math.sqrt(math.pi) * integral)


def _misfit(f: Activation, rates: np.ndarray) -> float:
    """Root mean square of rates - (c f(a I + b) + d), c and d by least squares, over the highest rate."""
    with jax.enable_x64(True):
        shape = jax.jit(f)

        def residuals(place: np.ndarray) -> np.ndarray:
            columns = np.stack(
                [np.asarray(shape(place[0] * _CURRENTS + place[1])), np.ones_like(_CURRENTS)], 1
            )
            return rates - columns @ np.linalg.lstsq(columns, rates, rcond=None)[0]

        found = [optimize.least_squares(residuals, (a, -a * c)) for a in (1.0, 4.0) for c in (0.5, 1.0, 1.5)]
    return float(min(np.sqrt(np.mean(each.fun**2)) for each in found) / rates.max())


def _crossing(gains: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """The gain at which the exponent passes 0, linear between neighbours; [seed], NaN where it does not."""
    found = np.full(exponents.shape[1], np.nan)
    for seed, values in enumerate(exponents.T):
        above = np.flatnonzero(values > 0)
        if len(above) and above[0] > 0:
            low, high = values[above[0] - 1], values[above[0]]
            left, right = gains[above[0] - 1], gains[above[0]]
            found[seed] = left - low * (right - left) / (high - low)
    return found
