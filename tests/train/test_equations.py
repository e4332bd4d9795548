"""Differential equations: solutions against scipy's solvers, residuals against derivatives by hand."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_bvp, solve_ivp

from train import tasks
from train.tasks import Burgers, Poisson


def test_the_solution_of_poissons_equation_is_that_of_a_boundary_value_solver():
    equation = Poisson(amplitudes=(1.0, 0.0, -0.3))
    x = np.linspace(-1, 1, 41)

    def force(x):
        return np.pi**2 * np.sin(np.pi * x) - 2.7 * np.pi**2 * np.sin(3 * np.pi * x)

    found = solve_bvp(
        lambda x, y: np.stack([y[1], -force(x)]), lambda a, b: [a[0], b[0]], x, np.zeros((2, 41)), tol=1e-8
    )
    np.testing.assert_allclose(equation.solution(x[:, None]), found.sol(x)[0], atol=1e-6)


@pytest.mark.parametrize("viscosity", [0.02, 0.1])
def test_the_solution_of_burgers_equation_is_that_of_a_spectral_solver(viscosity):
    num = 256
    x = -1 + 2 * np.arange(num) / num
    waves = np.pi * np.fft.rfftfreq(num, 1 / num)
    times = np.array([0.25, 0.5, 1.0])

    def rate(_, u):
        modes = np.fft.rfft(u)
        square = np.fft.rfft(u**2 / 2) * (waves < np.pi * num / 3)  # the upper third would be aliased
        return np.fft.irfft(-1j * waves * square - viscosity * waves**2 * modes, num)

    run = solve_ivp(rate, (0, 1), -np.sin(np.pi * x), "LSODA", t_eval=times, rtol=1e-9, atol=1e-11)
    z = np.stack([np.tile(x, 3), np.repeat(times, num)], 1)
    np.testing.assert_allclose(Burgers(viscosity=viscosity).solution(z), run.y.T.ravel(), atol=1e-6)


@pytest.mark.parametrize("viscosity", [0.003, 0.02, 0.1, 0.5])
def test_the_solution_of_burgers_equation_is_that_of_mpmaths_integrals(viscosity):
    z = [(0.002, 0.75), (0.3, 0.003), (0.81, 0.6), (0.83, 1.0), (0.95, 1.0)]
    width = mpmath.pi * mpmath.mpf(viscosity) * 2
    found = Burgers(viscosity=viscosity).solution(np.array(z))
    for (x, t), u in zip(z, found, strict=True):

        def weighted(s, factor, x=x, t=t):
            y = mpmath.pi * (x - 2 * mpmath.sqrt(viscosity * t) * s)
            return factor(y) * mpmath.exp((mpmath.cos(mpmath.pi * x) - mpmath.cos(y)) / width - s * s)

        ends = mpmath.linspace(-18, 18, 73)  # at 0.003 the largest F lies near s = 10
        above, below = (mpmath.quad(lambda s, f=f: weighted(s, f), ends) for f in (mpmath.sin, lambda y: 1))
        assert abs(u + above / below) < 1e-10


def test_residuals_are_those_of_derivatives_by_hand():
    with jax.enable_x64(True):
        z = jnp.array([0.3, 0.7])
        u = lambda z: z[0] ** 3 * z[1]  # noqa: E731
        x, t = 0.3, 0.7
        by_hand = x**3 + x**3 * t * 3 * x**2 * t - 0.1 * 6 * x * t
        np.testing.assert_allclose(Burgers().residual(u, z), by_hand, rtol=1e-12)
        force = np.pi**2 * np.sin(np.pi * x) + 2 * np.pi**2 * np.sin(2 * np.pi * x)
        scale = np.pi**2 * np.sqrt((1 + 4) / 2)
        found = Poisson().residual(lambda z: z[0] ** 3, jnp.array([x]))
        np.testing.assert_allclose(found, (6 * x + force) / scale, rtol=1e-12)


def test_no_solution_leaves_poissons_force():
    equation = Poisson()
    zero = jax.vmap(lambda z: equation.residual(lambda z: 0 * z[0], z))(jnp.asarray(equation.grid(201)))
    np.testing.assert_allclose(np.mean(zero[:-1] ** 2), 1, rtol=1e-5)


@pytest.mark.parametrize(("equation", "counts"), [(Poisson(), (9,)), (Burgers(), (9, 5))])
def test_the_solution_has_the_boundary_data(equation, counts):
    z, values = equation.boundary(*counts)
    np.testing.assert_allclose(equation.solution(z), values, atol=1e-12)
    rows = {tuple(row) for row in equation.grid(*counts).tolist()}
    assert {tuple(row) for row in z.tolist()} <= rows
    assert len(z) == {1: 2, 2: 9 + 2 * 4}[len(counts)]


def test_equations_are_no_classification_tasks():
    assert not {"poisson", "burgers"} & set(tasks.names())
    with pytest.raises(ValueError, match="`task` must be one of"):
        tasks.parse("burgers")


def test_what_has_no_solution_is_refused():
    for viscosity in (0, 0.6, 5.0):
        with pytest.raises(
            ValueError,
            match=rf"`viscosity` must be .* of at least 0\.003 and at most 0\.5, got {viscosity}\. Use",
        ):
            Burgers(viscosity=viscosity)
    with pytest.raises(ValueError, match="`amplitudes` must not all be 0"):
        Poisson(amplitudes=(0.0,))
    with pytest.raises(
        ValueError, match=r"`amplitudes` must be a tuple of numbers, got 1\.0\. Use \(1\.0,\)"
    ):
        Poisson(amplitudes=1.0)
    with pytest.raises(ValueError, match=r"`amplitudes` must be a finite number, got inf\. Use 0\.0"):
        Poisson(amplitudes=(1.0, np.inf))


def test_a_grid_has_a_count_for_every_coordinate():
    with pytest.raises(
        ValueError, match=r"`counts` must be 2 positive integers, .* of burgers, got \(3,\)\. Use grid"
    ):
        Burgers().grid(3)
    with pytest.raises(ValueError, match="`counts` must be an integer of at least 1, got 0"):
        Poisson().grid(0)
    with pytest.raises(ValueError, match="`num` must be an integer of at least 1, got -1"):
        Burgers().scattered(-1)


def test_scattered_points_fill_the_box_evenly_and_share_no_line():
    z = Burgers().scattered(256)
    assert z.shape == (256, 2)
    counts, *_ = np.histogram2d(*z.T, bins=(4, 4), range=Burgers.box)
    assert counts.sum() == 256
    assert counts.min() >= 12
    assert counts.max() <= 20
    assert len(np.unique(z[:, 1])) == 256
