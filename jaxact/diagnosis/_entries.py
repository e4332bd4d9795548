"""Which entries of the parameters an array is made of: followed through what moves them, up to their products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxact.diagnosis._axes import BATCH, POSITION, has
from jaxact.diagnosis._graph import Known, Node, Value
from jaxact.trace import move_equation

_MOVING = frozenset({
    "broadcast_in_dim", "concatenate", "copy", "copy_p", "dynamic_slice", "expand_dims", "gather",
    "optimization_barrier", "pad", "reshape", "rev", "slice", "split", "squeeze", "transpose",
})  # fmt: skip
_SAME = frozenset({"convert_element_type", "neg", "reduce_precision", "stop_gradient"})
_SCALING = frozenset({"mul", "div"})


class Weight(NamedTuple):
    """The entries of the parameters that a product is linear in.

    Attributes:
        entries: [matrix, in, out]; -1 where a number is fixed.
        receptive: the lengths of a convolution's window, or ().
    """

    entries: np.ndarray
    receptive: tuple[int, ...]


class Bias(NamedTuple):
    """What is added to a product.

    Attributes:
        site: number of the product.
        entries: of the parameters.
        node: the node of the numbers that are added, or None where they are all the same.
    """

    site: int
    entries: np.ndarray
    node: Node | None


def moved_entries(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """Where the entries of an equation's outputs come from; None where they are no multiples of single ones."""
    nothing = [None] * len(eqn.outvars)
    followed = [each for each in operands if getattr(each, "entries", None) is not None]
    name = eqn.primitive.name
    if not followed or any(each.names and each.entries is None for each in operands):
        return nothing
    if name in _SAME:
        return [followed[0].entries]
    if name in _SCALING and len(followed) == 1 and (name == "mul" or operands[0] is followed[0]):
        return [np.broadcast_to(followed[0].entries, eqn.outvars[0].aval.shape)]
    if name not in _MOVING:
        return nothing
    places = name in ("dynamic_slice", "gather")  # the other operands say where
    given = [
        each.entries
        if each.entries is not None
        else np.asarray(each.array)
        if places
        else np.full(each.shape, -1)
        for each in operands
    ]
    return move_equation(eqn, given, -1)


def weight_of(eqn: Any, operands: Sequence[Any]) -> Weight | None:
    """The weight of a product, in the layout of jaxact's initialisers."""
    number = next((k for k, x in enumerate(operands) if isinstance(x, Known) and x.axes is None), None)
    entries = None if number is None else operands[number].entries
    if entries is None:
        return None
    if eqn.primitive.name == "conv_general_dilated":
        out, inner, *spatial = eqn.params["dimension_numbers"].rhs_spec
        receptive = tuple(entries.shape[k] for k in spatial)
        return Weight(entries.transpose(*spatial, inner, out).reshape(1, -1, entries.shape[out]), receptive)
    summed, shared = (each[number] for each in eqn.params["dimension_numbers"])
    free = [k for k in range(entries.ndim) if k not in (*summed, *shared)]
    sizes = [int(np.prod([entries.shape[k] for k in axes])) for axes in (shared, summed, free)]
    return Weight(entries.transpose(*shared, *summed, *free).reshape(sizes), ())


def bias_of(eqn: Any, operands: Sequence[Any], outputs: Sequence[Any]) -> list[Bias]:
    """What an equation adds to a product, if it adds one number a feature."""
    if eqn.primitive.name != "add":
        return []
    for x, b in (operands, operands[::-1]):
        is_product = isinstance(x, Value) and x.formula.eqn is None and x.node.site >= 0
        if not is_product or not isinstance(b, Known) or b.axes is not None or b.entries is None:
            continue
        if _is_made_of_products(x.node) and _is_one_a_feature(b.entries, x):
            made = outputs[0].node if outputs and isinstance(outputs[0], Value) else x.node
            added = [parent for parent, _ in made.edges if parent.site < 0]
            node = added[0] if made is not x.node and made.is_sum and added else None
            return [Bias(x.node.site, b.entries, node)]
    return []


def _is_made_of_products(node: Node) -> bool:
    """Whether it is a product, or a sum of such alone."""
    if node.is_sum:
        return all(_is_made_of_products(parent) for parent, _ in node.edges)
    return node.is_product


def _is_one_a_feature(entries: np.ndarray, x: Value) -> bool:
    varied = tuple(
        k for k, one in enumerate(x.axes) if (has(one, BATCH) or has(one, POSITION)) and x.shape[k] > 1
    )
    try:
        entries = np.broadcast_to(entries, x.shape)
    except ValueError:
        return False
    first = entries[tuple(slice(0, 1) if k in varied else slice(None) for k in range(entries.ndim))]
    return bool((entries == first).all())
