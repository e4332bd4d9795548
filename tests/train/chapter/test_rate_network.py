"""The rate network against scipy's integrator and eigenvalues, and the neuron against its rate without noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from jaxact import activations
from train.experiments.chapter import rate_network
from train.experiments.chapter.rate_network import RateNetwork


def network(seed, width):
    """The matrix and the first state that the claim draws."""
    key_weights, key_state = jax.random.split(jax.random.key(seed))
    J = np.asarray(jax.random.normal(key_weights, (width, width)), float) / width**0.5
    return J, np.abs(np.asarray(jax.random.normal(key_state, (width,)), float))


def test_a_step_is_that_of_an_adaptive_integrator():
    J, x = network(0, 20)
    path = integrate.solve_ivp(lambda t, x: -x + 1.5 * J @ np.tanh(x), (0, 2.5), x, rtol=1e-10, atol=1e-10)
    state = jnp.asarray(x, jnp.float32)
    for _ in range(10):
        state = rate_network._runge_kutta(activations.tanh, jnp.asarray(J, jnp.float32), 1.5, state)
    np.testing.assert_allclose(state, path.y[:, -1], atol=2e-3)


def test_at_rest_the_exponent_is_the_spectral_abscissa():
    found = rate_network._exponents(0, 30, 400, jnp.arange(3), jnp.array([0.3, 0.6]))
    for seed in range(3):
        abscissa = np.linalg.eigvals(network(seed, 30)[0]).real.max()
        np.testing.assert_allclose(found[seed], np.array([0.3, 0.6]) * abscissa - 1, atol=0.02)


def test_without_noise_siegerts_formula_is_the_neurons_own(monkeypatch):
    monkeypatch.setattr(rate_network, "_NOISE", 1e-3)
    for current in (1.2, 2.0):
        period = 0.002 + 0.02 * np.log(current / (current - 1))
        assert rate_network._siegert(current) == pytest.approx(1 / period, rel=1e-3)
    assert rate_network._siegert(0.9) < 1e-6


def test_a_misfit_is_zero_for_what_is_of_the_shape():
    rates = 30 * np.maximum(2 * rate_network._CURRENTS - 1.5, 0) + 4
    assert rate_network._misfit(activations.relu, rates) < 1e-6
    assert rate_network._misfit(activations.tanh, rates) > 1e-2


def test_a_crossing_lies_between_its_neighbours_or_is_none():
    exponents = np.array([[-1.0, -1.0], [1.0, -0.5], [2.0, -0.1]])
    np.testing.assert_allclose(rate_network._crossing(np.array([1.0, 2.0, 3.0]), exponents), [1.5, np.nan])


def test_gains_with_a_prediction_cannot_be_left_out():
    with pytest.raises(ValueError, match=r"`gains` must hold all of .* Add \[2.0, 3.0\]"):
        RateNetwork(gains=(0.5, 1.5))
