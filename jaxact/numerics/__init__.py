"""Numerical tools the theory and the probes share: Krylov iterations on plain JAX functions."""

from jaxact.numerics._krylov import SingularTriplets, leading_singular_triplets

__all__ = ["SingularTriplets", "leading_singular_triplets"]
