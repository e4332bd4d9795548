"""Activations with parameters of their own, one a feature or one in all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxact.numerics import check_count


class PReLU(nnx.Module):
    """f(x) = x for x > 0, a x otherwise, with a learned slope a a feature (He et al. 2015, Eq. 1).

    The derivative at 0 is a, that of the left side.
    """

    def __init__(self, width: int = 1, *, slope: float = 0.25, rngs: nnx.Rngs | None = None):
        """Start all slopes at `slope`.

        Args:
            width: number of slopes: the features of the last axis, or 1 for a shared one.
            slope: starting value.
            rngs: not used; taken so that a stage can make it like any module.
        """
        check_count("width", width)
        self.slope = nnx.Param(jnp.full((width,), slope, jnp.float32))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Apply elementwise; keeps the shape and dtype of `x`."""
        return jnp.where(x > 0, x, self.slope[...].astype(x.dtype) * x)


class Swish(nnx.Module):
    """f(x) = x sigmoid(beta x) with a learned beta a feature (Ramachandran et al. 2017, Section 3)."""

    def __init__(self, width: int = 1, *, beta: float = 1.0, rngs: nnx.Rngs | None = None):
        """Start all betas at `beta`.

        Args:
            width: number of betas: the features of the last axis, or 1 for a shared one.
            beta: starting value.
            rngs: not used; taken so that a stage can make it like any module.
        """
        check_count("width", width)
        self.beta = nnx.Param(jnp.full((width,), beta, jnp.float32))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Apply elementwise; keeps the shape and dtype of `x`."""
        return x * jax.nn.sigmoid(self.beta[...].astype(x.dtype) * x)


class Softplus(nnx.Module):
    """f(x) = log(1 + exp(beta x)) / beta with a learned beta > 0 a feature (Dugas et al. 2001, with a scale).

    beta = exp(log_beta), so that every value of the parameter is a valid one.
    """

    def __init__(self, width: int = 1, *, beta: float = 1.0, rngs: nnx.Rngs | None = None):
        """Start all betas at `beta`.

        Args:
            width: number of betas: the features of the last axis, or 1 for a shared one.
            beta: starting value, positive.
            rngs: not used; taken so that a stage can make it like any module.

        Raises:
            ValueError: if `beta` is not positive.
        """
        check_count("width", width)
        if not beta > 0:
            raise ValueError(f"`beta` must be positive, got {beta!r}.")
        self.log_beta = nnx.Param(jnp.full((width,), jnp.log(beta), jnp.float32))

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Apply elementwise; keeps the shape and dtype of `x`."""
        beta = jnp.exp(self.log_beta[...]).astype(x.dtype)
        return jax.nn.softplus(beta * x) / beta
