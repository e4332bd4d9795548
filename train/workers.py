"""Where cells are measured: in this process, or side by side in worker processes, one a core."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxact.streams import print_any_text
from train import causes, config, request
from train.config import ConfigError
from train.experiment import Cell, Experiment
from train.progress import Display, Waiting

if TYPE_CHECKING:
    import xarray as xr

_WORKER_GIB = 1.5  # what a worker of the default study holds at most


class CellEndedError(RuntimeError):
    """Something other than the study ended a cell: the message names the cell, the cause and what helps."""


class Measurement(NamedTuple):
    """One measured cell: what `Experiment.run` returned, and the time it took."""

    cell: Cell
    dataset: xr.Dataset
    seconds: float


def in_this_process(
    experiment: Experiment, cells: Sequence[Cell], display: Display
) -> Generator[Measurement]:
    """Measure cells one after the other, each when the one before has been taken; `display` follows."""
    for cell in cells:
        yield _measured(experiment, cell, display.start(cell))


def side_by_side(
    experiment: Experiment, cells: Sequence[Cell], display: Display, *, words: Sequence[str], num_workers: int
) -> Generator[Measurement]:
    """Measure cells in several processes at once, with XLA's threads divided among them; yield them as they end.

    Cells of one program are neighbours, so each worker begins with a stretch of its own and compiles few programs; one
    that is done takes over from the end of the longest stretch left. Every core is busy all the time, whereas small
    programs leave half of two cores idle when XLA splits single operations among them.

    Args:
        experiment: whose cells; each worker makes its own from `words`, since it may hold what cannot be sent.
        cells: which of them, in order.
        display: told of starts and progress.
        words: those after `python -m train run` that describe the experiment.
        num_workers: at most so many processes.

    Raises:
        CellEndedError: if a worker was killed, or the machine has too little for a cell.
        Exception: whatever a cell raised.
    """
    if not cells:
        return
    num_workers = min(num_workers, len(cells))
    ends = [index * len(cells) // num_workers for index in range(num_workers + 1)]
    stretches = [Waiting(cells[start:end], display.forecast) for start, end in itertools.pairwise(ends)]
    workers: list[_Worker] = []
    try:
        with _divided(num_workers):
            for stretch in stretches:
                workers.append(_Worker(stretch, words, config.resolved(experiment)))
                workers[-1].assign(stretches)
        while working := {worker.connection: worker for worker in workers if worker.cell}:
            ready: list[Any] = multiprocessing.connection.wait([*working])
            for connection in ready:
                worker = working[connection]
                cell = worker.cell
                if measured := worker.next_word(display):
                    worker.assign(stretches)
                    yield Measurement(cell, *measured)
    finally:
        for worker in workers:
            worker.end()


def default_number(num_cells: int) -> int:
    """Choose how many worker processes: one a core on a CPU, as many as memory holds; 0 beside an accelerator.

    An accelerator is one process's, which spreads members over all of its devices.
    """
    import jax

    if jax.default_backend() != "cpu":
        return 0
    return max(1, min(_num_cores(), num_cells, int(_available_gib() / _WORKER_GIB)))


class _Worker:
    """A worker process and what the parent knows of it."""

    cell: Any = None  # what it measures; None once there is nothing left for it
    report: Any = None
    first_seconds = 0.0

    def __init__(self, stretch: Waiting, words: Sequence[str], fields: dict[str, Any]):
        context = multiprocessing.get_context("spawn")
        self.stretch = stretch
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, list(words), fields), daemon=True)
        self.process.start()
        theirs.close()

    def assign(self, stretches: Sequence[Waiting]) -> None:
        """Send the next cell, or end the process if there is none worth taking.

        Another's cell may be of a program that this worker has yet to compile, which may cost what its first cell did:
        worth it only where the other has more than that before it.
        """
        self.cell = self.report = None
        if self.stretch:
            self.cell = self.stretch.first()
        elif (longest := max(stretches, key=Waiting.seconds)).seconds() > self.first_seconds:
            self.cell = longest.last()
        else:
            self.connection.close()
            return
        with contextlib.suppress(OSError):  # it has died: reading says so, and what it said last
            self.connection.send(self.cell.name)

    def next_word(self, display: Display) -> tuple[xr.Dataset, float] | None:
        """Hear how far the cell is, or what it gave and in how many seconds."""
        kind, content = self._received()
        if kind == "failed":
            raise content
        if self.report is None:  # the first word: it has imported what it needs
            self.report = display.start(self.cell)
        if kind == "progress":
            self.report(*content)
            return None
        self.first_seconds = self.first_seconds or content[1]
        return content

    def _received(self) -> tuple[str, Any]:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(timeout=10)
            how = causes.of_end(self.process.exitcode)
            raise CellEndedError(f"the process that measured {self.cell.name} {how}") from None

    def end(self) -> None:
        """Wait for the process to end; one that still measures is killed."""
        if self.cell:
            self.process.kill()
        self.connection.close()
        self.process.join()


def _serve(connection: Any, words: Sequence[str], fields: dict[str, Any]) -> None:
    """Measure the cells whose names come through the connection, in a process of its own.

    Names, since what a cell holds, such as an activation of the config's own, need not survive being sent.
    """
    print_any_text()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def said(fraction: float, note: str = "") -> None:
        connection.send(("progress", (fraction, note)))

    try:
        experiment = request.parse(words).experiment
        if different := config.differences(fields, config.resolved(experiment)):
            raise ConfigError("the config is another one in a worker process:\n  " + "\n  ".join(different))
        cells = {cell.name: cell for cell in experiment.cells()}
        while True:
            name = connection.recv()
            if name not in cells:
                raise ConfigError(
                    f"a worker process has no cell {name!r}. Let `cells()` follow from the fields alone, "
                    "or measure in one process: --workers 0."
                )
            _, *measured = _measured(experiment, cells[name], said)
            connection.send(("measured", measured))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent needs no more
    except Exception as error:
        connection.send(("failed", _portable(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _measured(experiment: Experiment, cell: Cell, progress: Any) -> Measurement:
    started = time.perf_counter()
    try:
        dataset = experiment.run(cell, progress=progress)
    except SystemExit as error:
        raise RuntimeError(
            f"{cell.name} called sys.exit({error.code!r}), which would end the run without a word. "
            "Let the study raise an exception that says what is wrong."
        ) from error
    except Exception as error:
        if cause := causes.outside(error):
            raise CellEndedError(f"{cell.name}: {cause}") from error
        raise
    return Measurement(cell, dataset, time.perf_counter() - started)


def _portable(error: Exception) -> Exception:
    """The error itself where it survives the way to the parent; with the worker's traceback as a note."""
    text = "".join(traceback.format_exception(error)).rstrip()
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker process:\n{text}")
    return error


@contextlib.contextmanager
def _divided(num_workers: int) -> Iterator[None]:
    """Let children that are started within have their share of the cores.

    XLA's LAPACK waits, in a thread of XLA's pool, for other threads of that pool. As many such calls at once as there
    are threads wait for ever (seen with jaxlib 0.10.2 on two cores); with one thread they do not wait at all, and a
    program of ours holds fewer than four.
    """
    share = _num_cores() // num_workers
    threads = str(share if share >= 4 else 1)
    own = {"NPROC": threads, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    before = {name: os.environ[name] for name in own if name in os.environ}
    os.environ.update(own)
    # Ctrl-C reaches the whole group, but what becomes of it is for the parent to decide: children inherit the mask,
    # once the process that multiprocessing starts before the first child, with a mask of its own, is up.
    mask = None
    if hasattr(signal, "pthread_sigmask"):
        multiprocessing.resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name in own:
            del os.environ[name]
        os.environ.update(before)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _available_gib() -> float:
    """What the machine has free, or what a container or batch job may have if that is less."""
    known = [float(2**20)]  # not told: no limit
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                known.append(int(line.split()[1]) / 2**20)
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        with contextlib.suppress(OSError, ValueError):
            known.append(int((Path("/sys/fs/cgroup") / limit).read_text(encoding="ascii")) / 2**30)
    return min(known)
