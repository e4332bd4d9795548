"""Which members of a depth sweep are looked at, and what they are called."""

import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

CELL = ("block", "activation", "depth")
PHASES = {"initial": "at initialisation", "trained": "after training"}


def prepare(result: xr.Dataset) -> xr.Dataset:
    """Add `present`, `diverged`, and the final accuracies with the rule for members that failed."""
    diverged = result["diverged_step"].astype(float).notnull()
    present = result["steps_to_threshold"].astype(float).notnull() | diverged
    present = present | result["train_loss"].astype(float).notnull().any("step")
    # Combining cells fills absent ones with NaN, which is true as a boolean.
    censored = (result["censored"].astype(float).fillna(0.0) != 0) & present
    final = {}
    for split in ("train", "test"):
        accuracy = result[f"{split}_accuracy"].astype(float).isel(step=-1, drop=True)
        final[f"final_{split}_accuracy"] = xr.where(diverged, 0.0, accuracy)
        final[f"final_{split}_loss"] = xr.where(
            diverged, math.inf, result[f"{split}_loss"].astype(float).isel(step=-1, drop=True)
        )
    return result.assign(present=present, diverged=diverged, censored=censored, **final)


def select(result: xr.Dataset) -> xr.Dataset:
    """The best learning rate of each cell, and only its members.

    Best is the highest training accuracy at the end, averaged over seeds, a diverged member counting as 0;
    ties go to the lower training loss, then to the smaller rate. The test set has no say.

    What was probed after training is left out (NaN) where a member diverged: its frozen state is an accident of the
    step before, with weights of any size.
    """
    result = prepare(result).sortby("learning_rate")
    accuracy = quiet(lambda: result["final_train_accuracy"].mean("seed")).fillna(-1.0)
    loss = quiet(lambda: result["final_train_loss"].mean("seed")).fillna(math.inf)
    order = (*CELL, "learning_rate")
    keys = np.stack([loss.transpose(*order).to_numpy(), -accuracy.transpose(*order).to_numpy()])
    best = np.lexsort(keys, axis=-1)[..., 0]  # the last key is the first to decide; the sort is stable
    index = xr.DataArray(best, dims=CELL, coords={name: result[name] for name in CELL})
    chosen = result.isel(learning_rate=index)
    is_accident = chosen["diverged"] & (chosen["phase"] == "trained")
    probed = {name: each for name, each in chosen.data_vars.items() if "phase" in each.dims}
    return chosen.assign({name: each.where(~is_accident) for name, each in probed.items()})


def quiet(compute: Callable[[], Any]) -> Any:
    """Run a reduction that may meet only NaN or infinities: both are answers here."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        return compute()


def block_name(block: str) -> str:
    """A block as a reader says it: "pre_activation-bn" is "Pre-activation residual + BN"."""
    kind, _, norm = str(block).partition("-")
    words = {"pre_activation": "pre-activation residual", "post_activation": "post-activation residual"}
    name = words.get(kind, kind.replace("_", " "))
    if norm and norm != "none":
        name += f" + {norm.upper() if len(norm) <= 3 else norm}"
    return name[:1].upper() + name[1:]


def named(frame: pd.DataFrame, result: xr.Dataset) -> pd.DataFrame:
    """Blocks, phases and activations as ordered words."""
    frame = frame.assign(
        block=ordered(frame["block"].map(block_name), [block_name(b) for b in names(result, "block")]),
        activation=ordered(frame["activation"].astype(str), names(result, "activation")),
    )
    if "phase" in frame:
        phases = [PHASES.get(phase, phase) for phase in names(result, "phase")]
        frame["phase"] = ordered(frame["phase"].map(lambda phase: PHASES.get(phase, phase)), phases)
    return frame


def ordered(column: pd.Series, levels: Sequence[str]) -> pd.Categorical:
    return pd.Categorical(column, categories=list(dict.fromkeys(levels)), ordered=True)


def names(result: xr.Dataset | xr.DataArray, dim: str) -> list[str]:
    return [str(name) for name in result[dim].to_numpy()]


def depths(result: xr.Dataset) -> list[int]:
    return sorted({int(depth) for depth in np.ravel(result["depth"].to_numpy())})


def budget(result: xr.Dataset) -> int:
    return int(np.max(result["step"].to_numpy(), initial=0))


def threshold(result: xr.Dataset) -> str:
    """The training accuracy that counts as trained, as the result's own label says it: "90 %"."""
    found = re.search(r"([\d.]+) ?%", str(result["steps_to_threshold"].attrs.get("long_name", "")))
    return f"{found[1]} %" if found else "threshold"


def seeds(best: xr.Dataset) -> str:
    count = best.sizes["seed"]
    return "one seed" if count == 1 else f"{count} seeds"


def resolution(values: xr.DataArray) -> float:
    """The log10 of the largest condition number that rounding lets one see: 1/eps of the numbers' type."""
    kind: Any = values.dtype if values.dtype.kind == "f" else np.dtype(float)
    return float(-np.log10(np.finfo(kind).eps))


def lipschitz_upper(best: xr.Dataset) -> xr.DataArray:
    """Log10 of the best upper bound: the ellipsoid's where there is one, unless rounding puts it above the product."""
    product = best["lipschitz_upper_log10"].astype(float)
    if "lipschitz_ellipsoid_log10" not in best:  # measured before there was one
        return product
    ellipsoid = best["lipschitz_ellipsoid_log10"].astype(float)
    return xr.apply_ufunc(np.fmin, ellipsoid, product, keep_attrs=True)
