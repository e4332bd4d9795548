"""Formulas of one real variable: small graphs of elementwise primitives, built from a jaxpr and simplified."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import jax
import numpy as np

from jaxact.lipschitz._curves import COMPARE, LOGIC, SPECIAL, UNARY

_ARITHMETIC = (
    *("add", "add_any", "sub", "mul", "neg", "div", "pow", "integer_pow", "square", "reduce_sum", "cumsum"),
    *("dot_general", "conv_general_dilated", "reduce_window_sum", "scatter-add", "scatter_add"),
)


class UnsupportedError(ValueError):
    """A primitive that is no elementwise function of one variable, or one whose derivatives are not known here."""


class _Constants:
    """An array of one constant for each entry of the variable, hashable by content."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self._bytes = values.tobytes()
        self._hash = hash(self._bytes)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Constants) and self._bytes == other._bytes


class Expr:
    """A node of a formula; equal nodes are one object, so that x - x is seen to be 0.

    Attributes:
        op: what it computes from `args`.
        args: its operands.
        param: a constant of the operation.
        affine: (a, b) if the node is a x + b with a and b floats or arrays [size]; a constant has a = 0.
        is_bool: whether it is a predicate.
    """

    __slots__ = ("__weakref__", "affine", "args", "is_bool", "key", "op", "param")

    def __init__(self, op: str, args: tuple[Expr, ...], param: Any, affine: Any, is_bool: bool):
        self.op, self.args, self.param, self.affine, self.is_bool = op, args, param, affine, is_bool
        self.key: Any = None  # a place for what is found of its structure

    @property
    def is_constant(self) -> bool:
        return self.op == "const"

    @property
    def value(self) -> Any:
        """The float, bool or array [size] of a constant."""
        return _unwrap(self.param)

    def __repr__(self) -> str:
        return f"{self.op}({', '.join(map(repr, self.args))})" if self.args else self.op


_NODES: WeakValueDictionary[Any, Expr] = WeakValueDictionary()


def variable() -> Expr:
    """The formula x."""
    return _node("var", (), None, affine=(1.0, 0.0))


def constant(value: Any) -> Expr:
    """A constant: a scalar, or an array [size] with one for each entry of the variable."""
    values = np.asarray(value)
    is_bool = values.dtype == np.bool_
    values = values if is_bool else values.astype(np.float64)
    if values.size and ((values == values.reshape(-1)[0]).all() or (not is_bool and np.isnan(values).all())):
        scalar = values.reshape(-1)[0].item()
        return _node("const", (), scalar, affine=(0.0, scalar), is_bool=is_bool, key=(scalar, is_bool))
    wrapped = _Constants(values.reshape(-1))
    return _node("const", (), wrapped, affine=(0.0, wrapped.values), is_bool=is_bool)


def apply(primitive: str, args: Sequence[Expr], params: dict[str, Any] | None = None) -> Expr:
    """Apply a jax primitive to formulas of the same variable.

    Raises:
        UnsupportedError: the primitive is not elementwise or not known here.
    """
    params = params or {}
    builder = _BUILDERS.get(primitive)
    if builder is None:
        raise UnsupportedError(f"the slope of `{primitive}` is not known")
    with np.errstate(all="ignore"):
        return builder(params, *args)


def compose(outer: Expr, inner: Expr) -> Expr:
    """outer(inner(x))."""
    done: dict[int, Expr] = {}
    for node in nodes(outer):
        if node.op == "var":
            done[id(node)] = inner
        elif node.op == "affine":
            a, b = node.affine
            done[id(node)] = _add({}, _mul({}, constant(a), inner), constant(b))
        elif node.is_constant:
            done[id(node)] = node
        else:
            done[id(node)] = _REBUILD[node.op](node.param, *(done[id(arg)] for arg in node.args))
    return done[id(outer)]


def outer(expr: Expr, inner: Expr) -> Expr | None:
    """F where expr(x) = F(inner(x)); None if x is read past `inner` too."""
    done: dict[int, Expr] = {id(inner): variable()}
    stack = [expr]
    while stack:
        node = stack[-1]
        if id(node) in done:
            stack.pop()
        elif node.is_constant:
            done[id(node)] = node
        elif not node.args:  # x itself, or a x + b
            return None
        elif missing := [arg for arg in node.args if id(arg) not in done]:
            stack += missing
        else:
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


def reindex(expr: Expr, index: Callable[[np.ndarray], np.ndarray]) -> Expr:
    """Send the constants that differ between entries through `index`, a map of arrays [size]."""
    done: dict[int, Expr] = {}
    for node in nodes(expr):
        if node.is_constant:
            done[id(node)] = constant(index(node.value)) if isinstance(node.param, _Constants) else node
        elif node.op == "affine":
            a, b = (index(c) if isinstance(c, np.ndarray) else c for c in node.affine)
            done[id(node)] = _affine(a, b)
        elif node.op == "var":
            done[id(node)] = node
        else:
            done[id(node)] = _REBUILD[node.op](node.param, *(done[id(arg)] for arg in node.args))
    return done[id(expr)]


def from_function(fn: Callable[[Any], Any]) -> Expr:
    """The formula of a function that works entry by entry, traced in float64.

    Raises:
        UnsupportedError: it uses a primitive that is not elementwise or not known here.
    """
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((), np.float64))
    (result,) = _from_jaxpr(closed.jaxpr, [constant(np.asarray(c)) for c in closed.consts], [variable()])
    return result


def evaluate(expr: Expr, x: Any) -> np.ndarray:
    """f(x) in float64 for x [size] or any shape that the constants broadcast against."""
    x = np.asarray(x, np.float64)
    done: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for node in nodes(expr):
            done[id(node)] = evaluate_node(node, x, [done[id(arg)] for arg in node.args])
    return np.broadcast_to(np.asarray(done[id(expr)], np.float64), x.shape)


# --- Building ---------------------------------------------------------------------------------------------------------


def _node(op: str, args: tuple[Expr, ...], param: Any, *, affine=None, is_bool=False, key=None) -> Expr:
    identity = (op, tuple(map(id, args)), param if key is None else key)
    found = _NODES.get(identity)
    if found is None:
        found = Expr(op, args, param, affine, is_bool)
        _NODES[identity] = found
    return found


def _wrap(values: Any) -> Any:
    return _Constants(values) if isinstance(values, np.ndarray) else float(values)


def _unwrap(param: Any) -> Any:
    return param.values if isinstance(param, _Constants) else param


def _uniform(values: Any) -> Any:
    """A float if all entries are equal."""
    if isinstance(values, np.ndarray) and values.size and (values == values[0]).all():
        return float(values[0])
    return values


def _affine(a: Any, b: Any) -> Expr:
    a, b = _uniform(a), _uniform(b)
    if isinstance(a, float) and a == 0:
        return constant(b)
    if isinstance(a, float) and isinstance(b, float) and a == 1 and b == 0:
        return variable()
    return _node("affine", (), (_wrap(a), _wrap(b)), affine=(a, b))


def _add(_: Any, u: Expr, v: Expr) -> Expr:
    if u.affine is not None and v.affine is not None:
        return _affine(u.affine[0] + v.affine[0], u.affine[1] + v.affine[1])
    if u.is_constant and not isinstance(u.param, _Constants) and u.param == 0:
        return v
    if v.is_constant and not isinstance(v.param, _Constants) and v.param == 0:
        return u
    for s, t in ((u, v), (v, u)):  # u + (-1) u, which interval arithmetic would not see to be 0
        if t.op == "mul" and t.args[0].is_constant and t.args[0].param == -1 and t.args[1] is s:
            return constant(0.0)
    return _node("add", (u, v), None)


def _neg(_: Any, u: Expr) -> Expr:
    return _mul({}, constant(-1.0), u)


def _sub(_: Any, u: Expr, v: Expr) -> Expr:
    return constant(0.0) if u is v else _add({}, u, _neg({}, v))


def _mul(_: Any, u: Expr, v: Expr) -> Expr:
    if v.is_constant:
        u, v = v, u
    if u.is_constant:
        if v.affine is not None:
            return _affine(u.value * v.affine[0], u.value * v.affine[1])
        if not isinstance(u.param, _Constants):
            if u.param == 0:
                return constant(0.0)
            if u.param == 1:
                return v
        if v.op == "mul" and v.args[0].is_constant:
            return _mul({}, constant(u.value * v.args[0].value), v.args[1])
        return _node("mul", (u, v), None)
    if u is v:
        return _power({"y": 2}, u)
    return _node("mul", (u, v), None)


def _div(_: Any, u: Expr, v: Expr) -> Expr:
    if v.is_constant:
        # a product with 1 / v, rounded once more: covered by the final widening
        return _mul({}, constant(1.0 / np.asarray(v.value)), u)
    return _as_shares(u, v) or _mul({}, u, _power({"y": -1}, v))


def _power(params: Any, u: Expr) -> Expr:
    y = params["y"]
    if y == 0:
        return constant(1.0)
    if y == 1:
        return u
    if u.is_constant:
        return constant(np.asarray(u.value, np.float64) ** y)
    if y == 2 and u.op in ("sin", "cos"):  # (1 -+ cos 2t) / 2, one wave instead of a product of two
        wave = _special("cos")({}, _mul({}, constant(2.0), u.args[0]))
        return _add({}, _mul({}, constant(-0.5 if u.op == "sin" else 0.5), wave), constant(0.5))
    return _node("integer_pow", (u,), int(y))


def _pow(_: Any, u: Expr, v: Expr) -> Expr:
    if v.is_constant and not isinstance(v.param, _Constants):
        y = float(v.param)
        if abs(y) < 2**31 and y == int(y):
            return _power({"y": int(y)}, u)
        if u.is_constant:
            return constant(np.power(u.value, y))
        if abs(y) == 0.5:
            return _unary("sqrt" if y > 0 else "rsqrt")({}, u)
        return _node("pow", (u,), y)
    if u.is_constant:
        return _unary("exp")({}, _mul({}, constant(np.log(u.value)), v))
    raise UnsupportedError("the slope of `pow` is known for one constant operand only")


def _atan2(_: Any, u: Expr, v: Expr) -> Expr:
    if v.is_constant and np.all(np.asarray(v.value) > 0):
        return _unary("atan")({}, _div({}, u, v))
    raise UnsupportedError("the slope of `atan2` is known over a positive constant only")


def _unary(name: str) -> Callable[..., Expr]:
    def build(_: Any, u: Expr) -> Expr:
        if u.is_constant:
            return constant(UNARY[name].fn(np.asarray(u.value, np.float64)))
        for rewritten in _REWRITES.get(name, ()):
            if (found := rewritten(u)) is not None:
                return found
        return _node(name, (u,), None)

    return build


# --- Formulas as people write them, in forms whose slopes intervals can bound, and which do not overflow --------------


def _as_hypot(u: Expr) -> Expr | None:
    """sqrt(k t^2 + c) = sqrt(c) hypot(1, t sqrt(k / c)): its slope is monotone, which intervals do not see."""
    if u.op != "add":
        return None
    for square, c in (u.args, u.args[::-1]):
        k = 1.0
        if square.op == "mul" and square.args[0].is_constant:
            k, square = square.args[0].param, square.args[1]
        if (
            square.op == "integer_pow"
            and square.param == 2
            and c.is_constant
            and all(isinstance(p, float) and p > 0 for p in (k, c.param))
        ):
            inner = _mul({}, constant(math.sqrt(k / c.param)), square.args[0])
            return _mul({}, constant(math.sqrt(c.param)), _unary("hypot1")({}, inner))
    return None


def _exponentials(u: Expr) -> list[tuple[float, Expr]] | None:
    """(k, t) of a sum of k exp(t), a constant being k exp(0); None if it is none."""
    if u.op == "add":
        parts = [_exponentials(arg) for arg in u.args]
        return None if None in parts else [term for part in parts for term in part or ()]
    k = 1.0
    if u.op == "mul" and u.args[0].is_constant and isinstance(u.args[0].param, float):
        k, u = u.args[0].param, u.args[1]
    if u.op == "add" and (inner := _exponentials(u)) is not None:
        return [(k * each, t) for each, t in inner]
    if u.op == "exp":
        return [(k, u.args[0])]
    return [(k * u.param, constant(0.0))] if u.is_constant and isinstance(u.param, float) else None


def _two_exponentials(u: Expr) -> tuple[tuple[float, Expr], tuple[float, Expr], Expr] | None:
    """Of k exp(s) + l exp(t), k and l positive: (k, s), (l, t), and s - t + log(k / l)."""
    terms = _exponentials(u)
    if terms is None or len(terms) != 2 or not all(0 < k < math.inf for k, _ in terms):
        return None
    (k, s), (other, t) = terms
    return terms[0], terms[1], _add({}, _sub({}, s, t), constant(math.log(k) - math.log(other)))


def _as_shares(u: Expr, v: Expr) -> Expr | None:
    """A quotient u / (k exp(s) + l exp(t)) by the shares of both in the sum, which are logistic functions of s - t."""
    found = _two_exponentials(v)
    if found is None:
        return None
    (k, s), (other, t), apart = found
    shares = _unary("logistic")({}, apart), _unary("logistic")({}, _neg({}, apart))
    parts = []
    for factor, exponent in _exponentials(u) or ():
        if exponent is not s and exponent is not t:
            break
        share, scale = (shares[0], k) if exponent is s else (shares[1], other)
        parts.append(_mul({}, constant(factor / scale), share))
    else:
        if parts:
            return functools.reduce(lambda a, b: _add({}, a, b), parts)
    if t.is_constant:  # 0
        return _mul({}, constant(1.0 / other), _mul({}, u, shares[1]))
    return _mul({}, constant(1.0 / k), _mul({}, u, shares[0])) if s.is_constant else None


def _as_softplus(u: Expr) -> Expr | None:
    """log(k exp(s) + l exp(t)) = t + log l + softplus(s - t + log(k / l))."""
    found = _two_exponentials(u)
    if found is None:
        return None
    _, (other, t), apart = found
    return _add({}, _unary("softplus")({}, apart), _add({}, t, constant(math.log(other))))


def _as_softplus_of_1_and(u: Expr) -> Expr | None:
    """log1p(k exp(t)), k > 0."""
    terms = _exponentials(u)
    if terms is None or len(terms) != 1 or not 0 < terms[0][0] < math.inf:
        return None
    return _unary("softplus")({}, _add({}, terms[0][1], constant(math.log(terms[0][0]))))


def _log_of_logistic(u: Expr) -> Expr | None:
    """The identity log logistic(t) = -softplus(-t)."""
    return _neg({}, _unary("softplus")({}, _neg({}, u.args[0]))) if u.op == "logistic" else None


def _log_of_cosh(u: Expr) -> Expr | None:
    """The identity log cosh(t) = softplus(2 t) - t - log 2."""
    if u.op != "cosh":
        return None
    (t,) = u.args
    rest = _add({}, _neg({}, t), constant(-math.log(2)))
    return _add({}, _unary("softplus")({}, _mul({}, constant(2.0), t)), rest)


def _log_of_hypot(u: Expr) -> Expr | None:
    """log(t + hypot(1, t)) = asinh(t), whose sum cancels where t is negative."""
    if u.op == "add":
        for t, root in (u.args, u.args[::-1]):
            if root.op == "hypot1" and root.args[0] is t:
                return _unary("asinh")({}, t)
    return None


def _as_gumbel(u: Expr) -> Expr | None:
    """exp(-k exp(t)), k > 0: a product of a vanishing and an infinite factor where t is large."""
    terms = _exponentials(u) if u.op == "mul" else None
    if terms is None or len(terms) != 1 or not -math.inf < terms[0][0] < 0:
        return None
    return _unary("gumbel")({}, _neg({}, _add({}, terms[0][1], constant(math.log(-terms[0][0])))))


#: primitive -> what its operand may show it to be
_REWRITES: dict[str, tuple[Callable[[Expr], Expr | None], ...]] = {
    "sqrt": (_as_hypot,),
    "log": (_as_softplus, _log_of_logistic, _log_of_cosh, _log_of_hypot),
    "log1p": (_as_softplus_of_1_and,),
    "exp": (_as_gumbel,),
}


def _special(name: str) -> Callable[..., Expr]:
    def build(_: Any, u: Expr) -> Expr:
        if u.is_constant:
            return constant(SPECIAL[name](u.value))
        return _node(name, (u,), None)

    return build


def _larger(name: str) -> Callable[..., Expr]:
    def build(_: Any, u: Expr, v: Expr) -> Expr:
        if u is v:
            return u
        if u.is_constant and v.is_constant:
            return constant(getattr(np, name)(u.value, v.value))
        if u.is_constant:
            u, v = v, u
        return _node(name, (u, v), None)

    return build


def _clamp(_: Any, low: Expr, u: Expr, high: Expr) -> Expr:
    return _larger("minimum")({}, _larger("maximum")({}, u, low), high)


def _compare(name: str) -> Callable[..., Expr]:
    def build(_: Any, u: Expr, v: Expr) -> Expr:
        if u is v:
            return constant(name in ("le", "ge", "eq"))
        if u.is_constant and v.is_constant:
            return constant(COMPARE[name](u.value, v.value))
        if u.is_bool or v.is_bool:
            raise UnsupportedError(f"`{name}` of predicates is not known")
        return _node(name, (u, v), None, is_bool=True)

    return build


def _logic(name: str) -> Callable[..., Expr]:
    def build(_: Any, *args: Expr) -> Expr:
        if not all(arg.is_bool for arg in args):
            raise UnsupportedError(f"`{name}` of integers is not known")
        if all(arg.is_constant for arg in args):
            return constant(LOGIC[name](*(np.asarray(arg.value) for arg in args)))
        return _node(name, args, None, is_bool=True)

    return build


def _select(_: Any, which: Expr, *cases: Expr) -> Expr:
    if not which.is_bool:
        raise UnsupportedError("`select_n` among more than two cases is not known")
    if all(case is cases[0] for case in cases):
        return cases[0]
    if which.is_constant and not isinstance(which.param, _Constants):
        return cases[bool(which.param)]
    if cases[0].is_bool:
        raise UnsupportedError("`select_n` among predicates is not known")
    return _node("select_n", (which, *cases), None)


def _convert(params: Any, u: Expr) -> Expr:
    dtype = np.dtype(params.get("new_dtype", np.float64))
    if dtype == np.bool_:
        return u if u.is_bool else _compare("ne")({}, u, constant(0.0))
    if u.is_bool:
        return _select({}, u, constant(0.0), constant(1.0))
    if jax.numpy.issubdtype(dtype, jax.numpy.complexfloating):
        raise UnsupportedError("the conversion of `convert_element_type` to complex numbers is not known")
    if not jax.numpy.issubdtype(dtype, jax.numpy.floating):
        raise UnsupportedError("the rounding of `convert_element_type` to integers has no slope")
    return u


def _reduce_precision(params: Any, u: Expr) -> Expr:
    if params["mantissa_bits"] < 23 or params["exponent_bits"] < 8:
        raise UnsupportedError("the rounding of `reduce_precision` has no slope")
    return u


def _same(_: Any, u: Expr) -> Expr:
    return u


def _finite(_: Any, u: Expr) -> Expr:
    return constant(True)


# --- Tracing ----------------------------------------------------------------------------------------------------------


def sub_jaxpr(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """The body of an equation that merely calls one (jit, custom_jvp, remat ...), with its constants."""
    if eqn.primitive.name in ("reduce", "reduce_window"):  # their jaxpr combines two entries
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        if inner is not None:
            return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
    return None


def _from_jaxpr(jaxpr: Any, consts: Sequence[Expr], args: Sequence[Expr]) -> list[Expr]:
    env: dict[Any, Expr] = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Expr:
        return constant(np.asarray(atom.val)) if hasattr(atom, "val") else env[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        inner = sub_jaxpr(eqn)
        if not all(operand.is_constant for operand in operands):
            refuse_integers(eqn)
        if name in _BUILDERS:
            results = [apply(name, operands, eqn.params)]
        elif name in ("broadcast_in_dim", "reshape", "squeeze", "expand_dims"):
            results = [operands[0]]
        elif inner is not None and name not in ("scan", "while", "cond"):
            results = _from_jaxpr(inner[0], [constant(np.asarray(c)) for c in inner[1]], operands)
        else:
            raise UnsupportedError(f"the slope of `{name}` is not known")
        env |= dict(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


# --- Builders ---------------------------------------------------------------------------------------------------------

_BUILDERS: dict[str, Callable[..., Expr]] = {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "neg": _neg,
    "mul": _mul,
    "div": _div,
    "integer_pow": _power,
    "square": lambda _, u: _power({"y": 2}, u),
    "pow": _pow,
    "atan2": _atan2,
    "exp2": lambda _, u: _unary("exp")({}, _mul({}, constant(math.log(2)), u)),
    "max": _larger("maximum"),
    "min": _larger("minimum"),
    "clamp": _clamp,
    "select_n": _select,
    "is_finite": _finite,
    "convert_element_type": _convert,
    "reduce_precision": _reduce_precision,
    "copy": _same,
    "stop_gradient": _same,
    "optimization_barrier": _same,
    **{name: _unary(name) for name in UNARY},
    **{name: _special(name) for name in SPECIAL},
    **{name: _compare(name) for name in COMPARE},
    **{name: _logic(name) for name in LOGIC},
}
del _BUILDERS["hypot1"], _BUILDERS["softplus"], _BUILDERS["gumbel"]  # no primitives of jax
ELEMENTWISE = frozenset(_BUILDERS)

#: op -> rebuild the node from its parameter and new operands
_REBUILD: dict[str, Callable[..., Expr]] = {
    "add": _add,
    "mul": _mul,
    "integer_pow": lambda y, u: _power({"y": y}, u),
    "pow": lambda y, u: _pow({}, u, constant(y)),
    "maximum": _larger("maximum"),
    "minimum": _larger("minimum"),
    "select_n": _select,
    **{name: _unary(name) for name in UNARY},
    **{name: _special(name) for name in SPECIAL},
    **{name: _compare(name) for name in COMPARE},
    **{name: _logic(name) for name in LOGIC},
}


def nodes(expr: Expr) -> list[Expr]:
    """All nodes of a formula, operands before results, each once."""
    order: list[Expr] = []
    seen: set[int] = set()
    stack: list[tuple[Expr, bool]] = [(expr, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((arg, False) for arg in node.args)
    return order


def num_entries(expr: Expr) -> int | None:
    """The number of entries if constants differ between them."""
    for node in nodes(expr):
        for each in node.param if isinstance(node.param, tuple) else (node.param,):
            if isinstance(each, _Constants):
                return each.values.size
    return None


def is_finite(expr: Expr) -> bool:
    """Whether its constants are: no NaN but as a case of a `where`, and no inf in sums, products and powers."""
    for node in nodes(expr):
        if node.op == "affine" and not (
            np.isfinite(node.affine[0]).all() and not np.isnan(node.affine[1]).any()
        ):
            return False
        if node.op == "pow" and not math.isfinite(node.param):
            return False
        for arg in node.args:
            if not arg.is_constant or arg.is_bool or node.op == "select_n":
                continue
            values = np.asarray(arg.value)
            if np.isnan(values).any() or (node.op in ("add", "mul") and not np.isfinite(values).all()):
                return False
    return True


def evaluate_node(node: Expr, x: np.ndarray, args: list[Any]) -> Any:
    if node.op == "var":
        return x
    if node.op == "affine":
        return node.affine[0] * x + node.affine[1]
    if node.op == "const":
        return node.value
    if node.op in UNARY:
        return UNARY[node.op].fn(np.asarray(args[0]))
    if node.op in SPECIAL:
        return SPECIAL[node.op](args[0])
    if node.op in COMPARE:
        return COMPARE[node.op](*args)
    if node.op in LOGIC:
        return LOGIC[node.op](*args)
    if node.op == "integer_pow":
        return np.asarray(args[0], np.float64) ** node.param
    if node.op == "pow":
        return np.power(args[0], node.param)
    if node.op == "select_n":
        return np.where(args[0], args[2], args[1])
    return {"add": np.add, "mul": np.multiply, "maximum": np.maximum, "minimum": np.minimum}[node.op](*args)
