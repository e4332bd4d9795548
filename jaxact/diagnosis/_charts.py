"""The figures of a diagnosis: what was measured at every product, in order of execution, and theory beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from jaxact import theme
from jaxact.diagnosis._rows import Row

_PRODUCT = "product, in order of execution"
_BY_DEPTH = "Signal and gradient by depth"
_WIDTH, _HEIGHT = 500, 280
_NARROW = 1.5  # the least range of a log scale, as a factor
_FINEST = ("1", "1.2", "1.5", "2", "2.5", "3", "4", "5", "6", "8")
_FINE, _COARSE = ("1", "1.5", "2", "3", "5", "7"), ("1", "2", "5")
_FEW = 5  # decades that each have a tick
_SHARES = {"zero": "exactly zero", "dead": "units zero for every input", "saturated": "saturated"}
_INPUTS = "how alike different inputs are after each product: 1 is the same direction, 0 unrelated"


def by_depth(rows: Sequence[Row], *, width: int | None = None) -> Any:
    """Second moment and gradient, measured and predicted, on log scales.

    Args:
        rows: two or more.
        width: of a panel, in pixels, the second below the first; by default 500, beside each other.
    """
    moments = _pair(rows, "second_moment", "second moment of the product", is_log=True)
    gradients = _pair(
        rows, "gradient", "gradient at the product, root mean square", is_log=True, is_first=False
    )
    below = ["both keep their size where deep networks train;", "the gradient runs from right to left"]
    if width is not None:
        panels = [each.properties(width=width, height=_HEIGHT) for each in (moments, gradients)]
        return _finished(alt.vconcat(*panels), _BY_DEPTH, below)
    return _finished(
        alt.hconcat(moments, gradients, spacing=30),
        _BY_DEPTH,
        " ".join(below),
        f"The numbers are those of the table below; point at a mark for the product's name.{_without_place(rows)}",
    )


def charts(rows: Sequence[Row]) -> dict[str, Any]:
    """Every figure that there is anything to draw for, by name; the first is `by_depth`.

    Args:
        rows: two or more.
    """
    found = {"by-depth": by_depth(rows)}
    if _is_told(rows, "cosine"):
        chart = _pair(rows, "cosine", "cosine")
        found["cosine"] = _finished(chart, "Cosine between inputs", _INPUTS)
    if any(_is_told(rows, name) for name in _SHARES):
        found["shares"] = _shares(rows)
    if _is_told(rows, "effective_rank"):
        chart = _lines(rows, {"effective_rank": "effective rank"}, "effective rank of the inputs")
        below = "participation ratio of the Gram matrix of up to 64 inputs, at most their number"
        found["rank"] = _finished(chart, "Effective rank", below)
    if _is_told(rows, "largest"):
        ends = {"largest": "largest", "smallest": "smallest"}
        chart = _lines(rows, ends, "singular value", is_log=True)
        below = "of the Jacobian from the first input to each product" + (
            "" if rows[0].is_exact else "; the largest is an estimate from below"
        )
        found["singular-values"] = _finished(chart, "Ends of the singular values", below)
    return found


def _shares(rows: Sequence[Row]) -> Any:
    """Zero, dead and saturated; of relu the same entries are zero and saturated, and one line says so."""
    told, below = dict(_SHARES), "saturated: the activation's slope is below 1 % of its largest"
    if _is_told(rows, "zero") and all(
        row.zero == row.saturated or not math.isfinite(row.zero) for row in rows
    ):
        del told["saturated"]
        told["zero"] = "exactly zero, and so saturated"
    chart = _lines(rows, told, "share after the activation", form=".0%")
    return _finished(chart, "Zero, dead and saturated", below)


def _pair(rows: Sequence[Row], name: str, title: str, *, is_log: bool = False, is_first: bool = True) -> Any:
    series = {name: "measured", f"predicted_{name}": "theory"}
    return _lines(rows, series, title, is_log=is_log, is_first=is_first)


def _lines(
    rows: Sequence[Row],
    series: Mapping[str, str],
    title: str,
    *,
    is_log: bool = False,
    is_first: bool = True,
    form: str = "",
) -> Any:
    """A line for each of the rows' fields; it breaks where there is no value.

    A click on the legend picks a series out, in all panels: the first has the parameter.
    """
    data: list[dict[str, Any]] = [
        {"product": k, "name": row.name, "line": row.line, "series": label, "value": value}
        for k, row in enumerate(rows, 1)
        for field, label in series.items()
        if _is_told(rows, field)
        for value in [_shown(getattr(row, field), is_log=is_log)]
    ]
    labels = list(dict.fromkeys(each["series"] for each in data))
    values = [each["value"] for each in data if each["value"] is not None]
    # Without a stroke: the dashes of lines, around a symbol, would look like a mark of their own.
    key = alt.Legend(orient="top", direction="horizontal", columns=len(labels), symbolStrokeWidth=0)
    look = theme.style(labels)
    picked = alt.selection_point(name="picked", fields=["series"], bind="legend")
    scale, axis = _log_scale(values) if is_log else _scale(form)

    def told_apart(channel: Any, signs: Sequence[Any], legend: Any) -> Any:
        return channel("series:N", title=None, legend=legend).scale(domain=labels, range=list(signs))

    chart = (
        alt.Chart(alt.Data(values=data), width=_WIDTH, height=_HEIGHT)
        .mark_line(point={"size": 36}, strokeWidth=1.8)
        .encode(
            x=alt.X("product:Q", title=_PRODUCT, axis=alt.Axis(tickMinStep=1, format="d")).scale(
                domain=[1, len(rows)], nice=False, padding=8
            ),
            y=alt.Y("value:Q", title=title, axis=alt.Axis(**axis)).scale(**scale),
            color=told_apart(alt.Color, look.colours, key if labels[1:] else None),
            shape=told_apart(alt.Shape, look.shapes, key if labels[1:] else None),
            strokeDash=told_apart(alt.StrokeDash, [list(each) for each in look.dashes], None),
            opacity=alt.when(picked).then(alt.value(1)).otherwise(alt.value(0.1)),
            tooltip=[
                alt.Tooltip("product:Q", title="product"),
                alt.Tooltip("name:N"),
                alt.Tooltip("line:N"),
                alt.Tooltip("series:N", title="number"),
                alt.Tooltip("value:Q", title=title, format=form or ".4~g"),
            ],
        )
    )
    return chart.add_params(picked) if is_first else chart


def _scale(form: str) -> tuple[dict[str, Any], dict[str, Any]]:
    shares = {"domainMin": 0} if form else {"zero": False}
    return shares | {"padding": 8}, {"format": form, "tickCount": 6}


def _log_scale(values: Sequence[float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A log scale and its axis, with ticks that no range is too narrow or too wide for."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if high < _NARROW * low:  # one number, perhaps
        low, high = low / _NARROW**0.5, high * _NARROW**0.5
    scale = {"type": "log", "domain": [low, high], "nice": False, "padding": 8}
    return scale, {"values": _ticks(low, high), "format": "~g", "labelOverlap": "greedy"}


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high, about evenly apart on a log scale.

    >>> _ticks(0.3, 2.0)
    [0.3, 0.5, 0.7, 1.0, 1.5, 2.0]
    >>> _ticks(2e-9, 3.0)
    [1e-08, 1e-06, 0.0001, 0.01, 1.0]
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = math.log10(high / low)
    digits = _FINEST if decades < 0.5 else _FINE if decades < 1 else _COARSE if decades < _FEW else ("1",)
    step = max(1, math.ceil(decades / _FEW)) if digits == ("1",) else 1
    ticks = [float(f"{digit}e{k}") for k in range(first - first % step, last + 1, step) for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]


def _finished(chart: Any, title: str, subtitle: str | list[str], caption: str = "") -> Any:
    chart = chart.properties(title={"text": title, "subtitle": subtitle}, config=alt.Config(**theme.LIGHT))
    return chart.properties(usermeta={"caption": caption}) if caption else chart


def _without_place(rows: Sequence[Row]) -> str:
    """What a log scale cannot show."""
    names = [row.name for row in rows if row.gradient == 0]
    return (
        f" The gradient is exactly 0, and not drawn, at {len(names)} of {len(rows)} products."
        if names
        else ""
    )


def _is_told(rows: Sequence[Row], field: str) -> bool:
    return any(math.isfinite(getattr(row, field)) for row in rows)


def _shown(value: float, *, is_log: bool) -> float | None:
    return value if math.isfinite(value) and (value > 0 or not is_log) else None
