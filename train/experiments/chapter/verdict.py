"""Verdicts: the numbers that a claim names, each held against what was measured and how well the runs know it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

from train import words

HOLDS, CORRECTED, FAILS, UNDECIDED = "holds", "holds with a correction", "does not hold", "undecided"
MIN_DRAWS = 5
SEEDS = tuple(range(3000, 3008))  # settings and tolerances were chosen on others, below 3000
_LEVEL = 0.95  # of the intervals


class Number(NamedTuple):
    """One number of a claim, declared before the run.

    Attributes:
        says: what it is.
        chapter: what the chapter, as it is usually stated, predicts.
        exact: what exact theory says; None where it says nothing.
        relation: what the chapter says about it: that it is "equal" to the prediction, "at_most" or "at_least" that.
        tolerance: how far it may be off: absolute, from the size of the sample and the dtype.
        core: whether the claim falls with it; otherwise the claim then holds with a correction.
        units: "1" for pure numbers.
    """

    says: str
    chapter: float
    exact: float | None = None
    relation: Literal["equal", "at_most", "at_least"] = "equal"
    tolerance: float = 0.0
    core: bool = True
    units: str = "1"


class Judged(NamedTuple):
    """What the runs say about a number.

    Attributes:
        measured: the mean over the draws that are finite.
        low, high: the ends of its 95 % interval (Student's t); of a single, deterministic number itself.
        verdict: HOLDS, FAILS or UNDECIDED.
        reason: why it is undecided; else "".
    """

    measured: float
    low: float
    high: float
    verdict: str
    reason: str


def judge(number: Number, draws: Any) -> Judged:
    """Hold what the chapter says about a number against the interval in which the runs have it.

    The number holds if all of the interval agrees with the prediction to the tolerance, and does not if none of it
    does. An interval with ends on both sides decides nothing: a wide one can neither confirm nor refute. Nor do runs
    that all lie on the very bound of what is at least or at most predicted: where a floor or a cap puts them, such as
    the budget of two runs that both never got there, nothing was seen.

    Args:
        number: the prediction.
        draws: what was measured: one number if it is deterministic, else one a seed; NaN for a run that diverged.
    """
    values = np.asarray(draws, dtype=float)
    measured, low, high = _interval(values)
    if reason := _lack(values) or _tie(number, values):
        return Judged(measured, low, high, UNDECIDED, reason)
    below, above = _allowed(number)
    if below <= low and high <= above:
        return Judged(measured, low, high, HOLDS, "")
    if high < below or low > above:
        return Judged(measured, low, high, FAILS, "")
    said = f"the interval from {low:.3g} to {high:.3g} lies on both sides of what would confirm it"
    return Judged(measured, low, high, UNDECIDED, said)


def overall(numbers: Iterable[tuple[bool, str]]) -> str:
    """The verdict on a claim from its numbers, each (core, verdict).

    >>> overall([(True, HOLDS), (False, FAILS)]), overall([(True, UNDECIDED), (True, FAILS)])
    ('holds with a correction', 'does not hold')
    """
    numbers = list(numbers)
    core = [verdict for is_core, verdict in numbers if is_core]
    for verdict in (FAILS, UNDECIDED):
        if verdict in core:
            return verdict
    return CORRECTED if (False, FAILS) in numbers else HOLDS


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    known = values[np.isfinite(values)].ravel()
    if len(known) == 0:
        return math.nan, math.nan, math.nan
    mean = float(known.mean())
    if len(known) == 1:
        return mean, mean, mean
    quantile = stats.t.ppf(0.5 + _LEVEL / 2, len(known) - 1)
    half = float(quantile * known.std(ddof=1) / math.sqrt(len(known)))
    return mean, mean - half, mean + half


def _lack(values: np.ndarray) -> str:
    """Why what was measured cannot be judged; "" where it can."""
    diverged = int((~np.isfinite(values)).sum())
    if diverged:
        return f"{diverged} of {values.size} runs gave no finite number"
    if values.ndim and values.size < MIN_DRAWS:
        return f"{words.count(values.size, 'run')} cannot be judged: {MIN_DRAWS} are needed"
    return ""


def _tie(number: Number, values: np.ndarray) -> str:
    """Why runs that all give the very end of what agrees with a bound decide nothing; "" where they do not."""
    ends = [end for end in _allowed(number) if math.isfinite(end)]
    is_tie = values.ndim and number.relation != "equal" and (values == ends[0]).all()
    return f"all runs give {ends[0]:g} itself, which may be a floor or a cap" if is_tie else ""


def _allowed(number: Number) -> tuple[float, float]:
    """The ends of what agrees with the chapter."""
    low, high = number.chapter - number.tolerance, number.chapter + number.tolerance
    return {"equal": (low, high), "at_most": (-math.inf, high), "at_least": (low, math.inf)}[number.relation]
