"""Frames of figures: labelled arrays as tidy rows, numbers as decades, names as ordered words."""

import json
import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from train.words import power


def label(variable: xr.DataArray) -> str:
    """The axis label of a variable: its long name and its unit.

    >>> label(xr.DataArray(0.0, attrs={"long_name": "run time", "units": "s"}))
    'Run time (s)'
    """
    name = str(variable.attrs.get("long_name") or variable.name or "value").replace("_", " ")
    units = str(variable.attrs.get("units", ""))
    name = name[:1].upper() + name[1:]
    words = {word.rstrip("s") for word in name.lower().split()}
    said = units in ("", "1", "dimensionless") or units.lower().rstrip("s") in words
    return name if said or f"({units})" in name else f"{name} ({units})"


def spread(
    values: xr.DataArray, over: Hashable | Sequence[Hashable], *, centre: Literal["mean", "median"] = "median"
) -> xr.Dataset:
    """The centre of a sample and its ends, leaving out what is NaN.

    Args:
        values: any array of numbers.
        over: the dimension or dimensions that the sample lies along; those that `values` lacks are left out.
        centre: the statistic that stands for the sample.

    Returns:
        Dataset of `value`, `low`, `high` and `count`: of numbers that are not NaN; where it is 0 the others are NaN.

    >>> s = spread(xr.DataArray([1.0, 2.0, 6.0, np.nan], dims="seed"), "seed", centre="mean")
    >>> float(s["value"]), float(s["low"]), float(s["high"]), int(s["count"])
    (3.0, 1.0, 6.0, 3)
    """
    wanted = [over] if isinstance(over, str) or not isinstance(over, Sequence) else list(over)
    dims = [dim for dim in wanted if dim in values.dims] or ["one"]
    values = values.astype(float)
    values = values.expand_dims("one") if dims == ["one"] else values
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
    return clip_decades(frame, _logs(frame, columns), floor=floor, ceiling=ceiling)


def _logs(frame: pd.DataFrame, columns: Sequence[str]) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: np.log10(frame[name].to_numpy(dtype=float)) for name in columns}


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
    said = f"abs({value}) < 300 ? format(pow(10, {value}), '.3g') : '1e' + format({value}, '.0f')"
    if math.isfinite(edges[0]):
        said = f"{value} <= {edges[0]} + 1e-6 ? 'at most {_edge(edges[0])}' : ({said})"
    if math.isfinite(edges[1]):
        said = f"{value} >= {edges[1]} - 1e-6 ? 'at least {_edge(edges[1])}' : ({said})"
    return f"isValid({value}) ? ({said}) : ''"


def _edge(log10: float) -> str:
    if abs(log10) < 4:
        return power(log10)
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

    Raises:
        ValueError: a column holds an infinity, which no axis can show; see `decades`.

    >>> data, expressions = inline(pd.DataFrame({"a": [1 / 3, np.nan], "b": pd.Categorical(["x", "y"])}))
    >>> data["values"], expressions
    ('a,b_index\n0.33333,0\n,1\n', {'b': '["x", "y"][datum.b_index]'})
    """
    columns: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    expressions: dict[str, str] = {}
    for name, column in frame.items():
        kind = "string"
        if isinstance(column.dtype, pd.CategoricalDtype):
            names = json.dumps(list(map(str, column.cat.categories)))
            expressions[str(name)] = f"{names}[datum.{name}_index]"
            name, column, kind = f"{name}_index", column.cat.codes, "number"
        elif pd.api.types.is_bool_dtype(column):
            column, kind = column.astype(int), "boolean"  # Vega reads the text "False" as true
        elif pd.api.types.is_numeric_dtype(column):
            kind = "number"
            if np.isinf(column.to_numpy(dtype=float)).any():
                raise ValueError(
                    f"column {name!r} of a figure's frame holds an infinity; `decades` draws those."
                )
        columns[str(name)], kinds[str(name)] = column, kind
    text = pd.DataFrame(columns).to_csv(index=False, float_format=f"%.{digits}g", lineterminator="\n")
    return alt.InlineData(values=text, format=alt.CsvDataFormat(type="csv", parse=kinds)), expressions


def ordered(column: Iterable[Any], levels: Sequence[str]) -> pd.Categorical:
    """Words whose order is that of `levels`."""
    return pd.Categorical(list(column), categories=list(dict.fromkeys(levels)), ordered=True)


def levels(frame: pd.DataFrame, field: str) -> list[str]:
    """The values of a column as text: a categorical's own order, else in order of appearance."""
    column = frame[field]
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return [str(level) for level in column.unique()]
    present = set(column.unique())
    return [str(level) for level in column.cat.categories if level in present]


def nominal(frame: pd.DataFrame, fields: Iterable[str | None]) -> pd.DataFrame:
    """Columns of any type as ordered words, so that strings, numbers and booleans are told apart alike."""
    for field in fields:
        if field is not None and not isinstance(frame[field].dtype, pd.CategoricalDtype):
            frame = frame.assign(**{field: ordered(frame[field].map(str), levels(frame, field))})
    return frame


def dodged(frame: pd.DataFrame, x: str, series: str, *, doubling: bool) -> pd.DataFrame:
    """Add `at`: the positions, those of each series moved a little aside, so that equal points are all seen."""
    positions = np.unique(frame[x].dropna().to_numpy(dtype=float))
    count = len(frame[series].cat.categories)
    if doubling:
        positions = np.log2(positions)
    if len(positions) > 12 or not (doubling or len(positions) > 1):
        return frame.assign(at=frame[x])
    gap = (
        min([1.0 if len(positions) > 1 else 0.2, *np.diff(positions)])
        if doubling
        else np.diff(positions).min()
    )
    shift = 0.26 * gap * ((frame[series].cat.codes + 0.5) / max(count, 1) - 0.5)
    return frame.assign(at=frame[x] * 2**shift if doubling else frame[x] + shift)


def thinned(frame: pd.DataFrame, x: str, by: Sequence[str], most: int) -> pd.DataFrame:
    """At most `most` positions for each combination of the fields in `by`, as `thin` chooses them."""
    if not by or frame.empty:
        return frame[frame[x].isin(thin(np.unique(frame[x]), most))]
    places, keep = frame[x].to_numpy(), np.zeros(len(frame), bool)
    for rows in frame.groupby(list(by), observed=True, sort=False).indices.values():
        keep[rows] = np.isin(places[rows], thin(np.unique(places[rows]), most))
    return frame[keep].reset_index(drop=True)


def quantiles(values: xr.DataArray, along: str, over: Sequence[Hashable]) -> xr.Dataset:
    """Quartiles along a dimension, each the median over others: q0, q25, q50, q75 and q100.

    >>> float(quantiles(xr.DataArray([1.0, 2.0, 6.0], dims="mode"), "mode", [])["q50"])
    2.0
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of samples that are all NaN
        found = values.astype(float).quantile([0.0, 0.25, 0.5, 0.75, 1.0], dim=along)
    parts = {f"q{25 * i}": found.isel(quantile=i, drop=True) for i in range(5)}
    return xr.Dataset({name: spread(part, over)["value"] for name, part in parts.items()})


def fences(logs: np.ndarray) -> tuple[float, float]:
    """Whole decades that hold what most numbers need, and a margin; -inf and inf where nothing lies beyond.

    From Tukey's rule: beyond the quartiles by more than 1.5 times their distance, at least by four decades.

    >>> fences(np.array([0.0, 1.0, 2.0, 50.0])), fences(np.array([0.0, 1.0, 2.0, 3.0]))
    ((-inf, 34.0), (-inf, inf))
    """
    finite = np.ravel(logs)[np.isfinite(np.ravel(logs))]
    if not finite.size:
        return -math.inf, math.inf
    low, high = np.quantile(finite, [0.25, 0.75])
    reach = max(1.5 * (high - low), 4.0)
    floor, ceiling = math.floor(low - reach), math.ceil(high + reach)
    return (
        float(floor) if finite.min() < floor else -math.inf,
        float(ceiling) if finite.max() > ceiling else math.inf,
    )


def fenced(
    frame: pd.DataFrame, columns: Sequence[str], *ends: float | None, is_log: bool = False
) -> tuple[pd.DataFrame, tuple[float, float]]:
    """As `decades`, or `clip_decades`, between floor and ceiling; where one is None, as `fences` says."""
    logs = {name: frame[name].to_numpy(float) for name in columns} if is_log else _logs(frame, columns)
    found = fences(np.concatenate(list(logs.values())))
    floor, ceiling = (fence if end is None else end for fence, end in zip(found, ends, strict=True))
    return clip_decades(frame, logs, floor=floor, ceiling=ceiling)


def decade_ticks(logs: np.ndarray) -> list[float] | None:
    """Ticks at 1, 2 and 5 times each power of ten where numbers span few decades; None where powers suffice.

    >>> (10 ** np.array(decade_ticks(np.log10([15.0, 120.0])))).round().tolist()
    [20.0, 50.0, 100.0]
    """
    finite = logs[np.isfinite(logs)]
    low, high = finite.min(initial=math.inf), finite.max(initial=-math.inf)
    if not 0 < high - low < 3:
        return None
    ticks = np.arange(math.floor(low), math.ceil(high) + 1)[:, None] + np.log10([1.0, 2.0, 5.0])
    inside = ticks[(ticks >= low) & (ticks <= high)]
    return [round(tick, 5) for tick in inside.tolist()] if len(inside) > 1 else None


def share_domain(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis of shares: those of the data, padded, inside [0, 1].

    >>> share_domain(np.array([0.96, 0.98]))
    (0.958, 0.982)
    """
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    margin = max(0.1 * (high - low), 0.002)
    return round(max(low - margin, min(low, 0.0)), 6), round(min(high + margin, max(high, 1.0)), 6)


def borders(positions: Sequence[float] | np.ndarray, *, log: bool = False) -> np.ndarray:
    """The borders of boxes about increasing positions, halfway between neighbours; log: between their logarithms.

    A single position has its box a tenth of it to either side.

    >>> borders([1, 2, 4], log=True).round(3).tolist()
    [0.707, 1.414, 2.828, 5.657]
    """
    at = np.asarray(positions, dtype=float)
    if len(at) == 1:
        return at[0] * np.array([0.9, 1.1]) if at[0] > 0 else at[0] + np.array([-0.5, 0.5])
    at = np.log2(at) if log else at
    middles = (at[1:] + at[:-1]) / 2
    edges = np.concatenate([[2 * at[0] - middles[0]], middles, [2 * at[-1] - middles[-1]]])
    return 2.0**edges if log else edges


def bordered(frame: pd.DataFrame, field: str, *, log: bool = False) -> pd.DataFrame:
    """Add `<field>_from` and `<field>_to`: the borders of the box about each position."""
    positions = np.unique(frame[field].to_numpy(dtype=float))
    edges, index = borders(positions, log=log), np.searchsorted(positions, frame[field].to_numpy(dtype=float))
    return frame.assign(**{f"{field}_from": edges[index], f"{field}_to": edges[index + 1]})


def binned(samples: pd.DataFrame, field: str, by: Sequence[str], bins: int = 40) -> pd.DataFrame:
    """Histograms on common bins: `from`, `to`, `value` (density: each has area 1) and `count` for each group."""
    edges = np.histogram_bin_edges(samples[field].dropna(), bins)

    def rows(column: pd.Series) -> pd.DataFrame:
        count = np.histogram(column.dropna(), edges)[0]
        density = count / max(count.sum(), 1) / np.diff(edges)
        return pd.DataFrame({"from": edges[:-1], "to": edges[1:], "value": density, "count": count})

    if not by:
        return rows(samples[field])
    groups = samples.groupby(list(by), observed=True, sort=False)[field]
    parts = pd.concat({key: rows(column) for key, column in groups}, names=by).reset_index(list(by))
    return parts.astype({name: samples[name].dtype for name in by})


def stacked(frame: pd.DataFrame, further: pd.DataFrame, fields: Sequence[str]) -> pd.DataFrame:
    """Further rows below a frame's, repeated for each value of the fields that they lack."""
    rest = frame[[name for name in fields if name not in further]].drop_duplicates()
    further = further.merge(rest, how="cross") if len(rest.columns) else further
    kinds = {name: frame[name].dtype for name in fields}
    return pd.concat([frame, further], ignore_index=True).astype(kinds)
