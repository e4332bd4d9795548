"""Time to trace and compile training, at 10 layers and at 1,000: depth is a loop, so it should be the same.

    python scripts/bench_compile.py                     # about two minutes on two cores

Initialisation and one training step (loss, gradient, SGD with momentum) of each block, depth as a run-time argument
and as a static one. Nothing is cached and nothing runs; depths take turns and the best of the rounds counts.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxact import activations, fit, nn

BLOCKS = {
    "plain": (nn.Plain, None),
    "pre-activation + BN": (nn.PreAct, nnx.BatchNorm),
    "post-activation + BN": (nn.PostAct, nnx.BatchNorm),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", type=int, nargs=2, default=(10, 1000))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    table = Table("block", "depth is", *(f"{depth} layers, s" for depth in options.depths), "ratio")
    for block in BLOCKS:
        for is_traced in (True, False):
            best = dict.fromkeys(options.depths, float("inf"))
            for _ in range(options.rounds):
                for depth in options.depths:
                    best[depth] = min(best[depth], seconds_to_compile(block, depth, options.width, is_traced))
            first, last = best.values()
            how = "a run-time argument" if is_traced else "static"
            table.add_row(block, how, f"{first:.2f}", f"{last:.2f}", f"{last / first:.2f}")
    Console(width=110).print(table)


def seconds_to_compile(block: str, depth: int, width: int, is_traced: bool) -> float:
    """Trace and compile initialisation and a step of training, from nothing."""
    jax.clear_caches()
    stage, norm = BLOCKS[block]
    started = time.perf_counter()
    build = partial(
        nn.MLP, 64, width, 10, max_depth=depth, activation=activations.tanh, stage=stage, norm=norm
    )
    network = nn.functional(build)
    optimizer = optax.sgd(0.1, momentum=0.9)

    def init(key):
        params, variables = network.init(key)
        return fit.start(optimizer, key=key, params=params, variables=variables)

    def train(state, inputs, labels, run_depth):
        def loss(params, variables, batch, hparams):
            logits, variables = network.apply(params, variables, inputs, run_depth, training=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (variables, ())

        return fit.fit(loss, lambda key: (), optimizer, num_steps=1)(state)

    key = jax.random.key(0)
    jax.jit(init).lower(key).compile()
    state = jax.eval_shape(init, key)
    inputs, labels = jnp.zeros((64, 64)), jnp.zeros(64, jnp.int32)
    if is_traced:
        jax.jit(train).lower(state, inputs, labels, jnp.int32(depth)).compile()
    else:
        jax.jit(train, static_argnums=3).lower(state, inputs, labels, depth).compile()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
