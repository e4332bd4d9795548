"""The vocabulary of figures: numbers survive, awkward ones are drawn, and any number of series has a look."""

import io
import math
import re

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert
import xarray as xr

from jaxact import theme
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


def make_result(dtype=float):
    rng = np.random.default_rng(0)
    coords = {
        "activation": ["relu", "tanh"],
        "block": ["plain", "residual"],
        "depth": [4, 8, 16],
        "seed": [0, 1],
    }
    shape = tuple(len(values) for values in coords.values())
    accuracy = xr.DataArray(
        rng.uniform(0.9, 0.97, shape).astype(dtype), coords, tuple(coords), name="accuracy"
    )
    accuracy.attrs = {"long_name": "test accuracy", "units": "1"}
    norm = (10.0 ** (accuracy * 0 - 3)).where(accuracy["depth"] < 16, 0.0).assign_attrs(long_name="norm")
    result = xr.Dataset({"accuracy": accuracy, "norm": norm, "failed": accuracy < 0.91})
    result["depth"].attrs = {"long_name": "depth", "units": "layers"}
    return result


def measure(values="accuracy", result=None, **options):
    said = {"x": "depth", "series": "activation", "column": "block", "over": "seed"} | options
    result = make_result() if result is None else result
    return figures.measured(result, values, title="Which?", subtitle="two seeds", caption="See.", **said)


def vertical_axis(chart):
    [channel] = {
        str(layer["encoding"]["y"])
        for layer in chart.to_dict()["spec"]["layer"]
        if layer["mark"]["type"] == "line"
    }
    return channel


@pytest.mark.parametrize("values", [["a", "b"], [1, 2], [True, False], [0.5, 2.0]])
@pytest.mark.parametrize("mark", [figures.lines, figures.ribbons, figures.scatter, figures.bars])
def test_series_and_panels_may_hold_strings_numbers_and_booleans(mark, values):
    frame = pd.DataFrame({"series": np.repeat(values, 2), "panel": values * 2, "x": [1, 2, 1, 2]})
    frame = frame.assign(value=[1.0, 2.0, 3.0, 4.0], low=0.5, high=4.5)
    axes = {"x": figures.Axis(title="x"), "y": figures.Axis(title="y"), "x_field": "x"}
    bands = {"bands": [("low", "high")]} if mark is figures.ribbons else {}
    svg = svg_of(mark(frame, **axes, series="series", column="panel", row="series", **bands))
    assert all(svg.count(f">{value}<") >= 3 for value in values)  # legend, row and column


@pytest.mark.parametrize("mark", ["lines", "scatter", "bars", "heat_map"])
def test_a_declared_figure_says_its_labels(mark):
    rows = {"y": "activation", "series": None} if mark == "heat_map" else {}
    svg = svg_of(measure(mark=mark, centre="mean", words={"block": {"plain": "No skips"}.get}, **rows))
    for words in ("No skips", "residual", "Depth (layers)", "Test accuracy", "relu", "tanh", "Which?"):
        assert f">{words}<" in svg
    assert "lowest seed" in svg


def test_several_values_are_told_apart_by_quantity():
    result = make_result().assign(other=make_result()["accuracy"] / 2)
    svg = svg_of(measure({"accuracy": "measured", "other": "half"}, result, row="quantity"))
    assert ">measured<" in svg
    assert ">half<" in svg


def test_nothing_measured_is_no_figure():
    result = make_result()
    assert measure(result=result.assign(accuracy=result["accuracy"] * np.nan)) is None
    empty = {"mark": "heat_map", "y": "activation", "series": None}
    assert measure(result=result.assign(accuracy=result["accuracy"] * np.nan), **empty) is None


def test_a_dimension_that_is_neither_drawn_nor_reduced_is_refused():
    with pytest.raises(ValueError, match=r"\['seed'\].*in over"):
        measure(over=())


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match=r"tooltip.*got tooltips"):
        measure(tooltips=["failed"])
    with pytest.raises(TypeError, match="got sizes"):
        measure(mark="heat_map", y="activation", series=None, sizes=(1, 2))


def test_an_axis_of_shares_shows_the_data_and_stays_between_none_and_all():
    result = make_result()
    assert "[0.89" in vertical_axis(measure(result=result, format=".0%"))
    low, high = figures.frames.share_domain(np.array([0.99, 1.0, np.nan]))
    assert 0.98 < low < 0.99
    assert high == 1.0
    assert figures.frames.share_domain(np.array([0.0, 1.0])) == (0.0, 1.0)


def test_decades_say_in_the_caption_what_lies_on_an_edge():
    chart = measure("norm", scale="decades").to_dict()
    assert chart["usermeta"]["caption"] == "See. Norm: what is at most 1e-4 lies on the edge."
    assert "at most 1e-4" in svg_of(measure("norm", scale="decades"))


def test_one_giant_does_not_stretch_an_axis_of_decades():
    result = make_result()
    norm = result["norm"].where(result["depth"] < 16, 1e-3)
    norm = norm.where(
        (norm["depth"] < 16) | (norm["activation"] == "relu") | (norm["block"] == "plain"), 1e50
    )
    assert (
        "at least 10 lies"
        in measure("norm", result.assign(norm=norm), scale="decades")["usermeta"]["caption"]
    )


def test_lines_that_coincide_are_both_seen():
    frame = make_frame().assign(value=0.5)
    svg = svg_of(draw_lines(frame, band=None))
    widths = {
        float(width) for width in re.findall(r'stroke="#(?:0072B2|D55E00)" stroke-width="([\d.]+)"', svg)
    }
    assert len(widths) >= 2
    spec = draw_lines(frame).to_dict()
    [data] = spec["datasets"].values()
    at = pd.read_csv(io.StringIO(data)).groupby("depth")["at"]
    assert (at.nunique() == 2).all()
    assert ((at.max() / at.min()) < 1.2).all()


def test_a_heat_map_writes_each_number_and_crosses_what_is_missing():
    result = make_result()
    accuracy = result["accuracy"].where((result["depth"] < 16) | (result["block"] == "plain"))
    chart = measure(
        result=result.assign(accuracy=accuracy), mark="heat_map", y="activation", series=None, format=".1%"
    )
    svg = svg_of(chart)
    assert svg.count("\N{MULTIPLICATION SIGN}</text>") == 2
    mean = f"{float(accuracy.sel(block='plain', activation='relu', depth=4).median()):.1%}"
    assert f">{mean}</text>" in svg


def test_curves_lie_over_a_heat_map_with_borders():
    result = make_result().isel(block=0, drop=True)
    curve = xr.DataArray(
        [[5.0, 12.0]] * 2, {"activation": ["relu", "tanh"], "at": [0.1, 0.3]}, ("activation", "at")
    )
    scales = result.rename(seed="sigma").assign_coords(sigma=[0.1, 0.3])
    chart = measure(
        result=scales, mark="heat_map", x="sigma", y="depth", column="activation", series=None, over=(),
        borders={"sigma": "linear", "depth": "log"},
        curves={"theory's depth": curve, "critical": curve[:, 0] * 0 + 0.2},
    )  # fmt: skip
    svg = svg_of(chart)
    assert "theory's depth" in svg
    first, second = theme.style(["theory's depth", "critical"]).colours
    assert svg.count(f'stroke="{first}"') >= 2  # a curve a panel
    assert svg.count(f'stroke="{second}"') >= 2


def test_a_histogram_has_area_one_beside_its_density():
    rng = np.random.default_rng(0)
    sample = xr.DataArray(rng.normal(size=(2, 500)), {"phase": ["a", "b"]}, ("phase", "unit"), name="h")
    at = np.linspace(-3, 3, 7)
    density = xr.DataArray(np.exp(-(at**2) / 2) / np.sqrt(2 * np.pi), {"z": at}, ("z",))
    result = xr.Dataset({"h": sample, "normal": density})
    chart = measure(
        "h", result, mark="histogram", x=None, series="phase", column=None, over="unit", beside="normal"
    )
    [data] = chart.to_dict()["datasets"].values()
    frame = pd.read_csv(io.StringIO(data))
    areas = ((frame["to"] - frame["from"]) * frame["value"]).groupby(frame["phase_index"]).sum()
    assert areas.tolist() == pytest.approx([1.0, 1.0], rel=1e-3)  # numbers keep five digits
    assert frame["density"].max() == pytest.approx(0.39894)


def test_the_quartiles_of_a_sample_are_ribbons():
    svg = svg_of(measure(mark="ribbons", along="seed", over=(), row="activation"))
    assert "lower quartile: " in svg


@pytest.mark.parametrize("config", [theme.LIGHT, theme.DARK])
def test_a_config_changes_every_colour_of_the_page(config):
    spec = measure(open_where="failed", level=(0.95, "target")).to_dict() | {"config": config}
    svg = vl_convert.vegalite_to_svg(spec)
    paper = {each["name"]: each["value"] for each in config["params"]}["paper"]
    assert f'fill="{paper}" stroke="#' in svg
    other = theme.DARK if config is theme.LIGHT else theme.LIGHT
    assert all(f'"{each["value"]}"' not in svg for each in other["params"])


def test_boxes_that_were_not_measured_are_no_empty_boxes():
    result = make_result().isel(block=0, seed=0, drop=True)
    result = result.assign(known=result["depth"] < 16, none=result["accuracy"] * np.nan)
    said = {"mark": "heat_map", "y": "activation", "series": None, "column": None, "over": ()}
    for values in ("accuracy", "none"):
        assert str(measure(values, result, where="known", **said).to_dict()).count(",box") == 4
    assert measure("none", result, **said) is None


def test_ticks_that_are_asked_for_are_all_drawn_as_numbers():
    positions = [8.0, 11.0, 15.0, 20.0, 27.0, 36.0, 48.0, 64.0, 128.0]
    result = make_result().isel(block=0, drop=True)
    depths = np.linspace(8, 128, result["norm"].size).reshape(result["norm"].shape)
    result = result.assign(depths=result["norm"].copy(data=depths))
    chart = measure("depths", result, column=None, scale="decades", ticks=positions)
    svg = svg_of(chart)
    for position in positions:
        assert f">{position:g}</text>" in svg


def test_positions_beyond_the_ceiling_lie_on_the_edge_and_are_said():
    result = make_result().isel(block=0, seed=0, drop=True)
    far = result["accuracy"].rename("far") * 0 + xr.DataArray([1.0, 10.0, np.inf], dims="depth")
    chart = measure(
        "accuracy", result.assign(far=far.assign_attrs(long_name="far")), mark="scatter", x="far", column=None,
        x_scale="decades", x_ceiling=2.0, over=(),
    )  # fmt: skip
    assert "Far: what is at least 100 lies on the edge." in chart.to_dict()["usermeta"]["caption"]
    assert "at least 100" in str(chart.to_dict()["transform"])


def test_a_single_position_has_a_box_about_it():
    assert figures.borders([2.0]).tolist() == [1.8, 2.2]
    assert figures.borders([2.0], log=True).tolist() == [1.8, 2.2]
    assert figures.borders([0.0]).tolist() == [-0.5, 0.5]
