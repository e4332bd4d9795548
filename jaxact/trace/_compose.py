"""Affine maps composed: what an affine map is of the variables that it starts from, as operators of a program."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxact.trace._nodes import Map, Mode, Node
from jaxact.trace._operators import Dense, Diagonal, Identity, Linear, Operator
from jaxact.trace._program import Affine, Step

_WRITTEN = 2**24  # entries up to which a composed linear map becomes a matrix
_LEAST = 2e-15  # relative: what two maps may differ by and be one
_LOOKED_AT = 2048  # entries up to which it is looked whether a map cancels
_ROUNDING = 1e-14  # relative: what may be left where a map cancels


class Order(list[Node]):
    """What a map is composed of, operands first; the map itself last.

    Attributes:
        maps: those of it that are composed; the others are the variables that it starts from.
    """

    maps: list[Map]


def below(node: Node, *, deep: bool = False) -> Order:
    """What a map is composed of down to the variables.

    With `deep` down to what is no affine map: past those that are variables because paths meet there.
    """
    order, seen = Order(), set()
    order.maps = []
    stack = [(node, False)]
    while stack:
        each, ready = stack.pop()
        is_inner = each is node or (each.is_affine if deep else not each.is_leaf)
        if ready:
            order.append(each)
            if is_inner and isinstance(each, Map):
                order.maps.append(each)
        elif each not in seen:
            seen.add(each)
            stack.append((each, True))
            if is_inner:
                stack.extend((parent, False) for parent in each.parents)
    return order


def needed_for(result: Node, instead: Callable[[Node], Node]) -> dict[Node, Node]:
    """The variables that a result needs, and itself, each with the node that makes it: `instead` of that."""
    needed: dict[Node, Node] = {}
    stack = [result]
    while stack:
        node = stack.pop()
        if node in needed:
            continue
        needed[node] = instead(node)
        stack.extend(each for each in below(needed[node])[:-1] if each.is_leaf)
    return needed


def ratio(one: Node, other: Node) -> Any:
    """What each entry of `other` is multiplied by in `one`, a number if it is one for all; None if there is no such.

    To rounding; both are maps of the same variables, however they were written.
    """
    if one is other:
        return 1.0
    if one.size != other.size or not (one.is_affine or other.is_affine):
        return None
    if not one.is_affine:
        inverse = ratio(other, one)
        return None if inverse is None or not np.all(inverse) else 1.0 / inverse
    if not other.is_affine:
        order = below(one)
        is_alone = {node for node in order[:-1] if node.is_leaf} == {other} and not offset_of(order).any()
        found = _diagonal(order, other) if is_alone else None
        return float(found) if found is not None and np.ndim(found) == 0 else found
    orders = below(one), below(other)
    leaves, others = ({node for node in order[:-1] if node.is_leaf} for order in orders)
    if leaves != others or any(one.size * leaf.size > _WRITTEN // 4 for leaf in leaves):
        return None
    a, b = (
        np.concatenate([offset_of(order)[None], *(_columns(order, leaf) for leaf in leaves)])
        for order in orders
    )
    largest = np.abs(b).argmax(0), np.arange(one.size)
    with np.errstate(divide="ignore", invalid="ignore"):
        c = a[largest] / b[largest]
    # Entry by entry, and offsets apart from the rest: what is little beside another entry may be a jump.
    off, size = np.abs(a - c * b), np.abs(a)
    if not (np.isfinite(c).all() and (off[1:] <= _LEAST * size[1:].max(0, initial=0.0)).all()):
        return None
    if not (off[0] <= _LEAST * size[0]).all():
        return None
    return float(c[0]) if c.size and np.ptp(c) <= _LEAST * abs(c[0]) else c


def has_no_mean(node: Node, positions: np.ndarray) -> bool:
    """Whether the entries of an affine map in each group [group, entry] add up to 0, but for rounding."""
    if not node.is_affine:
        return False
    order = below(node)
    leaves = [each for each in order[:-1] if each.is_leaf]
    if any(node.size * leaf.size > _WRITTEN // 4 for leaf in leaves):
        return False
    rows = np.concatenate([offset_of(order)[None], *(_columns(order, leaf) for leaf in leaves)])[:, positions]
    return bool((np.abs(rows.sum(-1)) <= _ROUNDING * np.abs(rows).sum(-1)).all())


def roots_of(node: Node, most: int) -> list[Node] | None:
    """What an affine map is made of that is none, past the variables where paths meet; None if there are many."""
    found: list[Node] = []
    seen, stack = {node}, [node]
    while stack:
        for parent in stack.pop().parents:
            if parent in seen:
                continue
            seen.add(parent)
            (stack if parent.is_affine else found).append(parent)
            if len(found) > most:
                return None
    return found


def leaves_of(node: Node) -> set[Node]:
    """The variables that a node is an affine map of; itself if it is one that is none."""
    return {each for each in below(node)[:-1] if each.is_leaf} if node.is_affine else {node}


def selection(node: Node) -> tuple[Node, np.ndarray] | None:
    """The variable and the entries of it that an affine map turns out to be; None if it is more than that."""
    order = below(node)
    if node.size > _LOOKED_AT or offset_of(order).any():
        return None
    found = None
    for leaf in leaves_of(node):
        operator = dense_operator(order, leaf)
        if not operator.any():
            continue
        if found is not None or (operator.sum(1) != 1).any() or ((operator != 0) & (operator != 1)).any():
            return None
        found = leaf, operator.argmax(1)
    return found


def dense_operator(order: Order, source: Node) -> Float[np.ndarray, "out in"]:
    """The derivative of the last of an order by a variable, written out."""
    return _columns(order, source).T


def affine_step(node: Node, out: int, numbers: dict[Node, int]) -> Affine:
    """The step that an affine map becomes, of the variables that it starts from."""
    order = below(node)
    sources = [each for each in order[:-1] if each.is_leaf]
    operators = [(numbers[source], _operator(order, source)) for source in sources]
    # A variable may cancel, such as the maximum that softmax subtracts.
    terms = tuple(term for term in operators if not _is_zero(term[1])) or tuple(operators[:1])
    offset = offset_of(order)
    return Affine(out, terms, node.size, offset if offset.any() else None)


def used(steps: Sequence[Step], output: int) -> tuple[Step, ...]:
    """Without what turned out to cancel."""
    needed, kept = {output}, []
    for step in reversed(steps):
        if step.out in needed:
            kept.append(step)
            needed.update(step.sources, getattr(step, "reads", ()))
    return tuple(reversed(kept))


def _is_zero(operator: Operator) -> bool:
    return isinstance(operator, Diagonal) and not operator.d.any()


def offset_of(order: Order) -> Float[np.ndarray, " out"]:
    """The last of an order where the variables are 0."""
    values: dict[Node, Any] = {node: np.zeros((1, *node.shape)) for node in order}
    with np.errstate(all="ignore"):  # weights that are not finite are refused by the engine
        for node in order.maps:
            values[node] = node.apply("affine", *(values[parent] for parent in node.parents))
    return np.asarray(values[order[-1]], np.float64).reshape(-1)


def _operator(order: Order, source: Node) -> Operator:
    """The derivative of the last of an order by a variable."""
    diagonal = _diagonal(order, source)
    if diagonal is not None:
        d = np.broadcast_to(np.asarray(diagonal, np.float64), (source.size,))
        return Identity(source.size) if (d == 1).all() else Diagonal(d.copy())
    shape = (order[-1].size, source.size)
    widest = max(node.size for node in order)
    if shape[0] * shape[1] <= _WRITTEN and widest * source.size <= 4 * _WRITTEN:
        return Dense(np.ascontiguousarray(_columns(order, source).T))

    def forward(v: Any, mode: Mode = "linear") -> Any:
        return _pushed(order, source, v[None], mode)[0]

    def absolute(v: Any) -> Any:
        return forward(v, "absolute")

    flat = jax.ShapeDtypeStruct((source.size,), np.float64)
    backward = jax.linear_transpose(forward, flat)
    if shape[0] * shape[1] <= _WRITTEN:
        return Dense(np.asarray(jax.vmap(lambda u: backward(u)[0])(np.eye(shape[0]))))

    def norm_bound() -> float:
        with jax.enable_x64(True):
            back = jax.linear_transpose(absolute, flat)
            rows = float(jnp.max(absolute(jnp.ones(source.size))))
            columns = float(jnp.max(back(jnp.ones(shape[0]))[0]))
        return math.sqrt(rows * columns) * (1 + 1e-12)

    return Linear(forward, lambda u: backward(u)[0], shape, norm_bound, absolute)


def _diagonal(order: Order, source: Node) -> Any:
    """The diagonal of the derivative if every step between works entry by entry, else None."""
    found: dict[Node, Any] = {source: 1.0}
    for node in order.maps:
        touching = [i for i, parent in enumerate(node.parents) if parent in found]
        if not touching or node is source:
            continue
        if node.coefficients is None:
            return None
        found[node] = sum(np.asarray(node.coefficients[i]) * found[node.parents[i]] for i in touching)
    return found[order[-1]]


def _pushed(order: Order, source: Node, v: Any, mode: Mode) -> Any:
    """The map of k vectors [k, in] at once, [k, out], by NumPy or JAX."""
    xp = np if isinstance(v, np.ndarray) else jnp
    found: dict[Node, Any] = {source: v.reshape(len(v), *source.shape)}
    for node in order.maps:
        if node is source or not any(parent in found for parent in node.parents):
            continue
        arrays = (
            found[parent] if parent in found else xp.zeros((len(v), *parent.shape)) for parent in node.parents
        )
        found[node] = node.apply(mode, *arrays)
    return found[order[-1]].reshape(len(v), order[-1].size)


def _columns(order: Order, source: Node) -> Float[np.ndarray, "in out"]:
    """The transpose of the derivative."""
    return np.asarray(_pushed(order, source, np.eye(source.size), "linear"), np.float64)
