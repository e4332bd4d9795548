"""Fixed points, phases and the edge of chaos against published points, closed forms and iteration."""

from functools import partial

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from jaxact import activations, theory

TANH, BIAS = activations.tanh, 0.05**0.5


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def test_known_points_of_tanh():
    edge = theory.critical_point(TANH, sigma_b=BIAS)
    np.testing.assert_allclose(edge.sigma_w**2, 1.7609546396, atol=1e-10)
    np.testing.assert_allclose(edge.q_star, 0.5700478816, atol=1e-10)
    found = theory.mean_field(TANH, sigma_w=2.5**0.5, sigma_b=BIAS)
    np.testing.assert_allclose(found.q_star, 1.0639583774, atol=1e-10)
    np.testing.assert_allclose(found.chi, 1.1335156987, atol=1e-10)
    np.testing.assert_allclose(found.c_star, 0.4468042323, atol=1e-10)
    np.testing.assert_allclose(found.xi_c, 11.795598, atol=1e-6)
    assert found.phase == "chaotic"


@pytest.mark.parametrize("name", ["tanh", "gelu", "sigmoid", "hard_tanh"])
def test_the_fixed_point_is_where_iteration_from_unit_length_ends(name):
    activation = activations.parse(name)
    scales = {"sigma_w": np.array([0.7, 1.2, 1.4]), "sigma_b": np.array([0.3, 0.5, 0.2])}
    found = theory.mean_field(activation, **scales)
    step = partial(theory.variance_map, activation, **scales)
    q, tangent = (
        jax.jit(lambda q: jax.lax.fori_loop(0, 300, lambda _, q: step(q), q))(jnp.ones(3)),
        jnp.ones(3),
    )
    np.testing.assert_allclose(found.q_star, q, rtol=1e-9)
    slope = jax.jit(lambda q: jax.jvp(step, (q,), (tangent,))[1])(found.q_star)
    np.testing.assert_allclose(found.xi_q, -1 / np.log(np.abs(slope)), rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "sigma_w", "sigma_b"),
    [("tanh", 2.0, 0.1), ("hard_tanh", 1.7, 0.2), ("hard_tanh", 1.15, 0.2), ("selu", 1.1, 0.6)],
)
def test_the_fixed_correlation_is_one_of_the_correlation_map_and_its_slope_the_depth_scale(
    name, sigma_w, sigma_b
):
    activation = activations.parse(name)
    found = theory.mean_field(activation, sigma_w=sigma_w, sigma_b=sigma_b)
    assert found.phase == "chaotic"
    map_ = partial(theory.correlation_map, activation, q=found.q_star, sigma_w=sigma_w, sigma_b=sigma_b)
    image, slope = jax.jit(lambda c: jax.jvp(map_, (c,), (jnp.ones(()),)))(found.c_star)
    np.testing.assert_allclose(image, found.c_star, atol=1e-9)
    np.testing.assert_allclose(found.xi_c, -1 / np.log(slope), rtol=1e-6)


def test_depth_scales_of_a_kinked_function_diverge_at_the_edge_as_the_correlation_map_says():
    # Near c = 1 the slope jumps of hard_tanh make C'(c) = chi - a sqrt(1 - c), with no Taylor series to rely on.
    edge = theory.critical_point(activations.hard_tanh, sigma_b=0.2)
    found = theory.mean_field(
        activations.hard_tanh, sigma_w=edge.sigma_w * np.array([1.001, 1.01]), sigma_b=0.2
    )
    for c, q, w, xi in zip(
        found.c_star, found.q_star, edge.sigma_w * np.array([1.001, 1.01]), found.xi_c, strict=True
    ):
        c, q, w = (float(each) for each in (c, q, w))
        with mp.workdps(
            20
        ):  # E f'(u) f'(v) = P(|u| < 1, |v| < 1), Plackett 1954: d/dc of it is a sum of densities
            k = 1 / mp.sqrt(q)

            def density(t, k=k):  # with c = cos t
                return (mp.exp(-k * k / (1 + mp.cos(t))) - mp.exp(-k * k / (2 * mp.sin(t / 2) ** 2))) / mp.pi

            inside = mp.erf(k / mp.sqrt(2)) - mp.quad(density, [0, mp.acos(c)])
        np.testing.assert_allclose(xi, float(-1 / mp.log(w * w * inside)), rtol=1e-6)


def test_fixed_points_are_differentiable_in_the_scales():
    for activation, w, b in ((TANH, 1.6, 0.3), (activations.hard_tanh, 1.15, 0.2)):

        def fields(w, activation=activation, b=b):
            found = theory.mean_field(activation, sigma_w=w, sigma_b=b)
            return jnp.stack([found.q_star, found.chi, found.c_star, found.xi_q, found.xi_c])

        both = jax.jit(lambda w, fields=fields: jax.jvp(fields, (w,), (jnp.ones(()),)))
        (_, slopes), (above, _), (below, _) = both(w), both(w + 1e-5), both(w - 1e-5)
        np.testing.assert_allclose(slopes, (above - below) / 2e-5, rtol=2e-5, atol=1e-7)


def test_relu_in_every_regime():
    sigma_w, sigma_b = np.array([1.0, 2.0**0.5, 1.5, 2.0**0.5]), np.array([1.0, 0.0, 0.0, 0.1])
    found = jax.jit(lambda w, b: theory.mean_field(activations.relu, sigma_w=w, sigma_b=b))(sigma_w, sigma_b)
    assert found.phase.tolist() == ["ordered", "critical", "unbounded", "unbounded"]
    np.testing.assert_allclose(
        found.q_star, [2.0, 1.0, np.inf, np.inf], rtol=1e-12
    )  # sigma_b^2 / (1 - sigma_w^2 / 2)
    np.testing.assert_allclose(found.chi, [0.5, 1.0, np.nan, np.nan], rtol=1e-12)
    np.testing.assert_allclose(found.c_star, [1.0, 1.0, np.nan, np.nan])


def test_signals_that_vanish_end_at_zero():
    found = theory.mean_field(TANH, sigma_w=0.8)
    assert float(found.q_star) == 0.0
    np.testing.assert_allclose(found.chi, 0.64, rtol=1e-12)  # f'(0) = 1
    assert found.phase == "ordered"


def test_depth_scales_at_the_edge_are_infinite_to_rounding():
    found = theory.mean_field(TANH, sigma_w=1.0)
    assert found.phase == "critical"
    assert min(float(found.xi_c), float(found.xi_q), float(found.xi_gradient)) > 1e12  # infinite, to rounding


def test_critical_points_are_critical():
    for name, sigma_b in [("tanh", 0.3), ("sigmoid", 0.0), ("gelu", 0.0), ("relu", 0.0)]:
        activation = activations.parse(name)
        edge = theory.critical_point(activation, sigma_b=sigma_b)
        if edge.q_star == 0:
            continue
        scales = {"sigma_w": edge.sigma_w, "sigma_b": edge.sigma_b}
        np.testing.assert_allclose(
            theory.variance_map(activation, edge.q_star, **scales), edge.q_star, rtol=1e-11
        )
        moments = theory.moments(activation, variance=edge.q_star)
        np.testing.assert_allclose(edge.sigma_w**2 * moments.slope_second_moment, 1, rtol=1e-11)


def test_the_edge_is_a_curve_through_the_points():
    curve = theory.critical_point(TANH, q_star=np.array([0.1, 0.5700478816407955, 2.0]))
    np.testing.assert_allclose(curve.sigma_b[1], BIAS, rtol=1e-9)
    assert np.all(np.diff(curve.sigma_w) > 0)


def test_small_signals_are_critical_where_no_others_are():
    for name, sigma_w in [("tanh", 1.0), ("erf", np.pi**0.5 / 2), ("sin", 1.0)]:
        edge = theory.critical_point(activations.parse(name))
        assert (edge.q_star, edge.sigma_b) == (0, 0)
        np.testing.assert_allclose(edge.sigma_w, sigma_w, rtol=1e-12)


def test_bad_scales_are_refused():
    with pytest.raises(ValueError, match="`sigma_w` must be finite and nonnegative, got -1"):
        theory.mean_field(TANH, sigma_w=-1.0)
    with pytest.raises(ValueError, match="`sigma_b` must be finite and nonnegative, got nan"):
        theory.critical_point(TANH, sigma_b=float("nan"))
    with pytest.raises(ValueError, match="`q_star` must be positive"):
        theory.critical_point(TANH, q_star=0.0)
    with pytest.raises(ValueError, match="softplus"):
        theory.critical_point(activations.softplus(1.0))
    with pytest.raises(TypeError, match="not both"):
        theory.critical_point(TANH, sigma_b=0.1, q_star=1.0)


def test_what_is_traced_and_no_scale_gives_nan():
    found = jax.jit(lambda w, b: theory.mean_field(TANH, sigma_w=w, sigma_b=b))(
        np.array([np.nan, 1.5, -1.5, 1.5, 1.5]), np.array([0.1, np.nan, 0.1, -0.1, 0.1])
    )
    for field in found:
        assert np.isnan(field[:4]).all()
        assert np.isfinite(field[4])
    assert found.phase.tolist() == [*["undefined"] * 4, "chaotic"]
    for map_ in (
        lambda w: theory.variance_map(TANH, 1.0, sigma_w=w),
        lambda w: theory.correlation_map(TANH, 0.3, sigma_w=w),
    ):
        assert np.isnan(jax.jit(jax.vmap(map_))(np.array([-1.0, np.nan]))).all()


def test_in_float32_depth_scales_are_right_or_nan():
    edge = theory.critical_point(activations.hard_tanh, sigma_b=0.2)
    scales = edge.sigma_w * np.array([1.0002, 1.001, 1.01, 1.1])
    exact = theory.mean_field(activations.hard_tanh, sigma_w=scales, sigma_b=0.2)
    with jax.enable_x64(False):
        found = theory.mean_field(
            activations.hard_tanh, sigma_w=scales.astype(np.float32), sigma_b=np.float32(0.2)
        )
    known = ~np.isnan(found.xi_c)
    assert known.tolist() == [False, False, True, True]
    np.testing.assert_allclose(found.xi_c[known], exact.xi_c[known], rtol=0.02)
    np.testing.assert_allclose(found.c_star, exact.c_star, atol=2e-3)


@pytest.mark.parametrize("name", ["gelu", "tanh", "softplus"])
@pytest.mark.parametrize("error", [-1e-15, 0.0, 1e-15])
def test_signals_stay_at_a_fixed_point_that_neither_repels_nor_attracts(name, error):
    shaped = theory.shape(activations.parse(name), 64, method="tat")  # Q(1) = 1 and Q'(1) = 1
    found = theory.mean_field(shaped, sigma_w=1.0 + error)
    np.testing.assert_allclose(found.q_star, 1, rtol=1e-6)
    np.testing.assert_allclose(found.chi, 1, rtol=1e-6)


def test_a_fixed_point_at_one_that_repels_is_not_where_signals_go():
    gelu = activations.gelu
    edge = theory.critical_point(gelu, q_star=1.0)
    slope = jax.jvp(
        lambda q: theory.variance_map(gelu, q, sigma_w=edge.sigma_w, sigma_b=edge.sigma_b), (1.0,), (1.0,)
    )[1]
    assert slope > 1
    q = theory.mean_field(gelu, sigma_w=edge.sigma_w, sigma_b=edge.sigma_b).q_star
    assert q == np.inf or abs(q - 1) > 0.1


def test_activations_without_integrals_are_refused_by_every_prediction():
    root = activations.Activation(
        name="root",
        fn=jnp.sqrt,
        derivative=lambda x: 0.5 / jnp.sqrt(x),
        range=activations.Interval(0, np.inf),
        slope_range=activations.Interval(0, np.inf),
    )
    explosive = activations.Activation(
        name="explosive", fn=lambda x: jnp.exp(x**2), derivative=lambda x: 2 * x * jnp.exp(x**2),
        range=activations.Interval(1, np.inf),
        slope_range=activations.Interval(-np.inf, np.inf),
    )  # fmt: skip
    predictions = [
        theory.gain,
        lambda f: theory.variance_map(f, 1.0, sigma_w=1.0),
        lambda f: theory.correlation_map(f, 0.5, sigma_w=1.0),
        lambda f: theory.trajectory(f, 2, sigma_w=1.0),
        lambda f: theory.critical_point(f, q_star=1.0),
        lambda f: theory.jacobian_spectrum(f, 2, sigma_w=1.0, q=1.0),
        theory.batch_norm_gradient_growth,
        lambda f: theory.residual_trajectory(f, 2, order="pre", sigma_w=1.0),
        lambda f: theory.shape(f, 8),
    ]
    for predict in [*predictions, lambda f: theory.mean_field(f, sigma_w=1.0)]:
        with pytest.raises(ValueError, match="`activation` must be a number everywhere, got root"):
            predict(root)
    for predict in predictions[1:]:
        with pytest.raises(ValueError, match="got explosive"):
            predict(explosive)
    assert theory.mean_field(explosive, sigma_w=1.0).phase == "unbounded"
    with pytest.raises(ValueError, match="`c` must be a correlation"):
        theory.trajectory(TANH, 1, c=2.0, sigma_w=1.0)


SIN = activations.sin


def test_lengths_of_sin_are_right_or_refused():
    from jaxact.theory import _phase

    scales = np.array([5.0, 20.0, 22.0, 60.0, 300.0])
    found = _phase._mean_field(SIN, scales, np.zeros(5))  # what a trace gets
    # q = w^2 (1 - e^{-2 q}) / 2, chi = w^2 (1 + e^{-2 q}) / 2
    np.testing.assert_allclose(found.q_star[:3], scales[:3] ** 2 / 2, rtol=1e-9)
    np.testing.assert_allclose(found.chi[:3], scales[:3] ** 2 / 2, rtol=1e-9)
    for field in found:
        assert np.isnan(field[3:]).all()
    assert found.phase.tolist() == [*["chaotic"] * 3, *["undefined"] * 2]
    with pytest.raises(
        ValueError, match=r"q = 1e-24 to 256, beyond which it oscillates .*, got 60 and 0 for sin"
    ):
        theory.mean_field(SIN, sigma_w=scales)
    # chi = 1: w^2 = 2 / (1 + e^{-2 q}), at which b^2 = q - tanh(q)
    edge = theory.critical_point(SIN, sigma_b=3.0)
    np.testing.assert_allclose(edge.q_star - np.tanh(edge.q_star), 9.0, rtol=1e-10)
    with pytest.raises(
        ValueError, match=r"`sigma_b` = 100 has no critical point for sin in q = 1e-24 to 256, beyond"
    ):
        theory.critical_point(SIN, sigma_b=100.0)
    with pytest.raises(ValueError, match="got sin, whose squares"):
        theory.critical_point(SIN, q_star=np.array([1.0, 1e4]))


def test_very_long_and_very_short_signals_have_fixed_points():
    found = jax.jit(lambda w, b: theory.mean_field(TANH, sigma_w=w, sigma_b=b))(
        np.array([1e7, 0.5, 0.5, 1e13, 0.5]), np.array([0.0, 1e-8, 1e-14, 0.0, 1e13])
    )
    # tanh^2 is 1 but for |x| of a few: E tanh(s z)^2 = 1 - 2 / (sqrt(2 pi) s); for short ones q = b^2 / (1 - w^2).
    np.testing.assert_allclose(found.q_star[0], 1e14 - 1e7 * 2 / np.sqrt(2 * np.pi), rtol=1e-12)
    np.testing.assert_allclose(found.q_star[1:3], np.array([1e-16, 1e-28]) / 0.75, rtol=1e-12)
    assert np.isnan(found.q_star[3:]).all()
    relu = jax.jit(lambda w, b: theory.mean_field(activations.relu, sigma_w=w, sigma_b=b).q_star)(
        np.array([1.0, 2.0**0.5, 1.0]), np.array([1e7, 1e-3, 1e13])
    )
    np.testing.assert_allclose(relu, [2e14, np.inf, np.nan], rtol=1e-12)


def test_biases_of_any_size_have_their_edge_or_none():
    edge = theory.critical_point(TANH, sigma_b=1e7)
    at = theory.critical_point(TANH, q_star=edge.q_star)
    np.testing.assert_allclose([at.sigma_w, at.sigma_b], [edge.sigma_w, 1e7], rtol=1e-10)
    with pytest.raises(
        ValueError, match=r"`sigma_b` = 1e\+200 has no critical point for tanh in q = 1e-24 to 1e\+24"
    ):
        theory.critical_point(TANH, sigma_b=1e200)


def test_depth_scales_of_vanishing_signals_are_differentiable():
    def fields(w):
        found = theory.mean_field(TANH, sigma_w=w)
        return jnp.stack([found.xi_c, found.c_star, found.q_star])

    # xi_c = -1 / log(w^2)
    slope = 2 / (0.5 * np.log(0.25) ** 2)
    slopes = jax.jit(lambda w: jax.jvp(fields, (w,), (1.0,))[1])(0.5)
    np.testing.assert_allclose(slopes, [slope, 0, 0], rtol=1e-12)


def test_what_is_nan_far_out_is_not_unbounded():
    root = activations.Activation(
        name="root", fn=lambda x: 0.1 * jnp.sqrt(x + 20), derivative=lambda x: 0.05 / jnp.sqrt(x + 20),
        range=activations.Interval(0, np.inf), slope_range=activations.Interval(0, np.inf),
    )  # fmt: skip
    with pytest.raises(
        ValueError, match="must be a number everywhere, got root, whose activation is NaN at x = -100"
    ):
        theory.mean_field(root, sigma_w=1.0)


def test_no_points_have_no_limits():
    assert theory.mean_field(TANH, sigma_w=np.ones((0, 2))).c_star.shape == (0, 2)
    assert theory.critical_point(TANH, q_star=np.ones(0)).sigma_w.shape == (0,)


def test_what_has_no_value_has_no_derivative():
    def fields(w, b):
        return jnp.stack(theory.mean_field(activations.gelu, sigma_w=w, sigma_b=b))

    derivatives = jax.jit(lambda w, b: (jax.jacfwd(fields)(w, b), jax.jacrev(fields)(w, b)))
    for scales in ((3.0, 0.0), (-1.0, 0.1)):
        assert np.isnan(derivatives(*scales)).all()


def test_scales_whose_squares_overflow_are_not_unbounded():
    with jax.enable_x64(False):
        with pytest.raises(ValueError, match=r"must lead signals from q = 1 to a fixed point .* for tanh"):
            theory.mean_field(TANH, sigma_w=3e19)
        assert theory.mean_field(activations.relu, sigma_w=3e19).phase == "unbounded"


def test_what_runs_on_the_host_takes_numbers_alone():
    with pytest.raises(ValueError, match=r"must be one number, got shape \(2,\)\. .* q_star for a curve"):
        theory.critical_point(TANH, sigma_b=np.ones(2))
    for each in ("sigma_b", "q_star"):
        with pytest.raises(ValueError, match=f"`{each}` must be known: .* not traced values"):
            jax.jit(lambda b, each=each: theory.critical_point(TANH, **{each: b}))(0.1)
    with pytest.raises(ValueError, match="`sigma_w` must be known"):
        jax.jit(lambda w: theory.jacobian_spectrum(TANH, 2, sigma_w=w))(1.0)
    with pytest.raises(ValueError, match="`sigma_w` must be one number, got 'a'"):
        theory.residual_trajectory(TANH, 2, order="pre", sigma_w="a")
    with pytest.raises(ValueError, match="`n` must be known"):
        jax.jit(theory.skip_open_probability)(3)


def test_unit_signals_that_leave_a_critical_point_at_zero_are_told_so():
    """At f = x sigmoid(3 x) + sin(x) / 10 and sigma_w = 1 / f'(0) signals of every size grow: q_star = 0 repels."""
    mine = activations.from_callable(lambda x: x * jax.nn.sigmoid(3 * x) + 0.1 * jnp.sin(x), name="mine")
    point = theory.critical_point(mine)
    np.testing.assert_allclose([point.sigma_w, point.q_star], [1 / 0.6, 0], atol=1e-12)
    z, weights = np.polynomial.hermite_e.hermegauss(150)
    q = np.geomspace(1e-2, 10, 13)
    x = np.sqrt(q)[:, None] * z
    f = x / (1 + np.exp(-3 * x)) + 0.1 * np.sin(x)
    V = point.sigma_w**2 * (f**2 @ weights) / weights.sum()
    assert (q < V).all()
    at_one = np.interp(1, q, V)
    told = rf"to 256, beyond .* they grow beyond \(V\(1\) = {at_one:.3g}\), and leave the fixed point q = 0\."
    with pytest.raises(ValueError, match=told):
        theory.mean_field(mine, sigma_w=point.sigma_w)
    silu = theory.mean_field(activations.silu, sigma_w=theory.critical_point(activations.silu).sigma_w)
    assert silu.phase == "unbounded"  # the same, seen to the end
