"""What the words of a command line ask for: an experiment with its fields, or a run that there is."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from train import config, options
from train.config import ConfigError
from train.experiment import Experiment

USAGE = """\
usage: python -m train COMMAND ...

Run studies of activation functions and keep what they measure.

commands:
  run CONFIG [--smoke] [--output DIR] [--resume RUN] [--workers N] [--FIELD VALUE ...]
                 run the study of a config file; `run CONFIG --help` lists its fields
  report RUN [--trust]
                 draw figures and report of a finished run again; --trust runs the code in its folder
  list           show the studies in configs/ and the runs in runs/
  exercise [CLAIM] [--check FILE] [--solution]
                 work out a claim of the chapter, and have the answer checked

examples:
  python -m train run configs/depth_sweep.py
  python -m train run configs/depth_sweep.py --smoke
  python -m train run configs/depth_sweep.py --depths 8 128 --activations tanh "leaky_relu(0.3)"
"""
OUTPUT = ("output", Path("runs"), {"metavar": "DIR", "help": "the folder of all runs"})
_WORKERS_HELP = (
    "processes that measure side by side; auto: one a core, none beside a GPU or TPU; 0: this process alone"
)
_RUN_OPTIONS = (
    ("smoke", False, {"help": "the same study in seconds"}),
    OUTPUT,
    ("resume", "", {"metavar": "RUN", "help": "continue this run"}),
    ("allow_changed_code", False, {"help": "continue it though the code is no longer the one that began it"}),
    ("workers", "auto", {"metavar": "N", "help": _WORKERS_HELP}),
)


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


def parse(arguments: Sequence[str]) -> Request:
    """Read the words after `python -m train run`, options and fields in one go: help and hints know both.

    Raises:
        ConfigError: for a config or a value that cannot be run.
        SystemExit: after help, or after a message of tyro's.
    """
    path, words = _split_config(arguments)
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
    command = shlex.join(["python", "-m", "train", "run", str(path), *_repeating(words)])
    workers = _num_workers(given.workers)
    return Request(
        given.experiment, path, given.output, resume, workers, given.smoke, command, given.allow_changed_code
    )


def runs(output: Path) -> list[Path]:
    """Return the folders of the runs in `output`, finished or not, the oldest of a study first."""
    return sorted(path.parent for path in output.glob("[!.]*/config.json"))


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


def _split_config(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Find the config among the words; how many values a field before it takes would not be known."""
    num_values = {
        f"--{name.replace('_', '-')}": int(default is not False) for name, default, _ in _RUN_OPTIONS
    }
    position = 0
    while position < len(arguments):
        word, has_value, _ = arguments[position].partition("=")
        if not word.startswith("-"):
            return Path(arguments[position]), [*arguments[:position], *arguments[position + 1 :]]
        if word in ("-h", "--help"):
            return None, []
        if word not in num_values:
            hint = config.hint(word, num_values)
            raise ConfigError(f"the config comes before its fields: `run CONFIG {word} ...`.{hint}")
        position += 1 + (0 if has_value else num_values[word])
    studies = ", ".join(str(study) for study in config.find()) or "none in configs/"
    raise ConfigError(f"`run` needs a config file. There are: {studies}.")


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


def _repeating(words: Sequence[str]) -> list[str]:
    """The words without those that only matter to a run that is there."""
    allowing = ("--allow-changed-code", "--allow_changed_code")
    return [word for word in _without(words, "--resume") if word not in allowing]


def _without(words: Sequence[str], option: str) -> list[str]:
    for position, word in enumerate(words):
        if word == option or word.startswith(f"{option}="):
            return [*words[:position], *words[position + (2 if word == option else 1) :]]
    return list(words)
