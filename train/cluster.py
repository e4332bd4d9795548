"""Worker processes on the machines of a Ray cluster, one that there is or one started for the run.

An actor of Ray keeps a place on a machine and, beside it there, a worker process as `train.workers` has them: the same
signals, exit codes and ends. What the process says comes back through Ray as bytes.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

from train import config, request
from train.causes import Cause
from train.config import ConfigError
from train.pool import WorkerDiedError
from train.workers import Processes, num_cores

_OBJECT_BYTES = 2**27  # Ray's shared memory, through which little goes
_ANSWER_SECONDS = (
    45.0  # one or two on an idle machine, most of it Ray's import; Ray itself would try for two minutes
)
_END_SECONDS = 10.0
_LONGEST = 300  # characters of what Ray says
_FORWARDED = ("JAX_", "XLA_")
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by itself, and warns of
}
_SAME_PLACE = (
    "Every machine of the cluster needs this project, its packages, and the config file at the same path, for example "
    "on a shared disk; `ray status` shows the machines."
)


class Cluster:
    """Workers on a Ray cluster, each with a GPU of its own where there are any; a `train.pool.Crew`.

    Args:
        words: those after `python -m train run` that describe the experiment.
        fields: of the experiment, as `config.resolved` writes them.
        address: of a cluster; "" for that of RAY_ADDRESS, or if there is none for one that is started here.

    Raises:
        ConfigError: if Ray is not installed, or no cluster answers.
    """

    plan: Any = None

    def __init__(self, words: Sequence[str], fields: dict[str, Any], *, address: str = ""):
        self.words, self.fields = request.without(words, "--resume"), fields
        self._folder = ""
        atexit.register(self.close)
        self._connect(address or os.environ.get("RAY_ADDRESS", ""))
        # This process measures nothing, and the memory of a GPU here is a worker's.
        import jax

        jax.config.update("jax_platforms", "cpu")

    def default_number(self, num_cells: int) -> int:
        """Choose how many workers: one a GPU, or if there is none, one a core.

        Raises:
            ConfigError: if the cluster has neither at present.
        """
        number = num_places(self.resources)
        if number == 0:
            raise ConfigError(
                f"the Ray cluster has no place for a cell at present: it has {dict(self.resources)}. "
                "Say how many it will have: --workers N."
            )
        return max(1, min(number, num_cells))

    def start(self, num_workers: int) -> Remote:
        """Ask for one of so many; it says when it is ready, which may be once others have ended."""
        import ray

        has_gpus = self.resources.get("GPU", 0) >= 1
        place = ray.remote(_Place).options(
            num_cpus=1,
            num_gpus=int(has_gpus),
            max_concurrency=3,  # one waits for what the process says, another may end it
            runtime_env={"env_vars": _environment()},
        )
        share = max(1, int(self.resources.get("CPU", 1)) // num_workers)
        return Remote(place.remote(self.words, self.fields, os.getcwd(), share, self.plan))

    @staticmethod
    def wait(workers: Sequence[Remote], seconds: float | None) -> list[Remote]:
        """Wait until one of them has something to say, at most so long."""
        futures.wait([each.awaited for each in workers], seconds, futures.FIRST_COMPLETED)
        return [each for each in workers if each.awaited.done()]

    def close(self) -> None:
        """Leave the cluster; one that was started for the run ends."""
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self, address: str) -> None:
        is_own = address in ("", "local")
        _prepare(is_own=is_own)
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                f"--executor ray needs Ray, which cannot be imported ({error}). "
                "Install it: pip install 'jaxact[cluster]'."
            ) from error
        if is_own:
            self._folder = tempfile.mkdtemp(prefix="ray-")
            said: dict[str, Any] = {
                "address": "local",
                "num_cpus": num_cores(),
                "object_store_memory": _OBJECT_BYTES,
            }
            said |= {"include_dashboard": False, "_temp_dir": self._folder}
        else:
            _check_answers(address)
            said = {"address": address}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **said)
        except Exception as error:
            raise _unreachable(address, _first_line(error)) from error
        finally:
            with contextlib.suppress(ValueError):  # not the main thread
                signal.signal(signal.SIGTERM, handler)  # Ray takes it
        self.resources: Mapping[str, float] = ray.cluster_resources()


class Remote:
    """A worker process on a machine of the cluster; a `train.pool.Worker`."""

    def __init__(self, place: Any):
        self.place = place
        self.is_up = False
        self._listen()

    def __str__(self) -> str:
        return f"Ray actor {self.place._actor_id.hex()[:8]}"

    def _listen(self) -> None:
        # A future of Python's, since Ray's own ways to wait make of any signal a KeyboardInterrupt (2.60.0).
        self.awaited: futures.Future = self.place.received.remote().future()

    def send(self, name: str) -> None:
        """Have the cell of this name measured."""
        self.place.send.remote(name)

    def receive(self) -> tuple[str, Any]:
        """Return what it says next.

        Raises:
            WorkerDiedError: if it has ended, or its machine is gone.
        """
        import ray

        try:
            said = self.awaited.result()
        except ray.exceptions.RayError as error:
            self.is_up = False
            raise WorkerDiedError(_lost(error)) from error
        if isinstance(said, Cause):
            raise WorkerDiedError(said)
        self.is_up = True
        self._listen()
        return pickle.loads(said)

    def stop(self) -> None:
        """Have it store how far its cell is, and end."""
        if self.is_up:
            self.place.stop.remote()

    def join(self, seconds: float) -> None:
        """Wait until it has ended, at most so long."""
        if self.is_up:
            futures.wait([self.place.join.remote(seconds).future()], seconds)

    def end(self, *, at_once: bool) -> None:
        """Kill the process, which holds nothing more than its cell, and give its place back."""
        import ray

        if self.is_up:  # one that has no machine yet would not answer
            futures.wait([self.place.end.remote().future()], _END_SECONDS)
        ray.kill(self.place)


class _Place:
    """What Ray runs on one of its machines: a worker process, told and heard from afar."""

    def __init__(
        self, words: Sequence[str], fields: dict[str, Any], folder: str, num_threads: int, plan: Any = None
    ):
        if os.path.isdir(folder):
            os.chdir(folder)  # which the words' paths are relative to
        processes = Processes(words, fields, share=num_threads)
        processes.plan = plan
        self.process = processes.start(1)

    def send(self, name: str) -> None:
        """Have the cell of this name measured."""
        self.process.send(name)

    def received(self) -> bytes | Cause:
        """Return what the process says next, or how it ended."""
        try:
            return self.process.received()
        except WorkerDiedError as error:
            return error.cause

    def stop(self) -> None:
        """Have the process store how far its cell is, and end."""
        self.process.stop()

    def join(self, seconds: float) -> None:
        """Wait until the process has ended, at most so long."""
        self.process.join(seconds)

    def end(self) -> None:
        """Kill the process; `received`, which waits for what it says, would keep it from ending by itself."""
        self.process.end(at_once=True)


def num_places(resources: Mapping[str, float]) -> int:
    """Count the cells that a cluster measures at once, of which each has a core, and a GPU where there are any.

    >>> num_places({"CPU": 16.0, "GPU": 4.0}), num_places({"CPU": 16.0}), num_places({})
    (4, 16, 0)
    """
    num_cpus, num_gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    return min(num_cpus, num_gpus) if num_gpus else num_cpus


def _prepare(*, is_own: bool) -> None:
    """Set what Ray reads of the environment, some of it as it is imported."""
    own = dict(_QUIET)
    if is_own and not any(name.startswith("RAY_AUTH_") for name in os.environ):
        own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # nobody else's to use
    os.environ.update({name: value for name, value in own.items() if name not in os.environ})


def _environment() -> dict[str, str]:
    """What the processes of a run find: this code, and what JAX is told here."""
    own = {name: value for name, value in os.environ.items() if name.startswith(_FORWARDED)}
    paths = [str(config.ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**own, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, paths))}


def _check_answers(address: str) -> None:
    """Check that a cluster answers at an address, sooner than Ray itself gives up.

    Raises:
        ConfigError: if none does.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check"]
    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5.0).close()
        except (OSError, ValueError, OverflowError) as error:
            raise _unreachable(address, str(error)) from error
        command += ["--address", address]
    if address.startswith("ray://"):
        return  # its door speaks another language
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise _unreachable(address, f"no answer in {_ANSWER_SECONDS:.0f} s") from error
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise _unreachable(address, "".join(last)[:_LONGEST] or "it is not healthy")


def _unreachable(address: str, reason: str) -> ConfigError:
    said = reason.rstrip(".")
    if address in ("", "local"):
        return ConfigError(f"no Ray cluster can be started here ({said}). Leave out --executor ray.")
    return ConfigError(
        f"the Ray cluster {address} cannot be reached ({said}). Start it (`ray start --head`), or correct "
        "--ray-address or RAY_ADDRESS; without either a cluster of this machine is started for the run."
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:_LONGEST]


def _lost(error: Exception) -> Cause:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[-1:]).partition(". ")[0][:_LONGEST].rstrip(".")
    return Cause(f"was lost by Ray ({said})", _SAME_PLACE)
