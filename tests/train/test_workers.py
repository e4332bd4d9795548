"""Worker processes give what one process gives, and say what became of them."""

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr

from train import config, results, runner
from train.workers import default_number

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_study.py")
SECONDS = 90.0  # to import jax three times on a busy machine


@pytest.fixture
def start(tmp_path):
    """Start the program in an empty folder, in a process group of its own."""
    started = []

    def start(*words, study=FAKE):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "train", "run", str(study), *words]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def children(number):
    """The ids of the processes that any thread of a process has started."""
    listed = []
    for path in Path(f"/proc/{number}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            listed += map(int, path.read_text().split())
    return listed


def command_line(number):
    try:
        return Path(f"/proc/{number}/cmdline").read_text()
    except OSError:
        return ""


def workers_of(process, count):
    """The ids of a process's workers, once there are so many."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        found = [child for child in children(process.pid) if "spawn_main" in command_line(child)]
        if len(found) == count:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("no workers came up")


def wait_for_cells(tmp_path, count, process):
    end = time.monotonic() + SECONDS
    while len(list(tmp_path.glob("runs/*/cells/*.nc"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def is_alive(number):
    status = Path(f"/proc/{number}/status")
    return status.exists() and "zombie" not in status.read_text()


def test_two_workers_give_what_one_process_gives(start, tmp_path):
    words = ("--depths", "4", "2", "3", "1")
    both = [
        start(*words, "--workers", "2", "--output", "two"),
        start(*words, "--workers", "0", "--output", "one"),
    ]
    for process in both:
        _, err = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, err
    two, one = (results.load(next(tmp_path.glob(f"{name}/*/result.nc"))) for name in ("two", "one"))
    xr.testing.assert_identical(results.measurements(two), results.measurements(one))
    assert two.activation.values.tolist() == ["tanh", "relu"]


def test_cells_hold_what_cannot_be_sent_to_a_worker(start, tmp_path):
    own = 'from_callable(lambda x: jnp.tanh(2 * x), name="mine")'
    text = FAKE.read_text().replace(
        "return Fake()", f"return Fake(activations=({own}, relu), depths=(2, 1, 3))"
    )
    study = tmp_path / "own.py"
    study.write_text(text.replace("import Activation,", "import Activation, from_callable,"))
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(config.load(study).cells()[0])
    process = start("--workers", "2", study=study)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    stored = results.load(next(tmp_path.glob("runs/*/result.nc")))
    assert stored.activation.values.tolist() == ["mine", "relu"]
    assert stored.depth.values.tolist() == [2, 1, 3]
    assert not stored.num_parameters.isnull().any()


def test_cells_that_differ_between_processes_are_bad_input(start, tmp_path):
    text = FAKE.read_text().replace("import hashlib", "import hashlib\nimport os")
    study = tmp_path / "fickle.py"
    study.write_text(text.replace('depth={depth}", {', 'depth={depth}/{os.getpid()}", {'))
    _, err = start("--workers", "1", study=study).communicate(timeout=SECONDS)
    assert re.search(
        r"error: a worker process has no cell 'tanh/depth=4/\d+'\. Let `cells\(\)` follow", err
    ), err
    assert "Traceback" not in err


def test_a_killed_worker_is_replaced(start, tmp_path):
    process = start("--workers", "2", "--seconds", "0.5", "--depths", "4", "2", "3", "1")
    victim = workers_of(process, 2)[0]
    wait_for_cells(tmp_path, 2, process)
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, "")
    assert re.search(
        r"\S+: the process that measured it ended by SIGKILL\. Another tries it again, 2 of 3", out
    )
    assert len(list(tmp_path.glob("runs/*/cells/*.nc"))) == 8


def test_workers_end_with_a_killed_parent(start, tmp_path):
    process = start("--workers", "2", "--seconds", "30")
    both = workers_of(process, 2)
    time.sleep(3.0)
    process.kill()
    end = time.monotonic() + 10
    while any(is_alive(worker) for worker in both):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_ctrl_c_of_the_whole_group_ends_the_run_in_order(start, tmp_path):
    process = start("--workers", "2", "--seconds", "0.5", "--depths", "4", "2", "3", "1")
    workers_of(process, 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, before the workers are up
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "Interrupted by SIGINT." in err
    assert "Traceback" not in err


def test_a_run_with_nothing_left_to_measure_is_made_whole(start, tmp_path):
    process = start("--workers", "0", "--depths", "2")
    process.communicate(timeout=SECONDS)
    (directory,) = tmp_path.glob("runs/*")
    (directory / "result.nc").unlink()
    again = start("--workers", "2", "--depths", "2", "--resume", str(directory))
    _, err = again.communicate(timeout=SECONDS)
    assert again.returncode == 0, err
    assert (directory / "result.nc").exists()


def test_an_error_in_a_worker_is_shown_with_its_traceback(start, tmp_path):
    process = start("--workers", "2", "--trouble", "bug")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert "ZeroDivisionError: a bug in the study" in err
    assert "_be_troublesome" in err  # the line in the worker
    assert "cells are finished and kept" in err


def test_missing_data_in_a_worker_are_bad_input(start, tmp_path):
    process = start("--workers", "2", "--trouble", "no data", "--activations", "relu", "--depths", "1")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2
    assert "the data were not found in /nowhere" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/*"))


def test_there_are_no_more_workers_than_cores_or_cells():
    cores = len(os.sched_getaffinity(0))
    assert default_number(1) == 1
    assert 1 <= default_number(1000) <= cores


def test_the_memory_of_workers_counts():
    assert runner.peak_memory(2) >= runner.peak_memory(0) > 0
