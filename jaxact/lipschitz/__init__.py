"""How much a network can stretch its input: bounds on the Lipschitz constant from both sides.

All norms are Euclidean. An upper bound is a promise for every pair of inputs; a lower bound comes with the
input that attains it.
"""

from jaxact.lipschitz._layers import upper_bound
from jaxact.lipschitz._lower import LowerBound, lower_bound

__all__ = ["LowerBound", "lower_bound", "upper_bound"]
