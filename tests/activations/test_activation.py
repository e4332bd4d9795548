"""The type: a hashable, leafless pytree that is called like jax.nn.relu, in JAX and in Flax."""

import copy
import copyreg
import operator
import pickle

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxact import activations
from jaxact.activations import Activation, Interval

X = jnp.asarray([[-2.0, -0.5, 0.0], [0.5, 1.0, 3.0]])
SQUARE = {
    "name": "square",
    "fn": jnp.square,
    "derivative": lambda x: 2 * x,
    "range": Interval(0, np.inf),
    "slope_range": Interval(-np.inf, np.inf),
    "argmin": 0.0,
}


def test_is_a_pytree_without_leaves_that_passes_through_jit():
    tree = {"act": activations.leaky_relu(0.2), "x": X}
    assert len(jax.tree.leaves(tree)) == 1
    out = jax.jit(lambda t: t["act"](t["x"]))(tree)
    chex.assert_trees_all_close(out, jnp.where(X >= 0, X, 0.2 * X))


def test_equal_activations_share_one_compiled_program():
    @chex.assert_max_traces(2)
    def apply(activation, x):
        return activation(x)

    chex.clear_trace_counter()
    run = jax.jit(apply, static_argnums=0)
    for name in ("leaky_relu(0.2)", "tanh", "leaky_relu(a=0.2)", "tanh"):
        run(activations.parse(name), X)


def test_transformations_compose():
    gelu = activations.gelu
    expected = jax.vmap(jax.vmap(gelu.derivative))(X)
    chex.assert_trees_all_close(jax.vmap(jax.vmap(jax.grad(gelu)))(X), expected, rtol=1e-6)
    chex.assert_trees_all_close(jax.jvp(gelu, (X,), (jnp.ones_like(X),))[1], expected, rtol=1e-6)
    chex.assert_trees_all_close(jax.linearize(gelu, X)[1](jnp.ones_like(X)), expected, rtol=1e-6)
    hessian = jax.hessian(lambda x: gelu(x).sum())(X[0])
    chex.assert_trees_all_close(hessian, jax.jacfwd(jax.jacrev(lambda x: gelu(x).sum()))(X[0]), rtol=1e-6)
    third = jax.grad(jax.grad(jax.grad(activations.tanh)))(0.5)
    np.testing.assert_allclose(third, -2 * (1 - np.tanh(0.5) ** 2) * (1 - 3 * np.tanh(0.5) ** 2), rtol=1e-5)
    remat = jax.grad(lambda x: jax.checkpoint(gelu)(x).sum())(X)
    chex.assert_trees_all_close(remat, expected, rtol=1e-6)


def test_switch_and_scan_take_activations():
    choices = [activations.relu, activations.tanh, activations.swish(2.0)]
    for index, choice in enumerate(choices):
        out = jax.jit(lambda i, x: jax.lax.switch(i, choices, x))(index, X)
        chex.assert_trees_all_close(out, choice(X), rtol=1e-6)
    out, _ = jax.lax.scan(lambda h, _: (activations.tanh(h), None), X, length=3)
    chex.assert_trees_all_close(out, jnp.tanh(jnp.tanh(jnp.tanh(X))), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtype_and_shape_are_kept(dtype):
    for shape in ((), (0,), (2, 3)):
        x = jnp.ones(shape, dtype)
        value, slope = activations.mish.value_and_slope(x)
        chex.assert_type([value, slope, activations.mish(x)], dtype)
        chex.assert_shape([value, slope], shape)


def test_numbers_integers_and_numpy_become_default_floats():
    for x in (2, 2.0, True, np.arange(3), np.float64(1), jnp.arange(3, dtype=jnp.int8), [1, 2]):
        assert activations.relu(jnp.asarray(x)).dtype == jnp.float32
    assert activations.relu(-2) == 0
    assert jax.grad(activations.tanh)(0.0) == 1
    with jax.enable_x64(True):
        assert activations.relu(np.arange(3)).dtype == jnp.float64


def test_complex_input_is_refused():
    with pytest.raises(TypeError, match="`x` must be real"):
        activations.tanh(jnp.ones(2, complex))


def test_linen_module_takes_an_activation():
    class Model(nn.Module):
        act: Activation = activations.gelu

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(self.act(nn.Dense(4)(x)))

    for act in (activations.gelu, activations.leaky_relu(0.3)):
        model = Model(act=act)
        params = model.init(jax.random.key(0), X)
        grads = jax.jit(jax.grad(lambda p, model=model: model.apply(p, X).sum()))(params)
        chex.assert_tree_all_finite(grads)
    sequential = nn.Sequential([nn.Dense(4), activations.relu, nn.Dense(1)])
    chex.assert_shape(sequential.apply(sequential.init(jax.random.key(0), X), X), (2, 1))


def test_nnx_module_takes_an_activation():
    class Model(nnx.Module):
        def __init__(self, act, rngs):
            self.inner, self.outer, self.act = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 1, rngs=rngs), act

        def __call__(self, x):
            return self.outer(self.act(self.inner(x)))

    model, twin = (Model(activations.leaky_relu(0.2), nnx.Rngs(0)) for _ in range(2))
    assert nnx.graphdef(model) == nnx.graphdef(twin)
    chex.assert_shape(nnx.jit(lambda m, x: m(x))(model, X), (2, 1))
    chex.assert_tree_all_finite(nnx.to_pure_dict(nnx.state(nnx.grad(lambda m: m(X).sum())(model))))
    assert nnx.clone(model).act is model.act


MEMBERS = [
    *activations.names(),
    "leaky_relu(0.2)",
    "elu(0.1)",
    "swish(1.7)",
    "softplus(3)",
    "squareplus(0.30000000000000004)",
]


@pytest.mark.parametrize("name", MEMBERS)
def test_members_survive_pickling_and_copying(name):
    activation = activations.parse(name)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(activation, protocol)) is activation
    assert copy.copy(activation) is copy.deepcopy(activation) is copy.deepcopy([activation])[0] is activation
    assert hash(activation) == hash(activations.parse(name))


def bend(x):
    """x tanh x, by a name that pickle finds."""
    return x * jnp.tanh(x)


def test_estimated_activations_are_pickled_with_their_facts_and_copied_as_they_are():
    mine = activations.from_callable(bend, name="mine")
    assert copy.deepcopy(mine) is mine
    function, (fields,) = copyreg.dispatch_table[Activation](mine)
    assert fields["fn"] is bend
    again = function(fields)
    assert again == mine
    assert again is not mine
    assert hash(again) == hash(mine)
    assert again.derivative(1.0) == mine.derivative(1.0)
    square = Activation(**SQUARE | {"fn": operator.neg, "derivative": operator.pos})  # that pickle finds
    assert pickle.loads(pickle.dumps(square)) == square


def test_users_write_their_own():
    square = Activation(**SQUARE)
    assert square.lipschitz == np.inf
    assert square.range == Interval(0.0, np.inf)
    assert square.exact
    assert jax.grad(square)(3.0) == 6
    assert jax.grad(jax.grad(square))(3.0) == 2
    assert Activation(**SQUARE) == square
    assert Activation(**(SQUARE | {"fn": jnp.abs})) != square
    assert Activation(**(SQUARE | {"kinks": (0,)})) != square
    assert copy.deepcopy(square) is square
    assert Activation(**(SQUARE | {"kinks": (0,), "breakpoints": (-1, 2)})).breakpoints == (-1.0, 0.0, 2.0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "", "`name` must be a non-empty string"),
        ("range", (1, 0), "lower <= upper"),
        ("slope_range", (0, np.nan), "lower <= upper"),
        ("kinks", (1, 0), "`kinks` must ascend"),
        ("breakpoints", (0, 0), "`breakpoints` must ascend"),
        ("lipschitz", 2.0, "`lipschitz` must be the largest"),
    ],
)
def test_contradictory_facts_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Activation(**(SQUARE | {field: value}))


def test_is_immutable_and_prints_short():
    with pytest.raises(AttributeError):
        activations.relu.name = "other"
    assert repr(activations.hard_tanh) == "hard_tanh: min(max(x, -1), 1), |f'| <= 1, kinks at -1, 1"
    assert "rectifier" in activations.relu.__doc__
