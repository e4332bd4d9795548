"""Which activation trains at which depth, in plain and residual networks, and what Jacobian and bounds say of it.

From a checkout:

    python -m train run configs/depth_sweep.py
    python -m train run configs/depth_sweep.py --smoke
    python -m train run configs/depth_sweep.py --depths 8 128 --activations tanh "leaky_relu(0.3)"

Cost: 105 cells of 9 runs; 128 s and 2.2 GiB at most on two CPU cores from nothing compiled.
Expect: plain networks of every activation stop training between depth 8 and 64; pre-activation blocks with batch norm
train at all depths with all activations; post-activation blocks lose some of them at 64. At depth 64 the
textbook's product bound on the Lipschitz constant lies 32 decades above what an ascent finds in plain networks, 17 in
pre-activation and 13 in post-activation ones (medians over activations); an ellipsoid in closed form 25, 5 and 6.
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
