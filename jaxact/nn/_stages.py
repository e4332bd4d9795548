"""The repeated parts of a deep network: one layer or residual block each, dense or convolutional."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Inexact

from jaxact.numerics import check_count, full_precision
from jaxact.theory import initializers

Elementwise = Callable[[jax.Array], jax.Array]
Weights = Literal["gaussian", "orthogonal"]


def take_back(cls: type, bounds: Mapping[str, Callable[..., Any]], *, of: Sequence[str]) -> None:
    """Put `bounds`, which refuse, in the place of those that a class inherits though it computes something else.

    Args:
        cls: the class, just defined.
        bounds: by the method's name, what stands for it where its computation is not the inherited one.
        of: the methods that the bounds are bounds of.
    """

    def place(name: str) -> int:
        return next(index for index, each in enumerate(cls.__mro__) if name in vars(each))

    newest = min(place(name) for name in of if hasattr(cls, name))
    for name, refusal in bounds.items():
        if place(name) > newest:
            setattr(cls, name, refusal)


def refuse_bound(module: nnx.Module, *args: Any, **kwargs: Any) -> Float[Array, ""]:
    """A bound of a module that computes something else than what its parent bounds."""
    name = type(module).__name__
    raise NotImplementedError(
        f"{name} computes in a way of its own, of which the inherited bound knows nothing. Define the bound in {name} "
        "too, or bound it as any function of one array by lipschitz.certify."
    )


class Stage(nnx.Module):
    """One step h -> h' of a deep network: an affine map W, an activation f and, if asked, a norm.

    A subclass says in `__call__` how the three are put together, in `preactivation` what f is applied to, in
    `log_lipschitz` what the textbook's bound makes of it and, for the ellipsoid's, in `as_matrices` what it is as
    matrices; it is then a block that `Stack`, `MLP` and `ResNet` take. Where it defines the first two anew, it inherits
    no bound: another block's would be false. h is [batch, width] for a dense stage and
    [batch, *space, width] for a convolutional one.

    Attributes:
        affine: `nnx.Linear`, or `nnx.Conv` where a kernel size was given.
        norm: a flax norm over the last axis, or None.
        activation: the function f, or a module with parameters of its own.
        hidden_is_preactivation: whether h still waits for f (a read-out must then apply it).
    """

    hidden_is_preactivation: ClassVar[bool]

    def __init_subclass__(cls, **options: Any) -> None:
        """Take back what a class inherits as bounds of another computation than its own."""
        super().__init_subclass__(**options)
        bounds: dict[str, Callable[..., Any]] = {
            "log_lipschitz": Stage.log_lipschitz,
            "as_matrices": Stage.as_matrices,
        }
        take_back(cls, bounds, of=("__call__", "preactivation"))

    def __init__(
        self,
        width: int,
        activation: Elementwise | type[nnx.Module],
        *,
        norm: type[nnx.Module] | Callable[..., nnx.Module] | None = None,
        kernel_size: int | Sequence[int] | None = None,
        weights: Weights = "gaussian",
        sigma_w: ArrayLike = 1.0,
        sigma_b: ArrayLike = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draw the parameters.

        Args:
            width: features (channels) in and out.
            activation: any elementwise function, or a module class such as `PReLU`, made anew in every stage
                as `activation(width, rngs=rngs)`.
            norm: None, `nnx.BatchNorm`, `nnx.LayerNorm`, `nnx.RMSNorm`, or a callable that makes one from
                `(width, rngs=rngs)`, e.g. `functools.partial(nnx.BatchNorm, momentum=0.9)`.
            kernel_size: None for a dense stage; an integer or one a spatial axis for a convolution with zero
                padding and stride 1.
            weights: the law of W: "gaussian", independent entries of variance sigma_w^2 / fan_in, or
                "orthogonal", sigma_w times a uniformly drawn orthogonal matrix (for a convolution at its
                centre tap alone: delta-orthogonal, Xiao et al. 2018, Algorithm 2).
            sigma_w: standard deviation of the weights times sqrt(fan_in); scalar, may be traced.
            sigma_b: standard deviation of the Gaussian biases; scalar, may be traced.
            rngs: source of the `params` keys.

        Raises:
            ValueError: if `width`, `kernel_size`, `weights`, `sigma_w` or `sigma_b` is out of its range.
            TypeError: if `activation` is not callable.
        """
        check_count("width", width)
        self.affine = affine(
            width,
            width,
            kernel_size=kernel_size,
            weights=weights,
            sigma_w=sigma_w,
            sigma_b=sigma_b,
            rngs=rngs,
        )
        self.norm = nnx.data(make_norm(norm, width, rngs=rngs))
        self.activation = make_activation(activation, width, rngs=rngs)

    def preactivation(self, h: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """What f is applied to in this stage, same shape as `h`: norm(h), unless a subclass says otherwise."""
        return normed(self.norm, h)

    def log_lipschitz(self, lipschitz: ArrayLike) -> Float[Array, ""]:
        """Natural log of the textbook's upper bound on the stage's Lipschitz constant, norms at inference.

        Args:
            lipschitz: sup |f'|, a scalar.

        Raises:
            NotImplementedError: the subclass does not define it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no bound. Define {type(self).__name__}.log_lipschitz(self, lipschitz): "
            "it returns the natural logarithm of an upper bound on its Lipschitz constant, a scalar, for sup |f'| = "
            "`lipschitz`; or bound the network as any function of one array by lipschitz.certify."
        )

    def as_matrices(self) -> tuple[float, Float[Array, "width hidden"], Float[Array, "hidden width"]]:
        """(S, W, D) of a dense stage h' = S h + W f(D h) + b, a batch norm at inference folded in; for the ellipsoid.

        Raises:
            NotImplementedError: the subclass does not define it.
            ValueError: a convolution, or a norm that is not diagonal at inference.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no matrices. Define {type(self).__name__}.as_matrices(self): it returns "
            "(S, W, D) of h' = S h + W f(D h) + b, S a Python float, W [width, hidden], D [hidden, width]; or use "
            'method="product", or lipschitz.certify.'
        )


class Plain(Stage):
    """A layer without a skip: h' = W f(norm(h)) + b. Carries the preactivation, the theory's quantity."""

    hidden_is_preactivation = True

    def __call__(self, h: Float[Array, "*batch width"], *, activation: Elementwise | None = None):
        """One layer; `activation` replaces the stage's own for this call."""
        return self.affine((activation or self.activation)(self.preactivation(h)))

    def log_lipschitz(self, lipschitz):
        """log(sup|f'| ||W||_2 ||norm||), the norm's scale taken by its largest entry."""
        return jnp.log(lipschitz) + jnp.log(operator_norm(self.affine)) + jnp.log(norm_bound(self.norm))

    def as_matrices(self):
        """(0, W, norm)."""
        return 0.0, dense_matrix(self.affine), jnp.diag(diagonal(self.norm, self.affine))


class PreAct(Stage):
    """A pre-activation residual block (He et al. 2016b, Eq. 3): h' = h + W f(norm(h)) + b."""

    hidden_is_preactivation = True

    def __call__(self, h: Float[Array, "*batch width"], *, activation: Elementwise | None = None):
        """One block; `activation` replaces the stage's own for this call."""
        return h + self.affine((activation or self.activation)(self.preactivation(h)))

    def log_lipschitz(self, lipschitz):
        """log(1 + sup|f'| ||W||_2 ||norm||), the norm's scale taken by its largest entry."""
        return jnp.log1p(lipschitz * operator_norm(self.affine) * norm_bound(self.norm))

    def as_matrices(self):
        """(1, W, norm)."""
        return 1.0, dense_matrix(self.affine), jnp.diag(diagonal(self.norm, self.affine))


class PostAct(Stage):
    """A post-activation residual block (He et al. 2016a, Eq. 1): h' = f(h + norm(W h + b))."""

    hidden_is_preactivation = False

    def preactivation(self, h):
        """The sum that f is applied to, h + norm(W h + b)."""
        return h + normed(self.norm, self.affine(h))

    def __call__(self, h: Float[Array, "*batch width"], *, activation: Elementwise | None = None):
        """One block; `activation` replaces the stage's own for this call."""
        return (activation or self.activation)(self.preactivation(h))

    def log_lipschitz(self, lipschitz):
        """log(sup|f'| (1 + ||S W||_2)), a batch norm's scale S folded into W; other norms by their bound."""
        scale = _folded_scale(self.norm)
        if scale is None:
            branch = operator_norm(self.affine) * norm_bound(self.norm)
        else:
            branch = operator_norm(self.affine, output_scale=scale)
        return jnp.log(lipschitz) + jnp.log1p(branch)

    def as_matrices(self):
        """(0, I, I + norm W)."""
        eye = jnp.eye(self.affine.kernel[...].shape[-1])
        branch = diagonal(self.norm, self.affine)[:, None] * dense_matrix(self.affine)
        return 0.0, eye, eye + branch


def affine(
    in_features: int,
    out_features: int,
    *,
    kernel_size: int | Sequence[int] | None = None,
    strides: int = 1,
    weights: Weights = "gaussian",
    sigma_w: ArrayLike = 1.0,
    sigma_b: ArrayLike = 0.0,
    rngs: nnx.Rngs,
) -> nnx.Linear | nnx.Conv:
    """An affine map W x + b of flax with weights at sigma_w and biases at sigma_b.

    "gaussian" is `theory.initializers.gaussian`; "orthogonal" is `orthogonal` there, and `delta_orthogonal` for a
    convolution. The mean square of W x is sigma_w^2 times that of x either way.
    """
    check_count("in_features", in_features)
    check_count("out_features", out_features)
    orthogonal = initializers.orthogonal if kernel_size is None else initializers.delta_orthogonal
    laws = {"gaussian": initializers.gaussian, "orthogonal": orthogonal}
    if weights not in laws:
        raise ValueError(f'`weights` must be "gaussian" or "orthogonal", got {weights!r}.')
    sizes = (
        () if kernel_size is None else (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
    )
    for size in sizes:
        check_count("kernel_size", size)
    kernel_init, bias_init = laws[weights](sigma_w), initializers.bias(sigma_b)
    if kernel_size is None:
        return nnx.Linear(in_features, out_features, kernel_init=kernel_init, bias_init=bias_init, rngs=rngs)
    return nnx.Conv(
        in_features,
        out_features,
        sizes,
        strides=strides,
        kernel_init=kernel_init,
        bias_init=bias_init,
        rngs=rngs,
    )


def make_norm(norm: Any, width: int, *, rngs: nnx.Rngs) -> nnx.Module | None:
    """Make the norm over `width` features that a caller named by its class, or None."""
    if norm is None:
        return None
    if isinstance(norm, nnx.Module) or not callable(norm):
        raise TypeError(
            f"`norm` must be None, a flax norm class or a callable (width, rngs=...) -> module, got {norm!r}. "
            "Pass the class, such as nnx.BatchNorm: every stage makes its own."
        )
    return norm(width, rngs=rngs)


def normed(norm: Any, h: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    """norm(h) in the type of h, which a batch norm's float32 statistics would widen (flax 0.12.8); h without a norm."""
    return h if norm is None else norm(h).astype(h.dtype)


def make_activation(activation: Any, width: int, *, rngs: nnx.Rngs) -> Any:
    """Return a function as it is; make a module from its class."""
    if isinstance(activation, type) and issubclass(activation, nnx.Module):
        return activation(width, rngs=rngs)  # type: ignore[call-arg]
    if isinstance(activation, str) or not callable(activation):
        raise TypeError(
            f"`activation` must be an elementwise function or a module class, got {activation!r}. "
            "Use jaxact.activations.parse for a name."
        )
    return activation


@full_precision
def operator_norm(
    layer: nnx.Linear | nnx.Conv, *, output_scale: Float[Array, " out"] | None = None
) -> Float[Array, ""]:
    """||S W||_2 of an affine layer with its outputs scaled by S: exact for a dense one, else an upper bound.

    For a convolution with zero padding, of any image, the bound is the least of three: the sum over taps of ||K_t||_2
    (triangle inequality); sqrt(number of taps) times the 2-norm of the kernel as a matrix [taps in, out] or
    [in, taps out] (Singla & Feizi 2021, Theorem 1); and the norm on an endless grid, max_w ||K(w)|| with
    K(w) = sum_t K_t e^(-i w t) (Sedghi et al. 2019), the limit of large images. The last is looked for at 10 k
    frequencies along an axis of k taps and divided by cos(pi / 20 (k - 1) / k) for each axis, by which a trigonometric
    polynomial of degree (k - 1) / 2 may rise between them (Ehlich & Zeller 1964): 1.1 % in all for 3 x 3 taps.

    Args:
        layer: the layer; its kernel is [in, out] or [*taps, in, out].
        output_scale: S, one factor an output feature; None is the identity.
    """
    kernel = _kernel(layer)
    if output_scale is not None:
        kernel = kernel * output_scale
    if kernel.ndim == 2:
        return spectral_norm(kernel)
    taps = kernel.reshape(-1, *kernel.shape[-2:])
    tall = taps.reshape(-1, taps.shape[-1])
    wide = jnp.moveaxis(taps, 0, 1).reshape(taps.shape[1], -1)
    as_matrix = jnp.minimum(spectral_norm(tall), spectral_norm(wide)) * taps.shape[0] ** 0.5
    by_taps = jnp.minimum(as_matrix, jnp.sum(jax.vmap(spectral_norm)(taps)))
    return jnp.minimum(by_taps, _endless_norm(kernel))


def _endless_norm(kernel: Float[Array, "*taps in out"]) -> Float[Array, ""]:
    """The norm of a convolution on an endless grid, from above; see `operator_norm`."""
    sizes = kernel.shape[:-2]
    # The kernel is real, so that half of the frequencies of the last axis have the norms of the other half.
    transformed = jnp.fft.rfftn(kernel, [10 * size for size in sizes], axes=range(len(sizes)))
    highest = jnp.max(jax.vmap(spectral_norm)(transformed.reshape(-1, *kernel.shape[-2:])))
    return highest / math.prod(math.cos(math.pi / 20 * (size - 1) / size) for size in sizes)


def _is_flaxs_own(module: nnx.Module) -> bool:
    """Whether what a module computes is what the class of flax computes that it is derived from."""
    return type(module).__call__.__module__.startswith("flax.")


def _kernel(layer: nnx.Linear | nnx.Conv) -> Float[Array, "*taps in out"]:
    """The kernel that a layer multiplies by."""
    if not _is_flaxs_own(layer):
        raise ValueError(
            f"{type(layer).__name__} computes in a way of its own, of which the norm of its kernel is no bound. "
            "Use nnx.Linear or nnx.Conv, or bound the network by lipschitz.certify."
        )
    return layer.kernel[...]


def spectral_norm(matrix: Inexact[Array, "rows columns"]) -> Float[Array, ""]:
    """Largest singular value by a full decomposition; exact to rounding."""
    return jnp.linalg.svd(matrix, compute_uv=False)[0]


def _folded_scale(norm: nnx.Module | None) -> Float[Array, "*layer width"] | None:
    """The factor a feature that a batch norm at inference multiplies by, or None for any other norm."""
    if not (isinstance(norm, nnx.BatchNorm) and _is_flaxs_own(norm)):
        return None
    scale = jax.lax.rsqrt(norm.var[...] + norm.epsilon)
    return scale if norm.scale is None else scale * norm.scale[...]


def dense_matrix(layer: nnx.Linear | nnx.Conv) -> Float[Array, "out in"]:
    """The matrix of a dense layer."""
    kernel = _kernel(layer)
    if kernel.ndim != 2:
        raise ValueError(
            f"The layer must be dense for its ellipsoid, got a kernel of shape {kernel.shape}. "
            'Use method="product", or lipschitz.certify.'
        )
    return kernel.T


def diagonal(norm: nnx.Module | None, layer: nnx.Linear | nnx.Conv) -> Float[Array, " width"]:
    """What a norm over the layer's features multiplies by at inference, if it is diagonal."""
    if norm is None:
        return jnp.ones(layer.kernel[...].shape[-1])
    scale = _folded_scale(norm)
    if scale is None:
        raise ValueError(
            f"The norm must be None or nnx.BatchNorm for an ellipsoid, got {type(norm).__name__}, which is not "
            'linear at inference. Use method="product".'
        )
    return scale


def norm_bound(norm: nnx.Module | None) -> Float[Array, ""]:
    """An upper bound on a norm's Lipschitz constant at inference.

    Batch norm is diagonal: exact. Layer and RMS norm: x / sqrt(mean x^2 + eps) is steepest at 0, where its
    Jacobian is I / sqrt(eps); centring is a projection, of norm 1.
    """
    if norm is None:
        return jnp.ones(())
    folded = _folded_scale(norm)
    if folded is not None:
        return jnp.max(jnp.abs(folded))
    if isinstance(norm, nnx.LayerNorm | nnx.RMSNorm) and _is_flaxs_own(norm):
        scale = 1.0 if norm.scale is None else jnp.max(jnp.abs(norm.scale[...]))
        return jnp.asarray(scale * norm.epsilon**-0.5)
    raise ValueError(
        f"No Lipschitz bound is known for the norm {type(norm).__name__}. "
        "Known are None, nnx.BatchNorm, nnx.LayerNorm and nnx.RMSNorm."
    )
