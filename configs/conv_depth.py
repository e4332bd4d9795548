"""Which activation trains at which depth in convolutional networks, plain and residual, and how sensitive they become.

From a checkout:

    python -m train run configs/conv_depth.py
    python -m train run configs/conv_depth.py --smoke
    python -m train run configs/conv_depth.py --task fashion_mnist --width 16
    python -m train run configs/conv_depth.py --task cifar10 --optimizer adamw --optimizer.schedule cosine

Cost: 45 cells of 2 runs; 5 minutes and 4.4 GB on two CPU cores.
Expect: plain convolutional networks reach 90 % test accuracy to depth 8 (tanh, gelu) and guess from depth 32 on:
zero padding loses signal at the borders in every layer, beside what the activation does. Pre-activation blocks with
batch norm stay near 90 % at all depths, tanh at 64 too; post-activation ones lose tanh.
"""

from jaxact import activations
from train.experiments.depth_sweep import DepthSweep
from train.optimizers import Adam


def get_config() -> DepthSweep:
    return DepthSweep(
        network="conv",
        activations=(activations.relu, activations.tanh, activations.gelu),
        optimizer=Adam(),
        learning_rates=(0.01,),
        seeds=(0, 1),
        width=8,
        batch_size=32,
        measure_every=20,
        num_evaluate=200,
        num_probes=4,
        ascent_steps=10,
    )
