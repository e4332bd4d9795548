"""Faults of numbers' range: NaN, overflow, and what is too small for a narrow type."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from jaxact.diagnosis._evidence import NOTHING, Evidence
from jaxact.diagnosis._finding import BLOCKED, Finding, made
from jaxact.diagnosis._skeleton import INPUT

_NARROW = ("float16", "bfloat16")
_NEAR = (
    4.0  # times less than the largest number: training makes weights and signals this much larger, and more
)
_LOST = (
    8.0  # times the smallest number: below, rounding is worse than 1/16, and what is a tenth as large is 0
)
_HALF = 0.5  # of the last place: a smaller update leaves the parameter as it is


def range_faults(evidence: Evidence) -> list[Finding]:
    """What is not finite, or would not be in a narrow type."""
    broken = _not_finite(evidence)
    return broken or [*_near_overflow(evidence), *_underflow(evidence), *_swallowed(evidence)]


def _not_finite(evidence: Evidence) -> list[Finding]:
    largest = evidence.column("largest_entry")
    # NaN also where a branch was not taken: that shows in the loss only if it is used.
    bad = [k for k in range(len(largest)) if not np.isfinite(largest[k])]
    if math.isfinite(evidence.loss):
        return _gradient_not_finite(evidence)
    heads = sorted(k for k in evidence.skeleton.heads if k != INPUT)
    if not bad:
        text = f"every product is finite, but the loss is {evidence.loss}."
        cause = "what is computed after the last product leaves the range of its type, or is undefined."
        return [made(evidence, "not finite", BLOCKED, heads[-1:] or [len(largest) - 1], text, cause)]
    k = bad[0]
    row = evidence.rows[k]
    if math.isinf(largest[k]):
        limit = float(jnp.finfo(row.dtype).max)
        before = max((largest[j] for j in range(k)), default=math.nan)
        text = f"the product is inf in {row.dtype}, whose largest number is {limit:.3g}"
        text += f"; the products before it reach {before:.3g}." if k else "."
        return [made(evidence, "overflow", BLOCKED, bad, text, _cause_of_overflow(row.dtype))]
    sources = sorted(j for j in evidence.skeleton.source(k).sites if j != INPUT)
    text = f"the products are NaN from {row.name} ({row.line}) on."
    cause = "what lies between: a logarithm, root or quotient out of its domain, or inf - inf."
    start = sources[-1:] if sources and np.isfinite(largest[sources[-1]]) else []
    if start:
        text = f"finite here, with entries up to {largest[start[0]]:.3g}, but " + text
    return [made(evidence, "not finite", BLOCKED, [*start, *bad], text, cause)]


def _cause_of_overflow(dtype: str) -> str:
    if dtype == "float16":
        return "float16 ends at 65,504."
    return "the signal grew to the end of the type's range."


def _gradient_not_finite(evidence: Evidence) -> list[Finding]:
    gradients = evidence.column("gradient")
    finite = np.isfinite(evidence.column("largest_entry"))
    bad = [k for k in range(len(gradients)) if finite[k] and not np.isfinite(gradients[k])]
    if not bad:
        return []
    text = f"the outputs are finite, but the gradient is {gradients[bad[-1]]} from here back to the inputs."
    cause = (
        "an infinite slope in what follows, as that of a root or a norm at 0, or overflow on the way back."
    )
    return [made(evidence, "not finite", BLOCKED, bad[::-1], text, cause)]


def _near_overflow(evidence: Evidence) -> list[Finding]:
    found = []
    for k, row in enumerate(evidence.rows):
        limit = float(jnp.finfo(row.dtype).max)
        if row.largest_entry > limit / _NEAR:
            text = f"the largest |z| is {row.largest_entry:.3g}, of {limit:.3g} that {row.dtype} holds."
            found.append(
                made(
                    evidence,
                    "overflow",
                    1 + math.log10(_NEAR * row.largest_entry / limit),
                    [k],
                    text,
                    _cause_of_overflow(row.dtype),
                )
            )
    return found[:1]


def _underflow(evidence: Evidence) -> list[Finding]:
    """Where the gradient, going back, comes below what a narrow type holds."""
    rows, gradients = evidence.rows, evidence.column("gradient")
    lost = []
    for k, row in enumerate(rows):
        if row.dtype not in _NARROW or row.second_moment == 0:
            continue
        smallest = float(jnp.finfo(row.dtype).smallest_subnormal)
        after = [gradients[n] for n in evidence.skeleton.after(k)]
        is_passed = any(g > 0 for g in after) or k in evidence.skeleton.heads
        vanished = gradients[k] == 0 and is_passed and _is_reached(evidence, k)
        if vanished or 0 < gradients[k] < max(_LOST * smallest, NOTHING):
            lost.append(k)
    if not lost:
        return []
    k = lost[-1]
    kind = rows[k].dtype
    text = f"the gradient's root mean square is {gradients[k]:.2g} here and smaller before; "
    text += f"{kind} has no number between 0 and {float(jnp.finfo(kind).smallest_subnormal):.2g}."
    cause = "the gradient is computed in the type of the product, without a scaled loss."
    tiny = float(jnp.finfo(kind).tiny)
    severity = math.log10(tiny / max(gradients[lost].min(), tiny * 10**-BLOCKED)) if kind == "float16" else 20
    return [made(evidence, "underflow", severity, lost[::-1], text, cause)]


def _is_reached(evidence: Evidence, k: int) -> bool:
    """Whether what follows passes a gradient: units that are alive, and weights that are not zero."""
    row = evidence.rows[k]
    after = [evidence.rows[n] for n in evidence.skeleton.after(k)]
    return row.dead != 1 and all(each.weight_scale != 0 for each in after)


def _swallowed(evidence: Evidence) -> list[Finding]:
    """Parameters in a narrow type that a step of the learning rate leaves as they are."""
    if evidence.sharpness is None or evidence.learning_rate is None:
        return []
    place = {row.name: k for k, row in reversed(list(enumerate(evidence.rows)))}
    lost = []
    for name, dtype, update in zip(evidence.names, evidence.dtypes, evidence.sharpness.updates, strict=True):
        if dtype in _NARROW and name in place:
            step = evidence.learning_rate * update / float(jnp.finfo(dtype).eps)
            if 0 < step < _HALF:
                lost.append((step, place[name], dtype))
    if not lost:
        return []
    step, k, dtype = min(lost)
    eps = float(jnp.finfo(dtype).eps)
    text = f"a step changes the weights by {step * eps:.2g} of their size; {dtype} resolves {eps:.2g}."
    cause = f"parameters are kept in {dtype}, so that w - lr * gradient rounds to w."
    ordered = [k, *sorted(j for _, j, _ in lost if j != k)]
    return [made(evidence, "underflow", -math.log10(step), ordered, text, cause)]
