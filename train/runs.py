"""Which runs of a study are looked at: those of the best learning rate; and which of them failed, and how."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from train import words

if TYPE_CHECKING:
    import pandas as pd

PHASES = {"initial": "at initialisation", "trained": "after training"}


def marked(result: xr.Dataset) -> xr.Dataset:
    """The result with `present`, `diverged`, and the final accuracies and losses by the rule for runs that failed.

    A run that diverged has accuracy 0 and an infinite loss; `censored` is true of present runs alone.
    """
    diverged = result["diverged_step"].astype(float).notnull()
    present = result["steps_to_threshold"].astype(float).notnull() | diverged
    present = present | result["train_loss"].astype(float).notnull().any("step")
    # Combining cells fills absent ones with NaN, which is true as a boolean.
    censored = (result["censored"].astype(float).fillna(0.0) != 0) & present
    final = {}
    for split in ("train", "test"):
        last = result[[f"{split}_accuracy", f"{split}_loss"]].astype(float).isel(step=-1, drop=True)
        final[f"final_{split}_accuracy"] = xr.where(diverged, 0.0, last[f"{split}_accuracy"])
        final[f"final_{split}_loss"] = xr.where(diverged, math.inf, last[f"{split}_loss"])
    final["final_test_accuracy"].attrs = {"long_name": "test accuracy", "units": "1"}
    return result.assign(present=present, diverged=diverged, censored=censored, **final)


def best(result: xr.Dataset, cell: Sequence[str]) -> xr.Dataset:
    """The best learning rate of each cell, and only its runs, marked.

    Best is the highest training accuracy at the end, averaged over seeds, a diverged run counting as 0; ties go to
    the lower training loss, then to the smaller rate. The test set has no say.

    What was probed after training is left out (NaN) where a run diverged: its frozen state is an accident of the step
    before, with weights of any size.

    Args:
        result: a result with the dimensions "learning_rate" and "seed".
        cell: the dimensions of a cell.
    """
    result = marked(result).sortby("learning_rate")
    accuracy = quiet(lambda: result["final_train_accuracy"].mean("seed")).fillna(-1.0)
    loss = quiet(lambda: result["final_train_loss"].mean("seed")).fillna(math.inf)
    order = (*cell, "learning_rate")
    keys = np.stack([loss.transpose(*order).to_numpy(), -accuracy.transpose(*order).to_numpy()])
    first = np.lexsort(keys, axis=-1)[..., 0]  # the last key is the first to decide; the sort is stable
    index = xr.DataArray(first, dims=cell, coords={name: result[name] for name in cell})
    chosen = result.isel(learning_rate=index)
    is_accident = chosen["diverged"] & (chosen["phase"] == "trained")
    probed = {name: each for name, each in chosen.data_vars.items() if "phase" in each.dims}
    return chosen.assign({name: each.where(~is_accident) for name, each in probed.items()})


def of_most(values: np.ndarray, axis: int) -> np.ndarray:
    """The smallest number that most of the values do not exceed."""
    return np.sort(values, axis=axis).take(values.shape[axis] // 2, axis=axis)


def depth_limit(trained: xr.DataArray, progress: xr.DataArray) -> xr.Dataset:
    """The largest depth that trains, and where between it and the next the limit lies.

    limit = low (high / low)^p, where p is how far the deeper network came from chance to the threshold: at p = 0 it
    learned nothing and the limit is `low`, at p = 1 it would have trained. A convention within the bracket.

    Args:
        trained: whether the threshold was reached, along "depth".
        progress: (accuracy - chance) / (threshold - chance); NaN where nothing was measured.

    Returns:
        `limit`; `low`, the deepest that trains, or 0; `high`, the next, which does not, or infinity; `side`, 1 or -1
        where the limit lies beyond the deepest or shallowest depth, which then stands for it, else 0; `is_ragged`,
        whether a shallower depth failed. Numbers are NaN where nothing was measured.
    """
    present, depth = progress.notnull(), progress["depth"]
    low = depth.where(trained & present).max("depth")
    high = depth.where(present & ~(depth <= low)).min("depth")
    between = low * (high / low) ** progress.where(depth == high).max("depth").clip(0, 1)
    found = {
        "limit": between.fillna(low).fillna(high),  # an end of the grid stands for what lies beyond
        "low": low.fillna(0.0),
        "high": high.fillna(np.inf),
        "side": high.isnull().astype(float) - low.isnull(),
    }
    is_ragged = (present & ~trained & (depth < low)).any("depth")
    return xr.Dataset(found).where(present.any("depth")).assign(is_ragged=is_ragged)


def deepest(values: xr.DataArray) -> tuple[int, dict[str, tuple[list[str], np.ndarray]]]:
    """The deepest depth that has numbers [block, activation], and there each block's activations and numbers."""
    there = values["depth"].to_numpy()[values.notnull().any(["block", "activation"]).to_numpy()]
    found = {}
    for block in names(values, "block") if len(there) else ():
        row = values.sel(block=block, depth=there.max()).dropna("activation")
        if row.size:
            found[block] = names(row, "activation"), row.to_numpy()
    return int(there.max(initial=0)), found


def reach(accuracy: xr.DataArray, enough: float) -> str:
    """Who has enough accuracy [activation, depth] down to which depth, in a sentence."""
    measured = accuracy.dropna("activation", how="all")
    deepest = measured["depth"].where(measured >= enough).max("depth").fillna(0).astype(int).to_series()
    if not deepest.any():
        return f"{words.percent(enough)} is reached at no depth."
    parts = []
    for depth, who_all in sorted(deepest.groupby(deepest).groups.items(), reverse=True):
        who = f"all {len(deepest)}" if len(who_all) == len(deepest) > 1 else words.listed([*who_all])
        parts.append(f"{who} to depth {depth}" if depth else f"{who} at no depth")
    return f"At least {words.percent(enough)} is reached by {'; '.join(parts)}."


def rows(
    columns: Mapping[str, xr.DataArray] | xr.Dataset,
    by: Sequence[str] | None = None,
    needed: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A row for each place along the dimensions `by` (in this order) that has a number in any of the columns needed."""
    order = None if by is None else list(by)
    return (
        xr.Dataset(dict(columns)).to_dataframe(dim_order=order).dropna(how="all", subset=needed).reset_index()
    )


def table(frame: pd.DataFrame, caption: str, titles: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Rows as a report shows them: the columns that have a title, if any have, above a caption."""
    shown = frame if titles is None else frame[list(titles)].rename(columns=titles)
    shown = shown.reset_index(drop=True)
    shown.attrs["caption"] = caption
    return shown


def failures(runs: xr.Dataset, by: str, called: Callable[[Any], str]) -> str:
    """How many of all runs diverged or did not reach the threshold, split by a coordinate."""
    total = int(runs["present"].sum())
    if not total:
        return "No run was measured."

    def said(name: str, what: str) -> str:
        counts = {called(value): int(runs[name].sel({by: value}).sum()) for value in runs[by].to_numpy()}
        split = ", ".join(f"{words.lower(who)} {count}" for who, count in counts.items() if count)
        return f"{sum(counts.values())} of {words.count(total, 'run')} {what}" + (
            f" ({split})" if split else ""
        )

    return f"Over all learning rates {said('diverged', 'diverged')}; {said('censored', not_reached(runs))}."


def not_reached(runs: xr.Dataset) -> str:
    """What a run did not do: "did not reach 90 % training accuracy within 200 steps"."""
    return f"did not reach {threshold(runs)} training accuracy within {budget(runs)} steps"


def threshold(runs: xr.Dataset) -> str:
    """The accuracy that counts as trained: "90 %"; "the threshold" where a result does not say."""
    said = runs.get("threshold", runs["steps_to_threshold"].attrs.get("threshold"))
    said = json.loads(runs.attrs.get("config", "{}")).get("threshold") if said is None else said
    return "the threshold" if said is None else words.percent(float(said))


def budget(runs: xr.Dataset) -> int:
    """The last step that was measured."""
    return int(np.max(runs["step"].to_numpy(), initial=0))


def names(result: xr.Dataset | xr.DataArray, dim: str) -> list[str]:
    """The labels of a dimension as text."""
    return [str(name) for name in result[dim].to_numpy()]


def seeds(result: xr.Dataset) -> str:
    """How many seeds there are: "one seed", "3 seeds"."""
    return "one seed" if result.sizes["seed"] == 1 else words.count(result.sizes["seed"], "seed")


def at_phase(values: Any, phase: str) -> Any:
    """The numbers of one phase; NaN where there is none of it."""
    if phase not in names(values, "phase"):
        return values.isel(phase=0, drop=True) * np.nan
    return values.sel(phase=phase, drop=True)


def log10(values: xr.DataArray) -> xr.DataArray:
    """log10, -inf of 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return xr.apply_ufunc(np.log10, values.astype(float))


def quiet(compute: Callable[[], Any]) -> Any:
    """Run a reduction that may meet only NaN or infinities: both are answers here."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        return compute()
