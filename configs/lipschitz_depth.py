"""How far each Lipschitz certificate lies above the largest slope found, by depth, block and activation.

From a checkout:

    python -m train run configs/lipschitz_depth.py
    python -m train run configs/lipschitz_depth.py --smoke
    python -m train run configs/lipschitz_depth.py --depths 4 64 --refine-steps 300

Cost: 36 cells, 6.4 minutes and 2.1 GB on two CPU cores that other programs used as well. gelu, whose slopes within a
ball are searched for, takes most of it.
Expect: the product of norms loses a third of an order of magnitude a layer in every block. The ellipsoid loses a
fifteenth in pre-activation blocks, 32 of which have a certificate of some thousands where an ascent finds 30 and the
product says 1e12. Balls of radius 0.01 are certified near the largest slope at every depth, balls of radius 1 hardly
better than all inputs (inputs have a length of about 8).
"""

from jaxact import activations
from train.experiments.lipschitz_depth import LipschitzDepth


def get_config() -> LipschitzDepth:
    return LipschitzDepth(activations=(activations.relu, activations.tanh, activations.gelu))
