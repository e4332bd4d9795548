"""The base of the chapter's claims: a study of one cell that names its numbers before it measures them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import xarray as xr

from train import words
from train.config import ConfigError
from train.experiment import Cell
from train.experiments.chapter.exercise import Exercise
from train.experiments.chapter.verdict import (
    CORRECTED,
    FAILS,
    MIN_DRAWS,
    SEEDS,
    UNDECIDED,
    Judged,
    Number,
    judge,
    overall,
)
from train.study import Study

__all__ = ["Claim", "Number"]

_JUDGED = {
    "says": "what the number is",
    "units_of_number": "units of the number",
    "relation": "what the chapter says of it, beside the predicted number",
    "predicted": "what the chapter predicts",
    "exact": "what exact theory says",
    "tolerance": "how far it may be off",
    "core": "whether the claim falls with it",
    "draws": "what was measured, by draw",
    "num_draws": "how many draws there are, 0 for a number that is not random",
    "measured": "mean of the draws",
    "low": "lower end of the 95 % interval",
    "high": "upper end of the 95 % interval",
    "verdict": "verdict on the number",
    "reason": "why it is undecided",
}
JUDGED = tuple(_JUDGED)
CAPTION = (
    "Predicted: what the chapter concludes, whatever its own formula gives. Tolerance: how far from that a number may "
    "be; it holds if all of its interval is within. Measured: the mean over draws with its 95 % interval, or one "
    "number where nothing is random. Exact theory of random networks is that of infinite width. A finer point that "
    "fails corrects the claim; any other refutes it."
)


@dataclass(frozen=True, kw_only=True)
class Claim(Study):
    """What a chapter says, as numbers that a measurement can confirm or refute.

    A subclass is one file of this package, with the texts below, `numbers`, and `measure`, which returns, beside what
    `variables` declares for the figures, what was measured of each number under its name: one number if it is
    deterministic, else one a draw.

    Attributes:
        seeds: of whatever is random; vmapped.
        number: the claim's place in the chapter.
        title: the claim in a few words.
        says: what the chapter says.
        formula: the equation behind it.
        practice: what follows for a practitioner.
        source: author, year, title, equation.
        exercise: the claim for a reader to work out.
    """

    seeds: tuple[int, ...] = SEEDS

    number: ClassVar[int]
    title: ClassVar[str]
    says: ClassVar[str]
    formula: ClassVar[str]
    practice: ClassVar[str]
    source: ClassVar[str]
    exercise: ClassVar[Exercise]
    swept: ClassVar[Mapping[str, str]] = {}
    variables: ClassVar[Mapping[str, Any]] = {}

    def numbers(self) -> Mapping[str, Number]:
        """What is judged, by name; the first number is the one the claim is known by.

        Predictions come from the chapter and from theory, never from the code that is measured.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `numbers`: a `Number` by name.")

    def smoke(self) -> Self:
        """The same claim with small counts and as many seeds as it takes to be judged."""
        return replace(super().smoke(), seeds=self.seeds[:MIN_DRAWS])

    def full(self) -> Self:
        """The same claim on its larger grids, where it has any."""
        return self

    def labelled(self, cell: Cell, measured: Mapping[str, Any]) -> xr.Dataset:
        """The Dataset of the claim: its variables, and its numbers with their verdicts."""
        numbers = self.numbers()
        if clash := set(self.variables) & {*numbers, *JUDGED}:
            raise ConfigError(
                f"{type(self).__name__} has variables with the names of numbers: {sorted(clash)}."
            )
        if missing := [name for name in numbers if name not in measured]:
            raise ConfigError(
                f"{type(self).__name__} must measure all of its numbers; {missing} are not there."
            )
        rest = {name: values for name, values in measured.items() if name not in numbers}
        return super().labelled(cell, rest).merge(judged(numbers, measured, num_seeds=len(self.seeds)))

    @classmethod
    def findings(cls, result: xr.Dataset) -> Sequence[str]:
        """Sentences with numbers beyond those that are judged."""
        return []

    @classmethod
    def tables(cls, result: xr.Dataset) -> Mapping[str, pd.DataFrame]:
        """The numbers with their verdicts."""
        return {"Numbers": numbers_table(result)}


def judged(
    numbers: Mapping[str, Number], measured: Mapping[str, Any], *, num_seeds: int = MIN_DRAWS
) -> xr.Dataset:
    """Numbers, what was measured of them, and the verdicts, as a Dataset over "number" and "draw".

    With too few seeds nothing is decided: what is one number may be the best or the largest of all seeds.
    """
    samples = [np.asarray(measured[name], dtype=float) for name in numbers]
    most = max(sample.size for sample in samples)
    draws = np.full((len(samples), most), np.nan)
    for row, sample in zip(draws, samples, strict=True):
        row[: sample.size] = sample.ravel()
    found = [judge(number, sample) for number, sample in zip(numbers.values(), samples, strict=True)]
    if num_seeds < MIN_DRAWS:
        few = f"{words.count(num_seeds, 'seed')} cannot be judged: {MIN_DRAWS} are needed"
        found = [each._replace(verdict=UNDECIDED, reason=few) for each in found]
    columns: dict[str, Any] = {
        "predicted": [number.chapter for number in numbers.values()],
        "units_of_number": [number.units for number in numbers.values()],
        "exact": [np.nan if number.exact is None else number.exact for number in numbers.values()],
        **{
            name: [getattr(number, name) for number in numbers.values()]
            for name in ("says", "relation", "tolerance", "core")
        },
        "num_draws": [sample.size if sample.ndim else 0 for sample in samples],
        **{name: [getattr(each, name) for each in found] for name in Judged._fields},
    }
    variables = {name: ("number", np.array(columns[name])) for name in JUDGED if name != "draws"}
    result = xr.Dataset(
        {**variables, "draws": (("number", "draw"), draws)}, {"number": [*numbers], "draw": np.arange(most)}
    )
    for name, long_name in {**_JUDGED, "number": "number of a claim", "draw": "draw"}.items():
        result[name].attrs = {"units": "1", "long_name": long_name}
    return result


def claim_verdict(result: xr.Dataset) -> str:
    """The verdict on a claim from the stored verdicts on its numbers."""
    return overall(
        zip(result["core"].to_numpy().tolist(), result["verdict"].to_numpy().tolist(), strict=True)
    )


def deciding(result: xr.Dataset) -> xr.Dataset:
    """The number on which the verdict rests: the first that refutes, corrects or leaves it open, else the first."""
    wanted = {FAILS: (True, FAILS), CORRECTED: (False, FAILS), UNDECIDED: (True, UNDECIDED)}
    key = wanted.get(claim_verdict(result))
    pairs = list(zip(result["core"].to_numpy().tolist(), result["verdict"].to_numpy().tolist(), strict=True))
    return result.isel(number=pairs.index(key) if key in pairs else 0)


def numbers_table(result: xr.Dataset) -> pd.DataFrame:
    """A row a number: what it is, predicted, how far it may be off, exact, measured with its interval, verdict."""
    ones = [result.isel(number=place) for place in range(result.sizes["number"])]
    rows = [row_of(one) | {"tolerance": tolerance_of(float(one["tolerance"]))} for one in ones]
    table = pd.DataFrame(rows)[["number", "predicted", "tolerance", "exact", "measured", "verdict"]]
    table.attrs["caption"] = CAPTION
    return table


def tolerance_of(tolerance: float) -> str:
    """How far a number may be off, as a reader is shown it; empty where not at all."""
    return f"\N{PLUS-MINUS SIGN} {tolerance:.2g}" if tolerance else ""


def row_of(one: xr.Dataset) -> dict[str, str]:
    """What a reader is shown of one number."""
    signs = {
        "equal": "",
        "at_most": "\N{LESS-THAN OR EQUAL TO} ",
        "at_least": "\N{GREATER-THAN OR EQUAL TO} ",
    }
    values = {
        name: float(one[name]) for name in ("predicted", "exact", "measured", "low", "high", "tolerance")
    }
    digits = _digits(values["predicted"], values["exact"], values["tolerance"])
    shown = {name: _said(value, digits) for name, value in values.items()}
    is_one = values["low"] == values["high"] or np.isnan(values["low"])
    interval = "" if is_one else f" [{shown['low']}, {shown['high']}]"
    what, units = (str(one[name].item()) for name in ("says", "units_of_number"))
    said, reason = str(one["verdict"].item()), str(one["reason"].item())
    verdict = f"{said}: {reason}" if reason else said
    return {
        "number": what if units == "1" else f"{what} ({units})",
        "predicted": signs[str(one["relation"].item())] + shown["predicted"],
        "exact": shown["exact"],
        "measured": shown["measured"] + interval,
        "verdict": verdict if bool(one["core"]) else f"{verdict} (finer point)",
    }


def _digits(predicted: float, exact: float, tolerance: float) -> int:
    """Enough significant digits to see the tolerance, from 3 to 6."""
    scale = max(abs(predicted), 0.0 if np.isnan(exact) else abs(exact))
    if not (tolerance > 0 and scale > 0):
        return 4
    return int(np.clip(np.ceil(np.log10(scale / tolerance)) + 1, 3, 6))


def _said(value: float, digits: int) -> str:
    return "" if np.isnan(value) else f"{value:.{digits}g}"
