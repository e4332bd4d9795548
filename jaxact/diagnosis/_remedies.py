"""What is done about each kind of fault: a sentence, and the lines of code that apply it."""

from __future__ import annotations

from typing import NamedTuple

_SHAPED = (
    "from jaxact import activations, theory\nact = theory.shape({activation}, depth={depth}){hint}\n"
    "kernel_init = theory.initializers.orthogonal()"
)
_UNKNOWN, _HINT = "activations.from_callable(f, name='f')", "  # f: the model's own"
#: kinds whose code draws weights by scale alone: of several layers `initialize` draws them, with what biases must add
_OF_SCALE = frozenset({"weight scale", "vanishing signal", "exploding signal", "chaotic"})
#: a model's form -> how `initialize` is called
_INITIALIZE = {
    "function": "params = jaxact.initialize(fn, params, x).params",
    "Linen": "module, variables = jaxact.initialize((module, variables), x).params",
    "Haiku": "transformed, params = jaxact.initialize((transformed, params), x).params",
}
#: kind -> (remedy, code); {layer} is the product's name, {scale} a number that the finding knows
REMEDIES: dict[str, tuple[str, str]] = {
    "not finite": (
        "Guard the unsafe branch within `where`, and keep logarithms, roots and quotients away from 0.",
        "safe = jnp.where(x > 0, x, 1.0)\ny = jnp.where(x > 0, jnp.log(safe), 0.0)",
    ),
    "overflow": (
        "Compute this product in float32 or bfloat16, or scale its weights and inputs down.",
        "model = nnx.Linear(din, dout, dtype=jnp.bfloat16, rngs=rngs)  # {layer}",
    ),
    "underflow": (
        "Keep parameters in float32, and multiply the loss by a scale that is divided out of the gradients.",
        "scale = 2.0**14\ngrads = jax.grad(lambda p: scale * loss(p))(params)\n"
        "grads = jax.tree.map(lambda g: g.astype(jnp.float32) / scale, grads)",
    ),
    "vanishing gradient": (
        "Take weights and activation at the edge of chaos, or add shortcuts.",
        _SHAPED,
    ),
    "exploding gradient": (
        "Take weights and activation at the edge of chaos, or add shortcuts with a norm.",
        _SHAPED,
    ),
    "vanishing signal": (
        "Scale the weights so that the second moment stays.",
        "kernel_init = jax.nn.initializers.variance_scaling({scale:.3g}, 'fan_in', 'normal')",
    ),
    "exploding signal": (
        "Scale the weights so that the second moment stays, or put a norm before each layer.",
        "kernel_init = jax.nn.initializers.variance_scaling({scale:.3g}, 'fan_in', 'normal')",
    ),
    "ordered": (
        "Use larger weights (the edge of chaos), fewer layers, or shortcuts.",
        _SHAPED,
    ),
    "chaotic": (
        "Use smaller weights: the edge of chaos.",
        "kernel_init = jax.nn.initializers.variance_scaling({scale:.3g}, 'fan_in', 'normal')",
    ),
    "dead units": (
        "Start with biases of 0 and inputs of mean 0, or take an activation with a slope on both sides.",
        "bias_init = jax.nn.initializers.zeros  # {layer}\nact = lambda x: jax.nn.leaky_relu(x, 0.1)",
    ),
    "saturated units": (
        "Scale the weights down by this factor, or put a norm before the activation.",
        "kernel_init = jax.nn.initializers.variance_scaling({scale:.3g}, 'fan_in', 'normal')  # {layer}",
    ),
    "saturated attention": (
        "Divide the scores by the root of the heads' width before the softmax.",
        "scores = jnp.einsum('bqhd,bkhd->bhqk', q, k) / jnp.sqrt(q.shape[-1])",
    ),
    "mean shift": (
        "Take away the mean over the training set, and make weights of mean 0.",
        "mean, std = x_train.mean(0), x_train.std(0) + 1e-6\nx = (x - mean) / std",
    ),
    "input scale": (
        "Divide the inputs by their standard deviation over the training set.",
        "mean, std = x_train.mean(0), x_train.std(0) + 1e-6\nx = (x - mean) / std",
    ),
    "weight scale": (
        "Draw the weights with the scale that theory says preserves.",
        "kernel_init = jax.nn.initializers.variance_scaling({scale:.3g}, 'fan_in', 'normal')  # {layer}",
    ),
    "wrong fan": (
        "Count the window into the fan: kernel height times kernel width times channels in.",
        "kernel_init = jax.nn.initializers.variance_scaling({scale:.3g}, 'fan_in', 'normal', in_axis=(0, 1, 2))",
    ),
    "zero initialised": (
        "Draw these weights at random; zeros belong at the end of a residual branch, or in the last layer.",
        "kernel_init = jax.nn.initializers.variance_scaling({scale:.3g}, 'fan_in', 'normal')  # {layer}",
    ),
    "batch norm explosion": (
        "Add shortcuts around the normalised layers, or take out the norm and set the weights' scale by theory.",
        "h = h + layer(norm(h))  # a shortcut around each block",
    ),
    "post-activation": (
        "Put the activation into the branch, so that the shortcut stays the identity.",
        "h = h + W(act(norm(h)))  # and not act(h + ...)",
    ),
    "residual growth": (
        "Scale each branch by 1 / sqrt(number of branches), start it at 0, or put a norm at its beginning.",
        "h = h + branch(h) / jnp.sqrt({depth})",
    ),
    "missing norm": (
        "Put a norm at the beginning of every branch.",
        "h = h + attention(norm_1(h))\nh = h + mlp(norm_2(h))",
    ),
    "learning rate": (
        "Take a rate below 2 / sharpness, or warm up to it.",
        "tx = optax.sgd(optax.warmup_constant_schedule(0.0, {scale:.2g}, 500))",
    ),
    "tied weights": (
        "Start the shared weights orthogonal with a scale of 1 over the root mean square slope, or use gates.",
        "recurrent_kernel_init = jax.nn.initializers.orthogonal({scale:.3g})  # {layer}",
    ),
}


class Facts(NamedTuple):
    """What a remedy's code is filled in with.

    Attributes:
        layer: the products' names, in few words.
        scale: a number that the finding knows.
        depth: how many products have parameters.
        activation: of the model, as Python; None where it has no name.
        initialize: the line that draws all weights, where the fault is in several layers; else "".
    """

    layer: str
    scale: float
    depth: int
    activation: str | None
    initialize: str


def remedy(kind: str, facts: Facts) -> tuple[str, str]:
    """(a sentence, lines of code) for a kind of fault."""
    sentence, code = REMEDIES[kind]
    if kind in _OF_SCALE and facts.initialize:
        code = f"{facts.initialize}  # {{layer}}"
    known = facts.activation
    return sentence, code.format(
        layer=facts.layer,
        scale=facts.scale,
        depth=facts.depth,
        activation=known or _UNKNOWN,
        hint="" if known else _HINT,
    )


def initialize_line(kind: str) -> str:
    """How `initialize` is called for a model of a kind, as `adapters` tells it."""
    return next(
        (line for word, line in _INITIALIZE.items() if kind.startswith(word)),
        "model = jaxact.initialize(model, x).params",
    )
