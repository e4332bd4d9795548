"""What theory knows of each activation, as a table, as JSON and as a figure."""

import argparse
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxact import theory
from jaxact._cli._output import console, in_options, parse_activations, plain, print_json, progress, short
from jaxact.activations import Activation

_NEARBY = 1e-3  # relative to q_star: where V(q) - q tells whether the fixed point attracts from above
_SMALL = 1e-6  # the same, absolute, for q_star = 0
_NEUTRAL = 1e-12
_NEAR = 4.0  # no sigmoid is saturated there
_NOISE = 1e-15  # moments below it are shown as 0; JSON has them as they are
_EXACT, _COMPUTED = "exact", "computed"


def run(options: argparse.Namespace) -> int:
    """Print what is known of `options.names`, and draw it if a file was given."""
    activations = parse_activations(options.names)
    if options.plot is not None:
        from jaxact._cli import _plot

        _plot.check(options.plot, activations)
    found = []
    with progress() as say:
        for activation in activations:
            say(activation.name)
            found.append(describe(activation, sigma_b=options.sigma_b, batch_size=options.batch_size))
    if options.json:
        print_json({"activations": found})
    else:
        _print(found)
    if options.plot is not None:
        _plot.draw(options.plot, activations, sigma_b=options.sigma_b)
        if not options.json:
            print(f"figure  {options.plot}")
    return 0


def describe(activation: Activation, *, sigma_b: float = 0.05**0.5, batch_size: int = 256) -> dict[str, Any]:
    """Collect the facts about one activation.

    Args:
        activation: one of the zoo.
        sigma_b: bias scale of the second critical point; the first has none.
        batch_size: of the second growth under batch norm; the first is at infinite batch.

    Returns:
        What `python -m jaxact describe --json` prints for it:

            name, formula, reference    text
            range, slope_range          [lower, upper], an end may be infinite
            lipschitz                   sup |f'|
            kinks                       where f' jumps
            monotone, odd, homogeneous  booleans
            argmin, minimum             where f takes its least value (null: on an interval, or nowhere), and that value
                                        (null: nowhere)
            is_exact                    whether all of the above are known rather than estimated
            moments                     fields of `jaxact.theory.Moments` at N(0, 1)
            gain, gain_missing          `jaxact.theory.gain`, or null and why there is none
            gain_stability              what the fixed point q = gain^2 does to larger q: "attracting", "neutral" or
                                        "repelling"
            critical_points             for each sigma_b: sigma_b, sigma_w, q_star, stability, missing (why there is
                                        none)
            batch_norm_gradient_growth  for each batch_size (null: infinite): batch_size, growth a layer, missing
    """
    gain, gain_missing = _tried(theory.gain, activation)
    points = [_critical(activation, each) for each in dict.fromkeys((0.0, sigma_b))]
    # All the Gaussian integrals in one call, hence one compilation; four places, whatever there is to look at.
    beside = [_beside(point["q_star"]) for point in points]
    beside_gain = _beside(None if gain is None else gain**2)
    variances = np.resize([1.0, beside_gain, *beside], 4)
    with jax.enable_x64(True):
        moments = jax.tree.map(np.asarray, _moments(activation, variances))
    gain_stability = None
    if gain is not None:
        gain_stability = _stability(gain**2 * float(moments.second_moment[1]), beside_gain)
    for point, q, value in zip(points, beside, moments.second_moment[2:], strict=False):
        if point["sigma_w"] is not None:
            point["stability"] = _stability(point["sigma_w"] ** 2 * value + point["sigma_b"] ** 2, q)
    growths = []
    for size in (None, batch_size):
        growth, missing = _tried(theory.batch_norm_gradient_growth, activation, size)
        growths.append({"batch_size": size, "growth": growth, "missing": missing})
    return plain(
        {
            "name": activation.name,
            "formula": activation.formula,
            "range": activation.range,
            "lipschitz": activation.lipschitz,
            "slope_range": activation.slope_range,
            "kinks": activation.kinks,
            "monotone": activation.monotone,
            "odd": activation.odd,
            "homogeneous": activation.homogeneous,
            "argmin": activation.argmin,
            "minimum": activation.range.lower if _attains_minimum(activation) else None,
            "is_exact": activation.exact,
            "moments": {name: float(each[0]) for name, each in moments._asdict().items()},
            "gain": gain,
            "gain_stability": gain_stability,
            "gain_missing": gain_missing,
            "critical_points": points,
            "batch_norm_gradient_growth": growths,
            "reference": activation.reference,
        }
    )


@partial(jax.jit, static_argnums=0)
def _moments(activation: Activation, variances: Any) -> theory.Moments:
    return theory.moments(activation, variance=variances)


def _tried(function: Any, *arguments: Any) -> tuple[float | None, str | None]:
    try:
        return function(*arguments), None
    except ValueError as error:
        return None, str(error)


def _critical(activation: Activation, sigma_b: float) -> dict[str, Any]:
    point = dict.fromkeys(("sigma_b", "sigma_w", "q_star", "stability", "missing"))
    try:
        found = theory.critical_point(activation, sigma_b=sigma_b)
    except ValueError as error:
        return point | {"sigma_b": sigma_b, "missing": in_options(error)}
    return point | {"sigma_b": sigma_b, "sigma_w": float(found.sigma_w), "q_star": float(found.q_star)}


def _attains_minimum(activation: Activation) -> bool:
    """Whether the least value has a place, or an interval of them as relu's."""
    if activation.argmin is not None:
        return True
    with jax.enable_x64(True):
        values = np.asarray(activation(np.linspace(-_NEAR, _NEAR, 65)))
    return bool((values == activation.range.lower).any())


def _beside(q_star: float | None) -> float:
    if q_star is None:
        return 1.0
    return q_star * (1 + _NEARBY) if q_star > 0 else _SMALL


def _stability(image: float, q: float) -> str:
    """Whether V takes a q a little above q_star back down to it."""
    if abs(image / q - 1) <= _NEUTRAL:
        return "neutral"
    return "attracting" if image < q else "repelling"


def _print(found: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", *(escape(each["name"]) for each in found))
    reasons: dict[str, str] = {}
    before = _EXACT
    for label, kind, cells in _rows(found, reasons):
        if kind != before:
            table.add_section()
        before = kind
        table.add_row(Text(label), Text(kind, style="dim"), *(Text(cell) for cell in cells))
    screen = console()
    screen.print(table)
    for mark, why in reasons.items():
        screen.print(f"{mark} {why}", markup=False, soft_wrap=True)
    exact = "exact: known in closed form." if all(each["is_exact"] for each in found) else "exact: estimated."
    screen.print(
        f"{exact} computed: float64 quadrature and root finding, relative error about 1e-12; z ~ N(0, 1). "
        "gain: sigma_w at which the hidden states' second moment is 1. critical: sigma_w at which squared gradients "
        "keep their size (chi = 1) at the fixed point q*. attracting, neutral, repelling: what becomes of larger q.",
        markup=False,
        soft_wrap=True,
    )


def _rows(found: list[dict[str, Any]], reasons: dict[str, str]) -> list[tuple[str, str, list[str]]]:
    """(label, exact or computed, a cell for each activation); fills in what the marks in cells stand for."""

    def number(value: Any) -> str:
        return short(None if value is None else float(value))  # JSON's "inf" too

    def interval(ends: list[Any]) -> str:
        return f"[{number(ends[0])}, {number(ends[1])}]"

    def without(reason: str) -> str:
        mark = next((mark for mark, each in reasons.items() if each == reason), None)
        mark = mark or f"[{len(reasons) + 1}]"
        reasons[mark] = reason
        return f"none {mark}"

    def least(each: dict[str, Any]) -> str:
        if each["argmin"] is None and each["minimum"] is not None:
            return f"{number(each['minimum'])}, on an interval"
        if each["argmin"] is None:
            return "monotone" if each["monotone"] else "not attained"
        return f"f({number(each['argmin'])}) = {number(each['minimum'])}"

    def critical(point: dict[str, Any]) -> str:
        if point["sigma_w"] is None:
            return without(point["missing"])
        return f"sigma_w = {number(point['sigma_w'])}, q* = {number(point['q_star'])}, {point['stability']}"

    def moment(name: str) -> Any:
        return lambda each: number(0.0 if abs(each["moments"][name]) < _NOISE else each["moments"][name])

    def yes(name: str) -> Any:
        return lambda each: "yes" if each[name] else "no"

    rows: list[tuple[str, str, Any]] = [
        ("f(x)", _EXACT, lambda each: each["formula"]),
        ("range", _EXACT, lambda each: interval(each["range"])),
        ("Lipschitz constant", _EXACT, lambda each: number(each["lipschitz"])),
        ("range of f'", _EXACT, lambda each: interval(each["slope_range"])),
        ("kinks", _EXACT, lambda each: ", ".join(map(number, each["kinks"])) or "none"),
        ("monotone", _EXACT, yes("monotone")),
        ("odd", _EXACT, yes("odd")),
        ("homogeneous", _EXACT, yes("homogeneous")),
        ("minimum", _EXACT, least),
        ("reference", _EXACT, lambda each: each["reference"]),
        ("E f(z)", _COMPUTED, moment("mean")),
        ("E f(z)^2", _COMPUTED, moment("second_moment")),
        ("Var f(z)", _COMPUTED, moment("variance")),
        ("E f'(z)", _COMPUTED, moment("slope")),
        ("E f'(z)^2", _COMPUTED, moment("slope_second_moment")),
        ("E f'(z)^4", _COMPUTED, moment("slope_fourth_moment")),
        ("P(f(z) = 0), sparsity", _COMPUTED, moment("zero_probability")),
        ("P(f'(z) = 0), dead", _COMPUTED, moment("dead_probability")),
        (
            "gain",
            _COMPUTED,
            lambda each: (
                without(each["gain_missing"])
                if each["gain"] is None
                else f"sigma_w = {number(each['gain'])}, q = {number(each['gain'] ** 2)}, {each['gain_stability']}"
            ),
        ),
    ]
    for index, point in enumerate(found[0]["critical_points"]):
        label = f"critical, sigma_b = {number(point['sigma_b'])}"
        rows.append((label, _COMPUTED, lambda each, index=index: critical(each["critical_points"][index])))
    for index, growth in enumerate(found[0]["batch_norm_gradient_growth"]):
        size = "infinite batch" if growth["batch_size"] is None else f"batch {growth['batch_size']}"

        def cell(each: dict[str, Any], index: int = index) -> str:
            entry = each["batch_norm_gradient_growth"][index]
            return without(entry["missing"]) if entry["growth"] is None else number(entry["growth"])

        rows.append((f"|grad|^2 x a layer, BN, {size}", _COMPUTED, cell))
    return [(label, kind, [show(each) for each in found]) for label, kind, show in rows]


def list_names(options: argparse.Namespace) -> int:
    """Print every name of the zoo with its formula."""
    from rich.table import Table
    from rich.text import Text

    from jaxact import activations

    found = [(name, activations.parse(name)) for name in activations.names()]
    if options.json:
        print_json({"names": [name for name, _ in found]})
        return 0
    table = Table("name", "f(x), parameters at their defaults", "reference")
    for name, activation in found:
        table.add_row(Text(name), Text(activation.formula), Text(activation.reference))
    console().print(table)
    return 0
