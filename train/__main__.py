"""The command line of the studies: run one, redraw its report, list what there is."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from jaxact.cache import use_compilation_cache
from train import config
from train.config import ConfigError
from train.experiment import Experiment
from train.interrupt import Interrupted, interruptible

_USAGE = """\
usage: python -m train COMMAND ...

Run studies of activation functions and keep what they measure.

commands:
  run CONFIG [--smoke] [--output DIR] [--resume RUN] [--workers N] [--FIELD VALUE ...]
                 run the study of a config file; `run CONFIG --help` lists its fields
  report RUN     draw figures and report of a finished run again
  list           show the studies in configs/ and the runs in runs/

examples:
  python -m train run configs/depth_sweep.py
  python -m train run configs/depth_sweep.py --smoke
  python -m train run configs/depth_sweep.py --depths 8 128 --activations tanh "leaky_relu(0.3)"
"""
_COMMANDS = ("run", "report", "list")
_OUTPUT = {"metavar": "DIR", "help": "the folder of all runs"}
_RUN_OPTIONS = {"--smoke": 0, "--output": 1, "--resume": 1, "--workers": 1}
_WORKERS_HELP = (
    "processes that measure side by side; auto: one a core, none beside a GPU or TPU; 0: this process alone"
)


class Request(NamedTuple):
    """What `run` was asked for; its options are read together with the experiment's fields."""

    experiment: Experiment
    path: Path
    output: Path
    resume: Path | None
    workers: int | None
    command: str


class _UnparsableError(Exception):
    """A word's own message; not a ValueError, which tyro would replace by one of its own for lists."""

    def __init__(self, word: str, message: str):
        super().__init__(message)
        self.word = word


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        arguments: the words after `python -m train`; by default those of this process.

    Returns:
        0 if done; 1 if a study failed, which is a bug; 2 for bad input or a disk that cannot be written, with
        one message on stderr.

    Raises:
        KeyboardInterrupt: after Ctrl-C or SIGTERM; a run has then said how to continue.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_USAGE, end="")
            return 0 if arguments else 2
        command, rest = arguments[0], arguments[1:]
        if command not in _COMMANDS:
            close = config.closest(command, _COMMANDS, 1)
            meant = f"Did you mean `{close[0]}`?" if close else f"The commands are {', '.join(_COMMANDS)}."
            raise ConfigError(f"there is no command {command!r}. {meant}")
        return {"run": _run, "report": _report, "list": _list}[command](rest)
    except ConfigError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: Sequence[str]) -> int:
    started = time.monotonic()
    asked = request(arguments)

    from rich.console import Console

    from train import runner, workers

    console = Console(emoji=False)
    is_new = asked.resume is None
    num_workers = (
        workers.default_number(len(asked.experiment.cells())) if asked.workers is None else asked.workers
    )
    try:
        if asked.resume is None:
            directory = runner.create(
                asked.experiment, asked.path, output=asked.output, command=asked.command
            )
        else:
            directory = asked.resume
            runner.check_resumable(asked.experiment, directory)
    except runner.StorageError as error:
        return _fail(str(error))
    if num_workers == 0:
        measure: runner.Measure = workers.in_this_process
    else:
        measure = functools.partial(workers.side_by_side, words=arguments, num_workers=num_workers)
    console.print(f"Run folder: {directory}", markup=False, highlight=False, soft_wrap=True)
    num_cells = len(runner.read(directory).cells)

    def farewell() -> None:
        console.show_cursor()  # the live bars hide it, and may not get to show it again
        kept = f"{runner.finished_cells(directory)} of {num_cells} cells are finished and kept."
        command = runner.resume_command(directory)
        print(f"{kept} Continue with:\n  {command}", file=sys.stderr, flush=True)

    def interrupted(number: int) -> None:
        print(f"\nInterrupted by {signal.Signals(number).name}.", file=sys.stderr)
        farewell()

    try:
        with interruptible(interrupted):
            result = runner.run(asked.experiment, directory, console=console, measure=measure)
    except Interrupted as error:
        interrupted(error.signal_number)
        raise
    except ConfigError:
        raise
    except runner.StorageError as error:
        _fail(str(error))
        farewell()
        return 2
    except workers.WorkerDiedError as error:
        _fail(str(error))
        farewell()
        return 2
    except Exception as error:
        from train.tasks import DataError

        missing = isinstance(error, FileNotFoundError) and error.errno is None
        if missing or isinstance(error, DataError):
            # Raised by a task whose files are missing or damaged: it says where it looked and what to do.
            if is_new and not runner.finished_cells(directory):
                shutil.rmtree(directory)
            return _fail(str(error))
        traceback.print_exception(error)
        print("\nThe study failed; this is a bug in it.", file=sys.stderr)
        farewell()
        return 1
    _show(result, type(asked.experiment), directory)
    elapsed = time.monotonic() - started
    print(f"elapsed {elapsed:.0f} s, peak memory {runner.peak_memory(num_workers):.2f} GiB")
    return 0


def _report(arguments: Sequence[str]) -> int:
    options = _read_options(
        arguments,
        ("run", dataclasses.MISSING, {"metavar": "RUN", "help": "its folder or its name"}),
        ("output", Path("runs"), _OUTPUT),
        prog="python -m train report",
        description="Draw figures and report of a finished run again, from its stored result alone.",
    )
    directory = _find_run(options.run, options.output)

    from train import results, runner

    record = runner.read(directory)
    if not (directory / "result.nc").exists():
        return _fail(
            f"{directory} is unfinished: {runner.finished_cells(directory)} of {len(record.cells)} cells. "
            f"Continue it with:\n  {runner.resume_command(directory)}"
        )
    try:
        result = results.load(directory / "result.nc")
        results.check(result)
        experiment = config.import_type(result.attrs["experiment"], directory)
    except (OSError, ValueError) as error:
        return _fail(f"{error}\nTo make it again:\n  {runner.resume_command(directory)}")
    try:
        runner.draw(result, experiment, directory)
    except runner.StorageError as error:
        return _fail(str(error))
    _show(result, experiment, directory)
    return 0


def _list(arguments: Sequence[str]) -> int:
    options = _read_options(
        arguments,
        ("output", Path("runs"), _OUTPUT),
        prog="python -m train list",
        description="Show the studies in configs/ and the runs, finished or not.",
    )

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from train import runner

    console = Console(emoji=False)
    if not console.is_terminal:
        console.width = 200  # a name cut to 80 columns is of no use to a program that reads this
    studies = Table("study", "what it asks", title="studies", title_justify="left")
    for path, summary in config.find().items():
        studies.add_row(Text(str(path)), Text(summary))
    title = f"runs in {options.output}"
    runs = Table("run", "study", "cells", "state", "started", title=title, title_justify="left")
    for directory in _runs(options.output):
        with contextlib.suppress(ConfigError):
            record = runner.read(directory)
            kept = runner.finished_cells(directory)
            if runner.is_running(directory):
                state = "running"
            else:
                state = "finished" if (directory / "result.nc").exists() else "unfinished"
            cells = f"{kept}/{len(record.cells)}"
            row = (str(directory), record.study, cells, state, _age(record.started))
            runs.add_row(*(Text(text) for text in row))
    console.print(studies if studies.row_count else "No studies: configs/ holds no config file.")
    console.print(runs if runs.row_count else f"No runs in {options.output} yet.", markup=False)
    return 0


def request(arguments: Sequence[str]) -> Request:
    """Read the words after `python -m train run`.

    Raises:
        ConfigError: for a config or a value that cannot be run.
        SystemExit: after help, or after a message of tyro's.
    """
    path, rest = _split_config(arguments)
    if path is None:
        print(_USAGE, end="")
        raise SystemExit(0)
    experiment = config.load(path)
    config.type_name(experiment, path)
    if "--smoke" in rest:
        try:
            experiment = experiment.smoke()
        except ValueError as error:
            raise ConfigError(f"{path}: `smoke()` failed: {error}") from error
    options = _parse(experiment, path, rest)
    resume = _find_run(options.resume, options.output) if options.resume else None
    words = _without(list(rest), "--resume")
    command = shlex.join(["python", "-m", "train", "run", str(path), *words])
    return Request(options.experiment, path, options.output, resume, _workers(options.workers), command)


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(
            f"`workers` must be a number of processes, 0 for this one alone, or auto, got {text!r}."
        )
    return int(text)


def _split_config(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Find the config among the words; how many values a field before it takes would not be known."""
    rest = list(arguments)
    position = 0
    while position < len(rest):
        word = rest[position].split("=")[0]
        if not word.startswith("-"):
            return Path(rest[position]), rest[:position] + rest[position + 1 :]
        if word in ("-h", "--help"):
            return None, rest
        if word not in _RUN_OPTIONS:
            close = config.closest(word, _RUN_OPTIONS, 1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise ConfigError(f"the config comes before its fields: `run CONFIG {word} ...`.{meant}")
        position += 1 + (_RUN_OPTIONS[word] if "=" not in rest[position] else 0)
    studies = ", ".join(str(study) for study in config.find()) or "none in configs/"
    raise ConfigError(f"`run` needs a config file. There are: {studies}.")


def _parse(experiment: Experiment, path: Path, arguments: Sequence[str]) -> Any:
    """Read the options of `run` and the experiment's fields in one go, so that help and hints know both."""
    names = {field.name for field in dataclasses.fields(experiment)}  # type: ignore[arg-type]
    if clash := names & {"experiment", "smoke", "output", "resume", "workers"}:
        raise ConfigError(f"{path}: the fields {sorted(clash)} are options of `run`. Rename them.")
    try:
        return _read_options(
            arguments,
            ("experiment", experiment, {"name": ""}),
            ("smoke", False, {"help": "the same study in seconds"}),
            ("output", Path("runs"), _OUTPUT),
            ("resume", "", {"metavar": "RUN", "help": "continue this run"}),
            ("workers", "auto", {"metavar": "N", "help": _WORKERS_HELP}),
            prog=f"python -m train run {path}",
            description=(type(experiment).__doc__ or "").split("\n")[0],
        )
    except _UnparsableError as error:
        before = arguments[: arguments.index(error.word)] if error.word in arguments else []
        option = next((word for word in reversed(before) if word.startswith("--")), None)
        raise ConfigError(f"{option}: {error}" if option else str(error)) from error
    except (ValueError, TypeError) as error:  # from the experiment's __post_init__
        raise ConfigError(str(error)) from error


def _read_options(
    arguments: Sequence[str], *options: tuple[str, Any, dict], prog: str, description: str
) -> Any:
    """Read words into options given as (name, default, words for tyro); one without default is positional."""
    import tyro

    fields = []
    for name, default, words in options:
        is_positional = default is dataclasses.MISSING
        kind = tyro.conf.Positional[str] if is_positional else type(default)
        annotation = Annotated[kind, tyro.conf.arg(**words)]  # type: ignore[valid-type]
        fields.append((name, annotation, dataclasses.field(default=default)))
    return tyro.cli(
        dataclasses.make_dataclass("Options", fields, frozen=True),
        args=list(arguments),
        prog=prog,
        description=description,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.SuppressFixed),
        registry=_constructors([default for _, default, _ in options]),
    )


def _constructors(defaults: Sequence[Any]) -> Any:
    """Teach tyro to read an activation by its name, or by that of one that the config itself holds."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    if "jaxact.activations" in sys.modules:  # imported by every config that has one
        from jaxact.activations import Activation, parse

        own: dict[str, Activation] = {}
        for default in filter(dataclasses.is_dataclass, defaults):
            for field in dataclasses.fields(default):
                value = getattr(default, field.name)
                held = value if isinstance(value, tuple | list) else [value]
                own |= {each.name: each for each in held if isinstance(each, Activation)}

        def parsed(words: list[str]) -> Activation:
            if words[0] in own:
                return own[words[0]]
            try:
                return parse(words[0])
            except ValueError as error:
                raise _UnparsableError(words[0], str(error)) from error

        @registry.primitive_rule
        def _(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
            if info.type is not Activation:
                return None
            return tyro.constructors.PrimitiveConstructorSpec(
                nargs=1,
                metavar="ACTIVATION",
                instance_from_str=parsed,
                is_instance=lambda value: isinstance(value, Activation),
                str_from_instance=lambda value: [value.name],
            )

    return registry


def _without(words: list[str], option: str) -> list[str]:
    for position, word in enumerate(words):
        if word == option or word.startswith(f"{option}="):
            return words[:position] + words[position + (2 if word == option else 1) :]
    return words


def _runs(output: Path) -> list[Path]:
    return sorted(path.parent for path in output.glob("[!.]*/config.json"))


def _find_run(text: str, output: Path) -> Path:
    for candidate in (Path(text), output / text):
        if candidate.is_dir():
            return candidate
    if Path(text).is_file():
        raise ConfigError(f"{text} is a file, not the folder of a run. Give the folder it lies in.")
    known = {path.name: path for path in _runs(output)}
    close = [str(known[name]) for name in config.closest(Path(text).name, known)]
    remedy = f"Did you mean {' or '.join(close)}?" if close else "`python -m train list` shows the runs."
    raise ConfigError(f"there is no run {text}. {remedy}")


def _show(result: Any, experiment: type[Experiment], directory: Path) -> None:
    for sentence in experiment.findings(result):
        print(f"- {sentence}")
    print(f"report  {directory / 'report.html'}\nresult  {directory / 'result.nc'}")


def _age(started: str) -> str:
    import datetime

    seconds = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(started)).total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(seconds // length)) >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    use_compilation_cache()
    try:
        sys.exit(main())
    except KeyboardInterrupt as error:
        # XLA may still compile in threads of its own. The exception keeps alive what they work on, and the
        # process ends before Python tears anything down: without either it crashed (jax 0.10.2).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + getattr(error, "signal_number", signal.SIGINT))
