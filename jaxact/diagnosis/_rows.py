"""One product of a model: what it is, what was measured there, and what theory predicts beside it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Row:
    """One product, before any bias is added. What was not measured or not predicted is NaN.

    Attributes:
        name: path of the parameter in the user's own tree, with [i] for the turn of a loop.
        line: file:line of the user's code.
        kind: dense, conv, or attention where both operands depend on the input.
        shape: of the product.
        fan_in: how many products are added up for an entry.
        weight_scale: sigma_w^2, fan_in times the mean square of the actual weights.
        mean: over entries and inputs.
        second_moment: mean square over entries and inputs.
        cosine: mean over pairs of different inputs (up to 64) of the cosine between their products.
        effective_rank: participation ratio of the Gram matrix of these inputs; at most their number.
        zero: share of exact zeros after the activation that follows.
        dead: share of units that are zero there for every input.
        saturated: share of entries where the slope of the activation is below 1 % of its largest.
        largest_entry: the largest |z|.
        activation_second_moment: mean square of the activation that follows, E f^2.
        slope_second_moment: of its slope, E f'^2.
        concentration: of the softmax that follows a product of two arrays, the mean of sum p^2.
        dtype: of the product.
        gradient: root mean square of the gradient of the loss.
        gradient_factor: `gradient` over that of the next row.
        largest: of the singular values of the Jacobian from the first input to here: an estimate from below by power
            iteration, or exact.
        smallest: of these, to 1e-7 of the largest, where they are exact; else NaN.
        is_exact: whether the whole Jacobian was formed, as for inputs of up to 64 entries.
        predicted_mean: what theory says.
        predicted_second_moment: the same.
        predicted_cosine: the same.
        predicted_gradient: the same, given the measured gradient at the outputs.
        predicted_gradient_factor: the same, over the measured gradient of the next row where that is measured only; NaN
            where the gradient of this row is.
        reason: why the product is measured only; the prediction goes on from what was measured here. Else "".
    """

    name: str
    line: str
    kind: str
    shape: tuple[int, ...]
    fan_in: int
    weight_scale: float
    mean: float
    second_moment: float
    cosine: float
    effective_rank: float
    zero: float
    dead: float
    saturated: float
    largest_entry: float
    activation_second_moment: float
    slope_second_moment: float
    concentration: float
    dtype: str
    gradient: float
    gradient_factor: float
    largest: float
    smallest: float
    is_exact: bool
    predicted_mean: float
    predicted_second_moment: float
    predicted_cosine: float
    predicted_gradient: float
    predicted_gradient_factor: float
    reason: str
