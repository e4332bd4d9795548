"""Lipschitz bounds beside eclipse-nn's: global and local ones of the same networks, each of its methods against ours.

    pip install -e .[bench,study]
    python scripts/bench_lipschitz.py --quick                                # a minute on two idle cores
    python scripts/bench_lipschitz.py --json rows.json --output pairs.npz    # at most 15 minutes

eclipse-nn (Xu & Sivaranjani, NeurIPS 2024 and TMLR 2026) has the global methods Acc (ECLipsE) and Fast, and locally,
in a ball, Acc, Fast and CF; Acc and the local Fast solve semidefinite programs, the others are closed forms. The
networks are "random", He-scaled with inputs and outputs of 10 and 5 entries, and "steepest": orthogonal weights, with
every neuron at the largest slope of its activation at the centre, where the Lipschitz constant is a power of that
slope.

A row is ok where one of ours is at most 1.001 times theirs and takes less time, a tenth of it against a closed form.
What counts is the quickest of repeated calls of either; our first, with its compilation, is printed beside it. Ours
are certified: one that is not larger than theirs proves theirs. Where ours is larger a pair of inputs is searched
that theirs does not hold for, and tried in PyTorch: "invalid". "unproved" is a number of theirs from slopes that are
not those of the activation, where no pair was found: read from a model, every activation has slopes in [0, 1]; "told"
are rows where it was given the true ones. Programs expected to take it longer than `--limit` are left out. It runs in
a process of its own, everything in float64 and BLAS in one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl

ACTIVATIONS = ("relu", "leaky_relu(0.01)", "tanh", "elu", "silu", "gelu")
LOOSER = 1.001  # how much larger than theirs a bound of ours may be
STEPS = (0, 10, 30, 100, 300)  # 0: the closed form of `upper_bound`
START_SECONDS = 120.0
REPEATED = 0.1  # seconds over which a short call of either is repeated, the least time counting
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_TORCH = {
    "leaky_relu": "LeakyReLU",
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "elu": "ELU",
    "tanh": "Tanh",
}
_TORCH |= {"sigmoid": "Sigmoid", "softplus": "Softplus"}


@dataclass
class Row:
    """One of their methods on one network."""

    net: str
    activation: str
    width: int
    depth: int
    region: str
    method: str
    bound: float = math.nan
    seconds: float = math.nan
    note: str = ""
    our_method: str = ""
    our_bound: float = math.nan
    our_first: float = math.nan
    our_seconds: float = math.nan
    verdict: str = ""
    pair: float = math.nan  # ||f(x) - f(y)|| / ||x - y|| of the pair found, in PyTorch
    closed_form: bool = False


@dataclass(frozen=True)
class Net:
    """f(x) = W_L^T phi(... phi(W_1^T x + b_1) ...) + b_L."""

    kind: str
    activation: str
    width: int
    depth: int
    kernels: tuple[np.ndarray, ...]  # [in, out]
    biases: tuple[np.ndarray, ...]
    center: np.ndarray


def main() -> None:
    """Measure and print one line a method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--activations", nargs="+", default=ACTIVATIONS)
    parser.add_argument("--widths", nargs="+", type=int, default=(16, 64, 128))
    parser.add_argument(
        "--depths", nargs="+", type=int, default=(2, 8, 30), help="weight matrices, at least 2"
    )
    parser.add_argument("--radii", nargs="+", type=float, default=(0.01, 0.1, 1.0))
    parser.add_argument(
        "--limit", type=float, default=5.0, help="seconds for a call of theirs; longer ones are left out"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: of each process, for a machine that others use as well",
    )
    parser.add_argument("--minutes", type=float, default=14.0, help="begin no further network after so long")
    parser.add_argument("--quick", action="store_true", help="three activations, small networks, one radius")
    parser.add_argument("--json", type=Path, help="write every row to this file")
    parser.add_argument(
        "--output", type=Path, help="write the pairs that break a bound of theirs to this .npz"
    )
    options = parser.parse_args()
    if options.quick:
        options.activations, options.widths, options.depths = (
            ("relu", "leaky_relu(0.01)", "silu"),
            (16, 64),
            (2, 8),
        )
        options.radii, options.limit = (0.1,), min(options.limit, 2.0)
    theirs, started = Theirs(options.limit, options.clock), time.perf_counter()
    bench = Bench(theirs, options.repeats, CLOCKS[options.clock])
    plan = [net for name in options.activations for net in nets(name, options.widths, options.depths)]
    plan.sort(key=lambda net: net.depth * net.width**2)  # whatever the time does not suffice for is large
    left_out = 0
    try:
        for net in plan:
            if time.perf_counter() - started > 60 * options.minutes:
                left_out += 1
            else:
                bench.measure(net, options.radii)
    finally:
        theirs.close()
    if options.json:
        text = json.dumps(
            {"options": vars(options), "rows": [asdict(row) for row in bench.rows]}, default=str, indent=1
        )
        options.json.write_text(text)
    if options.output:
        np.savez(options.output, **bench.pairs)
    report(bench.rows, time.perf_counter() - started)
    if left_out:
        print(f"{left_out} of {len(plan)} networks were left out for want of time: --minutes")


def nets(name: str, widths: Sequence[int], depths: Sequence[int]) -> list[Net]:
    """Random networks of every size, and the steepest of the smallest width."""
    found = []
    for width in widths:
        for depth in depths:
            rng = np.random.default_rng(1000 * width + depth)
            sizes = [10] + [width] * (depth - 1) + [5]
            kernels = [rng.normal(size=(n, m)) * math.sqrt(2 / n) for n, m in pairwise(sizes)]
            biases = [0.1 * rng.normal(size=m) for m in sizes[1:]]
            found.append(
                Net("random", name, width, depth, tuple(kernels), tuple(biases), rng.normal(size=10))
            )
    return found + [_steepest(name, min(widths), depth) for depth in depths]


def _steepest(name: str, width: int, depth: int) -> Net:
    import jax

    from jaxact import activations

    activation = activations.parse(name)
    rng = np.random.default_rng(depth)
    grid = np.linspace(-4, 4, 80_001)
    with jax.enable_x64(True):
        slopes = np.asarray(jax.vmap(jax.grad(activation))(grid))
        # The middle of the steepest stretch, so that a kinked activation has no kink near.
        place = float(np.mean(grid[slopes >= slopes.max() - 1e-12]))
        value = np.asarray(activation(np.full(width, place)))
    center = rng.normal(size=width)
    kernels, biases, h = [], [], center
    for layer in range(depth):
        kernels.append(np.linalg.qr(rng.normal(size=(width, width)))[0])
        biases.append(place - h @ kernels[-1] if layer < depth - 1 else np.zeros(width))
        h = value
    return Net("steepest", name, width, depth, tuple(kernels), tuple(biases), center)


# ---------------------------------------------------------------------------------------------------------------------


class Bench:
    """Our side: measures, compares, and keeps the rows."""

    def __init__(self, theirs: Theirs, repeats: int, clock: Callable[[], float]):
        import jax

        import jaxact.lipschitz  # noqa: F401  scipy brings a BLAS of its own, which must be there to be limited

        jax.config.update("jax_enable_x64", True)
        threadpoolctl.threadpool_limits(1, user_api="blas")
        self.theirs, self.repeats, self.clock = theirs, repeats, clock
        self.rows: list[Row] = []
        self.pairs: dict[str, np.ndarray] = {}
        self.found: dict[str, float] = {}  # the largest ratio of pairs, by network and region

    def measure(self, net: Net, radii: Sequence[float]) -> None:
        """All rows of one network."""
        from jaxact import activations

        activation = activations.parse(net.activation)
        alpha, beta = map(float, activation.slope_range)
        ours = self._global(net, activation)
        for told in (False,) if (alpha, beta) == (0, 1) else (False, True):
            # What eclipse-nn makes of an nn.Sequential, or with the slopes of the activation.
            slopes = (alpha, beta) if told else None
            covered = alpha >= 0 and (told or beta <= 1)
            for method in ("Fast", "Acc"):
                label = f"{method}, told" if told else method
                row = self._row(net, "global", label, method == "Fast")
                self._theirs(row, net, method=method, slopes=slopes, radius=None)
                self._compare(row, net, ours, covered)
        for radius in radii:
            ours = self._local(net, activation, radius)
            for method in ("CF", "Fast", "Acc"):
                row = self._row(net, f"{radius:g}", method, method == "CF")
                self._theirs(row, net, method=method, slopes=None, radius=radius)
                self._compare(row, net, ours, True)
        print(f"{net.activation} {net.kind} {net.width} x {net.depth}", flush=True)

    def _row(self, net: Net, region: str, method: str, closed_form: bool) -> Row:
        row = Row(net.kind, net.activation, net.width, net.depth, region, method, closed_form=closed_form)
        self.rows.append(row)
        return row

    def _theirs(self, row: Row, net: Net, **request: Any) -> None:
        row.bound, row.seconds, row.note = self.theirs.bound(net, **request)

    def _global(self, net: Net, activation: Any) -> Callable[[int], Ours]:
        from jaxact import lipschitz

        bound = partial(lipschitz.upper_bound, net.kernels, activation)

        def ours(num_steps: int) -> Ours:
            if num_steps == 0:
                return self._timed("eclipse_fast", partial(bound, method="eclipse_fast"))
            refined = partial(bound, method="ellipsoid", num_steps=num_steps)
            return self._timed(f"ellipsoid, {num_steps} steps", refined)

        return _remembered(ours)

    def _local(self, net: Net, activation: Any, radius: float) -> Callable[[int], Ours]:
        from jaxact import lipschitz

        region = lipschitz.Ball(net.center, radius)

        def ours(num_steps: int) -> Ours:
            if num_steps == 0:
                closed = partial(lipschitz.upper_bound, net.kernels, activation, method="eclipse_fast")
                return self._timed("eclipse_fast", partial(closed, biases=net.biases, region=region))
            call = partial(lipschitz.certify, function(net, activation), net.center, region=region)
            return self._timed(f"certify, {num_steps} steps", partial(call, num_steps=num_steps))

        return _remembered(ours)

    def _timed(self, name: str, call: Callable[[], Any]) -> Ours:
        first, value = self._seconds(call)
        best, calls, started = math.inf, 0, time.perf_counter()
        while calls < self.repeats or time.perf_counter() - started < REPEATED:
            best, calls = min(best, self._seconds(call)[0]), calls + 1
            if best > 0.5:
                break
        return Ours(name, value, first, best)

    def _seconds(self, call: Callable[[], Any]) -> tuple[float, float]:
        started = self.clock()
        value = float(call())
        return self.clock() - started, value

    def _compare(self, row: Row, net: Net, ours: Callable[[int], Ours], covered: bool) -> None:
        """The first of ours that is as tight; where none is, what their number is worth."""
        row.our_method, row.our_bound, row.our_first, row.our_seconds = ours(0)
        if not math.isfinite(row.bound):
            row.verdict = "left out" if row.note.startswith(("left out", "ended")) else "theirs cannot"
            return
        if row.our_bound > LOOSER * row.bound:
            row.pair = self._pair(row, net)
            if row.pair > row.bound * (1 + 1e-9):
                row.verdict = f"invalid: a pair has {row.pair:.5g}"
                return
            for num_steps in STEPS[1:]:
                row.our_method, row.our_bound, row.our_first, row.our_seconds = ours(num_steps)
                if row.our_bound <= LOOSER * row.bound or row.our_seconds > 2 * max(row.seconds, 1.0):
                    break
        needed = 10 if row.closed_form else 1
        if not covered:
            row.verdict = f"unproved: a pair has {row.pair:.5g}"
        elif row.our_bound > LOOSER * row.bound:
            row.verdict = "LOOSER"
        elif row.seconds < needed * row.our_seconds:
            row.verdict = f"SLOW: {row.seconds / row.our_seconds:.2g} of {needed}"
        else:
            row.verdict = "ok"

    def _pair(self, row: Row, net: Net) -> float:
        """The largest ratio that is found, of inputs in the region, by PyTorch."""
        import jax

        from jaxact import activations, lipschitz

        name = f"{net.activation} {net.kind} {net.width}x{net.depth} {row.region}"
        if name in self.found:
            return self.found[name]
        radius = math.inf if row.region == "global" else float(row.region)
        fn = function(net, activations.parse(net.activation), stacked=True)

        def within(x: jax.Array) -> jax.Array:
            # The projection onto the ball lengthens nothing: what it attains, fn attains in the ball.
            distance = jax.numpy.linalg.norm(x - net.center)
            return net.center + (x - net.center) * jax.numpy.minimum(
                1, radius / jax.numpy.maximum(distance, 1e-300)
            )

        rng = np.random.default_rng(0)
        near = net.center + rng.normal(size=(3, net.center.size)) * min(radius, 1) / math.sqrt(
            net.center.size
        )
        starts = np.stack([net.center, *near])
        if radius == math.inf:
            starts = np.concatenate([starts, 2 * rng.normal(size=(4, net.center.size))])
            search = fn
        else:

            def search(x: jax.Array) -> jax.Array:
                return fn(within(x))

        found = lipschitz.lower_bound(search, starts, key=jax.random.key(0), num_steps=60)
        x = np.asarray(found.input if radius == math.inf else within(found.input))
        direction = np.linalg.svd(np.asarray(jax.jacobian(fn)(x)))[2][0]
        best = 0.0
        for length in (1e-1, 1e-2, 1e-3, 1e-4):
            length = min(length, 0.1 * radius)
            middle = net.center + (x - net.center) * (1 if radius == math.inf else 1 - length / radius)
            pair = np.stack([middle + length / 2 * direction, middle - length / 2 * direction])
            ratio = self.theirs.ratio(net, pair)
            if ratio > best:
                best = ratio
                self.pairs[name] = pair
        self.found[name] = best
        return best


class Ours(NamedTuple):
    """One of our bounds, the seconds of the first call of it and of a repeated one."""

    method: str
    bound: float
    first: float
    seconds: float


def _remembered(of: Callable[[int], Ours]) -> Callable[[int], Ours]:
    found: dict[int, Ours] = {}

    def remembered(num_steps: int) -> Ours:
        if num_steps not in found:
            found[num_steps] = of(num_steps)
        return found[num_steps]

    return remembered


def function(net: Net, activation: Any, *, stacked: bool = False) -> Callable:
    """The network as a JAX function; `stacked`, with its equal layers in a loop, compiles sooner."""
    from jax import lax

    kernels, biases = net.kernels, net.biases

    def plain(x: Any) -> Any:
        for kernel, bias in zip(kernels[:-1], biases[:-1], strict=True):
            x = activation(x @ kernel + bias)
        return x @ kernels[-1] + biases[-1]

    def looped(x: Any) -> Any:
        x = activation(x @ kernels[0] + biases[0])
        layers = np.stack(kernels[1:-1]), np.stack(biases[1:-1])
        x = lax.scan(lambda h, layer: (activation(h @ layer[0] + layer[1]), None), x, layers)[0]
        return x @ kernels[-1] + biases[-1]

    return looped if stacked and len(kernels) > 3 else plain


# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Theirs:
    """eclipse-nn in a process of its own, which can be ended when it takes too long."""

    limit: float
    clock: str = "wall"
    pace: dict[tuple, float] = field(
        default_factory=dict
    )  # seconds a layer / width^3 of the largest network so far
    process: Any = None
    pipe: Any = None

    def bound(self, net: Net, **request: Any) -> tuple[float, float, str]:
        """(bound, seconds, note); the bound is nan where there is none, and the note says why."""
        kind = request["method"], request["radius"] is None, net.activation
        work = (net.depth - 1) * net.width**3
        expected = self.pace.get(kind, 0.0) * work
        if expected > self.limit:
            return math.nan, math.nan, f"left out: about {expected:.2g} s"
        answer = self._ask(("bound", net, request | {"clock": self.clock}), 4 * self.limit + 1)
        if answer is None:
            self.pace[kind] = max(self.pace.get(kind, 0.0), self.limit / work * 1.1)
            return math.nan, math.nan, f"ended after {self.limit:g} s"
        if math.isfinite(answer[0]) and answer[1] > 0.05:
            self.pace[kind] = answer[1] / work
        return answer

    def ratio(self, net: Net, pair: np.ndarray) -> float:
        """||f(x) - f(y)|| / ||x - y|| in PyTorch."""
        answer = self._ask(("ratio", net, pair), START_SECONDS)
        assert answer is not None
        return answer

    def _ask(self, request: Any, seconds: float) -> Any:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, other = context.Pipe()
            self.process = context.Process(target=_serve, args=(other,), daemon=True)
            self.process.start()
            if not self.pipe.poll(START_SECONDS) or self.pipe.recv() != "ready":
                raise SystemExit("eclipse-nn could not be imported: pip install -e .[bench]")
        self.pipe.send(request)
        if not self.pipe.poll(seconds):
            self.close()
            return None
        return self.pipe.recv()

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def _serve(pipe: Any) -> None:
    try:
        import torch
        from eclipse_nn import LipConstEstimator
    except ImportError as error:
        pipe.send(str(error))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1, user_api="blas")
    pipe.send("ready")
    while True:
        task, net, request = pipe.recv()
        model = _model(net)
        if task == "ratio":
            with torch.no_grad():
                x, y = torch.tensor(request)
                pipe.send(float(torch.linalg.norm(model(x) - model(y)) / torch.linalg.norm(x - y)))
            continue
        estimator = LipConstEstimator(model=model)
        if request["slopes"] is not None:
            estimator.alphas, estimator.betas = ([slope] * (net.depth - 1) for slope in request["slopes"])
        pipe.send(_estimate(estimator, net, request))


def _model(net: Net) -> Any:
    import torch

    parts: list[Any] = []
    for kernel, bias in zip(net.kernels, net.biases, strict=True):
        linear = torch.nn.Linear(*kernel.shape).double()
        linear.weight.data, linear.bias.data = torch.tensor(kernel.T), torch.tensor(bias)
        name, _, argument = net.activation.partition("(")
        arguments = [float(argument.rstrip(")"))] if argument else []
        parts += [linear, getattr(torch.nn, _TORCH[name])(*arguments)]
    return torch.nn.Sequential(*parts[:-1])


def _estimate(estimator: Any, net: Net, request: dict[str, Any]) -> tuple[float, float, str]:
    method, radius, clock = request["method"], request["radius"], CLOCKS[request["clock"]]
    if radius is None:
        call = partial(estimator.estimate, {"Acc": "ECLipsE", "Fast": "ECLipsE_Fast"}[method])
    else:
        name = net.activation.partition("(")[0].replace("_", "")
        call = partial(estimator.estimate_gen_local, net.center, radius, name, method)
    best, repeat, begun = math.inf, 0, time.perf_counter()
    while repeat < 4 or time.perf_counter() - begun < REPEATED:
        told, started = io.StringIO(), clock()
        try:
            with contextlib.redirect_stdout(told):
                found = call()
        except Exception as error:
            return math.nan, math.nan, f"refused: {error}"
        seconds = clock() - started
        best, repeat = min(best, seconds), repeat + 1
        if seconds > 0.5:
            break
    value = float(found[0] if isinstance(found, tuple) else found)
    fell_back = any(words in told.getvalue() for words in ("Falling back", "Failed in initial try"))
    note = "its solver failed: its closed form" if fell_back else ""
    return value, best, note if math.isfinite(value) else "failed"


# ---------------------------------------------------------------------------------------------------------------------


def report(rows: Sequence[Row], seconds: float) -> None:
    """The table, what fell short, and the counts."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 190)
    table = Table(title="eclipse-nn beside jaxact: one row a method of theirs", pad_edge=False)
    for name in ("activation", "net", "width", "depth", "region", "theirs", "bound", "time", "ours", "bound", "first",
                 "time", "bounds", "times", "verdict"):  # fmt: skip
        numeric = name in ("width", "depth", "bound", "time", "first", "bounds", "times")
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(
            row.activation, row.net, str(row.width), str(row.depth), row.region, row.method, _number(row.bound),
            _time(row.seconds), row.our_method, _number(row.our_bound), _time(row.our_first), _time(row.our_seconds),
            _number(row.our_bound / row.bound, 4), _number(row.seconds / row.our_seconds, 3), _verdict(row),
        )  # fmt: skip
    console.print(table)
    counts = Counter(
        (row.method, "global" if row.region == "global" else "local", row.verdict.split(":")[0])
        for row in rows
    )
    summary = Table(title=f"{len(rows)} rows in {seconds:.0f} s", pad_edge=False)
    for name in ("region", "theirs", "verdict", "rows"):
        summary.add_column(name)
    for (method, region, verdict), count in sorted(counts.items(), key=lambda item: (item[0][1], item[0])):
        summary.add_row(region, method, verdict, str(count))
    console.print(summary)
    fallen = sum("closed form" in row.note for row in rows)
    console.print(
        f"In {fallen} rows its solver's answer failed its own check and its closed form was returned."
    )


def _verdict(row: Row) -> str:
    return f"{row.verdict} ({row.note})" if row.note and row.verdict != "ok" else row.verdict


def _number(value: float, digits: int = 5) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}g}"


def _time(seconds: float) -> str:
    if math.isnan(seconds):
        return ""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


if __name__ == "__main__":
    main()
