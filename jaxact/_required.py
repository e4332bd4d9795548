"""What a model's call needs beyond its inputs, such as a mode, and how it is given."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jaxact.errors import ArgumentError

#: what a mode's argument is in inference, as it is written
_INFERENCE = dict.fromkeys(("train", "training", "is_training"), "False") | dict.fromkeys(
    ("deterministic", "use_running_average", "inference"), "True"
)


def required(function: Callable[..., Any], count: int) -> list[str]:
    """The arguments after the first `count` that a call must give."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # of builtins, which say nothing
        return []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    rest = [
        each for k, each in enumerate(parameters) if k >= count or each.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    return [each.name for each in rest if each.default is each.empty and each.kind not in variable]


def _passed_on(function: Callable[..., Any], error: TypeError) -> list[str]:
    """What a function of any keywords, as a Linen module's `apply`, lacked where it handed them on."""
    try:
        kinds = {each.kind for each in inspect.signature(function).parameters.values()}
    except (TypeError, ValueError):
        return []
    missing = re.search(r"missing \d+ required [\w-]+ arguments?: (.*)", str(error))
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    return re.findall(r"'(\w+)'", missing[1]) if missing and takes_any else []


def written(names: Sequence[str]) -> str:
    """What inference gives for arguments, as they are written in a call."""
    return ", ".join(f"{name}={_INFERENCE.get(name, '...')}" for name in names)


@contextlib.contextmanager
def told_what_is_missing(function: Callable[..., Any], count: int, form: str) -> Iterator[None]:
    """Say how a model that needs more than its inputs is called: `form` with the other arguments in place of {}."""
    try:
        yield
    except TypeError as error:
        names = required(function, count) or _passed_on(function, error)
        if not names:
            raise
        raise ArgumentError(
            f"must take (params, inputs) alone, but needs {', '.join(f'`{name}`' for name in names)} too.",
            f"Give it in a function, with its params: {form.format(written(names))}.",
            argument="fn",
        ) from error
