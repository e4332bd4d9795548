"""The engine of this checkout beside that of another: no bound looser, none lost, none much slower.

    git worktree add /tmp/before main && python scripts/compare_certificates.py --against /tmp/before
    python scripts/compare_certificates.py --against /tmp/before --only "pre-activation" --repeats 9

Formulas and parts of models (`certificate_formulas`, `certificate_parts`) and deep networks are certified by both, a
process each, in turns: now one, now the other. A time is the least of several calls after the first, which compiles, in
seconds of the processor, so that what else the machine does matters less; where it seems longer, more calls tell. A
bound looser by more than 1e-6 or a function lost makes the exit status 1; those slower than 1.2 times, and by more than
five milliseconds, are listed. On a busy machine equal engines differ by half.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from certificate_formulas import FORMULAS, Case
from certificate_parts import PARTS, around, pre_activation, weights

LOOSER, SLOWER = 1e-6, 1.2
NOISE, PATIENCE = 0.005, 5.0  # in seconds: no slowness below; so long is called before one counts as slower


def chain(depth: int, width: int, activation: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Layers of one width."""
    matrices = [weights(width, width, seed=k, scale=2**0.5) for k in range(depth)]

    def fn(x: Any) -> Any:
        for W in matrices:
            x = activation(W @ x)
        return x

    return fn


def scanned(depth: int, width: int) -> Callable[[Any], Any]:
    """Pre-activation blocks by lax.scan."""
    stacked = weights(depth, width, width, scale=0.5)
    return lambda x: jax.lax.scan(lambda h, W: (h + W @ jax.nn.gelu(h), None), x, stacked)[0]


def deep() -> Iterator[Case]:
    """Networks as deep as people certify."""
    for activation in (jax.nn.relu, jnp.tanh, jax.nn.gelu):
        for depth, width in ((8, 64), (32, 16), (64, 32)):
            fn, name = chain(depth, width, activation), f"chain {depth} x {width}, {activation.__name__}"
            yield Case(name, lambda fn=fn: fn, (width,), None, None)
            yield Case(f"{name}, ball", lambda fn=fn: fn, (width,), around((width,), 0.1), None)
    for activation in (jax.nn.relu, jax.nn.gelu):
        for blocks in (4, 16, 64):
            fn, name = (
                pre_activation(activation, blocks),
                f"{blocks} pre-activation blocks, {activation.__name__}",
            )
            yield Case(name, lambda fn=fn: fn, (6,), None, None)
            yield Case(f"{name}, ball", lambda fn=fn: fn, (6,), around((6,), 0.1), None)
    for depth in (8, 64):
        yield Case(f"{depth} scanned blocks", lambda depth=depth: scanned(depth, 16), (16,), None, None)


CASES = [*FORMULAS, *PARTS, *deep()]


class Engine:
    """A process that certifies with the engine of one checkout."""

    def __init__(self, checkout: Path):
        environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(checkout.resolve())],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, index: int, num_steps: int) -> dict[str, Any]:
        """Certify one case once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(index, num_steps, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(checkout: str) -> None:
    """Answer questions on stdin, a line each, until there are no more."""
    from jaxact import lipschitz

    assert Path(lipschitz.__file__).is_relative_to(checkout), f"{lipschitz.__file__} is not of {checkout}"
    made: dict[int, Callable[[Any], Any]] = {}
    for line in sys.stdin:
        index, num_steps = map(int, line.split())
        case = CASES[index]
        if index not in made:
            if len(made) == 50:  # hundreds of programs would fill the memory
                made.clear()
                jax.clear_caches()
            made[index] = case.make()
        start = time.process_time()
        try:
            found = lipschitz.certify(
                made[index], jnp.zeros(case.shape), region=case.region, num_steps=num_steps
            )
            answer: dict[str, Any] = {"bound": found.value}
        except Exception as error:
            answer = {"bound": None, "why": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer | {"seconds": time.process_time() - start}), flush=True)


def compared(name: str, ask: list[Callable[[], dict[str, Any]]], repeats: int) -> dict[str, Any]:
    """One case by both engines, in turns: ratios of this one to the other."""
    first = [each() for each in ask]
    ours, theirs = (each["bound"] for each in first)
    row = {
        "name": name,
        "ours": ours,
        "theirs": theirs,
        "bounds": None,
        "times": None,
        "why": first[0].get("why"),
    }
    if ours is None or theirs is None:
        return row | {"verdict": "lost" if theirs is not None else "gained" if ours is not None else ""}
    row["bounds"] = ours / theirs if theirs else 1.0 + ours
    seconds = np.full(2, np.inf)
    slow, start = True, time.perf_counter()
    for k in itertools.count(1):
        order = slice(None, None, (-1) ** k)  # neither always finds the caches as the other left them
        seconds[order] = np.minimum(seconds[order], [each()["seconds"] for each in ask[order]])
        slow = bool(seconds[0] > SLOWER * seconds[1] and seconds[0] - seconds[1] > NOISE)
        if k >= repeats and (not slow or time.perf_counter() - start > PATIENCE):
            break
    row |= {"times": seconds[0] / seconds[1], "seconds": float(seconds[0])}
    if row["bounds"] > 1 + LOOSER:
        return row | {"verdict": "LOOSER"}
    return row | {"verdict": "slower" if slow else "tighter" if row["bounds"] < 1 - LOOSER else ""}


def main() -> int:
    """Print the rows that differ and the counts; 1 if any bound is looser or lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="the other checkout")
    parser.add_argument(
        "--checkout", type=Path, default=Path(__file__).parents[1], help="instead of this one"
    )
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of a name")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every n-th case only")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each, at least")
    parser.add_argument("--num-steps", type=int, default=0, help="refinement steps of the certificates")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row to this file")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
        return 0
    if asked.against is None:
        parser.error("--against says which checkout to compare with")
    engines = [Engine(asked.checkout), Engine(asked.against)]
    rows = []
    chosen = [k for k, case in enumerate(CASES) if asked.only in case.name][:: asked.every]
    for index in chosen:
        ask = [lambda engine=engine, k=index: engine.ask(k, asked.num_steps) for engine in engines]
        row = compared(CASES[index].name, ask, asked.repeats)
        rows.append(row)
        print(".", end="", file=sys.stderr, flush=True)
        if row["verdict"]:
            print("{verdict:8}{name}: {ours} for {theirs}; times {times}".format(**row), flush=True)
            if row["verdict"] == "lost":
                print(f"        {row['why']}")
    for engine in engines:
        engine.close()
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))
    times = [row["times"] for row in rows if row["times"] is not None]
    counts = {
        word: sum(row["verdict"] == word for row in rows)
        for word in ("lost", "LOOSER", "slower", "tighter", "gained")
    }
    print(
        f"{len(rows)} cases, {len(times)} certified by both: {', '.join(f'{n} {word}' for word, n in counts.items())}"
        f"; times {np.median(times) if times else 1:.2f} in the median, {max(times, default=1):.2f} at most"
    )
    return int(counts["lost"] + counts["LOOSER"] > 0)


if __name__ == "__main__":
    sys.exit(main())
