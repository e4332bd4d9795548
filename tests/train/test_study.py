"""A declared study: cells, labels, words and figures follow from what it sweeps and measures."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert
import xarray as xr

from jaxact import activations
from jaxact.activations import Activation, from_callable, relu, tanh
from train import config, request, results, runner
from train.__main__ import main
from train.config import ConfigError
from train.experiment import Experiment
from train.optimizers import AdamW
from train.study import Coordinate, Study, Variable, label

ERRORS = np.array([0.1, 0.3])  # of the two seeds


@dataclass(frozen=True, kw_only=True)
class Growth(Study):
    """Do signals grow as they should?"""

    activations: tuple[Activation, ...] = (tanh, relu)
    depths: tuple[int, ...] = (2, 4)
    seeds: tuple[int, ...] = (3, 1)
    factor: float = 1.5
    threshold: float = 0.9
    spoilt: Any = ()  # names and what is returned under them instead; None for nothing

    swept = {"activation": "activations", "depth": "depths"}
    variables = {
        "size": Variable("size to {threshold:.0%}", ("seed", "layer"), "m", theory="size_theory", fields=("factor",)),
        "size_theory": Variable("size by theory", ("layer",), "m"),
        "score": Variable("score of {factor:g}", ("seed",)),
        "weight": Variable("weight", ("seed", "phase"), "kg"),
        "is_large": Variable("whether it is large", ("seed",)),
        "kind": Variable("what kind it is"),
        "clock": Variable("what the clock says", ("tick",), "s", of_cell=False),
        "grid_value": Variable("value on the grid", ("grid",), of_cell=False),
    }  # fmt: skip
    coordinates = {"tick": Coordinate("tick of the clock", first=0), "grid": Coordinate("point", "m")}

    def measure(self, cell, progress):
        activation, depth = cell.coords["activation"], cell.coords["depth"]
        assert isinstance(activation, Activation)  # the objects themselves
        theory = self.factor * np.arange(1, depth + 1)
        score = 10 * self.activations.index(activation) + depth
        progress(0.5, "half way")
        measured = {
            "size": theory + ERRORS[: len(self.seeds), None],
            "size_theory": theory,
            "score": np.full(len(self.seeds), float(score)),
            "weight": np.outer(np.ones(len(self.seeds)), [1.0, 2.0]),
            "is_large": [score > 10] * len(self.seeds),
            "kind": "large" if score > 10 else "small",
            "clock": [7.0, 8.0, 9.0],
            "grid": [0.5, 0.25],
            "grid_value": [5.0, 6.0],
            "compile_seconds": 0.25,
        }
        changed = {**measured, **dict(self.spoilt)}
        return {name: value for name, value in changed.items() if value is not None}


def silent(fraction, note=""):
    assert 0 <= fraction <= 1


def run(study):
    return [study.run(cell, progress=silent) for cell in study.cells()]


@pytest.fixture(scope="module")
def whole():
    return results.combine(run(Growth()))


# Cells and labels -----------------------------------------------------------------------------------------


def test_a_study_is_an_experiment():
    assert isinstance(Growth(), Experiment)


def test_cells_are_the_product_in_order_and_hold_the_objects():
    cells = Growth().cells()
    assert [cell.name for cell in cells] == ["tanh/depth=2", "tanh/depth=4", "relu/depth=2", "relu/depth=4"]
    assert [cell.coords for cell in cells] == [
        {"activation": activation, "depth": depth} for activation in (tanh, relu) for depth in (2, 4)
    ]
    leaky = activations.parse("leaky_relu(0.3)")
    (cell,) = Growth(activations=(leaky,), depths=(8,)).cells()
    assert cell.coords["activation"] is leaky
    assert cell.name == "leaky_relu(0.3)/depth=8"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(tanh, "tanh"), (0.5, 0.5), (np.int32(3), 3), ("plain", "plain"), (True, True), (("a", 1), "('a', 1)")],
)
def test_labels_are_numbers_text_or_names(value, expected):
    assert label(value) == expected


def test_the_dataset_of_a_cell_is_labelled_as_declared():
    study = Growth()
    part = run(study)[1]
    results.check_structure(part)
    assert part.activation.values.tolist() == ["tanh"]
    assert part.depth.values.tolist() == [4]
    assert part.seed.values.tolist() == [3, 1]  # the field's own
    assert part.layer.values.tolist() == [1, 2, 3, 4]  # counted from 1
    assert part.tick.values.tolist() == [0, 1, 2]  # counted from its first
    assert part.phase.values.tolist() == ["initial", "trained"]  # always the same
    assert part.grid.values.tolist() == [0.5, 0.25]  # given
    assert part["size"].dims == ("activation", "depth", "seed", "layer")
    assert part["kind"].dims == ("activation", "depth")
    assert part["clock"].dims == ("tick",)
    assert part["size"].attrs == {"units": "m", "long_name": "size to 90%", "factor": 1.5}
    assert part["score"].attrs == {"units": "1", "long_name": "score of 1.5"}
    assert part["depth"].attrs == {"units": "layers", "long_name": "depth"}
    assert part["grid"].attrs == {"units": "m", "long_name": "point"}
    np.testing.assert_allclose(
        part["size"].sel(activation="tanh", depth=4, seed=1), 0.3 + 1.5 * np.arange(1, 5)
    )
    assert part["kind"].item() == "small"
    assert part["is_large"].dtype == bool


def test_seconds_of_compiling_are_none_of_running():
    part = run(Growth(depths=(2,), activations=(tanh,)))[0]
    assert part["compile_seconds"].item() == 0.25
    assert part["run_seconds"].item() == pytest.approx(-0.25, abs=0.2)  # nothing was compiled in truth
    assert part["run_seconds"].attrs["units"] == "s"
    (untold,) = run(Growth(depths=(2,), activations=(tanh,), spoilt=(("compile_seconds", 0.0),)))
    assert untold["run_seconds"].item() >= 0


def test_cells_combine_by_their_labels(whole):
    assert dict(whole.sizes) == {
        "activation": 2, "depth": 2, "seed": 2, "layer": 4, "phase": 2, "tick": 3, "grid": 2,
    }  # fmt: skip
    assert whole["size"].sel(depth=2, layer=[3, 4]).isnull().all()
    assert whole["score"].isel(seed=0).values.tolist() == [[2.0, 4.0], [12.0, 14.0]]
    assert whole["grid_value"].values.tolist() == [5.0, 6.0]


def test_a_variable_may_be_another_cells_to_give():
    @dataclass(frozen=True, kw_only=True)
    class Once(Growth):
        """Gives the grid in its first cell."""

        def measure(self, cell, progress):
            measured = {**super().measure(cell, progress)}
            if cell != self.cells()[0]:
                measured |= {"grid": None}
                del measured["grid_value"]
            return measured

    parts = run(Once())
    assert ["grid_value" in part for part in parts] == [True, False, False, False]
    assert results.combine(parts)["grid_value"].values.tolist() == [5.0, 6.0]


def test_cells_that_disagree_on_what_they_share_are_refused():
    @dataclass(frozen=True, kw_only=True)
    class Unsure(Growth):
        def measure(self, cell, progress):
            return {**super().measure(cell, progress), "clock": [cell.coords["depth"]] * 3}

    with pytest.raises(ValueError, match="clock"):
        results.combine(run(Unsure()))


# What is not as declared ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoilt", "messages"),
    [
        ({"score": None}, ["`measure` must return what `variables` declares, and `score` is not there"]),
        ({"score": None, "scores": 1.0}, ["returned 'scores'", "Did you mean score?"]),
        ({"stepp": [10, 20]}, ["returned 'stepp'", "Declare it, or leave it out"]),
        ({"size": None}, ["`size` is not there"]),
        ({"clock": None}, ["`clock` is not there"]),
        (
            {"score": np.zeros(3)},
            ["`score` must hold a value for each place", "(activation: 1, depth: 1, seed: 2)", "shape (3,)"],
        ),
        ({"size_theory": np.zeros(5)}, ["`size_theory` must hold", "layer: 2)", "shape (5,)"]),
        ({"weight": 1.0}, ["`weight` must hold", "seed: 2, phase: 2)", "shape ()"]),
        ({"size": 1.0}, ["`size` must hold", "shape ()"]),
        ({"kind": ["a", "b"]}, ["`kind` must hold", "(activation: 1, depth: 1)", "shape (2,)"]),
    ],
)
def test_what_is_not_measured_as_declared_is_named(spoilt, messages):
    study = Growth(depths=(2,), spoilt=tuple(spoilt.items()))
    with pytest.raises(ValueError, match=r"Return it|Mend|Declare it") as refusal:
        run(study)
    for message in messages:
        assert message in str(refusal.value)


def test_a_dimension_that_nothing_describes_is_named():
    class Undescribed(Growth):
        variables = {"colour": Variable("how it looks", ("hue",))}

    with pytest.raises(
        ValueError, match=re.escape("`colour` has the dimension `hue`: add it to `coordinates`")
    ):
        run(Undescribed(spoilt=(("colour", [1.0]),)))


def test_without_a_measurement_a_study_says_what_to_define():
    class Idle(Study):
        swept = {}
        variables = {}

    with pytest.raises(NotImplementedError, match=r"Idle must define `measure\(self, cell, progress\)`"):
        Idle().measure(None, silent)


def test_fields_are_checked_by_their_names():
    for fields, message in (
        ({"depths": (0,)}, "`depths` must be positive integers, got 0"),
        ({"seeds": ()}, "`seeds` must hold at least one value"),
        ({"activations": (tanh, tanh)}, "`activations` must not repeat a value, got tanh twice"),
        ({"threshold": 2.0}, "`threshold` is an accuracy"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Growth(**fields)


# Smoke ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Trained(Growth):
    """One with counts and an optimiser."""

    learning_rates: tuple[float, ...] = (0.1, 0.2)
    width: int = 64
    num_steps: int = 300
    measure_every: int = 3
    optimizer: AdamW = AdamW()


def test_smoke_is_small_and_of_the_same_kind():
    small = Trained(depths=(16, 32, 2), activations=(tanh, relu, activations.gelu), factor=2.0).smoke()
    assert small.activations == (tanh, relu)
    assert small.depths == (8, 2)  # none deeper than 8, and none twice
    assert small.seeds == (3,)
    assert small.learning_rates == (0.1,)
    assert (small.width, small.num_steps, small.measure_every) == (16, 18, 3)
    assert small.factor == 2.0
    assert Trained(width=4, num_steps=2, measure_every=2).smoke().width == 4


@pytest.mark.parametrize(
    ("num_steps", "measure_every", "warmup_steps"),
    [(300, 3, 0), (300, 3, 99), (7, 7, 6), (100, 50, 15), (4, 4, 0), (1, 1, 0), (21, 21, 20)],
)
def test_whatever_runs_has_a_smoke_that_runs(num_steps, measure_every, warmup_steps):
    optimizer = AdamW(warmup_steps=warmup_steps, schedule="cosine")
    study = Trained(num_steps=num_steps, measure_every=measure_every, optimizer=optimizer)
    small = study.smoke()
    assert small.num_steps <= min(num_steps, 20)
    assert small.optimizer.schedule == "cosine"
    assert (small.optimizer.warmup_steps > 0) == (warmup_steps > 0)


# What is said and drawn -----------------------------------------------------------------------------------


def test_findings_say_how_far_measurements_are_from_theory(whole):
    size, score, weight, clock, grid = Growth.findings(whole)
    # Half of the gaps are 0.1 and half 0.3; the theory goes from 1.5 to 4 x 1.5.
    expected = "Size to 90%: measured and predicted numbers differ by 0.2 in the median and by 0.3 at most"
    assert size == f"{expected}; predictions go from 1.5 to 6."
    assert score == "Score of 1.5: 2 (tanh 2) to 14 (relu 4)."
    assert weight == "Weight: initial, 1; trained, 2."  # the same everywhere
    assert clock == "What the clock says: 7 to 9."
    assert grid == "Value on the grid: 5 to 6."


def test_findings_tell_phases_apart_beside_theory_too():
    phases = xr.DataArray([[1.0, 5.0]], {"depth": [2], "phase": ["initial", "trained"]}, ("depth", "phase"))
    theory = xr.DataArray([1.0], {"depth": [2]}, ("depth",))

    class Grown(Study):
        swept = {"depth": "depths"}
        variables = {"size": Variable("size", ("phase",), theory="expected"), "expected": Variable("theory")}

    (said,) = Grown.findings(xr.Dataset({"size": phases.assign_attrs(long_name="size"), "expected": theory}))
    off = "measured and predicted numbers differ by {0} in the median and by {0} at most"
    assert said == f"Size: initial, {off.format(0)}; trained, {off.format(4)}; predictions go from 1 to 1."


def test_a_phase_or_a_last_step_without_numbers_is_left_out(whole):
    gone = whole.copy(deep=True)
    gone["weight"] = gone["weight"].where(gone["phase"] == "initial")
    assert Growth.findings(gone)[2] == "Weight: initial, 1."


def test_a_result_without_a_number_says_so(whole):
    nothing = whole.copy(deep=True)
    for name in nothing.data_vars:
        nothing[name] = (
            nothing[name].astype(float) * np.nan if nothing[name].dtype.kind in "fib" else nothing[name]
        )
    assert Growth.findings(nothing) == ["Nothing to conclude: the result holds no number."]
    assert Growth.figures(nothing) == {}


def test_tables_hold_the_mean_of_every_cell(whole):
    (table,) = Growth.tables(whole).values()
    assert len(table) == 4
    row = table[(table["activation"] == "relu") & (table["depth"] == 4)].iloc[0]
    assert (row["score"], row["weight, initial"], row["weight, trained"]) == (14.0, 1.0, 2.0)
    assert row["size"] == pytest.approx(1.5 * 2.5 + 0.2)
    assert table.attrs["caption"]
    assert "clock" not in table  # which is no cell's


def test_every_variable_of_numbers_is_drawn_with_theory_beside_it(whole):
    charts = Growth.figures(whole)
    assert list(charts) == ["size", "score", "weight", "clock", "grid_value"]
    assert charts["size"].title.text == "Size to 90%"
    for name, chart in charts.items():
        picture = vl_convert.vegalite_to_png(chart.to_json())
        assert picture[:8] == b"\x89PNG\r\n\x1a\n", name
        assert len(picture) > 3000, f"{name} is blank"
    said = json.dumps(charts["size"].to_dict())
    assert "lines: theory" in said
    assert "2 seeds" in said
    assert "theory" not in json.dumps(charts["score"].to_dict()["title"])


def test_a_study_of_one_cell_is_labelled_said_and_drawn():
    @dataclass(frozen=True, kw_only=True)
    class Single(Study):
        seeds: tuple[int, ...] = (0, 1)
        swept = {}
        variables = {"loss": Variable("loss", ("seed", "step"), "nat"), "width": Variable("width")}

        def measure(self, cell, progress):
            return {"loss": [[3.0, 1.0], [4.0, 2.0]], "width": 7.0, "step": [10, 20]}

    (cell,) = Single().cells()
    assert cell == ("all", {})
    result = results.combine(run(Single()))
    assert Single.findings(result) == ["Loss at the last step, 20: 1 to 2.", "Width: 7 to 7."]
    assert list(Single.figures(result)) == ["loss"]
    (table,) = Single.tables(result).values()
    assert table[["loss", "width"]].to_numpy().tolist() == [[1.5, 7.0]]


def test_phases_are_chosen_and_no_sample(whole):
    said = Growth.figures(whole)["weight"].to_dict()
    assert "phase" not in json.dumps(said["title"])
    assert "trained" in json.dumps(said["params"])


def test_a_figure_may_be_told_more(whole):
    chart = Growth.figure(whole, "score", title="Who wins?", centre="mean")
    assert chart.title.text == "Who wins?"


# From the command line ------------------------------------------------------------------------------------

OWN = '''"""Whether an activation of one's own goes through."""
from dataclasses import dataclass

from jaxact.activations import Activation, from_callable, tanh
from train.study import Study, Variable


@dataclass(frozen=True, kw_only=True)
class Values(Study):
    """What is f(2)?"""

    activations: tuple[Activation, ...]
    point: float = 2.0

    swept = {"activation": "activations"}
    variables = {"value": Variable("f({point:g})"), "bound": Variable("Lipschitz constant")}

    def measure(self, cell, progress):
        f = cell.coords["activation"]
        return {"value": float(f(self.point)), "bound": f.lipschitz}


def get_config():
    return Values(activations=(from_callable(lambda x: 3 * x, name="triple"), tanh))
'''


def test_an_activation_of_ones_own_is_measured_in_worker_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
    (tmp_path / "own.py").write_text(OWN)
    assert main(["run", "own.py", "--workers", "2"]) == 0
    (directory,) = (tmp_path / "runs").iterdir()
    result = results.load(directory / "result.nc")
    assert result.activation.values.tolist() == ["triple", "tanh"]
    np.testing.assert_allclose(result["value"], [6.0, np.tanh(2.0)], rtol=1e-6)
    np.testing.assert_allclose(result["bound"], [3.0, 1.0], rtol=1e-6)
    assert result["value"].attrs["long_name"] == "f(2)"
    assert runner.read(directory).cells == ["triple", "tanh"]
    assert "F(2): 0.964 (tanh) to 6 (triple)." in capsys.readouterr().out
    parsed = request.parse(["own.py", "--activations", "triple", "--point", "1"]).experiment
    assert [each.name for each in parsed.activations] == ["triple"]
    assert parsed == replace(parsed, point=1.0)


def test_an_own_activation_is_labelled_by_its_name():
    mine = from_callable(lambda x: 0.5 * x, name="half")
    (part,) = run(Growth(activations=(mine,), depths=(2,)))
    assert part.activation.values.tolist() == ["half"]
    assert isinstance(part, xr.Dataset)


def declared(**faulty):
    """A study with another declaration."""
    return type("Faulty", (Growth,), faulty)


SCORE = Variable("score", ("seed",))


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        ({"swept": {"depth": "sizes"}}, "the field `sizes` for `depth`, which must be a tuple of values, got None"),
        ({"swept": {"depth": "factor"}}, "which must be a tuple of values, got 1.5"),
        ({"swept": {"hue": "depths"}}, "`swept` has the dimension `hue`: add it to `coordinates`"),
        ({"variables": None}, "It declares no `variables`"),
        ({"variables": {"a/b": SCORE}}, "A variable cannot be called 'a/b'"),
        ({"variables": {"run_seconds": SCORE}}, "A variable cannot be called 'run_seconds'"),
        ({"variables": {"a": Variable("a", ("depth",))}}, "`a` has the dimension `depth` twice"),
        ({"variables": {"a": Variable("a", ("learning_rate",))}}, "there is no field `learning_rates` to label it"),
        ({"variables": {"a": Variable("{sigma} of a")}}, "a template that the fields do not fill: KeyError('sigma')"),
        ({"variables": {"a": Variable("a", fields=("sigma",))}}, "keeps the field `sigma`, which there is not"),
        ({"variables": {"a": Variable("a", theory="b")}}, "names the theory `b`, which must be another"),
        (
            {"variables": {"a": Variable("a", theory="b"), "b": Variable("b", ("layer",))}},
            "The theory of `a` has the dimensions ['layer'], which `a` lacks",
        ),
    ],
)  # fmt: skip
def test_a_declaration_that_cannot_run_is_refused_before_anything_is_written(faulty, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        declared(**faulty)().cells()


def test_names_of_cells_keep_apart_what_differs():
    @dataclass(frozen=True, kw_only=True)
    class Fine(Study):
        factors: tuple[float, ...] = (0.1 + 0.2, 0.3, 1.0)
        swept = {"factor": "factors"}
        coordinates = {"factor": Coordinate("factor")}
        variables = {"a": Variable("a")}

    assert [cell.name for cell in Fine().cells()] == ["factor=0.30000000000000004", "factor=0.3", "factor=1"]


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_number_that_is_none_costs_no_report(value):
    study = Growth(spoilt=(("score", [1.0, value]), ("size_theory", [np.nan, np.nan])), depths=(2,))
    result = results.combine(run(study))
    charts, said = Growth.figures(result), Growth.findings(result)
    assert {"score", "size"} <= set(charts)
    assert "nan" not in " ".join(said)
    if np.isinf(value):
        assert (
            "Infinite numbers are not drawn, of 2 marks." in charts["score"].to_dict()["usermeta"]["caption"]
        )


def test_a_study_of_text_alone_is_drawn_in_bars():
    class Named(Growth):
        swept = {"activation": "activations"}
        variables = {"score": Variable("score of an activation", ("seed",))}

        def measure(self, cell, progress):
            return {"score": [1.0, 2.0] if cell.coords["activation"] is tanh else [3.0, 5.0]}

    chart = Named.figures(results.combine(run(Named())))["score"].to_dict()
    assert "bar" in str(chart["spec"])


@pytest.mark.parametrize(
    "name", ["depth_sweep", "phase_diagram", "ten_thousand_layers", "lipschitz_depth", "certified_accuracy"]
)
def test_smoke_runs_fit_whatever_the_warm_up(name):
    study = config.load(Path(__file__).parents[2] / "configs" / f"{name}.py")
    warm = replace(study, optimizer=replace(study.optimizer, warmup_steps=50)).smoke()
    assert 0 < warm.optimizer.warmup_steps < warm.num_steps
