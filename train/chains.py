"""Chains of dense layers, as kernels and biases: how they are read from networks, their margins, attacks on them."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxact import nn
from jaxact.nn import OrthogonalLinear, SpectralNorm, kernels


class Constrained(nnx.Module):
    """Dense layers of norm at most 1, "spectral" or "orthogonal", with an activation between them."""

    def __init__(self, kind: str, sizes: Sequence[int], activation: Any, *, rngs: nnx.Rngs):
        def layer(rows: int, columns: int) -> nnx.Module:
            if kind == "orthogonal":
                return OrthogonalLinear(rows, columns, rngs=rngs)
            return SpectralNorm(nnx.Linear(rows, columns, rngs=rngs))

        self.layers = nnx.List([layer(*pair) for pair in pairwise(sizes)])
        self.activation = activation

    def __call__(self, x):
        """Logits of inputs [..., in]."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def chain(network: Any) -> tuple[list[Any], list[Any]]:
    """The kernels [in, out] and biases of a `Constrained` network or a plain `jaxact.nn.MLP`, as they are used."""
    if isinstance(network, nn.MLP):
        parts: Any = network
        biases = [parts.embed.bias[...], *parts.stack.stages.affine.bias[...], parts.head.bias[...]]
        return kernels(network), biases
    inner: list[Any] = [each.layer if isinstance(each, SpectralNorm) else each for each in network.layers]
    return [layer.kernel() for layer in network.layers], [layer.bias[...] for layer in inner]


def of_members(trial: Any, states: Any) -> list[tuple[list[Any], list[Any]]]:
    """The chain of each member of a `train.trial.Trial` of plain networks, on the host."""
    read = trial.program(lambda state: trial.network.apply(state.params, state.variables, method=chain)[0])
    every = trial.host(read(states))
    return [jax.tree.map(lambda leaf, i=i: leaf[i], every) for i in range(trial.num_members)]


@partial(jax.jit, static_argnums=0)
def margins(activation: Any, chain: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """z_y - max_{j != y} z_j, [batch]."""
    weights, biases = chain
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = activation(x @ weight + bias)
    logits = x @ weights[-1] + biases[-1]
    right = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(right, logits, 0), -1) - jnp.max(jnp.where(right, -jnp.inf, logits), -1)


@partial(jax.jit, static_argnums=(0, 1, 6))
def attacked(
    activation: Any,
    num_steps: int,
    chain: Any,
    x: jax.Array,
    labels: jax.Array,
    radius: Any,
    ball: str = "l2",
) -> jax.Array:
    """The smallest margin that projected gradient descent finds within `radius` of each input, [batch].

    Balls are those of the Euclidean norm, "l2", or of the largest entry, "linf" (Madry et al. 2018).
    """
    # Steps of a quarter of the radius that shrink to nothing: the first cross the ball, the last settle.
    sizes = radius * 0.25 * (1 - jnp.arange(num_steps) / num_steps)
    inside = (1 - 1e-6) * radius  # a hair, so that rounding does not leave the ball

    def value(shift):
        return margins(activation, chain, x + shift, labels)

    def length(rows):
        return jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-20)

    def step(carry, size):
        shift, best = carry
        gradient = jax.grad(lambda shift: jnp.sum(value(shift)))(shift)
        if ball == "linf":
            shift = jnp.clip(shift - size * jnp.sign(gradient), -inside, inside)
        else:
            shift = shift - size * gradient / length(gradient)
            shift = shift * jnp.minimum(1, inside / length(shift))
        return (shift, jnp.minimum(best, value(shift))), None

    start = jnp.zeros_like(x)
    (_, best), _ = jax.lax.scan(step, (start, value(start)), sizes)
    return best


def robust_shares(
    activation: Any,
    chain: Any,
    inputs: jax.Array,
    labels: jax.Array,
    *,
    certified: tuple[float, float],
    attacks: Sequence[tuple[float, str]],
    num_steps: int,
) -> list[float]:
    """Shares of inputs that keep their class: as they are, certified, and under each attack.

    Args:
        activation: between the layers.
        chain: kernels and biases.
        inputs: [batch, in].
        labels: [batch].
        certified: a bound K on the Lipschitz constant, and the radius within which margin > sqrt(2) K radius certifies.
        attacks: radius and ball of each.
        num_steps: of each attack.
    """
    bound, radius = certified
    clean = margins(activation, chain, inputs, labels)
    worst = [attacked(activation, num_steps, chain, inputs, labels, *attack) for attack in attacks]
    return [
        float(jnp.mean(each))
        for each in (clean > 0, clean > 2**0.5 * bound * radius, *(w > 0 for w in worst))
    ]
