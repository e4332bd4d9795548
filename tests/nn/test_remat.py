"""A stack that keeps every k-th hidden state alone has the gradients of one that keeps them all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxact import activations, nn

WIDTH, MAX_DEPTH = 5, 7  # in stretches of 3
STAGES = {
    "plain with a learned slope": partial(nn.Plain, WIDTH, nn.PReLU),
    "pre-activation with batch norm": partial(nn.PreAct, WIDTH, activations.tanh, norm=nnx.BatchNorm),
    "post-activation, a convolution": partial(nn.PostAct, WIDTH, activations.sigmoid, kernel_size=(3, 3)),
}


def gradients(stage, dtype):
    """A function of whether to recompute, and of depth: output, updated statistics, and gradients by everything."""
    stack = nn.Stack(stage, MAX_DEPTH, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(stack, nnx.Param, ...)
    params, rest = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, rest))
    space = (4, 4) if stack.stages.affine.kernel.ndim > 3 else ()
    x = jax.random.normal(jax.random.key(1), (6, *space, WIDTH), dtype)
    taps = jnp.zeros((MAX_DEPTH, *x.shape), dtype)

    def found(remat, depth):
        def loss(params, x, taps):
            stack = nnx.merge(graphdef, params, rest, copy=True)
            stack.train()
            stack.remat = remat
            output = stack(x, depth, taps=taps)
            return jnp.sum(jnp.sin(output)), (output, nnx.split(stack, nnx.Param, ...)[2])

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, x, taps)

    return found


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.float64, 1e-12)])
def test_gradients_are_the_same_at_every_depth(name, dtype, tolerance):
    with jax.enable_x64(dtype == jnp.float64):
        found = gradients(STAGES[name], dtype)
        stored, recomputed = (jax.jit(partial(found, remat)) for remat in (False, True))
        for depth in range(1, MAX_DEPTH + 1):
            given, expected = recomputed(jnp.asarray(depth)), stored(jnp.asarray(depth))
            jax.tree.map(
                # Of an array's largest entry: a sum that cancels keeps the rounding of its terms.
                lambda a, b: np.testing.assert_allclose(
                    a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max())
                ),
                given,
                expected,
            )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
            jax.jit(partial(found, True, MAX_DEPTH))(),  # an integer
            stored(jnp.asarray(MAX_DEPTH)),
        )


def test_hessian_vector_products_and_depths_beyond_are_as_without():
    found = gradients(STAGES["plain with a learned slope"], jnp.float32)
    assert np.isnan(jax.jit(partial(found, True))(jnp.asarray(MAX_DEPTH + 1))[0][0])

    def along(remat, t):
        def value(x):
            stack = nn.Stack(STAGES["pre-activation with batch norm"], MAX_DEPTH, rngs=nnx.Rngs(0))
            stack.eval()
            stack.remat = remat
            return jnp.sum(jnp.sin(stack(x, jnp.asarray(5))))

        x = jnp.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH)
        return jax.jvp(jax.grad(value), (x,), (t * jnp.ones_like(x),))[1]

    np.testing.assert_allclose(along(True, 2.0), along(False, 2.0), rtol=1e-5, atol=1e-6)
