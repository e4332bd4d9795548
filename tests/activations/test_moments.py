"""Closed-form Gaussian moments against numerical integration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import activations

WITH_MOMENTS = [
    name
    for name in (*activations.names(), "leaky_relu(0.3)", "leaky_relu(-0.5)")
    if activations.parse(name).moments is not None
]


def integral(f, mean, variance, splits):
    """E f(z) by Gauss-Legendre between 12 standard deviations on both sides, split where f is not smooth."""
    deviation = np.sqrt(variance)
    inner = [s for s in splits if abs(s - mean) < 12 * deviation]
    ends = sorted([mean - 12 * deviation, mean + 12 * deviation, *inner])
    nodes, weights = np.polynomial.legendre.leggauss(200)
    total = 0.0
    for a, b in itertools.pairwise(ends):
        z = (a + b) / 2 + (b - a) / 2 * nodes
        density = np.exp(-((z - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        total += (b - a) / 2 * np.sum(weights * density * np.asarray(f(jnp.asarray(z))))
    return total


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_moments_agree_with_integration(name):
    activation = activations.parse(name)
    with jax.enable_x64(True):
        for mean, variance in ((0.0, 1.0), (0.7, 2.5), (-1.3, 0.04)):
            first, second = activation.moments(mean, variance)
            f = activation.fn
            scale = 1 + mean**4 + variance**2
            assert first == pytest.approx(
                integral(f, mean, variance, activation.breakpoints), abs=1e-12 * scale, rel=1e-12
            )
            squares = integral(lambda z, f=f: f(z) ** 2, mean, variance, activation.breakpoints)
            assert second == pytest.approx(squares, abs=1e-12 * scale, rel=1e-12)


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_moments_of_a_constant_are_its_image(name):
    activation = activations.parse(name)
    for mean in (-0.8, 0.0, 1.5):
        first, second = activation.moments(mean, 0.0)
        value = float(activation(mean))
        assert first == pytest.approx(value, abs=1e-6)
        assert second == pytest.approx(value**2, abs=1e-6)


@pytest.mark.parametrize("name", WITH_MOMENTS)
def test_moments_are_differentiable_and_traced(name):
    moments = activations.parse(name).moments
    second = jax.jit(lambda v: moments(0.5, v)[1])
    with jax.enable_x64(True):
        for variance in (0.25, 1.0, 4.0):
            h = 1e-4 * variance  # the quotient errs by h^2, and by rounding over h
            quotient = (second(variance + h) - second(variance - h)) / (2 * h)
            assert jax.grad(second)(variance) == pytest.approx(float(quotient), rel=1e-6, abs=1e-8)


def test_relu_halves_the_second_moment():
    first, second = activations.relu.moments(0.0, 2.0)
    assert first == pytest.approx(1 / np.sqrt(np.pi))
    assert second == pytest.approx(1.0)
