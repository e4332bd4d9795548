"""The command line of the studies: run one, redraw its report, list what there is."""

import contextlib
import dataclasses
import datetime
import functools
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jaxact
from jaxact import xla
from jaxact.cache import use_compilation_cache
from jaxact.escapes import on_one_line, visible
from jaxact.streams import print_any_text
from train import config, options, request
from train.config import ConfigError, StorageError
from train.experiment import Experiment
from train.interrupt import Interrupted, interruptible


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: the words after `python -m train`, by default those of this process.

    Returns:
        The exit status: 0 if done; 1 if cells failed, or the report, which is a bug, or the answer to an exercise is
        wrong; 2 for bad input or a disk that cannot be written, with one message on stderr.

    Raises:
        KeyboardInterrupt: after Ctrl-C, SIGTERM, SIGHUP or SIGUSR1; a run has then said how to continue.
    """
    try:
        return _called(list(sys.argv[1:] if arguments is None else arguments))
    except (ConfigError, StorageError) as error:
        return _fail(error)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        _leave_stdout()
        return 1
    except OSError as error:
        from train import causes

        if (cause := causes.outside(error)) is None:
            raise
        _leave_stdout()  # which may be what is full
        return _fail(str(cause))


def _leave_stdout() -> None:
    """Let what is not yet printed go nowhere: it would fail again as the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _called(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(request.USAGE, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"jaxact {jaxact.__version__}")
        return 0
    commands = {"run": _run, "resume": _resume, "report": _report, "list": _list, "exercise": _exercise}
    commands |= {"plan": _plan, "status": _status}
    if words[0] not in commands:
        meant = config.hint(words[0], commands, "`{}`".format)
        meant = meant or f" The commands are {', '.join(commands)}."
        raise ConfigError(f"there is no command {words[0]!r}.{meant}")
    return commands[words[0]](words[1:])


def _resume(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print(request.USAGE, end="")
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError("`resume` needs a run: `resume RUN`. `python -m train list` shows the runs.")
    return _run(["--resume", *arguments])


def _run(arguments: Sequence[str]) -> int:
    if not any(request.value(arguments, name) for name in request.HOSTS):
        return _run_here(request.completed(arguments), None)
    from train import hosts

    try:
        with hosts.joined(hosts.place(arguments)) as team:
            status = _run_here(arguments if team is None else team.words(arguments), team)
            if team is not None:
                team.leave(status)
            return status
    except hosts.HostLostError as error:
        print(visible(f"error: {error}."), file=sys.stderr)
        return 1


def _run_here(arguments: Sequence[str], team: Any) -> int:
    """Run a study, alone or as one process of several."""
    started = time.monotonic()
    xla.compile_fast(0 if "--smoke" in arguments else None)
    asked = request.parse(arguments)
    if team is not None:
        team.compare(asked)
        if team.process_id:
            team.follow(asked.experiment)
            return 0

    from train import executors, loggers, runner

    loggers.check(asked)
    console = _console()
    num_workers, measure = executors.chosen(asked, arguments) if team is None else (0, team.measure)
    directory = _folder(asked)
    console.print(visible(f"Run folder: {directory}"), soft_wrap=True)
    any_code = asked.allow_changed_code
    plan = runner.plan(asked.experiment, directory, every=asked.checkpoint_every, allow_changed_code=any_code)
    measure = functools.partial(measure, plan=plan)
    try:
        opened = loggers.opened(asked, directory, _say)
        with _telling_if_interrupted(directory, console, team), opened as logs:
            result = runner.run(asked.experiment, directory, console=console, measure=measure, logs=logs)
    except ConfigError:
        raise
    except Exception as error:
        return _failed(error, asked, directory)
    _show(result, type(asked.experiment), directory)
    elapsed = time.monotonic() - started
    print(f"elapsed {elapsed:.0f} s, peak memory at most {runner.peak_memory(num_workers):.2f} GiB")
    return 0


def _folder(asked: request.Request) -> Path:
    """Make the folder of a new run, or take that of the run to continue."""
    from train import runner

    if asked.resume is None:
        return runner.create(
            asked.experiment, asked.path, output=asked.output, command=asked.command, smoke=asked.smoke
        )
    runner.check_resumable(asked.experiment, asked.resume)
    runner.take_up_code(asked.resume, asked.path, allow_changed=asked.allow_changed_code)
    return asked.resume


@contextlib.contextmanager
def _telling_if_interrupted(directory: Path, console: Any, team: Any) -> Iterator[None]:
    from train import locks

    def ended(word: str) -> None:
        locks.release(directory)  # the process may end here
        console.show_cursor()  # the live bars hide it, and may not get to show it again
        print(visible(f"\n{word}.\n{_kept(directory)}"), file=sys.stderr, flush=True)

    def told(number: int) -> None:
        ended(f"Interrupted by {signal.Signals(number).name}")

    if team is not None:
        team.farewell = ended
    try:
        with interruptible(told):
            yield
    except Interrupted as error:
        told(error.signal_number)
        raise


def _failed(error: Exception, asked: request.Request, directory: Path) -> int:
    """Say what ended a run; give the exit status."""
    from train import causes, hosts, outcomes, runner

    if isinstance(error, hosts.HostLostError):
        print(visible(f"error: {error}.\n{_kept(directory)}"), file=sys.stderr)
        return 1
    if isinstance(error, outcomes.CellsFailedError):
        print(visible(f"{error}\n{_kept(directory)}"), file=sys.stderr)
        return 1
    if isinstance(error, StorageError | outcomes.CellEndedError):
        return _fail(f"{error}\n{_kept(directory)}")
    if cause := causes.outside(error):
        return _fail(f"{cause}\n{_kept(directory)}")
    if outcomes.is_of_all(error):  # raised by a task whose files are missing or damaged: it says what to do
        if asked.resume is None and not runner.finished_cells(directory):
            shutil.rmtree(directory)
        return _fail(error)
    told = "".join(traceback.format_exception(error))
    print(visible(f"{told}\nThe study failed; this is a bug in it.\n{_kept(directory)}"), file=sys.stderr)
    return 1


def _kept(directory: Path) -> str:
    """What there is of an unfinished run, and how to go on."""
    from train import runner

    if not (directory / "config.json").exists():
        return f"{directory} is gone, and its cells with it. Start a new run."
    kept = f"{runner.progress(directory)} cells are finished and kept."
    return f"{kept} Continue with:\n  {runner.resume_command(directory)}"


def _report(arguments: Sequence[str]) -> int:
    given = options.read(
        arguments,
        ("run", dataclasses.MISSING, {"metavar": "RUN", "help": "its folder or its name"}),
        request.OUTPUT,
        (
            "trust",
            False,
            {
                "help": "run the code in the run folder if its study is not an installed one, and follow links in it"
            },
        ),
        prog="python -m train report",
        description="Draw figures and report of a finished run again, from its stored result alone.",
    )
    directory = request.find_run(given.run, given.output)

    from train import runner

    if not given.trust:
        runner.check_own_folders(directory)
    again = runner.resume_command(directory)
    if not (directory / "result.nc").exists():
        return _fail(
            f"{directory} is unfinished: {runner.progress(directory)} cells. Continue it with:\n  {again}"
        )
    try:
        result = runner.load(directory / "result.nc")
        experiment = config.import_type(result.attrs["experiment"], directory, trust=given.trust)
    except ConfigError as error:
        return _fail(error)
    except (OSError, ValueError) as error:
        return _fail(f"{error}\nTo make it again:\n  {again}")
    try:
        with runner.at_work(directory, _console()):
            runner.draw(result, experiment, directory)
        _show(result, experiment, directory)
    except (ConfigError, StorageError):
        raise
    except Exception as error:  # a study reads a result of its own; this may be anybody's
        by = result.attrs["experiment"]
        return _fail(
            f"{directory / 'result.nc'} cannot be drawn by {by}: {error!r}.\nTo make it again:\n  {again}"
        )
    return 0


def _plan(arguments: Sequence[str]) -> int:
    experiment, path, num_devices = request.parse_plan(arguments)
    from train import plan

    _wide(_console()).print(plan.described(plan.made(experiment), path, num_devices))
    return 0


def _status(arguments: Sequence[str]) -> int:
    given = options.read(
        arguments,
        ("run", dataclasses.MISSING, {"metavar": "RUN", "help": "its folder or its name"}),
        request.OUTPUT,
        ("follow", False, {"help": "show it again every second, until the run ends"}),
        prog="python -m train status",
        description="Show how far a run is, from any terminal that sees its folder.",
    )
    from train import status

    status.show(request.find_run(given.run, given.output), _wide(_console()), follow=given.follow)
    return 0


def _list(arguments: Sequence[str]) -> int:
    given = options.read(
        arguments,
        request.OUTPUT,
        prog="python -m train list",
        description="Show the studies in configs/ and the runs: running, interrupted, failed or complete.",
    )
    from train import locks

    locks.sweep(given.output)
    studies = [(str(path), summary) for path, summary in config.find().items()]
    runs, bad = [], []
    for directory in request.runs(given.output):
        try:
            runs.append(_listed(directory))
        except (OSError, ValueError) as error:
            bad.append(f"{on_one_line(str(directory))} cannot be listed: its config.json: {_reason(error)}")
    console = _wide(_console())
    none = "No studies: configs/ holds no config file."
    console.print(_table("studies", ("study", "what it asks"), studies) or none)
    output = on_one_line(str(given.output))
    columns, none = ("run", "study", "cells", "state", "started"), f"No runs in {output} yet."
    console.print(_table(f"runs in {output}", columns, runs) or ("" if bad else none))
    for line in bad:
        console.print(line, soft_wrap=True)
    return 0


def _exercise(arguments: Sequence[str]) -> int:
    from train.experiments.chapter import claims
    from train.experiments.chapter.exercise import check

    if not arguments:
        listed = [(name, kind.title) for name, kind in claims().items()]
        _console().print(_table("exercises", ("claim", "what it says"), listed))
        return 0
    given = options.read(
        arguments,
        ("claim", dataclasses.MISSING, {"metavar": "CLAIM", "help": "its name"}),
        (
            "check",
            "",
            {
                "metavar": "FILE",
                "help": "run this Python file, and say whether it answers the task; exit status 1 if it does not",
            },
        ),
        ("solution", False, {"help": "show a file that answers it"}),
        prog="python -m train exercise",
        description="A claim of the chapter to work out by hand or in ten lines; `exercise` alone lists them.",
    )
    if given.claim not in claims():
        hint = config.hint(given.claim, claims(), repr) or f" The claims are {', '.join(claims())}."
        raise ConfigError(f"there is no claim {given.claim!r}.{hint}")
    exercise = claims()[given.claim].exercise
    if given.check:
        checked = check(exercise, request.answer(given.check))
        print(checked.word)
        return 0 if checked.is_right else 1
    ways = (
        f"Check an answer: --check MYFILE.py, a file that defines `{exercise.function}`; see one: --solution. "
        f"It must be {exercise.tolerance}: by a formula or quadrature, not by sampling."
    )
    print(
        exercise.solution if given.solution else f"{claims()[given.claim].title}\n\n{exercise.task}\n\n{ways}"
    )
    return 0


def _console() -> Any:
    from rich.console import Console

    return Console(emoji=False, markup=False, highlight=False)


def _say(text: str) -> None:
    print(visible(text), flush=True)


def _wide(console: Any) -> Any:
    """Where a program reads: a name cut to 80 columns is of no use to it."""
    if not console.is_terminal:
        console.width = 200
    return console


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """Rows under a title; None where there are none."""
    from rich.table import Table

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(on_one_line, row))
    return table if rows else None


def _listed(directory: Path) -> tuple[str, ...]:
    """The row of a run.

    Raises:
        OSError: if what it consists of cannot be read.
        ValueError: saying what is wrong with its config.json.
    """
    from train import records, runner, status

    record = runner.undamaged(records.read(directory / "config.json", runner.Record))
    cells = f"{runner.finished_cells(directory)}/{len(record.cells)}"
    return str(directory), record.study[:100], cells, status.state(directory), _age(record.started)


def _reason(error: Exception) -> str:
    from train import records

    return on_one_line(records.reason(error))[:500]


def _show(result: Any, experiment: type[Experiment], directory: Path) -> None:
    if result.attrs["smoke"] == "true":
        print("A smoke run: the numbers below mean nothing.")
    for sentence in experiment.findings(result):
        topic = getattr(sentence, "topic", "")
        print(visible(f"- {topic}: {sentence}" if topic else f"- {sentence}"))
    print(visible(f"report  {directory / 'report.html'}\nresult  {directory / 'result.nc'}"))


def _age(started: str) -> str:
    try:
        moment = datetime.datetime.fromisoformat(started)
    except ValueError as error:
        raise ValueError(f"its `started` must be a time, is {started!r}") from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    seconds = (datetime.datetime.now(datetime.UTC) - moment).total_seconds()
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (count := int(seconds // length)) >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _fail(message: Exception | str) -> int:
    print(visible(f"error: {message}"), file=sys.stderr)
    return 2


if __name__ == "__main__":
    print_any_text()
    use_compilation_cache()
    try:
        status = main()
        if status and "train.hosts" in sys.modules:
            # At its end jax waits for the other processes, which may be lost, and aborts this one (jax 0.10.2).
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        sys.exit(status)
    except KeyboardInterrupt as error:
        # XLA may still compile in threads of its own. The exception keeps alive what they work on, and the
        # process ends before Python tears anything down: without either it crashed (jax 0.10.2).
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(128 + getattr(error, "signal_number", signal.SIGINT))
