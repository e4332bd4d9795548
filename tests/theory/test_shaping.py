"""The conditions of DKS and TAT by other quadratures, networks drawn at random, and the facts carried over."""

import pickle

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxact import activations, theory
from jaxact.activations import from_callable, parse
from jaxact.theory import shape

TANH = (mpmath.tanh, lambda x: mpmath.sech(x) ** 2, lambda x: -2 * mpmath.tanh(x) * mpmath.sech(x) ** 2)
SOFTPLUS = (
    lambda x: mpmath.log1p(mpmath.exp(x)),
    lambda x: 1 / (1 + mpmath.exp(-x)),
    lambda x: 1 / (4 * mpmath.cosh(x / 2) ** 2),
)


@pytest.mark.parametrize(
    ("name", "jet", "method", "depth"),
    [("tanh", TANH, "dks", 10), ("softplus", SOFTPLUS, "tat", 40)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_four_conditions_hold_by_another_quadrature(name, jet, method, depth):
    t = shape(parse(name), depth, method=method).fn
    a, b, c, d = t.output_scale, t.input_scale, t.input_shift, t.output_shift
    f, slope, curvature = jet

    def phi(z):
        return a * (f(b * z + c) + d)

    def expect(g):
        density = lambda z: g(z) * mpmath.npdf(z)  # noqa: E731
        return float(mpmath.quad(density, [-12, -6, -3, 0, 3, 6, 12]))

    q_slope = mpmath.diff(
        lambda q: mpmath.quad(lambda z: phi(mpmath.sqrt(q) * z) ** 2 * mpmath.npdf(z), [-12, -4, 0, 4, 12]), 1
    )
    assert expect(lambda z: phi(z) ** 2) == pytest.approx(1, abs=1e-11)
    assert float(q_slope) == pytest.approx(1, abs=1e-11)
    chi = expect(lambda z: (a * b * slope(b * z + c)) ** 2)
    if method == "dks":
        assert expect(phi) == pytest.approx(0, abs=1e-12)
        assert chi**depth == pytest.approx(1.5, abs=1e-11)
    else:
        assert chi == pytest.approx(1, abs=1e-11)
        total = depth * expect(lambda z: (a * b**2 * curvature(b * z + c)) ** 2)
        assert total == pytest.approx(0.3, abs=1e-10)


def _map(activation):
    """c -> the correlation map and its slope, by two-dimensional quadrature."""
    layer = lambda c: theory.correlation_map(activation, c, sigma_w=1.0)  # noqa: E731
    return jax.jit(lambda c: jax.jvp(layer, (c,), (jnp.ones_like(c),)))


@pytest.mark.parametrize(("name", "zeta"), [("gelu", 1.5), ("hard_silu", 2.0), ("leaky_relu", 1.2)])
def test_the_correlation_map_has_the_slope_that_was_asked_for(name, zeta):
    with jax.enable_x64(True):
        c, slope = _map(shape(parse(name), 12, zeta=zeta))(jnp.array([0.0, 1.0]))
        np.testing.assert_allclose(c, [0, 1], atol=1e-13)
        np.testing.assert_allclose(slope[1] ** 12, zeta, rtol=1e-11)


def test_the_composed_map_has_the_curvature_that_was_asked_for():
    with jax.enable_x64(True):
        layer = _map(shape(parse("silu"), 4, method="tat", tau=0.2))
        c, total = jnp.array([1.0, 1 - 2e-4, 1 - 4e-4]), 1.0
        for _ in range(4):
            c, slope = layer(jnp.minimum(c, 1))  # rounding leaves 1 + 2e-16, which is no correlation
            total = total * slope
        np.testing.assert_allclose(total[0], 1, rtol=1e-11)
        # a one-sided difference of second order
        np.testing.assert_allclose((3 * total[0] - 4 * total[1] + total[2]) / 4e-4, 0.2, rtol=1e-5)


def test_a_tailored_rectifier_takes_orthogonal_inputs_to_eta():
    shaped = shape(activations.relu, 50, method="tat", eta=0.8)
    with jax.enable_x64(True):
        high, low = (float(shaped(np.float64(x))) for x in (1.0, -1.0))
    alpha, c = -low / high, 0.0
    for _ in range(50):  # the arc-cosine kernels of Cho & Saul 2009
        angle = np.arccos(c)
        same, opposite = (np.sin(x) + (np.pi - x) * np.cos(x) for x in (angle, np.pi - angle))
        c = ((1 + alpha**2) * same - 2 * alpha * opposite) / (np.pi * (1 + alpha**2))
    assert c == pytest.approx(0.8, abs=1e-12)
    assert (high**2 + low**2) / 2 == pytest.approx(1, abs=1e-14)
    # whatever rectifier it was
    assert shape(activations.leaky_relu(0.3), 50, method="tat", eta=0.8).fn == shaped.fn


def test_the_result_does_not_depend_on_how_the_activation_was_written():
    """f(4 x - 1) / 3 + 2 is shaped like f: the transforms absorb what is affine; a user's function, too."""
    mine = from_callable(lambda x: jax.nn.softplus(4 * x - 1) / 3 + 2, name="mine")
    x = np.linspace(-4, 4, 41)
    with jax.enable_x64(True):
        expected = shape(activations.softplus(1.0), 20, method="tat")
        np.testing.assert_allclose(shape(mine, 20, method="tat")(x), expected(x), atol=1e-9)


@pytest.mark.parametrize("law", ["gaussian", "orthogonal"])
def test_random_networks_of_finite_width_follow_the_maps(law):
    depth, width, num_networks = 30, 1000, 150
    shaped = shape(activations.tanh, depth)
    t = shaped.fn
    rng = np.random.default_rng(0)
    # Of weights with these laws, the preactivations of two inputs are, given those of the layer before, exactly
    # (two Gaussian or orthonormal vectors) times the root of the Gram matrix of the activations.
    gram = np.broadcast_to(np.array([[1, 0.3], [0.3, 1]]), (num_networks, 2, 2))
    for layer in range(depth + 1):
        basis = rng.standard_normal((num_networks, width, 2))
        if law == "orthogonal" and layer:
            basis = np.linalg.qr(basis)[0] * width**0.5
        h = basis @ np.linalg.cholesky(gram).swapaxes(1, 2)
        phi = t.output_scale * (np.tanh(t.input_scale * h + t.input_shift) + t.output_shift)
        q, cosine = (h**2).mean(1), np.prod(h, -1).mean(1) / np.sqrt(np.prod((h**2).mean(1), -1))
        gram = phi.swapaxes(1, 2) @ phi / width
    predicted = theory.trajectory(shaped, depth, c=0.3, sigma_w=1.0)
    for measured, expected in ((q.mean(1), predicted.q[-1]), (cosine, predicted.c[-1])):
        error = measured.std() / num_networks**0.5
        # besides the sampling error, the bias of a finite network: of the size of depth / width
        assert abs(measured.mean() - expected) < 4 * error + 0.25 * depth / width
        assert measured.std() < 3 * (depth / width) ** 0.5


@pytest.mark.parametrize(
    ("name", "method"),
    [("tanh", "dks"), ("elu", "dks"), ("hard_silu", "dks"), ("gelu", "tat"), ("relu", "tat")],
)
def test_the_facts_hold(name, method):
    base = parse(name)
    shaped = shape(base, 16, method=method)
    t = shaped.fn
    with jax.enable_x64(True):
        x = np.sort([*np.linspace(-60, 60, 24001), *(k + e for k in shaped.kinks for e in (-1e-9, 0, 1e-9))])
        y, slope = np.asarray(shaped(x)), np.asarray(shaped.derivative(x))
        expected = t.output_scale * (np.asarray(base(t.input_scale * x + t.input_shift)) + t.output_shift)
        if name != "relu":
            np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-13)
        # Of both slopes one side or the other is right at a breakpoint; the steps beside it mix them.
        away = np.min(np.abs(x[:, None] - np.array([*shaped.breakpoints, 1e9])), 1) > 0.01
        difference = (np.asarray(shaped(x + 1e-6)) - np.asarray(shaped(x - 1e-6))) / 2e-6
        np.testing.assert_allclose(slope[away], difference[away], atol=1e-7)
        np.testing.assert_allclose(jax.vmap(jax.grad(shaped))(x[::500]), slope[::500], rtol=1e-13)
        for kink in shaped.kinks:
            left, right = (float(shaped.derivative(np.float64(kink + e))) for e in (-1e-6, 1e-6))
            assert abs(left - right) > 1e-2
    for x_i in (-3.7, -0.2, 0.4, 5.1):
        exactly = eval(shaped.formula, vars(mpmath) | {"max": max, "min": min}, {"x": mpmath.mpf(x_i)})
        with jax.enable_x64(True):
            assert float(shaped(np.float64(x_i))) == pytest.approx(float(exactly), abs=1e-12)
    slack = 1e-12 * shaped.lipschitz
    assert shaped.range.lower - 1e-12 <= y.min()
    assert y.max() <= shaped.range.upper + 1e-12
    assert shaped.slope_range.lower - slack <= slope.min()
    assert slope.max() <= shaped.slope_range.upper + slack
    assert slope.max() == pytest.approx(shaped.slope_range.upper, rel=1e-4)
    assert shaped.monotone == bool((np.diff(y) >= -1e-12).all())
    assert shaped.homogeneous == (name == "relu")
    assert not shaped.odd
    if shaped.argmin is not None:
        assert x[np.argmin(y)] == pytest.approx(shaped.argmin, abs=0.01)


def test_the_moments_of_a_tailored_rectifier_are_those_of_the_integral():
    shaped = shape(activations.relu, 10, method="tat", eta=0.5)
    with jax.enable_x64(True):
        first, second = shaped.moments(0.3, 1.7)
        expected = theory.moments(shaped, 0.3, 1.7)
        np.testing.assert_allclose([first, second], [expected.mean, expected.second_moment], rtol=1e-13)
    assert shape(activations.relu, 10).moments is None  # E f^2 with the shift would cancel


def test_it_is_an_activation_like_any_other():
    shaped = shape(activations.tanh, 16)
    assert shaped == shape(activations.tanh, 16)
    assert hash(shaped) == hash(shape(activations.tanh, 16))
    assert shaped != shape(activations.tanh, 17)
    with pytest.raises(ValueError, match="unknown activation 'dks'"):
        parse(shaped.name)
    assert shape(activations.relu, 16, method="tat", eta=0.5).name == "tat(relu, depth=16, eta=0.5)"
    sent = pickle.loads(pickle.dumps(shaped))
    assert sent == shaped
    np.testing.assert_array_equal(sent(0.3), shaped(0.3))
    # half precision is evaluated in float32 and rounded once
    x = jnp.linspace(-2, 2, 9, dtype=jnp.bfloat16)
    np.testing.assert_array_equal(shaped(x), shaped(x.astype(jnp.float32)).astype(jnp.bfloat16))
    assert jax.jit(lambda x: x * shape(activations.relu, 4, zeta=1.1)(1.0))(0.0) == 0
    inside = jax.jit(lambda x: shape(activations.tanh, 16)(x))  # solved while tracing
    np.testing.assert_allclose(inside(0.5), shaped(0.5), rtol=1e-6)


def test_what_cannot_be_shaped_is_refused():
    tanh, relu = activations.tanh, activations.relu
    for activation, options, message in [
        (activations.identity, {}, "`activation` must allow a solution .* got identity"),
        (activations.identity, {"method": "tat"}, 'none was found with method="tat", depth=8, tau=0.3'),
        (activations.abs, {"method": "tat"}, "finite C''.*kinks at"),
        (activations.hard_tanh, {"method": "tat"}, "needs a finite"),
        (tanh, {"zeta": 1.0}, "`zeta` must lie strictly between 1 and inf, got 1"),
        (tanh, {"zeta": float("nan")}, "`zeta` must lie strictly"),
        (tanh, {"method": "tat", "tau": 0.0}, "`tau` must lie strictly between 0"),
        (tanh, {"method": "tat", "eta": 0.5}, "`eta` is not what is asked of tanh here, got 0.5. Give `tau`"),
        (tanh, {"tau": 0.5}, "Give `zeta`"),
        (relu, {"method": "tat", "tau": 0.3}, "Give `eta`"),
        (relu, {"method": "tat", "eta": 0.99}, "`eta` must be at most 0.8.* got 0.99"),
        (relu, {"zeta": 30.0}, "`zeta` must be at most 21"),
        (tanh, {"method": "bn"}, "`method` must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            shape(activation, 8, **options)
    with pytest.raises(ValueError, match="`depth` must be an integer of at least 1, got 0"):
        shape(tanh, 0)
    with pytest.raises(TypeError, match="from_callable"):
        shape(np.tanh, 8)


def test_deep_rectifiers_and_counts_of_numpy():
    # C'(1) = E f'^2 of the shaped relu, depth times its logarithm.
    phi = shape(activations.relu, 2000)
    slopes = np.asarray(phi.derivative(jnp.array([-1.0, 1.0])), float)
    assert 2000 * np.log((slopes**2).mean()) == pytest.approx(np.log(1.5), rel=1e-3)
    assert shape(activations.relu, np.int64(50)) == shape(activations.relu, 50)
    for depth in (10**7, 10**400):
        with pytest.raises(ValueError, match="`depth` must be at most 1000000, got"):
            shape(activations.relu, depth)
