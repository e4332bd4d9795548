"""Whole networks: an affine map in, a stack of stages, an affine map out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxact.nn._ellipsoid import ellipsoid_block, log_bound, normalized
from jaxact.nn._stack import Mode, Stack, Trace, lipschitz_of, slopes_of
from jaxact.nn._stages import (
    Elementwise,
    Plain,
    PreAct,
    Stage,
    Weights,
    affine,
    dense_matrix,
    diagonal,
    make_activation,
    make_norm,
    norm_bound,
    normed,
    operator_norm,
    refuse_bound,
    take_back,
)
from jaxact.numerics import full_precision


class _Network(nnx.Module):
    """Embed, stack, read out; a subclass fixes the parts and how a hidden state becomes a feature vector."""

    embed: nnx.Linear | nnx.Conv
    stack: Stack
    norm: nnx.Module | None
    head: nnx.Linear
    activation: Any

    def __init_subclass__(cls, **options: Any) -> None:
        """Take back what a class inherits as the bound of another computation than its own."""
        super().__init_subclass__(**options)
        take_back(cls, {"log_lipschitz": refuse_bound}, of=("__call__", "features", "readout", "pool"))

    def __call__(
        self,
        x: Float[ArrayLike, "*batch_and_input"],
        depth: ArrayLike | None = None,
        activation: Elementwise | None = None,
        *,
        mode: Mode = "reverse",
        taps: Float[Array, " layer *batch_and_hidden"] | None = None,
    ) -> Float[Array, "*batch out"]:
        """Outputs (logits).

        Args:
            x: inputs, with or without batch axes before those of one input.
            depth: how many stages run, at most `max_depth`; all of them if None. An integer is static; an array,
                traced or not, is a run-time argument: one program for all depths.
            activation: replaces the network's own for this call; with a traced choice, an `activations.Selected`.
            mode: what a traced depth can be differentiated by, "reverse" or "forward"; see `Stack`.
            taps: added to the output of every stage, [max_depth, *batch, width]; see `Stack`.
        """
        return self.readout(self.features(x, depth, activation, mode=mode, taps=taps), activation)

    def features(
        self,
        x: Float[ArrayLike, "*batch_and_input"],
        depth: ArrayLike | None = None,
        activation: Elementwise | None = None,
        *,
        mode: Mode = "reverse",
        taps: Float[Array, " layer *batch_and_hidden"] | None = None,
    ) -> Float[Array, "*batch_and_hidden"]:
        """The last hidden state, the output of the stack; arguments as in a call."""
        return self.stack(self.embed(jnp.asarray(x)), depth, activation, mode=mode, taps=taps)

    def trace(
        self,
        x: Float[ArrayLike, "*batch_and_input"],
        depth: ArrayLike | None = None,
        activation: Elementwise | None = None,
    ) -> Trace:
        """What every stage of the stack gave on the embedded input, a `Trace`; arguments as in a call."""
        return self.stack.trace(self.embed(jnp.asarray(x)), depth, activation)

    def observe(
        self,
        look: Callable[[Array, Array], PyTree],
        x: Float[ArrayLike, "*batch_and_input"],
        depth: ArrayLike | None = None,
        activation: Elementwise | None = None,
    ) -> PyTree:
        """What `look` makes of every stage on the embedded input; see `Stack.observe`.

        Args:
            look: `look(hidden, preactivation)`, arrays of the same shapes for every stage.
            x: as in a call, like `depth` and `activation`.
            depth: see `x`.
            activation: see `x`.

        Returns:
            What `look` gave, with a leading axis [max_depth], zeros at and past the depth.
        """
        return self.stack.observe(look, self.embed(jnp.asarray(x)), depth, activation)[1]

    def readout(
        self, h: Float[Array, "*batch_and_hidden"], activation: Elementwise | None = None
    ) -> Float[Array, "*batch out"]:
        """Outputs from the last hidden state: W_out f(norm(h)) where h is a preactivation, else W_out h.

        Args:
            h: what `features` gives, [*batch, *space, width].
            activation: replaces the network's own for this call.
        """
        if self.stack.hidden_is_preactivation:
            h = normed(self.norm, h)
            h = (activation or self.activation)(h)
        return self.head(self.pool(h))

    def pool(self, h: Float[Array, "*batch_and_hidden"]) -> Float[Array, "*batch width"]:
        """One vector an input: the mean over spatial axes, where there are any."""
        num_spatial = self.embed.kernel.ndim - 2  # not that of h, which may have no batch axis
        return h.mean(axis=tuple(range(-1 - num_spatial, -1))) if num_spatial else h

    @full_precision
    def log_lipschitz(
        self, depth: ArrayLike | None = None, activation: Any = None, *, method: str = "product"
    ) -> Float[Array, ""]:
        """Natural log of an upper bound on the network's Lipschitz constant in the 2-norm.

        "product", the textbook's:

            log K <= log ||W_in|| + sum_l log K_l + log(sup|f'| ||norm||) + log ||W_out||

        with K_l from `Stage.log_lipschitz`: (sup|f'|)^L prod ||W_l|| for plain stages, products of 1 + branch for
        residual ones. "ellipsoid": a matrix Q with dh dh^T <= Q |dx|^2 is carried from layer to layer in closed form
        (much as by `lipschitz.certify` without refinement, here traced), which knows that the directions that one layer
        stretches are not those of the next; never more than the product. For dense networks with batch norm or none.

        Both are bounds up to float rounding, differentiable in the parameters where depth is not traced. Norms are as
        at inference; mean pooling is counted as 1.

        Args:
            depth: as in a call.
            activation: replaces the network's own; anything with an attribute `lipschitz`, and better `slope_range`.
            method: "product" or "ellipsoid". Static.

        Raises:
            ValueError: an unknown method; for "ellipsoid" a convolution or a norm that is not linear at inference.
        """
        if method not in ("product", "ellipsoid"):
            raise ValueError(f'`method` must be "product" or "ellipsoid", got {method!r}.')
        if method == "ellipsoid":
            return self._log_ellipsoid(depth, activation or self.stack.stages.activation)
        total = jnp.log(operator_norm(self.embed)) + jnp.log(operator_norm(self.head))
        if self.stack.hidden_is_preactivation:
            total += jnp.log(lipschitz_of(activation or self.activation)) + jnp.log(norm_bound(self.norm))
        return total + self.stack.log_lipschitz(depth, activation)

    def _log_ellipsoid(self, depth: ArrayLike | None, activation: Any) -> Float[Array, ""]:
        given = slopes_of(activation)
        is_bounded = jnp.isfinite(given[0]) & jnp.isfinite(given[1])
        slopes = jnp.where(is_bounded, given[0], 0), jnp.where(is_bounded, given[1], 0)
        first, last = dense_matrix(self.embed), dense_matrix(self.head)
        state = normalized(first @ first.T, jnp.zeros(()))
        Q, log_square = self.stack.ellipsoid(*state, slopes, depth)
        if self.stack.hidden_is_preactivation:
            norm = jnp.diag(diagonal(self.norm, self.embed))
            Q, log_square = ellipsoid_block(
                Q, log_square, skip=0.0, outer=last, inner=norm, slope_range=slopes
            )
        else:
            Q = last @ Q @ last.T
        return jnp.where(is_bounded, log_bound(Q, log_square), jnp.inf)


class MLP(_Network):
    """A dense network: x -> W_in x -> `max_depth` stages -> W_out f(.), for flat inputs [batch, in_features].

    With the default stage it is the plain network of mean-field theory, z_{l+1} = W f(z_l) + b; with
    `stage=PreAct` or `PostAct` a dense residual network.

    Attributes:
        embed: W_in, an `nnx.Linear`.
        stack: the `Stack` of stages.
        norm: before the read-out of a network of preactivations, or None.
        activation: the same for its f.
        head: W_out, an `nnx.Linear`.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int,
        *,
        max_depth: int,
        activation: Elementwise | type[nnx.Module],
        stage: type[Stage] = Plain,
        norm: type[nnx.Module] | Callable[..., nnx.Module] | None = None,
        weights: Weights = "gaussian",
        sigma_w: ArrayLike = 1.0,
        sigma_b: ArrayLike = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draw the parameters; W_in at sigma 1 keeps the input's mean square, W_out is at sigma 1.

        Args:
            in_features: length of an input.
            width: features of every hidden layer.
            out_features: length of an output.
            max_depth: number of stages.
            activation: as in `Stage`.
            stage: the class of a stage.
            norm: as in `Stage`; a network of preactivations gets one more before its read-out.
            weights: law of the stages' and W_in's weights, as in `Stage`.
            sigma_w: as in `Stage`.
            sigma_b: as in `Stage`.
            rngs: source of the `params` keys.
        """
        _check_stage(stage)
        self.embed = affine(in_features, width, weights=weights, rngs=rngs)
        self.stack = Stack(
            partial(stage, width, activation, norm=norm, weights=weights, sigma_w=sigma_w, sigma_b=sigma_b),
            max_depth,
            rngs=rngs,
        )
        _finish(self, stage, width, out_features, activation, norm, rngs)


class ResNet(_Network):
    """A convolutional residual network at one resolution: stem, `max_depth` blocks, mean pooling, read-out.

    Images are [batch, *space, channels]; with `stage=Plain` it is a plain convolutional network.

    Attributes:
        embed: the stem, an `nnx.Conv`.
        stack: the `Stack` of blocks.
        norm: before the read-out of a network of preactivations, or None.
        activation: the same for its f.
        head: the read-out, an `nnx.Linear`.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int,
        *,
        max_depth: int,
        activation: Elementwise | type[nnx.Module],
        stage: type[Stage] = PreAct,
        norm: type[nnx.Module] | Callable[..., nnx.Module] | None = nnx.BatchNorm,
        kernel_size: int | Sequence[int] = (3, 3),
        stem_strides: int = 1,
        weights: Weights = "gaussian",
        sigma_w: ArrayLike = 1.0,
        sigma_b: ArrayLike = 0.0,
        rngs: nnx.Rngs,
    ):
        """Draw the parameters.

        Args:
            in_features: channels of an image.
            width: channels of every hidden layer.
            out_features: length of an output.
            max_depth: number of blocks.
            activation: as in `Stage`.
            stage: the class of a block.
            norm: as in `Stage`.
            kernel_size: of the stem and every block, one integer a spatial axis.
            stem_strides: stride of the stem, to shrink large images.
            weights: of the blocks, as in `Stage`. The stem is Gaussian, for an orthogonal one would see its centre
                tap alone.
            sigma_w: as in `Stage`.
            sigma_b: as in `Stage`.
            rngs: source of the `params` keys.
        """
        _check_stage(stage)
        self.embed = affine(in_features, width, kernel_size=kernel_size, strides=stem_strides, rngs=rngs)
        self.stack = Stack(
            partial(
                stage,
                width,
                activation,
                norm=norm,
                kernel_size=kernel_size,
                weights=weights,
                sigma_w=sigma_w,
                sigma_b=sigma_b,
            ),
            max_depth,
            rngs=rngs,
        )
        _finish(self, stage, width, out_features, activation, norm, rngs)


def calibrate(network: nnx.Module, x: ArrayLike, *args: Any, **kwargs: Any) -> None:
    """Set every batch norm's running statistics to those of one batch, in place.

    A fresh batch norm has mean 0 and variance 1, so that at inference it is the identity and the network is
    not the one that will train. Afterwards inference on `x` gives what training mode gives on `x`.

    Args:
        network: any module that holds `nnx.BatchNorm`s.
        x: a batch of inputs.
        *args: passed on to the network with `x`.
        **kwargs: passed on to the network.
    """
    norms = [module for _, module in nnx.iter_modules(network) if isinstance(module, nnx.BatchNorm)]
    before = [(norm.momentum, norm.use_running_average) for norm in norms]
    for norm in norms:
        norm.momentum, norm.use_running_average = 0.0, False
    try:
        network(x, *args, **kwargs)
    finally:
        for norm, (momentum, use_running_average) in zip(norms, before, strict=True):
            norm.momentum, norm.use_running_average = momentum, use_running_average


def _check_stage(stage: Any) -> None:
    if not (isinstance(stage, type) and issubclass(stage, Stage)):
        raise TypeError(f"`stage` must be a class such as Plain, PreAct or PostAct, got {stage!r}.")


def _finish(network, stage, width, out_features, activation, norm, rngs):
    """The read-out's parts: a norm and activation of its own where the stack hands over preactivations."""
    waits = stage.hidden_is_preactivation
    network.norm = nnx.data(make_norm(norm if waits else None, width, rngs=rngs))
    network.activation = make_activation(activation, width, rngs=rngs) if waits else None
    network.head = affine(width, out_features, rngs=rngs)
