import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import activations
from jaxact.trace import UnsupportedError, _expr, _formula, from_function, slope_range, value_range
from jaxact.trace._expr import evaluate

_ZOO = activations.names()
_FAMILIES = ["leaky_relu(-0.5)", "elu(2)", "celu(0.3)", "swish(20)", "softplus(0.05)", "squareplus(0.01)"]


def scalar(name):
    return from_function(activations.parse(name))


@pytest.mark.parametrize("name", [*_ZOO, *_FAMILIES])
def test_the_zoo_is_found_from_the_formula_alone(name):
    facts = activations.parse(name).slope_range
    found = slope_range(scalar(name))
    if np.isinf(facts.upper):
        assert np.isinf(found.upper)
        assert found.lower <= facts.lower
        return
    # bent_identity has a branch beyond 1e10 where the bound of its formula, x (sign(x) - 1 / x), is a little loose.
    slack = (1e-4 if name == "bent_identity" else 1e-6) * max(map(abs, facts))
    assert facts.lower - slack <= found.lower <= facts.lower
    assert facts.upper <= found.upper <= facts.upper + slack


@pytest.mark.parametrize(
    "fn",
    [
        jax.nn.gelu,
        lambda x: jax.nn.gelu(x, approximate=False),
        jax.nn.silu,
        jax.nn.elu,
        jax.nn.softplus,
        jax.nn.mish,
        jax.nn.celu,
        jax.nn.selu,
        jax.nn.hard_swish,
        jax.nn.squareplus,
        jax.nn.log_sigmoid,
        jax.nn.soft_sign,
        jax.nn.sparse_plus,
        lambda x: x + jnp.sin(3 * x) ** 2 / 3,
        lambda x: jnp.tanh(x) * jnp.exp(-(x**2)) + 0.1 * x,
        lambda x: jnp.log(1 + jnp.exp(x)),
        lambda x: x * (x > 0),
        lambda x: x * jnp.sign(x),
        lambda x: jax.scipy.stats.norm.cdf(x) * x,
    ],
)
def test_a_users_formula_is_bounded_by_its_steepest_points(fn):
    found = slope_range(from_function(fn))
    far = np.geomspace(30, 1e9, 2000)
    x = np.concatenate([-far[::-1], np.linspace(-30, 30, 240_001), far])
    with jax.enable_x64(True):
        slopes = np.asarray(jax.vmap(jax.grad(fn))(jnp.asarray(x)))
    slopes = slopes[np.isfinite(slopes)]  # log(1 + exp(x)) overflows
    scale = max(-found.lower, found.upper)
    assert found.lower <= slopes.min() + 1e-12
    assert found.upper >= slopes.max() - 1e-12
    spacing = 2e-4  # of the sample, where the slope jumps
    assert slopes.min() - found.lower < spacing * scale
    assert found.upper - slopes.max() < spacing * scale


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.where(x > 0, 1.0, 0.0),
        lambda x: jnp.where(x > 0.3, x + 1e-9, x),
        lambda x: jnp.where(x * x * x > 0.3, x + 1e-3, x),
        lambda x: jnp.where(jnp.tanh(x) > 0.5, x + 1e-3, x),
        lambda x: jnp.where(x == 2.0, 5.0, x),
        lambda x: jnp.where(3.28 * x == 1, 5.0, x),  # whose rounded solution does not solve it
        lambda x: jnp.tanh(x) + 1e-6 * (x > 1),
        lambda x: jnp.where(x > 0, jnp.where(x < 0, x, x + 1), x),
        jnp.sign,
        jnp.floor,
    ],
)
def test_a_jump_has_no_slope_bound(fn):
    found = slope_range(from_function(fn))
    assert np.isneginf(found.lower)
    assert np.isposinf(found.upper)
    # and none in an interval around it
    assert np.isinf(slope_range(from_function(fn), np.array([-0.7]), np.array([2.5])).upper).all()


@pytest.mark.parametrize(
    "fn", [jnp.square, jnp.exp, lambda x: x * jnp.arcsinh(x), lambda x: jnp.sqrt(jnp.abs(x))]
)
def test_an_unbounded_slope_is_infinite(fn):
    assert np.isinf(slope_range(from_function(fn)).upper)


def test_a_point_that_is_filled_in_is_no_jump():
    found = slope_range(from_function(lambda x: jnp.where(x == 0, 0.0, jnp.tanh(x))))
    np.testing.assert_allclose(found, (0, 1), atol=1e-7)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.where((x > 5).astype(jnp.uint8) - jnp.uint8(2) > 5, 100 * x - 500, 0.0),
        lambda x: jnp.where(jax.lax.div((x > 5).astype(jnp.int32), jnp.int32(2)) > 0, x, 0.0),
    ],
)
def test_integer_arithmetic_is_no_formula(fn):
    with pytest.raises(UnsupportedError, match="the arithmetic of integers wraps around"):
        from_function(fn)


def test_where_continuous_at_a_curved_switch_is_bounded():
    found = slope_range(from_function(lambda x: jnp.where(jnp.tanh(x) > 0.5, jnp.tanh(x), 0.5)))
    np.testing.assert_allclose(found, (0, 0.75), atol=1e-7)  # 1 - tanh^2 at the switch


@pytest.mark.parametrize("name", activations.names())
def test_intervals_hold_every_slope_and_value_and_little_else(name):
    activation, formula = activations.parse(name), scalar(name)
    rng = np.random.default_rng(0)
    lower = 3 * rng.normal(size=30)
    upper = lower + 10 ** rng.uniform(-6, 1, size=30)
    x = lower[:, None] + (upper - lower)[:, None] * np.linspace(0, 1, 402)
    with jax.enable_x64(True):
        y, slopes = (np.asarray(part) for part in activation.value_and_slope(jnp.asarray(x)))
    slopes = slopes[:, 1:-1]  # at an end that is a kink, the slope of the other side may be reported
    found = slope_range(formula, lower, upper)
    assert (found.lower <= slopes.min(1) + 1e-13).all()
    assert (found.upper >= slopes.max(1) - 1e-13).all()
    kinked = np.isin(
        name, ["abs", "hard_silu", "hard_sigmoid", "hard_tanh", "relu", "relu6", "leaky_relu", "selu"]
    )
    if not kinked:  # the sample may miss a kink near an end
        assert (found.upper - slopes.max(1) < 0.1).all()
        assert (slopes.min(1) - found.lower < 0.1).all()
    low, high = value_range(formula, lower, upper)
    assert (low <= y.min(1) + 1e-14).all()
    assert (high >= y.max(1) - 1e-14).all()
    np.testing.assert_allclose(evaluate(formula, x), y, rtol=1e-12, atol=1e-14)


def test_a_shrinking_interval_leaves_the_derivative():
    x = np.linspace(-4, 4, 41) + 0.013
    for fn in (jax.nn.gelu, jax.nn.silu, jnp.sin, jnp.square, jnp.exp):
        with jax.enable_x64(True):
            slopes = np.asarray(jax.vmap(jax.grad(fn))(jnp.asarray(x)))
        found = slope_range(from_function(fn), x - 1e-9, x + 1e-9)
        np.testing.assert_allclose(found.lower, slopes, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found.upper, slopes, rtol=1e-6, atol=1e-7)


_PARTS = [
    jnp.tanh,
    jax.nn.sigmoid,
    jnp.sin,
    jnp.abs,
    jax.nn.relu,
    jax.nn.elu,
    jnp.cbrt,
    jnp.expm1,
    lambda x: x**3,
    lambda x: jnp.sqrt(1 + x * x),
    lambda x: 1 / (1.5 + jnp.cos(x)),
    lambda x: jnp.clip(x, -1.3, 0.7),
    lambda x: jnp.where(x > 0.3, x, 0.3),
    lambda x: jnp.log1p(x * x),
]


def _random_formula(rng, depth):
    if depth == 0:
        return lambda x: x
    f, g = _random_formula(rng, depth - 1), _random_formula(rng, rng.integers(depth))
    part, way, c = _PARTS[rng.integers(len(_PARTS))], rng.integers(6), rng.normal()
    return [
        lambda x: part(f(x)),
        lambda x: part(f(x) + c),
        lambda x: f(x) + c * g(x),
        lambda x: f(x) * g(x),
        lambda x: jnp.maximum(f(x), g(x)),
        lambda x: f(x) / (2 + jnp.abs(g(x))),
    ][way]


@pytest.mark.parametrize("seed", range(16))
def test_no_difference_quotient_of_a_random_formula_exceeds_its_bounds(seed):
    rng = np.random.default_rng(seed)
    fn = _random_formula(rng, 3)
    formula = from_function(fn)
    lower = 2 * rng.normal(size=12)
    width = 10 ** rng.uniform(-3, 1, size=12)
    x = lower[:, None] + width[:, None] * np.sort(rng.random((12, 500)), axis=1)
    with jax.enable_x64(True):
        y = np.asarray(fn(jnp.asarray(x)))
    near = np.diff(y, axis=1) / np.diff(x, axis=1)
    rounding = 1e-14 * (1 + np.abs(y[:, 1:])) / np.diff(x, axis=1)
    everywhere, within = slope_range(formula), slope_range(formula, lower, lower + width)
    for low, high in (everywhere, (within.lower[:, None], within.upper[:, None])):
        assert (near <= high + rounding).all()
        assert (near >= low - rounding).all()


def test_entries_with_constants_of_their_own_are_bounded_one_by_one():
    slopes, betas = np.array([0.25, -0.5, 0.25, 2.0]), np.array([1.0, 0.3, 1.0, 5.0])
    x = _expr.variable()
    scaled = _formula.apply("mul", [_expr.constant(slopes), x])
    prelu = _formula.apply("select_n", [_formula.apply("gt", [x, _expr.constant(0.0)]), scaled, x])
    found = slope_range(prelu)
    np.testing.assert_allclose(found.lower, np.minimum(slopes, 1), atol=1e-6)
    np.testing.assert_allclose(found.upper, np.maximum(slopes, 1), atol=1e-6)
    gate = _formula.apply("logistic", [_formula.apply("mul", [_expr.constant(betas), x])])
    swish = _formula.apply("mul", [x, gate])
    np.testing.assert_allclose(slope_range(swish).upper, activations.silu.lipschitz, rtol=1e-6)
    lower, upper = np.array([-1.0, 0.5, -2.0, -0.1]), np.array([0.5, 1.0, -1.0, 0.1])
    within = slope_range(swish, lower, upper)
    for i, beta in enumerate(betas):
        alone = slope_range(scalar(f"swish({beta})"), lower[i : i + 1], upper[i : i + 1])
        np.testing.assert_allclose(within.upper[i], alone.upper[0], rtol=3e-3)
        np.testing.assert_allclose(within.lower[i], alone.lower[0], rtol=3e-3, atol=1e-3)


def test_what_is_not_known_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="igamma"):
        from_function(lambda x: jax.lax.igamma(2.0, x))
