import warnings
from functools import partial

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

from jaxact import activations, nn
from jaxact.lipschitz import Ball, Box, certify
from jaxact.trace import lower

_RNG = np.random.default_rng(0)
W = [_RNG.normal(size=(6, 6)) / 6**0.5 for _ in range(4)]
# relu_squared has no Lipschitz constant.
_LIPSCHITZ = [name for name in activations.names() if name != "relu_squared"]


def attacker(fn, shape, *, num_pairs=500, num_climbs=20):
    """A function of (center, radius): the largest |f(x') - f(x)| / |x' - x| over random pairs, and over those that
    gradient ascent makes of them."""
    size = int(np.prod(shape))

    def flat(x):
        return ravel_pytree(fn(x.reshape(shape)))[0]

    def ratio(pair, center, radius):
        offsets = pair - center
        lengths = jnp.linalg.norm(offsets, axis=1, keepdims=True)
        radius = jnp.minimum(radius, 1e30)  # of infinity the branch not taken would have the gradient NaN
        x, y = center + offsets * jnp.where(lengths > radius, radius / lengths, 1)
        distance = jnp.linalg.norm(x - y)
        change = jnp.sqrt(jnp.sum((flat(x) - flat(y)) ** 2) + 1e-300)
        return jnp.where(distance > 1e-9, change / jnp.where(distance > 1e-9, distance, 1), 0)

    @jax.jit
    def climb(pairs, center, radius):
        def step(pairs, length):
            values, slopes = jax.vmap(jax.value_and_grad(ratio), (0, None, None))(pairs, center, radius)
            slopes = slopes / (1e-12 + jnp.linalg.norm(slopes, axis=(1, 2), keepdims=True))
            distances = jnp.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1)[:, None, None]
            return pairs + length * distances * slopes, values.max()

        if not num_climbs:
            return jax.vmap(ratio, (0, None, None))(pairs, center, radius).max()
        return jax.lax.scan(step, pairs, 0.5 * 0.9 ** jnp.arange(num_climbs))[1].max()

    def attack(center=0.0, radius=np.inf):
        rng = np.random.default_rng(5)
        center = np.ravel(np.broadcast_to(center, shape))
        spread = 2.0 if np.isinf(radius) else radius / size**0.5
        x = center + spread * rng.normal(size=(num_pairs, size))
        y = x + 10 ** rng.uniform(-4, 0, size=(num_pairs, 1)) * spread * rng.normal(size=x.shape)
        with jax.enable_x64(True):
            return float(climb(np.stack([x, y], 1), center, float(radius)))

    return attack


def jacobian_norm(fn, x):
    with jax.enable_x64(True):
        return np.linalg.norm(np.asarray(jax.jit(jax.jacfwd(fn))(jnp.asarray(x))).reshape(-1, np.size(x)), 2)


@pytest.mark.parametrize("name", _LIPSCHITZ)
def test_every_activation_is_certified(name):
    activation = activations.parse(name)
    first, second, third = W[0], W[1], W[2][:, :2]
    network = certify(lambda x: activation(activation(x @ first) @ second) @ third, jnp.zeros(6))
    assert network.certified
    norms = [np.linalg.norm(w, 2) for w in (first, second, third)]
    assert network.value <= np.prod(norms) * activation.lipschitz**2 * (1 + 1e-6)
    # Jacobians at many points, from the stated derivative
    x = 3 * np.random.default_rng(1).normal(size=(500, 6))
    both = jax.jit(activation.value_and_slope)
    with jax.enable_x64(True):
        y, slope = (np.asarray(part) for part in both(x @ first))
        _, other = (np.asarray(part) for part in both(y @ second))
    jacobians = (first[None] * slope[:, None]) @ (second[None] * other[:, None]) @ third
    assert np.linalg.norm(jacobians, 2, axis=(1, 2)).max() <= network.value


@pytest.mark.parametrize("name", ["gelu", "hard_silu", "selu", "gaussian", "abs"])
def test_one_unit_is_as_steep_as_its_activation(name):
    steepest = activations.parse(name).lipschitz
    assert steepest <= certify(activations.parse(name), jnp.zeros(1)).value <= steepest * (1 + 1e-6)


def test_a_linear_network_is_the_norm_of_its_matrix():
    certificate = certify(lambda x: ((x @ W[0] + 1) @ W[1]).reshape(2, 3).T @ W[2][:2], jnp.zeros(6))
    matrix = np.einsum("iab,ac->ibc", (W[0] @ W[1]).reshape(6, 2, 3), W[2][:2]).reshape(6, -1)
    expected = np.linalg.norm(matrix, 2)
    assert expected <= certificate.value <= expected * (1 + 1e-9)


def test_batch_norm_between_dense_layers_is_folded():
    class Folded(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(6, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
            self.norm.mean[...] = jnp.linspace(-1, 1, 8)
            self.norm.var[...] = jnp.linspace(0.1, 3, 8)
            self.norm.scale[...] = jnp.linspace(-2, 2, 8)

        def __call__(self, x):
            return self.second(self.norm(self.first(x)))

    model = Folded(nnx.Rngs(0))
    first, second, scale, var = (
        np.asarray(p[...], float)
        for p in (model.first.kernel, model.second.kernel, model.norm.scale, model.norm.var)
    )
    expected = np.linalg.norm((first * (scale / np.sqrt(var + 1e-5))) @ second, 2)
    assert certify(lambda x: model(x), jnp.zeros((1, 6))).value == pytest.approx(expected, rel=1e-6)


def test_an_orthogonal_relu_network_is_one_lipschitz():
    matrices = [np.linalg.qr(w)[0] for w in W]

    def fn(x):
        for q in matrices:
            x = jax.nn.relu(x @ q)
        return x

    assert certify(fn, jnp.zeros(6)).value == pytest.approx(1, abs=1e-9)


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.Conv(3, (3, 3), strides=(2, 2))(x)
        x = linen.gelu(linen.BatchNorm(use_running_average=True)(x))
        x = linen.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        return linen.Dense(2)(linen.silu(linen.Dense(4)(x)))


def linen_model():
    net = LinenNet()
    params = net.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    return partial(net.apply, params), (1, 8, 8, 1)


def jaxact_model(kind, stage, activation):
    if kind == "mlp":
        model = nn.MLP(
            4, 6, 2, max_depth=4, activation=activation, stage=stage, norm=nnx.BatchNorm, rngs=nnx.Rngs(0)
        )
        shape = (1, 4)
    else:
        model = nn.ResNet(1, 3, 2, max_depth=2, activation=activation, stage=stage, rngs=nnx.Rngs(0))
        shape = (1, 4, 4, 1)
    rng = np.random.default_rng(2)
    for _, norm in nnx.iter_modules(model):
        if isinstance(norm, nnx.BatchNorm):
            norm.mean[...] = jnp.asarray(rng.normal(size=norm.mean.shape), jnp.float32)
            norm.var[...] = jnp.asarray(rng.uniform(0.5, 2, size=norm.var.shape), jnp.float32)
    model.eval()
    return lambda x: model(x), shape


MODELS = {
    "linen": linen_model,
    "pre-activation": partial(jaxact_model, "cnn", nn.PreAct, activations.relu),
    "post-activation": partial(jaxact_model, "cnn", nn.PostAct, activations.silu),
    "dense pre-activation": partial(jaxact_model, "mlp", nn.PreAct, nn.PReLU),
}


@pytest.mark.parametrize("name", MODELS)
def test_no_pair_of_inputs_exceeds_the_certificate(name):
    fn, shape = MODELS[name]()
    everywhere = certify(fn, jnp.zeros(shape))
    center = np.random.default_rng(3).normal(size=shape)
    within = certify(fn, jnp.zeros(shape), region=Ball(center, 0.1))
    assert within.value <= everywhere.value
    attack = attacker(fn, shape, num_climbs=20 if "dense" in name else 0)  # convolutions take long to compile
    assert 0 < attack() <= everywhere.value
    assert 0.1 * within.value < attack(center, 0.1) <= within.value


def test_an_equinox_model_is_certified():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 2, 8, 2, activation=jax.nn.softplus, key=jax.random.key(0))
    certificate = certify(lambda x: model(x), jnp.zeros(4))
    assert 0.1 * certificate.value < attacker(model, (4,))() <= certificate.value


def test_a_network_of_traced_depth_is_certified_as_its_static_twin():
    model = nn.MLP(4, 6, 2, max_depth=5, activation=activations.tanh, rngs=nnx.Rngs(0))
    chosen = activations.select([activations.relu, activations.tanh], 1)
    static = certify(lambda x: model(x, 3), jnp.zeros((1, 4)))
    traced = certify(lambda x: model(x, jnp.int32(3), chosen), jnp.zeros((1, 4)))
    assert traced.value == pytest.approx(static.value, rel=1e-9)


def normed(x):
    h = jnp.tanh(x @ W[0])
    return ((h - h.mean()) * jax.lax.rsqrt(jnp.var(h) + 1e-2)) @ W[1]


def attention(x):
    q, k, v = (x.reshape(2, 3) @ w[:3, :3] for w in W[:3])
    return jax.nn.softmax(q @ k.T) @ v


LOCAL = {
    "layer norm": normed,
    "attention": attention,
    "square": lambda x: jnp.square(x @ W[0]) @ W[1],
    "gated": lambda x: jax.nn.sigmoid(x @ W[0]) * (x @ W[1]),
    "normalised": lambda x: x / jnp.sqrt(1 + jnp.sum(x**2)),
    "network": lambda x: jax.nn.gelu(jax.nn.gelu(x @ W[0]) @ W[1]) @ W[2],
    "softmax": lambda x: jax.nn.softmax(jnp.tanh(x @ W[0]) @ W[1]),
}


@pytest.mark.parametrize("name", LOCAL)
def test_a_local_certificate_holds_and_tends_to_the_jacobian(name):
    fn = LOCAL[name]
    center = np.random.default_rng(4).normal(size=6)
    local = partial(certify, fn, jnp.zeros(6))
    here = jacobian_norm(fn, center)
    values = [local(region=Ball(center, radius)).value for radius in (1e-7, 0.03, 0.3)]
    assert here <= values[0] <= here * (1 + 1e-4)
    assert values == sorted(values)
    num_climbs = 20 if name in ("layer norm", "attention", "square") else 0
    assert attacker(fn, (6,), num_climbs=num_climbs)(center, 0.3) <= values[2]
    half = np.full(6, 0.3 / 6**0.5)
    box = local(region=Box(center - half, center + half))  # inside the ball
    assert here <= box.value <= values[2] * 1.5
    if name in ("network", "softmax", "layer norm", "normalised"):
        assert values[2] <= local().value
        assert local(region=Ball(center, 1e6)).value <= local().value * (1 + 1e-9)
    else:
        with pytest.raises(ValueError, match=r"test_certify\.py:\d+.*region="):
            local()


def test_softmax_and_logsumexp_are_bounded_everywhere():
    assert certify(jax.nn.softmax, jnp.zeros(3)).value == pytest.approx(0.5)
    assert certify(jax.nn.logsumexp, jnp.zeros(2)).value == pytest.approx(1.0)


def test_a_certificate_says_what_it_is():
    certificate = certify(
        lambda x: jnp.tanh(x @ W[0]), jnp.zeros(6, jnp.float32), region=Ball(np.zeros(6), 0.5)
    )
    assert certificate.certified
    assert certificate.norm == 2
    assert certificate.region.radius == 0.5
    assert any("exact arithmetic" in assumption for assumption in certificate.assumptions)
    assert certificate.log10 == pytest.approx(np.log10(certificate.value))


def test_refinement_lowers_the_bound():
    fn = lambda x: jax.nn.relu(jax.nn.relu(x @ W[0]) @ W[1]) @ W[2]  # noqa: E731
    start, refined = certify(fn, jnp.zeros(6)), certify(fn, jnp.zeros(6), num_steps=30)
    assert attacker(fn, (6,))() <= refined.value < start.value


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "norm", {"norm": 3}),
        (ValueError, "region", {"region": 0.1}),
        (ValueError, "shape", {"region": Ball(np.zeros(3), 0.1)}),
        (TypeError, "float", {"example": jnp.zeros(6, int)}),
        (ValueError, "empty", {"example": jnp.zeros(0)}),
        (TypeError, "function", {"fn": 3}),
        (ValueError, "finite", {"fn": lambda x: x * jnp.inf}),
        (ValueError, "finite", {"fn": lambda x: jnp.tanh(x @ jnp.full((6, 2), jnp.nan))}),
    ],
)
def test_bad_input_is_refused(error, message, options):
    with pytest.raises(error, match=message):
        certify(**{"fn": jnp.tanh, "example": jnp.zeros(6), **options})


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match="radius"):
        Ball(np.zeros(2), -1)


def test_a_function_of_chance_is_not_certified():
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="translated"):
        certify(lambda x: x * generator.normal(), jnp.zeros(6))


def test_a_repeated_certificate_of_a_chain_compiles_nothing():
    def chain(x):
        for kernel in W:
            x = jnp.tanh(x @ kernel)
        return x

    compiled = []

    def note(event, *_, **__):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    region = Ball(np.zeros(6), 0.1)
    first = certify(chain, jnp.zeros(6), region=region)
    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        again = certify(chain, jnp.zeros(6), region=region)
        assert not compiled
        jax.jit(lambda x: x + len(compiled))(1.0)
        assert compiled  # the listener hears of compilations
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    assert again.value == first.value


def test_outputs_that_cancel_to_rounding_are_no_slip_of_the_translation():
    center = np.linspace(-1, 1, 6)
    turned = [np.linalg.qr(kernel)[0] for kernel in W[:2]]

    def vanishing(x):
        return jnp.tanh((x @ turned[0]) - center @ turned[0]) @ turned[1]

    found = certify(vanishing, jnp.zeros(6), region=Ball(center, 0.1))
    assert 1 <= found.value <= 1 + 1e-9  # the slope of tanh at 0


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: x * jnp.nan,
        lambda x: x + jnp.inf,
        lambda x: x / 0,
        lambda x: jnp.maximum(x, jnp.nan),
        lambda x: jnp.tanh(jnp.inf * x),
        lambda x: jnp.tanh(x) + jnp.array([1, jnp.nan, 2]),
        lambda x: x**jnp.nan,
        lambda x: (x, jnp.full(2, jnp.inf)),
    ],
)
def test_numbers_that_are_not_finite_are_refused_with_the_remedy(fn):
    for region in (None, Ball(np.full(3, 0.5), 0.1)):
        with pytest.raises(ValueError, match=r"finite.*(?s:NaN or inf).*finite weights"):
            certify(fn, jnp.zeros(3), region=region)


def test_outputs_that_do_not_move_count_for_nothing():
    for fn in (
        lambda x: 0 * x,
        lambda x: jnp.ones(2),
        lambda x: 1.0,
        lambda x: x[:0],
        lambda x: (),
        lambda x: jnp.arange(3),
        lambda x: x - x,
    ):
        assert certify(fn, jnp.zeros(3)).value == 0
    whole = certify(lambda x: {"a": 3 * x, "b": (4 * x, x[:0], jnp.arange(2), None)}, jnp.zeros(3)).value
    assert 5 <= whole <= 5 * (1 + 1e-9)


def test_a_mask_of_minus_infinity_leaves_the_rest_as_it_is():
    mask = jnp.array([0, -jnp.inf, 0])
    masked = lambda x: jax.nn.softmax(jnp.tanh(x) + mask)  # noqa: E731
    without = lambda x: jax.nn.softmax(jnp.tanh(x[jnp.array([0, 2])]))  # noqa: E731
    region = Ball(np.full(3, 0.2), 0.1)
    for where in (None, region):
        assert certify(masked, jnp.zeros(3), region=where).value >= jacobian_norm(without, np.full(3, 0.2))


def test_factors_name_sizes_and_the_lines_of_the_model():
    def fn(x):
        for kernel in W[:2]:
            x = jax.nn.relu(x @ kernel)
        return jax.nn.gelu(x @ W[2]) @ W[3][:, :2]

    first = fn.__code__.co_firstlineno
    loop, last = f"(test_certify.py:{first + 2})", f"(test_certify.py:{first + 3})"
    assert [str(step) for step, _ in certify(fn, jnp.zeros(6)).factors] == [
        f"affine 1: 6 -> 6 {loop}",
        f"relu 2: 6 {loop}",
        f"affine 3: 6 -> 6 {loop}",
        f"relu 4: 6 {loop}",
        f"affine 5: 6 -> 6 {last}",
        f"gelu 6: 6 {last}",
        f"affine 7: 6 -> 2 {last}",
    ]


def test_a_function_traced_before_is_named_where_it_is_called_now():
    earlier = certify(lambda x: jax.nn.silu(x), jnp.zeros(5)).factors
    later = certify(lambda x: jax.nn.silu(x), jnp.zeros(5)).factors
    lines = [int(factors[0][0].place.split(":")[-1]) for factors in (earlier, later)]
    assert lines[1] == lines[0] + 1


def test_roundings_are_named_or_refused():
    halved = lambda x: 3 * x.astype(jnp.bfloat16).astype(x.dtype)  # noqa: E731
    for region in (None, Ball(jnp.zeros(2), 1.0)):
        found = certify(halved, jnp.zeros(2), region=region)
        np.testing.assert_allclose(found.value, 3, rtol=1e-12)
        assert any("conversions to bfloat16" in each for each in found.assumptions)
    assert not any("conversions" in each for each in certify(jnp.tanh, jnp.zeros(2)).assumptions)
    with pytest.raises(ValueError, match="rounding of `reduce_precision` has no slope"):
        certify(lambda x: jax.lax.reduce_precision(x, 5, 2), jnp.zeros(2))


def test_a_product_in_a_narrow_dtype_is_certified_with_its_rounding_named():
    kernel = jnp.asarray(W[0], jnp.bfloat16)

    def fn(x):
        numbers = (((0,), (0,)), ((), ()))
        return jax.lax.dot_general(x, kernel.astype(x.dtype), numbers, preferred_element_type=jnp.bfloat16)

    found = certify(fn, jnp.zeros(6))
    np.testing.assert_allclose(found.value, np.linalg.norm(np.asarray(kernel, float), 2), rtol=1e-9)
    assert any("conversions to bfloat16" in each for each in found.assumptions)


def test_a_reduced_precision_of_float32_is_named():
    found = certify(lambda x: jax.lax.reduce_precision(3 * x, 8, 23), jnp.zeros(2))
    np.testing.assert_allclose(found.value, 3, rtol=1e-12)
    assert any("conversions to float32" in each for each in found.assumptions)


@pytest.mark.parametrize("region", [None, Ball(jnp.zeros(3), 3.0), Box(jnp.full(3, -2.0), jnp.full(3, 2.0))])
def test_a_slip_away_from_the_middle_is_seen(monkeypatch, region):
    other = lower(lambda x: jnp.where(x > 1.5, 2 * x - 1.5, x), jnp.zeros(3))
    monkeypatch.setattr("jaxact.lipschitz._certify.lower_both", lambda *_: [other])
    with pytest.raises(ValueError, match="could not be translated"):
        certify(lambda x: 1.0 * x, jnp.zeros(3), region=region)


def test_a_product_of_three_vectors_summed_to_a_number_is_bounded_in_a_ball():
    cubed = lambda x: jnp.einsum("i,j,k->", x, x, x)  # noqa: E731
    found = certify(cubed, jnp.zeros(3), region=Ball(jnp.ones(3), 0.1))
    steepest = 3 * (3 + 0.1 * 3**0.5) ** 2 * 3**0.5  # of (sum x)^3
    assert steepest * (1 - 1e-9) <= found.value < 3 * steepest


_OF_NUMPY = {
    "product": lambda A, b: lambda x: jnp.tanh(x @ A),
    "sum": lambda A, b: lambda x: jnp.tanh(x + b),
    "indices": lambda A, b: lambda x: 2 * x[np.argsort(b)],
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", _OF_NUMPY)
def test_numpy_arrays_of_64_bits_serve_in_float32_before_and_after(name, jitted):
    # JAX keeps what it made of them in the width of the first time.
    for used_before in (False, True):
        A, b = np.array(W[0]), np.linspace(-1, 1, 6)  # that nothing has traced
        bare = _OF_NUMPY[name](A, b)
        fn = jax.jit(bare) if jitted else bare
        x = jnp.ones(6)
        if used_before:
            jax.jit(fn)(x)
        found = certify(fn, x)
        steepest = np.linalg.norm(jax.jacobian(bare)(x), 2)  # failed in a compiled product or in lowering
        assert found.value >= steepest * (1 - 1e-6)
        assert fn(x).dtype == (x + b).dtype == (x @ A).dtype == jnp.float32


def test_a_refusal_leaves_numpy_arrays_of_64_bits_as_they_were():
    b = np.linspace(-1, 1, 6)
    fn = jax.jit(lambda x: jax.lax.cumlogsumexp(x + b))
    with pytest.raises(ValueError, match="cumlogsumexp"):
        certify(fn, jnp.zeros(6))
    assert fn(jnp.ones(6)).dtype == (jnp.ones(6) + b).dtype == jnp.float32


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jax.random.normal(jax.random.key(0), (6, 6)).astype(x.dtype) @ x,
        lambda x: x * ((jnp.arange(6) * 2_000_000_000) % 7),
        lambda x: x * jnp.finfo(x.dtype).eps * 1e7,
        lambda x: x * (3.0 if x.dtype == jnp.float32 else 1.0),
    ],
    ids=["chance", "wrapping", "epsilon", "dtype"],
)
def test_a_function_that_is_another_one_in_float32_is_refused(fn):
    with pytest.raises(ValueError, match="the same function in float32"):
        certify(fn, jnp.zeros(6))
    with jax.enable_x64(True):  # as which it is then run
        steepest = np.linalg.norm(jax.jacobian(fn)(jnp.zeros(6)), 2)
        assert certify(fn, jnp.zeros(6)).value == pytest.approx(steepest, rel=1e-9)


_KEEP = np.array([True, False, True, True, False, True])


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jax.nn.softmax(3 * x, where=_KEEP),
        lambda x: jax.nn.logsumexp(3 * x, where=_KEEP),
        lambda x: jnp.max(x, where=_KEEP, initial=-jnp.inf),
        lambda x: jnp.min(jnp.where(_KEEP, x, jnp.inf)),
        lambda x: 2 * x.at[jnp.array([0, 9])].get(mode="fill", fill_value=5.0),
    ],
    ids=["softmax", "logsumexp", "max", "min", "gather"],
)
def test_what_is_masked_or_filled_leaves_the_rest_as_it_is(fn):
    region = Ball(np.linspace(-0.5, 0.5, 6), 0.2)
    found = certify(fn, jnp.zeros(6), region=region)
    assert found.value >= float(attacker(fn, (6,))(region.center, 0.2)) * (1 - 1e-5)
    assert found.value < 40


def test_empty_slices_count_for_nothing():
    region = Ball(np.ones(4), 0.1)
    alone = certify(lambda x: x.sum() + x, jnp.zeros(4), region=region).value
    for empty in (lambda x: x[:0] @ x[:0], lambda x: jnp.sum(jnp.tanh(x[:0]))):
        found = certify(lambda x, empty=empty: x.sum() + x + empty(x), jnp.zeros(4), region=region)
        assert found.value == pytest.approx(alone, rel=1e-9)
    product = certify(lambda x: jax.lax.associative_scan(jnp.multiply, x), jnp.zeros(4), region=region)
    assert product.value >= np.linalg.norm(np.tril(np.ones((4, 4))), 2)


@pytest.mark.parametrize(
    ("fn", "steepest"),
    [
        (lambda x: 1e-200 * x, 1e-200),
        (lambda x: jnp.full((2, 2), 1e-165) @ x, 2e-165),
        (lambda x: jnp.array([1e-170, 1e-170]) * x.sum(), 2e-170),
        (lambda x: 1e200 * x, 1e200),
        (lambda x: 1e160 * jax.nn.relu(1e-160 * x), 1.0),
    ],
)
@pytest.mark.parametrize("region", [None, Ball(np.ones(2), 0.5)])
def test_gains_whose_squares_are_out_of_range(fn, steepest, region):
    with jax.enable_x64(True):
        found = certify(fn, jnp.zeros(2), region=region)
    assert steepest <= found.value <= steepest * (1 + 1e-9)


def test_a_gain_beside_which_another_underflows_is_not_lost():
    with jax.enable_x64(True):  # the faint part alone is the output
        found = certify(lambda x: (1e-200 * jnp.tanh(x) + 1e-200 * x)[:1] + 0 * x, jnp.zeros(2))
    assert found.value >= 2e-200


def test_functions_that_cannot_be_traced_are_refused_with_the_remedy():
    kept = {}

    def caches(x):
        if "W" not in kept:
            kept["W"] = jnp.asarray(W[0])
        return kept["W"] @ x

    with pytest.raises(TypeError, match="must not keep arrays"):
        certify(caches, jnp.zeros(6))
    with pytest.raises(TypeError, match=r"branches with jnp\.where"):
        certify(lambda x: x if x[0] > 0 else -x, jnp.zeros(6))
    with pytest.raises(TypeError, match="got dtype object"):
        certify(jnp.tanh, None)
    assert certify(jnp.tanh, np.zeros(3, ">f4")).value == pytest.approx(1, rel=1e-9)


_BIAS = np.where(np.arange(16) % 2, -5.0, 5.0)
_UNEVEN = np.diag(np.r_[10.0, np.full(15, 0.01)])


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jax.nn.relu(x + _BIAS) + _BIAS,
        lambda x: jax.nn.leaky_relu(_UNEVEN @ x, 0.9) + _BIAS,
        lambda x: jnp.tanh(0.01 * (jax.nn.relu(_UNEVEN @ x) + _BIAS)),
        lambda x: 3 * (jnp.tanh(_UNEVEN @ x) * _BIAS + _BIAS) - _BIAS,
        lambda x: jnp.maximum(_UNEVEN @ x - _BIAS, 0) * 1e-100 + _BIAS,
    ],
)
@pytest.mark.parametrize("radius", [None, 1e-3, 1.0])
def test_what_is_added_after_an_activation_changes_nothing(fn, radius):
    center = np.linspace(0.1, 0.2, 16)
    found = certify(fn, jnp.zeros(16), region=None if radius is None else Ball(center, radius))
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        points = center + (radius or 3.0) * rng.uniform(-0.2, 0.2, (200, 16))
        slopes = np.linalg.norm(jax.jit(jax.vmap(jax.jacobian(fn)))(points), 2, axis=(1, 2))
    assert found.value >= slopes.max() * (1 - 1e-12)
    if radius == 1e-3:
        assert found.value <= 1.5 * slopes.max()


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jnp.max(jnp.where(_KEEP.reshape(2, 3), x.reshape(2, 3), -jnp.inf), 1),
        lambda x: jax.nn.logsumexp((3 * x).reshape(3, 2), axis=1, where=_KEEP.reshape(3, 2)),
        lambda x: jax.nn.softmax((W[0] @ x).reshape(2, 3), where=np.array([True, False, True])),
        lambda x: jnp.min(jnp.where(np.array([[True], [False]]), x.reshape(2, 3), jnp.inf), 0),
    ],
    ids=["max", "logsumexp", "softmax", "column"],
)
def test_masks_of_reshaped_arrays(fn):
    region = Ball(np.linspace(-0.5, 0.5, 6), 0.2)
    found = certify(fn, jnp.zeros(6), region=region)
    assert found.value >= float(attacker(fn, (6,))(region.center, 0.2)) * (1 - 1e-5)


def test_a_mask_that_depends_on_the_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Step where .* must have bounded slopes"):
        certify(lambda x: jnp.where(x > 0, jnp.inf, -jnp.inf), jnp.zeros(3), region=Ball(np.zeros(3), 1.0))


def test_tiny_boxes_do_not_collapse_to_their_middle():
    with jax.enable_x64(True):
        box = Box([-1.0, -1e-170], [1.0, 1e-170])
        try:
            value = certify(
                lambda x: jax.nn.relu(jnp.array([[0, 1e170]]) @ x - 0.5), jnp.zeros(2), region=box
            ).value
        except ValueError:  # out of range
            value = np.inf
    assert value >= 1e170
    assert box.around()[2] >= 1
    assert Box([-1e-200] * 2, [1e-200] * 2).around()[2] >= 1.41e-200


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_models_in_narrow_dtypes_and_chaotic_ones_are_the_same_functions(dtype):
    scanned = lambda x: jax.lax.scan(lambda h, _: (jnp.tanh(h), None), x, None, 3)[0]  # noqa: E731
    assert certify(scanned, jnp.zeros(4, dtype)).value == pytest.approx(1, rel=1e-6)
    rng = np.random.default_rng(0)
    weights = [jnp.asarray(rng.normal(size=(32, 32)) * 2 / 32**0.5, jnp.float32) for _ in range(60)]
    biases = [jnp.asarray(rng.normal(size=32) * 0.3, jnp.float32) for _ in range(60)]

    def narrow(x):
        for w, b in zip(weights, biases, strict=True):
            x = jnp.tanh((x.astype(dtype) @ w.astype(dtype) + b.astype(dtype)).astype(x.dtype))
        return x

    def wide(x):
        for w, b in zip(weights, biases, strict=True):
            x = jnp.tanh(x @ w + b)
        return x

    assert certify(narrow, jnp.zeros(32)).certified
    assert certify(wide, jnp.zeros(32), region=Ball(np.zeros(32), 0.01)).certified


def test_outputs_without_entries_have_no_slope():
    region = Ball(np.zeros(3), 0.5)
    assert certify(lambda x: jnp.sum(jnp.tanh(x[:0])) + 0 * x, jnp.zeros(3), region=region).value == 0


_EACH = np.array([5.0, 3.0, 2.0, 0.1])


@pytest.mark.parametrize(
    ("fn", "steepest"),
    [
        (lambda x: jnp.where(np.array([True, False, False, False]), x, 0.0)[:1], 1.0),
        (lambda x: jnp.where(x > 0, x, _EACH * x) * np.array([1, 0.01, 0.01, 0.01]), 5.0),
        (lambda x: jnp.where(x > 0, x, _EACH[::-1] * x) * np.array([0.01, 0.01, 0.01, 1]), 5.0),
        (lambda x: jnp.tanh(_EACH * x)[1:2], 3.0),
    ],
)
@pytest.mark.parametrize("region", [None, Ball(-np.ones(4), 1.5)])
def test_entries_with_constants_of_their_own_keep_their_slopes(fn, steepest, region):
    found = certify(fn, jnp.zeros(4), region=region).value
    assert steepest * (1 - 1e-12) <= found <= 1.25 * steepest


def test_entries_that_are_all_but_still_are_divided_by_nothing():
    dead = np.array([5.0, 0.0])
    found = certify(lambda x: jnp.clip((x * dead) ** 2, -30, 30), jnp.zeros(2), region=Ball(np.ones(2), 0.01))
    assert 50 <= found.value <= 53


def halving(x):
    def step(c, _):
        return 0.5 * c + jnp.abs(x), None

    return jax.lax.scan(step, jnp.zeros(4), None, length=6)[0]


@pytest.mark.parametrize(
    ("fn", "steepest"),
    [
        (lambda v: jnp.concatenate([jnp.abs(v), jnp.cos(v)]), 2**0.5),
        (lambda v: jnp.tanh(jnp.concatenate([jnp.abs(v), 0.5 * jnp.abs(v)])), 1.25**0.5),
        (lambda v: jnp.concatenate([jnp.abs(v - 1), jnp.sin(v), v]), 3**0.5),
        (halving, 2 - 2.0**-5),
    ],
)
def test_slopes_whose_middle_is_the_rounding_of_0_cost_no_quality(fn, steepest):
    steepest = steepest * (1 - 1e-9)
    assert steepest <= certify(fn, jnp.zeros(4)).value <= 2 * steepest
    assert steepest <= certify(fn, jnp.zeros(4), num_steps=100).value <= 1.1 * steepest


@pytest.mark.parametrize("num_steps", [0, 5])
def test_steps_without_entries_are_passed(num_steps):
    def running_maximum(v):  # its rounds of pairs end with none
        return jax.lax.associative_scan(jnp.maximum, v)

    largest = attacker(running_maximum, (4,))()
    assert largest <= certify(running_maximum, jnp.zeros(4), num_steps=num_steps).value <= 2.5


def test_a_number_is_padded_by_nothing():
    assert certify(lambda v: jax.lax.pad(v.sum(), 0.0, []), jnp.zeros(4)).value == pytest.approx(2.0)


@pytest.mark.parametrize("offset", [1.0, 1000.0])
def test_a_variance_by_the_difference_of_squares_keeps_what_it_cancels_from_as_its_rounding(offset):
    norm = nnx.LayerNorm(8, rngs=nnx.Rngs(0))  # E x^2 - (E x)^2
    for seed in range(4):
        x = offset + 1e-3 * np.random.default_rng(seed).normal(size=8)
        wide = x.astype(np.longdouble)
        away = wide - wide.mean()
        variance = (away**2).mean() + np.longdouble(1e-6)  # as it is traced in float64
        jacobian = (np.eye(8) - 1 / 8 - np.outer(away, away) / (8 * variance)) / np.sqrt(variance)
        steepest = np.linalg.norm(jacobian.astype(float), 2)
        certificate = certify(norm, jnp.ones(8), region=Ball(x, 1e-13))
        assert steepest <= certificate.value <= 1.05 * steepest


@pytest.mark.parametrize(
    ("fn", "steepest"),
    [
        (lambda x: 1 / (1 + jnp.exp(-x)), 0.25),
        (lambda x: 3 / (2 + 5 * jnp.exp(2 * x)), 3 / 4),
        (lambda x: jnp.exp(x) / (1 + jnp.exp(x)), 0.25),
        (lambda x: (jnp.exp(x) - jnp.exp(-x)) / (jnp.exp(x) + jnp.exp(-x)), 1.0),
        (lambda x: x / (1 + jnp.exp(-x)), 1.0998393),
        (lambda x: 1 - 2 / (jnp.exp(2 * x) + 1), 1.0),
        (lambda x: jnp.log(jnp.cosh(x)), 1.0),
        (lambda x: jnp.log(jnp.exp(x) + 2 * jnp.exp(-3 * x)), 3.0),
        (lambda x: jnp.log1p(4 * jnp.exp(x)), 1.0),
        (lambda x: jnp.exp(-jnp.exp(-x)), np.exp(-1)),
        (lambda x: 1 - jnp.exp(-3 * jnp.exp(2 * x)), 2 * np.exp(-1)),
        (lambda x: -jnp.log(jax.nn.sigmoid(-x)), 1.0),
        (lambda x: jnp.maximum(x, 0) + jnp.minimum(0, jnp.exp(x) - 1), 1.0),
        (lambda x: jnp.minimum(0, jnp.expm1(x)), 1.0),
        (lambda x: (1 + x**2) ** 0.5, 1.0),
        (lambda x: jnp.arctan2(x, 2.0), 0.5),
        (lambda x: jnp.log(x + jnp.sqrt(x * x + 1)), 1.0),
    ],
)
def test_formulas_as_people_write_them_have_their_slope(fn, steepest):
    at = np.linspace(-8, 8, 400_001)
    with jax.enable_x64(True):
        values = np.asarray(fn(jnp.asarray(at)))
    seen = np.abs(np.diff(values) / np.diff(at)).max()
    found = certify(fn, jnp.zeros(3)).value
    assert seen * (1 - 1e-9) <= found
    assert found == pytest.approx(steepest, rel=1e-6)
    local = certify(fn, jnp.zeros(3), region=Ball(jnp.array([0.3, -0.5, 1.0]), 0.2)).value
    assert local <= steepest * (1 + 1e-6)


@pytest.mark.parametrize("name", ["gelu", "silu", "mish", "selu", "elu", "quick_gelu"])
def test_an_activation_of_its_own_output_is_bounded_by_its_slopes(name):
    f = activations.parse(name)
    found = certify(lambda x: f(f(x)), jnp.zeros(2)).value
    assert attacker(lambda x: f(f(x)), (2,))() <= found <= f.lipschitz**2 * (1 + 1e-6)


def test_what_rounding_could_hide_is_a_jump():
    def difference(x):  # 0, by the difference of numbers near 1e10
        return (x + 1e5) ** 2 - (x - 1e5) ** 2 - 4e5 * x

    region = Box(np.array([0.5]), np.array([1.5]))
    for jump in (1e-3, 1e-6):
        with pytest.raises(ValueError, match="must have bounded slopes"):
            certify(
                lambda x, jump=jump: jnp.where(x > 1, difference(x) + jump, difference(x)),
                jnp.ones(1),
                region=region,
            )


def test_regions_beyond_float32_have_no_slopes_but_those_that_settle():
    region = Box(np.zeros(1), np.full(1, 1e60))
    with pytest.raises(ValueError, match="must have bounded slopes"):
        certify(lambda x: 1e-30 * x**2, jnp.zeros(1), region=region)
    assert certify(lambda x: jnp.sqrt(1 + x * x), jnp.zeros(1), region=region).value == pytest.approx(1.0)
    near = Box(np.zeros(1), np.full(1, 1e30))
    assert certify(lambda x: 1e-30 * x**2, jnp.zeros(1), region=near).value == pytest.approx(2.0)


def scaled_norm(v):
    return 3 * (v - v.mean()) * jax.lax.rsqrt(v.var() + 1e-2) + 1


def gained(norm, gains):
    norm.scale[...] = jnp.asarray(gains)
    return norm


def group_sort(v):
    return jnp.sort(v.reshape(3, 2), axis=1).reshape(-1)


@pytest.mark.parametrize(
    ("fn", "steepest"),
    [
        (jnp.sort, 1.0),
        (lambda v: jax.lax.top_k(v, 2)[0], 1.0),
        (jnp.median, 0.5**0.5),
        (group_sort, 1.0),
        (lambda v: jax.lax.cummax(v), 6**0.5),
        (lambda v: jax.lax.cummin(v, reverse=True), 6**0.5),
        (lambda v: jnp.where(v[:3] > v[3:], v[:3], v[3:]), 1.0),
        (lambda v: jnp.where(v[:3] <= v[3:], v[3:], v[:3]), 1.0),
        (lambda v: jnp.max(v.reshape(3, 2), axis=1), 1.0),
        (lambda v: jax.lax.reduce_window(v, -jnp.inf, jax.lax.max, (3,), (1,), "VALID"), 3**0.5),
        (jax.nn.softmax, 0.5),
        (lambda v: jax.nn.softmax(3 * v.reshape(2, 3), axis=0), 1.5),
        (jax.nn.logsumexp, 1.0),
        (jnp.linalg.norm, 1.0),
        (lambda v: jnp.sqrt(2 * jnp.sum(v**2) + 1e-3), 2**0.5),
        (lambda v: v / jnp.sqrt(jnp.mean(v**2) + 1e-2), 10.0),
        (scaled_norm, 30.0),
        (nnx.LayerNorm(6, rngs=nnx.Rngs(0), epsilon=1e-2, use_fast_variance=False), 10.0),
        (nnx.RMSNorm(6, rngs=nnx.Rngs(0), epsilon=1e-2), 10.0),
        (gained(nnx.RMSNorm(6, rngs=nnx.Rngs(0), epsilon=1e-2), [1.0, -4.0, 0.5, 2.0, 0.0, 1.0]), 40.0),
        (lambda v: v.at[jnp.array([1, 3])].multiply(jnp.array([-2.0, 0.5])), 2.0),
    ],
)
def test_what_stretches_by_a_known_number_everywhere_has_it(fn, steepest):
    found, attack = certify(fn, jnp.zeros(6)).value, attacker(fn, (6,))
    assert found == pytest.approx(steepest, rel=1e-6)
    assert attack() <= found * (1 + 1e-12)  # the attack rounds
    assert attack(0.0, 1e-2) <= found * (1 + 1e-9)  # where normalisations are steepest


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: W[1] @ group_sort(W[0] @ x),
        lambda x: x + W[1] @ group_sort(W[0] @ x),
        lambda x: jnp.sort(jnp.tanh(x)) + jnp.sin(x),
        lambda x: W[0] @ jax.nn.softmax(W[1] @ x) + jnp.linalg.norm(x) * jnp.ones(6),
        lambda x: x + W[0] @ jax.nn.relu(W[1] @ scaled_norm(x)),
        lambda x: jax.nn.log_softmax(W[0] @ jnp.sort(x)),
    ],
)
def test_steps_known_by_one_number_go_together_with_the_others(fn):
    center, attack = np.linspace(-1, 1, 6), attacker(fn, (6,))
    for region, where in ((None, ()), (Ball(center, 0.3), (center, 0.3))):
        plain, refined = (
            certify(fn, jnp.zeros(6), region=region, num_steps=num_steps).value for num_steps in (0, 50)
        )
        assert attack(*where) <= min(plain, refined)
        assert refined <= plain * (1 + 1e-9)


def test_a_model_that_stores_in_float32_is_certified_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert certify(
            lambda x: jnp.zeros(4, jnp.float32).at[0].set(x[0]), jnp.zeros(3)
        ).value == pytest.approx(1)


def test_what_a_model_raises_is_what_its_user_hears():
    def model(x):
        if x.dtype == jnp.float64:
            return x + jnp.zeros(5)  # of another shape: not the fault that its user knows
        raise TypeError("my own words")

    with pytest.raises(TypeError, match="my own words"):
        certify(model, jnp.zeros(3))


@pytest.mark.parametrize("name", ["seconds", "tolerance"])
@pytest.mark.parametrize("value", [-1, float("nan"), "a"])
def test_limits_that_are_none_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be >= 0 or None, got {value!r}"):
        certify(jnp.tanh, jnp.zeros(2), **{name: value})


TINY = {
    "a form": (lambda x: x @ (1e-200 * np.eye(3)) @ x, 2e-200 * (3**0.5 + 0.1)),
    "a bump": (lambda x: 1e-200 * jnp.exp(-((x - 1) ** 2).sum()), 1e-200 * 0.2 * np.exp(-0.01)),
    "a bump far out": (lambda x: jnp.exp(-((x - 1) ** 2).sum() - 500), 0.2 * np.exp(-500.01)),
    "steep": (lambda x: 1e25 * jnp.linalg.norm(x, keepdims=True), 1e25),
}


@pytest.mark.parametrize("name", TINY)
def test_steps_known_by_one_number_may_be_very_flat_or_steep(name):
    fn, slope = TINY[name]
    assert slope * (1 - 1e-9) <= certify(fn, jnp.ones(3), region=Ball(np.ones(3), 0.1)).value <= slope * 1.5
