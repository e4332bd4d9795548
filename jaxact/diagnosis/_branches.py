"""Which share of a sum each product is: products added up to one preactivation, and branches of residual streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from jaxact.diagnosis._formula import Formula, single
from jaxact.diagnosis._graph import Graph, Node
from jaxact.diagnosis._reading import Reading


class Part(NamedTuple):
    """What the second moment of a product is to be.

    Attributes:
        second: the target.
        reason: why, in words.
        is_on_stream: whether it lies in no residual branch.
        is_batch_normed: whether a norm over the batch follows, which takes its scale out again.
    """

    second: float
    reason: str
    is_on_stream: bool = True
    is_batch_normed: bool = False


_WHOLE = Part(1.0, "second moment 1")


@dataclass
class Chain:
    """Residual sums along one stream.

    Attributes:
        branches: of each sum the products that its branch ends in.
        is_bent: whether a nonlinearity lies on the stream.
    """

    branches: list[list[tuple[int, Formula | None]]] = field(default_factory=list)
    is_bent: bool = False


def parts(reading: Reading) -> tuple[list[Part], list[Chain]]:
    """The target of every product: 1, a share of a sum of n products, or of a stream of L branches 1 / L.

    A branch whose output has a mean adds up coherently: with r = mean^2 / second moment its share is
    1 / (L (1 - r) + L^2 r).
    """
    structure = _Structure(reading.graph)
    found = [_WHOLE] * len(reading.sites)
    for terms in structure.parallel.values():
        numbers = [term.site for term in terms if term.is_product]
        for k in numbers:
            if len(terms) > 1 / found[k].second:
                found[k] = Part(1 / len(terms), f"one of {len(terms)} in a sum")
    for chain in structure.chains:
        count = len(chain.branches)
        for number, ends in enumerate(chain.branches):
            for k, formula in ends:
                told = f"branch {number + 1} of {count}"
                found[k] = Part(_branch_second(formula, count) / len(ends), told)
    within = structure.within
    return [
        part._replace(is_on_stream=not within >> structure.number[id(site.node)] & 1)
        for part, site in zip(found, reading.sites, strict=True)
    ], structure.chains


def _branch_second(formula: Formula | None, count: int) -> float:
    if formula is None:
        return 1 / count
    q = np.geomspace(1e-6, 1e2, 161)
    at = _on_grid(formula)
    share = at.mean**2 / np.maximum(at.second, 1e-30)
    (enough,) = np.nonzero(at.second * (count * (1 - share) + count**2 * share) >= 1)
    return float(q[enough[0]]) if enough.size and enough[0] else 1 / count


@lru_cache(maxsize=256)
def _on_grid(formula: Formula) -> Any:
    q = np.geomspace(1e-6, 1e2, 161)
    return single(formula, np.zeros_like(q), q)


class _Structure:
    """The sums of a graph, sorted into parallel and residual ones."""

    def __init__(self, graph: Graph):
        self.number = {id(node): k for k, node in enumerate(graph.nodes)}
        self.inputs = {id(node) for node in graph.inputs}
        self.reach: list[int] = []
        for k, node in enumerate(graph.nodes):
            reach = 1 << k
            for parent, _ in node.edges:
                reach |= self.reach[self.number[id(parent)]]
            self.reach.append(reach)
        self.parallel: dict[int, list[Node]] = {}
        self.chains: list[Chain] = []
        self.chain_of: dict[int, tuple[Chain, Node]] = {}
        self.within = 0  # a bit for every node in a branch
        for node in graph.nodes:
            if node.is_sum and all(self._is_term(parent) for parent, _ in node.edges):
                self._sort(node)

    def _is_term(self, node: Node) -> bool:
        """Whether it is no bias, and no statistic, of a norm say, that is one number an input."""
        return (node.site >= 0 or id(node) in self.inputs) and not node.is_constant

    def _sort(self, node: Node) -> None:
        x, y = (parent for parent, _ in node.edges)
        for skip, branch in ((x, y), (y, x)):
            if id(skip) in self.inputs or self._is_stream_of(skip, branch):
                return self._residual(node, skip, branch)
        self.parallel[id(node)] = [*self._terms(x), *self._terms(y)]
        return None

    def _residual(self, node: Node, skip: Node, branch: Node) -> None:
        root, is_bent = self._root(skip), False
        while root.formula is not None:
            root, is_bent = self._root(root.edges[0][0]), True
        if id(root) in self.chain_of:
            chain = self.chain_of[id(root)][0]
        else:
            chain = Chain()
            self.chains.append(chain)
        chain.is_bent |= is_bent
        chain.branches.append(list(self._ends(branch)))
        self.chain_of[id(node)] = (chain, skip)
        skipped, computed = (self.reach[self.number[id(each)]] for each in (skip, branch))
        self.within |= computed & ~skipped

    def _is_stream_of(self, skip: Node, branch: Node) -> bool:
        """Whether the branch was computed from the stream, here or before a sum."""
        while True:
            root = self._root(skip)
            if any(self._reaches(branch, each) for each in (skip, root)):
                return True
            if id(root) not in self.chain_of:
                return False
            skip = self.chain_of[id(root)][1]

    def _reaches(self, node: Node, other: Node) -> bool:
        return bool(self.reach[self.number[id(node)]] >> self.number[id(other)] & 1)

    def _root(self, node: Node) -> Node:
        """The array that this is up to affine formulas, biases and moves."""
        while not node.is_product:
            after = self._before(node)
            if after is None:
                return node
            node = after
        return node

    def _before(self, node: Node) -> Node | None:
        if node.formula is not None:
            return node.edges[0][0] if node.formula.is_affine else None
        if id(node) in self.chain_of or id(node) in self.parallel:
            return None
        varied = [parent for parent, _ in node.edges if parent.site >= 0]
        return varied[0] if len(varied) == 1 else None

    def _terms(self, node: Node) -> list[Node]:
        root = self._root(node)
        return self.parallel.get(id(root), [root])

    def _ends(self, branch: Node) -> Iterator[tuple[int, Formula | None]]:
        for term in self._terms(branch):
            if term.is_product:
                formula = branch.formula
                yield term.site, formula
            elif term.formula is not None and self._root(term.edges[0][0]).is_product:
                yield self._root(term.edges[0][0]).site, term.formula
