"""How the words of a command line become options and the fields of dataclasses, with a hint where one is misspelt.

A field whose value's class offers `choices()`, names to dataclasses that need no argument, is chosen by
`--FIELD NAME`; `--FIELD.SUBFIELD VALUE` sets the fields of what is chosen, in whatever order.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from train import config
from train.config import ConfigError

Option = tuple[str, Any, dict[str, Any]]
"""Name, default and words for `tyro.conf.arg`; one whose default is `dataclasses.MISSING` is positional."""


class _RefusedError(Exception):
    """A value's own message; not a ValueError, which tyro would frame, or replace where a list is read."""

    def __init__(self, message: str, word: str | None = None):
        super().__init__(message)
        self.word = word


def read(words: Sequence[str], *options: Option, prog: str, description: str) -> Any:
    """Read words into an object with one attribute an option; a default that is a dataclass instance field by field.

    Raises:
        ConfigError: for a value that a dataclass or a list of alternatives refuses.
        SystemExit: after help, or after a message of tyro's.
    """
    import tyro

    try:
        options = tuple((name, _chosen(default, words), settings) for name, default, settings in options)
        held = [default for _, default, _ in options if dataclasses.is_dataclass(default)]
        choices = [option for instance in held for option in _choice_options(instance)]
        fields = [_field(*option) for option in (*choices, *options)]
        return tyro.cli(
            dataclasses.make_dataclass("Options", fields, frozen=True, kw_only=True),
            args=list(words),
            prog=prog,
            description=description,
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.SuppressFixed),
            registry=_constructors(held),
        )
    except _RefusedError as error:
        option = _option_of(error.word, words)
        raise ConfigError(f"{option}: {error}" if option else str(error)) from error
    except (ValueError, TypeError) as error:  # from a __post_init__
        raise ConfigError(str(error)) from error


def _field(name: str, default: Any, settings: Mapping[str, Any]) -> tuple[str, Any, Any]:
    import tyro

    kind = tyro.conf.Positional[str] if default is dataclasses.MISSING else type(default)
    return name, Annotated[kind, tyro.conf.arg(**settings)], dataclasses.field(default=default)


def _chosen(value: Any, words: Sequence[str]) -> Any:
    """Put what `--FIELD NAME` chooses into a dataclass's fields of alternatives: its type tells tyro its fields."""
    given = _given(words)
    for field, choices in _alternatives(value).items():
        for name in [first for option, first in given if option == field and first is not None][-1:]:
            if name not in choices:
                raise ConfigError(f"`{field}` {_must_be_one_of(name, choices)}")
            value = dataclasses.replace(value, **{field: _exchanged(getattr(value, field), name, choices)})
        for option, _ in given:
            _check_subfield(option, field, getattr(value, field), choices)
    return value


def _exchanged(old: Any, name: str, choices: Mapping[str, type]) -> Any:
    """The choice of a name: the old one itself if it is that, else a new one with the fields that all choices have."""
    if type(old) is choices[name]:
        return old
    common = set.intersection(*(set(_field_names(kind)) for kind in choices.values()))
    return choices[name](**{field: getattr(old, field) for field in common})


def _alternatives(value: Any) -> dict[str, Mapping[str, type]]:
    names = _field_names(value) if dataclasses.is_dataclass(value) else []
    offered = {name: config.choices(getattr(value, name)) for name in names}
    return {name: choices for name, choices in offered.items() if choices}


def _choice_options(instance: Any) -> Iterable[Option]:
    """The options `--FIELD NAME`, which `_chosen` has read: here for help and for hints at misspelt words."""
    for field, choices in _alternatives(instance).items():
        described = "; ".join(f"{name} ({', '.join(_field_names(kind))})" for name, kind in choices.items())
        settings = {"metavar": f"{{{','.join(choices)}}}", "help": f"with the fields of each: {described}"}
        yield field, config.choice_name(getattr(instance, field)), settings


def _given(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """The options among the words, with underscores, and the first word of each one's value, if it has one."""
    found = []
    for word, following in zip(words, [*words, "-"][1:], strict=True):
        if word.startswith("--"):
            option, has_value, value = word[2:].partition("=")
            first = None if following.startswith("-") else following
            found.append((option.replace("-", "_"), value if has_value else first))
    return found


def _check_subfield(option: str, field: str, value: Any, choices: Mapping[str, type]) -> None:
    """Refuse a field that only other choices have; a misspelt one is left to tyro."""
    outer, _, inner = option.partition(".")
    subfield, own = inner.removeprefix("no_"), _field_names(value)
    owners = [name for name, kind in choices.items() if subfield in _field_names(kind)]
    if outer == field and owners and subfield not in own:
        raise ConfigError(
            f"`{field}.{subfield}` is a field of {', '.join(owners)}, not of {config.choice_name(value)}. "
            f"Use --{field.replace('_', '-')} {owners[0]}, or one of its own fields: {', '.join(own)}."
        )


def _field_names(dataclass: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(dataclass)]


def _option_of(value: str | None, words: Sequence[str]) -> str | None:
    """The option of which a word among the words is a value."""
    option = None
    for word in words:
        option = word.partition("=")[0] if word.startswith("--") else option
        if value is not None and (word == value or word.endswith(f"={value}")):
            return option
    return None


def _constructors(held: Sequence[Any]) -> Any:
    """Teach tyro what it does not read by itself, given the dataclass instances that hold the defaults."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_literal)
    if "jaxact.activations" in sys.modules:  # imported by every config that has one
        registry.primitive_rule(_activations(held))
    for instance in held:
        for field in _alternatives(instance):
            registry.struct_rule(_checked(field, type(getattr(instance, field)), registry))
    return registry


def _word(metavar: str, read: Callable[[str], Any], holds: Callable[[Any], bool], write: Any = str) -> Any:
    """How tyro reads a value from one word, and writes it."""
    import tyro

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=holds,
        str_from_instance=lambda value: [write(value)],
    )


def _literal(info: Any) -> Any:
    """Read one of several words as tyro does, but with a hint at the closest."""
    choices = get_args(info.type)
    if get_origin(info.type) is not Literal or not all(isinstance(choice, str) for choice in choices):
        return None

    def chosen(word: str) -> str:
        if word not in choices:
            raise ValueError(_must_be_one_of(word, choices))
        return word

    return _word(f"{{{','.join(choices)}}}", chosen, choices.__contains__)


def _activations(held: Sequence[Any]) -> Any:
    """Make the rule that reads an activation by its name, or by that of one that the defaults hold."""
    from jaxact.activations import Activation, parse

    values = [getattr(instance, name) for instance in held for name in _field_names(instance)]
    listed = [value if isinstance(value, tuple | list) else [value] for value in values]
    own = {each.name: each for value in listed for each in value if isinstance(each, Activation)}

    def parsed(word: str) -> Activation:
        try:
            return own.get(word) or parse(word)
        except ValueError as error:
            raise _RefusedError(str(error), word) from error

    spec = _word("ACTIVATION", parsed, lambda value: isinstance(value, Activation), lambda value: value.name)
    return lambda info: spec if info.type is Activation else None


def _checked(field: str, kind: type, registry: Any) -> Any:
    """Make the rule by which what the dataclass in a field refuses is said like what the outer one refuses."""
    is_asking = False

    def instantiate(**values: Any) -> Any:
        try:
            return kind(**values)
        except (ValueError, TypeError) as error:
            place = "" if f"`{field}." in str(error) else f"--{field.replace('_', '-')}: "
            raise _RefusedError(f"{place}{error}") from error

    def rule(info: Any) -> Any:
        nonlocal is_asking
        if info.type is not kind or is_asking:
            return None
        is_asking = True  # so that the next rule for dataclasses, tyro's own, answers
        try:
            return dataclasses.replace(registry.get_struct_spec(info), instantiate=instantiate)
        finally:
            is_asking = False

    return rule


def _must_be_one_of(word: str, known: Iterable[str]) -> str:
    return f"must be one of {', '.join(known)}, got {word!r}.{config.hint(word, known)}"
