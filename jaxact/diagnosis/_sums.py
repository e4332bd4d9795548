"""Sums and maxima over axes of arrays that are known by their statistics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxact.diagnosis._axes import BATCH, FEATURE, POSITION, has
from jaxact.diagnosis._elementwise import in_common, one
from jaxact.diagnosis._gradients import Gain, Gradient, coherent
from jaxact.diagnosis._graph import Graph, Node, Stats, Value
from jaxact.diagnosis._output_axes import output_axes
from jaxact.trace import UnsupportedError


def total(graph: Graph, eqn: Any, operands: Sequence[Any]) -> Value:
    """A sum over features is as good as a constant; one over positions averages what they have not in common."""
    (x,) = operands
    reduced = [x.axes[k] for k in eqn.params["axes"]]
    count = math.prod(x.shape[k] for k in eqn.params["axes"])
    shape = tuple(eqn.outvars[0].aval.shape)
    node = graph.node(x)
    if any(has(one, BATCH) for one in reduced):
        return _over_batch(graph, eqn, x, reduced, count)
    over_positions = not any(has(one, FEATURE) for one in reduced)
    is_constant = node.is_constant or not over_positions or node.is_free
    axes = output_axes(eqn, operands)
    total_positions = math.prod(n for one in x.axes for kind, n in one if kind == POSITION)

    def back(after: Gradient) -> Gradient:
        """Every position gets the same; of those that were not added up, some share it."""
        shared = (count - 1) / max(total_positions - 1, 1) if over_positions else 0.0
        return after._replace(
            across=shared * after.second + (1 - shared) * after.across, profile=None, law=None
        )

    made = graph.add(
        lambda: _summed(graph, node.stats, count, over_positions=over_positions),
        math.prod(shape),
        [(node, Gain(one, back))],
        through=node.through,
        is_constant=is_constant,
        has_positions=any(has(each, POSITION) and n > 1 for each, n in zip(axes, shape, strict=True)),
    )
    note = ("sum", (x.node, x.formula.key), count, _counts(node, eqn.params["axes"], x.shape))
    return Value(made, axes, shape, note=note)


def _counts(node: Node, axes: Sequence[int], shape: tuple[int, ...]) -> Any:
    """What a mask leaves, as [row, entry of the row]; None where there is none."""
    if node.kept is None:
        return None
    if node.kept.shape != shape or tuple(axes) != (len(shape) - 1,):
        raise UnsupportedError("a softmax over another axis than its mask's last")
    return node.kept.reshape(-1, shape[-1])


def _over_batch(graph: Graph, eqn: Any, x: Value, reduced: Sequence[Any], count: int) -> Value:
    """A sum over inputs, and positions perhaps: that of batch norm; of a nonlinear formula, one number."""
    if any(has(one, FEATURE) for one in reduced):
        raise UnsupportedError("a sum over inputs and features")
    node, is_affine = graph.node(x), x.formula.is_affine
    num_positions = count / graph.batch.num_inputs
    batch, shape = graph.batch, tuple(eqn.outvars[0].aval.shape)

    def compute() -> Stats:
        mean = count * float(np.mean(node.stats.mean))
        second = count**2 * in_common(graph, node, num_positions) if is_affine else mean**2
        ends = batch.ends.shape[1]
        return Stats(
            *(
                np.full(n, v)
                for n, v in ((batch.num_followed, mean), (batch.num_followed, second), (ends, second))
            )
        )

    made = graph.add(
        compute, math.prod(shape), [(node, one)], through=node.through, is_constant=not is_affine
    )
    note = ("batch", (x.node, x.formula.key), count, num_positions) if is_affine else ()
    return Value(made, output_axes(eqn, [x]), shape, note=note)


def _summed(graph: Graph, stats: Stats, count: int, *, over_positions: bool) -> Stats:
    mean, second, pairs = stats
    batch = graph.batch
    own = batch.of_positions(pairs) if over_positions else mean**2
    across = batch.products(mean)
    if over_positions:
        across = np.where(batch.is_own, pairs, batch.apart(pairs))
    return Stats(
        count * mean, count * second + count * (count - 1) * own, count * pairs + count * (count - 1) * across
    )


def window_sum(graph: Graph, eqn: Any, operands: Sequence[Any]) -> Value:
    """Sums over windows of positions, with zeros around."""
    (x,) = operands
    params, shape = eqn.params, tuple(eqn.outvars[0].aval.shape)
    count = math.prod(params["window_dimensions"])
    share = math.prod(
        mean_taps(n, out, window, stride, low, dilation) / window
        for n, out, window, stride, (low, _), dilation in zip(
            x.shape, shape, params["window_dimensions"], params["window_strides"], params["padding"],
            params["window_dilation"], strict=True,
        )
    )  # fmt: skip
    node = graph.node(x)
    size = math.prod(shape)

    def compute() -> Stats:
        mean, second, pairs = _summed(graph, node.stats, max(round(count * share), 1), over_positions=True)
        return Stats(mean, second, pairs)

    times = size * count * share / node.size  # windows that an entry lies in
    gain = Gain(lambda: times, lambda after: coherent(times, after))
    made = graph.add(compute, size, [(node, gain)], through=node.through, is_gaussian=False)
    return Value(made, output_axes(eqn, operands), shape)


def mean_taps(length: int, out: int, window: int, stride: int, low: int, dilation: int) -> float:
    """How many entries of a window lie within the array, on average over its places."""
    return float(np.mean(window_sums(np.ones(length), out, window, stride, low, dilation)))


def window_sums(x: np.ndarray, out: int, window: int, stride: int, low: int, dilation: int) -> np.ndarray:
    """The sums of [length] over windows, with zeros around."""
    places = np.arange(out)[:, None] * stride - low + np.arange(window) * dilation
    inside = (places >= 0) & (places < x.size)
    return np.sum(np.where(inside, x[np.clip(places, 0, x.size - 1)], 0), 1)


def largest(graph: Graph, eqn: Any, operands: Sequence[Any]) -> Value:
    """The largest entry of a row, which a softmax takes away again."""
    (x,) = operands
    reduced = [x.axes[k] for k in eqn.params["axes"]]
    over_positions = not any(has(one, FEATURE) for one in reduced)
    node = graph.node(x)
    shape = tuple(eqn.outvars[0].aval.shape)
    made = graph.add(
        lambda: Stats(*(np.nan * each for each in node.stats)), math.prod(shape), is_constant=True
    )
    note = ("largest", (x.node, x.formula.key), over_positions)
    return Value(made, output_axes(eqn, operands), shape, note=note)
