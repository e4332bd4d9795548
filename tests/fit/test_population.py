"""A population is its members side by side, on one device or several."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxact import fit

SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jaxact import fit
assert len(jax.devices()) == 4
mesh = jax.make_mesh((4,), ("members",), axis_types=(jax.sharding.AxisType.Auto,))
members = fit.grid(seeds=range(6), rate=[0.5])
run = lambda member: jnp.sin(jax.random.normal(member.key, (8, 8)) @ jnp.ones(8) * member.hparams["rate"])
alone = fit.population(run, members)
shared = jax.jit(lambda m: fit.population(run, m, mesh=mesh))(members)
assert shared.shape == alone.shape == (6, 8)
np.testing.assert_allclose(shared, alone, atol=1e-6)
"""


def test_members_on_four_devices_equal_members_on_one_though_six_do_not_divide_by_four():
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env={"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu", "PATH": ""},
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
