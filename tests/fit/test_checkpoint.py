"""A restored state goes on as if it had never been written."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxact import fit


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
    with pytest.raises(ValueError, match=r"`params.w` is float32\[3\], expected float32\[4\]"):
        fit.restore(tmp_path / "state", other)
    with pytest.raises(ValueError, match=r"`w` is missing; .*`step` is not expected"):
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
