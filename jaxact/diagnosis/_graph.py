"""Arrays known by their statistics alone: how each follows from others, and how their gradients do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from jaxact.diagnosis._axes import POSITION, Axes, batch_axis, has
from jaxact.diagnosis._formula import VARIABLE, Formula, paired, single, values_of

_NUM_PAIRS = 48
_NUM_INPUTS = 64
_NUM_ATOMS = 32


class Stats(NamedTuple):
    """What is known of an array.

    Attributes:
        mean: over entries, for each input.
        second: the mean square, for each input.
        pairs: the mean product of the same entry for two inputs, for each pair; then of the same feature at two
            positions of one input, for each input.
    """

    mean: Float[np.ndarray, " input"]
    second: Float[np.ndarray, " input"]
    pairs: Float[np.ndarray, " pair"]


class Batch:
    """Which inputs are followed, and which pairs: of two inputs, then of two positions of one input."""

    def __init__(self, num_inputs: int):
        self.num_inputs = num_inputs
        self.num_followed = min(num_inputs, _NUM_INPUTS)
        i, j = np.triu_indices(self.num_followed, 1)
        chosen = np.random.default_rng(0).permutation(i.size)[:_NUM_PAIRS]
        own = np.arange(min(self.num_followed, _NUM_PAIRS // 3))
        self.num_pairs = chosen.size
        self.ends = np.concatenate([np.stack([i[chosen], j[chosen]]), np.stack([own, own])], 1)

    @property
    def own(self) -> np.ndarray:
        """The inputs whose positions are paired."""
        return self.ends[0, self.num_pairs :]

    def of_positions(self, pairs: np.ndarray) -> np.ndarray:
        """What two positions of one input have in common, for every input."""
        return self.to_inputs(pairs[self.num_pairs :])

    def to_inputs(self, own: np.ndarray) -> np.ndarray:
        """Numbers of the inputs whose positions are paired, for every input."""
        return np.interp(np.arange(self.num_followed), self.own, own)

    def at_ends(self, numbers: np.ndarray) -> np.ndarray:
        """Numbers of inputs at both ends of each pair: [2, pair]."""
        return numbers[self.ends]

    def products(self, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        """x_i y_j of each pair (i, j), and y_i x_j, averaged."""
        (a, b), (c, d) = self.at_ends(x), self.at_ends(x if y is None else y)
        return (a * d + b * c) / 2

    def constant(self, values: Any) -> Stats:
        """The statistics of one number an input."""
        values = np.broadcast_to(np.asarray(values, np.float64), (self.num_followed,))
        return Stats(values, values**2, self.products(values))

    def cosine(self, stats: Stats) -> float:
        """The mean cosine between different inputs."""
        one, other = self.at_ends(stats.second)[:, : self.num_pairs]
        with np.errstate(all="ignore"):
            return (
                float(np.mean(stats.pairs[: self.num_pairs] / np.sqrt(one * other))) if one.size else np.nan
            )


#: (a node, what its gradient's second moment gains from a gradient of 1, found when the statistics are:
#: () -> number for each input, or a WindowGain)
Edge = tuple["Node", Any]


@dataclass(eq=False)
class Node:
    """An array known by its statistics.

    Attributes:
        compute: finds them from those of earlier nodes.
        size: the number of its entries.
        edges: to what it was computed from.
        deps: the random arrays that it depends on.
        through: those of which one is a factor of every term: given the others its mean is that of no correlation.
        site: the number of the latest product in it, or -1.
        key: where it was made: (path, turns of the loops).
        is_constant: whether it is one number an input, up to 1 / width.
        is_free: whether different positions are independent of each other.
        is_gaussian: whether its entries are Gaussian at large width.
        has_positions: whether there are several for one input.
        law: finds how its entries are distributed, (atoms [input, atom], variance [input, 1]): equally many about each
            atom, normal around it; None for about its mean.
        profile: for each axis of positions the second moment along it, over its mean, where convolutions left it
            uneven; found with the statistics.
        gradient_profile: the same of its gradient.
        is_blocked: whether something unknown was computed from it that reaches a product or an output.
        is_product: whether it is the output of a product.
        is_sum: whether it is the sum, or difference, of the two arrays at its edges.
        formula: what it is of the one array at its edge, where it is a formula.
    """

    compute: Callable[[], Stats]
    size: int
    edges: Sequence[Edge] = ()
    deps: frozenset[Any] = frozenset()
    through: frozenset[Any] = frozenset()
    site: int = -1
    key: Any = None
    is_constant: bool = False
    is_free: bool = False
    is_gaussian: bool = True
    has_positions: bool = False
    law: Callable[[], tuple[Any, Any]] | None = None
    profile: tuple[np.ndarray, ...] | None = None
    gradient_profile: tuple[np.ndarray, ...] | None = None
    is_blocked: bool = False
    is_product: bool = False
    is_sum: bool = False
    formula: Formula | None = None
    stats: Any = None
    gradient: Any = 0.0


@dataclass(frozen=True)
class Value:
    """An array as a formula of a node's entries.

    Attributes:
        node: the node.
        axes: what its axes stand for.
        shape: its shape.
        formula: of the node's entries.
        note: what else is known: ("largest", value) or ("sum", value, count).
    """

    node: Node
    axes: Axes
    shape: tuple[int, ...]
    formula: Formula = VARIABLE
    note: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Known:
    """An array that is there: of parameters and constants, or of inputs before any product.

    Attributes:
        array: itself.
        axes: what its axes stand for, None where it does not depend on the input.
        names: the parameters that it was made of.
        name: what to call it.
        order: which axis of the parameter each of its axes was, where it is a transpose; else ().
        entries: which entry of all parameters each of its own is a multiple of, -1 where of none; None where that is
            not followed, or not so.
    """

    array: Any
    axes: Axes | None = None
    names: frozenset[str] = frozenset()
    name: str = ""
    order: tuple[int, ...] = ()
    entries: Any = None

    def axes_of_parameter(self, axes: Sequence[int]) -> tuple[int, ...]:
        """Which axes of the parameter some of its axes are."""
        return tuple(sorted(self.order[k] if self.order else k for k in axes))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return tuple(np.shape(self.array))


@dataclass(frozen=True)
class Unknown:
    """An array of which only the axes are known, and why; `origins` are the nodes that it was computed from."""

    reason: str
    axes: Axes
    shape: tuple[int, ...]
    deps: frozenset[Any] = frozenset()
    origins: frozenset[Any] = frozenset()

    def block(self) -> None:
        """It reaches a product or an output, so that the gradient of what it was computed from is not known."""
        for node in self.origins:
            node.is_blocked = True


@dataclass
class Graph:
    """Every node, in the order in which statistics are found."""

    batch: Batch
    nodes: list[Node] = field(default_factory=list)
    _made: dict[Any, Node] = field(default_factory=dict)
    _kept: list[Any] = field(default_factory=list)

    def add(self, compute: Callable[[], Stats], size: int, edges: Iterable[Edge] = (), **facts: Any) -> Node:
        """A new node; by default it depends on what its parents do."""
        edges = tuple(edges)
        parents = [node for node, _ in edges]
        facts.setdefault("deps", frozenset().union(*(node.deps for node in parents)))
        facts.setdefault("has_positions", any(node.has_positions for node in parents))
        facts.setdefault("site", max((node.site for node in parents), default=-1))
        self.nodes.append(Node(compute, size, edges, **facts))
        return self.nodes[-1]

    def node(self, value: Value) -> Node:
        """The node that a value is, made where it is a formula of another."""
        node, formula = value.node, value.formula
        if formula is VARIABLE:
            return node
        key = (id(node), formula.key)
        if key not in self._made:
            made = self._made[key] = self.add(
                lambda: uneven(made, node, formula, self._moments(node, formula)),
                node.size,
                [(node, lambda: self._slope(node, formula))],
                through=node.through,
                is_constant=node.is_constant,
                is_free=node.is_free,
                is_gaussian=node.is_gaussian and formula.is_affine,
                formula=formula,
            )
            if not node.is_constant and not (formula.is_affine and node.law is None):
                made.law = lambda: transformed(made, node, formula)
        return self._made[key]

    def _moments(self, node: Node, formula: Formula) -> Stats:
        mean, second, pairs = node.stats
        found = single(formula, *law(node))
        if node.is_constant:
            return self.batch.constant(found.mean.mean(-1))
        means = self.batch.at_ends(mean)
        variances = self.batch.at_ends(second) - means**2
        product = paired(formula, means, variances, pairs - means[0] * means[1]).product
        return Stats(
            *(np.asarray(each, np.float64) for each in (found.mean.mean(-1), found.second.mean(-1), product))
        )

    def _slope(self, node: Node, formula: Formula) -> Any:
        return single(formula, *law(node)).slope.mean(-1)

    def measured(self, known: Known) -> Node:
        """An array that is there, by its own statistics."""
        key = ("known", id(known.array))
        if key not in self._made:
            self._kept.append(known.array)  # so that no other gets its id
            self._made[key] = self.add(
                lambda: statistics(self.batch, np.asarray(known.array, np.float64), known.axes),
                int(np.size(known.array)),
                deps=known.names,
                is_gaussian=False,
                has_positions=any(has(one, POSITION) for one in known.axes or ()),
            )
        return self._made[key]

    @property
    def inputs(self) -> list[Node]:
        """The nodes of arrays that are there."""
        return [node for key, node in self._made.items() if key[0] == "known"]

    # --- Once the walk is over ----------------------------------------------------------------------------------------

    def forward(self, after: Callable[[Node], None]) -> None:
        """Find every node's statistics."""
        for node in self.nodes:
            node.stats = node.compute()
            after(node)

    def backward(self, anchored: Callable[[Node], Any]) -> None:
        """Find the second moment of every node's gradient; `anchored`: node -> what to take instead, or None."""
        for node in reversed(self.nodes):
            if node.is_blocked:
                node.gradient = node.gradient + np.nan
            taken = anchored(node)
            gradient = node.gradient if taken is None else taken
            if np.any(gradient != 0):
                for parent, gain in node.edges:
                    _give(node, gradient, parent, gain)


def uneven(made: Node, node: Node, formula: Formula, stats: Stats) -> Stats:
    """Statistics of a formula of an array whose second moment varies along axes of positions, as if of each in turn."""
    if node.profile is None or node.is_constant:
        return stats
    mean, second = float(np.mean(node.stats.mean)), float(np.mean(node.stats.second))
    even = single(formula, np.array(mean), np.array(second - mean**2))
    profiles, factors = [], np.ones(2)
    for along in node.profile:
        found = single(formula, np.full(along.shape, mean), np.maximum(second * along - mean**2, 0))
        factors *= [_ratio(found.mean.mean(), even.mean), _ratio(found.second.mean(), even.second)]
        profiles.append(np.asarray(found.second / max(found.second.mean(), 1e-30), np.float64))
    made.profile = tuple(profiles)
    return Stats(stats.mean * factors[0], stats.second * factors[1], stats.pairs * factors[1])


def _ratio(one: Any, other: Any) -> float:
    return float(one / other) if abs(float(other)) > 1e-12 else 1.0


def law(node: Node) -> tuple[Any, Any]:
    """(atoms, variance) of a node's entries: as far as is known, else a normal law of its mean and second moment."""
    if node.law is not None:
        return node.law()
    mean, second, _ = node.stats
    return mean[:, None], (0 * mean if node.is_constant else second - mean**2)[:, None]


def transformed(made: Node, node: Node, formula: Formula) -> tuple[Any, Any]:
    """Atoms of a formula's values: means between quantiles, spread so that mean and second moment are right."""
    atoms, variance = law(node)
    t = norm.ppf((np.arange(_NUM_ATOMS) + 0.5) / _NUM_ATOMS)
    x = (atoms[:, :, None] + np.sqrt(np.maximum(variance, 0))[:, :, None] * t).reshape(len(atoms), -1)
    values = np.sort(values_of(formula, x), -1)
    atoms = values.reshape(len(values), _NUM_ATOMS, -1).mean(-1)
    mean, second, _ = made.stats
    centred = atoms - atoms.mean(-1, keepdims=True)
    spread = np.sqrt(np.maximum(second - mean**2, 0) / np.maximum(np.mean(centred**2, -1), 1e-300))
    return mean[:, None] + centred * spread[:, None], 0 * mean[:, None]


class WindowGain(NamedTuple):
    """What the gradient's second moment gains through windows over positions, and its profile before them.

    Attributes:
        gain: without zeros around.
        before: profile after -> (share that did not fall on zeros around, profile before).
    """

    gain: float
    before: Callable[[Any], tuple[float, Any]]


def _give(node: Node, gradient: Any, parent: Node, gain: Any) -> None:
    """Add a node's gradient to that of what it was computed from."""
    if isinstance(gain, WindowGain):
        share, profile = gain.before(node.gradient_profile)
        given = gain.gain * share * gradient
    else:
        profile = node.gradient_profile if parent.size == node.size else None
        given = gain() * gradient
    old, new = float(np.mean(parent.gradient)), float(np.mean(given))
    if parent.gradient_profile is None or profile is None or not old + new > 0:
        parent.gradient_profile = profile if old == 0 else None
    else:
        both = zip(parent.gradient_profile, profile, strict=True)
        parent.gradient_profile = tuple((old * one + new * other) / (old + new) for one, other in both)
    parent.gradient = parent.gradient + given


def statistics(batch: Batch, array: np.ndarray, axes: Axes | None) -> Stats:
    """Those of an array [inputs, positions..., features]."""
    first = None if axes is None else batch_axis(axes, batch.num_inputs)
    if first is None:
        return Stats(*(np.full(n, v) for n, v in _pooled(batch, array)))
    positions = [
        k for k, one in enumerate(axes or ()) if k != first and has(one, POSITION) and array.shape[k] > 1
    ]
    others = [k for k in range(array.ndim) if k != first and k not in positions]
    flat = array.transpose(first, *positions, *others).reshape(
        batch.num_inputs, int(np.prod([array.shape[k] for k in positions])), -1
    )
    flat = flat[: batch.num_followed]
    num_positions = flat.shape[1]
    i, j = batch.ends[:, : batch.num_pairs]
    second = np.mean(flat**2, (1, 2))
    if num_positions > 1:
        together = num_positions * np.mean(np.mean(flat, 1) ** 2, -1)
        across = (together - second) / (num_positions - 1)
    else:
        across = np.mean(flat, (1, 2)) ** 2
    pairs = np.array([np.mean(flat[a] * flat[b]) for a, b in zip(i, j, strict=True)])
    return Stats(np.mean(flat, (1, 2)), second, np.concatenate([pairs, across[batch.own]]))


def _pooled(batch: Batch, array: np.ndarray) -> list[tuple[int, float]]:
    n, m = batch.num_followed, batch.ends.shape[1]
    square = float(np.mean(array**2))
    return [(n, float(np.mean(array))), (n, square), (m, square)]
