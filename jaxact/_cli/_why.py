"""What becomes of signals, gradients, pairs of inputs and directions under one prediction, in one sentence."""

import math

from jaxact._cli._output import short
from jaxact.theory import Prediction

_KEPT = 0.3  # decades of a squared gradient, a factor 2, that count as no change


def why(row: Prediction) -> str:
    """Say in one sentence what happens over the prediction's layers."""
    parts = [_signals(row), _gradients(row), _inputs(row), _directions(row)]
    sentence = "; ".join(part for part in parts if part)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _signals(row: Prediction) -> str:
    q = row.q_end
    if not math.isfinite(q):
        return "signals overflow"
    if q > 10:
        return f"signals grow ({_times(q)} the variance)"
    if q < 0.1 and row.gradient_decades * 2 > _KEPT:
        return f"signals shrink ({_times(q)} the variance)"
    return ""


def _gradients(row: Prediction) -> str:
    decades = row.growth_decades
    if math.isnan(decades) or decades == math.inf:
        return "gradients overflow"
    if decades == -math.inf:
        return "gradients vanish altogether"
    if abs(decades) < _KEPT:
        return "gradients keep their size"
    verb = "grow" if decades > 0 else "shrink"
    if row.xi_gradient == math.inf and math.isfinite(row.q_star):  # chi = 1 in the end
        return f"squared gradients {verb} by {_each(decades, 1)} over {row.depth} layers, ever more slowly"
    return f"squared gradients {verb} by {_each(decades, row.depth)} a layer: 10^{decades:.1f} over {row.depth} layers"


def _inputs(row: Prediction) -> str:
    left, gone, end = row.contrast_left, row.contrast_depth, row.correlation_end
    if not math.isfinite(left):
        return ""
    if gone is None:
        return f"{_percent(left)} of the difference between similar and unrelated inputs is left"
    if end > 0.5:
        slowly = ", polynomially" if row.xi_c == math.inf and row.c_star > 1 - 1e-6 else ""
        there = f"correlation {_near_one(end)} at {row.depth}{slowly}"
        return f"inputs become indistinguishable after {gone} layers ({there})"
    return f"similar inputs look unrelated after {gone} layers"


def _directions(row: Prediction) -> str:
    largest, zero = row.largest_over_rms, row.zero_probability
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
