"""What a phase diagram found, in sentences and tables."""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from train import runs, words
from train.experiment import Finding
from train.experiments.phase_diagram import limits

_ALL = "all columns together"
_HOW = (
    "Spearman's rank correlation of predicted and measured depth limits over columns of sigma_w^2; in brackets the "
    "95 % percentile bootstrap interval. Columns lie on smooth curves and are not independent draws: the interval says "
    "how much hangs on single ones, [1, 1] only that all are in order. Limits beyond the grid share a rank. Only "
    "chaotic columns can tell the scales apart (xi_c = xi_gradient in the ordered phase); they are not told apart "
    "where the interval of the difference holds 0."
)
_LEFT_OUT = (
    "A law would have one factor for all columns. Left out are limits beyond the grid and columns so near criticality "
    "that theory allows more layers than were tried: there width and budget end training."
)


def findings(result: xr.Dataset) -> list[Finding]:
    """Say in sentences what a phase diagram, or any part of one, found; the verdict first."""
    squares, rows = limits.squares(result), _rows(result)
    last = {"Failures": [_failures(result, squares)], "Limits of the measurement": [_limited(result, rows)]}
    if not bool(squares["trained"].any()):
        return Finding.by_topic({"": ["Nothing to conclude: no network reached the threshold."], **last})
    names = runs.names(result, "activation")
    topics = {
        "": [_verdict(rows)],
        **{
            topic: [_ranks(*each) for each in _parts(part).items()]
            for topic, part in _definitions(result).items()
        },
        "Size of the limits": [*(_size(*part) for part in _parts(rows).items()), _LEFT_OUT],
        "Deepest training": [_deepest(rows, name) for name in names],
        "Speed": [_speed(squares, name) for name in names],
        "How to read the rank correlations": [_HOW],
    }
    return Finding.by_topic(topics | last)


def _rows(result: xr.Dataset, **options: Any) -> pd.DataFrame:
    """A row a column of the heat map; `usable` where both limits lie within the grid, so that their ratio says much."""
    critical = result["critical_sigma_w_squared"].max(["depth", "sigma_w_squared"])
    found = limits.columns(result, **options).assign(critical=critical)
    rows = runs.rows(found, by=limits.COLUMN)
    is_predicted = np.isfinite(rows["xi_c"] + rows["xi_gradient"])
    is_inside = (rows["side"] == 0) & (rows["minimum"] <= int(result["depth"].max()))
    return rows.assign(usable=is_predicted & is_inside)


def _parts(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The columns of each activation and, of several, all together."""
    parts = {str(name): part for name, part in rows.groupby("activation", sort=False)}
    return parts | ({_ALL: rows} if len(parts) > 1 else {})


def _verdict(rows: pd.DataFrame) -> str:
    """Whether theory ranks the depth limits right, and which scale does."""
    found, (_, low, high, _) = limits.agreements(rows), limits.difference(rows)
    if not found:
        return "Whether theory ranks the depth limits right is open: too few of them differ, or none is predicted."
    best = max(found.values())
    ranks = "does not rank" if best.low <= 0 else "ranks" if best.rho >= 0.9 else "roughly ranks"
    scale = "do not tell which scale ends training"
    if low > 0 or high < 0:
        scale = f"favour the {'correlation' if low > 0 else 'gradient'}'s scale"
    said = words.listed([f"{one} with {title}" for title, one in found.items()])
    return f"Theory {ranks} the depth limits right: rank correlation {said}; the ranks {scale}."


def _ranks(name: str, rows: pd.DataFrame) -> str:
    """Correlations, whether they tell the two scales apart, and what kinds of columns they are about."""
    said = [f"{one} with {title}" for title, one in limits.agreements(rows).items()]
    value, low, high, _ = limits.difference(rows)
    if not np.isnan(value):
        said.append(f"a difference of the first two of {value:+.2f} [{low:+.2f}, {high:+.2f}]")
    kinds = {
        "chaotic": rows["chi"] > 1,
        # In the ordered phase the two come from different sums: equal but for rounding.
        "with xi_c the shorter": rows["xi_c"] < rows["xi_gradient"] * (1 - 1e-6),
        "with a limit above the deepest network": rows["side"] == 1,
        "with one below the shallowest": rows["side"] == -1,
    }
    among = [words.count(int(rows["limit"].notna().sum()), "column")]
    among += [f"{is_so.sum()} {kind}" for kind, is_so in kinds.items() if is_so.any()]
    return f"{name}: {words.listed(said) or 'too few different depth limits'} ({', '.join(among)})."


def _definitions(result: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The columns by the study's own definition of a depth limit, by a lower threshold, by a smaller budget."""
    cases, steps = {"Rank correlations": _rows(result)}, result["step"].to_numpy()
    if float(result["threshold"]) > 0.5 > float(result["chance_accuracy"]):
        cases["Rank correlations with a threshold of 50 % training accuracy"] = _rows(result, threshold=0.5)
    if len(half := steps[steps <= runs.budget(result) // 2]):
        budget = int(half.max())
        cases[f"Rank correlations with half of the budget ({budget} steps)"] = _rows(result, budget=budget)
    return cases


def _size(name: str, rows: pd.DataFrame) -> str:
    """Limits as multiples of the predictions, phase by phase: what ranks do not see."""
    chi, parts = rows["chi"], []
    phases = {"ordered phase": chi < 1, "chaotic phase": chi > 1, "both phases": chi.notna()}
    for phase, inside in phases.items():
        if len(usable := rows[inside & rows["usable"]]):
            said = [_ratio(usable["limit"] / usable[scale], scale) for scale in ("xi_c", "xi_gradient")]
            parts.append(f"{phase} {' and '.join(said)} ({words.count(usable, 'column')})")
    left_out = int((~rows["usable"] & rows["limit"].notna()).sum())
    return f"{name}, median (range): {'; '.join([*parts, f'left out: {left_out}'])}."


def _ratio(ratio: pd.Series, scale: str) -> str:
    spread = f"{words.extent(ratio)}, a factor of {ratio.max() / ratio.min():.2g}"
    return f"{ratio.median():.2g} ({spread}) times {limits.PREDICTORS[scale]}"


def _deepest(rows: pd.DataFrame, name: str) -> str:
    """The columns of an activation with the largest limit, and whether the one nearest to criticality is one."""
    row = rows[rows["activation"] == name].dropna(subset=["limit", "critical"])
    if row.empty:
        return ""
    critical, scales = row["critical"].iloc[0], row["sigma_w_squared"]
    best = row[row["limit"] == row["limit"].max()]
    nearest = scales.loc[np.log(scales / critical).abs().idxmin()]
    place = (
        "the column nearest to it"
        if nearest in set(best["sigma_w_squared"])
        else f"not the column nearest to it, {nearest:g}"
    )
    more = "more than " if (best["side"] > 0).any() else ""
    where = words.listed(list(map("{:g}".format, best["sigma_w_squared"])))
    return (
        f"{name}: {more}{row['limit'].max():.0f} layers, at sigma_w^2 = {where}; theory has its critical point at "
        f"{critical:.2f}, {place}."
    )


def _speed(squares: xr.Dataset, name: str) -> str:
    """The fastest column at the deepest depth at which several train, beside the slowest there."""
    steps = squares["steps"].sel(activation=name)
    several = steps[steps.notnull().sum("sigma_w_squared") > 1]
    if not several.size:
        return ""
    row = several[-1].dropna("sigma_w_squared").to_series().sort_index()
    return (
        f"{name} at depth {int(several['depth'][-1])} needs {row.min():.0f} steps at sigma_w^2 = {row.idxmin():g} and "
        f"{row.max():.0f} at {row.idxmax():g}, the fastest and slowest that train."
    )


def _failures(result: xr.Dataset, squares: xr.Dataset) -> str:
    trained, present, diverged = squares["trained"], squares["present"], result["diverged_step"].notnull()
    total, passed = int(present.sum()), int(trained.sum())
    tried = words.count(total * result.sizes["learning_rate"] * result.sizes["seed"], "run")
    edge, lost = (int((squares["on_edge"] & each).sum()) for each in (trained, ~trained))
    return (
        f"{total - passed} of {words.count(total, 'square')} {runs.not_reached(result)} at any learning rate; "
        f"{int(diverged.sum())} of {tried} diverged (loss or gradient not finite). The best rate is the smallest or "
        f"largest tried in {edge} of the {words.count(passed, 'square')} that trained, and the most accurate one is in "
        f"{lost} of the others."
    )


def _limited(result: xr.Dataset, rows: pd.DataFrame) -> str:
    ragged = words.count(int(rows["is_ragged"].sum()), "column")
    ragged = f"; {ragged} trained at a depth beyond one that failed" if rows["is_ragged"].any() else ""
    most = " (most of them must train)" if result.sizes["seed"] > 1 else ""
    return (
        f"Width {int(result['width'])}, {runs.seeds(result)}{most}{ragged}. Theory is about infinite width and "
        "initialisation; what a larger budget would train is not known."
    )


def tables(result: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The numbers behind the figures: rank correlations, columns, squares; each with a caption in `attrs`."""
    rows = _rows(result)
    return {
        "Rank correlations": _correlations(rows),
        "Depth limits": _limits(rows),
        "Every square": _every(result),
    }


def _correlations(rows: pd.DataFrame) -> pd.DataFrame:
    parts = {name: limits.agreements(part) for name, part in _parts(rows).items()}
    found = [(name, title, *one) for name, part in parts.items() for title, one in part.items()]
    names = ["activation", "prediction", "Spearman", "low", "high", "columns"]
    return runs.table(pd.DataFrame(found, columns=names), _HOW)


def _limits(rows: pd.DataFrame) -> pd.DataFrame:
    beyond = rows["side"].map({1: "deeper than all", -1: "shallower than all"}).fillna("")
    phase = np.select([rows["chi"] > 1, rows["chi"] < 1], ["chaotic", "ordered"], "")
    titles = {
        "activation": "activation",
        "sigma_w_squared": "sigma_w^2",
        "phase": "phase",
        **limits.PREDICTORS,
    }
    titles |= {"limit": "measured limit", "low": "trains at", "high": "fails at", "beyond": "beyond the grid"}
    caption = (
        "In layers. The limit lies between the deepest network that trains and the next of the grid; where, by how "
        "far that one came from chance to the threshold."
    )
    return runs.table(rows.assign(phase=phase, beyond=beyond).dropna(subset=["limit"]), caption, titles)


def _every(result: xr.Dataset) -> pd.DataFrame:
    reached, diverged = runs.threshold(result), result["diverged_step"].notnull()
    squares = limits.squares(result).assign(diverged=diverged.sum(["learning_rate", "seed"]))
    titles = {"activation": "activation", "depth": "depth", "sigma_w_squared": "sigma_w^2"}
    titles |= {"steps": f"steps to {reached}", "rate": "best learning rate"}
    titles |= {"accuracy": "highest train accuracy", "diverged": "diverged runs"}
    caption = (
        f"Steps are empty where {reached} was not reached within {runs.budget(result)} steps. A square that trains "
        "stops there, so its accuracy is about the threshold."
    )
    return runs.table(runs.rows(squares, by=limits.SQUARE).query("present"), caption, titles)
