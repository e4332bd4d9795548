"""The vocabulary of figures: numbers survive, awkward ones are drawn, and any number of series has a look."""

import math

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
import xarray as xr

from train import figures


def make_frame(names=("relu", "tanh"), blocks=("plain",), depths=(4, 8, 16)):
    rows = [
        {"activation": name, "block": block, "depth": depth, "value": 0.1 * i + depth / 100, "open": i == 0}
        for i, name in enumerate(names)
        for block in blocks
        for depth in depths
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(
        low=frame["value"] - 0.1,
        high=frame["value"] + 0.1,
        activation=pd.Categorical(frame["activation"], categories=list(names)),
        block=pd.Categorical(frame["block"], categories=list(blocks)),
    )


def draw_lines(frame, **options):
    depths = sorted(frame["depth"].unique().tolist())
    return figures.lines(
        frame,
        x=figures.Axis(title="Depth", scale="doubling", ticks=depths),
        y=figures.Axis(title="Accuracy"),
        x_field="depth",
        series="activation",
        column="block",
        **options,
    )


def svg_of(chart):
    return vl_convert.vegalite_to_svg(chart.to_dict())


def test_thirty_series_have_thirty_looks():
    look = figures.style([f"f{i}" for i in range(30)])
    assert len(set(zip(look.colours, look.shapes, look.dashes, strict=True))) == 30
    assert len(set(look.colours[:7])) == 7


def test_a_repeated_name_is_one_series():
    assert figures.style(["relu", "relu"]).names == ("relu",)


def test_spread_of_an_empty_sample_is_nan_and_says_so():
    sample = figures.spread(xr.DataArray([[np.nan, np.nan], [1.0, 2.0]], dims=("depth", "seed")), "seed")
    assert math.isnan(sample["value"][0])
    assert sample["count"].values.tolist() == [0, 2]
    assert sample["value"][1] == 1.5


def test_decades_draws_zero_and_infinity_on_the_edges():
    frame, (low, high) = figures.decades(pd.DataFrame({"s": [0.0, 1e-3, 1e5, np.inf, np.nan]}), ["s"])
    assert frame["s"].tolist()[:4] == [-4.0, -3.0, 5.0, 6.0]
    assert math.isnan(frame["s"][4])
    assert (low, high) == (-4.0, 6.0)


def test_decades_clips_at_the_floor_and_leaves_the_rest():
    frame, (low, high) = figures.decades(pd.DataFrame({"s": [1e-40, 1.0]}), ["s"], floor=-12)
    assert frame["s"].tolist() == [-12.0, 0.0]
    assert (low, high) == (-12, math.inf)


@pytest.mark.parametrize("values", [[0.0, 0.0], [np.inf], [np.nan], []])
def test_decades_takes_columns_without_a_positive_number(values):
    frame, edges = figures.decades(pd.DataFrame({"s": np.asarray(values, float)}), ["s"])
    assert not np.isinf(frame["s"].to_numpy()).any()
    assert edges[0] <= edges[1]


def test_axis_label_is_long_name_and_unit():
    assert (
        figures.label(xr.DataArray(0.0, attrs={"long_name": "training loss", "units": "nats"}))
        == "Training loss (nats)"
    )
    assert (
        figures.label(xr.DataArray(0, attrs={"long_name": "optimiser step", "units": "steps"}))
        == "Optimiser step"
    )
    assert figures.label(xr.DataArray(0.0, name="dead_fraction", attrs={"units": "1"})) == "Dead fraction"


def test_an_infinity_in_a_frame_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'s'.*infinity.*decades"):
        figures.inline(pd.DataFrame({"s": [np.inf]}))


def test_thinning_keeps_the_ends():
    kept = figures.thin(np.arange(1, 1001), 33)
    assert len(kept) == 33
    assert (kept[0], kept[-1]) == (1, 1000)


def test_every_series_and_panel_is_drawn():
    svg = svg_of(
        draw_lines(make_frame(blocks=("plain", "residual")), open_where="open", level=(0.5, "budget"))
    )
    for words in ("relu", "tanh", "plain", "residual", "Depth", "Accuracy", "budget"):
        assert f">{words}<" in svg


def test_thirty_series_are_drawn():
    names = [f"elu({i})" for i in range(30)]
    svg = svg_of(draw_lines(make_frame(names=names)))
    assert all(f">{name}<" in svg for name in names)


def test_open_marks_are_open_where_asked_and_only_there():
    svg = svg_of(draw_lines(make_frame(), open_where="open"))
    assert svg.count('fill="white" stroke="#0072B2"') == 3  # relu at three depths
    assert 'fill="white" stroke="#D55E00"' not in svg


def test_names_with_quotes_and_angle_brackets_stay_names():
    names = ('he said "1"', "it's </script>", "back\\slash")
    svg = svg_of(draw_lines(make_frame(names=names)))
    assert "it's &lt;/script&gt;" in svg
    assert 'he said "1"' in svg or "he said &quot;1&quot;" in svg
    assert "back\\slash" in svg


def test_a_single_position_still_shows_its_spread():
    frame = make_frame(depths=(8,)).assign(phase="trained")
    assert "mark-symbol" in svg_of(draw_lines(frame))
    chart = figures.ribbons(
        frame,
        x=figures.Axis(title="Depth", scale="doubling", ticks=[8]),
        y=figures.Axis(title="s", scale="decades"),
        x_field="depth",
        bands=[("low", "high")],
        middle="value",
        series="phase",
        column="block",
        row="activation",
    )
    assert "mark-rule" in svg_of(chart)


def test_a_choice_filters_and_can_be_made_in_a_notebook():
    choice = figures.Choice("depth", (4, 8, 16), 16, "depth")
    spec = draw_lines(make_frame(), choices=[choice]).to_dict()
    [parameter] = [p for p in spec["params"] if p["name"] == "chosen_depth"]
    assert parameter["value"] == 16
    assert parameter["bind"]["options"] == [4, 8, 16]
    assert {"filter": "datum['depth'] == chosen_depth"} in spec["transform"]


def test_hiding_a_series_hides_it():
    tooltip = [alt.Tooltip("activation:N", title="who")]
    frame = make_frame()
    assert "who: relu" in svg_of(draw_lines(frame, tooltip=tooltip))
    chart = figures.shown(draw_lines(frame, tooltip=tooltip), {"activation": ["tanh"]})
    assert "who: relu" not in svg_of(chart)
    assert "who: tanh" in svg_of(chart)


def test_twenty_thousand_rows_are_no_obstacle():
    frame = make_frame(depths=tuple(range(1, 10001)))
    spec = draw_lines(frame).to_dict()
    assert len(frame) == 20000
    [data] = spec["datasets"].values()
    assert data.count("\n") == 20001


def test_a_finished_chart_carries_its_words():
    chart = figures.finish(draw_lines(make_frame()), title="Which?", subtitle="mean", caption="See this.")
    spec = chart.to_dict()
    assert spec["title"] == {"text": "Which?", "subtitle": "mean"}
    assert spec["usermeta"]["caption"] == "See this."
    assert spec["description"] == "Which? See this."


@pytest.mark.parametrize(
    ("log10", "edges", "words"),
    [
        (2.0, (-math.inf, math.inf), "100"),
        (-4.0, (-4.0, math.inf), "at most 1e-4"),
        (412.0, (-1.0, 500.0), "1e412"),
    ],
)
def test_readout_says_the_number_even_where_floats_cannot(log10, edges, words):
    data = alt.InlineData(values=[{"v": log10}])
    chart = alt.Chart(data).transform_calculate(t=figures.readout("v", edges)).mark_text().encode(text="t:N")
    assert f">{words}<" in svg_of(chart)
