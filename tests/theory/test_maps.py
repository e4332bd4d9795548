"""The variance map against closed forms and a wide network."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import mpmath as mp
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

    @partial(
        jax.jit, compiler_options={"xla_backend_optimization_level": 2}
    )  # it runs longer than it compiles
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


_CORRELATIONS = np.array([-0.9, -0.5, 0.0, 0.3, 0.9, 1 - 1e-3, 1 - 1e-6, 1 - 1e-9])


def _hermite_series(function, derivative, c):
    """E f(u) f(v) and its derivative by c, by sums of c^n E[f he_n]^2 / n!; f analytic in a strip."""
    z = np.arange(-40.0, 40.0, 0.01)  # equal steps: exact beyond rounding for what is analytic
    mass = 0.01 * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    totals = np.zeros((2, len(c)))
    before, now = np.zeros_like(z), np.ones_like(z)
    for n in range(1000):  # for q = 4 they fall like exp(-1.6 sqrt(n))
        for total, values in zip(totals, (function(z), derivative(z)), strict=True):
            total += c**n * np.sum(mass * values * now) ** 2
        before, now = now, (z * now - np.sqrt(n) * before) / np.sqrt(n + 1)
    return totals


def _clipped_line(c, q):
    """E f(u) f(v) and its derivative by c for f = clip(x, -1, 1), by Plackett's identity: integrals over c alone."""
    end = 1 / mp.sqrt(q)

    def density(s):  # of the corners, with their signs: the slope of P(|u| < 1, |v| < 1) by s
        both = mp.exp(-(end**2) / (1 + s)) - mp.exp(-(end**2) / (1 - s))
        return both / (mp.pi * mp.sqrt(1 - s**2))

    inside = mp.erf(end / mp.sqrt(2)) ** 2
    top = mp.asin(mp.mpf(float(c)))
    slope, value = (
        mp.quad(
            lambda t, weight=weight: weight(mp.sin(t)) * density(mp.sin(t)) * mp.cos(t),
            mp.linspace(0, top, 9),
        )
        for weight in (lambda s: 1, lambda s: mp.mpf(float(c)) - s)
    )
    return float(q * (c * inside + value)), float(q * (inside + slope))


@pytest.mark.parametrize("q", [0.3, 1.0, 4.0])
def test_correlation_map_and_slope_are_exact_up_to_the_edge(q):
    sigma_w, sigma_b = 1.3, 0.4
    with jax.enable_x64(True):
        for activation in (activations.tanh, activations.hard_tanh):
            moment = float(theory.moments(activation, 0.0, q).second_moment)
            scale = sigma_w**2 * moment + sigma_b**2  # the next length
            both = jax.jit(
                jax.vmap(
                    jax.value_and_grad(
                        partial(theory.correlation_map, activation, q=q, sigma_w=sigma_w, sigma_b=sigma_b)
                    )
                )
            )
            mapped, slope = both(_CORRELATIONS)
            if activation is activations.tanh:
                product, steep = _hermite_series(
                    lambda z: np.tanh(np.sqrt(q) * z), lambda z: np.cosh(np.sqrt(q) * z) ** -2, _CORRELATIONS
                )
                steep = q * steep
            else:
                with mp.workdps(30):
                    product, steep = np.transpose([_clipped_line(c, q) for c in _CORRELATIONS])
            np.testing.assert_allclose(
                mapped, (sigma_w**2 * product + sigma_b**2) / scale, rtol=0, atol=1e-12
            )
            np.testing.assert_allclose(slope, sigma_w**2 * steep / scale, rtol=0, atol=1e-12)


def test_what_is_traced_and_no_length_gives_nan_for_constants_too():
    constant = activations.from_callable(lambda x: 0.1 + 0 * x, name="constant")
    bad = np.array([-1.0, np.inf, np.nan])
    assert np.isnan(jax.jit(lambda q: theory.variance_map(constant, q, sigma_w=1.0))(bad)).all()
    assert np.isnan(jax.jit(lambda q: theory.trajectory(constant, 1, q=q, sigma_w=1.0).q)(bad)).all()


def test_what_has_overflowed_stays_infinite():
    found = theory.trajectory(activations.relu, 2, q=1e20, sigma_w=1e30)
    assert found.q.tolist()[1:] == [np.inf, np.inf]


def test_nothing_is_mapped_to_nothing():
    empty = np.ones((0, 2))
    assert theory.variance_map(activations.tanh, empty, sigma_w=1.0).shape == (0, 2)
    assert theory.correlation_map(activations.tanh, empty, sigma_w=1.0).shape == (0, 2)


@pytest.mark.parametrize("depth", [10**20, 10**400, 0, True, 2.0])
def test_depths_that_no_loop_has_are_refused(depth):
    with pytest.raises(
        ValueError, match=r"`depth` must be (an integer of at least 1|at most 2147483647), got"
    ):
        theory.trajectory(activations.relu, depth, sigma_w=1.0)


@pytest.mark.parametrize(
    ("name", "slope"), [("tanh", 1.0), ("cos", -1.0), ("relu", 0.5), ("sigmoid", 1 / 16), ("elu", 1.0)]
)
def test_slope_by_length_at_zero_is_the_limit(name, slope):
    activation = activations.parse(name)  # smooth: f'(0)^2 + f(0) f''(0)
    with jax.enable_x64(True):
        derivative = jax.grad(lambda q: theory.variance_map(activation, q, sigma_w=1.3, sigma_b=0.1))
        first, second = jax.jit(lambda q: (derivative(q), jax.grad(derivative)(q)))(0.0)
    np.testing.assert_allclose(first, 1.69 * slope, rtol=1e-8)
    assert np.isnan(second)


def test_slope_by_length_at_zero_is_nan_where_it_is_infinite():
    tent = activations.from_callable(lambda x: 1 + jnp.abs(x), name="tent")
    assert np.isnan(jax.grad(lambda q: theory.variance_map(tent, q, sigma_w=1.0))(0.0))


def test_second_derivative_by_correlation_holds_at_the_ends():
    z = np.linspace(-12, 12, 2001)  # equal steps: to rounding for what is analytic
    weights = np.exp(-(z**2) / 2) / np.exp(-(z**2) / 2).sum()
    curvature = -2 * np.tanh(z) / np.cosh(z) ** 2
    q_next = 1.69 * (weights @ np.tanh(z) ** 2) + 0.01

    def curvatures(activation, c):
        map_ = partial(theory.correlation_map, activation, sigma_w=1.3, sigma_b=0.1)
        return jax.jit(jax.vmap(jax.grad(jax.grad(map_))))(jnp.asarray(c))

    with jax.enable_x64(True):
        found = curvatures(activations.tanh, [-1.0, 1.0])
        np.testing.assert_allclose(
            found, np.array([-1, 1]) * 1.69 * (weights @ curvature**2) / q_next, rtol=1e-10
        )
        inside, *ends = curvatures(activations.relu, [0.5, -1.0, 1.0])
    np.testing.assert_allclose(inside, 1.69 / (2 * np.pi * np.sqrt(0.75)) / (1.69 / 2 + 0.01), rtol=1e-9)
    assert np.isnan(ends).all()  # of relu infinite


def test_a_traced_start_that_is_no_correlation_gives_nan():
    found = jax.jit(lambda c: theory.trajectory(activations.tanh, 1, c=c, sigma_w=1.0).c)(1.5)
    assert np.isnan(found).all()


def test_more_kinks_than_fit_into_memory_are_refused():
    with pytest.raises(ValueError, match=r"at most 100 kinks here, got floor, which has \d+"):
        theory.correlation_map(activations.from_callable(jnp.floor, name="floor"), 0.5, sigma_w=1.0)
