"""Elementwise primitives of arrays that are known by their statistics: formulas, sums, products, cancellations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxact.diagnosis._axes import Axes
from jaxact.diagnosis._formula import Shares, apply, paired, shares
from jaxact.diagnosis._gradients import Gain, Gradient
from jaxact.diagnosis._graph import Graph, Known, Node, Stats, Value
from jaxact.diagnosis._laws import before_sum, law
from jaxact.diagnosis._output_axes import output_axes
from jaxact.trace import UnsupportedError

ELEMENTWISE = frozenset({
    "abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc",
    "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p",
    "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "reduce_precision", "rem",
    "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan",
    "tanh", "xor",
})  # fmt: skip


def elementwise(graph: Graph, eqn: Any, operands: Sequence[Any]) -> Value:
    """One formula where all are formulas of one array and numbers; else sums, products and scalings by arrays."""
    operands = [_number(each) for each in operands]
    if (
        eqn.primitive.name == "select_n"
        and isinstance(operands[0], int)
        and isinstance(operands[1 + operands[0]], Value)
    ):
        return operands[1 + operands[0]]
    values = [each for each in operands if isinstance(each, Value)]
    shape = tuple(eqn.outvars[0].aval.shape)
    axes = output_axes(eqn, values)
    known = _cancelled(graph, eqn, operands, axes)
    if known is not None:
        return known
    if all(each.node is values[0].node for each in values) and not any(
        isinstance(o, Known) for o in operands
    ):
        args = [each.formula if isinstance(each, Value) else each for each in operands]
        if values[0].note[:1] == ("mean",) and _is_square(eqn, operands):
            return Value(_square_of_mean(graph, graph.node(values[0])), axes, shape)
        note = _note(eqn, operands, values)
        return Value(values[0].node, axes, shape, apply(eqn, args), note)
    masked = _masked(graph, eqn, operands)
    if masked is not None:
        return Value(masked, axes, shape)
    rule = _PAIRED.get(eqn.primitive.name)
    if rule is None or len(operands) != 2:
        raise UnsupportedError(f"`{eqn.primitive.name}` of several arrays")
    parts = [
        graph.measured(each) if isinstance(each, Known) and each.axes is not None else each
        for each in operands
    ]
    nodes = [graph.node(each) if isinstance(each, Value) else each for each in parts]
    return Value(rule(graph, *(_as_node(graph, each) for each in nodes)), axes, shape)


def _masked(graph: Graph, eqn: Any, operands: Sequence[Any]) -> Node | None:
    """Scores of which a fixed mask leaves some, and puts what a softmax makes 0 in place of others."""
    values = [each for each in operands if isinstance(each, Value)]
    others = [each for each in operands if not isinstance(each, Value)]
    if len(values) != 1:
        return None
    (x,), name, shape = values, eqn.primitive.name, tuple(eqn.outvars[0].aval.shape)
    kept = None
    if name == "select_n" and len(others) == 2 and isinstance(others[0], Known) and operands[0] is others[0]:
        if not isinstance(others[1], Known) and others[1] < _MASKED:
            kept = np.asarray(others[0].array) == (operands[1] is not x)
    elif name == "add" and isinstance(others[0], Known):
        added = np.asarray(others[0].array)
        kept = added == 0 if ((added == 0) | (added < _MASKED)).all() else None
    if kept is None or x.shape != shape:
        return None
    node = graph.node(x)
    facts = {each: getattr(node, each) for each in ("through", "is_free", "is_gaussian", "queries")}
    kept = np.broadcast_to(kept, shape)
    kept = kept if node.kept is None else kept & node.kept
    return graph.add(lambda: node.stats, node.size, [(node, one)], kept=kept, **facts)


_MASKED = -1e4  # what is below is 0 after a softmax


def _note(eqn: Any, operands: Sequence[Any], values: Sequence[Value]) -> tuple[Any, ...]:
    """What is still known after a primitive; a sum over the batch becomes the mean."""
    note, name = values[0].note, eqn.primitive.name
    if len(values) > 1 or not note:
        return ()
    if note[0] == "batch":
        other = operands[1] if operands[0] is values[0] else operands[0]
        factor = {"div": 1 / other if other else 0, "mul": other}.get(name, 0) if len(operands) == 2 else 0
        return ("mean", note[1], note[3]) if abs(factor * note[2] - 1) < 1e-3 else ()
    return note if name in _PASSING else ()


def _is_square(eqn: Any, operands: Sequence[Any]) -> bool:
    name = eqn.primitive.name
    is_product = name == "mul" and all(isinstance(each, Value) for each in operands)
    return name == "square" or is_product or (name == "integer_pow" and eqn.params["y"] == 2)


_PASSING = frozenset({"max", "stop_gradient", "convert_element_type", "copy"})


def _number(operand: Any) -> Any:
    """A constant array that is the same number everywhere as that number."""
    if not isinstance(operand, Known) or operand.axes is not None:
        return operand
    flat = np.asarray(operand.array).reshape(-1)
    same = (
        flat.size and ((flat == flat[0]) | ((flat != flat) & (flat[0] != flat[0]))).all()
    )  # NaN is itself here
    return flat[0].item() if same else operand


def _as_node(graph: Graph, operand: Any) -> Node:
    if isinstance(operand, Node):
        return operand
    if isinstance(operand, Known):
        return _array_node(graph, np.asarray(operand.array, np.float64), operand.names)
    value = float(operand)
    return graph.add(lambda: graph.batch.constant(value), 1, is_constant=True)


def _array_node(graph: Graph, array: np.ndarray, names: frozenset[str]) -> Node:
    """An array that is the same for all inputs."""
    n, m = graph.batch.num_followed, graph.batch.ends.shape[1]
    mean, square = float(np.mean(array)), float(np.mean(array**2))
    stats = Stats(np.full(n, mean), np.full(n, square), np.full(m, square))
    return graph.add(lambda: stats, array.size, deps=frozenset(), through=names)


def are_independent(x: Node, y: Node) -> bool:
    """Whether a random array is a factor of all that is in one and does not appear in the other."""
    return bool(x.is_constant or y.is_constant or x.through - y.deps or y.through - x.deps)


def _check_independent(x: Node, y: Node, what: str) -> None:
    if not are_independent(x, y):
        raise UnsupportedError(f"{what} of arrays that share random weights")


def _add(graph: Graph, x: Node, y: Node) -> Node:
    return _sum(graph, x, y, 1.0)


def _sub(graph: Graph, x: Node, y: Node) -> Node:
    return _sum(graph, x, y, -1.0)


def _sum(graph: Graph, x: Node, y: Node, sign: float) -> Node:
    _check_independent(x, y, "the sum")

    def compute() -> Stats:
        a, b = x.stats, y.stats
        made.profile, made.pattern = _mixed_profile(x, y), _mixed_pattern(graph, x, y)
        return Stats(
            a.mean + sign * b.mean,
            a.second + b.second + 2 * sign * a.mean * b.mean,
            a.pairs + b.pairs + 2 * sign * graph.batch.products(a.mean, b.mean),
        )

    edges = [
        (x, Gain(one, lambda after: _before(after, x, y, sign))),
        (y, Gain(one, lambda after: _before(after, y, x, sign))),
    ]
    made = graph.add(compute, max(x.size, y.size), edges, is_sum=True, **_joint(x, y))
    if (x.law is None) != (y.law is None):  # of two such sums it is nearer to normal
        made.law = lambda: _sum_law(law(x), law(y), sign)
    return made


def _mixed_profile(x: Node, y: Node) -> Any:
    """That of a sum: of the larger part more."""
    if x.is_constant or y.is_constant or x.size != y.size:
        return _larger_profile(x, y)
    if x.profile is None or y.profile is None:
        known = x.profile or y.profile
        even = known and tuple(np.ones_like(along) for along in known)
        return known and _mean_profile(x, x.profile or even, y, y.profile or even)
    return _mean_profile(x, x.profile, y, y.profile)


def _before(after: Gradient, x: Node, y: Node, sign: float) -> Gradient:
    """The gradient of x in x + sign y."""
    profile = after.profile if x.size >= y.size else None
    return after._replace(law=before_sum(after, x, y, sign), profile=profile)


def _larger_profile(x: Node, y: Node) -> Any:
    """That of what the other one, a number or one a feature, scales or shifts."""
    if y.is_constant or y.size < x.size:
        return x.profile
    return y.profile if x.is_constant or x.size < y.size else None


def _larger(x: Node, y: Node) -> Node:
    return x if y.is_constant or y.size < x.size else y


def _mixed_pattern(graph: Graph, x: Node, y: Node) -> Any:
    """That of a sum: of what has more in common more."""
    if x.pattern is None and y.pattern is None:
        return None
    if x.is_constant or y.is_constant or x.size != y.size:
        return _larger(x, y).pattern
    a, b = (abs(float(np.mean(graph.batch.of_positions(each.stats.pairs)))) for each in (x, y))
    one, other = (1.0 if each.pattern is None else each.pattern for each in (x, y))
    return (a * one + b * other) / max(a + b, 1e-30)


def _mean_profile(x: Node, of_x: Any, y: Node, of_y: Any) -> Any:
    a, b = float(np.mean(x.stats.second)), float(np.mean(y.stats.second))
    if a + b <= 0:
        return of_x
    return tuple((a * one + b * other) / (a + b) for one, other in zip(of_x, of_y, strict=True))


def _sum_law(x: tuple[Any, Any], y: tuple[Any, Any], sign: float) -> tuple[Any, Any]:
    return x[0] + sign * y[0], x[1] + y[1]


def _scaled_law(x: Node, c: Any) -> Any:
    """Of x c with a number c for each input; None where x is normal."""
    if x.law is None:
        return None
    return lambda: tuple(each * c()[:, None] ** k for k, each in enumerate(law(x), 1))


def _mul(graph: Graph, x: Node, y: Node) -> Node:
    _check_independent(x, y, "the product")

    def compute() -> Stats:
        made.profile, made.pattern = _larger_profile(x, y), _larger(x, y).pattern
        return Stats(*(a * b for a, b in zip(x.stats, y.stats, strict=True)))

    edges = [(x, lambda: y.stats.second), (y, lambda: x.stats.second)]
    made = graph.add(compute, max(x.size, y.size), edges, **_joint(x, y))
    if x.is_constant != y.is_constant:
        one, other = (y, x) if x.is_constant else (x, y)
        made.law = _scaled_law(one, lambda: other.stats.mean)
    return made


def _div(graph: Graph, x: Node, y: Node) -> Node:
    if not y.is_constant:
        raise UnsupportedError("the quotient by an array that varies")

    def compute() -> Stats:
        mean, second, pairs = x.stats
        made.profile, made.pattern = x.profile, x.pattern
        c = 1 / y.stats.mean
        return Stats(mean * c, second * c**2, pairs * graph.batch.products(c))

    edges = [(x, lambda: 1 / y.stats.mean**2), (y, lambda: x.stats.second / y.stats.mean**4)]
    made = graph.add(compute, max(x.size, y.size), edges, **_joint(x, y))
    made.law = _scaled_law(x, lambda: 1 / y.stats.mean)
    return made


def _joint(x: Node, y: Node) -> dict[str, Any]:
    """The facts about what two arrays make together."""
    through = x.through | y.through if x.is_constant or y.is_constant else x.through & y.through
    varied = [each for each in (x, y) if not each.is_constant and each.deps] or [x, y]
    if len(varied) == 1:
        through = varied[0].through
    return {
        "through": through,
        "is_constant": x.is_constant and y.is_constant,
        "is_free": all(each.is_free for each in varied),
        "is_gaussian": all(each.is_gaussian for each in varied),
    }


def one() -> float:
    """What an array's gradient gains where it is handed on."""
    return 1.0


_PAIRED = {"add": _add, "sub": _sub, "mul": _mul, "div": _div, "add_any": _add}


def _cancelled(graph: Graph, eqn: Any, operands: Sequence[Any], axes: Axes) -> Value | None:
    """From x less its largest entry and x over its sum, the two steps of a softmax; x less its mean over the batch."""
    if len(operands) != 2 or not all(isinstance(each, Value) for each in operands):
        return None
    x, y = operands
    kind, *rest = y.note or ("",)
    if not rest or rest[0] != (x.node, x.formula.key):
        return None
    shape = tuple(eqn.outvars[0].aval.shape)
    if kind == "mean" and eqn.primitive.name == "sub":
        return Value(_batch_centred(graph, graph.node(x), *rest[1:]), axes, shape)
    if kind == "largest" and eqn.primitive.name == "sub":
        return Value(_without_common(graph, graph.node(x), over_positions=rest[1]), axes, shape)
    if kind == "sum" and eqn.primitive.name == "div":
        return Value(_shares(graph, x, *rest[1:]), axes, shape)
    return None


def _without_common(graph: Graph, x: Node, *, over_positions: bool) -> Node:
    """What differs between the entries of a row: a softmax does not see what they have in common."""

    def compute() -> Stats:
        mean, second, pairs = x.stats
        batch = graph.batch
        common = np.maximum(batch.of_positions(pairs), 0) if over_positions else mean**2
        left = np.maximum(second - common, 0)
        shared = batch.at_ends(common).mean(0)
        between = np.where(batch.at_ends(second).mean(0) > 0, pairs, 0)
        own = pairs - shared if over_positions else 0 * pairs
        return Stats(0 * mean, left, np.where(batch.is_own, own, between - np.minimum(shared, between)))

    return graph.add(
        compute, x.size, [(x, one)], through=x.through, is_free=True, queries=x.queries, kept=x.kept
    )


def _shares(graph: Graph, value: Value, count: int, kept: Any) -> Node:
    """Entries over their sum: their mean is 1 / n, and so is that of their products with the whole row.

    A mask leaves [row, entry] `kept`: rows are then averaged over.
    """
    x, batch = graph.node(value), graph.batch
    lengths, shares_of_rows = _row_lengths(kept, count)

    def found() -> Any:
        mean, second, _ = value.node.stats
        rows = [shares(value.formula, mean, second - mean**2, n) for n in lengths]
        return Shares(*(
            sum(w * n / count * each for w, n, each in zip(shares_of_rows, lengths, column, strict=True))
            for column in zip(*rows, strict=True)
        ))  # fmt: skip

    def alike() -> Any:
        """Products of two entries of a row, for each pair of positions, over their mean."""
        likenesses = batch.likenesses(x.stats.pairs)
        mean = np.maximum(likenesses.mean(0), 1e-300)
        return batch.of_own(1 + damping()[batch.own_inputs] * (likenesses / mean - 1), np.ones_like(mean))

    def damping() -> Any:
        """How much less the entries of a row vary for being divided by their sum."""
        mean, second, _ = x.stats
        return (count**2 * found().second - 1) / np.maximum(second / mean**2 - 1, 1e-12)

    def compute() -> Stats:
        second = found().second
        across = (1 / count - second[batch.own]) / max(count - 1, 1) * alike()
        longer = count * float(np.dot(shares_of_rows, 1 / np.asarray(lengths, float)))
        between = longer * x.stats.pairs * batch.products(1 / (count * x.stats.mean))
        pairs = np.where(batch.is_own, batch.padded(across), between)
        return Stats(np.full_like(second, 1 / count), second, pairs)

    def queries() -> Any:
        """E a_ij a_i'j for two rows i and i'."""
        mean, second, _ = value.node.stats
        variance = second - mean**2
        like = np.zeros_like(mean) if value.node.queries is None else np.clip(value.node.queries(), 0, 1)
        product = paired(
            value.formula, np.stack([mean] * 2), np.stack([variance] * 2), like * variance
        ).product
        ratio = 1 + damping() * (product / x.stats.mean**2 - 1)
        return _overlap(kept, count) * ratio / count**2

    def back(after: Gradient) -> Gradient:
        """To the array in the exponent, whose own gain from x is E x^2."""
        own, a = found(), made.stats
        gain = own.gain / x.stats.second
        # what x makes of two positions is of one row: of two rows it is this
        between = queries() / a.second * x.stats.second / batch.of_positions(x.stats.pairs)
        rows = None if after.rows is None else after.rows * a.pairs[batch.is_own] / a.second[batch.own]
        return Gradient(gain * after.second, gain * between * after.across, rows=rows)

    gain = Gain(lambda: found().gain / x.stats.second, back)
    made = graph.add(
        compute, x.size, [(x, gain)], through=x.through, is_free=True, queries=queries, kept=x.kept
    )
    return made


def _row_lengths(kept: Any, count: int) -> tuple[list[int], np.ndarray]:
    """(how many entries a mask leaves of a row, in what share of rows)."""
    if kept is None:
        return [count], np.ones(1)
    lengths, times = np.unique(kept.sum(-1), return_counts=True)
    times = times[lengths > 0]
    return [int(n) for n in lengths if n > 0], times / times.sum()


def _overlap(kept: Any, count: int) -> float:
    """N sum_j of 1 / (n_i n_i') over what a mask leaves in both of two rows, on average."""
    if kept is None:
        return 1.0
    rows = kept[: min(len(kept), count)].astype(float)
    rows = rows / np.maximum(rows.sum(-1, keepdims=True), 1)
    products = rows @ rows.T
    num = len(rows)
    return count * float(products.sum() - np.trace(products)) / max(num * (num - 1), 1)


def in_common(graph: Graph, node: Node, num_positions: float) -> float:
    """The mean square, over features, of the mean over inputs and positions."""
    batch, (_, second, pairs) = graph.batch, node.stats
    n, num = batch.num_inputs, batch.num_pairs
    own, between = float(np.mean(second)), float(np.mean(pairs[:num])) if num else 0.0
    if num_positions > 1:
        apart = float(np.mean(batch.apart(pairs)[:num])) if num else 0.0
        own = (own + (num_positions - 1) * float(np.mean(batch.likenesses(pairs)))) / num_positions
        between = (between + (num_positions - 1) * apart) / num_positions
    return (own + (n - 1) * between) / n


def _batch_centred(graph: Graph, x: Node, num_positions: float) -> Node:
    """What is left without the mean over the batch."""

    def compute() -> Stats:
        mean, second, pairs = x.stats
        common, lengths = in_common(graph, x, num_positions), np.sqrt(second)
        # K_i = mean over j of K_ij, as if the cosine were the same for all: longer inputs have more in common
        own = common * lengths / np.mean(lengths)
        left = np.maximum(second - 2 * own + common, 0)
        made.profile = x.profile
        return Stats(mean - float(np.mean(mean)), left, pairs - graph.batch.at_ends(own).sum(0) + common)

    made = graph.add(compute, x.size, [(x, one)], through=x.through, is_gaussian=x.is_gaussian)
    return made


def _square_of_mean(graph: Graph, x: Node) -> Node:
    """The square of the mean over a batch, as a number: what varies between features does so in E x^2 as well."""
    return graph.add(lambda: graph.batch.constant(x.stats.second), x.size, deps=x.deps, is_constant=True)
