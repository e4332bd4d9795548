"""A run: its folder, its cells, each stored as it ends, then the combined result."""

import collections
import contextlib
import datetime
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr
from rich.console import Console

from jaxact.files import write_atomically
from train import (
    causes,
    config,
    devices,
    fingerprint,
    interrupt,
    locks,
    outcomes,
    partial,
    records,
    results,
    snapshot,
)
from train.agreement import Agreement
from train.config import ConfigError, StorageError
from train.experiment import Cell, Experiment
from train.loggers import Logs
from train.outcomes import CellsFailedError, Failure, Measurement
from train.progress import Display
from train.workers import in_this_process

_MOST_NAMED = 10  # files in a message
_PACKAGES = ("jaxact", "jax", "jaxlib", "flax", "optax", "numpy", "xarray", "h5netcdf")


class Record(NamedTuple):
    """What a run folder knows about its run from the start; config.json holds it.

    Attributes:
        study: the config file's stem.
        run_id: the folder's name: study, UTC time and digits that keep two runs of one second apart.
        experiment: its type, as `config.type_name` writes it.
        command: the command line that repeats the run.
        started: UTC time, ISO 8601.
        cells: the names of all, in order.
        config: every field of the experiment, as `config.resolved` writes it.
        smoke: whether it is the small study that `smoke()` makes; the runs before this was noted say no.
        code: the digests of the files that measure, as `fingerprint.files` gives them; none before they were noted.
        digest: of all other fields, so that damage to the file is noticed; "" before it was noted.
    """

    study: str
    run_id: str
    experiment: str
    command: str
    started: str
    cells: list[str]
    config: dict[str, Any]
    smoke: bool = False
    code: dict[str, str] = {}
    digest: str = ""


def create(
    experiment: Experiment, config_path: Path, *, output: Path, command: str, smoke: bool = False
) -> Path:
    """Make the folder `output`/<study>-<UTC time>-<digits> of a new run, its config.json and a copy of the config file.

    The config file names the study; `command` and `smoke` go into the `Record`. `output`, the folder of all runs, is
    made if need be.

    Raises:
        ConfigError: if the experiment has no cells, repeats a name, or its type cannot be found again.
        StorageError: if the folder cannot be made; what was begun is removed.
    """
    now = datetime.datetime.now(datetime.UTC)
    run_id = f"{config_path.stem}-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    record = Record(
        study=config_path.stem,
        run_id=run_id,
        experiment=config.type_name(experiment, config_path),
        command=command,
        started=now.isoformat(timespec="seconds"),
        cells=[cell.name for cell in _checked_cells(experiment)],
        config=config.resolved(experiment),
        smoke=smoke,
        code=fingerprint.files(config_path),
    )
    directory, draft = output / run_id, locks.draft(output, run_id)
    locks.sweep(output)
    try:
        with _writing(f"make a run folder in `output` {output}", "or choose another folder with --output"):
            (draft / "cells").mkdir(parents=True)
            shutil.copyfile(config_path, draft / "config.py")
            _write(record, draft)
            draft.rename(directory)
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # not there once it has its name
    return directory


def read(directory: Path) -> Record:
    """Read what a run folder knows about its run.

    Raises:
        ConfigError: if it is not the folder of a run.
    """
    try:
        return undamaged(records.read(directory / "config.json", Record))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{directory} is not the folder of a run: its config.json cannot be read ({records.reason(error)}). "
            "`python -m train list` shows the runs there are."
        ) from error


def check_resumable(experiment: Experiment, directory: Path) -> None:
    """Check that a run folder holds a run of exactly this experiment.

    Raises:
        ConfigError: naming the fields that differ, with both values.
    """
    record = read(directory)
    if different := config.differences(record.config, config.resolved(experiment)):
        raise ConfigError(
            f"{directory} is a run of another config:\n  " + "\n  ".join(different) + "\n"
            f"Resume it with its own: {resume_command(directory)}\nor start a new run without --resume."
        )
    if [cell.name for cell in _checked_cells(experiment)] != record.cells:
        raise ConfigError(
            f"{directory} has other cells than this version of the experiment. "
            "Start a new run without --resume, or resume with the version of the code that began it."
        )


def take_up_code(directory: Path, config_path: Path, *, allow_changed: bool = False) -> None:
    """Check that a run goes on with the code that began it, or note the code it goes on with.

    Cells say which code measured them, and the result names all. The run's copy of an earlier config file is kept
    beside the new one.

    Args:
        directory: of a run.
        config_path: the config file that is run now.
        allow_changed: whether code that has changed is taken.

    Raises:
        ConfigError: naming the files that differ, unless `allow_changed`.
        StorageError: if the new code cannot be noted.
    """
    record = read(directory)
    changed = fingerprint.differences(record.code, config_path) if record.code else []
    if changed and not allow_changed:
        named = [*changed[:_MOST_NAMED], f"and {len(changed) - _MOST_NAMED} more"][: len(changed)]
        raise ConfigError(
            f"{directory} was begun with other code:\n  " + "\n  ".join(named) + "\n"
            "Two codes would be in one result. Resume with the code that began it, start a new run, or, if the "
            "change does not matter to what is measured, add --allow-changed-code: the result then names both."
        )
    if changed:
        with _writing(f"note the code in {directory}"):
            if (earlier := directory / "config.py").read_bytes() != config_path.read_bytes():
                shutil.copyfile(earlier, directory / f"config-{record.code['config.py']}.py")
                write_atomically(earlier, config_path.read_bytes())
            _write(record._replace(code=fingerprint.files(config_path)), directory)


def resume_command(directory: Path) -> str:
    """Return the command line that continues a run."""
    return f"python -m train resume {_quoted(str(directory))}"


def plan(
    experiment: Experiment, directory: Path, *, every: float, allow_changed_code: bool = False
) -> partial.Plan:
    """Say where the cells of a run store what they have come to, every so many seconds, and what they take up."""
    record = read(directory)
    content = json.dumps(record.config, sort_keys=True).encode()
    key = {"config": hashlib.sha256(content).hexdigest(), "code": fingerprint.short(record.code)}
    files = _files(directory, _checked_cells(experiment))
    folders = {name: partial.folder(path) for name, path in files.items()}
    return partial.Plan(folders, every, key, allow_changed_code)


def progress(directory: Path) -> str:
    """Say how many of a run's cells are finished: "3 of 4"."""
    return f"{finished_cells(directory)} of {len(read(directory).cells)}"


def run(
    experiment: Experiment,
    directory: Path,
    *,
    console: Console,
    measure: Callable[
        [Experiment, Sequence[Cell], Display], Generator[Measurement | Failure]
    ] = in_this_process,
    logs: Logs | None = None,
) -> xr.Dataset:
    """Run the cells of a run folder that are not finished, then write the report and result.nc, which is returned.

    A cell is finished when its file can be loaded and is of this config, so this function may be killed at
    any time and called again. A failing cell is told at the end, when all others are measured.

    Args:
        experiment: the one of this folder; `check_resumable` holds.
        directory: made by `create`.
        console: where progress is shown.
        measure: how, such as `train.workers.in_this_process` or `train.pool.side_by_side`.
        logs: told of every cell that is stored, and of the figures.

    Raises:
        ConfigError: if another process runs in this folder.
        StorageError: if a file cannot be written.
        CellsFailedError: if cells failed; the others are stored, and there is no result.nc.
        Exception: what any cell would meet, such as missing data, or whatever the report raised.
    """
    record = read(directory)
    with at_work(directory, console) as check_held:
        with _writing(f"make the folder of cells in {directory}"):
            (directory / "cells").mkdir(exist_ok=True)  # somebody may have deleted it
        cells = _checked_cells(experiment)
        files = _files(directory, cells)
        attributes, agreement = provenance(record), Agreement()
        logs = logs or Logs()
        if (whole := _whole(directory, files, attributes)) is not None:
            draw(whole, type(experiment), directory)
            for cell in cells if logs else ():
                logs.cell(cell, load(files[cell.name]), files[cell.name].stem)
            logs.figures(directory)
            return whole
        log = snapshot.Log(directory, experiment)
        with Display(cells, console, log) as display:
            parts = {
                cell.name: _finished(cell, files[cell.name], attributes, agreement, display) for cell in cells
            }
            for cell in cells:
                if (part := parts[cell.name]) is not None:
                    logs.cell(cell, part, files[cell.name].stem)
            codes = {part.attrs.get("code", "unknown") for part in parts.values() if part is not None}
            if codes - {attributes["code"]}:
                display.notice("Cells measured by another version of the code are kept.")
            missing = [cell for cell in cells if parts[cell.name] is None]
            failures: list[Failure] = []
            kinds: set[str] = set()
            with contextlib.closing(measure(experiment, missing, display)) as ended:
                for outcome in ended:
                    if isinstance(outcome, Measurement):
                        outcome = _admitted(outcome, agreement)
                    if isinstance(outcome, Failure):
                        failures.append(outcome)
                        display.fail(outcome.cell, outcome.cause, is_first=outcome.kind not in kinds)
                        kinds.add(outcome.kind)
                        continue
                    cell = outcome.cell
                    check_held()
                    with interrupt.postponed():
                        part = parts[cell.name] = _stored(outcome, files[cell.name], attributes)
                    partial.remove(files[cell.name])
                    logs.cell(cell, part, files[cell.name].stem)
                    display.finish(cell, outcome.seconds)
        if failures:
            raise CellsFailedError(failures, len(cells))
        result = _combined([part for part in parts.values() if part is not None], attributes)
        with _writing(f"write result.nc in {directory}"):
            results.save(result, directory / "result.nc")
        log.remove()
        # What is stored is drawn, whose order is the file's: so that a page drawn again is the same.
        draw(results.load(directory / "result.nc"), type(experiment), directory)
        logs.figures(directory)
    return result


def draw(result: xr.Dataset, experiment: type[Experiment], directory: Path) -> Path:
    """Draw figures and report of a combined result into its run folder; gives the path of report.html.

    Raises:
        StorageError: if a file cannot be written.
    """
    from train.report import write_report  # altair takes half a second to import

    with _writing(f"write report in {directory}"):
        return write_report(result, experiment, directory)


def finished_cells(directory: Path) -> int:
    """Count the cells of a run whose file is there; it may still turn out to be damaged."""
    return len(list((directory / "cells").glob("*.nc")))


@contextlib.contextmanager
def at_work(directory: Path, console: Console) -> Iterator[Callable[[], None]]:
    """Hold a run folder and remove what killed processes left in it; yields what `locks.held` does.

    Raises:
        ConfigError: if another process runs in this folder.
        StorageError: if the folder cannot be written.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    with contextlib.ExitStack() as stack:
        with _writing(f"lock {directory}"):
            check_held = stack.enter_context(locks.held(directory, say))
        locks.sweep(directory.parent)
        for pattern in (".*.tmp", "cells/.*.tmp", "figures/.*.tmp"):
            for leftover in directory.glob(pattern):
                with contextlib.suppress(OSError):
                    leftover.unlink()
        partial.sweep(directory / "cells")
        yield check_held


def provenance(record: Record) -> dict[str, str]:
    """Collect where a run's result comes from, as the text attributes that `results.check` asks for."""
    known = {name: getattr(record, name) for name in ("study", "experiment", "run_id", "command", "started")}
    # A file's name need not be text, and is then Python's stand-in for it, which no file holds.
    known = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in known.items()}
    return known | {
        "format": results.FORMAT,
        "config": json.dumps(record.config, sort_keys=True),
        "git_commit": _git_commit(),
        "versions": json.dumps(_versions()),
        "device": devices.described(),
        "smoke": json.dumps(record.smoke),
        "code": fingerprint.short(record.code) if record.code else "unknown",
    }


def check_own_folders(directory: Path) -> None:
    """Check that what a run writes stays in its folder, as it need not in one from elsewhere.

    Raises:
        ConfigError: if a folder in it is a link.
    """
    for path in (directory / "cells", directory / "figures"):
        if path.is_symlink():
            raise ConfigError(
                f"{path} is a link to {os.readlink(path)}: files there would be written and removed. "
                "If the run is yours, add --trust."
            )


def peak_memory(num_workers: int) -> float:
    """Return the most memory this process and its workers have held so far, in GiB.

    Each worker counts as much as the largest: an upper bound, as their peaks differ and need not coincide.
    """
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 2**30 if sys.platform == "darwin" else 2**20
    own, largest = (
        resource.getrusage(who).ru_maxrss / unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own + num_workers * largest


def _write(record: Record, directory: Path) -> None:
    fields = record._replace(digest=_digest(record))._asdict()
    write_atomically(directory / "config.json", json.dumps(fields, indent=2).encode())


def undamaged(record: Record) -> Record:
    """The record itself, if its digest is of what it holds.

    Raises:
        ValueError: saying, about "it", that its file is damaged.
    """
    if record.digest and record.digest != _digest(record):
        raise ValueError(
            "it is damaged: its digest is of other content. Its cells may be whole: start the study again, and move "
            "the files in cells/ into the new run's, which takes those of its own config"
        )
    return record


def _digest(record: Record) -> str:
    content = json.dumps(record._replace(digest="")._asdict(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _checked_cells(experiment: Experiment) -> Sequence[Cell]:
    cells = list(experiment.cells())
    names = [cell.name for cell in cells]
    repeated = sorted(name for name, count in collections.Counter(names).items() if count > 1)
    if not cells:
        raise ConfigError("the experiment has no cells: every field that lists things needs an entry.")
    if repeated:
        raise ConfigError(f"cells of the same name: {', '.join(repeated)}. List each value once.")
    return cells


def _files(directory: Path, cells: Sequence[Cell]) -> dict[str, Path]:
    """Give every cell a file name that is safe, readable and unique, on case-insensitive file systems too."""
    files: dict[str, Path] = {}
    taken: set[str] = set()
    for cell in cells:
        name = re.sub(r"[^\w.=+-]+", "_", cell.name, flags=re.ASCII)[:150].strip("_.") or "cell"
        if name.lower() in taken:
            name = f"{name}-{hashlib.sha256(cell.name.encode()).hexdigest()[:8]}"
        taken.add(name.lower())
        files[cell.name] = directory / "cells" / f"{name}.nc"
    return files


def _whole(directory: Path, files: Mapping[str, Path], attributes: Mapping[str, str]) -> xr.Dataset | None:
    """The stored result, if it is of this config and newer than every cell's file: then none of them has to be read."""
    path = directory / "result.nc"
    try:
        written = path.stat().st_mtime_ns
        if any(file.stat().st_mtime_ns >= written for file in files.values()):
            return None
        result = load(path)
    except (OSError, ValueError):
        return None
    return result if result.attrs["config"] == attributes["config"] else None


def _finished(
    cell: Cell, path: Path, attributes: Mapping[str, str], agreement: Agreement, display: Display
) -> xr.Dataset | None:
    """The cell as an earlier process stored it; a file that is anything else is set aside, and said."""
    if not os.path.lexists(path):
        return None
    try:
        part = load(path)
        if (part.attrs.get("config"), part.attrs.get("cell")) != (attributes["config"], cell.name):
            raise ValueError(f"{path} is of another config or cell.")
        agreement.admit(cell, part)
        seconds = float(part.attrs["wall_seconds"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        display.notice(
            f"{cell.name} is measured again: {_reason(error)}\nThat file is now {_set_aside(path)}."
        )
        return None
    display.skip(cell, seconds)
    return part


def load(path: Path) -> xr.Dataset:
    """Load a file of a run folder, its result or a cell; a link to another file is not followed.

    Raises:
        OSError: as `results.load`.
        ValueError: as `results.load` and `results.check`, and for a link.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link to {os.readlink(path)}: a run's own files are in its folder.")
    stored = results.load(path)
    try:
        results.check(stored)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return stored


def _set_aside(path: Path) -> Path:
    """Give what is no cell a name under which it is kept."""
    names = (
        path.with_name(f"{path.name}.corrupt{number}") for number in itertools.chain([""], itertools.count(2))
    )
    aside = next(each for each in names if not os.path.lexists(each))
    with _writing(f"rename {path}"):
        path.rename(aside)
    return aside


def _admitted(measurement: Measurement, agreement: Agreement) -> Measurement | Failure:
    try:
        agreement.admit(measurement.cell, measurement.dataset)
    except (TypeError, ValueError) as error:
        return outcomes.misfit(measurement.cell, error)
    return measurement


def _stored(measurement: Measurement, path: Path, attributes: Mapping[str, str]) -> xr.Dataset:
    cell, part, seconds, device = measurement
    own = {"cell": cell.name, "wall_seconds": seconds, "device": device or attributes["device"]}
    part = part.assign_attrs({**attributes, **own})
    with _writing(f"write cell {cell.name} in {path.parent.parent}"):
        results.save(part, path)
    return part


def _combined(parts: Sequence[xr.Dataset], attributes: Mapping[str, str]) -> xr.Dataset:
    result = results.combine(parts)
    for name in ("git_commit", "device", "code"):  # a resumed run may have seen several
        attributes = {**attributes, name: _listed(part.attrs.get(name, "unknown") for part in parts)}
    # What cells say of themselves, such as how many networks were side by side.
    for name in dict.fromkeys(str(name) for part in parts for name in part.attrs):
        if name not in (*attributes, "cell", "wall_seconds"):
            said = _listed(part.attrs[name] for part in parts if name in part.attrs)
            attributes = {**attributes, name: said}
    versions = [json.loads(part.attrs["versions"]) for part in parts]
    packages = dict.fromkeys(package for each in versions for package in each)
    all_versions = {name: _listed(each.get(name, "none") for each in versions) for name in packages}
    attributes = {**attributes, "versions": json.dumps(all_versions)}
    seconds = {
        str(n): round(float(each.sum()), 1) for n, each in result.items() if str(n).endswith("_seconds")
    }
    wall_seconds = round(sum(float(part.attrs["wall_seconds"]) for part in parts), 1)
    result = result.assign_attrs({**attributes, **seconds, "wall_seconds": wall_seconds})
    results.check(result)
    return result


def _listed(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(map(str, values)))


@contextlib.contextmanager
def _writing(task: str, remedy: str = "then continue; finished cells are kept") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        first = causes.of_file(error)
        raise StorageError(f"cannot {task}: {error.strerror or error}. {first}, {remedy}.") from error


def _quoted(text: str) -> str:
    """One word of a shell, whatever is in it; on one line, with nothing that a terminal would act on."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = (each if each.isprintable() and each not in "\\'" else _escape(each) for each in text)
    return f"$'{''.join(escaped)}'"


def _escape(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def _git_commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(config.ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--", "jaxact", "train", "configs")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _reason(error: BaseException) -> str:
    return str(error) if str(error) and not isinstance(error, KeyError) else repr(error)
