"""The figures of a phase diagram, declared on the stored Dataset alone."""

from typing import Any

import numpy as np
import xarray as xr

from train import figures as draw
from train import runs
from train.experiments.phase_diagram import limits

_CROSS = "grey \N{MULTIPLICATION SIGN}"
_LABELS = {
    "rate": "Best learning rate",
    "accuracy": "Highest train accuracy",
    "low": "Trains at",
    "high": "Fails at",
}


def figures(result: xr.Dataset) -> dict[str, dict[str, Any]]:
    """What `train.figures.measured` is told of each figure of a phase diagram, or of any part of one."""
    squares = limits.squares(result)
    a_map = {
        "mark": "heat_map",
        "x": "sigma_w_squared",
        "y": "depth",
        "column": "activation",
        "scale": "decades",
        "borders": {"sigma_w_squared": "linear", "depth": "log"},
        "where": "present",
        "text_field": None,
        "size": (330, 300),
    }
    return {
        "steps_to_threshold": a_map | {"result": squares} | _steps(result),
        "best_learning_rate": a_map | _rates(result, squares),
        "depth_limits": _depth_limits(result),
    }


def _steps(result: xr.Dataset) -> dict[str, Any]:
    reached, budget, steps = runs.threshold(result), runs.budget(result), result["step"]
    return {
        "values": "steps",
        "labels": _LABELS | {"value": f"Steps to {reached} accuracy"},
        "scheme": "blues",
        "domain": (np.log10(budget), np.log10(int(steps.min()))),  # few steps are dark
        "curves": _theory(result),
        "tooltip": ("rate", "accuracy"),
        "title": "At which depth and weight variance does a plain network train?",
        "subtitle": f"Steps to {reached} training accuracy at the best learning rate; {_CROSS}: not within {budget} "
        "steps; lines: theory",
        "caption": "Dark squares train fast. Where theory is right grey begins above the lower of the two lines: "
        "signals are said to pass 6 xi_c layers, gradients 6 xi_gradient. Left of the dotted critical point (ordered "
        "phase) both are one line; right of it (chaos) they part. At the critical point both are infinite; what ends "
        f"training there is the finite width ({int(result['width'])}) and the budget.",
    }


def _theory(result: xr.Dataset) -> dict[str, xr.DataArray]:
    """Depth limits along the map, and the critical points inside it."""
    curves = {
        limits.PREDICTORS[name]: limits.SCALES * result[f"curve_{name}"].where(np.isfinite)
        for name in ("xi_c", "xi_gradient")
        if f"curve_{name}" in result
    }
    left, *_, right = draw.borders(np.sort(result["sigma_w_squared"]))
    critical = result["critical_sigma_w_squared"].max(["depth", "sigma_w_squared"])
    return curves | {"critical point": critical.where((critical > left) & (critical < right))}


def _rates(result: xr.Dataset, squares: xr.Dataset) -> dict[str, Any]:
    rates = np.sort(result["learning_rate"].to_numpy()).tolist()
    return {
        "result": squares.assign(fastest=squares["rate"].where(squares["trained"])),
        "values": "fastest",
        "labels": _LABELS | {"value": "Best learning rate"},
        "domain": (np.log10(rates[0]), np.log10(rates[-1])),
        "ticks": rates,
        "tooltip": ("steps", "accuracy"),
        "title": "Which learning rate trains fastest?",
        "subtitle": f"The rate that reaches {runs.threshold(result)} training accuracy first; {_CROSS}: none does",
        "caption": f"Tried: {', '.join(map('{:g}'.format, rates))}, for every square. A square at either end of the "
        "colours might train faster with a rate that was not tried.",
    }


def _depth_limits(result: xr.Dataset) -> dict[str, Any]:
    found, depths = limits.columns(result), np.sort(result["depth"]).astype(float)
    ranks = ", ".join(f"{title} {one}" for title, one in limits.agreements(found).items())
    predicted = found[list(limits.PREDICTORS)].to_dataarray("prediction")
    predicted = predicted.assign_coords(prediction=list(limits.PREDICTORS.values()))
    return {
        "result": found.assign(
            predicted=predicted,
            is_beyond=found["side"] != 0,
            is_known=predicted.notnull() & found["limit"].notnull(),
            phase=xr.where(found["chi"] > 1, "chaotic", "ordered"),
        ),
        "values": "limit",
        "mark": "scatter",
        "x": "predicted",
        "series": "activation",
        "column": "prediction",
        "ends": ("low", "high"),
        "scale": "decades",
        "floor": np.log10(0.8 * depths[0]),
        "ceiling": np.log10(1.2 * depths[-1]),
        "ticks": depths,
        "x_scale": "decades",
        "x_ceiling": np.log10(10 * depths[-1]),
        "where": "is_known",
        "open_where": "is_beyond",
        "diagonal": True,
        "shown": ("activation",),
        "tooltip": ("sigma_w_squared", "phase"),
        "labels": _LABELS | {"predicted": "Predicted limit (layers)", "limit": "Measured limit (layers)"},
        "title": "Does theory rank the depth limits right?",
        "subtitle": f"Rank correlation over all columns, 95 % bootstrap interval: {ranks or 'too few columns'}",
        "caption": "One point a column of the heat map: the largest depth that trains, the bar from there to the next "
        "depth, which does not. Open: beyond the depths that were tried. The dashed line is equality.",
    }
