"""Axes with more names than can be read: some are written, and the axis is as long as others are."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MOST = 200  # names on an axis; drawing one takes a millisecond, and 20 pixels
_WRITTEN = 40
_PIXELS = 800
_SIDES = {"x": "width", "y": "height"}


def thinned(spec: dict[str, Any]) -> dict[str, Any]:
    """Write at most 40 names on each axis of a Vega-Lite figure that would hold more than 200; all data stay.

    Args:
        spec: as altair writes it, its data by name under "datasets"; changed in place and returned.
    """
    _thin(spec, spec.get("datasets", {}), [])
    return spec


def _thin(part: dict[str, Any], datasets: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Thin one view and those within it; gives which of its sides were too long."""
    rows = datasets.get(str((part.get("data") or {}).get("name")), rows)
    apart = [each for name in ("hconcat", "vconcat", "concat") for each in part.get(name, [])]
    for each in [*apart, *([part["spec"]] if "spec" in part else [])]:
        _thin(each, datasets, rows)
    if "layer" in part:
        sides = set().union(*(_thin(each, datasets, rows) for each in part["layer"]))
    else:
        sides = {_SIDES[channel] for channel in _SIDES if _is_thinned(part, channel, rows)}
    if "mark" not in part or "encoding" in part:
        part |= {side: part[side] if isinstance(part.get(side), int) else _PIXELS for side in sides}
    return sides


def _is_thinned(part: Mapping[str, Any], channel: str, rows: Iterable[Mapping[str, Any]]) -> bool:
    shown = part.get("encoding", {}).get(channel, {})
    if shown.get("type") not in ("nominal", "ordinal") or shown.get("axis", {}) is None:
        return False
    names = list(dict.fromkeys(row[shown["field"]] for row in rows if shown.get("field") in row))
    if len(names) <= _MOST:
        return False
    names = names if "sort" in shown else sorted(names, key=lambda name: (str(type(name)), name))
    shown["axis"] = {"values": names[:: -(-len(names) // _WRITTEN)], **shown.get("axis", {})}
    return True
