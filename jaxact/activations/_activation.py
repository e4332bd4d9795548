"""The activation type: an elementwise function with its exact derivative and the facts theory needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxact.numerics import native


class Interval(NamedTuple):
    """The least closed interval that holds a set of reals; an end may be infinite or only approached."""

    lower: float
    upper: float


@jax.tree_util.register_static
@dataclass(frozen=True, kw_only=True, repr=False)
class Activation:
    """An elementwise function f: R -> R, callable wherever `jax.nn.relu` goes, with facts about it.

    Calling it applies f to every entry of an array of any shape. The derivative is the stated one, not
    what automatic differentiation makes of the formula, so that tails and kinks are right; it may be
    differentiated again. The dtype is kept (bfloat16 and float16 are evaluated in float32 and rounded
    once); integers and booleans become the default float.

    For members of the zoo, f, f' and f'' are right for every finite input of float64, float32 and bfloat16
    and take their limits at +-inf: the error of y is at most 8 eps (|y| + |x dy/dx|), that is a few ulp of
    the result or of the input. Beyond the largest number y is inf; below a million times the smallest normal
    number it may be 0, and a subnormal input may count as 0, since XLA flushes subnormal numbers.

    An Activation is immutable, hashable and a pytree without leaves: it may be a static argument, an
    attribute of a Flax Linen or NNX module, or part of a pytree passed through `jit` or `vmap`.
    Two are equal if their names, facts and functions are.

    Attributes:
        name: canonical text, and what `str` gives; `parse(name)` is an equal Activation for every member of the zoo.
        fn: f itself, on floating arrays. Call the Activation rather than `fn`.
        derivative: f', on floating arrays; at a kink the value that the docstring states.
        range: closure of {f(x)}.
        slope_range: inf and sup of f'(x) over all x where f is differentiable.
        lipschitz: sup |f'|, the least Lipschitz constant of f; may be inf. Follows from `slope_range`.
        kinks: where f' jumps, ascending.
        breakpoints: where f is not smooth: the kinks, and where only a higher derivative jumps. An
            integral over f should be split there. Equal to `kinks` unless given.
        monotone: f never decreases.
        odd: f(-x) = -f(x).
        homogeneous: f(c x) = c f(x) for every c > 0.
        argmin: where f takes its least value (of several, the one nearest to 0); None for a monotone f and
            where the infimum is only approached.
        exact: whether the facts are known (True) or numerical estimates (False, from `from_callable`). A
            bound computed from estimates is itself an estimate and must not be called certified.
        formula: f as an expression in x.
        reference: where f was proposed.
        moments: (mean, variance) -> (E f(z), E f(z)^2) for Gaussian z in closed form, or None.

    Raises:
        ValueError: if `name` is empty, an interval is not ordered, kinks are not ascending, or `lipschitz`
            contradicts `slope_range`.

    >>> from jaxact import activations
    >>> activations.relu
    relu: max(x, 0), |f'| <= 1, kinks at 0
    >>> float(jax.grad(activations.relu)(0.0))
    0.0
    """

    name: str
    fn: Callable[[Array], Array] = field(repr=False)
    derivative: Callable[[Array], Array] = field(repr=False, compare=False)
    range: Interval
    slope_range: Interval
    lipschitz: float = math.nan
    kinks: tuple[float, ...] = ()
    breakpoints: tuple[float, ...] = ()
    monotone: bool = False
    odd: bool = False
    homogeneous: bool = False
    argmin: float | None = None
    exact: bool = True
    formula: str = ""
    reference: str = ""
    moments: Callable[[ArrayLike, ArrayLike], tuple[Array, Array]] | None = field(
        default=None, repr=False, compare=False
    )

    def __post_init__(self):
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"`name` must be a non-empty string, got {self.name!r}.")
        for label in ("range", "slope_range"):
            interval = Interval(*(float(end) for end in getattr(self, label)))
            if not interval.lower <= interval.upper:
                raise ValueError(f"`{label}` must be (lower, upper) with lower <= upper, got {interval}.")
            object.__setattr__(self, label, interval)
        for label in ("kinks", "breakpoints"):
            points = tuple(float(x) for x in getattr(self, label))
            if list(points) != sorted(set(points)):
                raise ValueError(f"`{label}` must ascend strictly, got {points}.")
            object.__setattr__(self, label, points)
        object.__setattr__(self, "breakpoints", tuple(sorted({*self.kinks, *self.breakpoints})))
        constant = max(abs(end) for end in self.slope_range)
        if not math.isnan(self.lipschitz) and self.lipschitz != constant:
            raise ValueError(
                f"`lipschitz` must be the largest |slope|, {constant} by `slope_range`, "
                f"got {self.lipschitz}. Leave it out."
            )
        object.__setattr__(self, "lipschitz", constant)

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, x: ArrayLike) -> Array:
        """Apply f to every entry of `x`.

        Args:
            x: real array of any shape; integers become floats.

        Returns:
            f(x), of the shape and floating dtype of `x`.

        Raises:
            TypeError: if `x` is complex.
        """
        return _apply(self, _as_floating(x, self.name))

    def value_and_slope(self, x: ArrayLike) -> tuple[Array, Array]:
        """Compute f(x) and f'(x) together; under `jit` what the two share is computed once.

        Args:
            x: real array of any shape; integers become floats.

        Returns:
            (f(x), f'(x)), each of the shape and floating dtype of `x`; both differentiable.

        Raises:
            TypeError: if `x` is complex.

        >>> from jaxact import activations
        >>> value, slope = activations.leaky_relu(0.5).value_and_slope(-2.0)
        >>> float(value), float(slope)
        (-1.0, 0.5)
        """
        x = _as_floating(x, self.name)
        return _apply(self, x), _kept(self.derivative(x), x)

    def __repr__(self) -> str:
        # Short on purpose: it stands in configs, module summaries and error messages.
        words = [f"{self.name}: {self.formula}" if self.formula else self.name]
        words.append(f"|f'| {'<=' if self.exact else '<~'} {self.lipschitz:.6g}")
        if self.kinks:
            more = f" and {len(self.kinks) - 4} more" if len(self.kinks) > 4 else ""
            words.append("kinks at " + ", ".join(f"{x:.6g}" for x in self.kinks[:4]) + more)
        if not self.exact:
            words.append("estimated")
        return ", ".join(words)

    def __str__(self) -> str:
        return self.name

    def __copy__(self) -> Activation:
        return self

    def __deepcopy__(self, memo: dict) -> Activation:
        return self


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _apply(activation: Activation, x: Array) -> Array:
    return _kept(activation.fn(x), x)


@_apply.defjvp
def _apply_jvp(activation, primals, tangents):
    (x,), (tangent,) = primals, tangents
    return _kept(activation.fn(x), x), _kept(activation.derivative(x), x) * tangent


def _kept(y: Array, x: Array) -> Array:
    # A user's function may promote low precisions.
    return y.astype(x.dtype)


def _as_floating(x: ArrayLike, name: str) -> Array:
    x = native(x)
    dtype = jnp.result_type(x, float)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"`x` must be real: {name} is a function of real numbers, got {dtype}.")
    # An explicit dtype also strips the weak type, so that branches of one `lax.switch` agree.
    return jnp.asarray(x, dtype)
