"""Functions of JAX itself that are known by name: by what they compute their bodies would not show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxact.trace import _radial, _softmax
from jaxact.trace._expr import Expr, constant, unary
from jaxact.trace._formula import apply
from jaxact.trace._graph import Failed, Graph, Special, forced, is_constant
from jaxact.trace._host import bound
from jaxact.trace._nodes import Value
from jaxact.trace._source import library_name


def _formula(graph: Graph, value: Value, expr: Expr, shape: tuple[int, ...]) -> Value:
    return Value(value.node, expr, shape, graph.noted(expr))


def _pair(of: Callable[..., Value]) -> Callable[..., Sequence[Any] | None]:
    """A function of two values that are no formulas of one."""

    def rule(graph: Graph, eqn: Any, operands: list[Any]) -> Sequence[Any] | None:
        shape = tuple(eqn.outvars[0].aval.shape)
        if any(map(is_constant, operands)):
            return None
        u, v = (graph.spread(each, shape) for each in operands)
        return None if graph.common([u, v]) is not None else [of(graph, u, v, shape)]

    return rule


def _hypot(graph: Graph, eqn: Any, operands: list[Any]) -> Sequence[Any] | None:
    """The length of a pair, by a formula where both are formulas of one node."""
    shape = tuple(eqn.outvars[0].aval.shape)
    values = [graph.spread(each, shape) for each in operands if not is_constant(each)]
    common = graph.common(values) if len(values) == 2 else None
    if common is None:
        return _pair(_radial.pair)(graph, eqn, operands)
    u, v = common[1]
    expr = apply("sqrt", [u**2 + v**2])
    return [Value(common[0], expr, shape, graph.noted(expr))]


def _logaddexp(graph: Graph, eqn: Any, operands: list[Any]) -> Sequence[Any] | None:
    """log(exp(u) + exp(v)) = v + softplus(u - v) where both are formulas of one node."""
    shape = tuple(eqn.outvars[0].aval.shape)
    if any(is_constant(each) and np.size(each) != 1 for each in operands):
        return None
    values = [each for each in operands if not is_constant(each)]
    common = graph.common([graph.spread(each, shape) for each in values])
    if common is None:
        return _pair(_softmax.pair)(graph, eqn, operands)
    given = iter(common[1])
    u, v = (constant(np.asarray(each).reshape(())) if is_constant(each) else next(given) for each in operands)
    u, v = (v, u) if u.is_constant else (u, v)
    expr = unary("softplus", u - v) + v
    return [Value(common[0], expr, shape, graph.noted(expr))]


def _sinc(graph: Graph, eqn: Any, operands: list[Any]) -> list[Any] | None:
    (value,) = operands
    if value.expr.is_bool:
        return None
    return [_formula(graph, value, unary("sinc", np.pi * value.expr), value.shape)]


def _remainder(graph: Graph, eqn: Any, operands: list[Any]) -> list[Any] | None:
    """The remainder x mod c = c (x / c - floor(x / c)), whatever the sign of c."""
    value, period = operands
    if is_constant(value) or not is_constant(period) or np.size(period) != 1 or not np.asarray(period):
        return None
    c = float(np.asarray(period).reshape(()))
    return [_formula(graph, value, c * unary("fraction", (1.0 / c) * value.expr), value.shape)]


def _interpolated(graph: Graph, eqn: Any, operands: list[Any]) -> list[Any] | None:
    """Straight lines between the knots, the ends' values beyond: f_0 + sum_i (s_i - s_{i-1}) relu(x - x_i)."""
    value, *table = operands
    if is_constant(value) or len(table) != 2 or not all(map(is_constant, table)):
        return None
    x, y = (np.asarray(each, np.float64) for each in table)
    if (
        x.ndim != 1
        or y.shape != x.shape
        or not (np.diff(x) > 0).all()
        or not _ends_level(eqn, value, table, x, y)
    ):
        return None
    slopes = np.concatenate([[0.0], np.diff(y) / np.diff(x), [0.0]])
    result = constant(y[0])
    for knot, turn in zip(x, np.diff(slopes), strict=True):
        result = result + float(turn) * apply("max", [value.expr - float(knot), constant(0.0)])
    return [_formula(graph, value, result, value.shape)]


def _ends_level(eqn: Any, value: Value, table: list[Any], x: np.ndarray, y: np.ndarray) -> bool:
    """Whether the first and the last height go on beyond the knots, as they do without `left`, `right`, `period`."""
    for point, height in ((x[0] - 1, y[0]), (x[0] - 100, y[0]), (x[-1] + 1, y[-1]), (x[-1] + 100, y[-1])):
        (found,) = bound(eqn, [np.full(value.shape, point), *table], eqn.params)
        if not (np.asarray(found) == height).all():
            return False
    return True


#: function of JAX -> (graph, equation, operands) -> results, None where its body shows more
_NAMED: dict[str, Callable[..., Sequence[Any] | None]] = {
    "hypot": _hypot,
    "logaddexp": _logaddexp,
    "sinc": _sinc,
    "remainder": _remainder,
    "_interp": _interpolated,
}


def named(graph: Graph, eqn: Any, body: Any, operands: list[Any]) -> Sequence[Any] | None:
    """The results of a call of a function of JAX that is known by its name; None if it is none of those."""
    rule = None if all(map(is_constant, operands)) else _NAMED.get(library_name(body))
    operands = list(map(forced, operands)) if rule is not None else []
    if rule is None or any(isinstance(each, Failed | Special) for each in operands):
        return None
    return rule(graph, eqn, operands)
