"""Ctrl-C and SIGTERM: how a run ends within seconds even while compiled code holds the main thread."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

GRACE_SECONDS = 4.0


class Interrupted(KeyboardInterrupt):
    """The process was asked to end: `signal_number` says whether by Ctrl-C or by SIGTERM."""

    def __init__(self, signal_number: int):
        super().__init__(signal_number)
        self.signal_number = signal_number


@contextlib.contextmanager
def interruptible(on_stuck: Callable[[int], None], *, grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted`, and end the process if the main thread does not get to it.

    Python delivers a signal only between bytecodes of the main thread, and compiling a large program is a
    single call of many seconds. A second thread therefore waits; when the body has not ended `grace_seconds`
    after the signal, or at a second signal, it calls `on_stuck` and ends the process at once with status
    128 + the signal's number. That is as safe as a kill: a run writes every file under a temporary name.

    Outside the main thread, where signals cannot be caught, nothing is changed.

    Args:
        on_stuck: says farewell, given the signal's number; runs in the second thread.
        grace_seconds: how long the body may take to end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_interrupted(number: int, _frame: object) -> None:
        raise Interrupted(number)

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, raise_interrupted) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    waiting = (reader, set(before), on_stuck, grace_seconds)
    watcher = threading.Thread(target=_watch, args=waiting, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()  # the watcher reads end of file and ends
        watcher.join()
        reader.close()


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
