"""What a user's function is: traced once, with the errors that say what it must be instead."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr

from jaxact.errors import ArgumentTypeError

_SUMS = ("reduce_sum", "reduce_mean")
_ROOTS = ("rsqrt", "sqrt", "pow")
_MIXES = ("dot_general", "conv_general_dilated")  # what leaves them is no statistic any more


class FunctionError(ArgumentTypeError):
    """A function that cannot be traced, or not measured, as it is.

    Attributes:
        reason: what it must be, with the remedy, to follow its name: "must not change a model's state. Put ...".

    Example:
        >>> str(FunctionError("`fn`", "must return one array."))
        '`fn` must return one array.'
    """

    def __init__(self, name: str, reason: str):
        super().__init__(reason, argument=name.strip("`"))
        self.reason = reason

    def __reduce__(self):
        return type(self), (f"`{self.argument}`", self.reason)


def untraceable(error: BaseException) -> str | None:
    """What a function must be for JAX to trace it, with the remedy; None if the error says something else.

    Args:
        error: what the function raised while JAX traced it.

    Returns:
        The `reason` of a `FunctionError`.

    Example:
        >>> untraceable(ValueError("shapes differ")) is None
        True
    """
    if isinstance(error, FunctionError):
        return error.reason
    flax = sys.modules.get("flax.errors")  # its errors come from nowhere else
    if flax is not None and isinstance(error, flax.TraceContextError):
        return "must not change a model's state. Put it into inference mode, model.eval(), beforehand."
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return (
            "must not keep arrays that it makes, in a cache or an attribute, for it would keep its trace. "
            "Make them beforehand, or call the function once before."
        )
    if isinstance(error, jax.errors.JAXTypeError):
        said = str(error).splitlines()[0].rstrip(".")
        return (
            f"must be a function that JAX can trace, got {said}. "
            "Write it with jax.numpy, and branches with jnp.where."
        )
    return None


def traced(fn: Callable[..., Any], *args: Any, name: str = "`fn`") -> tuple[ClosedJaxpr, Any]:
    """Trace a function once, without running it.

    Args:
        fn: any JAX function.
        args: arrays, or `jax.ShapeDtypeStruct`s in their place.
        name: what messages call it.

    Returns:
        (its jaxpr, its output with a `jax.ShapeDtypeStruct` for each array).

    Raises:
        FunctionError: JAX cannot trace it, it changes a model's state or keeps arrays of the trace. Other errors of the
            function itself pass.

    Example:
        >>> import jax.numpy as jnp
        >>> traced(jnp.sum, jnp.ones(3))[1].shape
        ()
    """
    try:
        return jax.make_jaxpr(lambda *each: fn(*each), return_shape=True)(*args)
    except Exception as error:
        reason = untraceable(error)
        if reason is None or isinstance(error, FunctionError):
            raise
        raise FunctionError(name, reason) from error


def check_inference(closed: ClosedJaxpr, name: str = "`fn`") -> None:
    """Refuse a function of one input that normalises by the statistics of its batch, which is that input alone.

    A batch norm in training mode centres by the mean over axis 0, here of length 1: of a dense layer it leaves nothing
    of the input. Seen is what that looks like in the jaxpr, in calls and loops too: a sum over axes of which the first
    is of length 1 and another is kept, from which an array of the summed shape is centred and a square root taken.
    Not seen is a norm that spells its statistics differently, as by products of matrices.

    Args:
        closed: the function, traced on one input.
        name: what errors call it.

    Raises:
        FunctionError: it does.
    """
    if _Statistics().walk(closed.jaxpr, [True] * len(closed.jaxpr.invars)):
        raise FunctionError(
            name,
            "must not normalise by the statistics of a batch, which is here one input. Put the model into inference "
            "mode beforehand: model.eval(), in Linen use_running_average=True.",
        )


class _Statistics:
    """A walk that follows each sum over a batch of one to where it centres and where it scales."""

    def __init__(self):
        self.shapes: list[tuple[int, ...]] = []  # of what was summed, by the sum's number
        self.centred: set[int] = set()
        self.scaled: set[int] = set()

    def walk(self, jaxpr: Any, depends: Sequence[bool]) -> bool:
        """Whether one sum does both; `depends`: which of the arguments hang on the input."""
        self._outputs(jaxpr, [frozenset() if each else None for each in depends])
        return bool(self.centred & self.scaled)

    def _outputs(self, jaxpr: Any, given: Sequence[frozenset[int] | None]) -> list[frozenset[int] | None]:
        """The sums that each output hangs on; None for what does not depend on the input at all."""
        found: dict[Any, frozenset[int] | None] = dict(zip(jaxpr.invars, given, strict=True))

        def of(atom: Any) -> frozenset[int] | None:
            return None if hasattr(atom, "val") else found.get(atom)

        for eqn in jaxpr.eqns:
            operands = [of(atom) for atom in eqn.invars]
            dependent = [each for each in operands if each is not None]
            if dependent:
                results = self._through(eqn, operands, frozenset().union(*dependent))
                found.update(zip(eqn.outvars, results, strict=True))
        return [of(atom) for atom in jaxpr.outvars]

    def _through(
        self, eqn: Any, operands: list[Any], sums: frozenset[int]
    ) -> Sequence[frozenset[int] | None]:
        name, shape = eqn.primitive.name, getattr(eqn.invars[0].aval, "shape", ())
        inner = inner_jaxprs(eqn)
        if inner:
            same = [each for each in inner if len(getattr(each, "jaxpr", each).invars) == len(operands)]
            for each in inner:
                body = getattr(each, "jaxpr", each)
                given = operands if each in same else [sums] * len(body.invars)
                results = self._outputs(body, given)
            return results if len(results) == len(eqn.outvars) else [sums] * len(eqn.outvars)
        if name in _MIXES:
            sums = frozenset()
        elif name in _SUMS and shape[:1] == (1,) and 0 in eqn.params["axes"]:
            if len(eqn.params["axes"]) < len(shape):
                sums |= {len(self.shapes)}
                self.shapes.append(shape)
        elif name == "sub" and all(each is not None for each in operands):
            # One is the array, the other hangs on its sum.
            new = operands[1] - operands[0]
            self.centred |= {each for each in new if self.shapes[each] == eqn.outvars[0].aval.shape}
        elif name in _ROOTS:
            self.scaled |= sums
        return [sums] * len(eqn.outvars)


def inner_jaxprs(eqn: Any) -> list[Any]:
    """The jaxprs of an equation's calls, loops and branches, closed or not.

    Args:
        eqn: an equation of a jaxpr.

    Example:
        >>> call = jax.make_jaxpr(jax.jit(lambda x: x + 1))(1.0).eqns[0]
        >>> [each.jaxpr.eqns[0].primitive.name for each in inner_jaxprs(call)]
        ['add']
    """
    found = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    return [each for each in found if hasattr(each, "eqns")]
