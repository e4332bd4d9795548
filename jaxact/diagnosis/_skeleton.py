"""Which products feed which, and what lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Flag, auto
from typing import Any, NamedTuple

from jaxact.diagnosis._reading import Reading
from jaxact.diagnosis._taps import Path, scan_counts
from jaxact.trace import called_body

INPUT = -1  # what the inputs themselves count as, beside the numbers of products


class Mark(Flag):
    """What an array went through since the last product.

    CURVED: a nonlinear function, after the last sum with a shortcut. REDUCED: it is a statistic, as a mean. NORMED: a
    norm. BATCHED: statistics over the batch. SKIPPED: a sum with a shortcut. CLOSED: such a sum whose shortcut went
    through a nonlinear function after the sum before it.
    """

    NONE = 0
    CURVED = auto()
    REDUCED = auto()
    NORMED = auto()
    BATCHED = auto()
    SKIPPED = auto()
    CLOSED = auto()


class Origin(NamedTuple):
    """Where an array comes from: the products that reach it with no other between, and what lay there."""

    sites: frozenset[int]
    marks: Mark


class Softmax(NamedTuple):
    """The exponentials of a product of two arrays: (path, turns), and the axes that they are summed over."""

    key: tuple[Path, tuple[int, ...]]
    axes: tuple[int, ...]


_NOWHERE = Origin(frozenset(), Mark.NONE)
_CURVED = frozenset({
    "tanh", "logistic", "max", "min", "erf", "sin", "cos", "expm1", "abs", "select_n", "clamp", "log1p", "sign",
})  # fmt: skip
_ROOTS = frozenset({"rsqrt", "sqrt", "pow"})


class Skeleton:
    """The products of a reading as a graph.

    Attributes:
        feeds: for each product the origins of its operands that depend on the input.
        before: for each product all that it depends on.
        heads: the products that reach the outputs with no other between.
        softmaxes: of products of two arrays, by number.
    """

    def __init__(self, closed: Any, reading: Reading, num_params: int):
        self.numbers = {site.key: k for k, site in enumerate(reading.sites)}
        self.paths = {key[0] for key in self.numbers}
        self.is_score = [site.kind == "attention" for site in reading.sites]
        self.num_inputs = reading.graph.batch.num_inputs
        self.feeds: list[tuple[Origin, ...]] = [()] * len(reading.sites)
        self.before: list[frozenset[int]] = [frozenset()] * len(reading.sites)
        self.softmaxes: dict[int, Softmax] = {}
        count = len(closed.jaxpr.invars)
        origins = [
            _NOWHERE if k < num_params else Origin(frozenset({INPUT}), Mark.NONE) for k in range(count)
        ]
        outputs = self._walk(closed.jaxpr, origins, (), ())
        self.heads = frozenset().union(*(each.sites for each in outputs))

    def after(self, k: int) -> list[int]:
        """The products that one feeds."""
        return [n for n, feeds in enumerate(self.feeds) if any(k in each.sites for each in feeds)]

    @property
    def batch_normed(self) -> list[int]:
        """The products that a norm of their own over the batch follows."""
        found = Mark.BATCHED | Mark.NORMED
        feeds = [each for feeds in self.feeds for each in feeds]
        own = [each.sites for each in feeds if each.marks & (found | Mark.SKIPPED) == found]
        return sorted(frozenset().union(*own) - {INPUT})

    def source(self, k: int) -> Origin:
        """The origin of the operand of a product that depends on the input; of the first one where both do."""
        return self.feeds[k][0] if self.feeds[k] else _NOWHERE

    def _walk(self, jaxpr: Any, args: Sequence[Origin], path: Path, turns: tuple[int, ...]) -> list[Origin]:
        env: dict[Any, Origin] = dict.fromkeys(jaxpr.constvars, _NOWHERE)
        env |= dict(zip(jaxpr.invars, args, strict=True))
        read = lambda atom: _NOWHERE if hasattr(atom, "val") else env[atom]  # noqa: E731
        for number, eqn in enumerate(jaxpr.eqns):
            operands = [read(atom) for atom in eqn.invars]
            outputs = self._step(jaxpr, eqn, operands, (*path, number), turns)
            env |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _step(
        self, jaxpr: Any, eqn: Any, operands: list[Origin], path: Path, turns: tuple[int, ...]
    ) -> list[Origin]:
        name, body = eqn.primitive.name, called_body(eqn)
        holds = any(each[: len(path)] == path for each in self.paths)
        if name == "scan" and holds:
            return self._scan(eqn, operands, path, turns)
        if name == "cond" and holds:
            branches = [
                self._walk(each.jaxpr, operands[1:], (*path, k), turns)
                for k, each in enumerate(eqn.params["branches"])
            ]
            return [_united(each) for each in zip(*branches, strict=True)]
        if body is not None and name not in ("while", "scan"):
            return self._walk(body[0], operands, path, turns)
        number = self.numbers.get((path, turns))
        if number is not None:
            return [self._product(number, operands)] * len(eqn.outvars)
        if name == "exp":
            self._note_softmax(jaxpr, eqn, operands[0], (path, turns))
        return [self._elementwise(eqn, name, operands)] * len(eqn.outvars)

    def _product(self, number: int, operands: Sequence[Origin]) -> Origin:
        self.feeds[number] = tuple(each for each in operands if each.sites)
        sites = frozenset().union(*(each.sites for each in operands))
        self.before[number] = self._ancestors(sites)
        return Origin(frozenset({number}), Mark.NONE)

    def _ancestors(self, sites: frozenset[int]) -> frozenset[int]:
        return sites.union(*(self.before[k] for k in sites if k != INPUT))

    def _elementwise(self, eqn: Any, name: str, operands: Sequence[Origin]) -> Origin:
        varied = [each for each in operands if each.sites]
        if not varied:
            return _NOWHERE
        if name in ("add", "add_any") and len(varied) == 2:
            skipped = self._skipped(*varied)
            if skipped is not None:
                return skipped
        made = _united(varied)
        if not all(Mark.REDUCED in each.marks for each in varied):
            made = made._replace(marks=made.marks & ~Mark.REDUCED)
        return made._replace(marks=made.marks | self._mark(eqn, name, made.marks))

    def _mark(self, eqn: Any, name: str, marks: Mark) -> Mark:
        if name in _CURVED and Mark.REDUCED not in marks:
            return Mark.CURVED
        if name in _ROOTS and Mark.REDUCED in marks:
            return Mark.NORMED
        if name == "reduce_sum":
            shape = eqn.invars[0].aval.shape
            over_batch = 0 in eqn.params["axes"] and shape[0] == self.num_inputs > 1
            return Mark.REDUCED | (Mark.BATCHED if over_batch else Mark.NONE)
        return Mark.NONE

    def _skipped(self, one: Origin, other: Origin) -> Origin | None:
        """The sum of a shortcut and a branch that starts from it, or None."""
        for short, branch in ((one, other), (other, one)):
            new = branch.sites - short.sites
            starts = frozenset().union(*(self.before[k] for k in new if k != INPUT))
            if new and short.sites <= starts | branch.sites and short.marks & Mark.REDUCED == Mark.NONE:
                marks = (short.marks | branch.marks | Mark.SKIPPED) & ~(Mark.CURVED | Mark.REDUCED)
                if Mark.CURVED in short.marks and Mark.SKIPPED in short.marks:
                    marks |= Mark.CLOSED
                return Origin(short.sites | branch.sites, marks)
        return None

    def _note_softmax(self, jaxpr: Any, eqn: Any, origin: Origin, key: Any) -> None:
        if len(origin.sites) != 1 or Mark.REDUCED in origin.marks:
            return
        (k,) = origin.sites
        sums = [
            each.params["axes"]
            for each in jaxpr.eqns
            if each.primitive.name == "reduce_sum" and each.invars[0] is eqn.outvars[0]
        ]
        if k != INPUT and self.is_score[k] and sums:
            self.softmaxes.setdefault(k, Softmax(key, tuple(sums[0])))

    def _scan(self, eqn: Any, operands: list[Origin], path: Path, turns: tuple[int, ...]) -> list[Origin]:
        params, jaxpr = eqn.params, eqn.params["jaxpr"].jaxpr
        num_consts, num_carry = scan_counts(params)
        consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
        rows = operands[num_consts + num_carry :]
        stacked: list[list[Origin]] = []
        order = range(params["length"])
        for i in reversed(order) if params["reverse"] else order:
            results = self._walk(jaxpr, [*consts, *carry, *rows], path, (*turns, i))
            carry = results[:num_carry]
            stacked.append(results[num_carry:])
        return [*carry, *(_united(each) for each in zip(*stacked, strict=True))]


def _united(origins: Sequence[Origin]) -> Origin:
    marks = Mark.NONE
    for each in origins:
        marks |= each.marks
    return Origin(frozenset().union(*(each.sites for each in origins)), marks)
