"""How the tests compile: fast rather than well, as they compile much and run little."""

import os

# LLVM's optimisations are a third of the suite's processor time. Read when jax first compiles; children inherit it.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()
