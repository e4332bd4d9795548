"""The networks that studies compare: a block by its name, "pre_activation-bn", repeated in a dense or conv network."""

import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxact import nn, theory
from jaxact.activations import Activation
from train import fields
from train.tasks import Data, Task, check_images

STAGES: dict[str, type[nn.Stage]] = {
    "plain": nn.Plain,
    "pre_activation": nn.PreAct,
    "post_activation": nn.PostAct,
}
# Momentum 0.9, because with flax's 0.99 a run of a few hundred steps would end on its starting statistics.
NORMS: dict[str, Any] = {
    "": None,
    "bn": partial(nnx.BatchNorm, momentum=0.9),
    "ln": nnx.LayerNorm,
    "rms": nnx.RMSNorm,
}
NETWORKS = ("dense", "conv")
MEAN_FIELD = ("q_star", "chi", "c_star", "xi_c", "xi_gradient")
_CHUNK = 64  # of `theory.mean_field`, which compiles a second program for what does not fill one


def split_block(block: str) -> tuple[str, str]:
    """Split "pre_activation-bn" into its stage and norm.

    Raises:
        ValueError: if either is unknown; names the closest block.
    """
    known = [f"{stage}-{norm}".rstrip("-") for stage in STAGES for norm in NORMS]
    fields.among(known)("blocks", block)
    stage, _, norm = block.partition("-")
    return stage, norm


def block_name(block: str) -> str:
    """A block as a reader says it.

    >>> block_name("pre_activation-bn")
    'Pre-activation residual + BN'
    """
    kind, _, norm = str(block).partition("-")
    words = {"pre_activation": "pre-activation residual", "post_activation": "post-activation residual"}
    name = words.get(kind, kind.replace("_", " "))
    if norm:
        name += f" + {norm.upper()}"
    return name[:1].upper() + name[1:]


def network(
    data: Data,
    block: str = "plain",
    *,
    kind: str = "dense",
    width: int,
    max_depth: int,
    activation: Activation,
    **scales: Any,
) -> nn.Functional:
    """The pure functions of a network of `max_depth` blocks that classifies a task's inputs.

    Args:
        data: its inputs' last axis is what the first layer reads: flat for a dense network, channels for a conv one.
        block: as `split_block` reads it.
        kind: "dense", or "conv" for 3 x 3 convolutions with zero padding at one resolution and global average pooling.
        width: units, or channels, of every hidden layer.
        max_depth: blocks.
        activation: of every block, unless a call brings another.
        **scales: `weights`, `sigma_w`, `sigma_b` of `jaxact.nn.MLP`.
    """
    stage, norm = split_block(block)
    build: Any = _convolutional if kind == "conv" else nn.MLP
    sizes = (data.input_shape[-1], width, data.num_classes)
    parts = {"stage": STAGES[stage], "norm": NORMS[norm], "max_depth": max_depth, "activation": activation}
    return nn.functional(partial(build, *sizes, **parts, **scales))


def _convolutional(*sizes: int, **parts: Any) -> nn.ResNet:
    """A `jaxact.nn.ResNet`, on a CPU with its convolutions written as matrix products."""
    network = nn.ResNet(*sizes, **parts)
    if jax.default_backend() == "cpu":
        for _, module in nnx.iter_modules(network):
            if isinstance(module, nnx.Conv):
                module.conv_general_dilated = _as_product
    return network


def _as_product(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """The convolution of stride 1 with zero padding as one product with the shifted images.

    Members side by side make a grouped convolution, which XLA (jaxlib 0.10.2) runs on a CPU at half the speed.
    """
    height, width = x.shape[1:3]
    taps = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
    around = [(0, 0), *(((size - 1) // 2, size // 2) for size in kernel.shape[:2]), (0, 0)]
    padded = jnp.pad(x, around)
    shifted = [padded[:, i : i + height, j : j + width] for i, j in taps]
    return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, kernel.shape[-1])


@functools.cache
def preserving_sigma(activation: Activation) -> float:
    """sigma_w with sigma_w^2 E f'(z)^2 = 1, z ~ N(0, 1): gradients keep their size at unit variance."""
    return float(theory.moments(activation).slope_second_moment) ** -0.5


def second_moments(
    block: str,
    activation: Activation,
    q: Any,
    depth: int,
    *,
    sigma_w: float,
    sigma_b: float = 0.0,
    kind: str = "dense",
) -> np.ndarray:
    """Mean-field second moments of the hidden states, [depth, *q.shape], from that of the first layer.

    Plain: q' = sigma_w^2 E f(sqrt(v) z)^2 + sigma_b^2; pre-activation: q' = q + that, since branch and skip are
    uncorrelated. Post-activation sums leave the Gaussian family: NaN. Without a norm v = q; behind one v = 1.

    In a convolutional network every pixel has a q of its own, and E f^2 is averaged over the 3 x 3 pixels around it,
    zeros outside the image: what is lost at the borders fades a plain network. A batch norm divides by the mean over
    pixels; that it centres is left out, which the mean over an image hardly feels.

    Args:
        block: as `split_block` reads it.
        activation: f.
        q: second moments of the first hidden state; for a "conv" network [..., height, width].
        depth: blocks.
        sigma_w: as in `jaxact.nn.MLP`.
        sigma_b: as in `jaxact.nn.MLP`.
        kind: "dense" or "conv".
    """
    q, (stage, norm) = jnp.asarray(q), split_block(block)
    if stage == "post_activation":
        return np.full((depth, *q.shape), np.nan)
    moments = []
    for _ in range(depth):
        v = jnp.ones_like(q) if norm else q
        if norm == "bn" and kind == "conv":
            v = q / q.mean((-2, -1), keepdims=True)
        if kind == "conv":
            grown = _around(_variance_map(activation, v, sigma_w, 0.0)) + sigma_b**2
        else:
            grown = _variance_map(activation, v, sigma_w, sigma_b)
        q = grown if stage == "plain" else q + grown
        moments.append(q)
    return np.stack(moments)


@jax.jit
def _around(q: jax.Array) -> jax.Array:
    """The mean over the 3 x 3 pixels around each, zeros outside the image."""
    height, width = q.shape[-2:]
    padded = jnp.pad(q, [(0, 0)] * (q.ndim - 2) + [(1, 1), (1, 1)])
    shifted = [padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.mean(jnp.stack(shifted), 0)


@partial(jax.jit, static_argnums=0)
def _variance_map(activation: Activation, q: jax.Array, sigma_w: float, sigma_b: float) -> jax.Array:
    return theory.variance_map(activation, q, sigma_w=sigma_w, sigma_b=sigma_b)


@functools.lru_cache(maxsize=32)
def depth_scales(
    activation: Activation,
    sigma_w_squared: tuple[float, ...],
    sigma_b_squared: float,
    between: tuple[float, float],
) -> dict[str, Any]:
    """Mean-field theory of plain dense networks at several sigma_w^2 and, for curves, evenly `between` two.

    Returns:
        In float64: the numbers of `MEAN_FIELD`, one a sigma_w^2; `curve_sigma_w_squared`, `curve_xi_c` and
        `curve_xi_gradient`, so many that all are multiples of 64; `critical_sigma_w_squared`, NaN where there is none.
    """
    count, sigma_b = len(sigma_w_squared), sigma_b_squared**0.5
    curve = np.linspace(*between, -(-count // _CHUNK) * _CHUNK + _CHUNK - count)
    with jax.enable_x64(True):
        scales = np.sqrt(np.concatenate([sigma_w_squared, curve]))
        found = theory.mean_field(activation, sigma_w=scales, sigma_b=sigma_b)
        values = {name: np.asarray(getattr(found, name)) for name in MEAN_FIELD}
    try:
        critical = float(theory.critical_point(activation, sigma_b=sigma_b).sigma_w) ** 2
    except ValueError:
        critical = np.nan
    curves = {f"curve_{name}": values[name][count:] for name in ("xi_c", "xi_gradient")}
    known = {name: each[:count] for name, each in values.items()}
    return known | curves | {"curve_sigma_w_squared": curve, "critical_sigma_w_squared": critical}


def inputs_for(kind: str, data: Data) -> Data:
    """A task's data in the shape that a kind of network takes: rows for "dense", images for "conv"."""
    return data if kind == "conv" else data.flat()


def check_network(kind: str, task: Task) -> None:
    """Refuse a kind of network that does not exist, or that a task has no inputs for.

    Raises:
        ValueError: naming the field, the value and the remedy.
    """
    fields.among(NETWORKS)("network", kind)
    if kind == "conv":
        check_images("task", task)
