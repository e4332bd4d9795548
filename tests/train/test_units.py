"""The best single unit, against what the data are made of and a search of scipy's."""

import numpy as np
import pytest
from scipy.optimize import differential_evolution

from jaxact import activations
from train.units import best_units

X = np.linspace(-3.0, 3.0, 60)


def mse(fit, y):
    return np.mean((fit - y) ** 2)


@pytest.fixture(scope="module")
def fitted():
    rows = np.stack([2 * np.tanh(1.3 * X - 0.4) - 1, np.sin(X) + 0.2 * X])
    units = (activations.tanh, activations.relu)
    return rows, best_units(units, np.stack([X, X]), rows, seeds=(0, 1), num_starts=30, num_steps=40)


def test_a_unit_finds_its_own_data(fitted):
    (y, _), fits = fitted
    assert mse(fits[0, 0], y) < 1e-20


def test_no_search_finds_a_better_unit(fitted):
    rows, fits = fitted

    def error(p, f, y):
        h = np.stack([f(p[0] * X + p[1]), np.ones_like(X)], 1)
        return mse(h @ np.linalg.lstsq(h, y, rcond=None)[0], y)

    for place, y in enumerate(rows):
        for unit, f in enumerate((np.tanh, lambda z: np.maximum(z, 0))):
            best = differential_evolution(error, [(-5, 5), (-15, 15)], args=(f, y), seed=0, maxiter=60, tol=0)
            assert mse(fits[place, unit], y) <= best.fun * (1 + 1e-6) + 1e-20
