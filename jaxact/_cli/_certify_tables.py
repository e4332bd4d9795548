"""The ladder of Lipschitz numbers on a terminal: tables, where the slope is attained, notes and the verdict."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxact._cli._output import console, short
from jaxact._cli._verdict import number, power
from jaxact.adapters import shape_text

_SHOWN = 16  # entries of a witness
_MOST_LAYERS = 40


def print_ladder(found: dict[str, Any]) -> None:
    """Print what `facts` of the certify command found: the ladder, where it is attained, the layers, the verdict."""
    screen = console()
    outputs = " and ".join(shape_text(shape) for shape in found["output_shapes"])
    screen.print(
        f"{found['model']}: {found['kind']}, {shape_text(found['called_on'])} -> {outputs}", markup=False
    )
    notes: list[str] = []
    screen.print(_ladder_table(found["ladder"], notes))
    if found["region"] is not None:
        screen.print(_region_text(found["region"]), markup=False)
    for row in found["ladder"]:
        if row["where"] is not None:
            scope = "" if row["region"] is None else f", in the {row['region']['shape']}"
            screen.print(f"attained{scope}, {_witness(row['where'])}", markup=False)
    for mark, note in enumerate(notes, 1):
        screen.print(f"[{mark}] {note}", markup=False)
    if found["layers"]:
        _print_layers(found["layers"], screen)
    screen.print()
    screen.print(found["verdict"], markup=False)


def _ladder_table(rows: Sequence[dict[str, Any]], notes: list[str]) -> Table:
    """One row a number; fills in the notes that the last column names."""
    table = Table(title="Lipschitz constant, Euclidean norms", title_justify="left")
    table.add_column("")
    for name in ("value", "log10"):
        table.add_column(name, justify="right")
    for name in ("kind", "inputs"):
        table.add_column(name)
    table.add_column("s", justify="right")
    table.add_column("notes")
    before = rows[0]["region"]
    for row in rows:
        if row["region"] != before:
            table.add_section()
        before = row["region"]
        table.add_row(*(Text(cell) for cell in _cells(row, notes)))
    return table


def _cells(row: dict[str, Any], notes: list[str]) -> list[str]:
    name = row["name"]
    if name == "ellipsoid" and row["num_steps"] is not None:
        name = f"{name}, {row['num_steps']} steps"
    reasons = row["assumptions"] if row["missing"] is None else [row["missing"]]
    for reason in reasons:
        if reason not in notes:
            notes.append(reason)
    if row["missing"] is not None:
        value, log = "none", ""
    else:
        value, log = number(row["value"], row["log10"]), f"{float(row['log10']):.3f}"
    return [
        name,
        value,
        log,
        "certified" if row["kind"] == "certified upper bound" else row["kind"],
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
    for each in sorted(numbers):
        if runs and each == runs[-1][-1] + 1:
            runs[-1].append(each)
        else:
            runs.append([each])
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


def _print_layers(layers: Sequence[dict[str, Any]], screen: Console) -> None:
    names = list(layers[0]["log10_factors"])
    table = Table(title="where the bound is lost: what each step multiplies it by", title_justify="left")
    table.add_column("step")
    for name in names:
        table.add_column(name, justify="right")
    for layer in _largest(layers, names[0]):
        factors = [layer["log10_factors"][name] for name in names]
        cells = ["-" if each is None else short(power(float(each)), 4) for each in factors]
        table.add_row(*(Text(cell) for cell in (layer["step"], *cells)))
    table.add_section()
    totals = [sum(float(layer["log10_factors"][name] or 0) for layer in layers) for name in names]
    table.add_row("all", *(short(power(total), 4) for total in totals))
    screen.print()
    screen.print(table)
    if len(layers) > _MOST_LAYERS:
        screen.print(
            f"the {_MOST_LAYERS} of {len(layers)} steps with the largest factors; --json has all",
            markup=False,
        )


def _largest(layers: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The steps that a bound loses most by, in order."""
    by_size = sorted(range(len(layers)), key=lambda i: -(layers[i]["log10_factors"][name] or 0))
    return [layers[index] for index in sorted(by_size[:_MOST_LAYERS])]
