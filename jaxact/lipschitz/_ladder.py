"""Every Lipschitz number of one function, from the steepest place found to the product of its layers' norms."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxact import xla
from jaxact.errors import ArgumentError, one_line
from jaxact.lipschitz._certify import certify, checked
from jaxact.lipschitz._clever import clever
from jaxact.lipschitz._lower import lower_bound
from jaxact.lipschitz._program import Certificate, Region
from jaxact.lipschitz._within import inside, middle, starts_inside
from jaxact.numerics import check_inference, traced, widest_input
from jaxact.trace import StepRecord, run_again

_SLOPE, _CLEVER = "slope attained", "CLEVER"
_ELLIPSOID, _CLOSED, _PRODUCT = "ellipsoid", "closed form", "product of norms"
_ATTAINED: Final = "attained"
_CERTIFIED: Final = "certified upper bound"
_ESTIMATE: Final = "estimate"
_REFUSED: Final = "refused"
_NUM_STARTS, _MOST_STARTS = 8, 32
_SCALES = (0.25, 1.0, 4.0)
_NUM_CROSSINGS, _FEW = 10, 64  # walking across kinks pays where there are few of them: small inputs
_NUM_GROUPS, _GROUP_SIZE = 50, 40
_LARGEST = 308  # powers of 10 above it exceed float64

Kind = Literal["attained", "certified upper bound", "estimate", "refused"]


class Rung(NamedTuple):
    """One Lipschitz number and what it is worth.

    Attributes:
        name: "slope attained", "CLEVER", "ellipsoid", "closed form" or "product of norms".
        kind: "attained": a lower bound, up to rounding. "certified upper bound": under `assumptions`. "estimate": on
            either side of the constant. "refused": no bound over all inputs exists, or none is known.
        region: where it holds; None for all inputs.
        value: of the number, inf where it exceeds float64; None where there is none.
        log10: its decimal logarithm.
        method: how it was found.
        num_steps: of refinement or of the search.
        seconds: wall clock, compilation included.
        assumptions: what it takes for granted, in words.
        witness: an input that attains it, float64 [*input]; None but for "attained".
        certificate: what `certify` gave, for its factors; None for the other kinds.
        missing: why there is no value.
        refusal: the error of `certify` that says so, without its traceback; an `ArgumentError` has it in fields.
    """

    name: str
    kind: Kind
    region: Region | None
    value: float | None = None
    log10: float | None = None
    method: str | None = None
    num_steps: int | None = None
    seconds: float | None = None
    assumptions: tuple[str, ...] = ()
    witness: Float[np.ndarray, " *input"] | None = None
    certificate: Certificate | None = None
    missing: str | None = None
    refusal: Exception | None = None


class Layer(NamedTuple):
    """What one step of the function does to each upper bound.

    Attributes:
        step: what it is, its sizes and the line of the model.
        log10_factors: by the name of a bound, log10 of what the step multiplies it by; None where it has no such step.
    """

    step: StepRecord
    log10_factors: dict[str, float | None]


class Ladder(NamedTuple):
    """Bounds on a Lipschitz constant from both sides.

    Attributes:
        rungs: ascending in strength of their claim: attained, estimated, then certified from the tightest to the
            product of norms; those of the region first, then those over all inputs.
        region: that was asked for; None for all inputs alone.
        dtype: in which slopes were searched for: float64, or float32 where the function insists.
        seed: of everything random.
    """

    rungs: tuple[Rung, ...]
    region: Region | None
    dtype: Any
    seed: int

    @property
    def lower(self) -> Rung:
        """The slope attained in the region."""
        return next(rung for rung in self.rungs if rung.kind == _ATTAINED and rung.region is self.region)

    @property
    def upper(self) -> Rung:
        """The smallest certificate that holds in the region: those over all inputs do."""
        found = _valued(self.rungs, _CERTIFIED)
        here = [rung for rung in found if rung.region is self.region]
        return min([*here, *found], key=_log10)  # the region's own first among equals

    @property
    def log10_ratio(self) -> float | None:
        """Log10 of upper / lower: 0 where the constant is known; None where no slope was found or both are 0."""
        upper, lower = self.upper.log10, self.lower.log10
        if upper is None or lower is None or (lower == upper == -math.inf):
            return None
        return upper - lower

    @property
    def ratio(self) -> float | None:
        """Upper / lower; inf where it exceeds float64."""
        log = self.log10_ratio
        return None if log is None else 10**log if log < _LARGEST else math.inf

    @property
    def layers(self) -> tuple[Layer, ...]:
        """How much each step lets each bound grow: the factors of a bound multiply to it."""
        columns: dict[str, dict[StepRecord, float]] = {}
        for rung in self.rungs:  # the region's come first
            found = rung.certificate
            if found is None or not found.factors or rung.name in columns:
                continue
            columns[rung.name] = {step: log / math.log(10) for step, log in found.factors}
        steps = dict.fromkeys(step for column in columns.values() for step in column)
        return tuple(
            Layer(step, {name: column.get(step) for name, column in columns.items()}) for step in steps
        )


class _Function(NamedTuple):
    """The function as each search wants it."""

    call: Callable[[Any], Any]  # [*shape] -> arrays
    flat: Callable[[Any], Any]  # [*shape] -> [outputs]
    tangent: Callable[[Any, Any], Any] | None  # (x, v) -> J(x) v, [outputs]
    example: Any
    dtype: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.example)


def ladder(
    fn: Callable[[Any], Any],
    example: Float[ArrayLike, "*input"],
    *,
    region: Region | None = None,
    inputs: Float[ArrayLike, " start *input"] | None = None,
    tangent: Callable[[Any, Any], Any] | None = None,
    num_steps: int = 50,
    seconds: float | None = 30.0,
    memory_limit: int = 2048,
    lower_steps: int = 50,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Ladder:
    """Bound the Lipschitz constant of a JAX function from below and from above, by every method there is.

        max ||J(x)||_2 over the x found  <=  K = sup ||fn(x') - fn(x)||_2 / ||x' - x||_2  <=  every certificate

    all in the Euclidean norm, over all inputs and within `region`:

        slope attained    `lower_bound`: the norm of the Jacobian at the steepest place found; attained, up to rounding
        CLEVER            `clever`: an ESTIMATE from sampled slopes, on either side of K
        ellipsoid         `certify`, refined: a certified upper bound, rounding included
        closed form       the same without refinement
        product of norms  the same with norms of layers alone, added where paths meet

    The constant is between the first and the smallest certified one. What is attained in the region is attained, so it
    raises the slope over all inputs; an estimate above a certificate is marked as refuted.

    Args:
        fn: a function of ONE input, closed over its parameters, as in `certify`; any pytree of arrays is one vector.
        example: an input, or any array of its shape [*input].
        region: a `Ball` or `Box` to bound it in beside all inputs.
        inputs: [n, *input] to start the search for steep places from, of which the first 32 are used; 8 standard normal
            ones by default.
        tangent: (x, v) -> J(x) v where `jax.jvp` refuses `fn`, as in `lower_bound`.
        num_steps: of refining the certificate; 0 leaves its closed form.
        seconds: stop each refinement after so long.
        memory_limit: of the ellipsoid and the closed form, as in `certify`.
        lower_steps: of the search, from every start.
        seed: of the starts, of the search and of CLEVER's samples.
        progress: called with the name of each number before it is looked for.

    Returns:
        A `Ladder`; runs on the host.

    Raises:
        TypeError: as `certify`.
        ValueError: as `certify`, where the function can be bounded neither over all inputs nor within `region`; or
            `inputs` is not [n, *input].

    Example:
        >>> import jax.numpy as jnp
        >>> found = ladder(lambda x: 3 * x, jnp.zeros(2), num_steps=0, lower_steps=0)
        >>> round(found.lower.value, 6), round(found.upper.value, 6), [rung.kind for rung in found.rungs][:2]
        (3.0, 3.0, ['attained', 'estimate'])
    """
    example = checked(fn, example, 2, region)
    check_inference(traced(fn, example)[0])
    function = _function(fn, example, tangent)
    closed, refusal = _closed_forms(
        function, region, memory_limit
    )  # what cannot be certified is said before anything takes long
    key_starts, key_search, key_clever = jax.random.split(jax.random.key(seed), 3)
    starts = _starts(function, inputs, key_starts)
    find = {
        _SLOPE: lambda where: _attained(function, where, starts, lower_steps, key_search, seed),
        _CLEVER: lambda where: _estimated(function, where, starts, key_clever),
        _ELLIPSOID: lambda where: _certified(
            function, where, _ELLIPSOID, num_steps, seconds, memory_limit=memory_limit
        ),
        _CLOSED: lambda where: closed[where] if where in closed else _refused(refusal),
        _PRODUCT: lambda where: _certified(function, where, _PRODUCT, memory_limit=1),
    }
    rungs = []
    for name, where in _plan(region, refusal is not None, num_steps):
        if progress is not None:
            progress(name)
        rungs.append(find[name](where))
    return Ladder(_reconciled(rungs), region, function.dtype, seed)


def _function(fn: Any, example: Any, tangent: Any) -> _Function:
    # jit: the many places where the search calls it share one trace.
    flat = jax.jit(lambda x: _flat(fn(x)))
    push = None if tangent is None else (lambda x, v: _flat(tangent(x, v)))
    return _Function(fn, flat, push, example, widest_input(fn, np.shape(example)).dtype)


def _flat(outputs: Any) -> Array:
    return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(outputs)])


def _closed_forms(
    function: _Function, region: Region | None, memory_limit: int
) -> tuple[dict[Region | None, Rung], Exception | None]:
    """The closed form over all inputs and in the region, and why there is none over all inputs."""
    closed: dict[Region | None, Rung] = {}
    refusal: Exception | None = None
    try:
        closed[None] = _certified(function, None, _CLOSED, memory_limit=memory_limit)
    except (TypeError, ValueError) as error:
        if region is None:
            raise
        refusal = error.with_traceback(None)  # whose frames would hold arrays
    if region is not None:
        closed[region] = _certified(function, region, _CLOSED, memory_limit=memory_limit)
    return closed, refusal


def _plan(region: Region | None, refused: bool, num_steps: int) -> list[tuple[str, Region | None]]:
    """The names of the numbers to be found, with where they are to hold."""
    refined = [_ELLIPSOID] if num_steps else []
    everywhere = [_SLOPE, *refined, _CLOSED, _PRODUCT]
    if region is None:
        return [(name, None) for name in (_SLOPE, _CLEVER, *everywhere[1:])]
    here = [_SLOPE, _CLEVER, *refined, _CLOSED]
    if refused:  # a search over all inputs would find slopes without end
        here, everywhere = [*here, _PRODUCT], [_CLOSED]
    return [*((name, region) for name in here), *((name, None) for name in everywhere)]


def _starts(function: _Function, inputs: Any, key: Array) -> Array:
    if inputs is not None and (np.shape(inputs)[1:] != function.shape or not np.size(inputs)):
        raise ArgumentError(
            f"must be inputs [n, {', '.join(map(str, function.shape))}], got shape {np.shape(inputs)}.",
            "Pass x[None] for one input.",
            argument="inputs",
        )
    with jax.enable_x64(True):
        if inputs is not None:
            return jnp.asarray(inputs[:_MOST_STARTS], function.dtype)
        return jax.random.normal(key, (_NUM_STARTS, *function.shape), function.dtype)


# --- One number each ------------------------------------------------------------------------------------------


def _certified(
    function: _Function,
    where: Region | None,
    name: str,
    num_steps: int = 0,
    seconds: float | None = None,
    **limits: int,
) -> Rung:
    found = certify(
        function.call, function.example, region=where, num_steps=num_steps, seconds=seconds, **limits
    )
    return Rung(
        name,
        _CERTIFIED if found.certified else _ESTIMATE,
        where,
        float(found.value),
        float(found.log10),
        method="norms of operators alone" if name == _PRODUCT else found.method,
        num_steps=max(len(found.history) - 1, 0),
        seconds=found.seconds,
        assumptions=(*found.assumptions, *_method_notes(found, name)),
        certificate=found,
    )


def _method_notes(found: Certificate, name: str) -> list[str]:
    """What the method says beyond its name."""
    notes = []
    if found.by_norms_beyond is not None and name != _PRODUCT:
        notes.append(f"by norms where more than {found.by_norms_beyond} entries are in use (`memory_limit`)")
    if found.region is not None and found.is_global:
        notes.append("the bound over all inputs is the better one here")
    return notes


def _refused(refusal: Exception | None) -> Rung:
    return Rung(_CLOSED, _REFUSED, None, missing=str(refusal), refusal=refusal)


def _attained(
    function: _Function, where: Region | None, starts: Array, num_steps: int, key: Array, seed: int
) -> Rung:
    """The steepest place found."""
    started = time.perf_counter()
    with jax.enable_x64(True):
        place = inside(where, function.dtype).place
        begin = starts if where is None else starts_inside(where, starts, function.dtype, seed)
        try:
            found = run_again(lambda: _search(function, where, num_steps)(begin, key=key))
        except (TypeError, ValueError, NotImplementedError) as error:
            return Rung(_SLOPE, _ATTAINED, where, missing=f"no slope was found: {one_line(error)}")
        value, witness = float(found.value), np.asarray(place(found.input), np.float64)
    if math.isnan(value):
        return Rung(
            _SLOPE,
            _ATTAINED,
            where,
            missing="no slope was found: the Jacobian is not finite at any start",
        )
    return Rung(
        _SLOPE,
        _ATTAINED,
        where,
        value,
        _log10_of(value),
        method=f"ascent on the Jacobian's norm, {num_steps} steps",
        num_steps=num_steps,
        seconds=time.perf_counter() - started,
        assumptions=(
            f"up to rounding in {jnp.dtype(function.dtype).name}; the model's derivative is that of its values",
        ),
        witness=witness,
    )


def _search(function: _Function, where: Region | None, num_steps: int) -> Any:
    """`lower_bound` of the function, within a region of y -> fn(x(y)) / scale; compiled."""
    place, scale = inside(where, function.dtype)
    fn, push = function.flat, function.tangent
    if where is not None:
        fn = lambda y: function.flat(place(y)) / scale  # noqa: E731
    if push is not None and where is not None:
        push = lambda y, v: function.tangent(*jax.jvp(place, (y,), (v,))) / scale  # type: ignore[misc]  # noqa: E731
    is_small = math.prod(function.shape) <= _FEW
    search = functools.partial(
        lower_bound,
        fn,
        num_steps=num_steps,
        tangent=push,
        scales=_SCALES if where is None else (1.0,),
        num_crossings=_NUM_CROSSINGS if num_steps and is_small else 0,
    )
    # Compiled once, run once: optimising would take longer than it saves.
    return jax.jit(search, compiler_options=xla.options(0))


def _estimated(function: _Function, where: Region | None, starts: Array, key: Array) -> Rung:
    """CLEVER in the region's largest ball, or, over all inputs, in one about 0 as large as the starts."""
    started = time.perf_counter()
    center, radius = _around(starts) if where is None else middle(where)
    with jax.enable_x64(True):
        sampled = functools.partial(clever, num_groups=_NUM_GROUPS, group_size=_GROUP_SIZE)
        try:
            at = jnp.asarray(center, function.dtype)
            value = run_again(lambda: sampled(function.flat, at, radius, key=key)).estimate
        except (TypeError, ValueError, NotImplementedError) as error:
            return Rung(_CLEVER, _ESTIMATE, where, missing=f"no estimate: {one_line(error)}")
    if math.isnan(value):
        return Rung(
            _CLEVER,
            _ESTIMATE,
            where,
            missing="no estimate: the Jacobian is not finite everywhere",
        )
    about = "0" if where is None else "the middle"
    return Rung(
        _CLEVER,
        _ESTIMATE,
        where,
        value,
        _log10_of(value),
        method=f"extremes of {_NUM_GROUPS * _GROUP_SIZE} sampled Jacobians",
        seconds=time.perf_counter() - started,
        assumptions=(
            f"no bound: extremes of slopes sampled in the ball of radius {radius:.5g} about {about}",
        ),
    )


def _around(starts: Array) -> tuple[Float[np.ndarray, " *input"], float]:
    """The ball about 0 whose radius is the rms norm of the starts."""
    axes = tuple(range(1, starts.ndim))
    radius = float(np.sqrt(np.mean(np.sum(np.asarray(starts, np.float64) ** 2, axes))))
    return np.zeros(starts.shape[1:]), radius or 1.0


def _log10_of(value: float) -> float:
    return math.log10(value) if value > 0 else -math.inf


# --- What follows from them -----------------------------------------------------------------------------------


def _reconciled(rungs: Sequence[Rung]) -> tuple[Rung, ...]:
    """What is attained in a region is attained; an estimate above a certificate is refuted."""
    slopes, bounds = _valued(rungs, _ATTAINED), _valued(rungs, _CERTIFIED)
    return tuple(
        _raised(rung, slopes) if rung.kind == _ATTAINED else _refuted(rung, bounds) for rung in rungs
    )


def _valued(rungs: Sequence[Rung], kind: str) -> list[Rung]:
    return [rung for rung in rungs if rung.kind == kind and rung.value is not None]


def _raised(rung: Rung, slopes: Sequence[Rung]) -> Rung:
    if rung.region is not None or rung.value is None:
        return rung
    steepest = max(slopes, key=_log10)
    return rung._replace(value=steepest.value, log10=steepest.log10, witness=steepest.witness)


def _refuted(rung: Rung, bounds: Sequence[Rung]) -> Rung:
    above = [each for each in bounds if each.region in (rung.region, None)]
    if rung.kind != _ESTIMATE or rung.value is None or not above or _log10(rung) <= min(map(_log10, above)):
        return rung
    return rung._replace(assumptions=(*rung.assumptions, "above a certificate, and so refuted"))


def _log10(rung: Rung) -> float:
    assert rung.log10 is not None
    return rung.log10
