"""Ctrl-C, SIGTERM and their like: how a run ends within seconds even while compiled code holds the main thread."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

GRACE_SECONDS = 4.0
STORE_SECONDS = GRACE_SECONDS - 1.0  # what a worker process has of it
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # SIGUSR1: SLURM's, some time before the limit


class Interrupted(KeyboardInterrupt):
    """The process was asked to end: `signal_number` says by which signal."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


@contextlib.contextmanager
def interruptible(on_stuck: Callable[[int], None], *, grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """Turn SIGINT, SIGTERM, SIGHUP and SIGUSR1 into `Interrupted`, and see to it that the process ends.

    Python delivers a signal only between bytecodes of the main thread, and compiling a large program is a
    single call of many seconds. A second thread therefore waits; when the body has not ended `grace_seconds`
    after the signal, or at a second signal, it calls `on_stuck` and ends the process at once with status
    128 + the signal's number. That is as safe as a kill: a run writes every file under a temporary name.

    Outside the main thread, where signals cannot be caught, nothing is changed; nor is a SIGHUP that is ignored, as
    after `nohup`.

    Args:
        on_stuck: says farewell, given the signal's number; runs in the second thread.
        grace_seconds: how long the body may take to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    hook = sys.unraisablehook

    def unraisable(what: Any) -> None:
        # Raised within a finaliser or a weak reference's callback it goes no further: the second thread ends the run.
        if not isinstance(what.exc_value, Interrupted):
            hook(what)

    sys.unraisablehook = unraisable
    before = {number: signal.signal(number, _interrupt) for number in _caught()}
    wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    waiting = (reader, set(before), on_stuck, grace_seconds)
    watcher = threading.Thread(target=_watch, args=waiting, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # the watcher reads end of file and ends
        watcher.join()
        reader.close()


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Let the body end before `Interrupted` is raised, if it gets to it within the grace time."""
    _postponed.is_on = True
    try:
        yield
    finally:
        _postponed.is_on = False
        if number := _postponed.number:
            _postponed.number = 0
            raise Interrupted(number)


class _Postponed:
    """Whether a signal has to wait for the end of `postponed`, and which one does; the main thread's alone."""

    is_on = False
    number = 0


_postponed = _Postponed()


def _interrupt(number: int, _frame: object) -> None:
    if _postponed.is_on:
        _postponed.number = number
    else:
        raise Interrupted(number)


def _caught() -> list[int]:
    known = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    hangup = getattr(signal, "SIGHUP", None)
    return [each for each in known if each != hangup or signal.getsignal(each) != signal.SIG_IGN]


def _watch(
    reader: socket.socket, numbers: set[int], on_stuck: Callable[[int], None], grace_seconds: float
) -> None:
    asked = 0
    with contextlib.suppress(TimeoutError):
        while received := reader.recv(1):
            if received[0] in numbers and asked:
                break
            if received[0] in numbers:
                asked = received[0]
                reader.settimeout(grace_seconds)
        else:
            return  # the body has ended
    try:
        on_stuck(asked)
    finally:
        os._exit(128 + asked)
