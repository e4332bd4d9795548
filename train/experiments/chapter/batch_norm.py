"""Batch norm: what scaling and flipping the weights before it changes, in values, gradients and training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy import stats

from jaxact import activations, fit
from train import blocks, probing
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.optimizers import Optimizer, Sgd
from train.study import Coordinate, Variable
from train.trial import TrainingStudy, Trial, cross_entropy, parts

_LIMIT = math.pi / (math.pi - 1)  # of relu in large batches: E f'^2 / Var f
_EPSILON, _SMALL, _BATCH = 1e-5, 0.01, 256  # flax's epsilon, a c that feels it, a large batch
_FLIPS, _SHRUNK = ("flipped", "relu_flipped", "small"), (1 + _EPSILON / _SMALL**2) ** -0.5


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Claim, TrainingStudy):
    """Scale the weights of networks with batch norm, follow gradients through depth, train with and without decay.

    Attributes:
        depth: layers of the networks whose gradients are followed; those that are trained have two.
        weight_decay: of the second half of the networks.
        sigma_w: where training starts: weights small enough to settle within its steps.
    """

    optimizer: Optimizer = Sgd(momentum=0.0)
    learning_rate: float = 0.3
    weight_decay: float = 0.02
    sigma_w: float = 0.2
    width: int = 64
    depth: int = 20
    num_steps: int = 400
    batch_size: int = 32
    measure_every: int = 1

    number = 10
    title = "Batch norm frees weights of their scale"
    says = (
        "Behind batch norm the scale of weights does not count: y(cW) = y(W) up to ε, with the sign of c. Gradients "
        "scale as 1 / c and are orthogonal to W, so that steps shrink as W grows. Batch norm stabilises gradients."
    )
    formula = "y(cW) = sign(c) y(W),  ∇L(cW) = ∇L(W) / c,  ⟨W, ∇L⟩ = 0,  η_eff = η / ‖W‖²"
    practice = (
        "Weight decay before batch norm penalises nothing but sets the effective learning rate: the angle of a step "
        "settles at √(2ηλ). Without skips batch norm explodes gradients: relu's grow by √1.47 a layer."
    )
    source = "Ioffe and Szegedy (2015), section 3.3; van Laarhoven (2017), eq. (8); Yang et al. (2019), Mean field BN"
    coordinates = {"decay": Coordinate("weight decay")}
    variables = {
        "effective_rate": Variable("effective learning rate", ("decay", "seed", "step"), "log10"),
        "gradient": Variable("squared gradient", ("seed", "layer"), "log10", theory="exact_gradient"),
        "exact_gradient": Variable("squared gradient of a wide network", ("layer",), "log10"),
    }

    def numbers(self) -> dict[str, Number]:
        finer: dict[str, Any] = {"core": False, "tolerance": 0.05}
        still = partial(Number, chapter=0.0, exact=0.0, tolerance=1e-3)
        return {
            "outputs": still("c = 10: largest change of an output, 2 layers"),
            "outputs_deep": still(f"c = 10: largest change of an output, {self.depth} layers", core=False),
            "slope": Number("c = 10: c times the gradient over that at c = 1", 1.0, 1.0, tolerance=1e-3),
            "radial": still("cosine of W and its gradient"),
            "flipped": Number("c = -1: change of normalised units but for sign", 0.0, 0.0, tolerance=1e-5),
            "relu_flipped": Number("c = -1: relative change of relu's outputs", 0.0, 2**0.5, **finer),
            "small": Number("c = 0.01: size of normalised units", 1.0, _SHRUNK, tolerance=1e-3, core=False),
            "grown": Number("no decay: growth of ‖W‖² over the squares of steps", 1.0, 1.0, tolerance=0.02),
            "fading": Number("no decay: effective rate at the end over the start", 1.0, None, "at_most"),
            "angle": Number("decay: angle of a step over √(2ηλ)", 1.0, 1.0, tolerance=0.1),
            "growth": Number("growth of the squared gradient a layer", 1.0, _LIMIT, **finer),
            "predicted": Number("growth by mean-field theory", _LIMIT, _LIMIT, tolerance=0.05),
        }

    def measure(self, cell, progress) -> dict[str, Any]:
        data, decays = self.task.load().flat(), (0.0, self.weight_decay)
        batch = data.train_inputs[:_BATCH], data.train_labels[:_BATCH]
        sizes: dict[str, Any] = {"width": self.width, "activation": activations.relu}
        networks = (blocks.network(data, "plain-bn", max_depth=depth, **sizes) for depth in (2, self.depth))
        shallow, deep = (self.trial(each, parts(data), decay=decays, loss=_decayed) for each in networks)
        pairs = [probing.scaled(each, batch, self.seeds, (1.0, 10.0)) for each in (shallow, deep)]
        (one, ten), apart = pairs[0], [abs(b["logits"] - a["logits"]).max((1, 2)) for a, b in pairs]
        found = self._trained(shallow)
        found |= {name: each for name, *each in zip(_FLIPS, *map(_one_layer, self.seeds), strict=True)}
        norms = deep.program(lambda state, _: {"h": probing.gradient_norms(deep, state, batch, ())[1]})
        squares: Any = np.float64(deep.probed([norms], deep.start())["h"][: len(self.seeds)]) ** 2
        growth = (squares[:, :-1] / squares[:, 1:])[:, self.depth // 4 : -self.depth // 4].mean(1)
        return found | {
            **dict(zip(("outputs", "outputs_deep"), apart, strict=True)),
            "slope": 10 * ten["slope"] / one["slope"],
            "radial": one["radial"],
            **dict.fromkeys(("growth", "predicted"), growth),
            "decay": [f"{each:g}" for each in decays],
            "gradient": np.log10(squares / squares[:, -1:]),
            "exact_gradient": math.log10(_LIMIT) * np.arange(self.depth)[::-1],
        }

    def _trained(self, trial: Trial) -> dict[str, Any]:
        """What ||W||^2 and the steps of training say, with and without decay."""
        states = trial.start(sigma_w=jnp.float32(self.sigma_w))

        def look(states: fit.State, before: np.ndarray, _: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
            now = trial.host(probing.stage_kernels(states.params))
            return now, {"rows": np.stack([(each**2).sum((1, 2, 3)) for each in (now, now - before)])}

        before = trial.host(probing.stage_kernels(states.params))
        rows = [chunk.measured["rows"] for chunk in trial.chunks(states, look=look, carry=before)]
        size, moved = np.moveaxis(np.array(rows, float).reshape(self.num_steps, 2, 2, -1), 0, -1)
        settled = np.sqrt(np.divide(*(each[1, :, -self.num_steps // 4 :].sum(1) for each in (moved, size))))
        return {
            "grown": (size[0, :, -1] - size[0, :, 0]) / moved[0, :, 1:].sum(1),
            "fading": size[0, :, 0] / size[0, :, -1],
            "angle": settled / math.sqrt(2 * self.learning_rate * self.weight_decay),
            "effective_rate": np.log10(self.learning_rate / size[..., ::10]),
            "step": self.steps()[::10],
        }

    exercise = Exercise(
        task="Write `size(c, v, epsilon)`: the deviation, behind batch norm, of `c` times a unit of variance `v`.",
        function="size",
        answer=lambda c, v, epsilon: abs(c) * (v / (c**2 * v + epsilon)) ** 0.5,
        inputs=((1.0, 2.0, 1e-5), (0.01, 1.0, 1e-5), (-0.001, 4.0, 1e-5)),
        mistakes={"Small weights feel epsilon.": lambda c, v, epsilon: 1.0},
        solution="def size(c, v, epsilon):\n    return (c**2 * v / (c**2 * v + epsilon)) ** 0.5\n",
    )


def _decayed(logits: jnp.ndarray, labels: jnp.ndarray, *, hparams: Any, call: Any) -> jnp.ndarray:
    """Cross-entropy and the penalty whose gradient is the decay of the weights between the batch norms."""
    square = call(lambda network: jnp.sum(network.stack.stages.affine.kernel[...] ** 2))
    return cross_entropy(logits, labels) + hparams["decay"] / 2 * square


def _one_layer(seed: int) -> tuple[Any, ...]:
    """The numbers of batch norm on a batch of unit variance, on its negative and on a small multiple."""
    z = stats.zscore(np.random.default_rng(seed).normal(size=(256, 32)))
    norm = nnx.BatchNorm(32, use_running_average=False, rngs=nnx.Rngs(0))
    x, y, small = (np.asarray(norm(np.float32(c * z))) for c in (1.0, -1.0, _SMALL))
    f, g = (np.asarray(activations.relu(each)) for each in (x, y))
    return np.abs(x + y).max(), np.linalg.norm(f + g) / np.linalg.norm(f), small.std()
