"""The networks that studies compare: a block by its name, "pre_activation-bn", repeated in a dense or conv network."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxact import nn
from jaxact.activations import Activation
from train import fields
from train.tasks import Data, Task

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
    if norm and norm != "none":
        name += f" + {norm.upper() if len(norm) <= 3 else norm}"
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


def inputs_for(kind: str, data: Data) -> Data:
    """A task's data in the shape that a kind of network takes: rows for "dense", images for "conv"."""
    return data if kind == "conv" else data.flat()


def check_network(kind: str, task: Task) -> None:
    """Refuse a kind of network that does not exist, or that a task has no inputs for.

    Raises:
        ValueError: naming the field, the value and the remedy.
    """
    fields.among(NETWORKS)("network", kind)
    if kind == "conv" and not task.holds_images:
        raise ValueError(
            f"`network` conv needs a task of images, and {task} has flat inputs of {task.input_shape[0]} numbers. "
            "Use --network dense, or --task digits."
        )
