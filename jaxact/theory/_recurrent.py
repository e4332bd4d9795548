"""What theory predicts of large random recurrent networks: gradients a step, and the onset of chaos."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jaxtyping import Array, ArrayLike, Float
from numpy.polynomial.polynomial import polyval

from jaxact.numerics import (
    bivariate_expectation,
    check_nonnegative,
    gaussian_expectation,
    gaussian_nodes_on_host,
)
from jaxact.theory._checks import check_number
from jaxact.theory._integrable import breakpoints, refuse_fast_growth, refuse_unresolved, value_and_slope
from jaxact.theory._moments import moments

_NUM_HERMITE = 1600
_REACH = 14.0  # of u, with c = 1 / cosh(u)^2: correlations down to 3e-12
_NUM_LAGS = 16_000
_NUM_CORRELATIONS = 48  # at which E f f and E f' f' are integrated
_LOWEST = 1e-4  # of gain f'(0) - 1, below which the correlation decays too slowly to be followed

Numbers = Float[ArrayLike, "*#shape"] | list[Any] | tuple[Any, ...]


class RecurrentFactors(NamedTuple):
    """What a backpropagated gradient is multiplied by in one step of a recurrent network, by three predictors.

    Attributes:
        mean_slope: rho E|f'(z)|, the heuristic of textbooks: slopes averaged as if the gradient saw their mean.
        root_mean_square: rho sqrt(E f'(z)^2): what an independent slope does to a norm.
        chi: gain^2 E f'(z)^2, mean-field theory's growth of the SQUARED gradient.
    """

    mean_slope: Float[Array, "*shape"]
    root_mean_square: Float[Array, "*shape"]
    chi: Float[Array, "*shape"]


def recurrent_factors(
    activation: Any,
    *,
    gain: Numbers,
    variance: Numbers,
    spectral_radius: Numbers | None = None,
) -> RecurrentFactors:
    """Predict the growth a step of gradients in h_t = f(W h_{t-1} + U x_t) from the preactivations' variance.

        rho E|f'(z)|,   rho sqrt(E f'(z)^2),   chi = g^2 E f'(z)^2,   z ~ N(0, variance)

    with W_ij ~ N(0, g^2 / N), or g times an orthogonal matrix, and rho the spectral radius of W, which is g in either
    (by the circular law for large N). The backpropagated v' = W^T (f'(z) * v) has E |v'|^2 = chi |v|^2 where v does not
    know z, so that the typical factor, exp(lambda_1), is sqrt(chi) for large N: exactly so of autonomous networks,
    Molgedey, Schuchhardt & Schuster 1992, "Suppressing chaos in neural networks by noise", equation 9. The heuristic
    lies below by Jensen's inequality, sqrt(E f'^2) >= E|f'|, unless the slope is constant.

    The variance of a network of its own making is that of a deep network with as many layers as steps,
    `mean_field(activation, sigma_w=gain, sigma_b=s).q_star`, for inputs U x_t that are fresh N(0, s^2) in each step, or
    s = 0 for none.

    Args:
        activation: an `Activation`. Static.
        gain: g, real and nonnegative; may be traced. Each number may be a list of them.
        variance: of the preactivations, real and nonnegative; may be traced.
        spectral_radius: rho, real and nonnegative; g if None. May be traced.

    Returns:
        `RecurrentFactors`.

    Raises:
        TypeError: as `moments`.
        ValueError: a concrete number is negative, complex or not finite, or as `moments`.

    Example:
        >>> from jaxact import activations
        >>> found = recurrent_factors(activations.relu, gain=1.5, variance=1.0)
        >>> [round(float(each), 4) for each in found]  # 1.5 / 2, 1.5 / sqrt(2), 2.25 / 2
        [0.75, 1.0607, 1.125]
    """
    given = (gain, variance, gain if spectral_radius is None else spectral_radius)
    check_nonnegative(**dict(zip(("gain", "variance", "spectral_radius"), given, strict=True)))
    arrays: Any = (jnp.asarray(each) if isinstance(each, list | tuple) else each for each in given)
    g, q, rho = arrays
    square: Any = moments(activation, variance=q).slope_second_moment
    dtype = jnp.promote_types(jnp.result_type(q, float), jnp.float32)
    mean_slope = _mean_slope(activation, jnp.asarray(q, dtype))
    return RecurrentFactors(rho * mean_slope, rho * square**0.5, g**2 * square)


# So that a call outside any trace compiles once for an activation.
@functools.partial(jax.jit, static_argnums=0)
def _mean_slope(activation: Any, variance: Array) -> Array:
    turns = () if activation.argmin is None else (activation.argmin,)  # where f' changes its sign
    kinks = tuple(sorted({*breakpoints(activation), *turns}))
    return gaussian_expectation(lambda x: abs(activation.derivative(x)), kinks=kinks, variance=variance)


class RateNetwork(NamedTuple):
    """A large random rate network in its stationary state.

    Attributes:
        onset: the gain 1 / f'(0) above which the network at rest is unstable and chaos begins.
        variance: of a unit's current, Delta(0); 0 at rest.
        lyapunov: the largest Lyapunov exponent, in nats a time constant.
    """

    onset: float
    variance: float
    lyapunov: float


def rate_network(activation: Any, *, gain: float) -> RateNetwork:
    """Solve dynamic mean-field theory of dx/dt = -x + J f(x), J_ij ~ N(0, gain^2 / N), for an odd f at N = infinity.

        Delta'' = Delta - g^2 C(Delta) = -V'(Delta),   C(Delta) = E f(x_t) f(x_{t + tau}),   V(Delta(0)) = V(0) = 0
        (-d^2/dtau^2 + 1 - g^2 E f'(x_t) f'(x_{t + tau})) psi = E_0 psi,   lambda = -1 + sqrt(1 - E_0)

    Sompolinsky, Crisanti & Sommers 1988, "Chaos in random neural networks", equations 8-11 and 14: below g f'(0) = 1
    the network comes to rest, lambda = g f'(0) - 1; above it is chaotic, with the autocorrelation Delta(tau) that
    decays and E_0 the ground state. C is expanded in Hermite's polynomials, f's own to degree 1599; what the series
    lack near lag 0, where those of steep or kinked f hardly converge, is had by quadrature, tau from
    d tau = -d Delta / sqrt(-2 V), and E_0 by finite differences. Up to 20 times the onset lambda is good to 1e-4 (of
    tanh to 1e-5), up to 50 times to 1e-3. Runs on the host.

    Args:
        activation: an odd `Activation` of bounded range that is steepest at 0. Static.
        gain: g, nonnegative; a gain between onset and 1.0001 times it counts as the onset, where all are 0.

    Returns:
        A `RateNetwork`.

    Raises:
        TypeError: `activation` does not know its kinks and derivative.
        ValueError: gain is not one finite, nonnegative number, or f is not odd, not bounded, or steeper elsewhere.

    Example:
        >>> from jaxact import activations
        >>> found = rate_network(activations.tanh, gain=0.5)
        >>> found.onset, found.variance, found.lyapunov
        (1.0, 0.0, -0.5)
    """
    points = breakpoints(activation)
    gain = check_number("gain", gain)
    refuse_fast_growth(activation)
    steepest = float(value_and_slope(activation, np.zeros(1))[1][0])
    if (
        not activation.odd
        or activation.lipschitz > steepest * (1 + 1e-6)
        or math.isinf(activation.range.upper)
    ):
        raise ValueError(
            f"`activation` must be odd, bounded and steepest at 0, got {activation}. Of others ask `recurrent_factors` "
            "at the fixed point: chi > 1 is chaos."
        )
    if gain * steepest <= 1 + _LOWEST:
        return RateNetwork(1 / steepest, 0.0, min(gain * steepest - 1, 0.0))
    most = (
        2 * gain**2 * activation.range.upper**2
    )  # there V(Delta(0)) < 0, for C is at most the bound's square

    def energy(variance: float) -> float:
        return _potential(_squares(activation, points, variance), gain, variance).sum() / variance**2

    variance = scipy.optimize.brentq(energy, 1e-8 * most, most, xtol=1e-15)
    return RateNetwork(1 / steepest, variance, _largest_exponent(activation, points, gain, variance))


def _squares(activation: Any, points: tuple[float, ...], variance: float) -> Float[np.ndarray, " degree"]:
    """The squared Hermite coefficients of f(sqrt(variance) z): E f f = sum_n squares_n c^n."""
    refuse_unresolved(activation, variance)
    x, weights = (
        np.asarray(each) for each in gaussian_nodes_on_host(points, 0.0, math.sqrt(variance), is_halved=True)
    )
    value, _ = value_and_slope(activation, x)
    z = x / math.sqrt(variance)
    before, now, found = np.zeros_like(z), weights * value, []
    for degree in range(_NUM_HERMITE):
        found.append(now.sum())
        before, now = now, (z * now - math.sqrt(degree) * before) / math.sqrt(degree + 1)
    return np.square(found)


def _potential(
    squares: Float[np.ndarray, " degree"], gain: float, variance: float
) -> Float[np.ndarray, " degree"]:
    """V(c Delta(0)) in powers of c from c^1 on."""
    terms = gain**2 * variance * squares / np.arange(1, len(squares) + 1)
    terms[1] -= variance**2 / 2
    return terms


def _largest_exponent(activation: Any, points: tuple[float, ...], gain: float, variance: float) -> float:
    """The exponent, by the ground state of a particle in the well of the correlation."""
    squares = _squares(activation, points, variance)
    slopes = np.arange(1, len(squares)) * squares[1:] / variance
    lacking, lacking_slope = _lacking(activation, points, variance, squares, slopes)
    u = np.linspace(0, _REACH, 8001)
    speed = 2 * variance / np.sqrt(2 * _fall(squares, lacking, gain, variance, u))  # d tau / du
    tau = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(u))])
    lags = np.linspace(0, tau[-1], _NUM_LAGS)
    places = np.interp(lags, tau, u)
    well = 1 - gain**2 * (polyval(_correlation(places), slopes) + lacking_slope(places))
    step = lags[1]
    coupling = np.full(_NUM_LAGS - 1, -1 / step**2)
    coupling[0] *= math.sqrt(2)  # the ground state is even: a mirror at lag 0
    lowest = scipy.linalg.eigh_tridiagonal(well + 2 / step**2, coupling, select="i", select_range=(0, 0))[0][
        0
    ]
    return math.sqrt(1 - lowest) - 1


def _correlation(u: Float[np.ndarray, " place"]) -> Float[np.ndarray, " place"]:
    return 1 / np.cosh(u) ** 2


def _fall(
    squares: Float[np.ndarray, " degree"],
    lacking: scipy.interpolate.CubicSpline,
    gain: float,
    variance: float,
    u: Float[np.ndarray, " place"],
) -> Float[np.ndarray, " place"]:
    """-V / (c^2 (1 - c)): V has the roots c = 0, twice, and c = 1; without them nothing cancels."""
    c = _correlation(u)
    fall = polyval(c, -np.cumsum(_potential(squares, gain, variance))[1:-1])
    # What C lacks, integrated from c to 1; further out, where the series has all, rounding would be divided by c^2.
    integral = scipy.interpolate.CubicSpline(u, lacking(u) * 2 * np.tanh(u) * c).antiderivative()(u)
    near = (u > 0) & (u < 1)
    fall[near] += gain**2 * variance * integral[near] / (c * np.tanh(u))[near] ** 2
    fall[0] += gain**2 * variance * lacking(0.0)
    return fall


def _lacking(
    activation: Any,
    points: tuple[float, ...],
    variance: float,
    squares: Float[np.ndarray, " degree"],
    slopes: Float[np.ndarray, " degree_less_one"],
) -> tuple[scipy.interpolate.CubicSpline, scipy.interpolate.CubicSpline]:
    """What the series lack of E f f and E f' f', the latter's hardly converging near c = 1, by quadrature; by u."""
    width = 1 / math.sqrt(len(squares))  # of both in u
    u = width * np.sinh(np.linspace(0, math.asinh(_REACH / width), _NUM_CORRELATIONS))
    c = _correlation(u)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        found = [np.asarray(each) for each in _products(activation, points, jnp.asarray(c), variance)]
    return scipy.interpolate.CubicSpline(
        u, found[0] - c * polyval(c, squares[1:])
    ), scipy.interpolate.CubicSpline(u, found[1] - polyval(c, slopes))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _products(
    activation: Any, points: tuple[float, ...], c: Float[Array, " place"], variance: Float[ArrayLike, ""]
) -> tuple[Array, ...]:
    return tuple(
        bivariate_expectation(fn, fn, correlation=c, variance=variance, kinks=(points, points))
        for fn in (activation, activation.derivative)
    )
