"""A line between two processes of a study: what they say, and that they are alive."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

SILENT_SECONDS = 40.0  # without a beat, after which a process counts as lost
_BEAT_SECONDS = 5.0
_LAST = ("lost", "failed")


class HostLostError(RuntimeError):
    """Another process of the study was lost, or did not do what this one did; a sentence without a full stop."""


class Line:
    """Words to and from another process, each a line of JSON, [kind, content], and a beat in between.

    Args:
        connection: to it.
        seconds: how long it may be silent until `watch`.
    """

    def __init__(self, connection: socket.socket, seconds: float):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(seconds)
        self._connection, self._file = connection, connection.makefile("rb")
        self._heard: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._speaking, self._has_ended = threading.Lock(), threading.Event()

    def say(self, kind: str, content: Any = None) -> None:
        """Send a word."""
        with contextlib.suppress(OSError), self._speaking:  # it has ended: `hear` says so
            self._connection.sendall(json.dumps([kind, content]).encode() + b"\n")

    def next(self) -> tuple[str, Any]:
        """Read a word; "lost" where there are no more."""
        try:
            kind, content = json.loads(self._file.readline())
        except TimeoutError:
            return "lost", f"was silent for {SILENT_SECONDS:.0f} s"
        except (OSError, ValueError, TypeError):
            return "lost", "was lost"
        return kind, content

    def hear(self, kind: str, seconds: float | None) -> Any:
        """Wait for a word of a kind.

        Raises:
            HostLostError: if the other one has ended or does not say it; a clause without its subject.
        """
        try:
            said, content = self._heard.get(timeout=seconds)
        except queue.Empty:
            raise HostLostError(f"did not come as far as this one within {seconds:.0f} s") from None
        if said != kind:
            raise HostLostError(content if said in _LAST else f"said {said!r} instead of {kind!r}")
        return content

    def watch(self, ended: Callable[[str], None], grace: Mapping[str, float]) -> None:
        """Read in a thread from now on, and beat in another; one that is silent for 40 s is lost.

        Args:
            ended: hears the word that the main thread does not come to hear.
            grace: seconds that it has for a word, by kind; others wait for it.
        """
        self._connection.settimeout(SILENT_SECONDS)
        threading.Thread(target=self._read, args=(ended, grace), daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()

    def close(self, word: str | None) -> None:
        """Hang up, with a last word, if any."""
        if word is not None:
            self.say("failed", word)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def wait_for_end(self, seconds: float) -> None:
        """Wait until the other one has hung up as well, at most so long."""
        self._has_ended.wait(seconds)

    def refuse(self, reason: str) -> None:
        """Say why there is nothing more to say, and hang up; before `watch`."""
        self.say("refused", reason)
        self._file.close()
        self._connection.close()

    def _beat(self) -> None:
        while not self._has_ended.wait(_BEAT_SECONDS):
            self.say("beat")

    def _read(self, ended: Callable[[str], None], grace: Mapping[str, float]) -> None:
        while not self._has_ended.is_set():
            kind, content = self.next()
            if kind == "beat":
                continue
            self._heard.put((kind, content))
            if kind == "outcome" and not content:
                continue
            if kind in grace and not self._is_heard_within(grace[kind]):
                ended(f"failed: {content}" if kind == "outcome" else content)
            if kind == "lost" or (kind == "cell" and not content):
                self._has_ended.set()

    def _is_heard_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while not self._heard.empty():
            if time.monotonic() >= end:
                return False
            time.sleep(0.05)
        return True
