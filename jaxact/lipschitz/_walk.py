"""From any JAX function to the straight-line program that the Lipschitz engine bounds: a walk over its jaxpr.

Values that do not depend on the input are computed. The others are kept as f(z): a formula f of one variable, applied
entry by entry to a linear map z of the variables so far. Linear maps are composed lazily and written out as ONE
operator where a nonlinearity needs them; formulas grow as long as everything in them depends on the same z, so that
x * sigmoid(x) or h + f(h) is one function.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxact.errors import ArgumentError, ArgumentTypeError
from jaxact.lipschitz import _formula, _slopes, _stretch
from jaxact.lipschitz._emit import PRODUCTS, emitted, refusal
from jaxact.lipschitz._formula import Expr, UnsupportedError
from jaxact.lipschitz._host import BATCHED, computed, in_float64, is_plain
from jaxact.lipschitz._lazy import Lin, ratio
from jaxact.lipschitz._program import Program
from jaxact.lipschitz._source import Place, called, place
from jaxact.lipschitz._wide import run_again, wide_constants
from jaxact.numerics import check_inference, inner_jaxprs

#: primitive -> which operands it is jointly linear in, the others being constant; None: all
_LINEAR: dict[str, tuple[int, ...] | None] = {
    "broadcast_in_dim": (0,),
    "concatenate": None,
    "cumsum": (0,),
    "dynamic_slice": (0,),
    "dynamic_update_slice": (0, 1),
    "gather": (0,),
    "pad": (0, 1),
    "reduce_sum": (0,),
    "reduce_window_sum": (0,),
    "rev": (0,),
    "scatter": (0, 2),
    "scatter-add": (0, 2),
    "scatter_add": (0, 2),
    "slice": (0,),
    "split": (0,),
    "stack": None,
    "tile": (0,),
    "transpose": (0,),
    "unstack": (0,),
}
_MOVES = ("broadcast_in_dim", "rev", "slice", "transpose")
_RESHAPES = ("reshape", "squeeze", "expand_dims")
_PASSED_ON = ("name", "sharding_constraint", "optimization_barrier", "mesh_cast", "pvary")
_LOOPS = ("scan", "while", "cond")


@dataclass(frozen=True)
class Lowered:
    """A function as a program.

    Attributes:
        program: its output is the function's, flattened, without what does not depend on the input.
        assumptions: what the translation takes for granted.
        restricted: why it can only be bounded within a region, or None.
        depends: for each leaf of the function's output whether it depends on the input.
        exact: whether the function was traced in float64.
        num_equations: of its jaxpr, not counting those of loops and calls.
        num_operations: how many of them differ in primitive or shapes.
        has_loops: whether there are loops among them.
        narrowest: the floating dtype with the fewest bits that it rounds wider numbers to, or None.
        has_choice: whether `contract` would make another program of it.
    """

    program: Program
    assumptions: tuple[str, ...]
    restricted: ArgumentError | None
    depends: tuple[bool, ...]
    exact: bool
    num_equations: int = 0
    num_operations: int = 0
    has_loops: bool = False
    narrowest: Any = None
    has_choice: bool = False


def lower(
    fn: Callable[[Any], Any], example: Any, wide: list[Any] | None = None, *, contract: bool = False
) -> Lowered:
    """Translate a function of one array into a `Program`, by tracing it in float64 and walking its jaxpr.

    Args:
        fn: JAX function of one array, closed over its parameters; returns an array or a pytree of arrays.
        example: an input; only its shape and dtype matter.
        wide: takes what `_wide.wide_constants` finds.
        contract: whether softmax, maxima, norms and normalisations become steps that are known by one number, which
            holds everywhere, and not by the slopes of what they are computed from.

    Returns:
        `Lowered`.

    Raises:
        FunctionError: it normalises by the statistics of its batch, which is that input alone.
        ValueError: the function uses a primitive that cannot be bounded; names it and its line.
    """
    with jax.enable_x64(True):
        closed, exact = run_again(lambda: _traced(fn, example))
        if wide is not None:
            wide += wide_constants(closed)
        if any(isinstance(c, jax.core.Tracer) for c in closed.consts):
            raise ArgumentTypeError(
                "must close over concrete arrays, got traced ones: a certificate is found on the host, outside jit "
                "and grad.",
                "As a penalty use upper_bound, or a network's log_lipschitz.",
                argument="fn",
            )
        check_inference(closed)
        walker = _Walker(contract=contract)
        source = Lin(tuple(np.shape(example)), kind="input")
        walker.lins.append(source)
        value = _Value(source, _formula.variable(), source.shape)
        outputs = walker.walk(closed.jaxpr, [_owned(c) if is_plain(c) else c for c in closed.consts], [value])
        lowered = walker.finish(source, outputs, exact)
    equations = closed.jaxpr.eqns
    operations = {
        (eqn.primitive.name, *(str(atom.aval) for atom in (*eqn.invars, *eqn.outvars))) for eqn in equations
    }
    narrowest = min(_narrowed(closed.jaxpr), key=lambda dtype: jnp.finfo(dtype).nmant, default=None)
    if narrowest is not None:
        rounding = (
            f"conversions to {narrowest} and other narrow dtypes, of products too, count as no rounding"
        )
        lowered = replace(lowered, assumptions=(*lowered.assumptions, rounding))
    return replace(
        lowered,
        num_equations=len(equations),
        num_operations=len(operations),
        has_loops=any(eqn.primitive.name in _LOOPS for eqn in equations),
        narrowest=narrowest,
    )


def _narrowed(jaxpr: Any) -> Iterator[Any]:
    """The floating dtypes that wider floating numbers are rounded to, in calls and loops too."""
    for eqn in jaxpr.eqns:
        given = [atom.aval.dtype for atom in eqn.invars if hasattr(atom.aval, "dtype")]
        bits = max((jnp.finfo(d).nmant for d in given if jnp.issubdtype(d, jnp.floating)), default=0)
        to = eqn.params.get("new_dtype", eqn.params.get("preferred_element_type"))
        if to is not None and jnp.issubdtype(to, jnp.floating) and jnp.finfo(to).nmant < bits:
            yield np.dtype(to)
        if eqn.primitive.name == "reduce_precision" and 23 <= eqn.params["mantissa_bits"] < bits:
            yield np.dtype(np.float32)  # or finer
        for inner in inner_jaxprs(eqn):
            yield from _narrowed(getattr(inner, "jaxpr", inner))


def _owned(const: Any) -> np.ndarray:
    """A constant on the host, which is a copy where `fn` closes over a NumPy array: see `_wide`."""
    return np.asarray(const) if isinstance(const, jax.Array) else np.array(const)


def _traced(fn: Callable[[Any], Any], example: Any) -> tuple[Any, bool]:
    def once(x: Any) -> Any:  # JAX keeps the jaxpr for as long as the function lives: see `_wide`
        return fn(x)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", FutureWarning
            )  # of float64 stored in float32: it was not asked for
            return jax.make_jaxpr(once)(jax.ShapeDtypeStruct(np.shape(example), np.float64)), True
    except (TypeError, ValueError) as error:
        # Loops that insist on float32 carries, for one.
        try:
            return jax.make_jaxpr(once)(
                jax.ShapeDtypeStruct(np.shape(example), jnp.result_type(example))
            ), False
        except Exception:
            raise error from None


@dataclass(frozen=True)
class _Value:
    """expr(root), entry by entry."""

    root: Lin
    expr: Expr
    shape: tuple[int, ...]
    place: Place | None = None  # of the last operation of the formula

    @property
    def size(self) -> int:
        return self.root.size


@dataclass(frozen=True)
class _Failed:
    """What cannot be bounded; an error only once the output needs it."""

    error: ArgumentError


@dataclass
class _Deferred:
    """A value found when it is asked for."""

    thunk: Callable[[], Any]
    found: Any = None
    done: bool = False

    def force(self) -> Any:
        if not self.done:
            self.found, self.done = self.thunk(), True
        return self.found


@dataclass
class _Walker:
    lins: list[Lin] = field(default_factory=list)
    linear_of: dict[tuple[int, int], Lin] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)  # formulas whose ids are keys
    places: dict[int, Place] = field(default_factory=dict)  # formula -> where it was first written
    made_at: dict[Lin, tuple[Any, Place | None]] = field(default_factory=dict)  # -> equation, call around it
    calls: list[Place] = field(default_factory=list)  # that the walk is inside of
    contract: bool = False  # whether softmax, maxima, norms and normalisations are steps of their own
    has_choice: bool = False  # whether there is one that may be

    # --- The walk -----------------------------------------------------------------------------------------------------

    def walk(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
        env |= dict(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Any:
            if hasattr(atom, "val"):
                return atom.val
            value = env[atom]
            if isinstance(value, _Deferred):
                value = env[atom] = value.force()
            return value

        def peek(atom: Any) -> Any:  # without forcing: for what is only handed on
            return atom.val if hasattr(atom, "val") else env[atom]

        for eqn in jaxpr.eqns:
            handing_on = eqn.primitive.name in _LOOPS or _formula.sub_jaxpr(eqn) is not None
            operands = [(peek if handing_on else read)(atom) for atom in eqn.invars]
            results = self.step(eqn, operands)
            env |= dict(zip(eqn.outvars, results, strict=True))
        return [peek(atom) for atom in jaxpr.outvars]

    def step(self, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        name = eqn.primitive.name
        if not eqn.outvars:  # debug.print and its like
            return []
        inner = _formula.sub_jaxpr(eqn)
        constant = all(_is_constant(operand) for operand in operands)
        if constant and (inner is None or name in _LOOPS or len(inner[0].eqns) > 32):
            return computed(eqn, operands)
        if name in _LOOPS:
            with self._inside(eqn, None):
                return getattr(self, f"_{name}")(eqn, operands)
        if inner is not None and name not in _formula.ELEMENTWISE and name not in _LINEAR:
            with self._inside(eqn, inner[0]):
                return self.walk(inner[0], list(inner[1]), operands)
        failed = next((operand for operand in operands if isinstance(operand, _Failed)), None)
        if failed is not None:
            return [failed] * len(eqn.outvars)
        count = len(self.lins)
        try:
            return self._results(eqn, operands)
        except UnsupportedError as error:
            return [self._failed(str(error), eqn)] * len(eqn.outvars)
        finally:
            for lin in self.lins[count:]:
                self.made_at.setdefault(lin, (eqn, self._call))

    @contextmanager
    def _inside(self, eqn: Any, body: Any) -> Iterator[None]:
        self.calls.append(called(eqn, body, self._call))
        try:
            yield
        finally:
            self.calls.pop()

    @property
    def _call(self) -> Place | None:
        return self.calls[-1] if self.calls else None

    def _place(self, eqn: Any) -> Place:
        """Where the user wrote it; inside of a library's function, where that was called."""
        return place(eqn, self._call)

    def _failed(self, reason: str, eqn: Any) -> _Failed:
        return _Failed(_unknown(reason, eqn.primitive.name, self._place(eqn).line))

    def _results(self, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        name, shape = eqn.primitive.name, tuple(eqn.outvars[0].aval.shape)
        _formula.refuse_integers(eqn)
        if name in _PASSED_ON:
            return operands
        if name in _RESHAPES or (name == "broadcast_in_dim" and operands[0].size == math.prod(shape)):
            value = operands[0]
            return [replace(value, shape=shape)]
        if name in _MOVES:
            index = np.arange(operands[0].size).reshape(1, *operands[0].shape)
            return [self._moved(operands[0], BATCHED[name](eqn.params, [0], index)[0])]
        if name == "sqrt":
            found = self._root_of_squares(operands[0], shape)
            if found is not None:
                return [found]
        if name == "log":
            found = self._logsumexp(operands[0], shape)
            if found is not None:
                return [found]
        if name == "sort":
            return self._sorted(eqn, operands)
        if name == "top_k":
            return self._largest_few(eqn, operands[0])
        if name in ("cummax", "cummin"):
            return [self._running(eqn, operands[0])]
        if name in ("reduce_max", "reduce_min"):
            return [self._reduced(operands[0], eqn)]
        if name in ("reduce_window_max", "reduce_window_min"):
            return [self._pooled(operands[0], eqn)]
        if name in ("scatter-mul", "scatter_mul") and all(map(_is_constant, operands[1:])):
            (factors,) = computed(eqn, [np.ones(operands[0].shape), *operands[1:]])
            return [self._rescaled("mul", operands[0], _constant_expr(factors, shape), shape)]
        if name in PRODUCTS:
            if not (_is_constant(operands[0]) or _is_constant(operands[1])):
                if name == "dot_general":
                    return [self._contracted(operands[0], operands[1], eqn)]
                raise UnsupportedError("a convolution with a kernel that depends on the input is not known")
            return [self._linear_primitive(eqn, operands, (0, 1))]
        if name in _LINEAR:
            places = _LINEAR[name]
            places = tuple(range(len(operands))) if places is None else places
            if any(not _is_constant(operands[i]) for i in range(len(operands)) if i not in places):
                raise UnsupportedError(f"`{name}` at places that depend on the input is not known")
            if name == "split":
                return self._split(eqn, operands[0])
            if name == "unstack":
                return self._unstacked(eqn, operands[0])
            return [self._linear_primitive(eqn, operands, places)]
        if name in _formula.ELEMENTWISE:
            return [self._elementwise(eqn, operands, shape)]
        raise UnsupportedError(f"`{name}` is neither linear nor elementwise, as far as is known here")

    # --- Entry by entry -----------------------------------------------------------------------------------------------

    def _elementwise(self, eqn: Any, operands: list[Any], shape: tuple[int, ...]) -> Any:
        name = eqn.primitive.name
        values = [operand if _is_constant(operand) else self._spread(operand, shape) for operand in operands]
        variables = [value for value in values if isinstance(value, _Value)]
        constants = [None if isinstance(value, _Value) else _constant_expr(value, shape) for value in values]
        arrays = [c for c in constants if c is not None and isinstance(c.value, np.ndarray)]
        if (
            len(variables) == 1
            and arrays
            and name in ("add", "sub", "mul", "div")
            and not _is_constant(values[0])
        ):
            return self._rescaled(name, variables[0], arrays[0], shape)
        if len(variables) == 1 and arrays and name in ("add", "sub", "mul"):
            first = variables[0]
            if name == "sub":  # c - x
                first = self._formula(eqn, "neg", [first], shape)
                name = "add"
            return self._rescaled(name, first, arrays[0], shape)
        if (
            name == "select_n"
            and len(variables) == 1
            and _is_constant(operands[0])
            and not all(_is_finite(operand) for operand in operands if _is_constant(operand))
        ):
            return self._masked(operands, shape)
        common = self._common(variables)
        if common is None:
            return self._joined(eqn, values, shape)
        root, exprs = common
        given = iter(exprs)
        arguments = [next(given) if c is None else c for c in constants]
        return self._applied(eqn, name, root, arguments, shape)

    def _formula(self, eqn: Any, name: str, variables: list[_Value], shape: tuple[int, ...]) -> Any:
        return self._applied(eqn, name, variables[0].root, [variables[0].expr], shape)

    def _applied(self, eqn: Any, name: str, root: Lin, arguments: list[Expr], shape: tuple[int, ...]) -> Any:
        expr = _formula.apply(name, arguments, eqn.params)
        if expr.is_constant:
            return np.broadcast_to(
                np.asarray(expr.value).reshape(shape if np.ndim(expr.value) else ()), shape
            )
        where = self._noted(expr, eqn)
        return _Value(root, expr, shape, where)

    def _noted(self, expr: Expr, eqn: Any) -> Place:
        where = self._place(eqn)
        if id(expr) not in self.places:
            self.places[id(expr)] = where._replace(name=eqn.primitive.name)
            self.kept.append(expr)
        return where

    def _rescaled(self, name: str, value: _Value, c: Expr, shape: tuple[int, ...]) -> _Value:
        """A sum x + c or product c x with an array c: a new linear map, that remembers what it is a formula of."""
        expr = _formula.apply(name, [_formula.variable(), c])
        lin = self._affine_of(self.linear(value), expr)
        return _Value(lin, _formula.variable(), shape)

    def _masked(self, operands: list[Any], shape: tuple[int, ...]) -> _Value:
        """A choice between one variable and constants, some infinite: a linear map, for 0 times infinity is NaN."""
        which, *cases = operands
        chosen = np.broadcast_to(np.asarray(which).astype(int), shape)
        (position,) = (k for k, case in enumerate(cases) if not _is_constant(case))
        keep = chosen == position
        if keep.all():
            return self._spread(cases[position], shape)
        shift = np.zeros(shape)
        for k, case in enumerate(cases):
            if k != position:
                shift = np.where(chosen == k, np.asarray(case, np.float64), shift)

        def fn(mode: str, v: Any) -> Any:
            return jnp.where(keep, v.reshape(shape), shift if mode == "affine" else 0.0)

        def host(mode: str, v: Any) -> Any:
            return np.where(keep, v.reshape(len(v), *shape), shift if mode == "affine" else 0.0)

        lin = self.linear(self._spread(cases[position], shape))
        masked = Lin(shape, (lin,), fn, host=host, data=("masked", np.where(keep, 0.0, shift)))
        return _Value(self._made(masked), _formula.variable(), shape)

    def _affine_of(self, lin: Lin, expr: Expr) -> Lin:
        scale, shift = expr.affine

        def fn(mode: str, v: Any) -> Any:
            if mode == "linear":
                return _shaped(scale, lin.shape) * v
            if mode == "absolute":
                return np.abs(_shaped(scale, lin.shape)) * v
            return _shaped(scale, lin.shape) * v + _shaped(shift, lin.shape)

        return self._made(Lin(lin.shape, (lin,), fn, host=fn, coefficients=(scale,), origin=(lin, expr)))

    def _common(self, variables: list[_Value]) -> tuple[Lin, list[Expr]] | None:
        """The nearest linear map of which all are formulas."""
        if all(value.root is variables[0].root for value in variables):
            return variables[0].root, [value.expr for value in variables]
        chains = []
        for value in variables:
            chain: dict[Lin, Expr] = {}
            root, expr = value.root, value.expr
            chain[root] = expr
            while root.origin is not None and len(chain) < 64:
                root, inner = root.origin
                expr = _formula.compose(expr, inner)
                self.kept.append(expr)
                chain[root] = expr
            chains.append(chain)
        for root in chains[0]:
            if all(root in chain for chain in chains):
                return root, [chain[root] for chain in chains]
        return None

    def _joined(self, eqn: Any, values: list[Any], shape: tuple[int, ...]) -> Any:
        """An elementwise primitive of variables that are no formulas of one."""
        name = eqn.primitive.name
        if name in ("add", "add_any", "sub"):
            return self._sum(values[0], values[1], -1.0 if name == "sub" else 1.0, shape)
        if name in ("max", "min"):
            return self._larger(values[0], values[1], name, eqn, shape)
        if name == "mul":
            return self._product(values[0], values[1], eqn, shape)
        if name == "div":
            found = self._softmax(values[0], values[1], shape)
            if found is not None:
                return found
            return self._product(values[0], self._inverse(eqn, values[1], shape), eqn, shape)
        if name == "select_n" and _is_constant(values[0]):
            return self._linear_primitive(eqn, values, tuple(range(1, len(values))))
        if name == "select_n" and (chosen := self._larger_by_choice(eqn, values, shape)) is not None:
            return chosen
        if name in ("lt", "le", "gt", "ge", "eq", "ne"):
            difference = self._sum(values[0], values[1], -1.0, shape)
            zero = _formula.constant(0.0)
            return self._applied(eqn, name, difference.root, [difference.expr, zero], shape)
        raise UnsupportedError(f"`{name}` of several variables is not known")

    def _larger_by_choice(self, eqn: Any, values: list[Any], shape: tuple[int, ...]) -> Any:
        """where(a > b, a, b) and the like: the larger or the smaller of both."""
        which, *cases = values
        if any(_is_constant(case) for case in cases) or len(cases) != 2:
            return None
        compared = which.root
        if compared.data != ("sum", -1.0) or which.expr.op not in ("gt", "ge", "lt", "le"):
            return None
        difference, zero = which.expr.args
        if difference.op != "var" or not zero.is_constant or np.any(zero.value):
            return None
        no, yes = (self.linear(case) for case in cases)
        for order, name in (((yes, no), "max"), ((no, yes), "min")):
            if all(map(_is_same, compared.parents, order)):
                name = name if which.expr.op[0] == "g" else {"max": "min", "min": "max"}[name]
                return self._larger(cases[1], cases[0], name, eqn, shape)
        return None

    def _inverse(self, eqn: Any, value: _Value, shape: tuple[int, ...]) -> Any:
        expr = _formula.apply("div", [_formula.constant(1.0), value.expr])
        return _Value(value.root, expr, shape, self._noted(expr, eqn))

    def _sum(self, u: Any, v: Any, sign: float, shape: tuple[int, ...]) -> _Value:
        first, second = self.linear(u), self.linear(v)

        def fn(mode: str, s: Any, t: Any) -> Any:
            s, t = s.reshape(shape), t.reshape(shape)
            return s + t if mode == "absolute" else s + sign * t

        def host(mode: str, s: Any, t: Any) -> Any:
            s, t = s.reshape(len(s), *shape), t.reshape(len(t), *shape)
            return s + t if mode == "absolute" else s + sign * t

        lin = Lin(shape, (first, second), fn, host=host, coefficients=(1.0, sign), data=("sum", sign))
        self._made(lin)
        return _Value(lin, _formula.variable(), shape)

    def _larger(self, u: _Value, v: _Value, name: str, eqn: Any, shape: tuple[int, ...]) -> Any:
        """max(u, v) = v + relu(u - v), min(u, v) = v - relu(v - u)."""
        self.has_choice = True
        if self.contract:
            joined = _Value(self._chained([u, v], (2, *shape)), _formula.variable(), (2, *shape))
            return self._ordered(
                joined, shape, name, 1.0, lambda v: (np.max if name == "max" else np.min)(v, 0)
            )
        sign = 1.0 if name == "max" else -1.0
        difference = self._sum(u, v, -1.0, shape) if name == "max" else self._sum(v, u, -1.0, shape)
        expr = _formula.apply("max", [difference.expr, _formula.constant(0.0)])
        where = self._noted(expr, eqn)
        return self._sum(v, _Value(difference.root, expr, shape, where), sign, shape)

    def _product(self, u: _Value, v: _Value, eqn: Any, shape: tuple[int, ...]) -> _Value:
        """The product, by u' v' - u v = v' (u' - u) + u (v' - v): bounded where u and v are."""
        if u.expr.is_bool or v.expr.is_bool:
            raise UnsupportedError("a product with a predicate of another variable is not known")
        if (found := self._normalised(u, v, shape) or self._normalised(v, u, shape)) is not None:
            return found
        first, second = self.linear(u), self.linear(v)
        first.cut()
        second.cut()
        lin = Lin(
            shape,
            (first, second),
            kind="product",
            where=refusal(
                "the slope of a product of two variables is unbounded over all inputs",
                eqn.primitive.name,
                self._place(eqn).line,
            ),
        )
        return _Value(self._made(lin), _formula.variable(), shape)

    # --- Linear maps --------------------------------------------------------------------------------------------------

    def _made(self, lin: Lin) -> Lin:
        self.lins.append(lin)
        return lin

    def linear(self, value: _Value) -> Lin:
        """The value as a linear map: of the same variables if its formula is affine, else of a new one."""
        expr = value.expr
        if expr.op == "var":
            return value.root
        key = (id(value.root), id(expr))
        if key not in self.linear_of:
            if expr.is_bool:
                raise UnsupportedError("a predicate that depends on the input is used as an array")
            self.kept.append(expr)
            if expr.affine is not None:
                lin = self._affine_of(value.root, expr)
            else:
                value.root.cut()
                lin = self._made(
                    Lin(
                        value.root.shape,
                        (value.root,),
                        kind="elementwise",
                        data=expr,
                        origin=(value.root, expr),
                    )
                )
            if value.place is not None:
                self.made_at[lin] = (None, value.place)
            self.linear_of[key] = lin
        return self.linear_of[key]

    def _spread(self, value: _Value, shape: tuple[int, ...]) -> _Value:
        """Broadcast as numpy does; entries in their order need no map."""
        if value.size == math.prod(shape):
            return replace(value, shape=shape)
        return self._moved(value, np.broadcast_to(np.arange(value.size).reshape(value.shape), shape))

    def _moved(self, value: _Value, index: np.ndarray) -> _Value:
        """The entries `index` of the flattened value; a predicate stays one."""
        if value.expr.is_bool:
            root, flat = self._taken(value.root, index), index.reshape(-1)
            return _Value(root, _formula.reindex(value.expr, lambda c: c[flat]), index.shape, value.place)
        return self._indexed(value, index)

    def _indexed(self, value: _Value, index: np.ndarray) -> _Value:
        """The entries `index` of the flattened value."""
        return _Value(self._taken(self.linear(value), index), _formula.variable(), index.shape)

    def _taken(self, lin: Lin, index: np.ndarray) -> Lin:
        if index.size == lin.size and (index.reshape(-1) == np.arange(lin.size)).all():
            return lin
        return self._made(
            Lin(
                index.shape,
                (lin,),
                lambda mode, v: v.reshape(-1)[index],
                host=lambda mode, v: v.reshape(len(v), lin.size)[:, index],
                data=("taken", index),
            )
        )

    def _linear_primitive(self, eqn: Any, operands: list[Any], places: tuple[int, ...]) -> _Value:
        shape = tuple(eqn.outvars[0].aval.shape)
        dependent = [i for i in range(len(operands)) if not _is_constant(operands[i])]
        shapes = [tuple(operands[i].shape) for i in dependent]
        is_product = eqn.primitive.name in PRODUCTS
        constants: list[Any] = []
        for i, operand in enumerate(operands):
            if i in dependent:
                constants.append(None)
            else:
                floating = i in places and jnp.issubdtype(jnp.result_type(operand), jnp.floating)
                constants.append(np.asarray(operand, np.float64) if floating else operand)
        params = in_float64(eqn.params)
        fill = params.get("fill_value")  # of a gather: what stands where an index is out of bounds

        def given(mode: str) -> list[Any]:
            filled = list(constants)
            for i in places:
                if filled[i] is not None and mode != "affine" and not is_product:
                    filled[i] = np.zeros_like(filled[i])
                elif filled[i] is not None and mode == "absolute":
                    filled[i] = np.abs(filled[i])
            return filled

        def fn(mode: str, *arrays: Any) -> Any:
            filled = given(mode)
            for i, array, its_shape in zip(dependent, arrays, shapes, strict=True):
                filled[i] = array.reshape(its_shape)
            changed = params if fill is None or mode == "affine" else params | {"fill_value": 0.0}
            return eqn.primitive.bind(*filled, **changed)

        def host(mode: str, *arrays: Any) -> Any:
            filled = given(mode)
            for i, array, its_shape in zip(dependent, arrays, shapes, strict=True):
                filled[i] = array.reshape(len(array), *its_shape)
            assert on_host is not None
            return on_host(params, dependent, *filled)

        on_host = BATCHED.get(eqn.primitive.name)
        if eqn.primitive.name == "pad" and any(
            min(config) < 0 or config[2] for config in params["padding_config"]
        ):
            on_host = None
        parents = tuple(self.linear(operands[i]) for i in dependent)
        lin = Lin(shape, parents, fn, host=None if on_host is None else host)
        if eqn.primitive.name == "reduce_sum":
            lin.data = ("reduce_sum", shapes[0], tuple(eqn.params["axes"]))
        return _Value(self._made(lin), _formula.variable(), shape)

    def _split(self, eqn: Any, value: _Value) -> list[_Value]:
        axis, start, parts = eqn.params["axis"], 0, []
        for size in eqn.params["sizes"]:
            index = np.arange(value.size).reshape(value.shape).take(range(start, start + size), axis)
            parts.append(self._indexed(value, index))
            start += size
        return parts

    def _unstacked(self, eqn: Any, value: _Value) -> list[_Value]:
        index = np.arange(value.size).reshape(value.shape)
        axis = eqn.params["axis"]
        return [self._indexed(value, np.asarray(index.take(i, axis))) for i in range(value.shape[axis])]

    def _contracted(self, u: _Value, v: _Value, eqn: Any) -> _Value:
        """A matrix product of two variables: every product, then sums."""
        (u_sum, v_sum), (u_batch, v_batch) = eqn.params["dimension_numbers"]
        u_free = [d for d in range(len(u.shape)) if d not in (*u_sum, *u_batch)]
        v_free = [d for d in range(len(v.shape)) if d not in (*v_sum, *v_batch)]
        batch = [u.shape[d] for d in u_batch]
        summed = [u.shape[d] for d in u_sum]
        frees = [u.shape[d] for d in u_free], [v.shape[d] for d in v_free]
        full = (*batch, *frees[0], *frees[1], *summed)
        u_index = np.arange(u.size).reshape(u.shape).transpose(*u_batch, *u_free, *u_sum)
        v_index = np.arange(v.size).reshape(v.shape).transpose(*v_batch, *v_free, *v_sum)
        u_index = u_index.reshape((*batch, *frees[0], *[1] * len(frees[1]), *summed))
        v_index = v_index.reshape((*batch, *[1] * len(frees[0]), *frees[1], *summed))
        left = self._indexed(u, np.ascontiguousarray(np.broadcast_to(u_index, full)))
        right = self._indexed(v, np.ascontiguousarray(np.broadcast_to(v_index, full)))
        products = self.linear(self._product(left, right, eqn, full))
        shape, terms = full[: len(full) - len(summed)], math.prod(summed)
        total = Lin(
            shape,
            (products,),
            lambda mode, x: x.reshape((*shape, terms)).sum(-1),
            host=lambda mode, x: x.reshape(len(x), *shape, terms).sum(-1),
        )
        return _Value(self._made(total), _formula.variable(), shape)

    # --- Maxima -------------------------------------------------------------------------------------------------------

    def _reduced(self, value: _Value, eqn: Any) -> Any:
        axes = eqn.params["axes"]
        kept = [d for d in range(len(value.shape)) if d not in axes]
        index = np.arange(value.size).reshape(value.shape).transpose(*axes, *kept)
        shape = tuple(value.shape[d] for d in kept)
        return self._tournament(value, index.reshape(-1, *shape), eqn, shape)

    def _pooled(self, value: _Value, eqn: Any) -> Any:
        """The entries of each window; padding repeats one of them, which leaves the maximum as it is."""
        params = eqn.params
        if any(d != 1 for d in params["base_dilation"]):
            raise UnsupportedError("pooling with a base dilation is not known")
        grids = []
        for d, size in enumerate(value.shape):
            count = eqn.outvars[0].aval.shape[d]
            start = np.arange(count) * params["window_strides"][d] - params["padding"][d][0]
            taps = start[:, None] + np.arange(params["window_dimensions"][d]) * params["window_dilation"][d]
            inside = (taps >= 0) & (taps < size)
            if not inside.any(1).all():
                raise UnsupportedError("pooling over windows of padding alone is not known")
            first = np.take_along_axis(taps, inside.argmax(1)[:, None], 1)
            grids.append(np.where(inside, taps, first))
        rank = len(value.shape)
        flat = np.zeros((1,) * (2 * rank), int)
        for d, grid in enumerate(grids):  # positions first, then taps
            flat = flat * value.shape[d]
            spread = [1] * (2 * rank)
            spread[d], spread[rank + d] = grid.shape
            flat = flat + grid.reshape(spread)
        shape = flat.shape[:rank]
        return self._tournament(value, np.moveaxis(flat.reshape(*shape, -1), -1, 0), eqn, shape)

    def _tournament(self, value: _Value, index: np.ndarray, eqn: Any, shape: tuple[int, ...]) -> Any:
        """The largest along the first axis of `index`, by rounds of pairs."""
        name = "max" if eqn.primitive.name.endswith("max") else "min"
        data = value.root.data
        if (
            value.root.kind == "op"
            and isinstance(data, tuple)
            and data[0] == "masked"
            and value.expr.op == "var"
        ):
            out = (data[1].reshape(-1) == (-np.inf if name == "max" else np.inf))[index]
            if out.all(0).any():
                raise UnsupportedError("the largest of masked entries alone is not known")
            index = np.where(out, np.take_along_axis(index, (~out).argmax(0)[None], 0), index)
        while index.shape[0] > 1 and (index[1:] == index[:1]).all():
            index = index[:1]
        if index.shape[0] > 1:
            self.has_choice = True
            if self.contract:  # an entry moves no more maxima than it is in
                constant = math.sqrt(np.bincount(index.reshape(-1)).max(initial=1)) * (1 + 1e-15)
                largest = np.max if name == "max" else np.min
                return self._ordered(value, shape, name, constant, lambda v: largest(v.reshape(-1)[index], 0))
        current = self._indexed(value, index)
        while current.shape[0] > 1:
            half = current.shape[0] // 2
            positions = np.arange(current.size).reshape(current.shape)
            pairs = (half, *current.shape[1:])
            best = self._larger(
                self._indexed(current, positions[:half]),
                self._indexed(current, positions[half : 2 * half]),
                name,
                eqn,
                pairs,
            )
            if current.shape[0] % 2:
                left_over = self._indexed(current, positions[2 * half :])
                joined = (half + 1, *current.shape[1:])
                best = _Value(self._chained([best, left_over], joined), _formula.variable(), joined)
            current = best
        return _Value(current.root, current.expr, shape)

    def _chained(self, values: list[Any], shape: tuple[int, ...]) -> Lin:
        """The entries of one after those of the other."""
        parents = tuple(self.linear(value) for value in values if not _is_constant(value))
        constants = [
            np.asarray(value, np.float64).reshape(1, -1) if _is_constant(value) else None for value in values
        ]

        def parts(mode: str, k: int, arrays: Iterator[Any]) -> list[Any]:
            return [
                next(arrays).reshape(k, -1)
                if c is None
                else np.broadcast_to(c if mode == "affine" else np.zeros_like(c), (k, c.size))
                for c in constants
            ]

        def fn(mode: str, *arrays: Any) -> Any:
            return jnp.concatenate(parts(mode, 1, iter(arrays)), 1).reshape(shape)

        def host(mode: str, *arrays: Any) -> Any:
            return np.concatenate(parts(mode, len(arrays[0]), iter(arrays)), 1).reshape(
                len(arrays[0]), *shape
            )

        return self._made(Lin(shape, parents, fn, host=host))

    # --- What stretches nothing by more than a number -----------------------------------------------------------------

    def _stretched(self, value: _Value, shape: tuple[int, ...], known: _stretch.Stretched) -> _Value:
        lin = self.linear(value)
        lin.cut()
        return _Value(
            self._made(Lin(shape, (lin,), kind="contraction", data=known)), _formula.variable(), shape
        )

    def _ordered(self, value: _Value, shape: tuple[int, ...], name: str, constant: float, fn: Any) -> _Value:
        return self._stretched(value, shape, _stretch.ordered(name, constant, value.shape, fn))

    def _sorted(self, eqn: Any, operands: list[Any]) -> list[Any]:
        """Sorting keeps distances or lessens them: the order of one is a permutation of the other's."""
        value, *others = operands
        if eqn.params["num_keys"] != 1 or _is_constant(value) or not all(map(_is_constant, others)):
            raise UnsupportedError("a `sort` of several operands is not known")
        axis = eqn.params["dimension"]
        result = self._ordered(value, value.shape, "sort", 1.0, lambda v: np.sort(v, axis))
        return [result, *[self._failed("the order of entries has no slope", eqn)] * len(others)]

    def _largest_few(self, eqn: Any, value: _Value) -> list[Any]:
        count, axis = eqn.params["k"], eqn.params.get("axis", -1)
        shape = tuple(eqn.outvars[0].aval.shape)

        def largest(v: Any) -> Any:
            return np.flip(np.sort(v, axis), axis).take(range(count), axis)

        result = self._ordered(value, shape, "top_k", 1.0, largest)
        return [result, self._failed("the order of entries has no slope", eqn)]

    def _running(self, eqn: Any, value: _Value) -> _Value:
        """No entry of a running maximum moves by more than the largest that it has passed."""
        axis, name = eqn.params["axis"], eqn.primitive.name
        accumulate = (np.maximum if name == "cummax" else np.minimum).accumulate

        def running(v: Any) -> Any:
            v = np.flip(v, axis) if eqn.params["reverse"] else v
            found = accumulate(v, axis)
            return np.flip(found, axis) if eqn.params["reverse"] else found

        constant = math.sqrt(value.shape[axis]) * (1 + 1e-15)
        return self._ordered(value, value.shape, name, constant, running)

    def _squares(self, value: _Value) -> tuple[Lin, float, float, np.ndarray] | None:
        """Of a sum a sum_j x_j^2 + b, a > 0 and b >= 0: x, a, b and the positions [sum, term]."""
        total, affine = value.root, value.expr.affine
        if affine is None or not all(isinstance(each, float) for each in affine) or not affine[0] > 0:
            return None
        if total.kind != "op" or not isinstance(total.data, tuple) or total.data[0] != "reduce_sum":
            return None
        (terms,) = total.parents
        is_square = terms.kind == "elementwise" and terms.data.op == "integer_pow" and terms.data.param == 2
        if not is_square or terms.data.args[0].affine is None or affine[1] < 0:
            return None
        _, shape, axes = total.data
        kept = [d for d in range(len(shape)) if d not in axes]
        positions = np.arange(terms.size).reshape(shape).transpose(*kept, *axes).reshape(total.size, -1)
        x = self.linear(_Value(terms.parents[0], terms.data.args[0], terms.shape))
        return x, *affine, positions

    def _root_of_squares(self, value: _Value, shape: tuple[int, ...]) -> _Value | None:
        """sqrt(a |x|^2 + b), whose gradient a x / sqrt(a |x|^2 + b) is no longer than sqrt(a)."""
        found = self._squares(value)
        if found is None:
            return None
        self.has_choice = True
        if not self.contract:
            return None
        known = _stretch.norm(*found)
        return self._stretched(_Value(found[0], _formula.variable(), found[0].shape), shape, known)

    def _normalised(self, u: _Value, v: _Value, shape: tuple[int, ...]) -> _Value | None:
        """Of x / sqrt(a |x|^2 + b), b > 0, the Jacobian (I - a x x^T / r^2) / r is no longer than 1 / sqrt(b).

        Here u is c x, and v the inverse root or, with gains for the entries, gamma times that.
        """
        spread, gains = v.root, None
        if spread.origin is not None and v.expr.op == "var" and not np.any(spread.origin[1].affine[1]):
            gains = _formula.constant(spread.origin[1].affine[0])
            spread = spread.origin[0]
        if not isinstance(spread.data, tuple) or spread.data[0] != "taken":
            return None
        (inner,) = spread.parents
        inverse = v.expr.op == "integer_pow" and v.expr.param == -1 and v.expr.args[0].op == "var"
        found = None
        if inner.kind == "contraction" and inverse:
            found = inner.data.squares
        elif inner.kind == "elementwise" and (
            (inner.data.op == "rsqrt" and v.expr.op == "var") or (inner.data.op == "sqrt" and inverse)
        ):
            found = self._squares(_Value(inner.parents[0], inner.data.args[0], inner.shape))
        if found is None or not found[2] > 0:
            return None
        x, a, b, positions = found
        index = spread.data[1].reshape(-1)
        if not (index[positions] == np.arange(inner.size)[:, None]).all():
            return None
        factor = ratio(self.linear(u), x)
        if factor is None:
            return None
        self.has_choice = True
        if not self.contract:
            return None

        known = _stretch.normalisation(x.size, a, b, positions)
        result = self._stretched(_Value(x, _formula.variable(), x.shape), shape, known)
        scale = _formula.apply("mul", [_formula.constant(factor), gains or _formula.constant(1.0)])
        return result if factor == 1 and gains is None else self._rescaled("mul", result, scale, shape)

    # --- Softmax ------------------------------------------------------------------------------------------------------

    def _exponentials(self, total: Lin) -> tuple[Lin, Lin, Lin | None, np.ndarray] | None:
        """Of a sum of exp(r): r, x, c and the positions [sum, term], where r = x - c if c is equal within each sum."""
        if total.kind != "op" or not isinstance(total.data, tuple) or total.data[0] != "reduce_sum":
            return None
        (terms,) = total.parents
        if terms.kind != "elementwise" or terms.data.op != "exp" or terms.data.args[0].affine is None:
            return None
        _, shape, axes = total.data
        kept = [d for d in range(len(shape)) if d not in axes]
        order = np.arange(terms.size).reshape(shape).transpose(*kept, *axes)
        positions = order.reshape(total.size, -1)
        r = self.linear(_Value(terms.parents[0], terms.data.args[0], terms.shape))
        if isinstance(r.data, tuple) and r.data == ("sum", -1.0):
            x, c = r.parents
            if isinstance(c.data, tuple) and c.data[0] == "taken":
                index = c.data[1].reshape(-1)[positions]
                if (index == index[:, :1]).all():  # log sum exp(x - c) = log sum exp(x) - c
                    return r, x, self._taken(c.parents[0], index[:, 0].reshape(total.shape)), positions
        return r, r, None, positions

    def _weighted(self, x: Lin, positions: np.ndarray, shape: tuple[int, ...]) -> Lin:
        """The log of sum exp(x): d lse = sum_j w_j dx_j, the weights w_j between the extremes of softmax(x)_j."""
        x.cut()
        weighted = self._made(Lin(x.shape, (x,), kind="weights", data=positions))
        lin = Lin(
            shape,
            (weighted,),
            lambda mode, v: v.reshape(-1)[positions].sum(-1).reshape(shape),
            host=lambda mode, v: v.reshape(len(v), -1)[:, positions].sum(-1).reshape(-1, *shape),
        )
        return self._made(lin)

    def _logsumexp(self, value: _Value, shape: tuple[int, ...]) -> _Value | None:
        inner = value.expr.args[0] if value.expr.op == "abs" else value.expr  # the sum is positive
        found = self._exponentials(value.root) if inner.op == "var" else None
        if found is None:
            return None
        _, x, c, positions = found
        self.has_choice = True
        if self.contract:
            lse = self._ordered(
                _Value(x, _formula.variable(), x.shape),
                shape,
                "logsumexp",
                1.0,
                lambda v: scipy.special.logsumexp(v.reshape(-1)[positions], axis=1),
            )
        else:
            lse = _Value(self._weighted(x, positions, shape), _formula.variable(), shape)
        if c is None:
            return lse
        result = self._sum(lse, _Value(c, _formula.variable(), shape), -1.0, shape)
        # c is added back soon: as long as this is no variable of its own, it cancels.
        result.root.is_leaf = False
        result.root.leaves = frozenset(leaf for parent in result.root.parents for leaf in parent.leaves)
        return result

    def _softmax(self, u: Any, v: Any, shape: tuple[int, ...]) -> _Value | None:
        """exp(x_i) / sum_j exp(x_j) = exp(x_i - lse(x)), whose slope lies between its own extreme values."""
        if (
            _is_constant(u)
            or v.expr.op != "var"
            or not isinstance(v.root.data, tuple)
            or v.root.data[0] != "taken"
        ):
            return None
        total = v.root.parents[0]
        found = self._exponentials(total)
        if found is None or self.linear_of.get((id(u.root), id(u.expr))) is not total.parents[0]:
            return None
        _, x, _, positions = found
        index = v.root.data[1].reshape(-1)
        if not (index[positions] == np.arange(total.size)[:, None]).all():
            return None
        self.has_choice = True
        if self.contract:
            known = _stretch.softmax(positions)
            return self._stretched(_Value(x, _formula.variable(), x.shape), shape, known)
        lse = self._taken(self._weighted(x, positions, total.shape), index.reshape(shape))
        shifted = self._sum(
            _Value(x, _formula.variable(), shape), _Value(lse, _formula.variable(), shape), -1.0, shape
        )
        shifted.root.cut()
        lin = self._made(Lin(shape, (shifted.root, x), kind="softmax", data=positions))
        return _Value(lin, _formula.variable(), shape)

    # --- Loops --------------------------------------------------------------------------------------------------------

    def _scan(self, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        params = eqn.params
        body = params["jaxpr"]
        if "num_consts" in params:
            num_consts, num_carry = params["num_consts"], params["num_carry"]
        else:  # from jax 0.11 on
            num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
        consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
        stacked = operands[num_consts + num_carry :]
        order = range(params["length"])
        collected: list[list[Any]] = []
        for i in reversed(order) if params["reverse"] else order:
            rows = [self._row(each, i) for each in stacked]
            results = self.walk_lazily(body, [*consts, *carry, *rows])
            carry = results[:num_carry]
            collected.append(results[num_carry:])
        if params["reverse"]:
            collected.reverse()
        avals = [atom.aval for atom in eqn.outvars[num_carry:]]
        line = self._place(eqn).line

        def stacked_outputs(k: int, aval: Any) -> Callable[[], Any]:
            return lambda: self._stacked([row[k] for row in collected], aval, line)

        outputs = [_Deferred(stacked_outputs(k, aval)) for k, aval in enumerate(avals)]
        return [*carry, *outputs]

    def walk_lazily(self, closed: Any, args: list[Any]) -> list[Any]:
        return self.walk(closed.jaxpr, list(closed.consts), args)

    def _row(self, stacked: Any, i: int) -> Any:
        if isinstance(stacked, _Deferred):
            stacked = stacked.force()
        if isinstance(stacked, _Failed):
            return stacked
        if _is_constant(stacked):
            return stacked[i]
        index = np.arange(stacked.size).reshape(stacked.shape)[i]
        try:
            return self._indexed(stacked, index)
        except UnsupportedError as error:
            return _Failed(_unknown(str(error), "scan", self.calls[-1].line))

    def _stacked(self, rows: list[Any], aval: Any, line: str) -> Any:
        rows = [row.force() if isinstance(row, _Deferred) else row for row in rows]
        failed = next((row for row in rows if isinstance(row, _Failed)), None)
        if failed is not None:
            return failed
        shape = tuple(aval.shape)
        if all(_is_constant(row) for row in rows):
            return np.stack([np.asarray(row) for row in rows]) if rows else np.zeros(shape, aval.dtype)
        try:
            return _Value(self._chained(rows, shape), _formula.variable(), shape)
        except UnsupportedError as error:
            return _Failed(_unknown(str(error), "scan", line))

    def _while(self, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        params = eqn.params
        cut = params["cond_nconsts"]
        stop = cut + params["body_nconsts"]
        cond_consts, body_consts, carry = operands[:cut], operands[cut:stop], operands[stop:]
        while True:
            (go_on,) = self.walk_lazily(params["cond_jaxpr"], [*cond_consts, *carry])
            go_on = go_on.force() if isinstance(go_on, _Deferred) else go_on
            if isinstance(go_on, _Failed):
                return [go_on] * len(carry)
            if not _is_constant(go_on):
                message = "the number of turns of a loop depends on the input"
                return [self._failed(message, eqn)] * len(carry)
            if not np.asarray(go_on):
                return carry
            carry = self.walk_lazily(params["body_jaxpr"], [*body_consts, *carry])

    def _cond(self, eqn: Any, operands: list[Any]) -> Sequence[Any]:
        which, *args = operands
        if isinstance(which, _Deferred):
            which = which.force()
        if isinstance(which, _Failed):
            return [which] * len(eqn.outvars)
        if not _is_constant(which):
            message = "which branch runs depends on the input: write it as jnp.where"
            return [self._failed(message, eqn)] * len(eqn.outvars)
        branches = eqn.params["branches"]
        return self.walk_lazily(branches[int(np.clip(int(which), 0, len(branches) - 1))], args)

    # --- The program --------------------------------------------------------------------------------------------------

    def finish(self, source: Lin, outputs: list[Any], exact: bool) -> Lowered:
        outputs = [output.force() if isinstance(output, _Deferred) else output for output in outputs]
        for output in outputs:
            if isinstance(output, _Failed):
                raise output.error
        for output in outputs:
            if _is_constant(output) and not _is_finite(output):
                raise ArgumentError(
                    "must have finite outputs, got NaN or inf in one that does not depend on the input.",
                    "Load finite weights, or leave that output out.",
                    argument="fn",
                )
        depends = tuple(not _is_constant(output) and output.size > 0 for output in outputs)
        try:
            result = self._output(
                source, [output for output, does in zip(outputs, depends, strict=True) if does]
            )
        except UnsupportedError as error:
            raise ArgumentError(f"The output cannot be bounded: {error}.", "Leave it out.") from None
        program, restricted = emitted(source, result, self.lins, self.places, self.made_at)
        assumptions = [
            "the function is meant in exact arithmetic, with its parameters as they are",
            f"no intermediate value exceeds {_slopes.LARGEST:.1e}",
            "it is defined and finite at every input in question",
            "branches that agree where a `where` switches, to the bound on their rounding there (at most 1e-10 of "
            "their size or slope times input), count as continuous",
            "numpy's and scipy's elementary functions are right to 8 ulp",
            "what the function computes from parameters alone is taken as its dtypes round it; linear maps composed "
            "from that are right to rounding in float64",
        ]
        if not exact:
            assumptions.append(
                "it could not be traced in float64: what it computes from parameters alone is rounded"
            )
        return Lowered(program, tuple(assumptions), restricted, depends, exact, has_choice=self.has_choice)

    def _output(self, source: Lin, outputs: list[_Value]) -> Lin:
        lins = [self.linear(output) for output in outputs]
        if len(lins) == 1:
            return lins[0]
        if not lins:
            return self._made(Lin((1,), (source,), lambda mode, v: jnp.zeros((1,))))
        size = sum(lin.size for lin in lins)
        return self._made(
            Lin(
                (size,),
                tuple(lins),
                lambda mode, *parts: jnp.concatenate([part.reshape(-1) for part in parts]),
            )
        )


def _is_same(one: Lin, other: Lin) -> bool:
    """Whether two maps are one: as one slice is that was written twice."""
    if one is other:
        return True
    are_taken = all(isinstance(each.data, tuple) and each.data[0] == "taken" for each in (one, other))
    return are_taken and one.parents == other.parents and np.array_equal(one.data[1], other.data[1])


def _is_constant(value: Any) -> bool:
    return not isinstance(value, _Value | _Failed | _Deferred)


def _constant_expr(value: Any, shape: tuple[int, ...]) -> Expr:
    values = np.asarray(value)
    if values.dtype != np.bool_:
        values = values.astype(np.float64)
    if values.size == 1:
        return _formula.constant(values.reshape(()))
    return _formula.constant(np.broadcast_to(values, shape).reshape(-1).copy())


def _is_finite(values: Any) -> bool:
    values = np.asarray(values)
    return values.dtype.kind not in "fc" or bool(np.isfinite(values).all())


def _shaped(values: Any, shape: tuple[int, ...]) -> Any:
    return values.reshape(shape) if isinstance(values, np.ndarray) and values.ndim else values


def _unknown(reason: str, primitive: str, line: str) -> ArgumentError:
    return ArgumentError(
        f"cannot be bounded: {reason} (`{primitive}` at {line}).",
        "Write that part with affine and elementwise operations, or bound the parts before and after it.",
        argument="fn",
    )
