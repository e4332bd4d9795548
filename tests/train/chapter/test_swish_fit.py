"""The bound for monotone functions against quadrature and trial, and what a broken unit does to the verdict."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq

from train.experiments.chapter import claim as base
from train.experiments.chapter.swish_fit import SwishFit, monotone_fit, swish


def mean(low, high):
    return quad(swish, low, high, epsabs=1e-14)[0] / (high - low)


def variance(low, high):
    return quad(lambda x: swish(x) ** 2, low, high, epsabs=1e-14)[0] / (high - low) - mean(low, high) ** 2


def test_the_exact_bounds_are_those_of_the_flat_stretch():
    numbers = SwishFit().numbers()
    start = brentq(lambda s: mean(s, 0) - swish(s), -5, -1.2784645)  # falling, then flat up to 0
    stop = brentq(lambda s: mean(-5, s) - swish(s), -1.2784645, 3)  # flat from -5, then rising
    narrow, wide = variance(start, 0) * -start / 5, variance(-5, stop) * (stop + 5) / 10
    assert numbers["narrow_bound"].exact == pytest.approx(narrow, rel=1e-6)
    assert numbers["narrow_r2"].exact == pytest.approx(1 - narrow / variance(-5, 0), rel=1e-6)
    assert numbers["wide_bound"].exact == pytest.approx(wide, rel=1e-6)


def test_the_exact_bound_on_a_grid_is_the_least_of_all_that_follow_swish_and_then_stay():
    y = swish(np.linspace(-5, 0, 200))
    least = min(np.sum((y[k:] - y[k:].mean()) ** 2) for k in range(200) if y[k:].mean() <= y[k - 1]) / 200
    assert SwishFit().numbers()["narrow_bound_200"].exact == pytest.approx(least, rel=1e-6)
    assert np.mean((monotone_fit(y) - y) ** 2) == pytest.approx(least, rel=1e-9)


def test_a_unit_of_another_function_does_not_pass_for_silu():
    study = SwishFit().smoke()
    (cell,) = study.cells()
    measured = dict(study.measure(cell, lambda *_: None))
    verdict = base.claim_verdict(base.judged(study.numbers(), measured | {"silu": 0.0, "mish": 9.273e-7}))
    assert verdict == "holds with a correction"
    names, missed = list(measured["unit"]), np.asarray(measured["missed"])
    broken = measured | {"silu": missed[1, names.index("relu")], "mish": 9.273e-7}
    assert base.claim_verdict(base.judged(study.numbers(), broken)) == "does not hold"
    monotone = measured["narrow_monotone"]
    assert 1 <= monotone == pytest.approx(1.0086, abs=0.02)
