"""What an initialisation cannot mend, and what it left alone, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxact.diagnosis._branches import Chain, Part
from jaxact.diagnosis._formula import single
from jaxact.diagnosis._reading import Reading, Site
from jaxact.diagnosis._solve import Solution

_FEW = 4
_CLOSE = 0.9  # of a gradient's squared norm: what borders of convolutions and small samples take
_FADED = 0.5  # of the second moment that is wanted
_DECADES = 2.0  # of a gradient's squared norm over the whole depth


def notes(
    reading: Reading,
    parts: Sequence[Part],
    chains: Sequence[Chain],
    solution: Solution,
    second: np.ndarray,
    groups: Mapping[int, tuple[int, ...]],
    target: str,
) -> Iterator[str]:
    """Every note, the gravest first."""
    yield from _gradients(reading, parts, solution, target)
    yield from _without_target(reading, parts, solution, target)
    yield from _faded(reading, parts, solution, target)
    yield from _streams(chains)
    yield from _silent(reading, second)
    yield from _measured_only(reading)
    yield from _shared(reading, second, groups)
    yield from _not_followed(reading)


def _gradients(reading: Reading, parts: Sequence[Part], solution: Solution, target: str) -> Iterator[str]:
    inner = [k for k, part in enumerate(parts) if part.is_on_stream and solution.growth[k] > 0]
    if not inner:
        return
    logs = np.log10(solution.growth[inner])
    if abs(float(np.sum(logs))) < _DECADES:
        return
    rate = 10 ** float(np.mean(logs))
    told = (
        f"no cure by scale alone: a gradient's squared norm changes by a factor of {rate:.3g} at each of "
        f"{len(inner)} products, 1e{np.sum(logs):+.0f} in all"
    )
    if _is_without_critical_point(reading):
        yield (
            f"{told}; the activation has no critical point at second moment 1 (E f^2 > E f'^2, as of a sigmoid): "
            "centre it, or use another."
        )
    else:
        other = "" if target == "critical" else "; target='critical' weighs the two"
        yield f"{told}, where signals keep their size{other}."


def _without_target(
    reading: Reading, parts: Sequence[Part], solution: Solution, target: str
) -> Iterator[str]:
    """Products behind others whose second moment decided nevertheless."""
    left = [
        site
        for site, part, is_forward, growth in zip(
            reading.sites, parts, solution.is_forward, solution.growth, strict=True
        )
        if is_forward and not part.is_batch_normed and 0 < growth < _CLOSE
    ]
    if left and target != "forward":
        yield (
            f"target={target!r} keeps no signal at {_names(left)}, by any scale: its second moment is kept instead."
        )


def _faded(reading: Reading, parts: Sequence[Part], solution: Solution, target: str) -> Iterator[str]:
    """Signals that biases would hold up."""
    ratios = [each / part.second for each, part in zip(solution.second, parts, strict=True)]
    least = int(np.nanargmin(ratios)) if np.isfinite(ratios).any() else 0
    if target == "critical" and ratios[least] < _FADED and not solution.bias.any():
        yield (
            f"without biases the critical scale lets second moments fall to {solution.second[least]:.2g} at "
            f"{reading.sites[least].name}; target='forward' keeps them."
        )


def _is_without_critical_point(reading: Reading) -> bool:
    formulas = {site.activation[1] for site in reading.sites if site.activation is not None}
    found = [single(formula, np.zeros(1), np.ones(1)) for formula in formulas]
    return any(float(each.second[0]) > 1.05 * float(each.slope[0]) for each in found)


def _streams(chains: Sequence[Chain]) -> Iterator[str]:
    for chain in chains:
        if chain.is_bent and len(chain.branches) > 1:
            yield (
                f"a nonlinearity lies on a stream of {len(chain.branches)} residual branches, after each sum: the "
                "gradient's way along the skips is not the identity, which no scale mends; move it into the branch."
            )


def _silent(reading: Reading, second: np.ndarray) -> Iterator[str]:
    dead = [site for site, each in zip(reading.sites, second, strict=True) if each == 0]
    if dead:
        yield f"no signal arrives, whatever the scale: {_names(dead)}."


def _measured_only(reading: Reading) -> Iterator[str]:
    for reason in dict.fromkeys(site.reason for site in reading.sites if site.reason):
        yield f"measured only, {reason}: {_names([site for site in reading.sites if site.reason == reason])}."


def _shared(reading: Reading, second: np.ndarray, groups: Mapping[int, tuple[int, ...]]) -> Iterator[str]:
    for k, own in groups.items():
        known = second[list(own)]
        known = known[np.isfinite(known)]
        if k == own[0] and len(own) > 1 and known.size:
            yield (
                f"{reading.sites[k].name} is shared by {len(own)} products: one scale for all, second moments from "
                f"{known.min():.3g} to {known.max():.3g}."
            )


def _not_followed(reading: Reading) -> Iterator[str]:
    left = [site for site in reading.sites if site.weight is None and site.kind != "attention"]
    if left:
        yield f"left as they are, for they are computed from parameters in a way that has no scale: {_names(left)}."


def _names(sites: Sequence[Site]) -> str:
    names = list(dict.fromkeys(site.name for site in sites))
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")
