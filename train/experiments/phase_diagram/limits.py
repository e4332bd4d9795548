"""Measured depth limits of a phase diagram, what theory predicts of them, and how well the two agree in rank."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from train import ranks, runs

SCALES = 6  # depth scales that a network can be deep, read off by Schoenholz et al. 2017 (their figure 5)
PREDICTORS = {"xi_c": "6 xi_c", "xi_gradient": "6 xi_gradient", "minimum": "min(6 xi_c, 6 xi_gradient)"}
SQUARE = ("activation", "depth", "sigma_w_squared")
COLUMN = ("activation", "sigma_w_squared")


def squares(result: xr.Dataset, *, threshold: float | None = None, budget: int | None = None) -> xr.Dataset:
    """Each square of the heat map at its best learning rate.

    Best is the rate at which most of the seeds (more than half) reach the threshold in the fewest steps; ties go to
    the higher accuracy at the end, then to the smaller rate. Where none does it is the most accurate rate. That a
    cell stopped at the study's threshold changes nothing: rates that were cut off are not faster at less either.

    Args:
        result: the combined Dataset, or any part of one.
        threshold: train accuracy that counts; the study's own if None, and at most that.
        budget: steps that count; all if None.

    Returns:
        By activation, depth and sigma_w_squared: `present`, `trained`, `steps` (NaN if not), `rate`, `on_edge` (of
        several rates), and `accuracy`, the highest up to then that most of the seeds have at any one rate.
    """
    result = result.sortby(["learning_rate", "depth", "step"]).sel(step=slice(None, budget))
    wanted = float(result["threshold"]) if threshold is None else threshold
    history, rates = result["train_accuracy"].astype(float), result["learning_rate"]
    crossed = history["step"].where(history >= wanted).min("step")
    steps = crossed.fillna(np.inf).reduce(runs.of_most, "seed")
    accuracy = -(-history.max("step").fillna(0.0)).reduce(runs.of_most, "seed")
    fastest = steps.min("learning_rate")
    index = accuracy.where(steps == fastest).argmax("learning_rate")  # the first of equal ones
    best = {
        "steps": fastest.where(np.isfinite(fastest)),
        "rate": fastest.copy(data=rates.to_numpy()[index]),
        "accuracy": accuracy.max("learning_rate"),
    }
    present = result["steps_trained"].notnull()
    is_end = index.isin([0, len(rates) - 1]) & (len(rates) > 2)
    found = xr.Dataset(best).where(present).assign(present=present, on_edge=present & is_end)
    return found.assign(trained=found["steps"].notnull()).transpose(*SQUARE)


def columns(result: xr.Dataset, *, threshold: float | None = None, budget: int | None = None) -> xr.Dataset:
    """Measured and predicted depth limit of every column of the heat map, by activation and sigma_w_squared.

    Takes the arguments of `squares`; returns what `runs.depth_limit` does, `chi`, and `xi_c`, `xi_gradient` and
    `minimum`, each times 6, in layers. A column without a prediction (lengths that grow for ever) has NaN.
    """
    found, chance = squares(result, threshold=threshold, budget=budget), float(result["chance_accuracy"])
    wanted = float(result["threshold"]) if threshold is None else threshold
    progress = (found["accuracy"] - chance) / max(wanted - chance, 1e-6)
    theory = result[["xi_c", "xi_gradient", "chi"]].max("depth")  # the same at every depth
    found = runs.depth_limit(found["trained"], progress).assign(SCALES * theory).assign(chi=theory["chi"])
    found["minimum"] = np.minimum(found["xi_c"], found["xi_gradient"])
    return found.transpose(*COLUMN)


def agreements(found: Mapping[Any, Any]) -> dict[str, ranks.Agreement]:
    """How well each prediction agrees with the measured limits of `columns`, by its title; undefined ones left out."""
    measured = np.ravel(found["limit"])
    every = {title: ranks.agreement(np.ravel(found[name]), measured) for name, title in PREDICTORS.items()}
    return {title: one for title, one in every.items() if not np.isnan(one.rho)}


def difference(found: Mapping[Any, Any]) -> ranks.Agreement:
    """Correlation of xi_c with the measured limits less that of xi_gradient, on the same columns; see `agreements`."""
    return ranks.difference(*(np.ravel(found[name]) for name in ("xi_c", "xi_gradient", "limit")))
