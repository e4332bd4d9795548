"""What the programs print to: whatever its encoding, no text ends a program."""

import io
import sys

__all__ = ["print_any_text"]


def print_any_text() -> None:
    """Let stdout write "?" for what its encoding lacks, as cp1252 and ASCII lack most letters; stderr escapes it.

    For programs alone: importing the library changes no setting.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # not where another stands in for it, or there is none
        sys.stdout.reconfigure(errors="replace")
