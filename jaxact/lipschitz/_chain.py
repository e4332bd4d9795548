"""The closed form of a chain of dense layers: everywhere, on the host or traced, and certified within a region."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, Float

from jaxact.lipschitz._norms import certified_largest, dense_norm, largest_eigenvalue, one_thread
from jaxact.lipschitz._panels import SAME, SlopeTable
from jaxact.lipschitz._program import Ball, Region
from jaxact.lipschitz._rounding import LAPACK, UNIT, VALUE_ULPS, up
from jaxact.lipschitz.ellipsoid.multipliers import balance, inverse
from jaxact.lipschitz.ellipsoid.step import half_inflation, inflation, sloped
from jaxact.trace import centered

_LEAST = 1e-6  # t: below, V - M would be all but singular
_FULL_SPECTRUM = 128  # width up to which the largest eigenvalue comes from all of them
_POWER_STEPS = 48
_LANCZOS = 384  # width from which on the largest eigenvalue comes from an iteration

Matrix = Float[np.ndarray, "n n"]
Kernels = Sequence[Float[np.ndarray, "_in _out"]]  # each has its own sizes


# --- Everywhere -------------------------------------------------------------------------------------------------------


def everywhere(kernels: Kernels, squares: Sequence[float], ranges: Sequence[tuple[float, float]]) -> float:
    """The logarithm of "eclipse_fast", in float64 by LAPACK; its rounding is not added.

    `squares` are the kernels' sums of squares; one that is not finite or not normal has them scaled.
    """
    log = 0.0
    if not 1e-60 < min(squares) <= max(squares) < 1e60:
        exponents = [math.frexp(float(np.abs(kernel).max()))[1] for kernel in kernels]
        kernels = [np.ldexp(kernel, -e) for kernel, e in zip(kernels, exponents, strict=True)]
        log = sum(exponents) * math.log(2)
    G, M = kernels[0], None  # the Gram matrix M = W^T Q W, None while it is G^T G
    for W, (alpha, beta) in zip(kernels[1:], ranges, strict=True):
        m, r = alpha / 2 + beta / 2, beta / 2 - alpha / 2
        s, M = _largest_gram(G, M)
        if not s > 0 or abs(m) + r == 0:
            return -math.inf
        if abs(m) <= 1e-9 * r:  # slopes in [-width, width] from here on, which include those given
            G, M = W, None
            log += 0.5 * math.log(s) + math.log(abs(m) + r)
            continue
        T = inverse(s, abs(m), r)
        if abs(m) <= 2 * r:
            # Without Q = (m V)^2 (V - M)^{-1} - alpha beta V I, and in units of (m V)^2.
            G, M = half_inflation(M, W, 1 / T), None
            if alpha * beta != 0:
                M = G.T @ G - (alpha * beta * T / m**2) * (W.T @ W)
            log += math.log(abs(m) / T)
        else:
            P = (M + inflation(M, M, np.full(len(M), T)).added()) / s
            M = W.T @ sloped(P, np.full(len(P), m), np.full(len(P), r * (abs(m) + r))) @ W
            log += 0.5 * math.log(s)
    s, _ = _largest_gram(G, M)
    return log + 0.5 * math.log(s) if s > 0 else -math.inf


def _largest_gram(G: np.ndarray, M: Matrix | None) -> tuple[float, Matrix]:
    """The largest eigenvalue of M, and M; where that is None, G^T G."""
    if M is not None:
        return _largest(M), M
    M = G.T @ G
    # The smaller Gram matrix has the same largest eigenvalue.
    return _largest(G @ G.T if 4 * G.shape[0] < 3 * G.shape[1] else M), M


def _largest(M: Matrix) -> float:
    n = M.shape[0]
    if n == 1:
        return float(M[0, 0])
    if n <= 12:
        return float(scipy.linalg.lapack.dsyev(M, compute_v=0, lower=1)[0][-1])
    if n > _LANCZOS:
        return largest_eigenvalue((M + M.T) / 2)
    return float(scipy.linalg.lapack.dsyevr(M, compute_v=0, range="I", il=n, iu=n, lower=1)[0][0])


def _at_least_largest(M: Matrix) -> float:
    # LAPACK is right to some n eps; what an iteration finds may be another eigenvalue.
    return _largest(M) * (1 + LAPACK) if M.shape[0] <= _LANCZOS else certified_largest((M + M.T) / 2)


# --- Traced ---------------------------------------------------------------------------------------------------------


def traced(kernels: list[Array], ranges: list[tuple[Any, Any]], dtype: Any) -> Array:
    """The logarithm of "eclipse_fast" of traced weights or slopes; of concrete ones it is `everywhere`."""
    # Q, None for I, and the log of its scale
    state: tuple[Array | None, Array] = None, jnp.zeros((), dtype)
    hidden = []
    for kernel, (alpha, beta) in zip(kernels, ranges, strict=False):
        m, r = alpha / 2 + beta / 2, beta / 2 - alpha / 2
        is_exact = _needs_all(kernel.shape[1], m, r)
        hidden.append((kernel.astype(dtype), jnp.asarray(m, dtype), jnp.asarray(r, dtype), is_exact))
    # Equal layers in one loop: unrolled, each would compile its own.
    for (_, is_exact), run in groupby(hidden, key=lambda layer: (layer[0].shape, layer[3])):
        layers = [layer[:3] for layer in run]
        if state[0] is None:
            first, m, r = layers.pop(0)
            state = _through_traced(first.T @ first, state[1], m, r, is_exact)
        step = partial(_scanned, is_exact)
        if len(layers) == 1:  # perhaps not square, unlike equal ones that follow each other
            state, _ = step(state, layers[0])
        elif layers:
            state, _ = lax.scan(step, state, [jnp.stack(parts) for parts in zip(*layers, strict=True)])
    Q, log_square = state
    last = kernels[-1].astype(dtype)
    if Q is None:
        return jnp.log(jnp.linalg.svd(last, compute_uv=False)[0])
    # The smaller of W^T Q W and C^T W W^T C would do; the first is at hand.
    M = last.T @ Q @ last
    largest = jnp.linalg.eigvalsh((M + M.T) / 2)[-1]
    return 0.5 * (log_square + jnp.log(jnp.maximum(largest, 0)))


def _needs_all(width: int, m: Any, r: Any) -> bool:
    if width <= _FULL_SPECTRUM or isinstance(m, jax.core.Tracer) or isinstance(r, jax.core.Tracer):
        return True
    return bool(abs(m) < 0.3 * r)


def _scanned(is_exact: bool, state: Any, layer: Any) -> tuple[Any, None]:
    (Q, log_square), (W, m, r) = state, layer
    return _through_traced(W.T @ Q @ W, log_square, m, r, is_exact), None


def _through_traced(M: Array, log_square: Array, m: Array, r: Array, exact: bool) -> tuple[Array, Array]:
    """Q after the activation, divided by lambda_max(M), whose logarithm is added."""
    M = (M + M.T) / 2
    scale = lax.stop_gradient(jnp.trace(M) / M.shape[0])
    scale = jnp.where(scale > 0, scale, 1)
    M = M / scale  # before the eigenvalues: float32 would not hold the square of a large norm's square
    s = jnp.linalg.eigvalsh(M)[-1] if exact else _power_iteration(M)
    positive = s > 0
    s = jnp.where(positive, s, 1)
    M = M / s
    width = jnp.abs(m) + r
    T = inverse(1, jnp.abs(m), jnp.where(width > 0, r, 1))
    # m = 0 makes I - T M singular, and the term that it stands in 0.
    T = jnp.full(len(M), jnp.where(m == 0, 0, T), M.dtype)
    P = M + inflation(M, M, T, jnp).added()
    Q = sloped(P, jnp.full(len(M), m), jnp.full(len(M), r * width), jnp)
    return Q, log_square + jnp.log(scale) + jnp.where(positive, jnp.log(s), -jnp.inf)


def _power_iteration(M: Array) -> Array:
    start = 1 + 0.5 * jnp.cos(jnp.arange(M.shape[0], dtype=M.dtype))
    fixed = lax.stop_gradient(M)

    def step(_: Any, v: Array) -> Array:
        v = fixed @ v
        return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(M.dtype).tiny)

    v = lax.fori_loop(0, _POWER_STEPS, step, start / jnp.linalg.norm(start))
    return v @ M @ v


# --- Within a region --------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """An affine map and what follows it.

    Attributes:
        kernel: [in, out], float64.
        square: its sum of squares; inf if that overflows.
        bias: [out], or None for 0.
        table: of the activation; None after the last map.
        bounds: between which the activation's values lie.
    """

    kernel: np.ndarray
    square: float
    bias: np.ndarray | None
    table: SlopeTable | None
    bounds: tuple[float, float] = (-math.inf, math.inf)


def within(layers: Sequence[Layer], region: Region) -> float:
    """The logarithm of the closed form in a region, an upper bound with rounding included.

    Q with dh dh^T <= Q |dx|^2 is carried from I on, as by `ellipsoid.bound`: M = W^T Q W, every preactivation within
    R sqrt(M_ii) of its value at the centre, which bounds its slopes to m +- r, and with S = diag(r)^1/2 M diag(r)^1/2

        Q' = diag(m) (M + M V^-1/2 B^-1 V^-1/2 M) diag(m) + diag(r^2 V),   B = I - V^-1/2 M V^-1/2
        V = s (1 + t) / r,   s = lambda_max(S)

    so that B = I - S / (s (1 + t)): the rule "balanced" of `ellipsoid.multipliers`. V is infinite where r = 0.

    Rounding, for slopes m that may be off by `SAME`. s is trusted to 1e-9 of itself, four digits less than LAPACK
    promises, so that B >= t / (1 + t) up to that; B's factor L has ||L||_F^2 = tr B and B = L L^T - E, ||E|| <= gamma_n
    ||L||_F^2 (Higham 2002, theorem 10.3); triangular systems are solved to gamma_n ||L||_F in L (theorem 8.5); products
    of matrices of entries |M_ij|^2 <= M_ii M_jj have traces for bounds. What these come to is added to the diagonal:
    about 1e-12 a layer of width 16, 1e-9 at 128.
    """
    width = max(max(layer.kernel.shape) for layer in layers)
    with one_thread(width), np.errstate(over="ignore", invalid="ignore"):
        log = _pass_in_region(layers, region)
        ranges = [layer.table.whole for layer in layers if layer.table is not None]
        bounded = all(math.isfinite(low) and math.isfinite(high) for low, high in ranges)
        # The choice of V is no minimum: narrower slopes may make it worse.
        if bounded and not log < _everywhere_at_least(layers, ranges) - 1e-9:
            kernels, squares = zip(*((layer.kernel, layer.square) for layer in layers), strict=True)
            if not log < everywhere(kernels, squares, ranges) + 1e-7:  # which has no slack for rounding
                log = min(log, _pass(layers, None, math.inf))
    return log


def product_within(layers: Sequence[Layer], region: Region) -> float:
    """The logarithm of the product of the norms and of the largest slopes within a region, rounding included."""
    if isinstance(region, Ball):
        v, radius = region.center, region.radius
    else:
        v, _, radius = region.around()
    log = 0.0
    for layer in layers:
        norm = dense_norm(layer.kernel)
        if norm == 0:
            return -math.inf
        if layer.table is not None:
            v = _applied(v, layer)
            columns = np.sqrt(np.square(layer.kernel).sum(0)) * (1 + (layer.kernel.shape[0] + 8) * UNIT)
            m, r = _slopes(layer.table, v, (_reach(radius, log) * columns))
            steepest = float((np.abs(m) + r).max()) * (1 + 2 * SAME)
            if steepest == 0:
                return -math.inf
            log += math.log(steepest)
            v = layer.table.value(v)
        log += math.log(norm)
        log += 8 * UNIT * (1 + abs(log))
    return log


def _reach(radius: float, log: float) -> float:
    """Radius e^log, rounded up, and finite, which is no matter while values stay far below 1e290."""
    if radius == 0 or log < -700:
        return 0.0 if radius == 0 else radius * 1e-304
    return min(radius * math.exp(min(log, 700)) * (1 + 1e-13 * (1 + abs(log))), 1e290)


def _affine_error(v: np.ndarray, error: np.ndarray, layer: Layer) -> np.ndarray:
    """How far v W + b, found from a v that is right to `error`, may be from what exact arithmetic gives."""
    gamma = 2 * (v.size + 8) * UNIT
    found = (error + gamma * np.abs(v)) @ np.abs(layer.kernel)
    return found if layer.bias is None else found + gamma * np.abs(layer.bias)


def _applied(v: np.ndarray, layer: Layer) -> np.ndarray:
    v = v @ layer.kernel
    if layer.bias is not None:
        v += layer.bias
    return v


def _slopes(table: SlopeTable, v: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, r) while |z - v| <= radii."""
    largest = float(np.maximum.reduce(np.abs(v)))
    if not largest < 1e250:
        raise ValueError(
            "The values at the region's centre must be finite. Look for weights near the largest float."
        )
    radii += 8 * UNIT * largest + 1e-290
    lower, upper = v - radii, v + radii
    if not math.isfinite(table.whole[1] - table.whole[0]):
        alpha, beta = table.range(lower, upper)
        if not (np.isfinite(alpha) & np.isfinite(beta)).all():
            raise ValueError(
                "`activation` must have bounded slopes in the region, got "
                f"[{alpha.min()}, {beta.max()}]. Take a smaller region."
            )
    return table.middles(lower, upper)


def _everywhere_at_least(layers: Sequence[Layer], ranges: Sequence[tuple[float, float]]) -> float:
    """At most the logarithm of the closed form everywhere, in a few products: from Q >= r (|m| + r) s I alone."""
    log = 0.0
    for index, layer in enumerate(layers):
        W = layer.kernel
        if not 1e-60 < layer.square < 1e60:
            return -math.inf
        G = W.T @ W if W.shape[0] >= W.shape[1] else W @ W.T
        largest = float(np.vdot(G, G)) / layer.square  # tr G^2 / tr G is at most the largest eigenvalue
        if index:
            m, r = sum(ranges[index - 1]) / 2, (ranges[index - 1][1] - ranges[index - 1][0]) / 2
            largest *= r * (abs(m) + r)
        if not 0 < largest < math.inf:
            return -math.inf
        log += math.log(largest)
    return log / 2


def _pass_in_region(layers: Sequence[Layer], region: Region) -> float:
    if isinstance(region, Ball):
        return _pass(layers, region.center, region.radius)
    center, half, radius = region.around()
    known: list[np.ndarray] | None = None
    if np.ptp(half) > 0:
        known = []  # by the ellipsoid, which gives other intervals than the ball
        _pass(layers, center, 1.0, half=half, start=np.diag(region.ellipsoid()), found=known)
    return _pass(layers, center, radius, half=half, known=known)


def _pass(
    layers: Sequence[Layer],
    center: np.ndarray | None,
    radius: float,
    *,
    half: np.ndarray | None = None,
    start: np.ndarray | None = None,
    known: list[np.ndarray] | None = None,
    found: list[np.ndarray] | None = None,
) -> float:
    """From Q = I, or `start`, to the logarithm of the bound; over the whole line without a centre.

    `half` is how far each input may be from the centre, `known` how far each preactivation may be; `found` takes that.
    """
    v, log_scale = center, 0.0  # Q is the matrix that is held, times e^(2 log_scale)
    Q, trace = start, 1.0 if start is None else float(start.trace())
    away = half  # of each hidden value from its value at the centre
    unsure = np.zeros(0 if v is None else v.size)  # how far `v` is from what exact arithmetic gives
    for index, (W, square, _, table, bounds) in enumerate(layers):
        if not 1e-60 < square < 1e60:
            largest = float(np.abs(W).max())
            if largest == 0:
                return -math.inf
            shift = math.frexp(largest)[1]
            W = np.ldexp(W, -shift)  # a power of 2: exact
            square, log_scale = float(np.vdot(W, W)), log_scale + shift * math.log(2)
        # |error_ij| <= gamma_2n g_i g_j with g = |W|^T diag(Q)^1/2, and |g|^2 <= ||W||_F^2 tr Q.
        error = (4 * W.shape[0] + 32) * UNIT * square * trace
        if Q is None:
            M = W.T @ W
        else:
            M = W.T @ (Q @ W)
            M += M.T.copy()
            M *= 0.5
        if table is None:
            break
        diagonal = _diagonal(M)
        diagonal += error
        if v is None:
            m, r = centered(*(np.full(diagonal.size, end) for end in table.whole))
        else:
            unsure = _affine_error(v, unsure, layers[index])
            v = _applied(v, layers[index])
            radii = np.sqrt(diagonal)
            radii *= _reach(radius, log_scale) * (1 + 8 * UNIT)
            if away is not None:
                by_arithmetic = away @ np.abs(layers[index].kernel)
                np.minimum(radii, by_arithmetic * (1 + (W.shape[0] + 8) * UNIT), out=radii)
            if known is not None:
                np.minimum(radii, known[index], out=radii)
            if found is not None:
                found.append(radii.copy())
            radii += unsure
            m, r = _slopes(table, v, radii)
            last = layers[index + 1].table is None
            if not last:
                size = np.abs(v)
                v = table.value(v)
                size += np.abs(v)
                unsure = (np.abs(m) + r) * unsure + VALUE_ULPS * UNIT * (size + table.unit)
            if away is not None and not last:
                away = (np.abs(m) + r) * radii * (1 + 2 * SAME) + unsure
                if bounds[1] - bounds[0] < math.inf:
                    np.minimum(away, np.maximum(bounds[1] - v, v - bounds[0]) * (1 + 1e-9), out=away)
        Q = _through(M, diagonal, m, r)
        trace = float(np.add.reduce(_diagonal(Q))) * (1 + Q.shape[0] * UNIT)
        if not 1e-30 < trace < 1e30:
            if not trace > 0:
                return -math.inf
            shift = round(math.log2(trace) / 2) if trace < math.inf else 0
            Q, trace = np.ldexp(Q, -2 * shift), math.ldexp(trace, -2 * shift)
            log_scale += shift * math.log(2)
    level = _at_least_largest(M) + error
    if not math.isfinite(level):
        raise ValueError("The bound must be finite, got NaN or inf. Look for weights near the largest float.")
    log = 0.5 * math.log(level) + log_scale if level > 0 else -math.inf
    return log + 1e-14 * (1 + abs(log_scale)) if level > 0 else log


def _diagonal(M: Matrix) -> np.ndarray:
    """The diagonal, to be written to."""
    if not M.flags.c_contiguous:
        raise AssertionError("a copy of the diagonal would be written to")
    return M.reshape(-1)[:: M.shape[0] + 1]


def _through(M: Matrix, diagonal: np.ndarray, m: np.ndarray, r: np.ndarray) -> Matrix:
    """Q after the activation, enlarged by what may be rounded off."""
    squares = m * m
    heard = float(squares @ diagonal)
    noise = float(r @ diagonal)
    if noise == 0:
        return sloped(M, m, np.full(m.size, 8 * SAME * heard))
    active = r.nonzero()[0]
    a, rows = active.size, M if active.size == m.size else M[active]
    Z, narrow = rows.take(active, 1) if a < m.size else M, r[active]
    root = np.sqrt(narrow)
    s = max(_at_least_largest(root[:, None] * Z * root), 1e-16 * noise)
    if heard == 0:  # nothing but noise, and any V >= M will do
        return np.diag(r * (s * up(8)))
    t = max(balance(squares, r, diagonal), _LEAST)
    found = inflation(Z, rows, narrow / (s * (1 + t)))
    P = found.added()
    # In norm: 1 / B <= `worst`, P <= worst tr M, L^2 <= a.
    worst, gamma, total = 1.01 * (1 + t) / t, (a + 16) * UNIT * 1.01, float(np.add.reduce(diagonal)) * 1.01
    of_P = min(worst, 2 / t) * total
    lost = 4 * gamma * a * worst
    if not lost < 0.25:
        raise ArithmeticError("The inequality of an activation could not be established in float64.")
    solved = 2 * gamma * math.sqrt(a * worst) + 2 * gamma
    error = (2 * lost + 3 * solved + 2 * gamma) * of_P
    error = (error + 8 * SAME * (total + of_P)) * float(np.maximum.reduce(np.abs(m))) ** 2
    return sloped(P + M, m, r * (s * (1 + t) * up(32)) + error)
