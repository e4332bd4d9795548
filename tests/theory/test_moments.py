"""Gaussian moments against mpmath, closed forms and Monte Carlo."""

import chex
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from jaxact import activations, numerics, theory

mp.mp.dps = 25
FORMULAS = {  # written independently of the library
    "tanh": mp.tanh,
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "silu": lambda x: x / (1 + mp.exp(-x)),
    "gelu": lambda x: x * mp.ncdf(x),
    "softplus": lambda x: mp.log1p(mp.exp(x)),
    "elu": lambda x: x if x > 0 else mp.expm1(x),
    "soft_sign": lambda x: x / (1 + abs(x)),
    "relu6": lambda x: min(max(x, 0), 6),
    "hard_silu": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "sin": mp.sin,
    "mish": lambda x: x * mp.tanh(mp.log1p(mp.exp(x))),
    "gaussian": lambda x: mp.exp(-x * x),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_equal_mpmath(name):
    formula, activation = FORMULAS[name], activations.parse(name)
    with jax.enable_x64(True):
        for m, v in [(0.0, 1.0), (0.7, 2.5), (-2.0, 100.0)]:
            s = mp.sqrt(v)
            ends = [mp.mpf(-12), mp.mpf(-4), mp.mpf(4), mp.mpf(12)]
            ends += [(b - m) / s for b in {*activation.breakpoints, -8, 0, 8}]
            ends = sorted(z for z in ends if -12 <= z <= 12)
            found = theory.moments(activation, m, v)
            for power, value in [(1, found.mean), (2, found.second_moment)]:
                truth = mp.quad(lambda z, k=power, m=m, s=s: formula(m + s * z) ** k * mp.npdf(z), ends)
                np.testing.assert_allclose(float(value), float(truth), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    "name",
    [
        "leaky_relu",
        "relu_squared",
        "selu",
        "hard_sigmoid",
        "hard_silu",
        "sparse_plus",
        "tanh_exp",
        "cos",
        "squareplus",
    ],
)
def test_identities_of_the_moments(name):
    activation = activations.parse(name)
    with jax.enable_x64(True):
        m, v = jnp.array([0.0, 0.4, -1.3]), jnp.array([1.0, 2.0, 0.3])
        found = jax.jit(lambda m, v: theory.moments(activation, m, v))(m, v)
        chex.assert_tree_all_finite(found)
        chex.assert_trees_all_close(found.variance, found.second_moment - found.mean**2, atol=1e-13)
        assert (found.slope_fourth_moment >= found.slope_second_moment**2 * (1 - 1e-13)).all()
        # Stein: E f(z) (z - m) = v E f'(z).
        x, weights = numerics.gaussian_nodes(activation.breakpoints, m, v)
        covariance = jnp.sum(weights * activation(x) * (x - m[:, None]), -1)
        np.testing.assert_allclose(covariance, v * found.slope, atol=1e-13)
        if activation.moments is not None:
            mean, second_moment = activation.moments(m, v)
            np.testing.assert_allclose(found.mean, mean, atol=1e-13)
            np.testing.assert_allclose(found.second_moment, second_moment, atol=1e-13)


def test_agree_with_monte_carlo_in_float32():
    x = 0.3 + np.sqrt(2) * np.random.default_rng(0).normal(size=400_000).astype(np.float32)
    for activation in (activations.relu6, activations.gelu, activations.hard_tanh):
        found = theory.moments(activation, jnp.float32(0.3), jnp.float32(2.0))
        f, slope = map(np.asarray, activation.value_and_slope(x))
        samples = [f, f**2, (f - f.mean()) ** 2, slope, slope**2, slope**4, f == 0, slope == 0]
        for value, sample in zip(found, samples, strict=True):
            assert value.dtype == jnp.float32
            error = sample.std() / np.sqrt(x.size)
            assert abs(value - sample.mean()) <= 5 * error + 1e-5


def test_variance_zero_gives_the_values_at_the_mean():
    found = theory.moments(activations.tanh, 0.5, 0.0)
    np.testing.assert_allclose(found.mean, np.tanh(0.5), rtol=1e-6)
    np.testing.assert_allclose(found.slope, 1 - np.tanh(0.5) ** 2, rtol=1e-6)
    np.testing.assert_allclose(found.variance, 0, atol=1e-12)
    assert theory.moments(activations.relu, -1.0, 0.0).zero_probability == pytest.approx(1)


def test_bad_input_is_refused_by_name():
    with pytest.raises(TypeError, match=r"must know its kinks and its derivative.*from_callable"):
        theory.moments(jnp.tanh)
    with pytest.raises(ValueError, match="`variance` must be nonnegative"):
        theory.moments(activations.tanh, 0.0, -1.0)
