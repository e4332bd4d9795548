"""Depth without a nonlinearity: linear stacks beside one linear map, and beside the same stacks with activations."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from sklearn.linear_model import LogisticRegression

from jaxact import activations
from jaxact.activations import Activation, select
from train import blocks
from train.experiments.chapter.claim import Claim, Number
from train.experiments.chapter.exercise import Exercise
from train.study import Coordinate, Variable
from train.tasks import Data
from train.trial import TrainingStudy, first_crossing, parts

_CORNERS = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)
_CLASSES = np.array([0, 1, 1, 0], np.int32)


@dataclass(frozen=True, kw_only=True)
class LinearDepth(Claim, TrainingStudy):
    """Collapse linear stacks to one matrix; train them on XOR and digits beside the same stacks with activations.

    Attributes:
        activations: the first is the identity, the others what it is compared with.
        layers: linear layers of the stacks that are collapsed.
        depths: stages of the networks that are trained: shallow and deep.
        bottleneck: units of the narrowest layer.
    """

    activations: tuple[Activation, ...] = tuple(map(activations.parse, ("identity", "relu", "tanh", "gelu")))
    layers: int = 16
    depths: tuple[int, ...] = (1, 4)
    bottleneck: int = 5
    learning_rate: float = 0.05
    num_steps: int = 400
    measure_every: int = 10

    number = 15
    title = "Depth without nonlinearity is one linear map"
    says = (
        "A network of linear layers, however deep, computes a single linear map: without activation functions depth "
        "buys nothing, and XOR cannot be fitted."
    )
    formula = "W_L ... W_2 W_1 x = W x, rank W ≤ the smallest width"
    practice = (
        "Put a nonlinearity between any two weight matrices that are to be more than a factorised one. A linear stack "
        "is still another thing to train: its steps to an accuracy change with depth although its functions do not."
    )
    source = "Minsky and Papert (1969), Perceptrons; Saxe, McClelland and Ganguli (2014), Exact solutions"
    coordinates = {"problem": Coordinate("problem", labels=("XOR", "digits"))}
    variables = {
        "accuracy": Variable("accuracy, of digits on held-out ones", ("problem", "activation", "seed")),
    }

    def numbers(self) -> dict[str, Number]:
        found: dict[str, Number] = {
            "xor": Number("share of XOR right, linear stack", 0.75, 0.75, "at_most", tolerance=1e-6),
            "gap": Number("largest difference of a stack from its product", 0.0, 0.0, tolerance=1e-6),
            "rank": Number("rank of a stack with a narrow layer", self.bottleneck, self.bottleneck),
            "logistic": Number("digits: linear stack less logistic regression", 0.0, None, "at_most", 0.01),
        }
        for f in self.activations[1:]:
            found[f"xor_{f.name}"] = Number(f"share of XOR right, {f.name}", 1.0, 1.0, "at_least", 0.1)
            found[f"gain_{f.name}"] = Number(f"digits: {f.name} less linear", 0.0, None, "at_least")
        said = "steps to 90 % of digits, log10: deep linear stack over shallow"
        return found | {"steps": Number(said, chapter=0.0, tolerance=0.05, core=False)}

    def measure(self, cell, progress) -> dict[str, Any]:
        data = self.task.load().flat()
        halves: dict[str, Any] = {"train_inputs": _CORNERS, "train_labels": _CLASSES, "test_inputs": _CORNERS}
        corners = Data(**halves, test_labels=_CLASSES, num_classes=2, name="xor")
        xor, _ = self._trained(corners, self.depths[:1])
        progress(0.3, "digits")
        digits, steps = self._trained(data, self.depths)
        linear = LogisticRegression(max_iter=2000).fit(data.train_inputs, data.train_labels)
        score = linear.score(data.test_inputs, data.test_labels)
        gap, rank = _collapsed(self.layers, self.width, self.bottleneck)
        found = {"gap": gap, "rank": rank, "logistic": digits[0, 0] - score, "xor": xor[0, 0]}
        for place, f in enumerate(self.activations[1:], start=1):
            found |= {f"xor_{f.name}": xor[place, 0], f"gain_{f.name}": digits[place, 0] - digits[0, 0]}
        found |= {
            "steps": np.log10(steps[0, -1] / steps[0, 0]),
            "activation": [f.name for f in self.activations],
        }
        return found | {"accuracy": np.stack([xor[:, 0], digits[:, 0]])}

    def _trained(self, data: Data, depths: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Final test accuracy, and steps to 90 % training accuracy or the budget, [activation, depth, seed]."""
        sizes: dict[str, Any] = {"width": self.width, "max_depth": max(self.depths)}
        network = blocks.network(data, **sizes, activation=self.activations[0])
        trial = self.trial(network, parts(data), evaluate={"train": "train_part", "test": "test"})
        accuracy, steps = (np.zeros((len(self.activations), len(depths), len(self.seeds))) for _ in range(2))
        for row, column in np.ndindex(accuracy.shape[:2]):
            setting = jnp.asarray(depths[column], jnp.int32), select(self.activations, row)
            sigma_w = blocks.preserving_sigma(self.activations[row])
            states = trial.start(*setting, sigma_w=jnp.float32(sigma_w))
            _, found = trial.train(states, *setting)
            accuracy[row, column] = found["test_accuracy"][:, -1]
            crossed = first_crossing(found["train_accuracy"], self.steps(), 0.9)
            steps[row, column] = np.nan_to_num(crossed, nan=self.num_steps)
        return accuracy, steps

    def smoke(self) -> LinearDepth:
        return replace(super().smoke(), num_steps=60, depths=(1, 2), activations=self.activations[:3])

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        said = {"title": "What does a stack fit with each activation?", "format": ".0%", "choices": {}}
        return {"accuracy": cls.figure(result, "accuracy", x="activation", series="problem", **said)}

    exercise = Exercise(
        task="Write `collapse(first, second)`: the matrix that does what two linear layers do, `first` applied first.",
        function="collapse",
        answer=lambda first, second: np.array(second) @ first,
        inputs=(([[1, 2], [3, 4]], [[0, 1], [1, 1]]), ([[1, 0], [2, 3]], [[1, 1], [0, 2]])),
        mistakes={"What is applied last stands at the left.": lambda first, second: np.array(first) @ second},
        solution="import numpy as np\n\ndef collapse(first, second):\n    return np.array(second) @ np.array(first)\n",
    )


def _collapsed(layers: int, width: int, bottleneck: int) -> tuple[float, int]:
    """How far a stack's outputs are from its product's, and their rank, behind a narrow layer; float64."""
    rng = np.random.default_rng(0)
    widths = [width] * (layers + 1)
    widths[layers // 2] = bottleneck
    stack = [rng.normal(size=(n, m)) / m**0.5 for m, n in itertools.pairwise(widths)]
    inputs = rng.normal(size=(width, 100))
    with jax.enable_x64(True):
        outputs = jnp.asarray(inputs)
        for matrix in stack:
            outputs = jnp.asarray(matrix) @ activations.identity(outputs)
    product = np.linalg.multi_dot(stack[::-1])
    gap = np.abs(np.asarray(outputs) - product @ inputs).max()
    return float(gap), int(np.linalg.matrix_rank(np.asarray(outputs)))
