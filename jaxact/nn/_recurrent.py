"""A recurrent network with any activation, and the three laws of its recurrent weights that are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxact import numerics
from jaxact.nn._stages import Elementwise, affine, make_activation
from jaxact.theory import initializers

RecurrentWeights = Literal["gaussian", "orthogonal", "identity"]


class RNN(nnx.Module):
    """A vanilla recurrent network: h_t = f(W h_{t-1} + U x_t + b), y_t = V h_t + c, from h_0 = 0.

    Its cell is flax's, so that `nnx.RNN(network.cell)` gives the same hidden states; here U x_t + b is one product for
    all times, and the activation may be replaced in a call, so that one compiled program serves every choice. For gates
    give flax's `nnx.LSTMCell` or `nnx.GRUCell` any activation themselves.

    Attributes:
        cell: `nnx.SimpleCell`: `dense_h` holds W, without a bias, `dense_i` U and b.
        head: `nnx.Linear`, V and c.
        activation: f.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int,
        *,
        activation: Elementwise,
        weights: RecurrentWeights = "gaussian",
        gain: ArrayLike = 1.0,
        input_scale: ArrayLike = 1.0,
        rngs: nnx.Rngs,
    ):
        """Draw the parameters; biases are 0.

        Args:
            in_features: length of an input x_t.
            width: units of the hidden state.
            out_features: length of an output y_t.
            activation: f, any elementwise function.
            weights: the law of W: "gaussian", W_ij ~ N(0, gain^2 / width); "orthogonal", gain times a Haar-distributed
                orthogonal matrix (Saxe et al. 2014); "identity", gain I (Le, Jaitly & Hinton 2015, "A simple way to
                initialize recurrent networks of rectified linear units").
            gain: scale of W, its spectral radius at large width; scalar, may be traced.
            input_scale: U_ij ~ N(0, input_scale^2 / in_features); scalar, may be traced.
            rngs: source of the `params` keys.

        Raises:
            ValueError: a count, `weights` or a scale is out of its range.
            TypeError: `activation` is not callable, or a scale is not one real number.
        """
        remedy = "Make a network for each."
        gain = numerics.check_scale("gain", gain, remedy)
        input_scale = numerics.check_scale("input_scale", input_scale, remedy)
        for name, count in (("in_features", in_features), ("width", width)):
            numerics.check_count(name, count)
        self.cell = nnx.SimpleCell(
            in_features,
            width,
            dtype=None,  # that of parameters and input together, not flax's float32
            activation_fn=make_activation(activation, width, rngs=rngs),
            kernel_init=initializers.gaussian(input_scale),
            recurrent_kernel_init=_recurrent_init(weights, gain),
            rngs=rngs,
        )
        self.head = affine(width, out_features, rngs=rngs)

    @property
    def activation(self) -> Any:
        """The cell's f."""
        return self.cell.activation_fn

    def __call__(
        self,
        x: Float[ArrayLike, "*batch time in"],
        activation: Elementwise | None = None,
        *,
        last: int | np.integer | None = None,
    ) -> Float[Array, "*batch last out"]:
        """Outputs y_t.

        Args:
            x: a sequence of at least one time, or a batch of them.
            activation: replaces the network's own for this call.
            last: read out at so many last times only, from 1 to all; at all if None. Static.

        Raises:
            TypeError: `x` is not real floating-point.
            ValueError: `x` has no axes of times and inputs or no time, or `last` is out of its range.
        """
        h = self.hidden(x, activation)
        if last is None:
            return self.head(h)
        num_times = h.shape[-2]
        last = numerics.check_count("last", last, most=num_times, remedy="Use last=None for all times.")
        return self.head(h[..., num_times - last :, :])

    def hidden(
        self, x: Float[ArrayLike, "*batch time in"], activation: Elementwise | None = None
    ) -> Float[Array, "*batch time width"]:
        """Hidden states h_1, h_2, ...; raises what a call does.

        Args:
            x: a sequence of at least one time, or a batch of them.
            activation: replaces the network's own for this call.
        """
        drive = jnp.moveaxis(self.cell.dense_i(self._sequence(x)), -2, 0)
        f = activation or self.activation

        def step(h: Array, u: Array) -> tuple[Array, Array]:
            h = f(self.cell.dense_h(h) + u)
            return h, h

        return jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(drive[0]), drive)[1], 0, -2)

    def _sequence(self, x: Any) -> Float[Array, "*batch time in"]:
        x = numerics.real_floating("x", x)
        width = self.cell.in_features
        if x.ndim < 2 or x.shape[-2] == 0 or x.shape[-1] != width:
            raise ValueError(
                f"`x` must be [*batch, time, {width}] with at least one time, got shape {x.shape}. "
                "Give one number a time an axis of its own, x[..., None], and one time x[None]."
            )
        return x


def _recurrent_init(weights: str, gain: ArrayLike) -> Callable[..., Array]:
    if weights not in get_args(RecurrentWeights):
        known = ", ".join(f'"{each}"' for each in get_args(RecurrentWeights))
        raise ValueError(f"`weights` must be one of {known}, got {weights!r}.")
    if weights == "identity":
        return lambda key, shape, dtype, **_: (
            jnp.asarray(gain, dtype) * jnp.eye(shape[0], shape[1], dtype=dtype)
        )
    return {"gaussian": initializers.gaussian, "orthogonal": initializers.orthogonal}[weights](gain)
