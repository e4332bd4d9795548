"""Text as it may be shown: what a terminal would obey, and SVG cannot hold, is written as an escape."""

import unicodedata
from typing import Any

__all__ = ["on_one_line", "visible", "visible_tree"]


def visible(text: str) -> str:
    r"""The text with escapes for what is not seen but acted on, such as control characters.

    A terminal obeys them, SVG has no room for them, and a reader would take one name for another. Line ends and tabs
    stay.

    Args:
        text: any.

    >>> print(visible("tanh"), visible("a\x1b[2J"), visible("a\u2028b"))
    tanh a\x1b[2J a\u2028b
    """
    if text.isprintable():
        return text
    return "".join(_escape(letter) if _is_unseen(letter) else letter for letter in text)


def visible_tree(value: Any) -> Any:
    """The same JSON, its text with escapes for control characters: SVG cannot hold them.

    Args:
        value: dictionaries, lists, strings and numbers.
    """
    if isinstance(value, dict):
        return {visible_tree(key): visible_tree(each) for key, each in value.items()}
    if isinstance(value, list):
        return [visible_tree(each) for each in value]
    return visible(value) if isinstance(value, str) else value


def on_one_line(text: str) -> str:
    r"""The text with escapes for whatever is not printed, line ends and tabs too.

    Args:
        text: any.

    >>> print(on_one_line("a\nb"), on_one_line("a\x1b[2J"))
    a\nb a\x1b[2J
    """
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _is_unseen(letter: str) -> bool:
    return letter not in "\n\t" and unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
