"""Bounds, certificates and attacks of the claim: against what one can work out, and members taken at one accuracy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import activations
from train import blocks, chains
from train.experiments.chapter.lipschitz import Lipschitz
from train.experiments.chapter.verdict import FAILS, HOLDS, judge
from train.trial import parts

ACTIVATIONS = (activations.sigmoid, activations.relu, activations.tanh)


def chain(sizes=(6, 5, 5, 4), random_seed=0):
    rng = np.random.default_rng(random_seed)
    pairs = list(itertools.pairwise(sizes))
    return [rng.normal(size=pair) for pair in pairs], [rng.normal(size=columns) for _, columns in pairs]


def test_tanh_written_with_sigmoid_is_the_same_function_with_the_same_product_bound():
    own = chain()
    x = np.random.default_rng(1).normal(size=(20, 6))
    with jax.enable_x64(True):
        other = chains.as_sigmoid(own)
        before = chains.logits(activations.tanh, own, jnp.asarray(x))
        after = chains.logits(activations.sigmoid, other, jnp.asarray(x))
    np.testing.assert_allclose(after, before, atol=1e-12)
    norms = [np.prod([np.linalg.norm(weight, 2) for weight in weights]) for weights in (own[0], other[0])]
    assert norms[1] / norms[0] == pytest.approx(4.0**2), "4 an activation, which its slope of 1/4 takes back"
    logs = [chains.log10_product(activations.tanh, own), chains.log10_product(activations.sigmoid, other)]
    assert logs == pytest.approx([np.log10(norms[0])] * 2, abs=1e-5)


def test_slopes_are_those_of_finite_differences():
    own = chain()
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(2).normal(size=(3, 6)))
        found = np.asarray(chains.slopes(activations.gelu, own, x))
        for point, slope in zip(np.asarray(x), found, strict=True):
            ends = [chains.logits(activations.gelu, own, point + sign * 1e-6 * np.eye(6)) for sign in (1, -1)]
            jacobian = np.subtract(*map(np.asarray, ends)) / 2e-6
            assert slope == pytest.approx(np.linalg.norm(jacobian, 2), rel=1e-6)


def test_bounds_and_shares_stand_in_their_order():
    own = jax.tree.map(lambda leaf: leaf.astype(np.float32), chain())
    x = np.random.default_rng(3).normal(size=(50, 6)).astype(np.float32)
    f = activations.silu
    labels = np.asarray(chains.logits(f, own, x)).argmax(-1)
    attacks = [(0.02, "l2"), (0.02, "linf")]
    product, certified_bound, attained, clean, certified, l2, linf = chains.robustness(
        f, f, own, x, labels, 0.02, attacks
    )
    assert attained <= certified_bound <= product
    assert clean == 1
    assert certified <= l2, "what is certified withstands every attack"
    assert linf <= l2, "the cube holds the ball"


def test_members_are_taken_at_the_first_measurement_that_reaches_the_accuracy():
    study = Lipschitz(activations=ACTIVATIONS, width=8, num_steps=60, accuracy=0.5, seeds=(0, 1))
    data = study.task.load().flat()
    network = blocks.network(data, width=8, max_depth=2, activation=activations.relu)
    trial = study.trial(network, parts(data), evaluate={"train": "train_part"})
    setting = (jnp.int32(2), activations.relu)
    states, steps = trial.taken_at(trial.start(*setting), *setting, measured="train_accuracy", least=0.5)
    _, found = trial.train(trial.start(*setting), *setting, progress=lambda *_: None)
    for member, chain_of_member in enumerate(chains.reader(trial)(states)):
        reached = np.flatnonzero(found["train_accuracy"][member] >= 0.5)
        assert steps[member] == study.steps()[reached[0]]
        z = chains.logits(activations.relu, chain_of_member, data.train_inputs)
        share = np.mean(np.asarray(z).argmax(-1) == data.train_labels)
        assert share == pytest.approx(found["train_accuracy"][member, reached[0]], abs=1e-6)
    _, never = trial.taken_at(trial.start(*setting), *setting, measured="train_accuracy", least=1.1)
    assert np.isnan(never).all()


def test_equal_weights_give_the_chapters_factor_and_a_network_in_disguise_refutes_it():
    numbers = Lipschitz().numbers()
    assert numbers["initial"].chapter == pytest.approx(3 * np.log10(0.25))
    assert dataclasses.replace(Lipschitz(), depth=1).numbers()["initial"].chapter == pytest.approx(
        2 * np.log10(0.25)
    )
    assert judge(numbers["initial"], np.full(5, -1.806)).verdict == HOLDS
    assert judge(numbers["rewritten"], np.zeros(5)).verdict == FAILS
    assert judge(numbers["l2_equal"], [0.05, 0.06, 0.04, 0.05, 0.06]).verdict == HOLDS
    assert judge(numbers["l2_equal"], [-0.05, -0.06, -0.04, -0.05, -0.06]).verdict == FAILS
