"""Chains of dense layers, as kernels and biases: read from networks, their margins and slopes, attacks on them."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxact import lipschitz, nn, probes
from jaxact.nn import OrthogonalLinear, SpectralNorm, kernels


class Constrained(nnx.Module):
    """Dense layers of norm at most 1, "spectral" or "orthogonal", with an activation between them.

    Attributes:
        remat: whether the way back keeps the inputs of layers alone; static.
    """

    def __init__(self, kind: str, sizes: Sequence[int], activation: Any, *, rngs: nnx.Rngs):
        def layer(rows: int, columns: int) -> nnx.Module:
            if kind == "orthogonal":
                return OrthogonalLinear(rows, columns, rngs=rngs)
            return SpectralNorm(nnx.Linear(rows, columns, rngs=rngs))

        self.layers = nnx.List([layer(*pair) for pair in pairwise(sizes)])
        self.activation = activation
        self.remat = False

    def __call__(self, x):
        """Logits of inputs [..., in]."""
        for layer in self.layers[:-1]:
            hidden = lambda x, layer=layer: self.activation(layer(x))  # noqa: E731
            x = (jax.checkpoint(hidden) if self.remat else hidden)(x)
        return self.layers[-1](x)


def chain(network: Any) -> tuple[list[Any], list[Any]]:
    """The kernels [in, out] and biases of a `Constrained` network or a plain `jaxact.nn.MLP`, as they are used."""
    if isinstance(network, nn.MLP):
        parts: Any = network
        biases = [parts.embed.bias[...], *parts.stack.stages.affine.bias[...], parts.head.bias[...]]
        return kernels(network), biases
    inner: list[Any] = [each.layer if isinstance(each, SpectralNorm) else each for each in network.layers]
    return [layer.kernel() for layer in network.layers], [layer.bias[...] for layer in inner]


def reader(trial: Any) -> Callable[[Any], list[tuple[list[Any], list[Any]]]]:
    """A function of the states of a `train.trial.Trial` of plain networks: the chain of each member, on the host."""
    read = trial.program(lambda state: trial.network.apply(state.params, state.variables, method=chain)[0])

    def chains(states: Any) -> list[tuple[list[Any], list[Any]]]:
        every = trial.host(read(states))
        return [jax.tree.map(lambda leaf, i=i: leaf[i], every) for i in range(trial.num_members)]

    return chains


def as_sigmoid(chain: tuple[list[Any], list[Any]]) -> tuple[list[Any], list[Any]]:
    """The chain that computes with sigmoid what this one does with tanh, since tanh z = 2 sigmoid(2z) - 1.

    Hidden layers are doubled, what reads them is doubled too, and its bias makes up for the -1.
    """
    (first, *rest), (bias, *biases) = chain
    shifted = [bias, *(each - weight.sum(0) for weight, each in zip(rest, biases, strict=True))]
    weights = [2 * first, *(4 * weight for weight in rest[:-1]), 2 * rest[-1]]
    return weights, [*(2 * each for each in shifted[:-1]), shifted[-1]]


def logits(activation: Any, chain: Any, x: jax.Array) -> jax.Array:
    """What the chain computes of inputs [..., in]."""
    weights, biases = chain
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = activation(x @ weight + bias)
    return x @ weights[-1] + biases[-1]


@jax.jit
def slopes(activation: Any, chain: Any, x: jax.Array) -> jax.Array:
    """The largest singular value of the Jacobian at each input, [batch]."""
    return probes.singular_values(partial(logits, activation, chain), x)[:, 0]


@jax.jit
def margins(activation: Any, chain: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """z_y - max_{j != y} z_j, [batch]."""
    z = logits(activation, chain, x)
    right = jax.nn.one_hot(labels, z.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(right, z, 0), -1) - jnp.max(jnp.where(right, -jnp.inf, z), -1)


@partial(jax.jit, static_argnums=(1, 6))
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


def log10_product(activation: Any, chain: Any) -> float:
    """log10 of the product bound."""
    return float(lipschitz.upper_bound(chain[0], activation).log) / math.log(10)


def robustness(
    activation: Any,
    compiled: Any,
    chain: Any,
    inputs: jax.Array,
    labels: jax.Array,
    certified_radius: float,
    attacks: Sequence[tuple[float, str]],
    num_steps: int = 20,
) -> list[float]:
    """Bound a chain, certify and attack its inputs.

    Args:
        activation: between the layers.
        compiled: the same as compiled programs are to take it, such as `jaxact.activations.select` makes it.
        chain: kernels and biases.
        inputs: [batch, in].
        labels: [batch].
        certified_radius: r; margin > sqrt(2) K r certifies, with K the certified bound.
        attacks: radius and ball of each.
        num_steps: of each attack.

    Returns:
        log10 of the product bound, of the certified bound and of the largest slope at the inputs; shares of inputs that
        keep their class: as they are, certified, and under each attack.
    """
    bound = float(lipschitz.upper_bound(chain[0], activation, method="ellipsoid", num_steps=0))
    steepest = float(jnp.max(slopes(compiled, chain, inputs)))
    clean = margins(compiled, chain, inputs, labels)
    worst = [attacked(compiled, num_steps, chain, inputs, labels, *attack) for attack in attacks]
    right = (clean > 0, clean > 2**0.5 * bound * certified_radius, *(each > 0 for each in worst))
    logs = [log10_product(activation, chain), math.log10(bound), math.log10(steepest)]
    return logs + [float(jnp.mean(each)) for each in right]
