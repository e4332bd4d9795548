"""Training is a pure function: halves compose, members are independent, divergence stays where it happened."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxact import fit
from jaxact.fit._persist import watched

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


def trained(loss, optimizer, params, *, num_steps=4, variables=None, **options):
    """The end of a run without data."""
    state = fit.start(optimizer, key=jax.random.key(0), params=params, variables=variables)
    return jax.jit(fit.fit(loss, lambda key: (), optimizer, num_steps=num_steps, **options))(state)


def parabola(params, variables, batch, hparams):
    return jnp.sum(params**2), (variables, ())


@pytest.mark.parametrize(("dtype", "slope", "rate"), [(jnp.float16, 510, 1e-4), (jnp.float32, 5e19, 1e-20)])
def test_a_finite_gradient_whose_norm_overflows_in_its_own_dtype_trains(dtype, slope, rate):
    slopes = jnp.linspace(slope / 8, slope, 8, dtype=dtype)
    assert np.isfinite(slopes).all()
    assert np.isinf(optax.tree.norm(slopes))
    line = lambda p, v, b, h: (jnp.sum(p * slopes), (v, ()))  # noqa: E731
    state, _ = trained(line, optax.sgd(rate), jnp.zeros(8, dtype))
    assert int(state.diverged_step) == -1
    np.testing.assert_allclose(state.params, -4 * rate * slopes.astype(float), rtol=1e-2)


PARABOLAS = {
    "params overflow": (optax.sgd(1e38), jnp.full(4, 30.0)),
    "bfloat16 rounds a decay of 0.999 to 1": (
        optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
        jnp.ones(4, jnp.bfloat16),
    ),
    "the second moment overflows and the params do not": (optax.adam(1e-3), jnp.asarray([1.0, 5e17, 1e-3])),
    "momentum overflows after a few steps": (optax.sgd(0.0, momentum=3.0), jnp.full(4, 1e18)),
}


def steep(params, variables, batch, hparams):
    return jnp.sum(params * jnp.asarray([1.0, 5e19, 1e-3])), (variables, ())


@pytest.mark.parametrize("name", PARABOLAS)
def test_what_is_frozen_is_the_last_finite_state(name):
    optimizer, params = PARABOLAS[name]
    loss = steep if "second moment" in name else parabola
    state, history = trained(loss, optimizer, params, num_steps=60)
    when = int(state.diverged_step)
    assert 0 <= when < 60
    chex.assert_tree_all_finite((state.params, state.opt_state))
    assert np.isnan(history.loss[when:].astype(float)).all()
    assert np.isfinite(history.loss[:when].astype(float)).all()
    # The same as having stopped there, and the step that was not taken makes something that is not finite.
    before = fit.start(optimizer, key=jax.random.key(0), params=params)
    if when:
        before = trained(loss, optimizer, params, num_steps=when)[0]
    chex.assert_trees_all_equal((state.params, state.opt_state), (before.params, before.opt_state))
    gradient = jax.grad(lambda p: loss(p, None, None, None)[0])(before.params)
    updates, after = optimizer.update(gradient, before.opt_state, before.params)
    with pytest.raises(AssertionError):
        chex.assert_tree_all_finite((optax.apply_updates(before.params, updates), after))


HIDING = {
    "clipped": optax.chain(optax.clip(1.0), optax.sgd(0.1)),
    "clipped by norm": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9)),
    "zeros for NaN": optax.chain(optax.zero_nans(), optax.sgd(0.1)),
    "signs": optax.lion(0.1),
    "one is frozen": optax.multi_transform(
        {"on": optax.sgd(0.1), "off": optax.set_to_zero()}, {"a": "on", "b": "off"}
    ),
    "nothing is hidden": optax.adam(0.1),
}


@pytest.mark.parametrize("name", HIDING)
def test_a_gradient_that_an_optimiser_makes_finite_counts_all_the_same(name):
    """The slope by b is infinite in the third step alone, where b itself is told from any other by nothing."""

    def loss(params, variables, batch, hparams):
        blow = jnp.where(variables == 2, 0.0, 1.0)  # the root's slope at 0 is infinite, its value 0
        return jnp.sum(params["a"] ** 2) + jnp.sqrt(params["b"] ** 2 * blow), (variables + 1, ())

    params = {"a": jnp.ones(3), "b": jnp.float32(1.0)}
    state, history = trained(loss, HIDING[name], params, num_steps=8, variables=jnp.int32(0))
    assert int(state.diverged_step) == 2
    assert np.isnan(history.loss).tolist() == [False, False] + 6 * [True]
    chex.assert_tree_all_finite((state.params, state.opt_state))
    stopped, _ = trained(loss, HIDING[name], params, num_steps=2, variables=jnp.int32(0))
    chex.assert_trees_all_equal(state.params, stopped.params)


@pytest.mark.parametrize(
    ("optimizer", "is_watched"),
    [(optax.sgd(0.1, momentum=0.9), False), (optax.adam(1e-3), False), (optax.adamw(1e-3), False),
     (optax.chain(optax.clip(1.0), optax.sgd(0.1)), True), (optax.chain(optax.zero_nans(), optax.adam(0.1)), True)],
)  # fmt: skip
def test_what_stays_to_the_end_is_not_looked_for_in_every_step(optimizer, is_watched):
    params = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}

    def step(gradient, params, state):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    found = watched(step, params, params, optimizer.init(params))
    assert bool(found.gradients) == is_watched
    # Every leaf that is not watched shows what is not finite, once and again.
    for bad in (jnp.inf, -jnp.inf, jnp.nan):
        for number in {0, 1} - found.gradients:
            leaves, tree = jax.tree.flatten(params)
            leaves[number] = leaves[number].at[0].set(bad)
            after = step(jax.tree.unflatten(tree, leaves), params, optimizer.init(params))
            for _ in range(3):
                with pytest.raises(AssertionError):
                    chex.assert_tree_all_finite(after)
                after = step(params, *after)


def test_a_product_without_entries_shows_nothing_of_a_gradient():
    def step(gradient, params, state):
        return jnp.minimum(gradient, params), state + gradient @ jnp.zeros((3, 0))

    assert watched(step, jnp.ones(3), jnp.ones(3), jnp.ones(0)).gradients == {0}


def test_what_a_loss_makes_of_its_variables_is_checked_at_every_step():
    def loss(params, variables, batch, hparams):
        return params**2, ({"count": variables["count"] + 1, "best": jnp.minimum(variables["best"], params**2),
                            "last": jnp.where(variables["count"] == 2, jnp.inf, 1.0)}, ())  # fmt: skip

    variables = {"count": 0, "best": jnp.inf, "last": 0.0}  # a best loss may start at infinity
    variables = jax.tree.map(jnp.asarray, variables)
    state, _ = trained(loss, optax.sgd(0.1), jnp.float32(1.0), variables=variables)
    assert int(state.diverged_step) == 2
    assert (int(state.variables["count"]), float(state.variables["last"])) == (2, 1.0)


def test_a_member_whose_result_overflows_is_frozen_and_leaves_the_others_bit_for_bit():
    optimizer = lambda h: optax.sgd(0.0, momentum=h["momentum"])  # noqa: E731
    run = fit.fit(parabola, lambda key: (), optimizer, num_steps=60)

    def one(member):
        params = jnp.full(4, 1e18)
        return run(fit.start(optimizer, key=member.key, params=params, hparams=member.hparams))

    mixed, _ = jax.jit(lambda m: fit.population(one, m))(fit.grid(seeds=[0], momentum=[0.5, 3.0, 0.9]))
    calm, _ = jax.jit(lambda m: fit.population(one, m))(fit.grid(seeds=[0], momentum=[0.5, 0.6, 0.9]))
    assert (mixed.diverged_step >= 0).tolist() == [False, True, False]
    chex.assert_tree_all_finite(mixed.opt_state)
    for index in (0, 2):
        chex.assert_trees_all_equal(member(index, mixed.opt_state), member(index, calm.opt_state))


def test_training_can_be_differentiated_with_respect_to_a_hyperparameter():
    def end(rate):
        optimizer = lambda h: optax.sgd(h["rate"])  # noqa: E731
        begun = fit.start(optimizer, key=jax.random.key(0), params=jnp.float32(1.0), hparams={"rate": rate})
        return fit.fit(parabola, lambda key: (), optimizer, num_steps=3)(begun)[0].params

    np.testing.assert_allclose(jax.grad(end)(0.1), 3 * 0.8**2 * -2, rtol=1e-5)  # (1 - 2 rate)^3
    np.testing.assert_allclose(jax.vmap(jax.grad(end))(jnp.array([0.1, 0.5])), [-3.84, 0.0], rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.polyak_sgd(),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.01), sync_period=2),
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1)),
        optax.lbfgs(),
        optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=8)),
        optax.contrib.momo(),
        optax.contrib.sophia(learning_rate=0.1),
        lambda hparams: optax.polyak_sgd(),
    ],
    ids=["polyak_sgd", "sam", "reduce_on_plateau", "lbfgs", "backtracking", "momo", "sophia", "of hparams"],
)
def test_an_optimiser_that_asks_for_more_than_gradients_gets_it(optimizer):
    bowl = lambda p, v, b, h: (jnp.sum((p - 3) ** 2 * jnp.asarray([1.0, 0.5])), (v, ()))  # noqa: E731
    state, history = trained(bowl, optimizer, jnp.zeros(2), num_steps=30)
    assert int(state.diverged_step) == -1
    assert history.loss[-1] < 0.1 * history.loss[0]


def test_a_run_reports_while_it_goes_on():
    told, members = [], fit.grid(seeds=[0, 1], learning_rate=[0.1])
    report = lambda step, history: told.append((step, history))  # noqa: E731
    run = runner(12, measure=lambda state: {"step": state.step}, measure_every=4, report=report)
    _, history = jax.jit(run)(begin(member(0, members)))
    jax.effects_barrier()
    assert [int(step) for step, _ in told] == [4, 8, 12]
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(told))
    for place, (_, block) in enumerate(told):
        rows = slice(4 * place, 4 * place + 4)
        np.testing.assert_array_equal(block.loss, history.loss[rows])
        np.testing.assert_array_equal(block.metrics["twice"], history.metrics["twice"][rows])
        assert block.measurements["step"] == history.measurements["step"][place]
    told.clear()
    _, history = jax.jit(lambda m: fit.population(lambda one: run(begin(one)), m))(members)
    jax.effects_barrier()
    assert [step.tolist() for step, _ in told] == [[4, 4], [8, 8], [12, 12]]  # one call for all members
    np.testing.assert_array_equal(np.concatenate([block.loss for _, block in told], 1), history.loss)


def test_what_a_report_raises_reaches_the_caller():
    def report(step, history):
        raise RuntimeError("the log is full")

    def run():
        jax.block_until_ready(trained(parabola, optax.sgd(0.1), jnp.ones(2), report=report))
        jax.effects_barrier()

    with pytest.raises(jax.errors.JaxRuntimeError, match="the log is full"):
        run()


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
        ({"num_steps": 0}, "`num_steps` must be an integer of at least 1, got 0"),
        ({"num_steps": 10, "measure_every": 0}, "`measure_every` must be an integer of at least 1, got 0"),
        ({"num_steps": 2.0}, "`num_steps` must be an integer of at least 1, got 2.0"),
        ({"num_steps": 2**40}, "`num_steps` must be at most 2147483647, got 1099511627776"),
        ({"num_steps": 10, "measure_every": 3}, "must divide `num_steps`, got 3 and 10. Use num_steps=9"),
    ):
        with pytest.raises(ValueError, match=message):
            runner(**arguments)
