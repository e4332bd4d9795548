"""What the text of an option means, with the rule in the message where it is broken."""

import argparse
import math
from collections.abc import Callable, Sequence

_MOST_DIGITS = 400


def scale(text: str) -> float:
    """A bias scale."""
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a bias scale must be a finite, nonnegative number, got {text!r}")
    return value


def scales(text: str) -> list[float]:
    """Bias scales, separated by commas."""
    return [scale(part) for part in text.split(",")]


def some_of(choices: Sequence[str], *, none: str | None = None) -> Callable[[str], list[str]]:
    """A list of some of the choices, separated by commas; empty for the word that means so."""

    def parse(text: str) -> list[str]:
        if text == none:
            return []
        chosen = text.split(",")
        for each in chosen:
            if each not in choices:
                raise argparse.ArgumentTypeError(f"choose from {', '.join(choices)}, got {each!r}")
        return chosen

    return parse


def shape(text: str) -> tuple[int, ...]:
    """A shape without a batch axis: 784, 28,28,1, 28x28x1 or (28, 28, 1)."""
    sizes = [part.strip() for part in text.strip("()[] ").rstrip(",").replace("x", ",").split(",")]
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"a shape must be positive integers, 784 or 28,28,1, got {text!r}")
    return tuple(map(int, sizes))


def positive(text: str) -> float:
    """A positive, finite number."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"it must be a positive, finite number, got {text!r}")
    return value


def finite(text: str) -> float:
    """A finite number."""
    value = _number(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"it must be a finite number, got {text!r}")
    return value


def count(text: str) -> int:
    """An integer from 0 on."""
    return _integer(text, "it", 0)


def at_least_one(text: str) -> int:
    """An integer from 1 on."""
    return _integer(text, "it", 1)


def batch(text: str) -> int:
    """A batch size, at least 4."""
    return _integer(text, "a batch size", 4)


def depth(text: str) -> int:
    """A number of layers, 2 to 10000."""
    return _integer(text, "a depth", 2, 10_000)


def _integer(text: str, what: str, least: int, most: int | None = None) -> int:
    # Python reads no more than 4300 digits.
    is_long = len(text) > _MOST_DIGITS
    got = f"{len(text)} characters" if is_long else repr(text)
    if is_long or not (text.isascii() and text.isdigit()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{what} must be an integer of at least {least}, got {got}")
    if most is not None and int(text) > most:
        raise argparse.ArgumentTypeError(f"{what} must be at most {most}, got {got}")
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
