"""What the study of Lipschitz bounds shows: its figures, findings and tables, from the stored Dataset alone."""

import itertools
import re
from collections.abc import Sequence

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from train import figures as draw
from train.experiments import _depth_sweep_members as cells

_FLOOR, _CEILING = -20.0, 60.0  # log10
_WORDS = {
    "lower": "at least: gradient ascent",
    "ellipsoid": "ellipsoid, refined",
    "closed form": "ellipsoid, closed form",
    "product": "product of norms",
}


def figures(result: xr.Dataset) -> dict[str, alt.FacetChart]:
    """The figures of the study, by name; one that has no number to show is left out.

    Args:
        result: the combined Dataset, or any part of one.

    Returns:
        Charts that carry their data, captions and filters with them.
    """
    charts = {"lipschitz_bounds": _bounds(result), "looseness": _looseness(result), "time": _seconds(result)}
    return {name: chart for name, chart in charts.items() if chart is not None}


def findings(result: xr.Dataset) -> list[str]:
    """Say in sentences what the study found, each number computed from the Dataset.

    Args:
        result: the combined Dataset, or any part of one.
    """
    values = result["lipschitz_log10"].astype(float)
    if not bool(values.notnull().any()):
        return ["Nothing to conclude: no network of this study has a bound."]
    gaps = values - values.sel(bound="lower")
    sentences = [_verdict(gaps)]
    for block in cells.names(result, "block"):
        sentences += _block(values.sel(block=block), cells.block_name(block))
    sentences += [_training(gaps), _local(values), _times(result), _diverged(values), _order(values)]
    return [sentence for sentence in sentences if sentence]


def tables(result: xr.Dataset) -> dict[str, pd.DataFrame]:
    """The bounds of every network, medians over seeds, with the accuracy they come with."""
    values = cells.quiet(lambda: result["lipschitz_log10"].astype(float).median("seed"))
    accuracy = cells.quiet(lambda: result["test_accuracy"].astype(float).median("seed"))
    columns = {name: values.sel(bound=name, drop=True) for name in cells.names(result, "bound")}
    frame = xr.Dataset({"test accuracy": accuracy, **columns}).to_dataframe().reset_index()
    frame = frame.dropna(subset=list(columns), how="all").reset_index(drop=True)
    frame["block"] = frame["block"].map(cells.block_name)
    frame["phase"] = frame["phase"].map(lambda phase: cells.PHASES.get(phase, phase))
    frame = frame.round(3)
    frame.attrs["caption"] = (
        f"log10 of every bound on the Lipschitz constant, median over {cells.seeds(result)}. All but 'lower' are upper "
        "bounds; 'local' ones hold within a ball of radius R about one held-out input."
    )
    return {"Every network": frame}


def _verdict(gaps: xr.DataArray) -> str:
    depth = int(gaps["depth"].max())
    deep = gaps.sel(depth=depth, phase="trained")
    parts = [
        f"{_decades(_middle(deep.sel(bound=bound)))} for {words}"
        for bound, words in (
            ("product", "the product of norms"),
            ("closed form", "the ellipsoid's closed form"),
            ("ellipsoid", "its refinement"),
        )
    ]
    return (
        f"Orders of magnitude between the certificate and the largest slope found, trained networks of depth {depth}, "
        f"median over blocks and activations: {', '.join(parts)}."
    )


def _block(values: xr.DataArray, name: str) -> list[str]:
    deep = values.sel(phase="trained").dropna("depth", how="all")
    if deep.sizes["depth"] == 0:
        return []
    depth = int(deep["depth"].max())
    here = cells.quiet(lambda: deep.sel(depth=depth).median("seed"))
    rows = []
    for activation in cells.names(here, "activation"):
        row = here.sel(activation=activation)
        if bool(row.isnull().any()):
            continue
        bounds = (float(row.sel(bound=bound)) for bound in ("lower", "ellipsoid", "product"))
        rows.append(f"{activation} {' / '.join(_power(value) for value in bounds)}")
    return (
        [f"{name}, depth {depth}, trained, at least / ellipsoid / product: {'; '.join(rows)}."]
        if rows
        else []
    )


def _training(gaps: xr.DataArray) -> str:
    before, after = (_middle(gaps.sel(phase=phase, bound="ellipsoid")) for phase in ("initial", "trained"))
    if np.isnan(before) or np.isnan(after):
        return ""
    return (
        f"The refined certificate is {_decades(before)} orders of magnitude above the ascent at initialisation and "
        f"{_decades(after)} after training (median over all networks)."
    )


def _local(values: xr.DataArray) -> str:
    names = [name for name in cells.names(values, "bound") if name.startswith("local")]
    everywhere = values.sel(bound="ellipsoid", phase="trained")
    parts = [
        f"{_decades(_middle(everywhere - values.sel(bound=name, phase='trained')))} at {_radius(name)}"
        for name in names
    ]
    return (
        "Certificates within a ball about one input lie below the global one by so many orders of magnitude, trained "
        f"networks, median: {', '.join(parts)}."
    )


def _times(result: xr.Dataset) -> str:
    seconds = result["bound_time"].astype(float)
    depth = int(seconds["depth"].max())
    parts = [
        f"{_WORDS.get(name, name)} {_middle(seconds.sel(bound=name, depth=depth)):.2g} s"
        for name in cells.names(result, "bound")
    ]
    return f"Time at depth {depth}, median, of certificates with what is compiled on the way: {'; '.join(parts)}."


def _order(values: xr.DataArray) -> str:
    chain = ("lower", "ellipsoid", "closed form", "product")
    # Rounding of float32 in the first and the last.
    violations = sum(
        int((values.sel(bound=low) > values.sel(bound=high) + 1e-5).sum())
        for low, high in itertools.pairwise(chain)
    )
    count = int(values.notnull().all("bound").sum())
    if violations:
        return (
            f"The order lower <= ellipsoid <= closed form <= product is broken {violations} times: report it."
        )
    return f"lower <= ellipsoid <= closed form <= product on all {count} networks."


def _bounds(result: xr.Dataset) -> alt.FacetChart | None:
    frame = _named(draw.tidy(draw.spread(result["lipschitz_log10"], "seed")), result)
    if frame.empty:
        return None
    names = ["value", "low", "high"]
    logs = {name: frame[name].to_numpy(float) for name in names}
    frame, edges = draw.clip_decades(frame, logs, floor=_FLOOR, ceiling=_CEILING)
    chart = _lines(
        frame,
        result,
        y=draw.Axis(title="Lipschitz constant", scale="decades"),
        edges=edges,
        row="activation",
        size=(255, 170),
    )
    return draw.finish(
        chart,
        title="Between which bounds does a network's Lipschitz constant lie?",
        subtitle=f"All certificates beside what an ascent finds, by depth: {_over_seeds(result)}",
        caption=(
            "The constant over all inputs lies between the lowest line and the lowest of the three global ones. The "
            "product of norms grows by the block; the ellipsoid knows how layers fit together. Local certificates hold "
            "within a ball about one held-out input only, and may lie below the ascent, which searches everywhere."
        ),
    )


def _looseness(result: xr.Dataset) -> alt.FacetChart | None:
    values = result["lipschitz_log10"].astype(float)
    gap = (values - values.sel(bound="lower")).sel(bound=["ellipsoid", "closed form", "product"])
    frame = _named(draw.tidy(draw.spread(gap, ["seed", "activation"])), result)
    if frame.empty:
        return None
    chart = draw.lines(
        frame,
        x=_depth_axis(result),
        y=draw.Axis(title="Certificate over ascent (orders of magnitude)"),
        x_field="depth",
        series="bound",
        column="block",
        row="phase",
        tooltip=[alt.Tooltip("bound:N"), alt.Tooltip("depth:Q"), alt.Tooltip("value:Q", format=".2f")],
        size=(255, 150),
    )
    return draw.finish(
        chart,
        title="How loose is each certificate?",
        subtitle="log10 of upper over lower bound: median over activations and seeds, band all of them",
        caption=(
            "0 would be a certificate that is attained. A straight line that rises loses a constant factor in every "
            "layer. Since the ascent may miss the steepest place, this is at most how loose the certificate is."
        ),
    )


def _seconds(result: xr.Dataset) -> alt.FacetChart | None:
    sample = draw.spread(result["bound_time"], ["seed", "activation", "phase"])
    frame = _named(draw.tidy(sample), result)
    frame, edges = draw.decades(frame, ["value", "low", "high"], floor=-6, ceiling=6)
    if frame.empty:
        return None
    chart = _lines(frame, result, y=draw.Axis(title="Time (s)", scale="decades"), edges=edges, row=None)
    return draw.finish(
        chart,
        title="What does each bound cost in time?",
        subtitle="Wall clock: median over activations, phases and seeds, band from the quickest to the slowest",
        caption=(
            "Of certificates compilation is included: the slowest of a band compiled a program that the others share."
        ),
    )


def _lines(
    frame: pd.DataFrame,
    result: xr.Dataset,
    *,
    y: draw.Axis,
    edges: tuple[float, float],
    row: str | None,
    size: tuple[int, int] = (255, 210),
) -> alt.FacetChart:
    choices: Sequence[draw.Choice] = ()
    if "phase" in frame:
        phases = tuple(frame["phase"].cat.categories)
        choices = [draw.Choice("phase", phases, phases[-1], "measured")]
    return draw.lines(
        frame,
        x=_depth_axis(result),
        y=y,
        x_field="depth",
        band=("low", "high") if result.sizes["seed"] > 1 or row is None else None,
        series="bound",
        column="block",
        row=row,
        choices=choices,
        calculate={"text": draw.readout("value", edges)},
        tooltip=[
            alt.Tooltip("bound:N"),
            alt.Tooltip("depth:Q"),
            alt.Tooltip("text:N", title="median"),
        ],
        size=size,
    )


def _depth_axis(result: xr.Dataset) -> draw.Axis:
    return draw.Axis(title="Depth (layers)", scale="doubling", ticks=cells.depths(result))


def _named(frame: pd.DataFrame, result: xr.Dataset) -> pd.DataFrame:
    """Words in place of names, in the order in which lines lie: the loosest bound first."""
    present = set(frame["bound"])
    order = [name for name in cells.names(result, "bound")[::-1] if name in present]
    words = [_WORDS.get(name, f"within a ball, {_radius(name)}") for name in order]
    frame = frame.assign(bound=cells.ordered(frame["bound"].map(dict(zip(order, words, strict=True))), words))
    blocks = [cells.block_name(block) for block in cells.names(result, "block")]
    frame["block"] = cells.ordered(frame["block"].map(cells.block_name), blocks)
    if "activation" in frame:
        frame["activation"] = cells.ordered(
            frame["activation"].astype(str), cells.names(result, "activation")
        )
    if "phase" in frame:
        phases = [cells.PHASES.get(phase, phase) for phase in cells.names(result, "phase")]
        frame["phase"] = cells.ordered(
            frame["phase"].map(lambda phase: cells.PHASES.get(phase, phase)), phases
        )
    return frame


def _radius(name: str) -> str:
    found = re.search(r"R = \S+", name)
    return found[0] if found else name


def _over_seeds(result: xr.Dataset) -> str:
    return (
        cells.seeds(result)
        if result.sizes["seed"] == 1
        else f"median over {cells.seeds(result)}, band over them"
    )


def _diverged(values: xr.DataArray) -> str:
    count = int(values.isnull().all("bound").sel(phase="trained").sum())
    total = int(values.sel(phase="initial").notnull().any("bound").sum())
    return f"{count} of {total} networks diverged in training and have no bound after it." if count else ""


def _middle(values: xr.DataArray) -> float:
    return float(cells.quiet(lambda: np.nanmedian(values.to_numpy().astype(float))))


def _decades(value: float) -> str:
    return f"{value:.1f}"


def _power(log10: float) -> str:
    return f"{10**log10:.3g}" if -3 < log10 < 4 else f"{10 ** (log10 % 1):.1f}e{int(np.floor(log10))}"
