"""How the commands print: strict JSON, short numbers, tables and errors."""

import json
import math
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

    from jaxact.activations import Activation

Found = TypeVar("Found")


class InputError(ValueError):
    """What the user asked for cannot be done; the message says why and what to write instead."""


def parse_activations(texts: "Sequence[str]") -> "list[Activation]":
    """The activations that the texts name, each once.

    Raises:
        InputError: a name or a parameter is wrong; with the closest names.
    """
    from jaxact import activations

    found = []
    for text in texts:
        try:
            found.append(activations.parse(text))
        except ValueError as error:
            message = str(error).replace(
                "activations.names() lists all.", "`python -m jaxact list` shows all."
            )
            raise InputError(message) from error
    return list(dict.fromkeys(found))


def for_each(work: "Callable[[Any], Found]", items: "Sequence[Any]") -> "list[Found]":
    """Map over items with a name, one after the other, and say on a terminal which one is at work."""
    if not sys.stderr.isatty():
        return [work(item) for item in items]
    from rich.console import Console

    found = []
    with Console(stderr=True).status("") as status:
        for item in items:
            status.update(f"computing {item.name}")
            found.append(work(item))
    return found


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


def reason(error: ValueError) -> str:
    """Why there is none, with the remedy that the command line has in place of the library's."""
    return str(error).replace("Give q_star instead.", "Try another --sigma-b.")
