"""How a run stands, told from its folder alone: nothing is locked or written, so it is in nobody's way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from jaxact.escapes import on_one_line
from train import locks, runner, snapshot
from train.config import ConfigError
from train.progress import clock
from train.snapshot import Running, Snapshot

_MOST_SHOWN = 20  # cells that run
_SECONDS = 1.0  # between two looks


def state(directory: Path) -> str:
    """Say whether a run is running, complete, failed or interrupted.

    It has failed if its last process came to the end of its cells and some had failed for good. What is wrong with its
    newest snapshot is no concern of this: it then counts as interrupted.
    """
    if locks.is_held(directory):
        return "running"
    if (directory / "result.nc").exists():
        return "complete"
    try:
        seen = snapshot.read(directory)
    except ConfigError:
        seen = None
    return "failed" if seen and seen.has_ended and seen.num_failed else "interrupted"


def show(directory: Path, console: Console, *, follow: bool = False) -> None:
    """Show how a run stands, once or until it no longer runs.

    Raises:
        ConfigError: if it is no run, or its newest snapshot is damaged.
    """
    described = _described(directory)
    if not follow:
        console.print(described)
        return
    with Live(described, console=console, auto_refresh=False) as live:
        while state(directory) == "running":
            time.sleep(_SECONDS)
            live.update(_described(directory), refresh=True)
        live.update(_described(directory), refresh=True)


def _described(directory: Path) -> Any:
    record, found = runner.read(directory), state(directory)
    seen = snapshot.read(directory)
    table = Table.grid(padding=(0, 2))
    table.add_row("run", on_one_line(f"{directory}: {found}{_by(directory, found)}"))
    if seen is None or found == "complete":
        table.add_row("cells", f"{runner.finished_cells(directory)} of {len(record.cells)} done")
        return table
    for name, text in _rows(seen, is_running=found == "running"):
        table.add_row(name, on_one_line(text))
    cells = _cells(seen.running, "runs" if found == "running" else "ran") if seen.running else None
    return Group(*filter(None, (table, cells)))


def _by(directory: Path, found: str) -> str:
    """Who runs it, or whose end was told by nobody."""
    holder = locks.holder(directory)
    if found == "running" or not holder:
        return f", {holder}" if holder else ""
    return f"; {holder}, was killed"


def _rows(seen: Snapshot, *, is_running: bool) -> Iterator[tuple[str, str]]:
    failed = f", {seen.num_failed} failed" if seen.num_failed else ""
    count = f"{seen.num_done} of {seen.num_cells} done, {len(seen.running)} {'' if is_running else 'were '}running"
    yield "cells", count + failed
    if seen.num_members:
        yield "members", f"{seen.num_members} a cell, {seen.num_members * seen.num_cells} in all"
    if not math.isnan(seen.cells_per_second):
        yield "speed", _speed(seen)
    if is_running:
        left, age = seen.seconds_left, max(time.time() - seen.written, 0.0)
        yield "time left", "not known yet" if math.isnan(left) else f"about {clock(max(left - age, 0.0))}"
    if not math.isnan(seen.memory):
        device = "" if math.isnan(seen.device_memory) else f"; at most {_gib(seen.device_memory)} on a device"
        yield "memory", f"{_gib(seen.memory)} in {seen.num_processes} process(es) of its machine{device}"
    for each in seen.failed:
        yield "failed", f"{each.cell}: {each.cause}"
    if (more := seen.num_failed - len(seen.failed)) > 0:
        yield "", f"and {more} more"


def _speed(seen: Snapshot) -> str:
    """All that a cell takes counts: compiling and probing too."""
    rate = f"{seen.cells_per_second * 3600:.3g} cells an hour"
    if not seen.num_steps:
        return rate
    steps = seen.cells_per_second * seen.num_steps
    members = f", {steps * seen.num_members:.3g} of single networks" if seen.num_members else ""
    return f"{steps:.3g} optimiser steps/s{members}, compiling and probes included; {rate}"


def _cells(running: list[Running], verb: str) -> Table:
    table = Table(f"what {verb}", "done", "at", "for", "by")
    for each in running[:_MOST_SHOWN]:
        spent = clock(max(time.time() - each.began, 0.0)) if verb == "runs" else ""
        row = each.cell, f"{each.fraction:.0%}", each.note, spent, each.worker or "the run's own process"
        table.add_row(*map(on_one_line, row))
    if (more := len(running) - _MOST_SHOWN) > 0:
        table.add_row(f"and {more} more")
    return table


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
