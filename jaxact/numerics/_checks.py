"""What is refused of the counts and scales that users give."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_count(
    name: str, value: Any, least: int = 1, most: float = 2**31 - 1, *, remedy: str | None = None
) -> int:
    """Return a count, of numpy's too, as a Python int.

    Args:
        name: of the argument, for the message.
        value: to be checked.
        least: the smallest that is taken.
        most: the largest.
        remedy: the message's last sentence, in place of one for any count.

    Returns:
        The count as a Python int.

    Raises:
        ValueError: it is no integer, or not from `least` to `most`.

    Example:
        >>> check_count("depth", np.int64(3))
        3
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}, got {value!r}. "
            f"{remedy or f'Pass a Python int from {least} on, not a traced value.'}"
        )
    if value > most:  # Python prints no more than 4300 digits
        raise ValueError(
            f"`{name}` must be at most {most}, got {f'{value}' if value < 10**20 else 'more than 1e20'}. "
            f"{remedy or 'Take fewer: limits are reached long before.'}"
        )
    return int(value)


def check_nonnegative(**numbers: Any) -> None:
    """Refuse what is concrete and negative or not finite.

    Args:
        **numbers: by the names of the arguments; what is traced is passed over.

    Raises:
        ValueError: one is negative or not finite.

    Example:
        >>> check_nonnegative(sigma_w=1.5, sigma_b=np.zeros(3))
    """
    for name, value in numbers.items():
        if not isinstance(value, jax.core.Tracer):
            try:
                values = np.asarray(value)
            except ValueError:  # of a ragged list
                values = np.asarray(None)
            if not np.issubdtype(values.dtype, np.number) and not np.issubdtype(values.dtype, np.bool_):
                raise ValueError(
                    f"`{name}` must be a number, got {value!r}. Pass a float, or an array of them."
                )
            if np.iscomplexobj(values):
                raise ValueError(f"`{name}` must be real, got {value}. Pass a float, or an array of them.")
            if not (np.isfinite(values) & (values >= 0)).all():
                raise ValueError(
                    f"`{name}` must be finite and nonnegative, got {value}. Pass the scale itself, not its logarithm."
                )


def check_scale(name: str, value: Any, remedy: str = "Make an initialiser for each.") -> Any:
    """Return one scale: traced as it is; concrete as a number that can be hashed, in float32 where it came so.

    Then it is divided in float32, as one that is traced.

    Args:
        name: of the argument, for the message.
        value: a scalar.
        remedy: the message's last sentence where it is an array.

    Returns:
        The scale.

    Raises:
        TypeError: it is no real number.
        ValueError: it is no scalar, negative or not finite.

    Example:
        >>> check_scale("gain", 2)
        2.0
    """
    try:
        array = value if isinstance(value, jax.core.Tracer) else np.asarray(value)
        is_number = array.ndim == 0 and jnp.issubdtype(array.dtype, np.number)
    except (TypeError, ValueError):  # of a ragged list
        is_number = False
    if not is_number or jnp.iscomplexobj(array):
        raise TypeError(f"`{name}` must be one real number, got {value!r}. {remedy}")
    check_nonnegative(**{name: value})
    is_narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 8
    return array if isinstance(array, jax.core.Tracer) else array[()] if is_narrow else float(array)
