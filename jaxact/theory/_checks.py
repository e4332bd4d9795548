"""What predictions refuse of the numbers that they are given, and how what is traced becomes NaN instead."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from jaxact.numerics import check_nonnegative


def check_number(name: str, value: Any, remedy: str = "Call it once for each.") -> float:
    """Return one finite, nonnegative number, of numpy's or JAX's too, as a Python float."""
    number = check_real(name, value, remedy)
    check_nonnegative(**{name: number})
    return number


def check_real(name: str, value: Any, remedy: str = "Call it once for each.") -> float:
    """Return one real number as a Python float."""
    check_untraced(name, value)
    values = np.asarray(value)
    if not np.issubdtype(values.dtype, np.number) and not np.issubdtype(values.dtype, np.bool_):
        raise ValueError(f"`{name}` must be one number, got {value!r}. Pass a float.")
    if values.ndim != 0:
        raise ValueError(f"`{name}` must be one number, got shape {values.shape}. {remedy}")
    if np.iscomplexobj(values):
        raise ValueError(f"`{name}` must be real, got {value}. Pass a float.")
    return float(values)


def check_untraced(name: str, value: Any) -> None:
    """Refuse what is traced where it must be known."""
    if isinstance(value, jax.core.Tracer):
        raise ValueError(f"`{name}` must be known: this runs on the host. Pass numbers, not traced values.")


def check_concrete(**numbers: Any) -> None:
    """Refuse means and variances that are concrete and cannot be."""
    for name, value in numbers.items():
        if not isinstance(value, jax.core.Tracer):
            if not np.isfinite(np.asarray(value)).all():
                raise ValueError(f"`{name}` must be finite, got {value}. Leave out what has diverged.")
            if name == "variance" and (np.asarray(value) < 0).any():
                raise ValueError(
                    f"`variance` must be nonnegative, got {np.asarray(value).min()}. Pass sigma**2, not a log."
                )


def nan_unless_scale(sigma: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """The scale; NaN in place of one that is traced and negative or infinite."""
    sigma = jnp.asarray(sigma)
    if not jnp.issubdtype(sigma.dtype, jnp.floating):
        sigma = sigma.astype(float)
    return sigma * jnp.where((sigma >= 0) & jnp.isfinite(sigma), 1, jnp.nan)  # a factor: its slope is NaN too


@jax.custom_jvp
def without_slope(where: Bool[Array, "*shape"], value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The value as it is, with a derivative that is NaN at these places."""
    del where
    return value


@without_slope.defjvp
def _without_slope_jvp(primals, tangents):
    where, value = primals
    return value, jnp.where(where, jnp.nan, 1).astype(value.dtype) * tangents[1]
