"""Levenberg and Marquardt's descent against scipy's, with more rows than parameters and with fewer."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

from jaxact import fit

T = np.linspace(0, 3, 25)


def decay(p):
    return p[0] * jnp.exp(-p[1] * jnp.asarray(T)) + p[2]


def linearized(residual):
    return lambda p: (residual(p), jax.jacfwd(residual)(p))


def test_the_minimum_is_that_of_scipy():
    y = 2 * np.exp(-1.3 * T) + 0.5 + 0.05 * np.random.default_rng(0).standard_normal(len(T))
    with jax.enable_x64(True):
        residual = lambda p: decay(p) - jnp.asarray(y)  # noqa: E731
        found = fit.least_squares(linearized(residual), jnp.array([1.0, 1.0, 0.0]), num_steps=40)
    other = least_squares(lambda p: p[0] * np.exp(-p[1] * T) + p[2] - y, [1.0, 1.0, 0.0], xtol=1e-12)
    np.testing.assert_allclose(found.params, other.x, rtol=1e-6)
    np.testing.assert_allclose(found.errors[-1], 2 * other.cost / len(T), rtol=1e-9)


def test_errors_begin_with_the_start_and_never_rise():
    residual = lambda p: jnp.stack([1 - p[0], 10 * (p[1] - p[0] ** 2)])  # noqa: E731  Rosenbrock's valley
    found = fit.least_squares(linearized(residual), jnp.array([-1.2, 1.0]), num_steps=40)
    assert found.errors.shape == (41,)
    np.testing.assert_allclose(found.errors[0], 24.2 / 2, rtol=1e-5)
    assert (np.diff(found.errors) <= 0).all()
    np.testing.assert_allclose(found.params, 1, rtol=1e-4)
    np.testing.assert_allclose(found.residual, residual(found.params), atol=1e-5)


def test_fewer_rows_than_parameters_are_met_by_both_forms_alike():
    residual = lambda p: jnp.stack([jnp.sum(p**2) - 1, p[0] - p[1]])  # noqa: E731
    padded = lambda p: jnp.concatenate([residual(p), jnp.zeros(3)])  # noqa: E731  more rows than parameters
    with jax.enable_x64(True):
        start = jnp.array([1.0, 0.2, -0.4])
        few, many = (fit.least_squares(linearized(r), start, num_steps=30).params for r in (residual, padded))
        np.testing.assert_allclose(few, many, rtol=1e-9)
        np.testing.assert_allclose(residual(few), 0, atol=1e-6)


def test_a_step_to_nan_is_not_taken():
    residual = lambda p: jnp.log(p) - 3.0  # noqa: E731  the first step from 20 would go below 0 without damping
    found = fit.least_squares(linearized(residual), jnp.array([200.0]), num_steps=40)
    assert np.isfinite(found.errors).all()
    np.testing.assert_allclose(found.params, np.exp(3), rtol=1e-4)
