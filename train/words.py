"""Words for sentences: lists, counts, numbers short enough to read, and whose they are."""

import math
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["capital", "count", "extent", "extremes", "listed", "lower", "mean_sd", "percent", "power"]


def listed(words: Sequence[str], most: int = 10) -> str:
    """Words with commas and an "and"; of many the first, and how many more.

    >>> listed(["relu", "tanh", "gelu"]), listed(["a", "b", "c"], most=1), listed([])
    ('relu, tanh and gelu', 'a and 2 more', '')
    """
    if len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def count(things: Sequence[object] | int, noun: str) -> str:
    """How many, with the noun in its number.

    >>> count(1, "seed"), count(["a", "b"], "activation")
    ('1 seed', '2 activations')
    """
    number = things if isinstance(things, int) else len(things)
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def lower(text: str) -> str:
    """The text with a small first letter, unless its first word is an abbreviation.

    >>> lower("Plain"), lower("BN after all")
    ('plain', 'BN after all')
    """
    return text if text[:2].isupper() else text[:1].lower() + text[1:]


def capital(text: str) -> str:
    """The text with a capital first letter.

    >>> capital("pre-activation")
    'Pre-activation'
    """
    return text[:1].upper() + text[1:]


def power(log10: float) -> str:
    """A number given by its log10.

    >>> power(-12), power(0.5), power(math.inf), power(-math.inf), power(math.nan)
    ('1e-12', '3.16', 'infinity', '0', '')
    """
    if math.isnan(log10):
        return ""
    if math.isinf(log10):
        return "infinity" if log10 > 0 else "0"
    return f"1e{log10:.0f}" if abs(log10) >= 4 else f"{10**log10:.3g}"


def percent(share: float, digits: int = 3) -> str:
    """A share in percent.

    >>> percent(0.9), percent(0.125)
    ('90 %', '12.5 %')
    """
    return f"{100 * share:.{digits}g} %"


def mean_sd(sample: Sequence[float] | np.ndarray, form: str = ".2f") -> str:
    """Mean and standard deviation (n - 1) of the numbers that are not NaN.

    >>> mean_sd([0.9, 1.0]), mean_sd([0.9, math.nan]), mean_sd([])
    ('0.95 ± 0.07', '0.90', '')
    """
    numbers = np.asarray(sample, dtype=float)
    numbers = numbers[~np.isnan(numbers)]
    if len(numbers) < 2:
        return "".join(format(number, form) for number in numbers)
    return f"{numbers.mean():{form}} \N{PLUS-MINUS SIGN} {numbers.std(ddof=1):{form}}"


def extent(values: Sequence[float] | np.ndarray, form: str = ".2g") -> str:
    """From the smallest to the largest.

    >>> extent([3.0, 1.0, 2.0])
    '1 to 3'
    """
    return f"{np.min(values):{form}} to {np.max(values):{form}}"


def extremes(
    names: Sequence[str], values: Sequence[float] | np.ndarray, say: Callable[[float], str] = power
) -> str:
    """From the smallest to the largest with whose they are; their median where both are said alike.

    >>> extremes(["relu", "tanh"], [-6.0, 0.0]), extremes(["relu", "tanh"], [2.0, 2.0001])
    ('1e-6 (relu) to 1 (tanh)', '100')
    """
    least, most = int(np.argmin(values)), int(np.argmax(values))
    low, high = say(values[least]), say(values[most])
    return (
        say(float(np.median(values))) if low == high else f"{low} ({names[least]}) to {high} ({names[most]})"
    )
