"""One self-contained page for results: the verdict first, then findings, figures, tables and how they were made.

Needs the extra `study`.
"""

from jaxact.page._render import Page, readable, render

__all__ = ["Page", "readable", "render"]
