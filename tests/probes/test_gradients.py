"""Gradient norms against gradients taken layer by layer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxact import probes

DEPTH, WIDTH, BATCH = 4, 5, 3


def forward(parameters, taps, x):
    def layer(h, inputs):
        p, tap = inputs
        h = jnp.tanh(h @ p["kernel"] + p["bias"]) + tap
        return h, None

    return lax.scan(layer, x, (parameters, taps))[0]


def problem():
    keys = jax.random.split(jax.random.key(0), 3)
    parameters = {
        "kernel": jax.random.normal(keys[0], (DEPTH, WIDTH, WIDTH)),
        "bias": jax.random.normal(keys[1], (DEPTH, WIDTH)),
    }
    x = jax.random.normal(keys[2], (BATCH, WIDTH))
    return parameters, jnp.zeros((DEPTH, BATCH, WIDTH)), x


class GradientNormsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_equal_finite_differences_along_the_gradient(self):
        with jax.enable_x64(True):
            parameters, taps, x = jax.tree.map(lambda a: a.astype(jnp.float64), problem())
            loss = lambda p, t: jnp.sum(forward(p, t, x) ** 2)  # noqa: E731
            weights, hidden = self.variant(lambda p, t: probes.gradient_norms(loss, p, t))(parameters, taps)
            chex.assert_shape([weights, hidden], (DEPTH,))
            # Brute force: every entry by central differences.
            flat, unravel = ravel_pytree((parameters, taps))
            step = 1e-5
            differences = jax.vmap(
                lambda d: (loss(*unravel(flat + d)) - loss(*unravel(flat - d))) / (2 * step)
            )
            gradient = unravel(differences(step * jnp.eye(flat.size)))
            for l in range(DEPTH):  # noqa: E741
                expected = np.sqrt(sum(float((leaf[l] ** 2).sum()) for leaf in gradient[0].values()))
                np.testing.assert_allclose(weights[l], expected, rtol=1e-7)
                np.testing.assert_allclose(hidden[l], np.linalg.norm(gradient[1][l]), rtol=1e-7)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_extreme_gradients_neither_overflow_nor_vanish(size):
    (norms,) = probes.gradient_norms(lambda w: size * jnp.sum(w), jnp.ones((2, 4)))
    np.testing.assert_allclose(norms, 2 * size, rtol=1e-6)


def test_zero_gradient_is_zero_and_nan_is_nan():
    (norms,) = probes.gradient_norms(
        lambda w: jnp.sum(w * jnp.array([[0.0], [jnp.nan], [1.0]])), jnp.ones((3, 1))
    )
    np.testing.assert_array_equal(norms, [0, np.nan, 1])


def test_bad_input_is_refused_by_name():
    w = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="at least one stacked argument"):
        probes.gradient_norms(jnp.sum)
    with pytest.raises(ValueError, match="`loss` must return a scalar"):
        probes.gradient_norms(lambda w: w, w)
    with pytest.raises(TypeError, match="argument 1 must hold real floating-point"):
        probes.gradient_norms(lambda w, n: jnp.sum(w), w, jnp.arange(2))
    with pytest.raises(ValueError, match="same leading layer axis"):
        probes.gradient_norms(lambda p: jnp.sum(p["a"]), {"a": w, "b": jnp.ones((3, 3))})
    with pytest.raises(ValueError, match="same leading layer axis"):
        probes.gradient_norms(lambda p: 0.0, {})
