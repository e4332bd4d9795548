"""What the extreme-depth study shows: its figures, findings and table, from the stored Dataset alone."""

import math
from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from train import figures as draw

_FLOOR = -40.0  # log10: float32 ends near 1e-45
_RESOLUTION = -5.0  # log10: a singular value so far below the largest is float32's rounding
_LAYERS = alt.Tooltip("layers:N", title="depth")
_POSITION = alt.Tooltip("position:Q", title="layer, share of the depth", format=".0%")


def figures(result: xr.Dataset) -> dict[str, alt.FacetChart]:
    """The figures of the study, by name.

    Args:
        result: the combined Dataset, or any part of one.

    Returns:
        Charts that carry their data, captions and filters with them.
    """
    return {
        "test_accuracy": _test_accuracy(result),
        "jacobian_spectrum": _spectrum(result),
        "gradient_norms": _gradients(result),
        "correlation": _correlation(result),
    }


def _named(frame: pd.DataFrame) -> pd.DataFrame:
    """Depths as words, deepest last; weights with their name spelt out."""
    depths = sorted(frame["depth"].unique())
    frame = frame.assign(layers=[f"{depth:,} layers" for depth in frame["depth"]])
    frame["layers"] = pd.Categorical(frame["layers"], [f"{depth:,} layers" for depth in depths])
    laws = [law for law in ("orthogonal", "gaussian") if law in set(frame["weights"])]
    frame["weights"] = pd.Categorical(
        [f"{law.capitalize()} weights" for law in frame["weights"]],
        [f"{law.capitalize()} weights" for law in laws],
    )
    return frame


def _seeds(result: xr.Dataset) -> str:
    count = result.sizes["seed"]
    return "1 seed" if count == 1 else f"{count} seeds"


def _test_accuracy(result: xr.Dataset) -> alt.FacetChart:
    frame = _named(draw.tidy(draw.spread(result["test_accuracy"], "seed")))
    chart = draw.lines(
        frame,
        x=draw.Axis(title="Optimiser step"),
        y=draw.Axis(title="Test accuracy", domain=(0.0, 1.0), format=".0%"),
        x_field="step",
        point_field=None,
        series="layers",
        column="weights",
        tooltip=[
            alt.Tooltip("layers:N"), alt.Tooltip("weights:N"), alt.Tooltip("step:Q"),
            alt.Tooltip("value:Q", title="test accuracy", format=".3f"),
        ],
    )  # fmt: skip
    return draw.finish(
        chart,
        title="Can thousands of layers without skips be trained?",
        subtitle=f"Test accuracy while training: median over {_seeds(result)}, band from lowest to highest",
        caption=(
            "Same activation, weight scale, inputs and optimiser; only the law of the weights differs. A line that "
            "rises trains. A line that ends has diverged."
        ),
    )


def _spectrum(result: xr.Dataset) -> alt.FacetChart:
    values = _resolved(result)
    measured = draw.spread(values, ["seed", "example"])
    theory = xr.Dataset(
        {name: result["log10_singular_value_theory"].astype(float) for name in ("value", "low", "high")}
    )
    frames = []
    for source, part in (("measured", measured), ("theory, infinite width", theory)):
        frame = part[["value", "low", "high"]].to_dataframe().reset_index()
        frames.append(frame[frame["value"].notna()].assign(source=source))
    frame = _named(pd.concat(frames, ignore_index=True))
    frame["share"] = (frame["mode"] - 0.5) / result.sizes["mode"]
    names = ["value", "low", "high"]
    frame, edges = draw.clip_decades(
        frame, {name: frame[name].to_numpy(float) for name in names}, floor=_FLOOR
    )
    chart = draw.lines(
        frame,
        x=draw.Axis(title="Share of directions", format=".0%"),
        y=draw.Axis(title="Singular value", scale="decades"),
        x_field="share",
        point_field=None,
        series="source",
        column="weights",
        row="layers",
        calculate={"text": draw.readout("value", edges)},
        tooltip=[
            alt.Tooltip("source:N"),
            alt.Tooltip("mode:Q", title="rank"),
            alt.Tooltip("text:N", title="value"),
        ],
        size=(255, 130),
    )
    return draw.finish(
        chart,
        title="What becomes of a direction of the input?",
        subtitle=(
            f"Singular values of the input-to-last-hidden Jacobian before training: median over inputs and "
            f"{_seeds(result)}, band all of them"
        ),
        caption=(
            "Flat at 1 is an isometry: every direction arrives. Where the curve falls by decades only a few directions "
            "arrive. Measured values end at 1e-5 of the largest and at 1e-35: below is rounding. Theory is the "
            f"limit of infinite width; what is below 1e{_FLOOR:g} lies on the edge."
        ),
    )


def _resolved(result: xr.Dataset) -> xr.DataArray:
    """The measured singular values that are not rounding, as log10."""
    values = result["log10_singular_value"].astype(float)
    return values.where((values > values.max("mode") + _RESOLUTION) & (values > _FLOOR + 5))


def _gradients(result: xr.Dataset) -> alt.FacetChart:
    frame = _named(draw.tidy(draw.spread(result["log10_gradient_norm"], "seed")))
    names = ["value", "low", "high"]
    frame, edges = draw.clip_decades(
        frame, {name: frame[name].to_numpy(float) for name in names}, floor=_FLOOR
    )
    chart = draw.lines(
        frame,
        x=draw.Axis(title="Layer, as a share of the depth", format=".0%"),
        y=draw.Axis(title="||dL/dh|| over that at the last layer", scale="decades"),
        x_field="position",
        point_field=None,
        level=(0.0, "theory: the same in every layer"),
        series="layers",
        column="weights",
        calculate={"text": draw.readout("value", edges)},
        tooltip=[
            alt.Tooltip("layers:N"),
            alt.Tooltip("position:Q", format=".0%"),
            alt.Tooltip("text:N", title="ratio"),
        ],
    )
    return draw.finish(
        chart,
        title="Do gradients reach the first layer?",
        subtitle=f"Before training: median over {_seeds(result)}, band from lowest to highest",
        caption=(
            "At the edge of chaos mean-field theory gives every layer the same expected squared gradient, for both "
            "laws. A single Gaussian network of finite width strays from that expectation, the more the deeper it is "
            "beside its width; an orthogonal one hardly does."
        ),
    )


def _correlation(result: xr.Dataset) -> alt.FacetChart:
    frames = []
    for source, name in (("measured", "correlation"), ("theory, infinite width", "correlation_theory")):
        frames.append(draw.tidy(draw.spread(result[name], "seed")).assign(source=source))
    frame = _named(pd.concat(frames, ignore_index=True))
    chart = draw.lines(
        frame,
        x=draw.Axis(title="Layer, as a share of the depth", format=".0%"),
        y=draw.Axis(title="Correlation of two inputs"),
        x_field="position",
        point_field=None,
        series="source",
        column="weights",
        row="layers",
        tooltip=[
            alt.Tooltip("source:N"),
            alt.Tooltip("position:Q", format=".0%"),
            alt.Tooltip("value:Q", format=".4f"),
        ],
        size=(255, 130),
    )
    return draw.finish(
        chart,
        title="How long do two inputs stay apart?",
        subtitle=f"Mean over pairs of held-out inputs before training: median over {_seeds(result)}",
        caption=(
            "At the edge of chaos correlations approach 1 like a power of the depth, not exponentially. What is at 1 "
            "to within rounding cannot be told apart by the layers after."
        ),
    )


def findings(result: xr.Dataset) -> list[str]:
    """Say in sentences what the study found, each number computed from the Dataset.

    Args:
        result: the combined Dataset, or any part of one.
    """
    table = _summary(result)
    if table.empty:
        return ["Nothing to conclude: no network of this study has a test accuracy."]
    verdict = []
    for law, rows in table.groupby("weights", sort=False):
        parts = [f"{row.accuracy:.1%} at {row.depth:,} layers" for row in rows.itertuples()]
        verdict.append(f"with {law} weights {', '.join(parts)}")
    sentences = [f"Final test accuracy: {'; '.join(verdict)}."]
    threshold = str(result["steps_to_threshold"].attrs.get("long_name", "")).removeprefix("steps to ")
    for row in table.itertuples():
        if math.isfinite(row.steps):
            sentences.append(
                f"{row.depth:,} layers with {row.weights} weights reach {threshold} after {row.steps:,.0f} steps "
                f"({row.seconds:.2g} s each)."
            )
    weight, bias = (float(result[name].max()) ** 2 for name in ("sigma_w", "sigma_b"))
    sentences.append(
        f"All networks stand at the same critical point, sigma_w^2 = {weight:.4f}, sigma_b^2 = {bias:.2e}: mean-field "
        "theory gives them the same lengths, correlations and mean squared gradients. What differs is the Jacobian's "
        "spectrum."
    )
    for row in table.itertuples():
        gap = f"{10**row.gap:.2g}" if abs(row.gap) < 3 else f"1e{row.gap:.0f}"
        sentences.append(
            f"{row.depth:,} layers, {row.weights}: {row.arriving:.0%} of the input's directions arrive within 1e-5 of "
            f"the largest (theory, infinite width: {row.arriving_theory:.0%}); the first layer's gradient is {gap} "
            "times the last one's (theory: 1)."
        )
    diverged = result["diverged_step"].notnull()
    if bool(diverged.any()):
        sentences.append(
            f"{int(diverged.sum())} of {diverged.size} runs diverged; their accuracy counts as 0."
        )
    return sentences


def _summary(result: xr.Dataset) -> pd.DataFrame:
    rows = []
    for law in result["weights"].to_numpy():
        for depth in sorted(result["depth"].to_numpy()):
            part = result.sel(weights=law, depth=depth)
            accuracy = float(part["test_accuracy"].isel(step=-1).fillna(0).median("seed"))  # diverged: none
            if bool(part["test_accuracy"].isnull().all()) and bool(
                part["log10_gradient_norm"].isnull().all()
            ):
                continue  # not measured, or not yet
            predicted = part["log10_singular_value_theory"].to_numpy()
            rows.append(
                {
                    "weights": str(law),
                    "depth": int(depth),
                    "accuracy": accuracy,
                    "steps": float(
                        part["steps_to_threshold"].fillna(np.inf).median("seed")
                    ),  # never: later than any step
                    "arriving": float(_resolved(part).notnull().mean()),
                    "arriving_theory": float(np.mean(predicted > predicted.max() + _RESOLUTION)),
                    "gap": max(float(part["log10_gradient_norm"].median("seed").to_numpy()[0]), _FLOOR),
                    "seconds": float(part["step_seconds"]),
                }
            )
    return pd.DataFrame(rows)


def tables(result: xr.Dataset) -> Mapping[str, pd.DataFrame]:
    """The table of all cells, by title."""
    table = _summary(result)
    if table.empty:
        return {}
    columns: Sequence[tuple[str, str]] = [
        ("weights", "weights"),
        ("depth", "depth"),
        ("accuracy", "final test accuracy"),
        ("steps", "steps to threshold"),
        ("arriving", "share of directions within 1e-5 of the largest"),
        ("arriving_theory", "the same by theory"),
        ("gap", "log10 gradient, first over last layer"),
        ("seconds", "seconds a step"),
    ]
    return {"All networks": table[[old for old, _ in columns]].rename(columns=dict(columns)).round(3)}
