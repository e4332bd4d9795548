"""How XLA is told to compile: flags that a user has set stand, and programs compute the same."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import xla


@pytest.mark.parametrize("level", [0, None])
@pytest.mark.parametrize(
    "given", ["", "--xla_backend_optimization_level=2", "--xla_cpu_use_fusion_emitters=true --xla_dump_to=x"]
)
def test_flags_that_are_set_stand_and_none_is_given_twice(given, level, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", given)
    for _ in range(2):  # a child calls it again
        xla.compile_fast(level)
    flags = os.environ["XLA_FLAGS"].split()
    assert flags[: len(given.split())] == given.split()
    names = [flag.split("=")[0] for flag in flags]
    assert len(set(names)) == len(names)
    assert ("--xla_backend_optimization_level" in names) == (level == 0 or "level" in given)
    assert xla.is_level_given() == ("--xla_backend_optimization_level" in names)


@pytest.mark.parametrize("options", [xla.options(0), xla.options(2, is_fused_anew=True)])
def test_xla_takes_the_options_and_computes_the_same(options):
    x = jnp.linspace(-3, 3, 101)
    found = jax.jit(lambda x: jnp.tanh(x) * jnp.exp(-(x**2)), compiler_options=options)(x)
    np.testing.assert_allclose(found, np.tanh(x) * np.exp(-(x**2)), rtol=1e-5, atol=1e-7)
