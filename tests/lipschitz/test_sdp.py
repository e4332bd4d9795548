"""LipSDP against closed forms, brute force over multipliers, and its own constraint at what the solver returned."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import scipy.optimize

from jaxact import activations, lipschitz
from jaxact.lipschitz import _sdp
from jaxact.lipschitz._sdp import SolverError, lipsdp

cp = pytest.importorskip("cvxpy")


def matrices(widths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(k, n)) / np.sqrt(n) for n, k in pairwise(widths)]


def test_one_hidden_layer_matches_a_search_over_multipliers():
    # Slopes in [0, 1]: eliminating dy from the constraint leaves rho >= lambda_max(A^T T (2 T - C^T C)^{-1} T A).
    A, C = matrices((2, 3, 2), 1)

    def least(log_multipliers):
        T = np.diag(np.exp(log_multipliers))
        block = 2 * T - C.T @ C
        if np.linalg.eigvalsh(block)[0] <= 0:
            return 1e6
        return np.linalg.eigvalsh(A.T @ T @ np.linalg.solve(block, T @ A))[-1]

    start = np.log(np.full(3, np.linalg.norm(C, 2) ** 2))
    found = scipy.optimize.minimize(
        least, start, method="Nelder-Mead", options={"maxiter": 4000, "xatol": 1e-10, "fatol": 1e-13}
    )
    certificate = lipsdp([A, C], [(0.0, 1.0)])
    assert certificate.certified
    np.testing.assert_allclose(certificate.value, np.sqrt(found.fun), rtol=1e-4)


def test_layers_are_looser_than_neurons_and_the_product_loosest():
    weights, ranges = matrices((3, 6, 6, 2), 2), [(-0.1, 1.1)] * 2
    neuron, layer = (lipsdp(weights, ranges, variant=v).value for v in ("neuron", "layer"))
    product = np.prod([np.linalg.norm(w, 2) for w in weights]) * 1.1**2
    assert neuron <= layer * (1 + 1e-6) <= product * (1 + 2e-6)


def test_scale_and_sign_of_slopes_pass_through():
    weights = matrices((3, 6, 2), 3)
    base = lipsdp(weights, [(-0.5, 1.0)]).value
    np.testing.assert_allclose(lipsdp(weights, [(-1.0, 0.5)]).value, base, rtol=1e-6)
    np.testing.assert_allclose(
        lipsdp([1e6 * weights[0], 1e-3 * weights[1]], [(-0.5, 1.0)]).value, 1e3 * base, rtol=1e-6
    )
    assert lipsdp([weights[0], 0 * weights[1]], [(0.0, 1.0)]).value == 0
    np.testing.assert_allclose(lipsdp(weights[:1], []).value, np.linalg.norm(weights[0], 2), rtol=1e-9)


def test_one_unit_gives_its_largest_slope():
    for ends in ((0.0, 1.0), (-0.1, 1.1), (-1.0, 1.0), (0.2, 1.0)):
        value = lipsdp([np.array([[2.0]]), np.array([[0.5]])], [ends]).value
        assert max(map(abs, ends)) * (1 - 1e-12) <= value <= max(map(abs, ends)) * (1 + 1e-5)


def test_multipliers_that_prove_nothing_are_not_believed():
    weights = matrices((3, 6, 2), 3)
    picks = _sdp._Picks(weights)
    assert _sdp._checked(picks, [(0.0, 1.0)], [np.zeros(6)]) is None
    good = np.full(6, np.linalg.norm(weights[1], 2) ** 2)
    assert _sdp._checked(picks, [(0.0, 1.0)], [good]) >= lipsdp(weights, [(0.0, 1.0)]).value ** 2 * (1 - 1e-6)


def test_a_solver_that_stops_early_certifies_nothing():
    with pytest.raises(_sdp.SolverError, match="must find a bound, got none") as refused:
        lipsdp(matrices((3, 6, 6, 2), 2), [(0.0, 1.0)] * 2, options={"max_iter": 1})
    assert "status" in refused.value.reason


def test_solvers_agree():
    if "SCS" not in cp.installed_solvers():
        pytest.skip("SCS is not installed")
    weights = [w.T for w in matrices((3, 6, 6, 2), 4)]
    accurate, first_order = (
        float(lipschitz.upper_bound(weights, activations.relu, method="lipsdp", solver=solver))
        for solver in ("CLARABEL", "SCS")
    )
    assert accurate * (1 - 1e-6) <= first_order <= 1.01 * accurate


def test_bad_input_is_refused_with_a_remedy():
    with pytest.raises(ValueError, match="`variant` must be one of 'neuron', 'layer'"):
        lipsdp(matrices((2, 3, 2)), [(0.0, 1.0)], variant="network")
    with pytest.raises(ImportError, match="`solver` must be installed, got 'MOSEK'"):
        lipsdp(matrices((2, 3, 2)), [(0.0, 1.0)], solver="MOSEK")


def test_a_solvers_error_keeps_its_reason_on_the_way_to_another_process():
    error = SolverError("infeasible")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reason) == (str(error), "infeasible")
