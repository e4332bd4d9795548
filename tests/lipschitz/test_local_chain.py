"""The closed form of a chain within a region, and the tables of slopes under it."""

from fractions import Fraction
from itertools import pairwise

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxact import activations, lipschitz
from jaxact.lipschitz._panels import slope_table

NETS = [
    ("relu", (4, 8, 3)),
    ("leaky_relu(0.1)", (4, 12, 12, 3)),
    ("tanh", (4, 12, 12, 12, 3)),
    ("gelu", (6, 40, 16, 2)),
    ("abs", (3, 8, 8, 8, 5)),
    ("silu", (4, 8, 8, 8, 8, 8, 1)),
]


def chain(widths, seed=0):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=(i, o)) * np.sqrt(2 / i) for i, o in pairwise(widths)]
    return weights, [0.3 * rng.normal(size=o) for o in widths[1:]], rng.normal(size=widths[0])


def outputs_and_jacobians(weights, biases, activation, inputs):
    """f and J at inputs [n, in], by NumPy; the activation and its slopes by its own facts."""
    h, J = inputs, np.broadcast_to(np.eye(inputs.shape[1]), (len(inputs), *(inputs.shape[1],) * 2))
    for index, (W, b) in enumerate(zip(weights, biases, strict=True)):
        h, J = h @ W + b, J @ W
        if index < len(weights) - 1:
            with jax.enable_x64(True):
                h, slope = (np.asarray(part) for part in activation.value_and_slope(jnp.asarray(h)))
            J = J * slope[:, None, :]
    return h, J


def local(weights, biases, activation, region, method="eclipse_fast", log=False):
    bound = lipschitz.upper_bound
    with jax.enable_x64(True):
        found = bound(weights, activation, method=method, biases=biases, region=region)
        return float(found.log if log else found)


def function(weights, biases, activation):
    def fn(x):
        for W, b in zip(weights[:-1], biases[:-1], strict=True):
            x = activation(x @ W + b)
        return x @ weights[-1] + biases[-1]

    return fn


def intervals(count, seed=0):
    rng = np.random.default_rng(seed)
    lower = rng.normal(size=count) * 10 ** rng.uniform(-2, 1.5, size=count)
    return lower, lower + 10 ** rng.uniform(-7, 1.5, size=count)


@pytest.mark.parametrize("name", activations.names())
def test_tables_hold_every_slope(name):
    activation = activations.parse(name)
    table = slope_table(activation)
    lower, upper = intervals(300)
    kinks = np.array([*activation.breakpoints, 0.0])
    lower = np.concatenate([lower, kinks, kinks - 1, kinks - 1e-9])
    upper = np.concatenate([upper, kinks + 1, kinks, kinks + 1e-9])
    share = np.concatenate([[1e-9, 1 - 1e-9], np.linspace(0, 1, 203)[1:-1]])
    x = lower[:, None] + (upper - lower)[:, None] * share
    with jax.enable_x64(True):
        slopes = np.asarray(activation.derivative(jnp.asarray(x)))
    inside = (x > lower[:, None]) & (x < upper[:, None]) & ~np.isin(x, kinks)
    least, most = (np.where(inside, slopes, bad) for bad in (np.inf, -np.inf))
    # The stated derivative is right to 8 eps of itself and of its argument.
    slack = 1e-13
    alpha, beta = table.range(lower, upper)
    assert (alpha <= least.min(1) + slack).all()
    assert (beta >= most.max(1) - slack).all()
    m, r = table.middles(lower, upper)
    assert (m - r <= least.min(1) + slack).all()
    assert (m + r >= most.max(1) - slack).all()


@pytest.mark.parametrize("name", activations.names())
def test_tables_hold_far_tails_and_say_little_else(name):
    activation = activations.parse(name)
    table = slope_table(activation)
    facts = activation.slope_range
    for far in (1e3, 1e6, 1e30, 1e60, np.inf):
        alpha, beta = table.range(np.array([-far, far / 2]), np.array([-far / 2, far]))
        if np.isfinite(far):
            x = np.array([[-0.9], [0.9]]) * far
            with jax.enable_x64(True):
                slopes = np.asarray(activation.derivative(jnp.asarray(x)))[:, 0]
            assert (alpha <= slopes + 1e-13).all()
            assert (beta >= slopes - 1e-13 * (1 + np.abs(slopes))).all()
    alpha, beta = table.range(np.array([-np.inf]), np.array([np.inf]))
    assert alpha[0] <= facts.lower
    assert beta[0] >= facts.upper
    # Where the slopes of an interval of 1e-4 are sampled at its ends and inside they are known to 1e-3.
    lower = np.random.default_rng(1).uniform(-6, 6, size=300)
    upper = lower + 1e-4
    crossed = [np.abs(lower - kink + 5e-5) < 1e-4 for kink in activation.breakpoints]
    smooth = ~np.any(crossed, 0) if crossed else np.ones(300, bool)
    with jax.enable_x64(True):
        ends = np.asarray(activation.derivative(jnp.asarray(np.stack([lower, upper]))))
    alpha, beta = table.range(lower, upper)
    curvature = 1e-4 * 10 if name != "relu_squared" else 2e-3
    assert ((beta - alpha) - np.abs(ends[1] - ends[0]) < curvature)[smooth].all()


def test_tables_are_right_to_forty_digits_at_critical_points():
    mpmath.mp.dps = 40

    def slope(x):
        s = 1 / (1 + mpmath.exp(-x))
        return s * (1 + x * (1 - s))

    top = mpmath.findroot(lambda x: mpmath.diff(slope, x), 2.4)
    table = slope_table(activations.silu)
    alpha, beta = table.range(np.array([float(top) - 0.3]), np.array([float(top) + 0.2]))
    assert 0 <= beta[0] - float(slope(top)) < 1e-6
    assert abs(alpha[0] - float(min(slope(top - 0.3), slope(top + 0.2)))) < 1e-5


@pytest.mark.parametrize(("name", "widths"), NETS)
def test_no_pair_of_a_ball_stretches_more_and_no_jacobian(name, widths):
    activation = activations.parse(name)
    weights, biases, center = chain(widths)
    rng = np.random.default_rng(1)
    directions = rng.normal(size=(600, widths[0]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    share = rng.uniform(size=(600, 1)) ** (1 / widths[0])
    everywhere = float(lipschitz.upper_bound(weights, activation, method="eclipse_fast"))
    last = 0.0
    for radius in (1e-3, 0.05, 0.3, 2.0):
        found = local(weights, biases, activation, lipschitz.Ball(center, radius))
        inputs = center + radius * share * directions
        outputs, jacobians = outputs_and_jacobians(weights, biases, activation, inputs)
        apart = np.linalg.norm(inputs[::2] - inputs[1::2], axis=1)
        stretch = np.linalg.norm(outputs[::2] - outputs[1::2], axis=1) / apart
        assert max(stretch.max(), np.linalg.norm(jacobians, 2, (1, 2)).max()) <= found
        assert found <= everywhere * (1 + 2e-7)
        assert found >= 0.9 * last  # it grows with the ball, if not strictly
        last = found
        assert found <= local(weights, biases, activation, lipschitz.Ball(center, radius), "product") * 1.0001


@pytest.mark.parametrize(("name", "widths"), NETS)
def test_a_shrinking_ball_leaves_the_jacobian(name, widths):
    activation = activations.parse(name)
    weights, biases, center = chain(widths)
    jacobian = outputs_and_jacobians(weights, biases, activation, center[None])[1][0]
    exact = np.linalg.norm(jacobian, 2)
    for radius in (0.0, 1e-9):
        found = local(weights, biases, activation, lipschitz.Ball(center, radius))
        assert exact * (1 - 1e-12) <= found <= exact * (1 + 2e-2)
        certificate = lipschitz.certify(
            function(weights, biases, activation), center, region=lipschitz.Ball(center, radius)
        )
        assert found <= certificate.value * (1 + 1e-2)


@pytest.mark.parametrize("name", ["relu", "leaky_relu(0.1)", "tanh", "silu"])
def test_it_agrees_with_certify_in_a_small_ball_and_lies_between_the_closed_forms_in_a_large_one(name):
    activation = activations.parse(name)
    weights, biases, center = chain((4, 10, 10, 3), 2)
    fn = function(weights, biases, activation)
    small, large = (lipschitz.Ball(center, radius) for radius in (1e-4, 30.0))
    found = local(weights, biases, activation, small)
    assert found == pytest.approx(lipschitz.certify(fn, center, region=small).value, rel=1e-3)
    found = local(weights, biases, activation, large)
    everywhere = float(lipschitz.upper_bound(weights, activation, method="eclipse_fast"))
    assert lipschitz.certify(fn, center, region=large).value <= found <= everywhere * (1 + 1e-6)


def test_one_hidden_layer_that_varies_as_a_whole_is_eclipse_fast():
    # Every neuron at its kink: m = r = 1/2 for all, V = 2 s.
    weights, _, _ = chain((6, 9, 4), 3)
    region = lipschitz.Ball(np.zeros(6), 0.5)
    found = local(weights, None, activations.relu, region)
    assert found == pytest.approx(
        float(lipschitz.upper_bound(weights, activations.relu, method="eclipse_fast"))
    )
    fn = function(weights, [0.0, 0.0], activations.relu)
    assert lipschitz.certify(fn, np.zeros(6), region=region).value <= found


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_a_box_holds_its_corners_and_is_within_its_ball(name):
    activation = activations.parse(name)
    weights, biases, center = chain((4, 10, 10, 3), 4)
    rng = np.random.default_rng(0)
    for half in (np.full(4, 0.1), np.array([0.5, 0.0, 1e-3, 0.1])):
        found = local(weights, biases, activation, lipschitz.Box(center - half, center + half))
        ball = local(weights, biases, activation, lipschitz.Ball(center, np.linalg.norm(half)))
        assert found <= ball * (1 + 1e-3)
        corners = center + half * rng.choice([-1.0, 1.0, 0.3], size=(300, 4))
        jacobians = outputs_and_jacobians(weights, biases, activation, corners)[1]
        assert np.linalg.norm(jacobians, 2, (1, 2)).max() <= found


def test_scales_beyond_the_square_root_of_float64_and_zeros():
    weights, biases, center = chain((4, 8, 8, 3), 5)
    region = lipschitz.Ball(center, 0.1)
    plain = local(weights, None, activations.relu, region, log=True)
    for factors in ((1e150, 1e-150, 1.0), (1e-200, 1e200, 1e-3), (1e200, 1.0, 1e200)):
        scaled = [W * factor for W, factor in zip(weights, factors, strict=True)]
        shift = np.log(factors).sum()
        assert local(scaled, None, activations.relu, region, log=True) == pytest.approx(
            plain + shift, rel=1e-9
        )
    with pytest.raises(ValueError, match="values at the region's centre"):
        local([1e200 * W for W in weights], None, activations.relu, region)
    weights[1] = np.zeros((8, 8))
    for method in ("eclipse_fast", "product"):
        assert local(weights, biases, activations.relu, region, method) == 0


def test_results_round_up_to_the_dtype_of_the_weights():
    weights, biases, center = chain((4, 8, 3), 6)
    low = [W.astype(np.float32) for W in weights]
    region = lipschitz.Ball(center, 0.1)
    exact = local([W.astype(np.float64) for W in low], biases, activations.tanh, region)
    rounded = lipschitz.upper_bound(
        low, activations.tanh, method="eclipse_fast", biases=biases, region=region
    )
    assert rounded.value.dtype == np.float32
    assert isinstance(rounded.value, np.float32)
    assert exact <= float(rounded) <= exact * (1 + 3e-7)
    of_jax = lipschitz.upper_bound(
        [jnp.asarray(W) for W in low], activations.tanh, method="eclipse_fast", biases=biases, region=region
    )
    assert isinstance(of_jax.value, jax.Array)
    assert float(of_jax) == float(rounded)


def test_a_users_function_is_read_from_its_formula_or_its_stated_slopes():
    weights, biases, center = chain((4, 8, 3), 7)
    region = lipschitz.Ball(center, 0.1)
    own = activations.from_callable(lambda x: x * jax.nn.sigmoid(x), name="own")
    assert local(weights, biases, own, region) == pytest.approx(
        local(weights, biases, activations.silu, region), rel=1e-5
    )

    class Opaque:
        lipschitz, slope_range = 1.0, (0.0, 1.0)

        def __call__(self, x):
            return jax.lax.while_loop(lambda i: i < -1, lambda i: i + 1, jnp.maximum(x, 0))

    everywhere = float(lipschitz.upper_bound(weights, activations.relu, method="eclipse_fast"))
    assert local(weights, biases, Opaque(), region) == pytest.approx(everywhere, rel=1e-7)
    squared = local(weights, biases, activations.parse("relu_squared"), region)
    assert np.isfinite(squared)


def test_regions_and_biases_that_do_not_fit_are_refused():
    weights, biases, center = chain((4, 8, 3))
    ball = lipschitz.Ball(center, 0.1)

    def call(weights=weights, biases=biases, region=ball, method="eclipse_fast", activation=activations.relu):
        return lipschitz.upper_bound(weights, activation, method=method, biases=biases, region=region)

    assert float(call(biases=None)) == float(call(biases=[None, np.zeros(3)]))
    with pytest.raises(ValueError, match="`biases` must hold one"):
        call(biases=biases[:1])
    with pytest.raises(ValueError, match=r"`biases\[0\]` must have the shape \(8,\)"):
        call(biases=biases[::-1])
    with pytest.raises(ValueError, match=r"`biases\[1\]` must be finite"):
        call(biases=[biases[0], biases[1] * np.nan])
    with pytest.raises(ValueError, match=r"`weights\[1\]` must be finite"):
        call(weights=[weights[0], weights[1] * np.inf])
    with pytest.raises(ValueError, match="`weights` must chain"):
        call(weights=[weights[0], weights[1].T])
    with pytest.raises(ValueError, match=r"`region` must have the shape of one input, \(4,\)"):
        call(region=lipschitz.Ball(np.zeros(5), 0.1))
    with pytest.raises(ValueError, match="`radius` must be finite and >= 0"):
        call(region=lipschitz.Ball(center, -1.0))
    with pytest.raises(ValueError, match="`center` must be finite"):
        call(region=lipschitz.Ball(center * np.nan, 1.0))
    with pytest.raises(ValueError, match="`region` must be a Ball"):
        call(region=0.1)
    with pytest.raises(ValueError, match="'product' or 'eclipse_fast' with a region"):
        call(method="ellipsoid")
    with pytest.raises(ValueError, match="concrete with a region"):
        jax.jit(lambda w: call(weights=w))([jnp.asarray(W) for W in weights])
    with pytest.raises(ValueError, match="bounded slopes in the region"):
        call(activation=activations.from_callable(lambda x: jnp.sqrt(jnp.abs(x)), name="root"))
    with pytest.raises(ValueError, match="elementwise function of known primitives"):
        call(activation=[object()])


def test_what_a_bias_cancels_keeps_its_rounding():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        W, x = rng.normal(size=(8, 1)), 1e10 * rng.normal(size=8)
        b = 1 - x @ W
        z = Fraction(b[0]) + sum(Fraction(w) * Fraction(u) for w, u in zip(W[:, 0], x, strict=True))
        steepest = float(np.linalg.norm(W) * mpmath.sech(mpmath.mpf(z.numerator) / z.denominator) ** 2)
        found = lipschitz.upper_bound(
            [W, np.eye(1)],
            activations.tanh,
            method="eclipse_fast",
            biases=[b, None],
            region=lipschitz.Ball(x, 0.0),
        )
        assert steepest * (1 - 1e-15) <= found.value <= steepest * (1 + 1e-2)
