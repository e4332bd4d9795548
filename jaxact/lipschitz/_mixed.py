"""Operator norms between l1, l2 and l-infinity of many matrices at once, and what one says of another."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from jaxact.lipschitz._enclosure import Quotients
from jaxact.lipschitz._interval import rounding
from jaxact.lipschitz._rounding import UNIT

Order: TypeAlias = int | float  # 1, 2 or math.inf
_MOST_SIGNS = 10  # entries whose 2^(n - 1) signs are tried for norms that are hard to find


def orders(norm: object) -> tuple[Order, Order]:
    """(p, q) of an argument `norm`: the norms of inputs and of outputs.

    Raises:
        ValueError: it is neither 1, 2, inf nor a pair of these.
    """
    pair = tuple(norm) if isinstance(norm, tuple | list) else (norm, norm)
    known = (1, 2, math.inf)
    if len(pair) != 2 or any(isinstance(p, bool) or p not in known for p in pair):
        raise ValueError(
            f"`norm` must be 1, 2, inf or a pair (of inputs, of outputs) of these, got {norm!r}. "
            "Bounds in other norms follow from norm equivalence."
        )
    p, q = (next(each for each in known if each == given) for given in pair)
    return p, q


def largest(J: Quotients, p: Order, q: Order) -> Float[np.ndarray, " box"]:
    """Bound ||M||_{p -> q} = max_x |M x|_q / |x|_p from above for all |M - middle| <= radius, of each box.

    The longest column in q for p = 1, the longest row in the dual of p for q = inf, which intervals attain; else
    ||middle|| + ||radius||, with ||middle|| proved (2, 2), or over the signs of the side with the fewer of up to 10
    entries (Rohn 2000, Computing the norm ||A||_{inf,1} is NP-hard), and bounded by l2 beyond.
    """
    if p == 1:
        return np.max(_lengths(J.most(), q, axis=0), axis=1, initial=0.0)
    if q == math.inf:
        return np.max(_lengths(J.most(), _dual(p), axis=2), axis=0, initial=0.0)
    middle, radius = (part.transpose(1, 0, 2) for part in J)
    most = _of_nonnegative(radius, p, q)
    return (_of(middle, p, q) + most) * (1 + 4 * UNIT)


def least(J: Quotients, p: Order, q: Order) -> Float[np.ndarray, " box"]:
    """Bound ||M||_{p -> q} from below for all of these: what vectors stretch the middle by, without ||radius||."""
    middle, radius = (part.transpose(1, 0, 2) for part in J)
    slack = _of_nonnegative(radius, p, q) * (1 + 1e-14)
    return np.maximum(_attained(middle, p, q) * (1 - 1e-13) - slack, 0.0)


def equivalence(size_in: int, size_out: int, p: Order, q: Order) -> float:
    """The c of ||M||_{p -> q} <= c ||M||_2."""
    wide = size_in ** max(0.5 - 1 / p, 0.0)
    tall = size_out ** max(1 / q - 0.5, 0.0)
    return wide * tall * (1 if wide * tall == 1 else 1 + 8 * UNIT)


def _dual(p: Order) -> Order:
    return math.inf if p == 1 else 2 if p == 2 else 1


def _lengths(A: np.ndarray, q: Order, axis: int) -> np.ndarray:
    """Norms of vectors of nonnegative entries along an axis, rounded up."""
    if q == math.inf:
        return A.max(axis, initial=0.0)
    n = A.shape[axis]
    total = A.sum(axis) if q == 1 else np.sqrt(np.square(A).sum(axis)) + 1e-160  # what underflows
    return total * (1 + 2 * rounding(n))


def _of_nonnegative(R: np.ndarray, p: Order, q: Order) -> np.ndarray:
    """||R||_{p -> q} of R >= 0 [box, out, in]: sums for p = inf; by Frobenius and by sqrt(||R||_1 ||R||_inf) for 2."""
    rows, columns = _lengths(R, 1, axis=2), _lengths(R, 1, axis=1)
    if p == math.inf:
        return _lengths(rows, q, axis=1)
    if q == 1 and p == 2:  # max over x of the sum over j of column_j x_j
        return _lengths(columns, 2, axis=1)
    if p == 1 or q == math.inf:
        return (
            _lengths(_lengths(R, q, axis=1), math.inf, axis=1)
            if p == 1
            else _lengths(_lengths(R, _dual(p), axis=2), math.inf, axis=1)
        )
    frobenius = np.sqrt(np.square(R).sum((1, 2))) * (1 + 2 * rounding(R.shape[1] * R.shape[2])) + 1e-160
    schur = np.sqrt(rows.max(1, initial=0.0) * columns.max(1, initial=0.0)) * (1 + 4 * UNIT) + 1e-160
    return np.where(R.any((1, 2)), np.minimum(frobenius, schur), 0.0)


def _of(A: np.ndarray, p: Order, q: Order) -> np.ndarray:
    """||A||_{p -> q} of [box, out, in], not less, for the pairs without a closed form and (2, 2)."""
    if (p, q) == (2, 2):
        return spectral(A)
    if p == 2:  # (2, 1) is the transpose's (inf, 2)
        return _of(A.transpose(0, 2, 1), math.inf, 2)
    if q == 1 and A.shape[1] < A.shape[2]:  # (inf, 1) is its transpose's
        return _of(A.transpose(0, 2, 1), p, q)
    n = A.shape[2]
    if n <= _MOST_SIGNS:
        g = rounding(n)
        products = np.abs(A @ _signs(n)) + g * np.abs(A).sum(2, keepdims=True) * (1 + g)
        return _lengths(products, q, axis=1).max(1, initial=0.0)
    by_rows = _of_nonnegative(np.abs(A), p, q)
    return np.minimum(by_rows, spectral(A) * equivalence(n, A.shape[1], p, q))


def _attained(A: np.ndarray, p: Order, q: Order) -> np.ndarray:
    """What is attained of ||A||_{p -> q}, up to rounding; all of it but for many signs."""
    if p == 1:
        return np.linalg.norm(A, q, axis=1).max(1, initial=0.0)
    if q == math.inf:
        return np.linalg.norm(A, _dual(p), axis=2).max(1, initial=0.0)
    if (p, q) == (2, 2):
        return np.linalg.norm(A, 2, axis=(1, 2))
    if p == 2:
        return _attained(A.transpose(0, 2, 1), math.inf, 2)
    if q == 1 and A.shape[1] < A.shape[2]:
        return _attained(A.transpose(0, 2, 1), p, q)
    n = A.shape[2]
    signs = _signs(n) if n <= _MOST_SIGNS else np.sign(A).transpose(0, 2, 1)
    return np.linalg.norm(A @ signs, q, axis=1).max(1, initial=0.0)


def _signs(n: int) -> np.ndarray:
    """All vectors of signs up to their own, [n, 2^(n - 1)]."""
    bits = np.arange(2 ** (n - 1))[None, :] >> np.arange(n)[:, None]
    return 1.0 - 2.0 * (bits & 1)


def spectral(A: Float[np.ndarray, "box out in"]) -> Float[np.ndarray, " box"]:
    """Bound ||A||_2 from above, within rounding of it.

    With G ~ V L V^T of the smaller Gram matrix, whatever V and L are, ||G|| <= max|L| (1 + ||V^T V - I||_F) +
    ||G - V L V^T||_F, all computed with their rounding.
    """
    A = A if A.shape[1] <= A.shape[2] else A.transpose(0, 2, 1)
    m, n = A.shape[1:]
    scale = np.abs(A).max((1, 2), initial=0.0)
    scale = np.where(scale > 0, 2.0 ** np.ceil(np.log2(np.where(scale > 0, scale, 1.0))), 1.0)
    A = A / scale[:, None, None]
    g, trace = rounding(n + 2 * m), np.square(A).sum((1, 2))
    if m <= 1:
        return np.sqrt(trace) * (1 + 2 * g) * scale
    G = A @ A.transpose(0, 2, 1)
    L, V = np.linalg.eigh(G)
    left, right = V * L[:, None, :], V.transpose(0, 2, 1)
    residual = np.linalg.norm(G - left @ right, axis=(1, 2)) * (1 + g * m)
    skew = np.linalg.norm(right @ V - np.eye(m), axis=(1, 2)) * (1 + g * m) + 2 * g * m
    top = np.abs(L).max(1)
    # Entry by entry the two products are off by g |A||A^T| and g |V||L||V^T|, in norm by at most g times the traces.
    slack = 2 * g * (trace + m * top * (1 + skew))
    return np.sqrt(top * (1 + skew) + residual + slack) * (1 + 8 * UNIT) * scale
