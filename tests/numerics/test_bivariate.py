"""Two-dimensional Gaussian integrals against closed forms, mpmath and Monte Carlo."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from jaxact import activations, numerics, theory

CORRELATIONS = np.array([-1.0, -0.9, -0.5, -1e-4, 0.0, 1e-4, 0.3, 0.9, 0.999, 1 - 1e-6, 1 - 1e-9, 1.0])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def product(g, h, c, variance=1.0, kinks=((), ())):
    return np.asarray(
        jax.jit(lambda c, v: numerics.bivariate_expectation(g, h, correlation=c, variance=v, kinks=kinks))(
            c, variance
        )
    )


def arc_cosine(c):
    """E relu relu and E relu' relu' (Cho & Saul 2009, equation 5, degrees 1 and 0) in 40 digits."""
    with mp.workdps(40):
        c = mp.mpf(float(c))
        angle = mp.acos(c)
        return float((mp.sqrt(1 - c * c) + (mp.pi - angle) * c) / (2 * mp.pi)), float(
            (mp.pi - angle) / (2 * mp.pi)
        )


def test_relu_and_its_slope_have_the_arc_cosine_kernels_at_every_correlation():
    relu, kinks = activations.relu, ((0.0,), (0.0,))
    expected = np.array([arc_cosine(c) for c in CORRELATIONS])
    np.testing.assert_allclose(product(relu, relu, CORRELATIONS, kinks=kinks), expected[:, 0], atol=1e-15)
    slopes = product(relu.derivative, relu.derivative, CORRELATIONS, kinks=kinks)
    np.testing.assert_allclose(slopes, expected[:, 1], atol=1e-15)


@pytest.mark.parametrize("variance", [0.3, 4.0])
def test_erf_and_sin_have_their_closed_forms(variance):
    erf, sin = activations.parse("erf"), activations.parse("sin")
    c, v = CORRELATIONS, variance
    expected = 2 / np.pi * np.arcsin(2 * v * c / (1 + 2 * v))  # Williams 1997, equation 11
    np.testing.assert_allclose(product(erf, erf, c, v), expected, atol=2e-15)
    np.testing.assert_allclose(product(sin, sin, c, v), np.exp(-v) * np.sinh(v * c), atol=2e-15)


def test_a_clipped_line_equals_mpmath():
    """hard_tanh: kinks at -1 and 1, neither at the centre."""
    f, points = activations.parse("hard_tanh"), (-1.0, 1.0)
    for c in (-0.9, 0.5, 0.99):
        with mp.workdps(20):
            s = mp.sqrt(1 - mp.mpf(c) ** 2)

            def inner(u, c=c, s=s):  # E clip(c u + s y), in closed form
                a, b = (-1 - c * u) / s, (1 - c * u) / s
                middle = c * u * (mp.ncdf(b) - mp.ncdf(a)) + s * (mp.npdf(a) - mp.npdf(b))
                return middle - mp.ncdf(a) + 1 - mp.ncdf(b)

            near = [mp.mpf(x) for x in (-12, -3, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 3, 12)]
            expected = float(mp.quad(lambda u, inner=inner: min(max(u, -1), 1) * inner(u) * mp.npdf(u), near))
        np.testing.assert_allclose(product(f, f, c, kinks=(points, points)), expected, atol=1e-13)


def test_two_different_functions_agree_with_monte_carlo():
    rng = np.random.default_rng(0)
    u, w = rng.standard_normal((2, 4_000_000))
    v = 0.6 * u + 0.8 * w
    sample = np.tanh(1.5 * u) * np.maximum(1.5 * v, 0)
    found = product(jnp.tanh, jax.nn.relu, 0.6, 2.25, ((), (0.0,)))
    assert abs(found - sample.mean()) < 4 * sample.std() / len(sample) ** 0.5


def test_the_correlation_maps_slope_holds_at_one_and_beside_it():
    for name in ("relu", "gelu"):
        activation = activations.parse(name)
        slope = jax.jit(
            jax.vmap(jax.grad(lambda c, f=activation: theory.correlation_map(f, c, q=1.7, sigma_w=1.3)))
        )
        at = slope(jnp.array([1.0, 1 - 1e-9]))
        length = theory.variance_map(activation, 1.7, sigma_w=1.3)
        chi = 1.3**2 * theory.moments(activation, variance=1.7).slope_second_moment
        np.testing.assert_allclose(at[0], 1.7 * chi / length, rtol=1e-12)
        assert abs(at[1] - at[0]) < 1e-4
        step = 1e-5
        map_ = jax.jit(lambda c, f=activation: theory.correlation_map(f, c, q=1.7, sigma_w=1.3))
        difference = (map_(0.3 + step) - map_(0.3 - step)) / (2 * step)
        np.testing.assert_allclose(slope(jnp.array([0.3]))[0], difference, rtol=1e-8)


def test_lengths_and_correlations_follow_the_maps():
    found = theory.trajectory(activations.tanh, 30, q=3.0, c=0.2, sigma_w=2.5**0.5, sigma_b=0.05**0.5)
    assert found.q.shape == found.c.shape == (31,)
    np.testing.assert_allclose(found.q[-1], 1.0639583774, atol=1e-8)
    np.testing.assert_allclose(found.c[-1], 0.4468042323, atol=0.03)  # e^(-30 / 11.8) of the way is left


def test_what_is_no_correlation_is_refused_or_nan():
    with pytest.raises(ValueError, match=r"`correlation` must lie in \[-1, 1\], got 1\.5"):
        numerics.bivariate_expectation(jnp.tanh, jnp.tanh, correlation=1.5)
    with pytest.raises(ValueError, match="`c` must be a correlation"):
        theory.correlation_map(activations.tanh, -2.0, sigma_w=1.0)
    assert np.isnan(product(jnp.tanh, jnp.tanh, 1.5))


def test_variables_of_other_means_and_variances_agree_with_monte_carlo_and_moments():
    relu, cubed = lambda x: jnp.maximum(x, 0), lambda x: jnp.maximum(x, 0) ** 3
    found = numerics.bivariate_expectation(
        relu, cubed, correlation=-0.4, mean=(0.3, -1.0), variance=(2.0, 0.5), kinks=((0.0,), (0.0,))
    )
    z = np.random.default_rng(0).normal(size=(2, 2_000_000))
    u, v = 0.3 + 2**0.5 * z[0], -1 + 0.5**0.5 * (-0.4 * z[0] + (1 - 0.16) ** 0.5 * z[1])
    samples = np.maximum(u, 0) * np.maximum(v, 0) ** 3
    assert abs(found - samples.mean()) < 5 * samples.std() / samples.size**0.5
    # E u v = mean_u mean_v + c sd_u sd_v, exactly.
    found = numerics.bivariate_expectation(
        lambda u: u, lambda v: v, correlation=0.7, mean=(2.0, -3.0), variance=(4.0, 0.25)
    )
    np.testing.assert_allclose(found, -6 + 0.7 * 2 * 0.5, rtol=1e-13)
    # A variable without variance is a constant.
    found = numerics.bivariate_expectation(
        jnp.sin, lambda v: v**2, correlation=0.7, mean=(2.0, -3.0), variance=(0.0, 0.25)
    )
    np.testing.assert_allclose(found, np.sin(2.0) * 9.25, rtol=1e-13)


def test_fast_growth_is_integrated_further_out():
    found = numerics.bivariate_expectation(jnp.exp, jnp.exp, correlation=0.5, variance=9.0, is_wide=True)
    np.testing.assert_allclose(found, np.exp(9 * 1.5), rtol=1e-12)  # E e^{u+v} = e^{Var(u + v) / 2}


def test_what_is_traced_and_no_gaussian_gives_nan_for_constants_too():
    @jax.jit
    def total(c, mean_u, mean_v, variance_u, variance_v):
        return numerics.bivariate_expectation(
            jnp.ones_like,
            jnp.ones_like,
            correlation=c,
            mean=(mean_u, mean_v),
            variance=(variance_u, variance_v),
        )

    c = np.array([0.5, 1.0, 0.5, 0.5, 1.0, 0.0, 2.0])
    mean_u, mean_v = np.array([0, np.nan, 0, 0, 0, 0, 0.0]), np.array([0, 0, np.inf, 0, 0, 0, 0.0])
    variance_u, variance_v = np.array([1, 1, 1, -1, 1, np.inf, 1.0]), np.array([1, 1, 1, 1, -1, 1, 1.0])
    found = total(c, mean_u, mean_v, variance_u, variance_v)
    np.testing.assert_allclose(found[0], 1, rtol=1e-12)
    assert np.isnan(found[1:]).all()
    assert numerics.bivariate_expectation(jnp.sin, jnp.sin, correlation=np.ones((0, 2))).shape == (0, 2)
