"""The compare command: from its options to a ranking of activations and initialisations, as tables and as JSON."""

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxact import theory
from jaxact._cli._output import console, in_options, parse_activations, plain, print_json, progress, short
from jaxact._cli._why import why
from jaxact.theory import Comparison, Missing, Prediction

SCORE = (
    "decades lost over the depth, lower is better: gradient_decades (|log10 of a gradient norm's growth|) + "
    "input_decades (-log10 of what is left of the difference between a similar and an unrelated pair of inputs, at "
    "most 12) + conditioning_decades (log10 of the Jacobian's largest singular value over the rms one)"
)
_NUMBERS = (
    *("sigma_w", "sigma_b", "q_star", "chi", "phase", "c_star", "xi_c", "xi_gradient"),
    *("q_end", "growth_decades", "correlation_end", "contrast_left", "contrast_depth", "zero_probability"),
    *("largest_over_rms", "gradient_decades", "input_decades", "conditioning_decades"),
)
_WIDE = 130  # columns of a terminal in which scales and fixed points stand beside the rest; --json has them always
_SCALES = {
    "sigma_w": "sigma_w",
    "sigma_b": "sigma_b",
    "q_star": "q*",
    "chi": "chi",
    "xi_c": "xi_c",
    "xi_gradient": "xi_grad",
}


def run(options: argparse.Namespace) -> int:
    """Print the ranking of `options.names` at `options.depth`."""
    activations = parse_activations(options.names)
    with progress() as say:
        found = theory.compare(
            activations,
            depth=options.depth,
            sigma_b=options.sigma_b,
            weights=options.weights,
            shaping=options.shaping,
            progress=say,
        )
    if options.json:
        print_json(facts(found, options.depth))
    else:
        _print(found, options.depth)
    return 0


def facts(found: Comparison, depth: int) -> dict[str, Any]:
    """What `python -m jaxact compare --json` prints."""
    return {
        "depth": depth,
        "score": SCORE,
        "ranking": [{"rank": rank} | _row(row) for rank, row in enumerate(found.ranking, 1)],
        "missing": [_missing(each) for each in found.missing],
    }


def _row(row: Prediction) -> dict[str, Any]:
    names = {
        "activation": row.activation.name,
        "initialisation": " = ".join(row.initialisation),
        "weights": row.weights,
    }
    numbers = {name: getattr(row, name) for name in _NUMBERS}
    return names | plain(numbers | {"why": why(row), "score": row.score, "code": theory.recipe(row)})


def _missing(each: Missing) -> dict[str, Any]:
    label = each.initialisation if each.sigma_b == 0 else f"{each.initialisation}, {_bias(each.sigma_b)}"
    return {"activation": each.activation.name, "initialisation": label, "reason": in_options(each.error)}


def _bias(sigma_b: float) -> str:
    return f"sigma_b = {short(sigma_b)}"


# --- In print -----------------------------------------------------------------------------------------------


def _print(found: Comparison, depth: int) -> None:
    screen = console()
    screen.print(_table(found.ranking, depth, is_wide=screen.width >= _WIDE))
    for rank, row in enumerate(found.ranking, 1):
        _say(screen, f"{rank:3d}. {row.activation.name} ({_start(row)}): {why(row)}")
    for each in map(_missing, found.missing):
        _say(screen, f"  -  {each['activation']}, {each['initialisation']}: {each['reason']}")
    if found.ranking:
        best = found.ranking[0]
        _say(screen, f"\nthe first of them, {best.activation.name} ({_start(best)}), in Flax NNX:\n")
        _say(screen, theory.recipe(best).rstrip())


def _say(screen: Console, text: str) -> None:
    screen.print(text, markup=False, soft_wrap=True)


def _start(row: Prediction) -> str:
    start = f"{' = '.join(row.initialisation)}, {row.weights}"
    return f"{start}, {_bias(row.sigma_b)}" if row.sigma_b else start


def _table(rows: Sequence[Prediction], depth: int, *, is_wide: bool) -> Table:
    title = f"decades lost over {depth} layers: the score, lower is better"
    table = Table(title=title, title_justify="left")
    if not is_wide:
        table.box, table.pad_edge, table.padding = None, False, (0, 1, 0, 0)
    for name in ("", "activation", "initialisation", "weights"):
        table.add_column(name)
    decades = ("gradient", "inputs", "condition") if is_wide else ("grad", "inputs", "cond")
    for name in (*(_SCALES.values() if is_wide else ()), *decades, "score"):
        table.add_column(name, justify="right")
    for rank, row in enumerate(rows, 1):
        table.add_row(*(Text(cell) for cell in _cells(rank, row, is_wide)))
    return table


def _cells(rank: int, row: Prediction, is_wide: bool) -> list[str]:
    initialisation = " = ".join(row.initialisation)
    if row.sigma_b and not is_wide:  # which has a column of its own otherwise
        initialisation += f", b={row.sigma_b:.2g}"
    lost = (row.gradient_decades, row.input_decades, row.conditioning_decades, row.score)
    return [
        *(str(rank), row.activation.name, initialisation, row.weights),
        *(_cell(getattr(row, name), ".4g") for name in (_SCALES if is_wide else ())),
        *(_cell(each, ".2f") for each in lost),
    ]


def _cell(value: float, form: str) -> str:
    return "-" if value != value else format(value, form)
