"""How the small JSON files of a run folder are read, whatever has become of them."""

import functools
import json
import os
import stat
import typing
from pathlib import Path
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=Any)  # a named tuple
_MOST_BYTES = 2**26  # a run of 100,000 cells with long names has a twentieth of this
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_NAMES = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a whole number"}
_NAMES |= {float: "a number", type(None): "null"}


def read(path: Path, kind: type[Kind]) -> Kind:
    """Read a JSON object as a named tuple: fields by name, checked against its annotations; others are left out.

    Returns at once whatever lies at `path`; nothing but a plain file is read.

    Raises:
        OSError: if it cannot be opened.
        ValueError: saying, about "it", what is wrong with the file.
    """
    return fitted(_json(path), kind)


def fitted(content: Any, kind: type[Kind]) -> Kind:
    """Take what JSON gave for a named tuple, as `read` does.

    Raises:
        ValueError: saying, about "it", what does not fit.
    """
    if not isinstance(content, dict):
        raise ValueError(f"it holds {_named(content)}, not an object")
    for name, annotated in _annotations(kind).items():  # type: ignore[arg-type]  # a class is hashable
        if name in content:
            _check(name, content[name], annotated)
        elif name not in kind._field_defaults:
            raise ValueError(f"it has no `{name}`")
    return kind(**{name: content[name] for name in kind._fields if name in content})


def reason(error: BaseException) -> str:
    """What an error says, on one line."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(said).split())


def _json(path: Path) -> Any:
    content = _plain_file(path)
    if not content.strip():
        raise ValueError("it is empty")
    try:
        return json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}"
        ) from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from error
    except ValueError as error:  # Python's limit
        raise ValueError("it holds a number of more digits than are read") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _plain_file(path: Path) -> bytes:
    if path.is_symlink():
        raise ValueError(f"it is a link to {os.readlink(path)}: a run's own files are in its folder")
    # Opening a pipe waits for its other end, unless told not to.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"it is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no file')}, not a plain file")
        if status.st_size > _MOST_BYTES:
            raise ValueError(f"it is too large: {status.st_size} bytes, at most {_MOST_BYTES}")
        with open(handle, "rb", closefd=False) as file:
            return file.read(_MOST_BYTES) or b""  # None where the system, as of /proc/kmsg, has nothing yet
    finally:
        os.close(handle)


@functools.cache
def _annotations(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _check(name: str, value: Any, annotated: Any) -> None:
    kind = typing.get_origin(annotated) or annotated
    fits = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not fits:
        raise ValueError(f"its `{name}` must be {_NAMES[kind]}, is {_named(value)}")
    if annotated == list[str] and not all(isinstance(each, str) for each in value):
        raise ValueError(f"its `{name}` must be a list of text")


def _named(value: Any) -> str:
    return _NAMES[type(value)]
