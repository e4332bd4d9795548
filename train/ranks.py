"""How well two samples agree in rank, with an interval."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

_RESAMPLES = 4000


class Agreement(NamedTuple):
    """Spearman's rank correlation of predicted and measured numbers, or the difference of two.

    Attributes:
        rho: the correlation; NaN below three pairs or if a side is constant.
        low: lower end of its 95 % bootstrap interval over pairs.
        high: upper end.
        num_pairs: how many pairs.
    """

    rho: float
    low: float
    high: float
    num_pairs: int

    def __str__(self) -> str:
        return f"{self.rho:.2f} [{self.low:.2f}, {self.high:.2f}]"


def agreement(predicted: np.ndarray, measured: np.ndarray) -> Agreement:
    """Spearman's rank correlation of two samples, with a percentile bootstrap interval over their pairs.

    Pairs with a NaN are left out. The interval shows how much hangs on single pairs; points on smooth curves are
    no independent draws, and its coverage is then nominal.

    >>> agreement(np.array([10.0, 20.0, 40.0, np.inf]), np.array([8.0, 9.0, 30.0, 50.0]))
    Agreement(rho=1.0, low=1.0, high=1.0, num_pairs=4)
    """
    return _with_interval(_spearman, predicted, measured)


def difference(first: np.ndarray, second: np.ndarray, measured: np.ndarray) -> Agreement:
    """The correlation of a first prediction with what was measured less that of a second, on the same pairs."""
    return _with_interval(
        lambda rows: _spearman(rows[:, ::2]) - _spearman(rows[:, 1:]), first, second, measured
    )


def _with_interval(statistic: Callable[[np.ndarray], np.ndarray], *rows: np.ndarray) -> Agreement:
    """A statistic of [sample, row, pair], with resampled columns; the same resamples every time.

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
    """Pearson's correlation of midranks, of pairs [sample, 2, pair]."""
    if pairs.shape[-1] < 3:
        return np.full(len(pairs), np.nan)
    ranks = rankdata(pairs, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=-1).prod(axis=-1))
    return np.where(scale > 0, ranks.prod(axis=-2).sum(axis=-1) / np.where(scale > 0, scale, 1), np.nan)
