"""The variance map against closed forms and a wide network."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxact import activations, nn, theory


class VarianceMapTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_relu_is_affine_in_q(self):
        q = jnp.array([0.0, 0.5, 3.0])
        mapped = self.variant(lambda q, w, b: theory.variance_map(activations.relu, q, sigma_w=w, sigma_b=b))(
            q, 1.5, 0.2
        )
        np.testing.assert_allclose(mapped, 1.5**2 * q / 2 + 0.04, rtol=1e-6)


def test_derivative_at_the_fixed_point_of_relu():
    slope = jax.jit(jax.grad(lambda q: theory.variance_map(activations.relu, q, sigma_w=2**0.5)))(3.0)
    np.testing.assert_allclose(slope, 1, rtol=1e-5)


def test_predicts_a_wide_network_layer_by_layer():
    width, depth, sigma_w, sigma_b = 1000, 4, 1.3, 0.3
    for activation in (activations.tanh, activations.gelu):
        key_x, key_w, key_b = jax.random.split(jax.random.key(0), 3)
        z = jax.random.normal(key_x, (64, width))
        q = 1.0
        for w_key, b_key in zip(jax.random.split(key_w, depth), jax.random.split(key_b, depth), strict=True):
            w = sigma_w * jax.random.normal(w_key, (width, width)) / width**0.5
            z = activation(z) @ w + sigma_b * jax.random.normal(b_key, (width,))
            q = theory.variance_map(activation, q, sigma_w=sigma_w, sigma_b=sigma_b)
            # One draw of the weights: relative error of a few times sqrt(2 / width).
            np.testing.assert_allclose(jnp.mean(z**2), q, rtol=6 * (2 / width) ** 0.5)


def test_lengths_of_a_built_network_follow_the_map_over_50_layers():
    width, depth, scales = 1000, 50, {"sigma_w": 1.3, "sigma_b": 0.3}
    stage = partial(nn.Plain, width, activations.tanh, weights="gaussian", **scales)
    h = 0.3**0.5 * jax.random.normal(jax.random.key(1), (16, width))  # away from the fixed point

    @jax.jit
    def lengths(key):
        return jnp.mean(nn.Stack(stage, depth, rngs=nnx.Rngs(params=key)).trace(h).hidden ** 2, (1, 2))

    # One network strays by up to 12 %: a layer's fluctuation of sqrt(2 / width) lasts a few layers.
    measured = np.mean([lengths(key) for key in jax.random.split(jax.random.key(0), 4)], 0)
    predicted = theory.trajectory(activations.tanh, depth, q=0.3, **scales).q[1:]
    np.testing.assert_allclose(measured, predicted, rtol=0.1)


def test_gain_is_a_fixed_point():
    sigma_w = theory.gain(activations.gelu)
    with jax.enable_x64(True):
        mapped = theory.variance_map(activations.gelu, sigma_w**2, sigma_w=sigma_w)
        np.testing.assert_allclose(mapped, sigma_w**2, rtol=1e-13)


@pytest.mark.parametrize("name", ["q", "sigma_w", "sigma_b"])
def test_bad_input_is_refused_by_name(name):
    arguments = {"q": 1.0, "sigma_w": 1.0, "sigma_b": 0.0}
    for value in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"`{name}` must be finite and nonnegative"):
            theory.variance_map(activations.relu, **arguments | {name: value})


def test_the_slope_of_a_trajectory_at_equal_inputs_is_a_power_of_chi():
    with jax.enable_x64(True):
        scales = {"sigma_w": 1.5, "sigma_b": 0.1}
        q = theory.mean_field(activations.tanh, **scales).q_star
        last = jax.jit(lambda c: theory.trajectory(activations.tanh, 5, q=q, c=c, **scales).c[-1])
        chi = theory.mean_field(activations.tanh, **scales).chi
        np.testing.assert_allclose(jax.jvp(last, (1.0,), (1.0,))[1], chi**5, rtol=1e-9)
