"""An activation from any elementwise function, its facts estimated numerically."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import inf

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxact.activations._activation import Activation, Interval
from jaxact.activations._registry import ZOO

# Looked at closely in [-_NEAR, _NEAR], in steps of 1/256 (shifted, so that round numbers fall inside a step);
# sparsely up to 1e6.
_NEAR = 32.0
_GRID = np.sort(
    np.concatenate(
        [
            np.arange(-_NEAR, _NEAR, 1 / 256) + 0.0012345,
            np.geomspace(_NEAR + 1, 1e6, 400),
            -np.geomspace(_NEAR + 1, 1e6, 400),
        ]
    )
)
_FAR = 10.0 ** np.arange(2, 7)


def from_callable(fn: Callable[[Array], Array], *, name: str) -> Activation:
    """Make an Activation of any elementwise JAX function, estimating its facts.

    The function is evaluated in float64 on 17,000 points of [-1e6, 1e6], dense in [-32, 32]. Where its slope
    or second derivative jumps, the place is bisected to machine precision; extremes are refined until they
    stand; limits at +-inf are extrapolated from 1e2, 1e3, ..., 1e6. Kinks, intervals, monotony, symmetry
    and minimum are **estimates**: a feature narrower than 1/256, or beyond 32, can be missed. The result
    has `exact=False`, and no bound computed from it is certified. Who knows the facts writes
    `Activation(name=..., fn=..., derivative=..., range=..., slope_range=..., ...)`.

    Args:
        fn: elementwise and differentiable by `jax.jvp` wherever it is smooth; finite on [-32, 32], and never
            NaN. Hashable; two Activations are equal only if they hold the same function.
        name: a name that is not taken by the zoo.

    Returns:
        The Activation. Its derivative is that of automatic differentiation; at a kink whatever that gives.
        An unbounded slope or a jump of f makes `lipschitz` inf.

    Raises:
        TypeError: if `fn` is not callable or not hashable.
        ValueError: if `name` is empty or taken; if `fn` cannot be traced, changes the shape, is not
            elementwise, or is not finite where it must be (the message says at which x).

    >>> from_callable(lambda x: jnp.maximum(x, 0.1 * x), name="mine")
    mine, |f'| <~ 1, kinks at 0, estimated
    """
    _check_name(name)
    _check_elementwise(fn)
    derivative = _Derivative(fn)
    with jax.enable_x64(True):
        value, slope, curvature = (_compiled(g) for g in (fn, derivative, _Derivative(derivative)))
        x, y, s = _GRID, value(_GRID), slope(_GRID)
        _check_finite("f", x, y)
        _check_finite("f'", x, s)
        steps = _jumps(value, 1e-6)
        kinks = _jumps(slope, 1e-5)
        breaks = _jumps(curvature, 1e-4)
        where_kinked = _places([*steps, *kinks])
        slopes = _extremes(slope, s, [g for jump in kinks for g in jump[2:]])
        for _, _, left, right in steps:
            slopes = Interval(slopes.lower, inf) if right > left else Interval(-inf, slopes.upper)
        ends = [end for jump in [*kinks, *steps] for end in jump[:2]]
        at_kinks = value(_padded([*ends, *where_kinked])).tolist() if ends else []
        values = _extremes(value, y, at_kinks)
        monotone = slopes.lower >= -1e-9 and _rises(y[np.isfinite(y)])
        near = np.linspace(-_NEAR, _NEAR, _GRID.size)
        return Activation(
            name=name,
            fn=fn,
            derivative=derivative,
            range=values,
            slope_range=slopes,
            kinks=where_kinked,
            breakpoints=_places([*steps, *kinks, *breaks]),
            monotone=monotone,
            odd=_agree(value(-near), -value(near)),
            homogeneous=_agree(value(2 * near), 2 * value(near)),
            argmin=None if monotone else _argmin(value, y, values.lower, where_kinked),
            exact=False,
            reference="estimated by from_callable",
        )


@dataclass(frozen=True)
class _Derivative:
    """The derivative of an elementwise function; equal for equal functions."""

    fn: Callable[[Array], Array]

    def __call__(self, x: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return jax.jvp(self.fn, (x,), (jnp.ones_like(x),))[1]


def _compiled(fn: Callable[[Array], Array]) -> Callable[[np.ndarray], np.ndarray]:
    run = jax.jit(fn)
    return lambda x: np.asarray(run(jnp.asarray(x, jnp.float64)), np.float64)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"`name` must be a non-empty string, got {name!r}.")
    if name.partition("(")[0].strip() in ZOO:
        raise ValueError(f"`name` must not be one of activations.names(), got {name!r}. Use another name.")


def _check_elementwise(fn: Callable[[Array], Array]) -> None:
    if not callable(fn):
        raise TypeError(f"`fn` must be a function of one array, got {type(fn).__name__}.")
    if not isinstance(fn, Hashable):
        raise TypeError(f"`fn` must be hashable, got a {type(fn).__name__}. Wrap it in a function.")
    try:
        result = jax.eval_shape(fn, jax.ShapeDtypeStruct((2, 3), jnp.float32))
    except Exception as error:  # the user's code may raise anything
        raise ValueError(
            f"`fn` must be a JAX function of one array, but tracing it raised {type(error).__name__}: "
            f"{error} Write it with jax.numpy, and branches with jnp.where."
        ) from error
    shape, dtype = getattr(result, "shape", None), getattr(result, "dtype", None)
    if shape != (2, 3) or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"`fn` must return a real array of the shape of its argument, got {result} for float32[2,3]."
        )
    x = jnp.linspace(-2.0, 2.0, 7)
    if not np.allclose(fn(x)[:3], fn(x[:3]), rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ValueError(
            "`fn` must be elementwise, but an entry of its result depends on the other entries "
            "(as in softmax or a normalisation)."
        )


def _check_finite(what: str, x: np.ndarray, y: np.ndarray) -> None:
    bad = np.isnan(y) | (~np.isfinite(y) & (np.abs(x) <= _NEAR))
    if bad.any():
        i = np.flatnonzero(bad)[np.argmin(np.abs(x[bad]))]
        raise ValueError(
            f"{what} must be finite on [-{_NEAR:g}, {_NEAR:g}] and never NaN, got {y[i]} at x = {x[i]:g}. "
            "Restrict the argument of the unsafe expression inside the jnp.where that selects it."
        )


def _jumps(g: Callable[[np.ndarray], np.ndarray], threshold: float) -> list[tuple[float, ...]]:
    """Bisect every step of the grid towards its larger change.

    Returns:
        (left, right, g(left), g(right)) of each jump, left and right next to each other.
    """
    with np.errstate(invalid="ignore"):
        left, right = _GRID[:-1].copy(), _GRID[1:].copy()
        g_left, g_right = g(left), g(right)
        for _ in range(52):
            middle = (left + right) / 2
            g_middle = g(middle)
            go_left = np.abs(g_middle - g_left) >= np.abs(g_right - g_middle)
            left, g_left = np.where(go_left, left, middle), np.where(go_left, g_left, g_middle)
            right, g_right = np.where(go_left, middle, right), np.where(go_left, g_middle, g_right)
        found = np.abs(g_right - g_left) > threshold * (1 + np.minimum(np.abs(g_left), np.abs(g_right)))
    return [
        tuple(map(float, jump))
        for jump in zip(*(v[found] for v in (left, right, g_left, g_right)), strict=True)
    ]


def _places(jumps: list[tuple[float, ...]]) -> tuple[float, ...]:
    """Ascending midpoints, those closer than 1e-9 merged, rounded to 9 decimals where that is as near."""
    places: list[float] = []
    for x in sorted((left + right) / 2 for left, right, *_ in jumps):
        x = round(x, 9) + 0.0 if abs(x - round(x, 9)) < 1e-9 else x
        if not places or x - places[-1] > 1e-9 * (1 + abs(x)):
            places.append(x)
    return tuple(places)


def _extremes(g: Callable[[np.ndarray], np.ndarray], y: np.ndarray, at_jumps: list[float]) -> Interval:
    lower = -_supremum(lambda x: -g(x), -y, [-v for v in at_jumps])
    return Interval(lower, _supremum(g, y, at_jumps))


def _supremum(g: Callable[[np.ndarray], np.ndarray], y: np.ndarray, at_jumps: list[float]) -> float:
    limits = [_limit(g, direction, float(y[np.abs(_GRID) <= 1e3].max())) for direction in (-1, 1)]
    return max(_refined(g, y, int(np.argmax(y)))[1], *at_jumps, *limits)


def _refined(g: Callable[[np.ndarray], np.ndarray], y: np.ndarray, i: int) -> tuple[float, float]:
    """Place and value of the largest g around _GRID[i]; inf if it grows without end."""
    x, best = float(_GRID[i]), float(y[i])
    width = float(max(_GRID[min(i + 1, _GRID.size - 1)] - x, x - _GRID[max(i - 1, 0)]))
    grown = 1.0
    for _ in range(8):
        points = np.clip(np.linspace(x - width, x + width, _GRID.size), _GRID[0], _GRID[-1])
        values = g(points)
        values = np.where(np.isnan(values), -inf, values)
        j = int(np.argmax(values))
        if values[j] > best:
            grown = values[j] / best if best > 0 else 1.0
            x, best = float(points[j]), float(values[j])
        else:
            grown = 1.0
        width /= 100
    return x, inf if grown > 1.5 else best


def _limit(g: Callable[[np.ndarray], np.ndarray], direction: int, near_maximum: float) -> float:
    """Limit of g from below as x -> direction * inf, inf where it grows, -inf where it tells nothing."""
    v = g(_padded(direction * _FAR))[: _FAR.size]
    if v[-1] == inf:
        return inf
    if not np.isfinite(v).all():
        return -inf
    before, last = v[-2] - v[-3], v[-1] - v[-2]
    if last <= 1e-12 * (1 + abs(v[-1])) or before <= 0:
        return -inf
    if last < 0.5 * before:  # Aitken's extrapolation of a geometric approach
        return float(v[-1] + last * last / (before - last))
    return inf if v[-1] > near_maximum + 1e-3 * (1 + abs(near_maximum)) else -inf


def _rises(y: np.ndarray) -> bool:
    return bool(np.all(np.diff(y) >= -1e-9 * (1 + np.abs(y[1:]))))


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.all(np.abs(a - b) <= 1e-9 * (1 + np.abs(a))))


def _argmin(
    g: Callable[[np.ndarray], np.ndarray], y: np.ndarray, lowest: float, kinks: tuple[float, ...]
) -> float | None:
    if min(y[0], y[-1]) <= lowest:  # a tail flat at the infimum, by underflow or by nature
        return None
    # Of equal minima the one nearest to 0: among the grid's nearly least values, and the kinks.
    low = np.flatnonzero(y <= y.min() + 1e-4 * (1 + abs(lowest)))
    nearest = min(max(int(low[np.argmin(np.abs(_GRID[low]))]), 1), _GRID.size - 2)
    while (step := int(np.argmin(y[nearest - 1 : nearest + 2])) - 1) and 1 < nearest < _GRID.size - 2:
        nearest += step
    candidates = [*kinks, *(_refined(lambda x: -g(x), -y, i)[0] for i in (nearest, int(np.argmin(y))))]
    values = g(_padded(candidates))
    attained = [
        x
        for x, v in zip(candidates, values, strict=False)
        if v <= lowest + 1e-9 * (1 + abs(lowest)) and abs(x) <= _NEAR
    ]
    return min(attained, key=abs, default=None)


def _padded(points: Sequence[float] | np.ndarray) -> np.ndarray:
    """Repeat the last point up to the size of the grid, so that every evaluation shares one compilation."""
    full = np.zeros(_GRID.size)
    count = min(len(points), full.size)
    if count:
        full[:count], full[count:] = points[:count], points[count - 1]
    return full
