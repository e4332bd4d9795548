"""A jaxpr read once, loops unrolled: its products in order of execution, and the graph that predicts them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxact.diagnosis._axes import POSITION, Axes, axis, of_input
from jaxact.diagnosis._entries import Bias, Weight, bias_of, moved_entries, weight_of
from jaxact.diagnosis._formula import Formula
from jaxact.diagnosis._graph import Batch, Graph, Known, Node, Unknown, Value
from jaxact.diagnosis._norms import FreshNorms
from jaxact.diagnosis._output_axes import output_axes
from jaxact.diagnosis._products import PRODUCTS, Product
from jaxact.diagnosis._rules import applied, joined, one_row, unknown
from jaxact.diagnosis._taps import Path, scan_counts
from jaxact.numerics import inner_jaxprs
from jaxact.trace import Place, called, called_body, compute_equation, place


@dataclass(eq=False)
class Site:
    """A product.

    Attributes:
        name: of the parameters in it.
        kind: dense, conv, or attention where both operands depend on the input.
        place: where the user wrote it.
        key: (path, turns of the loops that it lies in).
        shape: of its output.
        axes: what the axes of that stand for.
        fan_in: how many products are added up.
        weight_scale: fan_in times the mean square of the weights, or NaN.
        node: its output in the graph.
        reason: why there is no prediction, or "".
        activation: (key of the array that the formula is of, the formula) that follows, or None.
        activation_axes: of that array.
        field: the number of positions of a convolution's window, 1 elsewhere.
        dtype: of its output.
        weight: the entries of the parameters that it is linear in, where they are followed.
    """

    name: str
    kind: str
    place: Place
    key: tuple[Path, tuple[int, ...]]
    shape: tuple[int, ...]
    axes: Axes
    fan_in: int
    weight_scale: float
    node: Node
    reason: str = ""
    activation: tuple[tuple[Path, tuple[int, ...]], Formula] | None = None
    activation_axes: Axes = ()
    field: int = 1
    dtype: str = "float32"
    weight: Weight | None = None


@dataclass
class Reading:
    """What is read of a function.

    Attributes:
        graph: every array after the first product.
        sites: every product, in order.
        loops: the length of every loop that was entered.
        outputs: the function's, as they were read.
        notes: what was passed over.
        biases: what is added to products, where entries are followed.
        norms: batch norms with the statistics that they were made with.
    """

    graph: Graph
    sites: list[Site] = field(default_factory=list)
    loops: dict[Path, int] = field(default_factory=dict)
    outputs: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)
    norms: FreshNorms = field(default_factory=FreshNorms)


def read(closed: Any, args: Sequence[Known], num_inputs: int) -> Reading:
    """Read a jaxpr.

    Args:
        closed: the jaxpr.
        args: its arguments: parameters by name, inputs with their axes.
        num_inputs: the length of the batch.
    """
    inputs = [each.array for each in args if each.axes is not None and _is_floating(each.array)]
    reading = Reading(Graph(Batch(num_inputs, inputs[0] if inputs else None)))
    consts = [Known(each) for each in closed.consts]
    reading.outputs = _Reader(reading).walk(closed.jaxpr, consts, args, (), (), None)
    for output in reading.outputs:
        if isinstance(output, Unknown):
            output.block()
    return reading


def _is_floating(array: Any) -> bool:
    return isinstance(array, np.ndarray) and jax.dtypes.issubdtype(array.dtype, np.floating)


class _Reader:
    def __init__(self, reading: Reading):
        self.reading, self.graph = reading, reading.graph
        self.stacks: dict[int, tuple[Value, list[Any]]] = {}  # the value, so that no other gets its id

    def walk(
        self,
        jaxpr: Any,
        consts: Sequence[Any],
        args: Sequence[Any],
        path: Path,
        turns: tuple[int, ...],
        call: Any,
    ) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))
        read = lambda atom: Known(atom.val) if hasattr(atom, "val") else env[atom]  # noqa: E731
        for number, eqn in enumerate(jaxpr.eqns):
            operands = [read(atom) for atom in eqn.invars]
            outputs = self._step(eqn, operands, (*path, number), turns, call)
            env |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _step(
        self, eqn: Any, operands: list[Any], path: Path, turns: tuple[int, ...], call: Any
    ) -> list[Any]:
        name, body = eqn.primitive.name, called_body(eqn)
        if not eqn.outvars:
            return []
        known = all(isinstance(each, Known) for each in operands)
        fixed = known and all(each.axes is None for each in operands)
        self.reading.norms.note(eqn, operands)
        followed = body is not None and name not in ("scan", "while") and any(_entries(x) for x in operands)
        if fixed and not followed and (name != "scan" or not self._holds_product(eqn)):
            return self._computed(eqn, operands)
        if name == "scan":
            return self._scan(eqn, operands, path, turns, call)
        if name == "cond":
            return self._cond(eqn, operands, path, turns, call)
        if body is not None and name != "while":
            inner = called(eqn, body[0], call)
            return self.walk(body[0], [Known(c) for c in body[1]], operands, path, turns, inner)
        if name in PRODUCTS and self._is_site(operands):
            return [self._product(eqn, operands, (path, turns), call)]
        if name == "while" and self._holds_product(eqn):
            self.reading.notes.append(
                f"a `while` loop at {place(eqn, call).short} holds products: not opened"
            )
        if known and name != "while":
            return self._computed(eqn, operands)
        outputs = (
            applied(self.graph, eqn, operands)
            if name != "while"
            else unknown(self.graph, eqn, operands, "a `while` loop")
        )
        outputs = self._noted(outputs, operands, (path, turns))
        self.reading.biases += bias_of(eqn, operands, outputs)
        return outputs

    def _holds_product(self, eqn: Any) -> bool:
        bodies = [getattr(inner, "jaxpr", inner) for inner in inner_jaxprs(eqn)]
        return any(
            each.primitive.name in PRODUCTS or self._holds_product(each)
            for body in bodies
            for each in body.eqns
        )

    def _is_site(self, operands: Sequence[Any]) -> bool:
        """Whether a product has a parameter or two arrays after other products in it."""
        late = [each for each in operands if not isinstance(each, Known)]
        named = [each for each in operands if isinstance(each, Known) and each.axes is None and each.names]
        varied = [each for each in operands if not isinstance(each, Known) or each.axes is not None]
        return bool(varied) and bool(named or late)

    # --- What is there ------------------------------------------------------------------------------------------------

    def _computed(self, eqn: Any, operands: Sequence[Known]) -> list[Any]:
        """Arrays of parameters, or of inputs before any product, as they are."""
        results = compute_equation(eqn, [each.array for each in operands])
        names = frozenset().union(*(each.names for each in operands))
        name = next((each.name for each in operands if each.name), "")
        varied = [each for each in operands if each.axes is not None]
        axes = [output_axes(eqn, operands) if varied else None] + [
            of_input(var.aval.shape) if varied else None for var in eqn.outvars[1:]
        ]
        if varied and axes[0] is not None and len(axes[0]) != np.ndim(results[0]):
            axes[0] = of_input(np.shape(results[0]))
        order = _order(eqn, operands)
        entries = moved_entries(eqn, operands)
        return [
            Known(result, each, names, name, order, own)
            for result, each, own in zip(results, axes, entries, strict=True)
        ]

    def _noted(self, outputs: list[Any], operands: Sequence[Any], key: Any) -> list[Any]:
        """Nodes know where they were made; what is used of a nonlinear formula is the activation of its product."""
        for output in outputs[:1]:
            if isinstance(output, Value) and output.formula.eqn is None and output.node.key is None:
                output.node.key = (key, output.axes)
        for operand in operands:
            made = outputs[0] if outputs else None
            goes_on = isinstance(made, Value) and isinstance(operand, Value) and made.node is operand.node
            is_statistic = isinstance(made, Value) and made.node.is_constant
            if isinstance(operand, Value) and not goes_on and not is_statistic:
                self._activation(operand)
        return outputs

    def _activation(self, value: Value) -> None:
        node = value.node
        if value.formula.is_affine or node.site < 0 or node.key is None or node.is_constant or node.is_free:
            return
        site = self.reading.sites[node.site]
        if site.activation is None:
            (key, axes) = node.key
            site.activation, site.activation_axes = (key, value.formula), axes

    # --- Products -----------------------------------------------------------------------------------------------------

    def _product(self, eqn: Any, operands: list[Any], key: Any, call: Any) -> Value:
        for each in operands:
            if isinstance(each, Value):
                self._activation(each)
        sites = self.reading.sites
        rule = PRODUCTS[eqn.primitive.name]
        axes, shape = output_axes(eqn, operands), tuple(eqn.outvars[0].aval.shape)
        product: Product = rule(self.graph, eqn, operands, axes)
        if product.node is None:
            unknown(self.graph, eqn, operands, product.reason)[0].block()
            product = product._replace(node=self._restarted(len(sites), operands, shape))
        node = product.node
        assert node is not None
        node.site, node.key, node.is_product = len(sites), (key, axes), True
        names = [
            each.name for each in operands if isinstance(each, Known) and each.axes is None and each.name
        ]
        name = names[0] if names else " @ ".join(self._called(each) for each in operands)
        sites.append(
            Site(
                name, product.kind, place(eqn, call), key, shape, axes, product.fan_in, product.weight_scale, node,
                product.reason, field=product.field, dtype=eqn.outvars[0].aval.dtype.name,
                weight=weight_of(eqn, operands),
            )
        )  # fmt: skip
        return Value(node, axes, shape)

    def _called(self, operand: Any) -> str:
        if isinstance(operand, Value) and operand.node.site >= 0:
            return self.reading.sites[operand.node.site].name
        return getattr(operand, "name", "") or "input"

    def _restarted(self, number: int, operands: Sequence[Any], shape: tuple[int, ...]) -> Node:
        """A product whose statistics are those that will be measured."""
        deps = frozenset().union(
            *(
                each.node.deps if isinstance(each, Value) else getattr(each, "deps", frozenset())
                for each in operands
            )
        )
        names = frozenset().union(*(each.names for each in operands if isinstance(each, Known)))
        node = self.graph.add(lambda: node.stats, math.prod(shape), deps=deps | names, through=names)
        return node

    # --- Loops and branches -------------------------------------------------------------------------------------------

    def _scan(
        self, eqn: Any, operands: list[Any], path: Path, turns: tuple[int, ...], call: Any
    ) -> list[Any]:
        params, closed = eqn.params, eqn.params["jaxpr"]
        num_consts, num_carry = scan_counts(params)
        consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
        stacked, length = operands[num_consts + num_carry :], params["length"]
        self.reading.loops[path] = length
        rows: list[list[Any]] = []
        order = list(range(length))[:: -1 if params["reverse"] else 1]
        inner = called(eqn, closed.jaxpr, call)
        for i in order:
            args = [*consts, *carry, *(self._row(each, i) for each in stacked)]
            results = self.walk(
                closed.jaxpr, [Known(c) for c in closed.consts], args, path, (*turns, i), inner
            )
            carry = results[:num_carry]
            rows.append(results[num_carry:])
        ordered = rows[::-1] if params["reverse"] else rows
        outputs = [self._stacked(eqn, list(each)) for each in zip(*ordered, strict=True)]
        return [*carry, *outputs]

    def _stacked(self, eqn: Any, rows: list[Any]) -> Any:
        """The rows of a loop as one array: known, or that which they all are, or unknown."""
        if all(isinstance(each, Known) for each in rows):
            first = rows[0]
            axes = None if first.axes is None else (of_input((1, len(rows)))[1], *first.axes)
            return Known(np.stack([np.asarray(each.array) for each in rows]), axes, first.names, first.name)
        shape = (len(rows), *rows[0].shape)
        failed = [each for each in rows if isinstance(each, Unknown)]
        if not failed and all(each.axes is not None for each in rows):
            made = Value(joined(self.graph, rows), (axis(POSITION, len(rows)), *rows[0].axes), shape)
            self.stacks[id(made)] = (made, rows)
            return made
        reason = failed[0].reason if failed else "the turns of a loop put side by side"
        (result,) = unknown(self.graph, _Shaped(shape), rows, reason)
        return result

    def _row(self, stacked: Any, i: int) -> Any:
        if id(stacked) in self.stacks:
            return self.stacks[id(stacked)][1][i]
        if isinstance(stacked, Value):
            row = one_row(self.graph, stacked)
            return Value(row, stacked.axes[1:], stacked.shape[1:])
        return _row(stacked, i)

    def _cond(
        self, eqn: Any, operands: list[Any], path: Path, turns: tuple[int, ...], call: Any
    ) -> list[Any]:
        which, *args = operands
        branches = eqn.params["branches"]

        def taken(k: int) -> list[Any]:
            chosen = branches[k]
            return self.walk(chosen.jaxpr, [Known(c) for c in chosen.consts], args, (*path, k), turns, call)

        if isinstance(which, Known) and which.axes is None:
            return taken(int(np.clip(int(which.array), 0, len(branches) - 1)))
        for k in range(len(branches)):  # rows of all; what is not taken is measured as NaN
            taken(k)
        return unknown(self.graph, eqn, operands, "a branch that the input chooses")


def _order(eqn: Any, operands: Sequence[Known]) -> tuple[int, ...]:
    """How the axes of a parameter lie after an equation."""
    named = [each for each in operands if each.names]
    if eqn.primitive.name == "transpose":
        return (
            tuple(named[0].order[k] if named[0].order else k for k in eqn.params["permutation"])
            if named
            else ()
        )
    same = [each for each in named if each.shape == tuple(eqn.outvars[0].aval.shape)]
    return same[0].order if same else ()


def _entries(operand: Any) -> bool:
    return getattr(operand, "entries", None) is not None


class _Shaped:
    """An equation of which only the shape of its output counts."""

    class primitive:  # noqa: N801
        name = "stack"

    def __init__(self, shape: tuple[int, ...]):
        self.params: dict[str, Any] = {}
        self.outvars = [type("Var", (), {"aval": jax.ShapeDtypeStruct(shape, np.float32)})]


def _row(stacked: Any, i: int) -> Any:
    if isinstance(stacked, Known):
        axes = None if stacked.axes is None else stacked.axes[1:]
        names = frozenset(f"{name}[{i}]" for name in stacked.names)
        entries = None if stacked.entries is None else stacked.entries[i]
        called = f"{stacked.name}[{i}]" if stacked.name else ""
        return Known(stacked.array[i], axes, names, called, entries=entries)
    return Unknown(stacked.reason, stacked.axes[1:], stacked.shape[1:], stacked.deps, stacked.origins)
