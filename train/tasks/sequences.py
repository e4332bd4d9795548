"""Sequences that ask for memory over a length: generated problems for recurrent networks, endless, drawn by key."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from train.tasks._task import check_positive_integer


@dataclass(frozen=True, kw_only=True)
class SequenceTask(abc.ABC):
    """A problem whose inputs are sequences [time, in_features] and whose targets are read at the last times.

    No `Task`: it has no fixed set of labelled inputs, and networks for vectors or images cannot take it.

    Attributes:
        length: over how many steps something must be remembered, about; what each problem says.
    """

    name: ClassVar[str]

    length: int = 100

    def __post_init__(self) -> None:
        check_positive_integer("length", self.length, least=2)
        self.check()

    def check(self) -> None:  # noqa: B027  optional to override
        """Raises ValueError naming field, value and rule where a field of the subclass is out of range."""

    @property
    @abc.abstractmethod
    def in_features(self) -> int:
        """Numbers a step of the input."""

    @property
    @abc.abstractmethod
    def out_features(self) -> int:
        """Numbers a step of the output."""

    @property
    @abc.abstractmethod
    def num_outputs(self) -> int:
        """How many of the last steps are read."""

    @property
    @abc.abstractmethod
    def baseline(self) -> float:
        """The least expected loss of whoever remembers nothing; exact."""

    @abc.abstractmethod
    def sample(self, key: jax.Array, num: int) -> tuple[Float[Array, "num time in"], Array]:
        """Draws inputs and targets of `num` sequences."""

    @abc.abstractmethod
    def loss(self, outputs: Float[Array, "num last out"], targets: Array) -> Float[Array, ""]:
        """The mean loss of outputs at the last `num_outputs` steps."""


@dataclass(frozen=True, kw_only=True)
class Adding(SequenceTask):
    """Adds two numbers that are marked in a long sequence.

        x_t = (u_t, m_t),   u_t ~ U(0, 1),   m_t = 1 at one time of each half, else 0;   y = sum_t m_t u_t

    The loss is the mean squared error of the last output. Without memory the best guess is 1, at a loss of 1 / 6, the
    variance of the sum. Hochreiter & Schmidhuber 1997, "Long short-term memory", experiment 4, as in Le, Jaitly &
    Hinton 2015, section 4.1. The sequence has `length` steps.
    """

    name = "adding"
    in_features, out_features, num_outputs = 2, 1, 1
    baseline = 1 / 6

    def sample(self, key: jax.Array, num: int) -> tuple[Float[Array, "num time in"], Float[Array, " num"]]:
        """Numbers and marks, and sums."""
        key_numbers, key_first, key_second = jax.random.split(key, 3)
        numbers = jax.random.uniform(key_numbers, (num, self.length))
        half = self.length // 2
        first = jax.random.randint(key_first, (num,), 0, half)
        second = jax.random.randint(key_second, (num,), half, self.length)
        marks = jax.nn.one_hot(first, self.length) + jax.nn.one_hot(second, self.length)
        return jnp.stack([numbers, marks], -1), jnp.sum(numbers * marks, -1)

    def loss(self, outputs: Float[Array, "num last out"], targets: Float[Array, " num"]) -> Float[Array, ""]:
        """Mean squared error."""
        return jnp.mean((outputs[:, -1, 0] - targets) ** 2)


@dataclass(frozen=True, kw_only=True)
class CopyMemory(SequenceTask):
    """Repeats a few symbols after a long pause.

        x = s_1 ... s_S, then `length` - 1 blanks and a marker, then S blanks;   y at the last S steps = s_1 ... s_S

    Symbols are uniform among K; inputs are one-hot in K + 2. The loss is the mean cross-entropy over the last S steps,
    in nats, which is log K without memory. Hochreiter & Schmidhuber 1997; Arjovsky, Shah & Bengio 2016, "Unitary
    evolution recurrent neural networks", section 4.1, who count the blanks of the pause in the loss too.

    Attributes:
        length: the pause, T: a symbol is asked for T + S steps after it came, and the sequence has T + 2 S steps.
        num_symbols: S.
        num_kinds: K.
    """

    name = "copy_memory"
    length: int = 100
    num_symbols: int = 10
    num_kinds: int = 8

    def check(self) -> None:
        """Refuses fields outside of their range."""
        check_positive_integer("num_symbols", self.num_symbols)
        check_positive_integer("num_kinds", self.num_kinds, least=2)

    @property
    def in_features(self) -> int:
        """Kinds of symbols, blank and marker."""
        return self.num_kinds + 2

    @property
    def out_features(self) -> int:
        """Kinds of symbols."""
        return self.num_kinds

    @property
    def num_outputs(self) -> int:
        """As many as symbols."""
        return self.num_symbols

    @property
    def baseline(self) -> float:
        """Of a guess."""
        return math.log(self.num_kinds)

    def sample(
        self, key: jax.Array, num: int
    ) -> tuple[Float[Array, "num time in"], Int[Array, "num symbol"]]:
        """Symbols with a pause, a marker and room, and the symbols."""
        symbols = jax.random.randint(key, (num, self.num_symbols), 0, self.num_kinds)
        blank = jnp.full((num, self.length + self.num_symbols), self.num_kinds)
        rest = blank.at[:, self.length - 1].set(self.num_kinds + 1)
        return jax.nn.one_hot(jnp.concatenate([symbols, rest], 1), self.in_features), symbols

    def loss(
        self, outputs: Float[Array, "num last out"], targets: Int[Array, "num symbol"]
    ) -> Float[Array, ""]:
        """Mean cross-entropy."""
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()
