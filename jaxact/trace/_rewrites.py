"""Formulas as people write them, in forms whose slopes intervals can bound and which do not overflow."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from jaxact.trace._expr import Expr, constant, unary

#: primitive -> what its operands may show it to be instead
_REWRITES: dict[str, list[Callable[..., Expr | None]]] = {}


def rewritten(primitive: str, *args: Expr) -> Expr | None:
    """What a primitive of formulas is by an identity of the table; None if by none."""
    found = (identity(*args) for identity in _REWRITES.get(primitive, ()))
    return next((expr for expr in found if expr is not None), None)


def _rewrites(*primitives: str) -> Callable[[Callable[..., Expr | None]], Callable[..., Expr | None]]:
    def entered(identity: Callable[..., Expr | None]) -> Callable[..., Expr | None]:
        for primitive in primitives:
            _REWRITES.setdefault(primitive, []).append(identity)
        return identity

    return entered


@_rewrites("sqrt")
def _as_hypot(u: Expr) -> Expr | None:
    """sqrt(k t^2 + c) = sqrt(c) hypot(1, t sqrt(k / c)): its slope is monotone, which intervals do not see."""
    for square, c in (u.args, u.args[::-1]) if u.op == "add" else ():
        k, square = _factored(square)
        is_square = square.op == "integer_pow" and square.param == 2
        if is_square and c.is_constant and isinstance(c.param, float) and min(k, c.param) > 0:
            return math.sqrt(c.param) * unary("hypot1", math.sqrt(k / c.param) * square.args[0])
    return None


@_rewrites("sqrt")
def _root_of_square(u: Expr) -> Expr | None:
    """sqrt(t^2) = |t|."""
    k, square = _factored(u)
    if square.op == "integer_pow" and square.param == 2 and k > 0:
        return math.sqrt(k) * unary("abs", square.args[0])
    return None


@_rewrites("rsqrt")
def _inverse_root(u: Expr) -> Expr | None:
    """1 / sqrt(u) where the root is known in another form."""
    found = rewritten("sqrt", u)
    return None if found is None else found**-1


@_rewrites("div")
def _as_shares(u: Expr, v: Expr) -> Expr | None:
    """A quotient r (p exp(s) + q exp(t)) / (k exp(s) + l exp(t)) by logistic functions of s - t."""
    found = _two_exponentials(v)
    if found is None:
        return None
    (k, s), (other, t), apart = found
    shares = {id(s): (unary("logistic", apart), k), id(t): (unary("logistic", -apart), other)}
    plain, terms = _split_factors(u)
    if terms and all(id(exponent) in shares for _, exponent in terms):
        parts = [factor / shares[id(each)][1] * shares[id(each)][0] for factor, each in terms]
        return plain * functools.reduce(Expr.__add__, parts)
    if len(terms) == 1 and terms[0][1] + terms[0][1] is s + t:  # exp((s + t) / 2) / (k exp(s) + l exp(t))
        return terms[0][0] / (2 * math.sqrt(k * other)) * (plain * unary("sech", 0.5 * apart))
    return None


@_rewrites("div")
def _as_logistic(u: Expr, v: Expr) -> Expr | None:
    """The quotient r m / (m + n) = r logistic(log m - log n) of sums of one or two exponentials m, n > 0."""
    plain, terms = _split_factors(u)
    below, above = _exponentials(v), {id(t): k for k, t in terms}
    if below is None or len(below) != 3 or min(k for k, _ in below) <= 0:
        return None
    parts = [[(k, t) for k, t in below if (id(t) in above) == inside] for inside in (True, False)]
    scales = [above[id(t)] / k for k, t in parts[0]]
    if len(parts[0]) != len(terms) or not all(parts) or max(scales) - min(scales) > 1e-15 * abs(scales[0]):
        return None
    m, n = (_log_of_sum(part) for part in parts)
    return scales[0] * (plain * unary("logistic", m - n))


def _log_of_sum(terms: list[tuple[float, Expr]]) -> Expr:
    """The log of k exp(s), or of k exp(s) + l exp(t), all factors positive."""
    (k, s), *rest = terms
    if not rest:
        return s + math.log(k)
    ((other, t),) = rest
    return t + math.log(other) + unary("softplus", s - t + (math.log(k) - math.log(other)))


@_rewrites("div")
def _as_remainder(u: Expr, v: Expr) -> Expr | None:
    """The quotient u / (k u + c) = (1 - c / (k u + c)) / k: one slope for two that all but cancel."""
    for term, c in (v.args, v.args[::-1]) if v.op == "add" else ():
        k, each = _factored(term)
        if c.is_constant and each is u and not u.affine and k != 0:
            return 1.0 / k * (-(c * v**-1) + 1.0)
    return None


@_rewrites("div")
def _as_sinc(u: Expr, v: Expr) -> Expr | None:
    """sin(t) / t, which is smooth at 0."""
    return unary("sinc", v) if u.op == "sin" and u.args[0] is v else None


@_rewrites("mul")
def _as_sinc_by_inverse(u: Expr, v: Expr) -> Expr | None:
    """sin(t) (k / t), which is smooth at 0."""
    for wave, other in ((u, v), (v, u)):
        k, inner = _factored(other)
        is_inverse = inner.op == "integer_pow" and inner.param == -1
        if is_inverse and wave.op == "sin" and wave.args[0] is inner.args[0]:
            return k * unary("sinc", wave.args[0])
    return None


@_rewrites("mul")
def _exp_times_share(u: Expr, v: Expr) -> Expr | None:
    """Of derivatives: exp(c - t) logistic(t) = exp(c) logistic(-t), sinh(t) sech(t) = tanh(t)."""
    for share, other in ((u, v), (v, u)):
        k, wave = _factored(other)
        if share.op == "logistic" and wave.op == "exp":
            c = wave.args[0] + share.args[0]
            if c.is_constant and isinstance(c.param, float):
                return k * math.exp(c.param) * unary("logistic", -share.args[0])
        if share.op == "sech" and wave.op == "sinh" and share.args[0] is wave.args[0]:
            return k * unary("tanh", share.args[0])
    return None


@_rewrites("mul")
def _as_double_angle(u: Expr, v: Expr) -> Expr | None:
    """sin(t) cos(t) = sin(2 t) / 2."""
    if {u.op, v.op} == {"sin", "cos"} and u.args[0] is v.args[0]:
        return 0.5 * unary("sin", 2.0 * u.args[0])
    return None


@_rewrites("add", "sub")
def _as_one_wave(u: Expr, v: Expr) -> Expr | None:
    """The wave a sin(t) + b cos(t) = hypot(a, b) sin(t + atan2(b, a)); a difference is asked with -v."""
    (a, first), (b, second) = _factored(u), _factored(v)
    if {first.op, second.op} != {"sin", "cos"} or first.args[0] is not second.args[0]:
        return None
    if first.op == "cos":
        a, b = b, a
    return math.hypot(a, b) * unary("sin", first.args[0] + math.atan2(b, a))


@_rewrites("exp")
def _exp_of_softplus(u: Expr) -> Expr | None:
    """exp(-softplus(t)) = logistic(-t), exp(t - softplus(t)) = logistic(t)."""
    for part, rest in (u.args, u.args[::-1]) if u.op == "add" else ((u, None),):
        k, inner = _factored(part)
        if k == -1 and inner.op == "softplus" and (rest is None or rest is inner.args[0]):
            return unary("logistic", -inner.args[0] if rest is None else rest)
    return None


@_rewrites("log")
def _as_softplus(u: Expr) -> Expr | None:
    """log(k exp(s) + l exp(t)) = t + log l + softplus(s - t + log(k / l))."""
    found = _two_exponentials(u)
    if found is None:
        return None
    (k, s), (other, t), apart = found
    if s.is_constant:  # the sum of two that all but cancel where the other is large
        return unary("softplus", -apart) + (s + math.log(k))
    return unary("softplus", apart) + (t + math.log(other))


@_rewrites("log1p")
def _as_softplus_of_1_and(u: Expr) -> Expr | None:
    """log1p(k exp(t)), k > 0."""
    terms = _exponentials(u)
    if terms is None or len(terms) != 1 or not 0 < terms[0][0] < math.inf:
        return None
    return unary("softplus", terms[0][1] + math.log(terms[0][0]))


@_rewrites("log")
def _log_of_logistic(u: Expr) -> Expr | None:
    """The identity log logistic(t) = -softplus(-t)."""
    return -unary("softplus", -u.args[0]) if u.op == "logistic" else None


@_rewrites("log")
def _log_of_cosh(u: Expr) -> Expr | None:
    """The identity log cosh(t) = softplus(2 t) - t - log 2."""
    if u.op != "cosh":
        return None
    (t,) = u.args
    return unary("softplus", 2.0 * t) + (-t + -math.log(2))


@_rewrites("log")
def _log_of_hypot(u: Expr) -> Expr | None:
    """log(t + hypot(1, t)) = asinh(t), whose sum cancels where t is negative."""
    for t, root in (u.args, u.args[::-1]) if u.op == "add" else ():
        if root.op == "hypot1" and root.args[0] is t:
            return unary("asinh", t)
    return None


@_rewrites("exp")
def _as_gumbel(u: Expr) -> Expr | None:
    """exp(-k exp(t)), k > 0: a product of a vanishing and an infinite factor where t is large."""
    terms = _exponentials(u) if u.op == "mul" else None
    if terms is None or len(terms) != 1 or not -math.inf < terms[0][0] < 0:
        return None
    return unary("gumbel", -(terms[0][1] + math.log(-terms[0][0])))


def _factored(u: Expr) -> tuple[float, Expr]:
    """(k, t) with u = k t, k a number."""
    if u.op == "mul" and u.args[0].is_constant and isinstance(u.args[0].param, float):
        return u.args[0].param, u.args[1]
    return 1.0, u


def _split_factors(u: Expr) -> tuple[Expr, list[tuple[float, Expr]]]:
    """Its factors that are no exponentials, r, and the terms (k, t) of the rest: u = r sum k exp(t)."""
    factors, plain, terms = [u], constant(1.0), [(1.0, constant(0.0))]
    while factors:
        each = factors.pop()
        found = _exponentials(each)
        if found is not None and len(found) * len(terms) <= 4:
            terms = _merged([(k * c, s + t) for k, s in terms for c, t in found])
        elif each.op == "mul":
            factors += each.args
        else:
            plain = plain * each
    return plain, terms


def _exponentials(u: Expr) -> list[tuple[float, Expr]] | None:
    """(k, t) of a sum of k exp(t), a constant being k exp(0); None if it is none."""
    k, u = _factored(u)
    if u.is_constant:
        return [(k * u.param, constant(0.0))] if isinstance(u.param, float) else None
    match u.op:
        case "exp":
            return [(k, u.args[0])]
        case "expm1":
            return _merged([(k, u.args[0]), (-k, constant(0.0))])
        case "cosh":
            return [(k / 2, u.args[0]), (k / 2, -u.args[0])]
        case "sinh":
            return [(k / 2, u.args[0]), (-k / 2, -u.args[0])]
        case "add" | "mul":
            parts = [_exponentials(arg) for arg in u.args]
            if None in parts:
                return None
            if u.op == "add":
                return _merged([(k * c, t) for part in parts for c, t in part or ()])
            first, second = parts
            if len(first or ()) * len(second or ()) <= 4:
                return _merged([(k * c * d, s + t) for c, s in first or () for d, t in second or ()])
        case "integer_pow" if u.param == 2:
            part = _exponentials(u.args[0])
            if part is not None and len(part) <= 2:
                return _merged([(k * c * d, s + t) for c, s in part for d, t in part])
    return None


def _merged(terms: list[tuple[float, Expr]]) -> list[tuple[float, Expr]]:
    """Terms with one exponent as one."""
    found: dict[int, tuple[float, Expr]] = {}
    for k, t in terms:
        found[id(t)] = (found.get(id(t), (0.0, t))[0] + k, t)
    return [(k, t) for k, t in found.values() if k != 0]


def _two_exponentials(u: Expr) -> tuple[tuple[float, Expr], tuple[float, Expr], Expr] | None:
    """Of k exp(s) + l exp(t), k and l positive: (k, s), (l, t), and s - t + log(k / l)."""
    terms = _exponentials(u)
    if terms is None or len(terms) != 2 or not all(0 < k < math.inf for k, _ in terms):
        return None
    (k, s), (other, t) = terms
    return terms[0], terms[1], (s - t) + (math.log(k) - math.log(other))
