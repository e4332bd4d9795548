"""How the tests hold annotations; how they compile, fast rather than well, as they run little; how they multiply."""

import os

# What tests compare with is full float32 on a GPU or TPU too; that jaxact is so by itself test_precision.py shows.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "float32")  # read when jax is imported

import typecheck

typecheck.install("jaxact")

from jaxact import xla  # noqa: E402 - after what holds it

# To compile well would take more than half of the time. Read when jax first compiles; children inherit it.
xla.compile_fast(0)
