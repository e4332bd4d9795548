"""The lower bound as an inequality, and as an equality where the constant is known."""

import gc
import weakref
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from polygons import exact_lipschitz

from jaxact import activations, lipschitz
from jaxact.lipschitz import _derivatives


def kernels(widths, seed=0, gain=1.0):
    rng = np.random.default_rng(seed)
    return [(gain * rng.normal(size=(i, o)) / np.sqrt(i)).astype(np.float32) for i, o in pairwise(widths)]


def network(weights, activation):
    def f(x):
        for w in weights[:-1]:
            x = activation(x @ w + 0.3)
        return x @ weights[-1]

    return f


def norms(f, x):
    return np.linalg.svd(jax.jit(jax.vmap(jax.jacrev(f)))(x), compute_uv=False)[:, 0]


@pytest.mark.parametrize(
    "activation", [activations.relu, activations.tanh, activations.gelu], ids=lambda a: a.name
)
def test_lies_between_the_samples_and_the_product(activation):
    weights = kernels((16, 24, 24, 16), gain=1.5)
    f = network(weights, activation)
    starts = jax.random.normal(jax.random.key(0), (24, 16))
    found = jax.jit(lambda x: lipschitz.lower_bound(f, x, key=jax.random.key(1)))(starts)
    samples = jax.random.normal(jax.random.key(2), (500, 16))
    witnessed, *slopes = norms(f, jnp.concatenate([found.input[None], starts, samples]))
    assert found.value >= np.max(slopes[:24]) * (1 - 1e-5)
    assert found.value >= np.max(slopes[24:])
    assert found.value <= lipschitz.upper_bound(weights, activation)
    # The witness proves the value.
    np.testing.assert_allclose(witnessed, found.value, rtol=1e-5)
    assert (np.diff(found.history) >= 0).all()
    assert found.history.shape == (101,)


class LinearTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_linear_maps_give_their_norm(self):
        A = jax.random.normal(jax.random.key(0), (9, 6, 5))
        f = lambda x: jnp.einsum("oij,ij->o", A, x)  # noqa: E731
        starts = jax.random.normal(jax.random.key(1), (2, 6, 5))
        found = self.variant(lambda x: lipschitz.lower_bound(f, x, key=jax.random.key(0), num_steps=2))(
            starts
        )
        np.testing.assert_allclose(found.value, np.linalg.norm(A.reshape(9, 30), 2), rtol=1e-5)
        chex.assert_shape(found.input, (6, 5))


def test_finds_the_maximum_of_smooth_maps():
    # ||J(x)|| = 2 |cos(2 x)| of x -> sin(2 x) has the maximum 2, one of them at 0.
    f = lambda x: jnp.sin(2 * x)  # noqa: E731
    found = jax.jit(lambda x: lipschitz.lower_bound(f, x, key=jax.random.key(0)))(jnp.array([[0.7]]))
    np.testing.assert_allclose(found.value, 2, rtol=1e-6)
    np.testing.assert_allclose(np.cos(2 * found.input[0]) ** 2, 1, rtol=1e-5)


def test_piecewise_linear_networks_on_the_plane_are_exact():
    # Without biases the pieces are cones, so the largest norm over a fine grid of angles is the constant.
    @jax.jit
    def both(first, second, key):
        f = lambda x: jax.nn.relu(x @ first) @ second  # noqa: E731
        starts = jax.random.normal(key, (16, 2))
        angles = jnp.linspace(0, 2 * jnp.pi, 20001)
        grid = jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1)
        jacobians = jax.vmap(jax.jacrev(f))(grid)
        exact = jnp.linalg.svd(jacobians, compute_uv=False)[:, 0].max()
        return lipschitz.lower_bound(f, starts, key=key, num_steps=200).value, exact

    for seed in range(6):
        first, second = kernels((2, 8, 3), seed)
        value, exact = both(first, second, jax.random.key(seed))
        np.testing.assert_allclose(value, exact, rtol=1e-5)


def test_random_piecewise_linear_networks_are_exact_where_their_pieces_are_small():
    # relu, leaky relu of both signs and |x|, on the plane cut into all its linear pieces. Some of the largest
    # slopes sit on a millionth of it.
    widths, num_networks = (2, 8, 8, 2), 100
    rng = np.random.default_rng(0)
    matrices = [rng.normal(size=(num_networks, i, o)) * np.sqrt(2 / i) for i, o in pairwise(widths)]
    offsets = [rng.normal(size=(num_networks, o)) for o in widths[1:-1]]
    slopes = np.resize([(0.0, 1.0), (0.2, 1.0), (-0.5, 1.0), (-1.0, 1.0)], (num_networks, 2))

    @jax.jit
    @jax.vmap
    def lower(matrices, offsets, slopes, key):
        def f(x):
            for w, b in zip(matrices[:-1], offsets, strict=True):
                z = x @ w + b
                x = jnp.where(z > 0, slopes[1], slopes[0]) * z
            return x @ matrices[-1]

        return lipschitz.lower_bound(
            f, jnp.eye(2), key=key, num_steps=20, scales=(0.1, 30.0), num_starts=60, num_crossings=60
        )

    with jax.enable_x64(True):
        found = lower(matrices, offsets, slopes, jax.random.split(jax.random.key(0), num_networks))
        found = np.asarray(found.value)
    exact = [
        exact_lipschitz([w[i].T for w in matrices], [b[i] for b in offsets], slopes[i], size=1e6)
        for i in range(num_networks)
    ]
    assert (found <= np.array(exact) * (1 + 1e-9)).all()
    assert np.mean(found >= 0.99 * np.array(exact)) >= 0.95
    for i, constant in enumerate(exact):
        slope = SimpleNamespace(lipschitz=np.abs(slopes[i]).max(), slope_range=tuple(slopes[i]))
        kernels = [w[i] for w in matrices]
        bound = partial(lipschitz.upper_bound, kernels, slope)
        with jax.enable_x64(True):
            ladder = [float(bound(method=method)) for method in ("eclipse_fast", "product")]
            if i % 10 == 0:
                ladder = [
                    float(bound(method="lipsdp")),
                    float(bound(method="ellipsoid", num_steps=20)),
                    *ladder,
                ]
            assert constant <= min(ladder) * (1 + 1e-9)
            assert constant <= float(bound(method="absolute")) * (1 + 1e-9)
        np.testing.assert_array_less(ladder[:-1], np.array(ladder[1:]) * (1 + 1e-6))


def test_scales_and_random_starts_only_add():
    # The slope is 1 within |x| < 50 and 4 beyond: starts near zero do not see it.
    f = lambda x: x + 3 * jax.nn.relu(jnp.abs(x) - 50.0)  # noqa: E731
    options = (
        {},
        {"scales": (1.0, 60.0)},
        {"scales": (0.1, 1e4), "num_starts": 16},
        {"num_crossings": 2},
    )

    @jax.jit
    def values(x):
        run = partial(lipschitz.lower_bound, f, x, key=jax.random.key(0), num_steps=0)
        return [run(**each).value for each in options]

    assert values(jnp.array([[1.0], [-1.0]])) == [1, 4, 4, 4]


def test_a_dead_network_has_the_bound_zero():
    dead = lambda x: jax.nn.relu(x - 10.0) @ jnp.ones((3, 2))  # noqa: E731
    found = jax.jit(lambda x: lipschitz.lower_bound(dead, x, key=jax.random.key(0), num_steps=3))(
        jnp.zeros((2, 3))
    )
    assert found.value == 0
    chex.assert_tree_all_finite(found)


def test_diverged_starts_do_not_hide_the_others():
    f = lambda x: jnp.where(x > 5, jnp.nan * x, 2 * x)  # noqa: E731
    run = jax.jit(lambda x: lipschitz.lower_bound(f, x, key=jax.random.key(0), num_steps=0))
    assert run(jnp.array([[9.0], [1.0]])).value == 2
    assert np.isnan(run(jnp.array([[9.0], [8.0]])).value)


def test_steep_networks_do_not_overflow():
    f = lambda x: 1e30 * jnp.tanh(x)  # noqa: E731
    run = jax.jit(lambda x: lipschitz.lower_bound(f, x, key=jax.random.key(0), num_steps=60))
    found = run(jnp.ones((1, 3)))
    np.testing.assert_allclose(found.value, 1e30, rtol=1e-2)


def test_members_vmapped_equal_members_alone():
    w = jnp.stack([jnp.asarray(k) for k in kernels((5, 5, 5, 5))])
    starts = jax.random.normal(jax.random.key(0), (3, 5))

    def run(w):
        return lipschitz.lower_bound(lambda x: jnp.tanh(w @ x), starts, key=jax.random.key(0), num_steps=20)

    together, run = jax.jit(jax.vmap(run))(w), jax.jit(run)
    for i in range(3):
        np.testing.assert_allclose(together.value[i], run(w[i]).value, rtol=1e-5)


def test_a_custom_vjp_over_a_loop_of_traced_length_brings_its_own_tangent():
    w = jax.random.normal(jax.random.key(0), (6, 4, 4))

    def stage(i, h):
        return jnp.tanh(w[i] @ h)

    def forward(depth, h):
        return lax.fori_loop(0, depth, stage, h)

    @jax.jit
    def run(depth, starts):
        @jax.custom_vjp
        def f(h):
            return forward(depth, h)

        def f_fwd(h):
            def save(i, carry):
                h, states = carry
                return stage(i, h), states.at[i].set(h)

            return lax.fori_loop(0, depth, save, (h, jnp.zeros((6, 4))))

        def f_bwd(states, u):
            def back(j, u):
                i = depth - 1 - j
                return jax.vjp(lambda h: stage(i, h), states[i])[1](u)[0]

            return (lax.fori_loop(0, depth, back, u),)

        f.defvjp(f_fwd, f_bwd)
        tangent = lambda x, v: jax.jvp(lambda h: forward(depth, h), (x,), (v,))[1]  # noqa: E731
        return lipschitz.lower_bound(f, starts, key=jax.random.key(0), tangent=tangent)

    def unrolled(h):
        for i in range(3):
            h = stage(i, h)
        return h

    starts = jax.random.normal(jax.random.key(1), (4, 4))
    expected = jax.jit(lambda x: lipschitz.lower_bound(unrolled, x, key=jax.random.key(0)))(starts)
    np.testing.assert_allclose(run(3, starts).value, expected.value, rtol=1e-3)


def test_bad_input_is_refused_by_name():
    run = lambda x, **options: lipschitz.lower_bound(jnp.tanh, x, key=jax.random.key(0), **options)  # noqa: E731
    with pytest.raises(TypeError, match="`inputs` must be real floating-point, got dtype int32"):
        run(jnp.ones((2, 3), int))
    with pytest.raises(ValueError, match=r"`inputs` must be \[batch.*\(0, 3\)"):
        run(jnp.ones((0, 3)))
    with pytest.raises(ValueError, match="`num_steps` must be an integer >= 0, got -1"):
        run(jnp.ones((2, 3)), num_steps=-1)
    for name in ("num_starts", "num_crossings"):
        with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 0, got 1.5"):
            run(jnp.ones((2, 3)), **{name: 1.5})
    for scales in ((), (1.0, 0.0)):
        with pytest.raises(ValueError, match="`scales` must be positive numbers"):
            run(jnp.ones((2, 3)), scales=scales)
    with pytest.raises(ValueError, match="`step_size` must be positive, got 0"):
        run(jnp.ones((2, 3)), step_size=0)


def test_a_second_search_of_the_same_form_compiles_nothing_and_forgets_nothing():
    x = np.linspace(-1, 1, 4, dtype=np.float32)
    held = {"W": jnp.full((4, 3), 0.5), "scale": 1.0}

    def fn(x):
        return held["scale"] * (x @ held["W"])

    def search(fn):
        return float(lipschitz.lower_bound(fn, x, key=jax.random.key(0), num_steps=2).value)

    norm = float(np.linalg.norm(np.full((4, 3), 0.5), 2))
    np.testing.assert_allclose(search(fn), norm, rtol=1e-6)
    before = set(_derivatives._PROGRAMS)
    held["W"] = 2 * held["W"]  # the array that the same function closes over
    np.testing.assert_allclose(search(fn), 2 * norm, rtol=1e-6)
    np.testing.assert_allclose(search(lambda x: held["scale"] * (x @ (held["W"]))), 2 * norm, rtol=1e-6)
    assert set(_derivatives._PROGRAMS) == before
    held["scale"] = 3.0  # a number, which is part of the program
    np.testing.assert_allclose(search(fn), 6 * norm, rtol=1e-6)
    held["W"] = np.full((4, 3), 0.5)  # an array of NumPy, in float64
    held["scale"] = 1.0
    np.testing.assert_allclose(search(fn), norm, rtol=1e-6)
    held["W"] = jnp.full((4, 5), 0.5)
    np.testing.assert_allclose(search(fn), np.linalg.norm(np.full((4, 5), 0.5), 2), rtol=1e-6)


@pytest.mark.parametrize("name", ["relu", "gelu", "leaky_relu(0.3)", "swish"])
def test_a_second_search_compiles_nothing_where_a_derivative_has_a_rule_of_its_own(name):
    f = activations.parse(name)

    @jax.custom_vjp
    def ruled(x):
        return 2 * x

    ruled.defvjp(lambda x: (2 * x, None), lambda _, u: (2 * u,))

    def search(weights):
        fn = lambda x: ruled(f(weights @ x))  # noqa: E731
        push = lambda x, v: 2 * jax.jvp(lambda x: f(weights @ x), (x,), (v,))[1]  # noqa: E731
        found = lipschitz.lower_bound(fn, np.ones(3), key=jax.random.key(0), num_steps=1, tangent=push)
        return float(found.value)

    first, before = search(jnp.eye(3)), set(_derivatives._PROGRAMS)
    np.testing.assert_allclose(search(jnp.eye(3)), first, rtol=1e-6)
    assert set(_derivatives._PROGRAMS) == before


def test_programs_are_kept_without_the_functions_and_not_for_ever(monkeypatch):
    monkeypatch.setattr(_derivatives, "_NUM_PROGRAMS", 4)
    monkeypatch.setattr(_derivatives, "_PROGRAMS", type(_derivatives._PROGRAMS)())
    array = jnp.full((2, 2), 3.0)
    last = weakref.ref(array)
    fn = lambda x, array=array: x @ array  # noqa: E731
    lipschitz.lower_bound(fn, np.ones((1, 2), np.float32), key=jax.random.key(0), num_steps=1)
    assert 0 < len(_derivatives._PROGRAMS) <= 4
    del fn, array
    gc.collect()
    assert last() is None


def test_functions_with_rules_of_their_own_are_told_apart():
    def scaled(factor):
        @jax.custom_jvp
        def fn(x):
            return x

        fn.defjvp(lambda primals, tangents: (primals[0], factor * tangents[0]))
        return fn

    for factor in (2.0, 3.0):  # alike but for the rule
        found = lipschitz.lower_bound(
            scaled(factor), np.ones(3, np.float32), key=jax.random.key(0), num_steps=1
        )
        np.testing.assert_allclose(found.value, factor, rtol=1e-6)


def test_a_search_in_float64_follows_one_in_float32():
    W = np.full((4, 3), 0.5)
    search = lambda: lipschitz.lower_bound(lambda x: x @ W, np.ones(4), key=jax.random.key(0), num_steps=1)  # noqa: E731
    assert search().value.dtype == jnp.float32
    with jax.enable_x64(True):
        assert search().value.dtype == jnp.float64
    assert search().value.dtype == jnp.float32
