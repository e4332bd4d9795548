"""Training throughput beside what a user would write instead, and beside what the machine can do.

    pip install -e ".[bench]" && python scripts/bench_training.py
    python scripts/bench_training.py --sweep --json rows.json    # over members, depths, widths, blocks, optimisers

16 members of a plain tanh network, SGD with momentum, float32. All contenders train models of the same products on
batches of the same shape in one process, in turns, so that a busy machine slows all of them; the best of the rounds
counts. Times are per model and step. The contenders: what an expert in JAX writes for this one network (a `scan` over
steps of a `scan` over layers, vmapped, on the same devices; nothing is guarded, counted or chosen at run time);
PyTorch's `torch.func` vmap over the members, without biases, gains and moments; and per-step loops as the tutorials of
flax and PyTorch have them. Those of PyTorch and flax train by SGD whatever `--optimizer` says.

GFLOP/s counts the three matrix products a layer (h W forward, g W^T and h^T g backward). The limit is the time of
these three products of the same shapes, batched over members, on one device a core. jaxact spreads its members
over one device a core, as `population(..., mesh=...)` does; the loops run with all cores as threads, on the GPU if
JAX has one. Compile time and memory are apart. A stack much longer than its depth is trained by `nn.shortened`.

Where a step goes, at the default shape on two cores with AVX-512 (CPU time, parts left out one at a time from a step
written by hand): the three products 45 %, the optimiser's passes over parameters, momentum and gradients 14 %, tanh
and its slope 13 %, biases and their gradients 9 %, first and last layer and loss 7 %, drawing the batch 6 %; the rest
is copies: of hidden state and cotangent at each turn of XLA's loops, of rows of weights, of gradients.
jaxact's own step adds tanh' by an exponential (1 - tanh^2 cancels in the tails; 10 %), a learning rate that is an
argument (3 %) and the guard (3 %). Of the products h^T g takes almost half: XLA's fast kernels take no transposed left
operand, and its other ones run at 100 instead of 155 GFLOP/s a core. To copy h^T first is no gain in a step: 8 % lost
at width 64, nothing to 5 % won at 256. At width 256 the passes over parameters weigh most, and a call costs more than
a step by itself, with the state that a second attempt would start from. One member after the other rather than all of
a device side by side keeps a step in the second-level cache: 8 % less at width 64, 14 % at 256, nothing at 32. No form
that was tried passes 54 % of the limit at width 64; products with nothing but their own loads and stores reach 65 %.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxact import activations, fit, nn

IN_FEATURES, CLASSES, ROWS = 64, 10, 1437
OPTIMIZERS = {"sgd": partial(optax.sgd, momentum=0.9), "adam": optax.adam}


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
    parser.add_argument("--optimizer", choices=sorted(OPTIMIZERS), default="sgd")
    parser.add_argument("--no-loops", action="store_true", help="without torch and the per-step loops")
    parser.add_argument(
        "--sweep", action="store_true", help="many shapes, jaxact beside the expert and the limit"
    )
    parser.add_argument("--json", type=Path, default=None, help="write every row to this file")
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", num_cores())
    shapes = list(sweep(options)) if options.sweep else [options]
    rows = []
    for shape in shapes:
        rows += measured(shape)
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1))
    show(rows, f"batches of {options.batch_size}; times per model and step")


def sweep(options: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """Shapes around the default, one thing changed at a time; as few steps as keep a round below seconds."""
    changes: list[dict[str, Any]] = [
        *({"members": members} for members in (1, 4, 16, 64, 256)),
        *({"depth": depth} for depth in (4, 64, 256, 1000)),
        *({"width": width} for width in (32, 128, 256, 512, 1024)),
        {"depth": 4, "max_depth": 64},
        {"block": "pre_activation"},
        {"block": "post_activation"},
        {"optimizer": "adam"},
    ]
    for change in changes:
        shape = argparse.Namespace(**{**vars(options), "no_loops": True, **change})
        work = shape.members * shape.depth * shape.width**2 / (16 * 16 * 64**2)
        # With fewer than ten steps a call the call would be measured, which costs about a step.
        shape.num_steps = max(10 if work <= 16 else 2, round(options.num_steps / max(work, 1)))
        yield shape


def measured(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time every contender on one shape, in turns; a row each."""
    rng = np.random.default_rng(0)
    data = (
        rng.standard_normal((ROWS, IN_FEATURES), dtype=np.float32),
        rng.integers(0, CLASSES, ROWS).astype(np.int32),
    )
    count, few = options.num_steps * options.members, max(2, options.num_steps // 10)
    contenders: dict[str, tuple[Callable[[], None], int]] = {}
    started = time.process_time()
    contenders["jaxact"] = jaxact_run(options, data), count
    between = time.process_time()
    contenders["expert's scan of scans"] = expert_run(options, data), count
    print(f"compile: jaxact {between - started:.2f}, expert {time.process_time() - between:.2f} s of CPU")
    contenders["three products"] = products_run(options), count
    if not options.no_loops:
        contenders["nnx.jit per-step loop"] = nnx_run(options, data, few), few
        contenders["PyTorch eager loop"] = torch_run(options, data, few), few
        contenders["PyTorch torch.func vmap"] = torch_vmap_run(options, data, few), few * options.members
    best = dict.fromkeys(contenders, math.inf)
    for _ in range(options.rounds):
        for name, (run, steps) in contenders.items():
            started = time.perf_counter()
            run()
            best[name] = min(best[name], (time.perf_counter() - started) / steps)
    shape = {name: getattr(options, name) for name in ("members", "depth", "width", "block", "optimizer")}
    flops = 3 * options.depth * 2 * options.batch_size * options.width**2
    return [
        {
            **shape,
            "max_depth": options.max_depth or options.depth,
            "contender": name,
            "ms": seconds * 1e3,
            "gflops": flops / seconds / 1e9,
            "times jaxact": seconds / best["jaxact"],
        }
        for name, seconds in best.items()
    ]


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print the rows as a table."""
    table = Table(title=title)
    columns = ("block", "optimizer", "members", "depth", "max_depth", "width", "contender", "ms", "gflops")
    for column in (*columns, "times jaxact"):
        table.add_column(column, justify="right")
    for row in rows:
        texts = [str(row[name]) for name in columns[:-2]]
        table.add_row(*texts, f"{row['ms']:.3f}", f"{row['gflops']:.0f}", f"{row['times jaxact']:.2f}")
    Console(width=130).print(table)


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
        return OPTIMIZERS[options.optimizer](hparams["learning_rate"])

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
        # A program for each multiple of 8: up to 7 idle stages.
        return fit.population(nn.shortened(run, -(-options.depth // 8) * 8), states, mesh=mesh)

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


def expert_run(options: argparse.Namespace, data) -> Callable[[], None]:
    """All members, all steps, one call, by hand: stacked weights, a static scan over layers, no guard."""
    has_norm, width = options.block != "plain", options.width
    optimizer, (inputs, labels) = OPTIMIZERS[options.optimizer](1e-3), jax.device_put(data)

    def init(key):
        embed, hidden, head = jax.random.split(key, 3)
        params = {
            "embed": jax.random.normal(embed, (IN_FEATURES, width)) * IN_FEATURES**-0.5,
            "w": jax.random.normal(hidden, (options.depth, width, width)) * width**-0.5,
            "b": jnp.zeros((options.depth, width)),
            "head": jax.random.normal(head, (width, CLASSES)) * width**-0.5,
        }
        if has_norm:
            params |= {"scale": jnp.ones((options.depth, width)), "shift": jnp.zeros((options.depth, width))}
        moments = {"mean": jnp.zeros((options.depth, width)), "var": jnp.ones((options.depth, width))}
        return params, moments if has_norm else {}, optimizer.init(params)

    def normed(h, layer, moments):
        mean, var = h.mean(0), h.var(0)
        moments = jax.tree.map(lambda old, new: 0.99 * old + 0.01 * new, moments, {"mean": mean, "var": var})
        return (h - mean) * jax.lax.rsqrt(var + 1e-5) * layer["scale"] + layer["shift"], moments

    def block(h, parts):
        layer, moments = parts
        if options.block == "plain":
            return jnp.tanh(h) @ layer["w"] + layer["b"], moments
        if options.block == "pre_activation":
            z, moments = normed(h, layer, moments)
            return h + jnp.tanh(z) @ layer["w"] + layer["b"], moments
        z, moments = normed(h @ layer["w"] + layer["b"], layer, moments)
        return jnp.tanh(h + z), moments

    def loss(params, moments, batch):
        layers = {name: leaf for name, leaf in params.items() if name not in ("embed", "head")}
        h, moments = jax.lax.scan(block, batch[0] @ params["embed"], (layers, moments))
        h = h if options.block == "post_activation" else jnp.tanh(h)
        return _cross_entropy(h @ params["head"], batch[1]), moments

    def train(carry, key):
        def step(carry, number):
            params, moments, state = carry
            rows = jax.random.randint(jax.random.fold_in(key, number), (options.batch_size,), 0, ROWS)
            batch = inputs[rows], labels[rows]
            (value, moments), gradient = jax.value_and_grad(loss, has_aux=True)(params, moments, batch)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), moments, state), value

        return jax.lax.scan(step, carry, jnp.arange(options.num_steps))

    rows, mesh = jax.sharding.PartitionSpec("members"), member_mesh()
    spread = jax.shard_map(jax.vmap(train), mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
    many = jax.jit(spread if options.members % mesh.size == 0 else jax.vmap(train), donate_argnums=0)
    keys = jax.random.split(jax.random.key(0), options.members)
    carry = jax.jit(jax.vmap(init))(keys)

    def run() -> None:
        nonlocal carry
        carry, _ = jax.block_until_ready(many(carry, keys))

    run()
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


def torch_vmap_run(options: argparse.Namespace, data, steps: int) -> Callable[[], None]:
    """All members by `torch.func`: vmap of the gradient of a function of stacked parameters, SGD with momentum."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    inputs, labels = torch.from_numpy(data[0]).to(device), torch.from_numpy(data[1]).long().to(device)
    shapes = {"embed": (IN_FEATURES, options.width), "head": (options.width, CLASSES)}
    shapes |= {str(number): (options.width, options.width) for number in range(options.depth)}
    params = {
        name: torch.randn(options.members, *shape, device=device) * shape[0] ** -0.5
        for name, shape in shapes.items()
    }
    traces = {name: torch.zeros_like(each) for name, each in params.items()}

    def normed(h):
        return (h - h.mean(0)) * torch.rsqrt(h.var(0, unbiased=False) + 1e-5)

    def loss(params, x, y):
        h = x @ params["embed"]
        for number in range(options.depth):
            w = params[str(number)]
            if options.block == "plain":
                h = torch.tanh(h) @ w
            elif options.block == "pre_activation":
                h = h + torch.tanh(normed(h)) @ w
            else:
                h = torch.tanh(h + normed(h @ w))
        h = h if options.block == "post_activation" else torch.tanh(h)
        return torch.nn.functional.cross_entropy(h @ params["head"], y)

    gradients = torch.func.vmap(torch.func.grad(loss))

    def run() -> None:
        for _ in range(steps):
            rows = torch.randint(0, ROWS, (options.members, options.batch_size))
            found = gradients(params, inputs[rows], labels[rows])
            for name, each in found.items():
                traces[name].mul_(0.9).add_(each)
                params[name].sub_(traces[name], alpha=1e-3)
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    return run


def products_run(options: argparse.Namespace) -> Callable[[], None]:
    """The products of a step alone: h W, g W^T and h^T g of every layer, of every member, on a device a core."""

    def step(carry, _):
        h, w = carry
        forward = h @ w
        backward = forward @ w.T
        return (backward, h.T @ backward * 1e-6), None

    def chain(pair):
        return jax.lax.scan(step, pair, None, length=options.depth * options.num_steps)[0]

    h = jnp.ones((options.members, options.batch_size, options.width))
    w = jnp.broadcast_to(jnp.eye(options.width), (options.members, options.width, options.width))
    mesh = member_mesh() if options.members % len(jax.devices()) == 0 else None
    products = jax.jit(lambda pairs: fit.population(chain, pairs, mesh=mesh))
    jax.block_until_ready(products((h, w)))
    return lambda: jax.block_until_ready(products((h, w)))


def _cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


if __name__ == "__main__":
    main()
