"""A config file: how it becomes an experiment, and how an experiment is written down and found again."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import importlib
import importlib.util
import json
import linecache
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from train.experiment import Experiment

ROOT = Path(__file__).resolve().parent.parent
_EXPERIMENTS = "train.experiments."
_METHODS = ("smoke", "cells", "run", "figures", "findings", "tables")


class ConfigError(ValueError):
    """Something the user wrote cannot be run; the message names it and says what to do."""


def load(path: str | Path) -> Experiment:
    """Import a config file and call its `get_config`.

    Args:
        path: a Python file that defines `get_config() -> Experiment`.

    Returns:
        The experiment: an instance of a frozen dataclass with the methods of `Experiment`.

    Raises:
        ConfigError: if the file does not exist, does not import, has no `get_config`, or if that raises or
            returns something else; with the line at fault where there is one.
    """
    path = Path(path)
    module = _import_file(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(
            f"{path} defines no function `get_config`. Add `def get_config(): return YourExperiment(...)`."
        )
    try:
        experiment = get_config()
    except Exception as error:
        raise ConfigError(f"{path}: `get_config()` failed.\n{_at_fault(path, error)}") from error
    _check_experiment(path, experiment)
    return experiment


def find(directory: Path | None = None) -> dict[Path, str]:
    """List the studies: the config files of a folder and the first line of each one's docstring.

    Args:
        directory: the folder; by default `configs` here, or beside the package.

    Returns:
        Path to summary, sorted; without importing any of them.
    """
    if directory is None:
        directory = Path("configs") if Path("configs").is_dir() else ROOT / "configs"
    return {path: _summary(path) for path in sorted(directory.glob("*.py")) if not path.name.startswith("_")}


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Write an experiment's fields as JSON values: activations by name, tuples as lists, classes by path.

    Args:
        experiment: a dataclass instance.

    Returns:
        Field to value, equal for equal experiments and unchanged by a round trip through JSON.
    """
    fields = dataclasses.fields(experiment)  # type: ignore[arg-type]  # a Protocol cannot say "dataclass"
    return {field.name: _plain(getattr(experiment, field.name)) for field in fields}


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Name the fields in which two resolved configs differ, with both values.

    Args:
        stored: the fields of a run, from `resolved` or from its config.json.
        given: the fields to compare.

    Returns:
        One line a differing field, one within another as `outer.inner`; empty if the configs are equal.
    """
    return [
        f"`{name}` is {stored_value} in the run and {given_value} now"
        for name, stored_value, given_value in _differing(stored, given)
    ]


def choices(value: Any) -> Mapping[str, type]:
    """Return the dataclasses that could stand in a value's place, by name: what its class's `choices()` gives.

    Args:
        value: of a field; one without alternatives gives an empty mapping.
    """
    is_offered = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return type(value).choices() if is_offered and hasattr(type(value), "choices") else {}


def choice_name(value: Any) -> str:
    """Return the name by which a dataclass instance is chosen among its `choices`; else that of its class."""
    names = [name for name, kind in choices(value).items() if kind is type(value)]
    return names[0] if names else type(value).__qualname__


def type_name(experiment: Experiment, path: Path) -> str:
    """Name an experiment's type so that a stored result can find it again, for figures and report.

    Args:
        experiment: what `load(path)` returned.
        path: its config file.

    Returns:
        "train.experiments.<module>:<class>", or "config:<class>" for one defined in the config file itself.

    Raises:
        ConfigError: for a type defined elsewhere or inside a function: a later `report` could not import it.
    """
    kind = type(experiment)
    module = "config" if kind.__module__ == _module_name(path) else kind.__module__
    if (module != "config" and not module.startswith(_EXPERIMENTS)) or "." in kind.__qualname__:
        raise ConfigError(
            f"{path}: the experiment's type {kind.__module__}.{kind.__qualname__} cannot be found again by "
            "`report`. Define the class at the top level of the config file or of a module in "
            "train/experiments (a subclass will do)."
        )
    return f"{module}:{kind.__qualname__}"


def import_type(name: str, directory: Path) -> type[Experiment]:
    """Import the type that `type_name` named.

    Args:
        name: "train.experiments.<module>:<class>" or "config:<class>".
        directory: the run folder, which holds a copy of its config file.

    Returns:
        The class.

    Raises:
        ConfigError: if the name is of another form, or nothing of this name can be imported.
    """
    match = re.fullmatch(r"(config|train\.experiments(?:\.[A-Za-z_]\w*)+):([A-Za-z_]\w*)", name)
    if match is None:
        raise ConfigError(
            f"the stored experiment type {name!r} is not one this program imports. It must be a class of "
            "train.experiments or of the run's own config file."
        )
    try:
        is_own = match[1] == "config"
        module = _import_file(directory / "config.py") if is_own else importlib.import_module(match[1])
        kind = getattr(module, match[2])
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the stored experiment type {name!r} cannot be imported ({error}). "
            "Use the version of the code that made the run: its attribute `git_commit` names it."
        ) from error
    return kind


def closest(word: str, known: Iterable[str], num: int = 3) -> list[str]:
    """Return up to `num` of the known words that `word` may have been meant to be, the best first."""
    known = list(known)
    return difflib.get_close_matches(word, known, n=num, cutoff=0.5) or difflib.get_close_matches(
        word, known, n=num, cutoff=0.3
    )


def _import_file(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        what = "is not a Python file" if path.exists() else "does not exist"
        raise ConfigError(f"the config {path} {what}. {_suggestion(path)}")
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Under this name, and before it runs: dataclasses and tyro look their module up by name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"the config {path} does not import.\n{_at_fault(path, error)}") from error
    return module


def _module_name(path: Path) -> str:
    return f"_config_{path.stem}"


def _suggestion(path: Path) -> str:
    studies = [str(study) for study in find()]
    if not studies:
        return "Give the path of a config file."
    by_stem = {Path(study).stem: study for study in studies}
    close = [by_stem[stem] for stem in closest(path.stem, by_stem)] or studies
    return f"Did you mean {' or '.join(close)}?"


def _check_experiment(path: Path, experiment: Any) -> None:
    lacking = [method for method in _METHODS if not callable(getattr(experiment, method, None))]
    kind = type(experiment).__name__
    if isinstance(experiment, type):
        problem = f"the class {experiment.__name__}, not an instance. Call it: {experiment.__name__}()"
    elif not dataclasses.is_dataclass(experiment):
        problem = f"{experiment!r} ({kind}), not an experiment. Return a frozen dataclass"
    elif lacking:
        problem = f"a {kind}, which lacks {', '.join(lacking)}. Give it these methods"
    elif not type(experiment).__dataclass_params__.frozen:  # type: ignore[union-attr]
        problem = f"a {kind}, which can be changed. Decorate it: @dataclass(frozen=True)"
    else:
        return
    raise ConfigError(
        f"{path}: `get_config()` returned {problem}; train/experiment.py says what an experiment is."
    )


def _at_fault(path: Path, error: BaseException) -> str:
    kind, file = type(error).__name__, os.path.abspath(path)
    if isinstance(error, SyntaxError) and error.filename == file:
        return f"  line {error.lineno}: {(error.text or '').strip()}\n  {kind}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    lines = [f"  line {f.lineno}: {linecache.getline(file, f.lineno or 0).strip()}" for f in frames[-1:]]
    return "\n".join([*lines, f"  {kind}: {error}"])


def _summary(path: Path) -> str:
    import ast

    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError) as error:
        return f"(does not parse: {error})"
    return (text or "").split("\n", 1)[0]


def _plain(value: Any) -> Any:
    # A config that holds an activation has imported them; one that does not must not pay for the import.
    activations = sys.modules.get("jaxact.activations")
    if activations is not None and isinstance(value, activations.Activation):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value.name if isinstance(value, enum.Enum) else value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if hasattr(value, "tolist"):  # numpy and JAX arrays and scalars
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted((_plain(each) for each in value), key=json.dumps)
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        return f"{value.__module__}:{value.__qualname__}"
    if dataclasses.is_dataclass(value):
        fields = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"type": choice_name(value), **fields}
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, Path) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _differing(stored: Mapping[str, Any], given: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for name in dict.fromkeys([*stored, *given]):
        both = stored.get(name), given.get(name)
        if isinstance(both[0], Mapping) and isinstance(both[1], Mapping):
            for inner, stored_value, given_value in _differing(both[0], both[1]):
                yield f"{name}.{inner}", stored_value, given_value
        elif name not in stored or name not in given or both[0] != both[1]:
            yield name, _shown(stored, name), _shown(given, name)


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "absent"
