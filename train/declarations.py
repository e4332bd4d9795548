"""What a study declares, held against itself before anything runs: every fault that can be read off the class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_NAME = re.compile(r"[A-Za-z]\w*")  # of a variable: it names files too
_TIMERS = ("compile_seconds", "run_seconds")


def faults(study: Any, described: Mapping[str, Any]) -> list[str]:
    """What a study declares and cannot be, a sentence each, with the remedy.

    Args:
        study: an instance of a subclass of `train.study.Study`.
        described: the dimensions that have a `Coordinate`.
    """
    lacking = [name for name in ("swept", "variables") if not isinstance(getattr(study, name, None), Mapping)]
    if lacking:
        return [f"It declares no `{name}`: a mapping, see train/study.py." for name in lacking]
    found = [*_of_swept(study, described)]
    for name, variable in study.variables.items():
        found += _of_variable(study, name, variable, described)
    return found


def _of_swept(study: Any, described: Mapping[str, Any]) -> Iterator[str]:
    for dim, field in study.swept.items():
        values = getattr(study, field, None)
        if not isinstance(values, tuple | list):
            yield f"`swept` names the field `{field}` for `{dim}`, which must be a tuple of values, got {values!r}."
        if dim not in described:
            yield f'`swept` has the dimension `{dim}`: add it to `coordinates`, {{"{dim}": Coordinate("what it is")}}.'


def _of_variable(study: Any, name: str, variable: Any, described: Mapping[str, Any]) -> Iterator[str]:
    dims = (*(study.swept if variable.of_cell else ()), *variable.dims)
    if not _NAME.fullmatch(name) or name in _TIMERS:
        yield f"A variable cannot be called {name!r}: use letters, digits and _, and not {' or '.join(_TIMERS)}."
    for dim in variable.dims:
        if dim not in described:
            yield f'`{name}` has the dimension `{dim}`: add it to `coordinates`, {{"{dim}": Coordinate("what it is")}}.'
        if dims.count(dim) > 1:
            yield f"`{name}` has the dimension `{dim}` twice: `dims` come after those that are swept."
        if dim in study.within and not hasattr(study, study.within[dim]):
            yield f"`{name}` has the dimension `{dim}`, and there is no field `{study.within[dim]}` to label it."
    for field in variable.fields:
        if not hasattr(study, field):
            yield f"`{name}` keeps the field `{field}`, which there is not."
    try:
        variable.long_name.format_map(vars(study))
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        yield f"The long name of `{name}` is a template that the fields do not fill: {error!r}."
    yield from _of_theory(study, name, variable, dims)


def _of_theory(study: Any, name: str, variable: Any, dims: tuple[str, ...]) -> Iterator[str]:
    if variable.theory is None:
        return
    theory = study.variables.get(variable.theory)
    if theory is None or variable.theory == name:
        yield f"`{name}` names the theory `{variable.theory}`, which must be another of `variables`."
        return
    beyond = {*(study.swept if theory.of_cell else ()), *theory.dims} - set(dims)
    if beyond:
        yield f"The theory of `{name}` has the dimensions {sorted(beyond)}, which `{name}` lacks."
