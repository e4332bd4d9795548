"""Members in stretches that memory has room for: chosen by asking, halved where it runs out, results as of all."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import config, memory, partial, pool, results, workers
from train.__main__ import main
from train.outcomes import Failure
from train.programs import Program

FILE = Path(__file__).with_name("hungry_study.py")
Hungry = type(config.load(FILE))


class Told:
    """A display that remembers what it is told."""

    def __init__(self):
        self.notices = []

    def notice(self, text):
        self.notices.append(text)

    def start(self, cell, place=""):
        return lambda *_: None

    def forecast(self, cell):
        return 1.0


def measured(study, *, plan=None, cells=None):
    told = Told()
    outcomes = list(workers.in_this_process(study, cells or study.cells()[:1], told, plan=plan))
    return outcomes, told.notices


@pytest.fixture(scope="module")
def whole():
    (outcome,), notices = measured(Hungry())
    assert notices == []
    assert outcome.dataset.attrs["members_at_once"] == "all"
    return outcome.dataset


def check_same(dataset, whole):
    for name in ("loss", "accuracy", "total"):
        np.testing.assert_allclose(dataset[name], whole[name], rtol=1e-6, atol=1e-7, err_msg=name)


# Chosen by asking -----------------------------------------------------------------------------------------


@pytest.fixture
def compiles():
    """Counts what XLA is asked to compile, caches or not."""
    events = []

    def listen(name, _, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    jax.monitoring.unregister_event_duration_listener(listen)


def held(x, steps):  # 64 KiB in between
    h = jnp.outer(x, x)
    return jnp.sum(jax.lax.fori_loop(0, steps, lambda _, h: jnp.sin(h @ h) / len(x), h))


def test_what_fits_is_compiled_once_and_a_clear_cache_is_noticed(compiles):
    program = Program(held, None, "auto")
    xs = jnp.ones((6, 128))
    compiles.clear()
    first = program(xs, 2)
    assert len(compiles) == 1
    program(xs, 3)
    assert len(compiles) == 1
    assert (program.at_once, program.side_by_side) == (6, "all")
    jax.clear_caches()
    np.testing.assert_array_equal(program(xs, 2), first)


def test_where_a_device_has_less_as_many_as_fit_are_side_by_side(compiles, monkeypatch):
    xs = jnp.linspace(0.1, 1.0, 7 * 128).reshape(7, 128)
    everything = Program(held, None, "auto")
    expected = everything(xs, 2)
    need = memory.needed(everything.compiled(xs, 2))
    for share, at_once in ((1.0, 7), (0.6, 4), (0.5, 3), (0.3, 2), (0.01, 1)):
        limit = share * need
        monkeypatch.setattr(memory, "free", lambda _, limit=limit: limit)
        said, program = [], Program(held, None, "auto")
        compiles.clear()
        with memory.within(memory.Budget(say=said.append)):
            np.testing.assert_allclose(program(xs, 2), expected, rtol=1e-6)
            program(xs, 3)
            assert memory.budget().taken() == ("all" if at_once == 7 else f"{at_once} of 7")
        assert program.at_once == at_once
        assert len(compiles) == (1 if at_once == 7 else 2)
        assert (memory.needed(program.compiled(xs, 2)) <= limit) == (share >= 0.3)
        assert len(said) == (at_once != 7)
        if said:
            assert said[0].startswith(f"7 members side by side need {memory.shown(need)} (held), and ")
            assert f"{memory.shown(limit)} are free: {at_once} at once, in " in said[0]
            assert ("one alone is too large, and tried" in said[0]) == (share == 0.01)


def test_what_a_device_has_free(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 300}

    assert 2**20 < memory.available() < memory._NO_LIMIT
    with memory.within(memory.Budget(4)):
        assert memory.free(None) == pytest.approx(memory.available() / 4, rel=0.2)
        monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
        assert memory.free(None) == 700


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_chunked_study_measures_what_an_unchunked_one_does(whole, at_once):
    (outcome,), notices = measured(Hungry(members_at_once=at_once))
    check_same(outcome.dataset, whole)
    assert notices == []
    assert outcome.dataset.attrs["members_at_once"] == f"{at_once} of 5"


def test_deep_networks_in_stretches_equal_those_side_by_side():
    deep = Hungry(kind="dense", block="pre_activation-bn")
    (outcome,), _ = measured(deep)
    (chunked,), _ = measured(replace(deep, members_at_once=2))
    check_same(chunked.dataset, outcome.dataset)


def test_too_little_memory_is_said_once_and_stands_in_the_result(whole, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda _: 3e3)
    (outcome,), notices = measured(Hungry())
    check_same(outcome.dataset, whole)
    assert len(notices) == len(set(notices))
    assert any("5 members side by side need" in text and "(trained)" in text for text in notices)
    assert outcome.dataset.attrs["members_at_once"] == "1 of 5"


@pytest.mark.parametrize("value", [0, -1, 1.5, "all", True])
def test_what_is_no_number_of_members_is_refused(value):
    with pytest.raises(
        ValueError, match=r"`members_at_once` must be a positive integer or auto, got .* Leave it out"
    ):
        Hungry(members_at_once=value)


# Out of memory --------------------------------------------------------------------------------------------


def test_a_cell_that_runs_out_of_memory_is_measured_again_with_half_as_many(whole):
    study = Hungry(most=1)
    outcomes, notices = measured(study, cells=study.cells())
    check_same(outcomes[0].dataset, whole)
    said = "depth=2: the device's memory ran out with {} members side by side. It is measured again with {} at once."
    assert notices == [said.format(5, 2), said.format(2, 1)]  # the later cell begins with what went well
    assert [outcome.dataset.attrs["members_at_once"] for outcome in outcomes] == ["1 of 5", "1 of 5"]


def test_it_goes_on_from_its_last_checkpoint(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(partial._Keeper, "store_if_due", lambda keeper, _: keeper.store())
    plan = partial.Plan({"depth=2": tmp_path / "depth=2.partial"}, 1e-9, {"config": "mine"})
    (outcome,), notices = measured(Hungry(most=3, after=2), plan=plan)
    check_same(outcome.dataset, whole)
    assert notices[1:] == ["depth=2 goes on from its checkpoint: chunk 2 of 4 of training 1."]


def test_one_network_too_large_fails_with_what_helps():
    (outcome,), notices = measured(Hungry(most=0, seeds=(0, 1)))
    assert isinstance(outcome, Failure)
    assert "the device's memory ran out with one network at a time (JaxRuntimeError: RES" in outcome.cause
    for remedy in ("--width", "--batch-size", "--remat layers", "--compute-dtype bfloat16", "--workers 1"):
        assert remedy in outcome.remedy
    assert len(notices) == 1


def test_memory_that_no_program_took_is_another_failure():
    class Greedy(Hungry):
        def measure(self, cell, progress):
            raise MemoryError

    (outcome,), notices = measured(Greedy())
    assert outcome.cause.startswith("memory ran out (MemoryError")
    assert notices == []


def test_worker_processes_do_the_same(whole):
    study, told = Hungry(most=3), Told()
    crew = workers.Processes([str(FILE), "--most", "3"], config.resolved(study))
    (outcome,) = pool.side_by_side(study, study.cells()[:1], told, crew=crew, num_workers=1)
    check_same(outcome.dataset, whole)
    assert outcome.dataset.attrs["members_at_once"] == "2 of 5"
    assert told.notices == [
        "depth=2: the device's memory ran out with 5 members side by side. It is measured again with 2 at once."
    ]


def test_the_command_line_takes_a_number(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--depths", "2", "--num-steps", "3", "--members-at-once"]
    assert main(["run", str(FILE), "--workers", "0", *words, "2"]) == 0
    (path,) = tmp_path.glob("runs/*/result.nc")
    result = results.load(path)
    assert result.attrs["members_at_once"] == "2 of 5"
    assert json.loads(result.attrs["config"])["members_at_once"] == 2
    capsys.readouterr()
    assert main(["plan", str(FILE), *words, "2"]) == 0
    assert "2 of 5 members at once" in capsys.readouterr().out
    assert main(["run", str(FILE), *words, "0"]) == 2
    assert "`members_at_once` must be a positive integer or auto, got 0" in capsys.readouterr().err
    resumed = main(["run", str(FILE), "--resume", str(path.parent), *words, "auto"])
    assert resumed == 2
    assert "members_at_once" in capsys.readouterr().err
