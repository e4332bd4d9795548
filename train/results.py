"""The stored result of a study: one labelled xarray Dataset in one NetCDF file, whole or not there."""

import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import xarray as xr

FORMAT = "jaxact-study-1"
_IN_JSON = ("config", "versions")
PROVENANCE = ("format", "study", "experiment", "run_id", "git_commit", "device", "started", *_IN_JSON)
_SCALE_ATTRIBUTES = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST")  # how HDF5 stores dimensions
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_STORABLE = "only numbers, booleans and text can be stored"


def check(dataset: xr.Dataset) -> None:
    """Check a Dataset against the schema that every stored result keeps.

    The schema: every dimension has a name of its own and a coordinate without repeats; every variable and
    every coordinate has a `long_name`, and, where it holds numbers, `units` ("1" for a pure number); values
    are numbers, booleans or text; the provenance attributes are there, `config` and `versions` as JSON.

    Raises:
        ValueError: listing every failure, not only the first.
    """
    failures = _structure_failures(dataset)
    for name in PROVENANCE:
        if not isinstance(dataset.attrs.get(name), str) or not dataset.attrs[name]:
            failures.append(f"attribute `{name}` is missing: the runner's `provenance` makes it")
    for name in _IN_JSON:
        try:
            json.loads(dataset.attrs.get(name, "{}"))
        except (TypeError, ValueError):
            failures.append(f"attribute `{name}` is not JSON: {dataset.attrs[name]!r}")
    _refuse(failures)


def check_structure(dataset: xr.Dataset) -> None:
    """Check what an experiment's `run` returned: all of the schema but provenance.

    Raises:
        TypeError: if it is no Dataset.
        ValueError: as `check`.
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"an experiment's `run` must return an xarray.Dataset, got {type(dataset).__name__}.")
    _refuse(_structure_failures(dataset))


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write a Dataset to a NetCDF4 file, atomically: after a crash the file is whole or not there.

    The file is xarray's and netCDF's own format; `xarray.open_dataset` reads it. It is written here because
    that takes 0.03 s for a cell of 35 variables, and 0.45 s through h5netcdf.

    Args:
        dataset: of numbers, booleans and text, its dimensions with coordinates; bfloat16 is stored as float32.
        path: the file to write; one that is there is replaced.

    Raises:
        OSError: if it cannot be written (a full disk, no permission); nothing is left behind.
        TypeError: for values that the format does not hold, such as dates.
    """
    # Encoded in memory first: HDF5 writing straight to a full disk loses the errno and fails again on close.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v108", "v110")) as file:
        _encode(dataset, file)
    write_atomically(path, buffer.getbuffer())


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it into place.

    Raises:
        OSError: if it cannot be written; the temporary file is removed and `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # not every file system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a run's result.nc, or the file of one cell, into memory; `attrs` say where it comes from.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it is truncated or cannot be read.
        ValueError: if it is whole but no study of jaxact wrote it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Give the result.nc inside it.")
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Give the result.nc of a finished run; `python -m train list` shows them."
        )
    with open(path, "rb") as file:
        signature = file.read(len(_HDF5_SIGNATURE))
    if signature and not _HDF5_SIGNATURE.startswith(signature):
        raise ValueError(f"{path} is not a NetCDF4 file. Give the result.nc that a run wrote.")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") == FORMAT:
                return _decode(file)
            found = file.attrs.get("format")
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise OSError(
            f"{path} is truncated or damaged ({error}). Delete it and resume its run: "
            "finished cells are kept and the rest is made again."
        ) from error
    raise ValueError(
        f"{path} was not written by a study of jaxact: its attribute `format` is {found!r}, "
        f"not {FORMAT!r}. Give the result.nc that a run wrote."
    )


def combine(cells: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join the Datasets of a study's cells into one, by their coordinates.

    These are the union over the cells, in the order in which the cells list them; a numeric coordinate
    that ascends within every cell and has more than one value in some (layers, steps) stays ascending. What
    no cell measured is NaN ("" for text). A variable that is covered everywhere keeps its dtype; one with
    gaps becomes floating.

    Variables have the attributes of their first occurrence; there are no global ones.

    Raises:
        ValueError: if there is no cell, if a dimension has no coordinate, if cells disagree on a variable's
            dimensions, or if two of them give different values for the same place.

    >>> cells = [xr.Dataset({"loss": ("depth", [0.5 / d])}, {"depth": [d]}) for d in (8, 2)]
    >>> combine(cells).loss.to_series().to_dict()
    {8: 0.0625, 2: 0.25}
    """
    if not cells:
        raise ValueError("`cells` must hold at least one Dataset, got none.")
    dims = list(dict.fromkeys(dim for cell in cells for dim in cell.dims))
    for dim in dims:
        if any(dim in cell.dims and dim not in cell.coords for cell in cells):
            raise ValueError(f"dimension `{dim}` has no coordinate: cells can be joined only by coordinates.")
    index = {dim: _union([cell.indexes[dim] for cell in cells if dim in cell.dims]) for dim in dims}
    names = list(dict.fromkeys(name for cell in cells for name in cell.variables if name not in dims))
    variables = {name: _joined(str(name), cells, index) for name in names}
    coords = {name for cell in cells for name in cell.coords if name not in dims}
    for dim in dims:
        first = next(cell for cell in cells if dim in cell.dims)
        variables[dim] = xr.Variable((dim,), _plain(index[dim]), first[dim].attrs)
    return xr.Dataset(variables).set_coords(coords | set(dims))


def measurements(dataset: xr.Dataset) -> xr.Dataset:
    """Drop what differs between two runs of one config: timings (`*_seconds`) and provenance (global attributes).

    The rest is reproducible: on one machine, the same config gives identical measurements.
    """
    timings = [name for name in dataset.data_vars if str(name).endswith("_seconds")]
    return dataset.drop_vars(timings).drop_attrs(deep=False)


def _encode(dataset: xr.Dataset, file: h5py.File) -> None:
    """Fill an HDF5 file as netCDF-4 and xarray ask: dimension scales, int8 for booleans, UTF-8 text."""
    file.attrs.update(dataset.attrs)
    if others := [str(name) for name in dataset.coords if name not in dataset.dims]:
        file.attrs["coordinates"] = " ".join(others)
    scales = [name for name in dataset.dims if name in dataset.coords]
    for name in [*scales, *(name for name in dataset.variables if name not in scales)]:
        variable = dataset.variables[name]
        if not _can_be_stored(variable.dtype):
            raise TypeError(f"`{name}` holds {variable.dtype}: {_STORABLE}.")
        data = _storable(np.asarray(variable.values))
        text = h5py.string_dtype() if data.dtype == object else None
        stored = file.create_dataset(str(name), data=data, dtype=text)
        stored.attrs.update(variable.attrs | ({"dtype": "bool"} if variable.dtype.kind == "b" else {}))
        if name in scales:
            stored.make_scale(str(name))
        else:
            for axis, dim in enumerate(variable.dims):
                stored.dims[axis].attach_scale(file[str(dim)])


def _can_be_stored(dtype: np.dtype) -> bool:
    return dtype.kind in "iufbUTO" or dtype.name == "bfloat16"


def _storable(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "b":
        return values.astype(np.int8)
    if values.dtype.kind in "UTO":
        return values.astype(object)
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


def _decode(file: h5py.File) -> xr.Dataset:
    attributes = _attributes(file)
    coordinates = str(attributes.pop("coordinates", "")).split()
    variables = {}
    for name, stored in file.items():
        own = _attributes(stored)
        is_text = h5py.check_string_dtype(stored.dtype) is not None
        values = np.asarray(stored.asstr()[()]).astype(str) if is_text else stored[()]
        if own.pop("dtype", None) == "bool":
            values = np.asarray(values, bool)
        dims = (name,) if stored.is_scale else tuple(axis[0].name.strip("/") for axis in stored.dims)
        variables[name] = xr.Variable(dims, values, own)
        coordinates += [name] * stored.is_scale
    return xr.Dataset(variables, attrs=attributes).set_coords(coordinates)


def _attributes(stored: h5py.HLObject) -> dict[str, Any]:
    values = {name: stored.attrs[name] for name in stored.attrs if name not in _SCALE_ATTRIBUTES}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _structure_failures(dataset: xr.Dataset) -> list[str]:
    failures = [] if dataset.data_vars else ["it holds no variable"]
    for dim in dataset.dims:
        if str(dim).startswith("dim_"):
            failures.append(f"dimension `{dim}` has no name of its own: name it after what it counts")
        if dim not in dataset.coords:
            failures.append(f"dimension `{dim}` has no coordinate: give one, for example its number")
        elif not dataset.indexes[dim].is_unique:
            failures.append(f"coordinate `{dim}` repeats values: {_plain(dataset.indexes[dim]).tolist()}")
    for name, variable in dataset.variables.items():
        is_text = variable.dtype.kind in "UTO"
        if not _can_be_stored(variable.dtype):
            failures.append(f"`{name}` holds {variable.dtype}: {_STORABLE}")
        for attribute in ("long_name",) if is_text else ("units", "long_name"):
            value = variable.attrs.get(attribute)
            if not isinstance(value, str) or not value.strip():
                hint = ' ("1" for a pure number)' if attribute == "units" else ""
                failures.append(f"`{name}` has no attribute `{attribute}`{hint}")
    return failures


def _refuse(failures: Sequence[str]) -> None:
    if failures:
        lines = "\n".join(f"  - {failure}" for failure in failures)
        raise ValueError(f"the Dataset breaks the schema of a result in {len(failures)} place(s):\n{lines}")


def _union(indexes: Sequence[pd.Index]) -> pd.Index:
    distinct = list({tuple(index): index for index in indexes}.values())
    if len(distinct) == 1:
        return distinct[0]
    union = pd.Index(list(dict.fromkeys(value for index in distinct for value in index)))
    ascend = all(each.is_monotonic_increasing and pd.api.types.is_numeric_dtype(each) for each in distinct)
    return union.sort_values() if ascend and any(len(each) > 1 for each in distinct) else union


def _plain(index: pd.Index) -> np.ndarray:
    values = index.to_numpy()
    return values if values.dtype.kind in "iufb" else np.asarray(values, dtype=str)


def _joined(name: str, cells: Sequence[xr.Dataset], index: Mapping[Any, pd.Index]) -> xr.Variable:
    parts = [cell for cell in cells if name in cell.variables]
    dims = parts[0].variables[name].dims
    for cell in parts:
        if cell.variables[name].dims != dims:
            raise ValueError(
                f"cells disagree on the dimensions of `{name}`: {dims} and {cell.variables[name].dims}."
            )
    values = [np.asarray(cell.variables[name].values) for cell in parts]
    values = [v.astype(str) if v.dtype.kind in "OT" else v for v in values]
    shape = tuple(len(index[dim]) for dim in dims)
    out = np.zeros(shape, np.result_type(*values))
    covered = np.zeros(shape, bool)
    for cell, value in zip(parts, values, strict=True):
        place = np.ix_(*(index[dim].get_indexer(cell.indexes[dim]) for dim in dims))
        before = covered[place]
        same = (out[place] == value) | ((out[place] != out[place]) & (value != value))
        if not np.all(same | ~before):
            raise ValueError(f"two cells give different values of `{name}` for the same coordinates.")
        out[place] = value
        covered[place] = True
    if not covered.all() and out.dtype.kind in "iufb":
        if out.dtype.kind != "f":  # a small integer fits float32; only wide ones need float64
            out = out.astype(np.float32 if out.dtype.itemsize < 4 else np.float64)
        out[~covered] = np.nan
    return xr.Variable(dims, out, parts[0].variables[name].attrs)
