"""Certify formulas and parts of models as people write them: how many are covered, and how near the constants are.

    python scripts/coverage_certificates.py                            # all: about ten minutes on two cores
    python scripts/coverage_certificates.py --only "LayerNorm" --json FILE

Each is certified in the region it is meant in, float64 not enabled, as its user would. Beside the bound stand the exact
constant where one is known, and the largest of 2,000 Jacobian norms within the region, by `jax.jacfwd` in float64 and
NumPy. A bound below either by more than rounding is a violation, and the exit status is 1; so it is where a constant
is below what was sampled, for then the constant is wrong.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from certificate_formulas import FORMULAS, Case
from certificate_parts import PARTS
from rich.console import Console
from rich.table import Table

from jaxact.lipschitz import Ball, certify

POINTS, ROUNDING = 2000, 1e-6  # of the constants of float32 weights too


def points(case: Case, num: int = POINTS, seed: int = 0) -> np.ndarray:
    """Within the region, on its boundary, and at many distances from 0 where there is no region [num, ...]."""
    rng, region = np.random.default_rng(seed), case.region
    directions = rng.normal(size=(num, *case.shape))
    if region is None:
        sizes = 10 ** rng.uniform(-4, 1.3, num)
        sizes[:1] = 0
        return directions * sizes.reshape(-1, *(1 for _ in case.shape))
    if isinstance(region, Ball):
        lengths = np.linalg.norm(directions.reshape(num, -1), axis=1)
        sizes = region.radius * np.where(rng.random(num) < 0.5, 1, rng.random(num)) / lengths
        return region.center + (1 - 1e-12) * directions * sizes.reshape(-1, *(1 for _ in case.shape))
    weights = np.clip(rng.uniform(-0.3, 1.3, directions.shape), 1e-12, 1 - 1e-12)
    return region.lower + weights * (region.upper - region.lower)


def jacobian_norms(fn: Callable[[Any], Any], inputs: np.ndarray) -> np.ndarray:
    """||J||_2 at each input [num], in float64; 0 where a derivative is not finite."""

    def flat(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(fn(x.reshape(inputs.shape[1:])))])

    with jax.enable_x64(True):
        found = np.asarray(jax.jit(jax.vmap(jax.jacfwd(flat)))(jnp.asarray(inputs.reshape(len(inputs), -1))))
    return np.linalg.norm(np.nan_to_num(found, posinf=0, neginf=0), 2, axis=(1, 2))


def row(case: Case, num_steps: int) -> dict[str, Any]:
    """What one case gives."""
    found: dict[str, Any] = {"name": case.name, "region": described(case.region), "constant": case.constant}
    fn, start = case.make(), time.perf_counter()
    try:
        found["bound"] = certify(fn, jnp.zeros(case.shape), region=case.region, num_steps=num_steps).value
        found["refusal"] = ""
    except Exception as error:  # a crash counts as a refusal, and is told apart by its class
        found["bound"], found["refusal"] = None, f"{type(error).__name__}: {error}"
    found["seconds"] = time.perf_counter() - start
    found["sampled"] = float(jacobian_norms(fn, points(case)).max())
    reference = found["sampled"] if case.constant is None else case.constant
    found["ratio"] = None if found["bound"] is None else found["bound"] / reference
    return found | {"verdict": verdict(found)}


def verdict(found: dict[str, Any]) -> str:
    """One word: refused, VIOLATED, WRONG CONSTANT, exact, loose or bounded."""
    bound, constant, sampled = found["bound"], found["constant"], found["sampled"]
    if constant is not None and constant < sampled * (1 - ROUNDING):
        return "WRONG CONSTANT"
    if bound is None:
        return "refused"
    if bound < max(sampled, constant or 0.0) * (1 - ROUNDING):
        return "VIOLATED"
    return "bounded" if constant is None else "exact" if bound <= 1.01 * constant else "loose"


def described(region: Any) -> str:
    """A region in a few characters."""
    if region is None:
        return "everywhere"
    if isinstance(region, Ball):
        return f"ball {region.radius:g}"
    return f"box [{region.lower.min():g}, {region.upper.max():g}]"


def summary(rows: list[dict[str, Any]]) -> str:
    """The shares."""
    certified = sum(each["bound"] is not None for each in rows)
    known = [each for each in rows if each["constant"] is not None]
    exact = sum(each["verdict"] == "exact" for each in known)
    wrong = sum(each["verdict"] in ("VIOLATED", "WRONG CONSTANT") for each in rows)
    return (
        f"{certified} of {len(rows)} certified ({certified / max(len(rows), 1):.1%}), {exact} of {len(known)} with "
        f"a known constant within 1 % ({exact / max(len(known), 1):.1%}), {wrong} violated"
    )


def main() -> int:
    """Print the table and the shares; 1 if a bound is too small."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="of a name")
    parser.add_argument("--num-steps", type=int, default=0, help="refinement steps of the certificates")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row to this file")
    asked = parser.parse_args()
    groups = {}
    for title, cases in {"formulas": FORMULAS, "parts of models": PARTS}.items():
        groups[title] = []
        for case in (each for each in cases if asked.only in each.name):
            groups[title].append(row(case, asked.num_steps))
            print(".", end="", file=sys.stderr, flush=True)
        jax.clear_caches()  # hundreds of programs
    rows = [each for group in groups.values() for each in group]
    if not rows:
        parser.error(f"no case is called anything with {asked.only!r}")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))
    headings = ("name", "region", "bound", "constant", "sampled", "ratio", "seconds", "verdict", "refusal")
    table = Table(*headings)
    for each in rows:
        cells = (each[heading] for heading in headings)
        table.add_row(*(f"{x:.5g}" if isinstance(x, float) else "" if x is None else str(x) for x in cells))
    console = Console(width=None if Console().is_terminal else 180)
    console.print(table, markup=False)
    for title, group in groups.items():
        console.print(f"{title}: {summary(group)}")
    return int(any(each["verdict"] in ("VIOLATED", "WRONG CONSTANT") for each in rows))


if __name__ == "__main__":
    sys.exit(main())
