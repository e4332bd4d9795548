"""Products of an array with random weights, or with another array, by their statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxact.diagnosis._axes import BATCH, FEATURE, Axes, has
from jaxact.diagnosis._elementwise import are_independent
from jaxact.diagnosis._graph import Graph, Known, Node, Stats, Unknown, Value, WindowGain
from jaxact.diagnosis._sums import window_sums


class Product(NamedTuple):
    """What is known of a product; `node` is None where it cannot be predicted, for the reason given.

    `field` is the number of positions of a convolution's window, 1 elsewhere.
    """

    kind: str
    fan_in: int
    weight_scale: float
    node: Node | None
    reason: str = ""
    field: int = 1


def dot(graph: Graph, eqn: Any, operands: Sequence[Any], axes: Axes) -> Product:
    """`dot_general` of an array and weights, or of two arrays."""
    (x_sum, y_sum), _ = eqn.params["dimension_numbers"]
    fan_in = math.prod(operands[0].shape[k] for k in x_sum)
    weights = next((each for each in operands if isinstance(each, Known) and each.axes is None), None)
    if weights is None:
        return _two_arrays(graph, eqn, operands, fan_in)
    number = 0 if operands[0] is weights else 1
    x, summed, own = operands[1 - number], (x_sum, y_sum)[1 - number], (x_sum, y_sum)[number]
    return _with_weights(graph, "dense", x, weights, fan_in, summed, own, _size(eqn))


def conv(graph: Graph, eqn: Any, operands: Sequence[Any], axes: Axes) -> Product:
    """`conv_general_dilated` of an array and weights; zeros around the border count as what is missing."""
    x, weights = operands
    params, numbers = eqn.params, eqn.params["dimension_numbers"]
    spatial = numbers.rhs_spec[2:]
    fan_in = math.prod(weights.shape[k] for k in (numbers.rhs_spec[1], *spatial))
    if not (isinstance(weights, Known) and weights.axes is None):
        return Product("conv", fan_in, math.nan, None, "a convolution by an array that depends on the input")
    shape = eqn.outvars[0].aval.shape
    windows = [
        (
            shape[numbers.out_spec[2 + d]], weights.shape[k], params["window_strides"][d],
            params["padding"][d][0], params["rhs_dilation"][d],
        )
        for d, k in enumerate(spatial)
    ]  # fmt: skip
    lengths = [x.shape[k] for k in numbers.lhs_spec[2:]]
    own = (numbers.rhs_spec[1], *spatial)
    made = _with_weights(
        graph, "conv", x, weights, fan_in, (numbers.lhs_spec[1],), own, _size(eqn), (lengths, windows)
    )._replace(field=math.prod(weights.shape[k] for k in spatial))
    if any(each != 1 for each in params["lhs_dilation"]):
        return made._replace(node=None, reason="a transposed convolution")
    return made


def _size(eqn: Any) -> int:
    return math.prod(eqn.outvars[0].aval.shape)


def _with_weights(
    graph: Graph,
    kind: str,
    x: Any,
    weights: Known,
    fan_in: int,
    summed: Any,
    own: Any,
    size: int,
    windows: Any = None,
) -> Product:
    """Of z = W x: E z^2 = n s q + n (n - 1) mu^2 k.

    Here k is the mean product of two different entries of x, s and mu are mean square and mean of the actual weights.
    """
    array = np.asarray(weights.array, np.float64)
    mean, square = float(np.mean(array)), float(np.mean(array**2))
    unknown = Product(kind, fan_in, fan_in * square, None)
    if isinstance(x, Unknown):
        return unknown._replace(reason=x.reason)
    if not weights.names:
        return unknown._replace(reason="a product with a fixed matrix")
    if any(has(x.axes[k], BATCH) for k in summed):
        return unknown._replace(reason="a sum over the batch")
    tags = frozenset((name, weights.axes_of_parameter(own)) for name in weights.names)
    node = graph.node(x) if isinstance(x, Value) else graph.measured(x)
    others = {dep for dep in node.deps if _root(dep) in weights.names}
    if any(dep not in tags for dep in others):
        return unknown._replace(reason="weights that were used before, the other way round")
    over_positions = not any(has(x.axes[k], FEATURE) for k in summed)

    def compute() -> Stats:
        m, q, pairs = node.stats
        batch = graph.batch
        share, made.profile = _within(windows, node.profile)
        count = fan_in * share
        own_positions = batch.of_positions(pairs)
        across = own_positions if over_positions else m**2
        between = batch.products(m)
        extra = count * max(count - 1, 0) * mean**2
        return Stats(
            count * mean * m, count * square * q + extra * across, count * square * pairs + extra * between
        )

    gain = WindowGain(size / node.size * fan_in * square, lambda profile: _before(windows, profile))
    made = graph.add(compute, size, [(node, gain)], deps=node.deps | tags, through=tags)
    return Product(kind, fan_in, fan_in * square, made)


def _within(windows: Any, profile: Any) -> tuple[float, Any]:
    """(the share of a sum over windows that is not of zeros around, the profile of the sums)."""
    if windows is None:
        return 1.0, None
    lengths, windows = windows
    if profile is None or [each.size for each in profile] != lengths:
        profile = [np.ones(length) for length in lengths]
    sums = [window_sums(each, *window) / window[1] for each, window in zip(profile, windows, strict=True)]
    share = math.prod(float(np.mean(each)) for each in sums)
    return share, tuple(each / max(np.mean(each), 1e-30) for each in sums)


def _before(windows: Any, profile: Any) -> tuple[float, Any]:
    """The same of a gradient, by the transposed windows."""
    if windows is None:
        return 1.0, None
    lengths, windows = windows
    if profile is None or [each.size for each in profile] != [window[0] for window in windows]:
        profile = [np.ones(window[0]) for window in windows]
    columns = [
        np.stack([window_sums(unit, *window) for unit in np.eye(length)]) / window[1]
        for length, window in zip(lengths, windows, strict=True)
    ]  # [before, after]
    sums = [matrix @ each for matrix, each in zip(columns, profile, strict=True)]
    share = math.prod(each.sum() / matrix.shape[1] for each, matrix in zip(sums, columns, strict=True))
    return float(share), tuple(each / max(np.mean(each), 1e-30) for each in sums)


def _root(dep: Any) -> Any:
    """The parameter's name in a mark of random weights, which may be of a part of them."""
    while isinstance(dep, tuple):
        dep = dep[0]
    return dep


def _two_arrays(graph: Graph, eqn: Any, operands: Sequence[Any], fan_in: int) -> Product:
    """Scores and averages of attention: E z^2 = n q_x q_y + n (n - 1) k_x k_y for independent x and y."""
    (x_sum, _), _ = eqn.params["dimension_numbers"]
    unknown = Product("attention", fan_in, math.nan, None)
    failed = next((each for each in operands if isinstance(each, Unknown)), None)
    if failed is not None:
        return unknown._replace(reason=failed.reason)
    x, y = (graph.node(each) if isinstance(each, Value) else graph.measured(each) for each in operands)
    if not are_independent(x, y):
        return unknown._replace(reason="a product of arrays that share random weights")
    if any(has(operands[0].axes[k], BATCH) for k in x_sum):
        return unknown._replace(reason="a sum over the batch")
    if not any(has(operands[0].axes[k], FEATURE) for k in x_sum):
        return unknown._replace(node=_average(graph, operands, x, y, fan_in, _size(eqn)))
    batch = graph.batch

    def compute() -> Stats:
        a, b = x.stats, y.stats
        pair = np.arange(batch.ends.shape[1]) < batch.num_pairs
        other = np.where(pair, a.pairs, batch.products(a.second))  # two positions of y, one of x
        across = batch.products(a.mean) * batch.products(b.mean)
        n, more = fan_in, fan_in * (fan_in - 1)
        second = n * a.second * b.second + more * (a.mean * b.mean) ** 2
        return Stats(n * a.mean * b.mean, second, n * other * b.pairs + more * across)

    size = _size(eqn)
    edges = [
        (x, lambda: size / x.size * fan_in * y.stats.second),
        (y, lambda: size / y.size * fan_in * x.stats.second),
    ]
    return unknown._replace(node=graph.add(compute, size, edges, through=x.through & y.through or x.through))


def _average(graph: Graph, operands: Sequence[Any], x: Node, y: Node, count: int, size: int) -> Node:
    """Averages over positions by the weights of a softmax; the other operand is what is averaged."""
    weights, values = (x, y) if x.is_free and not y.is_free else (y, x)
    batch = graph.batch

    def spread(stats: Stats) -> np.ndarray:
        return batch.of_positions(stats.pairs)

    def compute() -> Stats:
        a, v = weights.stats, values.stats
        n, more = count, count * (count - 1)
        second = n * a.second * v.second + more * spread(a) * spread(v)
        squares = batch.products(a.mean)
        pair = np.arange(batch.ends.shape[1]) < batch.num_pairs
        own = n * squares * batch.products(v.second) + more * squares * v.pairs
        return Stats(n * a.mean * v.mean, second, np.where(pair, n * n * squares * v.pairs, own))

    edges = [
        (
            weights,
            lambda: size / weights.size * count * np.maximum(values.stats.second - spread(values.stats), 0),
        ),
        (values, lambda: size / values.size * count * weights.stats.second),
    ]
    return graph.add(compute, size, edges, through=values.through)


#: primitive -> (graph, equation, operands, axes of the output) -> Product
PRODUCTS: dict[str, Callable[..., Product]] = {"dot_general": dot, "conv_general_dilated": conv}
