"""Which arrays have no negative entries, as far as what they are made of shows."""

from __future__ import annotations

import numpy as np

from jaxact.trace._expr import Expr
from jaxact.trace._leaps import Formula
from jaxact.trace._nodes import Gathered, Node, Scaled, Sum, Total, Value

_FARTHEST = 16  # maps back through which it is looked
_POSITIVE = frozenset(("abs", "cosh", "exp", "logistic", "sech", "softplus", "sqrt"))


def is_nonnegative(value: Value) -> bool:
    """Whether a value has no negative entries whatever the input is, as far as is seen."""
    return _is_formula_nonnegative(value.expr, value.node, _FARTHEST)


def _is_nonnegative(node: Node, left: int) -> bool:
    if isinstance(node, Formula):
        return _is_formula_nonnegative(node.expr, node.parents[0], left - 1)
    if left == 0 or not isinstance(node, Scaled | Gathered | Total | Sum):
        return False
    if isinstance(node, Scaled):
        own = bool(np.all(np.asarray(node.scale) >= 0) and np.all(np.asarray(node.shift) >= 0))
    elif isinstance(node, Gathered):
        own = node.constants is None or bool((node.constants >= 0).all())
    else:
        own = isinstance(node, Total) or node.sign == 1
    return own and all(_is_nonnegative(parent, left - 1) for parent in node.parents)


def _is_formula_nonnegative(expr: Expr, node: Node, left: int) -> bool:
    if expr.affine is not None:
        a, b = (np.asarray(each) for each in expr.affine)
        rises = bool((b >= 0).all() and (a >= 0).all())
        return rises and (not a.any() or _is_nonnegative(node, left))
    if expr.op == "integer_pow" and expr.param % 2 == 0:
        return True
    if expr.op in ("add", "integer_pow", "minimum", "mul", "sign"):
        return all(_is_formula_nonnegative(arg, node, left) for arg in expr.args)
    return expr.op in _POSITIVE or (
        expr.op == "maximum" and any(_is_formula_nonnegative(arg, node, left) for arg in expr.args)
    )
