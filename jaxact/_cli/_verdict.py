"""What a ladder says of the Lipschitz constant, in one sentence."""

import math

from jaxact._cli._output import short
from jaxact.lipschitz import Ball, Box, Ladder, Rung

_TIGHT = 1.005
_ROUNDING = 1e-5  # of models that compute in float32 whatever they are given
_LOOSE = 1e3


def verdict(found: Ladder) -> str:
    """Between what the constant lies, and whether that says much."""
    upper, lower, log_ratio = found.upper, found.lower, found.log10_ratio
    where, most = _place(found.region), number(upper.value, upper.log10)
    if upper.log10 == -math.inf:
        return f"The Lipschitz constant {where} is 0: the outputs do not depend on the input there."
    if log_ratio is None:
        return f"The Lipschitz constant {where} is at most {most}; no slope was found to say how far below it lies."
    if log_ratio == math.inf:
        return f"The Lipschitz constant {where} is at most {most}; no place was found where the model has any slope."
    return _between(lower, most, where, log_ratio, power(log_ratio))


def _place(region: Ball | Box | None) -> str:
    return "over all inputs" if region is None else f"in the {'ball' if isinstance(region, Ball) else 'box'}"


def _between(lower: Rung, most: str, where: str, log_ratio: float, ratio: float) -> str:
    least = number(lower.value, lower.log10)
    if ratio < 1 - _ROUNDING:
        return (
            f"The slope attained, {least}, is above the certificate, {most}: the model's derivative is not that of its "
            "values (a custom rule, a straight-through estimator), or this is an error: please report it."
        )
    shown = f"10^{log_ratio:.1f}" if log_ratio > 4 else f"{ratio:.4g}"
    start = f"upper / lower = {shown}: the Lipschitz constant {where}"
    if ratio < _TIGHT:
        return f"{start} is {most}, known to {100 * max(ratio - 1, _ROUNDING):.2g} %."
    between = f"{start} lies between {least}, which is attained, and {most}, which no pair of inputs exceeds"
    if ratio > _LOOSE:
        return f"{between}; so far apart, the certificate says little of the model."
    return f"{between}; which of the two is nearer is not known."


def number(value: float | str | None, log10: float | str | None) -> str:
    """A value in few digits, by its logarithm where it exceeds float64.

    >>> number(2.0, 0.30103), number("inf", 400.0), number(None, None)
    ('2', '10^400.0', '-')
    """
    if value is None or log10 is None:
        return "-"
    return short(float(value)) if math.isfinite(float(value)) else f"10^{float(log10):.1f}"


def power(log10: float) -> float:
    """10^log10, inf where that exceeds float64."""
    return 10**log10 if log10 < 308 else math.inf
