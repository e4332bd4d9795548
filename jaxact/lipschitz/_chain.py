"""The closed form of a chain of dense layers on the host: everywhere, and certified within a ball or a box."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.linalg import blas, lapack

from jaxact.lipschitz._layout import CENTER_ERROR
from jaxact.lipschitz._norms import UNIT, dense_norm, largest_eigenvalue
from jaxact.lipschitz._panels import SlopeTable
from jaxact.lipschitz._program import Ball, Region

try:
    import threadpoolctl
except ImportError:  # comes with scikit-learn
    threadpoolctl = None

_LEAST = 1e-6  # t: below, V - M would be all but singular
_LARGE = 1e60  # mean of the diagonal of Q from which on it is scaled, and its inverse
_LANCZOS = 384  # width from which on the largest eigenvalue comes from an iteration

Matrix = Float[np.ndarray, "n n"]
Kernels = Sequence[Float[np.ndarray, "in out"]]


def one_thread(width: int) -> contextlib.AbstractContextManager:
    """Small factorisations in one thread: on busy cores OpenBLAS waits for its threads, a hundred times as long."""
    # Up to 48 it starts none, from 256 on they are worth it.
    if not 48 < width <= 256 or threadpoolctl is None:
        return contextlib.nullcontext()
    return _controller().limit(limits=1, user_api="blas")


@lru_cache(maxsize=1)
def _controller():
    return threadpoolctl.ThreadpoolController()  # looks through all libraries, 2 ms


# --- Everywhere -------------------------------------------------------------------------------------------------------


def everywhere(kernels: Kernels, ranges: Sequence[tuple[float, float]]) -> float:
    """The logarithm of "eclipse_fast", in float64 by LAPACK; its rounding is not added."""
    log = _everywhere_unscaled(kernels, ranges)
    return _everywhere_scaled(kernels, ranges) if log is None else log


def _everywhere_unscaled(kernels: Kernels, ranges: Sequence[tuple[float, float]]) -> float | None:
    """The same with nothing but the few products that it takes; None where slopes or numbers are unusual."""
    G, M, log = kernels[0], None, 0.0  # M = G^T G once it is not that
    for W, (alpha, beta) in zip(kernels[1:], ranges, strict=True):
        m, r = alpha / 2 + beta / 2, beta / 2 - alpha / 2
        if not 1e-9 * r < abs(m) <= 2 * r:
            return None
        n = G.shape[1]
        if M is None:
            M = G.T @ G
            # The larger Gram matrix has the same largest eigenvalue.
            s = _largest(G @ G.T) if 4 * G.shape[0] < 3 * n else _largest(M)
        else:
            s = _largest(M)
        if not 1e-120 < s < 1e120:
            return None
        # W^T Q W without Q: Q = m^2 V^2 (V - M)^{-1} + (r^2 - m^2) V I, in units of (m V)^2.
        V = (abs(m) + r) / r * s
        A = np.negative(M)
        A.flat[:: n + 1] += V
        factor, failed = lapack.dpotrf(A.T, 1, 0, 1)  # symmetric: transposed it is in Fortran's order
        if failed:
            return None
        G, M = blas.dtrsm(1.0, factor, W, lower=1), None
        if alpha * beta != 0:
            M = G.T @ G - (alpha * beta / (m * m * V)) * (W.T @ W)
        log += 2 * math.log(abs(m) * V)
    if M is None:
        M = G.T @ G if G.shape[1] <= G.shape[0] else G @ G.T
    s = _largest(M)
    return 0.5 * (log + math.log(s)) if 1e-120 < s < 1e120 else None


def _everywhere_scaled(kernels: Kernels, ranges: Sequence[tuple[float, float]]) -> float:
    log_square = 0.0
    M = kernels[0].T @ kernels[0]
    for W, (alpha, beta) in zip(kernels[1:], ranges, strict=True):
        m, r = alpha / 2 + beta / 2, beta / 2 - alpha / 2
        width, n = abs(m) + r, M.shape[0]
        M, log_scale = _scaled_to_one(M)
        log_square += log_scale
        if width == 0 or log_square == -math.inf:
            return -math.inf
        if abs(m) <= 1e-9 * width:  # slopes in [-width, width] from here on, which include those given
            M = width**2 * (W.T @ W)
        elif abs(m) <= 2 * r:
            # W^T Q W without Q: Q = m^2 V^2 (V - M)^{-1} + (r^2 - m^2) V I for V = 1 / T.
            V = width / r
            G = _solved(V, -M, W)
            M = (m * V) ** 2 * (G.T @ G)
            if alpha != 0:
                M = M - alpha * beta * V * (W.T @ W)
        else:
            G = _solved(1.0, -r / width * M, M)
            Q = m**2 * (M + r / width * (G.T @ G))
            Q[np.diag_indices(n)] += r * width
            M = W.T @ Q @ W
    M, log_scale = _scaled_to_one(M)
    return 0.5 * (log_square + log_scale)


def _largest(M: Matrix) -> float:
    n = M.shape[0]
    if n == 1:
        return float(M[0, 0])
    if n <= 8:
        return float(lapack.dsyev(M, compute_v=0, lower=1)[0][-1])
    if n > _LANCZOS:
        return largest_eigenvalue((M + M.T) / 2)
    return float(lapack.dsyevr(M, compute_v=0, range="I", il=n, iu=n, lower=1)[0][0])


def _scaled_to_one(M: Matrix) -> tuple[Matrix, float]:
    """M over its largest eigenvalue, whose logarithm is -inf if M = 0."""
    scale = np.trace(M) / M.shape[0]
    if not scale > 0:
        return M, -math.inf
    M = M / scale
    largest = _largest(M)
    return M / largest, math.log(scale) + math.log(largest)


def _solved(shift: float, M: Matrix, B: np.ndarray) -> np.ndarray:
    """L^{-1} B for L L^T = shift I + M."""
    A = M.copy()
    A[np.diag_indices(A.shape[0])] += shift
    factor, failed = lapack.dpotrf(A, lower=1, clean=0)
    if failed:
        raise ArithmeticError("The inequality of an activation could not be established in float64.")
    return lapack.dtrtrs(factor, B, lower=1)[0]


# --- Within a region --------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """An affine map and what follows it.

    Attributes:
        kernel: [in, out], float64.
        bias: [out], or None for 0.
        table: of the activation; None after the last map.
        bounds: between which the activation's values lie.
    """

    kernel: np.ndarray
    bias: np.ndarray | None
    table: SlopeTable | None
    bounds: tuple[float, float] = (-math.inf, math.inf)


def within(layers: Sequence[Layer], region: Region) -> float:
    """The logarithm of the closed form in a region, an upper bound with rounding included.

    Q with dh dh^T <= Q |dx|^2 is carried from I on, as by `_ellipsoid.bound`: M = W^T Q W, every preactivation within
    R sqrt(M_ii) of its value at the centre, which bounds its slopes to m +- r, and

        Q' = diag(m) (M + M V^{-1/2} B^{-1} V^{-1/2} M) diag(m) + diag(r^2 V),   B = I - V^{-1/2} M V^{-1/2}
        V = s (1 + t) / r,   s = lambda_max(r^1/2 M r^1/2),   t^2 = sum m^2 M_ii / (max(r) sum r M_ii)

    with V infinite where r = 0, and t the geometric mean of what it is over all neurons and over those with r > 0. Of
    equal slopes that is t = |m| / r and "eclipse_fast"; of others any V > M is valid, and this one, the noise r^2 V of
    a neuron growing as r and not as r^2, gave bounds up to 7 times lower than V = s (1 + |m| / r) in nets of 30 layers.

    Rounding: B = L L^T - E with ||E|| <= gamma_n ||L||_F^2 by Cholesky (Higham 2002, theorem 10.3) and the computed X
    of L^-1 with a residual, on one side or the other, of gamma_n ||L||_F ||X||_F at most (section 14.2), so that B^-1
    <= (L L^T)^-1 / (1 - ||E|| ||L^-1||^2). What is left is added to the diagonal, as is 2 gamma_2n ||W||_F^2 tr Q for
    the products with W: about 1e-12 a layer of width 16, 1e-8 at 128.
    """
    width = max(max(layer.kernel.shape) for layer in layers)
    with one_thread(width), np.errstate(over="ignore"):
        if isinstance(region, Ball):
            center, radius = region.center.reshape(-1), region.radius
            log = _pass(layers, center, radius).log
        else:
            center = region.lower.reshape(-1) / 2 + region.upper.reshape(-1) / 2
            half = np.maximum(region.upper.reshape(-1) - center, center - region.lower.reshape(-1))
            half = half * (1 + 4 * UNIT)
            radius = float(np.linalg.norm(half)) * (1 + (half.size + 4) * UNIT)
            known = None
            if np.ptp(half) > 0:
                # The ellipsoid sum_i (x_i - c_i)^2 / (n h_i^2) <= 1 holds the box as well, and other intervals.
                scales = half**2 * (np.count_nonzero(half) * (1 + 1e-14))
                known = _pass(layers, center, 1.0, half, np.diag(scales)).radii
            log = _pass(layers, center, radius, half, known=known).log
        ranges = [layer.table.whole for layer in layers if layer.table is not None]
        if all(math.isfinite(low) and math.isfinite(high) for low, high in ranges):
            # Its choice of V is no minimum: narrower slopes may make it worse.
            if not log < everywhere([layer.kernel for layer in layers], ranges) - 1e-9:
                log = min(log, _pass(layers, None, math.inf).log)
    return log


def product_within(layers: Sequence[Layer], region: Region) -> float:
    """The logarithm of the product of the norms and of the largest slopes within a region, rounding included."""
    if isinstance(region, Ball):
        v, radius = region.center.reshape(-1), region.radius
    else:
        v = region.lower.reshape(-1) / 2 + region.upper.reshape(-1) / 2
        half = np.maximum(region.upper.reshape(-1) - v, v - region.lower.reshape(-1))
        radius = float(np.linalg.norm(half)) * (1 + (half.size + 8) * UNIT)
    log = 0.0
    for layer in layers:
        norm = dense_norm(layer.kernel)
        if norm == 0:
            return -math.inf
        if layer.table is not None:
            reach = radius * _exp(log)
            v = _applied(v, layer)
            columns = np.sqrt(np.square(layer.kernel).sum(0)) * (1 + (layer.kernel.shape[0] + 8) * UNIT)
            alpha, beta = _slopes(layer.table, v, reach * columns)
            steepest = float(np.maximum(np.abs(alpha), np.abs(beta)).max())
            if steepest == 0:
                return -math.inf
            log += math.log(steepest) + 4 * UNIT
            v = layer.table.value(v)
        log += math.log(norm)
        log += 4 * UNIT * (1 + abs(log))
    return log


class _Passed(NamedTuple):
    log: float
    radii: list[np.ndarray]


def _exp(log: float) -> float:
    return math.exp(log) * (1 + 1e-13 * (1 + abs(log))) if log < 700 else math.inf


def _applied(v: np.ndarray, layer: Layer) -> np.ndarray:
    v = v @ layer.kernel
    return v if layer.bias is None else v + layer.bias


def _slopes(table: SlopeTable, v: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds on the slopes while |z - v| <= radii, and v is right to CENTER_ERROR."""
    radii = radii * (1 + 8 * UNIT) + ((CENTER_ERROR + 8 * UNIT) * max(v.max(), -v.min()) + 1e-290)
    lower, upper = table.range(v - radii, v + radii)
    if not (lower.min() > -math.inf and upper.max() < math.inf):
        raise ValueError(
            "`activation` must have bounded slopes in the region, got "
            f"[{lower.min()}, {upper.max()}]. Take a smaller region."
        )
    return lower, upper


def _pass(
    layers: Sequence[Layer],
    center: np.ndarray | None,
    radius: float,
    half: np.ndarray | None = None,
    start: np.ndarray | None = None,
    known: list[np.ndarray] | None = None,
) -> _Passed:
    """From Q = I, or `start`, to the bound; over the whole line without a centre.

    `half` is how far each input may be from the centre, `known` how far each preactivation may be.
    """
    v, scale = center, 1.0  # Q is the matrix that is held, times scale^2
    log_scale = 0.0
    Q, kept, radii = start, None, []
    reach = half  # of each hidden value, from its value at the centre
    for index, layer in enumerate(layers):
        W, table = layer.kernel, layer.table
        heard = W if kept is None else W[kept]
        if not 1e-120 < (largest := max(float(heard.max()), -float(heard.min()))) < 1e120:
            if largest == 0:
                return _Passed(-math.inf, radii)
            shift = math.frexp(largest)[1]
            heard, log_scale = np.ldexp(heard, -shift), log_scale + shift * math.log(2)
            scale = _exp(log_scale)
        M = _after(Q, heard)
        n = M.shape[0]
        trace = float(M.trace())
        if trace == 0:
            return _Passed(-math.inf, radii)
        if not trace < math.inf:
            raise ValueError(
                "The bound must be finite, got NaN or inf. Look for weights near the largest float."
            )
        if table is None:
            break
        if v is None:
            alpha, beta = (np.full(n, end) for end in table.whole)
        else:
            v = _applied(v, layer)
            far = (radius * scale if radius > 0 else 0.0) * np.sqrt(M.diagonal())
            if reach is not None:
                np.minimum(far, (reach @ np.abs(W)) * (1 + (W.shape[0] + 8) * UNIT), out=far)
            if known is not None:
                np.minimum(far, known[index], out=far)
            radii.append(far)
            alpha, beta = _slopes(table, v, far)
        m = (alpha + beta) / 2
        r = (beta - alpha) / 2
        size = np.abs(m) + r
        varies = alpha != beta
        # Whatever the rounding, [m - r, m + r] has the slopes.
        r = np.where(varies, r + 8 * UNIT * size, 0.0)
        if v is not None:
            v = table.value(v)
            reach = size * far * (1 + 32 * UNIT) + CENTER_ERROR * max(v.max(), -v.min())
            low, high = layer.bounds
            if high - low < math.inf:
                np.minimum(reach, np.maximum(high - v, v - low) * (1 + 1e-9), out=reach)
        kept = None
        if not size.all():  # neurons that are constant
            kept = np.flatnonzero(size)
            if kept.size == 0:
                return _Passed(-math.inf, radii)
            M, m, r = M[kept[:, None], kept], m[kept], r[kept]
        Q = _through(M, m, r)
        mean = float(Q.trace()) / Q.shape[0]
        if not 1 / _LARGE < mean < _LARGE and 0 < mean < math.inf:
            shift = round(math.log2(mean) / 2)
            Q = np.ldexp(Q, -2 * shift)  # a power of 2: exact
            log_scale += shift * math.log(2)
            scale = _exp(log_scale)
    log = 0.5 * math.log(_certified_largest(M)) + log_scale
    return _Passed(log + 1e-15 * (1 + abs(log) + abs(log_scale)), radii)


def _after(Q: Matrix | None, W: np.ndarray) -> Matrix:
    """W^T Q W, symmetric, enlarged by what may be rounded off."""
    n, k = W.shape
    square = float(np.vdot(W, W))
    if Q is None:
        M = W.T @ W
        if not W.flags.c_contiguous:
            M = (M + M.T) / 2
        error = 2 * (n + 8) * UNIT * square
    else:
        M = W.T @ (Q @ W)
        M = M + M.T
        M *= 0.5
        # |error_ij| <= gamma_2n g_i g_j with g = |W|^T diag(Q)^1/2, and |g|^2 <= ||W||_F^2 tr Q.
        error = 2 * (2 * n + 16) * UNIT * square * float(Q.trace())
    M.flat[:: k + 1] += error
    return M


def _through(M: Matrix, m: np.ndarray, r: np.ndarray) -> Matrix:
    """Q after the activation, enlarged by what may be rounded off."""
    n = m.size
    active = np.flatnonzero(r)
    a = active.size
    if a == 0:
        Q = m[:, None] * M * m
        Q.flat[:: n + 1] += 8 * UNIT * float(Q.trace())
        return Q
    diagonal, squares = M.diagonal(), m * m
    heard = float(squares @ diagonal)
    if a == n:
        widths, root = r, np.sqrt(r)
        rows = root[:, None] * M
        S = rows * root
        varying = heard
    else:
        widths = r[active]
        root = np.sqrt(widths)
        rows = root[:, None] * M[active]
        S = rows.take(active, 1) * root
        varying = float(squares[active] @ diagonal[active])
    noise = float(S.trace())
    s = max(_largest(S), 1e-16 * noise)
    # Of uniform m and r it is |m| / r. Between what all neurons carry and what those carry that add to the noise.
    t = max((heard * varying) ** 0.25 / math.sqrt(float(widths.max()) * noise), _LEAST)
    inverse = 1 / (s * (1 + t))
    back_off, gamma = 0.0, (a + 12) * UNIT * (1 + 1e-6)
    for _ in range(40):
        B = S * -inverse
        B.flat[:: a + 1] += 1.0
        L, failed = lapack.dpotrf(B.T, 1, 1, 1)  # symmetric: transposed it is in Fortran's order
        if not failed:
            X, failed = lapack.dtrtri(L, 1)
        if not failed:
            of_L, of_X = float(np.vdot(L, L)), float(np.vdot(X, X))
            residual = 4 * gamma * math.sqrt(of_L * of_X)
            lost = 4 * gamma * (of_L + a) * of_X
            if residual < 0.1 and lost < 0.25:
                break
        back_off = max(4 * back_off, 1e-12)
        inverse *= 1 - min(back_off, 0.5)
    else:
        raise ArithmeticError("The inequality of an activation could not be established in float64.")
    rows *= math.sqrt(inverse)
    H = X @ rows
    P = H.T @ H
    of_H = float(np.vdot(H, H))
    error = (3 * residual + 2 * gamma) * math.sqrt(of_X * float(np.vdot(rows, rows)))
    error = (2 * math.sqrt(of_H) * error + error**2 + 2 * gamma * of_H) * (1 + 2 * lost)
    P *= 1 + 2 * lost
    P += M
    P *= m
    P *= m[:, None]
    slack = squares * (error * (1 + 8 * UNIT))
    slack += 32 * UNIT * float(P.trace())
    added = widths * ((1 + 32 * UNIT) / inverse)
    if a == n:
        slack += added
    else:
        slack[active] += added
    P.flat[:: n + 1] += slack
    return P


def _certified_largest(M: Matrix) -> float:
    """At least the largest eigenvalue, as `_norms.certified_largest`, in fewer calls."""
    n = M.shape[0]
    if n == 1:
        return float(M[0, 0])
    largest = max(_largest(M), float(M.diagonal().max()))
    gamma = (n + 1) * UNIT / (1 - (n + 1) * UNIT)
    delta, slack = n * gamma / (1 - gamma) + 8 * UNIT, 4 * n * n * UNIT
    for _ in range(24):
        level = largest * (1 + slack)
        A = np.negative(M)
        A.flat[:: n + 1] = (level - M.diagonal()) * (1 - delta)
        if not lapack.dpotrf(A.T, 1, 0, 1)[1]:
            return level
        slack *= 4
    return float(np.abs(M).sum(1).max()) * (1 + 4 * n * UNIT)
