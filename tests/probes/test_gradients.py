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

            def norms(p, t):
                by_parts = lambda kernel, bias, t: loss({"kernel": kernel, "bias": bias}, t)  # noqa: E731
                return probes.gradient_norms(by_parts, p["kernel"], p["bias"], t)

            kernels, biases, hidden = self.variant(norms)(parameters, taps)
            chex.assert_shape([kernels, biases, hidden], (DEPTH,))
            weights = np.hypot(kernels, biases)
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


def test_a_convolution_and_a_dense_layer_have_a_norm_each():
    model = {
        "conv": {"kernel": jnp.ones((3, 3, 1, 2))},
        "dense": [jnp.ones((2, 5)), jnp.ones(5)],
        "none": None,
    }
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))

    def loss(p):
        z = lax.conv_general_dilated(
            x, p["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(jnp.tanh(z).mean((1, 2)) @ p["dense"][0] * jnp.arange(5.0) + 0.5 * p["dense"][1])

    (norms,) = probes.gradient_norms(loss, model)
    chex.assert_trees_all_close(norms, jax.tree.map(lambda g: jnp.sqrt(jnp.sum(g**2)), jax.grad(loss)(model)))
    assert jax.tree.structure(norms) == jax.tree.structure(model)
    np.testing.assert_allclose(norms["dense"][1], 0.5 * 5**0.5, rtol=1e-6)
    assert float(norms["conv"]["kernel"]) > 0


@pytest.mark.parametrize("shape", [(), (3,), (3, 3)])
def test_the_leaves_of_a_pytree_are_no_layers_whatever_their_shapes(shape):
    leaves = [jnp.full(shape, 2.0), jnp.full(shape, 3.0)]
    (norms,) = probes.gradient_norms(lambda p: sum(jnp.sum(leaf**2) / 2 for leaf in p), leaves)
    np.testing.assert_allclose(norms, np.array([2.0, 3.0]) * np.prod(shape) ** 0.5, rtol=1e-6)
    assert [norm.shape for norm in norms] == [(), ()]


def test_bad_input_is_refused_by_name():
    w = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="at least one argument"):
        probes.gradient_norms(jnp.sum)
    with pytest.raises(ValueError, match="`loss` must return a scalar"):
        probes.gradient_norms(lambda w: w, w)
    with pytest.raises(TypeError, match=r"`params\[1\]` must be real floating-point"):
        probes.gradient_norms(lambda w, n: jnp.sum(w), w, jnp.arange(2))
    with pytest.raises(ValueError, match="must be stacked layers"):
        probes.gradient_norms(lambda p: p, jnp.float32(1))
    with pytest.raises(ValueError, match="must hold arrays"):
        probes.gradient_norms(lambda p: 0.0, {})
    with pytest.raises(TypeError, match="must be real floating-point"):
        probes.gradient_norms(lambda p: 0.0, ["kernel"])
