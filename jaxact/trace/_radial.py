"""Norms, and what is a function of the length of a vector: normalisations, clipping, bumps.

Of f(|x|) the gradient is f'(t) x / t, t = |x|: no longer than |f'(t)|. Of x g(|x|) the Jacobian
g(t) I + t g'(t) x x^T / t^2 has the norm max(|g(t)|, |(t g(t))'|): one step whose constant is that of one variable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxact.trace import _stretch
from jaxact.trace._compose import below, has_no_mean, leaves_of, offset_of, ratio
from jaxact.trace._expr import Expr, constant, num_entries, variable
from jaxact.trace._formula import apply, compose
from jaxact.trace._graph import Graph
from jaxact.trace._leaps import Formula, Known
from jaxact.trace._nodes import Gathered, Node, Scaled, Total, Value, whole
from jaxact.trace._quadratic import root
from jaxact.trace._weights import are_all_once, spelled_out, weighted_sum


@dataclass(frozen=True)
class Radial:
    """An array whose entries are f(|x|) of groups of entries of x.

    Attributes:
        x: the vectors.
        positions: [group, entry], the entries of x in each group.
        expr: f, a formula of the length.
    """

    x: Node
    positions: np.ndarray
    expr: Expr


def length(graph: Graph, value: Value) -> Radial | None:
    """What a value is of the lengths of vectors; None if that is not seen."""
    if num_entries(value.expr) is not None:
        return None
    if isinstance(value.node, Known) and isinstance(value.node.known.radial, Radial):
        found = value.node.known.radial
        return Radial(found.x, found.positions, compose(value.expr, found.expr))
    squares = _squares(graph, value.node)
    if squares is not None:
        return Radial(*squares, compose(value.expr, variable() ** 2))
    if (form := root(graph, value.node)) is not None:
        y, sign = form
        return Radial(y, np.arange(y.size)[None], compose(value.expr, sign * variable() ** 2))
    if value.node.origin is None:
        return None
    origin, inner = value.node.origin
    return length(graph, Value(origin, compose(value.expr, inner), value.shape))


def _squares(graph: Graph, node: Node) -> tuple[Node, np.ndarray] | None:
    """Of a sum of squares what is squared, and the positions [sum, term]; of w x^2 that is sqrt(w) x."""
    found = weighted_sum(node)
    if found is None or found.of[1].op != "integer_pow" or found.of[1].param != 2:
        return None
    inner, (expr,) = found.of[0], found.of[1].args
    if expr.affine is None:
        return None
    x = graph.node(Value(inner, expr, inner.shape))
    if (found.weights == 1).all() and are_all_once(found.entries, x):
        return x, found.entries
    spelled = spelled_out(graph, x, found.entries, found.weights)
    if spelled is None:
        return None
    terms, roots = spelled[0], np.sqrt(spelled[1])
    if (roots != 1).any():
        terms = graph.scaled("mul", terms, constant(roots.reshape(-1)), terms.shape)
    return graph.node(terms), np.arange(terms.size).reshape(terms.shape)


def shortcut(graph: Graph, value: Value) -> Node | None:
    """A formula of a sum of squares as one step, known by the most that it stretches x; None if it is no such."""
    root: Node | None = value.node
    while isinstance(root, Scaled):
        root = root.parents[0]
    found = length(graph, value) if isinstance(root, Total | Known) else None
    if found is None:
        return None
    graph.has_choice = True
    if not graph.contract:
        return None
    found.x.cut()
    return Known(value.node.shape, found.x, _stretch.of_length(found))


def scaled_by_length(graph: Graph, u: Value, v: Value, shape: tuple[int, ...]) -> Value | None:
    """The product x g(|x|), u being c x and v the factor, with gains or without; None if they are no such."""
    spread = _of_entries(graph, v)
    if spread is None:
        return None
    found, index, gains = spread
    given = graph.node(u)
    if not _is_spread(index, found.positions):
        return _mapped(graph, given, found, shape, gains)
    along = given.known.along if isinstance(given, Known) else None
    if along is not None and along.x is found.x and np.array_equal(along.positions, found.positions):
        found, factor = Radial(found.x, found.positions, along.expr * found.expr), 1.0
    else:
        factor = ratio(given, found.x)
    if factor is None:
        return _mapped(graph, given, found, shape, gains)
    graph.has_choice = True
    if not graph.contract:
        return None
    is_centred = found.positions.shape[1] > 1 and has_no_mean(found.x, found.positions)
    result = graph.known(whole(found.x), shape, _stretch.along(found))
    if is_centred:  # the same array, whose slopes have no mean either
        result = _centred(graph, result, found.positions)
    scale = constant(factor) * gains
    return result if scale is constant(1.0) else graph.scaled("mul", result, scale, shape)


def _of_entries(graph: Graph, value: Value) -> tuple[Radial, np.ndarray, Expr] | None:
    """The lengths that entries are functions of, which of them each takes, and what it is multiplied by besides."""
    node, expr = value.node, value.expr
    index, gains, is_spread = np.arange(value.size), np.ones(value.size), value.size == 1
    while True:
        if isinstance(node, Gathered) and node.is_plain:
            index, node, is_spread = node.index.reshape(-1)[index], node.parents[0], True
        elif (
            isinstance(node, Scaled) and expr.op == "var" and not np.any(node.shift) and np.ndim(node.factor)
        ):
            gains, node = gains * np.asarray(node.factor)[index], node.parents[0]
        elif (
            isinstance(node, Formula | Scaled)
            and node.origin is not None
            and num_entries(node.origin[1]) is None
        ):
            expr, node = compose(expr, node.origin[1]), node.origin[0]
        else:
            break
    found = length(graph, Value(node, expr, node.shape)) if is_spread else None
    return None if found is None else (found, index, constant(gains))


def _mapped(graph: Graph, given: Node, found: Radial, shape: tuple[int, ...], gains: Expr) -> Value | None:
    """The product M x g(|x|) as M (x g(|x|)), for one length and any matrix M; None if u is no such map."""
    is_map = given.is_affine and leaves_of(given) == {found.x} and not offset_of(below(given)).any()
    if len(found.positions) != 1 or not is_map:
        return None
    graph.has_choice = True
    if not graph.contract:
        return None
    result = graph.known(whole(found.x), found.x.shape, _stretch.along(found))
    made = whole(graph.rebased(given, found.x, result.node), shape)
    return made if gains is constant(1.0) else graph.scaled("mul", made, gains, shape)


def _is_spread(index: np.ndarray, positions: np.ndarray) -> bool:
    """Whether each entry takes what belongs to its own group."""
    flat = index.reshape(-1)
    covers = flat.size == positions.size
    return covers and bool((flat[positions] == np.arange(len(positions))[:, None]).all())


def _centred(graph: Graph, value: Value, positions: np.ndarray) -> Value:
    """Without the mean of each group."""
    group = np.empty(value.size, int)
    group[positions] = np.arange(len(positions))[:, None]
    total = graph.add(Total(graph.taken(graph.node(value), positions), positions.shape, (1,)))
    mean = graph.scaled("mul", whole(total), constant(1.0 / positions.shape[1]), total.shape)
    return graph.sum(value, graph.entries(mean, group.reshape(value.shape)), -1.0, value.shape)


def by_choice(graph: Graph, values: list[Any], shape: tuple[int, ...]) -> Value | None:
    """where(p(|x|), x g(|x|), x h(|x|)) = x k(|x|), k = where(p, g, h); None if it is no such choice."""
    spread, parts = _of_entries(graph, values[0]), [_along(graph, case) for case in values[1:]]
    x = next((part.x for part in parts if isinstance(part, Radial)), None)
    if spread is None or x is None or len(parts) != 2:
        return None
    length_, index, _ = spread
    factors = [part.expr if isinstance(part, Radial) else constant(1.0) for part in parts]
    is_same = all(part.x is x if isinstance(part, Radial) else part is x for part in parts)
    groups = [length_, *(part for part in parts if isinstance(part, Radial))]
    is_one = all(np.array_equal(each.positions, length_.positions) for each in groups)
    if not (is_same and is_one and length_.x is x and _is_spread(index, length_.positions)):
        return None
    graph.has_choice = True
    if not graph.contract:
        return None
    expr = apply("select_n", [length_.expr, *factors])
    return graph.known(whole(x), shape, _stretch.along(Radial(x, length_.positions, expr)))


def _along(graph: Graph, case: Any) -> Radial | Node | None:
    """What x g(|x|) is, or the array itself, whose g is 1."""
    if not isinstance(case, Value):
        return None
    node = graph.node(case)
    base, expr = node, variable()
    if isinstance(node, Scaled) and num_entries(node.expr) is None:
        base, expr = node.parents[0], node.expr
    along = base.known.along if isinstance(base, Known) else None
    is_multiple = expr.affine[1] == 0
    return Radial(along.x, along.positions, expr.affine[0] * along.expr) if along and is_multiple else node


def variance(graph: Graph, u: Value, v: Value, shape: tuple[int, ...]) -> Value | None:
    """A variance by E x^2 - (E x)^2: a sum_j x_j^2 - (c sum_j x_j)^2 = a sum_j (x_j - mean)^2, c^2 = a / n.

    None if u - v is no such difference.
    """
    squares, total = _squares(graph, u.node), v.node
    if squares is None or not isinstance(total, Total) or v.expr.op != "integer_pow" or v.expr.param != 2:
        return None
    (x, positions), (inner,) = squares, v.expr.args
    if u.expr.affine is None or inner.affine is None or num_entries(u.expr) or num_entries(inner):
        return None
    (a, b), (c, d) = u.expr.affine, inner.affine
    is_mean = d == 0 and abs(c * c * positions.shape[1] - a) <= 1e-15 * a
    if (
        not is_mean
        or not isinstance(u.node, Total)
        or total.parents[0] is not x
        or not np.array_equal(total.positions, positions)
    ):
        return None
    centred = _centred(graph, whole(x), positions)
    square = graph.node(Value(centred.node, variable() ** 2, x.shape))
    again = graph.add(Total(square, total.grid, total.axes))
    return Value(again, constant(a) * variable() + b, shape)


def pair(graph: Graph, u: Any, v: Any, shape: tuple[int, ...]) -> Value:
    """hypot(u, v), entry by entry, as the length of the pair."""
    joined = graph.chained([u, v], (2, *shape))
    square = graph.node(Value(graph.node(joined), apply("square", [variable()]), joined.shape))
    total = graph.add(Total(square, joined.shape, (0,)))
    expr = apply("sqrt", [variable()])
    return Value(total, expr, shape, graph.noted(expr))
