"""Batch norms in a state that misleads: statistics as they were made, or taken from the batch itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxact.diagnosis._graph import Known, Unknown, Value

_MOST_EPS = 0.02  # what is added to a variance before its root; 1e-5 and 1e-3 are usual
_SET = {  # a model's form -> how its statistics are set
    "NNX": "jaxact.nn.calibrate(model, x) sets them to those of a batch",
    "Equinox": "run the model on data in training mode, and keep the state that it returns",
    "Linen": (
        '_, new = net.apply(variables, x, train=True, mutable=["batch_stats"]) and variables = {**variables, **new}, '
        "in a loop: at a momentum of 0.99 some 500 times"
    ),
}
_SET_OTHERWISE = "run the model on data in training mode, and keep the statistics that it returns"


class FreshNorms:
    """Which products go through a norm whose mean is 0 and whose variance is 1, or 0, at every entry."""

    def __init__(self) -> None:
        self.variances: dict[int, float] = {}  # by the number of entries
        self.centred: list[tuple[int, int]] = []  # (latest product, number of entries of the mean)

    def note(self, eqn: Any, operands: Sequence[Any]) -> None:
        """Look at an equation: a root of variance + eps, or x - mean."""
        name = eqn.primitive.name
        if name in ("rsqrt", "sqrt") and _is_fixed(operands[0]):
            self._root(np.asarray(operands[0].array))
        elif name == "sub" and not _is_fixed(operands[0]) and _is_fixed(operands[1]):
            mean = np.asarray(operands[1].array)
            if mean.size > 1 and not mean.any():
                x = operands[0]
                site = x.node.site if isinstance(x, Value) else max(_sites(x), default=-1)
                self.centred.append((site, mean.size))

    def _root(self, array: np.ndarray) -> None:
        if array.size < 2 or array.min() != array.max():
            return
        for variance in (0.0, 1.0):
            if 0 < float(array.flat[0]) - variance <= _MOST_EPS:
                self.variances[array.size] = variance

    @property
    def sites(self) -> dict[int, float]:
        """The products, -1 for the inputs, with the variance of the norm."""
        return {
            site: variance
            for site, size in self.centred
            for count, variance in self.variances.items()
            if size % count == 0
        }


def _is_fixed(operand: Any) -> bool:
    return isinstance(operand, Known) and operand.axes is None


def _sites(operand: Any) -> Iterable[int]:
    return [node.site for node in operand.origins] if isinstance(operand, Unknown) else []


def fresh_note(
    sites: dict[int, float], names: Sequence[str], kind: str, leaves: Sequence[str], *, then: str
) -> list[str]:
    """What is said of them, and what is done about them.

    Args:
        sites: of `FreshNorms`.
        names: of all products.
        kind: of the model, as `adapters` tells it.
        leaves: names of all parameters.
        then: what follows from it here, a sentence.
    """
    if not sites:
        return []
    variance = next(iter(sites.values()))
    effect = "leave signals as they are" if variance else "magnify signals by 1 / sqrt(eps)"
    return [
        f"batch norms after {_few(sites, names)} hold the statistics that they were made with, mean 0 and variance "
        f"{variance:.0f}, and {effect}, unlike in training. {then} Let them see data first: {_remedy(kind, leaves)}."
    ]


def batch_note(sites: Iterable[int], names: Sequence[str]) -> list[str]:
    """What is said of a function that normalises by its batch's own statistics."""
    sites = list(sites)
    if not sites:
        return []
    return [
        f"batch norms after {_few(sites, names)} take their statistics from the batch itself, as in training mode: an "
        "output depends on all inputs. For what inference computes give the running statistics, in Linen by "
        "lambda variables, x: net.apply(variables, x, train=False)."
    ]


def _few(sites: Iterable[int], names: Sequence[str]) -> str:
    told = list(dict.fromkeys("the inputs" if k < 0 else names[k] for k in sites))
    return told[0] if len(told) == 1 else f"{told[0]} and {len(told) - 1} more"


def _remedy(kind: str, leaves: Sequence[str]) -> str:
    if any("batch_stats" in name for name in leaves):
        kind = "Linen"
    return next((text for word, text in _SET.items() if kind.startswith(word)), _SET_OTHERWISE)
