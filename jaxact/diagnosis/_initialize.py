"""A model's weights at the scale that theory or its own data asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxact.diagnosis._arguments import Traced, read_again, traced
from jaxact.diagnosis._branches import parts
from jaxact.diagnosis._draws import Entries, drawn
from jaxact.diagnosis._initialization import Change, Initialization
from jaxact.diagnosis._norms import batch_note, fresh_note
from jaxact.diagnosis._notes import notes
from jaxact.diagnosis._probes import probes
from jaxact.diagnosis._reading import Reading
from jaxact.diagnosis._rescale import Rescale, along_features
from jaxact.diagnosis._skeleton import Skeleton
from jaxact.diagnosis._solve import Solution, are_measured, solve
from jaxact.errors import ArgumentError

_SWEEPS = 3
_CLOSE = 1e-3  # relative, of a factor: no further sweep
_CHOICES: dict[str, tuple[Any, ...]] = {
    "method": ("theory", "data"),
    "weights": ("gaussian", "orthogonal", "delta_orthogonal", None),
    "target": ("forward", "backward", "critical"),
}


def initialize(
    fn: Any,
    params: Any,
    batch_or_shape: Any = None,
    *,
    method: Literal["theory", "data"] = "theory",
    weights: Literal["gaussian", "orthogonal", "delta_orthogonal"] | None = "orthogonal",
    target: Literal["forward", "backward", "critical"] = "critical",
    key: Any = None,
) -> Initialization:
    """Give every weight of a model the scale at which signals, or gradients, keep their size.

    A weight is a parameter that is an operand of a product, as `diagnose` finds them: within jit, scan (each turn's row
    by itself), custom derivatives and remat. The second moment of every product becomes, where `target` asks no less,

        1,   1 / n for each of n products that are added up,   1 / L for the last product of each of L residual branches

    (1 / (L (1 - r) + L^2 r) where a branch's output has a mean, r = mean^2 / second moment), so that a preactivation
    has second moment 1 and a stream at most about 2. A weight that several products share gets the geometric mean of
    what each asks for. Before a norm over the batch, which takes the scale out again, the second moment is 1
    whatever the target. Their biases become 0. All other parameters stay as they are, bit for bit.

    Args:
        fn: as in `diagnose`.
        params: as in `diagnose`; left out for a module: `initialize(module, batch)`.
        batch_or_shape: inputs as in `diagnose`; or the shape of an array of inputs, which are then standard normal.
        method: theory: each scale follows from the graph of predicted statistics, exact at infinite width; what cannot
            be predicted (max pooling, for one) is measured. What the drawn numbers add at finite width, a relative
            variance of a second moment of up to 5 / width a layer, which grows with depth, is taken out in one pass of
            normal inputs that have the batch's mean, second moment and correlations; not with target="backward".
            data: every product is measured on the batch itself and rescaled on the way, in at most three passes of one
            compiled program (LSUV, Mishkin & Matas 2016, arXiv:1511.06422, on a graph).
        weights: drawn anew, orthogonal: Haar, of a convolution the matrix of window times channels by channels;
            delta_orthogonal: the same, but of convolutions that do not narrow the middle of the window alone (Xiao et
            al. 2018), isometric at any depth, mixing no positions at first, so that shallow ones that average over
            positions learn slowly; or gaussian. None rescales the given values.
        target: critical: the gradient's squared norm is the same before and after a product, sigma_w^2 E f'(z)^2 = 1,
            and biases of standard deviation sigma_b add what is then missing to a second moment of 1, as at the
            critical point (Schoenholz et al. 2017) with q_star = 1, see `jaxact.theory.critical_point`; He's scale for
            relu. Where no such scale keeps the signal (E f^2 > E f'^2, as of a sigmoid), forward, and a note says so.
            forward: the second moments above. backward: a gradient's second moment is the same before and after. With
            method="data" the second moments are those that theory finds for the target.
        key: of the draws; by default jax.random.key(0).

    Returns:
        An `Initialization`: `params`, a table of `changes`, and `notes` on what no scale can mend.

    Raises:
        ValueError: as in `diagnose`; or `method`, `weights` or `target` is none of these.
        TypeError: as in `diagnose`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def model(w, x):
        ...     return jax.lax.scan(lambda h, w: (jax.nn.relu(h) @ w, None), x, w)[0]
        >>> found = initialize(model, jnp.zeros((3, 512, 512)), (32, 512))
        >>> [(round(each.new**2), round(each.second_moment, 2)) for each in found.changes]
        [(2, 1.0), (2, 1.0), (2, 1.0)]
    """
    for name, value in (("method", method), ("weights", weights), ("target", target)):
        _check_choice(name, value)
    key_draws, key_inputs, key_probes = jax.random.split(jax.random.key(0) if key is None else key, 3)
    is_module = batch_or_shape is None
    batch = _inputs(params if is_module else batch_or_shape, key_inputs)
    model = traced(fn, batch, None, None) if is_module else traced(fn, params, batch, None)
    given = jax.tree.leaves(model.params if is_module else params)
    run = _Run(model, given, method, weights, target, key_draws)
    return run.result(probes(model.batch, key_probes))


def _check_choice(name: str, value: Any) -> None:
    if value not in _CHOICES[name]:
        told = ", ".join(map(repr, _CHOICES[name]))
        raise ArgumentError(f"must be one of {told}, got {value!r}.", "Write one of these.", argument=name)


def _inputs(batch: Any, key: Any) -> Any:
    is_shape = isinstance(batch, tuple | list) and bool(batch) and all(isinstance(n, int) for n in batch)
    if not is_shape:
        return batch
    if min(batch) < 1:
        raise ArgumentError(
            f"must have positive lengths, got {tuple(batch)}.",
            "The first is the number of inputs: (64, 784).",
            argument="batch_or_shape",
        )
    return jax.random.normal(key, tuple(batch))


class _Run:
    """The parameters on their way, and the products that each weight is in."""

    def __init__(
        self, model: Traced, given: Sequence[Any], method: str, weights: str | None, target: str, key: Any
    ):
        self.model, self.given, self.target, self.key = model, given, target, key
        self.method, self.kind = method, weights
        self.entries = Entries(jax.tree.leaves(model.params))
        self.numbers = self.entries.numbers()
        self.reading = self._read()
        self.groups = _groups(self.reading, self.entries.values.size)
        self.parts, self.chains = parts(self.reading)
        skeleton = Skeleton(model.closed, self.reading, len(given))
        self.batch_normed = skeleton.batch_normed
        for k in self.batch_normed:
            self.parts[k] = self.parts[k]._replace(is_batch_normed=True)
        self._agree()
        self.old = self._scales()
        count = len(self.reading.sites)
        self.is_shared = np.array([len(self.groups.get(k, ())) > 1 for k in range(count)])
        self.rescale = Rescale(model.closed, self.reading)
        self.measured = np.zeros(count, bool)

    def result(self, pictured: Any) -> Initialization:
        """Draw, scale, and tell; by theory the pictured inputs take out what the draw adds."""
        if self.kind is not None or self.target == "critical":
            self._draw()
        is_solved = self.method == "theory" or self.target != "forward"
        solution = self._solved() if is_solved else None
        second = solution.second if solution is not None else np.full(len(self.parts), np.nan)
        if self.method == "data":
            targets = np.array([part.second for part in self.parts])
            targets = targets if solution is None else np.where(np.isfinite(second), second, targets)
            second = self._fitted(targets, self.model.batch)
        elif self.target != "backward":
            self._fitted(np.where(self.measured, np.nan, second), pictured, self._by_chance())
        reading = self._read()
        if solution is None:  # what the notes on gradients are read from
            is_kept = np.ones(len(self.parts), bool)
            solution = self._walked(reading, is_kept, self._measured(reading, is_kept))
        names = [site.name for site in reading.sites]
        told = [
            *fresh_note(
                reading.norms.sites,
                names,
                self.model.kind,
                self.model.names,
                then="Scales are those without a norm.",
            ),
            *batch_note(self.batch_normed, names),
            *notes(reading, self.parts, self.chains, solution, second, self.groups, self.target),
        ]
        leaves = [
            old if new is same else new
            for old, same, new in zip(self.given, self.entries.leaves, self.entries.current(), strict=True)
        ]
        tree = jax.tree.unflatten(jax.tree.structure(self.model.params), leaves)
        return Initialization(
            self.model.rebuild(tree), self._changes(second, solution.is_forward), tuple(told)
        )

    def _agree(self) -> None:
        """A shared weight has one target: the smallest."""
        for _, own in self._unique_groups():
            least = min((self.parts[k] for k in own), key=lambda part: part.second)
            for k in own:
                self.parts[k] = least

    # --- The steps ----------------------------------------------------------------------------------------------------

    def _read(self) -> Reading:
        return read_again(self.model, self.entries.current(is_law=True), self.numbers)

    def _draw(self) -> None:
        """Fresh weights of mean square 1 / fan-in, an entry by the first product that it is in; biases 0, or normal."""
        is_drawn = np.zeros(self.entries.values.size, bool)
        for k, site in enumerate(self.reading.sites):
            if site.weight is None or self.kind is None:
                continue
            own = site.weight.entries
            fresh = np.where((own >= 0) & ~is_drawn[own], own, -1)
            if (fresh >= 0).any():
                self.entries.write(fresh, drawn(jax.random.fold_in(self.key, k), site.weight, self.kind))
                is_drawn[own[own >= 0]] = True
        key = jax.random.fold_in(self.key, len(self.reading.sites))
        for k, bias in enumerate(self.reading.biases):
            own = np.unique(bias.entries[bias.entries >= 0])
            if is_drawn[own].any():
                continue
            normal = self.target == "critical"
            values = jax.random.normal(jax.random.fold_in(key, k), own.shape) if normal else 0.0
            self.entries.write(own, np.asarray(values, np.float64))
            is_drawn[own] = True

    def _solved(self) -> Solution:
        """Scales by theory: one walk; two more where weights are shared or products measured."""
        is_kept = np.zeros(len(self.parts), bool)
        for _ in range(_SWEEPS):
            reading = self._read()
            measured = self._measured(reading, is_kept)
            solution = self._walked(reading, is_kept, measured)
            factors = solution.factor.copy()
            if measured:
                only = are_measured(reading) & ~is_kept
                factors[only], solution.second[only] = (
                    measured["factor"][only],
                    measured["second_moment"][only],
                )
                self.measured = only | self.measured
            moved = self._apply(factors)
            self._apply_biases(reading, solution)
            is_once = not measured and not self.is_shared.any()
            if is_once or moved < _CLOSE:
                break
            is_kept = self.is_shared
        return solution

    def _walked(self, reading: Reading, is_kept: np.ndarray, measured: Mapping[str, Any]) -> Solution:
        return solve(reading, self.parts, self.target, is_kept, measured)

    def _measured(self, reading: Reading, is_kept: np.ndarray) -> dict[str, np.ndarray]:
        """What the batch says where theory does not: numbers as they are once rescaled, and the factors."""
        if not any(site.reason for site in reading.sites):
            return {}
        targets = np.array([part.second for part in self.parts])
        found, factor = self._pass(np.where(is_kept, np.nan, targets), self.model.batch)
        return {
            "mean": found["mean"] * factor,
            "second_moment": found["second_moment"] * factor**2,
            "cosine": found["cosine"],
            "factor": factor,
        }

    def _pass(self, targets: np.ndarray, batch: Any) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """One run: (numbers before a product is rescaled, factors)."""
        targets = np.where([site.weight is None for site in self.reading.sites], np.nan, targets)
        found = self.rescale(self.entries.current(), batch, targets, self._biases())
        return found, np.where(np.isfinite(found["factor"]), found["factor"], 1.0)

    def _biases(self) -> dict[int, np.ndarray]:
        """What is added to each product, where the target wants it: n numbers agree by chance with a mean of z."""
        if self.target != "critical":
            return {}
        values = {
            bias.site: along_features(self.entries.values[bias.entries], self.reading.sites[bias.site])
            for bias in self.reading.biases
            if (bias.entries >= 0).all()
        }
        return {site: each for site, each in values.items() if each is not None}

    def _fitted(self, targets: np.ndarray, batch: Any, most: Any = np.inf) -> np.ndarray:
        """Scales by a batch, each factor's |log| at most so much; the second moments that they lead to.

        Shared weights are found first, then stay. A product that asks for more is left to theory from then on.
        """
        is_kept = np.zeros(len(targets), bool)
        for _ in range(_SWEEPS):
            _, factor = self._pass(np.where(is_kept, np.nan, targets), batch)
            is_beyond = np.abs(np.log(factor)) > most
            if is_beyond.any():
                targets = np.where(is_beyond, np.nan, targets)
                continue
            if self._apply(factor) < _CLOSE:
                break
            is_kept = self.is_shared
        return self._pass(np.full(len(targets), np.nan), batch)[0]["second_moment"]

    def _by_chance(self) -> np.ndarray:
        """The largest |log| of a factor that the drawn numbers explain: six deviations of a relative 5 / width."""
        widths = [
            min(
                site.weight.entries.shape[1] // max(math.prod(site.weight.receptive), 1),
                site.weight.entries.shape[2],
            )
            if site.weight is not None
            else 1
            for site in self.reading.sites
        ]
        return 3 * np.sqrt(5 / np.array(widths, float))

    def _apply(self, factors: np.ndarray) -> float:
        """Scale every weight by the geometric mean of its factors; the largest |log| of these."""
        largest = 0.0
        for _, own in self._unique_groups():
            given = [factors[k] for k in own if np.isfinite(factors[k]) and factors[k] > 0]
            if not given:
                continue
            log = float(np.mean(np.log(given)))
            weights = [self.reading.sites[k].weight for k in own]
            self.entries.scale(
                np.concatenate([w.entries.reshape(-1) for w in weights if w is not None]), np.exp(log)
            )
            largest = max(largest, abs(log))
        return largest

    def _apply_biases(self, reading: Reading, solution: Solution) -> None:
        """Biases of variance 1 to what theory wants of them."""
        if self.target != "critical":
            return
        done = np.zeros(self.entries.values.size, bool)
        for bias in reading.biases:
            own = np.unique(bias.entries[bias.entries >= 0])
            size = np.sqrt(np.mean(self.entries.values[own] ** 2)) if own.size else 0.0
            if not done[own].any() and size > 0:
                self.entries.scale(own, np.sqrt(solution.bias[bias.site]) / size)
                done[own] = True

    # --- What is told -------------------------------------------------------------------------------------------------

    def _unique_groups(self) -> list[tuple[int, tuple[int, ...]]]:
        return [(k, own) for k, own in self.groups.items() if k == own[0]]

    def _scales(self) -> np.ndarray:
        """sigma_w of every product's weight, as its entries are."""
        scales = np.full(len(self.reading.sites), np.nan)
        for k, site in enumerate(self.reading.sites):
            if site.weight is not None:
                values = self.entries.values[site.weight.entries[site.weight.entries >= 0]]
                scales[k] = np.sqrt(site.fan_in * np.mean(values**2))
        return scales

    def _changes(self, second: np.ndarray, is_forward: np.ndarray) -> tuple[Change, ...]:
        new, deviations = self._scales(), self._deviations()
        return tuple(
            self._change(k, own, second, is_forward[k], new, deviations) for k, own in self._unique_groups()
        )

    def _change(
        self, k: int, own: tuple[int, ...], second: np.ndarray, is_forward: Any, new: np.ndarray,
        deviations: dict[int, float],
    ) -> Change:  # fmt: skip
        site, known = self.reading.sites[k], [second[j] for j in own if second[j] > 0]
        reason = self.parts[k].reason if is_forward or self.measured[k] else self.target
        reason += f", shared by {len(own)} products" if len(own) > 1 else ""
        reason += ", measured" if self.measured[k] or self.method == "data" else ""
        return Change(
            name=site.name,
            line=site.place.short,
            kind=site.kind,
            old=float(self.old[k]),
            new=float(new[k]),
            factor=float(new[k] / self.old[k]) if self.old[k] > 0 else float("inf"),
            second_moment=float(np.exp(np.mean(np.log(known)))) if known else float(second[k]),
            bias=deviations.get(k, float("nan")),
            reason=reason,
        )

    def _deviations(self) -> dict[int, float]:
        return {
            bias.site: float(np.sqrt(np.mean(self.entries.values[bias.entries[bias.entries >= 0]] ** 2)))
            for bias in self.reading.biases
            if (bias.entries >= 0).any()
        }


def _groups(reading: Reading, num_entries: int) -> dict[int, tuple[int, ...]]:
    """Of each product with a weight the numbers of all that share entries with it, in order."""
    owner = np.full(num_entries, -1)
    parent: dict[int, int] = {}

    def root(k: int) -> int:
        while parent[k] != k:
            k = parent[k]
        return k

    for k, site in enumerate(reading.sites):
        if site.weight is None:
            continue
        parent[k] = k
        own = site.weight.entries[site.weight.entries >= 0]
        for other in np.unique(owner[own]):
            if other >= 0:
                low, high = sorted((root(int(other)), root(k)))
                parent[high] = low
        owner[own] = k
    members: dict[int, list[int]] = {}
    for k in parent:
        members.setdefault(root(k), []).append(k)
    return {k: tuple(members[root(k)]) for k in parent}
