"""Modules as a user writes them, with models of every framework; and what goes wrong in them."""

import numpy as np

#: A network of two inputs, whose linear pieces are sectors.
V = np.array([[1.0, 2.0], [-1.0, 0.5], [0.3, -1.0], [2.0, -0.7], [-0.5, -0.5]])
U = np.array([[1.0, -0.5, 2.0, 0.1, -1.0], [0.5, 1.0, -0.3, 1.0, 0.7]])
SECTORS = f"""
import jax, numpy as np
print("a module may print")
V, U = np.array({V.tolist()}, np.float32), np.array({U.tolist()}, np.float32)

def model(x):
    return U @ jax.nn.relu(V @ x)
"""

BARE = """
import functools
import jax, jax.numpy as jnp

calls = []
number = 3

def square(x):
    return x ** 2

def product(x):
    return x[:2] * x[2:]

def factored(x):
    return jnp.linalg.qr(x.reshape(1, -1))[1]

def classes(x):
    return jnp.argmax(x)

def identity(x):
    return x

def only_batches(x):
    n, k = x.shape
    return x * 2

def diverged(x):
    return x @ jnp.full((3, 2), jnp.nan)

def nothing(x):
    return ()

def broken(x):
    raise RuntimeError("not today")

def factory():
    calls.append(1)
    return lambda x: 3 * x

def bad_factory():
    return 1 / 0

def returns_number():
    return 5

class NeedsWidth:
    def __init__(self, width):
        self.width = width

many = lambda *x: x[0]
"""

NNX = """
import numpy as np
from flax import nnx

class Model(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.norm.var[...] = np.arange(1.0, 5.0, dtype=np.float32)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        n, k = x.shape
        return self.drop(self.norm(self.linear(x)))

class Pooled(nnx.Module):
    def __call__(self, x):
        return x.mean(0)

model = Model()
pooled = Pooled()
layer = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
"""

LINEN = """
import jax, jax.numpy as jnp
from flax import linen

module = linen.Dense(2)
pair = module, module.init(jax.random.key(0), jnp.zeros((1, 3)))
triple = (*pair, 1)
"""

EQUINOX = """
import equinox as eqx, jax

def model():
    keys = jax.random.split(jax.random.key(0))
    return eqx.nn.Sequential([eqx.nn.Linear(3, 2, key=keys[0]), eqx.nn.Dropout(0.5)])
"""

FILES = {"sectors": SECTORS, "bare": BARE, "nnx": NNX, "linen": LINEN, "equinox": EQUINOX} | {
    "exits": "import sys\nsys.exit(1)\n",
    "lacks": "import certify_no_such_thing\n",
    "fails": "x = 1\ny = x / 0\n",
    "typo": "def model(x)\n    return x\n",
}


def write_modules(folder):
    """Write them as certify_NAME.py, and a package, into a folder."""
    for name, text in FILES.items():
        (folder / f"certify_{name}.py").write_text(text)
    package = folder / "certify_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("class Space:\n    model = staticmethod(lambda x: 2 * x)\n")
