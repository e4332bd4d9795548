"""How a run stands, as another terminal sees it: running, interrupted, killed, failed, complete; damaged files."""

import io
import json
import os
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console

from train import config, outcomes, runner, snapshot, status
from train.progress import Display

FAKE = Path(__file__).with_name("fake_study.py")


def begun(tmp_path, experiment=None):
    experiment = experiment or config.load(FAKE)
    return runner.create(experiment, FAKE, output=tmp_path / "runs", command="python -m train run fake.py")


def shown(directory):
    console = Console(file=io.StringIO(), width=200)
    status.show(directory, console)
    return " ".join(console.file.getvalue().split())


def in_list(call, directory):
    (row,) = (line for line in call("list")[1].splitlines() if directory.name in line)
    return next(word for word in ("running", "interrupted", "failed", "complete") if word in row)


def test_a_run_by_worker_processes_is_seen_from_elsewhere_until_it_is_killed(start, call, tmp_path):
    process = start("run", FAKE, "--workers", "2", "--seconds", "30")
    deadline = time.monotonic() + 60
    while not (found := list(tmp_path.glob("runs/*/progress.json"))) or "sleeping" not in shown(
        found[0].parent
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.1)
    directory = found[0].parent
    before = sorted((path.name, path.stat().st_ino) for path in directory.iterdir())
    seen = shown(directory)
    assert f"{directory.name}: running, process {process.pid} on " in seen
    assert "cells 0 of 4 done" in seen
    assert "GiB in 3 process(es)" in seen
    (worker,) = {each.worker for each in snapshot.read(directory).running[:1]}
    pid = int(worker.removeprefix("process "))
    assert os.getpgid(pid) == os.getpgid(process.pid)
    assert in_list(call, directory) == "running"
    # The lock is the run's own; only its heartbeat and newest snapshot have changed.
    same = [name for name, _ in before]
    assert sorted(path.name for path in directory.iterdir() if not path.name.endswith(".tmp")) == same
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert f": interrupted; process {process.pid} on " in shown(directory)
    assert ", was killed" in shown(directory)
    assert in_list(call, directory) == "interrupted"


def test_what_a_display_knows_is_what_the_file_says(tmp_path, monkeypatch):
    experiment, now, offered = config.load(FAKE), [100.0], []
    directory, cells = begun(tmp_path), experiment.cells()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = snapshot.Log(directory, experiment)
    monkeypatch.setattr(log, "offer", offered.append)
    console = Console(file=io.StringIO(), width=200)
    with Display(cells, console, log) as display:
        display.skip(cells[0], 1.0)
        display.start(cells[1], "process 7")
        now[0] += 10
        display.finish(cells[1], 10.0)
        report = display.start(cells[2], "process 7")
        now[0] += 5
        report(0.5, "half")
        seen = offered[-1]
        assert (seen.num_cells, seen.num_done, seen.num_failed, seen.has_ended) == (4, 2, 0, False)
        assert seen.cells_per_second == pytest.approx(1.5 / 15)
        (running,) = seen.running
        assert (running["cell"], running["fraction"]) == (cells[2].name, 0.5)
        assert (running["note"], running["worker"]) == ("half", "process 7")
        assert seen.seconds_left == pytest.approx(
            5.0 + 10.0
        )  # the rest of this one; the last is as deep as the second
        display.fail(cells[2].name, "it fell over", is_first=True)
    seen = snapshot.read(directory)
    assert (seen.num_failed, seen.has_ended) == (1, True)
    assert seen.failed == [(cells[2].name, "it fell over")]
    # The first took 10 s; of the others one is as deep as a cell of 1 s, one as the first.
    assert "The cells took 0:15; the forecast after the first was 0:21." in console.file.getvalue()


def test_many_reports_are_few_writings_and_the_newest_is_among_them(tmp_path, monkeypatch):
    directory, written = begun(tmp_path), []
    monkeypatch.setattr(os, "replace", lambda old, new: written.append(json.loads(Path(old).read_text())))
    log = snapshot.Log(directory, config.load(FAKE))
    seen = snapshot.Snapshot(written=0.0, num_cells=4, num_done=0, num_failed=0)
    for number in range(1000):
        log.offer(seen._replace(num_done=number))
    time.sleep(1.3)
    assert len(written) <= 2
    assert written[-1]["num_done"] == 999
    log.close(seen._replace(has_ended=True))
    assert written[-1]["has_ended"]


def test_speed_and_members_follow_from_what_a_study_has():
    now = time.time()
    seen = snapshot.Snapshot(
        written=now - 10, num_cells=6, num_done=2, num_failed=0, cells_per_second=0.5, seconds_left=70.0,
        num_members=9, num_steps=200,
    )  # fmt: skip
    rows = dict(status._rows(seen, is_running=True))
    assert rows["members"] == "9 a cell, 54 in all"
    assert rows["speed"].startswith("100 optimiser steps/s, 900 of single networks")
    assert "1.8e+03 cells an hour" in rows["speed"]
    assert rows["time left"] == "about 1:00"
    assert config.load(FAKE.parents[2] / "configs/depth_sweep.py").num_members() == 9


def test_a_run_is_failed_until_it_is_resumed_and_complete_when_it_is_whole(call, tmp_path):
    text = FAKE.read_text()
    (tmp_path / "study.py").write_text(text.replace('trouble: str = "nothing"', 'trouble: str = "bug"'))
    assert call("run", "study.py", "--workers", "0")[0] == 1
    (directory,) = (tmp_path / "runs").iterdir()
    assert in_list(call, directory) == "failed"
    code, out, err = call("status", directory.name)
    assert (code, err) == (0, "")
    assert ": failed" in out
    assert "3 of 4 done, 0 were running, 1 failed" in out
    assert "relu/depth=2: ZeroDivisionError: a bug in the study" in out
    (tmp_path / "study.py").write_text(text.replace('self.trouble == "bug"', "False").replace(
        'trouble: str = "nothing"', 'trouble: str = "bug"'))  # fmt: skip
    assert call("resume", directory, "--allow-changed-code", "--workers", "0")[0] == 0
    assert in_list(call, directory) == "complete"
    assert not (directory / "progress.json").exists()
    code, out, _ = call("status", directory, "--follow")
    assert code == 0
    assert ": complete" in out
    assert "4 of 4 done" in out


def test_an_interrupted_run_is_no_failed_one_and_an_unwritable_file_ends_none(tmp_path):
    experiment = config.load(FAKE)
    directory, console = begun(tmp_path), Console(file=io.StringIO())
    (directory / "progress.json").mkdir()  # nothing can be renamed to it

    def broken(experiment, cells, display):
        display.start(cells[0])
        yield outcomes.Failure(cells[0].name, "it fell over", "Mend it.")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(experiment, directory, console=console, measure=broken)
    (directory / "progress.json").rmdir()
    with pytest.raises(KeyboardInterrupt):
        runner.run(experiment, directory, console=console, measure=broken)
    assert snapshot.read(directory).num_failed == 1
    assert status.state(directory) == "interrupted"
    assert not list(directory.glob(".*"))


def replaced(path, content):
    path.write_bytes(content)


SEEN = {"written": 0.0, "num_cells": 4, "num_done": 1, "num_failed": 0}
DAMAGE = {
    "empty": (b"", "it is empty"),
    "torn": (b'{"written": 1', "it is not JSON"),
    "other": (b'{"a": 1}', "it has no `written`"),
    "list": (b"[]", "it holds a list, not an object"),
    "kind": (
        json.dumps(SEEN | {"num_done": "\x1b[2J"}).encode(),
        "its `num_done` must be a whole number, is text",
    ),
    "cells": (json.dumps(SEEN | {"running": [3]}).encode(), "it holds a whole number, not an object"),
    "cell": (json.dumps(SEEN | {"running": [{"cell": "a"}]}).encode(), "it has no `fraction`"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_one_line_with_what_is_wrong(call, tmp_path, name):
    content, why = DAMAGE[name]
    directory = begun(tmp_path)
    (directory / "progress.json").write_bytes(content)
    code, out, err = call("status", directory)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {directory}/progress.json cannot be read: {why}")
    assert line.isprintable()
    assert in_list(call, directory) == "interrupted"


def test_what_is_no_run_is_one_line_too(call, tmp_path):
    (tmp_path / "mine").mkdir()
    for words in (["mine"], ["nothing"]):
        code, out, err = call("status", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
    directory = begun(tmp_path)
    (directory / "progress.json").symlink_to("/proc/kmsg")
    assert call("status", directory)[0] == 2


def test_names_do_not_reach_the_terminal_as_they_are(tmp_path):
    directory = begun(tmp_path)
    bad = "a\x1b]0;owned\x07\nb"
    running = [{"cell": bad, "fraction": 0.5, "note": bad, "worker": bad, "began": 0.0}]
    failed = [{"cell": bad, "cause": bad}]
    (directory / "progress.json").write_text(json.dumps(SEEN | {"running": running, "failed": failed}))
    console = Console(file=io.StringIO(), width=300)
    status.show(directory, console)
    assert all(line.isprintable() for line in console.file.getvalue().splitlines())
    assert console.file.getvalue().count(r"a\x1b]0;owned\x07\nb") == 5
