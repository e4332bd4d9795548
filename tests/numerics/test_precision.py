import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxact import activations, lipschitz, nn, numerics, probes

W = jax.random.normal(jax.random.key(0), (128, 128)) / 128**0.5  # large enough not to be formed
HIGHEST = jax.lax.Precision.HIGHEST


def precisions(fn, *args):
    """Of every matrix product and convolution that a function traces, in loops and calls too."""
    found = []

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
                found.append(eqn.params["precision"])
            for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    visit(inner)

    with jax.default_matmul_precision(None):  # as it is where nobody asks for another
        visit(jax.make_jaxpr(fn)(*args).jaxpr)
    return found


def f(x):
    return jnp.tanh(x @ W)


def ellipsoid_of(network):
    graph, state = nnx.split(network)
    return lambda state: nnx.merge(graph, state).log_lipschitz(method="ellipsoid"), state


CASES = {
    "jacobian": (lambda x: probes.jacobian(f, x), W[0]),
    "singular values": (lambda x: probes.singular_values(f, x), W[0]),
    "the largest": (lambda x: probes.singular_values(f, x, 1), W[0]),
    "the smallest": (lambda x: probes.singular_values(f, x, 1, which="smallest"), W[0]),
    "density": (lambda x: probes.spectral_density(f, x, key=jax.random.key(0)), W[0]),
    "Krylov": (
        lambda A: numerics.leading_singular_triplets(lambda v: A @ v, lambda u: A.T @ u, shape=A.shape),
        W,
    ),
    "Golub and Kahan": (
        lambda A: numerics.golub_kahan(
            lambda v: A @ v, lambda u: A.T @ u, jnp.ones(128), num_steps=3, num_rows=128
        ),
        W,
    ),
    "orthogonal convolution": (
        lambda w: nn.OrthogonalConv(2, 4, kernel_size=(3, 3), rngs=nnx.Rngs(0)).kernel() + w,
        jnp.zeros((3, 3, 2, 4)),
    ),
    "spectral norm": (
        lambda w: nn.SpectralNorm(nnx.Linear(6, 4, rngs=nnx.Rngs(0))).kernel() + w,
        jnp.zeros((6, 4)),
    ),
    "lower bound": (lambda x: lipschitz.lower_bound(f, x, key=jax.random.key(0)).value, W[:2]),
    "Gram": (lipschitz.gram_norm, W),
    "upper bound": (
        lambda A: lipschitz.upper_bound([A, A], activations.tanh, method="eclipse_fast"),
        W,
    ),
    "orthogonal": (lambda w: nn.OrthogonalLinear(6, 4, rngs=nnx.Rngs(0)).kernel() + w, jnp.zeros((6, 4))),
    "ellipsoid": ellipsoid_of(nn.MLP(4, 4, 2, max_depth=2, activation=activations.tanh, rngs=nnx.Rngs(0))),
}


LEAST = dict.fromkeys(("the largest", "the smallest", "Krylov"), 10)


@pytest.mark.parametrize("name", CASES)
def test_no_product_is_left_to_what_a_gpu_makes_of_it(name):
    fn, *args = CASES[name]
    found = precisions(fn, *args)
    assert len(found) >= LEAST.get(name, 1)
    assert all(each == (HIGHEST, HIGHEST) for each in found), found


def test_a_precision_that_is_asked_for_stays():
    low = jax.lax.Precision.DEFAULT
    found = precisions(numerics.full_precision(lambda A: jnp.matmul(A, A, precision=low)), W)
    assert found == [(low, low)]
