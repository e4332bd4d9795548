"""From the graph that a walk has left to the steps of a program."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from jaxact.errors import ArgumentError
from jaxact.trace._compose import affine_step, below, needed_for, used
from jaxact.trace._expr import Expr, is_finite, nodes
from jaxact.trace._graph import Graph, refusal
from jaxact.trace._leaps import Formula, Known, Product, Softmax, Weights
from jaxact.trace._nodes import Node
from jaxact.trace._operators import Identity
from jaxact.trace._program import Affine, Program, Step
from jaxact.trace._rules import PRODUCTS
from jaxact.trace._slopes import slope_range
from jaxact.trace._source import Place, place

Origins = Mapping[Node, tuple[Any, Place | None]]
_NAMES = {Weights: "logsumexp", Softmax: "softmax", Product: "product"}


def emitted(graph: Graph, source: Node, result: Node) -> tuple[Program, ArgumentError | None]:
    """Write a result out as a program, and say why it is bounded within a region only, if so.

    Args:
        graph: what the walk has made.
        source: the input.
        result: the output.

    Returns:
        The program, and the refusal where there is no bound over all inputs, else None.

    Raises:
        ValueError: a weight or constant is not finite.
    """
    result.cut()
    needed = needed_for(result)
    numbers: dict[Node, int] = {source: 0}
    steps: list[Step] = []
    fresh = itertools.count(1)
    restricted: ArgumentError | None = None
    node_of: dict[int, Node] = {}
    for node in graph.nodes:
        if node not in needed or node is source:
            continue
        made = [affine_step(node, next(fresh), numbers)] if node.is_affine else node.steps(fresh, numbers)
        numbers[node] = made[-1].out
        restricted = restricted or _why_restricted(node, graph)
        node_of |= {step.out: node for step in made}
        steps += made
    if result is source:
        steps.append(Affine(1, ((0, Identity(source.size)),), source.size))
        numbers[result] = 1
    kept = used(steps, numbers[result])
    named = tuple(_named(step, node_of.get(step.out), graph.made_at) for step in kept)
    program = Program(source.size, named, numbers[result])
    for index, step in enumerate(program.steps):
        _check_finite(program, index, node_of.get(step.out))
    return program, restricted


def _named(step: Step, node: Node | None, made_at: Origins) -> Step:
    """With what it does and where the user wrote it."""
    where = _made_where(node, made_at)
    match node:
        case Known():
            kind = node.known.name
        case Formula():
            kind = where.name if where is not None else "elementwise"
        case _:
            kind = "affine" if isinstance(step, Affine) else _NAMES[type(node)]
    return replace(step, kind=kind, place="" if where is None else where.short)


def _made_where(node: Node | None, made_at: Origins) -> Place | None:
    """Where a map was written: of what it is composed of, its last product with weights."""
    if node is None:
        return None
    parts = [part for part in reversed(below(node)) if part is node or not part.is_leaf]
    found = [made_at[part] for part in parts if part in made_at]
    if not found:
        return None
    eqn, around = next(
        (each for each in found if each[0] is not None and each[0].primitive.name in PRODUCTS), found[0]
    )
    return around if eqn is None else place(eqn, around)


def _why_restricted(node: Node, graph: Graph) -> ArgumentError | None:
    if isinstance(node, Product):
        return node.where
    if isinstance(node, Known) and not np.isfinite(node.known.constant):
        where = _made_where(node, graph.made_at) or Place("?", "?", "")
        return refusal("the slope of a function of a length is unbounded over all inputs", *where[:2])
    return _unbounded(node.expr, graph.places) if isinstance(node, Formula) else None


def _unbounded(expr: Expr, places: Mapping[int, Place]) -> ArgumentError | None:
    """Why a formula has no finite slope over the whole line, or None."""
    found = slope_range(expr)
    if np.isfinite(found.lower).all() and np.isfinite(found.upper).all():
        return None
    for node in nodes(expr):
        where = places.get(id(node))
        if where is None or node.is_bool or node.is_constant:
            continue
        part = slope_range(node)
        if not (np.isfinite(part.lower).all() and np.isfinite(part.upper).all()):
            return refusal("no slope bound over all inputs was found", *where[:2])
    where = places.get(id(expr), Place("?", "?", ""))
    return refusal("no slope bound over all inputs was found", *where[:2])


def _check_finite(program: Program, index: int, node: Node | None) -> None:
    """Refuse NaN, and infinities but for those that a mask adds on the way or a maximum starts from."""
    step = program.steps[index]
    if isinstance(step, Affine):
        offset = np.zeros(0) if step.offset is None else step.offset
        bad = not np.isfinite(offset).all() if step.out == program.output else np.isnan(offset).any()
    else:
        bad = isinstance(node, Formula) and not is_finite(node.expr)
    if bad:
        raise ArgumentError(
            "cannot be certified: it must have finite weights and constants, got NaN or inf in "
            f"{program.record(index)}.",
            "A diverged network has no Lipschitz bound: load finite weights.",
            argument="fn",
        )
