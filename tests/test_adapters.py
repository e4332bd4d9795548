"""Models of every framework become plain functions of one example; what is no model is refused with a remedy."""

import math
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from user_models import write_modules

from jaxact import adapters, lipschitz


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The modules in the current directory, whence they are imported."""
    folder = tmp_path_factory.mktemp("adapted")
    write_modules(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.path", [*sys.path])
        yield folder
    for name in [name for name in sys.modules if name.startswith("certify_")]:
        del sys.modules[name]


def closed_form(name, shape, **options):
    fn = adapters.on_one_example(adapters.import_model(name), shape, **options)
    return fn, lipschitz.certify(fn.call, jnp.zeros(shape, jnp.float32)).value


def test_a_batch_norm_of_nnx_stands_in_eval_mode():
    fn, value = closed_form("certify_nnx:model", (3,))
    kernel = np.asarray(sys.modules["certify_nnx"].model.linear.kernel[...], np.float64)
    exact = np.linalg.norm(kernel / np.sqrt(np.arange(1.0, 5.0) + 1e-5), 2)
    assert value == pytest.approx(exact, rel=1e-5)  # its own scale is computed in float32
    assert (fn.model.kind, fn.called_on) == ("NNX module in eval mode", (1, 3))


def test_a_pair_of_linen_and_its_variables_is_a_model():
    fn, value = closed_form("certify_linen:pair", (3,))
    _, variables = sys.modules["certify_linen"].pair
    kernel = np.asarray(variables["params"]["kernel"], np.float64)
    assert fn.called_on == (1, 3)
    assert value == pytest.approx(np.linalg.norm(kernel, 2), rel=1e-9)


def test_a_function_may_return_an_equinox_module_with_dropout():
    eqx = pytest.importorskip("equinox")
    fn, value = closed_form("certify_equinox:model", (3,))
    weight = np.asarray(sys.modules["certify_equinox"].model().layers[0].weight, np.float64)
    assert issubclass(eqx.nn.Linear, eqx.Module)
    assert fn.called_on == (3,)
    assert fn.model.kind == "Equinox module in inference mode"
    assert value == pytest.approx(np.linalg.norm(weight, 2), rel=1e-9)


@pytest.mark.parametrize(
    ("name", "called_on", "value"),
    [
        ("certify_bare:factory", (3,), 3),
        ("certify_bare:only_batches", (1, 3), 2),
        ("certify_bare:many", (3,), 1),
        ("certify_package.inner:Space.model", (3,), 2),
    ],
)
def test_functions_are_called_as_they_want_to_be(name, called_on, value):
    fn, found = closed_form(name, (3,))
    assert fn.called_on == called_on
    assert found == pytest.approx(value, rel=1e-9)


def test_a_factory_is_called_once():
    adapters.import_model("certify_bare:factory")
    calls = sys.modules["certify_bare"].calls
    before = len(calls)
    adapters.import_model("certify_bare:factory")
    assert len(calls) == before + 1


def test_a_class_of_a_module_is_called_where_all_its_arguments_have_defaults():
    from flax import nnx

    class Ready(nnx.Module):
        def __init__(self, width: int = 3):
            self.linear = nnx.Linear(3, width, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.linear(x)

    assert adapters.as_parametric(Ready).kind == "NNX module"
    with pytest.raises(ValueError, match="is a class that needs arguments, Linear"):
        adapters.as_parametric(nnx.Linear)


def test_what_is_a_batch_can_be_said():
    fn, value = closed_form("certify_nnx:pooled", (2, 3), batch=False)
    assert fn.output_shapes == ((3,),)
    assert value == pytest.approx(1 / math.sqrt(2), rel=1e-9)
    fn, value = closed_form("certify_nnx:pooled", (2, 3), batch=True)
    assert fn.output_shapes == ((2, 3),)
    assert value == pytest.approx(1, rel=1e-9)


def test_a_network_of_ours_has_a_form_for_forward_mode():
    from flax import nnx

    from jaxact import activations, nn

    network = nn.MLP(3, 8, 2, max_depth=2, activation=activations.tanh, rngs=nnx.Rngs(0))
    fn = adapters.on_one_example(adapters.as_function(network), (3,))
    x, v = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.5, -0.2])
    assert fn.called_on == (1, 3)
    pulled = jax.vmap(lambda u: jax.vjp(fn.call, x)[1](u[None])[0] @ v)(jnp.eye(2))
    np.testing.assert_allclose(fn.tangent(x, v)[0], pulled, rtol=2e-5)


def haiku_models():
    """(pair, exact parameters' names, function in NumPy), without state, with it, and without a key."""
    hk = pytest.importorskip("haiku")
    x = jnp.ones((2, 3))

    def plain(x):
        return hk.nets.MLP([4, 2], activation=jnp.tanh, name="net")(x)

    def normed(x, *, is_training=False):
        h = hk.Linear(4, name="first")(x)
        return hk.BatchNorm(True, True, 0.9, name="norm")(h, is_training=is_training)

    def by_hand(params, x):
        first, last = (params[f"net/~/linear_{k}"] for k in range(2))
        return np.tanh(x @ first["w"] + first["b"]) @ last["w"] + last["b"]

    plain_names = tuple(f"net/~/linear_{k}/{name}" for k in range(2) for name in "bw")
    with_key = hk.transform(plain)
    params = with_key.init(jax.random.key(0), x)
    state = hk.transform_with_state(normed)
    variables = state.init(jax.random.key(0), x, is_training=True)
    moved = (variables[0], jax.tree.map(lambda leaf: leaf + 1 if leaf.ndim else leaf, variables[1]))
    mean, var = (np.asarray(moved[1][f"norm/~/{name}_ema"]["average"]) for name in ("mean", "var"))

    def normed_by_hand(params, x):
        z = x @ params["first"]["w"] + params["first"]["b"]
        return (z - mean) / np.sqrt(var + 1e-5) * params["norm"]["scale"] + params["norm"]["offset"]

    return {
        "with a key": ((with_key, params), plain_names, by_hand),
        "without": ((hk.without_apply_rng(with_key), params), plain_names, by_hand),
        "with state": ((state, moved), ("first/b", "first/w", "norm/offset", "norm/scale"), normed_by_hand),
    }


@pytest.mark.parametrize("which", ["with a key", "without", "with state"])
def test_haiku_functions_are_models_and_their_parameters_are_named_by_module(which):
    pair, names, by_hand = haiku_models()[which]
    model, plain = adapters.as_parametric(pair), adapters.as_function(pair)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert model.names == names
    expected = by_hand(model.params, x)
    np.testing.assert_allclose(model.call(model.params, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plain.call(x), expected, rtol=1e-4, atol=1e-5)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, model.params)
    again = adapters.as_parametric(model.rebuild(doubled))
    assert type(model.rebuild(doubled)[0]) is type(pair[0])
    np.testing.assert_allclose(again.call(again.params, x), by_hand(doubled, x), rtol=1e-4, atol=1e-5)


def test_haiku_in_training_mode_or_without_parameters_is_refused():
    hk = pytest.importorskip("haiku")
    x = jnp.ones((2, 3))
    dropping = hk.transform(lambda x: hk.dropout(hk.next_rng_key(), 0.5, hk.Linear(2)(x)))
    norm = hk.transform_with_state(lambda x: hk.BatchNorm(True, True, 0.9)(x, is_training=True))
    refused = [
        ((dropping, dropping.init(jax.random.key(0), x)), "training mode.*is_training=False"),
        ((norm, norm.init(jax.random.key(0), x)), "running it changes"),
    ]
    for pair, words in refused:
        model = adapters.as_parametric(pair)
        with pytest.raises(ValueError, match=words):
            model.call(model.params, x)
    with pytest.raises(ValueError, match=r"pair \(params, state\) of a function with state"):
        adapters.as_parametric((norm, {}))
    with pytest.raises(ValueError, match="without its parameters"):
        adapters.as_function(norm)


@pytest.mark.parametrize("model", [lambda x, y: x + y, lambda x, *, scale: scale * x])
def test_what_needs_more_than_an_array_is_no_model(model):
    with pytest.raises(ValueError, match="must be a function of one array"):
        adapters.as_function(model)


def test_a_function_that_fails_inside_is_not_blamed_for_its_arguments():
    def model(x):
        return (lambda a, b: a + b)(x)

    with pytest.raises(
        ValueError, match=r"must be that of one example.*missing 1 required positional"
    ) as caught:
        adapters.on_one_example(adapters.as_function(model), (3,))
    assert caught.value.argument == "shape"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "it is an int"),
        (lambda: 3, "it returns an int"),
        ((1, 2, 3), "got a tuple of 3"),
    ],
)
def test_what_is_no_model_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        adapters.as_function(value, name="mine")


def test_a_linen_module_that_needs_a_flag_is_told_the_function_that_gives_it():
    class Flagged(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(2)(x)

    pair = Flagged(), Flagged().init(jax.random.key(0), jnp.zeros((1, 3)), train=False)
    with pytest.raises(ValueError, match=r"Write lambda x: net\.apply\(variables, x, train=False\)\.$"):
        adapters.as_function(pair)
