"""Certificates for any JAX function: an upper bound on its Lipschitz constant, everywhere or within a region."""

from __future__ import annotations

import math
import reprlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxact.errors import ArgumentError
from jaxact.lipschitz._anytime import check_time, cut
from jaxact.lipschitz._mixed import orders
from jaxact.lipschitz._program import Ball, Box, Certificate, Region
from jaxact.lipschitz._restated import restated
from jaxact.lipschitz.ellipsoid.bound import bound, check_limit
from jaxact.numerics import FunctionError, full_precision, native, untraceable
from jaxact.trace import Affine, Lowered, evaluate, forget, lower_both, run_again


@full_precision
def certify(
    fn: Callable[[Any], Any],
    example: Float[ArrayLike, "*input"],
    *,
    norm: float | tuple[float, float] = 2,
    region: Region | None = None,
    num_steps: int = 0,
    seconds: float | None = None,
    tolerance: float | None = None,
    memory_limit: int = 2048,
    max_seconds: float | None = None,
) -> Certificate:
    """Bound the Lipschitz constant of a JAX function from above.

        ||fn(x') - fn(x)||_q <= value ||x' - x||_p    for all x, x', or all within `region`;  p = q = 2 by default

    The function is traced and its jaxpr walked: what does not depend on the input is computed, runs of affine
    operations are composed into one operator, and every elementwise subgraph of one variable, such as
    x * sigmoid(x), becomes one function, whose slopes are bounded from its formula alone, over the whole line or over
    the values that the region allows. The ellipsoid engine (after Fazlyab et al. 2019, theorem 2; Xu & Sivaranjani
    2024, theorem 4) then carries a bound through the resulting program; see `jaxact.lipschitz.ellipsoid.bound`. A
    certified upper bound under the certificate's `assumptions`: it is computed in float64 with rounding accounted
    for, and is about `fn` in exact arithmetic, not about the rounding that `fn` itself does when it runs.

    Understood are: dense layers, convolutions, anything that adds, moves or repeats entries, Fourier transforms, linear
    systems with a constant matrix, batch norm at inference, means and maxima, pooling, sorting, `where`, `select` and
    `piecewise` without jumps, scan, loops whose trip count does not depend on the input, jit, remat, custom
    derivatives. Softmax, log-sum-exp, sorting, Euclidean norms, whatever scales x by a function of its length (RMS,
    layer and group norms, clipping), continuous choices between affine maps, and functions of one variable side by side
    are each also a step with its own constant; a function with one of them is bounded both ways, and the smaller bound
    is given. Within a region also products of variables, and with them attention.

    Args:
        fn: JAX function of ONE input, closed over its parameters (`lambda x: model(x)`, or
            `lambda x: model.apply(params, x)`); returns an array or a pytree of arrays, taken as one vector.
            Normalisation layers must be in inference mode.
        example: ONE input, or any array of its shape, whatever its number of axes: what looks like a batch is one
            vector, so that a batch axis should be of length 1.
        norm: 1, 2 or inf, or a pair (p of inputs, q of outputs) of these: `norm=math.inf` is for changes of every entry
            by up to so much. Between norms other than l2 the smaller is given of what follows from the l2 bound by norm
            equivalence and the norm of an enclosure of all Jacobians, entry by entry.
        region: a `Ball` or `Box` of the input's shape; None for all inputs. As it shrinks, the bound tends to the
            norm of the Jacobian.
        num_steps: refinement steps of the engine; 0 leaves its closed form. Within a region, and once more over all
            inputs where the region may tell nothing: where the closed forms all but agree.
        seconds: stop refining after so long, one budget for all of it.
        tolerance: stop refining when 20 steps have lowered log K by less, and cutting when the bound is within so much,
            relatively, of the norm of a Jacobian of the region; 1e-9, that is of one number, if None.
        memory_limit: the largest number of hidden values that the engine holds jointly; beyond, it goes on with norms.
        max_seconds: cut the region into parts that are bounded each alone, for up to so long in all, tracing included,
            and give the best bound proved by then: boxes of up to 8 inputs, the two sides of neurons of more, with what
            was found in `parts`, `attained` and `is_exact`. For piecewise-linear networks of few inputs it ends at the
            exact constant.

    Returns:
        A `Certificate`. Its `factors` name each step by what it does, its sizes and the line of the model, such as
        "affine 3: 784 -> 128 (model.py:42)".

    Raises:
        TypeError: `example` is not real floating-point, or `fn` is not callable, cannot be traced or is
            in training mode: see `jaxact.numerics.FunctionError`.
        ValueError: `norm` is none of these; `region` is not of the input's shape; the function has a part that cannot
            be bounded, which is named with its source line; weights, constants or outputs are not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> certificate = certify(lambda x: jax.nn.silu(3 * x), jnp.zeros(2))
        >>> round(certificate.value, 4)
        3.2995
        >>> round(certify(jnp.square, jnp.zeros(1), region=Ball(jnp.ones(1), 0.5)).value, 4)
        3.0
        >>> exact = certify(jnp.sin, jnp.zeros(1), region=Box(jnp.ones(1), 3 * jnp.ones(1)), max_seconds=60)
        >>> round(exact.value, 4), exact.is_exact
        (0.99, True)
    """
    started = time.perf_counter()
    example = checked(fn, example, norm, region)
    check_time(max_seconds, region)
    check_limit("seconds", seconds, "Leave it out for no limit.")
    wide: list[Any] = []
    failure: BaseException | None = None
    try:
        bounded = partial(bound, num_steps=num_steps, tolerance=tolerance, memory_limit=memory_limit)
        readings = translated(fn, example, region, wide)
        lowered, found = _least(readings, bounded, seconds)
        p, q = orders(norm)
        if (p, q) != (2, 2):
            found = min(
                (restated(each.lowered.program, each.region, found, p, q) for each in readings), key=float
            )
        if max_seconds is not None:
            left = max_seconds - (time.perf_counter() - started)
            found = cut(readings[0].lowered.program, region, found, left, tolerance, p, q)
    except (ArithmeticError, TypeError, ValueError) as error:
        if not wide:
            raise
        failure = error
    if wide and not _has_float64():
        # Frames of a traceback would keep what is to be forgotten.
        link = failure
        while link is not None:
            link.__traceback__ = None
            link = link.__cause__ or link.__context__
        forget(wide)
    if failure is not None:
        raise failure
    return replace(
        found,
        region=region,
        assumptions=(
            *dict.fromkeys((*lowered.assumptions, *readings[0].lowered.assumptions)),
            *found.assumptions,
        ),
        seconds=time.perf_counter() - started,
    )


def _has_float64() -> bool:
    return jax.dtypes.canonicalize_dtype(np.float64) == np.float64


class _Reading(NamedTuple):
    """A function as a program, and the region in which that is bounded."""

    lowered: Lowered
    region: Region | None


def _least(
    readings: Sequence[_Reading], bounded: Callable[..., Certificate], seconds: float | None
) -> tuple[Lowered, Certificate]:
    """The program with the least bound, and that."""
    found: list[tuple[Lowered, Certificate]] = []
    refusal, started = None, time.perf_counter()
    for lowered, region in readings:
        left = None if seconds is None else max(seconds - (time.perf_counter() - started), 0.0)
        try:
            with jax.enable_x64(True), np.errstate(over="ignore", invalid="ignore"):
                limit = min((float(each.log) for _, each in found), default=math.inf)
                found.append((lowered, bounded(lowered.program, region=region, seconds=left, limit=limit)))
        except (ArithmeticError, ValueError) as error:
            refusal = refusal or error
    if not found:
        assert refusal is not None
        raise refusal
    return min(found, key=lambda pair: pair[1].value)


def translated(fn: Any, example: Any, region: Region | None, wide: list[Any]) -> list[_Reading]:
    """The function as a program that gives the same outputs, or as two where a step may be known by one number."""
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused by name
        try:
            readings = lower_both(fn, example, wide)
            usable = [each for each in readings if region is not None or each.restricted is None]
            if not usable:
                assert readings[0].restricted is not None
                raise readings[0].restricted
            _check_translations(fn, usable, example, region, wide)
            return [_Reading(each, region) for each in usable]
        except Exception as error:
            reason = untraceable(error)
            if reason is None or isinstance(error, FunctionError):
                raise
            raise FunctionError("`fn`", reason) from error


def _check_translations(
    fn: Callable[[Any], Any],
    readings: Sequence[Lowered],
    example: Any,
    region: Region | None,
    wide: list[Any],
) -> None:
    """Run the programs beside the function: a slip of the walk must not become a certificate."""
    lowered = readings[0]
    # A program is compiled anew at every call, an operation once for its shapes, a loop for every point: one after
    # the other is quicker where they are few, and for a long chain of layers.
    is_short = lowered.num_operations <= 12 and not lowered.has_loops
    one_by_one = lowered.num_equations > 60 or is_short
    run = fn if one_by_one else jax.jit(lambda x: fn(x))
    compared = []
    for point in _points(np.size(example), region):
        with jax.enable_x64(True):
            dtype = np.float64 if lowered.exact else jnp.result_type(example)
            x = jnp.asarray(point.reshape(np.shape(example)), dtype)
            theirs = _outputs(run_again(partial(run, x)), lowered)
        if theirs.size == 0:
            return
        for each in readings[::-1]:  # the first is compared last, and in float32 too
            ours, largest = _check_outputs(run, each, x, theirs)
        compared.append((np.reshape(point, np.shape(example)), ours, largest))
    if not _has_float64():
        forget(wide)
        for point, ours, largest in compared:
            _check_float32(run, lowered, jnp.asarray(point, jnp.result_type(example)), ours, largest)


def _check_outputs(run: Callable[[Any], Any], lowered: Lowered, x: Array, theirs: Any) -> tuple[Any, float]:
    """Compare outputs at one input; those of the program, and the largest of all its values."""
    values = evaluate(lowered.program, x, output_only=False)
    offsets = [step.offset for step in lowered.program.steps if isinstance(step, Affine)]
    ours, scale = values[lowered.program.output], np.max(np.abs(theirs))
    # Where outputs vanish they are the rounding of what cancels.
    parts = [np.max(np.abs(part), initial=0.0) for part in (*values.values(), *offsets) if part is not None]
    allowed = (1e-6 * scale + 1e-12 * max(parts)) if lowered.exact else (1e-2 * scale + 1e-5 * max(parts))
    if lowered.narrowest is not None:
        allowed = max(allowed, 8 * float(jnp.finfo(lowered.narrowest).eps) * (scale + max(parts)))
    difference = np.max(np.abs(theirs - ours))
    if np.isfinite(scale) and not difference <= allowed:
        with jax.enable_x64(True):
            allowed = max(allowed, 64 * _own_rounding(run, lowered, x, theirs))
    if np.isfinite(scale) and not difference <= allowed:
        raise ArgumentError(
            "could not be translated: what was made of its jaxpr gives other outputs than fn itself, by "
            f"{difference:g} where the largest is {scale:g}.",
            "Does it depend on a state or on chance, or magnify its own rounding (then try it in float64)? "
            "If not, please report it.",
            argument="fn",
        )
    return ours, max(parts)


def _own_rounding(run: Callable[[Any], Any], lowered: Lowered, x: Array, theirs: Any) -> float:
    """How far outputs move with the last bits of the input: E x^2 - (E x)^2 of a large x loses most of its digits."""
    eps = float(jnp.finfo(x.dtype).eps)
    found = 0.0
    if not np.array_equal(_outputs(run_again(partial(run, x)), lowered), theirs):
        return found  # it is chance
    for k in range(4):
        direction = np.cos((5 + k) * np.arange(x.size) + 2).reshape(x.shape)
        moved = jnp.asarray(np.asarray(x) * (1 + 4 * eps * direction), x.dtype)
        beside = _outputs(run_again(partial(run, moved)), lowered)
        found = max(found, float(np.max(np.abs(beside - theirs), initial=0.0)))
    return found


def _outputs(result: Any, lowered: Lowered) -> Float[np.ndarray, " size"]:
    """What depends on the input, in one array."""
    leaves = zip(jax.tree.leaves(result), lowered.depends, strict=True)
    return np.concatenate(
        [np.zeros(0), *(np.asarray(leaf, np.float64).reshape(-1) for leaf, depends in leaves if depends)]
    )


def _check_float32(run: Callable[[Any], Any], lowered: Lowered, x: Array, ours: Any, largest: float) -> None:
    """Run the function as its user does, where float64 is not enabled: it may be another function there.

    `largest` is the largest of all intermediate values. What a small part of x changes its rounding may change as well.
    """
    narrow = [x.dtype] if lowered.narrowest is None else [x.dtype, lowered.narrowest]
    eps = max(float(jnp.finfo(dtype).eps) for dtype in narrow)
    size = float(jnp.max(jnp.abs(x))) or 1.0
    direction = np.cos(5 * np.arange(x.size) + 2).reshape(x.shape)
    moved = jnp.asarray(np.asarray(x, np.float64) + max(2.0**-13, 4 * eps) * size * direction, x.dtype)
    theirs, beside = (_outputs(run_again(partial(run, each)), lowered) for each in (x, moved))
    scale, difference = np.max(np.abs(theirs)), np.max(np.abs(theirs - ours))
    allowed = 64 * np.max(np.abs(beside - theirs)) + max(
        1e-2 * scale + 1e-5 * largest, 8 * eps * (scale + largest)
    )
    if np.isfinite(allowed) and not difference <= allowed:
        raise ArgumentError(
            f"must be the same function in {x.dtype}, as it runs now, and in float64, in which it is certified: "
            f"its outputs differ by {difference:g} where the largest is {scale:g}.",
            "Does it draw random numbers, let integers wrap, ask for a dtype or magnify its own rounding? Compute such "
            "constants beforehand and close over the arrays, or enable float64.",
            argument="fn",
        )


def _points(size: int, region: Region | None) -> list[np.ndarray]:
    """The middle of a region and two points of it across its boundary; without one, a point near 0 and two farther."""
    waves = np.cos(3 * np.arange(size, dtype=np.float64) + 1)
    if region is None:
        return [np.cos(np.arange(size, dtype=np.float64)), 8 * waves, -8 * waves[::-1]]
    if isinstance(region, Ball):
        middle = region.center.reshape(-1)
        reach = region.radius / np.linalg.norm(waves) * waves
    else:
        middle = (region.lower / 2 + region.upper / 2).reshape(-1)
        reach = (region.upper / 2 - region.lower / 2).reshape(-1) * np.sign(waves)
    return [middle, middle + 0.999 * reach, middle - 0.999 * reach]


def checked(fn: Any, example: Any, norm: Any, region: Any) -> Any:
    """Refuse what cannot be asked for; the example as an array that JAX knows."""
    if not callable(fn):
        raise TypeError(f"`fn` must be a function of one array, got {fn!r}. Use lambda x: model(x).")
    orders(norm)
    if isinstance(example, jax.core.Tracer):
        raise TypeError(
            f"`example` must be concrete, got {example}. Call certify outside jit, vmap and grad."
        )
    if not isinstance(example, jax.Array):
        example = native(_as_numpy(example))
    if example.dtype.itemsize > 8 or not jnp.issubdtype(example.dtype, jnp.floating):
        raise TypeError(
            f"`example` must be an input, real floating-point of at most 64 bits, got dtype {example.dtype}. "
            "Pass jnp.zeros(shape), for instance."
        )
    if example.size == 0:
        raise ValueError(f"`example` must not be empty, got shape {example.shape}.")
    if region is not None:
        if not isinstance(region, Ball | Box):
            raise ValueError(
                f"`region` must be a Ball, a Box or None, got {region!r}. Use Ball(x, 0.1), for instance."
            )
        given = region.center.shape if isinstance(region, Ball) else region.lower.shape
        if given != example.shape:
            raise ValueError(
                f"`region` must have the input's shape {example.shape}, got {given}. "
                "Reshape its center or bounds."
            )
    return example


def _as_numpy(example: Any) -> np.ndarray:
    try:
        return np.asarray(example)
    except (TypeError, ValueError) as error:  # rows of unlike lengths
        raise TypeError(
            f"`example` must be an input, real floating-point, got {reprlib.repr(example)}. "
            "Pass jnp.zeros(shape), for instance."
        ) from error
