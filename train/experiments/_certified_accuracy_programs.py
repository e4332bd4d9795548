"""What one cell of the study of certified accuracy computes: networks of one approach, trained, certified, attacked."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxact import fit, lipschitz, nn
from jaxact.nn import OrthogonalLinear, SpectralNorm, kernels
from train.experiment import Progress

if TYPE_CHECKING:
    from train.experiments.certified_accuracy import CertifiedAccuracy


def run(study: CertifiedAccuracy, approach: str, progress: Progress) -> dict[str, np.ndarray]:
    """Train, certify and attack every strength and seed of one approach; arrays by name, [setting, seed, ...]."""
    strengths = study.strengths(approach)
    data = study.task.load().flat()
    progress(0.0, "train")
    train = jax.jit(partial(_trained, study, approach))
    members = fit.grid(seeds=study.seeds, strength=strengths)
    chains = jax.device_get(train(members, jax.device_put(data)))
    evaluate = _Evaluation(study, data)
    found: list[list[dict[str, Any]]] = []
    for place, strength in enumerate(strengths):
        found.append([])
        for row in range(len(study.seeds)):
            progress(0.4 + 0.6 * place / len(strengths), f"certify and attack at strength {strength:g}")
            index = place * len(study.seeds) + row  # of the grid: seeds vary fastest
            found[-1].append(evaluate(jax.tree.map(lambda leaf, i=index: leaf[i], chains)))
    names = found[0][0]
    measured = {name: np.asarray([[each[name] for each in row] for row in found], float) for name in names}
    return measured | {"strength": np.asarray(strengths)}


class _Constrained(nnx.Module):
    """Dense layers of norm at most 1 with an activation between them."""

    def __init__(self, kind: str, sizes: tuple[int, ...], activation: Any, *, rngs: nnx.Rngs):
        def layer(rows: int, columns: int) -> nnx.Module:
            if kind == "orthogonal":
                return OrthogonalLinear(rows, columns, rngs=rngs)
            return SpectralNorm(nnx.Linear(rows, columns, rngs=rngs))

        self.layers = nnx.List([layer(*pair) for pair in pairwise(sizes)])
        self.activation = activation

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def _chain(network: Any) -> tuple[list[Any], list[Any]]:
    """The kernels [in, out] and biases of a network, as they are used."""
    if isinstance(network, nn.MLP):
        parts: Any = network
        biases = [parts.embed.bias[...], *parts.stack.stages.affine.bias[...], parts.head.bias[...]]
        return kernels(network), biases
    layers: list[Any] = list(network.layers)
    inner: list[Any] = [layer.layer if isinstance(layer, SpectralNorm) else layer for layer in layers]
    return [layer.kernel() for layer in layers], [layer.bias[...] for layer in inner]


def _trained(study: CertifiedAccuracy, approach: str, members: fit.Member, data: Any) -> Any:
    """The trained networks of all members as plain chains, the logits' scale multiplied in."""
    num_inputs, num_outputs = data.train_inputs.shape[1], data.num_classes
    is_constrained = approach in ("spectral", "orthogonal")
    build: Any
    if is_constrained:
        sizes = (num_inputs, *(study.width,) * study.num_hidden, num_outputs)
        build = partial(_Constrained, approach, sizes, study.activation)
    else:
        build = partial(
            nn.MLP,
            num_inputs,
            study.width,
            num_outputs,
            max_depth=study.num_hidden - 1,
            activation=study.activation,
            sigma_w=math.sqrt(2),
        )
    network = nn.functional(build)
    optimizer = optax.adam(optax.cosine_decay_schedule(study.learning_rate, study.num_steps))

    def sample(key):
        rows = jax.random.randint(key, (study.batch_size,), 0, len(data.train_inputs))
        return data.train_inputs[rows], data.train_labels[rows]

    def loss(params, variables, batch, hparams):
        logits, _ = network.apply(params, variables, batch[0], training=True)
        scale = hparams["strength"] if is_constrained else 1.0
        total = optax.softmax_cross_entropy_with_integer_labels(scale * logits, batch[1]).mean()
        if approach == "penalty":
            chain, _ = network.apply(params, variables, method=kernels)
            bound = lipschitz.upper_bound(chain, study.activation, method="eclipse_fast").log
            total = total + hparams["strength"] * bound
        return total, (variables, ())

    def one(member):
        key_init, key_data = jax.random.split(member.key)
        params, variables = network.init(key_init)
        state = fit.start(optimizer, key=key_data, params=params, variables=variables, hparams=member.hparams)
        state, _ = fit.fit(loss, sample, optimizer, num_steps=study.num_steps)(state)
        (weights, biases), _ = network.apply(state.params, state.variables, method=_chain)
        scale = member.hparams["strength"] if is_constrained else 1.0
        weights[-1], biases[-1] = scale * weights[-1], scale * biases[-1]
        return weights, biases

    return fit.population(one, members)


class _Evaluation:
    """Margins, certificate and attack of one chain.

    What is certified is the network in exact arithmetic: the margins behind the radii are computed in float64.
    """

    def __init__(self, study: CertifiedAccuracy, data: Any):
        self.study, self.data = study, data
        self._margins = partial(_margins, study.activation)
        self._attack = partial(_attacked, study.activation, study.attack_steps)

    def __call__(self, chain: Any) -> dict[str, Any]:
        study, data = self.study, self.data
        constant = float(
            lipschitz.upper_bound(
                chain[0], study.activation, method="ellipsoid", num_steps=study.refine_steps
            )
        )
        inputs, labels = data.test_inputs, data.test_labels
        with jax.enable_x64(True):  # of the float32 weights, to some 1e-13, which is not subtracted
            exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), chain)
            margins = np.asarray(self._margins(exact, jnp.asarray(inputs, jnp.float64), labels))
        radii = margins / (math.sqrt(2) * constant)
        count = study.num_attacked
        attacked, certified, broken = [], [], []
        for radius in study.attack_radii:
            worst = np.asarray(self._attack(chain, inputs[:count], labels[:count], radius))
            attacked.append(np.mean(worst > 0))
            certified.append(np.mean(radii[:count] > radius))
            broken.append(np.sum((radii[:count] > radius) & (worst <= 0)))
        return {
            "train_accuracy": np.mean(
                np.asarray(self._margins(chain, data.train_inputs, data.train_labels)) > 0
            ),
            "test_accuracy": np.mean(margins > 0),
            "lipschitz": constant,
            "median_radius": np.median(np.maximum(radii, 0)),
            "certified_accuracy": np.mean(radii[:, None] > study.radii(), axis=0),
            "attacked_accuracy": attacked,
            "certified_among_attacked": certified,
            "broken_certificates": broken,
        }


@partial(jax.jit, static_argnums=0)
def _margins(activation: Any, chain: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """z_y - max_{j != y} z_j, [batch]."""
    weights, biases = chain
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = activation(x @ weight + bias)
    logits = x @ weights[-1] + biases[-1]
    right = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(right, logits, 0), -1) - jnp.max(jnp.where(right, -jnp.inf, logits), -1)


@partial(jax.jit, static_argnums=(0, 1))
def _attacked(
    activation: Any, num_steps: int, chain: Any, x: jax.Array, labels: jax.Array, radius: Any
) -> Any:
    """The smallest margin that projected gradient descent finds within `radius` of each input, [batch]."""
    # Steps of a quarter of the radius that shrink to nothing: the first cross the ball, the last settle.
    sizes = radius * 0.25 * (1 - jnp.arange(num_steps) / num_steps)

    def value(shift):
        return _margins(activation, chain, x + shift, labels)

    def step(carry, size):
        shift, best = carry
        gradient = jax.grad(lambda shift: jnp.sum(value(shift)))(shift)
        shift = shift - size * gradient / jnp.maximum(
            jnp.linalg.norm(gradient, axis=-1, keepdims=True), 1e-20
        )
        # A hair inside, so that rounding does not leave the ball.
        length = jnp.linalg.norm(shift, axis=-1, keepdims=True)
        shift = shift * jnp.minimum(1, (1 - 1e-6) * radius / jnp.maximum(length, 1e-20))
        return (shift, jnp.minimum(best, value(shift))), None

    start = jnp.zeros_like(x)
    (_, best), _ = jax.lax.scan(step, (start, value(start)), sizes)
    return best
