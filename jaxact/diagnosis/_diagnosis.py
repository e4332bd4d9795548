"""A diagnosis as a table, a page and a figure."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxact import theme
from jaxact.diagnosis._rows import Row
from jaxact.errors import ArgumentError

#: column -> (title, digits): what the table shows; a pair is measured and predicted
_COLUMNS: dict[str, tuple[str, str]] = {
    "kind": ("kind", "s"),
    "fan_in": ("fan-in", "d"),
    "weight_scale": ("sigma_w^2", ".3g"),
    "second_moment": ("E z^2", ".3g"),
    "predicted_second_moment": ("theory", ".3g"),
    "cosine": ("cosine", ".3f"),
    "predicted_cosine": ("theory", ".3f"),
    "effective_rank": ("rank", ".1f"),
    "zero": ("zero", ".0%"),
    "dead": ("dead", ".0%"),
    "saturated": ("saturated", ".0%"),
    "gradient": ("gradient", ".3g"),
    "predicted_gradient": ("theory", ".3g"),
    "largest": ("s_max", ".3g"),
    "smallest": ("s_min", ".3g"),
}
_LONGEST = 36  # characters of a name
_SHOWN = {"second_moment": "second moment E z^2", "gradient": "gradient (root mean square)"}


@dataclass(frozen=True)
class Diagnosis:
    """What ails a model, layer by layer.

    Attributes:
        rows: a `Row` for every product, in order of execution.
        loss: which gradients these are, in words.
        notes: what is approximate, or was passed over.
        findings: sentences on what is wrong.
    """

    rows: tuple[Row, ...]
    loss: str
    notes: tuple[str, ...] = ()
    findings: tuple[Any, ...] = ()

    def __str__(self) -> str:
        titles, lines = self._cells()
        widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
        text = ["  ".join(aligned(line, widths)).rstrip() for line in [titles, *lines]]
        return "\n".join([*text, *self._below()])

    def _repr_html_(self) -> str:
        titles, lines = self._cells()
        head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines
        )
        below = "".join(f"<p>{html.escape(line)}</p>" for line in self._below())
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"

    def to_frame(self) -> Any:
        """Every number as a pandas DataFrame, a line for each row.

        Raises:
            ImportError: pandas is not installed; `pip install jaxact[study]`.
        """
        import pandas

        return pandas.DataFrame([dataclasses.asdict(row) for row in self.rows])

    def chart(self) -> Any:
        """Measured and predicted second moment and gradient by depth, on a log scale, as an Altair chart.

        Raises:
            ValueError: there are fewer than two rows, so there is no depth.
            ImportError: altair is not installed; `pip install jaxact[study]`.
        """
        import altair as alt

        if len(self.rows) < 2:
            raise ArgumentError("A chart needs two products or more, got 1.", "Print the diagnosis instead.")
        panels = [_panel(self.rows, name, title) for name, title in _SHOWN.items()]
        return alt.hconcat(*panels).configure(**theme.LIGHT)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        used = [
            name for name in _COLUMNS if any(told(getattr(row, name), _COLUMNS[name][1]) for row in self.rows)
        ]
        titles = ["product", "line", *(_COLUMNS[name][0] for name in used)]
        lines = [
            [shortened(row.name), row.line, *(told(getattr(row, name), _COLUMNS[name][1]) for name in used)]
            for row in self.rows
        ]
        return titles, lines

    def _below(self) -> list[str]:
        reasons = dict.fromkeys(row.reason for row in self.rows if row.reason)
        only = [
            f"measured only, {reason}: {', '.join(shortened(r.name) for r in self.rows if r.reason == reason)}."
            for reason in reasons
        ]
        return [f"gradient of {self.loss}.", *only, *self.notes, *map(str, self.findings)]


def told(value: Any, digits: str) -> str:
    """A number as tables show it; nothing for NaN."""
    return "" if isinstance(value, float) and math.isnan(value) else format(value, digits)


def shortened(name: str) -> str:
    """A name's end, where it is long."""
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"


def aligned(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Text to the left, numbers to the right."""
    return [
        cell.ljust(width) if k < 3 else cell.rjust(width)
        for k, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]


def _panel(rows: Sequence[Row], name: str, title: str) -> Any:
    import altair as alt

    look = theme.style(["measured", "theory"])
    data = [
        {"product": k, "name": row.name, "line": row.line, "series": series, title: value}
        for k, row in enumerate(rows)
        for series, value in (("measured", getattr(row, name)), ("theory", getattr(row, f"predicted_{name}")))
        if math.isfinite(value) and value > 0
    ]
    order = list(look.names)
    return (
        alt.Chart(alt.Data(values=data), width=360, height=260)
        .mark_line(point=True)
        .encode(
            x=alt.X("product:Q", title="product, in order of execution"),
            y=alt.Y(f"{title}:Q", title=title).scale(type="log"),
            color=alt.Color("series:N", title=None).scale(domain=order, range=list(look.colours)),
            shape=alt.Shape("series:N", title=None).scale(domain=order, range=list(look.shapes)),
            strokeDash=alt.StrokeDash("series:N", title=None).scale(
                domain=order, range=[list(dash) for dash in look.dashes]
            ),
            tooltip=["name:N", "line:N", "series:N", f"{title}:Q"],
        )
    )
