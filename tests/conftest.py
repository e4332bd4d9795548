"""How the tests compile, fast rather than well, as they compile much and run little; and how they multiply."""

import os

from jaxact import xla

# To compile well would take more than half of the time. Read when jax first compiles; children inherit it.
xla.compile_fast(0)
# What tests compare with is full float32 on a GPU or TPU too; that jaxact is so by itself test_precision.py shows.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "float32")
