"""What studies look at in the networks of a trial: spectra, bounds, statistics and gradients, for one member each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxact import fit, lipschitz, numerics, probes
from train.study import Variable
from train.trial import Trial, cross_entropy


def singular_values(
    trial: Trial, state: fit.State, inputs: jax.Array, setting: tuple, *, num: int | None = None
) -> jax.Array:
    """Singular values of the Jacobian from an input to the last hidden state, [input, mode], descending.

    Args:
        trial: whose network.
        state: of the member.
        inputs: [input, ...].
        setting: of the network's call; a depth in it may be traced.
        num: how many of the largest, by products with the Jacobian, an estimate from below; None for all, from the
            Jacobian itself.
    """

    def hidden(x: jax.Array, mode: str) -> jax.Array:
        one = x if num is None else x[None]
        return trial.output(state, one, *setting, method="features", mode=mode).reshape(-1)

    if num is None:
        return probes.singular_values(lambda x: hidden(x, "forward"), inputs)

    def leading(x: jax.Array) -> jax.Array:
        # A loop with a traced depth has no derivative that goes both ways, but one for each.
        shape = jax.eval_shape(lambda: hidden(x, "forward")).size, x.size
        found = numerics.leading_singular_triplets(
            lambda v: jax.jvp(lambda x: hidden(x, "forward"), (x,), (v.reshape(x.shape),))[1],
            lambda u: jax.vjp(lambda x: hidden(x, "reverse"), x)[1](u)[0].reshape(-1),
            shape=shape,
            num=min(num, *shape),
            dtype=x.dtype,
            values_only=True,
        )
        return found.values

    return jax.vmap(leading)(inputs)


def spectrum_variables(dims: tuple[str, ...]) -> dict[str, Variable]:
    """What `spectrum` measures, declared; `dims` end with the inputs."""
    return {
        "jacobian_singular_values": Variable(
            "singular value of the input-to-last-hidden Jacobian", (*dims, "mode")
        ),
        "jacobian_largest": Variable("largest Jacobian singular value", dims),
        "jacobian_smallest": Variable("smallest Jacobian singular value", dims),
        "jacobian_mean_square": Variable("mean squared Jacobian singular value", dims),
        "jacobian_condition_number": Variable("Jacobian condition number", dims),
        "jacobian_effective_rank": Variable("effective rank of the Jacobian", dims),
    }


def spectrum(
    trial: Trial, state: fit.State, inputs: jax.Array, setting: tuple, *, num: int | None = None
) -> dict[str, jax.Array]:
    """What `singular_values` gives, and `jaxact.probes.spectrum_summary` of it, by name, each after "jacobian_"."""
    values = singular_values(trial, state, inputs, setting, num=num)
    summary = probes.spectrum_summary(values)._asdict()
    if num is not None:  # what the largest alone do not tell
        summary |= {name: jnp.full_like(each, jnp.nan) for name, each in summary.items() if name != "largest"}
    return {
        "jacobian_singular_values": values,
        **{f"jacobian_{name}": value for name, value in summary.items()},
    }


def log10_bound(trial: Trial, state: fit.State, setting: tuple, *, method: str = "product") -> jax.Array:
    """log10 of an upper bound on the network's Lipschitz constant; `method` as in `jaxact.nn.MLP.log_lipschitz`."""

    def bound(state: fit.State, *setting: Any) -> jax.Array:
        log = trial.output(state, *setting, method=lambda net, *args: net.log_lipschitz(*args, method=method))
        return log / math.log(10)

    # Member after member: jaxlib (0.10.2) works through a batch of decompositions on the threads that wait for one, and
    # with a batch on each device of a mesh none is left to do the work.
    bound = jax.custom_batching.sequential_vmap(bound) if method == "ellipsoid" else bound
    return bound(state, *setting)


def log10_ascent(
    trial: Trial,
    state: fit.State,
    inputs: jax.Array,
    setting: tuple,
    *,
    num_steps: int,
    takes_one: bool = False,
) -> jax.Array:
    """log10 of a lower bound on the network's Lipschitz constant, by gradient ascent on ||J(x)|| from every input.

    Args:
        trial: whose network.
        state: of the member.
        inputs: [start, ...].
        setting: of the network's call.
        num_steps: of the ascent.
        takes_one: whether the network takes an input without a batch axis.
    """

    def network(mode: str) -> Callable:
        def alone(x: jax.Array) -> jax.Array:
            if takes_one:
                return trial.output(state, x, *setting, mode=mode)
            return trial.output(state, x[None], *setting, mode=mode)[0]

        return jax.jit(alone)  # so that the many places where the ascent calls it share one trace

    forward = network("forward")
    lower = lipschitz.lower_bound(
        network("reverse"),
        inputs,
        key=jax.random.fold_in(state.key, trial.num_steps),  # batches take the steps before
        num_steps=num_steps,
        tangent=lambda x, v: jax.jvp(forward, (x,), (v,))[1],
    )
    return jnp.log10(lower.value)


def layer_variables(dims: tuple[str, ...]) -> dict[str, Variable]:
    """What `layer_statistics` measures beside the second moment, declared; `dims` end with the layers."""
    return {
        "mean": Variable("mean of the hidden state", dims),
        "zero_fraction": Variable("share of activations equal to zero", dims),
        "dead_fraction": Variable("share of units with zero slope on every input", dims),
        "saturated_fraction": Variable("share of slopes below 1 % of the largest", dims),
    }


def layer_statistics(
    trial: Trial, state: fit.State, inputs: jax.Array, setting: tuple, activation: Any
) -> dict[str, jax.Array]:
    """`jaxact.probes.layer_statistics` of every layer on a batch, by name; [layer], zeros past the depth."""

    def look(hidden: jax.Array, preactivation: jax.Array) -> dict[str, jax.Array]:
        found = probes.layer_statistics(preactivation[None], activation, hidden=hidden[None])
        return {name: value[0] for name, value in found._asdict().items()}

    return trial.output(state, inputs, *setting, method=lambda network, *args: network.observe(look, *args))


def unit_lives(trial: Trial) -> Callable[..., tuple[Any, ...]]:
    """A way to train networks of one trial, and to see on its test set what their units were and have become.

    Returns:
        `live(sigma_w, depth, activation)`: statistics of every layer before and after training, by name,
        [member, layer]; and the test accuracy at the end, [member].
    """

    def statistics(state: fit.State, data: Any, *setting: Any) -> dict[str, jax.Array]:
        return layer_statistics(trial, state, data["test"][0], setting, setting[1])

    read = trial.program(statistics)

    def live(sigma_w: float, *setting: Any) -> tuple[Any, ...]:
        states = trial.start(*setting, sigma_w=jnp.float32(sigma_w))
        before = trial.host(read(states, trial.data, *setting))
        states, curves = trial.train(states, *setting)
        return before, trial.host(read(states, trial.data, *setting)), curves["test_accuracy"][:, -1]

    return live


def gradient_norms(
    trial: Trial, state: fit.State, batch: tuple, setting: tuple
) -> tuple[jax.Array, jax.Array]:
    """||dL/dW_l|| and ||dL/dh_l|| on one batch, norms in training mode as the optimiser sees them; [layer] each."""
    inputs, labels = batch
    hidden = jax.eval_shape(lambda: trial.output(state, inputs, method="embed"))

    def loss(kernels: jax.Array, taps: jax.Array) -> jax.Array:
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: kernels if _is_stage_kernel(path) else leaf, state.params
        )
        options = {"taps": taps, "training": True}
        return cross_entropy(
            trial.network.apply(params, state.variables, inputs, *setting, **options)[0], labels
        )

    kernels = stage_kernels(state.params)
    return probes.gradient_norms(loss, kernels, jnp.zeros((len(kernels), *hidden.shape)))


def curvature_error(trial: Trial, state: fit.State, data: tuple, setting: tuple, *, step: float) -> jax.Array:
    """How far the loss's second derivative along its gradient is from how its slope changes over a short step.

    With L the loss of a batch, g its gradient and s(t) = d/dt L(params + t g),

        sum |s'(0) - (s(step) - s(0)) / step| / sum |(s(step) - s(0)) / step|    over batches of the trial's size.

    A smooth network has an error of the order of the step; at a kink s' misses the jump of s.

    Args:
        trial: whose network.
        state: of the member.
        data: inputs and labels; what does not fill a batch is left out.
        setting: of the network's call.
        step: t; times g small beside the parameters.
    """

    def changes(batch: tuple) -> tuple[jax.Array, jax.Array]:
        inputs, labels = batch

        def loss(params: Any, mode: str) -> jax.Array:
            logits = trial.network.apply(params, state.variables, inputs, *setting, mode=mode)[0]
            return cross_entropy(logits, labels)

        gradient = jax.grad(lambda params: loss(params, "reverse"))(state.params)

        def slope(t: jax.Array) -> jax.Array:
            moved = lambda t: jax.tree.map(lambda p, g: p + t * g, state.params, gradient)  # noqa: E731
            return jax.jvp(lambda t: loss(moved(t), "forward"), (t,), (jnp.ones(()),))[1]

        zero = jnp.zeros(())
        start, curvature = jax.jvp(slope, (zero,), (jnp.ones(()),))
        return curvature, (slope(zero + step) - start) / step

    num, size = len(data[0]) // trial.batch_size, trial.batch_size
    batches = jax.tree.map(lambda rows: rows[: num * size].reshape(num, size, *rows.shape[1:]), data)
    curvature, secant = jax.lax.map(changes, batches)
    return jnp.sum(jnp.abs(curvature - secant)) / jnp.sum(jnp.abs(secant))


def stage_kernels(params: Any) -> jax.Array:
    """The weights of all stages in a network's parameters (or their gradient), [layer, ...]."""
    return params["stack"]["stages"]["affine"]["kernel"][...]


def fresh(trial: Trial, batch: tuple, member: fit.Member, sigma_w: jax.Array) -> dict[str, jax.Array]:
    """A fresh network at a weight scale, on one batch, norms in training mode.

    Args:
        trial: whose network.
        batch: inputs and labels.
        member: its key draws the parameters: the same at any scale but for that.
        sigma_w: as in `jaxact.nn.MLP`.

    Returns:
        "logits"; "slope", the norm of the loss's gradient g by the weights W of all stages; "radial", the cosine of W
        and g.
    """
    params, variables = trial.network.init(member.key, sigma_w=sigma_w)

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = trial.network.apply(params, variables, batch[0], training=True)[0]
        return cross_entropy(logits, batch[1]), logits

    gradients, logits = jax.grad(loss, has_aux=True)(params)
    weights, slopes = (stage_kernels(each).ravel() for each in (params, gradients))
    slope = jnp.linalg.norm(slopes)
    return {"logits": logits, "slope": slope, "radial": weights @ slopes / (jnp.linalg.norm(weights) * slope)}


def scaled(
    trial: Trial, batch: tuple, seeds: Sequence[int], scales: Sequence[float]
) -> list[dict[str, jax.Array]]:
    """What `fresh` says of the same networks at several weight scales, one after the other, a leading axis of seeds."""
    every = trial.program(lambda member, sigma_w: fresh(trial, batch, member, sigma_w))
    return [every(fit.grid(seeds=seeds), jnp.float32(scale)) for scale in scales]


def _is_stage_kernel(path: tuple) -> bool:
    return jax.tree_util.keystr(path, simple=True, separator="/").startswith("stack/stages/affine/kernel")
