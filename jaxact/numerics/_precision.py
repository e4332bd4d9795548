"""Matrix products as exact on an accelerator as on a CPU."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(fn: Callable[P, R]) -> Callable[P, R]:
    """Run a function with float32 matrix products and convolutions whose factors are not rounded further.

    By default GPUs round them to TF32, TPUs to bfloat16, both in what the function computes and in what it is given to
    call: relative errors of 3e-4 and 4e-3, by which a Krylov basis is not orthogonal and an orthogonal layer stretches.
    Operations that name a precision keep it. Nothing changes on a CPU, nor in float64.

    Args:
        fn: any function that traces or runs JAX operations.

    Returns:
        The same function under `jax.default_matmul_precision("float32")`.

    Example:
        >>> import jax.numpy as jnp
        >>> product = full_precision(lambda A: A @ A)
        >>> float(product(jnp.full((2, 2), 1 + 2.0**-12))[0, 0]) > 2  # TF32 has 10 bits
        True
    """

    @wraps(fn)
    def precise(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("float32"):
            return fn(*args, **kwargs)

    return precise
