"""The script that hurts runs notices what goes wrong."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from jaxact.files import write_atomically
from train import results

SCRIPT = Path(__file__).parents[2] / "scripts" / "torture.py"


@pytest.fixture(scope="module")
def torture():
    spec = importlib.util.spec_from_file_location("torture", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def path(tmp_path):
    said = {"units": "1", "long_name": "loss"}
    dataset = xr.Dataset({"loss": ("step", np.arange(300.0), said)}, {"step": ("step", np.arange(300), said)})
    results.save(dataset.assign_attrs(format=results.FORMAT), tmp_path / "result.nc")
    return tmp_path / "result.nc"


def flips(torture, path):
    whole = path.read_bytes()
    return ((f"bit {place}", torture.flipped(whole, place)) for place in range(0, 8 * len(whole), 397))


def test_no_flipped_bit_is_silent(torture, path):
    row = torture.hurt("flipped", path, flips(torture, path))
    assert row.tried > 150
    assert row.faults == []


def test_a_loader_that_checks_no_digest_is_found_out(torture, path, monkeypatch):
    monkeypatch.setattr(results, "_unsealed", lambda path, content: (content[: -results._NUM_END], True))
    row = torture.hurt("flipped", path, flips(torture, path))
    assert len([fault for fault in row.faults if fault.endswith("silent")]) > 50


def test_a_loader_that_raises_what_nobody_expects_is_found_out(torture, path, monkeypatch):
    def broken(path, content):
        raise KeyError("DIMENSION_LIST")

    contents = flips(torture, path)
    original = results._unsealed
    calls = iter([original])  # what is whole is loaded first
    monkeypatch.setattr(results, "_unsealed", lambda *given: next(calls, broken)(*given))
    row = torture.hurt("flipped", path, contents)
    assert len(row.faults) == row.tried
    assert "KeyError" in row.faults[0]


def test_file_events_below_the_folder_are_met_once_each(torture, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", os.fsync)  # what is watched is undone
    met = []
    count = torture.watch_files(
        str(tmp_path / "in"), 3, lambda: met.append(len(list(tmp_path.glob("in/*")))), False
    )
    (tmp_path / "out").write_text("no event")
    (tmp_path / "in").mkdir()  # 1
    write_atomically(tmp_path / "in" / "a", b"x")  # open, fsync, rename, fsync of the folder
    (tmp_path / "in" / "a").read_text()
    assert count() == 5
    assert met == [1]  # before the fsync the temporary file was there
