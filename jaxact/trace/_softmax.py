"""Softmax and log-sum-exp: steps known by one number, or by how much each entry weighs."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.special

from jaxact.trace import _stretch
from jaxact.trace._compose import Order, below, dense_operator, offset_of
from jaxact.trace._expr import constant
from jaxact.trace._graph import Graph, is_constant
from jaxact.trace._leaps import Formula, Known, Softmax, Weights
from jaxact.trace._nodes import Gathered, Node, Sum, Total, Value, whole

_LARGE = 2048  # entries up to which a difference is looked at


def logsumexp(graph: Graph, value: Value, shape: tuple[int, ...]) -> Value | None:
    """The log of k times a sum of exponentials, such as their mean; None if the value is no such product."""
    inner = value.expr.args[0] if value.expr.op == "abs" else value.expr  # the sum is positive
    k, rest = inner.affine or (0.0, 0.0)
    is_product = np.ndim(k) == np.ndim(rest) == 0 and 0 < k < np.inf and rest == 0
    found = _exponentials(graph, value.node) if is_product else None
    if found is None:
        return None
    _, x, c, positions = found
    lse = _log_of_sum(graph, x, positions, shape)
    if k != 1:
        lse = graph.applied("add", lse.node, [lse.expr, constant(np.log(k))], shape)
    if c is None:
        return lse
    result = graph.sum(lse, whole(c, shape), -1.0, shape)
    graph.shifts.add(c)
    result.node.uncut()  # c is added back soon: as long as this is no variable of its own, it cancels
    return result


def pair(graph: Graph, u: Value, v: Value, shape: tuple[int, ...]) -> Value:
    """log(exp(u) + exp(v)), entry by entry."""
    joined = graph.node(graph.chained([u, v], (2, *shape)))
    return _log_of_sum(graph, joined, np.arange(joined.size).reshape(2, -1).T, shape)


def _log_of_sum(graph: Graph, x: Node, positions: np.ndarray, shape: tuple[int, ...]) -> Value:
    graph.has_choice = True
    if not graph.contract:
        return whole(_weighted(graph, x, positions), shape)
    known = _stretch.ordered(
        "logsumexp",
        1.0,
        x.shape,
        lambda v: scipy.special.logsumexp(v.reshape(-1)[positions], axis=1),
        mean_of=positions,
    )
    return graph.known(whole(x), shape, known)


def softmax(graph: Graph, u: Any, v: Any, shape: tuple[int, ...]) -> Value | None:
    """exp(x_i) / sum_j exp(x_j) = exp(x_i - lse(x)); None if u / v is no such quotient."""
    if is_constant(u) or is_constant(v) or not v.is_plain or not isinstance(v.node, Gathered):
        return None
    total = v.node.parents[0]
    found = _exponentials(graph, total)
    if found is None or graph.has_node(u) is not total.parents[0]:
        return None
    _, x, _, positions = found
    index = v.node.index.reshape(-1)
    if not (index[positions] == np.arange(total.size)[:, None]).all():
        return None
    graph.has_choice = True
    if graph.contract:
        return graph.known(whole(x), shape, _stretch.softmax(positions))
    lse = graph.taken(_weighted(graph, x, positions), index.reshape(shape))
    shifted = graph.sum(whole(x, shape), whole(lse, shape), -1.0, shape).node
    shifted.cut()
    return whole(graph.add(Softmax(shape, shifted, x, positions)))


def exponential(graph: Graph, value: Value, shape: tuple[int, ...]) -> Value | None:
    """exp(x - log sum exp(x)), which is softmax(x); None if the value is no such difference."""
    node = value.node
    if not (value.is_plain and node.is_affine) or node.size > _LARGE:
        return None
    order = below(node, deep=True)
    leaves = {each for each in order if not each.is_affine and dense_operator(order, each).any()}
    for lse in leaves:
        if isinstance(lse, Weights):
            positions = lse.positions
        elif isinstance(lse, Known) and lse.known.name == "logsumexp" and lse.known.mean_of is not None:
            positions = lse.known.mean_of
        else:
            continue
        x = lse.parents[0]
        if leaves != {lse, x} or not _is_shifted(order, x, lse, positions):
            continue
        if graph.contract:
            return graph.known(whole(x), shape, _stretch.softmax(positions))
        node.cut()
        return whole(graph.add(Softmax(shape, node, x, positions)))
    return None


def _is_shifted(order: Order, x: Node, lse: Node, positions: np.ndarray) -> bool:
    """Whether a map is x minus the log of the sum that each entry is in."""
    size = order[-1].size
    if size != x.size or offset_of(order).any():
        return False
    group = np.empty(size, int)
    group[positions] = np.arange(len(positions))[:, None]
    expected = np.zeros((size, lse.size))
    if isinstance(lse, Weights):
        expected[np.arange(size)[:, None], positions[group]] = -1.0
    else:
        expected[np.arange(size), group] = -1.0
    return np.array_equal(dense_operator(order, x), np.eye(size)) and np.array_equal(
        dense_operator(order, lse), expected
    )


def _exponentials(graph: Graph, total: Node) -> tuple[Node, Node, Node | None, np.ndarray] | None:
    """Of a sum of exp(r): r, x, c and the positions [sum, term], where r = x - c if c is equal within each sum."""
    if not isinstance(total, Total) or not isinstance(terms := total.parents[0], Formula):
        return None
    if terms.expr.op != "exp" or terms.expr.args[0].affine is None:
        return None
    positions = total.positions
    r = graph.node(Value(terms.parents[0], terms.expr.args[0], terms.shape))
    if isinstance(r, Sum) and r.sign == -1:
        x, c = r.parents
        if isinstance(c, Gathered) and c.is_plain:
            index = c.index.reshape(-1)[positions]
            if (index == index[:, :1]).all():  # log sum exp(x - c) = log sum exp(x) - c
                return r, x, graph.taken(c.parents[0], index[:, 0].reshape(total.shape)), positions
    return r, r, None, positions


def _weighted(graph: Graph, x: Node, positions: np.ndarray) -> Node:
    """The log of the sum exp(x) as a sum of its own."""
    x.cut()
    weighted = graph.taken(graph.add(Weights(x, positions)), positions)
    return graph.add(Total(weighted, positions.shape, (1,)))
