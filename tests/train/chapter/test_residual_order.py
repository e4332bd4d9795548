"""The claim on the order of residual blocks: its probes at initialisation against walks, and equal sizes."""

import itertools
from dataclasses import replace
from fractions import Fraction

import jax
import numpy as np
import pytest

from train import blocks
from train.experiments.chapter import residual_order
from train.experiments.chapter.residual_order import ResidualOrder

CLAIM = ResidualOrder(wide=64, num_blocks=8, num_steps=10, seeds=(0, 1, 2, 3, 4))


def test_open_paths_are_the_positive_walks_of_numpy():
    _, found = CLAIM._looked("post_activation-bn")
    walks = np.cumsum(np.random.default_rng(1).normal(size=(200_000, 8)), 1)
    expected = np.cumprod(walks > 0, 1).mean(0)
    np.testing.assert_allclose(found.mean(0), expected, atol=0.015)
    assert abs(found[:, -1].mean() - 0.5) > 0.2  # the half of one block is not that of eight


def test_the_law_of_the_exercise_counts_the_walks():
    for n in (1, 2, 3):  # a walk of symmetric steps stays positive as often as signs of distinct sizes say
        sizes = [Fraction(1), Fraction(2), Fraction(4)][:n]
        walks = itertools.product(itertools.permutations(sizes), itertools.product((1, -1), repeat=n))
        kept = [all(np.cumsum(np.array(order) * signs) > 0) for order, signs in walks]
        assert np.mean(kept) == pytest.approx(ResidualOrder.exercise.answer(n))


def test_gradients_grow_in_both_orders_and_their_last_is_one():
    for order, theory in zip(residual_order._ORDERS, residual_order._gradients(8), strict=True):
        found, _ = CLAIM._looked(order)
        np.testing.assert_allclose(found[:, -1], 0, atol=1e-6)
        np.testing.assert_allclose(found.mean(0), theory, atol=0.12)
        assert found[:, 0].min() > 0.5


@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_orders_have_equal_parameters_but_for_the_last_norm(kind):
    data, sizes = blocks.inputs_for(kind, CLAIM.task.load()), []
    for order in residual_order._ORDERS:
        trial = CLAIM._trial(data, order, 4, kind=kind, width=8)
        params, _ = jax.eval_shape(trial.network.init, jax.random.key(0))
        sizes.append(sum(leaf.size for leaf in jax.tree.leaves(params)))
    assert sizes[0] - sizes[1] == 2 * 8


def test_a_run_that_diverges_counts_as_a_guess():
    wild = replace(CLAIM, learning_rates=(1e12,), seeds=(0, 1))
    found = wild._trained("dense", (2,))
    np.testing.assert_allclose(found, np.log(10))


def test_the_better_rate_is_taken():
    both = replace(CLAIM, learning_rates=(1e12, 0.1), seeds=(0, 1), num_steps=40)
    one = replace(both, learning_rates=(0.1,))
    np.testing.assert_allclose(both._trained("dense", (2,)), one._trained("dense", (2,)), rtol=0.02)
