"""What is known of a model's activation: the name that it has in the zoo, and the scale that keeps it going."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxact import activations
from jaxact.diagnosis._formula import Formula, single, values_of

#: where formulas are compared: both sides of 0, of every kink, and where gates and tails are told apart
_POINTS = np.concatenate([np.linspace(-5.9, 6.3, 41), [-0.5, 0.3, 1.0, 9.0]])
_SAME = 1e-5  # of float32; gelu and its tanh form are 5e-4 apart
_NARROW = 2e-2  # of formulas that are computed in 8 or 11 bits
_ROOM = 1.001  # that `initialize` leaves


class Preserving(NamedTuple):
    """What `initialize` draws the weights after an activation with, at preactivations of second moment 1.

    Attributes:
        scale: sigma_w^2: 1 / E f'(z)^2, critical; or 1 / E f(z)^2 where that would let signals grow.
        bias: sigma_b^2 that adds what is then missing to a second moment of 1.
        rule: in words.
    """

    scale: float
    bias: float
    rule: str


@lru_cache(maxsize=1024)
def preserving(formula: Formula) -> Preserving | None:
    """What preserves after an activation; None of one that passes nothing on."""
    found = single(formula, np.zeros(1), np.ones(1))
    second, slope = float(found.second[0]), float(found.slope[0])
    if slope > 0 and second <= _ROOM * slope:
        return Preserving(1 / slope, max(1 - second / slope, 0.0), "1 / E f'(z)^2 at E z^2 = 1")
    return Preserving(1 / second, 0.0, "1 / E f(z)^2 at E z^2 = 1") if second > 0 else None


def expression(formulas: Iterable[Formula | None], dtype: str) -> str | None:
    """The commonest of a model's activations as Python, `activations.silu`; None where the zoo does not have it."""
    counts = Counter(each for each in formulas if each is not None)
    return _called(counts.most_common(1)[0][0], dtype) if counts else None


@lru_cache(maxsize=1024)
def _called(formula: Formula, dtype: str) -> str | None:
    values = values_of(formula, _POINTS)
    tolerance = _SAME if dtype == "float32" else _NARROW
    apart = {name: _distance(values, own) for name, own in _zoo().items()}
    name = min(apart, key=lambda each: apart[each])
    if apart[name] <= tolerance:
        return f"activations.{name}"
    slope = values[_POINTS == -0.5][0] / -0.5
    leaky = np.where(_POINTS > 0, _POINTS, slope * _POINTS)
    return f"activations.leaky_relu({slope:.3g})" if _distance(values, leaky) <= tolerance else None


def _distance(one: Float[np.ndarray, " point"], other: Float[np.ndarray, " point"]) -> float:
    return float(np.max(np.abs(one - other) / (1 + np.abs(other))))


@lru_cache(maxsize=1)
def _zoo() -> dict[str, Float[np.ndarray, " point"]]:
    """The values of every activation, of a family with its defaults, by its Python; synonyms under the first name."""
    zoo = {name: getattr(activations, name) for name in activations.names()}
    made = {name: each if isinstance(each, activations.Activation) else each() for name, each in zoo.items()}
    values = jax.jit(lambda x: [each(x) for each in made.values()])(jnp.asarray(_POINTS, jnp.float32))
    return {
        name if made[name] is zoo[name] else f"{name}()": np.asarray(each, np.float64)
        for name, each in zip(made, values, strict=True)
    }
