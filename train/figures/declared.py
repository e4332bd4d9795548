"""Figures declared on a labelled result: which variable over which, told apart by what; its labels say the words."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from jaxact import theme
from train.figures import frames, marks
from train.words import power

_ENDS = ("value", "low", "high")
_QUARTILES = {
    "q0": "smallest",
    "q25": "lower quartile",
    "q50": "median",
    "q75": "upper quartile",
    "q100": "largest",
}


def measured(
    result: xr.Dataset, values: str | Mapping[str, str], *, mark: str = "lines", **words: Any
) -> alt.FacetChart | None:
    """Draw a variable of a result, or several, reduced over a sample; None where there is no number to draw.

    >>> result = xr.Dataset({"loss": (("depth", "seed"), [[1.0, 2.0], [3.0, 4.0]])}, {"depth": [4, 8]})
    >>> said = {"title": "Which?", "subtitle": "mean over 2 seeds", "caption": "Lower is better."}
    >>> chart = measured(result, "loss", x="depth", over="seed", centre="mean", **said)
    >>> chart.title.text
    'Which?'

    Args:
        result: a labelled Dataset.
        values: the variable; or variables and what to call them, told apart by the field "quantity".
        mark: "lines", "ribbons", "heat_map", "scatter", "bars" or "histogram".
        words: the attributes of `Declaration`; others are passed on to the mark.
    """
    own = {name: words.pop(name) for name in list(words) if name in Declaration.__dataclass_fields__}
    declared = Declaration(result=result, values=values, mark=mark, options=words, **own)
    return None if declared.frame.empty else declared.chart()


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a figure shows, by names of a result's variables and coordinates.

    Attributes:
        result: the labelled Dataset.
        values: the variable, or several by name with what to call each.
        mark: the mark's name.
        title: the question the figure answers.
        subtitle: what marks and bands are.
        caption: what to see. What lies on an edge of an axis of decades is added to it.
        x: coordinate or variable along the horizontal axis.
        y: coordinate or variable of a heat map's rows.
        series: coordinate or variable that tells lines apart; "quantity" for several values.
        column: what tells panels apart, left to right.
        row: what tells panels apart, top to bottom.
        over: the dimension or dimensions of the sample.
        centre: "mean" or "median" of the sample.
        ends: variables for the lower and upper ends, in place of the smallest and largest of the sample.
        along: dimension whose quartiles ribbons show.
        bands: for ribbons of several values: pairs of them, the widest first.
        beside: variable of theory, drawn as the line; a histogram's is a density over its own last dimension.
        curves: lines over a heat map with borders, by name: heights over a dimension of their own, or positions of
            vertical lines.
        bins: how many a histogram has.
        where: boolean variable; where it is false nothing is drawn, of a heat map no empty box either.
        open_where: boolean variable; where any of the sample is true the point is drawn open.
        tooltip: further variables to say: of booleans how many of the sample, of numbers the centre.
        choices: fields of which the reader chooses one value, with the first choice: a value, "first" or "last".
        shown: fields of which the reader may hide values; by default the series and panels that are coordinates.
        words: how to say the values of a field: a function of the value, None for its plain text.
        labels: titles of variables and fields, in place of their long names; "value" is the vertical axis.
        scale: "linear", "decades" for numbers, or "log10" for variables that hold a log10; by default what the
            variable's units say.
        x_scale: "linear", "doubling" or "decades"; by default the coordinate's attribute `scale`, else doubling where
            every position is at least twice the one before.
        x_format: number format of the horizontal axis.
        floor: number (log10) below which decades lie on the lower edge; by default what most numbers need.
        ceiling: the same above.
        ticks: numbers at which the vertical axis, or a heat map's colour, has its ticks.
        x_ceiling: as `ceiling`, of a horizontal axis of decades.
        format: number format of the vertical axis; one in percent says the variable is a share.
        domain: ends of the vertical axis, by default those of the data.
        level: height and words of a horizontal line.
        most: how many positions a line has at most.
        options: further keywords of the mark.
    """

    result: xr.Dataset
    values: str | Mapping[str, str]
    mark: str = "lines"
    title: str
    subtitle: str
    caption: str
    x: str | None = None
    y: str | None = None
    series: str | None = None
    column: str | None = None
    row: str | None = None
    over: str | Sequence[str] = ()
    centre: str = "median"
    ends: tuple[str, str] | None = None
    along: str | None = None
    bands: Sequence[tuple[str, str]] = ()
    beside: str | None = None
    curves: Mapping[str, xr.DataArray] = field(default_factory=dict)
    bins: int = 40
    where: str | None = None
    open_where: str | None = None
    tooltip: Sequence[str] = ()
    choices: Mapping[str, Any] = field(default_factory=dict)
    shown: Sequence[str] | None = None
    words: Mapping[str, Callable[[Any], str | None]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    scale: str | None = None
    x_scale: str | None = None
    x_format: str | None = None
    floor: float | None = None
    ceiling: float | None = None
    ticks: Sequence[float] | None = None
    x_ceiling: float | None = None
    format: str | None = None
    domain: tuple[float, float] | None = None
    level: tuple[float, str] | None = None
    most: int = 65
    options: Mapping[str, Any] = field(default_factory=dict)

    def chart(self) -> alt.FacetChart:
        """The finished chart."""
        draw: Callable[..., alt.FacetChart] = getattr(marks, self.mark)
        frame = (
            self._scaled[0] if self.series else self._scaled[0].assign(one_series="")
        )  # one nameless series
        chart = draw(frame, **(self._arguments() | dict(self.options)))
        drawn = [name for name in (self.series, self.column, self.row) if name]
        names = drawn if self.shown is None else self.shown
        filters = {
            name: self._levels(name) for name in names if name in self.result.coords and name in self.frame
        }
        chart = marks.shown(chart, {name: levels for name, levels in filters.items() if levels})
        caption = " ".join(part for part in (self.caption, self._edge_words()) if part)
        return marks.finish(
            chart, title=self.title, subtitle=self.subtitle, caption=caption, colours=self._colours()
        )

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Tidy rows of what is drawn, in words."""
        if self.mark == "heat_map":  # a box that holds no number is drawn
            frame = self._table.to_dataframe().reset_index()
            frame = frame if self.where or frame["value"].notna().any() else frame[:0]
        else:
            frame = frames.tidy(self._table, require=self._columns if self.mark == "ribbons" else ["value"])
        if self.where is not None:
            frame = frame[frame.pop("where").astype(bool)]
        if self.mark in ("lines", "ribbons"):
            by = [name for name in self._fields if name in frame]
            frame = frames.thinned(frame, str(self.x), by, self.most)
        return self._in_words(frame)

    @cached_property
    def _table(self) -> xr.Dataset:
        if self.mark == "ribbons":
            table = self._edges_of_ribbons()
        elif isinstance(self.values, str):
            table = self._sample(self.values)
        else:
            index = pd.Index(list(self.values.values()), name="quantity")
            table = xr.concat([self._sample(name) for name in self.values], index, coords="minimal")
        extra = {name: self._reduced(name) for name in self._variables}
        extra |= {} if self.open_where is None else {"open": self._any(self.open_where)}
        extra |= {} if self.where is None else {"where": self._any(self.where)}
        extra |= (
            {} if self.beside is None or self.mark == "histogram" else {"beside": self._centre(self.beside)}
        )
        table = table.assign(extra)
        used = {
            *self._fields,
            self.x,
            *(self.result[self.x].dims if self.x in self.result else ()),
            *(self._over if self.mark == "histogram" else ()),
        }
        rest = [str(dim) for dim, size in table.sizes.items() if dim not in used and size > 1]
        if rest:
            raise ValueError(
                f"a figure of {self.values!r} must say what becomes of every dimension, but {rest} is neither drawn "
                "nor reduced. Name it as x, series, column or row, among choices, or in over."
            )
        return table

    @property
    def _over(self) -> list[str]:
        return [self.over] if isinstance(self.over, str) else list(self.over)

    @property
    def _fields(self) -> list[str]:
        """The fields that hold words or are chosen from."""
        named = [self.series, self.column, self.row, self.y, *self.choices]
        named += [self.x] if self.mark == "bars" else []
        return [name for name in dict.fromkeys(named) if name is not None]

    @property
    def _variables(self) -> list[str]:
        """Variables, not coordinates, that are positions, fields or said."""
        named = [self.x, *self._fields, *self.tooltip]
        return [name for name in dict.fromkeys(named) if name is not None and name in self.result.data_vars]

    @property
    def _columns(self) -> list[str]:
        """The columns of numbers along the vertical axis."""
        names = ["value"] if self.mark == "histogram" else list(_ENDS)
        if self.mark == "ribbons":
            names = [str(name) for name in self._table.data_vars if name not in self._variables]
        return names + (["beside"] if "beside" in self._table else [])

    def _centre(self, name: str) -> xr.DataArray:
        return frames.spread(self.result[name], self._over, centre=self.centre)["value"]  # type: ignore[arg-type]

    def _any(self, name: str) -> xr.DataArray:
        variable = self.result[name]
        return variable.any([dim for dim in self._over if dim in variable.dims])

    def _sample(self, name: str) -> xr.Dataset:
        if self.mark == "histogram":
            return xr.Dataset({"value": self.result[name].astype(float)})
        sample = frames.spread(self.result[name], self._over, centre=self.centre)  # type: ignore[arg-type]
        if self.ends is not None:
            low, high = (self._centre(end) for end in self.ends)
            sample = sample.assign(low=low, high=high)
        return sample.drop_vars("count")

    def _edges_of_ribbons(self) -> xr.Dataset:
        if self.along is not None:
            return frames.quantiles(self.result[str(self.values)], self.along, self._over)
        samples = {name: self._sample(name) for name in self.values}
        return xr.Dataset(
            {
                (name if end == "value" else f"{name}_{end}"): sample[end]
                for name, sample in samples.items()
                for end in _ENDS
            }
        )

    def _reduced(self, name: str) -> xr.DataArray:
        """One value a mark: of booleans how many, of numbers the centre, of words themselves."""
        variable = self.result[name]
        dims = [dim for dim in self._over if dim in variable.dims]
        if variable.dtype.kind == "b" and dims:
            total = math.prod(variable.sizes[dim] for dim in dims)
            said = [f"{count} of {total}" for count in range(total + 1)]
            return xr.apply_ufunc(np.array(said).__getitem__, variable.sum(dims))
        return self._centre(name) if variable.dtype.kind in "iuf" and dims else variable

    # Words

    def _is_said(self, name: str) -> bool:
        """Whether a field is text; numbers that are only chosen from stay numbers."""
        if name == self.y and "borders" in self.options:
            return False
        drawn = name in (self.series, self.column, self.row, self.y, self.x)  # x is among the fields of bars
        return drawn or name in self.words or self._dtype_kind(name) not in "iuf"

    def _dtype_kind(self, name: str) -> str:
        """The kind of a field's numbers, as numpy names it."""
        return self._table[name].dtype.kind if name in self._table.variables else "O"

    def _sayer(self, name: str) -> Callable[[Any], str]:
        say = self.words.get(name, lambda _: None)
        return lambda value: str(marks.plain(value)) if (said := say(value)) is None else str(said)

    def _levels(self, name: str) -> list[str]:
        source = self.result if name in self.result.variables else self._table
        return list(dict.fromkeys(map(self._sayer(name), np.ravel(source[name].to_numpy()))))

    def _title(self, name: str) -> str:
        if name in self.labels:
            return self.labels[name]
        return frames.label(self.result[name]) if name in self.result.variables else name

    @cached_property
    def _value_title(self) -> str:
        if "value" in self.labels or not isinstance(self.values, str):
            return self.labels.get("value") or self._title(next(iter(self.values)))
        title = self._title(self.values)
        return title.removesuffix(" (log10)")

    # Scales

    @cached_property
    def _kind(self) -> str:
        first = self.values if isinstance(self.values, str) else next(iter(self.values))
        said = "log10" if self.result[first].attrs.get("units") == "log10" else "linear"
        return self.scale or said

    @cached_property
    def _scaled(self) -> tuple[pd.DataFrame, dict[str, tuple[float, float]]]:
        """The frame with decades in place of numbers, and the edges of x and value that something lies on."""
        frame, edges = self.frame, {"x": (-math.inf, math.inf), "value": (-math.inf, math.inf)}
        if self._kind != "linear":
            frame, edges["value"] = self._decades(frame, self._columns, self._kind, self.floor, self.ceiling)
        if self.x_scale == "decades":
            frame, edges["x"] = self._decades(frame, [str(self.x)], "decades", None, self.x_ceiling)
        if self.mark == "histogram":
            frame = frames.binned(frame, "value", self._fields, self.bins)
        return frame, edges

    def _decades(
        self,
        frame: pd.DataFrame,
        columns: Sequence[str],
        kind: str,
        floor: float | None,
        ceiling: float | None,
    ) -> tuple[pd.DataFrame, tuple[float, float]]:
        logs = {name: frame[name].to_numpy(dtype=float) for name in columns}
        if kind == "decades":
            with np.errstate(divide="ignore", invalid="ignore"):
                logs = {name: np.log10(column) for name, column in logs.items()}
        low, high = frames.fences(np.concatenate(list(logs.values())))
        low, high = low if floor is None else floor, high if ceiling is None else ceiling
        return frames.clip_decades(frame, logs, floor=low, ceiling=high)

    def _edge_words(self) -> str:
        """Which numbers lie on an edge of an axis rather than at their own place."""
        sentences = []
        for title, (low, high) in zip(("x", "value"), self._scaled[1].values(), strict=True):
            parts = [f"at most {power(low)}"] if math.isfinite(low) else []
            parts += [f"at least {power(high)}"] if math.isfinite(high) else []
            axis = self._value_title if title == "value" else self._title(str(self.x))
            sentences += [f"{axis}: what is {' or '.join(parts)} lies on the edge."] if parts else []
        return " ".join(sentences)

    def _horizontal(self) -> marks.Axis:
        name = str(self.x)
        if self.mark in ("bars", "heat_map") and not self.options.get("borders"):
            return marks.Axis(title=self._title(name))
        if self.x_scale == "decades":
            ticks = frames.decade_ticks(self._scaled[0][name].to_numpy(dtype=float))
            return marks.Axis(title=self._title(name), scale="decades", ticks=ticks)
        positions = np.unique(self.frame[name].dropna().to_numpy(dtype=float))
        doubles = (
            bool(len(positions)) and positions[0] > 0 and bool((positions[1:] >= 2 * positions[:-1]).all())
        )
        scale: Any = (
            self.x_scale or self.result[name].attrs.get("scale") or ("doubling" if doubles else "linear")
        )
        is_few = scale == "doubling" or "borders" in self.options
        ticks = positions.tolist() if is_few else None
        return marks.Axis(title=self._title(name), scale=scale, ticks=ticks, format=self.x_format)

    def _vertical(self) -> marks.Axis:
        if self._kind != "linear":
            columns = ["from", "to"] if self.mark == "histogram" else self._columns
            ticks = frames.decade_ticks(self._scaled[0][columns].to_numpy(dtype=float).ravel())
            ticks = ticks if self.ticks is None else np.log10(self.ticks).tolist()
            return marks.Axis(title=self._value_title, scale="decades", domain=self.domain, ticks=ticks)
        form, domain = self.format, self.domain
        if domain is None and form is not None and form.endswith("%"):
            domain = frames.share_domain(self.frame[self._columns].to_numpy(dtype=float).ravel())
        if domain is not None and form == ".0%" and domain[1] - domain[0] < 0.1:
            form = ".1%"  # two ticks would have the same words
        return marks.Axis(title=self._value_title, domain=domain, ticks=self.ticks, format=form)

    # Channels

    def _arguments(self) -> dict[str, Any]:
        common: dict[str, Any] = {
            "column": self.column,
            "row": self.row,
            "titles": {name: self._title(name) for name in self._fields},
            "choices": [self._choice(*item) for item in self.choices.items()],
            "tooltip": self._tooltips(),
            "calculate": {f"{name}_text": self._number(name) for name in self._numbers()} | self._position(),
        }
        return common | getattr(self, f"_{self.mark}")()

    def _lines(self) -> dict[str, Any]:
        own = {"y_field": "value" if self.beside is None else "beside"}
        return own | self._placed() | ({"band": None} if not self._has_spread else {})

    def _scatter(self) -> dict[str, Any]:
        return self._placed() | ({"bars": None} if not self._has_spread else {})

    def _bars(self) -> dict[str, Any]:
        placed = self._placed() | ({"whiskers": None} if not self._has_spread else {})
        return {name: value for name, value in placed.items() if name != "open_where"}

    def _placed(self) -> dict[str, Any]:
        return {
            "x": self._horizontal(),
            "y": self._vertical(),
            "x_field": self.x,
            "series": self.series or "one_series",
            "open_where": None if self.open_where is None else "open",
            "level": self._level(),
        }

    def _ribbons(self) -> dict[str, Any]:
        placed = {name: value for name, value in self._placed().items() if name != "open_where"}
        if self.along is not None:
            return placed | {"bands": [("q0", "q100"), ("q25", "q75")], "middle": "q50"}
        inner = self.bands[-1]
        return placed | {"bands": self.bands, "bars": [(f"{end}_low", f"{end}_high", end) for end in inner]}

    def _heat_map(self) -> dict[str, Any]:
        rows = sorted(self.frame[self.y].unique()) if self.options.get("borders") else None
        return {
            "x": self._horizontal(),
            "y": marks.Axis(title=self._title(str(self.y)), ticks=rows),
            "x_field": self.x,
            "y_field": self.y,
            "value": self._vertical(),
            "text_field": "value_text",
            "curves": self._curves() if self.curves else None,
        }

    def _histogram(self) -> dict[str, Any]:
        return {
            "x": self._vertical(),
            "y": marks.Axis(title="Density"),
            "series": self.series or "one_series",
            "theory": None if self.beside is None else self._density(),
        }

    def _density(self) -> pd.DataFrame:
        density = self.result[str(self.beside)]
        frame = (
            density.rename("density")
            .to_dataframe()
            .reset_index()
            .rename(columns={str(density.dims[-1]): "at"})
        )
        return self._in_words(frame)

    def _curves(self) -> pd.DataFrame:
        parts = []
        for name, curve in self.curves.items():
            panels = [dim for dim in curve.dims if dim in self._fields]
            along = [dim for dim in curve.dims if dim not in panels]
            part = curve.rename(self.y if along else self.x).to_dataframe().reset_index()
            part = part.rename(columns={along[0]: self.x} if along else {}).assign(line=name)
            parts.append(part.dropna(subset=[self.y if along else self.x]))
        frame = pd.concat(parts, ignore_index=True)
        inside = frame[np.isfinite(frame[self.x].astype(float))]
        return self._in_words(
            inside.reindex(
                columns=[self.x, self.y, *(name for name in (self.column, self.row) if name), "line"]
            )
        )

    @property
    def _has_spread(self) -> bool:
        drawn = self.frame[["low", "high"]].dropna()
        return bool((drawn["low"] < drawn["high"]).any())

    def _level(self) -> tuple[float, str] | None:
        if self.level is None or self._kind == "linear":
            return self.level
        return math.log10(self.level[0]), self.level[1]

    def _choice(self, name: str, first: Any) -> marks.Choice:
        column = self.frame[name]
        is_text = isinstance(column.dtype, pd.CategoricalDtype)
        values = tuple(frames.levels(self.frame, name) if is_text else sorted(column.unique()))
        wanted = {"first": values[0], "last": values[-1]}.get(
            first, self._sayer(name)(first) if is_text else first
        )
        title = self._title(name)
        return marks.Choice(
            name, values, wanted if wanted in values else values[0], title[:1].lower() + title[1:]
        )

    def _in_words(self, frame: pd.DataFrame) -> pd.DataFrame:
        for name in self._fields:
            if name in frame and self._is_said(name):
                frame = frame.assign(
                    **{name: frames.ordered(frame[name].map(self._sayer(name)), self._levels(name))}
                )
        return frame

    def _numbers(self) -> dict[str, str]:
        """The columns of numbers that a tooltip says, with their titles."""
        if self.mark == "histogram":
            return {}
        if self.mark == "ribbons":
            named = _QUARTILES if self.along is not None else dict(self.values)  # type: ignore[arg-type]
            return dict(reversed(named.items()))
        sample = " and ".join(self._title(name) for name in self._over if self.result.sizes[name] > 1).lower()
        name = self._value_title
        titles = {"value": f"{name}, {self.centre}" if sample else name}
        if self._has_spread:
            ends = (f"lowest {sample}", f"highest {sample}")
            low, high = ends if self.ends is None else map(self._title, self.ends)
            titles |= {"low": low, "high": high}
        return titles | ({} if self.beside is None else {"beside": "theory"})

    def _number(self, name: str) -> str:
        """The Vega expression of a number as text."""
        if self._kind != "linear":
            return frames.readout(name, self._scaled[1]["value"])
        form = self.format or ".3g"
        return f"isValid(datum['{name}']) ? format(datum['{name}'], '{form}') : ''"

    def _position(self) -> dict[str, str]:
        """The expression of a horizontal position that is drawn as its logarithm."""
        is_log = self.x_scale == "decades"
        return {f"{self.x}_text": frames.readout(str(self.x), self._scaled[1]["x"])} if is_log else {}

    def _tooltips(self) -> list[alt.Tooltip]:
        who = [name for name in dict.fromkeys([*self._fields, self.x]) if name is not None]
        said = [self._tip(name) for name in who]
        said += [alt.Tooltip(f"{name}_text:N", title=title) for name, title in self._numbers().items()]
        return said + [self._tip(name) for name in self.tooltip]

    def _tip(self, name: str) -> alt.Tooltip:
        column = self.frame[name]
        is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        form: dict[str, Any] = {"format": ".4~g"} if is_number else {}
        title = self._title(name)
        if name == self.x and self.x_scale == "decades":
            name, is_number, form = f"{name}_text", False, {}
        kind: Any = "quantitative" if is_number else "nominal"
        return alt.Tooltip(name, type=kind, title=title[:1].lower() + title[1:], **form)

    def _colours(self) -> dict[str, dict[str, str]]:
        if self.series is None:
            return {}
        look = theme.style(self._levels(self.series))
        return {self.series: dict(zip(look.names, look.colours, strict=True))}
