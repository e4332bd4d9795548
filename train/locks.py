"""Who is at work in a run folder: a lock file that names its process and shows that it lives.

Where the file system has locks, the folder itself is locked as well; where it has none, the file alone keeps a second
process out. Telling whether a folder is held takes no lock and writes nothing.
"""

import contextlib
import datetime
import json
import os
import re
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from train import records
from train.config import ConfigError

_NAME = ".lock"
_BEAT_SECONDS = 5.0
_STALE_SECONDS = 60.0  # without a heartbeat: a process elsewhere counts as dead
_DRAFT_SECONDS = 3600.0  # after which a half made folder of an unknown process is litter
_DRAFT = re.compile(r"\..+-\d{8}T\d{6}-[0-9a-f]{4}(?:\.(?P<host>[\w-]+)\.(?P<pid>\d+))?\.tmp", re.ASCII)


class Holder(NamedTuple):
    """The process that holds a folder, as its lock file names it; the file's time of change is its heartbeat.

    Attributes:
        host: the machine's name.
        place: what tells machines of one name, restarts and containers apart, where the system says.
        pid: the process's number.
        ticks: when the process began, in the system's own count, which tells it from a later one of its number.
        start: UTC time at which it took the folder, ISO 8601.
        token: differs each time a folder is taken.
    """

    host: str
    place: str
    pid: int
    ticks: int
    start: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.start}"


@contextlib.contextmanager
def held(directory: Path, say: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Hold a folder, against any other process that does.

    A lock that a dead process left is taken over: one of this machine that no longer runs, or one elsewhere without a
    heartbeat for a minute.

    Args:
        directory: the folder of a run.
        say: told of a lock that is taken over.

    Yields:
        What to call before something is written: it raises ConfigError if another has taken the folder over, which
        it may once this process has been suspended for a minute.

    Raises:
        ConfigError: if another process holds the folder; with its name.
        OSError: if the lock file cannot be written.
    """
    path = directory / _NAME
    with _system_lock(directory):
        own = _taken(path, say)
        ended = threading.Event()
        beating = threading.Thread(target=_beat, args=(path, own, ended), daemon=True)
        beating.start()

        def check() -> None:
            if (other := _read(path)) not in (own, None):
                raise ConfigError(
                    f"{_name(other)} has taken over {directory} meanwhile. It goes on with the run."
                )

        try:
            yield check
        finally:
            ended.set()
            beating.join()
            release(directory)


def release(directory: Path) -> None:
    """Remove this process's lock from a folder, if it holds it: what a process that ends at once has to call."""
    path, me = directory / _NAME, _me()
    with contextlib.suppress(OSError):
        holder = _read(path)
        if isinstance(holder, Holder) and holder[:4] == me[:4]:
            path.unlink()


def is_held(directory: Path) -> bool:
    """Tell whether a process is at work in a folder; takes no lock and writes nothing, so it is in nobody's way."""
    return _is_alive(directory / _NAME, time.time())


def holder(directory: Path) -> str:
    """Name the process that a folder's lock file names, which may be dead; "" where there is none."""
    found = _read(directory / _NAME)
    return "" if found is None else _name(found)


def draft(output: Path, name: str) -> Path:
    """Name the folder in which the folder `name` of `output` is made: by it `sweep` knows whether its maker lives."""
    return output / f".{name}.{_file_name(socket.gethostname())}.{os.getpid()}.tmp"


def sweep(output: Path) -> None:
    """Remove the half made folders of processes that were killed."""
    with contextlib.suppress(OSError):
        for path in output.glob(".*.tmp"):
            match = _DRAFT.fullmatch(path.name)
            if match and _is_litter(path, match["host"], match["pid"]):
                shutil.rmtree(path, ignore_errors=True)


def _is_litter(path: Path, host: str | None, pid: str | None) -> bool:
    is_here = host == _file_name(socket.gethostname())
    return (
        pid is not None and is_here and not _runs(int(pid))
    ) or time.time() - path.stat().st_mtime > _DRAFT_SECONDS


@contextlib.contextmanager
def _system_lock(directory: Path) -> Iterator[None]:
    """The system's own lock of a folder, where it has one: it ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(directory / _NAME) from None
        except OSError:
            pass  # some network file systems have no locks
        yield
    finally:
        os.close(handle)


def _taken(path: Path, say: Callable[[str], None]) -> Holder:
    me = _me()
    for _ in range(10):
        if _put(path, me):
            return me
        other, status = _read(path), _status(path)
        if status is None:
            continue  # it has ended meanwhile
        if _is_alive(path, _now(path.parent)):
            raise _refusal(path)
        if _set_aside(path, status):
            say(f"Taken over from {_name(other)}, which ended without a word.")
    raise _refusal(path)


def _put(path: Path, me: Holder) -> bool:
    """Make the lock file, whole or not at all; False if there is one."""
    own = path.with_name(f"{_NAME}.{me.token}.tmp")
    content = json.dumps(me._asdict())
    own.write_text(content, encoding="utf-8")
    try:
        os.link(own, path)
    except (FileExistsError, FileNotFoundError):  # there is one, or its process has swept ours away
        return False
    except OSError:  # no hard links here
        return _put_unlinked(path, content)
    finally:
        own.unlink(missing_ok=True)
    return True


def _put_unlinked(path: Path, content: str) -> bool:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _set_aside(path: Path, status: os.stat_result) -> bool:
    """Remove a lock file, if it is still the one that was looked at; one that came meanwhile is put back."""
    aside = path.with_name(f"{_NAME}.{secrets.token_hex(8)}.tmp")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return False
    now = aside.lstat()
    is_same = (now.st_ino, now.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    if not is_same:
        with contextlib.suppress(OSError):
            os.link(aside, path)
    shutil.rmtree(aside) if aside.is_dir() and not aside.is_symlink() else aside.unlink()
    return is_same


def _is_alive(path: Path, now: float) -> bool:
    status, holder = _status(path), _read(path)
    if status is None or holder is None:
        return False
    me = _me()
    if isinstance(holder, Holder) and me.place and (holder.host, holder.place) == (me.host, me.place):
        return _runs(holder.pid, holder.ticks)
    return now - status.st_mtime < _STALE_SECONDS


def _refusal(path: Path) -> ConfigError:
    status = _status(path)
    beat = "" if status is None else f", last seen {max(_now(path.parent) - status.st_mtime, 0.0):.0f} s ago"
    return ConfigError(
        f"another process runs in {path.parent}: {_name(_read(path))}{beat}. Wait for it or end it first."
    )


def _name(holder: Holder | Exception | None) -> str:
    return str(holder) if isinstance(holder, Holder) else "a process without a name"


def _read(path: Path) -> Holder | Exception | None:
    """Whom the lock file names; what is wrong with the file if it names nobody; None if there is none."""
    try:
        return records.read(path, Holder)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return error


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None


def _beat(path: Path, own: Holder, ended: threading.Event) -> None:
    while not ended.wait(_BEAT_SECONDS):
        with contextlib.suppress(OSError):
            if _read(path) == own:
                os.utime(path)


def _now(directory: Path) -> float:
    """The time by the clock of the folder's file system, which may be another machine's."""
    path = directory / f"{_NAME}.{secrets.token_hex(8)}.tmp"
    try:
        path.touch()
        return path.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        path.unlink(missing_ok=True)


def _me() -> Holder:
    return Holder(
        host=socket.gethostname(),
        place=_place(),
        pid=os.getpid(),
        ticks=_ticks(os.getpid()) or 0,
        start=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        token=secrets.token_hex(8),
    )


def _place() -> str:
    """This start of this machine, and the container whose process numbers are ours; "" if none can be asked."""
    if sys.platform == "win32":
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return sys.platform


def _runs(pid: int, ticks: int = 0) -> bool:
    """Tell whether a process of this machine runs; with `ticks`, whether it is the one that began then."""
    if sys.platform == "win32":
        return True  # to ask is to end it
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    began = _ticks(pid)
    return began is None or (began == ticks if ticks else began > 0)


def _ticks(pid: int) -> int | None:
    """When a process began; 0 for one that is dead but not yet waited for; None where the system does not say."""
    try:
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        )
        return 0 if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None


def _file_name(text: str) -> str:
    return re.sub(r"[^\w-]+", "_", text, flags=re.ASCII) or "_"
