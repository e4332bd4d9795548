"""From a name with parameters to an activation."""

from __future__ import annotations

import copyreg
import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any

from jaxact.activations._activation import Activation
from jaxact.activations._registry import ZOO, names
from jaxact.errors import ArgumentError


def parse(text: str) -> Activation:
    """Make the activation that a text names: "relu", "leaky_relu(0.2)", "elu(alpha=0.5)".

    Nothing in the text is evaluated; parameters are numbers, by position or by keyword.

    Args:
        text: a name of `names()`, with or without parameters. `parse(str(a)) == a` for every member `a`.

    Returns:
        The Activation.

    Raises:
        TypeError: if `text` is not a string.
        ValueError: if the name is unknown (the closest ones are listed), the text is not of this form, or a
            parameter is unknown, given twice, not a number, or outside its rule.

    >>> parse("leaky_relu(0.2)").lipschitz
    1.0
    >>> parse("gellu")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    jaxact.errors.ArgumentError: unknown activation 'gellu': did you mean gelu or ...? activations.names() lists all.
    """
    if not isinstance(text, str):
        raise TypeError(
            f"`text` must be a string such as 'leaky_relu(0.2)', got {type(text).__name__}. "
            "Use from_callable for a function."
        )
    match = re.fullmatch(r"\s*([^\s()]+)\s*(?:\(([^()]*)\))?\s*", text)
    if match is None:
        raise ValueError(f"an activation is written 'name' or 'name(number)', got {text!r}.")
    name, arguments = match[1], match[2]
    if name not in ZOO:
        close = difflib.get_close_matches(name.lower(), names(), n=3, cutoff=0.6)
        hint = f" did you mean {' or '.join(close)}?" if close else ""
        raise ArgumentError(
            f"unknown activation {name!r}:{hint}", "activations.names() lists all.", give="names"
        )
    entry = ZOO[name]
    if isinstance(entry, Activation):
        if arguments is not None and arguments.strip():
            raise ValueError(f"{name} takes no parameters, got {text!r}. Write {name!r}.")
        return entry
    return entry(**_parameters(name, list(inspect.signature(entry).parameters), arguments or ""))


def _parameters(name: str, known: list[str], arguments: str) -> dict[str, float]:
    values: dict[str, float] = {}
    pieces = arguments.split(",") if arguments.strip() else []
    for position, piece in enumerate(pieces):
        key, equals, number = piece.rpartition("=")
        key = key.strip()
        if not equals:
            if position >= len(known):
                raise ValueError(
                    f"{name} takes {len(known)} parameter ({', '.join(known)}), got ({arguments})."
                )
            key = known[position]
        if key not in known:
            raise ValueError(f"{name} has no parameter {key!r}; it has {', '.join(known)}.")
        if key in values:
            raise ValueError(f"`{key}` of {name} is given twice in ({arguments}).")
        try:
            values[key] = float(number)
        except ValueError:
            raise ValueError(f"`{key}` of {name} must be a number, got {number.strip()!r}.") from None
    return values


def _reduce(activation: Activation) -> tuple[Callable[..., Activation], tuple[Any, ...]]:
    """How an Activation is pickled; a member of the zoo by its name, since compiled functions cannot be."""
    try:
        if parse(activation.name) == activation:
            return parse, (activation.name,)
    except ValueError:
        pass
    return _rebuild, ({name: getattr(activation, name) for name in activation.__dataclass_fields__},)


def _rebuild(fields: dict[str, Any]) -> Activation:
    return Activation(**fields)


# Here and not in the type, which must not know the parser of its own members.
copyreg.pickle(Activation, _reduce)
