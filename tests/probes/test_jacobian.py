"""Properties of the Jacobian and its singular values, against dense references from numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax import lax

from jaxact import probes
from jaxact.probes import _jacobian


def network(key, widths, gain=1.0):
    keys = jax.random.split(key, len(widths) - 1)
    weights = [
        gain * jax.random.normal(k, (i, o)) / np.sqrt(i)
        for k, i, o in zip(keys, widths, widths[1:], strict=False)
    ]

    def f(x):
        h = x.reshape(-1)
        for w in weights:
            h = jnp.tanh(h @ w)
        return h

    return f


def chain(key, width, depth, gain=1.0):
    weights = gain * jax.random.normal(key, (depth, width, width)) / np.sqrt(width)
    return lambda x: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]


def matrix_with(values, shape, seed=0):
    rng = np.random.default_rng(seed)
    m, n = shape
    left, right = np.linalg.qr(rng.normal(size=(m, m)))[0], np.linalg.qr(rng.normal(size=(n, n)))[0]
    k = len(values)
    return jnp.asarray((left[:, :k] * values) @ right[:, :k].T, jnp.float32)


class JacobianTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_equals_reverse_mode_and_finite_differences(self):
        with jax.enable_x64(True):
            f = network(jax.random.key(0), (6, 9, 5))
            x = jax.random.normal(jax.random.key(1), (3, 2, 3))
            J = self.variant(lambda x: probes.jacobian(f, x))(x)
            chex.assert_shape(J, (3, 5, 6))
            chex.assert_trees_all_close(J, jax.vmap(jax.jacrev(f))(x).reshape(3, 5, 6), atol=1e-14)
            step = 1e-6 * np.eye(6).reshape(6, 2, 3)
            for b in range(3):
                difference = np.stack([(f(x[b] + d) - f(x[b] - d)) / 2e-6 for d in step], 1)
                np.testing.assert_allclose(J[b], difference, atol=1e-8)


def test_jacobian_of_a_linear_map_is_its_matrix():
    A = jax.random.normal(jax.random.key(0), (4, 7))
    np.testing.assert_array_equal(probes.jacobian(lambda x: A @ x, jnp.ones((2, 7)))[1], A)
    np.testing.assert_array_equal(
        probes.jacobian(lambda x: A @ x, jnp.ones(7)), A
    )  # one input: no batch axis
    np.testing.assert_array_equal(probes.jacobian(lambda x: (A @ x)[0], jnp.ones(7)), A[:1])  # scalar output


def test_jacobian_flattens_images_on_both_sides():
    kernel = jax.random.normal(jax.random.key(0), (3, 2, 3, 3))

    def f(image):
        return lax.conv(image[None], kernel, (1, 1), "SAME")[0]

    x = jax.random.normal(jax.random.key(1), (2, 2, 5, 4))
    expected = jax.vmap(jax.jacfwd(f))(x).reshape(2, 3 * 5 * 4, 2 * 5 * 4)
    np.testing.assert_allclose(probes.jacobian(f, x), expected, atol=1e-6)


@pytest.mark.parametrize("limit", [100, 700])
def test_jacobian_in_chunks_equals_the_whole(monkeypatch, limit):
    f = network(jax.random.key(0), (6, 9, 5))
    x = jax.random.normal(jax.random.key(1), (7, 6))
    whole = probes.jacobian(f, x)
    monkeypatch.setattr(_jacobian, "_TANGENT_BYTES", limit)
    np.testing.assert_allclose(probes.jacobian(f, x), whole, atol=2e-6)


def test_jacobian_runs_through_loops_of_traced_length():
    weights = jax.random.normal(jax.random.key(0), (4, 3, 3)) / 2

    @jax.jit
    def measure(depth, x):
        return probes.jacobian(lambda h: lax.fori_loop(0, depth, lambda i, h: jnp.tanh(weights[i] @ h), h), x)

    x = jax.random.normal(jax.random.key(1), (2, 3))
    np.testing.assert_allclose(measure(0, x)[0], np.eye(3))
    unrolled = jax.vmap(jax.jacrev(lambda h: jnp.tanh(weights[1] @ jnp.tanh(weights[0] @ h))))(x)
    np.testing.assert_allclose(measure(2, x), unrolled, atol=1e-6)


def test_members_vmapped_equal_members_alone():
    weights = jax.random.normal(jax.random.key(0), (3, 5, 5))
    x = jax.random.normal(jax.random.key(1), (2, 5))

    def measure(w):
        f = lambda h: jnp.tanh(w @ h)  # noqa: E731
        return probes.jacobian(f, x), probes.singular_values(f, x), probes.singular_values(f, x, 2)

    together = jax.jit(jax.vmap(measure))(weights)
    measure = jax.jit(measure)
    for i in range(3):
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i], together), measure(weights[i]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("num", [None, 2])
def test_dtype_follows_the_input(dtype, num):
    with jax.enable_x64(True):
        x = jnp.ones((2, 3), dtype)
        assert probes.jacobian(jnp.tanh, x).dtype == dtype
        values = probes.singular_values(jnp.tanh, x, num)
        assert values.dtype == jnp.promote_types(dtype, jnp.float32)
        np.testing.assert_allclose(values, 1 - np.tanh(1) ** 2, rtol=1e-2 if dtype == jnp.bfloat16 else 1e-6)


@pytest.mark.parametrize("widths", [(3, 8, 5), (8, 20, 4)])
def test_singular_values_equal_numpys(widths):
    f = network(jax.random.key(0), widths)
    x = jax.random.normal(jax.random.key(1), (4, widths[0]))
    J, every, three = jax.jit(
        lambda x: (jax.vmap(jax.jacrev(f))(x), probes.singular_values(f, x), probes.singular_values(f, x, 3))
    )(x)
    expected = np.linalg.svd(np.asarray(J, np.float64), compute_uv=False)
    np.testing.assert_allclose(every, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(three, expected[:, :3], rtol=1e-5, atol=1e-6)


def test_ten_largest_agree_with_the_dense_ones():
    f = chain(jax.random.key(0), 240, 8, gain=1.2)
    x = jax.random.normal(jax.random.key(1), (3, 240))
    dense, krylov = jax.jit(lambda x: (probes.singular_values(f, x), probes.singular_values(f, x, 10)))(x)
    reachable = np.asarray(dense[:, :10])
    np.testing.assert_allclose(krylov, reachable, rtol=1e-4, atol=1e-5 * reachable.max())


@jax.jit
def six_largest(A):
    return probes.singular_values(lambda x: A @ x, jnp.ones(A.shape[1]), 6)


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(2, 1, 100),
        np.ones(160),  # isometry: every value repeated
        np.r_[[3.0] * 4, np.linspace(2.9, 0.1, 90)],  # a repeated largest value must not be found once only
        np.r_[5.0, 4.0, 3.0],  # rank three: no NaN from the exhausted space
        10.0 ** -np.arange(40),
        np.zeros(1),
        1e25 * np.linspace(2, 1, 100),  # squares overflow float32
    ],
    ids=["flat", "isometry", "repeated", "rank3", "decaying", "zero", "huge"],
)
def test_largest_singular_values_of_prescribed_spectra(values):
    A = matrix_with(values, (160, 180))
    found = six_largest(A)
    expected = np.r_[values, np.zeros(6)][:6]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected[0])


@jax.jit
def two_smallest(A):
    f = lambda x: A @ x  # noqa: E731
    return probes.singular_values(f, jnp.ones(A.shape[1]), 2, which="smallest")


@pytest.mark.parametrize("shape", [(190, 170), (170, 190)], ids=["tall", "wide"])
@pytest.mark.parametrize(
    "values",
    [
        np.r_[np.linspace(3, 1, 168), 0.5, 0.4],
        np.r_[np.linspace(3, 1, 168), 0.5, 0.5],  # repeated at the end
        np.ones(170),
        np.geomspace(1e3, 1, 170),
        np.ones(160),  # ten zeros, which are not the null space of the longer side
        1e25 * np.linspace(2, 1, 170),
    ],
    ids=["apart", "repeated", "isometry", "wide", "rank160", "huge"],
)
def test_smallest_singular_values_of_prescribed_spectra(shape, values):
    found = two_smallest(matrix_with(values, shape))
    expected = np.sort(np.r_[values, np.zeros(170 - len(values))])[1::-1]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * values.max())


def test_smallest_of_a_network_equal_numpys():
    with jax.enable_x64(True):
        w = jax.random.normal(jax.random.key(0), (2, 150, 150), jnp.float64) / 150**0.5
        f = lambda x: x + 0.5 * jnp.tanh(x @ w[0]) @ w[1]  # noqa: E731
        x = jax.random.normal(jax.random.key(1), (2, 150), jnp.float64)
        few = jax.jit(lambda x: probes.singular_values(f, x, 1, which="smallest"))(x)
        expected = np.linalg.svd(jax.vmap(jax.jacrev(f))(x), compute_uv=False)
        np.testing.assert_allclose(few, expected[:, -1:], rtol=1e-8)
        every = probes.singular_values(f, x, 20, which="smallest")  # so many that the Jacobian is formed
        np.testing.assert_allclose(every, expected[:, -20:], rtol=1e-10)


def test_nan_and_inf_are_reported_as_nan():
    x = jnp.array([[1.0, 2.0], [jnp.nan, 1.0], [jnp.inf, 1.0]])
    values = probes.singular_values(lambda x: x**2, x)
    assert np.isfinite(values[0]).all()
    assert np.isnan(values[1:]).all()


def test_bad_input_is_refused_by_name():
    with pytest.raises(TypeError, match=r"`x` must be real floating-point.*int32.*astype"):
        probes.jacobian(jnp.tanh, jnp.arange(3))
    with pytest.raises(TypeError, match="complex64"):
        probes.singular_values(jnp.tanh, jnp.ones(3, jnp.complex64))
    with pytest.raises(ValueError, match=r"`x` must be \[batch"):
        probes.jacobian(jnp.tanh, np.zeros((0,), np.float32))
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        probes.jacobian(jnp.tanh, jnp.zeros((0, 3)))
    with pytest.raises(TypeError, match="`fn` must return one array"):
        probes.jacobian(lambda x: (x, x), jnp.ones(3))
    with pytest.raises(TypeError, match="`fn` must return a real floating-point array, got dtype bool"):
        probes.jacobian(lambda x: x > 0, jnp.ones(3))
    for num in (0, 4, -1):
        with pytest.raises(ValueError, match=rf"between 1 and .* = 3, got {num}"):
            probes.singular_values(jnp.tanh, jnp.ones(3), num)
    with pytest.raises(ValueError, match=r'`which` must be "largest" or "smallest", got .middle.'):
        probes.singular_values(jnp.tanh, jnp.ones(3), 1, which="middle")
    for num in (2.0, True):
        with pytest.raises(TypeError, match="`num` must be an integer"):
            probes.singular_values(jnp.tanh, jnp.ones(3), num)


@given(arrays(np.float64, (2, 5), elements=st.floats(1e-3, 1e3)))
@settings(max_examples=25, deadline=None)
def test_spectrum_summary_equals_its_definition(values):
    with jax.enable_x64(True):
        summary = jax.tree.map(np.asarray, jax.jit(probes.spectrum_summary)(values))
    share = values / values.sum(-1, keepdims=True)
    np.testing.assert_allclose(summary.largest, values.max(-1))
    np.testing.assert_allclose(summary.smallest, values.min(-1))
    np.testing.assert_allclose(summary.mean_square, (values**2).mean(-1))
    np.testing.assert_allclose(summary.condition_number, values.max(-1) / values.min(-1))
    np.testing.assert_allclose(summary.effective_rank, np.exp(-(share * np.log(share)).sum(-1)))
    assert (summary.effective_rank <= values.shape[-1] * (1 + 1e-12)).all()


def test_spectrum_summary_has_no_accidental_nan():
    zero = probes.spectrum_summary(jnp.zeros(4))
    assert [float(v) for v in zero] == [0, 0, 0, np.inf, 0]
    singular = probes.spectrum_summary(jnp.array([1.0, 0.0]))
    assert [float(v) for v in singular] == [1, 0, 0.5, np.inf, 1]
    np.testing.assert_allclose(probes.spectrum_summary(jnp.full(5, 1e-30)).effective_rank, 5, rtol=1e-6)
    assert all(np.isnan(v) for v in probes.spectrum_summary(jnp.array([1.0, jnp.nan])))
    with pytest.raises(ValueError, match="at least one singular value"):
        probes.spectrum_summary(jnp.zeros((3, 0)))
