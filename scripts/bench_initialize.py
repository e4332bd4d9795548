"""How near to their targets the layers come: `jaxact.initialize` beside AnyInit 0.4.0 on ten models.

    pip install anyinit==0.4.0                  # or: pip install jaxact[bench]
    python scripts/bench_initialize.py          # about four minutes on one core

The two aim at different places: AnyInit at a second moment of 1 after the activation (1/2 after tanh, which cannot
reach 1), jaxact before it, at 1 with the biases (at what its table says where there are none). What one wants before
the activation says what it wants after it, E f(z)^2 of a normal z, and the other way round; so both are held to their
own targets by the same two yardsticks: the mean over layers of |log2(second moment / target)| before the activation (z)
and after it (f), 0 where all targets are met, 1 where they are off by a factor of 2 in the mean; on the batch that was
given and on one that was not; the mean over seeds. `last/first` is the second moment of the last hidden array over that
of the first, which no target speaks of. A model is ours where what jaxact aims at (z) is nearer to its target than what
AnyInit aims at (f), or AnyInit refuses it; its refusals are printed as they are. Moments are of what the models hand
out themselves, not by `diagnose`, whose program of gradients and spectra takes seconds to compile for each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import anyinit
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.optimize import brentq

import jaxact
from jaxact import xla

WIDTH, DEPTH, NUM_INPUTS = 128, 31, 128
METHODS = {"theory": "analytic", "data": "empirical"}


class Model(NamedTuple):
    """A model that hands out its preactivations.

    Attributes:
        given: (function or module, parameters), or (module,): what both are called with.
        seen: (parameters or module, x) -> list of preactivations, first to last; a loop's stacked on a first axis.
        act: what follows them.
        shape: of the inputs.
        rows: of the table of `initialize`, those of the preactivations.
        last: (parameters or module, x) -> (first, last) hidden arrays.
    """

    given: tuple[Any, ...]
    seen: Callable[[Any, Any], list[Any]]
    act: Callable[[Any], Any]
    shape: tuple[int, ...]
    rows: slice
    ends: Callable[[Any, Any], tuple[Any, Any]] | None = None


# --- Models -----------------------------------------------------------------------------------------------------------


class Perceptron(nn.Module):
    """31 plain layers."""

    act: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """[batch, in] -> [batch, 10]."""
        for _ in range(DEPTH):
            z = nn.Dense(WIDTH)(x)
            self.sow("intermediates", "z", z)
            x = self.act(z)
        return nn.Dense(10)(x)


class Images(nn.Module):
    """6 convolutions."""

    act: Any
    strides: tuple[int, ...] = (1,) * 6

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """[batch, 12, 12, 3] -> [batch, 10]."""
        for stride in self.strides:
            z = nn.Conv(16, (3, 3), strides=stride)(x)
            self.sow("intermediates", "z", z)
            x = self.act(z)
        return nn.Dense(10)(x.mean((1, 2)))


class Residual(nn.Module):
    """15 blocks of two layers."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """[batch, in] -> [batch, 10]."""
        x = nn.Dense(WIDTH)(x)
        self.sow("intermediates", "stream", x)
        for _ in range(15):
            z = nn.Dense(WIDTH)(x)
            self.sow("intermediates", "z", z)
            x = x + nn.Dense(WIDTH)(nn.relu(z))
        self.sow("intermediates", "stream", x)
        return nn.Dense(10)(x)


class Turn(nn.Module):
    """One layer of a loop."""

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        """One turn."""
        z = nn.Dense(WIDTH)(x)
        return nn.gelu(z), z


class Loop(nn.Module):
    """31 plain layers, 30 of them in one loop."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """[batch, in] -> [batch, 10]."""
        x = nn.gelu(nn.Dense(WIDTH)(x))
        x, z = nn.scan(Turn, {"params": 0}, split_rngs={"params": True}, length=DEPTH - 1)()(x, None)
        self.sow("intermediates", "z", z)
        return nn.Dense(10)(x)


class Layers(nnx.Module):
    """12 layers of NNX."""

    def __init__(self, rngs: Any):
        sizes = [64, *[WIDTH] * 12]
        self.layers = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in pairwise(sizes)])
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def preactivations(self, x: Any) -> list[Any]:
        """Of all layers but the last."""
        found = []
        for layer in self.layers:
            found.append(layer(nnx.silu(found[-1]) if found else x))
        return found

    def __call__(self, x: Any) -> Any:
        """[batch, in] -> [batch, 10]."""
        return self.head(nnx.silu(self.preactivations(x)[-1]))


def linen(module: Any, act: Any, shape: tuple[int, ...], rows: slice = slice(0, -1)) -> Model:
    """A Linen module that sows z, and perhaps the ends of a stream."""

    def sown(variables: Any, x: Any) -> Any:
        return module.apply(variables, x, mutable=["intermediates"])[1]["intermediates"]

    def ends(variables: Any, x: Any) -> tuple[Any, Any]:
        stream = sown(variables, x)["stream"]
        return stream[0], stream[-1]

    variables = {"params": module.init(jax.random.key(0), jnp.zeros(shape))["params"]}
    is_stream = isinstance(module, Residual)
    return Model(
        (module, variables), lambda v, x: list(sown(v, x)["z"]), act, shape, rows, ends if is_stream else None
    )


def perceptron_of_equinox() -> Model:
    """12 layers with relu; Equinox takes one input at a time."""
    module = eqx.nn.MLP(64, 10, WIDTH, 12, key=jax.random.key(0))

    def seen(module: Any, x: Any) -> list[Any]:
        found: list[Any] = []
        for layer in module.layers[:-1]:
            found.append(jax.vmap(layer)(jax.nn.relu(found[-1]) if found else x))
        return found

    return Model((module,), seen, jax.nn.relu, (NUM_INPUTS, 64), slice(0, -1))


def of_nnx() -> Model:
    """The same of NNX, with silu."""
    module = Layers(nnx.Rngs(0))
    return Model((module,), lambda m, x: m.preactivations(x), nnx.silu, (NUM_INPUTS, 64), slice(0, -1))


def bare_scan() -> Model:
    """A function: pre-activation residual layers in a loop. What is wanted of a stream is told by no target."""

    def preactivations(p: Any, x: Any) -> tuple[Any, Any]:
        def layer(h: Any, w: Any) -> tuple[Any, Any]:
            z = h @ w["up"]
            return h + jax.nn.relu(z) @ w["down"], z

        return jax.lax.scan(layer, x @ p["first"], p["blocks"])

    keys = jax.random.split(jax.random.key(3), 3)
    blocks = {
        name: jax.random.normal(key, (10, WIDTH, WIDTH))
        for name, key in zip(("up", "down"), keys[:2], strict=True)
    }
    params = {"first": jax.random.normal(keys[2], (64, WIDTH)), "blocks": blocks}

    def fn(p: Any, x: Any) -> Any:
        return preactivations(p, x)[0]

    return Model(
        (fn, params), lambda p, x: [preactivations(p, x)[1]], jax.nn.relu, (NUM_INPUTS, 64), slice(1, None, 2),
        lambda p, x: (x @ p["first"], fn(p, x)),
    )  # fmt: skip


def models() -> dict[str, Model]:
    """All ten."""
    vector, image = (NUM_INPUTS, 64), (NUM_INPUTS // 8, 12, 12, 3)
    return {
        "MLP, 31 gelu": linen(Perceptron(nn.gelu), nn.gelu, vector),
        "MLP, 31 relu": linen(Perceptron(nn.relu), nn.relu, vector),
        "MLP, 31 tanh": linen(Perceptron(nn.tanh), nn.tanh, vector),
        "CNN, 6 relu": linen(Images(nn.relu), nn.relu, image),
        "CNN, strides, 6 silu": linen(Images(nn.silu, (1, 2, 1, 2, 1, 1)), nn.silu, image),
        "residual, 15 blocks": linen(Residual(), nn.relu, vector, slice(1, -1, 2)),
        "scan, 31 gelu": linen(Loop(), nn.gelu, vector, slice(1, -1)),
        "Equinox, 12 relu": perceptron_of_equinox(),
        "NNX, 12 silu": of_nnx(),
        "bare, residual scan": bare_scan(),
    }


# --- Distances --------------------------------------------------------------------------------------------------------


def after(act: Any, q: float) -> float:
    """E f(z)^2 of a normal z of variance q, by Gauss and Hermite."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    return float(np.sum(weights * np.asarray(act(np.sqrt(q) * nodes), float) ** 2) / np.sum(weights))


def before(act: Any, second: float) -> float:
    """The variance whose E f(z)^2 this is."""
    return float(brentq(lambda q: after(act, q) - second, 1e-6, 1e3))


class Gauge:
    """(parameters, x) -> second moments of a model's preactivations, and after the activation; compiled once."""

    def __init__(self, model: Model):
        self.model = model
        self._run = eqx.filter_jit(self._moments)
        self._ends = None if model.ends is None else jax.jit(model.ends)

    def _moments(self, params: Any, x: Any) -> Any:
        found = self.model.seen(params, x)
        pairs = [(z, self.model.act(z)) for z in found]
        is_loop = len(found) == 1
        axes = [tuple(range(1 if is_loop else 0, z.ndim)) for z in found]
        return [
            [jnp.mean(jnp.square(each), over) for each in pair]
            for pair, over in zip(pairs, axes, strict=True)
        ]

    def __call__(self, params: Any, x: Any) -> np.ndarray:
        """[before or after, layer]."""
        found = nnx.jit(self._moments)(params, x) if isinstance(params, nnx.Module) else self._run(params, x)
        return np.concatenate([np.asarray(each, float).reshape(2, -1) for each in found], 1)

    def growth(self, params: Any, x: Any) -> float:
        """The second moment of the last hidden array over that of the first."""
        if self._ends is None:
            after_act = self(params, x)[1]
            return float(after_act[-1] / after_act[0])
        first, last = self._ends(params, x)
        return float(jnp.mean(last**2) / jnp.mean(first**2))


def distances(gauge: Gauge, params: Any, batches: Any, targets: Any) -> np.ndarray:
    """[batch, before or after]: means of |log2(second moment / target)|."""
    return np.array([np.mean(np.abs(np.log2(gauge(params, x) / targets)), 1) for x in batches])


def ours(model: Model, gauge: Gauge, method: str, batches: Any, seed: int) -> tuple[np.ndarray, float]:
    """Distances, and the growth."""
    key = jax.random.key(seed)
    found = jaxact.initialize(*model.given, batches[0], method=method, key=key)
    told = found if method == "theory" else jaxact.initialize(*model.given, batches[0], key=key)
    wanted = np.array(
        [each.second_moment + np.nan_to_num(each.bias) ** 2 for each in told.changes[model.rows]]
    )
    targets = np.array([wanted, [after(model.act, q) for q in wanted]])
    params = found.params[1] if isinstance(found.params, tuple) else found.params
    return distances(gauge, params, batches, targets), gauge.growth(params, batches[1])


def theirs(model: Model, gauge: Gauge, method: str, batches: Any, seed: int) -> tuple[np.ndarray, float]:
    """The same of AnyInit."""
    given = np.asarray(batches[0]) if method == "data" else model.shape
    params = model.given[1] if len(model.given) > 1 else None
    params, _ = anyinit.initialize_params(model.given[0], params, given, METHODS[method], seed=seed)
    wanted = 0.5 if model.act is nn.tanh else 1.0
    targets = np.array([[before(model.act, wanted)], [wanted]])
    return distances(gauge, params, batches, targets), gauge.growth(params, batches[1])


# --- The table --------------------------------------------------------------------------------------------------------


def line(name: str, method: str, who: str, found: list[Any], seconds: float) -> np.ndarray:
    """A row of the table; its distances, NaN where it was refused."""
    if not found:
        print(f"{name:21} {method:7} {who:8} refused", flush=True)
        return np.full((2, 2), np.nan)
    mean = np.mean([each for each, _ in found], 0)
    grown = np.exp(np.mean([np.log(each) for _, each in found]))
    told = " ".join(f"{each:8.4f}" for each in mean.ravel())
    print(f"{name:21} {method:7} {who:8} {told} {grown:10.3g} {seconds:6.1f}", flush=True)
    return mean


def trials(one: Callable[..., Any], model: Model, gauge: Gauge, method: str, batches: Any, seeds: int) -> Any:
    """(found, CPU seconds for each, what was raised)."""
    found, began = [], time.process_time()
    try:
        for seed in range(seeds):
            found.append(one(model, gauge, method, batches, seed))
    except Exception as error:  # whatever AnyInit raises is its answer
        if one is ours:
            raise
        return [], 0.0, f"    {type(error).__name__}: {str(error).splitlines()[0][:110]}"
    return found, (time.process_time() - began) / seeds, ""


def main(argv: list[str] | None = None) -> int:
    """Print the table; 0 where every model is ours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", default="", help="models whose name holds this")
    options = parser.parse_args(argv)
    xla.compile_fast()
    columns = " ".join(f"{each:>8}" for each in ("z given", "f given", "z unseen", "f unseen"))
    print(f"{'model':21} {'method':7} {'by':8} {columns} {'last/first':>10} {'CPU s':>6}")
    won = {"given": [0, 0], "unseen": [0, 0]}
    for name, model in models().items():
        if options.only not in name:
            continue
        gauge = Gauge(model)
        batches = [jax.random.normal(jax.random.key(k), model.shape) for k in (1, 2)]
        for method in METHODS:
            rows = []
            for who, one in (("jaxact", ours), ("AnyInit", theirs)):
                found, seconds, told = trials(one, model, gauge, method, batches, options.seeds)
                rows.append(line(name, method, who, found, seconds))
                if told:
                    print(told)
            for k, where in enumerate(won):
                is_ours = np.isnan(rows[1][k, 1]) or rows[0][k, 0] < rows[1][k, 1]
                won[where] = [won[where][0] + int(is_ours), won[where][1] + 1]
    for where, (count, total) in won.items():
        print(f"nearer to its own target, or alone, on the batch {where}: {count} of {total}")
    return 0 if all(count == total for count, total in won.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
