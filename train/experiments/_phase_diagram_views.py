"""The figures of a phase diagram, from the stored Dataset alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from train import figures as draw
from train.experiments import _phase_diagram_limits as limits
from train.experiments._phase_diagram_findings import threshold

_CROSS = "\N{MULTIPLICATION SIGN}"
_UNTRAINED = "#d4d4d4"
_LINES = {"6 xi_c": "#D55E00", "6 xi_gradient": "#000000", "critical point": "#7a1fa2"}
_DASHES = {"6 xi_c": [1, 0], "6 xi_gradient": [6, 3], "critical point": [2, 2]}
_WIDE = 330


def figures(result: xr.Dataset) -> dict[str, alt.FacetChart]:
    """The figures of a phase diagram, by name; one that has no number to show is left out.

    Args:
        result: the combined Dataset of a study, or any part of one.

    Returns:
        Charts that carry their data, captions and filters with them.
    """
    squares = limits.squares(result)
    if not bool(squares["present"].any()):
        return {}
    return {
        "steps_to_threshold": _heat_map(result, squares),
        "best_learning_rate": _rates(result, squares),
        "depth_limits": _depth_limits(result),
    }


def _frame(result: xr.Dataset, squares: xr.Dataset) -> pd.DataFrame:
    """Squares with their four edges, points of the theory's curves and critical points, told apart by `part`."""
    table = squares.to_dataframe().reset_index()
    table = table[table["present"]].assign(part="square")
    sides = limits.edges(squares["sigma_w_squared"].to_numpy())
    rows = limits.edges(squares["depth"].to_numpy(), is_log=True)
    for field, ends, names in (
        ("sigma_w_squared", sides, ("left", "right")),
        ("depth", rows, ("bottom", "top")),
    ):
        index = np.searchsorted(np.sort(squares[field].to_numpy()), table[field].to_numpy())
        table[names[0]], table[names[1]] = ends[index], ends[index + 1]
    table["reached"] = table["steps"].map(
        lambda steps: f"{steps:.0f}" if np.isfinite(steps) else "not reached"
    )
    curves = []
    for name, title in (("curve_xi_c", "6 xi_c"), ("curve_xi_gradient", "6 xi_gradient")):
        if name not in result:
            continue
        curve = (limits.SCALES * result[name]).rename("height").to_dataframe().reset_index()
        curve = curve[np.isfinite(curve["height"])]
        curves.append(
            curve.rename(columns={"curve_sigma_w_squared": "left"}).assign(part="curve", line=title)
        )
    critical = limits.critical_points(result).rename("left").to_dataframe().reset_index()
    inside = (critical["left"] > sides[0]) & (critical["left"] < sides[-1])
    critical = critical[inside].assign(part="critical", line="critical point")
    frame = pd.concat([table, *curves, critical], ignore_index=True)
    frame["activation"] = pd.Categorical(
        frame["activation"], limits.names(result, "activation"), ordered=True
    )
    wanted = ["activation", "part", "line", "left", "right", "bottom", "top", "height"]
    wanted += ["sigma_w_squared", "depth", "steps", "reached", "trained", "rate", "accuracy"]
    frame = frame.reindex(columns=wanted)
    frame["trained"] = frame["trained"].fillna(False).astype(bool)
    return frame


def _map(
    result: xr.Dataset, squares: xr.Dataset, colour: alt.Color, *, with_lines: bool
) -> tuple[alt.FacetChart, pd.DataFrame]:
    """One panel an activation: coloured squares, grey ones with a cross where nothing trained, and the theory."""
    frame = _frame(result, squares)
    is_square = frame["part"] == "square"
    across = (frame.loc[is_square, "left"].min(), frame.loc[is_square, "right"].max())
    upward = (frame.loc[is_square, "bottom"].min(), frame.loc[is_square, "top"].max())
    x = alt.X(
        "left:Q", title="Weight variance sigma_w^2", scale=alt.Scale(domain=across, zero=False, nice=False)
    )
    depths = [int(depth) for depth in np.sort(squares["depth"].to_numpy())]
    scale = alt.Scale(type="log", domain=upward, nice=False)
    axis = alt.Axis(values=depths, format="d", grid=False)

    def y(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", title="Depth (layers)", scale=scale, axis=axis)

    tooltip = [
        alt.Tooltip("activation:N"),
        alt.Tooltip("sigma_w_squared:Q", title="sigma_w^2", format=".3g"),
        alt.Tooltip("depth:Q", format="d"),
        alt.Tooltip("reached:N", title=f"steps to {threshold(result)}"),
        alt.Tooltip("rate:Q", title="best learning rate", format=".2g"),
        alt.Tooltip("accuracy:Q", title="highest train accuracy", format=".2f"),
    ]
    square = alt.Chart().encode(x=x, x2="right:Q", y=y("bottom"), y2="top:Q", tooltip=tooltip)
    square = square.transform_filter("datum.part == 'square'").mark_rect(stroke="white", strokeWidth=0.5)
    trained = square.transform_filter("datum.trained").encode(color=colour)
    untrained = square.transform_filter("!datum.trained").encode(color=alt.value(_UNTRAINED))
    cross = (
        alt.Chart()
        .transform_filter("datum.part == 'square' && !datum.trained")
        .transform_calculate(middle="(datum.left + datum.right) / 2")
        .mark_text(text=_CROSS, color="#8a8a8a", fontSize=11)
        .encode(x=alt.X("middle:Q"), y=y("depth"))
    )
    layers: list[alt.Chart] = [trained, untrained, cross]
    if with_lines:
        key = alt.Legend(title="Theory", symbolType="stroke", symbolStrokeWidth=2.5, symbolSize=300)
        stroke = alt.Stroke(
            "line:N", scale=alt.Scale(domain=list(_LINES), range=list(_LINES.values())), legend=key
        )
        dash = alt.StrokeDash(
            "line:N", scale=alt.Scale(domain=list(_DASHES), range=list(_DASHES.values())), legend=key
        )
        curve = (
            alt.Chart().transform_filter("datum.part == 'curve'").encode(x=x, y=y("height"), order="left:Q")
        )
        # Every line twice, first wide and white: one colour cannot stand out from dark and pale squares.
        layers.append(
            curve.mark_line(clip=True, strokeWidth=5, stroke="white", opacity=0.85).encode(detail="line:N")
        )
        layers.append(curve.mark_line(clip=True, strokeWidth=2.2).encode(stroke=stroke, strokeDash=dash))
        rule = alt.Chart().transform_filter("datum.part == 'critical'").encode(x=x)
        layers.append(rule.mark_rule(strokeWidth=4, stroke="white", opacity=0.7))
        layers.append(rule.mark_rule(strokeWidth=2).encode(stroke=stroke, strokeDash=dash))
    return _panels(frame, layers, column="activation", size=(_WIDE, 300)), frame


def _panels(
    frame: pd.DataFrame, layers: Sequence[Any], *, column: str, size: tuple[int, int]
) -> alt.FacetChart:
    """Layers that share one frame, a panel for each level of `column`."""
    data, expressions = draw.inline(frame)
    levels = [str(level) for level in frame[column].cat.categories]
    header = alt.Header(labelFontWeight="bold", labelFontSize=12, title=None)
    transforms = [
        alt.CalculateTransform(calculate=expression, **{"as": name})
        for name, expression in expressions.items()
    ]
    return alt.FacetChart(
        data=data,
        facet=alt.Facet(column, type="nominal", sort=levels, header=header),
        spec=alt.layer(*layers, width=size[0], height=size[1]),
        columns=min(len(levels), 3),
        spacing=18,
        transform=transforms or alt.Undefined,
    )


def _close(
    chart: alt.FacetChart,
    result: xr.Dataset,
    *,
    title: str,
    subtitle: str,
    caption: str,
    colours: Mapping[str, str] | None = None,
) -> alt.FacetChart:
    chart = draw.shown(chart, {"activation": limits.names(result, "activation")})
    used = {"activation": dict(colours)} if colours else {}
    return draw.finish(chart, title=title, subtitle=subtitle, caption=caption, colours=used)


def _heat_map(result: xr.Dataset, squares: xr.Dataset) -> alt.FacetChart:
    steps = squares["steps"].to_numpy()
    steps = steps[np.isfinite(steps)]
    budget = int(result["step"].max())
    low = float(steps.min()) if len(steps) else float(result["step"].min())
    domain = [low, float(max(budget, low + 1))]
    ticks = [tick for tick in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= tick <= budget]
    colour = alt.Color(
        "steps:Q",
        title=["Steps to", f"{threshold(result)} accuracy"],
        scale=alt.Scale(type="log", domain=domain, range=["#08306b", "#2171b5", "#6baed6", "#d6e6f4"]),
        legend=alt.Legend(values=ticks, gradientLength=150, format="d"),
    )
    chart, _ = _map(result, squares, colour, with_lines=True)
    return _close(
        chart,
        result,
        title="At which depth and weight variance does a plain network train?",
        subtitle=(
            f"Steps to {threshold(result)} training accuracy at the best learning rate; grey {_CROSS}: not within "
            f"{budget} steps; lines: theory"
        ),
        caption=(
            "Dark squares train fast. Where theory is right grey begins above the lower of the two lines: signals are "
            "said to pass 6 xi_c layers, gradients 6 xi_gradient. Left of the dotted critical point (ordered phase) "
            "both are one line; right of it (chaos) they part. At the critical point both are infinite; what ends "
            f"training there is the finite width ({int(result['width'])}) and the budget. A grey square may train with "
            "more steps."
        ),
    )


def _rates(result: xr.Dataset, squares: xr.Dataset) -> alt.FacetChart:
    rates = [float(rate) for rate in np.sort(result["learning_rate"].to_numpy())]
    domain = [rates[0], rates[-1]] if len(rates) > 1 else [rates[0] / 2, rates[0] * 2]
    colour = alt.Color(
        "rate:Q",
        title=["Best", "learning rate"],
        scale=alt.Scale(type="log", domain=domain, scheme="viridis"),
        legend=alt.Legend(values=rates, gradientLength=150, format="~g"),
    )
    chart, _ = _map(result, squares, colour, with_lines=False)
    return _close(
        chart,
        result,
        title="Which learning rate trains fastest?",
        subtitle=f"The rate that reaches {threshold(result)} training accuracy first; grey {_CROSS}: none does",
        caption=(
            f"Tried: {', '.join(f'{rate:g}' for rate in rates)}, for every square. A square at either end of the "
            "colours might train faster with a rate that was not tried."
        ),
    )


def _depth_limits(result: xr.Dataset) -> alt.FacetChart:
    found = limits.columns(result)
    depths = np.sort(result["depth"].to_numpy()).astype(float)
    rows = []
    for name, title in limits.PREDICTORS.items():
        part = found[["limit", "low", "high", "side", "chi"]].assign(predicted=found[name])
        rows.append(part.to_dataframe().reset_index().assign(prediction=title))
    frame = pd.concat(rows, ignore_index=True).dropna(subset=["limit", "predicted"])
    finite = frame["predicted"][np.isfinite(frame["predicted"])]
    most = max(2.0 * depths[-1], min(10.0 * depths[-1], float(finite.max()) if len(finite) else 0.0))
    least = 0.75 * min(depths[0], float(finite.min()) if len(finite) else depths[0])
    frame = frame.assign(
        x=frame["predicted"].clip(least, most),
        predicted_text=frame["predicted"].map(
            lambda value: f"{value:.3g}" if np.isfinite(value) else "infinite"
        ),
        low=frame["low"].clip(lower=0.8 * depths[0]),
        high=frame["high"].clip(upper=1.2 * depths[-1]),
        open=frame["side"] != 0,
        phase=np.where(frame["chi"] > 1, "chaotic", "ordered"),
        prediction=pd.Categorical(frame["prediction"], list(limits.PREDICTORS.values()), ordered=True),
        activation=pd.Categorical(frame["activation"], limits.names(result, "activation"), ordered=True),
    ).drop(columns="predicted")
    look = draw.style(limits.names(result, "activation"))
    domain = list(look.names)
    colours = alt.Scale(domain=domain, range=list(look.colours))
    shapes = alt.Scale(domain=domain, range=list(look.shapes))
    ticks = [tick for tick in (5, 10, 20, 50, 100, 200, 500, 1000) if least <= tick <= most]
    x = alt.X(
        "x:Q",
        title="Predicted depth limit (layers)",
        scale=alt.Scale(type="log", domain=[least, most * 1.15], nice=False),
        axis=alt.Axis(values=ticks, format="d"),
    )
    ends = [0.7 * depths[0], 1.35 * depths[-1]]
    upward = alt.Scale(type="log", domain=ends, nice=False)

    def y(field: str) -> alt.Y:
        axis = alt.Axis(values=[int(depth) for depth in depths], format="d")
        return alt.Y(f"{field}:Q", title="Measured depth limit (layers)", scale=upward, axis=axis)

    colour = alt.Color("activation:N", title="activation", scale=colours)
    tooltip = [
        alt.Tooltip("activation:N"),
        alt.Tooltip("sigma_w_squared:Q", title="sigma_w^2", format=".3g"),
        alt.Tooltip("phase:N"),
        alt.Tooltip("predicted_text:N", title="predicted limit"),
        alt.Tooltip("limit:Q", title="measured limit", format=".3g"),
    ]
    corner = max(least, ends[0]), min(most * 1.15, ends[1])
    diagonal = (
        alt.Chart()
        .transform_aggregate(rows="count()")
        .mark_rule(color="#777", strokeDash=[3, 3])
        .encode(
            x=alt.datum(corner[0]), x2=alt.datum(corner[1]), y=alt.datum(corner[0]), y2=alt.datum(corner[1])
        )
    )
    base = alt.Chart().encode(x=x, color=colour, tooltip=tooltip)
    bars = base.mark_rule(strokeWidth=1.2, opacity=0.6).encode(y=y("low"), y2="high:Q")
    fill = alt.condition("datum.open", alt.value("white"), alt.Fill("activation:N", scale=colours))
    points = base.mark_point(size=55, strokeWidth=1.6, opacity=1).encode(
        y=y("limit"), fill=fill, shape=alt.Shape("activation:N", title="activation", scale=shapes)
    )
    chart = _panels(frame, [diagonal, bars, points], column="prediction", size=(250, 240))
    parts = []
    for name, title in limits.PREDICTORS.items():
        one = limits.agreement(found[name].to_numpy().ravel(), found["limit"].to_numpy().ravel())
        if not np.isnan(one.rho):
            parts.append(f"{title} {one.rho:.2f} [{one.low:.2f}, {one.high:.2f}]")
    return _close(
        chart,
        result,
        title="Does theory rank the depth limits right?",
        subtitle=(
            "Rank correlation over all columns of sigma_w^2, 95 % bootstrap interval: " + ", ".join(parts)
            if parts
            else "Too few columns for a rank correlation"
        ),
        caption=(
            "One point a column of the heat map: the largest depth that trains, the bar from there to the next depth "
            "of the grid, which does not. Open: beyond the depths that were tried. The dashed line is equality; "
            f"predictions above {most:.0f} layers are drawn there."
        ),
        colours=dict(zip(look.names, look.colours, strict=True)),
    )
