"""Gaussian moments against mpmath, closed forms and Monte Carlo."""

import itertools

import chex
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from taylor import reference

from jaxact import activations, numerics, theory

MEMBERS = [*activations.names(), "leaky_relu(-0.5)", "softplus(4)", "swish(0.3)"]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)


def integral_by_panels(formula, breakpoints, mean, variance):
    """The moments from the member's formula in mpmath, on panels of its own."""
    s = mp.sqrt(variance)
    ends = [mean + z * s for z in (-11, -7, -5, -3.5, -2.5, -1.5, -0.75, 0, 0.75, 1.5, 2.5, 3.5, 5, 7, 11)]
    ends = sorted({mp.mpf(x) for x in (*ends, *breakpoints, -1, 0, 1) if ends[0] <= x <= ends[-1]})
    totals = [mp.mpf(0)] * 7
    for left, right in itertools.pairwise(ends):
        for node, weight in zip(NODES, WEIGHTS, strict=True):
            x = (left + right) / 2 + (right - left) / 2 * mp.mpf(node)
            f, slope = reference(formula, x)[:2]
            mass = (right - left) / 2 * mp.mpf(weight) * mp.npdf(x, mean, s)
            for k, value in enumerate((f, f * f, slope, slope**2, slope**4, int(f == 0), int(slope == 0))):
                totals[k] += value * mass
    first, second, slope, slope_2, slope_4, zero, dead = totals
    return first, second, second - first**2, slope, slope_2, slope_4, zero, dead


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.7, 2.5)])
@pytest.mark.parametrize("name", MEMBERS)
def test_of_every_member_equal_mpmath(name, mean, variance):
    activation = activations.parse(name)
    truth = integral_by_panels(activation.formula, activation.breakpoints, mean, variance)
    with jax.enable_x64(True):
        found = theory.moments(activation, mean, variance)
    for field, value, true in zip(found._fields, found, truth, strict=True):
        np.testing.assert_allclose(float(value), float(true), rtol=1e-12, atol=1e-12, err_msg=field)


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


def test_tails_that_grow_fast_are_reached_or_refused():
    exponential = activations.from_callable(jnp.exp, name="exponential")
    explosive = activations.Activation(
        name="explosive", fn=lambda x: jnp.exp(x**2), derivative=lambda x: 2 * x * jnp.exp(x**2),
        range=activations.Interval(1, np.inf),
        slope_range=activations.Interval(-np.inf, np.inf),
    )  # fmt: skip
    with jax.enable_x64(True):
        found = theory.moments(exponential, 0.5, 4.0)
        for power, value in ((1, found.mean), (2, found.second_moment), (4, found.slope_fourth_moment)):
            np.testing.assert_allclose(value, np.exp(power * 0.5 + power**2 * 2), rtol=1e-12)
        with pytest.raises(ValueError, match=r"got explosive.*outgrows the Gaussian"):
            theory.moments(explosive)
        assert np.isnan(jax.jit(lambda v: theory.moments(explosive, 0.0, v).mean)(1.0))
        assert theory.mean_field(exponential, sigma_w=1.0).phase == "unbounded"  # e^{2 q} > q


def test_what_is_no_activation_is_refused():
    def made(fn):
        return activations.Activation(
            name="odd_one",
            fn=fn,
            derivative=jnp.ones_like,
            range=activations.Interval(0, 1),
            slope_range=activations.Interval(0, 1),
        )

    with pytest.raises(ValueError, match=r"must be elementwise, got odd_one.*shape \(2,\)"):
        theory.moments(made(lambda x: x.sum(-1)))
    with pytest.raises(ValueError, match=r"got odd_one, whose activation is NaN at x = -10"):
        theory.moments(made(jnp.sqrt))


def test_a_fresh_activation_is_looked_at_under_vmap_too():
    fresh = activations.from_callable(
        lambda x: jnp.tanh(1.37 * x), name="tanh_1_37"
    )  # nothing is kept of it yet
    variances = jnp.array([0.5, 2.0])
    found = jax.vmap(lambda v: theory.moments(fresh, 0.0, v).slope)(variances)
    np.testing.assert_allclose(found, theory.moments(fresh, 0.0, variances).slope, rtol=1e-6)


@pytest.mark.parametrize("name", ["relu", "tanh", "softplus"])
def test_what_is_traced_and_no_gaussian_gives_nan_in_every_field(name):
    activation = activations.parse(name)
    found = jax.jit(lambda m, v: theory.moments(activation, m, v))(
        np.array([0.0, np.nan, 0.0, np.inf]), np.array([-1.0, 1.0, np.inf, 1.0])
    )
    for field in found:
        assert np.isnan(field).all()


def test_sin_is_right_or_refused_however_wide_the_gaussian():
    deviations = 2.0 ** np.arange(-3, 12)
    q = deviations**2
    with jax.enable_x64(True):
        found = jax.jit(lambda v: theory.moments(activations.sin, variance=v))(q)
        truth = {
            "second_moment": (1 - np.exp(-2 * q)) / 2,
            "slope_second_moment": (1 + np.exp(-2 * q)) / 2,
            "slope_fourth_moment": (3 + 4 * np.exp(-2 * q) + np.exp(-8 * q)) / 8,
        }
        for name, largest in (("second_moment", 16), ("slope_second_moment", 16), ("slope_fourth_moment", 8)):
            value, is_known = getattr(found, name), deviations <= largest
            np.testing.assert_allclose(value[is_known], truth[name][is_known], rtol=1e-8, err_msg=name)
            assert np.isnan(value[~is_known]).all()
        for q in (1024.0, 1e6):
            with pytest.raises(
                ValueError, match=r"got sin, whose squares .* up to a standard deviation of 16"
            ):
                theory.moments(activations.sin, variance=q)
        fast = activations.from_callable(lambda x: jnp.sin(30 * x), name="fast")
        for predict in (theory.moments, theory.batch_norm_gradient_growth):
            with pytest.raises(
                ValueError, match=r"got fast, whose squares .* up to a standard deviation of 0.5"
            ):
                predict(fast)


def test_nothing_else_of_the_zoo_is_refused_or_grows_fast():
    from jaxact.theory import _integrable

    for name in MEMBERS:
        activation = activations.parse(name)
        assert not _integrable.grows_fast(activation)
        if name not in ("sin", "cos"):
            assert set(_integrable.resolution(activation)) == {np.inf}


def test_a_clipped_exponential_is_integrated_as_far_as_it_counts():
    clipped = activations.from_callable(lambda x: jnp.exp(jnp.minimum(x, 40.0)), name="clipped")
    with jax.enable_x64(True), mp.workdps(30):
        for q in (4.0, 16.0):
            s = mp.sqrt(q)
            # E exp(2 min(x, 40)), by completing the square.
            truth = mp.exp(2 * q) * mp.ncdf((40 - 2 * q) / s) + mp.exp(80) * mp.ncdf(-40 / s)
            found = theory.variance_map(clipped, q, sigma_w=1.0)
            np.testing.assert_allclose(float(found), float(truth), rtol=1e-12)


def test_nothing_has_no_moments():
    assert theory.moments(activations.tanh, variance=np.ones((2, 0))).mean.shape == (2, 0)


def test_a_slope_that_is_not_square_integrable_is_refused():
    root = activations.from_callable(lambda x: jnp.sqrt(jnp.abs(x)), name="root")
    with pytest.raises(ValueError, match=r"must be square-integrable .* got root, whose squares"):
        theory.moments(root)
