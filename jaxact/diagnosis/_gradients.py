"""What the second moment of a gradient is on its way back, and what two positions of it have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Gradient(NamedTuple):
    """What is known of an array's gradient.

    Attributes:
        second: mean square.
        across: the mean product of the same feature at two positions of one input.
        profile: for each axis of positions the second moment along it, over its mean; None where it is even.
        law: (values of the array, mean square of the gradient of entries that have them, over its mean); None where
            the gradient does not depend on the value.
        rows: of scores [own pair]: the mean product at two keys of one query, over the mean square; None elsewhere.
    """

    second: Any = 0.0
    across: Any = 0.0
    profile: tuple[np.ndarray, ...] | None = None
    law: tuple[np.ndarray, np.ndarray] | None = None
    rows: Any = None


class Gain(NamedTuple):
    """What an edge makes of a gradient where more than one factor is to be told.

    Attributes:
        number: () -> what the second moment gains where positions have nothing in common.
        back: gradient after -> gradient before.
    """

    number: Callable[[], Any]
    back: Callable[[Gradient], Gradient]


def passed(gain: Any, gradient: Gradient, *, is_same_size: bool) -> Gradient:
    """The gradient before an edge; one number multiplies all that is known of it."""
    if isinstance(gain, Gain):
        return gain.back(gradient)
    factor = gain()
    profile = gradient.profile if is_same_size else None
    return Gradient(factor * gradient.second, factor * gradient.across, profile, None, gradient.rows)


def number_of(gain: Any) -> float:
    """The factor alone."""
    return float(np.mean(gain.number() if isinstance(gain, Gain) else gain()))


def together(one: Gradient, other: Gradient) -> Gradient:
    """The sum of gradients that came by independent ways."""
    old, new = float(np.mean(one.second)), float(np.mean(other.second))
    if old == 0 or new == 0:
        return other if old == 0 else one
    share = old / (old + new)
    return Gradient(
        one.second + other.second,
        one.across + other.across,
        _mixed(one.profile, other.profile, share),
        _mixed_laws(one.law, other.law, share),
    )


def _mixed(one: Any, other: Any, share: float) -> Any:
    if one is None or other is None or [x.size for x in one] != [x.size for x in other]:
        return None
    return tuple(share * x + (1 - share) * y for x, y in zip(one, other, strict=True))


def _mixed_laws(one: Any, other: Any, share: float) -> Any:
    if one is None and other is None:
        return None
    values = (one or other)[0]
    x, y = (1.0 if law is None else np.interp(values, *law) for law in (one, other))
    return values, share * x + (1 - share) * y


def coherent(times: float, gradient: Gradient) -> Gradient:
    """Of an entry that stands at `times` positions: the gradients there add up by what they have in common."""
    second = times * (gradient.second + (times - 1) * gradient.across)
    return Gradient(second, times**2 * gradient.across)


def scaled(factor: float, gradient: Gradient, of_across: float | None = None) -> Gradient:
    """One number times what is known; another one times what positions have in common."""
    across = factor if of_across is None else of_across
    return Gradient(factor * gradient.second, across * gradient.across)
