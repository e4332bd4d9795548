"""Labels from a random network: a generated task as hard as one makes the teacher."""

import math
from dataclasses import dataclass

import numpy as np

from train.tasks._task import Data, Task, check_number, check_positive_integer

_CALIBRATION_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class TeacherStudent(Task):
    """Learns the labels that a random network (the teacher) gives to Gaussian inputs.

        x ~ N(0, I_d),    h_0 = x,    h_l = f(sigma_w W_l h_{l-1} / sqrt(n_{l-1})),  l = 1..depth
        g = V h_depth / sqrt(width),    y = argmax_k (g_k - m_k) / s_k

    The entries of W_l and V are N(0, 1). m and s, the mean and the standard deviation of g over 4,096 inputs
    of their own, make the classes about equally frequent. E x^2 = 1, as it stands. A larger `sigma_w` or
    `depth` makes the teacher's decision regions smaller and the task harder.

    With probability `label_noise` a TRAINING label is replaced by one drawn uniformly from all K classes;
    test labels stay the teacher's. So the test accuracy measures agreement with the teacher, with ceiling 1,
    while a student that has found the teacher fits 1 - label_noise (K - 1) / K of the training labels in
    expectation.

    Attributes:
        num_train: training rows; the first n rows are the same for every larger value.
        num_test: test rows.
        num_classes: K.
        dimension: d, the length of an input.
        width: of the teacher's hidden layers.
        depth: the teacher's number of hidden layers.
        activation: the teacher's f, any text that `jaxact.activations.parse` reads.
        sigma_w: the standard deviation of sqrt(n_{l-1}) times a hidden weight.
        label_noise: the share of training labels that are redrawn.
        seed: of the teacher and of every draw.
    """

    name = "teacher_student"

    num_train: int = 8192
    num_test: int = 2048
    num_classes: int = 10
    dimension: int = 32
    width: int = 64
    depth: int = 2
    activation: str = "tanh"
    sigma_w: float = 1.5
    label_noise: float = 0.0
    seed: int = 0

    @property
    def input_shape(self) -> tuple[int]:
        """A vector."""
        return (self.dimension,)

    def check(self) -> None:
        """Refuses fields outside of their range and activations that do not parse."""
        from jaxact import activations

        for name in ("num_train", "num_test", "dimension", "width", "depth"):
            check_positive_integer(name, getattr(self, name))
        check_positive_integer("num_classes", self.num_classes, least=2)
        check_number("sigma_w", self.sigma_w, low=0, open_low=True)
        check_number("label_noise", self.label_noise, low=0, high=1)
        check_positive_integer("seed", self.seed, least=0)
        if not isinstance(self.activation, str):
            raise ValueError(f"`activation` must be text such as 'tanh', got {self.activation!r}.")
        activations.parse(self.activation)

    def build(self) -> Data:
        """Draws the teacher, then the two sets, each from a stream of its own."""
        weights = self._weights()
        calibration = self._logits(weights, self._inputs(1, _CALIBRATION_ROWS))
        mean, deviation = calibration.mean(axis=0), calibration.std(axis=0)
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation > 0).all()):
            raise ValueError(
                f"task {self}: the teacher's outputs are constant or not finite (standard deviations from "
                f"{deviation.min():.3g} to {deviation.max():.3g}). Change `sigma_w`, `depth` or `activation`."
            )

        def labelled(stream: int, number: int) -> tuple[np.ndarray, np.ndarray]:
            inputs = self._inputs(stream, number)
            scores = (self._logits(weights, inputs) - mean) / deviation
            return inputs.astype(np.float32), scores.argmax(axis=1).astype(np.int32)

        train_inputs, train_labels = labelled(2, self.num_train)
        test_inputs, test_labels = labelled(3, self.num_test)
        redrawn = np.random.default_rng([self.seed, 4]).random(self.num_train) < self.label_noise
        uniform = np.random.default_rng([self.seed, 5]).integers(self.num_classes, size=self.num_train)
        return Data(
            train_inputs=train_inputs,
            train_labels=np.where(redrawn, uniform, train_labels).astype(np.int32),
            test_inputs=test_inputs,
            test_labels=test_labels,
            num_classes=self.num_classes,
            name=str(self),
            accuracy_ceiling=1.0,
        )

    def _inputs(self, stream: int, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, stream]).standard_normal((number, self.dimension))

    def _weights(self) -> list[np.ndarray]:
        """Kernels [in, out] at their final scale: the hidden ones, then the readout."""
        rng = np.random.default_rng([self.seed, 0])
        sizes = (self.dimension, *(self.width,) * self.depth, self.num_classes)
        gains = (*(self.sigma_w,) * self.depth, 1.0)
        return [
            rng.standard_normal((fan_in, fan_out)) * (gain / math.sqrt(fan_in))
            for fan_in, fan_out, gain in zip(sizes[:-1], sizes[1:], gains, strict=True)
        ]

    def _logits(self, weights: list[np.ndarray], inputs: np.ndarray) -> np.ndarray:
        from jaxact import activations

        f = activations.parse(self.activation)
        hidden = inputs
        # Products in NumPy's float64: a GPU's default (TF32) would change labels near a decision boundary.
        for weight in weights[:-1]:
            hidden = np.asarray(f((hidden @ weight).astype(np.float32)), np.float64)
        return hidden @ weights[-1]
