"""Bounds between l1, l2 and l-infinity, beside exact constants and what is sampled."""

import math
from itertools import pairwise, product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from polygons import jacobians

from jaxact.lipschitz import Ball, Box, certify
from jaxact.lipschitz._enclosure import Quotients
from jaxact.lipschitz._mixed import largest, least

NORMS = (1, 2, math.inf)
PAIRS = tuple(product(NORMS, NORMS))
SQUARE = Box(-5 * np.ones(2), 5 * np.ones(2))

_RNG = np.random.default_rng(4)
MATRICES = [_RNG.normal(size=(m, n)) / n**0.5 for n, m in pairwise((2, 8, 8, 3))]
OFFSETS = [_RNG.normal(size=8) for _ in range(2)]


def network(x):
    for W, b in zip(MATRICES[:-1], OFFSETS, strict=True):
        x = jax.nn.relu(W @ x + b)
    return MATRICES[-1] @ x


def operator_norm(J, p, q):
    """||J||_{p -> q}: a convex function's maximum over a polytope is at a corner, over the disk at an angle or SVD."""
    if p == q == 2:
        return np.linalg.norm(J, 2)
    if p == 2:  # the dual: the largest ||J^T y||_2 over the unit ball of q's dual
        corners = np.eye(len(J)) if q == math.inf else np.array([*product((-1.0, 1.0), repeat=len(J))])
        return max(np.linalg.norm(corner @ J) for corner in corners)
    n = J.shape[1]
    corners = np.eye(n) if p == 1 else np.array([*product((-1.0, 1.0), repeat=n)])
    return max(np.linalg.norm(J @ corner, q) for corner in corners)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_bounds_hold_and_end_at_the_exact_constant(p, q):
    exact = max(operator_norm(J, p, q) for J in jacobians(MATRICES, OFFSETS, (0, 1), size=5))
    everywhere = certify(network, jnp.zeros(2), norm=(p, q))
    whole = certify(network, jnp.zeros(2), norm=(p, q), region=SQUARE)
    cut = certify(network, jnp.zeros(2), norm=(p, q), region=SQUARE, max_seconds=60)
    assert exact <= whole.value <= everywhere.value * (1 + 1e-12)
    assert exact * (1 - 1e-13) <= cut.value <= exact * (1 + 2e-9)
    assert cut.is_exact
    assert all(
        found.norm == (p if p == q else (p, q)) and found.certified for found in (everywhere, whole, cut)
    )
    # Never looser than the l2 bound with the factors of norm equivalence.
    factor = 2 ** max(0.5 - 1 / p, 0) * 3 ** max(1 / q - 0.5, 0)
    assert everywhere.value <= certify(network, jnp.zeros(2)).value * factor * (1 + 1e-12)


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_norms_of_enclosures_hold_for_every_matrix_within(p, q):
    rng = np.random.default_rng(0)
    for shape in ((3, 4), (12, 3), (3, 14), (1, 5), (13, 11)):
        middle, radius = rng.normal(size=(2, *shape)) * np.array([1.0, 0.2])[:, None, None]
        J = Quotients(middle[:, None], np.abs(radius)[:, None])
        bound, floor = largest(J, p, q)[0], least(J, p, q)[0]
        for signs in (np.sign(rng.normal(size=(20, *shape))), np.sign(middle)[None]):
            for A in middle + np.abs(radius) * signs:
                if min(shape) <= 5 and (p == 1 or shape[1] <= 5) and (p != 2 or shape[0] <= 5 or q != 1):
                    assert floor * (1 - 1e-12) <= operator_norm(A, p, q) <= bound * (1 + 1e-14)
                else:
                    x = rng.normal(size=(200, shape[1]))
                    ratios = np.linalg.norm(x @ A.T, q, axis=1) / np.linalg.norm(x, p, axis=1)
                    assert ratios.max() <= bound
        side = {(math.inf, 2): shape[1], (2, 1): shape[0], (math.inf, 1): min(shape)}.get((p, q), 1)
        if side <= 10:  # one matrix, whose norm is found
            point = Quotients(middle[:, None], np.zeros((shape[0], 1, shape[1])))
            assert largest(point, p, q)[0] <= least(point, p, q)[0] * (1 + 1e-12)


@pytest.mark.parametrize("region", [None, Ball(jnp.ones((6, 6, 1)), 0.05)])
def test_images_have_a_bound_in_the_largest_change_of_a_pixel(region):
    rng = np.random.default_rng(0)
    kernel, dense = rng.normal(size=(3, 3, 1, 4)) / 3, rng.normal(size=(5, 144)) / 12

    def model(x):
        h = jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return dense @ jnp.tanh(h).reshape(-1)

    found = certify(model, jnp.zeros((6, 6, 1)), norm=math.inf, region=region)
    with jax.enable_x64(True):
        J = np.asarray(jax.jacfwd(model)(jnp.ones((6, 6, 1)))).reshape(5, -1)
    by_equivalence = 6 * certify(model, jnp.zeros((6, 6, 1)), region=region).value
    assert np.abs(J).sum(1).max() <= found.value <= by_equivalence * (1 + 1e-12)
    assert region is None or found.value < 1.5 * np.abs(J).sum(1).max()


def test_what_is_too_large_to_be_enclosed_has_row_sums(monkeypatch):
    entry_by_entry = certify(network, jnp.zeros(2), norm=math.inf)
    monkeypatch.setattr("jaxact.lipschitz._enclosure.MOST_ENTRIES", 1)
    found = certify(network, jnp.zeros(2), norm=math.inf)
    J = np.abs(MATRICES[2]) @ np.abs(MATRICES[1]) @ np.abs(MATRICES[0])
    assert found.value <= J.sum(1).max() * (1 + 1e-12)
    assert entry_by_entry.value <= found.value
    assert certify(network, jnp.zeros(2), norm=1).method.endswith("norm equivalence")


@pytest.mark.parametrize("norm", [3, 0, (2, 3), (1, 2, 2), "inf", True, -math.inf])
def test_other_norms_are_refused(norm):
    with pytest.raises(ValueError, match=r"`norm` must be 1, 2, inf or a pair .* got "):
        certify(jnp.sin, jnp.zeros(2), norm=norm)
