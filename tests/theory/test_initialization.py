"""The gain against closed forms, and its refusal where none exists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import activations, theory


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (activations.relu, 2**0.5),
        (activations.identity, 1.0),
        (activations.leaky_relu(0.2), (2 / 1.04) ** 0.5),
        (activations.relu_squared, (2 / 3) ** 0.25),
        (activations.selu, 1.0),  # Klambauer et al. 2017: (0, 1) is its fixed point
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_known_gains(activation, expected):
    assert theory.gain(activation) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "erf", "sin", "cos", "hard_tanh", "squareplus"])
def test_activations_without_a_gain_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name}, which stays (below|above) 1\..*critical_point"):
        theory.gain(activations.parse(name))


def test_gain_is_a_constant_of_a_traced_program():
    scaled = jax.jit(lambda x: x * theory.gain(activations.relu))
    np.testing.assert_allclose(scaled(1.0), 2**0.5, rtol=1e-6)


def test_bad_input_is_refused_by_name():
    with pytest.raises(TypeError, match="from_callable"):
        theory.gain(np.tanh)


def test_a_root_beside_what_cannot_be_integrated_is_no_gain():
    # E f(sigma z)^2 = (1 - sigma^2)^(-1/2) / 100 is 1 at 0.99995 only, where the tail is out of reach.
    explosive = activations.Activation(
        name="explosive", fn=lambda x: 0.1 * jnp.exp(x**2 / 4), derivative=lambda x: 0.05 * x * jnp.exp(x**2 / 4),
        range=activations.Interval(0.1, np.inf), slope_range=activations.Interval(-np.inf, np.inf),
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=r"got explosive, which stays below 1\. No weight scale up to 0\.\d+, beyond"
    ):
        theory.gain(explosive)
