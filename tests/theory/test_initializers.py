"""Initialisers in Linen and NNX layers against the laws that they state, and networks that start as theory says."""

import pickle
from importlib.util import module_from_spec, spec_from_file_location

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxact import activations, nn, theory
from jaxact.theory import initializers

TANH, RELU = activations.tanh, activations.relu
KEY = jax.random.key(0)


def dense(framework, in_features, out_features, **options):
    """A dense layer's kernel and bias."""
    if framework == "linen":
        layer = linen.Dense(out_features, **options)
        params = layer.init(KEY, jnp.zeros((1, in_features)))["params"]
        return np.asarray(params["kernel"]), np.asarray(params["bias"])
    layer = nnx.Linear(in_features, out_features, rngs=nnx.Rngs(0), **options)
    return np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])


def conv(framework, in_features, out_features, x=None, **options):
    """A convolution's kernel and, where there is an input, its output."""
    if framework == "linen":
        layer = linen.Conv(out_features, (3, 3), padding="CIRCULAR", **options)
        params = layer.init(KEY, jnp.zeros((1, 4, 4, in_features)))
        return np.asarray(params["params"]["kernel"]), None if x is None else layer.apply(params, x)
    layer = nnx.Conv(in_features, out_features, (3, 3), padding="CIRCULAR", rngs=nnx.Rngs(0), **options)
    return np.asarray(layer.kernel[...]), None if x is None else layer(x)


def check_gaussian(sample, deviation):
    """Mean, variance and kurtosis within four standard errors."""
    x, n = sample.reshape(-1) / deviation, sample.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * (variance / n) ** 0.5


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_gaussian_kernels_and_biases_have_the_stated_law(framework):
    edge = theory.critical_point(TANH, sigma_b=0.3)
    kernel, bias = dense(
        framework,
        300,
        400,
        kernel_init=initializers.critical_gaussian(TANH, sigma_b=0.3),
        bias_init=initializers.critical_bias(TANH, sigma_b=0.3),
    )
    check_gaussian(kernel, edge.sigma_w / 300**0.5)
    check_gaussian(bias, 0.3)
    kernel, _ = conv(framework, 20, 50, kernel_init=initializers.variance_preserving(RELU))
    check_gaussian(kernel, (2 / (9 * 20)) ** 0.5)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_orthogonal_kernels_are_orthogonal_and_keep_the_mean_square(framework):
    init = initializers.critical(TANH, q_star=0.5).kernel_init
    variance = float(theory.critical_point(TANH, q_star=0.5).sigma_w ** 2)
    for rows, columns in ((64, 64), (96, 40), (40, 96)):
        kernel, _ = dense(framework, rows, columns, kernel_init=init)
        small, width = (kernel.T @ kernel, 1) if rows >= columns else (kernel @ kernel.T, columns / rows)
        np.testing.assert_allclose(small, variance * width * np.eye(min(rows, columns)), atol=1e-5)
        # E |x^T W|^2 / out over x of independent entries
        assert (kernel**2).sum() / columns == pytest.approx(variance, rel=1e-5)
    kernel, _ = conv(framework, 8, 24, kernel_init=init)
    np.testing.assert_allclose(
        kernel.reshape(72, 24).T @ kernel.reshape(72, 24), variance * np.eye(24), atol=1e-5
    )


def test_orthogonal_matrices_are_uniformly_distributed():
    """Under the Haar measure the trace of an orthogonal n x n matrix has mean 0, variance 1, fourth moment 3."""
    draw = jax.vmap(lambda key: initializers.orthogonal()(key, (6, 6)))
    trace = np.trace(draw(jax.random.split(KEY, 4000)), axis1=1, axis2=2)
    check_gaussian(trace, 1.0)


@pytest.mark.parametrize("framework", ["linen", "nnx"])
def test_delta_orthogonal_convolutions_keep_norms(framework):
    x = jax.random.normal(KEY, (5, 6, 7, 12))
    norms = lambda y: np.linalg.norm(np.asarray(y).reshape(5, -1), axis=1)  # noqa: E731
    kernel, y = conv(framework, 12, 12, x, kernel_init=initializers.delta_orthogonal(1.5))
    np.testing.assert_allclose(norms(y), 1.5 * norms(x), rtol=1e-5)
    assert np.count_nonzero(np.abs(kernel).sum((2, 3))) == 1
    _, y = conv(framework, 12, 30, x, kernel_init=initializers.critical_delta_orthogonal(RELU))
    np.testing.assert_allclose(
        (np.asarray(y) ** 2).mean((1, 2, 3)), 2 * (np.asarray(x) ** 2).mean((1, 2, 3)), rtol=1e-5
    )


@pytest.mark.parametrize("shape", [(3, 5, 5), (4, 2, 5, 8), (1, 2, 3, 4, 4)])
def test_delta_orthogonal_is_that_of_jax_but_for_the_scale(shape):
    ours, theirs = (
        f(KEY, shape) for f in (initializers.delta_orthogonal(), jax.nn.initializers.delta_orthogonal())
    )
    np.testing.assert_allclose(ours, theirs * (shape[-1] / shape[-2]) ** 0.5, atol=1e-6)


@pytest.mark.parametrize("law", ["gaussian", "orthogonal"])
def test_a_deep_critical_network_stays_at_its_fixed_point(law):
    depth, width, q, num_networks = 50, 64, 0.5, 6
    kernel_init, bias_init = initializers.critical(TANH, q_star=q, weights=law)

    def layer(h, key):
        keys = jax.random.split(key)
        h = jnp.tanh(h) @ kernel_init(keys[0], (width, width)) + bias_init(keys[1], (width,))
        return h, jnp.mean(h**2)

    def network(key):
        h = jax.random.normal(key, (width,)) * q**0.5
        return jax.lax.scan(layer, h, jax.random.split(key, depth))[1]

    measured = np.asarray(
        jax.jit(lambda keys: jax.lax.map(network, keys))(jax.random.split(KEY, num_networks))
    )
    # q is drawn to the fixed point in xi_q layers: it fluctuates like the mean of so many layers' chi-squares
    z, weights = np.polynomial.hermite_e.hermegauss(80)
    second_moment = lambda q: weights @ np.tanh(q**0.5 * z) ** 2 / weights.sum()  # noqa: E731
    edge = theory.critical_point(TANH, q_star=q)
    assert edge.sigma_w**2 * second_moment(q) + edge.sigma_b**2 == pytest.approx(q, rel=1e-9)
    xi = -1 / np.log(edge.sigma_w**2 * (second_moment(q + 1e-5) - second_moment(q - 1e-5)) / 2e-5)
    deviation = q * (2 / width * (1 + xi)) ** 0.5
    assert np.abs(measured - q).max() < 6 * deviation
    assert (
        abs(measured[:, 10:].mean() - q)
        < 4 * deviation * ((1 + 2 * xi) / (num_networks * 40)) ** 0.5 + q * xi / width
    )


@pytest.mark.parametrize("law", ["gaussian", "orthogonal", "delta_orthogonal"])
@pytest.mark.parametrize("q", [0.1, 1.0])
def test_a_wide_layer_of_the_pair_keeps_q_star_and_the_size_of_gradients(law, q):
    """Both by the layer itself: the mean square of h' = W^T f(h) + b, and of the vectors W D v, D = diag f'(h)."""
    width, num_biases, batch = 768, 8, 512
    init = initializers.critical(TANH, q_star=q, weights=law)
    shape = (3, width, width) if law == "delta_orthogonal" else (width, width)
    keys = jax.random.split(jax.random.key(3), 4)
    kernel = init.kernel_init(keys[0], shape)
    kernel = np.asarray(kernel[1] if law == "delta_orthogonal" else kernel, float)  # what the centre tap maps
    bias = np.asarray(init.bias_init(keys[1], (num_biases, 1, width)), float)
    h, v = (np.asarray(jax.random.normal(k, (num_biases, batch, width)), float) for k in keys[2:])
    weighted = np.tanh(q**0.5 * h) @ kernel
    slopes = (1 - np.tanh(q**0.5 * h) ** 2) * (v @ kernel.T)
    # Four standard errors: of the entries of f(h), h' and W v, of the trace of a Gaussian W W^T, and of the biases.
    share = np.mean(bias**2) / q
    error = 4 * (6 / h.size + (law == "gaussian") * 2 / width**2 + 2 * share**2 / bias.size) ** 0.5
    assert np.mean((weighted + bias) ** 2) == pytest.approx(q, rel=error)
    assert np.mean(slopes**2) == pytest.approx(1, rel=error)
    if share > error:  # a Gaussian layer of this width does not show the 0.8 % at q = 0.1
        assert np.mean(weighted**2) < q * (1 - error)


def test_the_pair_is_what_its_parts_are_and_kernels_alone_say_what_they_lack():
    for law in ("gaussian", "orthogonal", "delta_orthogonal"):
        alone = getattr(initializers, f"critical_{law}")
        pair = initializers.critical(TANH, sigma_b=0.3, weights=law)
        assert pair == (alone(TANH, sigma_b=0.3), initializers.critical_bias(TANH, sigma_b=0.3))
        with pytest.warns(UserWarning, match=r"critical only beside biases of sigma_b = 0\.0\d+\. Take both"):
            kernel_init = alone(TANH, q_star=0.1)
        assert kernel_init == initializers.critical(TANH, q_star=0.1, weights=law).kernel_init
        # relu is critical without biases, at every q
        assert initializers.critical(RELU, weights=law).bias_init == initializers.bias(0.0)
        assert alone(RELU) == initializers.critical(RELU, weights=law).kernel_init
    with pytest.raises(
        ValueError, match="`weights` must be one of 'gaussian', 'orthogonal', 'delta_orthogonal', got"
    ):
        initializers.critical(TANH, q_star=0.1, weights="uniform")


@pytest.mark.parametrize("law", ["gaussian", "orthogonal", "delta_orthogonal"])
def test_what_kernels_alone_lack_is_said_of_the_line_that_asked(law):
    # A copy from the file, for who checks annotations puts frames of its own between.
    spec = spec_from_file_location(initializers.__name__, initializers.__file__)
    plain = module_from_spec(spec)
    spec.loader.exec_module(plain)
    with pytest.warns(UserWarning, match="critical only beside biases") as caught:
        getattr(plain, f"critical_{law}")(TANH, q_star=0.1)
    assert caught[0].filename == __file__


class Residual(linen.Module):
    """Blocks h + W_2 relu(W_1 h)."""

    num_blocks: int
    branch: initializers.Branch

    @linen.compact
    def __call__(self, h):
        for _ in range(self.num_blocks):
            branch = linen.Dense(16, kernel_init=self.branch.inner, use_bias=False)(h)
            branch = linen.Dense(16, kernel_init=self.branch.last, use_bias=False)(jax.nn.relu(branch))
            h = h + branch
        return h


def test_fixup_starts_as_the_identity_in_linen():
    x = jax.random.normal(KEY, (4, 16))
    model = Residual(5, initializers.fixup(5, 2))
    variables = model.init(KEY, x)
    np.testing.assert_array_equal(model.apply(variables, x), x)
    kernels = np.stack([variables["params"][f"Dense_{2 * i}"]["kernel"] for i in range(5)])
    check_gaussian(kernels, (2 / 16) ** 0.5 * 5**-0.5)


class Block(nnx.Module):
    """h + alpha W_2 relu(W_1 h)."""

    def __init__(self, branch, alpha, rngs):
        self.inner = nnx.Linear(16, 16, kernel_init=branch.inner, rngs=rngs)
        self.last = nnx.Linear(16, 16, kernel_init=branch.last, rngs=rngs)
        self.alpha = nnx.Param(alpha(rngs.params(), ()))

    def __call__(self, h):
        return h + self.alpha[...] * self.last(jax.nn.relu(self.inner(h)))


def test_multipliers_of_branches_in_nnx():
    x = jax.random.normal(KEY, (4, 16))
    live = initializers.Branch(*[initializers.variance_preserving(RELU)] * 2)
    for branch, alpha in (
        (live, initializers.re_zero()),
        (live, initializers.skip_init()),
        (initializers.fixup(8, 2), initializers.skip_init(8)),
    ):
        np.testing.assert_array_equal(Block(branch, alpha, nnx.Rngs(0))(x), x)
    assert float(Block(live, initializers.skip_init(16), nnx.Rngs(0)).alpha[...]) == 0.25


def test_branches_scaled_by_skip_init_keep_the_output_bounded_in_depth():
    """Var = (1 + 1 / L)^L < e whatever the number L of blocks: weights N(0, 2 / fan_in), relu, width to infinity."""
    width = 256
    weights = initializers.variance_preserving(RELU)
    last = initializers.gaussian(1.0)

    def output(num_blocks, key):
        alpha = initializers.skip_init(num_blocks)(key, ())

        def block(h, key):
            first, second = jax.random.split(key)
            branch = jax.nn.relu(h @ weights(first, (width, width))) @ last(second, (width, width))
            return h + alpha * branch, None

        h = jax.random.normal(key, (width, width))
        return jnp.mean(jax.lax.scan(block, h, jax.random.split(key, num_blocks))[0] ** 2)

    for num_blocks in (4, 32):
        assert float(output(num_blocks, KEY)) == pytest.approx((1 + 1 / num_blocks) ** num_blocks, rel=0.1)


def test_a_step_from_fixup_moves_the_output_as_much_at_every_depth():
    """Zhang et al. 2019, section 3: without the factor the first step grows in proportion to the depth."""
    width, x = 64, jax.random.normal(KEY, (64,))

    def step(num_blocks, branch, key):
        inner_key, last_key = jax.random.split(key)

        def draw(init, key):
            return jax.vmap(lambda k: init(k, (width, width)))(jax.random.split(key, num_blocks))

        inner, last = draw(branch.inner, inner_key), draw(branch.last, last_key)

        def output(weights):
            return jax.lax.scan(lambda h, w: (h + jax.nn.relu(h @ w[0]) @ w[1], None), x, weights)[0].sum()

        value, gradient = jax.value_and_grad(output)((inner, last))
        rate = 1e-5
        moved = jax.tree.map(lambda w, g: w + rate * g, (inner, last), gradient)
        return float((output(moved) - value) / rate)

    # sum over blocks of |relu(h W_1)|^2 |1|^2 = L L^-1 |x|^2 width
    expected = width * float(jnp.sum(x**2))
    for num_blocks in (4, 16):
        assert step(num_blocks, initializers.fixup(num_blocks, 2), KEY) == pytest.approx(expected, rel=0.25)
    unscaled = initializers.Branch(initializers.variance_preserving(RELU), initializers.fixup(1, 2).last)
    assert step(16, unscaled, KEY) > 10 * expected


class Deep(linen.Module):
    """Dense layers with biases, handing out what they give."""

    @linen.compact
    def __call__(self, x):
        hidden = []
        for width in (32, 24, 8):
            x = linen.Dense(width, bias_init=jax.nn.initializers.normal(0.3))(
                x if not hidden else jnp.tanh(x)
            )
            hidden.append(x)
        return hidden


def test_lsuv_in_linen():
    x = 3 * jax.random.normal(KEY, (100, 16)) + 1
    model = Deep()
    variables = model.init(KEY, x)
    found = jax.jit(
        lambda variables: initializers.lsuv(
            lambda v: [jnp.var(h) for h in model.apply(v, x)],
            variables,
            kernels=lambda v: [v["params"][f"Dense_{i}"]["kernel"] for i in range(3)],
            tol=1e-4,
        )
    )(variables)
    for h in model.apply(found, x):
        assert float(jnp.var(h)) == pytest.approx(1, abs=2e-4)
    for name, layer in variables["params"].items():
        np.testing.assert_array_equal(found["params"][name]["bias"], layer["bias"])
        ratio = found["params"][name]["kernel"] / layer["kernel"]  # one factor a kernel
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)


def test_lsuv_in_an_nnx_network_with_stacked_kernels():
    x = 3 * jax.random.normal(KEY, (100, 6))
    network = nn.MLP(6, 32, 2, max_depth=7, activation=RELU, sigma_b=0.1, rngs=nnx.Rngs(0))
    graphdef, params = nnx.split(network)

    def variances(params):
        network = nnx.merge(graphdef, params)
        trace = network.trace(x)
        return [jnp.var(trace.preactivation[0]), jnp.var(trace.hidden, axis=(1, 2)), jnp.var(network(x))]

    found = initializers.lsuv(
        variances,
        params,
        kernels=lambda p: [
            p["embed"]["kernel"],
            p["stack"]["stages"]["affine"]["kernel"],
            p["head"]["kernel"],
        ],
        target=2.0,
        tol=1e-3,
    )
    nnx.update(network, found)
    embedded, hidden, out = variances(nnx.state(network))
    assert hidden.shape == (7,)
    np.testing.assert_allclose([embedded, *hidden, out], 2, rtol=2e-3)


def test_lsuv_refuses_what_it_cannot_scale():
    params, x = {"a": jnp.eye(3), "b": jnp.zeros((3, 3))}, jax.random.normal(KEY, (9, 3))
    variances = lambda p: [jnp.var(x @ p["a"]), jnp.var(x @ p["a"] @ p["b"])]  # noqa: E731
    both = lambda p: [p["a"], p["b"]]  # noqa: E731
    with pytest.raises(ValueError, match=r"that of layer 1 .* is not"):
        initializers.lsuv(variances, params, kernels=both)
    under_jit = jax.jit(lambda p: initializers.lsuv(variances, p, kernels=both))(params)
    assert np.isnan(under_jit["b"]).all()
    assert np.isfinite(under_jit["a"]).all()
    with pytest.raises(ValueError, match=r"got shapes \[\(\), \(\)\] for kernels \[\(3, 3\)\]"):
        initializers.lsuv(variances, params, kernels=lambda p: p["a"])
    with pytest.raises(ValueError, match="different leaves"):
        initializers.lsuv(variances, params, kernels=lambda p: [p["a"], p["a"]])
    with pytest.raises(ValueError, match="`target` must be positive"):
        initializers.lsuv(variances, params, kernels=both, target=0.0)


def test_initializers_are_drop_ins_for_those_of_jax():
    mine = [
        initializers.critical_gaussian(TANH, sigma_b=0.3),
        initializers.critical_orthogonal(TANH, sigma_b=0.3),
        initializers.critical_delta_orthogonal(TANH, sigma_b=0.3),
        initializers.critical_bias(TANH, sigma_b=0.3),
        initializers.scaled(jax.nn.initializers.he_normal(), 0.5),
        initializers.skip_init(3),
    ]
    again = [initializers.critical_gaussian(TANH, sigma_b=0.3), *mine[1:]]
    assert hash(mine[0]) == hash(again[0])
    assert mine == again
    shape = (2, 4, 4)
    for init in mine:
        assert init(KEY, shape).dtype == jnp.float32
        assert init(KEY, shape, jnp.bfloat16).dtype == jnp.bfloat16
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    for init in (mine[0], mine[1], mine[5]):  # each hands the sharding on in its own way
        with jax.set_mesh(mesh):
            placed = init(KEY, shape, out_sharding=jax.P(None, None, "x"))
        assert placed.sharding.spec == jax.P(None, None, "x")
        np.testing.assert_allclose(placed, init(KEY, shape), atol=1e-6)
    for init in (*mine[:4], mine[5]):
        assert pickle.loads(pickle.dumps(init)) == init
    with jax.enable_x64(True):
        W = initializers.orthogonal()(KEY, (8, 4), jnp.float64)
        np.testing.assert_allclose(W.T @ W, np.eye(4), atol=1e-14)


@pytest.mark.parametrize("name", ["gaussian", "orthogonal", "delta_orthogonal", "bias"])
def test_a_traced_scale_draws_what_a_known_one_draws(name):
    law, shape = getattr(initializers, name), (3, 7, 10)
    scales = jnp.array([0.0, 0.3, 1.7])
    traced = jax.vmap(lambda scale: law(scale)(KEY, shape, jnp.bfloat16))(scales)
    assert traced.dtype == jnp.bfloat16
    for scale, drawn in zip(scales, jax.vmap(lambda scale: law(scale)(KEY, shape))(scales), strict=True):
        for known in (scale, float(scale)):
            np.testing.assert_allclose(drawn, law(known)(KEY, shape), rtol=4e-7)  # the scale's rounding
    assert hash(law(jnp.float32(0.5))) == hash(law(0.5))
    assert law(np.float64(0.3)) == law(0.3)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="tanh, which stays below"):
        initializers.variance_preserving(TANH)
    with pytest.raises(ValueError, match="softplus"):
        initializers.critical_gaussian(activations.softplus(1.0))
    with pytest.raises(ValueError, match="`q_star` must be one number"):
        initializers.critical_bias(TANH, q_star=np.ones(2))
    with pytest.raises(TypeError, match="not both"):
        initializers.critical_bias(TANH, sigma_b=0.1, q_star=1.0)
    with pytest.raises(ValueError, match="`sigma_w` must be finite and nonnegative, got -1"):
        initializers.gaussian(-1.0)
    with pytest.raises(ValueError, match=r"`shape` must be that of a kernel.* got \(3,\)"):
        initializers.gaussian()(KEY, (3,))
    for shape in ((4, 4), (3, 4, 2)):
        with pytest.raises(ValueError, match="out >= in"):
            initializers.delta_orthogonal()(KEY, shape)
    with pytest.raises(ValueError, match="`num_layers_per_branch` must be an integer of at least 2, got 1"):
        initializers.fixup(4, 1)
    with pytest.raises(ValueError, match="`num_blocks` must be an integer of at least 1, got 0"):
        initializers.skip_init(0)
    with pytest.raises(ValueError, match="`factor` must be finite"):
        initializers.scaled(jax.nn.initializers.ones, float("inf"))
    with pytest.raises(TypeError, match="`initializer` must be callable"):
        initializers.scaled(0.5, 0.5)


@pytest.mark.parametrize(
    "factory", [initializers.gaussian, initializers.orthogonal, initializers.delta_orthogonal]
)
def test_scales_and_dtypes_that_are_none_are_refused(factory):
    for sigma_w in (None, "a", np.ones(2), 1j, [[1.0], [1.0, 2.0]]):
        with pytest.raises(TypeError, match="`sigma_w` must be one real number"):
            factory(sigma_w)
    assert factory(np.float32(2)) == factory(2.0)
    with pytest.raises(ValueError, match="`dtype` must be a floating one, got int32"):
        factory()(KEY, (3, 4, 4), jnp.int32)


def test_a_convolution_without_taps_is_refused():
    with pytest.raises(ValueError, match=r"`shape` must be .*, got \(0, 4, 4\)"):
        initializers.delta_orthogonal()(KEY, (0, 4, 4))


def test_counts_may_be_numpys_and_not_beyond_all_floats():
    assert initializers.fixup(np.int64(64), np.int32(2)) == initializers.fixup(64, 2)
    assert initializers.skip_init(np.int64(4)) == initializers.skip_init(4)
    for make in (lambda: initializers.fixup(10**400, 2), lambda: initializers.skip_init(10**400)):
        with pytest.raises(ValueError, match="`num_blocks` must be at most"):
            make()
