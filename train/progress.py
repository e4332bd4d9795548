"""The progress of a run: which cell runs, how many are left, and for how long."""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from jaxact.escapes import visible
from train.experiment import Cell
from train.snapshot import MOST_FAILED, Failed, Log, Running, Snapshot

_RENEWED = 16  # a forecast of n cells is renewed when n / 16 more have ended
_MANY = 64  # cells that run, from which on looking at all of them is rationed:
_SHARE = 0.05  # of the time, at most
_LINE_SECONDS = 10.0  # a log that is not a terminal gets one line in this time at most


class Forecast:
    """Expected cell times from finished cells: the mean of those that share the most coordinates."""

    def __init__(self) -> None:
        self._sums: dict[frozenset, tuple[float, int]] = {}
        self.num_recorded = 0

    def record(self, cell: Cell, seconds: float) -> None:
        """Learn that `cell` took `seconds`."""
        self.num_recorded += 1
        for shared in _subsets(cell):
            total, count = self._sums.get(shared, (0.0, 0))
            self._sums[shared] = (total + seconds, count + 1)

    def seconds(self, cell: Cell) -> float | None:
        """Estimate how long `cell` takes, in seconds; None before any has finished."""
        for _, equally_many in itertools.groupby(_subsets(cell), key=len):
            if known := [self._sums[shared] for shared in equally_many if shared in self._sums]:
                totals, counts = zip(*known, strict=True)
                return sum(totals) / sum(counts)
        return None


class Waiting:
    """Cells that wait for their turn, in order, and about how long they take one after the other.

    What each is expected to take changes with every cell that ends. All are asked about again only once the number
    that ended has doubled, or grown by a sixteenth of those that wait: the cost of a run of n cells grows as n log n,
    not n^2.
    """

    def __init__(self, cells: Iterable[Cell], forecast: Forecast):
        self._forecast = forecast
        self._cells = {cell.name: cell for cell in cells}
        self._expected: dict[str, float] = {}
        self._total = math.inf
        self._num_known = 0

    def __len__(self) -> int:
        return len(self._cells)

    def first(self) -> Cell:
        """Take the first."""
        return self.take(next(iter(self._cells)))

    def last(self) -> Cell:
        """Take the last."""
        return self.take(next(reversed(self._cells)))

    def take(self, name: str) -> Cell:
        """Take the one of a name."""
        self._total -= self._expected.pop(name, 0.0)
        return self._cells.pop(name)

    def seconds(self) -> float:
        """Estimate how long all take; infinite before any cell has ended, 0 if there is none."""
        if not self._cells:
            return 0.0
        num_new = self._forecast.num_recorded - self._num_known
        if num_new and (num_new >= self._num_known or _RENEWED * num_new >= len(self._cells)):
            self._num_known = self._forecast.num_recorded
            self._expected = {name: self._forecast.seconds(cell) or 0.0 for name, cell in self._cells.items()}
            self._total = math.fsum(self._expected.values())
        return self._total if self._num_known else math.inf


class Display:
    """Shows a run: live bars on a terminal, for all cells and for each that runs; elsewhere a line now and then.

    Use as a context manager; then `skip` the cells that are finished already, and for each of the others
    `start` it, call what that returned (the `Progress` that an experiment reports to), and `finish` it.
    """

    def __init__(self, cells: Sequence[Cell], console: Console, log: Log | None = None):
        self._console, self._log = console, log
        self.forecast = Forecast()
        self._waiting = Waiting(cells, self.forecast)
        self._num_cells = len(cells)
        self._num_skipped = 0
        self._num_failed = 0
        self._failed: list[Failed] = []
        self._has_ended = False
        self._began, self._next_update = time.monotonic(), -math.inf
        self._left: float | None = None
        self._foreseen: float | None = None  # seconds that all cells take, as they seemed after the first
        self._running: dict[str, _Running] = {}
        self._last_line = time.monotonic()
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

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._has_ended = kind is None
        if self._has_ended and self._foreseen is not None:
            took, foreseen = clock(time.monotonic() - self._began), clock(self._foreseen)
            self.notice(f"The cells took {took}; the forecast after the first was {foreseen}.")
        if self._log:
            self._log.close(self._snapshot(self._seconds_left()))
        for running in self._running.values():
            self._bars.update(running.bar, visible=False)
        self._bars.stop()

    def notice(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def skip(self, cell: Cell, seconds: float) -> None:
        """Count a cell that an earlier process finished in `seconds`."""
        self.forecast.record(cell, seconds)
        self._num_skipped += 1
        self._waiting.take(cell.name)

    def start(self, cell: Cell, worker: str = "") -> Callable[..., None]:
        """Show that `cell` runs now, for the first time or again; several may. Returns its `Progress`.

        Args:
            cell: one that waits, or runs already.
            worker: who measures it; "" for this process.
        """
        if (before := self._running.pop(cell.name, None)) is None:
            self._waiting.take(cell.name)
        else:
            self._bars.remove_task(before.bar)
        bar = self._bars.add_task(visible(cell.name), total=1.0, count="", end=None)
        self._running[cell.name] = _Running(cell, bar, time.monotonic(), worker)
        report = functools.partial(self._report, cell)
        report(0.0)
        return report

    def finish(self, cell: Cell, seconds: float) -> None:
        """Count a running cell as finished after `seconds`."""
        self._bars.remove_task(self._running.pop(cell.name).bar)
        self.forecast.record(cell, seconds)
        count, left = self._update_all()
        text = f"[{count}] {cell.name} done in {seconds:.1f} s"
        done = self._num_done()
        is_last = done + self._num_failed == self._num_cells
        if done == self._num_skipped + 1 and not is_last and left is not None:
            self._foreseen = time.monotonic() - self._began + left
        self._line(text, None if is_last else left, always=is_last or done == self._num_skipped + 1)

    def fail(self, name: str, cause: str, *, is_first: bool) -> None:
        """Count a running cell as failed; `is_first` of those with this cause, which is then always said."""
        self._bars.remove_task(self._running.pop(name).bar)
        self._num_failed += 1
        if len(self._failed) < MOST_FAILED:
            self._failed.append(Failed(name, cause))
        count, left = self._update_all()
        if is_first:
            self.notice(f"{name} failed: {cause}. The others go on.")
        else:
            self._line(f"[{count}] {name} failed as well", left)

    def _num_done(self) -> int:
        return self._num_cells - len(self._waiting) - len(self._running) - self._num_failed

    def _report(self, cell: Cell, fraction: float, note: str = "") -> None:
        running = self._running[cell.name]
        running.fraction = fraction = min(max(float(fraction), 0.0), 1.0)
        running.note = note
        said = visible(f"{cell.name} {note}".rstrip())
        self._update(running.bar, fraction, f"{fraction:.0%}", self._cell_left(cell), description=said)
        count, left = self._update_all()
        self._line(f"[{count}] {cell.name} {fraction:.0%} {note}".rstrip(), left)

    def _update_all(self) -> tuple[str, float | None]:
        """Show how many are done and for how long the others take; gives both."""
        done, began = self._num_done(), time.monotonic()
        count = f"{done}/{self._num_cells}"
        count = f"{count}, {self._num_failed} failed" if self._num_failed else count
        if began < self._next_update:
            return count, self._left
        self._left = left = self._seconds_left()
        completed = done + sum(running.fraction for running in self._running.values())
        self._update(self._all_bar, completed, count, left)
        if self._log:
            self._log.offer(self._snapshot(left))
        if len(self._running) > _MANY:  # of which one reports every moment
            self._next_update = began + (time.monotonic() - began) / _SHARE
        return count, left

    def _snapshot(self, left: float | None) -> Snapshot:
        now, clock_now, done = time.monotonic(), time.time(), self._num_done()
        own = done - self._num_skipped + sum(each.fraction for each in self._running.values())
        running = [
            Running(name, each.fraction, each.note, each.worker, clock_now - (now - each.started))
            for name, each in self._running.items()
        ]
        return Snapshot(
            written=clock_now,
            num_cells=self._num_cells,
            num_done=done,
            num_failed=self._num_failed,
            running=[each._asdict() for each in running],
            failed=[each._asdict() for each in self._failed],
            has_ended=self._has_ended,
            cells_per_second=own / (now - self._began) if own else math.nan,
            seconds_left=math.nan if left is None else left,
        )

    def _update(self, bar: TaskID, completed: float, count: str, left: float | None, **more: str) -> None:
        end = None if left is None else time.monotonic() + left
        self._bars.update(bar, completed=completed, count=count, end=end, **more)  # type: ignore[arg-type]

    def _seconds_left(self) -> float | None:
        """Expected time to the end of the run, with as many cells at once as run now; None if nothing is known yet."""
        running = [self._cell_left(each.cell) for each in self._running.values()]
        known = [seconds for seconds in running if seconds is not None]
        waiting = self._waiting.seconds()
        if len(known) < len(self._running) or (math.isinf(waiting) and not known):
            return None
        if math.isinf(waiting):  # no cell has ended: the others are taken to last as long as those that run
            spent = sum(time.monotonic() - each.started for each in self._running.values())
            waiting = len(self._waiting) * (spent + sum(known)) / len(known)
        return max([(sum(known) + waiting) / max(len(known), 1), *known])

    def _cell_left(self, cell: Cell) -> float | None:
        running = self._running[cell.name]
        spent, expected = time.monotonic() - running.started, self.forecast.seconds(cell)
        if running.fraction >= 0.1 or (expected is None and running.fraction > 0):
            return spent / running.fraction * (1 - running.fraction)
        return None if expected is None else max(expected - spent, 0.0)

    def _line(self, text: str, left: float | None, *, always: bool = False) -> None:
        now = time.monotonic()
        if self._console.is_terminal or not (always or now - self._last_line >= _LINE_SECONDS):
            return
        self._last_line = now
        self.notice(text if left is None else f"{text}, about {clock(left)} left")


@dataclass
class _Running:
    cell: Cell
    bar: TaskID
    started: float
    worker: str
    fraction: float = 0.0
    note: str = ""


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


def _subsets(cell: Cell) -> Iterator[frozenset]:
    items = list(cell.coords.items())
    for size in range(len(items), -1, -1):
        for subset in itertools.combinations(items, size):
            yield frozenset(subset)
