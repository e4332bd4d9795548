"""A jaxpr evaluated with taps: what chosen values look like, and how large the gradient is there, in one program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxact.trace import bind_equation, called_body

#: the equation's number in its jaxpr, after those of the calls, loops and branches that it lies in
Path = tuple[int, ...]
#: what was measured: where -> name -> number, with an axis for each loop that the place lies in
Found = dict[Path, dict[str, Array]]


class Tap(NamedTuple):
    """What is measured at the first output of an equation.

    Attributes:
        measure: value, and the slot where there is `insert` -> numbers by name; the shapes of these must not depend on
            the value's entries.
        has_slot: whether the gradient's second moment is measured too, or what `insert` needs is given.
        insert: (value, slot) -> what the program goes on with; by default `tapped`.
    """

    measure: Callable[..., dict[str, Array]]
    has_slot: bool
    insert: Callable[[Array, Any], Array] | None = None


@dataclass(frozen=True)
class Plan:
    """Where the taps are, and how long the loops are that they lie in."""

    taps: Mapping[Path, Tap]
    loops: Mapping[Path, int]

    def holds(self, path: Path) -> bool:
        """Whether a tap lies in what is at a path."""
        return any(each[: len(path)] == path for each in self.taps)

    def slots(self) -> dict[Path, Array]:
        """Zeros whose cotangents are the second moments of the gradient: one a place and turn of its loops."""
        return {path: jnp.zeros(self.turns(path)) for path, tap in self.taps.items() if tap.has_slot}

    def turns(self, path: Path) -> tuple[int, ...]:
        """The lengths of the loops that a path lies in."""
        return tuple(self.loops[path[:end]] for end in range(1, len(path) + 1) if path[:end] in self.loops)


@jax.custom_vjp
def tapped(z: Float[Array, "*shape"], slot: Float[Array, ""]) -> Float[Array, "*shape"]:
    """The value itself; the cotangent of `slot` is the mean square of the cotangent of z, which passes unchanged.

    So no gradient is kept: in a loop, what would be stacked over its turns is one number a turn.
    """
    return z


def _tapped_forward(z: Array, slot: Array) -> tuple[Array, None]:
    return z, None


def _tapped_backward(_: None, g: Array) -> tuple[Array, Array]:
    return g, jnp.mean(jnp.square(g.astype(jnp.float32)))


tapped.defvjp(_tapped_forward, _tapped_backward)


def evaluate(
    plan: Plan,
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    slots: Mapping[Path, Any] | None,
    path: Path = (),
) -> tuple[list[Any], Found]:
    """Evaluate a jaxpr, measuring at every tap.

    What holds no tap is bound as it is, custom derivatives included; the body of a custom derivative that holds one
    is differentiated itself.

    Args:
        plan: where the taps are.
        jaxpr: open.
        consts: of its constvars.
        args: of its invars.
        slots: of `Plan.slots`, or None to measure no gradients (and to allow forward mode).
        path: of the jaxpr.

    Returns:
        (outputs, what was measured).
    """
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))
    found: Found = {}

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else env[atom]

    for number, eqn in enumerate(jaxpr.eqns):
        here = (*path, number)
        operands = [read(atom) for atom in eqn.invars]
        outputs = _step(plan, eqn, operands, slots, here, found)
        tap = plan.taps.get(here)
        if tap is not None:
            given = () if tap.insert is None or slots is None else (slots[here],)
            found[here] = tap.measure(outputs[0], *given)
            if tap.has_slot and slots is not None:
                outputs = [(tap.insert or tapped)(outputs[0], slots[here]), *outputs[1:]]
        env |= dict(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], found


def _step(plan: Plan, eqn: Any, operands: list[Any], slots: Any, path: Path, found: Found) -> Sequence[Any]:
    name, inner = eqn.primitive.name, called_body(eqn)
    if not plan.holds(path) or (inner is None and name != "cond"):
        return bind_equation(eqn, operands, eqn.params)
    enter = _ENTERED.get(name, _call)
    outputs, measured = enter(plan, eqn, operands, slots, path)
    found |= measured
    return outputs


def _call(plan: Plan, eqn: Any, operands: list[Any], slots: Any, path: Path) -> tuple[list[Any], Found]:
    body = called_body(eqn)
    assert body is not None
    return evaluate(plan, body[0], list(body[1]), operands, slots, path)


def _remat(plan: Plan, eqn: Any, operands: list[Any], slots: Any, path: Path) -> tuple[list[Any], Found]:
    """Recomputed in the backward pass as before."""

    def body(operands: list[Any], slots: Any) -> tuple[list[Any], Found]:
        return _call(plan, eqn, operands, slots, path)

    again = jax.checkpoint(body, policy=eqn.params["policy"], prevent_cse=eqn.params["prevent_cse"])
    return again(operands, _within(slots, path))


def _scan(plan: Plan, eqn: Any, operands: list[Any], slots: Any, path: Path) -> tuple[list[Any], Found]:
    """The slots go in as further xs, what is measured comes out as further ys."""
    params, closed = eqn.params, eqn.params["jaxpr"]
    num_consts, num_carry = scan_counts(params)
    consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]

    def body(carry: Any, xs: Any) -> tuple[Any, Any]:
        rows, inner = xs
        given = [*consts, *carry, *rows]
        outputs, found = evaluate(plan, closed.jaxpr, closed.consts, given, inner, path)
        return outputs[:num_carry], (outputs[num_carry:], found)

    xs = (operands[num_consts + num_carry :], _within(slots, path))
    carry, (stacked, found) = jax.lax.scan(
        body, carry, xs, length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*carry, *stacked], found


def _cond(plan: Plan, eqn: Any, operands: list[Any], slots: Any, path: Path) -> tuple[list[Any], Found]:
    """What lies in the branches that are not taken is NaN."""
    which, *args = operands
    branches, inner = eqn.params["branches"], _within(slots, path)

    def branch(k: int, args: Any, inner: Any) -> tuple[list[Any], Found]:
        return evaluate(plan, branches[k].jaxpr, branches[k].consts, args, inner, (*path, k))

    shapes: Found = {}
    for k in range(len(branches)):
        shapes |= jax.eval_shape(lambda args, inner, k=k: branch(k, args, inner)[1], args, inner)

    def padded(k: int, args: Any, inner: Any) -> tuple[list[Any], Found]:
        outputs, found = branch(k, args, inner)
        return outputs, jax.tree.map(lambda shape: jnp.full(shape.shape, jnp.nan), shapes) | found

    return jax.lax.switch(which, [partial(padded, k) for k in range(len(branches))], args, inner)


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """(the number of constants, that of carried values) of a scan."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    num_consts, num_carry, _ = map(len, params["ft_in"].unpack())  # from jax 0.11 on
    return num_consts, num_carry


def _within(slots: Any, path: Path) -> Any:
    return None if slots is None else {key: slot for key, slot in slots.items() if key[: len(path)] == path}


_ENTERED: dict[str, Callable[..., tuple[list[Any], Found]]] = {
    "scan": _scan, "cond": _cond, "remat2": _remat, "checkpoint": _remat,
}  # fmt: skip
