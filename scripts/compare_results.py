"""Compare stored results bit for bit: has a change of the code changed a number?

    python scripts/compare_results.py BEFORE AFTER

BEFORE and AFTER are result.nc files, or folders of runs (`--output`), whose studies are then paired by name. Every
variable of BEFORE must be in AFTER, where it may have further labels, with the same bits at its own labels (NaN equals
NaN); timings, whose name ends in "_seconds" or whose unit is the second, are left out, and variables and labels that
AFTER has besides are listed. Exit status 1 if anything differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import xarray as xr

from train import results


def main(before: str, after: str) -> int:
    """Compare and print a line for each study; 0 if all agree."""
    pairs = _paired(Path(before), Path(after))
    failures = 0
    for name, (old, new) in pairs.items():
        extra = [str(each) for each in new.variables if each not in old.variables]
        extra += [
            f"{new.sizes[dim] - old.sizes[dim]} labels of {dim}"
            for dim in old.dims
            if _is_longer(old, new, dim)
        ]
        new = new.sel({dim: old[dim] for dim in old.dims if _is_longer(old, new, dim)})
        different = [
            str(each) for each in old.variables if not _is_timing(old[each]) and not _is_same(old, new, each)
        ]
        compared = sum(not _is_timing(old[each]) for each in old.variables)
        same = f"{compared - len(different)} of {compared} variables identical"
        print(f"{name}: {same}; new: {', '.join(extra) or 'none'}")
        for each in different:
            print(f"  {each}: {_difference(old, new, each)}")
        failures += len(different)
    return 1 if failures else 0


def _paired(before: Path, after: Path) -> dict[str, tuple[xr.Dataset, xr.Dataset]]:
    if before.is_file():
        return {before.name: (results.load(before), results.load(after))}
    old, new = (_runs(folder) for folder in (before, after))
    if missing := sorted(set(old) - set(new)):
        raise SystemExit(f"{after} has no run of {', '.join(missing)}.")
    return {name: (old[name], new[name]) for name in sorted(old)}


def _runs(folder: Path) -> dict[str, xr.Dataset]:
    """The newest run of each study in a folder."""
    loaded = [results.load(path) for path in sorted(folder.glob("*/result.nc"))]
    return {each.attrs["study"]: each for each in loaded}


def _is_longer(old: xr.Dataset, new: xr.Dataset, dim: object) -> bool:
    return dim in new.dims and set(old.indexes[dim]) < set(new.indexes[dim])


def _is_timing(variable: xr.DataArray) -> bool:
    return str(variable.name).endswith("_seconds") or variable.attrs.get("units") == "s"


def _is_same(old: xr.Dataset, new: xr.Dataset, name: object) -> bool:
    if name not in new.variables or old[name].dims != new[name].dims or old[name].dtype != new[name].dtype:
        return False
    a, b = old[name].to_numpy(), new[name].to_numpy()
    if a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.all(a == b))
    return bool(np.all(((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))))


def _difference(old: xr.Dataset, new: xr.Dataset, name: str) -> str:
    if name not in new.variables:
        return "missing"
    a, b = old[name], new[name]
    if a.dims != b.dims or a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{dict(a.sizes)} became {b.dtype}{dict(b.sizes)}"
    if a.dtype.kind not in "fiu":
        return "other labels"
    with np.errstate(all="ignore"):
        gap = np.abs(a.to_numpy().astype(float) - b.to_numpy().astype(float))
    return f"{int((gap > 0).sum())} of {a.size} numbers, by at most {np.nanmax(gap):.3g}"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    sys.exit(main(*sys.argv[1:]))
