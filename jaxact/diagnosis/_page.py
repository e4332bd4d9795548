"""A diagnosis as one interactive page: what was found first, then the figures, every number, and how it was made."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
from markupsafe import Markup

from jaxact.diagnosis._charts import charts
from jaxact.diagnosis._rows import Row
from jaxact.escapes import visible_tree
from jaxact.page import Page, render

#: field -> column of the table, in order; what no row has is left out
_COLUMNS = {
    "kind": "kind",
    "shape": "shape",
    "line": "line",
    "second_moment": "second moment",
    "predicted_second_moment": "second moment, theory",
    "gradient": "gradient",
    "predicted_gradient": "gradient, theory",
    "gradient_factor": "gradient / next",
    "predicted_gradient_factor": "gradient / next, theory",
    "cosine": "cosine",
    "predicted_cosine": "cosine, theory",
    "effective_rank": "effective rank",
    "mean": "mean",
    "predicted_mean": "mean, theory",
    "zero": "share zero",
    "dead": "share dead",
    "saturated": "share saturated",
    "weight_scale": "sigma_w^2",
    "fan_in": "fan-in",
    "largest": "largest singular value",
    "smallest": "smallest singular value",
    "reason": "why there is no theory",
}
_CAPTION = (
    "Gradient: root mean square of the gradient of the loss at the product. sigma_w^2: fan-in times the mean square of "
    "the weights. Theory is exact at infinite width at initialisation, an approximation elsewhere."
)


class _Said(str):
    """A finding as the page takes it: its text, what it is about, and as HTML what to do about it."""

    topic: str
    advice: Markup

    def __new__(cls, text: str, topic: str = "", advice: Markup | str = "") -> _Said:
        said = super().__new__(cls, text)
        said.topic, said.advice = topic, Markup(advice)
        return said


def page(
    rows: Sequence[Row],
    loss: str,
    remarks: Sequence[str],
    findings: Sequence[Any],
    name: str,
    facts: Mapping[str, Any],
) -> str:
    """The page as HTML; see `Diagnosis.page`."""
    specs = {}
    for key, chart in charts(rows).items() if len(rows) > 1 else ():
        specs[key] = visible_tree(chart.to_dict(validate=False))
    said = list(map(_said, findings))
    notes = [_Said(remark, "How it was measured") for remark in remarks]
    return render(
        Page(
            name=f"Diagnosis of {name}",
            lead=summary(rows) if hasattr(findings[0], "text") else "",
            origin=[f"{len(rows)} products", f"gradient of {loss}"],
            findings=[*said, *notes],
            figures=specs,
            tables={"Every product": _table(rows)},
            facts=facts,
            groups={"Versions": _versions()},
            others="Other findings and notes" if len(said) > 1 else "Notes",
        )
    )


def summary(rows: Sequence[Row]) -> str:
    """The way of signal and gradient through the model, in a sentence.

    Args:
        rows: one or more.
    """
    first, last = rows[0], rows[-1]
    if len(rows) == 1:
        return f"One product: second moment {first.second_moment:.3g}, gradient {first.gradient:.3g}."
    ways = [
        _way("the second moment goes", first.second_moment, last.second_moment, last.predicted_second_moment),
        _way("the cosine between inputs", first.cosine, last.cosine, last.predicted_cosine),
        _way("the gradient, on its way back,", last.gradient, first.gradient, first.predicted_gradient),
    ]
    return f"Over {len(rows)} products {', '.join(each for each in ways if each)}."


def _way(what: str, start: float, end: float, expected: float) -> str:
    if not math.isfinite(start + end):
        return ""
    theory = f" (theory {expected:.2g})" if math.isfinite(expected) else ""
    return f"{what} from {start:.2g} to {end:.2g}{theory}"


def _said(finding: Any) -> _Said:
    """A finding by its fields; or a sentence."""
    if not hasattr(finding, "text"):
        return _Said(str(finding))
    kind = f"{finding.kind} at {finding.place} ({finding.line})"
    return _Said(
        f"[{finding.severity:.1f}] {kind[0].upper()}{kind[1:]}: {finding.text}",
        finding.kind,
        Markup().join(_advice(finding)),
    )


def _advice(finding: Any) -> Iterator[Markup]:
    for title, words in (("Cause", finding.cause), ("Remedy", finding.remedy)):
        if words:
            yield Markup("<p><b>{}.</b> {}</p>").format(title, words)
    if finding.code:
        yield Markup("<pre><code>{}</code></pre>").format(finding.code)


def _table(rows: Sequence[Row]) -> pd.DataFrame:
    frame = pd.DataFrame([dataclasses.asdict(row) for row in rows])
    frame["shape"] = ["\N{MULTIPLICATION SIGN}".join(map(str, row.shape)) for row in rows]
    told = [name for name in _COLUMNS if not frame[name].replace("", np.nan).isna().all()]
    table = frame[["name", *told]].rename(columns={"name": "product"} | _COLUMNS)
    table.insert(0, "#", range(1, len(rows) + 1))
    table.attrs["caption"] = _CAPTION
    return table


def _versions() -> dict[str, str]:
    own = {"python": platform.python_version(), "device": jax.devices()[0].device_kind}
    return {each: _version(each) for each in ("jaxact", "jax", "numpy")} | own


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "a checkout that is not installed"
