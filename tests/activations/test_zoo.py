"""Every member of the zoo against its own formula, evaluated with mpmath; names() is the only list."""

import functools
import itertools
import math

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from taylor import reference

from jaxact import activations
from jaxact.activations import Activation

# Every member; families at their defaults and at two more parameters, one of which float32 cannot represent.
MEMBERS = [
    *activations.names(),
    *(
        f"{name}({value})"
        for name in activations.names()
        if not isinstance(getattr(activations, name), Activation)
        for value in (0.3, 2)
    ),
    "leaky_relu(-0.5)",
    "leaky_relu(0)",
]
OSCILLATING = ("sin", "cos")
# Where a compilation is spent on each: one parameter besides the default is enough.
COMPILED = [name for name in MEMBERS if not name.endswith("(2)")]


def limits(formula, sign):
    """Limits of f, f' and f'' as x -> sign * inf, by going from 1e50 to 1e100."""
    near, far = (reference(formula, sign * mp.mpf(10) ** e)[:3] for e in (50, 100))
    grows = [abs(b) > 1.5 * abs(a) and abs(b) > 1 for a, b in zip(near, far, strict=True)]
    return [float(mp.sign(b)) * math.inf if g else float(b) for b, g in zip(far, grows, strict=True)]


def test_points(dtype):
    """Inputs of every size in a dtype: tails, neighbours of kinks, subnormals, extremes."""
    info = jnp.finfo(dtype)
    rng = np.random.default_rng(0)
    sizes = np.concatenate(
        [
            [0, float(info.smallest_subnormal), float(info.tiny), float(info.max), 1e30, 1e19, 1e10, 1e4],
            [
                1e-30,
                1e-12,
                1e-7,
                1e-5,
                1e-3,
                0.01,
                0.1,
                0.7,
                9.3,
                13.1,
                37.5,
                85.0,
                89.0,
                104.5,
                350.0,
                800.0,
            ],
            rng.uniform(0, 1, 10),
            rng.uniform(1, 14, 16),
        ]
    )
    if dtype == jnp.float64:
        sizes = np.concatenate([sizes, [1e154, 1e160, 700.1, 745.5, 1.1e10, 3e12, 1e16]])
    x = np.concatenate(
        [sizes, -sizes, [n + s * float(info.eps) * 4 for n in (-3, -1, 1, 3, 6) for s in (-1, 0, 1)]]
    )
    return np.unique(x.astype(dtype))


test_points.__test__ = False
DTYPES = (jnp.float64, jnp.float32, jnp.bfloat16)
POINTS = [test_points(dtype) for dtype in DTYPES]


def gradient(f):
    """The derivative of an elementwise function, in reverse mode."""
    return lambda x: jax.vjp(f, x)[1](jnp.ones_like(x))[0]


def jet(activation, x):
    """Value, first and second derivative."""
    return activation(x), gradient(activation)(x), gradient(gradient(activation))(x)


@functools.cache
def computed(name):
    """The jets at POINTS and at +-inf, as float64 arrays: one compile a member."""
    activation = activations.parse(name)
    with jax.enable_x64(True):
        inputs = [jnp.asarray(np.concatenate([x, [-np.inf, np.inf, np.nan]]).astype(x.dtype)) for x in POINTS]
        outputs = jax.jit(lambda inputs: [jet(activation, x) for x in inputs])(inputs)
        for x, out in zip(inputs, outputs, strict=True):
            assert all(y.dtype == x.dtype for y in out)
        return [[np.asarray(y, np.float64) for y in out] for out in outputs]


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("which", range(3), ids=["float64", "float32", "bfloat16"])
def test_value_and_derivatives_are_right_for_inputs_of_every_size(name, which):
    activation, dtype = activations.parse(name), DTYPES[which]
    eps, largest = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).max)
    # Below this a result may be flushed to zero: XLA does not keep subnormal intermediates on every backend.
    flushed = 1e6 * float(jnp.finfo(jnp.float64 if dtype == jnp.float64 else jnp.float32).tiny)
    for i, x in enumerate(POINTS[which]):
        # XLA may read a subnormal input as 0, and then takes it for the kink there.
        subnormal = abs(float(x)) < float(jnp.finfo(dtype).tiny)
        if float(x) in activation.breakpoints or (subnormal and 0 in activation.breakpoints):
            continue
        truth = reference(activation.formula, float(x))
        for order in range(3):
            got, true = computed(name)[which][order][i], truth[order]
            if dtype == jnp.bfloat16:  # evaluated wider and rounded once
                allowed = 0.502 * eps * abs(true)
            else:  # a few ulp of the result, or of the input where the function itself magnifies that
                allowed = 8 * eps * (abs(true) + abs(mp.mpf(float(x)) * truth[order + 1]))
            if abs(true) * (1 + 2 * eps) > largest:
                assert got in (math.copysign(math.inf, true), float(mp.sign(true)) * largest)
            else:
                assert abs(mp.mpf(got) - true) <= allowed + flushed, (order, float(x), got, float(true))


@pytest.mark.parametrize("name", [n for n in COMPILED if n not in OSCILLATING])
def test_value_and_derivatives_take_their_limits_at_infinity(name):
    formula = activations.parse(name).formula
    expected = np.array([limits(formula, sign) for sign in (-1, 1)]).T
    for out in computed(name):
        for got, limit in zip(out, expected, strict=True):
            np.testing.assert_allclose(
                got[-3:-1], limit, rtol=4e-3 if out is computed(name)[2] else 1e-6, atol=1e-40
            )


@pytest.mark.parametrize("name", OSCILLATING)
def test_waves_have_no_limit_at_infinity(name):
    assert np.isnan(computed(name)[0][0][-3:-1]).all()


@pytest.mark.parametrize("name", COMPILED)
def test_nan_stays_nan(name):
    assert all(np.isnan(out[0][-1]) for out in computed(name))


@pytest.mark.parametrize("name", COMPILED)
def test_derivatives_at_breakpoints_are_one_of_the_limits_or_between(name):
    activation = activations.parse(name)
    for b in activation.breakpoints:
        left, right = both_sides(activation.formula, b)
        for order, out in enumerate(computed(name)[0]):
            got = out[list(POINTS[0]).index(b)]
            low, high = sorted(map(float, (left[order], right[order])))
            assert low - 1e-12 <= got <= high + 1e-12


# ---- facts ----


def both_sides(formula, x):
    """The jets just below and just above x."""
    with mp.workdps(60):
        return [reference(formula, mp.mpf(x) + side * mp.mpf(10) ** -40) for side in (-1, 1)]


@functools.cache
def critical_values(name):
    """Candidates for the extremes of f and of f': limits, both sides of breakpoints, interior extremes."""
    activation = activations.parse(name)
    formula = activation.formula
    found = {0: [], 1: []}
    if name not in OSCILLATING:
        for sign in (-1, 1):
            ends = limits(formula, sign)
            found[0].append((ends[0], sign * math.inf))
            found[1].append((ends[1], sign * math.inf))
    for b in activation.breakpoints:
        for values in both_sides(formula, b):
            found[0].append((values[0], b))
            found[1].append((values[1], b))
    grid = [mp.mpf(-12013 + 150 * i) / 1000 for i in range(161)]
    jets = [reference(formula, x) for x in grid]
    for order in (0, 1):
        for k in range(160):
            here, there = jets[k][order + 1], jets[k + 1][order + 1]
            between = any(grid[k] < b < grid[k + 1] for b in activation.breakpoints)
            if here * there < 0 and not between and abs(here) + abs(there) > 1e-25:
                g = lambda x, order=order: reference(formula, x)[order + 1]  # noqa: E731
                with mp.workdps(30):
                    x = mp.findroot(g, (grid[k], grid[k + 1]), solver="anderson", tol=1e-40, verify=False)
                found[order].append((reference(formula, x)[order], x))
    return found


@pytest.mark.parametrize("name", MEMBERS)
def test_range_and_slope_range_are_exact(name):
    activation = activations.parse(name)
    for order, interval in ((0, activation.range), (1, activation.slope_range)):
        values = [float(v) for v, _ in critical_values(name)[order]]
        values += [float(reference(activation.formula, x)[order]) for x in (-7.7, 7.7)]
        np.testing.assert_allclose(interval, (min(values), max(values)), rtol=4e-16, atol=1e-35)
    assert activation.lipschitz == max(map(abs, activation.slope_range))
    assert activation.exact


@pytest.mark.parametrize("name", MEMBERS)
def test_argmin_is_where_the_least_value_is_attained(name):
    activation = activations.parse(name)
    attained = [
        x
        for value, x in critical_values(name)[0]
        if abs(x) < math.inf and abs(float(value) - activation.range.lower) < 1e-15
    ]
    if activation.monotone or not attained:
        assert activation.argmin is None
    else:
        nearest = min(map(abs, map(float, attained)))
        np.testing.assert_allclose(abs(activation.argmin), nearest, rtol=4e-16, atol=1e-35)
        assert float(reference(activation.formula, activation.argmin)[0]) == pytest.approx(
            activation.range.lower, rel=1e-15
        )


@pytest.mark.parametrize("name", MEMBERS)
def test_shape_claims_hold(name):
    activation = activations.parse(name)
    f = lambda x: reference(activation.formula, x)  # noqa: E731
    grid = [mp.mpf(i) / 8 - mp.mpf(2.5) for i in range(41)]
    assert activation.monotone == (activation.slope_range.lower >= 0)
    assert activation.odd == all(abs(f(x)[0] + f(-x)[0]) < 1e-13 for x in grid)
    assert activation.homogeneous == all(abs(f(3 * x)[0] - 3 * f(x)[0]) < 1e-13 for x in grid)


@pytest.mark.parametrize("name", MEMBERS)
def test_kinks_are_where_the_slope_jumps(name):
    activation = activations.parse(name)
    jumps = []
    for b in activation.breakpoints:
        left, right = both_sides(activation.formula, b)
        assert abs(left[0] - right[0]) < 1e-30
        assert max(abs(p - q) for p, q in zip(left, right, strict=True)) > 1e-3  # not smooth there
        if abs(left[1] - right[1]) > 1e-30:
            jumps.append(b)
    assert tuple(jumps) == activation.kinks
    # And nowhere else: between breakpoints the slope changes no faster than the second derivative says.
    grid = [mp.mpf(i) / 10 - mp.mpf("8.013") for i in range(161)]
    for a, b in itertools.pairwise(grid):
        if not any(a < k < b for k in activation.breakpoints):
            (_, slope, bend, _), (_, slope_b, bend_b, _) = (reference(activation.formula, x) for x in (a, b))
            assert abs(slope_b - slope - (bend + bend_b) / 20) < 0.01


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_is_documented(name):
    activation = activations.parse(name)
    assert activation.reference
    assert (getattr(activations, name.partition("(")[0]).__doc__ or "").strip()


def test_every_member_is_public():
    assert set(activations.names()) <= set(activations.__all__)
    assert all(hasattr(activations, name) for name in activations.names())


# ---- properties for all inputs ----


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8, max_size=8)
)
def test_values_and_slopes_stay_in_their_ranges(xs):
    x = np.asarray(xs, np.float32)
    for name, (value, slope, bend) in zip(activations.names(), everything(x), strict=True):
        activation = activations.parse(name)
        for y, interval in ((value, activation.range), (slope, activation.slope_range)):
            slack = 1e-6 * max([1.0, *(abs(end) for end in interval if math.isfinite(end))])
            assert (np.asarray(y) >= interval.lower - slack).all(), name
            assert (np.asarray(y) <= interval.upper + slack).all(), name
        assert not np.isnan(bend).any(), name


@jax.jit
def everything(x):
    return [jet(activations.parse(name), x) for name in activations.names()]


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_value_and_slope_agrees_with_call_and_jvp(self):
        x = jnp.asarray([[-3.5, -1.0, -0.25], [0.5, 1.5, 4.0]])
        for name in ("relu", "tanh", "gelu", "mish", "squareplus", "leaky_relu(0.2)"):
            activation = activations.parse(name)
            value, slope = self.variant(activation.value_and_slope)(x)
            again, tangent = jax.jvp(activation, (x,), (jnp.full_like(x, 2.0),))
            chex.assert_trees_all_close((value, 2 * slope), (again, tangent), rtol=1e-6)
            chex.assert_trees_all_close(self.variant(activation)(x), value, rtol=1e-6)
            chex.assert_tree_all_finite((value, slope))


# ---- peers ----

PEERS = {
    "identity": (jax.nn.identity, None),
    "relu": (jax.nn.relu, "relu"),
    "leaky_relu": (jax.nn.leaky_relu, "leaky_relu"),
    "leaky_relu(0.3)": (lambda x: jax.nn.leaky_relu(x, 0.3), lambda t, x: t.nn.functional.leaky_relu(x, 0.3)),
    "abs": (jnp.abs, lambda t, x: t.abs(x)),
    "relu6": (jax.nn.relu6, "relu6"),
    "tanh": (jax.nn.tanh, lambda t, x: t.tanh(x)),
    "sigmoid": (jax.nn.sigmoid, lambda t, x: t.sigmoid(x)),
    "log_sigmoid": (jax.nn.log_sigmoid, "logsigmoid"),
    "softplus": (jax.nn.softplus, "softplus"),
    "softplus(2)": (None, lambda t, x: t.nn.functional.softplus(x, 2.0)),
    "elu": (jax.nn.elu, "elu"),
    "elu(0.3)": (lambda x: jax.nn.elu(x, 0.3), lambda t, x: t.nn.functional.elu(x, 0.3)),
    "celu": (jax.nn.celu, "celu"),
    "celu(2)": (lambda x: jax.nn.celu(x, 2.0), lambda t, x: t.nn.functional.celu(x, 2.0)),
    "selu": (jax.nn.selu, "selu"),
    "gelu": (lambda x: jax.nn.gelu(x, approximate=False), "gelu"),
    "gelu_tanh": (jax.nn.gelu, lambda t, x: t.nn.functional.gelu(x, approximate="tanh")),
    "silu": (jax.nn.silu, "silu"),
    "swish": (jax.nn.swish, "silu"),
    "mish": (jax.nn.mish, "mish"),
    "hard_tanh": (jax.nn.hard_tanh, "hardtanh"),
    "hard_sigmoid": (jax.nn.hard_sigmoid, "hardsigmoid"),
    "hard_silu": (jax.nn.hard_silu, "hardswish"),
    "soft_sign": (jax.nn.soft_sign, "softsign"),
    "squareplus": (jax.nn.squareplus, None),
    "sparse_plus": (jax.nn.sparse_plus, None),
    "erf": (jax.lax.erf, lambda t, x: t.erf(x)),
    "sin": (jnp.sin, lambda t, x: t.sin(x)),
    "cos": (jnp.cos, lambda t, x: t.cos(x)),
    "arctan": (jnp.arctan, lambda t, x: t.atan(x)),
    "asinh": (jnp.arcsinh, lambda t, x: t.asinh(x)),
}
GRID = np.random.default_rng(1).uniform(-8, 8, 400)


@functools.cache
def ours_and_jax():
    """Values and gradients at GRID in float64, as numpy arrays, by name."""

    @jax.jit
    def run(x):
        ours = {n: jet(activations.parse(n), x)[:2] for n in PEERS}
        return ours, {n: jet(f, x)[:2] for n, (f, _) in PEERS.items() if f}

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, run(jnp.asarray(GRID)))


def test_equal_to_jax_nn():
    ours, theirs = ours_and_jax()
    for name in theirs:
        # Absolute, at the size of the sums: jax.nn's forms cancel in the tails, ours do not.
        chex.assert_trees_all_close(ours[name], theirs[name], rtol=4e-15, atol=1e-13, custom_message=name)


@pytest.mark.parametrize(
    "name", ["relu", "leaky_relu", "relu6", "hard_tanh", "hard_sigmoid", "hard_silu", "elu", "selu"]
)
def test_slopes_at_kinks_are_those_of_jax_nn(name):
    for kink in activations.parse(name).breakpoints:
        assert jax.grad(activations.parse(name))(kink) == pytest.approx(float(jax.grad(PEERS[name][0])(kink)))


def test_equal_to_pytorch():
    torch = pytest.importorskip("torch")
    ours, _ = ours_and_jax()
    for name, (_, f) in PEERS.items():
        if f is None:
            continue
        x = torch.tensor(GRID, requires_grad=True)
        value = f(torch, x) if callable(f) else getattr(torch.nn.functional, f)(x)
        (slope,) = torch.autograd.grad(value.sum(), x)
        theirs = value.detach().numpy(), slope.numpy()
        atol = 6e-9 if name == "hard_sigmoid" else 1e-13  # PyTorch's sixth is a float32 there
        chex.assert_trees_all_close(ours[name], theirs, rtol=4e-15, atol=atol, custom_message=name)
