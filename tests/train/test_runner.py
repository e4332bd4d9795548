import dataclasses
import errno
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import xarray as xr
from rich.console import Console

from jaxact import activations
from train import config, locks, results, runner
from train.config import ConfigError

FAKE = Path(__file__).with_name("fake_study.py")


@pytest.fixture(autouse=True)
def reports(monkeypatch):
    """Replace the report by a note of what it was asked to draw."""
    drawn = []

    def write_report(result, experiment, directory):
        drawn.append((result, experiment, directory))
        return directory / "report.html"

    module = ModuleType("train.report")
    module.write_report = write_report
    monkeypatch.setitem(sys.modules, "train.report", module)
    return drawn


@pytest.fixture
def experiment():
    return config.load(FAKE)


@pytest.fixture
def begin(tmp_path):
    def begin(experiment):
        return runner.create(
            experiment, FAKE, output=tmp_path / "runs", command="python -m train run fake.py"
        )

    return begin


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def said(console):
    return console.file.getvalue()


def counted(experiment):
    """The same experiment, which notes the cells it runs; equal to the first, as its fields are."""
    ran = []

    class Counted(type(experiment)):
        def run(self, cell, *, progress):
            ran.append(cell.name)
            return super().run(cell, progress=progress)

    return Counted(**{f.name: getattr(experiment, f.name) for f in dataclasses.fields(experiment)}), ran


def test_a_new_folder_tells_all_about_its_run(experiment, begin):
    directory = begin(experiment)
    assert re.fullmatch(r"fake_study-\d{8}T\d{6}-[0-9a-f]{4}", directory.name)
    assert sorted(path.name for path in directory.iterdir()) == ["cells", "config.json", "config.py"]
    assert (directory / "config.py").read_text() == FAKE.read_text()
    record = runner.read(directory)
    assert record.config == config.resolved(experiment)
    assert record.cells == ["tanh/depth=4", "tanh/depth=2", "relu/depth=4", "relu/depth=2"]
    assert runner.resume_command(directory) == f"python -m train resume {directory}"
    assert begin(experiment) != directory


def test_a_run_stores_each_cell_and_the_whole(experiment, begin, console, reports):
    directory = begin(experiment)
    result = runner.run(experiment, directory, console=console)
    assert len(list((directory / "cells").iterdir())) == 4
    stored = results.load(directory / "result.nc")
    xr.testing.assert_identical(stored, result)
    results.check(stored)
    assert stored.activation.values.tolist() == ["tanh", "relu"]
    assert stored.depth.values.tolist() == [4, 2]
    assert stored.censored.dtype == bool
    assert stored.second_moment.sel(activation="relu", depth=2, layer=1).item() == 0.5 * (4 + 1 / 2)
    assert json.loads(stored.attrs["config"]) == config.resolved(experiment)
    assert stored.attrs["run_id"] == directory.name
    total = stored.run_seconds.sum().item()  # stored to a tenth of a second
    assert stored.attrs["run_seconds"] == pytest.approx(total, abs=0.0501)
    assert re.fullmatch(r"unknown|[0-9a-f]{40}(\+changes)?", stored.attrs["git_commit"])
    assert json.loads(stored.attrs["versions"])["xarray"] == xr.__version__
    (drawn,) = reports
    assert drawn[1:] == (type(experiment), directory)
    assert "[4/4] relu/depth=2 done" in said(console)


@pytest.mark.parametrize("smoke", [True, False])
def test_a_run_knows_whether_it_is_a_smoke_test(experiment, console, tmp_path, smoke):
    directory = runner.create(experiment, FAKE, output=tmp_path, command="", smoke=smoke)
    result = runner.run(experiment, directory, console=console)
    assert runner.read(directory).smoke is smoke
    assert result.attrs["smoke"] == ("true" if smoke else "false")
    cell = results.load(next((directory / "cells").iterdir()))
    assert cell.attrs["smoke"] == result.attrs["smoke"]


def test_a_run_from_before_smoke_was_noted_is_read_and_resumed(experiment, begin, console):
    directory = begin(experiment)
    whole = runner.run(experiment, directory, console=console)
    record = json.loads((directory / "config.json").read_text())
    del record["smoke"]
    (directory / "config.json").write_text(json.dumps(record))
    for path in (directory / "cells").iterdir():
        old = results.load(path)
        del old.attrs["smoke"]
        results.save(old, path)
    assert runner.read(directory).smoke is False
    results.check(results.load(path))
    again, ran = counted(experiment)
    xr.testing.assert_identical(
        results.measurements(runner.run(again, directory, console=console)), results.measurements(whole)
    )
    assert ran == []


def test_the_same_config_gives_the_same_measurements(experiment, begin, console):
    first, second = (runner.run(experiment, begin(experiment), console=console) for _ in range(2))
    xr.testing.assert_identical(results.measurements(first), results.measurements(second))
    assert not first.identical(second)


def test_resuming_runs_only_what_is_missing_or_damaged(experiment, begin, console):
    directory = begin(experiment)
    whole = runner.run(experiment, directory, console=console)
    files = sorted((directory / "cells").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:1000])  # relu, 2
    files[1].unlink()  # relu, 4
    shutil.copyfile(files[3], files[2])  # tanh, 2: another cell's file
    (directory / "cells" / ".x.nc.123.tmp").write_bytes(b"half")
    (directory / "result.nc").unlink()

    again, ran = counted(experiment)
    resumed = runner.run(again, directory, console=console)
    assert ran == ["tanh/depth=2", "relu/depth=4", "relu/depth=2"]
    xr.testing.assert_identical(results.measurements(resumed), results.measurements(whole))
    assert "relu/depth=2 is run again:" in said(console)
    assert "truncated" in said(console)
    assert "is of another config or cell" in said(console)
    assert sorted((directory / "cells").iterdir()) == files


def test_a_run_with_nothing_left_reads_its_result_alone(experiment, begin, console, reports, monkeypatch):
    directory = begin(experiment)
    whole = runner.run(experiment, directory, console=console)
    loaded, load = [], results.load
    monkeypatch.setattr(results, "load", lambda path: loaded.append(path.name) or load(path))
    again, ran = counted(experiment)
    resumed = runner.run(again, directory, console=console)
    xr.testing.assert_identical(resumed, whole)
    assert (ran, loaded, len(reports)) == ([], ["result.nc"], 2)

    damaged = next((directory / "cells").iterdir())
    damaged.write_bytes(damaged.read_bytes()[:1000])  # newer than the result: all are read again
    xr.testing.assert_identical(
        results.measurements(runner.run(again, directory, console=console)), results.measurements(whole)
    )
    assert len(ran) == 1


def test_a_cell_of_another_config_is_run_again(experiment, begin, console):
    other = dataclasses.replace(experiment, rate=2.0)
    old, new = begin(experiment), begin(other)
    runner.run(experiment, old, console=console)
    shutil.rmtree(new / "cells")
    shutil.copytree(old / "cells", new / "cells")
    again, ran = counted(other)
    runner.run(again, new, console=console)
    assert len(ran) == 4


def test_a_failing_cell_leaves_the_finished_ones_and_nothing_of_itself(experiment, begin, console, reports):
    experiment = dataclasses.replace(experiment, trouble="bug")
    directory = begin(experiment)
    with pytest.raises(ZeroDivisionError):
        runner.run(experiment, directory, console=console)
    assert runner.finished_cells(directory) == 3
    assert not (directory / "result.nc").exists()
    assert not reports
    again, ran = counted(experiment)
    with pytest.raises(ZeroDivisionError):
        runner.run(again, directory, console=console)
    assert ran == ["relu/depth=2"]


def test_a_cell_without_labels_is_not_stored(experiment, begin, console):
    class Unlabelled(type(experiment)):
        def run(self, cell, *, progress):
            return super().run(cell, progress=progress).drop_attrs()

    directory = begin(experiment)
    with pytest.raises(ValueError, match="`second_moment` has no attribute `units`"):
        runner.run(Unlabelled(), directory, console=console)
    assert runner.finished_cells(directory) == 0


def test_a_full_disk_keeps_the_finished_cells(experiment, begin, console, monkeypatch):
    directory, fsync, calls = begin(experiment), os.fsync, []

    def filling(handle):
        calls.append(handle)
        if len(calls) > 4:  # a file and its folder for each of two cells
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        with pytest.raises(
            runner.StorageError, match=r"cannot write cell relu/depth=4 .*No space left.*Free some"
        ):
            runner.run(experiment, directory, console=console)
    assert len(list((directory / "cells").iterdir())) == 2
    again, ran = counted(experiment)
    runner.run(again, directory, console=console)
    assert ran == ["relu/depth=4", "relu/depth=2"]


def test_a_folder_that_cannot_be_made_leaves_nothing(experiment, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(runner.StorageError, match=r"cannot make a run folder in `output` .*--output"):
        runner.create(experiment, FAKE, output=tmp_path / "file", command="")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(runner.StorageError, match="No space left"):
        runner.create(experiment, FAKE, output=tmp_path / "runs", command="")
    assert not list((tmp_path / "runs").iterdir())


def test_only_the_same_config_resumes_a_run(experiment, begin, tmp_path):
    directory = begin(experiment)
    runner.check_resumable(experiment, directory)
    other = dataclasses.replace(experiment, depths=(4,), activations=(activations.gelu,))
    with pytest.raises(ConfigError) as failure:
        runner.check_resumable(other, directory)
    assert "`depths` is [4, 2] in the run and [4] now" in str(failure.value)
    assert '`activations` is ["tanh", "relu"] in the run and ["gelu"] now' in str(failure.value)
    assert "`rate`" not in str(failure.value)
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        runner.check_resumable(experiment, tmp_path)
    (tmp_path / "config.json").write_text('{"study": "x"}')
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        runner.read(tmp_path)


def test_two_processes_do_not_share_a_folder(experiment, begin, console):
    directory = begin(experiment)
    seen = []

    class Nosy(type(experiment)):
        def run(self, cell, *, progress):
            seen.append(locks.is_held(directory))
            with pytest.raises(ConfigError, match="another process runs in"):
                runner.run(self, directory, console=console)
            return super().run(cell, progress=progress)

    runner.run(Nosy(), directory, console=console)
    assert seen == [True] * 4
    assert not locks.is_held(directory)


def test_an_experiment_needs_cells_of_different_names(experiment, begin):
    with pytest.raises(ConfigError, match=r"same name: relu/depth=2, tanh/depth=2\. List each value once"):
        begin(dataclasses.replace(experiment, depths=(2, 2)))
    with pytest.raises(ConfigError, match="has no cells"):
        begin(dataclasses.replace(experiment, activations=()))


def test_cell_files_are_safe_and_distinct(tmp_path, experiment):
    names = [
        "a/b",
        "a b",
        "A/B",
        "../../etc",
        ".hidden",
        "x" * 500,
        "x" * 501,
        "größe",
        "leaky_relu(0.2)/depth=4",
    ]
    files = runner._files(
        tmp_path, [cell._replace(name=name) for name in names for cell in experiment.cells()[:1]]
    )
    assert len({path.name.lower() for path in files.values()}) == len(names)
    for path in files.values():
        assert path.parent == tmp_path / "cells"
        assert re.fullmatch(r"[A-Za-z0-9_][\w.=+-]{0,170}\.nc", path.name, re.ASCII)
    assert files["leaky_relu(0.2)/depth=4"].name == "leaky_relu_0.2_depth=4.nc"
