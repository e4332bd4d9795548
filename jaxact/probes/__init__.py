"""What a network does to its inputs and gradients, measured on any JAX function.

Nothing here knows a neural-network library: pass a function of one example and arrays, from Linen, NNX,
Haiku, Equinox or by hand.
"""

from jaxact.probes._density import SpectralDensity, spectral_density
from jaxact.probes._gradients import gradient_norms
from jaxact.probes._jacobian import SpectrumSummary, jacobian, singular_values, spectrum_summary
from jaxact.probes._lyapunov import LyapunovExponents, lyapunov_exponents
from jaxact.probes._statistics import LayerStatistics, layer_statistics

__all__ = [
    "LayerStatistics",
    "LyapunovExponents",
    "SpectralDensity",
    "SpectrumSummary",
    "gradient_norms",
    "jacobian",
    "layer_statistics",
    "lyapunov_exponents",
    "singular_values",
    "spectral_density",
    "spectrum_summary",
]
