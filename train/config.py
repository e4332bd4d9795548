"""A config file: how it becomes an experiment, and how an experiment is written down and found again."""

import ast
import dataclasses
import difflib
import enum
import importlib.util
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from train.experiment import Experiment

ROOT = Path(__file__).resolve().parent.parent
_EXPERIMENTS = "train.experiments."
_METHODS = ("smoke", "cells", "run", "figures", "findings", "tables")


class ConfigError(ValueError):
    """Something the user wrote cannot be run; the message names it and says what to do."""


class StorageError(OSError):
    """A file of a run could not be written; what was finished before is kept and can be resumed."""


def load(path: str | Path) -> Experiment:
    """Import a config file, a Python file that defines `get_config() -> Experiment`, and call that.

    Raises:
        ConfigError: if the file does not exist, does not import, has no `get_config`, or if that raises or returns
            something else than a frozen dataclass with the methods of `Experiment`; with the line at fault.
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
    """List the config files of a folder with the first line of each one's docstring; imports none of them.

    Args:
        directory: by default `configs` here, or beside the package.
    """
    if directory is None:
        directory = Path("configs") if Path("configs").is_dir() else ROOT / "configs"
    return {path: _summary(path) for path in sorted(directory.glob("*.py")) if not path.name.startswith("_")}


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Write an experiment's fields as JSON values: activations by name, tuples as lists, classes by path.

    They are equal for equal experiments, and a round trip through JSON does not change them.
    """
    fields = dataclasses.fields(experiment)  # type: ignore[arg-type]  # a Protocol cannot say "dataclass"
    return {field.name: _plain(getattr(experiment, field.name)) for field in fields}


def differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Name the fields in which a run's resolved config differs from a given one, with both values.

    Returns:
        One line a differing field, one within another as `outer.inner`; empty if the configs are equal.
    """
    old, new = dict(flat(stored)), dict(flat(given))
    return [
        f"`{name}` is {_shown(old, name)} in the run and {_shown(new, name)} now"
        for name in old | new
        if old.get(name, ...) != new.get(name, ...)  # the ellipsis equals no JSON value: absent
    ]


def choices(value: Any) -> Mapping[str, type]:
    """Return the dataclasses that could stand in a value's place, by name: its class's `choices()`, if it has any."""
    is_offered = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return type(value).choices() if is_offered and hasattr(type(value), "choices") else {}


def choice_name(value: Any) -> str:
    """Return the name by which a dataclass instance is chosen among its `choices`; else that of its class."""
    names = [name for name, kind in choices(value).items() if kind is type(value)]
    return names[0] if names else type(value).__qualname__


def type_name(experiment: Experiment, path: Path) -> str:
    """Name the type of what `load(path)` returned so that a stored result can find it again, for figures and report.

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


def import_type(name: str, directory: Path, *, trust: bool = False) -> type[Experiment]:
    """Import the type that `type_name` named, without running code that came with the run folder.

    A class of the config's own is taken from the config of `configs/` that has the same bytes as the run's copy; the
    copy itself is run only where it is trusted.

    Args:
        name: what a stored result says.
        directory: its run folder.
        trust: whether the folder's config.py may be run.

    Raises:
        ConfigError: if the name is of another form, nothing of this name can be imported or is an experiment, or only
            the run folder's own code defines it.
    """
    match = re.fullmatch(r"(config|train\.experiments(?:\.[A-Za-z_]\w*)+):([A-Za-z_]\w*)", name)
    if match is None:
        raise ConfigError(
            f"the stored experiment type {name!r} is not one this program imports. It must be a class of "
            "train.experiments or of the run's own config file."
        )
    try:
        is_own = match[1] == "config"
        module = _import_file(_source(directory, trust)) if is_own else importlib.import_module(match[1])
        kind = getattr(module, match[2])
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the stored experiment type {name!r} cannot be imported ({error}). "
            "Use the version of the code that made the run: its attribute `git_commit` names it."
        ) from error
    if not isinstance(kind, type) or not all(callable(getattr(kind, method, None)) for method in _METHODS):
        raise ConfigError(
            f"the stored experiment type {name!r} is no experiment, so nothing can be drawn by it."
        )
    return kind


def _source(directory: Path, trust: bool) -> Path:
    """The file that defines a run's own type: an installed config, or the run folder's copy where it is trusted."""
    own = directory / "config.py"
    if trust or not own.is_file():
        return own
    installed = (path for path in find(ROOT / "configs") if path.read_bytes() == own.read_bytes())
    if (same := next(installed, None)) is None:
        raise ConfigError(
            f"the figures of this run are drawn by code of its own, {own}, which could do anything to this machine "
            "and is none of the installed configs. Read it; if you trust it, add --trust."
        )
    return same


def closest(word: str, known: Iterable[str], num: int = 3) -> list[str]:
    """Return up to `num` of the known words that `word` may have been meant to be, the best first."""
    known = list(known)
    found = (difflib.get_close_matches(word, known, num, cutoff) for cutoff in (0.5, 0.3))
    return next(filter(None, found), [])


def hint(word: str, known: Iterable[str], written: Callable[[str], str] = str) -> str:
    """Ask, at the end of a message, whether the closest of the known words was meant; empty if none is close."""
    return "".join(f" Did you mean {written(close)}?" for close in closest(word, known, 1))


def _import_file(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        what = "is not a Python file" if path.exists() else "does not exist"
        raise ConfigError(f"the config {path} {what}. {_suggestion(path)}")
    name = _module_name(path)
    spec: Any = importlib.util.spec_from_file_location(name, path)  # never None for a .py file
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
    studies = {study.stem: str(study) for study in find()}
    close = closest(path.stem, studies) or studies
    named = " or ".join(studies[stem] for stem in close)
    return f"Did you mean {named}?" if named else "Give the path of a config file."


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
    lines = [f"  line {f.lineno}: {f.line}" for f in frames[-1:]]
    return "\n".join([*lines, f"  {kind}: {error}"])


def _summary(path: Path) -> str:
    try:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError) as error:
        return f"(does not parse: {error})"
    return (text or "").split("\n", 1)[0]


def _plain(value: Any) -> Any:
    # A config that holds an activation has imported them; one that does not must not pay for the import.
    activations = sys.modules.get("jaxact.activations")
    if isinstance(value, enum.Enum) or (activations and isinstance(value, activations.Activation)):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
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
    return str(value) if isinstance(value, Path) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def flat(fields: Mapping[str, Any], outer: str = "") -> Iterator[tuple[str, Any]]:
    """List the fields of a resolved config with their values, one within another as `outer.inner`."""
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{outer}{name}.")
        else:
            yield f"{outer}{name}", value


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "absent"
