"""Where data files are looked for, and the error that says so when they are not there."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def places(subfolder: str, *others: str) -> tuple[Path, ...]:
    """The folders to look in, in order: `$JAXACT_DATA/subfolder`, `$JAXACT_DATA`, then the others.

    The subfolder comes first because several data sets share file names (MNIST's and Fashion-MNIST's are
    equal).
    """
    root = os.environ.get("JAXACT_DATA")
    named = [os.path.join(root, subfolder), root] if root else []
    return tuple(Path(os.path.expanduser(place)) for place in (*named, *others))


def find(title: str, names: Sequence[Sequence[str]], folders: Sequence[Path], remedy: str) -> list[Path]:
    """The first folder's files that has them all; sets are never pieced together from two folders.

    Args:
        title: the data set's name, for the message.
        names: for each file, the names under which it may lie, the preferred first; capitals do not matter.
        folders: where to look, in order.
        remedy: a sentence that says how to get the files.

    Returns:
        One path a file.

    Raises:
        FileNotFoundError: no folder has them all; lists each folder with what it lacks.
    """
    seen = []
    for folder in folders:
        found = [next(_files(folder, options), None) for options in names]
        if None not in found:
            return [path for path in found if path is not None]
        lacks = [" or ".join(options) for options, path in zip(names, found, strict=True) if path is None]
        if not folder.is_dir():
            seen.append(f"  {folder}: no such folder")
        elif len(lacks) == len(names):
            seen.append(f"  {folder}: has none of the files")
        else:
            seen.append(f"  {folder}: lacks {', '.join(lacks)}")
    unset = "" if os.environ.get("JAXACT_DATA") else "\n  (the environment variable JAXACT_DATA is not set)"
    raise FileNotFoundError(f"{title} was not found. Looked in:\n" + "\n".join(seen) + unset + f"\n{remedy}")


def _files(folder: Path, options: Sequence[str]) -> Iterator[Path]:
    """The files of one of these names, those spelt exactly so first."""
    yield from (folder / name for name in options if (folder / name).is_file())
    with contextlib.suppress(OSError):  # no such folder, or not ours to list
        listed = sorted(folder.iterdir())
        for name in options:
            yield from (path for path in listed if path.name.lower() == name.lower() and path.is_file())
