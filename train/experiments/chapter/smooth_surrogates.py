"""Smooth surrogates: how near softplus comes to relu, what its second derivative buys, how often the kink is met."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from jaxact import fit
from jaxact.activations import relu, select, softplus
from train import probing
from train.blocks import network, preserving_sigma
from train.experiment import Cell, Progress
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.study import Coordinate, Variable
from train.tasks import Data
from train.trial import TrainingStudy, Trial, parts

# Relu with the other end of its slopes at the kink: a run that is equal never met it.
OTHER = replace(relu, name="relu (1 at 0)", derivative=lambda x: 1.0 * (x >= 0))
UNITS = (relu, OTHER, softplus(1.0), softplus(10.0))


@dataclass(frozen=True, kw_only=True)
class SmoothSurrogates(Claim, TrainingStudy):
    """Hold softplus against relu on a grid, in Gaussian means, and in networks that learn digits in float32.

    Attributes:
        betas: sharpness of softplus.
        depth: hidden layers.
        measure_every: steps between two counts of zeros.
    """

    betas: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
    learning_rate: float = 0.05
    width: int = 64
    depth: int = 4
    num_steps: int = 150
    measure_every: int = 5

    number = 1
    title = "Softplus is a smooth relu"
    says = (
        "Softplus is smooth and increasing, its slope is the logistic function, and it is never farther from relu than "
        "ln 2 / β. So it has the curvature that relu lacks. Relu's kink itself is met with probability 0."
    )
    formula = "f(x) = ln(1 + exp(βx)) / β, f′ = logistic(βx), f″(0) = β/4; sup |f − relu| = f(0) = ln 2 / β"
    practice = (
        "The kink is no reason against relu: the slope taken at 0 changes no bit of a trained network. But its second "
        "derivatives miss what crossings of 0 add, and filters on blank patches of an image sit at 0 until biases grow."
    )
    source = "Dugas et al. (2000), Incorporating second-order functional knowledge; Bertoin et al. (2021), ReLU'(0)"
    coordinates = {"beta": Coordinate("sharpness"), "unit": Coordinate("unit", labels=tuple(map(str, UNITS)))}
    variables = {
        "sup": Variable("largest distance of softplus from relu", ("beta",), theory="sup_theory"),
        "sup_theory": Variable("ln 2 / β", ("beta",)),
        "error": Variable("relative error of the second derivative along a step", ("unit", "seed")),
    }

    def numbers(self) -> dict[str, Number]:
        """Closed forms in float64, counts in float32 with its resolution; a curvature's error as third orders allow."""
        return {
            "gap_last": Number("sup |f − relu|, β = 100", 6.931472e-3, math.log(2) / 100, tolerance=1e-9),
            "gap": Number("largest |β sup |f − relu| / ln 2 − 1|, β = 1 to 100", 0.0, 0.0, tolerance=1e-9),
            "gap_at": Number("largest |x| at which the sup is attained", 0.0, 0.0, tolerance=1e-9),
            "slope": Number("largest |f′(x) − logistic(β x)|", 0.0, 0.0, tolerance=1e-9),
            "rise": Number("least f′(x) for |x| ≤ 5, above 0", 1e-300, relation="at_least"),
            "peak": Number("f″(0) / β, β = 100", 0.25, 0.25, tolerance=1e-9),
            "mean": Number("E f″(z), z ~ N(0, 1), β = 100", 0.3989, 0.3988767, tolerance=1e-4),
            "mean_relu": Number("E f″(z) of relu, autodiff", 0.3989, 0.3989423, tolerance=1e-4, core=False),
            "met": Number("share of relu's preactivations at 0 in training", 0.0, 0.0, tolerance=2.0**-23),
            "met_blank": Number("zeros of fresh filters on raw images", 0.0, 0.1280554, core=False),
            "changed": Number("largest change of a weight by the slope at 0", 0.0, 0.0),
            "error_smooth": Number("error of f″ along a step, β = 1", 0.0, tolerance=0.02),
            "error_relu": Number("log10 of the error of f″: relu over softplus", 0.0, relation="at_least"),
        }

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """On a grid, then in training: one activation after the other by one program."""
        data, runs = self.task.load(), []
        net = network(data.flat(), width=self.width, max_depth=self.depth, activation=relu)
        trial = self.trial(net, parts(data.flat()))
        count = trial.program(partial(_zeros, trial))
        error = trial.program(partial(probing.curvature_error, trial, step=3e-4))
        for place, f in enumerate(UNITS):
            setting = jnp.asarray(self.depth, jnp.int32), select(UNITS, place)
            begun = trial.start(*setting, sigma_w=preserving_sigma(f))
            training = trial.chunks(begun, *setting, look=trial.looking([count], setting))
            zeros = [chunk.measured["zeros"] for chunk in training]
            found = error(training.states, trial.data["train"], setting), training.states.params
            runs.append((*trial.host(found), zeros))
            progress((place + 1) / len(UNITS))
        errors, params, counts = zip(*runs, strict=True)
        changes = jax.tree.map(lambda a, b: np.abs(a - b).reshape(len(a), -1).max(1), *params[:2])
        return {
            **_on_grid(self.betas),
            "met": np.mean(counts[0], axis=0),
            "changed": np.max(jax.tree.leaves(changes), axis=0),
            "met_blank": jax.jit(jax.vmap(partial(_blank, data)))(trial.members.key),
            **{"error": errors, "error_smooth": errors[2], "error_relu": np.log10(errors[0] / errors[2])},
            "compile_seconds": trial.compile_seconds,
        }

    exercise = Exercise(
        task="Write `gap(beta)`: the largest distance of softplus, ln(1 + exp(beta x)) / beta, from max(x, 0). By "
        "symmetry x ≥ 0 will do: there it is ln(1 + exp(−beta x)) / beta.",
        function="gap",
        answer=lambda beta: math.log(2) / beta,
        inputs=((1.0,), (10.0,), (100.0,)),
        mistakes={"That is softplus at 0 for beta = 1: divide by beta.": lambda beta: math.log(2)},
        solution="import math\n\n\ndef gap(beta):\n    return math.log(2) / beta\n",
    )


def _on_grid(betas: tuple[float, ...]) -> dict[str, Any]:
    """Distance from relu and derivatives, in float64; relu, logistic function and Gaussian are numpy's and scipy's."""
    x = np.linspace(-5, 5, 20_001)
    with jax.enable_x64(True):
        value, slope = np.swapaxes([softplus(beta).value_and_slope(x) for beta in betas], 0, 1)
        second = [np.asarray(jax.vmap(jax.grad(jax.grad(f)))(x)) for f in (softplus(betas[-1]), relu)]
    apart, beta = np.abs(value - np.maximum(x, 0)), np.array(betas)
    sup, logistic = apart.max(1), special.expit(np.outer(beta, x))
    return {
        **{"beta": beta, "sup": sup, "sup_theory": math.log(2) / beta, "gap_last": sup[-1]},
        **{"gap": np.abs(sup * beta / math.log(2) - 1).max(), "gap_at": np.abs(x[apart.argmax(1)]).max()},
        **{"slope": np.abs(slope - logistic).max(), "rise": slope.min(), "peak": second[0].max() / beta[-1]},
        **dict(zip(("mean", "mean_relu"), np.trapezoid(second * stats.norm.pdf(x), x), strict=True)),
    }


def _zeros(trial: Trial, state: fit.State, data: Mapping[str, Any], setting: tuple) -> dict[str, jax.Array]:
    """The share of preactivations on the training set that are exactly 0."""
    layers = trial.output(state, data["train"][0], *setting, method="trace")
    return {"zeros": jnp.mean(layers.preactivation == 0)}


def _blank(data: Data, key: jax.Array) -> jax.Array:
    """The share of a fresh 3 x 3 layer's preactivations that are exactly 0, on pixels whose background is 0."""
    net = network(data, kind="conv", width=8, max_depth=1, activation=relu)
    pixels = data.train_inputs - data.train_inputs.min()
    z = net.apply(*net.init(key), pixels, method=lambda network, x: network.embed(x))[0]
    return jnp.mean(z == 0)
