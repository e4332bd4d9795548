"""Docstrings as they are written here: text, `code`, formulas set off by their indentation, and examples.

In the text |x|, x* and f_ mean themselves, and are escaped from reStructuredText.
"""

import re

from sphinx.util import inspect

_CODE = re.compile(r"(`[^`]*`)")
_LONG = re.compile(
    r"\b(?:jaxlib\._jax|jax\._src\.\w+(?:\.\w+)*|collections\.abc|typing|jaxact(?:\.\w+)*\._\w+)\."
)
_FOREIGN = re.compile(r"~(?:jax|jaxlib|jaxtyping|numpy|flax|collections|typing)\.(?:\w+\.)*")
_CLASS = re.compile(r"<class '(?:\w+\.)*(\w+)'>")
_ARRAY_LIKE = "Array | ndarray | bool | number | bool | int | float | complex"
_ARRAYS = re.compile(
    r"(\w+)\[Array, ('[^']*')\] \| \1\[ndarray, \2\](?: \| (?:number|bool|int|float|complex))+"
)
_SIGNS = re.compile(r"(?<!\\)([*|]|(?<=\w)_(?=\W|$)|(?<=\bfile):)")  # file:line is no link


def marked_up(lines):
    """The lines as reStructuredText."""
    base, is_literal, before = (
        0,
        False,
        "",
    )  # the text's indentation, whether this is set off from it, the last line
    for line in lines:
        if not line.strip():
            before = ""
            yield line
            continue
        if is_literal and not before and _indent(line) <= base:
            is_literal = False
        if not is_literal:
            is_example = line.strip().startswith(">>>")
            is_literal = is_example or (not before and _indent(line) > base)
            if is_literal and not is_example:
                yield from (" " * base + "::", "")
            base = _indent(line) if is_example or not is_literal else base
        before = line
        yield line if is_literal else _escaped(line)


def _indent(line):
    return len(line) - len(line.lstrip())


def _escaped(line):
    parts = _CODE.split(line)
    text = [part if k % 2 else _SIGNS.sub(r"\\\1", part) for k, part in enumerate(parts)]
    # a plural: `Array`s
    return "".join(
        f"\\ {part}" if k and k % 2 == 0 and part[:1].isalnum() else part for k, part in enumerate(text)
    )


def _skip(app, what, name, obj, skip, options):
    """A named tuple's fields stand among its attributes already."""
    return True if str(getattr(obj, "__doc__", "")).startswith("Alias for field number") else None


def _signature(app, what, name, obj, options, signature, returns):
    if (
        what == "class" and signature == "(*args: Any, **kwargs: Any)"
    ):  # that of a metaclass, as nnx.Module has one
        own = inspect.signature(obj.__init__, bound_method=True)
        signature = inspect.stringify_signature(own, show_return_annotation=False, unqualified_typehints=True)
    return tuple(text and _short(text) for text in (signature, returns))


def _short(text):
    """A signature as it is written: without the modules of types, and with `ArrayLike` not spelt out."""
    text = _CLASS.sub(r"\1", _LONG.sub("", _FOREIGN.sub("", text))).replace(_ARRAY_LIKE, "ArrayLike")
    return _ARRAYS.sub(r"\1[ArrayLike, \2]", text)


def _process(app, what, name, obj, options, lines):
    is_made = lines[:1] and lines[0].startswith(
        "Create new instance of "
    )  # what Python writes for a named tuple
    lines[:] = [] if is_made else marked_up(list(lines))


def setup(app):
    """Before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", _process, priority=100)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
