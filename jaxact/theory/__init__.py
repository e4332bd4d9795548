"""What theory predicts of a wide random network, from its activation and the scale of its weights."""

from jaxact.theory._initialization import gain
from jaxact.theory._maps import Trajectory, correlation_map, trajectory, variance_map
from jaxact.theory._moments import Moments, moments
from jaxact.theory._phase import CriticalPoint, MeanField, critical_point, mean_field

__all__ = [
    "CriticalPoint",
    "MeanField",
    "Moments",
    "Trajectory",
    "correlation_map",
    "critical_point",
    "gain",
    "mean_field",
    "moments",
    "trajectory",
    "variance_map",
]
