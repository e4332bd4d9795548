"""Sums with weights: which entries of a formula are summed, how often, and as the plain sum of what."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxact.trace._expr import Expr, variable
from jaxact.trace._graph import Graph
from jaxact.trace._leaps import Formula
from jaxact.trace._nodes import Gathered, Node, Scaled, Total, Value, whole


class Weighted(NamedTuple):
    """The sums of w_j f(x_j).

    Attributes:
        of: the node x, and the formula f.
        entries: [sum, term], those of x.
        weights: [sum, term], >= 0; 0 where a mask leaves one out.
    """

    of: tuple[Node, Expr]
    entries: np.ndarray
    weights: np.ndarray


def weighted_sum(total: Node) -> Weighted | None:
    """What a node is the sums of; None if it is none, or not of one formula with weights that are not negative."""
    if not isinstance(total, Total):
        return None
    node, index = total.parents[0], total.positions
    weights = np.ones(index.shape)
    while not isinstance(node, Formula):
        if not isinstance(node, Scaled | Gathered) or len(node.parents) != 1:
            return None
        (parent,) = node.parents
        if isinstance(node, Scaled):
            if np.any(node.shift):
                return None
            weights = weights * np.broadcast_to(node.factor, (node.size,))[index]
        else:
            places = node.index.reshape(-1)[index]
            is_in = places < parent.size
            if node.constants is not None and np.any(node.constants[places[~is_in] - parent.size]):
                return None
            # What a mask leaves out is the entry at the same place where there is one.
            places = np.where(is_in, places, index if parent.size == node.size else 0)
            index, weights = places, np.where(is_in, weights, 0.0)
        node = parent
    expr, factor = _factor(node.expr)
    weights = weights * np.broadcast_to(factor, (node.size,))[index]
    is_usual = bool((weights >= 0).all() and np.isfinite(weights).all())
    return Weighted((node.parents[0], expr), index, weights) if is_usual else None


def are_all_once(entries: np.ndarray, x: Node) -> bool:
    """Whether sums have every entry of x, each in one place: sums that share entries stretch x more than one does."""
    return entries.size == x.size and bool((np.bincount(entries.reshape(-1), minlength=x.size) == 1).all())


def _factor(expr: Expr) -> tuple[Expr, Any]:
    """A formula as another times a number, or one for each entry: also where a mask puts zeros."""
    if expr.op == "mul" and any(arg.is_constant for arg in expr.args):
        factor, other = expr.args if expr.args[0].is_constant else expr.args[::-1]
        return other, factor.value
    if expr.op == "mul" and all(arg.affine and not np.any(arg.affine[1]) for arg in expr.args):
        (a, _), (b, _) = (arg.affine for arg in expr.args)
        return variable() ** 2, np.asarray(a) * b
    if expr.op == "select_n" and expr.args[0].is_constant:
        which, no, yes = expr.args
        for case, other, mask in ((no, yes, np.asarray(which.value)), (yes, no, ~np.asarray(which.value))):
            if case.is_constant and not np.any(case.value):
                return other, mask.astype(float)
    return expr, 1.0


def spelled_out(
    graph: Graph, x: Node, entries: np.ndarray, weights: np.ndarray
) -> tuple[Value, np.ndarray] | None:
    """The entries that have a weight, and that [sum, term]; None for an empty sum.

    Sums with fewer terms than others have their first several times, each with its share of the weight.
    """
    is_in = weights > 0
    counts = is_in.sum(1, keepdims=True)
    if not counts.all():
        return None
    slots = np.arange(counts.max())
    where = np.argsort(~is_in, axis=1, kind="stable")[:, : slots.size]
    where = np.where(slots < counts, where, where[:, :1])
    shares = np.where(where == where[:, :1], 1 + slots.size - counts, 1)
    x, index = _unmasked(x, np.take_along_axis(entries, where, 1))
    return whole(graph.taken(x, index), where.shape), np.take_along_axis(weights, where, 1) / shares


def _unmasked(x: Node, index: np.ndarray) -> tuple[Node, np.ndarray]:
    """The same entries without the constants that stand among others."""
    if not isinstance(x, Gathered) or x.constants is None or len(x.parents) > 1:
        return x, index
    places = x.index.reshape(-1)[index]
    return (x.parents[0], places) if (places < x.parents[0].size).all() else (x, index)
