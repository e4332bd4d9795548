"""What a phase diagram found, in sentences and tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from train.experiments import _phase_diagram_limits as limits

_PREDICTORS = limits.PREDICTORS


def findings(result: xr.Dataset) -> list[str]:
    """Say in sentences what a phase diagram found, each number computed from the Dataset.

    Args:
        result: the combined Dataset of a study, or any part of one.

    Returns:
        Sentences; those on theory and measurement first.
    """
    found = limits.columns(result)
    squares = limits.squares(result)
    if not bool(squares["trained"].any()):
        return ["Nothing to conclude: no network reached the threshold.", *_failures(result, squares, found)]
    activations = limits.names(found, "activation")
    deepest = float(result["depth"].max())
    sentences = [
        *(_rank_correlations(found.sel(activation=[name]), name) for name in activations),
        _rank_correlations(found, "All columns together") if len(activations) > 1 else "",
        _minimum(found),
        *(_which_scale(found.sel(activation=[name]), name) for name in activations),
        _which_scale(found, "all columns together") if len(activations) > 1 else "",
        _one_law(found, deepest),
        *(_size(found.sel(activation=[name]), name, deepest) for name in activations),
        *(_deepest(result, found, name) for name in activations),
        _speed(squares),
        *_robustness(result),
        *_failures(result, squares, found),
        "How to read the rank correlations: Spearman's, over columns of sigma_w^2; in brackets the 95 % percentile "
        "bootstrap interval over columns. Columns lie on smooth curves and are not independent draws, so the interval "
        "says how much hangs on single columns; [1, 1] only says that all are in order. A limit beyond the depths of "
        "the grid shares its rank with others on that side.",
    ]
    return [sentence for sentence in sentences if sentence]


def _rank_correlations(found: xr.Dataset, subject: str) -> str:
    measured = _flat(found["limit"])
    parts, count = [], 0
    for name, title in _PREDICTORS.items():
        one = limits.agreement(_flat(found[name]), measured)
        count = one.num_columns
        if not np.isnan(one.rho):
            parts.append(f"{one.rho:.2f} [{one.low:.2f}, {one.high:.2f}] with {title}")
    if not parts:
        return (
            f"{subject}: too few different depth limits ({_count(count, 'column')}) for a rank correlation."
        )
    sides = _flat(found["side"])
    ends = [
        f"{_count(int((sides == side).sum()), 'limit')} {where}"
        for side, where in ((1, "above the deepest"), (-1, "below the shallowest"))
        if (sides == side).any()
    ]
    lie = f", {' and '.join(ends)} network" if ends else ""
    return f"{subject}: measured depth limits have rank correlation {_listed(parts)} ({_count(count, 'column')}{lie})."


def _minimum(found: xr.Dataset) -> str:
    """Which scale the minimum is; where it is always the same one, its correlation is no third piece of evidence."""
    correlations, gradients = _flat(found["xi_c"]), _flat(found["xi_gradient"])
    if np.isnan(correlations + gradients).all():
        return ""
    # In the ordered phase the two come from different sums: equal but for rounding.
    shorter = int((correlations < gradients * (1 - 1e-6)).sum())
    if shorter:
        return f"The minimum of the two: xi_c is the shorter in {_count(shorter, 'column')}."
    return "The minimum of the two: never xi_c alone; it is xi_gradient in every column."


def _which_scale(found: xr.Dataset, subject: str) -> str:
    """Whether the data tell the two scales apart; they differ in the chaotic phase alone."""
    chaotic = _flat(found["chi"]) > 1
    value, low, high = limits.difference(*(_flat(found[name]) for name in ("xi_c", "xi_gradient", "limit")))
    if np.isnan(value) or not chaotic.any():
        return ""
    verdict = "the ranks do not tell which scale ends training"
    if low > 0:
        verdict = "the ranks favour the correlation's scale"
    elif high < 0:
        verdict = "the ranks favour the gradient's scale"
    return (
        f"xi_c or xi_gradient, {subject}: rank correlations differ by {value:+.2f} [{low:+.2f}, {high:+.2f}], so "
        f"{verdict}. Only the {_count(int(chaotic.sum()), 'chaotic column')} can tell; in the ordered phase "
        "xi_c = xi_gradient."
    )


def _size(found: xr.Dataset, subject: str, deepest: float) -> str:
    """Limits as multiples of the predictions, phase by phase: what ranks do not see."""
    chi, usable = _flat(found["chi"]), _is_usable(found, deepest)
    parts = []
    for phase, inside in (("ordered", chi < 1), ("chaotic", chi > 1)):
        said = []
        for name in ("xi_c", "xi_gradient")[: 1 if phase == "ordered" else 2]:
            ratio = _flat(found["limit"] / found[name])[inside & usable]
            if len(ratio):
                said.append(f"{np.median(ratio):.2g} ({_range(ratio)}) times {_PREDICTORS[name]}")
        if said:
            parts.append(
                f"{phase} phase {' and '.join(said)} ({_count(int((inside & usable).sum()), 'column')})"
            )
    return f"Size of the limits, {subject}: median (range) {'; '.join(parts)}." if parts else ""


def _one_law(found: xr.Dataset, deepest: float) -> str:
    """How far the ratio of measured to predicted limit spreads over all columns: a law would have one ratio."""
    usable = _is_usable(found, deepest)
    if usable.sum() < 3:
        return ""
    parts = []
    for name in ("xi_c", "xi_gradient"):
        ratio = _flat(found["limit"] / found[name])[usable]
        parts.append(
            f"{ratio.max() / ratio.min():.2g} for {_PREDICTORS[name]} (median {np.median(ratio):.2g})"
        )
    left_out = int((~usable & ~np.isnan(_flat(found["limit"]))).sum())
    return (
        f"One factor for all columns: measured over predicted limit varies by a factor of {' and '.join(parts)}, over "
        f"{_count(int(usable.sum()), 'column')}; left out: {left_out} beyond the grid or so near criticality that "
        f"theory allows more than {deepest:g} layers, where width and budget end training."
    )


def _is_usable(found: xr.Dataset, deepest: float) -> np.ndarray:
    """Columns with a measured limit that theory puts within the grid: elsewhere a ratio says nothing of theory."""
    is_predicted = np.isfinite(_flat(found["xi_c"] + found["xi_gradient"])) & (
        _flat(found["minimum"]) <= deepest
    )
    return (_flat(found["side"]) == 0) & is_predicted & ~np.isnan(_flat(found["limit"]))


def _deepest(result: xr.Dataset, found: xr.Dataset, name: str) -> str:
    row = found.sel(activation=name).dropna("sigma_w_squared", subset=["limit"])
    critical = float(limits.critical_points(result).sel(activation=name))
    if not row.sizes["sigma_w_squared"] or np.isnan(critical):
        return ""
    scale, limit = row["sigma_w_squared"].to_numpy(), row["limit"].to_numpy()
    best = scale[limit == limit.max()]
    where = _listed([f"{value:g}" for value in best])
    nearest = scale[np.argmin(np.abs(np.log(scale / critical)))]
    words = "the column nearest to it" if nearest in best else f"not the column nearest to it, {nearest:g}"
    more = "more than " if (row["side"].to_numpy()[limit == limit.max()] > 0).any() else ""
    return (
        f"Deepest training, {name}: {more}{limit.max():.0f} layers, at sigma_w^2 = {where}; theory has its critical "
        f"point at {critical:.2f}, {words}."
    )


def _speed(squares: xr.Dataset) -> str:
    """The fastest column at the deepest depth at which several train, beside the slowest there."""
    parts = []
    for name in limits.names(squares, "activation"):
        here = squares.sel(activation=name)
        depths = here["depth"].to_numpy()[(here["trained"].sum("sigma_w_squared") > 1).to_numpy()]
        if not len(depths):
            continue
        row = here["steps"].sel(depth=depths[-1]).dropna("sigma_w_squared")
        steps, scales = row.to_numpy(), row["sigma_w_squared"].to_numpy()
        parts.append(
            f"{name} at depth {depths[-1]} needs {steps.min():.0f} steps at sigma_w^2 = {scales[steps.argmin()]:g} and "
            f"{steps.max():.0f} at {scales[steps.argmax()]:g}, the fastest and slowest that train"
        )
    return f"Speed: {'; '.join(parts)}." if parts else ""


def _robustness(result: xr.Dataset) -> list[str]:
    """The rank correlations under another definition of a depth limit."""
    budget = int(result["step"].max())
    half = result["step"].to_numpy()[result["step"].to_numpy() <= budget // 2]
    cases: list[tuple[str, dict[str, Any]]] = []
    if float(result["threshold"]) > 0.5 > float(result["chance_accuracy"]):
        cases.append(("a threshold of 50 % training accuracy", {"threshold": 0.5}))
    if len(half):
        cases.append((f"half of the budget ({half.max()} steps)", {"budget": int(half.max())}))
    parts = []
    for words, options in cases:
        found = limits.columns(result, **options)
        said = []
        for name in limits.names(found, "activation"):
            one = found.sel(activation=[name])
            rhos = [limits.agreement(_flat(one[p]), _flat(one["limit"])).rho for p in _PREDICTORS]
            above = int((_flat(one["side"]) > 0).sum())
            if not np.isnan(rhos).any():
                beyond = f", {above} above the grid" if above else ""
                said.append(f"{name} {', '.join(f'{rho:.2f}' for rho in rhos)}{beyond}")
        if said:
            parts.append(f"with {words}: {'; '.join(said)}")
    if not parts:
        return []
    parts = [part[:1].upper() + part[1:] for part in parts]
    return [f"Other definitions of the limit, rank correlations in the same order: {'. '.join(parts)}."]


def _failures(result: xr.Dataset, squares: xr.Dataset, found: xr.Dataset) -> list[str]:
    present, trained = int(squares["present"].sum()), int(squares["trained"].sum())
    members = (
        int(result["steps_trained"].notnull().sum()) * result.sizes["learning_rate"] * result.sizes["seed"]
    )
    diverged = int(result["diverged_step"].notnull().sum())
    edge, lost = (
        int((squares["on_edge"] & each).sum()) for each in (squares["trained"], ~squares["trained"])
    )
    ragged = int(found["is_ragged"].fillna(0).sum())
    seeds = result.sizes["seed"]
    sentences = [
        f"Censored: {present - trained} of {_count(present, 'square')} reached {threshold(result)} training accuracy "
        f"at no learning rate within {int(result['step'].max())} steps; {diverged} of {_count(members, 'member')} "
        f"diverged (loss or gradient not finite). The best rate is the smallest or largest tried in {edge} of the "
        f"{_count(trained, 'square')} that trained, and the most accurate one is in {lost} of the others.",
        f"Limits of the measurement: width {int(result['width'])}, "
        f"{_count(seeds, 'seed')}{' (most of them must train)' if seeds > 1 else ''}"
        + (f"; {_count(ragged, 'column')} trained at a depth beyond one that failed" if ragged else "")
        + ". Theory is about infinite width and initialisation; what a larger budget would train is not known.",
    ]
    return sentences


def tables(result: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The numbers behind the figures.

    Args:
        result: the combined Dataset of a study, or any part of one.

    Returns:
        Frames by title, each with a caption in `attrs`: rank correlations, columns, squares.
    """
    return {
        "Rank correlations": _correlations(result),
        "Depth limits": _limits(result),
        "Every square": _every(result),
    }


def _correlations(result: xr.Dataset) -> pd.DataFrame:
    found = limits.columns(result)
    names = limits.names(found, "activation")
    parts = [(name, found.sel(activation=[name])) for name in names]
    parts += [("all", found)] if len(names) > 1 else []
    rows = []
    for subject, part in parts:
        for name, title in _PREDICTORS.items():
            one = limits.agreement(_flat(part[name]), _flat(part["limit"]))
            rows.append((subject, title, one.num_columns, one.rho, one.low, one.high))
    frame = pd.DataFrame(rows, columns=["activation", "prediction", "columns", "Spearman", "low", "high"])
    frame.attrs["caption"] = (
        "Spearman's rank correlation of predicted and measured depth limits over columns of sigma_w^2, with the ends "
        "of a 95 % percentile bootstrap interval over columns; nominal, since columns are points on smooth curves."
    )
    return frame


def _limits(result: xr.Dataset) -> pd.DataFrame:
    found = limits.columns(result)
    side = found["side"].to_numpy()
    notes = np.select([side > 0, side < 0], ["deeper than all", "shallower than all"], "")
    phase = np.select([found["chi"] > 1, found["chi"] < 1], ["chaotic", "ordered"], "")
    columns = {
        "phase": (found["chi"].dims, phase),
        **{title: found[name] for name, title in _PREDICTORS.items()},
        "measured limit": found["limit"],
        "trains at": found["low"],
        "fails at": found["high"],
        "beyond the grid": (found["chi"].dims, notes),
    }
    frame = xr.Dataset(columns, {name: found[name] for name in found["chi"].dims}).to_dataframe()
    frame = (
        frame.reset_index().rename(columns={"sigma_w_squared": "sigma_w^2"}).dropna(subset=["measured limit"])
    )
    frame = frame.reset_index(drop=True)
    frame.attrs["caption"] = (
        "In layers. The limit lies between the deepest network that trains and the next of the grid; where, by how "
        "far that one came from chance to the threshold."
    )
    return frame


def _every(result: xr.Dataset) -> pd.DataFrame:
    found = limits.squares(result)
    diverged = result["diverged_step"].notnull().sum(["learning_rate", "seed"]).transpose(*limits.SQUARE)
    frame = found[["steps", "rate", "accuracy"]].assign(diverged=diverged)
    frame = frame.where(found["present"]).to_dataframe(dim_order=list(limits.SQUARE)).reset_index()
    frame = frame.dropna(subset=["accuracy"]).reset_index(drop=True)
    frame = frame.rename(
        columns={
            "sigma_w_squared": "sigma_w^2",
            "steps": f"steps to {threshold(result)}",
            "rate": "best learning rate",
            "accuracy": "highest train accuracy",
            "diverged": "diverged members",
        }
    )
    frame.attrs["caption"] = (
        f"Steps are empty where {threshold(result)} was not reached within {int(result['step'].max())} steps. A square "
        "that trains stops there, so its accuracy is about the threshold."
    )
    return frame


def threshold(result: xr.Dataset) -> str:
    """The train accuracy that counts as trained: "90 %"."""
    return f"{100 * float(result['threshold']):.3g} %"


def _flat(values: xr.DataArray) -> np.ndarray:
    return values.to_numpy().astype(float).ravel()


def _range(values: np.ndarray) -> str:
    return f"{values.min():.2g} to {values.max():.2g}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
