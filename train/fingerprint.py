"""Which code measures: a digest of every file of it, so that a run that is resumed knows what has changed."""

import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import jaxact

_PACKAGES = {"jaxact": Path(jaxact.__file__).parent, "train": Path(__file__).parent}
_BESIDE = "beside the config: "


def files(config_path: Path) -> dict[str, str]:
    """Digest the config file, the modules of its folder that it has imported, and every module of jaxact and train.

    The files are read as they are: what git does not know, or has as changed, counts as well.

    Args:
        config_path: a config file that has been loaded.

    Returns:
        Digests by readable names; "config.py" is the config file, whatever it is called.
    """
    found = {"config.py": config_path}
    found |= {
        f"{_BESIDE}{path.relative_to(config_path.parent.resolve())}": path for path in _imported(config_path)
    }
    for name, folder in _PACKAGES.items():
        found |= {
            f"{name}/{path.relative_to(folder).as_posix()}": path for path in sorted(folder.rglob("*.py"))
        }
    return {name: _digest(path) for name, path in found.items()}


def differences(stored: Mapping[str, str], config_path: Path) -> list[str]:
    """Name the files in which the code of now differs from a stored one, one a line."""
    now = files(config_path)
    # Which modules of its folder a config has imported by now may depend on what has run.
    now = {name: digest for name, digest in now.items() if name in stored or not name.startswith(_BESIDE)}
    for name in stored:
        if name.startswith(_BESIDE) and (path := config_path.parent / name.removeprefix(_BESIDE)).is_file():
            now[name] = _digest(path)
    changed = [f"`{name}` has changed" for name in stored if name in now and now[name] != stored[name]]
    gone = [f"`{name}` is gone" for name in stored if name not in now]
    return changed + gone + [f"`{name}` is new" for name in now if name not in stored]


def short(code: Mapping[str, str]) -> str:
    """One digest of all: what a cell and a result say of the code that measured them."""
    return hashlib.sha256(repr(sorted(code.items())).encode()).hexdigest()[:16]


def _imported(config_path: Path) -> Iterator[Path]:
    """The modules of the config's folder, or below it, that have been imported and are nobody's package."""
    folder = config_path.parent.resolve()
    others = (*map(str, _PACKAGES.values()), sys.prefix, sys.base_prefix, str(config_path.resolve()))
    named = {str(getattr(module, "__file__", None) or "") for module in [*sys.modules.values()]}
    for name in sorted(named):
        is_beside = name.startswith(f"{folder}{os.sep}") and not name.startswith(others)
        if is_beside and name.endswith(".py") and os.path.isfile(name):
            yield Path(name)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
