"""What a walk keeps of a function: affine maps of the variables so far, composed only when they are needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxact.trace._expr import Expr, variable
from jaxact.trace._source import Place

#: what is asked of an affine map A v + b: itself, A v, or |A| v with |A| entry by entry
Mode: TypeAlias = Literal["affine", "linear", "absolute"]


class Node:
    """An array of the function; without an `apply`, a variable of the program.

    Attributes:
        shape: of the array.
        parents: what it is made of.
        origin: (node, formula) of which it is the value entry by entry, or None.
        is_leaf: whether it is a variable, which what comes after it starts from.
        leaves: the variables that it is an affine map of.
    """

    is_affine = False

    def __init__(
        self, shape: Sequence[int], parents: Sequence[Node] = (), origin: tuple[Node, Expr] | None = None
    ):
        self.shape, self.size = tuple(shape), math.prod(shape)
        self.parents, self.origin = tuple(parents), origin
        leaves = {leaf for parent in parents for leaf in parent.leaves}
        # A variable also where paths meet: otherwise every branch would stay in use to the end.
        self.is_leaf = not self.is_affine or len(leaves) > 1
        self.leaves: frozenset[Node] = frozenset([self]) if self.is_leaf else frozenset(leaves)

    def cut(self) -> None:
        """Make it a variable from now on."""
        self.is_leaf, self.leaves = True, frozenset([self])

    def uncut(self) -> None:
        """Make it an affine map of its parents' variables again."""
        self.is_leaf, self.leaves = False, frozenset(leaf for each in self.parents for leaf in each.leaves)

    def steps(self, fresh: Iterator[int], numbers: Mapping[Node, int]) -> Sequence[Any]:
        """The steps of a program that it becomes, the last of which defines it."""
        raise NotImplementedError


class Input(Node):
    """The function's argument."""


class Map(Node):
    """An affine map of its parents.

    Attributes:
        coefficients: for each parent the number or array that its entries are multiplied by, if it works entry by
            entry; else None.
    """

    is_affine = True
    coefficients: tuple[Any, ...] | None = None

    def apply(self, mode: Mode, *arrays: Any) -> Any:
        """Apply it to k arrays at once, [k, *shape] for each parent, of NumPy or of JAX."""
        raise NotImplementedError


class Gathered(Map):
    """Entries of its parents and of constants, all flattened and one after the other: those at `index` [*shape]."""

    def __init__(self, parents: Sequence[Node], index: np.ndarray, constants: np.ndarray | None = None):
        super().__init__(index.shape, parents)
        self.index = index
        self.constants = None if constants is None or constants.size == 0 else constants

    @property
    def is_plain(self) -> bool:
        """Whether they are entries of one parent alone."""
        return self.constants is None and len(self.parents) == 1

    def apply(self, mode: Mode, *arrays: Any) -> Any:
        xp, k = namespace(arrays), len(arrays[0])
        parts = [array.reshape(k, math.prod(array.shape[1:])) for array in arrays]
        if self.constants is not None:
            constants = self.constants if mode == "affine" else np.zeros_like(self.constants)
            parts.append(xp.broadcast_to(constants, (k, constants.size)))
        return (parts[0] if len(parts) == 1 else xp.concatenate(parts, 1))[:, self.index]


class Scaled(Map):
    """The formula a x + b of its parent, a and b numbers or one for each entry."""

    def __init__(self, parent: Node, expr: Expr):
        super().__init__(parent.shape, (parent,), (parent, expr))
        self.expr = expr
        self.scale, self.shift = (
            c.reshape(self.shape) if isinstance(c, np.ndarray) and c.ndim else c for c in expr.affine
        )
        self.factor = expr.affine[0]  # a number, or flattened
        self.coefficients = (self.factor,)

    def apply(self, mode: Mode, *arrays: Any) -> Any:
        (v,) = arrays
        if mode == "absolute":
            return abs(self.scale) * v
        return self.scale * v if mode == "linear" else self.scale * v + self.shift


class Sum(Map):
    """The sum x + sign y of two arrays."""

    def __init__(self, shape: Sequence[int], first: Node, second: Node, sign: float):
        super().__init__(shape, (first, second))
        self.sign = sign
        self.coefficients = (1.0, sign)

    def apply(self, mode: Mode, *arrays: Any) -> Any:
        s, t = (array.reshape(len(array), *self.shape) for array in arrays)
        return s + t if mode == "absolute" or self.sign == 1 else s - t


class Total(Map):
    """The sums over `axes` of an array [*grid], the shape that it is taken in."""

    def __init__(self, parent: Node, grid: Sequence[int], axes: Sequence[int]):
        super().__init__([size for d, size in enumerate(grid) if d not in axes], (parent,))
        self.grid, self.axes = tuple(grid), tuple(axes)

    def apply(self, mode: Mode, *arrays: Any) -> Any:
        return arrays[0].reshape(len(arrays[0]), *self.grid).sum(tuple(axis + 1 for axis in self.axes))

    @property
    def positions(self) -> np.ndarray:
        """[sum, term]: the entries of each sum."""
        kept = [d for d in range(len(self.grid)) if d not in self.axes]
        order = np.arange(math.prod(self.grid)).reshape(self.grid).transpose(*kept, *self.axes)
        return order.reshape(self.size, -1)


class Bound(Map):
    """A primitive of JAX with its constants, as a linear map of what is left.

    `call` is the primitive, `places` the positions of the parents among its operands, `constants` the others, None for
    a parent, of which those in `linear` count as 0 where the map itself is asked for; `is_product` says that it is
    linear in those as well, so that they count as they are. `host` is its twin: (dependent places, *operands) by NumPy.
    """

    def __init__(
        self,
        shape: Sequence[int],
        parents: Sequence[Node],
        call: Callable[..., Any],
        places: Sequence[int],
        shapes: Sequence[tuple[int, ...]],
        constants: Sequence[Any],
        *,
        linear: Sequence[int] = (),
        is_product: bool = False,
        host: Callable[..., Any] | None = None,
    ):
        super().__init__(shape, parents)
        self.call, self.places, self.shapes, self.host = call, tuple(places), shapes, host
        self.constants, self.linear, self.is_product = list(constants), tuple(linear), is_product

    def apply(self, mode: Mode, *arrays: Any) -> Any:
        given = [array.reshape(len(array), *shape) for array, shape in zip(arrays, self.shapes, strict=True)]
        filled = self._filled(mode)
        is_host = namespace(arrays) is np
        if is_host and self.host is not None:
            for i, array in zip(self.places, given, strict=True):
                filled[i] = array
            return self.host(self.places, *filled)

        def one(*parts: Any) -> Any:
            for i, part in zip(self.places, parts, strict=True):
                filled[i] = part
            return self.call(*filled)

        result = jax.vmap(one)(*given)
        return np.asarray(result) if is_host else result

    def _filled(self, mode: Mode) -> list[Any]:
        filled = list(self.constants)
        for i in self.linear:
            if filled[i] is None or mode == "affine":
                continue
            if not self.is_product:
                filled[i] = np.zeros_like(filled[i])
            elif mode == "absolute":
                filled[i] = np.abs(filled[i])
        return filled


def namespace(arrays: Iterable[Any]) -> Any:
    """NumPy if all arrays are NumPy's, else jax.numpy."""
    return np if all(isinstance(array, np.ndarray) for array in arrays) else jnp


@dataclass(frozen=True)
class Value:
    """The array expr(node), entry by entry.

    Attributes:
        node: what the formula is of.
        expr: the formula.
        shape: of the array, of as many entries as the node.
        place: of the last operation of the formula.
    """

    node: Node
    expr: Expr
    shape: tuple[int, ...]
    place: Place | None = None

    @property
    def size(self) -> int:
        return self.node.size

    @property
    def is_plain(self) -> bool:
        """Whether it is the node itself."""
        return self.expr.op == "var"

    def reshaped(self, shape: Sequence[int]) -> Value:
        return replace(self, shape=tuple(shape))


def whole(node: Node, shape: Sequence[int] | None = None) -> Value:
    """A node as a value."""
    return Value(node, variable(), node.shape if shape is None else tuple(shape))


def positions(value: Value) -> np.ndarray:
    """[*shape]: the place of each entry in the flattened node."""
    return np.arange(value.size).reshape(value.shape)
