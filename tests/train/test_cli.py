import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr

import jaxact
from train import config, results, runner

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_study.py")
SECONDS_TO_START = 60.0  # importing jax on a busy machine


def only_run(tmp_path):
    (directory,) = (tmp_path / "runs").iterdir()
    return directory


def wait_for_cells(tmp_path, count, process):
    end = time.monotonic() + SECONDS_TO_START
    while len(list(tmp_path.glob("runs/*/cells/*.nc"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def continued(stderr):
    """The words of the command that a message says to continue with."""
    command = stderr.partition("Continue with:\n")[2].splitlines()[0]
    return shlex.split(command)[3:]


def test_one_command_runs_a_study_and_others_show_it_again(call, tmp_path):
    status, out, err = call("run", FAKE)
    directory = only_run(tmp_path)
    name = Path("runs") / directory.name
    assert (status, err) == (0, "")
    assert "[4/4] relu/depth=2 done" in out
    assert out.index("- 2 activations were counted.") < out.index(
        f"report  {name}/report.html\nresult  {name}/result.nc"
    )
    assert "peak memory" in out
    assert sorted(path.name for path in directory.iterdir()) == [
        "cells", "config.json", "config.py", "figures", "report.html", "result.nc",
    ]  # fmt: skip
    page = (directory / "report.html").read_bytes()
    (directory / "report.html").unlink()
    for run in (name, directory.name):
        status, out, err = call("report", run, "--trust")
        assert (status, err) == (0, "")
        assert "2 activations" in out
        assert (directory / "report.html").read_bytes() == page
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text('"""Why is the sky blue?"""\nimport no_such_module\n')
    status, out, err = call("list")
    assert (status, err) == (0, "")
    assert "Why is the sky blue?" in out
    (row,) = (line for line in out.splitlines() if directory.name in line)
    assert all(text in row for text in ("fake_study", "4/4", "complete", "just now"))


def test_an_empty_list_says_so(call, tmp_path):
    (tmp_path / "configs").mkdir()
    status, out, _ = call("list", "--output", "there")
    assert status == 0
    assert out.splitlines() == ["No studies: configs/ holds no config file.", "No runs in there yet."]


def test_any_field_is_set_from_the_command_line(call, tmp_path):
    words = ["run", FAKE, "--depths", "1", "3", "--activations", "tanh", "leaky_relu(0.3)", "--rate", "2"]
    status, _, _ = call(*words)
    assert status == 0
    directory = only_run(tmp_path)
    result = results.load(directory / "result.nc")
    assert result.depth.values.tolist() == [1, 3]
    assert result.activation.values.tolist() == ["tanh", "leaky_relu(0.3)"]
    assert json.loads(result.attrs["config"])["rate"] == 2.0
    assert result.attrs["smoke"] == "false"
    # The stored command repeats the run.
    status, _, _ = call(*shlex.split(result.attrs["command"])[3:], "--resume", directory)
    assert status == 0
    runs = {name: config.resolved(config.load(FAKE)) for name in ("default",)}
    assert config.differences(runs["default"], runner.read(directory).config)


def test_smoke_is_the_default_that_other_fields_change(call, tmp_path):
    status, _, _ = call("run", "--smoke", FAKE, "--output", "there", "--activations", "relu", "gelu", "tanh")
    (directory,) = (tmp_path / "there").iterdir()
    assert status == 0
    assert runner.read(directory).cells == ["relu/depth=4", "gelu/depth=4", "tanh/depth=4"]
    assert results.load(directory / "result.nc").attrs["smoke"] == "true"
    status, out, _ = call("run", FAKE, "--smoke", "--help")
    assert status == 0
    assert "(default: 4)" in out
    assert "the number of layers of each cell" in out
    assert "ACTIVATION" in out


def test_fields_may_be_written_with_underscores(call, tmp_path):
    text = FAKE.read_text().replace("seconds", "num_seconds")
    (tmp_path / "study.py").write_text(text)
    for word in ("--num_seconds", "--num-seconds"):
        status, _, _ = call("run", "study.py", word, "0.01", "--smoke")
        assert status == 0
    assert [runner.read(path).config["num_seconds"] for path in (tmp_path / "runs").iterdir()] == [0.01, 0.01]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["rnu"], ["there is no command 'rnu'. Did you mean `run`?"]),
        (["run"], ["`run` needs a config file"]),
        (["run", "nothing.py"], ["nothing.py does not exist"]),
        (["run", "--depth", "3", FAKE], ["the config comes before its fields"]),
        (["run", FAKE, "--dephts", "3"], ["--dephts", "Perhaps you meant", "--depths"]),
        (["run", FAKE, "--smok"], ["--smok", "Perhaps you meant", "--smoke"]),
        (["run", FAKE, "--activations", "tanh", "rleu"], ["--activations: ", "'rleu'", "relu"]),
        (["run", FAKE, "--depths", "4", "0"], ["`depths` must be positive, got 0. Use 1 or more."]),
        (["run", FAKE, "--depths"], ["`depths` must hold at least one value"]),
        (["run", FAKE, "--activations"], ["has no cells"]),
        (["run", FAKE, "--depths", "4", "4"], ["same name", "List each value once"]),
        (["run", FAKE, "--rate", "fast"], ["--rate", "'fast'"]),
        (["run", FAKE, "--resume", "runs/none"], ["there is no run runs/none"]),
        (["run", FAKE, "--output", FAKE], ["cannot make a run folder in `output`", "--output"]),
        (["run", FAKE, "--trouble", "no data"], ["the data were not found in /nowhere. Get them somewhere."]),
        (["run", FAKE, "--workers", "-1"], ["`workers` must be a number of processes", "got '-1'"]),
        (
            ["run", FAKE, "--executor", "rey"],
            ["`executor` must be local or ray, got 'rey'", "Did you mean ray?"],
        ),
        (["run", FAKE, "--executor", "ray", "--workers", "0"], ["Leave out --workers 0"]),
        (["run", FAKE, "--ray-address", "a:1"], ["`ray_address` a:1 is of no use here. Add --executor ray."]),
        (["run", FAKE, "--cell-timeout", "soon"], ["`cell_timeout` must be a time above 0", "got 'soon'"]),
        (
            ["run", FAKE, "--cell-timeout", "2h", "--workers", "0"],
            ["Add --workers 1, or --cell-timeout none."],
        ),
        (["run", FAKE, "--cell-timeout", "2h"], ["Add --workers 1, or --cell-timeout none."]),
        (["report"], ["RUN"]),
        (["report", "runs/none"], ["there is no run runs/none", "train list"]),
        (["report", FAKE], ["is a file, not the folder of a run"]),
        (["report", "."], ["is not the folder of a run"]),
        (["list", "x"], ["Unrecognized options: x"]),
    ],
)
def test_bad_input_ends_with_a_message_and_leaves_nothing(call, tmp_path, words, messages):
    if "no data" in words:
        words = [*words, "--depths", "1", "--activations", "relu"]
    status, _, err = call(*words)
    assert status == 2
    for message in messages:
        assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/*"))


def test_an_activation_of_the_configs_own_can_be_named(call, tmp_path):
    text = FAKE.read_text().replace(
        "return Fake()", 'return Fake(activations=(from_callable(jnp.tanh, name="mine"), relu))'
    )
    (tmp_path / "own.py").write_text(
        text.replace("import Activation, relu", "import Activation, from_callable, relu")
    )
    assert call("run", "own.py", "--activations", "mine")[0] == 0
    assert runner.read(only_run(tmp_path)).config["activations"] == ["mine"]


def test_a_bug_in_a_cell_shows_itself_and_how_to_continue(call, tmp_path):
    status, _, err = call("run", FAKE, "--trouble", "bug")
    assert status == 1
    assert "ZeroDivisionError: a bug in the study" in err
    assert "3 of 4 cells are finished and kept" in err
    assert continued(err) == ["resume", f"runs/{only_run(tmp_path).name}"]


def test_an_unfinished_or_damaged_run_says_how_to_make_it_whole(call, tmp_path):
    call("run", FAKE, "--trouble", "bug")
    directory = only_run(tmp_path)
    status, _, err = call("report", directory.name)
    assert status == 2
    assert "is unfinished: 3 of 4 cells" in err
    assert f"train resume runs/{directory.name}" in err

    for path in directory.parent.iterdir():
        os.rename(path, tmp_path / "set_aside")
    call("run", FAKE)
    directory = only_run(tmp_path)
    whole = (directory / "result.nc").read_bytes()
    (directory / "result.nc").write_bytes(whole[: len(whole) // 2])
    status, _, err = call("report", directory)
    assert status == 2
    assert "is truncated or damaged" in err
    assert f"train resume {directory}" in err
    xr.load_dataset(next((directory / "cells").iterdir()), engine="h5netcdf").drop_attrs().to_netcdf(
        directory / "result.nc", engine="h5netcdf"
    )
    status, _, err = call("report", directory)
    assert status == 2
    assert "was not written by a study of jaxact" in err
    assert call("run", FAKE, "--resume", directory)[0] == 0
    assert call("report", directory, "--trust")[0] == 0


def test_a_run_folders_code_runs_only_if_it_is_trusted(call, tmp_path, monkeypatch):
    study = tmp_path / "study.py"
    study.write_text(FAKE.read_text())
    assert call("run", study)[0] == 0
    own = only_run(tmp_path) / "config.py"
    own.write_text(
        f"{own.read_text()}\nfrom pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n"
    )
    status, _, err = call("report", own.parent)
    assert status == 2
    assert f"drawn by code of its own, {own}" in err
    assert "if you trust it, add --trust" in err
    assert "To make it again" not in err
    assert not (tmp_path / "executed").exists()

    monkeypatch.setattr(config, "ROOT", tmp_path / "installed")
    (tmp_path / "installed" / "configs").mkdir(parents=True)
    (tmp_path / "installed" / "configs" / "fake_study.py").write_text(FAKE.read_text())
    assert call("report", own.parent)[0] == 2  # of the same name, but other code
    own.write_text(FAKE.read_text())
    status, out, err = call("report", own.parent)
    assert (status, err) == (0, "")
    assert "2 activations were counted" in out
    own.write_text(
        f"{own.read_text()}\nfrom pathlib import Path\nPath({str(tmp_path / 'executed')!r}).touch()\n"
    )
    assert call("report", own.parent, "--trust")[0] == 0
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["figures", "cells"])
def test_a_run_folder_whose_folders_are_links_is_left_alone_unless_it_is_trusted(call, tmp_path, name):
    assert call("run", FAKE)[0] == 0
    directory, elsewhere = only_run(tmp_path), tmp_path / "elsewhere"
    (directory / name).rename(elsewhere)
    (directory / name).symlink_to(elsewhere)
    (elsewhere / ".mine.tmp").touch()
    before = sorted(elsewhere.iterdir())
    status, out, err = call("report", directory)
    assert (status, out) == (2, "")
    assert f"{directory / name} is a link to {elsewhere}" in err
    assert "add --trust" in err
    assert sorted(elsewhere.iterdir()) == before
    assert call("report", directory, "--trust")[0] == 0


def test_a_result_that_its_study_cannot_draw_is_said_to_be_one(call, tmp_path):
    assert call("run", FAKE)[0] == 0
    directory = only_run(tmp_path)
    stored = results.load(directory / "result.nc")
    results.save(
        stored.drop_dims("activation")
        .assign(stored[["layer"]])
        .assign(x=((), 1.0, {"units": "1", "long_name": "x"})),
        directory / "result.nc",
    )
    status, out, err = call("report", directory, "--trust")
    assert (status, out) == (2, "")
    assert re.search(r"result.nc cannot be drawn by config:Fake: KeyError.*activation", err)
    assert "fake_study" in err  # how to make it again


def test_edited_code_is_resumed_only_with_a_word(call, tmp_path):
    study = tmp_path / "study.py"
    study.write_text(FAKE.read_text())
    assert call("run", study, "--trouble", "bug")[0] == 1
    directory = only_run(tmp_path)
    words = ["run", study, "--trouble", "bug", "--resume", directory]
    study.write_text(FAKE.read_text().replace('raise ZeroDivisionError("a bug in the study")', "pass"))
    status, _, err = call(*words)
    assert status == 2
    assert "`config.py` has changed" in err
    assert "add --allow-changed-code" in err
    status, _, err = call(*words, "--allow-changed-code")
    assert (status, err) == (0, "")
    result = results.load(directory / "result.nc")
    assert len(result.attrs["code"].split(", ")) == 2
    assert "--allow-changed-code" not in result.attrs["command"]
    assert "digest of the code" in (directory / "report.html").read_text()


def test_no_name_reaches_the_terminal_as_a_command_to_it(call, tmp_path):
    unseen, shown = "\x1b]0;evil\x07\u2028", r"\x1b]0;evil\x07\u2028"
    study = tmp_path / f"st{unseen}udy.py"
    text = FAKE.read_text().replace('f"{activation.name}/', 'f"{activation.name}UNSEEN/')
    text = text.replace("activations were", "activationsUNSEEN were").replace(
        "a bug in the", "a bugUNSEEN in the"
    )
    study.write_text(text.replace("UNSEEN", unseen))
    heard = [call("run", study), call("list"), call("report", only_run(tmp_path), "--trust")]
    heard.append(call("run", study, "--trouble", "bug"))
    assert [status for status, _, _ in heard] == [0, 0, 0, 1]
    for _, out, err in heard:
        assert not {*"\x1b\x07\u2028"} & {*out, *err}
    assert all(shown in out for _, out, _ in heard)
    assert f"relu{shown}/depth=2 done" in heard[0][1]
    assert f"- 2 activations{shown} were counted." in heard[0][1]
    assert f"a bug{shown} in the study" in heard[-1][2]
    page = next(tmp_path.glob("runs/*/report.html")).read_text()
    assert f"<h1>St{shown}udy</h1>" in page


def test_resuming_with_another_config_names_the_fields(call, tmp_path):
    call("run", FAKE, "--smoke")
    directory = only_run(tmp_path)
    status, _, err = call("run", FAKE, "--rate", "3", "--resume", directory.name)
    assert status == 2
    assert "`depths` is [4] in the run and [4, 2] now" in err
    assert "`rate` is 0.5 in the run and 3.0 now" in err
    assert f"train resume runs/{directory.name}" in err
    status, _, err = call("report", directory.name[:-1])
    assert f"Did you mean runs/{directory.name}?" in err


def test_the_version_is_that_of_the_package(call):
    assert call("--version")[:2] == (0, f"jaxact {jaxact.__version__}\n")


def test_an_exercise_says_how_near_an_answer_must_be(call):
    status, out, _ = call("exercise", "swish_fit")
    assert status == 0
    assert "It must be within 1e-06 of the right number" in out


def test_help_is_quick(tmp_path):
    heavy = ("jax", "flax", "sklearn", "xarray", "pandas", "altair", "numpy")
    code = "import sys; from train.__main__ import main; main(['--help'])"
    code += f"; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "run CONFIG" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_killed_run_is_continued_and_ends_as_if_it_had_not_been(call, start, tmp_path):
    process = start("run", FAKE, "--seconds", "0.4", "--depths", "4", "2", "3", "1")
    wait_for_cells(tmp_path, 2, process)
    process.kill()
    process.communicate()
    directory = only_run(tmp_path)
    kept = {path.name: path.read_bytes() for path in (directory / "cells").glob("*.nc")}
    assert 2 <= len(kept) < 8
    assert not (directory / "result.nc").exists()
    status, out, _ = call(*shlex.split(runner.resume_command(directory))[3:])
    assert status == 0
    assert f"[{len(kept) + 1}/8]" in out
    for name, content in kept.items():
        assert (directory / "cells" / name).read_bytes() == content
    call("run", FAKE, "--output", "whole", "--depths", "4", "2", "3", "1")
    (whole,) = (tmp_path / "whole").iterdir()
    first, second = (results.measurements(results.load(path / "result.nc")) for path in (directory, whole))
    xr.testing.assert_identical(first, second)


FINALISER = """
import os, signal, sys, time
from train.interrupt import interruptible

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

with interruptible(lambda number: print("ended", number, flush=True), grace_seconds=0.3):
    Last()
    time.sleep(60)
"""


def test_a_signal_within_a_finaliser_ends_the_run_without_a_traceback():
    done = subprocess.run(
        [sys.executable, "-c", FINALISER], capture_output=True, text=True, cwd=ROOT, timeout=30
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (143, "ended 15", "")


@pytest.mark.parametrize(
    ("number", "trouble", "status", "patience"),
    [
        (signal.SIGINT, "nothing", 130, 3.0),
        (signal.SIGTERM, "nothing", 143, 3.0),
        (signal.SIGINT, "compiling", 130, 9.0),
        (signal.SIGINT, "stuck", 130, 9.0),
    ],
)
def test_an_interrupted_run_ends_within_seconds_and_says_how_to_continue(
    start, tmp_path, number, trouble, status, patience
):
    is_quick = trouble != "nothing"  # all cells but the last
    seconds = "0" if is_quick else "0.5"
    process = start(
        "run", FAKE, "--seconds", seconds, "--trouble", trouble, "--activations", "tanh", "relu", "gelu"
    )
    wait_for_cells(tmp_path, 5 if is_quick else 2, process)
    time.sleep(1.0 if trouble == "compiling" else 0.1)
    asked = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - asked < patience
    assert process.returncode == status
    assert f"Interrupted by {number.name}." in err
    assert "Traceback" not in err
    directory = only_run(tmp_path)
    kept = list((directory / "cells").iterdir())
    assert f"{len(kept)} of 6 cells are finished and kept" in err
    for path in kept:
        results.load(path)
    assert continued(err) == ["resume", f"runs/{directory.name}"]
    left = sorted(path.name for path in directory.glob("[!.]*"))
    assert left == ["cells", "config.json", "config.py", "progress.json"]


def test_a_file_that_the_system_refuses_to_write_ends_the_run(start, tmp_path):
    # Blocks of 512 bytes or of 1024; a cell's file is larger, what the folder begins with is not.
    words = ("run", FAKE, "--workers", "1", "--depths", "9000")
    process = start(*words, before="ulimit -f 48")
    _, err = process.communicate(timeout=SECONDS_TO_START)
    assert process.returncode == 2
    assert "error: cannot write cell tanh/depth=9000" in err
    assert "File too large" in err
    assert "0 of 2 cells are finished and kept" in err
    assert "Traceback" not in err
    assert not list((only_run(tmp_path) / "cells").iterdir())
