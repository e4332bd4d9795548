"""Upper bounds on the spectral norms of dense and convolutional layers."""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

from jaxact.lipschitz._rounding import UNIT
from jaxact.numerics import full_precision, native

try:
    import threadpoolctl
except ImportError:  # comes with scikit-learn
    threadpoolctl = None


_EXACT_ENTRIES = 2**22  # entries of a convolution's matrix up to which it is written out
_FREQUENCY_ENTRIES = 2**26  # of all its matrices in frequency together, that is 1 GiB


def dense_norm(
    matrix: Float[ArrayLike, "out in"] | Int[ArrayLike, "out in"] | Sequence[Sequence[float]],
) -> float:
    """Bound the spectral norm of a matrix from above, as closely as float64 allows.

        ||A||_2^2 = lambda_max(A A^T)

    An upper bound, proved: the largest eigenvalue of the smaller Gram matrix is estimated (Lanczos iteration when it is
    large) and raised until the Cholesky factorisation of lambda I - A A^T runs to its end with a margin for its
    rounding (Higham 2002, theorem 10.7); gamma_n ||A||_F^2 is added for the rounding of the product. Within 1e-9 of
    the norm up to 1,000 rows, 1e-7 up to 8,000. Where the Gram matrix itself is too large use `gram_norm`.

    Args:
        matrix: [out, in], concrete; computed in float64 on the host.

    Returns:
        The bound, a float; 0 for an empty matrix.

    Raises:
        TypeError: `matrix` is not an array of real numbers.
        ValueError: `matrix` is not a matrix or not finite.

    Example:
        >>> round(dense_norm([[3.0, 0.0], [0.0, -4.0]]), 9)
        4.0
    """
    matrix = real_array("matrix", matrix)
    if matrix.ndim != 2:
        raise ValueError(f"`matrix` must be [out, in], got shape {matrix.shape}. Flatten inputs and outputs.")
    if not np.isfinite(matrix).all():
        raise ValueError("`matrix` must be finite, got NaN or inf. A diverged layer has no norm.")
    if matrix.size == 0 or not matrix.any():
        return 0.0
    exponent = math.frexp(float(np.abs(matrix).max()))[1]
    scaled = np.ldexp(matrix, -exponent)
    if min(matrix.shape) == 1:
        return _scaled_up(float(np.linalg.norm(scaled)) * (1 + (matrix.size + 8) * UNIT), exponent)
    if scaled.shape[0] > scaled.shape[1]:
        scaled = scaled.T
    gram = scaled @ scaled.T
    # |error_ij| <= gamma_n |a_i| |a_j|: at most gamma_n ||A||_F^2 in norm.
    slack = 2 * (scaled.shape[1] + 4) * UNIT * float(np.trace(gram))
    root = math.sqrt(certified_largest(gram / 2 + gram.T / 2) + slack)
    return _scaled_up(root * (1 + 4 * UNIT), exponent)


def _scaled_up(bound: float, exponent: int) -> float:
    """Bound 2^exponent: inf where that is out of range, and rounded up where it is subnormal."""
    with np.errstate(over="ignore", under="ignore"):
        value = float(np.ldexp(bound, exponent))
    return value if value > 1e-300 or bound == 0 else float(np.nextafter(value, np.inf))


@full_precision
def gram_norm(
    matrix: Float[ArrayLike, "out in"] | Int[ArrayLike, "out in"], *, num_iterations: int = 8
) -> Float[Array, ""]:
    """Bound the spectral norm of a matrix from above by Gram iteration.

        G_0 = A,  G_{k+1} = G_k^T G_k:   ||A||_2 <= ||G_k||_F^(2^-k)

    An upper bound that converges from above, quadratically in k: never more than rank^(2^-k-1) times the norm, 1.4 %
    for rank 1,000 and 8 iterations (Delattre et al. 2023, theorem 1 and algorithm 1, with the rescaling by the
    Frobenius norm in every step that keeps it within range). Differentiable everywhere but at 0, and products of
    matrices only: for training, and for large matrices on accelerators. Up to rounding, about k n eps, which is not
    added.

    Args:
        matrix: [out, in]; may be traced.
        num_iterations: k >= 0; static. 0 gives the Frobenius norm.

    Returns:
        The bound, a scalar in the matrix's dtype.

    Raises:
        TypeError: `matrix` is complex.
        ValueError: `matrix` is not a matrix or empty, or `num_iterations` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(gram_norm(jnp.diag(jnp.array([3.0, 4.0])))), 3)
        4.0
    """
    G = jnp.asarray(native(matrix))
    if jnp.issubdtype(G.dtype, jnp.complexfloating):
        raise TypeError(f"`matrix` must be real, got dtype {G.dtype}. Stack [[re, -im], [im, re]].")
    if not jnp.issubdtype(G.dtype, jnp.floating):
        G = G.astype(jnp.float32)
    if G.ndim != 2 or G.size == 0:
        raise ValueError(
            f"`matrix` must be [out, in] and not empty, got shape {G.shape}. Flatten inputs and outputs."
        )
    if isinstance(num_iterations, bool) or not isinstance(num_iterations, int) or num_iterations < 0:
        raise ValueError(
            f"`num_iterations` must be an integer >= 0, got {num_iterations!r}. Use 8 to begin with."
        )
    if G.shape[0] < G.shape[1]:
        G = G.T

    def normalized(G: Array) -> tuple[Array, Array]:
        largest = jnp.abs(G).max()
        info = jnp.finfo(G.dtype)
        # 1 / safe must not be subnormal: XLA flushes it to 0
        safe = lax.stop_gradient(jnp.clip(jnp.where(largest == 0, 1, largest), info.tiny, info.max / 8))
        square = jnp.sum(jnp.square(G / safe))
        root = jnp.sqrt(jnp.where(square == 0, 1, square))  # NaN stays NaN
        return G / safe / root, jnp.where(square == 0, -jnp.inf, jnp.log(safe) + jnp.log(root))

    G, log = normalized(G)
    for k in range(1, num_iterations + 1):
        G, grown = normalized(G.T @ G)
        log = log + grown / 2.0**k
    return jnp.exp(log)


def convolution_norm(
    kernel: Float[ArrayLike, "*window in_per_group out"] | Int[ArrayLike, "*window in_per_group out"],
    input_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    method: str = "auto",
) -> float:
    """Bound the spectral norm of a convolutional layer from above: of the zero-padded operator, not of its kernel.

    By `method`:

        "exact"      the operator is written out as a matrix, see `dense_norm`
        "fourier"    max over frequencies w of ||[K(w), K(w + 2 pi / s), ...]||_2 / s^(d/2), K(w) = sum_j k_j e^(-i w j)
        "absolute"   sqrt(||A||_1 ||A||_inf), from the sums of |kernel| over windows and channels
        "auto"       "exact" up to 4 million entries, else the smaller of the other two

    "fourier" is exact for a circular convolution, whose matrix the Fourier transform turns into blocks (Sedghi et al.
    2019, theorem 6; strides s alias s^d frequencies). A zero-padded one is a block of the circular one over a torus of
    at least n + window - 1 points: it embeds the image, convolves and keeps some outputs, neither of which lengthens a
    vector. So it is an upper bound there, usually within a few percent. All in float64 on the host, with slack for
    rounding (1e-12 of the Frobenius norms in frequency, where the transform's is some 1e-15).

    Args:
        kernel: [*window, in / groups, out], as Flax has it; concrete.
        input_shape: [*spatial, in].
        strides: one, or one for each spatial axis.
        padding: "SAME", "VALID", "CIRCULAR" or pairs (before, after), of zeros.
        dilation: of the kernel.
        groups: `feature_group_count`.
        method: see above; "exact" refuses nothing: a large operator takes what memory it takes.

    Returns:
        The bound, a float.

    Raises:
        TypeError: `kernel` is not an array of real numbers.
        ValueError: shapes that do not fit, an unknown method or padding, a kernel that is not finite.

    Example:
        >>> import numpy as np
        >>> round(convolution_norm(np.ones((3, 1, 1)) / 3, (50, 1), padding="CIRCULAR"), 6)
        1.0
    """
    geometry = _Geometry(kernel, input_shape, strides, padding, dilation, groups)
    if method not in ("auto", "exact", "fourier", "absolute"):
        raise ValueError(
            f"`method` must be one of 'auto', 'exact', 'fourier', 'absolute', got {method!r}. Use 'auto'."
        )
    exponent = math.frexp(float(np.max(np.abs(geometry.kernel), initial=0.0)))[1]
    geometry.kernel = np.ldexp(geometry.kernel, -exponent)  # whose squares are in range
    return _scaled_up(_convolution_norm(geometry, method), exponent)


def _convolution_norm(geometry: _Geometry, method: str) -> float:
    entries = math.prod(geometry.input_shape) * math.prod(geometry.output_shape)
    if method == "exact" or (method == "auto" and entries <= _EXACT_ENTRIES):
        return dense_norm(geometry.matrix())
    if method == "fourier":
        return _fourier_norm(geometry)
    absolute = _absolute_norm(geometry)
    if method == "absolute" or geometry.frequency_entries() > _FREQUENCY_ENTRIES:
        return absolute
    return min(absolute, _fourier_norm(geometry))


class _Geometry:
    """A convolution's shapes, checked and with one number for each spatial axis."""

    def __init__(self, kernel, input_shape, strides, padding, dilation, groups):
        self.kernel = real_array("kernel", kernel)
        self.input_shape = tuple(int(n) for n in input_shape)
        axes = self.kernel.ndim - 2
        if axes < 1 or len(self.input_shape) != axes + 1 or self.kernel.size == 0:
            raise ValueError(
                "`kernel` must be [*window, in / groups, out] for `input_shape` [*spatial, in], got "
                f"{self.kernel.shape} and {self.input_shape}. Leave out the batch axis."
            )
        if not np.isfinite(self.kernel).all():
            raise ValueError("`kernel` must be finite, got NaN or inf. A diverged layer has no norm.")
        if isinstance(groups, bool) or not isinstance(groups, int | np.integer) or groups < 1:
            raise ValueError(f"`groups` must be an integer >= 1, got {groups!r}. Use 1 for no groups.")
        self.groups = int(groups)
        if self.kernel.shape[-2] * groups != self.input_shape[-1] or self.kernel.shape[-1] % groups:
            raise ValueError(
                f"`kernel` must take {self.input_shape[-1]} channels in {groups} groups, got {self.kernel.shape[-2]} "
                f"for each and {self.kernel.shape[-1]} outputs. Kernels are [*window, in / groups, out]."
            )
        self.strides = _per_axis("strides", strides, axes)
        self.dilation = _per_axis("dilation", dilation, axes)
        spatial = self.input_shape[:-1]
        self.extents = tuple(
            d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel.shape[:-2], strict=True)
        )
        self.circular = padding == "CIRCULAR"
        if self.circular:
            # As Flax does it: wrap around by the extent, then no padding.
            self.padding = tuple(((e - 1) // 2, e // 2) for e in self.extents)
        elif isinstance(padding, str):
            if padding not in ("SAME", "VALID"):
                raise ValueError(
                    f"`padding` must be 'SAME', 'VALID', 'CIRCULAR' or pairs (before, after), got {padding!r}. "
                    "Write others as pairs."
                )
            self.padding = tuple(lax.padtype_to_pads(spatial, self.extents, self.strides, padding))
        else:
            self.padding = tuple((int(low), int(high)) for low, high in padding)
            if len(self.padding) != axes or min(min(pair) for pair in self.padding) < 0:
                raise ValueError(
                    f"`padding` must hold a pair (before, after) >= 0 for each axis, got {padding}. "
                    "Crop the input for less."
                )
        outputs = tuple(
            (n + low + high - e) // s + 1
            for n, (low, high), e, s in zip(spatial, self.padding, self.extents, self.strides, strict=True)
        )
        if min(outputs) < 1:
            raise ValueError(
                f"`kernel` must fit into the padded input, got extents {self.extents} for {spatial}. "
                "Check `padding` and `dilation`."
            )
        self.output_shape = (*outputs, self.kernel.shape[-1])

    def matrix(self) -> np.ndarray:
        n = math.prod(self.input_shape)
        with jax.enable_x64(True):
            columns = jax.lax.map(self.apply, jnp.eye(n, dtype=jnp.float64), batch_size=256)
            return np.asarray(columns).reshape(n, -1).T

    def apply(self, v: Any) -> Array:
        x = jnp.asarray(v).reshape(1, *self.input_shape)
        padding = self.padding
        if self.circular:
            x = jnp.pad(x, ((0, 0), *padding, (0, 0)), mode="wrap")
            padding = tuple((0, 0) for _ in padding)
        letters = (
            "DHW"[-len(padding) :] if len(padding) <= 3 else "".join(chr(97 + i) for i in range(len(padding)))
        )
        numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
        return lax.conv_general_dilated(
            x,
            jnp.asarray(self.kernel),
            self.strides,
            padding,
            rhs_dilation=self.dilation,
            dimension_numbers=numbers,
            feature_group_count=self.groups,
            precision=lax.Precision.HIGHEST,
        ).reshape(-1)

    def torus(self) -> tuple[int, ...]:
        """Points along each axis, a multiple of the stride."""
        if self.circular:
            return self.input_shape[:-1]
        points = []
        for n, e, (low, high), s in zip(
            self.input_shape[:-1], self.extents, self.padding, self.strides, strict=True
        ):
            # So many that neither the image nor the outputs overlap themselves.
            points.append(-(-max(n + e - 1, n + low + high) // s) * s)
        return tuple(points)

    def frequency_entries(self) -> int:
        return math.prod(self.torus()) * self.kernel.shape[-2] * self.kernel.shape[-1]


def _per_axis(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence | np.ndarray) else (value,) * axes
    if len(values) != axes or not all(isinstance(v, int | np.integer) and v >= 1 for v in values):
        raise ValueError(
            f"`{name}` must be a positive integer, or one for each of {axes} axes, got {value!r}. Use 1 for none."
        )
    return tuple(map(int, values))


def _fourier_norm(geometry: _Geometry) -> float:
    torus, strides = geometry.torus(), geometry.strides
    if any(n % s for n, s in zip(torus, strides, strict=True)):
        strides = (1,) * len(
            strides
        )  # a circle that the stride does not divide: keep all outputs, an upper bound
    axes = tuple(range(len(torus)))
    kernel = geometry.kernel
    spread = np.zeros((*torus, *kernel.shape[-2:]))
    # Taps that fall on the same point of a small circle add up.
    for tap in np.ndindex(kernel.shape[:-2]):
        place = tuple(t * d % n for t, d, n in zip(tap, geometry.dilation, torus, strict=True))
        spread[place] += kernel[tap]
    transformed = np.fft.fftn(spread, axes=axes)
    # [coarse frequencies, aliases, in, out] for each group
    shape = [size for n, s in zip(torus, strides, strict=True) for size in (s, n // s)]
    folded = transformed.reshape(*shape, *kernel.shape[-2:])
    order = [2 * a + 1 for a in axes] + [2 * a for a in axes] + [2 * len(axes), 2 * len(axes) + 1]
    folded = folded.transpose(order).reshape(
        math.prod(torus) // math.prod(strides), math.prod(strides), *kernel.shape[-2:]
    )
    largest = 0.0
    per_group = kernel.shape[-1] // geometry.groups
    for group in range(geometry.groups):
        blocks = folded[..., group * per_group : (group + 1) * per_group]
        blocks = blocks.reshape(blocks.shape[0], -1, per_group)
        if blocks.shape[1] > blocks.shape[2]:
            gram = np.conj(blocks.swapaxes(1, 2)) @ blocks
        else:
            gram = blocks @ np.conj(blocks.swapaxes(1, 2))
        squares = np.linalg.eigvalsh(gram)[:, -1]
        slack = 1e-12 * np.square(np.abs(blocks)).sum((1, 2))
        largest = max(largest, float((squares + slack).max()))
    return math.sqrt(largest / math.prod(strides)) * (1 + 1e-14)


def _absolute_norm(geometry: _Geometry) -> float:
    kernel = np.abs(geometry.kernel)
    # Dropping taps at the border or by a stride only lowers the sums.
    rows = kernel.sum(axis=tuple(range(kernel.ndim - 1)))  # of one output
    per_group = kernel.shape[-1] // geometry.groups
    columns = kernel.sum(axis=tuple(range(kernel.ndim - 2))).reshape(-1, geometry.groups, per_group).sum(-1)
    return math.sqrt(rows.max() * columns.max()) * (1 + 4 * kernel.size * UNIT)


def real_array(name: str, value: Any) -> np.ndarray:
    """An argument in float64 on the host.

    Raises:
        TypeError: it is not an array of real numbers.
    """
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"`{name}` must be concrete, got {value}. Call this outside jit, vmap and grad.")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.asarray(None)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (np.floating, np.integer, np.bool_)):
        raise TypeError(
            f"`{name}` must be an array of real numbers, got {reprlib.repr(value)}. Pass what np.asarray takes."
        )
    return array.astype(np.float64)


def largest_eigenvalue(X: np.ndarray) -> float:
    """The largest eigenvalue of a symmetric matrix that is all but positive: an estimate, to rounding if small."""
    n = X.shape[0]
    if n <= 1:
        return float(X.sum())
    if n > 384:
        start = np.sqrt(np.maximum(np.diag(X), 0)) * (1 + 0.5 * np.cos(np.arange(n))) + 1e-6
        try:
            return float(
                scipy.sparse.linalg.eigsh(X, k=1, which="LA", v0=start, return_eigenvectors=False)[0]
            )
        except scipy.sparse.linalg.ArpackError:
            pass
    return float(np.linalg.eigvalsh(X)[-1])


def certified_largest(X: np.ndarray) -> float:
    """An upper bound on the largest eigenvalue of the symmetric matrix that is stored, proved by a factorisation."""
    n = X.shape[0]
    if n <= 1:
        return float(X.sum())
    if not X.any():
        return 0.0
    estimate = max(largest_eigenvalue(X), float(np.diag(X).max()), 0.0)
    slack = 4 * n * n * UNIT
    for _ in range(24):
        level = estimate * (1 + slack)
        M = -X
        M[np.diag_indices(n)] += level
        if is_positive(M):
            return level
        slack *= 4
    return float(np.abs(X).sum(1).max()) * (1 + 4 * n * UNIT)


def is_positive(M: np.ndarray) -> bool:
    """Prove a symmetric matrix positive semidefinite, also if its diagonal is off by a few u relative.

    The Cholesky factorisation of M - delta diag(M) runs to its end. With H = D^-1/2 M D^-1/2 of unit diagonal that
    proves lambda_min(H) >= -n gamma / (1 - gamma), gamma = gamma_{n+1} (Higham 2002, theorem 10.7), made up by delta.
    """
    n = M.shape[0]
    gamma = (n + 1) * UNIT / (1 - (n + 1) * UNIT)
    delta = n * gamma / (1 - gamma) + 8 * UNIT
    shifted = M.copy()
    shifted[np.diag_indices(n)] *= 1 - delta
    try:
        np.linalg.cholesky(shifted)
    except np.linalg.LinAlgError:
        return False
    return True


def one_thread(width: int) -> contextlib.AbstractContextManager:
    """Small factorisations in one thread: on busy cores OpenBLAS waits for its threads, a hundred times as long."""
    # Up to 16 a triangular system starts none, from 256 on they are worth it.
    if not 16 < width <= 256 or threadpoolctl is None:
        return contextlib.nullcontext()
    return _controller().limit(limits=1, user_api="blas")


@lru_cache(maxsize=1)
def _controller():
    return threadpoolctl.ThreadpoolController()  # looks through all libraries, 2 ms
