"""The predicted numbers of every product, from the measured input and the weights' own moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxact.diagnosis._gradients import Gradient, together
from jaxact.diagnosis._graph import Node, Stats, Value
from jaxact.diagnosis._reading import Reading


class Prediction(NamedTuple):
    """One number a row, NaN where there is no prediction.

    Attributes:
        mean: of the product.
        second_moment: mean square.
        cosine: mean over pairs of inputs.
        gradient_second_moment: of the loss's gradient, whose second moment at the outputs is taken as measured.
        anchored: whether the gradient of that row starts again from what was measured.
    """

    mean: Float[np.ndarray, " row"]
    second_moment: Float[np.ndarray, " row"]
    cosine: Float[np.ndarray, " row"]
    gradient_second_moment: Float[np.ndarray, " row"]
    anchored: Any


def predict(reading: Reading, measured: Mapping[str, Any], at_outputs: Sequence[Any]) -> Prediction:
    """Walk the graph forward for statistics and backward for gradients.

    A product that cannot be predicted goes on from what was measured there, forward and backward.
    """
    graph, sites = reading.graph, reading.sites
    numbers = {id(site.node): k for k, site in enumerate(sites)}
    restarted = {id(site.node): k for k, site in enumerate(sites) if site.reason}
    for node in graph.nodes:
        node.gradient = Gradient()
        if id(node) in restarted:
            node.stats = from_measured(reading, measured, restarted[id(node)])
    with np.errstate(all="ignore"):
        graph.forward(lambda node: None)
        for output, square in zip(reading.outputs, at_outputs, strict=True):
            if isinstance(output, Value):
                node = graph.node(output)
                if node.stats is None:
                    node.stats = node.compute()
                node.gradient = together(node.gradient, Gradient(float(square)))
        anchored = np.zeros(len(sites), bool)
        gradients = np.full(len(sites), np.nan)

        def anchor(node: Node) -> Any:
            k = numbers.get(id(node))
            if k is None:
                return None
            gradients[k] = float(np.mean(node.gradient.second))
            if np.isfinite(gradients[k]):
                return None
            anchored[k] = True
            return float(measured["gradient_second_moment"][k])

        graph.backward(anchor)
        rows = [_row(reading, k) for k in range(len(sites))]
    means, seconds, cosines = (np.array(each) for each in zip(*rows, strict=True))
    return Prediction(means, seconds, cosines, gradients, anchored)


def _row(reading: Reading, k: int) -> tuple[float, float, float]:
    site = reading.sites[k]
    if site.reason:
        return np.nan, np.nan, np.nan
    stats: Stats = site.node.stats
    return float(np.mean(stats.mean)), float(np.mean(stats.second)), reading.graph.batch.cosine(stats)


def from_measured(reading: Reading, measured: Mapping[str, Any], k: int) -> Stats:
    """The statistics of a product as they were measured."""
    batch = reading.graph.batch
    mean, second, cosine = (float(measured[name][k]) for name in ("mean", "second_moment", "cosine"))
    pairs = np.where(batch.is_same_place, np.nan_to_num(cosine) * second, mean**2)
    return Stats(np.full(batch.num_followed, mean), np.full(batch.num_followed, second), pairs)
