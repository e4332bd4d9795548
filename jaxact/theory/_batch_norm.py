"""How fast gradients grow in a deep plain network with batch normalisation."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from jaxact.numerics import check_count, gaussian_nodes
from jaxact.theory._integrable import breakpoints, refuse_fast_growth, refuse_unresolved, value_and_slope

# Batches from which a normalised unit's law over the sphere has a finite mean of 1 / variance.
_MIN_BATCH = 4
_REACH = 10.0  # coordinates have standard deviation 1 and tails below a Gaussian's: 1.5e-23 lies beyond
_PANEL_ENDS = np.linspace(-_REACH, _REACH, 11)
# Panels that shrink towards 0 resolve what an activation does there on a scale of its own.
_GRADED = 4.0 ** np.arange(-3, 2)
# Beyond this batch, where rounding grows with it, from the limit and two batches: the growth is analytic in 1 / B.
_LARGE_BATCH = 100_000
_ROUNDING = 64 * np.finfo(float).eps  # of f: what varies by less is constant
_JUMP = 1e-6  # of f: more than quadrature misses
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)


def batch_norm_gradient_growth(activation: Any, batch_size: int | None = None) -> float:
    """Compute the factor by which batch norm makes the squared gradient grow a layer, going backward.

    For the plain network h' = W f(BN(h)) + b with Gaussian W, wide, BN in training mode with scale 1, shift 0 and
    epsilon 0. Infinite batch, z ~ N(0, 1):

        growth = E f'(z)^2 / Var f(z)

    It is at least 1, and 1 for affine f alone, by the Gaussian Poincare inequality Var f <= E f'^2: no such network
    avoids explosion. A batch of B: BN makes of a unit a vector x, uniform on the sphere of radius sqrt(B) in the
    n = B - 1 dimensions orthogonal to the constants, and of a gradient d over the batch

        P D d / s,   P = I - 1 1^T / B - x x^T / B,   D = diag f'(x),   s^2 = the unit's variance over the batch

    where s and x are independent and s^2 B / (E f(x_1)^2 - E f(x_1) f(x_2)) is chi-square of n degrees, at
    sigma_w = 1; sigma_w and the biases drop out. At the fixed point d has the covariance I - 1 1^T / B, hence

        growth = B T / ((B - 1) (B - 3) (E f(x_1)^2 - E f(x_1) f(x_2)))
        T = E trace P D (I - 1 1^T / B) D
          = (B - 2 + 1/B) E f'(x_1)^2 + (1 - 1/B) (E f'(x_1) f'(x_2) - E g(x_1)^2 + E g(x_1) g(x_2)),  g = x f'(x)

    Yang, Pennington, Rao, Sohl-Dickstein & Schoenholz 2019, "A mean field theory of batch normalization", who have it
    by Gegenbauer series; for the identity (B - 2) / (B - 3), for relu at infinite batch pi / (pi - 1). Here by
    quadrature over the sphere in float64, whatever JAX's default precision: to about 1e-12 for functions as in
    `jaxact.numerics.gaussian_expectation`; for batches above 100,000 interpolated in 1 / B, to the same. Exact at
    infinite width for the expected squared gradient of a batch whose first layer sees all pairs of inputs alike
    (covariance a I + b 1 1^T). In batches below 6 the squared gradient has no variance, and single networks stray far
    from the expectation. Runs on the host, inside a trace too.

    Args:
        activation: an `Activation`. Static.
        batch_size: examples a batch, at least 4; None for the limit of large batches. Static.

    Returns:
        A Python float: E |dL/dh_l|^2 / E |dL/dh_{l+1}|^2.

    Raises:
        TypeError: `activation` does not know its kinks and derivative.
        ValueError: `batch_size` is no integer from 4 on (of 3 examples 1 / s^2 has an infinite mean, and of 2 BN
            leaves only signs, without a gradient); f is constant to rounding where its inputs lie, jumps (its
            gradient then knows nothing of how f varies, and the bound above fails) or oscillates too fast (see
            `moments`).

    Example:
        >>> from jaxact import activations
        >>> round(batch_norm_gradient_growth(activations.identity, 8), 12)  # 6 / 5
        1.2
        >>> round(batch_norm_gradient_growth(activations.relu), 5)  # pi / (pi - 1)
        1.46694
    """
    breakpoints(activation)  # a clear error before jit asks for a hash
    refuse_fast_growth(activation)
    if batch_size is not None:
        remedy = (
            "Pass None for an infinite batch: of 3 examples 1 / variance has an infinite mean, of 2 batch norm leaves "
            "only signs."
        )
        batch_size = check_count("batch_size", batch_size, _MIN_BATCH, most=math.inf, remedy=remedy)
    refuse_unresolved(activation, 1.0)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        if batch_size is None:
            return _growth(activation, None)
        if batch_size <= _LARGE_BATCH:
            return _growth(activation, batch_size)
        x = _LARGE_BATCH / batch_size
        limit, far, near = (_growth(activation, size) for size in (None, _LARGE_BATCH, _LARGE_BATCH // 2))
        return limit * (1 - x) * (2 - x) / 2 + far * x * (2 - x) - near * x * (1 - x) / 2


def _growth(activation: Any, batch: int | None) -> float:
    found = _on_the_line(activation) if batch is None else _on_the_sphere(activation, batch)
    name = getattr(activation, "name", activation)
    if not found.variance > found.second_moment * _ROUNDING**2:
        raise ValueError(
            f"`activation` must vary over its inputs, got {name}, which is constant there: batch norm divides by its "
            "variance, 0."
        )
    if abs(found.jumps) > _JUMP * (found.variance + found.squared_slope) ** 0.5:
        raise ValueError(
            f"`activation` must not jump, got {name}, whose slope does not add up to what it rises. "
            "Use a continuous one; if it is, state its derivative rightly."
        )
    return found.squared_slope / found.variance


class _Growth(NamedTuple):
    """What the growth is made of.

    Attributes:
        variance: its denominator.
        squared_slope: its numerator.
        second_moment: E f^2, on which the variance's rounding depends.
        jumps: the sum of f's jumps, each times a density: what integration by parts lacks.
    """

    variance: float
    squared_slope: float
    second_moment: float
    jumps: float


def _on_the_line(activation: Any) -> _Growth:
    """Of an infinite batch: Var f(z), E f'(z)^2; by parts E z f(z) = E f'(z) (Stein)."""
    x, weights = (np.asarray(each) for each in gaussian_nodes(breakpoints(activation), 0.0, 1.0))
    f, slope = value_and_slope(activation, x)
    second_moment = float(weights @ f**2)
    f = f - weights @ f
    jumps = weights @ (x * f) - weights @ slope
    return _Growth(float(weights @ f**2), float(weights @ slope**2), second_moment, float(jumps))


def _on_the_sphere(activation: Any, batch: int) -> _Growth:
    """Of a batch: E f(x_1)^2 - E f(x_1) f(x_2), B T / ((B - 1) (B - 3)).

    By parts (1 - 1/n) E x f(x) = E (1 - x^2/n) f'(x): x has the density (1 - x^2/n)^((n-3)/2).
    """
    points = np.asarray(breakpoints(activation), float)
    x, weights, y, weights_y = _pair_nodes(points, batch - 1)
    f, slope = value_and_slope(activation, x)
    f_y, slope_y = value_and_slope(activation, y)
    centre = weights @ f  # differences of products lose nothing once the mean is gone
    second_moment = float(weights @ f**2)
    f, f_y = f - centre, f_y - centre
    n = batch - 1
    jumps = float((1 - 1 / n) * (weights @ (x * f)) - weights @ ((1 - x**2 / n) * slope))

    def square(g: np.ndarray) -> float:
        return float(weights @ g**2)

    def product(g: np.ndarray, g_y: np.ndarray) -> float:
        return float((weights * g) @ (weights_y * g_y).sum(1))

    variance = square(f) - product(f, f_y)
    trace = (batch - 2 + 1 / batch) * square(slope) + (1 - 1 / batch) * (
        product(slope, slope_y) - square(x * slope) + product(x * slope, y * slope_y)
    )
    return _Growth(variance, batch * trace / ((batch - 1) * (batch - 3)), second_moment, jumps)


def _pair_nodes(points: Float[np.ndarray, " kinks"], n: int) -> tuple[np.ndarray, ...]:
    """Nodes for two coordinates of a centred batch on its sphere: x [i], weights [i], y [i, j] given x, weights [i, j].

    In n = B - 1 dimensions the coordinates are sqrt(n) times projections t, w of a uniform unit vector on two
    unit vectors of cosine -1/n. With t = sin(a) the density of the angle a is cos(a)^(n-2), which is smooth up to
    the poles for every n from 3 on; given t, y = sqrt(n) (-t/n + sqrt(1 - 1/n^2) cos(a) sin(b)) with b as in n - 1.
    """
    root = math.sqrt(n)
    cosine, sine = -1 / n, math.sqrt((1 - 1 / n) * (1 + 1 / n))
    # Where the inner sphere begins to reach a kink: the mean of the inner function is not smooth in a there.
    tilt = math.acos(cosine)
    reached = np.arccos(np.clip(points / root, -1, 1))
    touching = root * np.cos(np.concatenate([tilt - reached, tilt + reached]))
    a, weights = _arc(np.concatenate([points, touching])[None] / root, n)
    x, spread = root * np.sin(a[0]), sine * np.cos(a[0])
    b, weights_y = _arc((points / root - cosine * np.sin(a[0])[:, None]) / spread[:, None], n - 1)
    y = cosine * x[:, None] + root * spread[:, None] * np.sin(b)
    return x, weights[0], y, weights_y


def _arc(
    splits: Float[np.ndarray, "row splits"], n: int
) -> tuple[Float[np.ndarray, "row nodes"], Float[np.ndarray, "row nodes"]]:
    """Angles a and weights for the mean over sin(a), a coordinate of a uniform unit vector in n dimensions.

    Panels end at `splits` (of sin a). In each, a runs as s^2 (3 - 2 s) does: square roots at the ends, which means
    over spheres of few dimensions have, become smooth in s.
    """
    root = math.sqrt(n)
    fixed = np.concatenate([_PANEL_ENDS, -_GRADED, _GRADED]) / root
    ends = np.concatenate([np.broadcast_to(fixed, (len(splits), fixed.size)), splits], 1)
    reach = min(_REACH / root, 1.0)
    ends = np.arcsin(np.sort(np.clip(ends, -reach, reach), 1))
    low, width = ends[:, :-1, None], np.diff(ends)[..., None]
    s = (1 + _NODES) / 2
    angle = low + width * s**2 * (3 - 2 * s)
    log_density = (n - 2) * np.log(np.cos(angle))
    weights = width * 3 * s * (1 - s) * _WEIGHTS * np.exp(log_density)
    angle, weights = (each.reshape(len(splits), -1) for each in (angle, weights))
    return angle, weights / weights.sum(1, keepdims=True)
