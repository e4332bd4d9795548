"""The rules that fields of studies obey, by name; a ValueError says which field, what it holds and what to do."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxact.activations import Activation
from train import config


def check(study: Any, **more: Callable[[str, Any], None]) -> None:
    """Check every field whose name has a rule, and that what must fit together does.

    Args:
        study: a dataclass instance.
        **more: rules of the study's own fields; the others are those of `RULES`.

    Raises:
        ValueError: the first field that breaks its rule.
    """
    values = vars(study)
    for name, value in values.items():
        if rule := {**RULES, **more}.get(name):
            rule(name, value)
    _check_max_depth(values)
    if {"measure_every", "num_steps"} <= set(values) and values["num_steps"] % values["measure_every"]:
        steps, every = values["num_steps"], values["measure_every"]
        raise ValueError(
            f"`measure_every` must divide num_steps = {steps}, got {every}. "
            f"Use --num-steps {steps - steps % every or every}."
        )
    if {"optimizer", "num_steps"} <= set(values):
        values["optimizer"].check_budget(values["num_steps"])


def distinct(name: str, values: Sequence[Any]) -> None:
    """A tuple that holds at least one value, and none twice."""
    if not values:
        raise ValueError(f"`{name}` must hold at least one value, got none.")
    for value in values:
        if values.count(value) > 1:
            shown = value.name if isinstance(value, Activation) else value
            raise ValueError(f"`{name}` must not repeat a value, got {shown} twice.")


def count(name: str, value: int, *, least: int = 1, remedy: str = "") -> None:
    """An integer from `least` on."""
    if value < least:
        rule = "a positive integer" if least == 1 else f"at least {least}"
        raise ValueError(f"`{name}` must be {rule}, got {value}. {remedy}".rstrip())


def at_least(least: int, remedy: str = "") -> Callable[[str, Any], None]:
    """The rule that a count is at least so much."""
    return lambda name, value: count(name, value, least=least, remedy=remedy)


def positive(name: str, given: float | Iterable[float] | None) -> None:
    """A number that is positive and finite, None where the field allows it, or a tuple of distinct ones."""
    if isinstance(given, tuple):
        distinct(name, given)
    for value in given if isinstance(given, tuple) else (given,):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"`{name}` must be positive and finite, got {value}. Leave the field out for its default."
            )


def rates(name: str, given: float | Sequence[float]) -> None:
    """Learning rates: positive, and different numbers in float32, in which networks are trained."""
    positive(name, given)
    values = given if isinstance(given, tuple) else (given,)
    narrow = [float(np.float32(min(value, 1e38))) for value in values]
    for value, kept in zip(values, narrow, strict=True):
        if not 0 < kept < 1e38 or narrow.count(kept) > 1:
            raise ValueError(
                f"`{name}` must be positive, finite and different from each other in float32, got {value}. Use 0.01, "
                "for instance."
            )


def not_negative(name: str, value: float) -> None:
    """A number that is finite and at least 0."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` must be finite and not negative, got {value}. Use 0 for none.")


def among(known: Sequence[str]) -> Callable[[str, Any], None]:
    """The rule that a name, or each of a tuple of distinct names, is one that is known."""

    def rule(name: str, given: Any) -> None:
        if not isinstance(given, str):
            distinct(name, given)
        for value in (given,) if isinstance(given, str) else given:
            if value not in known:
                hint = config.hint(str(value), known, repr)
                raise ValueError(f"`{name}` must be among {', '.join(known)}, got {value!r}.{hint}")

    return rule


def count_or_auto(name: str, value: Any) -> None:
    """A positive integer, or "auto"."""
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(
            f"`{name}` must be a positive integer or auto, got {value!r}. Leave it out for auto."
        )


def _depths(name: str, depths: Sequence[int]) -> None:
    distinct(name, depths)
    for depth in depths:
        if depth < 1:
            raise ValueError(f"`{name}` must be positive integers, got {depth}. Use 1 for a single stage.")


def _check_max_depth(values: Mapping[str, Any]) -> None:
    most = values.get("max_depth")
    for depth in values.get("depths", ()):
        if most is not None and depth > most:
            raise ValueError(
                f"`depths` must not exceed max_depth = {most}, got {depth}. Raise --max-depth, or leave it out."
            )


def _seeds(name: str, seeds: Sequence[int]) -> None:
    distinct(name, seeds)
    for seed in seeds:
        if not 0 <= seed < 2**31:  # what a 32-bit key takes
            raise ValueError(f"`{name}` must lie between 0 and 2**31 - 1, got {seed}. Use 0, 1, 2 and so on.")


def _threshold(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"`{name}` is an accuracy in (0, 1], got {value}. Use 0.9 for 90 %.")


_COUNTS = (
    "width",
    "depth",
    "batch_size",
    "num_steps",
    "measure_every",
    "num_evaluate",
    "num_probes",
    "ascent_steps",
)
RULES: dict[str, Callable[[str, Any], None]] = {
    **dict.fromkeys(_COUNTS, count),
    "activations": distinct,
    "depths": _depths,
    "seeds": _seeds,
    "learning_rate": rates,
    "learning_rates": rates,
    "sigma_w": positive,
    "sigma_b": not_negative,
    "threshold": _threshold,
    "members_at_once": count_or_auto,
    "compute_dtype": among(("float32", "bfloat16")),
    "remat": among(("none", "layers")),
}
