"""Initialisers in the style of `jax.nn.initializers`, at the scales that theory gives for an activation.

Each factory returns `init(key, shape, dtype=None, out_sharding=None)`, for the `kernel_init` and `bias_init` of Flax
(Linen and NNX), Haiku's `w_init` or one's own parameters. Kernels are [*receptive, in, out], as in Flax; fan_in is
their size over `out`. Initialisers are immutable, hashable, equal if their numbers are, and can be pickled.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import Initializer
from jaxtyping import Array, ArrayLike, Float

from jaxact.numerics import check_count, check_scale
from jaxact.theory._checks import check_number, check_real
from jaxact.theory._initialization import gain
from jaxact.theory._phase import critical_point

__all__ = [
    "Branch",
    "Critical",
    "bias",
    "critical",
    "critical_bias",
    "critical_delta_orthogonal",
    "critical_gaussian",
    "critical_orthogonal",
    "delta_orthogonal",
    "fixup",
    "gaussian",
    "lsuv",
    "orthogonal",
    "re_zero",
    "scaled",
    "skip_init",
    "variance_preserving",
]

Params = TypeVar("Params")


def gaussian(sigma_w: ArrayLike = 1.0) -> Initializer:
    """Draw independent weights of the mean-field scale.

        W_ij ~ N(0, sigma_w^2 / fan_in)

    Args:
        sigma_w: weight scale, nonnegative; a scalar, may be traced (the initialiser is then not hashable).

    Returns:
        An initialiser of kernels [*receptive, in, out].

    Raises:
        TypeError: sigma_w is no real number.
        ValueError: sigma_w is negative or not finite; when called, a shape with fewer than two axes, or a dtype of
            integers.

    Example:
        >>> gaussian(2.0)(jax.random.key(0), (3, 3, 16, 32)).shape
        (3, 3, 16, 32)
    """
    return _Gaussian(check_scale("sigma_w", sigma_w))


def orthogonal(sigma_w: ArrayLike = 1.0) -> Initializer:
    """Draw a uniformly distributed orthogonal matrix that keeps the mean square of its input, times sigma_w^2.

        W = sigma_w max(1, sqrt(out / fan_in)) Q,   Q Haar-distributed [fan_in, out], for h' = W^T f(h)

    Q has orthonormal rows or columns, whichever are fewer. Theory speaks of the mean square, which must come out as
    sigma_w^2 times that of the input, as with `gaussian`. A square or a narrowing Q does that as it is: an output is
    the projection on one of `out` random orthonormal directions. A widening one keeps the norm, which is then spread
    over more entries: hence the factor. So W^T W = sigma_w^2 I for out <= fan_in, else W W^T = sigma_w^2 (out / fan_in)
    I. (`jax.nn.initializers.orthogonal` lacks the factor; "scaled uniform orthogonal" in Martens et al. 2021.)
    Saxe et al. 2014, arXiv:1312.6120, section 3.

    A convolution's kernel is orthogonal as the map from one patch; see `delta_orthogonal` for the whole signal.

    Args:
        sigma_w: weight scale, nonnegative; a scalar, may be traced (the initialiser is then not hashable).

    Returns:
        An initialiser of kernels [*receptive, in, out].

    Raises:
        TypeError: sigma_w is no real number.
        ValueError: sigma_w is negative or not finite; when called, a shape with fewer than two axes, or a dtype of
            integers.

    Example:
        >>> W = orthogonal(2.0)(jax.random.key(0), (8, 4))
        >>> bool(jnp.allclose(W.T @ W, 4 * jnp.eye(4), atol=1e-5))
        True
    """
    return _Orthogonal(check_scale("sigma_w", sigma_w))


def delta_orthogonal(sigma_w: ArrayLike = 1.0) -> Initializer:
    """Draw a convolution that is an orthogonal matrix at its centre tap and zero elsewhere.

        W[centre] = sigma_w sqrt(out / in) Q,   Q Haar-distributed [in, out] with orthonormal rows

    Xiao et al. 2018, "Dynamical isometry and a mean field theory of CNNs", arXiv:1806.05393, Algorithm 2: at stride 1
    the norm of a signal of any size is multiplied by sigma_w sqrt(out / in), whatever the padding; its mean square by
    sigma_w^2, as theory wants it (see `orthogonal`; `jax.nn.initializers.delta_orthogonal` lacks the square root).
    The centre of an axis of k taps is tap (k - 1) // 2, the one under which "SAME" and "CIRCULAR" padding put the
    output.

    Args:
        sigma_w: weight scale, nonnegative; a scalar, may be traced (the initialiser is then not hashable).

    Returns:
        An initialiser of kernels [*receptive, in, out].

    Raises:
        TypeError: sigma_w is no real number.
        ValueError: sigma_w is negative or not finite; when called, a shape with fewer than three axes, with an empty
            receptive axis, or with out < in, where no isometry exists; or a dtype of integers.

    Example:
        >>> W = delta_orthogonal()(jax.random.key(0), (3, 4, 4))
        >>> float(jnp.abs(W[0]).sum() + jnp.abs(W[2]).sum()), bool(jnp.allclose(W[1].T @ W[1], jnp.eye(4), atol=1e-5))
        (0.0, True)
    """
    return _DeltaOrthogonal(check_scale("sigma_w", sigma_w))


def bias(sigma_b: ArrayLike = 0.0) -> Initializer:
    """Draw independent biases of the mean-field scale.

        b_i ~ N(0, sigma_b^2)

    Args:
        sigma_b: bias scale, nonnegative; a scalar, may be traced (the initialiser is then not hashable).

    Returns:
        An initialiser of arrays of any shape.

    Raises:
        TypeError: sigma_b is no real number.
        ValueError: sigma_b is negative or not finite; when called, a dtype of integers.

    Example:
        >>> float(bias()(jax.random.key(0), ()))
        0.0
    """
    return _Bias(check_scale("sigma_b", sigma_b))


def variance_preserving(activation: Any) -> Initializer:
    """Draw independent weights that keep the hidden states' second moment at 1, biases being 0.

        W_ij ~ N(0, gain(activation)^2 / fan_in)

    For relu He et al. 2015, "Delving deep into rectifiers", equation 10; see `theory.gain`.

    Args:
        activation: an `Activation`.

    Returns:
        An initialiser of kernels [*receptive, in, out].

    Raises:
        TypeError: as `theory.gain`.
        ValueError: no such scale exists (tanh).

    Example:
        >>> from jaxact import activations
        >>> variance_preserving(activations.relu) == gaussian(gain(activations.relu))
        True
    """
    return gaussian(gain(activation))


class Critical(NamedTuple):
    """The initialisers of a layer at the edge of chaos, named as the layers of Flax name them.

    Attributes:
        kernel_init: of the weights.
        bias_init: of the biases; without them the layer is not at the edge, unless they are 0.
    """

    kernel_init: Initializer
    bias_init: Initializer


def critical(
    activation: Any,
    *,
    sigma_b: float | None = None,
    q_star: float | None = None,
    weights: Literal["gaussian", "orthogonal", "delta_orthogonal"] = "orthogonal",
) -> Critical:
    """Draw weights and biases at the edge of chaos.

        h' = W^T f(h) + b,   sigma_w^2 E f'(sqrt(q) z)^2 = 1,   q = sigma_w^2 E f(sqrt(q) z)^2 + sigma_b^2

    Either sigma_b or q is given, the other and sigma_w follow. A layer is there with both initialisers alone:
    `nnx.Linear(64, 64, **critical(f, q_star=0.1)._asdict(), rngs=rngs)`. See `critical_gaussian`, `critical_orthogonal`
    and `critical_delta_orthogonal` for the laws.

    Args:
        activation: an `Activation`.
        sigma_b: bias scale, as in `theory.critical_point`; 0 if neither it nor q_star is given.
        q_star: second moment of the preactivations at the fixed point, instead of sigma_b.
        weights: law of the weights; "delta_orthogonal" for convolutions.

    Returns:
        A `Critical`: `kernel_init` and `bias_init`.

    Raises:
        TypeError: as `theory.critical_point`.
        ValueError: as `theory.critical_point`, or another law.

    Example:
        >>> from jaxact import activations
        >>> init = critical(activations.tanh, q_star=0.1)
        >>> W, b = init.kernel_init(jax.random.key(0), (4, 4)), init.bias_init(jax.random.key(1), (4,))
        >>> bool((W.T @ W)[0, 0] > 1), bool((b != 0).all())
        (True, True)
    """
    laws = {"gaussian": gaussian, "orthogonal": orthogonal, "delta_orthogonal": delta_orthogonal}
    if weights not in laws:
        raise ValueError(f"`weights` must be one of {', '.join(map(repr, laws))}, got {weights!r}.")
    sigma_w, sigma_b = _critical(activation, sigma_b, q_star)
    return Critical(laws[weights](sigma_w), bias(sigma_b))


def critical_gaussian(
    activation: Any,
    *,
    sigma_b: Float[ArrayLike, ""] | None = None,
    q_star: Float[ArrayLike, ""] | None = None,
) -> Initializer:
    """Draw independent weights at the edge of chaos.

        W_ij ~ N(0, sigma_w^2 / fan_in),   sigma_w^2 E f'(sqrt(q) z)^2 = 1 at the fixed point q

    Gradients then neither vanish nor explode with depth, to first order (Schoenholz et al. 2017, "Deep information
    propagation"; Hayou et al. 2019). The biases belong to it: take both from `critical`.

    Whether the fixed point attracts is not implied; where it repels (gelu) unit inputs leave it: check
    `theory.mean_field(...).phase`.

    Args:
        activation: an `Activation`.
        sigma_b: bias scale, as in `theory.critical_point`; 0 if neither it nor q_star is given.
        q_star: second moment of the preactivations at the fixed point, instead of sigma_b; a UserWarning names the
            sigma_b that it asks for.

    Returns:
        An initialiser of kernels [*receptive, in, out].

    Raises:
        TypeError: as `theory.critical_point`.
        ValueError: as `theory.critical_point`.

    Example:
        >>> from jaxact import activations
        >>> critical_gaussian(activations.tanh) == gaussian(1.0)
        True
    """
    return gaussian(_critical_scale(activation, sigma_b, q_star))


def critical_orthogonal(
    activation: Any,
    *,
    sigma_b: Float[ArrayLike, ""] | None = None,
    q_star: Float[ArrayLike, ""] | None = None,
) -> Initializer:
    """Draw orthogonal weights at the edge of chaos: `orthogonal` at the sigma_w of `critical_gaussian`.

    At infinite width signals and mean gradients are as with Gaussian weights; the Jacobian's singular values spread
    less, for tanh-like activations at small q_star hardly at all (Pennington et al. 2017, "Resurrecting the sigmoid in
    deep learning through dynamical isometry").

    Whether the fixed point attracts is not implied; where it repels (gelu) unit inputs leave it: check
    `theory.mean_field(...).phase`.

    Args:
        activation: an `Activation`.
        sigma_b: as in `critical_gaussian`.
        q_star: as in `critical_gaussian`.

    Returns:
        An initialiser of kernels [*receptive, in, out].

    Raises:
        TypeError: as `theory.critical_point`.
        ValueError: as `theory.critical_point`.

    Example:
        >>> from jaxact import activations
        >>> W = critical_orthogonal(activations.relu)(jax.random.key(0), (4, 4))
        >>> bool(jnp.allclose(W.T @ W, 2 * jnp.eye(4), atol=1e-5))
        True
    """
    return orthogonal(_critical_scale(activation, sigma_b, q_star))


def critical_delta_orthogonal(
    activation: Any,
    *,
    sigma_b: Float[ArrayLike, ""] | None = None,
    q_star: Float[ArrayLike, ""] | None = None,
) -> Initializer:
    """Draw convolutions at the edge of chaos: `delta_orthogonal` at the sigma_w of `critical_gaussian`.

    With it Xiao et al. 2018 (section 3) trained plain convolutional networks of 10,000 layers.

    Whether the fixed point attracts is not implied; where it repels (gelu) unit inputs leave it: check
    `theory.mean_field(...).phase`.

    Args:
        activation: an `Activation`.
        sigma_b: as in `critical_gaussian`.
        q_star: as in `critical_gaussian`.

    Returns:
        An initialiser of kernels [*receptive, in, out], out >= in.

    Raises:
        TypeError: as `theory.critical_point`.
        ValueError: as `theory.critical_point` and `delta_orthogonal`.

    Example:
        >>> from jaxact import activations
        >>> critical_delta_orthogonal(activations.tanh) == delta_orthogonal(1.0)
        True
    """
    return delta_orthogonal(_critical_scale(activation, sigma_b, q_star))


def critical_bias(
    activation: Any,
    *,
    sigma_b: Float[ArrayLike, ""] | None = None,
    q_star: Float[ArrayLike, ""] | None = None,
) -> Initializer:
    """Draw the biases that belong to the other critical initialisers; `critical` gives both.

        b_i ~ N(0, sigma_b^2)

    Whether the fixed point attracts is not implied; where it repels (gelu) unit inputs leave it: check
    `theory.mean_field(...).phase`.

    Args:
        activation: an `Activation`.
        sigma_b: as in `critical_gaussian`; handed through.
        q_star: as in `critical_gaussian`; fixes sigma_b.

    Returns:
        An initialiser of arrays of any shape.

    Raises:
        TypeError: as `theory.critical_point`.
        ValueError: as `theory.critical_point`.

    Example:
        >>> from jaxact import activations
        >>> float(critical_bias(activations.relu)(jax.random.key(0), ()))
        0.0
    """
    return bias(_critical(activation, sigma_b, q_star)[1])


def scaled(initializer: Initializer, factor: Float[ArrayLike, ""]) -> Initializer:
    """Multiply what another initialiser draws.

        W = factor W_0,   W_0 as `initializer` draws it

    Args:
        initializer: one of this module, of `jax.nn.initializers`, or any `init(key, shape, dtype)`.
        factor: a finite number.

    Returns:
        An initialiser of the same shapes.

    Raises:
        TypeError: `initializer` is not callable.
        ValueError: `factor` is not finite.

    Example:
        >>> float(scaled(jax.nn.initializers.ones, 0.5)(jax.random.key(0), ()))
        0.5
    """
    if not callable(initializer):
        raise TypeError(f"`initializer` must be callable as init(key, shape, dtype), got {initializer!r}.")
    number = check_real("factor", factor)
    if not math.isfinite(number):
        raise ValueError(f"`factor` must be finite, got {factor}. Use jax.nn.initializers.zeros for none.")
    return _Scaled(initializer, number)


class Branch(NamedTuple):
    """Kernel initialisers for the layers of a residual branch.

    Attributes:
        inner: for every layer but the last.
        last: for the last layer.
    """

    inner: Initializer
    last: Initializer


def fixup(
    num_blocks: int | np.integer, num_layers_per_branch: int | np.integer, *, base: Initializer | None = None
) -> Branch:
    """Scale the kernels of residual branches so that a step changes the output as much at every depth.

        inner layers: num_blocks^(-1 / (2 m - 2)) W_0,   last layer: 0,   m = num_layers_per_branch

    Zhang, Dauphin & Ma 2019, "Fixup initialization: residual learning without normalization", arXiv:1901.09321, section
    3, rules 1 and 2: every branch starts as zero, its gradient at num_blocks^(-1/2), and the network's output moves by
    Theta(learning rate) whatever num_blocks. The paper also starts the read-out at zero (rule 1) and adds scalar
    parameters to each branch, a bias 0 before every layer and activation and a multiplier 1 (rule 3): those are
    layers, not initialisers.

    Args:
        num_blocks: residual blocks in the network, L in the paper.
        num_layers_per_branch: layers with kernels in a branch, at least 2 (with one, use zeros).
        base: what an inner layer would have without skips; N(0, 2 / fan_in) (He et al. 2015) if None, for relu.

    Returns:
        A `Branch`: `inner` and `last`, for `kernel_init`.

    Raises:
        TypeError: `base` is not callable.
        ValueError: a count is out of its range.

    Example:
        >>> init = fixup(64, 2)
        >>> init.inner == scaled(gaussian(2**0.5), 1 / 8)
        True
    """
    num_blocks = check_count("num_blocks", num_blocks)
    num_layers_per_branch = check_count("num_layers_per_branch", num_layers_per_branch, 2)
    factor = float(num_blocks) ** (-1 / (2 * num_layers_per_branch - 2))
    return Branch(scaled(gaussian(2**0.5) if base is None else base, factor), _Constant(0.0))


def skip_init(num_blocks: int | np.integer | None = None) -> Initializer:
    """Start the multiplier of a residual branch, h' = h + alpha branch(h), at 0 or at num_blocks^(-1/2).

    De & Smith 2020, "Batch normalization biases residual blocks towards the identity function in deep networks",
    arXiv:2002.10444, section 3.3: SkipInit starts alpha at 0; num_blocks^(-1/2), which keeps the output's variance
    bounded with live branches, trains deep networks too, 1 does not.

    Args:
        num_blocks: None for 0, else residual blocks in the network.

    Returns:
        An initialiser of arrays of any shape: `self.param("alpha", skip_init(), ())`, `nnx.Param(skip_init()(key,
        ()))`, or the `scale_init` of a branch's last norm.

    Raises:
        ValueError: `num_blocks` is not a positive integer.

    Example:
        >>> float(skip_init(4)(jax.random.key(0), ()))
        0.5
    """
    if num_blocks is None:
        return _Constant(0.0)
    num_blocks = check_count("num_blocks", num_blocks)
    return _Constant(num_blocks**-0.5)


def re_zero() -> Initializer:
    """Start the multiplier of a residual branch, h' = h + alpha branch(h), at 0.

    Bachlechner et al. 2021, "ReZero is all you need: fast convergence at large depth", arXiv:2003.04887, equation 1.
    The Jacobian at initialisation is the identity. The number is `skip_init`'s; the papers differ in what they keep
    of the block.

    Returns:
        An initialiser of arrays of any shape.

    Example:
        >>> float(re_zero()(jax.random.key(0), ()))
        0.0
    """
    return _Constant(0.0)


def lsuv(
    variances: Callable[[Params], Sequence[ArrayLike]],
    params: Params,
    *,
    kernels: Callable[[Params], Any],
    target: Float[ArrayLike, ""] = 1.0,
    tol: Float[ArrayLike, ""] = 0.01,
    max_steps: int | np.integer = 10,
) -> Params:
    """Rescale kernels layer by layer until every layer's output has a given variance on a batch of data.

        W_l <- W_l sqrt(target / Var[output of layer l]),   l in order, until |Var - target| <= tol target

    Mishkin & Matas 2016, "All you need is a good init", arXiv:1511.06422, Algorithm 1 (layer-sequential unit-variance);
    there the kernels are drawn orthogonal first. Without a bias one step a layer is exact, for its output is linear in
    W_l; with biases, norms or skips it iterates. All in one loop, one trace of `variances` whatever the number of
    layers; may be called under `jit`.

    Args:
        variances: params -> the variance of the output of each layer on a fixed batch, in the order of the kernels:
            one scalar a kernel [*receptive, in, out], or one vector [layer] a stack of them [layer, *receptive, in,
            out]. Layers must come after those that feed them.
        params: any pytree with the kernels as leaves: Linen's variables, `nnx.state(model, nnx.Param)`, a dictionary.
        kernels: params -> its kernels, as a list or any pytree of them, e.g. `lambda p: [p["first"]["kernel"],
            p["second"]["kernel"]]`. Only looks leaves up; called with placeholders in their places.
        target: the variance wanted, positive.
        tol: relative to the target.
        max_steps: per layer; one that is not there then stays where it is, as in the paper.

    Returns:
        The params with rescaled kernels; nothing else is changed.

    Raises:
        ValueError: a number is out of its range, `kernels` picks what is no leaf, or variances and kernels do not
            match; or, where values are concrete, the variance of a layer is zero or not finite (NaN under `jit`).

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (256, 8))
        >>> params = {"kernel": jnp.eye(8) * 5, "bias": jnp.zeros(8)}
        >>> found = lsuv(lambda p: [jnp.var(x @ p["kernel"] + p["bias"])], params, kernels=lambda p: [p["kernel"]])
        >>> round(float(jnp.var(x @ found["kernel"])), 4)
        1.0
    """
    for name, value in (("target", target), ("tol", tol)):
        if not (check_number(name, value) > 0):
            raise ValueError(
                f"`{name}` must be positive and finite, got {value}. 1 and 0.01 are the usual ones."
            )
    max_steps = check_count("max_steps", max_steps)
    leaves, structure = jax.tree.flatten(params)
    chosen = _chosen(kernels, structure)
    shapes = _shapes(jax.eval_shape(variances, params), [leaves[i] for i in chosen])
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    dtype = jnp.result_type(jnp.float32, *(leaves[i] for i in chosen))

    def rescaled(factors: Array) -> Params:
        new = list(leaves)
        for i, shape, part in zip(chosen, shapes, jnp.split(factors, ends[:-1]), strict=True):
            kernel = jnp.asarray(leaves[i])
            factor = part.reshape(*shape, *[1] * (kernel.ndim - len(shape)))
            new[i] = (kernel * factor).astype(kernel.dtype)
        return jax.tree.unflatten(structure, new)

    def measured(factors: Array) -> Array:
        found = jax.tree.leaves(variances(rescaled(factors)))
        return jnp.concatenate([jnp.atleast_1d(each).astype(dtype) for each in found])

    def layer(index: Array, factors: Array) -> Array:
        def unfinished(state: tuple[Array, Array, Array]) -> Array:
            _, variance, step = state
            return (jnp.abs(variance / target - 1) > tol) & (step < max_steps)

        def rescale(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            factors, variance, step = state
            factors = factors.at[index].multiply(jnp.sqrt(target / variance))
            return factors, measured(factors)[index], step + 1

        start = (factors, measured(factors)[index], jnp.zeros((), jnp.int32))
        factors, variance, _ = jax.lax.while_loop(unfinished, rescale, start)
        return factors.at[index].set(jnp.where(jnp.isfinite(variance), factors[index], jnp.nan))

    factors = jax.lax.fori_loop(0, ends[-1], layer, jnp.ones(ends[-1], dtype))
    if not isinstance(factors, jax.core.Tracer) and not np.isfinite(np.asarray(factors)).all():
        index = int(np.argmin(np.isfinite(np.asarray(factors))))
        raise ValueError(
            f"`variances` must be positive and finite, but that of layer {index} (counting from 0) is not. "
            "Leave kernels that start at zero out, and give a batch of more than one input."
        )
    return rescaled(factors)


def _chosen(kernels: Callable[[Any], Any], structure: Any) -> list[int]:
    """The positions of the kernels among the leaves."""
    chosen = jax.tree.leaves(kernels(jax.tree.unflatten(structure, range(structure.num_leaves))))
    if not chosen or len(set(chosen)) < len(chosen) or not all(isinstance(i, int) for i in chosen):
        raise ValueError(
            f"`kernels` must pick different leaves of `params`, at least one, got {chosen}. "
            'Return them as they are, as in lambda p: [p["kernel"]].'
        )
    return chosen


def _shapes(variances: Any, kernels: list) -> list[tuple[int, ...]]:
    """The shape of each kernel's variances: () or, for a stack, (layer,)."""
    shapes = [v.shape for v in jax.tree.leaves(variances)]
    matches = len(shapes) == len(kernels) and all(
        shape == () or shape == jnp.shape(kernel)[:1] for shape, kernel in zip(shapes, kernels, strict=False)
    )
    if not matches:
        raise ValueError(
            "`variances` must return a scalar for each kernel, or a vector [layer] for a stack of kernels [layer, "
            f"...], got shapes {shapes} for kernels {[jnp.shape(kernel) for kernel in kernels]}. "
            "Reduce each layer's output over the batch and its features: jnp.var(h)."
        )
    return shapes


@dataclass(frozen=True)
class _Gaussian:
    sigma_w: Any

    def __call__(self, key: Any, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Array:
        return _normal(key, shape, self.sigma_w / math.sqrt(max(_fan_in(shape), 1)), dtype, out_sharding)


@dataclass(frozen=True)
class _Orthogonal:
    sigma_w: Any

    def __call__(self, key: Any, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Array:
        matrix = _haar(key, _fan_in(shape), shape[-1], self.sigma_w, dtype)
        return _placed(matrix.reshape(shape), out_sharding)


@dataclass(frozen=True)
class _DeltaOrthogonal:
    sigma_w: Any

    def __call__(self, key: Any, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Array:
        if len(shape) < 3 or shape[-1] < shape[-2] or 0 in shape[:-2]:
            raise ValueError(
                f"`shape` must be [*receptive, in, out] with receptive axes of taps and out >= in, got {tuple(shape)}. "
                "Use orthogonal for a dense layer or one that narrows."
            )
        centre = tuple((size - 1) // 2 for size in shape[:-2])
        matrix = _haar(key, shape[-2], shape[-1], self.sigma_w, dtype)
        return _placed(jnp.zeros(shape, matrix.dtype).at[centre].set(matrix), out_sharding)


@dataclass(frozen=True)
class _Bias:
    sigma_b: Any

    def __call__(self, key: Any, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Array:
        # Each draw costs a third of a second to compile.
        if not isinstance(self.sigma_b, jax.core.Tracer) and self.sigma_b == 0:
            return jnp.zeros(shape, _floating(dtype), out_sharding=out_sharding)
        return _normal(key, shape, self.sigma_b, dtype, out_sharding)


@dataclass(frozen=True)
class _Scaled:
    base: Initializer
    factor: float

    def __call__(self, key: Any, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Array:
        # Older initialisers know no sharding.
        sharding = {} if out_sharding is None else {"out_sharding": out_sharding}
        return self.base(key, shape, _floating(dtype), **sharding) * self.factor


@dataclass(frozen=True)
class _Constant:
    value: float

    def __call__(self, key: Any, shape: Any, dtype: Any = None, out_sharding: Any = None) -> Array:
        return jnp.full(shape, self.value, _floating(dtype), out_sharding=out_sharding)


def _normal(key: Any, shape: Any, deviation: Any, dtype: Any, out_sharding: Any) -> Array:
    standard = jax.random.normal(key, shape, _floating(dtype), out_sharding=out_sharding)
    return (standard * deviation).astype(standard.dtype)  # a traced scale may be wider


def _haar(key: Any, rows: int, columns: int, sigma_w: Any, dtype: Any) -> Array:
    """An orthogonal matrix, scaled so that the mean square of x^T W is sigma_w^2 times that of x."""
    dtype = _floating(dtype)
    if not rows * columns:
        return jnp.zeros((rows, columns), dtype)
    # There is no QR decomposition in half precision.
    wide = jnp.promote_types(dtype, jnp.float32)
    factor = sigma_w * max(1.0, math.sqrt(columns / rows))
    return (jax.random.orthogonal(key, rows, (), wide, columns) * factor).astype(dtype)


def _placed(kernel: Array, out_sharding: Any) -> Array:
    return kernel if out_sharding is None else jax.sharding.reshard(kernel, out_sharding)


def _fan_in(shape: Sequence[int]) -> int:
    if len(shape) < 2:
        raise ValueError(
            f"`shape` must be that of a kernel, [*receptive, in, out], got {tuple(shape)}. "
            "Use critical_bias, or zeros, for vectors."
        )
    return math.prod(shape[:-1])


def _floating(dtype: Any) -> Any:
    dtype = jnp.result_type(float) if dtype is None else dtype
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"`dtype` must be a floating one, got {jnp.dtype(dtype)}: integers would all be 0.")
    return dtype


def _critical(
    activation: Any, sigma_b: Float[ArrayLike, ""] | None, q_star: Float[ArrayLike, ""] | None
) -> tuple[float, float]:
    """sigma_w and sigma_b at the edge of chaos."""
    if q_star is not None and np.ndim(q_star) != 0:
        raise ValueError(f"`q_star` must be one number, got {q_star}. Make an initialiser for each.")
    found = critical_point(activation, sigma_b=sigma_b, q_star=q_star)
    return float(found.sigma_w), float(found.sigma_b)


def _critical_scale(
    activation: Any, sigma_b: Float[ArrayLike, ""] | None, q_star: Float[ArrayLike, ""] | None
) -> float:
    """sigma_w at the edge of chaos; who asks for it by q_star has not seen the sigma_b that goes with it."""
    sigma_w, found = _critical(activation, sigma_b, q_star)
    if q_star is not None and found > 0:
        warnings.warn(
            f"at q_star={q_star} these weights, sigma_w = {sigma_w:.4g}, are critical only beside biases of sigma_b = "
            f"{found:.4g}. Take both from `critical(activation, q_star={q_star})`, or say sigma_b instead of q_star.",
            stacklevel=3,
        )
    return sigma_w
