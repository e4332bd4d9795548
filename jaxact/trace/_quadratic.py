"""Quadratic forms: a sum of products of two affine maps of one array, as a step that is known by its gradient.

Of f(x) = (A x + a) . (B x + b) the gradient is H x + c, H = A^T B + B^T A, c = A^T b + B^T a. Where f = x^T S x with
S >= 0 it is the square of a length, |S^1/2 x|^2, whose root is one step too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxact.trace._compose import below, dense_operator, leaves_of, offset_of, roots_of
from jaxact.trace._graph import Graph
from jaxact.trace._leaps import Known, Product, products
from jaxact.trace._nodes import Bound, Node, Total, Value, whole
from jaxact.trace._program import Reach
from jaxact.trace._stretch import Stretched, lengths, times_interval

_LARGEST = 512  # entries of x up to which H is written out
_UP = 1 + 1e-12
_NOTHING = 1e-14  # of the largest eigenvalue: what may be 0


@dataclass(frozen=True)
class Quadratic:
    """The form x^T H x / 2 + c . x + d of a node x."""

    x: Node
    H: np.ndarray
    c: np.ndarray
    d: float


def form(graph: Graph, node: Node, shape: tuple[int, ...]) -> Value | None:
    """The sum of all entries of a product, if it is a quadratic form; None if not, or where it is not to be a step."""
    maps = _maps(node) if isinstance(node, Product) else None
    if maps is None:
        return None
    x, (A, a), (B, b) = maps
    H = A.T @ B
    H = H + H.T
    if not H.any() or not np.isfinite(H).all():  # the engine refuses what is not finite by name
        return None
    graph.has_choice = True
    if not graph.contract:
        return None
    found = Quadratic(x, H, A.T @ b + B.T @ a, float(a @ b))
    eigenvalues = np.linalg.eigvalsh(H)
    largest = float(np.abs(eigenvalues).max()) * _UP
    extremes = eigenvalues[0] - 1e-12 * largest, eigenvalues[-1] + 1e-12 * largest

    def value(v: Any) -> Any:
        return np.atleast_1d((A @ v + a) @ (B @ v + b))

    def ends(lower: Any, upper: Any) -> tuple[Any, Any]:
        sides = [[end + t for end in times_interval(M, lower, upper)] for M, t in ((A, a), (B, b))]
        low, high = products(*sides[0], *sides[1])
        slack = 1e-15 * (8 + len(A)) * np.sum(np.maximum(np.abs(low), np.abs(high)))
        least, most = low.sum() - slack, high.sum() + slack
        if not found.c.any() and np.isfinite(lower).all() and np.isfinite(upper).all():
            squares = [np.square(each).sum() for each in lengths(np.arange(x.size)[None], lower, upper)]
            least = max(least, min(extremes[0] * each for each in squares) / 2 + found.d - slack)
            most = min(most, max(extremes[1] * each for each in squares) / 2 + found.d + slack)
        return np.atleast_1d(least), np.atleast_1d(most)

    def rounding(far: Any) -> float:
        """Of H v + c, |v| <= far, which may all but cancel."""
        sizes = times_interval(np.abs(H), -far, far)[1] + np.abs(found.c)
        return 1e-15 * (8 + x.size) * _length(sizes)

    def within(lower: Any, upper: Any, reach: Reach | None) -> float:
        low, high = times_interval(H, lower, upper)
        steepest = _length(np.maximum(np.abs(low + found.c), np.abs(high + found.c)))
        steepest += rounding(np.maximum(np.abs(lower), np.abs(upper)))
        if reach is not None:
            middle = _length(H @ reach.center + found.c) + rounding(np.abs(reach.center))
            steepest = min(steepest, middle + largest * reach.radius)
        return steepest * _UP

    return graph.known(
        whole(x), shape, Stretched("quadratic form", math.inf, value, ends, within, radial=found)
    )


def _length(v: np.ndarray) -> float:
    """|v|, though the squares of its entries may underflow."""
    largest = float(np.max(np.abs(v), initial=0.0))
    return largest * float(np.linalg.norm(v / largest)) if 0 < largest < math.inf else largest


def root(graph: Graph, node: Node) -> tuple[Node, float] | None:
    """(y, s) of a form that is s |y|^2, s = 1 or -1; None if it is none of eigenvalues of one sign."""
    found = node.known.radial if isinstance(node, Known) else None
    if not isinstance(found, Quadratic) or found.c.any() or found.d != 0:
        return None
    values, vectors = np.linalg.eigh(found.H / 2)
    least = _NOTHING * np.abs(values).max()
    if values[0] < -least and values[-1] > least:
        return None
    # What counts as 0 is not left out: what is large in its direction alone would have no slope.
    L = np.sqrt(np.maximum(np.abs(values), least))[:, None] * vectors.T
    made = Bound(
        (len(L),),
        [found.x],
        lambda a, v: a @ v,
        (1,),
        [(found.x.size,)],
        [L, None],
        linear=(0,),
        is_product=True,
    )
    return graph.add(made), float(np.sign(values[np.abs(values).argmax()]))


def _maps(product: Product) -> tuple[Node, tuple[Any, Any], tuple[Any, Any]] | None:
    """The one node that both factors are affine maps of, one of them if it may be, and these as (matrix, offset)."""
    first, second = product.parents
    for x, other in ((first, second), (second, first)):
        if other.is_affine and leaves_of(other) == {x} and x.size <= _LARGEST:
            own, given = (np.eye(x.size), np.zeros(x.size)), _written(other, x, deep=False)
            return (x, own, given) if x is first else (x, given, own)
    roots = _roots(first)
    if len(roots) != 1 or roots != _roots(second) or roots[0].size > _LARGEST:
        return None
    (x,) = roots
    return x, _written(first, x, deep=True), _written(second, x, deep=True)


def _roots(node: Node) -> list[Node]:
    return (roots_of(node, 1) or []) if node.is_affine else [node]


def _written(node: Node, x: Node, *, deep: bool) -> tuple[np.ndarray, np.ndarray]:
    if node is x:
        return np.eye(x.size), np.zeros(x.size)
    order = below(node, deep=deep)
    return dense_operator(order, x), offset_of(order)


def summed(graph: Graph, node: Node, grid: Any, axes: Any, shape: tuple[int, ...]) -> Value:
    """The sums of a node's entries along axes of a grid."""
    found = form(graph, node, shape) if math.prod(shape) == 1 else None
    return whole(graph.add(Total(node, grid, axes)), shape) if found is None else found
