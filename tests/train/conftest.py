"""A made-up depth sweep in the real schema: every awkward number that a real one can hold, known in
advance."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from troubles import Program

from train import workers
from train.__main__ import main

_ROOT = Path(__file__).parents[2]
BLOCKS = ("plain", "pre_activation-bn", "post_activation-bn")
ACTIVATIONS = ("relu", "leaky_relu(0.2)", "tanh", "sigmoid", "gelu", "silu", "selu")
DEPTHS = (4, 8, 16, 32, 64)
# The depth beyond which a plain net of each activation stops training, and its log10 Jacobian growth a layer.
REACH = {"relu": 20, "leaky_relu(0.2)": 30, "tanh": 80, "sigmoid": 3, "gelu": 14, "silu": 12, "selu": 70}
GROWTH = {"relu": -0.02, "leaky_relu(0.2)": 0.0, "tanh": -0.01, "sigmoid": -0.6, "gelu": -0.08, "silu": -0.1}


def depth_sweep(
    *,
    blocks=BLOCKS,
    activations=ACTIVATIONS,
    depths=DEPTHS,
    learning_rates=(0.01, 0.03, 0.1),
    num_seeds=3,
    num_steps=20,
    num_examples=8,
    num_modes=32,
    random_seed=0,
):
    """The Dataset: plain nets fail at depth, sigmoid everywhere, the largest learning rate diverges."""
    rng = np.random.default_rng(random_seed)
    shape = (len(blocks), len(activations), len(depths), len(learning_rates), num_seeds)
    cell_dims = ("block", "activation", "depth", "learning_rate", "seed")
    step = np.unique(np.linspace(0, 600, num_steps).astype(int))
    layers = max(depths)
    budget = int(step[-1])

    curves = {
        name: np.full((*shape, len(step)), np.nan)
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    }
    threshold, censored, diverged = (
        np.full(shape, float(budget)),
        np.ones(shape, bool),
        np.full(shape, np.nan),
    )
    values = np.zeros((*shape, 2, num_examples, num_modes))
    upper, lower = np.zeros((*shape, 2)), np.zeros((*shape, 2))
    profile_names = (
        "second_moment", "mean", "zero_fraction", "dead_fraction", "saturated_fraction",
        "weight_gradient_norm", "hidden_gradient_norm",
    )  # fmt: skip
    profiles = {name: np.full((*shape, 2, layers), np.nan) for name in profile_names}
    theory = np.full((*shape, layers), np.nan)

    for index in np.ndindex(*shape):
        block, activation, depth = blocks[index[0]], activations[index[1]], depths[index[2]]
        rate = learning_rates[index[3]]
        plain = block == "plain"
        trains = not plain or depth <= REACH.get(activation, 40)
        speed = rate * 1.2 / (1 + depth / 40) * (1 if trains else 0.01) * rng.uniform(0.8, 1.25)
        loss = 2.3 * np.exp(-speed * step) + 1e-4 * rng.uniform(0.5, 2)
        accuracy = np.clip(1 - 0.9 * (loss / 2.3) ** 0.5, 0, 1)
        for split, gap in (("train", 0.0), ("test", 0.03 + 0.02 * rng.uniform())):
            curves[f"{split}_loss"][index] = loss + gap
            curves[f"{split}_accuracy"][index] = np.clip(accuracy - gap * accuracy, 0, 1)
        if plain and activation == "silu" and rate == max(learning_rates) and depth >= 16:
            at = len(step) // 3
            diverged[index] = step[at]
            for curve in curves.values():
                curve[index][at:] = np.nan
        reached = np.flatnonzero(accuracy >= 0.9)
        if len(reached) and np.isnan(diverged[index]):
            threshold[index], censored[index] = step[reached[0]], False

        growth = GROWTH.get(activation, 0.02) if plain else 0.01
        layer = np.arange(1, depth + 1)
        for phase in (0, 1):
            width = (0.4 if plain else 0.1) * np.sqrt(depth) * (1 + phase)
            logs = growth * depth + phase * 0.8 + width * (0.5 - np.linspace(0, 1.6, num_modes) ** 1.5)
            noisy = 10 ** (logs + 0.05 * rng.standard_normal((num_examples, num_modes)))
            if plain and activation == "relu" and depth >= 32:
                noisy[:, num_modes // 2 :] = 0.0  # dead units: exact zeros
            values[(*index, phase)] = -np.sort(-noisy, axis=-1)
            lower[(*index, phase)] = logs[0] + 0.3
            upper[(*index, phase)] = lower[(*index, phase)] + depth * (0.62 if plain else 0.3) * (
                0.8 + 0.3 * phase
            )
            here = {
                "second_moment": np.ones(depth) * (1 if plain else layer * 0.5 + 1) * 10 ** (phase * 0.3),
                "mean": 0.1 * layer / depth,
                "zero_fraction": np.full(depth, 0.5 if activation == "relu" else 0.0),
                "dead_fraction": np.full(depth, 0.1 * (1 + phase) if activation == "relu" else 0.0),
                "saturated_fraction": np.full(
                    depth, 0.3 * phase if activation in ("tanh", "sigmoid") else 0.02
                ),
                "weight_gradient_norm": 10.0 ** (-1 + growth * (depth - layer)),
                "hidden_gradient_norm": 10.0 ** (-2 + growth * (depth - layer)),
            }
            for name, profile in here.items():
                profiles[name][(*index, phase)][:depth] = profile * rng.uniform(0.9, 1.1, depth)
        if block != "post_activation-bn":
            theory[index][:depth] = 1.0 if plain else layer * 0.5 + 1
        if plain and activation == "sigmoid":
            profiles["hidden_gradient_norm"][(*index, 0)][: depth // 2] = 0.0  # underflow

    def variable(dims, data, long_name, units="1"):
        return (dims, data, {"long_name": long_name, "units": units})

    example, phase = ("phase", "example"), ("phase",)
    largest, smallest = values[..., 0], values[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        condition = largest / smallest
        share = values**2 / np.sum(values**2, axis=-1, keepdims=True)
        entropy = -np.sum(np.where(share > 0, share * np.log(share), 0.0), axis=-1)
    data = {
        "train_loss": variable((*cell_dims, "step"), curves["train_loss"], "training loss", "nats"),
        "train_accuracy": variable((*cell_dims, "step"), curves["train_accuracy"], "training accuracy"),
        "test_loss": variable((*cell_dims, "step"), curves["test_loss"], "test loss", "nats"),
        "test_accuracy": variable((*cell_dims, "step"), curves["test_accuracy"], "test accuracy"),
        "steps_to_threshold": variable(cell_dims, threshold, "steps to 90 % training accuracy", "step"),
        "censored": variable(cell_dims, censored, "threshold not reached"),
        "diverged_step": variable(cell_dims, diverged, "step at which the member diverged", "step"),
        "jacobian_singular_values": variable(
            (*cell_dims, *example, "mode"), values, "Jacobian singular value"
        ),
        "jacobian_largest": variable((*cell_dims, *example), largest, "largest singular value"),
        "jacobian_smallest": variable((*cell_dims, *example), smallest, "smallest singular value"),
        "jacobian_mean_square": variable((*cell_dims, *example), np.mean(values**2, -1), "mean square"),
        "jacobian_condition_number": variable((*cell_dims, *example), condition, "Jacobian condition number"),
        "jacobian_effective_rank": variable((*cell_dims, *example), np.exp(entropy), "effective rank"),
        "lipschitz_upper_log10": variable((*cell_dims, *phase), upper, "log10 of the upper bound"),
        "lipschitz_ellipsoid_log10": variable(
            (*cell_dims, *phase), 0.5 * (lower + upper), "log10 of the better upper bound"
        ),
        "lipschitz_lower_log10": variable((*cell_dims, *phase), lower, "log10 of the lower bound"),
        "second_moment_theory": variable((*cell_dims, "layer"), theory, "second moment in theory"),
        "compile_seconds": variable(cell_dims[:3], np.full(shape[:3], 1.5), "compile time", "s"),
        "run_seconds": variable(cell_dims[:3], np.full(shape[:3], 2.5), "run time", "s"),
    }
    data["steps_to_threshold"][-1]["threshold"] = 0.9
    for name, profile in profiles.items():
        data[name] = variable((*cell_dims, "phase", "layer"), profile, name.replace("_", " "))
    coords = {
        "block": list(blocks),
        "activation": list(activations),
        "depth": list(depths),
        "learning_rate": list(learning_rates),
        "seed": np.arange(num_seeds),
        "phase": ["initial", "trained"],
        "step": step,
        "layer": np.arange(1, layers + 1),
        "example": np.arange(num_examples),
        "mode": np.arange(1, num_modes + 1),
    }
    config = {
        "depths": list(depths),
        "activations": list(activations),
        "width": num_modes,
        "task": "digits <8x8>",
    }
    attrs = {
        "config": json.dumps(config),
        "versions": json.dumps({"jax": "0.10.2", "flax": "0.12.8", "jaxact": "0.1.0"}),
        "run_id": "depth_sweep-20260101-abc123",
        "git_commit": "0123456789abcdef",
        "device": "cpu (2 cores)",
        "command": "python -m train run configs/depth_sweep.py",
        "created": "2026-01-01T12:00:00Z",
    }
    return xr.Dataset(data, coords=coords, attrs=attrs)


@pytest.fixture(scope="session")
def make_depth_sweep():
    """The maker itself, for tests that need a sub-sweep."""
    return depth_sweep


@pytest.fixture(scope="session")
def default_depth_sweep():
    """The default sweep: 105 cells of 9 members."""
    return depth_sweep()


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run one command in this process alone, in an empty folder; gives exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workers, "default_number", lambda num_cells: 0)

    def call(*words):
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an undisturbed run of the study with troubles, by one process of this machine."""
    program = Program(tmp_path_factory.mktemp("whole"), "--workers", "0")
    program.mend()
    assert program.call("run", "study.py")[::2] == (0, "")
    return program.run_folder()


@pytest.fixture
def start(tmp_path, heard_signals):
    """Start a module's program in an empty folder; what still runs in the end is killed."""
    started = []

    def start(*words, module="train", before="true", **environment):
        own = {"PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        program = shlex.join([sys.executable, "-m", module, *(str(word) for word in words)])
        process = subprocess.Popen(
            ["sh", "-c", f"{before}; exec {program}"],
            cwd=tmp_path,
            env={**os.environ, **own, **environment},
            stdout=-1,
            stderr=-1,
            text=True,
            errors="replace",
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
