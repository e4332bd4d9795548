"""The recurrent network against flax's own loop, a loop in numpy and the laws that its weights promise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxact import activations, nn, probes

X = jax.random.normal(jax.random.key(0), (4, 7, 3))


def make(**options):
    options = {"activation": activations.tanh, "rngs": nnx.Rngs(0), **options}
    return nn.RNN(3, 16, 2, **options)


@pytest.mark.parametrize("name", ["tanh", "relu", "gelu"])
def test_hidden_states_are_those_of_flax(name):
    network = make(activation=activations.parse(name), weights="orthogonal", gain=1.2)
    np.testing.assert_allclose(network.hidden(X), nnx.RNN(network.cell)(X), atol=1e-6)


def test_outputs_are_those_of_a_loop_in_numpy():
    network = make(weights="gaussian", gain=1.5, input_scale=0.5)
    W, U, V = (
        np.asarray(each.kernel[...]) for each in (network.cell.dense_h, network.cell.dense_i, network.head)
    )
    h, outputs = np.zeros((4, 16)), []
    for t in range(7):
        h = np.tanh(h @ W + np.asarray(X)[:, t] @ U)
        outputs.append(h @ V)
    outputs = np.stack(outputs, 1)
    np.testing.assert_allclose(network(X), outputs, atol=1e-5)
    np.testing.assert_allclose(network(X, last=np.int64(2)), outputs[:, -2:], atol=1e-5)
    np.testing.assert_allclose(network(X[1]), outputs[1], atol=1e-5)  # one sequence, no batch


def test_recurrent_weights_follow_their_law():
    def kernel(**law):
        network = nn.RNN(1, 400, 1, activation=jnp.tanh, rngs=nnx.Rngs(1), **law)
        return np.asarray(network.cell.dense_h.kernel)

    gaussian = kernel(weights="gaussian", gain=1.5)
    assert gaussian.std() * 20 == pytest.approx(1.5, rel=5 / (2 * 400**2) ** 0.5)
    assert np.abs(np.linalg.eigvals(gaussian)).max() == pytest.approx(1.5, rel=0.05)  # circular law
    orthogonal = kernel(weights="orthogonal", gain=0.7)
    np.testing.assert_allclose(orthogonal @ orthogonal.T, 0.49 * np.eye(400), atol=1e-5)
    np.testing.assert_array_equal(kernel(weights="identity", gain=2.0), 2 * np.eye(400))


def test_a_relu_network_with_identity_weights_adds_up_what_it_is_given():
    network = make(activation=activations.relu, weights="identity")
    network.cell.dense_i.kernel[...] = jnp.abs(network.cell.dense_i.kernel[...])
    x = jnp.abs(X)
    np.testing.assert_allclose(network.hidden(x), np.cumsum(network.cell.dense_i(x), 1), rtol=1e-5)


def test_one_program_serves_every_activation_and_a_traced_gain():
    choices = (activations.tanh, activations.relu)
    plain = nn.functional(partial(nn.RNN, 3, 16, 2, activation=activations.tanh, weights="orthogonal"))

    @jax.jit
    def run(key, gain, index):
        params, variables = plain.init(key, gain=gain)
        return plain.apply(params, variables, X, activations.select(choices, index))[0]

    for index, f in enumerate(choices):
        alone = nn.RNN(
            3, 16, 2, activation=f, weights="orthogonal", gain=0.8, rngs=nnx.Rngs(params=jax.random.key(5))
        )
        np.testing.assert_allclose(run(jax.random.key(5), jnp.float32(0.8), index), alone(X), atol=1e-5)
    assert run._cache_size() == 1


def test_float64_stays_float64_as_in_a_deep_network():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal((7, 3)))
        network = make(weights="orthogonal")
        deep = nn.MLP(3, 16, 2, max_depth=1, activation=jnp.tanh, rngs=nnx.Rngs(0))
        assert network(x).dtype == deep(x).dtype == jnp.float64
        W, U = (
            np.asarray(each.kernel[...], np.float64) for each in (network.cell.dense_h, network.cell.dense_i)
        )
        h = np.zeros(16)
        for each in np.asarray(x):
            h = np.tanh(h @ W + each @ U)
        np.testing.assert_allclose(network.hidden(x)[-1], h, rtol=1e-12)


def test_gradients_reach_all_parameters():
    network = make(weights="orthogonal")
    graphdef, params = nnx.split(network)
    (norms,) = probes.gradient_norms(lambda p: jnp.sum(nnx.merge(graphdef, p)(X) ** 2), params)
    assert all(float(norm) > 0 for norm in jax.tree.leaves(norms))
    assert len(jax.tree.leaves(norms)) == 5


def test_what_cannot_be_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r'`weights` must be one of "gaussian", "orthogonal", "identity", got \'id\''
    ):
        make(weights="id")
    with pytest.raises(ValueError, match="`width` must be an integer of at least 1, got 0"):
        nn.RNN(3, 0, 2, activation=jnp.tanh, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="`activation` must be an elementwise function"):
        make(activation="tanh")


@pytest.mark.parametrize("weights", ["gaussian", "orthogonal", "identity"])
@pytest.mark.parametrize("name", ["gain", "input_scale"])
def test_scales_are_refused_by_their_own_name_under_every_law(weights, name):
    for value in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"`{name}` must be finite and nonnegative, got {value}"):
            make(weights=weights, **{name: value})
    with pytest.raises(TypeError, match=rf"`{name}` must be one real number, got .* Make a network for each"):
        make(weights=weights, **{name: jnp.ones(16)})


@pytest.mark.parametrize("last", [0, -1, 8, 2.0])
def test_no_more_is_read_out_than_there_is(last):
    rule = "at most 7" if last == 8 else "an integer of at least 1"
    with pytest.raises(ValueError, match=rf"`last` must be {rule}, got {last}\. Use last=None for all times"):
        make()(X, last=last)


@pytest.mark.parametrize("shape", [(), (3,), (0, 3), (4, 0, 3), (7, 2)])
def test_inputs_that_are_no_sequence_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"`x` must be \[\*batch, time, 3\] with at least one time, got shape"
    ):
        make()(jnp.ones(shape))


def test_complex_inputs_are_refused():
    with pytest.raises(TypeError, match="`x` must be real floating-point, got dtype complex64"):
        make()(X + 0j)
