"""Gaussian expectations against closed forms and against each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxact import numerics

MEANS, SIGMAS = st.floats(-5, 5), st.floats(0.01, 50)
expect = jax.jit(numerics.gaussian_expectation, static_argnums=0)


def square(x):
    return x**2


def fourth(x):
    return x**4


def kinked(x):
    return jnp.abs(x - 0.3)


def step(x):
    return jnp.where(x > 0.3, 1.0, 0.0)


def normal(t):
    return np.exp(-(t**2) / 2) / np.sqrt(2 * np.pi), float(jax.scipy.stats.norm.cdf(t))


@given(MEANS, SIGMAS)
@settings(max_examples=40, deadline=None)
def test_polynomials_kinks_and_jumps_are_exact(m, s):
    with jax.enable_x64(True):
        at = {"mean": m, "variance": s**2}
        np.testing.assert_allclose(expect(square, **at), m**2 + s**2, rtol=1e-13)
        np.testing.assert_allclose(expect(fourth, **at), m**4 + 6 * m**2 * s**2 + 3 * s**4, rtol=1e-13)
        density, below = normal((0.3 - m) / s)
        at["kinks"] = jnp.array([0.3])
        np.testing.assert_allclose(expect(step, **at), 1 - below, atol=1e-13)
        folded = 2 * s * density + (m - 0.3) * (1 - 2 * below)
        np.testing.assert_allclose(expect(kinked, **at), folded, rtol=1e-13, atol=1e-13 * s)


def test_derivatives_follow_the_moving_kinks():
    with jax.enable_x64(True):
        kinks, m, v = jnp.array([0.3]), 0.8, 2.5
        s = np.sqrt(v)
        density, below = normal((0.3 - m) / s)
        by_mean, by_variance = jax.grad(
            lambda m, v: expect(kinked, kinks=kinks, mean=m, variance=v), argnums=(0, 1)
        )(m, v)
        np.testing.assert_allclose(by_mean, 1 - 2 * below, rtol=1e-12)
        np.testing.assert_allclose(by_variance, density / s, rtol=1e-12)  # Price: E g'' / 2
        jump = jax.grad(lambda m: expect(step, kinks=kinks, mean=m, variance=v))(m)
        np.testing.assert_allclose(jump, density / s, rtol=1e-12)


class BatchTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_arrays_broadcast_and_equal_vmap_over_members(self):
        m, v = jnp.linspace(-1, 1, 3)[:, None], jnp.array([0.0, 0.5, 1.0, 4.0])
        run = self.variant(
            lambda m, v: numerics.gaussian_expectation(kinked, kinks=(0.3,), mean=m, variance=v)
        )
        together = run(m, v)
        chex.assert_shape(together, (3, 4))
        each = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(m[:, 0], v)
        chex.assert_trees_all_close(together, each, rtol=1e-6)
        np.testing.assert_allclose(together[:, 0], np.abs(m[:, 0] - 0.3), rtol=1e-6)  # variance 0: g(mean)


def test_variance_zero_is_a_limit_without_nan():
    value, slopes = jax.value_and_grad(
        lambda m, v: expect(kinked, kinks=(0.3,), mean=m, variance=v), argnums=(0, 1)
    )(0.3, 0.0)
    assert value == 0
    chex.assert_tree_all_finite(slopes)
    np.testing.assert_allclose(expect(square, mean=2.0, variance=1e-30), 4, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_follows_mean_and_variance(dtype):
    with jax.enable_x64(True):
        value = expect(square, mean=jnp.asarray(0.5, dtype), variance=jnp.asarray(2, dtype))
        assert value.dtype == dtype
        np.testing.assert_allclose(value, 2.25, rtol=1e-5 if dtype == jnp.float32 else 1e-14)
        assert expect(square, variance=jnp.ones((), jnp.bfloat16)).dtype == jnp.float32


def test_weights_sum_to_one():
    with jax.enable_x64(True):
        _, weights = numerics.gaussian_nodes((0.0, 6.0), np.array([-30.0, 0, 7]), np.array([1e-9, 1.0, 1e9]))
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-14)


def test_bad_input_is_refused_by_name_and_nan_under_jit():
    with pytest.raises(ValueError, match=r"`variance` must be nonnegative, got -1"):
        numerics.gaussian_expectation(square, variance=-1.0)
    with pytest.raises(ValueError, match="`variance` must be finite"):
        numerics.gaussian_expectation(square, variance=np.inf)
    with pytest.raises(ValueError, match="`mean` must be finite"):
        numerics.gaussian_expectation(square, mean=np.nan)
    with pytest.raises(ValueError, match=r"`fn` must be elementwise, got shape \(2,"):
        numerics.gaussian_expectation(lambda x: jnp.stack([x, x]))
    assert np.isnan(expect(square, variance=-1.0))
    assert np.isnan(expect(square, variance=np.nan))


@pytest.mark.parametrize(
    "bad", [{"variance": -1.0}, {"variance": np.inf}, {"mean": np.nan}, {"mean": np.inf}]
)
def test_what_is_traced_and_no_gaussian_makes_nan_of_indicators_and_constants_too(bad):
    for g in (step, jnp.ones_like):
        assert np.isnan(expect(g, **bad))


def test_nothing_has_no_expectations():
    assert numerics.gaussian_expectation(square, variance=np.ones((3, 0))).shape == (3, 0)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-3.0, 20.0), (7.0, 0.01)])
def test_nodes_on_the_host_are_those_of_the_device(mean, deviation):
    with jax.enable_x64(True):
        x, weights = numerics.gaussian_nodes((0.3,), mean, deviation**2)
        is_there = np.asarray(weights) > 0
        for is_halved in (False, True):
            y, masses = numerics.gaussian_nodes_on_host((0.3,), mean, deviation, is_halved=is_halved)
            np.testing.assert_allclose(masses @ y**2, mean**2 + deviation**2, rtol=1e-13)
        y, masses = numerics.gaussian_nodes_on_host((0.3,), mean, deviation)
        np.testing.assert_allclose(y, np.asarray(x)[is_there], rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(masses, np.asarray(weights)[is_there], rtol=1e-12)


def test_an_indicator_of_what_is_traced_and_no_gaussian_is_nan():
    def above(x):
        return (x > 100.0).astype(x.dtype)

    found = jax.jit(lambda v: numerics.gaussian_expectation(above, variance=v))(np.array([-1.0, np.inf, 1.0]))
    assert np.isnan(found).tolist() == [True, True, False]
    pairs = jax.jit(lambda c: numerics.bivariate_expectation(above, above, correlation=c))(
        np.array([2.0, 0.5])
    )
    assert np.isnan(pairs).tolist() == [True, False]
