"""Spectra of Jacobians against sampled networks, closed forms and the combinatorics of products of Wishart matrices."""

import functools
import math

import numpy as np
import pytest

from jaxact import activations, theory
from jaxact.theory import jacobian_spectrum

WIDTH, DEPTHS = 400, (64, 8, 8)  # how many layers are drawn of each seed
NUMPY = {  # value and slope, by numpy
    "relu": (lambda h: np.maximum(h, 0), lambda h: (h > 0) * 1.0),
    "hard_tanh": (lambda h: np.clip(h, -1, 1), lambda h: (np.abs(h) < 1) * 1.0),
    "tanh": (np.tanh, lambda h: 1 / np.cosh(h) ** 2),
}
KINDS = ("gaussian", "orthogonal")
SQRT2 = 2.0**0.5


@functools.cache
def drawn(weights, seed):
    """A network's weights, layer for layer: Gaussian or Haar (Mezzadri 2007); the same for every activation."""
    rng = np.random.default_rng(seed)
    layers = rng.normal(size=(DEPTHS[seed], WIDTH, WIDTH)) / WIDTH**0.5
    if weights == "gaussian":
        return layers
    factors = map(np.linalg.qr, layers)  # of all at once it would take ten times as long
    return [unitary * np.sign(np.diag(triangle)) for unitary, triangle in factors]


def sampled_log_eigenvalues(name, depth, weights, sigma_w, sigma_b, q, seed):
    """Of one network's J J^T, its signal propagated; those lost to rounding as -inf.

    The product's rounding error is 1e-16 of its largest singular value, so that those below 1e-13 of it are noise.
    That they lie below is all the cdf above needs to know.
    """
    rng = np.random.default_rng([seed, 1])
    value, slope = NUMPY[name]
    h = q**0.5 * rng.normal(size=WIDTH)
    jacobian = np.eye(WIDTH)
    for weight in drawn(weights, seed)[:depth]:
        h = sigma_w * weight @ value(h) + sigma_b * rng.normal(size=WIDTH)
        jacobian = slope(h)[:, None] * (sigma_w * weight @ jacobian)
    found = np.linalg.svd(jacobian, compute_uv=False)
    return np.sort(np.where(found > 1e-13 * found[0], 2 * np.log(np.maximum(found, 1e-300)), -np.inf))


@pytest.mark.parametrize("depth", [8, 64])
@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("name", list(NUMPY))
def test_the_cdf_is_that_of_sampled_networks(name, weights, depth):
    # Critical points: that of tanh has sigma_b^2 = 0.05.
    activation, length = (
        activations.parse(name),
        {"relu": 1.0, "tanh": 0.5700478816407955, "hard_tanh": 0.45}[name],
    )
    point = theory.critical_point(activation, q_star=length)
    sigma_w, sigma_b, q = float(point.sigma_w), float(point.sigma_b), length
    seeds = range(3 if depth == 8 else 1)
    samples = [sampled_log_eigenvalues(name, depth, weights, sigma_w, sigma_b, q, seed) for seed in seeds]
    pooled = np.sort(np.concatenate(samples))
    (index,) = np.nonzero(np.isfinite(pooled))
    found = jacobian_spectrum(
        activation, depth, sigma_w=sigma_w, q=q, weights=weights, log_eigenvalues=pooled[index]
    )
    below, above = index / pooled.size, (index + 1) / pooled.size
    distance = np.maximum(np.abs(found.cdf - below), np.abs(found.cdf - above))
    assert index.size > 0.2 * pooled.size
    # A product's rank is its narrowest layer's, of 8 that fluctuate by 1 / (2 sqrt(400)) = 0.025 in relu's case: at
    # this width the zero atom is too heavy by about that, and the smallest eigenvalues make up for it.
    assert distance[pooled[index] > -20].max() < 0.02
    assert distance.max() < (0.035 if len(found.atom_masses) else 0.02)


@pytest.mark.parametrize("depth", [1, 2, 8, 64])
def test_the_largest_eigenvalue_by_closed_form(depth):
    linear = jacobian_spectrum(activations.identity, depth, sigma_w=1.0, q=1.0, log_eigenvalues=[0.0])
    expected = (depth + 1) * math.log(depth + 1) - depth * math.log(depth)
    np.testing.assert_allclose(linear.log_lambda_max, expected, rtol=1e-6)
    if depth > 1:
        half = jacobian_spectrum(
            activations.relu, depth, sigma_w=SQRT2, weights="orthogonal", log_eigenvalues=[0.0]
        )
        expected = depth * math.log(depth) - (depth - 1) * math.log(depth - 1)
        np.testing.assert_allclose(half.log_lambda_max, expected, rtol=1e-6)


def integrated(found, power):
    """E lambda^power from the cdf at dense points: each interval's mass at its middle."""
    x = found.log_eigenvalues
    middle = np.exp(power * (x[1:] + x[:-1]) / 2)
    return middle @ np.diff(found.cdf)


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize(("name", "q"), [("relu", 1.0), ("tanh", 0.6), ("leaky_relu(0.2)", 1.0)])
def test_moments_are_those_of_the_density(name, q, weights):
    activation, sigma_w = activations.parse(name), 1.3
    t = theory.moments(activation, variance=q)
    for depth in (3, 8):
        base = {"sigma_w": sigma_w, "q": q, "weights": weights}
        edge = jacobian_spectrum(activation, depth, **base, log_eigenvalues=[0.0])
        x = edge.log_lambda_max - 12 * np.linspace(1, 0, 300) ** 2  # dense at the edge, where the moments are
        found = jacobian_spectrum(activation, depth, **base, log_eigenvalues=x)
        np.testing.assert_allclose(found.cdf[-1], 1, atol=1e-4)
        np.testing.assert_allclose(integrated(found, 1), found.m1, rtol=1e-3)
        np.testing.assert_allclose(integrated(found, 2), found.m2, rtol=1e-3)
        np.testing.assert_allclose(
            found.m1, (sigma_w**2 * float(t.slope_second_moment)) ** depth, rtol=1e-5
        )  # of float32
        difference = np.abs(np.gradient(found.cdf, x) - found.density)[25:-25]
        # Not everywhere: leaky_relu has bands at small depth, with infinite density at an edge.
        assert np.quantile(difference, 0.95) < 2e-3 * np.median(found.density[-150:])


@pytest.mark.parametrize("depth", [2, 5])
def test_products_of_wishart_matrices_have_fuss_catalan_moments(depth):
    edge = (depth + 1) * math.log(depth + 1) - depth * math.log(depth)
    x = edge - 12 * np.linspace(1, 0, 600) ** 2
    found = jacobian_spectrum(activations.identity, depth, sigma_w=1.0, q=1.0, log_eigenvalues=x)
    for k in (1, 2, 3, 4):
        expected = math.comb((depth + 1) * k, k) / (depth * k + 1)
        np.testing.assert_allclose(integrated(found, k), expected, rtol=1e-3)
    np.testing.assert_allclose([found.m1, found.m2], [1, 1 + depth])


def test_a_linear_layer_follows_marchenko_and_pastur():
    x = np.linspace(-12, math.log(4) - 1e-3, 200)
    found = jacobian_spectrum(activations.identity, 1, sigma_w=1.0, q=1.0, log_eigenvalues=x)
    expected = np.sqrt(np.exp(x) * (4 - np.exp(x))) / (2 * np.pi)
    np.testing.assert_allclose(found.density, expected, atol=1e-8)
    angle = np.arcsin(np.exp(x / 2) / 2)  # lambda = 4 sin^2: the quarter circle
    np.testing.assert_allclose(found.cdf, (2 * angle + np.sin(2 * angle)) / np.pi, atol=1e-8)


@pytest.mark.parametrize(("name", "zero"), [("relu", 0.5), ("hard_tanh", math.erfc(SQRT2**-1))])
def test_atoms_and_bulk_make_one(name, zero):
    for weights in KINDS:
        for depth in (4, 64):
            found = jacobian_spectrum(activations.parse(name), depth, sigma_w=1.0, q=1.0, weights=weights)
            assert found.atom_locations.tolist() == [0.0]
            np.testing.assert_allclose(found.atom_masses, [zero], rtol=1e-12)
            step = found.log_eigenvalues[1] - found.log_eigenvalues[0]
            assert len(found.density) == len(found.cdf) == len(found.eigenvalues) == 200
            # The grid leaves out at most 1e-3 below; its midpoints lose some of the inverse root at an edge.
            total = found.density.sum() * step + found.atom_masses.sum()
            np.testing.assert_allclose(total, 1, atol=0.03)
            assert (np.diff(found.cdf) >= -1e-9).all()
            assert found.cdf[0] < zero + 3e-3


def test_two_projections_by_closed_form():
    # D_2 W D_1 with P(t = 1) = p > 1/2: an atom 2 p - 1 at 1, 1 - p at 0, an arcsine-like bulk on [0, 4 p (1 - p)].
    scale = 0.6
    p = math.erf(1 / (scale * SQRT2))
    x = np.log(np.linspace(0.01, 0.99, 50) * 4 * p * (1 - p))
    found = jacobian_spectrum(
        activations.hard_tanh,
        2,
        sigma_w=1.0,
        q=scale**2,
        weights="orthogonal",
        log_eigenvalues=[*x, 0.0, 0.1],
    )
    np.testing.assert_allclose(found.atom_locations, [0, 1], atol=1e-12)
    np.testing.assert_allclose(found.atom_masses, [1 - p, 2 * p - 1], rtol=1e-10)
    lam = np.exp(x)
    expected = np.sqrt(lam * (4 * p * (1 - p) - lam)) / (2 * np.pi * (1 - lam))
    np.testing.assert_allclose(found.density[:50], expected, atol=1e-7)
    np.testing.assert_allclose(found.cdf[50:], 1, atol=1e-7)
    assert found.lambda_max == pytest.approx(1)


def test_one_orthogonal_layer_leaves_the_slopes():
    x = np.linspace(-4, -0.05, 40)
    found = jacobian_spectrum(
        activations.tanh, 1, sigma_w=1.0, q=1.0, weights="orthogonal", log_eigenvalues=x
    )
    # sech^4 z <= e^x for |z| >= arcosh e^(-x/4)
    threshold = np.arccosh(np.exp(-x / 4))
    np.testing.assert_allclose(found.cdf, [math.erfc(z / SQRT2) for z in threshold], atol=1e-5)
    density = np.exp(-(threshold**2) / 2) * 2 / math.sqrt(2 * math.pi) / (4 * np.tanh(threshold))
    np.testing.assert_allclose(found.density, density, rtol=5e-3)


def test_linear_orthogonal_layers_are_isometries():
    found = jacobian_spectrum(activations.identity, 64, sigma_w=1.0, sigma_b=0.0, weights="orthogonal", q=1.0)
    assert (found.atom_locations.tolist(), found.atom_masses.tolist()) == ([1.0], [1.0])
    assert (found.lambda_min, found.lambda_max, found.bulk_mass) == pytest.approx((1, 1, 0))
    vanishing = jacobian_spectrum(activations.tanh, 3, sigma_w=0.5, weights="orthogonal")  # q* = 0: f'(0) = 1
    np.testing.assert_allclose(vanishing.atom_locations, [0.25**3])


def test_leaky_slopes_keep_the_spectrum_off_zero():
    # By the inverse: its law is the same with slopes 1 / a and 1, a relabelling and a scale.
    found = jacobian_spectrum(activations.leaky_relu(0.5), 3, sigma_w=1.0, q=1.0, weights="orthogonal")
    np.testing.assert_allclose(found.lambda_min * found.lambda_max, 0.25**3, rtol=1e-8)
    gaussian = jacobian_spectrum(activations.leaky_relu(0.5), 3, sigma_w=1.0, q=1.0)
    assert gaussian.lambda_min == 0


def test_deep_logarithms_average_as_they_must():
    # E log lambda = L (E log t + log sigma_w^2 - g), from the eigenvalues that no float holds.
    depth, sigma_w = 64, 1.2
    x, weights = np.polynomial.hermite_e.hermegauss(150)
    mean = weights @ (-4 * np.log(np.cosh(0.7 * x))) / weights.sum()
    for kind, g in (("gaussian", 1), ("orthogonal", 0)):
        base = {"sigma_w": sigma_w, "q": 0.49, "weights": kind}
        top = jacobian_spectrum(activations.tanh, depth, **base, log_eigenvalues=[0.0]).log_lambda_max
        grid = top - 1500 * np.linspace(1, 0, 600) ** 2
        found = jacobian_spectrum(activations.tanh, depth, **base, log_eigenvalues=grid)
        average = (grid[1:] + grid[:-1]) / 2 @ np.diff(found.cdf)
        expected = depth * (mean + 2 * math.log(sigma_w) - g)
        np.testing.assert_allclose(average, expected, rtol=1e-4)


def test_bad_input_is_refused():
    relu = activations.relu
    with pytest.raises(ValueError, match="`depth` must be an integer of at least 1, got 0"):
        jacobian_spectrum(relu, 0, sigma_w=1.0)
    with pytest.raises(ValueError, match=r"`depth` must be an integer of at least 1, got 2\.0"):
        jacobian_spectrum(relu, 2.0, sigma_w=1.0)
    with pytest.raises(ValueError, match="`weights` must be"):
        jacobian_spectrum(relu, 2, sigma_w=1.0, weights="uniform")
    with pytest.raises(ValueError, match="`sigma_w` must be finite and nonnegative, got -1"):
        jacobian_spectrum(relu, 2, sigma_w=-1.0)
    with pytest.raises(ValueError, match="`sigma_b` must be finite and nonnegative, got nan"):
        jacobian_spectrum(relu, 2, sigma_w=1.0, sigma_b=float("nan"))
    with pytest.raises(ValueError, match="must have a fixed point of the variance map, got 2"):
        jacobian_spectrum(relu, 2, sigma_w=2.0)
    with pytest.raises(ValueError, match="must not all be 0, got sigma_w=0"):
        jacobian_spectrum(relu, 2, sigma_w=0.0, q=1.0)
    with pytest.raises(ValueError, match="`log_eigenvalues` must be finite"):
        jacobian_spectrum(relu, 2, sigma_w=1.0, q=1.0, log_eigenvalues=[-np.inf])
    with pytest.raises(TypeError, match="kinks"):
        jacobian_spectrum(np.tanh, 2, sigma_w=1.0)


def test_no_eigenvalues_no_density():
    found = jacobian_spectrum(activations.relu, 3, sigma_w=SQRT2, q=1.0, log_eigenvalues=[])
    assert (found.density.shape, found.cdf.shape) == ((0,), (0,))
    assert found.m1 == pytest.approx(1)


def test_what_no_spectrum_is_computed_for():
    with pytest.raises(ValueError, match="`depth` must be at most"):
        jacobian_spectrum(activations.relu, 10**400, sigma_w=1.0)
    with pytest.raises(ValueError, match=r"got sin, whose squares .* \(fourth powers up to 8\)"):
        jacobian_spectrum(activations.sin, 2, sigma_w=1.0, q=100.0)


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal"])
@pytest.mark.parametrize("name", ["relu", "hard_tanh"])
def test_one_layer_with_dead_units_keeps_the_rest_off_zero(name, weights):
    # Of a matrix with as many columns, of the rows that live: Marchenko and Pastur's edge.
    activation, sigma_w = activations.parse(name), 1.5
    alive = 0.5 if name == "relu" else math.erf(2**-0.5)
    edge = sigma_w**2 * ((1 - alive**0.5) ** 2 if weights == "gaussian" else 1)
    found = jacobian_spectrum(activation, 1, sigma_w=sigma_w, q=1.0, weights=weights, num_points=20)
    np.testing.assert_allclose(found.lambda_min, edge, rtol=1e-9)
    generator = np.random.default_rng(0)
    matrix = generator.normal(size=(400, 400)) / 20
    if weights == "orthogonal":
        matrix = np.linalg.qr(matrix)[0]
    rows = matrix[np.asarray(activation.derivative(generator.normal(size=400))) != 0]
    least = sigma_w**2 * np.linalg.svd(rows, compute_uv=False).min() ** 2
    np.testing.assert_allclose(least, edge, rtol=0.15)
