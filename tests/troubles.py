"""A study without jax in which cells go wrong in every way, for workers of any kind, and what must come of it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import xarray as xr

from train import results

ROOT = Path(__file__).parents[1]
SECONDS = 120.0  # for a run on a busy machine
TIMEOUT = 6  # of a cell; all but one end at once
STUDY = '''
import os, signal, time
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from train.experiment import Cell

PLAIN = ("one", "two", "three", "four", "five")


def raises():
    raise ZeroDivisionError("no such number")


def hangs():
    time.sleep(1000)


def segfaults():
    os.kill(os.getpid(), signal.SIGSEGV)


def dies_twice():
    before = len(list(Path().glob("death*")))
    if before < 2:
        Path(f"death{before}").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def loses_parent():
    if not Path("lost").exists():
        Path("lost").touch()
        os.kill(os.getppid(), signal.SIGKILL)
        hangs()


TROUBLES = {each.__name__: each for each in (raises, hangs, segfaults, dies_twice, loses_parent)}
NAMES = ("one", "raises", "two", "dies_twice", "three", "hangs", "four", "segfaults", "raises again", "five")


@dataclass(frozen=True)
class Troubled:
    """A cell for every trouble, among others.

    Attributes:
        names: of the cells.
    """

    names: tuple[str, ...] = NAMES

    def smoke(self):
        return self

    def cells(self):
        return [Cell(name, {"name": name}) for name in self.names]

    def run(self, cell, *, progress):
        progress(0.5)
        if not Path("mended").exists() and (trouble := TROUBLES.get(cell.name.split()[0])):
            trouble()
        said = {"units": "1", "long_name": "it"}
        return xr.Dataset({"length": ("name", [len(cell.name) / 3], said)}, {"name": ("name", [cell.name], said)})

    figures = tables = staticmethod(lambda result: {})
    findings = staticmethod(lambda result: ["Done."])


def get_config():
    return Troubled()
'''
FAILED = {"raises", "raises again", "hangs", "segfaults"}


class Program:
    """The program in a folder of its own; `words` are added to each command."""

    def __init__(self, folder, *words):
        self.folder, self.words = folder, words
        self.study = folder / "study.py"
        self.study.write_text(STUDY)

    def start(self, *words):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "train", *words, *self.words]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=-1,
            stderr=-1,
            text=True,
            start_new_session=True,
        )

    def call(self, *words):
        process = self.start(*words)
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(process.communicate()) from None
        return process.returncode, out, err

    def mend(self):
        (self.folder / "mended").touch()

    def run_folder(self):
        (directory,) = (self.folder / "runs").iterdir()
        return directory


def check_that_others_go_on(folder, whole, *words):
    """Cells fail for good, each for its reason, and the others are what they are in an undisturbed run."""
    program = Program(folder, *words)
    status, out, err = program.call("run", "study.py", "--cell-timeout", f"{TIMEOUT}s")
    assert status == 1, (out, err)
    assert re.search(
        r"(?s)"
        r"raises.*:\nTraceback .*ZeroDivisionError: no such number\n\n"
        r"4 of 10 cells failed:\n"
        r".*Continue with:\n  python -m train resume runs/study-",
        err,
    ), err
    assert err.count("Traceback") == 1  # of two cells that raise alike
    assert re.search(
        r"- raises( again)?, raises( again)?: ZeroDivisionError: no such number \(study\.py, line \d+\)\.\n  Mend",
        err,
    )
    assert f"- hangs: it took longer than 0:0{TIMEOUT}.\n  Raise --cell-timeout" in err
    assert (
        "- segfaults: the process that measured it ended by SIGSEGV, 3 times.\n  Compiled code crashed" in err
    )
    assert "6 of 10 cells are finished and kept." in err
    assert out.count("Another tries it again, 2 of 3.") == 2  # segfaults, dies_twice
    assert out.count("dies_twice: the process that measured it ended by SIGKILL. Another tries it") == 2

    assert "ray" not in out  # its own messages

    directory = program.run_folder()
    kept = {path: path.read_bytes() for path in directory.glob("cells/*")}
    assert {path.stem for path in kept}.isdisjoint(name.replace(" ", "_") for name in FAILED)
    for path in kept:
        same = results.load(whole / "cells" / path.name)
        xr.testing.assert_identical(results.measurements(results.load(path)), results.measurements(same))
    assert not (directory / "result.nc").exists()

    program.mend()
    status, out, err = program.call("resume", str(directory.relative_to(folder)))
    assert (status, err) == (0, ""), (out, err)
    assert {path: path.read_bytes() for path in kept} == kept
    assert len(list(directory.glob("cells/*"))) == 10
    one, other = (results.load(each / "result.nc") for each in (directory, whole))
    xr.testing.assert_identical(results.measurements(one), results.measurements(other))


def wait_until(is_so, process):
    end = time.monotonic() + SECONDS
    while not is_so():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
