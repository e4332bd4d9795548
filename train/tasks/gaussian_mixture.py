"""A mixture of Gaussians with equidistant means: a generated task whose best possible accuracy is known."""

import math
from dataclasses import dataclass

import numpy as np

from train.tasks._task import Data, Task, check_number, check_positive_integer


@dataclass(frozen=True, kw_only=True)
class GaussianMixture(Task):
    """Tells K Gaussians of equal weight apart, whose means are `separation` standard deviations apart.

        y uniform in {0..K-1},    x = (mu_y + z) / s,    z ~ N(0, I_d),    |mu_j - mu_k| = separation

    The means are the corners of a regular simplex about the origin, turned at random (by `seed`); it needs
    d >= K - 1. s^2 = 1 + |mu|^2 / d makes E |x|^2 / d = 1 exactly. The best classifier is linear: this task
    tells how well a network keeps a simple signal through its depth, not how well it bends space (see
    `TeacherStudent`).

    Attributes:
        num_train: training rows; the first n rows are the same for every larger value.
        num_test: test rows.
        num_classes: K.
        dimension: d, the length of an input.
        separation: the distance of any two means in standard deviations of the noise.
        seed: of the means and of every draw.
    """

    name = "gaussian_mixture"

    num_train: int = 4096
    num_test: int = 2048
    num_classes: int = 10
    dimension: int = 64
    separation: float = 4.0
    seed: int = 0

    @property
    def input_shape(self) -> tuple[int]:
        """A vector."""
        return (self.dimension,)

    def check(self) -> None:
        """Refuses fields outside of their range."""
        check_positive_integer("num_train", self.num_train)
        check_positive_integer("num_test", self.num_test)
        check_positive_integer("num_classes", self.num_classes, least=2)
        check_positive_integer("dimension", self.dimension)
        check_number("separation", self.separation, low=0)
        check_positive_integer("seed", self.seed, least=0)
        if self.dimension < self.num_classes - 1:
            raise ValueError(
                f"`dimension` must be at least num_classes - 1 = {self.num_classes - 1}, "
                f"got {self.dimension}: so many points at equal distances do not fit. "
                "Use fewer classes or more dimensions."
            )

    def bayes_accuracy(self) -> float:
        """The accuracy of the best classifier, which takes the nearest mean, in expectation.

            P = E_z Phi(z + separation / sqrt(2))^(K - 1),    z ~ N(0, 1)

        (with means on K orthogonal axes, at equal distances too: class k wins when its coordinate exceeds the
        K - 1 others). Exact to about 1e-12: the trapezoid rule on a smooth integrand that vanishes at both
        ends.

        >>> round(GaussianMixture(num_classes=2, separation=2.0).bayes_accuracy(), 6)  # Phi(1)
        0.841345
        """
        shift = self.separation / math.sqrt(2.0)
        grid, step = np.linspace(-12.0, 12.0, 2401, retstep=True)
        density = np.exp(-0.5 * grid**2) / math.sqrt(2.0 * math.pi)
        wins = np.array([0.5 * math.erfc(-(z + shift) / math.sqrt(2.0)) for z in grid])
        return float(np.sum(density * wins ** (self.num_classes - 1)) * step)

    def build(self) -> Data:
        """Draws the means, then the two sets, each from a stream of its own."""
        means = _simplex(
            self.num_classes, self.dimension, self.separation, np.random.default_rng([self.seed, 0])
        )
        scale = math.sqrt(1.0 + np.sum(means[0] ** 2) / self.dimension)
        train_inputs, train_labels = self._draw(means / scale, 1 / scale, self.num_train, stream=1)
        test_inputs, test_labels = self._draw(means / scale, 1 / scale, self.num_test, stream=2)
        return Data(
            train_inputs=train_inputs,
            train_labels=train_labels,
            test_inputs=test_inputs,
            test_labels=test_labels,
            num_classes=self.num_classes,
            name=str(self),
            accuracy_ceiling=self.bayes_accuracy(),
        )

    def _draw(
        self, means: np.ndarray, noise: float, number: int, stream: int
    ) -> tuple[np.ndarray, np.ndarray]:
        # Labels and noise from two generators: then fewer rows are a prefix of more rows.
        labels = np.random.default_rng([self.seed, stream, 0]).integers(self.num_classes, size=number)
        z = np.random.default_rng([self.seed, stream, 1]).standard_normal((number, self.dimension))
        return (means[labels] + noise * z).astype(np.float32), labels.astype(np.int32)


def _simplex(num_points: int, dimension: int, edge: float, rng: np.random.Generator) -> np.ndarray:
    """Corners of a regular simplex about the origin, `[num_points, dimension]`, turned at random."""
    centred = np.eye(num_points) - 1.0 / num_points
    # The centred unit vectors span num_points - 1 dimensions: `corners` are their coordinates there.
    left, size, _ = np.linalg.svd(centred)
    corners = (left * size)[:, : num_points - 1] * (edge / math.sqrt(2.0))
    basis, upper = np.linalg.qr(rng.standard_normal((dimension, num_points - 1)))
    return corners @ (basis * np.sign(np.diag(upper))).T
