"""Products with a function's Jacobian, and the programs compiled of them, which functions of one form share.

To compile a search takes seconds, to trace a function milliseconds. So the products are traced at every call, and what
was compiled is used again where the jaxprs agree: for the same function, and for a new lambda that computes the same.
The arrays that the function closes over are arguments of the program, numbers that it closes over are part of the
jaxpr: nothing is taken from a call before but the machine code.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array

from jaxact import xla
from jaxact.trace import run_again

_NUM_PROGRAMS = 32  # kept, those used last: of 1 MB or so each
_FEW_FLOPS = 1e8
_UNOPTIMISED = xla.options(0)
_PROGRAMS: OrderedDict[Any, Callable[..., Any]] = OrderedDict()


class Derivatives(NamedTuple):
    """What a search asks of a function fn of one input x.

    Attributes:
        push: (x, v) -> J(x) v.
        pulling: x -> (u -> J(x)^T u), for many u.
        ascent: (x, u, w) -> (J(x)^T u, d (u^T J(x) w) / dx).
        output: shape and dtype of fn(x).
    """

    push: Callable[[Array, Array], Array]
    pulling: Callable[[Array], Callable[[Array], Array]]
    ascent: Callable[[Array, Array, Array], tuple[Array, Array]]
    output: jax.ShapeDtypeStruct


def derivatives(
    fn: Callable[[Array], Array], output: jax.ShapeDtypeStruct, push: Callable | None = None
) -> Derivatives:
    """Those of JAX; `push`, if not by `jax.jvp`."""

    def pulling(x: Array) -> Callable[[Array], Array]:
        pull = jax.vjp(fn, x)[1]
        return lambda u: pull(u)[0]

    def ascent(x: Array, u: Array, w: Array) -> tuple[Array, Array]:
        # u^T J(x) w has the gradient (sum_i u_i Hessian f_i) w: the derivative of x -> J(x)^T u along w.
        return jax.jvp(lambda x: pulling(x)(u), (x,), (w,))

    return Derivatives(push or (lambda x, v: jax.jvp(fn, (x,), (v,))[1]), pulling, ascent, output)


class _Traced(NamedTuple):
    """The three products as jaxprs, without what they close over.

    Attributes:
        closed: of push, pull and ascent.
        output: of the function.
        form: equal if and only if they compute the same of their constants; None if that is not known.
    """

    closed: tuple[ClosedJaxpr, ...]
    output: jax.ShapeDtypeStruct
    form: Any

    def derivatives(self, consts: Sequence[Sequence[Array]]) -> Derivatives:
        """Of these constants; not to be differentiated again."""
        push, pull, ascent = (
            jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, each))
            for closed, each in zip(self.closed, consts, strict=True)
        )
        return Derivatives(
            lambda x, v: push(x, v)[0],
            lambda x: lambda u: pull(x, u)[0],
            lambda *each: tuple(ascent(*each)),
            self.output,
        )


def runner(live: Derivatives, x: jax.ShapeDtypeStruct, *args: Any) -> Callable[..., Any]:
    """How to run the pieces of a search: (piece, statics, *args, repeats) -> piece(derivatives, *statics, *args).

    Compiled, unless something is traced: then the pieces are part of what it is traced for. `repeats` says how often
    the loop in a piece runs.

    Args:
        live: of the function.
        x: shape and dtype of one input.
        args: what the search is given.
    """
    if not any(isinstance(each, jax.core.Tracer) for each in args):
        traced = run_again(lambda: _trace(live, x))
        consts = [closed.consts for closed in traced.closed]
        if not any(isinstance(each, jax.core.Tracer) for each in jax.tree.leaves(consts)):
            arrays = [[jnp.asarray(each) for each in group] for group in consts]

            def run(piece: Callable, statics: tuple, *args: Any, repeats: int = 1) -> Any:
                return _compiled(traced, piece, statics, arrays, args, repeats)(arrays, *args)

            return run
    shared = live._replace(push=jax.jit(live.push), ascent=jax.jit(live.ascent))  # many calls, one trace
    return lambda piece, statics, *args, repeats=1: piece(shared, *statics, *args)


def _trace(live: Derivatives, x: jax.ShapeDtypeStruct) -> _Traced:
    u = jax.ShapeDtypeStruct(live.output.shape, live.output.dtype)
    closed = (
        jax.make_jaxpr(lambda x, v: live.push(x, v))(x, x),
        jax.make_jaxpr(lambda x, u: live.pulling(x)(u))(x, u),
        jax.make_jaxpr(lambda x, u, w: live.ascent(x, u, w))(x, u, x),
    )
    try:
        form = tuple(_form(each.jaxpr) for each in closed)
        hash(form)
    except TypeError:  # a parameter without an equality of its own
        form = None
    return _Traced(closed, live.output, form)


def _compiled(
    traced: _Traced, piece: Callable, statics: tuple, consts: Any, args: tuple, repeats: int
) -> Callable[..., Any]:
    """The program of a piece, from before if there was one of the same form."""
    given = [(each.aval, each.sharding) for each in jax.tree.leaves((consts, args))]
    key = (
        piece,
        statics,
        traced.form,
        traced.output.shape,
        tuple(given),
        getattr(jax.config, "jax_default_device", None),
    )
    program = None if traced.form is None else _PROGRAMS.pop(key, None)
    if program is None:
        # Ahead of time, so that what is kept holds neither the function nor its arrays.
        whole = jax.jit(lambda consts, *args: piece(traced.derivatives(consts), *statics, *args))
        lowered = whole.lower(consts, *args)
        program = lowered.compile(_UNOPTIMISED if _is_short(lowered, repeats) else None)
    if traced.form is not None:
        _PROGRAMS[key] = program
        while len(_PROGRAMS) > _NUM_PROGRAMS:
            _PROGRAMS.popitem(last=False)
    return program


def _is_short(lowered: Any, repeats: int) -> bool:
    """Whether to optimise a program would take longer than it saves."""
    flops = (lowered.cost_analysis() or {}).get(
        "flops", -1
    )  # of one round of each loop; not known everywhere
    return 0 <= flops * max(repeats, 1) < _FEW_FLOPS


def _form(jaxpr: Any) -> tuple[Any, ...]:
    """A jaxpr with numbers for its variables: equal for two that compute the same in the same order."""
    numbers: dict[Any, int] = {}

    def atom(each: Any) -> Any:
        if hasattr(each, "val"):
            return _value(np.asarray(each.val)), each.aval
        return numbers.setdefault(each, len(numbers)), each.aval

    heads = tuple(atom(each) for each in (*jaxpr.constvars, *jaxpr.invars))
    equations = tuple(
        (
            eqn.primitive,
            tuple(map(atom, eqn.invars)),
            tuple(map(atom, eqn.outvars)),
            tuple((name, _value(each)) for name, each in sorted(eqn.params.items()) if _matters(eqn, each)),
        )
        for eqn in jaxpr.eqns
    )
    return heads, equations, tuple(map(atom, jaxpr.outvars))


def _matters(eqn: Any, param: Any) -> bool:
    """Not the rules of custom derivatives, functions made anew in every trace: what is traced is a derivative."""
    is_made_anew = not (hasattr(param, "eqns") or isinstance(param, bool | int | str | tuple | None))
    return not (eqn.primitive.name.startswith("custom_") and is_made_anew)


def _value(param: Any) -> Any:
    if hasattr(param, "jaxpr") and hasattr(param, "consts"):
        return _form(param.jaxpr), tuple(map(_value, param.consts))
    if hasattr(param, "eqns"):
        return _form(param)
    if isinstance(param, tuple | list):
        return tuple(map(_value, param))
    if isinstance(param, np.ndarray | np.generic):
        return param.shape, param.dtype, param.tobytes()
    return type(param), param
