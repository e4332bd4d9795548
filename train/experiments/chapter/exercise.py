"""Exercises: a claim for a reader to work out, checked by running the answer against the claim's own numbers."""

from __future__ import annotations

import contextlib
import io
import runpy
import traceback
from collections.abc import Callable, Mapping
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
    for arguments in exercise.inputs:
        said = f"{exercise.function}({', '.join(map(_shown, arguments))})"
        right = np.asarray(exercise.answer(*arguments), dtype=float)
        try:
            given = np.asarray(function(*arguments), dtype=float)
        except Exception as error:
            return Checked(False, f"{said} raises {type(error).__name__}: {error}.{_line(path, error)}")
        if not _agree(given, right, exercise.rtol):
            hint = _mistake(exercise, function) or "Work out this one by hand first."
            return Checked(False, f"{said} gives {_shown(given)}, and that is not it. {hint}")
    return Checked(True, f"Right: {exercise.function} agrees for all {len(exercise.inputs)} inputs.")


def _function(name: str, path: Path) -> tuple[Callable[..., Any] | None, str]:
    """The reader's function, or a word on why there is none."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
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


def _agree(given: np.ndarray, right: np.ndarray, rtol: float) -> bool:
    if given.shape != right.shape:
        return False
    scale = float(np.max(np.abs(right), initial=0.0)) or 1.0
    return bool(np.all(np.abs(given - right) <= rtol * scale))


def _mistake(exercise: Exercise, function: Callable[..., Any]) -> str:
    """The word on the mistake that a function makes for all inputs, if it is a known one."""
    for word, wrong in exercise.mistakes.items():
        pairs = [(wrong(*each), function(*each)) for each in exercise.inputs]
        if all(_agree(np.asarray(b, float), np.asarray(a, float), exercise.rtol) for a, b in pairs):
            return word
    return ""


def _shown(value: Any) -> str:
    array = np.asarray(value)
    return (
        f"{value:.6g}" if array.ndim == 0 and array.dtype.kind == "f" else np.array2string(array, threshold=6)
    )
