"""The report of a run: one self-contained page that opens with the answer, and the figures as files."""

import datetime
import functools
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import vl_convert
import xarray as xr

from jaxact import theme
from train.results import write_atomically

__all__ = ["write_report"]

_SCALE = 2.0  # pixels of a PNG for each pixel of the chart
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_FIRST_FACTS = (
    "study",
    "run_id",
    "command",
    "device",
    "started",
    "wall_seconds",
    "compile_seconds",
    "run_seconds",
    "git_commit",
)
_SMOKE = "SMOKE RUN: numbers mean nothing"
_NAMES = {
    "wall_seconds": "total time",
    "experiment": "code of the study",
    "format": "file format",
    "smoke": "smoke run",
}
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

    The page opens with the first finding, the verdict, and beside it the first figure, which shows it. It opens
    without a network: scripts and data are inside it, and its content security policy forbids it to load
    anything. The same result gives the same bytes.

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
    name, lead = _title(result, experiment)
    smoke = result.attrs.get("smoke") == "true"
    verdict, *others = experiment.findings(result) or ["No finding: the result holds nothing to judge."]
    parts = [
        f"<header><h1>{_text(name)}{f' <strong>{_SMOKE}</strong>' if smoke else ''}</h1>",
        f'<p class="lead">{_text(lead)}</p>' if lead else "",
        f'<p class="origin">{" &middot; ".join(map(_text, _origin(result)))}</p></header>',
        "<main>",
        _answer(verdict, specs),
        _contents(specs),
        _section("findings", "Findings", _findings(others)),
        '<div class="filtered">',
        _section("figures", "Figures", _figures(specs)),
        _section("tables", "Tables", _tables(experiment.tables(result))),
        "</div>",
        _section("making", "How it was made", _making(result)),
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
<title>{_text(f"{_SMOKE}. {name}" if smoke else name)}</title>
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


def _origin(result: xr.Dataset) -> list[str]:
    """What was run, where, when and by which optimizer, as far as the result says."""
    config = _parsed(result.attrs.get("config"))
    optimizer = config.get("optimizer") if isinstance(config, dict) else None
    run, device, started = (str(result.attrs.get(name, "")) for name in ("run_id", "device", "started"))
    facts = [run, device, _moment(started), f"optimizer {_readable(optimizer)}" if optimizer else ""]
    return [fact for fact in facts if fact]


def _moment(text: str) -> str:
    try:
        return f"{datetime.datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return text


def _answer(verdict: str, specs: Mapping[str, Spec]) -> str:
    picture = "<p>No figure: the result holds no number to draw.</p>"
    for name, spec in list(specs.items())[:1]:
        picture = _figure(name, spec, f"<figcaption>{_heading(1, name, spec)}</figcaption>\n")
    words = f'<div><h2 id="verdict">Verdict</h2>\n<p class="verdict">{_text(verdict)}</p></div>'
    return f'<section class="answer">{words}\n{picture}</section>'


def _contents(specs: Mapping[str, Spec]) -> str:
    titles = {name: _text(_words(spec, name)[0]) for name, spec in specs.items()}
    figures = "\n".join(f'<li><a href="#figure-{name}">{title}</a></li>' for name, title in titles.items())
    return (
        '<nav aria-label="On this page"><p><a href="#findings">Findings</a> <a href="#figures">Figures</a> '
        '<a href="#tables">Tables</a> <a href="#making">How it was made</a></p>\n'
        + (f"<ol>\n{figures}\n</ol></nav>" if figures else "</nav>")
    )


def _section(key: str, title: str, body: str) -> str:
    button = ' <button type="button" data-unfold>open all</button>' if body.count("<details>") > 1 else ""
    return f'<section><div class="head"><h2 id="{key}">{title}</h2>{button}</div>\n{body}</section>'


def _findings(findings: Sequence[str]) -> str:
    """The findings of one topic under one fold, topics in the order in which they first appear."""
    topics: dict[str, list[str]] = {}
    for finding in findings:
        topics.setdefault(getattr(finding, "topic", ""), []).append(finding)
    return "\n".join(map(_topic, topics.items())) or "<p>No finding beside the verdict.</p>"


def _topic(group: tuple[str, Sequence[str]]) -> str:
    topic, findings = group
    items = "\n".join(f"<li>{_text(finding)}</li>" for finding in findings)
    count = f" ({len(findings)})" if len(findings) > 1 else ""
    return (
        f"<details><summary><h3>{_text(topic or 'Other findings')}{count}</h3>"
        f' <span class="peek">{_text(findings[0])}</span></summary>\n<ul>\n{items}\n</ul></details>'
    )


def _figures(specs: Mapping[str, Spec]) -> str:
    """What the page does with figures, and under a fold each but the first, which stands beside the verdict."""
    folds = [
        f"<details><summary>{_heading(number, name, spec)}</summary>\n{_figure(name, spec)}</details>"
        for number, (name, spec) in enumerate(specs.items(), start=1)
        if number > 1
    ]
    hint = (
        '<p class="hint">Point at a mark for its numbers; click an entry of a legend to pick it out (with Shift, '
        "several).</p>\n<noscript><p>The figures need JavaScript here; the folder figures/ holds them as PNG and "
        "SVG.</p></noscript>\n"
    )
    return (hint if specs else "") + ("\n".join(folds) or "<p>No other figure.</p>")


def _heading(number: int, name: str, spec: Spec) -> str:
    title, subtitle = _words(spec, name)
    under = f' <span class="subtitle">{_text(subtitle)}</span>' if subtitle else ""
    return f'<h3 id="title-{name}">{number}. {_text(title)}</h3>{under}'


def _figure(name: str, spec: Spec, heading: str = "") -> str:
    caption = spec.get("usermeta", {}).get("caption", "")
    return (
        f'<figure id="figure-{name}" aria-labelledby="title-{name}">\n{heading}'
        f'<div class="view" id="view-{name}" data-state="waiting"></div>\n'
        + (f'<p class="note">{_text(caption)}</p>\n' if caption else "")
        + "</figure>"
    )


def _words(spec: Spec, name: str) -> tuple[str, str]:
    title = spec.get("title") or name.replace("_", " ")
    if not isinstance(title, dict):
        title = {"text": title}
    return _joined(title.get("text", name)), _joined(title.get("subtitle", ""))


def _joined(text: Any) -> str:
    return " ".join(str(line) for line in text) if isinstance(text, list) else str(text)


def _scripts(specs: Mapping[str, Spec]) -> str:
    datasets: Spec = {}
    pages = {}
    for name, spec in specs.items():
        datasets |= spec.get("datasets", {})  # named by their content: what figures share is stored once
        page = {key: value for key, value in spec.items() if key not in ("$schema", "title")}
        pages[name] = page | {"datasets": dict.fromkeys(spec.get("datasets", {}))}
    blocks = {"datasets": datasets, "specs": pages, "dark": theme.DARK}
    sources = [_bundle()] if specs else []
    sources.append(_script((_HERE / "report.js").read_text(encoding="utf-8")))
    return "\n".join(
        [
            f'<script type="application/json" id="{key}">{_json(block)}</script>'
            for key, block in blocks.items()
        ]
        + [f"<script>{source}</script>" for source in sources]
    )


@functools.cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    return _script(vl_convert.javascript_bundle())  # type: ignore[call-arg]  # its stub misses the default


def _json(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _script(source: str) -> str:
    return re.sub(
        r"</(script)|<!--", lambda match: match[0].replace("<", "\\x3c"), source, flags=re.IGNORECASE
    )


def _tables(tables: Mapping[str, pd.DataFrame]) -> str:
    if not tables:
        return "<p>No table: this study makes none.</p>"
    parts = ["<p>Click a column's name to sort by it.</p>"]
    for title, table in tables.items():
        caption = table.attrs.get("caption", "")
        parts.append(f"<h3>{_text(title)}</h3>")
        parts += [f'<p class="note">{_text(caption)}</p>'] if caption else []
        parts.append(_table(str(title), table))
    return "\n".join(parts)


def _table(title: str, table: pd.DataFrame) -> str:
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index()
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in table.dtypes]
    classes = [' class="number"' if number else "" for number in numeric]
    heads = "".join(
        f'<th scope="col"{kind} data-column="{_text(name)}"><button type="button">{_text(name)}</button></th>'
        for name, kind in zip(table.columns, classes, strict=True)
    )
    rows = []
    for row in table.itertuples(index=False, name=None):
        cells = "".join(
            f"<td{kind}{_sort_key(value)}>{_text(_cell(value))}</td>"
            for value, kind in zip(row, classes, strict=True)
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
    attributes = {str(name): _parsed(value) for name, value in result.attrs.items()}
    order = [name for name in _FIRST_FACTS if name in attributes]
    order += sorted(attributes.keys() - set(order))
    sizes = ", ".join(f"{dim} {size}" for dim, size in result.sizes.items())
    facts = dict(_fact(name, attributes[name]) for name in order if not isinstance(attributes[name], dict))
    parts = [_facts(facts | {"size of the result": sizes or "none"})]
    for name in order:
        if isinstance(attributes[name], dict):
            words, state = ("Settings", " open") if name == "config" else (name.capitalize(), "")
            facts = {str(key).replace("_", " "): value for key, value in attributes[name].items()}
            summary = f"<summary><h3>{_text(words.replace('_', ' '))}</h3></summary>"
            parts.append(f"<details{state}>{summary}{_facts(facts)}</details>")
    return "\n".join(parts)


def _fact(name: str, value: Any) -> tuple[str, Any]:
    """The name and value of an attribute in plain words."""
    words = _NAMES.get(name, name.replace("_seconds", "_time")).replace("_", " ")
    if name.endswith("_seconds") and isinstance(value, int | float):
        return words, f"{value:.1f} s, added over all parts of the study"
    return words, _moment(str(value)) if name == "started" else value


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [
        f'<tr><th scope="row">{_text(name)}</th><td>{_text(_readable(value))}</td></tr>'
        for name, value in facts.items()
    ]
    return '<table class="facts"><tbody>' + "\n".join(rows) + "</tbody></table>"


def _readable(value: Any) -> str:
    """A setting as one would say it: "4, 8, 16", "Digits(num_train=64)", "not set"."""
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(
            f"({_readable(each)})" if isinstance(each, list) else _readable(each) for each in value
        )
    if isinstance(value, dict):
        fields = [
            f"{key}={_readable(each)}" for key, each in value.items() if key != "type" and each is not None
        ]
        return f"{value.get('type', '')}({', '.join(fields)})" if fields else str(value.get("type", "none"))
    return str(value)


def _text(value: Any) -> str:
    """Any value as text that is safe in an element and in a quoted attribute."""
    return html.escape(str(value), quote=True)
