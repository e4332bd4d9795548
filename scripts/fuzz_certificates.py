"""Try random functions: no slope of one may exceed its certificate.

    python scripts/fuzz_certificates.py                        # two minutes
    python scripts/fuzz_certificates.py --seconds 3600 --seed 3 --json FILE

Each function is a chain, some with skips, of one to four operations drawn from linear maps, the formulas of
`certificate_formulas`, random formulas of one variable, products, normalisations, attention, and functions that look
like one with a certificate and are another (`certificate_traps`; all of them once by --traps). It is certified
everywhere, in balls from 1e-6 to 10 wide, one of them far from 0 around entries that are almost equal, and in boxes;
with refinement steps now and then. Against each certificate go, in float64, Jacobians by `jax.jacfwd`, their norms by
NumPy, and quotients of pairs: at random points of the region, on its boundary, at a box's corners, beside kinks, and at
those that a climb from the steepest finds. Nothing of the engine is used. What cancels, such as E x^2 - (E x)^2, is
measured on a twin that is the same function without cancellation. A slope above its certificate by more than rounding
is printed, and the exit status is 1. What rounding can do is seen by moving the input by a few units of its last place.
At the end come functions whose certificates were once wrong.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from certificate_formulas import (
    CHOOSING,
    CONTROL,
    LINEAR,
    LOGISTIC,
    NORMS,
    RELU,
    SIZE,
    SMOOTH,
    TANH,
)
from certificate_traps import TRAPS, TWINS
from flax import nnx
from jax import lax

from jaxact.lipschitz import Ball, Box, certify

POINTS, ROUNDS, FAR = 256, 6, 1000.0
ROUNDING = 1e-9  # relative, beside what is seen at the point


class Operation(NamedTuple):
    """What a function is made of, and the same without cancellation."""

    name: str
    fn: Callable[[Any], Any]
    twin: Callable[[Any], Any]


class Function(NamedTuple):
    """A random function [SIZE] -> [...], its twin, and what it is made of."""

    name: str
    fn: Callable[[Any], Any]
    twin: Callable[[Any], Any]


def of_size(name: str, fn: Callable[[Any], Any], twin: Callable[[Any], Any] | None = None) -> Operation:
    """A function as an operation: its output repeated or cut to SIZE entries, divided by sqrt of the repeats."""

    def resized(f: Callable[[Any], Any], x: Any) -> Any:
        y = flat(f, x)
        repeats = -(-SIZE // y.size)
        return (jnp.tile(y, repeats) / repeats**0.5)[:SIZE] if y.size != SIZE else y

    return Operation(name, partial(resized, fn), partial(resized, twin or fn))


def flat(fn: Callable[[Any], Any], x: Any) -> Any:
    """All outputs in one vector."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(fn(x))])


def formula(rng: np.random.Generator) -> Operation:
    """A random formula of one variable, as deep as three."""
    unary: dict[str, Callable[[Any], Any]] = {
        "exp": lambda z: jnp.exp(jnp.minimum(z, 3)), "tanh": jnp.tanh, "sin": jnp.sin, "abs": jnp.abs,
        "square": lambda z: jnp.clip(z, -3, 3) ** 2, "sqrt1p": lambda z: jnp.sqrt(1 + z * z),
        "logistic": jax.nn.sigmoid, "log1p": lambda z: jnp.log1p(jnp.abs(z)), "relu": jax.nn.relu,
        "reciprocal": lambda z: 1 / (1 + z**2), "bump": lambda z: jnp.exp(-z * z), "cube": lambda z: z**3,
        "erf": lax.erf, "sign": lambda z: jnp.sign(z) * jnp.expm1(-jnp.abs(z)), "softplus": jax.nn.softplus,
        "identity": lambda z: z,
    }  # fmt: skip
    binary: dict[str, Callable[[Any, Any], Any]] = {
        "+": jnp.add, "-": jnp.subtract, "*": jnp.multiply, "max": jnp.maximum, "min": jnp.minimum,
        "/": lambda u, v: u / (1 + jnp.abs(v)), "?": lambda u, v: jnp.where(u > 0, u * v, 0.3 * u * v),
        "logaddexp": jnp.logaddexp, "switch": lambda u, v: jnp.where(v > 0, u, u - 0.5 * jnp.maximum(-v, 0)),
    }  # fmt: skip

    def tree(depth: int) -> tuple[str, Callable[[Any], Any]]:
        if depth == 0:
            scale, shift = rng.choice([0.5, 1.0, -1.3]), rng.choice([0.0, 0.7])
            return f"({scale}x+{shift})", lambda x: scale * x + shift
        name, inner = tree(depth - 1)
        if rng.random() < 0.5:
            chosen = str(rng.choice([*unary]))
            return f"{chosen}({name})", lambda x: unary[chosen](inner(x))
        chosen, (other, second) = str(rng.choice([*binary])), tree(int(rng.integers(depth)))
        return f"({name} {chosen} {other})", lambda x: binary[chosen](inner(x), second(x))

    name, fn = tree(int(rng.integers(1, 4)))
    return Operation(name, fn, fn)


def linear(rng: np.random.Generator) -> Operation:
    """A map and an offset."""
    A = rng.normal(size=(SIZE, SIZE)) * rng.choice([0.3, 1.0, 2.0]) / SIZE**0.5
    b = rng.normal(size=SIZE)
    return Operation("linear", lambda x: A @ x + b, lambda x: A @ x + b)


def normalised(rng: np.random.Generator) -> Operation:
    """A layer norm by E x^2 - (E x)^2, whose twin takes the differences to one entry first."""
    gains, eps = rng.uniform(0.5, 2, SIZE), 10.0 ** rng.uniform(-6, -1)
    clipped = bool(rng.random() < 0.5)

    def fast(x: Any) -> Any:
        variance = jnp.mean(x**2) - jnp.mean(x) ** 2
        return (x - jnp.mean(x)) * (
            lax.rsqrt((jnp.maximum(variance, 0) if clipped else variance) + eps) * gains
        )

    def careful(x: Any) -> Any:
        d = x - x[0]
        d = d - d.mean()
        return d / jnp.sqrt(jnp.mean(d * d) + eps) * gains

    return Operation(f"fast layer norm, eps {eps:.2g}", fast, careful)


def shifted_square(rng: np.random.Generator) -> Operation:
    """A square with a large number added and taken away, and perhaps a step that the rounding of it would hide."""
    M, step = 10.0 ** rng.uniform(2, 5), float(rng.choice([0.0, 1e-3]))

    def fn(x: Any) -> Any:
        g = (x + M) ** 2 - (x - M) ** 2 - 4 * M * x
        return x + jnp.where(x > 1, g + step, g)

    return Operation(f"x + (x+M)^2-(x-M)^2-4Mx, M {M:.3g}, step {step}", fn, lambda x: x + step * (x > 1))


def product(rng: np.random.Generator) -> Operation:
    """What multiplies variables."""
    Q, K, V = rng.normal(size=(3, 2, 2)) / 2**0.5
    table: dict[str, Callable[[Any], Any]] = {
        "x roll(x)": lambda x: x * jnp.roll(x, 1),
        "gate": lambda x: x * jax.nn.sigmoid(jnp.flip(x)),
        "matrix product": lambda x: (x.reshape(3, 2) @ x.reshape(2, 3)).reshape(-1)[:SIZE],
        "attention": lambda x: (
            jax.nn.softmax((t := x.reshape(3, 2)) @ Q @ (t @ K).T, axis=-1) @ (t @ V)
        ).reshape(-1),
        "masked attention": lambda x: (
            jax.nn.softmax(
                jnp.where(np.tril(np.ones((3, 3), bool)), (t := x.reshape(3, 2)) @ Q @ (t @ K).T, -1e9), axis=-1
            ) @ (t @ V)
        ).reshape(-1),
        "direction": lambda x: x / jnp.linalg.norm(x + 0.5),
        "ratio": lambda x: x / (1 + jnp.flip(x) ** 2),
        "mean times": lambda x: x * x.mean(),
    }  # fmt: skip
    name = str(rng.choice([*table]))
    return Operation(name, table[name], table[name])


ENTRY_BY_ENTRY = [
    of_size(each.name, each.make()) for each in (*LOGISTIC, *TANH, *RELU, *SMOOTH) if each.region is None
]
ALL_TOGETHER = [
    of_size(each.name, each.make())
    for each in (*LINEAR, *CHOOSING, *NORMS, *CONTROL)
    if each.shape == (SIZE,) and "fast variance" not in each.name and each.name != "astype bfloat16-free"
]
LOOK_ALIKE = [of_size(name, fn, TWINS.get(name)) for name, fn in TRAPS.items()]


def drawn(rng: np.random.Generator) -> Function:
    """A random function."""
    kinds: list[Callable[[], Operation]] = [
        lambda: linear(rng),
        lambda: ENTRY_BY_ENTRY[rng.integers(len(ENTRY_BY_ENTRY))],
        lambda: ALL_TOGETHER[rng.integers(len(ALL_TOGETHER))],
        lambda: LOOK_ALIKE[rng.integers(len(LOOK_ALIKE))],
        lambda: formula(rng),
        lambda: product(rng),
        lambda: normalised(rng),
        lambda: shifted_square(rng),
    ]
    chosen = rng.choice(
        len(kinds), size=rng.integers(1, 5), p=[0.25, 0.22, 0.2, 0.08, 0.12, 0.06, 0.05, 0.02]
    )
    operations = [kinds[kind]() for kind in chosen]
    has_skips = bool(rng.random() < 0.4)
    name = " -> ".join(each.name for each in operations) + (" with skips" if has_skips else "")
    fn, twin = (chained([part(each) for each in operations], has_skips) for part in (
        lambda each: each.fn, lambda each: each.twin))  # fmt: skip
    return Function(name, fn, twin)


def chained(operations: list[Callable[[Any], Any]], has_skips: bool) -> Callable[[Any], Any]:
    """One after the other, every other one beside a skip."""

    def fn(x: Any) -> Any:
        for place, operation in enumerate(operations):
            y = operation(x)
            x = x + 0.5 * y if has_skips and place % 2 else y
        return x

    return fn


def regions(rng: np.random.Generator) -> Iterator[tuple[str, Ball | Box | None]]:
    """Everywhere, three balls, one far from 0, and two boxes."""
    yield "everywhere", None
    for low, high in ((-6, -2), (-2, 0), (0, 1)):
        yield "ball", Ball(rng.normal(size=SIZE), 10 ** rng.uniform(low, high))
    center = FAR + 1e-3 * rng.normal(size=SIZE)
    yield "far ball", Ball(center, 10 ** rng.uniform(-13, -3))
    for low, high in ((-3, -1), (-1, 0.7)):
        center, half = rng.normal(size=SIZE), 10 ** rng.uniform(low, high) * rng.random(SIZE)
        yield "box", Box(center - half, center + half)


def within(x: np.ndarray, region: Ball | Box | None) -> np.ndarray:
    """The nearest points of the region, a trillionth inside of what its floats allow."""
    if region is None:
        return x
    if isinstance(region, Box):
        return np.clip(x, region.lower, region.upper)
    offset = x - region.center
    lengths = np.linalg.norm(offset, axis=1, keepdims=True)
    reach = max(region.radius * (1 - 1e-12) - 4e-16 * np.abs(region.center).max(), 0.0)
    return region.center + offset * np.minimum(1, reach / np.maximum(lengths, 1e-300))


def starts(rng: np.random.Generator, region: Ball | Box | None) -> np.ndarray:
    """Points inside, on the boundary, at corners, and beside kinks: entries near 0 or near one another."""
    center, reach = extent(region)
    x = rng.normal(size=(POINTS, SIZE)) * 10 ** rng.uniform(-3, 1.5, (POINTS, 1))
    if isinstance(region, Ball):
        x = center + x * reach
    elif region is not None:
        corners = rng.integers(0, 2, x.shape)
        x = np.where(rng.random(x.shape) < 0.5, corners, rng.random(x.shape))
        x = region.lower + x * (region.upper - region.lower)
    tiny = 1e-9 * rng.choice([-1.0, 1.0], x.shape)
    x[: POINTS // 8] = np.where(
        rng.random(x[: POINTS // 8].shape) < 0.5, tiny[: POINTS // 8], x[: POINTS // 8]
    )
    x[POINTS // 8 : POINTS // 4, 1::2] = (
        x[POINTS // 8 : POINTS // 4, ::2] + tiny[POINTS // 8 : POINTS // 4, 1::2]
    )
    return within(x, region)


def extent(region: Ball | Box | None) -> tuple[np.ndarray, np.ndarray | float]:
    """A region's middle and how far it goes."""
    if region is None:
        return np.zeros(SIZE), 1.0
    if isinstance(region, Ball):
        return region.center, region.radius
    return (region.lower + region.upper) / 2, (region.upper - region.lower) / 2


class Attacker:
    """Slopes of one function, compiled once."""

    def __init__(self, fn: Callable[[Any], Any]):
        self._fn = fn = partial(flat, fn)
        self._jacobians, self._values = jax.jit(jax.vmap(jax.jacfwd(fn))), jax.jit(jax.vmap(fn))

    def norms(self, x: np.ndarray) -> np.ndarray:
        """||J||_2 at each point; 0 where it is not finite."""
        return np.linalg.norm(np.nan_to_num(self._jacobians(x), posinf=0, neginf=0), 2, axis=(1, 2))

    def operation_by_operation(self, x: np.ndarray) -> float:
        """||J||_2 at a point, uncompiled: a vectorised tanh may be 1 ulp short of 1, which z^3 sech^2(z) magnifies."""
        return float(np.linalg.norm(np.asarray(jax.jacfwd(self._fn)(jnp.asarray(x))), 2))

    def steepest(self, rng: np.random.Generator, region: Ball | Box | None) -> tuple[float, np.ndarray]:
        """The largest norm found, less what a few last places of the input change, and where."""
        x = starts(rng, region)
        reach = extent(region)[1]
        norms = self.norms(x)
        for k in range(ROUNDS):
            best = x[np.argsort(norms)[-8:]]
            steps = rng.normal(size=(POINTS - 8, SIZE)) * 10 ** rng.uniform(-3 - k, -0.5, (POINTS - 8, 1))
            x = np.concatenate([best, within(best.repeat((POINTS - 8) // 8, 0) + steps * reach, region)])
            norms = self.norms(x)
        place = x[norms.argmax()]
        moved = np.tile(place, (POINTS, 1)) * (1 + 4e-16 * rng.integers(-2, 3, (POINTS, SIZE)))
        return float(norms.max() - np.ptp(self.norms(within(moved, region)))), place

    def quotient(self, rng: np.random.Generator, region: Ball | Box | None) -> tuple[float, np.ndarray]:
        """The largest ||f(x) - f(y)|| / ||x - y||, less rounding, over pairs that are not too close."""
        x = starts(rng, region)
        steps = rng.normal(size=x.shape) * 10 ** rng.uniform(-3, 0.5, (POINTS, 1))
        y = within(x + steps * extent(region)[1], region)
        fx, fy = np.asarray(self._values(x)), np.asarray(self._values(y))
        distance = np.linalg.norm(x - y, axis=1)
        # Both ends' own rounding: one in 1e12 of what is seen, and what a last place of the input changes.
        moved = np.asarray(self._values(x * (1 + 4e-16 * rng.choice([-1, 1], x.shape))))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # what overflows proves nothing
            slack = 8 * np.linalg.norm(moved - fx, axis=1)
            slack = slack + 1e-12 * (np.abs(fx).max(1) + np.abs(fy).max(1) + np.abs(x).max(1))
            change = np.linalg.norm(fx - fy, axis=1) - slack
            quotients = np.nan_to_num(np.where(distance > 0, change / distance, 0), posinf=0, neginf=0)
        return float(quotients.max()), np.stack([x[quotients.argmax()], y[quotients.argmax()]])


def attack(function: Function, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """One row a region."""
    attacker = Attacker(function.twin)
    for where, region in regions(rng):
        num_steps = int(rng.choice([0, 0, 0, 0, 10]))
        found: dict[str, Any] = {"function": function.name, "region": where, "num_steps": num_steps}
        try:
            bound = certify(function.fn, jnp.zeros(SIZE), region=region, num_steps=num_steps).value
        except ValueError as error:
            yield found | {"outcome": "refused", "why": str(error)}
            continue
        except Exception as error:
            yield found | {"outcome": "crashed", "why": f"{type(error).__name__}: {error}"}
            continue
        slope, place = max(
            attacker.steepest(rng, region), attacker.quotient(rng, region), key=lambda each: each[0]
        )
        if slope > bound * (1 + ROUNDING) + 1e-12 and place.ndim == 1:
            slope = min(slope, attacker.operation_by_operation(place))
        holds = slope <= bound * (1 + ROUNDING) + 1e-12
        found |= {"bound": bound, "slope": slope, "outcome": "holds" if holds else "violated"}
        yield found if holds else found | {"at": place.tolist(), "limits": limits(region)}


def once_wrong_functions(rng: np.random.Generator) -> Iterator[tuple[str, Any, Any, Ball | Box, float]]:
    """Name, function, example, region and true slope of what engines before this one fell short of."""
    for fast in (nnx.LayerNorm, partial(nnx.LayerNorm, use_scale=False), nnx.RMSNorm):
        center = FAR + 1e-3 * rng.normal(size=8)
        d = center - center[0]  # exact; the mean of what is small then loses nothing
        d = d - d.mean() if fast is not nnx.RMSNorm else center
        s = np.sqrt(np.mean(d**2) + 1e-6)
        free = np.eye(8) - (1 / 8 if fast is not nnx.RMSNorm else 0)
        slope = np.linalg.norm((free - np.outer(d, d) / (8 * s**2)) / s, 2)
        yield "flax norm far from 0", fast(8, rngs=nnx.Rngs(0)), center, Ball(center, 1e-13), float(slope)
    M = 1e5
    g = lambda x: (x + M) ** 2 - (x - M) ** 2 - 4 * M * x  # noqa: E731
    jump = lambda x: jnp.where(x > 1, g(x) + 1e-3, g(x))  # noqa: E731
    yield "hidden jump", jump, np.ones(1), Box(np.full(1, 0.5), np.full(1, 1.5)), 5e5  # over 2e-9
    yield "far range", lambda x: 1e-30 * x**2, np.ones(1), Box(np.zeros(1), np.full(1, 1e60)), 2e30


def once_wrong(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Rows of what was once wrong."""
    for name, fn, example, region, slope in once_wrong_functions(rng):
        found: dict[str, Any] = {"function": name, "region": type(region).__name__, "slope": slope}
        try:
            found["bound"] = certify(fn, jnp.zeros(example.shape), region=region).value
        except ValueError as error:
            yield found | {"outcome": "refused", "why": str(error)}
            continue
        holds = slope <= found["bound"] * (1 + ROUNDING)
        yield found | {"outcome": "holds" if holds else "violated"}


def limits(region: Ball | Box | None) -> Any:
    """A region as numbers."""
    if region is None:
        return None
    return [np.asarray(each).tolist() for each in vars(region).values()]


def main() -> int:
    """Certify and attack until the time is up; 1 if a certificate was violated."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--traps", action="store_true", help="first every function of `certificate_traps`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="append every row to this file, a line each"
    )
    asked = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rng, end = np.random.default_rng(asked.seed), time.monotonic() + asked.seconds
    counts: Counter[str] = Counter()
    ratios = []
    first = [Function(*each) for each in LOOK_ALIKE] if asked.traps else []
    is_over = False
    while not is_over:
        is_over = time.monotonic() > end and not first
        counts["functions"] += 1
        function = first.pop() if first else drawn(rng)
        for row in once_wrong(np.random.default_rng(0)) if is_over else attack(function, rng):
            counts[row["outcome"]] += 1
            if row["outcome"] in ("violated", "crashed"):
                print(f"{row['outcome'].upper()} {json.dumps(row)}", flush=True)
            elif row["outcome"] == "holds":
                ratios.append(row["slope"] / max(row["bound"], 1e-300))
            if asked.json:
                with asked.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
        if counts["functions"] % 50 == 0:
            jax.clear_caches()
    certificates = counts["holds"] + counts["violated"]
    print(
        f"{counts['functions']} functions, {certificates} certificates, {counts['refused']} refused, "
        f"{counts['crashed']} crashed, {counts['violated']} violated; slope / certificate: largest "
        f"{max(ratios, default=0):.9f}, median {np.median(ratios) if ratios else 0:.3f}"
    )
    return int(counts["violated"] > 0 or certificates == 0)


if __name__ == "__main__":
    sys.exit(main())
