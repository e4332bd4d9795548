"""Depth as a loop: copies of one stage with stacked parameters, run as far as a traced depth says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxact.nn._ellipsoid import ellipsoid_block
from jaxact.nn._stages import Elementwise, Stage
from jaxact.numerics import check_count, full_precision

Mode = Literal["reverse", "forward"]


class Trace(NamedTuple):
    """What `Stack.trace` returns; rows at and past the depth that was run are zero.

    Attributes:
        output: the last hidden state, [*batch, width].
        hidden: the output of every stage, [max_depth, *batch, width]; the row depth - 1 is `output`.
        preactivation: what every stage applied f to, [max_depth, *batch, width].
    """

    output: Float[Array, "*batch width"]
    hidden: Float[Array, "layer *batch width"]
    preactivation: Float[Array, "layer *batch width"]


class Stack(nnx.Module):
    """`max_depth` copies of one stage, run one after the other as a loop in the compiled program.

    h_{l+1} = stage_l(h_l), l = 0 ... depth - 1. Parameters carry a leading axis of length `max_depth`, so that
    compile time does not grow with depth, and layer-wise measurements are array arithmetic.

    Depth may be given as a Python integer: the loop is then a `lax.scan`, a program for each depth, with
    every kind of derivative. Or it may be traced, one program for all depths: `mode="reverse"` can then
    be differentiated by `jax.grad` and `jax.vjp` (and these again by `jax.jvp`: Hessian-vector products),
    `mode="forward"` by `jax.jvp`, as often as wanted. jax has no loop with a traced trip count that does both.

    Attributes:
        stages: one `Stage` whose variables carry the leading layer axis.
        max_depth: how many stages there are.
    """

    def __init__(self, stage: Callable[..., Stage], max_depth: int, *, rngs: nnx.Rngs):
        """Make the stages.

        Args:
            stage: makes one from `(rngs=...)`, e.g. `functools.partial(Plain, 64, activations.relu)`.
            max_depth: how many to make.
            rngs: its `params` stream is split among them.

        Raises:
            ValueError: if `max_depth` is not a positive integer.
        """
        check_count("max_depth", max_depth)
        definition: list[Any] = []

        def make(key: jax.Array) -> nnx.State:
            graphdef, state = nnx.split(stage(rngs=nnx.Rngs(params=key)))
            definition.append(graphdef)
            return state

        state = jax.vmap(make)(jax.random.split(rngs.params(), max_depth))
        self.stages: Stage = nnx.merge(definition[0], state)
        self.max_depth = max_depth

    @property
    def hidden_is_preactivation(self) -> bool:
        """Whether the output still waits for the activation."""
        return self.stages.hidden_is_preactivation

    def __call__(
        self,
        x: Float[Array, "*batch width"],
        depth: ArrayLike | None = None,
        activation: Elementwise | None = None,
        *,
        mode: Mode = "reverse",
        taps: Float[Array, "layer *batch width"] | None = None,
    ) -> Float[Array, "*batch width"]:
        """Run the first `depth` stages on `x`.

        Args:
            x: hidden state, [*batch, width].
            depth: number of stages, at most `max_depth` and at least 1; all of them if None. An integer is
                static; an array, traced or not, is a run-time argument.
            activation: replaces the stages' own; with a traced choice, an `activations.Selected`.
            mode: what a traced depth can be differentiated by; see the class.
            taps: added to the output of every stage; zeros whose gradient is dL/dh_l. For reverse mode or a
                static depth.

        Returns:
            The last hidden state. Batch norms in training mode update their running statistics in the stages
            that ran.

        Raises:
            ValueError: if a concrete `depth` lies outside 1 ... max_depth, or `mode` is unknown. A traced depth
                outside gives NaN.
        """
        output, _ = self._run(x, depth, activation, mode, taps)
        return output

    def trace(
        self,
        x: Float[Array, "*batch width"],
        depth: ArrayLike | None = None,
        activation: Elementwise | None = None,
    ) -> Trace:
        """Run the first `depth` stages and keep what every one of them saw and gave.

        Takes the same arguments as a call; with a traced depth the result can be differentiated by `jax.jvp`
        alone. See `Trace` for shapes.
        """
        output, states = self._run(x, depth, activation, "forward", None, keep=True)
        last = (len(states) - 1 if depth is None else depth) - 1
        hidden = states[1:].at[last].set(output)  # NaN where there are not so many stages
        graphdef, state = nnx.split(self.stages)
        preactivation = jax.vmap(lambda s, h: nnx.merge(graphdef, s).preactivation(h))(state, states[:-1])
        ran = (jnp.arange(len(hidden)) <= last).reshape(-1, *[1] * x.ndim)
        return Trace(output, jnp.where(ran, hidden, 0), jnp.where(ran, preactivation, 0))

    @full_precision
    def log_lipschitz(self, depth: ArrayLike | None = None, activation: Any = None) -> Float[Array, ""]:
        """Natural log of the textbook's upper bound: the sum of `Stage.log_lipschitz` over the stages that run.

        Takes `depth` and `activation` as a call does; the activation must know its constant `lipschitz`.
        """
        _check_depth(self.max_depth if depth is None else depth, self.max_depth)
        f = self.stages.activation if activation is None else activation
        graphdef, state = nnx.split(self.stages)
        each = jax.vmap(lambda s: nnx.merge(graphdef, s).log_lipschitz(lipschitz_of(f)))(state)
        depth = self.max_depth if depth is None else depth
        return jnp.sum(jnp.where(jnp.arange(self.max_depth) < depth, each, 0.0))

    @full_precision
    def ellipsoid(
        self,
        Q: Float[Array, "width width"],
        log_square: Float[Array, ""],
        slopes: tuple[ArrayLike, ArrayLike],
        depth: ArrayLike | None = None,
    ) -> tuple[Float[Array, "width width"], Float[Array, ""]]:
        """Carry dh dh^T <= exp(log_square) Q |dx|^2 through the first `depth` stages; slopes of f in `slopes`.

        See `lipschitz.upper_bound` and `MLP.log_lipschitz`. A traced depth has no reverse-mode derivative.
        """
        depth = self.max_depth if depth is None else depth
        _check_depth(depth, self.max_depth)
        graphdef, state = nnx.split(self.stages)

        def through(index, carry):
            skip, outer, inner = nnx.merge(graphdef, _row(state, index), copy=True).as_matrices()
            return ellipsoid_block(*carry, skip=skip, outer=outer, inner=inner, slope_range=slopes)

        return jax.lax.fori_loop(0, depth, through, (Q, log_square))

    def _run(self, x, depth, activation, mode, taps, keep=False):
        """Output and, to `keep`, the hidden states, x first [max_depth + 1, ...]; running statistics are updated."""
        if mode not in ("reverse", "forward"):
            raise ValueError(f'`mode` must be "reverse" or "forward", got {mode!r}.')
        parts: Any = nnx.split(self.stages, nnx.Param, ...)
        graphdef, params, rest = parts
        num_stages = jax.tree.leaves(params)[0].shape[0]  # fewer than max_depth within `shortened`
        depth = num_stages if depth is None else depth
        _check_depth(depth, num_stages)
        training = any(
            getattr(module, "use_running_average", True) is False
            for _, module in nnx.iter_modules(self.stages)
        )
        program = _Program(graphdef, training)
        if any(callable(leaf) for leaf in jax.tree.leaves(activation)):
            activation = jax.tree_util.Partial(activation)  # a bare function: static, not an array
        if isinstance(depth, int):
            output, states, rest = program.scan(params, x, rest, activation, taps, depth)
        elif mode == "reverse":
            is_there, depth = _nearest(depth, num_stages)
            output, rest = _reverse(program, params, x, rest, activation, taps, depth)
            output, states = jnp.where(is_there, output, jnp.nan), None
        else:
            if taps is not None:
                raise ValueError('`taps` need mode="reverse" or an integer depth, got mode="forward".')
            is_there, depth = _nearest(depth, num_stages)
            output, states, rest = program.loop(params, x, rest, activation, None, depth, keep)
            output = jnp.where(is_there, output, jnp.nan)
        if training:
            nnx.update(self.stages, rest)
        return output, states


class _Program(NamedTuple):
    """The loop over stages as pure functions of their variables."""

    graphdef: Any
    training: bool

    def stage(self, params, h, rest, activation):
        # copy=True: within grad and loops flax refuses to write into variables of an outer trace (0.12.8).
        stage = nnx.merge(self.graphdef, params, rest, copy=True)
        output = stage(h, activation=activation)
        parts: Any = nnx.split(stage, nnx.Param, ...)
        return output, parts[2] if self.training else None

    def scan(self, params, h, rest, activation, taps, depth):
        """Static depth."""
        used = jax.tree.map(lambda leaf: leaf[:depth], (params, rest, taps))

        def body(h, layer):
            params_l, rest_l, tap = layer
            output, rest_l = self.stage(params_l, h, rest_l, activation)
            return output if tap is None else output + tap, (h, rest_l)

        output, (inputs, updated) = jax.lax.scan(body, h, used)
        pad = [(0, jax.tree.leaves(params)[0].shape[0] + 1 - depth), *[(0, 0)] * h.ndim]
        if self.training:
            rest = jax.tree.map(lambda old, new: old.at[:depth].set(new), rest, updated)
        return output, jnp.pad(inputs, pad), rest

    def loop(self, params, h, rest, activation, taps, depth, keep):
        """Traced depth; a jvp of it is a loop again."""
        max_depth = jax.tree.leaves(params)[0].shape[0]

        # Of what is kept the buffer alone is carried: XLA would copy a hidden state beside it once more a stage.
        def body(index, carry):
            states, rest = carry
            h = _row(states, index) if keep else states
            output, rest_l = self.stage(_row(params, index), h, _row(rest, index), activation)
            if taps is not None:
                output = output + taps[index]
            states = _put(states, index + 1, output) if keep else output
            return states, _put(rest, index, rest_l) if self.training else rest

        states = _put(jnp.zeros((max_depth + 1, *h.shape), h.dtype), 0, h) if keep else h
        states, rest = jax.lax.fori_loop(0, depth, body, (states, rest))
        return (_row(states, depth), states, rest) if keep else (states, None, rest)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reverse(program: _Program, params, h, rest, activation, taps, depth):
    """`_Program.loop` with a backward pass that walks the stored inputs; statistics get no gradient."""
    output, _, rest = program.loop(params, h, rest, activation, taps, depth, keep=False)
    return output, rest


def _reverse_forward(program, params, h, rest, activation, taps, depth):
    output, states, updated = program.loop(params, h, rest, activation, taps, depth, keep=True)
    return (output, updated), (params, states, rest, activation, taps, depth)


def _reverse_backward(program, residuals, cotangents):
    params, states, rest, activation, taps, depth = residuals
    cotangent, _ = cotangents

    leaves, structure = jax.tree_util.tree_flatten(activation)
    is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]
    slopes = [leaf for leaf, differentiable in zip(leaves, is_float, strict=True) if differentiable]

    def rebuilt(slopes, fill):
        """The activation with its float leaves replaced and the others as `fill` makes them."""
        given = iter(slopes)
        return jax.tree_util.tree_unflatten(
            structure,
            [
                next(given) if differentiable else fill(leaf)
                for leaf, differentiable in zip(leaves, is_float, strict=True)
            ],
        )

    def body(step, carry):
        cotangent, gradients, taps_gradient, slopes_gradient = carry
        index = depth - 1 - step
        if taps is not None:
            taps_gradient = _put(taps_gradient, index, cotangent)
        rest_l = _row(rest, index)
        _, pull = jax.vjp(
            lambda p, h, s: program.stage(p, h, rest_l, rebuilt(s, lambda leaf: leaf))[0],
            _row(params, index),
            _row(states, index),
            slopes,
        )
        gradient, cotangent, slope_gradient = pull(cotangent)
        gradients = _put(gradients, index, gradient)
        slopes_gradient = jax.tree.map(jnp.add, slopes_gradient, slope_gradient)  # every layer uses the same
        return cotangent, gradients, taps_gradient, slopes_gradient

    zeros = jax.tree.map(jnp.zeros_like, (params, taps, slopes))
    cotangent, gradients, taps_gradient, slopes_gradient = jax.lax.fori_loop(
        0, depth, body, (cotangent, *zeros)
    )
    no_gradient = lambda leaf: np.zeros(np.shape(leaf), jax.dtypes.float0)  # noqa: E731
    return gradients, cotangent, None, rebuilt(slopes_gradient, no_gradient), taps_gradient, None


_reverse.defvjp(_reverse_forward, _reverse_backward)


def lipschitz_of(activation: Any) -> ArrayLike:
    """The constant sup |f'| of an activation that knows it."""
    constant = getattr(activation, "lipschitz", None)
    if constant is None:
        raise ValueError(
            f"The activation {activation!r} states no Lipschitz constant. "
            "Use one of jaxact.activations, or activations.from_callable."
        )
    return constant


def slopes_of(activation: Any) -> tuple[ArrayLike, ArrayLike]:
    """The range of f' of an activation that knows it, or what its Lipschitz constant says of it."""
    constant = lipschitz_of(activation)
    return getattr(activation, "slope_range", None) or (-jnp.asarray(constant), constant)


def _row(tree, index):
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), tree)


def _put(tree, index, row):
    """In place in a loop; `.at[index].set` would first read the old row, to keep it where there is no such index."""
    put = lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new.astype(leaf.dtype), index, 0)  # noqa: E731
    return jax.tree.map(put, tree, row)


def _nearest(depth: ArrayLike, num_stages: int) -> tuple[jax.Array, jax.Array]:
    """Whether there are so many stages, and the nearest number that there are."""
    depth = jnp.asarray(depth)
    nearest = jnp.clip(depth, 1, num_stages)
    return depth == nearest, nearest


def _check_depth(depth: Any, max_depth: int) -> None:
    if isinstance(depth, jax.core.Tracer):
        return
    if not np.issubdtype(np.asarray(depth).dtype, np.integer) or np.ndim(depth) != 0:
        raise ValueError(f"`depth` must be an integer, got {depth!r}.")
    if not 1 <= int(depth) <= max_depth:
        raise ValueError(f"`depth` must lie between 1 and max_depth = {max_depth}, got {int(depth)}.")
