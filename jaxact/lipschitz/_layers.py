"""Upper bounds for chains of dense layers from their weights."""

import math
import reprlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from jaxact.lipschitz._arguments import (
    are_exact,
    as_list,
    check_activations,
    check_biases,
    check_weights,
    estimates,
    on_host,
    values_of,
)
from jaxact.lipschitz._chain import Layer, everywhere, product_within, traced, within
from jaxact.lipschitz._norms import one_thread
from jaxact.lipschitz._panels import slope_table
from jaxact.lipschitz._program import Ball, Box, Certificate, Region
from jaxact.lipschitz._sdp import SOLVERS, lipsdp
from jaxact.lipschitz.ellipsoid import bound
from jaxact.numerics import full_precision
from jaxact.trace import Affine, Dense, Elementwise, Program

_METHODS = ("product", "absolute", "eclipse_fast", "ellipsoid", "lipsdp")
_SLOPES = "the slope ranges of the activations hold"
_ROUNDING = ("the bound's own rounding, about eps sqrt(width) a layer, is not added",)
_CENTRE = (
    "the activations' values are right to 64 ulp of their size, that of their input, or 1",
    "LAPACK's largest eigenvalues are right to 1e-9",
)


@full_precision
def upper_bound(
    weights: Sequence[Float[ArrayLike, "_in _out"] | Sequence[Sequence[float]]]
    | Float[ArrayLike, "layer width width"],
    activation: Any,
    *,
    method: str = "product",
    num_steps: int = 200,
    seconds: float | None = None,
    variant: str = "neuron",
    solver: str = "CLARABEL",
    biases: Sequence[Float[ArrayLike, " _out"] | Sequence[float] | None] | None = None,
    region: Region | None = None,
) -> Certificate:
    """Bound the Lipschitz constant of a chain of dense layers from above.

    The chain is f(x) = W_L^T phi(... phi(W_1^T x + b_1) ...) + b_L; biases matter within a region alone. By `method`:

        "product"       prod_l ||W_l||_2  prod_l sup|phi_l'|                     (Szegedy et al. 2014, section 4.3)
        "absolute"      || |W_L|^T ... |W_1|^T ||_2  prod_l sup|phi_l'|          (a comparison of every path)
        "eclipse_fast"  sqrt lambda_max(M_L), M_{l+1} = W_{l+1}^T Q_l W_{l+1},   (Xu & Sivaranjani 2024, theorem 4)
                        Q_l = r (|m| + r) s I + m^2 (I - T M_l)^{-1} M_l,  T = r / ((|m| + r) s),  s = lambda_max(M_l)
        "ellipsoid"     the same with 1/T a diagonal matrix, found by `num_steps` of gradient descent
        "lipsdp"        that minimum by a solver for semidefinite programs      (Fazlyab et al. 2019, theorem 2)

    with m, r the centre and half the width of the range [alpha, beta] of the slopes of phi_l. The paper has slopes in
    [0, beta]; this form holds for all, since dz^T V dz - dy^T r^-2 V dy >= 0 for dy - m dz in place of dy and any
    diagonal V > M. As lambda_max(Q_l) = (|m| + r)^2 s, "eclipse_fast" never exceeds "product". "ellipsoid" starts from
    it and "lipsdp" is the least that any V gives, so

        lipsdp <= ellipsoid <= eclipse_fast <= product

    up to what the solver and the search leave. All are upper bounds for all inputs. "product" is attained by linear
    chains whose singular vectors align and otherwise loose, exponentially in depth. The first three are traced and
    differentiable in the weights (where the largest singular values are simple), so that they may be a penalty in
    training; they are computed in the weights' dtype ("eclipse_fast" of concrete weights on the host in float64, with
    nothing to compile), from sums of logarithms, and their rounding, about eps sqrt(width) a layer, is not added. The
    last two run on the host in float64 and are proved with rounding included; "lipsdp" needs `pip install jaxact[sdp]`
    and suits some hundred neurons. Traced, "eclipse_fast" finds s by all eigenvalues up to width 128, above by power
    iteration (by all where |m| < 0.3 r), whose error makes T only another feasible choice; were it not feasible the
    result would be NaN.

    With `region` the bound holds for inputs within it: "product" with the largest slopes that occur there, and
    "eclipse_fast" with a range of slopes for each neuron, from |z_i - z_i(x0)| <= R sqrt(M_ii), and from intervals in
    a box. As R -> 0 that tends to the norm of the Jacobian; it exceeds the bound for all inputs by 1e-7 at most. It is
    proved with rounding included, on the host in float64, and rounded up to the weights' dtype; taken for granted is
    that the activations' values are right to 64 ulp of their size, that of their input, or 1, LAPACK's largest
    eigenvalues to 1e-9, and for an activation that is no formula of known primitives its `slope_range`. `certify` with
    num_steps=0 chooses V with an eye on the next layer, and is tighter in large regions; this traces no function and
    is some ten to a hundred times as fast: 0.1 ms a layer of width 16, 0.5 to 2 ms at 128. An activation's first use
    costs up to two seconds more.

    Args:
        weights: kernels [in, out] from the input to the output (Flax's layout), or one array [layer, width,
            width] of equal ones; concrete, or traced for the first three methods without a region.
        activation: the phi between two layers, one for all or a sequence of len(weights) - 1. Anything with
            an attribute `lipschitz` = sup|phi'|, a float or a traced scalar, and a `slope_range` = (alpha, beta);
            without the latter it is taken as (-lipschitz, lipschitz). With a region, a JAX function. Without one the
            result is as good as what is stated: an estimate for an `Activation` whose `exact` is False; `certify`
            bounds slopes from the formula instead.
        method: see above.
        num_steps: of "ellipsoid".
        seconds: stop the refinement of "ellipsoid" after so long.
        variant: of "lipsdp": one multiplier for each "neuron", or one for each "layer", faster and looser.
        solver: of "lipsdp": "CLARABEL", accurate, or "SCS", of first order: for more neurons, and a looser bound.
        biases: one [out] or None for each kernel; None for none. Used with a region only.
        region: a `Ball` or `Box` of inputs [in], for "product" and "eclipse_fast"; None for all inputs.

    Returns:
        A `Certificate`. Its `value` and `log` (for depths whose bound exceeds the dtype's range, and for penalties) are
        scalars in the weights' dtype, at least float32; NumPy scalars where a method runs on the host and all weights
        are NumPy arrays. It is `certified` where it is proved, that is of "ellipsoid" and "lipsdp" and within a region,
        and the slopes of the activations are known.

    Raises:
        TypeError: `weights` is no sequence or array, a weight or bias is not real, or an activation has no `lipschitz`.
        ValueError: an unknown method, variant or solver; no weights; shapes that do not chain; a weight that is not
            finite; a number of activations that does not fit; an activation with no finite Lipschitz constant, in the
            region if there is one; traced weights for a method that runs on the host; a solver that did not converge;
            biases or a region whose shapes do not fit, or a method that has none. What is traced cannot be looked at:
            there, infinities give inf or NaN and NaN gives NaN.
        ImportError: "lipsdp" without its solver.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxact import activations
        >>> weights = [jnp.diag(jnp.array([3.0, 1.0])), jnp.array([[4.0], [3.0]])]
        >>> round(float(upper_bound(weights, activations.relu)), 4)
        15.0
        >>> round(float(upper_bound(weights, activations.relu, method="absolute")), 4)  # |(12, 3)|
        12.3693
        >>> round(float(upper_bound(jnp.stack([100 * jnp.eye(2)] * 64), activations.tanh).log), 2)
        294.73
        >>> near = Ball([1.0, -1.0], radius=0.5)  # the second unit is off there
        >>> round(float(upper_bound(weights, activations.relu, method="eclipse_fast", region=near)), 4)
        12.0
    """
    if method not in _METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, _METHODS))}, got {method!r}. "
            "Use 'eclipse_fast', or 'ellipsoid' where a tighter bound is worth seconds."
        )
    if solver not in SOLVERS:
        raise ValueError(
            f"`solver` must be one of {', '.join(map(repr, SOLVERS))}, got {solver!r}. Use 'CLARABEL'."
        )
    if not isinstance(weights, Sequence | np.ndarray | jax.Array) or getattr(weights, "ndim", 3) == 0:
        raise TypeError(
            "`weights` must be a sequence of kernels [in, out] or one array [layer, width, width], "
            f"got {reprlib.repr(weights)}. Put a single kernel into a list."
        )
    started = time.perf_counter()
    if region is not None:
        return _within(weights, activation, method, biases, region, started)
    known = on_host(weights)
    kernels: list[Any] = check_weights(weights) if known is None else known[0]
    check_biases(biases, kernels)
    activations = as_list(activation, len(kernels) - 1)
    constants, ranges = check_activations(activation, len(kernels) - 1)
    done = partial(_certificate, method=method, activations=activations)
    if known is not None and any(isinstance(end, jax.core.Tracer) for pair in ranges for end in pair):
        known, kernels = None, check_weights(weights)
    dtype = jnp.result_type(jnp.float32, *kernels) if known is None else known[2]
    if method in ("ellipsoid", "lipsdp"):
        certificate = chain_certificate(kernels, ranges, method, num_steps, seconds, variant, solver)
        rounded = partial(_rounded, weights=weights, dtype=dtype, outward=True)
        return replace(
            certificate,
            value=rounded(certificate.value),
            log=rounded(certificate.log),
            certified=are_exact(activations),
            assumptions=(*certificate.assumptions, *estimates(activations)),
        )
    if known is not None:
        with one_thread(max(map(len, kernels))):
            if method == "eclipse_fast":
                found = everywhere(kernels, known[1], [(float(low), float(high)) for low, high in ranges])
            else:
                norms = np.concatenate(_spectral_norms(kernels, np)) if method == "product" else ()
                found = math.fsum(map(_log, (*norms, *constants)))
                if method == "absolute":
                    found += float(_absolute(kernels, np.float64, np))
        rounded = partial(_rounded, weights=weights, dtype=dtype, outward=False)
        return done(rounded(_exp(found)), rounded(found), seconds=time.perf_counter() - started)
    if method == "eclipse_fast":
        log_bound = traced(kernels, ranges, dtype)
    else:
        if method == "product":
            log_bound = jnp.sum(jnp.stack([jnp.log(norms).sum() for norms in _spectral_norms(kernels, jnp)]))
        else:
            log_bound = _absolute(kernels, dtype, jnp)
        for constant in constants:
            log_bound = log_bound + jnp.log(jnp.asarray(constant, dtype))
    log_bound = jnp.asarray(log_bound, dtype)
    return done(jnp.exp(log_bound), log_bound)


def _certificate(
    value: Any,
    log: Any,
    *,
    method: str,
    activations: Sequence[Any],
    region: Region | None = None,
    seconds: float = 0.0,
) -> Certificate:
    """Of a chain; within a region proved."""
    assumed = _ROUNDING if region is None else _CENTRE
    return Certificate(
        value,
        log,
        method,
        region=region,
        certified=region is not None and are_exact(activations),
        assumptions=(_SLOPES, *assumed, *estimates(activations)),
        seconds=seconds,
    )


def chain_certificate(
    kernels: Sequence[Any],
    ranges: Sequence[tuple[Any, Any]],
    method: str,
    num_steps: int,
    seconds: float | None,
    variant: str,
    solver: str,
) -> Certificate:
    """The certificate of a chain of kernels [in, out] with the slope ranges between them."""
    if any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves((kernels, ranges))):
        raise ValueError(
            f"`weights` must be concrete for method {method!r}, which runs on the host. "
            "Under jit and grad use 'eclipse_fast'."
        )
    matrices = [np.asarray(kernel).astype(np.float64).T for kernel in kernels]
    if method == "lipsdp":
        return lipsdp(matrices, ranges, variant=variant, solver=solver)
    steps: list[Affine | Elementwise] = []

    def constant(ends: tuple[Any, Any]) -> Any:
        return lambda intervals: ends

    for index, matrix in enumerate(matrices):
        steps.append(
            Affine(2 * index + 1, ((2 * index, Dense(matrix)),), matrix.shape[0], kind=f"weights[{index}]")
        )
        if index < len(ranges):
            steps.append(
                Elementwise(
                    2 * index + 2,
                    2 * index + 1,
                    constant(ranges[index]),
                    matrix.shape[0],
                    kind=f"activation[{index}]",
                )
            )
    return bound(
        Program(matrices[0].shape[1], tuple(steps), 2 * len(matrices) - 1),
        num_steps=num_steps,
        seconds=seconds,
    )


def _within(
    weights: Any, activation: Any, method: str, biases: Any, region: Any, started: float
) -> Certificate:
    """The bound in a region."""
    if method not in ("product", "eclipse_fast"):
        raise ValueError(
            f"`method` must be 'product' or 'eclipse_fast' with a region, got {method!r}. "
            "For refinement within a region use certify(fn, x, region=region, num_steps=100)."
        )
    if not isinstance(region, Ball | Box):
        raise ValueError(
            f"`region` must be a Ball, a Box or None, got {region!r}. Use Ball(x, 0.1), for instance."
        )
    given = on_host(weights)
    if given is None:
        check_weights(weights)  # says what is wrong
        raise ValueError(
            "`weights` must be concrete with a region, which is bounded on the host. "
            "Under jit and grad leave out `region`."
        )
    kernels, squares, dtype = given
    shape = region.center.shape if isinstance(region, Ball) else region.lower.shape
    if shape != kernels[0].shape[:1]:
        raise ValueError(
            f"`region` must have the shape of one input, {kernels[0].shape[:1]}, got {shape}. Flatten it."
        )
    activations = as_list(activation, len(kernels) - 1)
    offsets = check_biases(biases, kernels, within=True)
    layers = [
        Layer(kernel, square, offset, slope_table(each), values_of(each))
        for kernel, square, offset, each in zip(kernels, squares, offsets, activations, strict=False)
    ]
    layers.append(Layer(kernels[-1], squares[-1], offsets[-1], None))
    bound = within if method == "eclipse_fast" else product_within
    log = bound(layers, region)
    rounded = partial(_rounded, weights=weights, dtype=dtype, outward=True)
    return _certificate(
        rounded(_exp(log)),
        rounded(log),
        method=method,
        activations=activations,
        region=region,
        seconds=time.perf_counter() - started,
    )


def _exp(log_bound: float) -> float:
    return math.exp(log_bound) if log_bound < 709 else math.inf


def _rounded(value: Any, *, weights: Any, dtype: Any, outward: bool) -> Any:
    """In `dtype`; `outward`: not below a value that is itself right to two roundings."""
    if outward and math.isfinite(value):
        value += 4e-16 * abs(value)
    # To make an array of JAX takes as long as to bound a small chain.
    of_numpy = isinstance(weights, np.ndarray) or all(isinstance(kernel, np.ndarray) for kernel in weights)
    if of_numpy and dtype == np.float64:
        return np.float64(value)
    dtype = np.dtype(dtype if of_numpy else jax.dtypes.canonicalize_dtype(dtype))
    with np.errstate(over="ignore"):
        rounded = dtype.type(value)
    if outward and float(rounded) < value:  # numpy would compare in the narrower dtype
        rounded = np.nextafter(rounded, dtype.type(np.inf))
    return rounded if of_numpy else jnp.asarray(rounded)


def _log(value: Any) -> float:
    return math.log(value) if value > 0 else -math.inf


def _absolute(kernels: Sequence[Any], dtype: Any, xp: Any) -> Any:
    """By `xp`, numpy or jax.numpy."""

    def over_largest(matrix: Any) -> tuple[Any, Any]:
        largest = matrix.max()
        safe = xp.where(largest > 0, largest, 1)
        return matrix / safe, xp.log(safe)

    total, log = over_largest(xp.abs(kernels[0]).astype(dtype))
    for kernel in kernels[1:]:
        factor, grown = over_largest(xp.abs(kernel).astype(dtype))
        total, more = over_largest(total @ factor)
        log = log + grown + more
    with np.errstate(divide="ignore"):
        return log + xp.log(xp.linalg.svd(total, compute_uv=False)[0])


def _spectral_norms(kernels: Sequence[Any], xp: Any) -> list[Any]:
    """By `xp`; one batched SVD for all kernels of one shape: a deep chain would otherwise compile one each."""
    groups: dict[tuple[int, ...], list[Any]] = {}
    for kernel in kernels:
        if xp is jnp:
            kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        groups.setdefault(kernel.shape, []).append(kernel)
    return [xp.linalg.svd(xp.stack(group), compute_uv=False)[:, 0] for group in groups.values()]
