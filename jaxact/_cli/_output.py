"""How the commands print: strict JSON, short numbers, tables, and errors in words of their options."""

import contextlib
import json
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import Console

    from jaxact.activations import Activation

#: What a message is about, by the name of the library's argument.
_SUBJECTS = {"shape": "`--input-shape`", "name": "the model"}
#: What to do instead, by the argument of the library that would mend it.
_REMEDIES = {
    "q_star": "Try another --sigma-b.",
    "names": "`python -m jaxact list` shows all.",
    "batch": "Say which it is: --batch if its first axis is a batch, --no-batch if it takes one example.",
}


class InputError(ValueError):
    """What the user asked for cannot be done; the message says why and what to write instead."""


def in_options(
    error: Exception, subjects: "Mapping[str, str] | None" = None, remedies: "Mapping[str, str] | None" = None
) -> str:
    """What an error of the library says, with options in place of the arguments that it names.

    Args:
        error: one with fields, or any other, whose message is given as it is.
        subjects: what stands for an argument, beside the usual ones.
        remedies: what stands for the remedy that another argument is, beside the usual ones.
    """
    from jaxact.errors import ArgumentError, ArgumentTypeError

    if not isinstance(error, ArgumentError | ArgumentTypeError):
        return " ".join(str(error).split())
    subject = None
    if error.argument is not None:
        subject = (_SUBJECTS | dict(subjects or {})).get(error.argument, f"`{error.argument}`")
    remedy = (_REMEDIES | dict(remedies or {})).get(error.give or "", error.remedy)
    return " ".join(error.sentence(subject, remedy).split())


@contextlib.contextmanager
def errors_in_options(
    subjects: "Mapping[str, str] | None" = None, remedies: "Mapping[str, str] | None" = None
) -> "Iterator[None]":
    """Turn what the library refuses into an `InputError`; the arguments are as in `in_options`."""
    from jaxact.errors import ArgumentError, ArgumentTypeError

    try:
        yield
    except (ArgumentError, ArgumentTypeError) as error:
        raise InputError(in_options(error, subjects, remedies)) from error


def parse_activations(texts: "Sequence[str]") -> "list[Activation]":
    """The activations that the texts name, each once.

    Raises:
        InputError: a name or a parameter is wrong; with the closest names.
    """
    from jaxact import activations

    try:
        return list(dict.fromkeys(map(activations.parse, texts)))
    except ValueError as error:
        raise InputError(in_options(error)) from error


@contextlib.contextmanager
def progress() -> "Iterator[Callable[[str], None]]":
    """What to call with the name of what is at work: a terminal shows it."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda name: status.update(f"computing {name}")


def print_json(value: Any) -> None:
    """Print strict JSON: NaN as null, infinities as the strings "inf" and "-inf"."""
    print(json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False))


def plain(value: Any) -> Any:
    """The same value of dicts, lists, text, booleans, numbers that JSON has, and None.

    >>> plain({"a": (1.0, float("inf")), "b": float("nan")})
    {'a': [1.0, 'inf'], 'b': None}
    """
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()  # of numpy or jax
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def short(value: float | None, digits: int = 5) -> str:
    """A number in few digits, or a dash for none.

    >>> short(1.41421356), short(None), short(-0.0)
    ('1.4142', '-', '0')
    """
    return "-" if value is None or math.isnan(value) else f"{value + 0.0:.{digits}g}"


def console() -> "Console":
    """Where tables go; wide where nobody looks: a column cut to 80 is of no use to a program that reads it."""
    from rich.console import Console

    found = Console(highlight=False, emoji=False)
    if not found.is_terminal:
        found.width = 200
    return found
