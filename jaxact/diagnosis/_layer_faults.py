"""Faults of single layers: weights off their scale, zeros, dead and saturated units, shifted means."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxact.diagnosis._evidence import Evidence
from jaxact.diagnosis._finding import BLOCKED, Finding, made
from jaxact.diagnosis._known import Preserving, preserving
from jaxact.diagnosis._skeleton import INPUT, Mark

# In sigma_w^2. PyTorch's 1 / 3 where relu wants 2 is off by 6, LeCun's 1 by 2, Glorot's 2 / (1 + fan_out / fan_in)
# between: what all use does harm with depth alone, and is looked at over the depth. A window left out is 9 and more.
_OFF = 7.0
_OFF_UNKNOWN = 100.0  # where no activation says what preserves: a decade of the signal
_SOME = 8  # inputs or positions: of fewer, a unit is off for all of them by chance
_INPUT_RMS = 10.0  # a decade above what initialisers are made for
_COMMON = 0.9  # of the mean square is the mean: the Hessian's condition number is 1 / (1 - share), a decade
_MEAN = 0.5  # the mean square of preactivations is more mean than variance
_SHARE = 0.5  # of units, or of entries: the larger part of the layer does not learn
_FLAT = 1 / 8  # E f'^2 of an activation that no usual scale makes up for: sigmoid's is at most 1/16
_SAME = math.log(1.5)  # of ratios: the weights' own spread over a hundred draws is 14 %


class Scale(NamedTuple):
    """sigma_w^2 of a layer beside what preserves.

    Attributes:
        ratio: to the nearest of these.
        signal: sigma_w^2 that keeps the second moment: E z^2 / E f(z)^2.
        gradient: that keeps the gradient's: 1 / E f'(z)^2, the critical one.
    """

    ratio: float
    signal: float
    gradient: float


def scale_of(evidence: Evidence, k: int) -> Scale | None:
    """The scale of a layer whose operand is the activation of one product; None where it is another."""
    row, j = evidence.rows[k], evidence.source(k)
    if row.kind == "attention" or not row.weight_scale > 0 or j is None:
        return None
    before = evidence.rows[j]
    known = before.activation_second_moment > 0 and before.slope_second_moment > 0
    if not known or not math.isfinite(before.second_moment * before.activation_second_moment):
        return None
    signal = before.second_moment / before.activation_second_moment
    gradient = 1 / before.slope_second_moment
    low, high = min(signal, gradient), max(signal, gradient)
    ratio = row.weight_scale / min(max(row.weight_scale, low), high)
    return Scale(ratio, signal, gradient)


def preserving_at(evidence: Evidence, k: int) -> Preserving | None:
    """What `initialize` would draw a layer with, where its operand is the activation of one product."""
    j = evidence.source(k)
    formula = None if j is None else evidence.formulas[j]
    return None if formula is None else preserving(formula)


def layer_faults(evidence: Evidence) -> list[Finding]:
    """The faults of single layers."""
    finders = (_zeros, _inputs, _dead, _saturated, _attention, _mean, _scales)
    return [finding for finder in finders for finding in finder(evidence)]


def _zeros(evidence: Evidence) -> list[Finding]:
    """Zeros that stop the gradient; not those at the end of a branch or in a head, whose own gradient is not zero."""
    rows, skeleton = evidence.rows, evidence.skeleton
    found = []
    for k in evidence.weighted:
        is_benign = k in skeleton.heads or evidence.ends_branch(k)
        if rows[k].weight_scale != 0 or is_benign:
            continue
        earlier = [j for j in skeleton.before[k] if j != INPUT]
        if all(rows[j].gradient == 0 for j in earlier):
            count = len(earlier)
            text = f"all weights are 0: what follows sees the same for every input, and the {count} products before it "
            text += "get no gradient."
            cause = "a zero initialiser on the only path; harmless it is at the end of a residual branch, which the "
            cause += "shortcut goes around, or in the last layer, whose own gradient is not 0."
            drawn = preserving_at(evidence, k)
            scale = 1.0 if drawn is None else drawn.scale
            found.append(made(evidence, "zero initialised", BLOCKED, [k], text, cause, scale))
    return found[:1]


def _inputs(evidence: Evidence) -> list[Finding]:
    first = next((k for k in evidence.weighted if evidence.skeleton.source(k).sites == {INPUT}), None)
    if evidence.inputs is None or first is None or Mark.NORMED in evidence.skeleton.source(first).marks:
        return []
    x = evidence.inputs
    rms = math.sqrt(float(np.mean(x**2)))
    if rms > _INPUT_RMS:
        text = f"the inputs' root mean square is {rms:.3g}, so z starts at {_root(evidence, first):.3g}."
        cause = "inputs as they are stored, pixels of 0 to 255 for one; initialisers are made for a mean square of 1."
        return [made(evidence, "input scale", math.log10(rms), [first], text, cause)]
    share = float(np.mean(np.mean(x, 0) ** 2)) / rms**2 if rms > 0 and len(x) >= _SOME else 0.0
    if share > _COMMON:
        text = f"{share:.1%} of the inputs' mean square is their mean over the batch, in common to all."
        cause = "features that were not centred: the loss is steep along the mean, by 1 / (1 - share)."
        severity = -math.log10(max(1 - share, 1e-12))
        return [made(evidence, "mean shift", severity, [first], text, cause)]
    return []


def _root(evidence: Evidence, k: int) -> float:
    return math.sqrt(evidence.rows[k].second_moment)


def _dead(evidence: Evidence) -> list[Finding]:
    found = []
    for k, row in enumerate(evidence.rows):
        units = row.shape[-1]
        by_chance = _SHARE + 1.5 / math.sqrt(units)  # three standard deviations, all inputs alike
        has_slope = (
            row.saturated >= row.dead
        )  # not a formula that is 0 everywhere, as of a state that starts at 0
        if row.dead > by_chance and has_slope and row.second_moment > 0 and np.prod(row.shape[:-1]) >= _SOME:
            blocked = BLOCKED if row.dead == 1 else -math.log10(1 - row.dead)
            text = f"{row.dead:.0%} of the units after it are 0 for every input; E z^2 is {row.second_moment:.3g}."
            cause = "a bias or mean far below 0: of weights and inputs alone at most half of the units are."
            found.append(made(evidence, "dead units", blocked, [k], text, cause))
    return found[:1]


def _saturated(evidence: Evidence) -> list[Finding]:
    bad = [
        k
        for k, row in enumerate(evidence.rows)
        if row.saturated - row.zero > _SHARE and row.second_moment > 0  # zeros are those of a relu
    ]
    if not bad:
        return []
    row = evidence.rows[bad[0]]
    share = row.saturated - row.zero
    text = f"{share:.0%} of the slopes after it are below 1 % of the largest; z has root mean square "
    text += f"{math.sqrt(row.second_moment):.3g}" + (f", in {len(bad)} layers." if len(bad) > 1 else ".")
    cause = (
        f"preactivations too large for the activation: sigma_w^2 is {row.weight_scale:.3g}, or biases are."
    )
    severity = -math.log10(max(row.slope_second_moment, 1e-38)) / 2 * len(bad)
    scale = row.weight_scale / max(row.second_moment, 1e-30)
    return [made(evidence, "saturated units", max(severity, 0.3), bad, text, cause, scale)]


def _attention(evidence: Evidence) -> list[Finding]:
    bad = [k for k, row in enumerate(evidence.rows) if row.concentration > _SHARE]
    few = [k for k in bad if _num_keys(evidence, k) >= 4]  # of two keys, one always has a half
    if not few:
        return []
    row = evidence.rows[few[0]]
    text = (
        f"a query looks at {1 / row.concentration:.2g} of {_num_keys(evidence, few[0])} keys, which leaves "
    )
    text += f"{1 - row.concentration:.1%} of its gradient; scores have root mean square {_root(evidence, few[0]):.3g}."
    cause = "scores beyond sqrt(2 log keys), where one key takes all: they grow with the root of the heads' width."
    severity = -math.log10(max(1 - row.concentration, 1e-38)) * len(few)
    return [made(evidence, "saturated attention", severity, few, text, cause)]


def _num_keys(evidence: Evidence, k: int) -> int:
    softmax = evidence.skeleton.softmaxes[k]
    return int(np.prod([evidence.rows[k].shape[axis] for axis in softmax.axes]))


def _mean(evidence: Evidence) -> list[Finding]:
    found = []
    for k in evidence.weighted:
        row = evidence.rows[k]
        share = row.mean**2 / row.second_moment if row.second_moment > 0 else 0.0
        if share > _MEAN and row.shape[-1] >= 2 * _SOME:  # of fewer units by chance
            text = (
                f"preactivations have mean {row.mean:.3g} at a root mean square of {_root(evidence, k):.3g}."
            )
            cause = "weights whose mean is not 0, on inputs whose mean is not."
            severity = -math.log10(max(1 - share, 1e-12))
            found.append(made(evidence, "mean shift", severity, [k], text, cause))
    return sorted(found, key=lambda each: -each.severity)[:1]


# --- The weights' scale -----------------------------------------------------------------------------------------------


def _scales(evidence: Evidence) -> list[Finding]:
    return [finding for sign in (1, -1) for finding in _scales_off(evidence, _logs(evidence, sign), sign)]


def _logs(evidence: Evidence, sign: int) -> dict[int, float]:
    """By row the log of how far sigma_w^2 is off in one direction, where it is."""
    logs = {}
    for k in evidence.weighted:
        row, scale = evidence.rows[k], scale_of(evidence, k)
        if not row.weight_scale > 0 or evidence.is_normed(k):
            continue
        if scale is not None and 1 / scale.gradient < _FLAT:
            continue  # the slopes of the activation, flat or saturated, and not the weights
        ratio, off = (row.weight_scale, _OFF_UNKNOWN) if scale is None else (scale.ratio, _OFF)
        is_small_branch = sign < 0 and evidence.ends_branch(k)
        if sign * math.log(ratio) > math.log(off) and not is_small_branch:
            logs[k] = abs(math.log(ratio))
    return logs


def _scales_off(evidence: Evidence, logs: dict[int, float], sign: int) -> list[Finding]:
    if not logs:
        return []
    worst = max(logs, key=lambda k: logs[k])
    alike = [k for k in logs if logs[k] > logs[worst] / 2]
    k = worst if len(alike) == 1 else alike[0]
    row, scale = evidence.rows[k], scale_of(evidence, k)
    wanted = 1.0 if scale is None else _wanted(evidence, k, scale, sign)
    names = dict.fromkeys(evidence.rows[j].name for j in alike)
    text = f"sigma_w^2 is {row.weight_scale:.3g}, {_times(row.weight_scale / wanted)} what preserves here, {wanted:.3g}"
    text += f"; so in {len(names)} layers." if len(names) > 1 else "."
    severity = sum(logs.values()) / 2 / math.log(10)
    field = evidence.fields[k]
    if field > 1 and abs(logs[k] - math.log(field)) < _SAME:
        cause = f"the fan leaves out the window: off by about {field}, its number of positions."
        return [made(evidence, "wrong fan", severity, alike if k in alike else [k], text, cause, wanted)]
    cause = "an initialiser made for another activation or fan, or a factor that was left in."
    return [made(evidence, "weight scale", severity, [k, *(j for j in alike if j != k)], text, cause, wanted)]


def _wanted(evidence: Evidence, k: int, scale: Scale, sign: int) -> float:
    """sigma_w^2 as `initialize` draws it; where the layer has that already, what the signals as measured want."""
    drawn = preserving_at(evidence, k)
    if drawn is not None and sign * math.log(evidence.rows[k].weight_scale / drawn.scale) > math.log(2):
        return drawn.scale
    return scale.signal if sign > 0 else scale.gradient


def _times(ratio: float) -> str:
    return f"{ratio:.3g} times"
