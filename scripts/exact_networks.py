"""Certificates of 60 piecewise-linear networks of two inputs beside their exact constants in the box [-5, 5]^2.

    python scripts/exact_networks.py                   # up to ten seconds a network
    python scripts/exact_networks.py --max-seconds 2 --only 2-8-1

The exact constant is the largest ||J||_2 over the polygons on which a network is linear (`polygons`); the networks,
2-8-1 to 2-12-8-8-2 with relu or leaky relu, have Gaussian weights of variance 2 / fan-in and biases of variance 1/4.
A certificate below the constant by more than rounding is a violation, and the exit status is 1.
"""

import argparse
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from polygons import exact_lipschitz
from rich.console import Console
from rich.table import Table

from jaxact.lipschitz import Box, certify

SIDE = 5.0
SIZES = ((2, 8, 1), (2, 16, 1), (2, 8, 8, 1), (2, 12, 8, 2), (2, 8, 8, 8, 1), (2, 12, 8, 8, 2))


class Network(NamedTuple):
    """x -> W_L phi(... phi(W_1 x + b_1) ...)."""

    name: str
    matrices: list[np.ndarray]
    offsets: list[np.ndarray]
    slopes: tuple[float, float]

    def __call__(self, x: Any) -> Any:
        """The outputs."""
        for W, b in zip(self.matrices[:-1], self.offsets, strict=True):
            z = W @ x + b
            x = jnp.maximum(z, self.slopes[0] * z)
        return self.matrices[-1] @ x


def networks(num: int) -> Iterator[Network]:
    """Of every size in turn, every second leaky."""
    for seed in range(num):
        rng, sizes = np.random.default_rng(seed), SIZES[seed % len(SIZES)]
        matrices = [rng.normal(size=(m, n)) * (2 / n) ** 0.5 for n, m in pairwise(sizes)]
        offsets = [rng.normal(size=m) / 2 for m in sizes[1:-1]]
        low = 0.0 if (seed // len(SIZES)) % 2 == 0 else 0.1
        yield Network(f"{'-'.join(map(str, sizes))} #{seed}", matrices, offsets, (low, 1.0))


def certificate(network: Network, max_seconds: float) -> tuple[float, float]:
    """The bound in the box and the seconds it took."""
    words: dict[str, Any] = {"max_seconds": max_seconds}
    if "max_seconds" not in inspect.signature(certify).parameters:  # a checkout that cannot cut regions
        words = {"num_steps": 200, "seconds": max_seconds}
    start = time.perf_counter()
    region = Box(np.full(2, -SIDE), np.full(2, SIDE))
    bounded: Callable[..., Any] = certify
    found = bounded(network, jnp.zeros(2), region=region, **words)
    return found.value, time.perf_counter() - start


def main() -> int:
    """Print a row a network and the shares; 1 if a bound is too small."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max-seconds", type=float, default=10.0, help="for each network")
    parser.add_argument("--networks", type=int, default=60)
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of a name, such as 2-8-1")
    asked = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    table, ratios, times = Table("network", "exact", "bound", "ratio", "seconds"), [], []
    for network in networks(asked.networks):
        if asked.only not in network.name:
            continue
        exact = exact_lipschitz(network.matrices, network.offsets, network.slopes, size=SIDE)
        bound, seconds = certificate(network, asked.max_seconds)
        ratios.append(bound / exact)
        times.append(seconds)
        table.add_row(network.name, f"{exact:.6g}", f"{bound:.6g}", f"{ratios[-1]:.4f}", f"{seconds:.1f}")
        print(f"{network.name}: {ratios[-1]:.4f} in {seconds:.1f} s", file=sys.stderr, flush=True)
    if not ratios:
        parser.error(f"no network is called anything with {asked.only!r}")
    Console(width=None if Console().is_terminal else 100).print(table)
    found = np.array(ratios)
    print(
        f"{len(found)} networks: {np.mean(found <= 1.05):.0%} within 5 %, {np.mean(found <= 1.01):.0%} within 1 %, "
        f"median {np.median(found):.4f}, largest {found.max():.4f}, {np.sum(found < 1 - 1e-9)} violated; "
        f"at most {max(times):.1f} s each, median {np.median(times):.1f} s"
    )
    return int((found < 1 - 1e-9).any())


if __name__ == "__main__":
    sys.exit(main())
