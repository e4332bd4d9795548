"""Hurt runs in every way a machine can, and see that nothing is silent, nothing lost and every resume identical.

    python scripts/torture.py --quick               # some four minutes on two cores
    python scripts/torture.py                       # ten times the flipped bits, every file event
    python scripts/torture.py --only kills bits

A small study is run whole. Then it is killed before each thing it does to a file; sent signals; refused space, by the
system's limit on files and by a disk that is full from some file event on; its files are truncated and their bits
flipped, one at a time. Another, which trains, is killed at random moments within its one cell. After each harm the run
is resumed: that must end well, keep every cell that was stored, and measure the same bit for bit. No message may be a
traceback, and no process may be left. Exit status 1 if one of these fails.

Most runs are forks of this process, which has imported what they need; those with worker processes, and those that
train, are real ones.
"""

import argparse
import errno
import logging
import multiprocessing
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

import train.__main__
from jaxact.page import _render
from train import report, results, runner, workers  # noqa: F401  # what runs import, before they are forked

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 120.0  # after which a run hangs
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGABRT, signal.SIGUSR1, signal.SIGSEGV)
STUDY = '''"""What is tortured: cells of numbers, whole numbers, switches and text, and a figure."""

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from train.study import Study, Variable


@dataclass(frozen=True, kw_only=True)
class Tortured(Study):
    """A study of nothing."""

    swept: ClassVar = {"depth": "depths"}
    within: ClassVar = {}
    variables: ClassVar = {
        "moment": Variable("second moment", ("layer",)),
        "count": Variable("number of layers"),
        "is_deep": Variable("whether there are many layers"),
        "note": Variable("a note"),
    }
    depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    seconds: float = 0.0

    def measure(self, cell, progress):
        time.sleep(self.seconds)
        depth = cell.coords["depth"]
        return {"moment": np.sqrt(np.arange(1, depth + 1)), "count": depth, "is_deep": depth > 3, "note": f"n {depth}"}

    @classmethod
    def figures(cls, result):
        return {"moment": cls.figure(result, "moment")}


def get_config():
    return Tortured()
'''
TRAINING = '''"""One long cell: a network of one matrix, trained in two loops."""

from dataclasses import dataclass
from typing import ClassVar

import jax

from jaxact import nn
from train.study import Variable
from train.tasks import GaussianMixture
from train.trial import TrainingStudy, parts


@dataclass(frozen=True, kw_only=True)
class Long(TrainingStudy):
    """A study of one cell."""

    swept: ClassVar = {"learning_rate": "learning_rates"}
    within: ClassVar = {"seed": "seeds"}
    variables: ClassVar = {"first": Variable("loss", ("seed", "step")), "second": Variable("loss", ("seed", "step"))}
    task: GaussianMixture = GaussianMixture(num_classes=3, dimension=4, num_train=64, num_test=50)
    seeds: tuple[int, ...] = (0, 1, 2)
    learning_rates: tuple[float, ...] = (0.01,)
    batch_size: int = 4
    num_steps: int = 60_000
    measure_every: int = 300

    def measure(self, cell, progress):
        def init(key):
            return {"kernel": jax.random.normal(key, (4, 3))}, {}

        def apply(params, variables, inputs, *, training=False, **_):
            return inputs @ params["kernel"], variables

        trial = self.trial(nn.Functional(init, apply), parts(self.task.load()))
        losses = [trial.train(trial.start(), progress=progress)[1]["batch_loss"] for _ in range(2)]
        return {"first": losses[0], "second": losses[1], "step": self.steps()}

    @classmethod
    def figures(cls, result):
        return {}


def get_config():
    return Long()
'''


class Told(NamedTuple):
    """How a command ended: the exit status, negative for a signal, and what it printed."""

    status: int
    output: str


class Row(NamedTuple):
    """A kind of harm: how often it was done, and what went wrong."""

    harm: str
    tried: int
    faults: list[str]


Act = Callable[[], None]


class Torture:
    """A folder with the study, and a whole run of it that others are compared with."""

    def __init__(self, folder: Path, *, quick: bool):
        self.folder, self.quick = folder, quick
        self.study = folder / "study.py"
        self.study.write_text(STUDY)
        (folder / "whole").mkdir()
        whole = told(self.words(folder / "whole"), folder / "whole")
        if whole.status:
            raise SystemExit(f"the study does not run:\n{whole.output}")
        self.num_events = int(re.findall(r"file events: (\d+)", whole.output)[-1])
        self.run = only_run(folder / "whole")
        self.measured = results.measurements(results.load(self.run / "result.nc"))

    def words(self, output: Path, *more: object) -> list[str]:
        """The words of a command that runs the study into a folder."""
        return ["run", str(self.study), "--workers", "0", "--output", str(output), *map(str, more)]

    def fresh(self, name: object) -> Path:
        """An empty folder for runs."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def copied(self, name: object) -> Path:
        """A copy of the whole run."""
        return Path(shutil.copytree(self.run, self.fresh(name) / self.run.name))

    def resumed(self, output: Path) -> list[str]:
        """Go on with what is in a folder; what is wrong with how that ends."""
        kept = {path: path.stat().st_mtime_ns for path in output.glob("*/cells/*.nc")}
        run = next((path.parent for path in output.glob("[!.]*/config.json")), None)
        went = told(self.words(output, *(() if run is None else ("--resume", run))), output)
        faults = self.faults(went, {0}, output)
        again = [path.name for path, written in kept.items() if path.stat().st_mtime_ns != written]
        return faults + ([f"lost: {', '.join(again)} had been stored"] if again else [])

    def faults(self, went: Told, expected: set[int], output: Path) -> list[str]:
        """What is wrong with how a command ended, and, if it ended well, with what it measured."""
        said = went.output[-1500:]
        if went.status not in expected:
            return [f"status {went.status}, not one of {sorted(expected)}: {said}"]
        if "Traceback" in went.output:
            return [f"a traceback: {said}"]
        if went.status:
            return []
        run = only_run(output)
        litter = [str(path) for path in run.rglob(".*.tmp")]
        same = results.measurements(results.load(run / "result.nc")).identical(self.measured)
        return [f"litter: {litter}"] * bool(litter) + ["other measurements"] * (not same)

    def spread(self, function: Callable[[Any], list[str]], items: Sequence[Any]) -> list[str]:
        """Call a method for each item, on all cores; all faults, each with its item."""
        with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
            found = pool.map(function, items, chunksize=1)
        return [f"{item}: {fault}" for item, faults in zip(items, found, strict=True) for fault in faults]

    def kills(self) -> Iterator[Row]:
        """SIGKILL before each file event."""
        numbers = range(1, self.num_events + 1)
        yield Row("kill -9 before a file event", len(numbers), self.spread(self.killed, numbers))

    def killed(self, number: int) -> list[str]:
        """Kill before a file event, then go on."""
        output = self.fresh(f"killed{number}")
        went = told(self.words(output), output, at=number, act=lambda: os.kill(os.getpid(), signal.SIGKILL))
        return self.faults(went, {-signal.SIGKILL}, output) + self.resumed(output)

    def signals(self) -> Iterator[Row]:
        """Signals, at a file event early, in the middle and late, and to runs with worker processes."""
        places = (0.2, 0.5, 0.8) if self.quick else np.linspace(0.1, 0.95, 12)
        items = [(int(number), int(place * self.num_events)) for number in SIGNALS for place in places]
        yield Row("signal", len(items), self.spread(self.signalled, items))
        numbers = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
        numbers = numbers if self.quick else numbers * 4
        faults = [fault for number in numbers for fault in self.with_workers(number)]
        yield Row("signal to a run with two worker processes", len(numbers), faults)

    def signalled(self, item: tuple[int, int]) -> list[str]:
        """Signal before a file event, then go on."""
        number, place = item
        output = self.fresh(f"signalled{number}")
        went = told(self.words(output), output, at=place, act=lambda: os.kill(os.getpid(), number))
        return self.faults(went, {-number, 128 + number}, output) + self.resumed(output)

    def with_workers(self, number: int) -> list[str]:
        """Signal the parent alone once a cell is stored: workers must end by themselves."""
        output = self.fresh(f"workers{number}")
        words = [*self.words(output), "--workers", "2", "--seconds", "0.5"]
        own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        with open(output / "said", "w+") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "train", *words],
                stdout=said, stderr=said, env={**os.environ, **own}, start_new_session=True,
            )  # fmt: skip
            wait_for(lambda: any(output.glob("*/cells/*.nc")) or process.poll() is not None)
            process.send_signal(number)
            status = process.wait(SECONDS)
            if not wait_for(lambda: not is_group(process.pid)):
                os.killpg(process.pid, signal.SIGKILL)
                return [f"signal {number} left processes"]
            said.seek(0)
            went = Told(status, said.read())
        (output / "said").unlink()
        faults = self.faults(went, {-number, 128 + number}, output)
        run = only_run(output)
        went = told(self.words(output, "--seconds", "0.5", "--resume", run), output)
        return faults + self.faults(went, {0}, output)

    def cells(self) -> Iterator[Row]:
        """SIGKILL at random moments within one long cell: its checkpoints are taken up."""
        (self.folder / "long.py").write_text(TRAINING)
        output = self.fresh("long")
        status = self.trains(output).wait(SECONDS)
        if status:
            raise SystemExit(f"the study that trains does not run:\n{(output / 'said').read_text()}")
        whole = results.load(only_run(output) / "result.nc")
        seconds = float(whole.attrs["wall_seconds"])
        moments = np.random.default_rng(2).uniform(0, seconds, 3 if self.quick else 20).tolist()
        faults = [f"{moment:.1f} s: {fault}" for moment in moments for fault in self.trained(moment, whole)]
        yield Row(f"kill -9 within a cell of {seconds:.0f} s", len(moments), faults)

    def trains(self, output: Path, *more: object) -> subprocess.Popen:
        """Begin a real run of the study that trains; what it says goes to a file."""
        words = [
            "run",
            self.folder / "long.py",
            "--workers",
            0,
            "--output",
            output,
            "--checkpoint-every",
            0.5,
            *more,
        ]
        own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        with open(output / "said", "w") as said:
            command = [sys.executable, "-m", "train", *map(str, words)]
            return subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **own})

    def trained(self, moment: float, whole: xr.Dataset) -> list[str]:
        """Kill so many seconds after the run folder is there, then go on."""
        output = self.fresh("trained")
        process = self.trains(output)
        wait_for(lambda: any(output.glob("[!.]*/config.json")))
        time.sleep(moment)
        process.kill()
        process.wait()
        run = only_run(output)
        stored = {path.name for path in run.glob("cells/*.partial/[0-9]*") if path.is_dir()}
        status = self.trains(output, "--resume", run).wait(SECONDS)
        said = (output / "said").read_text()
        if status or "Traceback" in said:
            return [f"status {status}: {said[-1500:]}"]
        left = [path.name for path in (run / "cells").iterdir() if path.suffix != ".nc"]
        found = results.measurements(results.load(run / "result.nc"))
        faults = ["other measurements"] * (not found.identical(results.measurements(whole)))
        is_taken_up = "goes on from its checkpoint" in said or not stored or "1-200" in stored
        return (
            faults
            + [f"litter: {left}"] * bool(left)
            + ["the checkpoint was not taken up"] * (not is_taken_up)
        )

    def space(self) -> Iterator[Row]:
        """A limit on the size of files, and a disk that is full from some file event on."""
        sizes = sorted({path.stat().st_size for path in self.run.rglob("*") if path.is_file()})
        limits = [0, 100, *(size - 1 for size in (sizes[::3] if self.quick else sizes))]
        yield Row("EFBIG by RLIMIT_FSIZE", len(limits), self.spread(self.limited, limits))
        numbers = range(1, self.num_events + 1, 4 if self.quick else 1)
        yield Row("ENOSPC from a file event on", len(numbers), self.spread(self.filled, numbers))

    def limited(self, limit: int) -> list[str]:
        """Run where no file may be larger than a limit, then without one."""
        output = self.fresh(f"limited{limit}")
        went = told(
            self.words(output),
            output,
            before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
        )
        return self.refused(went, output, os.strerror(errno.EFBIG)) + self.resumed(output)

    def filled(self, number: int) -> list[str]:
        """Run on a disk that is full from a file event on, then with space."""

        def full() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        output = self.fresh(f"filled{number}")
        went = told(self.words(output), output, at=number, act=full, for_good=True)
        return self.refused(went, output, os.strerror(errno.ENOSPC)) + self.resumed(output)

    def refused(self, went: Told, output: Path, reason: str) -> list[str]:
        """What is wrong with how a command said that there is no space, or did without it: it then has all."""
        faults = self.faults(went, {0, 2}, output)
        is_said = reason in went.output and "Free some space" in went.output
        is_whole = went.status == 0 and (only_run(output) / "report.html").exists()
        return faults + ([] if is_said or is_whole else [f"no reason, or no remedy: {went.output[-1500:]}"])

    def cuts(self) -> Iterator[Row]:
        """Every file cut short: each is refused, and a cell measured again."""
        for file in self.files():
            size, number = file.stat().st_size, 30 if self.quick else 300
            lengths = sorted({int(share * size) for share in np.linspace(0, 1, number, endpoint=False)})
            damaged = self.copied("cut") / file.relative_to(self.run)
            contents = ((f"{length} bytes", file.read_bytes()[:length]) for length in lengths)
            yield hurt(f"{file.name} truncated", damaged, contents)
        yield Row(
            "a truncated cell resumed", 3, self.spread(self.repaired, [("cut", 0), ("cut", 100), ("cut", -1)])
        )

    def bits(self) -> Iterator[Row]:
        """Single flipped bits, in every file that is read again."""
        for file in self.files():
            content = file.read_bytes()
            number = 700 if self.quick else 7000
            places = np.random.default_rng(0).integers(8 * len(content), size=number).tolist()
            damaged = self.copied("bits") / file.relative_to(self.run)
            contents = ((f"bit {place}", flipped(content, place)) for place in places)
            yield hurt(f"a bit of {file.name} flipped", damaged, contents)
        places = [("bit", place) for place in np.random.default_rng(1).integers(100_000, size=4).tolist()]
        yield Row("a cell with a flipped bit resumed", len(places), self.spread(self.repaired, places))
        yield Row("a result with a flipped bit reported", 2, self.spread(self.reported, [1000, -1000]))

    def files(self) -> tuple[Path, ...]:
        """What of a run is read again: a cell, the result, the record."""
        return self.run / "cells" / "depth=9.nc", self.run / "result.nc", self.run / "config.json"

    def repaired(self, item: tuple[str, int]) -> list[str]:
        """Damage a cell, then go on: it is set aside, and measured again."""
        kind, place = item
        run = self.copied(f"{kind}{place}")
        cell = run / "cells" / "depth=9.nc"
        content = cell.read_bytes()
        cell.write_bytes(content[:place] if kind == "cut" else flipped(content, place))
        (run / "result.nc").unlink()
        went = told(self.words(run.parent, "--resume", run), run.parent)
        is_said = cell.with_name(f"{cell.name}.corrupt").exists() and f"{cell.name}.corrupt" in went.output
        return self.faults(went, {0}, run.parent) + ([] if is_said else ["nothing was set aside"])

    def reported(self, place: int) -> list[str]:
        """Damage the result, then ask for its report."""
        run = self.copied(f"reported{place}")
        path = run / "result.nc"
        path.write_bytes(flipped(path.read_bytes(), place))
        went = told(["report", str(run), "--trust"], run.parent)
        is_named = str(path) in went.output and "damaged" in went.output
        return self.faults(went, {2}, run.parent) + ([] if is_named else [f"not named: {went.output}"])

    def checkpoint(self) -> Iterator[Row]:
        """Bits of a checkpoint of `jaxact.fit`, flipped one at a time."""
        with multiprocessing.get_context("fork").Pool(
            1
        ) as pool:  # JAX starts threads, which no fork survives
            yield pool.apply(flip_checkpoint, (self.fresh("checkpoint"), 300 if self.quick else 3000))


def hurt(harm: str, path: Path, contents: Iterator[tuple[str, bytes]]) -> Row:
    """Load each content of a file: it is refused by its name, or what is read is what was written."""
    load: Callable[[], Any] = (lambda: results.load(path)) if path.suffix == ".nc" else (lambda: read(path))
    whole, faults, tried = load(), [], 0
    for what, content in contents:
        path.write_bytes(content)
        tried += 1
        try:
            found = load()
        except (OSError, ValueError) as error:
            is_named = str(path) in str(error) or str(path.parent) in str(error)
            faults += [] if is_named else [f"{what}: no file is named: {error}"]
        except Exception as error:
            faults.append(f"{what}: {error!r}")
        else:
            faults += [] if is_same(found, whole) else [f"{what}: silent"]
    return Row(harm, tried, faults)


def told(
    words: Sequence[str],
    folder: Path,
    *,
    at: int = 0,
    act: Act = lambda: None,
    for_good: bool = False,
    before: Act = lambda: None,
) -> Told:
    """Run one command in a fork of this process; at a file event below `folder` it does something to itself."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        os._exit(_run(words, folder, at, act, for_good, before))
    os.close(writer)
    output, end = b"", time.monotonic() + SECONDS
    while select.select([reader], [], [], max(end - time.monotonic(), 0.0))[0] and (
        part := os.read(reader, 2**16)
    ):
        output += part
    os.close(reader)
    if time.monotonic() >= end:
        os.kill(child, signal.SIGKILL)
        output += b"\nTraceback: it hung"
    _, status = os.waitpid(child, 0)
    return Told(os.waitstatus_to_exitcode(status), output.decode(errors="replace"))


def _run(words: Sequence[str], folder: Path, at: int, act: Act, for_good: bool, before: Act) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # what this process had buffered is its own
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    for number in (signal.SIGTERM, signal.SIGHUP):  # nohup, for one, has us ignore them
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    count = watch_files(str(folder), at, act, for_good)
    before()
    try:
        status = train.__main__.main(list(words))
    except KeyboardInterrupt as error:
        status = 128 + getattr(error, "signal_number", signal.SIGINT)
    except SystemExit as stop:
        status = int(stop.code or 0)
    print(f"file events: {count()}", flush=True)
    sys.stderr.flush()
    return status


def watch_files(folder: str, at: int, act: Act, for_good: bool) -> Callable[[], int]:
    """Act before the file event of this number, or before all from it on; the events are counted."""
    met = 0

    def meet() -> None:
        nonlocal met
        met += 1
        if at and (met >= at if for_good else met == at):
            act()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            is_write = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            is_write = event in ("os.rename", "os.mkdir") or (
                event in ("os.remove", "os.rmdir") and not for_good
            )
        if is_write and str(arguments[0]).startswith(folder):
            meet()

    def fsync(handle: int, flush: Callable[[int], None] = os.fsync) -> None:
        meet()
        flush(handle)

    os.fsync = fsync
    sys.addaudithook(hook)
    return lambda: met


def flip_checkpoint(folder: Path, number: int) -> Row:
    """Flip bits in all files of a checkpoint: it is refused, or restored as it was saved."""
    import jax
    import jax.numpy as jnp

    from jaxact import fit

    logging.disable(logging.CRITICAL)  # Orbax says what it thinks of every flip
    state = {"weights": jnp.linspace(0.0, 1.0, 3000).reshape(30, 100), "step": jnp.int32(7)}
    path = folder / "checkpoint"
    fit.save(path, state)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    ends = np.cumsum([8 * file.stat().st_size for file in files])
    faults: list[str] = []
    for place in np.random.default_rng(0).integers(ends[-1], size=number).tolist():
        file = files[int(np.searchsorted(ends, place, side="right"))]
        content = file.read_bytes()
        file.write_bytes(flipped(content, place))
        try:
            found = fit.restore(path, state)
            if not all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(state))):
                faults.append(f"bit {place}, in {file.relative_to(path)}: silent")
        except (OSError, ValueError) as error:
            faults += [] if str(path) in str(error) else [f"bit {place}: no file is named: {error}"]
        except Exception as error:
            faults.append(f"bit {place}, in {file.relative_to(path)}: {error!r}"[:300])
        file.write_bytes(content)
    return Row("a bit of a checkpoint flipped", number, faults)


def read(path: Path) -> Any:
    """A run's record, without the digest, which says nothing about the run."""
    return runner.read(path.parent)._replace(digest="")


def is_same(found: Any, whole: Any) -> bool:
    """Whether a Dataset or a record is the one that was written."""
    return found.identical(whole) if isinstance(whole, xr.Dataset) else found == whole


def flipped(content: bytes, place: int) -> bytes:
    """The bytes with one bit another."""
    damaged = bytearray(content)
    place %= 8 * len(content)
    damaged[place // 8] ^= 1 << place % 8
    return bytes(damaged)


def only_run(output: Path) -> Path:
    """The one run in a folder."""
    (run,) = (path.parent for path in output.glob("[!.]*/config.json"))
    return run


def wait_for(test: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Wait until something holds; whether it does."""
    end = time.monotonic() + seconds
    while not (holds := test()) and time.monotonic() < end:
        time.sleep(0.02)
    return holds


def is_group(number: int) -> bool:
    """Whether a process group has a process."""
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


HARMS = {
    name: getattr(Torture, name)
    for name in ("kills", "signals", "cells", "space", "cuts", "bits", "checkpoint")
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; 1 if anything fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="some four minutes on two cores")
    parser.add_argument(
        "--only", nargs="+", choices=HARMS, default=[*HARMS], metavar="HARM", help=f"of {[*HARMS]}"
    )
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message=".*fork.*")
    os.environ["JAX_PLATFORMS"] = "cpu"
    with multiprocessing.get_context("fork").Pool(1) as pool:
        # A second of every run, and always the same; by a process of its own, as it starts threads.
        bundle = pool.apply(_render.bundle)
    _render.bundle = lambda: bundle
    is_well = True
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        torture = Torture(Path(folder).resolve(), quick=given.quick)
        for harm in given.only:
            started = time.monotonic()
            for row in HARMS[harm](torture):
                seconds, started = time.monotonic() - started, time.monotonic()
                print(f"{row.harm}: {row.tried} tried, {len(row.faults)} bad, {seconds:.0f} s", flush=True)
                for fault in row.faults[:5]:
                    print(f"  {' '.join(fault.split())[:400]}")
                is_well = is_well and not row.faults
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
