"""Train a plain network of 10,000 layers, without skips or normalisation, because theory says where to start.

From a checkout:

    python -m train run configs/ten_thousand_layers.py
    python -m train run configs/ten_thousand_layers.py --smoke
    python -m train run configs/ten_thousand_layers.py --depths 3000 --weights orthogonal

Cost: 6 cells; about 15 minutes and 4 GB on two CPU cores.
Expect: with orthogonal weights at the critical point (sigma_w^2 = 1.05) all depths train, 10,000 layers to 95 % test
accuracy and more; with Gaussian weights of the same scale 1,000 layers and more do not train at all, although
the mean-field depth scales of both are the same: what differs is the spectrum of the Jacobian.
"""

from train.experiments.extreme_depth import ExtremeDepth


def get_config() -> ExtremeDepth:
    return ExtremeDepth()
