"""A population is its members side by side, on one device or several."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import fit

ROOT = Path(__file__).parents[2]
SHARDED = """
import jax, jax.numpy as jnp, numpy as np, optax
from jaxact import fit
assert len(jax.devices()) == 4
mesh = jax.make_mesh((4,), ("members",), axis_types=(jax.sharding.AxisType.Auto,))
members = fit.grid(seeds=range(6), rate=[0.5])
run = lambda member, x: jnp.sin(jax.random.normal(member.key, (8, 8)) @ x * member.hparams["rate"])
alone = fit.population(run, members, jnp.ones(8))
spread = jax.jit(lambda m, x: fit.population(run, m, x, mesh=mesh))
everywhere = jax.device_put(jnp.ones(8), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
for x in (jnp.ones(8), everywhere):
    shared = spread(members, x)
    assert shared.shape == alone.shape == (6, 8)
    np.testing.assert_allclose(shared, alone, atol=1e-6)
for size in (5, 6, 9, 11):  # 2 or 3 a device, of which 1 or 2 at once
    more = fit.grid(seeds=range(size), rate=[0.5])
    one_by_one = np.stack([run(jax.tree.map(lambda leaf: leaf[i], more), jnp.ones(8)) for i in range(size)])
    for at_once in (1, 2, 3, 99):
        chunked = jax.jit(lambda m, x: fit.population(run, m, x, mesh=mesh, at_once=at_once))(more, everywhere)
        assert chunked.shape == (size, 8)
        np.testing.assert_allclose(chunked, one_by_one, atol=1e-6)
told = []
train = fit.fit(lambda p, v, b, h: (p**2, (v, ())), lambda key: (), optax.sgd(0.1), num_steps=4, measure_every=2,
                report=lambda step, history: told.append((step.tolist(), history.loss.shape)))
begin = lambda member: fit.start(optax.sgd(0.1), key=member.key, params=member.hparams["rate"], hparams=member.hparams)
states, _ = jax.jit(lambda m: fit.population(lambda one: train(begin(one)), m, mesh=mesh))(members)
jax.effects_barrier()
assert sorted(told) == sorted(4 * [([2, 2], (2, 2)), ([4, 4], (2, 2))]), told
padded = spread(fit.pad(members, 4), everywhere)
assert padded.shape == (8, 8) and {s.data.shape for s in padded.addressable_shards} == {(2, 8)}
np.testing.assert_array_equal(padded[5:], jnp.repeat(padded[5:6], 3, 0))
text = spread.lower(fit.pad(members, 4), everywhere).compile().as_text()
assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))

from train import devices  # the fewest devices that leave none with more members than need be
assert [len(devices.mesh(n).devices) for n in (2, 4, 6, 9)] == [2, 4, 3, 3]
assert devices.mesh(1) is None
"""


def test_members_on_four_devices_equal_members_on_one_though_six_do_not_divide_by_four():
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env={"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu", "PATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("at_once", [None, 1, 2, 3, 4, 6, np.int64(7), 99])
def test_at_most_so_many_are_side_by_side_and_the_results_are_those_of_the_loop(at_once):
    members, seen = fit.grid(seeds=range(7), rate=[0.5]), []

    @jax.custom_batching.custom_vmap
    def noted(x):
        return x

    @noted.def_vmap
    def _(size, is_batched, x):
        seen.append(size)
        return x, True

    def run(member, x):
        h = noted(jax.random.normal(member.key, (8, 8)) @ x)
        return {"h": jnp.sin(h * member.hparams["rate"]), "seed": member.hparams["seed"], "key": member.key}

    x = jnp.ones(8)
    program = jax.jit(lambda members, x: fit.population(run, members, x, at_once=at_once))
    found = program(members, x)
    loop = [jax.jit(run)(jax.tree.map(lambda leaf, i=i: leaf[i], members), x) for i in range(7)]
    assert found["seed"].tolist() == list(range(7))
    np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(members.key))
    np.testing.assert_allclose(found["h"], np.stack([one["h"] for one in loop]), atol=1e-6)
    # One body, as wide as the evenest stretches of at most so many: 7 in stretches of 6 are 4 and 4.
    assert seen == [{None: 7, 1: 1, 2: 2, 3: 3, 4: 4, 6: 4, 7: 7, 99: 7}[at_once]]


def test_what_is_held_in_between_is_held_for_those_at_once():
    def run(x):  # 1 MiB in between
        return jnp.sum(jax.lax.fori_loop(0, 3, lambda _, h: jnp.sin(h @ h), jnp.outer(x, x)))

    def needed(at_once):
        program = jax.jit(lambda xs: fit.population(run, xs, at_once=at_once))
        return program.lower(jnp.ones((8, 512))).compile().memory_analysis().temp_size_in_bytes

    everything, two = needed(None), needed(2)
    assert everything >= 8 * 2**20
    assert two <= everything / 4 + 2**20


def test_grid_holds_every_combination_once_with_seeds_fastest():
    members = fit.grid(seeds=[5, 7], learning_rate=[0.1, 0.2], sigma_w=[1.0, 2.0, 3.0])
    rows = np.stack([members.hparams[name] for name in ("learning_rate", "sigma_w", "seed")], axis=1)
    assert len({tuple(row) for row in rows.tolist()}) == 12
    assert rows[:2, 2].tolist() == [5, 7]
    np.testing.assert_array_equal(jax.random.key_data(members.key[0]), jax.random.key_data(jax.random.key(5)))
    np.testing.assert_array_equal(jax.random.key_data(members.key[0]), jax.random.key_data(members.key[2]))


@pytest.mark.parametrize(
    "seeds", [[0, 2**31 - 1], [2**31, 5], [2**32 - 1], [-1, -(2**31)], [np.uint32(2**31)]]
)
def test_every_seed_that_makes_a_key_of_its_own_is_taken(seeds):
    members = fit.grid(seeds=seeds)
    assert members.hparams["seed"].tolist() == seeds
    for key, seed in zip(members.key, seeds, strict=True):
        np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(seed)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [2**32]}, "`seeds` must fit int32 or uint32, got 4294967296: .*the same keys"),
        ({"seeds": [-1, 2**32 - 1]}, "`seeds` must fit int32 or uint32"),  # one key, not two
        ({"seeds": [2**100]}, "`seeds` must fit int32 or uint32"),
        ({"seeds": [0.5]}, r"`seeds` must be integers, got 0.5\. Use seeds=range"),
        (
            {"seeds": [0], "width": [2**40]},
            "`width` must be numbers that an array of JAX holds, got .*as floats",
        ),
        ({"seeds": [0], "name": ["tanh"]}, "`name` must be numbers that an array of JAX holds, got .*tanh"),
    ],
)
def test_what_no_array_holds_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit.grid(**arguments)


def test_bad_members_are_refused():
    with pytest.raises(ValueError, match="`learning_rate` must hold at least one value"):
        fit.grid(seeds=[0], learning_rate=[])
    with pytest.raises(ValueError, match="`multiple` must be an integer of at least 1, got 0"):
        fit.pad(fit.grid(seeds=[0]), 0)
    for at_once in (0, -1, 2.0, True, "auto"):
        with pytest.raises(
            ValueError, match=r"`at_once` must be an integer of at least 1, got .*at_once=None"
        ):
            fit.population(lambda m: m, fit.grid(seeds=[0]), at_once=at_once)
    with pytest.raises(ValueError, match="one leading axis"):
        fit.population(lambda m: m, {"a": np.zeros(2), "b": np.zeros(3)})
