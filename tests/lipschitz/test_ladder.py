"""The ladder: its order, what it refuses, and that every number keeps to its region."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import lipschitz
from jaxact.lipschitz import Ball, Box, _ladder, _within

W = np.array([[3.0, 0.5], [-1.0, 2.0]])


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(_ladder, "_NUM_CROSSINGS", 0)
    monkeypatch.setattr(_ladder, "_GROUP_SIZE", 2)


@pytest.fixture(scope="module")
def rungs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ladder, "_NUM_CROSSINGS", 0)
        patch.setattr(_ladder, "_GROUP_SIZE", 2)
        seen = []
        ball = Ball(np.zeros(2), 0.5)
        found = lipschitz.ladder(
            lambda x: jnp.tanh(W @ x),
            jnp.zeros(2),
            region=ball,
            num_steps=5,
            lower_steps=2,
            progress=seen.append,
        )
        return found, seen


def test_bounds_stand_on_both_sides_of_the_constant(rungs):
    found, seen = rungs
    exact = np.linalg.norm(W, 2)  # at 0, in every region about it
    assert found.lower.value == pytest.approx(exact, rel=1e-9)
    assert found.upper.value >= exact
    assert found.ratio == pytest.approx(found.upper.value / found.lower.value)
    assert seen == [rung.name for rung in found.rungs]
    for rung in found.rungs:
        if rung.kind == "certified upper bound":
            assert rung.value >= exact
            assert rung.certificate.region is rung.region
    assert [rung.region is None for rung in found.rungs] == [False] * 4 + [True] * 4


def test_the_factors_of_the_layers_multiply_to_each_bound(rungs):
    found, _ = rungs
    assert [layer.step.sizes for layer in found.layers] == [(2, 2), (2, 2)]
    for name, rung in {rung.name: rung for rung in reversed(found.rungs) if rung.certificate}.items():
        total = sum(layer.log10_factors[name] for layer in found.layers)
        assert total == pytest.approx(rung.log10, abs=1e-9)


def test_what_has_no_bound_over_all_inputs_is_refused_there_alone():
    ball = Ball(np.ones(3), 0.5)
    found = lipschitz.ladder(lambda x: x**2, jnp.zeros(3), region=ball, num_steps=0, lower_steps=1)
    refused = found.rungs[-1]
    assert (refused.kind, refused.region, refused.value) == ("refused", None, None)
    assert (refused.refusal.argument, refused.refusal.give) == ("fn", "region")
    assert "integer_pow" in refused.missing
    assert found.lower.region is ball
    assert np.linalg.norm(found.lower.witness - 1) <= 0.5 * (1 + 1e-12)
    assert found.upper.region is ball
    assert 3 <= found.upper.value < 3 * 1.01  # 2 |x_i| at the ball's edge
    with pytest.raises(ValueError, match="over all inputs") as caught:
        lipschitz.ladder(lambda x: x**2, jnp.zeros(3))
    assert caught.value.give == "region"


def test_a_function_that_forward_mode_refuses_is_searched_by_its_tangent():
    @jax.custom_vjp
    def triple(x):
        return 3 * x

    triple.defvjp(lambda x: (3 * x, None), lambda _, g: (3 * g,))
    options = {"num_steps": 0, "lower_steps": 1, "region": Box(np.zeros(2), np.ones(2))}
    found = lipschitz.ladder(triple, jnp.zeros(2), tangent=lambda x, v: 3 * v, **options)
    assert found.lower.value == pytest.approx(3, rel=1e-9)


def test_in_a_box_every_entry_keeps_to_its_interval():
    with jax.enable_x64(True):
        place, scale = _within.inside(Box(np.full(2, -1.0), np.full(2, 3.0)), jnp.float64)
        np.testing.assert_array_equal(place(jnp.array([5.0, -0.5])), [3.0, 0.0])
    assert scale == 2


def test_starts_lie_inside_their_region():
    ball, given = Ball(np.ones(3), 0.5), jnp.array([[1.0, 1.2, 1.0], [5.0, 0.0, 0.0]])
    y = np.asarray(_within.starts_inside(ball, given, jnp.float32, 0))
    assert len(y) == 1 + 1 + 8
    assert np.linalg.norm(y, axis=1).max() <= 1
    np.testing.assert_allclose(y[1], [0, 0.4, 0], atol=1e-6)


def test_an_estimate_above_a_certificate_is_refuted():
    rung = lipschitz.Rung
    rows = [
        rung("CLEVER", "estimate", None, 10.0, 1.0),
        rung("closed form", "certified upper bound", None, 9.0, math.log10(9)),
    ]
    estimate, bound = _ladder._reconciled(rows)
    assert estimate.assumptions == ("above a certificate, and so refuted",)
    assert bound == rows[1]


def test_inputs_are_examples():
    with pytest.raises(ValueError, match="`inputs` must be inputs"):
        lipschitz.ladder(lambda x: 2 * x, jnp.zeros(3), inputs=np.ones((2, 4)))
