"""Training throughput beside what a user would write instead: PyTorch eager, and a per-step `nnx.jit` loop.

    pip install -e ".[bench]" && python scripts/bench_training.py

16 members of a plain tanh network, SGD with momentum, float32. All contenders train the same models on batches
of the same shape in one process, in turns, so that a busy machine slows all of them; the best of the rounds
counts. Times are per model and step. GFLOP/s counts the three matrix products a layer (forward, and two backward)
and stands beside a bare product of the same shape, batched over members, on one device of all cores or one device a
core, whichever is faster. jaxact spreads its members over one device a core, as `population(..., mesh=...)` does;
the peers run as their tutorials write them, with all cores as threads, on the GPU if JAX has one. Compile time and
memory are apart.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxact import activations, fit, nn

IN_FEATURES, CLASSES, ROWS = 64, 10, 1437


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=16)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--max-depth", type=int, default=None, help="length of the stack; default: depth")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--num-steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", choices=("plain", "pre_activation", "post_activation"), default="plain")
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", num_cores())
    rng = np.random.default_rng(0)
    data = (
        rng.standard_normal((ROWS, IN_FEATURES), dtype=np.float32),
        rng.integers(0, CLASSES, ROWS).astype(np.int32),
    )
    contenders: dict[str, tuple[Callable[[], None], int]] = {}
    started = time.perf_counter()
    contenders["jaxact fit + population"] = (jaxact_run(options, data), options.num_steps * options.members)
    print(f"compile, jaxact: {time.perf_counter() - started:.2f} s")
    few = max(2, options.num_steps // 10)
    contenders["nnx.jit per-step loop"] = (nnx_run(options, data, few), few)
    if not options.no_torch:
        contenders["PyTorch eager loop"] = (torch_run(options, data, few), few)
    contenders["bare products, one device"] = matmul_run(options, None)
    contenders["bare products, a device a core"] = matmul_run(options, member_mesh())
    best = dict.fromkeys(contenders, np.inf)
    for _ in range(options.rounds):
        for name, (run, count) in contenders.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], (time.perf_counter() - started) / count)
    products = 3 * options.depth * 2 * options.batch_size * options.width**2
    table = Table(
        title=f"{options.block}, depth {options.depth}, width {options.width}, {options.members} members"
    )
    for column in ("", "ms per model and step", "GFLOP/s in the layers' products", "times jaxact's"):
        table.add_column(column, justify="left" if not column else "right")
    ours = best["jaxact fit + population"]
    for name, seconds in best.items():
        table.add_row(
            name, f"{seconds * 1e3:.3f}", f"{products / seconds / 1e9:.1f}", f"{seconds / ours:.2f}"
        )
    Console(width=110).print(table)
    bare = min(seconds for name, seconds in best.items() if name.startswith("bare"))
    print(f"share of the bare products' rate: {bare / ours:.0%}")


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def member_mesh() -> jax.sharding.Mesh:
    """All devices in a row."""
    return jax.make_mesh((len(jax.devices()),), ("members",), axis_types=(jax.sharding.AxisType.Auto,))


def jaxact_run(options: argparse.Namespace, data) -> Callable[[], None]:
    """All members, all steps, one call."""
    stage = {"plain": nn.Plain, "pre_activation": nn.PreAct, "post_activation": nn.PostAct}[options.block]
    network = nn.functional(
        partial(
            nn.MLP,
            IN_FEATURES,
            options.width,
            CLASSES,
            max_depth=options.max_depth or options.depth,
            activation=activations.tanh,
            stage=stage,
            norm=None if options.block == "plain" else nnx.BatchNorm,
        )
    )
    inputs, labels = jax.device_put(data)

    def optimizer(hparams):
        return optax.sgd(hparams["learning_rate"], momentum=0.9)

    def sample(key):
        rows = jax.random.randint(key, (options.batch_size,), 0, ROWS)
        return inputs[rows], labels[rows]

    @jax.jit
    def init(members):
        def one(member):
            params, variables = network.init(member.key)
            return fit.start(
                optimizer, key=member.key, params=params, variables=variables, hparams=member.hparams
            )

        return fit.population(one, members)

    @partial(jax.jit, donate_argnums=0)
    def train(states, depth):
        def loss(params, variables, batch, hparams):
            logits, variables = network.apply(params, variables, batch[0], depth, training=True)
            return _cross_entropy(logits, batch[1]), (variables, ())

        run = fit.fit(loss, sample, optimizer, num_steps=options.num_steps)
        return fit.population(run, states, mesh=mesh)

    mesh = member_mesh()
    states = init(fit.grid(seeds=range(options.members), learning_rate=[1e-3]))
    depth = jnp.int32(options.depth)
    compiled = train.lower(states, depth).compile()
    memory = compiled.memory_analysis()
    total = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    print(f"memory of the compiled loop, jaxact: {total / 2**20:.0f} MiB")

    def run() -> None:
        nonlocal states
        states, _ = jax.block_until_ready(compiled(states, depth))

    return run


class UsualNetwork(nnx.Module):
    """The network as flax's own tutorials write it: a Python list of layers."""

    def __init__(self, options: argparse.Namespace, rngs: nnx.Rngs):
        """Make the layers."""
        self.block = options.block
        self.embed = nnx.Linear(IN_FEATURES, options.width, rngs=rngs)
        self.layers = nnx.List(
            [nnx.Linear(options.width, options.width, rngs=rngs) for _ in range(options.depth)]
        )
        norms = {"plain": 0, "pre_activation": options.depth + 1, "post_activation": options.depth}[
            options.block
        ]
        self.norms = nnx.List([nnx.BatchNorm(options.width, rngs=rngs) for _ in range(norms)])
        self.head = nnx.Linear(options.width, CLASSES, rngs=rngs)

    def __call__(self, x):
        """Logits."""
        h = self.embed(x)
        for index, layer in enumerate(self.layers):
            if self.block == "plain":
                h = layer(jnp.tanh(h))
            elif self.block == "pre_activation":
                h = h + layer(jnp.tanh(self.norms[index](h)))
            else:
                h = jnp.tanh(h + self.norms[index](layer(h)))
        if self.block == "pre_activation":
            h = self.norms[-1](h)
        return self.head(h if self.block == "post_activation" else jnp.tanh(h))


def nnx_run(options: argparse.Namespace, data, steps: int) -> Callable[[], None]:
    """One model, one `nnx.jit` call a step, as in flax's tutorials."""
    model = UsualNetwork(options, nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, inputs, labels):
        value, gradient = nnx.value_and_grad(lambda m: _cross_entropy(m(inputs), labels))(model)
        optimizer.update(model, gradient)
        return value

    rng = np.random.default_rng(1)

    def run() -> None:
        for _ in range(steps):
            rows = rng.integers(0, ROWS, options.batch_size)
            value = step(model, optimizer, data[0][rows], data[1][rows])
        jax.block_until_ready(value)

    run()
    return run


def torch_run(options: argparse.Namespace, data, steps: int) -> Callable[[], None]:
    """One model, PyTorch eager, as in PyTorch's tutorials."""
    import torch

    torch.set_num_threads(num_cores())
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    torch.set_default_device(device)
    modules = torch.nn.ModuleList(torch.nn.Linear(options.width, options.width) for _ in range(options.depth))
    norms = torch.nn.ModuleList(torch.nn.BatchNorm1d(options.width) for _ in range(options.depth + 1))
    embed, head = torch.nn.Linear(IN_FEATURES, options.width), torch.nn.Linear(options.width, CLASSES)
    parts = [embed, modules, head] + ([] if options.block == "plain" else [norms])
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9)
    inputs, labels = torch.from_numpy(data[0]).to(device), torch.from_numpy(data[1]).long().to(device)

    def run() -> None:
        for _ in range(steps):
            rows = torch.randint(0, ROWS, (options.batch_size,))
            h = embed(inputs[rows])
            for layer, norm in zip(modules, norms, strict=False):
                if options.block == "plain":
                    h = layer(torch.tanh(h))
                elif options.block == "pre_activation":
                    h = h + layer(torch.tanh(norm(h)))
                else:
                    h = torch.tanh(h + norm(layer(h)))
            if options.block == "pre_activation":
                h = norms[-1](h)
            logits = head(h if options.block == "post_activation" else torch.tanh(h))
            loss = torch.nn.functional.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    return run


def matmul_run(options: argparse.Namespace, mesh: jax.sharding.Mesh | None) -> tuple[Callable[[], None], int]:
    """The layers' products alone: as many of [batch, width] x [width, width], one chain a member."""
    steps = max(2, options.num_steps // 4)
    h = jnp.ones((options.members, options.batch_size, options.width))
    w = jnp.broadcast_to(jnp.eye(options.width), (options.members, options.width, options.width))

    def chain(pair):
        return jax.lax.fori_loop(0, 3 * options.depth * steps, lambda _, h: h @ pair[1], pair[0])

    products = jax.jit(lambda pairs: fit.population(chain, pairs, mesh=mesh))
    jax.block_until_ready(products((h, w)))
    return lambda: jax.block_until_ready(products((h, w))), steps * options.members


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


if __name__ == "__main__":
    main()
