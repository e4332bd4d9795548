"""How far from zero a layer's activations are centred, for seven activations, beside theory.

From a checkout:

    python -m train run configs/mean_shift.py
    python -m train run configs/mean_shift.py --activations gelu tanh --width 1024

Cost: 7 cells of 3 networks, untrained; seconds on two CPU cores.
Expect: tanh is centred at every depth, relu shifts by 0.4 of the preactivations' standard deviation in every layer,
gelu and silu by less and less as their signal shrinks.
"""

from jaxact import activations
from train.experiments.mean_shift import MeanShift


def get_config() -> MeanShift:
    names = ("relu", "leaky_relu(0.2)", "tanh", "sigmoid", "gelu", "silu", "selu")
    return MeanShift(activations=tuple(activations.parse(name) for name in names))
