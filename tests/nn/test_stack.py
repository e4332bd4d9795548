"""A stack equals its stages run one after the other, in value and in every derivative, at every depth."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxact import activations, nn

WIDTH, MAX_DEPTH, BATCH = 6, 5, 7
STAGES = {"plain": nn.Plain, "pre": nn.PreAct, "post": nn.PostAct}
NORMS = {"none": None, "batch": nnx.BatchNorm, "layer": nnx.LayerNorm, "rms": nnx.RMSNorm}
BLOCKS = [(stage, norm) for stage in STAGES for norm in NORMS]


def make(stage, norm, activation=activations.tanh, max_depth=MAX_DEPTH, seed=0):
    make_stage = partial(STAGES[stage], WIDTH, activation, norm=NORMS[norm], sigma_b=0.1)
    return nn.Stack(make_stage, max_depth, rngs=nnx.Rngs(seed))


def inputs(seed=1):
    return jax.random.normal(jax.random.key(seed), (BATCH, WIDTH))


def unrolled(stack, x, depth, activation=None):
    """The stages as separate modules, one after the other: what the loop must equal."""
    graphdef, state = nnx.split(stack.stages)
    hidden = []
    for layer in range(depth):
        stage = nnx.merge(graphdef, jax.tree.map(lambda leaf, layer=layer: leaf[layer], state), copy=True)
        x = stage(x, activation=activation)
        hidden.append(x)
    return x, jnp.stack(hidden)


@pytest.mark.parametrize(("stage", "norm"), BLOCKS)
def test_every_way_of_running_equals_the_unrolled_stages(stage, norm):
    graphdef, state = nnx.split(make(stage, norm))
    x = inputs()

    def stack():
        return nnx.merge(graphdef, state, copy=True)

    @partial(jax.jit, static_argnums=0)
    def with_static_depth(depth):
        return stack()(x, depth), stack().trace(x, depth), unrolled(stack(), x, depth)

    @jax.jit
    def with_traced_depth(depth):
        return stack()(x, depth), stack()(x, depth, mode="forward"), stack().trace(x, depth)

    for depth in (1, 3, MAX_DEPTH):
        static, static_trace, (expected, hidden) = with_static_depth(depth)
        reverse, forward, trace = with_traced_depth(depth)
        for output in (static, reverse, forward):
            chex.assert_trees_all_close(output, expected, atol=1e-5)
        for each in (static_trace, trace):
            chex.assert_shape([each.hidden, each.preactivation], (MAX_DEPTH, BATCH, WIDTH))
            chex.assert_trees_all_close(each.hidden[:depth], hidden, atol=1e-5)
            chex.assert_trees_all_close(each.output, expected, atol=1e-5)
            assert not np.any(each.hidden[depth:])


@pytest.mark.parametrize(("stage", "norm"), BLOCKS)
def test_gradients_with_a_traced_depth_equal_those_of_the_unrolled_stages(stage, norm):
    with jax.enable_x64(True):
        depth = 4
        stack, x = make(stage, norm), inputs().astype(jnp.float64)
        graphdef, params, rest = nnx.split(stack, nnx.Param, ...)
        params, rest = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (params, rest))

        def loss(params, x, taps, run):
            return jnp.sum(jnp.sin(run(nnx.merge(graphdef, params, rest, copy=True), x, taps)))

        def looped(stack, x, taps):
            return stack(x, jnp.int32(depth), taps=taps)

        def reference(stack, x, taps):
            graphdef, state = nnx.split(stack.stages)
            for layer in range(depth):
                one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], state)
                x = nnx.merge(graphdef, one, copy=True)(x) + taps[layer]
            return x

        taps = jnp.zeros((MAX_DEPTH, BATCH, WIDTH))
        got, expected = (
            jax.jit(jax.grad(partial(loss, run=run), (0, 1, 2)))(params, x, taps)
            for run in (looped, reference)
        )
        chex.assert_tree_all_finite(got)
        chex.assert_trees_all_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("stage", STAGES)
def test_forward_mode_equals_reverse_mode(stage):
    stack, x = make(stage, "none"), inputs()
    depth = jnp.int32(3)
    forward = jax.jacfwd(lambda x: stack(x, depth, mode="forward"))(x[0])
    reverse = jax.jacrev(lambda x: stack(x, depth))(x[0])
    static = jax.jacfwd(lambda x: stack(x, 3))(x[0])
    chex.assert_trees_all_close(forward, reverse, atol=1e-5)
    chex.assert_trees_all_close(forward, static, atol=1e-5)


def test_hessian_vector_products_pass_through_a_traced_depth():
    stack, x = make("pre", "none"), inputs()[0]
    v = jnp.arange(1.0, WIDTH + 1)

    def scalar(x, depth):
        return jnp.sum(stack(x, depth) ** 2)

    got = jax.jvp(jax.grad(partial(scalar, depth=jnp.int32(3))), (x,), (v,))[1]
    expected = jax.hessian(partial(scalar, depth=3))(x) @ v
    chex.assert_trees_all_close(got, expected, rtol=1e-4)


def test_one_trace_serves_every_depth_and_activation():
    choices = (activations.relu, activations.tanh, activations.gelu)
    stack, x = make("plain", "none"), inputs()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def value_and_gradient(x, depth, choice):
        return jax.value_and_grad(lambda x: jnp.sum(stack(x, depth, choice)))(x)

    for depth in (1, 2, MAX_DEPTH):
        for index, activation in enumerate(choices):
            got = value_and_gradient(x, depth, activations.select(choices, index))
            reference = lambda x, d=depth, a=activation: jnp.sum(unrolled(stack, x, d, a)[0])  # noqa: E731
            chex.assert_trees_all_close(got, jax.value_and_grad(reference)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_batch_statistics_are_updated_in_the_layers_that_ran_and_nowhere_else(stage):
    x, depth = inputs(), 3
    stacks = [make(stage, "batch") for _ in range(3)]
    stacks[0](x, depth)
    stacks[1](x, jnp.int32(depth))
    graphdef, state = nnx.split(stacks[2].stages)
    h, means = x, []
    for layer in range(depth):
        one = nnx.merge(graphdef, jax.tree.map(lambda leaf, layer=layer: leaf[layer], state), copy=True)
        h = one(h)
        means.append(one.norm.mean[...])
    for stack in stacks[:2]:
        chex.assert_trees_all_close(stack.stages.norm.mean[:depth], jnp.stack(means), atol=1e-6)
        assert not np.any(stack.stages.norm.mean[depth:])
        np.testing.assert_array_equal(stack.stages.norm.var[depth:], 1.0)


def test_members_vmapped_equal_members_alone():
    x, depth = inputs(), jnp.int32(4)

    def value_and_gradient(key):
        stack = nn.Stack(partial(nn.PreAct, WIDTH, activations.gelu), MAX_DEPTH, rngs=nnx.Rngs(params=key))
        return jax.value_and_grad(lambda x: jnp.sum(stack(x, depth) ** 2))(x)

    keys = jax.random.split(jax.random.key(3), 2)
    together, run = jax.jit(jax.vmap(value_and_gradient))(keys), jax.jit(value_and_gradient)
    for index in range(2):
        alone = run(keys[index])
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=index: a[i], together), alone, rtol=1e-5, atol=1e-5
        )


def test_depth_outside_the_stack_is_refused():
    stack = make("plain", "none")
    for depth in (0, -1, MAX_DEPTH + 1, jnp.int32(9)):
        with pytest.raises(ValueError, match=f"`depth` must lie between 1 and max_depth = {MAX_DEPTH}, got"):
            stack(inputs(), depth)
    with pytest.raises(ValueError, match="`depth` must be an integer"):
        stack(inputs(), 2.5)
    with pytest.raises(ValueError, match="`max_depth` must be an integer of at least 1, got 0"):
        make("plain", "none", max_depth=0)
    with pytest.raises(ValueError, match='`mode` must be "reverse" or "forward"'):
        stack(inputs(), 2, mode="backward")


def test_compile_time_does_not_grow_with_depth():
    """The compiled programs for 10 and 1,000 layers have the same number of instructions."""

    def instructions(max_depth):
        stack = make("plain", "none", max_depth=max_depth)
        graphdef, params = nnx.split(stack)
        gradient = jax.grad(lambda p, x, d: jnp.sum(nnx.merge(graphdef, p)(x, d)))
        return jax.jit(gradient).lower(params, inputs(), jnp.int32(2)).as_text().count("\n")

    assert instructions(1000) == instructions(10)


@pytest.mark.parametrize("stage", STAGES)
def test_an_activations_own_arrays_have_the_same_gradient_at_a_traced_depth(stage):
    with jax.enable_x64(True):
        stack, x = make(stage, "none"), inputs().astype(jnp.float64)

        def loss(slope, depth):
            leaky = jax.tree_util.Partial(lambda s, h: jnp.where(h > 0, h, s * h), slope)
            return jnp.sum(stack(x, depth, leaky) ** 2)

        slope = jnp.linspace(0.1, 0.5, WIDTH)
        static = jax.grad(loss)(slope, 3)
        assert np.abs(static).min() > 0
        chex.assert_trees_all_close(jax.grad(loss)(slope, jnp.int32(3)), static, rtol=1e-5)


def test_a_bound_for_a_depth_that_is_not_there_is_refused():
    stack = make("plain", "none")
    for depth in (0, -3, MAX_DEPTH + 1):
        with pytest.raises(ValueError, match="`depth` must lie between 1 and"):
            stack.log_lipschitz(depth)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_traced_depth_that_is_not_there_gives_nan(mode):
    stack, x = make("pre", "none"), inputs()
    run = jax.jit(lambda depth: stack(x, depth, mode=mode))
    for depth in (0, -1, MAX_DEPTH + 1):
        assert np.isnan(run(depth)).all()
    chex.assert_trees_all_close(run(2), stack(x, 2), atol=1e-6)


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("is_static", [True, False])
@pytest.mark.parametrize(("stage", "norm"), BLOCKS)
def test_observe_keeps_what_a_look_makes_of_every_stage(stage, norm, is_static, is_training):
    stack, depth = make(stage, norm), 3 if is_static else jnp.int32(3)
    stack.train() if is_training else stack.eval()
    graphdef, state = nnx.split(stack)

    def look(hidden, preactivation):
        return {"largest": jnp.abs(hidden).max(), "both": jnp.mean(hidden * preactivation, 0)}

    def run(method):
        copy = nnx.merge(graphdef, state, copy=True)
        return method(copy, inputs()), nnx.split(copy)[1]

    (output, seen), after = run(lambda stack, x: stack.observe(look, x, depth))
    trace, _ = run(lambda stack, x: stack.trace(x, depth))
    called, after_call = run(lambda stack, x: stack(x, depth))
    expected = look(trace.hidden[2], trace.preactivation[2])
    chex.assert_trees_all_close(jax.tree.map(lambda rows: rows[2], seen), expected, atol=1e-5)
    assert not np.any(seen["largest"][3:])
    assert np.all(seen["largest"][:3] > 0)
    chex.assert_trees_all_close((output, trace.output), (called, called), atol=1e-5)
    chex.assert_trees_all_close(after, after_call, atol=1e-5)  # running statistics too
