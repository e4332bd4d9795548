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
        raise FileExistsError(
            f"`path` {target} exists already. Save under another name, such as one with the step."
        )
    ocp.save(target, _named(state))


def restore(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Read back what `save` wrote.

    Args:
        path: the folder.
        like: a pytree of the same structure, shapes and dtypes; its arrays, or `jax.ShapeDtypeStruct`s, say
            what to expect and, where they carry one, the sharding.

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
    expected = jax.eval_shape(_named, like)
    try:
        stored = ocp.metadata(target).metadata
    except Exception as error:  # Orbax has no one type for "not a checkpoint"
        raise ValueError(f"{target} is not a checkpoint that can be read: {error}") from error
    problems = _differences(expected, stored)
    if problems:
        raise ValueError(f"The checkpoint {target} does not fit `like`: " + "; ".join(problems) + ".")
    loaded = ocp.load(target, {name: _with_sharding(expected[name], leaf) for name, leaf in _leaves(like)})
    leaves = [
        jax.random.wrap_key_data(loaded[name], impl=_key_impl(leaf)) if _is_key(leaf) else loaded[name]
        for name, leaf in _leaves(like)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _leaves(tree: PyTree) -> list[tuple[str, Any]]:
    """Leaves with their paths as text: the names under which they are stored, whatever holds them."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator="."), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _named(tree: PyTree) -> dict[str, Any]:
    """A flat dictionary; PRNG keys as their integers, since Orbax stores ordinary arrays."""
    return {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in _leaves(tree)}


def _differences(expected: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    problems = [f"`{name}` is missing" for name in expected if name not in stored]
    problems += [f"`{name}` is not expected" for name in stored if name not in expected]
    for name in expected.keys() & stored.keys():
        found, wanted = stored[name], expected[name]
        if tuple(found.shape) != tuple(wanted.shape) or found.dtype != wanted.dtype:
            problems.append(
                f"`{name}` is {found.dtype}{list(found.shape)}, expected {wanted.dtype}{list(wanted.shape)}"
            )
    return problems


def _with_sharding(expected: jax.ShapeDtypeStruct, leaf: Any) -> jax.ShapeDtypeStruct:
    # Always one that this process has: left out, Orbax would ask for the devices of the process that saved.
    sharding = None if _is_key(leaf) else getattr(leaf, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(expected.shape, expected.dtype, sharding=sharding)


def _key_impl(leaf: Any) -> Any:
    """The kind of a key, or of the struct that stands for one: key_impl itself refuses structs (jax 0.10.2)."""
    found = None

    def look(key: jax.Array) -> jax.Array:
        nonlocal found
        found = jax.random.key_impl(key)
        return key

    jax.eval_shape(look, leaf)
    return found


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
