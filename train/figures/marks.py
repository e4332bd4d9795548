"""Marks of figures: tidy frames drawn as lines, ribbons, heat maps, scatters, bars and histograms, a panel a value.

Every chart carries all that a page needs: its data inline, a caption and the colours of its series in `usermeta`, and
two kinds of parameter that a page may drive for all figures at once: `shown_<field>` holds the values of a field that
are shown, `chosen_<field>` the one value that is shown. Colours of the page itself (paper, ink, soft, blank) are
parameters of the config, see `jaxact.theme`, so a page swaps light for dark by swapping the config.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import altair as alt
import numpy as np
import pandas as pd

from jaxact import theme
from train.figures import frames

_PAPER, _SOFT, _BLANK = (alt.ExprRef(name) for name in ("paper", "soft", "blank"))
_LOOK = alt.Config(**theme.LIGHT)  # marks name its parameters
_CROSS = "\N{MULTIPLICATION SIGN}"
# Labels of words: upright, broken at spaces.
_BROKEN = alt.Axis(labelAngle=0, labelExpr="split(replace(datum.label, ' + ', ' +\u00a0'), ' ')")
_WIDEST, _THINNEST = 3.2, 1.4  # pixels: the first line is the widest, so that it shows beneath the last


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: its title and how positions are read from it.

    Attributes:
        title: what is measured, with its unit.
        scale: "linear"; "doubling", logarithmic to base 2; or "decades", for fields that hold a log10
            already.
        domain: the ends of the axis; by default those of the data.
        ticks: where to draw ticks; by default where the library likes.
        format: a d3 number format for the tick labels.
    """

    title: str
    scale: Literal["linear", "doubling", "decades"] = "linear"
    domain: tuple[float, float] | None = None
    ticks: Sequence[float] | None = None
    format: str | None = None

    def x(self, field: str) -> alt.X:
        """The horizontal channel of a field."""
        return alt.X(field, type="quantitative", title=self.title or None, **self._options())

    def y(self, field: str) -> alt.Y:
        """The vertical channel of a field."""
        return alt.Y(field, type="quantitative", title=_wrapped(self.title, 36), **self._options())

    def colour(self, field: str, scheme: str) -> alt.Color:
        """The colour channel of a field, with its gradient."""
        scale: dict[str, Any] = {"scheme": scheme, "zero": False}
        if self.domain is not None:
            scale |= {"domain": list(self.domain), "clamp": True}
        words = self._labels() | {"gradientLength": 150}
        words |= {} if self.ticks is None else {"values": [plain(tick) for tick in self.ticks]}
        title = _wrapped(self.title, 18)
        return alt.Color(
            field, type="quantitative", title=title, scale=alt.Scale(**scale), legend=alt.Legend(**words)
        )

    def _labels(self) -> dict[str, Any]:
        labels: dict[str, Any] = {} if self.format is None else {"format": self.format}
        if self.scale == "decades":
            # Powers as text: a log scale would need the numbers themselves, and 10^400 is not one.
            whole = "datum.value === floor(datum.value)"
            words = f"{whole} ? '1e' + datum.value : format(pow(10, datum.value), '.1e')"
            near = "abs(datum.value) <= 4 ? format(pow(10, datum.value), '.4~r')"
            labels["labelExpr"] = f"{near} : {words}"
        return labels

    def _options(self) -> dict[str, Any]:
        axis = self._labels()
        scale: dict[str, Any] = {"zero": False, "nice": self.domain is None}
        axis |= self.placed()
        if self.domain is not None:
            scale["domain"] = list(self.domain)
        if self.scale == "doubling":
            ends = list(self.domain or self._around_ticks())
            scale = {"type": "log", "base": 2, "domain": ends, "nice": False}
            axis["labelOverlap"] = True
        elif self.scale == "decades" and self.ticks is None:
            axis["tickMinStep"] = 1
        return {"scale": alt.Scale(**scale), "axis": alt.Axis(**axis)}

    def placed(self) -> dict[str, Any]:
        """Where the ticks are, if that is said; Vega drops every second one until no more than `tickCount` are left."""
        ticks = [plain(tick) for tick in self.ticks or ()]
        return {"values": ticks, "tickCount": len(ticks)} if ticks else {}

    def _around_ticks(self) -> tuple[float, float]:
        ticks = self.ticks or (1, 2)
        return min(ticks) / 1.15, max(ticks) * 1.15


class Choice(NamedTuple):
    """One value of a field, chosen by the reader; a page may offer it once for all its figures.

    Attributes:
        field: the column of the frame.
        values: what may be chosen.
        default: what is shown first, and in still pictures.
        label: what the reader is asked.
    """

    field: str
    values: tuple[Any, ...]
    default: Any
    label: str


class Panels(TypedDict, total=False):
    """What every mark takes: its panels, and what a reader may ask of them.

    Attributes:
        column: column that tells panels apart, left to right; None for a single panel.
        row: column that tells panels apart, top to bottom.
        titles: what to call fields in legends, by default their names.
        choices: fields of which the reader chooses one value.
        tooltip: what hovering over a mark shows.
        calculate: Vega expressions of further fields, for the tooltip.
        size: width and height of a panel in pixels.
        is_free: whether every panel has a vertical scale of its own.
    """

    column: str | None
    row: str | None
    titles: Mapping[str, str] | None
    choices: Sequence[Choice]
    tooltip: Sequence[alt.Tooltip]
    calculate: Mapping[str, str] | None
    size: tuple[int, int]
    is_free: bool


def lines(
    frame: pd.DataFrame,
    *,
    x: Axis,
    y: Axis,
    x_field: str,
    y_field: str = "value",
    band: tuple[str, str] | None = ("low", "high"),
    point_field: str | None = "value",
    open_where: str | None = None,
    level: tuple[float, str] | None = None,
    series: str,
    **panels: Unpack[Panels],
) -> alt.FacetChart:
    """One line a series over `x`, one panel a value of `column` (and of `row`); a legend click highlights.

    Lines that coincide are all seen: earlier ones are wider, points stand a little aside of each other.

    Args:
        frame: tidy rows; `series`, `column` and `row` may hold strings, numbers or booleans, and are drawn in order
            of appearance, those of a `Categorical` in its order.
        x: the horizontal axis.
        y: the vertical axis.
        x_field: column of horizontal positions.
        y_field: column that the line follows.
        band: columns of the lower and upper ends, drawn as a pale band and thin bars; or None.
        point_field: column that the points mark; None draws no visible points, only places to hover over.
        open_where: boolean column; where true the point is drawn open.
        level: height and words of a horizontal line.
        series: column that tells lines apart.
        panels: as `Panels` says.
    """
    frame = frames.nominal(frame, (series, *_fields(panels)))
    if point_field is not None:
        frame = frames.dodged(frame, x_field, series, doubling=x.scale == "doubling")
    own = _untitled(y, panels)  # said once beside all rows, where a panel has no room
    signs = _signs(frame, series, panels.get("titles"), has_points=point_field is not None)
    base = alt.Chart().encode(x=x.x(x_field if point_field is None else "at"), color=signs.colour)
    layers = [] if band is None else _band(base, own, band, signs, has_bars=point_field is not None)
    line = base.mark_line().encode(
        y=own.y(y_field), strokeDash=signs.dash, strokeWidth=signs.width, opacity=signs.lit(0.9, 0.1)
    )
    if point_field is None:
        # Dots, because a line through a single position has no length.
        dots = base.mark_circle(size=9).encode(y=own.y(y_field), opacity=signs.lit(0.9, 0.1))
        layers += [line, dots]
    else:
        size_of = 44 if point_field == y_field else 22
        point = _points(base, own.y(point_field), signs, open_where, size_of)
        # A line of its own goes above the points, which would hide it.
        layers += [line, point] if point_field == y_field else [point, line]
    layers.append(_hover(base, own.y(point_field or y_field), panels).add_params(signs.highlight))
    layers += _level(level)
    return _panels(frame, layers, panels, (255, 210), y.title)


def ribbons(
    frame: pd.DataFrame,
    *,
    x: Axis,
    y: Axis,
    x_field: str,
    bands: Sequence[tuple[str, str]],
    middle: str | None = None,
    bars: Sequence[tuple[str, str, str]] = (),
    series: str,
    level: tuple[float, str] | None = None,
    **panels: Unpack[Panels],
) -> alt.FacetChart:
    """Nested bands over `x`, a small panel for each value of `row` and `column`, one colour a series.

    As `lines`, and:

    Attributes:
        bands: columns of the lower and upper end of each band, the widest first.
        middle: column of the line in the middle, if any.
        bars: (low, high, at): spread of an edge, a thin bar from `low` to `high` with a tick at `at`.
    """
    frame = frames.nominal(frame, (series, *_fields(panels)))
    own = _untitled(y, panels)
    signs = _signs(frame, series, panels.get("titles"), on_top=True)
    base = alt.Chart().encode(x=x.x(x_field), color=signs.colour)
    layers = _level(level)
    for low, high in bands:
        edges = (base.mark_line(strokeWidth=0.8).encode(y=own.y(end)) for end in (low, high))
        layers += [edge.encode(opacity=signs.lit(0.7, 0.05)) for edge in edges]
        ends = base.encode(y=own.y(low), y2=alt.Y2(high))
        layers.append(ends.mark_area(strokeWidth=0).encode(opacity=signs.lit(0.16, 0.03)))
        if frame[x_field].nunique() == 1:  # a band over a single position has no area
            layers.append(ends.mark_rule(strokeWidth=6).encode(opacity=signs.lit(0.35, 0.04)))
    for low, high, at in bars:
        edge = base.encode(y=own.y(low), y2=alt.Y2(high), opacity=signs.lit(0.9, 0.1))
        layers.append(edge.mark_rule(strokeWidth=1))
        layers.append(base.mark_tick(size=9, thickness=2, orient="horizontal").encode(y=own.y(at)))
    if middle is not None:
        line = base.mark_line(strokeWidth=1.8).encode(y=own.y(middle), opacity=signs.lit(1, 0.1))
        layers.append(line)
    layers += [
        _hover(base, own.y(end), panels) for end in dict.fromkeys(end for band in bands for end in band)
    ]
    dots = base.mark_circle(size=22).encode(y=own.y(middle or bands[0][1]), tooltip=_tips(panels))
    layers.append(dots.encode(opacity=signs.lit(1, 0.1)).add_params(signs.highlight))
    return _panels(frame, layers, panels, (255, 84), y.title, spacing=8)


def heat_map(
    frame: pd.DataFrame,
    *,
    x: Axis,
    y: Axis,
    x_field: str,
    y_field: str,
    value: Axis,
    value_field: str = "value",
    text_field: str | None = "text",
    borders: Mapping[str, Literal["linear", "log"]] | None = None,
    curves: pd.DataFrame | None = None,
    scheme: str = "viridis",
    **panels: Unpack[Panels],
) -> alt.FacetChart:
    """A coloured box for each `x` and `y` with its number inside; where there is none, a grey box with a cross.

    As `lines`, and:

    Attributes:
        x_field: column of the boxes' columns, left to right in increasing order.
        y_field: column of the boxes' rows, top to bottom in order of appearance.
        value: the colour's axis.
        value_field: column of the colour; NaN is a grey box with a cross.
        text_field: column of the words in the box, None for none.
        borders: for `x_field` and `y_field` both, whether boxes meet halfway between positions or between their
            logarithms: axes are then quantitative and can carry curves. By default boxes are a table.
        curves: rows of `x_field`, `y_field`, `column` and "line", the curve's name, drawn over boxes with borders; a
            vertical line where `y_field` is NaN.
    """
    fields = _fields(panels)
    frame = frames.nominal(frame, fields).assign(part="box")
    colour = value.colour(value_field, scheme)
    if borders:
        boxes = _bordered_boxes(frame, x, y, x_field, y_field, borders)
        frame, place, ends, middle = boxes
    else:
        frame, place = frames.nominal(frame, (y_field,)), _table(frame, x, y, x_field, y_field)
        ends, middle = {}, place
    if curves is not None:
        curves = curves.rename(columns={x_field: "curve_x", y_field: "curve_y"}).assign(part="curve")
        levels = {name: frame[name].cat.categories for name in fields}
        frame = pd.concat([frame, curves], ignore_index=True)
        frame = frame.assign(**{name: frames.ordered(frame[name], list(levels[name])) for name in fields})
    box = alt.Chart().transform_filter("datum.part == 'box'")
    valued, empty = f"isValid(datum['{value_field}'])", f"!isValid(datum['{value_field}'])"
    rect = box.mark_rect(stroke=_PAPER, strokeWidth=1).encode(**place, **ends, tooltip=_tips(panels))
    layers: list[Any] = [
        rect.transform_filter(valued).encode(color=colour),
        rect.transform_filter(empty).encode(fill=alt.value(_BLANK)),
        box.transform_filter(empty).mark_text(text=_CROSS, fontSize=13).encode(**middle),
    ]
    if text_field is not None:
        bright = f"luminance(scale('color', datum['{value_field}'])) > 0.18"
        ink = alt.condition(bright, alt.value("black"), alt.value("white"))
        number = box.transform_filter(valued).mark_text(fontSize=12)
        layers.append(number.encode(**middle, text=alt.Text(text_field, type="nominal"), color=ink))
    if curves is not None:
        layers += _curves(x, y, frames.levels(curves, "line"), panels.get("titles"))
    return _panels(frame, layers, panels, (200, 230), "", shares_axes=True)


def scatter(
    frame: pd.DataFrame,
    *,
    x: Axis,
    y: Axis,
    x_field: str,
    y_field: str = "value",
    bars: tuple[str, str] | None = ("low", "high"),
    open_where: str | None = None,
    diagonal: bool = False,
    level: tuple[float, str] | None = None,
    series: str,
    **panels: Unpack[Panels],
) -> alt.FacetChart:
    """A point for each row, with the bar of its spread.

    As `lines`, and:

    Attributes:
        bars: columns of the ends of a vertical bar through each point; or None.
        diagonal: draw the line on which both are equal.
    """
    frame = frames.nominal(frame, (series, *_fields(panels)))
    own = _untitled(y, panels)
    signs = _signs(frame, series, panels.get("titles"))
    base = alt.Chart().encode(x=x.x(x_field), color=signs.colour)
    layers = _level(level) + (_diagonal(frame, x, y, x_field, y_field) if diagonal else [])
    if bars is not None:
        bar = base.mark_rule(strokeWidth=1.2).encode(y=own.y(bars[0]), y2=alt.Y2(bars[1]))
        layers.append(bar.encode(opacity=signs.lit(0.6, 0.05)))
    layers.append(_points(base, own.y(y_field), signs, open_where, 55))
    layers.append(_hover(base, own.y(y_field), panels).add_params(signs.highlight))
    return _panels(frame, layers, panels, (250, 240), y.title)


def bars(
    frame: pd.DataFrame,
    *,
    x: Axis,
    y: Axis,
    x_field: str,
    y_field: str = "value",
    whiskers: tuple[str, str] | None = ("low", "high"),
    level: tuple[float, str] | None = None,
    series: str,
    **panels: Unpack[Panels],
) -> alt.FacetChart:
    """A bar for each value of `x_field` and each series beside it, from zero, with the whiskers of its spread.

    As `lines`, and:

    Attributes:
        x_field: column of the bars' groups; words, numbers or booleans.
        whiskers: columns of the ends of a thin bar over each; or None.
    """
    frame = frames.nominal(frame, (series, x_field, *_fields(panels)))
    own = _untitled(y, panels)
    signs = _signs(frame, series, panels.get("titles"))
    heights = own.y(y_field)
    if y.domain is None and y.scale == "linear":
        heights = heights.scale(zero=True)  # the length of a bar is read
    groups = alt.X(
        x_field, type="nominal", title=x.title or None, sort=frames.levels(frame, x_field), axis=_BROKEN
    )
    base = alt.Chart().encode(
        x=groups, xOffset=alt.XOffset(series, type="nominal", sort=frames.levels(frame, series))
    )
    bar = base.mark_bar(clip=True).encode(y=heights, color=signs.colour, tooltip=_tips(panels))
    layers: list[Any] = [bar.encode(opacity=signs.lit(0.9, 0.15)).add_params(signs.highlight)]
    if whiskers is not None:
        layers.append(
            base.mark_rule(strokeWidth=1.4).encode(
                y=alt.Y(whiskers[0], type="quantitative"), y2=alt.Y2(whiskers[1])
            )
        )
    layers += _level(level)
    return _panels(frame, layers, panels, (255, 210), y.title)


def histogram(
    frame: pd.DataFrame,
    *,
    x: Axis,
    y: Axis,
    theory: pd.DataFrame | None = None,
    series: str,
    **panels: Unpack[Panels],
) -> alt.FacetChart:
    """Bars of `value` between `from` and `to`, as `frames.binned` gives them, and a density that theory predicts.

    As `lines`, and:

    Attributes:
        theory: rows of `at` and `density`, and of those of `series`, `column` and `row` that it depends on.
    """
    fields = [series, *_fields(panels)]
    frame = frames.nominal(frame, fields)
    if theory is not None:
        levels = {name: list(frame[name].cat.categories) for name in fields}
        known = [name for name in fields if name in theory]
        rest = frame[[name for name in fields if name not in known]].drop_duplicates()
        frame = pd.concat([frame, theory.merge(rest, how="cross") if len(rest.columns) else theory])
        frame = frame.assign(**{name: frames.ordered(frame[name], levels[name]) for name in fields})
    own = _untitled(y, panels)
    signs = _signs(frame, series, panels.get("titles"))
    base = alt.Chart().encode(color=signs.colour)
    box = base.mark_rect(strokeWidth=0).encode(
        x=x.x("from"),
        x2=alt.X2("to"),
        y=own.y("value").scale(zero=True),
        y2=alt.Y2(datum=0),
        tooltip=_tips(panels),
    )
    box = box.transform_filter("isValid(datum.from)").encode(opacity=signs.lit(0.55, 0.05))
    layers = [box.add_params(signs.highlight)]
    if theory is not None:
        curve = base.transform_filter("isValid(datum.at)").mark_line(clip=True)
        layers.append(curve.encode(x=x.x("at"), y=own.y("density"), strokeWidth=signs.width))
    return _panels(frame, layers, panels, (255, 150), y.title)


class _Signs(NamedTuple):
    """The channels that tell a series apart, and the highlight of a legend click."""

    colour: alt.Color
    fill: alt.Fill
    shape: alt.Shape
    dash: alt.StrokeDash
    width: Any
    highlight: alt.Parameter

    def lit(self, bright: float, dim: float) -> Any:
        return alt.condition(self.highlight, alt.value(bright), alt.value(dim))


def _signs(
    frame: pd.DataFrame,
    series: str,
    titles: Mapping[str, str] | None,
    *,
    has_points: bool = True,
    on_top: bool = False,
) -> _Signs:
    every = theme.style(
        [str(level) for level in frame[series].cat.categories]
    )  # absent ones keep their looks
    present = set(frames.levels(frame, series))
    signs: list[list[Any]] = [
        [sign for name, sign in zip(every.names, row, strict=True) if name in present] for row in every
    ]
    names, colours, shapes, dashes = signs
    named: dict[str, Any] = {"type": "nominal", "title": _wrapped((titles or {}).get(series, series), 24)}
    key = alt.Legend(symbolOpacity=1) if names != [""] else None
    if on_top:
        key = alt.Legend(orient="top", title=None, symbolType="square", direction="horizontal", columns=4)
    palette = alt.Scale(domain=names, range=colours)
    stroke = alt.Legend(
        symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2, symbolSize=250, labelOffset=8
    )
    # Legends of one domain merge into one, or all into none: a reversed domain keeps the dashes, which would fray the
    # points of the legend, out of it.
    step = -1 if has_points else 1
    dash = alt.Scale(domain=names[::step], range=[list(each) for each in dashes[::step]])
    widths = np.linspace(_WIDEST, _THINNEST, len(names)).round(2).tolist()
    wide = alt.Scale(domain=names[::-1], range=widths[::-1])  # apart from the legend, as above
    return _Signs(
        colour=alt.Color(series, scale=palette, legend=key, **named),
        fill=alt.Fill(series, scale=palette, **named),
        shape=alt.Shape(series, scale=alt.Scale(domain=names, range=shapes), **named),
        dash=alt.StrokeDash(series, scale=dash, legend=None if has_points else stroke, **named),
        # A scale of one width makes the legend lay its only symbol over the words (vega 6).
        width=alt.StrokeWidth(series, scale=wide, legend=None, type="ordinal")
        if len(names) > 1
        else alt.value(2.0),
        highlight=alt.selection_point(name=f"highlight_{series}", fields=[series], bind="legend"),
    )


def _band(base: Any, y: Axis, band: tuple[str, str], signs: _Signs, *, has_bars: bool) -> list[Any]:
    ends = base.encode(y=y.y(band[0]), y2=alt.Y2(band[1]))
    area = ends.mark_area(strokeWidth=0).encode(opacity=signs.lit(0.13, 0.02))
    bar = ends.mark_rule(strokeWidth=1.2).encode(opacity=signs.lit(0.55, 0.05))
    return [area, bar] if has_bars else [area]


def _points(base: Any, y: alt.Y, signs: _Signs, open_where: str | None, size: int) -> Any:
    fill = signs.fill
    if open_where is not None:
        fill = alt.condition(f"datum['{open_where}']", alt.value(_PAPER), fill)
    mark = base.mark_point(size=size, strokeWidth=1.6).encode(y=y, shape=signs.shape)
    return mark.encode(fill=fill, opacity=signs.lit(1, 0.12))


def _hover(base: Any, y: alt.Y, panels: Panels) -> Any:
    return base.mark_point(filled=True, size=100).encode(y=y, tooltip=_tips(panels), opacity=alt.value(0))


def _tips(panels: Panels) -> list[alt.Tooltip]:
    return list(panels.get("tooltip", ()))


def _fields(panels: Panels) -> list[str]:
    return [name for name in (panels.get("column"), panels.get("row")) if name is not None]


def _untitled(y: Axis, panels: Panels) -> Axis:
    """The axis of one panel: the title is said once beside all rows, where a small panel has no room for it."""
    return y if panels.get("row") is None else replace(y, title="")


def _once() -> alt.Chart:
    return alt.Chart().transform_aggregate(rows="count()")


def _level(level: tuple[float, str] | None) -> list[Any]:
    if level is None:
        return []
    once = _once().encode(y=alt.datum(level[0]))
    beside: dict[str, Any] = {"text": level[1], "align": "left", "dx": 4, "dy": -6}
    halo = once.mark_text(stroke=_PAPER, strokeWidth=3, **beside).encode(x=alt.value(0))
    words = once.mark_text(**beside).encode(x=alt.value(0))
    return [once.mark_rule(strokeDash=[3, 3]), halo, words]


def _diagonal(frame: pd.DataFrame, x: Axis, y: Axis, x_field: str, y_field: str) -> list[Any]:
    ends = [axis.domain or (frame[f].min(), frame[f].max()) for axis, f in ((x, x_field), (y, y_field))]
    low, high = (plain(pick(end)) for pick, end in zip((max, min), zip(*ends, strict=True), strict=True))
    rule = _once().mark_rule(strokeDash=[3, 3])
    datum = {name: alt.datum(end) for name, end in (("x", low), ("x2", high), ("y", low), ("y2", high))}
    return [rule.encode(**datum)] if low < high else []


def _table(frame: pd.DataFrame, x: Axis, y: Axis, x_field: str, y_field: str) -> dict[str, Any]:
    across = frame[x_field]
    order = (
        frames.levels(frame, x_field)
        if isinstance(across.dtype, pd.CategoricalDtype)
        else [plain(value) for value in sorted(across.unique())]
    )
    flat: dict[str, Any] = {"grid": False, "ticks": False, "domain": False}
    columns = alt.Axis(labelAngle=0, labelOverlap=True, **flat)
    rows = alt.Axis(labelLimit=160, **flat)
    title: dict[str, Any] = {"type": "ordinal", "scale": alt.Scale(padding=0)}
    return {
        "x": alt.X(x_field, sort=order, title=x.title or None, axis=columns, **title),
        "y": alt.Y(y_field, sort=frames.levels(frame, y_field), title=y.title or None, axis=rows, **title),
    }


def _bordered_boxes(
    frame: pd.DataFrame,
    x: Axis,
    y: Axis,
    x_field: str,
    y_field: str,
    borders: Mapping[str, Literal["linear", "log"]],
) -> tuple[pd.DataFrame, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The frame with its borders, and the channels of a box, of its far ends, and of its middle."""
    place: dict[str, Any] = {}
    ends: dict[str, Any] = {}
    middle: dict[str, Any] = {}
    for name, axis, field in (("x", x, x_field), ("y", y, y_field)):
        log = borders[field] == "log"
        frame = frames.bordered(frame, field, log=log)
        scale = alt.Scale(
            type="log" if log else "linear",
            domain=[plain(frame[f"{field}_from"].min()), plain(frame[f"{field}_to"].max())],
            nice=False,
            zero=False,
        )
        ticks = alt.Axis(grid=False, format=axis.format or ".4~g", **axis.placed())
        channel = {"x": alt.X, "y": alt.Y}[name]
        options: dict[str, Any] = {"type": "quantitative", "scale": scale, "axis": ticks}
        place[name] = channel(f"{field}_from", title=axis.title or None, **options)
        middle[name] = channel(field, title=axis.title or None, **options)
        ends[f"{name}2"] = {"x": alt.X2, "y": alt.Y2}[name](f"{field}_to")
    return frame, place, ends, middle


def _curves(x: Axis, y: Axis, names: Sequence[str], titles: Mapping[str, str] | None) -> list[Any]:
    """Every curve twice, first wide and pale: one colour cannot stand out from dark and bright boxes alike."""
    look = theme.style(names)
    title = (titles or {}).get("line", "Theory")
    key = alt.Legend(symbolType="stroke", symbolStrokeWidth=2.5, symbolSize=300)
    colours = alt.Scale(domain=list(names), range=list(look.colours))
    dashes = alt.Scale(domain=list(names), range=[list(dash) for dash in look.dashes])
    stroke = alt.Stroke("line", type="nominal", title=title, scale=colours, legend=key)
    dash = alt.StrokeDash("line", type="nominal", title=title, scale=dashes, legend=key)
    curve = alt.Chart().transform_filter("datum.part == 'curve'")
    curve = curve.encode(x=alt.X("curve_x", type="quantitative"))
    line = curve.transform_filter("isValid(datum.curve_y)").encode(
        y=alt.Y("curve_y", type="quantitative"), order=alt.Order("curve_x", type="quantitative")
    )
    rule = curve.transform_filter("!isValid(datum.curve_y)")
    halo: dict[str, Any] = {"stroke": "white", "opacity": 0.8, "strokeWidth": 5}
    detail = alt.Detail("line", type="nominal")
    return [
        line.mark_line(clip=True, **halo).encode(detail=detail),
        rule.mark_rule(clip=True, **halo),
        line.mark_line(clip=True, strokeWidth=2.2).encode(stroke=stroke, strokeDash=dash),
        rule.mark_rule(clip=True, strokeWidth=2.2).encode(stroke=stroke, strokeDash=dash),
    ]


def _panels(
    frame: pd.DataFrame,
    layers: Sequence[Any],
    panels: Panels,
    size: tuple[int, int],
    y_title: str,
    *,
    spacing: int = 14,
    shares_axes: bool = False,
) -> alt.FacetChart:
    if unknown := sorted(set(panels) - set(Panels.__annotations__)):
        raise TypeError(
            f"a mark takes {', '.join(Panels.__annotations__)} beside its own, got {', '.join(unknown)}."
        )
    if panels.get("column") is None:
        frame = frames.nominal(frame.assign(one_panel=""), ["one_panel"])
    data, expressions = frames.inline(frame)
    width, height = panels.get("size", size)
    facet = _facet(frame, panels, y_title, shares_axes=shares_axes)
    choices = panels.get("choices", ())
    expressions |= panels.get("calculate") or {}
    transforms: list[Any] = [
        alt.CalculateTransform(calculate=expression, **{"as": name})
        for name, expression in expressions.items()
    ]
    transforms += [alt.FilterTransform(f"datum['{c.field}'] == chosen_{c.field}") for c in choices]
    if panels.get("is_free"):
        facet["resolve"] = alt.Resolve(scale=alt.ScaleResolveMap(y="independent"))
    layered = alt.layer(*layers, width=width, height=height)
    chart = alt.FacetChart(data=data, spec=layered, spacing=spacing, config=_LOOK, **facet)
    return _extended(chart, [_menu(choice) for choice in choices], transforms)


def _facet(frame: pd.DataFrame, panels: Panels, y_title: str, *, shares_axes: bool) -> dict[str, Any]:
    column, row = panels.get("column") or "one_panel", panels.get("row")
    columns = frames.levels(frame, column)
    across: dict[str, Any] = {"labelFontWeight": "bold", "labelFontSize": 12, "title": None}
    chosen = [
        (f"'{c.field} ' + " if _is_number(c.default) else "") + f"chosen_{c.field}"
        for c in panels.get("choices", ())
    ]
    if chosen:
        across["labelExpr"] = "[datum.label, " + " + ', ' + ".join(chosen) + "]"
    header = alt.Header(**across)
    if row is None and not (shares_axes and len(columns) <= 3):
        # A grid of its own rather than a row, so that many panels wrap.
        wrapped = alt.Facet(column, type="nominal", sort=columns, header=header)
        return {"facet": wrapped, "columns": min(len(columns), 3) or 1}
    facets: dict[str, Any] = {"column": alt.Column(column, type="nominal", sort=columns, header=header)}
    if row is not None:
        down = alt.Header(
            labelAngle=0, labelAlign="left", labelFontSize=12, titleFontSize=12, titleFontWeight="normal",
            title=y_title or None,
        )  # fmt: skip
        facets["row"] = alt.Row(row, type="nominal", sort=frames.levels(frame, row), header=down)
    return {"facet": alt.FacetMapping(**facets)}


def _menu(choice: Choice) -> alt.Parameter:
    menu = alt.binding_select(options=[plain(value) for value in choice.values], name=f"{choice.label} ")
    return alt.param(name=f"chosen_{choice.field}", value=plain(choice.default), bind=menu)


def shown(chart: alt.FacetChart, fields: Mapping[str, Sequence[Any]]) -> alt.FacetChart:
    """Let a page hide values: adds for each field the parameter `shown_<field>` and the filter that obeys it.

    Args:
        chart: what a mark returned.
        fields: the values of each field.
    """
    parameters = [
        alt.param(name=f"shown_{field}", value=[plain(value) for value in values])
        for field, values in fields.items()
    ]
    filters = [alt.FilterTransform(f"indexof(shown_{field}, datum['{field}']) >= 0") for field in fields]
    return _extended(chart, parameters, filters)


def _extended(
    chart: alt.FacetChart, parameters: Sequence[alt.Parameter], transforms: Sequence[Any]
) -> alt.FacetChart:
    """Add parameters and transforms in one go: altair's own methods copy the whole chart for each."""
    more = {"params": [parameter.param for parameter in parameters], "transform": list(transforms)}
    old = {name: [] if chart[name] is alt.Undefined else list(chart[name]) for name in more}
    every = {name: old[name] + more[name] for name in more}
    return chart.properties(**{name: each for name, each in every.items() if each})


def finish(
    chart: alt.FacetChart,
    *,
    title: str,
    subtitle: str,
    caption: str,
    colours: Mapping[str, Mapping[str, str]] | None = None,
) -> alt.FacetChart:
    """Give a chart its title, its caption, its description for those who do not see it, and the common look.

    Args:
        chart: what a mark returned.
        title: the question it answers or the message it bears.
        subtitle: what lines and bands are.
        caption: what to see, for the page.
        colours: colour of each value of each field, for a page's own keys.
    """
    keys = {field: dict(names) for field, names in (colours or {}).items()}
    return chart.properties(
        title=alt.TitleParams(text=title, subtitle=subtitle),
        description=f"{title} {caption}",
        usermeta={"caption": caption, "colours": keys},
        config=_LOOK,
    )


def plain(value: Any) -> Any:
    """A number as JSON likes it: whole ones as integers, no numpy scalars."""
    if isinstance(value, np.generic):
        value = value.item()
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _wrapped(title: str, width: int) -> list[str] | None:
    """A title in lines, for a narrow place."""
    return textwrap.wrap(title, width) or None
