"""Networks: usable as ordinary flax modules, in NNX's graph and tree modes and from Linen."""

from functools import partial

import chex
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxact import activations, lipschitz, nn

BLOCKS = [(nn.Plain, None), (nn.PreAct, nnx.BatchNorm), (nn.PostAct, nnx.BatchNorm), (nn.PreAct, nnx.RMSNorm)]


def mlp(stage=nn.Plain, norm=None, **kwargs):
    arguments = {
        "max_depth": 4,
        "activation": activations.tanh,
        "stage": stage,
        "norm": norm,
        "rngs": nnx.Rngs(0),
    }
    return nn.MLP(5, 6, 3, **arguments | kwargs)


def images(**kwargs):
    arguments = {"max_depth": 3, "activation": activations.relu, "rngs": nnx.Rngs(0)}
    return nn.ResNet(2, 4, 3, **arguments | kwargs)


@pytest.mark.parametrize(("stage", "norm"), BLOCKS)
def test_networks_map_inputs_to_outputs(stage, norm):
    x = jax.random.normal(jax.random.key(0), (7, 5))
    chex.assert_shape(mlp(stage, norm)(x), (7, 3))
    chex.assert_shape(mlp(stage, norm).features(x, jnp.int32(2)), (7, 6))
    pictures = jax.random.normal(jax.random.key(0), (7, 8, 8, 2))
    for strides in (1, 2):
        network = images(stage=stage, norm=norm, stem_strides=strides)
        chex.assert_shape(network(pictures), (7, 3))
        chex.assert_shape(network.features(pictures), (7, 8 // strides, 8 // strides, 4))


@pytest.mark.parametrize("kernel_size", [(3,), (3, 3)])
def test_one_input_gives_what_it_gives_in_a_batch(kernel_size):
    pictures = jax.random.normal(jax.random.key(0), (7, *[8] * len(kernel_size), 2))
    network = images(kernel_size=kernel_size)
    network.eval()
    np.testing.assert_allclose(network(pictures[2]), network(pictures)[2], rtol=1e-5, atol=1e-6)
    vectors = jax.random.normal(jax.random.key(0), (7, 5))
    np.testing.assert_allclose(mlp()(vectors[2]), mlp()(vectors)[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tree_mode", [False, True])
@pytest.mark.parametrize(("stage", "norm"), BLOCKS)
def test_networks_train_as_any_nnx_module(stage, norm, tree_mode):
    with nnx.set_graph_mode(not tree_mode), nnx.set_graph_updates(not tree_mode):
        model = mlp(stage, norm)
        optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        x = jax.random.normal(jax.random.key(0), (20, 5))
        labels = jnp.arange(20) % 3

        def loss(model, x, labels):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

        @nnx.jit
        def step(model, optimizer, x, labels):
            if tree_mode:
                # Tree mode differentiates the parameters alone and hands everything else through.
                graphdef, params, rest = nnx.split(model, nnx.Param, ...)

                def pure(params):
                    merged = nnx.merge(graphdef, params, rest, copy=True)
                    return loss(merged, x, labels), nnx.state(merged, nnx.Not(nnx.Param))

                (value, rest), gradient = jax.value_and_grad(pure, has_aux=True)(params)
                nnx.update(model, rest)
            else:
                value, gradient = nnx.value_and_grad(loss)(model, x, labels)
            optimizer.update(model, gradient)
            return value

        before = jax.tree.map(jnp.array, nnx.state(model, nnx.BatchStat))
        values = [float(step(model, optimizer, x, labels)) for _ in range(30)]
        assert values[-1] < 0.7 * values[0]
        if norm is nnx.BatchNorm:
            changed = jax.tree.map(
                lambda a, b: bool(jnp.any(a != b)), before, nnx.state(model, nnx.BatchStat)
            )
            assert all(jax.tree.leaves(changed))


def test_no_two_variables_are_shared_as_tree_mode_demands():
    for model in (mlp(), mlp(nn.PreAct, nnx.BatchNorm), images(), mlp(activation=nn.PReLU)):
        variables = jax.tree.leaves(model, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
        assert len({id(variable) for variable in variables}) == len(variables)


class LinenClassifier(linen.Module):
    """A user's own Linen model around one of ours."""

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(6)(x)
        x = nnx.bridge.to_linen(nn.PreAct, 6, activations.gelu, norm=nnx.LayerNorm)(x)
        return linen.Dense(3)(x)


def test_a_linen_user_wraps_a_stage_or_a_network_with_flaxs_bridge():
    x = jax.random.normal(jax.random.key(0), (7, 5))
    own = LinenClassifier()
    variables = own.init(jax.random.key(1), x)
    chex.assert_shape(own.apply(variables, x), (7, 3))
    gradient = jax.grad(lambda v: jnp.sum(own.apply(v, x) ** 2))(variables)
    chex.assert_tree_all_finite(gradient)
    wrapped = nnx.bridge.to_linen(nn.MLP, 5, 6, 3, max_depth=4, activation=activations.tanh)
    variables = wrapped.init(jax.random.key(1), x)
    chex.assert_shape(wrapped.apply(variables, x), (7, 3))


@pytest.mark.parametrize(("stage", "norm"), BLOCKS)
def test_log_lipschitz_bounds_every_jacobian_norm_of_the_network(stage, norm):
    model = mlp(stage, norm, activation=activations.gelu, sigma_w=1.5)
    x = jax.random.normal(jax.random.key(0), (50, 5))
    nn.calibrate(model, x)
    model.eval()
    norms = np.linalg.norm(jax.jit(jax.vmap(jax.jacfwd(model)))(x), 2, axis=(1, 2))
    for depth in (4, jnp.int32(4)):
        assert np.log(norms.max()) <= float(model.log_lipschitz(depth)) + 1e-5
    assert float(model.log_lipschitz(2, activations.relu)) < float(model.log_lipschitz(4, activations.relu))


@pytest.mark.parametrize("norm", [None, nnx.BatchNorm])
@pytest.mark.parametrize("stage", [nn.Plain, nn.PreAct, nn.PostAct])
def test_the_ellipsoid_lies_between_the_largest_slope_and_the_product(stage, norm):
    for name in ("gelu", "abs"):
        model = nn.MLP(
            6, 16, 3, max_depth=8, activation=activations.parse(name), stage=stage, norm=norm,
            sigma_w=1.2, rngs=nnx.Rngs(0),
        )  # fmt: skip
        model.eval()
        if norm is not None:
            norms = model.stack.stages.norm
            norms.var[...] = jax.random.uniform(jax.random.key(2), norms.var[...].shape, minval=0.5, maxval=2)
        x = jax.random.normal(jax.random.key(1), (20, 6))
        slopes = jax.jit(jax.vmap(jax.jacrev(lambda x, model=model: model(x[None])[0])))(x)
        product, ellipsoid = (
            float(jax.jit(partial(model.log_lipschitz, method=m))()) for m in ("product", "ellipsoid")
        )
        assert np.log(np.linalg.norm(slopes, 2, (1, 2)).max()) <= ellipsoid <= product + 1e-5
        certified = lipschitz.certify(lambda x, model=model: model(x), x[:1])
        # Which looks ahead to the next affine map where this one looks to the end of the stage.
        alike = stage is nn.PreAct or (stage is nn.Plain and norm is None)
        log = certified.log10 * np.log(10)
        assert ellipsoid == pytest.approx(log, abs=1e-3) if alike else log <= ellipsoid + 1e-3
    # Traced depth and activation give what a network of that depth has.
    chosen = activations.select([activations.relu, activations.parse("abs")], 1)
    at = jax.jit(lambda depth: model.log_lipschitz(depth, chosen, method="ellipsoid"))
    np.testing.assert_allclose(at(8), ellipsoid, atol=1e-5)
    assert float(at(3)) < ellipsoid


@pytest.mark.parametrize("stage", [nn.Plain, nn.PreAct])
def test_the_ellipsoid_has_the_gradient_of_finite_differences(stage):
    with jax.enable_x64(True):
        model = nn.MLP(
            4, 6, 3, max_depth=3, activation=activations.gelu, stage=stage, norm=nnx.BatchNorm,
            sigma_w=1.2, rngs=nnx.Rngs(0),
        )  # fmt: skip
        model.eval()
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        directions = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)

        @jax.jit
        def along(t):
            moved = jax.tree.map(lambda leaf, direction: leaf + t * direction, params, directions)
            return nnx.merge(graphdef, moved, rest).log_lipschitz(method="ellipsoid")

        slope = float(jax.jit(jax.grad(along))(0.0))
        h = 1e-5
        assert slope == pytest.approx(float(along(h) - along(-h)) / (2 * h), rel=1e-6)


def test_the_ellipsoid_knows_exact_cases():
    def log_ellipsoid(model):
        return jax.jit(partial(model.log_lipschitz, method="ellipsoid"))()

    rotations = nn.MLP(
        16, 16, 16, max_depth=5, activation=activations.relu, weights="orthogonal", rngs=nnx.Rngs(0)
    )
    last = np.log(np.linalg.norm(rotations.head.kernel[...], 2))  # the one layer that is no rotation
    np.testing.assert_allclose(log_ellipsoid(rotations), last, atol=1e-5)
    linear = nn.MLP(5, 9, 4, max_depth=4, activation=activations.identity, rngs=nnx.Rngs(1))
    matrix = jax.jacobian(lambda x: linear(x[None])[0])(jnp.zeros(5))
    np.testing.assert_allclose(log_ellipsoid(linear), np.log(np.linalg.norm(matrix, 2)), atol=1e-5)
    steep = nn.MLP(4, 8, 2, max_depth=2, activation=activations.parse("relu_squared"), rngs=nnx.Rngs(0))
    assert log_ellipsoid(steep) == np.inf
    with pytest.raises(ValueError, match=r"must be None or nnx\.BatchNorm"):
        nn.MLP(
            4, 8, 2, max_depth=2, activation=activations.relu, norm=nnx.LayerNorm, rngs=nnx.Rngs(0)
        ).log_lipschitz(method="ellipsoid")
    with pytest.raises(ValueError, match='`method` must be "product" or "ellipsoid"'):
        steep.log_lipschitz(method="sdp")


def test_log_lipschitz_of_a_plain_network_is_the_textbooks_product():
    model = mlp(activation=activations.silu)
    kernels = [model.embed.kernel[...], *model.stack.stages.affine.kernel[...], model.head.kernel[...]]
    norms = [np.linalg.norm(np.asarray(kernel, float), 2) for kernel in kernels]
    expected = np.sum(np.log(norms)) + 5 * np.log(activations.silu.lipschitz)
    np.testing.assert_allclose(model.log_lipschitz(), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="states no Lipschitz constant"):
        mlp(activation=jnp.tanh).log_lipschitz()


@pytest.mark.parametrize("stage", [nn.Plain, nn.PreAct, nn.PostAct])
def test_calibrated_inference_equals_training_mode_on_that_batch(stage):
    model = mlp(stage, nnx.BatchNorm)
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (50, 5))
    expected = nnx.clone(model)(x)
    nn.calibrate(model, x)
    model.eval()
    chex.assert_trees_all_close(model(x), expected, atol=1e-4)


def test_functional_equals_the_module():
    init, apply = nn.functional(partial(nn.MLP, 5, 6, 3, max_depth=4, activation=activations.tanh))
    x = jax.random.normal(jax.random.key(0), (7, 5))
    key = jax.random.key(3)
    params, variables = init(key, sigma_w=1.5)
    expected = mlp(sigma_w=1.5, rngs=nnx.Rngs(params=key))(x)
    chex.assert_trees_all_close(apply(params, variables, x)[0], expected)
    many = jax.vmap(lambda k, s: init(k, sigma_w=s)[0])(jax.random.split(key, 3), jnp.array([1.0, 2.0, 3.0]))
    assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(many))


def test_training_flag_decides_which_statistics_a_batch_norm_uses():
    init, apply = nn.functional(
        partial(nn.MLP, 5, 6, 3, max_depth=4, activation=activations.tanh, norm=nnx.BatchNorm)
    )
    params, variables = init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (7, 5))
    _, same = apply(params, variables, x)
    chex.assert_trees_all_equal(same, variables)
    _, updated = apply(params, variables, x, training=True)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(updated, variables)


def test_bad_stage_is_refused():
    with pytest.raises(TypeError, match="`stage` must be a class such as Plain"):
        mlp(stage="plain")
