"""Cells measured side by side by workers, wherever these are: who measures what, tries again, or has taken too long."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator, Sequence
from typing import Any, Protocol

from train import interrupt
from train.causes import Cause
from train.experiment import Cell, Experiment
from train.outcomes import CellEndedError, Failure, Measurement
from train.progress import Display, Waiting, clock

MOST_TRIES = 3
_LONGER = "Raise --cell-timeout, or find out what it waits for: alone, with --workers 0 and without a limit."


class WorkerDiedError(Exception):
    """A worker is no more; `cause` says how it ended."""

    def __init__(self, cause: Cause):
        super().__init__(cause)
        self.cause = cause


class Worker(Protocol):
    """A process that measures the cells it is sent, one at a time; as text it is what a reader calls it."""

    def send(self, name: str) -> None:
        """Have the cell of this name measured; of a worker that has died, `receive` tells."""

    def receive(self) -> tuple[str, Any]:
        """Return what it says next, a kind and its content; `train.workers.serve` says which there are.

        Raises:
            WorkerDiedError: if it has ended.
        """

    def stop(self) -> None:
        """Have it store how far its cell is, and end."""

    def join(self, seconds: float) -> None:
        """Wait until it has ended, at most so long."""

    def end(self, *, at_once: bool) -> None:
        """Let it end, or kill it."""


class Crew(Protocol):
    """Where workers come from: the cores of this machine, or a cluster.

    Attributes:
        plan: of the checkpoints of cells in flight, a `train.partial.Plan` or None, for workers that are started next.
    """

    plan: Any

    def start(self, num_workers: int) -> Worker:
        """Start one of so many; it says when it is ready."""

    def wait(self, workers: Sequence[Any], seconds: float | None) -> Sequence[Any]:
        """Wait until one of the workers has something to say, at most so long; returns those that have."""

    def close(self) -> None:
        """Give back what the crew holds; none of its workers is left."""


def side_by_side(
    experiment: Experiment,
    cells: Sequence[Cell],
    display: Display,
    *,
    crew: Crew,
    num_workers: int,
    limit: float | None = None,
    plan: Any = None,
) -> Generator[Measurement | Failure]:
    """Measure cells by several workers at once; yield what becomes of them as they end.

    Cells of one program are neighbours, so each worker begins with a stretch of its own and compiles few programs; one
    that is done takes over from the end of the longest stretch left. Every core is busy all the time, whereas small
    programs leave half of two cores idle when XLA splits single operations among them.

    A cell whose worker dies is tried again, `MOST_TRIES` times in all, first thing by a new worker.

    Args:
        experiment: whose cells; each worker makes its own from words, since it may hold what cannot be sent.
        cells: which of them, in order.
        display: told of starts and progress.
        crew: where workers come from; closed in the end.
        num_workers: at most so many.
        limit: seconds that a cell may take, without the start of its worker.
        plan: of the checkpoints of cells in flight.

    Raises:
        CellEndedError: if workers die before they measure anything.
        Exception: what other cells would meet too, such as missing data.
    """
    crew.plan = plan
    num_workers = min(num_workers, len(cells))
    ends = [index * len(cells) // max(num_workers, 1) for index in range(num_workers + 1)]
    stretches = [Waiting(cells[start:end], display.forecast) for start, end in itertools.pairwise(ends)]
    seats = [_Seat(stretch, stretches, crew, display, limit) for stretch in stretches]
    with contextlib.ExitStack() as stack:
        stack.callback(crew.close)
        for seat in seats:
            stack.callback(seat.end)
            seat.start()
        stack.callback(_stop, seats)  # before they are killed
        while taken := _taken(seats):
            heard = _with_news(crew, taken)
            for seat in taken:
                outcome = seat.hear() if seat in heard else None
                if outcome := outcome or seat.overdue():  # also of a cell that never stops telling
                    yield outcome


class _Seat:
    """A stretch of cells and the worker at it, which another may replace."""

    worker: Worker | None = None
    cell: Cell | None = None  # what the worker measures
    again: Cell | None = None  # what its successor begins with
    report: Any = None
    began = 0.0
    num_deaths = 0  # of workers, since a cell last ended otherwise
    first_seconds = 0.0

    def __init__(
        self,
        stretch: Waiting,
        stretches: Sequence[Waiting],
        crew: Crew,
        display: Display,
        limit: float | None,
    ):
        self.stretch, self.stretches, self.crew = stretch, stretches, crew
        self.display, self.limit = display, limit

    def start(self) -> None:
        """Put a new worker here."""
        self.worker = self.crew.start(len(self.stretches))

    def end(self, *, at_once: bool = True) -> None:
        """Kill the worker, or let it end."""
        worker, self.worker, self.cell = self.worker, None, None
        if worker:
            worker.end(at_once=at_once)

    def has_work(self) -> bool:
        """Whether there is a cell left that is worth taking here.

        Another's cell may be of a program that this worker has yet to compile, which may cost what its first cell did:
        worth it only where the other has more than that before it.
        """
        return bool(self.again or self.stretch) or self._longest().seconds() > self.first_seconds

    def seconds_left(self) -> float | None:
        """Return how long the cell may still take; None without a limit or a cell."""
        if self.cell is None or self.limit is None:
            return None
        return max(self.began + self.limit - time.monotonic(), 0.0)

    def hear(self) -> Measurement | Failure | None:
        """Hear how far the cell is, or what has become of it; the worker then gets the next."""
        assert self.worker is not None
        try:
            kind, content = self.worker.receive()
        except WorkerDiedError as error:
            return self._bereft(error.cause)
        if kind == "broken":
            raise content
        if kind == "progress":
            self.report(*content)
            return None
        if kind == "notice":
            self.display.notice(content)
            return None
        outcome = self._outcome(kind, content)
        self._assign()
        return outcome

    def overdue(self) -> Failure | None:
        """End a cell that has had its time."""
        if self.cell is None or self.limit is None or self.seconds_left():
            return None
        failure = Failure(self.cell.name, f"it took longer than {clock(self.limit)}", _LONGER)
        self.num_deaths = 0
        self._replace()
        return failure

    def _outcome(self, kind: str, content: Any) -> Measurement | Failure | None:
        if self.cell is None or kind == "ready":
            return None
        self.num_deaths = 0
        if kind == "failed":
            return content
        measurement = Measurement(self.cell, *content)
        self.first_seconds = self.first_seconds or measurement.seconds
        return measurement

    def _assign(self) -> None:
        """Send the next cell, or let the worker end if there is none."""
        self.cell = None
        if self.worker is None or not self.has_work():
            self.end(at_once=False)
            return
        self.cell, self.again = self.again or self._next(), None
        self.worker.send(self.cell.name)
        self.report, self.began = self.display.start(self.cell, str(self.worker)), time.monotonic()

    def _next(self) -> Cell:
        return self.stretch.first() if self.stretch else self._longest().last()

    def _longest(self) -> Waiting:
        return max(self.stretches, key=Waiting.seconds)

    def _bereft(self, cause: Cause) -> Failure | None:
        """Go on after the death of the worker."""
        self.num_deaths += 1
        cell, is_last = self.cell, self.num_deaths >= MOST_TRIES
        if cell is None and is_last:
            raise CellEndedError(f"a worker process {cause.what} before it measured anything. {cause.remedy}")
        failure = None
        if cell and is_last:
            what = f"the process that measured it {cause.what}, {MOST_TRIES} times"
            failure = Failure(cell.name, what, cause.remedy)
            self.num_deaths = 0
        elif cell:
            self.again = cell
            self.display.notice(
                f"{cell.name}: the process that measured it {cause.what}. "
                f"Another tries it again, {self.num_deaths + 1} of {MOST_TRIES}."
            )
        self._replace()
        return failure

    def _replace(self) -> None:
        self.end()
        if self.has_work():
            self.start()


def _stop(seats: Sequence[_Seat]) -> None:
    """Let workers that still measure store how far they are, within the time that this process has itself."""
    workers = [seat.worker for seat in seats if seat.worker and seat.cell]
    for worker in workers:
        worker.stop()
    end = time.monotonic() + interrupt.STORE_SECONDS
    for worker in workers:
        worker.join(max(end - time.monotonic(), 0.0))


def _taken(seats: Sequence[_Seat]) -> list[_Seat]:
    """The seats with a worker; one that has yet to begin ends where others have left it nothing to do."""
    for seat in seats:
        if seat.worker and seat.cell is None and not seat.has_work():
            seat.end()
    return [seat for seat in seats if seat.worker]


def _with_news(crew: Crew, seats: Sequence[_Seat]) -> list[_Seat]:
    limits = [left for seat in seats if (left := seat.seconds_left()) is not None]
    heard = crew.wait([seat.worker for seat in seats], min(limits, default=None))
    return [seat for seat in seats if seat.worker in heard]
