"""The spectral density against matrices whose spectrum is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.probes import spectral_density


def matrix_with(values, shape, seed=0):
    rng = np.random.default_rng(seed)
    m, n = shape
    k = len(values)
    left, right = np.linalg.qr(rng.normal(size=(m, k)))[0], np.linalg.qr(rng.normal(size=(n, k)))[0]
    return (left * values) @ right.T


def smoothed(eigenvalues, grid, width):
    z = (grid[:, None] - eigenvalues) / width
    return np.mean(np.exp(-(z**2) / 2), 1) / (width * np.sqrt(2 * np.pi))


@pytest.mark.parametrize(("m", "n"), [(250, 200), (120, 200)], ids=["tall", "wide"])
def test_density_is_exact_within_its_standard_error(m, n):
    values = np.sqrt(np.random.default_rng(1).beta(2, 3, size=min(m, n)) * 4)
    A = jnp.asarray(matrix_with(values, (m, n)), jnp.float32)
    grid, width = np.linspace(-0.5, 4.5, 41), 0.15

    @jax.jit
    @jax.vmap
    def estimate(key):
        return spectral_density(
            lambda x: A @ x, jnp.ones(n), key=key, num_probes=16, num_steps=64, grid=grid, width=width
        )

    found = estimate(jax.random.split(jax.random.key(0), 12))
    eigenvalues = np.r_[values**2, np.zeros(n - len(values))]
    exact = smoothed(eigenvalues, grid, width)
    near = exact > 1e-3 * exact.max()  # beyond, neither has more than rounding
    z = (np.asarray(found.density) - exact)[:, near] / np.asarray(found.standard_error)[:, near]
    # Student's t with 15 degrees of freedom has the variance 15/13; neighbours on the grid are correlated.
    assert 0.6 < np.mean(z**2) < 1.9
    assert np.abs(z).max() < 6
    mean = np.asarray((found.weights * found.nodes).sum(-1))
    assert np.abs(mean.mean() - eigenvalues.mean()) < 4 * mean.std() / mean.size**0.5


def test_nodes_of_a_whole_space_are_the_eigenvalues():
    values = np.linspace(1, 3, 12)
    A = jnp.asarray(matrix_with(values, (15, 12)), jnp.float32)
    x = jnp.ones((2, 3, 4))  # two inputs of several axes, more steps than there are dimensions
    found = spectral_density(lambda x: A @ x.reshape(-1), x, key=jax.random.key(0), num_probes=2)
    assert found.nodes.shape == found.weights.shape == (2, 2, 12)
    for nodes in found.nodes.reshape(4, 12):
        np.testing.assert_allclose(np.sort(nodes), values**2, rtol=1e-4)
    np.testing.assert_allclose(found.weights.sum(-1), 1, rtol=1e-5)
    # The default grid and width hold the whole density.
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid, axis=-1), 1, atol=1e-2)


@pytest.mark.parametrize(
    "values", [np.ones(60), np.r_[3.0, 2.0], np.zeros(1)], ids=["isometry", "rank2", "zero"]
)
def test_a_space_that_is_exhausted_early_leaves_no_nan(values):
    A = jnp.asarray(matrix_with(values, (70, 60)), jnp.float32)
    found = spectral_density(lambda x: A @ x, jnp.ones(60), key=jax.random.key(0), num_steps=20, width=0.5)
    grid = np.asarray(found.grid)
    exact = smoothed(np.r_[values**2, np.zeros(60 - len(values))], grid, 0.5)
    error = np.abs(np.asarray(found.density) - exact)
    assert (error <= 5 * np.asarray(found.standard_error) + 1e-4 * exact.max()).all()


def test_a_network_has_the_density_of_its_own_jacobian():
    with jax.enable_x64(True):
        weights = jax.random.normal(jax.random.key(0), (3, 80, 80), jnp.float64) / 80**0.5

        def f(x):
            for w in weights:
                x = jnp.tanh(x @ w)
            return x

        x = jax.random.normal(jax.random.key(1), (80,), jnp.float64)
        found = spectral_density(f, x, key=jax.random.key(2), num_probes=32)
        assert found.density.dtype == jnp.float64
        exact = smoothed(
            np.linalg.svd(jax.jacrev(f)(x), compute_uv=False) ** 2, np.asarray(found.grid), float(found.width)
        )
        z = (found.density - exact) / np.asarray(found.standard_error)
        assert np.abs(z[exact > 1e-3 * exact.max()]).max() < 5


def test_nan_is_reported_as_nan():
    found = spectral_density(lambda x: jnp.nan * x, jnp.ones(5), key=jax.random.key(0))
    assert np.isnan(found.density).all()


def test_bad_input_is_refused_by_name():
    run = lambda **options: spectral_density(jnp.tanh, jnp.ones(3), key=jax.random.key(0), **options)  # noqa: E731
    with pytest.raises(ValueError, match="`num_probes` must be an integer >= 2, got 1"):
        run(num_probes=1)
    with pytest.raises(ValueError, match="`num_steps` must be an integer >= 1, got 0"):
        run(num_steps=0)
    with pytest.raises(ValueError, match=r"`grid` must be one axis .*\(2, 2\)"):
        run(grid=jnp.ones((2, 2)))
    with pytest.raises(ValueError, match="`width` must be positive, got 0"):
        run(width=0)
    with pytest.raises(TypeError, match="`x` must be real floating-point"):
        spectral_density(jnp.tanh, jnp.ones(3, int), key=jax.random.key(0))
