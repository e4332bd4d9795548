"""Certified accuracy: what a guaranteed radius costs, by a penalty, a constraint and a parametrisation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from jaxact import activations, fit, lipschitz, nn
from jaxact.activations import Activation
from jaxact.nn import kernels
from train import chains, fields, runs, words
from train.blocks import network
from train.experiment import Cell, Finding, Progress
from train.optimizers import Adam, Optimizer
from train.study import Coordinate, Variable
from train.trial import TrainingStudy, cross_entropy, parts

CALLED = {  # the approaches, as a reader calls them
    "unconstrained": "unconstrained",
    "penalty": "penalty on the certificate",
    "spectral": "spectral-norm constraint",
    "orthogonal": "orthogonal layers",
}
APPROACHES = tuple(CALLED)
_STRENGTHS = {
    "penalty": "penalty_weights",
    "spectral": "spectral_constants",
    "orthogonal": "orthogonal_scales",
}
_MEMBER, _ATTACK = ("setting", "seed"), ("setting", "seed", "attack_radius")


@dataclass(frozen=True, kw_only=True)
class CertifiedAccuracy(TrainingStudy):
    """Train dense networks with a small Lipschitz constant in three ways and certify a radius about every test input.

    With a certified constant K of the logits z, no input within

        r = (z_y - max_{j != y} z_j) / (sqrt(2) K)

    of x has another class than y, since |z_y - z_j| changes by at most sqrt(2) K |dx| (Tsuzuku et al. 2018, section 4).

    Attributes:
        approaches: any of "unconstrained", "penalty", "spectral" and "orthogonal".
        activation: between any two layers.
        penalty_weights: of log K (the closed form of the certificate) beside the cross-entropy, from the loosest.
        spectral_constants: K of networks whose layers have spectral norms of at most 1, times K, from the loosest.
        orthogonal_scales: K of networks of orthogonal layers, times K, from the loosest.
        num_hidden: hidden layers, at least 2.
        max_radius: where the curves of certified accuracy end, in units of the standardised inputs.
        num_radii: points of these curves, evenly spaced; the attacks' radii are points besides.
        attack_radii: of the balls that projected gradient ascent searches for another class.
        attack_steps: of each search.
        num_attacked: held-out inputs, at most, that are attacked.
        refine_steps: of the certificate.
    """

    approaches: tuple[str, ...] = APPROACHES
    activation: Activation = activations.relu
    penalty_weights: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    spectral_constants: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0)
    orthogonal_scales: tuple[float, ...] = (30.0, 10.0, 3.0, 1.0)
    seeds: tuple[int, ...] = (0, 1)
    width: int = 64
    num_hidden: int = 3
    batch_size: int = 128
    num_steps: int = 500
    optimizer: Optimizer = Adam(schedule="cosine")
    learning_rate: float = 3e-3
    max_radius: float = 3.0
    num_radii: int = 61
    attack_radii: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    attack_steps: int = 30
    num_attacked: int = 200
    refine_steps: int = 100

    swept = {"approach": "approaches"}
    within = {"seed": "seeds", "attack_radius": "attack_radii"}
    coordinates = {
        "approach": Coordinate("how the Lipschitz constant is kept small"),
        "setting": Coordinate("strength, from the loosest"),
        "radius": Coordinate("radius about an input"),
        "attack_radius": Coordinate("radius of the attack"),
    }
    variables = {
        "strength": Variable("weight of the penalty, or constant of the logits", ("setting",)),
        "train_accuracy": Variable("train accuracy", _MEMBER),
        "test_accuracy": Variable("test accuracy", _MEMBER),
        "lipschitz": Variable("certified Lipschitz constant of the logits", _MEMBER),
        "median_radius": Variable("median certified radius, 0 where the class is wrong", _MEMBER),
        "certified_accuracy": Variable("certified accuracy", (*_MEMBER, "radius")),
        "attacked_accuracy": Variable("accuracy under attack", _ATTACK),
        "certified_among_attacked": Variable("certified accuracy on the attacked inputs", _ATTACK),
        "broken_certificates": Variable("inputs whose certificate was broken", _ATTACK, "inputs"),
    }

    def __post_init__(self) -> None:
        fields.check(
            self,
            approaches=fields.among(APPROACHES),
            **dict.fromkeys((*_STRENGTHS.values(), "attack_radii", "max_radius"), fields.positive),
            **dict.fromkeys(("attack_steps", "num_attacked"), fields.count),
            **dict.fromkeys(("num_hidden", "num_radii"), fields.at_least(2)),
            refine_steps=fields.not_negative,
        )

    def smoke(self) -> Self:
        """The loosest penalty and orthogonal layers, one seed, ten steps, nothing refined."""
        strengths = {name: getattr(self, name)[:1] for name in _STRENGTHS.values()}
        few = tuple(name for name in self.approaches if name in ("penalty", "orthogonal"))
        return (
            super()
            .smoke()
            .shrunk(
                **strengths,
                approaches=few or self.approaches[:1],
                width=min(self.width, 8),
                num_hidden=2,
                num_steps=10,
                num_radii=5,
                attack_steps=3,
                num_attacked=min(self.num_attacked, 20),
                refine_steps=0,
            )
        )

    def num_members(self) -> int:
        """How many networks a cell has side by side: every seed at every strength of the approach that has most."""
        return max(len(self.strengths(approach)) for approach in self.approaches) * len(self.seeds)

    def strengths(self, approach: str) -> tuple[float, ...]:
        """The settings of an approach, from the loosest."""
        return getattr(self, _STRENGTHS[approach]) if approach in _STRENGTHS else (0.0,)

    def radii(self) -> np.ndarray:
        """The radii of the curves of certified accuracy: evenly spaced ones, and those that are quoted and attacked."""
        even = np.linspace(0.0, self.max_radius, self.num_radii)
        is_quoted = (np.abs(even[:, None] - self.attack_radii) < 1e-9).any(axis=1)
        return np.sort([*even[~is_quoted], *self.attack_radii])

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """Train, certify and attack every strength and seed of one approach."""
        approach = cell.coords["approach"]
        strengths, data = self.strengths(approach), self.task.load().flat()
        trial = self.trial(
            self._network(approach, data), parts(data), loss=partial(self._loss, approach), strength=strengths
        )
        progress(0.0, "train")
        states, _ = trial.train(trial.start(), progress=lambda part, note: progress(0.4 * part, note))
        networks = trial.host(trial.program(partial(_chain_of, trial.network, approach))(states))
        found = []
        for member in range(trial.num_members):  # of the grid: seeds vary fastest
            strength = strengths[member // len(self.seeds)]
            progress(0.4 + 0.6 * member / trial.num_members, f"certify and attack at strength {strength:g}")
            found.append(self._evaluated(jax.tree.map(lambda leaf, i=member: leaf[i], networks), data))
        measured = jax.tree.map(lambda *each: np.asarray(each, float), *found)
        labels = {"radius": self.radii(), "setting": np.arange(1, len(strengths) + 1)}
        return {**measured, **labels, "strength": strengths, "compile_seconds": trial.compile_seconds}

    def _network(self, approach: str, data: Any) -> nn.Functional:
        if approach in ("spectral", "orthogonal"):
            sizes = (data.input_shape[0], *(self.width,) * self.num_hidden, data.num_classes)
            return nn.functional(partial(chains.Constrained, approach, sizes, self.activation))
        depth, scale = self.num_hidden - 1, math.sqrt(2)
        return network(data, width=self.width, max_depth=depth, activation=self.activation, sigma_w=scale)

    def _loss(self, approach, logits, labels, *, hparams, call):
        total = cross_entropy(_scale(approach, hparams) * logits, labels)
        if approach != "penalty":
            return total
        bound = lipschitz.upper_bound(call(kernels), self.activation, method="eclipse_fast")
        return total + hparams["strength"] * bound.log

    def _evaluated(self, chain: Any, data: Any) -> dict[str, Any]:
        """Margins, certificate and attack of one chain.

        What is certified is the network in exact arithmetic: the margins behind the radii are computed in float64.
        """
        f, steps = self.activation, self.refine_steps
        constant = float(lipschitz.upper_bound(chain[0], f, method="ellipsoid", num_steps=steps))
        with jax.enable_x64(True):  # of the float32 weights, to some 1e-13, which is not subtracted
            exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (chain, data.test_inputs))
            margins = np.asarray(chains.margins(f, *exact, data.test_labels))
        on_train = chains.margins(f, chain, data.train_inputs, data.train_labels)
        radii = margins / (math.sqrt(2) * constant)
        return {
            "train_accuracy": np.mean(np.asarray(on_train) > 0),
            "test_accuracy": np.mean(margins > 0),
            "lipschitz": constant,
            "median_radius": np.median(np.maximum(radii, 0)),
            "certified_accuracy": np.mean(radii[:, None] > self.radii(), axis=0),
            **self._under_attack(chain, data.test_inputs, data.test_labels, radii),
        }

    def _under_attack(self, chain: Any, *test: Any) -> dict[str, np.ndarray]:
        """What attacks of every radius leave of some inputs with their labels and certified radii."""
        inputs, labels, radii = (each[: self.num_attacked] for each in test)
        attack = partial(chains.attacked, self.activation, self.attack_steps, chain, inputs, labels)
        worst = np.stack([attack(radius) for radius in self.attack_radii], axis=1)
        is_certified = radii[:, None] > np.asarray(self.attack_radii)
        return {
            "attacked_accuracy": np.mean(worst > 0, axis=0),
            "certified_among_attacked": np.mean(is_certified, axis=0),
            "broken_certificates": np.sum(is_certified & (worst <= 0), axis=0),
        }

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        """The figures of the study, by name."""
        told: dict[str, Any] = {"over": "seed", "centre": "mean", "column": "approach", "format": ".0%"}
        called = {"approach": CALLED.get, "setting": partial(_rank, result.sizes["setting"])}
        return cls.drawn(result, _figures(result), **told, x_scale="linear", words=called)

    @classmethod
    def findings(cls, result: xr.Dataset) -> list[Finding]:
        """Say in sentences what the study found, the verdict first."""
        if not bool(result["certified_accuracy"].notnull().any()):
            return [Finding("Nothing to conclude: no network of this study was certified.")]
        table, middle = _summary(result), _middle(result)[1]
        others = [radius for radius in _quoted(result) if radius != middle]
        said = {
            "": [_at_radius(table, middle)],
            "Certified accuracy by radius": [_at_radius(table, radius) for radius in others],
            "Every strength": [_strengths(*group) for group in table.groupby("approach", sort=False)],
            "Attack": [_broken(result), _undecided(result, table)],
        }
        return Finding.by_topic(said)

    @classmethod
    def tables(cls, result: xr.Dataset) -> dict[str, pd.DataFrame]:
        """Every approach and strength: accuracy, constant, certified accuracies; means over seeds."""
        table = _summary(result).drop(columns="setting").round(3).replace({"approach": CALLED})
        apart = f"attacked inputs neither certified nor broken within radius {_middle(result)[0]:g}"
        caption = f"Means over {runs.seeds(result)}. Undecided: {apart}, as a share."
        return {"Every approach and strength": runs.table(table, caption)}


def _scale(approach: str, hparams: Mapping) -> Any:
    """What logits are multiplied by: the constant that layers of norm at most 1 are to have together."""
    return hparams["strength"] if approach in ("spectral", "orthogonal") else 1.0


def _chain_of(network: nn.Functional, approach: str, state: fit.State) -> Any:
    """Kernels and biases of a member's network, the logits' scale multiplied in."""
    weights, biases = network.apply(state.params, state.variables, method=chains.chain)[0]
    scale = _scale(approach, state.hparams)
    return [*weights[:-1], scale * weights[-1]], [*biases[:-1], scale * biases[-1]]


def _summary(result: xr.Dataset) -> pd.DataFrame:
    """A row for every approach and strength: means over seeds."""
    means = runs.quiet(lambda: result.astype(float).mean("seed"))
    names = {"test_accuracy": "test accuracy", "lipschitz": "K", "median_radius": "median radius"}
    columns = means[["strength", *names]].rename(names)
    for radius in _quoted(result):
        columns[f"certified at {radius:g}"] = means["certified_accuracy"].sel(radius=radius, drop=True)
    attacked = means.sel(attack_radius=_middle(result)[0], drop=True)
    columns["undecided"] = attacked["attacked_accuracy"] - attacked["certified_among_attacked"]
    return runs.rows(columns, by=["approach", "setting"], needed=["strength"])


def _on_grid(result: xr.Dataset, radius: float) -> float:
    """A radius whose certified accuracy was measured: this one, else the next larger, else the largest.

    What is certified within a larger radius is certified within this one; within a smaller one it need not be.
    """
    grid = np.sort(result["radius"])
    return float(grid[min(int(np.searchsorted(grid, radius)), len(grid) - 1)])


def _quoted(result: xr.Dataset) -> list[float]:
    """The radii that findings and table quote: the attack's."""
    return list(dict.fromkeys(_on_grid(result, radius) for radius in result["attack_radius"].to_numpy()))


def _middle(result: xr.Dataset) -> tuple[float, float]:
    """The attack's middle radius, and the radius of the curves that stands for it."""
    radius = float(result["attack_radius"].to_numpy()[result.sizes["attack_radius"] // 2])
    return radius, _on_grid(result, radius)


def _best(table: pd.DataFrame, radius: float) -> pd.DataFrame:
    """The strength of each approach with the highest certified accuracy at a radius, the first of equals."""
    rows = table.assign(certified=table[f"certified at {radius:g}"]).dropna(subset=["certified"])
    return rows.loc[rows.groupby("approach", sort=False)["certified"].idxmax()]


def _attacked_best(result: xr.Dataset) -> xr.Dataset:
    """Each approach at the strength that is best at the attack's middle radius."""
    settings = _best(_summary(result), _middle(result)[1]).set_index("approach")["setting"].to_xarray()
    return result.sel(approach=settings["approach"], setting=settings)


def _rank(count: int, setting: int) -> str:
    """A strength by its place: "1, loosest"."""
    ends = {count: ", tightest", 1: ", loosest"}  # a single one is the loosest
    return f"{setting}{ends.get(int(setting), '')}"


def _figures(result: xr.Dataset) -> dict[str, dict[str, Any]]:
    seeds = runs.seeds(result)
    return {
        "trade_off": {
            "values": "test_accuracy",
            "x": "median_radius",
            "series": "approach",
            "column": None,
            "tooltip": ("strength", "lipschitz"),
            "size": (420, 280),
            "title": "What does a certified radius cost in clean accuracy?",
            "subtitle": f"Each point a strength of the approach: mean over {seeds}, bars from lowest to highest",
            "caption": "Up and to the right is better. Half of the test inputs keep their class within the radius, "
            "proved by margin / (sqrt(2) K), the margin in float64; wrongly classified inputs count as 0. Units are "
            "those of the standardised inputs, whose length is about the square root of their number of pixels.",
        },
        "certified_accuracy": {
            "values": "certified_accuracy",
            "x": "radius",
            "series": "setting",
            "point_field": None,
            "most": result.sizes["radius"],
            "tooltip": ("strength",),
            "title": "How much accuracy is certified at which radius?",
            "subtitle": f"Share of test inputs that are right, with proof: mean over {seeds}, band over seeds",
            "caption": "A curve starts at the clean accuracy; no perturbation of a length can bring the accuracy below "
            "it. Tighter settings start lower and fall later.",
        },
        "attack": {
            "result": _attacked_best(result),
            "values": {
                "attacked_accuracy": "at most: under attack",
                "certified_among_attacked": "at least: certified",
            },
            "x": "attack_radius",
            "series": "quantity",
            "labels": {"value": "Test accuracy", "attack_radius": "Radius", "quantity": "Accuracy"},
            "title": "Between which bounds does the accuracy under perturbation lie?",
            "subtitle": f"At the strength best certified at radius {_middle(result)[1]:g}: mean and range of {seeds}",
            "caption": "Against the worst perturbation of a length the accuracy lies between what projected gradient "
            "descent on the margin leaves and what the certificate proves: close lines are a tight certificate.",
        },
    }


def _said(template: str, rows: pd.DataFrame) -> str:
    """A template filled from every row, the approach in a reader's words."""
    called = rows.assign(approach=rows["approach"].map(CALLED))
    return "; ".join(template.format_map(row) for row in called.to_dict("records"))


def _at_radius(table: pd.DataFrame, radius: float) -> str:
    """The approaches, the best at a radius first."""
    best = _best(table, radius).sort_values("certified", ascending=False, kind="stable")
    said = _said("{approach} {certified:.3f} (clean {test accuracy:.3f})", best)
    return f"Best certified accuracy at radius {radius:g}: {said}."


def _strengths(approach: str, rows: pd.DataFrame) -> str:
    """Accuracy, constant and radius at every strength of an approach."""
    at = "at {strength:g}: " if rows["strength"].any() else ""
    said = _said(at + "{test accuracy:.3f} (K {K:.3g}, median radius {median radius:.2f})", rows)
    return f"{words.capital(CALLED[approach])}, clean test accuracy: {said}."


def _broken(result: xr.Dataset) -> str:
    broken = int(result["broken_certificates"].sum())
    if broken:
        return f"The attack broke {words.count(broken, 'certificate')}: report it."
    tried = words.count(int(result["certified_among_attacked"].notnull().sum()), "attack")
    return f"No certificate was broken: in {tried} on networks, no input changed its class within its certified radius."


def _undecided(result: xr.Dataset, table: pd.DataFrame) -> str:
    radius, middle = _middle(result)
    return (
        f"Share of inputs within radius {radius:g} that are neither certified nor broken, at the strength with the "
        f"best certified accuracy at radius {middle:g}: {_said('{approach} {undecided:.2f}', _best(table, middle))}."
    )
