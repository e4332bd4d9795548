"""Several functions of the same entries side by side, such as (relu(x), relu(-x)) and (sin(x), cos(x)): one step.

Where what is made of one entry is orthogonal to what is made of another, J^T J is diagonal: s^T G s for each entry,
with the slopes s of the functions and the Gram matrix G of their columns. So the constant is the root of its largest
value over one variable, which no product of separate bounds gives.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from jaxact.trace._compose import below, dense_operator, offset_of, roots_of
from jaxact.trace._expr import Expr, evaluate, line, nodes, num_entries, variable
from jaxact.trace._formula import compose
from jaxact.trace._graph import Graph
from jaxact.trace._jets import Key, key_of
from jaxact.trace._leaps import Formula, Known
from jaxact.trace._nodes import Node
from jaxact.trace._program import Reach
from jaxact.trace._slopes import LARGEST, slope_range, value_range
from jaxact.trace._stretch import Stretched, times_interval

_MOST = 4  # functions side by side
_MOST_UNLIKE = 4  # Gram matrices
_ROUNDS, _SPLIT = 12, 256  # of refinement, and panels that are cut in each
_SHARED = 8  # periods of the slowest wave within which all others repeat
_PIECES = 16  # that an interval is cut into


def side_by_side(graph: Graph, node: Node, leaves: Sequence[Node]) -> Known | None:
    """An affine map of functions of one node, entry by entry, and of that itself; None if it is none of those."""
    found = _strands(node, leaves)
    if found is None:
        return None
    x, exprs, C = found
    offset = offset_of(below(node, deep=True)) if node.is_affine else np.zeros(node.size)
    grams = _grams(C)
    unlike = () if grams is None else np.unique(grams, axis=0)
    if grams is None or len(unlike) > _MOST_UNLIKE:
        return None
    graph.has_choice = True
    if not graph.contract:
        return None

    def value(v: Any) -> Any:
        return sum(c @ evaluate(expr, v) for c, expr in zip(C, exprs, strict=True)) + offset

    def ends(lower: Any, upper: Any) -> tuple[Any, Any]:
        parts = [
            times_interval(c, *value_range(expr, lower, upper)) for c, expr in zip(C, exprs, strict=True)
        ]
        low, high = (sum(part[k] for part in parts) for k in (0, 1))
        slack = 1e-14 * (x.size + 8) * (np.abs(low) + np.abs(high) + np.abs(offset))
        return low + offset - slack, high + offset + slack

    def within(lower: Any, upper: Any, reach: Reach | None) -> float:
        share = np.arange(_PIECES + 1)[:, None] / _PIECES
        cuts = np.clip(lower + (upper - lower) * share, lower, upper)
        cuts[-1] = upper
        return _largest(exprs, grams, cuts[:-1], cuts[1:]).max(initial=0.0)

    keys = tuple(map(key_of, exprs))
    constant = max((_everywhere(keys, tuple(gram.ravel())) for gram in unlike), default=0.0)
    return Known(node.shape, x, Stretched("side by side", constant * (1 + 1e-11), value, ends, within))


def _strands(node: Node, leaves: Sequence[Node]) -> tuple[Node, list[Expr], list[np.ndarray]] | None:
    """The node x, functions of it, and what each is multiplied by [out, entry]."""
    formulas = [leaf for leaf in leaves if isinstance(leaf, Formula)]
    sources = {leaf.parents[0] for leaf in formulas} | {leaf for leaf in leaves if leaf not in formulas}
    exprs = [leaf.expr if isinstance(leaf, Formula) else variable() for leaf in leaves]
    is_wide = node.size * max(leaf.size for leaf in leaves) > 2**18 or len(leaves) > _MOST
    if not formulas or len(sources) != 1 or is_wide or any(num_entries(expr) is not None for expr in exprs):
        return None
    if node is leaves[0]:
        return _of_copies(formulas[0], np.eye(node.size))
    order = below(node, deep=True)
    C = [dense_operator(order, leaf) for leaf in leaves]
    return (sources.pop(), exprs, C) if len(leaves) > 1 else _of_copies(formulas[0], C[0])


def _of_copies(leaf: Formula, C: np.ndarray) -> tuple[Node, list[Expr], list[np.ndarray]] | None:
    """Of f(P x), each row of P taking one entry of x as a x + b, the functions f(a x + b) of each entry."""
    P = leaf.parents[0]
    roots = roots_of(P, 1) if P.is_affine else None
    if not roots or not P.size or P.size * (x := next(iter(roots))).size > 2**18:
        return None
    order = below(P, deep=True)
    A, b = dense_operator(order, x), offset_of(order)
    if (np.count_nonzero(A, 1) != 1).any() or P.size % x.size or P.size == x.size:
        return None
    entry = A.argmax(1) + (A.max(1) <= 0) * (np.abs(A).argmax(1) - A.argmax(1))
    scale = A[np.arange(P.size), entry]
    rows = np.lexsort((b, scale, entry)).reshape(x.size, -1)  # [entry, copy]
    if not (entry[rows] == np.arange(x.size)[:, None]).all() or rows.shape[1] > _MOST:
        return None
    if np.ptp(scale[rows], 0).any() or np.ptp(b[rows], 0).any():
        return None
    inner = [line(float(s), float(t)) for s, t in zip(scale[rows[0]], b[rows[0]], strict=True)]
    return x, [compose(leaf.expr, each) for each in inner], [C[:, column] for column in rows.T]


def _grams(C: Sequence[np.ndarray]) -> np.ndarray | None:
    """[entry, function, function]: products of the columns of each entry; None if entries mix."""
    columns = np.stack(C, 2).reshape(len(C[0]), -1)  # of an entry next to each other
    products = (columns.T @ columns).reshape(C[0].shape[1], len(C), C[0].shape[1], len(C))
    own = np.arange(C[0].shape[1])
    found = products[own, :, own, :].copy()
    products[own, :, own, :] = 0
    return None if products.any() else found


def _largest(
    exprs: Sequence[Expr], grams: np.ndarray, lower: np.ndarray, upper: np.ndarray, tolerance: float = 1e-6
) -> np.ndarray:
    """Of each panel the root of the largest s^T G s: convex in s, it is largest at a corner of the slopes' ranges."""
    ranges = [slope_range(expr, lower, upper, tolerance=tolerance) for expr in exprs]
    largest = np.zeros(lower.shape)
    with np.errstate(invalid="ignore"):
        for corner in itertools.product((0, 1), repeat=len(exprs)):
            s = np.stack([each[k] for each, k in zip(ranges, corner, strict=True)], -1)
            form = np.einsum("...i,...ij,...j->...", s, grams, s)
            largest = np.fmax(largest, np.where(np.isfinite(s).all(-1), form, np.inf))
    return np.sqrt(largest) * (1 + 1e-12)


@lru_cache(maxsize=256)
def _everywhere(keys: tuple[Key, ...], entries: tuple[float, ...]) -> float:
    exprs, gram = [key.expr for key in keys], np.reshape(entries, (len(keys), len(keys)))
    edges = _edges(exprs)
    lower, upper = edges[:-1], edges[1:]
    is_period = np.isfinite(edges).all()
    # Of a long line only the worst panels matter, at the end.
    tolerances = np.full(_ROUNDS + 1, 1e-6) if is_period else np.repeat([1e-2, 1e-6], [_ROUNDS - 3, 4])
    found = _largest(exprs, gram, lower, upper, tolerances[0])
    for tolerance in tolerances[1:]:
        worst = np.argsort(-found)[:_SPLIT]
        middle = lower[worst] / 2 + upper[worst] / 2
        can = np.isfinite(middle) & (middle > lower[worst]) & (middle < upper[worst])
        worst, middle = worst[can], middle[can]
        kept = np.delete(np.arange(found.size), worst)
        parts = np.concatenate([lower[worst], middle]), np.concatenate([middle, upper[worst]])
        lower, upper = (
            np.concatenate([end[kept], part]) for end, part in zip((lower, upper), parts, strict=True)
        )
        found = np.concatenate([found[kept], _largest(exprs, gram, *parts, tolerance)])
    return float(found.max(initial=0.0))


def _edges(exprs: Sequence[Expr]) -> np.ndarray:
    """Panels of the whole line, or of one period."""
    period = _period(exprs)
    if period is not None:
        return np.linspace(0, period * (1 + 1e-12), 2**14 + 1)
    octaves = 2.0 ** np.arange(3, 129)
    near = np.linspace(-8, 8, 513)
    return np.concatenate([[-np.inf, -LARGEST], -octaves[-2:0:-1], near, octaves[1:-1], [LARGEST, np.inf]])


def _period(exprs: Sequence[Expr]) -> float | None:
    """Of formulas that read x by sines and cosines alone, of frequencies in the ratio of small integers."""
    scales = set()
    for expr in exprs:
        waves = {
            id(node) for node in nodes(expr) if node.op in ("sin", "cos") and node.args[0].affine is not None
        }
        scales |= {abs(node.args[0].affine[0]) for node in nodes(expr) if id(node) in waves}
        stack = [expr]
        while stack:
            node = stack.pop()
            if id(node) in waves or node.is_constant:
                continue
            if not node.args:
                return None
            stack += node.args
    if not scales or not min(scales) > 0:
        return None
    ratios = [Fraction(scale) / Fraction(min(scales)) for scale in scales]  # exact, as floats are
    shared = math.lcm(*(ratio.denominator for ratio in ratios))
    return 2 * math.pi / min(scales) * shared if shared <= _SHARED else None
