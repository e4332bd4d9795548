"""Fashion-MNIST, from the IDX files on this machine."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.tasks._files import find, places
from train.tasks._idx import read_idx
from train.tasks._task import Data, DataError, Task, standardize, subset

_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_REMEDY = (
    "Get the files with `apt-get install dataset-fashion-mnist` (Debian, Ubuntu), or put the four IDX files "
    f"({', '.join(_NAMES)}; plain or .gz) into one folder and set JAXACT_DATA to it."
)


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(Task):
    """60,000 + 10,000 pictures of clothing, 28 x 28 pixels of 256 grey levels, in 10 classes.

    Looked for under $JAXACT_DATA (its folder fashion-mnist, then itself), ~/data/fashion-mnist and
    /usr/share/datasets/fashion-mnist, the first folder that has all four files, plain or .gz, whether a file's
    format follows a hyphen or a dot (train-images.idx3-ubyte), in capitals or not. Inputs are standardised by
    one mean and one standard deviation, taken over all pixels of the training rows in use.

    Source: H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747 (2017).
    """

    name = "fashion_mnist"
    available = (60_000, 10_000)
    input_shape = (28, 28, 1)

    def build(self) -> Data:
        """Finds, reads, checks and standardises the files."""
        folders = places("fashion-mnist", "~/data/fashion-mnist", "/usr/share/datasets/fashion-mnist")
        paths = find("Fashion-MNIST", [_spellings(name) for name in _NAMES], folders, _REMEDY)
        train_pixels, train_labels = self._pair(paths[0], paths[1], "num_train", self.num_train)
        test_pixels, test_labels = self._pair(paths[2], paths[3], "num_test", self.num_test)
        train_inputs, test_inputs = standardize(train_pixels, test_pixels)
        return Data(
            train_inputs=train_inputs,
            train_labels=train_labels,
            test_inputs=test_inputs,
            test_labels=test_labels,
            num_classes=10,
            name=str(self),
        )

    @staticmethod
    def _pair(
        images_path: Path, labels_path: Path, field: str, number: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        images = read_idx(images_path, (None, 28, 28), _REMEDY)
        labels = read_idx(labels_path, (None,), _REMEDY)
        if len(images) != len(labels):
            raise DataError(
                f"{images_path} and {labels_path} must be of equal length, "
                f"got {len(images)} images and {len(labels)} labels. {_REMEDY}"
            )
        if labels.max() > 9:
            raise DataError(f"{labels_path} must hold labels from 0 to 9, got {labels.max()}. {_REMEDY}")
        return subset(field, images[..., None], labels, number)


def _spellings(name: str) -> tuple[str, ...]:
    """The names under which a file is handed on: its format after a hyphen or a dot, compressed or not."""
    dotted = name.replace("-idx", ".idx")
    return name, f"{name}.gz", dotted, f"{dotted}.gz"
