"""One fault: what it is, how grave, where, why, and what is done about it."""

from __future__ import annotations

import html
from dataclasses import dataclass, field

from jaxact.diagnosis._evidence import Evidence
from jaxact.diagnosis._known import expression
from jaxact.diagnosis._remedies import Facts, remedy

BLOCKED = 38.0  # decades: all that float32 has below 1, as severity of what stops training altogether


@dataclass(frozen=True)
class Finding:
    """A fault.

    Attributes:
        kind: one of `jaxact.diagnosis.KINDS`.
        severity: in decades, of the signal, gradient or range that is lost; 38, all that float32 has, where training
            cannot start.
        layer: the product, by its parameter's name, where it lies or starts.
        line: file:line of that product.
        text: what was measured.
        cause: why.
        remedy: what to do.
        code: the lines that do it.
        layers: all products that it concerns.
    """

    kind: str
    severity: float
    layer: str
    line: str
    text: str
    cause: str
    remedy: str
    code: str
    layers: tuple[str, ...] = field(default=(), repr=False)

    @property
    def place(self) -> str:
        """The product where it lies or starts, and how many others it concerns."""
        return place(self.layers or (self.layer,))

    def __str__(self) -> str:
        lines = [f"    {line}" for line in self.code.splitlines()]
        head = f"[{self.severity:.1f}] {self.kind} at {self.place} ({self.line}): {self.text}"
        return "\n".join([head, f"  Cause: {self.cause}", f"  Remedy: {self.remedy}", *lines])

    def _repr_html_(self) -> str:
        kind, place, line, text, cause, remedy, code = (
            html.escape(each)
            for each in (self.kind, self.place, self.line, self.text, self.cause, self.remedy, self.code)
        )
        return (
            f"<p><b>[{self.severity:.1f}] {kind}</b> at <code>{place}</code> ({line}): {text}</p>"
            f"<p><b>Cause:</b> {cause}</p><p><b>Remedy:</b> {remedy}</p><pre>{code}</pre>"
        )


def place(layers: tuple[str, ...]) -> str:
    """Products in a few words."""
    return layers[0] if len(layers) == 1 else f"{layers[0]} and {len(layers) - 1} more"


def made(
    evidence: Evidence,
    kind: str,
    severity: float,
    rows: list[int],
    text: str,
    cause: str,
    scale: float = 1.0,
) -> Finding:
    """A finding at the first of some rows, with its remedy."""
    row = evidence.rows[rows[0]]
    layers = tuple(dict.fromkeys(evidence.rows[k].name for k in rows))
    facts = Facts(
        layer=place(layers),
        scale=scale,
        depth=max(len(evidence.weighted), 1),
        activation=expression((evidence.formulas[k] for k in rows), row.dtype),
        initialize=evidence.initialize if len(layers) > 1 else "",
    )
    sentence, code = remedy(kind, facts)
    return Finding(
        kind, float(min(severity, BLOCKED)), row.name, row.line, text, cause, sentence, code, layers
    )
