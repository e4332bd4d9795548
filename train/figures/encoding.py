"""What marks share: axes, the panels of a frame, the signs that tell its series apart, and what a reader may ask.

Every chart carries all that a page needs: its data inline, a caption and the colours of its series in `usermeta`, and
two kinds of parameter that a page may drive for all figures at once: `shown_<field>` holds the values of a field that
are shown, `chosen_<field>` the one value that is shown. Colours of the page itself (paper, ink, soft, blank) are
parameters of the config, see `jaxact.theme`, so a page swaps light for dark by swapping the config.
"""

import numbers
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import altair as alt
import numpy as np
import pandas as pd

from jaxact import theme
from train.figures import frames

PAPER, BLANK = alt.ExprRef("paper"), alt.ExprRef("blank")
_LOOK = alt.Config(**theme.LIGHT)  # marks name its parameters
_WIDEST, _THINNEST = 3.2, 1.4  # pixels: the first line is the widest, so that it shows beneath the last
# Powers as text: a log scale would need the numbers themselves, and 10^400 is not one.
_POWER = (
    "abs(datum.value) <= 4 ? format(pow(10, datum.value), '.4~r') : "
    "datum.value === floor(datum.value) ? '1e' + datum.value : format(pow(10, datum.value), '.1e')"
)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: its title and how positions are read from it.

    Attributes:
        title: what is measured, with its unit.
        scale: "linear"; "doubling", logarithmic to base 2; or "decades", for fields that hold a log10 already.
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
        return alt.X(f"{field}:Q", title=self.title or None, **self._options())

    def y(self, field: str) -> alt.Y:
        """The vertical channel of a field."""
        return alt.Y(f"{field}:Q", title=_wrapped(self.title, 36), **self._options())

    def colour(self, field: str, scheme: Any) -> alt.Color:
        """The colour channel of a field, with its gradient."""
        ends: dict[str, Any] = {} if self.domain is None else {"domain": list(self.domain), "clamp": True}
        scale = alt.Scale(scheme=scheme, zero=False, **ends)
        values = self.placed().get("values", alt.Undefined)
        legend = alt.Legend(gradientLength=150, values=values, **self._labels())
        return alt.Color(f"{field}:Q", title=_wrapped(self.title, 18), scale=scale, legend=legend)

    def placed(self) -> dict[str, Any]:
        """Where the ticks are, if that is said; Vega drops every second one until no more than `tickCount` are left."""
        ticks = [plain(tick) for tick in self.ticks or ()]
        return {"values": ticks, "tickCount": len(ticks)} if ticks else {}

    def _labels(self) -> dict[str, Any]:
        labels: dict[str, Any] = {} if self.format is None else {"format": self.format}
        return labels | ({"labelExpr": _POWER} if self.scale == "decades" else {})

    def _options(self) -> dict[str, Any]:
        axis: dict[str, Any] = self._labels() | self.placed()
        ends = self.domain
        if self.scale == "doubling":
            ticks = self.ticks or (1, 2)
            ends = ends or (min(ticks) / 1.15, max(ticks) * 1.15)
            scale = alt.Scale(type="log", base=2, domain=list(ends), nice=False)
            return {"scale": scale, "axis": alt.Axis(labelOverlap=True, **axis)}
        scale = alt.Scale(zero=False, nice=ends is None, domain=list(ends) if ends else alt.Undefined)
        if self.scale == "decades" and self.ticks is None:
            axis["tickMinStep"] = 1
        return {"scale": scale, "axis": alt.Axis(**axis)}


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


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What every mark takes, by keyword, beside its own.

    Attributes:
        frame: tidy rows. What tells things apart may hold strings, numbers or booleans, drawn in order of appearance,
            those of a `Categorical` in its order.
        x: the horizontal axis.
        y: the vertical axis.
        x_field: column of horizontal positions.
        y_field: column of heights.
        series, column, row: columns that tell apart lines, panels from left to right, panels from top to bottom.
        band: columns of the lower and upper ends of the spread of lines, points and bars; or None.
        open_where: boolean column; where true the point of a line or a scatter is drawn open.
        level: height and words of a horizontal line.
        titles: what to call fields in legends, by default their names.
        choices: fields of which the reader chooses one value.
        tooltip: what hovering over a mark shows.
        calculate: Vega expressions of further fields, for the tooltip.
        size: width and height of a panel in pixels.
    """

    frame: pd.DataFrame
    x: Axis
    y: Axis
    x_field: str = ""
    y_field: str = "value"
    series: str | None = None
    column: str | None = None
    row: str | None = None
    band: tuple[str, str] | None = ("low", "high")
    open_where: str | None = None
    level: tuple[float, str] | None = None
    titles: Mapping[str, str] = field(default_factory=dict)
    choices: Sequence[Choice] = ()
    tooltip: Sequence[alt.Tooltip] = ()
    calculate: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None

    @property
    def fields(self) -> list[str]:
        """The columns that tell series and panels apart."""
        return [name for name in (self.series, self.column, self.row) if name is not None]

    def height(self, field: str) -> alt.Y:
        """A vertical channel; the title is said once beside all rows, where a small panel has no room for it."""
        return (self.y if self.row is None else replace(self.y, title="")).y(field)

    def between(self, low: str, high: str) -> dict[str, Any]:
        """The vertical channels of what reaches from one column to another."""
        return {"y": self.height(low), "y2": high}

    @cached_property
    def highlight(self) -> alt.Parameter:
        """The series that a click on the legend chose."""
        return alt.selection_point(name=f"highlight_{self.series}", fields=[str(self.series)], bind="legend")

    def lit(self, bright: float, dim: float) -> dict[str, Any]:
        """The opacity of the highlighted series and of the others."""
        return {"opacity": alt.condition(self.highlight, alt.value(bright), alt.value(dim))}

    def hover(self, base: Any, field: str) -> Any:
        """Places to hover over that are not seen."""
        mark = base.mark_point(filled=True, size=100)
        return mark.encode(y=self.height(field), tooltip=list(self.tooltip), opacity=alt.value(0))

    def points(self, base: Any, field: str, signs: Mapping[str, Any], size: int) -> Any:
        """Points in the shapes of their series, open where that is asked for."""
        fill = signs["fill"]
        if self.open_where is not None:
            fill = alt.condition(f"datum['{self.open_where}']", alt.value(PAPER), fill)
        mark = base.mark_point(size=size, strokeWidth=1.6).encode(y=self.height(field), shape=signs["shape"])
        return mark.encode(fill=fill, **self.lit(1, 0.12))

    def signs(self, *, has_points: bool = True, on_top: bool = False) -> dict[str, Any]:
        """The channels that tell a series apart, by name: color, fill, shape, strokeDash and strokeWidth.

        Args:
            has_points: whether the legend shows points or lines.
            on_top: whether the legend stands above the panels.
        """
        names, colours, shapes, dashes = self._looks()
        title = _wrapped(self.titles.get(str(self.series), str(self.series)), 24)
        named: dict[str, Any] = {"shorthand": f"{self.series}:N", "title": title}
        key = alt.Legend(symbolOpacity=1) if names != [""] else None
        if on_top:
            key = alt.Legend(orient="top", title=None, symbolType="square", direction="horizontal", columns=4)
        palette = alt.Scale(domain=names, range=colours)
        return {
            "color": alt.Color(scale=palette, legend=key, **named),
            "fill": alt.Fill(scale=palette, **named),
            "shape": alt.Shape(scale=alt.Scale(domain=names, range=shapes), **named),
            "strokeDash": _dash(names, dashes, named, has_points=has_points),
            "strokeWidth": self._width(names),
        }

    def _looks(self) -> list[list[Any]]:
        """Names, colours, shapes and dashes of the series; one that is absent keeps its looks for other figures."""
        every = theme.style([str(level) for level in self.frame[self.series].cat.categories])
        present = set(frames.levels(self.frame, str(self.series)))
        return [
            [sign for name, sign in zip(every.names, row, strict=True) if name in present] for row in every
        ]

    def _width(self, names: list[str]) -> Any:
        if (
            len(names) < 2
        ):  # a scale of one width makes the legend lay its only symbol over the words (vega 6)
            return alt.value(2.0)
        widths = np.linspace(_WIDEST, _THINNEST, len(names)).round(2).tolist()
        wide = alt.Scale(domain=names[::-1], range=widths[::-1])  # apart from the legend, as dashes are
        return alt.StrokeWidth(f"{self.series}:O", scale=wide, legend=None)

    def levels(self) -> list[Any]:
        """The layers of the horizontal line and its words."""
        if self.level is None:
            return []
        line = once().encode(y=alt.datum(self.level[0]))
        beside: dict[str, Any] = {"text": self.level[1], "align": "left", "dx": 4, "dy": -6}
        halo = line.mark_text(stroke=PAPER, strokeWidth=3, **beside).encode(x=alt.value(0))
        words = line.mark_text(**beside).encode(x=alt.value(0))
        return [line.mark_rule(strokeDash=[3, 3]), halo, words]

    def chart(
        self, layers: Sequence[Any], size: tuple[int, int], *, spacing: int = 14, is_map: bool = False
    ) -> alt.FacetChart:
        """Layers in all panels, of this size unless another is asked for; few panels of maps share their rows."""
        data, expressions = frames.inline(self.frame)
        calculated = (expressions | dict(self.calculate)).items()
        transforms: list[Any] = [
            alt.CalculateTransform(calculate=said, **{"as": name}) for name, said in calculated
        ]
        transforms += [alt.FilterTransform(f"datum['{c.field}'] == chosen_{c.field}") for c in self.choices]
        width, height = self.size or size
        layered = alt.layer(*layers, width=width, height=height)
        facet = self._facet(is_map=is_map)
        chart = alt.FacetChart(data=data, spec=layered, spacing=spacing, config=_LOOK, **facet)
        return _extended(chart, [_menu(choice) for choice in self.choices], transforms)

    def _facet(self, *, is_map: bool) -> dict[str, Any]:
        columns = frames.levels(self.frame, str(self.column))
        named: dict[str, Any] = {"shorthand": f"{self.column}:N", "sort": columns, "header": self._heads()}
        if self.row is None and not (is_map and len(columns) <= 3):
            # A grid of its own rather than a row, so that many panels wrap.
            return {"facet": alt.Facet(**named), "columns": min(len(columns), 3) or 1}
        facets: dict[str, Any] = {"column": alt.Column(**named)}
        if self.row is not None:
            header = alt.Header(
                labelAngle=0, labelAlign="left", labelFontSize=12, titleFontSize=12, titleFontWeight="normal",
                title=None if is_map else self.y.title or None,
            )  # fmt: skip
            facets["row"] = alt.Row(f"{self.row}:N", sort=frames.levels(self.frame, self.row), header=header)
        return {"facet": alt.FacetMapping(**facets)}

    def _heads(self) -> alt.Header:
        """The name of a panel, and below it what the reader chose; a number does not speak for itself."""
        chosen = [
            f"'{c.field} ' + chosen_{c.field}"
            if isinstance(c.default, numbers.Number)
            else f"chosen_{c.field}"
            for c in self.choices
        ]
        text = "[datum.label, " + " + ', ' + ".join(chosen) + "]" if chosen else alt.Undefined
        return alt.Header(labelFontWeight="bold", labelFontSize=12, title=None, labelExpr=text)


def encoded(frame: pd.DataFrame, told: Mapping[str, Any], *fields: str) -> Encoding:
    """The encoding of a mark's keywords, of series and panels even where there is but one.

    Args:
        frame: the rows.
        told: attributes of `Encoding`.
        fields: attributes that name columns of words: besides `column` and `row`, which always do.

    Raises:
        TypeError: a keyword is neither the mark's own nor an attribute.
    """
    known = Encoding.__dataclass_fields__
    if unknown := sorted(set(told) - set(known)):
        raise TypeError(f"a mark takes {', '.join(known)} beside its own, got {', '.join(unknown)}.")
    alone = {name: f"one_{name}" for name in ("column", *fields) if told.get(name) is None}
    found = Encoding(frame=frame.assign(**dict.fromkeys(alone.values(), "")), **{**told, **alone})
    named = [getattr(found, name) for name in ("column", "row", *fields)]
    return replace(found, frame=frames.nominal(found.frame, named))


def once() -> alt.Chart:
    """A chart of a single row, for what is drawn once a panel."""
    return alt.Chart().transform_aggregate(rows="count()")


def _dash(names: list[str], dashes: list[Any], named: dict[str, Any], *, has_points: bool) -> alt.StrokeDash:
    """Legends of one domain merge into one, or all into none: a reversed domain keeps dashes from fraying points."""
    step = -1 if has_points else 1
    scale = alt.Scale(domain=names[::step], range=dashes[::step])
    line = alt.Legend(
        symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=2, symbolSize=250, labelOffset=8
    )
    return alt.StrokeDash(scale=scale, legend=None if has_points else line, **named)


def _menu(choice: Choice) -> alt.Parameter:
    menu = alt.binding_select(options=[plain(value) for value in choice.values], name=f"{choice.label} ")
    return alt.param(name=f"chosen_{choice.field}", value=plain(choice.default), bind=menu)


def shown(chart: alt.FacetChart, fields: Mapping[str, Sequence[Any]]) -> alt.FacetChart:
    """Let a page hide values of fields: adds the parameters `shown_<field>` and the filters that obey them."""
    parameters = [
        alt.param(name=f"shown_{field}", value=list(map(plain, values))) for field, values in fields.items()
    ]
    filters = [alt.FilterTransform(f"indexof(shown_{field}, datum['{field}']) >= 0") for field in fields]
    return _extended(chart, parameters, filters)


def _extended(
    chart: alt.FacetChart, params: Sequence[alt.Parameter], transforms: Sequence[Any]
) -> alt.FacetChart:
    """Add parameters and transforms in one go: altair's own methods copy the whole chart for each."""
    more = {"params": [parameter.param for parameter in params], "transform": list(transforms)}
    old = {name: [] if chart[name] is alt.Undefined else list(chart[name]) for name in more}
    return chart.properties(**{name: old[name] + new for name, new in more.items() if old[name] + new})


def finish(
    chart: alt.FacetChart,
    *,
    title: str,
    subtitle: str,
    caption: str,
    colours: Mapping[str, Any] | None = None,
) -> alt.FacetChart:
    """Give a chart its words, as `Declaration` says them, also for those who do not see it.

    For a page's own keys `colours` holds the colour of each value of each field.
    """
    return chart.properties(
        title=alt.TitleParams(text=title, subtitle=subtitle),
        description=f"{title} {caption}",
        usermeta={"caption": caption, "colours": colours or {}},
    )


def plain(value: Any) -> Any:
    """A number as JSON likes it: whole ones as integers, no numpy scalars."""
    if isinstance(value, np.generic):
        value = value.item()
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


def _wrapped(title: str, width: int) -> list[str] | None:
    """A title in lines, for a narrow place."""
    return textwrap.wrap(title, width) or None
