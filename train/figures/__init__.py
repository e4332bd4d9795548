"""The vocabulary of figures: marks drawn from tidy frames, and figures declared on a labelled result."""

from jaxact.theme import style
from train.figures.declared import measured
from train.figures.encoding import Axis, Choice, finish, shown
from train.figures.frames import borders, clip_decades, decades, inline, label, readout, spread, thin, tidy
from train.figures.marks import bars, heat_map, histogram, lines, ribbons, scatter

__all__ = [
    "Axis",
    "Choice",
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
    "readout",
    "ribbons",
    "scatter",
    "shown",
    "spread",
    "style",
    "thin",
    "tidy",
]
