"""The launchers: the command they would run, and what they do where there is no GPU, no TPU and no SLURM.

And the attack on certificates: that it lets a true one pass, and that a slightly smaller one does not.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCHERS = ("launch_gpu.sh", "launch_slurm.sh", "launch_tpu.sh")
WORDS = ["--activations", "tanh", "leaky_relu(0.3)", "--name", "two words", "it's"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def checkout(tmp_path):
    """A checkout with a space in its name, whose `train` only says how it was called."""
    root = tmp_path / "my checkout"
    for folder in ("train", "configs", "scripts"):
        (root / folder).mkdir(parents=True)
    for name in LAUNCHERS:
        shutil.copy2(ROOT / "scripts" / name, root / "scripts" / name)
    (root / "configs/study.py").touch()
    (root / "train/__init__.py").touch()  # a package proper: a namespace would yield to the installed one
    (root / "train/__main__.py").write_text("import sys; print('ran', *sys.argv[1:], sep='|', flush=True)\n")
    return root


@pytest.fixture
def call(checkout):
    """Runs a launcher as a user would, in the checkout, and returns the finished process."""

    def call(name, *words, folder=checkout, **environment):
        return subprocess.run(
            ["bash", str(checkout / "scripts" / name), *map(str, words)],
            cwd=folder,
            env=clean(environment),
            capture_output=True,
            text=True,
            timeout=60,
        )

    return call


def clean(environment: dict[str, str]) -> dict[str, str]:
    """This process's environment without what the launchers read, then the given one."""
    ours = ("SLURM_", "JAXACT_", "PYTHON", "JAX_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | environment


def fake_program(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("name", LAUNCHERS)
def test_bash_accepts_the_script_and_it_is_executable(name):
    script = ROOT / "scripts" / name
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text().splitlines()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
@pytest.mark.parametrize("name", LAUNCHERS)
def test_shellcheck_finds_nothing(name):
    done = subprocess.run(["shellcheck", str(ROOT / "scripts" / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_usage_and_every_option_of_its_own(call, name, flag):
    done = call(name, flag)
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert done.stderr == ""
    script = (ROOT / "scripts" / name).read_text()
    cases = script.split('case "$1" in')[1].split("esac")[0]
    for option in set(re.findall(r"--[a-z][a-z-]*", cases)):
        assert option in done.stdout


@pytest.mark.parametrize("name", LAUNCHERS)
@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "CONFIG is missing"),
        (["--dry-run"], "CONFIG is missing"),
        (["--smoke", "configs/study.py"], "unknown option --smoke before CONFIG"),
        (["configs/none.py"], "no config file configs/none.py"),
    ],
)
def test_wrong_arguments_exit_2_and_say_why(call, name, words, told):
    done = call(name, *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"{name}: {told}")


@pytest.mark.parametrize("name", ["launch_gpu.sh", "launch_tpu.sh"])
def test_dry_run_prints_the_command_and_runs_nothing(call, checkout, name):
    done = call(name, "--dry-run", "configs/study.py", *WORDS, PYTHON="my python")
    assert done.returncode == 0
    expected = [f"PYTHONPATH={checkout}", "my python", "-m", "train", "run", "configs/study.py", *WORDS]
    assert shlex.split(done.stdout) == expected


@pytest.mark.parametrize("name", ["launch_gpu.sh", "launch_tpu.sh"])
def test_the_checkouts_own_environment_is_preferred(call, checkout, name):
    python = fake_program(checkout / ".venv/bin/python", "exit 0")
    assert str(python) in shlex.split(call(name, "--dry-run", "configs/study.py").stdout)


@pytest.mark.parametrize(("name", "device"), [("launch_gpu.sh", "gpu"), ("launch_tpu.sh", "tpu")])
def test_the_study_runs_from_any_folder_when_the_device_is_there(call, checkout, tmp_path, name, device):
    # Stands for a Python whose JAX sees the device: answers the check, runs everything else.
    body = (
        f'[ "$1" = -c ] || exec {shlex.quote(sys.executable)} "$@"\necho "$2" | grep -q "devices(.{device}.)"'
    )
    python = fake_program(tmp_path / "python", body)
    config = checkout / "configs/study.py"
    done = call(name, config, *WORDS, folder=tmp_path, PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "|".join(["ran", "run", str(config), *WORDS])


@pytest.mark.parametrize(("name", "extra"), [("launch_gpu.sh", "cuda13"), ("launch_tpu.sh", "tpu")])
def test_without_the_device_it_stops_and_says_what_to_install(call, name, extra):
    done = call(name, "configs/study.py", PYTHON=sys.executable, JAX_PLATFORMS="cpu")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f'-m pip install -e ".[study,{extra}]"' in done.stderr
    assert "JAX_PLATFORMS=cpu is set" in done.stderr


def test_a_python_that_does_not_exist_is_named(call):
    done = call("launch_gpu.sh", "configs/study.py", PYTHON="/no/python")
    assert done.returncode == 2
    assert "no Python at PYTHON=/no/python" in done.stderr


def test_tpu_command_reaches_every_worker_with_its_words_intact(call):
    words = ["--tpu", "pod", "--zone", "here-a", "--folder", "my jaxact", "configs/on_the_tpu.py", *WORDS]
    done = call("launch_tpu.sh", "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    *head, remote = shlex.split(done.stdout)
    assert head == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=here-a", "--worker=all"]
    inner = ["cd", "my jaxact", "&&", "scripts/launch_tpu.sh", "configs/on_the_tpu.py", *WORDS]
    inner += ["--coordinator", "auto"]  # of all workers one machine
    assert shlex.split(remote.removeprefix("--command=")) == inner


@pytest.mark.parametrize(
    "words", [["--tpu", "pod"], ["--zone", "z"], ["--folder", "f"], ["--tpu", "--zone"], ["--tpu"]]
)
def test_tpu_name_without_zone_is_refused(call, words):
    done = call("launch_tpu.sh", *words, *([] if len(words) == 1 else ["configs/study.py"]))
    assert done.returncode == 2
    assert "--help" in done.stderr


def test_sbatch_would_read_every_directive():
    """sbatch stops at the first line that is no comment."""
    lines = (ROOT / "scripts/launch_slurm.sh").read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    first_command = next(i for i, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first_command
    options = [lines[i].removeprefix("#SBATCH ") for i in directives]
    assert all(option.startswith("--") and " " not in option for option in options)
    assert {"--requeue", "--open-mode=append", "--nodes=1"} <= set(options)
    assert any(option.startswith("--signal=B:USR1@") for option in options)


def test_slurm_dry_run_prints_the_command(call, checkout):
    done = call("launch_slurm.sh", "--dry-run", "configs/study.py", *WORDS)
    python = str(checkout / ".venv/bin/python")
    expected = [python, "-m", "train", "run", "configs/study.py", *WORDS, "--output", "runs/slurm-JOB"]
    assert shlex.split(done.stdout) == expected
    assert not (checkout / "runs").exists()


def test_slurm_job_of_several_tasks_is_one_machine(call, checkout):
    done = call("launch_slurm.sh", "--dry-run", "configs/study.py", SLURM_NTASKS="2", SLURM_CPUS_PER_TASK="4")
    python = str(checkout / ".venv/bin/python")
    expected = ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=4", python, "-m", "train", "run"]
    expected += ["configs/study.py", "--output", "runs/slurm-JOB", "--coordinator", "auto"]
    assert shlex.split(done.stdout) == expected


def test_slurm_array_gives_each_task_its_line(call, checkout):
    (checkout / "each task").write_text(
        "--depths 8 128\n--activations \"leaky_relu(0.3)\" 'a b' $(touch evil)"
    )
    done = call("launch_slurm.sh", "--dry-run", "--each", "each task", "configs/study.py", "--smoke")
    assert done.returncode == 0, done.stderr
    submit, *tasks = done.stdout.splitlines()
    script = ["scripts/launch_slurm.sh", "--each", "each task", "configs/study.py", "--smoke"]
    assert shlex.split(submit) == ["#", "sbatch", "--array=0-1", *script]
    lines = [["--depths", "8", "128"], ["--activations", "leaky_relu(0.3)", "a b", "$(touch", "evil)"]]
    for i, (task, line) in enumerate(zip(tasks, lines, strict=True)):
        expected = ["run", "configs/study.py", "--smoke", *line, "--output", f"runs/slurm-JOB_{i}"]
        assert shlex.split(task)[3:] == expected
    assert not (checkout / "evil").exists()


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (["configs/study.py"], {}, "no SLURM job. Submit it: sbatch"),
        (["--dry-run", "configs/study.py", "--output", "x"], {}, "--output is set by this script"),
        (["--dry-run", "configs/study.py", "--resume=x"], {}, "--resume=x is set by this script"),
        (["--each", "none.txt", "configs/study.py"], {}, "no file none.txt"),
        (["--each"], {}, "--each needs a file"),
        (["--each", "each", "configs/study.py"], {"SLURM_JOB_ID": "7"}, "--each needs a job array"),
        (
            ["--dry-run", "--each", "each", "configs/study.py"],
            {"SLURM_ARRAY_TASK_ID": "1"},
            "no options on line 2",
        ),
        (
            ["--dry-run", "--each", "each", "configs/study.py"],
            {"SLURM_ARRAY_TASK_ID": "2"},
            "unmatched quote on line 3",
        ),
        (
            ["--dry-run", "--each", "each", "configs/study.py"],
            {"SLURM_ARRAY_TASK_ID": "3"},
            "no options on line 4",
        ),
        (["configs/study.py"], {"SLURM_SUBMIT_DIR": "/"}, "/ is not the checkout's root"),
    ],
)
def test_slurm_refuses_what_it_cannot_do(call, checkout, words, environment, told):
    (checkout / "each").write_text("--smoke\n  \n'open\n")
    done = call("launch_slurm.sh", *words, **environment)
    assert done.returncode == 2
    assert told in done.stderr


@pytest.fixture
def job(checkout, tmp_path):
    """The launcher as SLURM starts it: a copy elsewhere, in a job, its virtual environment ready."""
    body = f'[ "$1" = -c ] && exit 0\nexec {shlex.quote(sys.executable)} "$@"'
    fake_program(checkout / ".venv/bin/python", body)
    requeued = tmp_path / "requeued"
    fake_program(tmp_path / "bin/scontrol", f'echo "$@" >> {shlex.quote(str(requeued))}')
    spool = shutil.copy2(checkout / "scripts/launch_slurm.sh", tmp_path / "slurm_script")
    environment = clean({"SLURM_JOB_ID": "42", "SLURM_SUBMIT_DIR": str(checkout)})
    environment["PATH"] = f"{tmp_path / 'bin'}{os.pathsep}{environment['PATH']}"

    started = []

    def start(*words, **more):
        process = subprocess.Popen(
            # What is started in the background may have SIGINT ignored, for good.
            ["env", "--default-signal=INT", "bash", str(spool), "configs/study.py", *words],
            cwd=tmp_path,
            env=environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    start.requeued = requeued
    yield start
    for process in started:  # left over where a test failed
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


STUDY = """
import pathlib, signal, sys, time

def end(number, _):
    print("ended by", signal.Signals(number).name, flush=True)
    sys.exit(128 + number)

for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, end)
words = sys.argv[1:]
print("ran", *words, sep="|", flush=True)
run = pathlib.Path(words[words.index("--output") + 1]) / "study-1"
if "--resume" in words:
    sys.exit(0)
run.mkdir(parents=True)
(run / "config.json").touch()
time.sleep(60 if "--long" in words else 0)
sys.exit(3)
"""


def test_slurm_job_runs_the_study_in_a_folder_of_its_own_and_passes_its_status(job, checkout):
    (checkout / "train/__main__.py").write_text(STUDY)
    process = job("--a", "b c", SLURM_ARRAY_JOB_ID="40", SLURM_ARRAY_TASK_ID="2")
    told, _ = process.communicate(timeout=30)
    assert process.returncode == 3, told
    assert "ran|run|configs/study.py|--a|b c|--output|runs/slurm-40_2\n" in told
    assert (checkout / "runs/slurm-40_2/study-1").is_dir()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGUSR1, 0), (signal.SIGTERM, 143)], ids=["time", "preempted"]
)
def test_slurm_job_is_interrupted_requeued_and_resumed(job, checkout, number, status):
    (checkout / "train/__main__.py").write_text(STUDY)
    process = job("--long")
    deadline = time.monotonic() + 20
    while not (checkout / "runs/slurm-42/study-1/config.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)  # to the script alone, as sbatch's --signal=B: does
    told, _ = process.communicate(timeout=20)
    assert process.returncode == status, told
    assert f"ended by {number.name}\n" in told
    # Out of time: the script asks for the requeue. Preempted: SLURM does it by itself.
    assert job.requeued.exists() == (number == signal.SIGUSR1)
    if job.requeued.exists():
        assert job.requeued.read_text() == "requeue 42\n"

    again = job("--long", SLURM_RESTART_COUNT="1")
    told, _ = again.communicate(timeout=20)
    assert again.returncode == 0, told
    assert "--output|runs/slurm-42|--resume|runs/slurm-42/study-1\n" in told


def test_slurm_job_makes_its_environment_once(checkout, tmp_path, job):
    shutil.rmtree(checkout / ".venv")
    log = tmp_path / "log"
    # python3 stands for the node's: `-m venv DIR` makes an environment whose Python is ready once pip has
    # run.
    made = f"""
[ "$1 $2" = "-m venv" ] || exit 9
echo venv >> {shlex.quote(str(log))}
mkdir -p "$3/bin"
cat > "$3/bin/python" <<'TEXT'
#!/bin/sh
here="$(dirname "$0")"
case "$1 $2" in
  -c*) test -f "$here/ready" ;;
  "-m pip") shift 2; echo pip "$@" >> {shlex.quote(str(log))}; touch "$here/ready" ;;
  *) echo study ;;
esac
TEXT
chmod +x "$3/bin/python"
"""
    fake_program(tmp_path / "bin/python3", made)
    first = job(JAXACT_EXTRAS="study")
    second = job(JAXACT_EXTRAS="study")
    for process in (first, second):
        told, _ = process.communicate(timeout=30)
        assert process.returncode == 0, told
        assert "study" in told.splitlines()
    assert log.read_text().splitlines() == ["venv", "pip install --quiet --editable .[study]"]


ATTACK = """
import dataclasses, sys
import attack_certificates as script
certify = script.lipschitz.certify
def optimist(*args, region, **kwargs):
    found = certify(*args, region=region, **kwargs)
    return dataclasses.replace(found, value=found.value * (1 - 1e-6 * (region.radius == 0.5)))
script.lipschitz.certify = optimist
sys.exit(script.main())
"""


def test_a_certificate_too_small_by_a_millionth_is_exceeded(tmp_path):
    rows = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, "-c", ATTACK, "--only", "MLP identity steep, ball", "--pairs", "1", "--json", rows],
        # Most of the time is XLA's: its optimisations are not worth theirs here.
        env=clean({"PYTHONPATH": str(ROOT / "scripts"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    found = json.loads(rows.read_text())
    assert [row["verdict"] for row in found] == ["holds", "EXCEEDED"]
    assert all(abs(row["tightness"] - 1) < 1.1e-6 and row["pairs"] > 10_000 for row in found)
    assert "2 certificates" in done.stdout


FUZZ = """
import dataclasses, sys
import fuzz_certificates as script
certify, share = script.certify, float(sys.argv.pop())
script.certify = lambda *args, **kwargs: dataclasses.replace(
    (found := certify(*args, **kwargs)), value=found.value * share)
sys.exit(script.main())
"""


@pytest.mark.parametrize(
    ("share", "seconds", "status"), [("1", "5", 0), ("0.5", "4", 1)], ids=["as they are", "halved"]
)
def test_random_functions_violate_certificates_that_are_too_small_and_no_others(share, seconds, status):
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, "--seconds", seconds, share],
        env=clean({"PYTHONPATH": str(ROOT / "scripts"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stdout + done.stderr
    # Three of those that end the run are violated when halved: more are random ones.
    assert (done.stdout.count("VIOLATED") > 3) if status else ("VIOLATED" not in done.stdout)
