"""One table: what a walk makes of each primitive of jax whose operands depend on the input.

A rule is a function (graph, equation, operands, shape of the first result) -> results, an operand being a `Value` or a
constant. Four kinds cover most primitives: those that move entries, those that are linear in some operands, those that
work entry by entry, and products. To add a primitive is one entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from jaxact.trace import _cases, _complex, _maxima, _quadratic, _radial, _softmax
from jaxact.trace._expr import Expr, UnsupportedError, constant
from jaxact.trace._formula import ELEMENTWISE, apply, refuse_integers
from jaxact.trace._graph import Graph, Special, constant_expr, is_constant
from jaxact.trace._host import batched_dot, bound, computed, in_float64, moved
from jaxact.trace._nodes import Bound, Value, positions, whole
from jaxact.trace._signs import is_nonnegative

PRODUCTS = ("dot_general", "conv_general_dilated")
Shape: TypeAlias = tuple[int, ...]
Rule: TypeAlias = Callable[[Graph, Any, list[Any], Shape], Sequence[Any]]


# --- What moves entries -----------------------------------------------------------------------------------------------


def _moves(
    graph: Graph, eqn: Any, operands: list[Any], shape: Shape, *, places: Sequence[int] | None
) -> list[Any]:
    """The primitive is asked where it puts the positions of entries; `places`: which operands it moves, None: all."""
    places = tuple(range(len(operands))) if places is None else tuple(places)
    _check_places(eqn, operands, places)
    operands = [np.asarray(each) if is_constant(each) else each for each in operands]
    parts = [operands[i] for i in places]
    numbered, start = list(operands), 0
    for i in places:
        its_shape = operands[i].shape  # of a value or an array
        numbered[i] = np.asarray(start + np.arange(math.prod(its_shape), dtype=np.float64).reshape(its_shape))
        start += numbered[i].size
    fill = eqn.params.get("fill_value")
    parts.append(np.float64(np.nan if fill is None else fill))
    return [graph.gathered(parts, index.astype(np.int64)) for index in moved(eqn, numbered, float(start))]


def _reshapes(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    return [operands[0].reshaped(shape)]


def _broadcasts(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    keeps_order = operands[0].size == math.prod(shape)
    return (_reshapes if keeps_order else partial(_moves, places=(0,)))(graph, eqn, operands, shape)


def _check_places(eqn: Any, operands: list[Any], places: Sequence[int]) -> None:
    if any(not is_constant(operand) for i, operand in enumerate(operands) if i not in places):
        raise UnsupportedError(f"`{eqn.primitive.name}` at places that depend on the input is not known")


# --- What is linear ---------------------------------------------------------------------------------------------------


def _sums(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    return [_quadratic.summed(graph, graph.node(operands[0]), operands[0].shape, eqn.params["axes"], shape)]


def _linear(graph: Graph, eqn: Any, operands: list[Any], shape: Shape, *, places: Sequence[int]) -> list[Any]:
    """The primitive itself, linear in the operands at `places` together, the others being constants."""
    _check_places(eqn, operands, places)
    dependent = [i for i in range(len(operands)) if not is_constant(operands[i])]
    is_product = eqn.primitive.name in PRODUCTS
    constants: list[Any] = []
    for i, operand in enumerate(operands):
        floating = (
            i not in dependent and i in places and jnp.issubdtype(jnp.result_type(operand), jnp.floating)
        )
        constants.append(None if i in dependent else np.asarray(operand, np.float64) if floating else operand)
    params = in_float64(eqn.params)
    parents = [graph.node(operands[i]) for i in dependent]
    others = [operand for operand in operands if is_constant(operand)]
    # x A and A x have the same operands: what tells them apart is which of them depends on the input.
    key = (eqn.primitive, *dependent, *parents, *map(id, others), str(eqn.params))
    if key in graph.products:  # the same product, written twice
        return [whole(graph.products[key][0], shape)]
    made = Bound(
        shape,
        parents,
        lambda *filled: eqn.primitive.bind(*filled, **params),
        dependent,
        [operands[i].shape for i in dependent],
        constants,
        linear=places,
        is_product=is_product,
        host=partial(batched_dot, params) if eqn.primitive.name == "dot_general" else None,
    )
    graph.products[key] = (graph.add(made), others)
    return [whole(made, shape)]


def _dot(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    if any(map(is_constant, operands)):
        return _linear(graph, eqn, operands, shape, places=(0, 1))
    return [_contracted(graph, eqn, *operands)]


def _convolution(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    if any(map(is_constant, operands)):
        return _linear(graph, eqn, operands, shape, places=(0, 1))
    raise UnsupportedError("a convolution with a kernel that depends on the input is not known")


def _contracted(graph: Graph, eqn: Any, u: Value, v: Value) -> Value:
    """A matrix product of two variables: every product, then sums."""
    (u_sum, v_sum), (u_batch, v_batch) = eqn.params["dimension_numbers"]
    u_free = [d for d in range(len(u.shape)) if d not in (*u_sum, *u_batch)]
    v_free = [d for d in range(len(v.shape)) if d not in (*v_sum, *v_batch)]
    batch, summed = [u.shape[d] for d in u_batch], [u.shape[d] for d in u_sum]
    rows, columns = [u.shape[d] for d in u_free], [v.shape[d] for d in v_free]
    full = (*batch, *rows, *columns, *summed)
    u_index = positions(u).transpose(*u_batch, *u_free, *u_sum)
    v_index = positions(v).transpose(*v_batch, *v_free, *v_sum)
    u_index = u_index.reshape((*batch, *rows, *[1] * len(columns), *summed))
    v_index = v_index.reshape((*batch, *[1] * len(rows), *columns, *summed))
    left, right = (
        graph.entries(value, np.ascontiguousarray(np.broadcast_to(index, full)))
        for value, index in ((u, u_index), (v, v_index))
    )
    if left.node is right.node:  # x @ x
        products = graph.node(graph.applied("mul", left.node, [left.expr, right.expr], full))
    else:
        products = graph.node(graph.product(left, right, full))
    kept = len(full) - len(summed)
    return _quadratic.summed(graph, products, full, range(kept, len(full)), full[:kept])


# --- What works entry by entry ----------------------------------------------------------------------------------------


def _elementwise(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    name = eqn.primitive.name
    values = [operand if is_constant(operand) else graph.spread(operand, shape) for operand in operands]
    variables = [value for value in values if isinstance(value, Value)]
    constants = [None if isinstance(value, Value) else constant_expr(value, shape) for value in values]
    arrays = [c for c in constants if c is not None and isinstance(c.value, np.ndarray)]
    if (
        len(variables) == 1
        and arrays
        and (found := _rescaled(graph, name, values, arrays[0], shape)) is not None
    ):
        return [found]
    if (
        name == "select_n"
        and is_constant(values[0])
        and not all(map(is_finite, filter(is_constant, operands)))
    ):
        return _chosen(graph, eqn, values, shape)  # 0 times infinity is NaN
    common = graph.common(variables)
    if common is None:
        return [_joined(graph, eqn, values, shape)]
    root, exprs = common
    given = iter(exprs)
    arguments = [next(given) if c is None else c for c in constants]
    return [graph.applied(name, root, arguments, shape, eqn.params)]


def _rescaled(graph: Graph, name: str, values: list[Any], c: Expr, shape: Shape) -> Value | None:
    """A sum, difference, product or quotient of one value and an array of constants; None if it is no such."""
    first = not is_constant(values[0])
    if name not in ("add", "sub", "mul", "div") or (name == "div" and not first):
        return None
    value = values[0] if first else values[1]
    if name == "sub" and not first:  # c - x
        value, name = graph.applied("neg", value.node, [value.expr], shape), "add"
    return graph.scaled(name, value, c, shape)


def _joined(graph: Graph, eqn: Any, values: list[Any], shape: Shape) -> Any:
    """An elementwise primitive of variables that are no formulas of one."""
    name = eqn.primitive.name
    if name == "sub" and (found := _radial.variance(graph, values[0], values[1], shape)) is not None:
        return found
    if name in ("add", "add_any", "sub"):
        return graph.sum(values[0], values[1], -1.0 if name == "sub" else 1.0, shape)
    if name in ("max", "min"):
        return _maxima.larger(graph, values[0], values[1], name, shape)
    if name == "mul":
        return _product(graph, values[0], values[1], shape)
    if name == "div":
        found = _softmax.softmax(graph, values[0], values[1], shape)
        return found or _product(graph, values[0], _inverse(graph, values[1], shape), shape)
    if name == "select_n" and is_constant(values[0]):
        return _chosen(graph, eqn, values, shape)[0]
    if name == "select_n":
        for rule in (_maxima.larger_by_choice, _radial.by_choice, _maxima.joined_by_choice):
            if (chosen := rule(graph, values, shape)) is not None:
                return chosen
    if name in ("lt", "le", "gt", "ge", "eq", "ne"):
        difference = graph.sum(values[0], values[1], -1.0, shape)
        return graph.applied(name, difference.node, [difference.expr, constant(0.0)], shape)
    raise UnsupportedError(f"`{name}` of several variables is not known")


def _chosen(graph: Graph, eqn: Any, values: list[Any], shape: Shape) -> list[Any]:
    """The entries that a constant chooses."""
    spread = [np.broadcast_to(value, shape) if is_constant(value) else value for value in values]
    return _moves(graph, eqn, spread, shape, places=range(1, len(values)))


def _product(graph: Graph, u: Value, v: Value, shape: Shape) -> Value:
    found = _radial.scaled_by_length(graph, u, v, shape) or _radial.scaled_by_length(graph, v, u, shape)
    return found or graph.product(u, v, shape)


def _inverse(graph: Graph, value: Value, shape: Shape) -> Value:
    expr = apply("div", [constant(1.0), value.expr])
    return Value(value.node, expr, shape, graph.noted(expr))


def _at_least(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    """max(u, v); of what is never negative and what is never positive the former."""
    for value, other in (operands, operands[::-1]):
        is_floor = is_constant(other) and not is_constant(value) and np.all(np.asarray(other) <= 0)
        if is_floor and value.size == math.prod(shape) and is_nonnegative(value):
            return [value.reshaped(shape)]
    return _elementwise(graph, eqn, operands, shape)


def _clamped(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    """The entries min(max(u, low), high)."""
    low, value, high = operands
    if is_constant(low) and is_constant(high):
        return _elementwise(graph, eqn, operands, shape)
    raised = applied(graph, RealEquation(eqn, "max"), [value, low])
    return list(applied(graph, RealEquation(eqn, "min"), [*raised, high]))


def _below(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    """U < v; false where v is 0 and u never negative. The opposite may be false too: of NaN, as sqrt(-1) >= 0 is."""
    u, v = operands
    if is_constant(v) and not np.any(np.asarray(v)) and not u.expr.is_bool and is_nonnegative(u):
        return [np.full(shape, False)]
    return _elementwise(graph, eqn, operands, shape)


def _log(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    """log(u) and log1p(u)."""
    found = _softmax.logsumexp(graph, operands[0], shape, float(eqn.primitive.name == "log1p"))
    return _elementwise(graph, eqn, operands, shape) if found is None else [found]


def _exp(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    found = _softmax.exponential(graph, operands[0], shape)
    return _elementwise(graph, eqn, operands, shape) if found is None else [found]


def _multiplied_out(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    """The product along axes, by rounds of pairs."""
    value, axes = operands[0], eqn.params["axes"]
    kept = [d for d in range(len(value.shape)) if d not in axes]
    rows = positions(value).transpose(*axes, *kept).reshape(-1, *shape)
    parts = [graph.entries(value, row) for row in rows]
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=False)
        parts = [_product(graph, u, v, shape) for u, v in pairs] + parts[len(parts) & ~1 :]
    return parts


def _multiplied_up(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    """The running product along an axis."""
    axis = eqn.params["axis"]
    rows = np.moveaxis(positions(operands[0]), axis, 0)
    parts = [graph.entries(operands[0], row) for row in (rows[::-1] if eqn.params["reverse"] else rows)]
    for k in range(1, len(parts)):
        parts[k] = _product(graph, parts[k - 1], parts[k], parts[k].shape)
    parts = parts[::-1] if eqn.params["reverse"] else parts
    stacked = graph.chained(parts, (len(parts), *parts[0].shape))
    return [graph.entries(stacked, np.moveaxis(positions(stacked), 0, axis))]


def _put(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    """Entries put at constant places, as `x.at[i].set` has it; `x.at[i].apply` computes them on the way."""
    update = eqn.params.get("update_jaxpr")
    if update is not None and (update.eqns or update.outvars[0] is not update.invars[1]):
        raise UnsupportedError("a `scatter` that applies a function to entries is not known")
    return _moves(graph, eqn, operands, shape, places=(0, 2))


def _multiplied(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    """Entries multiplied at constant places."""
    _check_places(eqn, operands, (0,))
    (factors,) = computed(eqn, [np.ones(operands[0].shape), *operands[1:]])
    return [graph.scaled("mul", operands[0], constant_expr(factors, shape), shape)]


def is_finite(values: Any) -> bool:
    """Whether an array has neither NaN nor inf."""
    values = np.asarray(values)
    return values.dtype.kind not in "fc" or bool(np.isfinite(values).all())


def _solved(graph: Graph, eqn: Any, operands: list[Any], shape: Shape) -> list[Any]:
    """A triangular system with one constant matrix, as products with its inverse."""
    _check_places(eqn, operands, (1,))
    matrix = np.asarray(operands[0], np.float64)
    if matrix.ndim != 2:
        raise UnsupportedError("triangular systems with several matrices are not known")
    (inverse,) = bound(eqn, [matrix, np.eye(len(matrix))], in_float64(eqn.params))
    is_left = eqn.params["left_side"]
    made = Bound(
        shape,
        [graph.node(operands[1])],
        (lambda a, b: a @ b) if is_left else (lambda a, b: b @ a),
        (1,),
        [operands[1].shape],
        [np.asarray(inverse), None],
        linear=(0,),
        is_product=True,
    )
    return [whole(graph.add(made), shape)]


class RealEquation:
    """An equation with another primitive and real results, of the shapes of `eqn`."""

    def __init__(self, eqn: Any, primitive: str):
        is_same = primitive == eqn.primitive.name
        self.primitive = eqn.primitive if is_same else getattr(primitives, f"{primitive}_p")
        self.params = in_float64(eqn.params) if is_same else {}
        self.invars = ()
        self.outvars = [
            SimpleNamespace(aval=SimpleNamespace(shape=v.aval.shape, dtype=np.dtype(np.float64)))
            for v in eqn.outvars
        ]
        self.source_info = eqn.source_info


def applied(graph: Graph, eqn: Any, operands: list[Any]) -> Sequence[Any]:
    """What the rule of an equation's primitive makes of its operands.

    Raises:
        UnsupportedError: there is no rule, or it does not cover them.
    """
    name = eqn.primitive.name

    def real(primitive: str, given: Sequence[Any]) -> Any:
        results = applied(graph, RealEquation(eqn, primitive), list(given))
        return results if len(results) > 1 else results[0]

    def select(predicate: Any, no: Any, yes: Any) -> Any:
        return real("select_n", [predicate, no, yes])

    if name in ("stack", "concatenate") and (found := _cases.stacked(eqn, operands)) is not None:
        return [found]
    if _complex.is_complex(eqn, operands):
        return _complex.resolve(graph, eqn, operands, real)
    if any(isinstance(operand, Special) for operand in operands):
        return _cases.resolve(graph, eqn, operands, select)
    if all(map(is_constant, operands)):
        return computed(eqn, operands)
    refuse_integers(eqn)
    if name not in RULES:
        raise UnsupportedError(f"`{name}` is neither linear nor elementwise, as far as is known here")
    return RULES[name](graph, eqn, operands, tuple(eqn.outvars[0].aval.shape))


#: primitive -> its rule
RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "max": _at_least,
    "clamp": _clamped,
    "lt": _below,
    **dict.fromkeys(("log", "log1p"), _log),
    "exp": _exp,
    **dict.fromkeys(("scatter-max", "scatter_max", "scatter-min", "scatter_min"), _maxima.scattered),
    "reduce_prod": _multiplied_out,
    "cumprod": _multiplied_up,
    **dict.fromkeys(("reshape", "squeeze", "expand_dims"), _reshapes),
    **dict.fromkeys(
        ("name", "sharding_constraint", "optimization_barrier", "mesh_cast", "pvary"),
        lambda graph, eqn, operands, shape: operands,
    ),
    "broadcast_in_dim": _broadcasts,
    **dict.fromkeys(("concatenate", "stack"), partial(_moves, places=None)),
    **dict.fromkeys(
        ("dynamic_slice", "gather", "rev", "slice", "split", "tile", "transpose", "unstack"),
        partial(_moves, places=(0,)),
    ),
    **dict.fromkeys(("dynamic_update_slice", "pad"), partial(_moves, places=(0, 1))),
    "scatter": _put,
    "reduce_sum": _sums,
    **dict.fromkeys(("cumsum", "reduce_window_sum"), partial(_linear, places=(0,))),
    **dict.fromkeys(("scatter-add", "scatter_add"), partial(_linear, places=(0, 2))),
    **dict.fromkeys(("scatter-mul", "scatter_mul"), _multiplied),
    "dot_general": _dot,
    "triangular_solve": _solved,
    "conv_general_dilated": _convolution,
    **dict.fromkeys(("reduce_max", "reduce_min"), _maxima.reduced),
    **dict.fromkeys(("reduce_window_max", "reduce_window_min"), _maxima.pooled),
    **dict.fromkeys(("cummax", "cummin"), _maxima.running),
    **dict.fromkeys(("argmax", "argmin"), _maxima.place),
    "sort": _maxima.ordered,
    "top_k": _maxima.largest_few,
}
