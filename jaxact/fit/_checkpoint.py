"""States on disk, by Orbax: written whole or not at all, restored onto whatever devices are there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def save(path: str | os.PathLike[str], state: PyTree) -> None:
    """Write a pytree of arrays to a new folder; PRNG keys too.

    Orbax writes beside the target and renames, so that a killed save leaves no folder that looks whole.

    Args:
        path: folder to make; must not exist.
        state: a `State`, or any pytree of arrays.

    Raises:
        FileExistsError: if `path` exists.
    """
    from orbax.checkpoint import v1 as ocp

    target = Path(path).absolute()
    if target.exists():
        raise FileExistsError(f"`path` {target} exists already. Save under another name, such as one with the step.")
    ocp.save_pytree(target, _plain(state))


def restore(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Read back what `save` wrote.

    Args:
        path: the folder.
        like: a pytree of the same structure, shapes and dtypes; its arrays, or `jax.ShapeDtypeStruct`s, say what to expect
            and, where they carry one, the sharding.

    Returns:
        The saved values in the structure of `like`.

    Raises:
        FileNotFoundError: if `path` holds no checkpoint.
        ValueError: if the checkpoint's tree, shapes or dtypes are not those of `like`; says which.
    """
    from orbax.checkpoint import v1 as ocp

    target = Path(path).absolute()
    if not target.is_dir():
        raise FileNotFoundError(f"No checkpoint at {target}. Give the folder that `save` was given.")
    expected = jax.eval_shape(_plain, like)
    try:
        stored = ocp.pytree_metadata(target).metadata
    except Exception as error:
        raise ValueError(f"{target} is not a checkpoint that can be read: {error}") from error
    found = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(stored)}
    wanted = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(expected)}
    problems = _differences(list(wanted.values()), list(found.values()), list(wanted))
    if problems:
        raise ValueError(f"The checkpoint {target} does not fit `like`: " + "; ".join(problems))
    return _like(ocp.load_pytree(target, expected), like)


def _differences(wanted: list[Any], found: list[Any], names: list[str]) -> list[str]:
    if len(wanted) != len(found):
        return [f"{len(found)} arrays stored, {len(wanted)} expected"]
    return [
        f"{name} is {b.dtype}{list(b.shape)}, expected {a.dtype}{list(a.shape)}"
        for name, a, b in zip(names, wanted, found, strict=True)
        if tuple(a.shape) != tuple(b.shape) or a.dtype != b.dtype
    ]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(state: PyTree) -> PyTree:
    """PRNG keys as their integers: Orbax stores ordinary arrays."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, state)


def _like(plain: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(
        lambda a, b: jax.random.wrap_key_data(a, impl=jax.random.key_impl(b)) if _is_key(b) else a, plain, like
    )
