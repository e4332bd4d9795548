"""How far an input may move before its class can change."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from jaxact.errors import ArgumentError, ArgumentTypeError
from jaxact.lipschitz._certify import checked, translated
from jaxact.lipschitz._enclosure import Engine
from jaxact.lipschitz._execution import ASSUMPTIONS, execution_error
from jaxact.lipschitz._execution_rules import UncoveredError
from jaxact.lipschitz._mixed import equivalence
from jaxact.lipschitz._program import Ball, Box
from jaxact.lipschitz.ellipsoid.bound import bound, check_memory_limit
from jaxact.numerics import full_precision
from jaxact.trace import Affine, Dense, Program, forget

_FARTHEST = 2.0**20  # times the size of the input: where the search for a radius ends


@dataclass(frozen=True, eq=False)
class CertifiedRadius:
    """A distance within which a model's class is proved, the result of `certified_radius`.

    Attributes:
        radius: the class is `label` for all inputs within it; 0 where none was proved.
        label: the class.
        runner_up: the class whose margin is the first that is not proved beyond.
        margins: f_label - f_j at the input, [class]; 0 for the label itself.
        norm: 2 or inf, in which the distance is.
        rounding: the bound on the rounding of a margin as the model runs, [class], subtracted within the radius.
        certified: whether all is proved, rounding of the model included; else `assumptions` say what is not.
        assumptions: what the radius takes for granted, in words.
        reason: why the radius is 0, else "".
        seconds: wall clock.
    """

    radius: float
    label: int
    runner_up: int
    margins: Float[np.ndarray, " class"]
    norm: float
    rounding: Float[np.ndarray, " class"]
    certified: bool
    assumptions: tuple[str, ...]
    reason: str = ""
    seconds: float = 0.0


@full_precision
def certified_radius(
    model: Callable[[Any], Any],
    x: Float[ArrayLike, "*input"],
    label: int,
    *,
    norm: float = 2,
    num_bisections: int = 16,
    max_seconds: float | None = None,
    memory_limit: int = 2048,
) -> CertifiedRadius:
    """A radius within which a model's class cannot change.

        f_label(x') - f_j(x') > 0    for all j != label and all |x' - x|_norm <= radius

    Certified is a radius r with g_j(x) - K_j(r) r > e_j(r) for all margins g_j = f_label - f_j, where K_j(r) bounds the
    constant of g_j in the ball of radius r, in the dual norm of its gradient (Hein & Andriushchenko 2017, theorem 2.1;
    Tsuzuku et al. 2018, proposition 1, takes one K for all of space). Three bounds on g_j in the ball are tried:
    interval arithmetic, the mean value form by an enclosure of all its Jacobians, and K_j of the ellipsoid engine; the
    largest r is found by doubling and bisection. e_j(r) bounds how far the margin as it is executed, in the dtype of
    `x`, may be from that in exact arithmetic anywhere in the ball, by a running error analysis of the model's jaxpr:
    what is proved is about the program that runs. Where that has a part without a bound, `certified` is False and
    `assumptions` name it.

    Args:
        model: JAX function of ONE input that returns one array, the scores of all classes (logits).
        x: the input, in the dtype in which the model runs.
        label: the index of its class.
        norm: 2, or inf for changes of every entry by up to the radius.
        num_bisections: how often the radius is refined, each halving its distance from the smallest radius that failed.
        max_seconds: stop refining after so long.
        memory_limit: as in `certify`, of the engine's K_j.

    Returns:
        `CertifiedRadius`; its radius is 0, with a reason, where `x` is not classified as `label`.

    Raises:
        TypeError: `x` is not real floating-point, `label` no integer, or the model cannot be traced.
        ValueError: `norm` is neither 2 nor inf; `label` is no class; there is one class only; `memory_limit` is no
            integer from 1 on; what `certify` refuses.

    Example:
        >>> import jax.numpy as jnp
        >>> found = certified_radius(lambda x: jnp.stack([3 * x[0] + 4 * x[1], 0 * x[0]]), jnp.ones(2), 0)
        >>> round(found.radius, 3)  # 7 / 5
        1.4
    """
    started = time.perf_counter()
    _check(norm, label, num_bisections, memory_limit)
    x = checked(model, x, norm, None)
    search = _Search(model, x, int(label), norm, memory_limit)
    found = search.found(num_bisections, math.inf if max_seconds is None else started + max_seconds)
    return replace(found, seconds=time.perf_counter() - started)


def _check(norm: Any, label: Any, num_bisections: Any, memory_limit: Any) -> None:
    if norm not in (2, math.inf):
        raise ArgumentError(
            f"must be 2 or inf, got {norm!r}.", "Use math.inf for changes of every entry.", argument="norm"
        )
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        raise ArgumentTypeError(
            f"must be the index of a class, got {label!r}.", "Use int(label).", argument="label"
        )
    if not (isinstance(num_bisections, int) and num_bisections >= 0):
        raise ArgumentError(
            f"must be an integer >= 0, got {num_bisections!r}.", "Use 16.", argument="num_bisections"
        )
    check_memory_limit(memory_limit)


def _read(model: Callable[[Any], Any], x: Any) -> Any:
    wide: list[Any] = []
    reading = translated(model, x, Ball(np.asarray(x, np.float64), 0.0), wide)[0].lowered
    if wide and jax.dtypes.canonicalize_dtype(np.float64) != np.float64:
        forget(wide)  # the model runs in its own dtype again
    return reading


class _Search:
    """The margins of a model at an input, and what is proved of them in balls around it."""

    def __init__(self, model: Callable[[Any], Any], x: Any, label: int, norm: float, memory_limit: int):
        self.memory_limit = memory_limit
        self.model, self.x, self.label, self.norm = model, x, label, norm
        self.flat = np.asarray(x, np.float64).reshape(-1)
        if not np.isfinite(self.flat).all():
            raise ArgumentError("must be finite, got NaN or inf.", "Pass one input.", argument="x")
        reading = _read(model, x)
        if len(reading.depends) != 1:
            raise ArgumentError(
                f"must return one array, the scores of the classes, got {len(reading.depends)}.",
                "Use lambda x: model(x)[0], for instance.",
                argument="model",
            )
        self.assumptions = reading.assumptions
        program = reading.program
        self.classes = program.sizes[program.output]
        if self.classes < 2 or not 0 <= label < self.classes:
            raise ArgumentError(
                f"must be a class of {self.classes}, of two or more, got {label}.",
                "Count from 0; give the two scores 0 and f for a model of one.",
                argument="label",
            )
        self.others = np.array([j for j in range(self.classes) if j != label])
        self.difference = np.zeros((self.classes - 1, self.classes))
        self.difference[:, label] = 1.0
        self.difference[np.arange(self.classes - 1), self.others] = -1.0
        self.program = _followed(program, self.difference)
        self.engine = Engine(self.program)
        self.closed = jax.make_jaxpr(model)(x)
        self.uncovered = ""

    def found(self, num_bisections: int, deadline: float) -> CertifiedRadius:
        """Double the radius while it is proved, then bisect."""
        values = np.asarray(self.model(self.x), np.float64).reshape(-1)
        with np.errstate(invalid="ignore"):  # of scores that overflow
            margins = values[self.label] - values
        at_zero = self.proved(0.0)
        if at_zero.min() <= 0:
            return self._result(0.0, at_zero, margins, self._why_not(values))
        low, high, at_high = 0.0, math.inf, at_zero
        first = radius = self._guess()
        farthest = _FARTHEST * (1 + np.abs(self.flat).max())
        while radius < farthest and time.perf_counter() < deadline:
            lowest = self.proved(radius)
            if lowest.min() > 0:
                low, radius = radius, 2 * radius
                continue
            high, at_high = radius, lowest
            if low > 0 or radius < 1e-9 * first:
                break
            radius /= 2
        for _ in range(num_bisections if math.isfinite(high) else 0):
            if time.perf_counter() >= deadline:
                break
            middle = (low + high) / 2
            lowest = self.proved(middle)
            if lowest.min() > 0:
                low = middle
            else:
                high, at_high = middle, lowest
        return self._result(low, at_high, margins, "" if low > 0 else "no ball around the input was proved")

    def proved(self, radius: float) -> Float[np.ndarray, " other"]:
        """Lower bounds on the margins as they are executed, anywhere in a ball; -inf where there is none."""
        rounding = self.rounding(radius)[self.others]
        lower, upper = self._ends(radius)
        around = radius * (1 + 1e-12) + 2.0**-50 * float(np.linalg.norm(self.flat))  # of the box's centre
        try:
            enclosed = self.engine.enclose(
                lower[None], upper[None], radius=around if self.norm == 2 else None
            )
        except ArgumentError:
            return np.full(len(self.others), -np.inf)
        least = enclosed.intervals[self.program.output][0][:, 0]
        center = enclosed.centers[self.program.output][0][:, 0]
        margins = np.nextafter(least - rounding, -np.inf)
        for row in np.flatnonzero(margins <= 0):
            if center[row] > rounding[row] and radius > 0:
                K = self._constant(int(row), radius)
                margins[row] = max(margins[row], center[row] - K * radius * (1 + 1e-12) - rounding[row])
        return margins

    def rounding(self, radius: float) -> Float[np.ndarray, " class"]:
        """How far margins as they are executed may be from exact ones; 0 where it is not known, which is noted."""
        try:
            lower, upper = (end.reshape(np.shape(self.x)) for end in self._ends(radius))
            error = execution_error(self.closed, lower, upper).reshape(-1)
        except UncoveredError as reason:
            self.uncovered = str(reason)
            return np.zeros(self.classes)
        # The two scores are compared as they are, no difference is rounded; a quarter more makes up for the rounding in
        # float64 of the last matrix's differences, whose unit is at most an eighth of what `error` rests on. What is
        # compared may be flushed to 0 first.
        flushed = 2 * float(jnp.finfo(self.closed.out_avals[0].dtype).tiny)
        total = (error + error[self.label]) * 1.25 + flushed
        total[self.label] = 0.0
        return total

    def _ends(self, radius: float) -> tuple[np.ndarray, np.ndarray]:
        reach = radius * (1 + 1e-12)
        return np.nextafter(self.flat - reach, -np.inf), np.nextafter(self.flat + reach, np.inf)

    def _constant(self, row: int, radius: float) -> float:
        """The engine's bound on one margin in the ball; inf where it has none."""
        program = _followed(self.program, np.eye(len(self.others))[[row]])
        region = Ball(self.flat, radius) if self.norm == 2 else Box(*self._ends(radius))
        try:
            with jax.enable_x64(True), np.errstate(over="ignore", invalid="ignore"):
                found = bound(program, region=region, num_steps=0, memory_limit=self.memory_limit)
        except (ArithmeticError, ValueError):
            return math.inf
        return float(found.value) * equivalence(self.flat.size, 1, self.norm, 2)

    def _guess(self) -> float:
        """A first radius: the margin by the length of its gradient, where that is known."""
        scores = jax.jacrev(lambda x: jnp.asarray(self.difference, x.dtype) @ self.model(x).reshape(-1))(
            self.x
        )
        rows = np.asarray(scores, np.float64).reshape(len(self.others), -1)
        lengths = np.linalg.norm(rows, 2 if self.norm == 2 else 1, axis=1)
        values = np.asarray(self.model(self.x), np.float64).reshape(-1)
        margins = values[self.label] - values[self.others]
        usual = np.min(np.where(lengths > 0, np.abs(margins) / np.where(lengths > 0, lengths, 1.0), np.inf))
        return (
            float(usual) / 2
            if np.isfinite(usual) and usual > 0
            else 1e-3 * (1 + float(np.abs(self.flat).max()))
        )

    def _why_not(self, values: np.ndarray) -> str:
        winner = int(np.argmax(values))
        if winner != self.label:
            return f"the input is classified as {winner}, not as {self.label}"
        return "the margin at the input is within the rounding of the model, or could not be enclosed"

    def _result(self, radius: float, lowest: np.ndarray, margins: np.ndarray, reason: str) -> CertifiedRadius:
        rounding = self.rounding(radius)
        notes = ASSUMPTIONS
        if self.uncovered:
            notes = (
                f"the rounding of the model as it runs changes no class: that of {self.uncovered} is not bounded",
            )
        return CertifiedRadius(
            radius=radius,
            label=self.label,
            runner_up=int(self.others[np.argmin(lowest)]),
            margins=margins,
            norm=self.norm,
            rounding=rounding,
            certified=not self.uncovered,
            assumptions=(*self.assumptions, *notes),
            reason=reason,
        )


def _followed(program: Program, matrix: np.ndarray) -> Program:
    """A program with a matrix after it, multiplied into its last step where that is affine."""
    last = program.steps[-1]
    if isinstance(last, Affine) and last.out == program.output:
        terms = tuple(
            (source, Dense(matrix @ np.asarray(operator.dense()))) for source, operator in last.terms
        )
        offset = None if last.offset is None else matrix @ np.asarray(last.offset, np.float64).reshape(-1)
        steps = (*program.steps[:-1], replace(last, terms=terms, size=len(matrix), offset=offset))
        return Program(program.input_size, steps, last.out)
    step = Affine(max(program.sizes) + 1, ((program.output, Dense(matrix)),), len(matrix))
    return Program(program.input_size, (*program.steps, step), step.out)
