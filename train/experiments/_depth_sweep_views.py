"""What a depth sweep shows: its figures, its findings and its tables, from the stored Dataset alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
import xarray as xr

from train import figures as draw
from train.experiments import _depth_sweep_members as cells
from train.experiments._depth_sweep_findings import findings, tables

__all__ = ["figures", "findings", "tables"]

_MOST_LAYERS = 33  # points a profile; deeper nets are thinned
_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_RATE_RULE = "learning rate chosen on the training set"


def figures(result: xr.Dataset) -> dict[str, alt.FacetChart]:
    """The figures of a depth sweep, by name; one that has no number to show is left out.

    Args:
        result: the combined Dataset of a sweep, or any part of one.

    Returns:
        Charts that carry their data, captions and filters with them.
    """
    best = cells.select(result)
    makers = {
        "test_accuracy": _test_accuracy,
        "steps_to_threshold": _steps_to_threshold,
        "jacobian_spectrum": _jacobian_spectrum,
        "condition_number": _condition_number,
        "lipschitz_bounds": _lipschitz_bounds,
        "gradient_norms": _gradient_norms,
        "second_moment": _second_moment,
        "loss": _loss,
        "inactive_units": _inactive_units,
    }
    charts = {name: make(best) for name, make in makers.items()}
    return {name: chart for name, chart in charts.items() if chart is not None}


def _depth_axis(best: xr.Dataset) -> draw.Axis:
    return draw.Axis(title="Depth (layers)", scale="doubling", ticks=cells.depths(best))


def _close(
    chart: alt.FacetChart,
    best: xr.Dataset,
    *,
    title: str,
    subtitle: str,
    caption: str,
    **extra: Mapping[str, str],
) -> alt.FacetChart:
    activations = cells.names(best, "activation")
    blocks = [cells.block_name(block) for block in cells.names(best, "block")]
    chart = draw.shown(chart, {"activation": activations, "block": blocks})
    look = draw.style(activations)
    colours = {"activation": dict(zip(look.names, look.colours, strict=True)), **extra}
    return draw.finish(chart, title=title, subtitle=subtitle, caption=caption, colours=colours)


def _who(*more: alt.Tooltip) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("activation:N"),
        alt.Tooltip("block:N"),
        alt.Tooltip("depth:Q"),
        *more,
    ]


def _text(field: str, title: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:N", title=title)


def _number(field: str, title: str, form: str = ".3g") -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def _tally(best: xr.Dataset) -> xr.Dataset:
    """Words on how many of a cell's members failed, for tooltips."""

    def words(count: Any, total: Any) -> str:
        return f"{int(count)} of {int(total)}"

    total = best["present"].sum("seed")
    return xr.Dataset(
        {
            "diverged": xr.apply_ufunc(words, best["diverged"].sum("seed"), total, vectorize=True),
            "censored": xr.apply_ufunc(words, best["censored"].sum("seed"), total, vectorize=True),
        }
    )


def _test_accuracy(best: xr.Dataset) -> alt.FacetChart | None:
    sample = draw.spread(best["final_test_accuracy"], "seed", centre="mean")
    sample = sample.assign(failed=best["diverged"].any("seed")).merge(_tally(best))
    frame = cells.named(draw.tidy(sample), best)
    if frame.empty:
        return None
    top = draw.Axis(title="Test accuracy (share right)", domain=(0.0, 1.0), format=".0%")
    chart = draw.lines(
        frame,
        x=_depth_axis(best),
        y=top,
        x_field="depth",
        open_where="failed",
        series="activation",
        column="block",
        tooltip=_who(
            _number("value", "test accuracy, mean", ".3f"),
            _number("low", "lowest seed", ".3f"),
            _number("high", "highest seed", ".3f"),
            _number("learning_rate", "learning rate"),
            _text("diverged", "diverged"),
        ),
    )
    return _close(
        chart,
        best,
        title="Which activation still generalises at which depth?",
        subtitle=(
            f"Test accuracy at the end: mean over {cells.seeds(best)}, band from lowest to highest; "
            f"{_RATE_RULE}"
        ),
        caption=(
            "A line that stays high to the right trains at every depth; one that falls to chance has "
            "stopped training. For each activation, depth and block the learning rate is the one with the "
            "best training accuracy; the test set has no say. Open marks: at least one of these members "
            "diverged; it counts as accuracy 0."
        ),
    )


def _steps_to_threshold(best: xr.Dataset) -> alt.FacetChart | None:
    steps = best["steps_to_threshold"].astype(float)
    sample = draw.spread(steps, "seed")
    # The median itself is censored once half of the members are: all that is known is that it is no smaller.
    mostly = (best["censored"].sum("seed") * 2 >= best["present"].sum("seed")) & (sample["count"] > 0)
    sample = sample.assign(open=mostly).merge(_tally(best))
    frame = cells.named(draw.tidy(sample), best)
    if frame.empty:
        return None
    budget = cells.budget(best)
    chart = draw.lines(
        frame,
        x=_depth_axis(best),
        y=draw.Axis(
            title=f"Steps to {cells.threshold(best)} training accuracy", domain=(0.0, max(budget * 1.08, 1.0))
        ),
        x_field="depth",
        open_where="open",
        level=(float(budget), f"budget: {budget} steps"),
        series="activation",
        column="block",
        tooltip=_who(
            _number("value", "steps, median", ",.0f"),
            _number("low", "fastest seed", ",.0f"),
            _number("high", "slowest seed", ",.0f"),
            _number("learning_rate", "learning rate"),
            _text("censored", "never got there"),
            _text("diverged", "diverged"),
        ),
    )
    return _close(
        chart,
        best,
        title="How fast does it train?",
        subtitle=(
            f"Steps to {cells.threshold(best)} training accuracy: median over {cells.seeds(best)}, band from "
            "fastest to slowest; open marks: not reached within the budget"
        ),
        caption=(
            "Lower is faster. Open marks on the dashed line are censored: at least half of the seeds did "
            f"not reach {cells.threshold(best)} within {budget} steps, so the true number is larger or infinite."
        ),
    )


def _quantiles(best: xr.Dataset) -> xr.Dataset:
    """Quantiles of a Jacobian's singular values, each the median over seeds and inputs."""
    values = best["jacobian_singular_values"].astype(float)
    levels = cells.quiet(lambda: values.quantile(list(_QUANTILES), dim="mode"))
    middle = cells.quiet(lambda: levels.median(["seed", "example"]))
    return xr.Dataset(
        {f"q{round(100 * q)}": middle.isel(quantile=i, drop=True) for i, q in enumerate(_QUANTILES)}
    )


def _jacobian_spectrum(best: xr.Dataset) -> alt.FacetChart | None:
    names = [f"q{round(100 * q)}" for q in _QUANTILES]
    frame = cells.named(draw.tidy(_quantiles(best), require=names), best)
    if frame.empty:
        return None
    frame, edges = draw.decades(frame, names, floor=-12, ceiling=12)
    titles = ("smallest", "lower quartile", "median", "upper quartile", "largest")
    chart = draw.ribbons(
        frame,
        x=_depth_axis(best),
        y=draw.Axis(title="Singular value", scale="decades"),
        x_field="depth",
        bands=[("q0", "q100"), ("q25", "q75")],
        middle="q50",
        level=(0.0, "1"),
        series="phase",
        column="block",
        row="activation",
        calculate={f"{name}_text": draw.readout(name, edges) for name in names},
        tooltip=_who(
            alt.Tooltip("phase:N", title="when"),
            *(_text(f"{name}_text", title) for name, title in zip(names[::-1], titles[::-1], strict=True)),
        ),
    )
    return _close(
        chart,
        best,
        title="Does the input-to-last-hidden Jacobian stay near an isometry?",
        subtitle=(
            "Singular values by depth: line the median, dark band the middle half, pale band smallest to "
            "largest"
        ),
        caption=(
            "A narrow band at 1 (the dotted line) is an isometry: every direction of the input arrives at "
            "the last hidden layer with its length. A band that sinks with depth is a vanishing signal, "
            "one that rises an exploding one, one that widens a net that keeps few directions. All "
            "singular values on held-out inputs; each quantile is the median over inputs and "
            f"{cells.seeds(best)}. Zeros and values beyond 1e-12 or 1e12 lie on the edge."
        ),
    )


def _condition_number(best: xr.Dataset) -> alt.FacetChart | None:
    condition = best["jacobian_condition_number"].astype(float)
    sample = draw.spread(cells.quiet(lambda: condition.median("example")), "seed")
    frame = cells.named(draw.tidy(sample), best)
    if frame.empty:
        return None
    limit = cells.resolution(best["jacobian_condition_number"])
    frame, edges = draw.decades(frame, ["value", "low", "high"], ceiling=round(limit, 2))
    chart = draw.lines(
        frame,
        x=_depth_axis(best),
        y=draw.Axis(title="Condition number", scale="decades"),
        x_field="depth",
        series="activation",
        column="block",
        row="phase",
        calculate={f"{name}_text": draw.readout(name, edges) for name in ("value", "low", "high")},
        tooltip=_who(
            alt.Tooltip("phase:N", title="when"),
            _text("value_text", "condition number, median"),
            _text("low_text", "lowest seed"),
            _text("high_text", "highest seed"),
        ),
        size=(255, 160),
    )
    return _close(
        chart,
        best,
        title="How ill-conditioned does the Jacobian become?",
        subtitle=(
            f"Largest over smallest singular value: median over inputs and {cells.seeds(best)}, "
            "band over seeds"
        ),
        caption=(
            "1 is an isometry. A Jacobian on the upper edge is singular as far as rounding lets one see: its "
            f"condition number is above {10**limit:.0e}, or infinite."
        ),
    )


def _lipschitz_bounds(best: xr.Dataset) -> alt.FacetChart | None:
    lower = draw.spread(best["lipschitz_lower_log10"], "seed")
    upper = draw.spread(cells.lipschitz_upper(best), "seed")
    product = draw.spread(best["lipschitz_upper_log10"], "seed")
    parts = {
        f"{side}_{name}": ds[name]
        for side, ds in (("lower", lower), ("upper", upper), ("product", product))
        for name in ("value", "low", "high")
    }
    names = list(parts)
    frame = cells.named(draw.tidy(xr.Dataset(parts), require=["lower_value", "upper_value"]), best)
    if frame.empty:
        return None
    frame, edges = draw.clip_decades(
        frame, {name: frame[name].to_numpy(dtype=float) for name in names}, floor=-20, ceiling=50
    )
    frame = frame.assign(gap=frame["upper_value"] - frame["lower_value"])
    chart = draw.ribbons(
        frame,
        x=_depth_axis(best),
        y=draw.Axis(title="Lipschitz constant", scale="decades"),
        x_field="depth",
        bands=[("lower_value", "product_value"), ("lower_value", "upper_value")],
        bars=[("lower_low", "lower_high", "lower_value"), ("upper_low", "upper_high", "upper_value")],
        series="phase",
        column="block",
        row="activation",
        calculate={
            f"{name}_text": draw.readout(name, edges)
            for name in ("lower_value", "upper_value", "product_value")
        },
        tooltip=_who(
            alt.Tooltip("phase:N", title="when"),
            _text("product_value_text", "at most (textbook product)"),
            _text("upper_value_text", "at most (best bound)"),
            _text("lower_value_text", "at least (gradient ascent)"),
            _number("gap", "gap of the best, orders of magnitude", ".1f"),
        ),
    )
    return _close(
        chart,
        best,
        title="Between which bounds does the network's Lipschitz constant lie?",
        subtitle=(
            f"Dark: lower bound by gradient ascent to the best upper bound; pale: on to the textbook's product. "
            f"Medians over {cells.seeds(best)}, bars over seeds"
        ),
        caption=(
            "The true constant lies in the dark band. Its lower edge is the largest ||J(x)|| that was found, a "
            "real sensitivity of the network; its upper edge is an ellipsoid carried through the layers in closed "
            "form, which knows which directions a layer stretches (for layer and RMS norms, the product). Where the "
            "pale band is tall the textbook's product of norms says little about the network. Nets that diverged have "
            "no value after training; bounds beyond 1e-20 or 1e50 lie on the edge."
        ),
    )


def _profiles(best: xr.Dataset, names: Sequence[str], **extra: str) -> pd.DataFrame:
    """Long rows by quantity, layer and phase: median over seeds, lowest and highest."""
    frames = []
    for name in names:
        sample = draw.spread(best[name], "seed").drop_vars("count")
        for field, variable in extra.items():
            sample[field] = draw.spread(best[variable], "seed")["value"]
        frames.append(draw.tidy(sample).assign(quantity=name))
    frame = pd.concat(frames, ignore_index=True)
    keep = {depth: draw.thin(np.arange(1, depth + 1), _MOST_LAYERS).tolist() for depth in cells.depths(best)}
    wanted = {(depth, layer) for depth, layers in keep.items() for layer in layers}
    rows = [
        pair in wanted for pair in zip(frame["depth"].astype(int), frame["layer"].astype(int), strict=True)
    ]
    return frame[rows].reset_index(drop=True)


def _choose_depth(frame: pd.DataFrame) -> draw.Choice:
    depths = tuple(sorted({int(depth) for depth in frame["depth"]}))
    return draw.Choice("depth", depths, depths[-1], "depth in figures by layer")


def _choose_phase(frame: pd.DataFrame, default: str) -> draw.Choice:
    phases = tuple(str(phase) for phase in frame["phase"].cat.categories if phase in set(frame["phase"]))
    return draw.Choice("phase", phases, default if default in phases else phases[0], "measured")


def _by_layer(
    best: xr.Dataset,
    frame: pd.DataFrame,
    *,
    y: draw.Axis,
    edges: tuple[float, float] | None,
    choices: Sequence[draw.Choice],
    row: str | None,
    **options: Any,
) -> alt.FacetChart:
    if edges is None:
        shown = [
            _number("value", "median over seeds"),
            _number("low", "lowest seed"),
            _number("high", "highest seed"),
        ]
        calculate = {}
    else:
        shown = [
            _text("value_text", "median over seeds"),
            _text("low_text", "lowest seed"),
            _text("high_text", "highest seed"),
        ]
        calculate = {f"{name}_text": draw.readout(name, edges) for name in ("value", "low", "high")}
    return draw.lines(
        frame,
        x=draw.Axis(title="Layer"),
        y=y,
        x_field="layer",
        series="activation",
        column="block",
        row=row,
        choices=choices,
        calculate=calculate | options.pop("calculate", {}),
        tooltip=_who(_number("layer", "layer", "d"), *shown, *options.pop("tooltip", ())),
        size=(255, 150),
        **options,
    )


def _gradient_norms(best: xr.Dataset) -> alt.FacetChart | None:
    words = {
        "hidden_gradient_norm": "||dL/dh||",
        "weight_gradient_norm": "||dL/dW||",
    }
    frame = _profiles(best, list(words))
    if frame.empty:
        return None
    frame = cells.named(frame, best).assign(
        quantity=cells.ordered(frame["quantity"].map(words), list(words.values()))
    )
    frame, edges = draw.decades(frame, ["value", "low", "high"], floor=-20, ceiling=20)
    choices = [_choose_depth(frame), _choose_phase(frame, cells.PHASES["initial"])]
    chart = _by_layer(
        best,
        frame,
        y=draw.Axis(title="Gradient norm", scale="decades"),
        edges=edges,
        choices=choices,
        row="quantity",
        point_field=None,
    )
    return _close(
        chart,
        best,
        title="Do gradients reach the first layers?",
        subtitle=f"Gradient norm by layer: median over {cells.seeds(best)}, band from lowest to highest",
        caption=(
            "The loss is at the right end. Level lines train; a line that falls toward layer 1 vanishes on "
            "its way back, one that rises explodes. Zeros and norms below 1e-20 lie on the lower edge. "
            "Choose the depth, and whether before or after training, above."
        ),
    )


def _second_moment(best: xr.Dataset) -> alt.FacetChart | None:
    initial = (
        best.sel(phase=["initial"])
        if "initial" in cells.names(best, "phase")
        else best.isel(phase=slice(0, 1))
    )
    frame = _profiles(initial, ["second_moment"], theory="second_moment_theory")
    if frame.empty:
        return None
    frame = cells.named(frame, best).assign(ratio=frame["value"] / frame["theory"].where(frame["theory"] > 0))
    frame, edges = draw.decades(frame, ["value", "low", "high", "theory"], floor=-20, ceiling=20)
    chart = _by_layer(
        best,
        frame,
        y=draw.Axis(title="Second moment", scale="decades"),
        edges=edges,
        choices=[_choose_depth(frame)],
        row=None,
        y_field="theory",
        point_field="value",
        calculate={"theory_text": draw.readout("theory", edges)},
        tooltip=[_text("theory_text", "theory"), _number("ratio", "measured / theory", ".3f")],
    )
    return _close(
        chart,
        best,
        title="Does the signal keep the size that theory predicts?",
        subtitle=(
            f"Second moment by layer: points measured (median over {cells.seeds(best)}, band from lowest to "
            "highest), lines theory"
        ),
        caption=(
            "Points on their line confirm the variance map of mean-field theory in this finite width. "
            "Where no line is drawn theory has no prediction (post-activation blocks). Choose the depth "
            "above."
        ),
    )


def _loss(best: xr.Dataset) -> alt.FacetChart | None:
    # What a frozen member records after it diverged is no loss of a net in training.
    loss = best["train_loss"].astype(float)
    alive = ~(loss["step"] >= best["diverged_step"].astype(float))
    sample = draw.spread(loss.where(alive & np.isfinite(loss)), "seed").drop_vars("count")
    sample["diverged"] = _tally(best)["diverged"]
    frame = cells.named(draw.tidy(sample), best)
    if frame.empty:
        return None
    frame, edges = draw.decades(frame, ["value", "low", "high"], floor=-8, ceiling=8)
    chart = draw.lines(
        frame,
        x=draw.Axis(title=draw.label(best["step"]) if best["step"].attrs else "Step"),
        y=draw.Axis(title=draw.label(best["train_loss"]), scale="decades"),
        x_field="step",
        point_field=None,
        series="activation",
        column="block",
        choices=[_choose_depth(frame)],
        calculate={f"{name}_text": draw.readout(name, edges) for name in ("value", "low", "high")},
        tooltip=_who(
            _number("step", "step", ",.0f"),
            _text("value_text", "training loss, median"),
            _text("low_text", "lowest seed"),
            _text("high_text", "highest seed"),
            _number("learning_rate", "learning rate"),
            _text("diverged", "diverged"),
        ),
    )
    return _close(
        chart,
        best,
        title="How does training go?",
        subtitle=f"Training loss: median over {cells.seeds(best)}, band from lowest to highest; {_RATE_RULE}",
        caption=(
            "A flat line at the top does not train. A member that diverges leaves the median at that step "
            "and a line ends where none is left. Choose the depth above."
        ),
    )


def _inactive_units(best: xr.Dataset) -> alt.FacetChart | None:
    words = {
        "dead_fraction": "dead",
        "saturated_fraction": "saturated",
        "zero_fraction": "zero",
    }
    frame = _profiles(best, list(words))
    if frame.empty:
        return None
    frame = cells.named(frame, best).assign(
        quantity=cells.ordered(frame["quantity"].map(words), list(words.values()))
    )
    choices = [_choose_depth(frame), _choose_phase(frame, cells.PHASES["trained"])]
    share = draw.Axis(title="Share", domain=(0.0, 1.0), format=".0%")
    chart = _by_layer(best, frame, y=share, edges=None, choices=choices, row="quantity", point_field=None)
    return _close(
        chart,
        best,
        title="How many units do nothing?",
        subtitle=f"Share of units by layer: median over {cells.seeds(best)}, band from lowest to highest",
        caption=(
            "Dead: slope 0 on every input, so no gradient passes. Saturated: slope below 1 % of its "
            "supremum. Zero: an output of exactly 0, which relu-like activations give half of the time and "
            "no fault by itself. Choose the depth, and whether before or after training, above."
        ),
    )
