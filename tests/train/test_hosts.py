"""Two processes measure a study as one machine, and end together."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import xarray as xr

from train import __main__ as program
from train import devices, hosts
from train.config import ConfigError

ROOT = Path(__file__).parents[2]
STUDY = str(Path(__file__).parent / "hosts_study.py")


@pytest.fixture
def start(tmp_path):
    """Starts the program as a user would; what is left over is killed."""
    started = []

    def start(*words, num_devices=2, command="run", **variables):
        environment = (
            os.environ
            | variables
            | {
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                "JAX_NUM_CPU_DEVICES": str(num_devices),
            }
        )
        started.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "train",
                    command,
                    *words,
                    *(["--output", "runs"] if command == "run" else []),
                ],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def place(process_id, port, num_processes=2):
    return (
        *("--coordinator", f"127.0.0.1:{port}"),
        *("--num-processes", str(num_processes), "--process-id", str(process_id)),
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ended(process, seconds=60):
    """The exit status of a process, and what it said."""
    said, _ = process.communicate(timeout=seconds)
    return process.returncode, said


def stored(folder):
    (path,) = folder.glob("hosts_study-*/result.nc")
    with xr.open_dataset(path, engine="h5netcdf") as result:
        return result.load()


def assert_equal(left, right, rtol):
    assert {*left} == {*right}
    for name in left:
        np.testing.assert_allclose(left[name].values, right[name].values, rtol=rtol, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process measures on one device."""
    folder = tmp_path_factory.mktemp("alone")
    assert program.main(["run", STUDY, "--workers", "0", "--output", str(folder)]) == 0
    return stored(folder)


def test_two_processes_measure_what_one_does(start, tmp_path, alone):
    port = free_port()
    follower, leader = (start(STUDY, *place(number, port)) for number in (1, 0))
    (status, said), (status_1, said_1) = ended(leader), ended(follower)
    assert (status, status_1) == (0, 0), said + said_1
    assert "4 networks were trained" in said
    assert not [line for line in said_1.splitlines() if "[Gloo]" not in line]
    both = stored(tmp_path / "runs")
    assert both.attrs["device"].startswith("4 x cpu")
    assert "coordinator" not in both.attrs["command"]  # to resume it takes no second host
    assert_equal(both, alone, 1e-6)


def begun(start, tmp_path):
    """Two processes that are in the middle of the second cell."""
    port = free_port()
    pair = [start(STUDY, *place(number, port), ENDLESS="1") for number in (0, 1)]
    end = time.monotonic() + 60
    while not [*tmp_path.glob("runs/*/cells/[!.]*.nc")]:
        assert time.monotonic() < end
        assert pair[0].poll() is None, pair[0].communicate()[0]
        time.sleep(0.1)
    time.sleep(0.5)
    return pair


def test_what_is_left_of_a_lost_process_goes_on_in_one(start, tmp_path, alone):
    leader, follower = begun(start, tmp_path)
    follower.kill()
    killed = time.monotonic()
    status, said = ended(leader)
    assert time.monotonic() - killed < 20
    assert status == 1, said
    assert "process 1 of 2 was lost.\n1 of 4 cells are finished and kept. Continue with:" in said
    assert "Traceback" not in said
    again = said.split("Continue with:\n  python -m train resume ")[1].split()[0]
    status, said = ended(start(again, "--workers", "0", command="resume", num_devices=4))
    assert status == 0, said
    assert_equal(stored(tmp_path / "runs"), alone, 1e-6)


@pytest.mark.parametrize(
    ("number", "status", "told"),
    [(signal.SIGKILL, -9, "process 0 of 2 was lost"), (signal.SIGINT, 130, "process 0 of 2 was interrupted")],
)
def test_nobody_outlives_the_process_with_the_run(start, tmp_path, number, status, told):
    leader, follower = begun(start, tmp_path)
    leader.send_signal(number)
    status_1, follower_said = ended(follower)
    assert status_1 == 1, follower_said
    assert f"error: {told}. It has the run folder: continue there." in follower_said
    assert ended(leader)[0] == status


def test_another_config_on_one_host_is_named(start, tmp_path):
    port = free_port()
    pair = [start(STUDY, "--width", width, *place(number, port)) for number, width in enumerate("89")]
    for process in pair:
        status, said = ended(process)
        assert status == 2, said
        assert "`width`: 8 in process 0; 9 in process 1" in said
    assert not [*tmp_path.glob("runs/*")]


def test_a_coordinator_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setattr(hosts, "_JOIN_SECONDS", 1.0)
    port = free_port()
    assert program.main(["run", STUDY, *place(1, port)]) == 2
    assert f"no process answers at --coordinator 127.0.0.1:{port}" in capsys.readouterr().err


def refusals(*places):
    """What processes that would join are told, each in a thread."""
    said = []

    def join(where):
        with pytest.raises(ConfigError) as raised, hosts.joined(where):
            pass
        said.append(str(raised.value))

    threads = [threading.Thread(target=join, args=(where,)) for where in places]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return said


def test_processes_that_clash_or_stay_away_are_named(monkeypatch):
    monkeypatch.setattr(hosts, "_JOIN_SECONDS", 2.0)
    for ids, counts, told in (
        ((0, 1, 1), (3, 3, 3), "there are two processes of --process-id 1"),
        ((0, 1), (3, 2), "`num_processes` is 3 in process 0 and 2 in process 1"),
        ((0, 2), (3, 3), "of 3 processes did not come within 2 s: 1."),
    ):
        address = f"127.0.0.1:{free_port()}"
        places = [hosts.Place(address, count, number) for number, count in zip(ids, counts, strict=True)]
        said = refusals(*places)
        assert len(said) == len(places)
        assert all(told in each for each in said), said
    with socket.create_server(("", 0)) as taken:
        (said,) = refusals(hosts.Place(f"127.0.0.1:{taken.getsockname()[1]}", 2, 0))
        assert "process 0 cannot listen at port" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--process-id 0", "`process_id` is for several hosts. Add --coordinator"),
        ("--coordinator h:1 --num_processes=2", "needs --process-id as well"),
        ("--coordinator h:1 --num-processes 2 --process-id 2", "`process_id` must be from 0 to 1"),
        (
            "--coordinator h:1 --num-processes two --process-id 2",
            "`num_processes` must be an integer from 1 on",
        ),
        ("--coordinator h --num-processes 2 --process-id 1", "`coordinator` must be HOST:PORT"),
        ("--coordinator auto --num-processes 2", "with --coordinator auto `num_processes` is found out"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(words, told):
    with pytest.raises(ConfigError, match=told):
        hosts.place([STUDY, *words.split()])


@pytest.mark.parametrize(
    ("num_devices", "num_members", "order"),
    [
        ((2, 2), 3, "0 1 0"),
        ((2, 2), 4, "0 1 0 1"),
        ((4,), 3, "0 0 0"),
        ((1, 1, 1, 1), 5, "0 1 2 3"),
        ((1, 3), 4, "0 1 1 1"),
    ],
)
def test_every_process_has_a_device_in_the_mesh(monkeypatch, num_devices, num_members, order):
    there = [SimpleNamespace(process_index=i) for i, number in enumerate(num_devices) for _ in range(number)]
    monkeypatch.setattr(jax, "devices", lambda: there)
    monkeypatch.setattr(jax, "process_count", lambda: len(num_devices))
    monkeypatch.setattr(jax.sharding, "Mesh", lambda used, names: used)
    assert [each.process_index for each in devices.mesh(num_members)] == [*map(int, order.split())]


def test_more_processes_than_members_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 5)
    with pytest.raises(ConfigError, match=r"5 processes are more than the 4 runs .* Use --num-processes 4"):
        devices.mesh(4)
