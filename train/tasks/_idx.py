"""Reads IDX files, the format of the MNIST family, plain or compressed with gzip."""

import contextlib
import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from train.tasks._task import DataError

_UNSIGNED_BYTE = 0x08
_CHUNK = 1 << 20


def read_idx(path: Path, shape: tuple[int | None, ...], remedy: str) -> np.ndarray:
    """Reads one IDX file of unsigned bytes.

    The format: two zero bytes, one byte for the type (8: unsigned byte), one for the number of dimensions,
    each dimension as a big-endian 32-bit number, then the values, the last dimension fastest. Whether the
    file is compressed is told from its first bytes, not from its name.

    Args:
        path: the file.
        shape: the shape that it must have; None where any length is right.
        remedy: a sentence for the error messages.

    Returns:
        The values, uint8, in the file's shape.

    Raises:
        DataError: the file is truncated, too long, damaged, or of another type or shape; names the file.
        OSError: it cannot be read.
    """
    try:
        with _opened(path) as file:
            return _parse(file, path, shape, remedy)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or damaged: gzip says {error}. {remedy}") from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not compressed:
            yield raw
            return
        with gzip.GzipFile(fileobj=raw) as file:
            yield cast(IO[bytes], file)


def _parse(file: IO[bytes], path: Path, shape: tuple[int | None, ...], remedy: str) -> np.ndarray:
    magic = _read(file, 4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise DataError(f"{path} is not an IDX file: it begins with {magic.hex(' ') or 'nothing'}. {remedy}")
    if magic[2] != _UNSIGNED_BYTE or magic[3] != len(shape):
        raise DataError(
            f"{path} must hold unsigned bytes (type 8) in {len(shape)} dimensions, "
            f"got type {magic[2]} in {magic[3]}. {remedy}"
        )
    header = _read(file, 4 * len(shape))
    if len(header) < 4 * len(shape):
        raise DataError(f"{path} is truncated: it ends inside its header. {remedy}")
    dims = struct.unpack(f">{len(shape)}I", header)
    if any(want not in (None, got) for want, got in zip(shape, dims, strict=True)) or 0 in dims:
        wanted = " x ".join("n" if want is None else str(want) for want in shape)
        raise DataError(f"{path} must be {wanted} with n >= 1, got {' x '.join(map(str, dims))}. {remedy}")
    size = math.prod(dims)
    values = _read(file, size + 1)
    if len(values) != size:
        fault = "is truncated" if len(values) < size else "is longer than its header says"
        got = len(values) if len(values) < size else "more"
        raise DataError(f"{path} {fault}: {size} values expected, got {got}. {remedy}")
    return np.frombuffer(values, np.uint8).reshape(dims)


def _read(file: IO[bytes], size: int) -> bytes:
    """Up to `size` bytes, piece by piece: a header that lies about its size must not allocate terabytes."""
    pieces = []
    while size > 0 and (piece := file.read(min(size, _CHUNK))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)
