"""A chain's weights, biases and activations as they are given: checked, and on the host where concrete."""

import math
import reprlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxact.lipschitz._norms import real_array
from jaxact.numerics import native


def on_host(weights: Any) -> tuple[list[np.ndarray], list[float], Any] | None:
    """Kernels in float64, sums of squares, the result's dtype; None if they are traced or a check failed.

    In few calls: those of `check_weights` cost as much as several layers.
    """
    kernels, squares, single = [], [], True
    size = None
    if isinstance(weights, jax.Array):
        if isinstance(weights, jax.core.Tracer):
            return None
        weights = np.asarray(weights)
    for kernel in weights:
        if not isinstance(kernel, np.ndarray):
            if isinstance(kernel, jax.core.Tracer):
                return None
            try:
                kernel = native(np.asarray(kernel))
            except (TypeError, ValueError):
                return None
        if kernel.dtype != np.float64:
            if not jnp.issubdtype(kernel.dtype, jnp.floating):
                return None
            kernel = kernel.astype(np.float64)
        else:
            single = False
        if kernel.ndim != 2 or kernel.size == 0 or size not in (None, kernel.shape[0]):
            return None
        size = kernel.shape[1]
        square = float(np.vdot(kernel, kernel))
        if not math.isfinite(square) and not np.isfinite(kernel).all():
            return None
        kernels.append(kernel)
        squares.append(square)
    if not kernels:
        return None
    return kernels, squares, np.float32 if single else np.float64


def check_weights(weights: Any) -> list[Array]:
    given = list(weights)
    if not given:
        raise ValueError(
            "`weights` must hold at least one kernel [in, out], got none. Put a single one into a list."
        )
    kernels = []
    for index, kernel in enumerate(given):
        try:
            kernels.append(jnp.asarray(native(kernel)))
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"`weights[{index}]` must be a kernel [in, out] of real numbers, got {reprlib.repr(kernel)}. "
                "Pass an array."
            ) from error
    for index, kernel in enumerate(kernels):
        if not jnp.issubdtype(kernel.dtype, jnp.floating):
            raise TypeError(
                f"`weights[{index}]` must be real floating-point, got dtype {kernel.dtype}. "
                "Use .astype(jnp.float32)."
            )
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


def as_list(activation: Any, gaps: int) -> list[Any]:
    if isinstance(activation, str):
        raise TypeError(
            f"`activation` must be an activation, got the name {activation!r}. "
            f"Use jaxact.activations.parse({activation!r})."
        )
    if not isinstance(activation, Sequence):
        return [activation] * gaps
    if len(activation) != gaps:
        raise ValueError(
            f"`activation` must be one activation or len(weights) - 1 = {gaps} of them, "
            f"got {len(activation)}. There is none after the last kernel."
        )
    return list(activation)


def check_activations(activation: Any, gaps: int) -> tuple[list[Any], list[tuple[Any, Any]]]:
    if not isinstance(activation, Sequence):
        constant = _lipschitz(activation)
        return [constant] * gaps, [_slope_range(activation, constant)] * gaps
    activations = as_list(activation, gaps)
    constants = [_lipschitz(each) for each in activations]
    return constants, [_slope_range(*pair) for pair in zip(activations, constants, strict=True)]


def _slope_range(activation: Any, constant: Any) -> tuple[Any, Any]:
    alpha, beta = getattr(activation, "slope_range", (-constant, constant))
    return alpha, beta


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


def are_exact(activations: Sequence[Any]) -> bool:
    return all(getattr(each, "exact", True) for each in activations)


def estimates(activations: Sequence[Any]) -> tuple[str, ...]:
    named = [getattr(each, "name", repr(each)) for each in activations if not getattr(each, "exact", True)]
    return tuple(
        f"the slopes of {name} are an estimate, and so is the bound" for name in dict.fromkeys(named)
    )


def values_of(activation: Any) -> tuple[float, float]:
    lower, upper = getattr(activation, "range", (-math.inf, math.inf))
    return (lower, upper) if getattr(activation, "exact", False) else (-math.inf, math.inf)


def check_biases(biases: Any, kernels: Sequence[Any], *, within: bool = False) -> list[np.ndarray | None]:
    """What the layers add, checked; None for nothing, and for what is traced, which no bound over all inputs needs."""
    if biases is None:
        return [None] * len(kernels)
    given = list(biases) if isinstance(biases, Sequence | np.ndarray | jax.Array) else [biases]
    if len(given) != len(kernels):
        raise ValueError(
            f"`biases` must hold one [out] or None for each of {len(kernels)} kernels, got {len(given)}. "
            "Leave them out for none."
        )
    offsets: list[np.ndarray | None] = []
    for index, (bias, kernel) in enumerate(zip(given, kernels, strict=True)):
        if bias is None:
            offsets.append(None)
            continue
        is_traced = isinstance(bias, jax.core.Tracer)
        if is_traced and within:
            raise ValueError(
                f"`biases[{index}]` must be concrete with a region. Under jit leave out `region`."
            )
        bias = bias if is_traced else real_array(f"biases[{index}]", bias)
        if bias.shape != kernel.shape[1:]:
            raise ValueError(
                f"`biases[{index}]` must have the shape {kernel.shape[1:]}, one number for each output of "
                f"weights[{index}], got {bias.shape}. Give one [out] or None for each kernel."
            )
        if not is_traced and not np.isfinite(bias).all():
            raise ValueError(
                f"`biases[{index}]` must be finite, got NaN or inf. A diverged network has no Lipschitz bound."
            )
        offsets.append(None if is_traced else bias)
    return offsets
