"""CIFAR-10, from its binary batches on this machine."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.tasks._files import find, places
from train.tasks._task import Data, DataError, Task, standardize, subset

_TRAIN = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
_TEST = "test_batch.bin"
_RECORDS = 10_000
_RECORD_BYTES = 1 + 3 * 32 * 32
_REMEDY = (
    'Get the "CIFAR-10 binary version" archive (https://www.cs.toronto.edu/~kriz/cifar.html), unpack it, and '
    "set JAXACT_DATA to the folder that holds cifar-10-batches-bin."
)


@dataclass(frozen=True, kw_only=True)
class Cifar10(Task):
    """50,000 + 10,000 colour pictures, 32 x 32 x 3 (height, width, channel), 256 levels, in 10 classes.

    Looked for under $JAXACT_DATA (its folder cifar-10-batches-bin, then itself) and
    ~/data/cifar-10-batches-bin. Inputs are standardised by one mean and one standard deviation a colour
    channel, taken over the training rows in use.

    Source: A. Krizhevsky, Learning multiple layers of features from tiny images (2009).
    """

    name = "cifar10"
    available = (50_000, 10_000)
    input_shape = (32, 32, 3)

    def build(self) -> Data:
        """Finds, reads, checks and standardises the batches."""
        folders = places("cifar-10-batches-bin", "~/data/cifar-10-batches-bin")
        *train, test = find("CIFAR-10", [(name,) for name in (*_TRAIN, _TEST)], folders, _REMEDY)
        train_pixels, train_labels = subset("num_train", *_read(train), self.num_train)
        test_pixels, test_labels = subset("num_test", *_read([test]), self.num_test)
        train_inputs, test_inputs = standardize(train_pixels, test_pixels, axis=(0, 1, 2))
        return Data(
            train_inputs=train_inputs,
            train_labels=train_labels,
            test_inputs=test_inputs,
            test_labels=test_labels,
            num_classes=10,
            name=str(self),
        )


def _read(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """The batches one after another: images `[n, 32, 32, 3]` and labels `[n]`, uint8.

    A record is one byte of label, then the red, the green and the blue plane, each row by row.
    """
    batches = []
    for path in paths:
        size, expected = path.stat().st_size, _RECORDS * _RECORD_BYTES
        if size != expected:
            fault = "is truncated" if size < expected else "is not a CIFAR-10 batch"
            raise DataError(f"{path} {fault}: it must have {expected} bytes, got {size}. {_REMEDY}")
        records = np.fromfile(path, np.uint8).reshape(_RECORDS, _RECORD_BYTES)
        if records[:, 0].max() > 9:
            raise DataError(f"{path} must hold labels from 0 to 9, got {records[:, 0].max()}. {_REMEDY}")
        batches.append(records)
    records = np.concatenate(batches)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0]
