"""Softmax and log-sum-exp: steps known by one number, or by how much each entry weighs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy

from jaxact.trace import _stretch
from jaxact.trace._compose import Order, below, dense_operator, offset_of
from jaxact.trace._expr import Expr, constant
from jaxact.trace._graph import Graph, is_constant
from jaxact.trace._leaps import Formula, Known, Softmax, Weights
from jaxact.trace._nodes import Gathered, Node, Sum, Total, Value, whole
from jaxact.trace._weights import are_all_once, spelled_out, weighted_sum

_LARGE = 2048  # entries up to which a difference is looked at


class Exponentials(NamedTuple):
    """A sum of exp(r_j): what r is, if c is equal within each sum the difference x - c.

    Attributes:
        of: what exp(r) is a formula of, and that formula.
        x: what is left of r without c.
        c: what was subtracted, one entry a sum; or None.
        entries: [sum, term], those of x in each sum.
        weights: [sum, term], >= 0, what each is multiplied by; 0 where a mask leaves it out.
    """

    of: tuple[Node, Expr]
    x: Node
    c: Node | None
    entries: np.ndarray
    weights: np.ndarray


def logsumexp(graph: Graph, value: Value, shape: tuple[int, ...], more: float = 0.0) -> Value | None:
    """The log of a sum a_j exp(x_j) + b of exponentials, a_j > 0, b >= 0; None if the value is no such sum.

    `more` is added to the value.
    """
    inner = value.expr.args[0] if value.expr.op == "abs" else value.expr  # the sum is positive
    if inner.affine is None:
        return None
    found = _exponentials(graph, value.node)
    if found is None:
        return None
    factor, added = (np.broadcast_to(each, (value.size,)) for each in inner.affine)
    added = added + more
    if not ((factor > 0).all() and (added >= 0).all() and np.isfinite(factor * added).all()):
        return None
    weights = found.weights * factor[:, None]
    if (added > 0).any() and found.c is not None:
        return None
    joined = _with_logs(graph, found.x, found.entries, weights, added)
    if joined is None:
        return None
    lse = _log_of_sum(graph, *joined, shape)
    if found.c is None:
        return lse
    result = graph.sum(lse, whole(found.c, shape), -1.0, shape)
    graph.shifts.add(found.c)
    result.node.uncut()  # c is added back soon: as long as this is no variable of its own, it cancels
    return result


def _with_logs(
    graph: Graph, x: Node, index: np.ndarray, weights: np.ndarray, added: np.ndarray
) -> tuple[Node, np.ndarray] | None:
    """What a weighted sum of exponentials is the plain sum of, and its terms [sum, term]; None for an empty sum.

    Of x_j + log a_j, and log b. Sums with fewer terms than others have their first several times, each of that share.
    """
    if (weights == 1).all() and not added.any() and are_all_once(index, x):
        return x, index
    found = spelled_out(graph, x, index, weights)
    if found is None:
        return None
    terms, logs = found[0], np.log(found[1])
    if logs.any():
        terms = graph.scaled("add", terms, constant(logs.reshape(-1)), terms.shape)
    order = np.arange(terms.size).reshape(terms.shape)
    if added.any():
        if not (added > 0).all():
            return None
        order = np.concatenate([order, terms.size + np.arange(len(order))[:, None]], 1)
        terms = graph.gathered([terms, np.log(added)], order)
    return graph.node(terms), np.arange(order.size).reshape(order.shape)


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
    found = _exponentials(graph, v.node.parents[0])
    if found is None or _formula(u) != found.of:
        return None
    x, positions = found.x, _all_terms(found)
    index = v.node.index.reshape(-1)
    if positions is None or not (index[positions] == np.arange(len(positions))[:, None]).all():
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
    is_partition = np.array_equal(np.sort(positions, axis=None), np.arange(size))
    if size != x.size or not is_partition or offset_of(order).any():
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


def _exponentials(graph: Graph, total: Node) -> Exponentials | None:
    """What a node is the sums of exponentials of; None if it is none."""
    found = weighted_sum(total)
    if found is None:
        return None
    (node, expr), index, weights = found
    if expr.op != "exp" or expr.args[0].affine is None:
        return None
    r = graph.node(Value(node, expr.args[0], node.shape))
    if isinstance(r, Sum) and r.sign == -1:
        x, c = r.parents
        if isinstance(c, Gathered) and c.is_plain:
            shifts = c.index.reshape(-1)[index]
            if (shifts == shifts[:, :1]).all():  # log sum exp(x - c) = log sum exp(x) - c
                taken = graph.taken(c.parents[0], shifts[:, 0].reshape(total.shape))
                return Exponentials((node, expr), x, taken, index, weights)
    return Exponentials((node, expr), r, None, index, weights)


def _formula(value: Value) -> tuple[Node, Expr]:
    """What a value is a formula of, and that formula."""
    node = value.node
    if value.is_plain and isinstance(node, Formula):
        return node.parents[0], node.expr
    return node, value.expr


def _all_terms(found: Exponentials) -> np.ndarray | None:
    """Every entry of x once, in its sum [sum, term], also those left out whose exponential is 0; None otherwise."""
    if not are_all_once(found.entries, found.x):
        return None
    left_out = found.entries[found.weights == 0]
    if not np.isin(found.weights, (0.0, 1.0)).all() or not _is_masked(found.x)[left_out].all():
        return None
    return found.entries


def _is_masked(x: Node) -> np.ndarray:
    """Which entries are -inf, put there by a mask [size]."""
    if not isinstance(x, Gathered) or x.constants is None:
        return np.zeros(x.size, bool)
    values = np.concatenate([np.zeros(sum(parent.size for parent in x.parents)), x.constants])
    return np.isneginf(values[x.index.reshape(-1)])


def _weighted(graph: Graph, x: Node, positions: np.ndarray) -> Node:
    """The log of the sum exp(x) as a sum of its own."""
    x.cut()
    weighted = graph.taken(graph.add(Weights(x, positions)), positions)
    return graph.add(Total(weighted, positions.shape, (1,)))
