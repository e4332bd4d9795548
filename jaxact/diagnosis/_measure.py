"""What is measured at every product, by one compiled program that returns a number a row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxact.diagnosis._axes import FEATURE, Axes, batch_axis, has
from jaxact.diagnosis._formula import Formula, largest_slope, slope
from jaxact.diagnosis._reading import Reading
from jaxact.diagnosis._skeleton import Skeleton
from jaxact.diagnosis._taps import Path, Plan, Tap, evaluate, tapped

SATURATED = 0.01  # of the largest slope
_NUM_COMPARED = 64  # inputs
_OUTPUTS = -1  # the path of the function's outputs starts with this
_PRODUCT = ("mean", "second_moment", "largest_entry", "cosine", "effective_rank")
_ACTIVATION = ("zero", "dead", "saturated", "activation_second_moment", "slope_second_moment")
_SOFTMAX = ("concentration",)
NAMES = (*_PRODUCT, *_ACTIVATION, *_SOFTMAX, "gradient_second_moment")


def product_statistics(z: Float[Array, "*shape"], axes: Axes, num_inputs: int) -> dict[str, Array]:
    """Mean, second moment, largest |z|, mean cosine between inputs, and effective rank of their Gram matrix.

    With G = Z Z^T of up to 64 inputs, Z [input, everything else]: the mean of G_ij / sqrt(G_ii G_jj) over i != j whose
    products are not all zero, and
    the participation ratio tr(G)^2 / |G|_F^2, between 1 and the number of inputs.
    """
    z = z.astype(jnp.float32)
    found = {
        "mean": jnp.mean(z),
        "second_moment": jnp.mean(jnp.square(z)),
        "largest_entry": jnp.max(jnp.abs(z)),
    }
    first = batch_axis(axes, num_inputs)
    count = min(num_inputs, _NUM_COMPARED)
    if first is None or count < 2:
        return found | {"cosine": jnp.full((), jnp.nan), "effective_rank": jnp.full((), jnp.nan)}
    Z = jnp.moveaxis(z, first, 0).reshape(num_inputs, -1)[:count]
    G = jnp.dot(Z, Z.T, precision=jax.lax.Precision.HIGHEST)
    norms = jnp.sqrt(jnp.diagonal(G))
    scales = norms[:, None] * norms
    is_pair = (scales > 0) & ~jnp.eye(count, dtype=bool)  # an input that ends up at 0 has no direction
    cosines = jnp.where(is_pair, G / jnp.where(scales > 0, scales, 1), 0)
    found["cosine"] = jnp.sum(cosines) / jnp.sum(is_pair)
    scaled = G / jnp.trace(G)  # squares of large entries could overflow
    return found | {"effective_rank": 1 / jnp.sum(jnp.square(scaled))}


def activation_statistics(
    u: Float[Array, "*shape"], formula: Formula, largest: float, axes: Axes
) -> dict[str, Array]:
    """Shares of zeros, of units that are zero on every input, and of slopes below 1 % of the largest; E f^2, E f'^2."""
    value, steep = formula(u), jnp.abs(slope(formula, u)).astype(jnp.float32)
    others = tuple(k for k, one in enumerate(axes) if not has(one, FEATURE))
    return {
        "zero": jnp.mean(value == 0, dtype=jnp.float32),
        "dead": jnp.mean(jnp.all(value == 0, others), dtype=jnp.float32),
        "saturated": jnp.mean(steep < SATURATED * largest, dtype=jnp.float32),
        "activation_second_moment": jnp.mean(jnp.square(value.astype(jnp.float32))),
        "slope_second_moment": jnp.mean(jnp.square(steep)),
    }


def concentration(exponentials: Float[Array, "*shape"], axes: tuple[int, ...]) -> dict[str, Array]:
    """The mean of sum p^2 of a softmax p, from its exponentials: 1 / n where all are alike, 1 where one takes all."""
    e = exponentials.astype(jnp.float32)
    total = jnp.sum(e, axes)
    return {"concentration": jnp.mean(jnp.sum(jnp.square(e), axes) / jnp.square(total))}


def plan(reading: Reading, skeleton: Skeleton) -> Plan:
    """The taps of every product, of the array that its activation is a formula of, and of softmaxes."""
    num_inputs = reading.graph.batch.num_inputs
    measures: dict[Path, list[Callable[[Array], dict[str, Array]]]] = {}
    slots: set[Path] = set()
    for site in reading.sites:
        if site.key[0] not in slots:
            slots.add(site.key[0])
            measure = partial(product_statistics, axes=site.axes, num_inputs=num_inputs)
            measures.setdefault(site.key[0], []).append(measure)
    done: set[Path] = set()
    for site in reading.sites:
        if site.activation is not None and site.activation[0][0] not in done:
            (path, _), formula = site.activation
            done.add(path)
            measure = partial(
                activation_statistics,
                formula=formula,
                largest=largest_slope(formula),
                axes=site.activation_axes,
            )
            measures.setdefault(path, []).append(measure)
    for path, axes in {softmax.key[0]: softmax.axes for softmax in skeleton.softmaxes.values()}.items():
        measures.setdefault(path, []).append(partial(concentration, axes=axes))
    taps = {path: Tap(partial(_all, each), path in slots) for path, each in measures.items()}
    return Plan(taps, reading.loops)


def _all(measures: Sequence[Callable[[Array], dict[str, Array]]], z: Array) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for measure in measures:
        found |= measure(z)
    return found


class Watch:
    """The measured numbers of a diagnosis as a pure function (params, batch) -> {name: [row]}, safe to jit.

    Attributes:
        names: of the rows, in order.
        notes: what is not measured.
        skeleton: which products feed which.
    """

    def __init__(
        self, closed: Any, reading: Reading, loss: Callable[..., Any] | None, out_tree: Any, num_leaves: int
    ):
        self.closed, self.reading, self.loss, self.out_tree = closed, reading, loss, out_tree
        self.skeleton = Skeleton(closed, reading, len(closed.jaxpr.invars) - num_leaves)
        self.plan = plan(reading, self.skeleton)
        self.names = tuple(site.name for site in reading.sites)
        self.notes = tuple(reading.notes)

    def __call__(self, params: Any, batch: Any) -> dict[str, Float[Array, " row"]]:
        """Measure; see `jaxact.diagnosis.Row` for what each number is."""
        return self.all(params, batch)[0]

    def all(self, params: Any, batch: Any) -> tuple[dict[str, Array], list[Array], Array]:
        """The rows' numbers, the gradient's second moment at each of the function's outputs, and the loss."""
        args = [*jax.tree.leaves(params), *jax.tree.leaves(batch)]

        def objective(slots: dict[Path, Array]) -> tuple[Array, Any]:
            outputs, found = evaluate(self.plan, self.closed.jaxpr, self.closed.consts, args, slots)
            outputs = [
                tapped(each, slots[(_OUTPUTS, k)]) if (_OUTPUTS, k) in slots else each
                for k, each in enumerate(outputs)
            ]
            loss = self._loss(outputs, batch)
            return loss, (found, loss)

        real = [k for k, aval in enumerate(self.closed.out_avals) if jnp.issubdtype(aval.dtype, jnp.floating)]
        slots = self.plan.slots() | {(_OUTPUTS, k): jnp.zeros(()) for k in real}
        gradients, (found, loss) = jax.grad(objective, has_aux=True)(slots)
        at_outputs = [gradients.get((_OUTPUTS, k), jnp.zeros(())) for k in range(len(self.closed.out_avals))]
        for path in found:
            if path in gradients:
                found[path] = found[path] | {"gradient_second_moment": gradients[path]}
        return {name: self._rows(found, name) for name in NAMES}, at_outputs, loss

    def _loss(self, outputs: list[Array], batch: Any) -> Array:
        if self.loss is None:
            return random_projection(outputs)
        tree = jax.tree.unflatten(self.out_tree, outputs)
        return call_loss(self.loss, tree, batch)

    def _rows(self, found: Mapping[Path, Mapping[str, Array]], name: str) -> Array:
        """One number a row, in order: what loops stacked is laid out, and read by its place."""
        paths = [path for path in found if name in found[path]]
        flat = jnp.concatenate([*(found[path][name].reshape(-1) for path in paths), jnp.full(1, jnp.nan)])
        ends = list(accumulate((found[path][name].size for path in paths), initial=0))
        starts = dict(zip(paths, ends, strict=False))
        count = len(self.reading.sites)
        index = [self._place(starts, self._key(k, name), flat.size - 1) for k in range(count)]
        return flat[np.asarray(index, int)]

    def _key(self, k: int, name: str) -> Any:
        """Where a number of a row is measured: (path, turns), or None."""
        site, softmax = self.reading.sites[k], self.skeleton.softmaxes.get(k)
        if name in _SOFTMAX:
            return softmax and softmax.key
        return site.activation and site.activation[0] if name in _ACTIVATION else site.key

    def _place(self, starts: Mapping[Path, int], key: Any, nowhere: int) -> int:
        if key is None or key[0] not in starts:
            return nowhere
        path, turns = key
        return int(starts[path] + (np.ravel_multi_index(turns, self.plan.turns(path)) if turns else 0))


def random_projection(outputs: Sequence[Array]) -> Array:
    """The loss where none is given: the sum of all outputs times fixed standard normal numbers."""
    real = [each for each in outputs if jnp.issubdtype(each.dtype, jnp.floating)]
    keys = jax.random.split(jax.random.key(0), len(real))
    terms = [jnp.vdot(jax.random.normal(key, each.shape), each) for key, each in zip(keys, real, strict=True)]
    return jnp.sum(jnp.stack(terms)).astype(jnp.float32)


def call_loss(loss: Callable[..., Any], outputs: Any, batch: Any) -> Array:
    """A loss of the outputs, or of outputs and batch."""
    try:
        inspect.signature(loss).bind(outputs)
    except TypeError:
        return loss(outputs, batch)
    except ValueError:  # of builtins, which say nothing
        pass
    return loss(outputs)
