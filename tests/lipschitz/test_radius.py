"""Certified radii, beside closed forms, exact ones of the plane, attacks and the rounding that is seen."""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from polygons import pieces

from jaxact.lipschitz import certified_radius
from jaxact.lipschitz._execution import execution_error
from jaxact.lipschitz._execution_rules import UncoveredError

LAYERS = {
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "relu6": jax.nn.relu6,
    "softplus": jax.nn.softplus,
}


def drawn(seed, sizes):
    rng = np.random.default_rng(seed)
    matrices = [np.float32(rng.normal(size=(m, n)) * (2 / n) ** 0.5) for n, m in pairwise(sizes)]
    return matrices, [np.float32(0.3 * rng.normal(size=m)) for m in sizes[1:]]


def network(matrices, offsets, phi=jax.nn.relu):
    def model(x):
        for W, b in zip(matrices[:-1], offsets[:-1], strict=True):
            x = phi(jnp.asarray(W, x.dtype) @ x + jnp.asarray(b, x.dtype))
        return jnp.asarray(matrices[-1], x.dtype) @ x + jnp.asarray(offsets[-1], x.dtype)

    return model


def attacked(model, x, label, norm, radius, num_starts=200, num_steps=60):
    """The least margin that projected gradient descent finds in a ball."""
    rng = np.random.default_rng(0)

    def margin(delta):
        scores = model(x + delta)
        return scores[label] - jnp.max(jnp.where(jnp.arange(scores.size) == label, -jnp.inf, scores))

    def projected(delta):
        if norm == 2:
            return delta * jnp.minimum(1, radius / jnp.maximum(jnp.linalg.norm(delta), 1e-30))
        return jnp.clip(delta, -radius, radius)

    @jax.jit
    @jax.vmap
    def descend(delta):
        def step(carry, length):
            delta, least = carry
            value, slope = jax.value_and_grad(margin)(delta)
            way = slope / (jnp.linalg.norm(slope) + 1e-30) if norm == 2 else jnp.sign(slope)
            return (projected(delta - length * radius * way), jnp.minimum(least, value)), None

        lengths = 0.5 * 0.93 ** jnp.arange(num_steps)
        (delta, least), _ = jax.lax.scan(step, (projected(delta), jnp.inf), lengths)
        return jnp.minimum(least, margin(delta))

    starts = radius * rng.normal(size=(num_starts, x.size)) / (x.size**0.5 if norm == 2 else 1)
    return float(descend(jnp.asarray(starts, x.dtype)).min())


def exact_radius(matrices, offsets, x, label, norm):
    """The distance of x from the nearest point of a piece where another score is as large."""
    nearest = np.inf
    for polygon, J, c in pieces(matrices, offsets[:-1], (0.0, 1.0), size=20):
        scores = polygon @ J.T + c + offsets[-1]
        for j in range(len(J)):
            if j != label:
                heights = scores[:, j] - scores[:, label]
                nearest = min(nearest, _distance(polygon, heights, x, norm))
    return nearest


def _distance(polygon, heights, x, norm):
    """Of x, where the height is negative, from the part of a convex polygon where it is not."""
    ends = []
    for here, there, low, high in zip(
        polygon, np.roll(polygon, -1, 0), heights, np.roll(heights, -1), strict=True
    ):
        if low >= 0:
            ends.append(here)
        if low * high < 0:
            ends.append(here + low / (low - high) * (there - here))
    if not ends:
        return np.inf
    steps = np.linspace(0, 1, 2001)[:, None]
    sides = [a + steps * (b - a) for a, b in zip(ends, np.roll(ends, -1, 0), strict=True)]
    return min(np.linalg.norm(side - x, norm, axis=1).min() for side in sides)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_linear_model_has_its_margin_by_the_dual_norm(norm):
    rng = np.random.default_rng(0)
    W, b, x = rng.normal(size=(4, 6)), rng.normal(size=4), rng.normal(size=6)
    with jax.enable_x64(True):
        scores = W @ x + b
        label = int(np.argmax(scores))
        others = [j for j in range(4) if j != label]
        dual = 2 if norm == 2 else 1
        radii = [(scores[label] - scores[j]) / np.linalg.norm(W[label] - W[j], dual) for j in others]
        found = certified_radius(lambda x: W @ x + b, jnp.asarray(x), label, norm=norm, num_bisections=40)
    assert (1 - 1e-9) * min(radii) <= found.radius <= min(radii)
    assert found.runner_up == others[np.argmin(radii)]
    np.testing.assert_allclose(found.margins, scores[label] - scores, atol=1e-14)
    assert (found.certified, found.reason, found.norm) == (True, "", norm)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_on_the_plane_it_is_below_the_exact_radius(norm):
    shares = []
    for seed in range(2):
        matrices, offsets = drawn(seed, (2, 8, 8, 3))
        model, x = (
            network(matrices, offsets),
            jnp.asarray(np.random.default_rng(seed).normal(size=2), jnp.float32),
        )
        label = int(jnp.argmax(model(x)))
        found = certified_radius(model, x, label, norm=norm)
        exact = exact_radius(
            [W.astype(float) for W in matrices],
            [b.astype(float) for b in offsets],
            np.asarray(x, float),
            label,
            norm,
        )
        assert found.certified
        assert 0 < found.radius <= exact * (1 + 1e-6)
        shares.append(found.radius / exact)
    assert max(shares) > 0.5


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_no_attack_within_it_changes_the_class(name, norm):
    matrices, offsets = drawn(1, (12, 24, 24, 4))
    model, x = network(matrices, offsets, LAYERS[name]), jnp.asarray(np.linspace(-1, 1, 12), jnp.float32)
    label = int(jnp.argmax(model(x)))
    found = certified_radius(model, x, label, norm=norm)
    assert found.certified
    assert found.radius > 0
    assert attacked(model, x, label, norm, found.radius * (1 - 1e-6)) > 0
    # The attack is one: it changes the class not far outside.
    assert attacked(model, x, label, norm, 6 * found.radius) < 0


@pytest.mark.parametrize("name", LAYERS)
def test_rounding_is_within_its_bound(name):
    matrices, offsets = drawn(2, (10, 32, 32, 5))
    model, x = network(matrices, offsets, LAYERS[name]), np.random.default_rng(0).normal(size=10)
    closed = jax.make_jaxpr(model)(jnp.zeros(10, jnp.float32))
    error = execution_error(closed, x - 0.01, x + 0.01)
    inputs = np.float32(x + np.random.default_rng(1).uniform(-0.00999, 0.00999, (500, 10)))
    as_run = np.concatenate(
        [
            np.asarray(jax.jit(jax.vmap(model))(inputs), np.float64),
            np.asarray([model(row) for row in inputs[:9]]),
        ]
    )
    with jax.enable_x64(True):
        exact = np.asarray(jax.vmap(model)(jnp.asarray(inputs, jnp.float64)))
    seen = np.abs(as_run - np.concatenate([exact, exact[:9]])).max(0)
    assert (seen > 0).all()
    assert (seen <= error).all()
    assert error.max() < 0.1


def test_rounding_alone_can_take_a_class():
    # The margin is 1e-4 of numbers of 1000: in float32 no radius is proved, in float64 one is.
    def model(x):
        return jnp.stack([x[0] + 1000.0, x[0] * 0.5 + 1000.0 + 0.5 * x[1]])

    x = np.array([1.0, 1.0 - 2e-4])
    single = certified_radius(model, jnp.asarray(x, jnp.float32), 0)
    assert (single.radius, "rounding" in single.reason) == (0.0, True)
    with jax.enable_x64(True):
        assert 1.4e-4 < certified_radius(model, jnp.asarray(x), 0).radius < 1e-4 * 2**0.5 * (1 + 1e-9)


def test_other_classes_have_radius_0_and_a_reason():
    found = certified_radius(lambda x: jnp.stack([x[0], 2 * x[1]]), jnp.ones(2), 0)
    assert found.radius == 0
    assert found.reason == "the input is classified as 1, not as 0"


def test_a_part_without_a_rounding_bound_is_told():
    def model(x):
        return jnp.stack([jnp.arctan(x[0]), jnp.arctan(x[1])])

    found = certified_radius(model, jnp.array([1.0, 0.0]), 0)
    assert 0.3 < found.radius <= 0.5**0.5
    assert not found.certified
    assert any("`atan`" in each for each in found.assumptions)
    with pytest.raises(UncoveredError, match="overflow"):
        execution_error(jax.make_jaxpr(lambda x: x * 1e30)(jnp.ones(2)), np.full(2, 1e20), np.full(2, 1e20))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"norm": 1}, ValueError, "`norm` must be 2 or inf, got 1"),
        ({"label": 3}, ValueError, "`label` must be a class of 3, of two or more, got 3"),
        ({"label": True}, TypeError, "`label` must be the index of a class, got True"),
        ({"x": np.array([np.nan, 1.0])}, ValueError, "`x` must be finite"),
        ({"model": lambda x: x[:1]}, ValueError, "a class of 1, of two or more"),
        ({"model": lambda x: (x, x)}, ValueError, "`model` must return one array, .* got 2"),
        ({"num_bisections": -1}, ValueError, "`num_bisections` must be an integer >= 0, got -1"),
    ],
)
def test_bad_input_is_refused(options, error, match):
    given = {"model": lambda x: jnp.stack([x[0], x[1], x[0] * x[1]]), "x": np.ones(2), "label": 0} | options
    with pytest.raises(error, match=match):
        certified_radius(given.pop("model"), given.pop("x"), given.pop("label"), **given)


def test_scores_that_a_comparison_may_flush_to_0_prove_nothing():
    assert certified_radius(lambda x: jnp.stack([x, -x]), np.float32(1e-40), 0).radius == 0


def test_the_engines_memory_limit_is_passed_on():
    """By norms alone K is the product of the layers' norms: a smaller radius, where K decides."""
    matrices, offsets = drawn(3, (12, 40, 40, 3))
    model, x = (
        network(matrices, offsets, jnp.tanh),
        jnp.asarray(np.random.default_rng(1).normal(size=12), jnp.float32),
    )
    label = int(jnp.argmax(model(x)))
    held, by_norms = (certified_radius(model, x, label, num_bisections=6, memory_limit=n) for n in (2048, 1))
    assert 0 < by_norms.radius < held.radius
    with pytest.raises(ValueError, match=r"`memory_limit` must be an integer >= 1, got 0"):
        certified_radius(model, x, label, memory_limit=0)
