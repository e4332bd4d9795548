"""Measured depth limits of a phase diagram, what theory predicts of them, and how well the two agree in rank."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import rankdata

SCALES = 6  # depth scales that a network can be deep, read off by Schoenholz et al. 2017 (their figure 5)
PREDICTORS = {"xi_c": "6 xi_c", "xi_gradient": "6 xi_gradient", "minimum": "min(6 xi_c, 6 xi_gradient)"}
SQUARE = ("activation", "depth", "sigma_w_squared")
COLUMN = ("activation", "sigma_w_squared")
_RESAMPLES = 4000


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
    history, rates = result["train_accuracy"].astype(float), result["learning_rate"]
    crossed = history["step"].where(history >= _wanted(result, threshold)).min("step")
    steps = crossed.fillna(np.inf).reduce(_of_most, "seed")
    accuracy = -(-history.max("step").fillna(0.0)).reduce(_of_most, "seed")
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


def _of_most(values: np.ndarray, axis: int) -> np.ndarray:
    """The smallest number that most of the values do not exceed."""
    return np.sort(values, axis=axis).take(values.shape[axis] // 2, axis=axis)


def _wanted(result: xr.Dataset, threshold: float | None) -> float:
    return float(result["threshold"]) if threshold is None else threshold


def reach(trained: xr.DataArray, progress: xr.DataArray) -> xr.Dataset:
    """Find the largest depth that trains, and where between it and the next the limit lies.

    limit = low (high / low)^p, where p is how far the deeper network came from chance to the threshold: at p = 0 it
    learned nothing and the limit is `low`, at p = 1 it would have trained. A convention within the bracket.

    Args:
        trained: whether the threshold was reached, along "depth".
        progress: (accuracy - chance) / (threshold - chance); NaN where nothing was measured.

    Returns:
        `limit`; `low`, the deepest that trains, or 0; `high`, the next, which does not, or infinity; `side`, 1 or -1
        where the limit lies beyond the deepest or shallowest depth, which then stands for it, else 0; `is_ragged`,
        whether a shallower depth failed. Numbers are NaN where nothing was measured.
    """
    present, depth = progress.notnull(), progress["depth"]
    low = depth.where(trained & present).max("depth")
    high = depth.where(present & ~(depth <= low)).min("depth")
    between = low * (high / low) ** progress.where(depth == high).max("depth").clip(0, 1)
    found = {
        "limit": between.fillna(low).fillna(high),  # an end of the grid stands for what lies beyond
        "low": low.fillna(0.0),
        "high": high.fillna(np.inf),
        "side": high.isnull().astype(float) - low.isnull(),
    }
    is_ragged = (present & ~trained & (depth < low)).any("depth")
    return xr.Dataset(found).where(present.any("depth")).assign(is_ragged=is_ragged)


def columns(result: xr.Dataset, *, threshold: float | None = None, budget: int | None = None) -> xr.Dataset:
    """Measured and predicted depth limit of every column of the heat map, by activation and sigma_w_squared.

    Takes the arguments of `squares`; returns what `reach` does, `chi`, and `xi_c`, `xi_gradient` and `minimum`, each
    times 6, in layers. A column without a prediction (lengths that grow for ever) has NaN.
    """
    found, chance = squares(result, threshold=threshold, budget=budget), float(result["chance_accuracy"])
    progress = (found["accuracy"] - chance) / max(_wanted(result, threshold) - chance, 1e-6)
    theory = result[["xi_c", "xi_gradient", "chi"]].max("depth")  # the same at every depth
    predicted = SCALES * theory[["xi_c", "xi_gradient"]]
    minimum = np.minimum(predicted["xi_c"], predicted["xi_gradient"])
    found = reach(found["trained"], progress).assign(predicted).assign(minimum=minimum, chi=theory["chi"])
    return found.transpose(*COLUMN)


def critical_points(result: xr.Dataset) -> xr.DataArray:
    """The critical sigma_w^2 of each activation, NaN where it has none."""
    return result["critical_sigma_w_squared"].max(["depth", "sigma_w_squared"])


class Agreement(NamedTuple):
    """Spearman's rank correlation of predicted and measured limits, or the difference of two.

    Attributes:
        rho: the correlation; NaN below three columns or if a side is constant.
        low: lower end of its 95 % bootstrap interval over columns.
        high: upper end.
        num_columns: how many columns.
    """

    rho: float
    low: float
    high: float
    num_columns: int

    def __str__(self) -> str:
        return f"{self.rho:.2f} [{self.low:.2f}, {self.high:.2f}]"


def agreements(found: Mapping[Any, Any]) -> dict[str, Agreement]:
    """How well each prediction agrees with the measured limits of `columns`, by its title; undefined ones left out."""
    measured = np.ravel(found["limit"])
    every = {title: agreement(np.ravel(found[name]), measured) for name, title in PREDICTORS.items()}
    return {title: one for title, one in every.items() if not np.isnan(one.rho)}


def agreement(predicted: np.ndarray, measured: np.ndarray) -> Agreement:
    """Spearman's rank correlation of two samples, with a percentile bootstrap interval over their pairs.

    Pairs with a NaN are left out. The interval shows how much hangs on single columns; they are points on smooth curves
    and not independent draws, so that its coverage is nominal.

    >>> agreement(np.array([10.0, 20.0, 40.0, np.inf]), np.array([8.0, 9.0, 30.0, 50.0]))
    Agreement(rho=1.0, low=1.0, high=1.0, num_columns=4)
    """
    return _with_interval(_spearman, predicted, measured)


def difference(found: Mapping[Any, Any]) -> Agreement:
    """Correlation of xi_c with the measured limits less that of xi_gradient, on the same columns; see `agreements`."""
    rows = (np.ravel(found[name]) for name in ("xi_c", "xi_gradient", "limit"))
    return _with_interval(lambda rows: _spearman(rows[:, ::2]) - _spearman(rows[:, 1:]), *rows)


def _with_interval(statistic: Callable[[np.ndarray], np.ndarray], *rows: np.ndarray) -> Agreement:
    """A statistic of [sample, row, column], with resampled columns; the same resamples every time.

    Not `scipy.stats.bootstrap`: a resample that drew one value only has no rank correlation and is left out.
    """
    sample = np.stack(rows)
    sample = sample[:, ~np.isnan(sample).any(axis=0)]
    count = sample.shape[1]
    value = float(statistic(sample[None])[0])
    if np.isnan(value):
        return Agreement(value, np.nan, np.nan, count)
    drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    low, high = np.nanpercentile(statistic(np.moveaxis(sample[:, drawn], 0, 1)), [2.5, 97.5])
    return Agreement(round(value, 12), round(float(low), 12), round(float(high), 12), count)


def _spearman(pairs: np.ndarray) -> np.ndarray:
    """Pearson's correlation of midranks, of pairs [sample, 2, column]."""
    if pairs.shape[-1] < 3:
        return np.full(len(pairs), np.nan)
    ranks = rankdata(pairs, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=-1).prod(axis=-1))
    return np.where(scale > 0, ranks.prod(axis=-2).sum(axis=-1) / np.where(scale > 0, scale, 1), np.nan)
