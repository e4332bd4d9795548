"""What each primitive makes of arrays that are known by their statistics alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxact.diagnosis._axes import FEATURE, POSITION, axis, has, of_input, reshaped
from jaxact.diagnosis._elementwise import ELEMENTWISE, elementwise, one
from jaxact.diagnosis._gradients import Gain, coherent, scaled
from jaxact.diagnosis._graph import Graph, Node, Stats, Unknown, Value
from jaxact.diagnosis._output_axes import output_axes
from jaxact.diagnosis._pooling import window_max
from jaxact.diagnosis._sums import largest, total, window_sum
from jaxact.trace import UnsupportedError


def moved(graph: Graph, eqn: Any, operands: Sequence[Any]) -> Value:
    """The same entries in other places."""
    (x, *_) = operands
    shape = tuple(eqn.outvars[0].aval.shape)
    return Value(x.node, output_axes(eqn, operands[:1]), shape, x.formula, x.note)


def broadcast(graph: Graph, eqn: Any, operands: Sequence[Any]) -> Value:
    """The same entries several times."""
    result = moved(graph, eqn, operands)
    times = math.prod(result.shape) / max(math.prod(operands[0].shape), 1)
    if times == 1 or result.note:
        return result
    node = graph.node(operands[0])
    facts = {"through": node.through, "is_constant": node.is_constant, "is_gaussian": node.is_gaussian}
    to_positions = not node.is_constant and all(
        has(each, POSITION)
        for k, each in enumerate(result.axes)
        if k not in eqn.params["broadcast_dimensions"]
    )
    back = lambda after: coherent(times, after) if to_positions else scaled(times, after)  # noqa: E731
    made = graph.add(
        lambda: node.stats, math.prod(result.shape), [(node, Gain(lambda: times, back))], **facts
    )
    return Value(made, result.axes, result.shape)


def part(graph: Graph, eqn: Any, operands: Sequence[Any]) -> Any:
    """Some of the entries; different features are made of different weights."""
    x = operands[0]
    if not isinstance(x, Value):
        raise UnsupportedError(f"`{eqn.primitive.name}` of a constant at places that depend on the input")
    outputs = []
    for number, var in enumerate(eqn.outvars):
        outputs.append(_part(graph, eqn, x, number, tuple(var.aval.shape)))
    return outputs


def _part(graph: Graph, eqn: Any, x: Value, number: int, shape: tuple[int, ...]) -> Value:
    node = graph.node(x)
    share = math.prod(shape) / max(node.size, 1)
    cut = [
        k for k, one in enumerate(x.axes) if has(one, FEATURE) and (k >= len(shape) or shape[k] != x.shape[k])
    ]
    which = (number, str(eqn.params.get("start_indices", "")))
    through = frozenset((tag, which) for tag in node.through) if cut else node.through
    axes = (
        x.axes
        if len(shape) != len(x.axes)
        else tuple(
            one if x.shape[k] == n else axis(FEATURE if has(one, FEATURE) else POSITION, n)
            for k, (one, n) in enumerate(zip(x.axes, shape, strict=True))
        )
    )
    if len(axes) != len(shape):
        axes = reshaped(axes, shape)
    made = graph.add(
        lambda: node.stats,
        math.prod(shape),
        [(node, Gain(lambda: share, lambda after: scaled(share, after, share if cut else share**2)))],
        deps=(node.deps - node.through) | through,
        through=through,
        is_constant=node.is_constant,
        is_free=node.is_free,
        is_gaussian=node.is_gaussian,
    )
    return Value(made, axes, shape)


def concatenate(graph: Graph, eqn: Any, operands: Sequence[Any]) -> Value:
    """The entries of several arrays, one after another."""
    axes = output_axes(eqn, [each for each in operands if isinstance(each, Value)])
    return Value(joined(graph, operands), axes, tuple(eqn.outvars[0].aval.shape))


def joined(graph: Graph, operands: Sequence[Any]) -> Node:
    """The entries of several arrays as one array of their mean statistics."""
    nodes = [graph.node(each) if isinstance(each, Value) else graph.measured(each) for each in operands]
    sizes = np.array([math.prod(each.shape) for each in operands], float)
    weights = sizes / sizes.sum()

    def compute() -> Stats:
        return Stats(
            *(
                sum(w * each for w, each in zip(weights, s, strict=True))
                for s in zip(*(n.stats for n in nodes), strict=True)
            )
        )

    return graph.add(
        compute,
        int(sizes.sum()),
        [(each, one) for each in nodes],
        through=frozenset.intersection(*(each.through for each in nodes)),
        is_gaussian=all(each.is_gaussian for each in nodes),
    )


def one_row(graph: Graph, x: Value) -> Node:
    """One of the arrays that lie along the first axis, as they are on average."""
    node, share = graph.node(x), 1 / x.shape[0]
    facts = {
        name: getattr(node, name) for name in ("deps", "through", "is_constant", "is_free", "is_gaussian")
    }
    return graph.add(
        lambda: node.stats,
        node.size // x.shape[0],
        [(node, Gain(lambda: share, lambda after: scaled(share, after, share**2)))],
        **facts,
    )


#: primitive -> (graph, equation, operands) -> value or values
RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    "add_any": elementwise,
    **dict.fromkeys(("reshape", "transpose", "squeeze", "rev", "optimization_barrier", "expand_dims"), moved),
    "broadcast_in_dim": broadcast,
    **dict.fromkeys(("slice", "dynamic_slice", "gather", "split"), part),
    "concatenate": concatenate,
    "reduce_sum": total,
    "reduce_window_sum": window_sum,
    "reduce_max": largest,
    "reduce_window_max": window_max,
}


def applied(graph: Graph, eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """What an equation makes of its operands; Unknown where there is no rule."""
    failed = next((each for each in operands if isinstance(each, Unknown)), None)
    reason = failed.reason if failed is not None else ""
    if not reason:
        rule = RULES.get(eqn.primitive.name)
        try:
            if rule is not None:
                result = rule(graph, eqn, operands)
                return result if isinstance(result, list) else [result]
            reason = f"`{eqn.primitive.name}`"
        except UnsupportedError as error:
            reason = str(error)
    return unknown(graph, eqn, operands, reason)


def unknown(graph: Graph, eqn: Any, operands: Sequence[Any], reason: str) -> list[Any]:
    """Outputs of which only the axes are known; what they are made of has no known gradient if they are used."""
    deps, origins = frozenset[Any](), frozenset[Any]()
    for each in operands:
        if isinstance(each, Value):
            origins |= {graph.node(each)}
            deps |= each.node.deps
        deps |= getattr(each, "deps", frozenset())
        origins |= getattr(each, "origins", frozenset())
    given = [each for each in operands if getattr(each, "axes", None) is not None]
    outputs = []
    for var in eqn.outvars:
        shape = tuple(getattr(var.aval, "shape", ()))
        try:
            axes = output_axes(eqn, given) if var is eqn.outvars[0] else of_input(shape)
        except (KeyError, IndexError, ValueError):
            axes = of_input(shape)
        outputs.append(
            Unknown(reason, axes if len(axes) == len(shape) else of_input(shape), shape, deps, origins)
        )
    return outputs
