"""What a file from elsewhere may not hold, and what a Dataset may not, is refused by name."""

import json
import os
import resource

import h5py
import numpy as np
import pytest
import xarray as xr

from train import netcdf, results

PROVENANCE = dict.fromkeys(results.PROVENANCE, "something") | {"config": "{}", "versions": "{}"}
SECRET = 424242.0


def cell(**variables):
    said = {"units": "1", "long_name": "it"}
    data = {"moment": (("block", "layer"), [[1.0, 2.0, 3.0]], said)} | variables
    coords = {"block": ("block", ["plain"], said), "layer": ("layer", [1, 2, 3], said)}
    return xr.Dataset(data, coords, PROVENANCE | {"format": results.FORMAT})


@pytest.fixture
def path(tmp_path):
    """A file as versions before the digest wrote it: what anybody can make."""
    path = tmp_path / "run" / "result.nc"
    path.parent.mkdir()
    dataset = cell().assign_attrs(format="jaxact-study-1")
    path.write_bytes(netcdf.encode(dataset).getbuffer())
    results.load(path)
    return path


@pytest.fixture
def secret(tmp_path):
    """A file of the reader's, outside the run folder: numbers as they are, and in HDF5."""
    np.full(3, SECRET).tofile(tmp_path / "secret")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["numbers"] = np.full(3, SECRET)
    return tmp_path / "secret"


def scaled(file, name, axes=("layer",)):
    for axis, dim in enumerate(axes):
        file[name].dims[axis].attach_scale(file[dim])


def external_storage(file, secret):
    file.create_dataset("extra", (3,), "f8", external=[(str(secret), 0, 24)])
    scaled(file, "extra")


def external_link(file, secret):
    file["extra"] = h5py.ExternalLink(f"{secret}.h5", "numbers")


def virtual_dataset(file, secret):
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(f"{secret}.h5", "numbers", (3,))
    file.create_virtual_dataset("extra", layout)
    scaled(file, "extra")


def soft_link(file, secret):
    file["extra"] = h5py.SoftLink("/elsewhere/numbers")


def soft_link_to_an_external_link(file, secret):
    group = file.create_group("group")
    group["numbers"] = h5py.ExternalLink(f"{secret}.h5", "numbers")
    file["extra"] = h5py.SoftLink("/group/numbers")


def group_of_itself(file, secret):
    file["extra"] = file["/"]


def named_type(file, secret):
    file["extra"] = np.dtype("f8")


def chunks_that_claim_149_gib(file, secret):
    file.create_dataset("extra", (20_000_000_000,), "f8", chunks=(1000,), compression="gzip")


def space_that_was_never_written(file, secret):
    file.create_dataset("extra", (20_000_000_000,), "f8")


def texts_that_are_one_text(file, secret):
    texts = file.create_dataset("extra", (2000,), h5py.string_dtype())
    texts[0] = "x" * 600_000
    file.flush()
    file.attrs["place"] = texts.id.get_offset()


def numbers_that_are_the_same_bytes(file, secret):
    file["real"] = np.zeros(1000)
    for number in range(20):
        file.create_dataset(f"extra{number}", (1000,), "f8")
    file.flush()
    file.attrs["shared"] = file["real"].id.get_offset()


def attributes_that_are_one_text(file, secret):
    file["moment"].attrs["rows"] = np.full(65, "x" * 1000, object)


def reference(file, secret):
    file.create_dataset("extra", data=np.array([file["moment"].ref], h5py.ref_dtype))


HOSTILE = {
    external_storage: "`extra` is stored in other files: '.*secret'",
    external_link: r"it has a link 'extra' to '.*secret\.h5'",
    virtual_dataset: "`extra` is put together from other files, a virtual dataset",
    soft_link: "it has a link 'extra' to '/elsewhere/numbers'",
    soft_link_to_an_external_link: "it has a link 'extra' to '/group/numbers'",
    group_of_itself: "'extra' in it is a group",
    named_type: "'extra' in it is a datatype",
    chunks_that_claim_149_gib: "`extra` is stored in chunks or compressed",
    space_that_was_never_written: "`extra` claims 160,000,000,000 bytes in a file of",
    texts_that_are_one_text: "`extra` claims",
    numbers_that_are_the_same_bytes: r"`extra\d+` claims 8,000 bytes in a file of",
    attributes_that_are_one_text: "its attribute 'rows' holds 65 of object",
    reference: "`extra` holds object",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_file_is_refused_by_name_before_it_is_read(path, secret, make):
    with h5py.File(path, "a") as file:
        make(file, secret)
        place, shared = file.attrs.get("place"), file.attrs.get("shared")
    if shared is not None:  # what was never written lies where something was
        unwritten, size = b"\x03\x01" + b"\xff" * 8, (8000).to_bytes(8, "little")
        content = path.read_bytes()
        assert content.count(unwritten + size) == 20
        path.write_bytes(
            content.replace(unwritten + size, b"\x03\x01" + int(shared).to_bytes(8, "little") + size)
        )
    if place is not None:  # every text becomes the first
        with open(path, "r+b") as file:
            file.seek(place)
            first = file.read(16)
            file.seek(place)
            file.write(first * 2000)
    for each in (secret, secret.with_suffix(".h5")):  # whoever reads them fails in another way
        each.unlink()
        os.mkfifo(each)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"result.nc is not read: {HOSTILE[make]}.*Do not trust"):
        results.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "result.nc")
    with pytest.raises(ValueError, match="is not a file"):
        results.load(tmp_path / "result.nc")


SAID = {"units": "1", "long_name": "it"}
UNSTORABLE = {
    "name with /": (cell(**{"a/b": ("layer", [1, 2, 3], SAID)}), r"the name 'a/b' cannot be stored"),
    "name with an escape": (cell(**{"a\x1b[2J": ("layer", [1, 2, 3], SAID)}), r"the name 'a\\x1b\[2J'"),
    "name of half a letter": (cell(**{"a\ud800": ("layer", [1, 2, 3], SAID)}), r"the name 'a\\ud800'"),
    "empty name": (cell(**{"": ("layer", [1, 2, 3], SAID)}), "the name '' cannot"),
    "name that is a number": (
        cell().assign({4: ("layer", [1, 2, 3], SAID)}),
        "the name 4 is no text but int",
    ),
    "space in a coordinate": (
        cell().assign_coords({"a b": ("layer", [1, 2, 3], SAID)}),
        "the name 'a b' .* no spaces",
    ),
    "None as attribute": (cell(x=((), 1.0, {**SAID, "note": None})), "attribute `note` of `x` is None"),
    "dict as attribute": (
        cell(x=((), 1.0, {**SAID, "note": {"a": 1}})),
        "attribute `note` of `x` is {'a': 1}",
    ),
    "bool as attribute": (cell(x=((), 1.0, {**SAID, "note": np.True_})), "attribute `note` of `x`"),
    "complex attribute": (cell(x=((), 1.0, {**SAID, "note": 1j})), "attribute `note` of `x` is 1j"),
    "ragged attribute": (cell(x=((), 1.0, {**SAID, "note": [1, [2]]})), "attribute `note` of `x`"),
    "too wide attribute": (cell(x=((), 1.0, {**SAID, "note": 2**70})), "attribute `note` of `x`"),
    "attribute of xarray": (
        cell(x=((), 1.0, {**SAID, "scale_factor": 2.0})),
        "`scale_factor` of `x` is one that",
    ),
    "attribute of netCDF": (
        cell().assign_attrs(_NCProperties="x"),
        "`_NCProperties` of the Dataset is one that",
    ),
    "labels in pairs": (
        cell(x=("layer", [1, 2, 3], SAID)).drop_dims("block", errors="ignore").stack(pair=["layer"]),
        "coordinate `pair` is a MultiIndex, which no file holds: unstack it",
    ),
    "attribute of ours": (cell(x=((), 1.0, {**SAID, "dtype": "bool"})), "`dtype` of `x` is one that"),
    "global attribute": (cell().assign_attrs({"a/b": 1}), "the name 'a/b' of an attribute of the Dataset"),
    "NUL in text": (cell(x=("block", ["a\0b"], SAID)), r"`x` holds 'a\\x00b'"),
    "half a letter": (cell(x=("block", ["a\ud800"], SAID)), r"`x` holds 'a\\ud800'"),
    "None among text": (cell(x=("layer", np.array(["a", None, "b"], object), SAID)), "`x` holds float: only"),
    "long double": (cell(x=("layer", np.ones(3, np.longdouble), SAID)), "`x` holds float128"),
    "label that is NaN": (
        cell(x=("at", [1.0], SAID)).assign_coords(at=("at", [np.nan], SAID)),
        "`at` has a label",
    ),
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_the_schema_refuses_what_no_file_can_hold(name):
    dataset, message = UNSTORABLE[name]
    with pytest.raises(ValueError, match=message):
        results.check(dataset)


def test_what_the_schema_takes_comes_back_here_and_in_xarray(tmp_path):
    notes = {"text": "größe\n", "empty": "", "whole": 2**62, "half": 0.5, "row": [1, 2], "rows": ("a", "ä")}
    dataset = cell(
        **{
            "ä b": ("layer", ["", "a\nb", "\N{SNOWMAN}"], {**SAID, **notes}),
            "big": ("layer", np.array([1, 2, 3], ">f4"), SAID),
            "none": (("empty", "layer"), np.zeros((0, 3), np.uint64), SAID),
        }
    ).assign_coords(empty=("empty", np.zeros(0), SAID))
    dataset.attrs["config"] = json.dumps({"note": "x" * 70_000})
    results.check(dataset)
    results.save(dataset, tmp_path / "a.nc")
    xr.testing.assert_identical(results.load(tmp_path / "a.nc"), dataset)
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "a.nc"), dataset)
