"""Cells measured on this machine: in this process, or in worker processes, of which each has its share of the cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from jaxact.streams import print_any_text
from train import causes, config, devices, interrupt, memory, partial, request
from train.config import ConfigError
from train.experiment import Cell, Experiment
from train.outcomes import Failure, Measurement, failure_of, left_with_status, one_is_too_large
from train.pool import WorkerDiedError
from train.progress import Display

_WORKER_GIB = 1.5  # what a worker of the default study holds at most


def in_this_process(
    experiment: Experiment, cells: Sequence[Cell], display: Display, *, plan: partial.Plan | None = None
) -> Generator[Measurement | Failure]:
    """Measure cells one after the other, each when the one before has been taken; `display` follows."""
    budget = memory.Budget(say=display.notice)
    for cell in cells:
        yield _measured(experiment, cell, display.start(cell), budget, plan)


def default_number(num_cells: int) -> int:
    """Choose how many worker processes: one a core on a CPU, as many as memory holds; 0 beside an accelerator.

    An accelerator is one process's, which spreads members over all of its devices.
    """
    import jax

    if jax.default_backend() != "cpu":
        return 0
    return max(1, min(num_cores(), num_cells, int(memory.available() / 2**30 / _WORKER_GIB)))


class Processes:
    """Worker processes of this machine, among which XLA's threads are divided.

    Args:
        words: those after `python -m train run` that describe the experiment.
        fields: of the experiment, as `config.resolved` writes them.
        share: the cores of each; by default an equal part of those that this process may use.
    """

    plan: partial.Plan | None = None

    def __init__(self, words: Sequence[str], fields: dict[str, Any], *, share: int | None = None):
        self.words, self.fields, self.share = list(words), fields, share
        self.started: list[Process] = []

    def start(self, num_workers: int) -> Process:
        """Start one of so many."""
        # A signal reaches whichever thread does not block it: raised while a child reads what it is to do, it would
        # leave that child with half of it.
        share = self.share or num_cores() // num_workers
        num_beside = max(num_cores() // self.share, 1) if self.share else num_workers
        with interrupt.postponed(), _divided(share):
            self.started.append(Process(self.words, self.fields, self.plan, num_beside))
        return self.started[-1]

    @staticmethod
    def wait(workers: Sequence[Process], seconds: float | None) -> list[Process]:
        """Wait until one of them has something to say, at most so long."""
        heard = multiprocessing.connection.wait([each.connection for each in workers], seconds)
        return [each for each in workers if each.connection in heard]

    def close(self) -> None:
        """Wait until those that were let go have ended."""
        for each in self.started:
            each.process.join()


class Process:
    """A worker process and the connection to it; a `train.pool.Worker`."""

    def __init__(
        self,
        words: Sequence[str],
        fields: dict[str, Any],
        plan: partial.Plan | None = None,
        num_processes: int = 1,
    ):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        own = (theirs, list(words), fields, plan, num_processes)
        self.process = context.Process(target=serve, args=own, daemon=True)
        self.process.start()
        theirs.close()

    def __str__(self) -> str:
        return f"process {self.process.pid}"

    def send(self, name: str) -> None:
        """Have the cell of this name measured."""
        with contextlib.suppress(OSError):  # it has died: reading says so, and what it said last
            self.connection.send(name)

    def receive(self) -> tuple[str, Any]:
        """Return what it says next; see `serve`."""
        return pickle.loads(self.received())

    def received(self) -> bytes:
        """Return what it says next as it came.

        Raises:
            WorkerDiedError: if it has ended.
        """
        try:
            return self.connection.recv_bytes()
        except (EOFError, OSError):
            self.process.join(timeout=10)
            raise WorkerDiedError(causes.of_end(self.process.exitcode)) from None

    def stop(self) -> None:
        """Have it store how far its cell is, and end."""
        self.process.terminate()

    def join(self, seconds: float) -> None:
        """Wait until it has ended, at most so long."""
        self.process.join(seconds)

    def end(self, *, at_once: bool) -> None:
        """Let the process end, or kill it."""
        if at_once:
            self.process.kill()
            self.process.join()
        self.connection.close()


def serve(
    connection: Any,
    words: Sequence[str],
    fields: dict[str, Any],
    plan: partial.Plan | None = None,
    num_processes: int = 1,
) -> None:
    """Measure the cells whose names come through the connection, in a process of its own.

    Names, since what a cell holds, such as an activation of the config's own, need not survive being sent. It says
    "ready" once; of a cell "progress" (fraction and note) and "notice" (text), then "measured" (dataset, seconds,
    device) or "failed" (a `Failure`); and "broken" with an exception that other cells would meet too, before it ends.
    A signal ends it with status 128 + its number. `num_processes` share the machine's memory, this one included.
    """
    print_any_text()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with interrupt.interruptible(lambda _: None, grace_seconds=interrupt.STORE_SECONDS):
            _serve(connection, words, fields, plan, num_processes)
    except interrupt.Interrupted as error:
        os._exit(128 + error.signal_number)  # at once: XLA may be at work in threads of its own


def _serve(
    connection: Any,
    words: Sequence[str],
    fields: dict[str, Any],
    plan: partial.Plan | None,
    num_processes: int,
) -> None:
    def said(fraction: float, note: str = "") -> None:
        connection.send(("progress", (fraction, note)))

    try:
        experiment = request.parse(words).experiment
        if different := config.differences(fields, config.resolved(experiment)):
            raise ConfigError("the config is another one in a worker process:\n  " + "\n  ".join(different))
        cells = {cell.name: cell for cell in experiment.cells()}
        budget = memory.Budget(num_processes, lambda text: connection.send(("notice", text)))
        connection.send(("ready", None))
        while True:
            name = connection.recv()
            if name not in cells:
                raise ConfigError(
                    f"a worker process has no cell {name!r}. Let `cells()` follow from the fields alone, "
                    "or measure in one process: --workers 0."
                )
            outcome = _measured(experiment, cells[name], said, budget, plan)
            is_failure = isinstance(outcome, Failure)
            connection.send(("failed", outcome) if is_failure else ("measured", tuple(outcome[1:])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent needs no more
    except Exception as error:
        connection.send(("broken", _portable(error)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


def _measured(
    experiment: Experiment, cell: Cell, progress: Any, budget: memory.Budget, plan: partial.Plan | None
) -> Measurement | Failure:
    """Measure a cell, from its last checkpoint with fewer members side by side each time that memory runs out."""
    started, outcome = time.perf_counter(), None
    while outcome is None:
        with partial.kept(plan, cell.name, budget.say), memory.within(budget):
            outcome = _tried(experiment, cell, progress, budget, started)
    return outcome


def _tried(
    experiment: Experiment, cell: Cell, progress: Any, budget: memory.Budget, started: float
) -> Measurement | Failure | None:
    """What becomes of a cell; None where memory ran out and may not with fewer members, which `budget` then allows."""
    budget.begin()
    try:
        dataset = experiment.run(cell, progress=progress)
    except SystemExit as error:
        return left_with_status(cell, error.code)
    except Exception as error:
        # Where several hosts compute one program, one alone cannot turn to another.
        if causes.is_of_memory(error) and (
            "jax" not in sys.modules or sys.modules["jax"].process_count() == 1
        ):
            if budget.halve(cell.name, causes.ran_out(error)):
                return None
            if budget.has_come_down_to_one():
                return one_is_too_large(cell, error)
        return failure_of(cell, error)
    device = devices.described() if "jax" in sys.modules else ""
    return Measurement(cell, dataset, time.perf_counter() - started, device)


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
def _divided(share: int) -> Iterator[None]:
    """Let children that are started within have their share of the cores, so many.

    XLA's LAPACK waits, in a thread of XLA's pool, for other threads of that pool. As many such calls at once as there
    are threads wait for ever (seen with jaxlib 0.10.2 on two cores); with one thread they do not wait at all, and a
    program of ours holds fewer than four.
    """
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


def num_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
