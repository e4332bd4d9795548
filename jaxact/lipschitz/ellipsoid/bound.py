"""The bound of a program: closed form, search and proof, in a region and over all inputs."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import numpy as np

from jaxact.lipschitz._norms import one_thread
from jaxact.lipschitz._program import Ball, Box, Certificate, Region
from jaxact.lipschitz._rounding import VALUE_ERROR, up
from jaxact.lipschitz.ellipsoid.intervals import Local, center_errors, outward
from jaxact.lipschitz.ellipsoid.layout import Prepared, prepare
from jaxact.lipschitz.ellipsoid.proof import Proved, estimate, prove
from jaxact.lipschitz.ellipsoid.search import refine
from jaxact.trace import Elementwise, Program, evaluate

_LITTLE = 0.1  # of log K


class NotBelowError(ArithmeticError):
    """A bound is not below the limit that it was asked to be below."""


def bound(
    program: Program,
    *,
    region: Region | None = None,
    num_steps: int = 0,
    seconds: float | None = None,
    tolerance: float | None = None,
    memory_limit: int = 2048,
    learning_rate: float = 0.15,
    limit: float = math.inf,
) -> Certificate:
    """Bound the Lipschitz constant of a program from above, in the Euclidean norm.

    A matrix Q with dv dv^T <= Q |dx|^2 for the difference dv of all variables in use is carried from Q = I on. With
    m, r the centre and half the width of the slopes [alpha, beta] of y = f(z), E the rows of z, and any V > E Q E^T:

        affine        Q' = A Q A^T
        elementwise   X = Q + Q E^T (V - E Q E^T)^{-1} E Q,   Q' = M X M^T + diag(0, r^2 V)   over (v, y), M = (1, m E)
        at the end    K^2 = lambda_max(Q)

    (S-procedure on dy = m dz + e with |e| <= r |dz| and multipliers 1/V.) V is first chosen in closed form: with s =
    lambda_max(E Q E^T), V = s (1 + t / r), where t = ||A Q^1/2|| / (s^1/2 ||W||), A = S + W m E and W the linear parts
    through which the other variables and y reach the place where paths meet again, in a chain the next affine step:
    sqrt lambda_max(Q') <= ||A Q^1/2|| + r s^1/2 ||W|| there, never above the product of the norms. With t = |m| it
    would be ECLipsE-Fast (Xu & Sivaranjani 2024, theorem 4), which lies above it by a factor 1.6 over 8 layers and 5
    over 30 of He-scaled weights; t = |m| where a region leaves some slopes all but known. `num_steps` of Adam on log V
    then lower log K; 1/V = sigmoid(v) w / lambda_max(w^1/2 Q w^1/2) is feasible whatever v and w are, and at the
    optimum the bound of a chain is that of LipSDP-Neuron (Fazlyab et al. 2019). Runs on the host, in float64.

    Within a region every variable stays within its interval, from interval arithmetic and from |v_i - v_i(x0)| <= R
    sqrt(Q_ii), and slopes are taken over these. As R -> 0 the bound tends to ||J(x0)||_2. A box is first enclosed in
    the ellipsoid sum_i (x_i - x0_i)^2 / (n h_i^2) <= 1 to find intervals.

    An upper bound, proved in floating point: whatever the search found is checked by one pass in which each Q' is
    enlarged until the matrix inequality between it and Q is established. It is, for symmetric M of n rows with
    diagonal D, once the Cholesky factorisation of M - delta D runs to the end for delta >= n gamma / (1 - gamma), gamma
    = (n + 1) u / (1 - (n + 1) u), u = 2^-53 (Demmel 1989; Higham 2002, theorem 10.7). Products of matrices are enlarged
    by n gamma_k diag(g^2), g = |A| diag(Q)^1/2, which holds for any order of summation (Higham, section 3.5). The slack
    comes to 1e-12 a step at width 64. Underflow is not accounted for.

    Where more than `memory_limit` entries are in use at once, each variable goes on with a norm alone: K multiplies in
    a chain and adds where paths meet.

    Args:
        program: from the input, variable 0, to its output.
        region: a `Ball` or `Box` of the shape of the input, flattened or not; None for all inputs.
        num_steps: of refinement; 0 leaves the closed form.
        seconds: stop refining after so long, over the region and all inputs together; the steps under way and the final
            check still follow.
        tolerance: stop refining once 20 steps have lowered log K by less.
        memory_limit: the largest number of rows of Q.
        learning_rate: of Adam at the first step; falls to 0 along a cosine.
        limit: of log K, which the closed form is to be below where nothing is refined.

    Returns:
        A `Certificate`; `factors` name every step.

    Raises:
        NotBelowError: the closed form, before it is proved, is not below `limit`.
        ValueError: a step has no finite slope bounds, a number is not finite, the region's shape is not the input's, or
            an option is out of its range.

    Example:
        >>> import numpy as np
        >>> from jaxact.trace import Affine, Dense, Elementwise, Program
        >>> relu = Elementwise(out=2, source=1, slopes=lambda intervals: (0.0, 1.0), size=2)
        >>> layers = [Affine(1, ((0, Dense(np.diag([3.0, 1.0]))),), 2), relu]
        >>> layers.append(Affine(3, ((2, Dense(np.array([[0.0, 1.0]]))),), 1))
        >>> certificate = bound(Program(2, tuple(layers), 3), num_steps=100)
        >>> 1 <= certificate.value < 1.01  # the product of norms is 3
        True
    """
    started = time.perf_counter()
    _check_options(num_steps, seconds, tolerance, memory_limit, learning_rate)
    prepared = prepare(program, memory_limit)
    with one_thread(max((sum(layout.sizes) for layout in prepared.layouts), default=0)):
        local = None if region is None else _locate(prepared, region)
        if limit < math.inf and num_steps == 0 and estimate(prepared, local) >= limit:
            everywhere = math.inf if local is None else _estimate_everywhere(prepared)
            if everywhere >= limit:
                raise NotBelowError
        return _bound(
            prepared, region, local, num_steps, seconds, tolerance, memory_limit, learning_rate, started
        )


def _bound(
    prepared, region, local, num_steps, seconds, tolerance, memory_limit, learning_rate, started
) -> Certificate:
    deadline = math.inf if seconds is None else started + seconds
    search = functools.partial(
        _searched,
        prepared,
        num_steps=num_steps,
        deadline=deadline,
        tolerance=tolerance,
        learning_rate=learning_rate,
    )
    is_global = region is None
    checked, history, method = search(local, prove(prepared, local))
    assumptions = ["the slope ranges of the elementwise steps hold"]
    if region is not None:
        if any(isinstance(step, Elementwise) and step.range is None for step in prepared.program.steps):
            assumptions.append(f"the values of elementwise steps are right to {VALUE_ERROR:g} of the largest")
        # What holds everywhere holds there as well, and intervals of a large region may be worth nothing. With the
        # best multipliers the region's bound is never the larger one: its slopes lie within those over all inputs, so
        # that q' = (y - a'z)(b'z - y) >= 0 implies q >= 0, hence q - t q' >= 0 for some t >= 0 (S-lemma), and t T
        # proves there what T proves everywhere. So all inputs are searched only where the region's bound fell short, or
        # may have: where intervals told so little that the closed form is all but that of all inputs.
        limit = checked.log
        if num_steps > 0 and time.perf_counter() < deadline:
            limit = max(limit, history[0] + _LITTLE)
        everywhere = _global(prepared, limit)
        if everywhere is not None:
            other, its_history, its_method = search(None, everywhere)
            if other.log < checked.log:
                checked, history, method = other, its_history, f"{its_method}, over all inputs"
                is_global = True
    if prepared.by_norms:
        assumptions.append("norms of operators are the bounds that they state")
        method += f", by norms where more than {memory_limit} entries are in use"
    return Certificate(
        value=checked.value,
        log=checked.log,
        method=method,
        region=region,
        certified=True,
        assumptions=tuple(assumptions),
        factors=checked.factors,
        by_norms_beyond=memory_limit if prepared.by_norms else None,
        is_global=is_global,
        seconds=time.perf_counter() - started,
        history=tuple(history),
    )


def _searched(
    prepared: Prepared,
    local: Local | None,
    checked: Proved,
    num_steps: int,
    deadline: float,
    tolerance: float | None,
    learning_rate: float,
) -> tuple[Proved, list[float], str]:
    """The closed form, or what the search makes of it where that is proved to be lower."""
    if num_steps == 0 or not checked.searchable or checked.log == -math.inf:
        return checked, [checked.log], "closed form"
    multipliers, history = refine(
        prepared, local, checked.multipliers, num_steps, deadline, tolerance, learning_rate
    )
    if multipliers is not None:
        try:
            refined = prove(prepared, local, multipliers)
        except ArithmeticError:  # what the search found cannot be proved: the closed form stands
            return checked, history, "closed form"
        if refined.log < checked.log:
            checked = refined
    return checked, history, f"ellipsoid, {len(history) - 1} steps"


def _check_options(num_steps, seconds, tolerance, memory_limit, learning_rate) -> None:
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"`num_steps` must be an integer >= 0, got {num_steps!r}. Use 100 to begin with.")
    check_memory_limit(memory_limit)
    check_limit("seconds", seconds, "Leave it out for no limit.")
    check_limit("tolerance", tolerance, "Use 1e-3 to begin with.")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise ValueError(f"`learning_rate` must be positive, got {learning_rate}. Use 0.15 to begin with.")


def check_memory_limit(memory_limit: Any) -> None:
    """Refuse what is no number of rows."""
    if isinstance(memory_limit, bool) or not isinstance(memory_limit, int) or memory_limit < 1:
        raise ValueError(
            f"`memory_limit` must be an integer >= 1, got {memory_limit!r}. It counts rows of Q; use 2048."
        )


def check_limit(name: str, value: Any, remedy: str) -> None:
    """Refuse what is neither a number from 0 on nor None."""
    if value is not None and not (isinstance(value, int | float | np.number) and value >= 0):
        raise ValueError(f"`{name}` must be >= 0 or None, got {value!r}. {remedy}")


def _locate(prepared: Prepared, region: Region) -> Local:
    program = prepared.program
    if isinstance(region, Ball):
        center, radius = region.center.reshape(-1), region.radius * up(4)
        lower, upper = center - region.radius, center + region.radius
    elif isinstance(region, Box):
        lower, upper = region.lower.reshape(-1), region.upper.reshape(-1)
        center, halfwidths, radius = region.around()
    else:
        raise ValueError(f"`region` must be a Ball, a Box or None, got {region!r}.")
    if center.size != program.input_size:
        raise ValueError(
            f"`region` must have the input's {program.input_size} entries, got {center.size}. "
            "Give its arrays the shape of one input."
        )
    values = evaluate(program, center, output_only=False)
    local = Local(radius, values, center_errors(program, values), outward(lower, upper), {})
    if isinstance(region, Box) and prepared.starts_dense and np.ptp(halfwidths) > 0:
        found = prove(prepared, local._replace(radius=1.0), start=np.diag(region.ellipsoid()))
        local = local._replace(known=found.intervals)
    return local


def _global(prepared: Prepared, log: float) -> Proved | None:
    """The closed form over all inputs where it is below `log`, which is found before anything is proved."""
    if _estimate_everywhere(prepared) >= log:
        return None
    found = prove(prepared, None)
    return found if found.log < log else None


def _estimate_everywhere(prepared: Prepared) -> float:
    """Log K of the closed form over all inputs, not proved; infinite where it is bounded in a region only."""
    try:
        return estimate(prepared, None)
    except ValueError:
        return math.inf
