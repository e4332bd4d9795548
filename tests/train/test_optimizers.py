"""Optimisers: optax's own with the numbers asked for, scheduled, clipped, at traced rates; bad fields are refused."""

import math
import re
from dataclasses import dataclass, replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxact import activations
from train import blocks
from train.optimizers import SCHEDULES, Adam, AdamW, Lion, Muon, Optimizer, Sgd
from train.tasks import Digits

STEPS = 5
CURVATURE = {"w": jnp.array([[1.0, 4.0], [0.5, 2.0]]), "b": jnp.array([3.0, 0.1])}
START = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.array([-1.0, 2.0])}


def descend(transformation, params=START, curvature=CURVATURE, num_steps=STEPS):
    """The parameters after some steps down a quadratic, 0.5 sum a x^2."""
    state = transformation.init(params)
    for _ in range(num_steps):
        gradient = jax.tree.map(jnp.multiply, curvature, params)
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def updates_of(optimizer, gradients, params=None, *, rate=1.0, num_steps=STEPS):
    """What one step after the other adds to the parameters, for given gradients."""
    transformation = optimizer.bound(num_steps)({"learning_rate": rate})
    params = gradients[0] if params is None else params
    state, found = transformation.init(params), []
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, params)
        found.append(updates)
    return found


@pytest.mark.parametrize(
    ("optimizer", "by_hand"),
    [
        (Sgd(momentum=0.0), optax.sgd(0.1)),
        (Sgd(momentum=0.8), optax.sgd(0.1, momentum=0.8)),
        (Sgd(momentum=0.8, nesterov=True), optax.sgd(0.1, momentum=0.8, nesterov=True)),
        (Adam(), optax.adam(0.1)),
        (Adam(b1=0.5, b2=0.8), optax.adam(0.1, b1=0.5, b2=0.8)),
        (Adam(nesterov=True), optax.nadam(0.1)),
        (AdamW(weight_decay=0.3), optax.adamw(0.1, weight_decay=0.3)),
        (AdamW(b1=0.7, nesterov=True), optax.nadamw(0.1, b1=0.7, weight_decay=1e-4)),
        (Lion(b1=0.8, b2=0.9, weight_decay=0.2), optax.lion(0.1, b1=0.8, b2=0.9, weight_decay=0.2)),
    ],
    ids=lambda value: str(getattr(value, "name", "")),
)
def test_steps_are_optaxs_own(optimizer, by_hand):
    ours = descend(optimizer.bound(STEPS)({"learning_rate": 0.1}))
    chex.assert_trees_all_close(ours, descend(by_hand), rtol=1e-6)


def test_the_defaults_are_those_that_are_documented():
    momentum = {"sgd": Sgd().momentum, "muon": Muon().momentum}
    assert momentum == {"sgd": 0.9, "muon": 0.95}
    assert list(Optimizer.choices().values()) == [Sgd, Adam, AdamW, Lion, Muon]
    for name, kind in Optimizer.choices().items():
        assert kind().name == name
        assert (kind().schedule, kind().warmup_steps, kind().clip_norm) == ("constant", 0, None)


def test_a_decay_of_weights_is_decoupled_from_the_gradient():
    nothing = {"w": jnp.zeros(3)}
    for optimizer in (AdamW(weight_decay=0.5), Lion(weight_decay=0.5)):
        (updates,) = updates_of(optimizer, [nothing], {"w": jnp.array([1.0, -2.0, 4.0])}, rate=0.1)
        np.testing.assert_allclose(updates["w"], [-0.05, 0.1, -0.2], rtol=1e-6)


# Muon -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["dense", "conv"])
def hidden_network(request):
    """Parameters of a small network, and a gradient of the same shapes."""
    data = blocks.inputs_for(request.param, Digits(num_train=8, num_test=2).load())
    sizes = {"width": 6, "max_depth": 2, "activation": activations.relu}
    params, _ = blocks.network(data, "plain-ln", kind=request.param, **sizes).init(jax.random.key(0))
    leaves, form = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    drawn = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return params, jax.tree.unflatten(form, drawn)


def named(tree):
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}  # fmt: skip


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        (Muon(), {"beta": 0.95, "nesterov": True}),
        (
            Muon(momentum=0.5, nesterov=False, weight_decay=0.1),
            {"beta": 0.5, "nesterov": False, "weight_decay": 0.1},
        ),
    ],
    ids=["default", "own"],
)
def test_muon_moves_each_hidden_matrix_as_if_it_were_alone_and_adam_the_rest(
    hidden_network, optimizer, settings
):
    params, gradient = hidden_network
    gradients = [gradient, jax.tree.map(jnp.sin, gradient)]
    found = [named(updates) for updates in updates_of(optimizer, gradients, params, rate=0.1)]
    alone = optax.contrib.muon(0.1, **settings)
    rest = optax.adam(0.1, nesterov=settings["nesterov"])
    num_matrices = 0
    for name, leaf in named(params).items():
        given = [named(each)[name] for each in gradients]
        got = [each[name] for each in found]
        if "stages" in name and "kernel" in name:
            for layer in range(len(leaf)):
                matrix = lambda stacked, layer=layer: stacked[layer].reshape(-1, stacked.shape[-1])  # noqa: E731
                expected = steps(alone, matrix(leaf), [matrix(each) for each in given])
                for one, other in zip(got, expected, strict=True):
                    np.testing.assert_allclose(matrix(one), other, rtol=1e-4, atol=1e-6)
                num_matrices += 1
        else:
            for one, other in zip(got, steps(rest, leaf, given), strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=name)
    assert num_matrices == 2


def steps(transformation, leaf, gradients):
    state, found = transformation.init(leaf), []
    for gradient in gradients:
        updates, state = transformation.update(gradient, state, leaf)
        found.append(updates)
    return found


# Schedules and clipping -----------------------------------------------------------------------------------


def multiplier(schedule, t, w, total):
    """The formula of the docstring, in plain Python."""
    if t < w:
        return (t + 1) / w
    after = {
        "constant": 1.0,
        "cosine": (1 + math.cos(math.pi * (t - w) / (total - w))) / 2,
        "linear": 1 - (t - w) / (total - w),
    }
    return after[schedule]


@pytest.mark.parametrize("warmup_steps", [0, 1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_follows_its_schedule_at_every_step(schedule, warmup_steps):
    total, one = 8, jnp.ones(())
    optimizer = Sgd(momentum=0.0, schedule=schedule, warmup_steps=warmup_steps)
    rates = [-float(step) for step in updates_of(optimizer, [one] * total, rate=0.5, num_steps=total)]
    expected = [0.5 * multiplier(schedule, t, warmup_steps, total) for t in range(total)]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)
    assert rates[0] == pytest.approx(0.5 / max(warmup_steps, 1))
    assert rates[warmup_steps] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5) if schedule == "constant" else 0 < rates[-1] < 0.15


@pytest.mark.parametrize("kind", Optimizer.choices().values())
def test_every_optimizer_is_scheduled(kind):
    params = {"w": jnp.array([1.0, -2.0])}
    total, options = 4, {"weight_decay": 0.0} if kind in (AdamW, Lion) else {}
    scheduled, constant = (
        updates_of(kind(schedule=schedule, **options), [params] * total, rate=0.1, num_steps=total)
        for schedule in ("linear", "constant")
    )
    for t in range(total):
        np.testing.assert_allclose(scheduled[t]["w"], constant[t]["w"] * (1 - t / total), rtol=1e-5)


def test_clipping_shortens_the_whole_gradient_and_only_a_long_one():
    optimizer = Sgd(momentum=0.0, clip_norm=1.0)
    long = {"a": jnp.array([6.0, 0.0]), "b": jnp.array([[8.0]])}  # of norm 10 as a whole
    short = jax.tree.map(lambda leaf: 0.05 * leaf, long)
    first, second = updates_of(optimizer, [long, short], rate=0.5)
    np.testing.assert_allclose(first["a"], [-0.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(first["b"], [[-0.4]], rtol=1e-6)
    np.testing.assert_allclose(second["b"], [[-0.2]], rtol=1e-6)
    (unclipped,) = updates_of(replace(optimizer, clip_norm=None), [long], rate=0.5)
    np.testing.assert_allclose(unclipped["b"], [[-4.0]], rtol=1e-6)


def test_clipping_comes_before_the_momentum():
    gradient = {"w": jnp.array([10.0])}
    first, second = updates_of(Sgd(momentum=0.5, clip_norm=1.0), [gradient] * 2)
    assert (float(first["w"][0]), float(second["w"][0])) == pytest.approx((-1.0, -1.5))


# Traced ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [Sgd(clip_norm=1.0), AdamW(schedule="cosine", warmup_steps=2), Lion(), Muon(schedule="linear")],
    ids=str,
)
def test_rates_are_traced_and_vmapped_in_one_program(optimizer):
    params = {"stack": {"stages": {"affine": {"kernel": jnp.arange(8.0).reshape(2, 2, 2) / 8}}}}
    curvature = jax.tree.map(jnp.cos, params)
    rates = jnp.array([0.3, 0.01, 0.0])

    def run(rate):
        return descend(optimizer.bound(3)({"learning_rate": rate}), params, curvature, num_steps=3)

    chex.clear_trace_counter()  # it counts by name and place: another optimiser's trace is none of this one's
    one = jax.jit(chex.assert_max_traces(run, n=1))
    alone = [one(rate) for rate in rates]
    side_by_side = jax.jit(jax.vmap(run))(rates)
    for number, each in enumerate(alone):
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, number=number: leaf[number], side_by_side), each, rtol=1e-4, atol=1e-6
        )
    chex.assert_trees_all_close(alone[2], params)  # a rate of 0 moves nothing
    chex.assert_trees_all_close(
        alone[0], descend(optimizer.bound(3)({"learning_rate": 0.3}), params, curvature, num_steps=3),
        rtol=1e-4, atol=1e-6,
    )  # fmt: skip


# As values of a config ------------------------------------------------------------------------------------


def test_equal_settings_are_one_key():
    assert {Sgd(), Sgd(momentum=0.9)} == {Sgd()}
    assert Sgd() != Sgd(momentum=0.8)
    assert Adam() != AdamW(weight_decay=0.0)


@pytest.mark.parametrize(
    ("kind", "fields", "rule"),
    [
        (Sgd, {"schedule": "cosin"}, "must be among constant, cosine, linear, got 'cosin'. Did you mean 'cosine'?"),
        (Sgd, {"warmup_steps": -1}, "must be 0 or more, got -1"),
        (Adam, {"clip_norm": 0.0}, "must be positive and finite, got 0.0"),
        (Adam, {"clip_norm": -1.0}, "must be positive and finite, got -1.0"),
        (Adam, {"clip_norm": math.nan}, "must be positive and finite, got nan"),
        (Sgd, {"momentum": 1.0}, "must be in [0, 1), got 1.0"),
        (Muon, {"momentum": -0.1}, "must be in [0, 1), got -0.1"),
        (Adam, {"b1": 1.5}, "must be in [0, 1), got 1.5"),
        (AdamW, {"b2": 1.0}, "must be in [0, 1), got 1.0"),
        (Lion, {"b2": math.nan}, "must be in [0, 1), got nan"),
        (AdamW, {"weight_decay": -1e-4}, "must be finite and not negative, got -0.0001"),
        (Lion, {"weight_decay": math.inf}, "must be finite and not negative, got inf"),
        (Muon, {"weight_decay": -1.0}, "must be finite and not negative, got -1.0"),
        (Sgd, {"nesterov": True, "momentum": 0.0}, "needs a momentum above 0, got 0"),
    ],
)  # fmt: skip
def test_fields_out_of_range_are_refused_with_field_value_and_rule(kind, fields, rule):
    with pytest.raises(ValueError, match="^" + re.escape(f"`optimizer.{next(iter(fields))}` {rule}")):
        kind(**fields)


def test_a_warm_up_must_end_within_the_budget():
    Sgd(warmup_steps=9).check_budget(10)
    for num_steps in (10, 5):
        with pytest.raises(
            ValueError, match=rf"`optimizer.warmup_steps` must be less than num_steps = {num_steps}, "
        ):
            Sgd(warmup_steps=10).check_budget(num_steps)


def test_a_new_optimizer_is_its_name_and_its_fields():
    @dataclass(frozen=True, kw_only=True)
    class RmsProp(Optimizer):
        """Divides by a running root mean square."""

        name = "rmsprop"
        decay: float = 0.9

    ours = descend(RmsProp(decay=0.5).bound(STEPS)({"learning_rate": 0.1}))
    chex.assert_trees_all_close(ours, descend(optax.rmsprop(0.1, decay=0.5)), rtol=1e-6)
