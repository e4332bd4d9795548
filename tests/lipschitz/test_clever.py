"""The extreme-value estimate where the local constant, or the law of the extremes, is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.lipschitz import clever
from jaxact.lipschitz._clever import _fit


def test_fit_recovers_the_end_of_a_known_law():
    # M = a - s E^(1/c) with E exponential: reverse Weibull of shape c, scale s and end a.
    rng = np.random.default_rng(0)
    ends = []
    for _ in range(20):
        maxima = 7 - 0.5 * rng.exponential(size=200) ** (1 / 3)
        found = _fit(maxima, 1e-7)
        assert found.estimate >= found.sampled == maxima.max()
        assert found.p_value > 1e-3
        ends.append(found.estimate)
    assert abs(np.median(ends) - 7) < 0.05
    # units do not matter
    np.testing.assert_allclose(_fit(1e6 * maxima, 1e-7).estimate, 1e6 * ends[-1], rtol=1e-6)


def test_estimate_nears_the_constant_of_a_quadratic():
    # f(x) = |x|^2 / 2 has the gradient x, so the constant in the ball of radius r about c is |c| + r.
    center, radius = jnp.array([0.6, 0.8]), 0.5
    found = clever(lambda x: x @ x / 2, center, radius, key=jax.random.key(0), group_size=64)
    assert found.maxima.shape == (50,)
    assert found.sampled <= 1.5 * (1 + 1e-6)
    assert abs(found.estimate - 1.5) < 0.03
    assert abs(found.estimate - 1.5) < abs(np.median(found.maxima) - 1.5)


def test_a_constant_slope_is_not_extrapolated():
    A = jax.random.normal(jax.random.key(0), (4, 6))
    found = clever(lambda x: A @ x.reshape(-1), jnp.ones((2, 3)), 2.0, key=jax.random.key(1), num_groups=10)
    np.testing.assert_allclose(found.estimate, np.linalg.norm(A, 2), rtol=1e-5)
    assert np.isnan([found.shape, found.scale, found.p_value]).all()


def test_nan_is_reported_as_nan():
    found = clever(lambda x: jnp.nan * x, jnp.ones(2), 1.0, key=jax.random.key(0), num_groups=10)
    assert np.isnan(found.estimate)


def test_bad_input_is_refused_by_name():
    def run(center=None, radius=1.0, **options):
        center = jnp.ones(2) if center is None else center
        return clever(jnp.tanh, center, radius, key=jax.random.key(0), **options)

    with pytest.raises(TypeError, match="`center` must be real floating-point, got dtype int32"):
        run(jnp.ones(2, int))
    with pytest.raises(ValueError, match="`radius` must be positive and finite, got -1"):
        run(radius=-1.0)
    with pytest.raises(ValueError, match="`num_groups` must be an integer >= 10, got 3"):
        run(num_groups=3)
    with pytest.raises(ValueError, match="`group_size` must be an integer >= 1, got 0"):
        run(group_size=0)
