"""What is predicted, against closed forms, against theory's maps, and against what is measured at width 512."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxact
from jaxact import activations, theory

KEY = jax.random.key(1)
WIDTH = 512


def normal(number, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, number), shape)


def weights(number, *shape, scale=1.0):
    return scale * normal(number, *shape) / np.prod(shape[-2:-1]) ** 0.5


def centred(number, *shape, scale=1.0):
    """Without the mean of about 1 / width that finitely many weights have, and theory has not."""
    w = weights(number, *shape, scale=scale)
    return w - w.mean()


def plain(act):
    def fn(params, x):
        x = x @ params[0]
        for w in params[1:]:
            x = act(x) @ w
        return x

    return fn


def rows_of(fn, params, x, **options):
    return jaxact.diagnose(fn, params, x, jacobian=False, **options).rows


def check_within(rows, share, gradient=None):
    """Second moment and gradient factor of every row that is predicted: which must be all."""
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        assert row.reason == "", row
        np.testing.assert_allclose(
            row.predicted_second_moment, row.second_moment, rtol=share, err_msg=row.name
        )
        if after is not None:
            told = (row.predicted_gradient_factor, row.gradient_factor)
            np.testing.assert_allclose(*told, rtol=gradient or share, err_msg=row.name)


def test_a_relu_halves_the_second_moment_and_the_gradient():
    params = [centred(k, 64, 64, scale=s) for k, s in enumerate((1.0, 1.3, 0.8))]
    rows = rows_of(plain(jax.nn.relu), params, normal(9, 40, 64))
    for before, row in pairwise(rows):
        scale = row.weight_scale / 2
        np.testing.assert_allclose(
            row.predicted_second_moment / before.predicted_second_moment, scale, rtol=5e-3
        )
        # squared: rows / columns is 1
        np.testing.assert_allclose(before.predicted_gradient_factor**2, scale, rtol=5e-3)


@pytest.mark.parametrize("name", ["tanh", "leaky_relu(0.1)"])
def test_rows_follow_theorys_maps(name):
    act = activations.parse(name)
    params = [centred(k, 64, 64, scale=1.4) for k in range(3)]
    x = normal(9, 40, 64)
    x = x / jnp.sqrt(jnp.mean(x**2, 1, keepdims=True))  # one second moment for all inputs
    rows = rows_of(plain(act), params, x)
    for before, row in pairwise(rows):
        found = theory.moments(act, variance=before.predicted_second_moment)
        second = row.weight_scale * found.second_moment
        np.testing.assert_allclose(row.predicted_second_moment, second, rtol=1e-3)
        gain = row.weight_scale * found.slope_second_moment
        np.testing.assert_allclose(before.predicted_gradient_factor**2, gain, rtol=1e-3)
        c = theory.correlation_map(
            act, before.predicted_cosine, q=before.predicted_second_moment, sigma_w=1.0
        )
        # The mean over pairs whose cosines differ by 1 / sqrt(64), which the map bends.
        np.testing.assert_allclose(row.predicted_cosine, c, atol=0.01)


@pytest.mark.parametrize("act", [jax.nn.relu, jax.nn.gelu])
def test_an_mlp_with_biases_is_predicted(act):
    def fn(params, x):
        for w, b in params:
            x = act(x @ w + b)
        return x

    params = [(weights(k, WIDTH, WIDTH, scale=1.4), 0.2 * normal(20 + k, WIDTH)) for k in range(5)]
    rows = rows_of(fn, params, normal(9, 64, WIDTH) + 0.5)
    check_within(rows, 0.1)
    for row in rows:
        np.testing.assert_allclose(row.predicted_cosine, row.cosine, atol=0.05)


def test_fifty_layers_of_a_loop_are_predicted():
    def fn(w, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h) @ w, None), x, w)[0]

    check_within(rows_of(fn, weights(0, 50, WIDTH, WIDTH, scale=1.5), normal(1, 32, WIDTH)), 0.1)


def test_a_preactivation_residual_network_is_predicted():
    def fn(params, x):
        h = x @ params[0]
        for v, w in params[1:]:
            h = h + jax.nn.relu(jax.nn.relu(h) @ v) @ w
        return h

    pairs = [(weights(k, WIDTH, WIDTH, scale=1.4), weights(10 + k, WIDTH, WIDTH)) for k in range(4)]
    check_within(rows_of(fn, [weights(30, WIDTH, WIDTH), *pairs], normal(9, 64, WIDTH)), 0.1)


def layer_norm(x):
    return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-6)


def transformer(p, x, *, pre, heads=8):
    h = layer_norm(x) if pre else x
    q, k, v = ((h @ p[name]).reshape(*x.shape[:2], heads, -1) for name in "qkv")
    scores = jnp.einsum("bihd,bjhd->bhij", q, k) / (WIDTH // heads) ** 0.5
    mixed = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores), v).reshape(x.shape)
    x = x + mixed @ p["o"]
    x = x if pre else layer_norm(x)
    x = x + jax.nn.gelu((layer_norm(x) if pre else x) @ p["u"]) @ p["d"]
    return x if pre else layer_norm(x)


# The gradients of different tokens, which attention makes alike, count as independent at its values: 12 % post-norm.
@pytest.mark.parametrize(("pre", "gradient"), [(True, 0.1), (False, 0.15)])
def test_transformer_blocks_are_predicted(pre, gradient):
    def block(number):
        p = {name: weights(10 * number + k, WIDTH, WIDTH) for k, name in enumerate("qkvo")}
        up, down = weights(10 * number + 5, WIDTH, 2 * WIDTH), weights(10 * number + 6, 2 * WIDTH, WIDTH)
        return p | {"u": up, "d": down}

    def fn(params, x):
        for p in params:
            x = transformer(p, x, pre=pre)
        return x

    rows = rows_of(fn, [block(0), block(1)], normal(99, 6, 12, WIDTH))
    assert [row.kind for row in rows[:5]] == ["dense"] * 3 + ["attention"] * 2
    check_within(rows, 0.1, gradient=gradient)


class Images(nnx.Module):
    """Three convolutions with batch norm, and a head on the mean over positions."""

    def __init__(self, width, rngs):
        self.stem = nnx.Conv(3, width, (3, 3), rngs=rngs)
        self.convs = nnx.List([nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs) for _ in range(3)])
        self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs) for _ in range(3)])
        self.head = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        x = self.stem(x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = conv(nnx.relu(norm(x)))
        return self.head(x.mean((1, 2)))


def test_a_convolutional_network_with_batch_norm_is_predicted():
    module = Images(WIDTH, nnx.Rngs(0))
    module.eval()
    found = jaxact.diagnose(module, normal(3, 12, 6, 6, 3), jacobian=False)
    assert [row.name for row in found.rows][:2] == ["stem.kernel", "convs[0].kernel"]
    check_within(found.rows[:-1], 0.1)


def test_what_has_no_rule_is_measured_only_and_the_prediction_goes_on():
    def fn(params, x):
        h = jnp.sort(x @ params[0], -1)
        return jnp.tanh(h @ params[1]) @ params[2]

    first, row, last = rows_of(fn, [weights(k, WIDTH, WIDTH) for k in range(3)], normal(9, 32, WIDTH))
    assert "sort" in row.reason
    assert np.isnan(row.predicted_second_moment)
    assert np.isnan(first.predicted_gradient)
    np.testing.assert_allclose(last.predicted_second_moment, last.second_moment, rtol=0.1)
    np.testing.assert_allclose(row.predicted_gradient, row.gradient, rtol=0.1)


def test_weights_used_the_other_way_round_are_measured_only():
    w = weights(0, WIDTH, WIDTH)
    rows = rows_of(lambda w, x: jnp.tanh(x @ w) @ w.T, w, normal(9, 8, WIDTH))
    assert [bool(row.reason) for row in rows] == [False, True]


@pytest.mark.parametrize("axes", [(0,), (0, 1, 2)])
def test_batch_norm_by_the_batchs_own_statistics_is_predicted(axes):
    def norm(z):
        mean = z.mean(axes)
        return (z - mean) * jax.lax.rsqrt((z * z).mean(axes) - mean**2 + 1e-5)

    def product(x, w):
        if len(axes) == 1:
            return x @ w
        return jax.lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def fn(params, x):
        for w in params[:-1]:
            x = jax.nn.relu(norm(product(x, w)))
        return product(x, params[-1])

    if len(axes) == 1:
        params, x = [weights(k, WIDTH, WIDTH) for k in range(5)], normal(9, 96, WIDTH) + 0.5
    else:
        params = [normal(k, 3, 3, 128, 128) / (9 * 128) ** 0.5 for k in range(3)]
        x = normal(9, 24, 9, 9, 128) + 0.5
    check_within(rows_of(fn, params, x), 0.1)


def test_what_is_not_normal_is_followed_through_sums():
    """A residual network with its activation after the sum: half of what is added is nonnegative."""

    def fn(params, x):
        h = jax.nn.relu(x @ params[0])
        for w in params[1:]:
            h = jax.nn.relu(h + h @ w)
        return h @ params[0]

    rows = rows_of(fn, [weights(k, WIDTH, WIDTH, scale=0.5) for k in range(5)], normal(9, 64, WIDTH))
    # The gradient of a unit that is above 0 comes through the sum more often than that of others: not followed.
    check_within(rows[:-1], 0.04, gradient=0.15)
    assert rows[-1].reason == ""  # the first weights again, the same way round
