"""Physics-informed networks: curvatures by hand, Jacobians by differences, and relu's blindness for any weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact.activations import relu, relu_squared, tanh
from train.experiments.chapter import physics
from train.experiments.chapter.exercise import check
from train.experiments.chapter.physics import Physics

POISSON, BURGERS = Physics().problems
WIDTH = 6


def network(f, params, z):
    """One hidden layer, its parameters in one row: output weights, biases, input weights."""
    out, bias, rest = params[:WIDTH], params[WIDTH : 2 * WIDTH], params[2 * WIDTH :]
    return jnp.sum(out * f(z @ rest.reshape(len(z), WIDTH) + bias))


def weights(dim):
    return jax.random.normal(jax.random.key(dim), ((2 + dim) * WIDTH,))


def test_curvature_is_that_by_hand_and_0_for_relu():
    test = physics._test_points(POISSON)
    params = weights(1)
    out, bias, slope = np.asarray(params).reshape(3, WIDTH)
    by_hand = np.sum(2 * out * slope**2 * (test * slope + bias > 0), 1)
    found = physics._curvature(partial(network, relu_squared), test, params)
    np.testing.assert_allclose(found, np.abs(by_hand).max(), rtol=1e-5)
    assert physics._curvature(partial(network, relu), test, params) == 0


@pytest.mark.parametrize("problem", [POISSON, BURGERS])
def test_the_jacobian_is_that_of_finite_differences(problem):
    with jax.enable_x64(True):
        params = weights(len(problem.counts))
        linearized = jax.jit(partial(physics._linearized, problem, partial(network, tanh)))
        residual, J = linearized(params)
        direction = jnp.cos(jnp.arange(len(params)))
        ends = [linearized(params + sign * 1e-5 * direction)[0] for sign in (1, -1)]
        np.testing.assert_allclose(J @ direction, (ends[0] - ends[1]) / 2e-5, atol=1e-7)
    edge = problem.equation.boundary(*problem.counts)[1]
    assert len(residual) == problem.num_points + len(edge)


def test_no_weight_of_relu_moves_a_residual_of_poisson():
    residual, J = physics._linearized(POISSON, partial(network, relu), weights(1))
    assert (J[: POISSON.num_points] == 0).all()
    assert (J[POISSON.num_points :] != 0).any()
    inside = float(jnp.sum(residual[: POISSON.num_points] ** 2))
    np.testing.assert_allclose(inside, physics._force(POISSON), rtol=1e-5)


def test_an_answer_that_rounds_otherwise_is_right(tmp_path):
    path = tmp_path / "answer.py"
    path.write_text(
        "import numpy as np\ndef residual(f, x, h):\n    return (f(x - h) + f(x + h) - 2 * f(x)) / h / h + np.sin(x)\n"
    )
    assert check(Physics.exercise, path).is_right
