"""Networks of any kind in bfloat16 are nearly those of float32; with layers recomputed they are the same."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jaxact import activations, fit, nn
from train import blocks, computing, config
from train.chains import Constrained
from train.optimizers import Sgd
from train.plan import flops
from train.tasks import Digits
from train.trial import Trial, parts

Hungry = type(config.load(Path(__file__).with_name("hungry_study.py")))
SETTING = (jnp.asarray(3), activations.select((activations.relu, activations.gelu), 1))
NETWORKS = {
    "plain": ("dense", "plain", SETTING),
    "pre_activation-bn, static depth": ("dense", "pre_activation-bn", ()),
    "post_activation-ln": ("dense", "post_activation-ln", SETTING),
    "conv pre_activation-bn": ("conv", "pre_activation-bn", SETTING),
    "conv post_activation-bn, static depth": ("conv", "post_activation-bn", ()),
    "spectral": ("constrained", "spectral", ()),
    "orthogonal": ("constrained", "orthogonal", ()),
}


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


def made(name, digits, max_depth=4):
    """A network's functions, a batch of its inputs, and its setting."""
    kind, block, setting = NETWORKS[name]
    if kind == "constrained":
        net = nn.functional(lambda rngs: Constrained(block, (64, 12, 12, 10), activations.tanh, rngs=rngs))
        return net, digits.flat(), setting
    data = blocks.inputs_for(kind, digits)
    sizes = {"width": 6, "max_depth": max_depth, "activation": activations.tanh}
    return blocks.network(data, block, kind=kind, **sizes), data, setting


def gradient(net, data, setting, **options):
    """A function of the parameters and variables: loss, updated variables and gradient on a batch, in training mode."""
    inputs, labels = (jnp.asarray(each[:16]) for each in (data.train_inputs, data.train_labels))

    def loss(params, variables):
        logits, updated = net.apply(params, variables, inputs, *setting, training=True, **options)
        return -jax.nn.log_softmax(logits)[jnp.arange(16), labels].mean(), updated

    return jax.value_and_grad(loss, has_aux=True)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


def leaves(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("name", NETWORKS)
def test_narrow_are_products_and_hidden_states_and_recomputed_layers_change_nothing(name, digits):
    net, data, setting = made(name, digits)
    narrow = computing.computed(net, dtype="bfloat16", remat="none")
    params, variables = net.init(jax.random.key(0))
    (value, updated), slope = jax.jit(gradient(narrow, data, setting))(params, variables)
    for before, after in ((params, slope), (variables, updated)):
        assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, before)
    assert value.dtype == jnp.float32
    found = [*equations(jax.make_jaxpr(gradient(narrow, data, setting))(params, variables).jaxpr)]
    dots = [each for each in found if each.primitive.name == "dot_general"]
    of_a_batch = [each for each in dots if any(16 in each.aval.shape for each in each.invars)]
    assert {str(var.aval.dtype) for each in of_a_batch for var in each.invars} == {"bfloat16"}
    carried = [v.aval for each in found if each.primitive.name in ("scan", "while") for v in each.outvars]
    assert not [aval for aval in carried if aval.shape[:1] == (16,) and aval.dtype == jnp.float32]
    (wide, _), exact = jax.jit(gradient(net, data, setting))(params, variables)
    np.testing.assert_allclose(value, wide, rtol=0.02)
    cosine = leaves(slope) @ leaves(exact) / (jnp.linalg.norm(leaves(slope)) * jnp.linalg.norm(leaves(exact)))
    assert cosine > 0.99
    again = computing.computed(net, dtype="float32", remat="layers")
    (same, _), recomputed = jax.jit(gradient(again, data, setting))(params, variables)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), (same, recomputed), (wide, exact)
    )


@pytest.mark.parametrize(
    ("kind", "block", "setting"), [("dense", "plain", (jnp.asarray(49),)), ("conv", "post_activation-bn", ())]
)
def test_recomputing_layers_takes_much_less_memory_for_deep_networks(kind, block, setting, digits):
    data = blocks.inputs_for(kind, digits)
    net = blocks.network(data, block, kind=kind, width=4, max_depth=49, activation=activations.tanh)
    params, variables = jax.eval_shape(net.init, jax.random.key(0))
    used = {}
    for remat in ("none", "layers"):
        program = jax.jit(gradient(computing.computed(net, dtype="float32", remat=remat), data, setting))
        used[remat] = program.lower(params, variables).compile().memory_analysis().temp_size_in_bytes
    # 49 hidden states become 7 and 7.
    assert used["layers"] < 0.65 * used["none"]


def test_a_plan_counts_one_more_forward_pass_where_layers_are_recomputed(digits):
    net, data, setting = made("plain", digits)
    given = net.init(jax.random.key(0))
    none, layers = (
        flops(
            jax.make_jaxpr(gradient(computing.computed(net, dtype="float32", remat=remat), data, setting))(
                *given
            ),
            3,
        )
        for remat in ("none", "layers")
    )
    assert layers - none == 3 * 2 * 16 * 6 * 6


def test_a_network_that_cannot_recompute_is_refused():
    net = nn.Functional(lambda key: ({}, {}), lambda params, variables, x, training=False: (x, variables))
    with pytest.raises(ValueError, match="`remat` must be none for a network whose `apply` takes no `remat`"):
        computing.computed(net, dtype="float32", remat="layers")


def test_networks_trained_in_bfloat16_are_as_accurate_and_are_measured_in_float32(digits):
    net, data, _ = made("pre_activation-bn, static depth", digits)
    found, seen = {}, []
    for dtype in ("float32", "bfloat16"):
        trial = Trial(
            net, parts(data), members=fit.grid(seeds=(0, 1), learning_rate=(0.05,)), optimizer=Sgd(),
            num_steps=150, batch_size=32, evaluate={"test": "test"}, compute_dtype=dtype,
        )  # fmt: skip
        states, curves = trial.train(trial.start())
        found[dtype] = curves["test_accuracy"][:, -1].mean()
        assert {str(leaf.dtype) for leaf in jax.tree.leaves((states.params, states.variables))} == {"float32"}
        moments = [
            leaf for leaf in jax.tree.leaves(states.opt_state) if jnp.issubdtype(leaf.dtype, jnp.inexact)
        ]
        assert {str(leaf.dtype) for leaf in moments} == {"float32"}
        one = jax.tree.map(lambda leaf: leaf[0], states)
        jaxpr = jax.make_jaxpr(
            lambda one, trial=trial: trial.output(one, data.test_inputs[:5], method="features")
        )(one)
        seen += [str(var.aval.dtype) for each in equations(jaxpr.jaxpr) for var in each.outvars]
    assert found["float32"] > 0.6
    assert abs(found["bfloat16"] - found["float32"]) < 0.04
    assert "bfloat16" not in seen


def test_a_study_takes_it_without_a_line_of_its_own_and_its_result_names_it():
    study = Hungry(kind="dense", compute_dtype="bfloat16", remat="layers", seeds=(0,))
    part = study.run(study.cells()[0], progress=lambda *_: None)
    plain = replace(study, compute_dtype="float32", remat="none").run(
        study.cells()[0], progress=lambda *_: None
    )
    assert (part.attrs["remat"], plain.attrs["remat"]) == ("layers", "none")
    assert (part.attrs["compute_dtype"], plain.attrs["compute_dtype"]) == ("bfloat16", "float32")
    np.testing.assert_allclose(part.loss, plain.loss, rtol=0.05)
    assert np.any(part.loss.to_numpy() != plain.loss.to_numpy())
    with pytest.raises(ValueError, match=r"`compute_dtype` must be among float32, bfloat16, got 'float16'"):
        replace(study, compute_dtype="float16")
    with pytest.raises(ValueError, match=r"`remat` must be among none, layers, got 'all'"):
        replace(study, remat="all")
