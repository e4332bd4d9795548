"""A population is its members side by side, on one device or several."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxact import fit

ROOT = Path(__file__).parents[2]
SHARDED = """
import jax, jax.numpy as jnp, numpy as np
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


def test_grid_holds_every_combination_once_with_seeds_fastest():
    members = fit.grid(seeds=[5, 7], learning_rate=[0.1, 0.2], sigma_w=[1.0, 2.0, 3.0])
    rows = np.stack([members.hparams[name] for name in ("learning_rate", "sigma_w", "seed")], axis=1)
    assert len({tuple(row) for row in rows.tolist()}) == 12
    assert rows[:2, 2].tolist() == [5, 7]
    np.testing.assert_array_equal(jax.random.key_data(members.key[0]), jax.random.key_data(jax.random.key(5)))
    np.testing.assert_array_equal(jax.random.key_data(members.key[0]), jax.random.key_data(members.key[2]))


def test_bad_members_are_refused():
    with pytest.raises(ValueError, match="`learning_rate` must hold at least one value"):
        fit.grid(seeds=[0], learning_rate=[])
    with pytest.raises(ValueError, match="one leading axis"):
        fit.population(lambda m: m, {"a": np.zeros(2), "b": np.zeros(3)})
