"""Time a dense Jacobian and its singular values beside the matrix products it cannot do without.

    python scripts/bench_jacobian.py                    # width 512, depth 64: about 20 s on two cores
    python scripts/bench_jacobian.py --large            # width 3072, depth 8: ten values beside the dense way

The network is square tanh layers in a `lax.scan`. "products" are depth products [width, width] x [width,
width] an input, batched over inputs as XLA does best; the goal is Jacobian + singular values within 1.3 of
their time. The measurements alternate and the best of each counts, so that a busy machine slows all alike.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxact import probes


def main() -> None:
    """Measure and print one line a quantity."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--depth", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2, help="inputs")
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument(
        "--large", action="store_true", help="the ten largest of one large Jacobian, twice over"
    )
    options = parser.parse_args()
    if options.large:
        return compare_ten_largest()
    width, depth, batch = options.width, options.depth, options.batch

    key_w, key_x = jax.random.split(jax.random.key(0))
    weights = 1.05 * jax.random.normal(key_w, (depth, width, width)) / np.sqrt(width)
    x = jax.random.normal(key_x, (batch, width))

    def network(x: jax.Array) -> jax.Array:
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, weights)[0]

    def products(tangents: jax.Array) -> jax.Array:
        return lax.scan(lambda h, w: (h @ w, None), tangents, weights)[0]

    identities = jnp.broadcast_to(jnp.eye(width), (batch, width, width))
    jacobians = jax.jit(lambda x: probes.jacobian(network, x))(x)
    tasks: dict[str, tuple[Callable, jax.Array]] = {
        "products": (jax.jit(products), identities),
        "jacobian": (jax.jit(lambda x: probes.jacobian(network, x)), x),
        "svd": (jax.jit(lambda j: jnp.linalg.svd(j, compute_uv=False)), jacobians),
        "singular_values": (jax.jit(lambda x: probes.singular_values(network, x)), x),
        "ten largest": (jax.jit(lambda x: probes.singular_values(network, x, 10)), x),
    }
    seconds = {name: float("inf") for name in tasks}
    for repeat in range(options.repeats + 1):
        for name, (function, argument) in tasks.items():
            start = time.perf_counter()
            jax.block_until_ready(function(argument))
            if repeat:  # the first compiles
                seconds[name] = min(seconds[name], time.perf_counter() - start)

    print(f"width {width}, depth {depth}, {batch} inputs, float32, {jax.devices()[0].device_kind}")
    print(f"{'best of ' + str(options.repeats):16} ms an input   ratio")
    for name, duration in seconds.items():
        print(f"{name:16} {1e3 * duration / batch:11.1f} {duration / seconds['products']:7.2f}")
    gflops = 2 * depth * width**3 * batch / seconds["products"] / 1e9
    print(f"products run at {gflops:.0f} GFLOP/s")


def compare_ten_largest(width: int = 3072, depth: int = 8, repeats: int = 2) -> None:
    """Time the ten largest singular values without the Jacobian beside all of them from it.

    The goal is a tenth of the time at most, and agreement to 1e-4. Separate layers, not a scan: a dense network
    as one writes it. Both are compiled first; the dense way runs once, for it takes long.
    """
    key_w, key_x = jax.random.split(jax.random.key(0))
    weights = [
        jax.random.normal(key, (width, width)) / np.sqrt(width) for key in jax.random.split(key_w, depth)
    ]
    x = jax.random.normal(key_x, (width,))

    def measure(num: int | None, repeats: int) -> tuple[np.ndarray, float]:
        def values(weights: list[jax.Array], x: jax.Array) -> jax.Array:
            def network(x: jax.Array) -> jax.Array:
                for w in weights:
                    x = jnp.tanh(x @ w)
                return x

            return probes.singular_values(network, x, num)

        compiled = jax.jit(values).lower(weights, x).compile()
        seconds = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            found = jax.block_until_ready(compiled(weights, x))
            seconds = min(seconds, time.perf_counter() - start)
        return np.asarray(found), seconds

    few, few_seconds = measure(10, repeats)
    every, every_seconds = measure(None, 1)
    error = np.abs(few / every[:10] - 1).max()
    print(f"width {width}, depth {depth}, one input, float32, {jax.devices()[0].device_kind}")
    print(f"ten largest {few_seconds:8.2f} s")
    print(f"dense + svd {every_seconds:8.2f} s   {every_seconds / few_seconds:.1f} times as long")
    print(f"largest relative difference {error:.1e}")


if __name__ == "__main__":
    main()
