"""What theory predicts of a wide random network, from its activation and the scale of its weights."""

from jaxact.theory import initializers
from jaxact.theory._batch_norm import batch_norm_gradient_growth
from jaxact.theory._compare import Comparison, Missing, Prediction, compare, predict
from jaxact.theory._initialization import gain
from jaxact.theory._maps import Trajectory, correlation_map, trajectory, variance_map
from jaxact.theory._moments import Moments, moments
from jaxact.theory._phase import CriticalPoint, MeanField, critical_point, mean_field
from jaxact.theory._recipe import recipe
from jaxact.theory._recurrent import RateNetwork, RecurrentFactors, rate_network, recurrent_factors
from jaxact.theory._residual import ResidualTrajectory, residual_trajectory, skip_open_probability
from jaxact.theory._shaping import shape
from jaxact.theory._spectra import Spectrum, jacobian_spectrum

__all__ = [
    "Comparison",
    "CriticalPoint",
    "MeanField",
    "Missing",
    "Moments",
    "Prediction",
    "RateNetwork",
    "RecurrentFactors",
    "ResidualTrajectory",
    "Spectrum",
    "Trajectory",
    "batch_norm_gradient_growth",
    "compare",
    "correlation_map",
    "critical_point",
    "gain",
    "initializers",
    "jacobian_spectrum",
    "mean_field",
    "moments",
    "predict",
    "rate_network",
    "recipe",
    "recurrent_factors",
    "residual_trajectory",
    "shape",
    "skip_open_probability",
    "trajectory",
    "variance_map",
]
