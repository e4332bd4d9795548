"""The claim on initialisation: its predictions against quadrature that shares no code, its networks against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import ndtr

from jaxact import activations
from train.experiments.chapter import initialisation
from train.experiments.chapter.claim import judged

NAMES, RULES = initialisation._NAMES, initialisation._RULES


def plain(name):
    """The activation in NumPy."""
    return {
        "relu": lambda x: np.maximum(x, 0),
        "leaky_relu(0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
        "tanh": np.tanh,
        "gelu": lambda x: x * ndtr(x),
    }[name]


@pytest.mark.parametrize("name", NAMES)
def test_variances_at_infinite_width_agree_with_adaptive_quadrature(name):
    found = initialisation.Initialisation(depth=3)._infinite(activations.parse(name))
    assert np.isnan(found[RULES.index("own gain")]).any() == (name == "tanh")
    q = 2.0
    for layer in range(4):
        assert found[RULES.index("He"), layer] == pytest.approx(q, rel=1e-5)
        integrand = lambda z, q=q: plain(name)(q**0.5 * z) ** 2 * stats.norm.pdf(z)  # noqa: E731
        q = 2 * sum(integrate.quad(integrand, *ends)[0] for ends in ((-10, 0), (0, 10)))


def test_own_gain_keeps_the_hidden_second_moment():
    for name in ("relu", "leaky_relu(0.2)", "gelu"):
        sigma = initialisation._scales(activations.parse(name))[RULES.index("own gain")]
        z = np.random.default_rng(0).normal(size=2_000_000)
        assert np.mean(plain(name)(sigma * z) ** 2) == pytest.approx(1, abs=0.01)


def test_a_wrong_rule_refutes_the_claim():
    claim = replace(initialisation.Initialisation(), width=64, depth=10)
    numbers, draws = claim.numbers(), np.full(5, 0.97)  # what relu does at sigma_w^2 = 1.94
    measured = {name: number.chapter for name, number in numbers.items()} | {"relu, He": draws}
    verdicts = judged(numbers, measured)["verdict"].to_numpy().tolist()
    assert verdicts == ["does not hold", *["holds"] * (len(numbers) - 1)]
