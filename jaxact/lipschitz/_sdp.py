"""LipSDP: the Lipschitz bound of a chain as a semidefinite program, by a solver and checked."""

import math
import time
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from jaxact.lipschitz._norms import dense_norm, is_positive
from jaxact.lipschitz._program import Certificate
from jaxact.lipschitz._rounding import UNIT

_VARIANTS = ("neuron", "layer")
SOLVERS = ("CLARABEL", "SCS")
_ACCEPTED = ("optimal", "optimal_inaccurate")


class SolverError(ValueError):
    """The solver of a semidefinite program found no bound.

    Attributes:
        reason: what it said.
    """

    def __init__(self, reason: str):
        super().__init__(f"`method` 'lipsdp' must find a bound, got none: {reason}. Use 'ellipsoid'.")
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason,)


def lipsdp(
    matrices: Sequence[np.ndarray],
    ranges: Sequence[tuple[Any, Any]],
    *,
    variant: str = "neuron",
    solver: str = "CLARABEL",
    options: dict[str, Any] | None = None,
) -> Certificate:
    """Bound the Lipschitz constant of a chain by LipSDP (Fazlyab et al. 2019, theorem 2).

        minimise rho   subject to   [[rho I, 0], [0, 0]] - C^T C - sum_l [A_l; B_l]^T S_l [A_l; B_l] >= 0
        S_l = [[-2 alpha beta T_l, (alpha + beta) T_l], [(alpha + beta) T_l, -2 T_l]],   T_l >= 0 diagonal

    over the stacked differences (dx, dy_1, ..., dy_{L-1}), where A_l = W_l E_{l-1} picks dz_l, B_l = E_l picks dy_l and
    C = W_L E_{L-1}; K <= sqrt(rho). The variant with multipliers that couple neurons (theorem 1 of the first version)
    is not a valid bound (Pauli et al. 2021) and not offered. The paper's sign and factor conventions, with alpha != 0.

    What the solver returns is not believed: its T, with negative entries set to 0, is put into the constraint, rho is
    computed anew as the largest eigenvalue of the Schur complement of its first block, and the constraint is
    established by a Cholesky factorisation with a margin for rounding. Where that fails T_l is enlarged by powers of
    1 + 1e-10, ..., 1 + 1e-3, more in earlier layers, and if it still fails the result is not certified.

    Args:
        matrices: [out, in], from the input to the output.
        ranges: (alpha, beta) of the slopes, scalars, between two matrices.
        variant: "neuron", or "layer" for T_l = t_l I.
        solver: a solver of cvxpy for semidefinite programs: "CLARABEL" or "SCS".
        options: passed on to the solver.

    Returns:
        A `Certificate`. Where the solver fails: value inf, certified False, and its status in `assumptions`.

    Raises:
        ImportError: cvxpy or the solver is not installed.
        ValueError: an unknown variant.
    """
    if variant not in _VARIANTS:
        raise ValueError(f"`variant` must be one of 'neuron', 'layer', got {variant!r}. Use 'neuron'.")
    try:
        import cvxpy as cp
    except ImportError as error:
        raise ImportError("`method` 'lipsdp' needs a solver: pip install 'jaxact[sdp]'.") from error
    if solver not in cp.installed_solvers():
        raise ImportError(f"`solver` must be installed, got {solver!r}. Use pip install 'jaxact[sdp]'.")
    started = time.perf_counter()
    method = f"lipsdp, {variant}, {solver}"
    norms = [float(np.linalg.norm(matrix, 2)) for matrix in matrices]
    slopes = [max(abs(float(a)), abs(float(b))) for a, b in ranges]
    if min(norms + slopes) == 0:
        return _certificate(0.0, 0.0, method, started, ())
    if len(matrices) == 1:
        return _certificate(dense_norm(matrices[0]), 0.0, method, started, ())
    # The solver's tolerances are absolute: norms and slopes are brought near 1, their products too.
    sizes_of = [size for pair in zip(norms, slopes, strict=False) for size in pair] + norms[-1:]
    powers = np.rint(np.cumsum(np.log2(sizes_of))).astype(int)
    shift = int(powers[-1])
    exponents = np.diff(powers, prepend=0)  # powers of two: exact
    scaled = [np.ldexp(matrix, -e) for matrix, e in zip(matrices, exponents[::2], strict=True)]
    unit_ranges = [
        (math.ldexp(float(a), -int(e)), math.ldexp(float(b), -int(e)))
        for (a, b), e in zip(ranges, exponents[1::2], strict=True)
    ]
    sizes = [matrix.shape[0] for matrix in matrices[:-1]]
    variables = [cp.Variable(n if variant == "neuron" else 1, nonneg=True) for n in sizes]
    rho = cp.Variable(nonneg=True)
    picks = _Picks(scaled)
    constraint = -picks.output.T @ picks.output
    constraint = constraint + rho * np.diag(picks.first)
    for A, B, (alpha, beta), t, n in zip(picks.A, picks.B, unit_ranges, variables, sizes, strict=True):
        T = cp.diag(t) if variant == "neuron" else t * np.eye(n)
        cross = A.T @ T @ B
        constraint = (
            constraint
            + 2 * alpha * beta * (A.T @ T @ A)
            - (alpha + beta) * (cross + cross.T)
            + 2 * (B.T @ T @ B)
        )
    symmetric = (constraint + constraint.T) / 2
    problem = cp.Problem(cp.Minimize(rho), [symmetric >> 0])
    try:
        with warnings.catch_warnings():
            # "Solution may be inaccurate": it is checked below.
            warnings.simplefilter("ignore", UserWarning)
            problem.solve(solver=solver, **(options or {}))
        status = problem.status
    except cp.error.SolverError as error:
        status = f"failed: {error}"
    if status not in _ACCEPTED or any(t.value is None for t in variables):
        raise SolverError(f"the solver's status is {status!r}")
    multipliers = [
        np.maximum(np.broadcast_to(np.asarray(t.value, np.float64).reshape(-1), (n,)), 0.0)
        for t, n in zip(variables, sizes, strict=True)
    ]
    found = _checked(picks, unit_ranges, multipliers)
    if found is None:
        raise SolverError(f"its constraint does not hold at the solver's answer, of status {status!r}")
    if found <= 0:
        return _certificate(0.0, 0.0, method, started, ())
    root = math.sqrt(found)
    log = math.log(root) + shift * math.log(2)
    value = math.nextafter(math.ldexp(root, shift), math.inf) if log < 709 else math.inf
    log += 8 * UNIT * (abs(math.log(root)) + abs(shift) + 1)
    return _certificate(
        value, log, method, started, (f"solver's status {status!r}, its constraint checked in float64",)
    )


def _certificate(
    value: float, log: float, method: str, started: float, notes: tuple[str, ...]
) -> Certificate:
    if not notes:
        log = math.log(value) if value > 0 else -math.inf
    return Certificate(
        value=value,
        log=log,
        method=method,
        assumptions=("the slope ranges of the activations hold", *notes),
        seconds=time.perf_counter() - started,
    )


class _Picks:
    """The matrices that pick the parts of the stacked vector (dx, dy_1, ..., dy_{L-1})."""

    def __init__(self, matrices: Sequence[np.ndarray]):
        sizes = [matrices[0].shape[1], *(matrix.shape[0] for matrix in matrices[:-1])]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        eye = np.eye(starts[-1])
        E = [eye[a:b] for a, b in pairwise(starts)]
        self.num_inputs = sizes[0]
        self.first = E[0].sum(0)
        self.A = [matrix @ e for matrix, e in zip(matrices[:-1], E[:-1], strict=True)]
        self.B = E[1:]
        self.output = matrices[-1] @ E[-1]


def _checked(
    picks: _Picks, ranges: Sequence[tuple[float, float]], multipliers: Sequence[np.ndarray]
) -> float | None:
    """The least rho that is proved feasible for these multipliers, or None."""
    n = picks.num_inputs
    gram = picks.output.T @ picks.output
    depth = len(multipliers)
    for growth in (0.0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        M, magnitude = -gram, np.abs(picks.output).T @ np.abs(picks.output)
        for index, (A, B, (alpha, beta), T) in enumerate(
            zip(picks.A, picks.B, ranges, multipliers, strict=True)
        ):
            # Each layer's multipliers pay for those of the next: the earlier the more.
            grown = T * (1 + growth) ** (depth - index)
            AT, BT = A.T * grown, B.T * grown
            cross, size = AT @ B, np.abs(AT) @ np.abs(B)
            M = M + 2 * alpha * beta * (AT @ A) - (alpha + beta) * (cross + cross.T) + 2 * (BT @ B)
            magnitude = (
                magnitude + 2 * abs(alpha * beta) * (np.abs(AT) @ np.abs(A)) + 2 * (np.abs(BT) @ np.abs(B))
            )
            magnitude = magnitude + (abs(alpha) + abs(beta)) * (size + size.T)
        # Every entry is a sum of products: off by gamma_k times the sum of magnitudes, so by a diagonal of row sums.
        rounding = 8 * (gram.shape[0] + 8) * UNIT * magnitude.sum(1)
        M = M / 2 + M.T / 2
        M[np.diag_indices_from(M)] -= rounding
        try:
            solved = np.linalg.solve(M[n:, n:], M[n:, :n])
        except np.linalg.LinAlgError:
            continue
        schur = M[:n, n:] @ solved - M[:n, :n]
        rho = float(np.linalg.eigvalsh(schur / 2 + schur.T / 2)[-1])
        for slack in (1e-12, 1e-11, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5):
            claimed = rho + slack * max(abs(rho), float(np.abs(np.diag(M)).max()) * 1e-3)
            trial = M.copy()
            trial[np.arange(n), np.arange(n)] += claimed * (1 - 4 * UNIT)
            if (np.diag(trial) > 0).all() and is_positive(trial):
                return claimed
    return None
