"""Several hosts as one machine: how the processes of a study meet, keep step, and end together."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from jaxact.escapes import visible
from train import config, fingerprint, request
from train.config import ConfigError
from train.experiment import Cell, Experiment
from train.lines import HostLostError, Line
from train.outcomes import Failure, Measurement
from train.progress import Display
from train.workers import in_this_process

_JOIN_SECONDS = 30.0  # for all processes to come
_COMPARE_SECONDS = 120.0  # to import the config on the slowest host
_GREETING_SECONDS = 10.0  # for one that has come to say who it is
_GRACE_SECONDS = 5.0  # for the main thread to say itself why the run ends
_STEP_SECONDS = 60.0  # for the others to fail in a cell that failed here
_MOST_NAMED = 10  # differences in a message
_LONGEST = 200  # characters of a value
_AUTO = "auto"
# How long the main thread has to hear a word that ends the run, before the run is ended without it. A cell that failed
# there alone leaves this process in the middle of an operation that needs both.
_GRACES = {"lost": _GRACE_SECONDS, "failed": _GRACE_SECONDS, "outcome": _STEP_SECONDS}


class Place(NamedTuple):
    """What the options say of this process.

    Attributes:
        coordinator: HOST:PORT, where process 0 listens; "auto" where jax finds all three out by itself.
        num_processes: of the study; 0 where it is to be found out.
        process_id: from 0 to num_processes - 1.
    """

    coordinator: str
    num_processes: int = 0
    process_id: int = 0


def place(words: Sequence[str]) -> Place | None:
    """Read the options of several hosts among the words after `python -m train run`; None where there are none.

    They are read before all others: jax has to know of the other processes before anything else uses it.

    Raises:
        ConfigError: naming the option that is missing, or what it must be.
    """
    given = {name: value for name in request.HOSTS if (value := request.value(words, name))}
    if not given or {"-h", "--help"} & {*words}:
        return None
    if "coordinator" not in given:
        raise ConfigError(
            f"`{next(iter(given))}` is for several hosts. Add --coordinator HOST:PORT, or --coordinator auto."
        )
    if given["coordinator"] == _AUTO:
        if len(given) > 1:
            raise ConfigError(
                f"with --coordinator auto `{[*given][1]}` is found out. Leave it out, or give --coordinator HOST:PORT."
            )
        return Place(_AUTO)
    _address(given["coordinator"])
    num_processes = _integer(given, "num_processes", 1)
    process_id = _integer(given, "process_id", 0)
    if process_id >= num_processes:
        raise ConfigError(
            f"`process_id` must be from 0 to {num_processes - 1}, one less than `num_processes`, got {process_id}."
        )
    return Place(given["coordinator"], num_processes, process_id)


@contextlib.contextmanager
def joined(where: Place | None) -> Iterator[Team | None]:
    """Join the other processes of a study, before anything uses jax; None where there are none to join.

    Raises:
        ConfigError: if they do not come, or two of them say that they are the same.
    """
    if where is None:
        yield None
        return
    with _joined_by_itself() if where.coordinator == _AUTO else _joined(where) as team:
        yield team


class Team:
    """The processes of a study: the first has the run folder, measures and writes; the others compute in step.

    Each of them listens to process 0 in a thread, and process 0 to each: one that ends, or is silent for 40 seconds,
    ends all others, in the middle of a collective operation too. They keep step where what a cell computes follows from
    its config and from what it measures, not from a clock.

    Attributes:
        process_id: of this process.
        num_processes: of the study.
        farewell: says why this process ends at once, before it does.
    """

    def __init__(self, process_id: int, num_processes: int, lines: Mapping[int, Line]):
        self.process_id, self.num_processes, self._lines = process_id, num_processes, lines
        self.farewell: Callable[[str], None] = self._say
        self._is_over = threading.Event()
        # Where process 0 is lost, jax aborts the others at once and without a word: this has to be said before.
        grace = _GRACES if process_id == 0 else {**_GRACES, "lost": 0.0, "failed": 1.0}
        for other, line in lines.items():
            line.watch(functools.partial(self._end, other), grace)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        self._is_over.set()
        word = None if error is None else f"has ended: {error or type(error).__name__}"
        word = "was interrupted" if isinstance(error, KeyboardInterrupt) else word
        for line in self._lines.values():
            line.close(word)
            if (
                word is not None and not self.process_id
            ):  # jax would abort the others before they have said why
                line.wait_for_end(_GRACE_SECONDS)

    def words(self, arguments: Sequence[str]) -> list[str]:
        """The words after `python -m train run`, with the config.

        A run that is resumed need be known to process 0 alone: the others hear how it was begun.
        """
        if not self.process_id:
            words = request.completed(arguments)
            self._tell("words", request.without(words, "--resume"))
            return words
        theirs = self._heard(0, "words", _JOIN_SECONDS)
        return request.without(arguments, "--resume") if request.names_config(arguments) else theirs

    def compare(self, asked: request.Request) -> None:
        """Check that all processes run the same study by the same code on as many devices each.

        Raises:
            ConfigError: saying what differs, and which process has what; in all of them.
        """
        import jax

        if asked.workers or asked.executor != "local" or asked.cell_timeout is not None:
            raise ConfigError(
                "with --coordinator each process measures itself. Leave out --workers, --executor and --cell-timeout."
            )
        self._compare_facts(_facts(asked))
        self._compare_facts(
            {"the number of local devices": f"{jax.local_device_count()} {jax.default_backend()}"}
        )

    def measure(
        self, experiment: Experiment, cells: Sequence[Cell], display: Display, *, plan: Any = None
    ) -> Generator[Measurement | Failure]:
        """Measure cells one after the other, in all processes; for `train.runner.run` of process 0.

        A cell in flight is not stored, whatever `plan` says: when it is time is for each process to say.

        Raises:
            HostLostError: if another process was lost, or failed where this one did not.
        """
        for cell in cells:
            self._tell("cell", cell.name)
            (outcome,) = in_this_process(experiment, [cell], display)
            for other in self._lines:
                self._check_alike(outcome, other)
            yield outcome

    def follow(self, experiment: Experiment) -> None:
        """Compute what process 0 measures until it needs no more; shows and writes nothing."""
        # Process 0 says how to continue. Here nothing is to be put in order before the end.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        cells = {cell.name: cell for cell in experiment.cells()}
        while name := self._heard(0, "cell", None):
            (outcome,) = in_this_process(experiment, [cells[name]], _Silence())  # type: ignore[arg-type]
            self._tell("outcome", f"{outcome.cell}: {outcome.cause}" if isinstance(outcome, Failure) else "")

    def leave(self, status: int) -> None:
        """Let the others end, once process 0 is done; a status other than 0 is told them."""
        if status:
            for line in self._lines.values():
                line.close(f"has ended with status {status}")
                line.wait_for_end(_GRACE_SECONDS)
        elif not self.process_id:
            self._tell("cell", "")

    def _check_alike(self, outcome: Measurement | Failure, other: int) -> None:
        """Wait until another process has ended the cell too; one that failed alone is out of step."""
        if not isinstance(outcome, Failure):
            if word := self._heard(other, "outcome", None):
                raise HostLostError(f"{self._named(other)} failed where process 0 did not: {word}")
            return
        try:
            self._heard(other, "outcome", _STEP_SECONDS)
        except HostLostError as error:
            raise HostLostError(f"{outcome.cell} failed in process 0: {outcome.cause}; {error}") from None

    def _compare_facts(self, facts: Mapping[str, str]) -> None:
        if self.process_id:
            self._tell("facts", facts)
            different = self._heard(0, "differences", None)
        else:
            theirs = {other: self._heard(other, "facts", _COMPARE_SECONDS) for other in self._lines}
            different = _differences({0: dict(facts), **theirs})
            self._tell("differences", different)
        if different:
            raise ConfigError(
                "the processes are not of one study:\n  " + "\n  ".join(different) + "\n"
                "Give all hosts the same code, packages, devices and command line, --process-id aside."
            )

    def _tell(self, kind: str, content: Any) -> None:
        for line in self._lines.values():
            line.say(kind, content)

    def _heard(self, other: int, kind: str, seconds: float | None) -> Any:
        try:
            return self._lines[other].hear(kind, seconds)
        except HostLostError as error:
            raise HostLostError(f"{self._named(other)} {error}") from None

    def _named(self, other: int) -> str:
        return f"process {other} of {self.num_processes}"

    def _say(self, word: str) -> None:
        where = ". It has the run folder: continue there" if self.process_id else ""
        print(visible(f"error: {word}{where}."), file=sys.stderr)

    def _end(self, other: int, word: str) -> None:
        """End this process, whose main thread may wait for ever for the other one."""
        if self._is_over.is_set():
            return
        try:
            self.farewell(f"{self._named(other)} {word}")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


class _Silence:
    """Stands for a display that shows nothing."""

    def start(self, _: Cell) -> Callable[..., None]:
        return lambda *_, **__: None

    def notice(self, _: str) -> None:
        """Say nothing."""


def _joined(where: Place) -> Team:
    """Meet at the coordinator's address, then let jax meet at a port that process 0 has found free."""
    host, port = _address(where.coordinator)
    if where.process_id:
        line, of_jax = _called(where, host, port)
        lines = {0: line}
    else:
        lines, of_jax = _gathered(where, _listening(port)), _free_port()
        for line in lines.values():
            line.say("come", of_jax)
    address = f"[{host}]:{of_jax}" if ":" in host else f"{host}:{of_jax}"
    _initialize(coordinator_address=address, num_processes=where.num_processes, process_id=where.process_id)
    return Team(where.process_id, where.num_processes, lines)


def _joined_by_itself() -> Team:
    """Let jax find out which processes there are, and tell them by it where process 0 listens."""
    print("Joining the processes that the batch system or the TPU pod names ...", file=sys.stderr, flush=True)
    _initialize()
    import jax
    from jax.experimental import multihost_utils

    server = _listening(0) if jax.process_index() == 0 else None
    told = np.zeros(256, np.uint8)
    if server is not None:
        said = f"{socket.getfqdn()}:{server.getsockname()[1]}".encode()
        told[: len(said)] = np.frombuffer(said, np.uint8)
    address = bytes(multihost_utils.broadcast_one_to_all(told)).rstrip(b"\0").decode()
    where = Place(address, jax.process_count(), jax.process_index())
    if server is not None:
        lines = _gathered(where, server)
        for line in lines.values():
            line.say("come", 0)
    else:
        lines = {0: _called(where, *_address(address))[0]}
    return Team(where.process_id, where.num_processes, lines)


def _initialize(**processes: Any) -> None:
    import jax

    # Its handler would take SIGTERM from this program, which ends all processes by itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**processes, initialization_timeout=int(_JOIN_SECONDS))
    except (RuntimeError, ValueError) as error:
        remedy = (
            "Let the config compute nothing while it is loaded."
            if processes
            else "`auto` needs a TPU pod, or SLURM with srun. Elsewhere give --coordinator HOST:PORT, "
            "--num-processes N and --process-id I."
        )
        raise ConfigError(f"jax cannot join the other processes ({error}). {remedy}") from error


def _listening(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen at port {port} ({error.strerror}). Another process of --process-id 0 runs here, "
            "or another program has the port: choose another in --coordinator, for all processes."
        ) from error


def _gathered(where: Place, server: socket.socket) -> dict[int, Line]:
    """Wait for the other processes, and turn away who comes later."""
    lines: dict[int, Line] = {}
    end = time.monotonic() + _JOIN_SECONDS
    while missing := [number for number in range(1, where.num_processes) if number not in lines]:
        server.settimeout(max(end - time.monotonic(), 0.001))
        line: Line | None = None
        try:
            line, problem = _greeted(where, server, lines)
        except TimeoutError:
            problem = _missing(where, missing)
        if problem:
            for each in {*lines.values(), *([line] if line else [])}:
                each.refuse(problem)
            server.close()
            raise ConfigError(problem)
    threading.Thread(target=_turn_away, args=(where, server, lines), daemon=True).start()
    return lines


def _missing(where: Place, numbers: Sequence[int]) -> str:
    return (
        f"of {where.num_processes} processes did not come within {_JOIN_SECONDS:.0f} s: "
        f"{', '.join(map(str, numbers))}. Start the command on every host with --coordinator {where.coordinator}, "
        "each with a --process-id of its own."
    )


def _greeted(where: Place, server: socket.socket, lines: dict[int, Line]) -> tuple[Line | None, str]:
    """Take in the next process that comes; what is wrong with it, if anything."""
    line = Line(server.accept()[0], _GREETING_SECONDS)
    kind, content = line.next()
    if kind != "hello" or not (isinstance(content, list) and len(content) == 2):
        line.refuse("this port is that of the processes of a study.")
        return None, ""
    process_id, num_processes = content
    if num_processes != where.num_processes:
        return line, (
            f"`num_processes` is {where.num_processes} in process 0 and {num_processes} in process {process_id}. "
            "Give all the same."
        )
    if process_id in lines or process_id == 0:
        return line, (
            f"there are two processes of --process-id {process_id}. Give each of the {num_processes} its own, "
            f"from 0 to {num_processes - 1}."
        )
    lines[process_id] = line
    return line, ""


def _turn_away(where: Place, server: socket.socket, lines: dict[int, Line]) -> None:
    server.settimeout(None)
    while True:
        line, problem = _greeted(where, server, dict(lines))
        if line is not None:
            line.refuse(problem or "all processes are there already.")


def _called(where: Place, host: str, port: int) -> tuple[Line, int]:
    """Call process 0 until it answers; gives the port of jax as well."""
    end = time.monotonic() + _JOIN_SECONDS
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=max(end - time.monotonic(), 0.001))
            break
        except OSError as error:
            if time.monotonic() >= end:
                raise ConfigError(
                    f"no process answers at --coordinator {where.coordinator} within {_JOIN_SECONDS:.0f} s "
                    f"({error.strerror or error}). Start the process of --process-id 0 on {host}, and let this host "
                    f"reach port {port} there."
                ) from error
            time.sleep(0.2)
    line = Line(connection, _JOIN_SECONDS + _GREETING_SECONDS)  # until the last has come
    line.say("hello", [where.process_id, where.num_processes])
    kind, content = line.next()
    if kind != "come":
        line.refuse("")
        raise ConfigError(
            content
            if kind == "refused"
            else f"what answers at --coordinator {where.coordinator} is not the process of --process-id 0. "
            "Give the host and port that it was given."
        )
    return line, content


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 2**16:
        raise ConfigError(f"`coordinator` must be HOST:PORT, such as 10.0.0.1:8476, or auto, got {text!r}.")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _integer(given: Mapping[str, str], name: str, least: int) -> int:
    option = f"--{name.replace('_', '-')}"
    if name not in given:
        raise ConfigError(f"--coordinator {given['coordinator']} needs {option} as well.")
    text = given[name]
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ConfigError(f"`{name}` must be an integer from {least} on, got {text!r}.")
    return int(text)


def _facts(asked: request.Request) -> dict[str, str]:
    """What must be the same in all processes, as text by readable names."""
    fields = config.flat(config.resolved(asked.experiment))
    facts = {f"`{name}`": json.dumps(value) for name, value in fields}
    facts["cells"] = json.dumps([cell.name for cell in asked.experiment.cells()])
    facts |= {f"the file `{name}`": digest for name, digest in fingerprint.files(asked.path).items()}
    return facts | {
        f"the version of {name}": importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy")
    }


def _differences(facts: Mapping[int, Mapping[str, str]]) -> list[str]:
    """What is not the same in all processes, and which has what; one a line."""
    found = []
    for name in dict.fromkeys(name for each in facts.values() for name in each):
        held: dict[str, list[str]] = {}
        for number, each in facts.items():
            held.setdefault(each.get(name, "absent"), []).append(str(number))
        if len(held) > 1:
            said = (f"{value[:_LONGEST]} in process {', '.join(numbers)}" for value, numbers in held.items())
            found.append(f"{name}: {'; '.join(said)}")
    return [
        *found[:_MOST_NAMED],
        *([f"and {len(found) - _MOST_NAMED} more"] if len(found) > _MOST_NAMED else []),
    ]
