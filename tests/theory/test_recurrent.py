"""Recurrent networks: mpmath's integrals, closed forms of erf, asymptotics, a simulated network."""

import dataclasses
import math

import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp
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
