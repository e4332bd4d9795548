"""Faults that build up over depth: signals and gradients that grow or fade, inputs that become alike or unrelated."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from jaxact.diagnosis._evidence import NOTHING, Evidence
from jaxact.diagnosis._finding import Finding, made
from jaxact.diagnosis._known import Preserving, preserving
from jaxact.diagnosis._layer_faults import preserving_at, scale_of
from jaxact.diagnosis._skeleton import Mark

_LEAST = 5  # products: of fewer there is no trend to be told from steps
# Networks train up to about six depth scales (Schoenholz et al. 2017, section 5 and figure 5): over them a second
# moment changes by e^6 = 400, a root mean square by e^3 = 20.
_DECADES = 3 / math.log(10)
_MONOTONE = 0.5  # Kendall's tau: three pairs of layers of four in order
_EXPLAINED = 0.6  # of the trend, by sigma_w^2 E f'^2 of the layers
_CLOSE = math.log(1.1)  # of sigma_w^2: the same to the reader
_LEAST_BIAS = 0.01  # of a second moment of 1
_FLAT = 1 / 8  # E f'^2: see _layer_faults
_ALIKE = 1e-3  # 1 - cosine: inputs differ by 4 % of their length; relu at the edge needs 100 layers for it
_LOST = 2.0  # decades of 1 - cosine
_RELATED = 0.3  # cosine: inputs that have something in common
_HALF = 0.5  # the share of layers that makes a network one of a kind


class Trend(NamedTuple):
    """A number over the products, on a log scale.

    Attributes:
        decades: in all, from the first to the last.
        slope: natural logarithm a product.
        tau: Kendall's rank correlation with depth.
        rows: the products.
    """

    decades: float
    slope: float
    tau: float
    rows: list[int]

    @property
    def is_clear(self) -> bool:
        """Whether it goes one way, and further than six depth scales."""
        return abs(self.decades) > _DECADES and abs(self.tau) > _MONOTONE

    @property
    def depth_scale(self) -> float:
        """Products for a factor e of the second moment, 1 / |log factor|."""
        return 1 / abs(2 * self.slope)


def trend(rows: list[int], values: Any) -> Trend:
    """The median of all slopes between two products (Theil 1950, Sen 1968): steps and outliers do not move it."""
    values = np.asarray(values, float)
    kept = [(k, math.log(v)) for k, v in zip(rows, values, strict=True) if np.isfinite(v) and v > 0]
    if len(kept) < _LEAST:
        return Trend(0.0, 0.0, 0.0, [k for k, _ in kept])
    y = np.array([v for _, v in kept])
    i, j = np.triu_indices(len(y), 1)
    slope = float(np.median((y[j] - y[i]) / (j - i)))
    tau = float(np.mean(np.sign(y[j] - y[i])))
    return Trend(slope * (len(y) - 1) / math.log(10), slope, tau, [k for k, _ in kept])


def depth_faults(evidence: Evidence) -> list[Finding]:
    """The faults of the whole depth."""
    signal, gradient = _trends(evidence)
    clear = [each for each in (signal, gradient) if each.is_clear]
    if not clear:
        return _cosines(evidence)
    strongest = max(clear, key=lambda each: abs(each.decades))
    return [_named(evidence, signal, gradient, strongest), *_cosines(evidence)]


def _trends(evidence: Evidence) -> tuple[Trend, Trend]:
    rows = [k for k in evidence.weighted if not evidence.tied or evidence.rows[k].name in evidence.tied]
    signal = np.sqrt(evidence.column("second_moment"))
    gradients = _floored(evidence, rows)
    return trend(rows, signal[rows]), trend(rows, gradients[rows])


def _floored(evidence: Evidence, rows: list[int]) -> np.ndarray:
    """Gradients; where they fade to what was measured as 0, that counts as the smallest number that could be."""
    gradients = evidence.gradients
    seen = [k for k in rows if gradients[k] > 0]
    faded = bool(seen) and gradients[seen[0]] < math.sqrt(NOTHING)
    if faded:
        early = [k for k in rows if k < seen[0] and gradients[k] == 0 and evidence.rows[k].second_moment > 0]
        gradients = gradients.copy()
        gradients[early] = NOTHING
    return gradients


def _named(evidence: Evidence, signal: Trend, gradient: Trend, strongest: Trend) -> Finding:
    """What a trend is called: by its cause, where structure or theory tells it, else by itself."""
    rows = strongest.rows
    start = _order(evidence, strongest, strongest is gradient)
    severity = abs(strongest.decades)
    text = "; ".join(_told(each, each is gradient) for each in (gradient, signal) if each.is_clear) + "."
    explodes = gradient.is_clear and gradient.decades < 0
    skips, normed = evidence.share_marked(Mark.SKIPPED), evidence.share_marked(Mark.BATCHED)
    own = [k for k in evidence.weighted if Mark.CLOSED in evidence.skeleton.source(k).marks]
    if evidence.tied:
        kind, cause = "tied weights", _tied_cause(evidence, rows)
        scale = math.sqrt(_tied_scale(evidence, rows))
        return made(evidence, kind, severity, start, text, cause, scale)
    if (
        skips > _HALF * 0.6 and signal.is_clear and signal.decades > 0
    ):  # a branch of two: every other starts at a sum
        has_scores = any(row.kind == "attention" for row in evidence.rows)
        kind = "missing norm" if has_scores else "residual growth"
        cause = "every branch adds a second moment as large as that of its input, and nothing divides it out again."
        return made(evidence, kind, severity, start, text, cause)
    if 2 * len(own) >= max(1, round(skips * len(evidence.weighted))) and own:
        cause = "the activation stands after the sum, so that every shortcut passes through it: a signal that comes "
        cause += "through n of them unclipped is one in sqrt(pi n) with relu, and loses a factor of slope with others."
        return made(evidence, "post-activation", severity, start, text, cause)
    if explodes and normed > _HALF and skips < _HALF:
        cause = "batch norm without shortcuts: going back, E f'^2 / Var f is above 1 for every nonlinear f "
        cause += "(Yang et al. 2019), pi / (pi - 1) = 1.47 of the square for relu."
        return made(evidence, "batch norm explosion", severity, start, text, cause)
    return _of_weights(evidence, strongest, strongest is gradient, start, text)


def _of_weights(evidence: Evidence, found: Trend, is_gradient: bool, start: list[int], text: str) -> Finding:
    """Whether sigma_w^2 beside what preserves explains a trend."""
    scales = {k: scale for k in found.rows if (scale := scale_of(evidence, k)) is not None}
    grows = found.decades > 0
    kind = ("vanishing" if grows == is_gradient else "exploding") + (
        " gradient" if is_gradient else " signal"
    )
    severity = abs(found.decades)
    if not scales:
        cause = "each layer changes it by the same factor; no activation between two products says what preserves."
        return made(evidence, kind, severity, start, text, cause)
    wanted = {k: each.gradient if is_gradient else each.signal for k, each in scales.items()}
    logs = [math.log(evidence.rows[k].weight_scale / each) / 2 for k, each in wanted.items()]
    own = float(np.median(logs)) * (-1 if is_gradient else 1)
    measured = float(np.median(list(wanted.values())))
    actual = float(np.median([evidence.rows[k].weight_scale for k in scales]))
    slope = 1 / float(np.median([each.gradient for each in scales.values()]))
    drawn = _drawn(evidence, list(scales))
    if slope < _FLAT:
        cause = f"the activation is flat: E f'^2 is {slope:.3g}, so that weights of sigma_w^2 = {actual:.3g} pass on "
        cause += f"{actual * slope:.3g} of the gradient's square a layer."
        return made(evidence, kind, severity, start, text, cause, drawn.scale)
    is_told = abs(math.log(actual / drawn.scale)) > _CLOSE and (actual > drawn.scale) == (actual > measured)
    if is_told:
        cause = (
            f"sigma_w^2 is {actual:.3g}; what preserves is {drawn.scale:.3g}, {drawn.rule}{_beside(drawn)}."
        )
    else:
        second = float(np.median([evidence.rows[k].second_moment for k in scales]))
        cause = f"sigma_w^2 is {actual:.3g}; what preserves is {measured:.3g} where signals have E z^2 = {second:.2g}, "
        cause += f"as here, and {drawn.scale:.3g}, {drawn.rule}{_beside(drawn)}."
    if own / found.slope > _EXPLAINED:
        off = _nearer(evidence, found.rows, actual, drawn.scale if is_told else measured) or start
        return made(evidence, "weight scale", severity, off, text, cause, drawn.scale)
    return made(evidence, kind, severity, start, text, cause, drawn.scale)


def _drawn(evidence: Evidence, rows: list[int]) -> Preserving:
    """What `initialize` draws most layers with."""
    each = [drawn for k in rows if (drawn := preserving_at(evidence, k)) is not None]
    ordered = sorted(each, key=lambda drawn: drawn.scale)
    return ordered[len(ordered) // 2] if ordered else Preserving(1.0, 0.0, "that of a linear layer")


def _beside(drawn: Preserving) -> str:
    return f", with biases of variance {drawn.bias:.2g}" if drawn.bias > _LEAST_BIAS else ""


def _nearer(evidence: Evidence, rows: list[int], actual: float, preserving: float) -> list[int]:
    """The products whose own scale is nearer to what most have than to what preserves: those to be drawn anew."""
    scales = {k: evidence.rows[k].weight_scale for k in rows if evidence.rows[k].weight_scale > 0}
    return [k for k, s in scales.items() if abs(math.log(s / actual)) < abs(math.log(s / preserving))]


def _told(found: Trend, is_gradient: bool) -> str:
    what, a = ("gradient's norm", "going back") if is_gradient else ("signal's root mean square", "going on")
    decades = -found.decades if is_gradient else found.decades
    factor = math.exp(-found.slope if is_gradient else found.slope)
    verb = "grows" if decades > 0 else "fades"
    return (
        f"the {what} {verb} by {factor:.3g} a product {a}, 10^{decades:.1f} over {len(found.rows)}: "
        f"depth scale {found.depth_scale:.3g}"
    )


def _order(evidence: Evidence, found: Trend, is_gradient: bool) -> list[int]:
    """The products, from where it starts: the end for what comes from the loss."""
    return found.rows[::-1] if is_gradient else found.rows


def _tied_scale(evidence: Evidence, rows: list[int]) -> float:
    """1 / E f'^2 at E z^2 = 1, or as measured where that is less: of two scales the one that explodes less."""
    drawn = [preserving(formula) for k in rows if (formula := evidence.formulas[k]) is not None]
    at_one = [each.scale for each in drawn if each is not None]
    measured = [1 / s for k in rows if (s := evidence.rows[k].slope_second_moment) > 0]
    return min((float(np.median(each)) for each in (at_one, measured) if each), default=1.0)


def _tied_cause(evidence: Evidence, rows: list[int]) -> str:
    row = evidence.rows[rows[-1]]
    return (
        f"the same weights act {len(rows)} times, so that their gradient is that of the turns where it is largest; "
        f"sigma_w^2 is {row.weight_scale:.3g}, where {_tied_scale(evidence, rows):.3g} preserves."
    )


def _cosines(evidence: Evidence) -> list[Finding]:
    """Inputs that become alike, or unrelated."""
    rows = [k for k in evidence.weighted if evidence.rows[k].second_moment > 0]
    cosines = evidence.column("cosine")
    rows = [k for k in rows if np.isfinite(cosines[k])]
    if len(rows) < _LEAST:
        return []
    apart = np.maximum(1 - cosines, 1e-7)  # float32 does not resolve less
    first, last = rows[0], rows[-1]
    lost = math.log10(apart[first] / apart[last])
    if lost > _LOST and apart[last] < _ALIKE and trend(rows, apart[rows]).tau < -_MONOTONE:
        start = [k for k in rows if apart[k] < _ALIKE]
        text = f"the cosine between inputs goes from {cosines[first]:.3f} to {cosines[last]:.6f}: "
        text += f"from here on they differ by less than {math.sqrt(2 * _ALIKE):.0%}."
        cause = "the ordered phase: each layer brings inputs nearer, by sigma_w^2 E f'^2 < 1, or biases drown them."
        return [made(evidence, "ordered", lost / 2, start, text, cause)]
    unrelated = cosines[first] > _RELATED and cosines[last] < cosines[first] / 10
    if unrelated and trend(rows, np.maximum(cosines[rows], 1e-3)).tau < -_MONOTONE:
        start = [k for k in rows if cosines[k] < cosines[first] / 2]
        text = f"the cosine between inputs goes from {cosines[first]:.3f} to {cosines[last]:.3f}."
        cause = "the chaotic phase: each layer drives inputs apart, by sigma_w^2 E f'^2 > 1."
        decades = math.log10(cosines[first] / max(abs(cosines[last]), 1e-3))
        return [made(evidence, "chaotic", decades, start, text, cause, _drawn(evidence, rows).scale)]
    return []
