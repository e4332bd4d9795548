"""Predictions of initialisations at depth: ranks, closed forms, and the code that builds the network."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import activations, theory
from jaxact.theory import _compare, _course

SIGMA_B = (0.0, 0.05**0.5)


@pytest.fixture(scope="module")
def found():
    names = ("tanh", "relu", "sigmoid")
    return theory.compare([activations.parse(name) for name in names], depth=64, sigma_b=SIGMA_B, shaping=())


def the(found, activation, initialisation, weights, sigma_b=0.0):
    (row,) = (
        row
        for row in found.ranking
        if row.activation.name == activation
        and initialisation in row.initialisation
        and row.weights == weights
        and row.sigma_b == pytest.approx(sigma_b)
    )
    return row


def test_dynamical_isometry_leads_and_flat_sigmoids_trail(found):
    rows = found.ranking
    assert the(found, "tanh", "critical", "orthogonal") is rows[0]
    assert {row.activation.name for row in rows[-2:]} == {"sigmoid"}
    assert [row.score for row in rows] == sorted(row.score for row in rows)
    for row in rows:
        parts = (row.gradient_decades, row.input_decades, row.conditioning_decades)
        assert row.score == pytest.approx(sum(parts))


def test_he_initialisation_is_critical_and_its_correlations_creep_to_one(found):
    row = the(found, "relu", "variance-preserving", "gaussian")
    assert row is the(found, "relu", "critical", "gaussian")
    assert (row.phase, row.xi_c, row.xi_gradient) == ("critical", math.inf, math.inf)
    assert row.growth_decades == pytest.approx(0, abs=1e-10)
    # Cho & Saul 2009: the correlation map of relu in closed form, 64 times.
    c = np.array([0.0, 0.9])
    for _ in range(64):
        c = (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi
    assert 1 - row.correlation_end == pytest.approx(1 - c[0], rel=5e-3)
    assert row.contrast_left == pytest.approx((c[1] - c[0]) / 0.9, rel=5e-3)
    assert row.zero_probability == pytest.approx(0.5, abs=1e-12)
    (missing,) = (each for each in found.missing if each.activation == activations.relu)
    assert (missing.initialisation, missing.sigma_b) == ("critical", SIGMA_B[1])
    assert (missing.error.argument, missing.error.give) == ("sigma_b", "q_star")


def test_gradients_of_small_weights_vanish_at_the_rate_of_their_scale(found):
    row = the(found, "relu", "pytorch", "gaussian")
    assert row.chi == pytest.approx(1 / 6)
    assert row.growth_decades == pytest.approx(-64 * math.log10(6))
    assert math.isnan(row.xi_c)  # nothing of finite length is left to correlate


def test_gaussian_weights_of_a_linear_network_cost_what_fuss_and_catalan_say(found):
    # Of 64 Gaussian matrices, lambda_max = 65^65 / 64^64; tanh of vanishing signals is all but linear.
    row = the(found, "tanh", "pytorch", "gaussian")
    expected = math.exp((65 * math.log(65) - 64 * math.log(64)) / 2)
    assert row.largest_over_rms == pytest.approx(expected, rel=1e-6)


def test_the_course_is_that_of_quadrature_in_the_plane():
    starts, _ = _compare._starts(activations.tanh, SIGMA_B)
    sigma_w, sigma_b = np.array([[start.sigma_w, start.sigma_b] for start in (*starts, *starts)][:5]).T
    _, course = _course.follow(activations.tanh, 64, sigma_w, sigma_b)
    with jax.enable_x64(True):
        found = jax.jit(
            lambda: theory.correlation_map(
                activations.tanh, course.c[5].T, q=course.q[5], sigma_w=sigma_w, sigma_b=sigma_b
            )
        )()
    np.testing.assert_allclose(1 - course.c[6].T, 1 - np.asarray(found), rtol=1e-10)


def test_shaped_activations_are_predicted_as_what_the_shaping_makes_of_them():
    dks, tat = (
        next(row for row in _compare._shaped_rows(activations.relu, method, 32, ("gaussian",)))
        for method in ("dks", "tat")
    )
    assert [(row.activation, row.sigma_w) for row in (dks, tat)] == [(activations.relu, 1.0)] * 2
    assert (dks.initialisation, tat.initialisation) == (("dks",), ("tat",))
    assert (dks.shaping, tat.shaping) == ("dks", "tat")
    # Martens et al. 2021: C'(1)^depth = zeta; Zhang et al. 2022: C'(1) = 1, and C composed takes 0 to eta.
    assert dks.growth_decades == pytest.approx(np.log10(1.5), abs=1e-9)
    assert tat.growth_decades == pytest.approx(0, abs=1e-9)
    assert tat.correlation_end == pytest.approx(0.9, abs=1e-3)


def test_every_way_is_tried_by_default_and_what_does_not_apply_is_named():
    found = theory.predict(activations.hard_tanh, depth=4, weights=("orthogonal",))
    assert {row.shaping for row in found.ranking} == {None}
    missing = {each.initialisation: each.error for each in found.missing}
    assert set(missing) == {"variance-preserving", "dks", "tat"}
    assert "finite C''(1)" in str(missing["tat"])
    assert missing["tat"].__traceback__ is None


def test_signals_that_overflow_lose_everything():
    q = np.array([1.0, np.inf, np.inf])
    c, chi = np.array([[0.0, 0.9], [0.5, 0.9], [np.nan, np.nan]]), np.array([2.0, np.inf])
    row = prediction("lecun", 2.0, math.inf, math.nan, _course.Course(q, c, chi))
    assert row.score == math.inf
    assert math.isinf(row.q_end)


def test_signals_that_vanish_in_floating_point_have_no_singular_values():
    q = np.array([1.0, 0.0, 0.0])
    c, chi = np.array([[0.0, 0.9], [np.nan, np.nan], [np.nan, np.nan]]), np.array([0.5, 0.0])
    row = prediction("pytorch", 3**-0.5, 0.0, 0.0, _course.Course(q, c, chi))
    assert (row.q_end, row.score, row.growth_decades) == (0, math.inf, -math.inf)
    assert math.isnan(row.largest_over_rms)


def prediction(name, sigma_w, q_star, rest, course):
    limit = theory.MeanField(*(q_star if field == "q_star" else rest for field in theory.MeanField._fields))
    start = _compare._Start((name,), sigma_w, 0.0, True)
    return _compare._prediction(activations.relu_squared, None, start, "gaussian", limit, course)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"depth": 0}, "depth"),
        ({"weights": ("uniform",)}, "weights"),
        ({"weights": "gaussian"}, "weights"),
        ({"shaping": ("dks", "dsk")}, "shaping"),
    ],
)
def test_what_cannot_be_predicted_is_refused_by_name(options, argument):
    with pytest.raises(ValueError, match=f"`{argument}` must be"):
        theory.predict(activations.relu, **options)


# --- The code of a prediction ---------------------------------------------------------------------------------

DEPTH = 16
WAYS = {
    # activation, initialisation, weights, sigma_b
    "critical without bias": ("relu", "critical", "orthogonal", 0.0),
    "critical with bias": ("tanh", "critical", "gaussian", SIGMA_B[1]),
    "a family's member": ("leaky_relu(0.2)", "critical", "orthogonal", 0.0),
    "gain": ("gelu", "variance-preserving", "orthogonal", 0.0),
    "a habit": ("tanh", "pytorch", "gaussian", 0.0),
    "dks": ("gelu", "dks", "orthogonal", 0.0),
    "tat": ("gelu", "tat", "gaussian", 0.0),
    "tat of a family's member": ("leaky_relu(0.2)", "tat", "orthogonal", 0.0),
}


def expected_scale(activation, initialisation, sigma_b):
    if initialisation == "critical":
        return float(theory.critical_point(activation, sigma_b=sigma_b).sigma_w)
    if initialisation == "variance-preserving":
        return theory.gain(activation)
    return {"pytorch": 3**-0.5, "dks": 1.0, "tat": 1.0}[initialisation]


def built_by(row):
    built = {}
    exec(theory.recipe(row), built)
    return built["f"], list(built["model"].layers)


def check_moments(f, layers, row):
    """Every layer's second moment is that of theory, given the one before, but for a width of 256."""
    x = jax.random.normal(jax.random.key(1), (64, 784))
    h = layers[0](x / jnp.sqrt(jnp.mean(x**2, 1, keepdims=True)))
    moments = [jnp.mean(h**2)]
    for layer in layers[2:-2:2]:
        h = layer(f(h))
        moments.append(jnp.mean(h**2))
    moments = jnp.stack(moments)
    assert float(moments[0]) == pytest.approx(1, rel=0.1)
    expected = theory.variance_map(f, moments[:-1], sigma_w=row.sigma_w, sigma_b=row.sigma_b)
    drift = np.log(np.asarray(moments[1:]) / np.asarray(expected))
    assert drift.std() < 0.4
    assert abs(drift.mean()) < 4 * drift.std() / math.sqrt(len(drift))
    return moments


@pytest.mark.parametrize("way", WAYS)
def test_the_code_of_a_prediction_builds_its_network(found, way):
    name, initialisation, weights, sigma_b = WAYS[way]
    activation = activations.parse(name)
    row = found.ranking[0]._replace(
        activation=activation,
        shaping=initialisation if initialisation in ("dks", "tat") else None,
        initialisation=(initialisation,),
        weights=weights,
        depth=DEPTH,
        sigma_w=expected_scale(activation, initialisation, sigma_b),
        sigma_b=sigma_b,
    )
    f, layers = built_by(row)
    assert layers[1:-1:2] == [f] * (DEPTH + 1)
    hidden = layers[2:-2:2]
    assert len(hidden) == DEPTH
    for layer in hidden:  # 65,536 weights: their scale is known to 0.3 %
        sigma_w = float(jnp.std(layer.kernel[...])) * 256**0.5
        assert sigma_w == pytest.approx(row.sigma_w, rel=0.015)
        gram = np.asarray(layer.kernel[...].T @ layer.kernel[...]) / row.sigma_w**2
        assert np.allclose(gram, np.eye(256), atol=1e-4) == (weights == "orthogonal")
    biases = jnp.stack([layer.bias[...] for layer in hidden])  # 4,096: 1.1 %
    assert float(jnp.std(biases)) == pytest.approx(row.sigma_b, rel=0.05, abs=1e-12)
    check_moments(f, layers, row)


def test_the_code_of_the_winner_stands_at_its_fixed_point():
    row = theory.predict(activations.relu, depth=DEPTH, weights=("orthogonal",), shaping=("tat",)).ranking[0]
    assert (row.shaping, row.sigma_w, row.sigma_b) == ("tat", 1.0, 0.0)
    assert row.q_end == pytest.approx(1, abs=1e-9)
    f, layers = built_by(row)
    moments = check_moments(f, layers, row)
    # V(q) = q: the drift of the last from q_star is that of all layers together.
    steps = np.log(np.asarray(moments[1:] / moments[:-1]))
    assert abs(math.log(moments[-1] / row.q_star)) < 4 * steps.std() * math.sqrt(DEPTH)


def test_an_activation_that_no_text_names_has_no_code():
    mine = activations.from_callable(lambda x: x * jnp.tanh(x), name="mine")
    row = theory.predict(activations.relu, depth=4, weights=("orthogonal",), shaping=()).ranking[0]
    with pytest.raises(ValueError, match="activation of the zoo, got mine"):
        theory.recipe(row._replace(activation=mine))


def test_lecun_and_pytorch_are_named_for_gaussian_weights_alone():
    rows = theory.predict(activations.tanh, depth=8, shaping=()).ranking
    names = {row.weights: set() for row in rows}
    for row in rows:
        names[row.weights] |= set(row.initialisation)
        if row.sigma_w == 1.0:  # one rule and one habit agree
            assert row.initialisation == (
                ("critical", "lecun") if row.weights == "gaussian" else ("critical",)
            )
    assert {"lecun", "pytorch"} <= names["gaussian"]
    assert not {"lecun", "pytorch"} & names["orthogonal"]
