"""Measured depth limits of a phase diagram, what theory predicts of them, and how well the two agree in rank."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import rankdata

SCALES = 6  # depth scales that a network can be deep, read off by Schoenholz et al. 2017 (their figure 5)
PREDICTORS = {"xi_c": "6 xi_c", "xi_gradient": "6 xi_gradient", "minimum": "min(6 xi_c, 6 xi_gradient)"}
SQUARE = ("activation", "depth", "sigma_w_squared")
_MEMBER = (*SQUARE, "learning_rate", "seed")
_RESAMPLES = 4000


def crossing(accuracy: np.ndarray, steps: np.ndarray, threshold: float) -> np.ndarray:
    """First measured step at or above the threshold along the last axis; NaN where there is none."""
    reached = accuracy >= threshold
    return np.where(reached.any(axis=-1), steps[np.argmax(reached, axis=-1)], np.nan)


def squares(result: xr.Dataset, *, threshold: float | None = None, budget: int | None = None) -> xr.Dataset:
    """Each square of the heat map at its best learning rate.

    Best is the rate at which most of the seeds (more than half) reach the threshold in the fewest steps; ties go to
    the higher accuracy at the end, then to the smaller rate. Where none does it is the most accurate rate. That a
    cell stopped at the study's threshold changes nothing: at a lower one, or with a smaller budget, rates that were
    cut off are not faster either.

    Args:
        result: the combined Dataset, or any part of one.
        threshold: train accuracy that counts; the study's own if None, and at most that.
        budget: steps that count; all if None.

    Returns:
        By activation, depth (ascending) and sigma_w_squared: `steps`, NaN where the threshold is not reached;
        `trained`; `present`; `rate`, the best; `on_edge`, whether it is the smallest or largest of several; and
        `accuracy`, the highest up to then that most of the seeds have at any one rate.
    """
    result = result.sortby(["learning_rate", "depth", "step"])
    wanted = float(result["threshold"]) if threshold is None else threshold
    history = result["train_accuracy"].astype(float).transpose(*_MEMBER, "step")
    if budget is not None:
        history = history.sel(step=slice(None, budget))
    crossed = crossing(history.to_numpy(), history["step"].to_numpy(), wanted)
    most = history.sizes["seed"] // 2
    steps = np.sort(np.where(np.isnan(crossed), np.inf, crossed), axis=-1)[..., most]
    highest = np.fmax.reduce(history.to_numpy(), axis=-1)  # NaN only where nothing was measured
    accuracy = np.sort(np.nan_to_num(highest), axis=-1)[..., ::-1][..., most]
    best = np.lexsort(np.stack([-accuracy, steps]), axis=-1)[..., :1]  # the last key decides first; stable
    rates = result["learning_rate"].to_numpy()
    fastest = np.take_along_axis(steps, best, -1)[..., 0]
    present = result["steps_trained"].transpose(*SQUARE).notnull().to_numpy()
    found = {
        "steps": np.where(np.isfinite(fastest) & present, fastest, np.nan),
        "trained": np.isfinite(fastest) & present,
        "present": present,
        "rate": np.where(present, rates[best[..., 0]], np.nan),
        "on_edge": present & np.isin(best[..., 0], [0, len(rates) - 1]) & (len(rates) > 2),
        "accuracy": np.where(present, accuracy.max(axis=-1), np.nan),
    }
    coords = {name: result[name] for name in SQUARE}
    return xr.Dataset({name: (SQUARE, values) for name, values in found.items()}, coords)


def edges(centres: np.ndarray, *, is_log: bool = False) -> np.ndarray:
    """Borders between neighbouring columns or rows, ascending, the outermost as far out as the next is in.

    Args:
        centres: positive, in any order.
        is_log: whether half way means the geometric mean.

    >>> edges(np.array([4.0, 1.0, 2.0])).tolist()
    [0.5, 1.5, 3.0, 5.0]
    """
    centres = np.sort(np.asarray(centres, float))
    if len(centres) == 1:
        return centres[0] * np.array([0.9, 1.1])
    if is_log:
        return np.exp(edges(np.log(centres)))
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])


class Reach(NamedTuple):
    """How deep one column trains.

    Attributes:
        limit: the depth, interpolated; an end of the range of depths where `side` is not 0; NaN if unmeasured.
        low: deepest depth that trains; 0 if none does.
        high: next depth of the grid, which does not train; infinite if there is none.
        side: 1 if the limit is larger than all depths, -1 if it is smaller, else 0.
        is_ragged: whether a shallower depth failed.
    """

    limit: float
    low: float
    high: float
    side: int
    is_ragged: bool


def reach(depths: np.ndarray, trained: np.ndarray, progress: np.ndarray) -> Reach:
    """Find the largest depth that trains, and where between it and the next the limit lies.

    limit = low (high / low)^p, where p is how far the deeper network came from chance to the threshold: at p = 0 it
    learned nothing and the limit is `low`, at p = 1 it would have trained. A convention within the bracket.

    Args:
        depths: ascending.
        trained: whether the threshold was reached, one a depth.
        progress: (accuracy - chance) / (threshold - chance), one a depth.
    """
    if not len(depths):
        return Reach(np.nan, np.nan, np.nan, 0, False)
    if not trained.any():
        return Reach(float(depths[0]), 0.0, float(depths[0]), -1, False)
    last = int(np.flatnonzero(trained)[-1])
    is_ragged = not trained[:last].all()
    low = float(depths[last])
    if last == len(depths) - 1:
        return Reach(low, low, np.inf, 1, is_ragged)
    high = float(depths[last + 1])
    return Reach(low * (high / low) ** float(np.clip(progress[last + 1], 0, 1)), low, high, 0, is_ragged)


def columns(result: xr.Dataset, *, threshold: float | None = None, budget: int | None = None) -> xr.Dataset:
    """Measured and predicted depth limit of every column of the heat map.

    Takes the arguments of `squares`.

    Returns:
        By activation and sigma_w_squared: the fields of `Reach`; `xi_c`, `xi_gradient` and `minimum`, each times
        6, in layers; and `chi`. A column without a prediction (lengths that grow for ever) has NaN.
    """
    found = squares(result, threshold=threshold, budget=budget)
    chance = float(result["chance_accuracy"])
    wanted = float(result["threshold"]) if threshold is None else threshold
    progress = ((found["accuracy"] - chance) / max(wanted - chance, 1e-6)).to_numpy()
    shape = (found.sizes["activation"], found.sizes["sigma_w_squared"])
    reached = {name: np.empty(shape) for name in Reach._fields}
    for i, j in np.ndindex(*shape):
        here = found["present"].to_numpy()[i, :, j]
        trained = found["trained"].to_numpy()[i, here, j]
        for name, value in (
            reach(found["depth"].to_numpy()[here], trained, progress[i, here, j])._asdict().items()
        ):
            reached[name][i, j] = value
    dims = ("activation", "sigma_w_squared")
    theory = result[["xi_c", "xi_gradient", "chi"]].max("depth").transpose(*dims)  # the same at every depth
    predicted = {name: SCALES * theory[name].to_numpy() for name in ("xi_c", "xi_gradient")}
    predicted["minimum"] = np.minimum(predicted["xi_c"], predicted["xi_gradient"])
    everything = {**reached, **predicted, "chi": theory["chi"].to_numpy()}
    coords = {name: result[name] for name in dims}
    return xr.Dataset({name: (dims, values) for name, values in everything.items()}, coords)


class Agreement(NamedTuple):
    """How well predicted and measured limits agree over columns.

    Attributes:
        rho: Spearman's rank correlation; NaN below three columns or if either side is constant.
        low: lower end of its 95 % bootstrap interval over columns.
        high: upper end.
        num_columns: how many columns.
    """

    rho: float
    low: float
    high: float
    num_columns: int


def agreement(predicted: np.ndarray, measured: np.ndarray) -> Agreement:
    """Spearman's rank correlation of two samples, with a percentile bootstrap interval over their pairs.

    Columns whose limit lies beyond the depths of the grid carry its end for a limit, so they share a rank: nothing
    is known of their order. Pairs with a NaN are left out. The interval shows how much hangs on single columns; they
    are points on smooth curves and not independent draws, so that its coverage is nominal.

    >>> agreement(np.array([10.0, 20.0, 40.0, np.inf]), np.array([8.0, 9.0, 30.0, 50.0]))
    Agreement(rho=1.0, low=1.0, high=1.0, num_columns=4)
    """
    there = ~(np.isnan(predicted) | np.isnan(measured))
    pairs = np.stack([predicted[there], measured[there]])
    rho = float(_spearman(pairs[None])[0])
    count = pairs.shape[1]
    if np.isnan(rho):
        return Agreement(rho, np.nan, np.nan, count)
    low, high = np.percentile(_defined(_spearman(_resampled(pairs))), [2.5, 97.5])
    return Agreement(round(rho, 12), round(float(low), 12), round(float(high), 12), count)


def difference(first: np.ndarray, second: np.ndarray, measured: np.ndarray) -> tuple[float, float, float]:
    """Spearman correlation of `first` with `measured` less that of `second`, and its 95 % bootstrap interval."""
    there = ~np.isnan(first + second + measured)
    triples = np.stack([first[there], second[there], measured[there]])
    value = float((_spearman(triples[None, ::2]) - _spearman(triples[None, 1:]))[0])
    if np.isnan(value):
        return (np.nan, np.nan, np.nan)
    drawn = _resampled(triples)
    low, high = np.percentile(_defined(_spearman(drawn[:, ::2]) - _spearman(drawn[:, 1:])), [2.5, 97.5])
    return value, float(low), float(high)


def _resampled(sample: np.ndarray) -> np.ndarray:
    """Columns drawn with replacement, [resample, row, column]; the same ones every time."""
    count = sample.shape[1]
    drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    return np.moveaxis(sample[:, drawn], 0, 1)


def _defined(values: np.ndarray) -> np.ndarray:
    """Without the resamples that drew one value only, which have no rank correlation."""
    return values[~np.isnan(values)]


def _spearman(pairs: np.ndarray) -> np.ndarray:
    """Pearson's correlation of midranks, of pairs [sample, 2, column]."""
    if pairs.shape[-1] < 3:
        return np.full(len(pairs), np.nan)
    ranks = rankdata(pairs, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=-1).prod(axis=-1))
    return np.where(scale > 0, ranks.prod(axis=-2).sum(axis=-1) / np.where(scale > 0, scale, 1), np.nan)


def critical_points(result: xr.Dataset) -> xr.DataArray:
    """The critical sigma_w^2 of each activation, NaN where it has none."""
    return result["critical_sigma_w_squared"].max(["depth", "sigma_w_squared"])


def names(result: xr.Dataset | xr.DataArray, dim: str) -> Sequence[str]:
    """The values of a coordinate of text."""
    return [str(name) for name in result[dim].to_numpy()]
