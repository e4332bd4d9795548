"""Trials: members side by side equal members alone, chunks equal the whole, and each program is traced once."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxact import activations, fit, nn
from train import trial as trials
from train.blocks import NORMS
from train.config import ConfigError
from train.optimizers import Adam, Sgd
from train.study import Variable
from train.tasks import GaussianMixture
from train.trial import TrainingStudy, Trial, accuracy, cross_entropy, parts

WIDTH, CLASSES = 4, 3


def linear():
    """A network without hidden layers: logits = x W."""

    def init(key, scale=1.0):
        return {"kernel": scale * jax.random.normal(key, (WIDTH, CLASSES))}, {}

    def apply(params, variables, inputs, *setting, training=False, **_):
        logits = inputs @ params["kernel"] * (setting[0] if setting else 1.0)
        return logits, variables

    return nn.Functional(init, apply)


@pytest.fixture(scope="module")
def data():
    key_inputs, key_labels = jax.random.split(jax.random.key(7))
    inputs = jax.random.normal(key_inputs, (24, WIDTH))
    labels = jax.random.randint(key_labels, (24,), 0, CLASSES)
    return {"train": (inputs, labels), "test": (inputs[:10], labels[:10]), "calibration": inputs}


def made(data, *, seeds=(0, 1), rates=(0.1, 1.0), network=None, **options):
    default = {
        "optimizer": Sgd(),
        "num_steps": 6,
        "batch_size": 5,
        "measure_every": 2,
        "evaluate": {"test": "test"},
    }
    members = fit.grid(seeds=seeds, learning_rate=rates)
    return Trial(network or linear(), data, **default | {"members": members} | options)


def silent(fraction, note):
    assert 0 <= fraction <= 1
    assert note.startswith("step ")


def trained(trial, *setting, **scales):
    states, curves = trial.train(trial.start(*setting, **scales), *setting, progress=silent)
    return trial.host(states.params)["kernel"], curves


def by_hand(data, seed, rate, *, num_steps=6, batch_size=5, strength=0.0, schedule=lambda t: 1.0):
    """The same run, step by step, without jit, vmap, scan or `jaxact.fit`."""
    key_init, key_data = jax.random.split(jax.random.key(seed))
    params, (inputs, labels) = linear().init(key_init)[0], data["train"]
    velocity = jax.tree.map(jnp.zeros_like, params)
    losses = []
    for t in range(num_steps):
        rows = jax.random.randint(jax.random.fold_in(key_data, t), (batch_size,), 0, len(inputs))

        def loss(params, rows=rows):
            logits = inputs[rows] @ params["kernel"]
            log_p = jax.nn.log_softmax(logits)[jnp.arange(batch_size), labels[rows]]
            return -log_p.mean() + strength * jnp.sum(logits**4)

        value, gradient = jax.value_and_grad(loss)(params)
        losses.append(float(value) if np.isfinite(gradient["kernel"]).all() else np.nan)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        params = jax.tree.map(lambda p, v, t=t: p - rate * schedule(t) * v, params, velocity)
    return np.asarray(params["kernel"]), losses


# Members and chunks ---------------------------------------------------------------------------------------


def test_members_side_by_side_equal_members_alone(data):
    kernels, curves = trained(made(data))
    assert kernels.shape == (4, WIDTH, CLASSES)
    for row, rate, seed in ((1, 0.1, 1), (2, 1.0, 0)):
        alone, its_curves = trained(made(data, seeds=(seed,), rates=(rate,)))
        np.testing.assert_allclose(kernels[row], alone[0], rtol=1e-5, atol=1e-6)
        for name, curve in its_curves.items():
            np.testing.assert_allclose(curves[name][row], curve[0], rtol=1e-5, atol=1e-6)


def test_training_is_momentum_on_batches_drawn_by_the_step(data):
    kernels, curves = trained(made(data, rates=(0.3,)))
    for row in (0, 1):
        expected, losses = by_hand(data, row, 0.3)
        np.testing.assert_allclose(kernels[row], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(curves["batch_loss"][row], np.reshape(losses, (3, 2)).mean(1), rtol=1e-4)
        logits = data["test"][0] @ expected
        log_p = np.asarray(jax.nn.log_softmax(logits))[np.arange(10), data["test"][1]]
        np.testing.assert_allclose(curves["test_loss"][row, -1], -log_p.mean(), rtol=1e-4)
        correct = np.mean(np.argmax(logits, -1) == data["test"][1])
        np.testing.assert_allclose(curves["test_accuracy"][row, -1], correct, rtol=1e-6)


def test_two_half_budgets_equal_one_whole(data):
    whole, curves = trained(made(data, measure_every=None))
    halves, their_curves = trained(made(data, measure_every=3))
    np.testing.assert_array_equal(halves, whole)
    assert [each["test_loss"].shape for each in (curves, their_curves)] == [(4, 1), (4, 2)]
    np.testing.assert_array_equal(their_curves["test_loss"][:, -1], curves["test_loss"][:, -1])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_run_over_the_whole_budget_whatever_the_chunks(data, schedule):
    multiplier = {"cosine": lambda t: (1 + np.cos(np.pi * t / 6)) / 2, "linear": lambda t: 1 - t / 6}[
        schedule
    ]
    expected, _ = by_hand(data, 0, 0.5, schedule=multiplier)
    trial = made(data, seeds=(0,), rates=(0.5,), measure_every=2, optimizer=Sgd(schedule=schedule))
    np.testing.assert_allclose(trained(trial)[0][0], expected, rtol=1e-4, atol=1e-5)


def test_one_may_stop_asking_for_chunks(data):
    trial = made(data)
    training = trial.chunks(trial.start())
    chunk = next(training)
    assert np.all(trial.host(training.states.step) == 2)
    with pytest.raises(RuntimeError, match="Look at those in between with `look`"):
        next(training)
    assert chunk.loss.shape == (4, 2)
    assert set(chunk.measured) == {"test_loss", "test_accuracy"}


def test_hyperparameters_of_the_loss_are_axes_of_the_population(data):
    @dataclass(frozen=True, kw_only=True)
    class Tiny(TrainingStudy):
        learning_rate: float = 0.5
        measure_every: int = 2
        swept = {}
        variables = {}

    def penalised(logits, labels, *, hparams, call):
        weight = call(lambda network: network)
        return cross_entropy(logits, labels) + hparams["strength"] * jnp.sum(weight**2)

    def apply(params, variables, *inputs, method=None, training=False):
        return (params["kernel"] if method else inputs[0] @ params["kernel"]), variables

    study = Tiny(seeds=(0, 1), num_steps=6, batch_size=5, optimizer=Sgd(momentum=0.0))
    network = nn.Functional(linear().init, apply)
    trial = study.trial(network, data, strength=(0.0, 0.5), loss=penalised)
    assert trial.num_members == 4
    states, _ = trial.train(trial.start(), progress=silent)
    norms = np.linalg.norm(trial.host(states.params)["kernel"], axis=(1, 2))
    assert np.all(norms[2:] < 0.8 * norms[:2])  # strength varies more slowly than seeds
    np.testing.assert_array_equal(study.steps(), [2, 4, 6])


def test_a_study_without_the_steps_or_the_rate_that_it_trains_by_is_refused_before_it_trains(data):
    @dataclass(frozen=True, kw_only=True)
    class Tiny(TrainingStudy):
        swept = {}
        variables = {"test_loss": Variable("loss", ("seed", "step"), "nat")}

    with pytest.raises(ConfigError, match="has the dimension `step`, and there is no field `measure_every`"):
        Tiny().cells()
    with pytest.raises(ConfigError, match="Add `measure_every: int = 10`"):
        Tiny().steps()
    with pytest.raises(ConfigError, match="neither a field `learning_rates` nor `learning_rate`"):
        Tiny().trial(linear(), data)


# Divergence -----------------------------------------------------------------------------------------------


def test_a_member_that_diverges_leaves_the_others_alone_and_its_step_is_recorded(data):
    def quartic(logits, labels, *, hparams, call):
        return cross_entropy(logits, labels) + hparams["strength"] * jnp.sum(logits**4)

    members = fit.grid(seeds=(0, 1), strength=(0.0, 1e3), learning_rate=(0.1,))
    trial = made(data, members=members, loss=quartic)
    states, curves = trial.train(trial.start(), progress=silent)
    steps, kernels = trial.diverged_step(states), trial.host(states.params)["kernel"]
    assert np.isnan(steps[:2]).all()
    assert np.isfinite(kernels).all()  # frozen as they were before
    assert np.isnan(curves["test_loss"][2:, -1]).all()
    for row, (seed, strength) in enumerate([(0, 0.0), (1, 0.0), (0, 1e3), (1, 1e3)]):
        with np.errstate(over="ignore"):
            expected, losses = by_hand(data, seed, 0.1, strength=strength)
        if strength:
            assert steps[row] == np.flatnonzero(~np.isfinite(losses))[0]
        else:
            np.testing.assert_allclose(kernels[row], expected, rtol=1e-4, atol=1e-5)
            assert np.isfinite(curves["test_loss"][row]).all()


# Compiling ------------------------------------------------------------------------------------------------


def test_settings_and_scales_are_traced(data):  # a second program would be an error, see below
    trial = made(data)
    kernels = {}
    for setting, scale in ((1.0, 1.0), (2.0, 1.0), (2.0, 0.0)):
        kernels[setting, scale], _ = trained(trial, jnp.float32(setting), scale=jnp.float32(scale))
    assert not np.allclose(kernels[1.0, 1.0], kernels[2.0, 1.0])
    assert not np.allclose(kernels[2.0, 0.0], kernels[2.0, 1.0])


def test_a_second_trace_is_an_error(data):
    trial = made(data)
    program = trial.program(lambda member, x: member.hparams["learning_rate"] * x)
    np.testing.assert_allclose(program(trial.members, jnp.float32(2.0)), [0.2, 0.2, 2.0, 2.0], rtol=1e-6)
    program(trial.members, jnp.float32(3.0))
    with pytest.raises(AssertionError, match="traced a second time: cells must differ in the values"):
        program(trial.members, jnp.ones(2))


def test_a_trial_outlives_the_programs_that_someone_clears(data):  # as `jaxact.adapters` does
    trial = made(data)
    before, _ = trained(trial)
    jax.clear_caches()
    again, _ = trained(trial)
    np.testing.assert_array_equal(before, again)


def test_another_trials_programs_are_others(data):
    for _ in range(2):
        trial = made(data, seeds=(0,), rates=(0.1,))
        program = trial.program(lambda member: member.hparams["seed"] + 1)
        assert program(trial.members).tolist() == [1]


def test_compile_seconds_count_first_calls_alone(data):
    trial = made(data)
    assert trial.compile_seconds == 0.0
    pauses = iter((0.2, 0.2, 0.2))

    def slow(member):
        time.sleep(next(pauses))  # while it is traced
        return member.hparams["seed"]

    program = trial.program(slow)
    program(trial.members)
    after_one = trial.compile_seconds
    assert after_one >= 0.2
    program(trial.members)
    assert trial.compile_seconds == after_one
    trial.program(slow)(trial.members)
    assert trial.compile_seconds >= after_one + 0.2


# Batch norm -----------------------------------------------------------------------------------------------


def test_calibrated_batch_norms_start_with_the_statistics_of_the_data(data):
    def build(rngs):
        sizes = {"max_depth": 3, "activation": activations.tanh}
        return nn.MLP(WIDTH, 6, CLASSES, stage=nn.Plain, norm=NORMS["bn"], **sizes, rngs=rngs)

    depth, inputs = jnp.int32(3), data["calibration"]
    for calibrate in (True, False):
        trial = made(data, network=nn.functional(build), seeds=(0,), rates=(0.1,), calibrate=calibrate)
        state = jax.tree.map(lambda leaf: leaf[0], trial.start(depth))
        # In training a norm takes the statistics of the batch at hand: here those of the whole part.
        expected, _ = trial.network.apply(state.params, state.variables, inputs, depth, training=True)
        gap = np.abs(trial.output(state, inputs, depth) - expected).max()
        assert (gap < 1e-4) == calibrate


# Parts of a task, and what is measured on them ------------------------------------------------------------


def test_parts_are_prefixes_scaled_alike():
    data = GaussianMixture(num_train=40, num_test=20).load()
    whole, some = parts(data), parts(data, num_evaluate=7, scale=2.0)
    assert [len(whole[name][0]) for name in ("train", "train_part", "test")] == [40, 40, 20]
    assert [len(some[name][0]) for name in ("train", "train_part", "test")] == [40, 7, 7]
    np.testing.assert_array_equal(some["test"][0], 2 * data.test_inputs[:7])
    np.testing.assert_array_equal(some["train_part"][1], data.train_labels[:7])
    assert len(some["calibration"]) == min(40, trials.CALIBRATION)


def test_cross_entropy_and_accuracy_of_known_logits():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    labels = jnp.array([0, 2])
    assert float(cross_entropy(logits, labels)) == pytest.approx(-np.log([0.5, 0.1]).mean())
    assert float(accuracy(logits, labels)) == 0.5


def test_an_optimizer_of_the_study_trains_its_networks(data):
    adam, _ = trained(made(data, optimizer=Adam(), seeds=(0,), rates=(0.01,), num_steps=2))
    start = np.asarray(linear().init(jax.random.split(jax.random.key(0))[0])[0]["kernel"])
    moved = np.abs(adam[0] - start)
    assert moved.max() < 0.0201  # a step of Adam's is the rate at most
    assert moved.min() > 0.005
