"""Stages compute their equations, their weights follow the stated law, and their bounds hold."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxact import activations, nn
from jaxact.nn._stages import operator_norm
from jaxact.theory import initializers

STAGES = (nn.Plain, nn.PreAct, nn.PostAct)
NORMS = (None, nnx.BatchNorm, nnx.LayerNorm, nnx.RMSNorm)


def test_plain_is_w_f_norm_h():
    stage = nn.Plain(4, jnp.tanh, norm=nnx.LayerNorm, sigma_b=0.3, rngs=nnx.Rngs(0))
    h = jax.random.normal(jax.random.key(1), (3, 4))
    normed = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    expected = np.tanh(normed) @ stage.affine.kernel[...] + stage.affine.bias[...]
    chex.assert_trees_all_close(stage(h), expected, atol=1e-5)


def test_preact_adds_the_branch_to_an_untouched_skip():
    stage = nn.PreAct(4, jnp.tanh, sigma_b=0.3, rngs=nnx.Rngs(0))
    h = jax.random.normal(jax.random.key(1), (3, 4))
    expected = h + np.tanh(h) @ stage.affine.kernel[...] + stage.affine.bias[...]
    chex.assert_trees_all_close(stage(h), expected, atol=1e-6)


def test_postact_applies_f_after_the_addition():
    stage = nn.PostAct(4, activations.relu, norm=nnx.BatchNorm, rngs=nnx.Rngs(0))
    h = jax.random.normal(jax.random.key(1), (30, 4))
    branch = h @ stage.affine.kernel[...]
    normed = (branch - branch.mean(0)) / np.sqrt(branch.var(0) + 1e-5)
    chex.assert_trees_all_close(stage(h), np.maximum(h + normed, 0), atol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("norm", NORMS)
def test_preactivation_is_what_the_activation_sees(stage, norm):
    seen = []

    def spy(z):
        seen.append(z)
        return jnp.tanh(z)

    made = stage(4, spy, norm=norm, rngs=nnx.Rngs(0))
    h = jax.random.normal(jax.random.key(1), (5, 4))
    made(h)
    chex.assert_trees_all_close(made.preactivation(h), seen[0], atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kernel_size", [3, (3, 3)])
def test_convolutional_stages_keep_the_shape(stage, kernel_size):
    made = stage(4, jnp.tanh, norm=nnx.BatchNorm, kernel_size=kernel_size, rngs=nnx.Rngs(0))
    space = (6,) if kernel_size == 3 else (6, 5)
    chex.assert_shape(made(jnp.ones((2, *space, 4))), (2, *space, 4))


def test_gaussian_weights_have_variance_sigma_w_squared_over_fan_in():
    stage = nn.Plain(400, jnp.tanh, sigma_w=1.7, sigma_b=0.5, rngs=nnx.Rngs(0))
    kernel, bias = np.asarray(stage.affine.kernel[...], float), np.asarray(stage.affine.bias[...], float)
    for values, deviation in ((kernel.ravel() * 20, 1.7), (bias, 0.5)):
        # standard error of a Gaussian sample's standard deviation: deviation / sqrt(2 n)
        assert abs(values.std() - deviation) < 5 * deviation / np.sqrt(2 * values.size)
        assert abs(values.mean()) < 5 * deviation / np.sqrt(values.size)


@given(st.floats(0.1, 5.0), st.integers(0, 2**31 - 1))
@settings(max_examples=10, deadline=None)
def test_orthogonal_weights_are_sigma_w_times_an_isometry(sigma_w, seed):
    stage = nn.Plain(8, jnp.tanh, weights="orthogonal", sigma_w=sigma_w, rngs=nnx.Rngs(seed))
    kernel = np.asarray(stage.affine.kernel[...], float)
    np.testing.assert_allclose(kernel.T @ kernel, sigma_w**2 * np.eye(8), atol=2e-5 * sigma_w**2)


def test_orthogonal_convolutions_are_isometries_too():
    stage = nn.Plain(8, jnp.tanh, kernel_size=(3, 3), weights="orthogonal", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 8))
    np.testing.assert_allclose(jnp.sum(stage.affine(x) ** 2), jnp.sum(x**2), rtol=1e-5)


@pytest.mark.parametrize("kernel_size", [2, 4, 5, (2, 3), (4, 2)])
def test_orthogonal_convolutions_have_all_singular_values_1_whether_the_kernel_is_even_or_odd(kernel_size):
    """By the decomposition of the whole operator with its zero padding, a matrix of all pixels by all pixels."""
    stage = nn.Plain(3, jnp.tanh, kernel_size=kernel_size, weights="orthogonal", rngs=nnx.Rngs(0))
    shape = (6, 3) if isinstance(kernel_size, int) else (4, 5, 3)
    operator = jax.jacfwd(lambda x: stage.affine(x[None])[0].ravel())(jnp.zeros(shape))
    values = np.linalg.svd(np.asarray(operator, float).reshape(np.prod(shape), -1), compute_uv=False)
    np.testing.assert_allclose(values, 1, atol=1e-5)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("kernel_size", [None, 3])
def test_stages_draw_what_the_initialisers_draw(weights, kernel_size):
    stage = nn.Plain(
        6, jnp.tanh, kernel_size=kernel_size, weights=weights, sigma_w=1.3, sigma_b=0.2, rngs=nnx.Rngs(5)
    )
    rngs = nnx.Rngs(5)
    law = "delta_orthogonal" if kernel_size and weights == "orthogonal" else weights
    kernel, bias = stage.affine.kernel[...], stage.affine.bias[...]
    np.testing.assert_array_equal(
        kernel, getattr(initializers, law)(1.3)(rngs.params(), kernel.shape, jnp.float32)
    )
    np.testing.assert_array_equal(bias, initializers.bias(0.2)(rngs.params(), bias.shape, jnp.float32))


def test_sigma_w_may_be_traced():
    def kernel(sigma_w):
        return nn.Plain(5, jnp.tanh, sigma_w=sigma_w, sigma_b=sigma_w, rngs=nnx.Rngs(0)).affine.kernel[...]

    many = jax.jit(jax.vmap(kernel))(jnp.array([1.0, 2.0]))
    chex.assert_trees_all_close(many[1], 2 * many[0], rtol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kernel_size", [None, (3, 3)])
def test_log_lipschitz_bounds_every_jacobian_norm_at_inference(stage, norm, kernel_size):
    activation = activations.silu  # its slope exceeds 1
    made = stage(3, activation, norm=norm, kernel_size=kernel_size, sigma_w=2.0, rngs=nnx.Rngs(0))
    space = () if kernel_size is None else (4, 4)
    x = jax.random.normal(jax.random.key(1), (6, *space, 3))
    if norm is nnx.BatchNorm:
        made.norm.scale[...] = jnp.array([0.5, -3.0, 1.0])
        made.norm.momentum = 0.5
        made(x)
    made.eval()
    bound = float(made.log_lipschitz(activation.lipschitz))
    jacobians = jax.jit(jax.vmap(jax.jacfwd(lambda h: made(h[None])[0].ravel())))
    for scale in (1e-3, 1.0, 10.0):
        norms = np.linalg.norm(np.asarray(jacobians(x * scale)).reshape(6, -1, x[0].size), 2, axis=(1, 2))
        assert np.log(norms.max()) <= bound + 1e-5


def test_log_lipschitz_is_tight_where_one_norm_decides():
    plain = nn.Plain(5, activations.identity, sigma_w=1.5, rngs=nnx.Rngs(0))
    kernel = np.asarray(plain.affine.kernel[...])
    np.testing.assert_allclose(plain.log_lipschitz(1.0), np.log(np.linalg.norm(kernel, 2)), rtol=1e-5)
    orthogonal = nn.Plain(5, activations.relu, weights="orthogonal", rngs=nnx.Rngs(0))
    np.testing.assert_allclose(orthogonal.log_lipschitz(1.0), 0.0, atol=1e-5)


class Unbounded(nn.Stage):
    """A stage of one's own that says nothing about bounds: h' = h / 2 + W f(h) + b."""

    hidden_is_preactivation = True

    def __call__(self, h, *, activation=None):
        return h / 2 + self.affine((activation or self.activation)(h))


class Bounded(Unbounded):
    """The same with what the messages ask for."""

    def log_lipschitz(self, lipschitz):
        return jnp.log(0.5 + lipschitz * jnp.linalg.norm(self.affine.kernel[...], 2))

    def as_matrices(self):
        return 0.5, self.affine.kernel[...].T, jnp.eye(self.affine.kernel[...].shape[0])


def test_a_stage_without_bounds_is_told_what_to_define_and_with_it_is_bounded():
    def network(stage):
        return nn.MLP(3, 4, 2, max_depth=3, activation=activations.tanh, stage=stage, rngs=nnx.Rngs(0))

    x = jax.random.normal(jax.random.key(1), (5, 3))
    chex.assert_shape(network(Unbounded)(x), (5, 2))
    made = network(Bounded)
    slopes = np.asarray(jax.jit(jax.vmap(jax.jacfwd(lambda x: made(x[None])[0])))(x))
    for method, name, returns in (
        ("product", "log_lipschitz", "logarithm of an upper bound"),
        ("ellipsoid", "as_matrices", r"returns \(S, W, D\) of h' = S h \+ W f\(D h\) \+ b"),
    ):
        message = rf"Unbounded has no .*\. Define Unbounded\.{name}\(self.*{returns}"
        with pytest.raises(NotImplementedError, match=message):
            network(Unbounded).log_lipschitz(method=method)
        assert np.log(np.linalg.norm(slopes, 2, axis=(1, 2)).max()) <= made.log_lipschitz(method=method) < 5


class Halved(nn.PreAct):
    """h' = h + W f(norm(h)) / 2: bounded by no bound of a whole branch."""

    def __call__(self, h, *, activation=None):
        return h + (super().__call__(h, activation=activation) - h) / 2


class Moved(nn.Plain):
    """h' = W f(3 h) + b."""

    def preactivation(self, h):
        return 3 * h


class Trebled:
    def __call__(self, h, *, activation=None):
        return 3 * super().__call__(h, activation=activation)


class Mixed(Trebled, nn.PostAct):
    """The call is another class's."""


class Renamed(nn.PreAct):
    """Computes what its parent does."""


class Known(Halved):
    """Its own bound; the matrices stay taken back."""

    def log_lipschitz(self, lipschitz):
        return jnp.log1p(jnp.expm1(nn.PreAct.log_lipschitz(self, lipschitz)) / 2)


class Twice(nn.Stack):
    def __call__(self, h, *args, **options):
        return 2 * super().__call__(h, *args, **options)


class Summed(nn.ResNet):
    def pool(self, h):
        return h.sum((-3, -2))


def test_what_computes_anew_inherits_no_bound():
    def network(stage):
        return nn.MLP(3, 4, 2, max_depth=3, activation=activations.tanh, stage=stage, rngs=nnx.Rngs(0))

    for stage in (Halved, Moved, Mixed):
        for method in ("product", "ellipsoid"):
            with pytest.raises(
                NotImplementedError, match=f"{stage.__name__} has no .* Define {stage.__name__}"
            ):
                network(stage).log_lipschitz(method=method)
    for method in ("product", "ellipsoid"):
        same = network(Renamed).log_lipschitz(method=method)
        chex.assert_trees_all_equal(same, network(nn.PreAct).log_lipschitz(method=method))
    assert network(Known).log_lipschitz() < network(nn.PreAct).log_lipschitz()
    with pytest.raises(NotImplementedError, match="Known has no matrices"):
        network(Known).log_lipschitz(method="ellipsoid")
    summed = Summed(3, 4, 2, max_depth=1, activation=activations.tanh, rngs=nnx.Rngs(0))
    with pytest.raises(NotImplementedError, match="Summed computes in a way of its own"):
        summed.log_lipschitz()
    twice = network(nn.PreAct)
    twice.stack = Twice(partial(nn.PreAct, 4, activations.tanh), 3, rngs=nnx.Rngs(0))
    for method in ("product", "ellipsoid"):
        with pytest.raises(NotImplementedError, match="Twice computes in a way of its own"):
            twice.log_lipschitz(method=method)


class Negated(nnx.Linear):
    def __call__(self, x):
        return -3 * super().__call__(x)


class Centred(nnx.BatchNorm):
    def __call__(self, x):
        return 3 * super().__call__(x)


def test_layers_and_norms_that_compute_anew_have_no_known_bound():
    network = nn.MLP(3, 4, 2, max_depth=1, activation=activations.tanh, rngs=nnx.Rngs(0))
    network.head = Negated(4, 2, rngs=nnx.Rngs(0))
    for method in ("product", "ellipsoid"):
        with pytest.raises(ValueError, match="Negated computes in a way of its own"):
            network.log_lipschitz(method=method)
    rngs = nnx.Rngs(0)
    network = nn.MLP(3, 4, 2, max_depth=1, activation=activations.tanh, norm=Centred, rngs=rngs)
    with pytest.raises(ValueError, match="No Lipschitz bound is known for the norm Centred"):
        network.log_lipschitz()
    with pytest.raises(ValueError, match="got Centred"):
        network.log_lipschitz(method="ellipsoid")


def test_learned_activations_get_parameters_in_every_layer_and_train():
    x = jax.random.normal(jax.random.key(1), (20, 4))  # every unit sees both signs
    for learned in (nn.PReLU, nn.Swish, nn.Softplus):
        stack = nn.Stack(partial(nn.Plain, 4, learned), 3, rngs=nnx.Rngs(0))
        graphdef, params = nnx.split(stack)
        gradient = jax.grad(lambda p, g=graphdef: jnp.sum(nnx.merge(g, p)(x, jnp.int32(3)) ** 2))(params)
        leaves = jax.tree.leaves(gradient["stages"]["activation"])
        chex.assert_shape(leaves, (3, 4))
        assert all(np.all(np.asarray(leaf) != 0) for leaf in leaves)


def test_learned_activations_equal_their_fixed_counterparts():
    x = jnp.linspace(-5, 5, 41)[:, None]
    chex.assert_trees_all_close(nn.PReLU(slope=0.2)(x), activations.leaky_relu(0.2)(x), atol=1e-6)
    chex.assert_trees_all_close(nn.Swish(beta=1.5)(x), activations.swish(1.5)(x), atol=1e-6)
    chex.assert_trees_all_close(nn.Softplus(beta=2.0)(x), activations.softplus(2.0)(x), atol=1e-6)


def test_bad_arguments_are_refused_with_the_rule_and_the_value():
    rngs = nnx.Rngs(0)
    for arguments, message in (
        ({"width": 0}, "`width` must be an integer of at least 1, got 0"),
        ({"width": 2.0}, "must be an integer of at least 1, got 2.0"),
        ({"sigma_w": -1.0}, "`sigma_w` must be finite and nonnegative, got -1.0"),
        ({"sigma_b": float("nan")}, "`sigma_b` must be finite and nonnegative, got nan"),
        ({"weights": "uniform"}, '`weights` must be "gaussian" or "orthogonal"'),
        ({"kernel_size": 0}, "`kernel_size` must be an integer of at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            nn.Plain(**{"width": 4, "activation": jnp.tanh, "rngs": rngs} | arguments)
    with pytest.raises(TypeError, match=r"Use jaxact\.activations\.parse"):
        nn.Plain(4, "relu", rngs=rngs)
    with pytest.raises(TypeError, match="Pass the class"):
        nn.Plain(4, jnp.tanh, norm=nnx.BatchNorm(4, rngs=rngs), rngs=rngs)
    with pytest.raises(ValueError, match="No Lipschitz bound is known"):
        nn.Plain(4, jnp.tanh, norm=partial(nnx.GroupNorm, num_groups=2), rngs=rngs).log_lipschitz(1.0)


@pytest.mark.parametrize("taps", [(3, 3), (2, 2), (5, 1), (1, 3), (4,)])
def test_a_convolutions_bound_lies_little_above_its_norm_on_large_images(taps):
    layer = nnx.Conv(3, 4, kernel_size=taps, rngs=nnx.Rngs(0))
    bound = float(operator_norm(layer))
    image = (*[8 if size > 1 else 1 for size in taps], 3)
    basis = jnp.eye(int(np.prod(image))).reshape(-1, *image)
    without_bias = layer(basis) - layer(jnp.zeros((1, *image)))
    exact = np.linalg.svd(np.asarray(without_bias, np.float64).reshape(len(basis), -1), compute_uv=False)[0]
    kernel = np.asarray(layer.kernel[...], np.float64)
    axes = tuple(range(len(taps)))
    fine = np.linalg.svd(np.fft.fftn(kernel, [199] * len(taps), axes=axes), compute_uv=False).max()
    assert exact <= bound
    assert fine <= bound <= 1.03 * fine
