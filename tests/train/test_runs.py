"""The runs that are looked at: the best learning rate by the rule, failures counted, thresholds and budgets said."""

import numpy as np
import pytest
import xarray as xr

from train import runs

CELL = ("activation",)


@pytest.fixture
def result():
    """One activation a case; two rates, the larger first; two seeds; two measured steps; two phases."""
    dims = ("activation", "learning_rate", "seed")
    accuracy = np.array(
        [
            [[0.9, 0.7], [0.6, 0.6]],  # the larger rate trains better
            [[0.8, 0.8], [0.8, 0.8]],  # alike: the lower loss decides
            [[0.5, 0.5], [0.5, 0.5]],  # alike in all: the smaller rate
            [[1.0, 1.0], [0.4, 0.4]],  # better, but diverged
        ]
    )
    loss = np.ones_like(accuracy)
    loss[1, 0] = 0.5
    diverged = np.full_like(accuracy, np.nan)
    diverged[3, 0] = 7.0
    phases = np.stack([np.ones_like(accuracy), 2 * np.ones_like(accuracy)], axis=-1)
    curve = lambda last: np.stack([np.zeros_like(last), last], axis=-1)  # noqa: E731
    data = {
        "train_accuracy": ((*dims, "step"), curve(accuracy)),
        "test_accuracy": ((*dims, "step"), 1 - curve(accuracy)),
        "train_loss": ((*dims, "step"), curve(loss)),
        "test_loss": ((*dims, "step"), curve(loss)),
        "steps_to_threshold": (dims, np.full_like(accuracy, 20.0), {"threshold": 0.75}),
        "censored": (dims, accuracy < 0.75),
        "diverged_step": (dims, diverged),
        "gain": ((*dims, "phase"), phases),
    }
    coords = {
        "activation": ["better", "faster", "alike", "diverged"],
        "learning_rate": [0.1, 0.01],
        "seed": [0, 1],
        "step": [10, 20],
        "phase": ["initial", "trained"],
    }
    return xr.Dataset(data, coords)


def rates(result):
    best = runs.best(result, CELL)["learning_rate"]
    return dict(zip(best["activation"].values.tolist(), best.values.tolist(), strict=True))


def test_the_best_rate_has_the_highest_training_accuracy_then_the_lowest_loss_then_is_the_smallest(result):
    assert rates(result) == {"better": 0.1, "faster": 0.1, "alike": 0.01, "diverged": 0.01}


def test_the_order_in_which_rates_are_listed_does_not_matter(result):
    assert rates(result.isel(learning_rate=[1, 0])) == rates(result)


def test_a_diverged_run_counts_as_accuracy_zero_and_infinite_loss(result):
    marked = runs.marked(result).sel(activation="diverged", learning_rate=0.1)
    assert marked["final_train_accuracy"].values.tolist() == [0.0, 0.0]
    assert marked["final_test_accuracy"].values.tolist() == [0.0, 0.0]
    assert np.isinf(marked["final_train_loss"]).all()


def test_what_was_probed_after_a_run_diverged_is_left_out(result):
    result["diverged_step"].loc[{"activation": "diverged", "learning_rate": 0.01, "seed": 1}] = 3.0
    gain = runs.best(result, CELL)["gain"].sel(activation="diverged")
    assert gain.sel(phase="initial").values.tolist() == [1.0, 1.0]
    np.testing.assert_array_equal(gain.sel(phase="trained"), [2.0, np.nan])


def test_absent_runs_are_neither_censored_nor_counted(result):
    apart = xr.combine_by_coords(
        [result.isel(activation=[0], seed=[0]), result.isel(activation=[1], seed=[1])], join="outer"
    )
    marked = runs.marked(apart)
    assert int(marked["present"].sum()) == 4
    assert runs.failures(marked, "activation", str) == (
        "Over all learning rates 0 of 4 runs diverged; 1 of 4 runs did not reach 75 % training accuracy within 20 "
        "steps (better 1)."
    )


def test_failures_are_counted_by_a_coordinate(result):
    assert runs.failures(runs.marked(result), "activation", str.upper) == (
        "Over all learning rates 2 of 16 runs diverged (DIVERGED 2); 9 of 16 runs did not reach 75 % training accuracy "
        "within 20 steps (BETTER 3, ALIKE 4, DIVERGED 2)."
    )


def test_nothing_measured_is_said(result):
    empty = result.copy(deep=True)
    for name in empty.data_vars:
        empty[name] = empty[name].astype(float) * np.nan
    assert runs.failures(runs.marked(empty), "activation", str) == "No run was measured."


def test_the_threshold_is_an_attribute_or_a_field_of_the_config(result):
    assert runs.threshold(result) == "75 %"
    del result["steps_to_threshold"].attrs["threshold"]
    assert runs.threshold(result) == "the threshold"
    assert runs.threshold(result.assign_attrs(config='{"threshold": 0.5}')) == "50 %"
    assert runs.budget(result) == 20


def test_a_phase_that_is_not_there_has_no_numbers(result):
    assert runs.at_phase(result["gain"], "trained").values.max() == 2.0
    only = result["gain"].sel(phase=["trained"])
    assert runs.at_phase(only, "initial").isnull().all()
    assert "phase" not in runs.at_phase(only, "initial").dims


def test_log10_of_zero_is_minus_infinity_without_a_warning():
    assert runs.log10(xr.DataArray([0.0, 1.0, 100.0])).values.tolist() == [-np.inf, 0.0, 2.0]
