"""Separable least squares against scipy's joint fit, on problems whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

from jaxact import fit


def decays(t):
    return lambda p: jnp.exp(-t[:, None] * p)


def test_two_decays_are_told_apart():
    with jax.enable_x64(True):
        t = jnp.linspace(0, 4, 60)
        y = 2 * jnp.exp(-0.5 * t) - 3 * jnp.exp(-2 * t)
        found = fit.separable_least_squares(decays(t), y, jnp.array([0.2, 4.0]), num_steps=60)
    np.testing.assert_allclose(found.params, [0.5, 2.0], rtol=1e-9)
    np.testing.assert_allclose(found.coefficients, [2.0, -3.0], rtol=1e-8)
    assert float(found.error) < 1e-20


def test_noisy_data_are_fitted_as_by_scipy_over_all_parameters():
    t = np.linspace(0, 4, 60)
    y = 2 * np.exp(-0.5 * t) - 3 * np.exp(-2 * t) + 0.1 * np.random.default_rng(0).standard_normal(60)
    joint = least_squares(lambda q: q[2] * np.exp(-q[0] * t) + q[3] * np.exp(-q[1] * t) - y, [0.2, 4, 1, -1])
    with jax.enable_x64(True):
        found = fit.separable_least_squares(
            decays(jnp.asarray(t)), jnp.asarray(y), jnp.array([0.2, 4.0]), num_steps=60
        )
    np.testing.assert_allclose(np.concatenate([found.params, found.coefficients]), joint.x, rtol=1e-5)
    np.testing.assert_allclose(found.error, 2 * joint.cost / 60, rtol=1e-10)
    np.testing.assert_allclose(found.fitted, y + joint.fun, atol=1e-6)


def test_the_error_never_rises_and_a_step_to_nan_is_not_taken():
    t = jnp.linspace(0.1, 4, 40)
    y = jnp.log(t + 2.0)

    def basis(p):  # NaN where p is below -0.1
        return jnp.log(t[:, None] + p)

    errors = [
        float(fit.separable_least_squares(basis, y, jnp.array([9.0]), num_steps=n).error)
        for n in (1, 3, 9, 40)
    ]
    assert np.isfinite(errors).all()
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-10


def test_a_parameter_without_effect_stays():
    t = jnp.linspace(0, 1, 20)
    basis = lambda p: jnp.exp(p[0] * t)[:, None] + 0 * p[1]  # noqa: E731
    found = fit.separable_least_squares(basis, jnp.exp(t), jnp.array([0.1, 7.0]), num_steps=30)
    assert found.params[1] == 7.0
    np.testing.assert_allclose(found.params[0], 1.0, rtol=1e-4)


def test_starts_side_by_side_equal_starts_alone():
    t = jnp.linspace(0, 3, 30)
    y = jnp.exp(-t)
    starts = jnp.array([[0.3], [2.0]])
    one = lambda start: fit.separable_least_squares(decays(t), y, start, num_steps=5)  # noqa: E731
    both = jax.vmap(one)(starts)
    for place, start in enumerate(starts):
        np.testing.assert_allclose(both.params[place], one(start).params, rtol=1e-4)
