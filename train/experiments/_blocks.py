"""The blocks that studies compare, by name: "pre_activation-bn" is a pre-activation stage with batch norm."""

import difflib
from functools import partial
from typing import Any

from flax import nnx

from jaxact import nn

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
CALIBRATION = 256  # training examples that set the batch norms' statistics before the first step


def split_block(block: str) -> tuple[str, str]:
    """Split "pre_activation-bn" into its stage and norm.

    Raises:
        ValueError: if either is unknown; names the closest block.
    """
    stage, _, norm = block.partition("-")
    if stage in STAGES and norm in NORMS and (norm or "-" not in block):
        return stage, norm
    known = [f"{stage}-{norm}".rstrip("-") for stage in STAGES for norm in NORMS]
    close = difflib.get_close_matches(block, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"`blocks` must be among {', '.join(known)}, got {block!r}.{hint}")
