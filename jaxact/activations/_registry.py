"""How a formula and its facts become a member of the zoo."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxact.activations._activation import Activation, Interval

# Value, first and second derivative at x; float32 or float64, in and out.
Jet = tuple[Array, Array, Array]
JetFunction = Callable[[Array], Jet]
P = ParamSpec("P")

#: name -> Activation, or a factory of Activations whose every parameter has a default.
ZOO: dict[str, Activation | Callable[..., Activation]] = {}


@dataclass(frozen=True)
class Rule:
    """The values that a parameter may take: finite numbers in [lower, upper].

    Attributes:
        lower: least value allowed.
        upper: largest value allowed.
    """

    lower: float
    upper: float

    def check(self, family: str, parameter: str, value: Any) -> float:
        """Return `value` as a float if it obeys the rule."""
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(
                f"`{parameter}` of {family} must be a Python number, got {type(value).__name__}: {family}("
                f"{parameter}) makes an activation, which is then applied to an array. "
                f"Write {family}()(x) to apply {family} as it is."
            )
        value = float(value)
        if not (math.isfinite(value) and self.lower <= value <= self.upper):
            raise ValueError(
                f"`{parameter}` of {family} must be a number in [{self.lower:g}, {self.upper:g}], "
                f"got {value:g}."
            )
        return value


# Wider parameters would need formulas guarded against products that overflow or underflow.
POSITIVE = Rule(1e-3, 1e3)
REAL = Rule(-1e3, 1e3)


def define(name: str = "anonymous", **facts: Any) -> Callable[[JetFunction], Activation]:
    """Turn a function x -> (f(x), f'(x), f''(x)) into an Activation with the given facts.

    The function is called with float32 or float64 arrays only; lower precisions are evaluated in float32
    and rounded once. It must return right values for every input, +-inf included. Its derivatives are
    taken from its second and third output; only a third derivative is left to automatic differentiation.

    Args:
        name: the Activation's name.
        **facts: the other fields of Activation: range and slope_range as pairs, kinks, ...

    Returns:
        A decorator.
    """

    def decorate(jet: JetFunction) -> Activation:
        fn, derivative = _functions(jet)
        intervals = {label: Interval(*facts[label]) for label in ("range", "slope_range")}
        return Activation(name=name, fn=fn, derivative=derivative, **facts | intervals)

    return decorate


def member(**facts: Any) -> Callable[[JetFunction], Activation]:
    """Define an Activation without parameters, named like the function, and enter it into the zoo.

    Args:
        **facts: as for `define`.

    Returns:
        A decorator.
    """

    def decorate(jet: JetFunction) -> Activation:
        activation = define(jet.__name__, **facts)(jet)
        object.__setattr__(activation, "__doc__", jet.__doc__)
        _enter(activation.name, activation)
        return activation

    return decorate


def family(**rules: Rule) -> Callable[[Callable[P, Activation]], Callable[P, Activation]]:
    """Enter a factory of Activations into the zoo.

    The factory's parameters are checked by the rules, and its result gets the canonical name: `f` where every
    parameter has its default, else `f(0.2)`. Equal parameters give the same object.

    Args:
        **rules: one `Rule` a parameter.

    Returns:
        A decorator.
    """

    def decorate(factory: Callable[P, Activation]) -> Callable[P, Activation]:
        name = factory.__name__
        signature = inspect.signature(factory)
        defaults = tuple(float(p.default) for p in signature.parameters.values())

        # Unbounded: an evicted member would come back with new functions, unequal to the old one.
        @functools.cache
        def build(*values: float) -> Activation:
            activation = factory(*values)  # type: ignore[call-arg, arg-type]
            if activation.name != "anonymous":
                return activation
            text = name if values == defaults else f"{name}({', '.join(map(number, values))})"
            return replace(activation, name=text)

        @functools.wraps(factory)
        def checked(*args: P.args, **kwargs: P.kwargs) -> Activation:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return build(*(rules[p].check(name, p, v) for p, v in bound.arguments.items()))

        _enter(name, checked)
        return checked

    return decorate


def names() -> tuple[str, ...]:
    """Names of the whole zoo, sorted; `parse` accepts each as it stands.

    Returns:
        A tuple of names.

    >>> "relu" in names()
    True
    """
    return tuple(sorted(ZOO))


def number(value: float) -> str:
    """Write a number in the fewest digits that give it back: 0.2, 1, 1e-05."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _enter(name: str, entry: Activation | Callable[..., Activation]) -> None:
    if name in ZOO:
        raise ValueError(f"the zoo already has a member named {name}.")
    ZOO[name] = entry


def _functions(jet: JetFunction) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """Return f with derivative f', and f' with derivative f''."""
    value, slope, curvature = (_output(jet, i) for i in range(3))

    derivative = jax.custom_jvp(slope)
    derivative.defjvp(lambda x, t: (slope(*x), curvature(*x) * t[0]))
    fn = jax.custom_jvp(value)
    fn.defjvp(lambda x, t: (value(*x), derivative(*x) * t[0]))
    return fn, derivative


def _output(jet: JetFunction, i: int) -> Callable[[Array], Array]:
    # jit drops the outputs not asked for, and inlined into a larger program XLA merges what value and slope
    # share: one evaluation serves both.
    @functools.partial(jax.jit, inline=True)
    def output(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return jet(wide)[i].astype(x.dtype)

    return output
