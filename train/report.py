"""The report of a run: one self-contained page that opens with the answer, and the figures as files."""

import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import altair as alt
import xarray as xr

from jaxact import page
from jaxact.escapes import visible_tree
from jaxact.files import write_atomically
from train import crowded, rendering
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
_PICTURES = ("The folder figures/ holds it as a picture.", "the folder figures/ holds them as PNG and SVG")

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
    text = _page(result, experiment, specs)
    folder = directory / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in rendering.drawn(specs, num_processes=num_cores()):
        write_atomically(folder / f"{name}.svg", drawing.svg)
        write_atomically(folder / f"{name}.png", drawing.png)
    path = directory / "report.html"
    write_atomically(path, text.encode())
    return path


def _spec(name: str, chart: alt.TopLevelMixin) -> Spec:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"figures() gave a figure the name {name!r}, which must be a file name of letters, digits, _ and -. "
            "Rename it."
        )
    with alt.data_transformers.disable_max_rows():  # of charts that hold a frame; the limit is for notebooks
        # Every part was held against the schema as it was made.
        return visible_tree(crowded.thinned(chart.to_dict(validate=False)))


def _page(result: xr.Dataset, experiment: Any, specs: Mapping[str, Spec]) -> str:
    name, lead = _title(result, experiment)
    attributes = {str(name): _parsed(value) for name, value in result.attrs.items()}
    facts, groups = _making(attributes)
    sizes = ", ".join(f"{dim} {size}" for dim, size in result.sizes.items())
    return page.render(
        page.Page(
            name=name,
            lead=lead,
            warning=_SMOKE if result.attrs.get("smoke") == "true" else "",
            origin=_origin(attributes),
            findings=experiment.findings(result) or ["No finding: the result holds nothing to judge."],
            figures=specs,
            tables=experiment.tables(result),
            sections=experiment.sections(result) if hasattr(experiment, "sections") else [],
            facts=facts | {"size of the result": sizes or "none"},
            groups=groups,
            pictures=_PICTURES,
        )
    )


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
    facts = [run, device, _moment(started), f"optimizer {page.readable(optimizer)}" if optimizer else ""]
    return [fact for fact in facts if fact]


def _moment(text: str) -> str:
    try:
        return f"{datetime.datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return text


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
        return words, f"{value:.1f} s, the times of all cells added"
    return words, _moment(str(value)) if name == "started" else value


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value
