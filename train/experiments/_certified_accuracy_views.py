"""What the study of certified accuracy shows: its figures, findings and tables, from the stored Dataset alone."""

import altair as alt
import pandas as pd
import xarray as xr

from train import figures as draw
from train.experiments import _depth_sweep_members as cells

_WORDS = {
    "unconstrained": "unconstrained",
    "penalty": "penalty on the certificate",
    "spectral": "spectral-norm constraint",
    "orthogonal": "orthogonal layers",
}
_AT = (0.25, 0.5, 1.0)  # radii that findings and table quote


def figures(result: xr.Dataset) -> dict[str, alt.FacetChart]:
    """The figures of the study, by name; one that has no number to show is left out.

    Args:
        result: the combined Dataset, or any part of one.

    Returns:
        Charts that carry their data, captions and filters with them.
    """
    charts = {
        "trade_off": _trade_off(result),
        "certified_accuracy": _curves(result),
        "attack": _attack(result),
    }
    return {name: chart for name, chart in charts.items() if chart is not None}


def findings(result: xr.Dataset) -> list[str]:
    """Say in sentences what the study found, each number computed from the Dataset.

    Args:
        result: the combined Dataset, or any part of one.
    """
    certified = _mean(result["certified_accuracy"])
    if not bool(certified.notnull().any()):
        return ["Nothing to conclude: no network of this study was certified."]
    sentences = [_at_radius(result, radius) for radius in _AT if radius <= float(result["radius"].max())]
    for approach in cells.names(result, "approach"):
        here = result.sel(approach=approach)
        clean, constant = _mean(here["test_accuracy"]), _mean(here["lipschitz"])
        rows = [
            f"{_strength(here, setting)}{float(clean.sel(setting=setting)):.3f} "
            f"(K {float(constant.sel(setting=setting)):.3g}, median radius "
            f"{float(_mean(here['median_radius']).sel(setting=setting)):.2f})"
            for setting in _settings(here)
        ]
        if rows:
            sentences.append(f"{_said(approach)}, clean test accuracy: {'; '.join(rows)}.")
    broken = float(result["broken_certificates"].sum())
    tried = int(_mean(result["certified_among_attacked"]).notnull().sum()) * result.sizes["seed"]
    sentences.append(
        f"No certificate was broken: in {tried} attacks on networks, no input changed its class within its certified "
        "radius."
        if broken == 0
        else f"{broken:.0f} certificates were broken by the attack: report it."
    )
    gap = _mean(result["attacked_accuracy"]) - _mean(result["certified_among_attacked"])
    middle = result["attack_radius"].to_numpy()[result.sizes["attack_radius"] // 2]
    parts = []
    for approach in cells.names(result, "approach"):
        setting = _best(result, approach, middle)
        if setting is not None:
            value = float(gap.sel(approach=approach, setting=setting, attack_radius=middle))
            parts.append(f"{_said(approach)} {value:.2f}")
    sentences.append(
        f"Share of inputs within radius {middle:g} that are neither certified nor broken, at the strength with the "
        f"best certified accuracy there: {'; '.join(parts)}."
    )
    return sentences


def tables(result: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Every approach and strength: accuracy, constant, certified accuracies; means over seeds."""
    rows = []
    for approach in cells.names(result, "approach"):
        here = result.sel(approach=approach)
        for setting in _settings(here):
            one = here.sel(setting=setting).mean("seed")
            row = {"approach": _said(approach), "strength": float(one["strength"])}
            row |= {"test accuracy": float(one["test_accuracy"]), "K": float(one["lipschitz"])}
            row["median radius"] = float(one["median_radius"])
            for radius in _AT:
                curve = one["certified_accuracy"]
                row[f"certified at {radius:g}"] = float(curve.sel(radius=radius, method="nearest"))
            rows.append(row)
    frame = pd.DataFrame(rows).round(3)
    frame.attrs["caption"] = f"Means over {cells.seeds(result)}; radii in units of the standardised inputs."
    return {"Every approach and strength": frame}


def _at_radius(result: xr.Dataset, radius: float) -> str:
    certified = _mean(result["certified_accuracy"]).sel(radius=radius, method="nearest")
    clean = _mean(result["test_accuracy"])
    parts = []
    for approach in cells.names(result, "approach"):
        setting = _best(result, approach, radius)
        if setting is not None:
            at = {"approach": approach, "setting": setting}
            parts.append(
                f"{_said(approach)} {float(certified.sel(at)):.3f} (clean {float(clean.sel(at)):.3f})"
            )
    return f"Best certified accuracy at radius {radius:g}: {'; '.join(parts)}."


def _best(result: xr.Dataset, approach: str, radius: float) -> int | None:
    """The strength with the highest certified accuracy at a radius; the first of equals."""
    curve = _mean(result["certified_accuracy"]).sel(approach=approach).sel(radius=radius, method="nearest")
    curve = curve.dropna("setting")
    return (
        int(curve["setting"].to_numpy()[int(curve.to_numpy().argmax())]) if curve.sizes["setting"] else None
    )


def _trade_off(result: xr.Dataset) -> alt.FacetChart | None:
    sample = xr.Dataset(
        {
            "radius": _mean(result["median_radius"]),
            "constant": _mean(result["lipschitz"]),
            "strength": result["strength"],
            **draw.spread(result["test_accuracy"], "seed", centre="mean"),
        }
    )
    frame = _named(draw.tidy(sample), result).assign(panel="Test set")
    if frame.empty:
        return None
    chart = draw.lines(
        frame,
        x=draw.Axis(title="Median certified radius"),
        y=draw.Axis(title="Clean test accuracy", format=".0%"),
        x_field="radius",
        series="approach",
        column="panel",
        tooltip=[
            alt.Tooltip("approach:N"),
            alt.Tooltip("strength:Q"),
            alt.Tooltip("value:Q", title="test accuracy", format=".3f"),
            alt.Tooltip("radius:Q", title="median radius", format=".3f"),
            alt.Tooltip("constant:Q", title="K", format=".3g"),
        ],
        size=(420, 280),
    )
    return draw.finish(
        chart,
        title="What does a certified radius cost in clean accuracy?",
        subtitle=f"Each point a strength of the approach: mean over {cells.seeds(result)}, bars from lowest to highest",
        caption=(
            "Up and to the right is better. The radius within which half of the test inputs keep their class, proved "
            "by margin / (sqrt(2) K) with margins computed in float64; wrongly classified inputs count as 0. Units are "
            "those of the standardised inputs, whose length is about the square root of their number of pixels."
        ),
    )


def _curves(result: xr.Dataset) -> alt.FacetChart | None:
    sample = draw.spread(result["certified_accuracy"], "seed", centre="mean")
    frame = _named(draw.tidy(sample), result)
    if frame.empty:
        return None
    settings = sorted(frame["setting"].unique())
    words = [f"{setting}{', loosest' if setting == settings[0] else ''}" for setting in settings]
    words = [
        f"{setting}, tightest" if setting == settings[-1] > settings[0] else word
        for setting, word in zip(settings, words, strict=True)
    ]
    strengths = {
        (str(approach), int(setting)): float(result["strength"].sel(approach=approach, setting=setting))
        for approach in cells.names(result, "approach")
        for setting in result["setting"].to_numpy()
    }
    back = {word: name for name, word in _WORDS.items()}
    frame["value of strength"] = [
        strengths[back[method], setting]
        for method, setting in zip(frame["approach"], frame["setting"], strict=True)
    ]
    frame["strength"] = cells.ordered(frame["setting"].map(dict(zip(settings, words, strict=True))), words)
    chart = draw.lines(
        frame,
        x=draw.Axis(title="Radius"),
        y=draw.Axis(title="Certified test accuracy", domain=(0.0, 1.0), format=".0%"),
        x_field="radius",
        point_field=None,
        series="strength",
        column="approach",
        tooltip=[
            alt.Tooltip("approach:N"),
            alt.Tooltip("value of strength:Q", title="strength"),
            alt.Tooltip("radius:Q", format=".2f"),
            alt.Tooltip("value:Q", title="certified accuracy", format=".3f"),
        ],
    )
    return draw.finish(
        chart,
        title="How much accuracy is certified at which radius?",
        subtitle=f"Share of test inputs that are right, with proof: mean over {cells.seeds(result)}, band over seeds",
        caption=(
            "A curve starts at the clean accuracy; where it is at a radius, no perturbation of that length can bring "
            "the accuracy lower. Tighter settings start lower and fall later."
        ),
    )


def _attack(result: xr.Dataset) -> alt.FacetChart | None:
    middle = result["attack_radius"].to_numpy()[result.sizes["attack_radius"] // 2]
    frames = []
    for approach in cells.names(result, "approach"):
        setting = _best(result, approach, middle)
        if setting is None:
            continue
        for name, words in (
            ("attacked_accuracy", "at most: under attack"),
            ("certified_among_attacked", "at least: certified"),
        ):
            one = draw.spread(result[name].sel(approach=[approach], setting=setting), "seed", centre="mean")
            frames.append(draw.tidy(one).assign(side=words))
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if frame.empty:
        return None
    frame = _named(frame, result)
    chart = draw.lines(
        frame,
        x=draw.Axis(title="Radius"),
        y=draw.Axis(title="Test accuracy", domain=(0.0, 1.0), format=".0%"),
        x_field="attack_radius",
        series="side",
        column="approach",
        tooltip=[
            alt.Tooltip("approach:N"),
            alt.Tooltip("side:N"),
            alt.Tooltip("attack_radius:Q", title="radius"),
            alt.Tooltip("value:Q", title="accuracy", format=".3f"),
        ],
    )
    return draw.finish(
        chart,
        title="Between which bounds does the accuracy under perturbation lie?",
        subtitle=(
            f"At the strength with the best certified accuracy at radius {middle:g}: mean over {cells.seeds(result)}, "
            "bars over seeds"
        ),
        caption=(
            "The true accuracy against the worst perturbation of a length lies between the lines: above, what "
            "projected gradient descent on the margin leaves; below, what the certificate proves. Where they are "
            "close, the certificate is tight."
        ),
    )


def _named(frame: pd.DataFrame, result: xr.Dataset) -> pd.DataFrame:
    words = [_said(approach) for approach in cells.names(result, "approach")]
    return frame.assign(approach=cells.ordered(frame["approach"].map(_said), words))


def _said(approach: str) -> str:
    return _WORDS.get(str(approach), str(approach))


def _settings(here: xr.Dataset) -> list[int]:
    there = here["strength"].notnull().to_numpy()
    return [int(setting) for setting in here["setting"].to_numpy()[there]]


def _strength(here: xr.Dataset, setting: int) -> str:
    value = float(here["strength"].sel(setting=setting))
    return "" if value == 0 else f"at {value:g}: "


def _mean(values: xr.DataArray) -> xr.DataArray:
    return cells.quiet(lambda: values.astype(float).mean("seed"))
