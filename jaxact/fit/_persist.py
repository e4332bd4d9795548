"""Which entries that are infinite or NaN stay so to the end, seen from the program of an optimiser's step.

A sum, a product or a square root of what is not finite is not finite either; a choice, a maximum or a denominator may
make it finite again. What provably stays need not be looked for at every step: it is still there at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jaxtyping import PyTree

#: what is not finite where an operand is not: inf 0 is NaN, and so is inf - inf
_KEEPING = frozenset(
    {"abs", "add", "add_any", "mul", "neg", "sqrt", "square", "sub", "convert_element_type", "copy"}
    | {"broadcast_in_dim", "concatenate", "expand_dims", "reshape", "rev", "squeeze", "transpose"}
    | {"cumsum", "dot_general", "reduce_sum"}
)


class Watched(NamedTuple):
    """What has to be looked at in every step, by the number of its leaf.

    Attributes:
        gradients: of the gradient.
        results: of params and of the optimiser's state, one after the other.
    """

    gradients: frozenset[int]
    results: frozenset[int]


def watched(step: Any, gradient: PyTree, *before: PyTree) -> Watched:
    """Of a step (gradient, params, opt_state) -> (params, opt_state), the leaves that may hide what is not finite.

    A result need not be watched if it is not finite whenever it was not before; a gradient, if such a result is not
    finite whenever it is not. A result that is not finite at the start of a run shows nothing of its gradient.
    """
    closed = jax.make_jaxpr(step)(gradient, *before)
    jaxpr, num_gradients = closed.jaxpr, len(jax.tree.leaves(gradient))
    inputs, results = jaxpr.invars, range(len(jaxpr.outvars))
    seen = _seen(jaxpr, inputs)
    staying = {k for k in results if num_gradients + k in seen[k]}
    reached = set().union(*(seen[k] for k in staying)) if staying else set()
    floats = {k for k in results if _is_inexact(jaxpr.outvars[k])}
    numbers = {k for k in range(num_gradients) if _is_inexact(inputs[k])}
    return Watched(frozenset(numbers - reached), frozenset(floats - staying))


def _seen(jaxpr: Any, inputs: Iterable[Any]) -> list[set[int]]:
    """For each result the inputs that make it not finite wherever they are not."""
    known: dict[Any, set[int]] = {var: {k} for k, var in enumerate(inputs)}

    def of(atom: Any) -> set[int]:
        return set() if isinstance(atom, Literal) else known.get(atom, set())

    for eqn in jaxpr.eqns:
        name, operands = eqn.primitive.name, [of(atom) for atom in eqn.invars]
        inner = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
        if name in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call") and inner is not None:
            body = getattr(inner, "jaxpr", inner)
            for var, sources in zip(eqn.outvars, _seen(body, body.invars), strict=True):
                known[var] = set().union(*(operands[k] for k in sources))
        elif not _is_inexact(eqn.outvars[0]) or eqn.outvars[0].aval.size == 0:
            continue  # what has no entries shows nothing
        elif name in _KEEPING:
            known[eqn.outvars[0]] = set().union(*operands)
        elif name == "div" or (name == "integer_pow" and eqn.params["y"] > 0):
            known[eqn.outvars[0]] = operands[0]  # infinity in a denominator is gone
    return [of(atom) for atom in jaxpr.outvars]


def _is_inexact(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.inexact)
