"""The claim on saturation: predictions against quadrature and NumPy networks; tanh in the place of sigmoid."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import expit

from jaxact import activations
from train.experiments.chapter import saturation
from train.experiments.chapter.claim import claim_verdict, judged

SLOPES = {"sigmoid": lambda x: expit(x) * expit(-x), "tanh": lambda x: 1 / np.cosh(x) ** 2}
VALUES = {"sigmoid": expit, "tanh": np.tanh}


def mean(f, q):
    return integrate.quad(lambda z: f(q**0.5 * z) * stats.norm.pdf(z), -12, 12, epsabs=1e-12)[0]


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("sigma_w", [1.0, 4.0])
def test_predictions_agree_with_adaptive_quadrature(name, sigma_w):
    shares, decades = saturation._predicted(getattr(activations, name), sigma_w, 4)
    q, total, peak = 1.0, 0.0, SLOPES[name](0.0)
    for share in shares:
        x = np.linspace(0, 60, 600_001)
        edge = x[np.argmax(SLOPES[name](x) < 0.01 * peak)]
        assert share == pytest.approx(2 * stats.norm.sf(edge / q**0.5), rel=1e-2)
        total += np.log10(sigma_w**2 * mean(lambda x: SLOPES[name](x) ** 2, q)) / 2
        q = sigma_w**2 * mean(lambda x: VALUES[name](x) ** 2, q)
    assert decades == pytest.approx(total, rel=1e-4)


def test_a_gradient_that_numpy_sends_back_loses_as_many_decades():
    rng, width, depth, decades = np.random.default_rng(0), 400, 12, []
    for _ in range(3):
        z, steps = rng.normal(size=(32, width)), []
        for _ in range(depth):
            w = rng.normal(size=(width, width)) / width**0.5
            steps.append((w, SLOPES["sigmoid"](z)))
            z = expit(z) @ w
        g = start = rng.normal(size=z.shape)
        for w, slope in reversed(steps):
            g = (g @ w.T) * slope
        decades.append(np.log10(np.linalg.norm(g) / np.linalg.norm(start)))
    assert saturation._predicted(activations.sigmoid, 1.0, depth)[1] == pytest.approx(
        np.mean(decades), abs=0.05
    )


def test_tanh_in_the_place_of_sigmoid_refutes_the_claim(monkeypatch):
    claim = replace(saturation.Saturation(), width=64, batch_size=8, depth=6)
    numbers = claim.numbers()
    (cell,) = claim.cells()
    monkeypatch.setattr(saturation, "_BOTH", (activations.tanh, activations.tanh))
    measured = claim.measure(cell, lambda *_: None)
    found = judged(numbers, {name: measured[name] for name in numbers})
    verdicts = dict(zip(numbers, found["verdict"].to_numpy().tolist(), strict=True))
    assert (verdicts["vanish"], verdicts["sup_sigmoid"]) == ("does not hold", "does not hold")
    assert verdicts["sup_tanh"] == "holds"
    assert claim_verdict(found) == "does not hold"
