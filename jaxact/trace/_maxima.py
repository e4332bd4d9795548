"""Maxima, sorting and what else puts entries in order: as steps known by one number, or by relu of differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxact.trace import _stretch
from jaxact.trace._cases import Places
from jaxact.trace._compose import below, dense_operator, leaves_of, offset_of, ratio
from jaxact.trace._expr import UnsupportedError, constant, evaluate, num_entries
from jaxact.trace._formula import apply
from jaxact.trace._graph import Graph, constant_expr, is_constant
from jaxact.trace._host import bound, computed
from jaxact.trace._nodes import Gathered, Node, Sum, Value, positions, whole
from jaxact.trace._pieces import chosen


def larger(graph: Graph, u: Value, v: Value, name: str, shape: tuple[int, ...]) -> Value:
    """max(u, v) = v + relu(u - v), min(u, v) = v - relu(v - u); or the second and the first of the sorted pair."""
    graph.has_choice = True
    if graph.contract:
        return whole(graph.taken(_sorted_pair(graph, u, v, shape), _half(shape, name == "max")), shape)
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


def joined_by_choice(graph: Graph, values: list[Any], shape: tuple[int, ...]) -> Any:
    """where(s > c, u, v) with u - v = k (s - c): v + k relu(s - c), for it is continuous; None if it is not seen to be.

    Between affine maps, such as those of a reflection, also by the largest slope of the pieces.
    """
    which, *cases = values
    if len(cases) != 2 or not which.expr.args or which.expr.op not in ("gt", "ge", "lt", "le"):
        return None
    given, c = which.expr.args
    if given.affine is None or not c.is_constant:
        return None
    no, yes = (whole(graph.node(_as_value(graph, case, which, shape)), shape) for case in cases)
    moved = graph.sum(yes, no, -1.0, shape)
    moved.node.uncut()
    distance = given - c
    factor = ratio(moved.node, graph.node(Value(which.node, distance, shape)))
    if factor is None:
        return None
    graph.has_choice = True
    if graph.contract and (found := _by_pieces(graph, which, no.node, yes.node, shape)) is not None:
        return found
    bent = apply("select_n", [which.expr, constant(0.0), distance])
    part = graph.scaled("mul", Value(which.node, bent, shape, graph.noted(bent)), constant(factor), shape)
    return graph.sum(no, part, 1.0, shape)


def _as_value(graph: Graph, case: Any, which: Value, shape: tuple[int, ...]) -> Value:
    """A case of a choice; a constant as an affine map with no slope."""
    if not is_constant(case):
        return case
    spread = np.broadcast_to(np.asarray(case, np.float64), shape)
    return graph.add_constant(spread, which.node)


def _by_pieces(graph: Graph, which: Value, no: Node, yes: Node, shape: tuple[int, ...]) -> Value | None:
    node = which.node
    groups = np.arange(node.size)  # each by its own predicate
    if isinstance(node, Gathered) and node.is_plain and num_entries(which.expr) is None:
        groups = node.index.reshape(-1)
    leaves = leaves_of(no) | leaves_of(yes) | leaves_of(node)
    if len(leaves) != 1:
        return None
    (x,) = leaves

    def value(v: Any) -> Any:
        ends = [dense_operator(order, x) @ v + offset_of(order) for order in map(below, (node, no, yes))]
        return np.where(evaluate(which.expr, ends[0]), ends[2], ends[1])

    known = chosen(no, yes, groups, value)
    return None if known is None else graph.known(whole(x), shape, known)


# --- Maxima of many ---------------------------------------------------------------------------------------------------


def reduced(graph: Graph, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> list[Any]:
    value, axes = operands[0], eqn.params["axes"]
    kept = [d for d in range(len(value.shape)) if d not in axes]
    index = positions(value).transpose(*axes, *kept).reshape(-1, *shape)
    return [_tournament(graph, value, index, _direction(eqn), shape)]


def place(graph: Graph, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Where the largest is: what is read there is the maximum."""
    value, axes = operands[0], eqn.params["axes"]
    kept = [d for d in range(len(value.shape)) if d not in axes]
    index = positions(value).transpose(*axes, *kept).reshape(-1, *shape)
    largest = np.max if _direction(eqn) == "max" else np.min

    def of(array: np.ndarray) -> np.ndarray:
        return np.asarray(bound(eqn, [array], eqn.params)[0])

    read = _tournament(graph, value, index, _direction(eqn), shape)
    return [Places(value, read, of, lambda array: np.asarray(largest(array, axes)), maker=eqn)]


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
    return "max" if eqn.primitive.name.endswith("max") else "min"  # argmin too


def _tournament(graph: Graph, value: Value, index: np.ndarray, name: str, shape: tuple[int, ...]) -> Value:
    """The largest along the first axis of `index`, by rounds of pairs."""
    index = _unmasked(value, index, name)
    while index.shape[0] > 1 and (index[1:] == index[:1]).all():
        index = index[:1]
    if index.shape[0] > 1:
        graph.has_choice = True
        is_pair = index.shape[0] == 2 and np.unique(index).size == index.size  # then both share a step
        if graph.contract and not is_pair:  # an entry moves no more maxima than it is in
            entries = index.reshape(len(index), -1).T
            windows = np.unique(entries + value.size * np.arange(len(entries))[:, None]) % value.size
            constant = math.sqrt(np.bincount(windows).max(initial=1)) * (1 + 1e-15)
            largest = np.max if name == "max" else np.min
            return _ordered(
                graph, value, shape, name, constant, lambda v: largest(v.reshape(-1)[index], 0), entries
            )
    current = graph.entries(value, index)
    while current.shape[0] > 1:
        half, rest = divmod(current.shape[0], 2)
        order = positions(current)
        u, v = (graph.entries(current, part) for part in (order[:half], order[half : 2 * half]))
        best = larger(graph, u, v, name, (half, *current.shape[1:]))
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
    graph: Graph,
    value: Value,
    shape: tuple[int, ...],
    name: str,
    constant: float,
    fn: Callable[[Any], Any],
    mean_of: np.ndarray | None = None,
) -> Value:
    return graph.known(value, shape, _stretch.ordered(name, constant, value.shape, fn, mean_of))


def ordered(graph: Graph, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Sorting keeps distances or lessens them: the order of one is a permutation of the other's."""
    value, *others = operands
    if eqn.params["num_keys"] != 1 or is_constant(value) or not all(map(is_constant, others)):
        raise UnsupportedError("a `sort` of several operands is not known")
    axis = eqn.params["dimension"]
    result = _ordered(graph, value, value.shape, "sort", 1.0, lambda v: np.sort(v, axis))

    def of(k: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda array: np.asarray(bound(eqn, [array, *others], eqn.params)[k + 1])

    return [
        result,
        *(Places(value, result, of(k), lambda v: np.sort(v, axis), maker=eqn) for k in range(len(others))),
    ]


def largest_few(graph: Graph, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> list[Any]:
    count, axis = eqn.params["k"], eqn.params.get("axis", -1)

    def largest(v: Any) -> Any:
        return np.flip(np.sort(v, axis), axis).take(range(count), axis)

    result = _ordered(graph, operands[0], shape, "top_k", 1.0, largest)

    def of(array: np.ndarray) -> np.ndarray:
        return np.asarray(bound(eqn, [array], eqn.params)[1])

    return [result, Places(operands[0], result, of, largest, maker=eqn)]


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


def scattered(graph: Graph, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The largest of what is put at each place of a constant array, as `segment_max` has it."""
    start, places, value = operands
    if is_constant(places) and is_constant(value) and not is_constant(start):
        least = np.full(shape, -np.inf if _direction(eqn) == "max" else np.inf)
        (others,) = computed(eqn, [least, places, np.asarray(value, np.float64)])
        spread = constant_expr(others, shape)
        return [graph.applied(_direction(eqn), start.node, [start.expr, spread], shape)]
    if not is_constant(start) or not is_constant(places) or is_constant(value):
        raise UnsupportedError(f"`{eqn.primitive.name}` onto an array that depends on the input is not known")
    added = partial(
        lax.scatter_add, dimension_numbers=eqn.params["dimension_numbers"], mode=eqn.params["mode"]
    )
    _, pull = jax.vjp(lambda updates: added(jnp.zeros(shape), places, updates), jnp.ones(value.shape))
    numbers = np.arange(1.0, math.prod(shape) + 1).reshape(shape)
    target = np.asarray(pull(jnp.asarray(numbers))[0]).reshape(-1).astype(int) - 1  # -1 where it is dropped
    lists = [np.flatnonzero(target == k) for k in range(math.prod(shape))]
    filled = [k for k, each in enumerate(lists) if each.size]
    longest = max((len(lists[k]) for k in filled), default=0)
    if not longest:
        return [np.asarray(start)]
    index = np.stack([np.resize(lists[k], longest) for k in filled], 1)
    name = _direction(eqn)
    best = _tournament(graph, value, index, name, (len(filled),))
    least = np.asarray(start, np.float64).reshape(-1)
    if np.isfinite(least[filled]).any():
        best = graph.applied(name, best.node, [best.expr, constant(least[filled])], best.shape)
    places_of = np.arange(least.size) + len(filled)
    places_of[filled] = np.arange(len(filled))
    return [graph.gathered([best, least], places_of.reshape(shape))]
