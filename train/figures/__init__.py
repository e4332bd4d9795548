"""The vocabulary of figures: marks drawn from tidy frames, and figures declared on a labelled result."""

from jaxact.theme import Style, style
from train.figures.declared import Declaration, measured
from train.figures.frames import (
    borders,
    clip_decades,
    decades,
    inline,
    label,
    ordered,
    quantiles,
    readout,
    spread,
    thin,
    tidy,
)
from train.figures.marks import (
    Axis,
    Choice,
    bars,
    finish,
    heat_map,
    histogram,
    lines,
    ribbons,
    scatter,
    shown,
)

__all__ = [
    "Axis",
    "Choice",
    "Declaration",
    "Style",
    "bars",
    "borders",
    "clip_decades",
    "decades",
    "finish",
    "heat_map",
    "histogram",
    "inline",
    "label",
    "lines",
    "measured",
    "ordered",
    "quantiles",
    "readout",
    "ribbons",
    "scatter",
    "shown",
    "spread",
    "style",
    "thin",
    "tidy",
]
