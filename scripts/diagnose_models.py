"""Models with a planted fault, and healthy ones, in bare JAX, Flax NNX, Linen and Equinox."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from jaxact import activations, theory


class Size(NamedTuple):
    """What a model is drawn with."""

    width: int = 64
    depth: int = 1  # times what the case takes by itself
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """A model, and what is wrong with it.

    Attributes:
        args: of `jaxact.diagnose`.
        kinds: of finding that tell the fault; none for a healthy model.
        layer: whether a name is a layer where it lies.
        options: of `jaxact.diagnose`.
    """

    args: tuple[Any, ...]
    kinds: tuple[str, ...] = ()
    layer: Callable[[str], bool] = lambda name: True
    options: dict[str, Any] = field(default_factory=dict)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1000 + seed), shape)


def inputs(size: Size, num: int = 32, width: int | None = None) -> jax.Array:
    return normal(77 + size.seed, num, width or size.width)


def images(size: Size, num: int = 16, side: int = 8, channels: int = 3) -> jax.Array:
    return normal(78 + size.seed, num, side, side, channels)


def weights(size: Size, depth: int, scale: float = 1.0) -> list[jax.Array]:
    """[sigma_w^2 = scale] matrices."""
    n = size.width
    return [math.sqrt(scale / n) * normal(100 * size.seed + k, n, n) for k in range(int(depth * size.depth))]


def plain(act: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def fn(params: Any, x: Any) -> Any:
        h = x @ params[0]
        for w in params[1:]:
            h = act(h) @ w
        return h

    return fn


def scanned(act: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    def fn(w: Any, x: Any) -> Any:
        return jax.lax.scan(lambda h, w: (act(h @ w), None), x, w)[0]

    return fn


def named(*parts: str) -> Callable[[str], bool]:
    return lambda name: all(part in name for part in parts)


def exactly(name: str) -> Callable[[str], bool]:
    return lambda found: found == name


# --- Faults of initialisation -----------------------------------------------------------------------------------------


class MLP(nnx.Module):
    """Dense layers of NNX, `act` between them."""

    def __init__(self, size: Size, depth: int, act: Any, *, scale: float):
        rngs = nnx.Rngs(size.seed)
        init = {"kernel_init": nnx.initializers.variance_scaling(scale, "fan_in", "normal")}
        n = size.width
        self.layers = nnx.List([nnx.Linear(n, n, rngs=rngs, **init) for _ in range(int(depth * size.depth))])
        self.head = nnx.Linear(n, 10, rngs=rngs)
        self.act = act

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x)


def wrong_gain(size: Size) -> Case:
    return Case(
        (plain(jax.nn.relu), weights(size, 8, scale=18.0), inputs(size)),
        ("weight scale", "exploding signal", "exploding gradient"),
    )


def he_on_tanh(size: Size) -> Case:
    return Case(
        (scanned(jnp.tanh), jnp.stack(weights(size, 120, scale=2.0)), inputs(size)),
        ("weight scale", "exploding gradient", "chaotic"),
    )


def small_gain_on_relu(size: Size) -> Case:
    return Case(
        (MLP(size, 20, jax.nn.relu, scale=1.0), inputs(size)),
        ("weight scale", "vanishing signal", "vanishing gradient"),
    )


def selu_with_he(size: Size) -> Case:
    return Case(
        (plain(jax.nn.selu), weights(size, 24, scale=2.0), inputs(size)),
        ("weight scale", "exploding gradient", "exploding signal"),
    )


def gelu_with_lecun(size: Size) -> Case:
    return Case(
        (MLP(size, 24, jax.nn.gelu, scale=1.0), inputs(size)),
        ("weight scale", "vanishing gradient", "vanishing signal"),
    )


def leaky_with_he(size: Size) -> Case:
    act = lambda x: jax.nn.leaky_relu(x, 0.9)  # noqa: E731
    return Case(
        (plain(act), weights(size, 24, scale=2.0), inputs(size)),
        ("weight scale", "exploding gradient", "exploding signal"),
    )


def deep_sigmoid(size: Size) -> Case:
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(int(12 * size.depth)):
                x = nn.sigmoid(nn.Dense(size.width)(x))
            return nn.Dense(10)(x)

    return linen(Linen(), inputs(size), size, ("vanishing gradient", "weight scale"))


def linen(
    module: Any, x: Any, size: Size, kinds: tuple[str, ...] = (), layer: Any = lambda name: True
) -> Case:
    return Case(((module, module.init(jax.random.key(size.seed), x)), x), kinds, layer)


def one_bad_layer(size: Size) -> Case:
    ws = weights(size, 10, scale=2.0)
    k = len(ws) // 2
    ws[k] = 20 * ws[k]
    return Case(
        (plain(jax.nn.relu), ws, inputs(size)), ("weight scale", "exploding signal"), exactly(f"[{k}]")
    )


def small_last_layer(size: Size) -> Case:
    model = MLP(size, 6, jax.nn.relu, scale=2.0)
    model.head.kernel[...] = 1e-3 * model.head.kernel[...]
    return Case((model, inputs(size)), ("weight scale",), exactly("head.kernel"))


def zero_layer(size: Size) -> Case:
    model = MLP(size, 6, jax.nn.relu, scale=2.0)
    model.layers[3].kernel[...] = 0 * model.layers[3].kernel[...]
    return Case((model, inputs(size)), ("zero initialised",), exactly("layers[3].kernel"))


def weights_of_mean(size: Size) -> Case:
    ws = weights(size, 6, scale=2.0)
    ws[2] = jnp.abs(ws[2])
    return Case((plain(jax.nn.relu), ws, inputs(size)), ("mean shift", "weight scale"), exactly("[2]"))


def wrong_fan(size: Size) -> Case:
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            def init(key: Any, shape: Any, dtype: Any = jnp.float32) -> Any:
                return math.sqrt(2 / shape[2]) * jax.random.normal(key, shape, dtype)

            for _ in range(int(6 * size.depth)):
                x = nn.relu(nn.Conv(size.width // 4, (3, 3), kernel_init=init)(x))
            return nn.Dense(10)(x.mean((1, 2)))

    return linen(Linen(), images(size), size, ("wrong fan",), named("Conv"))


# --- Faults of activations and inputs ---------------------------------------------------------------------------------


def dead_relu(size: Size) -> Case:
    model = MLP(size, 5, jax.nn.relu, scale=2.0)
    model.layers[2].bias[...] = jnp.full(size.width, -6.0)
    return Case((model, inputs(size)), ("dead units",), exactly("layers[2].kernel"))


def saturated_tanh(size: Size) -> Case:
    model = eqx.nn.MLP(size.width, 10, size.width, 4, activation=jnp.tanh, key=jax.random.key(size.seed))
    model = eqx.tree_at(lambda m: m.layers[1].weight, model, replace_fn=lambda w: 60 * w)
    return Case((model, 2 * inputs(size)), ("saturated units", "weight scale"), exactly("layers[1].weight"))


def pixels(size: Size) -> Case:
    x = 127.5 + 73 * jnp.clip(inputs(size), -1.7, 1.7)
    return Case((MLP(size, 4, jnp.tanh, scale=1.0), x), ("input scale",), exactly("layers[0].kernel"))


def shifted(size: Size) -> Case:
    model = eqx.nn.MLP(size.width, 10, size.width, 3, key=jax.random.key(size.seed))
    return Case((model, 5 + inputs(size)), ("mean shift",), exactly("layers[0].weight"))


def ordered(size: Size) -> Case:
    def fn(params: Any, x: Any) -> Any:
        for w, b in params:
            x = jnp.tanh(x @ w + b)
        return x

    ws = weights(size, 20, scale=1.2)
    params = [(w, normal(500 + k + size.seed, size.width)) for k, w in enumerate(ws)]
    return Case((fn, params, inputs(size)), ("ordered", "vanishing gradient", "weight scale"))


# --- Blocks -----------------------------------------------------------------------------------------------------------


def post_activation(size: Size) -> Case:
    def fn(params: Any, x: Any) -> Any:
        h = x @ params[0]
        for w in params[1:]:
            h = jax.nn.sigmoid(h + h @ w)
        return h

    return Case((fn, weights(size, 16), inputs(size)), ("post-activation",))


def plain_batch_norm(size: Size) -> Case:
    def norm(h: Any) -> Any:
        return (h - h.mean(0)) * jax.lax.rsqrt(h.var(0) + 1e-5)

    def fn(params: Any, x: Any) -> Any:
        h = x @ params[0]
        for w in params[1:]:
            h = jax.nn.relu(norm(h)) @ w
        return h

    return Case((fn, weights(size, 40, scale=2.0), inputs(size, 64)), ("batch norm explosion",))


class Stream(nnx.Module):
    """Residual blocks h + W relu(V h)."""

    def __init__(self, size: Size, depth: int, end: Any):
        rngs, n = nnx.Rngs(size.seed), size.width
        he = nnx.initializers.he_normal()
        self.stem = nnx.Linear(n, n, rngs=rngs)
        self.first = nnx.List(
            [nnx.Linear(n, n, kernel_init=he, rngs=rngs) for _ in range(int(depth * size.depth))]
        )
        self.last = nnx.List([nnx.Linear(n, n, kernel_init=end, rngs=rngs) for _ in self.first])
        self.head = nnx.Linear(n, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        h = self.stem(x)
        for v, w in zip(self.first, self.last, strict=True):
            h = h + w(jax.nn.relu(v(h)))
        return self.head(h)


def unscaled_residual(size: Size) -> Case:
    return Case(
        (Stream(size, 16, nnx.initializers.lecun_normal()), inputs(size)),
        ("residual growth", "exploding signal"),
    )


class Attention(nnx.Module):
    """Multi-head attention written out."""

    def __init__(self, n: int, heads: int, rngs: nnx.Rngs, *, scaled: bool = True):
        self.q, self.k, self.v, self.o = (nnx.Linear(n, n, rngs=rngs) for _ in range(4))
        self.heads, self.scaled = heads, scaled

    def __call__(self, x: Any) -> Any:
        split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)  # noqa: E731
        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
        if self.scaled:
            scores = scores / math.sqrt(q.shape[-1])
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        return self.o(mixed.reshape(x.shape))


class Transformer(nnx.Module):
    """Blocks of attention and MLP, norms before each unless left out."""

    def __init__(
        self, size: Size, depth: int, *, normed: bool = True, scaled: bool = True, boost: float = 1.0
    ):
        rngs, n = nnx.Rngs(size.seed), size.width
        blocks = range(int(depth * size.depth))
        he = nnx.initializers.he_normal()
        self.embed = nnx.Linear(12, n, rngs=rngs)
        self.attention = nnx.List([Attention(n, 2, rngs, scaled=scaled) for _ in blocks])
        self.up = nnx.List([nnx.Linear(n, 2 * n, kernel_init=he, rngs=rngs) for _ in blocks])
        self.down = nnx.List([nnx.Linear(2 * n, n, rngs=rngs) for _ in blocks])
        self.norms = nnx.List([nnx.LayerNorm(n, rngs=rngs) for _ in range(2 * len(blocks) + 1)])
        self.head = nnx.Linear(n, 10, rngs=rngs)
        self.normed, self.boost = normed, boost

    def __call__(self, x: Any) -> Any:
        norm = (lambda k, h: self.boost * self.norms[k](h)) if self.normed else (lambda k, h: h)
        h = self.embed(x)
        for k, attend in enumerate(self.attention):
            h = h + attend(norm(2 * k, h))
            h = h + self.down[k](jax.nn.gelu(self.up[k](norm(2 * k + 1, h))))
        return self.head(norm(2 * len(self.attention), h).mean(1))


def tokens(size: Size) -> jax.Array:
    return normal(79 + size.seed, 8, 16, 12)


def missing_norm(size: Size) -> Case:
    return Case(
        (Transformer(size, 8, normed=False), tokens(size)),
        ("missing norm", "residual growth", "exploding signal"),
    )


def unscaled_attention(size: Size) -> Case:
    return Case((Transformer(size, 3, scaled=False), tokens(size)), ("saturated attention",), named(" @ "))


# --- Loops ------------------------------------------------------------------------------------------------------------


def recurrent(act: Any = jnp.tanh, *, every: bool = False) -> Callable[[Any, Any], Any]:
    def fn(params: Any, x: Any) -> Any:
        def step(h: Any, x: Any) -> Any:
            h = act(h @ params["recurrent"] + x @ params["input"])
            return h, h

        last, states = jax.lax.scan(
            step, jnp.zeros((x.shape[0], params["recurrent"].shape[0])), x.swapaxes(0, 1)
        )
        return (states if every else last) @ params["out"]

    return fn


def recurrent_params(size: Size, recurrent: jax.Array) -> dict[str, jax.Array]:
    n = size.width
    return {
        "recurrent": recurrent,
        "input": normal(3 + size.seed, 4, n) / 2,
        "out": normal(4 + size.seed, n, 5) / math.sqrt(n),
    }


def sequences(size: Size, steps: int = 40, scale: float = 1.0) -> jax.Array:
    return scale * normal(80 + size.seed, 16, int(steps * size.depth), 4)


def recurrent_of_gain(gain: float, act: Any, kinds: tuple[str, ...]) -> Callable[[Size], Case]:
    def make(size: Size) -> Case:
        w = gain * normal(5 + size.seed, size.width, size.width) / math.sqrt(size.width)
        args = (recurrent(act), recurrent_params(size, w), sequences(size))
        return Case(args, ("tied weights", *kinds), named("recurrent"))

    return make


def tied_scan(size: Size) -> Case:
    def fn(params: Any, x: Any) -> Any:
        h, _ = jax.lax.scan(
            lambda h, _: (jax.nn.relu(h @ params["shared"]), None), x, None, length=int(30 * size.depth)
        )
        return h @ params["head"]

    n = size.width
    params = {
        "shared": math.sqrt(1.0 / n) * normal(6 + size.seed, n, n),
        "head": normal(7 + size.seed, n, 5) / math.sqrt(n),
    }
    return Case(
        (fn, params, inputs(size)),
        ("tied weights", "vanishing signal", "vanishing gradient"),
        named("shared"),
    )


# --- Numbers ----------------------------------------------------------------------------------------------------------


def half(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def float16_overflow(size: Size) -> Case:
    ws = weights(size, 8, scale=2.0)
    ws[4] = 3e4 * ws[4]
    args = (plain(jax.nn.relu), half(ws, jnp.float16), half(3 * inputs(size), jnp.float16))
    return Case(args, ("overflow",), exactly("[4]"))


def float16_underflow(size: Size) -> Case:
    args = (plain(jax.nn.relu), half(weights(size, 6, 2.0), jnp.float16), half(inputs(size), jnp.float16))
    loss = lambda y: 1e-6 * jnp.mean(jnp.square(y))  # noqa: E731
    return Case(args, ("underflow",), options={"loss": loss})


def bfloat16_underflow(size: Size) -> Case:
    args = (plain(jax.nn.relu), half(weights(size, 6, 2.0), jnp.bfloat16), half(inputs(size), jnp.bfloat16))
    loss = lambda y: 1e-3 * jnp.mean(jnp.square(y.astype(jnp.float32)))  # noqa: E731
    return Case(args, ("underflow",), options={"loss": loss, "learning_rate": 1e-3})


def not_a_number(size: Size) -> Case:
    def fn(params: Any, x: Any) -> Any:
        h = x @ params["first"]
        h = jnp.log(h + 1) @ params["second"]  # of what is below -1 there is none
        return jnp.tanh(h) @ params["third"]

    params = dict(zip(("first", "second", "third"), weights(Size(size.width, 1, size.seed), 3), strict=True))
    return Case((fn, params, inputs(size)), ("not finite",), lambda name: "first" in name or "second" in name)


def infinite_gradient(size: Size) -> Case:
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.Dense(size.width, name="first")(x)
            x = nn.Dense(size.width, name="second")(jnp.sqrt(jnp.square(x)))
            return nn.Dense(5, name="third")(x)

    x = inputs(size).at[3].set(0)
    return linen(Linen(), x, size, ("not finite",), named("first"))


def large_rate(size: Size) -> Case:
    target = normal(81 + size.seed, 32, 10)
    loss = lambda y: jnp.mean(jnp.square(y - target))  # noqa: E731
    return Case(
        (MLP(size, 4, jax.nn.relu, scale=2.0), inputs(size)),
        ("learning rate",),
        options={"loss": loss, "learning_rate": 30.0},
    )


FAULTS: dict[str, Callable[[Size], Case]] = {
    "gain 3 times He's": wrong_gain,
    "He on tanh, deep": he_on_tanh,
    "LeCun on relu": small_gain_on_relu,
    "He on selu": selu_with_he,
    "LeCun on gelu, deep": gelu_with_lecun,
    "He on leaky_relu(0.9)": leaky_with_he,
    "deep sigmoid": deep_sigmoid,
    "one layer times 20": one_bad_layer,
    "last layer times 0.001": small_last_layer,
    "a layer of zeros": zero_layer,
    "a layer of positive weights": weights_of_mean,
    "fan without the window": wrong_fan,
    "relu bias of -6": dead_relu,
    "tanh layer times 60": saturated_tanh,
    "pixels of 0 to 255": pixels,
    "inputs of mean 5": shifted,
    "biases that drown": ordered,
    "post-activation sigmoid": post_activation,
    "plain batch norm, deep": plain_batch_norm,
    "residual sums unscaled": unscaled_residual,
    "transformer without norm": missing_norm,
    "attention unscaled": unscaled_attention,
    "RNN of gain 3": recurrent_of_gain(
        3.0, jax.nn.relu, ("weight scale", "exploding signal", "exploding gradient")
    ),
    "RNN of gain 0.3": recurrent_of_gain(0.3, jnp.tanh, ("weight scale", "vanishing gradient")),
    "tied weights in a deep scan": tied_scan,
    "float16 overflow": float16_overflow,
    "float16 underflow": float16_underflow,
    "bfloat16 steps lost": bfloat16_underflow,
    "logarithm below 0": not_a_number,
    "root at 0": infinite_gradient,
    "rate beyond 2 / sharpness": large_rate,
}


# --- Healthy ----------------------------------------------------------------------------------------------------------


def he_mlp(size: Size) -> Case:
    return Case((MLP(size, 8, jax.nn.relu, scale=2.0), inputs(size)))


def zero_branches(size: Size) -> Case:
    return Case((Stream(size, 10, nnx.initializers.zeros), inputs(size)))


def transformer(size: Size) -> Case:
    return Case((Transformer(size, 4), tokens(size)))


class Block(nnx.Module):
    """The basic block of a ResNet."""

    def __init__(self, n: int, m: int, stride: int, rngs: nnx.Rngs):
        he = {"use_bias": False, "kernel_init": nnx.initializers.he_normal(), "rngs": rngs}
        self.first = nnx.Conv(n, m, (3, 3), strides=stride, **he)
        self.last = nnx.Conv(m, m, (3, 3), **he)
        self.norms = nnx.List([nnx.BatchNorm(m, rngs=rngs) for _ in range(2)])
        self.short = nnx.Conv(n, m, (1, 1), strides=stride, **he) if stride > 1 or n != m else None

    def __call__(self, x: Any) -> Any:
        y = self.norms[1](self.last(jax.nn.relu(self.norms[0](self.first(x)))))
        return jax.nn.relu(y + (x if self.short is None else self.short(x)))


class ResNet(nnx.Module):
    """ResNet-18 for small images."""

    def __init__(self, size: Size):
        rngs, n = nnx.Rngs(size.seed), size.width // 8
        self.stem = nnx.Conv(3, n, (3, 3), kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        widths = [n, n, 2 * n, 2 * n, 4 * n, 4 * n, 8 * n, 8 * n]
        strides = [1, 1, 2, 1, 2, 1, 2, 1]
        before = [n, *widths[:-1]]
        self.blocks = nnx.List(
            [Block(a, b, s, rngs) for a, b, s in zip(before, widths, strides, strict=True)]
        )
        self.head = nnx.Linear(8 * n, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = jax.nn.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def training(module: Any, x: Any) -> Case:
    """With statistics of the batch, as in training; what batch norm keeps beside is thrown away."""
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def fn(params: Any, x: Any) -> Any:
        return nnx.merge(graph, params, rest, copy=True)(x)

    return Case((fn, nnx.to_pure_dict(params), x))


def resnet(size: Size) -> Case:
    return training(ResNet(size), images(size, 16, 16))


class ViT(nn.Module):
    """A vision transformer on patches of 4 x 4."""

    size: Size

    @nn.compact
    def __call__(self, x: Any) -> Any:
        n = self.size.width
        h = nn.Conv(n, (4, 4), strides=(4, 4))(x)
        h = h.reshape(x.shape[0], -1, n)
        h = h + self.param("position", nn.initializers.normal(0.02), (1, h.shape[1], n))
        for _ in range(int(4 * self.size.depth)):
            h = h + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(h))
            h = h + nn.Dense(n)(nn.gelu(nn.Dense(4 * n)(nn.LayerNorm()(h))))
        return nn.Dense(10, kernel_init=nn.initializers.zeros)(nn.LayerNorm()(h).mean(1))


def vit(size: Size) -> Case:
    return linen(ViT(size), images(size, 8, 16), size)


class Mixer(nn.Module):
    """An MLP-mixer."""

    size: Size

    @nn.compact
    def __call__(self, x: Any) -> Any:
        n = self.size.width
        h = nn.Conv(n, (4, 4), strides=(4, 4))(x).reshape(x.shape[0], -1, n)
        for _ in range(int(4 * self.size.depth)):
            y = nn.LayerNorm()(h).swapaxes(1, 2)
            h = h + nn.Dense(h.shape[1])(nn.gelu(nn.Dense(32)(y))).swapaxes(1, 2)
            h = h + nn.Dense(n)(nn.gelu(nn.Dense(2 * n)(nn.LayerNorm()(h))))
        return nn.Dense(10)(nn.LayerNorm()(h).mean(1))


def mixer(size: Size) -> Case:
    return linen(Mixer(size), images(size, 8, 16), size)


class UNet(nn.Module):
    """Two levels down and up, with concatenated shortcuts."""

    size: Size

    @nn.compact
    def __call__(self, x: Any) -> Any:
        he, n = nn.initializers.he_normal(), self.size.width // 8
        conv = lambda h, m: nn.relu(nn.Conv(m, (3, 3), kernel_init=he)(h))  # noqa: E731
        levels = []
        h = conv(conv(x, n), n)
        for m in (2 * n, 4 * n):
            levels.append(h)
            h = conv(conv(nn.max_pool(h, (2, 2), (2, 2)), m), m)
        for m, level in zip((2 * n, n), reversed(levels), strict=True):
            up = jnp.repeat(jnp.repeat(h, 2, 1), 2, 2)
            h = conv(conv(jnp.concatenate([level, up], -1), m), m)
        return nn.Conv(1, (1, 1))(h)


def unet(size: Size) -> Case:
    return linen(UNet(size), images(size, 4, 16), size)


class ConvNet(nnx.Module):
    """Convolutions with batch norm, pooled twice."""

    def __init__(self, size: Size):
        rngs, n = nnx.Rngs(size.seed), size.width // 4
        he = nnx.initializers.he_normal()
        self.convs = nnx.List(
            [nnx.Conv(3 if k == 0 else n, n, (3, 3), kernel_init=he, rngs=rngs) for k in range(5)]
        )
        self.norms = nnx.List([nnx.BatchNorm(n, rngs=rngs) for _ in range(5)])
        self.head = nnx.Linear(n, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = jax.nn.relu(norm(conv(x)))
            if k % 2:
                x = nnx.max_pool(x, (2, 2), (2, 2))
        return self.head(x.mean((1, 2)))


def convnet(size: Size) -> Case:
    return training(ConvNet(size), images(size, 16, 16))


def orthogonal_rnn(size: Size) -> Case:
    q, _ = jnp.linalg.qr(normal(5 + size.seed, size.width, size.width))
    return Case((recurrent(every=True), recurrent_params(size, q), sequences(size, scale=0.3)))


def shaped(size: Size) -> Case:
    depth = int(30 * size.depth)
    act = theory.shape(activations.parse("leaky_relu(0.1)"), depth, method="tat", eta=0.9)
    x = inputs(size)
    x = x / jnp.sqrt(jnp.mean(x**2, 1, keepdims=True))
    ws = [jnp.linalg.qr(w)[0] for w in weights(size, 30)]
    return Case((plain(act), ws, x))


HEALTHY: dict[str, Callable[[Size], Case]] = {
    "MLP, relu, He": he_mlp,
    "ResNet-18": resnet,
    "ViT, head of zeros": vit,
    "RNN, orthogonal": orthogonal_rnn,
    "U-Net": unet,
    "shaped by TAT": shaped,
    "pre-norm transformer": transformer,
    "MLP-mixer": mixer,
    "convolutions, batch norm": convnet,
    "branches that start at 0": zero_branches,
}


# --- Other designs, drawn up after every threshold was fixed ----------------------------------------------------------


def plain_resnet(size: Size) -> Case:
    """Convolutional blocks h + conv(relu(conv(h))) of He's scale, without norm."""

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            he, n = nn.initializers.he_normal(), size.width // 4
            h = nn.Conv(n, (3, 3))(x)
            for _ in range(int(12 * size.depth)):
                h = h + nn.Conv(n, (3, 3), kernel_init=he)(nn.relu(nn.Conv(n, (3, 3), kernel_init=he)(h)))
            return nn.Dense(10)(h.mean((1, 2)))

    return linen(Linen(), images(size), size, ("residual growth", "exploding signal"))


def zero_convolution(size: Size) -> Case:
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            he, n = nn.initializers.he_normal(), size.width // 4
            for k in range(5):
                init = nn.initializers.zeros if k == 2 else he
                x = nn.tanh(nn.Conv(n, (3, 3), kernel_init=init)(x))
            return nn.Dense(10)(x.mean((1, 2)))

    return linen(Linen(), images(size), size, ("zero initialised",), named("Conv_2"))


def dead_convolution(size: Size) -> Case:
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            he, n = nn.initializers.he_normal(), size.width // 2
            for k in range(4):
                bias = nn.initializers.constant(-8.0 if k == 1 else 0.0)
                x = nn.relu(nn.Conv(n, (3, 3), kernel_init=he, bias_init=bias)(x))
            return nn.Dense(10)(x.mean((1, 2)))

    return linen(Linen(), images(size), size, ("dead units",), named("Conv_1"))


def large_projection(size: Size) -> Case:
    """One output projection of attention times 60, in a pre-norm transformer: it drowns the stream."""
    model = Transformer(size, 4)
    model.attention[2].o.kernel[...] = 60 * model.attention[2].o.kernel[...]
    return Case((model, tokens(size)), ("weight scale",), exactly("attention[2].o.kernel"))


def sharp_queries(size: Size) -> Case:
    """One query projection times 30: its softmax saturates."""
    model = Transformer(size, 4)
    model.attention[1].q.kernel[...] = 30 * model.attention[1].q.kernel[...]
    return Case((model, tokens(size)), ("saturated attention", "weight scale"), named("attention[1].q"))


def saturated_by_bias(size: Size) -> Case:
    model = eqx.nn.MLP(size.width, 10, size.width, 4, activation=jnp.tanh, key=jax.random.key(size.seed))
    model = eqx.tree_at(lambda m: m.layers[2].bias, model, replace_fn=lambda b: 0 * b + 5.0)
    return Case((model, inputs(size)), ("saturated units",), exactly("layers[2].weight"))


def post_norm(size: Size) -> Case:
    """norm(h + f(h)) forty times: what the norm takes from the gradient the branch adds, so that it stays."""

    def fn(params: Any, x: Any) -> Any:
        h = x @ params[0]
        for w in params[1:]:
            h = h + jax.nn.relu(h) @ w
            h = h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)
        return h

    return Case((fn, weights(size, 40, scale=2.0), inputs(size)))


def swish_small(size: Size) -> Case:
    return Case(
        (MLP(size, 18, jax.nn.silu, scale=0.8), inputs(size)),
        ("weight scale", "vanishing signal", "vanishing gradient"),
    )


def norm_at_zero(size: Size) -> Case:
    """Unit vectors of features that are 0 for one input."""

    def fn(params: Any, x: Any) -> Any:
        h = x @ params[0]
        h = h / jnp.linalg.norm(h, axis=-1, keepdims=True)
        return jnp.tanh(h @ params[1]) @ params[2]

    x = inputs(size).at[1].set(0)
    return Case((fn, weights(Size(size.width, 1, size.seed), 3), x), ("not finite",), exactly("[0]"))


def float16_scores(size: Size) -> Case:
    """float16 attention whose scores leave the type."""

    def fn(params: Any, x: Any) -> Any:
        q, k, v = (x @ params[name] for name in ("query", "key", "value"))
        return jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k) / math.sqrt(q.shape[-1])) @ v

    ws = dict(zip(("query", "key", "value"), weights(Size(size.width, 1, size.seed), 3, 3000.0), strict=True))
    x = normal(82 + size.seed, 8, 12, size.width)
    return Case((fn, half(ws, jnp.float16), half(4 * x, jnp.float16)), ("overflow",), named(" @ "))


def small_tanh(size: Size) -> Case:
    return Case(
        (
            eqx.nn.MLP(size.width, 10, size.width, 2, activation=jnp.tanh, key=jax.random.key(size.seed)),
            inputs(size),
        )
    )


class Gru(nn.Module):
    """A GRU over a sequence, read at its end."""

    size: Size

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(5)(nn.RNN(nn.GRUCell(self.size.width))(x)[:, -1])


def gru(size: Size) -> Case:
    return linen(Gru(size), sequences(size, 16), size)


def causal(size: Size) -> Case:
    """Two pre-norm blocks of Linen with a causal mask, on embedded tokens."""

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            n = size.width
            h = nn.Embed(50, n, embedding_init=nn.initializers.normal(1.0))(x)
            for _ in range(2):
                mask = nn.make_causal_mask(x)
                h = h + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(h), mask=mask)
                h = h + nn.Dense(n)(nn.gelu(nn.Dense(4 * n)(nn.LayerNorm()(h))))
            return nn.Dense(50)(nn.LayerNorm()(h))

    x = jax.random.randint(jax.random.key(size.seed), (8, 16), 0, 50)
    return linen(Linen(), x, size)


def dense_net(size: Size) -> Case:
    """Every layer sees all before it, concatenated."""

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            he = nn.initializers.he_normal()
            for _ in range(6):
                x = jnp.concatenate([x, nn.Dense(size.width // 4, kernel_init=he)(nn.relu(x))], -1)
            return nn.Dense(10)(x)

    return linen(Linen(), inputs(size), size)


def autoencoder(size: Size) -> Case:
    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            he, n = nn.initializers.he_normal(), size.width
            for m in (n // 2, n // 8, n // 2):
                x = nn.relu(nn.Dense(m, kernel_init=he)(x))
            return nn.sigmoid(nn.Dense(n)(x))

    return linen(Linen(), inputs(size), size)


def orthogonal_tanh(size: Size) -> Case:
    ws = [jnp.linalg.qr(w)[0] for w in weights(size, 30)]
    return Case((plain(jnp.tanh), ws, inputs(size)))


def default_cnn(size: Size) -> Case:
    """Equinox' own initialisation, four convolutions and two dense layers."""
    keys = jax.random.split(jax.random.key(size.seed), 6)
    n = size.width // 4
    convs = [eqx.nn.Conv2d(3 if k == 0 else n, n, 3, padding=1, key=keys[k]) for k in range(4)]
    layers: list[Any] = [part for conv in convs for part in (conv, eqx.nn.Lambda(jax.nn.relu))]
    layers += [
        eqx.nn.AvgPool2d(2, 2),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(16 * n, size.width, key=keys[4]),
    ]
    layers += [eqx.nn.Lambda(jax.nn.relu), eqx.nn.Linear(size.width, 10, key=keys[5])]
    return Case((eqx.nn.Sequential(layers), images(size).transpose(0, 3, 1, 2)))


OTHER_FAULTS: dict[str, Callable[[Size], Case]] = {
    "ResNet without norm": plain_resnet,
    "a convolution of zeros": zero_convolution,
    "convolution's bias of -8": dead_convolution,
    "attention's output times 60": large_projection,
    "one query layer times 30": sharp_queries,
    "tanh behind a bias of 5": saturated_by_bias,
    "swish with 0.8": swish_small,
    "unit vector of 0": norm_at_zero,
    "float16 scores": float16_scores,
}
OTHER_HEALTHY: dict[str, Callable[[Size], Case]] = {
    "tanh MLP, Equinox": small_tanh,
    "post-norm, 40 blocks": post_norm,
    "GRU": gru,
    "causal transformer": causal,
    "DenseNet": dense_net,
    "autoencoder": autoencoder,
    "orthogonal tanh": orthogonal_tanh,
    "Equinox' own CNN": default_cnn,
}
