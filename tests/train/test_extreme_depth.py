"""The extreme-depth study: critical networks of both laws against what theory says, and words from a made-up result."""

from dataclasses import replace

import numpy as np
import pytest

from jaxact import activations, theory
from train import results
from train.experiments.extreme_depth import ExtremeDepth, angle_map

STUDY = ExtremeDepth(
    depths=(60,), width=64, num_steps=60, measure_every=20, learning_rate=0.02, seeds=(0, 1), num_probes=4
)


@pytest.fixture(scope="module")
def result():
    return results.combine(
        [STUDY.run(cell, progress=lambda fraction, note="": None) for cell in STUDY.cells()]
    )


def test_orthogonal_weights_keep_directions_and_gaussian_ones_do_not(result):
    values = result["log10_singular_value"]
    spread = values.isel(mode=0) - values.isel(mode=-1)
    assert (
        float(spread.sel(weights="orthogonal").max()) < 1.5
    )  # the bulk's edges by theory: 10^-0.5 to 10^0.2
    assert float(spread.sel(weights="gaussian").min()) > 4


def test_the_limiting_law_fits_the_orthogonal_network(result):
    part = result.sel(weights="orthogonal", depth=60)
    measured = part["log10_singular_value"].mean(["seed", "example"])
    inner = slice(4, 60)  # off the edges, where 64 units are few
    np.testing.assert_allclose(measured[inner], part["log10_singular_value_theory"][inner], atol=0.08)


def test_correlations_and_lengths_follow_the_maps(result):
    part = result.sel(weights="orthogonal", depth=60)
    np.testing.assert_allclose(part["correlation"], part["correlation_theory"], atol=0.03)
    expected = theory.trajectory(
        STUDY.activation, 3, q=STUDY.q_star, c=0.3, sigma_w=float(part.sigma_w), sigma_b=float(part.sigma_b)
    )
    np.testing.assert_allclose(expected.q, STUDY.q_star, rtol=1e-4)  # the point is a fixed one
    np.testing.assert_allclose(part["second_moment"], STUDY.q_star, rtol=0.25)


def test_it_trains(result):
    orthogonal = result["test_accuracy"].sel(weights="orthogonal").isel(step=-1)
    assert float(orthogonal.min()) > 0.8


def made_up(result):
    """The measured result with known accuracies: orthogonal weights train, one Gaussian run of two diverges."""
    known = result.copy(deep=True)
    accuracy = known["test_accuracy"]
    accuracy.loc[{"weights": "orthogonal"}] = 0.97
    accuracy.loc[{"weights": "gaussian", "seed": 0}] = 0.25
    accuracy.loc[{"weights": "gaussian", "seed": 1}] = np.nan
    known["steps_to_threshold"].loc[{"weights": "orthogonal"}] = 40.0
    known["steps_to_threshold"].loc[{"weights": "gaussian"}] = np.nan
    known["diverged_step"].loc[{"weights": "orthogonal"}] = np.nan
    known["diverged_step"].loc[{"weights": "gaussian"}] = [np.nan, 7.0]
    return known


def test_findings_open_with_the_accuracies_and_say_what_was_not_reached(result):
    said = ExtremeDepth.findings(made_up(result))
    assert said[0] == (
        "Final test accuracy: with orthogonal weights 97 % at 60 layers; with gaussian weights 12.5 % at 60 layers."
    )
    assert said[1].startswith("60 layers with orthogonal weights reach 95 % test accuracy after 40 steps (")
    assert said[2] == "60 layers with gaussian weights did not reach 95 % test accuracy within 60 steps."
    assert "sigma_w^2 = 1.0483" in said[3]
    assert said[-1] == "1 of 4 runs diverged; their accuracy counts as 0."
    assert said[0].topic == ""
    assert all(sentence.topic for sentence in said[1:])


def test_the_threshold_is_the_attribute_whatever_the_label_says(result):
    result = made_up(result)
    result["steps_to_threshold"].attrs |= {"threshold": 0.8, "long_name": "steps to 99% of something"}
    said = " ".join(ExtremeDepth.findings(result))
    assert "reach 80 % test accuracy after" in said
    assert "99" not in said


def test_what_was_not_measured_is_left_out(result):
    known = made_up(result)
    (table,) = ExtremeDepth.tables(known).values()
    assert table[["weights", "depth"]].to_numpy().tolist() == [["orthogonal", 60], ["gaussian", 60]]
    assert table["steps to threshold"].tolist() == [40.0, np.inf]
    known = known.drop_sel(weights="gaussian").reindex(weights=["orthogonal", "gaussian"])
    (table,) = ExtremeDepth.tables(known).values()
    assert table["weights"].tolist() == ["orthogonal"]
    assert "gaussian" not in " ".join(ExtremeDepth.findings(known))
    nothing = known.isel(weights=[1])
    assert ExtremeDepth.findings(nothing) == [
        "Nothing to conclude: no network of this study has a test accuracy."
    ]
    assert ExtremeDepth.tables(nothing) == {}
    assert ExtremeDepth.figures(nothing) == {}


def test_the_first_figure_shows_the_accuracies_of_every_depth(result):
    charts = ExtremeDepth.figures(made_up(result))
    assert list(charts) == ["test_accuracy", "jacobian_spectrum", "gradient_norms", "correlation"]
    text = charts["test_accuracy"].to_json()
    for words in ("60 layers", "Orthogonal weights", "Gaussian weights"):
        assert words in text
    assert "theory, infinite width" in charts["jacobian_spectrum"].to_json()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depths", (0,), "`depths` must be positive"),
        ("weights", ("uniform",), "`weights` must be among orthogonal, gaussian, got 'uniform'"),
        ("q_star", -1.0, "`q_star` must be positive"),
        ("measure_every", 7, "`measure_every` must divide num_steps"),
        ("num_probes", 1, "`num_probes` must be at least 2"),
        ("seeds", (1, 1), "`seeds` must not repeat a value, got 1 twice"),
    ],
)
def test_bad_fields_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        replace(STUDY, **{field: value})


def test_correlations_close_to_one_follow_the_arc_cosine_map_for_thousands_of_layers():
    map_ = angle_map(activations.relu, q=1.0, sigma_w=2**0.5)
    found = expected = np.pi / 2
    for _ in range(3000):
        found = map_(found)
        # Cho and Saul (2009): cos of the next angle, as 1 - cos without cancellation.
        lost = 2 * np.sin(expected / 2) ** 2 - (np.sin(expected) - expected * np.cos(expected)) / np.pi
        expected = 2 * np.arcsin((lost / 2) ** 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
