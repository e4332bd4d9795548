"""The phase diagram: a known depth limit is found again, censoring is kept apart, theory is the library's own."""

from pathlib import Path

import altair as alt
import jax
import numpy as np
import pytest
import scipy.stats
import xarray as xr

from jaxact import activations, theory
from train import config, ranks, results, runs
from train.experiments.phase_diagram import PhaseDiagram, limits
from train.trial import first_crossing

CONFIG = Path(__file__).parents[2] / "configs" / "phase_diagram.py"
SCALES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
XI = {"tanh": (4, 9, 20, 8, 5, 3), "hard_tanh": (7, 5, 4, 3.5, 3, 2.5)}


def silent(fraction, note=""):
    assert 0 <= fraction <= 1


def synthetic(
    *, limit=lambda xi: 6 * xi, depths=(8, 12, 18, 27, 40, 60, 90), names=("tanh", "hard_tanh"), num_steps=200
):
    """A study in which a network trains, the faster the shallower, exactly up to limit(xi_c) layers.

    Theory's xi_gradient is the mirror image of xi_c: it ranks the columns otherwise. The middle of three learning
    rates is the best, the largest diverges; of three seeds the last never trains.
    """
    rates, seeds, step = (0.001, 0.01, 0.1), (0, 1, 2), np.arange(10, num_steps + 1, 10)
    coords = {
        "activation": list(names),
        "depth": list(depths),
        "sigma_w_squared": list(SCALES),
        "learning_rate": list(rates),
        "seed": list(seeds),
        "step": step,
        "curve_sigma_w_squared": np.linspace(1, 4, 7),
    }
    sizes = {name: len(values) for name, values in coords.items()}
    variables = {}
    for name, each in PhaseDiagram.variables.items():
        dims = (*(PhaseDiagram.swept if each.of_cell else ()), *each.dims)
        said = {"units": each.units, "long_name": each.long_name.format(threshold=0.9)}
        variables[name] = (dims, np.full([sizes[dim] for dim in dims], np.nan), said)
    dataset = xr.Dataset(variables, coords)
    xi = np.array([XI[name] for name in names], float)
    dataset["xi_c"][:], dataset["xi_gradient"][:] = xi[:, None], xi[:, None, ::-1]
    dataset["chi"][:] = np.where(np.array(SCALES) < 2, 0.8, 1.2)
    dataset["curve_xi_c"][:], dataset["curve_xi_gradient"][:] = 10.0, 5.0
    dataset["critical_sigma_w_squared"][:] = 1.9
    for name, value in (("threshold", 0.9), ("chance_accuracy", 0.1), ("width", 64)):
        dataset[name] = dataset[name].copy(data=value)
    accuracy = dataset["train_accuracy"].to_numpy()
    for i, j, k in np.ndindex(accuracy.shape[:3]):
        end = limit(xi[i, k])
        # A network 10 % too deep comes short of the threshold by 10 %; one that is shallow enough takes its time.
        reached = 0.1 + 0.8 * min(end / depths[j], 1.0) ** 4
        slow = 10 + 100 * depths[j] / end
        rise = np.minimum(step / slow, 1.0)
        accuracy[i, j, k, :2, :2] = 0.1 + (reached - 0.1 + 1e-6) * rise
        accuracy[i, j, k, 0] *= 0.9  # the smaller rate does not get there
        accuracy[i, j, k, :2, 2] = 0.1
    dataset["steps_to_threshold"][:] = first_crossing(accuracy, step, 0.9)
    dataset["diverged_step"][:, :, :, 2] = 3
    dataset["steps_trained"][:] = num_steps
    return dataset


@pytest.fixture(scope="module")
def smoke():
    study = config.load(CONFIG).smoke()
    return study, [study.run(cell, progress=silent) for cell in study.cells()]


def test_theory_columns_are_mean_field(smoke):
    study, parts = smoke
    (activation,) = study.activations
    whole = results.combine(parts)
    with jax.enable_x64(True):
        expected = theory.mean_field(
            activation, sigma_w=np.sqrt(study.sigma_w_squared), sigma_b=study.sigma_b_squared**0.5
        )
    for name in ("q_star", "chi", "c_star", "xi_c", "xi_gradient"):
        np.testing.assert_allclose(
            whole[name].isel(activation=0), np.stack([getattr(expected, name)] * 2), rtol=1e-9
        )
    critical = theory.critical_point(activation, sigma_b=study.sigma_b_squared**0.5).sigma_w ** 2
    np.testing.assert_allclose(whole["critical_sigma_w_squared"].values, critical)
    assert whole["curve_xi_c"].notnull().all()


def test_the_smoke_reports_and_one_program_serves_all_cells(smoke):
    study, parts = smoke
    for part in parts:
        results.check_structure(part)
    whole = results.combine(parts)
    results.check_structure(whole)
    for name, variable in whole.variables.items():
        assert variable.attrs.get("units"), name
        assert variable.attrs.get("long_name"), name
    assert study.findings(whole)
    assert study.figures(whole)
    assert study.tables(whole)
    assert [float(part["compile_seconds"].squeeze()) > 0 for part in parts] == [True, False, False, False]


def test_the_same_seed_gives_the_same_dataset(smoke):
    study, parts = smoke
    again = study.run(study.cells()[-1], progress=silent)
    xr.testing.assert_identical(results.measurements(again), results.measurements(parts[-1]))


def test_cells_of_processes_that_round_differently_join(smoke):
    _, parts = smoke
    shaken = [part.copy(deep=True) for part in parts]
    for index, part in enumerate(shaken):
        for name, variable in part.data_vars.items():
            if "xi" in str(name) or "critical" in str(name):
                part[name] = variable * (1 + 1e-12 * index)
    found = limits.columns(results.combine(shaken))
    np.testing.assert_allclose(found["xi_c"], limits.columns(results.combine(parts))["xi_c"], rtol=1e-10)


def test_a_cell_stops_once_it_is_settled(smoke):
    _, parts = smoke
    for part in parts:
        last = int(part["steps_trained"].item())
        reached = part["steps_to_threshold"]
        budget = int(part["step"].max())
        assert (float(reached.min()) == last) if reached.notnull().any() else (last == budget)
        history = part["train_accuracy"].sel(step=slice(last + 1, None))
        assert history.isnull().all()


def test_a_known_depth_limit_has_rank_correlation_one():
    result = synthetic()
    found = limits.columns(result)
    for name in ("tanh", "hard_tanh"):
        row = found.sel(activation=name)
        assert ranks.agreement(row.xi_c.values, row.limit.values).rho == 1.0
        # The limit lies in the bracket of depths around the true one.
        true = 6 * np.array(XI[name], float)
        inside = row.side.values == 0
        assert inside.sum() >= 4
        assert np.all((row.low.values <= true)[inside] & (true < row.high.values)[inside])
    verdict, first, *_ = PhaseDiagram.findings(result)
    assert verdict.startswith("Theory ranks the depth limits right")
    assert verdict.endswith("the ranks favour the correlation's scale.")
    assert first.topic == "Rank correlations"
    assert "1.00 [1.00, 1.00] with 6 xi_c" in first
    # The mirror image ranks wrongly.
    assert "-" in first.split("with 6 xi_c")[1].split(" with 6 xi_gradient")[0]


def test_limits_beyond_the_grid_are_flagged_and_share_a_rank():
    result = synthetic(limit=lambda xi: 20 * xi, names=("tanh",))
    row = limits.columns(result).sel(activation="tanh")
    true = 20 * np.array(XI["tanh"])
    np.testing.assert_array_equal(row.side, np.where(true >= 90, 1, 0))
    np.testing.assert_array_equal(row.limit[true >= 90], 90)
    assert np.isinf(row.high[true >= 90]).all()
    expected = scipy.stats.spearmanr(true, np.minimum(true, 90)).statistic
    assert ranks.agreement(row.xi_c.values, row.limit.values).rho == pytest.approx(expected)
    assert "4 with a limit above the deepest network" in PhaseDiagram.findings(result)[1]

    below = limits.columns(synthetic(limit=lambda xi: xi, names=("tanh",))).sel(activation="tanh")
    np.testing.assert_array_equal(below.side, np.where(np.array(XI["tanh"]) < 8, -1, 0))
    np.testing.assert_array_equal(below.low[below.side == -1], 0)


def test_the_best_rate_is_the_first_at_which_most_seeds_pass():
    result = synthetic(names=("tanh",))
    found = limits.squares(result).sel(activation="tanh", sigma_w_squared=2.0)
    trained = found.depth.values <= 120
    np.testing.assert_array_equal(found.trained, trained)
    assert np.all(found.rate == 0.01)
    assert not found.on_edge.any()
    # Two of three seeds pass; were two of three stuck, the square would not count as trained.
    stuck = result.copy(deep=True)
    stuck["train_accuracy"].loc[{"seed": 1}] = 0.1
    assert not limits.squares(stuck).trained.any()
    assert "no network reached" in PhaseDiagram.findings(stuck)[0]


def test_what_came_after_a_cell_was_settled_does_not_matter():
    result = synthetic()
    cut = result.copy(deep=True)
    settled = limits.squares(result).steps.fillna(1e9)
    cut["train_accuracy"] = result["train_accuracy"].where(result["step"] <= settled)
    for options in ({}, {"threshold": 0.5}, {"budget": 100}):
        full, short = (limits.columns(each, **options) for each in (result, cut))
        xr.testing.assert_identical(full, short)


def test_unmeasured_squares_are_left_out():
    result = synthetic()
    gone = {"activation": "hard_tanh", "depth": [40, 60, 90]}
    for name in ("train_accuracy", "steps_to_threshold", "diverged_step", "steps_trained"):
        result[name].loc[gone] = np.nan
    found = limits.columns(result).sel(activation="hard_tanh")
    assert found.low.max() <= 27
    assert found.side.sel(sigma_w_squared=1.0) == 1
    assert len(PhaseDiagram.tables(result)["Every square"]) == 2 * 7 * 6 - 3 * 6
    with alt.data_transformers.disable_max_rows():
        text = str(PhaseDiagram.figures(result)["steps_to_threshold"].to_dict())
    assert text.count(",box,") == 66
    for part in (result, result.drop_dims("curve_sigma_w_squared")):
        for chart in PhaseDiagram.figures(part).values():
            chart.to_dict()


def test_rank_correlation_is_spearmans_also_with_ties_and_infinities():
    rng = np.random.default_rng(1)
    for _ in range(5):
        first, second = rng.normal(size=9), rng.integers(0, 4, 9).astype(float)
        expected = scipy.stats.spearmanr(first, second).statistic
        found = ranks.agreement(first, second)
        assert found.rho == pytest.approx(expected)
        assert found.low <= found.rho <= found.high
        value, low, high, _ = limits.difference({"xi_c": first, "xi_gradient": -first, "limit": second})
        assert value == pytest.approx(2 * expected)
        assert low <= value <= high
    assert ranks.agreement(np.array([1, np.inf, 2]), np.array([3, 9, 4.0])).rho == 1.0
    assert np.isnan(ranks.agreement(np.arange(4.0), np.ones(4)).rho)
    assert np.isnan(ranks.agreement(np.arange(2.0), np.arange(2.0)).rho)


def test_the_interpolated_limit_runs_from_one_depth_to_the_next():
    def reach(trained, progress):
        values = xr.Dataset(
            {"trained": ("depth", trained), "progress": ("depth", progress)}, {"depth": [10, 20, 40]}
        )
        return runs.depth_limit(values["trained"], values["progress"])

    trained = [True, True, False]
    assert reach(trained, [1, 1, 0.0]).limit == 20
    assert reach(trained, [1, 1, 1.0]).limit == 40
    assert reach(trained, [1, 1, 0.5]).limit == pytest.approx(np.sqrt(800))
    assert not reach(trained, [1, 1, 0.5]).is_ragged
    ragged = reach([False, True, True], [1.0, 1.0, 1.0])
    assert ragged.is_ragged
    assert ragged.side == 1
    assert np.isinf(ragged.high)
    # A depth that was not measured neither trained nor failed.
    gap = reach([True, False, False], [1, np.nan, 0.0])
    assert (gap.low, gap.high) == (10, 40)
    assert np.isnan(reach([False] * 3, [np.nan] * 3).limit)


def test_squares_that_failed_are_drawn_grey_and_lines_stay_inside():
    result = synthetic()
    chart = PhaseDiagram.figures(result)["steps_to_threshold"]
    with alt.data_transformers.disable_max_rows():
        spec = chart.to_dict()
    layers = spec["spec"]["layer"]
    filters = [str(layer.get("transform")) for layer in layers]
    assert any("!isValid" in text for text in filters)
    lines = [layer for layer in layers if layer["mark"]["type"] == "line"]
    assert lines
    assert all(layer["mark"]["clip"] for layer in lines)
    assert "6 xi_gradient" in str(spec["spec"]["layer"][-1]["encoding"])
    words = spec["title"]["subtitle"]
    assert "not within 200 steps" in words


def test_bad_fields_are_refused_with_field_value_and_remedy():
    good = {"activations": (activations.tanh,)}
    for fields, message in (
        ({"depths": (0,)}, "`depths` must be positive integers, got 0"),
        ({"depths": (8,), "max_depth": 4}, "`depths` must not exceed max_depth = 4, got 8"),
        ({"activations": ()}, "`activations` must hold at least one value"),
        ({"sigma_w_squared": (0.0,)}, "`sigma_w_squared` must be positive and finite, got 0.0"),
        ({"sigma_b_squared": -1.0}, "`sigma_b_squared` must be finite and not negative, got -1.0"),
        ({"learning_rates": (0.1, 0.1)}, "`learning_rates` must not repeat a value, got 0.1 twice"),
        ({"threshold": 1.5}, "`threshold` is an accuracy"),
        ({"num_steps": 25}, "`measure_every` must divide num_steps = 25"),
    ):
        with pytest.raises(ValueError, match=message):
            PhaseDiagram(**good | fields)
