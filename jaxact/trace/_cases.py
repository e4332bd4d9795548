"""Choices among several conditions: the integers between predicates and a `select_n` of many cases.

`jnp.select` and `jnp.piecewise` stack their conditions and look up which one holds; both become nested choices of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxact.trace._expr import UnsupportedError
from jaxact.trace._graph import Graph, Special, is_constant
from jaxact.trace._host import bound, computed
from jaxact.trace._nodes import Gathered, Scaled, Value, whole

_LARGEST_TRIED = 256
_FARTHEST = 4  # changes of order back through which an array is looked for
#: what moves places about
_MOVING = frozenset(
    {"broadcast_in_dim", "concatenate", "convert_element_type", "reshape", "rev", "slice", "squeeze"}
    | {"stop_gradient", "transpose"}
)
#: what counts from the end what is negative
_COUNTING = frozenset({"add", "lt", "select_n", "sub"})


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
    """Numbers that say where entries of an array come in its order, or where its largest is.

    Attributes:
        array: the array.
        read: it at these places.
        of: a constant array -> the numbers.
        read_of: a constant array -> what it is at the places, as `read` has it.
        origin: which place each number is made of alone, -1 for none; None while they are the places themselves.
        maker: the equation that found the places.
    """

    array: Value
    read: Any
    of: Callable[[np.ndarray], np.ndarray]
    read_of: Callable[[np.ndarray], np.ndarray]
    origin: np.ndarray | None = None
    maker: Any = None


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
    if eqn.params["axis"] != 0 or eqn.params["reverse"] or not isinstance(operands[0], Conditions):
        raise UnsupportedError("a count of predicates is not known")
    return replace(operands[0], counted=True)


def _sliced(eqn: Any, operands: list[Any], select: Any) -> Any:
    if not isinstance(operands[0], Conditions):
        raise UnsupportedError("an index that depends on the input is not known")
    (start, *starts), (stop, *_) = eqn.params["start_indices"], eqn.params["limit_indices"]
    (step, *steps) = eqn.params["strides"] or (1,) * (1 + len(starts))
    is_whole = eqn.invars[0].aval.shape[1:] == eqn.outvars[0].aval.shape[1:] and {*steps} <= {1}
    if operands[0].counted or not is_whole:
        raise UnsupportedError("a part of predicates that depend on the input is not known")
    return Conditions(operands[0].rows[start:stop:step])


def _chosen(eqn: Any, operands: list[Any], select: Callable[[Any, Any, Any], Any]) -> Any:
    which, *cases = operands
    if isinstance(which, Unread):
        if all(_is_same(case, cases[0]) for case in cases):
            return cases[0]
        raise UnsupportedError("a choice by an index that depends on the input is not known")
    if not isinstance(which, Which):
        raise UnsupportedError("a choice among indices that depend on the input is not known")
    if any(k >= len(cases) for _, k in which.order):
        raise UnsupportedError("a choice beyond the last case is not known")
    result = cases[0]
    for predicate, k in reversed(which.order):
        result = select(predicate, result, cases[k])
    return result


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Value) and isinstance(other, Value):
        return one.node is other.node and one.expr is other.expr
    return is_constant(one) and is_constant(other) and np.array_equal(one, other)


def _read(graph: Graph, eqn: Any, operands: list[Any]) -> Any:
    """Entries at places: those of the array in its order, if they are for arrays of any order."""
    array, *rest = operands
    found = next((each for each in rest if isinstance(each, Places)), None)
    same = _as_array(graph, array, found) if found is not None and isinstance(array, Value) else None
    if found is None or same is None:
        raise UnsupportedError("entries at places that depend on the input are not known")
    sign, order = same
    entries: np.ndarray | None = None
    for trial in _orders(array.shape):
        other = (sign * trial.reshape(-1)[order]).reshape(found.array.shape)
        given = [each.of(other) if isinstance(each, Places) else each for each in rest]
        result = np.asarray(bound(eqn, [trial, *given], eqn.params)[0]).reshape(-1)
        read = sign * found.read_of(other).reshape(-1)
        if entries is None:
            entries = (result[:, None] == read).argmax(1)
        if not np.array_equal(result, read[entries]):
            raise UnsupportedError("entries at places that depend on the input are not known")
    assert entries is not None
    taken = graph.entries(found.read, entries.reshape(tuple(eqn.outvars[0].aval.shape)))
    return taken if sign == 1 else graph.applied("neg", taken.node, [taken.expr], taken.shape)


def _as_array(graph: Graph, array: Value, found: Places) -> tuple[float, np.ndarray] | None:
    """(s, p) where the places are of the array s array[p], flattened: of it negated, or in another order."""
    other, order = found.array, np.arange(found.array.size)
    if other.size != array.size:
        return None
    for _ in range(_FARTHEST):
        for sign, expr in ((1.0, array.expr), (-1.0, -array.expr)):
            if other.node is array.node and other.expr is expr:
                return sign, order
        node = graph.node(other)
        if node is graph.node(array):
            return 1.0, order
        if isinstance(node, Scaled) and other.is_plain:
            other = Value(node.parents[0], node.expr, other.shape)
            continue
        if not (isinstance(node, Gathered) and node.is_plain and node.parents[0].size == array.size):
            return None
        order = node.index.reshape(-1)[order]
        other = whole(node.parents[0])
    return None


def _orders(shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Arrays of unlike entries in many orders: each entry is each of them once."""
    size = math.prod(shape)
    if size > _LARGEST_TRIED:
        raise UnsupportedError(f"places in an order of more than {_LARGEST_TRIED} entries are not known")
    rng = np.random.default_rng(0)
    first = rng.permutation(size).astype(np.float64)
    for k in range(size):
        yield np.roll(first, k).reshape(shape)
        yield rng.permutation(size).astype(np.float64).reshape(shape)
    for axis, length in enumerate(shape):  # in which each place of an axis is each of its numbers once
        for k in range(length):
            yield np.roll(first.reshape(shape), k, axis)


def _moved(eqn: Any, operands: list[Any]) -> Places:
    """Places moved about, or counted from the end: other numbers, found by the primitive itself.

    Each number stays one of a single place: what becomes of it is seen where that place is each of its numbers once.
    """
    others = [each for each in operands if isinstance(each, Places)]
    known = all(isinstance(each, Places) or is_constant(each) for each in operands)
    is_one = all(_is_same(each.array, others[0].array) and each.maker is others[0].maker for each in others)
    if not known or not is_one:
        raise UnsupportedError("the order of entries has no slope")
    shape = tuple(eqn.outvars[0].aval.shape)
    origins = [_origin_of(each, others[0].array.shape) for each in operands]
    if eqn.primitive.name in _COUNTING:
        spread = np.stack([np.broadcast_to(each, shape) for each in origins])
        origin = np.asarray(spread.max(0))
        if not ((spread == origin) | (spread < 0)).all():
            raise UnsupportedError("a number made of several places is not known")
    else:
        origin = np.asarray(computed(eqn, origins)[0])

    def of(array: np.ndarray) -> np.ndarray:
        given = [each.of(array) if isinstance(each, Places) else each for each in operands]
        return np.asarray(computed(eqn, given)[0])

    return replace(others[0], of=of, origin=origin)


def _origin_of(operand: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Which place of an array of this shape each entry is a number of; -1 of a constant."""
    if not isinstance(operand, Places):
        return np.full(np.shape(operand), -1)
    if operand.origin is not None:
        return operand.origin
    found = operand.of(np.zeros(shape))
    return np.arange(found.size).reshape(found.shape)


def _same(eqn: Any, operands: list[Any], select: Any) -> Any:
    return next(operand for operand in operands if isinstance(operand, Special))


def _clamped(eqn: Any, operands: list[Any], select: Any) -> Which:
    """An index kept within bounds, as `lax.switch` does."""
    least, which, most = operands
    known = isinstance(which, Which) and is_constant(least) and is_constant(most)
    if not known or np.size(least) != 1 or np.size(most) != 1 or np.max(least) > 0:
        raise UnsupportedError("a number of predicates kept within bounds is not known")
    return Which(tuple((predicate, int(min(k, np.min(most)))) for predicate, k in which.order))


def _converted(eqn: Any, operands: list[Any], select: Any) -> Any:
    """A count that is true from the first predicate on is no count any more."""
    (given,) = operands
    is_truth = isinstance(given, Conditions) and np.dtype(eqn.params["new_dtype"]) == bool
    return replace(given, counted=False) if is_truth else given


#: primitive -> (equation, operands, choice of two) -> result, where an operand is one of the above
CASES: dict[str, Callable[..., Any]] = {
    "argmax": _argmax,
    "cumsum": _counted,
    "slice": _sliced,
    "select_n": _chosen,
    "eq": lambda eqn, operands, select: Unread(),
    "clamp": _clamped,
    "convert_element_type": _converted,
    **dict.fromkeys(("stop_gradient", "copy"), _same),
}


def resolve(graph: Graph, eqn: Any, operands: list[Any], select: Callable[..., Any]) -> Sequence[Any]:
    """The results of a primitive of conditions and indices; `select`: (predicate, no, yes) -> value."""
    name = eqn.primitive.name
    if any(isinstance(each, Places) for each in operands):
        if name in ("gather", "dynamic_slice"):
            return [_read(graph, eqn, operands)]
        if name in _MOVING | _COUNTING:
            return [_moved(eqn, operands)]
        raise UnsupportedError("the order of entries has no slope")
    rule = CASES.get(name)
    if rule is None:
        raise UnsupportedError(f"`{eqn.primitive.name}` of predicates that depend on the input is not known")
    return [rule(eqn, operands, select)]
