"""What becomes of a cell: a measurement, or a failure with its cause in one line and what helps."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from train import causes
from train.config import ConfigError, StorageError
from train.experiment import Cell

if TYPE_CHECKING:
    import xarray as xr

_MOST_NAMED = 10  # cells in a line
_LONGEST = 300  # characters of a cause
_MEND = "Mend the study, then continue with --allow-changed-code"


class CellEndedError(RuntimeError):
    """Something that other cells would meet too ended one: the message names the cell, the cause and what helps."""


class Measurement(NamedTuple):
    """One measured cell: what `Experiment.run` returned, the time it took, and the device if known."""

    cell: Cell
    dataset: xr.Dataset
    seconds: float
    device: str = ""


class Failure(NamedTuple):
    """A cell that failed for good.

    Attributes:
        cell: its name.
        cause: in one line, without a full stop.
        remedy: sentences.
        details: what is shown once for all cells that failed alike, such as a traceback.
        place: the line that raised. Cells that failed at one, or without one of the same cause, failed alike.
    """

    cell: str
    cause: str
    remedy: str
    details: str = ""
    place: str = ""

    @property
    def kind(self) -> str:
        """What it shares with those that failed alike."""
        return self.place or self.cause


class CellsFailedError(Exception):
    """Cells of a run failed while others went on; the message lists them, those that failed alike as one.

    Attributes:
        failures: all of them, in the order in which they came.
    """

    def __init__(self, failures: Sequence[Failure], num_cells: int):
        super().__init__(failures, num_cells)
        self.failures, self.num_cells = failures, num_cells

    def __str__(self) -> str:
        groups = alike(self.failures)
        details = [f"{group[0].cell}:\n{group[0].details}\n" for group in groups if group[0].details]
        items = [f"- {_named(group)}: {group[0].cause}.\n  {group[0].remedy}" for group in groups]
        return "\n".join([*details, f"{len(self.failures)} of {self.num_cells} cells failed:", *items])


def alike(failures: Sequence[Failure]) -> list[list[Failure]]:
    """Group failures by what they have in common, in the order in which the first of each came."""
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(failure.kind, []).append(failure)
    return list(groups.values())


def failure_of(cell: Cell, error: Exception) -> Failure:
    """Describe what a cell raised.

    Raises:
        CellEndedError: if the system refused what other cells need as well, such as space on a disk.
        Exception: `error` itself, if it is of no one cell: bad input, data that are not there, a file of the run.
    """
    if cause := causes.outside(error):  # first: after it there may be no file left to open, for an import
        if isinstance(error, OSError):
            raise CellEndedError(f"{cell.name}: {cause}") from error
        return Failure(cell.name, cause.what, cause.remedy)
    if is_of_all(error):
        raise error
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" ({os.path.basename(frame.filename)}, line {frame.lineno})" for frame in frames)
    place = "".join(f"{type(error).__name__} {frame.filename}:{frame.lineno}" for frame in frames)
    details = "".join(traceback.format_exception(error)).rstrip()
    return Failure(cell.name, f"{_one_line(error)}{where}", f"{_MEND}.", details, place)


def one_is_too_large(cell: Cell, error: Exception) -> Failure:
    """Describe that memory ran out with one network at a time."""
    return Failure(
        cell.name,
        f"{causes.ran_out(error)} with one network at a time ({_one_line(error)})",
        "Use --remat layers, a smaller --width or --batch-size, fewer processes at once (--workers 1), or on an "
        "accelerator --compute-dtype bfloat16.",
        place="one network at a time",
    )


def misfit(cell: Cell, error: TypeError | ValueError) -> Failure:
    """Describe that what a cell gave cannot be stored: a message that names the cell and lists what is wrong."""
    return Failure(cell.name, "what it gave cannot be stored", f"See above. {_MEND}.", str(error), "misfit")


def left_with_status(cell: Cell, code: Any) -> Failure:
    """Describe that a cell called sys.exit, which would end the run without a word."""
    remedy = f"Let the study raise an exception that says what is wrong. {_MEND}."
    return Failure(cell.name, f"it called sys.exit({code!r})", remedy)


def is_of_all(error: Exception) -> bool:
    """Whether an error is of bad input or missing data, which other cells would meet too."""
    from train.tasks import DataError

    is_without_data = (
        isinstance(error, FileNotFoundError) and error.errno is None
    )  # a task says where it looked
    return is_without_data or isinstance(error, ConfigError | StorageError | DataError | CellEndedError)


def _one_line(error: Exception) -> str:
    said = " ".join(f"{type(error).__name__}: {error}".removesuffix(": ").split()).rstrip(".")
    return said if len(said) <= _LONGEST else f"{said[:_LONGEST]}..."


def _named(failures: Sequence[Failure]) -> str:
    names = [failure.cell for failure in failures]
    more = len(names) - _MOST_NAMED
    return ", ".join([*names[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])
