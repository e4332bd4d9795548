r"""How busy a cluster is kept by a study's executor: `train.pool` itself, its workers and clock simulated.

    python scripts/simulate_cluster.py                          # 10^6 networks on 1,000 accelerators, some minutes
    python scripts/simulate_cluster.py --members 20000 --devices 100
    python scripts/simulate_cluster.py --run runs/<id>          # with the seconds that a stored run took

Who measures which cell, who takes over whose, and what is tried again is decided by `train.pool.side_by_side`, not by a
copy of it. Simulated are what it commands: devices that start, compile, measure, die and come back; and the one process
that stores what they measured, one cell after the other.

Cost model. A cell trains `cell_members` networks of one depth side by side in one program, whose loop over layers makes
its time linear in the depth. On a device of slowness s a cell of depth d takes

    t = s w t_d        t_d seconds in the stored run, w times its work

and before its first cell of a program c seconds to compile, before anything r to start. With rate 1/M a device dies;
the cell is lost on average half done, and the device is back after R seconds. The run itself may be ended and resumed:
all that runs is lost then, as if no cell kept checkpoints, and all starts and compiles anew. The main process needs q
seconds a cell and is no bottleneck while D q < mean(t) for D devices. With n cells a device, p programs met by a
device, the share of time that devices measure what is kept is about

    U = 1 / (1 + (r + p c) / (n t) + q / t + (t / 2 + R + r + p c) / M) less the end, at most max(t) / (n t),

in which some devices have nothing left to take. For equal cells without starts, compiling and deaths it is exactly
C / (ceil(C / D) D). U asks for cells that are long against r, c and q, short against M, and many times as many as
devices: with q = 46 ms and 1,000 devices none may be shorter than 46 s on average.

The seconds by default are those of `python -m train run configs/depth_sweep.py --blocks plain pre_activation-bn
--activations tanh relu --depths 4 16 64` on two busy cores: to train and probe, by depth; to compile; to store one of
its cells (28 ms of it to encode the file). Its 200 steps are too short for 1,000 devices: they would wait for the
process that stores, and be busy for 7 % of the time. So a cell has 20 times that work by default, 4,000 steps; with 10
times the process that stores is still the bottleneck (69 %). A device dies every 1,000 hours, 50 times as often as
those of Grattafiori et al., The Llama 3 herd of models, 2024, table 5 (419 in 54 days of 16,384 GPUs), and one in a
hundred is half as fast. These two, and the seconds to start and to repair, are assumed.
"""

import argparse
import contextlib
import heapq
import itertools
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train import pool, results, runner
from train.causes import Cause
from train.experiment import Cell
from train.outcomes import Failure
from train.progress import Forecast, clock

_DIED = Cause("was lost with its device", "Use others.")


class Numbers(NamedTuple):
    """What a simulation stands on; seconds throughout.

    Attributes:
        members: networks in all.
        devices: accelerators, a worker each.
        cell_members: networks of a cell.
        depths: of cells, in turn.
        cell_seconds: of a cell by depth, as many as depths.
        work: how many times so long cells are: more steps, or more networks than a device trains at once.
        programs: compiled programs that the cells share; neighbours have one.
        start_seconds: from asking for a worker until it is ready.
        compile_seconds: of a program, on each device that meets it.
        store_seconds: that the main process takes for a cell.
        failure_hours: mean time between the deaths of one device; infinite for none.
        repair_seconds: until a device that has died can be used again.
        restarts: how often the run is ended and resumed, after equal numbers of cells.
        restart_seconds: until it goes on.
        slow_share: of the devices.
        slowness: of those, 2 for half as fast.
        jitter: standard deviation of the logarithm of a cell's time.
        seed: of all that is random.
    """

    members: int = 1_000_000
    devices: int = 1000
    cell_members: int = 9
    depths: tuple[int, ...] = (4, 16, 64)
    cell_seconds: tuple[float, ...] = (2.05, 2.39, 6.07)
    work: float = 20.0
    programs: int = 6
    start_seconds: float = 10.0
    compile_seconds: float = 21.4
    store_seconds: float = 0.046
    failure_hours: float = 1000.0
    repair_seconds: float = 600.0
    restarts: int = 1
    restart_seconds: float = 60.0
    slow_share: float = 0.01
    slowness: float = 2.0
    jitter: float = 0.05
    seed: int = 0


class Outcome(NamedTuple):
    """What came of a simulated run.

    Attributes:
        utilisation: device seconds spent on cells that were stored, over all device seconds until the last was.
        makespan: until then.
        done: cells stored.
        failed: cells that failed for good.
        deaths: of devices.
        starting, compiling, lost: shares of all device seconds; the rest, idle, waited: for the main process, for
            devices to come back, or for others to end.
        main: share of the makespan in which the main process stored.
    """

    utilisation: float
    makespan: float
    done: int
    failed: int
    deaths: int
    starting: float
    compiling: float
    lost: float
    main: float


class Cluster:
    """Simulated devices and their clock; a `train.pool.Crew`."""

    plan: Any = None  # of checkpoints, of which none is made

    def __init__(self, numbers: Numbers, cells: Sequence[Cell]):
        self.numbers, self.cells = numbers, {cell.name: cell for cell in cells}
        lasting = [numbers.work * seconds for seconds in numbers.cell_seconds]
        self.seconds = dict(zip(numbers.depths, lasting, strict=True))
        self.random = np.random.default_rng(numbers.seed)
        self.now = self.free = (
            0.0  # of the event that is dealt with; when the main process has dealt with all before
        )
        is_slow = self.random.permutation(numbers.devices) < round(numbers.slow_share * numbers.devices)
        # When each can be used, and how slow it is.
        self.devices = [(0.0, place, numbers.slowness if slow else 1.0) for place, slow in enumerate(is_slow)]
        self.events: list[tuple[float, int, Any]] = []
        self.order = itertools.count()
        self.spent = dict.fromkeys(("useful", "starting", "compiling", "lost"), 0.0)
        self.num_deaths = 0
        # Events within so little are dealt with in one go: a worker's own time is kept.
        self.together = 0.01 * min(lasting)

    def start(self, num_workers: int) -> "Device":
        """Start a worker on the device that can be used first."""
        return Device(self, heapq.heappop(self.devices))

    def wait(self, workers: Sequence["Device"], seconds: float | None) -> set["Device"]:
        """Let time pass until something happens."""
        heard = set()
        first = self.events[0][0]
        while self.events and self.events[0][0] <= first + self.together:
            worker = heapq.heappop(self.events)[2]
            if not worker.is_gone:
                heard.add(worker)
        return heard

    def close(self) -> None:
        """Nothing is held."""


class Device:
    """A worker on a simulated device; a `train.pool.Worker`, of which one event at a time is to come."""

    def __init__(self, cluster: Cluster, device: tuple[float, int, float]):
        self.cluster, (self.free, self.place, self.slowness) = cluster, device
        self.programs: set[Any] = set()
        self.is_gone = self.is_dead = False
        hours = cluster.numbers.failure_hours
        lasts = cluster.random.exponential(3600 * hours) if math.isfinite(hours) else math.inf
        began = max(self.free, cluster.now)
        self.dies = began + lasts
        self.wait(began, ("ready", None), starting=cluster.numbers.start_seconds)

    def wait(self, began: float, said: tuple[str, Any], **accounts: float) -> None:
        """Let something take its time, unless the device dies before: then all of it is lost."""
        ends = began + sum(accounts.values())
        self.is_dead = self.dies < ends
        self.began, self.at, self.said = began, min(ends, self.dies), said
        self.accounts = {"lost": self.at - began} if self.is_dead else accounts
        heapq.heappush(self.cluster.events, (self.at, next(self.cluster.order), self))

    def send(self, name: str) -> None:
        """Measure a cell, from when the main process has said so."""
        cluster, cell = self.cluster, self.cluster.cells[name]
        spread = cluster.numbers.jitter
        seconds = self.slowness * cluster.seconds[cell.coords["depth"]]
        seconds *= math.exp(spread * cluster.random.standard_normal() - spread**2 / 2) if spread else 1.0
        compiling = 0.0 if cell.coords["program"] in self.programs else cluster.numbers.compile_seconds
        self.programs.add(cell.coords["program"])
        self.wait(cluster.now, ("measured", (None, seconds, "")), compiling=compiling, useful=seconds)

    def receive(self) -> tuple[str, Any]:
        """Return what happened; the main process stores what was measured."""
        cluster = self.cluster
        cluster.now = self.at
        for account, seconds in self.accounts.items():
            cluster.spent[account] += seconds
        self.accounts = {}
        if self.is_dead:
            cluster.num_deaths += 1
            raise pool.WorkerDiedError(_DIED)
        if self.said[0] == "measured":
            cluster.free = max(cluster.free, self.at) + cluster.numbers.store_seconds
            cluster.now = cluster.free
        return self.said

    def stop(self) -> None:
        """Store nothing of the cell: it is measured from the start again."""

    def join(self, seconds: float) -> None:
        """Take no time."""

    def end(self, *, at_once: bool) -> None:
        """Give the device back, which if it has died can be used after a while."""
        self.is_gone = True
        if self.accounts:  # what has begun
            self.cluster.spent["lost"] += max(self.cluster.now - self.began, 0.0)
        back = self.cluster.now + (self.cluster.numbers.repair_seconds if self.is_dead else 0.0)
        heapq.heappush(self.cluster.devices, (back, self.place, self.slowness))


class Unseen:
    """A `train.progress.Display` of which nothing is shown: what the pool asks of one."""

    def __init__(self) -> None:
        self.forecast = Forecast()

    def start(self, cell: Cell, worker: str) -> Any:
        """Take note of nothing."""

    def notice(self, text: str) -> None:
        """Print nothing."""


def simulated(numbers: Numbers) -> Outcome:
    """Simulate a run to its end."""
    num_cells = math.ceil(numbers.members / numbers.cell_members)
    cells = [
        Cell(
            str(place),
            {
                "program": place * numbers.programs // num_cells,
                "depth": numbers.depths[place % len(numbers.depths)],
            },
        )
        for place in range(num_cells)
    ]
    cluster, left, failed = Cluster(numbers, cells), {cell.name: cell for cell in cells}, 0
    for rest in range(numbers.restarts, -1, -1):
        failed = _measured(cluster, left, num_cells * rest // (numbers.restarts + 1))
        cluster.now += numbers.restart_seconds
    done = num_cells - failed
    makespan = cluster.free
    useful, *others = (seconds / (numbers.devices * makespan) for seconds in cluster.spent.values())
    main = numbers.store_seconds * done / makespan
    return Outcome(useful, makespan, done, failed, cluster.num_deaths, *others, main)


def _measured(cluster: Cluster, left: dict[str, Cell], num_left: int) -> int:
    """Measure until only so many cells are left, all if none: take the stored ones out, count those that failed."""
    failed, display = 0, Unseen()
    cells, num_workers = [*left.values()], cluster.numbers.devices
    measuring = pool.side_by_side(None, cells, display, crew=cluster, num_workers=num_workers)  # type: ignore[arg-type]
    with contextlib.closing(measuring):
        for outcome in measuring:
            if isinstance(outcome, Failure):
                failed += 1
                continue
            display.forecast.record(outcome.cell, outcome.seconds)
            del left[outcome.cell.name]
            if len(left) <= num_left and num_left:
                break
    return failed


def measured_in(path: Path, numbers: Numbers) -> Numbers:
    """Take the seconds of a stored run: of training and probing by depth, of compiling, and to store one cell."""
    result = runner.load(path / "result.nc")
    others = [dim for dim in result["run_seconds"].dims if dim != "depth"]
    by_depth = result["run_seconds"].mean(others)
    compiling = result["compile_seconds"].to_numpy()
    file = next((path / "cells").glob("*.nc"))
    cell, began = results.load(file), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(10):
            results.save(cell, Path(folder) / "cell.nc")
    return numbers._replace(
        depths=tuple(int(depth) for depth in by_depth["depth"].to_numpy()),
        cell_seconds=tuple(round(float(each), 2) for each in by_depth.to_numpy()),
        cell_members=math.prod(result.sizes.get(dim, 1) for dim in ("learning_rate", "seed")),
        compile_seconds=round(
            float(compiling[compiling > 1.0].mean()) if (compiling > 1.0).any() else 0.0, 1
        ),
        store_seconds=round((time.perf_counter() - began) / 10, 4),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the numbers and what comes of them; 1 where fewer than 90 % of the device seconds are useful."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, help="take the seconds of this stored run, its folder")
    for name, default in Numbers()._asdict().items():
        is_several = isinstance(default, tuple)
        kind = type(default[0] if is_several else default)
        word = f"--{name.replace('_', '-')}"
        parser.add_argument(word, type=kind, nargs="+" if is_several else None, help=f"by default {default}")
    given = vars(parser.parse_args(arguments))
    numbers = Numbers() if (run := given.pop("run")) is None else measured_in(run, Numbers())
    said = {name: value for name, value in given.items() if value is not None}
    numbers = numbers._replace(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    )
    if len(numbers.depths) != len(numbers.cell_seconds):
        parser.error("--depths and --cell-seconds need as many values as each other.")
    for name, value in numbers._asdict().items():
        print(f"{name:16} {value}")
    found = simulated(numbers)
    print(f"\nutilisation {found.utilisation:.1%} of {numbers.devices} devices over {clock(found.makespan)}")
    print(f"{found.done} cells stored, {found.failed} failed for good; {found.deaths} devices died")
    rest = 1 - found.utilisation - found.starting - found.compiling - found.lost
    print(
        f"starting {found.starting:.2%}, compiling {found.compiling:.2%}, lost with devices {found.lost:.2%}, "
        f"waiting {rest:.2%}; the main process is busy {found.main:.0%} of the time"
    )
    return 0 if found.utilisation >= 0.9 else 1


if __name__ == "__main__":
    raise SystemExit(main())
