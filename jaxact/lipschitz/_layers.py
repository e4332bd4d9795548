"""Upper bounds for chains of dense layers from their weights."""

import math
import reprlib
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from jaxact.lipschitz._chain import Layer, everywhere, product_within, within
from jaxact.lipschitz._norms import one_thread, real_array
from jaxact.lipschitz._panels import slope_table
from jaxact.lipschitz._program import Affine, Ball, Box, Certificate, Dense, Elementwise, Program, Region
from jaxact.lipschitz._sdp import SOLVERS, lipsdp
from jaxact.lipschitz.ellipsoid import bound
from jaxact.lipschitz.ellipsoid.multipliers import inverse
from jaxact.lipschitz.ellipsoid.step import inflation, sloped
from jaxact.numerics import full_precision, native

_METHODS = ("product", "absolute", "eclipse_fast", "ellipsoid", "lipsdp")
_FULL_SPECTRUM = 128  # width up to which the largest eigenvalue comes from all of them
_POWER_STEPS = 48
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
    on_host = _on_host(weights)
    kernels: list[Any] = _check_weights(weights) if on_host is None else on_host[0]
    _check_biases(biases, kernels)
    activations = _as_list(activation, len(kernels) - 1)
    constants, ranges = _check_activations(activation, len(kernels) - 1)
    done = partial(_certificate, method=method, activations=activations)
    if on_host is not None and any(isinstance(end, jax.core.Tracer) for pair in ranges for end in pair):
        on_host, kernels = None, _check_weights(weights)
    dtype = jnp.result_type(jnp.float32, *kernels) if on_host is None else on_host[2]
    if method in ("ellipsoid", "lipsdp"):
        certificate = chain_certificate(kernels, ranges, method, num_steps, seconds, variant, solver)
        rounded = partial(_rounded, weights=weights, dtype=dtype, outward=True)
        return replace(
            certificate,
            value=rounded(certificate.value),
            log=rounded(certificate.log),
            certified=_are_exact(activations),
            assumptions=(*certificate.assumptions, *_estimates(activations)),
        )
    if on_host is not None:
        with one_thread(max(map(len, kernels))):
            if method == "eclipse_fast":
                found = everywhere(kernels, on_host[1], [(float(low), float(high)) for low, high in ranges])
            else:
                norms = np.concatenate(_spectral_norms(kernels, np)) if method == "product" else ()
                found = math.fsum(map(_log, (*norms, *constants)))
                if method == "absolute":
                    found += float(_absolute(kernels, np.float64, np))
        rounded = partial(_rounded, weights=weights, dtype=dtype, outward=False)
        return done(rounded(_exp(found)), rounded(found), seconds=time.perf_counter() - started)
    if method == "eclipse_fast":
        log_bound = _eclipse_fast(kernels, ranges, dtype)
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
        certified=region is not None and _are_exact(activations),
        assumptions=(_SLOPES, *assumed, *_estimates(activations)),
        seconds=seconds,
    )


def _are_exact(activations: Sequence[Any]) -> bool:
    return all(getattr(each, "exact", True) for each in activations)


def _estimates(activations: Sequence[Any]) -> tuple[str, ...]:
    named = [getattr(each, "name", repr(each)) for each in activations if not getattr(each, "exact", True)]
    return tuple(
        f"the slopes of {name} are an estimate, and so is the bound" for name in dict.fromkeys(named)
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
    given = _on_host(weights)
    if given is None:
        _check_weights(weights)  # says what is wrong
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
    activations = _as_list(activation, len(kernels) - 1)
    offsets = _check_biases(biases, kernels, within=True)
    layers = [
        Layer(kernel, square, offset, slope_table(each), _values(each))
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


def _values(activation: Any) -> tuple[float, float]:
    lower, upper = getattr(activation, "range", (-math.inf, math.inf))
    return (lower, upper) if getattr(activation, "exact", False) else (-math.inf, math.inf)


def _check_biases(biases: Any, kernels: Sequence[Any], *, within: bool = False) -> list[np.ndarray | None]:
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


def _eclipse_fast(kernels: list[Array], ranges: list[tuple[Any, Any]], dtype: Any) -> Array:
    """Of traced weights or slopes; what is concrete is bounded on the host."""
    # Q, None for I, and the log of its scale
    state: tuple[Array | None, Array] = None, jnp.zeros((), dtype)
    hidden = []
    for kernel, (alpha, beta) in zip(kernels, ranges, strict=False):
        m, r = alpha / 2 + beta / 2, beta / 2 - alpha / 2
        is_exact = _needs_all(kernel.shape[1], m, r)
        hidden.append((kernel.astype(dtype), jnp.asarray(m, dtype), jnp.asarray(r, dtype), is_exact))
    # Equal layers in one loop: unrolled, each would compile its own.
    for (_, is_exact), run in groupby(hidden, key=lambda layer: (layer[0].shape, layer[3])):
        layers = [layer[:3] for layer in run]
        if state[0] is None:
            first, m, r = layers.pop(0)
            state = _through(first.T @ first, state[1], m, r, is_exact)
        step = partial(_scanned, is_exact)
        if len(layers) == 1:  # perhaps not square, unlike equal ones that follow each other
            state, _ = step(state, layers[0])
        elif layers:
            state, _ = lax.scan(step, state, [jnp.stack(parts) for parts in zip(*layers, strict=True)])
    Q, log_square = state
    last = kernels[-1].astype(dtype)
    if Q is None:
        return jnp.log(jnp.linalg.svd(last, compute_uv=False)[0])
    # The smaller of W^T Q W and C^T W W^T C would do; the first is at hand.
    M = last.T @ Q @ last
    largest = jnp.linalg.eigvalsh((M + M.T) / 2)[-1]
    return 0.5 * (log_square + jnp.log(jnp.maximum(largest, 0)))


def _needs_all(width: int, m: Any, r: Any) -> bool:
    if width <= _FULL_SPECTRUM or isinstance(m, jax.core.Tracer) or isinstance(r, jax.core.Tracer):
        return True
    return bool(abs(m) < 0.3 * r)


def _scanned(is_exact: bool, state: Any, layer: Any) -> tuple[Any, None]:
    (Q, log_square), (W, m, r) = state, layer
    return _through(W.T @ Q @ W, log_square, m, r, is_exact), None


def _through(M: Array, log_square: Array, m: Array, r: Array, exact: bool) -> tuple[Array, Array]:
    """Q after the activation, divided by lambda_max(M), whose logarithm is added."""
    M = (M + M.T) / 2
    scale = lax.stop_gradient(jnp.trace(M) / M.shape[0])
    scale = jnp.where(scale > 0, scale, 1)
    M = M / scale  # before the eigenvalues: float32 would not hold the square of a large norm's square
    s = jnp.linalg.eigvalsh(M)[-1] if exact else _power_iteration(M)
    positive = s > 0
    s = jnp.where(positive, s, 1)
    M = M / s
    width = jnp.abs(m) + r
    T = inverse(1, jnp.abs(m), jnp.where(width > 0, r, 1))
    # m = 0 makes I - T M singular, and the term that it stands in 0.
    T = jnp.full(len(M), jnp.where(m == 0, 0, T), M.dtype)
    P = M + inflation(M, M, T, jnp).added()
    Q = sloped(P, jnp.full(len(M), m), jnp.full(len(M), r * width), jnp)
    return Q, log_square + jnp.log(scale) + jnp.where(positive, jnp.log(s), -jnp.inf)


def _power_iteration(M: Array) -> Array:
    start = 1 + 0.5 * jnp.cos(jnp.arange(M.shape[0], dtype=M.dtype))
    fixed = lax.stop_gradient(M)

    def step(_: Any, v: Array) -> Array:
        v = fixed @ v
        return v / jnp.maximum(jnp.linalg.norm(v), jnp.finfo(M.dtype).tiny)

    v = lax.fori_loop(0, _POWER_STEPS, step, start / jnp.linalg.norm(start))
    return v @ M @ v


def _spectral_norms(kernels: Sequence[Any], xp: Any) -> list[Any]:
    """By `xp`; one batched SVD for all kernels of one shape: a deep chain would otherwise compile one each."""
    groups: dict[tuple[int, ...], list[Any]] = {}
    for kernel in kernels:
        if xp is jnp:
            kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
        groups.setdefault(kernel.shape, []).append(kernel)
    return [xp.linalg.svd(xp.stack(group), compute_uv=False)[:, 0] for group in groups.values()]


def _on_host(weights: Any) -> tuple[list[np.ndarray], list[float], Any] | None:
    """Kernels in float64, sums of squares, the result's dtype; None if they are traced or a check failed.

    In few calls: those of `_check_weights` cost as much as several layers.
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


def _check_weights(weights: Any) -> list[Array]:
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


def _as_list(activation: Any, gaps: int) -> list[Any]:
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


def _check_activations(activation: Any, gaps: int) -> tuple[list[Any], list[tuple[Any, Any]]]:
    if not isinstance(activation, Sequence):
        constant = _lipschitz(activation)
        return [constant] * gaps, [_slope_range(activation, constant)] * gaps
    activations = _as_list(activation, gaps)
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
