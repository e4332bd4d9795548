"""Lipschitz bounds by depth: how far each certificate is from what an ascent finds, before and after training."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass, replace
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from jaxact import fit, theory
from jaxact.activations import Activation, select
from jaxact.lipschitz import Ball, certify
from train import fields, probing, runs, words
from train import figures as draw
from train.blocks import block_name, network, split_block
from train.experiment import Cell, Finding, Progress
from train.study import Coordinate, Variable
from train.trial import TrainingStudy, accuracy, parts

_BOUND = ("seed", "phase", "bound")
EVERYWHERE = {  # bounds for all inputs, as a reader calls them
    "lower": "at least: gradient ascent",
    "ellipsoid": "ellipsoid, refined",
    "closed form": "ellipsoid, closed form",
    "product": "product of norms",
}


@dataclass(frozen=True, kw_only=True)
class LipschitzDepth(TrainingStudy):
    """Bound the Lipschitz constant of dense networks from both sides for every block, activation and depth.

    From below by gradient ascent; from above, for all inputs, by the textbook's product, by the closed form of the
    running ellipsoid (at or below ECLipsE-Fast for chains) and by its refinement; and within balls about the first
    held-out input.

    Attributes:
        activations: the activations to compare.
        depths: numbers of stages between the first and the last affine map.
        blocks: "plain", "pre_activation" or "post_activation", with "-bn" appended for batch norm.
        learning_rate: of the optimiser.
        radii: of the balls of the local certificates, in units of the standardised inputs.
        refine_steps: of the refined ellipsoid for all inputs.
        local_steps: of refinement within a ball, and of the bound for all inputs that it is compared with.
        num_starts: held-out inputs that the ascent starts from.
        ascent_steps: of the ascent.
    """

    activations: tuple[Activation, ...]
    depths: tuple[int, ...] = (4, 8, 16, 32)
    blocks: tuple[str, ...] = ("plain", "pre_activation-bn", "post_activation-bn")
    learning_rate: float = 0.01
    radii: tuple[float, ...] = (0.01, 0.1, 1.0)
    refine_steps: int = 50
    local_steps: int = 0
    num_starts: int = 16
    ascent_steps: int = 50

    swept = {"block": "blocks", "activation": "activations", "depth": "depths"}
    coordinates = {"bound": Coordinate("bound on the Lipschitz constant")}
    variables = {
        "lipschitz_log10": Variable("bound on the Lipschitz constant", _BOUND, "log10"),
        "bound_time": Variable("time to find the bound; of certificates, compilation included", _BOUND, "s"),
        "bound_radius": Variable(
            "radius of the ball in which the bound holds, NaN for all inputs", ("bound",), of_cell=False
        ),
        "test_accuracy": Variable("test accuracy", ("seed", "phase")),
    }

    def __post_init__(self) -> None:
        fields.check(
            self,
            blocks=fields.distinct,
            radii=fields.positive,
            num_starts=fields.count,
            refine_steps=fields.not_negative,
            local_steps=fields.not_negative,
        )
        for block in self.blocks:
            if split_block(block)[1] not in ("", "bn"):
                raise ValueError(
                    f"`blocks` must have no norm or batch norm, got {block!r}. Others have no bound for all inputs."
                )

    def smoke(self) -> Self:
        """One depth, one activation, one block, five optimiser steps, nothing refined."""
        return replace(
            self,
            activations=self.activations[:1],
            depths=(min(*self.depths, 2),),
            blocks=self.blocks[:1],
            seeds=self.seeds[:1],
            width=min(self.width, 6),
            num_steps=5,
            radii=self.radii[:1],
            refine_steps=0,
            local_steps=0,
            num_starts=2,
            ascent_steps=2,
        )

    def bounds(self) -> dict[str, dict[str, Any]]:
        """The bounds from the tightest to the loosest, each with the arguments of `certify`, where it is one."""
        local = {"num_steps": self.local_steps}
        return {
            "lower": {},
            **{f"local, R = {radius:g}": {**local, "radius": radius} for radius in self.radii},
            "ellipsoid": {"num_steps": self.refine_steps},
            "closed form": {"num_steps": 0},
            "product": {},
        }

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """Train the members of one cell and bound them before and after."""
        bounded = _bounded(self, cell.coords["block"])
        trial, found = bounded.trial, []
        activation, depth = cell.coords["activation"], cell.coords["depth"]
        setting = jnp.asarray(depth, jnp.int32), select(self.activations, self.activations.index(activation))
        before = trial.compile_seconds
        sigma_w = float(theory.moments(activation).slope_second_moment) ** -0.5  # gradients keep their size
        progress(0.0, "initialise")
        states = trial.start(*setting, sigma_w=sigma_w)
        for phase in range(2):

            def report(part: float, note: str, phase: int = phase) -> None:
                progress((phase + part) / 2, note)

            if phase:
                states, _ = trial.train(states, *setting, progress=lambda part, note: report(0.0, "train"))
            found.append(bounded(states, setting, cell, report))
        measured = {name: np.stack([each[name] for each in found], axis=1) for name in found[0]}
        return {
            **measured,
            "bound": list(self.bounds()),
            "bound_radius": [given.get("radius", math.nan) for given in self.bounds().values()],
            "compile_seconds": trial.compile_seconds - before,
        }

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        """The figures of the study, by name; one that has no number to show is left out."""
        shown, called = _prepared(result), {"bound": _called(result).get, "phase": runs.PHASES.get}
        told: dict[str, Any] = {"x": "depth", "x_scale": "doubling", "series": "bound", "column": "block"}
        told["words"] = {**called, "block": block_name}
        charts = {name: draw.measured(shown, **told | said) for name, said in _figures(shown).items()}
        return {name: chart for name, chart in charts.items() if chart is not None}

    @classmethod
    def findings(cls, result: xr.Dataset) -> list[Finding]:
        """Say in sentences what the study found, the verdict first."""
        values = result["lipschitz_log10"].astype(float)
        if not bool(values.sel(phase="trained").notnull().any()):
            nothing = "Nothing to conclude: no trained network of this study has a bound."
            return [Finding(each) for each in (nothing, _diverged(values)) if each]
        called, blocks = _called(result), values["block"]
        said = {
            "": [_verdict(values)],
            "At least / ellipsoid / product, trained": [_of_block(values.sel(block=one)) for one in blocks],
            "What training changes": [_training(values)],
            "Within a ball": [_local(values, called)],
            "Time": [_times(result["bound_time"].astype(float), called)],
            "Failures": [_diverged(values)],
            "Order of the bounds": [_order(values)],
        }
        return [Finding(each, topic) for topic, sentences in said.items() for each in sentences if each]

    @classmethod
    def tables(cls, result: xr.Dataset) -> dict[str, pd.DataFrame]:
        """The bounds of every network, medians over seeds, with the accuracy they come with."""
        middle = runs.quiet(lambda: result[["test_accuracy", "lipschitz_log10"]].astype(float).median("seed"))
        bounds = runs.names(result, "bound")
        columns = {name: middle["lipschitz_log10"].sel(bound=name, drop=True) for name in bounds}
        frame = xr.Dataset({"test accuracy": middle["test_accuracy"], **columns}).to_dataframe().reset_index()
        frame = frame.dropna(subset=bounds, how="all").reset_index(drop=True).round(3)
        frame["block"], frame["phase"] = frame["block"].map(block_name), frame["phase"].map(runs.PHASES)
        frame.attrs["caption"] = (
            f"log10 of every bound on the Lipschitz constant, median over {runs.seeds(result)}. All but 'lower' are "
            "upper bounds; 'local' ones hold within a ball of radius R about one held-out input."
        )
        return {"Every network": frame}


class _Bounded:
    """The trial of one block, and every bound of its networks."""

    def __init__(self, study: LipschitzDepth, block: str):
        self.study = study
        data = study.task.load().flat()
        self.point = data.test_inputs[0]
        self.trial = study.trial(
            network(
                data,
                block,
                width=study.width,
                max_depth=max(study.depths),
                activation=study.activations[0],
            ),
            parts(data),
            calibrate=split_block(block)[1] == "bn",
        )
        self._accuracy, self._lower, self._product = map(
            self.trial.program, (self._accuracy_of, self._lower_bound, self._product_bound)
        )

    def __call__(self, states: fit.State, setting: tuple, cell: Cell, report: Any) -> dict[str, np.ndarray]:
        """Accuracy and every bound of all members; NaN for a network that diverged."""
        timed = {}
        for name, program in (("lower", self._lower), ("product", self._product)):
            report(0.0, name)
            timed[name] = self._timed(program, states, setting)
        accuracies = self.trial.host(self._accuracy(states, self.trial.data, setting)).astype(float)
        lost = ~np.isnan(self.trial.diverged_step(states))
        rows = []
        for member in range(self.trial.num_members):
            state = jax.tree.map(lambda leaf, member=member: leaf[member], states)
            found = {name: (float(values[member]), seconds) for name, (values, seconds) in timed.items()}
            if not lost[member]:
                found |= self._certified(state, cell, report)
            nothing = (math.nan, math.nan)
            rows.append([nothing if lost[member] else found[name] for name in self.study.bounds()])
        logs, seconds = np.moveaxis(np.asarray(rows), -1, 0)
        return {
            "lipschitz_log10": logs,
            "bound_time": seconds,
            "test_accuracy": np.where(lost, math.nan, accuracies),
        }

    def _timed(self, program: Any, *args: Any) -> tuple[np.ndarray, float]:
        """What a program gives, and the seconds a member that it takes once it is compiled."""
        before = self.trial.compile_seconds
        states, setting = args
        for _ in range(2):
            started = time.perf_counter()
            values = self.trial.host(program(states, self.trial.data, setting))
            seconds = (time.perf_counter() - started) / len(values)
            if self.trial.compile_seconds == before:
                break
            before = self.trial.compile_seconds
        return values, seconds

    def _certified(self, state: fit.State, cell: Cell, report: Any) -> dict[str, tuple[float, float]]:
        """log10 and seconds of every certificate of one network."""

        def function(x):
            setting = cell.coords["depth"], cell.coords["activation"]
            return self.trial.output(state, x[None], *setting)[0]

        wanted = {name: given for name, given in self.study.bounds().items() if given}
        found = {}
        for index, (name, given) in enumerate(sorted(wanted.items(), key=lambda item: "radius" in item[1])):
            report((index + 1) / (len(wanted) + 1), name)
            region = Ball(self.point, given["radius"]) if "radius" in given else None
            certificate = certify(function, self.point, num_steps=given["num_steps"], region=region)
            found[name] = float(certificate.log10), certificate.seconds
        everywhere = found["ellipsoid"][0]  # what holds everywhere holds in a ball
        return {
            name: (min(log10, everywhere) if "radius" in wanted[name] else log10, seconds)
            for name, (log10, seconds) in found.items()
        }

    def _accuracy_of(self, state, data, setting):
        inputs, labels = data["test"]
        return accuracy(self.trial.output(state, inputs, *setting), labels)

    def _lower_bound(self, state, data, setting):
        starts = data["test"][0][: self.study.num_starts]
        return probing.log10_ascent(self.trial, state, starts, setting, num_steps=self.study.ascent_steps)

    def _product_bound(self, state, data, setting):
        return probing.log10_bound(self.trial, state, setting)


@functools.lru_cache(maxsize=4)
def _bounded(study: LipschitzDepth, block: str) -> _Bounded:
    """The programs of one block; made once a process, whichever cells ask for them."""
    return _Bounded(study, block)


def _prepared(result: xr.Dataset) -> xr.Dataset:
    """The loosest bound first, as lines lie, and how far certificates for all inputs are above the ascent."""
    is_certificate = result["bound"].isin([name for name in EVERYWHERE if name != "lower"])
    gaps = _gaps(result["lipschitz_log10"].astype(float)).where(is_certificate)
    return result.assign(gap=gaps).isel(bound=slice(None, None, -1))


def _gaps(values: xr.DataArray) -> xr.DataArray:
    """Orders of magnitude from what the ascent found to each bound."""
    return values - values.sel(bound="lower", drop=True)


def _called(result: xr.Dataset) -> dict[str, str]:
    """What a reader calls each bound; a result older than the variable has its radii in the names alone."""
    radii = result["bound_radius"].dropna("bound").to_series() if "bound_radius" in result else {}
    names = {name: name for name in runs.names(result, "bound")} | EVERYWHERE
    return names | {name: f"within a ball of radius {radius:g}" for name, radius in radii.items()}


def _figures(result: xr.Dataset) -> dict[str, dict[str, Any]]:
    seeds = runs.seeds(result)
    over = f"median over {seeds}, band over them" if result.sizes["seed"] > 1 else seeds
    return {
        "looseness": {
            "values": "gap",
            "row": "phase",
            "over": ("seed", "activation"),
            "scale": "linear",
            "x_scale": "linear",  # so that a constant factor a layer is a straight line
            "labels": {"value": "Certificate over ascent (orders of magnitude)", "bound": "Certificate"},
            "size": (255, 150),
            "title": "How loose is each certificate?",
            "subtitle": "log10 of upper over lower bound: median over activations and seeds, band all of them",
            "caption": "0 would be a certificate that is attained. A straight line that rises loses a constant factor "
            "in every layer. Since the ascent may miss the steepest place, this is at most how loose it is.",
        },
        "lipschitz_bounds": {
            "values": "lipschitz_log10",
            "row": "activation",
            "over": "seed",
            "choices": {"phase": "last"},
            "labels": {"value": "Lipschitz constant", "bound": "Bound"},
            "size": (255, 170),
            "title": "Between which bounds does a network's Lipschitz constant lie?",
            "subtitle": f"All certificates beside what an ascent finds, by depth: {over}",
            "caption": "The constant over all inputs lies between the lowest line and the lowest of the three global "
            "ones. The product of norms grows by the block; the ellipsoid knows how layers fit together. Local "
            "certificates hold within a ball about one held-out input only, and may lie below the ascent, which "
            "searches everywhere.",
        },
        "time": {
            "values": "bound_time",
            "over": ("seed", "activation", "phase"),
            "scale": "decades",
            "floor": -6,
            "ceiling": 6,
            "labels": {"value": "Time (s)", "bound": "Bound"},
            "title": "What does each bound cost in time?",
            "subtitle": "Wall clock: median over activations, phases and seeds, band from the quickest to the slowest",
            "caption": "Of certificates compilation is included: the slowest of a band compiled a program that the "
            "others share.",
        },
    }


def _deepest(values: xr.DataArray) -> xr.DataArray:
    """The numbers at the deepest depth that has any."""
    has_any = values.notnull().any([dim for dim in values.dims if dim != "depth"])
    return values.isel(depth=int(np.argmax(values["depth"].where(has_any, 0).to_numpy())))


def _middle(values: xr.DataArray, form: str = ".1f") -> str:
    return format(float(runs.quiet(values.median)), form)


def _verdict(values: xr.DataArray) -> str:
    deep = _deepest(_gaps(values).sel(phase="trained"))
    product, closed, refined = (
        _middle(deep.sel(bound=name)) for name in ("product", "closed form", "ellipsoid")
    )
    return (
        "Orders of magnitude between the certificate and the largest slope found, trained networks of depth "
        f"{int(deep['depth'])}, median over blocks and activations: {product} for the product of norms, {closed} for "
        f"the ellipsoid's closed form, {refined} for its refinement."
    )


def _of_block(values: xr.DataArray) -> str:
    """Three bounds of every activation at the deepest depth of a block."""
    deep = _deepest(values.sel(phase="trained", bound=["lower", "ellipsoid", "product"]))
    rows = runs.quiet(lambda: deep.median("seed")).dropna("activation").transpose("activation", "bound")
    said = [f"{one['activation'].item()} {' / '.join(map(_power, one.to_numpy()))}" for one in rows]
    where = f"{block_name(values['block'].item())}, depth {int(deep['depth'])}"
    return f"{where}: {'; '.join(said)}." if said else ""


def _training(values: xr.DataArray) -> str:
    gaps = _gaps(values).sel(bound="ellipsoid")
    before, after = (_middle(gaps.sel(phase=phase)) for phase in runs.PHASES)
    said = f"{before} orders of magnitude above the ascent at initialisation and {after} after training"
    return f"The refined certificate is {said} (median over all networks)."


def _local(values: xr.DataArray, called: dict[str, str]) -> str:
    below = (values.sel(bound="ellipsoid", drop=True) - values).sel(phase="trained")
    balls = [name for name in runs.names(values, "bound") if name not in EVERYWHERE]
    parts = ", ".join(f"{_middle(below.sel(bound=name))} {called[name]}" for name in balls)
    return (
        "Certificates for the neighbourhood of one input lie below the global one by so many orders of magnitude, "
        f"trained networks, median: {parts}."
    )


def _times(seconds: xr.DataArray, called: dict[str, str]) -> str:
    deep = _deepest(seconds)
    parts = [
        f"{_middle(deep.sel(bound=name), '.2g')} s ({called[name]})" for name in runs.names(deep, "bound")
    ]
    said = f"Depth {int(deep['depth'])}, median, of certificates with what is compiled on the way"
    return f"{said}: {'; '.join(parts)}."


def _diverged(values: xr.DataArray) -> str:
    before, after = (values.sel(phase=phase).notnull().any("bound") for phase in runs.PHASES)
    count, total = int((before & ~after).sum()), words.count(int(before.sum()), "network")
    said = f"{count} of {total} diverged in training and have no bound after it."
    return said if count else ""


def _order(values: xr.DataArray) -> str:
    order = ("lower", "ellipsoid", "closed form", "product")
    # Rounding of float32 in the first and the last.
    broken = int((values.sel(bound=list(order)).diff("bound") < -1e-5).sum())
    if broken:
        return f"The order {' <= '.join(order)} is broken {broken} times: report it."
    return f"{' <= '.join(order)} on all {int(values.notnull().all('bound').sum())} networks."


def _power(log10: float) -> str:
    return f"{10**log10:.3g}" if -3 < log10 < 4 else f"{10 ** (log10 % 1):.1f}e{int(np.floor(log10))}"
