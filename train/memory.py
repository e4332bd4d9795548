"""How much memory there is for what a process measures, and how many members side by side it may take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_NO_LIMIT = 2**60
_CGROUPS = (  # of version 2 and of 1: the limit, and what of it is in use
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)


class Budget:
    """What the cells of one process are told about memory, and what they tell.

    Attributes:
        num_processes: how many share this machine's memory, this one included.
        at_most: so many members of a device side by side and no more, since memory ran out with twice as many; None as
            long as it has not.
    """

    def __init__(self, num_processes: int = 1, say: Callable[[str], object] = lambda _: None):
        self.num_processes, self._say = num_processes, say
        self.at_most: int | None = None
        self._said: set[str] = set()
        self.begin()

    def begin(self) -> None:
        """Forget what the last cell took."""
        self._taken: set[tuple[int, int]] = set()

    def take(self, at_once: int, size: int) -> None:
        """Note that a program holds so many of a device's members side by side."""
        self._taken.add((at_once, size))

    def taken(self) -> str:
        """How many members of a device were side by side in this cell, at the least: "all", or "4 of 9"."""
        few = [each for each in self._taken if each[0] < each[1]]
        return "{} of {}".format(*min(few, key=lambda each: each[0] / each[1])) if few else "all"

    def halve(self, cell: str, cause: str) -> bool:
        """Allow half as many members side by side as the last cell took, and say so; False if it took one, or none."""
        most = max((at_once for at_once, _ in self._taken), default=0)
        if most <= 1:
            return False
        self.at_most = most // 2
        self.say(
            f"{cell}: {cause} with {most} members side by side. It is measured again with {self.at_most} at once."
        )
        return True

    def has_come_down_to_one(self) -> bool:
        """Whether the last cell had programs, and none held two members side by side."""
        return bool(self._taken) and max(at_once for at_once, _ in self._taken) == 1

    def say(self, text: str) -> None:
        """Tell a user, once."""
        if text not in self._said:
            self._said.add(text)
            self._say(text)


_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)


def budget() -> Budget:
    """That of whoever measures here; else a new one, which is alone and tells nobody."""
    return _budget.get() or Budget()


@contextlib.contextmanager
def within(own: Budget) -> Iterator[None]:
    """Let the body measure within a budget."""
    token = _budget.set(own)
    try:
        yield
    finally:
        _budget.reset(token)


def free(mesh: Any) -> float:
    """Bytes that each device of a mesh, or the one device if it is None, may still take.

    An accelerator tells what it has left. The devices of a CPU and the processes beside this one share what the machine
    has. Of several hosts, which must all compile the same, the one that has least counts.
    """
    import jax

    own = jax.local_devices() if mesh is None else [*mesh.local_devices]
    if all(stats := [each.memory_stats() for each in (own[:1] if mesh is None else own)]):
        left = min(each["bytes_limit"] - each["bytes_in_use"] for each in stats)
    else:
        left = available() / budget().num_processes / (1 if mesh is None else len(own))
    if jax.process_count() == 1:
        return float(left)
    from jax.experimental.multihost_utils import process_allgather

    return float(process_allgather(jax.numpy.float32(left)).min())


def needed(compiled: Any) -> int:
    """Bytes that a program takes of a device while it runs, beside its arguments, which are there already."""
    said = compiled.memory_analysis()
    return int(said.temp_size_in_bytes + said.output_size_in_bytes - said.alias_size_in_bytes)


def available() -> float:
    """Bytes that the machine has free, or that a container or batch job has left if that is less."""
    known: list[float] = [_NO_LIMIT]  # not told: no limit
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                known.append(int(line.split()[1]) * 2**10)
    for names in _CGROUPS:
        with contextlib.suppress(OSError, ValueError, IndexError):
            limit, used, said = (Path("/sys/fs/cgroup") / name for name in names)
            most = int(limit.read_text(encoding="ascii"))
            rows = dict(line.split() for line in said.read_text(encoding="ascii").splitlines())
            # What files were read into is counted as used, and given back when it is asked for.
            in_use = int(used.read_text(encoding="ascii")) - int(rows["inactive_file"])
            known.append(max(most - max(in_use, 0), 0))
    return min(known)


def shown(num_bytes: float) -> str:
    """A number of bytes for a reader.

    >>> shown(3 * 2**20), shown(5.5 * 2**30)
    ('3.0 MiB', '5.5 GiB')
    """
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"
