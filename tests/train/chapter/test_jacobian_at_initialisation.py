"""The claim on the Jacobian at initialisation: its products of layers against jax.jacobian, its constants sampled."""

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from train.experiments.chapter import jacobian_at_initialisation as chapter


def test_the_norm_of_one_layer_is_that_of_a_masked_matrix():
    claim = chapter.JacobianAtInitialisation(width=16, depth=1, num_networks=2)
    key_input, key_weights = jax.random.split(jax.random.key(3))
    h = np.asarray(jax.random.normal(key_input, (2, 16)), float)
    weights = np.asarray(jax.random.normal(jax.random.split(key_weights, 1)[0], (2, 16, 16)), float)
    found = claim._jacobians(jax.random.key(3))
    for network, (W, x) in enumerate(zip(weights, h, strict=True)):
        for place, a in enumerate((0.0, 0.2)):
            for rule, square in enumerate((2.0, 2 / (1 + a**2))):
                slopes = np.where(W @ x > 0, 1.0, a)
                expected = square / 16 * np.linalg.norm(slopes[:, None] * W) ** 2 / 16
                assert found[place, rule, 1, network] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("depth", [1, 4])
def test_the_formula_is_exact_at_a_small_width(depth):
    claim = chapter.JacobianAtInitialisation(width=4, depth=depth, num_networks=40_000)
    found = np.asarray(claim._jacobians(jax.random.key(0)), float)[..., -1, :]
    expected = np.array([[1.0, 1.0], [1.04, 1.0]]) ** depth
    error = found.std(-1) / found.shape[-1] ** 0.5
    assert (np.abs(found.mean(-1) - expected) < 5 * error).all()
    assert (error < 0.02).all()


def test_correlations_at_zero_by_scipy():
    for a, exact in zip((0.0, 0.2), chapter._AT_ZERO, strict=True):
        f = lambda x, a=a: np.where(x > 0, x, a * x) * stats.norm.pdf(x)  # noqa: E731
        mean = sum(integrate.quad(f, *ends)[0] for ends in ((-10, 0), (0, 10)))
        assert exact == pytest.approx(mean**2 * 2 / (1 + a**2), rel=1e-9)
    assert np.round(chapter._AT_ZERO, 4).tolist() == [0.3183, 0.1959]
