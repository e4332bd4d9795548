"""One self-contained page for results: the verdict first, then findings, figures, tables and how they were made.

Needs the extra `study` once a name is asked for, not before: `from jaxact import *` works without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxact.page._render import Page, readable, render

__all__ = ["Page", "readable", "render"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("jaxact.page._render"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
