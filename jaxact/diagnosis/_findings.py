"""All faults of a model, the gravest first, and each told once."""

from __future__ import annotations

import math

from jaxact.diagnosis._depth_faults import depth_faults
from jaxact.diagnosis._evidence import Evidence
from jaxact.diagnosis._finding import BLOCKED, Finding, made
from jaxact.diagnosis._layer_faults import layer_faults
from jaxact.diagnosis._range_faults import range_faults
from jaxact.diagnosis._remedies import REMEDIES

KINDS = tuple(REMEDIES)
#: a fault -> what follows from it where it concerns the same products
_CAUSES: dict[str, frozenset[str]] = {
    "weight scale": frozenset({
        "vanishing gradient", "exploding gradient", "vanishing signal", "exploding signal", "saturated units",
        "chaotic", "ordered", "saturated attention",
    }),
    "wrong fan": frozenset({"weight scale", "exploding signal", "exploding gradient", "vanishing gradient"}),
    "input scale": frozenset({"saturated units", "mean shift", "dead units"}),
    "saturated units": frozenset({"vanishing gradient"}),
}  # fmt: skip
#: what a norm's statistics decide
_OF_SCALE = frozenset({
    "weight scale", "wrong fan", "vanishing signal", "exploding signal", "vanishing gradient", "exploding gradient",
    "ordered", "chaotic", "saturated units", "dead units", "residual growth", "overflow",
})  # fmt: skip


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """Draw the findings.

    NaN, overflow and a blocked gradient make all other numbers meaningless, so that they stand alone.
    """
    found = _known_with_norms(evidence, range_faults(evidence))
    if any(each.severity == BLOCKED and each.kind in ("not finite", "overflow") for each in found):
        return tuple(found)
    found += [*layer_faults(evidence), *_learning_rate(evidence)]
    blocked = [each for each in found if each.severity == BLOCKED and each.kind == "zero initialised"]
    if blocked:
        return tuple(blocked)
    found += depth_faults(evidence)
    return tuple(_told_once(_known_with_norms(evidence, found)))


def _known_with_norms(evidence: Evidence, found: list[Finding]) -> list[Finding]:
    """Without findings of scale where most products go through a norm that has seen no data yet."""
    fresh = {evidence.rows[k].name for k in evidence.fresh}
    kinds = _OF_SCALE | ({"not finite"} if 0.0 in evidence.fresh.values() else set())  # 1 / sqrt(eps) a layer
    return [
        each
        for each in found
        if each.kind not in kinds or 2 * len(fresh.intersection(each.layers)) < len(each.layers)
    ]


def _told_once(found: list[Finding]) -> list[Finding]:
    """Without what follows from another finding; the gravest first."""
    kept: list[Finding] = []
    for each in sorted(found, key=lambda each: -each.severity):
        causes = [
            other
            for other in found
            if each.kind in _CAUSES.get(other.kind, ())
            and len(set(each.layers) & set(other.layers)) * 2 >= len(other.layers)
            and other.severity * 4 >= each.severity
        ]
        is_told = any(each.kind == other.kind and set(each.layers) & set(other.layers) for other in kept)
        if not causes and not is_told:
            kept.append(each)
    return kept


def _learning_rate(evidence: Evidence) -> list[Finding]:
    """Beyond 2 / sharpness gradient descent diverges on the quadratic part of the loss."""
    sharpness, rate = evidence.sharpness, evidence.learning_rate
    if sharpness is None or rate is None or not sharpness.largest * rate > 2:
        return []
    limit = 2 / sharpness.largest
    place = {row.name: k for k, row in reversed(list(enumerate(evidence.rows)))}
    shares = [
        (share, place[name])
        for name, share in zip(evidence.names, sharpness.shares, strict=True)
        if name in place and math.isfinite(share)
    ]
    share, k = max(shares, default=(0.0, 0))
    text = (
        f"the rate {rate:.3g} is {rate / limit:.3g} times 2 / sharpness = {limit:.3g}; the Hessian's largest "
    )
    text += f"eigenvalue is {sharpness.largest:.3g} (to {sharpness.error:.1g}), {share:.0%} of its vector in here."
    cause = "along that direction each step of gradient descent overshoots by more than it corrects."
    severity = math.log10(rate / limit)
    return [made(evidence, "learning rate", severity, [k], text, cause, limit)]
