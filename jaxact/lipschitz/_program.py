"""The straight-line programs, regions and results that the Lipschitz engine works with."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxact.lipschitz._norms import UNIT, dense_norm, real_array

Bounds: TypeAlias = tuple[
    Float[np.ndarray, " _size"], Float[np.ndarray, " _size"]
]  # each variable has its own size
Intervals: TypeAlias = Mapping[int, Bounds]  # variable -> (lower, upper), both [size]
Values: TypeAlias = Mapping[int, Float[np.ndarray, " _size"]]  # variable -> [size]


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Dense:
    """The matrix [out, in], float64."""

    matrix: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    def matmul(self, X: Any) -> Any:
        """A X for X [in, k]."""
        return self.matrix @ X

    def dense(self) -> Float[np.ndarray, "out in"]:
        """The matrix itself, on the host."""
        return np.asarray(self.matrix)

    def absolute(self) -> Float[np.ndarray, "out in"] | None:
        """|A| entrywise, or None where that is not known."""
        return np.abs(self.dense())

    def norm(self) -> float:
        """An upper bound on ||A||_2."""
        return dense_norm(self.dense())

    def tree_flatten(self):
        return (self.matrix,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Identity:
    """The identity on `size` entries."""

    size: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.size, self.size

    def matmul(self, X: Any) -> Any:
        """X, [size, k]."""
        return X

    def dense(self) -> Float[np.ndarray, "size size"]:
        return np.eye(self.size)

    def norm(self) -> float:
        return 1.0


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Diagonal:
    """The square matrix with diagonal `d` [size], float64."""

    d: Any

    @property
    def shape(self) -> tuple[int, int]:
        return self.d.shape[0], self.d.shape[0]

    def matmul(self, X: Any) -> Any:
        """diag(d) X for X [size, k]."""
        return self.d[:, None] * X

    def dense(self) -> Float[np.ndarray, "size size"]:
        return np.diag(np.asarray(self.d))

    def norm(self) -> float:
        return float(np.max(np.abs(self.d), initial=0.0))

    def tree_flatten(self):
        return (self.d,), None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Linear:
    """A linear map known by its products.

    Attributes:
        fn: v [in] -> A v [out]; JAX code that is traced under vmap, in float64.
        transpose: u [out] -> A^T u [in], likewise.
        shape: (out, in).
        norm_bound: an upper bound on ||A||_2, or a function of no arguments that finds one when it is asked for.
        absolute_fn: v [in] -> |A| v [out] for v >= 0 (|A| entrywise), if known: a convolution with |kernel|. Without
            it intervals go through the matrix if that is small, else through the norm.
    """

    fn: Callable[[Array], Array]
    transpose: Callable[[Array], Array]
    shape: tuple[int, int]
    norm_bound: float | Callable[[], float]
    absolute_fn: Callable[[Array], Array] | None = None

    def matmul(self, X: Any) -> Any:
        """A X for X [in, k]."""
        return jax.vmap(self.fn, in_axes=1, out_axes=1)(X)

    def dense(self) -> Float[np.ndarray, "out in"]:
        """The matrix, by one product for each column."""
        with jax.enable_x64(True):
            return np.asarray(jax.jit(self.matmul)(jnp.eye(self.shape[1], dtype=jnp.float64)))

    def norm(self) -> float:
        return self._norm

    @cached_property
    def _norm(self) -> float:
        return float(self.norm_bound() if callable(self.norm_bound) else self.norm_bound)


Operator: TypeAlias = Dense | Identity | Diagonal | Linear


@dataclass(frozen=True, eq=False)
class Affine:
    """v_out = sum_k A_k v_k + offset.

    Attributes:
        out: the variable that it defines.
        terms: pairs (source variable, operator); a source may occur more than once.
        size: of v_out.
        offset: [size], or None for 0. No bound for all inputs depends on it; `evaluate` and regions do.
        label: what to call it in reports.
    """

    out: int
    terms: tuple[tuple[int, Operator], ...]
    size: int
    offset: Any = None
    label: str = ""

    @property
    def sources(self) -> tuple[int, ...]:
        """The variables that it reads."""
        return tuple(dict.fromkeys(source for source, _ in self.terms))


@dataclass(frozen=True, eq=False)
class Elementwise:
    """v_out = f(v_source) entrywise, known by the range of its slopes.

    For any two inputs the differences satisfy dv_out[i] = c_i dv_source[i] with some alpha_i <= c_i <= beta_i.

    A product z = x * y becomes two of these and a sum: x' y' - x y = y' (x' - x) + x (y' - y), so p has the source x
    with slopes in the interval of y, q the source y with slopes in the interval of x, and z = p + q is affine. There p
    is not a function of x, only its differences mean anything: set `is_function=False`, let p's `value` and `range` be
    those of x * y and q's be 0, so that z has the right value and interval.

    Attributes:
        out: the variable that it defines.
        source: the variable that it reads.
        size: of both.
        slopes: intervals -> (alpha, beta), each [size] or a scalar, on the host in float64: sound bounds on the slope
            while every variable v stays within intervals[v] = (lower, upper), which are infinite for a bound over all
            inputs. An infinite slope is refused by the engine. Holds the intervals of the variables defined so far.
        value: values -> v_out [size], from values[v] [size] of the variables defined so far. Needed for regions and
            `evaluate`.
        range: intervals -> (lower, upper) of v_out. If None it follows from `value` and `slopes` (needs is_function).
        is_function: v_out is a function of v_source alone, so that |v_out - v_out(x0)| follows from the slopes.
        label: what to call it in reports.
        reads: further variables whose intervals or values are used.
    """

    out: int
    source: int
    slopes: Callable[[Intervals], tuple[Any, Any]]
    size: int
    value: Callable[[Values], Any] | None = None
    range: Callable[[Intervals], tuple[Any, Any]] | None = None
    is_function: bool = True
    label: str = ""
    reads: tuple[int, ...] = ()

    @property
    def sources(self) -> tuple[int, ...]:
        """The variable that it reads and carries on: not `reads`, whose intervals are kept apart."""
        return (self.source,)


@dataclass(frozen=True, eq=False)
class Contraction:
    """v_out = f(v_source), known by how much it stretches at most: |dv_out| <= constant |dv_source|.

    Attributes:
        out: the variable that it defines.
        source: the variable that it reads.
        size: of v_out.
        constant: intervals -> the number, sound while every variable stays within its interval; see `Elementwise`.
        value: values -> v_out [size].
        range: intervals -> (lower, upper) of v_out.
        label: what to call it in reports.
    """

    out: int
    source: int
    size: int
    constant: Callable[[Intervals], float]
    value: Callable[[Values], Any]
    range: Callable[[Intervals], tuple[Any, Any]]
    label: str = ""
    is_function: ClassVar[bool] = True

    @property
    def sources(self) -> tuple[int, ...]:
        """The variable that it reads."""
        return (self.source,)


Step: TypeAlias = Affine | Elementwise | Contraction


@dataclass(frozen=True, eq=False)
class Program:
    """A straight line of steps over numbered flat vectors; variable 0, of `input_size` entries, is the input.

    Raises:
        ValueError: a variable is read before it is defined or defined twice, or sizes do not fit.
    """

    input_size: int
    steps: tuple[Step, ...]
    output: int
    sizes: Mapping[int, int] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "steps", tuple(self.steps))
        sizes = {0: self.input_size}
        for index, step in enumerate(self.steps):
            for source in step.sources:
                if source not in sizes:
                    raise ValueError(f"`steps[{index}]` reads variable {source} before any step defines it.")
            if step.out in sizes:
                raise ValueError(
                    f"`steps[{index}]` defines variable {step.out} again: number each result anew."
                )
            if isinstance(step, Affine):
                if not step.terms:
                    raise ValueError(f"`steps[{index}]` has no terms: a constant is not a variable.")
                for source, operator in step.terms:
                    if tuple(operator.shape) != (step.size, sizes[source]):
                        raise ValueError(
                            f"`steps[{index}]` must map {sizes[source]} entries to {step.size}, got an operator of "
                            f"shape {tuple(operator.shape)}. Operators are [out, in]: transpose Flax kernels."
                        )
            elif isinstance(step, Elementwise) and step.size != sizes[step.source]:
                raise ValueError(
                    f"`steps[{index}]` must keep the size {sizes[step.source]}, got {step.size}."
                )
            sizes[step.out] = step.size
        if self.output not in sizes:
            raise ValueError(f"`output` must be a variable of the program, got {self.output}.")
        object.__setattr__(self, "sizes", sizes)

    def live(self) -> tuple[tuple[int, ...], ...]:
        """For each step the variables that are needed after it, in the order of their definition."""
        needed = {self.output}
        after: list[tuple[int, ...]] = []
        for step in reversed(self.steps):
            after.append(tuple(sorted(needed, key=self.order.__getitem__)))
            if step.out in needed:
                needed = (needed - {step.out}) | set(step.sources)
        return tuple(reversed(after))

    @cached_property
    def order(self) -> Mapping[int, int]:
        """The place of each variable in the order of definition."""
        return {0: -1} | {step.out: index for index, step in enumerate(self.steps)}


def evaluate(program: Program, x: Any, *, output_only: bool = True) -> Any:
    """Run a program on one flat input [n], on the host in float64.

    Args:
        program: every elementwise step must have a `value`.
        x: [n].
        output_only: return v_output [m]; otherwise every variable by its number.

    Raises:
        ValueError: an elementwise step has no `value`, or `x` is of the wrong size.
    """
    x = np.asarray(x, np.float64).reshape(-1)
    if x.size != program.input_size:
        raise ValueError(f"`x` must have {program.input_size} entries, got {x.size}.")
    values = {0: x}
    for step in program.steps:
        if isinstance(step, Affine):
            result = np.zeros(step.size) if step.offset is None else np.array(step.offset, np.float64)
            for source, operator in step.terms:
                result = result + matvec(operator, values[source])
        elif step.value is None:
            raise ValueError(
                f"Step {step.label or step.out} has no `value`: the program can only be bounded globally."
            )
        else:
            with jax.enable_x64(True):
                result = np.asarray(step.value(values), np.float64)
            result = np.broadcast_to(result, (step.size,))
        values[step.out] = result
    return values[program.output] if output_only else values


def matvec(operator: Operator, v: np.ndarray) -> np.ndarray:
    """A v for v [in], in float64 whatever jax is set to."""
    if isinstance(operator, Linear):
        with jax.enable_x64(True):
            return np.asarray(operator.fn(jnp.asarray(v)), np.float64)
    return np.asarray(operator.matmul(v[:, None]))[:, 0]


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
        factors: (label, natural logarithm of the growth of the bound in this step), in order: where the bound is lost.
            Their sum is that of `value`. Labels say the step's sizes and, from a function, the line that it is on.
            Empty for methods without steps.
        sizes: entries (in, out) of each of these steps.
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
    factors: tuple[tuple[str, float], ...] = ()
    seconds: float = 0.0
    history: tuple[float, ...] = ()
    sizes: tuple[tuple[int, int], ...] = ()
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
