"""The report of a run: one self-contained page that opens with the answer, and the figures as files."""

import datetime
import functools
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import pandas as pd
import vl_convert
import xarray as xr
from markupsafe import Markup, escape

from jaxact import theme
from jaxact.cache import kept
from train import crowded, rendering
from train.escapes import visible
from train.experiment import Section
from train.results import write_atomically
from train.workers import num_cores

__all__ = ["write_report"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_TIMES = ("wall_seconds", "compile_seconds", "run_seconds")
_FIRST_FACTS = ("study", "run_id", "command", "device", "started", *_TIMES, "git_commit")
_SMOKE = "SMOKE RUN: numbers mean nothing"
_NAMES = {
    "wall_seconds": "total time",
    "experiment": "code of the study",
    "code": "digest of the code",
    "format": "file format",
    "smoke": "smoke run",
}
_HERE = Path(__file__).parent

Spec = dict[str, Any]


def write_report(result: xr.Dataset, experiment: Any, directory: Path) -> Path:
    """Write the figures and the page of a result into its run folder, from the result alone.

    The page opens with the first finding, the verdict, and beside it the first figure, which shows it. It opens
    without a network: scripts and data are inside it, and its content security policy forbids it to load
    anything. The same result gives the same bytes.

    Args:
        result: a combined Dataset; its attributes say how it was made.
        experiment: an experiment, or its type, with the static methods `figures`, `findings` and `tables`, and
            `sections` if it has any.
        directory: made if it is not there; gets `figures/<name>.png`, `figures/<name>.svg` and `report.html`,
            whose path is returned, each written whole or not at all, the page last.

    Raises:
        ValueError: a figure's name cannot be a file name.
        OSError: a file cannot be written.
    """
    specs = {name: _spec(name, chart) for name, chart in experiment.figures(result).items()}
    page = _page(result, experiment, specs)
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in rendering.drawn(specs, num_processes=num_cores()):
        write_atomically(folder / f"{name}.svg", drawing.svg)
        write_atomically(folder / f"{name}.png", drawing.png)
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
        # Every part was held against the schema as it was made.
        return _visible(crowded.thinned(chart.to_dict(validate=False)))


def _visible(value: Any) -> Any:
    """The same JSON, its text with escapes for control characters: SVG cannot hold them."""
    if isinstance(value, dict):
        return {_visible(key): _visible(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_visible(each) for each in value]
    return visible(value) if isinstance(value, str) else value


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _page(result: xr.Dataset, experiment: Any, specs: Mapping[str, Spec]) -> str:
    name, lead = _title(result, experiment)
    verdict, *others = experiment.findings(result) or ["No finding: the result holds nothing to judge."]
    attributes = {str(name): _parsed(value) for name, value in result.attrs.items()}
    facts, groups = _making(attributes)
    sizes = ", ".join(f"{dim} {size}" for dim, size in result.sizes.items())
    sections = experiment.sections(result) if hasattr(experiment, "sections") else []
    figures = [_figure(number, name, spec) for number, (name, spec) in enumerate(specs.items(), start=1)]
    tables = {title: _table(table) for title, table in experiment.tables(result).items()}
    opening = next(iter(tables), None) if sections else None
    return _template().render(
        name=name,
        lead=lead,
        smoke=_SMOKE if result.attrs.get("smoke") == "true" else "",
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        origin=_origin(attributes),
        verdict=verdict,
        topics=_by_topic(others),
        opening={title: table for title, table in tables.items() if title == opening},
        sections=[_section(section, figures) for section in sections],
        figures=[each for each in figures if not any(_is_of(each, section) for section in sections)],
        tables={title: table for title, table in tables.items() if title != opening},
        facts=facts | {"size of the result": sizes or "none"},
        groups=groups,
        blocks=_blocks(specs),
        scripts=[*([_bundle()] if specs else []), _script((_HERE / "report.js").read_text(encoding="utf-8"))],
    )


def _template() -> jinja2.Template:
    """The page; what it is given is escaped, but for `Markup`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
    )
    filters: dict[str, Any] = {"readable": _readable, "short": _short, "sort_key": _sort_key, "code": _code}
    environment.filters |= filters
    return environment.get_template("report.html")


def _title(result: xr.Dataset, experiment: Any) -> tuple[str, str]:
    kind = experiment if isinstance(experiment, type) else type(experiment)
    name = str(result.attrs.get("study") or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", kind.__name__))
    name = name.replace("_", " ").strip().lower()
    # A dataclass without a docstring is given its signature for one.
    doc = (kind.__doc__ or "").strip()
    lead = "" if doc.startswith(f"{kind.__name__}(") else doc.split("\n\n")[0].replace("\n", " ")
    return name[:1].upper() + name[1:], " ".join(lead.split())


def _origin(attributes: Mapping[str, Any]) -> list[str]:
    """What was run, where, when and by which optimizer, as far as the result says."""
    config = attributes.get("config")
    optimizer = config.get("optimizer") if isinstance(config, dict) else None
    run, device, started = (str(attributes.get(name, "")) for name in ("run_id", "device", "started"))
    facts = [run, device, _moment(started), f"optimizer {_readable(optimizer)}" if optimizer else ""]
    return [fact for fact in facts if fact]


def _moment(text: str) -> str:
    try:
        return f"{datetime.datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return text


def _by_topic(findings: Sequence[str]) -> dict[str, list[str]]:
    """Topics in the order in which they first appear."""
    topics: dict[str, list[str]] = {}
    for finding in findings:
        topics.setdefault(getattr(finding, "topic", ""), []).append(finding)
    return topics


def _figure(number: int, name: str, spec: Spec) -> dict[str, Any]:
    title = spec.get("title") or name.replace("_", " ")
    title = title if isinstance(title, dict) else {"text": title}
    return {
        "number": number,
        "name": name,
        "title": _joined(title.get("text", name)),
        "subtitle": _joined(title.get("subtitle", "")),
        "caption": spec.get("usermeta", {}).get("caption", ""),
    }


def _section(section: Section, figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    own = [figure for figure in figures if _is_of(figure, section)]
    return {**section._asdict(), "table": _table(section.table), "figures": own}


def _is_of(figure: Mapping[str, Any], section: Section) -> bool:
    return str(figure["name"]).startswith(f"{section.key}-")


def _joined(text: Any) -> str:
    return " ".join(str(line) for line in text) if isinstance(text, list) else str(text)


def _blocks(specs: Mapping[str, Spec]) -> dict[str, Markup]:
    """What the page's script reads, as JSON by the names of their elements."""
    datasets: Spec = {}
    pages = {}
    for name, spec in specs.items():
        datasets |= spec.get("datasets", {})  # named by their content: what figures share is stored once
        page = {key: value for key, value in spec.items() if key not in ("$schema", "title")}
        pages[name] = page | {"datasets": dict.fromkeys(spec.get("datasets", {}))}
    return {
        key: _json(each) for key, each in {"datasets": datasets, "specs": pages, "dark": theme.DARK}.items()
    }


@functools.cache
def _bundle() -> Markup:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    version = importlib.metadata.version("vl-convert-python")
    make = vl_convert.javascript_bundle  # its stub misses the default
    return _script(kept(f"vega-{version}.js", make))  # type: ignore[arg-type]


def _json(value: Any) -> Markup:
    """JSON that may stand inside a script element."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def _code(text: str) -> Markup:
    """Text whose `quoted` parts are code."""
    parts = [escape(part) for part in visible(text).split("`")]
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if place % 2 else part for place, part in enumerate(parts)
    )


def _script(source: str) -> Markup:
    escaped = re.sub(
        r"</(script)|<!--", lambda match: match[0].replace("<", "\\x3c"), source, flags=re.IGNORECASE
    )
    return Markup(escaped)


def _table(table: pd.DataFrame) -> dict[str, Any]:
    if not isinstance(table.index, pd.RangeIndex):
        table = table.reset_index()
    kinds = [
        Markup(' class="number"') if pd.api.types.is_numeric_dtype(each) else "" for each in table.dtypes
    ]
    return {
        "caption": table.attrs.get("caption", ""),
        "columns": list(zip(table.columns, kinds, strict=True)),
        "rows": table.itertuples(index=False, name=None),
    }


def _short(value: Any) -> str:
    """A value of a table, numbers to three digits; nothing for what is missing."""
    if pd.api.types.is_scalar(value) and pd.isna(value):
        return ""
    if not isinstance(value, float):
        return str(value)
    is_count = value.is_integer() and abs(value) < 1e6
    return str(int(value)) if is_count else f"{value:.3g}".replace("inf", "\N{INFINITY}")


def _sort_key(value: float) -> str:
    return repr(float(value)).replace("inf", "Infinity")  # as JavaScript reads it


def _making(attributes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The attributes of a result in plain words: single facts, and groups of facts by title."""
    first = [name for name in _FIRST_FACTS if name in attributes]
    order = [*first, *sorted(attributes.keys() - set(first))]
    groups = {name: attributes[name] for name in order if isinstance(attributes[name], dict)}
    facts = dict(_fact(name, attributes[name]) for name in order if name not in groups)
    return facts, {_group_title(name): _spaced(group) for name, group in groups.items()}


def _group_title(name: str) -> str:
    return "Settings" if name == "config" else name.capitalize().replace("_", " ")


def _spaced(group: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).replace("_", " "): value for key, value in group.items()}


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


def _readable(value: Any) -> str:
    """A setting as one would say it: "4, 8, 16", "Digits(num_train=64)", "not set"."""
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(
            f"({_readable(each)})" if isinstance(each, list) else _readable(each) for each in value
        )
    if isinstance(value, dict):
        fields = {key: each for key, each in value.items() if key != "type" and each is not None}
        said = ", ".join(f"{key}={_readable(each)}" for key, each in fields.items())
        return f"{value.get('type', '')}({said})" if said else str(value.get("type", "none"))
    return str(value)
