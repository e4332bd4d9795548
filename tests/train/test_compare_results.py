"""Comparing stored results: one changed bit is found, timings and further labels are no change."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from train import results

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_results.py"


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(SCRIPT), run_name="compare_results")["main"]


@pytest.fixture
def result():
    said = {"units": "1", "long_name": "what it is"}
    dataset = xr.Dataset(
        {
            "loss": (("depth", "seed"), np.array([[0.1, np.nan], [0.3, 0.4]], np.float32), said),
            "count": ("depth", [1, 2], said),
            "kind": ("depth", ["a", "b"], said),
            "run_seconds": ("depth", [1.0, 2.0], said | {"units": "s"}),
            "clock": ("depth", [1.0, 2.0], said | {"units": "s"}),
        },
        {"depth": ("depth", [2, 4], said), "seed": ("seed", [0, 1], said)},
    )
    return dataset.assign_attrs(
        dict.fromkeys(results.PROVENANCE, "x"),
        format=results.FORMAT, study="sweep", config=json.dumps({}), versions=json.dumps({}),
    )  # fmt: skip


@pytest.fixture
def compare(main, tmp_path, capsys):
    def compare(before, after):
        for name, dataset in (("before.nc", before), ("after.nc", after)):
            results.save(dataset, tmp_path / name)
        status = main(str(tmp_path / "before.nc"), str(tmp_path / "after.nc"))
        return status, capsys.readouterr().out

    return compare


def test_equal_results_are_identical_nan_and_all(compare, result):
    status, said = compare(result, result)
    assert status == 0
    assert said == "before.nc: 5 of 5 variables identical; new: none\n"  # depth, seed, loss, count, kind


def test_one_changed_bit_is_found(compare, result):
    other = result.copy(deep=True)
    other["loss"][1, 0] = np.nextafter(np.float32(0.3), np.float32(1))
    status, said = compare(result, other)
    assert status == 1
    assert "4 of 5 variables identical" in said
    assert "  loss: 1 of 4 numbers, by at most 2.98e-08\n" in said


def test_a_number_that_became_none_is_found(compare, result):
    other = result.copy(deep=True)
    other["loss"][0, 0] = np.nan
    assert compare(result, other)[0] == 1
    assert compare(other, result)[0] == 1


def test_timings_are_left_out(compare, result):
    other = result.copy(deep=True)
    other["run_seconds"][:] = 99.0
    other["clock"][:] = 99.0
    assert compare(result, other)[0] == 0
    assert compare(result, result.drop_vars(["run_seconds"]))[0] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda result: result.drop_vars("loss"), "loss: missing"),
        (lambda result: result.drop_vars("kind"), "kind: missing"),
        (lambda result: result.assign(loss=result["loss"].astype(float)), "loss: float32"),
        (lambda result: result.assign(kind=("depth", ["a", "c"])), "kind: other labels"),
        (lambda result: result.isel(seed=[0]), "loss: float32"),
        (lambda result: result.assign_coords(depth=[2, 5]), "depth: 1 of 2 numbers, by at most 1"),
    ],
    ids=["missing", "missing text", "another type", "other text", "fewer labels", "other labels"],
)
def test_what_is_gone_or_of_another_form_is_a_difference(compare, result, change, said):
    status, out = compare(result, change(result))
    assert status == 1
    assert said in out


def test_further_variables_and_labels_are_listed_and_allowed(compare, result):
    more = result.copy(deep=True)
    further = more.isel(depth=[0]).assign_coords(depth=[3])
    further["loss"] = further["loss"] + 1
    more = xr.concat([more.isel(depth=[0]), further, more.isel(depth=[1])], "depth", data_vars="minimal")
    more["extra"] = ("depth", [1.0, 2.0, 3.0])
    status, said = compare(result, more.assign_attrs(result.attrs))
    assert status == 0
    assert "new: extra, 1 labels of depth" in said
    more["loss"][{"depth": 2}] += 1
    assert compare(result, more.assign_attrs(result.attrs))[0] == 1


def test_folders_of_runs_are_paired_by_study(main, result, tmp_path, capsys):
    for folder, changed in (("before", 0.0), ("after", 1.0)):
        for study in ("one", "two"):
            directory = tmp_path / folder / f"{study}-1"
            directory.mkdir(parents=True)
            other = result.copy(deep=True).assign_attrs(study=study)
            other["count"] = other["count"] + int(changed * (study == "two"))
            results.save(other, directory / "result.nc")
    assert main(str(tmp_path / "before"), str(tmp_path / "after")) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("one: 5 of 5")
    assert said[1].startswith("two: 4 of 5")
    assert said[2] == "  count: 2 of 2 numbers, by at most 1"
    (tmp_path / "after" / "two-1" / "result.nc").unlink()
    with pytest.raises(SystemExit, match="has no run of two"):
        main(str(tmp_path / "before"), str(tmp_path / "after"))
