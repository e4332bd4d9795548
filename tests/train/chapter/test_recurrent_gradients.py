"""Gradients back through time against a product of matrices in numpy, and what theory has for them."""

import jax.numpy as jnp
import numpy as np
import pytest

from train.experiments.chapter import recurrent_gradients as claim


def test_both_ways_are_those_of_a_product_of_matrices():
    rng = np.random.default_rng(0)
    W = rng.normal(size=(5, 5)) / 5**0.5
    inputs, end = rng.normal(size=(claim._BEGIN + 200, 5)), rng.normal(size=5)
    square, back, forth = claim._both_ways(
        lambda h, u: jnp.tanh(jnp.asarray(W, jnp.float32) @ h + u),
        jnp.asarray(inputs, jnp.float32),
        jnp.asarray(end, jnp.float32),
        200,
    )
    h, slopes = np.zeros(5), []
    for u in inputs:
        h = np.tanh(W @ h + u)
        slopes.append(1 - h**2)
    v, sizes = end / np.linalg.norm(end), []
    for slope in slopes[::-1]:
        v = W.T @ (slope * v)
        sizes.append(np.linalg.norm(v))
        v /= sizes[-1]
    kept = sizes[::-1][claim._BEGIN :]
    assert square == pytest.approx(np.mean(np.square(kept)) ** 0.5, rel=1e-4)
    assert back == pytest.approx(np.exp(np.mean(np.log(kept))), rel=1e-4)
    # The typical factor is the geometric mean, whichever way one goes, up to what both ends leave.
    assert np.log(forth) == pytest.approx(np.mean(np.log(sizes)), abs=0.05)


def test_a_driven_network_has_the_variance_that_it_is_meant_to_have():
    found = claim._driven(200, 200, (0, 1))
    np.testing.assert_allclose(found[0, 0], 1.1 * 0.75**0.5, atol=0.02)
    slope = 1.1 * np.sqrt(
        np.mean((1 - np.tanh(9.382**0.5 * np.random.default_rng(0).normal(size=10**6)) ** 2) ** 2)
    )
    np.testing.assert_allclose(found[1, 0], slope, atol=0.03)
    np.testing.assert_allclose(found[:, 1], found[:, 0], atol=0.03)
    np.testing.assert_allclose(found[:, 2], found[:, 1], atol=0.02)


def test_the_spectrum_of_a_network_adds_up_to_its_determinant():
    """Without a nonlinearity: log |det J| by numpy; with tanh the slopes are added, which the prediction does."""
    N, dets = 100, []
    for seed in range(20):
        dets.append(np.linalg.slogdet(np.random.default_rng(seed).normal(size=(N, N)) / N**0.5)[1] / N)
    q = 6.3054  # of g = 3, by scipy
    slope = np.mean(-2 * np.log(np.cosh(q**0.5 * np.random.default_rng(1).normal(size=10**6))))
    assert claim._mean_exponent(3.0) == pytest.approx(np.log(3) + np.mean(dets) + slope, abs=0.03)


def test_the_heuristic_is_below_mean_field_theory_in_every_case():
    slope, root = claim._predicted()
    assert all(a < b for a, b in zip(slope, root, strict=True))
    np.testing.assert_allclose([*slope[:2], *root[:2]], [0.825, 0.275, 0.9526, 0.4546], atol=5e-5)
