"""Pre- against post-activation: which skip paths stay open, what reaches the first block, and which order trains."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxact import activations, theory
from train import blocks, probing
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.study import Coordinate, Variable
from train.trial import TrainingStudy, Trial, parts

_ORDERS = ("pre_activation-bn", "post_activation-bn")
_SMALL = 0.05  # of the first state: little beside a branch, much beside the norm's epsilon


@dataclass(frozen=True, kw_only=True)
class ResidualOrder(Claim, TrainingStudy):
    """Look at residual networks of both orders at their start; train them at equal widths, depths, steps.

    Attributes:
        depths: blocks of the dense networks that are trained, the deepest first.
        conv_depths: blocks of the convolutional ones, of half the channels and batch.
        learning_rates: every order has the best of them at every depth, convolutions of three times as large ones.
        wide, num_blocks: units and blocks of the networks that are looked at before training.
    """

    depths: tuple[int, ...] = (512, 64, 8)
    conv_depths: tuple[int, ...] = (16, 4)
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    width: int = 16
    batch_size: int = 32
    num_steps: int = 100
    wide: int = 128
    num_blocks: int = 64

    number = 11
    title = "Pre-activation beats post-activation"
    says = "A relu on the skip path closes half of it: gradients fade. BN → relu → W inside the branch trains better."
    formula = "pre: h′ = h + W f(BN(h));  post: h′ = f(h + BN(W h));  P(open after n blocks) = C(2n, n) / 4ⁿ"
    practice = (
        "Take pre-activation where networks are deep, but not for the reason given: at the start both orders pass "
        "gradients alike, which grow as a power of depth. At few blocks it is worth trying both."
    )
    source = "He et al. (2016), Identity mappings; Sparre Andersen (1954); De and Smith (2020), Batch normalization"
    coordinates = {"order": Coordinate("order of the block", labels=_ORDERS)}
    called = {"order": blocks.block_name}
    variables = {
        "gradient": Variable("squared gradient by block", ("order", "seed", "block"), "log10", "theory"),
        "theory": Variable("squared gradient in a wide network", ("order", "block"), "log10"),
        "loss": Variable("cross-entropy after training, dense", ("order", "depth", "seed"), "nat"),
    }

    def numbers(self) -> dict[str, Number]:
        found, last = {}, self.num_blocks
        for kind, depths in (("dense", self.depths), ("conv", self.conv_depths)):
            for depth in depths:
                says, is_core = f"{kind}, {depth} blocks: loss of post less pre", depth == self.depths[0]
                found[f"{kind} {depth}"] = Number(says, 0.0, None, "at_least", core=is_core, units="nat")
        says = f"log10 of squared gradients, first over last of {last} blocks"
        pre, post = (float(each[0]) for each in _gradients(last))
        found["pre gradient"] = Number(f"pre: {says}", 0.0, pre, "at_least")
        found["post gradient"] = Number(f"post: {says}", 0.0, post, "at_most", core=False)
        law, said = math.comb(2 * last, last) / 4**last, "post: share of skip paths open after"
        found["open 1"] = Number(f"{said} 1 block", 0.5, 0.5, tolerance=0.02)
        found["open 8"] = Number(f"{said} 8 blocks", 0.5, math.comb(16, 8) / 4**8, tolerance=0.02, core=False)
        return found | {"open": Number(f"{said} {last} blocks: C(2n, n) / 4ⁿ", law, law, tolerance=0.01)}

    def measure(self, cell, progress) -> dict[str, Any]:
        (pre, _), (post, share) = (self._looked(order) for order in _ORDERS)
        dense = self._trained("dense", self.depths)
        progress(0.6, "conv")
        sizes: dict[str, Any] = {"width": self.width // 2, "batch_size": self.batch_size // 2}
        rates = tuple(3 * each for each in self.learning_rates)
        conv = replace(self, learning_rates=rates, **sizes)._trained("conv", self.conv_depths)
        gaps = np.concatenate([dense[1] - dense[0], conv[1] - conv[0]])
        return dict(zip(self.numbers(), gaps, strict=False)) | {  # with these the numbers begin
            "pre gradient": pre[:, 0],
            "post gradient": post[:, 0],
            **{"open 1": share[:, 0], "open 8": share[:, 7], "open": share[:, -1]},
            "gradient": [pre, post],
            "theory": _gradients(self.num_blocks),
            "loss": dense,
            "depth": [*self.depths],
        }

    def _trial(self, data: Any, order: str, depth: int, **sizes: Any) -> Trial:
        sizes |= {"max_depth": depth, "activation": activations.relu, "sigma_w": 2**0.5}
        return self.trial(blocks.network(data, order, **sizes), parts(data))

    def _looked(self, order: str) -> tuple[np.ndarray, ...]:
        """log10 of squared gradients by block, and shares of open skip paths, at initialisation, one row a seed."""
        data = self.task.load().flat()
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2 * self.wide, *data.input_shape)), jnp.float32)
        trial = replace(self, learning_rates=(1.0,))._trial(data, order, self.num_blocks, width=self.wide)

        def look(state: Any, data: Any) -> dict[str, Any]:
            u = trial.output(state, _SMALL * x, method="trace", training=True).preactivation
            slopes = probing.gradient_norms(trial, state, (x, data["train"][1][: len(x)]), ())[1]
            return {"slopes": 2 * jnp.log10(slopes / slopes[-1]), "open": jnp.cumprod(u > 0, 0).mean((1, 2))}

        found = trial.probed([trial.program(look)], trial.start())
        return found["slopes"], found["open"]

    def _trained(self, kind: str, depths: tuple[int, ...]) -> np.ndarray:
        """Loss over the last fifth of the steps, at the best rate, [order, depth, seed]; one compile an order."""
        data, found = blocks.inputs_for(kind, self.task.load()), []
        for order in _ORDERS:
            trial = self._trial(data, order, max(depths, default=1), kind=kind, width=self.width)
            for depth in map(jnp.int32, depths):
                (chunk,) = trial.chunks(trial.start(depth), depth)
                late = chunk.loss[:, -self.num_steps // 5 :].mean(-1).reshape(-1, len(self.seeds))
                found.append(min(np.fmin(late, math.log(10)), key=np.mean))  # NaN or worse counts as a guess
        return np.reshape(found, (2, len(depths), len(self.seeds)))

    def smoke(self) -> ResidualOrder:
        return replace(super().smoke(), depths=(8, 2), conv_depths=(), learning_rates=(0.03,), wide=32)

    def full(self) -> ResidualOrder:
        return replace(self, depths=(512, 256, 128, 64, 32, 16, 8), conv_depths=(128, 32, 8), num_steps=400)

    @classmethod
    def figures(cls, result: Any) -> dict[str, Any]:
        return {name: cls.figure(result, name, series="order", choices={}) for name in ("gradient", "loss")}

    exercise = Exercise(
        task="Write `still_open(n)`: the share of post-activation skip paths, from state 0, open after n relu blocks.",
        function="still_open",
        answer=lambda n: math.comb(2 * n, n) / 4**n,
        inputs=((1,), (2,), (10,), (100,)),
        mistakes={
            "That holds for the first block alone.": lambda n: 0.5,
            "What was open is high above 0: blocks depend on each other.": lambda n: 0.5**n,
        },
        solution="import math\n\ndef still_open(n):\n    return math.comb(2 * n, n) / 4**n\n",
    )


@functools.cache
def _gradients(num_blocks: int) -> tuple[np.ndarray, ...]:
    """log10 of the squared gradient after every block over the last one's, by mean-field theory, of both orders."""
    of = functools.partial(theory.residual_trajectory, activations.relu, num_blocks, norm="batch")
    return tuple(np.log10(of(order=order, sigma_w=2**0.5).gradient[1:]) for order in ("pre", "post"))
