"""Train a plain network of 10,000 layers, without skips or normalisation, because theory says where to start.

From a checkout:

    python -m train run configs/ten_thousand_layers.py
    python -m train run configs/ten_thousand_layers.py --smoke
    python -m train run configs/ten_thousand_layers.py --depths 3000 --weights orthogonal

Cost: 6 cells, 7 GB; 8.4 minutes on two CPU cores that other programs used as well, 22 on slower ones, nearly all of it
for 10,000 layers.
Expect: with orthogonal weights at the critical point (sigma_w^2 = 1.05) 10,000 layers reach 95 % test accuracy after
some 400 steps, 1,000 layers 97 %; with Gaussian weights of the same scale 100 layers reach 73 % and 1,000 stay at
chance, although the mean-field depth scales of both are the same: what differs is the spectrum of the Jacobian.
"""

from train.experiments.extreme_depth import ExtremeDepth


def get_config() -> ExtremeDepth:
    return ExtremeDepth()
