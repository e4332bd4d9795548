"""Differential equations with known solutions: what a physics-informed network is trained on and judged by."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxact.numerics import check_count
from train.tasks._task import check_number

Field = Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True)
class Equation(abc.ABC):
    """A differential equation for a scalar u on a box, with its boundary data and its solution; no classification task.

    Attributes:
        name: of the equation.
        box: (low, high) of every coordinate.
    """

    name: ClassVar[str]
    box: ClassVar[tuple[tuple[float, float], ...]]

    @abc.abstractmethod
    def residual(self, u: Field, z: Float[Array, " coordinate"]) -> Float[Array, ""]:
        """What is left of the equation at one point: 0 everywhere for a solution. Derivatives by nested `jax.jvp`."""

    @abc.abstractmethod
    def boundary(self, *counts: int) -> tuple[np.ndarray, np.ndarray]:
        """Points [point, coordinate] where u is given, and its values [point]; `counts` as for `grid`."""

    @abc.abstractmethod
    def solution(self, z: np.ndarray) -> np.ndarray:
        """The values of u at points [point, coordinate], in float64."""

    def grid(self, *counts: int) -> np.ndarray:
        """Evenly spaced points of the box with its ends, [point, coordinate], so many along every coordinate.

        Raises:
            ValueError: `counts` are not one positive integer a coordinate.
        """
        num = len(self.box)
        if len(counts) != num:
            raise ValueError(
                f"`counts` must be {num} positive integers, one a coordinate of {self.name}, got {counts}. "
                f"Use grid({', '.join(['9'] * num)})."
            )
        counts = tuple(check_count("counts", count) for count in counts)
        axes = [np.linspace(*ends, count) for ends, count in zip(self.box, counts, strict=True)]
        return np.stack([each.ravel() for each in np.meshgrid(*axes, indexing="ij")], 1)

    def scattered(self, num: int) -> np.ndarray:
        """Points that fill the box evenly, [point, coordinate]: in one dimension `grid`, else the first of Halton's.

        These share no lines: between two rows of a grid a network may hide a front, with no residual at any point.
        """
        num = check_count("num", num)
        if len(self.box) == 1:
            return self.grid(num)
        from scipy.stats import qmc  # here: whoever imports the tasks alone should not wait for it

        lows, highs = zip(*self.box, strict=True)
        return qmc.scale(qmc.Halton(len(self.box), scramble=False).random(num), lows, highs)


@dataclass(frozen=True, kw_only=True)
class Poisson(Equation):
    """Poisson's equation in one dimension, forced so that the solution is a sum of sines.

        u'' + f = 0 on [-1, 1],    u(-1) = u(1) = 0,    f = sum_k a_k (k pi)^2 sin(k pi x),    u = sum_k a_k sin(k pi x)

    The residual is divided by the root mean square of f, so that u = 0 has a mean square of 1.

    Attributes:
        amplitudes: a_1, a_2, ...
    """

    name = "poisson"
    box = ((-1.0, 1.0),)

    amplitudes: tuple[float, ...] = (1.0, 0.5)

    def __post_init__(self) -> None:
        if not isinstance(self.amplitudes, tuple | list):
            raise ValueError(
                f"`amplitudes` must be a tuple of numbers, got {self.amplitudes!r}. Use (1.0,) for one sine."
            )
        for each in self.amplitudes:
            check_number("amplitudes", each, remedy="Use 0.0 to leave a sine out.")
        if not any(self.amplitudes):
            raise ValueError(
                f"`amplitudes` must not all be 0, got {self.amplitudes}. Use (1.0,) for one sine."
            )

    def residual(self, u: Field, z: Float[Array, " coordinate"]) -> Float[Array, ""]:
        """(u'' + f) / rms f."""
        waves = np.pi * np.arange(1, len(self.amplitudes) + 1)
        forces = np.array(self.amplitudes) * waves**2
        force = jnp.sum(jnp.asarray(forces, z.dtype) * jnp.sin(jnp.asarray(waves, z.dtype) * z[0]))
        return (_along(_along(u, 0), 0)(z) + force) / math.sqrt(np.sum(forces**2) / 2)

    def boundary(self, *counts: int) -> tuple[np.ndarray, np.ndarray]:
        """Both ends, where u is 0."""
        return self.grid(2), np.zeros(2)

    def solution(self, z: np.ndarray) -> np.ndarray:
        """The sum of sines."""
        waves = np.pi * np.arange(1, len(self.amplitudes) + 1)
        return np.sin(waves * z) @ np.array(self.amplitudes)


@dataclass(frozen=True, kw_only=True)
class Burgers(Equation):
    """Burgers' equation: a sine that steepens in the middle, as the viscosity lets it.

        u_t + u u_x = nu u_xx on (x, t) in [-1, 1] x [0, 1],    u(x, 0) = -sin(pi x),    u(-1, t) = u(1, t) = 0

    Solved by Cole (1951) and Hopf (1950): with F(y) = exp(-cos(pi y) / (2 pi nu)) and y = x - sqrt(4 nu t) s,

        u(x, t) = -int sin(pi y) F(y) exp(-s^2) ds / int F(y) exp(-s^2) ds,

    by Gauss and Hermite's rule (Basdevant et al., Computers & Fluids 14, 1986, eq. 5).

    Attributes:
        viscosity: nu from 0.003 to 0.5, where the rule is right to 1e-10 on the whole box; above, its nodes lie too far
            apart for F, and it is 1e-10 off at 0.6 and 1e-8 at 1.
    """

    name = "burgers"
    box = ((-1.0, 1.0), (0.0, 1.0))

    viscosity: float = 0.1

    def __post_init__(self) -> None:
        remedy = "Use 0.1: the solution is known to 1e-10 in this range alone."
        check_number("viscosity", self.viscosity, low=0.003, high=0.5, remedy=remedy)

    def residual(self, u: Field, z: Float[Array, " coordinate"]) -> Float[Array, ""]:
        """u_t + u u_x - nu u_xx."""
        u_x = _along(u, 0)
        return _along(u, 1)(z) + u(z) * u_x(z) - self.viscosity * _along(u_x, 0)(z)

    def boundary(self, *counts: int) -> tuple[np.ndarray, np.ndarray]:
        """The initial sine, then both sides at later times."""
        z = self.grid(*counts)
        start = z[z[:, 1] == 0]
        sides = z[(np.abs(z[:, 0]) == 1) & (z[:, 1] > 0)]
        values = np.concatenate([-np.sin(np.pi * start[:, 0]), np.zeros(len(sides))])
        return np.concatenate([start, sides]), values

    def solution(self, z: np.ndarray) -> np.ndarray:
        """Cole and Hopf's quotient of integrals."""
        nodes, weights = np.polynomial.hermite.hermgauss(200)
        y = z[:, :1] - np.sqrt(4 * self.viscosity * z[:, 1:]) * nodes
        exponent = -np.cos(np.pi * y) / (2 * np.pi * self.viscosity)
        F = weights * np.exp(
            exponent - exponent.max(1, keepdims=True)
        )  # either integral alone would overflow
        return -np.sum(np.sin(np.pi * y) * F, 1) / np.sum(F, 1)


def _along(u: Field, coordinate: int) -> Field:
    """The partial derivative of u by one coordinate, itself a field."""

    def derivative(z: Array) -> Array:
        return jax.jvp(u, (z,), (jnp.zeros_like(z).at[coordinate].set(1),))[1]

    return derivative
