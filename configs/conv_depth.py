"""Which activation trains at which depth in convolutional networks, plain and residual, and how sensitive they become.

From a checkout:

    python -m train run configs/conv_depth.py
    python -m train run configs/conv_depth.py --smoke
    python -m train run configs/conv_depth.py --task fashion-mnist --width 16
    python -m train run configs/conv_depth.py --task cifar10 --optimizer adamw --optimizer.schedule cosine

COST
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
