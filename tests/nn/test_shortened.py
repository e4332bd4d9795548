"""Training the first stages of a stack alone is training the stack at that depth."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxact import activations, fit, nn

MAX_DEPTH, DEPTH, STEPS = 6, 2, 4
OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "clipped_adam": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.01)),
}


@pytest.fixture(scope="module")
def network():
    parts = {"max_depth": MAX_DEPTH, "activation": activations.tanh, "norm": nnx.BatchNorm}
    return nn.functional(partial(nn.MLP, 3, 5, 2, **parts))


def trained(network, optimizer, wrap, depth=DEPTH):
    params, variables = network.init(jax.random.key(0))
    state = fit.start(optimizer, key=jax.random.key(1), params=params, variables=variables)

    def sample(key):
        return jax.random.normal(key, (8, 3))

    def train(state, depth):
        def loss(params, variables, batch, hparams):
            output, variables = network.apply(params, variables, batch, depth, training=True)
            return jnp.mean((output - batch[:, :2]) ** 2), (variables, ())

        return wrap(fit.fit(loss, sample, optimizer, num_steps=STEPS))(state)

    return state, *jax.jit(train)(state, jnp.int32(depth))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_shortened_training_is_training(network, name):
    _, whole, told = trained(network, OPTIMIZERS[name], lambda run: run)
    before, short, history = trained(network, OPTIMIZERS[name], partial(nn.shortened, length=3))
    chex.assert_trees_all_close(
        (short._replace(key=0), history), (whole._replace(key=0), told), rtol=1e-5, atol=1e-6
    )
    idle = [jax.tree.map(lambda leaf: leaf[3:], each.params["stack"]) for each in (before, short)]
    chex.assert_trees_all_equal(*idle)


def test_a_depth_beyond_diverges_at_once(network):
    _, state, history = trained(network, OPTIMIZERS["momentum"], partial(nn.shortened, length=1))
    assert int(state.diverged_step) == 0
    assert np.isnan(history.loss).all()


def test_a_length_that_is_no_count_is_refused():
    with pytest.raises(ValueError, match="length"):
        nn.shortened(lambda state: (state, ()), 0)
