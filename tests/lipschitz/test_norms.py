"""Bounds on layers' norms against numpy's SVD of the matrix, and of operators applied column by column."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.lipschitz import convolution_norm, dense_norm, gram_norm


def convolution_matrix(kernel, input_shape, strides, padding, dilation):
    """By loops over outputs and taps, one group; padding [(before, after)] or "CIRCULAR"."""
    window, out = kernel.shape[:-2], kernel.shape[-1]
    spatial = input_shape[:-1]
    extents = [d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)]
    circular = padding == "CIRCULAR"
    if circular:
        padding = [((e - 1) // 2, e // 2) for e in extents]
    outputs = [
        (n + a + b - e) // s + 1 for n, (a, b), e, s in zip(spatial, padding, extents, strides, strict=True)
    ]
    A = np.zeros((*outputs, out, *input_shape))
    for place in np.ndindex(*outputs):
        for tap in np.ndindex(*window):
            at = [
                p * s + t * d - a
                for p, s, t, d, (a, _) in zip(place, strides, tap, dilation, padding, strict=True)
            ]
            if circular:
                at = [i % n for i, n in zip(at, spatial, strict=True)]
            if all(0 <= i < n for i, n in zip(at, spatial, strict=True)):
                A[(*place, slice(None), *at, slice(None))] += kernel[tap].T
    return A.reshape(np.prod(outputs) * out, -1)


def test_dense_norm_is_above_numpys_by_next_to_nothing():
    rng = np.random.default_rng(0)
    for shape in ((1, 7), (7, 1), (5, 9), (60, 40), (500, 450)):
        A = rng.normal(size=shape) * 1e-3
        expected = np.linalg.norm(A, 2)
        assert expected * (1 - 1e-14) <= dense_norm(A) <= expected * (1 + 1e-9)
    low = rng.normal(size=(50, 2)) @ rng.normal(size=(2, 50))
    np.testing.assert_allclose(dense_norm(low), np.linalg.norm(low, 2), rtol=1e-9)
    assert dense_norm(np.zeros((3, 4))) == 0
    np.testing.assert_allclose(dense_norm(1e200 * np.eye(3)), 1e200, rtol=1e-12)


def test_dense_norm_is_proved_for_clustered_values():
    rng = np.random.default_rng(1)
    U, _, V = np.linalg.svd(rng.normal(size=(400, 400)))
    A = (U * (1 - 1e-6 * np.arange(400))) @ V
    assert 1 - 1e-13 <= dense_norm(A) <= 1 + 1e-8


def test_gram_iteration_falls_to_the_norm_from_above():
    rng = np.random.default_rng(2)
    A = rng.normal(size=(30, 20))
    expected = np.linalg.norm(A, 2)
    with jax.enable_x64(True):
        found = [float(gram_norm(A, num_iterations=k)) for k in (0, 2, 5, 12)]
        assert sorted(found, reverse=True) == found
        np.testing.assert_allclose(found[0], np.linalg.norm(A))
        assert found[-1] >= expected * (1 - 1e-13)
        np.testing.assert_allclose(found[-1], expected, rtol=20 ** (2.0**-13) - 1)
        gradient = jax.jit(jax.grad(lambda A: gram_norm(A, num_iterations=12)))(jnp.asarray(A))
        u, _, v = np.linalg.svd(A)
        np.testing.assert_allclose(gradient, np.outer(u[:, 0], v[0]), atol=1e-6)
        assert float(gram_norm(jnp.zeros((3, 3)))) == 0


def test_gram_iteration_is_never_below_what_overflows():
    assert np.isnan(gram_norm(jnp.array([[jnp.nan, 0.0], [0.0, 1.0]])))
    assert not float(gram_norm(jnp.array([[jnp.inf, 0.0], [0.0, 1.0]]))) < np.inf
    np.testing.assert_allclose(gram_norm(jnp.diag(jnp.array([9e37, 5e37], jnp.float32))), 9e37, rtol=2e-3)


CONVOLUTIONS = [
    ((3, 3), (6, 5, 2), 3, 1, "SAME", 1),
    ((3, 3), (6, 5, 2), 3, 2, "SAME", 1),
    ((2, 3), (7, 8, 2), 2, (2, 1), "VALID", (1, 2)),
    ((5,), (12, 3), 2, 3, [(4, 1)], 1),
    ((3,), (12, 3), 2, 1, [(5, 5)], 2),
    ((3, 3), (6, 6, 2), 2, 1, "CIRCULAR", 1),
    ((3,), (12, 2), 3, 2, "CIRCULAR", 2),
]


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_are_bounded_by_every_method(case):
    window, input_shape, out, strides, padding, dilation = case
    axes = len(window)
    kernel = np.random.default_rng(3).normal(size=(*window, input_shape[-1], out))
    s, d = (np.broadcast_to(x, axes).tolist() for x in (strides, dilation))
    pairs = padding
    if padding in ("SAME", "VALID"):
        extents = [e * (k - 1) + 1 for e, k in zip(d, window, strict=True)]
        pairs = jax.lax.padtype_to_pads(input_shape[:-1], extents, s, padding)
    expected = np.linalg.norm(convolution_matrix(kernel, input_shape, s, pairs, d), 2)
    options = {"strides": strides, "padding": padding, "dilation": dilation}
    found = {
        method: convolution_norm(kernel, input_shape, method=method, **options)
        for method in ("exact", "fourier", "absolute", "auto")
    }
    np.testing.assert_allclose(found["exact"], expected, rtol=1e-9)
    assert found["auto"] == found["exact"]
    assert min(found["fourier"], found["absolute"]) >= expected * (1 - 1e-12)
    if padding == "CIRCULAR":
        np.testing.assert_allclose(found["fourier"], expected, rtol=1e-9)
    else:
        assert found["fourier"] <= 1.6 * expected


def test_groups_are_blocks():
    rng = np.random.default_rng(4)
    kernel = rng.normal(size=(3, 2, 6))
    blocks = [
        np.linalg.norm(convolution_matrix(kernel[..., 3 * g : 3 * g + 3], (8, 2), [1], [(1, 1)], [1]), 2)
        for g in (0, 1)
    ]
    found = [convolution_norm(kernel, (8, 4), groups=2, method=m) for m in ("exact", "fourier", "absolute")]
    np.testing.assert_allclose(found[0], max(blocks), rtol=1e-9)
    assert min(found[1:]) >= max(blocks)


def test_large_images_take_the_fourier_bound():
    kernel = np.random.default_rng(5).normal(size=(3, 3, 4, 4)) / 6
    large = convolution_norm(kernel, (64, 64, 4))
    exact = convolution_norm(kernel, (16, 16, 4), method="exact")
    assert exact <= large <= 1.1 * exact  # the norm grows with the image, to a limit


def test_bad_input_is_refused_with_a_remedy():
    kernel = np.ones((3, 3, 2, 4))
    with pytest.raises(ValueError, match="must take 3 channels in 1 groups, got 2"):
        convolution_norm(kernel, (8, 8, 3))
    with pytest.raises(ValueError, match="Leave out the batch axis"):
        convolution_norm(kernel, (1, 8, 8, 2))
    with pytest.raises(ValueError, match="`padding` must be 'SAME'"):
        convolution_norm(kernel, (8, 8, 2), padding="REFLECT")
    with pytest.raises(ValueError, match="`method` must be one of"):
        convolution_norm(kernel, (8, 8, 2), method="power")
    with pytest.raises(ValueError, match="`strides` must be a positive integer"):
        convolution_norm(kernel, (8, 8, 2), strides=0)
    with pytest.raises(ValueError, match="`matrix` must be finite"):
        dense_norm([[np.nan]])
    with pytest.raises(ValueError, match="`num_iterations` must be an integer >= 0"):
        gram_norm(jnp.eye(2), num_iterations=-1)


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200, 1e307])
def test_norms_whose_squares_are_out_of_range(size):
    assert size * 2 <= dense_norm(np.full((1, 4), size)) <= size * 2 * (1 + 1e-9) + 1e-323
    kernel = np.full((3, 1, 1), size)
    exact = convolution_norm(kernel / size, (5, 1), method="exact") * size
    for method in ("auto", "exact", "fourier", "absolute"):
        found = convolution_norm(kernel, (5, 1), method=method)
        assert exact * (1 - 1e-9) - 1e-323 <= found <= 3 * size * (1 + 1e-9) + 1e-323


def test_gram_norm_takes_integers_and_many_iterations():
    assert float(gram_norm(np.eye(3, dtype=int) * 2, num_iterations=60)) == pytest.approx(2, rel=1e-5)
    with pytest.raises(TypeError, match="must be real"):
        gram_norm(np.eye(2) * 1j)
    with pytest.raises(ValueError, match="not empty"):
        gram_norm(np.zeros((0, 3)))
