"""The product bound against numpy, and as an inequality on sampled networks."""

from itertools import pairwise
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import activations, lipschitz


def kernels(widths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(i, o)).astype(np.float32) for i, o in pairwise(widths)]


class ProductTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_equals_numpys_product_of_norms(self):
        weights = kernels((7, 4, 4, 4, 9, 1))
        bound = self.variant(lambda w: lipschitz.upper_bound(w, activations.gelu))(weights)
        expected = (
            np.prod([np.linalg.norm(w.astype(float), 2) for w in weights]) * activations.gelu.lipschitz**4
        )
        np.testing.assert_allclose(bound, expected, rtol=1e-5)


def test_each_gap_has_its_own_activation():
    weights = kernels((3, 4, 5, 2))
    bound = lipschitz.upper_bound(weights, [activations.sigmoid, activations.relu])
    expected = np.prod([np.linalg.norm(w, 2) for w in weights]) / 4
    np.testing.assert_allclose(bound, expected, rtol=1e-5)
    assert lipschitz.upper_bound(weights[:1], []) == lipschitz.upper_bound(weights[:1], activations.relu)


def test_log_survives_where_the_bound_overflows():
    weights = 1e3 * jnp.broadcast_to(jnp.eye(4), (256, 4, 4))
    assert lipschitz.upper_bound(weights, activations.relu) == np.inf
    log = lipschitz.upper_bound(weights, activations.relu).log
    np.testing.assert_allclose(log, 256 * np.log(1e3), rtol=1e-5)


def test_traced_constants_and_dtypes():
    weights = kernels((3, 4, 2))
    bound = jax.jit(lambda c: lipschitz.upper_bound(weights, SimpleNamespace(lipschitz=c)))
    np.testing.assert_allclose(bound(3.0), 3 * bound(1.0).value, rtol=1e-5)
    assert bound(np.inf) == np.inf
    with jax.enable_x64(True):
        assert (
            lipschitz.upper_bound([w.astype(float) for w in weights], activations.tanh).value.dtype
            == jnp.float64
        )
    low = [jnp.asarray(w, jnp.bfloat16) for w in weights]
    assert lipschitz.upper_bound(low, activations.tanh).value.dtype == jnp.float32
    assert lipschitz.upper_bound([np.zeros((2, 2), np.float32)], activations.relu) == 0


def test_stretch_between_sampled_pairs_stays_below():
    rng = np.random.default_rng(1)
    first, second = kernels((4, 16, 3))
    x, y = rng.normal(size=(2, 2000, 4)).astype(np.float32)
    for activation in (activations.relu, activations.tanh, activations.gelu):
        f = lambda x, a=activation: a(x @ first) @ second  # noqa: E731
        stretch = np.linalg.norm(f(x) - f(y), axis=1) / np.linalg.norm(x - y, axis=1)
        assert stretch.max() <= lipschitz.upper_bound([first, second], activation)


def test_bad_input_is_refused_by_name():
    weights = kernels((3, 4, 2))
    with pytest.raises(ValueError, match=r"`method` must be one of 'product', .*got 'nonsense'"):
        lipschitz.upper_bound(weights, activations.relu, method="nonsense")
    with pytest.raises(ValueError, match=r"must chain, got \(3, 4\) for weights\[0\] before \(2, 4\)"):
        lipschitz.upper_bound([weights[0], weights[1].T], activations.relu)
    with pytest.raises(ValueError, match=r"`weights\[1\]` must be finite"):
        lipschitz.upper_bound([weights[0], weights[1] * np.nan], activations.relu)
    with pytest.raises(ValueError, match=r"`weights\[0\]` must be a kernel .*shape \(4,\)"):
        lipschitz.upper_bound([np.ones(4, np.float32)], activations.relu)
    with pytest.raises(TypeError, match=r"`weights\[0\]` must be real floating-point, got dtype int32"):
        lipschitz.upper_bound([np.ones((4, 4), np.int32)], activations.relu)
    with pytest.raises(ValueError, match="at least one kernel"):
        lipschitz.upper_bound([], activations.relu)
    with pytest.raises(ValueError, match=r"len\(weights\) - 1 = 1 of them, got 2"):
        lipschitz.upper_bound(weights, [activations.relu] * 2)
    with pytest.raises(TypeError, match="from_callable"):
        lipschitz.upper_bound(weights, jnp.tanh)
    with pytest.raises(ValueError, match=r"square with inf.*lower_bound"):
        lipschitz.upper_bound(weights, SimpleNamespace(name="square", lipschitz=np.inf))
