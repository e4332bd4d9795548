"""What is measured, against NumPy by hand and against gradients by taps written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxact
from jaxact.diagnosis import watch

KEY = jax.random.key(0)
NUMBERS = ("mean", "second_moment", "cosine", "effective_rank", "zero", "dead", "saturated", "gradient")


def normal(number, *shape):
    return jax.random.normal(jax.random.fold_in(KEY, number), shape)


def loss(y):
    return jnp.sum(jnp.sin(y))


def mlp(params, x, taps=(0.0, 0.0, 0.0)):
    """Products W h, before the bias; relu between them."""
    products = []
    for k, (w, b) in enumerate(params):
        z = x @ w + taps[k]
        products.append(z)
        x = z + b if k == len(params) - 1 else jax.nn.relu(z + b)
    return x, products


MLP = [(normal(k, 7, 7), normal(10 + k, 7)) for k in range(3)]
X = normal(20, 5, 7)


def by_hand(z, u, slope, largest):
    """The numbers of a row from a product [input, ...features], the array before the activation, its slope there."""
    Z = np.asarray(z, np.float64).reshape(len(z), -1)
    G = Z @ Z.T
    norms = np.sqrt(np.diag(G))
    some = norms > 0
    C = (G / np.outer(norms + ~some, norms + ~some))[some][:, some]
    n = some.sum()
    spectrum = np.linalg.eigvalsh(G)
    value = np.maximum(np.asarray(u), 0)
    return {
        "mean": Z.mean(),
        "second_moment": (Z**2).mean(),
        "cosine": (C.sum() - np.trace(C)) / (n * (n - 1)),
        "effective_rank": spectrum.sum() ** 2 / (spectrum**2).sum(),
        "zero": (value == 0).mean(),
        "dead": (value == 0).all(tuple(range(value.ndim - 1))).mean(),
        "saturated": (np.abs(slope) < 0.01 * largest).mean(),
    }


def check(row, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(
            getattr(row, name), value, rtol=2e-5, atol=1e-6, err_msg=f"{row.name} {name}"
        )


def test_the_rows_of_an_mlp_are_what_numpy_finds():
    found = jaxact.diagnose(lambda p, x: mlp(p, x)[0], MLP, X, loss=loss)
    _, products = mlp(MLP, X)
    taps = [jnp.zeros_like(z) for z in products]
    gradients = jax.grad(lambda taps: loss(mlp(MLP, X, taps)[0]))(taps)
    assert [row.name for row in found.rows] == ["[0][0]", "[1][0]", "[2][0]"]
    assert {row.line.split(":")[0] for row in found.rows} == {"test_measure.py"}
    for k, (row, z, g) in enumerate(zip(found.rows, products, gradients, strict=True)):
        u = np.asarray(z + MLP[k][1])
        expected = by_hand(z, u, (u > 0) * 1.0, 1.0)
        if k == 2:  # no activation follows
            expected = {
                name: expected[name] for name in ("mean", "second_moment", "cosine", "effective_rank")
            }
            assert np.isnan(row.zero)
        check(row, expected | {"gradient": np.sqrt(np.mean(np.square(g)))})
        assert row.fan_in == 7
        np.testing.assert_allclose(row.weight_scale, 7 * np.mean(np.square(MLP[k][0])), rtol=1e-5)
    ratio = found.rows[0].gradient / found.rows[1].gradient
    np.testing.assert_allclose(found.rows[0].gradient_factor, ratio, rtol=1e-6)


def test_the_whole_jacobian_of_a_small_input_is_exact_and_that_of_a_large_one_is_bounded():
    def scanned(w, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]

    for size, is_exact in ((6, True), (80, False)):
        w, x = normal(1, 3, size, size) / size**0.5, normal(2, 40, size)
        rows = jaxact.diagnose(scanned, w, x).rows
        for k, row in enumerate(rows):
            J = jax.jacfwd(lambda x, w=w, k=k: scanned(w[:k], x[None])[0] @ w[k])(x[0])
            values = np.linalg.svd(np.asarray(J), compute_uv=False)
            assert row.is_exact == is_exact
            if is_exact:
                np.testing.assert_allclose([row.largest, row.smallest], values[[0, -1]], rtol=1e-4)
            else:
                assert 0.9 * values[0] <= row.largest <= values[0] * (1 + 1e-5)


def conv(w, x):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def test_a_convolution_is_that_of_a_sum_over_shifted_images():
    w, x = normal(3, 3, 3, 2, 4), normal(4, 5, 6, 6, 2)
    (row,) = jaxact.diagnose(lambda w, x: jax.nn.relu(conv(w, x)), w, x).rows
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    z = sum(padded[:, i : i + 6, j : j + 6] @ np.asarray(w[i, j]) for i in range(3) for j in range(3))
    u = np.asarray(z)
    assert row.kind == "conv"
    assert row.fan_in == 18
    expected = by_hand(z, u, (u > 0) * 1.0, 1.0)
    # The one activation is the function's output.
    for name in ("zero", "dead", "saturated"):
        expected.pop(name)
    check(row, expected)


def loops(w, x):
    """Two loops, one within the other, one of them backward, within jit, remat and custom derivatives."""

    @jax.custom_jvp
    def custom(h, w):
        return jnp.tanh(h @ w)

    custom.defjvp(lambda primals, tangents: jax.jvp(lambda h, w: jnp.tanh(h @ w), primals, tangents))

    def outer(h, w):
        h, _ = jax.lax.scan(lambda h, w: (jax.checkpoint(custom)(h, w), None), h, w, reverse=True)
        return h, None

    h, _ = jax.jit(lambda w, x: jax.lax.scan(outer, x, w))(w, x)
    return jax.lax.cond(w[0, 0, 0, 0] < 9, lambda h: h @ w[0, 0], lambda h: 2 * h @ w[1, 0], h)


def test_turns_of_loops_are_rows_in_order_of_execution():
    w, x = normal(5, 2, 3, 6, 6) / 2, normal(6, 4, 6)
    found = jaxact.diagnose(loops, w, x, loss=loss)
    order = [(i, j) for i in range(2) for j in (2, 1, 0)]
    assert [row.name for row in found.rows[:-1]] == [f"params[{i}][{j}]" for i, j in order]

    def unrolled(taps):
        h, products = x, []
        for tap, (i, j) in zip(taps, order, strict=False):
            products.append(h @ w[i, j] + tap)
            h = jnp.tanh(products[-1])
        products.append(h @ w[0, 0] + taps[-1])
        return loss(products[-1]), products

    taps = [jnp.zeros((4, 6))] * 7
    gradients, products = jax.grad(unrolled, has_aux=True)(taps)
    for row, z, g in zip(found.rows, products, gradients, strict=True):
        check(row, {"second_moment": np.mean(np.square(z)), "gradient": np.sqrt(np.mean(np.square(g)))})
        assert row.reason == ""


def test_watch_is_the_engine_of_diagnose_and_works_within_jit_and_vmap():
    fn = lambda p, x: mlp(p, x)[0]  # noqa: E731
    numbers = watch(fn, MLP, X, loss=loss)
    other = jax.tree.map(lambda leaf: 1.5 * leaf, MLP)
    rows = jaxact.diagnose(fn, other, X, loss=loss).rows
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), MLP, other)
    found = jax.jit(jax.vmap(numbers, (0, None)))(both, X)
    assert numbers.names == tuple(row.name for row in rows)
    for name in ("mean", "second_moment", "cosine", "effective_rank", "zero"):
        expected = [getattr(row, name) for row in rows]
        np.testing.assert_allclose(found[name][1], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        np.sqrt(found["gradient_second_moment"][1]), [row.gradient for row in rows], rtol=1e-5
    )


def test_a_loss_may_take_the_batch():
    batch = {"x": X, "y": normal(7, 5, 7)}
    fn = lambda p, batch: mlp(p, batch["x"])[0]  # noqa: E731
    found = jaxact.diagnose(fn, MLP, batch, loss=lambda y, batch: jnp.mean((y - batch["y"]) ** 2))
    expected = jax.grad(lambda y: jnp.mean((y - batch["y"]) ** 2))(mlp(MLP, X)[0])
    np.testing.assert_allclose(found.rows[-1].gradient, np.sqrt(np.mean(np.square(expected))), rtol=1e-5)


def test_a_branch_that_the_input_chooses_is_nan_where_it_is_not_taken():
    def fn(w, x):
        h = x @ w
        return jax.lax.cond(h[0, 0] > 1e9, lambda h: h @ w, lambda h: jnp.tanh(h) @ w.T, h)

    w = normal(8, 7, 7)
    first, no, yes = jaxact.diagnose(fn, w, X, loss=loss).rows
    z = np.tanh(X @ w) @ w.T
    check(no, {"second_moment": np.mean(z**2), "gradient": np.sqrt(np.mean(np.cos(z) ** 2))})
    assert np.isnan(yes.second_moment)
    g = jax.grad(lambda z: loss(jnp.tanh(z) @ w.T))(X @ w)
    check(first, {"gradient": np.sqrt(np.mean(np.square(g)))})


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_are_measured_in_float32(dtype):
    params, x = jax.tree.map(lambda leaf: leaf.astype(dtype), (MLP, 20 * X))
    row = jaxact.diagnose(lambda p, x: mlp(p, x)[0], params, x).rows[0]
    z = np.asarray(x @ params[0][0], np.float64)
    np.testing.assert_allclose(row.second_moment, np.mean(z**2), rtol=2e-3)
