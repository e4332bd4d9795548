"""The chapter: every claim of a textbook chapter on activation functions, measured and judged, as one study."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from train import fields, words
from train.experiment import Cell, Finding, Link, Progress, Section
from train.experiments.chapter import claim as base
from train.experiments.chapter.claim import Claim
from train.experiments.chapter.verdict import CORRECTED, FAILS, HOLDS, SEEDS, UNDECIDED

__all__ = ["Chapter", "claims"]

_SHARED = (*base.JUDGED, "number", "draw")
_SAID = {  # of one and of several
    HOLDS: ("holds", "hold"),
    CORRECTED: ("holds with a correction", "hold with a correction"),
    FAILS: ("does not hold", "do not hold"),
    UNDECIDED: ("stays undecided", "stay undecided"),
}


@functools.cache
def claims() -> Mapping[str, type[Claim]]:
    """The claims by name, in the order of the chapter: one from every file of this package that defines one."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    members = [(name, vars(importlib.import_module(f"{__name__}.{name}")).values()) for name in names]
    found = {name: kind for name, each in members for kind in each if _is_claim_of(kind, name)}
    return dict(sorted(found.items(), key=lambda item: item[1].number))


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """Put every claim of a textbook chapter on activation functions to the test.

    Each claim is a cell: it says beforehand what the chapter and what exact theory predict, measures, and is judged.

    Attributes:
        claims: the claims to test, by name.
        seeds: of whatever is random in them; fewer than five decide nothing. The default's chose no setting.
        full: whether claims run on their larger grids.
        small: whether they run in seconds; their numbers then mean nothing.
    """

    claims: tuple[str, ...] = field(default_factory=lambda: tuple(claims()))
    seeds: tuple[int, ...] = SEEDS
    full: bool = False
    small: bool = False

    def __post_init__(self) -> None:
        fields.check(self, claims=fields.among([*claims()]))

    def smoke(self) -> Self:
        """Every claim in its smoke test."""
        return replace(self, small=True)

    def cells(self) -> Sequence[Cell]:
        """One cell a claim."""
        return [Cell(name, {"claim": name}) for name in self.claims]

    def claim(self, name: str) -> Claim:
        """The study of one claim, as this chapter runs it."""
        study = claims()[name](seeds=self.seeds)
        study = study.full() if self.full else study
        return study.smoke() if self.small else study

    def run(self, cell: Cell, *, progress: Progress) -> xr.Dataset:
        """Measure one claim; its variables and dimensions get its name before theirs."""
        name = str(cell.coords["claim"])
        study = self.claim(name)
        (only,) = study.cells()
        result = study.run(only, progress=progress)
        own = {
            each: f"{name}.{each}"
            for each in result.variables
            if each not in (*_SHARED, "compile_seconds", "run_seconds")
        }
        numbers = [f"{name}: {each}" for each in result["number"].to_numpy()]
        seconds = (result["run_seconds"] + result["compile_seconds"]).assign_attrs(
            result["run_seconds"].attrs | {"long_name": "time to compile and run"}
        )
        result = (
            result.drop_vars("compile_seconds")
            .rename(own)
            .assign_coords(number=("number", numbers, result["number"].attrs))
        )
        whole: dict[str, Any] = {"run_seconds": seconds.expand_dims(claim=[name])}
        said = {"units": "1", "long_name": "verdict on the claim"}
        text = xr.DataArray([base.claim_verdict(result)], {"claim": [name]}, attrs=said)
        result = result.assign(whole | {"claim_verdict": text})
        result["claim"].attrs = {"units": "1", "long_name": "claim of the chapter"}
        return result

    @staticmethod
    def figures(result: xr.Dataset) -> Mapping[str, Any]:
        """The figures of every claim."""
        return {
            f"{name}-{figure}": chart
            for name, kind in _of(result).items()
            for figure, chart in kind.figures(part(result, name)).items()
        }

    @staticmethod
    def findings(result: xr.Dataset) -> Sequence[str]:
        """How many claims hold, then the verdict on each with the number on which it rests."""
        verdicts = [str(each) for each in result["claim_verdict"].to_numpy()]
        counts = {verdict: verdicts.count(verdict) for verdict in _SAID}
        said = [f"{number} {_SAID[verdict][number > 1]}" for verdict, number in counts.items() if number]
        first = f"Of {words.count(verdicts, 'claim')} of the chapter {words.listed(said)}."
        return [
            first,
            *(Finding(_sentence(part(result, name)), each.title) for name, each in _of(result).items()),
        ]

    @staticmethod
    def tables(result: xr.Dataset) -> Mapping[str, pd.DataFrame]:
        """The verdicts, a row a claim: what the page opens with."""
        rows = []
        for name, kind in _of(result).items():
            own = part(result, name)
            row = base.row_of(base.deciding(own))
            rows.append(
                {
                    "claim": Link(f"{kind.number}. {kind.title}", name),
                    **row,
                    "verdict": base.claim_verdict(own),
                }
            )
        table = pd.DataFrame(rows).rename(columns={"number": "the number that decides"})
        table.attrs["caption"] = (
            "Of each claim the number on which the verdict rests; its section has the others."
        )
        return {"Verdicts": table}

    @staticmethod
    def sections(result: xr.Dataset) -> Sequence[Section]:
        """A section a claim: what the chapter says, the formula, numbers, figures, what follows, the source."""
        return [_section(result, name, kind) for name, kind in _of(result).items()]


def part(result: xr.Dataset, name: str) -> xr.Dataset:
    """What a chapter's result holds of one claim, in the claim's own names."""
    prefix = f"{name}."
    own = {each: str(each).removeprefix(prefix) for each in result.variables if str(each).startswith(prefix)}
    rows = [str(each).startswith(f"{name}: ") for each in result["number"].to_numpy()]
    kept = result[[*own, *base.JUDGED]].rename(own).isel(number=np.flatnonzero(rows))
    labels = [str(each).removeprefix(f"{name}: ") for each in kept["number"].to_numpy()]
    return kept.assign_coords(number=("number", labels, result["number"].attrs))


def _is_claim_of(kind: Any, module: str) -> bool:
    is_own = inspect.isclass(kind) and kind.__module__ == f"{__name__}.{module}"
    return is_own and issubclass(kind, Claim) and kind is not Claim


def _of(result: xr.Dataset) -> dict[str, type[Claim]]:
    return {name: claims()[name] for name in map(str, result["claim"].to_numpy())}


def _sentence(own: xr.Dataset) -> str:
    row = base.row_of(base.deciding(own))
    exact = f", exact theory {row['exact']}" if row["exact"] else ""
    said = f"predicted {row['predicted']}{exact}, measured {row['measured']}"
    _, _, reason = row["verdict"].removesuffix(" (finer point)").partition(": ")
    why = f" ({reason})" if reason else ""
    return f"{words.capital(base.claim_verdict(own))}: {row['number']}: {said}{why}."


def _section(result: xr.Dataset, name: str, kind: type[Claim]) -> Section:
    own = part(result, name)
    shown = " ".join(kind.findings(own))
    return Section(
        key=name,
        title=f"{kind.number}. {kind.title}",
        badge=base.claim_verdict(own),
        before={"The chapter says": kind.says, "Formula": kind.formula},
        table=base.numbers_table(own),
        after={
            **({"Beyond the numbers": shown} if shown else {}),
            "In practice": kind.practice,
            "Source": kind.source,
            "Exercise": f"{kind.exercise.task} Check it with `python -m train exercise {name} --check MYFILE.py`.",
        },
    )
