"""How much a network can stretch its input: bounds on the Lipschitz constant from both sides.

Norms are Euclidean where nothing else is said. An upper bound is a promise for every pair of inputs; a lower bound
comes with the input that attains it.
"""

from jaxact.lipschitz._certify import certify
from jaxact.lipschitz._clever import Clever, clever
from jaxact.lipschitz._ladder import Ladder, Layer, Rung, ladder
from jaxact.lipschitz._layers import upper_bound
from jaxact.lipschitz._lower import LowerBound, lower_bound
from jaxact.lipschitz._norms import convolution_norm, dense_norm, gram_norm
from jaxact.lipschitz._program import Ball, Box, Certificate
from jaxact.lipschitz._radius import CertifiedRadius, certified_radius

__all__ = [
    "Ball",
    "Box",
    "Certificate",
    "CertifiedRadius",
    "Clever",
    "Ladder",
    "Layer",
    "LowerBound",
    "Rung",
    "certified_radius",
    "certify",
    "clever",
    "convolution_norm",
    "dense_norm",
    "gram_norm",
    "ladder",
    "lower_bound",
    "upper_bound",
]
