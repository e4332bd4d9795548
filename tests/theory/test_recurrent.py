"""Recurrent networks: mpmath's integrals, closed forms of erf, asymptotics, a simulated network."""

import dataclasses
import math

import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq

from jaxact import activations, theory


def expected(fn, variance):
    density = lambda z: mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi)  # noqa: E731
    return float(mpmath.quad(lambda z: fn(mpmath.sqrt(variance) * z) * density(z), [-12, -2, 0, 2, 12]))


def test_factors_of_tanh_are_its_integrals():
    found = theory.recurrent_factors(activations.tanh, gain=1.1, variance=9.382)
    slope = expected(lambda x: 1 - mpmath.tanh(x) ** 2, 9.382)
    square = expected(lambda x: (1 - mpmath.tanh(x) ** 2) ** 2, 9.382)
    np.testing.assert_allclose(
        found, [1.1 * slope, 1.1 * square**0.5, 1.21 * square], rtol=1e-5
    )  # the chapter's figures, to the digits given there:
    np.testing.assert_allclose([found.mean_slope, found.root_mean_square], [0.275, 0.4546], atol=5e-5)


def test_slopes_of_both_signs_are_averaged_by_size():
    found = theory.recurrent_factors(activations.abs, gain=2.0, variance=3.0, spectral_radius=1.5)
    np.testing.assert_allclose(found, [1.5, 1.5, 4.0], rtol=1e-6)
    slope = expected(lambda x: abs(mpmath.diff(lambda y: y * mpmath.ncdf(y), x)), 2.0)
    gelu = theory.recurrent_factors(activations.gelu, gain=1.0, variance=2.0)
    np.testing.assert_allclose(gelu.mean_slope, slope, rtol=1e-5)
    assert gelu.mean_slope > theory.moments(activations.gelu, variance=2.0).slope


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "leaky_relu(0.2)", "gelu"])
def test_the_heuristic_is_never_above_the_root_mean_square(name):
    found = theory.recurrent_factors(
        activations.parse(name), gain=np.array([0.5, 1.5]), variance=np.array([0.3, 4.0])
    )
    assert (found.mean_slope <= found.root_mean_square * (1 + 1e-6)).all()
    np.testing.assert_allclose(found.root_mean_square**2, found.chi, rtol=1e-6)


def test_lists_are_arrays():
    gains, variances = [0.5, 1.5], (0.3, 4.0)
    lists = theory.recurrent_factors(activations.tanh, gain=gains, variance=variances, spectral_radius=gains)
    arrays = theory.recurrent_factors(
        activations.tanh, gain=np.array(gains, np.float32), variance=np.array(variances, np.float32)
    )
    np.testing.assert_array_equal(lists, arrays)


@pytest.mark.parametrize("name", ["gain", "variance", "spectral_radius"])
def test_complex_numbers_and_ragged_lists_are_refused_by_name(name):
    numbers = {"gain": 1.0, "variance": 1.0, "spectral_radius": 1.0}
    for value in (1 + 1j, np.array([1j]), [1.0, 1j]):
        with pytest.raises(ValueError, match=f"`{name}` must be real, got"):
            theory.recurrent_factors(activations.tanh, **{**numbers, name: value})
    for value in ([[1.0], [1.0, 2.0]], "1"):
        with pytest.raises(ValueError, match=f"`{name}` must be a number, got"):
            theory.recurrent_factors(activations.tanh, **{**numbers, name: value})


def correlations_of_erf(gain):
    """Delta(0) and the exponent by Williams' closed forms for erf and an initial value problem."""

    def value(delta, largest):
        return gain**2 * 2 / math.pi * np.arcsin(2 * delta / (1 + 2 * largest))

    def slope(delta, largest):
        return gain**2 * 4 / math.pi / np.sqrt((1 + 2 * largest) ** 2 - 4 * delta**2)

    def energy(largest):
        s = 2 * largest / (1 + 2 * largest)
        integral = (1 + 2 * largest) / 2 * (s * np.arcsin(s) + math.sqrt(1 - s * s) - 1)
        return gain**2 * 2 / math.pi * integral - largest**2 / 2

    largest = brentq(energy, 1e-4, 4 * gain**2, xtol=1e-14)
    lags = np.linspace(0, 14, 701)
    path = solve_ivp(
        lambda t, y: [y[1], y[0] - value(y[0], largest)], (0, 14), [largest, 0.0], "DOP853", lags, rtol=1e-12
    )
    step = lags[1]
    well = 1 - slope(path.y[0], largest)
    well, n = np.concatenate([well[:0:-1], well]), 2 * len(well) - 1  # the whole line
    H = np.diag(well + 2 / step**2) - (np.eye(n, k=1) + np.eye(n, k=-1)) / step**2
    return largest, np.sqrt(1 - np.linalg.eigvalsh(H)[0]) - 1


def test_the_exponent_of_erf_is_that_of_its_closed_forms():
    found = theory.rate_network(activations.erf, gain=2.0)
    variance, exponent = correlations_of_erf(2.0)
    assert found.onset == pytest.approx(math.sqrt(math.pi) / 2, rel=1e-9)
    assert found.variance == pytest.approx(variance, rel=1e-6)
    assert found.lyapunov == pytest.approx(exponent, abs=1e-4)


def gaussian_rule(deviation):
    """Nodes and weights: Gauss and Hermite's where tanh is wide beside the Gaussian, else the trapezoidal rule."""
    if deviation < 0.5:
        x, weights = np.polynomial.hermite_e.hermegauss(60)
    else:
        x = np.linspace(-9, 9, int(72 * deviation) + 1)
        weights = np.exp(-x * x / 2)
    return deviation * x, weights / weights.sum()


def correlations_of_tanh(gain):
    """Delta(0) and the exponent by V = g^2 (E F F - (E F)^2) - Delta^2 / 2, F = ln cosh, and by shooting."""

    def primitive(x):
        return np.logaddexp(x, -x) - math.log(2)

    def product(fn, c, largest):  # what x and y share, then what each has alone
        shared, weights = gaussian_rule(math.sqrt(c * largest))
        alone, inner = gaussian_rule(math.sqrt((1 - c) * largest))
        return weights @ (fn(shared[:, None] + alone) @ inner) ** 2

    def mean(fn, largest):
        x, weights = gaussian_rule(math.sqrt(largest))
        return weights @ fn(x)

    def potential(c, largest):
        return (
            gain**2 * (product(primitive, c, largest) - mean(primitive, largest) ** 2)
            - (c * largest) ** 2 / 2
        )

    largest = brentq(lambda q: potential(1.0, q) / q**2, 1e-2 * gain**2, gain**2, xtol=1e-13)
    u = 2.6 * np.linspace(0, 1, 161)[1:] ** 2  # c = cosh(u)^-4, to 1e-3; beyond, V is a parabola
    c = np.cosh(u) ** -4.0
    down = np.array([-2 * potential(each, largest) for each in c])
    well = 1 - gain**2 * np.array([product(lambda x: 1 - np.tanh(x) ** 2, each, largest) for each in c])
    speed = 4 * largest * c * np.tanh(u) / np.sqrt(down)
    even = np.concatenate([-u[::-1], u])
    tau = CubicSpline(even, np.concatenate([speed[::-1], speed])).antiderivative()
    tau = tau(u) - tau(0)
    peak = CubicSpline(np.concatenate([-tau[::-1], tau]), np.concatenate([well[::-1], well]))

    def slope_at_0(energy):  # of log psi, from the last lag back: of the ground state 0
        last = -math.sqrt(well[-1] - energy)
        path = solve_ivp(
            lambda t, y: peak(t) - energy - y * y, (tau[-1], 0), [last], "DOP853", rtol=1e-9, atol=1e-11
        )
        return path.y[0, -1]

    lowest = brentq(slope_at_0, well.min(), 0.0, xtol=1e-10)
    return largest, math.sqrt(1 - lowest) - 1


@pytest.mark.parametrize("gain", [2.0, 5.0, 10.0, 20.0])
def test_the_exponent_of_tanh_is_that_of_another_potential_and_shooting(gain):
    found = theory.rate_network(activations.tanh, gain=gain)
    variance, exponent = correlations_of_tanh(gain)
    assert found.variance == pytest.approx(variance, rel=1e-6)
    assert found.lyapunov == pytest.approx(exponent, abs=2e-5)


def test_a_gain_at_the_onset_is_neither_below_nor_above():
    for gain in (1.0, 1.00005, 1.0001):
        assert theory.rate_network(activations.tanh, gain=gain)[1:] == (0.0, 0.0)
    assert theory.rate_network(activations.tanh, gain=0.9999).lyapunov == pytest.approx(-1e-4)


def test_near_onset_the_exponent_is_half_the_square_of_the_distance():
    # Sompolinsky, Crisanti & Sommers 1988, below equation 14: Delta(0) ~ eps, lambda ~ eps^2 / 2.
    for eps in (0.01, 0.02):
        found = theory.rate_network(activations.tanh, gain=1 + eps)
        np.testing.assert_allclose(found.variance, eps, rtol=2 * eps)
        np.testing.assert_allclose(found.lyapunov, eps**2 / 2, rtol=5 * eps)


def test_a_steeper_activation_is_a_larger_gain():
    steep = dataclasses.replace(
        activations.tanh,
        name="steep",
        fn=lambda x: activations.tanh(2 * x),
        derivative=lambda x: 2 * activations.tanh.derivative(2 * x),
        slope_range=activations.Interval(0.0, 2.0),
        lipschitz=math.nan,
        moments=None,
    )
    found, plain = theory.rate_network(steep, gain=1.0), theory.rate_network(activations.tanh, gain=2.0)
    assert (found.onset, plain.onset) == (0.5, 1.0)
    np.testing.assert_allclose([found.variance * 4, found.lyapunov], plain[1:], rtol=1e-5)


def test_other_activations_are_refused_with_what_to_do():
    for name in ("relu", "sigmoid", "identity"):
        with pytest.raises(ValueError, match=r"`activation` must be odd, bounded and steepest at 0"):
            theory.rate_network(activations.parse(name), gain=2.0)
    with pytest.raises(ValueError, match="`gain` must be finite and nonnegative"):
        theory.rate_network(activations.tanh, gain=-1.0)
    with pytest.raises(ValueError, match="`spectral_radius` must be finite and nonnegative"):
        theory.recurrent_factors(activations.tanh, gain=1.0, variance=1.0, spectral_radius=-1.0)
