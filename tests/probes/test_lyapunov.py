"""Lyapunov exponents against systems whose own are known: linear maps, Henon, Lorenz, a tent map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from jaxact import probes


def test_of_a_linear_map_are_the_logarithms_of_its_eigenvalues_moduli():
    A = np.array([[1.3, 5.0, -2.0], [0.0, -0.8, 3.0], [0.0, 0.0, 0.1]], np.float32)
    found = probes.lyapunov_exponents(
        lambda x: jnp.asarray(A) @ x, jnp.zeros(3), num_steps=200, num_transient=100
    )
    np.testing.assert_allclose(np.exp(found.exponents), [1.3, 0.8, 0.1], rtol=1e-4)


def test_of_a_linear_flow_are_the_real_parts_whatever_the_step():
    A = np.array([[0.2, -3.0], [3.0, 0.2]])
    for time_step in (0.1, 0.5):
        flow = jnp.asarray(expm(time_step * A), jnp.float32)
        found = probes.lyapunov_exponents(
            lambda x, flow=flow: flow @ x, jnp.ones(2), num_steps=40, time_step=time_step
        )
        np.testing.assert_allclose(found.exponents, 0.2, atol=1e-4)


def test_of_henons_map_add_up_to_its_contraction():
    def henon(x):
        return jnp.stack([1 - 1.4 * x[0] ** 2 + x[1], 0.3 * x[0]])

    starts = jnp.array([[0.1, 0.1], [0.3, -0.1], [-0.2, 0.2], [0.0, 0.0]])
    found = probes.lyapunov_exponents(henon, starts, num_steps=20_000, num_transient=100)
    np.testing.assert_allclose(found.exponents.sum(-1), np.log(0.3), atol=1e-3)
    # 0.41922: Sprott 2003, "Chaos and time-series analysis", appendix A.
    np.testing.assert_array_less(np.abs(found.exponents[:, 0] - 0.41922), 4 * found.standard_error[:, 0])
    assert (found.standard_error[:, 0] < 0.01).all()


def test_of_lorenzs_flow_are_the_published_three():
    def lorenz(x):
        return jnp.stack([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1], x[0] * x[1] - 8 / 3 * x[2]])

    def runge_kutta(x, dt=0.01):
        a = lorenz(x)
        b = lorenz(x + dt / 2 * a)
        c = lorenz(x + dt / 2 * b)
        return x + dt / 6 * (a + 2 * b + 2 * c + lorenz(x + dt * c))

    starts = jax.random.normal(jax.random.key(0), (4, 3)) + jnp.array([1.0, 1.0, 20.0])
    found = probes.lyapunov_exponents(
        runge_kutta, starts, num_steps=20_000, num_transient=1000, time_step=0.01
    )
    known = np.array([0.9056, 0.0, -14.5723])  # Sprott 2003, appendix A
    mean, error = found.exponents.mean(0), np.sqrt((found.standard_error**2).mean(0) / 4)
    assert (np.abs(mean - known) < 4 * error + 2e-3).all(), (mean, error)
    np.testing.assert_allclose(found.exponents.sum(-1), -41 / 3, atol=1e-2)  # the flow's divergence


def test_of_a_skew_tent_map_have_the_error_of_independent_draws():
    a, num_steps = (
        0.3,
        2000,
    )  # slopes along the orbit are independent: 1 / a with probability a, else 1 / (1 - a)
    starts = jax.random.uniform(jax.random.key(1), (200, 1), minval=0.05, maxval=0.95)
    tent = lambda x: jnp.where(x < a, x / a, (1 - x) / (1 - a))  # noqa: E731
    found = probes.lyapunov_exponents(tent, starts, num_steps=num_steps, num_transient=50)
    known = -a * np.log(a) - (1 - a) * np.log(1 - a)
    error = np.sqrt(a * (1 - a) / num_steps) * np.log((1 - a) / a)
    np.testing.assert_allclose(found.exponents.mean(), known, atol=5 * error / 200**0.5)
    np.testing.assert_allclose(found.exponents.std(ddof=1), error, rtol=5 / 400**0.5)
    np.testing.assert_allclose((found.standard_error**2).mean() ** 0.5, error, rtol=0.1)


def test_driven_systems_follow_their_inputs():
    factors = np.exp(np.linspace(-1.0, 2.0, 60)).astype(np.float32)
    found = probes.lyapunov_exponents(
        lambda x, u: u["scale"] * x, jnp.ones(3), 2, num_steps=40, num_transient=20, inputs={"scale": factors}
    )
    np.testing.assert_allclose(found.exponents, np.log(factors[20:]).mean(), rtol=1e-5)


def test_one_state_and_a_batch_agree_and_so_do_few_exponents_and_all():
    W = jax.random.normal(jax.random.key(2), (6, 6)) * 1.5 / 6**0.5
    starts = jax.random.normal(jax.random.key(3), (3, 6))
    step = lambda h: jnp.tanh(W @ h)  # noqa: E731
    every = probes.lyapunov_exponents(step, starts, num_steps=100)
    one = probes.lyapunov_exponents(step, starts[1], num_steps=100)
    few = probes.lyapunov_exponents(step, starts, 2, num_steps=100)
    first = probes.lyapunov_exponents(step, starts, 1, num_steps=100)
    np.testing.assert_allclose(one.exponents, every.exponents[1], atol=0.02)
    # Frames of different sizes start differently: they agree up to the transient.
    np.testing.assert_allclose(few.exponents, every.exponents[:, :2], atol=0.1)
    np.testing.assert_allclose(first.exponents, few.exponents[:, :1], atol=0.1)


def test_a_lost_direction_is_minus_infinity_and_nothing_underflows():
    dead = probes.lyapunov_exponents(lambda x: jnp.maximum(x, 0) * 1.0, -jnp.ones(3), 1, num_steps=20)
    assert dead.exponents.tolist() == [-np.inf]
    tiny = probes.lyapunov_exponents(lambda x: 1e-30 * x, jnp.ones(3), 1, num_steps=20)
    np.testing.assert_allclose(tiny.exponents, np.log(1e-30), rtol=1e-5)


def test_a_trajectory_that_diverges_has_no_exponents():
    found = probes.lyapunov_exponents(
        lambda x: jnp.maximum(x, 0) * 1e3, jnp.array([[1.0], [-1.0]]), num_steps=20
    )
    np.testing.assert_allclose(found.exponents, [[np.nan], [-np.inf]])


def test_what_cannot_be_is_refused_by_name():
    step, x = jnp.tanh, jnp.ones(3)
    with pytest.raises(
        ValueError, match=r"`num_steps` must be a multiple of num_blocks = 20, got 30. Use num_steps=20"
    ):
        probes.lyapunov_exponents(step, x, num_steps=30)
    with pytest.raises(ValueError, match="`num_blocks` must be an integer of at least 2"):
        probes.lyapunov_exponents(step, x, num_steps=20, num_blocks=1)
    with pytest.raises(ValueError, match=r"`num` must be at most 3, got 4\. Use num=None for all"):
        probes.lyapunov_exponents(step, x, 4, num_steps=20)
    with pytest.raises(ValueError, match="`step` must return a state of the shape and dtype of its argument"):
        probes.lyapunov_exponents(lambda x: x[:2], x, num_steps=20)
    with pytest.raises(ValueError, match=r"`inputs` must hold an input for each of the .* = 20 steps"):
        probes.lyapunov_exponents(lambda x, u: x, x, num_steps=20, inputs=jnp.ones(19))
    with pytest.raises(ValueError, match=r"`num` must be an integer of at least 1, got 2.0"):
        probes.lyapunov_exponents(step, x, 2.0, num_steps=20)


@pytest.mark.parametrize("time_step", [0.0, -0.1, np.nan, np.inf, 1j, "1", None, np.ones(2)])
def test_a_step_takes_some_time(time_step):
    with pytest.raises(
        ValueError, match=r"`time_step` must be one positive, finite number, got .*\. Use 1\.0"
    ):
        probes.lyapunov_exponents(jnp.tanh, jnp.ones(3), num_steps=20, time_step=time_step)


def test_a_step_must_keep_the_dtype_of_the_state():
    narrow = jnp.ones(3, jnp.bfloat16)
    with pytest.raises(ValueError, match=r"got \(3,\) and float32\. .* cast the state: step\(x\)\.astype"):
        probes.lyapunov_exponents(lambda x: jnp.tanh(x.astype(jnp.float32)), narrow, num_steps=20)


def test_numbers_of_numpy_count_as_those_of_python():
    def run(whole, number):
        return probes.lyapunov_exponents(
            lambda x: jnp.array([2.0, 0.5]) * x,
            jnp.zeros(2),
            whole(2),
            num_steps=whole(20),
            num_transient=whole(4),
            num_blocks=whole(2),
            time_step=number(0.5),
        )

    plain = run(int, float)
    for whole, number in ((np.int64, np.float64), (np.int32, np.float32)):
        np.testing.assert_array_equal(run(whole, number), plain)
