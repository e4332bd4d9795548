"""The largest entry of windows over positions, whose neighbours have something in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from jaxact.diagnosis._axes import BATCH, FEATURE, has
from jaxact.diagnosis._formula import VARIABLE, Formula, values_of
from jaxact.diagnosis._gradients import Gain, Gradient
from jaxact.diagnosis._graph import Graph, Node, Stats, Value
from jaxact.diagnosis._laws import fitted
from jaxact.diagnosis._output_axes import output_axes
from jaxact.diagnosis._sums import mean_taps
from jaxact.trace import UnsupportedError

_NUM_QUANTILES = 64  # of what a window's entries have in common, and of the largest of the rest
_NUM_DRAWS = 1024  # of pairs of windows
_NUM_ATOMS = 32


class _Source(NamedTuple):
    """The normal array that a node's entries are a rising formula of."""

    node: Node
    formula: Formula


def window_max(graph: Graph, eqn: Any, operands: Sequence[Any]) -> Value:
    """The largest of windows: of a rising formula of a normal array, or of a normal array.

    The entries of a window are as if each two had in common what neighbours have: u_i = sqrt(r) t + sqrt(1 - r) e_i.
    """
    (x,) = operands
    params, shape = eqn.params, tuple(eqn.outvars[0].aval.shape)
    if any(
        w > 1 and (has(one, FEATURE) or has(one, BATCH))
        for w, one in zip(params["window_dimensions"], x.axes, strict=True)
    ):
        raise UnsupportedError("the largest of several features or inputs")
    taps = math.prod(
        mean_taps(n, out, window, stride, low, dilation)
        for n, out, window, stride, (low, _), dilation in zip(
            x.shape, shape, params["window_dimensions"], params["window_strides"], params["padding"],
            params["window_dilation"], strict=True,
        )
    )  # fmt: skip
    node, source = graph.node(x), _source(graph, x)
    count, size = max(round(taps), 1), math.prod(shape)

    def compute() -> Stats:
        made.law = lambda: _law(graph, made, source, count)
        return _statistics(graph, source, count)

    share = size / node.size

    def back(after: Gradient) -> Gradient:
        return Gradient(
            share * after.second,
            share**2 * after.across,
            law=_to_the_largest(graph, after, made, source, node, count),
        )

    gain = Gain(lambda: share, back)
    made = graph.add(compute, size, [(node, gain)], through=node.through, is_gaussian=False)
    return Value(made, output_axes(eqn, operands), shape)


def _source(graph: Graph, x: Value) -> _Source:
    """That of a value; where it is none of a normal array, the normal array of its own moments."""
    own = _Source(graph.node(x), VARIABLE)
    if x.formula is VARIABLE or x.node.law is not None:
        return own
    values = values_of(x.formula, np.linspace(-4, 4, 257))
    return _Source(x.node, x.formula) if (np.diff(values) >= -1e-6).all() else own


def _alike(graph: Graph, node: Node) -> np.ndarray:
    """The correlation of neighbours, for each input."""
    mean, second, pairs = node.stats
    variance = np.maximum(second - mean**2, 1e-30)
    return np.clip((graph.batch.of_neighbours(pairs) - mean**2) / variance, 0, 1)


def _latent(alike: np.ndarray, count: int) -> np.ndarray:
    """[input, value] equally likely values of the largest of `count` normal variables that are so much alike."""
    p = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    common, largest = ndtri(p), ndtri(p ** (1 / count))
    t = np.sqrt(alike)[:, None, None] * common[:, None] + np.sqrt(1 - alike)[:, None, None] * largest
    return t.reshape(len(alike), -1)


def _values(source: _Source, latent: np.ndarray) -> np.ndarray:
    mean, second, _ = source.node.stats
    spread = np.sqrt(np.maximum(second - mean**2, 0))
    return values_of(source.formula, mean[:, None] + spread[:, None] * latent)


def _statistics(graph: Graph, source: _Source, count: int) -> Stats:
    """Pairs from draws, in proportion to what the same draws give for a window and itself."""
    batch, (mean, second, pairs) = graph.batch, source.node.stats
    alike = _alike(graph, source.node)
    values = _values(source, _latent(alike, count))
    means = batch.at_ends(mean)
    spreads = np.sqrt(np.maximum(batch.at_ends(second) - means**2, 0))
    scale = np.maximum(spreads[0] * spreads[1], 1e-30)
    c = np.clip((pairs - means[0] * means[1]) / scale, -1, 1)
    key = np.random.default_rng(0)
    one, other = key.standard_normal((2, _NUM_DRAWS // 2, count + 1))
    one, other = np.concatenate([one, -one]), np.concatenate([other, -other])
    r = np.sqrt(batch.at_ends(alike).mean(0))[:, None, None]

    def largest(draws: np.ndarray, end: int) -> np.ndarray:
        entries = r * draws[..., :1] + np.sqrt(1 - r**2) * draws[..., 1:]
        return values_of(source.formula, means[end][:, None] + spreads[end][:, None] * entries.max(-1))

    c = c[:, None, None]
    first, second_end = largest(one[None], 0), largest(c * one + np.sqrt(1 - c**2) * other, 1)
    squares = np.sqrt(np.mean(first**2, -1) * np.mean(largest(one[None], 1) ** 2, -1))
    found = Stats(values.mean(-1), np.mean(values**2, -1), pairs)
    ratio = np.mean(first * second_end, -1) / np.maximum(squares, 1e-30)
    return found._replace(pairs=ratio * np.sqrt(np.prod(batch.at_ends(found.second), 0)))


def _law(graph: Graph, made: Node, source: _Source, count: int) -> tuple[Any, Any]:
    values = np.sort(_values(source, _latent(_alike(graph, source.node), count)), -1)
    return fitted(values.reshape(len(values), _NUM_ATOMS, -1).mean(-1), made.stats)


def _to_the_largest(
    graph: Graph, after: Gradient, made: Node, source: _Source, node: Node, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """How the gradient goes with the value of an entry: by the probability that it is the largest of its window."""
    r = float(np.mean(_alike(graph, source.node)))
    z = ndtri((np.arange(256) + 0.5) / 256)
    common = np.sqrt(r * (1 - r)) * ndtri((np.arange(32) + 0.5) / 32)
    below = ndtr(((1 - r) * z[:, None] - common) / max(np.sqrt(1 - r), 1e-6))
    chance = np.mean(below ** (count - 1), 1)
    mean, second = float(np.mean(source.node.stats.mean)), float(np.mean(source.node.stats.second))
    values = values_of(source.formula, mean + np.sqrt(max(second - mean**2, 0)) * z)
    if after.law is not None:
        chance = chance * np.interp(values, *after.law)
    return _by_value(values, chance / chance.mean())


def _by_value(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean weight at each different value."""
    different, where = np.unique(values, return_inverse=True)
    return different, np.bincount(where, weight) / np.bincount(where)
