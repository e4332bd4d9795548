"""The claim on means: quadrature against closed forms and samples, shares against NumPy, and another leak."""

import math

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from jaxact import activations
from train.experiments.chapter import zero_mean
from train.experiments.chapter.claim import judged

HALF = 1 / math.sqrt(2 * math.pi)
MEANS = {
    "relu": HALF,
    "leaky_relu": 0.99 * HALF,
    "sigmoid": 0.5,
    "tanh": 0.0,
    "gelu": 1 / (2 * math.sqrt(math.pi)),
    "sin": 0.0,
    "cos": math.exp(-0.5),
    "elu": HALF + math.exp(0.5) * stats.norm.cdf(-1) - 0.5,
    "silu": integrate.quad(lambda x: x / (1 + math.exp(-x)) * stats.norm.pdf(x), -12, 12)[0],
    "softplus": integrate.quad(lambda x: np.logaddexp(0, x) * stats.norm.pdf(x), -12, 12)[0],
}


@pytest.mark.parametrize("name", MEANS)
def test_means_by_quadrature_agree_with_closed_forms(name):
    assert zero_mean._exact(activations.parse(name)) == pytest.approx(MEANS[name], abs=2e-6)


@pytest.mark.parametrize("has_norm", [False, True])
def test_the_share_of_the_bias_is_that_of_a_numpy_network_and_of_the_prediction(has_norm):
    rng, h, shares = np.random.default_rng(0), np.random.default_rng(1).normal(size=(400, 1000)), []
    for _ in range(4):
        z = h @ rng.normal(size=(1000, 1000)) / 1000**0.5
        h = np.maximum((z - z.mean(0)) / z.std(0) if has_norm else z, 0)
        shares.append(np.mean(h.mean(0) ** 2) / np.mean(h**2))
    found = zero_mean._shares(activations.relu, jax.random.key(0), 4, has_norm=has_norm)
    np.testing.assert_allclose(found, shares, atol=0.06)
    predicted = zero_mean.ZeroMean(depth=4).numbers()["deep_bn" if has_norm else "deep"].exact
    assert shares[-1] == pytest.approx(predicted, abs=0.06)


@pytest.mark.parametrize(
    ("leak", "verdict"), [(0.01, "holds"), (0.1, "does not hold"), (0.0, "does not hold")]
)
def test_another_leak_refutes_the_claim(leak, verdict):
    numbers = zero_mean.ZeroMean().numbers()
    z = np.random.default_rng(0).normal(size=(5, 200_000))
    ratio = np.where(z > 0, z, leak * z).mean(1) / np.maximum(z, 0).mean(1)
    found = judged({"leaky": numbers["leaky"]}, {"leaky": ratio})
    assert found["verdict"].to_numpy().tolist() == [verdict]
