"""What a task is: a frozen description of a classification problem that can fetch its own arrays."""

import abc
import functools
import math
import os
from collections.abc import Hashable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import jax
import numpy as np
from jaxtyping import Float32, Int32

Shape = tuple[int, ...]


class DataError(ValueError):
    """A data file is damaged or is not what it should be; the message names it and says what to do."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, kw_only=True)
class Data:
    """A classification problem as arrays: standardised inputs beside integer labels.

    Inputs are scaled so that the mean over the training set and over input features of x^2 is one. A first
    layer with weights of variance sigma_w^2 / n then starts the theory's recursion at q_0 = sigma_w^2 +
    sigma_b^2. This holds on average: for generated tasks in expectation, and a single input's |x|^2 / n
    varies about one.

    Rows come in a fixed random order, any prefix of which holds the classes about in proportion, so
    `test_inputs[:8]` is a fair sample.

    The arrays are NumPy's and read-only. A `Data` is a pytree whose leaves are the four arrays:
    `jax.device_put(data)` moves it to the device whole.

    Attributes:
        train_inputs: `[train, *input_shape]`, float32; images as height, width, channel.
        train_labels: `[train]`, int32, from 0 to `num_classes` - 1.
        test_inputs: `[test, *input_shape]`, float32, scaled by the training set's statistics.
        test_labels: `[test]`, int32.
        num_classes: how many classes the labels tell apart.
        name: the task's canonical text, `str(task)`.
        accuracy_ceiling: the highest test accuracy that any classifier has in expectation, exact; None where
            unknown.
    """

    train_inputs: Float32[np.ndarray, "train ..."]
    train_labels: Int32[np.ndarray, " train"]
    test_inputs: Float32[np.ndarray, "test ..."]
    test_labels: Int32[np.ndarray, " test"]
    num_classes: int = field(metadata={"static": True})
    name: str = field(metadata={"static": True})
    accuracy_ceiling: float | None = field(default=None, metadata={"static": True})

    @property
    def input_shape(self) -> Shape:
        """The shape of one input, without the batch axis."""
        return tuple(self.train_inputs.shape[1:])

    def flat(self) -> Self:
        """The same problem with every input as one vector, for dense networks; shares memory where it can."""
        return replace(
            self,
            train_inputs=self.train_inputs.reshape(len(self.train_inputs), -1),
            test_inputs=self.test_inputs.reshape(len(self.test_inputs), -1),
        )


@dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A classification problem as a type and its parameters: hashable, comparable, cheap to hold in a config.

    To add one, subclass with a `name`, an `input_shape`, a docstring with the equation or source, and `build`;
    `check` where fields need a rule. `tasks.parse` finds every subclass that is imported.

    Attributes:
        num_train: how many training rows to use; None for all. Smaller sets are the first rows of larger
            ones, up to the scaling.
        num_test: how many test rows to use; None for all.
    """

    name: ClassVar[str]
    available: ClassVar[tuple[int, int] | None] = None
    """(training, test) rows where the source has a fixed number of them."""

    num_train: int | None = None
    num_test: int | None = None

    def __post_init__(self) -> None:
        check_positive_integer("num_train", self.num_train, optional=True)
        check_positive_integer("num_test", self.num_test, optional=True)
        if self.available is not None:
            check_enough("num_train", self.num_train, self.available[0], self.name)
            check_enough("num_test", self.num_test, self.available[1], self.name)
        self.check()

    def check(self) -> None:  # noqa: B027  optional to override: most tasks have nothing more to check
        """Raises ValueError naming field, value and rule where a field of the subclass is out of range."""

    @property
    @abc.abstractmethod
    def input_shape(self) -> Shape:
        """The shape of one input, known without loading any: images are (height, width, channel)."""

    @property
    def holds_images(self) -> bool:
        """Whether an input is an image, as a convolution needs it; any task's inputs can be laid `flat`."""
        return len(self.input_shape) == 3

    @abc.abstractmethod
    def build(self) -> Data:
        """Reads or generates the arrays: deterministic, uncached."""

    def load(self) -> Data:
        """The arrays, from this process's cache of the last few equal tasks.

        Returns:
            The problem's `Data`, read-only.

        Raises:
            FileNotFoundError: the files are not on this machine; the message says where they were looked for
                and how to get them.
            DataError: a file is damaged or is not what its name says.
            ValueError: there are fewer rows than asked for, or a generated task cannot be generated.
        """
        return _load(self, os.environ.get("JAXACT_DATA"))

    def __str__(self) -> str:
        """Canonical text: the name and every field that differs from its default; `parse` reads it back."""
        changed = [
            f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


@functools.lru_cache(maxsize=4)
def _load(task: Task, _data_folder: Hashable) -> Data:
    data = task.build()
    _check_data(data)
    if data.input_shape != task.input_shape:
        raise ValueError(
            f"task {task}: `input_shape` must be that of its inputs, {data.input_shape}, got {task.input_shape}."
        )
    for array in jax.tree.leaves(data):
        array.flags.writeable = False  # the cache hands the same arrays to everyone
    return data


def _check_data(data: Data) -> None:
    for part, inputs, labels in (
        ("train", data.train_inputs, data.train_labels),
        ("test", data.test_inputs, data.test_labels),
    ):
        told = f"task {data.name}: `{part}_inputs`"
        if not isinstance(inputs, np.ndarray) or not isinstance(labels, np.ndarray):
            raise TypeError(f"{told} and labels must be NumPy arrays, got {type(inputs)} and {type(labels)}.")
        if inputs.dtype != np.float32 or labels.dtype != np.int32:
            raise TypeError(
                f"{told} must be float32 beside int32 labels, got {inputs.dtype} and {labels.dtype}."
            )
        if not len(inputs) or labels.shape != inputs.shape[:1] or inputs.shape[1:] != data.input_shape:
            raise ValueError(
                f"{told} must be [n, *{data.input_shape}] beside n >= 1 labels, "
                f"got {inputs.shape} and {labels.shape}."
            )
        if labels.min() < 0 or labels.max() >= data.num_classes:
            raise ValueError(
                f"task {data.name}: `{part}_labels` must lie in 0..{data.num_classes - 1}, "
                f"got {labels.min()}..{labels.max()}."
            )
        # One sum finds any NaN or infinity without a temporary: finite float32 cannot overflow float64.
        if not np.isfinite(inputs.sum(dtype=np.float64)):
            raise ValueError(f"{told} must be finite, got NaN or infinity.")


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random permutation of the rows, any prefix of which holds every class about in proportion.

    The i-th row (in random order) of a class of n rows gets the key (i + u) / n with u uniform in [0, 1);
    rows are sorted by key. The rows with a key below t then hold floor(n t) or ceil(n t) of each class.

    Args:
        labels: `[n]`, integers.
        seed: of the permutation.

    Returns:
        `[n]` row numbers, each once.

    >>> order = stratified_order(np.array([0] * 90 + [1] * 10), seed=0)
    >>> int((order[:50] >= 90).sum())
    5
    """
    rng = np.random.default_rng(seed)
    keys = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        keys[rows] = (rng.permutation(len(rows)) + rng.random(len(rows))) / len(rows)
    return np.argsort(keys, kind="stable")


def standardize(
    train: np.ndarray, test: np.ndarray, axis: Shape | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Subtracts the training set's mean and divides by its standard deviation: x -> (x - m) / s, as float32.

    With one m and s for the whole set, features keep their relative scale and constant features (the corners
    of an image) need no special case. The mean of x^2 over the training set is one in either case.

    Args:
        train: `[train, *shape]`, unsigned 8-bit.
        test: `[test, *shape]`, unsigned 8-bit.
        axis: the axes that share one mean and deviation; None for all of them.

    Returns:
        Both, float32. A constant training set comes out as zeros.
    """
    mean = train.mean(axis=axis, dtype=np.float64, keepdims=True)
    # Integers up to 255^2 add up exactly in float64, so E x^2 - (E x)^2 loses nothing that matters here.
    square = np.square(train, dtype=np.uint16).mean(axis=axis, dtype=np.float64, keepdims=True)
    deviation = np.sqrt(square - mean**2)
    deviation = np.where(deviation > 0, deviation, 1.0)

    def scaled(pixels: np.ndarray) -> np.ndarray:
        values = pixels.astype(np.float32)
        values -= mean.astype(np.float32)
        values /= deviation.astype(np.float32)
        return values

    return scaled(train), scaled(test)


def subset(
    name: str, inputs: np.ndarray, labels: np.ndarray, number: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The first `number` rows in stratified order; all rows for None.

    Args:
        name: the field that asked, for the message.
        inputs: `[n, *shape]`.
        labels: `[n]`.
        number: at most n.
    """
    check_enough(name, number, len(labels), "this data set")
    order = stratified_order(labels, seed=0)[:number]
    return inputs[order], labels[order].astype(np.int32)


def check_positive_integer(name: str, value: Any, *, optional: bool = False, least: int = 1) -> None:
    """Raises ValueError unless the value is an integer of at least `least`, or None where that is allowed."""
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        allowed = f"an integer of at least {least}"
        remedy = f" Use {name}=None for all of the rows." if optional else ""
        raise ValueError(f"`{name}` must be {allowed}, got {value!r}.{remedy}")


def check_number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    remedy: str | None = None,
) -> None:
    """Raises ValueError unless the value is a finite number from `low` (left out if `open_low`) to `high`."""
    rules = [f"above {low:g}" if open_low else f"of at least {low:g}"] if math.isfinite(low) else []
    rules += [f"at most {high:g}"] if math.isfinite(high) else []
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (open_low and value == low):
        rule = f"a finite number {' and '.join(rules)}".rstrip()
        raise ValueError(f"`{name}` must be {rule}, got {value!r}.{f' {remedy}' if remedy else ''}")


def check_enough(name: str, number: int | None, available: int, source: str) -> None:
    """Raises ValueError if more rows are asked for than there are."""
    if number is not None and number > available:
        raise ValueError(
            f"`{name}` must be at most {available}, the rows that {source} has, got {number}. "
            f"Use {name}=None for all of them."
        )
