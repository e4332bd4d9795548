"""How far float64 may be off: the constants that "proved" rests on, and what they make of sums and products."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

UNIT = 2.0**-53  # the unit roundoff of float64
VALUE_ERROR = 1e-11  # of the values of an elementwise step without a `range`, relative to the largest
VALUE_ULPS = 64  # that an activation's value is right to: of its own size, that of its input, or 1
LAPACK = 1e-9  # to which the largest eigenvalue that LAPACK finds is trusted
PRODUCT = 1e-10  # to which a product with |A| is trusted, whatever the order of its sums
# Beside a diagonal of mean 1: a coordinate that nothing moves would make a matrix singular.
FLOOR = 1e-30
# Of such a diagonal what is smaller may be the remains of an underflow, and is taken for as much as this.
FAINT = 1e-280


def gamma(n: int) -> float:
    """gamma_n = n u / (1 - n u): how far a sum of n products may be off, relative to that of magnitudes."""
    return n * UNIT / (1 - n * UNIT)


def up(count: float = 4) -> float:
    """A factor that makes up for `count` roundings of what it multiplies."""
    return 1 + count * UNIT


def affine_slack(num_products: int, growth: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """Of A Q A^T, each entry two sums of `num_products`: n gamma_2k diag(g^2), g = |A| diag(Q)^1/2 [n].

    |error_ij| <= gamma_2k g_i g_j, whatever the order of summation (Higham 2002, section 3.5), hence
    error <= n gamma_2k diag(g^2).
    """
    return gamma(2 * (num_products + 4)) * (1 + 1e-6) * growth.size * growth**2


def sum_slack(num_products: int) -> float:
    """Of a sum of so many products, with room for the few operations around it, relative to that of magnitudes."""
    return 4 * (num_products + 8) * UNIT


def scaled_up(k: float, exponent: int) -> float:
    """K 2^exponent: inf where that is out of range, and rounded up where it is subnormal."""
    try:
        value = math.ldexp(k, exponent)
    except OverflowError:
        return math.inf
    return value if k == 0 or value > 1e-300 else math.nextafter(value, math.inf)
