import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxact import activations
from jaxact.lipschitz import Ball, certify
from jaxact.trace import Affine, Dense, Diagonal, Elementwise, Identity, Linear, evaluate, lower

_RNG = np.random.default_rng(0)
W = [_RNG.normal(size=(6, 6)) / 3 for _ in range(4)]
B = _RNG.normal(size=(4, 6))
STACKED = np.stack(W)


def kinds(fn, size=6):
    return [type(step) for step in lower(fn, jnp.zeros(size)).program.steps]


def conv(x, kernel, **options):
    return lax.conv_general_dilated(
        x[None],
        jnp.asarray(kernel, x.dtype),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **{"window_strides": (1, 1), **options},
    )[0]


def image(fn):
    return lambda x: fn(jnp.tanh(x).reshape(3, 2, 1))


def scanned(x):
    def body(h, weights):
        w, b = weights
        h = jnp.tanh(h @ w + b)
        return h, h

    h, hs = lax.scan(body, x, (STACKED, B))
    return h + hs[1] - hs.mean(0)


def scanned_backwards(x):
    return lax.scan(lambda h, w: (jnp.sin(h @ w), None), x, STACKED, reverse=True)[0]


def looped(x):
    def body(i, carry):
        h, seen = carry
        return h + jax.nn.relu(h @ jnp.asarray(STACKED)[i]), seen.at[i].set(h)

    h, seen = lax.fori_loop(0, jnp.int32(3), body, (x, jnp.zeros((4, 6), x.dtype)))
    return h + seen[1]


def recurrent(x):
    return lax.scan(lambda h, u: (jnp.tanh(h * 0.5 + u), h), jnp.zeros(3), x.reshape(2, 3))[0]


@jax.custom_vjp
def backward_is_custom(x):
    return jnp.arctan(x @ W[0])


backward_is_custom.defvjp(lambda x: (backward_is_custom(x), x), lambda x, c: (c,))


def printed(x):
    jax.debug.print("x[0] = {}", x[0])
    return 2 * x


def batch_norm(x):
    return (x - B[0]) * lax.rsqrt(B[1] ** 2 + 1e-5) * B[2] + B[3]


def attention(x):
    q, k, v = (x.reshape(2, 3) @ w[:3, :3] for w in W[:3])
    return jax.nn.softmax(q @ k.T) @ v


KERNEL = _RNG.normal(size=(2, 2, 1, 2))
FUNCTIONS = {
    "dense": lambda x: jax.nn.gelu(x @ W[0] + B[0]) @ W[1] + B[1],
    "batch norm": lambda x: jax.nn.silu(batch_norm(x @ W[0])) @ W[1],
    "matrix on the left": lambda x: W[0] @ jnp.sin(W[1].T @ x) - x,
    "einsum": lambda x: jnp.einsum("ab,cb->ca", x.reshape(2, 3), W[0][:, :3]),
    "convolution": image(partial(conv, kernel=KERNEL, padding="SAME")),
    "strides": image(partial(conv, kernel=KERNEL, padding="SAME", window_strides=(2, 1))),
    "dilation": image(partial(conv, kernel=KERNEL, padding=((2, 2), (1, 2)), rhs_dilation=(2, 1))),
    "transposed": image(partial(conv, kernel=KERNEL, padding=((0, 1), (1, 0)), lhs_dilation=(2, 2))),
    "groups": lambda x: conv(x.reshape(1, 3, 2), KERNEL, padding="SAME", feature_group_count=2),
    "mean pooling": image(lambda x: lax.reduce_window(x, 0.0, lax.add, (2, 2, 1), (1, 1, 1), "SAME") / 4),
    "maximum pooling": image(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2, 1), (2, 1, 1), "SAME")),
    "maximum": lambda x: (x @ W[0]).max() - x.reshape(2, 3).min(0),
    "maximum of two": lambda x: jnp.maximum(x @ W[0], jnp.minimum(x, B[0])),
    "moves": lambda x: jnp.concatenate([x[::-1], jnp.roll(x, 2)[1:3], jnp.pad(x.reshape(2, 3).T, 1).ravel()]),
    "gather": lambda x: x[jnp.array([0, 2, 2, 5])] + lax.dynamic_slice(x, (1,), (4,)),
    "cumulative": lambda x: jnp.cumsum(x) - jnp.repeat(x[:2], 3),
    "scatter": lambda x: jnp.zeros(8).at[jnp.array([1, 4, 4])].add(x[:3]).at[0].set(x[5]),
    "unstack": lambda x: jnp.tanh(jnp.unstack(x.reshape(2, 3), axis=1)[1]) - x[2:4],
    "split": lambda x: jnp.tanh(jnp.split(x, 3)[1]) + jnp.split(x, 3)[2],
    "masked": lambda x: jnp.where(B[0] > 0, x, jnp.tanh(x @ W[0])),
    "scan": scanned,
    "reversed scan": scanned_backwards,
    "loop": looped,
    "recurrence": recurrent,
    "switch": lambda x: lax.switch(jnp.int32(1), [jnp.sin, jnp.cos], x @ W[0]),
    "selected": lambda x: activations.select([activations.relu, activations.mish], 1)(x @ W[0]),
    "remat": lambda x: jax.checkpoint(lambda h: jnp.tanh(h @ W[0]))(x) + jax.jit(jnp.sin)(x),
    "custom_vjp": lambda x: backward_is_custom(x) * 2,
    "prelu": lambda x: jnp.where(x > 0, x, B[0] * x) @ W[0],
    "learned swish": lambda x: x * jax.nn.sigmoid(B[0] * x),
    "bias in front": lambda x: jax.nn.relu(x + B[0]) + jax.nn.relu(-x + B[1]) * B[2],
    "pytree": lambda x: {"a": jnp.sin(x), "b": [x.sum(), jnp.arange(3)]},
    "constant": lambda x: jnp.ones(3),
    "input": lambda x: x,
    "square": lambda x: (x @ W[0]) ** 2 + jnp.square(x).sum(),
    "product": lambda x: jnp.tanh(x @ W[0]) * (x @ W[1]) / (2 + jnp.cos(x @ W[2])),
    "layer norm": lambda x: (x - x.mean()) * lax.rsqrt(jnp.var(x) + 1e-2) * B[0],
    "softmax": lambda x: jax.nn.softmax(3 * x.reshape(2, 3), axis=0),
    "log softmax": lambda x: jax.nn.log_softmax(x.reshape(2, 3)),
    "logsumexp": lambda x: jax.nn.logsumexp(x.reshape(2, 3), axis=1, keepdims=True) * x.reshape(2, 3),
    "attention": attention,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_program_computes_the_function(name):
    fn = FUNCTIONS[name]
    lowered = lower(fn, jnp.zeros(6))
    assert lowered.exact
    for x in np.random.default_rng(1).normal(size=(2, 6)):
        with jax.enable_x64(True):
            leaves = jax.tree.leaves(fn(jnp.asarray(x)))
        kept = [np.ravel(leaf) for leaf, depends in zip(leaves, lowered.depends, strict=True) if depends]
        expected = np.concatenate(kept) if kept else np.zeros(1)
        np.testing.assert_allclose(evaluate(lowered.program, x), expected, rtol=1e-12, atol=1e-12)


def test_affine_operations_become_one_matrix():
    def fn(x):
        h = batch_norm(x @ W[0] + B[0]).reshape(2, 3).T
        return jnp.concatenate([h, 2 * h[:1]]).sum(1) - x[:4]

    (step,) = lower(fn, jnp.zeros(6)).program.steps
    ((_, operator),) = step.terms
    with jax.enable_x64(True):
        jacobian = jax.jacobian(fn)(jnp.zeros(6))
    np.testing.assert_allclose(operator.dense(), jacobian, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "fn",
    [
        lambda z: z * jax.nn.sigmoid(z),
        lambda z: z + jax.nn.relu(z),
        lambda z: jax.nn.gelu(1.7 * z + 0.2) - 0.5 * z,
        lambda z: z * jax.nn.sigmoid(B[0] * z),
        lambda z: jnp.where(z > B[1], z, B[0] * z - B[0] * B[1] + B[1]),
        lambda z: jnp.tanh(jnp.exp(-(z**2))) * B[0] + z,
    ],
)
def test_a_formula_of_one_variable_is_one_step(fn):
    assert kinds(lambda x: fn(x @ W[0] + B[3])).count(Elementwise) == 1


def test_a_residual_network_keeps_one_hidden_state_in_use():
    def fn(x):
        for w, b in zip(W, B, strict=True):
            x = x + jax.nn.relu(batch_norm(x)) @ w + b
        return x

    program = lower(fn, jnp.zeros(6)).program
    assert max(map(len, program.live())) <= 2
    assert [type(step) for step in program.steps].count(Elementwise) == 4


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.stack([x, 2 * x[::-1]], axis=1),
        lambda x: jnp.unstack((x @ W[0]).reshape(3, 2))[1],
        lambda x: jnp.tile(x @ W[0], 3),
        lambda x: lax.associative_scan(jnp.add, x @ W[0]),
        printed,
    ],
)
def test_a_linear_function_has_its_matrix_norm(fn):
    with jax.enable_x64(True):
        jacobian = np.reshape(jax.jacobian(fn)(jnp.zeros(6)), (-1, 6))
    expected = np.linalg.norm(jacobian, 2)
    assert expected * (1 - 1e-12) <= certify(fn, jnp.zeros(6)).value <= expected * (1 + 1e-9)


@pytest.mark.parametrize(
    ("radius", "looseness"), [(0.6, 1e-9), (1.0, 0.3)]
)  # values of 1e11 leave room for rounding
def test_a_high_even_power_is_as_steep_as_its_farthest_point(radius, looseness):
    fn = lambda x: lax.pow(x, jnp.asarray(64.0, x.dtype))  # noqa: E731
    found = certify(fn, jnp.zeros(1), region=Ball([-0.5], radius))
    steepest = 64 * (0.5 + radius) ** 63
    assert steepest * (1 - 1e-12) <= found.value <= steepest * (1 + looseness)


def test_structure_is_kept_in_operators():
    program = lower(lambda x: jnp.sin(B[0] * x) + x[::-1] + 1, jnp.zeros(6)).program
    found = {
        type(operator) for step in program.steps if isinstance(step, Affine) for _, operator in step.terms
    }
    assert found == {Diagonal, Identity, Dense}


def test_maps_too_large_to_write_down_stay_products():
    kernel = _RNG.normal(size=(3, 3, 1, 2))
    fn = partial(conv, kernel=kernel, padding="SAME")
    shape = (64, 64, 1)
    (step,) = lower(fn, jnp.zeros(shape)).program.steps
    ((_, operator),) = step.terms
    assert isinstance(operator, Linear)
    rng = np.random.default_rng(2)
    v, u = rng.normal(size=64 * 64), rng.normal(size=2 * 64 * 64)
    with jax.enable_x64(True):
        image_of_v, image_of_u = np.asarray(operator.fn(v)), np.asarray(operator.transpose(u))
        expected = conv(jnp.asarray(v).reshape(shape), kernel, padding="SAME").ravel()
        absolute = np.asarray(operator.absolute_fn(np.abs(v)))
    np.testing.assert_allclose(image_of_v, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(u @ image_of_v, image_of_u @ v, rtol=1e-10)
    assert (absolute >= np.abs(image_of_v) - 1e-12).all()
    # by Fourier transform: of the circular convolution, which the zero-padded one is a part of
    spectrum = np.fft.fft2(kernel[..., 0, :], (64, 64), axes=(0, 1))
    lowest = np.linalg.norm(spectrum, axis=-1).max() * 0.95
    assert lowest <= operator.norm <= np.abs(kernel).sum((0, 1)).max() * 2


@pytest.mark.parametrize(
    ("fn", "primitive"),
    [
        (lambda x: lax.cumlogsumexp(x), "cumlogsumexp"),
        (lambda x: jnp.argsort(x) * 1.0, "mul"),
        (lambda x: jnp.where(x.sum() > 0, x, 2 * x), "select_n"),
        (lambda x: lax.while_loop(lambda h: h.sum() > 1, lambda h: h / 2, x), "while"),
        (lambda x: lax.cond(x.sum() > 0, jnp.sin, jnp.cos, x), "cond"),
        (lambda x: jnp.convolve(x, x), "conv_general_dilated"),
        (lambda x: lax.igamma(2.0 + 0 * x, x), "igamma"),
        (lambda x: x.astype(jnp.int32) * 1.0, "convert_element_type"),
        (lambda x: jnp.where((x > 5).astype(jnp.uint8) - jnp.uint8(2) > 5, 100 * x - 500, 0.0), "sub"),
        (lambda x: jnp.where(lax.div((x > 5).astype(jnp.int32), jnp.int32(2)) > 0, x, 0.0), "div"),
        (lambda x: lax.reduce(x, jnp.ones((), x.dtype), lambda a, b: a * b + 0 * a, (0,)), "reduce"),
    ],
)
def test_what_is_not_known_is_refused_with_its_line(fn, primitive):
    with pytest.raises(ValueError, match=rf"(?s){primitive}.*test_walk\.py:\d+"):
        lower(fn, jnp.zeros(6))


@pytest.mark.parametrize(
    ("fn", "primitive"),
    [
        (lambda x: (x @ W[0]) ** 2, "integer_pow"),
        (lambda x: x * x[::-1], "mul"),
        (lambda x: jnp.exp(x), "exp"),
        (attention, "dot_general"),
    ],
)
def test_what_is_bounded_in_regions_only_says_so_with_its_line(fn, primitive):
    restricted = lower(fn, jnp.zeros(6)).restricted
    assert f"`{primitive}` at" in restricted.rule
    assert "test_walk.py:" in restricted.rule
    assert restricted.give == "region"


def test_what_the_output_does_not_need_is_not_refused():
    def fn(x):
        def body(h, w):
            return jnp.tanh(h @ w), (lax.cumlogsumexp(h), jnp.exp(h) * h[::-1], jnp.sign(h))

        return jax.jit(lambda x: lax.scan(body, x, STACKED))(x)[0]

    assert lower(fn, jnp.zeros(6)).restricted is None


def test_a_function_that_insists_on_float32_is_taken_as_it_is():
    def fn(x):
        return lax.fori_loop(0, 2, lambda i, h: (jnp.tanh(h) @ W[0]).astype(jnp.float32), x)

    lowered = lower(fn, jnp.zeros(6))
    assert not lowered.exact
    assert any("float64" in assumption for assumption in lowered.assumptions)
    x = np.linspace(-1, 1, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_allclose(evaluate(lowered.program, x), fn(jnp.asarray(x, jnp.float32)), atol=1e-6)
