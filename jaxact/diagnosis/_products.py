"""Products of an array with random weights, or with another array, by their statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxact.diagnosis._axes import BATCH, FEATURE, POSITION, Axes, has, of_input
from jaxact.diagnosis._elementwise import are_independent
from jaxact.diagnosis._gradients import Gain, Gradient
from jaxact.diagnosis._graph import Batch, Graph, Known, Node, Stats, Unknown, Value
from jaxact.diagnosis._sums import window_sums

_MOST = 2**24  # entries of patches that are looked at
_FEW = 2**12  # weights whose own sums are no mean


class Window(NamedTuple):
    """One axis of a convolution; `spread` is how far apart its inputs are put, as in a transposed one."""

    length: int
    out: int
    window: int
    stride: int
    low: int
    dilation: int
    spread: int

    def sums(self, along: np.ndarray) -> np.ndarray:
        """Of [length, ...] over the windows: [out, ...]."""
        apart = np.zeros(((self.length - 1) * self.spread + 1, *along.shape[1:]))
        apart[:: self.spread] = along
        return window_sums(apart, self.out, self.window, self.stride, self.low, self.dilation)

    def both(self) -> np.ndarray:
        """[out, out] how many places of the window hold inputs at both."""
        places = (
            np.arange(self.out)[:, None] * self.stride - self.low + np.arange(self.window) * self.dilation
        )
        inside = (places >= 0) & (places < (self.length - 1) * self.spread + 1) & (places % self.spread == 0)
        return inside.astype(float) @ inside.T


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
        Window(
            x.shape[numbers.lhs_spec[2 + d]], shape[numbers.out_spec[2 + d]], weights.shape[k],
            params["window_strides"][d], params["padding"][d][0], params["rhs_dilation"][d], params["lhs_dilation"][d],
        )
        for d, k in enumerate(spatial)
    ]  # fmt: skip
    own, channels = (numbers.rhs_spec[1], *spatial), (numbers.lhs_spec[1],)
    patches = _patches(x, numbers, windows, params["padding"]) if isinstance(x, Known) else None
    if patches is not None:
        x, channels = patches, (len(patches.shape) - 1,)
    made = _with_weights(
        graph, "conv", x, weights, fan_in, channels, own, _size(eqn), windows, is_whole=patches is not None
    )
    return made._replace(field=math.prod(weights.shape[k] for k in spatial))


def _patches(x: Known, numbers: Any, windows: Sequence[Window], padding: Any) -> Known | None:
    """What the windows see of an array that is there, [inputs, *positions, features]; None where that is too much."""
    size = x.shape[numbers.lhs_spec[0]] * x.shape[numbers.lhs_spec[1]]
    size *= math.prod(each.out * each.window for each in windows)
    if (
        x.axes is None
        or size > _MOST
        or any(each.spread > 1 or min(pad) < 0 for each, pad in zip(windows, padding, strict=True))
    ):
        return None
    batch, channels, *spatial = numbers.lhs_spec
    array = np.asarray(x.array).transpose(batch, *spatial, channels)
    array = np.pad(array, ((0, 0), *padding, (0, 0)))
    for d, one in enumerate(windows):
        places = np.arange(one.out)[:, None] * one.stride + np.arange(one.window) * one.dilation
        array = np.moveaxis(np.take(array, places, 1 + d), 2 + d, -1)
    array = array.reshape(*array.shape[: len(windows) + 1], -1)
    return Known(array, of_input(array.shape), x.names, x.name)


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
    *,
    is_whole: bool = False,
) -> Product:
    """Of z = W x: E z^2 = n s q + n (n - 1) mu^2 k.

    Here k is the mean product of two different entries of x, s and mu are mean square and mean of the actual weights.
    `is_whole` says that x holds the zeros around the border.
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
    is_law = weights.entries is not None  # to be drawn: these numbers stand for any others of their scale
    if windows is None and not any(has(x.axes[k], FEATURE) for k in summed):
        kept = any(has(one, POSITION) for k, one in enumerate(x.axes) if k not in summed)
        made = _mixing(
            graph, node, _matrix(array, own), size, is_law=is_law, are_positions_kept=kept,
            deps=node.deps | tags, through=tags,
        )  # fmt: skip
        return Product(kind, fan_in, fan_in * square, made)

    # of different entries: without the square that the mean of so many weights has by chance
    chance = 0.0 if is_law else (square - mean**2) / max(array.size - 1, 1)
    of_means = fan_in * (fan_in - 1) * (mean**2 - chance)
    if windows is None and array.size <= _FEW and not is_law:
        of_means = _Quadratic.of(_matrix(array, own)).own[1]

    def compute() -> Stats:
        m, q, pairs = node.stats
        batch = graph.batch
        share, made.profile = _within(windows, node.profile)
        made.pattern = node.pattern if windows is None else None
        share = 1.0 if is_whole else share
        shared = np.ones(pairs.size) if is_whole else _shared(batch, windows, share)
        count = fan_in * square
        return Stats(
            fan_in * share * mean * m,
            np.maximum(count * share * q + share**2 * of_means * m**2, 0),
            count * shared * pairs + shared**2 * of_means * batch.products(m),
        )

    factor = size / node.size * fan_in * square

    def back(after: Gradient) -> Gradient:
        share, profile = _before(windows, after.profile)
        apart = math.prod(each.stride for each in windows or ())
        return Gradient(factor * share * after.second, factor * share * after.across / apart, profile)

    gain = Gain(lambda: factor * _before(windows, None)[0], back)
    made = graph.add(compute, size, [(node, gain)], deps=node.deps | tags, through=tags)
    return Product(kind, fan_in, fan_in * square, made)


def _shared(batch: Batch, windows: Any, share: float) -> np.ndarray:
    """For each pair the share of a window where neither end sees the zeros around."""
    if not windows:
        return np.full(batch.is_own.size, share)
    both = [one.both() for one in windows]
    size, num = math.prod(one.window for one in windows), math.prod(one.out for one in windows)
    diagonals = [float(np.trace(each)) for each in both]
    apart = (math.prod(map(np.sum, both)) - math.prod(diagonals)) / max(num * (num - 1), 1) / size
    neighbours = float(np.mean([
        np.mean(np.diag(each, 1)) * each.shape[0] / max(diagonal, 1e-30) if each.shape[0] > 1 else 1.0
        for each, diagonal in zip(both, diagonals, strict=True)
    ])) * share  # fmt: skip
    found = np.where(batch.is_same_place, share, apart if num > 1 else share)
    found[-batch.own_inputs.size :] = neighbours
    return found


def _matrix(array: np.ndarray, summed: Sequence[int]) -> np.ndarray:
    """Weights as [summed, others]."""
    others = [k for k in range(array.ndim) if k not in summed]
    return array.transpose(*summed, *others).reshape(math.prod(array.shape[k] for k in summed), -1)


class _Quadratic(NamedTuple):
    """Of y = M^T x for entries x of mean square q and mean product k: E y^2 and E y y', each q a + k b."""

    own: tuple[float, float]
    across: tuple[float, float]

    @classmethod
    def of(cls, matrix: np.ndarray) -> _Quadratic:
        count = matrix.shape[1]
        squares, sums = float(np.sum(matrix**2)), matrix.sum(0)
        together, whole = float(np.sum(matrix.sum(1) ** 2)), float(matrix.sum() ** 2)
        pairs = max(count * (count - 1), 1)
        own, own_sums = squares / count, float(np.mean(sums**2))
        across = (together - squares) / pairs
        across_sums = (whole - float(np.sum(sums**2))) / pairs
        return cls((own, own_sums - own), (across, across_sums - across))

    @classmethod
    def of_law(cls, matrix: np.ndarray) -> _Quadratic:
        """In the mean over matrices of independent entries of mean 0 and this one's mean square."""
        return cls((float(np.sum(matrix**2)) / matrix.shape[1], 0.0), (0.0, 0.0))

    def __call__(self, q: Any, k: Any) -> tuple[Any, Any]:
        """(E y^2, E y y')."""
        return tuple(q * a + k * b for a, b in self)


def _mixing(
    graph: Graph,
    node: Node,
    matrix: np.ndarray,
    size: int,
    *,
    is_law: bool,
    are_positions_kept: bool,
    **facts: Any,
) -> Node:
    """Sums over positions, as in a mixer: by the weights as they are, for they are few, or by their law."""
    quadratic = _Quadratic.of_law if is_law else _Quadratic.of
    forward, backward = quadratic(matrix), quadratic(matrix.T)
    mean_sum = 0.0 if is_law else float(matrix.sum(0).mean())
    batch = graph.batch

    def compute() -> Stats:
        m, q, pairs = node.stats
        alike = batch.of_positions(pairs)
        second, across = forward(q, alike)
        apart = batch.apart(pairs)
        same = np.concatenate(
            [pairs[: batch.num_pairs]] * 2 + [batch.own * 0.0]
        )  # two inputs at one position
        (a, b), (c, d) = forward
        between = np.where(batch.is_same_place, a * same + b * apart, c * same + d * apart)
        own = batch.padded(across[batch.own])
        if are_positions_kept:  # the others, whose weights are the same
            own, between = a * pairs + b * batch.products(m), a * pairs + b * apart
        return Stats(mean_sum * m, second, np.where(batch.is_own, own, between))

    times = size / node.size * matrix.shape[0] / matrix.shape[1]  # 1 but for axes of length 1

    def back(after: Gradient) -> Gradient:
        second, across = backward(after.second, after.across)
        return Gradient(times * second, times * across)

    return graph.add(compute, size, [(node, Gain(lambda: times * backward.own[0], back))], **facts)


def _within(windows: Any, profile: Any) -> tuple[float, Any]:
    """(the share of a sum over windows that is not of zeros around, the profile of the sums)."""
    if windows is None:
        return 1.0, None
    if profile is None or [each.size for each in profile] != [each.length for each in windows]:
        profile = [np.ones(each.length) for each in windows]
    sums = [one.sums(along) / one.window for along, one in zip(profile, windows, strict=True)]
    share = math.prod(float(np.mean(each)) for each in sums)
    return share, tuple(each / max(np.mean(each), 1e-30) for each in sums)


def _before(windows: Any, profile: Any) -> tuple[float, Any]:
    """The same of a gradient, by the transposed windows."""
    if windows is None:
        return 1.0, None
    if profile is None or [each.size for each in profile] != [each.out for each in windows]:
        profile = [np.ones(each.out) for each in windows]
    columns = [np.stack([one.sums(unit) for unit in np.eye(one.length)]) / one.window for one in windows]
    sums = [matrix @ each for matrix, each in zip(columns, profile, strict=True)]  # [before, after] @ [after]
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
    return unknown._replace(node=_scores(graph, x, y, fan_in, _size(eqn)))


def _scores(graph: Graph, x: Node, y: Node, fan_in: int, size: int) -> Node:
    """Products of queries x and keys y, summed over features."""
    batch = graph.batch

    def compute() -> Stats:
        a, b = x.stats, y.stats
        other = np.where(batch.is_own, batch.products(a.second), a.pairs)  # two keys, one query
        across = batch.products(a.mean) * batch.products(b.mean)
        n, more = fan_in, fan_in * (fan_in - 1)
        second = n * a.second * b.second + more * (a.mean * b.mean) ** 2
        return Stats(n * a.mean * b.mean, second, n * other * b.pairs + more * across)

    num_keys, num_queries = (size / each.size * fan_in for each in (x, y))

    def to_queries(after: Gradient) -> Gradient:
        """Behind a softmax the gradients of a row add up to 0, so that what keys have in common is not seen."""
        second = y.stats.second
        if after.rows is not None:
            likenesses = batch.likenesses(y.stats.pairs)
            varied = likenesses - likenesses.mean(0)
            rows = batch.likenesses(batch.padded(after.rows))
            common = batch.of_positions(y.stats.pairs)
            second = np.maximum(second - common, 0) + (num_keys - 1) * batch.to_inputs(
                np.mean(rows * varied, 0)
            )
        return Gradient(num_keys * second * after.second, num_keys * second * after.across)

    def to_keys(after: Gradient) -> Gradient:
        alike = batch.of_positions(x.stats.pairs)
        second = num_queries * (after.second * x.stats.second + (num_queries - 1) * after.across * alike)
        return Gradient(second, 0 * second if after.rows is None else -second / max(num_keys - 1, 1))

    edges = [
        (x, Gain(lambda: num_keys * y.stats.second, to_queries)),
        (y, Gain(lambda: num_queries * x.stats.second, to_keys)),
    ]
    return graph.add(
        compute, size, edges, through=x.through & y.through or x.through,
        queries=lambda: batch.of_positions(x.stats.pairs) / x.stats.second,
    )  # fmt: skip


def _average(graph: Graph, operands: Sequence[Any], x: Node, y: Node, count: int, size: int) -> Node:
    """Averages over positions by the weights of a softmax; the other operand is what is averaged."""
    weights, values = (x, y) if x.is_free and not y.is_free else (y, x)
    batch = graph.batch

    kept = (
        None if weights.kept is None else weights.kept.reshape(-1, *weights.kept.shape[-2:])[0].astype(float)
    )

    def seen() -> float:
        """What the values that a mask lets a query see have in common, over what all have."""
        return 1.0 if kept is None or values.pattern is None else _seen(kept, values.pattern)

    def squared() -> Any:  # E a_ij a_i'j at two queries i and i'
        return weights.stats.mean**2 if weights.queries is None else weights.queries()

    def compute() -> Stats:
        a, v = weights.stats, values.stats
        n, more = count, count * (count - 1)
        alike = batch.likenesses(a.pairs) * batch.likenesses(v.pairs)
        second = n * a.second * v.second + more * seen() * batch.to_inputs(alike.mean(0))
        squares = batch.products(a.mean)
        common, queries = batch.of_positions(v.pairs), n * squared()
        own = batch.products(np.sqrt(np.maximum(queries * v.second + (1 - queries) * common, 0)))
        if kept is not None:
            uneven = _overlaps(kept) * n * float(np.mean(queries * (v.second - common))) / np.mean(queries)
            made.pattern = _of_mean_one(uneven / n + float(np.mean(common)))
        return Stats(n * a.mean * v.mean, second, np.where(batch.is_own, own, n * n * squares * v.pairs))

    num_features, num_queries = (size / each.size * count for each in (weights, values))

    def to_weights(after: Gradient) -> Gradient:
        likenesses = batch.likenesses(values.stats.pairs)
        common = seen() * batch.of_positions(values.stats.pairs)
        varied = np.maximum(values.stats.second - common, 0)
        rows = (likenesses - likenesses.mean(0)) / np.maximum(varied[batch.own_inputs], 1e-300)
        factor = num_features * varied
        return Gradient(factor * after.second, factor * after.across, rows=batch.of_own(rows, 0 * rows[0]))

    def to_values(after: Gradient) -> Gradient:
        a, n = weights.stats, num_queries
        row = batch.of_positions(a.pairs)
        second = n * (a.second * after.second + (n - 1) * squared() * after.across)
        return Gradient(second, n * (row * after.second + (n - 1) * a.mean**2 * after.across))

    edges = [
        (weights, Gain(lambda: num_features * values.stats.second, to_weights)),
        (values, Gain(lambda: num_queries * weights.stats.second, to_values)),
    ]
    made = graph.add(compute, size, edges, through=values.through)
    return made


def _overlaps(kept: np.ndarray) -> np.ndarray:
    """[query, query] sum_j a_ij a_i'j of even averages over what a mask [query, key] keeps."""
    rows = kept / np.maximum(kept.sum(-1, keepdims=True), 1)
    return rows @ rows.T


def _of_mean_one(matrix: np.ndarray) -> np.ndarray:
    """Over its mean off the diagonal."""
    away = matrix[~np.eye(len(matrix), dtype=bool)]
    return matrix / max(float(away.mean()), 1e-30) if away.size else matrix


def _seen(kept: np.ndarray, pattern: np.ndarray) -> float:
    """The mean of a pattern over the pairs of keys that a query sees, each query's average alike."""
    if pattern.shape != (kept.shape[1],) * 2:
        return 1.0
    away = pattern * ~np.eye(len(pattern), dtype=bool)
    counts = np.maximum(kept.sum(-1), 1)
    return float(
        np.sum((kept @ away) * kept / counts[:, None] ** 2) / np.maximum(np.sum(1 - 1 / counts), 1e-30)
    )


#: primitive -> (graph, equation, operands, axes of the output) -> Product
PRODUCTS: dict[str, Callable[..., Product]] = {"dot_general": dot, "conv_general_dilated": conv}
