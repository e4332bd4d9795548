"""Loops and branches whose turns do not depend on the input, unrolled, and linear systems by their solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxact.trace._expr import UnsupportedError
from jaxact.trace._graph import Deferred, Failed, Graph, forced, is_constant, unknown
from jaxact.trace._nodes import positions

#: (jaxpr, constants, operands) -> outputs
Walk = Callable[[Any, Sequence[Any], Sequence[Any]], list[Any]]


def scan(graph: Graph, walk: Walk, eqn: Any, operands: list[Any]) -> Sequence[Any]:
    params = eqn.params
    body = params["jaxpr"]
    if "num_consts" in params:
        num_consts, num_carry = params["num_consts"], params["num_carry"]
    else:  # from jax 0.11 on
        num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
    consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
    stacked = operands[num_consts + num_carry :]
    order, collected = range(params["length"]), []
    for i in reversed(order) if params["reverse"] else order:
        rows = [_row(graph, each, i) for each in stacked]
        results = walk(body.jaxpr, body.consts, [*consts, *carry, *rows])
        carry = results[:num_carry]
        collected.append(results[num_carry:])
    if params["reverse"]:
        collected.reverse()
    avals = [atom.aval for atom in eqn.outvars[num_carry:]]
    line = graph.here.line

    def stacked_outputs(k: int, aval: Any) -> Callable[[], Any]:
        return lambda: _stacked(graph, [row[k] for row in collected], aval, line)

    return [*carry, *(Deferred(stacked_outputs(k, aval)) for k, aval in enumerate(avals))]


def _row(graph: Graph, stacked: Any, i: int) -> Any:
    stacked = forced(stacked)
    if isinstance(stacked, Failed):
        return stacked
    if is_constant(stacked):
        return stacked[i]
    try:
        return graph.entries(stacked, positions(stacked)[i])
    except UnsupportedError as error:
        return Failed(unknown(str(error), "scan", graph.here.line))


def _stacked(graph: Graph, rows: list[Any], aval: Any, line: str) -> Any:
    rows = [forced(row) for row in rows]
    failed = next((row for row in rows if isinstance(row, Failed)), None)
    if failed is not None:
        return failed
    shape = tuple(aval.shape)
    if all(map(is_constant, rows)):
        return np.stack([np.asarray(row) for row in rows]) if rows else np.zeros(shape, aval.dtype)
    try:
        return graph.chained(rows, shape)
    except UnsupportedError as error:
        return Failed(unknown(str(error), "scan", line))


def repeat(graph: Graph, walk: Walk, eqn: Any, operands: list[Any]) -> Sequence[Any]:
    params = eqn.params
    cut = params["cond_nconsts"]
    stop = cut + params["body_nconsts"]
    cond_consts, body_consts, carry = operands[:cut], operands[cut:stop], operands[stop:]
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    while True:
        go_on = forced(walk(cond.jaxpr, cond.consts, [*cond_consts, *carry])[0])
        if isinstance(go_on, Failed):
            return [go_on] * len(carry)
        if not is_constant(go_on):
            return [graph.failed("the number of turns of a loop depends on the input")] * len(carry)
        if not np.asarray(go_on):
            return carry
        carry = walk(body.jaxpr, body.consts, [*body_consts, *carry])


def branch(graph: Graph, walk: Walk, eqn: Any, operands: list[Any]) -> Sequence[Any]:
    which, *args = operands
    which = forced(which)
    if isinstance(which, Failed):
        return [which] * len(eqn.outvars)
    if not is_constant(which):
        reason = "which branch runs depends on the input: write it as jnp.where"
        return [graph.failed(reason)] * len(eqn.outvars)
    branches = eqn.params["branches"]
    chosen = branches[int(np.clip(int(which), 0, len(branches) - 1))]
    return walk(chosen.jaxpr, chosen.consts, args)


def solve(graph: Graph, walk: Walk, eqn: Any, operands: list[Any]) -> Sequence[Any]:
    """The steps that solve a linear system, of a constant matrix."""
    lengths = eqn.params["const_lengths"]
    start = lengths.matvec + lengths.vecmat
    known = [forced(each) for each in operands[start : start + lengths.solve]]
    right = operands[start + lengths.solve + lengths.transpose_solve :]
    body = eqn.params["jaxprs"].solve
    return walk(body.jaxpr, body.consts, [*known, *right])


#: primitive -> (graph, walk, equation, operands) -> results
LOOPS = {"scan": scan, "while": repeat, "cond": branch, "custom_linear_solve": solve}
