"""The ends of the singular values of the Jacobian from one input to every product."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxact.diagnosis._reading import Reading
from jaxact.diagnosis._taps import Path, Plan, Tap, evaluate

_SMALL = 64  # entries of an input whose whole Jacobian is formed
_STEPS = 1.2  # of power iteration for each input of the batch: two or three gradient steps in all
_FIRST = 10  # further steps for the first row
MANY = 16  # products written out, of which a further program is only compiled when asked for


class Ends(NamedTuple):
    """One number a row.

    Attributes:
        largest: singular value; at most the true one, where it is an estimate.
        smallest: NaN where it is not exact.
        is_exact: whether the whole Jacobian was formed.
    """

    largest: Float[np.ndarray, " row"]
    smallest: Float[np.ndarray, " row"]
    is_exact: bool


def no_ends(num_rows: int) -> Ends:
    """Where there is nothing to differentiate by."""
    return Ends(np.full(num_rows, np.nan), np.full(num_rows, np.nan), False)


def jacobian_ends(closed: Any, reading: Reading, params: Any, example: Any, batch_size: int) -> Ends:
    """Singular values of dz / dx at one input x, for every product z.

    Up to 64 entries of x: exactly, from the whole Jacobian. Beyond: power iteration by jvp and vjp. Row after row
    starts from the direction that the row before it ended with, for the Jacobian of a layer is the next one's factor;
    the number of iterations is what two or three gradient steps on the batch pay for, from 2 to 20;
    the first row, which starts from nothing, has 10 more.

    Args:
        closed: the jaxpr for a batch of this one input.
        reading: of that.
        params: of the model.
        example: a batch of one input, all of it floating point.
        batch_size: of the batch that the time may be compared with.
    """
    x, unravel = ravel_pytree(example)
    run = _Products(closed, reading, jax.tree.leaves(params), unravel)
    if x.size <= _SMALL:
        largest, smallest = jax.jit(run.exact)(x)
        return Ends(np.asarray(largest), np.asarray(smallest), True)
    num_rows = len(reading.sites)
    num_iterations = int(np.clip(_STEPS * batch_size / num_rows, 2, 20))
    found = jax.device_get(run.estimated(x, num_iterations))
    return Ends(np.asarray(found), np.full(num_rows, np.nan), False)


class _Products:
    """Every product of a model as a function of one input."""

    def __init__(self, closed: Any, reading: Reading, leaves: list[Any], unravel: Any):
        self.closed, self.leaves, self.unravel = closed, leaves, unravel
        self.sites = reading.sites
        taps = {site.key[0]: Tap(lambda z: {"z": z.astype(jnp.float32)}, False) for site in self.sites}
        self.plan = Plan(taps, reading.loops)
        self.shapes = {path: self.plan.turns(path) for path in taps}
        #: for each path and row the turn of its loops, -1 where the row is another path's
        self.turns = {path: np.full(len(self.sites), -1) for path in taps}
        for k, site in enumerate(self.sites):
            shape = self.shapes[site.key[0]]
            self.turns[site.key[0]][k] = np.ravel_multi_index(site.key[1], shape) if shape else 0

    def __call__(self, x: Array) -> dict[Path, Array]:
        """[turns, entries] at each place."""
        args = [*self.leaves, *jax.tree.leaves(self.unravel(x))]
        found = evaluate(self.plan, self.closed.jaxpr, self.closed.consts, args, None)[1]
        return {path: found[path]["z"].reshape(math.prod(self.shapes[path]), -1) for path in found}

    def exact(self, x: Array) -> tuple[Array, Array]:
        """The largest and smallest singular value of each row."""
        columns = jax.vmap(lambda v: jax.jvp(self, (x,), (v,))[1])(jnp.eye(x.size, dtype=x.dtype))
        values = {
            path: jnp.linalg.svd(jnp.transpose(J, (1, 2, 0)), compute_uv=False) for path, J in columns.items()
        }
        rows = [values[site.key[0]][self.turns[site.key[0]][k]] for k, site in enumerate(self.sites)]
        return jnp.stack([row[0] for row in rows]), jnp.stack([row[-1] for row in rows])

    def _step(self, x: Array, v: Array, row: Array | int) -> tuple[Array, Array]:
        """Power iteration for one row: (the next direction, the length that it was stretched to)."""
        _, push = jax.linearize(self, x)
        pull = jax.linear_transpose(push, x)
        turns = {path: jnp.asarray(each) for path, each in self.turns.items()}

        def at(row: Array | int, products: dict[Path, Array]) -> dict[Path, Array]:
            return {
                path: z * jax.nn.one_hot(turns[path][row], z.shape[0], dtype=z.dtype)[:, None]
                for path, z in products.items()
            }

        u = at(row, push(v))
        size = jnp.sqrt(sum(jnp.sum(jnp.square(each)) for each in u.values()))
        (w,) = pull({path: each / jnp.where(size > 0, size, 1) for path, each in u.items()})
        norm = jnp.linalg.norm(w)  # of J^T u, |u| = 1: no less than |J v|, no more than the largest
        return jnp.where(norm > 0, w / jnp.where(norm > 0, norm, 1), v), norm

    def estimated(self, x: Array, num_iterations: int) -> list[Array]:
        """A lower end of the largest singular value of each row.

        The loop is Python's: XLA runs convolutions within its own loops several times slower on a CPU.
        """
        start = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
        v, found = start / jnp.linalg.norm(start), []
        step = jax.jit(self._step)
        for row in range(len(self.sites)):
            for _ in range(num_iterations if row else num_iterations + _FIRST):
                v, norm = step(x, v, row)
            found.append(norm)
        return found
