"""Choices among several conditions: the integers between predicates and a `select_n` of many cases.

`jnp.select` and `jnp.piecewise` stack their conditions and look up which one holds; both become nested choices of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxact.trace._expr import UnsupportedError
from jaxact.trace._graph import Graph, Special, is_constant
from jaxact.trace._nodes import Value


@dataclass(frozen=True)
class Conditions(Special):
    """Predicates stacked on a first axis; `counted` where each row counts those that hold up to it."""

    rows: tuple[Any, ...]
    counted: bool = False


@dataclass(frozen=True)
class Which(Special):
    """The index of the first predicate of a list that holds: (predicate, index) in that order; else 0."""

    order: tuple[tuple[Any, int], ...]


@dataclass(frozen=True)
class Places(Special):
    """Where entries of an array come in its order, or its largest is: what is read there is known."""

    array: Value
    read: Any


@dataclass(frozen=True)
class Unread(Special):
    """Whether a case is the one: only where it does not matter."""


def stacked(eqn: Any, operands: list[Any]) -> Conditions | None:
    """Predicates that depend on the input, stacked on the first axis; None if it is something else."""
    axis = eqn.params.get("axis", eqn.params.get("dimension"))
    depends = any(isinstance(x, Conditions) or (isinstance(x, Value) and x.expr.is_bool) for x in operands)
    if axis != 0 or not depends:
        return None
    rows: list[Any] = []
    for operand in operands:
        if isinstance(operand, Conditions):
            rows += operand.rows
        elif eqn.primitive.name == "stack":
            rows.append(operand)
        elif is_constant(operand):
            rows += list(np.asarray(operand))
        elif operand.shape[0] == 1:
            rows.append(operand.reshaped(operand.shape[1:]))
        else:
            return None
    return Conditions(tuple(rows))


def _argmax(eqn: Any, operands: list[Any], select: Any) -> Any:
    (conditions,) = operands
    if tuple(eqn.params["axes"]) != (0,) or not isinstance(conditions, Conditions):
        raise UnsupportedError("an index that depends on the input is not known")
    order = tuple((row, k) for k, row in enumerate(conditions.rows))
    return Which(order[::-1] if conditions.counted else order)  # of counts the largest comes with the last


def _counted(eqn: Any, operands: list[Any], select: Any) -> Any:
    if eqn.params["axis"] != 0 or eqn.params["reverse"]:
        raise UnsupportedError("a count of predicates is not known")
    return replace(operands[0], counted=True)


def _sliced(eqn: Any, operands: list[Any], select: Any) -> Any:
    start, stop = eqn.params["start_indices"][0], eqn.params["limit_indices"][0]
    return Conditions(operands[0].rows[start:stop])


def _chosen(eqn: Any, operands: list[Any], select: Callable[[Any, Any, Any], Any]) -> Any:
    which, *cases = operands
    if any(isinstance(case, Places) for case in cases):
        return _passed(eqn, operands, select)
    if isinstance(which, Unread):
        if all(_is_same(case, cases[0]) for case in cases):
            return cases[0]
        raise UnsupportedError("a choice by an index that depends on the input is not known")
    if not isinstance(which, Which):
        raise UnsupportedError("a choice among indices that depend on the input is not known")
    result = cases[0]
    for predicate, k in reversed(which.order):
        result = select(predicate, result, cases[k])
    return result


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Value) and isinstance(other, Value):
        return one.node is other.node and one.expr is other.expr
    return is_constant(one) and is_constant(other) and np.array_equal(one, other)


def _read(eqn: Any, operands: list[Any], select: Any) -> Any:
    array, *places = operands
    found = next((each for each in places if isinstance(each, Places)), None)
    if found is None or not isinstance(array, Value) or not _is_same(array, found.array):
        raise UnsupportedError("entries at places that depend on the input are not known")
    shape = tuple(eqn.outvars[0].aval.shape)
    if math.prod(shape) != found.read.size:
        raise UnsupportedError("some of the entries in an order that depends on the input are not known")
    return found.read.reshaped(shape)


def _passed(eqn: Any, operands: list[Any], select: Any) -> Any:
    """Places as they are: what the compiler adds makes negative ones positive."""
    found = next((each for each in operands if isinstance(each, Places)), None)
    return Unread() if found is None else found


def _same(eqn: Any, operands: list[Any], select: Any) -> Any:
    return next(operand for operand in operands if isinstance(operand, Special))


#: primitive -> (equation, operands, choice of two) -> result, where an operand is one of the above
CASES: dict[str, Callable[..., Any]] = {
    "argmax": _argmax,
    "cumsum": _counted,
    "slice": _sliced,
    "select_n": _chosen,
    **dict.fromkeys(("eq", "lt", "ge"), lambda eqn, operands, select: Unread()),
    **dict.fromkeys(("add", "broadcast_in_dim", "reshape", "squeeze", "concatenate"), _passed),
    **dict.fromkeys(("gather", "dynamic_slice"), _read),
    **dict.fromkeys(("convert_element_type", "clamp", "stop_gradient", "copy"), _same),
}


def resolve(graph: Graph, eqn: Any, operands: list[Any], select: Callable[..., Any]) -> Sequence[Any]:
    """The results of a primitive of conditions and indices; `select`: (predicate, no, yes) -> value."""
    rule = CASES.get(eqn.primitive.name)
    if rule is None and any(isinstance(each, Places) for each in operands):
        raise UnsupportedError("the order of entries has no slope")
    if rule is None:
        raise UnsupportedError(f"`{eqn.primitive.name}` of predicates that depend on the input is not known")
    return [rule(eqn, operands, select)]
