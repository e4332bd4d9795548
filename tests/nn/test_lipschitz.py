"""Layers of bounded Lipschitz constant: their operators written out and decomposed by numpy."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxact import activations, nn
from jaxact.lipschitz import certify, upper_bound
from jaxact.nn import OrthogonalConv, OrthogonalLinear, SpectralNorm, kernels

TOLERANCE = 1e-6
SHAPES = [(7, 5), (5, 7), (1, 4)]


def rngs():
    return nnx.Rngs(0)


def operator(layer, shape):
    """The matrix of the layer's linear part on one input of this shape, in float64 on the host."""
    eye = jnp.eye(int(np.prod(shape))).reshape(-1, *shape)
    affine = jax.jit(lambda x: layer(x) - layer(jnp.zeros_like(x[:1])))
    return np.asarray(affine(eye), np.float64).reshape(len(eye), -1)


def norm(layer, shape):
    return np.linalg.norm(operator(layer, shape), 2)


def conv(window=(3, 3), features=(2, 4), **kwargs):
    return nnx.Conv(*features, kernel_size=window, rngs=rngs(), **kwargs)


def enlarged(layer, factor=20.0):
    """The same module with parameters far from their start."""
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: factor * leaf, params), rest)


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonal_linear_has_singular_values_of_one(shape):
    matrix = operator(enlarged(OrthogonalLinear(*shape, rngs=rngs())), shape[:1])
    assert matrix.shape == shape
    np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False), 1, atol=TOLERANCE)


def test_a_bound_scales_every_layer():
    assert norm(OrthogonalLinear(5, 7, bound=3.0, rngs=rngs()), (5,)) == pytest.approx(3, rel=TOLERANCE)
    wide = SpectralNorm(nnx.Linear(5, 7, kernel_init=lambda *_: 9 * jnp.ones((5, 7)), rngs=rngs()), bound=3.0)
    assert 3 * (1 - 4e-3) <= norm(wide, (5,)) <= 3 * (1 + TOLERANCE)
    layer = OrthogonalConv(2, 2, kernel_size=3, padding="CIRCULAR", bound=0.5, rngs=rngs())
    np.testing.assert_allclose(np.linalg.svd(operator(layer, (6, 2)), compute_uv=False), 0.5, atol=TOLERANCE)


@pytest.mark.parametrize("features", [(2, 5), (3, 2)])
def test_a_circular_orthogonal_convolution_keeps_lengths(features):
    layer = enlarged(OrthogonalConv(*features, kernel_size=(3, 2), padding="CIRCULAR", rngs=rngs()), 3.0)
    matrix = operator(layer, (4, 5, features[0]))
    np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False), 1, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("window", "shape", "kwargs"),
    [
        ((3, 3), (6, 5), {"strides": 2}),
        ((4,), (9,), {"strides": 3, "padding": "CIRCULAR"}),
        ((1, 1), (3, 3), {"padding": "VALID"}),
    ],
)
def test_an_orthogonal_convolution_lengthens_nothing_with_any_padding_and_stride(window, shape, kwargs):
    layer = OrthogonalConv(2, 4, kernel_size=window, rngs=rngs(), **kwargs)
    assert 0.3 < norm(layer, (*shape, 2)) <= 1 + TOLERANCE


def test_an_orthogonal_convolution_of_one_channel_is_a_shift():
    layer = OrthogonalConv(1, 1, kernel_size=3, padding="CIRCULAR", rngs=rngs())
    np.testing.assert_allclose(np.sort(np.abs(operator(layer, (5, 1)))[0]), [0, 0, 0, 0, 1], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("kwargs", "shape"),
    [
        ({"kernel_dilation": 2}, (7, 6)),
        ({"padding": "CIRCULAR", "feature_group_count": 2}, (5, 5)),
    ],
)
def test_spectral_norm_bounds_the_operator_and_little_more(kwargs, shape):
    layer = SpectralNorm(enlarged(conv(**kwargs), 10.0))
    assert 0.6 < norm(layer, (*shape, 2)) <= 1 + TOLERANCE


def test_spectral_norm_of_a_large_circular_image_is_within_its_stated_slack():
    # At frequencies much finer than the layer's own grid: the supremum that the polynomial's bound stands for.
    layer = SpectralNorm(enlarged(conv((3,), padding="CIRCULAR"), 10.0))
    kernel = np.asarray(jax.jit(lambda: layer.kernel())(), np.float64)
    w = np.linspace(0, 2 * np.pi, 4001)
    K = np.einsum("wj,jio->wio", np.exp(-1j * np.outer(w, np.arange(3))), kernel)
    supremum = np.linalg.svd(K, compute_uv=False).max()
    assert 1 / 1.045 <= supremum <= 1 + TOLERANCE


def test_spectral_norm_leaves_a_small_kernel_and_the_bias_alone():
    inner = nnx.Linear(4, 3, kernel_init=lambda *_: 0.1 * jnp.eye(4, 3), rngs=rngs())
    inner.bias[...] = jnp.arange(3.0)
    x = jax.random.normal(jax.random.key(0), (2, 4))
    chex.assert_trees_all_equal(SpectralNorm(inner)(x), inner(x))


class Net(nnx.Module):
    """Convolutions and dense layers of one kind."""

    def __init__(self, kind):
        key = rngs()
        if kind == "orthogonal":
            self.conv = OrthogonalConv(1, 3, kernel_size=(3, 3), rngs=key)
            self.hidden = OrthogonalLinear(48, 8, rngs=key)
            self.head = OrthogonalLinear(8, 3, rngs=key)
        else:
            self.conv = SpectralNorm(nnx.Conv(1, 3, kernel_size=(3, 3), rngs=key))
            self.hidden = SpectralNorm(nnx.Linear(48, 8, rngs=key))
            self.head = SpectralNorm(nnx.Linear(8, 3, rngs=key))

    def __call__(self, x):
        h = jax.nn.relu(self.conv(x))
        return self.head(jax.nn.relu(self.hidden(h.reshape(len(x), -1))))


@pytest.mark.parametrize("kind", ["orthogonal", "spectral"])
def test_a_trained_network_stays_certified(kind):
    net = Net(kind)
    x = jax.random.normal(jax.random.key(0), (30, 4, 4, 1))
    labels = jnp.arange(30) % 3
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    optimizer = optax.adam(3e-2)

    def loss(params):
        logits = nnx.merge(graphdef, params, rest, copy=True)(x)
        return optax.softmax_cross_entropy_with_integer_labels(10 * logits, labels).mean()

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), (value, optax.tree.norm(gradient))

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 60)

    (trained, _), (values, gradients) = train(params)
    chex.assert_tree_all_finite((values, gradients))
    assert values[-1] < 0.9 * values[0]
    net = nnx.merge(graphdef, trained, rest, copy=True)
    assert norm(net.conv, (4, 4, 1)) <= 1 + TOLERANCE
    assert norm(net.hidden, (48,)) <= 1 + TOLERANCE
    assert certify(lambda x: net(x[None]), jnp.zeros((4, 4, 1))).value <= 1 + TOLERANCE


def test_two_members_under_vmap_equal_two_alone():
    init, apply = nn.functional(partial(OrthogonalLinear, 4, 3))
    x = jax.random.normal(jax.random.key(0), (5, 4))
    keys = jax.random.split(jax.random.key(1), 2)
    params, variables = jax.vmap(init)(keys)
    together = jax.jit(jax.vmap(lambda p, v: apply(p, v, x)[0]))(params, variables)
    alone = jnp.stack([apply(*init(key), x)[0] for key in keys])
    chex.assert_trees_all_close(together, alone, atol=1e-5)


def test_kernels_are_the_networks_chain_and_their_bound_a_penalty_that_falls():
    network = nn.MLP(5, 6, 3, max_depth=2, activation=activations.identity, norm=nnx.BatchNorm, rngs=rngs())
    network.stack.stages.norm.var[...] = jnp.linspace(0.5, 2, 12).reshape(2, 6)
    network.norm.scale[...] = jnp.linspace(-1, 1, 6)
    network.eval()
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)

    @jax.jit
    def penalty(params):
        def log_bound(params):
            chain = kernels(nnx.merge(graphdef, params, rest, copy=True))
            return upper_bound(chain, activations.relu, method="eclipse_fast").log, chain

        (value, chain), gradient = jax.value_and_grad(log_bound, has_aux=True)(params)
        return value, gradient, chain

    before, gradient, chain = penalty(params)
    product = np.linalg.multi_dot([np.asarray(kernel) for kernel in chain])
    np.testing.assert_allclose(product, operator(network, (5,)), rtol=1e-4, atol=1e-5)
    chex.assert_tree_all_finite(gradient)
    after, _, _ = penalty(jax.tree.map(lambda p, g: p - 0.02 * g, params, gradient))
    assert after < before - 0.01


def test_what_cannot_be_bounded_is_refused():
    for wrong, message in (
        (lambda: SpectralNorm(nnx.LayerNorm(3, rngs=rngs())), "`layer` must be an nnx.Linear or an nnx.Conv"),
        (lambda: SpectralNorm(conv(padding="REFLECT")), "'REFLECT'"),
        (lambda: SpectralNorm(conv(mask=jnp.ones((3, 3, 2, 4)))), "must not mask"),
        (lambda: SpectralNorm(conv(), bound=0.0), "`bound` must be positive and finite, got 0.0"),
        (lambda: OrthogonalLinear(0, 3, rngs=rngs()), "`in_features` must be an integer of at least 1"),
        (lambda: OrthogonalConv(2, 3, kernel_size=3, padding="REFLECT", rngs=rngs()), "`padding` must be"),
        (
            lambda: OrthogonalConv(2, 3, kernel_size=3, strides=(1, 1), rngs=rngs()),
            "`strides` must be one for",
        ),
        (lambda: kernels(nnx.Linear(2, 2, rngs=rngs())), "`network` must be an MLP"),
        (
            lambda: kernels(nn.MLP(2, 2, 2, max_depth=1, activation=jnp.tanh, stage=nn.PreAct, rngs=rngs())),
            "must be a chain of Plain stages, got PreAct",
        ),
        (
            lambda: kernels(
                nn.MLP(2, 2, 2, max_depth=1, activation=jnp.tanh, norm=nnx.LayerNorm, rngs=rngs())
            ),
            "no norm or batch norms, got LayerNorm",
        ),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            wrong()
