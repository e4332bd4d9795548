import errno
import itertools
import json
import os
import re

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from train import netcdf, results

PROVENANCE = dict.fromkeys(results.PROVENANCE, "something") | {
    "format": results.FORMAT,
    "config": json.dumps({"depths": [4, 8]}),
    "versions": json.dumps({"jax": "0"}),
}


def labelled(dataset, units="1"):
    for name in dataset.variables:
        dataset[name].attrs = {"units": units, "long_name": f"the {name}"}
    return dataset


def a_cell(block, depth, **extra):
    layer = np.arange(1, depth + 1)
    axes = ("block", "depth")
    return labelled(
        xr.Dataset(
            {
                "moment": ((*axes, "layer"), np.float32(depth * 100 + layer)[None, None]),
                "count": (axes, np.array([[depth]], np.int64)),
                "small": ((*axes, "layer"), layer.astype(np.int8)[None, None]),
                "flag": (axes, [[depth > 4]]),
                "note": (axes, [[f"{block} {depth}"]]),
                "run_seconds": (axes, [[0.1 * depth]]),
                **extra,
            },
            {"block": [block], "depth": [depth], "layer": layer},
        )
    )


@pytest.fixture
def dataset():
    return a_cell("plain", 3).assign_attrs(PROVENANCE)


def test_a_stored_result_comes_back_identical(tmp_path, dataset):
    dataset["moment"][..., 1] = np.nan
    dataset["limit"] = ("layer", [np.inf, -np.inf, 0.0], {"units": "1", "long_name": "größte"})
    results.save(dataset, tmp_path / "a.nc")
    loaded = results.load(tmp_path / "a.nc")
    xr.testing.assert_identical(loaded, dataset)
    for name in dataset.variables:
        assert loaded[name].dtype == dataset[name].dtype, name


def test_xarray_reads_what_is_stored(tmp_path, dataset):
    dataset = dataset.assign_coords(width=("layer", [1, 2, 3], {"units": "1", "long_name": "width"}))
    dataset.attrs |= {"config": json.dumps({"long": "ä" * 100_000}), "wall_seconds": 0.5, "count": 3}
    results.save(dataset, tmp_path / "a.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "a.nc", engine="h5netcdf"), dataset)
    xr.testing.assert_identical(results.load(tmp_path / "a.nc"), dataset)


def test_the_same_dataset_gives_the_same_bytes(tmp_path, dataset):
    for name in ("a.nc", "b.nc"):
        results.save(dataset, tmp_path / name)
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


def test_what_the_format_does_not_hold_is_refused(tmp_path, dataset):
    dataset["when"] = ("layer", np.array([1, 2, 3], "M8[s]"))
    with pytest.raises(TypeError, match="`when` holds datetime64"):
        results.save(dataset, tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())


def test_bfloat16_is_stored_as_the_float32_of_the_same_value(tmp_path, dataset):
    narrow = np.asarray(jnp.asarray([1.0, 0.1, 3e38], jnp.bfloat16))
    dataset["narrow"] = ("layer", narrow, {"units": "1", "long_name": "narrow"})
    results.check(dataset)
    results.save(dataset, tmp_path / "a.nc")
    np.testing.assert_array_equal(results.load(tmp_path / "a.nc").narrow, narrow.astype(np.float32))


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failed_write_leaves_the_file_before_it_and_nothing_else(tmp_path, dataset, monkeypatch, function):
    results.save(dataset, tmp_path / "a.nc")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left"):
        results.save(dataset.drop_vars("count"), tmp_path / "a.nc")
    assert os.listdir(tmp_path) == ["a.nc"]
    assert "count" in results.load(tmp_path / "a.nc")


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_no_truncated_file_loads(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("truncated")
    results.save(a_cell("plain", 3).assign_attrs(PROVENANCE), folder / "a.nc")
    os.truncate(folder / "a.nc", int(share * os.path.getsize(folder / "a.nc")))
    with pytest.raises(OSError, match=r"a\.nc is truncated or damaged.*resume"):
        results.load(folder / "a.nc")


def test_no_flipped_bit_goes_unnoticed(tmp_path, dataset):
    path = tmp_path / "a.nc"
    results.save(dataset, path)
    whole = path.read_bytes()
    places = np.random.default_rng(0).integers(8 * len(whole), size=2_000)
    places = [*places, *range(8 * (len(whole) - 48), 8 * len(whole)), *range(8 * 16)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(OSError, match=r"a\.nc is truncated or damaged"):
            results.load(path)


def test_a_result_from_before_the_digest_is_read(tmp_path, dataset):
    dataset.attrs["format"] = "jaxact-study-1"
    (tmp_path / "a.nc").write_bytes(netcdf.encode(dataset).getbuffer())
    xr.testing.assert_identical(results.load(tmp_path / "a.nc"), dataset)
    dataset.attrs["format"] = results.FORMAT
    (tmp_path / "a.nc").write_bytes(netcdf.encode(dataset).getbuffer())
    with pytest.raises(OSError, match="has lost its digest"):
        results.load(tmp_path / "a.nc")


def test_what_is_no_result_is_refused_with_a_remedy(tmp_path, dataset):
    with pytest.raises(FileNotFoundError, match=r"none.nc does not exist.*train list"):
        results.load(tmp_path / "none.nc")
    with pytest.raises(IsADirectoryError, match=r"folder\. Give the result\.nc"):
        results.load(tmp_path)
    (tmp_path / "text.nc").write_text("loss,accuracy\n1,2\n")
    with pytest.raises(ValueError, match=r"text.nc is not a NetCDF4 file"):
        results.load(tmp_path / "text.nc")
    dataset.drop_attrs(deep=False).to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    with pytest.raises(ValueError, match=r"not written by a study of jaxact.*`format`"):
        results.load(tmp_path / "foreign.nc")


def test_check_accepts_a_result_and_lists_every_failure_of_a_broken_one(dataset):
    results.check(dataset)
    broken = dataset.copy(deep=True)
    del broken["moment"].attrs["units"], broken["count"].attrs["long_name"], broken.attrs["device"]
    broken["flag"].attrs["units"] = " "
    broken["unnamed"] = ("dim_0", [1.0, 2.0], {"units": "1", "long_name": "unnamed"})
    broken["when"] = ("layer", np.array([1, 2, 3], "M8[s]"), {"units": "1", "long_name": "when"})
    broken = broken.assign_coords(layer=("layer", [1, 1, 2], {"units": "1", "long_name": "layer"}))
    broken.attrs["versions"] = "{jax"
    with pytest.raises(ValueError, match="9 place") as failure:
        results.check(broken)
    for expected in (
        '`moment` has no attribute `units` ("1"',
        "`count` has no attribute `long_name`",
        "`flag` has no attribute `units`",
        "dimension `dim_0` has no name",
        "dimension `dim_0` has no coordinate",
        "`when` holds datetime64",
        "`layer` repeats values: [1, 1, 2]",
        "`device` is missing",
        "`versions` is not JSON",
    ):
        assert expected in str(failure.value)


@pytest.mark.parametrize(
    ("values", "attributes", "refused"),
    [
        (["plain"], {"long_name": "block"}, []),
        (["plain"], {}, ["long_name"]),
        ([4], {"long_name": "block"}, ["units"]),
        ([4], {}, ["units", "long_name"]),
    ],
)
def test_numbers_need_units_and_a_name_and_text_a_name_alone(values, attributes, refused):
    dataset = xr.Dataset({"x": ("block", [1.0], {"units": "1", "long_name": "x"})})
    dataset = dataset.assign_coords(block=("block", values, attributes))
    try:
        results.check_structure(dataset)
        said = ""
    except ValueError as error:
        said = str(error)
    assert re.findall(r"`block` has no attribute `(\w+)`", said) == refused
    assert bool(said) == bool(refused)


def test_a_run_that_returns_no_dataset_is_told_so():
    with pytest.raises(TypeError, match=r"must return an xarray\.Dataset, got dict"):
        results.check_structure({"loss": 1.0})


def test_combining_keeps_every_cell_and_pads_the_rest():
    cells = [
        a_cell(block, depth) for block, depth in (("plain", 8), ("plain", 2), ("bn", 8))
    ]  # bn, 2: missing
    combined = results.combine(cells)
    for cell in cells:
        place = combined.sel({dim: cell[dim] for dim in cell.dims})
        xr.testing.assert_allclose(place, cell)
        assert place.note.item() == cell.note.item()
    assert int(combined.moment.notnull().sum()) == sum(cell.moment.size for cell in cells)
    assert combined.note.sel(block="bn", depth=2).item() == ""
    assert combined.moment.attrs == {"units": "1", "long_name": "the moment"}
    assert combined.layer.attrs["long_name"] == "the layer"


def test_combining_agrees_with_xarrays_own_merge():
    cells = [a_cell(block, depth) for block in ("z", "a") for depth in (5, 3)]
    numeric = [cell.drop_vars("note") for cell in cells]
    merged = xr.merge(numeric, join="outer", compat="no_conflicts", combine_attrs="override")
    ours = results.combine(numeric)
    xr.testing.assert_allclose(ours.astype(float).sortby(["block", "depth"]), merged.astype(float))


def test_combining_keeps_the_order_of_the_cells_and_of_a_scale():
    combined = results.combine([a_cell(block, depth) for block in ("plain", "bn") for depth in (8, 2)])
    assert combined.block.values.tolist() == ["plain", "bn"]
    assert combined.depth.values.tolist() == [8, 2]
    shifted = [
        labelled(xr.Dataset({"loss": (("depth", "step"), [[1.0, 2.0]])}, {"depth": [depth], "step": steps}))
        for depth, steps in ((1, [10, 20]), (2, [5, 10]))
    ]
    combined = results.combine(shifted)
    assert combined.step.values.tolist() == [5, 10, 20]
    np.testing.assert_array_equal(combined.loss, [[np.nan, 1, 2], [1, 2, np.nan]])


def test_combining_keeps_integers_and_booleans_that_have_no_gaps():
    full = results.combine([a_cell("plain", depth) for depth in (2, 8)])
    assert (full["count"].dtype, full.flag.dtype, full.moment.dtype) == (np.int64, bool, np.float32)
    assert full.small.dtype == np.float32  # gaps in the deeper layers of the shallow cell
    gaps = results.combine([a_cell("plain", 2), a_cell("bn", 8)])
    assert gaps["count"].dtype == np.float64
    assert gaps.flag.dtype == np.float32
    assert np.isnan(gaps["count"].sel(block="bn", depth=2))


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(list(itertools.product(["plain", "bn"], [2, 3, 8]))))
def test_the_order_of_the_cells_changes_only_the_order_of_the_coordinates(order):
    cells = {pair: a_cell(*pair) for pair in order}
    combined = results.combine([cells[pair] for pair in order])
    sorted_cells = results.combine([cells[pair] for pair in sorted(order)])
    assert combined.depth.values.tolist() == list(dict.fromkeys(depth for _, depth in order))
    xr.testing.assert_identical(combined.sortby(["block", "depth"]), sorted_cells)


def test_what_cells_share_must_be_equal():
    shared = {"threshold": ((), 0.9), "unknown": ((), np.nan)}
    combined = results.combine([a_cell("plain", 2, **shared), a_cell("plain", 4, **shared)])
    assert combined.threshold.item() == 0.9
    assert np.isnan(combined.unknown)
    with pytest.raises(ValueError, match="different values of `threshold`"):
        results.combine([a_cell("plain", 2, threshold=((), 0.9)), a_cell("plain", 4, threshold=((), 0.8))])
    with pytest.raises(ValueError, match="disagree on the dimensions of `extra`"):
        results.combine(
            [a_cell("plain", 2, extra=((), 1.0)), a_cell("plain", 4, extra=(("layer",), np.zeros(4)))]
        )
    with pytest.raises(ValueError, match="`step` has no coordinate"):
        results.combine([a_cell("plain", 2, loss=(("step",), [1.0]))])
    with pytest.raises(ValueError, match="at least one"):
        results.combine([])


def test_a_variable_that_some_cells_lack_is_padded():
    combined = results.combine([a_cell("plain", 2, extra=(("block", "depth"), [[7.0]])), a_cell("plain", 4)])
    np.testing.assert_array_equal(combined.extra, [[7.0, np.nan]])


@pytest.mark.parametrize(
    ("first", "second", "joined"),
    [
        (np.int64(2**53 + 1), None, "`extra` holds 9007199254740993, which float64 rounds"),
        (np.int64(-(2**63) + 1), None, "`extra` holds -9223372036854775807, which float64 rounds"),
        (np.uint64(2**64 - 1), None, "`extra` holds 18446744073709551615, which float64 rounds"),
        (np.int64(2**53 + 1), np.float64(1.0), "`extra` holds 9007199254740993, which float64 rounds"),
        (np.uint64(2**64 - 1), np.int64(-1), "`extra` holds 18446744073709551615, which float64 rounds"),
        (np.int64(2**53 + 1), np.int64(1), [2**53 + 1, 1]),
        (np.int64(2**60), None, [2.0**60, np.nan]),
        (np.int16(2**15 - 1), None, [2.0**15 - 1, np.nan]),
    ],
)
def test_an_integer_is_joined_exactly_or_not_at_all(first, second, joined):
    cells = [
        a_cell("plain", depth, **({} if value is None else {"extra": (("block", "depth"), [[value]])}))
        for depth, value in ((2, first), (4, second))
    ]
    if isinstance(joined, str):
        with pytest.raises(ValueError, match=joined):
            results.combine(cells)
    else:
        assert str(results.combine(cells).extra.values.ravel().tolist()) == str(joined)


def test_a_label_is_joined_exactly_or_not_at_all():
    cells = [labelled(xr.Dataset({"x": ("at", [1.0])}, {"at": [at]})) for at in (2**53 + 1, 0.5)]
    with pytest.raises(ValueError, match=r"the labels \[9007199254740993\] of 'at' would be rounded"):
        results.combine(cells)
    assert results.combine([cells[0], cells[0].assign_coords(at=[1])]).at.values.tolist() == [2**53 + 1, 1]


def test_measurements_are_without_timings_and_provenance(dataset):
    measured = results.measurements(dataset)
    assert "run_seconds" not in measured
    assert not measured.attrs
    assert measured.moment.attrs == dataset.moment.attrs
