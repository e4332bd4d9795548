"""Errors that carry what they say as fields: which argument, which rule, and what to give instead."""

from __future__ import annotations

import traceback
from pathlib import Path

__all__ = ["ArgumentError", "ArgumentTypeError", "one_line"]

_HERE = Path(__file__).parent
_LONGEST = 300  # characters of a message in one line


class _FieldsError(Exception):
    """The fields of both errors; the message is "`argument` rule remedy"."""

    def __init__(self, rule: str, remedy: str = "", *, argument: str | None = None, give: str | None = None):
        self.argument, self.rule, self.remedy, self.give = argument, rule, remedy, give
        super().__init__(self.sentence(None if argument is None else f"`{argument}`", remedy))

    def sentence(self, subject: str | None, remedy: str) -> str:
        """The same message about `subject` with another remedy, for a caller whose users know neither argument.

        Args:
            subject: what the rule is about, as the sentence's first words; None where the rule names it itself.
            remedy: the last sentence.
        """
        return " ".join(part for part in (subject, self.rule, remedy) if part)

    def __reduce__(self):
        return _made, (type(self), self.rule, self.remedy, self.argument, self.give)


class ArgumentError(_FieldsError, ValueError):
    """What was asked for cannot be done.

    Attributes:
        argument: the name of the argument that the rule is about, or None where the rule names its subject.
        rule: what it must be and what was received, a sentence without its subject.
        remedy: what to write instead, a sentence.
        give: the argument that the remedy is about, where that is another one: "region", for instance.

    Example:
        >>> error = ArgumentError("must be positive, got -1.", "Give 1.", argument="depth")
        >>> str(error), error.argument
        ('`depth` must be positive, got -1. Give 1.', 'depth')
    """


class ArgumentTypeError(_FieldsError, TypeError):
    """An argument is of the wrong kind; the fields are those of `ArgumentError`."""


def _made(kind, rule, remedy, argument, give):
    return kind(rule, remedy, argument=argument, give=give)


def one_line(error: BaseException) -> str:
    """Tell an exception in one line: its type, what it says, and the last line of the user's own code on the way.

    Args:
        error: as it was caught, with its traceback.

    Returns:
        "Type: words (file.py:line)", of the words at most 300 characters.

    Example:
        >>> one_line(ValueError("too large."))
        'ValueError: too large'
    """
    words = " ".join(str(error).split())
    words = words if len(words) <= _LONGEST else f"{words[: _LONGEST - 3]}..."
    frames = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if _is_users(frame.filename)
    ]
    if isinstance(error, SyntaxError) and error.filename:
        frames, words = [(error.filename, error.lineno)], error.msg
    place = f" ({Path(frames[-1][0]).name}:{frames[-1][1]})" if frames else ""
    return f"{type(error).__name__}: {words.rstrip('. ')}".rstrip(": ") + place


def _is_users(filename: str) -> bool:
    is_library = "site-packages" in filename or "importlib" in filename or filename.startswith("<")
    return not is_library and _HERE not in Path(filename).parents
