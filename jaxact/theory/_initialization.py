"""Weight scales that keep a signal's size from layer to layer."""

from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from jaxact.numerics import gaussian_expectation
from jaxact.theory._integrable import breakpoints, grows_fast, nan_unless_resolved

_RANGE = (1e-4, 1e4)
_NUM_POINTS = 129
_NUM_ROUNDS = 8  # each divides the bracket by 128: 8 decades end below rounding


def gain(activation: Any) -> float:
    """Compute the weight scale that keeps the hidden states' second moment at 1, exactly at infinite width.

        sigma_w with E f(sigma_w z)^2 = 1,   z ~ N(0, 1)

    With weights N(0, sigma_w^2 / fan_in) and zero biases q = sigma_w^2 is then a fixed point of
    `variance_map`: for relu sqrt(2), He et al. 2015, "Delving deep into rectifiers", equation 10. Whether the
    fixed point attracts, and what gradients do there, is not implied. The smallest root between 1e-4 and 1e4,
    found by bisection in float64 to about 1e-14 whatever JAX's default precision; runs on the host, inside a
    trace too.

    Args:
        activation: an `Activation`. Static.

    Returns:
        A Python float.

    Raises:
        TypeError: `activation` does not know its kinks and derivative.
        ValueError: no scale does it: f too flat (tanh, sigmoid, sin) or too large at 0; or none where the integral can
            be had: a tail may outgrow the Gaussian first.

    Example:
        >>> from jaxact import activations
        >>> round(gain(activations.relu), 12)
        1.414213562373
    """
    breakpoints(activation)  # a clear error before jit asks for a hash
    low, high = _RANGE
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        for _ in range(_NUM_ROUNDS):
            scales = np.geomspace(low, high, _NUM_POINTS)
            moments = np.asarray(_second_moment(activation, scales))
            # A tail that outgrows the Gaussian makes NaN, at large scales; whether it does at 1, nobody knows.
            above, is_known = moments >= 1, np.isfinite(moments)
            (crossings,) = np.nonzero((above[1:] != above[:-1]) & is_known[1:] & is_known[:-1])
            if not crossings.size:
                reach = float(scales[is_known].max(initial=low))
                raise ValueError(_no_gain(activation, "above" if above[0] else "below", reach))
            low, high = scales[crossings[0]], scales[crossings[0] + 1]
    return float((low + high) / 2)


@partial(jax.jit, static_argnums=0)
def _second_moment(activation: Any, scales: Float[Array, " n"]) -> Float[Array, " n"]:
    return gaussian_expectation(
        lambda x: activation(x) ** 2,
        kinks=breakpoints(activation),
        variance=scales**2,
        is_wide=grows_fast(activation),
    ) * nan_unless_resolved(activation, scales**2)


def _no_gain(activation: Any, side: str, reach: float) -> str:
    known = (
        f" up to {reach:.6g}, beyond which the integral cannot be had," if reach < 0.99 * _RANGE[1] else ""
    )
    return (
        f"`activation` must reach E f(sigma z)^2 = 1 at some sigma in [{_RANGE[0]:g}, {_RANGE[1]:g}], got "
        f"{getattr(activation, 'name', activation)}, which stays {side} 1. No weight scale{known} keeps its second "
        "moment at 1: scale its output, or take the edge of chaos from "
        "jaxact.theory.critical_point(activation, sigma_b=...)."
    )
