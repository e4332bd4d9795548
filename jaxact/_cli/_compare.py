"""Which activation and initialisation keep signals and gradients over many layers, ranked, with the reason."""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxact import theory
from jaxact._cli._output import console, for_each, parse_activations, plain, print_json, reason, short
from jaxact.activations import Activation
from jaxact.numerics import gaussian_nodes, hermite_coefficients

SCORE = (
    "decades lost over the depth, lower is better: gradient_decades (|log10 of a gradient norm's growth|) + "
    "input_decades (-log10 of what is left of the difference between a similar and an unrelated pair of inputs, at "
    "most 12) + conditioning_decades (log10 of the Jacobian's largest singular value over the rms one)"
)
_SIMILAR = 0.9  # correlation of the similar pair; the unrelated one has 0
_LEFT_AT_LEAST = 1e-12  # rounding of correlations near 1 hides what is smaller
_GONE = 0.01
_AT_CRITICALITY = 1e-6
_SAME_SCALE = 1e-9
_KEPT = 0.3  # decades of a squared gradient, a factor 2, that count as no change
_NUM_HERMITE = 512
_LAYERS = 64  # expanded at once
_HABITS = {"lecun": 1.0, "pytorch": 3**-0.5}


class Start(NamedTuple):
    """A way to draw the weights: names, because different rules may agree."""

    names: tuple[str, ...]
    sigma_w: float
    sigma_b: float
    is_habit: bool


def run(options: argparse.Namespace) -> int:
    """Print the ranking of `options.names` at `options.depth`."""
    activations = parse_activations(options.names)
    work = partial(
        predict,
        depth=options.depth,
        sigma_b=tuple(options.sigma_b),
        weights=tuple(options.weights),
        shaping=tuple(options.shaping),
    )
    found = for_each(work, activations)
    rows = rank([row for each, _ in found for row in each])
    missing = [row for _, each in found for row in each]
    if options.json:
        print_json({"depth": options.depth, "score": SCORE, "ranking": rows, "missing": missing})
    else:
        _print(rows, missing, options.depth)
    return 0


def rank(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows by score, best first, each with its rank."""
    order = sorted(rows, key=lambda row: (row["score"], row["activation"]))  # none is NaN
    return [{"rank": number} | row for number, row in enumerate(order, 1)]


def predict(
    activation: Activation,
    *,
    depth: int,
    sigma_b: Sequence[float] = (0.0,),
    weights: Sequence[str] = ("gaussian", "orthogonal"),
    shaping: Sequence[Literal["dks", "tat"]] = (),
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Predict what each initialisation does to a plain network h' = W f(h) + b at infinite width.

    Args:
        activation: one of the zoo.
        depth: number of layers.
        sigma_b: bias scales of the critical initialisations.
        weights: "gaussian", "orthogonal" or both.
        shaping: methods of `theory.shape`, whose activation for this depth is compared too, at sigma_w = 1.

    Returns:
        One row an initialisation and law of the weights, and one for each initialisation that does not exist; the
        keys are those of `python -m jaxact compare --json`.
    """
    starts, missing = _starts(activation, sigma_b)
    if all(law == "orthogonal" for law in weights):
        starts = [start for start in starts if not start.is_habit]
    # One shape, hence one compiled program an activation, however many rules exist.
    rows = _rows(activation, starts, depth, weights, size=3 + len(sigma_b))
    for method in dict.fromkeys(shaping):
        try:
            shaped = theory.shape(activation, depth, method=method)
        except ValueError as error:
            missing.append({"activation": activation.name, "initialisation": method, "reason": reason(error)})
            continue
        found = _rows(shaped, [Start((method,), 1.0, 0.0, False)], depth, weights, size=1)
        rows += [row | {"activation": activation.name} for row in found]
    return rows, missing


def _rows(
    activation: Activation, starts: Sequence[Start], depth: int, weights: Sequence[str], *, size: int
) -> list[dict[str, Any]]:
    """One row a start and law of the weights; the starts are computed as `size` of them."""
    if not starts:
        return []
    sigmas_w = np.resize([start.sigma_w for start in starts], size)
    sigmas_b = np.resize([start.sigma_b for start in starts], size)
    field, path = follow(activation, depth, sigmas_w, sigmas_b)
    rows = []
    for index, start in enumerate(starts):
        limit = {name: float(each[index]) for name, each in field._asdict().items()}
        q, c, chi = (each[:, index] for each in path)
        for law in dict.fromkeys(weights):
            if law == "orthogonal" and start.is_habit:
                continue
            rows.append(_row(activation, start, law, limit, q, c, chi))
    return rows


def _starts(activation: Activation, sigma_b: Sequence[float]) -> tuple[list[Start], list[dict[str, Any]]]:
    wanted: list[tuple[str, float, Any]] = [
        ("variance-preserving", 0.0, lambda: theory.gain(activation)),
        *(
            ("critical", b, lambda b=b: float(theory.critical_point(activation, sigma_b=b).sigma_w))
            for b in dict.fromkeys(sigma_b)
        ),
        *((name, 0.0, lambda scale=scale: scale) for name, scale in _HABITS.items()),
    ]
    starts: list[Start] = []
    missing = []
    for name, b, scale in wanted:
        try:
            sigma_w = scale()
        except ValueError as error:
            label = name if b == 0 else f"{name}, sigma_b = {short(b)}"
            missing.append({"activation": activation.name, "initialisation": label, "reason": reason(error)})
            continue
        for place, other in enumerate(starts):
            if other.sigma_b == b and abs(other.sigma_w / sigma_w - 1) < _SAME_SCALE:
                starts[place] = other._replace(names=(*other.names, name))
                break
        else:
            starts.append(Start((name,), sigma_w, b, name in _HABITS))
    return starts, missing


class Path(NamedTuple):
    """What unit preactivations become, layer by layer.

    Attributes:
        q: second moment, [depth + 1, start].
        c: correlations of the unrelated and of the similar pair, [depth + 1, start, 2].
        chi: growth of squared gradients through each layer, [depth, start].
    """

    q: Float[np.ndarray, "layers start"]
    c: Float[np.ndarray, "layers start 2"]
    chi: Float[np.ndarray, "layer start"]


def follow(
    activation: Activation,
    depth: int,
    sigma_w: Float[np.ndarray, " start"],
    sigma_b: Float[np.ndarray, " start"],
) -> tuple[theory.MeanField, Path]:
    """Find the limit of large depth and the way there.

    The correlations are those of `theory.trajectory`, by Hermite's expansion instead of its quadrature in the plane,
    which takes twenty times as long: C(c) = sum_n s_n c^n. What is beyond degree 511 stands as one power with
    the right value and slope at c = 1. To rounding for smooth activations; for relu after 64 layers, where correlations
    are 0.99, to 1e-4 of 1 - c.
    """
    with jax.enable_x64(True):
        scales = jnp.asarray(sigma_w), jnp.asarray(sigma_b)
        limit = jax.tree.map(np.asarray, _limit(activation, *scales))
        q, chi, series, value, slope = (np.asarray(each) for each in _moments(activation, depth, *scales))
    degrees = np.arange(_NUM_HERMITE)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        rest = np.maximum(value - series.sum(-1), 0)
        degree = np.maximum((slope - series @ degrees) / rest, _NUM_HERMITE)
        rest = np.where(rest > 1e-13 * value, rest, 0)
        degree = np.where(rest > 0, degree, _NUM_HERMITE)
        c = [np.broadcast_to([0.0, _SIMILAR], (len(sigma_w), 2))]
        for layer in range(depth):
            powers = c[-1][..., None] ** degrees
            image = np.einsum("spn,sn->sp", powers, series[layer])
            image += rest[layer][:, None] * np.abs(c[-1]) ** degree[layer][:, None]
            image = sigma_w[:, None] ** 2 * image + sigma_b[:, None] ** 2
            c.append(np.clip(image / q[layer + 1][:, None], -1, 1))
    return limit, Path(q, np.stack(c), chi)


# Compiled once, run once: optimising would take longer than it saves.
@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def _limit(activation: Activation, sigma_w: jax.Array, sigma_b: jax.Array) -> theory.MeanField:
    return theory.mean_field(activation, sigma_w=sigma_w, sigma_b=sigma_b)


@partial(jax.jit, static_argnums=(0, 1))
def _moments(
    activation: Activation, depth: int, sigma_w: jax.Array, sigma_b: jax.Array
) -> tuple[jax.Array, ...]:
    """Per layer q and chi, and of f there: squared Hermite coefficients, E f^2, q E f'^2."""

    def layer(q: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        image = theory.variance_map(activation, q, sigma_w=sigma_w, sigma_b=sigma_b)
        return jnp.where(jnp.isinf(q), q, image), q  # has overflowed

    last, before = jax.lax.scan(layer, jnp.ones_like(sigma_w), None, length=depth)

    def expansion(q: jax.Array) -> tuple[jax.Array, ...]:
        x, weights = gaussian_nodes(activation.breakpoints, jnp.zeros_like(q), q)
        value, slope = activation.value_and_slope(x)
        z = x / jnp.sqrt(q)[..., None]
        series = hermite_coefficients(z, weights, value, _NUM_HERMITE) ** 2
        return jnp.moveaxis(series, 0, -1), jnp.sum(value**2 * weights, -1), jnp.sum(slope**2 * weights, -1)

    # Some layers at a time: their nodes would not fit into memory together.
    series, second_moment, squares = jax.lax.map(expansion, before, batch_size=_LAYERS)
    return (
        jnp.concatenate([before, last[None]]),
        sigma_w**2 * squares,
        series,
        second_moment,
        before * squares,
    )


def _row(
    activation: Activation,
    start: Start,
    weights: str,
    limit: dict[str, float],
    q: np.ndarray,
    c: np.ndarray,
    chi: np.ndarray,
) -> dict[str, Any]:
    """One entry of the ranking."""
    depth = len(chi)
    with np.errstate(divide="ignore", invalid="ignore"):
        growth = float(np.log10(chi).sum())
        left = np.abs(c[:, 1] - c[:, 0]) / _SIMILAR
    is_finite = bool(np.isfinite(q).all() and np.isfinite(left).all() and not math.isnan(growth))
    gone = np.nonzero(left < _GONE)[0] if is_finite else np.array([], int)
    largest, zero = _conditioning(activation, depth, start.sigma_w, weights, q, chi)
    parts = {
        "gradient_decades": abs(growth) / 2 if is_finite else math.inf,
        "input_decades": max(-math.log10(max(left[-1], _LEFT_AT_LEAST)), 0.0) if is_finite else math.inf,
        "conditioning_decades": math.log10(largest) if math.isfinite(largest) else math.inf,
    }
    is_critical = abs(limit["chi"] - 1) < _AT_CRITICALITY
    # Where signals vanish, q has no limit on whose scale the correlations could settle.
    is_lost = limit["q_star"] == 0 and not is_critical
    row = {
        "activation": activation.name,
        "initialisation": " = ".join(start.names),
        "weights": weights,
        "sigma_w": start.sigma_w,
        "sigma_b": start.sigma_b,
        "q_star": limit["q_star"],
        "chi": limit["chi"],
        "phase": theory.MeanField(**limit).phase,  # type: ignore[arg-type]
        "c_star": math.nan if limit["q_star"] == 0 else limit["c_star"],
        # At chi = 1 rounding decides between a large number of either sign and infinity.
        "xi_c": math.inf if is_critical else math.nan if is_lost else limit["xi_c"],
        "xi_gradient": math.inf if is_critical else limit["xi_gradient"],
        "q_end": float(q[-1]),
        "growth_decades": growth,
        "correlation_end": float(c[-1, 0]),
        "contrast_left": float(left[-1]),
        "contrast_depth": int(gone[0]) if len(gone) else None,
        "zero_probability": zero,
        "largest_over_rms": largest,
        **parts,
        "score": sum(parts.values()),
    }
    return plain_but_score(row | {"why": why(row, depth)})


def plain_but_score(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers as JSON has them, but the score, which rows are sorted by."""
    return plain({name: each for name, each in row.items() if name != "score"}) | {"score": row["score"]}


def _conditioning(
    activation: Activation, depth: int, sigma_w: float, weights: str, q: np.ndarray, chi: np.ndarray
) -> tuple[float, float]:
    """The largest singular value over the rms one, and the share of zeros, at the middle layer's q."""
    middle = depth // 2
    if not (
        q[middle] > 0 and chi[middle] > 0
    ):  # vanished, in floating point too: no singular values are left
        return math.nan, math.nan
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # of moments that are not asked for
            spectrum = theory.jacobian_spectrum(
                activation,
                depth,
                sigma_w=sigma_w,
                q=float(q[middle]),
                weights=weights,  # type: ignore[arg-type]
                log_eigenvalues=np.zeros(1),
            )
    except (ValueError, FloatingPointError):  # no finite q, no slope, or an equation that does not close
        return math.nan, math.nan
    zero = float(spectrum.atom_masses[spectrum.atom_locations == 0].sum())
    return float(np.exp((spectrum.log_lambda_max - depth * math.log(chi[middle])) / 2)), zero


def why(row: dict[str, Any], depth: int) -> str:
    """Say in one sentence what happens to signals, gradients, pairs of inputs and directions.

    Args:
        row: an entry of the ranking; its numbers as floats.
        depth: number of layers.
    """
    parts = [_signals(row), _gradients(row, depth), _inputs(row, depth), _directions(row)]
    sentence = "; ".join(part for part in parts if part)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _signals(row: dict[str, Any]) -> str:
    q = row["q_end"]
    if not math.isfinite(q):
        return "signals overflow"
    if q > 10:
        return f"signals grow ({_times(q)} the variance)"
    if q < 0.1 and row["gradient_decades"] * 2 > _KEPT:
        return f"signals shrink ({_times(q)} the variance)"
    return ""


def _gradients(row: dict[str, Any], depth: int) -> str:
    decades = row["growth_decades"]
    if math.isnan(decades) or decades == math.inf:
        return "gradients overflow"
    if decades == -math.inf:
        return "gradients vanish altogether"
    if abs(decades) < _KEPT:
        return "gradients keep their size"
    verb = "grow" if decades > 0 else "shrink"
    if row["xi_gradient"] == math.inf and math.isfinite(row["q_star"]):  # chi = 1 in the end
        return f"squared gradients {verb} by {_each(decades, 1)} over {depth} layers, ever more slowly"
    return (
        f"squared gradients {verb} by {_each(decades, depth)} a layer: 10^{decades:.1f} over {depth} layers"
    )


def _inputs(row: dict[str, Any], depth: int) -> str:
    left, gone, end = row["contrast_left"], row["contrast_depth"], row["correlation_end"]
    if not math.isfinite(left):
        return ""
    if gone is None:
        return f"{_percent(left)} of the difference between similar and unrelated inputs is left"
    if end > 0.5:
        slowly = ", polynomially" if row["xi_c"] == math.inf and row["c_star"] > 1 - 1e-6 else ""
        return f"inputs become indistinguishable after {gone} layers (correlation {_near_one(end)} at {depth}{slowly})"
    return f"similar inputs look unrelated after {gone} layers"


def _directions(row: dict[str, Any]) -> str:
    largest, zero = row["largest_over_rms"], row["zero_probability"]
    if math.isnan(largest):
        return ""
    dead = f", {_percent(zero)} of them are 0" if zero > 0.005 else ""
    if largest < 1.005:
        return "all singular values are equal"
    return f"the largest singular value is {short(largest, 3)}x the rms{dead}"


def _each(decades: float, steps: int) -> str:
    return f"{10 ** (abs(decades) / steps):.3g}x"


def _times(value: float) -> str:
    return f"{value:.2g}x"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _near_one(c: float) -> str:
    return f"{c:.3f}" if c < 0.9995 else "1" if c > 1 - 1e-12 else f"1 - {1 - c:.0e}"


_WIDE = 130  # columns of a terminal in which scales and fixed points stand beside the rest; --json has them always


def _print(rows: list[dict[str, Any]], missing: list[dict[str, Any]], depth: int) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = console()
    is_wide = screen.width >= _WIDE
    title = f"decades lost over {depth} layers: the score, lower is better"
    table = Table(title=title, title_justify="left")
    if not is_wide:
        table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
    for name in ("", "activation", "initialisation", "weights"):
        table.add_column(name)
    scales = ("sigma_w", "sigma_b", "q*", "chi", "xi_c", "xi_grad") if is_wide else ()
    decades = ("gradient", "inputs", "condition") if is_wide else ("grad", "inputs", "cond")
    for name in (*scales, *decades, "score"):
        table.add_column(name, justify="right")
    for row in rows:
        names = ("sigma_w", "sigma_b", "q_star", "chi", "xi_c", "xi_gradient")[: len(scales)]
        lost = [row[f"{name}_decades"] for name in ("gradient", "input", "conditioning")]
        cells = [str(row["rank"]), row["activation"], row["initialisation"], row["weights"]]
        if row["sigma_b"] and not is_wide:  # which has a column of its own otherwise
            cells[2] += f", b={row['sigma_b']:.2g}"
        cells += [_cell(row[name], ".4g") for name in names]
        cells += [_cell(number, ".2f") for number in (*lost, row["score"])]
        table.add_row(*(Text(cell) for cell in cells))
    screen.print(table)
    for row in rows:
        start = f"{row['initialisation']}, {row['weights']}"
        start += f", sigma_b = {short(row['sigma_b'])}" if row["sigma_b"] else ""
        screen.print(
            f"{row['rank']:3d}. {row['activation']} ({start}): {row['why']}", markup=False, soft_wrap=True
        )
    for each in missing:
        screen.print(
            f"  -  {each['activation']}, {each['initialisation']}: {each['reason']}",
            markup=False,
            soft_wrap=True,
        )


def _cell(value: Any, form: str) -> str:
    return "-" if value is None else format(float(value), form)  # "inf" too
