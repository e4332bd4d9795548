"""Try to break Lipschitz certificates: at least 100,000 pairs of inputs against each.

    python scripts/attack_certificates.py                             # everything: half an hour on two cores
    python scripts/attack_certificates.py --only gelu --json FILE     # rows whose "model, region" says gelu

`certify` bounds MLPs with every activation of the zoo, a CNN and ResNets with batch norms, a Linen and an Equinox
model, everywhere, in two balls and in a box; relu^2, attention and layer norms only locally. A "steep" MLP has
orthogonal weights and every neuron where its activation is steepest at the centre: a bound too small by anything
would show. Against each go pairs at distances from 1e-6 to 10, half of the points on the region's boundary; pairs
along the leading right singular vector; pairs around the input that `lower_bound` climbs to; and those that gradient
ascent on log(||f(x) - f(y)|| / ||x - y||) over both ends passes through. All are projected into the region.

A certificate is about f in exact arithmetic, but f is evaluated in float64, and between very close inputs there is
little but rounding. To first order the error is a sum of eps * (an intermediate's size) * (the gain from there to the
output); sizes and gains are the same in float32, where the error is seen: r is the largest ||f32(x) - f64(x)|| / eps32
over a batch's inputs. So what a pair proves, and what counts as its ratio here, is

    (||f(x) - f(y)|| - 64 eps (||f(x)|| + ||f(y)|| + r)) / ((1 + (size + 8) eps) ||x - y||)

the denominator for the norms' own rounding. One above the certificate is EXCEEDED, as is one that is NaN, and the exit
status is 1. A tightness, largest ratio / certificate, near 1 says that no bound can be much smaller.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from rich.console import Console
from rich.table import Table

from jaxact import activations, lipschitz, nn

BATCH, NUM_CLIMBS = 4096, 128  # NUM_CLIMBS: steps of either ascent
LOGS = np.log([1e-6, 10])  # of the distances
FAR = 1e30  # stands for everywhere: inf would make the projection's gradient NaN
REGIONS: dict[str, float | None] = {"global": None, "ball 0.05": 0.05, "ball 0.5": 0.5, "box 0.2": 0.2}
LOCAL = ("MLP relu_squared", "attention", "layer norms")  # no bound for all inputs
NUMBERS = ("certificate", "largest", "tightness", "pairs")


class Model(NamedTuple):
    """What is attacked."""

    fn: Callable[[Any, Any], Any]  # of parameters and one input
    shape: tuple[int, ...]
    parameters: tuple[Any, ...] = ((),)  # traced, so that several share the compiled programs


class Limits(NamedTuple):
    """What keeps the pairs in the region, all flat: a ball and a box around the centre."""

    center: np.ndarray
    radius: float
    half: np.ndarray
    reach: np.ndarray  # about how far the region is in every coordinate
    longest: float  # distance of a pair


def main() -> int:
    """Certify, attack, print a row a certificate; 1 if one is exceeded."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--pairs", type=int, default=100_000, help="at least so many for each certificate")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help='of "model, region"')
    parser.add_argument("--seed", type=int, default=0, help="of the centre and the pairs, not of the models")
    parser.add_argument("--num-steps", type=int, default=0, help="refinement steps of the certificates")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row to this file")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    jax.config.update("jax_enable_x64", True)
    for name, build in models().items():
        labels = [name, f"{name} steep"] if name.startswith("MLP") else [name]
        pairs = [(label, r) for label in labels for r in REGIONS if r != "global" or name not in LOCAL]
        if wanted := [(label, r) for label, r in pairs if options.only in f"{label}, {r}"]:
            rows += attack(build(), wanted, options)
            jax.clear_caches()  # dozens of models' programs would fill the memory
    if not rows:
        parser.error(f"no certificate is called anything with {options.only!r}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    table = Table("model", "region", *NUMBERS, "found by", "verdict", title="Pairs against certificates")
    for row in rows:
        table.add_row(*(f"{x:.7g}" if isinstance(x, float) else str(x) for x in row.values()))
    console = Console(width=None if Console().is_terminal else 120)
    console.print(table)
    broken = sum(row["verdict"] != "holds" for row in rows)
    console.print(f"{len(rows)} certificates, {sum(row['pairs'] for row in rows):,} pairs, {broken} exceeded")
    return int(broken > 0)


def attack(model: Model, wanted: list[tuple[str, str]], options: argparse.Namespace) -> Iterator[dict]:
    """The rows of one model."""
    attacker = Attacker(model)
    for label, name in wanted:
        rng, is_steep, count = np.random.default_rng(options.seed), label.endswith("steep"), 0
        params, center = model.parameters[is_steep], (not is_steep) * rng.normal(size=model.shape)
        region, limits = bounded(name, center, rng)
        fn, example = partial(model.fn, params), jnp.zeros(model.shape)
        bound = lipschitz.certify(fn, example, region=region, num_steps=options.num_steps).value
        found: list[tuple[float, str]] = []
        while count < options.pairs:
            for kind, x, y in attacker.pairs(params, limits, rng):
                ratio, num = attacker.largest(params, x, y, limits)
                found, count = [*found, (float(ratio), kind)], count + int(num)
        largest, found_by = max(found)
        verdict = "holds" if all(ratio <= bound for ratio, _ in found) else "EXCEEDED"  # NaN is not <=
        print(f"{label}, {name}: {largest / bound:.7f} {verdict}", file=sys.stderr, flush=True)
        numbers = dict(zip(NUMBERS, (bound, largest, largest / bound, count), strict=True))
        yield {"model": label, "region": name, **numbers, "found by": found_by, "verdict": verdict}


class Attacker:
    """The pairs for one model: everything flat, and compiled once for all regions and parameters."""

    def __init__(self, model: Model):
        def f(params: Any, x: jax.Array) -> jax.Array:
            return ravel_pytree(model.fn(params, x.reshape(model.shape)))[0]

        def largest(params: Any, x: jax.Array, y: jax.Array, limits: Limits) -> tuple[jax.Array, jax.Array]:
            x, y = within(x, limits), within(y, limits)
            batched, single, eps = jax.vmap(partial(f, params)), jnp.float32, jnp.finfo(x.dtype).eps
            ends = jnp.concatenate([x, y]).astype(single)
            rounded, again = batched(ends), batched(ends.astype(x.dtype))
            assert rounded.dtype == single, "this model computes in float64 whatever its input"
            rounding = length(rounded - again).max() / jnp.finfo(single).eps
            fx, fy = batched(x), batched(y)
            change = length(fx - fy) - 64 * eps * (length(fx) + length(fy) + rounding)
            is_pair = (x != y).any(1)  # the projection may have made them one
            distance = jnp.where(is_pair, length(x - y), 1) * (1 + (x.shape[1] + 8) * eps)
            return jnp.where(is_pair, change / distance, 0).max(), is_pair.sum()

        def steepest(params: Any, x: jax.Array, limits: Limits) -> jax.Array:
            return jnp.linalg.svd(jax.jacrev(f, 1)(params, within(x, limits)), full_matrices=False)[2][0]

        def witness(params: Any, starts: jax.Array, limits: Limits, key: jax.Array) -> jax.Array:
            # Relative to the centre, for steps are as long as the starts. The projection stretches nothing.
            shifted = lambda offset: f(params, within(limits.center + offset, limits))  # noqa: E731
            found = lipschitz.lower_bound(shifted, starts - limits.center, key=key, num_steps=NUM_CLIMBS)
            return within(limits.center + found.input, limits)

        def ends(pair: Any, limits: Limits) -> tuple[jax.Array, jax.Array]:
            x, log_distance = limits.center + limits.reach * pair[0], jnp.clip(pair[2], *LOGS)
            return x, x + jnp.exp(log_distance) * pair[1] / length(pair[1])

        def climb(params: Any, pair: Any, limits: Limits) -> tuple[jax.Array, jax.Array]:
            def loss(pair: Any) -> jax.Array:
                x, y = (within(end, limits) for end in ends(pair, limits))
                change, distance = length(f(params, x) - f(params, y)), length(x - y)
                return jnp.log(jnp.maximum(distance, 1e-9)) - jnp.log(change)

            def step(carry: Any, _: None) -> tuple[Any, Any]:
                updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1])
                pair = optax.apply_updates(carry[0], updates)
                return (pair, state), ends(pair, limits)

            optimizer = optax.adam(optax.cosine_decay_schedule(0.1, NUM_CLIMBS))
            return jax.lax.scan(step, (pair, optimizer.init(pair)), None, NUM_CLIMBS)[1]

        self.size = int(np.prod(model.shape))
        self.largest, self._witness = jax.jit(largest), jax.jit(witness)
        self._steepest, self._climb = (jax.jit(jax.vmap(each, (None, 0, None))) for each in (steepest, climb))

    def pairs(self, params: Any, limits: Limits, rng: np.random.Generator) -> Iterator[tuple[str, Any, Any]]:
        """A round of pairs of every kind, [BATCH, size] each."""

        def points(num: int = BATCH) -> np.ndarray:
            scales = 10 ** rng.uniform(-1, 1, (num, 1))  # the projection puts half of them on the boundary
            return limits.center + limits.reach * scales * rng.normal(size=(num, self.size))

        def distances(num: int = BATCH) -> np.ndarray:
            return np.exp(rng.uniform(LOGS[0], np.log(limits.longest), (num, 1)))

        def steps(num: int = BATCH) -> np.ndarray:
            along = rng.normal(size=(num, self.size))
            along[: num // 4] = np.eye(self.size)[rng.integers(self.size, size=num // 4)]
            return distances(num) * along / np.linalg.norm(along, axis=1, keepdims=True)

        x = np.concatenate([limits.center[None], points(BATCH - 1)])
        directions = np.asarray(self._steepest(params, x, limits))
        for _ in range(4):
            step = distances() * directions
            yield "singular vector", x, x + step
            yield "singular vector", x - step / 2, x + step / 2
        found = self._witness(params, x[:16], limits, jax.random.key(int(rng.integers(2**31))))
        near = np.concatenate([found[None], found + steps(BATCH - 1) / 10])
        yield "lower_bound", near, near + distances() * self._steepest(params, near, limits)
        yield "lower_bound", near, near + steps()
        num = BATCH // NUM_CLIMBS
        starts = (points(num) - limits.center) / limits.reach, steps(num), np.log(distances(num)[:, 0])
        x, y = (np.reshape(end, (BATCH, self.size)) for end in self._climb(params, starts, limits))
        yield "ascent", x, y
        for _ in range(4):
            x = points()
            yield "random", x, x + steps()


def within(x: Any, limits: Limits) -> jax.Array:
    """The projection into the region, [..., size]."""
    offset = jnp.clip(x - limits.center, -limits.half, limits.half)
    distance = length(offset)[..., None]
    is_outside = distance > limits.radius
    scale = jnp.where(is_outside, limits.radius / jnp.where(is_outside, distance, 1), 1)
    return scale * offset + limits.center


def length(x: jax.Array) -> jax.Array:
    """The norm of the last axis, with a gradient at 0 as well."""
    return jnp.sqrt(jnp.sum(x**2, -1) + 1e-300)


def bounded(name: str, center: np.ndarray, rng: np.random.Generator) -> tuple[Any, Limits]:
    """The region for `certify` and its limits, a trillionth inside for the projection's rounding."""
    flat, ones, radius = center.ravel(), np.ones(center.size), REGIONS[name]
    if radius is None:
        return None, Limits(0 * flat, FAR, FAR * ones, ones, float(np.exp(LOGS[1])))
    if name.startswith("ball"):
        limits = Limits(flat, radius * (1 - 1e-12), FAR * ones, radius * ones / center.size**0.5, 2 * radius)
        return lipschitz.Ball(center, radius), limits
    half = radius * rng.uniform(0.1, 1, size=center.shape)
    inside = (1 - 1e-12) * half.ravel()
    limits = Limits(flat, FAR, inside, inside, 2 * float(np.linalg.norm(inside)))
    return lipschitz.Box(center - half, center + half), limits


def models() -> dict[str, Callable[[], Model]]:
    """All models, by name."""
    found: dict[str, Callable[[], Model]]
    found = {f"MLP {name}": partial(mlp, activations.parse(name)) for name in activations.names()}
    found |= {f"MLP nn.{kind.__name__}": partial(mlp, kind()) for kind in (nn.PReLU, nn.Swish, nn.Softplus)}
    cnn = lambda rngs: nnx.Sequential(  # noqa: E731
        nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs), jax.nn.relu,
        partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2)), nnx.Conv(4, 6, (3, 3), rngs=rngs),
        nnx.BatchNorm(6, rngs=rngs), jax.nn.gelu, lambda x: x.reshape(1, -1), nnx.Linear(54, 3, rngs=rngs),
    )  # fmt: skip
    residual = partial(nn.ResNet, 1, 4, 3, max_depth=3, sigma_b=0.3)
    pre = partial(residual, stage=nn.PreAct, activation=activations.relu)
    post = partial(residual, stage=nn.PostAct, activation=activations.silu)
    layers = partial(nn.MLP, 8, 32, 4, max_depth=2, activation=activations.gelu, norm=nnx.LayerNorm)
    networks: dict[str, tuple[Any, int]] = {"CNN": (cnn, 6), "ResNet pre": (pre, 5), "ResNet post": (post, 5)}
    found |= {name: partial(trained, build, (1, n, n, 1)) for name, (build, n) in networks.items()}
    found |= {"Linen": linen_model, "attention": attention, "layer norms": partial(trained, layers, (1, 8))}
    try:
        import equinox as eqx
    except ImportError:
        print("Equinox is not installed: its model is left out", file=sys.stderr)
    else:
        net = eqx.nn.MLP(6, 3, 16, 2, activation=jax.nn.softplus, dtype=jnp.float32, key=jax.random.key(0))
        found["Equinox"] = lambda: Model(lambda _, x: net(x), (6,))
    return found


def mlp(activation: Callable[[Any], Any]) -> Model:
    """Three hidden layers of width 32: random, and with every neuron at the largest slope for the input 0."""
    rng, grid = np.random.default_rng(0), np.linspace(-4, 4, 80_001)
    slopes = np.asarray(jax.grad(lambda x: activation(x).sum())(grid))
    place = np.full(32, grid[slopes >= slopes.max() - 1e-12].mean())  # mid-stretch: no kink is near
    turns = [np.linalg.qr(rng.normal(size=(32, 32)))[0] for _ in range(3)]
    kernels = [turns[0][:8], turns[1], turns[2], (turns[0][:4] @ turns[1] @ turns[2]).T]  # keeps 4 directions
    moved = [place - np.asarray(activation(place)) @ kernel for kernel in turns[1:]]
    steep = list(zip(kernels, [place, *moved, np.zeros(4)], strict=True))
    drawn = [rng.normal(size=(kernel.shape[0] + 1, kernel.shape[1])) for kernel in kernels]
    random = [(1.5 * w[:-1] / (len(w) - 1) ** 0.5, w[-1] / 2) for w in drawn]

    def fn(params: Any, x: jax.Array) -> jax.Array:
        for kernel, bias in params[:-1]:
            x = activation(x @ kernel + bias)
        return x @ params[-1][0] + params[-1][1]

    return Model(fn, (8,), jax.tree.map(partial(jnp.asarray, dtype=jnp.float32), (random, steep)))


def trained(build: Callable[..., nnx.Module], shape: tuple[int, ...]) -> Model:
    """In inference mode, the batch norms with statistics and parameters as after training."""
    net, rng = build(rngs=nnx.Rngs(0)), np.random.default_rng(1)
    norms: list[Any] = [module for _, module in nnx.iter_modules(net) if isinstance(module, nnx.BatchNorm)]
    for norm in norms:
        norm.mean[...], norm.bias[...] = jnp.float32(rng.normal(size=(2, *norm.mean.shape)))
        norm.var[...] = jnp.float32(rng.uniform(0.3, 2, norm.var.shape))
        norm.scale[...] = jnp.float32(rng.uniform(-1, 2, norm.scale.shape))
    net.eval()
    return Model(lambda _, x: net(x), shape)


def linen_model() -> Model:
    """Convolution, batch norm, pool and dense layers, with random parameters and running statistics."""
    norm = linen.BatchNorm(use_running_average=True)
    pool = partial(linen.avg_pool, window_shape=(2, 2), strides=(1, 1))
    first: list[Any] = [
        linen.Conv(4, (3, 3), strides=(2, 2)),
        norm,
        jax.nn.silu,
        pool,
        lambda x: x.reshape(1, -1),
    ]
    net, rng = linen.Sequential([*first, linen.Dense(16), jnp.tanh, linen.Dense(3)]), np.random.default_rng(2)
    drawn = net.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1), jnp.float32))
    drawn = jax.tree.map(lambda p: jnp.float32((p + 0.2) * rng.uniform(0.5, 2, p.shape)), drawn)
    return Model(lambda _, x: net.apply(drawn, x), (1, 6, 6, 1))


def attention() -> Model:
    """A block x + softmax(q k^T / 2) v W of three tokens."""
    query, key, value, out = (np.random.default_rng(0).normal(size=(4, 4, 4)) / 2).astype(np.float32)
    return Model(lambda _, x: x + jax.nn.softmax(x @ query @ (x @ key).T / 2) @ (x @ value) @ out, (3, 4))


if __name__ == "__main__":
    sys.exit(main())
