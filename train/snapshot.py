"""What a run says of itself while it runs: a small file in its folder, written at most once a second."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from train import records
from train.config import ConfigError

NAME = "progress.json"
MOST_FAILED = 10  # failures that are named; all are counted
_SECONDS = 1.0  # between two writings at least


class Running(NamedTuple):
    """A cell that runs.

    Attributes:
        cell: its name.
        fraction: of it that is done, in [0, 1].
        note: what it is doing.
        worker: who measures it; "" for the run's own process.
        began: UTC time in seconds.
    """

    cell: str
    fraction: float
    note: str
    worker: str
    began: float


class Failed(NamedTuple):
    """A cell that failed for good, and the cause in one line."""

    cell: str
    cause: str


class Snapshot(NamedTuple):
    """A run at one moment. What is not known is NaN or 0, and left out of the file.

    Attributes:
        written: UTC time in seconds.
        num_cells: of the run.
        num_done: cells that are measured.
        num_failed: cells that failed for good.
        running: as `Running` is written, an object each.
        failed: the first `MOST_FAILED` cells that failed, as `Failed` is written.
        has_ended: whether the process came to the end of its cells.
        cells_per_second: measured by this process, with parts of those that run.
        seconds_left: expected, to the end of the run.
        num_members: networks of a cell.
        num_steps: optimiser steps of a network.
        memory: bytes that the process and its workers on this machine hold.
        num_processes: that hold it.
        device_memory: bytes that programs of this process have held at most on an accelerator.
    """

    written: float
    num_cells: int
    num_done: int
    num_failed: int
    running: list = []
    failed: list = []
    has_ended: bool = False
    cells_per_second: float = math.nan
    seconds_left: float = math.nan
    num_members: int = 0
    num_steps: int = 0
    memory: float = math.nan
    num_processes: int = 0
    device_memory: float = math.nan


class Log:
    """Keeps the newest snapshot in a run folder.

    A disk that is full or a folder that is gone ends no run by this: what is lost is a look at it.

    Args:
        directory: of the run.
        experiment: whose fields say how many networks a cell has, and steps a network.
    """

    def __init__(self, directory: Path, experiment: Any):
        self._path = directory / NAME
        num_members = getattr(experiment, "num_members", lambda: 0)
        self._num_members, self._num_steps = num_members(), int(getattr(experiment, "num_steps", 0))
        self._memory, self._next = (math.nan, 0, math.nan), -math.inf
        self._newest: Snapshot | None = None
        self._ended = threading.Event()
        self._writing = threading.Thread(target=self._write_now_and_then, daemon=True)

    def offer(self, seen: Snapshot) -> None:
        """Take note of the newest, which is written within a second."""
        self._newest = self._completed(seen)
        if not self._writing.ident:
            self._writing.start()

    def close(self, seen: Snapshot) -> None:
        """Write the last."""
        self._ended.set()
        if self._writing.ident:
            self._writing.join()
        self._write(self._completed(seen))

    def remove(self) -> None:
        """Remove the file of a run that is complete: its result says more."""
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _completed(self, seen: Snapshot) -> Snapshot:
        # In the thread that waits for the children: of two threads that ask how one ended, one hears nothing.
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _SECONDS
            is_here = any(not each["worker"] and each["fraction"] > 0 for each in seen.running)
            self._memory = *_memory(), (_device_memory() if is_here else math.nan)
        memory, num_processes, device_memory = self._memory
        return seen._replace(
            num_members=self._num_members,
            num_steps=self._num_steps,
            memory=memory,
            num_processes=num_processes,
            device_memory=device_memory,
        )

    def _write_now_and_then(self) -> None:
        while True:
            newest, self._newest = self._newest, None
            if newest is not None:
                self._write(newest)
            if self._ended.wait(_SECONDS):
                return

    def _write(self, seen: Snapshot) -> None:
        fields = {name: value for name, value in seen._asdict().items() if value == value}
        # Not flushed to the disk, which would take longer than all else here: after a power cut nobody watches.
        temporary = self._path.with_name(f".{NAME}.{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(fields), encoding="utf-8", errors="backslashreplace")
            os.replace(temporary, self._path)


def read(directory: Path) -> Snapshot | None:
    """Read the newest snapshot of a run; None where there is none.

    Raises:
        ConfigError: saying what is wrong with the file.
    """
    path = directory / NAME
    try:
        seen = records.read(path, Snapshot)
        running = [records.fitted(each, Running) for each in seen.running]
        failed = [records.fitted(each, Failed) for each in seen.failed]
        return seen._replace(running=running, failed=failed)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read: {records.reason(error)}. Remove it; a run that goes on writes it anew."
        ) from error


def _memory() -> tuple[float, int]:
    """Bytes that this process and its children of Python's making hold, and how many they are."""
    pids = [os.getpid(), *(each.pid for each in multiprocessing.active_children())]
    held = [size for pid in pids if (size := _resident(pid)) is not None]
    return (float(sum(held)), len(held)) if held else (math.nan, 0)


def _resident(pid: int | None) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    except (OSError, ValueError, IndexError, AttributeError):  # no Linux, or it has ended
        return None


def _device_memory() -> float:
    """The most that one device has held; NaN where the devices do not say, as CPUs do not."""
    if "jax" not in sys.modules:
        return math.nan
    said = [device.memory_stats() or {} for device in sys.modules["jax"].local_devices()]
    return float(
        max((each["peak_bytes_in_use"] for each in said if "peak_bytes_in_use" in each), default=math.nan)
    )
