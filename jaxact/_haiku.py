"""Haiku's pairs (init, apply) as functions of parameters and a batch, told by their fields: nothing is imported."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["applied", "is_transformed"]


def is_transformed(value: Any) -> bool:
    """Whether a value is what `hk.transform` or `hk.transform_with_state` returns."""
    return isinstance(value, tuple) and getattr(value, "_fields", ()) == ("init", "apply")


def applied(transformed: Any, variables: Any) -> tuple[Callable[[Any, Any], tuple[Any, Any]], Any, Any]:
    """(function (params, batch) -> (output, state after it), params, state).

    Args:
        transformed: with or without state, with or without `hk.without_apply_rng`; its key is None.
        variables: params; (params, state) with state.

    Raises:
        TypeError: with state, and no pair.
    """
    names = list(inspect.signature(transformed.apply).parameters)
    key = (None,) if "rng" in names[1:3] else ()
    if names[1:2] != ["state"]:
        return (lambda params, batch: (transformed.apply(params, *key, batch), None)), variables, None
    if not isinstance(variables, tuple | list) or len(variables) != 2:
        raise TypeError(
            f"must be the pair (params, state) of a function with state, got {type(variables).__name__}."
        )
    params, state = variables
    return (lambda params, batch: transformed.apply(params, state, *key, batch)), params, state
