"""The scale that every weight is to have, found on the graph of predicted statistics in one walk forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxact.diagnosis._axes import POSITION, has
from jaxact.diagnosis._branches import Part
from jaxact.diagnosis._gradients import number_of
from jaxact.diagnosis._graph import Node, Stats
from jaxact.diagnosis._predict import from_measured
from jaxact.diagnosis._reading import Reading


class Solution(NamedTuple):
    """One number a product.

    Attributes:
        factor: what its weight is to be multiplied by; NaN where there is no prediction.
        second: the product's second moment then.
        growth: of the squared norm of a gradient, from the product to the one before it; NaN for the first.
        bias: the variance that its bias is to have.
        is_forward: whether its second moment decided although the target is another: of the first products always, of
            others where no scale meets the target.
    """

    factor: np.ndarray
    second: np.ndarray
    growth: np.ndarray
    bias: np.ndarray
    is_forward: np.ndarray


def solve(
    reading: Reading, parts: Sequence[Part], target: str, is_kept: np.ndarray, measured: Mapping[str, Any]
) -> Solution:
    """Walk the graph forward; at each product choose the factor, and go on with what it makes of the statistics.

    Args:
        reading: of the parameters as they are, biases of variance 1 where they are to be drawn.
        parts: the second moments that are wanted.
        target: forward: these. backward: a gradient's second moment is as large before a product as after. critical:
            its squared norm is, and a bias adds what is then missing to the second moment.
        is_kept: of each product, whether its weight stays as it is.
        measured: numbers by name, for the products that `are_measured`; else {}.
    """
    walk = _Walk(reading, parts, target, is_kept, measured)
    with np.errstate(all="ignore"):
        reading.graph.forward(walk.after)
    return Solution(walk.factor, walk.second, walk.growth, walk.bias, walk.is_forward)


def are_measured(reading: Reading) -> np.ndarray:
    """Which products cannot be predicted: those that say so, and behind them all where positions were averaged over.

    What two positions have in common is not among what is measured at a product.
    """
    doubtful: set[int] = set()
    for node in reading.graph.nodes:
        site = reading.sites[node.site] if node.is_product else None
        is_start = site is not None and bool(site.reason) and any(has(one, POSITION) for one in site.axes)
        if is_start or any(id(parent) in doubtful for parent, _ in node.edges):
            doubtful.add(id(node))
    return np.array([bool(site.reason) or id(site.node) in doubtful for site in reading.sites])


class _Walk:
    def __init__(self, reading: Reading, parts: Any, target: str, is_kept: np.ndarray, measured: Any):
        self.reading, self.parts, self.target, self.is_kept = reading, parts, target, is_kept
        self.nodes = reading.graph.nodes
        self.places = {id(node): k for k, node in enumerate(self.nodes)}
        self.numbers = {id(site.node): k for k, site in enumerate(reading.sites)}
        self.added = {id(bias.node): bias.site for bias in reading.biases if bias.node is not None}
        self.biased = {bias.site for bias in reading.biases}
        count = len(reading.sites)
        self.factor, self.second, self.growth = (np.full(count, np.nan) for _ in range(3))
        self.bias, self.is_forward = np.zeros(count), np.zeros(count, bool)
        self.measured, self.is_measured = measured, are_measured(reading)
        for k, site in enumerate(reading.sites):
            if site.reason:
                site.node.stats = from_measured(reading, measured, k)

    def after(self, node: Node) -> None:
        """What is done once a node's statistics are there."""
        if id(node) in self.added and self.target == "critical":
            variance = self.bias[self.added[id(node)]]
            node.stats = Stats(
                0 * node.stats.mean, 0 * node.stats.second + variance, 0 * node.stats.pairs + variance
            )
        k = self.numbers.get(id(node))
        if k is None:
            return
        if self.is_measured[k]:
            node.stats = from_measured(self.reading, self.measured, k)
        site, second = self.reading.sites[k], float(np.mean(node.stats.second))
        if self.is_measured[k] or site.weight is None or not np.isfinite(second):
            self.second[k] = second
            return
        back = self._back(node)
        square = 1.0 if self.is_kept[k] else self._square(k, node, second, back)
        self.factor[k], self.second[k] = np.sqrt(square), square * second
        self.growth[k] = np.nan if back is None else square * back[1]
        mean, seconds, pairs = node.stats
        node.stats = Stats(mean * self.factor[k], seconds * square, pairs * square)

    def _square(self, k: int, node: Node, second: float, back: tuple[float, float] | None) -> float:
        """The square of the factor."""
        part = self.parts[k]
        forward = part.second / second if second > 0 else 1.0
        gain = None if back is None else back[1 if self.target == "critical" else 0]
        # A norm over the batch gives the way back the scale that it takes: to make up for it would shrink what follows.
        is_forward = self.target == "forward" or part.is_batch_normed
        self.is_forward[k] = is_forward or gain is None or not (np.isfinite(gain) and gain > 0)
        if gain is None or self.is_forward[k]:
            return forward
        square = min(part.second, 1.0) / gain
        if self.target == "backward":
            return square
        if square * second > 1.001 * part.second:  # no bias makes up for too much
            self.is_forward[k] = True
            return forward
        if k in self.biased:
            self.bias[k] = max(1 - square * second / part.second, 0.0)
        return square

    def _back(self, start: Node) -> tuple[float, float] | None:
        """A gradient's second moment, and squared norm, at the latest product before, where it is 1 at this one."""
        waiting = {self.places[id(start)]: 1.0}
        while waiting:
            place = max(waiting)
            node, gradient = self.nodes[place], waiting.pop(place)
            if node.is_product and node is not start:
                return gradient, gradient * node.size / start.size
            for parent, gain in node.edges:
                given = number_of(gain) * gradient
                if parent.edges or parent.is_product:
                    at = self.places[id(parent)]
                    waiting[at] = waiting.get(at, 0.0) + given
        return None
