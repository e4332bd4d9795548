"""Dense and convolutional layers whose Lipschitz constant cannot exceed a bound, whatever their parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxact.lipschitz import gram_norm
from jaxact.nn._networks import MLP
from jaxact.nn._stages import Plain, _folded_scale
from jaxact.numerics import check_count, full_precision

_GRAM_STEPS = 10
_FREQUENCIES = 8  # times the degree of a kernel along an axis: 4 % of slack each


class SpectralNorm(nnx.Module):
    """A flax layer with its kernel scaled down to a spectral norm of at most `bound` (Gouk et al. 2021).

        W = kernel / max(1, sigma / bound),    sigma >= ||kernel||_2

    Unlike `nnx.SpectralNorm`, whose power iteration estimates sigma from below and leaves a norm above 1 until it has
    converged, sigma is an upper bound in every step, has no state and is differentiated through: Gram iteration (see
    `jaxact.lipschitz.gram_norm`), at most 0.3 % above the norm up to 1,000 rows. Of a convolution it is that of the
    operator: with the matrices K(w) = sum_j k_j e^(-i w j) in frequency, and N equidistant ones along each of d axes,

        sigma^2 = max_w ||K(w)||_2^2 / prod_axes cos(pi (window - 1) / N),    N = 8 (window - 1)

    For ||K(w) v||^2 is a trigonometric polynomial of degree window - 1, and one of degree m with its maximum at 0 is at
    least cos(m t) times as large at t (M. Riesz 1914; Ehlich & Zeller 1964). It is above the norm by at most 4 % an
    axis, and holds for every image size, stride and dilation, for zero padding and for circular.

    A bound up to float rounding. `nnx.Linear` and `nnx.Conv` are taken; the bias is left alone.

    Attributes:
        layer: the layer that is wrapped, with its free kernel.
        bound: the largest spectral norm.

    Example:
        >>> layer = SpectralNorm(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
        >>> layer.layer.kernel[...] = jnp.diag(jnp.array([4.0, 2.0]))
        >>> [round(float(value), 2) for value in layer(jnp.ones(2))]
        [1.0, 0.5]
    """

    def __init__(self, layer: nnx.Linear | nnx.Conv, *, bound: float = 1.0):
        """Wrap a layer.

        Args:
            layer: an `nnx.Linear` or `nnx.Conv`.
            bound: the largest spectral norm, positive.

        Raises:
            TypeError: `layer` is of another type.
            ValueError: `bound` is not positive and finite, or the convolution reflects its input or masks its kernel.
        """
        if not isinstance(layer, nnx.Linear | nnx.Conv):
            raise TypeError(f"`layer` must be an nnx.Linear or an nnx.Conv, got {type(layer).__name__}.")
        if isinstance(layer, nnx.Conv):
            if layer.padding == "REFLECT":
                raise ValueError(
                    "`layer` must pad with zeros or be circular, got padding 'REFLECT', which repeats pixels."
                )
            if layer.mask is not None:
                raise ValueError(
                    "`layer` must not mask its kernel: a mask can raise the norm. Leave out `mask`."
                )
        _check_bound(bound)
        self.layer = layer
        self.bound = bound

    @full_precision
    def kernel(self) -> Float[Array, "*window in out"]:
        """The kernel in use, of norm at most `bound`."""
        kernel = self.layer.kernel[...]
        groups = self.layer.feature_group_count if isinstance(self.layer, nnx.Conv) else 1
        norm = (
            gram_norm(kernel, num_iterations=_GRAM_STEPS) if kernel.ndim == 2 else _sup_norm(kernel, groups)
        )
        return kernel / jnp.maximum(1, norm / self.bound).astype(kernel.dtype)

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """What the layer gives with the scaled kernel."""
        graphdef, state = nnx.split(self.layer)
        layer = nnx.merge(graphdef, state, copy=True)
        layer.kernel[...] = self.kernel()
        return layer(x)


class OrthogonalLinear(nnx.Module):
    """A dense layer with orthonormal rows or columns: ||W^T x|| <= bound ||x||, with equality if out >= in.

    Cayley's transform of a free matrix [U; V], tall and with its square part on top (Trockman & Kolter 2021):

        W = [(I + A)^-1 (I - A); -2 V (I + A)^-1],    A = U - U^T + V^T V

    and one step of Bjorck & Bowie (1971), W (3 I - W^T W) / 2, which takes what rounding has left: it maps every
    singular value s <= sqrt(3) to s (3 - s^2) / 2 <= 1. What remains is the rounding of that last product, some 1e-7 in
    float32. A square W has determinant 1 and no eigenvalue -1; these are reached in the limit.

    Attributes:
        weight: the free matrix, [max(in, out), min(in, out)].
        bias: [out], or None.
        bound: the spectral norm.

    Example:
        >>> layer = OrthogonalLinear(3, 3, rngs=nnx.Rngs(0))
        >>> round(float(jnp.linalg.norm(layer(jnp.array([3.0, 0.0, 4.0])))), 4)
        5.0
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bound: float = 1.0,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        """Draw the free matrix from N(0, 1 / max(in, out)); the bias starts at 0.

        Args:
            in_features: length of an input.
            out_features: length of an output.
            bound: the spectral norm, positive.
            use_bias: whether there is a bias.
            rngs: source of the `params` key.

        Raises:
            ValueError: a number of features is not a positive integer, or `bound` is not positive and finite.
        """
        check_count("in_features", in_features)
        check_count("out_features", out_features)
        _check_bound(bound)
        self.is_wide = in_features < out_features
        self.weight = _free((max(in_features, out_features), min(in_features, out_features)), rngs)
        self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else nnx.data(None)
        self.bound = bound

    @full_precision
    def kernel(self) -> Float[Array, "in out"]:
        """The kernel in use: `bound` times a matrix with orthonormal rows or columns."""
        W = _semi_orthogonal(self.weight[...])
        return self.bound * (W.T if self.is_wide else W)

    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Return x W + b."""
        y = x @ self.kernel().astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class OrthogonalConv(nnx.Module):
    """A convolution that lengthens nothing: block convolution orthogonal parametrisation (Li et al. 2019, Section 4).

        K(w) = H prod_axes prod_j (P_j + (I - P_j) e^(-i w_axis)),    P_j orthogonal projections, H semi-orthogonal

    Every factor is unitary at every frequency w, so that K(w) is semi-orthogonal, the operator on an endless image is
    an isometry (out >= in) or the adjoint of one, and any part of it, as zero padding and strides leave, has norm at
    most `bound`: for every image size. With padding "CIRCULAR" and stride 1 it stays an isometry. Window - 1
    projections an axis, each of half the channels' rank, and H have Cayley's parametrisation, see `OrthogonalLinear`:
    these kernels are a part of all orthogonal ones. Rounding is some 1e-7 a factor in float32.

    Attributes:
        weight: the free matrix of H, [max(in, out), min(in, out)].
        projections: those of the P_j, [window - 1 over all axes, c, c // 2], c = max(in, out).
        bias: [out], or None.
        bound: the largest spectral norm.

    Example:
        >>> layer = OrthogonalConv(1, 4, kernel_size=(3, 3), padding="CIRCULAR", rngs=nnx.Rngs(0))
        >>> round(float(jnp.linalg.norm(layer(jnp.ones((1, 8, 8, 1))))), 4)
        8.0
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: str = "SAME",
        bound: float = 1.0,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        """Draw the free matrices from N(0, 1 / rows); the bias starts at 0.

        Args:
            in_features: channels in.
            out_features: channels out.
            kernel_size: one integer a spatial axis.
            strides: one for all spatial axes, or one each.
            padding: "SAME", "VALID" or "CIRCULAR".
            bound: the largest spectral norm, positive.
            use_bias: whether there is a bias.
            rngs: source of the `params` keys.

        Raises:
            ValueError: features, `kernel_size`, `strides` or `bound` are not positive, or another padding.
        """
        check_count("in_features", in_features)
        check_count("out_features", out_features)
        window = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
        steps = (strides,) * len(window) if isinstance(strides, int) else tuple(strides)
        for size in window:
            check_count("kernel_size", size)
        for step in steps:
            check_count("strides", step)
        if not window or len(steps) != len(window):
            raise ValueError(
                f"`strides` must be one for each of {len(window)} spatial axes, got {strides!r}."
            )
        if padding not in ("SAME", "VALID", "CIRCULAR"):
            raise ValueError(f"`padding` must be 'SAME', 'VALID' or 'CIRCULAR', got {padding!r}.")
        _check_bound(bound)
        self.window, self.strides, self.padding = window, steps, padding
        self.is_wide = in_features < out_features
        channels, count = max(in_features, out_features), sum(window) - len(window)
        self.weight = _free((channels, min(in_features, out_features)), rngs)
        self.projections = _free((count, channels, channels // 2), rngs)
        self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else nnx.data(None)
        self.bound = bound

    @full_precision
    def kernel(self) -> Float[Array, "*window in out"]:
        """The kernel in use."""
        free = self.projections[...]
        channels = free.shape[1]
        if free.size:
            U = jax.vmap(_semi_orthogonal)(free)
            projections = U @ jnp.swapaxes(U, 1, 2)
        else:  # one channel: the only projections are 0 and 1
            projections = jnp.zeros((len(free), channels, channels), free.dtype)
        eye = jnp.eye(channels, dtype=free.dtype)
        taps, used = eye.reshape((1,) * len(self.window) + eye.shape), 0
        for axis, size in enumerate(self.window):
            for P in projections[used : used + size - 1]:
                # Shifting by alternating sides of zero would change nothing but where the window's centre is.
                stay, move = [[(0, 0)] * taps.ndim for _ in range(2)]
                stay[axis], move[axis] = (0, 1), (1, 0)
                taps = jnp.pad(taps @ P, stay) + jnp.pad(taps @ (eye - P), move)
            used += size - 1
        W = self.bound * _semi_orthogonal(self.weight[...])
        return W.T @ taps if self.is_wide else taps @ W

    def __call__(self, x: Float[Array, "batch *space in"]) -> Float[Array, "batch *space_out out"]:
        """The convolution of a batch of images."""
        padding: Any = self.padding
        if padding == "CIRCULAR":
            pads = [((size - 1) // 2, size // 2) for size in self.window]
            x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="wrap")
            padding = "VALID"
        space = "".join(chr(ord("a") + axis) for axis in range(len(self.window)))
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel().astype(x.dtype),
            self.strides,
            padding,
            dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        )
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def kernels(network: MLP) -> list[Float[Array, "_in _out"]]:
    """The kernels of a plain dense network from the input to the output, as `jaxact.lipschitz.upper_bound` takes them.

    With the network's activation between them their bound is that of the network, and traced and differentiable as
    they are it can be a penalty in training:

        loss + weight * upper_bound(kernels(network), activation, method="eclipse_fast").log

    Batch norms are folded in as at inference, a diagonal after the kernel before them.

    Args:
        network: an `MLP` of `Plain` stages, its norm None or `nnx.BatchNorm`.

    Returns:
        max_depth + 2 kernels [in, out].

    Raises:
        TypeError: `network` is not an `MLP`.
        ValueError: its stages are residual, which is no chain, or it has another norm.

    Example:
        >>> network = MLP(4, 8, 2, max_depth=3, activation=jax.nn.relu, rngs=nnx.Rngs(0))
        >>> [kernel.shape for kernel in kernels(network)]
        [(4, 8), (8, 8), (8, 8), (8, 8), (8, 2)]
    """
    if not isinstance(network, MLP):
        raise TypeError(
            f"`network` must be an MLP, got {type(network).__name__}. Use certify for any function."
        )
    if not isinstance(network.stack.stages, Plain):
        raise ValueError(
            f"`network` must be a chain of Plain stages, got {type(network.stack.stages).__name__}. "
            "Use certify, or log_lipschitz where the bound must be differentiable."
        )
    stages, norm = network.stack.stages, network.stack.stages.norm
    rows: list[Array] = [network.embed.kernel[...], *stages.affine.kernel[...]]
    if norm is not None:
        scales, last = _folded_scale(norm), _folded_scale(network.norm)
        if scales is None or last is None:
            raise ValueError(
                f"`network` must have no norm or batch norms, got {type(norm).__name__}, which is not linear at "
                "inference. Use certify with a region."
            )
        rows = [kernel * scale for kernel, scale in zip(rows, [*scales, last], strict=True)]
    return [*rows, network.head.kernel[...]]


def _free(shape: tuple[int, ...], rngs: nnx.Rngs) -> nnx.Param:
    """What Cayley's transform takes, one or several matrices [..., rows, columns] from N(0, 1 / rows)."""
    return nnx.Param(jax.random.normal(rngs.params(), shape) * shape[-2] ** -0.5)


def _semi_orthogonal(free: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """Orthonormal columns from any matrix with at least as many rows as columns."""
    rows, columns = free.shape
    # Not below float32: the solve has no half precision.
    free = free.astype(jnp.promote_types(free.dtype, jnp.float32))
    U, V = free[:columns], free[columns:]
    eye = jnp.eye(columns, dtype=free.dtype)
    A = U - U.T + V.T @ V
    inverse = jnp.linalg.inv(eye + A)  # A + A^T >= 0: no singular value of I + A is below 1
    W = jnp.concatenate([2 * inverse - eye, -2 * V @ inverse]) if rows > columns else 2 * inverse - eye
    return 1.5 * W - 0.5 * W @ (W.T @ W)


def _sup_norm(kernel: Float[Array, "*window in out"], groups: int) -> Float[Array, ""]:
    """An upper bound on ||K(w)||_2 over all frequencies, see `SpectralNorm`."""
    window = kernel.shape[:-2]
    points = [max(1, _FREQUENCIES * (size - 1)) for size in window]
    kernel = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    # By matrices of waves rather than an FFT: a kernel has few taps, and certificates read them as constants.
    waves = np.ones((1, 1), complex)
    for size, count in zip(window, points, strict=True):
        waves = np.kron(waves, np.exp(-2j * np.pi / count * np.outer(np.arange(count), np.arange(size))))
    # K(-w) is the conjugate of K(w): the half with the first index up to its middle has all norms.
    waves = waves[: (points[0] // 2 + 1) * math.prod(points[1:])]
    taps = kernel.reshape(math.prod(window), -1)
    shape = (len(waves), kernel.shape[-2], groups, kernel.shape[-1] // groups)
    real, imaginary = (
        jnp.moveaxis((jnp.asarray(part, kernel.dtype) @ taps).reshape(shape), 2, 0).reshape(
            -1, shape[1], shape[3]
        )
        for part in (waves.real, waves.imag)
    )
    matrices = jnp.block([[real, -imaginary], [imaginary, real]])
    norms = jax.vmap(lambda matrix: gram_norm(matrix, num_iterations=_GRAM_STEPS))(matrices)
    slack = math.prod(
        math.cos(math.pi * (size - 1) / count) for size, count in zip(window, points, strict=True)
    )
    return jnp.max(norms) / math.sqrt(slack)


def _check_bound(bound: Any) -> None:
    if not (isinstance(bound, int | float) and math.isfinite(bound) and bound > 0):
        raise ValueError(
            f"`bound` must be positive and finite, got {bound!r}. Use 1.0 for a 1-Lipschitz layer."
        )
