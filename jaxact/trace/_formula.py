"""Formulas of one real variable from the primitives of jax: one table, in which each has its builder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxact.trace._curves import COMPARE, LOGIC, NOT_OF_JAX, SPECIAL, UNARY
from jaxact.trace._expr import (
    VALUES,
    Constants,
    Expr,
    UnsupportedError,
    constant,
    evaluate,
    line,
    made,
    nodes,
    num_entries,
    unary,
    variable,
)
from jaxact.trace._rewrites import rewritten

_ARITHMETIC = (
    *("add", "add_any", "sub", "mul", "neg", "div", "pow", "integer_pow", "square", "reduce_sum", "cumsum"),
    *("dot_general", "conv_general_dilated", "reduce_window_sum", "scatter-add", "scatter_add"),
)


def apply(primitive: str, args: Sequence[Expr], params: dict[str, Any] | None = None) -> Expr:
    """Apply a jax primitive to formulas of the same variable.

    Raises:
        UnsupportedError: the primitive is not elementwise or not known here.
    """
    builder = _BUILDERS.get(primitive)
    if builder is None:
        raise UnsupportedError(f"the slope of `{primitive}` is not known")
    with np.errstate(all="ignore"):
        given = (args[0], -args[1]) if primitive == "sub" else args
        if not all(arg.is_constant for arg in args) and (found := rewritten(primitive, *given)) is not None:
            return found
        return builder(params or {}, *args)


def compose(outer: Expr, inner: Expr) -> Expr:
    """outer(inner(x))."""

    def leaf(node: Expr) -> Expr:
        a, b = node.affine
        return constant(a) * inner + constant(b)

    return _rebuilt(outer, leaf)


def outer(expr: Expr, inner: Expr) -> Expr | None:
    """F where expr(x) = F(inner(x)); None if x is read past `inner` too."""
    below, stack = set(), [expr]
    while stack:
        node = stack.pop()
        if node is inner or node.is_constant or id(node) in below:
            continue
        if not node.args:  # x itself, or a x + b
            return None
        below.add(id(node))
        stack += node.args
    return _rebuilt(expr, lambda node: node, {id(inner): variable()})


def reindex(expr: Expr, index: Callable[[np.ndarray], np.ndarray]) -> Expr:
    """Send the constants that differ between entries through `index`, a map of arrays [size]."""

    def leaf(node: Expr) -> Expr:
        return line(*(index(c) if isinstance(c, np.ndarray) else c for c in node.affine))

    return _rebuilt(expr, leaf, constants=lambda c: constant(index(c.value)))


def _rebuilt(
    expr: Expr,
    leaf: Callable[[Expr], Expr],
    known: dict[int, Expr] | None = None,
    constants: Callable[[Expr], Expr] = lambda node: node,
) -> Expr:
    """The formula with other leaves (x and a x + b), other constants that differ by entry, and nodes that are known."""
    done: dict[int, Expr] = dict(known or {})
    for node in nodes(expr):
        if id(node) in done:
            continue
        if node.is_constant:
            done[id(node)] = constants(node) if isinstance(node.param, Constants) else node
        elif not node.args:
            done[id(node)] = leaf(node)
        elif all(id(arg) in done for arg in node.args):  # else it is below what is known
            done[id(node)] = _REBUILD[node.op](node.param, *(done[id(arg)] for arg in node.args))
    return done[id(expr)]


def refuse_integers(eqn: Any) -> None:
    """Raise at integer arithmetic, which is not that of real numbers.

    Raises:
        UnsupportedError: it is.
    """
    if eqn.primitive.name in _ARITHMETIC and not jax.numpy.issubdtype(
        eqn.outvars[0].aval.dtype, jax.numpy.inexact
    ):
        raise UnsupportedError("the arithmetic of integers wraps around and drops remainders")


# --- Builders ---------------------------------------------------------------------------------------------------------


def _div(u: Expr, v: Expr) -> Expr:
    if v.is_constant:
        # a product with 1 / v, rounded once more: covered by the final widening
        return constant(1.0 / np.asarray(v.value)) * u
    return u * v**-1


def _int_power(u: Expr, n: int) -> Expr:
    if n >= 0 or u.is_constant:
        return u**n
    inverse = rewritten("div", constant(1.0), u)
    return u**n if inverse is None else inverse**-n


def _pow(u: Expr, v: Expr) -> Expr:
    if v.is_constant and not isinstance(v.param, Constants):
        y = float(v.param)
        if abs(y) < 2**31 and y == int(y):
            return _int_power(u, int(y))
        if u.is_constant:
            return constant(np.power(u.value, y))
        if abs(y) == 0.5:
            return apply("sqrt" if y > 0 else "rsqrt", [u])
        return made("pow", (u,), y)
    if u.is_constant:
        return apply("exp", [constant(np.log(u.value)) * v])
    raise UnsupportedError("the slope of `pow` is known for one constant operand only")


def _atan2(u: Expr, v: Expr) -> Expr:
    if v.is_constant and np.all(np.asarray(v.value) > 0):
        return apply("atan", [_div(u, v)])
    raise UnsupportedError("the slope of `atan2` is known over a positive constant only")


def _larger(name: str, u: Expr, v: Expr) -> Expr:
    if u is v:
        return u
    if u.is_constant and v.is_constant:
        return constant(VALUES[name](u.value, v.value))
    u, v = (v, u) if u.is_constant else (u, v)
    is_nothing = v.is_constant and np.all(np.asarray(v.value) == (-np.inf if name == "maximum" else np.inf))
    return u if is_nothing else made(name, (u, v), None)


def _compare(name: str, u: Expr, v: Expr) -> Expr:
    if u is v:
        return constant(name in ("le", "ge", "eq"))
    if u.is_constant and v.is_constant:
        return constant(COMPARE[name](u.value, v.value))
    if u.is_bool or v.is_bool:
        raise UnsupportedError(f"`{name}` of predicates is not known")
    if name in ("eq", "ne") and v.is_constant and np.all(np.isinf(v.value)):  # no value is infinite
        return constant(name == "ne")
    return made(name, (u, v), None, is_bool=True)


def _logic(name: str, *args: Expr) -> Expr:
    if not all(arg.is_bool for arg in args):
        raise UnsupportedError(f"`{name}` of integers is not known")
    if all(arg.is_constant for arg in args):
        return constant(LOGIC[name](*(np.asarray(arg.value) for arg in args)))
    return made(name, args, None, is_bool=True)


def _select(which: Expr, *cases: Expr) -> Expr:
    if not which.is_bool:
        raise UnsupportedError("`select_n` among more than two cases is not known")
    if all(case is cases[0] for case in cases):
        return cases[0]
    if which.is_constant and not isinstance(which.param, Constants):
        return cases[bool(which.param)]
    if cases[0].is_bool:
        raise UnsupportedError("`select_n` among predicates is not known")
    no, yes = (_in_branch(case, which, k) for k, case in enumerate(cases))
    if which.op in ("eq", "ne"):
        rest, at = (no, yes) if which.op == "eq" else (yes, no)
        if _is_filled_in(which, rest, at):
            return rest
    return no if no is yes else made("select_n", (which, no, yes), None)


def _in_branch(expr: Expr, which: Expr, k: int) -> Expr:
    """A formula where a predicate is known: choices by it are made."""
    chosen = {
        id(node): node.args[1 + k] for node in nodes(expr) if node.op == "select_n" and node.args[0] is which
    }
    return _rebuilt(expr, lambda node: node, chosen) if chosen else expr


def _is_filled_in(which: Expr, rest: Expr, at: Expr) -> bool:
    """Whether a formula gives itself what is filled in at one point: where(x == 0, 1, sin(x) / x)."""
    given, c = which.args
    if given.affine is None or not c.is_constant:
        return False
    (a, b), c = given.affine, c.value
    if (
        not all(isinstance(each, float) for each in (a, b, c))
        or a == 0
        or num_entries(rest)
        or num_entries(at)
    ):
        return False
    point = np.full(1, (c - b) / a)
    return bool(a * point[0] + b == c and np.array_equal(evaluate(rest, point), evaluate(at, point)))


def _convert(params: Any, u: Expr) -> Expr:
    dtype = np.dtype(params.get("new_dtype", np.float64))
    if dtype == np.bool_:
        return u if u.is_bool else _compare("ne", u, constant(0.0))
    if u.is_bool:
        return _select(u, constant(0.0), constant(1.0))
    if not jax.numpy.issubdtype(dtype, jax.numpy.floating):
        raise UnsupportedError("the rounding of `convert_element_type` to integers has no slope")
    return u


def _reduce_precision(params: Any, u: Expr) -> Expr:
    if params["mantissa_bits"] < 23 or params["exponent_bits"] < 8:
        raise UnsupportedError("the rounding of `reduce_precision` has no slope")
    return u


def _plain(build: Callable[..., Expr]) -> Callable[..., Expr]:
    """A builder that has no use for the parameters."""
    return lambda _, *args: build(*args)


#: op of a node with operands -> rebuild it from its parameter and new operands
_REBUILD: dict[str, Callable[..., Expr]] = {
    "add": lambda _, u, v: rewritten("add", u, v) or u + v,
    "mul": lambda _, u, v: rewritten("mul", u, v) or u * v,
    "integer_pow": lambda y, u: _int_power(u, y),
    "pow": lambda y, u: _pow(u, constant(y)),
    "maximum": _plain(partial(_larger, "maximum")),
    "minimum": _plain(partial(_larger, "minimum")),
    "select_n": lambda _, *args: apply("select_n", args),
    **{name: (lambda _, u, name=name: rewritten(name, u) or unary(name, u)) for name in (*UNARY, *SPECIAL)},
    **{name: _plain(partial(_compare, name)) for name in COMPARE},
    **{name: _plain(partial(_logic, name)) for name in LOGIC},
}

#: primitive -> (params, *formulas) -> formula
_BUILDERS: dict[str, Callable[..., Expr]] = {
    "add": _plain(Expr.__add__),
    "add_any": _plain(Expr.__add__),
    "sub": _plain(Expr.__sub__),
    "neg": _plain(Expr.__neg__),
    "mul": _plain(Expr.__mul__),
    "div": _plain(_div),
    "integer_pow": lambda params, u: _int_power(u, params["y"]),
    "square": lambda _, u: u**2,
    "pow": _plain(_pow),
    "atan2": _plain(_atan2),
    "acos": lambda _, u: -apply("asin", [u]) + math.pi / 2,
    "tan": lambda _, u: unary("sin", u) * unary("cos", u) ** -1,
    "bessel_i0e": lambda _, u: unary("bessel_i0e", unary("abs", u)),
    "exp2": lambda _, u: apply("exp", [math.log(2) * u]),
    "max": _plain(partial(_larger, "maximum")),
    "min": _plain(partial(_larger, "minimum")),
    "clamp": lambda _, low, u, high: _larger("minimum", _larger("maximum", u, low), high),
    "select_n": _plain(_select),
    "is_finite": lambda _, u: constant(True),
    "convert_element_type": _convert,
    "reduce_precision": _reduce_precision,
    **dict.fromkeys(("copy", "stop_gradient", "optimization_barrier"), _plain(lambda u: u)),
    **{name: _plain(partial(unary, name)) for name in (*UNARY, *SPECIAL) if name not in NOT_OF_JAX},
    **{name: _plain(partial(_compare, name)) for name in COMPARE},
    **{name: _plain(partial(_logic, name)) for name in LOGIC},
}
ELEMENTWISE = frozenset(_BUILDERS)
