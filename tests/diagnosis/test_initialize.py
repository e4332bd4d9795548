"""What an initialisation makes of a model, against second moments by hand and by NumPy, and what it leaves alone."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxact
from jaxact import activations, theory

KEY = jax.random.key(3)
WIDTH = 64


def normal(number, *shape, scale=1.0):
    return scale * jax.random.normal(jax.random.fold_in(KEY, number), shape)


X = normal(99, 512, WIDTH)


def mlp(act, products=None):
    """Products go into `products` as they come."""
    kept = [] if products is None else products

    def fn(params, x):
        for w, b in params[:-1]:
            kept.append(x @ w)
            x = act(kept[-1] + b)
        kept.append(x @ params[-1][0])
        return kept[-1] + params[-1][1]

    return fn


def layers(depth, width=WIDTH, scale=0.1):
    return [(normal(k, width, width, scale=scale), normal(50 + k, width)) for k in range(depth)]


def scanned(w, x, kept=None):
    def body(h, w):
        z = jax.nn.relu(h) @ w
        return h + z, z

    h, z = jax.lax.scan(body, x @ w[0], w[1:])
    return h if kept is None else z


def convolved(params, x, kept=None):
    for w in params:
        z = jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jax.nn.relu(z)
        if kept is not None:
            kept.append(z)
    return z


def seconds(found):
    return np.array([np.mean(np.square(np.asarray(z, np.float64))) for z in found])


def mlp_seconds(params, x):
    kept = []
    mlp(jax.nn.gelu, kept)(params, x)
    return seconds(kept), np.ones(len(kept))


def scan_seconds(w, x):
    return seconds([x @ w[0], *scanned(w, x, kept=True)]), np.array([1, *[1 / 6] * 6])


def conv_seconds(params, x):
    kept = []
    convolved(params, x, kept)
    return seconds(kept), np.ones(len(kept))


def rnn(p, x, kept=None):
    def body(h, x):
        z, u = h @ p["w"], x @ p["u"]
        return jnp.tanh(z + u + p["b"]), (z, u)

    h, (z, u) = jax.lax.scan(body, jnp.zeros((len(x), WIDTH)), jnp.moveaxis(x.reshape(len(x), 8, 8), 1, 0))
    return h @ p["out"] if kept is None else (z[1:], u, h @ p["out"])


def rnn_seconds(p, x):
    z, u, y = rnn(p, x, kept=True)
    means = [np.exp(np.mean(np.log(seconds(each)))) for each in (z, u)]
    return np.array([*means, seconds([y])[0]]), np.array([0.5, 0.5, 1.0])


IMAGES = normal(98, 16, 8, 8, 8)
RNN = {
    "w": normal(1, WIDTH, WIDTH),
    "u": normal(2, 8, WIDTH),
    "b": normal(3, WIDTH),
    "out": normal(4, WIDTH, 99),
}
MODELS = {
    "mlp": (mlp(jax.nn.gelu), layers(4), X, mlp_seconds),
    "residual scan": (scanned, normal(5, 7, WIDTH, WIDTH), X, scan_seconds),
    "convolutions": (
        convolved, [normal(6, 3, 3, 8, 32), normal(7, 3, 3, 32, 32)], IMAGES, conv_seconds
    ),
    "shared weights": (rnn, RNN, X, rnn_seconds),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_theory_gives_every_product_its_second_moment(name):
    fn, params, x, measure = MODELS[name]
    found = jaxact.initialize(fn, params, x, target="forward", weights="gaussian")
    second, target = measure(found.params, x)
    # Fitted to as many inputs that are not these: each |x|^2 is off by sqrt(2 / 64), which the layers double.
    np.testing.assert_allclose(second, target, rtol=0.15 if name == "shared weights" else 0.1)
    told = [each.second_moment for each in found.changes]
    np.testing.assert_allclose(told, target, rtol=0.1 if name == "shared weights" else 1e-3)


def test_theory_takes_out_what_a_small_width_leaves_to_chance():
    params = layers(16, width=32)
    found = jaxact.initialize(mlp(jax.nn.relu), params, X[:, :32]).params
    for k, (w, _) in enumerate(found):  # as theory alone has it: He's scale, the first layer's 1
        size = np.sqrt(32 * np.mean(np.asarray(w, np.float64) ** 2)) / (2**0.5 if k else 1)
        params[k] = (w / size, 0 * params[k][1])
    apart = []
    for each in (found, params):
        kept = []
        mlp(jax.nn.relu, kept)(each, X[:, :32])
        apart.append(np.abs(np.log(seconds(kept))).mean())
    assert apart[0] < 0.1 < 0.3 < apart[1]


@pytest.mark.parametrize("weights", ["gaussian", None])
@pytest.mark.parametrize("name", MODELS)
def test_data_gives_every_product_its_second_moment(name, weights):
    fn, params, x, measure = MODELS[name]
    found = jaxact.initialize(fn, params, x, method="data", weights=weights, target="forward")
    second, target = measure(found.params, x)
    # A shared weight has one scale for all turns: what each asks for, in the mean.
    np.testing.assert_allclose(second, target, rtol=0.1 if name == "shared weights" else 0.01)
    if weights is None:
        given, new = (jax.tree.leaves(each) for each in (params, found.params))
        for one, other in zip(
            given, new, strict=True
        ):  # a multiple of what it was, a loop's rows by themselves
            for a, b in zip(one, other, strict=True) if name == "residual scan" else [(one, other)]:
                ratio = np.asarray(b / a)
                np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-4)


@pytest.mark.parametrize("method", ["theory", "data"])
def test_the_critical_point_is_that_of_theory(method):
    point = theory.critical_point(activations.tanh, q_star=1.0)
    found = jaxact.initialize(mlp(jnp.tanh), layers(5), X, method=method)
    new = np.array([each.new for each in found.changes[2:]])
    np.testing.assert_allclose(new, point.sigma_w, rtol=0.12)  # one draw of width 64; on the whole exact
    np.testing.assert_allclose(np.exp(np.mean(np.log(new))), point.sigma_w, rtol=0.04)
    for change, (w, b) in zip(found.changes[2:], found.params[2:], strict=True):
        np.testing.assert_allclose(WIDTH**0.5 * jnp.sqrt(jnp.mean(w**2)), change.new, rtol=1e-4)
        np.testing.assert_allclose(jnp.sqrt(jnp.mean(b**2)), point.sigma_b, rtol=0.03)
    kept = []
    mlp(jnp.tanh, kept)(found.params, X)
    z = [kept[k] + found.params[k][1] for k in range(5)]
    np.testing.assert_allclose(seconds(z), 1, rtol=0.01 if method == "data" else 0.08)


def test_the_critical_point_of_relu_is_he_and_of_a_sigmoid_there_is_none():
    found = jaxact.initialize(mlp(jax.nn.relu), layers(4, width=256), (64, 256))
    np.testing.assert_allclose([each.new**2 for each in found.changes], [1, 2, 2, 2], rtol=0.2)
    assert [each.reason for each in found.changes] == ["second moment 1", *["critical"] * 3]
    assert found.notes == ()
    found = jaxact.initialize(mlp(jax.nn.sigmoid), layers(8, width=16), X[:, :16])
    assert {each.reason for each in found.changes} == {"second moment 1"}
    assert any("target='critical' keeps no signal at [1][0], [2][0], [3][0]" in note for note in found.notes)
    assert any("no critical point" in note for note in found.notes)


def test_backward_keeps_gradients():
    found = jaxact.initialize(mlp(jnp.tanh), layers(6), X, target="backward").params
    cotangent = normal(97, *X.shape)

    def loss(added):
        x = X
        for (w, b), extra in zip(found, added, strict=True):
            z = x @ w + extra
            x = jnp.tanh(z + b)
        return jnp.sum(z * cotangent)

    sizes = seconds(jax.grad(loss)([jnp.zeros_like(X)] * 6))
    np.testing.assert_allclose(sizes, 1, rtol=0.25)  # 5 products of width 64: sqrt(5 * 2 / 64) at most


def test_orthogonal_weights_are_orthogonal_and_convolutions_isometric():
    found = jaxact.initialize(mlp(jax.nn.relu), layers(3), X).params
    for w, b in found:
        gram = np.asarray(w.T @ w)
        np.testing.assert_allclose(gram, gram[0, 0] * np.eye(WIDTH), atol=1e-4 * gram[0, 0])
        assert not b.any()
    _, w = jaxact.initialize(convolved, MODELS["convolutions"][1], IMAGES).params
    matrix = np.asarray(w).reshape(-1, 32)
    np.testing.assert_allclose(matrix.T @ matrix, (matrix[:, 0] @ matrix[:, 0]) * np.eye(32), atol=1e-4)
    _, w = jaxact.initialize(convolved, MODELS["convolutions"][1], IMAGES, weights="delta_orthogonal").params
    centre = np.asarray(w[1, 1])
    np.testing.assert_allclose(centre @ centre.T, (centre @ centre.T)[0, 0] * np.eye(32), atol=1e-3)
    assert np.count_nonzero(w) == np.count_nonzero(w[1, 1])


def test_what_is_no_weight_of_a_product_stays_bit_for_bit_and_dtypes_stay():
    def fn(p, x):
        h = p["embedding"][x] * p["scale"]
        h = jnp.tanh(h @ p["w"].astype(jnp.float32) + p["b"])
        return (h @ (p["v"] / 8)).reshape(-1, 2, 4)[:, 0] * p["alpha"]

    p = {
        "embedding": normal(1, 9, 16), "scale": normal(2, 16), "w": normal(3, 16, 8).astype(jnp.bfloat16),
        "b": normal(4, 8), "v": jnp.zeros((8, 8)), "alpha": jnp.float32(0.3), "steps": jnp.arange(3),
        "unused": normal(5, 4),
    }  # fmt: skip
    found = jaxact.initialize(fn, p, jnp.arange(64) % 9, target="forward")
    assert jax.tree.structure(found.params) == jax.tree.structure(p)
    for name in ("embedding", "scale", "alpha", "steps", "unused"):
        assert found.params[name] is p[name]
    assert not found.params["b"].any()
    assert all(found.params[name].dtype == leaf.dtype for name, leaf in p.items())
    assert [each.name for each in found.changes] == ["['w']", "['v']"]
    assert found.changes[1].factor == np.inf  # a weight of zeros was drawn


def test_slices_of_one_array_are_weights_of_their_own():
    def fn(w, x):
        for k in range(4):
            x = jax.nn.relu(x @ w[k])
        return x @ w[4].T

    found = jaxact.initialize(fn, normal(8, 5, WIDTH, WIDTH), X)
    kept, x = [], X
    for k in range(5):
        kept.append(x @ (found.params[k] if k < 4 else found.params[k].T))
        x = jax.nn.relu(kept[-1])
    np.testing.assert_allclose(seconds(kept), 1, rtol=0.15)
    assert len(found.changes) == 5


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x + nn.Dense(64)(nn.LayerNorm()(x)))


class Module(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(WIDTH, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)])
        self.norm = nnx.LayerNorm(64, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.norm(jnp.tanh(self.layers[0](x))))


def normed(x):
    h = hk.BatchNorm(True, True, 0.9)(hk.Linear(64)(x), is_training=False, test_local_stats=True)
    return hk.Linear(10)(jnp.tanh(h))


NORMED = hk.transform_with_state(normed)
DOORS = {
    "linen": (lambda: (Linen(), Linen().init(KEY, X)), lambda m: m[0].apply(m[1], X)),
    "nnx": (lambda: Module(nnx.Rngs(0)), lambda m: m(X)),
    "equinox": (lambda: eqx.nn.MLP(WIDTH, 10, 64, 2, key=KEY), lambda m: jax.vmap(m)(X)),
    "haiku": (lambda: (NORMED, NORMED.init(KEY, X)), lambda m: m[0].apply(*m[1], None, X)[0]),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_module_comes_back_as_what_it_was(door):
    make, apply = DOORS[door]
    model = make()
    before = np.asarray(apply(model))
    found = jaxact.initialize(model, X, method="data")
    assert type(found.params) is type(model)
    assert jax.tree.structure(found.params) == jax.tree.structure(model)
    np.testing.assert_allclose(np.mean(np.asarray(apply(found.params)) ** 2), 1, rtol=0.01)
    np.testing.assert_array_equal(apply(model), before)  # the given one is as it was


def test_the_key_decides():
    found = [leaves(jaxact.initialize(mlp(jnp.tanh), layers(2), X, key=jax.random.key(k))) for k in (0, 0, 1)]
    same, differ = ([bool((a == b).all()) for a, b in zip(found[0], each, strict=True)] for each in found[1:])
    assert all(same)
    assert differ == [False, True, False, False]  # the first bias is zero


def leaves(found):
    return [leaf for leaf in jax.tree.leaves(found.params) if eqx.is_array(leaf)]


def test_a_shape_stands_for_standard_normal_inputs():
    one, other = (jaxact.initialize(mlp(jax.nn.relu), layers(3), given) for given in ((64, WIDTH), X))
    new, same = ([each.new**2 for each in found.changes] for found in (one, other))
    np.testing.assert_allclose(new, same, rtol=0.1)


def test_a_nonlinearity_on_the_stream_and_missing_biases_are_told():
    def bent(params, x):
        for w, b in params:
            x = jax.nn.relu(x + x @ w + b)
        return x

    small, x = layers(7, width=16), X[:, :16]
    assert any("3 residual branches" in each for each in jaxact.initialize(bent, small[:3], x).notes)
    without = jnp.stack([w for w, _ in small])
    loop = lambda p, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p)[0]  # noqa: E731
    found = jaxact.initialize(loop, without, x)
    assert any("without biases the critical scale lets second moments fall" in each for each in found.notes)


def test_what_theory_does_not_predict_is_measured_and_told():
    def fn(params, x):
        x = jnp.sort(jax.nn.relu(convolved(params[:1], x)), 1)
        return convolved(params[1:], x)

    found = jaxact.initialize(fn, MODELS["convolutions"][1], IMAGES, target="forward")
    assert [each.reason.endswith("measured") for each in found.changes] == [False, True]
    assert any("sort" in each for each in found.notes)
    np.testing.assert_allclose(np.mean(fn(found.params, IMAGES) ** 2), 1, rtol=0.08)


def test_the_table_has_a_line_for_each_weight():
    found = jaxact.initialize(mlp(jnp.tanh), layers(2), X)
    lines = str(found).splitlines()
    assert lines[0].split()[:3] == ["weight", "line", "kind"]
    assert [line.split()[0] for line in lines[1:3]] == ["[0][0]", "[1][0]"]
    assert found.to_frame().shape == (2, 9)


REFUSED = {
    "a method": (lambda: jaxact.initialize(mlp(jnp.tanh), layers(2), X, method="lsuv"), "'theory', 'data'"),
    "a target": (lambda: jaxact.initialize(mlp(jnp.tanh), layers(2), X, target="both"), "got 'both'"),
    "weights": (
        lambda: jaxact.initialize(mlp(jnp.tanh), layers(2), X, weights="he"),
        "'delta_orthogonal', None",
    ),
    "a shape": (lambda: jaxact.initialize(mlp(jnp.tanh), layers(2), (0, WIDTH)), "positive lengths"),
    "a batch": (lambda: jaxact.initialize(mlp(jnp.tanh), layers(2), X[:, :3]), "it raised"),
    "NaN": (lambda: jaxact.initialize(mlp(jnp.tanh), layers(2), X * jnp.nan), "must be finite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_initialised_is_refused(case):
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        call()
