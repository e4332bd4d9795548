"""Cells in flight: what their training loops have come to is stored now and then, and taken up by the next process."""

from __future__ import annotations

import contextlib
import contextvars
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxact.files import write_atomically
from train import interrupt, records

Record = Mapping[str, np.ndarray]
_NAME = re.compile(r"(\d+)-(\d+)", re.ASCII)  # of a checkpoint: which loop, and how many of its chunks
_ASIDE = ".corrupt"


class Plan(NamedTuple):
    """What the processes of a run are told about checkpoints of its cells; can be sent.

    Attributes:
        folders: of the checkpoints of each cell, by the cell's name.
        every: seconds between two of a cell; 0 for none.
        key: what must be the same for a checkpoint to be taken, by name: the config, the code.
        is_any_code: whether one of other code is taken as well.
    """

    folders: Mapping[str, Path]
    every: float
    key: Mapping[str, str]
    is_any_code: bool = False


class _Said(NamedTuple):
    """The file beside a checkpoint: whose it is, and what was recorded of every chunk: dtype and shape by name."""

    key: dict[str, str]
    fields: dict[str, list[Any]]


def folder(cell_file: Path) -> Path:
    """The folder of a cell's checkpoints, beside the file that the cell is stored in."""
    return cell_file.with_suffix(".partial")


def remove(cell_file: Path) -> None:
    """Remove the checkpoints of a cell that is stored."""
    shutil.rmtree(folder(cell_file), ignore_errors=True)


def sweep(cells: Path) -> None:
    """Remove checkpoints of cells that are stored, and what killed processes were about to write of others."""
    for path in cells.glob("*.partial"):
        if path.is_dir() and not path.is_symlink():
            if path.with_suffix(".nc").exists():
                remove(path.with_suffix(".nc"))
            for leftover in path.glob(".*.tmp"):
                with contextlib.suppress(OSError):
                    leftover.unlink()


@contextlib.contextmanager
def kept(plan: Plan | None, cell: str, say: Callable[[str], object]) -> Iterator[None]:
    """Let the training loops of the body, which measures a cell, store what they have come to and go on from there.

    A process that is asked to end stores it once more.

    Args:
        plan: of the run; None, or one of no checkpoints, changes nothing.
        cell: its name.
        say: told what a user should know, in this thread.
    """
    if plan is None or not plan.every:
        yield
        return
    keeper = _Keeper(plan, cell, say)
    token = _keeper.set(keeper)
    try:
        yield
        with interrupt.postponed():
            keeper.wait()
    except interrupt.Interrupted:
        keeper.store()
        raise
    finally:
        _keeper.reset(token)
        keeper.wait()


def chunked(
    advance: Callable[[Any], tuple[Any, Record]],
    state: Any,
    *,
    num_chunks: int,
    num_members: int | None = None,
) -> Iterator[tuple[Any, Record]]:
    """Call `advance` again and again, as long as the caller asks for more: the door of every training loop.

    Loops of a cell are known by the order in which they begin; a cell begins the same in the same order. What an
    earlier process recorded is told again.

    Args:
        advance: `advance(state) -> (state, record)`; deterministic, arrays of the same names and shapes every time.
        state: before the first chunk, a pytree of arrays and PRNG keys; `advance` may donate it.
        num_chunks: at most so many.
        num_members: the length of the leading axis of every leaf without padding, which is not stored; None if they
            have none.

    Yields:
        (state, record) after each chunk; the state is None where an earlier process came further.
    """
    keeper = _keeper.get()
    loop = _Loop(num_members) if keeper is None else keeper.begin(state, num_members, num_chunks)
    state = state if loop.state is None else loop.state
    told = [*loop.records]
    for place, record in enumerate(told, start=1):
        yield state if place == len(told) else None, record
    for _ in range(len(told), num_chunks):
        # The state that goes in may be donated: there is none until the new one is noted.
        with interrupt.postponed():
            started = time.monotonic()
            state, record = advance(state)
            if keeper is not None:
                loop.note(state, record)
                is_last = len(loop.records) == num_chunks
                keeper.store_if_due(0.0 if is_last else time.monotonic() - started)
        yield state, record


class _Loop:
    """A training loop of a cell and what it has come to.

    Attributes:
        state: after the last chunk; None where there is no need of it.
        records: of all chunks so far.
        num_stored: of how many a checkpoint is written, or being written.
    """

    def __init__(self, num_members: int | None):
        self.num_members = num_members
        self.state: Any = None
        self.records: list[Record] = []
        self.num_stored = 0

    def note(self, state: Any, record: Record) -> None:
        """Take down what a chunk gave."""
        self.state = state
        self.records.append(record)

    def is_new(self) -> bool:
        """Whether it has come further than what is stored of it."""
        return len(self.records) > self.num_stored

    def copied(self) -> dict[str, Any]:
        """What a checkpoint holds: a copy of the state, and the records as one array by name, [chunk, ...]."""
        stacked = {name: np.stack([record[name] for record in self.records]) for name in self.records[0]}
        tree = {"state": _on_host(self.state, self.num_members), "records": stacked}
        self.num_stored = len(self.records)
        return tree

    def end(self) -> None:
        """Let another loop begin, which may be given the state and donate it."""
        self.state = _on_host(self.state, self.num_members) if self.is_new() else None


class _Keeper:
    """Stores and restores the loops of one cell; the thread that writes is never waited for while there is work."""

    def __init__(self, plan: Plan, cell: str, say: Callable[[str], object]):
        import jax

        self.folder, self.every = plan.folders[cell], plan.every
        own = {"cell": cell, "jax": jax.__version__, "kind of device": jax.default_backend()}
        self.key, self.is_any_code = {**plan.key, **own}, plan.is_any_code
        self.cell, self.say = cell, say
        self.loops: list[_Loop] = []
        self.last = time.monotonic()
        self.is_other_there = False  # checkpoints that do not fit
        self.is_resumed = self.is_said = False  # and whether it is said from where
        self.writer: threading.Thread | None = None
        self.trouble: Exception | None = None
        self.is_trouble_said = False

    def begin(self, state: Any, num_members: int | None, num_chunks: int) -> _Loop:
        """The next loop of the cell, as far as a checkpoint goes."""
        for loop in self.loops:
            loop.end()
        self.loops.append(loop := _Loop(num_members))
        path = self._newest(len(self.loops) - 1)
        if path is not None:
            self._take_up(loop, path, state)
        self.is_resumed |= bool(loop.records)
        if self.is_resumed and not self.is_said and len(loop.records) < num_chunks:
            self.is_said = True
            place = f"chunk {len(loop.records)} of {num_chunks} of training {len(self.loops)}"
            self.say(f"{self.cell} goes on from its checkpoint: {place}.")
        return loop

    def _take_up(self, loop: _Loop, path: Path, state: Any) -> None:
        """Restore a loop whose first state is `state`, if its checkpoint fits and is whole."""
        try:
            said = records.read(path.with_name(f"{path.name}.json"), _Said)
            if self._fits(said):
                _restore(loop, path, said.fields, state)
        except (OSError, ValueError, TypeError) as error:
            self._set_aside(path, error)

    def store_if_due(self, next_seconds: float) -> None:
        """Begin to write once the interval is over, or would be by the end of the next chunk."""
        is_writing = self.writer is not None and self.writer.is_alive()
        if is_writing or time.monotonic() - self.last + next_seconds < self.every:
            return
        self.wait()
        work = self._copied()
        self.last = time.monotonic()
        self.writer = threading.Thread(target=self._write, args=(work,), daemon=True)
        self.writer.start()

    def store(self) -> None:
        """Write all that is new, now."""
        self.wait()
        self._write(self._copied())
        self.wait()

    def wait(self) -> None:
        """Wait for what is being written; say what was in its way."""
        if self.writer is not None:
            self.writer.join()
        if self.trouble is not None and not self.is_trouble_said:
            self.is_trouble_said = True
            self.say(f"No checkpoint of {self.cell} could be stored, which goes on without: {self.trouble}")
        self.writer = self.trouble = None

    def _copied(self) -> dict[str, dict[str, Any]]:
        """What is new, by the name of its checkpoint: copies, for the loops go on."""
        found = {}
        with self._surviving():
            for number, loop in enumerate(self.loops):
                if loop.is_new():
                    found[f"{number}-{len(loop.records)}"] = loop.copied()
        return found

    def _write(self, trees: Mapping[str, dict[str, Any]]) -> None:
        with self._surviving():
            if self.is_other_there:
                shutil.rmtree(self.folder)
                self.is_other_there = False
            for name, tree in trees.items():
                self._write_one(name, tree)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Whatever goes wrong with a checkpoint: the cell goes on, and `wait` says so."""
        try:
            yield
        except Exception as error:
            self.trouble = error

    def _write_one(self, name: str, tree: dict[str, Any]) -> None:
        from jaxact import fit

        self.folder.mkdir(exist_ok=True)
        fields = {each: [value.dtype.name, list(value.shape)] for each, value in tree["records"].items()}
        # First: a checkpoint is there once its folder is.
        said = json.dumps(_Said(self.key, fields)._asdict())
        write_atomically(self.folder / f"{name}.json", said.encode())
        fit.save(self.folder / name, tree)
        number = name.partition("-")[0]
        for path in self.folder.glob(f"{number}-*"):
            if path.name not in (name, f"{name}.json") and not path.name.endswith(_ASIDE):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _newest(self, number: int) -> Path | None:
        """The checkpoint of a loop that goes furthest."""
        found = []
        for path in self.folder.glob(f"{number}-*"):
            match = _NAME.fullmatch(path.name)
            if match and path.is_dir():
                found.append((int(match[2]), path))
        return max(found)[1] if found else None

    def _fits(self, said: _Said) -> bool:
        """Whether a checkpoint is of this cell, measured in this way; of one that is not it is said, once."""
        names = [name for name in self.key if not (name == "code" and self.is_any_code)]
        other = [name for name in names if said.key.get(name) != self.key[name]]
        if other and not self.is_other_there:
            self.is_other_there = True
            self.say(f"{self.cell} begins again: its checkpoint is of another {' and another '.join(other)}.")
        return not other

    def _set_aside(self, path: Path, error: Exception) -> None:
        """Give a damaged checkpoint a name under which it is kept until the cell is stored."""
        aside = path.with_name(f"{path.name}{_ASIDE}")
        with contextlib.suppress(OSError):
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        self.say(
            f"{self.cell} begins again: its checkpoint is damaged, and now {aside}: {records.reason(error)}"
        )


_keeper: contextvars.ContextVar[_Keeper | None] = contextvars.ContextVar("keeper", default=None)


def _restore(loop: _Loop, path: Path, fields: Mapping[str, list[Any]], state: Any) -> None:
    """Read a checkpoint into a loop whose first state is `state`."""
    import jax

    from jaxact import fit

    stacked = {name: np.empty(shape, dtype) for name, (dtype, shape) in fields.items()}
    size = loop.num_members
    like = {"state": jax.tree.map(lambda leaf: _template(leaf, size), state), "records": stacked}
    found = fit.restore(path, like)
    count = len(next(iter(stacked.values())))
    loop.records = [{name: rows[place] for name, rows in found["records"].items()} for place in range(count)]
    loop.state = jax.tree.map(_as_before, state, found["state"])
    loop.num_stored = count


def _on_host(state: Any, num_members: int | None) -> Any:
    """A copy of a state that no device shares, without padding; keys as their integers."""
    import jax

    plain = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)
    return jax.tree.map(lambda leaf: np.array(leaf[:num_members]), jax.device_get(plain))


def _template(leaf: Any, num_members: int | None) -> np.ndarray:
    """An array like the one that `_on_host` makes of a leaf."""
    import jax

    plain = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    shape = plain.shape if num_members is None else (num_members, *plain.shape[1:])
    return np.empty(shape, plain.dtype)


def _as_before(leaf: Any, stored: np.ndarray) -> Any:
    """What is stored of a leaf, padded and laid out on the devices as the leaf is, so that a program takes it."""
    import jax

    if stored.shape[:1] != leaf.shape[:1]:
        stored = stored[np.minimum(np.arange(len(leaf)), len(stored) - 1)]
    if isinstance(leaf, np.ndarray):
        return stored
    if _is_key(leaf):
        stored = jax.random.wrap_key_data(jax.numpy.asarray(stored), impl=jax.random.key_impl(leaf))
    elif leaf.weak_type:
        return leaf.at[...].set(stored)
    return jax.device_put(stored, leaf.sharding)


def _is_key(leaf: Any) -> bool:
    import jax

    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
