"""What theory predicts of large random recurrent networks: gradients a step, and the onset of chaos."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import brentq

from jaxact.numerics import check_nonnegative, gaussian_expectation, gaussian_nodes_on_host
from jaxact.theory._checks import check_number
from jaxact.theory._integrable import breakpoints, refuse_fast_growth, refuse_unresolved, value_and_slope
from jaxact.theory._moments import moments

_NUM_HERMITE = 400
_REACH = 14.0  # of u, with c = 1 / cosh(u)^2: correlations down to 3e-12
_NUM_LAGS = 4000
_LOWEST = 1e-4  # of gain f'(0) - 1, below which the correlation decays too slowly to be followed


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
    gain: Float[ArrayLike, "*#shape"],
    variance: Float[ArrayLike, "*#shape"],
    spectral_radius: Float[ArrayLike, "*#shape"] | None = None,
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
        gain: g, nonnegative; may be traced.
        variance: of the preactivations, nonnegative; may be traced.
        spectral_radius: rho, nonnegative; g if None. May be traced.

    Returns:
        `RecurrentFactors`.

    Raises:
        TypeError: as `moments`.
        ValueError: a concrete number is negative or not finite, or as `moments`.

    Example:
        >>> from jaxact import activations
        >>> found = recurrent_factors(activations.relu, gain=1.5, variance=1.0)
        >>> [round(float(each), 4) for each in found]  # 1.5 / 2, 1.5 / sqrt(2), 2.25 / 2
        [0.75, 1.0607, 1.125]
    """
    rho: Any = gain if spectral_radius is None else spectral_radius
    check_nonnegative(gain=gain, variance=variance, spectral_radius=rho)
    square: Any = moments(activation, variance=variance).slope_second_moment
    dtype = jnp.promote_types(jnp.result_type(variance, float), jnp.float32)
    growth: Any = gain
    mean_slope = _mean_slope(activation, jnp.asarray(variance, dtype))
    return RecurrentFactors(rho * mean_slope, rho * square**0.5, growth**2 * square)


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
    decays and E_0 the ground state. C is expanded in Hermite's polynomials, f's own to degree 399, tau is had from
    d tau = -d Delta / sqrt(-2 V), and E_0 by finite differences: lambda is good to about 1e-4. Runs on the host.

    Args:
        activation: an odd `Activation` of bounded range that is steepest at 0. Static.
        gain: g, nonnegative; a gain between onset and 1.0001 times it counts as the onset.

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
        return RateNetwork(1 / steepest, 0.0, gain * steepest - 1)
    most = (
        2 * gain**2 * activation.range.upper**2
    )  # there V(Delta(0)) < 0, for C is at most the bound's square

    def energy(variance: float) -> float:
        return _potential(activation, points, gain, variance).sum() / variance**2

    variance = brentq(energy, 1e-8 * most, most, xtol=1e-15)
    return RateNetwork(1 / steepest, variance, _largest_exponent(activation, points, gain, variance))


def _squares(activation: Any, points: tuple[float, ...], variance: float) -> Float[np.ndarray, " degree"]:
    """The squared Hermite coefficients of f(sqrt(variance) z): E f f = sum_n squares_n c^n."""
    refuse_unresolved(activation, variance)
    x, weights = (np.asarray(each) for each in gaussian_nodes_on_host(points, 0.0, math.sqrt(variance)))
    value, _ = value_and_slope(activation, x)
    z = x / math.sqrt(variance)
    before, now, found = np.zeros_like(z), weights * value, []
    for degree in range(_NUM_HERMITE):
        found.append(now.sum())
        before, now = now, (z * now - math.sqrt(degree) * before) / math.sqrt(degree + 1)
    return np.square(found)


def _potential(
    activation: Any, points: tuple[float, ...], gain: float, variance: float
) -> Float[np.ndarray, " degree"]:
    """V(c Delta(0)) in powers of c from c^1 on."""
    squares = _squares(activation, points, variance)
    terms = gain**2 * variance * squares / np.arange(1, len(squares) + 1)
    terms[1] -= variance**2 / 2
    return terms


def _largest_exponent(activation: Any, points: tuple[float, ...], gain: float, variance: float) -> float:
    """The exponent, by the ground state of a particle in the well of the correlation."""
    squares = _squares(activation, points, variance)
    terms = _potential(activation, points, gain, variance)
    # V has the roots c = 0, twice, and c = 1: without them nothing cancels. d tau / du is then smooth in u.
    rest = -np.cumsum(terms)[1:-1]
    u = np.linspace(0, _REACH, 8001)
    c = 1 / np.cosh(u) ** 2
    speed = 2 * variance / np.sqrt(2 * np.polynomial.polynomial.polyval(c, rest))
    tau = np.concatenate([[0.0], np.cumsum((speed[1:] + speed[:-1]) / 2 * np.diff(u))])
    lags = np.linspace(0, tau[-1], _NUM_LAGS)
    c = 1 / np.cosh(np.interp(lags, tau, u)) ** 2
    slopes = np.arange(1, len(squares)) * squares[1:] / variance
    well = 1 - gain**2 * np.polynomial.polynomial.polyval(c, slopes)
    step = lags[1]
    coupling = np.full(_NUM_LAGS - 1, -1 / step**2)
    coupling[0] *= math.sqrt(2)  # the ground state is even: a mirror at lag 0
    lowest = eigh_tridiagonal(well + 2 / step**2, coupling, select="i", select_range=(0, 0))[0][0]
    return math.sqrt(1 - lowest) - 1
