"""The bounds of a chain against exact constants, each other and closed forms."""

from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from polygons import exact_lipschitz

from jaxact import activations, lipschitz

PIECEWISE = [
    (activations.relu, (0.0, 1.0)),
    (activations.leaky_relu(0.2), (0.2, 1.0)),
    (activations.leaky_relu(-0.5), (-0.5, 1.0)),
    (activations.abs, (-1.0, 1.0)),
]


def kernels(widths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(i, o)) * np.sqrt(2 / i) for i, o in pairwise(widths)]


def bounds(weights, activation, methods, **options):
    with jax.enable_x64(True):
        return [
            float(
                lipschitz.upper_bound(
                    weights, activation, method=method, **(options if method == "ellipsoid" else {})
                )
            )
            for method in methods
        ]


def test_exact_constants_are_below_every_bound_and_bounds_in_order():
    methods = ("ellipsoid", "eclipse_fast", "product", "absolute")
    for seed in range(32):
        activation, slopes = PIECEWISE[seed % 4]
        weights = kernels((2, 8, 8, 2), seed)
        rng = np.random.default_rng(seed)
        exact = exact_lipschitz([w.T for w in weights], [rng.normal(size=8) for _ in range(2)], slopes)
        found = bounds(weights, activation, methods, num_steps=20)
        assert exact <= min(found) * (1 + 1e-12), (seed, exact, found)
        assert found[0] <= found[1] * (1 + 1e-9) <= found[2] * (1 + 1e-8)


def test_polygons_find_the_constant_of_a_known_function():
    # |x| + |y| and relu(x) - relu(-x) = x
    assert exact_lipschitz([np.eye(2), np.ones((1, 2))], [np.zeros(2)], (-1.0, 1.0)) == pytest.approx(
        np.sqrt(2)
    )
    one = [np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([[1.0, -1.0]])]
    assert exact_lipschitz(one, [np.zeros(2)], (0.0, 1.0)) == pytest.approx(1)


def test_refinement_reaches_the_solver_and_stays_above_it():
    pytest.importorskip("cvxpy")
    for activation in (activations.relu, activations.silu, activations.abs):
        weights = kernels((3, 8, 8, 2), 5)
        solved, refined, closed = bounds(weights, activation, ("lipsdp", "ellipsoid", "eclipse_fast"))
        assert solved <= refined * (1 + 1e-6)
        assert refined <= solved * 1.01
        assert refined < closed


def test_one_unit_gives_the_largest_slope_of_every_activation():
    for name in activations.names():
        activation = activations.parse(name)
        if not np.isfinite(activation.lipschitz):
            continue
        weights = [np.array([[-2.0]]), np.array([[0.5]])]
        for method in ("product", "absolute", "eclipse_fast"):
            (found,) = bounds(weights, activation, (method,))
            np.testing.assert_allclose(found, activation.lipschitz, rtol=1e-9, err_msg=f"{name} {method}")
        (found,) = bounds(weights, activation, ("ellipsoid",), num_steps=0)
        assert activation.lipschitz * (1 - 1e-15) <= found <= activation.lipschitz * (1 + 1e-9), name


def test_silu_below_zero_is_not_lost():
    # Between two 1 x 1 weights the constant is sup|silu'| = 1.0998..., not 1.
    (found,) = bounds([np.ones((1, 1))] * 2, activations.silu, ("eclipse_fast",))
    x = np.linspace(-10, 10, 200001)
    s = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(found, np.abs(s + x * s * (1 - s)).max(), rtol=1e-8)


def test_orthogonal_layers_give_one():
    rng = np.random.default_rng(0)
    weights = [np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(5)]
    found = bounds(weights, activations.relu, ("product", "eclipse_fast", "ellipsoid"), num_steps=0)
    np.testing.assert_allclose(found, 1, rtol=1e-9)


def test_linear_network_gives_the_norm_of_the_product():
    weights = kernels((5, 9, 7, 4), 3)
    expected = np.linalg.norm(np.linalg.multi_dot(weights), 2)
    found = bounds(weights, activations.identity, ("eclipse_fast", "ellipsoid"), num_steps=0)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found[1] >= expected * (1 - 1e-15)


def test_nonnegative_weights_make_absolute_the_norm_of_the_product():
    weights = [np.abs(w) for w in kernels((5, 9, 7, 4), 3)]
    (found,) = bounds(weights, activations.relu, ("absolute",))
    np.testing.assert_allclose(found, np.linalg.norm(np.linalg.multi_dot(weights), 2), rtol=1e-12)


def test_eclipse_fast_is_one_program_in_a_loop_and_differentiable():
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        weights = jnp.asarray(rng.normal(size=(6, 5, 5)))

        def penalty(w):
            return lipschitz.upper_bound(w, activations.gelu, method="eclipse_fast").log

        compiled = jax.jit(penalty)
        np.testing.assert_allclose(compiled(weights), penalty(weights), rtol=1e-12)
        direction = jnp.asarray(rng.normal(size=weights.shape))
        step = 1e-6
        slope = (compiled(weights + step * direction) - compiled(weights - step * direction)) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(jax.jit(jax.grad(penalty))(weights), direction), slope, rtol=1e-6)
        deeper = jnp.concatenate([weights, weights])
        sizes = [len(str(jax.make_jaxpr(penalty)(w)).splitlines()) for w in (weights, deeper)]
        assert sizes[1] - sizes[0] <= 6 * 8  # a slice, a reshape and the stacking of each layer


def test_eclipse_fast_of_concrete_weights_is_that_of_traced_ones_for_every_slope_range():
    weights = [w / 2 for w in kernels((5, 9, 1, 7, 7, 4), 3)]

    @jax.jit
    def traced(weights, alpha, beta):
        activation = SimpleNamespace(lipschitz=jnp.maximum(abs(alpha), abs(beta)), slope_range=(alpha, beta))
        return lipschitz.upper_bound(weights, activation, method="eclipse_fast").log

    ranges = [
        (0, 1),
        (-1, 1),
        (0.01, 1),
        (0.9, 1),
        (-0.13, 1.13),
        (-1, 0.2),
        (0.7, 0.7),
        (0, 0),
        (-1, 1 + 1e-12),
    ]
    for alpha, beta in ranges:
        activation = SimpleNamespace(lipschitz=max(abs(alpha), abs(beta)), slope_range=(alpha, beta))
        with jax.enable_x64(True):
            expected = traced(weights, float(alpha), float(beta))
            found = lipschitz.upper_bound(weights, activation, method="eclipse_fast").log
        np.testing.assert_allclose(found, expected, atol=1e-9, err_msg=str((alpha, beta)))


def test_logs_survive_where_bounds_overflow():
    weights = [1e6 * np.eye(4, dtype=np.float32)] * 64
    for method in ("absolute", "eclipse_fast", "ellipsoid"):
        options = {"num_steps": 0} if method == "ellipsoid" else {}
        log = lipschitz.upper_bound(weights, activations.relu, method=method, **options).log
        np.testing.assert_allclose(log, 64 * np.log(1e6), rtol=1e-5)
        assert lipschitz.upper_bound(weights, activations.relu, method=method, **options) == np.inf


def test_certificates_round_up_to_the_weights_dtype():
    weights = [w.astype(np.float32) for w in kernels((3, 4, 2))]
    low = lipschitz.upper_bound(weights, activations.relu, method="ellipsoid", num_steps=0)
    assert low.value.dtype == jnp.float32
    (exact,) = bounds([w.astype(float) for w in weights], activations.relu, ("ellipsoid",), num_steps=0)
    assert exact <= float(low) <= exact * (1 + 2e-7)


def test_zero_weights_give_zero():
    weights = [np.ones((2, 3)), np.zeros((3, 3)), np.ones((3, 1))]
    found = bounds(
        weights, activations.relu, ("product", "absolute", "eclipse_fast", "ellipsoid"), num_steps=0
    )
    assert found == [0, 0, 0, 0]


def test_an_activation_known_by_its_constant_alone_is_taken_on_both_sides():
    weights = kernels((3, 6, 2))
    alone = SimpleNamespace(lipschitz=1.0)
    both = SimpleNamespace(lipschitz=1.0, slope_range=(-1.0, 1.0))
    assert bounds(weights, alone, ("eclipse_fast",)) == bounds(weights, both, ("eclipse_fast",))


def test_bad_input_is_refused_with_a_remedy():
    weights = kernels((3, 4, 2))
    with pytest.raises(ValueError, match=r"`weights` must be concrete .* use 'eclipse_fast'"):
        jax.jit(lambda w: lipschitz.upper_bound(w, activations.relu, method="ellipsoid"))(weights)
    with pytest.raises(ValueError, match="`num_steps` must be an integer >= 0, got -1"):
        lipschitz.upper_bound(weights, activations.relu, method="ellipsoid", num_steps=-1)
    with pytest.raises(ValueError, match="`variant` must be one of 'neuron', 'layer', got 'network'"):
        lipschitz.upper_bound(weights, activations.relu, method="lipsdp", variant="network")
    with pytest.raises(ValueError, match="'eclipse_fast', 'ellipsoid', 'lipsdp', got 'eclipse'"):
        lipschitz.upper_bound(weights, activations.relu, method="eclipse")
    with pytest.raises(ValueError, match=r"`biases\[0\]` must have the shape \(4,\)"):
        lipschitz.upper_bound(weights, activations.relu, biases=[np.zeros(3), None])
    with pytest.raises(ValueError, match="`biases` must hold one"):
        lipschitz.upper_bound(weights, activations.relu, method="eclipse_fast", biases=[np.zeros(4)])


def test_biases_change_nothing_over_all_inputs():
    weights, biases = kernels((3, 4, 2)), [np.ones(4), None]
    for method in ("product", "eclipse_fast"):
        traced = jax.jit(
            lambda b, method=method: lipschitz.upper_bound(weights, activations.relu, method=method, biases=b)
        )(biases)
        plain = lipschitz.upper_bound(weights, activations.relu, method=method)
        np.testing.assert_allclose(traced, plain, rtol=1e-6)


ONE = [np.ones((3, 2))]
REFUSED = {
    "weights": lambda: lipschitz.upper_bound(None, activations.relu),
    "no weights": lambda: lipschitz.upper_bound([], activations.relu),
    "words": lambda: lipschitz.upper_bound(["kernel"], activations.relu),
    "integers": lambda: lipschitz.upper_bound([np.ones((3, 2), int)], activations.relu),
    "method": lambda: lipschitz.upper_bound(ONE, activations.relu, method="norms"),
    "solver": lambda: lipschitz.upper_bound(ONE, activations.relu, method="lipsdp", solver="MOSEK"),
    "region": lambda: lipschitz.upper_bound(ONE, activations.relu, region=0.1),
    "biases": lambda: lipschitz.upper_bound(ONE, activations.relu, biases=[np.full(2, np.nan)]),
    "one bias": lambda: lipschitz.upper_bound(ONE, activations.relu, biases=0.5),
    "certify": lambda: lipschitz.certify(jnp.tanh, jnp.zeros(2), region=0.1),
    "matrix": lambda: lipschitz.dense_norm("a"),
    "ragged": lambda: lipschitz.dense_norm([[1.0, 2.0], [3.0]]),
    "complex": lambda: lipschitz.dense_norm([[1j]]),
    "radius": lambda: lipschitz.Ball(np.zeros(2), "a"),
    "center": lambda: lipschitz.Ball(None, 1.0),
    "box": lambda: lipschitz.Box(np.ones(2), np.zeros(2)),
    "scales": lambda: lipschitz.lower_bound(jnp.tanh, jnp.ones((1, 2)), key=jax.random.key(0), scales=1.0),
    "groups": lambda: lipschitz.convolution_norm(np.ones((3, 1, 1)), (5, 1), groups=1.0),
    "no groups": lambda: lipschitz.convolution_norm(np.ones((3, 1, 1)), (5, 1), groups=0),
    "strides": lambda: lipschitz.convolution_norm(np.ones((3, 1, 1)), (5, 1), strides=1.5),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_rule_value_and_remedy(case):
    with pytest.raises((TypeError, ValueError), match=r"(?s)^`.* must .*, got .*\. [A-Z].*\.$"):
        REFUSED[case]()


@pytest.mark.parametrize("method", ["product", "absolute", "eclipse_fast", "ellipsoid", "lipsdp"])
def test_numpy_weights_of_float64_are_taken_as_they_are(method):
    for weights, truth in (
        ([np.eye(2) * (1 + 5.5e-8)] * 40, (1 + 5.5e-8) ** 40),
        ([np.eye(2) * 1e-50, np.eye(2) * 1e30], 1e-20),
        ([np.full((2, 1), 1e-200), np.full((1, 2), 1e100)], 2e-100),
    ):
        found = lipschitz.upper_bound(weights, activations.relu, method=method)
        assert found.value.dtype == np.float64
        np.testing.assert_allclose(float(found), truth, rtol=1e-8)


def test_lists_and_names_are_told_from_arrays_and_activations():
    weights = [[[1.0, 2.0], [3.0, 4.0]], [[1.0], [2.0]]]
    region = lipschitz.Ball(np.zeros(2), 1.0)
    for options in ({}, {"region": region}):
        found = lipschitz.upper_bound(weights, activations.relu, **options)
        of_arrays = lipschitz.upper_bound([np.array(w) for w in weights], activations.relu, **options)
        np.testing.assert_allclose(float(found), float(of_arrays), rtol=1e-6)
    with pytest.raises(TypeError, match=r"activations\.parse\('relu'\)"):
        lipschitz.upper_bound(weights, "relu")


@pytest.mark.parametrize("method", ["eclipse_fast", "ellipsoid"])
def test_a_proved_bound_is_not_rounded_below_itself_in_float32(method):
    rng = np.random.default_rng(0)
    region = lipschitz.Ball(np.zeros(5), 1.0) if method == "eclipse_fast" else None
    for _ in range(40):
        kernel = rng.normal(size=(5, 7)).astype(np.float32)
        found = lipschitz.upper_bound([kernel], activations.relu, method=method, region=region)
        assert found.value.dtype == np.float32
        assert float(found) >= np.linalg.norm(kernel.astype(np.float64), 2)


RESULTS = {
    **{name: {"method": name} for name in ("product", "absolute", "eclipse_fast", "ellipsoid")},
    "product within": {"method": "product", "region": lipschitz.Ball(np.zeros(3), 1.0)},
    "eclipse_fast within": {"method": "eclipse_fast", "region": lipschitz.Ball(np.zeros(3), 1.0)},
}


@pytest.mark.parametrize("name", [*RESULTS, "certify"])
def test_every_upper_bound_is_a_certificate_that_counts_as_its_value(name):
    weights = kernels((3, 4, 2))
    if name == "certify":
        found = lipschitz.certify(lambda x: jax.nn.relu(x @ weights[0]) @ weights[1], np.zeros(3))
    else:
        found = lipschitz.upper_bound(weights, activations.relu, **RESULTS[name])
    assert isinstance(found, lipschitz.Certificate)
    value = float(found)
    assert value == found.value
    np.testing.assert_allclose([found.log, found.log10], [np.log(value), np.log10(value)], rtol=1e-12)
    assert found.certified == (name == "certify" or name == "ellipsoid" or name.endswith("within"))
    assert found.assumptions
    assert found.seconds > 0
    for one in (value, np.float64(value), np.asarray(value)):
        assert one <= found <= one
        assert not one < found
        assert found == one
        assert (found != one, found < one) == (False, False)
        assert found < one + 1
        assert found > one - 1
    single = jnp.float32(2 * value)
    assert single >= found
    assert found <= single
    np.testing.assert_allclose(np.asarray(found), value)
    np.testing.assert_allclose(jnp.log(found), np.log(value), rtol=1e-6)
    assert found <= found
    back = jax.jit(lambda c: c)(found)
    assert isinstance(back, lipschitz.Certificate)
    assert back.method == found.method


@pytest.mark.parametrize("method", ["product", "absolute", "eclipse_fast"])
def test_a_traced_bound_is_the_same_certificate(method):
    rng = np.random.default_rng(0)
    weights = jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32)
    bound = lambda w: lipschitz.upper_bound(w, activations.tanh, method=method)  # noqa: E731
    alone, traced = bound(weights), jax.jit(bound)(weights)
    assert (alone.method, alone.certified, alone.assumptions) == (traced.method, False, traced.assumptions)
    np.testing.assert_allclose([traced.value, traced.log], [alone.value, alone.log], rtol=1e-5)
    both = jax.vmap(bound)(jnp.stack([weights, 2 * weights]))
    np.testing.assert_allclose(both.value, [alone.value, 8 * alone.value], rtol=1e-5)
    gradient = jax.grad(lambda w: bound(w).log)(weights)
    np.testing.assert_allclose(jnp.sum(gradient * weights), 3, rtol=1e-4)  # homogeneous of degree 3


def test_a_bound_from_estimated_slopes_says_so():
    weights = kernels((3, 4, 2))
    own = activations.from_callable(lambda x: jnp.tanh(x), name="own")
    for method in ("product", "ellipsoid"):
        found = lipschitz.upper_bound(weights, own, method=method)
        assert not found.certified
        assert any("own are an estimate" in each for each in found.assumptions)
