"""A run's numbers for TensorBoard and Weights & Biases: curves of each network as its cell ends, figures in the end."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import xarray as xr

from train import config, records
from train.config import ConfigError
from train.experiment import Cell, Experiment
from train.request import NO_LOG, Request

OWN = "auto"  # the value of an option that is given without one
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
_STEP, _X = "step", "optimiser_step"


class Curve(NamedTuple):
    """One variable of one network.

    Attributes:
        name: of the variable.
        member: its labels, such as "learning_rate=0.01/seed=0"; "" for a number of the whole cell.
        steps: optimiser steps, [point]; the last of the cell, or 0, for a number without steps.
        values: [point].
    """

    name: str
    member: str
    steps: np.ndarray
    values: np.ndarray


class Logger(Protocol):
    """Where numbers go."""

    def cell(self, name: str, curves: Sequence[Curve]) -> None:
        """Take what was measured in a cell; a second time it replaces the first."""

    def figures(self, directory: Path) -> None:
        """Take the figures and the report of a run folder."""

    def close(self) -> None:
        """Write what is not yet written."""


class Logs:
    """All loggers of a run. One that fails is told and left out: the run goes on.

    Args:
        loggers: with the file in which each notes the cells that it has, so that a resumed run tells none twice.
        members: the dimensions that tell the networks of a cell apart.
        say: told of a logger that fails.
    """

    def __init__(
        self,
        loggers: Mapping[Path, Logger] | None = None,
        *,
        members: Sequence[str] = (),
        say: Callable[[str], None] = print,
    ):
        self._loggers, self._members, self._say = dict(loggers or {}), members, say
        self._known = {path: _lines(path) for path in self._loggers}

    def __bool__(self) -> bool:
        return bool(self._loggers)

    def cell(self, cell: Cell, part: xr.Dataset, name: str) -> None:
        """Tell of a stored cell.

        Args:
            cell: whose coordinates are not part of a network's name.
            part: what was measured in it.
            name: of the cell, as file names may be.
        """
        curves: list[Curve] = []
        for path, logger in [*self._loggers.items()]:
            if name in self._known[path]:
                continue
            curves = curves or list(curves_of(part, [*cell.coords], self._members))
            with self._guarded(path):
                logger.cell(name, curves)
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(f"{name}\n")

    def figures(self, directory: Path) -> None:
        """Tell of the figures of a run that is complete."""
        for path, logger in [*self._loggers.items()]:
            with self._guarded(path):
                logger.figures(directory)

    def close(self) -> None:
        """Let all write what is not yet written."""
        for path, logger in [*self._loggers.items()]:
            with self._guarded(path):
                logger.close()

    @contextlib.contextmanager
    def _guarded(self, path: Path) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a library, a network or a disk; what is measured is safe
            self._say(_failing(type(self._loggers.pop(path)).__name__, error))


def check(asked: Request) -> None:
    """Check that the packages that a command line needs can be imported.

    Raises:
        ConfigError: if one cannot, with the command that installs it.
    """
    for extra, package in _PACKAGES.items():
        if getattr(asked, extra) == NO_LOG:
            continue
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"--{extra} needs {package}, which cannot be imported ({error}). "
                f"Install it: pip install 'jaxact[{extra}]'."
            ) from error


@contextlib.contextmanager
def opened(asked: Request, directory: Path, say: Callable[[str], None]) -> Iterator[Logs]:
    """Open the loggers that a command line asks for; `check` holds.

    Args:
        asked: its `tensorboard` and `wandb`.
        directory: of the run.
        say: told of where the numbers are.
    """
    loggers: dict[Path, Logger] = {}
    if asked.tensorboard != NO_LOG:
        folder = directory / "tensorboard"
        folder = folder if asked.tensorboard == OWN else Path(asked.tensorboard) / directory.name
        loggers[folder / "cells.txt"] = TensorBoard(folder)
        say(f"TensorBoard: tensorboard --logdir {folder}")
    if asked.wandb != NO_LOG:
        study = re.sub(r"-\d{8}T\d{6}-[0-9a-f]{4}$", "", directory.name)
        project = study if asked.wandb == OWN else asked.wandb
        try:
            logger = WandB(project, directory, asked.experiment, say)
            loggers[directory / "wandb" / "cells.txt"] = logger
        except Exception as error:  # its settings, its service, its server
            say(_failing("WandB", error))
    logs = Logs(loggers, members=[*getattr(type(asked.experiment), "within", {})], say=say)
    try:
        yield logs
    finally:
        logs.close()


def curves_of(part: xr.Dataset, cell: Sequence[str], members: Sequence[str]) -> Iterator[Curve]:
    """The numbers of a cell that a logger shows: whatever has steps, and what each network came to.

    Variables along other axes of numbers, such as layers, are for the figures.

    Args:
        part: the Dataset of one cell.
        cell: the dimensions of its coordinates.
        members: dimensions that tell its networks apart; those of the variables with steps are taken as well.
    """
    numbers = [(str(name), each) for name, each in part.data_vars.items() if each.dtype.kind in "biuf"]
    stepped = {str(dim) for _, each in numbers if _STEP in each.dims for dim in each.dims}
    labels = {str(dim): part[dim].to_numpy() for dim in part.dims}
    last = int(part[_STEP].max()) if _STEP in part.dims and part.sizes[_STEP] else 0
    for name, variable in numbers:
        own = [str(dim) for dim in variable.dims if dim not in (*cell, _STEP)]
        is_shown = all(dim in members or dim in stepped or part[dim].dtype.kind not in "iuf" for dim in own)
        if _STEP not in variable.dims and not is_shown:
            continue
        has_steps = _STEP in variable.dims
        steps = part[_STEP].to_numpy() if has_steps else np.array([last])
        sizes = [part.sizes[dim] for dim in own]
        order = [
            *(dim for dim in variable.dims if dim not in (*own, _STEP)),
            *own,
            *([_STEP] if has_steps else []),
        ]
        values = variable.transpose(*order).to_numpy().astype(float).reshape(*sizes, len(steps))
        for place in itertools.product(*map(range, sizes)):
            member = "/".join(f"{dim}={labels[dim][index]}" for dim, index in zip(own, place, strict=True))
            yield Curve(name, member, steps, values[place])


class TensorBoard:
    """Event files: a folder a cell, within it one a network, so that curves of one variable share a chart.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def cell(self, name: str, curves: Sequence[Curve]) -> None:
        """Write a cell anew."""
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)  # what a process that was killed has begun
        for place, (member, own) in enumerate(_by_member(curves)):
            rows = _rows((curve.name, curve) for curve in own)
            numbers = {
                step: [{"tag": tag, "simple_value": value} for tag, value in row.items()]
                for step, row in rows.items()
            }
            self._write(folder / _file_name(member, place), numbers)

    def figures(self, directory: Path) -> None:
        """Write the figures as images."""
        images = []
        for path in sorted((directory / "figures").glob("*.png")):
            content = path.read_bytes()
            width, height = struct.unpack(">II", content[16:24])  # PNG's first chunk
            image = {"height": height, "width": width, "colorspace": 4, "encoded_image_string": content}
            images.append({"tag": path.stem, "image": image})
        folder = self._folder / "figures"
        shutil.rmtree(folder, ignore_errors=True)
        self._write(folder, {0: images})

    def close(self) -> None:
        """Nothing is left to write: files are closed with their cell."""

    @staticmethod
    def _write(folder: Path, values: Mapping[int, Sequence[dict[str, Any]]]) -> None:
        """Write one file of events, by step, without the thread that SummaryWriter would start for it."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        folder.mkdir(parents=True, exist_ok=True)
        writer = EventsWriter(str(folder / "events"))
        for step, each in values.items():
            writer.write_event(Event(step=step, wall_time=time.time(), summary={"value": each}))
        writer.close()


class WandB:
    """One W&B run a study's run, continued where that is resumed; offline unless there is a key.

    Args:
        project: of W&B.
        directory: of the run; W&B keeps its files in the folder `wandb` there.
        experiment: its fields become the config.
        say: told where the files are.
    """

    def __init__(self, project: str, directory: Path, experiment: Experiment, say: Callable[[str], None]):
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            name=directory.name,
            id=re.sub(r"[^\w-]", "_", directory.name),
            dir=str(directory),
            config=config.resolved(experiment),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric(_X)
        self._run.define_metric("*", step_metric=_X)
        if mode == "offline":
            say(f"W&B, offline: wandb sync {directory / 'wandb' / 'offline-run-*'}")

    def cell(self, name: str, curves: Sequence[Curve]) -> None:
        """Log a row a step: the variable comes first in a key, which is what W&B groups charts by."""
        keys = ("/".join(filter(None, (curve.name, name, curve.member))) for curve in curves)
        for step, row in _rows(zip(keys, curves, strict=True)).items():
            self._run.log({_X: step, **row})

    def figures(self, directory: Path) -> None:
        """Log each figure and the report as HTML."""
        pages = {f"figures/{path.stem}": path for path in sorted((directory / "figures").glob("*.svg"))}
        pages["report"] = directory / "report.html"
        found = {key: path.read_text(encoding="utf-8") for key, path in pages.items() if path.exists()}
        self._run.log({key: self._wandb.Html(text, inject=False) for key, text in found.items()})

    def close(self) -> None:
        """Wait until all is on the disk, or sent."""
        self._run.finish()


def _failing(name: str, error: Exception) -> str:
    return f"{name} fails: {records.reason(error).rstrip('.')}. The run goes on without it."


def _rows(named: Iterable[tuple[str, Curve]]) -> dict[int, dict[str, float]]:
    """The values of several curves by step, in its order, and by name."""
    rows: dict[int, dict[str, float]] = {}
    for name, curve in named:
        for step, value in zip(curve.steps.tolist(), curve.values.tolist(), strict=True):
            rows.setdefault(step, {})[name] = value
    return dict(sorted(rows.items()))


def _by_member(curves: Sequence[Curve]) -> Iterator[tuple[str, list[Curve]]]:
    members: dict[str, list[Curve]] = {}
    for curve in curves:
        members.setdefault(curve.member, []).append(curve)
    yield from members.items()


def _file_name(member: str, number: int) -> str:
    """A folder's name that is safe; the number where what was replaced might have told it apart."""
    name = re.sub(r"[^\w.=+-]+", ",", member, flags=re.ASCII)[:150].strip(".") or "cell"
    return name if name in (member.replace("/", ","), "cell") else f"{name}-{number}"


def _lines(path: Path) -> set[str]:
    try:
        return set(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return set()
