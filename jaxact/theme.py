"""How every figure looks, as plain data: colours, shapes, dashes, and Vega-Lite configs, light and dark."""

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["COLOURS", "DARK", "DASHES", "FONT", "LIGHT", "SHAPES", "Style", "style"]

# Okabe and Ito (2008), "Color universal design". The yellow is left out, it is too pale for a line on white, and black
# is a grey that is seen on dark paper too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#7A7A7A")
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (5, 5))
FONT = "system-ui, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"


class Style(NamedTuple):
    """How the members of a series are told apart, by three signs so that none rests on colour alone.

    Attributes:
        names: the members, in legend order.
        colours: a CSS colour for each.
        shapes: a mark shape for each.
        dashes: a dash pattern for each.
    """

    names: tuple[str, ...]
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    dashes: tuple[tuple[int, ...], ...]


def style(names: Sequence[str]) -> Style:
    """Give each name a colour-blind safe colour, a shape and a dash.

    The three cycles have lengths 7, 6 and 5, so 210 names get distinct combinations; more names repeat.

    Args:
        names: distinct, in the order of the legend.

    Returns:
        A `Style`: colours, shapes and dashes, one a name.

    >>> style(["relu", "tanh"]).colours
    ('#0072B2', '#D55E00')
    """
    names = tuple(dict.fromkeys(str(name) for name in names))
    colours, shapes, dashes = (
        tuple(signs[i % len(signs)] for i in range(len(names))) for signs in (COLOURS, SHAPES, DASHES)
    )
    return Style(names, colours, shapes, dashes)  # type: ignore[arg-type]


def _config(*, paper: str, ink: str, soft: str, line: str, faint: str, blank: str) -> dict[str, Any]:
    """A Vega-Lite config. Marks that need a colour of the page name one of its parameters in an expression."""
    return {
        "font": FONT,
        "background": paper,
        # Right: a browser's font may be wider than the one that was measured with.
        "padding": {"left": 5, "top": 5, "right": 30, "bottom": 5},
        "params": [
            {"name": name, "value": value}
            for name, value in (("paper", paper), ("ink", ink), ("soft", soft), ("blank", blank))
        ],
        "title": {
            "anchor": "start", "fontSize": 16, "color": ink, "subtitleFontSize": 12, "subtitleColor": soft,
            "offset": 14, "subtitlePadding": 5,
        },
        "axis": {
            "gridColor": faint, "domainColor": line, "tickColor": line, "labelColor": ink, "titleColor": ink,
            "titleFontWeight": "normal", "labelFontSize": 11, "titleFontSize": 12,
        },
        "legend": {
            "labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "symbolSize": 70,
            "labelLimit": 240, "columns": 1,
        },
        "header": {"labelColor": ink, "titleColor": ink, "labelLimit": 260},
        "view": {"stroke": faint},
        "text": {"color": soft, "fontSize": 11},
        "rule": {"color": soft},
    }  # fmt: skip


LIGHT = _config(
    paper="white", ink="#2b2f33", soft="#59636e", line="#999999", faint="#e4e4e4", blank="#d4d4d4"
)
DARK = _config(
    paper="#0d1117", ink="#e6edf3", soft="#9aa4af", line="#6e7681", faint="#2b3138", blank="#3a4048"
)
