"""Depth as a loop: copies of one stage with stacked parameters, run as far as a traced depth says."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from jaxact.nn._ellipsoid import ellipsoid_block
from jaxact.nn._stages import Elementwise, Stage, refuse_bound, take_back
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

    The way back needs the input of every stage, and recomputes what lies within where the depth is traced; a `lax.scan`
    keeps that too. With `remat` it keeps the input of every k-th stage alone, k = sqrt(max_depth) rounded up, and runs
    the k stages from there once more (Chen et al. 2016, "Training deep nets with sublinear memory cost"): some 2 k
    hidden states in place of `max_depth`, for one more forward pass; an integer depth is then run as a traced one is.
    Measured on a CPU at depth 64, a training step's temporaries and processor time over those without: dense, width 32,
    1,024 inputs 0.38 and 1.13, with an integer depth 0.21 and 1.06; 3 x 3 convolutions of 8 channels with batch norm on
    32 images of 8 x 8 0.52 and 1.22, with an integer depth 0.06 and 1.00. Gradients were the same bit for bit.

    Attributes:
        stages: one `Stage` whose variables carry the leading layer axis.
        max_depth: how many stages there are.
        remat: whether the way back keeps every k-th hidden state alone; static.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Take back what a class inherits as bounds of another computation than its own."""
        super().__init_subclass__(**options)
        take_back(cls, dict.fromkeys(("log_lipschitz", "ellipsoid"), refuse_bound), of=("__call__",))

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
        self.remat = False

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
        return self._run(x, depth, activation, mode, taps)

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
        output, (hidden, preactivation) = self.observe(lambda *both: both, x, depth, activation)
        return Trace(output, hidden, preactivation)

    def observe(
        self,
        look: Callable[[Array, Array], PyTree],
        x: Float[Array, "*batch width"],
        depth: ArrayLike | None = None,
        activation: Elementwise | None = None,
    ) -> tuple[Float[Array, "*batch width"], PyTree]:
        """Run the first `depth` stages and keep what `look` makes of each, while it runs.

        Args:
            look: `look(hidden, preactivation)`, the stage's output and what it applied f to, both [*batch, width];
                gives arrays of the same shapes for every stage.
            x: as in a call, like `depth` and `activation`.
            depth: see `x`.
            activation: see `x`.

        Returns:
            The last hidden state, and what `look` gave, a leading axis [max_depth]: zeros at and past the depth.
        """
        graphdef, params, rest, num_stages = self._parts()
        depth = num_stages if depth is None else depth
        _check_depth(depth, num_stages)
        program = _Program(graphdef, self._is_training(), None)
        is_there, depth = (None, depth) if isinstance(depth, int) else _nearest(depth, num_stages)
        output, rows, rest = program.observed(look, params, x, rest, activation, depth)
        if program.training:
            nnx.update(self.stages, rest)
        return output if is_there is None else jnp.where(is_there, output, jnp.nan), rows

    @full_precision
    def log_lipschitz(self, depth: ArrayLike | None = None, activation: Any = None) -> Float[Array, ""]:
        """Natural log of the textbook's upper bound: the sum of `Stage.log_lipschitz` over the stages that run.

        Args:
            depth: as in a call.
            activation: replaces the stages' own; it must know its constant `lipschitz`.
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

        Args:
            Q: positive semidefinite, of the hidden state before the first stage.
            log_square: natural log of what Q is multiplied by.
            slopes: the least and the greatest slope of f.
            depth: as in a call.

        Returns:
            Q and log_square after the last stage that runs.
        """
        depth = self.max_depth if depth is None else depth
        _check_depth(depth, self.max_depth)
        graphdef, state = nnx.split(self.stages)

        def through(index, carry):
            skip, outer, inner = nnx.merge(graphdef, _row(state, index), copy=True).as_matrices()
            return ellipsoid_block(*carry, skip=skip, outer=outer, inner=inner, slope_range=slopes)

        return jax.lax.fori_loop(0, depth, through, (Q, log_square))

    def _run(self, x, depth, activation, mode, taps):
        """The output; running statistics are updated in place."""
        if mode not in ("reverse", "forward"):
            raise ValueError(f'`mode` must be "reverse" or "forward", got {mode!r}.')
        graphdef, params, rest, num_stages = self._parts()
        depth = num_stages if depth is None else depth
        _check_depth(depth, num_stages)
        training = self._is_training()
        program = _Program(graphdef, training, math.isqrt(num_stages - 1) + 1 if self.remat else None)
        activation = _as_leaves(activation)
        if isinstance(depth, int) and not (self.remat and mode == "reverse"):
            output, rest = program.scan(params, x, rest, activation, taps, depth)
        elif mode == "reverse":
            is_there, depth = _nearest(depth, num_stages)
            output, rest = _reverse(program, params, x, rest, activation, taps, depth)
            output = jnp.where(is_there, output, jnp.nan)
        else:
            if taps is not None:
                raise ValueError('`taps` need mode="reverse" or an integer depth, got mode="forward".')
            is_there, depth = _nearest(depth, num_stages)
            output, _, rest = program.loop(params, x, rest, activation, None, 0, depth, 0)
            output = jnp.where(is_there, output, jnp.nan)
        if training:
            nnx.update(self.stages, rest)
        return output

    def _is_training(self) -> bool:
        return any(
            getattr(module, "use_running_average", True) is False
            for _, module in nnx.iter_modules(self.stages)
        )

    def _parts(self) -> tuple[Any, Any, Any, int]:
        """Definition, parameters and other variables of the stages, and how many there are.

        Fewer than `max_depth` within `shortened`.
        """
        parts: Any = nnx.split(self.stages, nnx.Param, ...)
        return *parts, jax.tree.leaves(parts[1])[0].shape[0]


class _Program(NamedTuple):
    """The loop over stages as pure functions of their variables.

    Attributes:
        graphdef: of a stage.
        training: whether variables that are no parameters are updated.
        every: the way back keeps every so many-th input alone; each of them if None.
    """

    graphdef: Any
    training: bool
    every: int | None

    def stage(self, params, h, rest, activation):
        # copy=True: within grad and loops flax refuses to write into variables of an outer trace (0.12.8).
        stage = nnx.merge(self.graphdef, params, rest, copy=True)
        output = stage(h, activation=activation).astype(h.dtype)  # what a loop carries has one type
        parts: Any = nnx.split(stage, nnx.Param, ...)
        return output, parts[2] if self.training else None

    def scan(self, params, h, rest, activation, taps, depth):
        """Static depth."""
        used = jax.tree.map(lambda leaf: leaf[:depth], (params, rest, taps))

        def body(h, layer):
            params_l, rest_l, tap = layer
            output, rest_l = self.stage(params_l, h, rest_l, activation)
            return output if tap is None else output + tap, rest_l

        output, updated = jax.lax.scan(body, h, used)
        if self.training:
            rest = jax.tree.map(lambda old, new: old.at[:depth].set(new), rest, updated)
        return output, rest

    def loop(self, params, h, rest, activation, taps, start, end, num):
        """Traced depth: stages `start` to `end`; keeps up to `num` states after h. A jvp of it is a loop again."""

        # Of what is kept the buffer alone is carried: XLA would copy a hidden state beside it once more a stage.
        def body(index, carry):
            states, rest = carry
            h = _row(states, index - start) if num else states
            output, rest_l = self.stage(_row(params, index), h, _row(rest, index), activation)
            if taps is not None:
                output = output + taps[index]
            states = _put(states, index + 1 - start, output) if num else output
            return states, _put(rest, index, rest_l) if self.training else rest

        states = _put(jnp.zeros((num + 1, *h.shape), h.dtype), 0, h) if num else h
        states, rest = jax.lax.fori_loop(start, end, body, (states, rest))
        return (_row(states, end - start), states, rest) if num else (states, None, rest)

    def kept(self, params, h, rest, activation, taps, depth):
        """Traced depth: `loop` from 0, with the inputs that the way back keeps."""
        max_depth = jax.tree.leaves(params)[0].shape[0]
        if self.every is None:
            return self.loop(params, h, rest, activation, taps, 0, depth, max_depth)

        def body(stretch, carry):
            h, inputs, rest = carry
            inputs = _put(inputs, stretch, h)
            start, end = self.ends(stretch, depth)
            h, _, rest = self.loop(params, h, rest, activation, taps, start, end, 0)
            return h, inputs, rest

        inputs = jnp.zeros((-(-max_depth // self.every), *h.shape), h.dtype)
        return jax.lax.fori_loop(0, -(-depth // self.every), body, (h, inputs, rest))

    def ends(self, stretch, depth):
        """The first stage of a stretch, and the one after its last."""
        return stretch * self.every, jnp.minimum((stretch + 1) * self.every, depth)

    def observed(self, look, params, h, rest, activation, depth):
        """What `look` makes of every stage: of a static depth a scan, else a loop whose jvp is a loop again."""
        activation = _as_leaves(activation)

        def one(h, layer):
            params_l, rest_l = layer
            preactivation = nnx.merge(self.graphdef, params_l, rest_l, copy=True).preactivation(h)
            output, rest_l = self.stage(params_l, h, rest_l, activation)
            return output, (look(output, preactivation), rest_l)

        def with_row(index, carry):
            h, rows = carry
            h, found = one(h, _row((params, rest), index))
            return h, _put(rows, index, found)

        max_depth = jax.tree.leaves(params)[0].shape[0]
        found, _ = jax.eval_shape(one, h, _row((params, rest), 0))[1]
        zeros = jax.tree.map(lambda leaf: jnp.zeros((max_depth, *leaf.shape), leaf.dtype), found)
        rows = zeros, rest if self.training else None
        if isinstance(depth, int):
            used = jax.tree.map(lambda leaf: leaf[:depth], (params, rest))
            h, found = jax.lax.scan(one, h, used)
            rows = jax.tree.map(lambda all_, each: all_.at[:depth].set(each), rows, found)
        else:
            h, rows = jax.lax.fori_loop(0, depth, with_row, (h, rows))
        return h, rows[0], rows[1] if self.training else rest


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _reverse(program: _Program, params, h, rest, activation, taps, depth):
    """`_Program.loop` with a backward pass that walks the stored states; statistics get no gradient."""
    output, _, rest = program.loop(params, h, rest, activation, taps, 0, depth, 0)
    return output, rest


def _reverse_forward(program, params, h, rest, activation, taps, depth):
    output, inputs, updated = program.kept(params, h, rest, activation, taps, depth)
    return (output, updated), (params, inputs, rest, activation, taps, depth)


def _reverse_backward(program, residuals, cotangents):
    params, inputs, rest, activation, taps, depth = residuals
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

    def back(inputs, start, end, carry):
        """From the stage before `end` to that at `start`, given the inputs of these."""

        def body(step, carry):
            cotangent, gradients, taps_gradient, slopes_gradient = carry
            index = end - 1 - step
            if taps is not None:
                taps_gradient = _put(taps_gradient, index, cotangent)
            rest_l = _row(rest, index)
            _, pull = jax.vjp(
                lambda p, h, s: program.stage(p, h, rest_l, rebuilt(s, lambda leaf: leaf))[0],
                _row(params, index),
                _row(inputs, index - start),
                slopes,
            )
            gradient, cotangent, slope_gradient = pull(cotangent)
            gradients = _put(gradients, index, gradient)
            # Every layer uses the same.
            slopes_gradient = jax.tree.map(jnp.add, slopes_gradient, slope_gradient)
            return cotangent, gradients, taps_gradient, slopes_gradient

        return jax.lax.fori_loop(0, end - start, body, carry)

    def back_through(step, carry):
        """One of the stretches of which the first input is kept, from the last."""
        stretch = -(-depth // program.every) - 1 - step
        start, end = program.ends(stretch, depth)
        again = program._replace(training=False)
        given = (params, inputs[stretch], rest, activation, taps)
        return back(again.loop(*given, start, end, program.every)[1], start, end, carry)

    zeros = jax.tree.map(jnp.zeros_like, (params, taps, slopes))
    if program.every is None:
        carry = back(inputs, 0, depth, (cotangent, *zeros))
    else:
        carry = jax.lax.fori_loop(0, -(-depth // program.every), back_through, (cotangent, *zeros))
    cotangent, gradients, taps_gradient, slopes_gradient = carry
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


def _as_leaves(activation):
    """The activation as a pytree of arrays: a bare function is static, and no array."""
    is_bare = any(callable(leaf) for leaf in jax.tree.leaves(activation))
    return jax.tree_util.Partial(activation) if is_bare else activation


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
