"""Tools that theory and measurement share: Gaussian integrals, Krylov iterations, what users hand over."""

from jaxact.numerics._bivariate import KINK_ENDS, bivariate_expectation
from jaxact.numerics._checks import check_count, check_nonnegative, check_scale
from jaxact.numerics._functions import FunctionError, check_inference, inner_jaxprs, traced, untraceable
from jaxact.numerics._inputs import Inputs, native, read_inputs, read_one, real_floating
from jaxact.numerics._krylov import (
    Bidiagonal,
    SingularTriplets,
    golub_kahan,
    leading_singular_triplets,
    trailing_singular_triplets,
)
from jaxact.numerics._precision import full_precision
from jaxact.numerics._quadrature import (
    expectation_with_tails,
    gaussian_expectation,
    gaussian_nodes,
    gaussian_nodes_on_host,
    hermite_coefficients,
    nan_unless_gaussian,
)
from jaxact.numerics._widest import Widest, widest_input

__all__ = [
    "KINK_ENDS",
    "Bidiagonal",
    "FunctionError",
    "Inputs",
    "SingularTriplets",
    "Widest",
    "bivariate_expectation",
    "check_count",
    "check_inference",
    "check_nonnegative",
    "check_scale",
    "expectation_with_tails",
    "full_precision",
    "gaussian_expectation",
    "gaussian_nodes",
    "gaussian_nodes_on_host",
    "golub_kahan",
    "hermite_coefficients",
    "inner_jaxprs",
    "leading_singular_triplets",
    "nan_unless_gaussian",
    "native",
    "read_inputs",
    "read_one",
    "real_floating",
    "traced",
    "trailing_singular_triplets",
    "untraceable",
    "widest_input",
]
