"""Straight-line programs: the steps that a function becomes, over numbered flat vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from jaxact.trace._operators import Operator, matvec

Bounds: TypeAlias = tuple[
    Float[np.ndarray, " _size"], Float[np.ndarray, " _size"]
]  # each variable has its own size
Intervals: TypeAlias = Mapping[int, Bounds]  # variable -> (lower, upper), both [size]
Values: TypeAlias = Mapping[int, Float[np.ndarray, " _size"]]  # variable -> [size]


class Reach(NamedTuple):
    """The ball that a variable stays in: |v - center| <= radius."""

    center: Float[np.ndarray, " size"]
    radius: float


@dataclass(frozen=True, eq=False)
class Affine:
    """v_out = sum_k A_k v_k + offset.

    Attributes:
        out: the variable that it defines.
        terms: pairs (source variable, operator); a source may occur more than once.
        size: of v_out.
        offset: [size], or None for 0. No bound for all inputs depends on it; `evaluate` and regions do.
        kind: what it is called in reports, such as "relu".
        place: where the user wrote it, such as "model.py:42"; "" if that is not known.
    """

    out: int
    terms: tuple[tuple[int, Operator], ...]
    size: int
    offset: Any = None
    kind: str = "affine"
    place: str = ""

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
        kind: what it is called in reports, such as "relu".
        place: where the user wrote it, such as "model.py:42"; "" if that is not known.
        reads: further variables whose intervals or values are used.
    """

    out: int
    source: int
    slopes: Callable[[Intervals], tuple[Any, Any]]
    size: int
    value: Callable[[Values], Any] | None = None
    range: Callable[[Intervals], tuple[Any, Any]] | None = None
    is_function: bool = True
    kind: str = "elementwise"
    place: str = ""
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
        constant: (intervals, reach) -> the number, sound while every variable stays within its interval, see
            `Elementwise`, and v_source within the `Reach`, if one is known.
        value: values -> v_out [size].
        range: intervals -> (lower, upper) of v_out.
        kind: what it is called in reports, such as "relu".
        place: where the user wrote it, such as "model.py:42"; "" if that is not known.
    """

    out: int
    source: int
    size: int
    constant: Callable[[Intervals, Reach | None], float]
    value: Callable[[Values], Any]
    range: Callable[[Intervals], tuple[Any, Any]]
    kind: str = "contraction"
    place: str = ""
    is_function: ClassVar[bool] = True

    @property
    def sources(self) -> tuple[int, ...]:
        """The variable that it reads."""
        return (self.source,)


Step: TypeAlias = Affine | Elementwise | Contraction


class StepRecord(NamedTuple):
    """What a step of a program is; as text "affine 3: 784 -> 128 (model.py:42)", or "relu 4: 128" entry by entry.

    Attributes:
        kind: "affine", or what its function is called.
        number: of the variable that it defines.
        sizes: entries (in, out).
        place: "file:line", or "".
        is_elementwise: each entry out of the same entry in.
    """

    kind: str
    number: int
    sizes: tuple[int, int]
    place: str = ""
    is_elementwise: bool = False

    def __str__(self) -> str:
        entries = f"{self.sizes[1]}" if self.is_elementwise else f"{self.sizes[0]} -> {self.sizes[1]}"
        return f"{self.kind} {self.number}: {entries}" + (f" ({self.place})" if self.place else "")


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

    def record(self, index: int) -> StepRecord:
        """What a step is, for reports and errors."""
        step = self.steps[index]
        width = sum(self.sizes[source] for source in step.sources)
        is_elementwise = isinstance(step, Elementwise)
        return StepRecord(step.kind, step.out, (width, step.size), step.place, is_elementwise)

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

    Returns:
        v_output [m], or a dictionary of all variables.

    Raises:
        ValueError: an elementwise step has no `value`, or `x` is of the wrong size.
    """
    x = np.asarray(x, np.float64).reshape(-1)
    if x.size != program.input_size:
        raise ValueError(f"`x` must have {program.input_size} entries, got {x.size}.")
    values = {0: x}
    for index, step in enumerate(program.steps):
        if isinstance(step, Affine):
            result = applied(step, values)
        elif step.value is None:
            raise ValueError(
                f"Step {program.record(index)} has no `value`: the program can only be bounded globally."
            )
        else:
            with jax.enable_x64(True):
                result = np.asarray(step.value(values), np.float64)
            result = np.broadcast_to(result, (step.size,))
        values[step.out] = result
    return values[program.output] if output_only else values


def applied(step: Affine, values: Values) -> Float[np.ndarray, " size"]:
    """v_out of an affine step, on the host in float64.

    Args:
        step: of a program.
        values: of the variables before it, by number.

    Returns:
        The step's variable, [size].
    """
    result = np.zeros(step.size) if step.offset is None else np.array(step.offset, np.float64).reshape(-1)
    for source, operator in step.terms:
        result = result + matvec(operator, values[source])
    return result
