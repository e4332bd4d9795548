"""What is affine or a mean between a few affine pieces: its largest slope is that of a piece.

Where J = A + sum_g P_g with P_g any mean of a few matrices each, the norm, a convex function, is largest where every
P_g is one of them. So it is for a x + c log sum exp(x) (the weights of its gradient are a mean of unit vectors), for
maxima, and for a continuous choice between affine maps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from jaxact.trace._compose import below, dense_operator, leaves_of, offset_of, roots_of
from jaxact.trace._expr import variable
from jaxact.trace._graph import Graph
from jaxact.trace._leaps import Formula, Known
from jaxact.trace._nodes import Node
from jaxact.trace._radial import Radial
from jaxact.trace._side_by_side import side_by_side
from jaxact.trace._stretch import Stretched, of_length, times_interval

_MOST_PIECES = 4096  # of one group of entries that depend on each other
_MOST_ROOTS = 16  # of a map that is looked at
_MOST_WORK = 1e8  # entries of all pieces together, times their smaller side


@dataclass(frozen=True)
class Group:
    """Rows [k] of the map, and the alternatives [choice, k, in] of what they have besides A."""

    rows: np.ndarray
    choices: np.ndarray


def largest_norm(base: np.ndarray, groups: Sequence[Group]) -> float | None:
    """The largest ||A + sum_g P_g|| over all choices, from above; None where there are too many."""
    out, size = base.shape
    touched = base != 0
    links = [(np.nonzero(touched)[0], out + np.nonzero(touched)[1])]
    for group in groups:
        columns = np.flatnonzero((group.choices != 0).any((0, 1)))
        links += [(np.full(columns.size, group.rows[0]), out + columns)]
        links += [(np.full(group.rows.size, group.rows[0]), group.rows)]
    start, end = (np.concatenate([pair[k] for pair in links]) for k in (0, 1))
    graph = scipy.sparse.csr_array((np.ones(start.size), (start, end)), (out + size, out + size))
    _, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    largest = 0.0
    for each in np.unique(label[:out]):
        inside = [group for group in groups if label[group.rows[0]] == each]
        found = _largest_of_part(base, inside, label[:out] == each, label[out:] == each)
        if found is None:
            return None
        largest = max(largest, found)
    return largest


def _largest_of_part(
    base: np.ndarray, groups: Sequence[Group], rows: np.ndarray, columns: np.ndarray
) -> float | None:
    part = base[np.ix_(rows, columns)]
    count = math.prod(len(group.choices) for group in groups)
    if count > _MOST_PIECES or count * part.size * min(part.shape, default=1) > _MOST_WORK:
        return None
    place = np.cumsum(rows) - 1
    largest = 0.0
    for chosen in itertools.product(*(group.choices for group in groups)):
        J = part.copy()
        for group, choice in zip(groups, chosen, strict=True):
            J[place[group.rows]] += choice[:, columns]
        largest = max(largest, float(np.linalg.norm(J, 2)) if J.size else 0.0)
    return largest * (1 + 1e-13 * (1 + max(part.shape)))


def shortcuts(graph: Graph, result: Node) -> Callable[[Node], Node]:
    """For affine maps of x and of means of its entries (log sum exp, maxima) the steps from x that they can be."""
    ends = {parent for node in graph.nodes if not node.is_affine for parent in node.parents} | {result}

    def instead(node: Node) -> Node:
        if isinstance(node, Formula):
            return side_by_side(graph, node, [node]) or node
        if not node.is_affine or node not in ends:
            return node
        leaves = roots_of(node, _MOST_ROOTS)
        if leaves is None:
            return node
        if len(leaves) == 1 and (square := _of_squares(graph, node, leaves[0])) is not None:
            return square if graph.contract else node
        if (joint := side_by_side(graph, node, leaves)) is not None:
            return joint
        if not graph.contract:
            return node
        return _of_means(node, leaves) or node

    return instead


def _of_squares(graph: Graph, node: Node, squares: Node) -> Known | None:
    """One sum a sum_j x_j^2 + c, as a function of a length."""
    if node.size != 1 or not isinstance(squares, Formula) or squares.expr.op != "integer_pow":
        return None
    order, (inner,) = below(node, deep=True), squares.expr.args
    if squares.expr.param != 2 or inner.op != "var" or squares.size > 2**16:
        return None
    (row,) = dense_operator(order, squares)
    (places,) = np.nonzero(row)
    if places.size == 0 or np.ptp(row[places]) > 1e-15 * abs(row[places[0]]):
        return None
    graph.has_choice = True
    length = float(row[places[0]]) * variable() ** 2 + float(offset_of(order)[0])
    return Known(node.shape, squares.parents[0], of_length(Radial(squares.parents[0], places[None], length)))


@dataclass(frozen=True)
class _Mean:
    """Outputs, each a mean of entries of R x + b in its slopes, and what they are multiplied by [out, output]."""

    known: Stretched
    entries: np.ndarray  # [output, entry]
    R: np.ndarray
    b: np.ndarray
    C: np.ndarray

    def read(self, v: Any) -> Any:
        return self.R @ v + self.b

    def interval(self, lower: Any, upper: Any) -> tuple[Any, Any]:
        low, high = times_interval(self.R, lower, upper)
        slack = 1e-14 * (self.R.shape[1] + 8) * (np.abs(low) + np.abs(high) + np.abs(self.b))
        return self.known.range(low + self.b - slack, high + self.b + slack)

    def groups(self) -> Iterator[Group]:
        for column, entries in zip(self.C.T, self.entries, strict=True):
            rows = np.flatnonzero(column)
            if rows.size:
                yield Group(rows, column[rows][:, None] * self.R[entries][:, None])


def _of_means(node: Node, leaves: Sequence[Node]) -> Known | None:
    """An affine map of one variable and of means of affine maps of that; None if it is more than that."""
    found = [
        (each, each.known.mean_of)
        for each in leaves
        if isinstance(each, Known) and each.known.mean_of is not None
    ]
    roots: set[Node] = set(leaves) - {each for each, _ in found}
    for parent in (each.parents[0] for each, _ in found):
        below_it = roots_of(parent, 1) if parent.is_affine else [parent]
        if not below_it:  # several, or none
            return None
        roots |= set(below_it)
    if not found or len(roots) != 1:
        return None
    (x,) = roots
    if max(node.size, x.size, *(entries.size for _, entries in found)) * x.size > 2**20:
        return None
    order = below(node, deep=True)
    A = dense_operator(order, x) if x in order else np.zeros((node.size, x.size))
    means = []
    for each, entries in found:
        inner = below(each.parents[0], deep=True)
        R = np.eye(x.size) if inner[-1] is x else dense_operator(inner, x)
        means.append(_Mean(each.known, entries, R, offset_of(inner), dense_operator(order, each)))
    constant = largest_norm(A, [group for mean in means for group in mean.groups()])
    if constant is None:
        return None
    offset = offset_of(order)

    def value(v: Any) -> Any:
        return A @ v + sum(mean.C @ mean.known.value(mean.read(v)) for mean in means) + offset

    def ends(lower: Any, upper: Any) -> tuple[Any, Any]:
        low, high = times_interval(A, lower, upper)
        for mean in means:
            first, second = times_interval(mean.C, *mean.interval(lower, upper))
            low, high = low + first, high + second
        slack = 1e-14 * (x.size + 8) * (np.abs(low) + np.abs(high) + np.abs(offset))
        return low + offset - slack, high + offset + slack

    return Known(node.shape, x, Stretched(means[0].known.name, constant, value, ends))


def chosen(no: Node, yes: Node, groups: np.ndarray, value: Callable[[Any], Any]) -> Stretched | None:
    """A continuous choice between two affine maps of one variable, one for each group of entries [out]; None if not."""
    orders = below(no), below(yes)
    leaves = leaves_of(no) | leaves_of(yes)
    if len(leaves) != 1:
        return None
    (x,) = leaves
    if no.size * x.size > 2**18:
        return None
    A, B = (dense_operator(order, x) for order in orders)
    parts = []
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        parts.append(Group(rows, np.stack([np.zeros((rows.size, x.size)), (B - A)[rows]])))
    constant = largest_norm(A, parts)
    if constant is None:
        return None

    def ends(lower: Any, upper: Any) -> tuple[Any, Any]:
        first, second = (times_interval(M, lower, upper) for M in (A, B))
        shift = [offset_of(order) for order in orders]
        low = np.minimum(first[0] + shift[0], second[0] + shift[1])
        high = np.maximum(first[1] + shift[0], second[1] + shift[1])
        slack = 1e-14 * (x.size + 8) * (np.abs(low) + np.abs(high))
        return low - slack, high + slack

    return Stretched("where", constant, value, ends)
