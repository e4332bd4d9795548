"""The nodes that are no affine maps, each with the steps of a program that it becomes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from jaxact.errors import ArgumentError
from jaxact.trace._expr import Expr, evaluate
from jaxact.trace._nodes import Node
from jaxact.trace._operators import Identity
from jaxact.trace._program import Affine, Contraction, Elementwise, Step
from jaxact.trace._slopes import slope_range, value_range
from jaxact.trace._stretch import Stretched, softmax_range


class Formula(Node):
    """f(x), entry by entry."""

    def __init__(self, parent: Node, expr: Expr):
        super().__init__(parent.shape, (parent,), (parent, expr))
        self.expr = expr

    def steps(self, fresh: Iterator[int], numbers: Mapping[Node, int]) -> Sequence[Step]:
        expr, source = self.expr, numbers[self.parents[0]]

        def slopes(intervals: Any) -> Any:
            everywhere, here = slope_range(expr), slope_range(expr, *intervals[source])
            return np.maximum(everywhere.lower, here.lower), np.minimum(everywhere.upper, here.upper)

        return [
            Elementwise(
                next(fresh),
                source,
                slopes,
                self.size,
                value=lambda values: evaluate(expr, values[source]),
                range=lambda intervals: value_range(expr, *intervals[source]),
            )
        ]


class Known(Node):
    """A step that is known by the most that it stretches anything: a maximum, a norm, a softmax."""

    def __init__(self, shape: Sequence[int], parent: Node, known: Stretched):
        super().__init__(shape, (parent,))
        self.known = known

    def steps(self, fresh: Iterator[int], numbers: Mapping[Node, int]) -> Sequence[Step]:
        source, known = numbers[self.parents[0]], self.known
        return [
            Contraction(
                next(fresh),
                source,
                self.size,
                constant=lambda intervals, reach: known.bound(*intervals[source], reach),
                value=lambda values: known.value(values[source]),
                range=lambda intervals: known.range(*intervals[source]),
            )
        ]


class Product(Node):
    """x y, entry by entry: bounded within regions, for the reason `where` not over all inputs."""

    def __init__(self, shape: Sequence[int], first: Node, second: Node, where: ArgumentError):
        super().__init__(shape, (first, second))
        self.where = where

    def steps(self, fresh: Iterator[int], numbers: Mapping[Node, int]) -> Sequence[Step]:
        x, y = (numbers[parent] for parent in self.parents)
        p, q, out = itertools.islice(fresh, 3)
        size, zero = self.size, np.zeros(self.size)
        first = Elementwise(
            p,
            x,
            lambda intervals: intervals[y],
            size,
            value=lambda values: values[x] * values[y],
            range=lambda intervals: products(*intervals[x], *intervals[y]),
            is_function=False,
            reads=(y,),
        )
        second = Elementwise(
            q,
            y,
            lambda intervals: intervals[x],
            size,
            value=lambda values: zero,
            range=lambda intervals: (zero, zero),
            is_function=False,
            reads=(x,),
        )
        return [first, second, Affine(out, ((p, Identity(size)), (q, Identity(size))), size)]


class Weights(Node):
    """What adds up to log sum exp(x): d lse = sum_j w_j dx_j, w_j between the extremes of softmax(x)_j.

    Attributes:
        positions: [sum, term], the entries of x in each sum.
    """

    def __init__(self, parent: Node, positions: np.ndarray):
        super().__init__(parent.shape, (parent,))
        self.positions = positions

    def steps(self, fresh: Iterator[int], numbers: Mapping[Node, int]) -> Sequence[Step]:
        positions, x = self.positions, numbers[self.parents[0]]

        def of_sums(sums: np.ndarray) -> np.ndarray:
            spread = np.zeros(self.size)  # the first of each sum stands for all
            spread[positions[:, 0]] = sums
            return spread

        def bounds(intervals: Any) -> Any:
            lower, upper = (scipy.special.logsumexp(end[positions], axis=1) for end in intervals[x])
            slack = 1e-15 * (positions.shape[1] + 16)
            lower, upper = lower - slack * (1 + np.abs(lower)), upper + slack * (1 + np.abs(upper))
            lower, upper = np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper)
            return of_sums(lower), of_sums(upper)

        return [
            Elementwise(
                next(fresh),
                x,
                lambda intervals: softmax_range(positions, *intervals[x]),
                self.size,
                value=lambda values: of_sums(scipy.special.logsumexp(values[x][positions], axis=1)),
                range=bounds,
                is_function=False,
            )
        ]


class Softmax(Node):
    """exp(s), s = x - log sum exp(x): its slope lies between its own extreme values.

    Attributes:
        positions: [sum, term], the entries of x in each sum.
    """

    def __init__(self, shape: Sequence[int], shifted: Node, x: Node, positions: np.ndarray):
        super().__init__(shape, (shifted, x))
        self.positions = positions

    def steps(self, fresh: Iterator[int], numbers: Mapping[Node, int]) -> Sequence[Step]:
        source, x = (numbers[parent] for parent in self.parents)

        def bounds(intervals: Any) -> Any:
            return softmax_range(self.positions, *intervals[x])

        return [
            Elementwise(
                next(fresh),
                source,
                bounds,
                self.size,
                value=lambda values: np.exp(values[source]),
                range=bounds,
                reads=(x,),
            )
        ]


def products(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The interval of x y for x in [a, b] and y in [c, d]."""
    with np.errstate(invalid="ignore", over="ignore"):
        products = np.stack([a * c, a * d, b * c, b * d])
    unknown = np.isnan(products).any(0)
    lower, upper = np.where(unknown, -np.inf, products.min(0)), np.where(unknown, np.inf, products.max(0))
    return np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf)
