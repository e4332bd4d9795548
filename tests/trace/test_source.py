"""Where a step comes from, as readers are told it."""

import sys
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

import jaxact


def test_a_step_of_a_notebook_is_named_by_its_cell(monkeypatch):
    compiler = pytest.importorskip("IPython.core.compilerop").CachingCompiler()
    source = "def model(params, x):\n    return x @ params\n"
    cell = {}
    exec(compile(source, compiler.cache(source, 3), "exec"), cell)
    shell = SimpleNamespace(compile=compiler)
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: shell)
    found = jaxact.diagnose(cell["model"], jnp.eye(2), jnp.ones((3, 2)))
    assert [row.line for row in found.rows] == ["In[3]:2"]
