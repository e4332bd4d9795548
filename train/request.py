"""What the words of a command line ask for: an experiment with its fields, or a run that there is."""

import dataclasses
import itertools
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from train import config, limits, options, records
from train.config import ConfigError
from train.experiment import Experiment

USAGE = """\
usage: python -m train COMMAND ...

Run studies of activation functions and keep what they measure.

commands:
  run CONFIG [--smoke] [--output DIR] [--resume RUN] [--workers N] [--executor ray]
      [--checkpoint-every SECONDS] [--tensorboard [DIR]] [--wandb [PROJECT]] [--FIELD VALUE ...]
                 run the study of a config file; `run CONFIG --help` lists its fields
  resume RUN [--workers N] [--allow-changed-code]
                 continue a run that was interrupted, with the words that began it
  report RUN [--trust]
                 draw figures and report of a finished run again; --trust runs the code in its folder
  plan CONFIG [--devices N] [--FIELD VALUE ...]
                 say what a run would cost, here and on N devices; nothing is stored;
                 `plan CONFIG --help` lists its options
  status RUN [--follow]
                 show how far a run is, from another terminal
  list           show the studies in configs/ and the runs in runs/
  exercise [CLAIM] [--check FILE] [--solution]
                 work out a claim of the chapter, and have the answer checked;
                 without CLAIM, list them
  --version      print the version

examples:
  python -m train run configs/depth_sweep.py
  python -m train run configs/depth_sweep.py --smoke
  python -m train run configs/depth_sweep.py --depths 8 128 --activations tanh "leaky_relu(0.3)"
"""
OUTPUT = ("output", Path("runs"), {"metavar": "DIR", "help": "the folder of all runs"})
_WORKERS_HELP = (
    "processes that measure side by side; auto: one a core, none beside a GPU or TPU; 0: this process alone"
)
_CHECKPOINT_HELP = (
    "how often a cell stores how far its training is: a killed run loses no more. 30, 5m, 1h; 0: never"
)
NO_LOG = "none"
_LOGS = ("--tensorboard", "--wandb")
_RUN_OPTIONS: tuple[options.Option, ...] = (
    ("smoke", False, {"help": "the same study in seconds"}),
    OUTPUT,
    (
        "resume",
        "",
        {"metavar": "RUN", "help": "continue this run; its own config and options need not be said"},
    ),
    ("allow_changed_code", False, {"help": "continue it though the code is no longer the one that began it"}),
    ("workers", "auto", {"metavar": "N", "help": _WORKERS_HELP}),
    (
        "executor",
        "local",
        {"metavar": "{local,ray}", "help": "whose processes: this machine's or a Ray cluster's"},
    ),
    (
        "ray_address",
        "",
        {"metavar": "HOST:PORT", "help": "of the cluster; by default RAY_ADDRESS, or one is started here"},
    ),
    (
        "cell_timeout",
        limits.NONE,
        {"metavar": "SECONDS", "help": "end a cell that takes longer; 30m and 2h are understood, or none"},
    ),
    ("checkpoint_every", "60", {"metavar": "SECONDS", "help": _CHECKPOINT_HELP}),
    (
        "coordinator",
        "",
        {
            "metavar": "HOST:PORT",
            "help": "compute on several hosts as one: where process 0 listens, the same on all; auto under SLURM's "
            "srun and on TPU pods. Members of a cell are spread over the devices of all; process 0 alone writes",
        },
    ),
    ("num_processes", "", {"metavar": "N", "help": "how many there are with --coordinator HOST:PORT"}),
    ("process_id", "", {"metavar": "I", "help": "which of them this one is, from 0 to N - 1"}),
    (
        "tensorboard",
        NO_LOG,
        {
            "metavar": "[DIR]",
            "help": "curves and figures for TensorBoard, in the run folder if no DIR is given",
        },
    ),
    (
        "wandb",
        NO_LOG,
        {"metavar": "[PROJECT]", "help": "the same for Weights & Biases, offline unless there is a key"},
    ),
)
HOSTS = ("coordinator", "num_processes", "process_id")  # said anew with each process that is started
_PLAN_OPTIONS: tuple[options.Option, ...] = (
    ("smoke", False, {"help": "plan the same study in seconds"}),
    (
        "devices",
        1,
        {"metavar": "N", "help": "accelerators, or machines, of which each is as fast as this one"},
    ),
)


_EXECUTORS = ("local", "ray")
_CALL = ["python", "-m", "train", "run"]


class Begun(NamedTuple):
    """What is read of a run to continue it.

    Attributes:
        command: the command line that began it.
    """

    command: str


class Request(NamedTuple):
    """What `run` was asked for; its options are read together with the experiment's fields."""

    experiment: Experiment
    path: Path
    output: Path
    resume: Path | None
    workers: int | None
    smoke: bool
    command: str
    allow_changed_code: bool = False
    executor: str = "local"
    ray_address: str = ""
    cell_timeout: float | None = None
    checkpoint_every: float = 60.0
    tensorboard: str = NO_LOG
    wandb: str = NO_LOG


def completed(arguments: Sequence[str]) -> list[str]:
    """The words after `python -m train run`; where they resume a run and name no config, those that began it first.

    Raises:
        ConfigError: if there is no such run, or it does not say how it was begun.
    """
    text = _value(arguments, "--resume")
    if text is None or names_config(arguments):
        return list(arguments)
    run = find_run(text, Path(_value(arguments, "--output") or "runs"))
    return [*_begun(run), *without(arguments, "--resume"), "--resume", str(run)]


def parse(arguments: Sequence[str]) -> Request:
    """Read the words after `python -m train run`, options and fields in one go: help and hints know both.

    Raises:
        ConfigError: for a config or a value that cannot be run.
        SystemExit: after help, or after a message of tyro's.
    """
    path, words = _split_config(_with_values(arguments))
    if path is None:
        print(USAGE, end="")
        raise SystemExit(0)
    experiment = _loaded(path, smoke="--smoke" in words)
    given = options.read(
        words,
        ("experiment", experiment, {"name": ""}),
        *_RUN_OPTIONS,
        prog=f"python -m train run {path}",
        description=(type(experiment).__doc__ or "").split("\n")[0],
    )
    resume = find_run(given.resume, given.output) if given.resume else None
    command = shlex.join([*_CALL, _word(path), *_repeating(words)])
    workers = _num_workers(given.workers)
    _check_executor(given, workers)
    return Request(
        given.experiment,
        path,
        given.output,
        resume,
        workers,
        given.smoke,
        command,
        given.allow_changed_code,
        given.executor,
        given.ray_address,
        limits.seconds(given.cell_timeout),
        _interval(given.checkpoint_every),
        given.tensorboard,
        given.wandb,
    )


def parse_plan(arguments: Sequence[str]) -> tuple[Experiment, Path, int]:
    """Read the words after `python -m train plan`: the experiment, its config file and the number of devices.

    Raises:
        ConfigError: for a config or a value that cannot be run.
        SystemExit: after help, or after a message of tyro's.
    """
    path, words = _split_config(arguments, _PLAN_OPTIONS, "plan")
    if path is None:
        print(USAGE, end="")
        raise SystemExit(0)
    given = options.read(
        words,
        ("experiment", _loaded(path, smoke="--smoke" in words), {"name": ""}),
        *_PLAN_OPTIONS,
        prog=f"python -m train plan {path}",
        description="Say what a run of this study would cost, from a calibration of seconds; nothing is stored.",
    )
    if given.devices < 1:
        raise ConfigError(f"`devices` must be at least 1, got {given.devices}.")
    return given.experiment, path, given.devices


def runs(output: Path) -> list[Path]:
    """Return the folders of the runs in `output`, finished or not, the oldest of a study first."""
    return sorted(path for path in output.glob("[!.]*") if os.path.lexists(path / "config.json"))


def find_run(text: str, output: Path) -> Path:
    """Find the run that `text` means: its folder, or its name in `output`.

    Raises:
        ConfigError: if there is none, with the closest.
    """
    for candidate in (Path(text), output / text):
        if candidate.is_dir():
            return candidate
    if Path(text).is_file():
        raise ConfigError(f"{text} is a file, not the folder of a run. Give the folder it lies in.")
    known = {path.name: str(path) for path in runs(output)}
    close = " or ".join(known[name] for name in config.closest(Path(text).name, known))
    meant = f"Did you mean {close}?" if close else "`python -m train list` shows the runs."
    raise ConfigError(f"there is no run {text}. {meant}")


def answer(text: str) -> Path:
    """Return the Python file that answers an exercise.

    Raises:
        ConfigError: if there is no such file.
    """
    path = Path(text)
    if path.suffix != ".py" or not path.is_file():
        what = "is not a Python file" if path.exists() else "does not exist"
        raise ConfigError(f"`check` must be the Python file of an answer; {text} {what}.")
    return path


def without(words: Sequence[str], option: str) -> list[str]:
    """The words without an option and its value."""
    for position, word in enumerate(words):
        if word == option or word.startswith(f"{option}="):
            return [*words[:position], *words[position + (2 if word == option else 1) :]]
    return list(words)


def _split_config(
    arguments: Sequence[str], known: Sequence[options.Option] = _RUN_OPTIONS, command: str = "run"
) -> tuple[Path | None, list[str]]:
    """Find the config among the words; how many values a field before it takes would not be known."""
    num_values = {f"--{name.replace('_', '-')}": int(default is not False) for name, default, _ in known}
    position = 0
    while position < len(arguments):
        word, has_value, _ = arguments[position].partition("=")
        if not word.startswith("-"):
            return Path(arguments[position]), [*arguments[:position], *arguments[position + 1 :]]
        if word in ("-h", "--help"):
            return None, []
        if word not in num_values:
            hint = config.hint(word, num_values)
            raise ConfigError(f"the config comes before its fields: `{command} CONFIG {word} ...`.{hint}")
        position += 1 + (0 if has_value else num_values[word])
    studies = ", ".join(str(study) for study in config.find()) or "none in configs/"
    raise ConfigError(f"`{command}` needs a config file. There are: {studies}.")


def _with_values(words: Sequence[str]) -> list[str]:
    """The words, the options of logs that have no value with the value "auto"."""
    pairs = itertools.zip_longest(words, words[1:], fillvalue="-")
    return [f"{word}=auto" if word in _LOGS and after.startswith("-") else word for word, after in pairs]


def names_config(arguments: Sequence[str]) -> bool:
    """Whether there is a config among the words after `python -m train run`."""
    try:
        return (
            _split_config([word for word in _with_values(arguments) if word not in ("-h", "--help")])[0]
            is not None
        )
    except ConfigError:
        return False


def _begun(run: Path) -> list[str]:
    """The words that began a run; its copy of the config stands for one that is no longer there."""
    try:
        words = shlex.split(records.read(run / "config.json", Begun).command)
        if words[:4] != _CALL:
            raise ValueError(f"its `command` is not `{' '.join(_CALL)} ...`")
        path, others = _split_config(words[4:])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{run} does not say how it was begun: its config.json cannot be read ({records.reason(error)}). "
            f"Give its config file and options: `run CONFIG ... --resume {run}`."
        ) from error
    return [_word(path if path and path.is_file() else run / "config.py"), *others]


def _word(path: Path) -> str:
    """A path as a word that is no option, though its name begins as one."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _loaded(path: Path, *, smoke: bool) -> Experiment:
    experiment = config.load(path)
    config.type_name(experiment, path)
    names = {field.name for field in dataclasses.fields(experiment)}  # type: ignore[arg-type]
    if clash := names & {"experiment", *(name for name, _, _ in _RUN_OPTIONS)}:
        raise ConfigError(f"{path}: the fields {sorted(clash)} are options of `run`. Rename them.")
    try:
        return experiment.smoke() if smoke else experiment
    except ValueError as error:
        raise ConfigError(f"{path}: `smoke()` failed: {error}") from error


def _num_workers(text: str) -> int | None:
    if text != "auto" and not (text.isascii() and text.isdigit()):
        raise ConfigError(
            f"`workers` must be a number of processes, 0 for this one alone, or auto, got {text!r}."
        )
    return None if text == "auto" else int(text)


def _interval(text: str) -> float:
    return limits.seconds(text, "checkpoint_every", off="0") or 0.0


def _check_executor(given: Any, workers: int | None) -> None:
    if given.executor not in _EXECUTORS:
        hint = config.hint(given.executor, _EXECUTORS)
        raise ConfigError(f"`executor` must be {' or '.join(_EXECUTORS)}, got {given.executor!r}.{hint}")
    if given.executor == "ray" and workers == 0:
        raise ConfigError("a Ray cluster has workers of its own. Leave out --workers 0, or --executor ray.")
    if given.executor != "ray" and given.ray_address and not given.resume:  # the run's first words may say it
        raise ConfigError(f"`ray_address` {given.ray_address} is of no use here. Add --executor ray.")


def _repeating(words: Sequence[str]) -> list[str]:
    """The words without those that only matter to a run that is there."""
    allowing = ("--allow-changed-code", "--allow_changed_code")
    for option in ("--resume", *(spelt for name in HOSTS for spelt in _spellings(name))):
        words = without(words, option)
    return [word for word in words if word not in allowing]


def value(words: Sequence[str], name: str) -> str | None:
    """The value of an option of several hosts among the words; None if it is not there."""
    found = (_value(words, option) for option in _spellings(name))
    return next((each for each in found if each is not None), None)


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")))


def _value(words: Sequence[str], option: str) -> str | None:
    """The value of an option among the words; None if it is not there."""
    for word, following in itertools.zip_longest(words, words[1:]):
        if word == option:
            return following
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None
