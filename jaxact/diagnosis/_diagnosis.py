"""A diagnosis as a table, a page and a figure."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxact.diagnosis._finding import Finding
from jaxact.diagnosis._rows import Row
from jaxact.errors import ArgumentError

#: column -> (title, digits): what the table shows; a pair is measured and predicted
_COLUMNS: dict[str, tuple[str, str]] = {
    "line": ("line", "s"),
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
#: what a narrow table shows, the most telling first; what stands together is shown together
_FIRST = (
    *(("second_moment", "predicted_second_moment"), ("gradient", "predicted_gradient")),
    *(("cosine", "predicted_cosine"), ("dead",), ("saturated",), ("zero",), ("weight_scale",), ("line",)),
    *(("kind",), ("largest",), ("smallest",), ("effective_rank",), ("fan_in",)),
)
_GAP = 2  # between columns


@dataclass(frozen=True)
class Diagnosis:
    """What ails a model, layer by layer.

    Attributes:
        rows: a `Row` for every product, in order of execution.
        loss: which gradients these are, in words.
        notes: what is approximate, or was passed over.
        findings: a `Finding` for every fault, the gravest first.
    """

    rows: tuple[Row, ...]
    loss: str
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        titles, *lines = self._columns_of_text(self._used())
        head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in lines
        )
        said = [*self.remarks(), *self._found()]
        below = "".join(f"<p>{_as_html(line)}</p>" for line in said if line)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{below}"

    def to_frame(self) -> Any:
        """Every number as a pandas DataFrame, a line for each row.

        Raises:
            ImportError: pandas is not installed; `pip install jaxact[study]`.
        """
        import pandas

        return pandas.DataFrame([dataclasses.asdict(row) for row in self.rows])

    def chart(self, *, width: int | None = None) -> Any:
        """Measured and predicted second moment and gradient by depth, on a log scale, as an Altair chart.

        Args:
            width: of a panel, in pixels, for a narrow page: the gradient then stands below. By default they stand
                beside each other, 500 wide.

        Raises:
            ValueError: there are fewer than two rows, so there is no depth.
            ImportError: altair is not installed; `pip install jaxact[study]`.
        """
        if len(self.rows) < 2:
            raise ArgumentError("A chart needs two products or more, got 1.", "Print the diagnosis instead.")
        from jaxact.diagnosis import _charts

        return _charts.by_depth(self.rows, width=width)

    def page(self, name: str, facts: Mapping[str, Any] | None = None) -> str:
        """One self-contained interactive page: findings, figures, every number, and how it was made.

        Args:
            name: of the model, for the heading.
            facts: how it was made, beside the versions.

        Returns:
            HTML that opens without a network.

        Raises:
            ImportError: altair, jinja2 or another is not installed; `pip install jaxact[study]`.
        """
        from jaxact.diagnosis import _page

        findings = self.findings or [" ".join([*self._found(), _page.summary(self.rows)])]
        return _page.page(self.rows, self.loss, self.remarks(), findings, name, facts or {})

    def text(self, width: int | None = None, num_rows: int | None = None) -> str:
        """The table, the remarks and the findings.

        Args:
            width: as in `table`; what it has no room for is named.
            num_rows: as in `table`.
        """
        hidden = [] if width is None else self._hidden(width)
        said = [f"no room for: {', '.join(hidden)}."] if hidden else []
        return "\n".join([self.table(width, num_rows), *said, *self.remarks(), *self._found()])

    def table(self, width: int | None = None, num_rows: int | None = None) -> str:
        """The rows as aligned text.

        Args:
            width: in characters: the most telling columns that it has room for; at least the names and the second
                moment. By default as wide as all columns are.
            num_rows: of more, only so many are shown, the first and the last. By default all.
        """
        used = self._used()
        if width is not None:
            used = self._fitting(used, width)
        lines = self._columns_of_text(used)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        num_text = 1 + sum(_COLUMNS[name][1] == "s" for name in used)
        text = [(" " * _GAP).join(aligned(line, widths, num_text)).rstrip() for line in lines]
        if num_rows is not None and len(self.rows) > num_rows:
            first, last = 1 + (num_rows + 1) // 2, num_rows // 2
            text[first : len(text) - last] = [f"... {len(self.rows) - num_rows} more"]
        return "\n".join(text)

    def remarks(self) -> list[str]:
        """Which gradients these are, what is measured only, and the notes: a sentence each."""
        reasons = dict.fromkeys(row.reason for row in self.rows if row.reason)
        only = [
            f"measured only, {reason}: {', '.join(shortened(r.name) for r in self.rows if r.reason == reason)}."
            for reason in reasons
        ]
        return [f"gradient of {self.loss}.", *only, *self.notes]

    def _found(self) -> list[str]:
        return ["", *map(str, self.findings)] if self.findings else ["nothing wrong found."]

    def _hidden(self, width: int) -> list[str]:
        """The titles of the columns that a table of this width has no room for."""
        used = self._used()
        return [_title(name) for name in used if name not in self._fitting(used, width)]

    def _used(self) -> list[str]:
        """The columns that any row has a value for."""
        return [
            name
            for name, (_, digits) in _COLUMNS.items()
            if any(told(getattr(row, name), digits) for row in self.rows)
        ]

    def _fitting(self, used: Sequence[str], width: int) -> list[str]:
        kept: set[str] = set()
        names, *columns = zip(*self._columns_of_text(used), strict=True)
        room = width - max(map(len, names))
        lengths = {name: _GAP + max(map(len, column)) for name, column in zip(used, columns, strict=True)}
        for together in _FIRST:
            cost = sum(lengths.get(name, 0) for name in together)
            if cost <= room or not kept:
                kept |= set(together)
                room -= cost
        return [name for name in used if name in kept]

    def _columns_of_text(self, used: Sequence[str]) -> list[list[str]]:
        """The titles, and the cells of every row."""
        cells = [
            [shortened(row.name), *(told(getattr(row, name), _COLUMNS[name][1]) for name in used)]
            for row in self.rows
        ]
        return [["product", *(_COLUMNS[name][0] for name in used)], *cells]


def _as_html(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def told(value: Any, digits: str) -> str:
    """A number as tables show it; nothing for NaN."""
    return "" if isinstance(value, float) and math.isnan(value) else format(value, digits)


def shortened(name: str) -> str:
    """A name's end, where it is long."""
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"


def _title(name: str) -> str:
    """A column's title where it stands alone."""
    title = _COLUMNS[name][0]
    return f"{_COLUMNS[name.removeprefix('predicted_')][0]} by theory" if title == "theory" else title


def aligned(line: Sequence[str], widths: Sequence[int], num_text: int = 3) -> list[str]:
    """Text, which comes first, to the left, numbers to the right."""
    return [
        cell.ljust(width) if k < num_text else cell.rjust(width)
        for k, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
