"""scikit-learn's handwritten digits: the data set that needs no download."""

from dataclasses import dataclass

import numpy as np

from train.tasks._task import Data, Task, check_enough, standardize, stratified_order

_TEST_ROWS = 360
_SPLIT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Digits(Task):
    """1,797 handwritten digits, 8 x 8 pixels of 17 grey levels, in 10 classes; bundled with scikit-learn.

    The split is fixed: of the rows in stratified order (seed 0) the first 360 (20 %) are the test set and the
    other 1,437 the training set. Writers are not kept apart. Inputs are standardised by one mean and one
    standard deviation, taken over all pixels of the training rows in use.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), its test part.

    >>> data = Digits().load()
    >>> data.train_inputs.shape, data.test_inputs.shape
    ((1437, 8, 8, 1), (360, 8, 8, 1))
    """

    name = "digits"
    available = (1437, 360)
    input_shape = (8, 8, 1)

    def build(self) -> Data:
        """Reads scikit-learn's copy, splits and standardises it."""
        from sklearn.datasets import load_digits  # here: importing it costs seconds

        digits = load_digits()
        pixels, labels = digits.images.astype(np.uint8)[..., None], digits.target.astype(np.int32)
        check_enough("num_train", self.num_train, len(labels) - _TEST_ROWS, self.name)
        order = stratified_order(labels, _SPLIT_SEED)
        test, train = order[:_TEST_ROWS][: self.num_test], order[_TEST_ROWS:][: self.num_train]
        train_inputs, test_inputs = standardize(pixels[train], pixels[test])
        return Data(
            train_inputs=train_inputs,
            train_labels=labels[train],
            test_inputs=test_inputs,
            test_labels=labels[test],
            num_classes=10,
            name=str(self),
        )
