"""Cells in flight: whatever ends a process within a cell, the next one goes on there and measures the same."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from train import config, results
from train import partial as partials
from train.__main__ import main

ROOT = Path(__file__).parents[2]
NAME = "learning_rate=0.01"
SIZES = "--num-steps", "30000", "--measure-every", "150", "--least", "2"  # three loops of 200 chunks
STUDY = '''"""Trains networks of one matrix in three loops of one cell, and notes when each chunk is trained."""

import os
import time
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np

from jaxact import nn
from train.study import Variable
from train.tasks import GaussianMixture
from train.trial import TrainingStudy, parts


def linear(width, num_classes):
    def init(key):
        return {"kernel": jax.random.normal(key, (width, num_classes))}, {}

    def apply(params, variables, inputs, *, training=False, **_):
        return inputs @ params["kernel"], variables

    return nn.Functional(init, apply)


def noted(step):
    """Note the time of every chunk; fail instead of the one after ENDS."""

    def wrapped(*arguments):
        with open(os.environ["TRAINED"], "a+") as file:
            file.seek(0)
            if len(file.readlines()) == int(os.environ.get("ENDS", -1)):
                raise ZeroDivisionError
            result = step(*arguments)
            print(time.monotonic(), file=file)
        return result

    return wrapped


@dataclass(frozen=True, kw_only=True)
class Long(TrainingStudy):
    """Long cells."""

    swept: ClassVar = {"learning_rate": "learning_rates"}
    within: ClassVar = {"seed": "seeds"}
    variables: ClassVar = {
        "loss": Variable("loss", ("seed", "step")),
        "accuracy": Variable("accuracy", ("seed", "step")),
        "total": Variable("sum of all entries of the kernel at all times", ("seed",)),
        "kernel": Variable("entry of the kernel where the accuracy was reached", ("seed", "mode")),
        "reached": Variable("step at which the accuracy was reached", ("seed",)),
        "diverged_step": Variable("step", ("seed",)),
    }
    task: GaussianMixture = GaussianMixture(num_classes=3, dimension=4, num_train=64, num_test=50)
    batch_size: int = 4
    seeds: tuple[int, ...] = (0, 6, 7, 10, 12)  # whose accuracies are far from `least`, however a CPU rounds
    learning_rates: tuple[float, ...] = (0.01,)
    num_steps: int = 60
    measure_every: int = 10
    least: float = 0.68

    def measure(self, cell, progress):
        data = self.task.load()
        net = linear(data.train_inputs.shape[1], 1 + int(data.train_labels.max()))
        trial = self.trial(net, parts(data), evaluate={"test": "test"})
        trial._step = noted(trial._step)

        def look(states, total, measured):
            return total + trial.host(states.params)["kernel"].sum((1, 2)), {}

        training = trial.chunks(trial.start(), look=look, carry=np.zeros(len(self.seeds)))
        losses = [chunk.loss.mean(-1) for chunk in training]
        states, curves = trial.train(trial.start(), progress=progress)
        kept, reached = trial.taken_at(trial.start(), measured="test_accuracy", least=self.least)
        return {
            "loss": np.stack(losses, axis=1),
            "accuracy": curves["test_accuracy"],
            "total": training.carry,
            "kernel": trial.host(kept.params)["kernel"].reshape(len(self.seeds), -1),
            "reached": reached,
            "step": self.steps(),
            "diverged_step": trial.diverged_step(states),
        }


    @classmethod
    def figures(cls, result):
        return {}


def get_config():
    return Long()
'''
CHILD = """import os
import sys
from pathlib import Path

import jax
from train import config, partial, results

assert jax.local_device_count() == 4
partial._Keeper.store_if_due = lambda keeper, _: keeper.loops[1:] and keeper.store()
study, ours, theirs, found = map(Path, sys.argv[1:])
experiment = config.load(study)
(cell,) = experiment.cells()
said = []
for folder in (ours, theirs):
    plan = partial.Plan({cell.name: folder}, 60.0, {"config": "a", "code": "a"})
    try:
        with partial.kept(plan, cell.name, print):
            measured = experiment.run(cell, progress=lambda *_: None)
        results.save(measured.assign_attrs(format=results.FORMAT), found)
    except ZeroDivisionError:
        assert folder == theirs
    os.environ["ENDS"] = "16"
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "long.py"
    path.write_text(STUDY)
    return path


@pytest.fixture(scope="module")
def measured(study):
    """Measure the cell in this process: the Dataset, how many chunks were trained, what was said.

    It ends after so many chunks, and stores what there is before it does, and after `stores` chunks.
    """

    def measured(folder, *, ends=-1, stores=0, is_any_code=False, key=(), **fields):
        def store_if_due(keeper, _):
            if sum(len(loop.records) for loop in keeper.loops) in (ends, stores):
                keeper.store()

        log, said = folder.with_name("trained"), []
        log.write_text("")
        experiment = replace(config.load(study), **fields)
        (cell,) = experiment.cells()
        plan = partials.Plan(
            {cell.name: folder}, 60.0, {"config": "a", "code": "a", **dict(key)}, is_any_code
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRAINED", str(log))
            patch.setenv("ENDS", str(ends))
            patch.setattr(partials._Keeper, "store_if_due", store_if_due)
            try:
                with partials.kept(plan, cell.name, said.append):
                    found = results.measurements(experiment.run(cell, progress=lambda *_: None))
            except ZeroDivisionError:
                found = None
        return found, len(log.read_text().split()), said

    return measured


@pytest.fixture(scope="module")
def whole(measured, tmp_path_factory):
    """What a cell gives that nothing disturbs."""
    found, trained, said = measured(tmp_path_factory.mktemp("whole") / "cell.partial")
    assert (trained, said) == (16, [])
    assert sorted({*found["reached"].to_numpy().ravel()}) == [10, 30, 40]
    return found


@pytest.mark.parametrize(
    ("ends", "place"),
    [(1, "1 of 6 of training 1"), (6, "0 of 6 of training 2"), (15, "3 of 6 of training 3")],
)
def test_a_cell_goes_on_with_the_chunk_in_which_it_was_ended(measured, whole, tmp_path, ends, place):
    folder = tmp_path / "cell.partial"
    assert measured(folder, ends=ends, stores=ends - 4) == (None, ends, [])
    found, trained, said = measured(folder)
    assert trained == 16 - ends
    assert said == [f"{NAME} goes on from its checkpoint: chunk {place}."]
    assert found.identical(whole)


@pytest.mark.parametrize(
    ("now", "jax", "trained", "said"),
    [
        ({"key": {"config": "b"}}, "", 16, "begins again: its checkpoint is of another config."),
        ({"key": {"code": "b"}}, "", 16, "begins again: its checkpoint is of another code."),
        (
            {"key": {"code": "b"}, "is_any_code": True},
            "",
            14,
            "goes on from its checkpoint: chunk 2 of 6 of training 1.",
        ),
        ({}, "0.1", 16, "begins again: its checkpoint is of another jax."),
    ],
)
def test_what_was_measured_in_another_way_is_not_taken(measured, whole, tmp_path, now, jax, trained, said):
    folder = tmp_path / "cell.partial"
    measured(folder, ends=2)
    if jax:
        (noted,) = folder.glob("*.json")
        noted.write_text(re.sub(r'("jax": )"[^"]+"', rf'\1"{jax}"', noted.read_text()))
    found = measured(folder, stores=16, **now)
    assert found[1:] == (trained, [f"{NAME} {said}"])
    assert found[0].identical(whole)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"0-6", "1-6", "2-4"}  # no others


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_set_aside_and_what_it_held_is_trained_again(measured, whole, tmp_path):
    ended = tmp_path / "ended.partial"
    measured(ended, ends=9)
    shutil.copytree(
        ended / "0-6", ended / ".0-6.0123456789abcdef.saving"
    )  # a killed save left it: it is no checkpoint
    harms = {
        "0-6/manifest.json": flip,
        "0-6.json": lambda path: path.write_text("{"),
        "1-3.json": Path.unlink,
    }
    largest = max((ended / "1-3").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    harms[str(largest.relative_to(ended))] = flip
    for number, (name, harm) in enumerate(harms.items()):
        folder = Path(shutil.copytree(ended, tmp_path / f"{number}.partial"))
        harm(folder / name)
        found, trained, said = measured(folder)
        lost = {"0": 6, "1": 3}[name[0]]
        assert trained == 16 - 9 + lost
        assert (
            f"{NAME} begins again: its checkpoint is damaged, and now {folder}/{name[:3]}.corrupt: "
            in said[0]
        )
        assert (folder / f"{name[:3]}.corrupt").is_dir()
        assert found.identical(whole)


def test_checkpoints_that_cannot_be_written_end_no_cell(measured, whole, tmp_path):
    (tmp_path / "cell.partial").write_text("in the way")
    found, trained, said = measured(tmp_path / "cell.partial", stores=5)
    assert trained == 16
    assert said[0].startswith(f"No checkpoint of {NAME} could be stored, which goes on without: ")
    assert found.identical(whole)


def test_states_of_four_devices_go_on_on_one_and_the_reverse(measured, whole, study, tmp_path):
    ours, theirs = tmp_path / "ours.partial", tmp_path / "theirs.partial"
    measured(ours, ends=8)
    own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4", "ENDS": "-1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(study), str(ours), str(theirs), str(tmp_path / "found.nc")],
        env={**os.environ, **own, "TRAINED": str(tmp_path / "theirs")},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout == f"{NAME} goes on from its checkpoint: chunk 2 of 6 of training 2.\n"
    assert results.measurements(results.load(tmp_path / "found.nc")).identical(whole)
    found, trained, said = measured(theirs)
    assert (trained, said) == (8, [f"{NAME} goes on from its checkpoint: chunk 2 of 6 of training 2."])
    assert found.identical(whole)


def wait_for(process, holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert holds(), process.communicate()


def counts(tmp_path):
    """How many chunks of each loop are stored."""
    names = [path.name for path in tmp_path.glob("runs/*/cells/*.partial/*")]
    found = filter(None, (re.fullmatch(r"(\d)-(\d+)", name) for name in names))
    return {int(match[1]): int(match[2]) for match in found}


def test_a_run_that_is_ended_again_and_again_within_a_cell_measures_the_same(
    start, measured, study, tmp_path, monkeypatch, capsys
):
    log, every = tmp_path / "log", 0.2
    log.write_text("")
    words = "run", study, *SIZES, "--checkpoint-every", every
    ends = [
        (signal.SIGKILL, 0, 0, 20),
        (signal.SIGTERM, 1, 1, 20),
        (signal.SIGUSR1, 0, 1, 200),
        (signal.SIGHUP, 0, 2, 1),
    ]

    def is_due(loop, count, trained):
        return counts(tmp_path).get(loop, 0) >= count and len(log.read_text().split()) > trained

    again = 0  # how many chunks were trained twice
    for number, num_workers, *place in ends:
        trained = len(log.read_text().split()) + 5
        process = start(*words, "--workers", num_workers, TRAINED=str(log))
        wait_for(process, partial(is_due, *place, trained))
        process.send_signal(number)
        said = process.communicate(timeout=60)
        times = log.read_text().split()
        is_kill = number == signal.SIGKILL
        assert process.returncode == (-number if is_kill else 128 + number), said
        stored = sum(counts(tmp_path).values())
        lost, again = len(times) - again - stored, len(times) - stored
        if is_kill:
            moments = np.array(times, float)
            # What was being written is lost too, which on a busy machine takes as long as some chunks.
            allowed = every + 1.0 + 3 * np.diff(moments).max()
            assert moments[-1] - moments[-1 - lost] < allowed
        else:
            assert lost == 0
            assert "Continue with:\n  python -m train resume" in said[1]
        (run,) = tmp_path.glob("runs/*-*")
        words = "resume", run
    monkeypatch.setenv("TRAINED", str(log))
    monkeypatch.chdir(tmp_path)
    assert main(["resume", str(run), "--workers", "0"]) == 0
    assert "goes on from its checkpoint" in capsys.readouterr().out
    assert len(log.read_text().split()) == 600 + again
    assert [path.name for path in run.glob("cells/*")] == [f"{NAME}.nc"]  # and nothing beside it
    expected = measured(tmp_path / "whole", num_steps=30000, measure_every=150, least=2.0)[0]
    assert results.measurements(results.load(run / "result.nc")).identical(expected)
