"""The claim on batch norm: its probes on networks where they must differ, and against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import activations, fit
from train import blocks, probing
from train.experiments.chapter import batch_norm
from train.trial import parts

CLAIM = batch_norm.BatchNorm(width=16, num_steps=20, seeds=(0, 1))


def fresh(block, sigma_w):
    data = CLAIM.task.load().flat()
    network = blocks.network(data, block, width=16, max_depth=2, activation=activations.relu)
    trial = CLAIM.trial(network, parts(data), decay=(0.0, 0.1), loss=batch_norm._decayed)
    batch = jnp.asarray(data.train_inputs[:64]), jnp.asarray(data.train_labels[:64])
    return trial, batch, probing.fresh(trial, batch, fit.Member(jax.random.key(0), {}), jnp.float32(sigma_w))


@pytest.mark.parametrize("block", ["plain", "plain-bn"])
def test_only_behind_batch_norm_is_the_scale_free_and_the_gradient_orthogonal(block):
    (*_, one), (*_, ten) = fresh(block, 1.0), fresh(block, 10.0)
    changed = float(jnp.abs(ten["logits"] - one["logits"]).max())
    is_free = block == "plain-bn"
    assert (changed < 1e-3) == is_free
    assert (abs(float(one["radial"])) < 1e-3) == is_free
    assert (abs(10 * float(ten["slope"] / one["slope"]) - 1) < 1e-3) == is_free


def test_the_cosine_is_that_of_a_finite_difference():
    trial, (_, labels), found = fresh("plain", 1.0)
    params, _ = trial.network.init(jax.random.key(0), sigma_w=1.0)
    size = float(jnp.linalg.norm(probing.stage_kernels(params)))

    def loss(scale):
        logits = np.asarray(fresh("plain", scale)[2]["logits"], float)
        shifted = logits - logits.max(-1, keepdims=True)
        return np.mean(np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(64), np.asarray(labels)])

    along = (loss(1.01) - loss(0.99)) / 0.02
    assert found["radial"] * found["slope"] * size == pytest.approx(along, rel=2e-3)


def test_one_layer_is_the_textbook_formula():
    flipped, relu_flipped, small = batch_norm._one_layer(3)
    assert flipped < 1e-6
    assert relu_flipped == pytest.approx(2**0.5, abs=0.03)
    assert small == pytest.approx(0.01 / (0.01**2 + 1e-5) ** 0.5, rel=1e-4)


def test_decay_is_the_optimisers_own():
    logits, labels = jnp.zeros((2, 3)), jnp.zeros(2, int)
    data = CLAIM.task.load().flat()
    network = blocks.network(data, "plain-bn", width=4, max_depth=2, activation=activations.relu)
    params, variables = network.init(jax.random.key(0))

    def loss(params):
        call = lambda method: network.apply(params, variables, method=method)[0]  # noqa: E731
        return batch_norm._decayed(logits, labels, hparams={"decay": 0.3}, call=call)

    found = probing.stage_kernels(jax.grad(loss)(params))
    np.testing.assert_allclose(found, 0.3 * probing.stage_kernels(params), rtol=1e-6)
