"""From any JAX function to the straight-line program that the Lipschitz engine bounds: a walk over its jaxpr.

Values that do not depend on the input are computed; the others are kept in a graph (`_graph`), by the rule of each
primitive (`_rules`), and what the output needs of it is written out as steps (`_emit`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.errors import ArgumentError, ArgumentTypeError
from jaxact.numerics import check_inference, inner_jaxprs
from jaxact.trace._emit import emitted
from jaxact.trace._expr import Expr, UnsupportedError, constant
from jaxact.trace._graph import Failed, Graph, Special, forced, is_constant
from jaxact.trace._host import computed, is_plain
from jaxact.trace._loops import LOOPS
from jaxact.trace._named import named
from jaxact.trace._nodes import Gathered, Node, Value, whole
from jaxact.trace._program import Program
from jaxact.trace._radial import shortcut
from jaxact.trace._rules import RULES, applied, is_finite
from jaxact.trace._slopes import LARGEST
from jaxact.trace._wide import run_again, wide_constants

_MANY = 32  # equations of a body that are run at once where all operands are constants
_ASSUMPTIONS = (
    "the function is meant in exact arithmetic, with its parameters as they are",
    f"no intermediate value exceeds {LARGEST:.1e}",
    "it is defined and finite at every input in question",
    "branches that agree where a `where` switches, to the bound on their rounding there (at most 1e-10 of "
    "their size or slope times input), count as continuous",
    "numpy's and scipy's elementary functions are right to 8 ulp",
    "what the function computes from parameters alone is taken as its dtypes round it; linear maps composed "
    "from that are right to rounding in float64",
)
_NOT_EXACT = "it could not be traced in float64: what it computes from parameters alone is rounded"


@dataclass(frozen=True)
class Lowered:
    """A function as a program.

    Attributes:
        program: its output is the function's, flattened, without what does not depend on the input.
        assumptions: what the translation takes for granted.
        restricted: why it can only be bounded within a region, or None.
        depends: for each leaf of the function's output whether it depends on the input.
        exact: whether the function was traced in float64.
        num_equations: of its jaxpr, not counting those of loops and calls.
        num_operations: how many of them differ in primitive or shapes.
        has_loops: whether there are loops among them.
        narrowest: the floating dtype with the fewest bits that it rounds wider numbers to, or None.
        has_choice: whether `contract` would make another program of it.
    """

    program: Program
    assumptions: tuple[str, ...]
    restricted: ArgumentError | None
    depends: tuple[bool, ...]
    exact: bool
    num_equations: int = 0
    num_operations: int = 0
    has_loops: bool = False
    narrowest: Any = None
    has_choice: bool = False


def lower(
    fn: Callable[[Any], Any], example: Any, wide: list[Any] | None = None, *, contract: bool = False
) -> Lowered:
    """Translate a function of one array into a `Program`, by tracing it in float64 and walking its jaxpr.

    Args:
        fn: JAX function of one array, closed over its parameters; returns an array or a pytree of arrays.
        example: an input; only its shape and dtype matter.
        wide: takes what `_wide.wide_constants` finds.
        contract: whether softmax, maxima, norms and normalisations become steps that are known by one number, which
            holds everywhere, and not by the slopes of what they are computed from.

    Returns:
        `Lowered`.

    Raises:
        FunctionError: it normalises by the statistics of its batch, which is that input alone.
        ValueError: the function uses a primitive that cannot be bounded; names it and its line.
    """
    return _lowered(*_read(fn, example, wide), example, contract)


def lower_both(fn: Callable[[Any], Any], example: Any, wide: list[Any] | None = None) -> list[Lowered]:
    """Both translations of `lower`, one where they are the same or there is no other.

    Args:
        fn: of one input.
        example: an input.
        wide: gets references to the constants that were traced in float64.

    Returns:
        One or two translations.
    """
    closed, exact = _read(fn, example, wide)
    try:
        first = _lowered(closed, exact, example, contract=False)
    except ArgumentError as refused:
        with contextlib.suppress(ArgumentError):
            return [_lowered(closed, exact, example, contract=True)]
        raise refused
    return [first, _lowered(closed, exact, example, contract=True)] if first.has_choice else [first]


def _read(fn: Callable[[Any], Any], example: Any, wide: list[Any] | None) -> tuple[Any, bool]:
    """The jaxpr of a function, and whether it is that of float64."""
    with jax.enable_x64(True):
        closed, exact = run_again(lambda: _traced(fn, example))
        if wide is not None:
            wide += wide_constants(closed)
        if any(isinstance(c, jax.core.Tracer) for c in closed.consts):
            raise ArgumentTypeError(
                "must close over concrete arrays, got traced ones: a certificate is found on the host, outside jit "
                "and grad.",
                "As a penalty use upper_bound, or a network's log_lipschitz.",
                argument="fn",
            )
        check_inference(closed)
    return closed, exact


def _lowered(closed: Any, exact: bool, example: Any, contract: bool) -> Lowered:
    with jax.enable_x64(True):
        graph = Graph(contract=contract, shortcut=shortcut)
        source = graph.input(np.shape(example))
        outputs = walk(graph, closed.jaxpr, [_owned(c) for c in closed.consts], [whole(source)])
        lowered = _finished(graph, source, [forced(output) for output in outputs], exact)
    equations = closed.jaxpr.eqns
    operations = {
        (eqn.primitive.name, *(str(atom.aval) for atom in (*eqn.invars, *eqn.outvars))) for eqn in equations
    }
    narrowest = min(_narrowed(closed.jaxpr), key=lambda dtype: jnp.finfo(dtype).nmant, default=None)
    if narrowest is not None:
        rounding = (
            f"conversions to {narrowest} and other narrow dtypes, of products too, count as no rounding"
        )
        lowered = replace(lowered, assumptions=(*lowered.assumptions, rounding))
    return replace(
        lowered,
        num_equations=len(equations),
        num_operations=len(operations),
        has_loops=any(eqn.primitive.name in LOOPS for eqn in equations),
        narrowest=narrowest,
    )


def _narrowed(jaxpr: Any) -> Iterator[Any]:
    """The floating dtypes that wider floating numbers are rounded to, in calls and loops too."""
    for eqn in jaxpr.eqns:
        given = [atom.aval.dtype for atom in eqn.invars if hasattr(atom.aval, "dtype")]
        bits = max((jnp.finfo(d).nmant for d in given if jnp.issubdtype(d, jnp.floating)), default=0)
        to = eqn.params.get("new_dtype", eqn.params.get("preferred_element_type"))
        if to is not None and jnp.issubdtype(to, jnp.floating) and jnp.finfo(to).nmant < bits:
            yield np.dtype(to)
        if eqn.primitive.name == "reduce_precision" and 23 <= eqn.params["mantissa_bits"] < bits:
            yield np.dtype(np.float32)  # or finer
        for inner in inner_jaxprs(eqn):
            yield from _narrowed(getattr(inner, "jaxpr", inner))


def _owned(const: Any) -> np.ndarray:
    """A constant on the host, which is a copy where `fn` closes over a NumPy array: see `_wide`."""
    if not is_plain(const):
        return const
    return np.asarray(const) if isinstance(const, jax.Array) else np.array(const)


def _traced(fn: Callable[[Any], Any], example: Any) -> tuple[Any, bool]:
    def once(x: Any) -> Any:  # JAX keeps the jaxpr for as long as the function lives: see `_wide`
        return fn(x)

    try:
        return jax.make_jaxpr(once)(jax.ShapeDtypeStruct(np.shape(example), np.float64)), True
    except (TypeError, ValueError):  # loops that insist on float32 carries, for one
        own = jax.ShapeDtypeStruct(np.shape(example), jnp.result_type(example))
    return jax.make_jaxpr(once)(own), False  # what it raises now is what its user knows


# --- The walk ---------------------------------------------------------------------------------------------------------


def walk(graph: Graph, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """What a jaxpr makes of its arguments, values of a graph or constants; some are found when they are asked for."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))

    def peek(atom: Any) -> Any:  # without finding it: for what is only handed on
        return atom.val if hasattr(atom, "val") else env[atom]

    def read(atom: Any) -> Any:
        value = forced(peek(atom))
        if not hasattr(atom, "val"):
            env[atom] = value
        return value

    before = graph.eqn
    same = _repeats(jaxpr)
    for eqn in jaxpr.eqns:
        graph.eqn = eqn
        if eqn in same:  # written twice
            env |= {var: env[first] for var, first in zip(eqn.outvars, same[eqn].outvars, strict=True)}
            continue
        handing_on = eqn.primitive.name in LOOPS or called_body(eqn) is not None
        operands = [(peek if handing_on else read)(atom) for atom in eqn.invars]
        env |= dict(zip(eqn.outvars, _step(graph, eqn, operands), strict=True))
    graph.eqn = before
    return [peek(atom) for atom in jaxpr.outvars]


def _repeats(jaxpr: Any) -> dict[Any, Any]:
    """Equations that compute what an earlier one does, such as the exponentials of exp(x) / exp(x).sum(), and those."""
    first: dict[Any, Any] = {}
    name: dict[Any, Any] = {}
    found: dict[Any, Any] = {}
    for eqn in jaxpr.eqns:
        atoms = [
            (atom.aval.dtype, atom.aval.shape, np.asarray(atom.val).tobytes())
            if hasattr(atom, "val")
            else name.get(atom, atom)
            for atom in eqn.invars
        ]
        params = sorted(eqn.params.items(), key=lambda pair: pair[0])
        key = (eqn.primitive, *atoms, *((k, _hashable(value)) for k, value in params))
        if eqn.effects or not eqn.outvars or first.setdefault(key, eqn) is eqn:
            continue
        found[eqn] = first[key]
        name |= dict(zip(eqn.outvars, first[key].outvars, strict=True))
    return found


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return value


def _step(graph: Graph, eqn: Any, operands: list[Any]) -> Sequence[Any]:
    name, inner = eqn.primitive.name, called_body(eqn)
    if not eqn.outvars:  # debug.print and its like
        return []
    if all(map(is_constant, operands)) and (inner is None or name in LOOPS or len(inner[0].eqns) > _MANY):
        return computed(eqn, operands)
    if name in LOOPS:
        with graph.inside(eqn, None):
            return LOOPS[name](graph, partial(walk, graph), eqn, operands)
    if inner is not None and name not in RULES:
        with graph.inside(eqn, inner[0]):
            with _entered(graph, eqn):
                found = named(graph, eqn, inner[0], operands)
            return walk(graph, inner[0], list(inner[1]), operands) if found is None else found
    failed = next((operand for operand in operands if isinstance(operand, Failed)), None)
    if failed is not None:
        return [failed] * len(eqn.outvars)
    try:
        with _entered(graph, eqn):
            return applied(graph, eqn, operands)
    except UnsupportedError as error:
        return [graph.failed(str(error))] * len(eqn.outvars)


@contextmanager
def _entered(graph: Graph, eqn: Any) -> Iterator[None]:
    """While nodes are made for an equation: they come from there."""
    count = len(graph.nodes)
    try:
        yield
    finally:
        for node in graph.nodes[count:]:
            graph.made_at.setdefault(node, (eqn, graph.call))


def called_body(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
    """The body of an equation that merely calls one (jit, custom_jvp, remat ...), with its constants.

    Args:
        eqn: of a jaxpr.
    """
    if eqn.primitive.name in ("reduce", "reduce_window"):  # their jaxpr combines two entries
        return None
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        if inner is not None:
            return (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
    return None


# --- The program ------------------------------------------------------------------------------------------------------


def _finished(graph: Graph, source: Node, outputs: list[Any], exact: bool) -> Lowered:
    for output in outputs:
        if isinstance(output, Failed):
            raise output.error
        if isinstance(output, Special):
            raise ArgumentError(
                "must have outputs that are real numbers.", "Return their parts.", argument="fn"
            )
        if is_constant(output) and not is_finite(output):
            raise ArgumentError(
                "must have finite outputs, got NaN or inf in one that does not depend on the input.",
                "Load finite weights, or leave that output out.",
                argument="fn",
            )
    depends = tuple(not is_constant(output) and output.size > 0 for output in outputs)
    try:
        result = _output(graph, source, [each for each, does in zip(outputs, depends, strict=True) if does])
    except UnsupportedError as error:
        raise ArgumentError(f"The output cannot be bounded: {error}.", "Leave it out.") from None
    program, restricted = emitted(graph, source, result)
    assumptions = _ASSUMPTIONS if exact else (*_ASSUMPTIONS, _NOT_EXACT)
    return Lowered(program, assumptions, restricted, depends, exact, has_choice=graph.has_choice)


def _output(graph: Graph, source: Node, outputs: list[Value]) -> Node:
    nodes = [graph.node(output) for output in outputs]
    if len(nodes) == 1:
        return nodes[0]
    if not nodes:
        return graph.add(Gathered((source,), np.full(1, source.size), np.zeros(1)))
    return graph.node(graph.chained(list(map(whole, nodes)), (sum(node.size for node in nodes),)))


def from_function(fn: Callable[[Any], Any]) -> Expr:
    """The formula of a function that works entry by entry, traced in float64.

    Args:
        fn: of one array, elementwise.

    Raises:
        UnsupportedError: it uses a primitive that is not elementwise or not known here.
    """
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((), np.float64))
        graph = Graph()
        source = graph.input(())
        (result,) = map(forced, walk(graph, closed.jaxpr, closed.consts, [whole(source)]))
    if isinstance(result, Failed):
        raise UnsupportedError(str(result.error))
    if is_constant(result):
        return constant(np.asarray(result))
    found = graph.common([whole(source), result])
    if found is None:
        raise UnsupportedError("it is no formula of its argument")
    return found[1][1]
