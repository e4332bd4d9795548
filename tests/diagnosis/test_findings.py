"""Findings: planted faults are named first, healthy models have none; sharpness against exact eigenvalues."""

import functools
import html
import math
from itertools import pairwise

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxact
from jaxact import activations, theory
from jaxact.diagnosis import KINDS
from jaxact.diagnosis._depth_faults import trend
from jaxact.diagnosis._remedies import REMEDIES, Facts, remedy
from jaxact.diagnosis._sharpness import sharpness

KEY = jax.random.key(3)
WIDTH = 48


def normal(number, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, number), shape)


def weights(depth, scale):
    return [math.sqrt(scale / WIDTH) * normal(k, WIDTH, WIDTH) for k in range(depth)]


X = normal(99, 16, WIDTH)


def scanned(act, norm=lambda h: h, shortcut=lambda h, y: y):
    """act(norm(h W)), perhaps beside a shortcut: one body however deep."""

    def fn(w, x):
        return jax.lax.scan(lambda h, w: (shortcut(h, act(norm(h @ w))), None), x, w)[0]

    return fn


def batch_norm(h):
    return (h - h.mean(0)) * jax.lax.rsqrt(h.var(0) + 1e-5)


def pre_norm(w, x):
    """Blocks h + norm(h) W, and a norm at the end: a large branch drowns the others."""
    norm = lambda h: h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)  # noqa: E731
    return norm(jax.lax.scan(lambda h, w: (h + norm(h) @ w, None), x, w)[0])


def stacked(depth, scale, **changed):
    ws = weights(depth, scale)
    for name, factor in changed.items():
        ws[int(name[1:])] = factor * ws[int(name[1:])]
    return jnp.stack(ws)


relu, tanh = jax.nn.relu, jnp.tanh
SIN = {"loss": lambda y: jnp.sum(jnp.sin(y))}
#: (function, params, inputs, options, kind, layer or "" for any)
FAULTS = {
    "LeCun on relu": (scanned(relu), stacked(20, 1.0), X, {}, "weight scale", ""),
    "one large layer": (scanned(relu), stacked(8, 2.0, w4=20.0), X, {}, "weight scale", "params[4]"),
    "a layer of zeros": (scanned(tanh), stacked(6, 1.0, w3=0.0), X, {}, "zero initialised", "params[3]"),
    "sigmoid": (scanned(jax.nn.sigmoid), stacked(10, 1.0), X, {}, "vanishing gradient", ""),
    "plain batch norm": (scanned(relu, batch_norm), stacked(30, 2.0), X, {}, "batch norm explosion", ""),
    "residual sums": (scanned(relu, shortcut=jnp.add), stacked(20, 2.0), X, {}, "residual growth", ""),
    "one large branch": (pre_norm, stacked(6, 1.0, w4=60.0), X, {}, "weight scale", "params[4]"),
    "pixels": (scanned(tanh), stacked(3, 1.0), 128 + 70 * X, {}, "input scale", "params[0]"),
    "a mean of 6": (scanned(relu), stacked(3, 2.0), X + 6, {}, "mean shift", "params[0]"),
    "dead units": (lambda w, x: relu(x @ w[0] - 9) @ w[1], weights(2, 2.0), X, {}, "dead units", "[0]"),
    "tied": (
        lambda w, x: jax.lax.scan(lambda h, _: (relu(h @ w), None), x, None, length=20)[0],
        weights(1, 1.0)[0], X, {}, "tied weights", "params",
    ),
    "float16": (
        scanned(relu), stacked(4, 2.0, w2=6e4).astype(jnp.float16), X.astype(jnp.float16), {}, "overflow", "params[2]"
    ),
    "NaN": (lambda w, x: jnp.log(x @ w[0]) @ w[1], weights(2, 1.0), X, {}, "not finite", "[0]"),
}  # fmt: skip
HEALTHY = {
    "relu, He": (scanned(relu), stacked(10, 2.0), X, {}),
    "tanh, LeCun": (scanned(tanh), stacked(10, 1.0), X, {}),
    "branches that start at 0": (scanned(lambda z: z, shortcut=jnp.add), stacked(10, 0.0), X, {}),
    "a head of zeros": (lambda w, x: relu(x @ w[0]) @ (0 * w[1]), weights(2, 2.0), X, {}),
}


def findings(fn, params, x, options):
    return jaxact.diagnose(fn, params, x, jacobian=False, **options)


@pytest.mark.parametrize("case", FAULTS)
def test_the_first_finding_names_the_fault_and_the_layer(case):
    *args, kind, layer = FAULTS[case]
    found = findings(*args)
    first = found.findings[0]
    assert first.kind == kind, found
    assert layer in ("", first.layer), found
    severities = [each.severity for each in found.findings]
    assert all(one >= other for one, other in pairwise(severities))
    assert first.layer in {row.name for row in found.rows}
    assert str(first) in str(found)
    assert f"{first.kind} at" in found._repr_html_()
    shown = html.unescape(first._repr_html_())
    assert all(part in shown for part in (first.kind, first.place, first.text, first.cause, first.code))


@pytest.mark.parametrize("case", HEALTHY)
def test_a_healthy_model_has_no_finding(case):
    found = findings(*HEALTHY[case])
    assert found.findings == (), found
    assert "nothing wrong found." in str(found)


def test_the_depth_scale_is_that_of_the_factor():
    found = trend(list(range(12)), np.exp(-0.4 * np.arange(12)) * np.where(np.arange(12) == 5, 100, 1))
    np.testing.assert_allclose(found.slope, -0.4, rtol=1e-12)  # one outlier of twelve does not move it
    np.testing.assert_allclose(found.depth_scale, 1 / 0.8)
    text = findings(*FAULTS["LeCun on relu"][:4]).findings[0].text
    told = float(text.split("depth scale ")[1].split()[0].rstrip(".;"))
    np.testing.assert_allclose(
        told, 1 / math.log(2), rtol=0.1
    )  # the second moment halves, up to 1 / sqrt(width)


def test_a_wrong_scale_names_the_layers_to_draw_anew_and_no_others():
    ws = [
        *weights(12, 0.25),
        normal(13, WIDTH, 10) / WIDTH**0.5,
    ]  # the last, whence the gradient fades, is right
    fn = lambda ws, x: functools.reduce(lambda h, w: tanh(h @ w), ws[:-1], x) @ ws[-1]  # noqa: E731
    (found,) = findings(fn, ws, X, {}).findings
    assert found.kind == "weight scale"
    assert found.layers == tuple(f"[{k}]" for k in range(12))
    assert "at [0] and 11 more" in str(found)
    assert "# [0] and 11 more" in found.code


def test_what_preserves_is_theorys_scale():
    ws = [normal(1, WIDTH, 1024) / WIDTH**0.5, normal(2, 1024, WIDTH)]
    (found,) = findings(lambda w, x: relu(x @ w[0]) @ w[1], ws, X, {}).findings
    told = float(found.text.split("here, ")[1].rstrip("."))
    np.testing.assert_allclose(told, 2.0, rtol=3 * math.sqrt(5 / 1024))  # E z^4 of a half / E(z^2)^2 is 6


@pytest.mark.parametrize("size", [1, 3, 40])
def test_sharpness_is_the_largest_eigenvalue(size):
    A = np.random.default_rng(size).standard_normal((size, size))
    H = (A + A.T) / 2  # of both signs: power iteration would find the largest in absolute value
    H -= np.eye(size) * np.linalg.eigvalsh(H).mean()
    found = sharpness(
        lambda p: p["x"] @ jnp.asarray(H, jnp.float32) @ p["x"] / 2, {"x": jnp.ones(size)}, size
    )
    values = np.linalg.eigvalsh(H)
    np.testing.assert_allclose(found.largest, values[-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.shares, [1.0], rtol=1e-5)
    few = sharpness(lambda p: p @ jnp.asarray(H, jnp.float32) @ p / 2, jnp.ones(size), 6)
    assert few.largest <= values[-1] + 1e-4 * abs(values).max()
    assert np.abs(values - few.largest).min() <= few.error + 1e-4 * abs(values).max()


def test_sharpness_of_a_network_is_that_of_its_hessian():
    params = {"a": normal(1, 3, 4), "b": normal(2, 4, 2)}
    x = normal(3, 8, 3)
    loss = lambda p: jnp.mean(jnp.square(jnp.tanh(x @ p["a"]) @ p["b"] - 1))  # noqa: E731
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    H = np.asarray(jax.hessian(lambda flat: loss(unravel(flat)))(flat), np.float64)
    values, vectors = np.linalg.eigh(H)
    found = sharpness(loss, params, 20)
    np.testing.assert_allclose(found.largest, values[-1], rtol=1e-4)
    np.testing.assert_allclose(
        found.shares, [np.sum(vectors[:12, -1] ** 2), np.sum(vectors[12:, -1] ** 2)], rtol=1e-2
    )
    gradients = jax.grad(loss)(params)
    ratios = [np.sqrt(np.mean(gradients[k] ** 2) / np.mean(params[k] ** 2)) for k in ("a", "b")]
    np.testing.assert_allclose(found.updates, ratios, rtol=1e-4)


def test_two_over_sharpness_parts_descent_from_divergence():
    params, x = {"a": normal(1, 3, 4), "b": normal(2, 4, 2)}, normal(3, 8, 3)
    fn = lambda p, x: x @ p["a"] @ p["b"]  # noqa: E731
    loss = lambda y: jnp.mean(jnp.square(y))  # noqa: E731
    limit = 2 / sharpness(lambda p: loss(fn(p, x)), params, 20).largest
    for factor, is_found in ((0.9, False), (1.1, True)):
        found = jaxact.diagnose(fn, params, x, loss=loss, learning_rate=factor * limit, jacobian=False)
        assert ("learning rate" in [each.kind for each in found.findings]) == is_found


@pytest.mark.parametrize("options", [{"learning_rate": 0.1}, {"learning_rate": -1.0, **SIN}])
def test_a_rate_is_positive_and_comes_with_a_loss(options):
    with pytest.raises(ValueError, match=r"learning_rate.*positive and come with a loss"):
        jaxact.diagnose(lambda w, x: x @ w, normal(0, 3, 3), normal(1, 2, 3), **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ["activations.tanh", None])
def test_the_code_of_a_remedy_is_python(kind, activation):
    for initialize in ("", "model = jaxact.initialize(model, x).params"):
        sentence, code = remedy(kind, Facts("layer", 1.5, 8, activation, initialize))
        assert sentence.endswith(".")
        program = compile(code, kind, "exec")
        if code.startswith("from jaxact"):
            exec(program, {"f": lambda z: z * jax.nn.sigmoid(3 * z)})
    assert tuple(REMEDIES) == KINDS


class Gelus(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(100, 100, rngs=rngs) for _ in range(40)])
        self.head = nnx.Linear(100, 5, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.gelu(layer(x))
        return self.head(x)


def chain(ws, x):
    return functools.reduce(lambda h, w: jax.nn.gelu(h @ w), ws[:-1], x) @ ws[-1]


def test_the_printed_remedy_of_a_vanished_signal_cures_it():
    """Gelu's slope at 0, where the signal ends, is 1/2: 4 would preserve there, and explodes from E z^2 = 1."""
    model, x = Gelus(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (64, 100))
    (found,) = jaxact.diagnose(model, x, jacobian=False).findings
    point = theory.critical_point(activations.gelu, q_star=1.0)
    assert f"what preserves is {point.sigma_w**2:.3g}, 1 / E f'(z)^2 at E z^2 = 1" in found.cause
    assert f"biases of variance {point.sigma_b**2:.2g}." in found.cause
    names = {"jaxact": jaxact, "model": model, "x": x}
    exec(found.code, names)
    assert jaxact.diagnose(names["model"], x, jacobian=False).findings == ()
    drawn = [each.new for each in jaxact.initialize(model, x, weights=None).changes]
    np.testing.assert_allclose(drawn[1], point.sigma_w, rtol=0.03)


def test_the_printed_remedy_is_for_the_form_that_was_diagnosed():
    ws = weights(20, 0.3)
    found = jaxact.diagnose(chain, ws, X, jacobian=False).findings[0]
    names = {"jaxact": jaxact, "fn": chain, "params": ws, "x": X}
    exec(found.code, names)
    assert jaxact.diagnose(chain, names["params"], X, jacobian=False).findings == ()


def test_one_layer_is_drawn_at_the_scale_of_signals_of_the_proper_size():
    ws = weights(8, 1.0)
    ws[4] = 30 * ws[4]
    scale = theory.critical_point(activations.gelu_tanh, q_star=1.0).sigma_w ** 2
    (found,) = jaxact.diagnose(chain, ws, X, jacobian=False).findings
    assert f"variance_scaling({scale:.3g}, " in found.code
    assert f"what preserves here, {scale:.3g}" in found.text


def own(z):
    return z * jax.nn.sigmoid(3 * z) + 0.1 * jnp.sin(z)


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (jax.nn.gelu, "activations.gelu_tanh"),
        (activations.gelu, "activations.gelu"),
        (jax.nn.silu, "activations.silu"),
        (lambda z: jax.nn.leaky_relu(z, 0.2), "activations.leaky_relu(0.2)"),
        (own, "activations.from_callable(f, name='f')"),
    ],
)
def test_the_code_of_an_ordered_network_names_its_activation(act, told):
    model = eqx.nn.MLP(20, 10, width_size=64, depth=10, activation=act, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (32, 20))
    found = jaxact.diagnose(model, x, jacobian=False).findings
    (code,) = [each.code for each in found if each.kind == "ordered"]
    assert f"theory.shape({told}, depth=11)" in code
    assert ("  # f: the model's own" in code) == (act is own)
    exec(code, {"f": own})
