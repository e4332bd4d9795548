"""States on disk, by Orbax: written whole or not at all, read back as they were or refused by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jaxact.fit._loop import State

_MANIFEST, _ARRAYS = "manifest.json", "arrays"
_NUMBERS: dict[
    str, Callable[[str], Any]
] = {  # Python's own, which no file of arrays could tell from arrays: kind -> what reads its text
    "Python bool": "True".__eq__,
    "Python int": lambda text: int(text, 16),  # Python writes and reads no more than 4300 decimal digits
    "Python float": float,
    "Python complex": complex,
}


class Leaf(NamedTuple):
    """What one leaf of a stored pytree is.

    Attributes:
        dtype: such as "float32"; "key<rbg>" of a PRNG key says its kind, "Python float" a number that is no array.
        shape: of keys, how many, not of their integers.
    """

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """`float32[3, 4]`."""
        return self.dtype + ("" if self.dtype in _NUMBERS else str(list(self.shape)))


class Contents(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        step: of a `State`, how many steps were taken; of a population of them, a list; None of any other tree.
        leaves: by path within the tree, such as "params['w']".
    """

    step: int | list | None
    leaves: Mapping[str, Leaf]


def save(path: str | os.PathLike[str], state: PyTree) -> None:
    """Write a pytree to a new folder: arrays of JAX and NumPy, PRNG keys and Python numbers.

    All is written beside the target and renamed at the end, so that a killed save leaves no folder that looks whole,
    and of two saves at once one wins; what a killed one left beside it goes with the next save there. The folder holds
    a manifest with every leaf's path, dtype and shape and a SHA-256 of every file of Orbax's, which `restore` checks.

    Args:
        path: folder to make; must not exist. Folders above it are made.
        state: a `State`, or any pytree.

    Raises:
        FileExistsError: if `path` exists, or another save made it meanwhile.
        OSError: if it cannot be written, as on a full disk; nothing is left there.
        TypeError: if a leaf is neither a number nor an array of numbers; says which.
        ValueError: if JAX runs in several processes.
    """
    target = Path(path).absolute()
    if jax.process_count() > 1:
        raise ValueError(
            "`save` writes from one process, got several. Gather the state and save it without jax.distributed."
        )
    leaves = _leaves(state)
    stored = {name: _leaf(name, leaf) for name, leaf in leaves.items()}
    if target.exists():
        raise FileExistsError(f"`path` {target} exists already. {_ANOTHER_NAME}")
    with _folder_beside(target) as folder:
        _write_arrays(
            folder / _ARRAYS,
            {str(i): _as_array(leaf) for i, leaf in enumerate(leaves.values()) if _has_data(leaf)},
        )
        content = {
            "step": np.asarray(state.step).tolist() if isinstance(state, State) else None,
            "leaves": [_entry(name, *stored[name], leaf) for name, leaf in leaves.items()],
            "files": {name: _digest(folder / name) for name in _files(folder)},
        }
        (folder / _MANIFEST).write_text(json.dumps({"sha256": _digest_of(content), "content": content}))


def restore(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Read back what `save` wrote.

    Args:
        path: the folder.
        like: a pytree of the same structure, shapes and dtypes; its arrays, or `jax.ShapeDtypeStruct`s, say
            what to expect and, where they carry one, the sharding. Where it has arrays of NumPy or Python numbers, so
            has the result.

    Returns:
        The saved values in the structure of `like`.

    Raises:
        FileNotFoundError: if `path` holds no checkpoint.
        ValueError: if a file of the checkpoint is damaged or missing, or if its tree, shapes, dtypes or kinds of keys
            are not those of `like`; says which.
    """
    target = Path(path).absolute()
    content, wanted = _manifest(target), _leaves(like)
    entries = {entry["name"]: (str(place), entry) for place, entry in enumerate(content["leaves"])}
    stored = {name: Leaf(entry["dtype"], tuple(entry["shape"])) for name, (_, entry) in entries.items()}
    problems = _differences({name: _leaf(name, leaf) for name, leaf in wanted.items()}, stored)
    if problems:
        raise ValueError(f"The checkpoint {target} does not fit `like`: " + "; ".join(problems) + ".")
    present = _files(target)  # whatever the manifest names: no file elsewhere is read, and no pipe waited for
    for name, digest in content["files"].items():
        if name not in present:
            raise _damaged(target / name, "it is no file there")
        if _digest(target / name) != digest:
            raise _damaged(target / name, "it is not the file that was saved")
    templates = {entries[name][0]: _template(leaf) for name, leaf in wanted.items() if _has_data(leaf)}
    loaded = _read_arrays(target / _ARRAYS, templates)
    leaves = [_as_leaf(leaf, entries[name][1], loaded.get(entries[name][0])) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def contents(path: str | os.PathLike[str]) -> Contents:
    """What a checkpoint holds, read from its manifest alone: no arrays are loaded, nor need their structure be known.

    Args:
        path: the folder that `save` made.

    Raises:
        FileNotFoundError: if `path` holds no checkpoint.
        ValueError: if it is no checkpoint that can be read, or its manifest is damaged.
    """
    content = _manifest(Path(path).absolute())
    leaves = {entry["name"]: Leaf(entry["dtype"], tuple(entry["shape"])) for entry in content["leaves"]}
    return Contents(content["step"], leaves)


_ANOTHER_NAME = "Save under another name, such as one with the step."
_ANOTHER_CHECKPOINT = "Restore another checkpoint: this one cannot be trusted."


def _leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by their paths as Python writes them: `['a.b']` is not `['a']['b']`."""
    seen: Counter[str] = Counter()
    named = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path).removeprefix(".")
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name} ({seen[name]})"] = (
            leaf  # keys of a user's own class may look alike
        )
    return named


def _leaf(name: str, leaf: Any) -> Leaf:
    if type(leaf) in (bool, int, float, complex):  # NumPy calls a class of its own "bool" as well
        return Leaf(f"Python {type(leaf).__name__}", ())
    dtype = getattr(leaf, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return Leaf(str(dtype), tuple(leaf.shape))
    if dtype is None or not _is_stored(np.dtype(dtype)):
        raise TypeError(
            f"`{name}` must be an array of numbers, a number or a PRNG key, got "
            f"{type(leaf).__name__ if dtype is None else f'an array of {dtype}'}. Leave it out or convert it."
        )
    return Leaf(np.dtype(dtype).name, tuple(leaf.shape))


def _is_stored(dtype: np.dtype) -> bool:
    """Whether Orbax's store has it (0.12.8): not integers of 2 bits, nor C's long doubles."""
    is_number = dtype.kind == "b" or jnp.issubdtype(dtype, np.number)
    return is_number and dtype.name not in {
        "int2",
        "uint2",
        "float96",
        "float128",
        "complex192",
        "complex256",
    }


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _has_data(leaf: Any) -> bool:
    """Whether it goes to Orbax, which refuses arrays of size zero and does not tell numbers from arrays."""
    return hasattr(leaf, "dtype") and 0 not in leaf.shape


def _as_array(leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf, leaf.dtype.newbyteorder("="))


def _entry(name: str, dtype: str, shape: tuple[int, ...], leaf: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": name, "dtype": dtype, "shape": list(shape)}
    if dtype in _NUMBERS:
        entry["value"] = hex(leaf) if type(leaf) is int else repr(leaf)
    elif getattr(leaf, "weak_type", False):
        entry["is_weak"] = True  # a rate that was would otherwise turn a bfloat16 update into float32
    return entry


@contextlib.contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A new folder that becomes `target` at the end, or vanishes; those of killed saves beside it vanish too."""
    folder = target.with_name(f".{target.name}.{secrets.token_hex(8)}.saving")
    try:
        with _locked(folder):
            _sweep(folder.parent)
            yield folder
            folder.rename(target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(
                f"`path` {target} was made by another save meanwhile. {_ANOTHER_NAME}"
            ) from error
        raise OSError(
            f"The checkpoint {target} could not be written: {error}. Nothing is left there; free space, or give a "
            "`path` in a folder that can be written."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make a folder and lock it, which tells others that its process lives: the system unlocks what a dead one held."""
    while True:
        folder.mkdir(parents=True)
        handle = _lock(folder, is_waiting=True)
        if folder.exists():  # else a sweep came between the two
            break
        _unlock(handle)
    try:
        yield
    finally:
        _unlock(handle)


def _sweep(parent: Path) -> None:
    """Remove what killed saves left in a folder: what nobody has locked."""
    for path in parent.glob(".*.saving"):
        if re.fullmatch(r"\..+\.[0-9a-f]{16}\.saving", path.name, re.DOTALL) and not path.is_symlink():
            handle = _lock(path, is_waiting=False)
            if handle is not None:
                shutil.rmtree(path, ignore_errors=True)
            _unlock(handle)


def _lock(folder: Path, *, is_waiting: bool) -> int | None:
    """The system's lock of a folder; None where another has it, or there are no locks: Windows, some networks."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if is_waiting else fcntl.LOCK_NB))
    except OSError:
        os.close(handle)
        return None
    return handle


def _unlock(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


# Orbax (0.12.8) counts its operations by one number for the whole process: of two at once, one takes the other's,
# and fails or waits for five minutes.
_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def _orbax_alone() -> Iterator[None]:
    """Let one thread use Orbax, and keep it from logging tracebacks of what it also raises."""

    def is_of_another(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    with _ONE_AT_A_TIME:
        logger.addFilter(is_of_another)
        try:
            yield
        finally:
            logger.removeFilter(is_of_another)


def _write_arrays(folder: Path, arrays: dict[str, Any]) -> None:
    from orbax.checkpoint import v1 as ocp

    if not arrays:
        return
    try:
        with _orbax_alone():
            ocp.save(folder, arrays)
    except Exception as error:  # a full disk is a ValueError of Orbax's
        raise OSError(error) from error


def _read_arrays(folder: Path, templates: dict[str, Any]) -> dict[str, Any]:
    from orbax.checkpoint import v1 as ocp

    if not templates:
        return {}
    try:
        with _orbax_alone():
            return ocp.load(folder, templates)
    except Exception as error:  # Orbax has no one type for what it cannot read
        raise ValueError(f"Orbax cannot read {folder}: {error}. Use the version that saved it.") from error


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _damaged(file, error) from error


def _digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(file: Path, why: object) -> ValueError:
    return ValueError(f"{file} is damaged or missing: {why}. {_ANOTHER_CHECKPOINT}")


def _manifest(target: Path) -> dict[str, Any]:
    """What `save` noted, if it is that."""
    if not target.is_dir():
        raise FileNotFoundError(f"No checkpoint at {target}. Give the folder that `save` was given.")
    file = target / _MANIFEST
    if not file.is_file():
        raise ValueError(
            f"{target} is not a checkpoint: it has no {_MANIFEST}. Give the folder that `save` was given."
        )
    try:
        outer = json.loads(file.read_bytes())
        is_whole = outer["sha256"] == _digest_of(outer["content"]) and _is_content(outer["content"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(file, error) from error
    if not is_whole:
        raise _damaged(file, "it is not the file that was saved")
    return outer["content"]


def _is_content(content: dict[str, Any]) -> bool:
    """Whether it is what `save` notes, or what a later one does."""
    is_entry = ({"name", "dtype", "shape"} <= {*entry} for entry in content["leaves"])
    return all(is_entry) and isinstance(content["files"], dict) and "step" in content


def _differences(expected: dict[str, Leaf], stored: dict[str, Leaf]) -> list[str]:
    problems = [f"`{name}` is missing" for name in expected if name not in stored]
    problems += [f"`{name}` is not expected" for name in stored if name not in expected]
    return problems + [
        f"`{name}` is {stored[name]}, expected {leaf}"
        for name, leaf in expected.items()
        if name in stored and stored[name] != leaf
    ]


def _template(leaf: Any) -> Any:
    """What Orbax is asked for."""
    if isinstance(leaf, np.ndarray | np.generic):
        return np.empty(leaf.shape, leaf.dtype.newbyteorder("="))
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    elif jax.dtypes.canonicalize_dtype(leaf.dtype) != leaf.dtype:
        raise ValueError(
            f"`like` has a leaf of {leaf.dtype}, which JAX holds only in 64-bit mode. Set jax_enable_x64, or give "
            "arrays of NumPy in `like`."
        )
    # Always one that this process has: left out, Orbax would ask for the devices of the process that saved.
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))


def _sharding(leaf: Any) -> jax.sharding.Sharding:
    return getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def _as_leaf(like: Any, entry: Mapping[str, Any], loaded: Any) -> Any:
    """A stored leaf as the kind that `like` is."""
    if entry["dtype"] in _NUMBERS:
        return _NUMBERS[entry["dtype"]](entry["value"])
    if isinstance(like, np.ndarray | np.generic):
        found = np.empty(like.shape, like.dtype) if loaded is None else np.asarray(loaded, like.dtype)
        return found[()] if isinstance(like, np.generic) else found
    if _is_key(like):
        data = jax.eval_shape(jax.random.key_data, like)
        return jax.random.wrap_key_data(
            jnp.zeros(data.shape, data.dtype) if loaded is None else loaded, impl=_key_impl(like)
        )
    found = jax.device_put(jnp.zeros(like.shape, like.dtype), _sharding(like)) if loaded is None else loaded
    return _weak(found) if entry.get("is_weak") else found


def _weak(array: jax.Array) -> jax.Array:
    """The same values with a weak type, which Orbax forgets."""
    found = jnp.full(array.shape, array.dtype.type(0).item())  # by a Python number
    return jax.device_put(found.at[...].set(array), array.sharding) if found.dtype == array.dtype else array


def _key_impl(leaf: Any) -> Any:
    """The kind of a key, or of the struct that stands for one: key_impl itself refuses structs (jax 0.10.2)."""
    found = None

    def look(key: jax.Array) -> jax.Array:
        nonlocal found
        found = jax.random.key_impl(key)
        return key

    jax.eval_shape(look, leaf)
    return found
