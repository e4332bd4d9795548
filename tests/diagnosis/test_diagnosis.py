"""Models of every framework, what is refused and how, and the forms that a diagnosis takes."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxact
from jaxact import theme

KEY = jax.random.key(2)
X = jax.random.normal(KEY, (6, 5))
W = jax.random.normal(jax.random.key(3), (5, 5))


class Linen(nn.Module):
    train: bool = False
    rate: float = 0.0

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.train)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.Dropout(self.rate, deterministic=self.rate == 0)(nn.relu(x)))


class Module(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 3, rngs=rngs)])

    def __call__(self, x):
        return self.layers[0](self.drop(nnx.relu(self.norm(self.first(x)))))


class Flagged(nn.Module):
    depth: int = 1

    @nn.compact
    def __call__(self, x, train):
        for _ in range(self.depth):
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(48)(x)))
        return nn.Dense(3)(x)


def flagged_variables(depth=1, x=X):
    return Flagged(depth).init(KEY, x, train=False)


class Stateful(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, x, state):
        return self.layer(x), state


class Switched(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, x, *, train):
        return self.layer(x)


def linen():
    return Linen(), Linen().init(KEY, X)


def module():
    made = Module(nnx.Rngs(0))
    made.eval()
    return made


MODELS = {
    "linen": (linen, ["['Dense_0']['kernel']", "['Dense_1']['kernel']"], lambda m: m[0].apply(m[1], X)),
    "nnx": (module, ["first.kernel", "layers[0].kernel"], lambda m: m(X)),
    "equinox": (
        lambda: eqx.nn.MLP(5, 3, 8, 1, key=KEY), ["layers[0].weight", "layers[1].weight"], lambda m: jax.vmap(m)(X)
    ),
}  # fmt: skip


@pytest.mark.parametrize("framework", MODELS)
def test_modules_are_diagnosed_by_their_own_names(framework):
    make, names, apply = MODELS[framework]
    model = make()
    rows = jaxact.diagnose(model, X, loss=lambda y: jnp.sum(y**2)).rows
    assert [row.name for row in rows] == names
    # The bias of the last layer is 0, or what is added to its product.
    bias = model.layers[1].bias if framework == "equinox" else 0.0
    np.testing.assert_allclose(rows[-1].second_moment, np.mean((apply(model) - bias) ** 2), rtol=1e-5)
    np.testing.assert_allclose(rows[-1].gradient, 2 * np.sqrt(np.mean(apply(model) ** 2)), rtol=1e-5)


def nan_in(tree):
    return jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), tree)


REFUSED = {
    "no function": (lambda: jaxact.diagnose(3, W, X), TypeError, r"function of \(params, inputs\), got int"),
    "a function without parameters": (lambda: jaxact.diagnose(lambda x: x, X), ValueError, "where no `params`"),
    "one argument": (lambda: jaxact.diagnose(lambda x: x @ W, W, X), ValueError, r"must take \(params, inputs\)"),
    "a shape": (lambda: jaxact.diagnose(lambda w, x: x @ w, W, X[:, :4]), ValueError, r"float32\[6, 4\]; it raised"),
    "a shape of a module": (lambda: jaxact.diagnose(linen(), X[:, :4]), ValueError, "it raised .*kernel"),
    "a dtype": (lambda: jaxact.diagnose(lambda w, x: w[x], W, X), (ValueError, TypeError), "float32.*integer"),
    "NaN parameters": (
        lambda: jaxact.diagnose(lambda p, x: x @ p["a"]["w"], {"a": {"w": nan_in(W)}}, X),
        ValueError, r"`params` \['a'\]\['w'\] must be finite, got 1 NaN or inf of 25",
    ),
    "an array of NaN": (
        lambda: jaxact.diagnose(lambda w, x: x @ w, nan_in(W), X), ValueError, "^`params` must be finite, got 1 NaN"
    ),
    "a NaN batch": (
        lambda: jaxact.diagnose(lambda w, b: b["x"] @ w, W, {"x": nan_in(X)}), ValueError, r"`batch` \['x'\]"
    ),
    "two lengths": (lambda: jaxact.diagnose(lambda w, b: b[0] @ w, W, (X, X[:2])), ValueError, "axis of one length"),
    "no batch axis": (lambda: jaxact.diagnose(lambda w, x: x * W, W, 1.0), ValueError, "first axis"),
    "no product": (lambda: jaxact.diagnose(lambda w, x: x * w[0], W, X), ValueError, "found none"),
    "closed over": (lambda: jaxact.diagnose(lambda w, x: x @ W, W, X), ValueError, "through `params`"),
    "batch norm in training": (
        lambda: jaxact.diagnose(Module(nnx.Rngs(0)), X), ValueError, r"training mode.*\['norm'\]\['mean'\].*eval\(\)"
    ),
    "linen in training": (
        lambda: jaxact.diagnose((Linen(train=True), linen()[1]), X), ValueError, "training mode.*use_running_average"
    ),
    "linen dropout": (
        lambda: jaxact.diagnose((Linen(rate=0.5), linen()[1]), X), ValueError, "training mode.*deterministic"
    ),
    "equinox dropout": (
        lambda: jaxact.diagnose(eqx.nn.Sequential([eqx.nn.Linear(5, 5, key=KEY), eqx.nn.Dropout(0.5)]), X),
        ValueError, "training mode.*inference_mode",
    ),
    "random numbers": (
        lambda: jaxact.diagnose(lambda w, x: x @ w * jax.random.normal(KEY, (5,)), W, X), ValueError, "random numbers"
    ),
    "a while loop": (
        lambda: jaxact.diagnose(
            lambda w, x: jax.lax.while_loop(lambda h: h.sum() > 0, lambda h: h @ w - 1, x @ w) @ w, W, X
        ),
        ValueError, "gradient.*Reverse-mode.*jax.lax.scan",
    ),
    "words": (
        lambda: jaxact.diagnose(lambda p, x: x @ p["w"], {"w": W, "name": "mine"}, X),
        ValueError, r"`params`.*got str at \['name'\]",
    ),
    "objects": (
        lambda: jaxact.diagnose(lambda w, x: x @ w, W, np.array(X, object)), ValueError, "`batch`.*got ndarray"
    ),
    "complex outputs": (lambda: jaxact.diagnose(lambda w, x: x @ w + 1j, W, X), ValueError, "got complex64"),
    "a vector loss": (lambda: jaxact.diagnose(lambda w, x: x @ w, W, X, loss=lambda y: y), TypeError, "real scalar"),
    "no loss": (lambda: jaxact.diagnose(lambda w, x: x @ w, W, X, loss=3), TypeError, "got int"),
    "a flag of a linen pair": (
        lambda: jaxact.diagnose((Flagged(), flagged_variables()), X),
        ValueError, r"needs `train` too.*lambda variables, x: net.apply\(variables, x, train=False\)",
    ),
    "a flag of a linen module's apply": (
        lambda: jaxact.diagnose(Flagged().apply, flagged_variables(), X),
        ValueError, r"needs `train` too.*lambda params, x: fn\(params, x, train=False\)",
    ),
    "a flag of a function": (
        lambda: jaxact.diagnose(lambda w, x, deterministic: x @ w, W, X), ValueError, "fn.*deterministic=True"
    ),
    "a state": (
        lambda: jaxact.diagnose(Stateful(eqx.nn.Linear(5, 5, key=KEY)), X),
        ValueError, r"needs `state` too.*eqx.combine\(params, static\)\(x, state=\.\.\.\)",
    ),
    "a flag of an nnx module": (
        lambda: jaxact.diagnose(Switched(nnx.Rngs(0)), X), ValueError, r"nnx.merge\(graph, params\)\(x, train=False\)"
    ),
    "a loss that fails": (
        lambda: jaxact.diagnose(lambda w, x: x @ w, W, X, loss=lambda y: y["a"]), ValueError, "`loss`.*it raised"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_diagnosed_is_refused_with_a_remedy(case):
    call, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words) as caught:
        call()
    assert str(caught.value).endswith(".")


class Normed(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(48, 48, rngs=rngs) for _ in range(12)])
        self.norms = nnx.List([nnx.BatchNorm(48, rngs=rngs) for _ in range(12)])

    def __call__(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
        return x


class NormedEquinox(eqx.Module):
    layers: list
    norms: list

    def __init__(self, mode):
        self.layers = [eqx.nn.Linear(48, 48, key=key) for key in jax.random.split(KEY, 12)]
        self.norms = [eqx.nn.BatchNorm(48, "batch", mode=mode) for _ in self.layers]

    def __call__(self, x, state):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x, state = norm(layer(x), state)
            x = jax.nn.relu(x)
        return x, state


def normed_nnx():
    model = Normed(nnx.Rngs(0))
    model.eval()
    return model, WIDE


def normed_linen():
    variables = flagged_variables(12, WIDE)
    return lambda v, x: Flagged(12).apply(v, x, train=False), variables, WIDE


def normed_equinox(mode):
    model, state = eqx.nn.make_with_state(NormedEquinox)(mode)
    params, static = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)
    return lambda params, x: jax.vmap(lambda x: eqx.combine(params, static)(x, state)[0])(x), params, WIDE


WIDE = jax.random.normal(KEY, (32, 48))
FRESH = {
    "nnx": (normed_nnx, "variance 1", "jaxact.nn.calibrate(model, x)"),
    "linen": (normed_linen, "variance 1", 'net.apply(variables, x, train=True, mutable=["batch_stats"])'),
    "equinox": (lambda: normed_equinox("batch"), "variance 1", "training mode"),
    "equinox, ema": (lambda: normed_equinox("ema"), "variance 0", "training mode"),
}


@pytest.mark.parametrize("framework", FRESH)
def test_fresh_batch_norms_are_told_and_no_scale_is_blamed(framework):
    make, variance, remedy = FRESH[framework]
    found = jaxact.diagnose(*make(), jacobian=False)
    (note,) = [each for each in found.notes if "statistics that they were made with" in each]
    assert variance in note
    assert remedy in note
    assert "and 11 more" in note
    assert found.findings == ()


def test_a_calibrated_norm_is_not_fresh():
    model, x = normed_nnx()
    jaxact.nn.calibrate(model, x)
    assert jaxact.diagnose(model, x, jacobian=False).notes == ()
    model.layers[4].kernel[...] *= 0  # what no norm mends is found, calibrated or not
    fresh, _ = normed_nnx()
    fresh.layers[4].kernel[...] *= 0
    for each in (model, fresh):
        assert jaxact.diagnose(each, x, jacobian=False).findings[0].kind == "zero initialised"


def test_statistics_of_the_batch_itself_are_told():
    variables = flagged_variables(12, WIDE)

    def fn(variables, x):
        return Flagged(12).apply(variables, x, train=True, mutable=["batch_stats"])[0]

    for found in (
        jaxact.diagnose(fn, variables, WIDE, jacobian=False),
        jaxact.initialize(fn, variables, WIDE),
    ):
        (note,) = [each for each in found.notes if "from the batch itself" in each]
        assert "['Dense_0']['kernel'] and 11 more" in note
        assert "train=False" in note
    # The norm takes the scale out again: a cure of the gradient instead shrinks weights without end.
    np.testing.assert_allclose([each.second_moment for each in found.changes[:-1]], 1, rtol=1e-3)


def scanned(w, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]


def test_a_diagnosis_is_a_table_a_frame_a_page_and_a_chart():
    found = jaxact.diagnose(scanned, jnp.stack([W, 0 * W, W]), X)
    text = str(found).splitlines()
    assert text[0].split()[:4] == ["product", "line", "kind", "fan-in"]
    assert [line.split()[0] for line in text[1:4]] == ["params[0]", "params[1]", "params[2]"]
    assert len({len(line.rstrip()) for line in text[:3]}) == 1
    frame = found.to_frame()
    assert frame.shape[0] == 3
    np.testing.assert_array_equal(frame["second_moment"], [row.second_moment for row in found.rows])
    assert frame["gradient"][0] == 0  # behind a layer of zeros
    page = found._repr_html_()
    assert page.count("<tr>") == 4
    chart = found.chart().to_dict()
    data = [row for panel in chart["hconcat"] for row in panel["data"].get("values", [])] or [
        row for rows in chart["datasets"].values() for row in rows
    ]
    assert {row["series"] for row in data} == {"measured", "theory"}
    assert all(
        value > 0 for row in data for key, value in row.items() if "moment" in key or "gradient" in key
    )
    assert chart["hconcat"][0]["encoding"]["color"]["scale"]["range"] == list(theme.COLOURS[:2])
    assert [panel["width"] for panel in found.chart(width=300).to_dict()["vconcat"]] == [300, 300]


def test_a_chart_needs_depth():
    with pytest.raises(ValueError, match="two products or more, got 1"):
        jaxact.diagnose(lambda w, x: x @ w, W, X).chart()


def test_the_batchs_order_of_axes_is_followed_through_vmap():
    batched = jaxact.diagnose(lambda w, x: jnp.tanh(x @ w) @ w, W, X).rows
    mapped = jaxact.diagnose(lambda w, x: jax.vmap(lambda x: w.T @ jnp.tanh(w.T @ x))(x), W, X).rows
    for one, other in zip(batched, mapped, strict=True):
        for name in ("second_moment", "cosine", "effective_rank", "gradient", "largest"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, err_msg=name)
