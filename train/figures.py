"""The vocabulary of figures: styled series, bands and filters drawn from tidy frames of a labelled result.

A figure is an altair chart that carries everything a page needs: its data inline, a caption and the colours
of its series in `usermeta`, and two kinds of parameter that a page may drive for all figures at once.
`shown_<field>` holds the values of a field that are shown, `chosen_<field>` the one value that is shown.
"""

import json
import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

__all__ = [
    "Axis",
    "Choice",
    "Style",
    "decades",
    "finish",
    "inline",
    "label",
    "lines",
    "readout",
    "ribbons",
    "shown",
    "spread",
    "style",
    "thin",
    "tidy",
]

# Okabe and Ito (2008), "Color universal design"; the yellow is left out, it is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#333333")
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
_DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (5, 5))
_FONT = "system-ui, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"


class Style(NamedTuple):
    """How the members of a series are told apart, by three signs so that none rests on colour alone.

    Attributes:
        names: the members, in legend order.
        colours: a CSS colour for each.
        shapes: a mark shape for each.
        dashes: a dash pattern for each.
    """

    names: tuple[str, ...]
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    dashes: tuple[tuple[int, ...], ...]


def style(names: Sequence[str]) -> Style:
    """Give each name a colour-blind safe colour, a shape and a dash.

    The three cycles have lengths 7, 6 and 5, so 210 names get distinct combinations; more names repeat.

    >>> style(["relu", "tanh"]).colours
    ('#0072B2', '#D55E00')
    """
    names = tuple(dict.fromkeys(str(name) for name in names))
    count = range(len(names))
    return Style(
        names,
        tuple(_COLOURS[i % len(_COLOURS)] for i in count),
        tuple(_SHAPES[i % len(_SHAPES)] for i in count),
        tuple(_DASHES[i % len(_DASHES)] for i in count),
    )


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
        return alt.Y(field, type="quantitative", title=self.title or None, **self._options())

    def _options(self) -> dict[str, Any]:
        axis: dict[str, Any] = {}
        scale: dict[str, Any] = {"zero": False, "nice": self.domain is None}
        if self.ticks is not None:
            axis["values"] = [_plain(tick) for tick in self.ticks]
        if self.format is not None:
            axis["format"] = self.format
        if self.domain is not None:
            scale["domain"] = list(self.domain)
        if self.scale == "doubling":
            scale = {
                "type": "log",
                "base": 2,
                "domain": list(self.domain or self._around_ticks()),
                "nice": False,
            }
            axis["labelOverlap"] = True
        elif self.scale == "decades":
            # Powers as text: a log scale would need the numbers themselves, and 10^400 is not one.
            whole = "datum.value === floor(datum.value)"
            words = f"{whole} ? '1e' + datum.value : format(pow(10, datum.value), '.1e')"
            near = "abs(datum.value) <= 3 ? format(pow(10, datum.value), '.2~r')"
            axis |= {"labelExpr": f"{near} : {words}", "tickMinStep": 1}
        return {"scale": alt.Scale(**scale), "axis": alt.Axis(**axis)}

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


def label(variable: xr.DataArray) -> str:
    """The axis label of a variable: its long name and its unit.

    >>> label(xr.DataArray(0.0, attrs={"long_name": "run time", "units": "s"}))
    'Run time (s)'
    """
    name = str(variable.attrs.get("long_name") or variable.name or "value").replace("_", " ")
    units = str(variable.attrs.get("units", ""))
    name = name[:1].upper() + name[1:]
    said = units in ("", "1", "dimensionless") or units.lower().rstrip("s") in name.lower().split()
    return name if said or f"({units})" in name else f"{name} ({units})"


def spread(
    values: xr.DataArray, over: Hashable | Sequence[Hashable], *, centre: Literal["mean", "median"] = "median"
) -> xr.Dataset:
    """The centre of a sample and its ends, leaving out what is NaN.

    Args:
        values: any array of numbers.
        over: the dimension or dimensions that the sample lies along.
        centre: the statistic that stands for the sample.

    Returns:
        Dataset of `value`, `low` (minimum), `high` (maximum) and `count` (numbers that are not NaN); the
        first three are NaN where the count is 0.

    >>> s = spread(xr.DataArray([1.0, 2.0, 6.0, np.nan], dims="seed"), "seed", centre="mean")
    >>> float(s["value"]), float(s["low"]), float(s["high"]), int(s["count"])
    (3.0, 1.0, 6.0, 3)
    """
    dims = [over] if isinstance(over, str) or not isinstance(over, Sequence) else list(over)
    values = values.astype(float)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # an empty sample is an answer here: NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        parts = {
            "value": values.mean(dims) if centre == "mean" else values.median(dims),
            "low": values.min(dims),
            "high": values.max(dims),
            "count": values.notnull().sum(dims),
        }
    return xr.Dataset(parts)


def tidy(dataset: xr.Dataset, *, require: Sequence[str] = ("value",)) -> pd.DataFrame:
    """One row for each combination of coordinates at which any required variable is not NaN.

    >>> tidy(xr.Dataset({"value": ("depth", [1.0, np.nan])}, {"depth": [4, 8]}))["depth"].tolist()
    [4]
    """
    frame = dataset.to_dataframe().reset_index()
    return frame.dropna(subset=list(require), how="all").reset_index(drop=True)


def decades(
    frame: pd.DataFrame, columns: Sequence[str], *, floor: float = -np.inf, ceiling: float = np.inf
) -> tuple[pd.DataFrame, tuple[float, float]]:
    """Replace columns by their log10, with zeros and infinities drawn at the edges.

    Args:
        frame: holds the columns, all numbers >= 0 or NaN.
        columns: the ones to replace.
        floor: log10 below which a value is drawn at the lower edge.
        ceiling: log10 above which a value is drawn at the upper edge.

    Returns:
        The new frame and the two edges. Zeros and numbers below `floor` lie on the lower edge, which is
        `floor` or, without one, a decade below the smallest positive number; infinities mirror them. An edge
        that nothing lies on is -inf or inf.

    >>> frame, edges = decades(pd.DataFrame({"s": [0.0, 0.1, 10.0]}), ["s"])
    >>> frame["s"].tolist(), edges
    ([-2.0, -1.0, 1.0], (-2.0, inf))
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {name: np.log10(frame[name].to_numpy(dtype=float)) for name in columns}
    return clip_decades(frame, logs, floor=floor, ceiling=ceiling)


def clip_decades(
    frame: pd.DataFrame, logs: Mapping[str, np.ndarray], *, floor: float = -np.inf, ceiling: float = np.inf
) -> tuple[pd.DataFrame, tuple[float, float]]:
    """As `decades`, for columns that hold a log10 already."""
    every = np.concatenate([np.ravel(column) for column in logs.values()]) if logs else np.empty(0)
    finite = every[np.isfinite(every)]
    low, high = -math.inf, math.inf
    if np.any(every < floor) or np.any(np.isneginf(every)):
        low = floor if math.isfinite(floor) else math.floor(finite.min(initial=0.0)) - 1.0
    if np.any(every > ceiling) or np.any(np.isposinf(every)):
        high = ceiling if math.isfinite(ceiling) else math.ceil(finite.max(initial=0.0)) + 1.0
    return frame.assign(**{name: np.clip(column, low, high) for name, column in logs.items()}), (low, high)


def readout(field: str, edges: tuple[float, float] = (-math.inf, math.inf)) -> str:
    """A Vega expression: the number whose log10 a field holds, as text for a tooltip."""
    value = f"datum['{field}']"
    power = f"abs({value}) < 300 ? format(pow(10, {value}), '.3g') : '1e' + format({value}, '.0f')"
    if math.isfinite(edges[0]):
        power = f"{value} <= {edges[0]} + 1e-6 ? 'at most {_power(edges[0])}' : ({power})"
    if math.isfinite(edges[1]):
        power = f"{value} >= {edges[1]} - 1e-6 ? 'at least {_power(edges[1])}' : ({power})"
    return f"isValid({value}) ? ({power}) : ''"


def _power(log10: float) -> str:
    return f"1e{log10:g}" if log10 == round(log10) or abs(log10) > 300 else f"{10**log10:.0e}"


def thin(values: Sequence[float] | np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the values, evenly spaced by rank, the first and last always among them.

    >>> thin(np.arange(1, 101), 4).tolist()
    [1, 34, 67, 100]
    """
    values = np.asarray(values)
    if len(values) <= most:
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, most).round().astype(int))]


def inline(frame: pd.DataFrame, *, digits: int = 5) -> tuple[alt.InlineData, dict[str, str]]:
    r"""A frame as compact inline data, and the Vega expressions that complete it.

    The data is text in CSV, numbers to so many significant digits, NaN as an empty field, the levels of a
    categorical column as their index. That is a fifth of the size of rows in JSON; and altair copies a
    chart's data a hundred times while it is put together, which for a string is copying a reference.

    Args:
        frame: one mark a row; no column may end in "_index".
        digits: how many significant digits numbers keep.

    Returns:
        The data, and the expression of each categorical column by its name.

    Raises:
        ValueError: a column holds an infinity, which no axis can show; see `decades`.

    >>> data, expressions = inline(pd.DataFrame({"a": [1 / 3, np.nan], "b": pd.Categorical(["x", "y"])}))
    >>> data["values"], expressions
    ('a,b_index\n0.33333,0\n,1\n', {'b': '["x", "y"][datum.b_index]'})
    """
    columns: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    expressions: dict[str, str] = {}
    for name, column in ((str(name), frame[name]) for name in frame.columns):
        kind = "string"
        if isinstance(column.dtype, pd.CategoricalDtype):
            expressions[name] = (
                f"{json.dumps([str(level) for level in column.cat.categories])}[datum.{name}_index]"
            )
            name, column, kind = f"{name}_index", column.cat.codes, "number"
        elif pd.api.types.is_bool_dtype(column):
            column, kind = column.astype(int), "boolean"  # Vega reads the text "False" as true
        elif pd.api.types.is_numeric_dtype(column):
            kind = "number"
            if np.isinf(column.to_numpy(dtype=float)).any():
                raise ValueError(
                    f"column {name!r} of a figure's frame holds an infinity; `decades` draws those."
                )
        columns[name], kinds[name] = column, kind
    text = pd.DataFrame(columns).to_csv(index=False, float_format=f"%.{digits}g", lineterminator="\n")
    return alt.InlineData(values=text, format=alt.CsvDataFormat(type="csv", parse=kinds)), expressions


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _plain(value: Any) -> Any:
    """A number as JSON likes it: whole ones as integers, no numpy scalars."""
    if isinstance(value, np.generic):
        value = value.item()
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


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
    column: str,
    row: str | None = None,
    choices: Sequence[Choice] = (),
    tooltip: Sequence[alt.Tooltip] = (),
    calculate: Mapping[str, str] | None = None,
    size: tuple[int, int] = (255, 210),
) -> alt.FacetChart:
    """One line a series over `x`, one panel a value of `column` (and of `row`); a legend click highlights.

    Args:
        frame: tidy rows; `series`, `column` and `row` are drawn in order of appearance, a `Categorical`'s
            order first.
        x: the horizontal axis.
        y: the vertical axis.
        x_field: column of horizontal positions.
        y_field: column that the line follows.
        band: columns of the lower and upper ends, drawn as a pale band and thin bars; or None.
        point_field: column that the points mark; None draws no visible points, only places to hover over.
        open_where: boolean column; where true the point is drawn open.
        level: height and words of a horizontal line.
        series: column that tells lines apart.
        column: column that tells panels apart, left to right.
        row: column that tells panels apart, top to bottom.
        choices: fields of which the reader chooses one value.
        tooltip: what hovering over a point shows.
        calculate: Vega expressions of further fields, for the tooltip.
        size: width and height of a panel in pixels.
    """
    y_title = y.title
    if row is not None:
        y = replace(y, title="")  # said once beside all rows, where a small panel has no room for it
    look = style(_levels(frame, series))
    highlight = alt.selection_point(name=f"highlight_{series}", fields=[series], bind="legend")
    domain = list(look.names)
    palette = alt.Scale(domain=domain, range=list(look.colours))
    key = alt.Legend(symbolOpacity=1)
    colour = alt.Color(series, type="nominal", title=series, scale=palette, legend=key)
    shape = alt.Shape(
        series, type="nominal", title=series, scale=alt.Scale(domain=domain, range=list(look.shapes))
    )
    marked = point_field is not None
    dash_domain, dash_range = domain, [list(dash) for dash in look.dashes]
    if marked:
        # Legends of one domain merge into one, or all into none: a reversed domain keeps the dashes, which
        # would fray the points of the legend, out of it.
        dash_domain, dash_range = domain[::-1], dash_range[::-1]
    dash = alt.StrokeDash(
        series,
        type="nominal",
        title=series,
        scale=alt.Scale(domain=dash_domain, range=dash_range),
        legend=None if marked else alt.Legend(symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2),
    )
    base = alt.Chart().encode(x=x.x(x_field), color=colour)

    hover = base.mark_point(filled=True, size=100).encode(tooltip=list(tooltip), opacity=alt.value(0))
    layers: list[alt.Chart] = []
    if band is not None:
        ends = base.encode(y=y.y(band[0]), y2=alt.Y2(band[1]))
        layers.append(ends.mark_area(strokeWidth=0).encode(opacity=_lit(highlight, 0.13, 0.02)))
        if point_field is not None:
            layers.append(ends.mark_rule(strokeWidth=1.2).encode(opacity=_lit(highlight, 0.55, 0.05)))
    line = base.mark_line(strokeWidth=2).encode(
        y=y.y(y_field), strokeDash=dash, opacity=_lit(highlight, 0.9, 0.1)
    )
    if point_field is None:
        # Dots, because a line through a single position has no length.
        dots = base.mark_circle(size=9).encode(y=y.y(y_field), opacity=_lit(highlight, 0.9, 0.1))
        layers += [line, dots, hover.encode(y=y.y(y_field)).add_params(highlight)]
    else:
        size_of = 44 if point_field == y_field else 22
        mark = base.mark_point(size=size_of, strokeWidth=1.6).encode(y=y.y(point_field), shape=shape)
        fill = alt.Fill(series, type="nominal", title=series, scale=palette)
        if open_where is not None:
            fill = alt.condition(f"datum['{open_where}']", alt.value("white"), fill)
        point = mark.encode(fill=fill, opacity=_lit(highlight, 1, 0.12))
        # A line of its own goes above the points, which would hide it.
        layers += [line, point] if point_field == y_field else [point, line]
        layers.append(hover.encode(y=y.y(point_field)).add_params(highlight))
    if level is not None:
        height, words = level
        once = alt.Chart().transform_aggregate(rows="count()").encode(y=alt.datum(height))
        layers.append(once.mark_rule(color="#777", strokeDash=[3, 3]))
        layers.append(
            once.mark_text(text=words, color="#555", align="left", dx=4, dy=-6, fontSize=10).encode(
                x=alt.value(0)
            )
        )
    return _facet(
        frame,
        layers,
        size=size,
        column=column,
        row=row,
        y_title=y_title,
        choices=choices,
        calculate=calculate,
    )


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
    column: str,
    row: str,
    tooltip: Sequence[alt.Tooltip] = (),
    calculate: Mapping[str, str] | None = None,
    level: tuple[float, str] | None = None,
    size: tuple[int, int] = (255, 84),
) -> alt.FacetChart:
    """Nested bands over `x`, a small panel for each value of `row` and `column`, one colour a series.

    Args:
        frame: tidy rows, as for `lines`.
        x: the horizontal axis.
        y: the vertical axis.
        x_field: column of horizontal positions.
        bands: columns of the lower and upper end of each band, the widest first.
        middle: column of the line in the middle, if any.
        bars: (low, high, at): spread of an edge, a thin bar from `low` to `high` with a tick at `at`.
        series: column that tells bands apart, by colour.
        column: column that tells panels apart, left to right.
        row: column that tells panels apart, top to bottom.
        tooltip: what hovering shows.
        calculate: Vega expressions of further fields, for the tooltip.
        level: height and words of a horizontal line.
        size: width and height of a panel in pixels.
    """
    y_title = y.title
    if row is not None:
        y = replace(y, title="")  # said once beside all rows, where a small panel has no room for it
    look = style(_levels(frame, series))
    highlight = alt.selection_point(name=f"highlight_{series}", fields=[series], bind="legend")
    scale = alt.Scale(domain=list(look.names), range=list(look.colours))
    legend = alt.Legend(orient="top", title=None, symbolType="square", direction="horizontal", columns=4)
    colour = alt.Color(series, type="nominal", title=series, scale=scale, legend=legend)
    base = alt.Chart().encode(x=x.x(x_field), color=colour)
    layers: list[alt.Chart] = []
    if level is not None:
        once = alt.Chart().transform_aggregate(rows="count()").encode(y=alt.datum(level[0]))
        layers.append(once.mark_rule(color="#999", strokeDash=[3, 3]))
    for low, high in bands:
        for end in (low, high):
            edge = base.mark_line(strokeWidth=0.8).encode(y=y.y(end), opacity=_lit(highlight, 0.7, 0.05))
            layers.append(edge)
        ends = base.encode(y=y.y(low), y2=alt.Y2(high))
        layers.append(ends.mark_area(strokeWidth=0).encode(opacity=_lit(highlight, 0.16, 0.03)))
        if frame[x_field].nunique() == 1:  # a band over a single position has no area
            layers.append(ends.mark_rule(strokeWidth=6).encode(opacity=_lit(highlight, 0.35, 0.04)))
    for low, high, at in bars:
        edge = base.encode(y=y.y(low), y2=alt.Y2(high), opacity=_lit(highlight, 0.9, 0.1))
        layers.append(edge.mark_rule(strokeWidth=1))
        layers.append(base.mark_tick(size=9, thickness=2, orient="horizontal").encode(y=y.y(at)))
    if middle is not None:
        line = base.mark_line(strokeWidth=1.8).encode(y=y.y(middle), opacity=_lit(highlight, 1, 0.1))
        layers.append(line)
    for end in dict.fromkeys(end for band in bands for end in band):
        hover = base.mark_point(filled=True, size=80).encode(y=y.y(end), tooltip=list(tooltip))
        layers.append(hover.encode(opacity=alt.value(0)))
    dots = base.mark_circle(size=22).encode(y=y.y(middle or bands[0][1]), tooltip=list(tooltip))
    layers.append(dots.encode(opacity=_lit(highlight, 1, 0.1)).add_params(highlight))
    return _facet(
        frame, layers, size=size, column=column, row=row, y_title=y_title, calculate=calculate, spacing=8
    )


def _facet(
    frame: pd.DataFrame,
    layers: Sequence[alt.Chart],
    *,
    size: tuple[int, int],
    column: str,
    row: str | None,
    y_title: str,
    choices: Sequence[Choice] = (),
    calculate: Mapping[str, str] | None = None,
    spacing: int = 14,
) -> alt.FacetChart:
    data, expressions = inline(frame)
    layered = alt.layer(*layers, width=size[0], height=size[1])
    columns = _levels(frame, column)
    across: dict[str, Any] = {"labelFontWeight": "bold", "labelFontSize": 12, "title": None}
    if choices:
        words = [
            f"'{c.field} ' + chosen_{c.field}" if _is_number(c.default) else f"chosen_{c.field}"
            for c in choices
        ]
        across["labelExpr"] = "[datum.label, " + " + ', ' + ".join(words) + "]"
    if row is None:
        facet: Any = alt.Facet(column, type="nominal", sort=columns, header=alt.Header(**across))
        # A grid of its own rather than a row, so that many panels wrap.
        wrap: dict[str, Any] = {"columns": min(len(columns), 3) or 1}
    else:
        down: dict[str, Any] = {"labelAngle": 0, "labelAlign": "left", "labelFontSize": 12}
        down |= {"title": y_title, "titleFontSize": 12, "titleFontWeight": "normal"}
        facet = alt.FacetMapping(
            column=alt.Column(column, type="nominal", sort=columns, header=alt.Header(**across)),
            row=alt.Row(row, type="nominal", sort=_levels(frame, row), header=alt.Header(**down)),
        )
        wrap = {}
    transforms: list[Any] = [
        alt.CalculateTransform(calculate=expression, **{"as": name})
        for name, expression in {**expressions, **(calculate or {})}.items()
    ]
    parameters = []
    for choice in choices:
        menu = alt.binding_select(options=[_plain(value) for value in choice.values], name=f"{choice.label} ")
        parameters.append(alt.param(name=f"chosen_{choice.field}", value=_plain(choice.default), bind=menu))
        transforms.append(alt.FilterTransform(f"datum['{choice.field}'] == chosen_{choice.field}"))
    chart = alt.FacetChart(data=data, facet=facet, spec=layered, spacing=spacing, **wrap)
    return _extended(chart, parameters, transforms)


def shown(chart: alt.FacetChart, fields: Mapping[str, Sequence[Any]]) -> alt.FacetChart:
    """Let a page hide values: adds for each field the parameter `shown_<field>` and the filter that obeys it.

    Args:
        chart: what `lines` or `ribbons` returned.
        fields: the values of each field.
    """
    parameters = [
        alt.param(name=f"shown_{field}", value=[_plain(value) for value in values])
        for field, values in fields.items()
    ]
    filters = [alt.FilterTransform(f"indexof(shown_{field}, datum['{field}']) >= 0") for field in fields]
    return _extended(chart, parameters, filters)


def _extended(
    chart: alt.FacetChart, parameters: Sequence[alt.Parameter], transforms: Sequence[Any]
) -> alt.FacetChart:
    """Add parameters and transforms in one go: altair's own methods copy the whole chart for each."""
    return chart.properties(
        params=_appended(chart["params"], [parameter.param for parameter in parameters]),
        transform=_appended(chart["transform"], transforms),
    )


def _appended(old: Any, more: Sequence[Any]) -> Any:
    return [*([] if old is alt.Undefined else old), *more] or alt.Undefined


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
        chart: what `lines` or `ribbons` returned.
        title: the question it answers or the message it bears.
        subtitle: what lines and bands are.
        caption: what to see, for the page.
        colours: colour of each value of each field, for a page's own keys.
    """
    return chart.properties(
        title=alt.TitleParams(text=title, subtitle=subtitle),
        description=f"{title} {caption}",
        usermeta={
            "caption": caption,
            "colours": {field: dict(names) for field, names in (colours or {}).items()},
        },
        config=_THEME,
    )


_THEME = alt.Config(
    font=_FONT,
    background="white",
    padding=alt.Padding(left=5, top=5, right=30, bottom=5),  # a browser's font may be wider than the one measured with
    title=alt.TitleConfig(
        anchor="start", fontSize=16, subtitleFontSize=12, subtitleColor="#555", offset=14, subtitlePadding=5
    ),
    axis=alt.AxisConfig(
        gridColor="#e8e8e8", domainColor="#999", tickColor="#999", labelColor="#333", titleColor="#333",
        titleFontWeight="normal", labelFontSize=11, titleFontSize=12,
    ),
    legend=alt.LegendConfig(labelFontSize=12, titleFontSize=12, symbolSize=70, labelLimit=240, columns=1),
    header=alt.HeaderConfig(labelColor="#222", labelLimit=260),
    view=alt.ViewConfig(stroke="#ddd"),
)  # fmt: skip


def _levels(frame: pd.DataFrame, field: str) -> list[str]:
    column = frame[field]
    if isinstance(column.dtype, pd.CategoricalDtype):
        present = set(column.unique())
        return [str(level) for level in column.cat.categories if level in present]
    return [str(level) for level in column.unique()]


def _lit(highlight: alt.Parameter, bright: float, dim: float) -> Any:
    return alt.condition(highlight, alt.value(bright), alt.value(dim))
