"""The nodes of one function as they are made: sums, products, entries and formulas of values that depend on the input.

A value is kept as f(z): a formula f of one variable, applied entry by entry to an affine map z of the variables so far.
Maps are written out as ONE operator where a nonlinearity needs them; formulas grow as long as everything in them
depends on the same z, so that x * sigmoid(x) or h + f(h) is one function.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxact.errors import ArgumentError
from jaxact.trace._compose import below, leaves_of, selection
from jaxact.trace._expr import Expr, UnsupportedError, constant, variable
from jaxact.trace._formula import apply, compose, reindex
from jaxact.trace._leaps import Formula, Known, Product
from jaxact.trace._nodes import Gathered, Input, Node, Scaled, Sum, Value, positions, whole
from jaxact.trace._source import Place, called, place
from jaxact.trace._stretch import Stretched

_FARTHEST = 64  # maps back through which a common one is looked for


class Special:
    """What depends on the input and is no array of real numbers: conditions, indices, complex numbers."""


@dataclass(frozen=True)
class Failed:
    """What cannot be bounded; an error only once the output needs it."""

    error: ArgumentError


@dataclass
class Graph:
    """What a walk has made so far.

    Attributes:
        contract: whether softmax, maxima, norms and normalisations are steps that are known by one number, and not by
            the slopes of what they are computed from.
        has_choice: whether there is one that may be either.
        shortcut: (graph, value) -> the node that the formula of a node may be instead, or None.
        nodes: all of them, each after those that it is made of.
        places: by the id of a formula, where it was first written.
        made_at: the equation that a node comes from, and the call around it.
        calls: that the walk is inside of.
        eqn: that the walk is at.
        pairs: sorted pairs, by what they are made of.
        products: with constants, by what they are made of, and those.
        shifts: what was subtracted before an exponential, and is added back after the logarithm.
    """

    contract: bool = False
    has_choice: bool = False
    shortcut: Callable[[Graph, Value], Node | None] = lambda graph, value: None
    nodes: list[Node] = field(default_factory=list)
    places: dict[int, Place] = field(default_factory=dict)
    made_at: dict[Node, tuple[Any, Place | None]] = field(default_factory=dict)
    calls: list[Place] = field(default_factory=list)
    eqn: Any = None
    pairs: dict[Any, Node] = field(default_factory=dict)
    _means: dict[Any, Node] = field(default_factory=dict)
    products: dict[Any, tuple[Node, Any]] = field(default_factory=dict)
    shifts: set[Node] = field(default_factory=set)
    _node_of: dict[tuple[int, int], Node] = field(default_factory=dict)
    _taken: dict[Any, Node] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)  # formulas whose ids are keys

    # --- Places -------------------------------------------------------------------------------------------------------

    @contextmanager
    def inside(self, eqn: Any, body: Any) -> Iterator[None]:
        """While the body of a call or loop is walked."""
        self.calls.append(called(eqn, body, self.call))
        try:
            yield
        finally:
            self.calls.pop()

    @property
    def call(self) -> Place | None:
        """The innermost call that the walk is inside of."""
        return self.calls[-1] if self.calls else None

    @property
    def here(self) -> Place:
        """Where the user wrote the equation; inside of a library's function, where that was called."""
        return place(self.eqn, self.call)

    def failed(self, reason: str) -> Failed:
        """What the equation at hand is where it cannot be bounded."""
        return Failed(unknown(reason, self.eqn.primitive.name, self.here.line))

    def noted(self, expr: Expr) -> Place:
        """Remember where a formula was first written."""
        where = self.here
        if id(expr) not in self.places:
            self.places[id(expr)] = where._replace(name=self.eqn.primitive.name)
            self._kept.append(expr)
        return where

    # --- Nodes --------------------------------------------------------------------------------------------------------

    def add(self, node: Node) -> Node:
        """Enter a node."""
        self.nodes.append(node)
        return node

    def input(self, shape: Sequence[int]) -> Node:
        return self.add(Input(shape))

    def node(self, value: Value) -> Node:
        """The value as a node: an affine map of the same variables if its formula is affine, else a new variable."""
        if value.is_plain:
            return value.node
        key = (id(value.node), id(value.expr))
        if key not in self._node_of:
            if value.expr.is_bool:
                raise UnsupportedError("a predicate that depends on the input is used as an array")
            self._kept.append(value.expr)
            is_affine = value.expr.affine is not None
            made = Scaled(value.node, value.expr) if is_affine else self.shortcut(self, value)
            if made is None:
                value.node.cut()
                made = Formula(value.node, value.expr)
            if value.place is not None:
                self.made_at[made] = (None, value.place)
            self._node_of[key] = self.add(made)
        return self._node_of[key]

    def has_node(self, value: Value) -> Node | None:
        """The node that the value has become already, if it has."""
        return self._node_of.get((id(value.node), id(value.expr)))

    def applied(
        self, name: str, root: Node, arguments: Sequence[Expr], shape: tuple[int, ...], params=None
    ) -> Any:
        """A primitive of formulas of one node."""
        expr = apply(name, arguments, params)
        if expr.is_constant:
            return np.broadcast_to(
                np.asarray(expr.value).reshape(shape if np.ndim(expr.value) else ()), shape
            )
        return Value(root, expr, shape, self.noted(expr))

    def scaled(self, name: str, value: Value, c: Expr, shape: tuple[int, ...]) -> Value:
        """A sum x + c or product c x with an array c: a new affine map, that remembers what it is a formula of."""
        made = Value(self.node(value), apply(name, [variable(), c]), shape)
        return whole(self.node(made), shape)

    def sum(self, u: Value, v: Value, sign: float, shape: tuple[int, ...]) -> Value:
        """The sum u + sign v."""
        made = self.add(Sum(shape, self.node(u), self.node(v), sign))
        may_cancel = made.is_leaf and any(shift.leaves <= leaves_of(made) for shift in self.shifts)
        found = selection(made) if may_cancel else None
        return whole(made) if found is None else self.entries(whole(found[0]), found[1].reshape(shape))

    def product(self, u: Value, v: Value, shape: tuple[int, ...]) -> Value:
        """The product, by u' v' - u v = v' (u' - u) + u (v' - v): bounded where u and v are."""
        if u.expr.is_bool or v.expr.is_bool:
            raise UnsupportedError("a product with a predicate of another variable is not known")
        first, second = self.node(u), self.node(v)
        first.cut()
        second.cut()
        reason = "the slope of a product of two variables is unbounded over all inputs"
        where = refusal(reason, self.eqn.primitive.name, self.here.line)
        return whole(self.add(Product(shape, first, second, where)))

    def known(self, value: Value, shape: tuple[int, ...], known: Stretched) -> Value:
        """A step known by the most that it stretches anything."""
        node = self.node(value)
        node.cut()
        if known.mean_of is None:
            return whole(self.add(Known(shape, node, known)), shape)
        key = (node, known.name, known.mean_of.shape, known.mean_of.tobytes())
        if key not in self._means:  # a maximum that is taken twice is one
            self._means[key] = self.add(Known(shape, node, known))
        return whole(self._means[key], shape)

    # --- Entries ------------------------------------------------------------------------------------------------------

    def taken(self, node: Node, index: np.ndarray | np.integer) -> Node:
        """The entries `index` of the flattened node."""
        index = np.asarray(index)
        if index.size == node.size and (index.reshape(-1) == np.arange(node.size)).all():
            return node
        key = (node, index.shape, index.tobytes())
        if key not in self._taken:  # one slice that is written twice is one
            self._taken[key] = self.add(Gathered((node,), index))
        return self._taken[key]

    def entries(self, value: Value, index: np.ndarray | np.integer) -> Value:
        """The entries `index` of the flattened value; a predicate stays one."""
        if value.expr.is_bool:
            flat = index.reshape(-1)
            root = self.taken(value.node, index)
            return Value(root, reindex(value.expr, lambda c: c[flat]), index.shape, value.place)
        return whole(self.taken(self.node(value), index), index.shape)

    def rebased(self, node: Node, x: Node, other: Node) -> Node:
        """An affine map of x as the same map of another node."""
        made = {x: other}
        for each in below(node):
            if each is not x and any(parent in made for parent in each.parents):
                made[each] = copy.copy(each)
                made[each].parents = tuple(made.get(parent, parent) for parent in each.parents)
                made[each].origin = None
                made[each].uncut()
                self.add(made[each])
        return made[node]

    def spread(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Broadcast as NumPy does; entries in their order need no map."""
        if value.size == math.prod(shape):
            return value.reshaped(shape)
        return self.entries(value, np.broadcast_to(positions(value), shape))

    def gathered(self, parts: Sequence[Any], index: np.ndarray) -> Any:
        """The entries `index` of values and constants, all flattened and one after the other."""
        if all(map(is_constant, parts)):
            return np.concatenate([np.asarray(part).reshape(-1) for part in parts])[index]
        start, moved, constants, values = 0, np.empty(index.shape, np.int64), [], []
        sizes = [int(np.size(part)) if is_constant(part) else part.size for part in parts]
        total = sum(size for part, size in zip(parts, sizes, strict=True) if not is_constant(part))
        offset, after = 0, total
        for part, size in zip(parts, sizes, strict=True):
            here = (index >= start) & (index < start + size)
            if is_constant(part):
                moved[here] = index[here] - start + after
                constants.append(np.asarray(part, np.float64).reshape(-1))
                after += size
            else:
                moved[here] = index[here] - start + offset
                values.append(part)
                offset += size
            start += size
        if len(values) == 1 and (moved < total).all():
            return self.entries(values[0], moved)
        nodes = [self.node(value) for value in values]
        return whole(self.add(Gathered(nodes, moved, np.concatenate(constants) if constants else None)))

    def add_constant(self, values: np.ndarray, beside: Node) -> Value:
        """A constant array as an affine map of a node."""
        index = beside.size + np.arange(values.size).reshape(values.shape)
        return whole(self.add(Gathered((beside,), index, values.reshape(-1))))

    def chained(self, parts: Sequence[Any], shape: tuple[int, ...]) -> Any:
        """The entries of one after those of the other."""
        return self.gathered(parts, np.arange(math.prod(shape)).reshape(shape))

    # --- Formulas of several values -----------------------------------------------------------------------------------

    def common(self, values: Sequence[Value]) -> tuple[Node, list[Expr]] | None:
        """The nearest node of which all are formulas, and those."""
        if all(value.node is values[0].node for value in values):
            return values[0].node, [value.expr for value in values]
        chains = [self._chain(value) for value in values]
        for node in chains[0]:
            if all(node in chain for chain in chains):
                return node, [chain[node] for chain in chains]
        return None

    def _chain(self, value: Value) -> dict[Node, Expr]:
        """The nodes that a value is a formula of, nearest first."""
        chain, node, expr = {value.node: value.expr}, value.node, value.expr
        while node.origin is not None and len(chain) < _FARTHEST:
            node, inner = node.origin
            expr = compose(expr, inner)
            self._kept.append(expr)
            chain[node] = expr
        return chain


def is_constant(value: Any) -> bool:
    """Whether it does not depend on the input."""
    return not isinstance(value, Value | Failed | Deferred | Special)


@dataclass
class Deferred:
    """A value found when it is asked for."""

    thunk: Any
    found: Any = None
    done: bool = False

    def force(self) -> Any:
        if not self.done:
            self.found, self.done = self.thunk(), True
        return self.found


def forced(value: Any) -> Any:
    """The value, found now if it was put off."""
    return value.force() if isinstance(value, Deferred) else value


def constant_expr(value: Any, shape: tuple[int, ...]) -> Expr:
    """A constant array as a formula."""
    values = np.asarray(value)
    if values.size == 1:
        return constant(values.reshape(()))
    return constant(np.broadcast_to(values, shape).reshape(-1).copy())


def unknown(reason: str, primitive: str, line: str) -> ArgumentError:
    """What is said of a part that cannot be bounded at all."""
    return ArgumentError(
        f"cannot be bounded: {reason} (`{primitive}` at {line}).",
        "Write that part with affine and elementwise operations, or bound the parts before and after it.",
        argument="fn",
    )


def refusal(reason: str, primitive: str, line: str) -> ArgumentError:
    """What is said of a part that can be bounded within a region only."""
    return ArgumentError(
        f"cannot be bounded over all inputs: {reason} (`{primitive}` at {line}).",
        "Pass region=Ball(center, radius) or Box(lower, upper) to bound it there.",
        argument="fn",
        give="region",
    )
