"""How the statistics of the preactivations go from one layer to the next in a wide random network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxact.numerics import gaussian_expectation
from jaxact.theory._moments import breakpoints


def variance_map(
    activation: Any,
    q: Float[ArrayLike, "*shape"],
    *,
    sigma_w: Float[ArrayLike, "*shape"],
    sigma_b: Float[ArrayLike, "*shape"] = 0.0,
) -> Float[Array, "*shape"]:
    """Compute the next layer's preactivation variance.

        V(q) = sigma_w^2 E f(sqrt(q) z)^2 + sigma_b^2,   z ~ N(0, 1)

    Poole et al. 2016, "Exponential expressivity in deep neural networks through transient chaos", equation 3:
    exact at infinite width, for h' = W f(h) + b with W_ij ~ N(0, sigma_w^2 / width) and b_i ~ N(0,
    sigma_b^2). The integral's error is that of `jaxact.numerics.gaussian_expectation`. Differentiable in all
    three numbers.

    Args:
        activation: an `Activation`. Static.
        q: second moment of the preactivation, nonnegative; may be traced.
        sigma_w: weight scale, nonnegative; broadcast against q; may be traced.
        sigma_b: bias scale, nonnegative; broadcast against q; may be traced.

    Returns:
        V(q), of the broadcast shape.

    Raises:
        TypeError: `activation` does not know its kinks and derivative.
        ValueError: a concrete number is negative or not finite.

    Example:
        >>> from jaxact import activations
        >>> float(variance_map(activations.relu, 3.0, sigma_w=2.0**0.5, sigma_b=1.0).round(4))
        4.0
    """
    for name, value in {"q": q, "sigma_w": sigma_w, "sigma_b": sigma_b}.items():
        if not isinstance(value, jax.core.Tracer):
            values = np.asarray(value)
            if not (np.isfinite(values) & (values >= 0)).all():
                raise ValueError(f"`{name}` must be finite and nonnegative, got {value}.")
    second_moment = gaussian_expectation(
        lambda x: activation(x) ** 2, kinks=breakpoints(activation), variance=q
    )
    return jnp.square(sigma_w) * second_moment + jnp.square(sigma_b)
