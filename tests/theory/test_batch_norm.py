"""Gradient growth under batch norm: closed forms, the sphere by brute force, autodiff, networks of `jaxact.nn`."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxact import activations, nn, probes
from jaxact.theory import batch_norm_gradient_growth


def values_and_slopes(activation, x):
    with jax.enable_x64(True):
        return np.asarray(activation(x)), np.asarray(activation.derivative(x))


@pytest.mark.parametrize("batch_size", [4, 5, 16, 256, 10**5])
def test_identity_has_a_closed_form(batch_size):
    np.testing.assert_allclose(
        batch_norm_gradient_growth(activations.identity, batch_size),
        (batch_size - 2) / (batch_size - 3),
        rtol=1e-11,
    )


@pytest.mark.parametrize("batch_size", [4, 5, 16, 256, 10**5])
def test_relu_has_the_closed_form_of_the_arc_cosine_kernel(batch_size):
    c = -1 / (batch_size - 1)
    slope = (math.pi - math.acos(c)) / math.pi
    kernel = math.sqrt(1 - c**2) / math.pi + c * slope
    expected = ((batch_size - 1 + slope) / (1 - kernel) - 1) / (batch_size - 3)
    np.testing.assert_allclose(batch_norm_gradient_growth(activations.relu, batch_size), expected, rtol=1e-11)


def test_large_batches_approach_the_limit():
    np.testing.assert_allclose(
        batch_norm_gradient_growth(activations.relu), math.pi / (math.pi - 1), rtol=1e-13
    )
    for activation in (activations.relu, activations.hard_tanh):
        limit = batch_norm_gradient_growth(activation)
        near, nearer = (batch_norm_gradient_growth(activation, size) / limit - 1 for size in (10**3, 10**4))
        assert 0 < nearer < near < 3e-2
        np.testing.assert_allclose(nearer, near / 10, rtol=2e-2)  # an error of order 1 / B


@pytest.mark.parametrize("name", ["tanh", "gelu", "hard_tanh", "relu6", "sigmoid"])
def test_four_examples_agree_with_a_grid_over_the_sphere(name):
    # The whole Jacobian at every point of a fine grid, without the reduction to pairs of coordinates.
    activation = activations.parse(name)
    height = (np.arange(300) + 0.5) / 150 - 1
    turn = (np.arange(600) + 0.5) * (2 * np.pi / 600)
    flat = np.sqrt(1 - height**2)[:, None]
    sphere = np.stack(
        [flat * np.cos(turn), flat * np.sin(turn), np.broadcast_to(height[:, None], (300, 600))], -1
    )
    basis = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 2  # orthogonal to the constants
    x = 2 * sphere.reshape(-1, 3) @ basis
    value, slope = values_and_slopes(activation, x)
    centring = np.eye(4) - 0.25
    kernel = value.T @ value / len(x)
    spread = np.trace(centring @ kernel) / 3
    jacobian = (centring - x[:, :, None] * x[:, None, :] / 4) * slope[:, None, :]
    squared = np.mean(np.sum((jacobian @ centring) ** 2, (1, 2))) / 3
    inverse_variance = 4  # B / (B - 3): B times the mean of 1 / chi-square of 3 degrees
    np.testing.assert_allclose(
        batch_norm_gradient_growth(activation, 4), inverse_variance * squared / spread, rtol=2e-4
    )


def test_one_layer_by_autodiff():
    # Units of covariance a I + b 1 1^T over 16 examples, and gradients orthogonal to the constants.
    activation, batch_size, repeats = activations.gelu, 16, 20

    def normalised(z):
        z = z - z.mean(-1, keepdims=True)
        return z / jnp.sqrt(jnp.mean(z**2, -1, keepdims=True))

    @jax.jit
    def growth(key):
        key_z, key_d = jax.random.split(key)
        z = jax.random.normal(key_z, (10_000, batch_size))
        f, pull = jax.vjp(lambda z: activation(normalised(z)), z)
        d = jax.random.normal(key_d, z.shape)
        d = d - d.mean(-1, keepdims=True)
        spread = jnp.mean((f - f.mean(-1, keepdims=True)) ** 2) * batch_size / (batch_size - 1)
        return jnp.mean(pull(d)[0] ** 2) / jnp.mean(d**2) / spread

    sample = np.array([growth(key) for key in jax.random.split(jax.random.key(0), repeats)])
    error = sample.std(ddof=1) / repeats**0.5
    assert error < 5e-3
    np.testing.assert_allclose(
        sample.mean(), batch_norm_gradient_growth(activation, batch_size), atol=4 * error
    )


def test_wide_networks_at_batch_256_within_two_percent():
    choices, width, depth, batch_size = (activations.relu, activations.tanh), 400, 12, 256
    make = partial(nn.Plain, width, activations.relu, norm=nnx.BatchNorm, sigma_b=0.5)

    @jax.jit
    def growth(key, index):
        key_params, key_x, key_loss = jax.random.split(key, 3)
        stack = nn.Stack(make, depth, rngs=nnx.Rngs(key_params))
        x, readout = (jax.random.normal(each, (batch_size, width)) for each in (key_x, key_loss))
        graphdef, state = nnx.split(stack)

        def loss(taps):
            activation = activations.select(choices, index)
            return jnp.sum(
                readout * nnx.merge(graphdef, state, copy=True)(x, activation=activation, taps=taps)
            )

        (norms,) = probes.gradient_norms(loss, jnp.zeros((depth, batch_size, width)))
        return (norms[1] / norms[10]) ** (2 / 9)  # away from the ends: the fixed point

    for index, activation in enumerate(choices):
        measured = np.mean([growth(jax.random.key(seed), index) for seed in range(4)])
        np.testing.assert_allclose(measured, batch_norm_gradient_growth(activation, batch_size), rtol=0.02)
        np.testing.assert_allclose(measured, batch_norm_gradient_growth(activation), rtol=0.02)


def test_runs_inside_a_trace():
    scaled = jax.jit(lambda x: x * batch_norm_gradient_growth(activations.identity, 8))(1.0)
    np.testing.assert_allclose(scaled, 1.2, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [0, 2, 3, -5, 8.0, True, "8"])
def test_small_batches_are_refused(batch_size):
    with pytest.raises(ValueError, match=r"`batch_size` must be an integer of at least 4, got .* Pass None"):
        batch_norm_gradient_growth(activations.relu, batch_size)


def test_bad_activations_are_refused():
    class Constant:
        breakpoints = ()
        __call__ = staticmethod(jnp.ones_like)
        derivative = staticmethod(jnp.zeros_like)

    for batch_size in (None, 8):
        with pytest.raises(TypeError, match="must know its kinks"):
            batch_norm_gradient_growth(jnp.tanh, batch_size)
        with pytest.raises(ValueError, match="must vary over its inputs"):
            batch_norm_gradient_growth(Constant(), batch_size)


@pytest.mark.parametrize("batch", [10**5, 10**5 + 1, 10**6, 10**8, 10**18, 10**400])
def test_large_batches_go_over_into_the_limit(batch):
    exact = 1 + 1 / (batch - 3) if batch < 10**300 else 1.0  # of the identity
    assert batch_norm_gradient_growth(activations.identity, batch) == pytest.approx(exact, abs=2e-12)
    limit = math.pi / (math.pi - 1)
    excess = batch_norm_gradient_growth(activations.relu, batch) - limit
    at = batch_norm_gradient_growth(activations.relu, 10**4) - limit  # falls as 1 / batch
    assert excess == pytest.approx(at * (10**4 / batch), rel=1e-3, abs=1e-12)


@pytest.mark.parametrize("batch", [None, 4, 64])
def test_constants_and_jumps_are_refused(batch):
    flat = {
        "range": activations.Interval(0, 1),
        "slope_range": activations.Interval(0, 0),
        "derivative": jnp.zeros_like,
    }
    third = activations.Activation(name="third", fn=lambda x: jnp.full_like(x, 1 / 3), **flat)
    step = activations.Activation(
        name="step", fn=lambda x: jnp.where(x > 0.1, 1.0, 0.0), kinks=(0.1,), **flat
    )
    with pytest.raises(ValueError, match="must vary over its inputs, got third"):
        batch_norm_gradient_growth(third, batch)
    with pytest.raises(ValueError, match="must not jump, got step"):
        batch_norm_gradient_growth(step, batch)
