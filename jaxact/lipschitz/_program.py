"""The regions in which functions are bounded, and the certificate that is the result."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxact.lipschitz._norms import real_array
from jaxact.lipschitz._rounding import UNIT
from jaxact.trace import StepRecord


@dataclass(frozen=True, eq=False)
class Ball:
    """The inputs within the Euclidean distance `radius` >= 0 of `center`.

    Raises:
        TypeError: they are not real numbers.
        ValueError: they are not finite, or `radius` is negative.
    """

    center: Any
    radius: float

    def __post_init__(self):
        center, given = real_array("center", self.center), real_array("radius", self.radius)
        if not np.isfinite(center).all():
            raise ValueError("`center` must be finite, got NaN or inf. Pass one input.")
        radius = float(given) if given.size == 1 else math.nan
        if not (math.isfinite(radius) and radius >= 0):
            raise ValueError(
                f"`radius` must be finite and >= 0, got {self.radius}. Leave out `region` for all inputs."
            )
        object.__setattr__(self, "center", center)
        object.__setattr__(self, "radius", radius)

    def __repr__(self) -> str:
        return f"Ball(center of shape {self.center.shape}, radius={self.radius:g})"


@dataclass(frozen=True, eq=False)
class Box:
    """The inputs with `lower` <= x <= `upper` entrywise.

    Raises:
        TypeError: they are not arrays of real numbers.
        ValueError: they are not finite, not of one shape or not in order.
    """

    lower: Any
    upper: Any

    def __post_init__(self):
        lower, upper = real_array("lower", self.lower), real_array("upper", self.upper)
        if lower.shape != upper.shape:
            raise ValueError(
                f"`lower` and `upper` must be of one shape, got {lower.shape} and {upper.shape}. "
                "Fill them with np.broadcast_to."
            )
        if not (np.isfinite(lower).all() and np.isfinite(upper).all() and (lower <= upper).all()):
            raise ValueError(
                "`lower` and `upper` must be finite with lower <= upper, got "
                f"{reprlib.repr(self.lower)} and {reprlib.repr(self.upper)}. Leave out `region` for all inputs."
            )
        object.__setattr__(self, "lower", lower)
        object.__setattr__(self, "upper", upper)

    def __repr__(self) -> str:
        return (
            f"Box(of shape {self.lower.shape}, widths up to {np.max(self.upper - self.lower, initial=0.0):g})"
        )

    def ellipsoid(self) -> Float[np.ndarray, " size"]:
        """The squares of the half axes of an ellipsoid that holds the box: sum_i (x_i - c_i)^2 / (n h_i^2) <= 1."""
        half = self.around()[1]
        sides = np.where(half > 0, np.maximum(half, 1e-150), 0.0)  # squares of what is smaller underflow
        return sides**2 * (np.count_nonzero(half) * (1 + 1e-14))

    def around(self) -> tuple[Float[np.ndarray, " size"], Float[np.ndarray, " size"], float]:
        """The middle, flattened, how far the sides are from it at most, and how far the corners."""
        lower, upper = self.lower.reshape(-1), self.upper.reshape(-1)
        center = lower / 2 + upper / 2
        half = np.maximum(upper - center, center - lower) * (1 + 4 * UNIT)
        longest = float(np.max(half, initial=0.0))
        corner = (
            np.linalg.norm(half / longest) if longest > 0 else 0.0
        )  # squares that underflow are negligible
        return center, half, float(np.nextafter(corner * longest * (1 + (half.size + 8) * UNIT), np.inf))


Region: TypeAlias = Ball | Box


Scalar: TypeAlias = float | np.floating | Float[Array, "*batch"]  # with a batch axis under vmap


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True, eq=False)
class Certificate:
    """An upper bound on a Lipschitz constant and what it rests on: the result of all that bound a function.

    A pytree of `value` and `log`, so that a compiled or differentiated function may return one. It counts as its value
    in `float`, `numpy.asarray`, JAX's functions and comparisons (==, <= and so on, of NumPy and JAX too), but not in
    sums and products: take `value` or, in a loss, `log`.

    Attributes:
        value: ||f(x') - f(x)|| <= value ||x' - x|| for all x, x' in the region; inf where it exceeds its dtype. A float
            of `certify`, a scalar in the dtype of the weights of `upper_bound`.
        log: its natural logarithm, also where `value` is inf; -inf for 0.
        method: how it was found.
        norm: 1, 2 or inf, of inputs and outputs, or a pair (of inputs, of outputs).
        region: the `Ball` or `Box` that it holds in, or None for all inputs.
        certified: whether it is proved, rounding included, under `assumptions`; False marks a bound up to its own
            rounding, or an estimate: `assumptions` say which.
        assumptions: what the bound takes for granted, in words.
        factors: (step, natural logarithm of the growth of the bound in this step), in order: where the bound is lost.
            Their sum is that of `value`. A step's record says its kind, its sizes and, from a function, the line that
            it is on. Empty for methods without steps.
        by_norms_beyond: so many entries were held jointly, and beyond them norms of operators alone were used; None
            where all were.
        is_global: whether it is the bound over all inputs, which may be the better one within a region too.
        seconds: wall clock, compilation included; 0 if it was traced.
        parts: so many parts of the region were bounded each alone, and `value` is the largest of their bounds.
        attained: the norm of a Jacobian that was seen while the region was cut, rounded down; None where none was.
        is_exact: whether `value` is within 1e-9 of `attained`: it is the constant.
        history: the bound's natural logarithm at the start and after each refinement step, not proved; within a region
            with slopes extrapolated in most.
    """

    value: Scalar
    log: Scalar
    method: str
    norm: float | tuple[float, float] = 2
    region: Region | None = None
    certified: bool = True
    assumptions: tuple[str, ...] = ()
    factors: tuple[tuple[StepRecord, float], ...] = ()
    seconds: float = 0.0
    history: tuple[float, ...] = ()
    by_norms_beyond: int | None = None
    is_global: bool = False
    parts: int = 1
    attained: float | None = None
    is_exact: bool = False

    @property
    def log10(self) -> Scalar:
        """The decimal logarithm of the value."""
        return self.log / math.log(10)

    def __float__(self) -> float:
        return float(self.value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.value, dtype) if copy else np.asarray(self.value, dtype)

    def __jax_array__(self) -> Array:
        return jnp.asarray(self.value)

    def __eq__(self, other: Any) -> Any:
        return self.value == _number(other)

    def __ne__(self, other: Any) -> Any:
        return self.value != _number(other)

    def __lt__(self, other: Any) -> Any:
        return self.value < _number(other)

    def __le__(self, other: Any) -> Any:
        return self.value <= _number(other)

    def __gt__(self, other: Any) -> Any:
        return self.value > _number(other)

    def __ge__(self, other: Any) -> Any:
        return self.value >= _number(other)

    __hash__ = object.__hash__  # as a value, equal numbers are found by `value`

    def tree_flatten_with_keys(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """The numbers by name, and the rest in the order of the fields."""
        numbers = (jax.tree_util.GetAttrKey("value"), self.value), (jax.tree_util.GetAttrKey("log"), self.log)
        return numbers, tuple(getattr(self, each.name) for each in fields(self)[len(numbers) :])

    @classmethod
    def tree_unflatten(cls, rest: tuple[Any, ...], numbers: Sequence[Any]) -> Certificate:
        """Past `__init__`, for JAX puts shapes and placeholders where the numbers go."""
        certificate = object.__new__(cls)
        for each, value in zip(fields(cls), (*numbers, *rest), strict=True):
            object.__setattr__(certificate, each.name, value)
        return certificate


def _number(other: Any) -> Any:
    return other.value if isinstance(other, Certificate) else other
