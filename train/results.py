"""The stored result of a study: one labelled xarray Dataset in one NetCDF file, whole or not there."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from jaxact.files import write_atomically
from train import netcdf

FORMAT = "jaxact-study-2"
_UNSEALED = "jaxact-study-1"  # results from before files had a digest
_SEAL = b"\0jaxact sha256:\0"  # the file's last bytes: this, and the digest of all before
_NUM_DIGEST = 32
_NUM_END = len(_SEAL) + _NUM_DIGEST
_IN_JSON = ("config", "versions")
PROVENANCE = ("format", "study", "experiment", "run_id", "git_commit", "device", "started", *_IN_JSON)
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def check(dataset: xr.Dataset) -> None:
    """Check a Dataset against the schema that every stored result keeps.

    The schema: every dimension has a name of its own and a coordinate without repeats; every variable and
    every coordinate has a `long_name`, and, where it holds numbers, `units` ("1" for a pure number); values
    are numbers, booleans or text, names and attributes what a file can hold; the provenance attributes are
    there, `config` and `versions` as JSON.

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

    The file is xarray's and netCDF's own format; `xarray.open_dataset` reads it. After what these read it ends with a
    digest of all before, so that `load` knows of every bit that is not as it was written.

    Args:
        dataset: of numbers, booleans and text, its dimensions with coordinates; bfloat16 is stored as float32.
        path: the file to write; one that is there is replaced.

    Raises:
        OSError: if it cannot be written (a full disk, no permission); nothing is left behind.
        TypeError: for values that the format does not hold, such as dates.
    """
    buffer = netcdf.encode(dataset)
    digest = hashlib.sha256(buffer.getbuffer()).digest()
    buffer.seek(0, os.SEEK_END)
    buffer.write(_SEAL + digest)  # HDF5 looks at nothing beyond its own end
    write_atomically(path, buffer.getbuffer())


def load(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a run's result.nc, or the file of one cell, into memory; `attrs` say where it comes from.

    Its digest is checked first. What is not a plain table of numbers and text, such as a link to another file, is
    refused before it is read, so that a file from elsewhere may be looked at.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it is truncated, damaged or cannot be read.
        ValueError: if it is whole but no study of jaxact wrote it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder. Give the result.nc inside it.")
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist. Give the result.nc of a finished run; `python -m train list` shows them."
        )
    if not path.is_file():  # a pipe, which would be waited for
        raise ValueError(f"{path} is not a file. Give the result.nc that a run wrote.")
    content, is_sealed = _unsealed(path, path.read_bytes())
    if content and not is_sealed and not _HDF5_SIGNATURE.startswith(content[: len(_HDF5_SIGNATURE)]):
        raise ValueError(f"{path} is not a NetCDF4 file. Give the result.nc that a run wrote.")
    try:
        dataset = netcdf.decode(content)
    except netcdf.ForbiddenError as error:
        raise ValueError(
            f"{path} is not read: {error}, which no result has. Do not trust where it is from."
        ) from error
    except Exception as error:  # of which HDF5 and xarray have many kinds
        raise _damaged(path, error) from error
    found = dataset.attrs.get("format")
    if found not in (FORMAT, _UNSEALED):
        raise ValueError(
            f"{path} was not written by a study of jaxact: its attribute `format` is {found!r}, "
            f"not {FORMAT!r}. Give the result.nc that a run wrote."
        )
    if found == FORMAT and not is_sealed:
        raise _damaged(path, "it has lost its digest")
    return dataset


def _unsealed(path: Path, content: bytes) -> tuple[bytes, bool]:
    """The file before its digest, and whether it has one.

    Raises:
        OSError: if the digest is of other bytes.
    """
    body, seal, digest = content[:-_NUM_END], content[-_NUM_END:-_NUM_DIGEST], content[-_NUM_DIGEST:]
    if seal != _SEAL:
        return content, False
    if hashlib.sha256(body).digest() != digest:
        raise _damaged(path, "its bytes are not those of its digest")
    return body, True


def _damaged(path: Path, reason: object) -> OSError:
    return OSError(
        f"{path} is truncated or damaged ({reason}). To have it made again, resume its run: "
        "finished cells are kept."
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
            dimensions, if two of them give different values for the same place, or if an integer would be rounded.

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


def _structure_failures(dataset: xr.Dataset) -> list[str]:
    failures = [] if dataset.data_vars else ["it holds no variable"]
    indexes = dataset.indexes  # made anew at each look
    for dim in dataset.dims:
        if str(dim).startswith("dim_"):
            failures.append(f"dimension `{dim}` has no name of its own: name it after what it counts")
        if dim not in indexes:
            failures.append(f"dimension `{dim}` has no coordinate: give one, for example its number")
        elif isinstance(indexes[dim], pd.MultiIndex):
            failures.append(f"coordinate `{dim}` is a MultiIndex, which no file holds: unstack it")
        elif not indexes[dim].is_unique:
            failures.append(f"coordinate `{dim}` repeats values: {_plain(indexes[dim]).tolist()}")
        elif indexes[dim].hasnans:
            failures.append(f"coordinate `{dim}` has a label that is not a number")
    for name, variable in dataset.variables.items():
        is_text = variable.dtype.kind in "UTO"
        for attribute in ("long_name",) if is_text else ("units", "long_name"):
            value = variable.attrs.get(attribute)
            if not isinstance(value, str) or not value.strip():
                hint = ' ("1" for a pure number)' if attribute == "units" else ""
                failures.append(f"`{name}` has no attribute `{attribute}`{hint}")
    return failures + netcdf.faults(dataset)


def _refuse(failures: Sequence[str]) -> None:
    if failures:
        lines = "\n".join(f"  - {failure}" for failure in failures)
        raise ValueError(f"the Dataset breaks the schema of a result in {len(failures)} place(s):\n{lines}")


def _union(indexes: Sequence[pd.Index]) -> pd.Index:
    distinct = list({tuple(index): index for index in indexes}.values())
    if len(distinct) == 1:
        return distinct[0]
    values = list(dict.fromkeys(value for index in distinct for value in index))
    union = pd.Index(values)
    if changed := [value for value, stored in zip(values, union.tolist(), strict=True) if value != stored]:
        raise ValueError(
            f"the labels {changed} of {distinct[0].name!r} would be rounded beside those of other cells. "
            "Give all labels of a dimension as one dtype, or as text."
        )
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
    dtype = np.result_type(*values)
    values = [_exact(name, each, dtype) for each in values]
    out = np.zeros(shape, dtype)
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
            out = _exact(name, out, np.dtype(np.float32 if out.dtype.itemsize < 4 else np.float64))
        out[~covered] = np.nan
    return xr.Variable(dims, out, parts[0].variables[name].attrs)


def beyond_floats(values: np.ndarray) -> list[int]:
    """The integers that float64 would round."""
    if values.dtype.kind not in "iu":
        return []
    large = values[(values > 2**53) | (values < -(2**53))].tolist()
    return [each for each in large if int(float(each)) != each]


def _exact(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values as `dtype`, or an error where that would round an integer."""
    if dtype.kind == "f" and (rounded := beyond_floats(values)):
        raise ValueError(
            f"`{name}` holds {rounded[0]}, which {dtype} rounds, the dtype for what not every cell gives as an "
            "integer. Give such integers in every cell, or as text."
        )
    return values.astype(dtype, copy=False)
