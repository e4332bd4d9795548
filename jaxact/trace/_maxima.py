"""Maxima, sorting and what else puts entries in order: as steps known by one number, or by relu of differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxact.trace import _stretch
from jaxact.trace._expr import UnsupportedError, constant
from jaxact.trace._formula import apply
from jaxact.trace._graph import Graph, is_constant
from jaxact.trace._nodes import Gathered, Node, Sum, Value, positions, whole


def larger(graph: Graph, u: Value, v: Value, name: str, shape: tuple[int, ...]) -> Value:
    """max(u, v) = v + relu(u - v), min(u, v) = v - relu(v - u); or the second and the first of the sorted pair."""
    graph.has_choice = True
    if graph.contract:
        return whole(graph.taken(_sorted_pair(graph, u, v, shape), _half(shape, name == "max")))
    sign = 1.0 if name == "max" else -1.0
    difference = graph.sum(u, v, -1.0, shape) if name == "max" else graph.sum(v, u, -1.0, shape)
    expr = apply("max", [difference.expr, constant(0.0)])
    return graph.sum(v, Value(difference.node, expr, shape, graph.noted(expr)), sign, shape)


def _sorted_pair(graph: Graph, u: Value, v: Value, shape: tuple[int, ...]) -> Node:
    """Both in order, one step that max(u, v) and min(u, v) share: together they stretch nothing."""
    first, second = graph.node(u), graph.node(v)
    key = frozenset((first, second))
    if key not in graph.pairs:
        joined = graph.chained([whole(first), whole(second)], (2, *shape))
        graph.pairs[key] = _ordered(graph, joined, joined.shape, "sort", 1.0, lambda v: np.sort(v, 0)).node
    return graph.pairs[key]


def _half(shape: tuple[int, ...], second: bool) -> np.ndarray:
    size = math.prod(shape)
    return np.arange(size).reshape(shape) + (size if second else 0)


def larger_by_choice(graph: Graph, values: list[Any], shape: tuple[int, ...]) -> Any:
    """where(a > b, a, b) and the like: the larger or the smaller of both; None if it is no such choice."""
    which, *cases = values
    if any(is_constant(case) for case in cases) or len(cases) != 2:
        return None
    compared = which.node
    if not (isinstance(compared, Sum) and compared.sign == -1 and which.expr.op in ("gt", "ge", "lt", "le")):
        return None
    difference, zero = which.expr.args
    if difference.op != "var" or not zero.is_constant or np.any(zero.value):
        return None
    no, yes = (graph.node(case) for case in cases)
    for order, name in (((yes, no), "max"), ((no, yes), "min")):
        if compared.parents == order:
            name = name if which.expr.op[0] == "g" else {"max": "min", "min": "max"}[name]
            return larger(graph, cases[1], cases[0], name, shape)
    return None


# --- Maxima of many ---------------------------------------------------------------------------------------------------


def reduced(graph: Graph, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> list[Any]:
    value, axes = operands[0], eqn.params["axes"]
    kept = [d for d in range(len(value.shape)) if d not in axes]
    index = positions(value).transpose(*axes, *kept).reshape(-1, *shape)
    return [_tournament(graph, value, index, _direction(eqn), shape)]


def pooled(graph: Graph, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The entries of each window; padding repeats one of them, which leaves the maximum as it is."""
    value, params = operands[0], eqn.params
    if any(d != 1 for d in params["base_dilation"]):
        raise UnsupportedError("pooling with a base dilation is not known")
    rank = len(value.shape)
    flat = np.zeros((1,) * (2 * rank), int)
    for d, size in enumerate(value.shape):  # positions first, then taps
        start = np.arange(shape[d]) * params["window_strides"][d] - params["padding"][d][0]
        taps = start[:, None] + np.arange(params["window_dimensions"][d]) * params["window_dilation"][d]
        inside = (taps >= 0) & (taps < size)
        if not inside.any(1).all():
            raise UnsupportedError("pooling over windows of padding alone is not known")
        first = np.take_along_axis(taps, inside.argmax(1)[:, None], 1)
        spread = [1] * (2 * rank)
        spread[d], spread[rank + d] = taps.shape
        flat = flat * size + np.where(inside, taps, first).reshape(spread)
    index = np.moveaxis(flat.reshape(*shape, -1), -1, 0)
    return [_tournament(graph, value, index, _direction(eqn), shape)]


def _direction(eqn: Any) -> str:
    return "max" if eqn.primitive.name.endswith("max") else "min"


def _tournament(graph: Graph, value: Value, index: np.ndarray, name: str, shape: tuple[int, ...]) -> Value:
    """The largest along the first axis of `index`, by rounds of pairs."""
    index = _unmasked(value, index, name)
    while index.shape[0] > 1 and (index[1:] == index[:1]).all():
        index = index[:1]
    if index.shape[0] > 1:
        graph.has_choice = True
        if graph.contract:  # an entry moves no more maxima than it is in
            constant = math.sqrt(np.bincount(index.reshape(-1)).max(initial=1)) * (1 + 1e-15)
            largest = np.max if name == "max" else np.min
            return _ordered(graph, value, shape, name, constant, lambda v: largest(v.reshape(-1)[index], 0))
    current = graph.entries(value, index)
    while current.shape[0] > 1:
        half, rest = divmod(current.shape[0], 2)
        order = positions(current)
        pair = [graph.entries(current, part) for part in (order[:half], order[half : 2 * half])]
        best = larger(graph, *pair, name, (half, *current.shape[1:]))
        if rest:
            best = graph.chained(
                [best, graph.entries(current, order[2 * half :])], (half + 1, *current.shape[1:])
            )
        current = best
    return current.reshaped(shape)


def _unmasked(value: Value, index: np.ndarray, name: str) -> np.ndarray:
    """Without the entries that a mask has made the least of all."""
    node = value.node
    if not (value.is_plain and isinstance(node, Gathered) and node.constants is not None):
        return index
    start = node.parents[0].size if len(node.parents) == 1 else sum(parent.size for parent in node.parents)
    known = node.index.reshape(-1)
    masked = np.zeros(known.size, bool)
    masked[known >= start] = node.constants[known[known >= start] - start] == (
        -np.inf if name == "max" else np.inf
    )
    out = masked[index]
    if out.all(0).any():
        raise UnsupportedError("the largest of masked entries alone is not known")
    return np.where(out, np.take_along_axis(index, (~out).argmax(0)[None], 0), index)


# --- Order ------------------------------------------------------------------------------------------------------------


def _ordered(
    graph: Graph, value: Value, shape: tuple[int, ...], name: str, constant: float, fn: Callable[[Any], Any]
) -> Value:
    return graph.known(value, shape, _stretch.ordered(name, constant, value.shape, fn))


def ordered(graph: Graph, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Sorting keeps distances or lessens them: the order of one is a permutation of the other's."""
    value, *others = operands
    if eqn.params["num_keys"] != 1 or is_constant(value) or not all(map(is_constant, others)):
        raise UnsupportedError("a `sort` of several operands is not known")
    axis = eqn.params["dimension"]
    result = _ordered(graph, value, value.shape, "sort", 1.0, lambda v: np.sort(v, axis))
    return [result, *[graph.failed("the order of entries has no slope")] * len(others)]


def largest_few(graph: Graph, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> list[Any]:
    count, axis = eqn.params["k"], eqn.params.get("axis", -1)

    def largest(v: Any) -> Any:
        return np.flip(np.sort(v, axis), axis).take(range(count), axis)

    result = _ordered(graph, operands[0], shape, "top_k", 1.0, largest)
    return [result, graph.failed("the order of entries has no slope")]


def running(graph: Graph, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """No entry of a running maximum moves by more than the largest that it has passed."""
    axis, name = eqn.params["axis"], eqn.primitive.name
    accumulate = (np.maximum if name == "cummax" else np.minimum).accumulate

    def passed(v: Any) -> Any:
        if not eqn.params["reverse"]:
            return accumulate(v, axis)
        return np.flip(accumulate(np.flip(v, axis), axis), axis)

    constant = math.sqrt(shape[axis]) * (1 + 1e-15)
    return [_ordered(graph, operands[0], shape, name, constant, passed)]
