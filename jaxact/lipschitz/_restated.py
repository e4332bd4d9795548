"""What a function's program, and its certificate in l2, say of its constant between other norms."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Float

from jaxact.errors import ArgumentError
from jaxact.lipschitz._enclosure import Engine
from jaxact.lipschitz._interval import rounding
from jaxact.lipschitz._mixed import Order, equivalence, largest
from jaxact.lipschitz._program import Certificate, Region
from jaxact.lipschitz.ellipsoid.maps import magnitude
from jaxact.trace import Affine, Elementwise, Program, StepRecord


def restated(program: Program, region: Region | None, found: Certificate, p: Order, q: Order) -> Certificate:
    """The least of what is known of ||f(x') - f(x)||_q <= K ||x' - x||_p.

    - found.value n^max(1/2 - 1/p, 0) m^max(1/q - 1/2, 0), of n inputs and m outputs, by norm equivalence;
    - the largest ||M||_{p -> q} of an enclosure of all difference quotients (`_enclosure`), or, where that is too large
      and p = q = inf, the largest row sum of the product of all |A| and largest |slopes|.

    Args:
        program: what it is of.
        region: where.
        found: its certificate in l2.
        p: norm of inputs: 1, 2 or inf.
        q: norm of outputs.
    """
    norm = p if p == q else (p, q)
    factor = equivalence(program.input_size, program.sizes[program.output], p, q)
    value = float(np.nextafter(float(found.value) * factor, np.inf)) if factor > 1 else float(found.value)
    best = replace(found, norm=norm)
    if factor > 1:
        m = program.sizes[program.output]
        record = StepRecord("norm equivalence", program.output, (m, m))
        best = replace(
            best,
            value=value,
            log=float(found.log) + math.log(factor),
            method=f"{found.method}, norm equivalence",
            factors=(*found.factors, (record, math.log(factor))) if found.factors else (),
        )
    name, enclosed = _enclosed(program, region, p, q)
    if not enclosed < value:
        return best
    return replace(
        best,
        value=enclosed,
        log=math.log(enclosed) if enclosed > 0 else -math.inf,
        method=name,
        assumptions=(),
        factors=(),
        by_norms_beyond=None,
        is_global=region is None,
        certified=True,
    )


def _enclosed(program: Program, region: Region | None, p: Order, q: Order) -> tuple[str, float]:
    """A bound by the enclosure of difference quotients and its name; inf where there is none."""
    try:
        J = Engine(program).within(region).quotients[program.output]
        return "interval Jacobian", float(largest(J, p, q)[0])
    except ArgumentError:  # too large, or without slopes in the box around a ball
        pass
    if p == q == math.inf:
        return "absolute row sums", float(np.max(_row_sums(program), initial=0.0))
    return "", math.inf


def _row_sums(program: Program) -> Float[np.ndarray, " out"]:
    """K with |f(x') - f(x)| <= k max|x' - x| entry by entry, everywhere: k = sum |A| k, then max(|alpha|, |beta|) k."""
    known = {0: np.ones(program.input_size)}
    infinite = {v: (np.full(size, -np.inf), np.full(size, np.inf)) for v, size in program.sizes.items()}
    for step in program.steps:
        if isinstance(step, Affine):
            total, n = np.zeros(step.size), len(step.terms)
            for source, operator in step.terms:
                carried = magnitude(operator, known[source][:, None])
                total = total + carried[:, 0]
                n += program.sizes[source]
            known[step.out] = total * (1 + 2 * rounding(n))
        elif isinstance(step, Elementwise):
            with jax.enable_x64(True):
                alpha, beta = (np.asarray(end, np.float64) for end in step.slopes(infinite))
            with np.errstate(invalid="ignore"):
                steep = np.maximum(np.abs(alpha), np.abs(beta)) * known[step.source] * (1 + 1e-15)
            known[step.out] = np.where(np.isnan(steep), np.inf, steep)
        else:
            known[step.out] = np.full(step.size, np.inf)
    return known[program.output]
