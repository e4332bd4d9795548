"""The report of a run: one self-contained page that opens with the answer, and the figures as files."""

import datetime
import functools
import html
import json
import re
import string
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
_TIMES = ("wall_seconds", "compile_seconds", "run_seconds")
_FIRST_FACTS = ("study", "run_id", "command", "device", "started", *_TIMES, "git_commit")
_SMOKE = "SMOKE RUN: numbers mean nothing"
_HINT = (
    '<p class="hint">Point at a mark for its numbers; click an entry of a legend to pick it out (with Shift, '
    "several).</p>\n<noscript><p>The figures need JavaScript here; the folder figures/ holds them as PNG and "
    "SVG.</p></noscript>\n"
)
_NAMES = {
    "wall_seconds": "total time",
    "experiment": "code of the study",
    "format": "file format",
    "smoke": "smoke run",
}
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
    specs = {name: _spec(name, chart) for name, chart in experiment.figures(result).items()}
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


def _spec(name: str, chart: alt.TopLevelMixin) -> Spec:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"figures() gave a figure the name {name!r}, which must be a file name of letters, digits, _ and -. "
            "Rename it."
        )
    with alt.data_transformers.disable_max_rows():  # of charts that hold a frame; the limit is for notebooks
        return chart.to_dict()


def _page(result: xr.Dataset, experiment: Any, specs: Mapping[str, Spec]) -> str:
    name, lead = _title(result, experiment)
    smoke = result.attrs.get("smoke") == "true"
    verdict, *others = experiment.findings(result) or ["No finding: the result holds nothing to judge."]
    return string.Template(_beside("html")).substitute(
        title=_text(f"{_SMOKE}. {name}" if smoke else name),
        style=_beside("css"),
        headline=_text(name) + (f" <strong>{_SMOKE}</strong>" if smoke else ""),
        lead=_text(lead),
        origin=" &middot; ".join(map(_text, _origin(result))),
        verdict=_text(verdict),
        picture=_picture(specs),
        contents="\n".join(_link(name, spec) for name, spec in specs.items()),
        findings=_section("findings", "Findings", _findings(others)),
        figures=_section("figures", "Figures", _figures(specs)),
        tables=_section("tables", "Tables", _tables(experiment.tables(result))),
        making=_section("making", "How it was made", _making(result)),
        scripts=_scripts(specs),
    )


def _beside(suffix: str) -> str:
    """The file of this name beside this module."""
    return Path(__file__).with_suffix(f".{suffix}").read_text(encoding="utf-8")


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


def _picture(specs: Mapping[str, Spec]) -> str:
    for name, spec in specs.items():
        return _figure(name, spec, f"<figcaption>{_heading(1, name, spec)}</figcaption>\n")
    return "<p>No figure: the result holds no number to draw.</p>"


def _link(name: str, spec: Spec) -> str:
    return f'<li><a href="#figure-{name}">{_text(_words(spec, name)[0])}</a></li>'


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
    peek = f'<span class="peek">{_text(findings[0])}</span>'
    return _fold(f"<h3>{_text(topic or 'Other findings')}{count}</h3> {peek}", f"<ul>\n{items}\n</ul>")


def _fold(summary: str, body: str, state: str = "") -> str:
    return f"<details{state}><summary>{summary}</summary>\n{body}</details>"


def _figures(specs: Mapping[str, Spec]) -> str:
    """What the page does with figures, and under a fold each but the first, which stands beside the verdict."""
    folds = [
        _fold(_heading(number, name, spec), _figure(name, spec))
        for number, (name, spec) in enumerate(specs.items(), start=1)
    ]
    return (_HINT if specs else "") + ("\n".join(folds[1:]) or "<p>No other figure.</p>")


def _heading(number: int, name: str, spec: Spec) -> str:
    title, subtitle = _words(spec, name)
    under = f' <span class="subtitle">{_text(subtitle)}</span>' if subtitle else ""
    return f'<h3 id="title-{name}">{number}. {_text(title)}</h3>{under}'


def _figure(name: str, spec: Spec, heading: str = "") -> str:
    return (
        f'<figure id="figure-{name}" aria-labelledby="title-{name}">\n{heading}'
        f'<div class="view" id="view-{name}" data-state="waiting"></div>\n'
        f'<p class="note">{_text(spec.get("usermeta", {}).get("caption", ""))}</p>\n</figure>'
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
    sources.append(_script(_beside("js")))
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
    shown = [
        f'<h3>{_text(title)}</h3>\n<p class="note">{_text(table.attrs.get("caption", ""))}</p>\n{_table(title, table)}'
        for title, table in tables.items()
    ]
    return "\n".join(["<p>Click a column's name to sort by it.</p>", *shown])


def _table(title: str, table: pd.DataFrame) -> str:
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index()
    classes = [' class="number"' if pd.api.types.is_numeric_dtype(dtype) else "" for dtype in table.dtypes]
    heads = "".join(map(_head, table.columns, classes))
    rows = ("".join(map(_cell, row, classes)) for row in table.itertuples(index=False, name=None))
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(title)}">'
        f'<table class="sortable"><thead><tr>{heads}</tr></thead>'
        "\n<tbody>\n" + "\n".join(f"<tr>{row}</tr>" for row in rows) + "\n</tbody></table></div>"
    )


def _head(name: Any, kind: str) -> str:
    name = _text(name)
    return f'<th scope="col"{kind} data-column="{name}"><button type="button">{name}</button></th>'


def _cell(value: Any, kind: str) -> str:
    """A value to three digits, with the whole of it to sort by; nothing for what is missing."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return f"<td{kind}></td>"
    if not isinstance(value, float):
        return f"<td{kind}>{_text(value)}</td>"
    key = repr(float(value)).replace("inf", "Infinity")  # as JavaScript reads it
    is_count = value.is_integer() and abs(value) < 1e6
    shown = str(int(value)) if is_count else f"{value:.3g}".replace("inf", "\N{INFINITY}")
    return f'<td{kind} data-sort="{key}">{shown}</td>'


def _making(result: xr.Dataset) -> str:
    attributes = {str(name): _parsed(value) for name, value in result.attrs.items()}
    first = [name for name in _FIRST_FACTS if name in attributes]
    order = [*first, *sorted(attributes.keys() - set(first))]
    groups = {name: attributes[name] for name in order if isinstance(attributes[name], dict)}
    facts = dict(_fact(name, attributes[name]) for name in order if name not in groups)
    facts["size of the result"] = ", ".join(f"{dim} {size}" for dim, size in result.sizes.items()) or "none"
    return "\n".join([_facts(facts), *(_group(name, group) for name, group in groups.items())])


def _group(name: str, group: Mapping[str, Any]) -> str:
    words, state = ("Settings", " open") if name == "config" else (name.capitalize(), "")
    facts = {str(key).replace("_", " "): value for key, value in group.items()}
    return _fold(f"<h3>{_text(words.replace('_', ' '))}</h3>", _facts(facts), state)


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
        said = ((_readable(each), isinstance(each, list)) for each in value)
        return ", ".join(f"({text})" if is_list else text for text, is_list in said)
    if isinstance(value, dict):
        fields = {key: each for key, each in value.items() if key != "type" and each is not None}
        said = ", ".join(f"{key}={_readable(each)}" for key, each in fields.items())
        return f"{value.get('type', '')}({said})" if said else str(value.get("type", "none"))
    return str(value)


def _text(value: Any) -> str:
    """Any value as text that is safe in an element and in a quoted attribute."""
    return html.escape(str(value), quote=True)
