"""The rules for V: which diagonal above E Q E^T an elementwise step takes.

Every V > E Q E^T gives a bound; these rules differ in how good it is. With s = lambda_max(E Q E^T) and slopes m +- r:

    eclipse    V = s (1 + |m| / r)
        ECLipsE-Fast (Xu & Sivaranjani 2024, theorem 4) for every slope range. Then lambda_max(Q') = (|m| + r)^2 s: of a
        chain never above the product of norms.
    meeting    V = s (1 + t / r),  t = ||A Q^1/2|| / (s^1/2 ||W||),  A = S + W m E
        for the linear S and W through which the other variables and y reach the place where paths meet again, in a
        chain the next affine step: sqrt lambda_max(Q') <= ||A Q^1/2|| + r s^1/2 ||W|| there, never above the product.
        Below eclipse by a factor 1.6 over 8 layers and 5 over 30 of He-scaled weights.
    balanced   V = s (1 + t) / r,  s = lambda_max(r^1/2 Q r^1/2),  t by `balance`
        for slopes of each neuron's own: picked among some fifteen on He-scaled random nets of width 16 to 64 and radii
        0.01 to 1. Beside eclipse its bound was 6 times lower at best (relu, 30 layers) and 14 % higher at worst (relu,
        radius 1); of equal slopes it is eclipse.
    searched   1/V = sigmoid(v) w / lambda_max(w^1/2 Q w^1/2)
        feasible whatever v and w are. At the optimum a chain has the bound of LipSDP-Neuron (Fazlyab et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy

from jaxact.lipschitz._norms import largest_eigenvalue
from jaxact.lipschitz._rounding import FLOOR
from jaxact.lipschitz.ellipsoid.intervals import Enclosures, Local
from jaxact.lipschitz.ellipsoid.layout import Prepared, slopes_of
from jaxact.lipschitz.ellipsoid.maps import times, total
from jaxact.lipschitz.ellipsoid.step import leading
from jaxact.trace import Affine, Contraction, Elementwise

_LOOKAHEAD = 24  # steps over which `meeting` looks for the place where paths meet again
_KNOWN = 1e-6  # of the widest range of slopes: what is narrower is all but known
_NOTHING = 1e-6  # of the noise of an elementwise step: what is carried past it counts as none


class Multipliers(NamedTuple):
    """1/V = 2^-exponent T: of the scale of Q, which may be out of range."""

    T: np.ndarray
    exponent: int


def inverse(s: Any, t: Any, r: Any) -> Any:
    """1/V of V = s (1 + t / r), 0 where r is."""
    return r / ((r + t) * s)


def meeting(carried: Any, noise: Any, s: Any, xp: Any = np) -> Any:
    """t, of ||A Q^1/2||^2 and ||W||^2."""
    return xp.sqrt(carried / (s * noise))


def balance(squares: np.ndarray, r: np.ndarray, diagonal: np.ndarray) -> float:
    """t^4 = sum m^2 Q_ii  sum m^2 r Q_ii / (R^3 (sum r Q_ii)^2), R = max r; of equal slopes |m| / r."""
    widest = float(np.maximum.reduce(r))
    heard, noise = float(squares @ diagonal), float(r @ diagonal)
    varying = float((squares * r) @ diagonal) / widest
    return (heard * varying) ** 0.25 / math.sqrt(widest * noise)


class Searched(NamedTuple):
    """What `searched` found, and what its adjoint needs."""

    T: np.ndarray
    vector: np.ndarray
    w: np.ndarray  # w^1/2 times the vector
    largest: float
    sigma: float

    def adjoint(self, g_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From the gradient by log T to those by Z and by (log w, v)."""
        sum_ = float(np.sum(g_T))
        g_Z = -(sum_ / self.largest) * np.outer(self.w, self.w)
        return g_Z, np.append(g_T - sum_ * self.vector**2, sum_ * (1 - self.sigma))


def searched(Z: np.ndarray, own: np.ndarray, active: np.ndarray) -> Searched:
    """1/V = sigmoid(v) w / lambda_max(w^1/2 Z w^1/2), own = (log w, v); a NaN v is set to leave w as it is."""
    np.clip(own[:-1], -300, 300, out=own[:-1])
    root = np.where(active, np.exp(0.5 * own[:-1]), 0.0)
    largest, vector = leading(root[:, None] * Z * root)
    if np.isnan(own[-1]):
        own[-1] = scipy.special.logit(min(max(largest, 1e-12), 1 - 1e-9))
    sigma = scipy.special.expit(own[-1])
    return Searched(sigma / largest * root**2, vector, root * vector, largest, sigma)


# --- Where paths meet again -------------------------------------------------------------------------------------------


def parts(prepared: Prepared) -> bool:
    """Whether any nonlinearity leaves other variables in use: in a chain `meeting` passes no other one."""
    steps = zip(prepared.program.steps, prepared.layouts, strict=True)
    return any(isinstance(step, Elementwise) and layout.used and layout.kept for step, layout in steps)


def nominal_slopes(prepared: Prepared, local: Local) -> dict[int, np.ndarray]:
    """Middles of the slopes by intervals alone: what `meeting` expects of steps not yet reached."""
    intervals = Enclosures(prepared, local)
    middles = {}
    for index, step in enumerate(prepared.program.steps):
        if isinstance(step, Elementwise):
            try:
                alpha, beta = slopes_of(prepared.program, index, intervals.found)
                middles[index] = alpha / 2 + beta / 2
            except ValueError:
                middles[index] = np.ones(step.size)
        intervals.add(index, None)
    return middles


def closed_form(
    prepared: Prepared,
    index: int,
    X: np.ndarray,
    m: np.ndarray,
    r: np.ndarray,
    nominal: Mapping[int, np.ndarray] | None,
    largest: float | None,
) -> np.ndarray:
    """1/V [z] by "meeting", or "eclipse" in a chain where some slopes are all but known; 0 where r = 0.

    `largest` is the largest eigenvalue of X if that is known.
    """
    layout = prepared.layouts[index]
    active = r > 0
    if not active.any():
        return np.zeros_like(r)
    if largest is None or not active.all() or active.size < X.shape[0]:
        largest = largest_eigenvalue(X[layout.read, layout.read][np.ix_(active, active)])
    s = max(largest, FLOOR)
    looks_ahead = layout.kept or r.min() > _KNOWN * r.max()
    t = _meeting(prepared, index, X, m, r, s, nominal) if looks_ahead else np.abs(m)
    return np.where(active, inverse(s, np.maximum(t, 1e-10 * r), np.where(active, r, 1.0)), 0.0)


def _meeting(
    prepared: Prepared,
    index: int,
    X: np.ndarray,
    m: np.ndarray,
    r: np.ndarray,
    s: float,
    nominal: Mapping[int, np.ndarray] | None,
) -> float:
    """T of "meeting", nonlinear steps on the way replaced by their middles."""
    reached = _reached(prepared, index, m, r, nominal)
    top = float(np.max(np.abs(reached), initial=0.0))
    if not 0 < top < math.inf:
        return 1.0
    reached = np.ldexp(reached, -math.frexp(top)[1])
    A, W = reached[:, : len(X)], reached[:, len(X) :]
    carried = max(largest_eigenvalue(A @ X @ A.T), 0.0)
    noise = max(largest_eigenvalue(W.T @ W if W.shape[0] > W.shape[1] else W @ W.T), 0.0)
    # What is carried may be the rounding of a middle that is 0, as that of |x|. For so little V would all but touch Q,
    # and what goes to another place would be inflated by the inverse of what is left.
    if noise == 0 or (prepared.layouts[index].kept and carried <= _NOTHING**2 * s * noise):
        return 1.0
    return min(float(meeting(carried, noise, s)), 1e12)


def _reached(
    prepared: Prepared, index: int, m: np.ndarray, r: np.ndarray, nominal: Mapping[int, np.ndarray] | None
) -> np.ndarray:
    """(A, W): what is in use where paths meet again, of what is in use now and of the noise of step `index`."""
    program, layout = prepared.program, prepared.layouts[index]
    step = program.steps[index]
    assert isinstance(step, Elementwise)
    N, active = sum(layout.sizes), np.flatnonzero(r > 0)
    eye = np.eye(N, N + active.size)
    maps = {variable: eye[layout.rows(p)] for p, variable in enumerate(prepared.before[index])}
    y = m[:, None] * maps[step.source]
    y[active, N + np.arange(active.size)] = 1
    maps[step.out] = y
    last = index
    for ahead in range(index + 1, min(index + 1 + _LOOKAHEAD, len(program.steps))):
        following = program.steps[ahead]
        if len(prepared.after[last]) == 1 and not (last == index and isinstance(following, Affine)):
            break
        if isinstance(following, Contraction):
            break
        last = ahead
        if not prepared.layouts[ahead].used:
            continue
        if isinstance(following, Affine):
            maps[following.out] = total(times(op, maps[source]) for source, op in following.terms)
        else:
            middle = _middle(prepared, ahead) if nominal is None else nominal[ahead]
            maps[following.out] = middle[:, None] * maps[following.source]
    return np.concatenate([maps[v] for v in prepared.after[last]])


def _middle(prepared: Prepared, index: int) -> np.ndarray:
    sizes = prepared.program.sizes.items()
    alpha, beta = slopes_of(
        prepared.program, index, {v: (np.full(k, -np.inf), np.full(k, np.inf)) for v, k in sizes}
    )
    return alpha / 2 + beta / 2
