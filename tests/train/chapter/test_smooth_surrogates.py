"""What the claim on smooth surrogates counts and compares: against the images, quadrature and a broken slope."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from jaxact.activations import relu, select, softplus
from train import probing
from train.blocks import network
from train.experiments.chapter import smooth_surrogates
from train.experiments.chapter.smooth_surrogates import SmoothSurrogates
from train.trial import parts

NUMBERS = SmoothSurrogates().numbers()
BROKEN = replace(softplus(1.0), name="broken", derivative=lambda x: 1.0 * (x > 0))
CHOICES = (softplus(1.0), BROKEN)


def test_the_exact_mean_curvature_is_that_of_quadrature():
    density = lambda x: 100 * special.expit(100 * x) * special.expit(-100 * x) * stats.norm.pdf(x)  # noqa: E731
    assert NUMBERS["mean"].exact == pytest.approx(integrate.quad(density, -1, 1, points=[0])[0], abs=1e-7)
    assert NUMBERS["mean_relu"].exact == pytest.approx(stats.norm.pdf(0), abs=1e-7)  # d/dm P(z + m > 0)


def test_the_exact_share_of_blank_patches_is_that_of_the_images():
    images = SmoothSurrogates().task.load().train_inputs[..., 0]
    dark = np.pad(images == images.min(), ((0, 0), (1, 1), (1, 1)), constant_values=True)
    blank = np.all([dark[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)], axis=0)
    assert NUMBERS["met_blank"].exact == pytest.approx(blank.mean(), abs=1e-7)


@pytest.fixture(scope="module")
def trial():
    study = SmoothSurrogates(width=8, depth=2, num_steps=5, seeds=(0, 1))
    data = study.task.load().flat()
    return study.trial(network(data, width=8, max_depth=2, activation=relu), parts(data))


def test_zeros_are_counted(trial):
    setting = jnp.int32(2), select(CHOICES, 0)
    states = trial.start(*setting)
    count = trial.program(partial(smooth_surrogates._zeros, trial))
    assert trial.host(count(states, trial.data, setting))["zeros"].tolist() == [0, 0]
    silent = states._replace(params=jax.tree.map(jnp.zeros_like, states.params))
    assert trial.host(count(silent, trial.data, setting))["zeros"].tolist() == [1, 1]


def test_the_error_of_a_curvature_is_of_the_order_of_the_step_and_tells_a_broken_slope(trial):
    errors = []
    for step in (4e-3, 2e-3):
        program = trial.program(partial(probing.curvature_error, trial, step=step))
        for place in range(2):
            setting = jnp.int32(2), select(CHOICES, place)
            errors.append(trial.host(program(trial.start(*setting), trial.data["train"], setting)))
    whole, whole_broken, half, _ = errors
    np.testing.assert_allclose(whole / half, 2, rtol=0.15)
    assert (whole_broken > 5 * whole).all()
