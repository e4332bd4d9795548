"""What a run would cost before anything of it runs: a calibration of seconds, scaled by depth, cells and devices."""

from __future__ import annotations

import contextlib
import contextvars
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from jaxact.escapes import on_one_line
from train import workers
from train.experiment import Cell, Experiment
from train.progress import clock

_FEW_STEPS = 50  # of a chunk that is compiled, at most
_SECONDS = 2.0  # of measuring
_LONG_ENOUGH = 0.3  # seconds at one depth
_LOOK_SECONDS = 5.0  # of looking which cells share a program


class Rate(NamedTuple):
    """What a step of all members of a cell takes: `base` + `per_layer` depth, in seconds; measured at `depths`."""

    base: float
    per_layer: float
    depths: tuple[int, ...]

    def seconds(self, depth: int) -> float:
        """Of a step at a depth."""
        return self.base + self.per_layer * depth


class Calibration(NamedTuple):
    """What was measured of the smallest cell's training program.

    Attributes:
        cell: its name.
        compile_seconds: to trace and compile start and training here; little where a cache has them.
        memory: bytes of the program's arguments, results and temporaries; what is given and reused counts once.
        rate: of a step.
        flops: of matrix products and convolutions in a step of all members, by depth.
        side_by_side: members of a device that memory has room for at once, "all" or such as "4 of 9".
    """

    cell: str
    compile_seconds: float
    memory: int
    rate: Rate
    flops: Mapping[int, float]
    side_by_side: str = "all"


class Plan(NamedTuple):
    """What is known of a run beforehand.

    Attributes:
        cells: all of them.
        num_members: networks of a cell at most, 0 if no field says so.
        num_networks: in all, of the cells that were looked at.
        num_steps: optimiser steps of a network, 0 if no field says so.
        num_programs: training programs to compile; of the cells that were looked at.
        num_looked: cells that were looked at.
        calibration: None where the study offers no training program.
    """

    cells: Sequence[Cell]
    num_members: int
    num_networks: int
    num_steps: int
    num_programs: int
    num_looked: int
    calibration: Calibration | None

    def cell_seconds(self) -> list[float]:
        """Training of each cell, without compiling and probing."""
        assert self.calibration is not None
        return [self.num_steps * self.calibration.rate.seconds(_depth(cell)) for cell in self.cells]

    def total_flops(self) -> float:
        """Of matrix products and convolutions in all steps of all cells."""
        assert self.calibration is not None
        return self.num_steps * sum(self.calibration.flops[_depth(cell)] for cell in self.cells)


class _Offered(NamedTuple):
    """A cell, and how its trial would be started."""

    cell: Cell
    trial: Any
    setting: tuple
    scales: Mapping[str, Any]

    def differs_in_depth(self, other: _Offered) -> bool:
        """Whether another has the same program and coordinates, but for the depth."""
        mine, theirs = ({**each.cell.coords, "depth": 0} for each in (self, other))
        return other.trial is self.trial and mine == theirs


class _EnoughError(Exception):
    """A cell has got as far as a plan needs it."""


def made(experiment: Experiment) -> Plan:
    """Plan a run: look which programs the cells would compile, and measure that of the smallest.

    Time and FLOPs of a step are linear in the depth, a traced argument of one program: t(d) = base + per_layer d. Other
    programs, such as those of other blocks, are taken to cost what this one does.
    """
    cells = list(experiment.cells())
    offered, num_looked = _offers(experiment, cells) if _is_training(experiment) else ([], 0)
    # The trials are held by `offered`, so no two have one id.
    programs = {id(each.trial) for each in offered}
    members = [each.trial.num_members for each in offered]
    said = getattr(experiment, "num_members", lambda: 0)()
    return Plan(
        cells,
        max(members, default=said),
        sum(members) or said * len(cells),
        int(getattr(experiment, "num_steps", 0)),
        len(programs),
        num_looked,
        _calibrated(offered, {_depth(cell) for cell in cells}) if offered else None,
    )


def flops(jaxpr: Any, depth: int) -> float:
    """Count the floating-point operations of matrix products and convolutions: a multiplication and an addition each.

    XLA's own count takes the body of every loop once, whatever its length. Here a scan counts by its length, and a loop
    to a traced bound, as `jaxact.nn.Stack` makes them, `depth` times; another loop, such as a search that is rarely
    repeated, once. The dearest branch of a choice counts.

    Args:
        jaxpr: of the program.
        depth: trips of loops to a traced bound.

    >>> import jax, jax.numpy as jnp
    >>> power = lambda x, n: jax.lax.fori_loop(0, n, lambda _, y: y @ x, x)
    >>> flops(jax.make_jaxpr(power)(jnp.ones((2, 2)), 3).jaxpr, depth=3)  # 2 * 2^3 each
    48.0
    """
    total = 0.0
    for equation in jaxpr.eqns:
        kind, told = equation.primitive.name, equation.params
        if kind == "dot_general":
            (contracted, _), _ = told["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
        elif kind == "conv_general_dilated":
            kernel, numbers = equation.invars[1].aval, told["dimension_numbers"]
            total += 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[numbers.rhs_spec[0]]
        elif kind == "cond":
            total += max(flops(each.jaxpr, depth) for each in told["branches"])
        else:
            times = _times(equation, depth)
            # Loops to traced bounds within another, as where layers are recomputed, share its trips.
            within = 1 if kind == "while" and times == depth else depth
            total += times * sum(flops(each, within) for each in _inner(told))
    return total


def described(plan: Plan, path: Path, num_devices: int) -> Table:
    """The plan as rows of text."""
    table = Table.grid(padding=(0, 2))
    table.title = on_one_line(f"plan of {path}; nothing is stored")
    table.title_justify = "left"
    for name, text in _rows(plan, num_devices):
        table.add_row(name, on_one_line(text))
    return table


def _rows(plan: Plan, num_devices: int) -> Iterator[tuple[str, str]]:
    cells = len(plan.cells)
    least = "at least " if 0 < plan.num_looked < cells else ""
    yield "cells", f"{cells}"
    steps = f" of {plan.num_steps} steps each" if plan.num_steps else ""
    known = f"{plan.num_members} a cell at most, {least}{plan.num_networks} networks{steps}"
    yield "members", known if plan.num_members else "not known"
    if plan.calibration is None:
        unknown = "not known: this study offers no training program (train.trial.TrainingStudy)"
        for name in ("programs", "FLOPs", "memory", "time"):
            yield name, unknown
        return
    found = plan.calibration
    yield (
        "programs",
        f"{least}{plan.num_programs} of training, {found.compile_seconds:.1f} s each to compile here",
    )
    yield "measured", f"{found.cell}, depth {', '.join(map(str, found.rate.depths))}: {_speeds(plan)}"
    yield "FLOPs", f"{plan.total_flops():.3g} in matrix products and convolutions of all steps"
    chunked = "" if found.side_by_side == "all" else f", {found.side_by_side} members at once"
    yield "memory", f"{found.memory / 2**20:.1f} MiB a training program{chunked}"
    yield from _times_taken(plan, num_devices)
    yield "", "Training alone: what a study probes and draws comes on top."
    if plan.num_programs > 1:
        yield "", "Only this program is measured; a step of the others is taken to cost what its own does."


def _times_taken(plan: Plan, num_devices: int) -> Iterator[tuple[str, str]]:
    assert plan.calibration is not None
    spent, compiling = plan.cell_seconds(), plan.num_programs * plan.calibration.compile_seconds
    total, longest = sum(spent), max(spent)
    side_by_side = workers.default_number(len(plan.cells))
    best = f", at best {clock((total + compiling) / side_by_side)} by {side_by_side} processes"
    yield "time", f"{clock(total + compiling)} here by one process{best if side_by_side > 1 else ''}"
    if num_devices > 1:
        # Each device compiles what it measures, at most every program.
        least = max(total / num_devices, longest) + compiling / max(1, min(plan.num_programs, num_devices))
        yield (
            "",
            f"at best {clock(least)} on {num_devices} devices like this; the longest cell {clock(longest)}",
        )


def _speeds(plan: Plan) -> str:
    assert plan.calibration is not None
    depths = sorted(map(_depth, plan.cells))
    speeds = [
        f"{1 / plan.calibration.rate.seconds(depth):.3g} at depth {depth}"
        for depth in (depths[0], depths[-1])
    ]
    return f"{' and '.join(dict.fromkeys(speeds))} steps/s of all members"


def _is_training(experiment: Any) -> bool:
    from train.trial import TrainingStudy

    return isinstance(experiment, TrainingStudy)


def _offers(experiment: Any, cells: Sequence[Cell]) -> tuple[list[_Offered], int]:
    """How each cell would start its trial, as far as seconds go; the smallest is looked at first, and comes first."""
    found, num_looked, end = [], 0, time.monotonic() + _LOOK_SECONDS
    smallest = min(cells, key=_depth)
    for cell in [smallest, *(each for each in cells if each is not smallest)]:  # neighbours share a program
        if num_looked and time.monotonic() > end:
            break
        num_looked += 1
        if (offer := _offer(_with_few_steps(experiment), cell)) is not None:
            found.append(offer)
        elif num_looked == 1:
            break
    return found, num_looked


def _offer(experiment: Any, cell: Cell) -> _Offered | None:
    from train.trial import before_start

    seen: list[_Offered] = []

    def stop(trial: Any, setting: tuple, scales: Mapping[str, Any]) -> None:
        seen.append(_Offered(cell, trial, setting, scales))
        raise _EnoughError

    def progress(fraction: float, note: str = "") -> None:
        if fraction > 0:  # it measures without a trial
            raise _EnoughError

    def looked() -> None:
        before_start.set(stop)
        with contextlib.suppress(_EnoughError):
            experiment.measure(cell, progress)

    contextvars.copy_context().run(looked)
    return seen[0] if seen else None


def _with_few_steps(experiment: Any) -> Any:
    """The same study with chunks that are soon run."""
    small = {"num_steps": min(experiment.num_steps, _FEW_STEPS)}
    if hasattr(experiment, "measure_every"):
        small["measure_every"] = min(experiment.measure_every, small["num_steps"])
    return experiment.shrunk(**small)


def _calibrated(offered: Sequence[_Offered], depths: set[int]) -> Calibration:
    import jax

    first = offered[0]
    trial = first.trial
    started = time.perf_counter()
    states = trial._start(trial.members, trial.data, first.setting, first.scales)
    compiled = trial._step.compiled(states, trial.data, first.setting)
    traced = trial._step.jitted.trace(states, trial.data, first.setting)
    compile_seconds = time.perf_counter() - started
    measured: dict[int, float] = {}
    end = time.monotonic() + _SECONDS
    for offer in sorted(filter(first.differs_in_depth, offered), key=lambda each: _depth(each.cell)):
        if len(measured) >= 2 and time.monotonic() > end:
            break
        seconds: list[float] = []
        while len(seconds) < 3 and sum(seconds) < _LONG_ENOUGH:
            began = time.perf_counter()
            states, _ = jax.block_until_ready(compiled(states, trial.data, offer.setting))
            seconds.append(time.perf_counter() - began)
        measured[_depth(offer.cell)] = min(seconds) / trial.measure_every
    by_depth = {depth: flops(traced.jaxpr.jaxpr, depth) / trial.measure_every for depth in depths}
    known = (first.cell.name, compile_seconds, _bytes(compiled), _rate(measured), by_depth)
    return Calibration(*known, trial._step.side_by_side)


def _rate(measured: Mapping[int, float]) -> Rate:
    """The line through what was measured; through 0 where that is one depth, or noise would have it fall."""
    depths, seconds = np.array([*measured]), np.array([*measured.values()])
    if len(depths) > 1:
        per_layer, base = np.polyfit(depths, seconds, 1)
        if per_layer > 0 and base >= 0:
            return Rate(float(base), float(per_layer), tuple(measured))
    return Rate(0.0, float(seconds[-1] / depths[-1]), tuple(measured))


def _bytes(compiled: Any) -> int:
    said = compiled.memory_analysis()
    whole = said.argument_size_in_bytes + said.output_size_in_bytes + said.temp_size_in_bytes
    return int(whole - said.alias_size_in_bytes)


def _depth(cell: Cell) -> int:
    """Of its networks; 1 in a study whose cells do not differ in it, which scales nothing."""
    depth = cell.coords.get("depth", 1)
    return int(depth) if isinstance(depth, int | np.integer) else 1


def _times(equation: Any, depth: int) -> float:
    if equation.primitive.name == "scan":
        return equation.params["length"]
    if equation.primitive.name == "while":
        return depth if [each.primitive.name for each in equation.params["cond_jaxpr"].eqns] == ["lt"] else 1
    if equation.primitive.name == "shard_map":  # of which shapes are a device's
        return equation.params["mesh"].size
    return 1


def _inner(told: Mapping[str, Any]) -> Iterator[Any]:
    """The programs within an equation; conditions of loops do no matrix products worth counting."""
    for name, value in told.items():
        inner = getattr(value, "jaxpr", value)
        if name != "cond_jaxpr" and hasattr(inner, "eqns"):
            yield inner
