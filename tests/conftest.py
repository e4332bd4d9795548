"""How the tests compile, fast rather than well, as they compile much and run little; and how they multiply."""

import os

# LLVM's optimisations are a third of the suite's processor time. Read when jax first compiles; children inherit it.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
# What tests compare with is full float32 on a GPU or TPU too; that jaxact is so by itself test_precision.py shows.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "float32")
