"""Lengths of time, as a command line says them."""

import math

from train.config import ConfigError

NONE = "none"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str, option: str = "cell_timeout", off: str = NONE) -> float | None:
    """Read a duration: a number of seconds, or one with a unit; None for the word that stands for no limit, `off`.

    Raises:
        ConfigError: if it is neither, or not more than 0.

    >>> seconds("90"), seconds("30m"), seconds("1.5h"), seconds("none")
    (90.0, 1800.0, 5400.0, None)
    """
    if text == off:
        return None
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    try:
        found = float(number) * unit
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise ConfigError(
            f"`{option}` must be a time above 0, such as 90 (seconds), 30m or 2h, or {off}, got {text!r}."
        )
    return found
