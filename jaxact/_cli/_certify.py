"""Every Lipschitz number of a user's own model, from the steepest place found to the product of its layers' norms."""

import argparse
import contextlib
import functools
import math
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxact import lipschitz
from jaxact._cli._model import OneExample, load, on_one_example, shape_text, told
from jaxact._cli._output import InputError, console, for_each, plain, print_json, short
from jaxact.lipschitz import Ball, Box, Certificate, run_again

_ATTAINED, _CERTIFIED, _ESTIMATE, _REFUSED = "attained", "certified upper bound", "estimate", "refused"
_SLOPE, _CLEVER = "slope attained", "CLEVER"
_ELLIPSOID, _CLOSED, _PRODUCT = "ellipsoid", "closed form", "product of norms"
_NUM_STARTS, _MOST_STARTS = 8, 32
_SCALES = (0.25, 1.0, 4.0)
_NUM_CROSSINGS, _FEW = 10, 64  # walking across kinks pays where there are few of them: small inputs
_NUM_GROUPS, _GROUP_SIZE = 50, 40
_SHOWN, _KEPT = 16, 4096  # entries of a witness, in print and in JSON
_MOST_LAYERS = 40
_TIGHT = 1.005
_ROUNDING = 1e-5  # of models that compute in float32 whatever they are given
_LOOSE = 1e3
_REMEDY = "Give a region (region=): --radius R --center FILE.npy, or --box LO HI,"
_SMALLER = "Give a smaller region (region=): --radius, another --center, or --box."


def run(options: argparse.Namespace) -> int:
    """Print the ladder of Lipschitz numbers of `options.model`."""
    if options.box is not None and options.radius is not None:
        raise InputError(
            "a region is either a ball, `--radius R`, or a box, `--box LO HI`, got both. Drop one."
        )
    if options.center != "zeros" and options.radius is None:
        raise InputError(
            "`--center` is that of a ball and needs `--radius R`, got none. Give --radius 0.1, say."
        )
    # What a user's module prints must not get between the lines of JSON.
    with contextlib.redirect_stdout(sys.stderr):
        model = load(options.model)
        shape = options.input_shape
        region = _region(options, shape)
        inputs = _array(options.inputs, shape, "--inputs", several=True) if options.inputs else None
        found = ladder(
            on_one_example(model, shape, batch=options.batch),
            region=region,
            inputs=inputs,
            num_steps=options.steps,
            seconds=options.seconds,
            lower_steps=options.lower_steps,
            seed=options.seed,
        )
    if options.json:
        print_json(found)
    else:
        _print(found)
    return 0


# --- The region and the inputs ------------------------------------------------------------------------------


def _region(options: argparse.Namespace, shape: tuple[int, ...]) -> Ball | Box | None:
    if options.radius is not None:
        center = np.zeros(shape)
        if options.center != "zeros":
            center = _array(Path(options.center), shape, "--center")
        return Ball(center, options.radius)
    if options.box is not None:
        low, high = options.box
        if not low < high:
            raise InputError(f"`--box` must be LO < HI, got {low:g} {high:g}. Give the smaller one first.")
        return Box(np.full(shape, low), np.full(shape, high))
    return None


def _array(path: Path, shape: tuple[int, ...], option: str, *, several: bool = False) -> np.ndarray:
    """The array in a .npy file; inputs get their first axis."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"`{option}` must be a .npy file, got {str(path)!r}: {told(error)}. Write it with numpy.save."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        raise InputError(
            f"`{option}` must hold one array of finite, real numbers, got {str(path)!r}. Write it with numpy.save."
        )
    wanted = shape_text(("n", *shape)) if several else shape_text(shape)  # type: ignore[arg-type]
    if several and array.shape == shape:
        array = array[None]
    elif not several and array.size == math.prod(shape):
        array = array.reshape(shape)  # [1, 784] for [784]
    if array.shape[1 if several else 0 :] != shape or array.size == 0:
        raise InputError(
            f"`{option}` must be of shape {wanted}, got {shape_text(array.shape)} in {str(path)!r}. "
            "`--input-shape` says the rest."
        )
    return array.astype(np.float64)


# --- The ladder ---------------------------------------------------------------------------------------------


class _Rung(NamedTuple):
    """One number to be found: its name is what a terminal says meanwhile."""

    name: str
    find: Callable[[], dict[str, Any]]


def ladder(
    fn: OneExample,
    *,
    region: Ball | Box | None = None,
    inputs: np.ndarray | None = None,
    num_steps: int = 50,
    seconds: float | None = 30.0,
    lower_steps: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Find every Lipschitz number of a model, from below and from above.

    Args:
        fn: the model.
        region: where to bound it beside all inputs.
        inputs: [n, *shape] to start the search for steep places from, of which the first 32 are used; standard normal
            by default.
        num_steps: of the refinement of the certificate; 0 leaves its closed form.
        seconds: stop each refinement after so long.
        lower_steps: of the search from every start.
        seed: of the starts, of the search and of CLEVER's samples.

    Returns:
        What `python -m jaxact certify --json` prints.

    Raises:
        InputError: the model cannot be certified, neither over all inputs nor within the region.
    """
    # What cannot be certified is said before anything takes long.
    refused: str | None = None
    closed: dict[Any, dict[str, Any]] = {}
    try:
        closed[None] = _certified(fn, None, _CLOSED)
    except InputError as error:
        if region is None:
            raise
        refused = str(error).partition(_REMEDY)[0].strip()
    if region is not None:
        closed[region] = _certified(fn, region, _CLOSED)
    once = region if refused else None  # where the product of norms is shown
    key_starts, key_search, key_clever = jax.random.split(jax.random.key(seed), 3)
    starts = _starts(fn, inputs, key_starts)

    def certified(name: str, where: Ball | Box | None) -> _Rung:
        if name == _CLOSED:
            return _Rung(name, lambda: closed[where])
        if name == _PRODUCT:
            return _Rung(name, lambda: _certified(fn, where, name, memory_limit=1))
        return _Rung(name, lambda: _certified(fn, where, name, num_steps, seconds))

    rungs = []
    for where in dict.fromkeys((region, None)):
        if where is None and refused:
            # The search would find slopes without end.
            rungs.append(_Rung(_CLOSED, lambda: _missing(_CLOSED, _REFUSED, None, refused)))
            continue
        rungs.append(
            _Rung(_SLOPE, functools.partial(_attained, fn, where, starts, lower_steps, key_search, seed))
        )
        if where is region:
            rungs.append(_Rung(_CLEVER, functools.partial(_estimated, fn, where, starts, key_clever)))
        rungs += [certified(_ELLIPSOID, where)] if num_steps else []
        rungs.append(certified(_CLOSED, where))
        rungs += [certified(_PRODUCT, where)] if where is once else []
    rows = for_each(lambda rung: rung.find(), rungs)
    _reconcile(rows)
    best = _best(rows, region)
    lower = next(row for row in rows if row["kind"] == _ATTAINED and row["region"] == _region_facts(region))
    log_ratio = _log_ratio(best, lower)
    return plain(
        {
            "model": fn.model.name,
            "kind": fn.model.kind,
            "input_shape": fn.shape,
            "called_on": fn.called_on,
            "output_shapes": fn.output_shapes,
            "dtype": jnp.dtype(fn.dtype).name,
            "norm": 2,
            "region": _region_facts(region),
            "seed": seed,
            "ladder": [{name: each for name, each in row.items() if name != "factors"} for row in rows],
            "layers": _layers(rows),
            "lower": lower["value"],
            "upper": best["value"],
            "log10_ratio": log_ratio,
            "ratio": None if log_ratio is None else _power(log_ratio),
            "verdict": _verdict(best, lower, log_ratio),
        }
    )


def _starts(fn: OneExample, inputs: np.ndarray | None, key: jax.Array) -> jax.Array:
    with jax.enable_x64(True):
        if inputs is not None:
            return jnp.asarray(inputs[:_MOST_STARTS], fn.dtype)
        return jax.random.normal(key, (_NUM_STARTS, *fn.shape), fn.dtype)


def _row(name: str, kind: str, region: Ball | Box | None, **facts: Any) -> dict[str, Any]:
    nothing = {"value": None, "log10": None, "method": None, "num_steps": None, "seconds": None}
    return (
        {"name": name, "kind": kind, "norm": 2, "region": _region_facts(region)}
        | nothing
        | {"assumptions": (), "where": None, "missing": None, "factors": ()}
        | facts
    )


def _missing(name: str, kind: str, where: Ball | Box | None, reason: str) -> dict[str, Any]:
    return _row(name, kind, where, missing=reason)


def _region_facts(where: Ball | Box | None) -> dict[str, Any] | None:
    if where is None:
        return None
    if isinstance(where, Ball):
        return {
            "shape": "ball",
            "radius": where.radius,
            "center_norm": float(np.linalg.norm(where.center)),
        }
    return {"shape": "box", "lower": float(where.lower.min()), "upper": float(where.upper.max())}


def _certified(
    fn: OneExample,
    where: Ball | Box | None,
    name: str,
    num_steps: int = 0,
    seconds: float | None = None,
    memory_limit: int | None = None,
) -> dict[str, Any]:
    limits = {} if memory_limit is None else {"memory_limit": memory_limit}
    try:
        found = lipschitz.certify(
            fn.call,
            jnp.zeros(fn.shape, jnp.float32),
            region=where,
            num_steps=num_steps,
            seconds=seconds,
            **limits,
        )
    except (TypeError, ValueError) as error:
        raise InputError(_in_words_of_options(error, fn.model.name)) from error
    return _row(
        name,
        _CERTIFIED if found.certified else _ESTIMATE,
        where,
        value=found.value,
        log10=found.log10,
        method="norms of operators alone" if name == _PRODUCT else found.method,
        num_steps=max(len(found.history) - 1, 0),
        seconds=found.seconds,
        assumptions=(*found.assumptions, *_method_notes(found, name)),
        factors=found.factors,
    )


def _method_notes(found: Certificate, name: str) -> list[str]:
    """What the method says beyond its name."""
    notes = [each for each in found.method.split(", ") if each.startswith("by norms") and name != _PRODUCT]
    if found.region is not None and "over all inputs" in found.method:
        notes.append("the bound over all inputs is the better one here")
    return notes


def _in_words_of_options(error: Exception, model: str) -> str:
    """The engine's message, with the command's options where it names its own arguments."""
    words = " ".join(str(error).split()).replace("`fn`", model)
    words = words.replace("No bound holds for all these inputs: pass `region=`, or a smaller one.", _SMALLER)
    for theirs in ("Pass region=Ball(center, radius) or Box(lower, upper)", "pass `region=`"):
        words = words.replace(theirs, _REMEDY)
    return words if model in words else f"{model} cannot be certified: {words}"


def _attained(
    fn: OneExample, where: Ball | Box | None, starts: jax.Array, num_steps: int, key: Any, seed: int
) -> dict[str, Any]:
    """The steepest place found; within a region by a search on y of fn(center + scale * project(y)) / scale.

    The projection onto a convex set stretches nothing, so that no slope found is above one of fn in the region.
    """
    started = time.perf_counter()
    is_small = math.prod(fn.shape) <= _FEW
    with jax.enable_x64(True):
        inside, scale = _inside(where, fn.dtype)
        call, forward = fn.flat, fn.forward
        scales: tuple[float, ...] = _SCALES
        if where is not None:
            call = lambda y: fn.flat(inside(y)) / scale  # noqa: E731
            forward = None if fn.forward is None else (lambda y: fn.forward(inside(y)) / scale)  # type: ignore[misc]
            starts, scales = _starts_inside(where, starts, fn.dtype, seed), (1.0,)
        try:
            search = functools.partial(
                lipschitz.lower_bound,
                call,
                num_steps=num_steps,
                tangent=None if forward is None else lambda x, v: jax.jvp(forward, (x,), (v,))[1],
                scales=scales,
                num_crossings=_NUM_CROSSINGS if num_steps and is_small else 0,
            )
            # Compiled once, run once: optimising would take longer than it saves.
            compiled = jax.jit(search, compiler_options={"xla_backend_optimization_level": 0})
            found = run_again(lambda: compiled(starts, key=key))
        except (TypeError, ValueError, NotImplementedError) as error:
            return _missing(_SLOPE, _ATTAINED, where, f"no slope was found: {told(error)}")
        value = float(found.value)
        witness = np.asarray(inside(found.input), np.float64)
    if math.isnan(value):
        return _missing(
            _SLOPE, _ATTAINED, where, "no slope was found: the Jacobian is not finite at any start"
        )
    kept = witness.tolist() if witness.size <= _KEPT else None
    return _row(
        _SLOPE,
        _ATTAINED,
        where,
        value=value,
        log10=math.log10(value) if value > 0 else -math.inf,
        method=f"ascent on the Jacobian's norm, {num_steps} steps",
        num_steps=num_steps,
        seconds=time.perf_counter() - started,
        assumptions=(
            f"up to rounding in {jnp.dtype(fn.dtype).name}; the model's derivative is that of its values",
        ),
        where={"norm": float(np.linalg.norm(witness)), "input": kept},
    )


def _inside(where: Ball | Box | None, dtype: Any) -> tuple[Callable[[Any], Any], float]:
    """The map y -> x into the region, where |y| <= 1 (a ball) or -1 <= y <= 1 (a box) is all of it; dx / dy."""
    if where is None:
        return lambda y: y, 1.0
    center, half = _middle(where)
    middle = jnp.asarray(center, dtype)
    if isinstance(where, Box):
        return lambda y: middle + half * jnp.clip(y, -1, 1), half

    def ball(y: Any) -> Any:
        square = jnp.sum(y * y)
        # The root of a safe number: at y = 0 that of 0 has no slope.
        return middle + half * y * jnp.where(square > 1, jax.lax.rsqrt(jnp.maximum(square, 1)), 1)

    return ball, half


def _middle(where: Ball | Box) -> tuple[np.ndarray, float]:
    if isinstance(where, Ball):
        return where.center, where.radius
    return where.lower / 2 + where.upper / 2, float(np.max(where.upper - where.lower)) / 2


def _starts_inside(where: Ball | Box, starts: jax.Array, dtype: Any, seed: int) -> jax.Array:
    """The middle, inputs that were given and lie inside, and points spread over the region."""
    center, half = _middle(where)
    rng = np.random.default_rng(seed)
    y = (np.asarray(starts, np.float64) - center) / half
    axes = tuple(range(1, y.ndim))
    size = np.sqrt((y**2).sum(axes)) if isinstance(where, Ball) else np.abs(y).max(axes)
    spread = rng.uniform(-1, 1, (_NUM_STARTS, *center.shape))
    if isinstance(where, Ball):
        spread /= np.sqrt((spread**2).sum(axes, keepdims=True))
        spread *= rng.uniform(0, 1, (_NUM_STARTS, *[1] * center.ndim)) ** (1 / center.size)
    return jnp.asarray(np.concatenate([np.zeros_like(center)[None], y[size <= 1], spread]), dtype)


def _estimated(fn: OneExample, where: Ball | Box | None, starts: jax.Array, key: Any) -> dict[str, Any]:
    """CLEVER in the region's largest ball, or, over all inputs, in one about 0 as large as the starts."""
    started = time.perf_counter()
    if where is None:
        axes = tuple(range(1, starts.ndim))
        center = np.zeros(fn.shape)
        radius = float(np.sqrt(np.mean(np.sum(np.asarray(starts, np.float64) ** 2, axes)))) or 1.0
    else:
        center, radius = _middle(where)
    with jax.enable_x64(True):
        try:
            estimate = functools.partial(
                lipschitz.clever,
                fn.flat,
                jnp.asarray(center, fn.dtype),
                radius,
                key=key,
                num_groups=_NUM_GROUPS,
                group_size=_GROUP_SIZE,
            )
            found = run_again(estimate)
        except (TypeError, ValueError, NotImplementedError) as error:
            return _missing(_CLEVER, _ESTIMATE, where, f"no estimate: {told(error)}")
    value = found.estimate
    if math.isnan(value):
        return _missing(_CLEVER, _ESTIMATE, where, "no estimate: the Jacobian is not finite everywhere")
    about = "0" if where is None else "the middle"
    return _row(
        _CLEVER,
        _ESTIMATE,
        where,
        value=value,
        log10=math.log10(value) if value > 0 else -math.inf,
        method=f"extremes of {_NUM_GROUPS * _GROUP_SIZE} sampled Jacobians",
        seconds=time.perf_counter() - started,
        assumptions=(
            f"no bound: extremes of slopes sampled in the ball of radius {short(radius)} about {about}",
        ),
    )


# --- What follows from it -----------------------------------------------------------------------------------


def _reconcile(rows: Sequence[dict[str, Any]]) -> None:
    """What is attained in a region is attained; an estimate above a certificate is refuted."""
    slopes = [row for row in rows if row["kind"] == _ATTAINED and row["missing"] is None]
    for row in slopes:
        if row["region"] is None:
            steepest = max(slopes, key=lambda each: each["value"])
            row |= {name: steepest[name] for name in ("value", "log10", "where")}
    for row in rows:
        if row["kind"] == _ESTIMATE and row["missing"] is None:
            certified = [
                each["log10"]
                for each in rows
                if each["kind"] == _CERTIFIED
                and each["missing"] is None
                and each["region"] in (row["region"], None)
            ]
            if certified and row["log10"] > min(certified):
                row["assumptions"] = (*row["assumptions"], "above a certificate, and so refuted")


def _best(rows: Sequence[dict[str, Any]], region: Ball | Box | None) -> dict[str, Any]:
    """The smallest certificate that holds in the region: those over all inputs do."""
    found = [row for row in rows if row["kind"] == _CERTIFIED and row["missing"] is None]
    here = [row for row in found if row["region"] == _region_facts(region)]
    return min([*here, *found], key=lambda row: row["log10"])  # the region's own first among equals


def _log_ratio(upper: dict[str, Any], lower: dict[str, Any]) -> float | None:
    if lower["log10"] is None or (lower["log10"] == upper["log10"] == -math.inf):
        return None
    return upper["log10"] - lower["log10"]


def _power(log10: float) -> float:
    return 10**log10 if log10 < 308 else math.inf


def _verdict(upper: dict[str, Any], lower: dict[str, Any], log_ratio: float | None) -> str:
    facts = lower["region"]
    where = "over all inputs" if facts is None else f"in the {facts['shape']}"
    most = _number(upper)
    if upper["log10"] == -math.inf:
        return f"The Lipschitz constant {where} is 0: the outputs do not depend on the input there."
    if lower["value"] is None:
        return f"The Lipschitz constant {where} is at most {most}; no slope was found to say how far below it lies."
    if log_ratio == math.inf:
        return f"The Lipschitz constant {where} is at most {most}; no place was found where the model has any slope."
    assert log_ratio is not None
    least, ratio = _number(lower), _power(log_ratio)
    if ratio < 1 - _ROUNDING:
        return (
            f"The slope attained, {least}, is above the certificate, {most}: the model's derivative is not that of its "
            "values (a custom rule, a straight-through estimator), or this is an error: please report it."
        )
    shown = f"10^{log_ratio:.1f}" if log_ratio > 4 else f"{ratio:.4g}"
    start = f"upper / lower = {shown}: the Lipschitz constant {where}"
    if ratio < _TIGHT:
        return f"{start} is {most}, known to {100 * max(ratio - 1, _ROUNDING):.2g} %."
    between = f"{start} lies between {least}, which is attained, and {most}, which no pair of inputs exceeds"
    if ratio > _LOOSE:
        return f"{between}; so far apart, the certificate says little of the model."
    return f"{between}; which of the two is nearer is not known."


def _number(row: dict[str, Any]) -> str:
    """A value in few digits, by its logarithm where it exceeds float64."""
    if row["value"] is None:
        return "-"
    return short(row["value"]) if math.isfinite(float(row["value"])) else f"10^{float(row['log10']):.1f}"


def _layers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How much each step lets each bound grow, log10, with the number of entries that it maps."""
    columns: dict[str, dict[str, float]] = {}
    for row in rows:  # the region's rows come first
        if row["factors"] and row["name"] not in columns:
            columns[row["name"]] = {label: log / math.log(10) for label, log in row["factors"]}
    order = list(dict.fromkeys(label for column in columns.values() for label in column))
    return [
        {
            "step": label,
            "sizes": _sizes(label),
            "log10_factors": {name: column.get(label) for name, column in columns.items()},
        }
        for label in order
    ]


def _sizes(label: str) -> list[int] | None:
    """Entries in and out of a step, by its name in `Certificate.factors`."""
    found = re.search(r": (\d+)(?: -> (\d+))?", label)
    return None if found is None else [int(found[1]), int(found[2] or found[1])]


# --- In print -----------------------------------------------------------------------------------------------


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = console()
    outputs = " and ".join(shape_text(shape) for shape in found["output_shapes"])
    screen.print(
        f"{found['model']}: {found['kind']}, {shape_text(found['called_on'])} -> {outputs}", markup=False
    )
    table = Table(title="Lipschitz constant, Euclidean norms", title_justify="left")
    table.add_column("")
    for name in ("value", "log10"):
        table.add_column(name, justify="right")
    for name in ("kind", "inputs"):
        table.add_column(name)
    table.add_column("s", justify="right")
    table.add_column("notes")
    notes: list[str] = []
    before = found["ladder"][0]["region"]
    for row in found["ladder"]:
        if row["region"] != before:
            table.add_section()
        before = row["region"]
        table.add_row(*(Text(cell) for cell in _cells(row, notes)))
    screen.print(table)
    if found["region"] is not None:
        screen.print(_region_text(found["region"]), markup=False)
    for row in found["ladder"]:
        if row["where"] is not None:
            scope = "" if row["region"] is None else f", in the {row['region']['shape']}"
            screen.print(f"attained{scope}, {_witness(row['where'])}", markup=False)
    for number, note in enumerate(notes, 1):
        screen.print(f"[{number}] {note}", markup=False)
    _print_layers(found, screen)
    screen.print()
    screen.print(found["verdict"], markup=False)


def _cells(row: dict[str, Any], notes: list[str]) -> list[str]:
    name = row["name"]
    if name == _ELLIPSOID and row["num_steps"] is not None:
        name = f"{name}, {row['num_steps']} steps"
    reasons = row["assumptions"] if row["missing"] is None else [row["missing"]]
    for reason in reasons:
        if reason not in notes:
            notes.append(reason)
    if row["missing"] is not None:
        value, log = "none", ""
    else:
        value, log = _number(row), f"{float(row['log10']):.3f}"
    return [
        name,
        value,
        log,
        "certified" if row["kind"] == _CERTIFIED else row["kind"],
        "all" if row["region"] is None else row["region"]["shape"],
        "" if row["seconds"] is None else f"{row['seconds']:.1f}",
        _ranges([notes.index(reason) + 1 for reason in reasons]),
    ]


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers in order, runs shortened.

    >>> _ranges([1, 2, 3, 5])
    '1-3, 5'
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _region_text(region: dict[str, Any]) -> str:
    if region["shape"] == "ball":
        norm = float(region["center_norm"])
        center = f"of norm {short(norm)}" if norm else "0"
        return f"ball: ||x - center|| <= {short(region['radius'])}, center {center}"
    return f"box: {short(region['lower'])} <= x <= {short(region['upper'])}, every entry"


def _witness(where: dict[str, Any]) -> str:
    place = f"at an input of norm {short(where['norm'], 3)}"
    if where["input"] is None or np.size(where["input"]) > _SHOWN:
        return place
    return f"{place}: {np.round(np.asarray(where['input'], np.float64), 4).tolist()}"


def _print_layers(found: dict[str, Any], screen: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    layers = found["layers"]
    if not layers:
        return
    names = list(layers[0]["log10_factors"])
    table = Table(title="where the bound is lost: what each step multiplies it by", title_justify="left")
    table.add_column("step")
    for name in names:
        table.add_column(name, justify="right")
    shown = sorted(range(len(layers)), key=lambda i: -(layers[i]["log10_factors"][names[0]] or 0))[
        :_MOST_LAYERS
    ]
    for index in sorted(shown):
        layer = layers[index]
        factors = [layer["log10_factors"][name] for name in names]
        cells = ["-" if each is None else short(_power(float(each)), 4) for each in factors]
        table.add_row(*(Text(cell) for cell in (layer["step"], *cells)))
    table.add_section()
    totals = [sum(float(layer["log10_factors"][name] or 0) for layer in layers) for name in names]
    table.add_row("all", *(short(_power(total), 4) for total in totals))
    screen.print()
    screen.print(table)
    if len(layers) > _MOST_LAYERS:
        screen.print(
            f"the {_MOST_LAYERS} of {len(layers)} steps with the largest factors; --json has all",
            markup=False,
        )
