"""The cells of a study on a Ray cluster: what one process gives, and the same ends of what goes wrong."""

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from troubles import Program, check_that_others_go_on, wait_until

from train import cluster
from train.config import ConfigError

pytest.importorskip("ray")

CLUSTER = """
import sys, tempfile
import ray

with tempfile.TemporaryDirectory(prefix="ray-") as folder:
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=2**27, _temp_dir=folder,
        log_to_driver=False, logging_level="ERROR",
    )
    print("address", ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A cluster of two cores, started from another folder than the runs', that only these tests may use."""
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        cwd=tmp_path_factory.mktemp("cluster"),
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **own},
        stdin=-1,
        stdout=-1,
        text=True,
    )
    line = next((line for line in process.stdout if line.startswith("address ")), "")
    assert line, "Ray did not start"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        yield line.split()[1]
    process.communicate("", timeout=60)


def processes_in(folder):
    """The processes whose command line names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it may have ended meanwhile
            found += [path.parent.name] * (os.fsencode(folder) in path.read_bytes())
    return found


def test_failing_cells_leave_the_others_as_they_are(address, whole, tmp_path):
    check_that_others_go_on(tmp_path, whole, "--executor", "ray", "--ray-address", address)


def test_a_cluster_started_for_the_run_ends_with_it_though_interrupted(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(prefix="r-") as folder:  # short, for Ray's sockets
        monkeypatch.setenv("TMPDIR", folder)
        program = Program(tmp_path, "--executor", "ray", "--workers", "1")
        process = program.start("run", "study.py", "--names", "loses_parent", "one", "hangs")
        wait_until(lambda: len(list(tmp_path.glob("runs/*/cells/*.nc"))) == 2, process)
        assert any(Path(folder).iterdir())
        assert processes_in(folder)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=60)
        assert not list(Path(folder).iterdir())
        assert not processes_in(folder)
    assert process.returncode == 130, (out, err)
    assert "Interrupted by SIGINT.\n2 of 3 cells are finished and kept." in err
    assert "loses_parent: the process that measured it was lost by Ray (The actor" in out
    assert "Traceback" not in out + err


def test_an_address_where_no_cluster_answers_is_bad_input(tmp_path, monkeypatch):
    program = Program(tmp_path, "--executor", "ray")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        number = silent.getsockname()[1]
        monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 2.0)
        with pytest.raises(
            ConfigError, match=f"cluster 127.0.0.1:{number} cannot be reached .no answer in 2 s"
        ):
            cluster._check_answers(f"127.0.0.1:{number}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{number}")
    status, out, err = program.call("run", "study.py")  # nobody listens there any more
    assert (status, out) == (2, "")
    assert re.fullmatch(r"error: the Ray cluster 127\.0\.0\.1:\d+ cannot be .*refused\)\. Start it .*\n", err)
    assert not (tmp_path / "runs").exists()


def test_a_machine_without_ray_says_how_to_get_it(tmp_path):
    (tmp_path / "ray.py").write_text("raise ImportError('No module named ray')")
    program = Program(tmp_path, "--executor", "ray")
    status, out, err = program.call("run", "study.py")
    assert (status, out) == (2, "")
    assert "pip install 'jaxact[cluster]'" in err
    assert not (tmp_path / "runs").exists()
