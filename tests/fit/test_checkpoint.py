"""A restored state goes on as if it had never been written."""

import errno
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jaxact import fit

ROOT = Path(__file__).parents[2]


def quadratic(params, variables, batch, hparams):
    return jnp.sum((params["w"] - batch) ** 2), (variables, ())


RUN = jax.jit(fit.fit(quadratic, lambda key: jax.random.normal(key, (3,)), optax.adam(0.1), num_steps=5))


def begin():
    return fit.start(
        optax.adam(0.1), key=jax.random.key(7), params={"w": jnp.ones(3)}, hparams={"rate": jnp.ones(())}
    )


def test_a_run_saved_and_restored_halfway_equals_an_unbroken_one(tmp_path):
    half, _ = RUN(begin())
    fit.save(tmp_path / "half", half)
    restored = fit.restore(tmp_path / "half", begin())
    chex.assert_trees_all_equal(jax.random.key_data(restored.key), jax.random.key_data(half.key))
    broken, unbroken = RUN(restored)[0], RUN(half)[0]
    chex.assert_trees_all_equal(broken._replace(key=0), unbroken._replace(key=0))


def test_structs_say_what_to_expect_as_well_as_arrays(tmp_path):
    begun = fit.start(optax.sgd(0.1), key=jax.random.key(7), params={"w": jnp.ones(3)}, hparams={"rate": 0.5})
    fit.save(tmp_path / "begun", begun)
    restored = fit.restore(tmp_path / "begun", jax.eval_shape(lambda: begun))
    chex.assert_trees_all_equal(jax.random.key_data(restored.key), jax.random.key_data(begun.key))
    chex.assert_trees_all_equal(restored._replace(key=0), begun._replace(key=0))


def test_a_number_is_no_key():
    with pytest.raises(TypeError, match=r"`key` must be a typed PRNG key, got 0\. Use jax\.random\.key"):
        fit.start(optax.sgd(0.1), key=0, params={"w": jnp.ones(3)})


def test_a_checkpoint_that_does_not_fit_is_refused_by_name(tmp_path):
    fit.save(tmp_path / "state", begin())
    other = begin()._replace(params={"w": jnp.ones(4)})
    with pytest.raises(ValueError, match=r"`params\['w'\]` is float32\[3\], expected float32\[4\]"):
        fit.restore(tmp_path / "state", other)
    with pytest.raises(ValueError, match=r"`\['w'\]` is missing; .*`step` is not expected"):
        fit.restore(tmp_path / "state", {"w": jnp.ones(3)})


def test_missing_and_existing_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        fit.restore(tmp_path / "nothing", begin())
    fit.save(tmp_path / "state", begin())
    with pytest.raises(FileExistsError, match="exists already"):
        fit.save(tmp_path / "state", begin())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a checkpoint"):
        fit.restore(tmp_path / "empty", begin())


KEYS = {
    impl: jax.random.split(jax.random.key(5, impl=impl), 3) for impl in ("threefry2x32", "rbg", "unsafe_rbg")
}
TREES = {
    "a dot in a name": {"a.b": jnp.ones(2), "a": {"b": jnp.zeros(2)}},
    "quotes in a name": {"']['": jnp.ones(2), "": {"": jnp.zeros(2)}},
    "a number and its text": {"1": [jnp.ones(2)], "x": {1: jnp.zeros(2)}},
    "size zero": {"none": jnp.zeros((0, 3)), "some": jnp.ones(2), "keys": KEYS["rbg"][:0]},
    "size zero alone": np.zeros((2, 0), np.int8),
    "no leaf": {"a": {}, "b": [None, ()]},
    "a leaf": jnp.float32(3),
    "numbers": [True, False, -3, 10**5000, 0.1, float("nan"), -0.0, float("-inf"), 1 - 0.1j],
    "numpy": [
        np.linspace(0, 1, 5),
        np.float64(0.1),
        np.int64(2**40),
        np.True_,
        np.zeros((), bool),
        np.ones((2, 3)).T,
    ],
    "other byte order": np.arange(3, dtype=">i4"),
    "keys": KEYS,
    "dtypes": [
        np.ones(3, dtype)
        for dtype in (*"?bBhHiIqQefdFD", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.int4)
    ],
    "weak types": [jnp.asarray(0.1), jnp.asarray(2), jnp.full((3,), 0.5), jnp.float32(0.1)],
    "a shape of its own": {f"{i:04d}": jnp.full(i % 3, i) for i in range(40)},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_any_tree_comes_back_one_to_one(tree, tmp_path):
    fit.save(tmp_path / "x", tree)
    like = jax.tree.map(_other_values, tree)
    restored = fit.restore(tmp_path / "x", like)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)
    for found, true in zip(jax.tree.leaves(restored), jax.tree.leaves(tree), strict=True):
        assert type(found) is type(true)
        if isinstance(true, int):
            assert found == true  # Python prints no more than 4300 digits
            continue
        assert repr(found) == repr(true)  # of keys too, and to the last digit of a number
        if isinstance(true, np.ndarray):
            np.testing.assert_array_equal(found, true)
        assert getattr(found, "weak_type", None) == getattr(true, "weak_type", None)


def _other_values(leaf):
    if isinstance(leaf, bool | int | float | complex) and not isinstance(leaf, np.generic):
        return type(leaf)(0)
    if isinstance(leaf, jax.Array):
        return jax.eval_shape(lambda: leaf)
    return np.zeros_like(leaf)[()] if isinstance(leaf, np.generic) else np.zeros_like(leaf)


@pytest.mark.parametrize(
    ("stored", "like", "message"),
    [
        (KEYS["rbg"], KEYS["unsafe_rbg"], r"is key<rbg>\[3\], expected key<urbg>\[3\]"),
        (KEYS["threefry2x32"], jnp.zeros((3, 2), jnp.uint32), r"is key<fry>\[3\], expected uint32\[3, 2\]"),
        (jnp.zeros((3, 2), jnp.uint32), KEYS["threefry2x32"], r"is uint32\[3, 2\], expected key<fry>\[3\]"),
        (0.5, jnp.float32(0.5), r"is Python float, expected float32\[\]"),
        (True, 1, "is Python bool, expected Python int"),
        (
            {"a": {"b": jnp.ones(2)}},
            {"a.b": jnp.ones(2)},
            r"`\['a.b'\]` is missing; `\['a'\]\['b'\]` is not expected",
        ),
        (np.zeros(2), jax.ShapeDtypeStruct((2,), np.float64), "only in 64-bit mode. Set jax_enable_x64"),
    ],
)
def test_what_is_of_another_kind_is_refused(stored, like, message, tmp_path):
    fit.save(tmp_path / "x", stored)
    with pytest.raises(ValueError, match=message):
        fit.restore(tmp_path / "x", like)


@pytest.mark.parametrize(
    "leaf", ["text", np.array(["text"]), np.array([None]), np.ones(2, np.longdouble), jnp.tanh]
)
def test_what_no_file_can_hold_is_refused_by_name(leaf, tmp_path):
    with pytest.raises(
        TypeError, match=r"`\['w'\]` must be an array of numbers, a number or a PRNG key, got"
    ):
        fit.save(tmp_path / "x", {"w": leaf})
    assert not any(tmp_path.iterdir())


def test_a_rate_that_was_weak_leaves_a_bfloat16_run_its_dtype(tmp_path):
    optimizer = lambda h: optax.sgd(h["rate"], momentum=0.9)  # noqa: E731
    run = fit.fit(lambda p, v, b, h: (jnp.sum(p**2), (v, ())), lambda key: (), optimizer, num_steps=2)
    begun = fit.start(
        optimizer, key=jax.random.key(0), params=jnp.ones(3, jnp.bfloat16), hparams={"rate": 0.5}
    )
    fit.save(tmp_path / "x", begun)
    chex.assert_trees_all_equal(run(fit.restore(tmp_path / "x", begun))[0].params, run(begun)[0].params)


def test_every_bit_flipped_in_any_file_is_found_and_the_file_named(tmp_path):
    state, _ = RUN(begin())
    fit.save(tmp_path / "x", {"state": state, "number": 0.5})
    files = sorted(file for file in (tmp_path / "x").rglob("*") if file.is_file() and file.stat().st_size)
    assert len(files) > 3
    rng, like = np.random.default_rng(0), {"state": begin(), "number": 0.0}
    for trial in range(240):
        file = files[trial % len(files)]
        whole = file.read_bytes()
        bit = rng.integers(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="Restore another checkpoint") as caught:
            fit.restore(tmp_path / "x", like)
        assert str(file) in str(caught.value)
        file.write_bytes(whole)
    assert fit.restore(tmp_path / "x", like)["number"] == 0.5


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.write_bytes(b"\xff\xfe\x00"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_text("null"),
        lambda file: file.write_text('{"sha256": "", "content": {}}'),
        lambda file: file.write_text("[" * 100_000),
        lambda file: file.write_text('{"sha256": ' + "1" * 5000 + "}"),
        lambda file: file.write_text(json.dumps({**json.loads(file.read_text()), "content": {"leaves": []}})),
    ],
)
def test_a_damaged_manifest_is_named(damage, tmp_path):
    fit.save(tmp_path / "x", jnp.ones(3))
    damage(tmp_path / "x" / "manifest.json")
    for read in (lambda path: fit.restore(path, jnp.ones(3)), fit.contents):
        with pytest.raises(ValueError, match=r"manifest\.json is damaged.*Restore another checkpoint"):
            read(tmp_path / "x")


@pytest.mark.parametrize(
    "change", [{"files": 3}, {"leaves": 3}, {"leaves": [{"name": ""}]}, {"files": {"../other": "0"}}]
)
def test_a_manifest_with_a_digest_that_fits_is_not_taken_at_its_word(change, tmp_path):
    fit.save(tmp_path / "x", jnp.ones(3))
    (tmp_path / "other").write_text("not its own")
    file = tmp_path / "x" / "manifest.json"
    content = json.loads(file.read_text())["content"] | change
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({"sha256": digest, "content": content}))
    with pytest.raises(ValueError, match=f"{tmp_path}.* is damaged or missing: .*Restore another checkpoint"):
        fit.restore(tmp_path / "x", jnp.ones(3))


def test_a_file_that_is_gone_or_no_file_is_named(tmp_path):
    fit.save(tmp_path / "x", jnp.ones(3))
    file = tmp_path / "x" / "arrays" / "state" / "_METADATA"
    file.unlink()
    with pytest.raises(ValueError, match=r"_METADATA is damaged or missing"):
        fit.restore(tmp_path / "x", jnp.ones(3))
    os.mkfifo(file)
    with pytest.raises(ValueError, match=r"_METADATA is damaged or missing"):
        fit.restore(tmp_path / "x", jnp.ones(3))
    (tmp_path / "x" / "manifest.json").unlink()
    os.mkfifo(tmp_path / "x" / "manifest.json")  # to open it would wait for ever
    with pytest.raises(ValueError, match=r"not a checkpoint: it has no manifest\.json"):
        fit.contents(tmp_path / "x")


def test_what_a_checkpoint_holds_is_told_without_knowing_it(tmp_path):
    half, _ = RUN(begin())
    fit.save(tmp_path / "half", half)
    held = fit.contents(tmp_path / "half")
    assert held.step == 5
    assert held.leaves["params['w']"] == fit.Leaf("float32", (3,))
    assert [str(held.leaves[name]) for name in ("key", "opt_state[0].mu['w']")] == [
        "key<fry>[]",
        "float32[3]",
    ]
    assert len(held.leaves) == len(jax.tree.leaves(half))
    fit.save(tmp_path / "two", jax.tree.map(lambda *leaves: jnp.stack(leaves), begin(), half))
    assert fit.contents(tmp_path / "two").step == [0, 5]
    fit.save(tmp_path / "tree", {"a": 1})
    assert fit.contents(tmp_path / "tree") == fit.Contents(None, {"['a']": fit.Leaf("Python int", ())})


@pytest.mark.parametrize(
    "target", ["orbax.checkpoint.v1.save", "pathlib.Path.write_text", "pathlib.Path.rename"]
)
def test_a_full_disk_is_said_and_leaves_nothing(target, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(target, full)
    with pytest.raises(OSError, match=r"checkpoint .*/x could not be written: .*No space left.* free space"):
        fit.save(tmp_path / "x", jnp.ones(3))
    assert not any(tmp_path.iterdir())


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/x could not be written: .*Not a directory.* give a `path`"):
        fit.save(tmp_path / "file" / "x", jnp.ones(3))
    with pytest.raises(FileExistsError, match="exists already"):
        fit.save(tmp_path / "file", jnp.ones(3))
    with pytest.raises(FileNotFoundError, match="No checkpoint at"):
        fit.contents(tmp_path / "file" / "x")


ALONE = """
import resource, sys, threading
import numpy as np
from pathlib import Path
from jaxact import fit
folder, outcomes = Path(sys.argv[1]), []

def save():
    try:
        fit.save(folder / "x", {"a": np.arange(90_000.0)})
        outcomes.append("saved")
    except OSError as error:
        outcomes.append(type(error).__name__ + ": " + str(error))

if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save()
    assert outcomes[0].startswith(f"OSError: The checkpoint {folder / 'x'} could not be written"), outcomes
    assert "free space" in outcomes[0] and not list(folder.iterdir()), outcomes
else:
    sys.setswitchinterval(1e-5)  # Orbax, left to itself, mixes up saves of several threads
    threads = [threading.Thread(target=save) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert sorted(each[:15] for each in outcomes) == ["FileExistsError"] * 5 + ["saved"], outcomes
    assert all("Save under another name" in each for each in outcomes if each != "saved"), outcomes
    assert [file.name for file in folder.iterdir()] == ["x"]
    np.testing.assert_array_equal(fit.restore(folder / "x", {"a": np.zeros(90_000)})["a"], np.arange(90_000.0))
"""


@pytest.mark.parametrize("what", ["full", "many at once"])
def test_a_save_that_fails_says_so_leaves_nothing_and_lets_the_process_end(what, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path), what],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_killed_save_left_goes_with_the_next_and_what_another_writes_stays(tmp_path):
    code = (
        "import os, pathlib, sys; from jaxact import fit\n"
        "pathlib.Path.rename = lambda *_: os.kill(os.getpid(), 9)\n"
        "fit.save(sys.argv[1], 1)"
    )
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    for name in ("x", "y"):  # the second finds what the first left
        killed = subprocess.run([sys.executable, "-c", code, tmp_path / name], env=env, check=False)
        assert killed.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1
    others = [tmp_path / ".z.0123456789abcdef.saving", tmp_path / ".my.saving"]
    for other in others:
        other.mkdir()
    handle = os.open(others[0], os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    fit.save(tmp_path / "x", 1)
    os.close(handle)
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "x"])
