"""The inputs of the diagnose command, drawn or read from a file, and the losses of their labels."""

import argparse
import inspect
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.nn import log_softmax

from jaxact._cli._output import InputError
from jaxact.adapters import shape_text
from jaxact.errors import one_line

_LABELS = ("labels", "y")
_INPUTS = ("inputs", "x", "images")
#: what numpy and zipfile raise of damaged files, found by writing random bytes into whole ones
_DAMAGED = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


class Inputs(NamedTuple):
    """A batch.

    Attributes:
        values: [inputs, ...].
        labels: [inputs] integers, or None.
        source: where they are from, in words.
    """

    values: np.ndarray
    labels: np.ndarray | None
    source: str


def inputs_of(options: argparse.Namespace) -> Inputs:
    """The batch that the options ask for.

    Raises:
        InputError: they ask for none or for two, or the file holds none.
    """
    if (options.batch is None) == (options.input_shape is None):
        got = "neither" if options.batch is None else "both"
        raise InputError(
            f"inputs are either drawn, `--input-shape 32,784`, or read, `--batch FILE.npz`, got {got}. Give one."
        )
    return _drawn(options) if options.batch is None else _read(options)


def _drawn(options: argparse.Namespace) -> Inputs:
    dtype = np.dtype(options.input_dtype or "float32")
    generator = np.random.default_rng(options.seed)
    if dtype.kind == "f":
        _check_max(options, "is for integers")
        values = generator.standard_normal(options.input_shape).astype(dtype)
        return Inputs(values, None, f"standard normal, seed {options.seed}")
    if options.input_max is None:
        raise InputError(
            f"`--input-dtype {dtype}` needs `--input-max N`, got none. Give the number of tokens, say 256."
        )
    values = generator.integers(options.input_max, size=options.input_shape).astype(dtype)
    return Inputs(values, None, f"uniform on 0 to {options.input_max - 1}, seed {options.seed}")


def _check_max(options: argparse.Namespace, rule: str) -> None:
    if options.input_max is not None:
        raise InputError(f"`--input-max` {rule}, got {options.input_max}. Give --input-dtype int32 as well.")


# --- From a file --------------------------------------------------------------------------------------------


def _read(options: argparse.Namespace) -> Inputs:
    _check_max(options, "is for inputs that are drawn")
    path, name = _split(options.batch)
    arrays = _loaded(path)
    chosen = name or _only(arrays, path)
    if chosen not in arrays:
        raise InputError(f"{path} has no array {chosen!r}. It has {', '.join(arrays)}.")
    values = _numbers(arrays[chosen], f"{path}:{chosen}")
    if options.input_dtype is not None:
        values = values.astype(options.input_dtype)
    label = next((each for each in _LABELS if each in arrays and each != chosen), None)
    labels = None if label is None else _labels(arrays[label], values, f"{path}:{label}")
    beside = "" if label is None else f", labels {label!r}"
    return Inputs(values, labels, f"{chosen!r} of {path}{beside}")


def _split(text: str) -> tuple[Path, str]:
    """FILE.npz:NAME; a file's name may have a colon as well."""
    path, colon, name = text.rpartition(":")
    if colon and path.lower().endswith((".npz", ".npy")):
        return Path(path), name
    return Path(text), ""


def _loaded(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file:  # which numpy leaves open where it finds no archive
            found = np.load(file, allow_pickle=False)
            return {"the array": found} if isinstance(found, np.ndarray) else dict(found)
    except _DAMAGED as error:
        raise InputError(
            f"`--batch` must be a .npz file of numbers, got {str(path)!r}: {one_line(error)}. "
            "Write it with numpy.savez(file, inputs=..., labels=...)."
        ) from error


def _only(arrays: dict[str, np.ndarray], path: Path) -> str:
    usual = [each for each in _INPUTS if each in arrays]
    others = [each for each in arrays if each not in _LABELS]
    if usual:
        return usual[0]
    if len(others) == 1:
        return others[0]
    raise InputError(
        f"`--batch` must say which array holds the inputs, {path} has {', '.join(arrays) or 'none'}. "
        f"Write {path}:NAME, or call them inputs."
    )


def _numbers(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiub" or array.ndim == 0 or array.size == 0:
        raise InputError(
            f"`--batch` must be an array of real numbers, inputs first, got {array.dtype}{shape_text(array.shape)} "
            f"in {name}. Write it with numpy.savez(file, inputs=...)."
        )
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _labels(array: np.ndarray, values: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "iu" or array.shape[:1] != values.shape[:1] or array.min(initial=0) < 0:
        raise InputError(
            f"labels must be classes from 0 on, one for each of {len(values)} inputs, got "
            f"{array.dtype}{shape_text(array.shape)} in {name}. Name it otherwise if it holds no labels."
        )
    return array


# --- Losses of labels ---------------------------------------------------------------------------------------


def cross_entropy(labels: np.ndarray) -> Callable[[Any], Any]:
    """The mean cross-entropy of scores [inputs, ..., classes] with labels [inputs, ...], as a loss of outputs."""

    def cross_entropy_with_labels(outputs: Any) -> Any:
        shape = getattr(outputs, "shape", None)
        if shape is None or shape[:-1] != labels.shape or labels.max() >= shape[-1]:
            raise InputError(
                f"cross-entropy needs scores {shape_text((*labels.shape, 'classes'))} of more than {labels.max()} "
                f"classes, the model returns {'a tree' if shape is None else shape_text(shape)}. "
                "Give --loss MODULE:NAME, or a file without labels."
            )
        chosen = jnp.take_along_axis(log_softmax(outputs), jnp.asarray(labels)[..., None], axis=-1)
        return -jnp.mean(chosen)

    return cross_entropy_with_labels


def on_labels(loss: Any, labels: np.ndarray) -> Any:
    """A user's loss of (outputs, labels) as one of outputs; one of outputs alone as it is."""
    try:
        inspect.signature(loss).bind(None, None)
    except (TypeError, ValueError):
        return loss

    def bound(outputs: Any) -> Any:
        return loss(outputs, jnp.asarray(labels))

    bound.__name__ = getattr(loss, "__name__", "loss")
    return bound
