"""Elementwise formulas of one variable, as they were traced, and what they make of Gaussian variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxact.trace import bind_equation

_REACH, _NUM_NODES, _NUM_PAIR_NODES = 7.0, 1024, 64
_SUP = np.linspace(-12, 12, 4801)  # where the largest slope is looked for
Vector: TypeAlias = np.ndarray  # of inputs, or atoms of them


@dataclass(frozen=True, eq=False)
class Formula:
    """An equation of formulas and numbers; `eqn` is None for the variable itself.

    Attributes:
        eqn: of the jaxpr that it was traced from.
        args: its operands.
        key: equal for equal formulas.
        is_affine: a x + b, as far as is known.
    """

    eqn: Any
    args: tuple[Any, ...]
    key: int
    is_affine: bool
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __hash__(self) -> int:
        return self.key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Formula) and other.key == self.key

    def __call__(self, x: Float[Array, "*shape"]) -> Array:
        """Its values, in the dtype that its primitives give."""
        return _evaluated(self, x, {})


_KEYS: dict[Any, int] = {}


def _key(parts: Any) -> int:
    return _KEYS.setdefault(parts, len(_KEYS))


VARIABLE = Formula(None, (), _key("x"), True)
_NEUTRAL = {("add", 0.0), ("sub", 0.0), ("mul", 1.0), ("div", 1.0)}
_SAME = frozenset({"convert_element_type", "copy", "copy_p", "reduce_precision", "optimization_barrier"})
_AFFINE = frozenset({"add", "sub", "neg"})


def apply(eqn: Any, args: Sequence[Any]) -> Formula:
    """A primitive of formulas of one variable and numbers."""
    name = eqn.primitive.name
    if name in _SAME and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        return args[0]
    if len(args) == 2 and not isinstance(args[1], Formula) and (name, float(args[1])) in _NEUTRAL:
        return args[0]
    commutes = len(args) == 2 and not isinstance(args[0], Formula) and name in ("add", "mul")
    if commutes and (name, float(args[0])) in _NEUTRAL:
        return args[1]
    signs = tuple(each.key if isinstance(each, Formula) else ("c", float(each)) for each in args)
    key = _key((name, tuple(sorted((k, str(v)) for k, v in eqn.params.items())), signs))
    return Formula(eqn, tuple(args), key, _is_affine(name, args))


def _is_affine(name: str, args: Sequence[Any]) -> bool:
    formulas = [each for each in args if isinstance(each, Formula)]
    scales = name in ("mul", "div") and len(formulas) == 1 and isinstance(args[0], Formula)
    scales |= name == "mul" and len(formulas) == 1
    return (name in _AFFINE or scales) and all(each.is_affine for each in formulas)


def _evaluated(formula: Formula, x: Any, done: dict[int, Any]) -> Any:
    if formula.eqn is None:
        return x
    if formula.key not in done:
        atoms = formula.eqn.invars
        args = [
            _evaluated(each, x, done)
            if isinstance(each, Formula)
            else jnp.full(jnp.shape(x), each, atom.aval.dtype)
            for each, atom in zip(formula.args, atoms, strict=True)
        ]
        args = [jnp.asarray(each, atom.aval.dtype) for each, atom in zip(args, atoms, strict=True)]
        done[formula.key] = bind_equation(formula.eqn, args, formula.eqn.params)[0]
    return done[formula.key]


def slope(formula: Formula, x: Float[Array, "*shape"]) -> Array:
    """Its derivative."""
    return jax.jvp(lambda x: jnp.asarray(formula(x), x.dtype), (x,), (jnp.ones_like(x),))[1]


@lru_cache(maxsize=1024)
def _compiled(formula: Formula) -> Any:
    return jax.jit(formula)


def values_of(formula: Formula, x: Vector) -> Vector:
    """Its values on the host."""
    return np.asarray(_compiled(formula)(jnp.asarray(x, jnp.float32)), np.float64)


@lru_cache(maxsize=1024)
def _compiled_slope(formula: Formula) -> Any:
    return jax.jit(lambda x: slope(formula, x))


def slopes_of(formula: Formula, x: Vector) -> Vector:
    """Its derivative on the host."""
    return np.asarray(_compiled_slope(formula)(jnp.asarray(x, jnp.float32)), np.float64)


@lru_cache(maxsize=1024)
def largest_slope(formula: Formula) -> float:
    """The largest |f'| within [-12, 12], on a grid."""
    return float(np.nanmax(np.abs(jax.jit(lambda x: slope(formula, x))(jnp.asarray(_SUP, jnp.float32)))))


class Single(NamedTuple):
    """E f, E f^2 and E f'^2 of f(u), u ~ N(mean, variance)."""

    mean: Vector
    second: Vector
    slope: Vector


class Paired(NamedTuple):
    """E f(u) f(v) and E f'(u) f'(v) of two Gaussian variables."""

    product: Vector
    slopes: Vector


def single(formula: Formula, mean: Vector, variance: Vector) -> Single:
    """Gaussian averages by the midpoint rule on 1,024 nodes: kinks cost 1e-3, what is smooth nothing."""
    return Single(*map(np.asarray, _single(formula)(_float(mean), _spread(variance))))


def paired(
    formula: Formula,
    means: Float[np.ndarray, "2 pair"],
    variances: Float[np.ndarray, "2 pair"],
    covariance: Float[np.ndarray, " pair"],
) -> Paired:
    """The same of pairs: means and variances [2, pair], on 64 x 64 nodes."""
    spread = _spread(variances)
    scale = spread[0] * spread[1]
    c = np.clip(np.where(scale > 0, covariance / np.where(scale > 0, scale, 1), 0), -1, 1)
    return Paired(*map(np.asarray, _paired(formula)(_float(means), spread, _float(c))))


class Shares(NamedTuple):
    """Of a_i = f(u_i) / sum_j f(u_j), u_j independent Gaussian variables.

    Attributes:
        second: E a_i^2.
        gain: E sum_i (a_i (g_i - sum_j a_j g_j))^2 / n for independent g_i of variance 1: a softmax's gradient.
    """

    second: Vector
    gain: Vector


def shares(formula: Formula, mean: Vector, variance: Vector, count: int) -> Shares:
    """Exact at every n, by 1 / S^k = int t^(k-1) e^(-t S) dt / (k-1)!, on a logarithmic grid of t.

    With M_k(t) = E f^k e^(-t f): E a_i^2 = int t M_2 M_0^(n-1) dt, and likewise for the higher powers.
    """
    t, weights = _nodes(256)
    x = np.asarray(mean, float)[:, None] + _spread(variance).astype(float)[:, None] * t
    f = values_of(formula, x)
    f = f / (f @ weights)[:, None]  # the shares do not change; sums are then near n
    s = np.exp(np.linspace(-14, 7, 400))[:, None, None] / count
    damped = np.exp(-s * f) * weights
    M = [np.sum(f**k * damped, -1) for k in range(5)]  # [t, input]
    s, step = s[:, :, 0], 21 / 399  # dt = t dlog(t)

    def integral(power: int, moments: Any, others: int) -> Any:
        return (
            np.sum(s**power * moments * M[0] ** max(count - others, 0), 0) * step / math.factorial(power - 1)
        )

    second, third = integral(2, M[2], 1), integral(3, M[3], 1)
    squares = integral(
        4, M[4] + (count - 1) * M[2] ** 2 / np.where(M[0] > 0, M[0], 1), 1
    )  # E a_i^2 sum_j a_j^2
    return Shares(second, second - 2 * third + squares)


def _float(x: Any) -> Any:
    return np.asarray(x, np.float32)


def _spread(variance: Any) -> Any:
    return np.sqrt(np.maximum(_float(variance), 0))  # NaN stays


def _nodes(count: int) -> tuple[Any, Any]:
    t = _REACH * ((2 * np.arange(count) + 1) / count - 1)
    weights = np.exp(-(t**2) / 2)
    return _float(t), _float(weights / weights.sum())


@lru_cache(maxsize=1024)
def _single(formula: Formula) -> Any:
    t, weights = _nodes(_NUM_NODES)

    @jax.jit
    def run(mean: Array, spread: Array) -> tuple[Array, ...]:
        x = mean[..., None] + spread[..., None] * t
        f, df = formula(x), slope(formula, x)
        return f @ weights, f**2 @ weights, df**2 @ weights

    return run


@lru_cache(maxsize=1024)
def _paired(formula: Formula) -> Any:
    t, weights = _nodes(_NUM_PAIR_NODES)

    @jax.jit
    def run(means: Array, spread: Array, c: Array) -> tuple[Array, ...]:
        u = means[0][:, None] + spread[0][:, None] * t
        w = c[:, None, None] * t[:, None] + jnp.sqrt(1 - jnp.square(c))[:, None, None] * t
        v = means[1][:, None, None] + spread[1][:, None, None] * w
        product = jnp.sum(formula(u) * (formula(v) @ weights) * weights, -1)
        return product, jnp.sum(slope(formula, u) * (slope(formula, v) @ weights) * weights, -1)

    return run
