"""Arrays known by their statistics alone: how each follows from others, and how their gradients do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxact.diagnosis._axes import POSITION, Axes, batch_axis, has
from jaxact.diagnosis._formula import VARIABLE, Formula, paired, single
from jaxact.diagnosis._gradients import Gain, Gradient, passed, together
from jaxact.diagnosis._laws import before_formula, law, transformed

_NUM_PAIRS = 48
_NUM_INPUTS = 64
_NUM_OWN = 8  # inputs of which positions are paired
_NUM_LIKENESSES = 4  # of the positions of one input, from the least to the most alike
_NUM_POSITIONS = 64  # of which likenesses are sorted


class Stats(NamedTuple):
    """What is known of an array.

    Attributes:
        mean: over entries, for each input.
        second: the mean square, for each input.
        pairs: the mean product of the same entry for two inputs, for each pair; then of the same feature at different
            positions of two inputs, for each pair; then at two positions of one input, for each input of which
            positions are paired: of the quarter that is least alike, ..., of that most alike, of neighbours.
    """

    mean: Float[np.ndarray, " input"]
    second: Float[np.ndarray, " input"]
    pairs: Float[np.ndarray, " pair"]


class Batch:
    """Which inputs are followed, and which pairs: of two inputs, then of two positions of one input.

    Pairs of inputs are taken evenly from the least alike to the most, so that they are alike as all are in the mean.
    """

    def __init__(self, num_inputs: int, inputs: np.ndarray | None = None):
        self.num_inputs = num_inputs
        self.num_followed = min(num_inputs, _NUM_INPUTS)
        i, j = np.triu_indices(self.num_followed, 1)
        order = np.random.default_rng(0).permutation(i.size)
        if inputs is not None:
            order = np.argsort(_cosines(inputs[: self.num_followed])[i, j], kind="stable")
        number = min(order.size, _NUM_PAIRS)
        chosen = order[((np.arange(number) + 0.5) * order.size / max(number, 1)).astype(int)]
        self.own_inputs = np.arange(min(self.num_followed, _NUM_OWN))
        own = np.tile(self.own_inputs, _NUM_LIKENESSES + 1)
        self.num_pairs = chosen.size
        between = np.stack([i[chosen], j[chosen]])
        self.ends = np.concatenate([between, between, np.stack([own, own])], 1)
        self.is_own = np.arange(self.ends.shape[1]) >= 2 * self.num_pairs
        self.is_same_place = np.arange(self.ends.shape[1]) < self.num_pairs

    @property
    def own(self) -> np.ndarray:
        """The input of each pair of positions."""
        return self.ends[0, self.is_own]

    def likenesses(self, pairs: np.ndarray) -> np.ndarray:
        """[likeness, input] what two positions have in common, from the least to the most."""
        return pairs[self.is_own].reshape(_NUM_LIKENESSES + 1, -1)[:-1]

    def of_positions(self, pairs: np.ndarray) -> np.ndarray:
        """What two positions of one input have in common on average, for every input."""
        return self.to_inputs(self.likenesses(pairs).mean(0))

    def of_neighbours(self, pairs: np.ndarray) -> np.ndarray:
        """What neighbours have in common, for every input."""
        return self.to_inputs(pairs[-self.own_inputs.size :])

    def to_inputs(self, own: np.ndarray) -> np.ndarray:
        """Numbers of the inputs whose positions are paired, for every input."""
        return np.interp(np.arange(self.num_followed), self.own_inputs, own)

    def apart(self, pairs: np.ndarray) -> np.ndarray:
        """What different positions of two inputs have in common, at every pair of inputs, and there again; else 0."""
        found = pairs[self.num_pairs : 2 * self.num_pairs]
        return np.concatenate([found, found, np.zeros(self.own.size)])

    def padded(self, own: np.ndarray) -> np.ndarray:
        """Numbers of the pairs of positions among those of all pairs."""
        return np.concatenate([np.zeros(2 * self.num_pairs), own])

    def of_own(self, likenesses: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
        """From [likeness, input] and [input] the numbers of each pair of positions."""
        return np.concatenate([likenesses.reshape(-1), neighbours])

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


def _cosines(inputs: np.ndarray) -> np.ndarray:
    """Between all inputs [input, ...]."""
    flat = inputs.reshape(len(inputs), -1).astype(np.float64)
    lengths = np.linalg.norm(flat, axis=1)
    return flat @ flat.T / np.maximum(np.outer(lengths, lengths), 1e-300)


#: (a node, what its gradient's second moment gains from a gradient of 1, found when the statistics are:
#: () -> number for each input, or a Gain)
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
        pattern: [position, position] what two positions have in common, over its mean, where a mask left it uneven;
            found with the statistics.
        slopes: of a formula, what two positions' slopes have in common, for each input; found with the statistics.
        queries: of scores, () -> the cosine of one key's at two queries, for each input; of a softmax the mean product.
        kept: which entries a mask leaves of it.
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
    pattern: Any = None
    slopes: Any = None
    queries: Callable[[], Any] | None = None
    kept: Any = None
    is_blocked: bool = False
    is_product: bool = False
    is_sum: bool = False
    formula: Formula | None = None
    stats: Any = None
    gradient: Gradient = Gradient()


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
                lambda: uneven(made, node, formula, self._moments(made, node, formula)),
                node.size,
                [(node, self._formula_gain(node, formula, lambda: made))],
                through=node.through,
                is_constant=node.is_constant,
                is_free=node.is_free,
                is_gaussian=node.is_gaussian and formula.is_affine,
                formula=formula,
                queries=node.queries if formula.is_affine else None,
                kept=node.kept,
            )
            if not node.is_constant and not (formula.is_affine and node.law is None):
                made.law = lambda: transformed(made, node, formula)
        return self._made[key]

    def _moments(self, made: Node, node: Node, formula: Formula) -> Stats:
        mean, second, pairs = node.stats
        found = single(formula, *law(node))
        if node.is_constant:
            return self.batch.constant(found.mean.mean(-1))
        means = self.batch.at_ends(mean)
        variances = self.batch.at_ends(second) - means**2
        product, made.slopes = paired(formula, means, variances, pairs - means[0] * means[1])
        return Stats(
            *(np.asarray(each, np.float64) for each in (found.mean.mean(-1), found.second.mean(-1), product))
        )

    def _formula_gain(self, node: Node, formula: Formula, made: Callable[[], Node]) -> Gain:
        def number() -> Any:
            return single(formula, *law(node)).slope.mean(-1)

        def back(after: Gradient) -> Gradient:
            change, before = before_formula(after, node, formula)
            slopes = made().slopes
            across = 0.0 if slopes is None else change * self.batch.of_positions(slopes) * after.across
            return Gradient(number() * change * after.second, across, after.profile, before, after.rows)

        return Gain(number, back)

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
        """Find every node's gradient; `anchored`: node -> what to take for its second moment instead, or None."""
        for node in reversed(self.nodes):
            if node.is_blocked:
                node.gradient = Gradient(np.nan, np.nan)
            taken = anchored(node)
            gradient = node.gradient if taken is None else Gradient(taken)
            if np.any(gradient.second != 0):
                for parent, gain in node.edges:
                    given = passed(gain, gradient, is_same_size=parent.size == node.size)
                    parent.gradient = together(parent.gradient, given)


def uneven(made: Node, node: Node, formula: Formula, stats: Stats) -> Stats:
    """Statistics of a formula of an array whose second moment varies along axes of positions, as if of each in turn."""
    made.pattern = node.pattern
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
    i, j = batch.ends[:, : batch.num_pairs]
    pairs = np.array([np.mean(flat[a] * flat[b]) for a, b in zip(i, j, strict=True)])
    lengths = [array.shape[k] for k in positions]
    own = [_of_positions(flat[k], lengths) for k in batch.own_inputs]
    likenesses, neighbours = (np.stack(each, -1) for each in zip(*own, strict=True))
    count, means = flat.shape[1], np.mean(flat, 1)
    together = np.array([np.mean(means[a] * means[b]) for a, b in zip(i, j, strict=True)])
    apart = (count * together - pairs) / (count - 1) if count > 1 else pairs
    pairs = np.concatenate([pairs, apart, batch.of_own(likenesses, neighbours)])
    return Stats(np.mean(flat, (1, 2)), np.mean(flat**2, (1, 2)), pairs)


def _of_positions(x: np.ndarray, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """(likenesses, that of neighbours) of one input [position, feature] whose positions lie on a grid."""
    count = len(x)
    if count == 1:
        alone = np.mean(x) ** 2
        return np.full(_NUM_LIKENESSES, alone), np.asarray(alone)
    mean = (count * np.mean(np.mean(x, 0) ** 2) - np.mean(x**2)) / (count - 1)
    some = x[:: -(-count // _NUM_POSITIONS)]
    products = np.sort((some @ some.T / x.shape[1])[np.triu_indices(len(some), 1)])
    parts = [each.mean() if each.size else mean for each in np.array_split(products, _NUM_LIKENESSES)]
    grid = x.reshape(*lengths, -1)
    along = [np.moveaxis(grid, k, 0) for k in range(len(lengths))]
    neighbours = float(np.mean([np.mean(each[1:] * each[:-1]) for each in along]))
    return np.array(parts) - np.mean(parts) + mean, np.asarray(neighbours)


def _pooled(batch: Batch, array: np.ndarray) -> list[tuple[int, float]]:
    n, m = batch.num_followed, batch.ends.shape[1]
    square = float(np.mean(array**2))
    return [(n, float(np.mean(array))), (n, square), (m, square)]
