"""The page: content in, one HTML text out, with its scripts and data inside."""

import functools
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import vl_convert
from markupsafe import Markup, escape

from jaxact import theme
from jaxact.cache import kept
from jaxact.escapes import visible

_HERE = Path(__file__).parent

Spec = dict[str, Any]


class Page(NamedTuple):
    """What a page shows, from top to bottom.

    Attributes:
        name: the heading.
        lead: a sentence below it, or "".
        origin: how it came about, in a few words each.
        findings: sentences, the first of which is the verdict; the others stand under their `topic` if they have one,
            each with its `advice`, as HTML, if it has one.
        figures: Vega-Lite specs by name, of `escapes.visible_tree`; the first stands beside the verdict, unless there
            are sections.
        tables: data frames by title, with a caption in `attrs`.
        facts: how it was made: a text, number or list by name.
        groups: further facts, by title.
        sections: each with key, title, badge, table, texts before and after by title; a figure whose name starts with
            the key and "-" stands in it. With any, the first table opens the page and findings are left out.
        warning: what must not be overlooked, or "".
        others: what the findings beside the verdict are called.
        pictures: where one figure, and where all figures, are also found without a script; or empty.
    """

    name: str
    lead: str
    origin: Sequence[str]
    findings: Sequence[str]
    figures: Mapping[str, Spec]
    tables: Mapping[str, pd.DataFrame]
    facts: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]]
    sections: Sequence[Any] = ()
    warning: str = ""
    others: str = "Findings"
    pictures: tuple[str, str] = ("", "")


def render(page: Page) -> str:
    """Make one HTML text that opens without a network.

    Its content security policy forbids it to load anything. The same content gives the same text.

    Args:
        page: what it shows.

    Returns:
        The page, HTML.
    """
    verdict, *others = page.findings
    specs = page.figures
    figures = [_figure(number, name, spec) for number, (name, spec) in enumerate(specs.items(), start=1)]
    tables = {title: _table(table) for title, table in page.tables.items()}
    opening = next(iter(tables), None) if page.sections else None
    return _template().render(
        name=page.name,
        lead=page.lead,
        smoke=page.warning,
        pictures=page.pictures,
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8")),
        origin=page.origin,
        verdict=verdict,
        others=page.others,
        topics=_by_topic(others),
        opening={title: table for title, table in tables.items() if title == opening},
        sections=[_section(section, figures) for section in page.sections],
        figures=[each for each in figures if not any(_is_of(each, section) for section in page.sections)],
        tables={title: table for title, table in tables.items() if title != opening},
        facts=page.facts,
        groups=page.groups,
        blocks=_blocks(specs),
        scripts=[*([bundle()] if specs else []), _script((_HERE / "page.js").read_text(encoding="utf-8"))],
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
    filters: dict[str, Any] = {"readable": readable, "short": _short, "sort_key": _sort_key, "code": _code}
    environment.filters |= filters
    return environment.get_template("page.html")


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


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


def _section(section: Any, figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    own = [figure for figure in figures if _is_of(figure, section)]
    return {**section._asdict(), "table": _table(section.table), "figures": own}


def _is_of(figure: Mapping[str, Any], section: Any) -> bool:
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
def bundle() -> Markup:
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


def readable(value: Any) -> str:
    """A setting as one would say it: "4, 8, 16", "Digits(num_train=64)", "not set".

    Args:
        value: of a field: a number, a text, a sequence, a dataclass or None.
    """
    if value is None or isinstance(value, bool):
        return {None: "not set", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(
            f"({readable(each)})" if isinstance(each, list) else readable(each) for each in value
        )
    if isinstance(value, dict):
        fields = {key: each for key, each in value.items() if key != "type" and each is not None}
        said = ", ".join(f"{key}={readable(each)}" for key, each in fields.items())
        return f"{value.get('type', '')}({said})" if said else str(value.get("type", "none"))
    return str(value)
