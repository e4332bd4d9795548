"""A run folder and its processes: damaged, held by another, half made, without memory, files or letters."""

import errno
import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train import causes, locks, pool, request, runner
from train.config import ConfigError

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_study.py")
SECONDS = 90.0
DEEP = "[" * 200_000 + "]" * 200_000


def ended(process):
    """Exit status, stdout and stderr."""
    out, err = process.communicate(timeout=SECONDS)
    return process.returncode, out, err


def only_run(tmp_path, output="runs"):
    (directory,) = (path for path in (tmp_path / output).iterdir() if not path.name.startswith("."))
    return directory


def with_field(name, value):
    def spoil(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "", name: value}))

    return spoil


def replaced_by(make):
    def spoil(path):
        path.unlink()
        make(path)

    return spoil


DAMAGE = {
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:90]), "it is not JSON"),
    "not JSON": (lambda path: path.write_text("depths = 4"), "it is not JSON"),
    "a list": (lambda path: path.write_text("[]"), "it holds a list, not an object"),
    "wrong type": (with_field("cells", 3), "its `cells` must be a list, is a whole number"),
    "wrong types within": (with_field("cells", [1, 2]), "its `cells` must be a list of text"),
    "null": (with_field("study", None), "its `study` must be text, is null"),
    "no field": (lambda path: path.write_text('{"study": "x"}'), "it has no `run_id`"),
    "no time": (with_field("started", "9" * 500), "its `started` must be a time"),
    "huge number": (
        lambda path: path.write_text(f'{{"cells": {"9" * 5000}}}'),
        "a number of more digits than are read",
    ),
    "deep": (lambda path: path.write_text(DEEP), "it is nested too deeply"),
    "not UTF-8": (lambda path: path.write_bytes(b'{"study": "\xff\xfe"}'), "it is not UTF-8 text"),
    "huge": (lambda path: os.truncate(path, 2**40), "it is too large"),
    "folder": (replaced_by(Path.mkdir), "it is a folder, not a plain file"),
    "pipe": (replaced_by(os.mkfifo), "it is a named pipe, not a plain file"),
    "loop": (replaced_by(lambda path: path.symlink_to(path)), "it is a link to "),
    "link": (replaced_by(lambda path: path.symlink_to("/proc/kmsg")), "it is a link to /proc/kmsg"),
    "escapes": (with_field("started", "\x1b]0;owned\x07\nx"), r"\x1b]0;owned\x07\nx"),
}


def test_each_damaged_run_is_one_line_that_says_what_is_wrong_and_the_others_are_listed(call, tmp_path):
    assert call("run", FAKE, "--smoke")[0] == 0
    whole = only_run(tmp_path)
    for number, (spoil, _) in enumerate(DAMAGE.values()):
        directory = tmp_path / "runs" / f"bad-{number:02d}"
        directory.mkdir()
        (directory / "config.json").write_bytes((whole / "config.json").read_bytes())
        spoil(directory / "config.json")
    status, out, err = call("list")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert any(whole.name in line and "complete" in line for line in lines)
    for number, (_, why) in enumerate(DAMAGE.values()):
        (line,) = (line for line in lines if f"bad-{number:02d}" in line)
        assert why in line
        assert line.isprintable()


def test_an_unreadable_config_is_one_line_too(call, tmp_path, monkeypatch):
    assert call("run", FAKE, "--smoke")[0] == 0

    def refused(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refused)  # as root may read anything
        status, out, _ = call("list")
    assert status == 0
    assert (
        f"{Path('runs') / only_run(tmp_path).name} cannot be listed: its config.json: Permission denied"
        in out
    )


def test_asking_whether_a_run_is_at_work_takes_no_lock_and_writes_nothing(tmp_path, monkeypatch):
    with locks.held(tmp_path, pytest.fail), monkeypatch.context() as patch:
        before = tmp_path.stat().st_mtime_ns, [path.name for path in tmp_path.iterdir()]
        patch.setattr("fcntl.flock", lambda *_: pytest.fail("a run that starts now would be refused"))
        assert locks.is_held(tmp_path)
        assert (tmp_path.stat().st_mtime_ns, [path.name for path in tmp_path.iterdir()]) == before
    assert not locks.is_held(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_system_locks(monkeypatch):
    """Network file systems without flock, and without hard links."""
    import fcntl

    def refused(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    return lambda: monkeypatch.setattr(os, "link", refused)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_second_process_is_refused_by_name_without_system_locks(no_system_locks, tmp_path, has_links):
    if not has_links:
        no_system_locks()
    with locks.held(tmp_path, pytest.fail) as check:
        named = rf"another process runs in .*: process {os.getpid()} on {socket.gethostname()}, since 20.*last seen"
        with pytest.raises(ConfigError, match=named), locks.held(tmp_path, pytest.fail):
            pass
        check()
        assert locks.is_held(tmp_path)
    assert not list(tmp_path.iterdir())


def left_behind(directory, seconds=0.0, **fields):
    """The lock of a process that is no more, last seen so many seconds ago."""
    content = locks._me()._asdict() | fields
    (directory / ".lock").write_text(json.dumps(content))
    os.utime(directory / ".lock", (time.time() - seconds,) * 2)


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("seconds", "fields", "is_stale"),
    [
        (0.0, {"pid": "dead"}, True),
        (0.0, {"pid": 2**40}, True),
        (0.0, {"ticks": 1}, True),  # a later process has its number
        (1e6, {}, False),  # suspended, but it lives
        (5.0, {"host": "elsewhere"}, False),
        (300.0, {"host": "elsewhere"}, True),
        (5.0, {"place": "another container", "pid": "dead"}, False),
        (300.0, {"pid": "what"}, True),  # a damaged file names nobody
        (5.0, {"pid": None}, False),
    ],
)
def test_the_lock_of_a_dead_process_is_taken_over_with_a_word(
    no_system_locks, tmp_path, seconds, fields, is_stale
):
    fields = {name: dead_pid() if value == "dead" else value for name, value in fields.items()}
    left_behind(tmp_path, seconds, **fields)
    said = []
    assert locks.is_held(tmp_path) is not is_stale
    if is_stale:
        with locks.held(tmp_path, said.append):
            assert locks._read(tmp_path / ".lock").pid == os.getpid()
        assert re.fullmatch(r"Taken over from (process \d+ on|a process without).*without a word\.", said[0])
    else:
        with pytest.raises(ConfigError, match="another process runs"), locks.held(tmp_path, said.append):
            pass
        assert said == []


def test_a_process_that_was_taken_over_writes_no_more(no_system_locks, tmp_path):
    with locks.held(tmp_path, pytest.fail) as check:
        left_behind(tmp_path, host="elsewhere")
        with pytest.raises(ConfigError, match=r"on elsewhere.* has taken over"):
            check()
    assert json.loads((tmp_path / ".lock").read_text())["host"] == "elsewhere"  # not ours to remove


def test_a_lock_shows_that_its_process_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.05)
    with locks.held(tmp_path, pytest.fail):
        os.utime(tmp_path / ".lock", (0.0, 0.0))
        end = time.monotonic() + 10.0
        while (tmp_path / ".lock").stat().st_mtime < 1e9:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("words", [["run", "--resume"], ["resume"]])
@pytest.mark.parametrize("is_config_there", [True, False])
def test_a_run_is_resumed_with_the_words_that_began_it(call, tmp_path, words, is_config_there):
    study = tmp_path / "study.py"
    study.write_text(FAKE.read_text())
    options = ["--depths", "1", "3", "--activations", "leaky_relu(0.3)", "--output", "my runs"]
    assert call("run", "study.py", *options, "--trouble", "bug")[0] == 1
    directory = only_run(tmp_path, "my runs")
    text = study.read_text().replace("self._be_troublesome()", "pass")
    study.write_text(text)
    if not is_config_there:
        study.unlink()
        (directory / "config.py").write_text(text)
    status, _, err = call(*words, directory, "--rate", "3")
    assert status == 2
    assert "`rate` is 0.5 in the run and 3.0 now" in err
    status, _, err = call(*words, directory, "--workers", "0")
    assert status == 2
    assert "`config.py` has changed" in err
    assert call(*words, directory, "--workers", "0", "--allow-changed-code")[0] == 0
    assert len(list((directory / "cells").iterdir())) == 2
    status, _, err = call("report", directory, "--trust")
    assert status == 0
    assert [path.name for path in (tmp_path / "my runs").iterdir()] == [directory.name]


@pytest.mark.parametrize("command", ["", "rm -rf x", "python -m train run", "python -m train run 'x"])
def test_a_run_that_does_not_say_how_it_was_begun_asks_for_its_config(call, tmp_path, command):
    call("run", FAKE, "--smoke")
    with_field("command", command)(only_run(tmp_path) / "config.json")
    status, _, err = call("resume", only_run(tmp_path))
    assert status == 2
    assert "does not say how it was begun" in err
    assert "run CONFIG ... --resume" in err


@pytest.mark.parametrize(
    "name", ["a b", "it's", 'a "quoted" $HOME', "tab\tbed", "two\nlines", "\x1b[31m'\\", "größe"]
)
def test_the_printed_command_names_the_folder_whatever_its_name(tmp_path, name):
    output = tmp_path / name
    directory = runner.create(request.parse([str(FAKE)]).experiment, FAKE, output=output, command="")
    printed = runner.resume_command(directory)
    assert printed.isprintable()
    words = printed.removeprefix("python -m train resume ")
    shown = subprocess.run(["bash", "-c", f"printf %s {words}"], capture_output=True, check=True)
    assert os.fsdecode(shown.stdout) == str(directory)


@pytest.mark.parametrize("name", [b"st\xff", b"-x", "\u00fc\u2028\x1b[2J".encode()])
def test_a_study_of_any_name_runs_is_listed_and_resumed(call, tmp_path, name):
    study = os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".py")
    Path(study).write_text(FAKE.read_text())
    output = os.fsdecode(name)
    assert call("run", f"./{Path(study).name}", f"--output=./{output}")[0] == 0
    (tmp_path / output / "bad").mkdir()
    (directory,) = (path.parent for path in (tmp_path / output).glob("*/config.json"))
    (directory / "result.nc").unlink()
    assert call("resume", directory)[0] == 0
    status, out, err = call("list", f"--output=./{output}")
    assert (status, err) == (0, "")
    assert "complete" in out
    assert not set(out) & {"\u2028", "\x1b", "\udcff"}


def test_what_killed_processes_left_is_removed_by_the_next_command(call, tmp_path):
    call("run", FAKE, "--smoke")
    directory, runs = only_run(tmp_path), tmp_path / "runs"
    host = locks._file_name(socket.gethostname())
    name = "study-20260101T000000-abcd"
    dead, alive, old = (
        runs / f".{name}.{tail}.tmp"
        for tail in (f"{host}.{dead_pid()}", f"{host}.{os.getpid()}", f"elsewhere.{1}")
    )
    foreign = runs / ".mine.tmp"
    for command in (
        ["list"],
        ["run", FAKE, "--smoke", "--output", "runs"],
        ["report", directory, "--trust"],
        ["resume", directory],
    ):
        for path in (dead, alive, old, foreign):
            (path / "cells").mkdir(parents=True, exist_ok=True)
        os.utime(old, (0.0, 0.0))
        (directory / "figures" / ".a.svg.123.tmp").write_text("half")
        (directory / ".result.nc.123.tmp").write_text("half")
        assert call(*command)[0] == 0
        assert [path.exists() for path in (dead, alive, old, foreign)] == [False, True, False, True]
        is_there = command[0] in ("report", "resume")
        assert (directory / "figures" / ".a.svg.123.tmp").exists() is not is_there
        assert (directory / ".result.nc.123.tmp").exists() is not is_there


QUICK = """
import os, shutil, signal, sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from train.experiment import Cell

@dataclass(frozen=True)
class Quick:
    def smoke(self):
        return self

    def cells(self):
        return [Cell(name, {"place": place}) for place, name in enumerate(CELLS)]

    def run(self, cell, *, progress):
        TROUBLE
        labels = {"units": "1", "long_name": "it"}
        place = [cell.coords["place"]]
        return xr.Dataset({"it": ("place", place, labels)}, {"place": ("place", place, labels)})

    figures = tables = staticmethod(lambda result: {})
    findings = staticmethod(lambda result: ["Done."])

def get_config():
    return Quick()
"""


NAMES = "bcdefgh"


def quick(codes):
    """A study without jax: "a", and a cell for each name, which runs some code."""
    trouble = "\n        ".join(f"if cell.name == {name!r}: {code}" for name, code in codes.items())
    return QUICK.replace("TROUBLE", trouble).replace("CELLS", repr(("a", *codes)))


def troubled(tmp_path, *codes):
    """A study without jax, whose cells but the first run some code."""
    (tmp_path / "study.py").write_text(quick(dict(zip(NAMES, codes, strict=False))))


CAUSES = {
    "os.kill(os.getpid(), signal.SIGTERM)": r"{}: .*ended by SIGTERM, 1 times\.\n  Somebody, or the batch system",
    "os.kill(os.getpid(), signal.SIGSEGV)": r"{}: .*ended by SIGSEGV, 1 times\.\n  Compiled code crashed",
    "os.kill(os.getpid(), signal.SIGKILL)": r"{}: .*ended by SIGKILL, 1 times\.\n  Memory ran out .*--workers 1",
    "os._exit(3)": r"{}: .*ended with status 3, 1 times\.\n  The study, or a library that it calls, ended",
    "sys.exit(4)": r"{}: it called sys\.exit\(4\)\.\n  Let the study raise an exception",
    "np.zeros(2**62, np.int8)": r"{}: memory ran out \(.*Unable to allocate 4.*\)\.\n  Use .*--workers 1",
}
BUGS = {
    "1 / 0": r"(?s)Traceback.*- {}: ZeroDivisionError: division by zero \(study\.py, line \d+\)\.\n  Mend"
}


@pytest.mark.parametrize("causes", [CAUSES, BUGS])
def test_what_ended_a_cell_is_named_with_its_own_remedy(call, tmp_path, monkeypatch, causes):
    monkeypatch.setattr(pool, "MOST_TRIES", 1)
    troubled(tmp_path, *causes)
    status, _, err = call("run", "study.py", "--workers", "1")
    assert status == 1, err
    for name, cause in zip(NAMES, causes.values(), strict=False):
        assert re.search(cause.format(name), err), err
    check_kept(tmp_path, err, 1 + len(causes))
    assert ("Traceback" in err) == (causes is BUGS)


def test_files_that_run_out_end_the_run_with_their_remedy(call, tmp_path):
    troubled(tmp_path, "[os.open('/', 0) for _ in range(10**7)]")
    status, _, err = call("run", "study.py", "--workers", "1")
    assert status == 2, err
    assert re.search(r"error: b: .*Too many open files.*`ulimit -n", err), err
    check_kept(tmp_path, err, 2)
    assert "Traceback" not in err


def check_kept(tmp_path, err, num_cells):
    kept = rf"1 of {num_cells} cells are finished and kept\. Continue with:\n  python -m train resume runs/"
    assert re.search(kept, err)
    assert "Make the folder writable" not in err
    assert not (only_run(tmp_path) / ".lock").exists()


def test_deleted_cells_are_named_and_measured_again(call, tmp_path):
    delete = "shutil.rmtree(next(Path('runs').glob('*/cells')))"
    troubled(tmp_path, delete)
    status, _, err = call("run", "study.py")
    assert status == 2
    assert "deleted or moved its folder meanwhile: put it back, or have what was in it measured again" in err
    assert "Make the folder writable" not in err
    troubled(tmp_path, "pass")
    directory = only_run(tmp_path)
    assert call("resume", directory, "--allow-changed-code")[0] == 0
    assert len(list((directory / "cells").iterdir())) == 2


def test_a_run_whose_folder_is_gone_says_so(call, tmp_path):
    troubled(tmp_path, "shutil.rmtree('runs')")
    status, _, err = call("run", "study.py")
    assert status == 2
    assert "deleted or moved its folder" in err
    assert "is gone, and its cells with it. Start a new run." in err


def test_errors_of_the_study_are_not_blamed_on_the_machine():
    for error in (ValueError("x"), OSError("x"), FileNotFoundError(errno.ENOENT, "x"), RecursionError("x")):
        assert causes.outside(error) is None
    for number in signal.Signals:
        assert causes.of_end(-number).what == f"ended by {number.name}"
    assert causes.of_end(-77).what == "ended by signal 77"


def test_a_stdout_that_is_full_is_said_without_a_traceback(start):
    for words in (["list"], ["run", FAKE, "--smoke", "--workers", "0"]):
        status, _, err = ended(start(*words, before="exec >/dev/full"))
        assert status == 2
        assert err.startswith("error: the system refused (OSError: [Errno 28] No space left on device")
        assert "Traceback" not in err
        assert "Exception ignored" not in err


def as_program(monkeypatch, module, words, encoding):
    """Exit status, stdout and stderr of a program in this process, whose stdout has an encoding."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [module, *map(str, words)])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setenv("JAX_PLATFORMS", "cpu")  # which the program sets
        patch.setattr("jaxact.cache.use_compilation_cache", lambda: None)  # this process has one
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / module / "__main__.py"), run_name="__main__")
    for stream in (out, err):
        stream.flush()
    return stop.value.code, *(stream.buffer.getvalue().decode(encoding) for stream in (out, err))


def test_names_that_stdout_cannot_write_end_no_command(start, tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    text = quick({"\u03c3": "print('\u03c3')"}).replace('"Done."', '"\u03c3 is done."')
    (tmp_path / "configs" / "gr\u03c3\u2192.py").write_text('"""\u03c3"""\n' + text, encoding="utf-8")
    output = "l\u03c3"
    words = ["run", "configs/gr\u03c3\u2192.py", "--workers", "1", "--output", output]
    status, out, err = ended(start(*words, PYTHONIOENCODING="ascii"))  # its worker prints as well
    assert (status, err) == (0, "")
    assert "- ? is done." in out
    monkeypatch.chdir(tmp_path)
    for module, words, encoding, shown in (
        ("train", ["list", "--output", output], "cp1252", "l?/gr??-2"),
        (
            "train",
            ["report", only_run(tmp_path, output), "--trust", "--output", output],
            "cp1252",
            "/l?/gr??-2",
        ),
        ("jaxact", ["describe", "relu", "--plot", "g\u03c3.svg"], "ascii", "g?.svg"),
    ):
        status, out, err = as_program(monkeypatch, module, words, encoding)
        assert (status, err) == (0, "")
        assert shown in out
