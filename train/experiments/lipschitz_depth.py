"""Lipschitz bounds by depth: how far each certificate is from what an ascent finds, before and after training."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass
from typing import Any, Self

import jax
import numpy as np
import pandas as pd
import xarray as xr

from jaxact import fit
from jaxact.activations import Activation
from jaxact.lipschitz import Ball, certify
from train import fields, probing, runs, words
from train.blocks import block_name, network, preserving_sigma, split_block
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
        depths: numbers of stages between the first and the last affine map.
        blocks: "plain", "pre_activation" or "post_activation", with "-bn" appended for batch norm.
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
        "bound_radius": Variable("radius of the ball, NaN for all inputs", ("bound",), of_cell=False),
        "test_accuracy": Variable("test accuracy", ("seed", "phase")),
    }

    def __post_init__(self) -> None:
        fields.check(
            self,
            blocks=fields.distinct,
            radii=fields.positive,
            num_starts=fields.count,
            **dict.fromkeys(("refine_steps", "local_steps"), fields.not_negative),
        )
        for block in self.blocks:
            if split_block(block)[1] not in ("", "bn"):
                raise ValueError(
                    f"`blocks` must have no norm or batch norm, got {block!r}. Others have no bound for all inputs."
                )

    def smoke(self) -> Self:
        """One depth, one activation, one block, five optimiser steps, nothing refined."""
        return (
            super()
            .smoke()
            .shrunk(
                activations=self.activations[:1],
                depths=(min(*self.depths, 2),),
                blocks=self.blocks[:1],
                width=min(self.width, 6),
                num_steps=5,
                radii=self.radii[:1],
                refine_steps=0,
                local_steps=0,
                num_starts=2,
                ascent_steps=2,
            )
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
        bounded = _Bounded(self, cell.coords["block"])
        trial, setting = bounded.trial, self.setting(cell)
        before = trial.compile_seconds
        sigma_w = preserving_sigma(cell.coords["activation"])
        progress(0.0, "initialise")
        states = trial.start(*setting, sigma_w=sigma_w)  # gradients keep their size
        initial = bounded(states, setting, cell, lambda part, note: progress(part / 2, note))
        states, _ = trial.train(states, *setting, progress=lambda part, note: progress(0.5, "train"))
        trained = bounded(states, setting, cell, lambda part, note: progress((1 + part) / 2, note))
        return {
            **{name: np.stack([initial[name], trained[name]], axis=1) for name in initial},
            "bound": list(self.bounds()),
            "bound_radius": [given.get("radius", math.nan) for given in self.bounds().values()],
            "compile_seconds": trial.compile_seconds - before,
        }

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        """The figures of the study, by name."""
        shown = _prepared(result)
        called = {"bound": _called(result).get, "phase": runs.PHASES.get, "block": block_name}
        told: dict[str, Any] = {"x": "depth", "x_scale": "doubling", "series": "bound", "column": "block"}
        return cls.drawn(shown, _figures(shown), **told, words=called)

    @classmethod
    def findings(cls, result: xr.Dataset) -> list[Finding]:
        """Say in sentences what the study found, the verdict first."""
        values, called = result["lipschitz_log10"].astype(float), _called(result)
        lost = _diverged(values)
        if not bool(values.sel(phase="trained").notnull().any()):
            nothing = "Nothing to conclude: no trained network of this study has a bound."
            return Finding.by_topic({"": [nothing, lost]})
        said = {
            "": [_verdict(values)],
            "At least / ellipsoid / product, trained": map(_of_block, values.transpose("block", ...)),
            "What training changes": [_training(values)],
            "Within a ball": [_local(values, called)],
            "Time": [_times(result["bound_time"].astype(float), called)],
            "Failures": [lost],
            "Order of the bounds": [_order(values)],
        }
        return Finding.by_topic(said)

    @classmethod
    def tables(cls, result: xr.Dataset) -> dict[str, pd.DataFrame]:
        """The bounds of every network, medians over seeds, with the accuracy they come with."""
        middle = runs.quiet(lambda: result[["test_accuracy", "lipschitz_log10"]].astype(float).median("seed"))
        bounds = middle["lipschitz_log10"].to_dataset("bound")
        columns = {"test accuracy": middle["test_accuracy"], **bounds}
        frame = runs.rows(columns, needed=list(bounds)).round(3)
        called = {"block": frame["block"].map(block_name), "phase": frame["phase"].map(runs.PHASES)}
        kinds = "all but 'lower' from above, 'local' ones within a ball of radius R about one held-out input"
        caption = (
            f"log10 of every bound on the Lipschitz constant, median over {runs.seeds(result)}: {kinds}."
        )
        return {"Every network": runs.table(frame.assign(**called), caption)}


@functools.lru_cache(maxsize=4)  # made once a process, whichever cells ask for it
class _Bounded:
    """The trial of one block, and every bound of its networks."""

    def __init__(self, study: LipschitzDepth, block: str):
        self.study, data = study, study.task.load().flat()
        self.point = data.test_inputs[0]
        sizes: dict[str, Any] = {"width": study.width, "max_depth": max(study.depths)}
        self.trial = study.trial(
            network(data, block, **sizes, activation=study.activations[0]),
            parts(data),
            calibrate=split_block(block)[1] == "bn",
        )
        kinds = {"accuracy": self._accuracy, "lower": self._lower_bound, "product": self._product_bound}
        self.programs = {name: self.trial.program(kind) for name, kind in kinds.items()}

    def __call__(self, states: fit.State, setting: tuple, cell: Cell, report: Any) -> dict[str, np.ndarray]:
        """Accuracy and every bound of all members; NaN for a network that diverged."""
        found = {}
        for name in ("lower", "product"):
            report(0.0, name)
            found[name] = self._timed(name, states, setting)
        accuracies = self.programs["accuracy"](states, self.trial.data, setting)
        is_lost = ~np.isnan(self.trial.diverged_step(states))
        rows = []
        for member in np.flatnonzero(~is_lost):
            state = jax.tree.map(lambda leaf, member=member: leaf[member], states)
            own = {name: (values[member], seconds) for name, (values, seconds) in found.items()}
            own |= self._certified(state, cell, report)
            rows.append([own[name] for name in self.study.bounds()])
        bounds = np.full((len(is_lost), len(self.study.bounds()), 2), np.nan)
        bounds[~is_lost] = np.reshape(rows, (-1, *bounds.shape[1:]))
        return {
            "lipschitz_log10": bounds[..., 0],
            "bound_time": bounds[..., 1],
            "test_accuracy": np.where(is_lost, np.nan, self.trial.host(accuracies).astype(float)),
        }

    def _timed(self, name: str, *args: Any) -> tuple[np.ndarray, float]:
        """What a program gives, and the seconds a member that it takes once it is compiled."""
        is_compiled, states, setting = False, *args
        while not is_compiled:
            before, started = self.trial.compile_seconds, time.perf_counter()
            values = self.trial.host(self.programs[name](states, self.trial.data, setting))
            seconds = (time.perf_counter() - started) / len(values)
            is_compiled = self.trial.compile_seconds == before
        return values, seconds

    def _certified(self, state: fit.State, cell: Cell, report: Any) -> dict[str, tuple[float, float]]:
        """log10 and seconds of every certificate of one network."""

        def function(x):
            return self.trial.output(state, x[None], cell.coords["depth"], cell.coords["activation"])[0]

        wanted = {name: given for name, given in self.study.bounds().items() if given}
        found: dict[str, tuple[float, float]] = {}
        for index, (name, given) in enumerate(sorted(wanted.items(), key=lambda item: "radius" in item[1])):
            report((index + 1) / (len(wanted) + 1), name)
            region = Ball(self.point, given["radius"]) if "radius" in given else None
            certificate = certify(function, self.point, num_steps=given["num_steps"], region=region)
            # What holds everywhere, known by now, holds in a ball.
            least = min(float(certificate.log10), math.inf if region is None else found["ellipsoid"][0])
            found[name] = least, certificate.seconds
        return found

    def _accuracy(self, state, data, setting):
        inputs, labels = data["test"]
        return accuracy(self.trial.output(state, inputs, *setting), labels)

    def _lower_bound(self, state, data, setting):
        starts = data["test"][0][: self.study.num_starts]
        return probing.log10_ascent(self.trial, state, starts, setting, num_steps=self.study.ascent_steps)

    def _product_bound(self, state, data, setting):
        return probing.log10_bound(self.trial, state, setting)


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
            "certificates hold near one held-out input; they may lie below the ascent, which searches everywhere.",
        },
        "time": {
            "values": "bound_time",
            "over": ("seed", "activation", "phase"),
            "scale": "decades",
            "floor": -6,
            "ceiling": 6,
            "title": "What does each bound cost in time?",
            "subtitle": "Wall clock: median over activations, phases and seeds, band from the quickest to the slowest",
            "caption": "The slowest of a band compiled a program that the others share.",
        },
    }


def _deepest(values: xr.DataArray) -> xr.DataArray:
    """The numbers at the deepest depth that has any."""
    has_any = values.notnull().any([dim for dim in values.dims if dim != "depth"])
    return values.isel(depth=int(np.argmax(values["depth"].where(has_any, 0).to_numpy())))


def _middle(values: xr.DataArray, form: str = "{:.1f}", **place: Any) -> str:
    return form.format(float(runs.quiet(values.sel(place).median)))


def _verdict(values: xr.DataArray) -> str:
    deep = _deepest(_gaps(values).sel(phase="trained"))
    return (
        "Orders of magnitude between the certificate and the largest slope found, trained networks of depth "
        f"{int(deep['depth'])}, median over blocks and activations: {_middle(deep, bound='product')} for the product "
        f"of norms, {_middle(deep, bound='closed form')} for the ellipsoid's closed form, "
        f"{_middle(deep, bound='ellipsoid')} for its refinement."
    )


def _of_block(values: xr.DataArray) -> str:
    """Three bounds of every activation at the deepest depth of a block."""
    deep = _deepest(values.sel(phase="trained", bound=["lower", "ellipsoid", "product"]))
    rows = runs.quiet(lambda: deep.median("seed")).dropna("activation").transpose("activation", "bound")
    said = [f"{one['activation'].item()} {' / '.join(map(_power, one.to_numpy()))}" for one in rows]
    where = f"{block_name(values['block'].item())}, depth {int(deep['depth'])}"
    return f"{where}: {'; '.join(said)}." if said else ""


def _training(values: xr.DataArray) -> str:
    before, after = (_middle(_gaps(values), bound="ellipsoid", phase=phase) for phase in runs.PHASES)
    said = f"{before} orders of magnitude above the ascent at initialisation and {after} after training"
    return f"The refined certificate is {said} (median over all networks)."


def _local(values: xr.DataArray, called: dict[str, str]) -> str:
    below = (values.sel(bound="ellipsoid", drop=True) - values).sel(phase="trained")
    balls = [name for name in runs.names(values, "bound") if name not in EVERYWHERE]
    parts = [f"{_middle(below, bound=name)} {called[name]}" for name in balls]
    said = "Certificates for the neighbourhood of one input lie below the global one by so many orders of magnitude"
    return f"{said}, trained networks, median: {', '.join(parts)}."


def _times(seconds: xr.DataArray, called: dict[str, str]) -> str:
    deep = _deepest(seconds)
    parts = [
        f"{_middle(deep, '{:.2g} s', bound=name)} ({called[name]})" for name in runs.names(deep, "bound")
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
