"""Singular triplets satisfy their definition, on maps of full and of low rank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.numerics import golub_kahan, leading_singular_triplets
from jaxact.numerics._krylov import _orthonormal


@pytest.mark.parametrize(("shape", "num"), [((120, 100), 3), ((4, 300), 2), ((50, 60), 50)])
def test_triplets_satisfy_their_definition(shape, num):
    with jax.enable_x64(True):
        A = np.random.default_rng(0).normal(size=shape)
        found = leading_singular_triplets(
            lambda v: A @ v, lambda u: A.T @ u, shape=shape, num=num, dtype=jnp.float64
        )
        np.testing.assert_allclose(found.values, np.linalg.svd(A, compute_uv=False)[:num], rtol=1e-10)
        np.testing.assert_allclose(found.left @ found.left.T, np.eye(num), atol=1e-12)
        np.testing.assert_allclose(found.right @ found.right.T, np.eye(num), atol=1e-12)
        np.testing.assert_allclose(found.right @ A.T, found.values[:, None] * found.left, atol=1e-6)


def test_rank_one_leaves_no_nan():
    u, v = np.ones(80, np.float32), np.arange(90, dtype=np.float32)
    found = leading_singular_triplets(lambda x: u * (v @ x), lambda y: v * (u @ y), shape=(80, 90), num=2)
    expected = np.linalg.norm(u) * np.linalg.norm(v)
    np.testing.assert_allclose(found.values, [expected, 0], atol=1e-5 * expected)
    np.testing.assert_allclose(np.abs(found.right[0]), v / np.linalg.norm(v), atol=1e-5)


def test_golub_kahan_satisfies_its_definition_and_stops_where_the_space_ends():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        A = jnp.asarray(rng.normal(size=(40, 5)) @ rng.normal(size=(5, 30)))
        found = golub_kahan(
            lambda v: A @ v, lambda u: A.T @ u, jnp.asarray(rng.normal(size=30)), num_steps=9, num_rows=40
        )
        B = np.diag(found.diagonal) + np.diag(found.above, 1)
        np.testing.assert_allclose(A @ found.right.T, found.left.T @ B, atol=1e-11)
        for basis in (found.left, found.right):
            gram = np.asarray(basis @ basis.T)
            np.testing.assert_allclose(gram, np.diag(gram.diagonal().round()), atol=1e-12)
        # The start has a part in the null space, hence one dimension more than the rank, and a zero for it.
        np.testing.assert_allclose(
            np.linalg.svd(B, compute_uv=False),
            np.r_[np.linalg.svd(A, compute_uv=False)[:5], 0, 0, 0, 0],
            atol=1e-10,
        )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("rows", ["one", "graded", "alike"])
def test_new_rows_are_orthonormal_whatever_their_sizes(rows, dtype):
    with jax.enable_x64(True):
        n = 20_000
        rng = np.random.default_rng(0)
        basis = np.linalg.qr(rng.normal(size=(n, 6)))[0].T
        given = rng.normal(size=(7, n))
        if rows == "alike":
            given = given[0] + 1e-6 * given
        else:
            sizes = np.eye(7)[0] if rows == "one" else 10.0 ** -np.arange(7)
            given = sizes[:, None] * given
        noise = rng.normal(size=(7, n)) / n**0.5
        made = _orthonormal(*(jnp.asarray(each, dtype) for each in (given, basis, noise)))
        made = np.asarray(made, np.float64)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(made @ made.T, np.eye(7), atol=20 * eps)
    np.testing.assert_allclose(made @ basis.T, 0, atol=20 * eps)
