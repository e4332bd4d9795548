"""Parts of models as people build them with Flax NNX, Flax Linen and plain JAX, each with the region it is meant in.

Everywhere where the part is Lipschitz, a ball where it multiplies variables. Weights are as initialised, statistics,
gains and biases as after training. A constant is given where a part has one: that of a linear map, or an algebraic one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from certificate_formulas import Case
from flax import linen, nnx
from jax import lax

from jaxact.lipschitz import Ball


def weights(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Gaussian, of variance scale^2 / fan-in (the last axis)."""
    drawn = np.random.default_rng(seed).normal(size=shape) * scale / shape[-1] ** 0.5
    return drawn.astype(np.float32)


def around(shape: tuple[int, ...], radius: float, seed: int = 1) -> Ball:
    """A ball around a typical input."""
    return Ball(np.random.default_rng(seed).normal(size=shape), radius)


def worn(net: nnx.Module) -> nnx.Module:
    """In inference mode; gains, biases and running statistics as after training."""
    rng = np.random.default_rng(3)
    for _, module in nnx.iter_modules(net):
        for name in ("mean", "bias", "var", "scale"):
            value = getattr(module, name, None)
            if isinstance(value, nnx.Variable) and value[...] is not None:
                shape = value.shape
                drawn = rng.uniform(0.5, 1.5, shape) if name in ("var", "scale") else rng.normal(size=shape)
                value[...] = jnp.float32(drawn)
    net.eval()
    return net


def part(
    name: str,
    shape: tuple[int, ...],
    build: Callable[[nnx.Rngs], Any],
    region: Ball | None = None,
    constant: float | None = None,
) -> Case:
    """A case whose NNX module, or function, is built on first use."""

    def make() -> Callable[[Any], Any]:
        net = build(rngs=nnx.Rngs(0)) if isinstance(build, partial | type) else build(nnx.Rngs(0))
        net = worn(net) if isinstance(net, nnx.Module) else net
        return lambda x: net(x)

    return Case(name, make, shape, region, constant)


def linen_part(
    name: str, shape: tuple[int, ...], net: linen.Module, region: Ball | None = None, **words: Any
) -> Case:
    """A case of a Linen module with parameters moved away from their start."""

    def make() -> Callable[[Any], Any]:
        rng = np.random.default_rng(2)
        drawn = net.init(jax.random.key(0), jnp.zeros(shape), **words)
        drawn = jax.tree.map(lambda p: jnp.float32((p + 0.1) * rng.uniform(0.7, 1.4, p.shape)), drawn)
        return lambda x: net.apply(drawn, x, **words)

    return Case(name, make, shape, region, None)


def sequential(*layers: Any) -> Callable[[nnx.Rngs], nnx.Sequential]:
    """Layers, those that need random numbers given as functions of them (`partial(nnx.Linear, 4, 8)`)."""

    def build(rngs: nnx.Rngs) -> nnx.Sequential:
        made = [layer(rngs=rngs) if isinstance(layer, partial) else layer for layer in layers]
        return nnx.Sequential(*made)

    return build


def conv(features: tuple[int, int], size: int = 3, **words: Any) -> Any:
    """A convolution yet to be built."""
    return partial(nnx.Conv, *features, (size, size), **words)


def flatten(x: Any) -> Any:
    """Images to vectors."""
    return x.reshape(x.shape[0], -1)


def pooled(pool: Callable[..., Any]) -> Any:
    """A convolution, a pooling of 2 x 2 and a linear map."""
    halved = lambda x: pool(x, (2, 2), (2, 2))  # noqa: E731
    return sequential(conv((2, 3)), jax.nn.relu, halved, flatten, partial(nnx.Linear, 27, 3))


def same(x: Any) -> Any:
    """What it is given."""
    return x


def mlp(activation: Callable[[Any], Any]) -> Callable[[nnx.Rngs], nnx.Sequential]:
    """Two hidden layers."""
    first, second, last = (partial(nnx.Linear, *sizes) for sizes in ((6, 8), (8, 8), (8, 3)))
    return sequential(first, activation, second, activation, last)


class Residual(nnx.Module):
    """h + branch(h), then an activation or none."""

    def __init__(self, branch: Callable[[nnx.Rngs], Any], after: Callable[[Any], Any], *, rngs: nnx.Rngs):
        self.branch, self.after = branch(rngs), after

    def __call__(self, x: Any) -> Any:
        """The output."""
        return self.after(x + self.branch(x))


class Gated(nnx.Module):
    """V (f(W x) * U x)."""

    def __init__(self, gate: Callable[[Any], Any], *, rngs: nnx.Rngs):
        self.first, self.second, self.last = (nnx.Linear(6, 6, rngs=rngs) for _ in range(3))
        self.gate = gate

    def __call__(self, x: Any) -> Any:
        """The output."""
        return self.last(self.gate(self.first(x)) * self.second(x))


class SqueezeExcite(nnx.Module):
    """Channels scaled by a gate of their means."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.down, self.up = nnx.Linear(4, 2, rngs=rngs), nnx.Linear(2, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """The output."""
        scale = jax.nn.sigmoid(self.up(jax.nn.relu(self.down(x.mean((1, 2))))))
        return x * scale[:, None, None]


class Transformer(nnx.Module):
    """A pre-norm block of attention and an MLP."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.norm_1, self.norm_2 = nnx.LayerNorm(4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """The output."""
        x = x + self.attention(self.norm_1(x))
        return x + self.down(jax.nn.gelu(self.up(self.norm_2(x))))


class Mixer(nnx.Module):
    """An MLP over tokens, an MLP over channels, each after a norm."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)])
        self.tokens = nnx.List([nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)])
        self.channels = nnx.List([nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)])

    def __call__(self, x: Any) -> Any:
        """The output."""
        y = jnp.swapaxes(self.norms[0](x), 1, 2)
        x = x + jnp.swapaxes(self.tokens[1](jax.nn.gelu(self.tokens[0](y))), 1, 2)
        return x + self.channels[1](jax.nn.gelu(self.channels[0](self.norms[1](x))))


class FNet(nnx.Module):
    """x + Re FFT2(x), then an MLP with a skip."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """The output."""
        x = x + jnp.fft.fft2(x).real
        return x + self.down(jax.nn.gelu(self.up(x)))


def attention(scores: Callable[[Any, Any], Any], mask: bool = False) -> Callable[[Any], Any]:
    """A head over three tokens of four features."""
    query, key, value = (weights(4, 4, seed=k) for k in (1, 2, 3))

    def fn(x: Any) -> Any:
        logits = scores(x @ query, x @ key)
        if mask:
            logits = jnp.where(np.tril(np.ones((3, 3), bool)), logits, -1e9)
        return jax.nn.softmax(logits, axis=-1) @ (x @ value)

    return fn


def dot_product(q: Any, k: Any) -> Any:
    """The logits of Vaswani et al. (2017)."""
    return q @ k.T / 2


def l2_distance(q: Any, k: Any) -> Any:
    """The logits of Kim et al. (2021)."""
    return -jnp.sum((q[:, None] - k[None]) ** 2, -1) / 2


def cosine(q: Any, k: Any) -> Any:
    """The logits of Swin v2."""
    q, k = (v / jnp.sqrt(jnp.sum(v**2, -1, keepdims=True) + 0.1) for v in (q, k))
    return 5 * q @ k.T


def pre_activation(activation: Callable[[Any], Any], blocks: int = 2) -> Callable[[Any], Any]:
    """A stem h = f(W x), then blocks h + V f(h)."""
    first = weights(8, 6, seed=0, scale=1.4)
    rest = [weights(8, 8, seed=k + 1) for k in range(blocks)]

    def fn(x: Any) -> Any:
        h = activation(first @ x)
        for V in rest:
            h = h + V @ activation(h)
        return h

    return fn


def cell_step(kind: Any, **words: Any) -> Callable[[nnx.Rngs], Callable[[Any], Any]]:
    """A recurrent cell as a function of its input and state in one vector."""

    def build(rngs: nnx.Rngs) -> Callable[[Any], Any]:
        cell = kind(4, 4, rngs=rngs, **words)
        if kind in (nnx.LSTMCell, nnx.OptimizedLSTMCell):
            return lambda x: cell((x[4:8], x[8:]), x[:4])[0]
        return lambda x: cell(x[4:], x[:4])[0]

    return build


def recurrence(x: Any) -> Any:
    """A tanh over three steps of a sequence, from zero."""
    into, over = weights(4, 2, seed=1), weights(4, 4, seed=2)
    step = lambda h, token: (jnp.tanh(over @ h + into @ token), h)  # noqa: E731
    return lax.scan(step, jnp.zeros(4, x.dtype), x)[0]


def kernel_norm(size: tuple[int, int]) -> float:
    """The largest singular value of NNX's Linear(*size, rngs=Rngs(0))."""
    return float(np.linalg.norm(np.asarray(nnx.Linear(*size, rngs=nnx.Rngs(0)).kernel[...], np.float64), 2))


def patchify(x: Any) -> Any:
    """2x2 patches of an image [1, 4, 4, 2] as tokens."""
    return x.reshape(1, 2, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(1, 4, 8)


def sines(tokens: int, width: int) -> np.ndarray:
    """Positional encodings."""
    angle = np.arange(tokens)[:, None] / 100 ** (np.arange(width)[None] / width)
    return np.where(np.arange(width) % 2, np.cos(angle), np.sin(angle)).astype(np.float32)


def rotary(x: Any) -> Any:
    """Rotary position: a rotation of each token's pairs, hence 1."""
    angle = np.arange(3, dtype=np.float32)[:, None] * np.array([1.0, 0.1], np.float32)
    a, b = x[:, :2], x[:, 2:]
    return jnp.concatenate(
        [a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1
    )


class LinenBlock(linen.Module):
    """A Linen ResNet block with BatchNorm at inference."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        """The sum x + conv(relu(bn(conv(relu(bn(x))))))."""
        y = jax.nn.relu(linen.BatchNorm(use_running_average=True)(x))
        y = jax.nn.relu(linen.BatchNorm(use_running_average=True)(linen.Conv(2, (3, 3))(y)))
        return x + linen.Conv(2, (3, 3))(y)


class LinenDropout(linen.Module):
    """An MLP with dropout at inference."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        """Dense, relu, dropout, dense."""
        x = linen.Dropout(0.5, deterministic=True)(jax.nn.relu(linen.Dense(8)(x)))
        return linen.Dense(3)(x)


def sll(x: Any) -> Any:
    """The layer x - 2 W T^-1 relu(W^T x + b), T_i = sum_j |W^T W|_ij: at most 1 (Araujo et al. 2023)."""
    W = weights(6, 8, seed=1)
    return x - 2 * W @ (jax.nn.relu(W.T @ x + 0.1) / np.abs(W.T @ W).sum(1))


def highway(x: Any) -> Any:
    """The mean t h + (1 - t) x by a gate t."""
    gate = jax.nn.sigmoid(weights(6, 6, seed=1) @ x - 1)
    return gate * jnp.tanh(weights(6, 6, seed=2) @ x) + (1 - gate) * x


def reversible(x: Any) -> Any:
    """y_1 = x_1 + f(x_2), y_2 = x_2 + g(y_1)."""
    first = x[:3] + jnp.tanh(weights(3, 3, seed=1) @ x[3:])
    return jnp.concatenate([first, x[3:] + jnp.tanh(weights(3, 3, seed=2) @ first)])


def fourier_layer(x: Any) -> Any:
    """gelu(W x + the lowest frequencies, mixed over channels), as in Fourier neural operators."""
    mixing = weights(3, 2, 2, seed=1) + 1j * weights(3, 2, 2, seed=2)
    modes = jnp.einsum("bki,kio->bko", jnp.fft.rfft(x, axis=1)[:, :3], mixing)
    spectral = jnp.fft.irfft(jnp.pad(modes, ((0, 0), (0, 2), (0, 0))), n=8, axis=1)
    return jax.nn.gelu(x @ weights(2, 2) + spectral)


def gated_convolution(rngs: nnx.Rngs) -> Callable[[Any], Any]:
    """tanh(conv) * sigmoid(conv), as in WaveNet."""
    first, second = (nnx.Conv(2, 2, (3,), padding="CAUSAL", rngs=rngs) for _ in range(2))
    return lambda x: jnp.tanh(first(x)) * jax.nn.sigmoid(second(x))


def mixture(x: Any) -> Any:
    """Experts weighted by a softmax."""
    experts = jnp.tanh(jnp.einsum("eoi,i->eo", weights(3, 4, 6, seed=1), x))
    return jax.nn.softmax(weights(3, 6, seed=2) @ x) @ experts


IMAGE = (1, 6, 6, 2)
TOKENS = (1, 3, 4)
ADJACENCY = np.array([[0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.5, 0.5]], np.float32)

# J = diag(gamma) (I - 11^T/n) / s where d = 0; `worn` draws gamma.
GAINS = np.asarray(worn(nnx.LayerNorm(6, rngs=nnx.Rngs(0))).scale[...], np.float64)
LAYER_NORM = float(np.linalg.norm(GAINS[:, None] * (np.eye(6) - 1 / 6), 2) * 1e-6**-0.5)

DENSE = [
    part("NNX Linear", (1, 6), sequential(partial(nnx.Linear, 6, 4)), constant=kernel_norm((6, 4))),
    part("NNX LinearGeneral", (1, 2, 3), sequential(partial(nnx.LinearGeneral, (2, 3), 4, axis=(1, 2)))),
    part("NNX Einsum", (1, 6), sequential(partial(nnx.Einsum, "bi,io->bo", (6, 4)))),
    *(
        part(f"NNX MLP {f.__name__}", (1, 6), mlp(f))
        for f in (jax.nn.relu, jax.nn.gelu, jax.nn.silu, jnp.tanh)
    ),
    part(
        "NNX MLP PReLU", (1, 6), sequential(partial(nnx.Linear, 6, 8), nnx.PReLU(), partial(nnx.Linear, 8, 3))
    ),
    part(
        "NNX dropout in inference",
        (1, 6),
        sequential(
            partial(nnx.Linear, 6, 8), jax.nn.relu, partial(nnx.Dropout, 0.5), partial(nnx.Linear, 8, 3)
        ),
    ),
    part(
        "NNX BatchNorm MLP",
        (1, 6),
        sequential(
            partial(nnx.Linear, 6, 8), partial(nnx.BatchNorm, 8), jax.nn.relu, partial(nnx.Linear, 8, 3)
        ),
    ),
    part(
        "MLP into softmax",
        (1, 6),
        sequential(partial(nnx.Linear, 6, 8), jax.nn.relu, partial(nnx.Linear, 8, 3), jax.nn.softmax),
    ),
    part(
        "MLP into log_softmax",
        (1, 6),
        sequential(partial(nnx.Linear, 6, 8), jax.nn.relu, partial(nnx.Linear, 8, 3), jax.nn.log_softmax),
    ),
    part(
        "MLP with MaxMin",
        (1, 6),
        sequential(
            partial(nnx.Linear, 6, 8),
            lambda x: jnp.concatenate(
                [jnp.maximum(*jnp.split(x, 2, -1)), jnp.minimum(*jnp.split(x, 2, -1))], -1
            ),
            partial(nnx.Linear, 8, 3),
        ),
    ),
    part(
        "MLP with GroupSort",
        (1, 6),
        sequential(
            partial(nnx.Linear, 6, 8),
            lambda x: jnp.sort(x.reshape(1, 2, 4), -1).reshape(1, 8),
            partial(nnx.Linear, 8, 3),
        ),
    ),
    part(
        "MLP with CReLU",
        (1, 6),
        sequential(
            partial(nnx.Linear, 6, 4),
            lambda x: jax.nn.relu(jnp.concatenate([x, -x], -1)),
            partial(nnx.Linear, 8, 3),
        ),
    ),
    part(
        "maxout layer",
        (1, 6),
        sequential(
            partial(nnx.Linear, 6, 8), lambda x: x.reshape(1, 4, 2).max(-1), partial(nnx.Linear, 4, 3)
        ),
    ),
    part("1-Lipschitz residual (SLL)", (6,), lambda _: sll),
    part("highway layer in a ball", (6,), lambda _: highway, around((6,), 0.3)),
    part("autoencoder", (1, 6), sequential(partial(nnx.Linear, 6, 2), jnp.tanh, partial(nnx.Linear, 2, 6))),
    part(
        "random Fourier features",
        (6,),
        lambda _: lambda x: jnp.concatenate([jnp.cos(weights(5, 6) @ x), jnp.sin(weights(5, 6) @ x)]),
        constant=float(np.linalg.norm(weights(5, 6).astype(float), 2)),
    ),
    part(
        "SIREN",
        (2,),
        lambda _: (
            lambda x: weights(1, 8) @ jnp.sin(weights(8, 8, seed=1) @ jnp.sin(30 * weights(8, 2, seed=2) @ x))
        ),
    ),
    part("RBF features", (4,), lambda _: lambda x: jnp.exp(-jnp.sum((x - weights(5, 4)) ** 2, -1))),
    part("energy gradient", (6,), lambda _: jax.grad(lambda x: jax.nn.softplus(weights(8, 6) @ x).sum())),
    part(
        "skip concatenation",
        (6,),
        lambda _: lambda x: weights(3, 14) @ jnp.concatenate([x, jax.nn.relu(weights(8, 6) @ x)]),
    ),
    part(
        "deep equilibrium, 5 steps",
        (6,),
        lambda _: (
            lambda x: lax.fori_loop(
                0, 5, lambda _, h: jnp.tanh(weights(6, 6, scale=0.5) @ h + x), jnp.zeros(6, x.dtype)
            )
        ),
    ),
    part(
        "neural ODE, Euler",
        (4,),
        lambda _: (
            lambda x: lax.fori_loop(
                0, 8, lambda _, h: h + 0.1 * weights(4, 4) @ jnp.tanh(weights(4, 4, seed=1) @ h), x
            )
        ),
    ),
]
BLOCKS = [
    *(
        part(f"stem and pre-activation blocks, {f.__name__}", (6,), lambda _, f=f: pre_activation(f))
        for f in (jax.nn.gelu, jax.nn.silu, jax.nn.mish, jax.nn.selu, jax.nn.elu, jax.nn.relu, jnp.tanh)
    ),
    part("pre-activation in a ball, gelu", (6,), lambda _: pre_activation(jax.nn.gelu), around((6,), 0.1)),
    part(
        "pre-activation block, NNX",
        (1, 6),
        partial(
            Residual,
            sequential(jax.nn.relu, partial(nnx.Linear, 6, 6), jax.nn.relu, partial(nnx.Linear, 6, 6)),
            same,
        ),
    ),
    part(
        "post-activation block, NNX",
        (1, 6),
        partial(
            Residual,
            sequential(partial(nnx.Linear, 6, 6), jax.nn.relu, partial(nnx.Linear, 6, 6)),
            jax.nn.relu,
        ),
    ),
    part(
        "post-activation block, silu",
        (1, 6),
        partial(
            Residual,
            sequential(partial(nnx.Linear, 6, 6), jax.nn.silu, partial(nnx.Linear, 6, 6)),
            jax.nn.silu,
        ),
    ),
    part(
        "pre-norm block",
        (1, 6),
        partial(
            Residual,
            sequential(
                partial(nnx.LayerNorm, 6), partial(nnx.Linear, 6, 6), jax.nn.gelu, partial(nnx.Linear, 6, 6)
            ),
            same,
        ),
    ),
    part(
        "pre-norm block in a ball",
        (1, 6),
        partial(
            Residual,
            sequential(
                partial(nnx.LayerNorm, 6), partial(nnx.Linear, 6, 6), jax.nn.gelu, partial(nnx.Linear, 6, 6)
            ),
            same,
        ),
        around((1, 6), 0.1),
    ),
    part(
        "post-norm block in a ball",
        (1, 6),
        lambda rngs: sequential(
            partial(Residual, sequential(partial(nnx.Linear, 6, 6), jax.nn.relu), same),
            partial(nnx.LayerNorm, 6),
        )(rngs),
        around((1, 6), 0.1),
    ),
    part("layer scale", (6,), lambda _: lambda x: x + 1e-2 * (weights(6, 6) @ jax.nn.gelu(x))),
    part("weighted skip", (6,), lambda _: lambda x: 0.8 * x + 0.6 * jnp.tanh(weights(6, 6) @ x)),
    part("reversible block", (6,), lambda _: reversible),
    part("gelu then gelu", (6,), lambda _: lambda x: jax.nn.gelu(jax.nn.gelu(weights(6, 6) @ x))),
]
NORMALISED = [
    part("NNX LayerNorm", (1, 6), partial(nnx.LayerNorm, 6), constant=LAYER_NORM),
    part(
        "NNX LayerNorm, two-pass",
        (1, 6),
        partial(nnx.LayerNorm, 6, use_fast_variance=False),
        constant=LAYER_NORM,
    ),
    part("NNX LayerNorm in a ball", (1, 6), partial(nnx.LayerNorm, 6), around((1, 6), 0.1)),
    part("NNX LayerNorm of tokens", TOKENS, partial(nnx.LayerNorm, 4), around(TOKENS, 0.1)),
    part(
        "NNX LayerNorm without gains",
        (1, 6),
        partial(nnx.LayerNorm, 6, use_scale=False, use_bias=False),
        constant=1e-6**-0.5,
    ),
    part("NNX RMSNorm", (1, 6), partial(nnx.RMSNorm, 6)),
    part("NNX RMSNorm in a ball", (1, 6), partial(nnx.RMSNorm, 6), around((1, 6), 0.1)),
    part("NNX GroupNorm", (1, 2, 2, 4), partial(nnx.GroupNorm, 4, num_groups=2)),
    part(
        "NNX GroupNorm in a ball",
        (1, 2, 2, 4),
        partial(nnx.GroupNorm, 4, num_groups=2),
        around((1, 2, 2, 4), 0.1),
    ),
    part("NNX InstanceNorm in a ball", (1, 3, 3, 2), partial(nnx.InstanceNorm, 2), around((1, 3, 3, 2), 0.1)),
    part("NNX BatchNorm", (1, 6), partial(nnx.BatchNorm, 6)),
    part(
        "LayerNorm MLP",
        (1, 6),
        sequential(
            partial(nnx.Linear, 6, 8), partial(nnx.LayerNorm, 8), jax.nn.relu, partial(nnx.Linear, 8, 3)
        ),
        around((1, 6), 0.1),
    ),
    linen_part("Linen LayerNorm", (1, 6), linen.LayerNorm()),
    linen_part("Linen LayerNorm in a ball", (1, 6), linen.LayerNorm(), around((1, 6), 0.1)),
    linen_part("Linen RMSNorm", (1, 6), linen.RMSNorm()),
    linen_part("Linen GroupNorm in a ball", (1, 2, 2, 4), linen.GroupNorm(2), around((1, 2, 2, 4), 0.1)),
    part(
        "L2-normalised embedding in a ball",
        (6,),
        lambda _: lambda x: (y := weights(8, 6) @ x) / jnp.linalg.norm(y),
        around((6,), 0.1),
    ),
]
IMAGES = [
    part("NNX Conv", IMAGE, sequential(conv((2, 3)))),
    part(
        "NNX Conv strided, dilated",
        IMAGE,
        sequential(conv((2, 3), strides=2), conv((3, 2), kernel_dilation=2)),
    ),
    part("NNX Conv circular", IMAGE, sequential(conv((2, 3), padding="CIRCULAR"))),
    part("NNX depthwise Conv", IMAGE, sequential(conv((2, 4), feature_group_count=2))),
    part(
        "NNX ConvTranspose",
        (1, 3, 3, 2),
        sequential(partial(nnx.ConvTranspose, 2, 3, (2, 2), strides=(2, 2))),
    ),
    part("NNX 1-D Conv", (1, 8, 2), sequential(partial(nnx.Conv, 2, 3, (3,)), jax.nn.relu)),
    part("CNN, avg pool", IMAGE, pooled(nnx.avg_pool)),
    part("CNN, max pool", IMAGE, pooled(nnx.max_pool)),
    part(
        "CNN, overlapping max pool",
        IMAGE,
        sequential(conv((2, 3)), lambda x: nnx.max_pool(x, (3, 3), (2, 2)), jax.nn.relu),
    ),
    part(
        "CNN, global average",
        IMAGE,
        sequential(conv((2, 3)), jax.nn.gelu, lambda x: x.mean((1, 2)), partial(nnx.Linear, 3, 3)),
    ),
    part(
        "CNN, BatchNorm",
        IMAGE,
        sequential(conv((2, 3)), partial(nnx.BatchNorm, 3), jax.nn.silu, conv((3, 2))),
    ),
    part("avg pool 2/2", IMAGE, lambda _: lambda x: nnx.avg_pool(x, (2, 2), (2, 2)), constant=0.5),
    part("max pool 2/2", IMAGE, lambda _: lambda x: nnx.max_pool(x, (2, 2), (2, 2)), constant=1.0),
    part(
        "ResNet block, NNX",
        IMAGE,
        partial(
            Residual,
            sequential(
                conv((2, 2)), partial(nnx.BatchNorm, 2), jax.nn.relu, conv((2, 2)), partial(nnx.BatchNorm, 2)
            ),
            jax.nn.relu,
        ),
    ),
    part(
        "ResNet block, pre-activation",
        IMAGE,
        partial(
            Residual,
            sequential(
                partial(nnx.BatchNorm, 2),
                jax.nn.relu,
                conv((2, 2)),
                partial(nnx.BatchNorm, 2),
                jax.nn.relu,
                conv((2, 2)),
            ),
            same,
        ),
    ),
    part(
        "inverted residual, hard_swish",
        IMAGE,
        partial(
            Residual,
            sequential(
                conv((2, 4), 1),
                jax.nn.hard_swish,
                conv((4, 4), feature_group_count=4),
                jax.nn.hard_swish,
                conv((4, 2), 1),
            ),
            same,
        ),
    ),
    part(
        "ConvNeXt block in a ball",
        IMAGE,
        partial(
            Residual,
            sequential(
                conv((2, 2), feature_group_count=2),
                partial(nnx.LayerNorm, 2),
                partial(nnx.Linear, 2, 4),
                jax.nn.gelu,
                partial(nnx.Linear, 4, 2),
            ),
            same,
        ),
        around(IMAGE, 0.01),
    ),
    part("squeeze and excite in a ball", (1, 3, 3, 4), SqueezeExcite, around((1, 3, 3, 4), 0.1)),
    part(
        "pixel shuffle",
        (1, 2, 2, 4),
        lambda _: lambda x: x.reshape(1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(1, 4, 4, 1),
        constant=1.0,
    ),
    # Twice the side: every entry four times.
    part(
        "nearest upsampling",
        (1, 2, 2, 2),
        lambda _: lambda x: jax.image.resize(x, (1, 4, 4, 2), "nearest"),
        constant=2.0,
    ),
    part(
        "bilinear resizing", (1, 4, 4, 1), lambda _: lambda x: jax.image.resize(x, (1, 6, 6, 1), "bilinear")
    ),
    part("patchify", (1, 4, 4, 2), lambda _: patchify, constant=1.0),
    part(
        "patch embedding",
        (1, 4, 4, 2),
        sequential(conv((2, 5), 2, strides=2, padding="VALID"), lambda x: x.reshape(1, 4, 5)),
    ),
    part("Fourier layer", (1, 8, 2), lambda _: fourier_layer),
    linen_part("Linen CNN", IMAGE, linen.Sequential([linen.Conv(3, (3, 3)), jax.nn.relu, linen.Dense(2)])),
    linen_part("Linen ConvTranspose", (1, 3, 3, 2), linen.ConvTranspose(2, (3, 3), strides=(2, 2))),
    linen_part("Linen ResNet block", IMAGE, LinenBlock()),
]
SEQUENCES = [
    part("attention in a ball", (3, 4), lambda _: attention(dot_product), around((3, 4), 0.1)),
    part("attention in a ball of 1", (3, 4), lambda _: attention(dot_product), around((3, 4), 1.0)),
    part(
        "masked attention in a ball", (3, 4), lambda _: attention(dot_product, mask=True), around((3, 4), 0.1)
    ),
    part("L2 attention in a ball", (3, 4), lambda _: attention(l2_distance), around((3, 4), 0.1)),
    part("cosine attention in a ball", (3, 4), lambda _: attention(cosine), around((3, 4), 0.1)),
    part(
        "NNX multi-head attention in a ball",
        TOKENS,
        partial(nnx.MultiHeadAttention, 2, 4, decode=False),
        around(TOKENS, 0.1),
    ),
    linen_part(
        "Linen multi-head attention in a ball",
        TOKENS,
        linen.MultiHeadDotProductAttention(2),
        around(TOKENS, 0.1),
    ),
    part(
        "jax.nn.dot_product_attention in a ball",
        (1, 3, 2, 2),
        lambda _: lambda x: jax.nn.dot_product_attention(x, x, x),
        around((1, 3, 2, 2), 0.1),
    ),
    part(
        "attention with causal mask, jax.nn",
        (1, 3, 2, 2),
        lambda _: lambda x: jax.nn.dot_product_attention(x, x, x, is_causal=True),
        around((1, 3, 2, 2), 0.1),
    ),
    part(
        "attention pooling in a ball",
        (3, 4),
        lambda _: lambda x: jax.nn.softmax(x @ weights(4, seed=9)) @ x,
        around((3, 4), 0.1),
    ),
    part(
        "linear attention in a ball",
        (3, 4),
        lambda _: lambda x: (f := jax.nn.elu(x) + 1) @ (f.T @ x) / 3,
        around((3, 4), 0.1),
    ),
    part("transformer block in a ball", TOKENS, Transformer, around(TOKENS, 0.01)),
    part("MLP-Mixer block in a ball", TOKENS, Mixer, around(TOKENS, 0.03)),
    part("FNet block", TOKENS, FNet),
    part("positional encodings added", (3, 4), lambda _: lambda x: jnp.tanh(x + sines(3, 4)), constant=1.0),
    part("rotary encodings", (3, 4), lambda _: rotary, constant=1.0),
    part("GLU in a ball", (1, 6), partial(Gated, jax.nn.sigmoid), around((1, 6), 0.3)),
    part("SwiGLU in a ball", (1, 6), partial(Gated, jax.nn.silu), around((1, 6), 0.3)),
    part("GeGLU in a ball", (1, 6), partial(Gated, jax.nn.gelu), around((1, 6), 0.3)),
    part("bilinear unit in a ball", (1, 6), partial(Gated, same), around((1, 6), 0.3)),
    part("GRU cell in a ball", (8,), cell_step(nnx.GRUCell), around((8,), 0.3)),
    part("LSTM cell in a ball", (12,), cell_step(nnx.LSTMCell), around((12,), 0.3)),
    part("optimised LSTM cell in a ball", (12,), cell_step(nnx.OptimizedLSTMCell), around((12,), 0.3)),
    part("simple recurrent cell", (8,), cell_step(nnx.SimpleCell)),
    part("recurrence by scan", (3, 2), lambda _: recurrence),
    part(
        "linear recurrence by associative_scan", (5, 2), lambda _: lambda x: lax.associative_scan(jnp.add, x)
    ),
    part(
        "causal convolution", (1, 8, 2), sequential(partial(nnx.Conv, 2, 2, (3,), padding="CAUSAL"), jnp.tanh)
    ),
    part(
        "gated convolution in a ball", (1, 8, 2), lambda rngs: gated_convolution(rngs), around((1, 8, 2), 0.1)
    ),
    part("mean over tokens", TOKENS, lambda _: lambda x: x.mean(1), constant=3**-0.5),
    part("max over tokens", TOKENS, lambda _: lambda x: x.max(1), constant=1.0),
    part("graph convolution", (3, 4), lambda _: lambda x: jax.nn.relu(ADJACENCY @ x @ weights(4, 4))),
    part(
        "graph messages",
        (3, 4),
        lambda _: (
            lambda x: jax.ops.segment_sum(
                jnp.tanh(x[np.array([0, 1, 2, 0])] @ weights(4, 4)), np.array([1, 2, 0, 2]), 3
            )
        ),
    ),
    part(
        "deep sets", (3, 4), lambda _: lambda x: weights(2, 6) @ jax.nn.relu(x @ weights(4, 6, seed=1)).sum(0)
    ),
    part("mixture of experts in a ball", (6,), lambda _: mixture, around((6,), 0.1)),
    linen_part("Linen MLP", (1, 6), linen.Sequential([linen.Dense(8), jax.nn.gelu, linen.Dense(3)])),
    linen_part("Linen dropout", (1, 6), LinenDropout()),
]
PARTS = [*DENSE, *BLOCKS, *NORMALISED, *IMAGES, *SEQUENCES]
