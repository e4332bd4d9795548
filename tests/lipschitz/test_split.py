"""Bounds of a region that is cut into parts, beside exact constants and what is sampled."""

from fractions import Fraction
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from polygons import exact_lipschitz
from scipy.linalg import hadamard

from jaxact.lipschitz import Ball, Box, certify
from jaxact.lipschitz._enclosure import Engine
from jaxact.lipschitz._mixed import spectral
from jaxact.lipschitz._pieces import pieces_of
from jaxact.trace import Affine, Dense, Program, lower

SQUARE = Box(-5 * np.ones(2), 5 * np.ones(2))


def drawn(seed, sizes):
    rng = np.random.default_rng(seed)
    matrices = [rng.normal(size=(m, n)) / n**0.5 for n, m in pairwise(sizes)]
    return matrices, [rng.normal(size=m) for m in sizes[1:-1]]


def network(matrices, offsets, phi):
    def fn(x):
        for W, b in zip(matrices[:-1], offsets, strict=True):
            x = phi(W @ x + b)
        return matrices[-1] @ x

    return fn


def sampled(fn, region, num=4000):
    """The largest norm of a Jacobian at random points."""
    rng = np.random.default_rng(1)
    if isinstance(region, Box):
        x = rng.uniform(region.lower, region.upper, (num, region.lower.size))
    else:
        x = rng.normal(size=(num, region.center.size))
        x *= region.radius * rng.uniform(0, 1, (num, 1)) / np.linalg.norm(x, axis=1, keepdims=True)
        x += region.center
    with jax.enable_x64(True):
        J = np.asarray(jax.jit(jax.vmap(jax.jacfwd(fn)))(jnp.asarray(x)))
    return np.linalg.norm(J, 2, axis=(1, 2)).max()


@pytest.mark.parametrize("sizes", [(2, 8, 1), (2, 8, 8, 1), (2, 12, 8, 2), (2, 12, 8, 8, 2)])
@pytest.mark.parametrize("slopes", [(0.0, 1.0), (-0.3, 1.0)])
def test_networks_of_two_inputs_end_at_the_exact_constant(sizes, slopes):
    matrices, offsets = drawn(len(sizes), sizes)
    fn = network(matrices, offsets, lambda z: jnp.where(z > 0, slopes[1] * z, slopes[0] * z))
    exact = exact_lipschitz(matrices, offsets, slopes, size=5)
    found = certify(fn, jnp.zeros(2), region=SQUARE, max_seconds=20)
    assert found.is_exact
    assert exact * (1 - 1e-13) <= found.value <= exact * (1 + 1e-9)
    assert found.attained <= exact * (1 + 1e-13)
    assert (found.method, found.certified) == ("split", True)
    assert found.parts > 1


def _attention(x):
    q, k = x.reshape(2, 2), (2 * x).reshape(2, 2)
    return (jax.nn.softmax(q @ k.T) @ q).reshape(-1)


@pytest.mark.parametrize(
    ("fn", "region", "tightness"),
    [
        (network(*drawn(0, (2, 10, 10, 2)), jnp.tanh), Ball(np.array([0.3, -1.0]), 1.0), 1.2),
        (
            network(*drawn(1, (3, 10, 10, 2)), lambda z: jnp.clip(z, -1, 1)),
            Box(-np.ones(3), np.ones(3)),
            1 + 1e-9,
        ),
        (network(*drawn(2, (2, 6, 1)), lambda z: z * jnp.arange(1.0, 7) * jax.nn.sigmoid(z)), SQUARE, 1.5),
        (_attention, Ball(np.array([0.3, 1.0, -0.5, 0.2]), 0.1), 2.0),
        (lambda x: jnp.sort(x) * jnp.sin(x), Box(np.zeros(2), np.ones(2)), 2.0),
    ],
)
def test_bounds_hold_and_come_close(fn, region, tightness):
    size = region.center.size if isinstance(region, Ball) else region.lower.size
    whole = certify(fn, jnp.zeros(size), region=region)
    seen = sampled(fn, region)
    # A step that is known by one number has no Jacobian to be seen, and the search no end.
    time = 60 if tightness < 2 or fn is _attention else 2
    found = certify(fn, jnp.zeros(size), region=region, max_seconds=time, tolerance=(tightness - 1) * 0.9)
    assert seen * (1 - 1e-9) <= found.value <= whole.value
    assert found.value <= tightness * seen
    assert found.attained <= found.value


def test_whenever_it_is_stopped_it_has_a_bound():
    matrices, offsets = drawn(3, (4, 12, 12, 2))
    fn, region = network(matrices, offsets, jax.nn.gelu), Box(-np.ones(4), np.ones(4))
    brief = certify(fn, jnp.zeros(4), region=region, max_seconds=1e-3)
    longer = certify(fn, jnp.zeros(4), region=region, max_seconds=60, tolerance=2.0)
    assert sampled(fn, region) <= longer.value < brief.value


def test_the_search_rounds_outward():
    # Products of three matrices, exactly; a middle without its radius misses them.
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(5, 5)) for _ in range(3)]
    steps = [Affine(i + 1, ((i, Dense(W)),), 5) for i, W in enumerate(matrices)]
    engine = Engine(Program(5, tuple(steps), 3))
    J = engine.enclose(-np.ones((1, 5)), np.ones((1, 5))).quotients[3]
    exact = np.eye(5, dtype=object)
    for W in matrices:
        exact = np.array([[Fraction(entry) for entry in row] for row in W]) @ exact
    distances = [
        abs(entry - Fraction(middle)) for entry, middle in zip(exact.flat, J.middle[:, 0].flat, strict=True)
    ]
    assert max(distances) > 0
    assert all(distance <= Fraction(r) for distance, r in zip(distances, J.radius[:, 0].flat, strict=True))
    assert J.radius.max() < 1e-12


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e150])
def test_spectral_norms_are_bounded_from_above(scale):
    rng = np.random.default_rng(0)
    low, wide = rng.normal(size=(7, 3, 1)) @ rng.normal(size=(7, 1, 5)), rng.normal(size=(7, 3, 5))
    for A in (low, wide, wide[:, :1], np.broadcast_to(hadamard(8) / 2.0, (2, 8, 8)), np.zeros((2, 3, 2))):
        exact = np.linalg.norm(A.astype(np.longdouble).astype(float), 2, axis=(1, 2))
        bound = spectral(A * scale) / scale
        assert (bound >= exact * (1 - 1e-15)).all()
        assert (bound <= exact * (1 + 1e-12)).all()
    assert spectral(np.asarray(hadamard(16))[None] / 4.0)[0] >= 1.0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_seconds": 1.0}, "region"),
        ({"max_seconds": 0, "region": SQUARE}, "positive number of seconds, got 0"),
        ({"max_seconds": "1", "region": SQUARE}, "positive number of seconds, got '1'"),
    ],
)
def test_times_that_are_none_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        certify(jnp.sin, jnp.zeros(2), **options)


@pytest.mark.parametrize("region", [Box(-0.03 * np.ones(12), 0.03 * np.ones(12)), Ball(np.zeros(12), 0.12)])
@pytest.mark.parametrize("phi", [jax.nn.relu, jnp.tanh])
def test_regions_of_many_inputs_are_cut_along_neurons(region, phi):
    matrices, offsets = drawn(5, (12, 16, 16, 3))
    fn = network(matrices, [0.2 * b for b in offsets], phi)
    whole = certify(fn, jnp.zeros(12), region=region)
    found = certify(fn, jnp.zeros(12), region=region, max_seconds=6, tolerance=0.2)
    seen = sampled(fn, region)
    assert seen * (1 - 1e-9) <= found.value <= whole.value
    assert found.attained <= found.value
    assert phi is not jax.nn.relu or found.value < 0.97 * whole.value


def test_parts_of_one_neuron_each_are_exact():
    # Both kinks of the first entry lie inside, and where both are open no input is.
    def fn(x):
        return jax.nn.relu(x[:1] - 1) * 3 - jax.nn.relu(-x[:1] - 1) * 3 + jnp.sum(x) / 3

    found = certify(fn, jnp.zeros(9), region=Box(-2 * np.ones(9), 2 * np.ones(9)), max_seconds=30)
    exact = np.linalg.norm([10 / 3, *[1 / 3] * 8])
    assert exact * (1 - 1e-12) <= found.value <= exact * (1 + 1e-9)
    assert found.is_exact


@pytest.mark.parametrize(
    "phi",
    [
        jax.nn.relu,
        jax.nn.relu6,
        jax.nn.hard_tanh,
        jnp.abs,
        lambda z: jnp.clip(z, -0.3, 0.7) + 0.1 * z,
        lambda z: jnp.where(z > 0, z, 0.2 * z),
    ],
)
def test_tables_of_kinks_enclose_as_their_formula_does(phi):
    step = lower(phi, jnp.zeros(3)).program.steps[0]
    found = pieces_of(step, -7.0, 9.0)
    assert found is not None
    ends = np.sort(np.random.default_rng(0).uniform(-7, 9, (200, 2)))
    ends = np.concatenate([ends, [[0, 0], [0, 1], [-1, 0], [6, 6.5], [-7, 9]]])
    low, high = ends.T
    alpha, beta = found.slope_range(low, high)
    least, most = found.value_range(low, high)
    with jax.enable_x64(True):
        x = low + np.linspace(0, 1, 101)[:, None] * (high - low)
        y = np.asarray(phi(jnp.asarray(x)))
    assert (least <= y).all()
    assert (y <= most).all()
    quotients = np.diff(y, axis=0)[:, high > low] / np.diff(x, axis=0)[:, high > low]
    assert (alpha[high > low] - 1e-9 <= quotients).all()
    assert (quotients <= beta[high > low] + 1e-9).all()
    # No wider than the formula's own range.
    theirs = step.slopes({0: (low, high)})
    np.testing.assert_allclose(
        np.stack([alpha, beta])[:, high > low], np.stack(theirs)[:, high > low], atol=1e-3
    )


@pytest.mark.parametrize("phi", [jnp.tanh, lambda z: jnp.clip(z, -jnp.arange(1.0, 4), 1.0)])
def test_what_bends_or_differs_between_entries_has_no_table(phi):
    assert pieces_of(lower(phi, jnp.zeros(3)).program.steps[0], -7.0, 9.0) is None
