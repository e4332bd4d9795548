"""How far a function as it runs, in float32 say, may be from itself in exact arithmetic, for all inputs of a box.

A running error analysis of its jaxpr (Higham 2002, section 3.3): every variable carries the interval of its exact
values over the box and a bound on |executed - exact|. A sum of n products in any order, fused or not, adds
gamma_{n+2} sum |x||y| for the unit roundoff u of its dtype; elementary functions are taken to be right to 16 u;
constants may have been rounded once; a branch that rounding could turn counts by how far its sides are apart there.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.lipschitz._execution_rules import RULES, Numbers, Run, UncoveredError, constant, selected

ASSUMPTIONS = (
    "sums and products of the model run in full precision of its dtype (jax.default_matmul_precision('highest') on "
    "accelerators), elementary functions to 16 units in the last place",
)
_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
)


def execution_error(closed: Any, lower: Any, upper: Any) -> Numbers:
    """Bound |a function as it runs - in exact arithmetic| over a box, for each entry of its one output.

    Args:
        closed: its jaxpr, of one array, traced in the dtype that it runs in.
        lower: [*input] ends of the box.
        upper: likewise.

    Raises:
        UncoveredError: a primitive is not known, a value may overflow, or a branch may turn.
    """
    lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    with jax.enable_x64(True), np.errstate(all="ignore"):
        try:
            outputs = _interpreted(
                closed.jaxpr, closed.consts, [Run(lower, upper, np.zeros(lower.shape), object())]
            )
        except (TypeError, ValueError) as error:  # a form of a primitive that its rule does not fit
            raise UncoveredError(str(error)) from error
    return outputs[0].error


def _interpreted(jaxpr: Any, consts: Any, inputs: list[Run]) -> list[Run]:
    known: dict[Any, Run] = {}

    def read(atom: Any) -> Run:
        return constant(atom.val) if hasattr(atom, "val") else known[atom]

    known.update(zip(jaxpr.constvars, map(constant, consts), strict=True))
    known.update(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        runs = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        inner = _inner(eqn)
        if inner is not None:
            results = _interpreted(*inner, runs)
        elif name == "select_n" and len(runs) == 3:
            results = [selected(runs)]
        elif name in ("ne", "eq") and runs[0].token is runs[1].token:  # a test for NaN
            truth = np.full(runs[0].low.shape, float(name == "eq"))
            results = [Run(truth, truth, np.zeros_like(truth))]
        elif name == "iota":
            results = [constant(eqn.primitive.bind(**eqn.params))]
        elif name in RULES:
            results = [RULES[name](eqn, *runs)]
        else:
            raise UncoveredError(f"`{name}`")
        for var, result in zip(eqn.outvars, results, strict=True):
            known[var] = _checked(eqn, var, result)._replace(**_related(eqn, runs))
    return [read(atom) for atom in jaxpr.outvars]


def _inner(eqn: Any) -> tuple[Any, Any] | None:
    if eqn.primitive.name not in _CALLS:
        return None
    found = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in eqn.params)
    return (found.jaxpr, found.consts) if hasattr(found, "consts") else (found, ())


def _related(eqn: Any, runs: list[Run]) -> dict[str, Any]:
    """Whether a result is a multiple of a variable or its comparison with a number, for leaky rectifiers."""
    if len(runs) == 2:
        for run, other in (runs, runs[::-1]):
            number = other.low.flat[0] if other.low.size else math.nan
            if (other.low == number).all() and (other.high == number).all():
                if eqn.primitive.name == "mul":
                    return {"multiple": (run.token, float(number))}
                if eqn.primitive.name in ("gt", "ge", "lt", "le"):
                    return {"against": (run.token, float(number))}
    return {}


def _checked(eqn: Any, var: Any, run: Run) -> Run:
    shape, dtype = var.aval.shape, var.aval.dtype
    low, high, error = (np.broadcast_to(np.asarray(part, np.float64), shape) for part in run[:3])
    if jnp.issubdtype(dtype, jnp.floating):
        most = np.maximum(np.abs(low), np.abs(high)) + error
        # An infinity that a mask or a maximum starts from is one in both.
        if not (most[np.isfinite(low) | np.isfinite(high)] <= 0.5 * float(jnp.finfo(dtype).max)).all():
            raise UncoveredError(f"an overflow in `{eqn.primitive.name}`")
        error = np.where(np.isinf(low) & (low == high), 0.0, error)
    return Run(low, high, error, run.token or object(), run.multiple, run.against)
