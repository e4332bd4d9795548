"""The progress of a run: which cell runs, how many are left, and for how long."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from train.experiment import Cell

_LINE_SECONDS = 10.0  # a log that is not a terminal gets one line in this time at most


class Forecast:
    """Expected cell times from finished cells: the mean of those that share the most coordinates."""

    def __init__(self) -> None:
        self._sums: dict[frozenset, tuple[float, int]] = {}

    def record(self, cell: Cell, seconds: float) -> None:
        """Learn that `cell` took `seconds`."""
        for _, key in _subsets(cell):
            total, count = self._sums.get(key, (0.0, 0))
            self._sums[key] = (total + seconds, count + 1)

    def seconds(self, cell: Cell) -> float | None:
        """Estimate how long `cell` takes, in seconds; None before any has finished."""
        for _, group in itertools.groupby(_subsets(cell), key=lambda each: each[0]):
            known = [self._sums[key] for _, key in group if key in self._sums]
            if known:
                return sum(total for total, _ in known) / sum(count for _, count in known)
        return None


class Display:
    """Shows a run: two live bars on a terminal, a line now and then elsewhere.

    Use as a context manager; then `skip` the cells that are finished already, and for each of the others
    `start`, call (the `Progress` that an experiment reports to), and `finish`.
    """

    def __init__(self, cells: Sequence[Cell], console: Console):
        self._console = console
        self._left = {cell.name: cell for cell in cells}
        self._num_cells = len(cells)
        self._num_skipped = 0
        self._forecast = Forecast()
        self._cell: Cell | None = None
        self._last_line = self._cell_started = time.monotonic()
        self._others_seconds: float | None = None
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(ratio=2, no_wrap=True), markup=False),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.fields[count]}", markup=False),
            _TimeLeft(),
            console=console,
            refresh_per_second=2,
            expand=True,
            disable=not console.is_terminal,
        )
        self._all_bar = self._bars.add_task("cells", total=len(cells), count=f"0/{len(cells)}", end=None)
        self._cell_bar = self._bars.add_task("", total=1.0, count="", end=None, visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.update(self._cell_bar, visible=False)
        self._bars.stop()

    def notice(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def skip(self, cell: Cell, seconds: float) -> None:
        """Count a cell that an earlier process finished in `seconds`."""
        self._forecast.record(cell, seconds)
        self._num_skipped += 1
        del self._left[cell.name]

    def start(self, cell: Cell) -> None:
        """Show that `cell` runs now."""
        self._cell, self._cell_started = cell, time.monotonic()
        others = [self._forecast.seconds(other) for other in self._left.values() if other.name != cell.name]
        self._others_seconds = None if None in others else sum(seconds or 0.0 for seconds in others)
        self(0.0)

    def __call__(self, fraction: float, note: str = "") -> None:
        """Show how far the running cell is; see `Progress`."""
        assert self._cell is not None
        fraction = min(max(float(fraction), 0.0), 1.0)
        done = self._num_cells - len(self._left)
        cell_left, left = self._seconds_left(fraction)
        now = time.monotonic()
        count = f"{done}/{self._num_cells}"
        self._bars.update(
            self._all_bar, completed=done + fraction, count=count, end=None if left is None else now + left
        )
        self._bars.update(
            self._cell_bar,
            description=f"{self._cell.name} {note}".rstrip(),
            completed=fraction,
            count=f"{fraction:.0%}",
            end=None if cell_left is None else now + cell_left,
            visible=True,
        )
        self._line(f"[{count}] {self._cell.name} {fraction:.0%} {note}".rstrip(), left)

    def finish(self, seconds: float) -> None:
        """Count the running cell as finished after `seconds`."""
        assert self._cell is not None
        name = self._cell.name
        self._forecast.record(self._cell, seconds)
        del self._left[name]
        done = self._num_cells - len(self._left)
        count = f"{done}/{self._num_cells}"
        left = sum(self._forecast.seconds(other) or 0.0 for other in self._left.values())
        self._bars.update(self._all_bar, completed=done, count=count, end=time.monotonic() + left)
        text = f"[{count}] {name} done in {seconds:.1f} s"
        self._line(
            text, left if self._left else None, always=done in (self._num_skipped + 1, self._num_cells)
        )

    def _seconds_left(self, fraction: float) -> tuple[float | None, float | None]:
        assert self._cell is not None
        spent = time.monotonic() - self._cell_started
        expected = self._forecast.seconds(self._cell)
        if fraction >= 0.1 or (expected is None and fraction > 0):
            cell_left = spent / fraction * (1 - fraction)
        elif expected is not None:
            cell_left = max(expected - spent, 0.0)
        else:
            return None, None
        if self._others_seconds is not None:
            return cell_left, cell_left + self._others_seconds
        return cell_left, cell_left + (len(self._left) - 1) * (spent + cell_left)  # nothing else is known yet

    def _line(self, text: str, left: float | None, *, always: bool = False) -> None:
        now = time.monotonic()
        if self._console.is_terminal or not (always or now - self._last_line >= _LINE_SECONDS):
            return
        self._last_line = now
        self.notice(text if left is None else f"{text}, about {clock(left)} left")


class _TimeLeft(ProgressColumn):
    """Counts down to the expected end between two reports of a cell."""

    def render(self, task: Task) -> Text:
        end = task.fields["end"]
        text = "" if end is None else f"{clock(max(end - time.monotonic(), 0.0))} left"
        return Text(text.rjust(12), style="progress.remaining")


def clock(seconds: float) -> str:
    """Format a duration as m:ss or h:mm:ss.

    >>> clock(61), clock(3723.6)
    ('1:01', '1:02:04')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _subsets(cell: Cell) -> Iterator[tuple[int, frozenset]]:
    items = list(cell.coords.items())
    for size in range(len(items), -1, -1):
        for subset in itertools.combinations(items, size):
            yield size, frozenset(subset)
