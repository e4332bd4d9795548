"""How many planted faults a diagnosis names first, with kind and layer, and how often it sees one where there is none.

    python scripts/diagnose_faults.py                        # some four minutes on two cores
    python scripts/diagnose_faults.py --fresh                # the same at other widths, depths and seeds
    python scripts/diagnose_faults.py --other                # 17 other designs

The models are those of `diagnose_models.py`. A fault counts as named where the first finding is of a kind that tells it
(a weight scale or what it does to signal or gradient, where the fault is in all layers) and lies in the layer, where
the fault is in one. The other designs were drawn up after the thresholds; two of them that count as healthy are not
seen as such: a GRU read at its end, whose gradient fades by half a step, and Equinox' own initialisation of six layers,
whose gradient fades by 10^2.4.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import diagnose_models as models
from diagnose_models import Case, Size
from rich.console import Console
from rich.table import Table

import jaxact

#: drawn before any was run: (width, depth, seed), one for each fresh case in turn
FRESH = [Size(96, 1.5, 11), Size(48, 1.25, 12), Size(128, 1, 13), Size(32, 1, 14), Size(80, 1.3, 15)]


def main() -> None:
    """Diagnose, compare, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fresh", action="store_true", help="sizes and seeds that no threshold was looked at with"
    )
    parser.add_argument(
        "--other", action="store_true", help="other designs, drawn up after every threshold was fixed"
    )
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--text", action="store_true", help="print the findings in full")
    options = parser.parse_args()
    sizes = FRESH if options.fresh else [Size()]
    table = Table("model", "expected", "first finding", "layer", "others", "s", "")
    counts = {}
    faults, healthy = (
        (models.OTHER_FAULTS, models.OTHER_HEALTHY) if options.other else (models.FAULTS, models.HEALTHY)
    )
    for what, cases in (("named", faults), ("false alarms", healthy)):
        chosen = [name for name in cases if options.only in name]
        passed = [
            _told(table, name, cases[name](sizes[k % len(sizes)]), options.text)
            for k, name in enumerate(chosen)
        ]
        right = sum(passed) if what == "named" else len(passed) - sum(passed)
        counts[what] = f"{right} of {len(passed)}"
    console = Console(width=150)
    console.print(table)
    console.print(", ".join(f"{what}: {count}" for what, count in counts.items()))


def _told(table: Table, name: str, case: Case, with_text: bool) -> bool:
    start = time.perf_counter()
    found = jaxact.diagnose(*case.args, jacobian=False, **case.options)
    seconds = time.perf_counter() - start
    is_right = _is_right(case, found.findings)
    first = found.findings[0] if found.findings else None
    others = ", ".join(each.kind for each in found.findings[1:])
    row = [first.kind, first.layer] if first else ["", ""]
    table.add_row(name, " / ".join(case.kinds), *row, others, f"{seconds:.1f}", "" if is_right else "X")
    print(
        f"{'ok' if is_right else 'X '} {name}: {[(f.kind, f.layer, round(f.severity, 1)) for f in found.findings]}",
        flush=True,
    )
    if with_text:
        print(*found.findings, sep="\n")
    return is_right


def _is_right(case: Case, findings: Sequence[jaxact.diagnosis.Finding]) -> bool:
    if not case.kinds:
        return not findings
    return bool(findings) and findings[0].kind in case.kinds and case.layer(findings[0].layer)


if __name__ == "__main__":
    main()
