"""Make a release from a clean clone of what is committed: build it, check it, install it, and only then tag it.

python scripts/release.py 0.2.0 --dry-run     # everything but the commit and the tag; CI does this
python scripts/release.py 0.2.0 --lowest      # also at the lowest versions that pyproject.toml states, with the tests
python scripts/release.py 0.2.0               # then: twine upload dist/*, git push --follow-tags
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: of floors 0 to 2, as CONTRIBUTING.md numbers them
TESTS = ["activations", "numerics", "trace", "theory", "probes", "lipschitz", "nn", "fit", "diagnosis"]
PYTHONS = ("3.11", "3.12", "3.13")
_TRY = (
    "import jaxact, importlib; [importlib.import_module(f'jaxact.{each}') for each in jaxact.__all__ "
    "if each not in ('diagnose', 'initialize', 'page')]; print(jaxact.__version__)"
)


def run(*words: object, cwd: Path | None = None) -> str:
    """Run a command; where it fails, its own words end the release."""
    line = list(map(str, words))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def stamped(text: str, pattern: str, replacement: str, file: str) -> str:
    """A text with what matches replaced, which must be there once."""
    found, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    if count != 1:
        raise SystemExit(f"{file} must have {pattern!r} once, and has it {count} times.")
    return found


def stamp(clone: Path, version: str, date: str) -> None:
    """Write the version and the date where they stand: pyproject.toml, CITATION.cff, CHANGELOG.md."""
    for file, pattern, replacement in (
        ("pyproject.toml", r'^version = ".*"$', f'version = "{version}"'),
        (
            "CITATION.cff",
            r"^version: .*(\ndate-released: .*)?$",
            f"version: {version}\ndate-released: {date}",
        ),
        ("CHANGELOG.md", r"^## \S+ \(unreleased\)$", f"## {version} ({date})"),
    ):
        path = clone / file
        path.write_text(stamped(path.read_text("utf-8"), pattern, replacement, file), "utf-8")


def build(clone: Path) -> list[Path]:
    """Build wheel and source, and check what is in them.

    Returns:
        The two files.
    """
    run(sys.executable, "-m", "build", "--outdir", clone / "dist", clone)
    built = sorted((clone / "dist").iterdir())
    run(sys.executable, "-m", "twine", "check", "--strict", *built)
    (wheel,) = (each for each in built if each.suffix == ".whl")
    names = zipfile.ZipFile(wheel).namelist()
    others = {name.partition("/")[0] for name in names} - {"jaxact"}
    if "jaxact/py.typed" not in names or any(not each.endswith(".dist-info") for each in others):
        raise SystemExit(
            f"{wheel.name} must hold jaxact with py.typed and nothing else, holds {sorted(others)}."
        )
    return built


def try_wheel(python: str, wheel: Path, folder: Path, *, own: bool) -> str:
    """Install the wheel in an environment of its own, import every package, and run a command.

    Args:
        python: the interpreter.
        wheel: what is installed.
        folder: for the environment.
        own: whether dependencies are those of the interpreter that runs this, so that nothing is fetched.
    """
    if own:
        venv.create(folder, with_pip=True)
        run(folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-deps", wheel)
        here, there = (
            sysconfig.get_path("purelib", vars={"base": base}) for base in (sys.prefix, str(folder))
        )
        Path(there, "dependencies.pth").write_text(here)
    else:
        run("uv", "venv", "-q", "--python", python, folder)
        run("uv", "pip", "install", "-q", "--no-build", "--python", folder / "bin" / "python", wheel)
    version = run(folder / "bin" / "python", "-c", _TRY, cwd=folder).strip()
    run(folder / "bin" / "jaxact", "describe", "relu", "--json", cwd=folder)
    return version


def try_lowest(python: str, clone: Path, folder: Path) -> str:
    """Run the tests of floors 0 to 2 at the lowest versions that pyproject.toml states.

    Returns:
        The last line of the tests.
    """
    run("uv", "venv", "-q", "--python", python, folder)
    words = ["--no-build", "--resolution", "lowest-direct", "-r", "pyproject.toml", "--extra", "test"]
    run("uv", "pip", "install", "-q", "--python", folder / "bin" / "python", *words, cwd=clone)
    tests = [f"tests/{each}" for each in TESTS]
    return run(folder / "bin" / "python", "-m", "pytest", *tests, cwd=clone).strip().splitlines()[-1]


def pythons() -> list[str]:
    """The interpreters of PYTHONS that are found here."""
    found = [run("uv", "python", "list", "--only-installed", each).split() for each in PYTHONS]
    return [each for each, words in zip(PYTHONS, found, strict=True) if words]


def main() -> None:
    """Release the version named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("version", help="of the release, as 0.2.0")
    parser.add_argument(
        "--dry-run", action="store_true", help="change nothing here; dependencies are those installed"
    )
    parser.add_argument(
        "--lowest", action="store_true", help="test at the lowest versions stated, on every Python found"
    )
    options = parser.parse_args()
    if not re.fullmatch(r"\d+\.\d+\.\d+", options.version):
        raise SystemExit(f"the version must be three numbers as 0.2.0, got {options.version!r}.")
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "clone"
        run("git", "clone", "--quiet", ROOT, clone)
        stamp(clone, options.version, f"{datetime.date.today()}")
        built = build(clone)
        (wheel,) = (each for each in built if each.suffix == ".whl")
        for python in [sys.executable] if options.dry_run else pythons():
            folder = Path(scratch) / f"of-{Path(python).name}"
            print("installed", try_wheel(python, wheel, folder, own=options.dry_run), "on", python)
        for python in pythons() if options.lowest else []:
            print(
                python, "lowest:", try_lowest(python, clone, Path(scratch) / f"lowest-{python}"), flush=True
            )
        if not options.dry_run:
            keep(clone, built, options.version)


def keep(clone: Path, built: list[Path], version: str) -> None:
    """Bring the commit, the tag and the files here."""
    run("git", "commit", "--quiet", "--all", "--message", f"release: {version}", cwd=clone)
    run("git", "tag", "--annotate", f"v{version}", "--message", f"jaxact {version}", cwd=clone)
    run("git", "pull", "--quiet", "--ff-only", "--tags", clone, "HEAD", cwd=ROOT)
    shutil.copytree(clone / "dist", ROOT / "dist", dirs_exist_ok=True)
    print(*(f"dist/{each.name}" for each in built), f"and the tag v{version} are here.")
    print("Then: twine upload dist/*; git push --follow-tags")


if __name__ == "__main__":
    main()
