"""Levenberg and Marquardt's descent against scipy's, with more rows than parameters and with fewer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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


@pytest.mark.parametrize(
    ("residual", "start"),
    [
        (lambda p: jnp.log(p), [-1.0, 2.0]),  # NaN
        (lambda p: jnp.exp(p) - 1, [200.0, 0.0]),  # infinite
        (lambda p: 1e20 * (p - 1), [3.0, 2.0]),  # its square is infinite
    ],
)
def test_the_residual_of_a_start_that_is_no_number_is_its_own(residual, start):
    found = fit.least_squares(linearized(residual), jnp.array(start), num_steps=5)
    np.testing.assert_array_equal(found.residual, residual(found.params))
    np.testing.assert_array_equal(found.errors[-1], jnp.mean(found.residual**2))
    assert (np.asarray(found.residual) != 0).any()
    assert not np.isfinite(found.errors).any()


def test_no_step_looks_at_the_start():
    start = jnp.array([-1.2, 1.0])
    found = fit.least_squares(linearized(lambda p: 3 * p), start, num_steps=np.int64(0))
    np.testing.assert_array_equal(found.params, start)
    np.testing.assert_array_equal(found.residual, 3 * start)


def test_what_cannot_be_is_refused_by_name():
    line = linearized(lambda p: p - 1.0)
    for num_steps in (-1, 2.0, True):
        with pytest.raises(
            ValueError, match=f"`num_steps` must be an integer of at least 0, got {num_steps}"
        ):
            fit.least_squares(line, jnp.ones(2), num_steps=num_steps)
    with pytest.raises(TypeError, match="`start` must be real floating-point, got dtype int32"):
        fit.least_squares(line, jnp.array([1, 2]), num_steps=2)
    with pytest.raises(TypeError, match="`start` must be real floating-point, got dtype complex64"):
        fit.least_squares(line, jnp.array([1j]), num_steps=2)
