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
from altair.utils.schemapi import debug_mode

from jaxact import theme
from train import fields
from train.figures import frames, marks
from train.figures.encoding import Axis, Choice, finish, plain, shown
from train.words import power

_QUARTILES = {
    "q100": "largest",
    "q75": "upper quartile",
    "q50": "median",
    "q25": "lower quartile",
    "q0": "smallest",
}
_NO_EDGES = (-math.inf, math.inf)
_MARKS = ("lines", "ribbons", "heat_map", "scatter", "bars", "histogram")


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

    Raises:
        ValueError: an unknown mark, or a dimension that is neither drawn nor reduced.
    """
    fields.among(_MARKS)("mark", mark)
    own = {name: words.pop(name) for name in list(words) if name in Declaration.__dataclass_fields__}
    declared = Declaration(result=result, values=values, mark=mark, options=words, **own)
    if declared.frame.empty:
        return None
    with debug_mode(
        False
    ):  # marks make what the schema knows: to hold every part against it takes as long again
        return declared.chart()


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a figure shows, by names of a result's variables and coordinates.

    Attributes:
        result: as `measured` says, and so `values` and `mark`.
        title, subtitle: the question the figure answers; what marks and bands are.
        caption: what to see. What lies on an edge of an axis of decades is added to it.
        x: coordinate or variable along the horizontal axis.
        y: coordinate or variable of a heat map's rows.
        series, column, row: what tells lines and panels apart, as in `Encoding`; "quantity" for several values.
        over: the dimension or dimensions of the sample.
        centre: "mean" or "median" of the sample.
        ends: variables for the lower and upper ends, in place of the smallest and largest of the sample.
        along: dimension whose quartiles ribbons show.
        bands: for ribbons of several values: pairs of them, the widest first.
        beside: variable of theory, drawn as the line; a histogram's is a density over its own last dimension.
        borders: a heat map's, see there.
        curves: lines over a heat map with borders, by name: heights over a dimension of their own, or positions of
            vertical lines.
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
        floor, ceiling, x_ceiling: log10 of the numbers beyond which decades lie on an edge of the vertical or
            horizontal axis; by default what most numbers need.
        ticks: numbers at which the vertical axis, or a heat map's colour, has its ticks.
        format, x_format: number formats of the axes; one in percent says the variable is a share.
        domain: ends of the vertical axis, by default those of the data.
        level: as in `Encoding`.
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
    centre: Any = "median"
    ends: tuple[str, str] | None = None
    along: str | None = None
    bands: Sequence[tuple[str, str]] = ()
    beside: str | None = None
    borders: Mapping[str, str] | None = None
    curves: Mapping[str, xr.DataArray] = field(default_factory=dict)
    where: str | None = None
    open_where: str | None = None
    tooltip: Sequence[str] = ()
    choices: Mapping[str, Any] = field(default_factory=dict)
    shown: Sequence[str] | None = None
    words: Mapping[str, Callable[[Any], str | None]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    scale: str | None = None
    x_scale: Any = None
    x_format: str | None = None
    floor: float | None = None
    ceiling: float | None = None
    x_ceiling: float | None = None
    ticks: Sequence[float] | None = None
    format: str | None = None
    domain: tuple[float, float] | None = None
    level: tuple[float, str] | None = None
    most: int = 65
    options: Mapping[str, Any] = field(default_factory=dict)

    def chart(self) -> alt.FacetChart:
        """The finished chart."""
        chart = getattr(marks, self.mark)(self._scaled[0], **(self._arguments() | dict(self.options)))
        named = (self.series, self.column, self.row) if self.shown is None else self.shown
        coords = [name for name in named if name and name in self.result.coords and name in self.frame]
        chart = shown(chart, {name: self._levels(name) for name in coords})
        look = theme.style(self._levels(self.series) if self.series else [])
        return finish(
            chart,
            title=self.title,
            subtitle=self.subtitle,
            caption=" ".join(part for part in (self.caption, *self._edge_words()) if part),
            colours={self.series: dict(zip(look.names, look.colours, strict=True))} if self.series else {},
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

    # What is drawn, as arrays

    @cached_property
    def _table(self) -> xr.Dataset:
        """The values with all that is said of them; no dimension is left that is not drawn."""
        extra = {name: self._reduced(name) for name in self._variables}
        flags = {"open": self.open_where, "where": self.where}
        extra |= {name: self._any(flag) for name, flag in flags.items() if flag is not None}
        if self.beside is not None and self.mark != "histogram":
            extra["beside"] = self._centre(self.beside)
        table = self._values.assign(extra)
        used = {*self._fields, self.x, *(self.result[self.x].dims if self.x in self.result else ())}
        used |= set(self._over if self.mark == "histogram" else ())
        rest = [str(dim) for dim, size in table.sizes.items() if dim not in used and size > 1]
        if rest:
            raise ValueError(
                f"a figure of {self.values!r} must say what becomes of every dimension, but {rest} is neither drawn "
                "nor reduced. Name it as x, series, column or row, among choices, or in over."
            )
        return table

    @cached_property
    def _values(self) -> xr.Dataset:
        """The numbers along the vertical axis."""
        if self.along is not None:
            return frames.quantiles(self.result[str(self.values)], self.along, self._over)
        if isinstance(self.values, str):
            return self._sample(self.values)
        samples = {name: self._sample(name) for name in self.values}
        if self.mark != "ribbons":
            index = pd.Index(list(self.values.values()), name="quantity")
            return xr.concat(list(samples.values()), index, coords="minimal")
        parts = [
            sample.rename(value=name, low=f"{name}_low", high=f"{name}_high")
            for name, sample in samples.items()
        ]
        return xr.merge(parts)

    def _sample(self, name: str) -> xr.Dataset:
        if self.mark == "histogram":
            return xr.Dataset({"value": self.result[name].astype(float)})
        sample = frames.spread(self.result[name], self._over, centre=self.centre).drop_vars("count")
        if self.ends is None:
            return sample
        return sample.assign(dict(zip(("low", "high"), map(self._centre, self.ends), strict=True)))

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
        named = dict.fromkeys([self.x, *self._fields, *self.tooltip])
        return [name for name in named if name is not None and name in self.result.data_vars]

    @property
    def _columns(self) -> list[str]:
        """The columns of numbers along the vertical axis."""
        return [str(name) for name in (*self._values, *(["beside"] if "beside" in self._table else []))]

    def _centre(self, name: str) -> xr.DataArray:
        return frames.spread(self.result[name], self._over, centre=self.centre)["value"]

    def _any(self, name: str) -> xr.DataArray:
        variable = self.result[name]
        return variable.any([dim for dim in self._over if dim in variable.dims])

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

    def _in_words(self, frame: pd.DataFrame) -> pd.DataFrame:
        said = [name for name in self._fields if name in frame and self._is_said(name)]
        return frame.assign(
            **{name: frames.ordered(frame[name].map(self._sayer(name)), self._levels(name)) for name in said}
        )

    def _is_said(self, name: str) -> bool:
        """Whether a field is text; numbers that are only chosen from, or lie between borders, stay numbers."""
        if name == self.y and self.borders:
            return False
        is_number = name in self._table.variables and self._table[name].dtype.kind in "iuf"
        drawn = (self.series, self.column, self.row, self.y, self.x)  # x is among the fields of bars
        return name in drawn or name in self.words or not is_number

    def _sayer(self, name: str) -> Callable[[Any], str]:
        say = self.words.get(name, lambda _: None)
        return lambda value: str(plain(value)) if (said := say(value)) is None else str(said)

    def _levels(self, name: str) -> list[str]:
        source = self.result if name in self.result.variables else self._table
        return list(dict.fromkeys(map(self._sayer(name), np.ravel(source[name].to_numpy()))))

    def _title(self, name: str | None) -> str:
        name = str(name)
        label = frames.label(self.result[name]) if name in self.result.variables else name
        return self.labels.get(name, label)

    @property
    def _first(self) -> str:
        """The variable whose attributes speak for all values."""
        return self.values if isinstance(self.values, str) else next(iter(self.values))

    @property
    def _value_title(self) -> str:
        title = self.labels.get("value") or self._title(self._first)
        return title.removesuffix(" (log10)") if isinstance(self.values, str) else title

    # Scales

    @property
    def _kind(self) -> str:
        return self.scale or ("log10" if self.result[self._first].attrs.get("units") == "log10" else "linear")

    @cached_property
    def _scaled(self) -> tuple[pd.DataFrame, tuple[float, float], tuple[float, float]]:
        """The frame with decades in place of numbers, and the edges of x and of the values that something lies on."""
        frame, across, up = self.frame, _NO_EDGES, _NO_EDGES
        if self._kind != "linear":
            is_log, ends = self._kind == "log10", (self.floor, self.ceiling)
            frame, up = frames.fenced(frame, self._columns, *ends, is_log=is_log)
        else:
            frame = frame.assign(
                **{name: frame[name].where(np.isfinite(frame[name])) for name in self._columns}
            )
        if self.x_scale == "decades":
            frame, across = frames.fenced(frame, [str(self.x)], None, self.x_ceiling)
        if self.mark == "histogram":
            frame = frames.binned(frame, "value", self._fields)
        return frame, across, up

    def _edge_words(self) -> list[str]:
        """Which numbers lie on an edge of an axis rather than at their own place, and how many have none."""
        infinite = int(np.isinf(self.frame[self._columns].to_numpy(dtype=float)).any(axis=1).sum())
        is_lost = self._kind == "linear" and infinite > 0
        sentences = [f"Infinite numbers are not drawn, of {infinite} marks."] if is_lost else []
        for axis, (low, high) in zip((self._title(self.x), self._value_title), self._scaled[1:], strict=True):
            parts = [f"at most {power(low)}"] if math.isfinite(low) else []
            parts += [f"at least {power(high)}"] if math.isfinite(high) else []
            sentences += [f"{axis}: what is {' or '.join(parts)} lies on the edge."] if parts else []
        return sentences

    def _across(self) -> Axis:
        title, name = self._title(self.x), str(self.x)
        if self.mark in ("bars", "heat_map", "histogram") and not self.borders:
            return Axis(title=title)
        if self.x_scale == "decades":
            return Axis(
                title=title, scale="decades", ticks=frames.decade_ticks(self._scaled[0][name].to_numpy(float))
            )
        at = np.unique(self.frame[name].dropna().to_numpy(dtype=float))
        doubles = len(at) > 0 and at[0] > 0 and bool((at[1:] >= 2 * at[:-1]).all())
        given = self.x_scale or self.result[name].attrs.get("scale")
        scale: Any = given or ("doubling" if doubles else "linear")
        ticks = at.tolist() if scale == "doubling" or self.borders else None
        return Axis(title=title, scale=scale, ticks=ticks, format=self.x_format)

    def _up(self) -> Axis:
        title, form, domain = self._value_title, self.format, self.domain
        if self._kind != "linear":
            columns = ["from", "to"] if self.mark == "histogram" else self._columns
            ticks = frames.decade_ticks(self._scaled[0][columns].to_numpy(dtype=float).ravel())
            ticks = ticks if self.ticks is None else np.log10(self.ticks).tolist()
            return Axis(title=title, scale="decades", domain=domain, ticks=ticks)
        if domain is None and form is not None and form.endswith("%"):
            domain = frames.share_domain(self.frame[self._columns].to_numpy(dtype=float).ravel())
        if domain is not None and form == ".0%" and domain[1] - domain[0] < 0.1:
            form = ".1%"  # two ticks would have the same words
        return Axis(title=title, domain=domain, ticks=self.ticks, format=form)

    # What the mark is told

    def _arguments(self) -> dict[str, Any]:
        common = {
            "x": self._across(),
            "y": self._up(),
            "x_field": self.x,
            **{name: getattr(self, name) for name in ("series", "column", "row")},
            "band": ("low", "high") if self._has_spread else None,
            "open_where": self.open_where and "open",
            "level": self._level(),
            "titles": {name: self._title(name) for name in self._fields},
            "choices": [self._choice(*item) for item in self.choices.items()],
            "tooltip": self._tooltips(),
            "calculate": self._texts(),
        }
        return common | getattr(self, f"_{self.mark}", dict)()

    def _lines(self) -> dict[str, Any]:
        return {} if self.beside is None else {"y_field": "beside"}

    def _ribbons(self) -> dict[str, Any]:
        if self.along is not None:
            return {"bands": [("q0", "q100"), ("q25", "q75")], "middle": "q50"}
        return {"bands": self.bands, "bars": [(f"{end}_low", f"{end}_high", end) for end in self.bands[-1]]}

    def _heat_map(self) -> dict[str, Any]:
        rows = sorted(self.frame[self.y].unique()) if self.borders else None
        return {
            "y": Axis(title=self._title(self.y), ticks=rows),
            "y_field": self.y,
            "value": self._up(),
            "borders": self.borders,
            "curves": self._curves() if self.curves else None,
        }

    def _curves(self) -> pd.DataFrame:
        parts = []
        for name, curve in self.curves.items():
            along = [dim for dim in curve.dims if dim not in self._fields]
            part = curve.rename(self.y if along else self.x).to_dataframe().reset_index()
            part = part.rename(columns={along[0]: self.x} if along else {}).assign(line=name)
            parts.append(part.dropna(subset=[self.y if along else self.x]))
        frame = pd.concat(parts, ignore_index=True)
        names = [self.x, self.y, "line", *(name for name in (self.column, self.row) if name in frame)]
        inside = np.isfinite(frame[self.x].astype(float))
        return self._in_words(frame[inside].reindex(columns=names))

    def _histogram(self) -> dict[str, Any]:
        told: dict[str, Any] = {"x": self._up(), "y": Axis(title="Density")}
        if self.beside is None:
            return told
        density = self.result[self.beside]
        frame = density.rename("density").to_dataframe().reset_index()
        return told | {"theory": self._in_words(frame.rename(columns={str(density.dims[-1]): "at"}))}

    @property
    def _has_spread(self) -> bool:
        return {"low", "high"} <= set(self.frame) and bool((self.frame["low"] < self.frame["high"]).any())

    def _level(self) -> tuple[float, str] | None:
        if self.level is None or self._kind == "linear":
            return self.level
        return math.log10(self.level[0]), self.level[1]

    def _choice(self, name: str, first: Any) -> Choice:
        column = self.frame[name]
        is_text = isinstance(column.dtype, pd.CategoricalDtype)
        values = tuple(frames.levels(self.frame, name) if is_text else sorted(column.unique()))
        said = self._sayer(name)(first) if is_text else first
        wanted = {"first": values[0], "last": values[-1]}.get(first, said)
        return Choice(name, values, wanted if wanted in values else values[0], self._within(name))

    def _within(self, name: str) -> str:
        """A title within a sentence."""
        title = self._title(name)
        return title[:1].lower() + title[1:]

    # Tooltips

    def _numbers(self) -> dict[str, str]:
        """The columns of numbers that a tooltip says, with their titles."""
        if self.mark == "histogram":
            return {}
        if self.along is not None:
            return _QUARTILES
        if self.mark == "ribbons" and not isinstance(self.values, str):
            return dict(reversed(list(self.values.items())))
        sample = " and ".join(self._title(name) for name in self._over if self.result.sizes[name] > 1).lower()
        titles = {"value": self._value_title + (f", {self.centre}" if sample else "")}
        if self._has_spread:
            ends = map(self._title, self.ends) if self.ends else (f"lowest {sample}", f"highest {sample}")
            titles |= zip(("low", "high"), ends, strict=True)
        return titles | ({} if self.beside is None else {"beside": "theory"})

    def _texts(self) -> dict[str, str]:
        """The Vega expressions of numbers as text."""
        _, across, up = self._scaled
        form = self.format or ".3g"
        plainly = f"isValid(datum['{{0}}']) ? format(datum['{{0}}'], '{form}') : ''".format
        texts = {
            name: plainly(name) if self._kind == "linear" else frames.readout(name, up)
            for name in self._numbers()
        }
        texts |= {str(self.x): frames.readout(str(self.x), across)} if self.x_scale == "decades" else {}
        return {f"{name}_text": text for name, text in texts.items()}

    def _tooltips(self) -> list[alt.Tooltip]:
        who = [name for name in dict.fromkeys([*self._fields, self.x]) if name is not None]
        said = [self._tip(name) for name in who]
        said += [alt.Tooltip(f"{name}_text:N", title=title) for name, title in self._numbers().items()]
        return said + [self._tip(name) for name in self.tooltip]

    def _tip(self, name: str) -> alt.Tooltip:
        column, title = self.frame[name], self._within(name)
        if name == self.x and self.x_scale == "decades":
            return alt.Tooltip(f"{name}_text:N", title=title)
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            return alt.Tooltip(f"{name}:Q", title=title, format=".4~g")
        return alt.Tooltip(f"{name}:N", title=title)
