"""What theory predicts of a wide random network, from its activation and the scale of its weights."""

from jaxact.theory._initialization import gain
from jaxact.theory._maps import variance_map
from jaxact.theory._moments import Moments, moments

__all__ = ["Moments", "gain", "moments", "variance_map"]
