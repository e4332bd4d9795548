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


def together(w):
    """What entries with a mean m in common add to E (x W)^2, over m^2: in the mean over units, from the sums of W."""
    return float(np.mean(np.sum(w, 0) ** 2) - np.mean(np.sum(w**2, 0)))


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
    for w, (before, row) in zip(params[1:], pairwise(rows), strict=True):
        scale = row.weight_scale / 2
        both = scale + together(np.asarray(w)) / (2 * np.pi)  # (E relu(z))^2 = E z^2 / (2 pi)
        np.testing.assert_allclose(
            row.predicted_second_moment / before.predicted_second_moment, both, rtol=5e-3
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
    for w, (before, row) in zip(params[1:], pairwise(rows), strict=True):
        found = theory.moments(act, variance=before.predicted_second_moment)
        common = together(np.asarray(w)) * found.mean**2
        second = row.weight_scale * found.second_moment + common
        np.testing.assert_allclose(row.predicted_second_moment, second, rtol=1e-3)
        gain = row.weight_scale * found.slope_second_moment
        np.testing.assert_allclose(before.predicted_gradient_factor**2, gain, rtol=1e-3)
        c = theory.correlation_map(
            act, before.predicted_cosine, q=before.predicted_second_moment, sigma_w=1.0
        )
        product = row.weight_scale * c * found.second_moment + common
        # The mean over pairs whose cosines differ by 1 / sqrt(64), which the map bends.
        np.testing.assert_allclose(row.predicted_cosine, product / second, atol=0.01)


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


# --- Against many draws -----------------------------------------------------------------------------------------------


def check_on_average(fn, draw, x, *, num_draws=8, share=0.1, of_gradient=None):
    """What is predicted of one draw lies within `share` of the mean over many, or two standard errors."""
    draws = [draw(100 * k) for k in range(num_draws)]
    rows = rows_of(fn, draws[0], x)
    numbers = jax.jit(jax.vmap(jaxact.diagnosis.watch(fn, draws[0], x), (0, None)))
    found = numbers(jax.tree.map(lambda *leaves: jnp.stack(leaves), *draws), x)
    second, gradient = (np.log(found[name]) for name in ("second_moment", "gradient_second_moment"))
    factor = (gradient[:, :-1] - gradient[:, 1:]) / 2
    for k, row in enumerate(rows):
        assert row.reason == "", row
        checked = [("second moment", row.predicted_second_moment, second[:, k], share)]
        if k + 1 < len(rows):
            checked.append(
                ("gradient factor", row.predicted_gradient_factor, factor[:, k], of_gradient or share)
            )
        for name, predicted, logs, within in checked:
            error = np.std(logs, ddof=1) / num_draws**0.5
            told = (row.name, name, predicted, np.exp(logs))
            assert abs(np.log(predicted) - logs.mean()) < within + 2 * error, told
            assert error < within, ("too few draws to tell", *told)


def conv(x, w, stride=1, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (stride,) * 2, "SAME", dimension_numbers=numbers, **options)


def pooled(h, window, stride):
    shape, strides = (1, window, window, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, shape, strides, "SAME")


def test_pools_and_convolutions_of_every_kind_are_predicted():
    """Strided, pooled in windows that overlap or not, grouped, one filter a channel, transposed."""
    n, relu = 96, jax.nn.relu

    def fn(params, x):
        h = relu(conv(x, params[0], stride=2))
        h = pooled(relu(conv(h, params[1])), 2, 2)
        h = pooled(relu(conv(h, params[2], feature_group_count=4)), 3, 2)
        h = relu(conv(h, params[3], feature_group_count=n))
        numbers = ("NHWC", "HWIO", "NHWC")
        h = relu(jax.lax.conv_transpose(h, params[4], (2, 2), "SAME", dimension_numbers=numbers))
        return conv(h, params[5])

    def draw(k):
        shapes = [(3, 3, 3, n), (3, 3, n, n), (3, 3, n // 4, n), (3, 3, 1, n), (4, 4, n, n), (3, 3, n, n)]
        fans = [float(np.prod(shape[:3])) for shape in shapes]
        return [
            (2 / fan) ** 0.5 * normal(k + j, *shape)
            for j, (shape, fan) in enumerate(zip(shapes, fans, strict=True))
        ]

    check_on_average(fn, draw, normal(7, 4, 32, 32, 3), num_draws=12)


def test_the_gradient_of_residual_blocks_with_the_activation_after_the_sum_is_predicted():
    """Of a unit that is above 0 more comes back, for it is so in the next sums as well."""

    def fn(params, x):
        h = jax.nn.relu(x @ params[0])
        for v, w in params[1:]:
            h = jax.nn.relu(h + jax.nn.relu(h @ v) @ w)
        return h

    def draw(k):
        pairs = [(weights(k + 2 * b, 256, 256), weights(k + 2 * b + 1, 256, 256)) for b in range(4)]
        return [weights(k + 50, 256, 256), *pairs]

    check_on_average(fn, draw, normal(9, 32, 256), num_draws=14, of_gradient=0.05)


# Rows of a few tokens count as the mean row does: some 10 % in the second masked average.
@pytest.mark.parametrize(("is_causal", "share"), [(False, 0.1), (True, 0.15)])
def test_masked_attention_and_attention_before_a_mean_over_tokens_are_predicted(is_causal, share):
    """Before a mean the gradients of all tokens are alike: they add up in values and keys."""
    mask = np.tril(np.ones((12, 12), bool)) if is_causal else np.ones((12, 12), bool)

    def fn(params, x):
        for p in params:
            q, k, v = ((layer_norm(x) @ p[name]).reshape(*x.shape[:2], 4, -1) for name in "qkv")
            scores = jnp.einsum("bihd,bjhd->bhij", q, k) / (256 // 4) ** 0.5
            shares = jax.nn.softmax(jnp.where(mask, scores, -1e30))
            x = x + jnp.einsum("bhij,bjhd->bihd", shares, v).reshape(x.shape) @ p["o"]
        return x if is_causal else x.mean(1)

    def draw(k):
        return [{name: weights(k + 10 * b + i, 256, 256) for i, name in enumerate("qkvo")} for b in range(2)]

    check_on_average(fn, draw, normal(9, 8, 12, 256), share=share)


def test_states_that_a_loop_stacks_are_predicted():
    def fn(params, x):
        def step(h, x):
            h = jnp.tanh(h @ params["h"] + x @ params["x"])
            return h, h

        return jax.lax.scan(step, jnp.zeros((16, 256)), x.swapaxes(0, 1))[1] @ params["out"]

    def draw(k):
        return {"h": weights(k, 256, 256), "x": weights(k + 1, 8, 256), "out": weights(k + 2, 256, 256)}

    check_on_average(fn, draw, normal(9, 16, 5, 8))


def test_sums_over_positions_go_by_the_weights_that_there_are():
    """With 6 positions and 10 hidden ones a draw is no mean: Sum_p W_pq^2 and (Sum_p W_pq)^2 of the draw itself."""
    first, out = weights(1, 6, 10), weights(2, 512, 512)
    x = normal(9, 16, 6, 512) + 0.5
    row = rows_of(lambda p, x: jnp.einsum("bpf,pq->bqf", x @ p[1], p[0]), [first, out], x)[1]
    w, h = np.asarray(first, np.float64), np.asarray(x @ out, np.float64)
    alike = (np.mean(h.sum(1) ** 2) - np.mean(h**2) * 6) / 30  # of two positions
    found = np.mean(w**2) * 6 * (np.mean(h**2) - alike) + np.mean(w.sum(0) ** 2) * alike
    np.testing.assert_allclose(row.predicted_second_moment, found, rtol=0.05)
    np.testing.assert_allclose(row.second_moment, found, rtol=0.05)


def test_what_is_thrown_away_takes_no_gradient_and_a_row_that_starts_again_has_no_predicted_factor():
    params = [weights(k, 256, 256) for k in range(3)]

    def factor(is_used):
        def fn(params, x):
            h = x @ params[0]
            ordered = jnp.sort(h, -1)  # has no rule
            return jnp.tanh(ordered if is_used else h) @ params[1] @ params[2]

        row = rows_of(fn, params, normal(9, 16, 256))[0]
        return row.predicted_gradient_factor / row.gradient_factor

    assert factor(is_used=False) == pytest.approx(1, rel=0.1)
    assert np.isnan(factor(is_used=True))
