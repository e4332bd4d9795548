"""Layer statistics against counting by hand in numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import probes


class WithLipschitz:
    """tanh, claiming a slope bound of its own."""

    def __init__(self, lipschitz):
        self.lipschitz = lipschitz

    def __call__(self, x):
        return jnp.tanh(x)


class LayerStatisticsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_equal_numpy_counts(self):
        z = jax.random.normal(jax.random.key(0), (3, 6, 4, 2)) * jnp.array([0.5, 1, 3])[:, None, None, None]
        hidden = jax.random.normal(jax.random.key(1), (3, 6, 5))
        stats = self.variant(lambda z, h: probes.layer_statistics(z, jax.nn.relu6, hidden=h))(z, hidden)
        z, hidden = np.asarray(z, np.float64), np.asarray(hidden, np.float64)
        slope = ((z > 0) & (z < 6)).astype(float)
        np.testing.assert_allclose(stats.mean, hidden.mean((1, 2)), atol=1e-6)
        np.testing.assert_allclose(stats.second_moment, (hidden**2).mean((1, 2)), rtol=1e-6)
        np.testing.assert_allclose(stats.zero_fraction, (z <= 0).mean((1, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(stats.dead_fraction, (slope == 0).all(1).mean((1, 2)), rtol=1e-6)
        np.testing.assert_allclose(stats.saturated_fraction, (slope < 0.01).mean((1, 2, 3)), rtol=1e-6)


def test_hidden_defaults_to_the_preactivation():
    z = jax.random.normal(jax.random.key(0), (2, 5, 3))
    chex.assert_trees_all_equal(
        probes.layer_statistics(z, jnp.tanh), probes.layer_statistics(z, jnp.tanh, hidden=z)
    )


@pytest.mark.parametrize("lipschitz", [1.0, 200.0])
def test_saturation_is_measured_against_the_lipschitz_constant(lipschitz):
    z = jnp.linspace(-5, 5, 101)[None, :, None]
    slope = 1 - np.tanh(np.asarray(z, np.float64)) ** 2
    expected = (slope < 0.01 * lipschitz).mean()
    for value in (lipschitz, jnp.asarray(lipschitz)):
        stats = probes.layer_statistics(z, WithLipschitz(value))
        np.testing.assert_allclose(stats.saturated_fraction, expected, rtol=1e-6)


def test_saturation_falls_back_on_the_largest_slope_of_each_layer():
    z = jnp.stack([jnp.linspace(-5.0, 5, 101), jnp.linspace(2.0, 5, 101)])[..., None]
    slope = 1 - np.tanh(np.asarray(z, np.float64)) ** 2
    expected = (slope < 0.01 * slope.max(1, keepdims=True)).mean((1, 2))
    for activation in (jnp.tanh, WithLipschitz(np.inf), WithLipschitz(jnp.inf)):
        np.testing.assert_allclose(
            probes.layer_statistics(z, activation).saturated_fraction, expected, rtol=1e-6
        )


def test_a_dead_layer_is_all_zero_and_dead():
    stats = probes.layer_statistics(-jnp.ones((1, 4, 3)), jax.nn.relu)
    assert stats.zero_fraction == stats.dead_fraction == 1
    chex.assert_tree_all_finite(stats)


def test_low_precision_is_averaged_in_float32():
    z = jnp.full((1, 4096, 3), 1.0, jnp.bfloat16)
    stats = probes.layer_statistics(z, jax.nn.relu)
    chex.assert_type(list(stats), jnp.float32)
    assert stats.mean == stats.second_moment == 1


def test_bad_input_is_refused_by_name():
    with pytest.raises(TypeError, match="`preactivation` must be real floating-point, got dtype int32"):
        probes.layer_statistics(jnp.ones((2, 3), int), jnp.tanh)
    with pytest.raises(ValueError, match=r"`preactivation` must be \[layer, batch.*\(3,\)"):
        probes.layer_statistics(jnp.ones(3), jnp.tanh)
    with pytest.raises(ValueError, match="as many layers as `preactivation`, got 3 and 2"):
        probes.layer_statistics(jnp.ones((2, 3)), jnp.tanh, hidden=jnp.ones((3, 3)))


@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh, jax.nn.gelu])
def test_a_diverged_layer_is_nan_and_not_dead(activation):
    z = jnp.ones((3, 4, 5)).at[0].set(jnp.nan).at[1, 2, 3].set(jnp.nan)
    stats = probes.layer_statistics(z, activation)
    for name, field in stats._asdict().items():
        assert np.isnan(field[:2]).all(), name
        assert np.isfinite(field[2]), name


def test_infinities_count_by_their_value_and_slope():
    z = jnp.stack([jnp.full((2, 2), jnp.inf), jnp.full((2, 2), -jnp.inf)])
    stats = probes.layer_statistics(z, jax.nn.relu)
    np.testing.assert_array_equal(stats.mean, [np.inf, -np.inf])
    np.testing.assert_array_equal(stats.zero_fraction, [0, 1])
    np.testing.assert_array_equal(stats.dead_fraction, [0, 1])
    steep = probes.layer_statistics(z, jnp.square)  # slopes of inf, beside which nothing is steep
    assert np.isnan(steep.saturated_fraction).all()


def test_a_hidden_state_that_diverged_leaves_the_fractions():
    stats = probes.layer_statistics(jnp.ones((1, 2, 2)), jnp.tanh, hidden=jnp.full((1, 2), jnp.nan))
    assert np.isnan(stats.mean)
    assert stats.dead_fraction == 0
