"""One input or a batch, byte order, and what no measurement takes: of every function that is given inputs alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxact import activations, lipschitz, numerics, probes

KEY = jax.random.key(0)
W = jax.random.normal(KEY, (12, 3))


TAKING_INPUTS = {
    "jacobian": probes.jacobian,
    "singular_values": probes.singular_values,
    "ten largest": lambda fn, x: probes.singular_values(fn, x, 1),
    "spectral_density": lambda fn, x: probes.spectral_density(fn, x, key=KEY, num_probes=2, num_steps=2),
    "lower_bound": lambda fn, x: lipschitz.lower_bound(fn, x, key=KEY, num_steps=1),
}
TAKING_ONE = {
    "clever": lambda fn, x: lipschitz.clever(fn, x, 0.1, key=KEY, num_groups=10, group_size=2),
    "certify": lipschitz.certify,
}
READINGS = {  # name -> (fn of ONE input, x, whether x is one, shape of one input)
    "vector": (lambda x: jnp.tanh(x) @ W, np.ones(12), True, (12,)),
    "batch": (lambda x: jnp.tanh(x) @ W, np.ones((4, 12)), False, (12,)),
    "batch of one": (lambda x: jnp.tanh(x) @ W, np.ones((1, 12)), False, (12,)),
    "with a batch axis inside": (lambda x: (x[None] @ W)[0], np.ones((4, 12)), False, (12,)),
    "elementwise": (jnp.tanh, np.ones((4, 12)), False, (12,)),
    "one image": (lambda x: x.reshape(12) @ W, np.ones((2, 6, 1)), True, (2, 6, 1)),
    "images": (lambda x: x.reshape(12) @ W, np.ones((4, 2, 6, 1)), False, (2, 6, 1)),
    "one image in a batch": (lambda x: x.reshape(12) @ W, np.ones((1, 2, 6, 1)), False, (2, 6, 1)),
    "one input that is a row": (lambda x: x[:, :6] @ W[:6], np.ones((1, 12)), True, (1, 12)),
    "number": (jnp.sin, np.float32(1), True, ()),
    "vector of an elementwise": (jnp.sin, np.ones(4), True, (4,)),
    "numbers": (lambda t: jax.lax.cond(t > 0, jnp.sin, jnp.cos, t), np.ones(4), False, ()),
}


@pytest.mark.parametrize("name", READINGS)
def test_one_input_and_a_batch_are_told_apart_by_one_rule(name):
    fn, x, is_single, shape = READINGS[name]
    x = np.asarray(x, np.float32)
    found = numerics.read_inputs(fn, x)
    assert (found.is_single, found.batch.shape[1:]) == (is_single, shape)
    batch = () if is_single else x.shape[:1]
    n, m = int(np.prod(shape)), int(np.prod(found.output.shape))
    J = probes.jacobian(fn, x)
    assert J.shape == (*batch, m, n)
    expected = jnp.linalg.svd(J, compute_uv=False)
    assert expected.shape == (*batch, min(m, n))
    np.testing.assert_allclose(probes.singular_values(fn, x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(probes.singular_values(fn, x, 1), expected[..., :1], rtol=1e-5, atol=1e-6)
    density = probes.spectral_density(fn, x, key=KEY, num_probes=3, num_steps=n)
    assert density.nodes.shape == (*batch, 3, n)
    assert density.width.shape == batch
    lower = lipschitz.lower_bound(fn, x, key=KEY, num_steps=0)
    assert lower.input.shape == shape
    np.testing.assert_allclose(lower.value, expected.max(), rtol=1e-5)


@pytest.mark.parametrize("name", READINGS)
def test_a_center_and_an_example_are_one_input_whatever_their_shape(name):
    fn, x, is_single, _ = READINGS[name]
    x = np.asarray(x, np.float32)
    one = x if is_single else x[0]
    linear = lambda x: 3 * x  # noqa: E731
    assert lipschitz.clever(linear, one, 0.1, key=KEY, num_groups=10, group_size=2).estimate == pytest.approx(
        3
    )
    assert lipschitz.certify(linear, one).value == pytest.approx(3)
    if not is_single and name.endswith("images"):
        with pytest.raises((TypeError, ValueError)):
            lipschitz.certify(fn, x)


@pytest.mark.parametrize("name", TAKING_INPUTS | TAKING_ONE)
def test_big_endian_arrays_are_taken_as_any_other(name):
    call = (TAKING_INPUTS | TAKING_ONE)[name]
    x = np.linspace(-1, 1, 12)
    fn = lambda x: jnp.tanh(x) @ W  # noqa: E731
    # What a certificate says of its own seconds differs from call to call.
    leaves = [
        [np.asarray(leaf) for leaf in jax.tree.leaves(call(fn, x.astype(dtype)))] for dtype in ("<f4", ">f4")
    ]
    assert leaves[0]
    for little, big in zip(*leaves, strict=True):
        np.testing.assert_array_equal(little, big)


def test_big_endian_arrays_are_taken_by_what_reads_no_function():
    big = np.linspace(-1, 1, 12).astype(">f4").reshape(3, 4)
    little = big.astype("<f4")
    np.testing.assert_array_equal(numerics.native(big), little)
    assert numerics.native(big).dtype.isnative
    for name in activations.names():
        if "(" not in name:
            activation = activations.parse(name)
            np.testing.assert_array_equal(activation(big), activation(little), err_msg=name)
    layers = lambda z: probes.layer_statistics(z[None], jnp.tanh, hidden=z[None])  # noqa: E731
    np.testing.assert_array_equal(np.stack(layers(big)), np.stack(layers(little)))
    norms = lambda w: probes.gradient_norms(lambda w: jnp.sum(w**2), w)[0]  # noqa: E731
    np.testing.assert_array_equal(norms(big), norms(little))
    np.testing.assert_array_equal(probes.spectrum_summary(abs(big)), probes.spectrum_summary(abs(little)))
    for method in ("product", "absolute", "eclipse_fast", "ellipsoid"):
        bound = lambda w: float(lipschitz.upper_bound([w, w.T], activations.relu, method=method))  # noqa: B023, E731
        assert bound(big) == bound(little)
    assert lipschitz.gram_norm(big) == lipschitz.gram_norm(little)
    assert lipschitz.dense_norm(big) == lipschitz.dense_norm(little)
    mean = lambda v: numerics.gaussian_expectation(jnp.square, variance=v)  # noqa: E731
    np.testing.assert_array_equal(mean(abs(big)), mean(abs(little)))


NO_ARRAYS = {
    "dict": {"a": jnp.ones(3)},
    "None": None,
    "words": "a word",
    "objects": np.array([None, 1.0]),
    "unlike rows": [[1.0, 2.0], [3.0]],
    "integers": np.arange(12),
    "truths": np.ones(12, bool),
    "complex": np.ones(12, np.complex64),
}


@pytest.mark.parametrize("given", NO_ARRAYS)
@pytest.mark.parametrize("name", TAKING_INPUTS | TAKING_ONE)
def test_what_is_no_real_array_is_refused_by_name(name, given):
    with pytest.raises(TypeError, match=r"`(x|inputs|center|example)` must be .*real floating-point"):
        (TAKING_INPUTS | TAKING_ONE)[name](jnp.tanh, NO_ARRAYS[given])


class _Linen(linen.Module):
    spatial: bool

    @linen.compact
    def __call__(self, x, training):
        x = linen.Conv(3, (3, 3))(x) if self.spatial else linen.Dense(6)(x)
        x = linen.BatchNorm(use_running_average=not training)(x)
        return linen.Dense(2)(jnp.tanh(x).reshape(len(x), -1))


class _NNX(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(12, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.norm(self.dense(x)))


@pytest.mark.parametrize("name", TAKING_INPUTS | TAKING_ONE)
@pytest.mark.parametrize("spatial", [False, True])
def test_a_linen_batch_norm_in_training_mode_is_refused(name, spatial):
    model, shape = _Linen(spatial), ((3, 4, 1) if spatial else (12,))
    variables = model.init(KEY, jnp.ones((2, *shape)), False)
    training = lambda x: model.apply(variables, x[None], True, mutable=["batch_stats"])[0][0]  # noqa: E731
    call = (TAKING_INPUTS | TAKING_ONE)[name]
    x = jnp.ones(shape) if name in TAKING_ONE else jnp.ones((1, *shape))
    with pytest.raises(numerics.FunctionError, match=r"inference mode.*use_running_average"):
        call(jax.jit(training) if spatial else training, x)
    call(lambda x: model.apply(variables, x[None], False)[0], x)


@pytest.mark.parametrize("name", TAKING_INPUTS | TAKING_ONE)
def test_an_nnx_model_in_training_mode_is_refused(name):
    model = _NNX(nnx.Rngs(0))
    fn = lambda x: model(x[None])[0]  # noqa: E731
    call = (TAKING_INPUTS | TAKING_ONE)[name]
    with pytest.raises(numerics.FunctionError, match=r"inference mode, model\.eval\(\)"):
        call(fn, jnp.ones(12))
    model.eval()
    call(fn, jnp.ones(12))


def test_a_loss_that_changes_a_model_is_refused():
    model = _NNX(nnx.Rngs(0))
    with pytest.raises(numerics.FunctionError, match=r"`loss` must not change a model's state.*model\.eval"):
        probes.gradient_norms(lambda w: jnp.sum(model(w)), jnp.ones((2, 12)))


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.linalg.norm(x[None] @ W),
        lambda x: jnp.mean(x[None] @ W, 0),
        lambda x: linen.LayerNorm(use_bias=False, use_scale=False).apply({}, x[None])[0],
        lambda x: x @ ((V := W[None]) - V.mean((0, 1))[None] / jnp.sqrt(V.var((0, 1))))[0],
    ],
)
def test_what_is_no_batch_norm_is_not_taken_for_one(fn):
    assert np.isfinite(probes.jacobian(fn, jnp.linspace(-1.0, 1.0, 12))).all()


def test_what_jax_cannot_trace_is_told_in_sentences():
    with pytest.raises(
        numerics.FunctionError, match=r"got The numpy.*float32\[12\]\. Write it with jax\.numpy"
    ):
        lipschitz.certify(lambda x: np.sin(x), jnp.ones(12))
