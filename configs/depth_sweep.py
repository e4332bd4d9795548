"""Which activation trains at which depth, in plain and residual networks, and what Jacobian and bounds say of it.

From a checkout:

    python -m train run configs/depth_sweep.py
    python -m train run configs/depth_sweep.py --smoke
    python -m train run configs/depth_sweep.py --depths 8 128 --activations tanh "leaky_relu(0.3)"
"""

from jaxact import activations
from train.experiments.depth_sweep import DepthSweep


def get_config() -> DepthSweep:
    return DepthSweep(
        activations=tuple(
            activations.parse(name)
            for name in ("relu", "leaky_relu(0.2)", "tanh", "sigmoid", "gelu", "silu", "selu")
        ),
    )
