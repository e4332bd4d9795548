"""Where a wide random network's signals end up: fixed points, how fast they are reached, and the line between."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxact.errors import ArgumentError
from jaxact.numerics import (
    KINK_ENDS,
    check_nonnegative,
    expectation_with_tails,
    gaussian_expectation,
    gaussian_nodes,
    hermite_coefficients,
)
from jaxact.theory._checks import check_number, check_untraced, nan_unless_scale, without_slope
from jaxact.theory._integrable import (
    breakpoints,
    grows_fast,
    nan_unless_resolved,
    refuse_many_kinks,
    refuse_nan,
    refuse_unresolved,
    resolution,
)

# V is tabulated here once for all sigmas: E f(sqrt(q) z)^2 depends on q alone.
_LENGTHS = np.geomspace(1e-24, 1e24, 961)
_START = 480  # the index of q = 1, an input of unit length
_TINY = 1e-30  # stands for q = 0 where slopes are taken: one side of a kink at 0 after the other
# Between two lengths E f(sqrt(q) z)^2 is interpolated by a polynomial in log q through so many of the table: it is
# analytic where |Im log q| < pi / 2, which makes the error about 1e-10.
_NUM_NEIGHBOURS = 14
_NUM_HERMITE = 96
_LEFT_OUT = 1e-9  # of C'(c_star): what the expansion may lack before quadrature takes over
_MOST_STEPS = 12
_LOST = 160.0  # machine epsilons: leaves a percent of xi_c
# Panels for smooth integrands, in standard deviations; and around 0 in the function's own argument.
_OUTER_ENDS = np.array([-8.5, -6.5, -5.0, -3.75, -2.5, -1.25, 0.0, 1.25, 2.5, 3.75, 5.0, 6.5, 8.5])
_EXPANSION_ENDS = np.linspace(-9.0, 9.0, 13)
_GRADED = np.concatenate([-(4.0 ** np.arange(6, -3, -1)), 4.0 ** np.arange(-2, 7)])
_FEW_NODES, _FEW_WEIGHTS = np.polynomial.legendre.leggauss(12)
_CHUNK = 64  # points of a grid at once: their nodes stay in the cache
# V(q) is q to a power far out; from this power and this share of q on it grows for ever.
_LINEAR, _ALL = 1 - 1e-3, 1 - 1e-6
_AT_CRITICALITY = 1e-6  # |chi - 1| below which a point counts as critical


class MeanField(NamedTuple):
    """The large-depth limit of signals and gradients; each field of the broadcast shape of the scales.

    Attributes:
        q_star: the attracting second moment of the preactivations that unit inputs reach; inf where they grow for ever.
        chi: sigma_w^2 E f'(sqrt(q_star) z)^2, the growth of squared gradients and of small differences a layer
            (chi_1 of Schoenholz et al. 2017, equation 8).
        c_star: the correlation that any two inputs reach; 1 in the ordered phase.
        xi_q: depth scale of lengths, -1 / log |V'(q_star)|, in layers (equation 7).
        xi_c: depth scale of correlations, -1 / log C'(c_star), in layers (equation 9).
        xi_gradient: layers over which the squared gradient changes by a factor e, 1 / |log chi| (equation 16).
    """

    q_star: Float[Array, "*shape"]
    chi: Float[Array, "*shape"]
    c_star: Float[Array, "*shape"]
    xi_q: Float[Array, "*shape"]
    xi_c: Float[Array, "*shape"]
    xi_gradient: Float[Array, "*shape"]

    @property
    def phase(self) -> Any:
        """A string, or an array of strings, made on the host.

        "ordered" (chi < 1), "critical" or "chaotic" (chi > 1); "unbounded" where q_star is infinite, "undefined" where
        it is NaN: a scale was traced and is none, or the fixed point cannot be had.
        """
        chi = np.asarray(self.chi)
        names = np.where(chi > 1, "chaotic", "ordered")
        names = np.where(np.abs(chi - 1) < _AT_CRITICALITY, "critical", names)
        names = np.where(np.isnan(chi), "undefined", names)
        names = np.where(np.isinf(np.asarray(self.q_star)), "unbounded", names)
        return names.item() if names.ndim == 0 else names


def mean_field(
    activation: Any, *, sigma_w: Float[ArrayLike, "*#shape"], sigma_b: Float[ArrayLike, "*#shape"] = 0.0
) -> MeanField:
    """Predict what depth does to signals and gradients in a wide random network, exactly at infinite width.

    Fixed points of V(q) = sigma_w^2 E f(sqrt(q) z)^2 + sigma_b^2 and, at that q, of the correlation map C(c); their
    slopes give the depth scales (Poole et al. 2016; Schoenholz et al. 2017, "Deep information propagation"). q_star is
    the first fixed point on the way from q = 1 (unit inputs), found on a table of V from q = 1e-24 to 1e24 and by
    Newton's method: to about 1e-13 / |1 - V'(q_star)| relative in float64. It is 1 where all q are fixed (relu at
    sigma_w = sqrt(2)), or 1 is and V'(1) = 1 (`shape` by "tat").
    c_star is the root of C's Hermite expansion to degree 95 or, where that leaves out more than 1e-9 of C'(c_star) as
    it does close above criticality, of C by quadrature. xi_c is NaN so close above criticality that rounding leaves
    less than a percent of it: in float32 within about 1e-2 of the critical sigma_w, in float64 within 1e-5. At q_star =
    0 (vanishing signals) chi, c_star and xi_c are those of vanishing differences. A depth scale below 0.03 layers (0.07
    in float32) is that of a slope that is 0 or rounding. Differentiable in both scales; derivatives are NaN where
    values are NaN, and where q_star is infinite.

    Args:
        activation: an `Activation`. Static.
        sigma_w: weight scale, nonnegative; may be traced.
        sigma_b: bias scale, nonnegative; broadcast against sigma_w; may be traced.

    Returns:
        A `MeanField`. Where q_star is infinite all else is NaN; nothing overflows on the way.

    Raises:
        TypeError: `activation` does not know its kinks and derivative.
        ValueError: a concrete scale is negative or not finite; or, where everything is concrete, q_star cannot be had:
            it lies beyond 1e24, or where f oscillates too fast for quadrature (see `moments`; sin beyond q = 256, a
            sigma_w of 22). Where traced: NaN.

    Example:
        >>> from jaxact import activations
        >>> found = mean_field(activations.relu, sigma_w=1.0, sigma_b=1.0)
        >>> float(found.q_star.round(3)), float(found.chi), found.phase
        (2.0, 0.5, 'ordered')
    """
    check_nonnegative(sigma_w=sigma_w, sigma_b=sigma_b)
    refuse_many_kinks(activation)
    dtype = jnp.promote_types(jnp.result_type(sigma_w, sigma_b, float), jnp.float32)
    sigma_w, sigma_b = jnp.broadcast_arrays(jnp.asarray(sigma_w, dtype), jnp.asarray(sigma_b, dtype))
    found = _mean_field(activation, nan_unless_scale(sigma_w), nan_unless_scale(sigma_b))
    _refuse_unknown(activation, sigma_w, sigma_b, found.q_star)
    return found


def _refuse_unknown(activation, sigma_w, sigma_b, q_star):
    if isinstance(q_star, jax.core.Tracer) or not np.isnan(np.asarray(q_star)).any():
        return
    refuse_unresolved(activation, float(_LENGTHS[0]))
    place = np.unravel_index(np.argmax(np.isnan(np.asarray(q_star))), np.shape(q_star))
    w, b = (float(np.asarray(each)[place]) for each in (sigma_w, sigma_b))
    raise ValueError(
        f"`sigma_w` and `sigma_b` must lead signals from q = 1 to a fixed point in {_searched(activation)}, got "
        f"{w:g} and {b:g} for {getattr(activation, 'name', activation)}{_way_of_unit_signals(activation, w, b)}. "
        "Give smaller ones; under jit such points are NaN."
    )


def _way_of_unit_signals(activation, sigma_w, sigma_b):
    """Where they go, as far as it is known, in words."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        second = float(_second_moments(activation, jnp.ones(1, jnp.float64))[0][0])
        at_zero = float(activation(jnp.zeros((), jnp.float64)))
    image = sigma_w**2 * second + sigma_b**2
    if not image > 1:
        return ""
    left = ", and leave the fixed point q = 0" if sigma_b == 0 == at_zero else ""
    return f", with which they grow beyond (V(1) = {image:.3g}){left}"


def _searched(activation):
    """Where fixed points are looked for, in words."""
    deviation = resolution(activation).deviation
    if math.isinf(deviation):
        return f"q = {_LENGTHS[0]:g} to {_LENGTHS[-1]:g}"
    return f"q = {_LENGTHS[0]:g} to {deviation**2:g}, beyond which it oscillates too fast for quadrature"


@partial(jax.jit, static_argnums=0)  # so that a call outside any trace compiles once for an activation
def _mean_field(activation: Any, sigma_w: Array, sigma_b: Array) -> MeanField:
    points, dtype = breakpoints(activation), sigma_w.dtype
    lengths = jnp.asarray(_LENGTHS, dtype)
    table = gaussian_expectation(
        lambda x: activation(x) ** 2, kinks=points, variance=lengths, is_wide=grows_fast(activation)
    )
    if grows_fast(activation):
        table = jnp.where(jnp.isnan(table), jnp.inf, table)  # a tail that outgrows the Gaussian
    table = table * nan_unless_resolved(activation, lengths)

    def one(scales: tuple[Array, Array]) -> tuple[MeanField, Array, Array]:
        return _at(activation, points, lengths, table, *scales)

    scales = sigma_w.reshape(-1), sigma_b.reshape(-1)
    firsts = jax.lax.map(one, scales, batch_size=_CHUNK)
    refined = jax.lax.map(partial(_refined, activation, points), (*scales, *firsts))
    return jax.tree.map(lambda each: each.reshape(sigma_w.shape), refined)


def _at(activation, points, lengths, table, sigma_w, sigma_b):
    """`MeanField` at one point."""
    w, b = sigma_w**2, sigma_b**2
    excess = w * table + b - lengths
    x, weights = gaussian_nodes(points, jnp.zeros_like(w), jnp.ones_like(w), is_wide=grows_fast(activation))
    # V'(1) = 1 neither repels nor attracts (a shaped activation's): on which side rounding lies decides nothing.
    steep = w * jnp.sum(x * activation(x) * activation.derivative(x) * weights)
    repels = steep > 1 + jnp.sqrt(jnp.finfo(w.dtype).eps)
    low, high, is_fixed, falls, rises = _bracket(lengths, excess, repels)
    is_known, diverges = _beyond(lengths, w, table, excess, rises)
    vanishes = falls & (b == 0)
    # Below the table V is a straight line from b.
    low, high = jnp.where(falls, 0, low), jnp.where(falls, lengths[0], high)
    below = b / jnp.maximum(1 - w * table[0] / lengths[0], jnp.finfo(b.dtype).eps)
    start = jnp.where(falls, jnp.minimum(below, lengths[0]), _root(lengths, excess, low))
    start = jax.lax.stop_gradient(jnp.where(is_fixed, 1, jnp.where(vanishes, _TINY, start)))
    # One step of Newton's method from a root: it takes off the table's error, and its derivative is the root's.
    x, weights = gaussian_nodes(points, jnp.zeros_like(start), start, is_wide=grows_fast(activation))
    value, slope = activation(x), activation.derivative(x)
    excess = w * jnp.sum(value**2 * weights) + b - start
    steep = w * jnp.sum(x * value * slope * weights) / start - 1
    step = -excess / jnp.where(jnp.abs(steep) > 1e-6, steep, jnp.inf)
    q = jnp.where(is_fixed | vanishes, start, jnp.clip(start + step, low, high))
    x, weights = gaussian_nodes(points, jnp.zeros_like(q), q, is_wide=grows_fast(activation))
    value, slope = activation(x), activation.derivative(x)
    chi = w * jnp.sum(slope**2 * weights)
    chi_q = w * jnp.sum(x * value * slope * weights) / q
    # C(c) = b / q + sum_n series_n c^n
    z, mass, at_z = _expansion_nodes(activation, points, q)
    series = w / q * hermite_coefficients(z, mass, at_z, _NUM_HERMITE) ** 2
    degrees = jnp.arange(_NUM_HERMITE, dtype=q.dtype)
    left_out = w * jnp.sum(value**2 * weights) / q - jnp.sum(series), chi - jnp.sum(degrees * series)
    c, chi_c = _fixed_correlation(series, b / q, chi, _power(*left_out))
    is_rough = (c < 1) & (left_out[1] * c**_NUM_HERMITE > _LEFT_OUT) & ~diverges
    # Factors: what is added does not reach the derivatives.
    known = jnp.where(is_known & ~jnp.isnan(sigma_w + sigma_b), 1, jnp.nan)
    bounded = jnp.where(diverges, jnp.nan, known)
    length = jnp.where(diverges, jnp.inf, jnp.where(vanishes, 0, q))
    found = MeanField(
        q_star=without_slope(diverges, length) * known,
        chi=chi * bounded,
        c_star=c * bounded,
        xi_q=_depth_scale(jnp.abs(chi_q)) * bounded,
        xi_c=_depth_scale(chi_c) * bounded,
        xi_gradient=1 / jnp.abs(jnp.log(chi)) * bounded,
    )
    return found, series, is_rough


def _refined(activation, points, given):
    """The point with c_star found by quadrature where the expansion converges too slowly."""
    sigma_w, sigma_b, found, series, is_rough = given
    # Not 0 / 0, whose derivative would be NaN even where nothing is refined.
    q = jnp.where(found.q_star > 0, found.q_star, 1)
    w, offset = sigma_w**2, sigma_b**2 / q

    def map_and_slope(c):
        value, slope = _products_near_one(activation, points, c, q)
        return w * value / q + offset, w * slope

    most = 1 - jnp.finfo(q.dtype).eps

    def refine():
        def better(state):
            _, c, count = state
            image, slope = map_and_slope(c)
            value, steep = _polynomial(series, c)
            rest, degree = _power(image - offset - value, c * (slope - steep))
            after = _fixed_correlation(series, offset, found.chi, (rest / c**degree, degree))[0]
            return c, jnp.minimum(after, most), count + 1

        def moves(state):
            before, now, count = state
            return (jnp.abs(now - before) > 1e-5 * (1 - now)) & (count < _MOST_STEPS)

        start = jax.lax.stop_gradient((jnp.zeros_like(q), found.c_star, 0))
        _, c, _ = jax.lax.while_loop(moves, lambda state: jax.lax.stop_gradient(better(state)), start)

        # Newton's last step, whose derivative is the root's, and the slope where it ends.
        def last(c, _):
            image, slope = map_and_slope(c)
            return jnp.clip(c + (image - c) / jnp.where(slope < 1, 1 - slope, jnp.inf), 0, most), slope

        c, slopes = jax.lax.scan(last, c, None, length=2)
        return found._replace(c_star=c, xi_c=_depth_scale(slopes[1]))

    refined = jax.lax.cond(is_rough, refine, lambda: found)
    # Rounding moves c_star by about eps / (1 - C'): no depth scale can be had where that is a share of 1 - c_star.
    room = (1 - jnp.exp(-1 / refined.xi_c)) * (1 - refined.c_star)
    is_lost = (refined.c_star < 1) & ~(room > _LOST * jnp.finfo(q.dtype).eps)
    return refined._replace(xi_c=refined.xi_c * jnp.where(is_lost, jnp.nan, 1))


def _products_near_one(activation, points, c, q):
    """E f(u) f(v) and E f'(u) f'(v) of variables of variance q and correlation c, for c not small.

    As E (E[f(m + e) | m])^2 with m ~ N(0, c q), e ~ N(0, (1 - c) q): the inner integrals are narrow, few panels do.
    """
    spread, length = jnp.sqrt((1 - c) * q), jnp.sqrt(c * q)
    splits = jnp.concatenate([jnp.asarray(points, q.dtype).reshape(-1), jnp.zeros(1, q.dtype)])
    around = splits[:, None] + spread * jnp.asarray(KINK_ENDS, q.dtype)
    near = jnp.concatenate([around.reshape(-1), jnp.asarray(_GRADED, q.dtype)])
    z, weights = _panels(_OUTER_ENDS, near / length)
    m = length * z
    near = jnp.concatenate([splits, jnp.asarray(_GRADED[3:-3], q.dtype)])
    y, mass = _panels(_OUTER_ENDS, (near - m[:, None]) / spread)
    x = m[:, None] + spread * y
    smoothed = (jnp.sum(each(x) * mass, -1) for each in (activation, activation.derivative))
    return tuple(jnp.sum(each**2 * weights) for each in smoothed)


def _panels(fixed, moving):
    """Nodes and weights for E g(z), z ~ N(0, 1), on few panels: for integrands that are smooth between the splits."""
    moving = jnp.clip(moving, fixed[0], fixed[-1])
    always = jnp.broadcast_to(jnp.asarray(fixed, moving.dtype), (*moving.shape[:-1], len(fixed)))
    ends = jnp.sort(jnp.concatenate([always, moving], -1), -1)[..., None]
    half = (ends[..., 1:, :] - ends[..., :-1, :]) / 2
    z = (ends[..., 1:, :] + ends[..., :-1, :]) / 2 + half * jnp.asarray(_FEW_NODES, moving.dtype)
    weights = half * jnp.asarray(_FEW_WEIGHTS, moving.dtype) * jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return z.reshape(*moving.shape[:-1], -1), weights.reshape(*moving.shape[:-1], -1)


def _bracket(lengths, excess, repels):
    """Where V(q) - q changes its sign first on the way from q = 1; whether it does nowhere below or above.

    `repels` says whether 1, if it is a fixed point, is one that signals leave.
    """
    at_start = excess[_START]
    size = lengths * 64 * jnp.finfo(lengths.dtype).eps
    around = slice(_START - 1, _START + 2)  # one alone may be a fixed point like others, even a repelling one
    is_fixed = (jnp.abs(excess) <= size)[around].all() | ((jnp.abs(at_start) <= size[_START]) & ~repels)
    index = jnp.arange(len(lengths))
    # Not by rounding: with slopes of 1 (relu at sigma_w = sqrt(2), tanh at 1) it decides nothing.
    above = (index > _START) & (excess <= -size)
    below = (index < _START) & (excess >= size)
    up = jnp.argmax(above)
    down = len(lengths) - 1 - jnp.argmax(below[::-1])
    grows = at_start > 0
    left = jnp.where(grows, up - 1, down)
    left = jnp.clip(left, 0, len(lengths) - 2)
    rises = grows & ~above.any() & ~is_fixed
    falls = ~grows & ~below.any() & ~is_fixed
    return lengths[left], lengths[left + 1], is_fixed, falls, rises


def _beyond(lengths, w, table, excess, rises):
    """Whether a signal's end is known, and whether it is infinite, where V(q) > q up to the last length."""
    decade = 20
    # Of f's moments alone: sigma_w^2 may overflow, whatever f does.
    power = (jnp.log(table[-1]) - jnp.log(table[-1 - decade])) / jnp.log(lengths[-1] / lengths[-1 - decade])
    outgrows = jnp.isinf(table[-1]) | ((power > _LINEAR) & (w * table[-1] > _ALL * lengths[-1]))
    diverges = rises & outgrows
    return ~jnp.isnan(excess[_START]) & (~rises | diverges), diverges


def _root(lengths, excess, low):
    """The root between `low` and the next length, by bisection on the table's interpolant in log q."""
    index = jnp.searchsorted(lengths, low)
    # Where V ends, from one side: Newton's method takes off what that costs.
    size = jnp.sum(jnp.cumprod(jnp.isfinite(excess)))
    first = jnp.clip(index - _NUM_NEIGHBOURS // 2 + 1, 0, jnp.maximum(size - _NUM_NEIGHBOURS, 0))
    near = jax.lax.dynamic_slice(excess, (first,), (_NUM_NEIGHBOURS,))
    places = jnp.arange(_NUM_NEIGHBOURS, dtype=lengths.dtype)
    signs = jnp.asarray([(-1.0) ** k * math.comb(_NUM_NEIGHBOURS - 1, k) for k in range(_NUM_NEIGHBOURS)])

    def interpolate(place):  # by the barycentric formula
        parts = signs.astype(lengths.dtype) / (place - places)
        return jnp.sum(parts * near) / jnp.sum(parts)

    left = jnp.asarray(index - first, lengths.dtype)
    rises = excess[index] < 0

    def halve(_, bounds):
        below, above = bounds
        middle = (below + above) / 2
        is_past = (interpolate(middle) > 0) == rises
        return jnp.where(is_past, below, middle), jnp.where(is_past, middle, above)

    below, above = jax.lax.fori_loop(0, 48, halve, (left, left + 1))
    ratio = jnp.log(lengths[1] / lengths[0])
    return low * jnp.exp(((below + above) / 2 - left) * ratio)


def _expansion_nodes(activation, points, q):
    """Nodes, weights and values at sqrt(q) z for the expansion, the dearest step: no more than degree 95 needs."""
    deviation = jnp.sqrt(q)
    if grows_fast(activation):
        x, weights = gaussian_nodes(points, jnp.zeros_like(q), q, is_wide=True)
        return x / deviation, weights, activation(x)
    near = jnp.concatenate([jnp.asarray(points, q.dtype).reshape(-1), jnp.asarray(_GRADED, q.dtype)])
    z, weights = _panels(_EXPANSION_ENDS, near / deviation)
    return z, weights, activation(deviation * z)


def _polynomial(series, c):
    """Value and slope of sum_n series_n c^n, c one number."""
    degrees = jnp.arange(_NUM_HERMITE, dtype=series.dtype)
    powers = jnp.where(degrees == 0, 1, jnp.exp(degrees * jnp.log(jnp.where(c > 0, c, 1))) * (c > 0))
    before = jnp.concatenate([jnp.zeros_like(powers[:1]), powers[:-1]])
    return jnp.sum(series * powers), jnp.sum(degrees * series * before)


def _power(value, steep):
    """T and m of T c^m, which stands for the degrees left out, from its value and c times its slope."""
    is_there = value > 8 * jnp.finfo(value.dtype).eps
    degree = jnp.where(is_there, steep / jnp.where(is_there, value, 1), _NUM_HERMITE)
    return jnp.where(is_there, value, 0), jnp.maximum(degree, _NUM_HERMITE)


def _fixed_correlation(series, offset, chi, rest):
    """c_star and C'(c_star): Newton's method from the left on a convex function ends at its first root."""
    mass, degree = rest

    def map_and_slope(c):
        value, slope = _polynomial(series, c)
        tail = mass * jnp.where(c > 0, c, 1) ** (degree - 1) * (c > 0)
        return value + tail * c + offset, slope + degree * tail

    def newton(c):
        image, slope = map_and_slope(c)
        return jnp.clip(c + jnp.where(slope < 1, (image - c) / jnp.where(slope < 1, 1 - slope, 1), 0), 0, 1)

    def moves(state):
        before, now, count = state
        return (now > before) & (count < 40)

    start = jnp.full_like(chi, -1), jnp.zeros_like(chi), 0
    steps = jax.lax.while_loop(
        moves, lambda state: jax.lax.stop_gradient((state[1], newton(state[1]), state[2] + 1)), start
    )
    c = newton(jax.lax.stop_gradient(steps[1]))  # its derivative is the root's
    is_chaotic = chi > 1 + 1e3 * jnp.finfo(chi.dtype).eps  # not by rounding alone
    c = jnp.where(is_chaotic, c, 1)
    return c, jnp.where(is_chaotic, map_and_slope(c)[1], chi)


def _depth_scale(slope):
    """-1 / log(slope) for a slope up to 1, and a little above by rounding: inf at 1, 0 at 0."""
    return 1 / jnp.abs(jnp.log(slope))


class CriticalPoint(NamedTuple):
    """Scales at which chi = 1 at the fixed point: gradients neither vanish nor explode to first order.

    Attributes:
        sigma_w: weight scale.
        sigma_b: bias scale.
        q_star: the fixed point's second moment.
    """

    sigma_w: Float[np.ndarray, "*shape"] | np.float64
    sigma_b: Float[np.ndarray, "*shape"] | np.float64
    q_star: Float[np.ndarray, "*shape"] | np.float64


def critical_point(
    activation: Any,
    *,
    sigma_b: Float[ArrayLike, ""] | None = None,
    q_star: Float[ArrayLike, "*shape"] | None = None,
) -> CriticalPoint:
    """Find the edge of chaos: sigma_w^2 E f'(sqrt(q) z)^2 = 1 at the fixed point q = V(q).

    Given q_star both scales follow directly,

        sigma_w^2 = 1 / E f'(sqrt(q) z)^2,   sigma_b^2 = q - E f(sqrt(q) z)^2 / E f'(sqrt(q) z)^2

    and an array of them gives the whole edge as a curve. Given sigma_b (0 if neither is given) the smallest such q
    from 1e-24 to 1e24 is sought (Schoenholz et al. 2017, section 3; Hayou et al. 2019). Exact at infinite width; in
    float64 whatever JAX's default precision, to about 1e-13. Runs on the host.

    Whether the fixed point attracts is not implied; where it repels (gelu) unit inputs leave it: check
    `mean_field(...).phase`.

    Args:
        activation: an `Activation`. Static.
        sigma_b: bias scale, nonnegative, a float.
        q_star: second moment at the fixed point, positive; scalar or array.

    Returns:
        A `CriticalPoint` of float64 numpy arrays. q_star = 0 where only vanishing signals are critical (tanh without
        bias: sigma_w = 1); 1 where all are (relu).

    Raises:
        TypeError: `activation` does not know its kinks and derivative, or both sigma_b and q_star are given.
        ValueError: there is no critical point with this sigma_b where f can be integrated (sin: below q = 256, see
            `moments`), f is not integrable at a q_star, or a q_star needs a negative sigma_b^2.

    Example:
        >>> from jaxact import activations
        >>> found = critical_point(activations.relu)
        >>> round(float(found.sigma_w), 6), float(found.q_star)
        (1.414214, 1.0)
    """
    name = getattr(activation, "name", activation)
    breakpoints(activation)
    check_untraced("q_star", q_star)
    if sigma_b is not None and q_star is not None:
        raise TypeError("Give `sigma_b` or `q_star`, not both: each determines the other.")
    if q_star is not None:
        q = np.asarray(q_star, float)
        if not (np.isfinite(q) & (q > 0)).all():
            raise ValueError(
                f"`q_star` must be positive and finite, got {q_star}. For small signals give sigma_b=0."
            )
        weight, bias = _critical_scales(activation, q)
        refuse_nan(activation, weight, bias)
        if (bias < -1e-12 * q).any():
            raise ValueError(
                f"`q_star` must allow a nonnegative sigma_b^2, got {q_star} for {name}, which needs "
                f"{bias.min():.3g}. Choose another q_star, or give sigma_b."
            )
        return CriticalPoint(np.sqrt(weight), np.sqrt(np.maximum(bias, 0)), q)
    remedy = "Call it once for each, or give q_star for a curve."
    target = 0.0 if sigma_b is None else check_number("sigma_b", sigma_b, remedy)
    length = _critical_length(activation, target)
    if length is None:
        refuse_unresolved(activation, float(_LENGTHS[0]))
        raise ArgumentError(
            f"= {target:g} has no critical point for {name} in {_searched(activation)}: chi = 1 at a fixed point "
            "there needs another bias.",
            "Give q_star instead.",
            argument="sigma_b",
            give="q_star",
        )
    weight, _ = _critical_scales(activation, np.array([length or _SMALL]))
    return CriticalPoint(np.sqrt(weight[0]), np.float64(target), np.float64(length))


_HUGE = 1e150  # its square is finite
_NUM_GRID = 481
_SMALL = 1e-20  # a length at which small signals show their limit


def _critical_length(activation: Any, sigma_b: float) -> float | None:
    """The smallest q whose critical bias is `sigma_b`; 1 if all are, 0 if only the limit is, None if none is."""
    low, high, found = float(_LENGTHS[0]), float(_LENGTHS[-1]), None
    bias = sigma_b * sigma_b if sigma_b < _HUGE else math.inf
    for count in (2, *[1] * 8):
        # In pieces of one shape: one compiled program.
        grid = np.geomspace(low, high, count * (_NUM_GRID - 1) + 1)
        pieces = [
            _critical_scales(activation, grid[first : first + _NUM_GRID])[1]
            for first in range(0, grid.size - 1, _NUM_GRID - 1)
        ]
        excess = np.concatenate([pieces[0], *(each[1:] for each in pieces[1:])]) - bias
        is_zero = np.abs(excess) <= 1e-13 * grid
        if found is None and is_zero.all():
            return 1.0
        changes = ((excess[1:] > 0) != (excess[:-1] > 0)) & np.isfinite(excess[1:]) & np.isfinite(excess[:-1])
        (crossings,) = np.nonzero(changes & ~(is_zero[1:] & is_zero[:-1]))
        if not crossings.size:
            break
        low, high = grid[crossings[0]], grid[crossings[0] + 1]
        found = float(np.sqrt(low * high))
    if (
        found is None
        and sigma_b == 0
        and abs(_critical_scales(activation, np.array([_SMALL]))[1][0]) <= 1e-8 * _SMALL
    ):
        return 0.0
    return found


def _critical_scales(
    activation: Any, q: Float[np.ndarray, "*shape"]
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """sigma_w^2 and sigma_b^2 that make each q a critical fixed point, in float64."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        value, slope = (np.asarray(each) for each in _second_moments(activation, jnp.asarray(q, jnp.float64)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 / slope), np.asarray(q - value / slope)


@partial(jax.jit, static_argnums=0)
def _second_moments(activation: Any, q: Array) -> tuple[Array, ...]:
    is_wide = grows_fast(activation)
    x, weights = gaussian_nodes(breakpoints(activation), jnp.zeros_like(q), q, is_wide=is_wide)
    values = activation(x) ** 2, activation.derivative(x) ** 2
    if is_wide:
        return tuple(expectation_with_tails(each, weights) for each in values)
    known = nan_unless_resolved(activation, q)
    return tuple(jnp.sum(each * weights, -1) * known for each in values)
