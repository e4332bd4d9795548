"""The study of Lipschitz bounds by depth: the order of the bounds, findings from known numbers, what is refused."""

import io

import numpy as np
import pandas as pd
import pytest

from jaxact import activations
from train import results
from train.experiments.lipschitz_depth import LipschitzDepth


def silent(fraction, note=""):
    assert 0 <= fraction <= 1


def test_every_certificate_is_above_the_slope_that_was_found():
    study = LipschitzDepth(
        activations=(activations.tanh,),
        depths=(2,),
        blocks=("post_activation-bn",),
        width=5,
        num_steps=3,
        radii=(1e-3,),
        refine_steps=3,
        local_steps=0,
        num_starts=3,
        ascent_steps=3,
    )
    part = study.run(study.cells()[0], progress=silent)
    results.check_structure(part)
    bounds = part.lipschitz_log10.squeeze().to_pandas()
    for _, row in bounds.iterrows():
        assert row["lower"] <= row["ellipsoid"] + 1e-5
        assert row["ellipsoid"] <= row["closed form"] <= row["product"] + 1e-5
        assert row["local, R = 0.001"] <= row["ellipsoid"]
    assert (part.bound_time > 0).all()
    np.testing.assert_array_equal(part.bound_radius, [np.nan, 1e-3, np.nan, np.nan, np.nan])


STORED = LipschitzDepth(
    activations=(activations.relu, activations.tanh),
    depths=(4, 8),
    blocks=("plain", "pre_activation-bn"),
    radii=(0.1,),
)


def stored(product=0.5):
    """A result whose product loses half a decade a layer, the closed form 0.2, the ellipsoid 0.1."""
    rates, parts = np.array([0.0, 0.0, 0.1, 0.2, product]), []
    for cell in STORED.cells():
        measured = {
            "lipschitz_log10": np.broadcast_to(1 + cell.coords["depth"] * rates, (1, 2, 5)).copy(),
            "bound_time": np.broadcast_to(np.arange(1.0, 6.0), (1, 2, 5)),
            "test_accuracy": np.full((1, 2), 0.9),
            "bound": list(STORED.bounds()),
            "bound_radius": [np.nan, 0.1, np.nan, np.nan, np.nan],
        }
        parts.append(STORED.labelled(cell, measured | {"compile_seconds": 0.0, "run_seconds": 1.0}))
    return results.combine(parts)


def test_findings_state_the_gaps_of_a_known_result():
    said = LipschitzDepth.findings(stored())
    assert (
        "4.0 for the product of norms, 1.6 for the ellipsoid's closed form, 0.8 for its refinement" in said[0]
    )
    assert any("relu 10 / 63.1 / 1.0e5; tanh 10 / 63.1 / 1.0e5" in sentence for sentence in said)
    assert any("0.6 within a ball of radius 0.1." in sentence for sentence in said)
    assert any("2 s (within a ball of radius 0.1); 3 s (ellipsoid, refined)" in sentence for sentence in said)
    assert said[0].topic == ""
    assert all(sentence.topic for sentence in said[1:])
    assert said[-1] == "lower <= ellipsoid <= closed form <= product on all 16 networks."


def test_a_broken_order_and_a_diverged_network_are_said_not_hidden():
    result = stored()
    at = {"block": "plain", "activation": "relu", "depth": 4, "seed": 0}
    result["lipschitz_log10"].loc[{**at, "phase": "initial", "bound": "product"}] = 0.0
    result["lipschitz_log10"].loc[{**at, "phase": "trained"}] = np.nan
    said = LipschitzDepth.findings(result)
    assert "is broken 1 times" in said[-1]
    assert said[-2] == "1 of 8 networks diverged in training and have no bound after it."
    assert len(LipschitzDepth.tables(result)["Every network"]) == 15
    result["lipschitz_log10"].loc[{"block": "pre_activation-bn", "activation": "tanh", "depth": 8}] = np.nan
    said = LipschitzDepth.findings(result)  # what was not measured has not diverged
    assert said[-2] == "1 of 7 networks diverged in training and have no bound after it."
    result["lipschitz_log10"].loc[{"phase": "trained"}] = np.nan
    assert LipschitzDepth.findings(result) == [
        "Nothing to conclude: no trained network of this study has a bound.",
        "7 of 7 networks diverged in training and have no bound after it.",
    ]


def test_figures_show_every_bound_and_leave_out_what_was_not_measured():
    charts = LipschitzDepth.figures(stored())
    assert list(charts) == ["looseness", "lipschitz_bounds", "time"]
    text = charts["lipschitz_bounds"].to_json()
    for words in ("product of norms", "ellipsoid, refined", "within a ball of radius 0.1", "at least"):
        assert words in text
    nothing = stored()
    nothing["lipschitz_log10"] = nothing["lipschitz_log10"] * np.nan
    assert set(LipschitzDepth.figures(nothing)) == {"time"}
    assert LipschitzDepth.findings(nothing) == [
        "Nothing to conclude: no trained network of this study has a bound."
    ]


def test_the_radius_of_a_ball_is_the_variable_whatever_the_label_says():
    result = stored()
    result["bound_radius"].loc[{"bound": "local, R = 0.1"}] = 0.25
    assert any("within a ball of radius 0.25" in sentence for sentence in LipschitzDepth.findings(result))
    assert "within a ball of radius 0.25" in LipschitzDepth.figures(result)["time"].to_json()


def test_a_result_older_than_the_radius_is_shown_by_its_own_names():
    result = stored().drop_vars("bound_radius")
    assert any("0.6 local, R = 0.1" in sentence for sentence in LipschitzDepth.findings(result))
    assert "local, R = 0.1" in LipschitzDepth.figures(result)["lipschitz_bounds"].to_json()


def test_one_series_does_not_stretch_the_axis_of_all():
    def top(product):
        chart = LipschitzDepth.figures(stored(product))["lipschitz_bounds"]
        frame = pd.read_csv(io.StringIO(chart.data["values"]))
        return frame["value"].max(), chart.usermeta["caption"]

    highest, caption = top(0.5)
    assert highest == 1 + 8 * 0.5
    assert "lies on the edge" not in caption
    highest, caption = top(40.0)
    assert highest < 20
    assert "Lipschitz constant: what is at least" in caption


def test_bad_fields_are_refused_with_field_value_and_remedy():
    for fields, message in (
        ({"depths": (0,)}, "`depths` must be positive integers, got 0"),
        ({"depths": ()}, "`depths` must hold at least one value, got none"),
        ({"radii": (-1.0,)}, "`radii` must be positive and finite, got -1.0"),
        ({"blocks": ("plain-ln",)}, "`blocks` must have no norm or batch norm, got 'plain-ln'"),
        ({"blocks": ("plian",)}, "Did you mean 'plain'"),
        ({"refine_steps": -1}, "`refine_steps` must be finite and not negative, got -1"),
        ({"width": 0}, "`width` must be a positive integer, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            LipschitzDepth(**{"activations": (activations.relu,)} | fields)
