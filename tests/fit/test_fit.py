"""Training is a pure function: halves compose, members are independent, divergence stays where it happened."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxact import fit

INPUTS = jax.random.normal(jax.random.key(0), (64, 5))
TARGETS = jnp.sin(INPUTS @ jnp.arange(5.0))


def sample(key):
    rows = jax.random.randint(key, (16,), 0, 64)
    return INPUTS[rows], TARGETS[rows]


def loss(params, variables, batch, hparams):
    hidden = jnp.tanh(batch[0] @ params["w"]) @ params["v"]
    value = jnp.mean((hidden - batch[1]) ** 2)
    return value, (variables + 1, {"twice": 2 * value})


def optimizer(hparams):
    return optax.sgd(hparams["learning_rate"], momentum=0.9)


def begin(member):
    params = {"w": jax.random.normal(member.key, (5, 8)), "v": jnp.ones(8) / 8}
    return fit.start(
        optimizer, key=member.key, params=params, variables=jnp.zeros(()), hparams=member.hparams
    )


def runner(num_steps, **kwargs):
    return fit.fit(loss, sample, optimizer, num_steps=num_steps, **kwargs)


def member(index, members):
    return jax.tree.map(lambda leaf: leaf[index], members)


def test_two_half_runs_equal_one_whole_run_bit_for_bit():
    state = begin(member(0, fit.grid(seeds=[3], learning_rate=[0.1])))
    whole, history = jax.jit(runner(20))(state)
    half = jax.jit(runner(10))
    middle, first = half(state)
    end, second = half(middle)
    chex.assert_trees_all_equal(end._replace(key=0), whole._replace(key=0))
    np.testing.assert_array_equal(jnp.concatenate([first.loss, second.loss]), history.loss)


def test_a_run_equals_the_same_steps_written_by_hand():
    members = fit.grid(seeds=[3], learning_rate=[0.1])
    state, history = jax.jit(runner(5))(begin(member(0, members)))
    start = begin(member(0, members))
    params, transform = start.params, optax.sgd(0.1, momentum=0.9)
    opt_state = transform.init(params)
    for step in range(5):
        batch = sample(jax.random.fold_in(start.key, step))
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params, 0.0, batch, {})
        updates, opt_state = transform.update(gradient, opt_state)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(history.loss[step], value, rtol=1e-6)
        np.testing.assert_allclose(history.metrics["twice"][step], 2 * value, rtol=1e-6)
    chex.assert_trees_all_close(state.params, params, rtol=1e-5)
    assert int(state.step) == 5
    assert float(state.variables) == 5


def test_members_vmapped_equal_members_alone():
    members = fit.grid(seeds=[0, 1], learning_rate=[0.05])
    run = runner(10)
    together, history = jax.jit(lambda m: fit.population(lambda one: run(begin(one)), m))(members)
    for index in range(2):
        alone, own = jax.jit(lambda m: run(begin(m)))(member(index, members))
        chex.assert_trees_all_close(member(index, together.params), alone.params, atol=1e-6, rtol=0)
        np.testing.assert_allclose(history.loss[index], own.loss, atol=1e-6, rtol=0)


def test_a_member_that_diverges_is_frozen_and_leaves_the_others_alone():
    members = fit.grid(seeds=[0], learning_rate=[0.05, 1e20, 0.05])
    run = jax.jit(lambda m: fit.population(lambda one: runner(12)(begin(one)), m))
    states, history = run(members)
    assert states.diverged_step.tolist()[0] == states.diverged_step.tolist()[2] == -1
    when = int(states.diverged_step[1])
    assert 0 < when < 12
    assert np.isnan(history.loss[1, when:]).all()
    assert np.isfinite(history.loss[1, :when]).all()
    chex.assert_tree_all_finite(member(1, states).params)
    # Frozen as it was before that step: the same as having stopped there.
    stopped, _ = jax.jit(lambda m: fit.population(lambda one: runner(when)(begin(one)), m))(members)
    chex.assert_trees_all_equal(member(1, stopped).params, member(1, states).params)
    alone, _ = run(fit.grid(seeds=[0], learning_rate=[0.05, 0.05, 0.05]))
    chex.assert_trees_all_equal(member(0, states).params, member(0, alone).params)


def test_a_gradient_that_is_not_finite_counts_as_divergence():
    def kinked(params, variables, batch, hparams):
        return jnp.sqrt(params * 0.0), (variables, ())  # value 0, slope 0 * inf

    run = fit.fit(kinked, lambda key: (), optax.sgd(0.1), num_steps=3)
    state, _ = run(fit.start(optax.sgd(0.1), key=jax.random.key(0), params=jnp.float32(1.0)))
    assert int(state.diverged_step) == 0
    assert float(state.params) == 1.0


def test_measurements_are_taken_after_every_so_many_steps():
    run = runner(12, measure=lambda state: {"step": state.step}, measure_every=4)
    _, history = jax.jit(run)(begin(member(0, fit.grid(seeds=[0], learning_rate=[0.1]))))
    assert history.measurements["step"].tolist() == [4, 8, 12]
    chex.assert_shape(history.loss, (12,))


@pytest.mark.parametrize(
    "transform", [optax.adam(1e-2), optax.adamw(1e-2), optax.lion(1e-3), optax.rmsprop(1e-3)]
)
def test_any_optax_optimiser_trains(transform):
    start = begin(member(0, fit.grid(seeds=[0], learning_rate=[0.1])))
    state = fit.start(transform, key=start.key, params=start.params, variables=start.variables)
    _, history = jax.jit(fit.fit(loss, sample, transform, num_steps=100))(state)
    assert history.loss[-10:].mean() < 0.95 * history.loss[:10].mean()


def test_one_trace_serves_every_state():
    traced = jax.jit(chex.assert_max_traces(runner(2), n=1))
    for rate in (0.1, 0.2):
        traced(begin(member(0, fit.grid(seeds=[0], learning_rate=[rate]))))


class TestWithAndWithoutJit(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_a_step_lowers_the_loss_of_a_parabola(self):
        run = fit.fit(lambda p, v, b, h: (p**2, (v, ())), lambda key: (), optax.sgd(0.25), num_steps=2)
        state = fit.start(optax.sgd(0.25), key=jax.random.key(0), params=jnp.float32(1.0))
        end, history = self.variant(run)(state)
        assert float(end.params) == 0.25
        assert history.loss.tolist() == [1.0, 0.25]


def test_bad_step_counts_are_refused():
    for arguments, message in (
        ({"num_steps": 0}, "`num_steps` must be a positive integer, got 0"),
        ({"num_steps": 10, "measure_every": 0}, "`measure_every` must be a positive integer, got 0"),
        ({"num_steps": 10, "measure_every": 3}, "must divide `num_steps`, got 3 and 10. Use num_steps=9"),
    ):
        with pytest.raises(ValueError, match=message):
            runner(**arguments)
