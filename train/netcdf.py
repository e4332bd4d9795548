"""A Dataset as the bytes of a NetCDF4 file, and back: of a file from elsewhere no more is read than `encode` writes."""

import io
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import xarray as xr

_SCALE_ATTRIBUTES = ("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST")  # how HDF5 stores dimensions
_WRITER = "_NCProperties"  # by which netCDF says who wrote a file
# What netCDF and xarray keep for themselves: as an attribute of the user's it would change what is read.
_RESERVED = (
    *_SCALE_ATTRIBUTES,
    _WRITER,
    "coordinates",
    "dtype",
    "_FillValue",
    "missing_value",
    "scale_factor",
    "add_offset",
)
_STORABLE = "only numbers, booleans and text can be stored"
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LONGEST_ROW = 64  # texts in an attribute
_TEXT_BYTES = 16  # that HDF5 stores for a text in place: its length and where it is
_MOST_TEXT = 2**30  # bytes: numpy gives every text of an array the room of the longest


class ForbiddenError(ValueError):
    """The file holds what no result does, such as a link; the message, a clause, names it."""


def faults(dataset: xr.Dataset) -> list[str]:
    """Name everything in a Dataset that `encode` cannot hold or `decode` would not give back."""
    found = list(_attribute_faults("the Dataset", dataset.attrs))
    for dim in dataset.dims:
        if dim not in dataset.variables and (reason := _name_fault(dim)):
            found.append(f"the name {dim!r} {reason}")
    listed = set(dataset.coords) - set(dataset.dims)
    for name, variable in dataset.variables.items():
        if reason := _name_fault(name, is_listed=name in listed):
            found.append(f"the name {name!r} {reason}")
        if reason := _value_fault(variable):
            found.append(f"`{name}` holds {reason}: {_STORABLE}")
        found += _attribute_faults(f"`{name}`", variable.attrs)
    return found


def encode(dataset: xr.Dataset) -> io.BytesIO:
    """Write a Dataset as netCDF-4 and xarray ask: dimension scales, int8 for booleans, UTF-8 text.

    It is written here because that takes 20 ms for a cell of 35 variables, and 180 ms through h5netcdf; there, one
    large variable that holds all of them would take 8 ms, and nobody else could read it.

    Args:
        dataset: without `faults`, its dimensions with coordinates; bfloat16 is stored as float32.

    Returns:
        The file, the same bytes for the same Dataset.

    Raises:
        TypeError: for values that the format does not hold, such as dates.
    """
    # In memory first: HDF5 writing straight to a full disk loses the errno and fails again on close.
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=("v108", "v110")) as file:
        _fill(file, dataset)
    return buffer


def decode(content: bytes) -> xr.Dataset:
    """Read the bytes that `encode` made; the file's `attrs` are the Dataset's.

    A hostile file must not make the reader open another file or take more memory than it fills itself. So it may hold
    datasets of numbers and text at its root, stored as they are in one piece, and nothing else.

    Raises:
        ForbiddenError: if the file holds anything else, before that is read.
        Exception: whatever HDF5 and xarray say to bytes that are damaged.
    """
    with h5py.File(h5py.h5f.open_file_image(content)) as file:
        stored = dict(_datasets(file))
        _check_claims(stored, content)
        attributes, room = _attributes(file, len(content))
        coordinates = str(attributes.pop("coordinates", "")).split()
        variables = {}
        for name, each in stored.items():
            own, room = _attributes(each, room)
            is_text = h5py.check_string_dtype(each.dtype) is not None
            values = np.asarray(each.asstr()[()]).astype(str) if is_text else each[()]
            if own.pop("dtype", None) == "bool":
                values = np.asarray(values, bool)
            dims = (name,) if each.is_scale else tuple(axis[0].name.strip("/") for axis in each.dims)
            variables[name] = xr.Variable(dims, values, own)
            coordinates += [name] * each.is_scale
        return xr.Dataset(variables, attrs=attributes).set_coords(coordinates)


def _fill(file: h5py.File, dataset: xr.Dataset) -> None:
    file.attrs.update(dataset.attrs)
    if others := [str(name) for name in dataset.coords if name not in dataset.dims]:
        file.attrs["coordinates"] = " ".join(others)
    scales = [name for name in dataset.dims if name in dataset.coords]
    for name in [*scales, *(name for name in dataset.variables if name not in scales)]:
        variable = dataset.variables[name]
        if reason := _value_fault(variable):
            raise TypeError(f"`{name}` holds {reason}: {_STORABLE}.")
        data = _storable(np.asarray(variable.values))
        text = h5py.string_dtype() if data.dtype == object else None
        stored = file.create_dataset(str(name), data=data, dtype=text)
        stored.attrs.update(variable.attrs | ({"dtype": "bool"} if variable.dtype.kind == "b" else {}))
        if name in scales:
            stored.make_scale(str(name))
        else:
            for axis, dim in enumerate(variable.dims):
                stored.dims[axis].attach_scale(file[str(dim)])


def _storable(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "b":
        return values.astype(np.int8)
    if values.dtype.kind in "UTO":
        return values.astype(object)
    return values.astype(np.float32) if values.dtype.name == "bfloat16" else values


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """What lies at the root of a file; no link is followed, and nothing opened that other files make up."""
    if file.id.get_create_plist().get_sizes() != (8, 8):
        raise ForbiddenError("it has addresses of another size than 8 bytes")
    for name in file:
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            where = getattr(link, "filename", "") or getattr(link, "path", "")
            raise ForbiddenError(f"it has a link {name!r} to {where!r}")
        stored = file[name]
        if not isinstance(stored, h5py.Dataset):
            raise ForbiddenError(f"{name!r} in it is a {type(stored).__name__.lower()}")
        plan = stored.id.get_create_plist()
        if plan.get_layout() == h5py.h5d.VIRTUAL:
            raise ForbiddenError(f"`{name}` is put together from other files, a virtual dataset")
        if plan.get_layout() == h5py.h5d.CONTIGUOUS and plan.get_external_count():
            raise ForbiddenError(f"`{name}` is stored in other files: {plan.get_external(0)[0].decode()!r}")
        if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_nfilters():
            raise ForbiddenError(f"`{name}` is stored in chunks or compressed")
        if stored.dtype.kind not in "iuf" and not _is_text(stored.dtype):
            raise ForbiddenError(f"`{name}` holds {stored.dtype}")
        yield name, stored


def _is_text(dtype: np.dtype) -> bool:
    """Whether it is text of any length, the only kind that `encode` writes."""
    info = h5py.check_string_dtype(dtype)
    return info is not None and info.length is None


def _check_claims(stored: Mapping[str, h5py.Dataset], content: bytes) -> None:
    """Refuse to read more than the file has room for, as the claims of its headers would have it."""
    total = 0  # of all, as several may claim the same bytes
    for name, each in stored.items():
        size, start = math.prod(each.shape), each.id.get_offset()
        claim = size * (_TEXT_BYTES if _is_text(each.dtype) else each.dtype.itemsize)
        if start is not None and _is_text(each.dtype) and start + claim <= len(content):
            lengths = np.frombuffer(content, [("length", "<u4"), ("place", "V12")], size, start)["length"]
            claim += int(lengths.sum(dtype=np.int64))
            if 4 * size * int(lengths.max(initial=0)) > _MOST_TEXT:
                raise ForbiddenError(f"`{name}` claims texts of {int(lengths.max())} bytes, {size} of them")
        total += claim
        if total > len(content) or (start is None and size):
            raise ForbiddenError(f"`{name}` claims {claim:,} bytes in a file of {len(content):,}")


def _attributes(stored: h5py.HLObject, room: int) -> tuple[dict[str, Any], int]:
    """Attributes, and how much room is left of what all of them may take."""
    found = {}
    for name in stored.attrs:
        if name in (*_SCALE_ATTRIBUTES, _WRITER):
            continue
        header = stored.attrs.get_id(name)
        size = math.prod(header.shape)
        if header.dtype.kind not in "iufb" and not (_is_text(header.dtype) and size <= _LONGEST_ROW):
            raise ForbiddenError(f"its attribute {name!r} holds {size} of {header.dtype}")
        room -= size * header.dtype.itemsize
        value = stored.attrs[name] if room >= 0 else ""
        texts = [value] if isinstance(value, str) else value if header.dtype == object else []
        room -= sum(len(text) for text in texts)
        if room < 0:
            raise ForbiddenError("its attributes claim more bytes than the file has")
        found[name] = value.item() if isinstance(value, np.generic) else value
    return found, room


def _value_fault(variable: xr.Variable) -> str:
    """What is wrong with a variable's values; nothing for numbers, booleans and text."""
    dtype = variable.dtype
    if dtype.kind not in "UTO":
        is_known = dtype.kind in "iufb" and dtype.itemsize <= 8
        return "" if is_known or dtype.name == "bfloat16" else str(dtype)
    for text in np.asarray(variable.values, object).ravel():
        if not isinstance(text, str):
            return f"{type(text).__name__}"
        if not _can_be_stored(text):
            return f"{text!r}, which a file cannot hold"
    return ""


def _can_be_stored(text: str) -> bool:
    return "\0" not in text and (text.isascii() or not _SURROGATE.search(text))


def _name_fault(name: object, *, is_listed: bool = False) -> str:
    """What is wrong with a name; those in the list of coordinates are parted by spaces."""
    if not isinstance(name, str):
        return f"is no text but {type(name).__name__}"
    if not name or name != name.strip() or name in (".", "..") or "/" in name or _UNPRINTABLE.search(name):
        return "cannot be stored: a name has no /, no control characters and no spaces around it"
    if is_listed and name.split() != [name]:
        return "cannot be stored: a coordinate that is no dimension has no spaces in its name"
    return ""


def _attribute_faults(owner: str, attributes: Mapping[Any, Any]) -> Iterator[str]:
    for name, value in attributes.items():
        if reason := _name_fault(name):
            yield f"the name {name!r} of an attribute of {owner} {reason}"
        elif name in _RESERVED:
            yield f"attribute `{name}` of {owner} is one that the format keeps for itself: rename it"
        elif not _is_attribute(value):
            yield f"attribute `{name}` of {owner} is {value!r}: only numbers, text and short rows of them can be stored"


def _is_attribute(value: Any) -> bool:
    if isinstance(value, str):
        return _can_be_stored(value)
    if isinstance(value, list | tuple) or np.ndim(value) == 1:
        are_texts = len(value) <= _LONGEST_ROW and all(isinstance(each, str) for each in value)
        are_numbers = all(isinstance(each, int | float | np.number) for each in value)
        return (are_texts or are_numbers) and all(map(_is_attribute, value))
    dtype = np.asarray(value).dtype
    return isinstance(value, int | float | np.number) and dtype.kind in "iuf" and dtype.itemsize <= 8
