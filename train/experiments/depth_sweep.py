"""The depth sweep: which activation trains at which depth, in which block, and what its Jacobian says of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr

from jaxact import fit
from jaxact.activations import Activation
from train import blocks, fields, probing, runs, words
from train.experiment import Cell, Finding, Progress
from train.study import Variable
from train.trial import TrainingStudy, first_crossing, parts

LAYER, EXAMPLE = ("learning_rate", "seed", "phase", "layer"), ("learning_rate", "seed", "phase", "example")
_MEMBER, _STEP, _PHASE = LAYER[:2], (*LAYER[:2], "step"), LAYER[:3]
CELL = ("block", "activation", "depth")
CONV_MODES = 10  # singular values of a convolutional network's Jacobian, too large to be written out
TRAINED = 0.9  # test accuracy from which a depth counts as trained
_ISOMETRY = (
    "A narrow band at 1 (the dotted line) is an isometry: every direction of the input arrives at the last "
    "hidden layer with its length; one that widens is a net that keeps few directions. "
)


@dataclass(frozen=True, kw_only=True)
class DepthSweep(TrainingStudy):
    """Train networks of one width for every block, activation and depth; probe them before and after.

    Attributes:
        network: "dense", or "conv" for 3 x 3 convolutions at one resolution with global average pooling.
        depths: numbers of stages between the first and the last affine map; a run-time argument too.
        blocks: "plain", "pre_activation" or "post_activation", with "-bn", "-ln" or "-rms" appended for a
            norm; one compiled program each.
        sigma_w: the weights' standard deviation times sqrt(fan-in); None gives each activation its own, with
            sigma_w^2 E f'(z)^2 = 1 for z ~ N(0, 1): gradients keep their size at unit variance (He et al.
            2015 for relu).
        sigma_b: standard deviation of the biases at initialisation.
        measure_every: steps between two measurements of loss and accuracy.
        threshold: train accuracy whose first crossing is the time to train.
        num_evaluate: examples, at most, of each set that accuracy is measured on.
        num_probes: held-out examples, at most, whose Jacobians are decomposed.
        ascent_steps: gradient-ascent steps of the Lipschitz lower bound, from every probe example.
        max_depth: length of the compiled stack; None for max(depths). Depths up to it need no new program.
    """

    network: str = "dense"
    activations: tuple[Activation, ...]
    depths: tuple[int, ...] = (4, 8, 16, 32, 64)
    blocks: tuple[str, ...] = ("plain", "pre_activation-bn", "post_activation-bn")
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    seeds: tuple[int, ...] = (0, 1, 2)
    sigma_w: float | None = None
    sigma_b: float = 0.0
    measure_every: int = 10
    threshold: float = 0.9
    num_evaluate: int = 500
    num_probes: int = 8
    ascent_steps: int = 20
    max_depth: int | None = None

    swept = {"block": "blocks", "activation": "activations", "depth": "depths"}
    variables = {
        "train_loss": Variable("train cross-entropy", _STEP, "nat"),
        "train_accuracy": Variable("train accuracy", _STEP),
        "test_loss": Variable("test cross-entropy", _STEP, "nat"),
        "test_accuracy": Variable("test accuracy", _STEP),
        "steps_to_threshold": Variable(
            "steps to {threshold:.0%} train accuracy", _MEMBER, "steps", fields=("threshold", "num_steps")
        ),
        "censored": Variable("{threshold:.0%} train accuracy not reached within the budget", _MEMBER),
        "diverged_step": Variable("step at which loss or gradient stopped being finite", _MEMBER, "steps"),
        **probing.spectrum_variables(EXAMPLE),
        "lipschitz_upper_log10": Variable(
            "upper bound on the Lipschitz constant (textbook product)", _PHASE, "log10"
        ),
        "lipschitz_ellipsoid_log10": Variable(
            "upper bound on the Lipschitz constant (running ellipsoid, closed form)", _PHASE, "log10"
        ),
        "lipschitz_lower_log10": Variable(
            "lower bound on the Lipschitz constant (gradient ascent)", _PHASE, "log10"
        ),
        "second_moment": Variable("second moment of the hidden state", LAYER, theory="second_moment_theory"),
        "second_moment_theory": Variable(
            "second moment by the mean-field variance map, at initialisation", (*_MEMBER, "layer")
        ),
        **probing.layer_variables(LAYER),
        "weight_gradient_norm": Variable("norm of dL/dW of the layer", LAYER),
        "hidden_gradient_norm": Variable("norm of dL/dh of the layer", LAYER),
    }

    def __post_init__(self) -> None:
        fields.check(self, blocks=fields.distinct)
        for block in self.blocks:
            blocks.split_block(block)
        blocks.check_network(self.network, self.task)

    def smoke(self) -> Self:
        """Two activations, two depths, all blocks, one learning rate, twenty steps of few examples."""
        return replace(
            super().smoke(),
            blocks=self.blocks,
            seeds=self.seeds[:2],
            batch_size=min(self.batch_size, 16),
            num_evaluate=min(self.num_evaluate, 64),
            ascent_steps=3,
            max_depth=None,
        )

    def measure(self, cell: Cell, progress: Progress) -> dict[str, Any]:
        """Train all members of one cell and probe them before and after."""
        activation, depth = cell.coords["activation"], cell.coords["depth"]
        probed = _probed(self, cell.coords["block"])
        before = probed.trial.compile_seconds
        setting = self.setting(cell)
        sigma_w = blocks.preserving_sigma(activation) if self.sigma_w is None else self.sigma_w
        progress(0.0, "initialise")
        states = probed.trial.start(*setting, sigma_w=jnp.float32(sigma_w))
        initial = probed(states, setting)
        states, curves = probed.trial.train(
            states, *setting, progress=lambda part, note: progress(0.1 + 0.8 * part, note)
        )
        del curves["batch_loss"]
        progress(0.9, "probe")
        measured = jax.tree.map(lambda *phases: np.stack(phases, axis=1), initial, probed(states, setting))
        by_layer = [name for name, each in self.variables.items() if each.dims == LAYER]
        measured |= {name: measured[name][..., :depth] for name in by_layer}
        # Theory starts at the first layer of each probe, or of each of its pixels.
        where = cell.coords["block"], activation, measured.pop("embedded")[:, 0], depth
        predicted = blocks.second_moments(*where, sigma_w=sigma_w, sigma_b=self.sigma_b, kind=self.network)
        averaged = [np.asarray(jnp.mean(q, range(1, q.ndim)), q.dtype) for q in predicted]
        crossed = first_crossing(curves["train_accuracy"], self.steps(), self.threshold)
        return {
            **measured,
            **curves,
            "step": self.steps(),
            "second_moment_theory": np.stack(averaged, -1),
            "steps_to_threshold": np.where(np.isnan(crossed), self.num_steps, crossed),
            "censored": np.isnan(crossed),
            "diverged_step": probed.trial.diverged_step(states),
            "compile_seconds": probed.trial.compile_seconds - before,
        }

    @classmethod
    def figures(cls, result: xr.Dataset) -> dict[str, Any]:
        """The figures of a depth sweep, by name; one that has no number to show is left out."""
        best = _prepared(result)
        called = {"block": blocks.block_name, "phase": runs.PHASES.get}
        told = {"x": "depth", "series": "activation", "column": "block", "over": "seed", "words": called}
        return cls.drawn(best, _figures(best), **told)

    @classmethod
    def findings(cls, result: xr.Dataset) -> list[str]:
        """Say in sentences what a depth sweep found, the verdict first."""
        best = _prepared(result)
        accuracy = runs.quiet(lambda: best["final_test_accuracy"].mean("seed"))
        failed = Finding(runs.failures(runs.marked(result), "block", blocks.block_name), topic="Failures")
        if not bool(accuracy.notnull().any()):
            return [Finding("Nothing to conclude: no run of this sweep has a test accuracy."), failed]
        sentences = [
            _verdict(accuracy, result.sizes["learning_rate"], runs.budget(best)),
            *(_of_block(best, accuracy, block) for block in runs.names(best, "block")),
            *_against_plain(accuracy),
            _gradients(best),
            *(_conditioning(best, phase) for phase in runs.PHASES),
            _lipschitz_gap(best),
            _theory_agreement(best),
            _rates(best, result),
            failed,
        ]
        return [sentence for sentence in sentences if sentence]

    @classmethod
    def tables(cls, result: xr.Dataset) -> dict[str, pd.DataFrame]:
        """The numbers behind the figures: test accuracy at a glance, and every cell in full."""
        best = _prepared(result)
        return {"Test accuracy by depth": _glance(best), "Every cell": _every_cell(best, runs.marked(result))}


class _Probed:
    """The trial of one block, and the programs that look at its networks."""

    def __init__(self, sweep: DepthSweep, block: str):
        data, norm = blocks.inputs_for(sweep.network, sweep.task.load()), blocks.split_block(block)[1]
        self.sweep, self.is_dense = sweep, sweep.network == "dense"
        # Layer and RMS norms are not linear at inference, and a convolution's matrix is too large.
        self.has_ellipsoid = norm in ("", "bn") and self.is_dense
        sizes: dict[str, Any] = {"width": sweep.width, "max_depth": sweep.max_depth or max(sweep.depths)}
        common: dict[str, Any] = {
            "kind": sweep.network,
            "activation": sweep.activations[0],
            "sigma_b": sweep.sigma_b,
        }
        batch = data.train_inputs[: sweep.batch_size], data.train_labels[: sweep.batch_size]
        probed = {"probes": data.test_inputs[: sweep.num_probes], "gradient": batch}
        self.trial = sweep.trial(
            blocks.network(data, block, **sizes, **common),
            parts(data, num_evaluate=sweep.num_evaluate) | probed,
            evaluate={"train": "train_part", "test": "test"},
            calibrate=norm == "bn",
        )
        # Several programs rather than one: XLA would start its parts side by side and hold their memory together.
        kinds = (self._spectrum, self._product, self._ellipsoid, self._ascent, self._layers, self._gradients)
        self.programs = [self.trial.program(kind, precision="float32") for kind in kinds]

    def __call__(self, states: fit.State, setting: tuple) -> dict[str, np.ndarray]:
        """All measurements of one phase, arrays by name with a leading axis of members."""
        return self.trial.probed(self.programs, states, setting)

    def _spectrum(self, state, data, setting):
        num = None if self.is_dense else CONV_MODES
        embedded = self.trial.output(state, data["probes"], method="embed")
        found = probing.spectrum(self.trial, state, data["probes"], setting, num=num)
        return found | {"embedded": jnp.mean(embedded**2, -1)}

    def _product(self, state, data, setting):
        return {"lipschitz_upper_log10": probing.log10_bound(self.trial, state, setting)}

    def _ellipsoid(self, state, data, setting):
        if not self.has_ellipsoid:
            return {"lipschitz_ellipsoid_log10": jnp.float32(jnp.nan)}

        bound = probing.log10_bound(self.trial, state, setting, method="ellipsoid")
        return {"lipschitz_ellipsoid_log10": bound}

    def _ascent(self, state, data, setting):
        options: dict[str, Any] = {"num_steps": self.sweep.ascent_steps, "takes_one": self.is_dense}
        return {
            "lipschitz_lower_log10": probing.log10_ascent(
                self.trial, state, data["probes"], setting, **options
            )
        }

    def _layers(self, state, data, setting):
        return probing.layer_statistics(self.trial, state, data["test"][0], setting, setting[1])

    def _gradients(self, state, data, setting):
        weights, hidden = probing.gradient_norms(self.trial, state, data["gradient"], setting)
        return {"weight_gradient_norm": weights, "hidden_gradient_norm": hidden}


@functools.lru_cache(maxsize=4)
def _probed(sweep: DepthSweep, block: str) -> _Probed:
    """The programs of one block; made once a process, whichever cells ask for them."""
    return _Probed(sweep, block)


def _figures(best: xr.Dataset) -> dict[str, dict[str, Any]]:
    seeds, most = runs.seeds(best), f"did not reach {runs.threshold(best)} within {runs.budget(best)} steps"
    band = f"median over {seeds}, band from lowest to highest"
    rate = "learning rate chosen on the training set"
    by_layer = {"x": "layer", "choices": {"depth": "last"}, "most": 33}
    twice = {"depth": "last", "phase": "first"}
    limit = _resolution(best["jacobian_condition_number"])
    is_whole = bool(best["jacobian_smallest"].notnull().any())  # else the largest alone are known
    spectrum = "all" if is_whole else f"the {best.sizes['mode']} largest"
    return {
        "test_accuracy": {
            "values": "final_test_accuracy",
            "mark": "heat_map",
            "y": "activation",
            "series": None,
            "centre": "mean",
            "format": ".0%",
            "domain": (0.0, 1.0),
            "shown": ("activation", "block"),
            "tooltip": ("learning_rate", "diverged", "censored"),
            "title": "Which activation still generalises at which depth?",
            "subtitle": f"Test accuracy at the end, mean over {seeds}; {rate}",
            "caption": "A row that stays bright to the right trains at every depth; one that darkens to "
            "chance has stopped training. For each box the learning rate is the one with the best training "
            "accuracy; the test set has no say. A run that diverged counts as accuracy 0.",
        },
        "test_accuracy_by_depth": {
            "values": "final_test_accuracy",
            "centre": "mean",
            "format": ".0%",
            "open_where": "diverged",
            "tooltip": ("learning_rate", "diverged"),
            "title": "How does test accuracy fall with depth?",
            "subtitle": f"Test accuracy at the end: mean over {seeds}, band from lowest to highest; {rate}",
            "caption": "The numbers of the boxes above with their spread. Open marks: at least one of these "
            "runs diverged.",
        },
        "steps_to_threshold": {
            "values": "steps_to_threshold",
            "open_where": "mostly_censored",
            "level": (float(runs.budget(best)), f"budget: {runs.budget(best)} steps"),
            "tooltip": ("learning_rate", "censored", "diverged"),
            "title": "How fast does it train?",
            "subtitle": f"Steps to {runs.threshold(best)} training accuracy: {band}",
            "caption": f"Lower is faster. Open marks on the dashed line: at least half of the runs {most}, "
            "so the true number is larger or infinite.",
        },
        "jacobian_spectrum": {
            "values": "jacobian_singular_values",
            "mark": "ribbons",
            "along": "mode",
            "over": ("seed", "example"),
            "scale": "decades",
            "series": "phase",
            "row": "activation",
            "level": (1.0, "1"),
            "title": "Does the input-to-last-hidden Jacobian stay near an isometry?",
            "subtitle": f"Singular values by depth, {spectrum}: line the median, dark band the middle half",
            "caption": (_ISOMETRY if is_whole else "")
            + "A band that sinks with depth is a vanishing signal, "
            "one that rises an exploding one. On held-out inputs; each quantile is the median over inputs and "
            f"{seeds}.",
        },
        "condition_number": {
            "values": "jacobian_condition_number",
            "over": ("seed", "example"),
            "scale": "decades",
            "ceiling": round(limit, 2),
            "row": "phase",
            "title": "How ill-conditioned does the Jacobian become?",
            "subtitle": f"Largest over smallest singular value: median over inputs and {seeds}, band from "
            "lowest to highest",
            "caption": "1 is an isometry. A Jacobian on the upper edge is singular as far as rounding lets "
            "one see.",
        },
        "lipschitz_bounds": {
            "values": {
                "lipschitz_lower_log10": "at least (gradient ascent)",
                "lipschitz_best_log10": "at most (best bound)",
                "lipschitz_upper_log10": "at most (textbook product)",
            },
            "mark": "ribbons",
            "bands": [
                ("lipschitz_lower_log10", "lipschitz_upper_log10"),
                ("lipschitz_lower_log10", "lipschitz_best_log10"),
            ],
            "scale": "log10",
            "series": "phase",
            "row": "activation",
            "labels": {"value": "Lipschitz constant"},
            "title": "Between which bounds does the network's Lipschitz constant lie?",
            "subtitle": "Dark: lower bound by gradient ascent to the best upper bound; pale: on to the "
            f"textbook's product. Medians over {seeds}, bars over seeds",
            "caption": "The true constant lies in the dark band. Its lower edge is the largest ||J(x)|| "
            "that was found, a real sensitivity of the network; its upper edge an ellipsoid carried through "
            "the layers in closed form, which knows which directions a layer stretches (elsewhere the "
            "product). Where the pale band is tall the textbook's product of norms says little about the "
            "network. Nets that diverged have no value after training.",
        },
        "gradient_norms": {
            "values": {"hidden_gradient_norm": "||dL/dh||", "weight_gradient_norm": "||dL/dW||"},
            **by_layer,
            "choices": twice,
            "scale": "decades",
            "row": "quantity",
            "labels": {"value": "Gradient norm"},
            "title": "Do gradients reach the first layers?",
            "subtitle": f"Gradient norm by layer: {band}",
            "caption": "The loss is at the right end. Level lines train; a line that falls toward layer 1 "
            "vanishes on its way back, one that rises explodes.",
        },
        "second_moment": {
            "values": "initial_second_moment",
            **by_layer,
            "scale": "decades",
            "beside": "second_moment_theory",
            "title": "Does the signal keep the size that theory predicts?",
            "subtitle": f"Second moment by layer: points measured ({band}), lines theory",
            "caption": "Points on their line agree with the variance map of mean-field theory, of infinite "
            "width. Where no line is drawn theory has no prediction (post-activation blocks).",
        },
        "loss": {
            "values": "loss_alive",
            "x": "step",
            "scale": "decades",
            "choices": {"depth": "last"},
            "tooltip": ("learning_rate", "diverged"),
            "title": "How does training go?",
            "subtitle": f"Training loss: {band}; {rate}",
            "caption": "A flat line at the top does not train. A run that diverges leaves the median at "
            "that step and a line ends where none is left.",
        },
        "inactive_units": {
            "values": {"dead_fraction": "dead", "saturated_fraction": "saturated", "zero_fraction": "zero"},
            **by_layer,
            "choices": {"depth": "last", "phase": "last"},
            "format": ".0%",
            "row": "quantity",
            "labels": {"value": "Share"},
            "title": "How many units do nothing?",
            "subtitle": f"Share of units by layer: {band}",
            "caption": "Dead: slope 0 on every input, so no gradient passes. Saturated: slope below 1 % of "
            "its supremum. Zero: an output of exactly 0, which relu-like activations give half of the time "
            "and no fault by itself.",
        },
    }


def _prepared(result: xr.Dataset) -> xr.Dataset:
    """The best runs, with what figures draw besides the stored variables."""
    best = runs.best(result, CELL)
    product, ellipsoid = (best[f"lipschitz_{name}_log10"].astype(float) for name in ("upper", "ellipsoid"))
    moment = runs.at_phase(best["second_moment"], "initial")
    # What a frozen run records after it diverged is no loss of a net in training.
    loss, is_alive = best["train_loss"].astype(float), ~(best["step"] >= best["diverged_step"].astype(float))
    return best.assign(
        # Rounding may put the ellipsoid's bound above the product; some networks have the product alone.
        lipschitz_best_log10=xr.apply_ufunc(np.fmin, ellipsoid, product, keep_attrs=True),
        initial_second_moment=moment.assign_attrs(best["second_moment"].attrs),
        loss_alive=loss.where(is_alive & np.isfinite(loss)),
        # The median itself is censored once half of the runs are: all that is known is that it is no smaller.
        mostly_censored=best["censored"].sum("seed") * 2 >= best["present"].sum("seed"),
    )


def _resolution(values: xr.DataArray) -> float:
    """The log10 of the largest condition number that rounding lets one see: 1/eps of the numbers' type."""
    return float(-np.log10(np.finfo(values.dtype if values.dtype.kind == "f" else float).eps))


def _verdict(accuracy: xr.DataArray, num_rates: int, num_steps: int) -> Finding:
    """The answer in one sentence: who still generalises at the deepest depth, in which block, how soon."""
    depth, rows = runs.deepest(accuracy)
    parts = []
    for block, (names, values) in rows.items():
        good = [name for name, value in zip(names, values, strict=True) if value >= TRAINED]
        who = f"{len(good)} of {len(names)} activations ({words.listed(good)})"
        every = words.count(names, "activation")
        who = {0: f"none of {every}", len(names): f"all {every}"}.get(len(good), who)
        parts.append(f"{words.lower(blocks.block_name(block))} networks with {who}")
    rates = f"the best of {num_rates} learning rates" if num_rates > 1 else "one learning rate"
    return Finding(
        f"At depth {depth}, {words.percent(TRAINED)} test accuracy is reached within {num_steps} steps at {rates} by "
        f"{words.listed(parts)}."
    )


def _rates(best: xr.Dataset, result: xr.Dataset) -> Finding | str:
    """How often the best learning rate is an end of the grid, so that a better one may lie beyond."""
    rates = result["learning_rate"].to_numpy()
    if len(rates) < 2:
        return ""
    chosen = best["learning_rate"].where(best["present"].any("seed")).to_numpy()
    total, least, most = (
        int(each.sum()) for each in (chosen > 0, chosen == rates.min(), chosen == rates.max())
    )
    return Finding(
        f"Over {words.count(total, 'cell')} the smallest, {rates.min():g}, is the best in {least} and the largest, "
        f"{rates.max():g}, in {most}. Where many lie at an end, give others: --learning-rates.",
        topic="Learning rates",
    )


def _of_block(best: xr.Dataset, accuracy: xr.DataArray, block: str) -> Finding:
    """The most accurate at the deepest depth, who is as good, how deep each reaches, and who fails."""
    depth, rows = runs.deepest(accuracy.sel(block=[block]))
    if not rows:
        return Finding("Nothing was measured.", topic=blocks.block_name(block))
    names, values = rows[block]
    order = np.argsort(-values, kind="stable")
    top, here = order[0], best.sel(block=block, depth=depth)
    sample = here["final_test_accuracy"].sel(activation=names[top]).to_numpy()
    said = f"The most accurate at depth {depth} is {names[top]}, {words.mean_sd(sample)} test accuracy"
    said += "" if values[top] >= TRAINED else ", so nothing trains well there"
    close = [names[i] for i in order[1:] if values[top] - values[i] <= 0.01]
    if close:
        others = "all others" if len(close) == len(names) - 1 else words.listed(close)
        said += f"; within 0.01 of it: {others}"
    failing = [_failing(here.sel(activation=names[i]), values[i]) for i in order[::-1] if values[i] < 0.5]
    below = f" Below 50 % at depth {depth}: {words.listed(failing)}." if failing else ""
    return Finding(
        f"{said}. {runs.reach(accuracy.sel(block=block), TRAINED)}{below}", topic=blocks.block_name(block)
    )


def _failing(cell: xr.Dataset, accuracy: float) -> str:
    diverged, total = int(cell["diverged"].sum()), int(cell["present"].sum())
    why = f" ({diverged} of {words.count(total, 'run')} diverged)" if diverged else ""
    return f"{cell['activation'].item()} {accuracy:.2f}{why}"


def _against_plain(accuracy: xr.DataArray) -> list[Finding]:
    """What a block changes at the deepest and the shallowest depth, over the activations measured in both."""
    found = []
    for block in runs.names(accuracy, "block"):
        if block == "plain" or "plain" not in runs.names(accuracy, "block"):
            continue
        both = accuracy.sel(block=["plain", block]).dropna("activation", how="all").dropna("depth")
        if not both.size:
            continue
        shallow, depth = int(both["depth"].min()), int(both["depth"].max())
        was, now = both.sel(depth=depth)
        ends = [both.sel(depth=each).mean("activation").to_numpy() for each in (depth, shallow)]
        deep, flat = (f"{first:.2f} becomes {then:.2f}" for first, then in ends)
        most = int(np.argmax(np.abs(now - was).to_numpy()))
        name = runs.names(both, "activation")[most]
        found.append(
            Finding(
                f"{blocks.block_name(block)}: at depth {depth} {deep}, most for {name} "
                f"({float(was[most]):.2f} to {float(now[most]):.2f}); at depth {shallow} "
                f"{flat}.",
                topic="Mean test accuracy against plain networks",
            )
        )
    return found


def _by_block(values: xr.DataArray, say: Callable[[list[str], np.ndarray], str]) -> tuple[int, str]:
    depth, rows = runs.deepest(values)
    return depth, "; ".join(
        f"{words.lower(blocks.block_name(block))} {say(*row)}" for block, row in rows.items()
    )


def _gradients(best: xr.Dataset) -> str:
    norm = runs.at_phase(best["hidden_gradient_norm"].astype(float), "initial").sortby("layer")
    middle = runs.quiet(lambda: norm.median("seed"))
    last = middle.where(middle["layer"] == middle["depth"]).max("layer")
    depth, said = _by_block(runs.log10(middle.isel(layer=0, drop=True)) - runs.log10(last), words.extremes)
    if depth < 2:
        return ""
    at = f"||dL/dh|| at layer 1 over that at layer {depth}, at initialisation (1 neither vanishes nor explodes)"
    return Finding(f"{at}: {said}.", topic="Gradients")


def _conditioning(best: xr.Dataset, phase: str) -> str:
    limit = _resolution(best["jacobian_condition_number"])
    condition = best["jacobian_condition_number"].astype(float)
    middle = runs.quiet(lambda: runs.at_phase(condition, phase).median(["seed", "example"]))

    def say(names: list[str], logs: np.ndarray) -> str:
        return words.extremes(names, logs, lambda log: "singular" if log >= limit else words.power(log))

    depth, said = _by_block(runs.log10(middle).clip(max=limit), say)
    seen = f" Singular: above {10**limit:.0e}, what rounding lets one see."
    said = f"Median at depth {depth} {runs.PHASES[phase]}: {said}." + (seen if "singular" in said else "")
    return Finding(said, topic="Jacobian condition number") if depth else ""


def _lipschitz_gap(best: xr.Dataset) -> str:
    lower = best["lipschitz_lower_log10"].astype(float)

    def say(names: list[str], orders: np.ndarray) -> str:
        middle, extent = f"{np.median(orders):.1f}", words.extremes(names, orders, "{:.1f}".format)
        return middle if extent == middle else f"{middle} ({extent})"

    parts = []
    for name, bound in (("best", "the best upper bound"), ("upper", "the textbook's product")):
        gap = runs.at_phase(best[f"lipschitz_{name}_log10"].astype(float) - lower, "trained")
        middle = runs.quiet(partial(gap.where(np.isfinite(gap)).median, "seed"))
        depth, said = _by_block(middle, say)
        parts.append(f"{bound} by {said}")
    if not said:
        return ""
    said = f"After training at depth {depth}, by orders of magnitude, median over activations: {'; '.join(parts)}."
    return Finding(said, topic="How far upper Lipschitz bounds exceed the lower")


def _theory_agreement(best: xr.Dataset) -> str:
    theory = best["second_moment_theory"].astype(float)
    ratio = runs.quiet(
        lambda: runs.at_phase(best["second_moment"].astype(float), "initial") / theory.where(theory > 0)
    )
    parts = []
    for block in runs.names(best, "block"):
        sample = ratio.sel(block=block).to_numpy().ravel()
        if len(sample := sample[np.isfinite(sample)]):
            low, middle, high = np.quantile(sample, [0.05, 0.5, 0.95])
            parts.append(
                f"{words.lower(blocks.block_name(block))} {middle:.3g} (90 % between {low:.3g} and {high:.3g})"
            )
    said = "Second moments at initialisation, measured over predicted, median over all layers and nets"
    return Finding(f"{said}: {'; '.join(parts)}.", topic="Theory") if parts else ""


def _glance(best: xr.Dataset) -> pd.DataFrame:
    texts = best["final_test_accuracy"].to_series().groupby(level=list(CELL), sort=False).agg(words.mean_sd)
    frame = texts.unstack("depth").reindex(texts.index.droplevel("depth").unique())
    frame = frame[(frame != "").any(axis=1)]
    frame = frame[sorted(frame)].rename(columns="depth {}".format).reset_index()
    return runs.table(
        frame.assign(block=frame["block"].map(blocks.block_name)),
        f"Mean \N{PLUS-MINUS SIGN} standard deviation over {runs.seeds(best)} at the end, at the learning rate with "
        "the best training accuracy. A run that diverged counts as 0; chance is one over the number of classes.",
    )


def _every_cell(best: xr.Dataset, marked: xr.Dataset) -> pd.DataFrame:
    within = ["seed", "example"]

    def middle(name: str, phase: str | None = None) -> xr.DataArray:
        values = best[name].astype(float) if phase is None else runs.at_phase(best[name].astype(float), phase)
        return runs.quiet(lambda: values.median([dim for dim in within if dim in values.dims]))

    at_most = "\N{LESS-THAN OR EQUAL TO}"
    columns = {
        "learning rate": best["learning_rate"].where(best["present"].any("seed")),
        "test accuracy": runs.quiet(lambda: best["final_test_accuracy"].mean("seed")),
        "s.d.": runs.quiet(lambda: best["final_test_accuracy"].std("seed", ddof=1)),
        f"steps to {runs.threshold(best)}": middle("steps_to_threshold"),
        "runs": marked["present"].sum(["learning_rate", "seed"]),
        "never got there": marked["censored"].sum(["learning_rate", "seed"]),
        "diverged": marked["diverged"].sum(["learning_rate", "seed"]),
        "condition number, initial": middle("jacobian_condition_number", "initial"),
        "condition number, trained": middle("jacobian_condition_number", "trained"),
        "effective rank, trained": middle("jacobian_effective_rank", "trained"),
        "log10 Lipschitz \N{GREATER-THAN OR EQUAL TO}, trained": middle("lipschitz_lower_log10", "trained"),
        f"log10 Lipschitz {at_most}, trained": middle("lipschitz_best_log10", "trained"),
        "log10 textbook product, trained": middle("lipschitz_upper_log10", "trained"),
    }
    plain = {name: column.drop_vars("learning_rate", errors="ignore") for name, column in columns.items()}
    frame = runs.rows(plain, CELL)
    frame = frame[frame["runs"] > 0].assign(block=lambda rows: rows["block"].map(blocks.block_name))
    return runs.table(
        frame,
        "Accuracy, steps and the network's properties are those of the best learning rate: means or medians over "
        f"{runs.seeds(best)} (and over inputs). Runs that diverged or never got there are counted over all "
        f"{words.count(marked.sizes['learning_rate'], 'learning rate')}; their steps are the budget, so a median equal "
        "to it is a lower limit.",
    )
