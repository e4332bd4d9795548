"""Upper bounds from the layers taken one at a time."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

_METHODS = ("product",)


def upper_bound(
    weights: Sequence[Float[ArrayLike, " in out"]] | Float[Array, " layer width width"],
    activation: Any,
    *,
    method: str = "product",
    log: bool = False,
) -> Float[Array, ""]:
    """Bound the Lipschitz constant of a chain of dense layers from above.

    The chain is f(x) = W_L^T phi(... phi(W_1^T x + b_1) ...) + b_L, biases being irrelevant. By `method`:

        "product"    K <= prod_l ||W_l||_2  prod_l sup|phi_l'|      (Szegedy et al. 2014, section 4.3)

    An upper bound, attained by linear chains whose singular vectors align and otherwise loose, exponentially
    in depth. Spectral norms come from a full SVD and the product from a sum of logarithms, so it is as
    accurate as the weights' dtype allows: the rounding, about eps sqrt(width) a layer, is not added.
    Differentiable in the weights where the largest singular values are simple.

    Args:
        weights: kernels [in, out] from the input to the output (Flax's layout), or one array [layer, width,
            width] of equal ones; concrete or traced.
        activation: the phi between two layers, one for all or a sequence of len(weights) - 1. Anything with
            an attribute `lipschitz` = sup|phi'|, a float or a traced scalar.
        method: "product".
        log: return the natural logarithm, for depths whose bound exceeds the dtype's range.

    Returns:
        A scalar in the weights' dtype, at least float32: the bound, or its logarithm (-inf for a bound of 0).

    Raises:
        TypeError: a weight is not real floating-point, or an activation has no `lipschitz`.
        ValueError: an unknown method; no weights; shapes that do not chain; a weight that is not finite; a
            number of activations that does not fit; an activation with no finite Lipschitz constant. What is
            traced cannot be looked at: there, infinities give inf and NaN gives NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxact import activations
        >>> weights = [jnp.diag(jnp.array([3.0, 1.0])), jnp.array([[4.0], [3.0]])]
        >>> round(float(upper_bound(weights, activations.relu)), 4)
        15.0
        >>> round(float(upper_bound(jnp.stack([100 * jnp.eye(2)] * 64), activations.tanh, log=True)), 2)
        294.73
    """
    if method not in _METHODS:
        raise ValueError(f"`method` must be one of {', '.join(map(repr, _METHODS))}, got {method!r}.")
    kernels = _check_weights(weights)
    slopes = _check_activations(activation, len(kernels) - 1)
    dtype = jnp.result_type(jnp.float32, *kernels)
    log_bound = sum(jnp.log(norms).sum() for norms in _spectral_norms(kernels))
    for slope in slopes:
        log_bound = log_bound + jnp.log(jnp.asarray(slope, dtype))
    log_bound = jnp.asarray(log_bound, dtype)
    return log_bound if log else jnp.exp(log_bound)


def _spectral_norms(kernels: list[Array]) -> list[Float[Array, " equal"]]:
    """One batched SVD for all kernels of one shape: a deep chain would otherwise compile one each."""
    groups: dict[tuple[int, ...], list[Array]] = {}
    for kernel in kernels:
        groups.setdefault(kernel.shape, []).append(
            kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        )
    return [jnp.linalg.svd(jnp.stack(group), compute_uv=False)[:, 0] for group in groups.values()]


def _check_weights(weights: Any) -> list[Array]:
    given = list(weights)
    if not given:
        raise ValueError("`weights` must hold at least one kernel [in, out], got none.")
    kernels = [jnp.asarray(kernel) for kernel in given]
    for index, kernel in enumerate(kernels):
        if not jnp.issubdtype(kernel.dtype, jnp.floating):
            raise TypeError(f"`weights[{index}]` must be real floating-point, got dtype {kernel.dtype}.")
        if kernel.ndim != 2 or kernel.size == 0:
            raise ValueError(
                f"`weights[{index}]` must be a kernel [in, out], got shape {kernel.shape}. "
                "Pass a list of matrices, or one array [layer, width, width]."
            )
        # By numpy: under jit even an operation on constants is traced.
        if not isinstance(given[index], jax.core.Tracer) and not np.isfinite(np.asarray(given[index])).all():
            raise ValueError(
                f"`weights[{index}]` must be finite, got NaN or inf. "
                "A diverged network has no Lipschitz bound."
            )
    for index, (kernel, following) in enumerate(pairwise(kernels)):
        if kernel.shape[1] != following.shape[0]:
            raise ValueError(
                f"`weights` must chain, got {kernel.shape} for weights[{index}] before {following.shape} for "
                f"weights[{index + 1}]. Kernels are [in, out]: transpose PyTorch's."
            )
    return kernels


def _check_activations(activation: Any, gaps: int) -> list[Any]:
    if isinstance(activation, Sequence):
        if len(activation) != gaps:
            raise ValueError(
                f"`activation` must be one activation or len(weights) - 1 = {gaps} of them, "
                f"got {len(activation)}. There is none after the last kernel."
            )
        activations = list(activation)
    else:
        activations = [activation] * gaps
    return [_lipschitz(each) for each in activations]


def _lipschitz(activation: Any) -> Any:
    constant = getattr(activation, "lipschitz", None)
    if constant is None:
        raise TypeError(
            f"`activation` must have an attribute `lipschitz` (sup of |slope|), got {activation!r}. "
            "Wrap a plain function with jaxact.activations.from_callable(fn, name=...)."
        )
    if not isinstance(constant, jax.core.Tracer) and not math.isfinite(float(constant)):
        raise ValueError(
            "`activation` must have a finite Lipschitz constant, got "
            f"{getattr(activation, 'name', activation)} with {float(constant)}. "
            "No bound holds for all inputs; estimate from below with lower_bound."
        )
    return constant
