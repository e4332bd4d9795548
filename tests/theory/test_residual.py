"""Residual networks: closed forms, simulated walks, enumeration and networks of `jaxact.nn`."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flax import nnx

from jaxact import activations, nn, probes
from jaxact.theory import residual_trajectory, skip_open_probability

RELU = activations.relu
VARIANCE = 0.5 - 0.5 / math.pi  # of relu(z), z ~ N(0, 1)


def test_identity_is_the_same_network_in_both_orders():
    blocks = np.arange(6)
    for order in ("pre", "post"):
        found = residual_trajectory(activations.identity, 5, order=order, q=2.0, sigma_w=1.5, sigma_b=0.3)
        growth = 1 + 1.5**2
        fixed = -(0.3**2) / 1.5**2
        np.testing.assert_allclose(found.q, fixed + (2 - fixed) * growth**blocks, rtol=1e-11)
        np.testing.assert_allclose(found.gradient, growth ** blocks[::-1], rtol=1e-11)
        np.testing.assert_allclose(found.mean, 0, atol=1e-11)
        np.testing.assert_allclose(found.active, 1, rtol=1e-11)
        np.testing.assert_allclose(found.skip_open, 1, rtol=1e-11)


def test_relu_without_norm_before_the_branch_grows_exponentially():
    found = residual_trajectory(RELU, 7, order="pre", q=3.0, sigma_w=2**0.5, branch_scale=7**-0.5)
    np.testing.assert_allclose(found.q, 3 * (1 + 1 / 7) ** np.arange(8), rtol=1e-12)
    np.testing.assert_allclose(found.gradient, (1 + 1 / 7) ** np.arange(8)[::-1], rtol=1e-12)
    np.testing.assert_allclose(found.active, 0.5, rtol=1e-12)


@pytest.mark.parametrize("norm", ["batch", "layer", "rms"])
def test_relu_behind_a_norm_grows_as_a_power_of_depth(norm):
    q, c, w, b, depth = 1.7, 0.2, 1.3, 0.4, 2000
    found = residual_trajectory(RELU, depth, order="pre", norm=norm, q=q, c=c, sigma_w=w, sigma_b=b)
    blocks = np.arange(depth + 1)
    variance = q * (1 - c) + blocks * w**2 * VARIANCE
    length = q + blocks * (w**2 / 2 + b**2)
    divisor = variance if norm == "batch" else length
    factors = 1 + 0.5 * w**2 / divisor[:-1]
    np.testing.assert_allclose(found.q, length, rtol=1e-12)
    np.testing.assert_allclose(found.gradient, np.cumprod([1, *factors[::-1]])[::-1], rtol=1e-11)
    if norm == "batch":
        np.testing.assert_allclose(found.batch_variance, variance, rtol=1e-12)
        power = math.log2(found.gradient[1000])  # of 2000 blocks over 1000, both up to block 2000
        np.testing.assert_allclose(power, math.pi / (math.pi - 1), rtol=2e-3)
    else:
        assert np.isnan(found.batch_variance).all()


def test_relu_walk_from_zero_is_lindleys():
    found = residual_trajectory(RELU, 12, order="post", norm="batch", q=1e-12, sigma_w=1.0)
    blocks = np.arange(1, 13)
    # Spitzer's identity: the queue after n steps has the mean sum_k E max(S_k, 0) / k, S_k ~ N(0, k).
    np.testing.assert_allclose(found.mean[1:], np.cumsum(1 / np.sqrt(2 * math.pi * blocks)), rtol=1e-11)
    np.testing.assert_allclose(found.skip_open[1:], skip_open_probability(blocks), rtol=1e-11)
    # The queue is empty after n steps as often as S_1, ..., S_n < 0.
    np.testing.assert_allclose(found.active, 1 - skip_open_probability(blocks), rtol=1e-11)


@pytest.mark.parametrize(
    ("name", "norm", "c"), [("gelu", "batch", 0.4), ("hard_tanh", None, 0.0), ("relu", "rms", 0.0)]
)
def test_post_activation_law_agrees_with_simulated_walks(name, norm, c):
    activation, depth, num = activations.parse(name), 6, 400_000
    q, w, b, a = 0.8, 1.2, 0.5, 0.7
    found = residual_trajectory(
        activation, depth, order="post", norm=norm, q=q, c=c, sigma_w=w, sigma_b=b, branch_scale=a
    )
    rng = np.random.default_rng(0)
    shared = np.sqrt(c * q) * rng.standard_normal(num)
    pair = [
        shared + np.sqrt((1 - c) * q) * rng.standard_normal(num) for _ in range(2)
    ]  # two inputs, one unit
    slopes, factors = [], []
    for block in range(depth):
        h = np.concatenate(pair)
        length, variance = np.mean(h**2), np.mean(h**2) - np.mean(pair[0] * pair[1])
        branch = w**2 * length + b**2
        step = a if norm else a * branch**0.5
        factors.append(a**2 * w**2 / {None: 1, "batch": w**2 * variance, "rms": branch}[norm])
        u = [each + step * rng.standard_normal(num) for each in pair]
        pair = [np.asarray(activation(each)) for each in u]
        slopes.append(np.asarray(activation.derivative(u[0])) ** 2)
        tolerance = 6 / num**0.5
        h = np.concatenate(pair)
        np.testing.assert_allclose(np.mean(h**2), found.q[block + 1], rtol=2 * tolerance)
        np.testing.assert_allclose(np.mean(h), found.mean[block + 1], atol=2 * tolerance)
        np.testing.assert_allclose(np.mean(slopes[-1] != 0), found.active[block], atol=tolerance)
        np.testing.assert_allclose(
            np.mean(np.prod(slopes, 0) != 0), found.skip_open[block + 1], atol=tolerance
        )
        if norm == "batch":
            variance = np.mean(h**2) - np.mean(pair[0] * pair[1])
            np.testing.assert_allclose(variance, found.batch_variance[block + 1], rtol=3 * tolerance)
    # Renewal: a gradient goes down the skip alone to some block, enters its branch and is fresh from there on.
    entering = np.zeros(depth)
    for start in reversed(range(depth)):
        skip = np.mean(np.cumprod(slopes[start:], 0), 1)  # through 1, 2, ... blocks
        renewed = sum(skip[end - start - 1] * factors[end] * entering[end] for end in range(start + 1, depth))
        entering[start] = skip[-1] + renewed
        np.testing.assert_allclose(
            entering[start] * (1 + factors[start]), found.gradient[start], rtol=4 * tolerance
        )


def network(stage, width, depth, batch_size):
    """Two measurements (key, scale of x) of `jaxact.nn`: squared gradients [depth + 1], and the `Trace`."""
    make = partial(stage, width, RELU, norm=nnx.BatchNorm, sigma_w=2**0.5)

    def draw(key):
        key_params, key_x, key_loss = jax.random.split(key, 3)
        graphdef, state = nnx.split(nn.Stack(make, depth, rngs=nnx.Rngs(key_params)))
        x, readout = (jax.random.normal(each, (batch_size, width)) for each in (key_x, key_loss))
        return lambda: nnx.merge(graphdef, state, copy=True), x, readout

    @jax.jit
    def gradients(key, scale):
        stack, x, readout = draw(key)
        taps = jnp.zeros((depth, batch_size, width))
        rest, first = probes.gradient_norms(
            lambda taps, x: jnp.sum(readout * stack()(x[0], taps=taps)), taps, scale * x[None]
        )
        return jnp.concatenate([first, rest]) ** 2 / rest[-1] ** 2

    @jax.jit
    def trace(key, scale):
        stack, x, _ = draw(key)
        return stack().trace(scale * x)

    return gradients, trace


def test_96_preactivation_blocks_with_batch_norm_within_ten_percent():
    depth = 96
    gradients, _ = network(nn.PreAct, 384, depth, 192)
    measured = np.mean([np.log(gradients(jax.random.key(seed), 1.0)) for seed in range(2)], 0)
    found = residual_trajectory(RELU, depth, order="pre", norm="batch", sigma_w=2**0.5)
    np.testing.assert_allclose(np.exp(measured), found.gradient, rtol=0.1)
    assert found.gradient[0] > 300  # so it is no small thing to be right about


def test_postactivation_blocks_with_batch_norm():
    depth = 8
    gradients, trace = network(nn.PostAct, 384, depth, 192)
    keys = jax.random.split(jax.random.key(0), 3)
    # From a first state near 0 the share of open skips is Sparre Andersen's.
    preactivation = np.concatenate([trace(key, 0.05).preactivation for key in keys], 1)
    share = np.mean(np.logical_and.accumulate(preactivation > 0, 0), (1, 2))
    np.testing.assert_allclose(share, skip_open_probability(np.arange(1, depth + 1)), atol=0.01)
    # From a Gaussian one the walk's law, and its gradients to a few per cent (of order 1 / batch and 1 / width).
    found = residual_trajectory(RELU, depth, order="post", norm="batch", sigma_w=2**0.5)
    measured = np.mean([np.log(gradients(key, 1.0)) for key in keys], 0)
    np.testing.assert_allclose(np.exp(measured), found.gradient, rtol=0.05)
    traces = [trace(key, 1.0) for key in keys]
    hidden = np.concatenate([each.hidden for each in traces], 1)
    preactivation = np.concatenate([each.preactivation for each in traces], 1)
    np.testing.assert_allclose(np.mean(hidden**2, (1, 2)), found.q[1:], rtol=0.02)
    np.testing.assert_allclose(np.mean(hidden, (1, 2)), found.mean[1:], rtol=0.01)
    np.testing.assert_allclose(np.mean(preactivation > 0, (1, 2)), found.active, atol=0.01)
    share = np.mean(np.logical_and.accumulate(preactivation > 0, 0), (1, 2))
    np.testing.assert_allclose(share, found.skip_open[1:], atol=0.01)


def test_skip_open_probability_counts_signed_permutations():
    # Of the orders and signs of any steps in general position, exactly this share keeps all partial sums positive.
    steps = np.sqrt([2.0, 3.0, 5.0, 7.0, 11.0])
    for num in range(1, 6):
        orders = np.array(list(itertools.permutations(steps[:num])))
        signs = np.array(list(itertools.product([-1, 1], repeat=num)))
        sums = np.cumsum(orders[:, None] * signs, -1)
        assert skip_open_probability(num) == np.mean((sums > 0).all(-1))


def test_skip_open_probability_to_rounding():
    blocks = [0, 1, 2, 62, 63, 64, 65, 100, 1000, 10**6, 10**12]
    with mpmath.workdps(40):
        expected = [
            float(mpmath.gamma(n + mpmath.mpf(1) / 2) / mpmath.gamma(n + 1) / mpmath.sqrt(mpmath.pi))
            for n in blocks
        ]
    np.testing.assert_allclose(skip_open_probability(np.array(blocks)), expected, rtol=2e-15)
    assert isinstance(skip_open_probability(3), float)
    assert skip_open_probability(np.ones((2, 3), int)).shape == (2, 3)


@pytest.mark.parametrize("n", [-1, 1.0, [1, -2], "3", True])
def test_skip_open_probability_refuses(n):
    with pytest.raises(ValueError, match="`n` must hold nonnegative integers"):
        skip_open_probability(n)


def test_bad_arguments_are_refused_by_name():
    good = {"depth": 3, "order": "post", "sigma_w": 1.0}
    for name, values in {
        "depth": (0, 1.0, True),
        "order": ("before", None),
        "norm": ("group", nnx.BatchNorm),
        "q": (0.0, -1.0, math.inf),
        "c": (1.0, -0.1, math.nan),
        "sigma_w": (-1.0, math.nan, 0.0),
        "sigma_b": (-1.0,),
        "branch_scale": (-1.0, 1e-9),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"`{name}`"):
                residual_trajectory(RELU, **good | {name: value})
    with pytest.raises(TypeError, match="must know its kinks"):
        residual_trajectory(jnp.tanh, **good)
    for order in ("pre", "post"):
        with pytest.raises(ValueError, match=r"`depth` must end before .* at block"):
            residual_trajectory(RELU, 200, order=order, sigma_w=1e3)


@pytest.mark.parametrize("order", ["pre", "post"])
def test_what_oscillates_too_fast_is_refused(order):
    with pytest.raises(ValueError, match="got sin, whose squares"):
        residual_trajectory(activations.sin, 2, order=order, sigma_w=60.0)
