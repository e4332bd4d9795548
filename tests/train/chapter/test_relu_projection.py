"""ReLU as a projection: what is no projection is refuted, and the penalties by hand are those of the zoo."""

import dataclasses

import jax
import numpy as np
import pytest
from mpmath import mp

from jaxact import activations
from train import proximal
from train.experiments.chapter import claim as base
from train.experiments.chapter.relu_projection import ZOO, ReluProjection
from train.experiments.chapter.verdict import CORRECTED, FAILS, judge

STUDY = ReluProjection(num_points=2000, num_solved=10)


def run(study):
    (cell,) = study.cells()
    return study.run(cell, progress=lambda fraction, note="": None)


@pytest.fixture(scope="module")
def result():
    return run(STUDY)


def refuted(result):
    return set(result["number"].to_numpy()[result["verdict"].to_numpy() == FAILS])


def test_relu_is_the_projection_and_gelu_is_why_the_claim_needs_a_correction(result):
    assert base.claim_verdict(result) == CORRECTED
    assert refuted(result) == {"gelu"}


@pytest.mark.parametrize(
    ("activation", "names"),
    [
        ("leaky_relu", {"solver", "again"}),
        ("abs", {"solver"}),
        ("gelu", {"solver", "expansion", "again", "fixed"}),
    ],
)
def test_another_activation_is_told_from_the_projection(activation, names):
    rows = [
        dataclasses.replace(STUDY, activation=activations.parse(activation))._projected(seed)
        for seed in STUDY.seeds
    ]
    numbers = STUDY.numbers()
    found = {name: judge(numbers[name], np.array([row[name] for row in rows])).verdict for name in rows[0]}
    assert {name for name, verdict in found.items() if verdict == FAILS} == names


def test_every_member_of_the_zoo_is_judged(result):
    assert sorted(ZOO) == sorted(activations.names())
    assert result["activation"].to_numpy().tolist() == list(ZOO)


def test_properties_are_those_that_the_zoo_states(result):
    """The stated slope ranges are no part of what is measured."""
    has = result["has_property"].astype(bool)
    for name in ZOO:
        f, own = activations.parse(name), has.sel(activation=name)
        assert own.sel(property="non-expansive") == (f.lipschitz <= 1), name
        assert own.sel(property="non-decreasing") == f.monotone, name
        assert own.sel(property="proximal map") == (f.monotone and f.lipschitz <= 1), name


@pytest.mark.parametrize("name", proximal.PENALTIES)
def test_a_penalty_has_the_slope_that_moreau_says(name):
    """phi'(f(x)) = x - f(x) wherever f rises, phi' by finite differences of 1e-5."""
    f, penalty = activations.parse(name), proximal.PENALTIES[name]
    with jax.enable_x64(True):
        x = np.linspace(-2.6, 3.1, 12)  # no kink among them
        y, slope = (np.asarray(each) for each in f.value_and_slope(x))
    step = 1e-5
    for at, value, rise in zip(x, y, slope, strict=True):
        if rise > 1e-3:
            found = (penalty.phi(value + step) - penalty.phi(value - step)) / (2 * step)
            assert found == pytest.approx(at - value, abs=1e-6), at


def test_penalties_are_infinite_where_the_activation_has_no_value():
    for name, penalty in proximal.PENALTIES.items():
        assert penalty.domain == pytest.approx(tuple(activations.parse(name).range)), name


def test_the_dilogarithm_is_mpmaths():
    phi = proximal.PENALTIES["softplus"].phi
    for y in (0.01, 0.5, 3.0):
        assert phi(y) == pytest.approx(float(mp.polylog(2, mp.exp(-y))), rel=1e-12)


def test_the_minimum_is_found_inside_and_on_the_edge():
    assert proximal.minimum(proximal.PENALTIES["relu"], -3.0) == pytest.approx(0, abs=1e-7)
    assert proximal.minimum(proximal.PENALTIES["squareplus"], 0.0) == pytest.approx(1, abs=1e-7)
