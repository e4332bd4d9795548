"""from_callable against the zoo's known facts, and its refusals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import activations
from jaxact.activations import from_callable


@pytest.mark.parametrize(
    "name",
    ["gelu", "hard_silu", "cos", "soft_sign", "leaky_relu(-0.5)", "asinh"],
)
def test_estimates_agree_with_the_exact_facts(name):
    exact = activations.parse(name)
    estimate = from_callable(exact.fn, name="copy")
    np.testing.assert_allclose(estimate.range, exact.range, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(estimate.slope_range, exact.slope_range, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(estimate.kinks, exact.kinks, atol=1e-9)
    np.testing.assert_allclose(estimate.breakpoints, exact.breakpoints, atol=1e-9)
    for claim in ("monotone", "odd", "homogeneous"):
        assert getattr(estimate, claim) == getattr(exact, claim), claim
    if exact.argmin is None:
        assert estimate.argmin is None
    else:
        assert estimate.argmin == pytest.approx(exact.argmin, abs=1e-6)
    assert not estimate.exact
    assert "estimated" in repr(estimate)


def test_a_kink_off_every_grid_is_found():
    place = float(np.sqrt(2))
    mine = from_callable(lambda x: jnp.abs(x - place) + jnp.where(x > 3.7, 2 * (x - 3.7), 0.0), name="mine")
    np.testing.assert_allclose(mine.kinks, (place, 3.7), atol=1e-9)
    assert mine.lipschitz == pytest.approx(3.0)
    assert mine.argmin == pytest.approx(place)


@pytest.mark.parametrize("fn", [jnp.sign, lambda x: jnp.sqrt(jnp.abs(x)), jnp.exp, lambda x: x**3])
def test_jumps_and_unbounded_slopes_have_no_lipschitz_constant(fn):
    assert from_callable(fn, name="steep").lipschitz == np.inf


def test_result_is_an_activation_like_any_other():
    mine = from_callable(bump, name="bump")
    x = jnp.linspace(-2, 2, 9)
    chex.assert_trees_all_close(jax.jit(mine)(x), bump(x), rtol=1e-6)
    slope = jax.vmap(jax.grad(mine))(x)
    chex.assert_trees_all_close(slope, jax.vmap(jax.grad(bump))(x), rtol=1e-6)
    chex.assert_trees_all_close(
        jax.vmap(jax.grad(jax.grad(mine)))(x), jax.vmap(jax.grad(jax.grad(bump)))(x), rtol=1e-5
    )
    assert mine(jnp.bfloat16(1)).dtype == jnp.bfloat16
    assert mine == from_callable(bump, name="bump")
    assert hash(mine) == hash(from_callable(bump, name="bump"))
    # The same name and the same facts, but another function: never the same compiled program.
    assert mine != from_callable(lambda x: bump(x), name="bump")


def bump(x):
    return x * jnp.exp(-x * x) * np.float32(2)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (jax.nn.softmax, "elementwise"),
        (jnp.sum, "of the shape"),
        (jnp.log, r"f must be finite .* got nan at x = -0\.00"),
        (lambda x: jnp.where(x > 1e3, jnp.inf * 0, x), "never NaN"),
        (lambda x: jnp.maximum(x, 0) ** 0.5, r"f' must be finite .* got nan"),
        (lambda x: np.maximum(x, 0), "jax.numpy"),
        (lambda x: x.astype(int), "real array"),
    ],
)
def test_unusable_functions_are_refused_with_the_reason(fn, message):
    with pytest.raises(ValueError, match=message):
        from_callable(fn, name="mine")


@pytest.mark.parametrize("name", ["", "  ", None, "relu", "leaky_relu(0.7)"])
def test_names_must_be_free(name):
    with pytest.raises(ValueError, match="`name` must"):
        from_callable(jnp.tanh, name=name)


def test_only_hashable_functions():
    with pytest.raises(TypeError, match="must be a function"):
        from_callable(3, name="mine")
    with pytest.raises(TypeError, match="hashable"):
        from_callable(Unhashable(), name="mine")


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return x
