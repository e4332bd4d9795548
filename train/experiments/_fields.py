"""The rules that fields of several experiments obey; each raises a ValueError that names the field and the value."""

import math
from typing import Any

from jaxact.activations import Activation


def check_distinct(experiment: Any, *names: str) -> None:
    """Tuples that hold at least one value, and none twice."""
    for name in names:
        values = getattr(experiment, name)
        if not values:
            raise ValueError(f"`{name}` must hold at least one value, got none.")
        for value in values:
            if values.count(value) > 1:
                shown = value.name if isinstance(value, Activation) else value
                raise ValueError(f"`{name}` must not repeat a value, got {shown} twice.")


def check_counts(experiment: Any, *names: str) -> None:
    """Integers from 1 on."""
    for name in names:
        if getattr(experiment, name) < 1:
            raise ValueError(f"`{name}` must be a positive integer, got {getattr(experiment, name)}.")


def check_positive(experiment: Any, *names: str) -> None:
    """Numbers, or tuples of numbers, that are positive and finite."""
    for name in names:
        given = getattr(experiment, name)
        for value in given if isinstance(given, tuple) else (given,):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"`{name}` must be positive and finite, got {value}.")


def check_not_negative(experiment: Any, *names: str) -> None:
    """Numbers that are finite and at least 0."""
    for name in names:
        value = getattr(experiment, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"`{name}` must be finite and not negative, got {value}.")


def check_depths(experiment: Any) -> None:
    """`depths`, and `max_depth` where there is one."""
    max_depth = getattr(experiment, "max_depth", None)
    for depth in experiment.depths:
        if depth < 1:
            raise ValueError(f"`depths` must be positive integers, got {depth}. Use 1 for a single stage.")
        if max_depth is not None and depth > max_depth:
            raise ValueError(
                f"`depths` must not exceed max_depth = {max_depth}, got {depth}. "
                "Raise --max-depth, or leave it out."
            )


def check_seeds(experiment: Any) -> None:
    """`seeds`: distinct, and what a 32-bit key takes."""
    check_distinct(experiment, "seeds")
    for seed in experiment.seeds:
        if not 0 <= seed < 2**31:
            raise ValueError(f"`seeds` must lie between 0 and 2**31 - 1, got {seed}.")


def check_momentum(experiment: Any) -> None:
    """`momentum`."""
    if not 0 <= experiment.momentum < 1:
        raise ValueError(f"`momentum` must lie in [0, 1), got {experiment.momentum}.")


def check_threshold(experiment: Any) -> None:
    """`threshold`."""
    if not 0 < experiment.threshold <= 1:
        raise ValueError(f"`threshold` is an accuracy in (0, 1], got {experiment.threshold}.")


def check_measure_every(experiment: Any) -> None:
    """`measure_every`, which divides `num_steps`."""
    steps, every = experiment.num_steps, experiment.measure_every
    if steps % every:
        raise ValueError(
            f"`measure_every` must divide num_steps = {steps}, got {every}. "
            f"Use --num-steps {steps - steps % every or every}."
        )
