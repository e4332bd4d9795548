"""What findings are drawn from: the rows, what feeds what, the inputs, and derived numbers by product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jaxact.diagnosis._formula import Formula
from jaxact.diagnosis._rows import Row
from jaxact.diagnosis._sharpness import Sharpness
from jaxact.diagnosis._skeleton import INPUT, Mark, Skeleton

_SUMS_AND_NORMS = Mark.NORMED | Mark.SKIPPED
NOTHING = 1e-19  # whose square float32 does not hold: what is smaller was measured as 0


@dataclass(frozen=True)
class Evidence:
    """All that was measured of a model.

    Attributes:
        rows: of the diagnosis.
        skeleton: which products feed which.
        fields: of convolutions the number of positions of the window, 1 elsewhere.
        inputs: the floating-point inputs as [input, entry], or None.
        loss: its value.
        names: of the parameters' leaves.
        dtypes: of these.
        formulas: by row the activation that follows, or None.
        initialize: how `initialize` is called for a model of this form.
        fresh: by row the variance of a batch norm that follows with the statistics that it was made with.
        learning_rate: of the user, or None.
        sharpness: measured where there is a learning rate.
    """

    rows: tuple[Row, ...]
    skeleton: Skeleton
    fields: tuple[int, ...]
    inputs: np.ndarray | None
    loss: float
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    formulas: tuple[Formula | None, ...]
    initialize: str
    fresh: Mapping[int, float] = field(default_factory=dict)
    learning_rate: float | None = None
    sharpness: Sharpness | None = None

    def column(self, name: str) -> Float[np.ndarray, " row"]:
        """One number a row."""
        return np.array([getattr(row, name) for row in self.rows], float)

    @cached_property
    def weighted(self) -> list[int]:
        """The products with a parameter, in order."""
        return [k for k, row in enumerate(self.rows) if row.kind != "attention"]

    @cached_property
    def tied(self) -> frozenset[str]:
        """The parameters that act on what they made themselves at least four times, if half of all products do."""
        last: dict[str, int] = {}
        counts: Counter[str] = Counter()
        for k in self.weighted:
            name = self.rows[k].name
            counts[name] += last.get(name) in self.skeleton.before[k]
            last[name] = k
        tied = frozenset(name for name, count in counts.items() if count >= 3)
        share = [self.rows[k].name in tied or self._is_beside(k, tied) for k in self.weighted]
        return tied if np.mean(share) >= 1 / 2 else frozenset()

    def _is_beside(self, k: int, tied: frozenset[str]) -> bool:
        """Whether a product of the inputs is one of those that recurring products are added to."""
        return self.skeleton.source(k).sites == {INPUT} and any(
            self.rows[n].name in tied for n in self.skeleton.after(k)
        )

    @cached_property
    def gradients(self) -> Float[np.ndarray, " row"]:
        """The norm of the gradient at each product: its root mean square times the root of its size.

        The norm is what an orthogonal layer, pooling or a stride keep; an entry's size depends on how many there are.
        """
        sizes = np.array([np.prod(row.shape) for row in self.rows], float)
        return self.column("gradient") * np.sqrt(sizes)

    def source(self, k: int) -> int | None:
        """The one product whose activation, and nothing else, is a product's operand; None elsewhere."""
        origin = self.skeleton.source(k)
        if len(origin.sites) != 1 or origin.marks & (Mark.NORMED | Mark.SKIPPED):
            return None
        (j,) = origin.sites
        return None if j == INPUT else j

    def is_normed(self, k: int) -> bool:
        """Whether a norm of its own follows a product, so that its scale does not count; of a sum it does."""
        feeds = [each for n in self.skeleton.after(k) for each in self.skeleton.feeds[n] if k in each.sites]
        return bool(feeds) and all(each.marks & _SUMS_AND_NORMS == Mark.NORMED for each in feeds)

    def ends_branch(self, k: int) -> bool:
        """Whether a product is added to a shortcut."""
        feeds = [each for n in self.skeleton.after(k) for each in self.skeleton.feeds[n] if k in each.sites]
        return any(Mark.SKIPPED in each.marks for each in feeds)

    def share_marked(self, mark: Mark) -> float:
        """The share of products with a parameter whose operand has a mark."""
        return float(np.mean([mark in self.skeleton.source(k).marks for k in self.weighted]))


def flattened(batch: Any) -> np.ndarray | None:
    """Floating-point inputs as [input, entry]; None where there are none."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
    real = [leaf for leaf in leaves if np.issubdtype(leaf.dtype, np.floating) or leaf.dtype.kind == "V"]
    if not real:
        return None
    return np.concatenate([leaf.reshape(len(leaf), -1).astype(np.float64) for leaf in real], 1)
