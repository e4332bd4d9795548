"""Certified accuracy: what a guaranteed radius costs, by a penalty, a constraint and a parametrisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from flax import nnx

from jaxact import activations, fit, lipschitz, nn
from jaxact.activations import Activation
from jaxact.nn import OrthogonalLinear, SpectralNorm, kernels
from train import fields, runs, words
from train import figures as draw
from train.blocks import network
from train.experiment import Cell, Finding, Progress
from train.optimizers import Adam, Optimizer
from train.study import Coordinate, Variable
from train.trial import TrainingStudy, Trial, cross_entropy, parts

CALLED = {  # the approaches, as a reader calls them
    "unconstrained": "unconstrained",
    "penalty": "penalty on the certificate",
    "spectral": "spectral-norm constraint",
    "orthogonal": "orthogonal layers",
}
APPROACHES = tuple(CALLED)
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
        learning_rate: of the optimiser; its schedule may lower it.
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
        "broken_certificates": Variable(
            "inputs that changed their class within the certified radius", _ATTACK, "inputs"
        ),
    }

    def __post_init__(self) -> None:
        strengths = ("penalty_weights", "spectral_constants", "orthogonal_scales")
        fields.check(
            self,
            approaches=fields.among(APPROACHES),
            **dict.fromkeys((*strengths, "attack_radii", "max_radius"), fields.positive),
            **dict.fromkeys(("attack_steps", "num_attacked"), fields.count),
            **dict.fromkeys(("num_hidden", "num_radii"), fields.at_least(2)),
            refine_steps=fields.not_negative,
        )

    def smoke(self) -> Self:
        """The loosest penalty and orthogonal layers, one seed, ten steps, nothing refined."""
        return replace(
            self,
            approaches=tuple(name for name in self.approaches if name in ("penalty", "orthogonal"))
            or self.approaches[:1],
            penalty_weights=self.penalty_weights[:1],
            spectral_constants=self.spectral_constants[:1],
            orthogonal_scales=self.orthogonal_scales[:1],
            seeds=self.seeds[:1],
            width=min(self.width, 8),
            num_hidden=2,
            num_steps=10,
            num_radii=5,
            attack_radii=self.attack_radii[:1],
            attack_steps=3,
            num_attacked=min(self.num_attacked, 20),
            refine_steps=0,
        )

    def strengths(self, approach: str) -> tuple[float, ...]:
        """The settings of an approach, from the loosest."""
        return {
            "unconstrained": (0.0,),
            "penalty": self.penalty_weights,
            "spectral": self.spectral_constants,
            "orthogonal": self.orthogonal_scales,
        }[approach]

    def radii(self) -> np.ndarray:
        """The radii of the curves of certified accuracy: evenly spaced ones, and those that are quoted and attacked."""
        quoted = np.asarray(self.attack_radii)
        even = np.linspace(0.0, self.max_radius, self.num_radii)
        is_quoted = (np.abs(even[:, None] - quoted) < 1e-9).any(axis=1)
        return np.sort(np.concatenate([even[~is_quoted], quoted]))

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """Train, certify and attack every strength and seed of one approach."""
        approach = cell.coords["approach"]
        strengths, data = self.strengths(approach), self.task.load().flat()
        trial = self._trial(approach, data)
        progress(0.0, "train")
        states, _ = trial.train(trial.start(), progress=lambda part, note: progress(0.4 * part, note))
        chains = trial.host(trial.program(partial(self._chain, trial, approach))(states))
        found = []
        for member in range(trial.num_members):  # of the grid: seeds vary fastest
            strength = strengths[member // len(self.seeds)]
            progress(0.4 + 0.6 * member / trial.num_members, f"certify and attack at strength {strength:g}")
            found.append(self._evaluated(jax.tree.map(lambda leaf, i=member: leaf[i], chains), data))
        measured = {name: np.asarray([each[name] for each in found], float) for name in found[0]}
        labels = {"radius": self.radii(), "setting": np.arange(1, len(strengths) + 1)}
        return {**measured, **labels, "strength": strengths, "compile_seconds": trial.compile_seconds}

    def _trial(self, approach: str, data: Any) -> Trial:
        network, loss = self._network(approach, data), partial(self._loss, approach)
        return self.trial(network, parts(data), loss=loss, strength=self.strengths(approach))

    def _network(self, approach: str, data: Any) -> nn.Functional:
        if approach in ("spectral", "orthogonal"):
            sizes = (data.input_shape[0], *(self.width,) * self.num_hidden, data.num_classes)
            return nn.functional(partial(_Constrained, approach, sizes, self.activation))
        depth, scale = self.num_hidden - 1, math.sqrt(2)
        return network(data, width=self.width, max_depth=depth, activation=self.activation, sigma_w=scale)

    def _loss(
        self, approach: str, logits: jax.Array, labels: jax.Array, *, hparams: Mapping, call: Callable
    ) -> jax.Array:
        total = cross_entropy(_scale(approach, hparams) * logits, labels)
        if approach != "penalty":
            return total
        bound = lipschitz.upper_bound(call(kernels), self.activation, method="eclipse_fast")
        return total + hparams["strength"] * bound.log

    def _chain(self, trial: Trial, approach: str, state: fit.State) -> Any:
        """Kernels and biases of a network, the logits' scale multiplied in."""
        weights, biases = trial.network.apply(state.params, state.variables, method=_chain)[0]
        scale = _scale(approach, state.hparams)
        weights[-1], biases[-1] = scale * weights[-1], scale * biases[-1]
        return weights, biases

    def _evaluated(self, chain: Any, data: Any) -> dict[str, Any]:
        """Margins, certificate and attack of one chain.

        What is certified is the network in exact arithmetic: the margins behind the radii are computed in float64.
        """
        bound = lipschitz.upper_bound(
            chain[0], self.activation, method="ellipsoid", num_steps=self.refine_steps
        )
        constant, inputs, labels = float(bound), data.test_inputs, data.test_labels
        with jax.enable_x64(True):  # of the float32 weights, to some 1e-13, which is not subtracted
            exact = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), chain)
            margins = np.asarray(_margins(self.activation, exact, jnp.asarray(inputs, jnp.float64), labels))
        radii, count = margins / (math.sqrt(2) * constant), self.num_attacked
        on_train = np.asarray(_margins(self.activation, chain, data.train_inputs, data.train_labels))
        found = {
            "train_accuracy": np.mean(on_train > 0),
            "test_accuracy": np.mean(margins > 0),
            "lipschitz": constant,
            "median_radius": np.median(np.maximum(radii, 0)),
            "certified_accuracy": np.mean(radii[:, None] > self.radii(), axis=0),
        }
        attacks: dict[str, list[Any]] = {
            name: [] for name, each in self.variables.items() if each.dims == _ATTACK
        }
        for radius in self.attack_radii:
            attack = _attacked(
                self.activation, self.attack_steps, chain, inputs[:count], labels[:count], radius
            )
            worst, is_certified = np.asarray(attack), radii[:count] > radius
            attacks["attacked_accuracy"].append(np.mean(worst > 0))
            attacks["certified_among_attacked"].append(np.mean(is_certified))
            attacks["broken_certificates"].append(np.sum(is_certified & (worst <= 0)))
        return found | attacks

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        """The figures of the study, by name; one that has no number to show is left out."""
        told: dict[str, Any] = {"over": "seed", "centre": "mean", "column": "approach"}
        told |= {"x_scale": "linear", "format": ".0%"}
        told["words"] = {"approach": CALLED.get, "setting": partial(_rank, result.sizes["setting"])}
        drawn = {"attack": _attacked_best(result)}
        figures = _figures(result).items()
        charts = {name: draw.measured(drawn.get(name, result), **told | said) for name, said in figures}
        return {name: chart for name, chart in charts.items() if chart is not None}

    @classmethod
    def findings(cls, result: xr.Dataset) -> list[Finding]:
        """Say in sentences what the study found, the verdict first."""
        if not bool(result["certified_accuracy"].notnull().any()):
            return [Finding("Nothing to conclude: no network of this study was certified.")]
        table, (_, middle) = _summary(result), _middle(result)
        others = [radius for radius in _quoted(result) if radius != middle]
        said = {
            "": [_at_radius(table, middle)],
            "Certified accuracy by radius": [_at_radius(table, radius) for radius in others],
            "Every strength": [_strengths(*group) for group in table.groupby("approach", sort=False)],
            "Attack": [_broken(result), _undecided(result, table)],
        }
        return [Finding(each, topic) for topic, sentences in said.items() for each in sentences]

    @classmethod
    def tables(cls, result: xr.Dataset) -> dict[str, pd.DataFrame]:
        """Every approach and strength: accuracy, constant, certified accuracies; means over seeds."""
        table = _summary(result).drop(columns="setting").round(3)
        table["approach"] = table["approach"].map(CALLED)
        table.attrs["caption"] = (
            f"Means over {runs.seeds(result)}; radii in units of the standardised inputs. Undecided: share of the "
            f"attacked inputs neither certified nor broken within radius {_middle(result)[0]:g}."
        )
        return {"Every approach and strength": table}


def _scale(approach: str, hparams: Mapping) -> Any:
    """What logits are multiplied by: the constant that layers of norm at most 1 are to have together."""
    return hparams["strength"] if approach in ("spectral", "orthogonal") else 1.0


class _Constrained(nnx.Module):
    """Dense layers of norm at most 1 with an activation between them."""

    def __init__(self, kind: str, sizes: tuple[int, ...], activation: Any, *, rngs: nnx.Rngs):
        def layer(rows: int, columns: int) -> nnx.Module:
            if kind == "orthogonal":
                return OrthogonalLinear(rows, columns, rngs=rngs)
            return SpectralNorm(nnx.Linear(rows, columns, rngs=rngs))

        self.layers = nnx.List([layer(*pair) for pair in pairwise(sizes)])
        self.activation = activation

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def _chain(network: Any) -> tuple[list[Any], list[Any]]:
    """The kernels [in, out] and biases of a network, as they are used."""
    if isinstance(network, nn.MLP):
        parts: Any = network
        biases = [parts.embed.bias[...], *parts.stack.stages.affine.bias[...], parts.head.bias[...]]
        return kernels(network), biases
    layers: list[Any] = list(network.layers)
    inner: list[Any] = [layer.layer if isinstance(layer, SpectralNorm) else layer for layer in layers]
    return [layer.kernel() for layer in layers], [layer.bias[...] for layer in inner]


@partial(jax.jit, static_argnums=0)
def _margins(activation: Any, chain: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """z_y - max_{j != y} z_j, [batch]."""
    weights, biases = chain
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = activation(x @ weight + bias)
    logits = x @ weights[-1] + biases[-1]
    right = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(right, logits, 0), -1) - jnp.max(jnp.where(right, -jnp.inf, logits), -1)


@partial(jax.jit, static_argnums=(0, 1))
def _attacked(
    activation: Any, num_steps: int, chain: Any, x: jax.Array, labels: jax.Array, radius: Any
) -> Any:
    """The smallest margin that projected gradient descent finds within `radius` of each input, [batch]."""
    # Steps of a quarter of the radius that shrink to nothing: the first cross the ball, the last settle.
    sizes = radius * 0.25 * (1 - jnp.arange(num_steps) / num_steps)

    def value(shift):
        return _margins(activation, chain, x + shift, labels)

    def step(carry, size):
        shift, best = carry
        gradient = jax.grad(lambda shift: jnp.sum(value(shift)))(shift)
        shift = shift - size * gradient / jnp.maximum(
            jnp.linalg.norm(gradient, axis=-1, keepdims=True), 1e-20
        )
        # A hair inside, so that rounding does not leave the ball.
        length = jnp.linalg.norm(shift, axis=-1, keepdims=True)
        shift = shift * jnp.minimum(1, (1 - 1e-6) * radius / jnp.maximum(length, 1e-20))
        return (shift, jnp.minimum(best, value(shift))), None

    start = jnp.zeros_like(x)
    (_, best), _ = jax.lax.scan(step, (start, value(start)), sizes)
    return best


def _summary(result: xr.Dataset) -> pd.DataFrame:
    """A row for every approach and strength: means over seeds."""
    means = runs.quiet(lambda: result.astype(float).mean("seed"))
    names = {"test_accuracy": "test accuracy", "lipschitz": "K", "median_radius": "median radius"}
    columns = means[["strength", *names]].rename(names)
    for radius in _quoted(result):
        columns[f"certified at {radius:g}"] = means["certified_accuracy"].sel(radius=radius, drop=True)
    attacked = means.sel(attack_radius=_middle(result)[0], drop=True)
    columns["undecided"] = attacked["attacked_accuracy"] - attacked["certified_among_attacked"]
    frame = columns.to_dataframe(dim_order=["approach", "setting"])
    return frame.dropna(subset=["strength"]).reset_index()


def _on_grid(result: xr.Dataset, radius: float) -> float:
    """A radius whose certified accuracy was measured: this one, else the next larger, else the largest.

    What is certified within a larger radius is certified within this one; within a smaller one it need not be.
    """
    grid = result["radius"].to_numpy()
    larger = grid[grid >= radius]
    return float(larger.min() if len(larger) else grid.max())


def _quoted(result: xr.Dataset) -> list[float]:
    """The radii that findings and table quote: the attack's."""
    return list(dict.fromkeys(_on_grid(result, radius) for radius in result["attack_radius"].to_numpy()))


def _middle(result: xr.Dataset) -> tuple[float, float]:
    """The attack's middle radius, and the radius of the curves that stands for it."""
    radius = float(result["attack_radius"].to_numpy()[result.sizes["attack_radius"] // 2])
    return radius, _on_grid(result, radius)


def _best(table: pd.DataFrame, radius: float) -> pd.DataFrame:
    """The strength of each approach with the highest certified accuracy at a radius, the first of equals."""
    rows = table.dropna(subset=[f"certified at {radius:g}"])
    return rows.loc[rows.groupby("approach", sort=False)[f"certified at {radius:g}"].idxmax()]


def _attacked_best(result: xr.Dataset) -> xr.Dataset:
    """Each approach at the strength that is best at the attack's middle radius."""
    settings = _best(_summary(result), _middle(result)[1]).set_index("approach")["setting"].to_xarray()
    return result.sel(approach=settings["approach"], setting=settings)


def _rank(count: int, setting: int) -> str:
    """A strength by its place: "1, loosest"."""
    ends = {count: ", tightest", 1: ", loosest"}  # a single one is the loosest
    return f"{setting}{ends.get(int(setting), '')}"


def _figures(result: xr.Dataset) -> dict[str, dict[str, Any]]:
    seeds, middle = runs.seeds(result), _middle(result)[1]
    best = f"At the strength with the best certified accuracy at radius {middle:g}"
    sides = {"attacked_accuracy": "at most: under attack", "certified_among_attacked": "at least: certified"}
    axes = {"value": "Clean test accuracy", "median_radius": "Median certified radius"}
    return {
        "trade_off": {
            "values": "test_accuracy",
            "x": "median_radius",
            "series": "approach",
            "column": None,
            "tooltip": ("strength", "lipschitz"),
            "labels": axes | {"approach": "Approach", "lipschitz": "K"},
            "size": (420, 280),
            "title": "What does a certified radius cost in clean accuracy?",
            "subtitle": f"Each point a strength of the approach: mean over {seeds}, bars from lowest to highest",
            "caption": "Up and to the right is better. The radius within which half of the test inputs keep their "
            "class, proved by margin / (sqrt(2) K) with margins computed in float64; wrongly classified inputs count "
            "as 0. Units are those of the standardised inputs, whose length is about the square root of their number "
            "of pixels.",
        },
        "certified_accuracy": {
            "values": "certified_accuracy",
            "x": "radius",
            "series": "setting",
            "point_field": None,
            "most": result.sizes["radius"],
            "tooltip": ("strength",),
            "labels": {"value": "Certified test accuracy", "radius": "Radius", "setting": "Strength"},
            "title": "How much accuracy is certified at which radius?",
            "subtitle": f"Share of test inputs that are right, with proof: mean over {seeds}, band over seeds",
            "caption": "A curve starts at the clean accuracy; where it is at a radius, no perturbation of that length "
            "can bring the accuracy lower. Tighter settings start lower and fall later.",
        },
        "attack": {
            "values": sides,
            "x": "attack_radius",
            "series": "quantity",
            "labels": {"value": "Test accuracy", "attack_radius": "Radius", "quantity": "Accuracy"},
            "title": "Between which bounds does the accuracy under perturbation lie?",
            "subtitle": f"{best}: mean over {seeds}, bars over seeds",
            "caption": "The true accuracy against the worst perturbation of a length lies between the lines: above, "
            "what projected gradient descent on the margin leaves; below, what the certificate proves. Where they are "
            "close, the certificate is tight.",
        },
    }


def _at_radius(table: pd.DataFrame, radius: float) -> str:
    """The approaches, the best at a radius first."""
    at = f"certified at {radius:g}"
    best = _best(table, radius).sort_values(at, ascending=False, kind="stable")
    rows = best[["approach", at, "test accuracy"]].itertuples(index=False, name=None)
    said = [f"{CALLED[name]} {certified:.3f} (clean {clean:.3f})" for name, certified, clean in rows]
    return f"Best certified accuracy at radius {radius:g}: {'; '.join(said)}."


def _strengths(approach: str, table: pd.DataFrame) -> str:
    """Accuracy, constant and radius at every strength of an approach."""
    rows = table[["strength", "test accuracy", "K", "median radius"]].itertuples(index=False, name=None)
    said = [
        f"{f'at {strength:g}: ' * bool(strength)}{clean:.3f} (K {bound:.3g}, median radius {radius:.2f})"
        for strength, clean, bound, radius in rows
    ]
    return f"{words.capital(CALLED[approach])}, clean test accuracy: {'; '.join(said)}."


def _broken(result: xr.Dataset) -> str:
    broken = int(result["broken_certificates"].sum())
    tried = words.count(int(result["certified_among_attacked"].notnull().sum()), "attack")
    if broken:
        return f"The attack broke {words.count(broken, 'certificate')}: report it."
    held = "no input changed its class within its certified radius"
    return f"No certificate was broken: in {tried} on networks, {held}."


def _undecided(result: xr.Dataset, table: pd.DataFrame) -> str:
    radius, middle = _middle(result)
    best = _best(table, middle).set_index("approach")["undecided"]
    said = "; ".join(f"{CALLED[name]} {share:.2f}" for name, share in best.items())
    return (
        f"Share of inputs within radius {radius:g} that are neither certified nor broken, at the strength with the "
        f"best certified accuracy at radius {middle:g}: {said}."
    )
