"""Try random functions: no Jacobian of one may exceed its certificate.

    python scripts/fuzz_certificates.py                       # two minutes: some 500 certificates on two cores
    python scripts/fuzz_certificates.py --seconds 600 --seed 3

Each function is a chain, some with skips, of one to four operations drawn from linear maps, formulas as people write
them, and what acts on all entries: sorting, maxima, softmax, norms and normalisations. It is certified everywhere, in a
ball and in a box. Against each certificate go the Jacobians at 200 points, in float64 by `jax.jacfwd`, their norms by
NumPy: nothing of the engine. One above its certificate by more than rounding is printed, and the exit status is 1.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.lipschitz import Ball, Box, certify

SIZE, POINTS = 6, 200
ENTRY_BY_ENTRY: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "selu": jax.nn.selu,
    "tanh": jnp.tanh,
    "abs": jnp.abs,
    "sin": jnp.sin,
    "leaky by where": lambda x: jnp.where(x > 0, x, 0.3 * x),
    "logistic by exp": lambda x: 1 / (1 + jnp.exp(-x)),
    "silu by exp": lambda x: x / (1 + jnp.exp(-x)),
    "tanh by exp": lambda x: 1 - 2 / (jnp.exp(2 * x) + 1),
    "log cosh": lambda x: jnp.log(jnp.cosh(x)),
    "gumbel": lambda x: jnp.exp(-jnp.exp(-x)),
    "pseudo-Huber": lambda x: (1 + x**2) ** 0.5,
    "elu by minimum": lambda x: jnp.maximum(x, 0) + jnp.minimum(0, jnp.exp(x) - 1),
    "arctan2": lambda x: jnp.arctan2(x, 1.5),
    "softplus by log": lambda x: jnp.log(jnp.exp(x) + 2 * jnp.exp(-3 * x)),
}
ALL_TOGETHER: dict[str, Callable[[Any], Any]] = {
    "sort": jnp.sort,
    "group sort": lambda x: jnp.sort(x.reshape(3, 2), 1).reshape(-1),
    "top k": lambda x: jnp.concatenate([jax.lax.top_k(x, 3)[0], x[:3]]),
    "median": lambda x: jnp.median(x) + x,
    "cummax": jax.lax.cummax,
    "larger by where": lambda x: jnp.where(x > x[::-1], x, x[::-1]),
    "max pool": lambda x: jnp.tile(jnp.max(x.reshape(3, 2), 1), 2),
    "softmax": jax.nn.softmax,
    "log softmax": jax.nn.log_softmax,
    "logsumexp": lambda x: x + jax.nn.logsumexp(x),
    "norm": lambda x: jnp.linalg.norm(x) * jnp.ones(SIZE) / 2 + x,
    "RMS norm": lambda x: x / jnp.sqrt(jnp.mean(x**2) + 0.1),
    "layer norm": lambda x: 2 * (x - x.mean()) * jax.lax.rsqrt(x.var() + 0.1),
    "scaled entries": lambda x: x.at[jnp.array([0, 2])].multiply(-1.5),
}


def drawn(rng: np.random.Generator) -> tuple[str, Callable[[Any], Any]]:
    """A random function and what it is made of."""
    names, operations = [], []
    for _ in range(rng.integers(1, 5)):
        table = (None, ENTRY_BY_ENTRY, ALL_TOGETHER)[rng.integers(3)]
        if table is None:
            matrix = rng.normal(size=(SIZE, SIZE)) * rng.choice([0.3, 1.0, 2.0]) / SIZE**0.5
            shift = rng.normal(size=SIZE)
            names.append("linear")
            operations.append(lambda x, A=matrix, b=shift: A @ x + b)
        else:
            names.append(str(rng.choice([*table])))
            operations.append(table[names[-1]])
    has_skips = rng.random() < 0.4

    def fn(x: Any) -> Any:
        for place, operation in enumerate(operations):
            y = operation(x)
            x = x + 0.5 * y if has_skips and place % 2 else y
        return x

    return f"{' -> '.join(names)}{' with skips' if has_skips else ''}", fn


def regions(rng: np.random.Generator) -> Iterator[tuple[str, Any, np.ndarray]]:
    """Everywhere, a ball and a box, with points of them."""
    center, radius = rng.normal(size=SIZE), 10 ** rng.uniform(-3, 0.5)
    directions = rng.normal(size=(POINTS, SIZE))
    yield "everywhere", None, directions * 10 ** rng.uniform(-3, 1.5, (POINTS, 1))
    inside = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    yield "ball", Ball(center, radius), center + inside * radius * rng.random((POINTS, 1)) ** (1 / SIZE)
    box = Box(center - radius * rng.random(SIZE), center + radius * rng.random(SIZE))
    yield "box", box, rng.uniform(box.lower, box.upper, (POINTS, SIZE))


def main() -> int:
    """Certify and attack until the time is up; 1 if a certificate was violated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rng, end = np.random.default_rng(asked.seed), time.monotonic() + asked.seconds
    counts = {"functions": 0, "certificates": 0, "refused": 0, "violated": 0}
    while time.monotonic() < end:
        made_of, fn = drawn(rng)
        counts["functions"] += 1
        jacobians = jax.jit(jax.vmap(jax.jacfwd(fn)))
        for where, region, points in regions(rng):
            try:
                certificate = certify(
                    fn, jnp.zeros(SIZE), region=region, num_steps=int(rng.choice([0, 0, 10]))
                )
            except ValueError:
                counts["refused"] += 1
                continue
            counts["certificates"] += 1
            norms = np.linalg.norm(np.nan_to_num(np.asarray(jacobians(points))), 2, axis=(1, 2))
            if norms.max() > certificate.value * (1 + 1e-9) + 1e-12:
                counts["violated"] += 1
                print(f"VIOLATED {where}: {made_of}: {certificate.value} < {norms.max()}")
    print(", ".join(f"{number} {name}" for name, number in counts.items()))
    return int(counts["violated"] > 0 or counts["certificates"] == 0)


if __name__ == "__main__":
    sys.exit(main())
