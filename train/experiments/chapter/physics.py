"""Physics: which activations let a network solve a differential equation of second order by its residual alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from jaxact import fit, nn
from jaxact.activations import Activation, gelu, relu, select, silu, sin, softplus, tanh
from train.experiment import Cell, Progress
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.study import Coordinate, Variable
from train.tasks import Burgers, Equation, Poisson

SOLVED = math.log10(0.05)  # of the relative error below which an equation counts as solved


class Problem(NamedTuple):
    """What a network is trained on.

    Attributes:
        equation: whose residual.
        num_points: where the residual is taken.
        counts: points along every coordinate, of the grid on whose border the boundary data lie.
        weight: of a boundary error beside a residual, as it enters the square.
    """

    equation: Equation
    num_points: int
    counts: tuple[int, ...]
    weight: float


@dataclass(frozen=True, kw_only=True)
class Physics(Claim):
    """Train physics-informed networks, every activation by the same program, and compare with the true solutions.

    The loss is the mean square of residuals at scattered points plus that of weighted boundary errors (Raissi et al.
    2019), descended by Levenberg and Marquardt in float32, all seeds side by side. Networks are `jaxact.nn.MLP`.

    Attributes:
        problems: the equations, Poisson's first.
        activations: those that are compared, relu last.
        width: units of every hidden layer.
        depth: hidden layers that are activated before the last activation.
        num_steps: of the descent.
    """

    problems: tuple[Problem, ...] = (
        Problem(Poisson(), 42, (42,), 1.0),
        Problem(Burgers(), 256, (24, 16), 10.0),
    )
    activations: tuple[Activation, ...] = (tanh, sin, silu, gelu, softplus(), relu)
    width: int = 12
    depth: int = 2
    num_steps: int = 160

    number = 13
    title = "A physics-informed network needs a second derivative"
    says = (
        "A network can be trained on the residual of a differential equation instead of data. For second order the "
        "activation must be smooth: tanh, sin, silu, gelu and softplus solve it. Relu fails, since f″ = 0."
    )
    formula = (
        "min over θ of mean |N[u_θ]|² + w² mean |u_θ − g|², N with u_xx; of relu u_xx = 0 almost everywhere"
    )
    practice = (
        "Take a smooth activation wherever the loss differentiates the network twice; which one costs a digit or so. "
        "Relu meets the boundary and solves another equation, the one without its second derivative."
    )
    source = "Raissi, Perdikaris & Karniadakis (2019), Physics-informed neural networks, eqs. (2) to (4)"
    coordinates = {
        "equation": Coordinate("equation"),
        "unit": Coordinate("activation"),
        "x": Coordinate("x"),
    }
    variables = {
        "digits": Variable("correct digits, −log10 of the relative L2 error", ("equation", "unit", "seed")),
        "loss": Variable("mean square residual and boundary error at the end", ("equation", "unit", "seed")),
        "u": Variable("solution of Poisson's equation, first seed", ("unit", "x"), theory="u_true"),
        "u_true": Variable("true solution", ("x",)),
    }

    def numbers(self) -> dict[str, Number]:
        """An error of 5 % separates what is solved; relu's curvature and residual are those of any of its networks."""
        numbers = {}
        for name, (problem, f) in self._rows().items():
            said = f"log10 of the relative L2 error, {problem.equation.name}, {f.name}"
            numbers[name] = Number(said, SOLVED, relation="at_least" if f is relu else "at_most")
        return numbers | {
            "relu_curvature": Number("largest |u_xx| of relu's networks", 0.0, 0.0),
            "relu_residual": Number(
                "mean square Poisson residual of relu's network over that of u = 0", 1.0, 1.0, tolerance=1e-5
            ),
        }

    def _rows(self) -> dict[str, tuple[Problem, Activation]]:
        pairs = itertools.product(self.problems, self.activations)
        return {f"{problem.equation.name}_{f.name}": (problem, f) for problem, f in pairs}

    def smoke(self) -> Self:
        """One equation and two activations: what costs time is to compile them."""
        return self.shrunk(
            problems=self.problems[:1], activations=(self.activations[0], relu), width=8, num_steps=20
        )

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """Train on one equation after the other."""
        found = []
        for place, problem in enumerate(self.problems):
            found.append(self._solved(problem))
            progress((place + 1) / len(self.problems))
        error, loss = (np.stack([each[name] for each in found]) for name in ("error", "loss"))
        poisson, x = found[0], _test_points(self.problems[0])
        return {
            **dict(zip(self._rows(), np.log10(error).reshape(-1, len(self.seeds)), strict=True)),
            "relu_curvature": np.max([each["relu_curvature"] for each in found], axis=0),
            "relu_residual": poisson["relu_residual"] / _force(self.problems[0]),
            **{"digits": -np.log10(error), "loss": loss},
            **{
                "equation": [each.equation.name for each in self.problems],
                "unit": list(map(str, self.activations)),
            },
            **{"u": poisson["u"][:, 0], "x": x[:, 0], "u_true": self.problems[0].equation.solution(x)},
        }

    def _solved(self, problem: Problem) -> dict[str, np.ndarray]:
        """Train every activation from every seed on one equation; [unit, seed, ...], of relu [seed]."""
        test = _test_points(problem)
        sizes = len(problem.counts), self.width, 1
        network = nn.functional(partial(nn.MLP, *sizes, max_depth=self.depth, activation=relu))
        weights, variables = network.init(jax.random.key(0))
        unravel = ravel_pytree(weights)[1]

        def u(f: Any, params: Array, z: Array) -> Array:
            return network.apply(unravel(params), variables, z, None, f)[0][0]

        def one(key: Array, index: Array) -> tuple[Array, ...]:
            start, own = ravel_pytree(network.init(key)[0])[0], partial(u, select(self.activations, index))
            found = fit.least_squares(partial(_linearized, problem, own), start, num_steps=self.num_steps)
            return (
                found.params,
                found.residual,
                jax.vmap(partial(own, found.params))(jnp.asarray(test, float)),
            )

        keys = jax.vmap(jax.random.key)(jnp.asarray(self.seeds))
        every = jax.jit(
            lambda indices: jax.lax.map(lambda i: jax.vmap(lambda key: one(key, i))(keys), indices)
        )
        params, residual, values = every(jnp.arange(len(self.activations)))
        true = problem.equation.solution(test)
        seen = partial(_curvature, partial(u, relu), test)
        return {
            "u": np.asarray(values),
            "error": np.sqrt(np.mean((values - true) ** 2, -1) / np.mean(true**2)),
            "loss": np.sum(np.square(residual), -1),
            "relu_curvature": np.asarray(jax.jit(jax.vmap(seen))(params[-1])),
            "relu_residual": np.sum(np.square(residual[-1, :, : problem.num_points]), -1),
        }

    @classmethod
    def figures(cls, result: xr.Dataset) -> Mapping[str, Any]:
        """How far each is off, and what it takes for the solution."""
        off = "Relu has no digit right of Poisson's equation, for no training lowers its residual."
        taken = "Relu's network meets both ends and knows nothing of the force between them."
        bars: dict[str, Any] = {"mark": "bars", "x": "unit", "column": "equation", "choices": {}}
        return {
            "digits": cls.figure(result, "digits", **bars, series=None, caption=off),
            "solutions": cls.figure(result, "u", series="unit", choices={}, caption=taken),
        }

    exercise = Exercise(
        task="Write `residual(f, x, h)`: u″ + sin x for u = f at x, with the second derivative by central differences, "
        "(f(x + h) − 2 f(x) + f(x − h)) / h². Then try f = sin, which solves u″ + sin x = 0, and relu, whose residual "
        "is sin x wherever no kink is near: no bend of relu answers the force.",
        function="residual",
        answer=lambda f, x, h: (f(x + h) - 2 * f(x) + f(x - h)) / h**2 + np.sin(x),
        inputs=((np.sin, 1.0, 1e-2), (lambda x: np.maximum(x, 0.0), 1.0, 1e-2), (np.square, 0.5, 1e-2)),
        mistakes={
            "That divides by h once: a second difference has h squared.": lambda f, x, h: (
                (f(x + h) - 2 * f(x) + f(x - h)) / h + np.sin(x)
            ),
            "The force has the other sign: u″ + sin x.": lambda f, x, h: (
                (f(x + h) - 2 * f(x) + f(x - h)) / h**2 - np.sin(x)
            ),
        },
        atol=1e-8,  # a second difference rounds to 1e-16 / h^2
        solution="""import numpy as np


def residual(f, x, h):
    return (f(x + h) - 2 * f(x) + f(x - h)) / h**2 + np.sin(x)
""",
    )


def _test_points(problem: Problem) -> np.ndarray:
    """A grid of odd size, whose points those of training are not."""
    return problem.equation.grid(*(2 * count + 1 for count in problem.counts))


def _linearized(problem: Problem, u: Any, params: Array) -> tuple[Array, Array]:
    """Residuals and boundary errors, each divided by the root of how many there are, and their Jacobian."""
    inside = jnp.asarray(problem.equation.scattered(problem.num_points), params.dtype)
    edge, values = (jnp.asarray(each, params.dtype) for each in problem.equation.boundary(*problem.counts))

    def residual(params: Array, z: Array) -> Array:
        return problem.equation.residual(partial(u, params), z) / np.sqrt(len(inside))

    def miss(params: Array, z: Array, value: Array) -> Array:
        return problem.weight * (u(params, z) - value) / np.sqrt(len(edge))

    rows = jax.vmap(lambda z: jax.value_and_grad(residual)(params, z))(inside)
    more = jax.vmap(lambda z, value: jax.value_and_grad(miss)(params, z, value))(edge, values)
    return jnp.concatenate([rows[0], more[0]]), jnp.concatenate([rows[1], more[1]])


def _curvature(u: Any, test: np.ndarray, params: Array) -> Array:
    """Largest |u_xx| at the test points, x the first coordinate."""
    points = jnp.asarray(test, params.dtype)
    unit = jnp.zeros(points.shape[1]).at[0].set(1)

    def slope(z: Array) -> Array:
        return jax.jvp(partial(u, params), (z,), (unit,))[1]

    return jnp.max(jnp.abs(jax.vmap(lambda z: jax.jvp(slope, (z,), (unit,))[1])(points)))


def _force(problem: Problem) -> float:
    """The mean square residual of u = 0 at the points of training."""
    inside = jnp.asarray(problem.equation.scattered(problem.num_points), float)
    return float(jnp.mean(jax.vmap(lambda z: problem.equation.residual(lambda z: 0 * z[0], z))(inside) ** 2))
