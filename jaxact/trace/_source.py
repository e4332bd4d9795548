"""Where in the user's code an equation of a jaxpr was written, and what to call it."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax

_JAX = str(Path(jax.__file__).parent)
_LIBRARIES = tuple(
    {sysconfig.get_paths()[name] for name in ("purelib", "platlib", "stdlib")}
    | {_JAX, str(Path(__file__).parents[1])}
)
_ENGINE = tuple(str(Path(__file__).parents[1] / name) for name in ("trace", "lipschitz"))
_ACTIVATIONS = str(Path(__file__).parents[1] / "activations")
_NAMED = os.path.join("jax", "_src", "nn", "functions.py")  # jax.nn: gelu is no call of its own in a jaxpr


class Place(NamedTuple):
    """Where an equation comes from.

    Attributes:
        name: the function of a library that the user called there, such as relu, else the primitive.
        line: "file:line (function)", or "unknown line"; in a notebook "In[3]:line (function)".
        short: "file:line" without the folder, or ""; in a notebook "In[3]:line".
    """

    name: str
    line: str
    short: str

    def __str__(self) -> str:
        return f"`{self.name}` at {self.line}"


def place(eqn: Any, call: Place | None = None) -> Place:
    """The place of an equation; `call` is that of the call that it is part of.

    Of the frames of its traceback the innermost counts that is in no library: in a model of Flax, the line of the
    user's own module. The body of a library's function has the place of its call: a body traced once is used again
    elsewhere, and its equations keep the lines of the first time.

    Args:
        eqn: of a jaxpr.
        call: of which it is part, if it is.
    """
    if call is not None and call.name:
        return call
    found = _user_frame(eqn.source_info.traceback)
    primitive = eqn.primitive.name
    if found is None:
        return Place(primitive, *(call[1:] if call is not None else ("unknown line", "")))
    line, short, function = found
    return Place(function or primitive, line, short)


def called(eqn: Any, body: Any, call: Place | None = None) -> Place:
    """The place of a call, for what is in its `body`: nameless where that is the user's own function.

    Args:
        eqn: the call.
        body: the jaxpr that it calls.
        call: the place of the call that `eqn` is part of, if it is.
    """
    here = place(eqn, call)
    info = getattr(body, "debug_info", None)
    file, name = getattr(info, "func_filename", None), getattr(info, "func_name", None)
    if call is not None and call.name:
        return here
    if not (name and file and _in_library(file)):
        return here._replace(name="")
    return here._replace(name="activation" if file.startswith(_ACTIVATIONS) else name.lstrip("_"))


def library_name(body: Any) -> str:
    """The name of the function of JAX that a jaxpr is the body of, or ""."""
    info = getattr(body, "debug_info", None)
    file, name = getattr(info, "func_filename", None), getattr(info, "func_name", None)
    return name if name and file and file.startswith(_JAX) else ""


def _cell(file: str) -> str:
    """Of a notebook's cell, whose file is named by a hash, what the notebook shows: In[3]; else ""."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    label = None if shell is None else shell.compile.format_code_name(file)
    return label[1] if label else ""


def _in_library(file: str) -> bool:
    return file.startswith(_LIBRARIES)


@lru_cache(maxsize=4096)
def _user_frame(traceback: Any) -> tuple[str, str, str] | None:
    """Its line, long and short, and the function of jax.nn called from there."""
    try:
        from jax._src import source_info_util

        code, lasti = traceback.raw_frames()
        function, library = "", None
        for each, instruction in zip(code, lasti, strict=True):
            file = each.co_filename
            if file.startswith(_ENGINE) and library is not None:
                break  # the user handed over a library's function as it is
            if file.endswith(_NAMED):
                function = each.co_name
            if source_info_util.is_user_filename(file):
                frame = source_info_util.raw_frame_to_frame(each, instruction)
                cell = _cell(frame.file_name)
                lines = (
                    f"{cell or frame.file_name}:{frame.start_line} ({frame.function_name})",
                    f"{cell or Path(frame.file_name).name}:{frame.start_line}",
                )
                if not _in_library(file):
                    return *lines, function
                if not file.startswith(_ENGINE):
                    library = library or lines
        return None if library is None else (*library, function)
    except (ImportError, AttributeError, TypeError):  # not part of jax's public interface
        return None
