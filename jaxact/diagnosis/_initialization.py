"""An initialisation as a table: what became of every weight, and why."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from jaxact.diagnosis._diagnosis import aligned, shortened, told

#: column -> (title, digits)
_COLUMNS = {
    "old": ("old sigma_w", ".3g"),
    "new": ("new sigma_w", ".3g"),
    "factor": ("factor", ".3g"),
    "second_moment": ("E z^2", ".3g"),
    "bias": ("sigma_b", ".3g"),
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """What became of one weight. A loop's stacked weights are a row each; a shared weight is one row.

    Attributes:
        name: path of the parameter in the user's own tree, with [i] for the turn of a loop.
        line: file:line of the user's code.
        kind: dense or conv.
        old: root of fan-in times mean square, as it was.
        new: the same now.
        factor: new over old; inf where it was zero.
        second_moment: of the product now, predicted or measured; of a shared weight the geometric mean.
        bias: standard deviation of the biases now; NaN where there are none.
        reason: what the scale was chosen for.
    """

    name: str
    line: str
    kind: str
    old: float
    new: float
    factor: float
    second_moment: float
    bias: float
    reason: str


@dataclass(frozen=True)
class Initialization:
    """A model's parameters at a new scale.

    Attributes:
        params: of the same structure, shapes and dtypes; for a module the same kind of object, a new one.
        changes: a `Change` for every weight, in order of execution.
        notes: what no scale mends, what was measured only, and what was left as it is.
    """

    params: Any
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        titles = ["weight", "line", "kind", *(title for title, _ in _COLUMNS.values()), "reason"]
        lines = [
            [
                shortened(each.name), each.line, each.kind,
                *(told(getattr(each, name), digits) for name, (_, digits) in _COLUMNS.items()), each.reason,
            ]
            for each in self.changes
        ]  # fmt: skip
        widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
        table = [
            "  ".join([*aligned(line[:-1], widths[:-1]), line[-1]]).rstrip() for line in [titles, *lines]
        ]
        return "\n".join([*table, *self.notes])

    __repr__ = __str__

    def to_frame(self) -> Any:
        """The changes as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed; `pip install jaxact[study]`.
        """
        import pandas

        return pandas.DataFrame([dataclasses.asdict(each) for each in self.changes])
