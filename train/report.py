"""The report of a run: one self-contained page with the findings first, and the figures as files."""

import functools
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert
import xarray as xr

from train.results import write_atomically

__all__ = ["write_report"]

_SCALE = 2.0  # pixels of a PNG for each pixel of the chart
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PARAMETER = re.compile(r"(shown|chosen)_(\w+)")
_FIRST_FACTS = ("study", "run_id", "command", "device", "started", "wall_seconds", "git_commit", "experiment")
_HERE = Path(__file__).parent
# Nothing may be loaded; vega compiles its expressions, which needs eval.
_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'unsafe-inline' 'unsafe-eval'",
        "style-src 'unsafe-inline'",
        "img-src data: blob:",
    ]
)

Spec = dict[str, Any]


def write_report(result: xr.Dataset, experiment: Any, directory: Path) -> Path:
    """Write the figures and the page of a result into its run folder, from the result alone.

    The page opens without a network: scripts and data are inside it, and its content security policy forbids
    it to load anything. The same result gives the same bytes.

    Args:
        result: a combined Dataset; its attributes say how it was made.
        experiment: an experiment, or its type, with the static methods `figures`, `findings` and `tables`.
        directory: the run folder; made if it is not there. Gets `figures/<name>.png`, `figures/<name>.svg`
            and `report.html`, each written whole or not at all, the page last.

    Returns:
        The path of the page.

    Raises:
        ValueError: a figure's name cannot be a file name.
        OSError: a file cannot be written.
    """
    charts = dict(experiment.figures(result))
    for name in charts:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"figures() gave a figure the name {name!r}, which must be a file name of letters, digits, _ "
                "and -. Rename it."
            )
    specs = {name: _spec(chart) for name, chart in charts.items()}
    page = _page(result, experiment, specs)
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, spec in specs.items():
        svg = vl_convert.vegalite_to_svg(spec, allowed_base_urls=[])
        write_atomically(folder / f"{name}.svg", svg.encode())
        write_atomically(folder / f"{name}.png", vl_convert.svg_to_png(svg, scale=_SCALE))
    path = directory / "report.html"
    write_atomically(path, page.encode())
    return path


def _spec(chart: alt.TopLevelMixin) -> Spec:
    with alt.data_transformers.disable_max_rows():  # of charts that hold a frame; the limit is for notebooks
        return chart.to_dict()


def _page(result: xr.Dataset, experiment: Any, specs: Mapping[str, Spec]) -> str:
    title, lead = _title(result, experiment)
    origin = [str(result.attrs[name]) for name in ("run_id", "started", "device") if result.attrs.get(name)]
    tables = {str(name): table for name, table in experiment.tables(result).items()}
    parts = [
        f"<header><h1>{_text(title)}</h1>",
        f'<p class="lead">{_text(lead)}</p>' if lead else "",
        f'<p class="origin">{_text(" / ".join(origin))}</p></header>' if origin else "</header>",
        "<main>",
        _findings(experiment.findings(result)),
        _figures(specs),
        _tables(tables, shown={name for name, _ in _parameters(specs) if name.startswith("shown_")}),
        _making(result),
        "</main>",
        _scripts(specs),
    ]
    body = "\n".join(part for part in parts if part)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>
{(_HERE / "report.css").read_text(encoding="utf-8")}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _title(result: xr.Dataset, experiment: Any) -> tuple[str, str]:
    kind = experiment if isinstance(experiment, type) else type(experiment)
    name = str(result.attrs.get("study") or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", kind.__name__))
    name = name.replace("_", " ").strip().lower()
    # A dataclass without a docstring is given its signature for one.
    doc = (kind.__doc__ or "").strip()
    lead = "" if doc.startswith(f"{kind.__name__}(") else doc.split("\n\n")[0].replace("\n", " ")
    return name[:1].upper() + name[1:], " ".join(lead.split())


def _findings(findings: Sequence[str]) -> str:
    items = [_finding(finding) for finding in findings] or ["No finding: the result holds nothing to judge."]
    lines = "\n".join(f"<li>{item}</li>" for item in items)
    return f'<section><h2 id="verdict">Verdict</h2>\n<ul class="verdict">\n{lines}\n</ul></section>'


def _finding(sentence: str) -> str:
    subject, colon, rest = sentence.partition(": ")
    if colon and len(subject) <= 80:
        return f"<strong>{_text(subject)}:</strong> {_text(rest)}"
    return _text(sentence)


def _figures(specs: Mapping[str, Spec]) -> str:
    if not specs:
        nothing = "No figure: the result holds no number to draw."
        return f'<section><h2 id="figures">Figures</h2>\n<p>{nothing}</p></section>'
    items, figures = [], []
    for number, (name, spec) in enumerate(specs.items(), start=1):
        title, subtitle = _words(spec, name)
        caption = spec.get("usermeta", {}).get("caption", "")
        items.append(f'<li><a href="#{name}">{_text(title)}</a></li>')
        figures.append(
            f'<figure id="{name}" aria-labelledby="title-{name}">\n'
            f'<figcaption><h3 id="title-{name}">{number}. {_text(title)}</h3>\n'
            + (f'<p class="subtitle">{_text(subtitle)}</p>\n' if subtitle else "")
            + f'</figcaption>\n<div class="view" id="view-{name}" data-state="waiting"></div>\n'
            + (f'<p class="note">{_text(caption)}</p>\n' if caption else "")
            + "</figure>"
        )
    return "\n".join(
        [
            '<section><h2 id="figures">Figures</h2>',
            '<nav aria-label="Figures"><ol>',
            *items,
            "</ol></nav>",
            "<p>Hover over a mark for its numbers; click an entry of a legend to highlight it (with Shift, "
            "several); the "
            "boxes below act on all figures and tables.</p>",
            "<noscript><p>The figures need JavaScript here; the folder figures/ holds them as PNG and "
            "SVG.</p></noscript>",
            _filters(specs),
            *figures,
            "</section>",
        ]
    )


def _words(spec: Spec, name: str) -> tuple[str, str]:
    title = spec.get("title") or name.replace("_", " ")
    if not isinstance(title, dict):
        title = {"text": title}
    return _joined(title.get("text", name)), _joined(title.get("subtitle", ""))


def _joined(text: Any) -> str:
    return " ".join(str(line) for line in text) if isinstance(text, list) else str(text)


def _filters(specs: Mapping[str, Spec]) -> str:
    """Checkboxes for what is shown and menus for what is chosen, each once for all figures."""
    groups = []
    colours: dict[str, dict[str, str]] = {}
    for spec in specs.values():
        for field, names in spec.get("usermeta", {}).get("colours", {}).items():
            colours.setdefault(field, {}).update(names)
    for parameter, uses in _parameters(specs):
        kind, field = _split(parameter)
        if kind == "shown":
            values = _union(use.get("value", []) for use in uses)
            if len(values) > 1:
                boxes = [_box(parameter, value, colours.get(field, {}).get(str(value))) for value in values]
                groups.append(
                    f"<fieldset><legend>{_text(field.replace('_', ' '))}</legend>{''.join(boxes)}"
                    '<span><button type="button" data-set-all="true">all</button> / '
                    '<button type="button" data-set-all="false">none</button></span></fieldset>'
                )
        else:
            groups.append(_menu(parameter, field, uses))
    return (
        f'<form class="filters" aria-label="Filters" autocomplete="off">{"".join(groups)}</form>'
        if any(groups)
        else ""
    )


def _box(parameter: str, value: Any, colour: str | None) -> str:
    swatch = f'<span class="swatch" style="background:{_text(colour)}"></span>' if colour else ""
    return (
        f'<label><input type="checkbox" checked data-parameter="{_text(parameter)}" '
        f'value="{_text(json.dumps(value))}">'
        f"{swatch}{_text(value)}</label>"
    )


def _menu(parameter: str, field: str, uses: Sequence[Spec]) -> str:
    options = _union(use.get("bind", {}).get("options", [use.get("value")]) for use in uses)
    if len(options) < 2:
        return ""
    defaults = _union([use.get("value")] for use in uses)
    label = str(uses[0].get("bind", {}).get("name") or field.replace("_", " ")).strip()
    # Figures with different defaults keep theirs until the reader chooses.
    rows = ['<option value="null" selected>as each figure says</option>'] if len(defaults) > 1 else []
    for option in options:
        selected = " selected" if defaults == [option] else ""
        rows.append(f'<option value="{_text(json.dumps(option))}"{selected}>{_text(option)}</option>')
    return (
        f"<fieldset><legend>{_text(label)}</legend>"
        f'<select aria-label="{_text(label)}" data-parameter="{_text(parameter)}">'
        f"{''.join(rows)}</select></fieldset>"
    )


def _parameters(specs: Mapping[str, Spec]) -> list[tuple[str, list[Spec]]]:
    """The parameters that the page drives, each with its definitions in the figures; shown before chosen."""
    found: dict[str, list[Spec]] = {}
    for spec in specs.values():
        for parameter in spec.get("params", []):
            if _PARAMETER.fullmatch(parameter.get("name", "")) and "select" not in parameter:
                found.setdefault(parameter["name"], []).append(parameter)
    return sorted(found.items(), key=lambda item: item[0].startswith("chosen_"))


def _split(parameter: str) -> tuple[str, str]:
    kind, _, field = parameter.partition("_")
    return kind, field


def _union(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return list(dict.fromkeys(value for values in lists for value in values))


def _scripts(specs: Mapping[str, Spec]) -> str:
    if not specs:
        return ""
    datasets: Spec = {}
    pages = {}
    for name, spec in specs.items():
        datasets |= spec.get("datasets", {})  # named by their content: what figures share is stored once
        page = {key: value for key, value in spec.items() if key not in ("$schema", "title", "usermeta")}
        page["datasets"] = dict.fromkeys(spec.get("datasets", {}))
        page["params"] = [_without_widget(parameter) for parameter in spec.get("params", [])]
        pages[name] = page
    return "\n".join(
        [
            f'<script type="application/json" id="datasets">{_json(datasets)}</script>',
            f'<script type="application/json" id="specs">{_json(pages)}</script>',
            f"<script>{_bundle()}</script>",
            f"<script>{_script((_HERE / 'report.js').read_text(encoding='utf-8'))}</script>",
        ]
    )


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return _script(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub misses the default


def _without_widget(parameter: Spec) -> Spec:
    if _PARAMETER.fullmatch(parameter.get("name", "")) and "select" not in parameter:
        return {key: value for key, value in parameter.items() if key != "bind"}
    return parameter


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _script(source: str) -> str:
    return re.sub(
        r"</(script)|<!--", lambda match: match[0].replace("<", "\\x3c"), source, flags=re.IGNORECASE
    )


def _tables(tables: Mapping[str, pd.DataFrame], shown: set[str]) -> str:
    if not tables:
        return ""
    parts = ['<section><h2 id="tables">Tables</h2>', "<p>Click a column's name to sort by it.</p>"]
    for title, table in tables.items():
        caption = table.attrs.get("caption", "")
        parts.append(f"<h3>{_text(title)}</h3>")
        if caption:
            parts.append(f'<p class="note">{_text(caption)}</p>')
        parts.append(_table(title, table, shown))
    return "\n".join([*parts, "</section>"])


def _table(title: str, table: pd.DataFrame, shown: set[str]) -> str:
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index()
    numeric = [pd.api.types.is_numeric_dtype(table.dtypes.iloc[i]) for i in range(table.shape[1])]
    classes = [' class="number"' if number else "" for number in numeric]
    heads = "".join(
        f'<th scope="col"{kind}><button type="button">{_text(name)}</button></th>'
        for name, kind in zip(table.columns, classes, strict=True)
    )
    filters = [
        f' data-parameter-of="shown_{name}"' if f"shown_{name}" in shown else ""
        for name in map(str, table.columns)
    ]
    rows = []
    for row in table.itertuples(index=False, name=None):
        cells = "".join(
            f"<td{kind}{field}{_sort_key(value)}>{_text(_cell(value))}</td>"
            for value, kind, field in zip(row, classes, filters, strict=True)
        )
        rows.append(f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(title)}">'
        f'<table class="sortable"><thead><tr>{heads}</tr></thead>'
        "\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "" if value is None or value is pd.NA else str(value)
    if math.isnan(value):
        return ""
    if math.isinf(value):
        return "\N{INFINITY}" if value > 0 else "-\N{INFINITY}"
    return str(int(value)) if value.is_integer() and abs(value) < 1e6 else f"{value:.3g}"


def _sort_key(value: Any) -> str:
    if isinstance(value, float) and not math.isnan(value):
        key = repr(float(value)).replace("inf", "Infinity")  # as JavaScript reads it
        return f' data-sort="{key}"'
    return ""


def _making(result: xr.Dataset) -> str:
    attributes = {str(name): value for name, value in result.attrs.items()}
    names = [name for name in _FIRST_FACTS if name in attributes]
    names += sorted(name for name in attributes if name not in names)
    facts, details = [], []
    for name in names:
        parsed = _parsed(attributes[name])
        if isinstance(parsed, dict):
            title = name.replace("_", " ").capitalize()
            details.append(f'<details class="made" open><summary>{_text(title)}</summary>')
            details.append(f"{_facts(parsed)}</details>")
        else:
            facts.append((name.replace("_", " "), _fact(name, parsed)))
    sizes = ", ".join(f"{dim} {size}" for dim, size in result.sizes.items())
    facts.append(("dimensions", sizes or "none"))
    table = _facts(dict(facts))
    return "\n".join(['<section><h2 id="making">How it was made</h2>', table, *details, "</section>"])


def _fact(name: str, value: Any) -> Any:
    if name.endswith("_seconds"):
        try:
            return f"{float(value):.1f} s, all cells together"
        except (TypeError, ValueError):
            return value
    return value


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _facts(facts: Mapping[str, Any]) -> str:
    rows = []
    for name, value in facts.items():
        words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        rows.append(f'<tr><th scope="row">{_text(name)}</th><td>{_text(words)}</td></tr>')
    return '<table class="facts"><tbody>' + "\n".join(rows) + "</tbody></table>"


def _text(value: Any) -> str:
    """Any value as text that is safe in an element and in a quoted attribute."""
    return html.escape(str(value), quote=True)
