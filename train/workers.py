"""Where cells are measured: in this process, or side by side in worker processes, one a core."""

from __future__ import annotations

import collections
import contextlib
import json
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

from train import config, request
from train.config import ConfigError
from train.experiment import Cell, Experiment
from train.progress import Display

if TYPE_CHECKING:
    import xarray as xr

_WORKER_GIB = 1.5  # what a worker of the default study holds at most


class WorkerDiedError(RuntimeError):
    """A worker process ended by itself; the message names its cell and how it ended."""


class Measurement(NamedTuple):
    """One measured cell.

    Attributes:
        cell: which.
        dataset: what `Experiment.run` returned.
        seconds: the time it took.
    """

    cell: Cell
    dataset: xr.Dataset
    seconds: float


def in_this_process(
    experiment: Experiment, cells: Sequence[Cell], display: Display
) -> Generator[Measurement]:
    """Measure cells one after the other, each when the one before has been taken.

    Args:
        experiment: whose cells.
        cells: which of them, in order.
        display: told of start and progress.

    Yields:
        The measurements, in order.
    """
    for cell in cells:
        yield _measured(experiment, cell, display.start(cell))


def side_by_side(
    experiment: Experiment, cells: Sequence[Cell], display: Display, *, words: Sequence[str], num_workers: int
) -> Generator[Measurement]:
    """Measure cells in several processes at once, with XLA's threads divided among them.

    Cells of one program are neighbours, so each worker begins with a stretch of its own and compiles few programs; one
    that is done takes over from the end of the longest stretch left. Every core is busy all the time, whereas small
    programs leave half of two cores idle when XLA splits single operations among them.

    Args:
        experiment: whose cells; each worker makes its own from `words`, since it may hold what cannot be sent.
        cells: which of them, in order.
        display: told of starts and progress.
        words: the words after `python -m train run` that describe the experiment.
        num_workers: how many processes.

    Yields:
        The measurements as they end.

    Raises:
        WorkerDiedError: if a worker was killed.
        Exception: whatever a cell raised.
    """
    if not cells:
        return
    context = multiprocessing.get_context("spawn")
    num_workers = min(num_workers, len(cells))
    fields = config.resolved(experiment)
    stretches = [
        collections.deque(cells[index * len(cells) // num_workers : (index + 1) * len(cells) // num_workers])
        for index in range(num_workers)
    ]
    workers: dict[Any, _Worker] = {}
    retired: list[Any] = []
    try:
        with _divided(num_workers):
            for stretch in stretches:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, list(words), fields), daemon=True)
                process.start()
                theirs.close()
                workers[ours] = _Worker(process, stretch)
                _assign(ours, workers[ours], stretches, display)
        while workers:
            ready: list[Any] = multiprocessing.connection.wait([*workers])
            for connection in ready:
                worker = workers[connection]
                kind, content = _received(connection, worker)
                if kind == "progress":
                    if worker.report is None:  # the first word: it has imported what it needs
                        worker.report = display.start(worker.cell)
                    worker.report(*content)
                elif kind == "failed":
                    raise content
                else:
                    dataset, seconds = content
                    cell = worker.cell
                    if worker.report is None:
                        display.start(cell)
                    worker.first_seconds = worker.first_seconds or seconds
                    _assign(connection, worker, stretches, display)
                    if worker.cell is None:  # nothing left for it: it ends when its connection does
                        connection.close()
                        retired.append(workers.pop(connection).process)
                    yield Measurement(cell, dataset, seconds)
    finally:
        for connection, worker in workers.items():
            worker.process.kill()
            connection.close()
        for process in (*retired, *(worker.process for worker in workers.values())):
            process.join()


def default_number(num_cells: int) -> int:
    """Choose how many worker processes: one a core on a CPU, as many as memory holds; 0 beside an accelerator.

    An accelerator is one process's, which spreads members over all of its devices.

    Args:
        num_cells: how many cells there are to measure.
    """
    import jax

    if jax.default_backend() != "cpu":
        return 0
    return max(1, min(_num_cores(), num_cells, int(_available_gib() / _WORKER_GIB)))


class _Worker:
    """What the parent knows of one worker."""

    def __init__(self, process: Any, stretch: collections.deque[Cell]):
        self.process, self.stretch = process, stretch
        self.cell: Any = None
        self.report: Any = None
        self.first_seconds = 0.0


def _assign(
    connection: Any, worker: _Worker, stretches: Sequence[collections.deque[Cell]], display: Display
) -> None:
    """Send a worker its next cell, or nothing if there is none worth taking.

    Another's cell may be of a program that this worker has yet to compile, which may cost what its first cell did:
    worth it only where the other has more than that before it.
    """
    longest = max(stretches, key=display.expected_seconds)
    if worker.stretch:
        worker.cell = worker.stretch.popleft()
    elif display.expected_seconds(longest) > worker.first_seconds:
        worker.cell = longest.pop()
    else:
        worker.cell = None
        return
    worker.report = None
    with contextlib.suppress(OSError):  # it has died: reading says so, and what it said last
        connection.send(worker.cell.name)


def _received(connection: Any, worker: _Worker) -> tuple[str, Any]:
    try:
        return connection.recv()
    except (EOFError, OSError):
        worker.process.join(timeout=10)
        code = worker.process.exitcode
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with status {code}"
        raise WorkerDiedError(
            f"the process that measured {worker.cell.name} ended {how}. "
            "If memory ran out, use fewer at once: --workers 1."
        ) from None


def _serve(connection: Any, words: Sequence[str], fields: dict[str, Any]) -> None:
    """Measure the cells whose names come through the connection, in a process of its own.

    Names, since what a cell holds, such as an activation of the config's own, need not survive being sent.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        experiment = request.parse(words).experiment
        if different := config.differences(fields, json.loads(json.dumps(config.resolved(experiment)))):
            raise ConfigError("the config is another one in a worker process:\n  " + "\n  ".join(different))
        cells = {cell.name: cell for cell in experiment.cells()}
        while True:
            name = connection.recv()
            if name not in cells:
                raise ConfigError(
                    f"a worker process has no cell {name!r}. Let `cells()` follow from the fields alone, "
                    "or measure in one process: --workers 0."
                )
            measurement = _measured(
                experiment,
                cells[name],
                lambda fraction, note="": connection.send(("progress", (fraction, note))),
            )
            connection.send(("measured", (measurement.dataset, measurement.seconds)))
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
    dataset = experiment.run(cell, progress=progress)
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
    before = {name: os.environ.get(name) for name in own}
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
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
