"""What ended a cell or kept a file from being written, by its name, and what helps against it."""

import errno
import signal
import traceback
from typing import NamedTuple

_FEWER = "use fewer processes at once (--workers 1) or a smaller study"
_MORE_FILES = "Let a process open more files (`ulimit -n 4096`)"
_GONE = "Somebody deleted or moved its folder meanwhile: put it back, or have what was in it measured again"
_FILES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space",
    errno.EFBIG: "Free some space, or lift the limit on the size of files (`ulimit -f unlimited`)",
    errno.EMFILE: _MORE_FILES,
    errno.ENFILE: "End other programs: the system has no file left to open",
    errno.ENOMEM: f"Memory ran out: {_FEWER}",
    errno.ENOENT: _GONE,
    errno.ENOTDIR: "Something else stands where its folder was: remove it",
    errno.ESTALE: _GONE,
    errno.EIO: "The disk or the network behind it fails: have it mended",
    errno.ENAMETOOLONG: "Choose a folder with a shorter name",
    errno.EROFS: "Choose a disk that can be written",
}
_ANY_FILE = "Make the folder writable"
_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EAGAIN)

_CRASHED = (
    "Compiled code crashed, which is a bug in a library, not in the study. Continue; if it happens again, see where "
    "with PYTHONFAULTHANDLER=1 and --workers 0."
)
_ASKED = "Somebody, or the batch system, asked it to end: no fault of the study. Continue."
_SIGNALS = {
    "SIGKILL": "Memory ran out and the system ended it (`dmesg` says so), or somebody did. "
    "If memory ran out, use fewer at once: --workers 1.",
    "SIGXCPU": "Its processor time was used up: lift the limit (`ulimit -t unlimited`) and continue.",
    "SIGXFSZ": "A file grew beyond the limit: lift it (`ulimit -f unlimited`) and continue.",
    "SIGILL": "A library was built for another processor: install one for this.",
    **dict.fromkeys(("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM"), _ASKED),
    **dict.fromkeys(("SIGSEGV", "SIGBUS", "SIGABRT", "SIGFPE", "SIGTRAP", "SIGSYS"), _CRASHED),
}


class Cause(NamedTuple):
    """What ended a cell.

    Attributes:
        what: a clause without a full stop.
        remedy: sentences.
    """

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}"


def of_file(error: OSError) -> str:
    """What helps where a file of a run could not be written: a clause without a full stop."""
    return _FILES.get(error.errno or 0, _ANY_FILE)


def of_end(exit_code: int | None) -> Cause:
    """How a process ended, and what helps.

    >>> print(of_end(3))
    ended with status 3. The study, or a library that it calls, ended the process: see above whether it says why.
    """
    if exit_code is None:
        return Cause("closed its connection and hangs", "End it and continue.")
    if exit_code - 128 in [*signal.Signals]:  # it stored something first
        exit_code = 128 - exit_code
    if exit_code >= 0:
        why = "The study, or a library that it calls, ended the process: see above whether it says why."
        return Cause(f"ended with status {exit_code}", why)
    name = _signal_name(-exit_code)
    return Cause(f"ended by {name}", _SIGNALS.get(name, "Somebody sent it. Continue."))


def outside(error: BaseException) -> Cause | None:
    """What ran out, and what helps, where an error is the machine's rather than the study's; else None."""
    where = "".join(
        f" in {each.filename}:{each.lineno}" for each in traceback.extract_tb(error.__traceback__)[-1:]
    )
    said = f"{type(error).__name__}: {error}".removesuffix(": ").rstrip(".") + where
    if is_of_memory(error):
        return Cause(f"{ran_out(error)} ({said})", f"{_FEWER.capitalize()}.")
    if not isinstance(error, OSError) or error.errno not in _SYSTEM:
        return None
    if error.errno == errno.EAGAIN:
        remedy = f"Lift the limit (`ulimit -u`) or {_FEWER}."
        return Cause(f"no more processes or threads may be started ({said})", remedy)
    return Cause(f"the system refused ({said})", f"{of_file(error)}, then continue.")


def is_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, this machine's or a device's."""
    is_of_device = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (is_of_device and "RESOURCE_EXHAUSTED" in str(error))


def ran_out(error: BaseException) -> str:
    """Whose memory it was, as a clause."""
    return "memory ran out" if isinstance(error, MemoryError) else "the device's memory ran out"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"
