"""What a plan says, held against what can be counted by hand; and the simulated cluster where its answer is known."""

import io
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import simulate_cluster
from rich.console import Console

from jaxact import activations
from train import plan
from train.__main__ import main
from train.experiment import Cell
from train.experiments.depth_sweep import DepthSweep

ROOT = Path(__file__).parents[2]


def test_a_plan_counts_what_can_be_counted_by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sweep = DepthSweep(
        activations=(activations.tanh, activations.relu), depths=(4, 2), blocks=("plain", "pre_activation-bn"),
        learning_rates=(0.01, 0.1), seeds=(0, 1, 2), width=8, batch_size=16, num_steps=40, measure_every=5,
        num_evaluate=100,
    )  # fmt: skip
    found = plan.made(sweep)
    assert (len(found.cells), found.num_members, found.num_networks, found.num_steps) == (8, 6, 48, 40)
    assert (found.num_programs, found.num_looked) == (2, 8)
    assert found.calibration.cell == "plain/tanh/depth=2"
    assert found.calibration.rate.depths == (2, 4)
    # A layer: forward, again forward on the way back, and its two gradients; 200 examples are evaluated every 5 steps.
    a_layer = 4 * 2 * 16 * 8 * 8 + 2 * 200 * 8 * 8 / 5
    # The first map has no gradient to its input, of 64 pixels; the last gives 10 logits.
    ends = 2 * 2 * 16 * 64 * 8 + 3 * 2 * 16 * 8 * 10 + 2 * 200 * (64 * 8 + 8 * 10) / 5
    assert found.calibration.flops == {depth: 6 * (depth * a_layer + ends) for depth in (2, 4)}
    assert found.total_flops() == 40 * 4 * (found.calibration.flops[2] + found.calibration.flops[4])
    parameters = (
        4 * 6 * (64 * 8 + 8 + 4 * (8 * 8 + 8) + 8 * 10 + 10)
    )  # bytes, float32; the stack has four layers
    assert 2 * parameters < found.calibration.memory < 100 * parameters
    assert found.cell_seconds()[0] >= found.cell_seconds()[1] > 0  # 4 layers, 2 layers
    assert not list(tmp_path.iterdir())


PRODUCTS = {
    "product": (lambda a, b: (a @ b) @ b, (8, 16), (16, 16)),
    "batched": (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (3, 4, 5), (3, 5, 6)),
    "convolution": (
        lambda x, k: jax.lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        (2, 9, 9, 3),
        (3, 3, 3, 5),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_without_loops_the_count_is_that_of_xla(name):
    function, *shapes = PRODUCTS[name]
    given = [jnp.ones(shape) for shape in shapes]
    counted = plan.flops(jax.make_jaxpr(function)(*given).jaxpr, depth=1)
    assert counted == jax.jit(function).lower(*given).compile().cost_analysis()["flops"]


def test_loops_count_by_their_length_and_searches_once():
    x = jnp.ones((4, 4))
    one = 2 * 4**3

    def scanned(x):
        return jax.lax.scan(lambda h, _: (h @ x, None), x, None, length=7)[0]

    def chosen(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    def searched(x):
        return jax.lax.while_loop(lambda h: jnp.any(h > 1), lambda h: h @ x, x)

    for function, expected in ((scanned, 7), (chosen, 2), (searched, 1), (jax.checkpoint(scanned), 7)):
        assert plan.flops(jax.make_jaxpr(function)(x).jaxpr, depth=5) == expected * one


def text_of(made, num_devices):
    console = Console(file=io.StringIO(), width=200)
    console.print(plan.described(made, Path("study.py"), num_devices))
    return console.file.getvalue()


def test_time_follows_from_rate_cells_and_devices(monkeypatch):
    monkeypatch.setattr(plan.workers, "default_number", lambda _: 2)
    cells = [Cell(f"depth={depth}", {"depth": depth}) for depth in (10, 20, 30, 40)]
    rate = plan.Rate(0.0, 0.01, (10, 40))
    found = plan.Calibration(
        "depth=10", 6.0, 3 * 2**20, rate, {depth: 1e6 * depth for depth in (10, 20, 30, 40)}
    )
    said = text_of(plan.Plan(cells, 3, 12, 100, 1, 4, found), 8)
    assert "1:46 here by one process, at best 0:53 by 2 processes" in said  # 100 s and 6 s to compile
    assert "at best 0:46 on 8 devices like this; the longest cell 0:40" in said
    assert "10 at depth 10 and 2.5 at depth 40 steps/s" in said
    assert "1e+10 in matrix products" in said
    assert "3.0 MiB" in said


def test_a_rate_is_the_line_through_what_was_measured():
    assert plan._rate({2: 0.3, 4: 0.5, 8: 0.9}).seconds(100) == pytest.approx(10.1)
    assert plan._rate({4: 0.5}).seconds(8) == 1.0  # one depth: through 0
    assert plan._rate({2: 0.5, 4: 0.4}).seconds(8) == pytest.approx(0.8)  # noise


def test_what_is_not_known_is_not_invented(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", str(Path(__file__).with_name("fake_study.py")), "--depths", "1", "2", "3"]) == 0
    out = capsys.readouterr().out
    assert "cells     6" in out
    assert out.count("not known") == 5
    assert main(["plan", str(Path(__file__).with_name("fake_study.py")), "--devices", "0"]) == 2
    assert not list(tmp_path.iterdir())


PERFECT = dict.fromkeys(
    ("start_seconds", "compile_seconds", "store_seconds", "restarts", "slow_share", "jitter"), 0.0
) | {"cell_members": 1, "depths": (1,), "cell_seconds": (10.0,), "work": 1.0, "programs": 1}  # fmt: skip
PERFECT |= {"failure_hours": math.inf, "restarts": 0}


def simulated(**changed):
    return simulate_cluster.simulated(simulate_cluster.Numbers(**{**PERFECT, **changed}))


@pytest.mark.parametrize(
    ("cells", "devices"), [(10, 4), (8, 4), (3, 1), (5, 5), (7, 6), (101, 20), (1000, 37)]
)
def test_equal_cells_without_trouble_leave_idle_what_does_not_divide(cells, devices):
    found = simulated(members=cells, devices=devices)
    assert found.utilisation == pytest.approx(cells / (math.ceil(cells / devices) * devices))
    assert found.makespan == pytest.approx(10.0 * math.ceil(cells / devices))


def test_a_simulated_cluster_is_slowed_by_each_trouble_as_it_must_be():
    # A device at half speed: the other takes over, so that both end together.
    assert simulated(members=60, devices=2, slow_share=0.5).makespan == pytest.approx(400.0, abs=20.0)
    # The main process stores one cell a second: no more can be done, and at the end the last ten seconds are measured.
    bound = simulated(members=500, devices=100, store_seconds=1.0)
    assert bound.makespan == pytest.approx(510.0)
    assert bound.main == pytest.approx(500 / 510)
    # Each device compiles its two programs once.
    compiled = simulated(members=40, devices=2, programs=4, compile_seconds=100.0)
    assert compiled.compiling == pytest.approx(2 * 100.0 / (2 * 100.0 + 20 * 10.0))
    # Deaths come at their rate, and the cell at work is half done.
    dying = simulated(members=20_000, devices=50, failure_hours=0.2, repair_seconds=0.0)
    hours = 50 * dying.makespan / 3600
    assert dying.deaths == pytest.approx(hours / 0.2, abs=4 * math.sqrt(hours / 0.2))
    assert dying.lost * 50 * dying.makespan == pytest.approx(5.0 * dying.deaths, rel=0.15)
    assert dying.done + dying.failed == 20_000
    # Resumed in the middle, it starts again, and loses what ran.
    resumed = simulated(members=400, devices=4, restarts=1, restart_seconds=50.0, start_seconds=5.0)
    assert resumed.makespan == pytest.approx(1000.0 + 2 * 5.0 + 50.0 + 10.0, abs=10.0)
    assert resumed.done == 400


def test_the_default_cluster_is_kept_busy_also_when_it_is_small(capsys):
    assert simulate_cluster.main(["--members", "45000", "--devices", "50"]) == 0
    out = capsys.readouterr().out
    assert "5000 cells stored, 0 failed for good" in out
    assert "utilisation 9" in out
