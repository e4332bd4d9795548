"""The depth sweep: one compile a block, the same seed gives the same Dataset, bounds are in order."""

import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from jaxact import activations
from jaxact.activations import select
from train import config, results, runs
from train.blocks import split_block
from train.experiments import depth_sweep
from train.experiments.depth_sweep import CELL, DepthSweep
from train.optimizers import Adam
from train.tasks import Digits, GaussianMixture

CONFIG = Path(__file__).parents[2] / "configs" / "depth_sweep.py"
TIMES = ["compile_seconds", "run_seconds"]
SMALL = {
    "task": Digits(num_test=2),
    "activations": (activations.relu,),
    "depths": (2,),
    "blocks": ("plain",),
    "learning_rates": (0.01,),
    "seeds": (0,),
    "num_steps": 2,
    "measure_every": 2,
    "ascent_steps": 1,
}


def silent(fraction, note=""):
    assert 0 <= fraction <= 1


@pytest.fixture(scope="module")
def smoke():
    experiment = config.load(CONFIG).smoke()
    return experiment, [experiment.run(cell, progress=silent) for cell in experiment.cells()]


def test_training_compiles_once_a_block_whatever_the_depth_and_activation(smoke):
    # A second trace of a program would have failed the sweep; what a cell compiled tells that none was made twice.
    experiment, parts = smoke
    first = {part.block.item(): part for part in reversed(parts)}
    assert list(first) == list(reversed(experiment.blocks))
    for part in parts:
        is_first = part is first[part.block.item()]
        assert (part.compile_seconds.item() > 0) == is_first
    assert len({(part.activation.item(), part.depth.item()) for part in parts}) == 4


def test_a_best_learning_rate_at_an_end_of_the_grid_is_told(smoke):
    whole = results.combine(smoke[1])
    faster = whole.assign_coords(learning_rate=10 * whole["learning_rate"])
    both = xr.concat([whole, faster], "learning_rate", data_vars="minimal", combine_attrs="override")
    low, high = both["learning_rate"].to_numpy()
    said = f"the smallest, {low:g}, is the best in {len(smoke[1])} and the largest, {high:g}, in 0."  # ties go to it
    assert any(said in str(each) for each in DepthSweep.findings(both))
    assert "at the best of 2 learning rates" in str(DepthSweep.findings(both)[0])


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
    assert whole.steps_to_threshold.attrs["long_name"] == "steps to 90% train accuracy"
    assert whole.steps_to_threshold.attrs["threshold"] == 0.9
    first = str(experiment.findings(whole)[0])
    assert f"reached within {experiment.num_steps} steps at one learning rate by" in first
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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (0,)}, "`depths` must be positive integers, got 0. Use 1"),
        ({"depths": (8,), "max_depth": 4}, "`depths` must not exceed max_depth = 4, got 8. Raise --max-depth"),
        ({"depths": ()}, "`depths` must hold at least one value"),
        ({"activations": ()}, "`activations` must hold at least one value"),
        ({"learning_rates": (-0.1,)}, "`learning_rates` must be positive and finite, got -0.1"),
        ({"sigma_w": 0.0}, "`sigma_w` must be positive and finite, got 0.0"),
        ({"width": 0}, "`width` must be a positive integer, got 0"),
        ({"blocks": ("plian",)}, "Did you mean 'plain'"),
        ({"blocks": ("plain", "plain")}, "`blocks` must not repeat a value, got plain twice"),
        ({"num_steps": 25}, "`measure_every` must divide num_steps = 25, got 10. Use --num-steps 20"),
        ({"seeds": (1, 1)}, "`seeds` must not repeat a value, got 1 twice"),
        ({"threshold": 1.5}, "`threshold` is an accuracy in (0, 1], got 1.5"),
        ({"network": "cnov"}, "`network` must be among dense, conv, got 'cnov'. Did you mean 'conv'?"),
        (
            {"network": "conv", "task": GaussianMixture()},
            "`task` must hold images (height, width, channel) for a network with convolutions, got gaussian_mixture",
        ),
        (
            {"optimizer": Adam(warmup_steps=200)},
            "`optimizer.warmup_steps` must be less than num_steps = 200, got 200. Use --optimizer.warmup-steps 20",
        ),
    ],
)  # fmt: skip
def test_bad_fields_are_refused_with_field_value_and_remedy(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DepthSweep(**{"activations": (activations.relu,)} | fields)


def test_blocks_split_into_stage_and_norm():
    assert split_block("pre_activation-bn") == ("pre_activation", "bn")
    assert split_block("plain") == ("plain", "")
    for wrong in ("plain-", "plain-xx", "bn"):
        with pytest.raises(ValueError, match="`blocks` must be among"):
            split_block(wrong)


def test_the_last_state_of_a_diverged_run_is_no_measurement_after_training(make_depth_sweep):
    result = make_depth_sweep(activations=("silu",), blocks=("plain",))
    at = {"depth": 64, "seed": 0}
    result["diverged_step"].loc[at] = 3.0
    result["lipschitz_upper_log10"].loc[{**at, "phase": "trained"}] = 1e3
    best = runs.best(result, CELL).sel(**at)
    assert best.lipschitz_upper_log10.sel(phase="trained").isnull().all()
    assert best.lipschitz_upper_log10.sel(phase="initial").notnull().all()
    assert runs.best(result, CELL).lipschitz_upper_log10.max() < 1e3


def test_measured_second_moments_follow_the_theory_in_wide_networks():
    sweep = DepthSweep(
        activations=(activations.relu, activations.tanh),
        depths=(6,),
        blocks=("plain",),
        learning_rates=(0.01,),
        seeds=tuple(range(8)),
        width=128,
        num_steps=2,
        measure_every=2,
        ascent_steps=1,
        num_probes=2,
    )
    for cell in sweep.cells():
        part = sweep.run(cell, progress=silent)
        ratio = part.second_moment.sel(phase="initial") / part.second_moment_theory
        # Each layer adds a relative fluctuation of order sqrt(5 / width); they average over seeds.
        spread = np.sqrt(5 / 128 * np.arange(1, 7) / 8)
        deviation = np.abs(ratio.mean("seed").squeeze() - 1)
        assert np.all(deviation < 4 * spread)


def test_optimizer_rates_threshold_and_probes_are_those_asked_for():
    fields = {"optimizer": Adam(), "learning_rates": (1e-3, 1e-2), "threshold": 0.01}
    sweep = DepthSweep(**SMALL | fields)
    part = sweep.run(sweep.cells()[0], progress=silent)
    assert part.sizes["example"] == 2  # no more than there are
    assert runs.threshold(part) == "1 %"
    np.testing.assert_array_equal(part.steps_to_threshold.squeeze(), [2, 2])
    assert not part.censored.any()
    slow, fast = np.abs(part["mean"].diff("phase")).squeeze().values
    assert np.all((slow > 0) & (slow < fast))  # which gradient descent of so small rates would not show


@pytest.fixture(scope="module")
def convolutional():
    """A tiny sweep of convolutional networks, run whole."""
    task, relu = Digits(num_train=64, num_test=3), activations.relu
    sizes = {"width": 4, "depths": (1, 2), "num_steps": 4, "measure_every": 2, "batch_size": 8}
    fields = {"task": task, "activations": (relu,), "network": "conv", "num_probes": 2, "sigma_w": 1.25}
    sweep = DepthSweep(**SMALL | sizes | fields)
    return sweep, [sweep.run(cell, progress=silent) for cell in sweep.cells()]


def test_leading_singular_values_by_products_are_those_of_the_dense_jacobian(convolutional):
    sweep, parts = convolutional
    trial = depth_sweep._probed(sweep, "plain").trial
    for part in parts:
        depth = part.depth.item()
        setting = jnp.int32(depth), select(sweep.activations, 0)
        (state,) = [jax.tree.map(lambda leaf: leaf[0], trial.start(*setting, sigma_w=jnp.float32(1.25)))]

        def hidden(x, state=state, setting=setting):
            return trial.output(state, x[None], *setting, method="features", mode="forward").reshape(-1)

        found = (
            part.jacobian_singular_values.sel(phase="initial").squeeze(["learning_rate", "seed"]).squeeze()
        )
        assert found.sizes["mode"] == depth_sweep.CONV_MODES
        for x, values in zip(trial.data["probes"], found.transpose("example", "mode").values, strict=True):
            dense = np.asarray(jax.jacfwd(hidden)(x), float).reshape(-1, x.size)
            exact = np.linalg.svd(dense, compute_uv=False)[: len(values)]
            assert np.all(values <= exact * (1 + 1e-5))  # an estimate from below
            np.testing.assert_allclose(values, exact, rtol=1e-3)


def test_a_convolutional_sweep_measures_what_a_dense_one_does_where_it_can(convolutional):
    _, parts = convolutional
    for part in parts:
        assert part.sizes["layer"] == part.depth.item()
        largest = np.log10(part.jacobian_largest.max("example"))
        assert np.all(part.lipschitz_upper_log10 >= largest)
        assert np.all(part.lipschitz_upper_log10 >= part.lipschitz_lower_log10)
        for name in (
            "second_moment",
            "mean",
            "zero_fraction",
            "weight_gradient_norm",
            "hidden_gradient_norm",
        ):
            chex.assert_tree_all_finite(part[name].values)
        assert np.all(part.weight_gradient_norm > 0)
        unknown = ("smallest", "condition_number", "effective_rank", "mean_square")
        assert all(part[f"jacobian_{name}"].isnull().all() for name in unknown)  # the largest do not tell
        assert part.lipschitz_ellipsoid_log10.isnull().all()
    whole = results.combine(parts)
    assert DepthSweep.findings(whole)
    assert "test_accuracy" in DepthSweep.figures(whole)
    assert not {"condition_number"} & set(DepthSweep.figures(whole))
