"""Exercises: a claim for a reader to work out, checked by running the answer against the claim's own numbers."""

from __future__ import annotations

import contextlib
import copy
import io
import runpy
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Exercise(NamedTuple):
    """What a reader is asked to write, and how an answer is told from a mistake.

    Attributes:
        task: what to do, by hand or in ten lines: text that names the function and its arguments.
        function: the name of the function that an answer defines.
        answer: the right function: from what the claim's own numbers come.
        inputs: the arguments on which an answer is run, a tuple a call.
        rtol: how far an answer may be off, relative to the largest number that is right; absolute where that is 0.
        atol: the same, absolute: what the rounding of a right answer may come to.
        mistakes: functions that readers write instead, by the word that helps them.
        solution: the text of a file that answers it.
    """

    task: str
    function: str
    answer: Callable[..., Any]
    inputs: tuple[tuple[Any, ...], ...]
    solution: str
    mistakes: Mapping[str, Callable[..., Any]] = {}
    rtol: float = 1e-6
    atol: float = 0.0

    @property
    def tolerance(self) -> str:
        """How near an answer must come, in words for its writer."""
        slack = f", and {self.atol:g} more" if self.atol else ""
        return f"within {self.rtol:g} of the right number, relative to the largest of a list{slack}"

    def agrees(self, given: np.ndarray, right: np.ndarray) -> bool:
        """Whether numbers are those that are right."""
        scale = float(np.max(np.abs(right), initial=0.0)) or 1.0
        return bool(np.all(np.abs(given - right) <= self.rtol * scale + self.atol))


class Checked(NamedTuple):
    """Whether an answer is right, and a word to its writer."""

    is_right: bool
    word: str


def check(exercise: Exercise, path: Path) -> Checked:
    """Run the file of an answer, which is the reader's own code, and compare its function with what is right.

    A mistake that readers are known to make is named as such.
    """
    function, word = _function(exercise.function, path)
    if function is None:
        return Checked(False, word)
    rights = [np.asarray(exercise.answer(*each), dtype=float) for each in exercise.inputs]
    found: list[np.ndarray] = []
    word = ""
    for arguments, right in zip(exercise.inputs, rights, strict=True):
        said = f"{exercise.function}({', '.join(map(_shown, arguments))})"
        try:
            given = function(*copy.deepcopy(arguments))  # an answer may sort them in their place
        except (Exception, SystemExit) as error:
            word = word or f"{said} raises {type(error).__name__}: {error}.{_line(path, error)}"
            break
        array, lack = _numbers(given, right)
        if lack:
            word = word or f"{said} {lack}"
            break
        found.append(array)
        if not word and not exercise.agrees(array, right):
            word = (
                f"{said} gives {_shown(array)}, and that is not it: an answer must be {exercise.tolerance}."
            )
    if word:
        return Checked(False, f"{word} {_mistake(exercise, found)}".rstrip())
    return Checked(True, f"Right: {exercise.function} agrees for all {len(exercise.inputs)} inputs.")


def _function(name: str, path: Path) -> tuple[Callable[..., Any] | None, str]:
    """The reader's function, or a word on why there is none."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            sys.path.insert(0, str(path.parent))  # as `python FILE` does: for imports of what lies beside it
            defined = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        return None, f"{path} does not run: {type(error).__name__}: {error}.{_line(path, error)}"
    if not callable(function := defined.get(name)):
        others = ", ".join(key for key, value in defined.items() if key[:1] != "_" and callable(value))
        return None, f"{path} must define the function `{name}`; it defines {others or 'none'}."
    return function, ""


def _line(path: Path, error: BaseException) -> str:
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f" That is line {lines[-1]} of {path}." if lines else ""


def _numbers(given: Any, right: np.ndarray) -> tuple[np.ndarray, str]:
    """What a function gave, in the shape that is right, or a word on why it cannot be compared."""
    try:
        array = np.asarray("" if given is None else given)
        array = array.astype(float) if array.dtype.kind in "biufO" else array
    except (TypeError, ValueError):
        array = np.asarray("")
    if array.dtype.kind != "f":
        return right, f"gives {given!r}, and real numbers are asked for."
    if np.squeeze(array).shape != np.squeeze(right).shape:
        return right, f"gives numbers of shape {array.shape}, and the shape {right.shape} is asked for."
    return array.reshape(right.shape), ""


def _mistake(exercise: Exercise, found: Sequence[np.ndarray]) -> str:
    """The word on the mistake that gives what was found for all inputs, if it is a known one."""
    if len(found) < len(exercise.inputs):
        return ""
    for word, wrong in exercise.mistakes.items():
        pairs = zip(found, (np.asarray(wrong(*each), float) for each in exercise.inputs), strict=True)
        if all(exercise.agrees(one, other) for one, other in pairs):
            return word
    return "Work out this one by hand first."


def _shown(value: Any) -> str:
    array = np.asarray(value)
    return (
        f"{value:.6g}" if array.ndim == 0 and array.dtype.kind == "f" else np.array2string(array, threshold=6)
    )
