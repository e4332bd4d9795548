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

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

from jaxact import activations
from train import config, fingerprint, locks, results, runner
from train.config import ConfigError
from train.outcomes import CellsFailedError

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


def test_no_flipped_bit_of_a_record_changes_what_is_read_of_it(experiment, begin):
    directory = begin(experiment)
    path = directory / "config.json"
    whole, content = runner.read(directory), path.read_bytes()
    refused = 0
    for place in np.random.default_rng(0).integers(8 * len(content), size=1_000):
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = runner.read(directory)
        except ConfigError:
            refused += 1
        else:
            assert found._replace(digest="") == whole._replace(digest="")
    assert refused > 900  # the rest hit white space, or the name of the digest


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
    for name in ("smoke", "code", "digest"):
        del record[name]
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
    assert "relu/depth=2 is measured again:" in said(console)
    assert "truncated" in said(console)
    assert "is of another config or cell" in said(console)
    aside = [path.with_name(f"{path.name}.corrupt") for path in (files[0], files[2])]
    assert sorted((directory / "cells").iterdir()) == sorted([*files, *aside])
    assert all(f"That file is now {path}." in said(console) for path in aside)


def a_folder(path, _):
    path.mkdir()


def a_pipe(path, _):
    os.mkfifo(path)


def a_link_to_a_whole_cell(path, content):
    path.with_suffix(".whole").write_bytes(content)
    path.symlink_to(path.with_suffix(".whole"))


def a_link_to_nothing(path, _):
    path.symlink_to("/nowhere")


def nothing_in_it(path, _):
    path.write_bytes(b"")


def a_flipped_bit(path, content):
    path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])


def other_labels(path, content):
    path.write_bytes(content)
    changed = results.load(path).assign_coords(depth=[17])
    changed.depth.attrs = {"units": "1", "long_name": "depth"}
    results.save(changed, path)


def no_time(path, content):
    path.write_bytes(content)
    changed = results.load(path)
    del changed.attrs["wall_seconds"]
    results.save(changed, path)


@pytest.mark.parametrize(
    "make",
    [
        a_folder,
        a_pipe,
        a_link_to_a_whole_cell,
        a_link_to_nothing,
        nothing_in_it,
        a_flipped_bit,
        other_labels,
        no_time,
    ],
)
def test_a_damaged_cell_of_any_kind_is_set_aside_and_measured_again(experiment, begin, console, make):
    directory = begin(experiment)
    whole = runner.run(experiment, directory, console=console)
    path = directory / "cells" / "tanh_depth=2.nc"
    content = path.read_bytes()
    for number in ("", "2"):  # a second one does not replace the first
        path.unlink()
        make(path, content)
        again, ran = counted(experiment)
        resumed = runner.run(again, directory, console=console)
        assert ran == ["tanh/depth=2"]
        assert os.path.lexists(f"{path}.corrupt{number}")
        assert f"That file is now {path}.corrupt{number}." in said(console)
        xr.testing.assert_identical(results.measurements(resumed), results.measurements(whole))
        for leftover in directory.glob("cells/*.whole"):
            leftover.unlink()


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
    with pytest.raises(CellsFailedError, match="relu/depth=2: ZeroDivisionError: a bug in the study"):
        runner.run(experiment, directory, console=console)
    assert runner.finished_cells(directory) == 3
    assert not (directory / "result.nc").exists()
    assert not reports
    again, ran = counted(experiment)
    with pytest.raises(CellsFailedError, match="relu/depth=2: ZeroDivisionError: a bug in the study"):
        runner.run(again, directory, console=console)
    assert ran == ["relu/depth=2"]


def relabelled(part, **labels):
    return part.assign_coords({dim: (dim, [to], part[dim].attrs) for dim, to in labels.items()})


def with_attribute(part, value):
    part["second_moment"].attrs["note"] = value
    return part


def with_shared(part, value, units="1"):
    return part.assign(shared=((), value, {"units": units, "long_name": "what all cells give"}))


UNFIT = {  # what the third cell, relu/depth=4, returns, and what it is told
    "no Dataset": (lambda part: {"loss": 1.0}, r"an experiment's `run` must return an xarray\.Dataset"),
    "no units": (lambda part: part.drop_attrs(), "`second_moment` has no attribute `units`"),
    "another cell's labels": (
        lambda part: relabelled(part, depth=2),
        r"`depth` must have .* 4 .* and has \[2\]",
    ),
    "another kind of label": (
        lambda part: relabelled(part, activation=3),
        r"`activation` must .* 'relu' .* \[3\]",
    ),
    "no such label": (lambda part: part.isel(depth=0, drop=True), r"`depth` must have .* and has \[\]"),
    "swapped dims": (
        lambda part: part.transpose(),
        r"`second_moment` is .*\(layer, depth, activation\) here, and",
    ),
    "text for numbers": (lambda part: part.assign(censored=part.censored.astype(str)), "`censored` is text"),
    "other units": (
        lambda part: with_shared(part, 1.0, "m"),
        "numbers in units 'm' .*, and numbers in units '1'",
    ),
    "other values": (lambda part: with_shared(part, 2.0), "two cells give different values of `shared`"),
    "name with /": (lambda part: part.rename(censored="not/trained"), "'not/trained' cannot be stored"),
    "integers that a gap rounds": (
        lambda part: part.assign(count=part.num_parameters + 2**53 + 1),
        r"`count` holds integers beyond 2\^53 in relu/depth=4, which the gap that tanh/depth=. leaves",
    ),
    "attribute None": (
        lambda part: with_attribute(part, None),
        "attribute `note` of `second_moment` is None",
    ),
    "attribute dict": (
        lambda part: with_attribute(part, {"a": 1}),
        "attribute `note` of `second_moment` is {",
    ),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_a_cell_that_does_not_fit_is_refused_by_name_before_it_is_stored(experiment, begin, console, unfit):
    change, message = UNFIT[unfit]

    class Unfit(type(experiment)):
        def run(self, cell, *, progress):
            part = with_shared(super().run(cell, progress=progress), 1.0)
            part["censored"].attrs["units"] = "1"
            return change(part) if cell.name == "relu/depth=4" else part

    directory = begin(experiment)
    with pytest.raises(CellsFailedError, match=f"(?s)cell relu/depth=4 cannot be stored: .*{message}"):
        runner.run(Unfit(), directory, console=console)
    assert runner.finished_cells(directory) == 3


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


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A config file, a module that it imports, and stand-ins for the two packages, all of which may be edited."""
    packages = {name: tmp_path / "installed" / name for name in ("jaxact", "train")}
    for folder in packages.values():
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "module.py").write_text("x = 1\n")
    monkeypatch.setattr(fingerprint, "_PACKAGES", packages)
    path = tmp_path / "configs" / "study.py"
    path.parent.mkdir()
    (path.parent / "helper17.py").write_text("rate = 0.5\n")
    monkeypatch.syspath_prepend(path.parent)
    path.write_text("import helper17\n" + FAKE.read_text())
    yield path
    sys.modules.pop("helper17", None)


EDITS = {
    "nothing": (lambda study, package: None, None),
    "config": (
        lambda study, package: study.write_text(f"{study.read_text()}\n# other\n"),
        "`config.py` has changed",
    ),
    "package": (lambda study, package: package.write_text("x = 2\n"), "`train/deep/module.py` has changed"),
    "new file": (lambda study, package: package.with_name("n.py").touch(), "`train/deep/n.py` is new"),
    "lost file": (lambda study, package: package.unlink(), "`train/deep/module.py` is gone"),
    "module beside": (
        lambda study, package: study.with_name("helper17.py").write_text("rate = 2\n"),
        "`beside the config: helper17.py` has changed",
    ),
}


@pytest.mark.parametrize("edited", EDITS)
def test_a_run_goes_on_with_other_code_only_if_that_is_allowed(study, console, tmp_path, edited):
    edit, message = EDITS[edited]
    experiment = dataclasses.replace(config.load(study), trouble="bug")
    directory = runner.create(
        experiment, study, output=tmp_path / "runs", command="python -m train run study.py"
    )
    with pytest.raises(CellsFailedError, match="relu/depth=2: ZeroDivisionError: a bug in the study"):
        runner.run(experiment, directory, console=console)
    first = runner.provenance(runner.read(directory))["code"]
    before = (directory / "config.py").read_text()
    edit(study, tmp_path / "installed" / "train" / "deep" / "module.py")
    if message is None:
        runner.take_up_code(directory, study)
    else:
        with pytest.raises(ConfigError, match=f"(?s)begun with other code.*{message}.*--allow-changed-code"):
            runner.take_up_code(directory, study)
        runner.take_up_code(directory, study, allow_changed=True)
    runner.take_up_code(directory, study)  # what was allowed is not asked again
    assert {path.read_text() for path in directory.glob("config*.py")} == {before, study.read_text()}

    second = runner.provenance(runner.read(directory))["code"]
    assert (first == second) == (message is None)
    files = sorted(directory.glob("cells/*"))
    mended = type("Mended", (type(experiment),), {"_be_troublesome": lambda self: None})
    resumed = runner.run(mended(trouble="bug"), directory, console=console)
    assert resumed.attrs["code"] == ", ".join(dict.fromkeys([first, second]))
    assert all(results.load(file).attrs["code"] == first for file in files)
    assert ("another version of the code" in said(console)) == (message is not None)


def test_a_result_names_the_versions_of_all_processes(experiment, begin, console, monkeypatch):
    directory = begin(experiment)
    runner.run(experiment, directory, console=console)
    (directory / "cells" / "relu_depth=2.nc").unlink()
    here = runner._versions()
    monkeypatch.setattr(runner, "_versions", lambda: here | {"jax": "99.0", "newcomer": "1.0"})
    resumed = runner.run(experiment, directory, console=console)
    versions = json.loads(resumed.attrs["versions"])
    assert versions["jax"] == f"{here['jax']}, 99.0"
    assert versions["newcomer"] == "none, 1.0"
    assert versions["numpy"] == here["numpy"]


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
