"""Marks of figures: tidy frames drawn as lines, ribbons, heat maps, scatters, bars and histograms, a panel a value.

Each takes a tidy frame and, by keyword, the attributes of `Encoding` beside its own, which its docstring lists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import altair as alt
import pandas as pd

from jaxact import theme
from train.figures import frames
from train.figures.encoding import BLANK, PAPER, Axis, Encoding, encoded, once, plain

_CROSS = "\N{MULTIPLICATION SIGN}"
# Labels of words: upright, broken at spaces.
_MOST_WORDS = 12  # side by side; more are turned upright
_UPRIGHT = alt.Axis(labelAngle=-90)
_BROKEN = alt.Axis(labelAngle=0, labelExpr="split(replace(datum.label, ' + ', ' +\u00a0'), ' ')")


def lines(frame: pd.DataFrame, *, point_field: str | None = "value", **told: Any) -> alt.FacetChart:
    """One line a series over `x`, one panel a value of `column` (and of `row`); a legend click highlights.

    Lines that coincide are all seen: earlier ones are wider, points stand a little aside of each other.

    Attributes:
        point_field: column that the points mark; None draws no visible points, only places to hover over.
    """
    e, has_points = encoded(frame, told, "series"), point_field is not None
    if has_points:
        aside = frames.dodged(e.frame, e.x_field, str(e.series), doubling=e.x.scale == "doubling")
        e = replace(e, frame=aside, x_field="at")
    signs = e.signs(has_points=has_points)
    base = alt.Chart().encode(x=e.x.x(e.x_field), color=signs["color"])
    layers = [] if e.band is None else _band(e, base, e.band, has_bars=has_points)
    stroke = {name: signs[name] for name in ("strokeDash", "strokeWidth")}
    line = base.mark_line().encode(y=e.height(e.y_field), **stroke, **e.lit(0.9, 0.1))
    if point_field is None:
        # Dots, because a line through a single position has no length.
        layers += [line, base.mark_circle(size=9).encode(y=e.height(e.y_field), **e.lit(0.9, 0.1))]
    elif point_field == e.y_field:
        layers += [line, e.points(base, point_field, signs, 44)]
    else:  # a line of its own goes above the points, which would hide it
        layers += [e.points(base, point_field, signs, 22), line]
    layers += [e.hover(base, point_field or e.y_field).add_params(e.highlight), *e.levels()]
    return e.chart(layers, (255, 210))


def ribbons(
    frame: pd.DataFrame,
    *,
    bands: Sequence[tuple[str, str]],
    middle: str | None = None,
    bars: Sequence[tuple[str, str, str]] = (),
    **told: Any,
) -> alt.FacetChart:
    """Nested bands over `x`, a small panel for each value of `row` and `column`, one colour a series.

    Attributes:
        bands: columns of the lower and upper end of each band, the widest first.
        middle: column of the line in the middle, if any.
        bars: (low, high, at): spread of an edge, a thin bar from `low` to `high` with a tick at `at`.
    """
    e = encoded(frame, told, "series")
    base = alt.Chart().encode(x=e.x.x(e.x_field), color=e.signs(on_top=True)["color"])
    layers = e.levels()
    for low, high in bands:
        edge = base.mark_line(strokeWidth=0.8).encode(**e.lit(0.7, 0.05))
        layers += [edge.encode(y=e.height(end)) for end in (low, high)]
        ends = base.encode(**e.between(low, high))
        layers.append(ends.mark_area(strokeWidth=0).encode(**e.lit(0.16, 0.03)))
        if frame[e.x_field].nunique() == 1:  # a band over a single position has no area
            layers.append(ends.mark_rule(strokeWidth=6).encode(**e.lit(0.35, 0.04)))
    for low, high, at in bars:
        layers.append(base.mark_rule(strokeWidth=1).encode(**e.between(low, high), **e.lit(0.9, 0.1)))
        layers.append(base.mark_tick(size=9, thickness=2, orient="horizontal").encode(y=e.height(at)))
    if middle is not None:
        layers.append(base.mark_line(strokeWidth=1.8).encode(y=e.height(middle), **e.lit(1, 0.1)))
    layers += [e.hover(base, end) for end in dict.fromkeys(end for band in bands for end in band)]
    dots = base.mark_circle(size=22).encode(y=e.height(middle or bands[0][1]), tooltip=list(e.tooltip))
    layers.append(dots.encode(**e.lit(1, 0.1)).add_params(e.highlight))
    return e.chart(layers, (255, 84), spacing=8)


def heat_map(
    frame: pd.DataFrame,
    *,
    value: Axis,
    text_field: str | None = "value_text",
    borders: Mapping[str, Literal["linear", "log"]] | None = None,
    curves: pd.DataFrame | None = None,
    scheme: str = "viridis",
    **told: Any,
) -> alt.FacetChart:
    """A coloured box for each `x` and `y` with its number inside; where that is NaN, a grey box with a cross.

    Attributes:
        value: the colour's axis; the column of numbers is "value".
        text_field: column of the words in the box, None for none.
        borders: for `x_field` and `y_field` both, whether boxes meet halfway between positions or between their
            logarithms: axes are then quantitative and can carry curves. By default boxes are a table.
        curves: rows of `x_field`, `y_field`, the fields of panels and "line", the curve's name, drawn over boxes with
            borders; a vertical line where `y_field` is NaN.
        scheme: the colours.
    """
    e = encoded(frame.assign(part="box"), told, *(() if borders else ("y_field",)))
    e, place, middle = _bordered(e, borders) if borders else (e, _table(e), _table(e))
    place["tooltip"] = list(e.tooltip)
    box = alt.Chart().transform_filter("datum.part == 'box'")
    valued, empty = (box.transform_filter(f"{sign}isValid(datum['value'])") for sign in ("", "!"))
    look: dict[str, Any] = {"stroke": PAPER, "strokeWidth": 1}
    layers: list[Any] = [
        valued.mark_rect(**look).encode(**place, color=value.colour("value", scheme)),
        empty.mark_rect(**look).encode(**place, fill=alt.value(BLANK)),
        empty.mark_text(text=_CROSS, fontSize=13).encode(**middle),
    ]
    if text_field is not None:
        bright = "luminance(scale('color', datum['value'])) > 0.18"
        ink = alt.condition(bright, alt.value("black"), alt.value("white"))
        layers.append(valued.mark_text(fontSize=12).encode(**middle, text=f"{text_field}:N", color=ink))
    if curves is not None:
        further = curves.rename(columns={e.x_field: "curve_x", e.y_field: "curve_y"}).assign(part="curve")
        e = replace(e, frame=frames.stacked(e.frame, further, e.fields))
        layers += _curves(frames.levels(curves, "line"))
    return e.chart(layers, (200, 230), is_map=True)


def scatter(frame: pd.DataFrame, *, diagonal: bool = False, **told: Any) -> alt.FacetChart:
    """A point for each row, with the bar of its spread.

    Attributes:
        diagonal: draw the line on which both are equal.
    """
    e = encoded(frame, told, "series")
    signs = e.signs()
    base = alt.Chart().encode(x=e.x.x(e.x_field), color=signs["color"])
    layers = e.levels() + (_diagonal(e) if diagonal else [])
    if e.band is not None:
        layers.append(base.mark_rule(strokeWidth=1.2).encode(**e.between(*e.band), **e.lit(0.6, 0.05)))
    layers += [e.points(base, e.y_field, signs, 55), e.hover(base, e.y_field).add_params(e.highlight)]
    return e.chart(layers, (250, 240))


def bars(frame: pd.DataFrame, **told: Any) -> alt.FacetChart:
    """A bar for each word of `x_field` and each series beside it, from zero, with the whiskers of its spread."""
    e = encoded(frame, told, "series", "x_field")
    heights = e.height(e.y_field)
    if e.y.domain is None and e.y.scale == "linear":
        heights = heights.scale(zero=True)  # the length of a bar is read
    order, beside = (frames.levels(e.frame, str(name)) for name in (e.x_field, e.series))
    is_full = len(order) > _MOST_WORDS
    base = alt.Chart().encode(
        x=alt.X(f"{e.x_field}:N", title=e.x.title or None, sort=order, axis=_UPRIGHT if is_full else _BROKEN),
        xOffset=alt.XOffset(f"{e.series}:N", sort=beside),
    )
    bar = base.mark_bar(clip=True).encode(y=heights, color=e.signs()["color"], tooltip=list(e.tooltip))
    layers: list[Any] = [bar.encode(**e.lit(0.9, 0.15)).add_params(e.highlight)]
    if e.band is not None:
        layers.append(base.mark_rule(strokeWidth=1.4).encode(y=f"{e.band[0]}:Q", y2=e.band[1]))
    return e.chart([*layers, *e.levels()], (560 if is_full else 255, 210))


def histogram(frame: pd.DataFrame, *, theory: pd.DataFrame | None = None, **told: Any) -> alt.FacetChart:
    """Bars of `value` between `from` and `to`, as `frames.binned` gives them, and a density that theory predicts.

    Attributes:
        theory: rows of `at` and `density`, and of those of `series`, `column` and `row` that it depends on.
    """
    e = encoded(frame, told, "series")
    signs = e.signs()
    base = alt.Chart().encode(color=signs["color"])
    box = base.transform_filter("isValid(datum.from)").mark_rect(strokeWidth=0)
    ends: dict[str, Any] = {"x": e.x.x("from"), "x2": "to", "y2": alt.Y2(datum=0)}
    box = box.encode(
        y=e.height("value").scale(zero=True), **ends, tooltip=list(e.tooltip), **e.lit(0.55, 0.05)
    )
    layers = [box.add_params(e.highlight)]
    if theory is not None:
        curve = base.transform_filter("isValid(datum.at)").mark_line(clip=True)
        layers.append(curve.encode(x=e.x.x("at"), y=e.height("density"), strokeWidth=signs["strokeWidth"]))
        e = replace(e, frame=frames.stacked(e.frame, theory, e.fields))
    return e.chart(layers, (255, 150))


def _band(e: Encoding, base: Any, band: tuple[str, str], *, has_bars: bool) -> list[Any]:
    ends = base.encode(**e.between(*band))
    area = ends.mark_area(strokeWidth=0).encode(**e.lit(0.13, 0.02))
    return [area, ends.mark_rule(strokeWidth=1.2).encode(**e.lit(0.55, 0.05))] if has_bars else [area]


def _diagonal(e: Encoding) -> list[Any]:
    """The dashed line of equality over the part that both axes show."""
    sides = ((e.x, e.x_field), (e.y, e.y_field))
    lows, highs = zip(
        *(axis.domain or (e.frame[name].min(), e.frame[name].max()) for axis, name in sides), strict=True
    )
    low, high = plain(max(lows)), plain(min(highs))
    rule = once().mark_rule(strokeDash=[3, 3])
    datum = {name: alt.datum(end) for name, end in (("x", low), ("x2", high), ("y", low), ("y2", high))}
    return [rule.encode(**datum)] if low < high else []


def _table(e: Encoding) -> dict[str, Any]:
    """The channels of boxes in a table."""
    across = e.frame[e.x_field]
    is_said = isinstance(across.dtype, pd.CategoricalDtype)
    order = (
        frames.levels(e.frame, e.x_field) if is_said else [plain(value) for value in sorted(across.unique())]
    )
    flat: dict[str, Any] = {"grid": False, "ticks": False, "domain": False}
    columns, rows = alt.Axis(labelAngle=0, labelOverlap=True, **flat), alt.Axis(labelLimit=160, **flat)
    down, scale = frames.levels(e.frame, e.y_field), alt.Scale(padding=0)
    return {
        "x": alt.X(f"{e.x_field}:O", sort=order, title=e.x.title or None, axis=columns, scale=scale),
        "y": alt.Y(f"{e.y_field}:O", sort=down, title=e.y.title or None, axis=rows, scale=scale),
    }


def _bordered(
    e: Encoding, borders: Mapping[str, Literal["linear", "log"]]
) -> tuple[Encoding, dict[str, Any], dict[str, Any]]:
    """The encoding with the borders of boxes in its frame, the channels of a box, and those of its middle."""
    frame = e.frame
    place: dict[str, Any] = {}
    middle: dict[str, Any] = {}
    for name, axis, field in (("x", e.x, e.x_field), ("y", e.y, e.y_field)):
        kind = borders[field]
        frame = frames.bordered(frame, field, log=kind == "log")
        ends = [plain(frame[f"{field}_from"].min()), plain(frame[f"{field}_to"].max())]
        options: dict[str, Any] = {
            "title": axis.title or None,
            "scale": alt.Scale(type=kind, domain=ends, nice=False, zero=False),
            "axis": alt.Axis(grid=False, format=axis.format or ".4~g", **axis.placed()),
        }
        channel = {"x": alt.X, "y": alt.Y}[name]
        place |= {name: channel(f"{field}_from:Q", **options), f"{name}2": f"{field}_to"}
        middle[name] = channel(f"{field}:Q", **options)
    return replace(e, frame=frame), place, middle


def _curves(names: Sequence[str]) -> list[Any]:
    """Every curve twice, first wide and pale: one colour cannot stand out from dark and bright boxes alike."""
    look = theme.style(names)
    key = alt.Legend(symbolType="stroke", symbolStrokeWidth=2.5, symbolSize=300)
    named: dict[str, Any] = {"shorthand": "line:N", "title": "Theory", "legend": key}
    signs: dict[str, Any] = {
        "stroke": alt.Stroke(scale=alt.Scale(domain=names, range=look.colours), **named),
        "strokeDash": alt.StrokeDash(scale=alt.Scale(domain=names, range=look.dashes), **named),
    }
    curve = alt.Chart().transform_filter("datum.part == 'curve'").encode(x="curve_x:Q")
    line = curve.transform_filter("isValid(datum.curve_y)").encode(y="curve_y:Q", order="curve_x:Q")
    rule = curve.transform_filter("!isValid(datum.curve_y)")
    halo: dict[str, Any] = {"stroke": "white", "opacity": 0.8, "strokeWidth": 5}
    return [
        line.mark_line(clip=True, **halo).encode(detail="line:N"),
        rule.mark_rule(clip=True, **halo),
        line.mark_line(clip=True, strokeWidth=2.2).encode(**signs),
        rule.mark_rule(clip=True, strokeWidth=2.2).encode(**signs),
    ]
