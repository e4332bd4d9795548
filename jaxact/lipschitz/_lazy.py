"""Affine maps composed lazily, and the steps of a program that they and the nonlinearities become."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Float

from jaxact.errors import ArgumentError
from jaxact.lipschitz import _formula, _slopes
from jaxact.lipschitz._formula import Expr
from jaxact.lipschitz._operators import Dense, Diagonal, Identity, Linear
from jaxact.lipschitz._program import Affine, Contraction, Elementwise, Step

_WRITTEN = 2**24  # entries up to which a composed linear map becomes a matrix


class Lin:
    """An affine map of variables, known by what it is made of; a leaf is a variable of the program itself."""

    def __init__(
        self,
        shape: tuple[int, ...],
        parents: tuple[Lin, ...] = (),
        fn: Callable[..., Any] | None = None,
        *,
        coefficients: tuple[Any, ...] | None = None,
        host: Callable[..., Any] | None = None,
        origin: tuple[Lin, Expr] | None = None,
        kind: str = "op",
        data: Any = None,
        where: ArgumentError | None = None,
    ):
        self.shape = shape
        self.size = math.prod(shape)
        self.parents = parents
        self.fn = fn  # (mode, *arrays of the parents' shapes) -> array of this shape
        self.host = host  # the same by numpy, for k of them at once on a leading axis
        self.coefficients = coefficients  # one array or number a parent, if it works entry by entry
        self.origin = origin  # the map of which this is a formula, entry by entry
        self.kind = kind
        self.data = data
        self.where = where
        self.is_leaf = kind != "op"
        leaves = {leaf for parent in parents for leaf in parent.leaves}
        if len(leaves) > 1:  # where paths meet: otherwise every branch would stay in use to the end
            self.is_leaf = True
        self.leaves: frozenset[Lin] = frozenset([self]) if self.is_leaf else frozenset(leaves)

    def on_host(self, mode: str, *arrays: np.ndarray) -> np.ndarray:
        """Apply to arrays with a leading axis k, by numpy where that is known: jax would compile for each shape."""
        if self.host is not None:
            return self.host(mode, *arrays)
        assert self.fn is not None
        return np.asarray(jax.vmap(partial(self.fn, mode))(*arrays))

    def cut(self) -> None:
        """Make it a variable from now on."""
        self.is_leaf = True
        self.leaves = frozenset([self])


def below(lin: Lin) -> list[Lin]:
    """What a map is composed of down to the variables, operands first; the map itself last."""
    order: list[Lin] = []
    seen: set[Lin] = set()
    stack = [(lin, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            if node is lin or not node.is_leaf:
                stack.extend((parent, False) for parent in node.parents)
    return order


def needed_for(result: Lin) -> set[Lin]:
    needed: set[Lin] = set()
    stack = [result]
    while stack:
        lin = stack.pop()
        if lin in needed:
            continue
        needed.add(lin)
        stack.extend(node for node in below(lin)[:-1] if node.is_leaf)
    return needed


def ratio(one: Lin, other: Lin) -> float | None:
    """The number c with one = c other to rounding, both maps of the same variables however they were written."""
    if one is other:
        return 1.0
    if one.size != other.size or one.kind != "op" or other.kind != "op":
        return None
    orders = below(one), below(other)
    leaves, others = ({node for node in order[:-1] if node.is_leaf} for order in orders)
    if leaves != others or any(one.size * leaf.size > _WRITTEN // 4 for leaf in leaves):
        return None
    steps = [affine_step(lin, 0, dict.fromkeys(leaves, 0)) for lin in (one, other)]
    parts = [[np.zeros(one.size) if step.offset is None else step.offset] for step in steps]
    for found, order in zip(parts, orders, strict=True):
        found += [_columns(order, leaf).ravel() for leaf in leaves]
    a, b = map(np.concatenate, parts)
    c = float(np.vdot(a, b) / max(np.vdot(b, b), 1e-300))
    return c if np.abs(a - c * b).max() <= 2e-15 * np.abs(a).max() else None


def affine_step(lin: Lin, out: int, numbers: dict[Lin, int]) -> Affine:
    order = below(lin)
    sources = [node for node in order[:-1] if node.is_leaf]
    operators = [(numbers[source], _operator(order, source)) for source in sources]
    # A variable may cancel, such as the maximum that softmax subtracts.
    terms = tuple(term for term in operators if not _is_zero(term[1])) or tuple(operators[:1])
    values: dict[Lin, Any] = {}
    for node in order:
        if node.is_leaf and node is not lin:
            values[node] = np.zeros(node.shape)
        else:
            arrays = (values[parent].reshape(1, *parent.shape) for parent in node.parents)
            with np.errstate(all="ignore"):  # weights that are not finite are refused by the engine
                values[node] = node.on_host("affine", *arrays)
    offset = np.asarray(values[lin], np.float64).reshape(-1)
    return Affine(out, terms, lin.size, offset if offset.any() else None)


def used(steps: list[Step], output: int) -> tuple[Step, ...]:
    """Without what turned out to cancel."""
    needed, kept = {output}, []
    for step in reversed(steps):
        if step.out in needed:
            kept.append(step)
            needed.update(step.sources, getattr(step, "reads", ()))
    return tuple(reversed(kept))


def _is_zero(operator: Any) -> bool:
    return isinstance(operator, Diagonal) and not operator.d.any()


def _operator(order: list[Lin], source: Lin) -> Any:
    """The derivative d lin / d source as an operator."""
    lin = order[-1]
    diagonal = _diagonal(order, source)
    if diagonal is not None:
        if np.ndim(diagonal) == 0:
            diagonal = np.full(source.size, float(diagonal))
        return Identity(source.size) if (diagonal == 1).all() else Diagonal(np.asarray(diagonal, np.float64))
    shape = (lin.size, source.size)

    def product(mode: str) -> Callable[[Any], Any]:
        return lambda v: _pushed(order, source, v, mode)

    forward = product("linear")
    widest = max(node.size for node in order)
    if lin.size * source.size <= _WRITTEN and widest * source.size <= 4 * _WRITTEN:
        return Dense(np.ascontiguousarray(_columns(order, source).T))
    backward = jax.linear_transpose(forward, jax.ShapeDtypeStruct((source.size,), np.float64))
    if lin.size * source.size <= _WRITTEN:
        return Dense(np.asarray(jax.vmap(lambda u: backward(u)[0])(np.eye(lin.size))))
    absolute = product("absolute")

    def norm_bound() -> float:
        with jax.enable_x64(True):
            back = jax.linear_transpose(absolute, jax.ShapeDtypeStruct((source.size,), np.float64))
            rows = float(jnp.max(absolute(jnp.ones(source.size))))
            columns = float(jnp.max(back(jnp.ones(lin.size))[0]))
        return math.sqrt(rows * columns) * (1 + 1e-12)

    return Linear(forward, lambda u: backward(u)[0], shape, norm_bound, absolute)


def _carried(order: list[Lin], source: Lin, start: Any, step: Callable[[Lin, dict[Lin, Any]], Any]) -> Any:
    """What `step` makes of a node and of what was found for its parents, from the source on, at the last node."""
    found = {source: start}
    for node in order:
        if node is source or (node.is_leaf and node is not order[-1]):
            continue
        if any(parent in found for parent in node.parents):
            found[node] = step(node, found)
    return found[order[-1]]


def _diagonal(order: list[Lin], source: Lin) -> Any:
    """The diagonal of d lin / d source if every step between works entry by entry, else None."""

    def scaled(node: Lin, found: dict[Lin, Any]) -> Any:
        if node.coefficients is None or any(found.get(parent, 0) is None for parent in node.parents):
            return None
        pairs = zip(node.coefficients, node.parents, strict=True)
        return sum(np.asarray(c) * found[parent] for c, parent in pairs if parent in found)

    return _carried(order, source, 1.0, scaled)


def _pushed(order: list[Lin], source: Lin, v: Any, mode: str) -> Any:
    def applied(node: Lin, found: dict[Lin, Any]) -> Any:
        assert node.fn is not None
        arrays = (found.get(parent, jnp.zeros(parent.shape)) for parent in node.parents)
        return node.fn(mode, *map(jnp.reshape, arrays, (parent.shape for parent in node.parents)))

    return _carried(order, source, jnp.reshape(v, source.shape), applied).reshape(-1)


def _columns(order: list[Lin], source: Lin) -> Float[np.ndarray, "in out"]:
    """The transpose of d lin / d source."""
    k = source.size

    def applied(node: Lin, found: dict[Lin, Any]) -> Any:
        shapes = [(k, *parent.shape) for parent in node.parents]
        arrays = (
            found[p].reshape(s) if p in found else np.zeros(s)
            for p, s in zip(node.parents, shapes, strict=True)
        )
        return node.on_host("linear", *arrays)

    columns = _carried(order, source, np.eye(k).reshape(k, *source.shape), applied)
    return np.asarray(columns, np.float64).reshape(k, order[-1].size)


def elementwise_step(lin: Lin, out: int, numbers: dict[Lin, int]) -> Elementwise:
    expr, source = lin.data, numbers[lin.parents[0]]

    def slopes(intervals: Any) -> Any:
        lower, upper = intervals[source]
        whole = _slopes.slope_range(expr)
        found = _slopes.slope_range(expr, lower, upper)
        return np.maximum(whole.lower, found.lower), np.minimum(whole.upper, found.upper)

    return Elementwise(
        out,
        source,
        slopes,
        lin.size,
        value=lambda values: _formula.evaluate(expr, values[source]),
        range=lambda intervals: _slopes.value_range(expr, *intervals[source]),
    )


def contraction_step(lin: Lin, out: int, numbers: dict[Lin, int]) -> Contraction:
    source, known = numbers[lin.parents[0]], lin.data
    return Contraction(
        out,
        source,
        lin.size,
        constant=lambda intervals: known.constant,
        value=lambda values: known.value(values[source]),
        range=lambda intervals: known.range(*intervals[source]),
    )


def softmax_step(lin: Lin, out: int, numbers: dict[Lin, int]) -> Elementwise:
    positions = lin.data
    x = numbers[lin.parents[-1]]

    def slopes(intervals: Any) -> Any:
        return softmax_range(positions, *intervals[x])

    if lin.kind == "softmax":
        source = numbers[lin.parents[0]]
        return Elementwise(
            out,
            source,
            slopes,
            lin.size,
            value=lambda values: np.exp(values[source]),
            range=slopes,
            reads=(x,),
        )

    def of_sums(sums: np.ndarray) -> np.ndarray:
        spread = np.zeros(lin.size)  # the first of each sum stands for all
        spread[positions[:, 0]] = sums
        return spread

    def bounds(intervals: Any) -> Any:
        lower, upper = (scipy.special.logsumexp(end[positions], axis=1) for end in intervals[x])
        slack = 1e-15 * (positions.shape[1] + 16)
        lower, upper = lower - slack * (1 + np.abs(lower)), upper + slack * (1 + np.abs(upper))
        lower, upper = np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper)
        return of_sums(lower), of_sums(upper)

    return Elementwise(
        out,
        x,
        slopes,
        lin.size,
        value=lambda values: of_sums(scipy.special.logsumexp(values[x][positions], axis=1)),
        range=bounds,
        is_function=False,
    )


def softmax_range(
    positions: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """1 / (1 + sum_{j != i} exp(x_j - x_i)) is largest where x_i is and the others are least."""
    low, high = lower[positions], upper[positions]
    least, most = np.zeros(lower.size), np.ones(lower.size)
    slack = 1e-15 * (positions.shape[1] + 16)
    with np.errstate(over="ignore", invalid="ignore"):
        for i in range(positions.shape[1]):
            others = np.arange(positions.shape[1]) != i
            above = np.exp(high[:, others] - low[:, i : i + 1]).sum(1)
            least_others = np.exp(low[:, others] - high[:, i : i + 1]).sum(1)
            # exp rounds its argument as well: relatively by the argument's size
            size = 1e-15 * np.abs(np.where(np.isfinite(high - low), high, 0)).max(1, initial=0.0)
            is_masked = np.isneginf(high[:, i]) & np.isfinite(low[:, others]).any(1)
            least[positions[:, i]] = (1 - slack - size) / (1 + above)
            most[positions[:, i]] = np.where(is_masked, 0.0, (1 + slack + size) / (1 + least_others))
    least = np.where(np.isnan(least), 0.0, np.clip(least, 0, 1))
    return least, np.where(np.isnan(most), 1.0, np.clip(most, least, 1))


def product_steps(lin: Lin, fresh: Iterable[int], numbers: dict[Lin, int]) -> tuple[list[Step], int]:
    x, y = (numbers[parent] for parent in lin.parents)
    p, q, out = itertools.islice(fresh, 3)
    size, zero = lin.size, np.zeros(lin.size)

    def range_of(intervals: Any) -> Any:
        (a, b), (c, d) = intervals[x], intervals[y]
        with np.errstate(invalid="ignore", over="ignore"):
            products = np.stack([a * c, a * d, b * c, b * d])
        lower, upper = products.min(0), products.max(0)
        unknown = np.isnan(products).any(0)
        lower, upper = np.where(unknown, -np.inf, lower), np.where(unknown, np.inf, upper)
        return np.nextafter(lower, -np.inf), np.nextafter(upper, np.inf)

    first = Elementwise(
        p,
        x,
        lambda intervals: intervals[y],
        size,
        value=lambda values: values[x] * values[y],
        range=range_of,
        is_function=False,
        reads=(y,),
    )
    second = Elementwise(
        q,
        y,
        lambda intervals: intervals[x],
        size,
        value=lambda values: zero,
        range=lambda intervals: (zero, zero),
        is_function=False,
        reads=(x,),
    )
    return [first, second, Affine(out, ((p, Identity(size)), (q, Identity(size))), size)], out
