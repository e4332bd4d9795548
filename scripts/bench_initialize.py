"""How near to their targets the layers come: `jaxact.initialize` beside AnyInit 0.4.0 on Linen models.

    pip install anyinit==0.4.0                  # or: pip install jaxact[bench]
    python scripts/bench_initialize.py          # about two minutes on one core

The two aim at different places: AnyInit at a second moment of 1 after the activation, jaxact before it (and at 1 / L
at the end of each of L residual branches). So each is held against its own target: the mean over layers of
|log2(second moment / target)|, 0 where all are met, 1 where they are off by a factor of 2 in the mean, on the batch
that was given and on one that was not; and, as no target says what becomes of a stream of residual branches, the second
moment of the last hidden array over that of the first. AnyInit's refusals are printed as they are.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import anyinit
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxact

WIDTH, DEPTH, NUM_INPUTS, NUM_SEEDS = 128, 31, 128, 2
METHODS = {"theory": "analytic", "data": "empirical"}


class Perceptron(nn.Module):
    """31 plain layers."""

    act: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """[batch, in] -> [batch, 10]."""
        for _ in range(DEPTH):
            x = self.act(nn.Dense(WIDTH)(x))
            self.sow("intermediates", "act", x)
        return nn.Dense(10)(x)


class Images(nn.Module):
    """6 convolutions."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """[batch, 12, 12, 3] -> [batch, 10]."""
        for _ in range(6):
            x = nn.relu(nn.Conv(16, (3, 3))(x))
            self.sow("intermediates", "act", x)
        return nn.Dense(10)(x.mean((1, 2)))


class Residual(nn.Module):
    """15 blocks of two layers."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """[batch, in] -> [batch, 10]."""
        x = nn.Dense(WIDTH)(x)
        self.sow("intermediates", "stream", x)
        for _ in range(15):
            h = nn.relu(nn.Dense(WIDTH)(x))
            self.sow("intermediates", "act", h)
            x = x + nn.Dense(WIDTH)(h)
            self.sow("intermediates", "stream", x)
        return nn.Dense(10)(x)


class Turn(nn.Module):
    """One layer of a loop."""

    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        """One turn."""
        return nn.gelu(nn.Dense(WIDTH)(x)), None


class Loop(nn.Module):
    """The plain layers as one loop."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """[batch, in] -> [batch, 10]."""
        x, _ = nn.scan(Turn, {"params": 0}, split_rngs={"params": True}, length=DEPTH)()(x, None)
        return nn.Dense(10)(x)


LINEN = {
    "MLP, 31 gelu": (Perceptron(nn.gelu), (NUM_INPUTS, 64)),
    "MLP, 31 relu": (Perceptron(nn.relu), (NUM_INPUTS, 64)),
    "CNN, 6 relu": (Images(), (NUM_INPUTS // 8, 12, 12, 3)),
    "residual, 15 blocks": (Residual(), (NUM_INPUTS, 64)),
    "scan, 31 gelu": (Loop(), (NUM_INPUTS, 64)),
}


def distance(seconds: Any, targets: Any) -> float:
    """The mean of |log2(second moment / target)|."""
    return float(np.mean(np.abs(np.log2(np.asarray(seconds) / np.asarray(targets)))))


def ours(model: Any, method: str, x: Any, unseen: Any, key: Any) -> tuple[Any, list[float]]:
    """(parameters, distances on the batch and beside it)."""
    found = jaxact.initialize(model, x, method=method, key=key)
    goal = [each.second_moment for each in jaxact.initialize(model, x, key=key).changes]
    numbers = [jaxact.diagnose(found.params, each, jacobian=False).to_frame() for each in (x, unseen)]
    return found.params, [distance(frame["second_moment"], goal) for frame in numbers]


def theirs(
    module: Any, variables: Any, method: str, x: Any, unseen: Any, seed: int
) -> tuple[Any, list[float]]:
    """The same of AnyInit, after the activations."""
    given = np.asarray(x) if method == "data" else tuple(x.shape)
    params, _ = anyinit.initialize_params(module, variables, given, METHODS[method], seed=seed)
    hidden = [intermediates(module, params, each)["act"] for each in (x, unseen)]
    return (module, params), [distance([jnp.mean(h**2) for h in each], 1.0) for each in hidden]


def intermediates(module: Any, variables: Any, x: Any) -> Any:
    """What a module sows."""
    return module.apply(variables, x, mutable=["intermediates"])[1]["intermediates"]


def growth(model: Any, x: Any) -> str:
    """The second moment of the last hidden array over that of the first."""
    found = intermediates(*model, x)
    hidden = found.get("stream", found["act"])
    return f"{float(jnp.mean(hidden[-1] ** 2) / jnp.mean(hidden[0] ** 2)):.3g}"


def line(name: str, method: str, who: str, distances: Any, grown: str, seconds: float) -> None:
    """A row of the table."""
    told = [f"{each:.3f}" for each in np.mean(distances, 0)] if len(distances) else ["refused", ""]
    print(f"{name:22} {method:7} {who:8} {told[0]:>9} {told[1]:>9} {grown:>10} {seconds:8.1f}", flush=True)


def linen_rows() -> None:
    """Both on Linen models, two seeds."""
    for name, (module, shape) in LINEN.items():
        x, unseen = (jax.random.normal(jax.random.key(k), shape) for k in (1, 2))
        variables = {"params": module.init(jax.random.key(0), x)["params"]}
        for method in METHODS:
            found, began = [], time.process_time()
            for seed in range(NUM_SEEDS):
                model, each = ours((module, variables), method, x, unseen, jax.random.key(seed))
                found.append(each)
            grown = growth(model, unseen) if not isinstance(module, Loop) else ""
            line(name, method, "jaxact", found, grown, (time.process_time() - began) / NUM_SEEDS)
            found, began = [], time.process_time()
            try:
                for seed in range(NUM_SEEDS):
                    model, each = theirs(module, variables, method, x, unseen, seed)
                    found.append(each)
                line(
                    name,
                    method,
                    "AnyInit",
                    found,
                    growth(model, unseen),
                    (time.process_time() - began) / NUM_SEEDS,
                )
            except Exception as error:  # whatever it raises is its answer
                line(name, method, "AnyInit", [], "", (time.process_time() - began) / NUM_SEEDS)
                print(f"    {type(error).__name__}: {str(error).splitlines()[0][:100]}")


def others() -> None:
    """What AnyInit says to models that are not Linen's, and what becomes of them here."""
    x, unseen = (jax.random.normal(jax.random.key(k), (NUM_INPUTS, 64)) for k in (1, 2))
    stack = jax.random.normal(jax.random.key(3), (DEPTH, 64, 64))

    def bare(w: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, w: (jax.nn.gelu(h) @ w, None), x, w)[0]

    module = nnx.Sequential(
        *[layer for _ in range(8) for layer in (nnx.Linear(64, 64, rngs=nnx.Rngs(0)), nnx.gelu)]
    )
    for name, fn, params, tried in (("bare JAX, a scan", bare, stack, bare), ("NNX", module, None, module)):
        for method in METHODS:
            began = time.process_time()
            given = (fn, params) if params is not None else (fn,)
            found = jaxact.initialize(*given, x, method=method)
            rows = jaxact.diagnose(
                *((fn, found.params) if params is not None else (found.params,)), unseen
            ).rows
            apart = distance([row.second_moment for row in rows], 1.0)
            line(name, method, "jaxact", [apart], "", time.process_time() - began)
        try:
            anyinit.initialize(tried, "analytic", tuple(x.shape), params=params)
        except Exception as error:  # whatever it raises is its answer
            line(name, "both", "AnyInit", [], "", 0.0)
            print(f"    {type(error).__name__}: {str(error).splitlines()[0][:100]}")


def main() -> int:
    """Print the table."""
    print(f"{'model':22} {'method':7} {'by':8} {'|log2|':>9} {'unseen':>9} {'last/first':>10} {'CPU s':>8}")
    linen_rows()
    others()
    return 0


if __name__ == "__main__":
    sys.exit(main())
