"""What each primitive does to the interval of a value and to a bound on its rounding; see `_execution`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
import scipy

Numbers: TypeAlias = np.ndarray | np.floating  # of a scalar numpy makes numbers
_ELEMENTARY = 16.0  # units in the last place of exp, tanh, erf and their like
_UP = 1 + 1e-9  # for the float64 arithmetic of the bounds themselves


class UncoveredError(Exception):
    """A part whose rounding is not bounded; its message names it."""


class Run(NamedTuple):
    """Exact values within [low, high], executed ones within `error` of them; of truths both ends and no error."""

    low: Numbers
    high: Numbers
    error: Numbers
    token: Any = None  # what it is, to be recognised by
    multiple: tuple[Any, float] | None = None  # the token of another variable, and what it is times that
    against: tuple[Any, float] | None = None  # of a truth: the token and the number that were compared

    def most(self) -> Numbers:
        """The largest |exact value|."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def reach(self) -> tuple[Numbers, Numbers]:
        """Where executed and exact values lie."""
        return self.low - self.error, self.high + self.error


def constant(value: Any) -> Run:
    array = np.asarray(value)
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise UncoveredError(f"a constant of dtype {array.dtype}")
    exact = np.asarray(array, np.float64)
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    rounded = _unit(array.dtype) * np.where(np.isfinite(exact), np.abs(exact), 0.0)
    return Run(exact, exact, rounded if is_float else np.zeros(exact.shape), object())


def _unit(dtype: Any) -> float:
    if not jnp.issubdtype(dtype, jnp.floating):
        return 0.0
    # In float64 the bounds themselves round as much as what they bound.
    return max(float(jnp.finfo(dtype).eps) / 2, 2.0**-50)


def _tiny(eqn: Any) -> float:
    """What may underflow, or be flushed to 0."""
    dtype = eqn.outvars[0].aval.dtype
    return 2 * float(jnp.finfo(dtype).tiny) if jnp.issubdtype(dtype, jnp.floating) else 0.0


def _wide(params: dict[str, Any]) -> dict[str, Any]:
    names = ("preferred_element_type", "new_dtype", "out_dtype")
    narrow = [name for name in names if name in params and params[name] is not None]
    return dict(params) | {
        name: np.dtype(np.float64) for name in narrow if jnp.issubdtype(params[name], jnp.floating)
    }


def _bind(eqn: Any, *operands: Numbers) -> Numbers:
    name = eqn.primitive.name
    if name == "mul":
        return operands[0] * operands[1]
    if name in ("reshape", "squeeze"):
        return np.reshape(operands[0], eqn.outvars[0].aval.shape)
    if name == "dot_general" and eqn.params["dimension_numbers"][1] == ((), ()):
        left, right = map(np.asarray, operands)
        return np.tensordot(left, right, axes=eqn.params["dimension_numbers"][0])
    result = eqn.primitive.bind(*map(jnp.asarray, operands), **_wide(eqn.params))
    return np.asarray(result[0] if eqn.primitive.multiple_results else result, np.float64)


def _rounded(eqn: Any, low: Numbers, high: Numbers, error: Numbers, ulps: float = 1.0) -> Run:
    """With the rounding of the result itself."""
    unit = _unit(eqn.outvars[0].aval.dtype) * ulps
    most = np.maximum(np.abs(low), np.abs(high)) + error
    return Run(low, high, (error + unit * most) * _UP + _tiny(eqn))


def _moved(eqn: Any, *runs: Run) -> Run:
    """Entries that change their places."""
    name = eqn.primitive.name
    if name in _JOINING:
        low, high, error = (_bind(eqn, *part) for part in zip(*(run[:3] for run in runs), strict=True))
        return Run(low, high, error)
    if any(np.any(run.error) for run in runs[1:]):
        raise UncoveredError(f"`{name}` by numbers")
    exact = [np.asarray(run.low, np.int64) if name in _INDEXED else run.low for run in runs[1:]]
    zero = [np.zeros_like(part) if name == "pad" else part for part in exact]
    return Run(
        _bind(eqn, runs[0].low, *exact), _bind(eqn, runs[0].high, *exact), _bind(eqn, runs[0].error, *zero)
    )


def _summed(eqn: Any, x: Run) -> Run:
    result = [_bind(eqn, part) for part in (x.low, x.high, x.error, x.most() + x.error)]
    n = max(x.low.size // max(result[0].size, 1), 1)
    if eqn.primitive.name == "reduce_window_sum":
        n = math.prod(eqn.params["window_dimensions"])
    return Run(result[0], result[1], (result[2] + _gamma(eqn, n) * result[3]) * _UP + n * _tiny(eqn))


def _gamma(eqn: Any, n: int) -> float:
    nu = (n + 2) * _unit(eqn.outvars[0].aval.dtype)
    if nu >= 0.5:
        raise UncoveredError(f"a sum of {n} terms in `{eqn.primitive.name}`")
    return nu / (1 - nu)


def _product(eqn: Any, x: Run, y: Run) -> Run:
    """A bilinear map: mul, dot_general and convolutions."""
    (xm, xr), (ym, yr) = (((run.low + run.high) / 2, (run.high - run.low) / 2) for run in (x, y))
    ax, ay = x.most(), y.most()
    middle = _bind(eqn, xm, ym)
    spread = (_bind(eqn, np.abs(xm), yr) + _bind(eqn, xr, np.abs(ym) + yr)) * _UP
    n = _num_products(eqn, x)
    carried = _bind(eqn, ax, y.error) + _bind(eqn, x.error, ay + y.error)
    size = _bind(eqn, ax + x.error, ay + y.error)
    return Run(middle - spread, middle + spread, (carried + _gamma(eqn, n) * size) * _UP + n * _tiny(eqn))


def _num_products(eqn: Any, x: Run) -> int:
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return math.prod(x.low.shape[axis] for axis in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        kernel, spec = eqn.invars[1].aval.shape, eqn.params["dimension_numbers"].rhs_spec
        return math.prod(kernel) // kernel[spec[0]]
    return 1


def _quotient(eqn: Any, x: Run, y: Run) -> Run:
    low, high = y.reach()
    if not ((low > 0) | (high < 0)).all():
        raise UncoveredError("`div` by what may vanish")
    least = np.minimum(np.abs(low), np.abs(high))
    corners = np.stack(np.broadcast_arrays(*(a / b for a in (x.low, x.high) for b in (y.low, y.high))))
    error = x.error / least + x.most() * y.error / least**2
    return _rounded(eqn, corners.min(0), corners.max(0), error, 2.0)


def _monotone(
    fn: Callable[..., Any], slope: Callable[..., Any], *, rises: bool = True, ulps: float = _ELEMENTARY
):
    """A rule of a monotone function, from the most that it rises by between two numbers."""

    def rule(eqn: Any, x: Run) -> Run:
        steep = np.asarray(slope(*x.reach()))
        # Where the argument is exact no slope is needed, at a root's 0 for instance.
        error = np.where(x.error > 0, steep * x.error, 0.0)
        ends = (fn(x.low), fn(x.high)) if rises else (fn(x.high), fn(x.low))
        if not (np.isfinite(error).all() and all(np.isfinite(end).all() for end in ends)):
            raise UncoveredError(f"`{eqn.primitive.name}` near the end of its domain")
        return _rounded(eqn, *ends, error, ulps)

    return rule


def _nearest(low: Numbers, high: Numbers) -> Numbers:
    return np.where((low > 0) | (high < 0), np.minimum(np.abs(low), np.abs(high)), 0.0)


def _power(eqn: Any, x: Run) -> Run:
    n = eqn.params.get("y", 2)
    if n < 1:
        raise UncoveredError(f"`integer_pow` by {n}")
    ends = np.stack([x.low**n, x.high**n])
    low = np.where((x.low < 0) & (x.high > 0) & (n % 2 == 0), 0.0, ends.min(0))
    steep = n * np.maximum(*map(np.abs, x.reach())) ** (n - 1)
    return _rounded(eqn, low, ends.max(0), steep * x.error, 2.0 * n)


def _absolute(eqn: Any, x: Run) -> Run:
    return Run(_nearest(x.low, x.high), x.most(), x.error)


def _wave(eqn: Any, x: Run) -> Run:
    one = np.ones_like(x.low)
    return _rounded(eqn, -one, one, x.error, _ELEMENTARY)


def _extreme(of: Callable[..., Any]) -> Callable[..., Run]:
    return lambda eqn, x, y: Run(of(x.low, y.low), of(x.high, y.high), np.maximum(x.error, y.error))


def _gathered_extreme(eqn: Any, x: Run) -> Run:
    error = Run(x.error, x.error, x.error)
    largest = _bind(eqn, error.low) if "max" in eqn.primitive.name else np.max(x.error, initial=0.0)
    return Run(_bind(eqn, x.low), _bind(eqn, x.high), np.maximum(largest, 0.0))


def _clamped(eqn: Any, low: Run, x: Run, high: Run) -> Run:
    least, most = (np.clip(end, low.low, high.low) for end in (x.low, x.high))
    return Run(least, most, np.maximum(np.maximum(x.error, low.error), high.error))


def _converted(eqn: Any, x: Run) -> Run:
    dtype = eqn.outvars[0].aval.dtype
    if jnp.issubdtype(dtype, jnp.floating):
        source = eqn.invars[0].aval.dtype
        narrows = not jnp.issubdtype(source, jnp.floating) or jnp.finfo(source).eps < jnp.finfo(dtype).eps
        return _rounded(eqn, x.low, x.high, x.error) if narrows else x
    if x.error.any() or (x.low != x.high).any():
        raise UncoveredError(f"a conversion to {dtype}")
    return x


def _comparison(of: Callable[..., Any], against: Callable[..., Any]) -> Callable[..., Run]:
    """(certainly true, possibly true) of executed and exact numbers alike."""

    def rule(eqn: Any, x: Run, y: Run) -> Run:
        (x_low, x_high), (y_low, y_high) = x.reach(), y.reach()
        certain, possible = (np.asarray(each, float) for each in against(of, x_low, x_high, y_low, y_high))
        return Run(certain, possible, np.zeros_like(certain))

    return rule


def _rising(of: Any, x_low: Any, x_high: Any, y_low: Any, y_high: Any) -> tuple[Any, Any]:
    return of(x_low, y_high), of(x_high, y_low)


def _falling(of: Any, x_low: Any, x_high: Any, y_low: Any, y_high: Any) -> tuple[Any, Any]:
    return of(x_high, y_low), of(x_low, y_high)


def selected(runs: list[Run]) -> Run:
    """The case of a truth; where rounding may turn it, either case and how far they are apart."""
    which, no, yes = runs
    is_open = np.broadcast_to(which.low != which.high, yes.low.shape)
    is_true = np.broadcast_to(which.low == 1, is_open.shape)
    low = np.where(is_open, np.minimum(no.low, yes.low), np.where(is_true, yes.low, no.low))
    high = np.where(is_open, np.maximum(no.high, yes.high), np.where(is_true, yes.high, no.high))
    error = np.where(is_open, np.maximum(no.error, yes.error), np.where(is_true, yes.error, no.error))
    if is_open.any():
        error = error + np.where(is_open, _apart(which, no, yes), 0.0)
    return Run(low, high, error * _UP)


def _apart(which: Run, no: Run, yes: Run) -> Numbers:
    """|a x - b x| = |a - b| |x| of cases that are multiples of x; where it turns x > 0, |x| is at most its error."""
    root, threshold = which.against or (None, math.nan)
    if threshold != 0:
        raise UncoveredError("`select_n` by what rounding may turn")
    factors = [_factor_of(root, case) for case in (no, yes)]
    # The error of a multiple is at least that of x times the factor.
    of_x = [run.error / abs(f) for f, run in zip(factors, (no, yes), strict=True) if f]
    return abs(factors[0] - factors[1]) * of_x[0] if of_x else np.zeros(no.low.shape)


def _factor_of(root: Any, case: Run) -> float:
    if (case.most() == 0).all():
        return 0.0
    of, factor = (root, 1.0) if case.token is root else (case.multiple or (None, 0.0))
    if of is not root:
        raise UncoveredError("`select_n` of cases that are no multiples of what is compared")
    return factor


_JOINING = ("concatenate", "stack")
_INDEXED = ("dynamic_slice", "gather")
_MOVING = (
    *("reshape", "broadcast_in_dim", "squeeze", "transpose", "slice", "rev", "copy", "copy_p", "expand_dims"),
    *("concatenate", "stack", "pad", "dynamic_slice", "gather", "stop_gradient"),
)
RULES: dict[str, Callable[..., Run]] = {
    **dict.fromkeys(_MOVING, _moved),
    **dict.fromkeys(("reduce_sum", "reduce_window_sum"), _summed),
    **dict.fromkeys(("mul", "dot_general", "conv_general_dilated"), _product),
    "add": lambda eqn, x, y: _rounded(eqn, x.low + y.low, x.high + y.high, x.error + y.error),
    "add_any": lambda eqn, x, y: _rounded(eqn, x.low + y.low, x.high + y.high, x.error + y.error),
    "sub": lambda eqn, x, y: _rounded(eqn, x.low - y.high, x.high - y.low, x.error + y.error),
    "neg": lambda eqn, x: Run(-x.high, -x.low, x.error),
    "div": _quotient,
    "max": _extreme(np.maximum),
    "min": _extreme(np.minimum),
    **dict.fromkeys(("reduce_max", "reduce_min", "reduce_window_max"), _gathered_extreme),
    "clamp": _clamped,
    "abs": _absolute,
    "sin": _wave,
    "cos": _wave,
    "square": _power,
    "integer_pow": _power,
    "convert_element_type": _converted,
    "gt": _comparison(np.greater, _rising),
    "ge": _comparison(np.greater_equal, _rising),
    "lt": _comparison(np.less, _falling),
    "le": _comparison(np.less_equal, _falling),
    "tanh": _monotone(np.tanh, lambda low, high: 1 / np.cosh(np.minimum(_nearest(low, high), 300.0)) ** 2),
    "logistic": _monotone(scipy.special.expit, lambda low, high: np.full(low.shape, 0.25)),
    "erf": _monotone(scipy.special.erf, lambda low, high: 1.13 * np.exp(-(_nearest(low, high) ** 2))),
    "erfc": _monotone(
        scipy.special.erfc, lambda low, high: 1.13 * np.exp(-(_nearest(low, high) ** 2)), rises=False
    ),
    "exp": _monotone(np.exp, lambda low, high: np.exp(high)),
    "expm1": _monotone(np.expm1, lambda low, high: np.exp(high)),
    "log": _monotone(np.log, lambda low, high: np.where(low > 0, 1 / low, np.inf)),
    "log1p": _monotone(np.log1p, lambda low, high: np.where(low > -1, 1 / (1 + low), np.inf)),
    "sqrt": _monotone(np.sqrt, lambda low, high: np.where(low > 0, 0.5 / np.sqrt(low), np.inf)),
    "rsqrt": _monotone(
        lambda x: 1 / np.sqrt(x), lambda low, high: np.where(low > 0, 0.5 * low**-1.5, np.inf), rises=False
    ),
}
