"""Certificates that go on improving until their time is up."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from jaxact.errors import ArgumentError
from jaxact.lipschitz._mixed import Order
from jaxact.lipschitz._phases import split_by_phases
from jaxact.lipschitz._program import Certificate, Region
from jaxact.lipschitz._split import EXACT, MOST_INPUTS, split
from jaxact.trace import Program


def check_time(max_seconds: Any, region: Region | None) -> None:
    """Refuse a time that is none, or one without a region to cut.

    Raises:
        ValueError: `max_seconds` is not positive, or there is no region.
    """
    if max_seconds is None:
        return
    if not (isinstance(max_seconds, int | float) and max_seconds > 0):
        raise ArgumentError(
            f"must be a positive number of seconds, got {max_seconds!r}.",
            "Leave it out to bound the region as a whole.",
            argument="max_seconds",
        )
    if region is None:
        raise ArgumentError(
            f"cuts a region into parts, and there is none, got max_seconds={max_seconds!r}.",
            "Pass region=Box(lower, upper) or Ball(center, radius).",
            argument="max_seconds",
            give="region",
        )


def cut(
    program: Program,
    region: Region | None,
    found: Certificate,
    seconds: float,
    tolerance: float | None,
    p: Order = 2,
    q: Order = 2,
) -> Certificate:
    """A certificate, improved by cutting the region: into boxes of up to 8 inputs, along neurons of more.

    Args:
        program: what it is of.
        region: where it holds.
        found: what is known already.
        seconds: stop after so long.
        tolerance: stop where what is proved is within this of what is seen, relatively.
        p: norm of inputs.
        q: norm of outputs.
    """
    if region is None:
        return found
    by = split if program.input_size <= MOST_INPUTS else split_by_phases
    gap = EXACT if tolerance is None else max(tolerance, EXACT)
    try:
        made = by(program, region, seconds=seconds, gap=gap, p=p, q=q, start=float(found.value))
    except ArgumentError:  # too large to be enclosed entry by entry
        return found
    seen = replace(found, attained=made.lower, is_exact=made.is_exact, parts=made.parts)
    if made.upper >= float(found.value):
        return replace(seen, parts=found.parts)
    return replace(
        seen,
        value=made.upper,
        log=math.log(made.upper) if made.upper > 0 else -math.inf,
        method="split",
        certified=True,
        factors=(),
        by_norms_beyond=None,
        is_global=False,
        assumptions=(),
    )
