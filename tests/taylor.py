"""Value and derivatives of an activation's `formula`, to any precision, without JAX and without the library's code.

A member's `formula` is Python text. It is evaluated on truncated Taylor series over mpmath numbers.
"""

import functools
import math
import re

import mpmath as mp


class Series:
    """f(a + t) = c0 + c1 t + c2 t^2 + c3 t^3 with mpmath coefficients."""

    def __init__(self, *c):
        self.c = c

    @staticmethod
    def of(x):
        return x if isinstance(x, Series) else Series(mp.mpf(x), *[mp.mpf(0)] * 3)

    def derivatives(self):
        return tuple(c * math.factorial(k) for k, c in enumerate(self.c))

    def chain(self, *g):
        """g(self), from the value and the first three derivatives of g at c0."""
        h, total = Series(mp.mpf(0), *self.c[1:]), Series.of(g[3] / 6)
        for k in (2, 1, 0):
            total = total * h + g[k] / math.factorial(k)
        return total

    def __add__(self, other):
        return Series(*(a + b for a, b in zip(self.c, Series.of(other).c, strict=True)))

    def __mul__(self, other):
        o = Series.of(other).c
        return Series(*(sum(self.c[i] * o[k - i] for i in range(k + 1)) for k in range(4)))

    def __truediv__(self, other):
        o, q = Series.of(other).c, []
        for k in range(4):
            q.append((self.c[k] - sum(q[i] * o[k - i] for i in range(k))) / o[0])
        return Series(*q)

    def __pow__(self, n):
        return functools.reduce(Series.__mul__, [self] * int(n))

    def __neg__(self):
        return self * -1

    def __sub__(self, other):
        return self + -Series.of(other)

    def __rsub__(self, other):
        return Series.of(other) - self

    def __rtruediv__(self, other):
        return Series.of(other) / self

    __radd__, __rmul__ = __add__, __mul__

    def __abs__(self):
        return self if self > 0 else -self

    def __lt__(self, other):
        return self.c[0] < Series.of(other).c[0]

    def __gt__(self, other):
        return self.c[0] > Series.of(other).c[0]

    def __ge__(self, other):
        return self.c[0] >= Series.of(other).c[0]


def elementary(derivatives):
    return lambda x: x.chain(*derivatives(x.c[0])) if isinstance(x, Series) else derivatives(x)[0]


@elementary
def tanh(a):
    if abs(a) > 1e6:  # cosh(exp(1e300)) fits nowhere
        return mp.sign(a), mp.mpf(0), mp.mpf(0), mp.mpf(0)
    t, s = mp.tanh(a), 1 / mp.cosh(a) ** 2
    return t, s, -2 * t * s, 4 * t * t * s - 2 * s * s


@elementary
def erf(a):
    g = 2 / mp.sqrt(mp.pi) * mp.exp(-a * a)
    return mp.erf(a), g, -2 * a * g, (4 * a * a - 2) * g


@elementary
def erfc(a):
    if abs(a) > 1e6:
        return 1 - mp.sign(a), mp.mpf(0), mp.mpf(0), mp.mpf(0)
    g = -2 / mp.sqrt(mp.pi) * mp.exp(-a * a)
    return mp.erfc(a), g, -2 * a * g, (4 * a * a - 2) * g


FUNCTIONS = {
    "mpf": mp.mpf,
    "pi": mp.pi,
    "tanh": tanh,
    "erf": erf,
    "erfc": erfc,
    "exp": elementary(lambda a: [mp.exp(a)] * 4),
    "expm1": elementary(lambda a: [mp.expm1(a)] + [mp.exp(a)] * 3),
    "log1p": elementary(lambda a: (mp.log1p(a), 1 / (1 + a), -((1 + a) ** -2), 2 * (1 + a) ** -3)),
    "sqrt": elementary(lambda a: (r := mp.sqrt(a), 1 / r / 2, -1 / r**3 / 4, 3 / r**5 / 8)),
    "sin": elementary(lambda a: (s := mp.sin(a), c := mp.cos(a), -s, -c)),
    "cos": elementary(lambda a: (c := mp.cos(a), s := -mp.sin(a), -c, -s)),
    "atan": elementary(lambda a: (mp.atan(a), q := 1 / (1 + a * a), -2 * a * q * q, (6 * a * a - 2) * q**3)),
    "asinh": elementary(
        lambda a: (mp.asinh(a), r := 1 / mp.sqrt(1 + a * a), -a * r**3, (2 * a * a - 1) * r**5)
    ),
}


@functools.cache
def compiled_formula(formula):
    # Decimal digits become mpmath numbers as written, not as the nearest float64.
    return compile(re.sub(r"(?<![\w.])(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", r"mpf('\1')", formula), formula, "eval")


@functools.cache
def reference(formula, x):
    """f, f', f'' and f''' at x, to at least 50 digits relative to each."""
    x = mp.mpf(x)
    # Formulas are written to be read: 1 + tanh(u) cancels like exp(-x^2), x + sqrt(x^2 + 4) like 1 / x^2.
    digits = 60 + int(min(x * x, 650)) + 2 * abs(int(mp.log10(abs(x)))) if x else 60
    with mp.workdps(digits):
        result = eval(compiled_formula(formula), FUNCTIONS, {"x": Series(x, mp.mpf(1), mp.mpf(0), mp.mpf(0))})
        return Series.of(result).derivatives()
