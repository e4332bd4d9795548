"""Complex arrays as pairs of real ones: Fourier transforms and what is linear between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxact.trace import _radial
from jaxact.trace._expr import UnsupportedError
from jaxact.trace._graph import Graph, Special, is_constant
from jaxact.trace._nodes import Bound, Value, whole

#: (primitive, operands) -> result, by the rules for real arrays
Real = Callable[[str, Sequence[Any]], Any]
_LINEAR = ("add", "sub", "neg", "reduce_sum", "cumsum", "copy", "add_any", "stop_gradient")
_MOVES = (
    *(
        "reshape",
        "squeeze",
        "expand_dims",
        "broadcast_in_dim",
        "concatenate",
        "dynamic_slice",
        "gather",
        "rev",
        "slice",
    ),
    *("split", "transpose", "pad", "stack", "unstack", "dynamic_update_slice", "select_n"),
)


@dataclass(frozen=True)
class Complex(Special):
    """re + i im, each a value or a constant."""

    re: Any
    im: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.re.shape


def is_complex(eqn: Any, operands: Sequence[Any]) -> bool:
    """Whether an equation has to do with complex numbers that depend on the input."""
    atoms = (*eqn.invars, *eqn.outvars)
    return any(isinstance(operand, Complex) for operand in operands) or any(
        jnp.issubdtype(getattr(atom.aval, "dtype", np.float64), jnp.complexfloating) for atom in atoms
    )


def resolve(graph: Graph, eqn: Any, operands: Sequence[Any], real: Real) -> Sequence[Any]:
    """The results of a primitive of complex operands, or with a complex result."""
    name = eqn.primitive.name
    if name in ("complex", "real", "imag", "conj", "convert_element_type", "fft", "abs"):
        return [_ALONE[name](graph, eqn, operands, real)]
    if name in ("mul", "dot_general"):
        return [_product(name, operands[0], operands[1], real)]
    if name == "div" and is_constant(operands[1]):
        return [_product("mul", operands[0], 1 / np.asarray(operands[1]), real)]
    if name in (*_LINEAR, *_MOVES):
        halves = [[_part(operand, k) for operand in operands] for k in (0, 1)]
        parts = [real(name, half) for half in halves]
        if isinstance(parts[0], list):
            return [Complex(*pair) for pair in zip(*parts, strict=True)]
        return [Complex(*parts)]
    raise UnsupportedError(f"`{name}` of complex numbers is not known")


def _part(operand: Any, k: int) -> Any:
    """The real part, or the imaginary one; indices and predicates are both."""
    if isinstance(operand, Complex):
        return operand.im if k else operand.re
    if is_constant(operand) and np.asarray(operand).dtype.kind == "c":
        return np.asarray(operand).imag if k else np.asarray(operand).real
    is_number = np.asarray(operand).dtype.kind == "f" if is_constant(operand) else _is_number(operand)
    return np.zeros(operand.shape) if k and is_number else operand


def _is_number(operand: Any) -> bool:
    """Whether what depends on the input is an array of numbers, not a predicate or an index."""
    return isinstance(operand, Value) and not operand.expr.is_bool


def _product(name: str, u: Any, v: Any, real: Real) -> Complex:
    """(a + i b) (c + i d) = (a c - b d) + i (a d + b c)."""
    (a, b), (c, d) = ((_part(each, 0), _part(each, 1)) for each in (u, v))
    ac, bd, ad, bc = (real(name, pair) for pair in ((a, c), (b, d), (a, d), (b, c)))
    return Complex(real("sub", (ac, bd)), real("add", (ad, bc)))


def _fft(graph: Graph, eqn: Any, operands: Sequence[Any], real: Real) -> Any:
    (z,) = operands
    params = eqn.params
    shape = tuple(eqn.outvars[0].aval.shape)
    parts = [_part(z, 0)] if not isinstance(z, Complex) else [z.re, z.im]

    def half(take: Callable[[Any], Any]) -> Any:
        def call(*parts: Any) -> Any:
            given = parts[0] if len(parts) == 1 else lax.complex(*parts)
            return take(lax.fft(given, params["fft_type"], params["fft_lengths"]))

        places = [k for k, part in enumerate(parts) if not is_constant(part)]
        return whole(
            graph.add(
                Bound(
                    shape,
                    [graph.node(parts[k]) for k in places],
                    call,
                    places,
                    [parts[k].shape for k in places],
                    [np.asarray(part, np.float64) if is_constant(part) else None for part in parts],
                    linear=range(len(parts)),
                )
            ),
            shape,
        )

    if not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.complexfloating):
        return half(lambda z: z)
    return Complex(half(jnp.real), half(jnp.imag))


def _absolute(graph: Graph, eqn: Any, operands: Sequence[Any], real: Real) -> Any:
    (z,) = operands
    return _radial.pair(graph, z.re, z.im, z.shape)


_ALONE: dict[str, Callable[[Graph, Any, Sequence[Any], Real], Any]] = {
    "complex": lambda graph, eqn, operands, real: Complex(*operands),
    "real": lambda graph, eqn, operands, real: operands[0].re,
    "imag": lambda graph, eqn, operands, real: operands[0].im,
    "conj": lambda graph, eqn, operands, real: Complex(
        _part(operands[0], 0), real("neg", (_part(operands[0], 1),))
    ),
    "convert_element_type": lambda graph, eqn, operands, real: (
        operands[0] if isinstance(operands[0], Complex) else Complex(operands[0], np.zeros(operands[0].shape))
    ),
    "fft": _fft,
    "abs": _absolute,
}
