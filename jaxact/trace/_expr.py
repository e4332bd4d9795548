"""Formulas of one real variable as graphs: nodes that are one object where they are equal, and their values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from jaxact.trace._curves import COMPARE, LOGIC, SPECIAL, UNARY


class UnsupportedError(ValueError):
    """A primitive that is no elementwise function of one variable, or one whose derivatives are not known here."""


class Constants:
    """An array of one constant for each entry of the variable, hashable by content."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self._bytes = values.tobytes()
        self._hash = hash(self._bytes)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constants) and self._bytes == other._bytes


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

    def __add__(self, other: Expr | float) -> Expr:
        return _add(self, _formula(other))

    def __sub__(self, other: Expr | float) -> Expr:
        other = _formula(other)
        return constant(0.0) if self is other else _add(self, -other)

    def __neg__(self) -> Expr:
        return _mul(constant(-1.0), self)

    def __mul__(self, other: Expr | float) -> Expr:
        return _mul(self, _formula(other))

    __radd__, __rmul__ = __add__, __mul__

    def __pow__(self, n: int) -> Expr:
        return _power(self, n)


#: op -> its value
VALUES: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "mul": np.multiply,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "select_n": lambda which, no, yes: np.where(which, yes, no),
    **{name: curve.fn for name, curve in UNARY.items()},
    **SPECIAL,
    **COMPARE,
    **LOGIC,
}
_NODES: WeakValueDictionary[Any, Expr] = WeakValueDictionary()


def variable() -> Expr:
    """The formula x."""
    return made("var", (), None, affine=(1.0, 0.0))


def constant(value: Any) -> Expr:
    """A constant: a scalar, or an array [size] with one for each entry of the variable."""
    values = np.asarray(value)
    is_bool = values.dtype == np.bool_
    values = values if is_bool else values.astype(np.float64)
    if values.size and ((values == values.reshape(-1)[0]).all() or (not is_bool and np.isnan(values).all())):
        scalar = values.reshape(-1)[0].item()
        return made("const", (), scalar, affine=(0.0, scalar), is_bool=is_bool, key=(scalar, is_bool))
    wrapped = Constants(values.reshape(-1))
    return made("const", (), wrapped, affine=(0.0, wrapped.values), is_bool=is_bool)


def made(op: str, args: tuple[Expr, ...], param: Any, *, affine=None, is_bool=False, key=None) -> Expr:
    """The node of this operation, the same object for the same operands."""
    identity = (op, tuple(map(id, args)), param if key is None else key)
    found = _NODES.get(identity)
    if found is None:
        found = Expr(op, args, param, affine, is_bool)
        _NODES[identity] = found
    return found


def _wrap(values: Any) -> Any:
    return Constants(values) if isinstance(values, np.ndarray) else float(values)


def _unwrap(param: Any) -> Any:
    return param.values if isinstance(param, Constants) else param


def _uniform(values: Any) -> Any:
    """A float if all entries are equal."""
    if isinstance(values, np.ndarray) and values.size and (values == values[0]).all():
        return float(values[0])
    return values


def line(a: Any, b: Any) -> Expr:
    """The formula a x + b, each a float or an array [size]."""
    a, b = _uniform(a), _uniform(b)
    if isinstance(a, float) and a == 0:
        return constant(b)
    if isinstance(a, float) and isinstance(b, float) and a == 1 and b == 0:
        return variable()
    return made("affine", (), (_wrap(a), _wrap(b)), affine=(a, b))


def nodes(expr: Expr) -> list[Expr]:
    """All nodes of a formula, operands before results, each once.

    Args:
        expr: the formula.
    """
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
            if isinstance(each, Constants):
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
    """The value of a node at x, from those of its operands.

    Args:
        node: of a formula.
        x: where.
        args: the operands' values.
    """
    match node.op:
        case "var":
            return x
        case "affine":
            return node.affine[0] * x + node.affine[1]
        case "const":
            return node.value
        case "integer_pow":
            return np.asarray(args[0], np.float64) ** node.param
        case "pow":
            return np.power(args[0], node.param)
    return VALUES[node.op](*args)


def evaluate(expr: Expr, x: Any) -> np.ndarray:
    """f(x) in float64 for x [size] or any shape that the constants broadcast against."""
    x = np.asarray(x, np.float64)
    done: dict[int, Any] = {}
    with np.errstate(all="ignore"):
        for node in nodes(expr):
            done[id(node)] = evaluate_node(node, x, [done[id(arg)] for arg in node.args])
    return np.broadcast_to(np.asarray(done[id(expr)], np.float64), x.shape)


# --- Arithmetic, simplified: equal terms cancel, constants and affine formulas are one node ---------------------------


def _formula(value: Expr | float) -> Expr:
    return value if isinstance(value, Expr) else constant(value)


def _is(u: Expr, number: float) -> bool:
    """Whether it is this constant for all entries."""
    return u.is_constant and not isinstance(u.param, Constants) and u.param == number


def _add(u: Expr, v: Expr) -> Expr:
    if u.affine is not None and v.affine is not None:
        return line(u.affine[0] + v.affine[0], u.affine[1] + v.affine[1])
    if _is(u, 0):
        return v
    if _is(v, 0):
        return u
    if u is v:
        return 2.0 * u
    for s, t in ((u, v), (v, u)):  # u + (-1) u, which interval arithmetic would not see to be 0
        if t.op == "mul" and _is(t.args[0], -1) and t.args[1] is s:
            return constant(0.0)
    return made("add", (u, v), None)


def _mul(u: Expr, v: Expr) -> Expr:
    if v.is_constant:
        u, v = v, u
    if not u.is_constant:
        return _power(u, 2) if u is v else made("mul", (u, v), None)
    if v.affine is not None:
        return line(u.value * v.affine[0], u.value * v.affine[1])
    if _is(u, 0):
        return constant(0.0)
    if _is(u, 1):
        return v
    if v.op == "mul" and v.args[0].is_constant:
        return _mul(constant(u.value * v.args[0].value), v.args[1])
    return made("mul", (u, v), None)


def _power(u: Expr, n: int) -> Expr:
    if n == 0:
        return constant(1.0)
    if n == 1:
        return u
    if u.is_constant:
        return constant(np.asarray(u.value, np.float64) ** n)
    if u.op == "abs" and n % 2 == 0:
        return _power(u.args[0], n)
    if n == 2 and u.op in ("sin", "cos"):  # (1 -+ cos 2t) / 2, one wave instead of a product of two
        return (-0.5 if u.op == "sin" else 0.5) * unary("cos", 2 * u.args[0]) + 0.5
    return made("integer_pow", (u,), int(n))


def unary(name: str, u: Expr) -> Expr:
    """A function of the tables `UNARY` and `SPECIAL` of a formula."""
    return constant(VALUES[name](np.asarray(u.value))) if u.is_constant else made(name, (u,), None)
