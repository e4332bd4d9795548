"""A study on a device that holds so many members side by side and no more: a config file, and a module of tests."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar
from unittest import mock

import jax
from flax import nnx

from jaxact import nn
from jaxact.activations import Activation, tanh
from train import blocks
from train.programs import Program
from train.study import Variable
from train.tasks import GaussianMixture
from train.trial import TrainingStudy, parts


@dataclass(frozen=True, kw_only=True)
class Hungry(TrainingStudy):
    """Train small networks.

    Attributes:
        block: of the networks.
        kind: "linear", which is quick to compile, "dense" or "conv".
        most: members of a training program that the device holds; more run out of memory.
        after: chunks that go well before.
    """

    swept: ClassVar = {"depth": "depths"}
    within: ClassVar = {"seed": "seeds"}
    variables: ClassVar = {
        "loss": Variable("loss", ("seed", "step")),
        "accuracy": Variable("accuracy", ("seed", "step")),
        "total": Variable("sum of squares of the weights", ("seed",)),
    }
    task: GaussianMixture = GaussianMixture(num_classes=3, dimension=4, num_train=64, num_test=50)
    activations: tuple[Activation, ...] = (tanh,)
    block: str = "pre_activation"
    kind: str = "linear"
    depths: tuple[int, ...] = (2, 3)
    learning_rate: float = 0.05
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    width: int = 8
    batch_size: int = 8
    num_steps: int = 12
    measure_every: int = 3
    most: int = 99
    after: int = 0

    def measure(self, cell, progress):
        data, f = self.task.load(), self.activations[0]
        if self.kind == "linear":
            net, setting = nn.functional(partial(nnx.Linear, 4, 3)), ()
        else:
            data, sizes = (
                blocks.inputs_for(self.kind, data),
                {"width": self.width, "max_depth": max(self.depths)},
            )
            net = blocks.network(data, self.block, kind=self.kind, activation=f, **sizes)
            setting = self.setting(cell._replace(coords={**cell.coords, "activation": f}))
        with mock.patch.object(Program, "_run", self._limited()):
            trial = self.trial(net, parts(data), evaluate={"test": "test"})
            states, curves = trial.train(trial.start(*setting), *setting, progress=progress)
            total = trial.program(
                lambda state: sum((leaf**2).sum() for leaf in jax.tree.leaves(state.params))
            )
            return {
                "loss": curves["batch_loss"],
                "accuracy": curves["test_accuracy"],
                "total": trial.host(total(states)),
                "step": self.steps(),
            }

    def _limited(self):
        run, calls = Program._run, iter(range(10**6))

        def limited(program, args):
            result = run(program, args)  # what is donated is gone
            if program.at_once > self.most and program.name == "trained" and next(calls) >= self.after:
                raise jax.errors.JaxRuntimeError(
                    "RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes."
                )
            return result

        return limited

    @classmethod
    def figures(cls, result):
        return {}


def get_config():
    return Hungry()
