"""The depth sweep: one compile a block, the same seed gives the same Dataset, bounds are in order."""

from dataclasses import replace
from pathlib import Path

import chex
import numpy as np
import pytest
import xarray as xr

from jaxact import activations
from train import config, results
from train.experiments import _depth_sweep_members as members
from train.experiments import _depth_sweep_programs as programs
from train.experiments._blocks import split_block
from train.experiments.depth_sweep import DepthSweep
from train.tasks import Digits

CONFIG = Path(__file__).parents[2] / "configs" / "depth_sweep.py"
TIMES = ["compile_seconds", "run_seconds"]


def silent(fraction, note=""):
    assert 0 <= fraction <= 1


@pytest.fixture(scope="module")
def smoke():
    experiment = config.load(CONFIG).smoke()
    return experiment, [experiment.run(cell, progress=silent) for cell in experiment.cells()]


def test_training_compiles_once_a_block_whatever_the_depth_and_activation(smoke):
    experiment, _ = smoke
    blocks = experiment.blocks
    # The programs themselves run under chex.assert_max_traces(n=1): a second trace would have failed the sweep.
    compiled = [programs.get(experiment, block).train._cache_size() for block in blocks]
    assert compiled == [1] * len(blocks)


def test_the_same_seed_gives_the_same_dataset(smoke):
    experiment, parts = smoke
    again = experiment.run(experiment.cells()[0], progress=silent)
    xr.testing.assert_identical(again.drop_vars(TIMES), parts[0].drop_vars(TIMES))


def test_the_whole_is_described_and_shown(smoke):
    experiment, parts = smoke
    whole = results.combine(parts)
    assert set(whole.sizes) >= {"block", "activation", "depth"}
    for name, variable in whole.variables.items():
        assert variable.attrs.get("units"), name
        assert variable.attrs.get("long_name"), name
    assert experiment.findings(whole)
    assert experiment.figures(whole)
    assert experiment.tables(whole)


def test_measurements_are_finite_and_bounds_are_in_order(smoke):
    _, parts = smoke
    for part in parts:
        alive = np.isnan(part.diverged_step)
        chex.assert_tree_all_finite(part.test_loss.where(alive, 0).values)
        gap = part.lipschitz_upper_log10 - part.lipschitz_lower_log10
        assert float(gap.min()) > -1e-5
        assert float((part.lipschitz_ellipsoid_log10 - part.lipschitz_lower_log10).min()) > -1e-5
        assert float((part.lipschitz_upper_log10 - part.lipschitz_ellipsoid_log10).min()) > -1e-5
        largest = part.jacobian_singular_values.isel(mode=0)
        np.testing.assert_allclose(largest, part.jacobian_largest, rtol=1e-6)
        assert part.sizes["layer"] == int(part.depth[0])


def test_bad_fields_are_refused_with_field_value_and_remedy():
    good = {"activations": (activations.relu,)}
    for fields, message in (
        ({"depths": (0,)}, "`depths` must be positive integers, got 0"),
        ({"depths": (8,), "max_depth": 4}, "`depths` must not exceed max_depth = 4, got 8"),
        ({"depths": ()}, "`depths` must hold at least one value"),
        ({"activations": ()}, "`activations` must hold at least one value"),
        ({"learning_rates": (-0.1,)}, "`learning_rates` must be positive and finite, got -0.1"),
        ({"width": 0}, "`width` must be a positive integer, got 0"),
        ({"blocks": ("plian",)}, "Did you mean 'plain'"),
        ({"num_steps": 25}, "`measure_every` must divide num_steps = 25"),
        ({"seeds": (1, 1)}, "`seeds` must not repeat a value, got 1 twice"),
    ):
        with pytest.raises(ValueError, match=message):
            DepthSweep(**good | fields)


def test_blocks_split_into_stage_and_norm():
    assert split_block("pre_activation-bn") == ("pre_activation", "bn")
    assert split_block("plain") == ("plain", "")
    for wrong in ("plain-", "plain-xx", "bn"):
        with pytest.raises(ValueError, match="`blocks` must be among"):
            split_block(wrong)


def test_the_last_state_of_a_diverged_member_is_no_measurement_after_training(make_depth_sweep):
    result = make_depth_sweep(activations=("silu",), blocks=("plain",))
    at = {"depth": 64, "seed": 0}
    result["diverged_step"].loc[at] = 3.0
    result["lipschitz_upper_log10"].loc[{**at, "phase": "trained"}] = 1e3
    best = members.select(result).sel(**at)
    assert best.lipschitz_upper_log10.sel(phase="trained").isnull().all()
    assert best.lipschitz_upper_log10.sel(phase="initial").notnull().all()
    assert members.select(result).lipschitz_upper_log10.max() < 1e3


def test_measured_second_moments_follow_the_theory_in_wide_networks():
    sweep = DepthSweep(
        activations=(activations.relu, activations.tanh),
        depths=(6,),
        blocks=("plain",),
        learning_rates=(0.01,),
        seeds=(0, 1, 2, 3),
        width=256,
        num_steps=2,
        measure_every=2,
        ascent_steps=1,
    )
    sweep = replace(sweep, num_probes=64)
    for cell in sweep.cells():
        part = sweep.run(cell, progress=silent)
        ratio = part.second_moment.sel(phase="initial") / part.second_moment_theory
        # Each layer adds a relative fluctuation of order sqrt(5 / width); they average over seeds.
        spread = np.sqrt(5 / 256 * np.arange(1, 7) / 4)
        deviation = np.abs(ratio.mean("seed").squeeze() - 1)
        assert np.all(deviation < 4 * spread)


def test_fewer_held_out_rows_than_probes_are_all_probed():
    sweep = DepthSweep(
        task=Digits(num_test=2),
        activations=(activations.relu,),
        depths=(2,),
        blocks=("plain",),
        learning_rates=(0.01,),
        seeds=(0,),
        num_steps=2,
        measure_every=2,
        ascent_steps=1,
        threshold=0.5,
    )
    part = sweep.run(sweep.cells()[0], progress=silent)
    assert part.sizes["example"] == 2
    assert members.threshold(part) == "50 %"
