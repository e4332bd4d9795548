"""The figures of a phase diagram, from the stored Dataset alone."""

from typing import Any

import numpy as np
import xarray as xr

from train import figures as draw
from train import runs
from train.experiments.phase_diagram import limits

_LABELS = {
    "sigma_w_squared": "Weight variance sigma_w^2",
    "depth": "Depth (layers)",
    "rate": "Best learning rate",
    "accuracy": "Highest train accuracy",
    "predicted": "Predicted depth limit (layers)",
    "limit": "Measured depth limit (layers)",
    "low": "Trains at",
    "high": "Fails at",
}


def figures(result: xr.Dataset) -> dict[str, Any]:
    """The figures of a phase diagram, or of any part of one; one that has no number to show is left out."""
    squares = limits.squares(result)
    charts = {
        "steps_to_threshold": _steps(result, squares),
        "best_learning_rate": _rates(result, squares),
        "depth_limits": _depth_limits(result),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def _map(squares: xr.Dataset, values: str, *, label: str, **said: Any) -> Any:
    """A coloured box a square that trained, a grey one where one did not."""
    told: dict[str, Any] = {
        "mark": "heat_map",
        "x": "sigma_w_squared",
        "y": "depth",
        "column": "activation",
        "scale": "decades",
        "borders": {"sigma_w_squared": "linear", "depth": "log"},
        "where": "present",
        "text_field": None,
        "labels": _LABELS | {"value": label},
        "size": (330, 300),
    }
    return draw.measured(squares, values, **told | said)


def _steps(result: xr.Dataset, squares: xr.Dataset) -> Any:
    reached, budget = runs.threshold(result), runs.budget(result)
    first = int(result["step"].min())
    return _map(
        squares,
        "steps",
        label=f"Steps to {reached} accuracy",
        scheme="blues",
        domain=(np.log10(budget), np.log10(first)),  # few steps are dark
        curves=_theory(result),
        tooltip=("rate", "accuracy"),
        title="At which depth and weight variance does a plain network train?",
        subtitle=f"Steps to {reached} training accuracy at the best learning rate; grey \N{MULTIPLICATION SIGN}: "
        f"not within {budget} steps; lines: theory",
        caption="Dark squares train fast. Where theory is right grey begins above the lower of the two lines: signals "
        "are said to pass 6 xi_c layers, gradients 6 xi_gradient. Left of the dotted critical point (ordered phase) "
        "both are one line; right of it (chaos) they part. At the critical point both are infinite; what ends "
        f"training there is the finite width ({int(result['width'])}) and the budget. A grey square may train with "
        "more steps.",
    )


def _theory(result: xr.Dataset) -> dict[str, xr.DataArray]:
    """Depth limits along the map, and the critical points inside it."""
    curves = {
        limits.PREDICTORS[name]: limits.SCALES * result[f"curve_{name}"].where(np.isfinite)
        for name in ("xi_c", "xi_gradient")
        if f"curve_{name}" in result
    }
    left, *_, right = draw.borders(np.sort(result["sigma_w_squared"]))
    critical = limits.critical_points(result)
    return curves | {"critical point": critical.where((critical > left) & (critical < right))}


def _rates(result: xr.Dataset, squares: xr.Dataset) -> Any:
    rates = np.sort(result["learning_rate"].to_numpy()).tolist()
    return _map(
        squares.assign(fastest=squares["rate"].where(squares["trained"])),
        "fastest",
        label="Best learning rate",
        domain=(np.log10(rates[0]), np.log10(rates[-1])),
        ticks=rates,
        tooltip=("steps", "accuracy"),
        title="Which learning rate trains fastest?",
        subtitle=f"The rate that reaches {runs.threshold(result)} training accuracy first; grey "
        "\N{MULTIPLICATION SIGN}: none does",
        caption=f"Tried: {', '.join(f'{rate:g}' for rate in rates)}, for every square. A square at either end of the "
        "colours might train faster with a rate that was not tried.",
    )


def _depth_limits(result: xr.Dataset) -> Any:
    found = limits.columns(result)
    ranks = [f"{title} {one}" for title, one in limits.agreements(found).items()]
    depths = np.sort(result["depth"]).astype(float)
    predicted = found[list(limits.PREDICTORS)].to_dataarray("prediction")
    drawn = found.assign(
        predicted=predicted.assign_coords(prediction=list(limits.PREDICTORS.values())),
        is_beyond=found["side"] != 0,
        phase=xr.where(found["chi"] > 1, "chaotic", "ordered"),
    )
    drawn["is_known"] = drawn["predicted"].notnull() & drawn["limit"].notnull()
    return draw.measured(
        drawn,
        "limit",
        mark="scatter",
        x="predicted",
        series="activation",
        column="prediction",
        ends=("low", "high"),
        scale="decades",
        floor=np.log10(0.8 * depths[0]),
        ceiling=np.log10(1.2 * depths[-1]),
        ticks=depths,
        x_scale="decades",
        x_ceiling=np.log10(10 * depths[-1]),
        where="is_known",
        open_where="is_beyond",
        diagonal=True,
        shown=("activation",),
        tooltip=("sigma_w_squared", "phase"),
        labels=_LABELS,
        title="Does theory rank the depth limits right?",
        subtitle="Rank correlation over all columns of sigma_w^2, 95 % bootstrap interval: "
        + (", ".join(ranks) or "too few columns"),
        caption="One point a column of the heat map: the largest depth that trains, the bar from there to the next "
        "depth of the grid, which does not. Open: beyond the depths that were tried. The dashed line is equality.",
    )
