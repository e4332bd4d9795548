"""From the linear maps and formulas that a walk has left to the steps of a program."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxact.errors import ArgumentError
from jaxact.lipschitz import _formula, _slopes
from jaxact.lipschitz._formula import Expr
from jaxact.lipschitz._lazy import (
    Lin,
    affine_step,
    below,
    contraction_step,
    elementwise_step,
    needed_for,
    product_steps,
    softmax_step,
    used,
)
from jaxact.lipschitz._operators import Identity
from jaxact.lipschitz._program import Affine, Contraction, Elementwise, Program, Step
from jaxact.lipschitz._source import Place, place

PRODUCTS = ("dot_general", "conv_general_dilated")

Origins = Mapping[Lin, tuple[Any, Place | None]]


def emitted(
    source: Lin, result: Lin, lins: Sequence[Lin], places: Mapping[int, Place], made_at: Origins
) -> tuple[Program, ArgumentError | None]:
    """Write a result out as a program, and say why it is bounded within a region only, if so.

    Args:
        source: the input.
        result: the output.
        lins: all maps of the walk, each after those that it is made of.
        places: by the id of a formula, where it was first written.
        made_at: the equation that a map comes from, and the call around it.

    Returns:
        The program, and the refusal where there is no bound over all inputs, else None.

    Raises:
        ValueError: a weight or constant is not finite.
    """
    result.cut()
    needed = needed_for(result)
    numbers: dict[Lin, int] = {source: 0}
    steps: list[Step] = []
    fresh = itertools.count(1)
    restricted: ArgumentError | None = None
    lin_of: dict[int, Lin] = {}
    for lin in lins:
        if lin not in needed or lin is source:
            continue
        made: list[Step] = []
        if lin.kind == "op":
            out = next(fresh)
            made.append(affine_step(lin, out, numbers))
        elif lin.kind == "product":
            made, out = product_steps(lin, fresh, numbers)
            restricted = restricted or lin.where
        elif lin.kind == "contraction":
            out = next(fresh)
            made.append(contraction_step(lin, out, numbers))
        elif lin.kind in ("weights", "softmax"):
            out = next(fresh)
            made.append(softmax_step(lin, out, numbers))
        else:
            out = next(fresh)
            made.append(elementwise_step(lin, out, numbers))
            if restricted is None:
                restricted = _unbounded(lin.data, places)
        numbers[lin] = out
        lin_of |= {step.out: lin for step in made}
        steps += made
    if result is source:
        steps.append(Affine(1, ((0, Identity(source.size)),), source.size))
        numbers[result] = 1
    kept = used(steps, numbers[result])
    program = Program(
        source.size,
        tuple(_named(step, lin_of.get(step.out), made_at) for step in kept),
        numbers[result],
    )
    for index, step in enumerate(program.steps):
        made_of = lin_of.get(step.out)
        _check_finite(
            program,
            index,
            made_of.data if made_of is not None and made_of.kind == "elementwise" else None,
        )
    return program, restricted


def _named(step: Step, lin: Lin | None, made_at: Origins) -> Step:
    """With what it does and where the user wrote it."""
    where = _made_where(lin, made_at)
    name = "affine"
    if isinstance(step, Elementwise):
        assert lin is not None
        name = {"weights": "logsumexp", "softmax": "softmax", "product": "product"}.get(
            lin.kind, where.name if where is not None else "elementwise"
        )
    if isinstance(step, Contraction):
        assert lin is not None
        name = lin.data.name
    return replace(step, kind=name, place="" if where is None else where.short)


def _made_where(lin: Lin | None, made_at: Origins) -> Place | None:
    """Where a map was written: of what it is composed of, its last product with weights."""
    if lin is None:
        return None
    parts = [part for part in reversed(below(lin)) if part is lin or not part.is_leaf]
    found = [made_at[part] for part in parts if part in made_at]
    if not found:
        return None
    eqn, around = next(
        (each for each in found if each[0] is not None and each[0].primitive.name in PRODUCTS), found[0]
    )
    return around if eqn is None else place(eqn, around)


def _unbounded(expr: Expr, places: Mapping[int, Place]) -> ArgumentError | None:
    """Why a formula has no finite slope over the whole line, or None."""
    found = _slopes.slope_range(expr)
    if np.isfinite(found.lower).all() and np.isfinite(found.upper).all():
        return None
    for node in _formula.nodes(expr):
        where = places.get(id(node))
        if where is None or node.is_bool or node.is_constant:
            continue
        part = _slopes.slope_range(node)
        if not (np.isfinite(part.lower).all() and np.isfinite(part.upper).all()):
            return refusal("no slope bound over all inputs was found", *where[:2])
    where = places.get(id(expr), Place("?", "?", ""))
    return refusal("no slope bound over all inputs was found", *where[:2])


def _check_finite(program: Program, index: int, formula: Expr | None) -> None:
    """Refuse NaN, and infinities but for those that a mask adds on the way or a maximum starts from."""
    step = program.steps[index]
    if isinstance(step, Affine):
        offset = np.zeros(0) if step.offset is None else step.offset
        bad = not np.isfinite(offset).all() if step.out == program.output else np.isnan(offset).any()
    else:
        bad = formula is not None and not _formula.is_finite(formula)
    if bad:
        raise ArgumentError(
            "cannot be certified: it must have finite weights and constants, got NaN or inf in "
            f"{program.record(index)}.",
            "A diverged network has no Lipschitz bound: load finite weights.",
            argument="fn",
        )


def refusal(reason: str, primitive: str, line: str) -> ArgumentError:
    return ArgumentError(
        f"cannot be bounded over all inputs: {reason} (`{primitive}` at {line}).",
        "Pass region=Ball(center, radius) or Box(lower, upper) to bound it there.",
        argument="fn",
        give="region",
    )
